//! What of a bucket's vbuckets readers on other cores may look at: their hash tables, as long as nothing has to be decided by the owner.
//!
//! Each core offers its vbuckets when it takes a bucket in; the others find them there without asking. A look that finds a document which is
//! neither over nor locked may answer for the owner; everything else travels.
//!
//! Invariants
//! - What is offered stays until the bucket is withdrawn from every core. A table that was let go of is empty.
//!
//! Cost: a lock when a bucket comes or goes; a look takes none.
//! Does not know: requests, connections, the rules of documents.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ringbase_storage::hashtable::TableReader;
use ringbase_storage::types::{BucketId, VbId};

/// The vbuckets of a bucket on all cores.
#[derive(Debug)]
pub struct SharedBucket {
    tables: Box<[OnceLock<TableReader>]>,
    /// Documents of it that are locked: while there are some, only their owners know what may be seen.
    locks: Arc<AtomicUsize>,
}

impl SharedBucket {
    fn new(vbuckets: u16) -> SharedBucket {
        SharedBucket { tables: (0..vbuckets).map(|_| OnceLock::new()).collect(), locks: Arc::default() }
    }

    /// Offers a vbucket of this core to the others.
    pub fn offer(&self, vb: VbId, table: TableReader) {
        if let Some(slot) = self.tables.get(usize::from(vb.0)) {
            slot.get_or_init(|| table);
        }
    }

    /// The count of locked documents, which each core keeps up to date.
    #[must_use]
    pub fn locks(&self) -> &Arc<AtomicUsize> {
        &self.locks
    }

    /// The newest versions of a vbucket, once its core has offered them, if a look at them may answer.
    #[must_use]
    #[inline]
    pub fn table(&self, vb: VbId) -> Option<&TableReader> {
        if self.locks.load(Ordering::Acquire) != 0 {
            return None;
        }
        self.tables.get(usize::from(vb.0))?.get()
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
    use ringbase_storage::hashtable::HashTable;

    #[test]
    fn a_vbucket_is_found_once_it_is_offered_and_not_while_documents_are_locked() {
        let shared = SharedBuckets::default();
        let (mine, theirs) = (shared.bucket(BucketId(3), 4), shared.clone().bucket(BucketId(3), 4));
        assert!(theirs.table(VbId(2)).is_none());
        mine.offer(VbId(2), HashTable::default().reader());
        mine.offer(VbId(9), HashTable::default().reader());
        assert!(theirs.table(VbId(2)).is_some() && theirs.table(VbId(9)).is_none());
        mine.locks().fetch_add(1, Ordering::AcqRel);
        assert!(theirs.table(VbId(2)).is_none());
        shared.forget(BucketId(3));
        assert!(shared.bucket(BucketId(3), 4).table(VbId(2)).is_none());
    }
}
