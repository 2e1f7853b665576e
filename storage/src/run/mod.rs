//! A run: an immutable, sorted set of versions, one a key, in the data file.
//!
//! Fences and filter are resident; key parts and metadata parts are read through the block cache. A run lives as long as the manifest
//! or a view names it; its blocks are free when both have let go.
//!
//! Invariants
//! - Keys rise strictly. A run never changes.
//!
//! Cost: a look-up is one filter probe, a binary search of the fences, one block.
//! Does not know: other runs, documents' values.

mod cursor;
mod filter;
mod merge;
mod writer;

use std::cell::Cell;
use std::rc::Rc;

pub use cursor::{Cursor, ReadAhead};
pub use filter::{Filter, filter_hash};
pub(crate) use merge::unreadable;
pub use merge::{MergeError, Newest, merge_runs};
pub use writer::RunWriter;
pub(crate) use writer::{join, write_object_block};

use crate::cache::{Admission, Block, Shape};
use crate::extent::{Extents, Space};
use crate::format::block::{BlockIdentity, BlockType};
use crate::format::index::{KeyFence, decode_run_index};
use crate::format::key_block::{KeyPart, Meta, leb128, meta_at};
use crate::format::manifest_record::RunDesc;
use crate::io::BLOCK_BYTES;
use crate::reader::{BlockAt, ReadError, damaged, read, read_uncached};
use crate::types::Seqno;

/// See the module.
#[derive(Debug)]
pub struct Run {
    desc: RunDesc,
    identity: BlockIdentity,
    space: Rc<Space>,
    fences: Vec<KeyFence>,
    filter: Filter,
    extents: Extents,
    /// Earliest expiry of a document that nobody has dealt with; `u32::MAX` for none, `None` if not known.
    next_expiry: Cell<Option<u32>>,
    is_unreadable: Cell<bool>,
}

/// A key found in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Seqno of its version here.
    pub seqno: Seqno,
    /// Whether that version is a deletion.
    pub deleted: bool,
    fence: usize,
    index: usize,
}

impl Run {
    /// Opens a run that the manifest names; its extents are claimed already.
    ///
    /// # Errors
    /// `Io`, `Damaged`: its index cannot be read.
    pub async fn open(space: Rc<Space>, identity: BlockIdentity, desc: RunDesc) -> Result<Run, ReadError> {
        let identity = BlockIdentity { object: desc.id, kind: BlockType::RunIndex, ..identity };
        let at = BlockAt { identity, place: desc.index.start, blocks: desc.index.blocks };
        let (bytes, payload) = read_uncached(&space, &at).await?;
        let decoded = decode_run_index(&bytes[payload]);
        let (fences, filter) = decoded.map_err(|source| damaged(&space, at.place, source))?;
        let filter = Filter::decode(filter);
        let mut list = desc.extents.clone();
        list.push(desc.index);
        let extents = Extents::named(space.clone(), list);
        let (next_expiry, is_unreadable) = (Cell::new(None), Cell::new(false));
        Ok(Run { desc, identity, space, fences, filter, extents, next_expiry, is_unreadable })
    }

    /// What the manifest says of it.
    #[must_use]
    pub fn desc(&self) -> &RunDesc {
        &self.desc
    }

    /// Bytes of its blocks, index included.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        let blocks: u64 = self.extents.list().iter().map(|extent| u64::from(extent.blocks)).sum();
        blocks * BLOCK_BYTES as u64
    }

    /// An attempt to merge it has met a block that cannot be read.
    pub fn set_unreadable(&self) {
        self.is_unreadable.set(true);
    }

    /// Whether it is of no use to try to merge it.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        self.is_unreadable.get()
    }

    /// Resident bytes: fences and filter.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        let fences: usize = self.fences.iter().map(|fence| fence.first_key.len() + 40).sum();
        fences + self.filter.bytes()
    }

    /// A durable manifest names it from now on, or no longer does.
    pub fn set_named(&self, named: bool) {
        self.extents.set_named(named);
    }

    /// Whether a durable manifest names it.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.extents.is_named()
    }

    /// The earliest expiry in it that still has to be dealt with: `u32::MAX` if there is none, `None` if it must be looked for.
    #[must_use]
    pub fn next_expiry(&self) -> Option<u32> {
        self.next_expiry.get()
    }

    /// Everything that expires before `expiry` has been dealt with.
    pub fn set_next_expiry(&self, expiry: u32) {
        self.next_expiry.set(Some(expiry));
    }

    /// Whether a key with this hash may be here.
    #[inline]
    #[must_use]
    pub fn may_contain(&self, hash: u64) -> bool {
        self.filter.may_contain(hash)
    }

    /// Number of key parts.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.fences.len()
    }

    /// The part in which `key` would be, if it is not below all keys.
    #[must_use]
    pub fn part_of(&self, key: &[u8]) -> Option<usize> {
        self.fences.partition_point(|fence| &*fence.first_key <= key).checked_sub(1)
    }

    /// The fence of a part.
    #[must_use]
    pub fn fence(&self, part: usize) -> &KeyFence {
        &self.fences[part]
    }

    /// Where its index lies.
    #[must_use]
    pub fn index_at(&self) -> BlockAt {
        let identity = BlockIdentity { kind: BlockType::RunIndex, ..self.identity };
        BlockAt { identity, place: self.desc.index.start, blocks: self.desc.index.blocks }
    }

    /// Where a key part lies.
    #[must_use]
    pub fn key_part_at(&self, part: usize) -> BlockAt {
        let fence = &self.fences[part];
        let identity = BlockIdentity { kind: BlockType::Keys, ..self.identity };
        BlockAt { identity, place: fence.place, blocks: u32::from(fence.key_blocks) }
    }

    /// Where a metadata part lies.
    #[must_use]
    pub fn meta_part_at(&self, part: usize) -> BlockAt {
        let fence = &self.fences[part];
        let identity = BlockIdentity { kind: BlockType::Metas, ..self.identity };
        let place = fence.place + u64::from(fence.key_blocks);
        BlockAt { identity, place, blocks: u32::from(fence.meta_blocks) }
    }

    /// The space it lies in.
    #[must_use]
    pub fn space(&self) -> &Rc<Space> {
        &self.space
    }

    /// Looks a key (with prefix) up.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub async fn find(&self, key: &[u8]) -> Result<Option<Found>, ReadError> {
        let Some(fence) = self.part_of(key) else { return Ok(None) };
        let block = read(&self.space, &self.key_part_at(fence), Admission::Evict).await?;
        let (collection, prefix) = leb128(key).unwrap_or((0, 0));
        let part = key_part(&block);
        if part.collection != collection {
            return Ok(None);
        }
        let index = part.lower_bound(&block.bytes, 0, &key[prefix..]);
        if index == part.records as usize || part.key(&block.bytes, index) != &key[prefix..] {
            return Ok(None);
        }
        let (seqno, deleted) = part.seqno(&block.bytes, index);
        Ok(Some(Found { seqno, deleted, fence, index }))
    }

    /// The metadata of a key that [`Self::find`] found.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub async fn meta(&self, found: Found) -> Result<Meta, ReadError> {
        let at = self.meta_part_at(found.fence);
        let block = read(&self.space, &at, Admission::Evict).await?;
        meta_at(&block.bytes, found.index).map_err(|source| damaged(&self.space, at.place, source))
    }
}

/// The shape of a block that was read as a key part.
///
/// # Panics
/// If it was read as something else.
#[inline]
#[must_use]
pub fn key_part(block: &Block) -> &KeyPart {
    match &block.shape {
        Shape::Keys(part) => part,
        _ => unreachable!("read as a key part"),
    }
}
