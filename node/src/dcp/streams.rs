//! The streams whose vbuckets are on this core: opened, ended, and what they share.
//!
//! Each stream is a task that reads (`stream`); the pieces it fills are sent by the connection's core and come home with
//! [`Streams::sent`].
//!
//! Invariants
//! - A stream is in the map exactly while it is not Dead; a last piece leaves it exactly once, unless its connection closed it or is gone.
//! - When a stream ends, its task lets go of buffer, view and reader as soon as it runs. What it handed over keeps its turns until it
//!   comes home.
//! - Buffers of one connection's streams on a core: [`PIECES_MAX`] pieces' worth of bytes, and what one document exceeds a piece by.
//!   Open backfills of them: at most [`BACKFILLS_MAX`]. Of all backfills of a core at most [`SLOTS_MAX`] read at the same moment.
//! - Buffers of all streams of a core: the bytes it was given, one piece for each connection, and what documents exceed their pieces by.
//!
//! Cost: a task a stream; nothing while it is up to date.
//! Does not know: sockets, requests' frames, where connections are.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::{Rc, Weak};

use ringbase_storage::env::Env;
use ringbase_storage::sync::Event;
use ringbase_storage::types::BucketId;
use ringbase_storage::vbstore::VbStore;

use super::collections::check_told;
use super::failures::ReadFailures;
use super::flow::opened;
use super::metrics::StreamMetrics;
use super::piece::{PieceSink, SentPiece, StreamAnswer, StreamNumber, StreamSpec};
use super::request::{Reach, at_latest, bound, check};
use super::rollback::{Decision, History, decide};
use super::slots::{SLOTS_MAX, Slots};
use super::stream::{Stream, run};
use super::turns::{Turn, Turns};
use crate::bucket::{BucketContext, Verdict, verdict};
use crate::protocol::dcp::StreamEndStatus;
use crate::protocol::dcp::signal::VbucketState;
use crate::protocol::{Refusal, Status};
use crate::range_scan::{BufferPool, ConnectionId, VbAddress};

/// Pieces of a connection on one core that are filled or under way, at most.
pub const PIECES_MAX: usize = 32;

/// Backfills of a connection on one core that have their view open, at most.
pub const BACKFILLS_MAX: usize = 64;

/// Percent of the streams' memory in use from which on no stream begins.
const MEMORY_PERCENT_MAX: usize = 96;

/// Bytes of buffers that the streams of a core may hold, at least.
pub const BYTES_MIN: usize = 1 << 20;

/// What the streams of one connection share on a core.
#[derive(Debug)]
pub(super) struct ConnectionTurns {
    pub(super) pieces: Rc<Turns>,
    pub(super) backfills: Rc<Turns>,
    /// Of those that are done one after the other.
    pub(super) order: Rc<Turns>,
}

impl ConnectionTurns {
    fn new() -> ConnectionTurns {
        let (pieces, backfills) = (Turns::new(PIECES_MAX), Turns::new(BACKFILLS_MAX));
        ConnectionTurns { pieces, backfills, order: Turns::new(1) }
    }
}

/// What the streams of a core share.
pub(super) struct Core {
    pub(super) env: Env,
    pub(super) pool: BufferPool,
    pub(super) metrics: StreamMetrics,
    pub(super) failures: ReadFailures,
    /// Of backfills that read.
    pub(super) slots: Rc<Slots>,
    bytes_max: usize,
    /// A buffer came home.
    pub(super) freed: Event,
    pub(super) streams: RefCell<BTreeMap<StreamNumber, Rc<Stream>>>,
    leaving: RefCell<HashMap<StreamNumber, Leaving, ahash::RandomState>>,
    turns: RefCell<HashMap<ConnectionId, Weak<ConnectionTurns>, ahash::RandomState>>,
}

/// What a stream that has ended left under way.
pub(super) struct Leaving {
    pub(super) connection: ConnectionId,
    /// Of these; kept so that no others are made for the connection.
    pub(super) _turns: Rc<ConnectionTurns>,
    pub(super) pieces: VecDeque<Turn>,
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct Streams {
    pub(super) core: Rc<Core>,
}

impl Streams {
    /// No streams yet; their buffers may hold `bytes_max`, and a piece for each connection.
    #[must_use]
    pub fn new(env: Env, bytes_max: usize) -> Streams {
        let core = Core {
            env,
            pool: BufferPool::default(),
            metrics: StreamMetrics::default(),
            failures: ReadFailures::default(),
            slots: Slots::new(SLOTS_MAX),
            bytes_max: bytes_max.max(BYTES_MIN),
            freed: Event::default(),
            streams: RefCell::default(),
            leaving: RefCell::default(),
            turns: RefCell::default(),
        };
        Streams { core: Rc::new(core) }
    }

    /// What is counted and timed.
    #[must_use]
    pub fn metrics(&self) -> &StreamMetrics {
        &self.core.metrics
    }

    /// Bytes that the buffers of streams hold.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.core.pool.account().held()
    }

