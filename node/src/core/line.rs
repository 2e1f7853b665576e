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

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Line(RefCell<VecDeque<Weak<Place>>>);

#[derive(Debug, Default)]
struct Place {
    is_let_go: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Line {
    /// Whether nobody stands here. One that was dropped counts until it would have had its turn.
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Waits for its turn.
    pub(super) async fn stand(&self) {
        let place = Rc::new(Place::default());
        self.0.borrow_mut().push_back(Rc::downgrade(&place));
        poll_fn(|context| {
            if place.is_let_go.get() {
                return Poll::Ready(());
            }
            *place.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Lets the first one go on; false if nobody stands here.
    pub(super) fn let_one_go(&self) -> bool {
        loop {
            let Some(place) = self.0.borrow_mut().pop_front() else { return false };
            let Some(place) = place.upgrade() else { continue };
            place.is_let_go.set(true);
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

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
