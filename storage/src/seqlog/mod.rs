//! The seqlog of a vbucket: documents in seqno order, a segment a flush.
//!
//! A segment's fences and death marks are resident; its blocks are read through the cache. Segments never overlap in
//! seqno, so the by-seqno index is an array with nothing to merge.
//!
//! A record is *dead for E* when a newer version of its key has a seqno at or below E. The flush that writes the newer version
//! marks the older one, with the superseding seqno as long as some live view ends below it.
//!
//! What is dead for a reader who comes now goes when the segment is rewritten ([`crate::vbstore`]): the new segment has the same seqnos without those. Where
//! none is left, between two segments or within one, there was no record that anybody could ask for by seqno; who asks is told that there is none.
//!
//! Invariants
//! - Seqnos rise strictly. A segment's blocks never change.
//! - A mark is of a record that the segment has: those that it lost with its last rewriting are not taken.
//! - A bit in `dead` is set only if no live view ends below the superseding seqno.
//!
//! Cost: finding a seqno is two binary searches and one block; testing a mark is O(log recent marks), usually O(1).
//! Does not know: keys' order, the memtable.

mod deaths;
mod marks;
mod writer;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

pub use deaths::Amount;
pub use marks::Marks;
pub use writer::SegmentWriter;

use self::deaths::Deaths;
use crate::cache::{Block, Shape};
use crate::extent::{Extents, Space};
use crate::format::block::{BlockIdentity, BlockType};
use crate::format::index::{DeathMark, SegmentTotals, SeqlogFence, decode_seqlog_index};
use crate::format::manifest_record::SegmentDesc;
use crate::format::seqlog_block::SeqlogBlock;
use crate::io::BLOCK_BYTES;
use crate::reader::{BlockAt, ReadError, damaged, read_uncached};
use crate::types::Seqno;

