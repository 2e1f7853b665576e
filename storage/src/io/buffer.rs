//! DMA buffers: zeroed, block aligned memory that direct I/O reads into and writes from.
//!
//! A [`DmaBuffer`] is either memory of its own, or a lease on a part of an arena, the pool of a ring that the
//! kernel may have registered. The holder cannot tell and need not; a lease goes back when it is dropped. Leases are
//! scarce, so what is kept for long (a cache) is copied.
//!
//! Invariants
//! - Address and length are multiples of [`BLOCK_BYTES`]; a buffer handed out for writing is all zero.
//! - Leases of one arena never overlap; the arena lives as long as any of them.
//!
//! Cost: a lease is a look at a few bitmap words, and zeroing.
//!
//! Does not know: files, offsets, rings.
#![allow(unsafe_code)]

use std::cell::{RefCell, UnsafeCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use super::BLOCK_BYTES;

/// Sizes of leases: one block times 2 to the power of 0 up to this.
const TOP_ORDER: usize = 8;
/// The longest lease, in bytes; an arena is a multiple of it.
pub const LEASE_BYTES_MAX: usize = BLOCK_BYTES << TOP_ORDER;

/// One block, at a block boundary.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct AlignedBlock([u8; BLOCK_BYTES]);

/// Memory for direct I/O. Dereferences to its bytes.
pub struct DmaBuffer {
    memory: Memory,
}

enum Memory {
    Owned(Vec<AlignedBlock>),
    Leased(Lease),
}

impl DmaBuffer {
    /// A zeroed buffer of `len` bytes, in memory of its own.
    ///
    /// # Panics
    /// If `len` is not a multiple of [`BLOCK_BYTES`].
    #[must_use]
    pub fn zeroed(len: usize) -> DmaBuffer {
        assert!(len.is_multiple_of(BLOCK_BYTES), "DMA buffer of {len} bytes is not whole blocks");
        DmaBuffer { memory: Memory::Owned(vec![AlignedBlock([0; BLOCK_BYTES]); len / BLOCK_BYTES]) }
    }

    /// Keeps the first `len` bytes.
    ///
    /// # Panics
    /// If `len` is not a multiple of [`BLOCK_BYTES`].
    pub fn truncate(&mut self, len: usize) {
        assert!(len.is_multiple_of(BLOCK_BYTES), "cannot cut a DMA buffer at {len}");
        match &mut self.memory {
            Memory::Owned(blocks) => blocks.truncate(len / BLOCK_BYTES),
            Memory::Leased(lease) => lease.len = lease.len.min(len),
        }
    }

    /// Whether the bytes are on lease from this arena.
    pub(crate) fn is_leased_from(&self, arena: &Rc<Arena>) -> bool {
        match &self.memory {
            Memory::Owned(_) => false,
            Memory::Leased(lease) => Rc::ptr_eq(&lease.arena, arena),
        }
    }
}

impl Deref for DmaBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: `AlignedBlock` is `repr(C)` around bytes without padding, and the blocks of a `Vec` are
            // contiguous and initialised; the borrow of `self` keeps them.
            Memory::Owned(blocks) => unsafe {
                std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len() * BLOCK_BYTES)
            },
            // SAFETY: the lease owns these initialised bytes of the arena until it is dropped: no other lease covers
            // them, and the arena itself never makes a reference to them.
            Memory::Leased(lease) => unsafe { std::slice::from_raw_parts(lease.start(), lease.len) },
        }
    }
}

impl DerefMut for DmaBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            // SAFETY: as in `deref`; the exclusive borrow of `self` makes this the only reference.
            Memory::Owned(blocks) => unsafe {
                std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast(), blocks.len() * BLOCK_BYTES)
            },
            // SAFETY: as in `deref`; the exclusive borrow of the only lease makes this the only reference.
            Memory::Leased(lease) => unsafe { std::slice::from_raw_parts_mut(lease.start(), lease.len) },
        }
    }
}

impl std::fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if matches!(self.memory, Memory::Owned(_)) { "owned" } else { "leased" };
        write!(f, "DmaBuffer({} bytes, {place})", self.len())
    }
}

/// A pool of block aligned memory, handed out in power-of-two pieces.
pub(crate) struct Arena {
    blocks: Box<[UnsafeCell<AlignedBlock>]>,
    free: RefCell<Buddies>,
}

impl Arena {
    /// A zeroed arena of `len` bytes, rounded down to a multiple of [`LEASE_BYTES_MAX`].
    pub(crate) fn new(len: usize) -> Rc<Arena> {
        let top_count = len / LEASE_BYTES_MAX;
        let block_count = top_count << TOP_ORDER;
        let blocks = (0..block_count).map(|_| UnsafeCell::new(AlignedBlock([0; BLOCK_BYTES]))).collect();
        Rc::new(Arena { blocks, free: RefCell::new(Buddies::new(top_count)) })
    }

