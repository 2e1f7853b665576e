//! One vbucket of a shard: memtables, hash table, seqlog, runs, and the views that see them.
//!
//! The node decides what a command does to a key; this part finds the key's newest version ([`VbStore::with_key`]), stores the next one
//! ([`VbStore::write`]), opens views and flushes.
//!
//! Invariants
//! - Seqnos rise by one a write. The persisted seqno follows a successful sync only.
//! - Every version that is not flushed is in the hash table. A key with a read under way is not, and everything that wants it waits in order of
//!   arrival.
//! - At most [`RUNS_MAX`] runs, more only while some cannot be read or merged, never above [`RUNS_UNMERGED_MAX`]. At most [`FROZEN_MAX`] frozen memtables,
//!   beyond that opening a view waits for a flush.
//! - What a live view sees stays: frozen memtables until they are flushed, then what they became; runs and segments it holds.
//!
//! Does not know: what the vbucket's role means, clients, expiry's rules, DCP.

mod end;
mod ephemeral;
mod evict;
mod expiring;
mod fetch;
mod flush;
mod merging;
mod purging;
mod reclaim;
mod view;
mod window;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

pub use ephemeral::MemoryView;
pub use expiring::{ExpiryScan, SLICE_RECORDS};
pub use fetch::Continuation;
pub use flush::FlushError;
pub(crate) use flush::Prepared;
pub(crate) use merging::Merged;
pub use purging::PurgeLimits;
pub use reclaim::ReclaimError;
pub(crate) use reclaim::Rewritten;
pub use view::{Parts, ReadView, Version, ViewError};
pub use window::SeqnoReading;
pub use write::{CAS_MAX, Foreign, NewVersion, WriteError};

use crate::collections::{Collections, Subject};
use crate::format::block::{BlockIdentity, BlockType};
use crate::format::manifest_record::{PurgeDesc, VbCounts, VbState};
use crate::hashtable::{HashTable, TableReader};
use crate::item::Item;
use crate::memtable::Memtable;
use crate::reader::ReadError;
use crate::run::{Run, filter_hash};
use crate::seqlog::{Marks, SegmentUsage};
use crate::shard::{BucketMemory, ShardCore, VbRole};
use crate::sync::Event;
use crate::types::{BucketId, Cas, Collection, FailoverEntry, Seqno, VbId, VbUuid};
use crate::versions::Versions;

/// Most key runs of a vbucket; a flush that would add one more merges some first.
pub const RUNS_MAX: usize = 8;

/// Most key runs of a vbucket where a flush finds none to merge: others do that, or they cannot be read.
pub const RUNS_UNMERGED_MAX: usize = 64;

/// Most frozen memtables of a vbucket.
pub const FROZEN_MAX: usize = 4;

/// What is known of a key.
#[derive(Debug, Clone)]
pub enum Found {
    /// Its newest version; may be a deletion.
    Version(Item),
    /// It has never been written, or its deletion was purged.
    Absent,
}

impl Found {
    /// The version if the key has a value.
    #[must_use]
    pub fn live(&self) -> Option<&Item> {
        match self {
            Found::Version(item) if !item.is_deleted() => Some(item),
            _ => None,
        }
    }
}

/// What a look-up in memory says.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// The answer.
    Known(Found),
    /// The disk must be asked: use [`VbStore::with_key`].
    OnDisk,
}

/// The counts that statistics show.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct VbStats {
    /// Live documents, those of dropped collections left out.
    pub items: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Highest assigned seqno.
    pub high_seqno: Seqno,
    /// All up to here is durable.
    pub persisted_seqno: Seqno,
    /// All up to here is in seqlog and runs.
    pub flushed_seqno: Seqno,
    /// Greatest purged tombstone.
    pub purge_seqno: Seqno,
    /// Greatest CAS.
    pub max_cas: Cas,
    /// Resident versions.
    pub resident_items: u64,
    /// Their bytes, the table included.
    pub resident_bytes: u64,
    /// Bytes of fences, filters and marks.
    pub index_bytes: u64,
    /// Versions not flushed yet.
    pub memtable_items: u64,
    /// Their bytes.
    pub memtable_bytes: u64,
    /// Frozen memtables.
    pub frozen: u64,
    /// Key runs.
    pub runs: u64,
    /// Seqlog segments.
    pub segments: u64,
    /// Bytes on disk: seqlog, runs, indexes, marks.
    pub disk_bytes: u64,
    /// Bytes of the seqlog's blocks, indexes included.
    pub seqlog_bytes: u64,
    /// Records in it that a reader who comes now would see.
    pub live_records: u64,
    /// Bytes of the records in it that a reader who comes now would see.
    pub live_bytes: u64,
    /// Bytes of the records in it that are dead.
    pub dead_bytes: u64,
    /// Of these: bytes of records that live views may still see.
    pub kept_bytes: u64,
    /// Live views.
    pub views: u64,
}

