//! The live point-in-time readers of a vbucket: who still needs a version?
//!
//! A reader is the high seqno at its opening, its end, and how far it has come, by seqno or by key. A version that lived from its own seqno `born` until
//! another's, `superseded`, is needed by a reader iff `born <= end < superseded` and the reader has not passed it. Nothing else keeps a
//! version: no range is locked, distant readers do not make each other's versions stale, and a reader that stands still costs what it can still
//! see (T4.5, T4.15, T4.16).
//!
//! Readers move on any core; the owner looks at their positions when it must decide. A position that it sees too late keeps a version a little
//! longer, never too short.
//!
//! Invariants
//! - A reader's end never changes, its position only rises.
//!
//! Cost: a decision is O(readers), nothing without readers.
//! Does not know: memory or disk, what is done with the answer.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use crate::atomic::{AtomicU64, Ordering};
use crate::types::Seqno;

/// The position of a reader that reads no more.
pub(crate) const DONE: Seqno = Seqno(u64::MAX);

/// A reader in seqno order. It may be on any core.
#[derive(Debug)]
pub struct Reader {
    end: Seqno,
    position: AtomicU64,
}

impl Reader {
    /// Everything up to here is seen.
    #[must_use]
    pub fn end(&self) -> Seqno {
        self.end
    }

    /// What lies below is passed.
    #[must_use]
    pub fn position(&self) -> Seqno {
        Seqno(self.position.load(Ordering::Acquire))
    }

    /// Nothing below `position` is read any more.
    pub(crate) fn move_to(&self, position: Seqno) {
        self.position.store(position.0, Ordering::Release);
    }

    fn is_done(&self) -> bool {
        self.position() > self.end
    }

    fn needs(&self, born: Seqno, superseded: Seqno) -> bool {
        born <= self.end && self.end < superseded && self.position() <= born
    }
}

/// A reader in key order, on the owner's core. It ends when it is dropped.
#[derive(Debug)]
pub struct KeyReader {
    end: Seqno,
    position: RefCell<Vec<u8>>,
}

impl KeyReader {
    /// Everything up to here is seen.
    #[must_use]
    pub fn end(&self) -> Seqno {
        self.end
    }

    /// Keys below `key` are read no more. Returns the key before which nothing was read until now.
    pub fn move_to(&self, key: &[u8]) -> Vec<u8> {
        std::mem::replace(&mut *self.position.borrow_mut(), key.to_vec())
    }

    fn needs(&self, key: &[u8], born: Seqno, superseded: Seqno) -> bool {
        born <= self.end && self.end < superseded && key >= &self.position.borrow()[..]
    }
}

struct BySeqno {
    reader: Arc<Reader>,
    /// What lies below has been looked at since the reader passed it.
    settled: Seqno,
}

/// See the module.
#[derive(Default)]
pub struct Registry {
    by_seqno: Vec<BySeqno>,
    by_key: Vec<Weak<KeyReader>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({} by seqno, {} by key)", self.by_seqno.len(), self.by_key.len())
    }
}

impl Registry {
    /// Registers a reader of [start, end] in seqno order.
    pub fn open(&mut self, start: Seqno, end: Seqno) -> Arc<Reader> {
        // There is no seqno 0: whoever starts there misses nothing in a list that begins at 1.
        let start = start.max(Seqno(1));
        let reader = Arc::new(Reader { end, position: AtomicU64::new(start.0) });
        let at = self.by_seqno.partition_point(|other| other.reader.end <= end);
        self.by_seqno.insert(at, BySeqno { reader: reader.clone(), settled: start });
        reader
    }

    /// Registers a reader in key order, from the first key on.
    pub fn open_by_key(&mut self, end: Seqno) -> Rc<KeyReader> {
        let reader = Rc::new(KeyReader { end, position: RefCell::default() });
        self.by_key.push(Rc::downgrade(&reader));
        reader
    }

    /// Whether a reader in seqno order can still see a version.
    #[must_use]
    pub fn needs(&self, born: Seqno, superseded: Seqno) -> bool {
        // Sorted by end: those below `born` cannot see it, those from `superseded` on see its successor.
        let first = self.by_seqno.partition_point(|other| other.reader.end < born);
        let mut candidates = self.by_seqno[first..].iter().take_while(|other| other.reader.end < superseded);
        candidates.any(|other| other.reader.needs(born, superseded))
    }

