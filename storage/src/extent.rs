//! Space in the data file: which blocks are free, and who owns the others.
//!
//! [`Space`] gives away contiguous ranges of device blocks and grows the file in large steps. [`Extents`] owns
//! ranges: dropping the last owner of a range that no manifest names gives it back. [`ExtentWriter`] fills ranges with
//! sealed blocks and keeps several writes under way.
//!
//! A full disk can always be compacted: a reserve of free blocks ([`Space::reserve_blocks`]) is given only to what makes room in the end.
//!
//! Invariants
//! - A block is free or owned, never both. What the manifest names is never given away.
//! - New data leaves the reserve free, and upkeep leaves half of it to the manifest.
//! - A range is given back only when no write to it is under way.
//!
//! Cost: an allocation is O(free ranges), first fit; giving back is O(log n).
//! Does not know: what extents hold.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;

use crate::cache::BlockCache;
use crate::env::LocalFuture;
use crate::format::manifest_record::Extent;
use crate::format::superblock::{FIRST_DATA_BLOCK, SUPERBLOCK_SLOTS};
use crate::io::{BLOCK_BYTES, Device, DmaBuffer};
use crate::sync::Lock;

/// Blocks of one write when much is written.
const CHUNK_BLOCKS: u32 = 256;

/// Writes that an [`ExtentWriter`] keeps under way.
const WRITES_MAX: usize = 4;

/// The free ranges of a data file.
#[derive(Debug, Default)]
struct FreeMap {
    ranges: BTreeMap<u64, u64>,
    free: u64,
}

impl FreeMap {
    fn take(&mut self, blocks: u64) -> Option<u64> {
        let (&start, &len) = self.ranges.iter().find(|(_, len)| **len >= blocks)?;
        self.ranges.remove(&start);
        if len > blocks {
            self.ranges.insert(start + blocks, len - blocks);
        }
        self.free -= blocks;
        Some(start)
    }

    /// The longest free range, if it has `blocks` at least.
    fn longest(&self, blocks: u64) -> Option<u64> {
        self.ranges.values().copied().max().filter(|len| *len >= blocks)
    }

    fn give(&mut self, mut start: u64, mut len: u64) {
        self.free += len;
        if let Some((&before, &before_len)) = self.ranges.range(..=start).next_back() {
            assert!(before + before_len <= start, "blocks {start}+{len} were free already");
            if before + before_len == start {
                self.ranges.remove(&before);
                start = before;
                len += before_len;
            }
        }
        if let Some((&after, &after_len)) = self.ranges.range(start..).next() {
            assert!(start + len <= after, "blocks {start}+{len} were free already");
            if start + len == after {
                self.ranges.remove(&after);
                len += after_len;
            }
        }
        self.ranges.insert(start, len);
    }

    /// Takes exactly this range out; false if part of it was not free.
    fn take_exactly(&mut self, start: u64, blocks: u64) -> bool {
        let Some((&range, &len)) = self.ranges.range(..=start).next_back() else { return false };
        if start + blocks > range + len {
            return false;
        }
        self.ranges.remove(&range);
        if start > range {
            self.ranges.insert(range, start - range);
        }
        if range + len > start + blocks {
            self.ranges.insert(start + blocks, range + len - start - blocks);
        }
        self.free -= blocks;
        true
    }
}

/// What blocks are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// New data: leaves the reserve free.
    Data,
    /// Rewriting and merging, which make room in the end: leaves half of the reserve free.
    Upkeep,
    /// The manifest, without which nothing goes on.
    Manifest,
}

/// Least and greatest reserve, in blocks; between them it is a sixteenth of the file.
const RESERVE_BLOCKS: (u64, u64) = (64, 16 << 10);

/// How full a data file is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SpaceStats {
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes not owned by anything.
    pub free_bytes: u64,
    /// Of these: bytes that only rewriting, merges and the manifest may take.
    pub reserve_bytes: u64,
}

