//! The streams whose vbuckets are on this core: opened, ended, and what they share.
//!
//! Each stream is a task that reads (`stream`); the pieces it fills are sent by the connection's core and come home with
//! [`Streams::sent`].
//!
//! Invariants
//! - A stream is in the map exactly while it is not Dead; a last piece leaves it exactly once, unless its connection closed it or is gone.
//! - When a stream ends, its task lets go of buffer, view and reader as soon as it runs.
//! - Buffers of one connection's streams on a core: [`PIECES_MAX`] pieces' worth of bytes, and what one document exceeds a piece by.
//!   Open backfills of them:
//!   at most [`BACKFILLS_MAX`].
//!
//! Cost: a task a stream; nothing while it is up to date.
//! Does not know: sockets, requests' frames, where connections are.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};

use ringbase_storage::env::Env;
use ringbase_storage::types::BucketId;
use ringbase_storage::vbstore::VbStore;

use super::piece::{PieceSink, SentPiece, StreamAnswer, StreamNumber, StreamSpec};
use super::request::{Reach, at_latest, bound, check};
use super::rollback::{Decision, History, decide};
use super::stream::{Stream, run};
use super::turns::Turns;
use crate::protocol::dcp::StreamEndStatus;
use crate::range_scan::{BufferPool, ConnectionId};

/// Pieces of a connection on one core that are filled or under way, at most.
pub const PIECES_MAX: usize = 32;

/// Backfills of a connection on one core that have their view open, at most.
pub const BACKFILLS_MAX: usize = 64;

/// What the streams of one connection share on a core.
#[derive(Debug)]
pub(super) struct ConnectionTurns {
    pub(super) pieces: Rc<Turns>,
    pub(super) backfills: Rc<Turns>,
}

impl ConnectionTurns {
    fn new() -> ConnectionTurns {
        ConnectionTurns { pieces: Turns::new(PIECES_MAX), backfills: Turns::new(BACKFILLS_MAX) }
    }
}

/// What the streams of a core share.
pub(super) struct Core {
    pub(super) env: Env,
    pub(super) pool: BufferPool,
    streams: RefCell<BTreeMap<StreamNumber, Rc<Stream>>>,
    turns: RefCell<HashMap<ConnectionId, Weak<ConnectionTurns>, ahash::RandomState>>,
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct Streams {
    core: Rc<Core>,
}

impl Streams {
    /// No streams yet.
    #[must_use]
    pub fn new(env: Env) -> Streams {
        let core =
            Core { env, pool: BufferPool::default(), streams: RefCell::default(), turns: RefCell::default() };
        Streams { core: Rc::new(core) }
    }

    /// Opens a stream of `store`; its pieces go to `sink`, the first one not before the caller's next await.
    pub fn open(&self, store: &Rc<VbStore>, mut spec: StreamSpec, sink: Rc<dyn PieceSink>) -> StreamAnswer {
        let (log, high_seqno) = (store.failover_log(), store.high_seqno());
        spec.request = at_latest(spec.request, high_seqno, &log);
        if let Err(refusal) = check(&spec.request) {
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
        tracing::debug!(
            vb = spec.envelope.vbucket.0,
            conn = spec.connection.0,
            start = spec.request.start.0,
            end = spec.request.end.0,
            "stream opened"
        );
        let (number, turns) = (spec.number, self.turns(spec.connection));
        let stream = Rc::new(Stream::new(spec, store.clone(), self.core.clone(), turns, sink));
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
    }

    /// The node stops.
    pub fn close_all(&self) {
        self.take(|_| true).iter().for_each(|stream| stream.kill());
    }

    /// A bucket goes: its streams end.
    pub fn bucket_deleted(&self, bucket: BucketId) {
        for stream in self.take(|stream| stream.bucket() == bucket) {
            stream.end(StreamEndStatus::StateChanged);
        }
    }

    /// Takes back a buffer that was sent; its stream may fill one more.
    pub fn sent(&self, sent: SentPiece) {
        let SentPiece { number, buffer, .. } = sent;
        self.core.pool.give(buffer);
        let stream = self.core.streams.borrow().get(&number).cloned();
        if let Some(stream) = stream {
            stream.piece_sent();
        }
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
    /// A stream has ended by itself; false if it is not there any more.
    pub(super) fn forget(&self, number: StreamNumber) -> bool {
        self.streams.borrow_mut().remove(&number).is_some()
    }
}
