//! Giving free memory back to the system.
//!
//! The allocator of the C library keeps what is freed in the middle of its heaps. After a bucket was emptied or deleted that may be most of what the
//! process has, so it is asked to give whole free pages back, on a thread of its own: it takes a millisecond for about ten megabytes.
//!
//! Invariants
//! - At most one such thread runs, and one that came meanwhile runs after it.
//!
//! Does not know: who freed what.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const AGAIN: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Gives free memory back to the system soon.
pub(super) fn give_back() {
    if STATE.swap(AGAIN, Ordering::AcqRel) != IDLE {
        return;
    }
    let started = std::thread::Builder::new().name("give memory back".into()).spawn(|| {
        loop {
            STATE.store(RUNNING, Ordering::Release);
            // SAFETY: it has no preconditions and may run on any thread at any time.
            unsafe { libc::malloc_trim(0) };
            if STATE.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
        }
    });
    if started.is_err() {
        STATE.store(IDLE, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_while_it_runs_is_served_and_it_comes_to_an_end() {
        for _ in 0..20 {
            give_back();
        }
        let started = std::time::Instant::now();
        while STATE.load(Ordering::Acquire) != IDLE {
            assert!(started.elapsed().as_secs() < 60, "it does not end");
            std::thread::yield_now();
        }
    }
}
