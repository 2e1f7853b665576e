//! Creating a scan: may it exist, is the snapshot what the client wants, is there a key.
//!
//! The checks that need no waiting come first and decide before any I/O. Then a task opens the snapshot, one group commit away, and probes for
//! a key.
//!
//! Invariants
//! - Each create is answered exactly once.
//! - A create holds a scan's slot from the moment it is admitted; a scan that comes of it inherits the slot.
//!
//! Cost: one group commit and at most one key block of every run.
//! Does not know: the wire, who may scan.

use std::cell::{Cell, RefCell};
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt;
use futures_lite::future::or;
use ringbase_storage::reader::ReadError;
use ringbase_storage::scan::{Content, KeyRange, KeyScan, ScanCounts};
use ringbase_storage::sync::Event;
use ringbase_storage::vbstore::{ReadView, VbStore};
use tracing::Instrument;

use super::document::document_encoder;
use super::registry::{RangeScans, ScanCore};
use super::sampling;
use super::scan::{ConnectionId, Described, SPANS, Scan, Slot, VbAddress};
use super::state::StateCell;
use crate::protocol::range_scan::{RangeScanCreate, ScanId, Selection, SnapshotRequirements};
use crate::protocol::scan_records::RecordKind;
use crate::protocol::{CollectionId, Refusal, Status};

/// A create under way.
#[derive(Debug)]
pub(super) struct Creating {
    pub(super) connection: ConnectionId,
    pub(super) at: VbAddress,
    stopped: Cell<bool>,
    changed: Event,
}

impl Creating {
    /// Nobody wants it any more.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.changed.notify_all();
    }

    async fn until_stopped(&self) {
        self.changed.until(|| self.stopped.get()).await;
    }
}

const NOT_MY_VBUCKET: Refusal = Refusal::new(Status::NOT_MY_VBUCKET, "");
const UNKNOWN_COLLECTION: Refusal = Refusal::new(Status::UNKNOWN_COLLECTION, "Unknown collection");
const EMPTY: Refusal = Refusal::new(Status::KEY_ENOENT, "No keys in range");
const STOPPED: Refusal = Refusal::new(Status::ETMPFAIL, "The range scan was cancelled while it was created");
const NO_SNAPSHOT: Refusal = Refusal::new(Status::EINTERNAL, "The snapshot could not be opened");

impl RangeScans {
    /// Creates a scan and answers with its id; the scan is Idle then and holds its snapshot (T5.1).
    ///
    /// `reply` is called exactly once, at once or later, with no borrow held. Refusals: NOT_MY_VBUCKET, UNKNOWN_COLLECTION, EBUSY (too many scans), VB_UUID_NOT_EQUAL, ETMPFAIL (the required seqno is not persisted, or the create
    /// was stopped), NOT_STORED (the required seqno is not in the snapshot), KEY_ENOENT (no key in the range), EINTERNAL.
    pub fn create(
        &self,
        at: VbAddress,
        connection: ConnectionId,
        request: RangeScanCreate,
        reply: impl FnOnce(Result<ScanId, Refusal>) + 'static,
    ) {
        let core = &self.core;
        let started_ns = core.now();
        let (store, slot) = match core.admit(at, &request) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                core.metrics.refused.add(1);
                return reply(Err(refusal));
            }
        };
        let creating =
            Rc::new(Creating { connection, at, stopped: Cell::new(false), changed: Event::default() });
        core.creating.borrow_mut().push(creating.clone());
        let span = tracing::debug_span!(
            target: SPANS,
            "range_scan_create",
            vb = at.vb.0,
            scan = tracing::field::Empty,
            result = tracing::field::Empty
        );
        let (task_core, task_span) = (core.clone(), span.clone());
        let task = async move {
            let core = task_core;
            let stopped = async {
                creating.until_stopped().await;
                Ok(Err(STOPPED))
            };
            let opened = AssertUnwindSafe(core.open(at, &store, request, slot)).catch_unwind();
            let opened = or(stopped, opened).await;
            core.creating.borrow_mut().retain(|other| !Rc::ptr_eq(other, &creating));
            let answer = match opened {
                Ok(Ok(scan)) => {
                    let id = scan.id;
                    core.metrics.created.add(1);
                    core.insert(scan);
                    task_span.record("scan", tracing::field::display(id));
                    task_span.record("result", tracing::field::display(Status::SUCCESS));
                    Ok(id)
                }
                Ok(Err(refusal)) => {
                    core.metrics.refused.add(1);
                    task_span.record("result", tracing::field::display(refusal.status));
                    Err(refusal)
                }
                Err(_panic) => {
                    core.metrics.panics.add(1);
                    tracing::error!(vb = at.vb.0, "creating a range scan panicked");
                    task_span.record("result", tracing::field::display(Status::EINTERNAL));
                    Err(NO_SNAPSHOT)
                }
            };
            core.metrics.create_ns.record(core.now() - started_ns);
            reply(answer);
        };
        core.env.spawn("range scan create", task.instrument(span));
    }
}

impl ScanCore {
    /// What can be decided without waiting: vbucket, collection, contents, number of scans.
    fn admit(&self, at: VbAddress, request: &RangeScanCreate) -> Result<(Rc<VbStore>, Slot), Refusal> {
        let store = self.vbuckets.active(at).ok_or(NOT_MY_VBUCKET)?;
        if !self.vbuckets.has_collection(at.bucket, request.collection) {
            return Err(UNKNOWN_COLLECTION);
        }
        let slot = Slot::take(&self.slots, self.settings.scans_max)
            .ok_or(Refusal::new(Status::EBUSY, "Too many range scans"))?;
        Ok((store, slot))
    }

