//! A shard: one write-ahead log, one data file, and the vbuckets whose mutations they carry.
//!
//! Four tasks work for it: the commit task writes what the vbuckets appended, a group at a time; the flush task moves the oldest memtables to
//! the data file when the log is half full; the compaction task gives back the space of what is dead; the scrub task reads everything now and then. A
//! failed sync or manifest change fails the shard for good: reads go on, nothing is acknowledged any more.
//!
//! | error | stops |
//! |---|---|
//! | a block does not verify or cannot be read | the read, scan, merge or rewriting that wanted it |
//! | the data file is full, or a write to it fails | the flush, which is tried again; then writes, when the log is full |
//! | a sync or a write of the log fails, a manifest change fails | the shard's writes, for good |
//! | the log or the manifest is damaged before its end, a vbucket's index is damaged | opening the shard |
//!
//! Invariants
//! - The persisted seqno of a vbucket follows a successful sync of the log, or a durable flush.
//! - The log's tail moves only with the manifest change that makes it right.
//! - Once a write or sync that matters has failed, no persisted seqno rises and no manifest change counts, whichever file it was.
//!
//! Does not know: buckets' settings, sockets, opcodes.

mod bucket;
mod commit;
mod compactor;
mod flusher;
mod memory;
mod metrics;
mod open;
mod scrub;
mod vbucket;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::{Rc, Weak};

pub use bucket::Home;
pub use compactor::ReclaimOptions;
pub(crate) use memory::BucketMemory;
pub use memory::BucketMemoryStats;
pub use metrics::{Counter, Recorder, ShardMetrics};
pub use open::{FormatOptions, OpenError, RecoveryReport, format};
pub use scrub::{SCRUB_DAMAGE_MAX, ScrubDamage, ScrubOptions, ScrubPart, ScrubStatus};
pub use vbucket::VbRole;

use self::compactor::Compaction;
use self::memory::ShardMemory;
use crate::cache::{BlockCache, CacheStats};
use crate::causes::whole;
use crate::env::Env;
use crate::extent::{Space, SpaceStats};
use crate::format::manifest_record::{BucketDesc, Record};
use crate::format::superblock::Geometry;
use crate::io::{BLOCK_BYTES, Device};
use crate::manifest::{Manifest, ManifestError};
use crate::sync::{Event, Lock};
use crate::types::{BucketId, FailoverEntry, Seqno, ShardId, VbId, VbUuid};
use crate::vbstore::VbStore;
use crate::wal::Wal;

/// Branches that a failover log keeps.
const FAILOVER_LOG_MAX: usize = 25;

/// Limits of a shard at run time. The shape on disk is its [`Geometry`].
#[derive(Debug, Clone, Copy)]
pub struct ShardOptions {
    /// Bytes of versions kept in memory after they were flushed.
    pub resident_bytes_max: usize,
    /// Bytes of versions not flushed yet; beyond it writes are refused until a flush is through.
    pub memtable_bytes_max: usize,
    /// Bytes by which the data file grows.
    pub grow_bytes: u64,
    /// A flush takes the oldest vbuckets until it has this many bytes.
    pub flush_bytes: usize,
    /// Versions of a vbucket that stay in memory in seqno order after they were flushed, for streams that are nearly up to date.
    pub window_versions_max: usize,
    /// When and how fast all of it is verified.
    pub scrub: ScrubOptions,
    /// When and how fast space is reclaimed.
    pub reclaim: ReclaimOptions,
}

impl Default for ShardOptions {
    fn default() -> ShardOptions {
        ShardOptions {
            resident_bytes_max: 256 << 20,
            memtable_bytes_max: 512 << 20,
            grow_bytes: 64 << 20,
            flush_bytes: 8 << 20,
            window_versions_max: 8192,
            scrub: ScrubOptions::DEFAULT,
            reclaim: ReclaimOptions::DEFAULT,
        }
    }
}

/// A sync that failed, which is final.
#[derive(Debug, thiserror::Error)]
#[error("cannot sync {device}")]
struct SyncFailed {
    device: String,
    #[source]
    source: io::Error,
}