/// The space of one data file. Shared by all that write to it.
pub struct Space {
    device: Rc<dyn Device>,
    cache: Rc<BlockCache>,
    file: u32,
    free: RefCell<FreeMap>,
    end: Cell<u64>,
    grow_blocks: u64,
    growing: Lock,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Space({}, {} blocks)", self.device.name(), self.end.get())
    }
}

impl Space {
    /// The space of `device`, all of it free but the superblock slots. It grows by `grow_bytes` at a time.
    pub fn new(device: Rc<dyn Device>, cache: Rc<BlockCache>, grow_bytes: u64) -> Rc<Space> {
        let end = device.len_bytes() / BLOCK_BYTES as u64;
        let mut free = FreeMap::default();
        if end > 0 {
            free.give(0, end);
            for slot in SUPERBLOCK_SLOTS {
                free.take_exactly(slot, 1);
            }
            // Between the slots nothing is given away: the slots stay apart and the first extent is aligned.
            free.take_exactly(1, FIRST_DATA_BLOCK - 2);
        }
        let file = cache.register_file();
        Rc::new(Space {
            device,
            cache,
            file,
            free: RefCell::new(free),
            end: Cell::new(end),
            grow_blocks: (grow_bytes / BLOCK_BYTES as u64).max(1),
            growing: Lock::default(),
        })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Rc<dyn Device> {
        &self.device
    }

    /// The cache of blocks read from here.
    #[must_use]
    pub fn cache(&self) -> &Rc<BlockCache> {
        &self.cache
    }

    /// The number under which the cache knows this file.
    #[must_use]
    pub fn file(&self) -> u32 {
        self.file
    }

    /// How full the file is.
    #[must_use]
    pub fn stats(&self) -> SpaceStats {
        let block = BLOCK_BYTES as u64;
        SpaceStats {
            file_bytes: self.end.get() * block,
            free_bytes: self.free.borrow().free * block,
            reserve_bytes: self.reserve_blocks() * block,
        }
    }

    /// Free blocks that only upkeep may take.
    #[must_use]
    pub fn reserve_blocks(&self) -> u64 {
        (self.end.get() / 16).clamp(RESERVE_BLOCKS.0, RESERVE_BLOCKS.1)
    }

    /// Marks a range as owned that a manifest names. False if it is not free or not in the file: two owners.
    #[must_use]
    pub fn claim(&self, extent: Extent) -> bool {
        self.free.borrow_mut().take_exactly(extent.start, u64::from(extent.blocks))
    }

    /// A contiguous range of exactly `blocks`; the file grows if it must.
    ///
    /// # Errors
    /// `StorageFull`, or what growing met.
    pub async fn allocate(&self, blocks: u32, purpose: Purpose) -> io::Result<Extent> {
        loop {
            if let Some(start) = self.take(u64::from(blocks), purpose) {
                return Ok(Extent { start, blocks });
            }
            let seen = self.end.get();
            let _growing = self.growing.lock().await;
            if self.end.get() == seen {
                let end = seen + self.grow_blocks.max(u64::from(blocks));
                self.device.grow(end * BLOCK_BYTES as u64).await?;
                self.end.set(end);
                self.free.borrow_mut().give(seen, end - seen);
            }
        }
    }

    /// A contiguous range of `wanted` blocks; where there is none and the file cannot grow, one of `blocks` at least.
    ///
    /// # Errors
    /// `StorageFull`, or what growing met.
    async fn allocate_up_to(&self, blocks: u32, wanted: u32, purpose: Purpose) -> io::Result<Extent> {
        match self.allocate(wanted.max(blocks), purpose).await {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let longest = self.free.borrow().longest(u64::from(blocks)).map_or(blocks, |len| len as u32);
                let taken = self.take(u64::from(longest), purpose).map(|start| (start, longest));
                let least = || Some((self.take(u64::from(blocks), purpose)?, blocks));
                taken.or_else(least).map(|(start, blocks)| Extent { start, blocks }).ok_or(error)
            }
            answer => answer,
        }
    }

