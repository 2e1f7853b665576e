//! Small buffers of a core, used again: for frames that travel between cores, and for replies that wait for an earlier one's.
//!
//! A request and its answer go opposite ways, so each core gets about as many buffers as it gives away. Taken from the allocator each time, they
//! would be freed between documents that stay, and leave holes that no document fills exactly.
//!
//! Invariants
//! - At most [`BUFFERS_MAX`] buffers of [`SMALL_BYTES`] are kept: 256 KiB.
//!
//! Cost: a push or a pop a buffer.
//! Does not know: what is in a buffer.

use std::cell::RefCell;

/// Bytes that a kept buffer has room for. What is longer has a buffer of its own.
pub(super) const SMALL_BYTES: usize = 512;

/// Buffers kept: as many as two connections may have requests under way.
const BUFFERS_MAX: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub struct SmallBuffers {
    kept: RefCell<Vec<Vec<u8>>>,
}

impl SmallBuffers {
    /// An empty buffer with room for `bytes`.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        if bytes > SMALL_BYTES {
            return Vec::with_capacity(bytes);
        }
        self.kept.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(SMALL_BYTES))
    }

    /// Keeps a buffer for later, whoever has allocated it.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let mut kept = self.kept.borrow_mut();
        if buffer.capacity() == SMALL_BYTES && kept.len() < BUFFERS_MAX {
            buffer.clear();
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_what_is_large_or_too_much_is_not_kept() {
        let buffers = SmallBuffers::default();
        let mut buffer = buffers.take(100);
        buffer.extend_from_slice(b"a request");
        let place = buffer.as_ptr();
        buffers.give(buffer);
        let again = buffers.take(SMALL_BYTES);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));

        let large = buffers.take(SMALL_BYTES + 1);
        assert!(large.capacity() > SMALL_BYTES);
        buffers.give(large);
        assert_eq!(buffers.kept.borrow().len(), 0, "it is too large");
        let many: Vec<Vec<u8>> = (0..2 * BUFFERS_MAX).map(|_| buffers.take(1)).collect();
        many.into_iter().for_each(|buffer| buffers.give(buffer));
        assert_eq!(buffers.kept.borrow().len(), BUFFERS_MAX);
    }
}
