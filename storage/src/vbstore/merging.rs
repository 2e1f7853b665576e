//! Merging the key runs of a vbucket in the background, so that there are few; what is purged goes on the way.
//!
//! In the steps of a flush: written here, then synced and committed by the shard, then published here. Views keep the runs that they opened. A flush
//! that finds too many runs merges neighbours that nobody merges yet, and goes first: what was merged meanwhile of the same runs is given up.
//!
//! Invariants
//! - A run that cannot be read stays as it is, those around it are merged: damage to it costs the keys in it and not the flushes of its shard.
//!
//! Cost: every key and its metadata is read and written once a merge.
//! Does not know: which runs are worth it, how fast, other vbuckets.

use std::rc::Rc;

use super::purging::Purging;
use super::{State, VbStore, Version};
use crate::compaction::{RunUse, run_stretch};
use crate::format::key_block::Meta;
use crate::format::manifest_record::Record;
use crate::run::{MergeError, Run, merge_runs};
use crate::types::{BucketId, VbId};

/// What is merged but not committed.
pub(crate) struct Merged {
    sources: Vec<Rc<Run>>,
    /// What stands in their place; none if there is nothing to merge, only something to be said.
    run: Option<Rc<Run>>,
    pub(super) purging: Option<Purging>,
}

impl Merged {
    pub(super) fn new(sources: Vec<Rc<Run>>, run: Option<Rc<Run>>, purging: Option<Purging>) -> Merged {
        Merged { sources, run, purging }
    }

    /// The manifest record of the merge.
    pub(super) fn record(&self, bucket: BucketId, vb: VbId) -> Option<Record> {
        let removed = self.sources.iter().map(|run| run.desc().id).collect();
        let run = self.run.as_ref()?.desc().clone();
        Some(Record::Merge { bucket, vb, removed, run })
    }

    /// Puts what was merged in its place; false if that is not there any more.
    pub(super) fn swap_into(&self, version: &mut Version) -> bool {
        let Some(run) = &self.run else { return true };
        let Some(at) = version.place_of(&self.sources) else { return false };
        run.set_named(true);
        self.sources.iter().for_each(|source| source.set_named(false));
        version.runs.splice(at..at + self.sources.len(), [run.clone()]);
        true
    }

    /// Whether something was written that must be durable first.
    pub(crate) fn is_written(&self) -> bool {
        self.run.is_some()
    }

    /// Whether it purges something.
    pub(crate) fn is_purge(&self) -> bool {
        self.purging.is_some()
    }
}

impl State {
    /// The neighbouring runs that should become one, if there are more than `at_rest` or many of their records are stale.
    pub(super) fn run_stretch(&self, at_rest: usize) -> Option<Vec<Rc<Run>>> {
        let runs = &self.version.runs;
        if runs.len() < 2 {
            return None;
        }
        let of = |run: &Rc<Run>| RunUse {
            bytes: run.device_bytes(),
            records: run.desc().records,
            is_taken: run.is_unreadable() || self.merging.contains(&run.desc().id),
        };
        let uses: Vec<RunUse> = runs.iter().map(of).collect();
        run_stretch(&uses, self.keys(), at_rest).map(|range| runs[range].to_vec())
    }
}

impl VbStore {
    /// Runs that should become one, and whether that is urgent.
    pub(crate) fn runs_to_merge(&self, at_rest: usize) -> Option<(Vec<Rc<Run>>, bool)> {
        let state = self.state.borrow();
        let is_urgent = state.version.runs.len() >= super::RUNS_MAX;
        state.run_stretch(at_rest).map(|runs| (runs, is_urgent))
    }

    /// Merges neighbours of the runs there are.
    ///
    /// # Errors
    /// `Read`: the run that cannot be read is marked. `Write`, `Stopped`.
    pub(crate) async fn merge(
        &self,
        sources: Vec<Rc<Run>>,
        pace: &impl AsyncFn(u64) -> bool,
    ) -> Result<Merged, MergeError> {
        let run = self.merge_keeping(&sources, |_, _| true, pace).await?;
        Ok(Merged::new(sources, Some(run), None))
    }

    /// Merges what `keeps` says yes to.
    pub(super) async fn merge_keeping(
        &self,
        sources: &[Rc<Run>],
        keeps: impl FnMut(&[u8], &Meta) -> bool,
        pace: &impl AsyncFn(u64) -> bool,
    ) -> Result<Rc<Run>, MergeError> {
        let id = self.core.next_object();
        let ids = sources.iter().map(|run| run.desc().id);
        self.state.borrow_mut().merging.extend(ids);
        let pace = async |bytes: u64| pace(bytes).await && !self.has_ended();
        let merged = merge_runs(self.core.space(), self.identity(), id, sources, keeps, &pace).await;
        self.state.borrow_mut().merging.retain(|id| !sources.iter().any(|run| run.desc().id == *id));
        let run = merged?;
        self.core.metrics().merges.add(1);
        self.core.metrics().merge_written_bytes.add(run.device_bytes());
        Ok(run)
    }

    /// The manifest records of what was merged; `None` if a flush has merged some of the runs. What is purged is so from now on.
    pub(crate) fn merge_records(&self, merged: &mut Merged) -> Option<Vec<Record>> {
        let state = &mut *self.state.borrow_mut();
        if state.version.place_of(&merged.sources).is_none() {
            state.want_purge(merged.purging.as_ref().and_then(|purging| purging.limits));
            return None;
        }
        let (bucket, vb) = (self.bucket, self.vb);
        let mut records = Vec::from_iter(merged.record(bucket, vb));
        if let Some(purging) = &mut merged.purging {
            let freed = state.purge(purging);
            self.memory.add_resident(-(freed as i64));
            state.book_overhead(&self.memory);
            records.push(Record::Purge { bucket, vb, purged: state.purged.clone() });
        }
        Some(records)
    }

    /// Makes durable runs what readers see.
    pub(crate) fn publish_merged(&self, merged: Merged) {
        let state = &mut *self.state.borrow_mut();
        let mut version = Version::clone(&state.version);
        assert!(merged.swap_into(&mut version), "only flushes merge, too, and none is under way");
        state.version = Rc::new(version);
        if let Some(purging) = merged.purging {
            state.publish_purge();
            if !purging.collections.is_empty() {
                self.spawn_forgetting(purging.collections);
            }
        }
    }
}

impl Version {
    /// Where `sources` stand as neighbours.
    fn place_of(&self, sources: &[Rc<Run>]) -> Option<usize> {
        let Some(first) = sources.first() else { return Some(0) };
        let at = self.runs.iter().position(|run| Rc::ptr_eq(run, first))?;
        let stretch = self.runs.get(at..at + sources.len())?;
        stretch.iter().zip(sources).all(|(run, source)| Rc::ptr_eq(run, source)).then_some(at)
    }
}
