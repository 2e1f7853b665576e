//! The face of [`crate::epoch`] over crossbeam-epoch.
//!
//! Does not know: what is freed.

use std::cell::Cell;

use super::RETIRED_BYTES_MAX;

thread_local! {
    /// Things that this thread has retired and not handed over, and their bytes.
    static RETIRED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
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
    RETIRED.set((0, 0));
    for _ in 0..COLLECT_ROUNDS {
        crossbeam_epoch::pin().flush();
    }
}

/// Bytes that this thread has retired and not handed over.
#[cfg(test)]
pub(crate) fn retired_bytes() -> usize {
    RETIRED.get().1
}

impl Pin {
    /// Drops `garbage`, which takes about `bytes` of memory, when every pin that is live now is gone. New pins cannot reach it any more: that is for the
    /// caller to see to.
    #[inline]
    pub fn retire<T: Send + 'static>(&self, garbage: T, bytes: usize) {
        self.0.defer(move || drop(garbage));
        let (items, retired_bytes) = RETIRED.get();
        let (items, retired_bytes) = (items + 1, retired_bytes + bytes);
        if retired_bytes < RETIRED_BYTES_MAX && items < RETIRED_ITEMS_MAX {
            RETIRED.set((items, retired_bytes));
        } else {
            RETIRED.set((0, 0));
            self.0.flush();
        }
    }
}
