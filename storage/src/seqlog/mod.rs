//! The seqlog of a vbucket: documents in seqno order, a segment a flush.
//!
//! A segment's fences and death marks are resident; its blocks are read through the cache. Segments never overlap in
//! seqno, so the by-seqno index is an array with nothing to merge.
//!
//! A record is *dead for E* when a newer version of its key has a seqno at or below E. The flush that writes the newer version
//! marks the older one, with the superseding seqno as long as some live view ends below it.
//!
//! Invariants
//! - Seqnos rise strictly. A segment's blocks never change.
//! - A bit in `dead` is set only if no live view ends below the superseding seqno.
//!
//! Cost: finding a seqno is two binary searches and one block; testing a mark is O(log recent marks), usually O(1).
//! Does not know: keys' order, the memtable.

mod writer;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

pub use writer::{SegmentWriter, write_marks};

use crate::cache::{Block, Shape};
use crate::extent::{Extents, Space};
use crate::format::block::{BlockIdentity, BlockType};
use crate::format::index::{DeathMark, SeqlogFence, decode_marks, decode_seqlog_fences};
use crate::format::manifest_record::{MarksDesc, SegmentDesc};
use crate::format::seqlog_block::SeqlogBlock;
use crate::reader::{BlockAt, ReadError, damaged, read_uncached};
use crate::types::Seqno;

#[derive(Debug, Default)]
struct Deaths {
    /// One bit a seqno from the segment's first on: dead for everyone.
    all: Vec<u64>,
    dead: u64,
    /// Dead only for those who end at or after the superseding seqno.
    recent: BTreeMap<Seqno, Seqno>,
}

/// What one flush appended.
#[derive(Debug)]
pub struct Segment {
    desc: SegmentDesc,
    identity: BlockIdentity,
    fences: Vec<SeqlogFence>,
    deaths: RefCell<Deaths>,
    extents: Extents,
}

impl Segment {
    /// Opens a segment that the manifest names; its extents are claimed already.
    ///
    /// # Errors
    /// `Io`, `Damaged`: its index cannot be read.
    pub async fn open(
        space: &Rc<Space>,
        identity: BlockIdentity,
        desc: SegmentDesc,
    ) -> Result<Segment, ReadError> {
        let identity = BlockIdentity { object: desc.id, kind: BlockType::SeqlogIndex, ..identity };
        let at = BlockAt { identity, place: desc.index.start, blocks: desc.index.blocks };
        let (bytes, payload) = read_uncached(space, &at).await?;
        let fences =
            decode_seqlog_fences(&bytes[payload]).map_err(|source| damaged(space, at.place, source))?;
        let mut list = desc.extents.clone();
        list.push(desc.index);
        let extents = Extents::named(space.clone(), list);
        Ok(Segment { desc, identity, fences, deaths: RefCell::default(), extents })
    }

    /// What the manifest says of it.
    #[must_use]
    pub fn desc(&self) -> &SegmentDesc {
        &self.desc
    }

    /// A durable manifest names it from now on, or no longer does.
    pub fn set_named(&self, named: bool) {
        self.extents.set_named(named);
    }

    /// Its fences, in seqno order.
    #[must_use]
    pub fn fences(&self) -> &[SeqlogFence] {
        &self.fences
    }

    /// Where its index lies.
    #[must_use]
    pub fn index_at(&self) -> BlockAt {
        let identity = BlockIdentity { kind: BlockType::SeqlogIndex, ..self.identity };
        BlockAt { identity, place: self.desc.index.start, blocks: self.desc.index.blocks }
    }

    /// Where the block of a fence lies.
    #[must_use]
    pub fn block_at(&self, fence: &SeqlogFence) -> BlockAt {
        let identity = BlockIdentity { kind: BlockType::Seqlog, ..self.identity };
        BlockAt { identity, place: fence.place, blocks: fence.blocks }
    }

