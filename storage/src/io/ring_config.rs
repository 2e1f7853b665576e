//! What a ring is asked to be, what it became, what it has counted, and why there is none.
//!
//! Does not know: how the ring works.

use std::io;

/// What a ring is asked to be.
#[derive(Debug, Clone)]
pub struct RingConfig {
    /// Entries of the submission queue; the completion queue has twice as many.
    pub entries: u32,
    /// Operations in flight, beyond which they queue.
    pub depth_max: u32,
    /// Memory for DMA buffers, in bytes; what does not fit comes from the heap. Halved until it can be registered.
    pub arena_bytes: usize,
    /// Slots for registered files; further files work unregistered.
    pub files_max: u32,
    /// Whether to register files and buffers at all.
    pub register: bool,
}

impl Default for RingConfig {
    fn default() -> RingConfig {
        RingConfig { entries: 256, depth_max: 64, arena_bytes: 16 << 20, files_max: 64, register: true }
    }
}

/// What the kernel made of a [`RingConfig`].
#[derive(Debug, Clone, serde::Serialize)]
pub struct RingFacts {
    /// Entries of the submission queue.
    pub entries: u32,
    /// Entries of the completion queue.
    pub completion_entries: u32,
    /// Operations in flight, beyond which they queue.
    pub depth_max: u32,
    /// The kernel knows that only one thread submits.
    pub single_issuer: bool,
    /// Completions do not interrupt the thread.
    pub coop_taskrun: bool,
    /// Slots for registered files; 0 if there are none.
    pub registered_files: u32,
    /// Bytes of DMA memory that the kernel has registered; 0 if none.
    pub registered_buffer_bytes: usize,
    /// Bytes of DMA memory of the ring, registered or not.
    pub arena_bytes: usize,
    /// Why something is not registered, or registered in part.
    pub unregistered_because: Option<String>,
}

/// Counters of a ring since it was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct RingStats {
    /// Operations started.
    pub operations: u64,
    /// Operations answered.
    pub answered: u64,
    /// Entries handed to the kernel.
    pub entries: u64,
    /// System calls that handed over entries or asked for completions.
    pub enters: u64,
    /// Completions taken from the kernel.
    pub completions: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Operations submitted again after an interruption or a short transfer.
    pub retries: u64,
    /// System calls that the kernel put off (EINTR, EAGAIN, EBUSY).
    pub enter_retries: u64,
    /// How often the kernel kept completions back because their queue was full; they were fetched later.
    pub overflows: u64,
    /// Operations waiting for a place in the ring, now.
    pub queued: u64,
    /// The most that ever waited.
    pub queued_max: u64,
    /// Operations that the kernel holds, now.
    pub in_flight: u64,
    /// The most the kernel ever held.
    pub in_flight_max: u64,
    /// Buffers that did not fit into the ring's DMA memory and came from the heap.
    pub arena_misses: u64,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The kernel has no io_uring, or does not let this process use it.
    #[error(
        "io_uring is not available to this process: look at sysctl kernel.io_uring_disabled, the container's seccomp \
         profile and the kernel version (6.1 or later)"
    )]
    Forbidden(#[source] io::Error),
    /// Not enough locked memory or file descriptors.
    #[error(
        "not enough memory or descriptors for an io_uring of {entries} entries: look at ulimit -l and ulimit -n"
    )]
    Resources {
        /// Entries asked for.
        entries: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot set up an io_uring of {entries} entries")]
    Setup {
        /// Entries asked for.
        entries: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl RingError {
    /// The error for what the kernel said when a ring was set up.
    pub(super) fn of_setup(entries: u32, source: io::Error) -> RingError {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::ENOSYS | libc::EACCES) => RingError::Forbidden(source),
            Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE) => RingError::Resources { entries, source },
            _ => RingError::Setup { entries, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_to_set_up_names_what_to_change() {
        let error = |errno| RingError::of_setup(256, io::Error::from_raw_os_error(errno)).to_string();
        assert!(error(libc::EPERM).contains("kernel.io_uring_disabled"));
        assert!(error(libc::ENOSYS).contains("kernel"));
        assert!(error(libc::ENOMEM).contains("ulimit -l"));
        assert!(error(libc::EINVAL).contains("256"));
    }
}
