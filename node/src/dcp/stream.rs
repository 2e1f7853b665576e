//! One stream: the task that reads its vbucket, the past first and then the present, into pieces of messages.
//!
//! It goes from snapshot to snapshot (`snapshot`). If memory has everything from its position on, the snapshot is one of memory; else a view
//! is opened and read from disk, by seqno or by key (`oso`). Between snapshots it holds its position and nothing else.
//!
//! Invariants
//! - From snapshot to snapshot seqnos rise; none is missed between them.
//! - A view or reader is opened in the same run as its first messages (T2.1, T2.9), with a turn for a piece in hand.
//! - Opened contents whose purge seqno the position does not reach end the stream with Rollback (T4.11).
//! - A read that fails ends the stream with BackfillFail at once; what was not sent is dropped (T3.1, T3.2). A bug costs its connection (T3.14).
//! - At most [`PIECES_AHEAD_MAX`] pieces of a stream are handed over and not sent. Who waits longer than [`PARK_AFTER`] lets go of what
//!   it read ahead.
//! - Every moment of it is spent on one thing ([`super::time`]); every backfill, its opening and each of its runs is a span that is closed
//!   with what came of it (T1.1 to T1.7).
//!
//! Cost: a slice is at most [`SLICE_ITEMS`] messages or [`SLICE_NS`].
//! Does not know: flow control, sockets.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt;
use futures_lite::future::or;
use ringbase_storage::mutant::{Mutant, is_on};
use ringbase_storage::scan::{SeqnoRecord, SeqnoScan};
use ringbase_storage::seqlist::{BatchLimits, Progress};
use ringbase_storage::sync::Event;
use ringbase_storage::types::{BucketId, Seqno};
use ringbase_storage::vbstore::{SeqnoReading, VbStore};
use tracing::{Instrument, Span};

use super::collections::filter_of;
use super::filter::CollectionFilter;
use super::flow::accounted;
use super::oso::{BY_SEQNO, BackfillScan};
use super::piece::{Content, PieceSink, StreamNumber, StreamPiece, StreamSpec};
use super::progress::BackfillProgress;
use super::slots::{GivesBack, Slot};
use super::snapshot::Order;
use super::stream_state::StreamState;
use super::streams::{ConnectionTurns, Core, Leaving};
use super::time::{Spent, StreamTime};
use super::turns::Turn;
use crate::bucket::BucketContext;
use crate::protocol::dcp::signal::encode_stream_end;
use crate::protocol::dcp::{MarkerFlags, StreamEndStatus, StreamFlags};
use crate::range_scan::{ConnectionId, ScanBuffer};

/// A piece is handed over when it has this many bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Room in a buffer: for a piece, and for what its last message exceeds it by if that is a small one. A buffer that had to grow is not used
/// again.
const PIECE_ROOM: usize = PIECE_BYTES + (8 << 10);

/// Pieces of one stream that are handed over and not sent, at most.
const PIECES_AHEAD_MAX: usize = 2;

/// Messages that are made in one slice.
const SLICE_ITEMS: usize = 256;

/// The longest slice.
const SLICE_NS: u64 = 200_000;

/// Messages between two looks at the clock.
const CLOCK_ITEMS: usize = 32;

/// Who waits longer than this to fill a piece lets go of what it read ahead.
const PARK_AFTER: Duration = Duration::from_millis(250);

/// How long to wait for memory before looking again: a buffer that went with its connection is not announced.
const MEMORY_WAIT: Duration = Duration::from_millis(100);

/// The target of the spans.
const SPANS: &str = "ringbase::dcp";

/// The span of something that a stream reads; [`Closing`] says at its end what came of it.
macro_rules! reading_span {
    ($stream:expr, $name:literal, $($field:ident = $value:expr),+) => {
        tracing::debug_span!(
            target: SPANS,
            $name,
            flow = $stream.spec.number.0,
            vb = $stream.spec.envelope.vbucket.0,
            conn = &*$stream.spec.name,
            $($field = $value,)+
            last = tracing::field::Empty,
            items = tracing::field::Empty,
            bytes = tracing::field::Empty,
            status = tracing::field::Empty,
            result = tracing::field::Empty,
            state_after = tracing::field::Empty
        )
    };
}

