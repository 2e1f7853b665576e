//! What the versions of a shard take in memory, and of each bucket in it: two accounts, each with its bounds.
//!
//! A vbucket books with its bucket's account, which books with the shard's.
//!
//! Invariants
//! - The shard's sums are those of its buckets. What a bucket has booked leaves with it.
//!
//! Cost: four additions a write.
//! Does not know: whose bytes they are, who refuses or evicts when there is no room.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes of one kind, and how many there may be.
#[derive(Debug)]
struct Account {
    bytes: Cell<i64>,
    max: Cell<usize>,
}

impl Account {
    fn new(max: usize) -> Account {
        Account { bytes: Cell::new(0), max: Cell::new(max) }
    }

    fn add(&self, bytes: i64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes.get() + (bytes as i64) < i64::try_from(self.max.get()).unwrap_or(i64::MAX)
    }

    /// Whether more than half of it is used.
    fn is_half_full(&self) -> bool {
        self.bytes.get().saturating_mul(2) > i64::try_from(self.max.get()).unwrap_or(i64::MAX)
    }
}

/// The account of a shard.
#[derive(Debug)]
pub(crate) struct ShardMemory {
    memtable: Account,
    resident: Account,
}

impl ShardMemory {
    pub(crate) fn new(memtable_bytes_max: usize, resident_bytes_max: usize) -> ShardMemory {
        ShardMemory { memtable: Account::new(memtable_bytes_max), resident: Account::new(resident_bytes_max) }
    }

    pub(crate) fn memtable_bytes(&self) -> i64 {
        self.memtable.bytes.get()
    }

    pub(crate) fn resident_bytes(&self) -> i64 {
        self.resident.bytes.get()
    }

    pub(crate) fn wants_flush(&self) -> bool {
        self.memtable.is_half_full()
    }
}

/// What a bucket takes in one shard.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BucketMemoryStats {
    /// Versions not flushed yet, in bytes.
    pub memtable_bytes: i64,
    /// Versions in memory, in bytes.
    pub resident_bytes: i64,
}

/// The account of a bucket in a shard.
#[derive(Debug)]
pub(crate) struct BucketMemory {
    shard: Rc<ShardMemory>,
    memtable: Account,
    resident: Account,
    ended: Cell<bool>,
}

impl BucketMemory {
    /// An account without a bound of its own.
    pub(crate) fn new(shard: Rc<ShardMemory>) -> BucketMemory {
        let account = || Account::new(usize::MAX);
        BucketMemory { shard, memtable: account(), resident: account(), ended: Cell::new(false) }
    }

    /// Bounds the bucket to `bytes` in this shard: half for what is not flushed, half for what stays beside it.
    pub(crate) fn set_quota(&self, bytes: usize) {
        self.memtable.max.set(bytes / 2);
        self.resident.max.set(bytes / 2);
    }

    /// Bounds a bucket that lives in memory only to `bytes` in this shard.
    pub(crate) fn set_memory_quota(&self, bytes: usize) {
        self.resident.max.set(bytes);
    }

    /// Bytes of versions in memory, and how many there may be.
    pub(crate) fn resident_share(&self) -> (i64, usize) {
        (self.resident.bytes.get(), self.resident.max.get())
    }

    pub(crate) fn add_memtable(&self, bytes: i64) {
        if !self.ended.get() {
            self.memtable.add(bytes);
            self.shard.memtable.add(bytes);
        }
    }

    pub(crate) fn add_resident(&self, bytes: i64) {
        if !self.ended.get() {
            self.resident.add(bytes);
            self.shard.resident.add(bytes);
        }
    }

    pub(crate) fn has_memtable_room(&self) -> bool {
        self.memtable.has_room(0) && self.shard.memtable.has_room(0)
    }

    pub(crate) fn has_resident_room(&self, bytes: usize) -> bool {
        !self.ended.get() && self.resident.has_room(bytes) && self.shard.resident.has_room(bytes)
    }

    pub(crate) fn wants_flush(&self) -> bool {
        self.memtable.is_half_full()
    }

    pub(crate) fn stats(&self) -> BucketMemoryStats {
        BucketMemoryStats {
            memtable_bytes: self.memtable.bytes.get(),
            resident_bytes: self.resident.bytes.get(),
        }
    }

    /// The bucket is gone: what it has booked is given back, and nothing is booked any more.
    pub(crate) fn end(&self) {
        self.add_memtable(-self.memtable.bytes.get());
        self.add_resident(-self.resident.bytes.get());
        self.ended.set(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_bounded_by_its_quota_and_by_its_shard_and_leaves_nothing_behind() {
        let shard = Rc::new(ShardMemory::new(1000, 1000));
        let (first, second) = (BucketMemory::new(shard.clone()), BucketMemory::new(shard.clone()));
        first.set_quota(200);
        first.add_memtable(99);
        assert!(first.has_memtable_room() && first.wants_flush());
        first.add_memtable(1);
        assert!(!first.has_memtable_room() && second.has_memtable_room());
        second.add_memtable(900);
        assert!(!second.has_memtable_room(), "the shard is full");
        first.add_resident(50);
        assert!(first.has_resident_room(49) && !first.has_resident_room(50));
        first.end();
        first.add_resident(70);
        assert_eq!((shard.memtable_bytes(), shard.resident_bytes()), (900, 0));
        assert!(second.has_memtable_room() && !first.has_resident_room(0));
    }
}
