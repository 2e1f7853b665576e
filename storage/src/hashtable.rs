//! The hash table of a vbucket: key to newest resident version.
//!
//! Every version that is not flushed is here; flushed ones stay while the shard's memory allows.
//!
//! Cost: O(1) look-up and insertion.
//! Does not know: seqno order, disk, when to evict.

use crate::item::Item;
use crate::types::Seqno;

/// See the module.
#[derive(Debug, Default)]
pub struct HashTable {
    table: hashbrown::HashTable<Item>,
    hasher: ahash::RandomState,
    bytes: usize,
}

impl HashTable {
    /// The resident version of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Item> {
        self.table.find(self.hasher.hash_one(key), |item| item.key() == key)
    }

    /// Makes `item` the newest version of its key and returns the one it replaces.
    pub fn insert(&mut self, item: Item) -> Option<Item> {
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

    /// Drops `key` from memory if its resident version has this seqno, and returns that version.
    pub fn evict(&mut self, key: &[u8], seqno: Seqno) -> Option<Item> {
        let hash = self.hasher.hash_one(key);
        let found = self.table.find_entry(hash, |item| item.key() == key && item.seqno() == seqno);
        let (item, _) = found.ok()?.remove();
        self.bytes -= item.resident_bytes();
        Some(item)
    }

    /// Shows the versions in up to `max` slots from slot `from` on, and says where to go on; `None` at the end. A version that moves meanwhile,
    /// because the table grows, may be missed or shown twice.
    pub fn visit_slots(&self, from: usize, max: usize, mut visit: impl FnMut(&Item)) -> Option<usize> {
        let slots = self.table.num_buckets();
        let end = from.saturating_add(max).min(slots);
        for slot in from..end {
            if let Some(item) = self.table.get_bucket(slot) {
                visit(item);
            }
        }
        (end < slots).then_some(end)
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

    fn item(key: &str, seqno: u64) -> Item {
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
    fn every_version_is_in_one_slot_whatever_the_slice() {
        let mut table = HashTable::default();
        for n in 0..100 {
            table.insert(item(&format!("k{n}"), n));
        }
        for max in [1, 7, 1000] {
            let (mut seen, mut slot) = (Vec::new(), Some(0));
            while let Some(from) = slot {
                slot = table.visit_slots(from, max, |item| seen.push(item.seqno().0));
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..100).collect::<Vec<_>>());
        }
        assert_eq!(HashTable::default().visit_slots(0, 10, |_| panic!("nothing is there")), None);
    }

    #[test]
    fn only_the_version_that_was_flushed_is_evicted() {
        let mut table = HashTable::default();
        assert!(table.insert(item("a", 1)).is_none());
        assert_eq!(table.insert(item("a", 2)).unwrap().seqno(), Seqno(1));
        assert!(table.evict(b"a", Seqno(1)).is_none());
        assert_eq!(table.get(b"a").unwrap().seqno(), Seqno(2));
        assert_eq!(table.evict(b"a", Seqno(2)).unwrap().seqno(), Seqno(2));
        assert!(table.get(b"a").is_none() && table.is_empty());
        assert_eq!(table.bytes, 0);
    }
}
