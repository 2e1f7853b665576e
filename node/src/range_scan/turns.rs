//! How many scans of a core read at the same moment; others wait for a turn.
//!
//! A turn is taken for one buffer, so a scan whose client is slow holds none.
//!
//! Does not know: scans, buffers.

use std::cell::Cell;

use ringbase_storage::sync::Event;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Cell<usize>,
    waiting: Cell<usize>,
    changed: Event,
}

/// A turn; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Turns);

/// Counts one who waits.
struct InLine<'a>(&'a Turns);

impl Turns {
    /// Waits for a turn while `wanted` holds; `None` if it no longer does. `max` says how many there are now.
    pub(super) async fn take(&self, max: impl Fn() -> usize, wanted: impl Fn() -> bool) -> Option<Turn<'_>> {
        let is_free = || self.taken.get() < max();
        if wanted() && !is_free() {
            self.waiting.set(self.waiting.get() + 1);
            let _in_line = InLine(self);
            self.changed.until(|| is_free() || !wanted()).await;
        }
        if !wanted() {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Turn(self))
    }

    /// The number of turns, or who wants one, has changed.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Turns taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.get()
    }

    /// Scans in line.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get() - 1);
        if self.0.waiting.get() > 0 {
            self.0.notify();
        }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};
    use std::pin::pin;

    #[test]
    fn one_more_than_there_are_turns_waits_and_gets_the_next_or_gives_up() {
        let turns = Turns::default();
        let max = Cell::new(1);
        let wanted = Cell::new(true);
        let first = block_on(turns.take(|| max.get(), || true)).unwrap();
        let mut second = pin!(turns.take(|| max.get(), || true));
        let mut third = pin!(turns.take(|| max.get(), || wanted.get()));
        assert!(block_on(poll_once(second.as_mut())).is_none());
        assert!(block_on(poll_once(third.as_mut())).is_none());
        assert_eq!((turns.taken(), turns.waiting()), (1, 2));
        wanted.set(false);
        turns.notify();
        assert!(matches!(block_on(poll_once(third.as_mut())), Some(None)));
        drop(first);
        let taken = block_on(poll_once(second.as_mut())).unwrap();
        assert!(taken.is_some());
        assert_eq!((turns.taken(), turns.waiting()), (1, 0));
        max.set(2);
        assert!(block_on(turns.take(|| max.get(), || true)).is_some());
    }
}
