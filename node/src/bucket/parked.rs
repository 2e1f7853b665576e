//! Requests that wait for a vbucket to become active, in order of arrival.
//!
//! Invariants
//! - Each goes on exactly once: when the state of its vbucket has changed, when its time is up, or when the bucket goes.
//! - Those of a vbucket go on in the order in which they came.
//!
//! Cost: nothing while none waits; a change of state looks at all that wait.
//! Does not know: what they ask, how many bytes they hold; whoever parks one bounds that.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use ringbase_storage::types::VbId;

use super::engine::Engine;

/// Goes on with a request; without an engine its time is up.
pub type Resume = Box<dyn FnOnce(Option<&Engine>)>;

struct Entry {
    vb: VbId,
    deadline_ns: u64,
    resume: Resume,
}

/// See the module. All wait equally long, so that the oldest is due first.
#[derive(Default)]
pub struct Parked {
    entries: RefCell<VecDeque<Entry>>,
    /// Whether somebody watches the time.
    pub(crate) is_watched: Cell<bool>,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parked({})", self.len())
    }
}

impl Parked {
    /// One more waits, until `deadline_ns` of the monotonic clock at the latest.
    pub fn park(&self, vb: VbId, deadline_ns: u64, resume: Resume) {
        self.entries.borrow_mut().push_back(Entry { vb, deadline_ns, resume });
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When the next one's time is up.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.entries.borrow().front().map(|entry| entry.deadline_ns)
    }

    /// Takes those whose time is up.
    #[must_use]
    pub fn take_late(&self, now_ns: u64) -> Vec<Resume> {
        let mut entries = self.entries.borrow_mut();
        let count = entries.iter().take_while(|entry| entry.deadline_ns <= now_ns).count();
        entries.drain(..count).map(|entry| entry.resume).collect()
    }

    /// Takes those of a vbucket, or all.
    #[must_use]
    pub fn take(&self, vb: Option<VbId>) -> Vec<Resume> {
        let mut entries = self.entries.borrow_mut();
        let (taken, left): (VecDeque<_>, VecDeque<_>) =
            entries.drain(..).partition(|entry| vb.is_none_or(|vb| entry.vb == vb));
        *entries = left;
        taken.into_iter().map(|entry| entry.resume).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn each_goes_on_once_in_order_by_vbucket_by_time_or_all() {
        let (parked, went) = (Parked::default(), Rc::new(RefCell::new(Vec::new())));
        for (n, vb) in [1, 2, 1, 3, 2].into_iter().enumerate() {
            let went = went.clone();
            let resume = Box::new(move |_: Option<&Engine>| went.borrow_mut().push(n));
            parked.park(VbId(vb), 10 * n as u64, resume);
        }
        let go = |taken: Vec<Resume>| {
            taken.into_iter().for_each(|resume| resume(None));
            went.take()
        };
        assert_eq!(go(parked.take(Some(VbId(1)))), [0, 2]);
        assert_eq!((go(parked.take(Some(VbId(1)))), parked.next_deadline_ns()), (vec![], Some(10)));
        assert_eq!((go(parked.take_late(9)), go(parked.take_late(10))), (vec![], vec![1]));
        assert_eq!((go(parked.take(None)), parked.len()), (vec![3, 4], 0));
    }
}