/// What the vbuckets of a shard share. Internal to the engine.
pub struct ShardCore {
    env: Env,
    options: ShardOptions,
    geometry: Geometry,
    wal: Wal,
    space: Rc<Space>,
    manifest: Manifest,
    metrics: ShardMetrics,
    failure: RefCell<Option<Rc<str>>>,
    /// What a manifest change that failed would have named: the manifest on disk may name it, so its blocks stay taken as long as the shard lives.
    /// Nothing in it holds the shard.
    unsure: RefCell<Vec<Box<dyn Any>>>,
    dirty: RefCell<Vec<Weak<VbStore>>>,
    memory: Rc<ShardMemory>,
    buckets: RefCell<BTreeMap<BucketId, Rc<BucketMemory>>>,
    commit_event: Event,
    flush_event: Event,
    idle_event: Event,
    compaction: Compaction,
    flushing: Lock,
    flush_wanted: Cell<bool>,
    closing: Cell<bool>,
    scrub: scrub::Scrub,
    /// Vbuckets that are being forgotten.
    forgetting: Cell<usize>,
    vbuckets: RefCell<BTreeMap<(BucketId, VbId), Rc<VbStore>>>,
}

impl ShardCore {
    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    pub(crate) fn wal(&self) -> &Wal {
        &self.wal
    }

    pub(crate) fn space(&self) -> &Rc<Space> {
        &self.space
    }

    pub(crate) fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.geometry.shard
    }

    /// The memory of one more vbucket is being let go of.
    pub(crate) fn begin_forgetting(&self) {
        self.forgetting.set(self.forgetting.get() + 1);
    }

    /// The memory of a vbucket is let go of; the last one tells the host.
    pub(crate) fn end_forgetting(&self) {
        self.forgetting.set(self.forgetting.get() - 1);
        if self.forgetting.get() == 0 {
            self.env.spawn.memory_let_go();
        }
    }

    pub(crate) fn options(&self) -> &ShardOptions {
        &self.options
    }

    pub(crate) fn shard_uuid(&self) -> u64 {
        self.manifest.superblock().shard_uuid
    }

    pub(crate) fn next_object(&self) -> u64 {
        self.manifest.next_object()
    }

    pub(crate) fn failure(&self) -> Option<Rc<str>> {
        self.failure.borrow().clone()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    pub(crate) fn add_dirty(&self, store: Weak<VbStore>) {
        self.dirty.borrow_mut().push(store);
    }

    pub(crate) fn wake_commit(&self) {
        self.commit_event.notify_all();
    }

    pub(crate) fn want_flush(&self) {
        self.flush_wanted.set(true);
        self.flush_event.notify_all();
    }

    /// The account of a bucket; made at its first vbucket.
    pub(crate) fn memory_of(&self, bucket: BucketId) -> Rc<BucketMemory> {
        let mut buckets = self.buckets.borrow_mut();
        buckets.entry(bucket).or_insert_with(|| Rc::new(BucketMemory::new(self.memory.clone()))).clone()
    }

    /// Makes what was written to the data file durable; false if that failed, and the shard with it.
    async fn sync_data(&self) -> bool {
        let data = self.space.device();
        match data.sync().await {
            Ok(()) => true,
            Err(source) => {
                self.fail(&SyncFailed { device: data.name().to_owned(), source });
                false
            }
        }
    }

    /// The shard has failed for good.
    fn fail(&self, reason: &dyn std::error::Error) {
        let text = whole(reason);
        tracing::error!(shard = self.geometry.shard.0, reason = %text, "shard has failed; no write is accepted any more");
        self.failure.borrow_mut().get_or_insert(text.into());
        self.commit_event.notify_all();
        self.flush_event.notify_all();
        self.compaction.wake();
        self.idle_event.notify_all();
        for store in self.vbuckets.borrow().values() {
            store.wake_waiters();
        }
    }
}

/// Numbers of a shard for statistics.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct ShardStats {
    /// Blocks of the log in use, of all.
    pub wal_fullness: f64,
    /// Blocks written to the log since format.
    pub wal_head_blocks: u64,
    /// Records that wait for a commit, in bytes.
    pub wal_pending_bytes: u64,
    /// Versions not flushed yet, in bytes.
    pub memtable_bytes: i64,
    /// Versions in memory, in bytes.
    pub resident_bytes: i64,
    /// The data file.
    pub space: SpaceStats,
    /// Bytes of it that the manifest names, its own and the superblocks' included; what else is not free is held by views, or is being written.
    pub named_bytes: u64,
    /// The block cache of the core.
    pub cache: CacheStats,
    /// Manifest changes since the start.
    pub manifest_changes: u64,
    /// Manifest checkpoints since the start.
    pub manifest_checkpoints: u64,
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct Shard {
    core: Rc<ShardCore>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shard({})", self.core.geometry.shard)
    }
}

