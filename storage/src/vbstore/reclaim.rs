//! Rewriting segments without what is dead in them, and death marks without those that are of no use any more.
//!
//! In the steps of a flush: written here, then synced and committed by the shard, then published here. Key runs are not touched: they point to
//! seqnos, and the new segment has the same ones.
//!
//! What is left out is what was dead, at the start, for a reader who comes now. A live view that still sees it holds the old segments by reference, and
//! their blocks are free when it has ended; a view that sees the same in the new segment is moved there. Marks that arrive while a segment is rewritten
//! are of records that the new one may have: they are noted, and taken there when it is published.
//!
//! What was purged ([`super::purging`]) is left out as well. Views that were opened before keep the segments that have it.
//!
//! Invariants
//! - Nothing a reader sees changes; an aborted rewriting leaves nothing behind.
//! - The marks of a segment after a restart are those it had: it knows up to which superseding seqno they are settled.
//!
//! Cost: each live record is read and written once; a block without live records is not read.
//! Does not know: which segments are worth it, how fast, other vbuckets.

use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;

use super::purging::Rule;
use super::{VbStore, Version};
use crate::cache::Admission;
use crate::compaction::Use;
use crate::extent::Purpose;
use crate::format::index::{DeathMark, SeqlogFence};
use crate::format::manifest_record::Record;
use crate::io::BLOCK_BYTES;
use crate::mutant::{Mutant, is_on};
use crate::reader::{LONG_READ_BYTES_MAX, ReadError, damaged, finish, start_together};
use crate::run::MergeError;
use crate::seqlog::{Marks, Segment, SegmentWriter, seqlog_block};
use crate::types::Seqno;

/// Marks of one block when they are written again.
const MARKS_MAX: usize = 64 << 10;

/// Mark blocks above what the marks need that do not matter yet.
const MARK_BLOCKS_EXTRA: u64 = 8;

/// Why segments were not rewritten. They are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReclaimError {
    /// A block cannot be read.
    #[error("cannot read a segment that is rewritten")]
    Read(#[from] ReadError),
    /// The new segment cannot be written.
    #[error("cannot write the data file")]
    Write(#[from] io::Error),
    /// The vbucket is gone, or the shard stops.
    #[error("stopped")]
    Stopped,
}

impl From<MergeError> for ReclaimError {
    fn from(error: MergeError) -> ReclaimError {
        match error {
            MergeError::Read(error) => ReclaimError::Read(error),
            MergeError::Write(error) => ReclaimError::Write(error),
            MergeError::Stopped => ReclaimError::Stopped,
        }
    }
}

/// The marks that arrive for segments that are being rewritten.
#[derive(Debug)]
pub(super) struct Arrivals {
    seqnos: RangeInclusive<Seqno>,
    marks: Vec<DeathMark>,
}

impl Arrivals {
    pub(super) fn note(&mut self, mark: DeathMark) {
        if self.seqnos.contains(&mark.dead) && !is_on(Mutant::LoseArrivingMarks) {
            self.marks.push(mark);
        }
    }
}

/// What is written but not committed.
pub(crate) struct Rewritten {
    sources: Vec<Rc<Segment>>,
    segment: Option<Rc<Segment>>,
    /// Whoever ends below this seqno saw records in the sources that the segment lacks.
    seen_from: Seqno,
    /// Whoever was opened before as many purges as this may see records that it lacks.
    purges: u64,
    marks_removed: Vec<u64>,
    marks: Vec<Marks>,
}

impl Rewritten {
    /// Whether something was written that must be durable first.
    pub(crate) fn is_written(&self) -> bool {
        self.segment.is_some() || !self.marks.is_empty()
    }

    /// Bytes of what was written and of what it stands for.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let written = self.segment.as_ref().map_or(0, |segment| segment.usage().device_bytes);
        (written, self.sources.iter().map(|source| source.usage().device_bytes).sum())
    }
}

