//! Waiting on one core: an event that tasks listen to, and a lock held across awaits.
//!
//! Invariants
//! - A listener made before a notification is woken by it; none is lost between check and wait.
//! - No borrow is held while a waker runs.
//!
//! Does not know: who waits for what.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Something that tasks of this core wait for.
#[derive(Debug, Default)]
pub struct Event {
    notifications: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Event {
    /// Wakes every listener.
    pub fn notify_all(&self) {
        self.notifications.set(self.notifications.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for waker in waiting {
            waker.wake();
        }
    }

    /// A future that resolves at the next notification after this call.
    pub fn listen(&self) -> Listen<'_> {
        Listen { event: self, seen: self.notifications.get() }
    }

    /// Waits until `done` holds; it is tested now and after each notification.
    pub async fn until(&self, mut done: impl FnMut() -> bool) {
        loop {
            let listen = self.listen();
            if done() {
                return;
            }
            listen.await;
        }
    }
}

/// See [`Event::listen`].
#[derive(Debug)]
pub struct Listen<'a> {
    event: &'a Event,
    seen: u64,
}

impl Future for Listen<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.event.notifications.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiting = self.event.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// A lock for one core that may be held across an await.
#[derive(Debug, Default)]
pub struct Lock {
    held: Cell<bool>,
    released: Event,
}

impl Lock {
    /// Waits for the lock.
    pub async fn lock(&self) -> LockGuard<'_> {
        self.released.until(|| !self.held.get()).await;
        self.held.set(true);
        LockGuard { lock: self }
    }
}

/// Holds a [`Lock`] until dropped.
#[derive(Debug)]
pub struct LockGuard<'a> {
    lock: &'a Lock,
}

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        self.lock.held.set(false);
        self.lock.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};

    #[test]
    fn a_notification_between_check_and_wait_is_not_lost() {
        let event = Event::default();
        let listen = event.listen();
        event.notify_all();
        assert_eq!(block_on(poll_once(listen)), Some(()));
        assert_eq!(block_on(poll_once(event.listen())), None);
    }

    #[test]
    fn a_lock_is_held_by_one_at_a_time() {
        let lock = Lock::default();
        let guard = block_on(lock.lock());
        assert!(block_on(poll_once(lock.lock())).is_none());
        drop(guard);
        assert!(block_on(poll_once(lock.lock())).is_some());
    }
}
