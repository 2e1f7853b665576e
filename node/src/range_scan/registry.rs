//! The range scans of one core by their ids, and every change of their state.
//!
//! A reading task reports what happened to it; only here that becomes a state and an answer (T5.9).
//!
//! Invariants
//! - A scan is in the map exactly while it is Idle or Continuing.
//! - A continue gets exactly one final frame, whoever ends it first: the task, a cancel, the lifetime, the vbucket.
//! - No borrow is held while a sink takes a frame (T5.10).
//! - One task for all lifetimes; it sleeps until the earliest is over and exists only while there is a scan.
//!
//! Cost: a hash look-up a request; nothing while idle.
//! Does not know: how keys are read, sockets.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_lite::future::or;
use ringbase_storage::env::Env;
use ringbase_storage::reader::ReadError;
use ringbase_storage::scan::KeyScan;
use ringbase_storage::sync::Event;
use ringbase_storage::types::{BucketId, VbId};
use ringbase_storage::vbstore::VbStore;

use super::buffer::{BufferBytes, BufferPool, ScanBuffer};
use super::create::Creating;
use super::frame::{ScanFrame, SentFrame, Ticket};
use super::metrics::ScanMetrics;
use super::scan::{ConnectionId, Scan, VbAddress};
use super::settings::{RangeScanConfig, SettingError, Settings};
use super::state::{IllegalTransition, ScanState};
use super::turns::Turns;
use crate::protocol::range_scan::ScanId;
use crate::protocol::{CollectionId, Refusal, Status};

/// The vbuckets of this core, as range scans ask about them.
pub trait ActiveVbuckets {
    /// The vbucket, if it is on this core and in state active.
    fn active(&self, at: VbAddress) -> Option<Rc<VbStore>>;

    /// Whether the bucket has the collection now.
    fn has_collection(&self, bucket: BucketId, collection: CollectionId) -> bool;
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct RangeScans {
    pub(super) core: Rc<ScanCore>,
}

/// What the scans of a core share.
pub(super) struct ScanCore {
    pub(super) env: Env,
    pub(super) vbuckets: Rc<dyn ActiveVbuckets>,
    pub(super) settings: Settings,
    pub(super) metrics: ScanMetrics,
    pub(super) pool: BufferPool,
    pub(super) turns: Turns,
    /// Scans and creates that live.
    pub(super) slots: Rc<Cell<usize>>,
    pub(super) scans: RefCell<BTreeMap<ScanId, Rc<Scan>>>,
    pub(super) creating: RefCell<Vec<Rc<Creating>>>,
    lifetimes: Rc<Event>,
    lifetimes_task: Cell<bool>,
}

/// What a reading task reports.
pub(super) enum Report {
    /// The buffer is full; the task goes on if it may.
    Full(ScanBuffer),
    /// A limit of the continue was reached; the reader comes back.
    More(ScanBuffer, Box<KeyScan>),
    /// The end of the range was reached.
    Complete(ScanBuffer),
    /// The range could not be read.
    Failed(ReadError),
    /// The task had a bug.
    Panicked,
    /// There is no memory for a buffer.
    NoMemory,
}

/// Whether a reading task goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    GoOn,
    Stop,
}

impl RangeScans {
    /// No scans yet.
    #[must_use]
    pub fn new(env: Env, vbuckets: Rc<dyn ActiveVbuckets>, config: RangeScanConfig) -> RangeScans {
        RangeScans {
            core: Rc::new(ScanCore {
                env,
                vbuckets,
                settings: Settings::new(config),
                metrics: ScanMetrics::default(),
                pool: BufferPool::default(),
                turns: Turns::default(),
                slots: Rc::default(),
                scans: RefCell::default(),
                creating: RefCell::default(),
                lifetimes: Rc::default(),
                lifetimes_task: Cell::new(false),
            }),
        }
    }

    /// Cancels a scan; one that continues ends with RANGE_SCAN_CANCELLED on its own connection (T5.8).
    ///
    /// # Errors
    /// NOT_MY_VBUCKET, KEY_ENOENT.
    pub fn cancel(&self, at: VbAddress, id: ScanId) -> Result<(), Refusal> {
        if self.core.vbuckets.active(at).is_none() {
            return Err(Refusal::new(Status::NOT_MY_VBUCKET, ""));
        }
        let scan = self.core.find(at, id).ok_or(UNKNOWN)?;
        self.core.metrics.cancelled.add(1);
        self.core.end(&scan, ScanState::Cancelled, Some(Status::RANGE_SCAN_CANCELLED));
        Ok(())
    }

