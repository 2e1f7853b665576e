//! The sequence list: one memtable's mutations in seqno order.
//!
//! The owning core appends; a version that a newer one of its key replaces inside the same memtable is retired at once, so
//! what a reader walks has each key once.
//!
//! Invariants
//! - Seqnos rise strictly from head to tail. Gaps are legal: deduplication leaves them.
//!
//! Cost: append O(1) amortised, retire O(1), seek O(log n).
//! Does not know: key order, disk, who reads.

use crate::item::Item;
use crate::types::Seqno;

/// See the module.
#[derive(Debug, Default)]
pub struct SeqList {
    slots: Vec<(Seqno, Option<Item>)>,
}

impl SeqList {
    /// Appends a version and returns its slot.
    ///
    /// # Panics
    /// If its seqno is not above all before.
    pub fn append(&mut self, item: Item) -> u32 {
        let seqno = item.seqno();
        assert!(self.slots.last().is_none_or(|(last, _)| *last < seqno), "seqno {seqno} does not rise");
        self.slots.push((seqno, Some(item)));
        (self.slots.len() - 1) as u32
    }

    /// The version in `slot` was replaced.
    pub fn retire(&mut self, slot: u32) {
        self.slots[slot as usize].1 = None;
    }

    /// The versions from `start` on.
    pub fn range_from(&self, start: Seqno) -> impl Iterator<Item = &Item> {
        let first = self.slots.partition_point(|(seqno, _)| *seqno < start);
        self.slots[first..].iter().filter_map(|(_, item)| item.as_ref())
    }
}
