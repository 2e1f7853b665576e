//! Wake-ups between the tasks of one core.
//!
//! An [`Event`] has one waiter and remembers a notification that came before the wait, so "something to do" is
//! never lost and never counted twice. [`Waiters`] has any number of them and remembers nothing: each waiter looks
//! at its own condition, then waits.
//!
//! Cost: a notification is one wake of a task; notifying an event that is already set costs nothing.
//!
//! Does not know: what happened, other cores (`mailbox`), the kernel (`doorbell`).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// A sticky flag with one waiter.
#[derive(Debug, Default)]
pub struct Event {
    set: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Event {
    /// An event that has not happened.
    #[must_use]
    pub fn new() -> Event {
        Event::default()
    }

    /// Sets the event and wakes its waiter. Until someone waits again, further notifications merge into this one.
    pub fn notify(&self) {
        if !self.set.replace(true) {
            let waiter = self.waiter.borrow_mut().take();
            if let Some(waiter) = waiter {
                waiter.wake();
            }
        }
    }

    /// Whether it has been set and nobody has waited for it since.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.set.get()
    }

    /// Ready if the event has been set since the last time this was ready. The latest caller is the one waiter.
    pub fn poll_wait(&self, cx: &Context<'_>) -> Poll<()> {
        if self.set.replace(false) {
            self.waiter.borrow_mut().take();
            return Poll::Ready(());
        }
        let mut waiter = self.waiter.borrow_mut();
        match waiter.as_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waiter = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits until the event is set, and clears it.
    pub async fn wait(&self) {
        poll_fn(|cx| self.poll_wait(cx)).await;
    }
}

/// How many recent waiters are looked at to avoid listing a task twice.
const SCAN_MAX: usize = 64;

/// Tasks that wait for the same condition, each checking it by itself.
#[derive(Debug, Default)]
pub struct Waiters {
    wakers: RefCell<Vec<Waker>>,
}

impl Waiters {
    /// Nobody waits.
    #[must_use]
    pub fn new() -> Waiters {
        Waiters::default()
    }

    /// Adds the calling task; it is woken once, by the next [`Waiters::wake_all`].
    pub fn add(&self, cx: &Context<'_>) {
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().rev().take(SCAN_MAX).any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
    }

    /// Wakes everyone who waits.
    pub fn wake_all(&self) {
        let wakers = std::mem::take(&mut *self.wakers.borrow_mut());
        for waker in wakers {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn notification_before_the_wait_is_kept_and_used_once() {
        let event = Event::new();
        let cx = Context::from_waker(Waker::noop());
        event.notify();
        event.notify();
        assert_eq!(event.poll_wait(&cx), Poll::Ready(()));
        assert_eq!(event.poll_wait(&cx), Poll::Pending);
    }

    #[test]
    fn waiter_is_woken_once_by_many_notifications() {
        let event = Event::new();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        assert_eq!(event.poll_wait(&cx), Poll::Pending);
        event.notify();
        event.notify();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(event.poll_wait(&cx), Poll::Ready(()));
    }

    #[test]
    fn all_waiters_are_woken_and_each_task_is_listed_once() {
        let waiters = Waiters::new();
        let counts = [Arc::new(Count(AtomicUsize::new(0))), Arc::new(Count(AtomicUsize::new(0)))];
        for count in &counts {
            let waker = Waker::from(Arc::clone(count));
            waiters.add(&Context::from_waker(&waker));
            waiters.add(&Context::from_waker(&waker));
        }
        waiters.wake_all();
        waiters.wake_all();
        for count in &counts {
            assert_eq!(count.0.load(Ordering::Relaxed), 1);
        }
    }
}
