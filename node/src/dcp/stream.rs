//! One stream: the task that reads its vbucket, the past first and then the present, into pieces of messages.
//!
//! It goes from snapshot to snapshot. If memory has everything from its position on, the snapshot is one of memory; else a view is
//! opened and read from disk
//! ([`SeqnoScan`]). Between snapshots it holds its position and nothing else.
//!
//! Invariants
//! - Seqnos rise; a marker goes before the first message of its snapshot, never without one.
//! - A view or reader is opened in the same run as its first messages (T2.1, T2.9), with a turn for a piece in hand.
//! - Opened contents whose purge seqno the position does not reach end the stream with Rollback (T4.11).
//! - A read that fails ends the stream with BackfillFail at once; what was not sent is dropped (T3.1, T3.2).
//! - At most [`PIECES_AHEAD_MAX`] pieces of a stream are handed over and not sent. Who waits longer than [`PARK_AFTER`] lets go of what
//!   it read ahead.
//!
//! Cost: one copy a message. A slice is at most [`SLICE_ITEMS`] messages or [`SLICE_NS`].
//! Does not know: flow control, sockets.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt;
use futures_lite::future::or;
use ringbase_storage::reader::ReadError;
use ringbase_storage::scan::{SeqnoRecord, SeqnoScan};
use ringbase_storage::seqlist::{BatchLimits, Progress};
use ringbase_storage::sync::Event;
use ringbase_storage::types::{BucketId, Seqno};
use ringbase_storage::vbstore::{SeqnoReading, VbStore};

use super::filter::CollectionFilter;
use super::piece::{Content, PieceSink, StreamNumber, StreamPiece, StreamSpec};
use super::settings::MarkerForm;
use super::stream_state::StreamState;
use super::streams::{ConnectionTurns, Core};
use super::turns::Turn;
use crate::protocol::CollectionId;
use crate::protocol::dcp::signal::{encode_seqno_advanced, encode_stream_end};
use crate::protocol::dcp::{
    MarkerFlags, MarkerVersion, SnapshotMarker, StoredError, StreamEndStatus, StreamFlags, append_document,
    append_stored,
};
use crate::range_scan::{ConnectionId, ScanBuffer};

/// A piece is handed over when it has this many bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Pieces of one stream that are handed over and not sent, at most.
const PIECES_AHEAD_MAX: usize = 2;

/// Messages that are made in one slice.
const SLICE_ITEMS: usize = 256;

/// The longest slice.
const SLICE_NS: u64 = 200_000;

/// Messages between two looks at the clock.
const CLOCK_ITEMS: usize = 32;

/// Who waits longer than this to fill a piece lets go of what it read ahead.
const PARK_AFTER: Duration = Duration::from_millis(50);

/// See the module.
pub(super) struct Stream {
    spec: StreamSpec,
    filter: CollectionFilter,
    store: Rc<VbStore>,
    core: Rc<Core>,
    turns: Rc<ConnectionTurns>,
    sink: Rc<dyn PieceSink>,
    state: Cell<StreamState>,
    /// The last seqno that the client has, or will have with what is filled.
    position: Cell<Seqno>,
    end: Cell<Seqno>,
    has_marked: Cell<bool>,
    /// One for each piece that was handed over and not sent.
    under_way: RefCell<VecDeque<Turn>>,
    changed: Event,
}

/// A piece that is being filled.
struct Filling {
    buffer: ScanBuffer,
    turn: Turn,
}

/// How a stream ends by itself.
struct End {
    status: StreamEndStatus,
    /// What is sent before.
    rest: Option<Filling>,
}

impl End {
    fn with(status: StreamEndStatus) -> End {
        End { status, rest: None }
    }
}

/// A snapshot that is being sent.
struct Snapshot {
    start: Seqno,
    end: Seqno,
    flags: MarkerFlags,
    purge: Seqno,
    is_first: bool,
    is_announced: bool,
    last: Seqno,
}

/// Reads until the stream ends or is ended.
pub(super) async fn run(stream: Rc<Stream>) {
    let ended = async {
        stream.changed.until(|| stream.is_dead()).await;
        None
    };
    let reading = AssertUnwindSafe(stream.read_all()).catch_unwind();
    match or(ended, async { Some(reading.await) }).await {
        None => {}
        Some(Ok(end)) => stream.end_after(end),
        Some(Err(_panic)) => {
            tracing::error!(vb = stream.spec.envelope.vbucket.0, "reading a stream panicked");
            stream.end_after(End::with(StreamEndStatus::BackfillFail));
        }
    }
}

