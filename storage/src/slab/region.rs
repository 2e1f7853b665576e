//! A region: two MiB of address space, of which the first bytes say how its slabs are used.
//!
//! Does not know: which slab is wanted, locks.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::class::class_bytes;
use super::heap::Heap;

/// Bytes of a region, and what its address is a multiple of.
pub(super) const REGION_BYTES: usize = 2 << 20;

/// Bytes of a slab.
pub(super) const SLAB_BYTES: usize = 64 << 10;

/// Slabs of a region.
pub(super) const SLABS: usize = REGION_BYTES / SLAB_BYTES;

/// Mask of all slabs.
const ALL: u32 = u32::MAX;
const _: () = assert!(SLABS == ALL.count_ones() as usize);

/// How one slab is used. Offsets count from the region's beginning; zero is none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slab {
    pub(super) class: u16,
    /// Pieces that are out.
    pub(super) used: u16,
    /// First of the pieces that came back, each of which begins with the offset of the next.
    free: u32,
    /// First piece that was never out.
    fresh: u32,
    /// Where its heap keeps it among those with a free piece.
    pub(super) place: u32,
}

/// The first bytes of a region.
#[derive(Debug)]
pub(super) struct Region {
    /// Whose it is; a count of it is held. Never changes.
    heap: *const Heap,
    books: Books,
}

/// How the slabs of a region are used.
#[derive(Debug)]
pub(super) struct Books {
    /// Slabs that no piece is out of.
    pub(super) free: u32,
    /// Those of them whose memory went back to the system.
    pub(super) absent: u32,
    /// Where its heap keeps it among those with a free slab.
    pub(super) place: u32,
    slabs: [Slab; SLABS],
}

/// Where the first slab's pieces begin.
const FIRST_PIECE: usize = size_of::<Region>().next_multiple_of(64);

/// A slab: its region and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlabRef {
    pub(super) region: NonNull<Region>,
    pub(super) index: u8,
}