    /// Whether a reader in key order can still see a version of `key`.
    #[must_use]
    pub fn needs_key(&mut self, key: &[u8], born: Seqno, superseded: Seqno) -> bool {
        self.by_key.retain(|reader| reader.strong_count() > 0);
        self.by_key.iter().filter_map(Weak::upgrade).any(|reader| reader.needs(key, born, superseded))
    }

    /// Readers in seqno order that are known, those that are done and not settled included. [`Registry::passed`] counts them from 0.
    #[must_use]
    pub fn known(&self) -> usize {
        self.by_seqno.len()
    }

    /// The range of seqnos that a reader has passed and that is not settled; `None` if there is none.
    #[must_use]
    pub fn passed(&self, index: usize) -> Option<RangeInclusive<Seqno>> {
        let BySeqno { reader, settled } = self.by_seqno.get(index)?;
        let to = reader.position().min(reader.end.next());
        (*settled < to).then(|| *settled..=Seqno(to.0 - 1))
    }

    /// What lies below `to` has been looked at since the reader passed it.
    pub fn settle(&mut self, index: usize, to: Seqno) {
        self.by_seqno[index].settled = to;
    }

    /// Forgets readers that are done and have nothing behind them.
    pub fn forget_done(&mut self) {
        self.by_seqno.retain(|other| !other.reader.is_done() || other.settled <= other.reader.end);
    }

    /// Live readers.
    #[must_use]
    pub fn len(&self) -> usize {
        let by_seqno = self.by_seqno.iter().filter(|other| !other.reader.is_done()).count();
        by_seqno + self.by_key.iter().filter(|reader| reader.strong_count() > 0).count()
    }

    /// Whether nobody reads.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nobody reads in key order.
    #[must_use]
    pub fn has_no_key_readers(&self) -> bool {
        self.by_key.iter().all(|reader| reader.strong_count() == 0)
    }

    fn ranges(&self) -> impl Iterator<Item = RangeInclusive<Seqno>> {
        let live = self.by_seqno.iter().filter(|other| !other.reader.is_done());
        live.map(|other| other.reader.position()..=other.reader.end)
    }