impl VbStore {
    /// Writes what is live in the neighbouring segments `ids` into a new one, if there is any. `pace` is told of every block that was read or written.
    ///
    /// # Errors
    /// `Read`: the segment with the block that cannot be read is marked. `Write`, `Stopped`.
    pub(crate) async fn rewrite_segments(
        &self,
        ids: &[u64],
        pace: &impl AsyncFn(u64) -> bool,
    ) -> Result<Rewritten, ReclaimError> {
        let (sources, settled, purges, purged) = {
            let state = &mut *self.state.borrow_mut();
            let all = &state.version.segments;
            let sources: Vec<Rc<Segment>> =
                all.iter().filter(|segment| ids.contains(&segment.desc().id)).cloned().collect();
            let (Some(first), Some(last)) = (sources.first(), sources.last()) else {
                return Err(ReclaimError::Stopped);
            };
            let seqnos = first.desc().first..=last.desc().last;
            state.arrivals = Some(Arrivals { seqnos, marks: Vec::new() });
            (sources, state.version.flushed, state.purges, state.purged.clone())
        };
        // What is dead now goes, and nothing else: marks that arrive are for the new segment.
        let dead: Vec<Vec<DeathMark>> = sources.iter().map(|source| source.marks(settled)).collect();
        let seen_from = sources.iter().map(|source| source.recent_by_max()).max().unwrap_or_default();
        let live: u64 = sources.iter().map(|source| source.usage().live().bytes).sum();
        let written = match sources.iter().any(|source| source.usage().live().records > 0) {
            true => {
                let id = self.core.next_object();
                let (space, identity) = (self.core.space().clone(), self.identity());
                let mut writer = SegmentWriter::new(space, Purpose::Upkeep, identity, id, live as usize);
                writer.set_settled(settled);
                let rule = Rule { limit: purged.seqno, collections: &purged.collections };
                self.copy_live(&sources, (&dead, &rule), writer, pace).await.map(Some)
            }
            false => Ok(None),
        };
        match written {
            Ok(segment) => {
                let (marks_removed, marks) = (Vec::new(), Vec::new());
                Ok(Rewritten { sources, segment, seen_from, purges, marks_removed, marks })
            }
            Err(error) => {
                self.state.borrow_mut().arrivals = None;
                Err(error)
            }
        }
    }

