//! The hash table of a vbucket: key to newest resident version.
//!
//! Every version that is not flushed is here; flushed ones stay while the shard's memory allows.
//!
//! Cost: O(1) look-up and insertion.
//! Does not know: seqno order, disk, when to evict.

use std::rc::Rc;

use crate::types::{Item, Seqno};

/// See the module.
#[derive(Debug, Default)]
pub struct HashTable {
    table: hashbrown::HashTable<Rc<Item>>,
    hasher: ahash::RandomState,
    bytes: usize,
}

impl HashTable {
    /// The resident version of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Rc<Item>> {
        self.table.find(self.hasher.hash_one(key), |item| item.key() == key)
    }

    /// Makes `item` the newest version of its key and returns the one it replaces.
    pub fn insert(&mut self, item: Rc<Item>) -> Option<Rc<Item>> {
        use hashbrown::hash_table::Entry;
        let hash = self.hasher.hash_one(item.key());
        let hasher = &self.hasher;
        self.bytes += item.resident_bytes();
        let entry =
            self.table.entry(hash, |other| other.key() == item.key(), |item| hasher.hash_one(item.key()));
        match entry {
            Entry::Occupied(mut entry) => {
                let old = std::mem::replace(entry.get_mut(), item);
                self.bytes -= old.resident_bytes();
                Some(old)
            }
            Entry::Vacant(entry) => {
                entry.insert(item);
                None
            }
        }
    }

    /// Drops `key` from memory if its resident version has this seqno.
    pub fn evict(&mut self, key: &[u8], seqno: Seqno) {
        let hash = self.hasher.hash_one(key);
        let found = self.table.find_entry(hash, |item| item.key() == key && item.meta.seqno == seqno);
        if let Ok(entry) = found {
            self.bytes -= entry.remove().0.resident_bytes();
        }
    }

    /// Gives memory back after many evictions.
    pub fn shrink(&mut self) {
        if self.table.capacity() > 64 && self.table.len() * 4 < self.table.capacity() {
            let hasher = &self.hasher;
            self.table.shrink_to(self.table.len() * 2, |item| hasher.hash_one(item.key()));
        }
    }

    /// Resident versions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nothing is resident.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Resident bytes of the versions, the table itself included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes + self.table.capacity() * 9
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Cas, ItemMeta, Kind};

    fn item(key: &str, seqno: u64) -> Rc<Item> {
        let meta = ItemMeta {
            seqno: Seqno(seqno),
            cas: Cas(1),
            revid: 1,
            flags: 0,
            expiry: 0,
            datatype: 0,
            kind: Kind::Mutation,
        };
        Item::new(meta, key.as_bytes(), b"value")
    }

    #[test]
    fn only_the_version_that_was_flushed_is_evicted() {
        let mut table = HashTable::default();
        assert!(table.insert(item("a", 1)).is_none());
        assert_eq!(table.insert(item("a", 2)).unwrap().meta.seqno, Seqno(1));
        table.evict(b"a", Seqno(1));
        assert_eq!(table.get(b"a").unwrap().meta.seqno, Seqno(2));
        table.evict(b"a", Seqno(2));
        assert!(table.get(b"a").is_none() && table.is_empty());
        assert_eq!(table.bytes, 0);
    }
}
