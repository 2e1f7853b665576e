//! The runtime of the node, and the only home of `glommio::`: cores, tasks, timers, sockets, mailboxes.
//!
//! One [`executor`] per core, and one `reactor`, which waits for the kernel, other cores and timers; [`host`] shows both to the storage
//! engine, `line` makes long work give way; [`event`] wakes tasks of the same core, [`doorbell`] from outside, [`mailbox`] carries messages between cores; [`socket`] is TCP;
//! [`ring_host`] drives the storage ring.
//!
//! Does not know: opcodes, formats, buckets.

pub mod doorbell;
pub mod event;
pub mod executor;
pub mod host;
mod line;
pub mod mailbox;
mod memory;
mod reactor;
pub mod ring_host;
pub mod socket;

pub use executor::{CoreId, CoreSettings, CoreThread, StartError};