    /// Takes back a buffer that the connection has sent; the scan may fill one more.
    pub fn frame_sent(&self, sent: SentFrame) {
        let core = &self.core;
        let SentFrame { buffer, ticket } = sent;
        let took = core.now().saturating_sub(ticket.full_ns);
        core.metrics.full_to_sent_ns.record(took);
        core.pool.give(buffer);
        let scan = core.scans.borrow().get(&ticket.scan).cloned();
        if let Some(scan) = scan.filter(|scan| scan.generation.get() == ticket.generation) {
            scan.in_flight.set(scan.in_flight.get().saturating_sub(1));
            scan.changed.notify_all();
        }
    }

    /// Ends what a connection that is gone was waiting for: its running continues, whose snapshots are released, and its creates. Idle scans
    /// live on (T5.22).
    pub fn connection_gone(&self, connection: ConnectionId) {
        let core = &self.core;
        core.stop_creating(|creating| creating.connection == connection);
        for scan in core.all(|scan| scan.connection.get() == Some(connection)) {
            scan.forget_frames();
            if scan.is_continuing() {
                core.metrics.cancelled.add(1);
                core.end(&scan, ScanState::Cancelled, None);
            }
        }
    }

    /// Ends running continues with NOT_MY_VBUCKET if the vbucket is no longer active or has another branch; the node calls it when it changes
    /// a vbucket's state. Idle scans stay until somebody asks for them.
    pub fn vbucket_changed(&self, at: VbAddress) {
        for scan in self.core.all(|scan| scan.at == at && scan.is_continuing()) {
            if !self.core.is_current(&scan) {
                self.core.end(&scan, ScanState::Cancelled, Some(Status::NOT_MY_VBUCKET));
            }
        }
    }

    /// Cancels every scan and create of a vbucket that is deleted.
    pub fn vbucket_deleted(&self, at: VbAddress) {
        self.core.stop_creating(|creating| creating.at == at);
        self.core.cancel_where(|scan| scan.at == at);
    }

    /// Cancels every scan and create of a bucket that is deleted or emptied.
    pub fn bucket_deleted(&self, bucket: BucketId) {
        self.core.stop_creating(|creating| creating.at.bucket == bucket);
        self.core.cancel_where(|scan| scan.at.bucket == bucket);
    }

    /// Cancels every scan and create: the node stops.
    pub fn cancel_all(&self) {
        self.core.stop_creating(|_| true);
        self.core.cancel_where(|_| true);
    }

    /// Changes a setting by its name in the protocol, at once and for scans that run, too.
    ///
    /// # Errors
    /// `Unknown`: not one of ours. `Value`: nothing has changed.
    pub fn set_param(&self, name: &str, value: &str) -> Result<(), SettingError> {
        self.core.settings.set(name, value)?;
        self.core.lifetimes.notify_all();
        self.core.turns.notify();
        Ok(())
    }

    /// Histograms and counters.
    #[must_use]
    pub fn metrics(&self) -> &ScanMetrics {
        &self.core.metrics
    }

    /// Bytes of buffers being filled or under way.
    #[must_use]
    pub fn buffer_bytes(&self) -> &BufferBytes {
        self.core.pool.account()
    }

    /// Scans and creates that live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.core.slots.get()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for RangeScans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RangeScans({} of {})", self.len(), self.core.settings.scans_max)
    }
}

/// No such scan: finished, cancelled, too old, of another vbucket, or never there.
pub(super) const UNKNOWN: Refusal = Refusal::new(Status::KEY_ENOENT, "No such range scan");

impl ScanCore {
    pub(super) fn now(&self) -> u64 {
        self.env.clock.monotonic_ns()
    }

    /// Whether the scan's vbucket is active and on the branch that the snapshot belongs to.
    pub(super) fn is_current(&self, scan: &Scan) -> bool {
        self.vbuckets.active(scan.at).is_some_and(|store| store.uuid() == scan.uuid)
    }

    /// Why the scan can never go on, if so.
    pub(super) fn obstacle(&self, scan: &Scan) -> Option<Status> {
        if !self.is_current(scan) {
            return Some(Status::NOT_MY_VBUCKET);
        }
        let is_known = self.vbuckets.has_collection(scan.at.bucket, scan.collection);
        (!is_known).then_some(Status::UNKNOWN_COLLECTION)
    }

