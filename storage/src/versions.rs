//! The resident versions of one vbucket in order: by seqno always, by key while somebody scans, and what is kept of older ones for readers.
//!
//! A write appends to the sequence list and asks the registry whether a reader can still see the version that it replaces. None, the usual case: it is
//! taken out. Else it is kept until the readers that need it have passed it or ended. No write waits or fails because of a reader, and nothing
//! else is kept.
//!
//! Invariants
//! - A kept version is needed by some live reader, or a reader that needed it has just moved and [`Versions::settle`] has not come to it (T4.15, T4.16).
//! - The key index, complete, holds the newest version of every key.
//!
//! Cost: a write O(log n) and one test a reader.
//! Does not know: the hash table, disk, accounts of memory.

mod keys;

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::item::Item;
use crate::keyindex::KeyIndex;
use crate::mutant::{Mutant, is_on};
use crate::registry::{KeyReader, Registry};
use crate::seqlist::{RangeReader, SeqList, Taken};
use crate::types::Seqno;

/// Versions that one slice of building, purging or reclaiming looks at.
pub const SLICE: usize = 256;

/// A version that a newer one replaced, and who has it.
#[derive(Debug)]
struct Kept {
    item: Item,
    superseded: Seqno,
    /// A reader in seqno order needs it: it is in its slot.
    in_list: bool,
    /// A reader in key order needs it.
    by_key: bool,
}

/// How far the key index is.
#[derive(Debug, Default)]
enum Index {
    /// There is none.
    #[default]
    Absent,
    /// Everything below this seqno is in it, and everything written since it was begun.
    Building(Seqno, KeyIndex),
    /// It is complete.
    Complete(KeyIndex),
}

/// What became of a version that was replaced.
#[derive(Debug)]
pub struct Replaced {
    /// The version.
    pub item: Item,
    /// Whether it stays for a reader.
    pub kept: bool,
}

/// Numbers for statistics (T4.14).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct VersionsStats {
    /// Versions in seqno order, kept ones included.
    pub versions: u64,
    /// Versions kept for readers.
    pub stale: u64,
    /// Bytes of their values.
    pub stale_value_bytes: u64,
    /// Bytes of all else of them.
    pub stale_meta_bytes: u64,
    /// Versions kept and given up again, and tombstones purged, since the start.
    pub purged: u64,
    /// The tombstones among them.
    pub purged_tombstones: u64,
    /// Live readers.
    pub readers: u64,
    /// From the lowest position to the highest end of the readers in seqno order; 0 and 0 if there is none.
    pub range_read_begin: u64,
    /// See `range_read_begin`.
    pub range_read_end: u64,
    /// The list is complete from here on.
    pub resident_from: u64,
    /// Bytes of the key index beside the versions; 0 if there is none.
    pub index_bytes: u64,
    /// Bytes of the list beside the versions.
    pub list_bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Versions {
    list: SeqList,
    registry: Registry,
    index: Index,
    index_used_ns: u64,
    kept: BTreeMap<Seqno, Kept>,
    kept_by_key: BTreeMap<Box<[u8]>, Vec<Seqno>>,
    /// A slice of settling has ended before it had looked at all that readers have passed.
    is_unsettled: bool,
    stats: VersionsStats,
}

impl Versions {
    /// Those of a vbucket that has written up to `high`, which lies on disk.
    #[must_use]
    pub fn new(high: Seqno) -> Versions {
        Versions { list: SeqList::new(high), ..Versions::default() }
    }

    /// See [`SeqList::foresee`].
    #[inline]
    pub fn foresee(&self, former: Seqno) {
        self.list.foresee(former);
    }

