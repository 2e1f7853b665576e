//! Flushing: the oldest frozen memtable becomes a seqlog segment, a run and death marks, in one manifest change.
//!
//! In three steps, so that several vbuckets share a sync and a manifest change: [`VbStore::prepare_flush`] writes, the shard syncs and commits the
//! [`Prepared`] records, [`VbStore::publish_flush`] makes it what readers see.
//!
//! Invariants
//! - Nothing a reader sees changes before the manifest change is durable; then all of it changes at once.
//! - An aborted flush leaves nothing behind: its blocks are given back.
//!
//! Does not know: when to flush, other vbuckets.

use std::io;
use std::rc::Rc;

use super::merging::Merged;
use super::{RUNS_MAX, RUNS_UNMERGED_MAX, VbStore, Version};
use crate::extent::Purpose;
use crate::format::index::DeathMark;
use crate::format::key_block::meta_of;
use crate::format::manifest_record::Record;
use crate::memtable::Memtable;
use crate::mutant::{Mutant, is_on};
use crate::run::{MergeError, Run, RunWriter};
use crate::seqlog::{Marks, Segment, SegmentWriter, segment_of};
use crate::types::Seqno;

/// Why a flush did not happen. Nothing is lost: the log still has it all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// The data file cannot be written.
    #[error("cannot write the data file")]
    Write(#[from] io::Error),
    /// The runs cannot be merged.
    #[error("cannot merge the runs of a vbucket")]
    Merge(#[from] MergeError),
}

impl FlushError {
    /// Whether the disk is full: retry when there is room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        match self {
            FlushError::Write(error) | FlushError::Merge(MergeError::Write(error)) => full(error),
            FlushError::Merge(_) => false,
        }
    }
}

/// A flush that is written but not committed.
pub(crate) struct Prepared {
    table: Rc<Memtable>,
    segment: Rc<Segment>,
    run: Rc<Run>,
    marks: Vec<DeathMark>,
    /// Marks of records that are purged: views that were opened before may see them.
    marks_purged: Vec<DeathMark>,
    marks_written: Option<Marks>,
    merged: Option<Merged>,
}

impl Prepared {
    /// Bytes of memory that it frees.
    pub(crate) fn bytes(&self) -> usize {
        self.table.bytes()
    }
}

impl VbStore {
    /// Freezes the memtable if need be, and writes the oldest frozen one. `None` if there is nothing to flush.
    pub(crate) async fn prepare_flush(&self) -> Result<Option<Prepared>, FlushError> {
        let (table, version, purged) = {
            let state = &mut *self.state.borrow_mut();
            if state.frozen.is_empty() {
                state.freeze();
            }
            let Some(table) = state.frozen.front().cloned() else { return Ok(None) };
            let purged = if is_on(Mutant::MarkPurged) { Seqno(0) } else { state.purged.seqno };
            (table, state.version.clone(), purged)
        };
        let merged = if version.runs.len() >= RUNS_MAX { self.merge_some().await? } else { None };
        let (env, space, identity) = (self.core.env(), self.core.space(), self.identity());
        let segment_id = self.core.next_object();
        let mut segment =
            SegmentWriter::new(space.clone(), Purpose::Data, identity, segment_id, table.record_bytes());
        let (mut next, mut batch) = (table.first(), Vec::new());
        loop {
            let more = table.next_by_seqno(&mut next, &mut batch);
            for item in batch.drain(..) {
                segment.push(&item).await?;
                env.relax().await;
            }
            if !more {
                break;
            }
        }
        let segment = segment.finish().await?;
        let mut run =
            RunWriter::new(space.clone(), Purpose::Data, identity, self.core.next_object(), table.bytes());
        for item in table.iter() {
            run.push(item.key(), &meta_of(item)).await?;
            env.relax().await;
        }
        let run = run.finish().await?;
        let marks = if is_on(Mutant::NoDeathMarks) { Vec::new() } else { table.marks(purged) };
        let marks_written = Marks::write(space, Purpose::Data, identity, segment_id, &marks).await?;
        let marks_purged = table.replaced_tombstones(purged).collect();
        Ok(Some(Prepared { table, segment, run, marks, marks_purged, marks_written, merged }))
    }