/// The span of the opening of a scan.
macro_rules! opening_span {
    ($stream:expr, $($field:ident = $value:expr),+) => {
        tracing::debug_span!(
            target: SPANS,
            "dcp_scan_open",
            flow = $stream.spec.number.0,
            vb = $stream.spec.envelope.vbucket.0,
            start = $stream.position.get().next().0,
            end = tracing::field::Empty,
            purge = tracing::field::Empty,
            status = tracing::field::Empty,
            result = tracing::field::Empty,
            $($field = $value),+
        )
    };
}

/// See the module.
pub(super) struct Stream {
    pub(super) spec: StreamSpec,
    pub(super) filter: RefCell<CollectionFilter>,
    /// Settings and collections of its bucket.
    pub(super) bucket: Rc<BucketContext>,
    pub(super) store: Rc<VbStore>,
    pub(super) core: Rc<Core>,
    turns: Rc<ConnectionTurns>,
    sink: Rc<dyn PieceSink>,
    pub(super) state: Cell<StreamState>,
    /// The last seqno that the client has, or will have with what is filled.
    pub(super) position: Cell<Seqno>,
    pub(super) end: Cell<Seqno>,
    pub(super) has_marked: Cell<bool>,
    /// The last snapshot that was announced.
    pub(super) announced: Cell<(Seqno, Seqno)>,
    /// Whether it may have a view open.
    pub(super) has_slot: Cell<bool>,
    /// The right to read, of a backfill that does.
    pub(super) slot: RefCell<Option<Slot>>,
    pub(super) counts: Cell<Counts>,
    /// Whether a view is open.
    pub(super) has_view: Cell<bool>,
    /// Of the backfill whose view is open, if it is read by seqno.
    pub(super) progress: Cell<Option<BackfillProgress>>,
    pub(super) time: StreamTime,
    /// One for each piece that was handed over and not sent.
    pub(super) under_way: RefCell<VecDeque<UnderWay>>,
    /// The last seqno sent, and the end of its snapshot.
    pub(super) sent: Cell<(Seqno, Seqno)>,
    changed: Event,
}

/// What a stream has made.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    /// Documents of backfills.
    pub(super) disk_items: u64,
    /// Documents of snapshots of memory.
    pub(super) memory_items: u64,
    /// Bytes of their messages.
    pub(super) bytes: u64,
}

/// A piece that was handed over and not sent.
pub(super) struct UnderWay {
    turn: Turn,
    last: Seqno,
    snapshot_end: Seqno,
    pub(super) bytes: usize,
    pub(super) items: u32,
}

/// A span that is closed with what the stream did in it, however it ends.
struct Closing<'s> {
    stream: &'s Stream,
    span: Span,
    before: Counts,
    status: &'static str,
    result: &'static str,
    /// Whether the stream ends with it.
    ends_stream: bool,
}

/// A piece that is being filled.
pub(super) struct Filling {
    pub(super) buffer: ScanBuffer,
    turn: Turn,
    pub(super) items: u32,
    /// Whether it is handed over though there is room in it.
    pub(super) is_due: bool,
}

/// How a stream ends by itself.
pub(super) struct End {
    status: StreamEndStatus,
    /// What is sent before.
    rest: Option<Filling>,
}

impl End {
    pub(super) fn with(status: StreamEndStatus) -> End {
        End { status, rest: None }
    }
}

/// Reads until the stream ends or is ended; its time counts from now on.
pub(super) fn run(stream: Rc<Stream>) -> impl Future<Output = ()> {
    accounted(stream.clone(), async move { read(&stream).await })
}

async fn read(stream: &Stream) {
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
            stream.disconnect();
        }
    }
}

