//! The memtable: the latest version of each key that is not flushed yet, in key order.
//!
//! A vbucket writes into one memtable; freezing it makes it immutable and shared. A frozen memtable is what a view sees of memory, and
//! what a flush writes. In seqno order it is read from the vbucket's sequence list: freezing opens a reader there, the list's first.
//!
//! Invariants
//! - Each key is in it once, at its newest version.
//! - `former` of an entry is the key's newest version outside this memtable: what the flush marks dead.
//!
//! - Frozen, its reader has not passed any of its versions: what the reader shows is what the memtable holds.
//!
//! Cost: insertion and look-up O(log n); O(1) whether a version outside is superseded.
//! Does not know: disk, views.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::rc::Rc;

use crate::collections::Collections;
use crate::format::index::DeathMark;
use crate::format::manifest_record::VbCounts;
use crate::item::Item;
use crate::seqlist::{BatchLimits, Progress, RangeReader};
use crate::types::{Former, Seqno};

#[derive(Debug)]
struct Entry {
    item: Item,
    former: Former,
}

impl Entry {
    fn mark(&self) -> DeathMark {
        DeathMark { dead: self.former.seqno, by: self.item.seqno(), bytes: self.former.bytes }
    }
}

impl Borrow<[u8]> for Entry {
    fn borrow(&self) -> &[u8] {
        self.item.key()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.item.key() == other.item.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        self.item.key().cmp(other.item.key())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Memtable {
    by_key: BTreeSet<Entry>,
    /// The formers of all entries, but for none.
    superseded: hashbrown::HashSet<Seqno, ahash::RandomState>,
    reader: Option<RangeReader>,
    is_flushed: Cell<bool>,
    bytes: usize,
    record_bytes: usize,
    first_position: Option<u64>,
    first: Seqno,
    last: Seqno,
    counts: VbCounts,
    collections: Option<Rc<Collections>>,
}

impl Memtable {
    /// Takes a version in that replaces `former`, and whose log record begins at or behind `position`.
    pub fn insert(&mut self, item: Item, mut former: Former, position: u64) {
        self.first_position.get_or_insert(position);
        if self.by_key.is_empty() {
            self.first = item.seqno();
        }
        self.last = item.seqno();
        self.bytes += item.resident_bytes();
        self.record_bytes += crate::format::seqlog_block::seqlog_record_len(&item);
        if let Some(old) = self.by_key.take(item.key()) {
            former = old.former;
            self.bytes -= old.item.resident_bytes();
            self.record_bytes -= crate::format::seqlog_block::seqlog_record_len(&old.item);
        } else if former.seqno != Seqno(0) {
            self.superseded.insert(former.seqno);
        }
        self.by_key.insert(Entry { item, former });
    }

    /// The version of `key` here.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Item> {
        self.by_key.get(key).map(|entry| &entry.item)
    }

    /// Whether a version here replaces the one with this seqno outside, on disk or in an older memtable. Costs nothing where all keys are new, and no look
    /// at a key else.
    #[inline]
    #[must_use]
    pub fn supersedes(&self, seqno: Seqno) -> bool {
        self.superseded.contains(&seqno)
    }

    /// The first version whose key is at or above (or, if `exclusive`, above) `key`.
    #[must_use]
    pub fn at_or_after(&self, key: &[u8], exclusive: bool) -> Option<&Item> {
        self.range(key, exclusive).next()
    }

    /// The versions whose keys are at or above (or, if `exclusive`, above) `key`, in key order.
    pub fn range(&self, key: &[u8], exclusive: bool) -> impl Iterator<Item = &Item> {
        let start = if exclusive { Bound::Excluded(key) } else { Bound::Included(key) };
        self.by_key.range::<[u8], _>((start, Bound::Unbounded)).map(|entry| &entry.item)
    }

    /// The versions in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Item> {
        self.by_key.iter().map(|entry| &entry.item)
    }

    /// Appends the next versions in seqno order, from `next` on, to `out` and moves `next` behind them. Returns whether there may be more; nothing is
    /// shown before it is frozen.
    pub fn next_by_seqno(&self, next: &mut Seqno, out: &mut Vec<Item>) -> bool {
        let progress = self.peek(next, BatchLimits::default(), out);
        assert_ne!(progress, Progress::Behind, "the list is trimmed up to what is flushed");
        progress == Progress::More
    }

    fn peek(&self, next: &mut Seqno, limits: BatchLimits, out: &mut Vec<Item>) -> Progress {
        assert!(!self.is_flushed.get(), "a flush moves what views read");
        self.reader.as_ref().map_or(Progress::End, |reader| reader.peek(next, limits, out))
    }

    /// It is on disk, and every view knows: nobody reads it in seqno order any more.
    pub fn set_flushed(&self) {
        self.is_flushed.set(true);
        if let Some(reader) = &self.reader {
            reader.finish();
        }
    }

    /// The version with exactly this seqno, once it is frozen.
    #[must_use]
    pub fn at(&self, seqno: Seqno) -> Option<Item> {
        if seqno < self.first || seqno > self.last {
            return None;
        }
        let (mut next, mut found) = (seqno, Vec::new());
        let limits = BatchLimits { items: 1, ..BatchLimits::default() };
        while found.is_empty() && self.peek(&mut next, limits, &mut found) == Progress::More {}
        found.pop().filter(|item| item.seqno() == seqno)
    }

