//! The line of the tasks that have long work and give way between its parts.
//!
//! A core's tasks run in order of being woken. With eight streams that each have something to send, a small request would wait for a part of
//! every one of them, and once more until its answer has its turn. So whoever has long work stands in this line between its parts, and the
//! reactor lets one go on each time when all else that was ready has run.
//!
//! Invariants
//! - Who came first goes first; one that is dropped leaves no gap.
//!
//! Cost: an allocation and a wake-up each time a task stands in line, which it need not while the core was looked at a moment ago.
//! Does not know: what the work is, when it is time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use super::event::Event;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Line(RefCell<VecDeque<Weak<Event>>>);

impl Line {
    /// Whether nobody stands here. One that was dropped counts until it would have had its turn.
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Waits for its turn.
    pub(super) async fn stand(&self) {
        let place = Rc::new(Event::new());
        self.0.borrow_mut().push_back(Rc::downgrade(&place));
        place.wait().await;
    }

    /// Lets the first one go on; false if nobody stands here.
    pub(super) fn let_one_go(&self) -> bool {
        loop {
            let Some(place) = self.0.borrow_mut().pop_front() else { return false };
            if let Some(place) = place.upgrade() {
                place.notify();
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn those_in_line_go_on_one_by_one_and_one_that_left_is_passed_over() {
        let line = Line::default();
        let context = &mut Context::from_waker(Waker::noop());
        let mut first = pin!(line.stand());
        let mut last = pin!(line.stand());
        assert!(first.as_mut().poll(context).is_pending());
        {
            let leaves = pin!(line.stand());
            assert!(leaves.poll(context).is_pending());
        }
        assert!(last.as_mut().poll(context).is_pending());
        assert!(line.let_one_go());
        assert!(first.as_mut().poll(context).is_ready() && last.as_mut().poll(context).is_pending());
        assert!(line.let_one_go() && last.as_mut().poll(context).is_ready());
        assert!(line.is_empty() && !line.let_one_go());
    }
}