/// What one flush appended.
#[derive(Debug)]
pub struct Segment {
    desc: SegmentDesc,
    identity: BlockIdentity,
    fences: Vec<SeqlogFence>,
    totals: SegmentTotals,
    deaths: RefCell<Deaths>,
    /// Records that were purged: nobody who comes now is to see them, and no mark that counts is of them.
    purged: Cell<Amount>,
    /// Of those: what replaced them, for views that were opened before the purge.
    replaced: RefCell<BTreeMap<Seqno, Seqno>>,
    extents: Extents,
    device_bytes: u64,
    /// Live records when the last attempt to rewrite it met a block that cannot be read.
    unreadable_at: Cell<Option<u64>>,
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
        let decoded = decode_seqlog_index(&bytes[payload]);
        let (fences, totals) = decoded.map_err(|source| damaged(space, at.place, source))?;
        let payload_bytes = fences.iter().map(|fence| (fence.blocks as usize * BLOCK_BYTES) as u64).sum();
        let totals = totals.unwrap_or(SegmentTotals { record_bytes: payload_bytes, settled: Seqno(0) });
        let mut list = desc.extents.clone();
        list.push(desc.index);
        let extents = Extents::named(space.clone(), list);
        Ok(Segment::new(desc, identity, fences, totals, extents))
    }

    fn new(
        desc: SegmentDesc,
        identity: BlockIdentity,
        fences: Vec<SeqlogFence>,
        totals: SegmentTotals,
        extents: Extents,
    ) -> Segment {
        let deaths = RefCell::new(Deaths::new(desc.first, desc.last, desc.records));
        let blocks: u64 = extents.list().iter().map(|extent| u64::from(extent.blocks)).sum();
        let device_bytes = blocks * BLOCK_BYTES as u64;
        let unreadable_at = Cell::new(None);
        let (purged, replaced) = (Cell::default(), RefCell::default());
        Segment {
            desc,
            identity,
            fences,
            totals,
            deaths,
            purged,
            replaced,
            extents,
            device_bytes,
            unreadable_at,
        }
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

    /// Whether a durable manifest names it: not one that was rewritten, and that views still hold.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.extents.is_named()
    }

    /// So much of it was purged.
    pub fn set_purged(&self, purged: Amount) {
        self.purged.set(purged);
    }

    /// An attempt to rewrite it has met a block that cannot be read.
    pub fn set_unreadable(&self) {
        self.unreadable_at.set(Some(self.usage().live().records));
    }

    /// Whether it is of no use to try to rewrite it: the last attempt has failed, and more than half of what lived then still does.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        self.unreadable_at.get().is_some_and(|live| self.usage().live().records * 2 > live)
    }

    /// The marks of its dead records, in the order of their seqnos: all that are marked for some reader. Of those that are dead for everyone the superseding
    /// seqno is forgotten, `by` stands for it; and their bytes are even, their sum is right.
    #[must_use]
    pub fn marks(&self, by: Seqno) -> Vec<DeathMark> {
        let deaths = self.deaths.borrow();
        let (dead, _) = deaths.amounts();
        let mean = dead.bytes.checked_div(dead.records).unwrap_or_default();
        let mut rest = dead.bytes - mean * dead.records;
        let mark = |(seqno, recent): (Seqno, Option<(Seqno, u32)>)| match recent {
            Some((by, bytes)) => DeathMark { dead: seqno, by, bytes },
            None => DeathMark { dead: seqno, by, bytes: (mean + std::mem::take(&mut rest)) as u32 },
        };
        deaths.each().into_iter().map(mark).collect()
    }

    /// The greatest superseding seqno of the records that are dead, but not for everyone; 0 if there are none.
    #[must_use]
    pub fn recent_by_max(&self) -> Seqno {
        self.deaths.borrow().recent_by_max()
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

    /// Marks a record dead: for everyone if `for_all`, else for those who end at or after `mark.by`. A mark of a record that the segment does not have
    /// any more changes nothing.
    pub fn mark(&self, mark: DeathMark, for_all: bool) {
        if mark.by <= self.totals.settled {
            return;
        }
        let bytes = if mark.bytes == 0 { self.record_bytes_mean() } else { mark.bytes };
        let deaths = &mut *self.deaths.borrow_mut();
        if for_all {
            deaths.add(mark.dead, bytes);
        } else {
            deaths.add_recent(mark.dead, mark.by, bytes);
        }
    }

    fn record_bytes_mean(&self) -> u32 {
        (self.totals.record_bytes / self.desc.records.max(1)) as u32
    }

    /// A record that was purged is dead for those who end at or after `mark.by`. It is not counted again.
    pub fn mark_purged(&self, mark: DeathMark) {
        self.replaced.borrow_mut().insert(mark.dead, mark.by);
    }

    /// Marks that every live view (the lowest ends at `lowest_end`) sees become bits.
    pub fn settle_marks(&self, lowest_end: Seqno) {
        self.deaths.borrow_mut().settle(lowest_end);
    }

    /// Whether the record is dead for a reader that ends at `end`.
    #[inline]
    #[must_use]
    pub fn is_dead(&self, seqno: Seqno, end: Seqno) -> bool {
        self.deaths.borrow().is_dead(seqno, end) || {
            let replaced = self.replaced.borrow();
            !replaced.is_empty() && replaced.get(&seqno).is_some_and(|by| *by <= end)
        }
    }

    /// Records that are dead, for some reader or for all.
    #[must_use]
    pub fn dead_records(&self) -> u64 {
        let (dead, recent) = self.deaths.borrow().amounts();
        dead.records + recent.records
    }

    /// How much of it is in use.
    #[must_use]
    pub fn usage(&self) -> SegmentUsage {
        let (dead, recent) = self.deaths.borrow().amounts();
        let device_bytes = self.device_bytes;
        let all = Amount { records: self.desc.records, bytes: self.totals.record_bytes };
        SegmentUsage { device_bytes, all, dead, recent, purged: self.purged.get() }
    }

    /// Resident bytes: fences and marks.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        self.fences.len() * size_of::<SeqlogFence>() + self.deaths.borrow().resident_bytes()
    }
}

/// How much of a segment is in use. Bytes are exact but for records whose length nobody knew when they died: versions that a version replaced which was
/// replayed from the log. Those count with the mean of their segment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SegmentUsage {
    /// Bytes of its blocks, index included.
    pub device_bytes: u64,
    /// Its records.
    pub all: Amount,
    /// Those that are dead for everyone.
    pub dead: Amount,
    /// Those that are dead, but not for the readers of some live view.
    pub recent: Amount,
    /// Those that were purged without being dead.
    pub purged: Amount,
}

impl SegmentUsage {
    /// Counts another one, too.
    pub fn add(&mut self, other: &SegmentUsage) {
        self.device_bytes += other.device_bytes;
        self.all += other.all;
        self.dead += other.dead;
        self.recent += other.recent;
        self.purged += other.purged;
    }

    /// Records that a reader who comes now would see.
    #[must_use]
    pub fn live(&self) -> Amount {
        let mut gone = self.dead;
        gone += self.recent;
        gone += self.purged;
        Amount {
            records: self.all.records.saturating_sub(gone.records),
            bytes: self.all.bytes.saturating_sub(gone.bytes),
        }
    }
}

/// The segment of a list in which `seqno` would be.
#[must_use]
pub fn segment_of(segments: &[Rc<Segment>], seqno: Seqno) -> Option<&Rc<Segment>> {
    let segment = segments.get(segments.partition_point(|segment| segment.desc.last < seqno))?;
    (segment.desc.first <= seqno).then_some(segment)
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