    /// Takes in a version, which replaces the one with the seqno `former` (0 for none). Returns that one, if it is in the list.
    pub fn take(&mut self, item: &Item, former: Seqno) -> Option<Replaced> {
        self.list.append(item.clone());
        if let Index::Building(_, index) | Index::Complete(index) = &mut self.index {
            index.put(item.clone());
        }
        if former == Seqno(0) {
            return None;
        }
        let superseded = item.seqno();
        let asks = !is_on(Mutant::ForgetReaders);
        let in_list = asks && self.registry.needs(former, superseded);
        // A tombstone shows nothing in key order, and neither does its absence.
        let by_key = asks && self.registry.needs_key(item.key(), former, superseded);
        let item = self.list.replace(former, superseded, in_list)?;
        let by_key = by_key && !item.is_deleted();
        if !in_list && !by_key {
            return Some(Replaced { item, kept: false });
        }
        let value_bytes = item.value().len();
        self.stats.stale += 1;
        self.stats.stale_value_bytes += value_bytes as u64;
        self.stats.stale_meta_bytes += (item.resident_bytes() - value_bytes) as u64;
        if by_key {
            self.kept_by_key.entry(item.key().into()).or_default().push(former);
        }
        self.kept.insert(former, Kept { item: item.clone(), superseded, in_list, by_key });
        Some(Replaced { item, kept: true })
    }

    /// Opens a reader from `start` on, which sees the list as it is now.
    pub fn open(&mut self, start: Seqno, purge_seqno: Seqno) -> RangeReader {
        let reader = self.registry.open(start, self.list.last());
        self.list.open(reader, purge_seqno)
    }

    /// Gives up what was kept for readers that have moved on or ended, at most a slice of it. Returns the bytes, and whether there is more to look at.
    pub fn settle(&mut self) -> (usize, bool) {
        if !self.list.take_moved() && !self.is_unsettled {
            return (0, false);
        }
        self.is_unsettled = false;
        let (mut freed, mut left) = (0, SLICE);
        // Each reader is asked once: one that moves all the time on another core does not hold its owner up.
        for index in 0..self.registry.known() {
            let Some(passed) = self.registry.passed(index) else { continue };
            let slice: Vec<Seqno> =
                self.kept.range(passed.clone()).take(left).map(|(born, _)| *born).collect();
            left -= slice.len();
            freed += slice.iter().map(|born| self.release(*born)).sum::<usize>();
            if left == 0 {
                self.registry.settle(index, slice.last().map_or(*passed.start(), |last| last.next()));
                self.is_unsettled = true;
                break;
            }
            self.registry.settle(index, passed.end().next());
        }
        self.registry.forget_done();
        (freed, self.is_unsettled)
    }

    /// Gives up a kept version as far as no reader needs it any more. Returns the bytes that are free then.
    fn release(&mut self, born: Seqno) -> usize {
        let Some(kept) = self.kept.get_mut(&born) else { return 0 };
        if kept.in_list && !self.registry.needs(born, kept.superseded) {
            kept.in_list = false;
            self.list.take(born);
        }
        if kept.by_key && !self.registry.needs_key(kept.item.key(), born, kept.superseded) {
            kept.by_key = false;
            if let Some(versions) = self.kept_by_key.get_mut(kept.item.key()) {
                versions.retain(|version| *version != born);
                if versions.is_empty() {
                    self.kept_by_key.remove(kept.item.key());
                }
            }
        }
        if kept.in_list || kept.by_key {
            return 0;
        }
        self.kept.remove(&born).map_or(0, |kept| self.forget(&kept.item))
    }

    fn forget(&mut self, item: &Item) -> usize {
        let (bytes, value_bytes) = (item.resident_bytes(), item.value().len());
        self.stats.stale -= 1;
        self.stats.stale_value_bytes -= value_bytes as u64;
        self.stats.stale_meta_bytes -= (bytes - value_bytes) as u64;
        self.stats.purged += 1;
        bytes
    }

    /// The newest version with exactly this seqno.
    #[must_use]
    pub fn at(&self, seqno: Seqno) -> Option<Item> {
        self.list.get(seqno)
    }

    /// A version with exactly this seqno, be it kept for a reader.
    #[must_use]
    pub fn at_or_kept(&self, seqno: Seqno) -> Option<Item> {
        self.at(seqno).or_else(|| self.kept.get(&seqno).map(|kept| kept.item.clone()))
    }

