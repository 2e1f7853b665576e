//! What each vbucket of a bucket is to its clients, visible on every core, and what may be asked of it then.
//!
//! The owning core changes a state when the change is durable; every core reads it without a lock, next to the table that it looks into.
//!
//! Invariants
//! - Which state admits what is decided by [`verdict`], nowhere else.
//!
//! Cost: a byte a vbucket; one load a request.
//! Does not know: opcodes, statuses, how a state is kept.

use std::sync::atomic::{AtomicU8, Ordering};

use ringbase_storage::types::VbId;

use crate::protocol::dcp::signal::VbucketState;

/// What a request wants of a vbucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read or change documents.
    Documents,
    /// To read documents of a copy.
    Copies,
    /// To know how far it is.
    Progress,
    /// Its branches, its state, or that a seqno is durable.
    History,
    /// A range scan.
    RangeScan,
    /// A stream.
    Stream,
    /// A stream of the active vbucket and of no copy.
    ActiveStream,
}

/// Whether it may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Now.
    Admitted,
    /// Perhaps when the state changes: it waits.
    Later,
    /// No: the vbucket is not here, or not in the state for it.
    Refused,
}

/// What `access` gets of a vbucket in `state`; `None` stands for one that is not there.
#[must_use]
#[inline]
pub const fn verdict(state: Option<VbucketState>, access: Access) -> Verdict {
    use VbucketState::{Active, Dead, Pending, Replica};
    let Some(state) = state else { return Verdict::Refused };
    match (access, state) {
        (Access::Documents, Pending) => Verdict::Later,
        (Access::Documents | Access::RangeScan | Access::ActiveStream, Active)
        | (Access::Copies, Replica)
        | (Access::Stream, Active | Replica)
        | (Access::Progress, Active | Replica | Pending)
        | (Access::History, _) => Verdict::Admitted,
        (Access::Documents | Access::RangeScan | Access::ActiveStream, Replica | Pending | Dead)
        | (Access::Copies, Active | Pending | Dead)
        | (Access::Stream, Pending | Dead)
        | (Access::Progress, Dead) => Verdict::Refused,
    }
}

/// See the module.
#[derive(Debug)]
pub struct VbucketStates {
    /// The protocol's numbers; 0 for a vbucket that is not there.
    states: Box<[AtomicU8]>,
}

impl VbucketStates {
    /// Those of a bucket none of whose vbuckets is there yet.
    #[must_use]
    pub fn new(vbuckets: u16) -> VbucketStates {
        VbucketStates { states: (0..vbuckets).map(|_| AtomicU8::new(0)).collect() }
    }

    /// The state of a vbucket, on whatever core it is; `None` if it is not there.
    #[must_use]
    #[inline]
    pub fn get(&self, vb: VbId) -> Option<VbucketState> {
        let state = self.states.get(usize::from(vb.0))?.load(Ordering::Acquire);
        VbucketState::from_u32(u32::from(state))
    }

    /// What `access` gets of a vbucket.
    #[must_use]
    #[inline]
    pub fn verdict(&self, vb: VbId, access: Access) -> Verdict {
        verdict(self.get(vb), access)
    }

    /// Whether documents of it may be read and changed now.
    #[must_use]
    #[inline]
    pub fn is_active(&self, vb: VbId) -> bool {
        self.get(vb) == Some(VbucketState::Active)
    }

    /// The owning core changes it.
    pub fn set(&self, vb: VbId, state: Option<VbucketState>) {
        if let Some(slot) = self.states.get(usize::from(vb.0)) {
            slot.store(state.map_or(0, |state| state as u8), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state and every family of requests, as the protocol has it.
    #[test]
    fn each_state_admits_what_the_protocol_says() {
        use VbucketState::{Active, Dead, Pending, Replica};
        use Verdict::{Admitted as Yes, Later, Refused as No};
        let states = [Some(Active), Some(Replica), Some(Pending), Some(Dead), None];
        for (access, expected) in [
            (Access::Documents, [Yes, No, Later, No, No]),
            (Access::Copies, [No, Yes, No, No, No]),
            (Access::Progress, [Yes, Yes, Yes, No, No]),
            (Access::History, [Yes, Yes, Yes, Yes, No]),
            (Access::RangeScan, [Yes, No, No, No, No]),
            (Access::Stream, [Yes, Yes, No, No, No]),
            (Access::ActiveStream, [Yes, No, No, No, No]),
        ] {
            for (state, expected) in states.into_iter().zip(expected) {
                assert_eq!(verdict(state, access), expected, "{access:?} of {state:?}");
                let all = VbucketStates::new(3);
                all.set(VbId(1), state);
                assert_eq!(all.verdict(VbId(1), access), expected);
                assert_eq!(all.is_active(VbId(1)), state == Some(Active));
                for other in [VbId(0), VbId(2), VbId(3)] {
                    assert_eq!(all.verdict(other, access), No, "not there");
                }
            }
        }
    }
}
