//! The compaction task: gives blocks back that only hold what is dead, keeps runs, segments and death marks few, and purges.
//!
//! It is woken by every flush, and by one that fails because the disk is full. Runs go first: what is merged late costs a flush or a reader. Then it
//! rewrites one stretch of segments at a time, that of the vbucket with
//! the greatest dead share ([`crate::compaction`]), until garbage is below its threshold. It holds the flush lock only for the manifest change, and gives
//! way after every block. A budget of bytes a second holds while garbage is not far above the threshold, and a vbucket has not too many runs.
//!
//! | error | what happens |
//! |---|---|
//! | a block of a run cannot be read | the run stays as it is, and nothing of the vbucket is purged until the shard is opened anew |
//! | a block of a segment cannot be read | the segment stays as it is; it is tried again when half of what lives in it has died |
//! | the disk is full | the next flush that fails, or succeeds, wakes the task again |
//! | a write fails | as above |
//! | a sync or the manifest change fails | the shard fails, as with a flush |
//!
//! Invariants
//! - One at a time: nothing else takes segments away, or purges.
//! - A change of the manifest that names what was rewritten follows the sync of it.
//!
//! Does not know: how segments are rewritten, what views see.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::ShardCore;
use crate::compaction::{REWRITE_BYTES_MAX, RUNS_AT_REST, Use, crowded, most_dead, wholly_dead};
use crate::env::Env;
use crate::mutant::{Mutant, is_on};
use crate::run::Run;
use crate::sync::{Event, Lock};
use crate::vbstore::{Merged, ReclaimError, Rewritten, VbStore};

/// Least dead share that a segment is rewritten for when the disk is full.
const FULL_SHARE_MIN: f64 = 1.0 / 32.0;

/// Longest that the budget makes the task wait at once.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// When and how fast space is reclaimed.
#[derive(Debug, Clone, Copy)]
pub struct ReclaimOptions {
    /// Segments are rewritten while this share of the seqlog's bytes, 0 to 1, is of dead records. Uniform overwrites: at 0.1 the seqlog takes up to 1.11
    /// times the bytes of live records, and the node writes about 3.5 bytes for each new one. Above 1 nothing is reclaimed or merged in the background.
    pub dead_share_max: f64,
    /// Bytes that rewriting may read and write in a second, 0 for no limit. It does not hold when the dead share is half as much again as
    /// [`ReclaimOptions::dead_share_max`], or when the disk is full.
    pub bytes_per_second: u64,
}

impl ReclaimOptions {
    /// What a shard does unless it is told otherwise.
    pub const DEFAULT: ReclaimOptions = ReclaimOptions { dead_share_max: 0.10, bytes_per_second: 128 << 20 };

    /// Without a limit.
    pub const UNPACED: ReclaimOptions = ReclaimOptions { bytes_per_second: 0, ..ReclaimOptions::DEFAULT };
}

/// The state of the task.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    event: Event,
    wanted: Cell<bool>,
    /// The disk is full: any garbage is worth it.
    is_full: Cell<bool>,
    /// Whether the budget holds.
    is_paced: Cell<bool>,
    /// When the budget has room again, monotonic nanoseconds.
    paid_ns: Cell<u64>,
    working: Lock,
}

impl Compaction {
    /// Something has changed: there may be something to do.
    pub(super) fn want(&self) {
        self.wanted.set(true);
        self.event.notify_all();
    }

    /// A flush found no room.
    pub(super) fn want_room(&self) {
        self.is_full.set(true);
        self.want();
    }

    pub(super) fn wake(&self) {
        self.event.notify_all();
    }

    /// Waits until the task does nothing; it must have been told to stop.
    pub(super) async fn stopped(&self) {
        drop(self.working.lock().await);
    }

    async fn pay(&self, env: &Env, bytes_per_second: u64, bytes: u64) {
        env.relax().await;
        if bytes_per_second == 0 || !self.is_paced.get() {
            return;
        }
        let now = env.clock.monotonic_ns();
        let cost = bytes.saturating_mul(1_000_000_000) / bytes_per_second;
        let paid = self.paid_ns.get().max(now) + cost;
        self.paid_ns.set(paid);
        // Short waits are put together.
        if paid > now + 1_000_000 {
            env.spawn.sleep(Duration::from_nanos(paid - now).min(PAUSE_MAX)).await;
        }
    }
}