    /// Merges some runs where there are too many. `None` if there are none to merge: others do that, or they cannot be read; then there is one more.
    async fn merge_some(&self) -> Result<Option<Merged>, MergeError> {
        let env = self.core.env();
        let pace = async |_| {
            env.relax().await;
            true
        };
        let runs = self.state.borrow().version.runs.clone();
        if runs.len() >= RUNS_UNMERGED_MAX {
            return self.merge(runs, &pace).await.map(Some);
        }
        let Some((stretch, _)) = self.runs_to_merge(RUNS_MAX - 1) else { return Ok(None) };
        match self.merge(stretch, &pace).await {
            Ok(merged) => Ok(Some(merged)),
            Err(MergeError::Read(error)) => {
                let (bucket, vb, runs) = (self.bucket.0, self.vb.0, runs.len());
                tracing::warn!(bucket, vb, runs, %error, "runs cannot be merged, one cannot be read");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The manifest records of a prepared flush.
    pub(crate) fn flush_records(&self, prepared: &Prepared) -> Vec<Record> {
        let (bucket, vb) = (self.bucket, self.vb);
        let mut records = Vec::new();
        records.extend(prepared.merged.as_ref().and_then(|merged| merged.record(bucket, vb)));
        records.push(Record::Flush {
            bucket,
            vb,
            counts: prepared.table.counts(),
            segment: prepared.segment.desc().clone(),
            run: prepared.run.desc().clone(),
            marks: prepared.marks_written.as_ref().map(|marks| marks.desc().clone()),
        });
        let desc = prepared.table.collections().map(|collections| collections.describe());
        records.extend(desc.map(|desc| Record::Collections { bucket, vb, desc }));
        records
    }

    /// The log position that the vbucket would need after this flush.
    pub(crate) fn first_position_after(&self, prepared: &Prepared) -> Option<u64> {
        let state = self.state.borrow();
        let mut rest = state.frozen.iter().filter(|table| !Rc::ptr_eq(table, &prepared.table));
        rest.next().map_or(state.active.first_position(), |table| table.first_position())
    }

    /// Makes a durable flush visible: views swap the memtable for what it became, flushed versions may leave memory.
    pub(crate) fn publish_flush(&self, prepared: Prepared) {
        let Prepared { table, segment, run, marks, marks_purged, marks_written, merged } = prepared;
        segment.set_named(true);
        run.set_named(true);
        let state = &mut *self.state.borrow_mut();
        let mut version = Version::clone(&state.version);
        let is_in_place = merged.is_none_or(|merged| merged.swap_into(&mut version));
        assert!(is_in_place, "only flushes merge while one is under way");
        if let Some(overtaken) = &mut state.overtaken {
            overtaken.note(&table);
        }
        if let Some(marks) = marks_written {
            marks.set_named(true);
            state.marks.push(Rc::new(marks));
        }
        let lowest_end = state.lowest_view_end().unwrap_or(Seqno(u64::MAX));
        for mark in &marks {
            if let Some(segment) = segment_of(&version.segments, mark.dead) {
                segment.mark(*mark, mark.by <= lowest_end);
            }
            if let Some(arrivals) = &mut state.arrivals {
                arrivals.note(*mark);
            }
        }
        let mark_purged = |segments: &[Rc<Segment>]| {
            for mark in &marks_purged {
                if let Some(segment) = segment_of(segments, mark.dead) {
                    segment.mark_purged(*mark);
                }
            }
        };
        mark_purged(&version.segments);
        for segment in &version.segments {
            segment.settle_marks(lowest_end);
        }
        version.segments.push(segment.clone());
        version.runs.push(run.clone());
        version.flushed = table.last();
        state.version = Rc::new(version);
        state.counts.flushed_seqno = table.last();
        let front = state.frozen.pop_front();
        assert!(front.is_some_and(|front| Rc::ptr_eq(&front, &table)), "flushes are in order");
        for view in state.views.iter().filter_map(|view| view.upgrade()) {
            let mut parts = view.parts.borrow_mut();
            if parts.frozen.first().is_some_and(|first| Rc::ptr_eq(first, &table)) {
                parts.frozen.remove(0);
                let mut version = Version::clone(&parts.version);
                // Segments that were rewritten since, and that this view needs as they were.
                for segment in version.segments.iter().filter(|segment| !segment.is_named()) {
                    let seqnos = segment.desc().first..=segment.desc().last;
                    let own = marks.iter().filter(|mark| seqnos.contains(&mark.dead));
                    own.for_each(|mark| segment.mark(*mark, mark.by <= lowest_end));
                }
                mark_purged(&version.segments);
                version.segments.push(segment.clone());
                version.runs.push(run.clone());
                version.flushed = table.last();
                parts.version = Rc::new(version);
                view.epoch.set(view.epoch.get() + 1);
            }
        }
        self.memory.add_memtable(-(table.bytes() as i64));
        for item in table.iter() {
            if !self.memory.has_resident_room(0) {
                let freed = state.let_go(std::slice::from_ref(item));
                self.memory.add_resident(-(freed as i64));
            } else if item.is_deleted() && state.table.evict(item.key(), item.seqno()).is_some() {
                // It stays in the window, for readers in seqno order, unless that has moved on.
                if state.versions.at(item.seqno()).is_none() {
                    self.memory.add_resident(-(item.resident_bytes() as i64));
                }
            }
        }
        state.book_overhead(&self.memory);
        self.set_persisted(table.last());
        table.set_flushed();
        self.spawn_tidy();
        self.flushed_event.notify_all();
    }
}
