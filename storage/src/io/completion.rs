//! The result of one device operation: filled in by whoever reaps it, awaited by whoever started it.
//!
//! Invariants
//! - Dropping the [`Completion`] drops only the result: the operation goes on, and its buffer stays with the
//!   device until the operation is reaped.
//! - A [`Promise`] dropped unfulfilled leaves its completion pending for ever: the device has died with its process.
//!
//! Cost: one small allocation an operation.
//!
//! Does not know: rings, simulations.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct State<T> {
    result: Option<T>,
    waker: Option<Waker>,
}

/// The waiting end.
pub(crate) struct Completion<T> {
    state: Rc<RefCell<State<T>>>,
}

/// The fulfilling end.
pub(crate) struct Promise<T> {
    state: Rc<RefCell<State<T>>>,
}

/// A promise and the completion that waits for it.
pub(crate) fn promise<T>() -> (Promise<T>, Completion<T>) {
    let state = Rc::new(RefCell::new(State { result: None, waker: None }));
    (Promise { state: Rc::clone(&state) }, Completion { state })
}

impl<T> Promise<T> {
    /// Stores the result and wakes the waiter, if there still is one.
    pub(crate) fn fulfil(self, result: T) {
        let waker = {
            let mut state = self.state.borrow_mut();
            state.result = Some(result);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Completion<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.state.borrow_mut();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_resolves_with_the_promised_value_and_not_before() {
        let (promise, mut completion) = promise();
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut completion).poll(&mut context).is_pending());
        promise.fulfil(7);
        assert_eq!(Pin::new(&mut completion).poll(&mut context), Poll::Ready(7));
    }

    #[test]
    fn promise_outlives_a_dropped_completion() {
        let (promise, completion) = promise();
        drop(completion);
        promise.fulfil(String::from("nobody hears"));
    }
}
