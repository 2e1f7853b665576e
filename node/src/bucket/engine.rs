//! The shards of one core, and the buckets whose vbuckets they hold.
//!
//! Made once the shards are open; buckets come and go with [`Engine::publish`] and [`Engine::withdraw`]. A request names a bucket and a vbucket
//! and gets its [`VbStore`], or learns that it is not here.
//!
//! Invariants
//! - Every shard of a data directory has the same geometry, and after [`Engine::reconcile`] the same buckets.
//! - A vbucket is in shard `vbucket % shard_count`.
//!
//! Cost: finding a vbucket is a search among the buckets, which are few, and one index.
//!
//! Does not know: which core hosts the other shards, connections, opcodes.

use std::cell::RefCell;
use std::rc::Rc;

use ringbase_storage::env::Env;
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::manifest::ManifestError;
use ringbase_storage::shard::{Home, Shard};
use ringbase_storage::sync::Lock;
use ringbase_storage::types::{BucketId, ShardId, VbId};
use ringbase_storage::vbstore::VbStore;

use super::context::{BucketContext, LocalBucket};
use super::description::BucketConfig;
use super::set::BucketSet;
use super::settings::{BucketSettings, SettingsError};
use super::shared::{SharedBuckets, TableCopies};
use super::states::{Access, Verdict};
use super::{ephemeral, events, pager, purger};
use crate::protocol::CollectionId;
use crate::protocol::dcp::signal::VbucketState;
use crate::range_scan::{ActiveVbuckets, VbAddress};

/// Why the buckets of a core cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A core without shards has nothing to serve.
    #[error("there is no shard on this core")]
    NoShard,
    /// Two shards do not belong to the same data directory.
    #[error("shards {first} and {second} have different shapes")]
    Mismatch {
        /// One.
        first: ShardId,
        /// The other.
        second: ShardId,
    },
    /// A shard lacks a bucket that shard 0 has.
    #[error("shard {shard} has lost bucket {name:?}, which shard 0 has")]
    MissingBucket {
        /// Which shard.
        shard: ShardId,
        /// Which bucket.
        name: String,
    },
    /// A shard cannot follow shard 0.
    #[error("shard {shard} cannot be changed")]
    Shard {
        /// Which shard.
        shard: ShardId,
        /// Why.
        #[source]
        source: Box<ManifestError>,
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

/// The shard that decides which buckets exist.
pub const AUTHORITY: ShardId = ShardId(0);

fn refused(shard: &Shard) -> impl FnOnce(ManifestError) -> EngineError {
    let shard = shard.geometry().shard;
    move |source| EngineError::Shard { shard, source: Box::new(source) }
}

/// See the module.
pub struct Engine {
    env: Env,
    shards: Vec<Shard>,
    shard_count: u16,
    vbucket_count: u16,
    document_bytes: u64,
    shared: SharedBuckets,
    buckets: RefCell<Vec<Rc<LocalBucket>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({} shards, {} buckets)", self.shards.len(), self.buckets.borrow().len())
    }
}

impl Engine {
    /// The engine of a core with these open shards, without buckets yet. The node has `document_bytes` of memory for documents, on all cores: the
    /// quota of a bucket that asks for none.
    ///
    /// # Errors
    /// `NoShard`, `Mismatch`.
    pub fn new(env: Env, shards: Vec<Shard>, document_bytes: u64) -> Result<Engine, EngineError> {
        let geometry = shards.first().ok_or(EngineError::NoShard)?.geometry();
        for other in &shards {
            let theirs = other.geometry();
            if (theirs.shard_count, theirs.vbucket_count) != (geometry.shard_count, geometry.vbucket_count) {
                return Err(EngineError::Mismatch { first: geometry.shard, second: theirs.shard });
            }
        }
        Ok(Engine {
            env,
            shards,
            shard_count: geometry.shard_count,
            vbucket_count: geometry.vbucket_count,
            document_bytes,
            shared: SharedBuckets::default(),
            buckets: RefCell::default(),
        })
    }