    fn take(&self, blocks: u64, purpose: Purpose) -> Option<u64> {
        let reserve = match purpose {
            Purpose::Data => self.reserve_blocks(),
            Purpose::Upkeep => self.reserve_blocks() / 2,
            Purpose::Manifest => 0,
        };
        let mut free = self.free.borrow_mut();
        if free.free < blocks + reserve { None } else { free.take(blocks) }
    }

    fn give_back(&self, extent: Extent) {
        self.cache.forget(self.file, extent.start, extent.blocks);
        self.free.borrow_mut().give(extent.start, u64::from(extent.blocks));
    }
}

/// Ranges with one owner. They return to the space when it is dropped, unless a manifest names them.
#[derive(Debug)]
pub struct Extents {
    space: Rc<Space>,
    list: Vec<Extent>,
    named: Cell<bool>,
}

impl Extents {
    /// Ranges that a recovered manifest names; claim them from the space first.
    #[must_use]
    pub fn named(space: Rc<Space>, list: Vec<Extent>) -> Extents {
        Extents { space, list, named: Cell::new(true) }
    }

    /// Fresh ranges that no manifest names yet.
    #[must_use]
    pub fn fresh(space: Rc<Space>, list: Vec<Extent>) -> Extents {
        Extents { space, list, named: Cell::new(false) }
    }

    /// The ranges.
    #[must_use]
    pub fn list(&self) -> &[Extent] {
        &self.list
    }

    /// The first `blocks` of a single fresh range; the rest is given back.
    #[must_use]
    pub(crate) fn shortened(mut self, blocks: u32) -> Extents {
        let range = &mut self.list[0];
        if range.blocks > blocks {
            let rest = Extent { start: range.start + u64::from(blocks), blocks: range.blocks - blocks };
            range.blocks = blocks;
            self.space.give_back(rest);
        }
        self
    }

    /// A durable manifest names them from now on, or no longer does.
    pub fn set_named(&self, named: bool) {
        self.named.set(named);
    }

    /// Whether a durable manifest names them.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.named.get()
    }
}

impl Drop for Extents {
    fn drop(&mut self) {
        if !self.named.get() {
            for extent in self.list.drain(..) {
                self.space.give_back(extent);
            }
        }
    }
}

struct Chunk {
    extent: Extent,
    buffer: DmaBuffer,
    used: u32,
}

/// Fills fresh ranges with sealed blocks, in order, several writes at a time.
pub struct ExtentWriter {
    space: Rc<Space>,
    purpose: Purpose,
    extents: Vec<Extent>,
    chunk: Option<Chunk>,
    under_way: VecDeque<LocalFuture<'static, io::Result<DmaBuffer>>>,
}

impl ExtentWriter {
    /// A writer into `space`.
    #[must_use]
    pub fn new(space: Rc<Space>, purpose: Purpose) -> ExtentWriter {
        ExtentWriter { space, purpose, extents: Vec::new(), chunk: None, under_way: VecDeque::new() }
    }

    /// Room for one sealed block of `blocks`, contiguous: its place, and the bytes to fill, zeroed. `expected` says how many blocks
    /// are still to come in all, so that ranges are neither too many nor too long.
    ///
    /// # Errors
    /// Of allocation, or of an earlier write.
    pub async fn room(&mut self, blocks: u32, expected: u32) -> io::Result<(u64, &mut [u8])> {
        let fits = self.chunk.as_ref().is_some_and(|chunk| chunk.used + blocks <= chunk.extent.blocks);
        if !fits {
            self.write_chunk().await?;
            let wanted = expected.min(CHUNK_BLOCKS);
            let extent = match self.space.allocate_up_to(blocks, wanted, self.purpose).await {
                Ok(extent) => extent,
                Err(error) => {
                    self.wait_all().await;
                    return Err(error);
                }
            };
            let buffer = self.space.device.buffer(extent.blocks as usize * BLOCK_BYTES);
            self.chunk = Some(Chunk { extent, buffer, used: 0 });
        }
        let chunk = self.chunk.as_mut().expect("made above");
        let start = chunk.used as usize * BLOCK_BYTES;
        chunk.used += blocks;
        let place = chunk.extent.start + (start / BLOCK_BYTES) as u64;
        Ok((place, &mut chunk.buffer[start..start + blocks as usize * BLOCK_BYTES]))
    }

