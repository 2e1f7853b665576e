//! Reading a range of the sequence list, on any core: a bounded batch at a time.
//!
//! A reader sees the list as it was when it was opened. Between batches it is parked: it holds two numbers, its end and its position, and nothing
//! else; it pins no epoch. What it can still see stays for it, everything else goes its way.
//!
//! Invariants
//! - Seqnos rise from batch to batch, each key at most once, at its newest version not after the end (T4.6).
//! - Behind its position nothing is kept for it; at the end it has none any more, even if it lives on (T4.7).
//!
//! Cost: a batch is O(log n) and its slots, at most [`SLOTS_MAX`].
//! Does not know: writers, disk.

use std::cell::Cell;
use std::sync::Arc;

use super::Shared;
use super::slot;
use crate::atomic::Ordering;
use crate::epoch::{Node, pin};
use crate::item::Item;
use crate::registry::{DONE, Reader};
use crate::types::Seqno;

/// Most slots that one batch looks at.
pub const SLOTS_MAX: usize = if cfg!(any(loom, shuttle)) { 2 } else { 1024 };

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There may be more.
    More,
    /// Everything up to the reader's end was shown.
    End,
    /// The list begins behind the reader's position by now: what lies before is on disk. Nothing was shown.
    Behind,
    /// The vbucket is gone.
    Gone,
}

/// What a batch may hold.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Versions.
    pub items: usize,
    /// Bytes of their keys and values; one version is always taken.
    pub bytes: usize,
}

impl Default for BatchLimits {
    fn default() -> BatchLimits {
        BatchLimits { items: 256, bytes: 256 << 10 }
    }
}

/// A point-in-time reader of a range. See the module.
#[derive(Debug)]
pub struct RangeReader {
    shared: Arc<Shared>,
    reader: Arc<Reader>,
    purge_seqno: Seqno,
    /// As `reader` has it. Only this moves it, so nothing is loaded to know it (and a model checker sees a store without a load before it).
    position: Cell<Seqno>,
}

impl RangeReader {
    pub(super) fn new(shared: Arc<Shared>, reader: Arc<Reader>, purge_seqno: Seqno) -> RangeReader {
        let position = Cell::new(reader.position());
        RangeReader { shared, reader, purge_seqno, position }
    }

    /// The last seqno that it may show: the high seqno when it was opened.
    #[must_use]
    pub fn end(&self) -> Seqno {
        self.reader.end()
    }

    /// The first seqno that a later batch may show.
    #[must_use]
    pub fn position(&self) -> Seqno {
        self.position.get()
    }

    /// The greatest purged tombstone when it was opened (T4.11).
    #[must_use]
    pub fn purge_seqno(&self) -> Seqno {
        self.purge_seqno
    }

    /// The list is complete from here on; what lies before is on disk.
    #[must_use]
    pub fn resident_from(&self) -> Seqno {
        self.shared.resident_from()
    }

    /// Appends the next versions to `out`, tombstones included, and moves on behind them.
    pub fn next_batch(&mut self, limits: BatchLimits, out: &mut Vec<Item>) -> Progress {
        let mut next = self.position();
        let progress = self.peek(&mut next, limits, out);
        match progress {
            Progress::More => self.move_to(next),
            Progress::End | Progress::Gone => self.finish(),
            Progress::Behind => {}
        }
        progress
    }

    /// Moves on to `position` without looking at what lies before it: somebody else showed it.
    pub fn skip_to(&mut self, position: Seqno) {
        if position > self.position() {
            self.move_to(position);
        }
    }

    /// Appends the versions from `next` on to `out`, and moves `next` behind them, but not the reader: it may be read again from its position.
    pub fn peek(&self, next: &mut Seqno, limits: BatchLimits, out: &mut Vec<Item>) -> Progress {
        let (first, end) = (out.len(), self.reader.end());
        let start = (*next).max(self.position());
        let pin = pin();
        let mut at = start;
        let (mut bytes, mut slots) = (0, 0);
        let directory = self.shared.directory.load(Ordering::Acquire);
        // Pointers are followed anew each time, which costs nothing, so that a model checker finds what is freed in between.
        // SAFETY: it was loaded under the pin, and is retired after another took its place.
        let directory = || (!directory.is_null()).then(|| unsafe { Node::get(directory) });
        let begin = directory().map_or(0, |directory| directory.index_of(start));
        let mut progress = Progress::End;
        'segments: for entry in (begin..).map_while(|index| directory()?.entry(index)) {
            // SAFETY: a segment is retired after the directory that no longer names it was put in place; the epoch is pinned.
            let segment = || unsafe { Node::get(entry.segment) };
            for index in segment().lower_bound(at)..segment().len() {
                let seqno = segment().seqno(index);
                if seqno > end {
                    break 'segments;
                }
                let is_full = out.len() - first >= limits.items || bytes >= limits.bytes;
                if slots == SLOTS_MAX || is_full && out.len() > first {
                    progress = Progress::More;
                    break 'segments;
                }
                slots += 1;
                at = seqno.next();
                // SAFETY: the word is loaded from a slot under the pin.
                let Some(shown) = (unsafe { slot::show(segment().load(index)) }) else { continue };
                // The one visibility rule: born <= end, and not superseded at or before it.
                if shown.superseded.is_none_or(|superseded| superseded > end) {
                    bytes += shown.item.key().len() + shown.item.value().len();
                    out.push(shown.item.clone());
                }
            }
        }
        drop(pin);
        // A list that ends loses its tail: it says so first, and what this looked at may have been shorter than when it began.
        if self.shared.has_ended() {
            out.truncate(first);
            return Progress::Gone;
        }
        // What was trimmed while this looked may be missing in it: trimming raises this number first.
        if start < self.shared.resident_from() && start <= end {
            out.truncate(first);
            return Progress::Behind;
        }
        *next = if progress == Progress::End { end.next() } else { at };
        progress
    }
}

impl RangeReader {
    fn move_to(&self, position: Seqno) {
        self.position.set(position);
        self.reader.move_to(position);
        self.shared.reader_moved();
    }

    /// Nothing is read any more: what was kept for it may go before it is dropped.
    pub(crate) fn finish(&self) {
        self.move_to(DONE);
    }
}

impl Drop for RangeReader {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shared {
    /// Tells the owner that what a reader has passed may go.
    fn reader_moved(&self) {
        // loom does not know that a store comes behind an exchange that has read the store before it; of two exchanges it does.
        if cfg!(loom) {
            self.moved.swap(true, Ordering::Release);
        } else {
            self.moved.store(true, Ordering::Release);
        }
    }
}