    async fn copy_live(
        &self,
        sources: &[Rc<Segment>],
        (dead, rule): (&[Vec<DeathMark>], &Rule<'_>),
        mut writer: SegmentWriter,
        pace: &impl AsyncFn(u64) -> bool,
    ) -> Result<Rc<Segment>, ReclaimError> {
        for (source, dead) in sources.iter().zip(dead) {
            let copied = self.copy_segment(source, (dead, rule), &mut writer, pace).await;
            if let Err(error) = copied {
                writer.abort().await;
                if matches!(error, ReclaimError::Read(_)) {
                    source.set_unreadable();
                }
                return Err(error);
            }
        }
        Ok(writer.finish().await?)
    }

    async fn copy_segment(
        &self,
        source: &Rc<Segment>,
        (dead, rule): (&[DeathMark], &Rule<'_>),
        writer: &mut SegmentWriter,
        pace: &impl AsyncFn(u64) -> bool,
    ) -> Result<(), ReclaimError> {
        let space = self.core.space().clone();
        let dead_in = |fence: &SeqlogFence| {
            let from = dead.partition_point(|mark| mark.dead < fence.first);
            &dead[from..dead.partition_point(|mark| mark.dead <= fence.last)]
        };
        let has_live = |fence: &&SeqlogFence| (dead_in(fence).len() as u64) < u64::from(fence.records);
        let mut fences = source.fences().iter().filter(has_live).peekable();
        while fences.peek().is_some() {
            let (mut together, mut bytes) = (Vec::new(), 0);
            while let Some(fence) = fences.next_if(|_| bytes < LONG_READ_BYTES_MAX) {
                bytes += fence.blocks as usize * BLOCK_BYTES;
                together.push((fence, source.block_at(fence)));
            }
            let readings = start_together(&space, together.iter().map(|(_, at)| at));
            for ((fence, at), reading) in together.into_iter().zip(readings) {
                let block = finish(&space, &at, reading, Admission::Never).await?;
                let shape = seqlog_block(&block);
                let mut dead = dead_in(fence).iter().map(|mark| mark.dead).peekable();
                let mut written = 0;
                for index in 0..shape.records as usize {
                    let record = shape.record(&block.bytes, index);
                    let record = record.map_err(|source| damaged(&space, at.place, source))?;
                    while dead.next_if(|dead| *dead < record.meta.seqno).is_some() {}
                    let is_dead = dead.peek() == Some(&record.meta.seqno);
                    if !is_dead && !rule.takes(record.key, &record.meta) {
                        written += record.stored_len() as u64;
                        writer.push_record(&record).await?;
                    }
                }
                let goes_on = pace(u64::from(fence.blocks) * BLOCK_BYTES as u64 + written).await;
                if !goes_on || self.has_ended() {
                    return Err(ReclaimError::Stopped);
                }
            }
        }
        Ok(())
    }

    /// Its segments in their order: their ids, and how much of them is in use.
    pub(crate) fn segments(&self) -> Vec<(u64, Use)> {
        let of = |segment: &Rc<Segment>| {
            let usage = segment.usage();
            let one = Use {
                device_bytes: usage.device_bytes,
                all_bytes: usage.all.bytes,
                live_bytes: if usage.live().records == 0 { 0 } else { usage.live().bytes.max(1) },
                is_unreadable: segment.is_unreadable(),
            };
            (segment.desc().id, one)
        };
        self.state.borrow().version.segments.iter().map(of).collect()
    }

    /// Whether the blocks of death marks are many more than the marks need.
    pub(crate) fn wants_marks_rewritten(&self) -> bool {
        let state = self.state.borrow();
        let blocks: u64 = state.marks.iter().map(|marks| u64::from(marks.desc().block.blocks)).sum();
        if blocks <= MARK_BLOCKS_EXTRA {
            return false;
        }
        let needed: u64 = state.version.segments.iter().map(|segment| segment.dead_records()).sum();
        let needed_blocks = (needed * size_of::<[u64; 2]>() as u64).div_ceil(BLOCK_BYTES as u64);
        blocks > 2 * needed_blocks + MARK_BLOCKS_EXTRA
    }

    /// Writes the marks of all segments again.
    ///
    /// # Errors
    /// `Write`.
    pub(crate) async fn rewrite_marks(&self) -> Result<Rewritten, ReclaimError> {
        let (marks, marks_removed) = {
            let state = self.state.borrow();
            let marks =
                state.version.segments.iter().flat_map(|segment| segment.marks(state.version.flushed));
            let ids: Vec<u64> = state.marks.iter().map(|marks| marks.desc().id).collect();
            (marks.collect::<Vec<DeathMark>>(), ids)
        };
        let mut written = Vec::new();
        for some in marks.chunks(MARKS_MAX) {
            let (space, id) = (self.core.space(), self.core.next_object());
            written.extend(Marks::write(space, Purpose::Upkeep, self.identity(), id, some).await?);
            self.core.env().relax().await;
        }
        let (sources, segment, seen_from, purges) = (Vec::new(), None, Seqno(0), 0);
        Ok(Rewritten { sources, segment, seen_from, purges, marks_removed, marks: written })
    }

    /// The manifest record of what was rewritten.
    pub(crate) fn reclaim_record(&self, rewritten: &Rewritten) -> Record {
        Record::Reclaim {
            bucket: self.bucket,
            vb: self.vb,
            removed: rewritten.sources.iter().map(|source| source.desc().id).collect(),
            segment: rewritten.segment.as_ref().map(|segment| segment.desc().clone()),
            marks_removed: rewritten.marks_removed.clone(),
            marks: rewritten.marks.iter().map(|marks| marks.desc().clone()).collect(),
        }
    }

    /// What was rewritten or purged is published, or nothing comes of it.
    pub(crate) fn forget_upkeep(&self) {
        let state = &mut *self.state.borrow_mut();
        state.arrivals = None;
        state.overtaken = None;
    }

    /// Makes what is durable now what readers see.
    pub(crate) fn publish_rewritten(&self, rewritten: Rewritten) {
        let Rewritten { sources, segment, seen_from, purges, marks_removed, marks } = rewritten;
        let state = &mut *self.state.borrow_mut();
        for old in state.marks.iter().filter(|old| marks_removed.contains(&old.desc().id)) {
            old.set_named(false);
        }
        state.marks.retain(|old| !marks_removed.contains(&old.desc().id));
        marks.iter().for_each(|marks| marks.set_named(true));
        state.marks.splice(0..0, marks.into_iter().map(Rc::new));
        if sources.is_empty() {
            return;
        }
        let arrivals = state.arrivals.take().map(|arrivals| arrivals.marks).unwrap_or_default();
        let lowest_end = state.lowest_view_end().unwrap_or(Seqno(u64::MAX));
        if let Some(segment) = &segment {
            segment.set_named(true);
            for mark in arrivals {
                segment.mark(mark, mark.by <= lowest_end);
            }
        }
        let mut version = Version::clone(&state.version);
        assert!(version.replace(&sources, segment.as_ref()), "segments go only when they are rewritten");
        state.version = Rc::new(version);
        let is_gone = |id: u64| sources.iter().any(|source| source.desc().id == id);
        state.purged.segments.retain(|part| !is_gone(part.segment));
        for view in state.views.iter().filter_map(|view| view.upgrade()) {
            if (view.end < seen_from || view.purges < purges) && !is_on(Mutant::ReclaimUnderViews) {
                continue;
            }
            let mut parts = view.parts.borrow_mut();
            let mut version = Version::clone(&parts.version);
            if version.replace(&sources, segment.as_ref()) {
                parts.version = Rc::new(version);
                view.epoch.set(view.epoch.get() + 1);
            }
        }
        sources.iter().for_each(|source| source.set_named(false));
    }
}

impl Version {
    /// Puts `segment` in the place of `sources`; false if they are not all here.
    fn replace(&mut self, sources: &[Rc<Segment>], segment: Option<&Rc<Segment>>) -> bool {
        let Some(first) = sources.first() else { return false };
        let Some(at) = self.segments.iter().position(|own| Rc::ptr_eq(own, first)) else { return false };
        let end = at + sources.len();
        let are_here = self
            .segments
            .get(at..end)
            .is_some_and(|own| own.iter().zip(sources).all(|(own, source)| Rc::ptr_eq(own, source)));
        if are_here {
            self.segments.splice(at..end, segment.cloned());
        }
        are_here
    }
}