impl Region {
    /// Maps a region for `heap`; `None` if the system has no memory for it.
    pub(super) fn map(heap: &Arc<Heap>) -> Option<NonNull<Region>> {
        let (protection, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let mapped = unsafe { mmap_anonymous(null_mut(), 2 * REGION_BYTES, protection, flags) }.ok()?;
        let skipped = mapped.addr().next_multiple_of(REGION_BYTES) - mapped.addr();
        // SAFETY: within the mapping, which is twice as long.
        let start = unsafe { mapped.byte_add(skipped) };
        // SAFETY: as above.
        let end = unsafe { start.byte_add(REGION_BYTES) };
        for (unused, bytes) in [(mapped, skipped), (end, REGION_BYTES - skipped)] {
            // SAFETY: the part of the new mapping in front of the region, or behind it. Nobody knows it.
            let _ = bytes == 0 || unsafe { munmap(unused, bytes) }.is_ok();
        }
        // SAFETY: the new region. Without large pages it works as well.
        let _ = unsafe { madvise(start, REGION_BYTES, Advice::LinuxHugepage) };
        let region = NonNull::new(start.cast::<Region>())?;
        let heap = Arc::into_raw(Arc::clone(heap));
        let books = Books { free: ALL, absent: 0, place: 0, slabs: [Slab::default(); SLABS] };
        // SAFETY: new memory, aligned to much more than it needs.
        unsafe { region.write(Region { heap, books }) };
        Some(region)
    }

    /// Unmaps a region; the count of its heap is the caller's now.
    ///
    /// # Safety
    /// No piece of it is out, and nobody refers to it any more.
    pub(super) unsafe fn unmap(region: NonNull<Region>) -> Arc<Heap> {
        // SAFETY: the region is mapped.
        let heap = unsafe { (&raw const (*region.as_ptr()).heap).read() };
        // SAFETY: the caller guarantees that nobody refers to it.
        let unmapped = unsafe { munmap(region.as_ptr().cast::<c_void>(), REGION_BYTES) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
        // SAFETY: the count that was taken when the region was mapped.
        unsafe { Arc::from_raw(heap) }
    }

    /// The region that a piece lies in.
    pub(super) fn of(piece: *mut u8) -> NonNull<Region> {
        let start = piece.map_addr(|address| address & !(REGION_BYTES - 1));
        NonNull::new(start.cast::<Region>()).expect("no piece lies at the beginning of the address space")
    }

    /// The heap of a region. May be called without its lock: it never changes.
    ///
    /// # Safety
    /// A piece of the region is out for as long as the result is used, or its heap is kept otherwise.
    pub(super) unsafe fn heap<'h>(region: NonNull<Region>) -> &'h Heap {
        let heap = region.as_ptr().cast_const();
        // SAFETY: the region is mapped, as a piece of it is out; the field was written before any piece was given.
        let heap = unsafe { (&raw const (*heap).heap).read() };
        // SAFETY: the region holds a count.
        unsafe { &*heap }
    }

    /// How the slabs of a region are used.
    ///
    /// # Safety
    /// The region is mapped, its heap's lock is held, and no other reference from here is alive.
    pub(super) unsafe fn books<'r>(region: NonNull<Region>) -> &'r mut Books {
        // SAFETY: as the caller guarantees; the field beside it, which others read, is not touched.
        unsafe { &mut (*region.as_ptr()).books }
    }
}

impl Books {
    /// Whether no piece of the region is out.
    pub(super) fn is_unused(&self) -> bool {
        self.free == ALL
    }

    /// Free slabs that have their memory.
    pub(super) fn present(&self) -> usize {
        (self.free & !self.absent).count_ones() as usize
    }

    /// Takes a free slab, one that has its memory if there is one; returns its number and whether it has.
    pub(super) fn take(&mut self) -> (u8, bool) {
        let present = self.free & !self.absent;
        let index = if present != 0 { present } else { self.free }.trailing_zeros();
        self.free &= !(1 << index);
        self.absent &= !(1 << index);
        (index as u8, present != 0)
    }
}

impl SlabRef {
    /// The slab that a piece lies in.
    pub(super) fn of(piece: *mut u8) -> SlabRef {
        let index = (piece.addr() % REGION_BYTES / SLAB_BYTES) as u8;
        SlabRef { region: Region::of(piece), index }
    }

    fn first_piece(self) -> usize {
        if self.index == 0 { FIRST_PIECE } else { usize::from(self.index) * SLAB_BYTES }
    }

    fn end(self) -> usize {
        (usize::from(self.index) + 1) * SLAB_BYTES
    }

    /// # Safety
    /// As [`Region::books`].
    pub(super) unsafe fn head<'s>(self) -> &'s mut Slab {
        // SAFETY: as the caller guarantees.
        let books = unsafe { Region::books(self.region) };
        &mut books.slabs[usize::from(self.index)]
    }

    /// Makes a free slab one of `class`.
    ///
    /// # Safety
    /// As [`SlabRef::head`]; and it is free.
    pub(super) unsafe fn begin(self, class: usize) {
        // SAFETY: as the caller guarantees.
        let head = unsafe { self.head() };
        *head = Slab { class: class as u16, used: 0, free: 0, fresh: self.first_piece() as u32, place: 0 };
    }

    /// Whether no piece is left.
    ///
    /// # Safety
    /// As [`SlabRef::head`].
    pub(super) unsafe fn is_full(self) -> bool {
        // SAFETY: as the caller guarantees.
        let head = unsafe { self.head() };
        head.free == 0 && head.fresh as usize + class_bytes(usize::from(head.class)) > self.end()
    }

    /// Takes a piece out.
    ///
    /// # Safety
    /// As [`SlabRef::head`]; and it is not full.
    pub(super) unsafe fn take(self) -> NonNull<u8> {
        // SAFETY: as the caller guarantees.
        let head = unsafe { self.head() };
        head.used += 1;
        let at = if head.free != 0 { head.free } else { head.fresh };
        // SAFETY: the offset of a piece of this region.
        let piece = unsafe { self.region.cast::<u8>().add(at as usize) };
        if head.free != 0 {
            // SAFETY: a piece that is not out begins with the offset of the next one.
            head.free = unsafe { piece.cast::<u32>().read() };
        } else {
            head.fresh += class_bytes(usize::from(head.class)) as u32;
        }
        piece
    }

    /// Takes a piece back.
    ///
    /// # Safety
    /// As [`SlabRef::head`]; and the piece is out, of this slab, and used by nobody.
    pub(super) unsafe fn give(self, piece: *mut u8) {
        // SAFETY: as the caller guarantees.
        let head = unsafe { self.head() };
        // SAFETY: nobody uses it, it is aligned to eight bytes and has eight at least.
        unsafe { piece.cast::<u32>().write(head.free) };
        head.free = (piece.addr() % REGION_BYTES) as u32;
        head.used -= 1;
    }

    /// Gives a free slab's memory back to the system; false if it is kept, as the first one of a region is.
    pub(super) fn give_back(self) -> bool {
        if self.index == 0 {
            return false;
        }
        // SAFETY: the slab's place in its region.
        let start = unsafe { self.region.cast::<u8>().add(self.first_piece()) };
        // SAFETY: no piece of the slab is out, and nothing is stored in it: reading zeros later is fine.
        unsafe { madvise(start.as_ptr().cast::<c_void>(), SLAB_BYTES, Advice::LinuxDontNeed) }.is_ok()
    }
}