/// What there is to do.
enum Job {
    /// Merge these neighbours.
    Runs(Rc<VbStore>, Vec<Rc<Run>>),
    /// Merge all runs, without what may go.
    Purge(Rc<VbStore>),
    /// Rewrite these neighbours.
    Segments(Rc<VbStore>, Vec<u64>),
    /// Write marks again.
    Marks(Rc<VbStore>),
}

/// What a job has written.
enum Written {
    Rewritten(Rewritten),
    Merged(Merged),
}

impl Written {
    fn is_written(&self) -> bool {
        match self {
            Written::Rewritten(rewritten) => rewritten.is_written(),
            Written::Merged(merged) => merged.is_written(),
        }
    }
}

/// How a job ended.
enum Done {
    Yes,
    /// It cannot be done; another may.
    No,
    /// No job can be done now.
    Stop,
}

impl ShardCore {
    pub(crate) fn want_compaction(&self) {
        self.compaction.want();
    }

    pub(super) async fn run_compaction(self: Rc<Self>) {
        loop {
            let compaction = &self.compaction;
            compaction.event.until(|| compaction.wanted.get() || self.is_stopping()).await;
            if self.is_stopping() {
                break;
            }
            compaction.wanted.set(false);
            self.compact().await;
        }
    }

    fn is_stopping(&self) -> bool {
        self.has_failed() || self.closing.get()
    }

    /// Compacts until nothing is worth it.
    pub(crate) async fn compact(&self) {
        let working = self.compaction.working.lock().await;
        while !self.is_stopping() {
            let Some(job) = self.next_job().await else { break };
            if matches!(self.do_job(job).await, Done::Stop) {
                break;
            }
        }
        self.compaction.is_full.set(false);
        drop(working);
    }

    async fn next_job(&self) -> Option<Job> {
        let limit = self.options.reclaim.dead_share_max;
        if limit > 1.0 {
            return None;
        }
        let stores: Vec<Rc<VbStore>> = self.vbuckets.borrow().values().cloned().collect();
        let bytes_max = REWRITE_BYTES_MAX.min(self.room_bytes());
        let (mut all, mut dead) = (0, 0);
        let mut worst: Option<(f64, Job)> = None;
        let space = self.space.stats();
        if space.free_bytes >= 2 * space.reserve_bytes {
            self.compaction.is_full.set(false);
        }
        let is_full = self.compaction.is_full.get();
        let share_min = if is_full { FULL_SHARE_MIN } else { limit };
        for store in stores {
            self.env.relax().await;
            if let Some((runs, is_urgent)) = store.runs_to_merge(RUNS_AT_REST) {
                self.compaction.is_paced.set(!is_full && !is_urgent);
                return Some(Job::Runs(store, runs));
            }
            if store.wants_purge() {
                self.compaction.is_paced.set(!is_full);
                return Some(Job::Purge(store));
            }
            let segments = store.segments();
            let uses: Vec<Use> = segments.iter().map(|(_, one)| *one).collect();
            let ids = |range: std::ops::Range<usize>| segments[range].iter().map(|(id, _)| *id).collect();
            if let Some(range) = wholly_dead(&uses) {
                return Some(Job::Segments(store.clone(), ids(range)));
            }
            if store.wants_marks_rewritten() {
                return Some(Job::Marks(store));
            }
            if let Some(range) = crowded(&uses, bytes_max) {
                return Some(Job::Segments(store.clone(), ids(range)));
            }
            for one in uses.iter().filter(|one| !one.is_unreadable) {
                all += one.device_bytes;
                dead += one.dead_device_bytes();
            }
            if let Some((share, range)) = most_dead(&uses, share_min, bytes_max)
                && worst.as_ref().is_none_or(|(most, _)| share > *most)
            {
                worst = Some((share, Job::Segments(store.clone(), ids(range))));
            }
        }
        let share = dead as f64 / (all as f64).max(1.0);
        self.compaction.is_paced.set(!is_full && share < limit * 1.5);
        worst.filter(|_| is_full || share > limit).map(|(_, job)| job)
    }

