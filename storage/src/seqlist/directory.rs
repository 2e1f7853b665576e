//! Which segments there are, in seqno order: an immutable array, replaced as a whole.
//!
//! Cost: replacing copies 16 bytes a segment, once in thousands of writes; a look-up is O(log n).
//! Does not know: what segments hold.

use super::segment::Segment;
use crate::epoch::Node;
use crate::types::Seqno;

/// A segment, and the first seqno it has a slot for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) first: Seqno,
    pub(super) segment: *mut Node<Segment>,
}

// SAFETY: the pointer is followed under the rules of the epoch only; what it points to may be shared.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

/// See the module.
pub(super) struct Directory {
    entries: Box<[Entry]>,
}

impl Directory {
    pub(super) fn new(entries: impl Iterator<Item = Entry>) -> Directory {
        Directory { entries: entries.collect() }
    }

    /// Resident bytes of its entries.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.entries)
    }

    /// The first segment that may have slots at or above `seqno`.
    pub(super) fn index_of(&self, seqno: Seqno) -> usize {
        self.entries.partition_point(|entry| entry.first <= seqno).saturating_sub(1)
    }

    /// The segment with this number.
    pub(super) fn entry(&self, index: usize) -> Option<Entry> {
        self.entries.get(index).copied()
    }
}