impl Stream {
    pub(super) fn new(
        spec: StreamSpec,
        store: Rc<VbStore>,
        core: Rc<Core>,
        turns: Rc<ConnectionTurns>,
        sink: Rc<dyn PieceSink>,
    ) -> Stream {
        let filter = match &spec.selection {
            None => CollectionFilter::DefaultOnly,
            Some(selection) => CollectionFilter::new(selection, &[CollectionId::DEFAULT]),
        };
        Stream {
            filter,
            state: Cell::new(StreamState::Pending),
            position: Cell::new(spec.request.start),
            end: Cell::new(spec.request.end),
            has_marked: Cell::new(false),
            under_way: RefCell::default(),
            changed: Event::default(),
            spec,
            store,
            core,
            turns,
            sink,
        }
    }

    pub(super) fn number(&self) -> StreamNumber {
        self.spec.number
    }

    pub(super) fn connection(&self) -> ConnectionId {
        self.spec.connection
    }

    pub(super) fn bucket(&self) -> BucketId {
        self.spec.bucket
    }

    /// A piece was sent.
    pub(super) fn piece_sent(&self) {
        let turn = self.under_way.borrow_mut().pop_front();
        drop(turn);
        self.changed.notify_all();
    }

    /// Ends it without a word.
    pub(super) fn kill(&self) {
        self.state.set(StreamState::Dead);
        self.under_way.take();
        self.changed.notify_all();
    }

    /// Ends it with a message, from outside of its task.
    pub(super) fn end(&self, status: StreamEndStatus) {
        let discards = self.state.get().discards_queue_at_end();
        self.kill();
        self.send_end(status, None, discards);
    }

    fn end_after(&self, end: End) {
        if !self.core.forget(self.spec.number) {
            return;
        }
        let discards = !matches!(end.status, StreamEndStatus::Ok) && self.state.get().discards_queue_at_end();
        self.kill();
        self.send_end(end.status, end.rest, discards);
    }

    fn send_end(&self, status: StreamEndStatus, rest: Option<Filling>, discards: bool) {
        let status = if self.spec.selection.is_some() { status } else { status.without_collections() };
        let (vb, conn) = (self.spec.envelope.vbucket.0, self.spec.connection.0);
        tracing::debug!(vb, conn, status = status.name(), position = self.position.get().0, "stream ended");
        let content = match rest {
            Some(Filling { mut buffer, .. }) => {
                encode_stream_end(status, self.spec.envelope, buffer.vec());
                buffer.recount();
                Content::Buffer(buffer)
            }
            None => {
                let mut message = Vec::new();
                encode_stream_end(status, self.spec.envelope, &mut message);
                Content::Small(message)
            }
        };
        self.sink.send(StreamPiece { number: self.spec.number, content, is_last: true, discards });
    }

    fn is_dead(&self) -> bool {
        self.state.get() == StreamState::Dead
    }

    fn change(&self, to: StreamState) {
        let mut state = self.state.get();
        if state != to && state != StreamState::Dead {
            if let Err(error) = state.change(to) {
                debug_assert!(false, "{error}");
                tracing::error!(%error, "state of a stream");
            }
            self.state.set(state);
        }
    }

    fn has_flag(&self, flag: StreamFlags) -> bool {
        self.spec.request.flags.contains(flag)
    }

    /// Reads snapshot after snapshot.
    async fn read_all(&self) -> End {
        self.change(StreamState::Backfilling);
        loop {
            if self.position.get() >= self.end.get() {
                return End::with(StreamEndStatus::Ok);
            }
            if self.store.has_ended() {
                return End::with(StreamEndStatus::StateChanged);
            }
            let read = if self.has_flag(StreamFlags::DISK_ONLY) || !self.is_in_memory() {
                self.backfill().await
            } else {
                self.change(StreamState::InMemory);
                if !self.store.wait_written(self.position.get()).await {
                    return End::with(StreamEndStatus::StateChanged);
                }
                self.follow().await
            };
            if let Err(end) = read {
                return end;
            }
        }
    }

    /// Whether memory has everything behind the position.
    fn is_in_memory(&self) -> bool {
        let next = self.position.get().next();
        self.store.high_seqno() < next || self.store.open_seqnos(next).resident_from() <= next
    }

    /// Whether the client may have missed deletions that are purged.
    fn misses_tombstones(&self, purge_seqno: Seqno) -> bool {
        let claim = super::rollback::Claim { start: self.position.get(), ..self.spec.claim() };
        claim.misses_tombstones(purge_seqno)
    }