    /// Bytes that rewriting may take now without asking for more room than there is, where the file may not grow.
    fn room_bytes(&self) -> u64 {
        if !self.compaction.is_full.get() {
            return u64::MAX;
        }
        // Blocks are not filled to the last byte.
        let space = self.space.stats();
        space.free_bytes.saturating_sub(space.reserve_bytes / 2) / 4 * 3
    }

    async fn do_job(&self, job: Job) -> Done {
        let started = self.env.clock.monotonic_ns();
        let pace = async |bytes: u64| {
            self.compaction.pay(&self.env, self.options.reclaim.bytes_per_second, bytes).await;
            !self.is_stopping()
        };
        let (store, written) = match job {
            Job::Runs(store, runs) => {
                let merged = store.merge(runs, &pace).await;
                (store, merged.map(|merged| Some(Written::Merged(merged))).map_err(ReclaimError::from))
            }
            Job::Purge(store) => {
                let merged = store.merge_purging(&pace).await;
                (store, merged.map(|merged| merged.map(Written::Merged)).map_err(ReclaimError::from))
            }
            Job::Segments(store, ids) => {
                let rewritten = store.rewrite_segments(&ids, &pace).await;
                (store, rewritten.map(|rewritten| Some(Written::Rewritten(rewritten))))
            }
            Job::Marks(store) => {
                let rewritten = store.rewrite_marks().await;
                (store, rewritten.map(|rewritten| Some(Written::Rewritten(rewritten))))
            }
        };
        let done = match written {
            Ok(Some(written)) => self.commit(&store, written, started).await,
            Ok(None) => Done::Yes,
            Err(error) => self.report_reclaim_failure(&store, &error),
        };
        store.forget_upkeep();
        done
    }

    /// Makes what was written durable, then what readers see.
    async fn commit(&self, store: &Rc<VbStore>, written: Written, started: u64) -> Done {
        if written.is_written() && !is_on(Mutant::NoReclaimSync) && !self.sync_data().await {
            return Done::Stop;
        }
        // A vbucket goes, and a flush is published, before or after.
        let _flushing = self.flushing.lock().await;
        if !self.vbucket_is(store) || self.is_stopping() {
            return Done::No;
        }
        let (records, written) = match written {
            Written::Rewritten(rewritten) => {
                (vec![store.reclaim_record(&rewritten)], Written::Rewritten(rewritten))
            }
            Written::Merged(mut merged) => {
                let Some(records) = store.merge_records(&mut merged) else { return Done::No };
                (records, Written::Merged(merged))
            }
        };
        if self.change_manifest(records).await.is_err() {
            self.unsure.borrow_mut().push(Box::new(written));
            return Done::Stop;
        }
        let took_ns = self.env.clock.monotonic_ns() - started;
        match written {
            Written::Rewritten(rewritten) => {
                let (written, replaced) = rewritten.bytes();
                self.metrics.reclaims.add(1);
                self.metrics.reclaim_written_bytes.add(written);
                self.metrics.reclaim_replaced_bytes.add(replaced);
                self.metrics.reclaim_ns.record(took_ns);
                store.publish_rewritten(rewritten);
            }
            Written::Merged(merged) => {
                self.metrics.merge_ns.record(took_ns);
                self.metrics.purges.add(u64::from(merged.is_purge()));
                store.publish_merged(merged);
            }
        }
        Done::Yes
    }

    fn vbucket_is(&self, store: &Rc<VbStore>) -> bool {
        let vbuckets = self.vbuckets.borrow();
        vbuckets.get(&(store.bucket(), store.id())).is_some_and(|there| Rc::ptr_eq(there, store))
    }

    fn report_reclaim_failure(&self, store: &VbStore, error: &ReclaimError) -> Done {
        let (shard, bucket, vb) = (self.geometry.shard.0, store.bucket().0, store.id().0);
        let error: &dyn std::error::Error = match error {
            ReclaimError::Stopped => return Done::No,
            ReclaimError::Read(error) => {
                self.metrics.reclaim_failures.add(1);
                tracing::warn!(shard, bucket, vb, %error, "a run or segment keeps what is dead in it, it cannot be read");
                return Done::No;
            }
            ReclaimError::Write(error) => error,
        };
        self.metrics.reclaim_failures.add(1);
        tracing::warn!(shard, bucket, vb, error, "space is not reclaimed, the data file cannot be written");
        Done::Stop
    }
}