    /// Shows the newest versions from `from` on, looking at `slots` slots at most, and returns the seqno to go on from; `None` at the end.
    pub fn visit(&self, from: Seqno, slots: usize, visit: impl FnMut(&Item)) -> Option<Seqno> {
        self.list.visit(from, slots, visit)
    }

    /// Takes out a version that nothing replaces and nobody asks for any more (a tombstone, a document of a dropped collection), unless a reader can
    /// still see it: then it stays. Returns whether it is gone.
    pub fn purge(&mut self, item: &Item) -> bool {
        let seqno = item.seqno();
        if !is_on(Mutant::ForgetReaders) && self.registry.needs(seqno, Seqno(u64::MAX)) {
            return false;
        }
        self.remove_newest(item);
        self.stats.purged += 1;
        self.stats.purged_tombstones += u64::from(item.is_deleted());
        true
    }

    /// Takes out a newest version, whoever reads.
    pub fn remove_newest(&mut self, item: &Item) {
        self.list.take(item.seqno());
        if let Index::Building(_, index) | Index::Complete(index) = &mut self.index {
            index.remove(item.key(), item.seqno());
        }
    }

    /// Lets go of the list's head: what lies below `from` is on disk. At most a segment goes, and each newest version in it is shown to `gone`. Returns
    /// the bytes of kept versions that went with it, and whether there is more to go.
    pub fn trim(&mut self, from: Seqno, mut gone: impl FnMut(Item)) -> (usize, bool) {
        let mut stale = Vec::new();
        let more = self.list.trim(from, |Taken { item, was_stale }| {
            if was_stale {
                stale.push(item);
            } else {
                gone(item);
            }
        });
        let mut freed = 0;
        for item in stale {
            // A vbucket on disk has no readers in key order in memory.
            if self.kept.remove(&item.seqno()).is_some() {
                freed += self.forget(&item);
            }
        }
        (freed, more)
    }

    /// The list is complete from here on.
    #[must_use]
    pub fn resident_from(&self) -> Seqno {
        self.list.resident_from()
    }

    /// See [`SeqList::head_last`].
    #[must_use]
    pub fn head_last(&self) -> Option<Seqno> {
        self.list.head_last()
    }

    /// Versions in the list, kept ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Resident bytes of list and key index, the versions apart.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.list.bytes() + self.index_bytes()
    }

    /// Ends all readers and lets go of everything, a segment or a slice of what else there is a call; returns whether there is more.
    pub fn drain_slice(&mut self) -> bool {
        if self.list.drain_slice() {
            return true;
        }
        for _ in 0..SLICE {
            let is_indexed = match &mut self.index {
                Index::Absent => false,
                Index::Building(_, index) | Index::Complete(index) => index.pop(),
            };
            let kept = self.kept.pop_first();
            if let Some((_, kept)) = &kept {
                self.kept_by_key.remove(kept.item.key());
                self.forget(&kept.item);
            }
            if !is_indexed && kept.is_none() {
                self.index = Index::Absent;
                return false;
            }
        }
        true
    }

    /// The numbers.
    #[must_use]
    pub fn stats(&self) -> VersionsStats {
        let range = self.registry.union();
        let by_key_only = self.kept.values().filter(|kept| !kept.in_list).count();
        VersionsStats {
            versions: (self.list.len() + by_key_only) as u64,
            readers: self.registry.len() as u64,
            range_read_begin: range.as_ref().map_or(0, |range| range.start().0),
            range_read_end: range.as_ref().map_or(0, |range| range.end().0),
            resident_from: self.list.resident_from().0,
            index_bytes: self.index_bytes() as u64,
            list_bytes: self.list.bytes() as u64,
            ..self.stats
        }
    }

    fn index_bytes(&self) -> usize {
        match &self.index {
            Index::Absent => 0,
            Index::Building(_, index) | Index::Complete(index) => index.bytes(),
        }
    }
}

/// Shared with whoever scans in key order; see [`Versions::open_by_key`].
pub type KeyReaderHandle = Rc<KeyReader>;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