    /// The fence of the block in which `seqno` would be.
    #[must_use]
    pub fn fence_of(&self, seqno: Seqno) -> Option<&SeqlogFence> {
        let fence = self.fences.get(self.fences.partition_point(|fence| fence.last < seqno))?;
        (fence.first <= seqno).then_some(fence)
    }

    /// Marks a record dead: for everyone if `for_all`, else for those who end at or after `mark.by`.
    pub fn mark(&self, mark: DeathMark, for_all: bool) {
        let deaths = &mut *self.deaths.borrow_mut();
        if for_all {
            self.set_bit(deaths, mark.dead);
        } else {
            deaths.recent.insert(mark.dead, mark.by);
        }
    }

    fn set_bit(&self, deaths: &mut Deaths, dead: Seqno) {
        let bit = (dead.0 - self.desc.first.0) as usize;
        if deaths.all.is_empty() {
            deaths.all = vec![0; (self.desc.last.0 - self.desc.first.0) as usize / 64 + 1];
        }
        let word = &mut deaths.all[bit / 64];
        deaths.dead += u64::from(*word & 1 << (bit % 64) == 0);
        *word |= 1 << (bit % 64);
    }

    /// Marks that every live view (the lowest ends at `lowest_end`) sees become bits.
    pub fn settle_marks(&self, lowest_end: Seqno) {
        let deaths = &mut *self.deaths.borrow_mut();
        let settled: Vec<Seqno> =
            deaths.recent.iter().filter(|(_, by)| **by <= lowest_end).map(|(dead, _)| *dead).collect();
        for dead in settled {
            deaths.recent.remove(&dead);
            self.set_bit(deaths, dead);
        }
    }

    /// Whether the record is dead for a reader that ends at `end`.
    #[inline]
    #[must_use]
    pub fn is_dead(&self, seqno: Seqno, end: Seqno) -> bool {
        let deaths = self.deaths.borrow();
        let bit = (seqno.0 - self.desc.first.0) as usize;
        if deaths.all.get(bit / 64).is_some_and(|word| word & 1 << (bit % 64) != 0) {
            return true;
        }
        !deaths.recent.is_empty() && deaths.recent.get(&seqno).is_some_and(|by| *by <= end)
    }

    /// Records that are dead, for some reader or for all.
    #[must_use]
    pub fn dead_records(&self) -> u64 {
        let deaths = self.deaths.borrow();
        deaths.dead + deaths.recent.len() as u64
    }

    /// Resident bytes: fences and marks.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        let deaths = self.deaths.borrow();
        self.fences.len() * size_of::<SeqlogFence>() + deaths.all.len() * 8 + deaths.recent.len() * 32
    }
}

/// The segment of a list in which `seqno` would be.
#[must_use]
pub fn segment_of(segments: &[Rc<Segment>], seqno: Seqno) -> Option<&Rc<Segment>> {
    let segment = segments.get(segments.partition_point(|segment| segment.desc.last < seqno))?;
    (segment.desc.first <= seqno).then_some(segment)
}

/// Marks read from the data file; their block stays owned as long as the manifest names it.
///
/// # Errors
/// `Io`, `Damaged`.
pub async fn read_marks(
    space: &Rc<Space>,
    identity: BlockIdentity,
    desc: &MarksDesc,
) -> Result<Vec<DeathMark>, ReadError> {
    let identity = BlockIdentity { object: desc.id, kind: BlockType::Marks, ..identity };
    let at = BlockAt { identity, place: desc.block.start, blocks: desc.block.blocks };
    let (bytes, payload) = read_uncached(space, &at).await?;
    decode_marks(&bytes[payload]).map_err(|source| damaged(space, at.place, source))
}

/// The shape of a block that was read as a seqlog block.
///
/// # Panics
/// If it was read as something else.
#[inline]
#[must_use]
pub fn seqlog_block(block: &Block) -> &SeqlogBlock {
    match &block.shape {
        Shape::Seqlog(shape) => shape,
        _ => unreachable!("read as a seqlog block"),
    }
}
