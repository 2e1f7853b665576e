//! Memory for pieces of up to 32 KiB that stay: documents and what leads to them.
//!
//! A region of two MiB, one large page where the kernel has one, is dealt out in slabs of 64 KiB, and a slab in pieces of one size. Against the
//! allocator of the C library this saves the header of each piece, most of the rounding, and most of what a look-up waits for the translation of
//! addresses: with a hundred million bytes of documents nearly every one is on a page that the core has not looked at for long.
//!
//! Each thread has a heap. A piece goes back to the heap that it came from, from whatever thread.
//!
//! Invariants
//! - A heap's bookkeeping, which lies at the beginning of its regions too, is touched under the heap's lock only. The lock is contended only when
//!   another thread gives something back.
//! - A region is unmapped when all its slabs are free, but for one that a living thread keeps. Free slabs beyond [`heap::FREE_SLABS_MAX`] in other
//!   regions give their memory back to the system and stay mapped.
//!
//! Cost: a lock without contention and three words touched for a piece; at most 7 bytes are lost to rounding up to 512, 1/16 up to
//! 4 KiB, 1/8 beyond, and nothing for powers of two.
//! Does not know: what is stored, who counts.
//! Source: J. Bonwick, "The slab allocator", USENIX 1994; the heap a thread is from E. Berger et al., "Hoard", ASPLOS 2000.

#![allow(unsafe_code)]

mod array;
mod class;
mod heap;
mod region;

use std::alloc::Layout;
use std::ptr::null_mut;

pub(crate) use array::Array;
pub(crate) use class::{PIECE_ALIGN, piece_bytes};

/// What the allocator of the C library takes for itself in front of an allocation.
const ALLOCATOR_HEADER_BYTES: usize = 8;

/// What it rounds to.
const ALLOCATOR_ROUND_BYTES: usize = 16;

/// Whether pieces of this layout come from slabs; others come from the allocator of the C library.
#[inline]
const fn has_slab(layout: Layout) -> bool {
    let (bytes, align) = (layout.size(), layout.align());
    let is_aligned = align <= PIECE_ALIGN
        || align <= class::LINE_BYTES && bytes > 0 && piece_bytes(bytes).is_multiple_of(class::LINE_BYTES);
    IS_ON && class::is_near_a_class(bytes) && is_aligned
}

/// The bytes that a piece for `bytes` really takes.
#[must_use]
pub(crate) const fn taken_bytes(bytes: usize) -> usize {
    if class::is_near_a_class(bytes) {
        return piece_bytes(bytes);
    }
    (bytes + ALLOCATOR_HEADER_BYTES).next_multiple_of(ALLOCATOR_ROUND_BYTES)
}

/// A sanitizer and a model checker are to see each piece come and go.
const IS_ON: bool = !cfg!(any(fuzzing, loom, shuttle, miri));

/// Memory for `layout`; null if the system has none.
///
/// # Safety
/// The layout's size is not zero.
#[inline]
pub(crate) unsafe fn take(layout: Layout) -> *mut u8 {
    if has_slab(layout) {
        return heap::take(class::class_of(layout.size())).map_or(null_mut(), std::ptr::NonNull::as_ptr);
    }
    // SAFETY: the caller guarantees that the size is not zero.
    unsafe { std::alloc::alloc(layout) }
}

/// Gives back what [`take`] gave.
///
/// # Safety
/// `piece` comes from [`take`] with the same layout, is given back once, and nobody uses it any more.
#[inline]
pub(crate) unsafe fn give(piece: *mut u8, layout: Layout) {
    if has_slab(layout) {
        // SAFETY: the piece came from a slab, as its layout tells, and the caller guarantees the rest.
        return unsafe { heap::give(piece, class::class_of(layout.size())) };
    }
    // SAFETY: it was allocated with this layout.
    unsafe { std::alloc::dealloc(piece, layout) }
}