    async fn open(
        &self,
        at: VbAddress,
        store: &Rc<VbStore>,
        request: RangeScanCreate,
        slot: Slot,
    ) -> Result<Scan, Refusal> {
        let created_ns = self.now();
        if let Some(required) = &request.snapshot {
            self.wait_for(store, required).await?;
        }
        let view = store.open_view().await.map_err(|error| {
            tracing::error!(vb = at.vb.0, %error, "snapshot of a range scan cannot be opened");
            NO_SNAPSHOT
        })?;
        if let Some(required) = &request.snapshot {
            self.check_snapshot(at, &view, required).await?;
        }
        let range = key_range(request.collection, &request.selection);
        let items = view.collections().get(request.collection.0).map_or(0, |collection| collection.items);
        let (select, chance) = match request.selection {
            Selection::Sampling { samples, seed } => {
                if items == 0 {
                    return Err(EMPTY);
                }
                let chance = sampling::chance(samples, items);
                (chance.map(|chance| sampling::select(chance, seed)), chance)
            }
            Selection::All | Selection::Range { .. } => {
                if !KeyScan::has_any(&view, &range).await.map_err(|error| self.unreadable(at, &error))? {
                    return Err(EMPTY);
                }
                (None, None)
            }
        };
        let is_current = self.vbuckets.active(at).is_some_and(|store| store.uuid() == view.uuid());
        if !is_current {
            return Err(NOT_MY_VBUCKET);
        }
        if !self.vbuckets.has_collection(at.bucket, request.collection) {
            return Err(UNKNOWN_COLLECTION);
        }
        let include_xattrs = request.include_xattrs;
        let (kind, content) = match request.key_only {
            true => (RecordKind::Keys, Content::Keys),
            false => (RecordKind::Documents, Content::Documents(document_encoder(include_xattrs))),
        };
        Ok(Scan {
            id: self.new_id(),
            at,
            uuid: view.uuid(),
            collection: request.collection,
            described: Described {
                selection: request.selection,
                kind,
                include_xattrs,
                name: request.name,
                chance,
            },
            created_ns,
            state: StateCell::new(),
            reader: RefCell::new(Some(KeyScan::new(view, range, content, select))),
            waiting: RefCell::default(),
            in_flight: Cell::new(0),
            generation: Cell::new(0),
            connection: Cell::new(None),
            continues: Cell::new(0),
            counts: Cell::new(ScanCounts::default()),
            progress: Cell::new(None),
            exceeded_buffer: Cell::new(false),
            queued: Cell::new(false),
            changed: Event::default(),
            _slot: slot,
        })
    }

    /// Waits until the required seqno is persisted, as long as the client wants and a scan may live (T5.17).
    async fn wait_for(&self, store: &VbStore, required: &SnapshotRequirements) -> Result<(), Refusal> {
        const LATE: Refusal = Refusal::new(Status::ETMPFAIL, "The required seqno is not persisted yet");
        if store.uuid() != required.uuid {
            return Err(OTHER_BRANCH);
        }
        if store.persisted_seqno() >= required.seqno {
            return Ok(());
        }
        let Some(timeout_ms) = required.timeout_ms else { return Err(LATE) };
        let timeout = Duration::from_millis(timeout_ms).min(self.settings.max_lifetime.get());
        let too_late = async {
            self.env.spawn.sleep(timeout).await;
            Err(LATE)
        };
        let persisted = async {
            match store.wait_persisted(required.seqno).await {
                true => Ok(()),
                false => Err(NO_SNAPSHOT),
            }
        };
        or(persisted, too_late).await
    }

    async fn check_snapshot(
        &self,
        at: VbAddress,
        view: &ReadView,
        required: &SnapshotRequirements,
    ) -> Result<(), Refusal> {
        if view.uuid() != required.uuid {
            return Err(OTHER_BRANCH);
        }
        if required.seqno_exists {
            let exists = view.contains_seqno(required.seqno).await;
            if !exists.map_err(|error| self.unreadable(at, &error))? {
                return Err(Refusal::new(Status::NOT_STORED, "The required seqno is not in the snapshot"));
            }
        }
        Ok(())
    }

    /// Reports that a probe could not read. That the bucket went meanwhile is no failure.
    fn unreadable(&self, at: VbAddress, error: &ReadError) -> Refusal {
        if matches!(error, ReadError::Gone) {
            return NOT_MY_VBUCKET;
        }
        self.metrics.read_failures.add(1);
        tracing::error!(
            vb = at.vb.0,
            error = error as &dyn std::error::Error,
            "range scan cannot read its data"
        );
        NO_SNAPSHOT
    }
}

const OTHER_BRANCH: Refusal = Refusal::new(Status::VB_UUID_NOT_EQUAL, "The vbucket has another uuid");

/// What part of a collection a selection covers.
fn key_range(collection: CollectionId, selection: &Selection) -> KeyRange {
    let mut range = KeyRange::collection(collection.0);
    if let Selection::Range { start, end } = selection {
        (range.start, range.start_exclusive) = match start {
            Bound::Included(key) => (key.clone(), false),
            Bound::Excluded(key) => (key.clone(), true),
            Bound::Unbounded => (Vec::new(), false),
        };
        (range.end, range.end_exclusive) = match end {
            Bound::Included(key) => (Some(key.clone()), false),
            Bound::Excluded(key) => (Some(key.clone()), true),
            Bound::Unbounded => (None, false),
        };
    }
    range
}
