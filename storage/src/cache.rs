//! The block cache of a core: verified blocks, bounded in bytes.
//!
//! Blocks come in only after their checksum and identity were checked, together with their parsed shape, so a hit
//! costs one look-up and no verification.
//!
//! Invariants
//! - The bytes held never exceed the bound, blocks borrowed by readers apart.
//! - A scan fills only free room; a point read makes room by second chance (CLOCK).
//! - A place that is freed is forgotten, and a block is only returned to a reader that asks for the object it belongs to.
//!
//! Cost: O(1) a look-up; O(1) amortised an insertion.
//! Does not know: documents, responses, who reads.
//! Source: F. Corbató, "A paging experiment with the Multics system", 1968 (CLOCK).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Deref;
use std::rc::Rc;

use crate::format::key_block::KeyPart;
use crate::format::seqlog_block::SeqlogBlock;
use crate::slab::Array;

/// What a cached block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A key part of a run.
    Keys(KeyPart),
    /// A metadata part of a run.
    Metas,
    /// Documents.
    Seqlog(SeqlogBlock),
}

/// The bytes of a block, in memory where they can stay: not in the scarce memory that the device reads into.
#[derive(Debug)]
pub struct BlockBytes(Array<u8>);

impl BlockBytes {
    /// A copy.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> BlockBytes {
        BlockBytes(Array::copy_of(bytes))
    }
}

impl Deref for BlockBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// A verified block with its shape.
#[derive(Debug)]
pub struct Block {
    /// The run or segment it belongs to.
    pub object: u64,
    /// The bytes, header included.
    pub bytes: BlockBytes,
    /// How to read them.
    pub shape: Shape,
}

/// Whether a reader may push others' blocks out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// A point read: makes room.
    Evict,
    /// A scan: only if there is free room.
    FreeRoom,
    /// A reader who comes once, before the block goes: nothing is kept for it.
    Never,
}

/// Which block: the data file (numbered by the core) and the place in it.
pub type CacheKey = (u32, u64);

/// Counters of a cache since it was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CacheStats {
    /// Bytes held now.
    pub bytes: u64,
    /// The bound.
    pub bytes_max: u64,
    /// Blocks held now.
    pub blocks: u64,
    /// Look-ups answered.
    pub hits: u64,
    /// Look-ups not answered.
    pub misses: u64,
    /// Blocks pushed out.
    pub evicted: u64,
    /// Blocks not taken for want of room.
    pub refused: u64,
}

#[derive(Debug)]
struct Entry {
    block: Rc<Block>,
    referenced: Cell<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: hashbrown::HashMap<CacheKey, Entry, ahash::RandomState>,
    clock: VecDeque<CacheKey>,
    bytes_max: usize,
    stats: CacheStats,
}

/// See the module.
#[derive(Debug, Default)]
pub struct BlockCache {
    inner: RefCell<Inner>,
    files: Cell<u32>,
}

impl BlockCache {
    /// A cache that holds at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Rc<BlockCache> {
        let cache = BlockCache::default();
        cache.inner.borrow_mut().bytes_max = bytes_max;
        Rc::new(cache)
    }

    /// A number for one more data file.
    pub fn register_file(&self) -> u32 {
        self.files.set(self.files.get() + 1);
        self.files.get()
    }

    /// The block at `key` if it is here and belongs to `object`.
    pub fn get(&self, key: CacheKey, object: u64) -> Option<Rc<Block>> {
        let inner = &mut *self.inner.borrow_mut();
        match inner.entries.get(&key) {
            Some(entry) if entry.block.object == object => {
                entry.referenced.set(true);
                inner.stats.hits += 1;
                Some(entry.block.clone())
            }
            _ => {
                inner.stats.misses += 1;
                None
            }
        }
    }

    /// Takes a verified block in, if the rules allow, and returns it shared.
    pub fn insert(&self, key: CacheKey, block: Block, admission: Admission) -> Rc<Block> {
        let inner = &mut *self.inner.borrow_mut();
        let len = block.bytes.len();
        let block = Rc::new(block);
        if admission == Admission::Never {
            return block;
        }
        inner.remove(key);
        if admission == Admission::Evict && len <= inner.bytes_max {
            inner.make_room(len);
        }
        if inner.stats.bytes as usize + len > inner.bytes_max {
            inner.stats.refused += 1;
            return block;
        }
        inner.stats.bytes += len as u64;
        inner.stats.blocks += 1;
        inner.entries.insert(key, Entry { block: block.clone(), referenced: Cell::new(false) });
        inner.clock.push_back(key);
        block
    }

    /// Forgets `blocks` places of a file from `start` on: they are free now.
    pub fn forget(&self, file: u32, start: u64, blocks: u32) {
        let inner = &mut *self.inner.borrow_mut();
        for place in start..start + u64::from(blocks) {
            inner.remove((file, place));
        }
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let inner = self.inner.borrow();
        CacheStats { bytes_max: inner.bytes_max as u64, ..inner.stats }
    }
}