    pub(super) fn find(&self, at: VbAddress, id: ScanId) -> Option<Rc<Scan>> {
        self.scans.borrow().get(&id).filter(|scan| scan.at == at).cloned()
    }

    /// The scans that `wanted` accepts, in the order of their ids.
    pub(super) fn all(&self, wanted: impl Fn(&Scan) -> bool) -> Vec<Rc<Scan>> {
        self.scans.borrow().values().filter(|scan| wanted(scan)).cloned().collect()
    }

    /// Scans of a vbucket, or of all, of a bucket.
    pub(super) fn of_bucket(&self, bucket: BucketId, vb: Option<VbId>) -> Vec<Rc<Scan>> {
        self.all(|scan| scan.at.bucket == bucket && vb.is_none_or(|vb| scan.at.vb == vb))
    }

    /// A random id that no scan has: a version 4 UUID.
    pub(super) fn new_id(&self) -> ScanId {
        loop {
            let (high, low) = (self.env.random_u64(), self.env.random_u64());
            let uuid =
                uuid::Builder::from_random_bytes((u128::from(high) << 64 | u128::from(low)).to_be_bytes());
            let id = ScanId(uuid.into_uuid().into_bytes());
            if !self.scans.borrow().contains_key(&id) {
                return id;
            }
        }
    }

    /// Takes a new scan in.
    pub(super) fn insert(self: &Rc<Self>, scan: Scan) {
        self.scans.borrow_mut().insert(scan.id, Rc::new(scan));
        if !self.lifetimes_task.replace(true) {
            let (core, event) = (Rc::downgrade(self), self.lifetimes.clone());
            self.env.spawn("range scan lifetimes", run_lifetimes(self.env.clone(), core, event));
        }
    }

    /// Changes the state; an illegal change is a bug of ours and is reported, not done.
    ///
    /// # Errors
    /// The state is as before.
    pub(super) fn change(&self, scan: &Scan, to: ScanState) -> Result<(), IllegalTransition> {
        let changed = scan.state.change(to);
        if let Err(error) = changed {
            tracing::error!(vb = scan.at.vb.0, scan = %scan.id, %error, "range scan state machine is broken");
            debug_assert!(false, "{error}");
        } else if matches!(to, ScanState::Completed | ScanState::Cancelled) {
            let mut scans = self.scans.borrow_mut();
            scans.remove(&scan.id);
            if scans.is_empty() {
                self.lifetimes.notify_all();
            }
        }
        changed
    }

    /// Ends a scan for good; whoever waits for a continue gets `status`, if any. The snapshot is released here, or by the reading task as
    /// soon as it runs.
    pub(super) fn end(&self, scan: &Rc<Scan>, to: ScanState, status: Option<Status>) {
        if self.change(scan, to).is_err() {
            return;
        }
        let reader = scan.reader.borrow_mut().take();
        drop(reader);
        let waiting = scan.waiting.borrow_mut().take();
        scan.changed.notify_all();
        self.turns.notify();
        let Some(waiting) = waiting else { return };
        let Some(status) = status else { return scan.explain(&waiting, &"disconnected") };
        scan.explain(&waiting, &status);
        self.metrics.continue_ns.record(self.now() - waiting.started_ns);
        waiting.sink.send(ScanFrame::without_records(status, scan.described.kind, self.pool.head_only()));
    }

    fn cancel_where(&self, wanted: impl Fn(&Scan) -> bool) {
        for scan in self.all(wanted) {
            self.metrics.cancelled.add(1);
            self.end(&scan, ScanState::Cancelled, Some(Status::RANGE_SCAN_CANCELLED));
        }
    }

    fn stop_creating(&self, wanted: impl Fn(&Creating) -> bool) {
        let stopped: Vec<Rc<Creating>> =
            self.creating.borrow().iter().filter(|creating| wanted(creating)).cloned().collect();
        for creating in stopped {
            creating.stop();
        }
    }