    /// From the lowest position to the highest end of the readers in seqno order: what statistics show as the locked range. Nothing is locked by it.
    #[must_use]
    pub fn union(&self) -> Option<RangeInclusive<Seqno>> {
        self.ranges().reduce(|all, range| *all.start().min(range.start())..=*all.end().max(range.end()))
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> RangeInclusive<Seqno> {
        Seqno(start)..=Seqno(end)
    }

    /// Whether an exact exclusive range could be had: no reader's range overlaps it (T4.3). Nothing takes one here. A purge asks of each tombstone
    /// whether a reader needs it instead, which is the same question about a range of one seqno.
    fn is_free(registry: &Registry, wanted: &RangeInclusive<Seqno>) -> bool {
        !registry.ranges().any(|range| range.start() <= wanted.end() && wanted.start() <= range.end())
    }

    /// The exclusive range that could be had of `wanted`, cut down against each reader's range in turn: where they overlap at its end or in its
    /// middle the part before stays, at its start the part behind (T4.4).
    fn free_part(registry: &Registry, wanted: RangeInclusive<Seqno>) -> Option<RangeInclusive<Seqno>> {
        let (mut start, mut end) = wanted.into_inner();
        for range in registry.ranges() {
            if *range.start() > end || *range.end() < start {
                continue;
            }
            if *range.start() > start {
                end = Seqno(range.start().0 - 1);
            } else if *range.end() < end {
                start = range.end().next();
            } else {
                return None;
            }
        }
        Some(start..=end)
    }

    /// What a purge asks of each tombstone.
    fn may_be_purged(registry: &Registry, tombstone: u64) -> bool {
        !registry.needs(Seqno(tombstone), Seqno(u64::MAX))
    }

    /// T4.3: any overlap refuses an exact exclusive range, and after the last holder is gone it is free. A purge passes over just the seqnos at which
    /// none could be had.
    #[test]
    fn a_purge_passes_over_just_the_seqnos_at_which_no_exclusive_range_could_be_had() {
        let mut registry = Registry::default();
        let first = registry.open(Seqno(2), Seqno(5));
        let second = registry.open(Seqno(4), Seqno(9));
        let agree = |registry: &Registry| {
            let mut seqnos = 1..=12;
            seqnos.all(|seqno| may_be_purged(registry, seqno) == is_free(registry, &range(seqno, seqno)))
        };
        assert!(!is_free(&registry, &range(1, 2)) && is_free(&registry, &range(1, 1)) && agree(&registry));
        assert_eq!(registry.union(), Some(range(2, 9)));
        first.move_to(DONE);
        assert!(is_free(&registry, &range(1, 3)) && !is_free(&registry, &range(5, 5)) && agree(&registry));
        second.move_to(Seqno(6));
        assert!(is_free(&registry, &range(1, 5)) && !is_free(&registry, &range(6, 6)) && agree(&registry));
        second.move_to(DONE);
        assert!(is_free(&registry, &range(1, 100)) && registry.union().is_none() && agree(&registry));
    }

    /// T4.4, with the examples of the statement: a purge may have whatever a partial exclusive range would have given it, and more.
    #[test]
    fn a_purge_may_have_all_of_a_partial_exclusive_range_and_what_lies_beyond_its_readers() {
        let purgeable = |registry: &Registry, wanted: RangeInclusive<u64>| -> Vec<u64> {
            wanted.filter(|seqno| may_be_purged(registry, *seqno)).collect()
        };
        let mut registry = Registry::default();
        let _shared = registry.open(Seqno(2), Seqno(3));
        assert_eq!(free_part(&registry, range(1, 2)), Some(range(1, 1)));
        assert_eq!(purgeable(&registry, 1..=2), [1]);
        assert_eq!(free_part(&registry, range(1, 5)), Some(range(1, 1)));
        assert_eq!(purgeable(&registry, 1..=5), [1, 4, 5]);
        let mut registry = Registry::default();
        let first = registry.open(Seqno(1), Seqno(3));
        let _second = registry.open(Seqno(1), Seqno(2));
        assert_eq!(free_part(&registry, range(1, 4)), Some(range(4, 4)));
        assert_eq!(purgeable(&registry, 1..=4), [4]);
        first.move_to(DONE);
        assert_eq!(free_part(&registry, range(1, 4)), Some(range(3, 4)));
        assert_eq!(purgeable(&registry, 1..=4), [3, 4]);
        assert_eq!(free_part(&registry, range(1, 2)), None);
        assert_eq!(purgeable(&registry, 1..=2), [0; 0]);
    }

    #[test]
    fn a_version_is_needed_while_a_reader_that_has_not_passed_it_ends_within_its_life() {
        let mut registry = Registry::default();
        let near = registry.open(Seqno(1), Seqno(10));
        let far = registry.open(Seqno(990), Seqno(1010));
        assert!(registry.needs(Seqno(5), Seqno(11)) && !registry.needs(Seqno(5), Seqno(10)));
        assert!(!registry.needs(Seqno(11), Seqno(2000)), "born after one's end, passed by the other");
        assert!(registry.needs(Seqno(1000), Seqno(2000)));
        near.move_to(Seqno(6));
        assert!(!registry.needs(Seqno(5), Seqno(11)) && registry.needs(Seqno(6), Seqno(11)));
        assert_eq!((registry.passed(0), registry.passed(1)), (Some(range(1, 5)), None));
        registry.settle(0, Seqno(6));
        assert_eq!(registry.passed(0), None);
        near.move_to(DONE);
        far.move_to(DONE);
        registry.forget_done();
        assert_eq!((registry.len(), registry.known()), (0, 2), "there is something behind them");
        assert_eq!((registry.passed(0), registry.passed(1)), (Some(range(6, 10)), Some(range(990, 1010))));
        registry.settle(0, Seqno(8));
        assert_eq!(registry.passed(0), Some(range(8, 10)), "a part of it");
        registry.settle(0, Seqno(11));
        registry.forget_done();
        assert_eq!((registry.known(), registry.passed(0)), (1, Some(range(990, 1010))));
    }

    #[test]
    fn a_reader_in_key_order_needs_the_keys_ahead_of_it() {
        let mut registry = Registry::default();
        let reader = registry.open_by_key(Seqno(10));
        assert!(registry.needs_key(b"a", Seqno(5), Seqno(11)));
        assert_eq!(reader.move_to(b"b"), b"");
        assert!(
            !registry.needs_key(b"a", Seqno(5), Seqno(11)) && registry.needs_key(b"b", Seqno(5), Seqno(11))
        );
        drop(reader);
        assert!(!registry.needs_key(b"b", Seqno(5), Seqno(11)) && registry.has_no_key_readers());
    }
}