    /// Which older records these versions make dead, in the order of the dead: none of the tombstones up to `purged`, which are no more.
    #[must_use]
    pub fn marks(&self, purged: Seqno) -> Vec<DeathMark> {
        let is_there = |former: &Former| former.live || former.seqno > purged;
        let entries = self.by_key.iter().filter(|entry| entry.former.seqno != Seqno(0));
        let mut marks: Vec<DeathMark> =
            entries.filter(|entry| is_there(&entry.former)).map(Entry::mark).collect();
        marks.sort_unstable_by_key(|mark| mark.dead);
        marks
    }

    /// The tombstones outside up to `last` that versions here replace.
    pub fn replaced_tombstones(&self, last: Seqno) -> impl Iterator<Item = DeathMark> {
        let is_tombstone = |former: &Former| !former.live && former.seqno != Seqno(0);
        let entries = self.by_key.iter().filter(move |entry| is_tombstone(&entry.former));
        entries.filter(move |entry| entry.former.seqno <= last).map(Entry::mark)
    }

    /// Number of versions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Resident bytes of the versions.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes the versions take in a seqlog, block headers apart.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    /// Position in the log at or below which the first of its records begins.
    #[must_use]
    pub fn first_position(&self) -> Option<u64> {
        self.first_position
    }

    /// Lowest seqno that it may hold.
    #[must_use]
    pub fn first(&self) -> Seqno {
        self.first
    }

    /// Highest seqno taken in.
    #[must_use]
    pub fn last(&self) -> Seqno {
        self.last
    }

    /// The vbucket's counts as they were when it was frozen.
    #[must_use]
    pub fn counts(&self) -> VbCounts {
        self.counts
    }

    /// The vbucket's collections as they were when it was frozen; none before.
    #[must_use]
    pub fn collections(&self) -> Option<&Collections> {
        self.collections.as_deref()
    }

    /// Makes it immutable: no more insertions. `counts` and `collections` are the vbucket's at this moment, `reader` reads the sequence list from [`Memtable::first`] on,
    /// as it is at this moment.
    #[must_use]
    pub fn freeze(
        mut self,
        counts: VbCounts,
        collections: Rc<Collections>,
        reader: RangeReader,
    ) -> Rc<Memtable> {
        self.counts = counts;
        self.collections = Some(collections);
        self.reader = Some(reader);
        Rc::new(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::test_item;
    use crate::types::Kind;
    use crate::versions::Versions;

    fn item(seqno: u64, key: &str) -> Item {
        test_item(key.as_bytes(), seqno, Kind::Mutation, b"v")
    }

    fn former(seqno: u64) -> Former {
        Former { seqno: Seqno(seqno), live: true, bytes: 100 + seqno as u32 }
    }

    #[test]
    fn an_overwritten_key_stays_once_and_marks_what_lies_outside() {
        let (mut table, mut versions) = (Memtable::default(), Versions::new(Seqno(9)));
        for (seqno, key, former) in [(10, "b", 4), (11, "a", 0), (12, "b", 10), (13, "a", 11)] {
            versions.take(&item(seqno, key), Seqno(former));
        }
        table.insert(item(10, "b"), former(4), 7);
        table.insert(item(11, "a"), Former::default(), 8);
        table.insert(item(12, "b"), former(10), 9);
        table.insert(item(13, "a"), former(11), 9);
        let keys: Vec<_> = table.iter().map(|item| (item.key().to_vec(), item.seqno().0)).collect();
        assert_eq!(keys, [(b"a".to_vec(), 13), (b"b".to_vec(), 12)]);
        assert_eq!(table.marks(Seqno(0)), [DeathMark { dead: Seqno(4), by: Seqno(12), bytes: 104 }]);
        assert_eq!(table.first_position(), Some(7));
        assert_eq!(table.at_or_after(b"a", true).unwrap().key(), b"b");
        assert_eq!(table.bytes(), table.iter().map(|item| item.resident_bytes()).sum::<usize>());
        let reader = versions.open(table.first(), Seqno(0));
        let table = table.freeze(VbCounts::default(), Rc::default(), reader);
        versions.take(&item(14, "a"), Seqno(13));
        let (mut next, mut found) = (Seqno(0), Vec::new());
        while table.next_by_seqno(&mut next, &mut found) {}
        let seqnos: Vec<_> = found.iter().map(|item| item.seqno().0).collect();
        assert_eq!((seqnos, next), (vec![12, 13], Seqno(14)));
        let at: Vec<_> =
            (9..15).filter_map(|seqno| table.at(Seqno(seqno))).map(|item| item.seqno().0).collect();
        assert_eq!(at, [12, 13]);
    }

    #[test]
    fn what_lies_outside_is_superseded_by_the_first_version_that_replaced_it() {
        let mut table = Memtable::default();
        table.insert(item(10, "b"), former(4), 7);
        table.insert(item(11, "a"), Former::default(), 8);
        table.insert(item(12, "b"), former(10), 9);
        let superseded = (0..20).filter(|seqno| table.supersedes(Seqno(*seqno)));
        assert!(superseded.eq([4]));
    }
}
