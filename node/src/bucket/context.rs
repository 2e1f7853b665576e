//! One bucket on one core: settings, counters, vbuckets, and the requests under way.
//!
//! Invariants
//! - A bucket that is withdrawn takes no more requests; it is let go of when those under way have been answered.
//! - The requests that wait for the disk hold a bounded number of bytes.
//!
//! Does not know: other buckets, shards, what a request does.

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use ringbase_storage::env::Env;
use ringbase_storage::hashtable::TableReader;
use ringbase_storage::sync::{Event, Lock};
use ringbase_storage::types::{BucketId, VbId};
use ringbase_storage::vbstore::VbStore;

use super::expiry;
use super::locks::Locks;
use super::parked::Parked;
use super::settings::BucketSettings;
use super::shared::{SharedBucket, TableCopies};
use super::states::VbucketStates;
use super::tally::{Tally, count};
use super::usage::{CoreCollections, Usage};
use crate::protocol::dcp::signal::VbucketState;
use crate::protocol::{CollectionId, Manifest};

/// What commands on a bucket need beside its vbuckets.
pub struct BucketContext {
    /// Clock, randomness, tasks of the core.
    pub env: Env,
    /// What happened to it on this core.
    pub tally: Tally,
    /// Documents that are locked, of its vbuckets on this core.
    pub locks: Locks,
    /// What its vbuckets are to clients, on all cores.
    pub states: Arc<VbucketStates>,
    /// Vbuckets of this core a majority of whose copies is not on this node alone.
    needs_others: RefCell<BTreeSet<VbId>>,
    /// Requests that wait for a vbucket of this core to become active.
    pub parked: Parked,
    /// Runs of the expiry pager on this core.
    pub pager_runs: Cell<u64>,
    settings: Cell<BucketSettings>,
    collections: RefCell<Rc<CoreCollections>>,
    /// Memory quota in bytes, on all cores.
    quota_bytes: Cell<u64>,
    /// Bytes of requests that wait for the disk.
    waiting_bytes: Cell<usize>,
    /// Requests that wait for the disk or for a commit.
    waiting: Cell<usize>,
    withdrawn: Cell<bool>,
    changed: Event,
}

/// Bytes of requests to a bucket on one core that may wait for the disk.
pub const WAITING_BYTES_MAX: usize = 64 << 20;

/// A request to a bucket that is under way; the bucket is not deleted before it is dropped.
#[derive(Debug)]
pub struct UnderWay(Rc<BucketContext>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
        if self.0.withdrawn.get() {
            self.0.changed.notify_all();
        }
    }
}

/// Room for a request that waits for the disk; given back when it is dropped.
#[derive(Debug)]
pub struct WaitingRoom {
    under_way: UnderWay,
    bytes: usize,
}

impl Drop for WaitingRoom {
    fn drop(&mut self) {
        let waiting = &self.under_way.0.waiting_bytes;
        waiting.set(waiting.get() - self.bytes);
    }
}

impl std::fmt::Debug for BucketContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BucketContext({}, {} bytes waiting)", self.settings(), self.waiting_bytes.get())
    }
}

impl BucketContext {
    /// What a bucket with these settings begins with.
    #[must_use]
    pub fn new(env: Env, settings: BucketSettings, states: Arc<VbucketStates>) -> Rc<BucketContext> {
        Rc::new(BucketContext {
            env,
            tally: Tally::default(),
            locks: Locks::default(),
            states,
            needs_others: RefCell::default(),
            parked: Parked::default(),
            pager_runs: Cell::new(0),
            settings: Cell::new(settings),
            collections: RefCell::default(),
            quota_bytes: Cell::new(0),
            waiting_bytes: Cell::new(0),
            waiting: Cell::new(0),
            withdrawn: Cell::new(false),
            changed: Event::default(),
        })
    }

    /// What the bucket allows.
    #[must_use]
    #[inline]
    pub fn settings(&self) -> BucketSettings {
        self.settings.get()
    }

    /// Its collections as they are now.
    #[must_use]
    #[inline]
    pub fn collections(&self) -> Rc<CoreCollections> {
        self.collections.borrow().clone()
    }

    /// Whether there is a collection with this id now.
    #[must_use]
    #[inline]
    pub fn has_collection(&self, id: CollectionId) -> bool {
        self.collections.borrow().manifest().has(id)
    }

