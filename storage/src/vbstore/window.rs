//! Reading in seqno order from memory, and how much of a vbucket on disk stays there for it.
//!
//! The sequence list of a vbucket on disk is a window: complete from `resident_from` to the high seqno. Its head is let go of by whole segments when what
//! is in them is flushed and the window is larger than its budget; when versions must leave memory, the window's beginning moves behind them first.
//! A reader that has not come as far goes on on disk.
//!
//! Invariants
//! - What is not flushed is in the window.
//! - A version's bytes are booked once, as long as the table or the list has it; once more while it is kept for a reader.
//!
//! Does not know: when to flush, who reads.

use std::rc::Weak;

use super::{State, VbStore};
use crate::item::Item;
use crate::seqlist::{BatchLimits, Progress, RangeReader};
use crate::types::Seqno;

/// A reader in seqno order of a vbucket's versions in memory. What was kept for it goes as it moves on, and when it is dropped.
pub struct SeqnoReading {
    reader: Option<RangeReader>,
    store: Weak<VbStore>,
}

impl std::fmt::Debug for SeqnoReading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.reader.fmt(f)
    }
}

impl Drop for SeqnoReading {
    fn drop(&mut self) {
        self.reader = None;
        if let Some(store) = self.store.upgrade() {
            store.spawn_tidy();
        }
    }
}

impl SeqnoReading {
    fn reader(&self) -> &RangeReader {
        self.reader.as_ref().expect("there until it is dropped")
    }

    /// The last seqno that it may show.
    #[must_use]
    pub fn end(&self) -> Seqno {
        self.reader().end()
    }

    /// The first seqno that a later batch may show.
    #[must_use]
    pub fn position(&self) -> Seqno {
        self.reader().position()
    }

    /// The greatest purged tombstone when it was opened (T4.11).
    #[must_use]
    pub fn purge_seqno(&self) -> Seqno {
        self.reader().purge_seqno()
    }

    /// Memory is complete from here on; what lies before is on disk.
    #[must_use]
    pub fn resident_from(&self) -> Seqno {
        self.reader().resident_from()
    }

    /// See [`RangeReader::next_batch`].
    pub fn next_batch(&mut self, limits: BatchLimits, out: &mut Vec<Item>) -> Progress {
        let progress = self.reader.as_mut().expect("there until it is dropped").next_batch(limits, out);
        self.settle();
        progress
    }

    /// See [`RangeReader::skip_to`].
    pub fn skip_to(&mut self, position: Seqno) {
        if position > self.position() {
            self.reader.as_mut().expect("there until it is dropped").skip_to(position);
            self.settle();
        }
    }

    fn settle(&self) {
        if let Some(store) = self.store.upgrade()
            && store.settle()
        {
            store.spawn_tidy();
        }
    }
}

impl VbStore {
    /// Memory is complete from here on; what lies before is on disk.
    #[must_use]
    pub fn resident_from(&self) -> Seqno {
        self.state.borrow().versions.resident_from()
    }

    /// Opens a reader of the versions in memory, from `start` on, which sees them as they are now. What lies below [`SeqnoReading::resident_from`] is on
    /// disk: [`crate::scan::SeqnoScan`] reads both.
    #[must_use]
    pub fn open_seqnos(&self, start: Seqno) -> SeqnoReading {
        let state = &mut *self.state.borrow_mut();
        let purged = state.purge_seqno();
        let reader = state.versions.open(start, purged);
        SeqnoReading { reader: Some(reader), store: self.weak.clone() }
    }

    /// One slice of giving up what readers have passed; whether there is more.
    pub(super) fn settle(&self) -> bool {
        let (freed, more) = self.state.borrow_mut().versions.settle();
        self.memory.add_resident(-(freed as i64));
        more
    }

    /// Gives up what readers have passed and what the window has too much, in a task of its own.
    pub(super) fn spawn_tidy(&self) {
        let Some(store) = self.weak.upgrade() else { return };
        let core = self.core.clone();
        core.env().spawn("tidy", async move {
            while store.settle() || store.trim_window() {
                crate::epoch::collect();
                store.core.env().relax().await;
            }
        });
    }

    /// Lets go of the flushed head of the window as far as it is above its budget. At most a segment goes; whether there is more to go.
    pub(super) fn trim_window(&self) -> bool {
        let state = &mut *self.state.borrow_mut();
        let flushed = state.version.flushed;
        let has_room = self.memory.has_resident_room(0);
        let budget = if has_room { self.core.options().window_versions_max } else { 0 };
        let Some(head_last) = state.versions.head_last() else { return false };
        if state.versions.len() <= budget || head_last > flushed {
            return false;
        }
        let (freed, _) = state.trim(head_last.next());
        self.memory.add_resident(-(freed as i64));
        state.book_overhead(&self.memory);
        true
    }
}

impl State {
    /// Lets go of the window's head below `from`, a segment at most. Returns the bytes that are free then, and whether there is more to go.
    pub(super) fn trim(&mut self, from: Seqno) -> (usize, bool) {
        let table = &self.table;
        let mut only_here = 0;
        let (kept, more) = self.versions.trim(from, |item| {
            let is_in_table = table.get(item.key()).is_some_and(|found| found.seqno() == item.seqno());
            if !is_in_table {
                only_here += item.resident_bytes();
            }
        });
        (only_here + kept, more)
    }

    /// Takes flushed versions out of memory: the window's beginning moves behind them first. Returns the bytes that are free then.
    pub(super) fn let_go(&mut self, flushed: &[Item]) -> usize {
        let Some(last) = flushed.iter().map(Item::seqno).max() else { return 0 };
        let mut freed = 0;
        loop {
            let (bytes, more) = self.trim(last.next());
            freed += bytes;
            if !more {
                break;
            }
        }
        for item in flushed {
            self.versions.remove_newest(item);
            if self.table.evict(item.key(), item.seqno()).is_some() {
                freed += item.resident_bytes();
            }
        }
        freed
    }
}
