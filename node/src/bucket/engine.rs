//! The shards of one core, and the buckets whose vbuckets they hold.
//!
//! Made once the shards are open; a request names a bucket and a vbucket and gets its [`VbStore`], or learns that it is
//! not here.
//!
//! Invariants
//! - Every shard of a data directory has the same geometry and the same buckets.
//! - A vbucket is in shard `vbucket % shard_count`.
//!
//! Cost: finding a vbucket is a search among the buckets, which are few, and one index.
//!
//! Does not know: which core hosts the other shards, connections, opcodes.

use std::cell::Cell;
use std::rc::Rc;

use ringbase_storage::env::Env;
use ringbase_storage::shard::Shard;
use ringbase_storage::types::{BucketId, ShardId, VbId};
use ringbase_storage::vbstore::VbStore;

use super::expiry;
use super::settings::{BucketSettings, SettingsError};
use super::tally::Tally;
use crate::range_scan::{ActiveVbuckets, VbAddress};

/// Why the buckets of a core cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A core without shards has nothing to serve.
    #[error("there is no shard on this core")]
    NoShard,
    /// Two shards do not belong to the same data directory.
    #[error("shards {first} and {second} have different shapes or buckets")]
    Mismatch {
        /// One.
        first: ShardId,
        /// The other.
        second: ShardId,
    },
    /// A bucket's settings mean nothing to this build.
    #[error("bucket {name:?} cannot be served")]
    Settings {
        /// Which bucket.
        name: String,
        /// Why.
        #[source]
        source: SettingsError,
    },
}

/// The shard that holds a vbucket.
#[must_use]
#[inline]
pub fn shard_of(vb: VbId, shard_count: u16) -> ShardId {
    ShardId(vb.0 % shard_count)
}

/// What commands on a bucket need beside its vbuckets.
pub struct BucketContext {
    /// Clock, randomness, tasks of the core.
    pub env: Env,
    /// What the bucket allows.
    pub settings: BucketSettings,
    /// What happened to it on this core.
    pub tally: Tally,
    /// Bytes of requests that wait for the disk.
    waiting_bytes: Cell<usize>,
}

/// Bytes of requests to a bucket on one core that may wait for the disk.
pub const WAITING_BYTES_MAX: usize = 64 << 20;

/// Room for a request that waits for the disk; given back when it is dropped.
#[derive(Debug)]
pub struct WaitingRoom {
    bucket: Rc<BucketContext>,
    bytes: usize,
}

impl Drop for WaitingRoom {
    fn drop(&mut self) {
        let waiting = &self.bucket.waiting_bytes;
        waiting.set(waiting.get() - self.bytes);
    }
}

impl std::fmt::Debug for BucketContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BucketContext({}, {} bytes waiting)", self.settings, self.waiting_bytes.get())
    }
}

impl BucketContext {
    /// Room for a request of `bytes` to wait for the disk; none while others hold too much. A single one always has room.
    #[must_use]
    pub fn waiting_room(self: &Rc<Self>, bytes: usize) -> Option<WaitingRoom> {
        let waiting = self.waiting_bytes.get();
        if waiting > 0 && waiting + bytes > WAITING_BYTES_MAX {
            return None;
        }
        self.waiting_bytes.set(waiting + bytes);
        Some(WaitingRoom { bucket: self.clone(), bytes })
    }

    /// The wall clock in epoch seconds.
    #[must_use]
    pub fn now(&self) -> u32 {
        expiry::seconds(self.env.clock.wall_ns())
    }
}

/// A bucket, as far as this core holds it.
pub struct LocalBucket {
    /// Its number.
    pub id: BucketId,
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: u128,
    /// Settings and counters, shared with requests that wait for the disk.
    pub context: Rc<BucketContext>,
    stores: Vec<Option<Rc<VbStore>>>,
}

impl LocalBucket {
    /// The vbucket, if it is on this core.
    #[must_use]
    #[inline]
    pub fn vbucket(&self, vb: VbId) -> Option<&Rc<VbStore>> {
        self.stores.get(usize::from(vb.0))?.as_ref()
    }

    /// Its vbuckets on this core, in order.
    pub fn vbuckets(&self) -> impl Iterator<Item = &Rc<VbStore>> {
        self.stores.iter().flatten()
    }
}

/// See the module.
pub struct Engine {
    env: Env,
    shards: Vec<Shard>,
    shard_count: u16,
    vbucket_count: u16,
    buckets: Vec<LocalBucket>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({} shards, {} buckets)", self.shards.len(), self.buckets.len())
    }
}

impl Engine {
    /// Serves the buckets of these open shards, all of which live on this core.
    ///
    /// # Errors
    /// The shards are none, do not fit together, or a bucket's settings are unknown.
    pub fn new(env: Env, shards: Vec<Shard>) -> Result<Engine, EngineError> {
        let first = shards.first().ok_or(EngineError::NoShard)?;
        let (geometry, described) = (first.geometry(), first.buckets());
        for other in &shards {
            let theirs = other.geometry();
            if (theirs.shard_count, theirs.vbucket_count) != (geometry.shard_count, geometry.vbucket_count)
                || other.buckets() != described
            {
                return Err(EngineError::Mismatch { first: geometry.shard, second: theirs.shard });
            }
        }
        let mut buckets = Vec::with_capacity(described.len());
        for bucket in described {
            let settings = BucketSettings::parse(&bucket.config)
                .map_err(|source| EngineError::Settings { name: bucket.name.clone(), source })?;
            let stores = (0..geometry.vbucket_count)
                .map(|vb| shards.iter().find_map(|shard| shard.vbucket(bucket.id, VbId(vb))))
                .collect();
            buckets.push(LocalBucket {
                id: bucket.id,
                name: bucket.name,
                uuid: bucket.uuid,
                context: Rc::new(BucketContext {
                    env: env.clone(),
                    settings,
                    tally: Tally::default(),
                    waiting_bytes: Cell::new(0),
                }),
                stores,
            });
        }
        Ok(Engine {
            env,
            shards,
            shard_count: geometry.shard_count,
            vbucket_count: geometry.vbucket_count,
            buckets,
        })
    }

    /// Clock, randomness, tasks of the core.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// The shards of this core.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Shards of the data directory, on all cores.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.shard_count
    }

    /// Vbuckets of every bucket, on all cores.
    #[must_use]
    pub fn vbucket_count(&self) -> u16 {
        self.vbucket_count
    }

    /// The buckets.
    #[must_use]
    pub fn buckets(&self) -> &[LocalBucket] {
        &self.buckets
    }

    /// The bucket with this number.
    #[must_use]
    #[inline]
    pub fn bucket(&self, id: BucketId) -> Option<&LocalBucket> {
        self.buckets.iter().find(|bucket| bucket.id == id)
    }

    /// A vbucket, if the bucket is known and this core holds it.
    #[must_use]
    #[inline]
    pub fn vbucket(&self, bucket: BucketId, vb: VbId) -> Option<&Rc<VbStore>> {
        self.bucket(bucket)?.vbucket(vb)
    }
}

impl ActiveVbuckets for Engine {
    fn active(&self, at: VbAddress) -> Option<Rc<VbStore>> {
        self.vbucket(at.bucket, at.vb).cloned()
    }
}