impl Shard {
    /// Opens a formatted shard: recovers it, gives every vbucket a new branch after an unclean stop, and starts its tasks.
    ///
    /// # Errors
    /// See [`OpenError`]: damage is named with its place and never cut.
    pub async fn open(
        env: Env,
        wal: Rc<dyn Device>,
        data: Rc<dyn Device>,
        cache: Rc<BlockCache>,
        options: ShardOptions,
    ) -> Result<(Shard, RecoveryReport), OpenError> {
        open::open(env, wal, data, cache, options).await
    }

    /// Shape.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.core.geometry
    }

    /// Random number made at format.
    #[must_use]
    pub fn uuid(&self) -> u64 {
        self.core.shard_uuid()
    }

    /// The vbucket, if the shard has it.
    #[must_use]
    pub fn vbucket(&self, bucket: BucketId, vb: VbId) -> Option<Rc<VbStore>> {
        self.core.vbuckets.borrow().get(&(bucket, vb)).cloned()
    }

    /// All vbuckets.
    #[must_use]
    pub fn vbuckets(&self) -> Vec<Rc<VbStore>> {
        self.core.vbuckets.borrow().values().cloned().collect()
    }

    /// The buckets it knows.
    #[must_use]
    pub fn buckets(&self) -> Vec<BucketDesc> {
        self.core.manifest.state().buckets.values().cloned().collect()
    }

    /// Why the shard has failed, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<Rc<str>> {
        self.core.failure()
    }

    /// Histograms and counters.
    #[must_use]
    pub fn metrics(&self) -> &ShardMetrics {
        &self.core.metrics
    }

    /// Numbers for statistics.
    #[must_use]
    pub fn stats(&self) -> ShardStats {
        let (manifest_changes, manifest_checkpoints) = self.core.manifest.written();
        ShardStats {
            wal_fullness: self.core.wal.fullness(),
            wal_head_blocks: self.core.wal.head(),
            wal_pending_bytes: self.core.wal.pending_bytes() as u64,
            memtable_bytes: self.core.memory.memtable_bytes(),
            resident_bytes: self.core.memory.resident_bytes(),
            space: self.core.space.stats(),
            named_bytes: self.core.manifest.named_blocks() * BLOCK_BYTES as u64,
            cache: self.core.space.cache().stats(),
            manifest_changes,
            manifest_checkpoints,
        }
    }

    /// Lets go of the vbuckets, which hold the shard as it holds them. For a host that lives on after the shard; the shard takes no
    /// requests afterwards.
    pub fn detach(&self) {
        self.core.vbuckets.borrow_mut().clear();
    }

    /// Flushes everything that is in memory only; waits until it is done or the shard fails.
    ///
    /// # Errors
    /// The reason why it could not.
    pub async fn flush(&self) -> Result<(), Rc<str>> {
        self.core.flush_all().await
    }

    /// Reclaims space until no more is worth it, within its budget.
    pub async fn compact(&self) {
        self.core.compact().await;
    }

    /// Makes everything durable, flushes it, and writes the mark of a clean stop. The shard takes no writes afterwards.
    ///
    /// # Errors
    /// Why it could not; the next start recovers from the log then.
    pub async fn close(&self) -> Result<(), Rc<str>> {
        self.core.close().await
    }
}

impl ShardCore {
    /// A random branch id, never 0. Kept below 2^63 because clients carry it as a signed or a decimal number.
    fn new_branch(&self) -> VbUuid {
        VbUuid((self.env.random_u64() >> 16).max(1))
    }

    /// A history branches at `seqno`: the newest branches are kept.
    fn add_branch(&self, log: &mut Vec<FailoverEntry>, seqno: Seqno) {
        log.insert(0, FailoverEntry { uuid: self.new_branch(), seqno });
        log.truncate(FAILOVER_LOG_MAX);
    }

    /// Makes a change durable. Not after the shard has failed, nor if it fails meanwhile: whoever asked for a sync that failed, it may have taken with
    /// it what others wrote to the same device, and their syncs say nothing of that.
    async fn change_manifest(&self, records: Vec<Record>) -> Result<(), ManifestError> {
        self.must_not_have_failed("change the manifest of")?;
        if let Err(error) = self.manifest.commit(records).await {
            self.fail(&error);
            return Err(error);
        }
        self.must_not_have_failed("change the manifest of")?;
        self.wal.set_manifest_generation(self.manifest.superblock().manifest_generation);
        Ok(())
    }

    fn must_not_have_failed(&self, what: &'static str) -> Result<(), ManifestError> {
        let Some(reason) = self.failure() else { return Ok(()) };
        let device = self.space.device().name().to_owned();
        Err(ManifestError::Io { what, device, offset: 0, source: io::Error::other(reason.to_string()) })
    }
}