    /// Turns what a reading task reports into state and answer. A scan that has ended meanwhile was answered then: the report is dropped.
    pub(super) fn report(&self, scan: &Rc<Scan>, report: Report) -> Verdict {
        if !scan.is_continuing() {
            return Verdict::Stop;
        }
        let has_data = matches!(report, Report::Full(_) | Report::More(..) | Report::Complete(_));
        let is_gone = matches!(report, Report::Failed(ReadError::Gone));
        let obstacle = if is_gone { Some(Status::NOT_MY_VBUCKET) } else { None };
        if let Some(status) = obstacle.or_else(|| self.obstacle(scan).filter(|_| has_data)) {
            drop(report);
            self.end(scan, ScanState::Cancelled, Some(status));
            return Verdict::Stop;
        }
        match report {
            Report::Full(buffer) => {
                let sink = scan.waiting.borrow().as_ref().map(|waiting| waiting.sink.clone());
                if let Some(sink) = sink {
                    sink.send(self.frame(scan, Status::SUCCESS, buffer));
                }
                return if scan.is_continuing() { Verdict::GoOn } else { Verdict::Stop };
            }
            Report::More(buffer, reader) => {
                if self.change(scan, ScanState::Idle).is_ok() {
                    *scan.reader.borrow_mut() = Some(*reader);
                    self.finish(scan, Status::RANGE_SCAN_MORE, buffer);
                }
            }
            Report::Complete(buffer) => {
                if self.change(scan, ScanState::Completed).is_ok() {
                    self.metrics.completed.add(1);
                    self.finish(scan, Status::RANGE_SCAN_COMPLETE, buffer);
                }
            }
            Report::Failed(error) => {
                self.metrics.read_failures.add(1);
                tracing::error!(
                    vb = scan.at.vb.0,
                    scan = %scan.id,
                    error = &error as &dyn std::error::Error,
                    "range scan cannot read its data"
                );
                self.end(scan, ScanState::Cancelled, Some(Status::EINTERNAL));
            }
            Report::Panicked => {
                self.metrics.panics.add(1);
                tracing::error!(vb = scan.at.vb.0, scan = %scan.id, "range scan task panicked");
                self.end(scan, ScanState::Cancelled, Some(Status::EINTERNAL));
            }
            Report::NoMemory => {
                tracing::warn!(vb = scan.at.vb.0, scan = %scan.id, "no memory for a range scan's buffer");
                self.end(scan, ScanState::Cancelled, Some(Status::ENOMEM));
            }
        }
        Verdict::Stop
    }

    /// Answers a continue with its final frame.
    fn finish(&self, scan: &Rc<Scan>, status: Status, buffer: ScanBuffer) {
        let Some(waiting) = scan.waiting.borrow_mut().take() else { return };
        scan.explain(&waiting, &status);
        self.metrics.continue_ns.record(self.now() - waiting.started_ns);
        waiting.sink.send(self.frame(scan, status, buffer));
    }

    /// A frame around a buffer; an empty buffer stays here.
    fn frame(&self, scan: &Scan, status: Status, buffer: ScanBuffer) -> ScanFrame {
        let kind = scan.described.kind;
        if buffer.records().is_empty() {
            self.pool.give(buffer);
            return ScanFrame::without_records(status, kind, self.pool.head_only());
        }
        scan.in_flight.set(scan.in_flight.get() + 1);
        let ticket = Ticket { scan: scan.id, generation: scan.generation.get(), full_ns: self.now() };
        ScanFrame::with_records(status, kind, buffer, ticket)
    }

    /// Cancels the scans that are too old; how long until the next one is, if there is one.
    fn expire(&self) -> Option<Duration> {
        let lifetime = self.settings.max_lifetime.get();
        let now = self.now();
        let age = |scan: &Scan| Duration::from_nanos(now.saturating_sub(scan.created_ns));
        for scan in self.all(|scan| age(scan) >= lifetime) {
            let counts = scan.counts.get();
            tracing::warn!(
                vb = scan.at.vb.0,
                scan = %scan.id,
                state = ?scan.state.get(),
                age_s = age(&scan).as_secs(),
                continues = scan.continues.get(),
                records = counts.records,
                from_memory = counts.from_memory,
                from_disk = counts.from_disk,
                "range scan is too old and is cancelled"
            );
            self.metrics.expired.add(1);
            self.end(&scan, ScanState::Cancelled, Some(Status::RANGE_SCAN_CANCELLED));
        }
        let scans = self.scans.borrow();
        let oldest = scans.values().map(|scan| age(scan)).max()?;
        Some(lifetime.saturating_sub(oldest))
    }
}

/// Ends scans whose lifetime is over, until there is no scan left.
async fn run_lifetimes(env: Env, core: Weak<ScanCore>, event: Rc<Event>) {
    loop {
        // Made before the scans are looked at, so that no change is missed.
        let changed = event.listen();
        let Some(wait) = core.upgrade().and_then(|core| {
            let wait = core.expire();
            core.lifetimes_task.set(wait.is_some());
            wait
        }) else {
            return;
        };
        or(changed, env.spawn.sleep(wait)).await;
    }
}
