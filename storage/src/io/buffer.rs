//! DMA buffers: zeroed, block aligned memory that direct I/O reads into and writes from.
//!
//! Invariants
//! - Address and length are multiples of [`BLOCK_BYTES`]; a fresh buffer is all zero.
//!
//! Does not know: files, offsets.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};

use super::BLOCK_BYTES;

/// One block, at a block boundary.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct AlignedBlock([u8; BLOCK_BYTES]);

/// Memory for direct I/O. Dereferences to its bytes.
pub struct DmaBuffer {
    blocks: Vec<AlignedBlock>,
}

impl DmaBuffer {
    /// A zeroed buffer of `len` bytes.
    ///
    /// # Panics
    /// If `len` is not a multiple of [`BLOCK_BYTES`].
    #[must_use]
    pub fn zeroed(len: usize) -> DmaBuffer {
        assert!(len.is_multiple_of(BLOCK_BYTES), "DMA buffer of {len} bytes is not whole blocks");
        DmaBuffer { blocks: vec![AlignedBlock([0; BLOCK_BYTES]); len / BLOCK_BYTES] }
    }

    /// Keeps the first `len` bytes.
    ///
    /// # Panics
    /// If `len` is not a multiple of [`BLOCK_BYTES`].
    pub fn truncate(&mut self, len: usize) {
        assert!(len.is_multiple_of(BLOCK_BYTES), "cannot cut a DMA buffer at {len}");
        self.blocks.truncate(len / BLOCK_BYTES);
    }
}

impl Deref for DmaBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `AlignedBlock` is `repr(C)` around bytes without padding, and the blocks of a `Vec` are
        // contiguous and initialised; the borrow of `self` keeps them.
        unsafe { std::slice::from_raw_parts(self.blocks.as_ptr().cast(), self.blocks.len() * BLOCK_BYTES) }
    }
}

impl DerefMut for DmaBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` makes this the only reference.
        unsafe {
            std::slice::from_raw_parts_mut(self.blocks.as_mut_ptr().cast(), self.blocks.len() * BLOCK_BYTES)
        }
    }
}

impl std::fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DmaBuffer({} bytes)", self.len())
    }
}
