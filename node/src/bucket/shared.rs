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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ringbase_storage::hashtable::TableReader;
use ringbase_storage::types::{BucketId, VbId};

/// A vbucket as other cores see it.
#[derive(Debug)]
pub struct SharedVbucket {
    table: TableReader,
    /// Whether documents of it are locked: then only the owner knows what may be seen.
    has_locks: AtomicBool,
}

impl SharedVbucket {
    /// The newest versions, if a look at them may answer.
    #[must_use]
    #[inline]
    pub fn table(&self) -> Option<&TableReader> {
        (!self.has_locks.load(Ordering::Acquire)).then_some(&self.table)
    }

    /// Says whether documents are locked. The owner says so before it answers whoever locked one.
    pub fn set_has_locks(&self, has_locks: bool) {
        self.has_locks.store(has_locks, Ordering::Release);
    }
}

/// The vbuckets of a bucket on all cores.
#[derive(Debug)]
pub struct SharedBucket {
    vbuckets: Box<[OnceLock<SharedVbucket>]>,
}

impl SharedBucket {
    fn new(vbuckets: u16) -> SharedBucket {
        SharedBucket { vbuckets: (0..vbuckets).map(|_| OnceLock::new()).collect() }
    }

    /// Offers a vbucket of this core to the others.
    pub fn offer(&self, vb: VbId, table: TableReader) {
        if let Some(slot) = self.vbuckets.get(usize::from(vb.0)) {
            slot.get_or_init(|| SharedVbucket { table, has_locks: AtomicBool::new(false) });
        }
    }

    /// A vbucket, once its core has offered it.
    #[must_use]
    #[inline]
    pub fn vbucket(&self, vb: VbId) -> Option<&SharedVbucket> {
        self.vbuckets.get(usize::from(vb.0))?.get()
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
        assert!(theirs.vbucket(VbId(2)).is_none());
        mine.offer(VbId(2), HashTable::default().reader());
        mine.offer(VbId(9), HashTable::default().reader());
        let vbucket = theirs.vbucket(VbId(2)).unwrap();
        assert!(vbucket.table().is_some() && theirs.vbucket(VbId(9)).is_none());
        vbucket.set_has_locks(true);
        assert!(mine.vbucket(VbId(2)).unwrap().table().is_none());
        shared.forget(BucketId(3));
        assert!(shared.bucket(BucketId(3), 4).vbucket(VbId(2)).is_none());
    }
}
