//! Noops: is the client of an idle connection still there? A state machine without a clock.
//!
//! Times count from any fixed point and do not go back.
//!
//! Invariants
//! - At most one noop is unanswered.
//! - A connection is given up only if noops are on and nothing at all arrived for the idle timeout.
//!
//! Does not know: clocks, sockets, the message (`protocol::dcp::signal::encode_noop`).

use std::time::Duration;

/// Interval of noops unless the client sets one.
pub const NOOP_INTERVAL: Duration = Duration::from_secs(20);

/// How long a connection with noops may be silent.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(360);

/// Opaque of a connection's first noop.
const FIRST_OPAQUE: u32 = 10_000_001;

/// The noops of one producer connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoopTimer {
    enabled: bool,
    interval: Duration,
    idle_timeout: Duration,
    last_sent: Duration,
    last_received: Duration,
    next_opaque: u32,
    unanswered: Option<u32>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoopAction {
    /// Nothing; ask again at this time, or when the settings change if there is none.
    Wait(Option<Duration>),
    /// Send a noop with this opaque.
    Send {
        /// The opaque, which the answer has too.
        opaque: u32,
    },
    /// Close the connection: the client is gone.
    Disconnect,
}

impl NoopTimer {
    /// Noops of a connection that was opened at `now`; off.
    #[must_use]
    pub fn new(idle_timeout: Duration, now: Duration) -> NoopTimer {
        NoopTimer {
            enabled: false,
            interval: NOOP_INTERVAL,
            idle_timeout,
            last_sent: now,
            last_received: now,
            next_opaque: FIRST_OPAQUE,
            unanswered: None,
        }
    }

    /// Turns noops on or off; the idle time counts from `now` when they come on.
    pub fn enable(&mut self, on: bool, now: Duration) {
        if on && !self.enabled {
            self.last_received = self.last_received.max(now);
            self.last_sent = self.last_sent.max(now);
        }
        self.enabled = on;
    }

    /// Sets the interval.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Whether noops are on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Bytes arrived, of whatever kind.
    pub fn received(&mut self, now: Duration) {
        self.last_received = self.last_received.max(now);
    }

    /// A noop was answered. Returns whether it was the one that was waited for.
    pub fn answered(&mut self, opaque: u32) -> bool {
        let is_it = self.unanswered == Some(opaque);
        if is_it {
            self.unanswered = None;
        }
        is_it
    }

    /// What is to be done now. A noop that is returned counts as sent.
    pub fn poll(&mut self, now: Duration) -> NoopAction {
        if !self.enabled {
            return NoopAction::Wait(None);
        }
        let gone_at = self.last_received.saturating_add(self.idle_timeout);
        if now >= gone_at {
            return NoopAction::Disconnect;
        }
        if self.unanswered.is_some() {
            return NoopAction::Wait(Some(gone_at));
        }
        let due_at = self.last_sent.saturating_add(self.interval);
        if now < due_at {
            return NoopAction::Wait(Some(due_at.min(gone_at)));
        }
        let opaque = self.next_opaque;
        self.next_opaque = opaque.wrapping_add(1);
        self.unanswered = Some(opaque);
        self.last_sent = now;
        NoopAction::Send { opaque }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn enabled(now: Duration) -> NoopTimer {
        let mut timer = NoopTimer::new(IDLE_TIMEOUT, now);
        timer.enable(true, now);
        timer
    }

    #[test]
    fn a_noop_goes_out_every_interval_if_the_last_one_was_answered() {
        let mut timer = enabled(at(100));
        assert_eq!(timer.poll(at(100)), NoopAction::Wait(Some(at(120))));
        assert_eq!(timer.poll(at(120)), NoopAction::Send { opaque: 10_000_001 });
        assert_eq!(timer.poll(at(140)), NoopAction::Wait(Some(at(460))), "unanswered, so no other");
        assert!(!timer.answered(7) && timer.answered(10_000_001) && !timer.answered(10_000_001));
        assert_eq!(timer.poll(at(141)), NoopAction::Send { opaque: 10_000_002 });
        timer.set_interval(Duration::from_millis(100));
        assert!(timer.answered(10_000_002));
        assert_eq!(timer.poll(at(142)), NoopAction::Send { opaque: 10_000_003 });
    }

    #[test]
    fn only_complete_silence_ends_a_connection_and_only_with_noops_on() {
        let mut timer = NoopTimer::new(IDLE_TIMEOUT, at(0));
        assert_eq!(timer.poll(at(100_000)), NoopAction::Wait(None), "off");
        timer.enable(true, at(100_000));
        assert_eq!(timer.poll(at(100_020)), NoopAction::Send { opaque: 10_000_001 });
        timer.received(at(100_300));
        assert_eq!(timer.poll(at(100_659)), NoopAction::Wait(Some(at(100_660))), "something else arrived");
        assert_eq!(timer.poll(at(100_660)), NoopAction::Disconnect);
        timer.enable(false, at(100_660));
        assert_eq!(timer.poll(at(200_000)), NoopAction::Wait(None));
        assert!(!timer.is_enabled());
    }

    proptest! {
        /// Polled whenever it asks to be, with answers after any delay: never two noops unanswered, never two closer
        /// than the interval, and no disconnect while something arrives within the timeout.
        #[test]
        fn noops_keep_their_distance_and_a_client_that_answers_in_time_stays(
            interval_ms in 100_u64..400_000,
            delays_ms in proptest::collection::vec(0_u64..360_000, 1..40),
        ) {
            let interval = Duration::from_millis(interval_ms);
            let mut timer = enabled(Duration::ZERO);
            timer.set_interval(interval);
            let (mut now, mut last_sent) = (Duration::ZERO, Duration::ZERO);
            for delay in delays_ms {
                let opaque = loop {
                    match timer.poll(now) {
                        NoopAction::Send { opaque } => break opaque,
                        NoopAction::Wait(Some(next)) => {
                            prop_assert!(next > now);
                            now = next;
                        }
                        NoopAction::Wait(None) => prop_assert!(false, "it is on"),
                        NoopAction::Disconnect => {
                            // Nothing arrived for the whole timeout: only with a longer interval.
                            prop_assert!(interval >= IDLE_TIMEOUT);
                            return Ok(());
                        }
                    }
                };
                prop_assert!(now - last_sent >= interval);
                last_sent = now;
                prop_assert!(matches!(timer.poll(now), NoopAction::Wait(Some(_))));
                let answered_at = now + Duration::from_millis(delay);
                if answered_at >= timer.last_received + IDLE_TIMEOUT {
                    prop_assert_eq!(timer.poll(answered_at), NoopAction::Disconnect);
                    return Ok(());
                }
                now = answered_at;
                timer.received(now);
                prop_assert!(timer.answered(opaque));
            }
        }
    }
}
