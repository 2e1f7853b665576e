//! Doorbells: how the outside of a core (a signal, the storage ring, another thread) wakes a task on it.
//!
//! A doorbell is an eventfd. Any thread rings it; one task on one core waits for it, through the core's reactor. Rings that come before the
//! wait are kept, and merge.
//!
//! Cost: a system call to ring, none to wait: each ring is an event of its own, so the eventfd is never read.
//!
//! Does not know: why it rings.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use super::reactor::Watch;

/// The side that rings. Any thread may hold it.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// A doorbell that has not been rung.
    ///
    /// # Errors
    /// Out of file descriptors or memory.
    pub fn new() -> io::Result<Doorbell> {
        Ok(Doorbell { fd: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    /// Wakes the waiter, now or when it waits.
    pub fn ring(&self) {
        // The write can fail only when 2^64 - 2 rings are outstanding: the waiter has been told then.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// The side that waits, for a task of the calling core.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn waiter(&self) -> io::Result<DoorbellWaiter> {
        DoorbellWaiter::on(&self.fd)
    }
}

/// The side that waits. Belongs to one core.
#[derive(Debug)]
pub struct DoorbellWaiter {
    watch: Watch,
}

impl DoorbellWaiter {
    /// Waits on a duplicate of `eventfd`, which stays with its owner.
    ///
    /// # Errors
    /// Out of file descriptors or memory.
    pub fn on(eventfd: impl AsFd) -> io::Result<DoorbellWaiter> {
        let duplicate = rustix::io::fcntl_dupfd_cloexec(eventfd, 0)?;
        Ok(DoorbellWaiter { watch: Watch::new(duplicate)? })
    }

    /// Waits for the next ring; rings since the last one count as one.
    pub async fn wait(&self) {
        poll_fn(|cx| self.watch.poll_event(cx)).await;
    }
}
