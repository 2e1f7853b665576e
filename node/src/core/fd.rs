//! File descriptors that glommio takes or hands out as bare numbers: all `unsafe` of the node but one call (`memory`).
//!
//! Invariants
//! - A descriptor given to glommio is owned by the object that comes back and closed with it, once.
//! - A descriptor borrowed from glommio is used only while its owner is borrowed.
//!
//! Does not know: what is behind a descriptor.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use glommio::io::BufferedFile;
use glommio::net::{TcpListener, TcpStream};

/// A file of this core's executor that reads `fd` through the ring; owns it. Must be called on an executor.
pub(super) fn buffered_file(fd: OwnedFd) -> BufferedFile {
    // SAFETY: `into_raw_fd` gives up the ownership that the file takes over, so there is one owner throughout.
    unsafe { BufferedFile::from_raw_fd(fd.into_raw_fd()) }
}

/// A listener of this core's executor around a bound, listening socket; owns it. Must be called on an executor.
pub(super) fn listener(fd: OwnedFd) -> TcpListener {
    // SAFETY: as in `buffered_file`; that the descriptor is a listening TCP socket is no matter of memory safety.
    unsafe { TcpListener::from_raw_fd(fd.into_raw_fd()) }
}

/// The descriptor of a stream, for system calls that glommio does not offer.
pub(super) fn borrow(stream: &TcpStream) -> BorrowedFd<'_> {
    // SAFETY: the stream owns the descriptor and closes it when dropped; the result borrows the stream, so the
    // descriptor stays open, and this number, for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }
}
