//! What the manifest of a shard says, and how one change makes another of it.
//!
//! Invariants
//! - A change that does not fit what there is is an error, and is never applied in part by a shard that goes on.
//!
//! Does not know: blocks of the manifest itself, when a change is made.

use std::collections::BTreeMap;

use crate::format::FormatError;
use crate::format::manifest_record::{
    BucketDesc, CollectionsDesc, Extent, PurgeDesc, Record, SegmentDesc, VbState,
};
use crate::types::{BucketId, VbId};

/// Everything the manifest says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ManifestState {
    /// Next object id.
    pub next_object: u64,
    /// Replay begins here.
    pub wal_tail: u64,
    /// Generation of the log at its last opening.
    pub wal_generation: u64,
    /// Whether the shard was closed cleanly and not opened since.
    pub closed: bool,
    /// Highest number that a bucket ever had.
    pub bucket_max: BucketId,
    /// Buckets.
    pub buckets: BTreeMap<BucketId, BucketDesc>,
    /// Vbuckets.
    pub vbuckets: BTreeMap<(BucketId, VbId), VbState>,
    /// Of vbuckets that were deleted: where the records begin that are not of the one that is gone.
    pub log_from: BTreeMap<(BucketId, VbId), u64>,
}

impl ManifestState {
    /// Applies one change.
    ///
    /// # Errors
    /// `Invalid`: it changes what does not exist.
    pub fn apply(&mut self, record: Record) -> Result<(), FormatError> {
        match record {
            Record::Checkpoint { next_object } => {
                *self = ManifestState { next_object, ..ManifestState::default() };
            }
            Record::Opened { wal_generation } => {
                self.wal_generation = wal_generation;
                self.closed = false;
            }
            Record::Closed => self.closed = true,
            Record::WalTail { position } => {
                self.wal_tail = position;
                self.log_from.retain(|_, from| *from > position);
            }
            Record::Bucket(bucket) => {
                self.bucket_max = self.bucket_max.max(bucket.id);
                self.buckets.insert(bucket.id, bucket);
            }
            Record::BucketGone { bucket } => {
                self.bucket_max = self.bucket_max.max(bucket);
                self.buckets.remove(&bucket);
                self.vbuckets.retain(|(of, _), _| *of != bucket);
                self.log_from.retain(|(of, _), _| *of != bucket);
            }
            Record::Vbucket(state) => {
                self.vbuckets.insert((state.bucket, state.vb), *state);
            }
            Record::Role { bucket, vb, state, topology, log } => {
                let vbucket = self.vbucket(bucket, vb)?;
                (vbucket.state, vbucket.topology, vbucket.failover_log) = (state, topology, log);
            }
            Record::VbucketGone { bucket, vb, log_from } => {
                self.vbuckets.remove(&(bucket, vb));
                self.log_from.insert((bucket, vb), log_from);
            }
            Record::Failover { bucket, vb, log } => self.vbucket(bucket, vb)?.failover_log = log,
            Record::Flush { bucket, vb, counts, segment, run, marks } => {
                self.next_object = self.next_object.max(segment.id.max(run.id) + 1);
                let state = self.vbucket(bucket, vb)?;
                state.counts = counts;
                state.segments.push(segment);
                state.runs.push(run);
                state.marks.extend(marks);
            }
            Record::Merge { bucket, vb, removed, run } => {
                self.next_object = self.next_object.max(run.id + 1);
                let state = self.vbucket(bucket, vb)?;
                let at = state.runs.iter().position(|old| removed.contains(&old.id));
                let before = state.runs.len();
                state.runs.retain(|old| !removed.contains(&old.id));
                if state.runs.len() + removed.len() != before {
                    return Err(invalid("removed run", removed.len() as u64, "a run of the vbucket"));
                }
                state.runs.insert(at.unwrap_or(0).min(state.runs.len()), run);
            }
            Record::Reclaim { bucket, vb, removed, segment, marks_removed, marks } => {
                let ids = segment.iter().map(|segment| segment.id).chain(marks.iter().map(|marks| marks.id));
                self.next_object = ids.map(|id| id + 1).fold(self.next_object, u64::max);
                let state = self.vbucket(bucket, vb)?;
                replace_segments(&mut state.segments, &removed, segment)?;
                state.purged.segments.retain(|part| !removed.contains(&part.segment));
                let before = state.marks.len();
                state.marks.retain(|old| !marks_removed.contains(&old.id));
                if state.marks.len() + marks_removed.len() != before {
                    let removed = marks_removed.len() as u64;
                    return Err(invalid("removed marks", removed, "marks of the vbucket"));
                }
                state.marks.splice(0..0, marks);
            }
            Record::Collections { bucket, vb, desc } => self.vbucket(bucket, vb)?.collections = desc,
            Record::Purge { bucket, vb, purged } => self.vbucket(bucket, vb)?.purged = purged,
        }
        Ok(())
    }

