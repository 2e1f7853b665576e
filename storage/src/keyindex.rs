//! The key index of a memory-only vbucket: its newest versions in key order.
//!
//! Nobody needs key order until somebody scans by key, so the index is built then, in slices, from the sequence list; from then on every write
//! maintains it, and it is dropped when it has not been used for a while. A write that happens while it is being built goes in at once, and the
//! builder, which follows, leaves alone what is there: what is there is newer.
//!
//! Invariants
//! - Complete, it holds the newest version of every key of the table, tombstones included.
//!
//! Cost: insertion, removal and seek O(log n); about 12 bytes a key beside the version itself.
//! Does not know: views, what is visible to whom.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::ops::Bound;

use crate::item::Item;
use crate::types::Seqno;

/// A version that is ordered and found by its key.
#[derive(Debug)]
struct ByKey(Item);

impl Borrow<[u8]> for ByKey {
    fn borrow(&self) -> &[u8] {
        self.0.key()
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &ByKey) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &ByKey) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &ByKey) -> std::cmp::Ordering {
        self.0.key().cmp(other.0.key())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct KeyIndex {
    by_key: BTreeSet<ByKey>,
}

impl KeyIndex {
    /// Makes `item` the newest version of its key.
    pub fn put(&mut self, item: Item) {
        self.by_key.replace(ByKey(item));
    }

    /// Takes `item` in unless its key is there already.
    pub fn put_if_absent(&mut self, item: Item) {
        self.by_key.insert(ByKey(item));
    }

    /// Drops `key` if its version has this seqno.
    pub fn remove(&mut self, key: &[u8], seqno: Seqno) {
        if self.by_key.get(key).is_some_and(|found| found.0.seqno() == seqno) {
            self.by_key.remove(key);
        }
    }

    /// Drops the first key; false if there is none.
    pub fn pop(&mut self) -> bool {
        self.by_key.pop_first().is_some()
    }

    /// The newest version of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Item> {
        self.by_key.get(key).map(|found| &found.0)
    }

    /// The newest versions whose keys are at or above (or, if `exclusive`, above) `key`, in key order.
    pub fn range(&self, key: &[u8], exclusive: bool) -> impl Iterator<Item = &Item> {
        let start = if exclusive { Bound::Excluded(key) } else { Bound::Included(key) };
        self.by_key.range::<[u8], _>((start, Bound::Unbounded)).map(|found| &found.0)
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Resident bytes, the versions apart; nodes of the tree are counted as three quarters full.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.by_key.len() * 12
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::test_item;
    use crate::types::Kind;

    fn item(key: &str, seqno: u64) -> Item {
        test_item(key.as_bytes(), seqno, Kind::Mutation, b"value")
    }

    #[test]
    fn a_builder_that_follows_writes_leaves_newer_versions_alone() {
        let mut index = KeyIndex::default();
        index.put(item("b", 7));
        index.put_if_absent(item("b", 2));
        index.put_if_absent(item("a", 1));
        index.put(item("a", 8));
        let found: Vec<_> = index.range(b"", false).map(|item| item.seqno().0).collect();
        assert_eq!(found, [8, 7]);
        index.remove(b"b", Seqno(2));
        assert_eq!(index.get(b"b").unwrap().seqno(), Seqno(7));
        index.remove(b"b", Seqno(7));
        assert!(index.get(b"b").is_none() && index.len() == 1 && !index.is_empty());
        assert_eq!(index.range(b"a", true).count(), 0);
    }
}