impl Stream {
    pub(super) fn new(
        spec: StreamSpec,
        store: Rc<VbStore>,
        bucket: Rc<BucketContext>,
        core: Rc<Core>,
        turns: Rc<ConnectionTurns>,
        sink: Rc<dyn PieceSink>,
    ) -> Stream {
        let filter = filter_of(spec.selection.as_ref(), bucket.collections().manifest());
        Stream {
            filter: RefCell::new(filter),
            bucket,
            state: Cell::new(StreamState::Pending),
            position: Cell::new(spec.request.start),
            end: Cell::new(spec.request.end),
            has_marked: Cell::new(false),
            announced: Cell::new((spec.request.snap_start, spec.request.snap_end)),
            has_slot: Cell::new(false),
            slot: RefCell::default(),
            counts: Cell::default(),
            has_view: Cell::new(false),
            progress: Cell::default(),
            time: StreamTime::new(core.env.clock.monotonic_ns(), spec.window.clone(), spec.socket.clone()),
            sent: Cell::new((spec.request.start, spec.request.snap_end)),
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
        let sent = self.under_way.borrow_mut().pop_front();
        if let Some(UnderWay { turn, last, snapshot_end, .. }) = sent {
            self.sent.set((last, snapshot_end));
            drop(turn);
        }
        self.changed.notify_all();
    }

    /// Ends it without a word. What is under way keeps its turns until it comes home.
    pub(super) fn kill(&self) {
        self.state.set(StreamState::Dead);
        self.time.ends(self.now_ns(), &self.core.metrics.spent);
        let pieces = self.under_way.take().into_iter().map(|piece| piece.turn).collect();
        let leaving = Leaving { connection: self.connection(), _turns: self.turns.clone(), pieces };
        self.core.leave(self.spec.number, leaving);
        self.changed.notify_all();
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.core.env.clock.monotonic_ns()
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
        let is_whole = matches!(end.status, StreamEndStatus::Ok | StreamEndStatus::FilterEmpty);
        let discards = !is_whole && self.state.get().discards_queue_at_end();
        let rest = end.rest.map(|filling| self.set_off(filling));
        self.kill();
        self.send_end(end.status, rest, discards);
    }

    fn send_end(&self, status: StreamEndStatus, rest: Option<(ScanBuffer, u32)>, discards: bool) {
        let status = if self.spec.selection.is_some() { status } else { status.without_collections() };
        let (vb, conn) = (self.spec.envelope.vbucket.0, self.spec.connection.0);
        let (stream, position, wall_ns) =
            (self.spec.number.0, self.position.get().0, self.time.wall_ns(self.now_ns()));
        tracing::debug!(vb, conn, stream, status = status.name(), position, wall_ns, "stream ended");
        let items = rest.as_ref().map_or(0, |(_, items)| *items);
        let content = match rest {
            Some((mut buffer, _)) => {
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
        self.send(content, items, true, discards);
    }

    fn send(&self, content: Content, items: u32, is_last: bool, discards: bool) {
        let (number, vb) = (self.spec.number, self.spec.envelope.vbucket);
        let disconnects = false;
        self.sink.send(StreamPiece { number, vb, content, items, is_last, discards, disconnects });
    }

    /// Ends it with its connection: nobody knows what it would have said.
    fn disconnect(&self) {
        if self.core.forget(self.spec.number) {
            self.kill();
            let (number, vb) = (self.spec.number, self.spec.envelope.vbucket);
            let content = Content::Small(Vec::new());
            let (items, is_last, discards, disconnects) = (0, true, true, true);
            self.sink.send(StreamPiece { number, vb, content, items, is_last, discards, disconnects });
        }
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

    pub(super) fn has_flag(&self, flag: StreamFlags) -> bool {
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
                self.time.waits_for(Spent::UpToDate);
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
        self.store.high_seqno() < next || self.store.resident_from() <= next
    }

    /// Whether the client may have missed deletions that are purged.
    fn misses_tombstones(&self, purge_seqno: Seqno) -> bool {
        let claim = super::rollback::Claim { start: self.position.get(), ..self.spec.claim() };
        claim.misses_tombstones(purge_seqno)
    }

    /// Sends one snapshot of memory.
    async fn follow(&self) -> Result<(), End> {
        let span = reading_span!(self, "dcp_memory_snapshot", start = self.position.get().next().0);
        let closing = Closing::new(self, span.clone());
        let read = self.read_memory().instrument(span).await;
        closing.ends_with(&read);
        read
    }

    async fn read_memory(&self) -> Result<(), End> {
        let mut filling = self.fill_next(None).await?;
        let mut reading = self.open_memory()?;
        let end = reading.end();
        let mut snapshot = self.snapshot(end, MarkerFlags::MEMORY, Seqno(0), Order::Seqno);
        if !self.has_marked.get() {
            snapshot.flags = snapshot.flags | MarkerFlags::CHECKPOINT;
        }
        let mut items = Vec::new();
        loop {
            let (state, from) = (self.state.get().name(), self.position.get().next().0);
            let mut closing =
                Closing::new(self, reading_span!(self, "dcp_memory_run", state = state, from = from));
            let room =
                (PIECE_BYTES + crate::range_scan::HEAD_ROOM).saturating_sub(filling.buffer.vec().len());
            let limits = BatchLimits { items: SLICE_ITEMS, bytes: room.max(1) };
            let progress = reading.next_batch(limits, &mut items);
            for item in items.drain(..) {
                let is_behind = item.seqno() > self.end.get();
                if !is_behind
                    && let Err(error) = self.append(&mut snapshot, &SeqnoRecord::from(&item), &mut filling)
                {
                    closing.fails();
                    return Err(self.unsendable(&error, item.seqno()));
                }
                if is_behind || self.has_nothing_left() {
                    (closing.result, closing.ends_stream) = ("end seqno", true);
                    return Err(self.reached_end(filling));
                }
            }
            match progress {
                Progress::More => {}
                Progress::End => {
                    closing.result = "end";
                    closing.ends_stream = end >= self.end.get();
                    drop(closing);
                    self.complete(&mut snapshot, &mut filling);
                    return self.done(filling);
                }
                Progress::Behind => {
                    closing.result = "behind";
                    self.hand_over(filling);
                    return Ok(());
                }
                Progress::Gone => {
                    closing.ends_stream = true;
                    return Err(End::with(StreamEndStatus::StateChanged));
                }
            }
            if is_full(&mut filling) {
                self.hand_over(filling);
                (closing.result, closing.status) = ("buffer full", self.status_of_next());
                drop(closing);
                filling = self.fill_next(None).await?;
            } else {
                (closing.result, closing.status) = ("items", SUCCESS);
                drop(closing);
                self.give_way().await;
            }
        }
    }

    /// Registers a reader of memory from the position on.
    fn open_memory(&self) -> Result<SeqnoReading, End> {
        let mut closing = Closing::new(self, opening_span!(self, kind = "memory"));
        let reading = self.store.open_seqnos(self.position.get().next());
        self.opened(&mut closing, reading.end(), reading.purge_seqno())?;
        Ok(reading)
    }

    /// What it reads now ends there, and may lack tombstones up to `purge`.
    fn opened(&self, closing: &mut Closing<'_>, end: Seqno, purge: Seqno) -> Result<(), End> {
        closing.span.record("end", end.0);
        closing.span.record("purge", purge.0);
        if self.misses_tombstones(purge) {
            closing.result = "purged";
            return Err(End::with(StreamEndStatus::Rollback));
        }
        closing.result = "opened";
        Ok(())
    }

    /// Sends one snapshot of disk.
    async fn backfill(&self) -> Result<(), End> {
        self.change(StreamState::Backfilling);
        let span = reading_span!(self, "dcp_backfill", start = self.position.get().next().0);
        let closing = Closing::new(self, span.clone());
        let read = async {
            self.time.waits_for(Spent::Slot);
            let _order = match self.spec.is_sequential {
                true => Some(self.turns.order.take().await),
                false => None,
            };
            let _backfill = self.turns.backfills.take().await;
            self.has_slot.set(true);
            let _slot = GivesBack(self);
            self.read_disk().await
        };
        let read = read.instrument(span).await;
        self.has_slot.set(false);
        self.has_view.set(false);
        self.progress.set(None);
        closing.ends_with(&read);
        read
    }

    /// Opens a view of the vbucket from the position on, to be read in the order that suits.
    async fn open_scan(&self) -> Result<BackfillScan, End> {
        let from = self.position.get().next();
        let empty = tracing::field::Empty;
        let span = opening_span!(self, kind = empty, ranges = empty);
        let mut closing = Closing::new(self, span.clone());
        self.time.waits_for(Spent::Open);
        let opened = SeqnoScan::open(&self.store, from).instrument(span).await;
        let scan = match opened {
            Ok(scan) => self.in_best_order(scan),
            Err(error) => {
                closing.span.record("kind", BY_SEQNO);
                closing.result = "failed";
                return Err(self.unreadable(&error, None));
            }
        };
        self.core.metrics.backfills.add(1);
        self.has_view.set(true);
        closing.span.record("kind", scan.kind());
        closing.span.record("ranges", scan.ranges());
        self.opened(&mut closing, scan.view().end(), scan.purge_seqno())?;
        Ok(scan)
    }

    async fn read_disk(&self) -> Result<(), End> {
        let mut filling = self.fill_next(None).await?;
        let mut scan = self.open_scan().await?;
        let (end, purge, order) = (scan.view().end(), scan.purge_seqno(), scan.order());
        let mut snapshot = self.snapshot(end, MarkerFlags::BACKFILL, purge, order);
        snapshot.opened_ns = Some(scan.view().opened_ns());
        if order == Order::Key {
            self.announce(&mut snapshot, filling.buffer.vec());
        }
        loop {
            // How far one by key is cannot be told from seqnos.
            if let BackfillScan::BySeqno(scan) = &scan {
                self.note_progress(scan);
            }
            let (state, from) = (self.state.get().name(), self.position.get().next().0);
            let span = reading_span!(self, "dcp_backfill_run", state = state, from = from);
            let mut closing = Closing::new(self, span.clone());
            self.time.waits_for(Spent::Device);
            let started_ns = self.now_ns();
            let (mut taken, mut failure, mut is_over) = (0, None, false);
            let read = scan
                .run(|record| {
                    if record.meta.seqno > self.end.get() {
                        is_over = true;
                        return false;
                    }
                    if let Err(error) = self.append(&mut snapshot, &record, &mut filling) {
                        failure = Some((error, record.meta.seqno));
                        return false;
                    }
                    if self.has_nothing_left() {
                        is_over = true;
                        return false;
                    }
                    taken += 1;
                    let is_late = || self.now_ns() - started_ns >= SLICE_NS;
                    let is_out = taken >= SLICE_ITEMS || (taken % CLOCK_ITEMS == 0 && is_late());
                    !(is_out || is_full(&mut filling))
                })
                .instrument(span)
                .await;
            let more = match read {
                Ok(more) => more,
                Err(_) if is_on(Mutant::ForgetReadErrors) => false,
                Err(error) => {
                    closing.fails();
                    let mut end = self.unreadable(&error, scan.unreadable());
                    if is_on(Mutant::EndFailedOso) {
                        self.complete(&mut snapshot, &mut filling);
                        end.rest = Some(filling);
                    }
                    return Err(end);
                }
            };
            if let Some((error, seqno)) = failure {
                closing.fails();
                return Err(self.unsendable(&error, seqno));
            }
            if is_over || !more {
                closing.result = if is_over { "end seqno" } else { "end" };
                closing.ends_stream = is_over || end >= self.end.get();
                drop((closing, scan));
                if is_over {
                    return Err(self.reached_end(filling));
                }
                self.complete(&mut snapshot, &mut filling);
                return self.done(filling);
            }
            if is_full(&mut filling) {
                self.hand_over(filling);
                (closing.result, closing.status) = ("buffer full", self.status_of_next());
                drop(closing);
                filling = self.fill_next(Some(&mut scan)).await?;
            } else {
                closing.result = if taken >= SLICE_ITEMS { "items" } else { "time" };
                closing.status = SUCCESS;
                drop(closing);
                self.give_way().await;
            }
        }
    }

    /// What a run with a full buffer ends with: whether the next one may begin at once.
    fn status_of_next(&self) -> &'static str {
        if self.may_go_on() { SUCCESS } else { SNOOZE }
    }

    /// Whether the next piece may be filled at once, and nobody else wants to read instead.
    fn may_go_on(&self) -> bool {
        let is_free = self.under_way.borrow().len() < PIECES_AHEAD_MAX && self.turns.pieces.is_free();
        is_free && self.core.has_room() && !self.core.slots.is_wanted()
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
        let status = if self.has_nothing_left() { StreamEndStatus::FilterEmpty } else { StreamEndStatus::Ok };
        End { status, rest: Some(filling) }
    }

    fn hand_over(&self, filling: Filling) {
        if filling.buffer.records().is_empty() {
            return self.core.pool.give(filling.buffer);
        }
        let (buffer, items) = self.set_off(filling);
        self.send(Content::Buffer(buffer), items, false, false);
    }

    /// Counts a buffer as under way until it comes home.
    fn set_off(&self, filling: Filling) -> (ScanBuffer, u32) {
        let Filling { mut buffer, mut turn, items, .. } = filling;
        buffer.recount();
        let bytes = buffer.records().len();
        turn.weigh(bytes.div_ceil(PIECE_BYTES));
        self.core.metrics.piece_bytes.record(bytes as u64);
        let (last, (_, snapshot_end)) = (self.position.get(), self.announced.get());
        self.under_way.borrow_mut().push_back(UnderWay { turn, last, snapshot_end, bytes, items });
        (buffer, items)
    }

    /// Lets others of the core run.
    async fn give_way(&self) {
        self.time.waits_for(Spent::Turn);
        self.core.env.relax().await;
    }

    /// Waits until one more piece may be filled. If that takes long `scan` lets go of what was read ahead; if that shows before that what comes next
    /// cannot be read, the stream has failed, with room or without (T3.15).
    async fn fill_next(&self, mut scan: Option<&mut BackfillScan>) -> Result<Filling, End> {
        if !self.may_go_on() {
            drop(self.slot.take());
        }
        let turn = async {
            self.time.waits_for(Spent::Credit);
            self.changed.until(|| self.under_way.borrow().len() < PIECES_AHEAD_MAX).await;
            let turn = self.turns.pieces.take().await;
            self.wait_for_room().await;
            turn
        };
        let mut turn = std::pin::pin!(turn);
        let patience = async {
            self.core.env.spawn.sleep(PARK_AFTER).await;
            Ok(None)
        };
        let ahead = async {
            match scan.as_deref_mut() {
                Some(scan) => Err(scan.failure_ahead().await),
                None => std::future::pending().await,
            }
        };
        let turn = match or(async { Ok(Some(turn.as_mut().await)) }, or(ahead, patience)).await {
            Ok(Some(turn)) => turn,
            Ok(None) => {
                if let Some(scan) = scan {
                    scan.park();
                }
                turn.await
            }
            Err(error) => {
                let seqnos = scan.and_then(|scan| scan.unreadable());
                return Err(self.unreadable(&error, seqnos));
            }
        };
        self.give_way().await;
        match self.core.pool.take(PIECE_ROOM) {
            Ok((buffer, _)) => Ok(Filling { buffer, turn, items: 0, is_due: false }),
            Err(_) => {
                tracing::error!(vb = self.spec.envelope.vbucket.0, "no memory for a piece of a stream");
                Err(End::with(StreamEndStatus::BackfillFail))
            }
        }
    }

    /// Waits until the core's streams may hold one more piece, and of a backfill until it may read; the only piece of a connection always may be
    /// held. Who waits for memory holds no slot.
    async fn wait_for_room(&self) {
        let has_room = || self.turns.pieces.taken() <= 1 || self.core.has_room();
        loop {
            while !has_room() {
                drop(self.slot.take());
                self.time.waits_for(Spent::Memory);
                or(self.core.freed.until(has_room), self.core.env.spawn.sleep(MEMORY_WAIT)).await;
            }
            if !self.has_slot.get() || self.slot.borrow().is_some() {
                return;
            }
            self.take_slot().await;
        }
    }
}

/// What a run ends with: it goes on at once.
const SUCCESS: &str = "success";

/// It goes on when something else has happened.
const SNOOZE: &str = "snooze";

/// It is over.
const FINISHED: &str = "finished";

impl<'s> Closing<'s> {
    /// Closes `span`; unless something else is said, because the stream was ended from outside or by a bug of ours.
    fn new(stream: &'s Stream, span: Span) -> Closing<'s> {
        let before = stream.counts.get();
        Closing { before, stream, span, status: FINISHED, result: "cancelled", ends_stream: false }
    }

    /// The stream ends, for what it reads cannot be read or sent.
    fn fails(&mut self) {
        (self.result, self.ends_stream) = ("failed", true);
    }

    fn ends_with(mut self, read: &Result<(), End>) {
        self.ends_stream = read.is_err();
        self.result = match read {
            Ok(()) => "end",
            Err(end) => end.status.name(),
        };
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if self.span.is_disabled() {
            return;
        }
        let (counts, before) = (self.stream.counts.get(), self.before);
        let items = |counts: Counts| counts.disk_items + counts.memory_items;
        self.span.record("last", self.stream.position.get().0);
        self.span.record("items", items(counts) - items(before));
        self.span.record("bytes", counts.bytes - before.bytes);
        self.span.record("status", self.status);
        self.span.record("result", self.result);
        let state = if self.ends_stream { StreamState::Dead } else { self.stream.state.get() };
        self.span.record("state_after", state.name());
    }
}

fn is_full(filling: &mut Filling) -> bool {
    filling.is_due || filling.buffer.records().len() >= PIECE_BYTES
}
