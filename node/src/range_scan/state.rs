//! The state machine of one scan.
//!
//! Invariants
//! - Only the transitions of [`ScanState::may_become`] happen; Completed and Cancelled are final.
//!
//! Does not know: what a transition releases or answers.
//! Source: `spec/scan-and-backfill.md` part 0, "RangeScan".

use std::cell::Cell;

/// Where a scan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanState {
    /// It waits for a continue; it holds its position and its snapshot.
    Idle,
    /// A continue runs.
    Continuing,
    /// The end of the range was delivered.
    Completed,
    /// It was cancelled, failed or grew too old.
    Cancelled,
}

impl ScanState {
    /// Whether `next` is a legal successor.
    #[must_use]
    pub fn may_become(self, next: ScanState) -> bool {
        use ScanState::{Cancelled, Completed, Continuing, Idle};
        matches!((self, next), (Idle, Continuing | Cancelled) | (Continuing, Idle | Completed | Cancelled))
    }

    /// Its name in statistics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ScanState::Idle => "State::Idle",
            ScanState::Continuing => "State::Continuing",
            ScanState::Completed => "State::Completed",
            ScanState::Cancelled => "State::Cancelled",
        }
    }
}

/// A transition that must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a range scan in {from:?} cannot become {to:?}")]
pub struct IllegalTransition {
    /// Where the scan stands.
    pub from: ScanState,
    /// Where it was to go.
    pub to: ScanState,
}

/// The state of one scan; starts Idle.
#[derive(Debug)]
pub(super) struct StateCell(Cell<ScanState>);

impl StateCell {
    pub(super) fn new() -> StateCell {
        StateCell(Cell::new(ScanState::Idle))
    }

    pub(super) fn get(&self) -> ScanState {
        self.0.get()
    }

    /// Changes the state.
    ///
    /// # Errors
    /// The state stays if the transition is not legal: a bug of ours, which the caller reports as an internal error.
    pub(super) fn change(&self, to: ScanState) -> Result<(), IllegalTransition> {
        let from = self.0.get();
        if !from.may_become(to) {
            return Err(IllegalTransition { from, to });
        }
        self.0.set(to);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::ScanState::{Cancelled, Completed, Continuing, Idle};
    use super::*;

    /// Part 0: exactly these five transitions are legal.
    #[test]
    fn only_the_five_transitions_of_the_specification_are_legal() {
        let legal = [
            (Idle, Continuing),
            (Idle, Cancelled),
            (Continuing, Idle),
            (Continuing, Completed),
            (Continuing, Cancelled),
        ];
        let all = [Idle, Continuing, Completed, Cancelled];
        for from in all {
            for to in all {
                let cell = StateCell(Cell::new(from));
                let expected = legal.contains(&(from, to));
                assert_eq!(cell.change(to).is_ok(), expected, "{from:?} to {to:?}");
                assert_eq!(cell.get(), if expected { to } else { from });
            }
        }
    }
}