    /// Longest life of a document of a collection in seconds, 0 for no limit; `None` if there is no such collection.
    #[must_use]
    #[inline]
    pub fn ttl_seconds_max(&self, id: CollectionId) -> Option<u32> {
        let collections = self.collections.borrow();
        let (collection, _) = collections.get(id)?;
        Some(collection.max_ttl.unwrap_or(self.settings.get().ttl_seconds_max))
    }

    /// Counts a use of a collection.
    #[inline]
    pub fn count_use(&self, id: CollectionId, of: impl FnOnce(&Usage) -> &Cell<u64>) {
        if let Some((_, usage)) = self.collections.borrow().get(id) {
            count(of(usage));
        }
    }

    /// Another manifest is in force.
    pub fn set_manifest(&self, manifest: &Arc<Manifest>) {
        let now = self.collections();
        if now.manifest() != manifest {
            self.collections.replace(Rc::new(now.with(manifest.clone())));
        }
    }

    /// Memory quota in bytes, on all cores.
    #[must_use]
    pub fn quota_bytes(&self) -> u64 {
        self.quota_bytes.get()
    }

    /// Whether requests are taken no more: the bucket is being deleted or emptied.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.get()
    }

    /// Resolves at the next change of the settings, or when the bucket is withdrawn.
    pub async fn changed(&self) {
        self.changed.listen().await;
    }

    /// Marks a request as under way.
    #[must_use]
    pub fn under_way(self: &Rc<Self>) -> UnderWay {
        self.waiting.set(self.waiting.get() + 1);
        UnderWay(self.clone())
    }

    /// Room for a request of `bytes` to wait for the disk; none while others hold too much. A single one always has room.
    #[must_use]
    pub fn waiting_room(self: &Rc<Self>, bytes: usize) -> Option<WaitingRoom> {
        let waiting = self.waiting_bytes.get();
        if waiting > 0 && waiting + bytes > WAITING_BYTES_MAX {
            return None;
        }
        self.waiting_bytes.set(waiting + bytes);
        Some(WaitingRoom { under_way: self.under_way(), bytes })
    }

    /// Whether a durable write to a vbucket would need other nodes.
    #[must_use]
    pub fn needs_others(&self, vb: VbId) -> bool {
        self.needs_others.borrow().contains(&vb)
    }

    pub(super) fn set_needs_others(&self, vb: VbId, needs: bool) {
        let mut all = self.needs_others.borrow_mut();
        if needs {
            all.insert(vb);
        } else {
            all.remove(&vb);
        }
    }

    /// The wall clock in epoch seconds.
    #[must_use]
    pub fn now(&self) -> u32 {
        expiry::seconds(self.env.clock.wall_ns())
    }

    /// The monotonic clock, by which locks end.
    #[must_use]
    pub fn monotonic_ns(&self) -> u64 {
        self.env.clock.monotonic_ns()
    }

    pub(super) fn change(&self, settings: BucketSettings, quota_bytes: u64) {
        self.quota_bytes.set(quota_bytes);
        if self.settings.replace(settings) != settings {
            self.changed.notify_all();
        }
    }

    /// Takes no more requests and waits for those under way.
    pub(super) async fn withdraw(&self) {
        self.withdrawn.set(true);
        self.changed.notify_all();
        self.changed.until(|| self.waiting.get() == 0).await;
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
    pub(super) stores: RefCell<Vec<Option<Rc<VbStore>>>>,
    pub(super) shared: Arc<SharedBucket>,
    pub(super) tables: TableCopies,
    /// Vbuckets change one at a time.
    pub(super) changing: Lock,
}

impl LocalBucket {
    /// The vbucket, if it is on this core.
    #[must_use]
    #[inline]
    pub fn vbucket(&self, vb: VbId) -> Option<Rc<VbStore>> {
        self.stores.borrow().get(usize::from(vb.0))?.clone()
    }

    /// The newest versions of a vbucket, on whatever core it is, if a look at them may answer.
    #[must_use]
    #[inline]
    pub fn table(&self, vb: VbId) -> Option<Ref<'_, TableReader>> {
        self.tables.table(&self.shared, vb)
    }

    /// What a vbucket is to clients, on whatever core it is; `None` if it is not there.
    #[must_use]
    #[inline]
    pub fn state(&self, vb: VbId) -> Option<VbucketState> {
        self.context.states.get(vb)
    }

    /// Its vbuckets on this core, in order.
    #[must_use]
    pub fn vbuckets(&self) -> Vec<Rc<VbStore>> {
        self.stores.borrow().iter().flatten().cloned().collect()
    }
}
