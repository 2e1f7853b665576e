//! The face of [`crate::epoch`] over crossbeam-epoch.
//!
//! Does not know: what is freed.

use std::cell::Cell;

use super::RETIRED_BYTES_MAX;

thread_local! {
    static RETIRED_BYTES: Cell<usize> = const { Cell::new(0) };
    static RETIRED_ITEMS: Cell<usize> = const { Cell::new(0) };
}

/// Things retired before they are handed over. A hand-over frees up to 500 of those whose time has come, so it keeps up, also with a thread that
/// is always pinned when it retires and takes no part otherwise.
const RETIRED_ITEMS_MAX: usize = 128;

/// Rounds that free all that a slice of work has retired, if nobody is pinned: the epoch must move on twice, and a round frees about 500 things.
const COLLECT_ROUNDS: usize = 12;

/// While it lives, nothing that was reachable when it began is freed. It stays on its thread.
#[derive(Debug)]
pub struct Pin(crossbeam_epoch::Guard);

/// Pins this thread. A pin within a pin is cheap.
#[must_use]
#[inline]
pub fn pin() -> Pin {
    Pin(crossbeam_epoch::pin())
}

/// Hands over what this thread has retired, and frees what may be freed now.
pub fn collect() {
    RETIRED_BYTES.set(0);
    RETIRED_ITEMS.set(0);
    for _ in 0..COLLECT_ROUNDS {
        crossbeam_epoch::pin().flush();
    }
}

/// What this thread has retired and not handed over.
#[cfg(test)]
pub(crate) fn retired_bytes() -> usize {
    RETIRED_BYTES.get()
}

impl Pin {
    /// Drops `garbage`, which takes about `bytes` of memory, when every pin that is live now is gone. New pins cannot reach it any more: that is for the
    /// caller to see to.
    #[inline]
    pub fn retire<T: Send + 'static>(&self, garbage: T, bytes: usize) {
        self.0.defer(move || drop(garbage));
        let (retired, items) = (RETIRED_BYTES.get() + bytes, RETIRED_ITEMS.get() + 1);
        if retired < RETIRED_BYTES_MAX && items < RETIRED_ITEMS_MAX {
            RETIRED_BYTES.set(retired);
            RETIRED_ITEMS.set(items);
        } else {
            RETIRED_BYTES.set(0);
            RETIRED_ITEMS.set(0);
            self.0.flush();
        }
    }
}