    /// Opens a stream of `store`, a vbucket of `bucket`; its pieces go to `sink`, the first one not before the caller's next await.
    pub fn open(
        &self,
        store: &Rc<VbStore>,
        bucket: &Rc<BucketContext>,
        mut spec: StreamSpec,
        sink: Rc<dyn PieceSink>,
    ) -> StreamAnswer {
        let (log, high_seqno) = (store.failover_log(), store.high_seqno());
        spec.request = at_latest(spec.request, high_seqno, &log);
        if let Err(refusal) = check(&spec.request) {
            return StreamAnswer::Refused(refusal);
        }
        if let Some(selection) = &spec.selection
            && let Err(refusal) = check_told(selection, bucket.collections().manifest(), store)
        {
            return StreamAnswer::Refused(refusal);
        }
        let history = History { log: &log, high_seqno, purge_seqno: store.purge_seqno() };
        if let Decision::RollBack(seqno) = decide(&spec.claim(), &history) {
            return StreamAnswer::RollBack(seqno);
        }
        let reach = Reach { high_seqno, persisted_seqno: store.persisted_seqno(), filtered_high_seqno: None };
        match bound(spec.request, &reach) {
            Ok(bounded) => spec.request = bounded,
            Err(refusal) => return StreamAnswer::Refused(refusal),
        }
        if self.buffer_bytes() >= self.core.bytes_max / 100 * MEMORY_PERCENT_MAX {
            self.core.metrics.refused_for_memory.add(1);
            return StreamAnswer::Refused(Refusal::new(Status::ENOMEM, "Streams hold too much memory"));
        }
        self.core.metrics.streams.add(1);
        opened(&spec);
        let (number, turns) = (spec.number, self.turns(spec.connection));
        let stream =
            Rc::new(Stream::new(spec, store.clone(), bucket.clone(), self.core.clone(), turns, sink));
        self.core.streams.borrow_mut().insert(number, stream.clone());
        self.core.env.spawn("dcp stream", run(stream));
        StreamAnswer::Accepted(log)
    }

    /// The connection has closed a stream: no piece follows.
    pub fn close(&self, number: StreamNumber) {
        let stream = self.core.streams.borrow_mut().remove(&number);
        if let Some(stream) = stream {
            stream.kill();
        }
    }

    /// A connection is gone: so are its streams.
    pub fn connection_gone(&self, connection: ConnectionId) {
        self.take(|stream| stream.connection() == connection).iter().for_each(|stream| stream.kill());
        // What was under way does not come home: it went with the connection.
        self.core.leaving.borrow_mut().retain(|_, leaving| leaving.connection != connection);
        self.core.freed.notify_all();
    }

    /// The node stops.
    pub fn close_all(&self) {
        self.take(|_| true).iter().for_each(|stream| stream.kill());
    }

    /// A vbucket has another state, or is gone: the streams of it end that the state does not admit.
    pub fn vbucket_changed(&self, at: VbAddress, state: Option<VbucketState>) {
        let is_refused = |stream: &Stream| verdict(state, stream.spec.access()) == Verdict::Refused;
        let of_vbucket =
            |stream: &Stream| stream.bucket() == at.bucket && stream.spec.envelope.vbucket == at.vb;
        for stream in self.take(|stream| of_vbucket(stream) && is_refused(stream)) {
            stream.end(StreamEndStatus::StateChanged);
        }
    }

    /// A bucket goes: its streams end.
    pub fn bucket_deleted(&self, bucket: BucketId) {
        for stream in self.take(|stream| stream.bucket() == bucket) {
            stream.end(StreamEndStatus::StateChanged);
        }
        self.core.failures.forget(bucket);
    }

    /// Takes back a buffer that was sent; its stream may fill one more.
    pub fn sent(&self, sent: SentPiece) {
        let SentPiece { number, buffer, .. } = sent;
        self.core.pool.give(buffer);
        let stream = self.core.streams.borrow().get(&number).cloned();
        match stream {
            Some(stream) => stream.piece_sent(),
            None => self.core.left(number),
        }
        self.core.freed.notify_all();
    }

    fn take(&self, wanted: impl Fn(&Stream) -> bool) -> Vec<Rc<Stream>> {
        let mut streams = self.core.streams.borrow_mut();
        let taken: Vec<Rc<Stream>> = streams.values().filter(|stream| wanted(stream)).cloned().collect();
        for stream in &taken {
            streams.remove(&stream.number());
        }
        taken
    }

    fn turns(&self, connection: ConnectionId) -> Rc<ConnectionTurns> {
        let mut all = self.core.turns.borrow_mut();
        if let Some(turns) = all.get(&connection).and_then(Weak::upgrade) {
            return turns;
        }
        all.retain(|_, turns| turns.strong_count() > 0);
        let turns = Rc::new(ConnectionTurns::new());
        all.insert(connection, Rc::downgrade(&turns));
        turns
    }
}

impl Core {
    /// Whether the streams may hold one more piece.
    pub(super) fn has_room(&self) -> bool {
        self.pool.account().held() < self.bytes_max
    }

    /// A stream has ended and left something under way.
    pub(super) fn leave(&self, number: StreamNumber, leaving: Leaving) {
        if !leaving.pieces.is_empty() {
            self.leaving.borrow_mut().insert(number, leaving);
        }
    }

    /// A piece of a stream that has ended came home.
    fn left(&self, number: StreamNumber) {
        use std::collections::hash_map::Entry;
        if let Entry::Occupied(mut entry) = self.leaving.borrow_mut().entry(number) {
            entry.get_mut().pieces.pop_front();
            if entry.get().pieces.is_empty() {
                entry.remove();
            }
        }
    }

    /// A stream has ended by itself; false if it is not there any more.
    pub(super) fn forget(&self, number: StreamNumber) -> bool {
        self.streams.borrow_mut().remove(&number).is_some()
    }
}
