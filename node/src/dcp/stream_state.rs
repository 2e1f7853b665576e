//! The state machine of one producer stream.
//!
//! Invariants
//! - Only the transitions of [`StreamState::may_become`] happen; Dead is final.
//!
//! Does not know: what a transition sends or releases.
//! Source: `spec/scan-and-backfill.md` part 0, "Producer stream".

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// It was accepted and has not begun.
    Pending,
    /// It reads the past.
    Backfilling,
    /// It follows the present.
    InMemory,
    /// It sends what is left before a takeover.
    TakeoverSend,
    /// It waits for the client's answer in a takeover.
    TakeoverWait,
    /// It has ended.
    Dead,
}

impl StreamState {
    /// Every state.
    pub const ALL: [StreamState; 6] = [
        StreamState::Pending,
        StreamState::Backfilling,
        StreamState::InMemory,
        StreamState::TakeoverSend,
        StreamState::TakeoverWait,
        StreamState::Dead,
    ];

    /// Whether `next` is a legal successor.
    #[must_use]
    pub fn may_become(self, next: StreamState) -> bool {
        use StreamState::{Backfilling, Dead, InMemory, Pending, TakeoverSend, TakeoverWait};
        match (self, next) {
            (Dead, _) => false,
            (_, Dead) => true,
            (Pending, Backfilling)
            | (Backfilling, InMemory | TakeoverSend)
            | (InMemory, Backfilling)
            | (TakeoverSend, TakeoverWait)
            | (TakeoverWait, TakeoverSend) => true,
            (Pending | Backfilling | InMemory | TakeoverSend | TakeoverWait, _) => false,
        }
    }

    /// Its name in statistics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            StreamState::Pending => "pending",
            StreamState::Backfilling => "backfilling",
            StreamState::InMemory => "in-memory",
            StreamState::TakeoverSend => "takeover-send",
            StreamState::TakeoverWait => "takeover-wait",
            StreamState::Dead => "dead",
        }
    }

    /// Whether queued messages are discarded when the stream ends now: those of an unfinished backfill are, what was
    /// queued from memory goes out before the end.
    #[must_use]
    pub fn discards_queue_at_end(self) -> bool {
        matches!(self, StreamState::Pending | StreamState::Backfilling)
    }

    /// Changes the state.
    ///
    /// # Errors
    /// The state stays if the transition is not legal: a bug of ours, which the caller reports as an internal error.
    pub fn change(&mut self, to: StreamState) -> Result<(), IllegalTransition> {
        let from = *self;
        if !from.may_become(to) {
            return Err(IllegalTransition { from, to });
        }
        *self = to;
        Ok(())
    }
}

/// A transition that must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stream in {from:?} cannot become {to:?}")]
pub struct IllegalTransition {
    /// Where the stream stands.
    pub from: StreamState,
    /// Where it was to go.
    pub to: StreamState,
}

#[cfg(test)]
mod tests {
    use super::StreamState::{Backfilling, Dead, InMemory, Pending, TakeoverSend, TakeoverWait};
    use super::*;

    /// Part 0: these six and the five ends are legal, nothing else.
    #[test]
    fn only_the_eleven_transitions_of_the_specification_are_legal() {
        let legal = [
            (Pending, Backfilling),
            (Backfilling, InMemory),
            (InMemory, Backfilling),
            (Backfilling, TakeoverSend),
            (TakeoverSend, TakeoverWait),
            (TakeoverWait, TakeoverSend),
            (Pending, Dead),
            (Backfilling, Dead),
            (InMemory, Dead),
            (TakeoverSend, Dead),
            (TakeoverWait, Dead),
        ];
        for from in StreamState::ALL {
            for to in StreamState::ALL {
                let mut state = from;
                let expected = legal.contains(&(from, to));
                let changed = state.change(to);
                assert_eq!(changed.is_ok(), expected, "{from:?} to {to:?}");
                assert_eq!(state, if expected { to } else { from });
                if !expected {
                    assert_eq!(changed, Err(IllegalTransition { from, to }));
                }
            }
        }
    }

    #[test]
    fn only_an_unfinished_backfill_loses_its_queue_at_the_end() {
        let discards: Vec<StreamState> =
            StreamState::ALL.into_iter().filter(|state| state.discards_queue_at_end()).collect();
        assert_eq!(discards, [Pending, Backfilling]);
        assert_eq!(TakeoverWait.name(), "takeover-wait");
    }
}
