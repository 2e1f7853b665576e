//! Limits and counters of the network side.
//!
//! Connections are counted for the whole node, in two shared counters touched when a connection comes, authenticates and
//! goes, never on the data path. Everything else is per core.
//!
//! Does not know: sockets.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::protocol::FrameLimits;
use crate::protocol::frame::FRAME_BYTES_MAX;

/// What a connection may take and do.
#[derive(Clone, Debug)]
pub struct NetSettings {
    /// Largest frame of an authenticated connection, header included, in bytes.
    pub frame_bytes_max: usize,
    /// Requests of one connection taken and not yet answered.
    pub in_flight_max: usize,
    /// Unsent bytes of one connection above which it is not read further.
    pub unsent_bytes_max: usize,
    /// Time to authenticate.
    pub handshake_timeout: Duration,
    /// Time to take the last bytes after the end of a connection.
    pub flush_timeout: Duration,
}

impl Default for NetSettings {
    fn default() -> NetSettings {
        NetSettings {
            frame_bytes_max: FRAME_BYTES_MAX,
            in_flight_max: 256,
            unsent_bytes_max: 1 << 20,
            handshake_timeout: Duration::from_secs(30),
            flush_timeout: Duration::from_secs(30),
        }
    }
}

impl NetSettings {
    /// The frame limit for a connection.
    #[must_use]
    pub fn frame_limits(&self, authenticated: bool) -> FrameLimits {
        if authenticated {
            FrameLimits { frame_bytes_max: self.frame_bytes_max }
        } else {
            FrameLimits::UNAUTHENTICATED
        }
    }
}

/// How many connections the node admits.
#[derive(Debug)]
pub struct Admission {
    connections: AtomicUsize,
    unauthenticated: AtomicUsize,
    connections_max: usize,
    unauthenticated_max: usize,
}

impl Admission {
    /// Admits up to `connections_max`, of which `unauthenticated_max` may be unauthenticated.
    #[must_use]
    pub fn new(connections_max: usize, unauthenticated_max: usize) -> Arc<Admission> {
        Arc::new(Admission {
            connections: AtomicUsize::new(0),
            unauthenticated: AtomicUsize::new(0),
            connections_max,
            unauthenticated_max,
        })
    }

    /// Connections of the node now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Connections of the node now that are not authenticated.
    #[must_use]
    pub fn unauthenticated(&self) -> usize {
        self.unauthenticated.load(Ordering::Relaxed)
    }

    /// Takes one more connection, unauthenticated at first; none if there is no room.
    #[must_use]
    pub fn admit(self: &Arc<Admission>) -> Option<Admitted> {
        take(&self.connections, self.connections_max)?;
        if take(&self.unauthenticated, self.unauthenticated_max).is_none() {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Admitted { admission: Arc::clone(self), authenticated: Cell::new(false) })
    }
}

fn take(counter: &AtomicUsize, max: usize) -> Option<()> {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < max).then_some(count + 1))
        .ok()
        .map(drop)
}

/// One admitted connection; gives its place back when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    authenticated: Cell<bool>,
}

impl Admitted {
    /// Whether it counts as authenticated.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.authenticated.get()
    }

    /// Counts it as authenticated, or no longer. Going back is never refused.
    pub fn set_authenticated(&self, authenticated: bool) {
        match (self.authenticated.replace(authenticated), authenticated) {
            (false, true) => drop(self.admission.unauthenticated.fetch_sub(1, Ordering::Relaxed)),
            (true, false) => drop(self.admission.unauthenticated.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.set_authenticated(true);
        self.admission.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counters of one core since it started.
#[derive(Debug, Default)]
pub struct NetStats {
    /// Connections now.
    pub connections: Cell<u64>,
    /// Connections ever accepted.
    pub accepted: Cell<u64>,
    /// Connections closed at once because of a limit.
    pub rejected: Cell<u64>,
    /// Bytes received.
    pub bytes_read: Cell<u64>,
    /// Bytes sent.
    pub bytes_written: Cell<u64>,
    /// Reads that brought bytes.
    pub reads: Cell<u64>,
    /// Sends that took bytes.
    pub sends: Cell<u64>,
    /// Frames executed.
    pub frames: Cell<u64>,
    /// Times a connection was not read further because it owed too much.
    pub pauses: Cell<u64>,
}

/// Adds to a counter.
pub(super) fn count(counter: &Cell<u64>, by: usize) {
    counter.set(counter.get() + by as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_over_either_limit_are_refused_and_places_come_back() {
        let admission = Admission::new(3, 2);
        let first = admission.admit().unwrap();
        let second = admission.admit().unwrap();
        assert!(admission.admit().is_none(), "two unauthenticated ones already");
        first.set_authenticated(true);
        let third = admission.admit().unwrap();
        second.set_authenticated(true);
        assert!(admission.admit().is_none(), "three connections already");
        drop((first, second, third));
        assert_eq!((admission.connections(), admission.unauthenticated()), (0, 0));
    }

    #[test]
    fn losing_authentication_counts_again() {
        let admission = Admission::new(3, 3);
        let connection = admission.admit().unwrap();
        connection.set_authenticated(true);
        connection.set_authenticated(false);
        assert_eq!(admission.unauthenticated(), 1);
        drop(connection);
        assert_eq!(admission.unauthenticated(), 0);
    }
}