    async fn write_chunk(&mut self) -> io::Result<()> {
        let Some(Chunk { extent, mut buffer, used }) = self.chunk.take() else { return Ok(()) };
        if used < extent.blocks {
            let rest = Extent { start: extent.start + u64::from(used), blocks: extent.blocks - used };
            self.space.give_back(rest);
            buffer.truncate(used as usize * BLOCK_BYTES);
        }
        if used == 0 {
            return Ok(());
        }
        self.extents.push(Extent { start: extent.start, blocks: used });
        self.under_way.push_back(self.space.device.write(extent.start * BLOCK_BYTES as u64, buffer));
        while self.under_way.len() >= WRITES_MAX {
            self.wait_one().await?;
        }
        Ok(())
    }

    async fn wait_one(&mut self) -> io::Result<()> {
        let Some(write) = self.under_way.pop_front() else { return Ok(()) };
        let written = write.await.map(drop);
        if written.is_err() {
            self.wait_all().await;
        }
        written
    }

    /// Waits until no write is under way, however they end.
    async fn wait_all(&mut self) {
        while let Some(write) = self.under_way.pop_front() {
            let _ = write.await;
        }
    }

    /// Gives up: the ranges are given back once no write to them is under way.
    pub async fn abort(mut self) {
        self.wait_all().await;
    }

    /// Waits until all is written (not synced) and returns the ranges.
    ///
    /// # Errors
    /// Of any write; the ranges are given back then.
    pub async fn finish(mut self) -> io::Result<Extents> {
        let mut result = self.write_chunk().await;
        while !self.under_way.is_empty() {
            let one = self.wait_one().await;
            result = result.and(one);
        }
        let extents = Extents::fresh(self.space.clone(), std::mem::take(&mut self.extents));
        result.map(|()| extents)
    }
}

impl Drop for ExtentWriter {
    fn drop(&mut self) {
        // A write under way may still land: what it covers stays owned until the next start. Only a task that is dropped comes here with one.
        if self.under_way.is_empty() {
            for extent in self.extents.drain(..) {
                self.space.give_back(extent);
            }
        }
        if let Some(chunk) = self.chunk.take() {
            self.space.give_back(chunk.extent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn freed_neighbours_become_one_range() {
        let mut free = FreeMap::default();
        free.give(10, 5);
        free.give(20, 5);
        free.give(15, 5);
        assert_eq!(free.ranges, BTreeMap::from([(10, 15)]));
        assert_eq!(free.take(15), Some(10));
        assert_eq!(free.free, 0);
    }

    proptest! {
        /// A block is free or owned, never both: against a set of single blocks.
        #[test]
        fn no_block_is_given_away_twice(operations in prop::collection::vec((0u8..3, 1u64..20), 1..200)) {
            let mut free = FreeMap::default();
            free.give(0, 400);
            let mut owned: Vec<(u64, u64)> = Vec::new();
            for (operation, number) in operations {
                match operation {
                    0 | 1 => if let Some(start) = free.take(number) {
                        for &(other, len) in &owned {
                            prop_assert!(start + number <= other || other + len <= start);
                        }
                        owned.push((start, number));
                    },
                    _ => if !owned.is_empty() {
                        let (start, len) = owned.swap_remove(number as usize % owned.len());
                        free.give(start, len);
                    },
                }
                let held: u64 = owned.iter().map(|(_, len)| len).sum();
                prop_assert_eq!(held + free.free, 400);
            }
        }
    }
}