    /// Begins a snapshot up to `end`. A stream to the latest ends with it.
    fn snapshot(&self, end: Seqno, flags: MarkerFlags, purge: Seqno) -> Snapshot {
        if self.has_flag(StreamFlags::TO_LATEST) || self.has_flag(StreamFlags::DISK_ONLY) {
            self.end.set(end);
        }
        let (position, is_first) = (self.position.get(), !self.has_marked.get());
        let start = if is_first { self.spec.request.snap_start } else { position.next() };
        Snapshot { start, end, flags, purge, is_first, is_announced: false, last: position }
    }

    /// Sends one snapshot of memory.
    async fn follow(&self) -> Result<(), End> {
        let mut filling = self.fill_next(|| {}).await?;
        let mut reading: SeqnoReading = self.store.open_seqnos(self.position.get().next());
        if self.misses_tombstones(reading.purge_seqno()) {
            return Err(End::with(StreamEndStatus::Rollback));
        }
        let mut snapshot = self.snapshot(reading.end(), MarkerFlags::MEMORY, Seqno(0));
        if !self.has_marked.get() {
            snapshot.flags = snapshot.flags | MarkerFlags::CHECKPOINT;
        }
        let mut items = Vec::new();
        loop {
            let room =
                (PIECE_BYTES + crate::range_scan::HEAD_ROOM).saturating_sub(filling.buffer.vec().len());
            let limits = BatchLimits { items: SLICE_ITEMS, bytes: room.max(1) };
            let progress = reading.next_batch(limits, &mut items);
            for item in items.drain(..) {
                if item.seqno() > self.end.get() {
                    return Err(self.reached_end(filling));
                }
                self.append(&mut snapshot, &SeqnoRecord::from(&item), &mut filling)
                    .map_err(|error| self.unsendable(&error))?;
            }
            match progress {
                Progress::More => {}
                Progress::End => {
                    self.complete(&mut snapshot, &mut filling);
                    return self.done(filling);
                }
                Progress::Behind => {
                    self.hand_over(filling);
                    return Ok(());
                }
                Progress::Gone => return Err(End::with(StreamEndStatus::StateChanged)),
            }
            if is_full(&mut filling) {
                self.hand_over(filling);
                filling = self.fill_next(|| {}).await?;
            }
            self.core.env.relax().await;
        }
    }

    /// Sends one snapshot of disk.
    async fn backfill(&self) -> Result<(), End> {
        self.change(StreamState::Backfilling);
        let _slot = self.turns.backfills.take().await;
        let mut filling = self.fill_next(|| {}).await?;
        let opened = SeqnoScan::open(&self.store, self.position.get().next()).await;
        let mut scan = opened.map_err(|error| self.unreadable(&error))?;
        if self.misses_tombstones(scan.purge_seqno()) {
            return Err(End::with(StreamEndStatus::Rollback));
        }
        let mut snapshot = self.snapshot(scan.view().end(), MarkerFlags::BACKFILL, scan.purge_seqno());
        loop {
            let started_ns = self.core.env.clock.monotonic_ns();
            let (mut taken, mut failure, mut is_over) = (0, None, false);
            let read = scan
                .run(|record| {
                    if record.meta.seqno > self.end.get() {
                        is_over = true;
                        return false;
                    }
                    if let Err(error) = self.append(&mut snapshot, &record, &mut filling) {
                        failure = Some(error);
                        return false;
                    }
                    taken += 1;
                    let is_late = || self.core.env.clock.monotonic_ns() - started_ns >= SLICE_NS;
                    let is_out = taken >= SLICE_ITEMS || (taken % CLOCK_ITEMS == 0 && is_late());
                    !(is_out || is_full(&mut filling))
                })
                .await;
            let more = read.map_err(|error| self.unreadable(&error))?;
            if let Some(error) = failure {
                return Err(self.unsendable(&error));
            }
            if is_over {
                return Err(self.reached_end(filling));
            }
            if !more {
                drop(scan);
                self.complete(&mut snapshot, &mut filling);
                return self.done(filling);
            }
            if is_full(&mut filling) {
                self.hand_over(filling);
                filling = self.fill_next(|| scan.park()).await?;
            }
            self.core.env.relax().await;
        }
    }

