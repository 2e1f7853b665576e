//! What the requests of a burst share: clock readings, two when it begins and one when it ends, and a pin.
//!
//! Invariants
//! - Every request that is answered within the burst is recorded once, at its end: that is when the answers leave.
//! - What was retired within it is freed after it; it is short.
//!
//! Cost: three readings and a pin a burst; a compare and an addition a request.
//! Does not know: what is executed, requests that are answered later.

use std::cell::{Cell, RefCell};

use ringbase_storage::env::Env;
use ringbase_storage::epoch::{Pin, pin};

use crate::core::host::{HeldWallClock, hold_wall_clock};
use crate::protocol::Opcode;
use crate::telemetry::CoreTimings;

/// See the module. A core executes one burst at a time.
#[derive(Default)]
pub(super) struct Burst {
    /// When the burst that is being executed had been read.
    received_ns: Cell<Option<u64>>,
    /// How many requests of each opcode have been answered; at most one entry an opcode.
    answered: RefCell<Vec<(Opcode, u64)>>,
    wall: Cell<Option<HeldWallClock>>,
    /// The pins of its reads and writes lie within this one and cost little.
    pin: Cell<Option<Pin>>,
}

impl Burst {
    pub(super) fn begin(&self, env: &Env) {
        self.received_ns.set(Some(env.clock.monotonic_ns()));
        self.wall.set(Some(hold_wall_clock()));
        self.pin.set(Some(pin()));
    }

    /// When a request that is executed now had been read.
    #[inline]
    pub(super) fn received_ns(&self, env: &Env) -> u64 {
        self.received_ns.get().unwrap_or_else(|| env.clock.monotonic_ns())
    }

    /// Counts a request that has been answered now; false if it is not one of a burst that is being executed.
    #[inline]
    pub(super) fn counts(&self, opcode: Opcode, received_ns: u64) -> bool {
        if self.received_ns.get() != Some(received_ns) {
            return false;
        }
        let mut answered = self.answered.borrow_mut();
        match answered.iter_mut().find(|(other, _)| *other == opcode) {
            Some((_, count)) => *count += 1,
            None => answered.push((opcode, 1)),
        }
        true
    }

    pub(super) fn end(&self, env: &Env, timings: &CoreTimings) {
        self.wall.set(None);
        self.pin.set(None);
        let Some(received_ns) = self.received_ns.take() else { return };
        let mut answered = self.answered.borrow_mut();
        if answered.is_empty() {
            return;
        }
        let took_ns = env.clock.monotonic_ns().saturating_sub(received_ns);
        for (opcode, count) in answered.drain(..) {
            timings.record_requests(opcode, took_ns, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::executor::tests::on_one_core;
    use crate::core::host;

    #[test]
    fn every_request_answered_in_a_burst_is_recorded_once_and_others_are_not_counted() {
        on_one_core(|| async {
            let (env, timings, burst) = (host::env(), CoreTimings::default(), Burst::default());
            assert!(!burst.counts(Opcode::GET, 7), "no burst is being executed");
            burst.begin(&env);
            let received_ns = burst.received_ns(&env);
            for opcode in [Opcode::GET, Opcode::SET, Opcode::GET] {
                assert!(burst.counts(opcode, received_ns));
            }
            assert!(!burst.counts(Opcode::GET, received_ns.wrapping_sub(1)), "it was read earlier");
            assert!(timings.snapshot().is_empty(), "the answers have not left");
            burst.end(&env, &timings);
            burst.begin(&env);
            burst.end(&env, &timings);
            let recorded: Vec<(String, u64)> =
                timings.snapshot().into_iter().map(|named| (named.name, named.histogram.len())).collect();
            assert_eq!(recorded, [("request_get".to_owned(), 2), ("request_set".to_owned(), 1)]);
        });
    }
}