struct State {
    high: Seqno,
    counts: VbCounts,
    collections: Rc<Collections>,
    active: Memtable,
    frozen: VecDeque<Rc<Memtable>>,
    table: HashTable,
    version: Rc<Version>,
    failover_log: Vec<FailoverEntry>,
    views: Vec<Weak<view::ViewCell>>,
    fetching: hashbrown::HashMap<Box<[u8]>, Vec<Continuation>, ahash::RandomState>,
    /// Blocks of death marks.
    marks: Vec<Rc<Marks>>,
    /// Marks for segments that are being rewritten.
    arrivals: Option<reclaim::Arrivals>,
    /// Versions in memory in order; all there are, if the vbucket lives in memory only, which has neither memtables nor a version on disk.
    versions: Versions,
    /// Bytes of table, list and key index that are booked.
    overhead_booked: usize,
    /// Where the next slice of a purge in memory begins.
    purge_from: Seqno,
    /// Runs that are being merged, by id.
    merging: Vec<u64>,
    /// What is purged of it on disk.
    purged: PurgeDesc,
    /// Purges on disk since the start.
    purges: u64,
    /// Which tombstones may go from disk, until a purge looks for them.
    purge_limits: Option<PurgeLimits>,
    /// While a purge is under way on disk.
    overtaken: Option<purging::Overtaken>,
}

/// See the module.
pub struct VbStore {
    bucket: BucketId,
    vb: VbId,
    is_ephemeral: bool,
    core: Rc<ShardCore>,
    state: RefCell<State>,
    memory: Rc<BucketMemory>,
    ended: Cell<bool>,
    role: RefCell<VbRole>,
    persisted: Cell<Seqno>,
    persisted_event: Event,
    written_event: Event,
    flushed_event: Event,
    dirty: Cell<bool>,
    weak: Weak<VbStore>,
}

impl std::fmt::Debug for VbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VbStore({}/{})", self.bucket, self.vb)
    }
}

impl VbStore {
    /// A vbucket as the manifest describes it, with its runs and segments opened.
    pub(crate) fn new(
        core: Rc<ShardCore>,
        described: &VbState,
        version: Version,
        marks: Vec<Marks>,
    ) -> Rc<VbStore> {
        VbStore::make(core, described, version, marks, false)
    }

    /// An empty vbucket that lives in memory only.
    pub(crate) fn new_ephemeral(core: Rc<ShardCore>, described: &VbState) -> Rc<VbStore> {
        VbStore::make(core, described, Version::default(), Vec::new(), true)
    }

    fn make(
        core: Rc<ShardCore>,
        described: &VbState,
        version: Version,
        marks: Vec<Marks>,
        is_ephemeral: bool,
    ) -> Rc<VbStore> {
        let counts = described.counts;
        let state = State {
            high: counts.flushed_seqno,
            counts,
            collections: Rc::new(Collections::described(
                &described.collections,
                counts.items,
                counts.flushed_seqno,
            )),
            active: Memtable::default(),
            frozen: VecDeque::new(),
            table: HashTable::new(core.env().random_u64()),
            version: Rc::new(version),
            failover_log: described.failover_log.clone(),
            views: Vec::new(),
            fetching: hashbrown::HashMap::default(),
            marks: marks.into_iter().map(Rc::new).collect(),
            arrivals: None,
            versions: Versions::new(counts.flushed_seqno),
            overhead_booked: 0,
            purge_from: Seqno(0),
            merging: Vec::new(),
            purged: described.purged.clone(),
            purges: 0,
            purge_limits: None,
            overtaken: None,
        };
        Rc::new_cyclic(|weak| VbStore {
            bucket: described.bucket,
            vb: described.vb,
            is_ephemeral,
            memory: core.memory_of(described.bucket),
            ended: Cell::new(false),
            role: RefCell::new(VbRole { state: described.state, topology: described.topology.clone() }),
            core,
            state: RefCell::new(state),
            persisted: Cell::new(counts.flushed_seqno),
            persisted_event: Event::default(),
            written_event: Event::default(),
            flushed_event: Event::default(),
            dirty: Cell::new(false),
            weak: weak.clone(),
        })
    }