    /// Shares what may be looked at with the engines of other cores, which have `shared`, too.
    #[must_use]
    pub fn sharing(self, shared: SharedBuckets) -> Engine {
        Engine { shared, ..self }
    }

    /// Brings the buckets of the shards here into line with those of shard 0, after a stop that may have come within a change.
    ///
    /// # Errors
    /// `MissingBucket`, `Shard`.
    pub async fn reconcile(&self, set: &BucketSet) -> Result<(), EngineError> {
        for shard in &self.shards {
            let id = shard.geometry().shard;
            let theirs = shard.buckets();
            for bucket in &theirs {
                match set.get(bucket.id) {
                    Some(known) if known == bucket => {}
                    Some(known) => shard.update_bucket(known.clone()).await.map_err(refused(shard))?,
                    None => {
                        tracing::info!(shard = id.0, bucket = %bucket.name, "a bucket that was not finished is deleted");
                        shard.delete_bucket(bucket.id).await.map_err(refused(shard))?;
                    }
                }
            }
            let is_there = |wanted: &&BucketDesc| theirs.iter().any(|bucket| bucket.id == wanted.id);
            if let Some(missing) = set.buckets.iter().find(|wanted| !is_there(wanted)) {
                return Err(EngineError::MissingBucket { shard: id, name: missing.name.clone() });
            }
        }
        Ok(())
    }

    /// Serves exactly these buckets, each with the settings of its description. Call it before connections may see them.
    ///
    /// # Errors
    /// `Settings`.
    pub fn publish(&self, set: &BucketSet) -> Result<(), EngineError> {
        let mut served = Vec::with_capacity(set.buckets.len());
        for bucket in set.buckets.iter().filter(|bucket| set.emptying != Some(bucket.id)) {
            let BucketConfig { settings, collections } = BucketConfig::parse(&bucket.config)
                .map_err(|source| EngineError::Settings { name: bucket.name.clone(), source })?;
            let local = self.bucket(bucket.id).unwrap_or_else(|| self.take_in(bucket, settings));
            self.bound(&local, settings);
            local.context.set_manifest(collections.manifest());
            served.push(local);
        }
        *self.buckets.borrow_mut() = served;
        Ok(())
    }

    /// Writes the events that active vbuckets lack: call it after [`Engine::publish`]. A vbucket that cannot take them now, because its shard has
    /// failed, gets them the next time; one that is not active when it becomes so.
    pub async fn bring_events_into_line(&self) {
        for bucket in self.buckets() {
            for store in bucket.vbuckets() {
                let _changing = bucket.changing.lock().await;
                if bucket.state(store.id()) == Some(VbucketState::Active) {
                    events::bring_into_line(&bucket.context, &store).await;
                }
            }
        }
    }

    fn take_in(&self, bucket: &BucketDesc, settings: BucketSettings) -> Rc<LocalBucket> {
        if settings.home() == Home::Memory {
            for shard in &self.shards {
                shard.open_memory_bucket(bucket.id);
            }
        }
        let vbuckets = 0..self.vbucket_count;
        let stores: Vec<Option<Rc<VbStore>>> = vbuckets
            .map(|vb| self.shards.iter().find_map(|shard| shard.vbucket(bucket.id, VbId(vb))))
            .collect();
        let shared = self.shared.bucket(bucket.id, self.vbucket_count);
        let context = BucketContext::new(self.env.clone(), settings, shared.states().clone());
        context.locks.tell(shared.locks().clone());
        let local = Rc::new(LocalBucket {
            id: bucket.id,
            name: bucket.name.clone(),
            uuid: bucket.uuid,
            context,
            stores: RefCell::default(),
            shared,
            tables: TableCopies::default(),
            changing: Lock::default(),
        });
        for store in stores.iter().flatten() {
            local.offer(store);
        }
        local.stores.replace(stores);
        pager::start(&local);
        match settings.home() {
            Home::Memory => ephemeral::start(&local),
            Home::Disk => purger::start(&local),
        }
        local
    }