    fn vbucket(&mut self, bucket: BucketId, vb: VbId) -> Result<&mut VbState, FormatError> {
        let number = u64::from(bucket.0) << 16 | u64::from(vb.0);
        self.vbuckets.get_mut(&(bucket, vb)).ok_or_else(|| invalid("vbucket", number, "created before"))
    }

    /// Whether a record of the log at `position` is of a vbucket, or of a bucket, that was deleted.
    #[must_use]
    pub fn is_gone(&self, bucket: BucketId, vb: VbId, position: u64) -> bool {
        let is_before = self.log_from.get(&(bucket, vb)).is_some_and(|from| position < *from);
        is_before || bucket <= self.bucket_max && !self.buckets.contains_key(&bucket)
    }

    /// The records that give exactly this state.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<Record> {
        let mut records = vec![
            Record::Checkpoint { next_object: self.next_object },
            Record::Opened { wal_generation: self.wal_generation },
            Record::WalTail { position: self.wal_tail },
        ];
        if self.closed {
            records.push(Record::Closed);
        }
        if !self.buckets.contains_key(&self.bucket_max) && self.bucket_max != BucketId(0) {
            records.push(Record::BucketGone { bucket: self.bucket_max });
        }
        records.extend(self.buckets.values().cloned().map(Record::Bucket));
        let gone = self.log_from.iter();
        records.extend(gone.map(|(&(bucket, vb), &log_from)| Record::VbucketGone { bucket, vb, log_from }));
        for vbucket in self.vbuckets.values() {
            let (bucket, vb, desc) = (vbucket.bucket, vbucket.vb, vbucket.collections.clone());
            records.push(Record::Vbucket(Box::new(vbucket.clone())));
            if !vbucket.topology.is_empty() {
                records.push(vbucket.role());
            }
            if desc != CollectionsDesc::default() {
                records.push(Record::Collections { bucket, vb, desc });
            }
            if vbucket.purged != PurgeDesc::default() {
                records.push(Record::Purge { bucket, vb, purged: vbucket.purged.clone() });
            }
        }
        records
    }

    /// Every range that the vbuckets own.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.vbuckets.values().flat_map(|state| {
            let runs = state.runs.iter().flat_map(|run| run.extents.iter().copied().chain([run.index]));
            let segments =
                state.segments.iter().flat_map(|one| one.extents.iter().copied().chain([one.index]));
            runs.chain(segments).chain(state.marks.iter().map(|marks| marks.block))
        })
    }
}

/// Puts `segment`, if there is one, in the place of the neighbours `removed`.
fn replace_segments(
    segments: &mut Vec<SegmentDesc>,
    removed: &[u64],
    segment: Option<SegmentDesc>,
) -> Result<(), FormatError> {
    let Some(first) = removed.first() else {
        return match segment {
            None => Ok(()),
            Some(segment) => Err(invalid("segment", segment.id, "in the place of others")),
        };
    };
    let wrong = || invalid("removed segment", *first, "neighbours, segments of the vbucket");
    let at = segments.iter().position(|old| old.id == *first).ok_or_else(wrong)?;
    let neighbours = segments.get(at..at + removed.len()).ok_or_else(wrong)?;
    if !neighbours.iter().map(|old| old.id).eq(removed.iter().copied()) {
        return Err(wrong());
    }
    segments.splice(at..at + removed.len(), segment);
    Ok(())
}

pub(super) fn invalid(field: &'static str, found: u64, rule: &'static str) -> FormatError {
    FormatError::Invalid { what: "manifest", field, found, rule }
}