impl Inner {
    fn remove(&mut self, key: CacheKey) {
        if let Some(entry) = self.entries.remove(&key) {
            self.stats.bytes -= entry.block.bytes.len() as u64;
            self.stats.blocks -= 1;
        }
        // The clock may hold keys of forgotten blocks; they fall out as the hand passes, or here in one go.
        if self.clock.len() > 2 * self.entries.len() + 1024 {
            let entries = &self.entries;
            self.clock.retain(|key| entries.contains_key(key));
        }
    }

    fn make_room(&mut self, len: usize) {
        while self.stats.bytes as usize + len > self.bytes_max {
            let Some(key) = self.clock.pop_front() else { return };
            let Some(entry) = self.entries.get(&key) else { continue };
            if entry.referenced.replace(false) {
                self.clock.push_back(key);
            } else {
                self.remove(key);
                self.stats.evicted += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::BLOCK_BYTES;

    fn block(object: u64) -> Block {
        Block { object, bytes: BlockBytes::copy_of(&[0; BLOCK_BYTES]), shape: Shape::Metas }
    }

    #[test]
    fn a_scan_fills_only_free_room_and_a_point_read_makes_room() {
        let cache = BlockCache::new(4 * BLOCK_BYTES);
        for place in 0..4 {
            cache.insert((1, place), block(9), Admission::Evict);
        }
        cache.insert((1, 10), block(9), Admission::FreeRoom);
        assert!(cache.get((1, 10), 9).is_none());
        assert!(cache.get((1, 0), 9).is_some());
        cache.insert((1, 11), block(9), Admission::Evict);
        assert!(cache.get((1, 11), 9).is_some());
        assert!(cache.get((1, 0), 9).is_some(), "the one read again stays");
        let stats = cache.stats();
        assert_eq!((stats.blocks, stats.bytes, stats.evicted), (4, 4 * BLOCK_BYTES as u64, 1));
    }

    #[test]
    fn a_freed_place_and_a_block_of_another_object_are_not_returned() {
        let cache = BlockCache::new(1 << 20);
        cache.insert((1, 5), block(9), Admission::Evict);
        assert!(cache.get((1, 5), 8).is_none());
        assert!(cache.get((2, 5), 9).is_none());
        cache.forget(1, 4, 3);
        assert!(cache.get((1, 5), 9).is_none());
        assert_eq!(cache.stats().bytes, 0);
    }

    #[test]
    fn a_block_larger_than_the_cache_is_handed_through() {
        let cache = BlockCache::new(BLOCK_BYTES);
        cache.insert((1, 1), block(9), Admission::Evict);
        let large =
            Block { object: 9, bytes: BlockBytes::copy_of(&[0; 2 * BLOCK_BYTES]), shape: Shape::Metas };
        assert_eq!(cache.insert((1, 2), large, Admission::Evict).bytes.len(), 2 * BLOCK_BYTES);
        assert!(cache.get((1, 1), 9).is_some());
    }
}