    /// Puts settings and quota in force.
    fn bound(&self, local: &LocalBucket, settings: BucketSettings) {
        let quota = if settings.quota_bytes == 0 { self.document_bytes } else { settings.quota_bytes };
        let is_less = quota < local.context.quota_bytes();
        local.context.change(settings, quota);
        let share = usize::try_from(quota / u64::from(self.shard_count)).unwrap_or(usize::MAX);
        for shard in &self.shards {
            shard.set_bucket_quota(local.id, share);
            if is_less {
                let (shard, id) = (shard.clone(), local.id);
                self.env.spawn("trim bucket", async move { shard.trim_bucket(id).await });
            }
        }
    }

    /// Takes no more requests for a bucket and waits for those under way.
    pub async fn withdraw(&self, id: BucketId) {
        let gone = {
            let mut buckets = self.buckets.borrow_mut();
            let index = buckets.iter().position(|bucket| bucket.id == id);
            index.map(|index| buckets.remove(index))
        };
        if let Some(gone) = gone {
            let waiting = gone.context.parked.take(None);
            waiting.into_iter().for_each(|resume| resume(Some(self)));
            gone.context.withdraw().await;
            // A bucket that takes its place was made while states could still change.
            for shard in &self.shards {
                if let Err(error) = shard.pass_roles_on(id).await {
                    tracing::error!(shard = shard.geometry().shard.0, %error, "states of vbuckets are not passed on");
                }
            }
            self.shared.forget(id);
        }
    }

    /// Makes a bucket in all shards here but the authority; nobody sees it yet.
    ///
    /// # Errors
    /// `Settings`, `Shard`.
    pub async fn prepare(&self, bucket: &BucketDesc) -> Result<(), EngineError> {
        let BucketConfig { settings, .. } = BucketConfig::parse(&bucket.config)
            .map_err(|source| EngineError::Settings { name: bucket.name.clone(), source })?;
        for shard in self.followers() {
            shard.create_bucket_in(bucket.clone(), settings.home()).await.map_err(refused(shard))?;
        }
        Ok(())
    }

    /// Deletes a bucket that nobody sees from all shards here but the authority.
    ///
    /// # Errors
    /// `Shard`.
    pub async fn remove(&self, id: BucketId) -> Result<(), EngineError> {
        for shard in self.followers() {
            shard.delete_bucket(id).await.map_err(refused(shard))?;
        }
        Ok(())
    }

    fn followers(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().filter(|shard| shard.geometry().shard != AUTHORITY)
    }

    /// The shard that decides which buckets exist, if it is on this core.
    #[must_use]
    pub fn authority(&self) -> Option<&Shard> {
        self.shards.iter().find(|shard| shard.geometry().shard == AUTHORITY)
    }

    /// Memory of the node for documents, in bytes.
    #[must_use]
    pub fn document_bytes(&self) -> u64 {
        self.document_bytes
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
    pub fn buckets(&self) -> Vec<Rc<LocalBucket>> {
        self.buckets.borrow().clone()
    }

    /// The bucket with this number.
    #[must_use]
    #[inline]
    pub fn bucket(&self, id: BucketId) -> Option<Rc<LocalBucket>> {
        self.buckets.borrow().iter().find(|bucket| bucket.id == id).cloned()
    }

    /// A vbucket, if the bucket is known and this core holds it.
    #[must_use]
    #[inline]
    pub fn vbucket(&self, bucket: BucketId, vb: VbId) -> Option<Rc<VbStore>> {
        self.bucket(bucket)?.vbucket(vb)
    }
}

impl ActiveVbuckets for Engine {
    fn active(&self, at: VbAddress) -> Option<Rc<VbStore>> {
        let bucket = self.bucket(at.bucket)?;
        let verdict = bucket.context.states.verdict(at.vb, Access::RangeScan);
        if verdict == Verdict::Admitted { bucket.vbucket(at.vb) } else { None }
    }

    fn has_collection(&self, bucket: BucketId, collection: CollectionId) -> bool {
        self.bucket(bucket).is_some_and(|bucket| bucket.context.has_collection(collection))
    }
}