    /// The bucket it belongs to.
    #[must_use]
    pub fn bucket(&self) -> BucketId {
        self.bucket
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> VbId {
        self.vb
    }

    /// The current branch.
    #[must_use]
    pub fn uuid(&self) -> VbUuid {
        self.state.borrow().failover_log.first().map_or(VbUuid(0), |entry| entry.uuid)
    }

    /// All branches, newest first.
    #[must_use]
    pub fn failover_log(&self) -> Vec<FailoverEntry> {
        self.state.borrow().failover_log.clone()
    }

    /// What it is to its clients.
    #[must_use]
    pub fn role(&self) -> VbRole {
        self.role.borrow().clone()
    }

    pub(crate) fn set_role(&self, role: VbRole) {
        *self.role.borrow_mut() = role;
    }

    pub(crate) fn set_failover_log(&self, log: Vec<FailoverEntry>) {
        self.state.borrow_mut().failover_log = log;
    }

    /// Highest assigned seqno.
    #[must_use]
    pub fn high_seqno(&self) -> Seqno {
        self.state.borrow().high
    }

    /// Waits until something is written behind `seqno`, in memory or further; false if the bucket is deleted first.
    pub async fn wait_written(&self, seqno: Seqno) -> bool {
        self.written_event.until(|| self.high_seqno() > seqno || self.ended.get()).await;
        !self.ended.get()
    }

    /// All up to here is durable.
    #[must_use]
    pub fn persisted_seqno(&self) -> Seqno {
        self.persisted.get()
    }

    pub(crate) fn set_persisted(&self, seqno: Seqno) {
        if seqno > self.persisted.get() {
            self.persisted.set(seqno);
            self.persisted_event.notify_all();
        }
    }

    /// Waits until `seqno` is durable; false if the shard fails or the bucket is deleted first.
    pub async fn wait_persisted(&self, seqno: Seqno) -> bool {
        let is_over = || self.core.has_failed() || self.ended.get();
        self.persisted_event.until(|| self.persisted.get() >= seqno || is_over()).await;
        self.persisted.get() >= seqno
    }

    pub(crate) fn wake_waiters(&self) {
        self.persisted_event.notify_all();
        self.written_event.notify_all();
        self.flushed_event.notify_all();
    }

    /// Live documents, those of dropped collections left out.
    #[must_use]
    pub fn items(&self) -> u64 {
        let state = self.state.borrow();
        state.counts.items.saturating_sub(state.collections.hidden_items())
    }

    /// Its collections as they are now. While somebody holds them, the next write copies them.
    #[must_use]
    pub fn collections(&self) -> Rc<Collections> {
        self.state.borrow().collections.clone()
    }

    /// What is known of a collection.
    #[must_use]
    pub fn collection(&self, id: u32) -> Option<Collection> {
        self.state.borrow().collections.get(id).copied()
    }

    /// Whether the events of this vbucket say that the subject is there.
    #[must_use]
    #[inline]
    pub fn is_open(&self, subject: Subject) -> bool {
        self.state.borrow().collections.is_open(subject)
    }

    /// Greatest purged tombstone.
    #[must_use]
    pub fn purge_seqno(&self) -> Seqno {
        self.state.borrow().purge_seqno()
    }

    /// Position in the log that its oldest unflushed record needs.
    pub(crate) fn first_position(&self) -> Option<u64> {
        let state = self.state.borrow();
        state.frozen.front().map_or(state.active.first_position(), |oldest| oldest.first_position())
    }

    /// Whether a flush should not wait: views wait for it.
    pub(crate) fn is_crowded(&self) -> bool {
        self.state.borrow().frozen.len() >= FROZEN_MAX
    }

    /// Looks a key (with prefix) up in memory.
    #[must_use]
    pub fn lookup(&self, key: &[u8]) -> Lookup {
        let state = self.state.borrow();
        if let Some(item) = state.table.get(key) {
            return Lookup::Known(Found::Version(item.clone()));
        }
        if state.version.runs.is_empty() && state.fetching.is_empty() {
            return Lookup::Known(Found::Absent);
        }
        let hash = filter_hash(key);
        if state.version.runs.iter().any(|run| run.may_contain(hash)) || state.fetching.contains_key(key) {
            return Lookup::OnDisk;
        }
        Lookup::Known(Found::Absent)
    }

    /// A handle on the newest resident versions for readers on other cores.
    #[must_use]
    pub fn table_reader(&self) -> TableReader {
        self.state.borrow_mut().table.reader()
    }

    /// The resident version of a key if it has exactly this seqno: what a scan may use instead of the disk.
    #[must_use]
    pub fn resident(&self, key: &[u8], seqno: Seqno) -> Option<Item> {
        self.state.borrow().table.get(key).filter(|item| item.seqno() == seqno).map(|item| item.clone())
    }

    /// Waits on the clock of the vbucket's host.
    pub async fn sleep(&self, duration: std::time::Duration) {
        self.core.env().spawn.sleep(duration).await;
    }

    pub(crate) fn core(&self) -> &Rc<ShardCore> {
        &self.core
    }

    /// What it has on disk now, death marks apart.
    pub(crate) fn on_disk(&self) -> (Rc<Version>, Vec<Rc<Marks>>) {
        let state = self.state.borrow();
        (state.version.clone(), state.marks.clone())
    }

    fn identity(&self) -> BlockIdentity {
        BlockIdentity {
            shard_uuid: self.core.shard_uuid(),
            bucket: self.bucket,
            vb: self.vb,
            object: 0,
            kind: BlockType::Seqlog,
        }
    }

    /// Counts for statistics.
    #[must_use]
    pub fn stats(&self) -> VbStats {
        let state = self.state.borrow();
        let memtables = || std::iter::once(&state.active).chain(state.frozen.iter().map(|table| &**table));
        let version = &state.version;
        let blocks = |extents: &[crate::format::manifest_record::Extent]| {
            extents.iter().map(|extent| u64::from(extent.blocks)).sum::<u64>()
        };
        let runs = version.runs.iter().map(|run| run.desc());
        let segments = version.segments.iter().map(|segment| segment.desc());
        let disk_blocks: u64 = runs
            .map(|run| blocks(&run.extents) + u64::from(run.index.blocks))
            .chain(segments.map(|segment| blocks(&segment.extents) + u64::from(segment.index.blocks)))
            .sum();
        let marks_blocks: u64 = state.marks.iter().map(|marks| u64::from(marks.desc().block.blocks)).sum();
        let runs_bytes: usize = version.runs.iter().map(|run: &Rc<Run>| run.resident_bytes()).sum();
        let segments_bytes: usize = version.segments.iter().map(|segment| segment.resident_bytes()).sum();
        let mut seqlog = SegmentUsage::default();
        version.segments.iter().for_each(|segment| seqlog.add(&segment.usage()));
        VbStats {
            items: state.counts.items.saturating_sub(state.collections.hidden_items()),
            tombstones: state.tombstones(),
            high_seqno: state.high,
            persisted_seqno: self.persisted.get(),
            flushed_seqno: version.flushed,
            purge_seqno: state.purge_seqno(),
            max_cas: state.counts.max_cas,
            resident_items: state.table.len() as u64,
            resident_bytes: state.table.bytes() as u64,
            index_bytes: (runs_bytes + segments_bytes) as u64,
            memtable_items: memtables().map(|table| table.len() as u64).sum(),
            memtable_bytes: memtables().map(|table| table.bytes() as u64).sum(),
            frozen: state.frozen.len() as u64,
            runs: version.runs.len() as u64,
            segments: version.segments.len() as u64,
            disk_bytes: (disk_blocks + marks_blocks) * crate::io::BLOCK_BYTES as u64,
            seqlog_bytes: seqlog.device_bytes,
            live_records: seqlog.live().records,
            live_bytes: seqlog.live().bytes,
            dead_bytes: seqlog.all.bytes - seqlog.live().bytes,
            kept_bytes: seqlog.recent.bytes,
            views: state.views.iter().filter(|view| view.strong_count() > 0).count() as u64,
        }
    }

    /// Reads the newest version of a key, from memory or disk.
    ///
    /// # Errors
    /// `Io`, `Damaged`: the disk could not say.
    pub async fn get(&self, key: &[u8]) -> Result<Found, ReadError> {
        self.ask(key, |_, found| found).await
    }
}