    /// Start of the memory, for registration.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.blocks.as_ptr().cast_mut().cast()
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// A lease on `len` bytes, which hold whatever was there; `None` if no piece that long is free.
    pub(crate) fn lease(self: &Rc<Arena>, len: usize) -> Option<DmaBuffer> {
        assert!(len.is_multiple_of(BLOCK_BYTES), "DMA buffer of {len} bytes is not whole blocks");
        if len == 0 || len > LEASE_BYTES_MAX {
            return None;
        }
        let order = (len / BLOCK_BYTES).next_power_of_two().trailing_zeros() as usize;
        let index = self.free.borrow_mut().take(order)?;
        let lease = Lease { arena: Rc::clone(self), order, index, len };
        Some(DmaBuffer { memory: Memory::Leased(lease) })
    }
}

/// The right to use one piece of an arena.
struct Lease {
    arena: Rc<Arena>,
    order: usize,
    index: usize,
    len: usize,
}

impl Lease {
    fn start(&self) -> *mut u8 {
        self.arena.as_ptr().wrapping_add((self.index << self.order) * BLOCK_BYTES)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.arena.free.borrow_mut().give(self.order, self.index);
    }
}

/// Which pieces are free, per order: a buddy allocator. A piece's index counts pieces of its own order.
struct Buddies {
    free: [IndexSet; TOP_ORDER + 1],
}

impl Buddies {
    fn new(top_count: usize) -> Buddies {
        let mut free = std::array::from_fn(|order| IndexSet::new(top_count << (TOP_ORDER - order)));
        for index in 0..top_count {
            free[TOP_ORDER].insert(index);
        }
        Buddies { free }
    }

    fn take(&mut self, order: usize) -> Option<usize> {
        let found = (order..=TOP_ORDER).find(|&found| self.free[found].count > 0)?;
        let mut index = self.free[found].take_first()?;
        for smaller in (order..found).rev() {
            index *= 2;
            self.free[smaller].insert(index + 1);
        }
        Some(index)
    }

    fn give(&mut self, mut order: usize, mut index: usize) {
        while order < TOP_ORDER && self.free[order].remove(index ^ 1) {
            index /= 2;
            order += 1;
        }
        self.free[order].insert(index);
    }
}

/// A set of small numbers.
struct IndexSet {
    words: Vec<u64>,
    count: usize,
}

impl IndexSet {
    fn new(len: usize) -> IndexSet {
        IndexSet { words: vec![0; len.div_ceil(64)], count: 0 }
    }

    fn insert(&mut self, index: usize) {
        debug_assert_eq!(self.words[index / 64] >> (index % 64) & 1, 0, "piece {index} is given back twice");
        self.words[index / 64] |= 1 << (index % 64);
        self.count += 1;
    }

    fn remove(&mut self, index: usize) -> bool {
        let present = self.words[index / 64] >> (index % 64) & 1 == 1;
        if present {
            self.words[index / 64] &= !(1 << (index % 64));
            self.count -= 1;
        }
        present
    }

    fn take_first(&mut self) -> Option<usize> {
        let word = self.words.iter().position(|&word| word != 0)?;
        let index = word * 64 + self.words[word].trailing_zeros() as usize;
        self.remove(index);
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn buffers_are_aligned_and_zero() {
        for len in [0, 4096, 12_288, 1 << 20] {
            let buffer = DmaBuffer::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }

    /// Random leases are filled with their own number; none ever finds another's.
    #[test]
    fn leases_never_overlap_and_all_memory_comes_back() {
        let arena = Arena::new(3 << 20);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(11);
        let mut held: Vec<(u8, DmaBuffer)> = Vec::new();
        for round in 0..2_000_u32 {
            if random.random_range(0..3) > 0 {
                let len = random.random_range(1..=if round % 10 == 0 { 256 } else { 16 }) * BLOCK_BYTES;
                if let Some(mut buffer) = arena.lease(len) {
                    assert_eq!(buffer.len(), len);
                    assert!(buffer.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
                    buffer.fill(round as u8);
                    held.push((round as u8, buffer));
                }
            } else if !held.is_empty() {
                let (number, buffer) = held.swap_remove(random.random_range(0..held.len()));
                assert!(buffer.iter().all(|&byte| byte == number), "lease {number} was overwritten");
            }
        }
        held.clear();
        let all: Vec<_> = (0..3).map(|_| arena.lease(LEASE_BYTES_MAX)).collect();
        assert!(all.iter().all(Option::is_some), "the arena is in pieces though nothing is on lease");
        assert!(arena.lease(BLOCK_BYTES).is_none());
    }

    #[test]
    fn lease_keeps_its_arena_and_can_be_cut() {
        let arena = Arena::new(LEASE_BYTES_MAX);
        let mut buffer = arena.lease(8192).unwrap();
        buffer.fill(9);
        assert!(buffer.is_leased_from(&arena));
        buffer.truncate(4096);
        let witness = Rc::downgrade(&arena);
        drop(arena);
        assert_eq!(*buffer, [9; 4096]);
        drop(buffer);
        assert!(witness.upgrade().is_none());
    }

    #[test]
    fn lease_longer_than_the_longest_piece_is_refused() {
        assert!(Arena::new(4 << 20).lease(LEASE_BYTES_MAX + BLOCK_BYTES).is_none());
        assert!(Arena::new(LEASE_BYTES_MAX - 1).lease(BLOCK_BYTES).is_none());
    }
}
