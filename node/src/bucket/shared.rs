//! What of a bucket's vbuckets readers on other cores may look at: their hash tables, as long as nothing has to be decided by the owner.
//!
//! Each core offers its vbuckets when it takes a bucket in; the others find them there without asking. A look that finds a document which is
//! neither over nor locked may answer for the owner; everything else travels.
//!
//! Invariants
//! - What is offered stays until the bucket is withdrawn from every core, or another table takes its place.
//! - Nobody looks into a table whose vbucket is not active.
//!
//! Cost: a lock when a bucket or a single vbucket comes or goes; a look takes none.
//! Does not know: requests, connections, the rules of documents.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringbase_storage::hashtable::TableReader;
use ringbase_storage::types::{BucketId, VbId};

use super::states::VbucketStates;

/// The vbuckets of a bucket on all cores.
#[derive(Debug)]
pub struct SharedBucket {
    states: Arc<VbucketStates>,
    tables: Mutex<Tables>,
    /// Rises with each change of the tables.
    version: AtomicU64,
    /// Documents of it that are locked: while there are some, only their owners know what may be seen.
    locks: Arc<AtomicUsize>,
}

/// The tables of the vbuckets that were offered.
pub type Tables = Vec<Option<TableReader>>;

impl SharedBucket {
    fn new(vbuckets: u16) -> SharedBucket {
        SharedBucket {
            states: Arc::new(VbucketStates::new(vbuckets)),
            tables: Mutex::new((0..vbuckets).map(|_| None).collect()),
            version: AtomicU64::new(1),
            locks: Arc::default(),
        }
    }

    /// Offers a vbucket of this core to the others, in the place of the one before with its number. It is seen by whoever sees a state that is set
    /// afterwards.
    pub fn offer(&self, vb: VbId, table: TableReader) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = tables.get_mut(usize::from(vb.0)) {
            *slot = Some(table);
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    /// The states of the vbuckets.
    #[must_use]
    #[inline]
    pub fn states(&self) -> &Arc<VbucketStates> {
        &self.states
    }

    /// The count of locked documents, which each core keeps up to date.
    #[must_use]
    pub fn locks(&self) -> &Arc<AtomicUsize> {
        &self.locks
    }
}

/// One core's view of the tables: a copy, taken anew when they have changed.
#[derive(Debug, Default)]
pub struct TableCopies {
    copies: RefCell<Tables>,
    version: Cell<u64>,
}

impl TableCopies {
    /// The newest versions of a vbucket, once its core has offered them, if a look at them may answer: it is active, and nothing is locked.
    #[must_use]
    #[inline]
    pub fn table(&self, shared: &SharedBucket, vb: VbId) -> Option<Ref<'_, TableReader>> {
        // In this order: whoever sees a vbucket active that has come again sees its table, not that of the one before.
        if !shared.states.is_active(vb) || shared.locks.load(Ordering::Acquire) != 0 {
            return None;
        }
        if shared.version.load(Ordering::Acquire) != self.version.get() {
            self.copy(shared);
        }
        Ref::filter_map(self.copies.borrow(), |copies| copies.get(usize::from(vb.0))?.as_ref()).ok()
    }

    #[cold]
    fn copy(&self, shared: &SharedBucket) {
        let tables = shared.tables.lock().unwrap_or_else(PoisonError::into_inner);
        self.version.set(shared.version.load(Ordering::Acquire));
        self.copies.borrow_mut().clone_from(&tables);
    }
}

/// The buckets of a node, shared by its cores. Cloning shares it.
#[derive(Debug, Default, Clone)]
pub struct SharedBuckets {
    buckets: Arc<Mutex<HashMap<BucketId, Arc<SharedBucket>>>>,
}

impl SharedBuckets {
    /// The bucket with this number, which has `vbuckets` vbuckets; it is begun if no core has come to it before.
    #[must_use]
    pub fn bucket(&self, id: BucketId, vbuckets: u16) -> Arc<SharedBucket> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.entry(id).or_insert_with(|| Arc::new(SharedBucket::new(vbuckets))).clone()
    }

    /// The bucket is withdrawn. Its number is never used again.
    pub fn forget(&self, id: BucketId) {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::dcp::signal::VbucketState;
    use ringbase_storage::hashtable::HashTable;

    #[test]
    fn a_vbucket_is_found_once_it_is_offered_and_active_and_not_while_documents_are_locked() {
        let shared = SharedBuckets::default();
        let (mine, theirs) = (shared.bucket(BucketId(3), 4), shared.clone().bucket(BucketId(3), 4));
        let copies = TableCopies::default();
        let sees = |vb| copies.table(&theirs, VbId(vb)).is_some();
        mine.states().set(VbId(2), Some(VbucketState::Active));
        assert!(!sees(2));
        mine.offer(VbId(2), HashTable::default().reader());
        mine.offer(VbId(9), HashTable::default().reader());
        assert!(sees(2) && !sees(9));
        for state in
            [Some(VbucketState::Replica), Some(VbucketState::Pending), Some(VbucketState::Dead), None]
        {
            mine.states().set(VbId(2), state);
            assert!(!sees(2), "{state:?}");
        }
        mine.states().set(VbId(2), Some(VbucketState::Active));
        mine.locks().fetch_add(1, Ordering::AcqRel);
        assert!(!sees(2));
        shared.forget(BucketId(3));
        assert!(copies.table(&shared.bucket(BucketId(3), 4), VbId(2)).is_none());
    }

    /// A vbucket that was deleted and comes again has another table; nobody looks into the old one then.
    #[test]
    fn a_table_that_is_offered_again_takes_the_place_of_the_one_before() {
        use ringbase_storage::item::Item;
        use ringbase_storage::types::{ItemMeta, Kind, Seqno};
        let shared = SharedBuckets::default().bucket(BucketId(3), 4);
        let (copies, active) = (TableCopies::default(), Some(VbucketState::Active));
        let mut old = HashTable::default();
        let meta = ItemMeta {
            seqno: Seqno(1),
            cas: ringbase_storage::types::Cas(1),
            revid: 1,
            flags: 0,
            expiry: 0,
            datatype: 0,
            kind: Kind::Mutation,
        };
        old.insert(Item::new(meta, b"key", b"value"));
        let finds = || {
            let pin = ringbase_storage::epoch::pin();
            copies.table(&shared, VbId(1)).unwrap().get(b"key", &pin).is_some()
        };
        shared.offer(VbId(1), old.reader());
        shared.states().set(VbId(1), active);
        assert!(finds());
        shared.states().set(VbId(1), None);
        shared.offer(VbId(1), HashTable::default().reader());
        shared.states().set(VbId(1), active);
        assert!(!finds());
    }
}
