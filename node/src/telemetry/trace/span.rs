//! The spans that are alive: who they are and how many hold them.
//!
//! Invariants
//! - An id is never given twice: a slot's generation rises when its span is closed, so an old id finds nothing.
//! - There are at most [`SPANS_MAX`] at a time; who wants more gets none.
//!
//! Cost: making and closing a span touches its slot and the thread's own list of free slots. The table is made when the first span is.
//!
//! Does not know: what is recorded of a span.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Spans alive at a time, at most.
pub const SPANS_MAX: usize = 1 << 15;

/// Free slots that a thread takes from the others, or leaves to them, at a time.
const BATCH: usize = 64;

/// The id of a span that nobody wants.
pub(super) const NOTHING: u64 = u64::MAX;

/// One span.
#[derive(Debug, Default)]
pub(super) struct LiveSpan {
    generation: AtomicU32,
    holders: AtomicU32,
    /// The recording that it belongs to, 0 if it is in none.
    pub(super) session: AtomicU32,
    pub(super) callsite: AtomicU64,
    pub(super) begin_ns: AtomicU64,
    pub(super) flow: AtomicU64,
    /// How often it was entered.
    pub(super) enters: AtomicU32,
    /// Its id in the log, 0 if the log has none.
    pub(super) log_id: AtomicU64,
}

impl LiveSpan {
    /// One more holds it.
    pub(super) fn hold(&self) {
        self.holders.fetch_add(1, Relaxed);
    }

    /// One less; true if that was the last.
    pub(super) fn let_go(&self) -> bool {
        // As for an `Arc`: what others did with the span happened before its end.
        let is_last = self.holders.fetch_sub(1, Release) == 1;
        if is_last {
            fence(Acquire);
        }
        is_last
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SpanTable {
    slots: OnceLock<Box<[LiveSpan]>>,
    /// Slots that no thread has taken yet begin here.
    fresh: AtomicU32,
    /// Slots that threads have left.
    left: Mutex<Vec<u32>>,
}

impl SpanTable {
    fn slots(&self) -> &[LiveSpan] {
        self.slots.get_or_init(|| (0..SPANS_MAX).map(|_| LiveSpan::default()).collect())
    }

    /// The span with this id, if it is alive.
    #[inline]
    pub(super) fn get(&self, id: u64) -> Option<&LiveSpan> {
        let index = (id as u32).checked_sub(1)?;
        let span = self.slots.get()?.get(index as usize)?;
        (span.generation.load(Relaxed) == (id >> 32) as u32).then_some(span)
    }

    /// A new span, held once.
    #[inline]
    pub(super) fn take(&self, free: &mut Vec<u32>) -> Option<(u64, &LiveSpan)> {
        if free.is_empty() {
            self.refill(free);
        }
        let index = free.pop()?;
        let span = self.slots().get(index as usize)?;
        span.holders.store(1, Relaxed);
        let id = u64::from(span.generation.load(Relaxed)) << 32 | u64::from(index + 1);
        Some((id, span))
    }

    /// The span with this id is closed.
    #[inline]
    pub(super) fn free(&self, id: u64, free: &mut Vec<u32>) {
        let Some(span) = self.get(id) else { return };
        span.generation.fetch_add(1, Relaxed);
        free.push(id as u32 - 1);
        if free.len() >= 2 * BATCH {
            self.leave(free.drain(BATCH..));
        }
    }

    /// A thread leaves free slots to the others.
    pub(super) fn leave(&self, slots: impl Iterator<Item = u32>) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).extend(slots);
    }

    #[cold]
    fn refill(&self, free: &mut Vec<u32>) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let from = left.len().saturating_sub(BATCH);
        free.extend(left.drain(from..));
        if free.is_empty() {
            let first = self.fresh.load(Relaxed);
            let end = (first + BATCH as u32).min(SPANS_MAX as u32);
            self.fresh.store(end, Relaxed);
            free.extend(first..end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_never_given_twice_and_an_old_one_finds_nothing() {
        let (table, mut free) = (SpanTable::default(), Vec::new());
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1_000 {
            let (id, span) = table.take(&mut free).unwrap();
            assert!(seen.insert(id) && table.get(id).is_some());
            span.hold();
            assert!(!span.let_go() && span.let_go());
            table.free(id, &mut free);
            assert!(table.get(id).is_none());
        }
        assert!(table.get(NOTHING).is_none() && table.get(0).is_none());
    }

    #[test]
    fn the_table_is_bounded_and_slots_of_one_thread_serve_another() {
        let (table, mut here, mut there) = (SpanTable::default(), Vec::new(), Vec::new());
        let ids: Vec<u64> = std::iter::from_fn(|| table.take(&mut here)).map(|(id, _)| id).collect();
        assert_eq!(ids.len(), SPANS_MAX);
        assert!(table.take(&mut there).is_none());
        for id in ids {
            table.free(id, &mut here);
        }
        assert!(here.len() < 2 * BATCH);
        table.leave(here.drain(..));
        assert_eq!(std::iter::from_fn(|| table.take(&mut there)).count(), SPANS_MAX);
    }
}
