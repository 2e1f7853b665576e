//! The kernel boundary: whole aligned blocks in, whole aligned blocks out.
//!
//! A [`Device`] is one file or block device opened for direct I/O, or a simulated one. Operations are
//! started by calling a method, which returns a future to await; they may complete in any order. A
//! completed write is *not* durable; a completed sync makes durable what completed before it was started.
//!
//! Invariants
//! - Offsets and lengths are multiples of [`BLOCK_BYTES`].
//! - A buffer belongs to the device from the call until the operation completes, also if the caller drops the
//!   future.
//! - A failed sync is final: the device reports failure for every later sync.
//!
//! Does not know: what the bytes mean.

/// Unit of direct I/O and of allocation in a data file, in bytes.
pub const BLOCK_BYTES: usize = 4096;

use std::io;

use crate::env::LocalFuture;

pub mod blocking;
pub mod buffer;
mod completion;
pub mod device;
mod operation;
pub mod probe;
pub mod ring;
mod ring_config;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod sync_order;

pub use buffer::DmaBuffer;

/// A file or block device that holds whole blocks. One core owns it; clones of the `Rc` share it.
///
/// Every method starts its operation at once; the future it returns only waits. Dropping the future does not
/// cancel the operation.
pub trait Device {
    /// Path or simulated name, for messages.
    fn name(&self) -> &str;

    /// Size in bytes: what may be read and written.
    fn len_bytes(&self) -> u64;

    /// A zeroed buffer for this device: `len` bytes, a multiple of [`BLOCK_BYTES`]; registered memory if some is free.
    /// That is scarce: copy what lives long.
    fn buffer(&self, len: usize) -> DmaBuffer;

    /// Reads exactly `len` bytes at `offset`. Short reads and interruptions are retried inside.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end; otherwise what the kernel said.
    fn read(&self, offset: u64, len: usize) -> LocalFuture<'static, io::Result<DmaBuffer>>;

    /// Writes the whole buffer at `offset` and gives it back. Not durable before a later [`Device::sync`].
    ///
    /// # Errors
    /// What the kernel said; how much was written is then unknown.
    fn write(&self, offset: u64, buffer: DmaBuffer) -> LocalFuture<'static, io::Result<DmaBuffer>>;

    /// Writes the whole buffer at `offset`, then syncs, as one chain.
    ///
    /// # Errors
    /// As [`Device::write`] and [`Device::sync`].
    fn write_durable(&self, offset: u64, buffer: DmaBuffer) -> LocalFuture<'static, io::Result<DmaBuffer>>;

    /// Makes durable every write that completed before this call.
    ///
    /// # Errors
    /// What the kernel said, for this call and every later one: a failed sync is final.
    fn sync(&self) -> LocalFuture<'static, io::Result<()>>;

    /// Makes the device at least `len_bytes` long, blocks preallocated.
    ///
    /// # Errors
    /// `StorageFull`, or what the kernel said; the length is then unchanged.
    fn grow(&self, len_bytes: u64) -> LocalFuture<'static, io::Result<()>>;
}