    /// Appends the message of a document, and the marker before the first one of a snapshot.
    fn append(
        &self,
        snapshot: &mut Snapshot,
        record: &SeqnoRecord<'_>,
        filling: &mut Filling,
    ) -> Result<(), StoredError> {
        let (meta, spec) = (&record.meta, &self.spec);
        let is_skipped = spec.skips_deletes
            && meta.kind.is_deleted()
            && spec.request.start == Seqno(0)
            && snapshot.flags.contains(MarkerFlags::DISK)
            && snapshot.is_first;
        if self.filter.carries_key(record.key) && !is_skipped {
            let out = filling.buffer.vec();
            let before = out.len();
            if !snapshot.is_announced {
                self.announce(snapshot, out);
            }
            let appended = match record.frame {
                Some(frame) => append_stored(frame, meta.kind, &spec.form, spec.envelope, out),
                None => append_document(meta, record.key, record.value, &spec.form, spec.envelope, out),
            };
            if let Err(error) = appended {
                out.truncate(before);
                return Err(error);
            }
            snapshot.last = meta.seqno;
        }
        self.position.set(meta.seqno);
        Ok(())
    }

    fn announce(&self, snapshot: &mut Snapshot, out: &mut Vec<u8>) {
        snapshot.is_announced = true;
        self.has_marked.set(true);
        let (max_visible, high_completed, high_prepared) = (snapshot.end, Seqno(0), Seqno(0));
        let version = match self.spec.markers {
            MarkerForm::V1 => MarkerVersion::V1,
            MarkerForm::V2_0 => MarkerVersion::V2_0 { max_visible, high_completed },
            MarkerForm::V2_2 => {
                MarkerVersion::V2_2 { max_visible, high_completed, purge: snapshot.purge, high_prepared }
            }
        };
        SnapshotMarker { start: snapshot.start, end: snapshot.end, flags: snapshot.flags, version }
            .encode(self.spec.envelope, out);
    }

    /// The snapshot was read to its end. If its last seqnos are not carried, a client with Collections is told.
    fn complete(&self, snapshot: &mut Snapshot, filling: &mut Filling) {
        if snapshot.last < snapshot.end && self.spec.selection.is_some() {
            encode_seqno_advanced(snapshot.end, self.spec.envelope, filling.buffer.vec());
        }
        self.position.set(snapshot.end);
    }

    /// Hands over what is left of a snapshot; at the end of the stream together with its end.
    fn done(&self, filling: Filling) -> Result<(), End> {
        if self.position.get() >= self.end.get() {
            return Err(self.reached_end(filling));
        }
        self.hand_over(filling);
        Ok(())
    }

    fn reached_end(&self, filling: Filling) -> End {
        End { status: StreamEndStatus::Ok, rest: Some(filling) }
    }

    fn hand_over(&self, filling: Filling) {
        let Filling { mut buffer, mut turn } = filling;
        if buffer.records().is_empty() {
            return self.core.pool.give(buffer);
        }
        turn.weigh(buffer.records().len().div_ceil(PIECE_BYTES));
        buffer.recount();
        self.under_way.borrow_mut().push_back(turn);
        let content = Content::Buffer(buffer);
        let number = self.spec.number;
        self.sink.send(StreamPiece { number, content, is_last: false, discards: false });
    }

    /// Waits until one more piece may be filled; `park` is called if that takes long.
    async fn fill_next(&self, park: impl FnOnce()) -> Result<Filling, End> {
        let turn = async {
            self.changed.until(|| self.under_way.borrow().len() < PIECES_AHEAD_MAX).await;
            self.turns.pieces.take().await
        };
        let mut turn = std::pin::pin!(turn);
        let in_time = or(async { Some(turn.as_mut().await) }, async {
            self.core.env.spawn.sleep(PARK_AFTER).await;
            None
        });
        let turn = match in_time.await {
            Some(turn) => turn,
            None => {
                park();
                turn.await
            }
        };
        match self.core.pool.take(PIECE_BYTES) {
            Ok((buffer, _)) => Ok(Filling { buffer, turn }),
            Err(_) => {
                tracing::error!(vb = self.spec.envelope.vbucket.0, "no memory for a piece of a stream");
                Err(End::with(StreamEndStatus::BackfillFail))
            }
        }
    }

    fn unreadable(&self, error: &(dyn std::error::Error + 'static)) -> End {
        let is_gone = matches!(error.downcast_ref::<ReadError>(), Some(ReadError::Gone));
        if is_gone || self.store.has_ended() {
            return End::with(StreamEndStatus::StateChanged);
        }
        self.failed(error)
    }

    fn unsendable(&self, error: &StoredError) -> End {
        self.failed(error)
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static)) -> End {
        let (vb, position) = (self.spec.envelope.vbucket.0, self.position.get().0);
        tracing::error!(vb, position, error, "stream cannot read its data");
        End::with(StreamEndStatus::BackfillFail)
    }
}

fn is_full(filling: &mut Filling) -> bool {
    filling.buffer.records().len() >= PIECE_BYTES
}
