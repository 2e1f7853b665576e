//! One connection: what its reader, its writer and the tickets of its requests share.
//!
//! Life: open → closing (no further request is executed; what is owed is still sent) → dead (nothing is sent any more).
//! The peer's end of input leads to closing, or straight to dead if an answer is being streamed; a broken socket, a
//! protocol error or a panic leads to dead.
//!
//! Invariants
//! - Only the core that accepted a connection touches it.
//! - A borrow of the output lasts for one call.
//!
//! Does not know: how bytes are read or written (`reader`, `writer`), what an opcode means.

use std::cell::{Cell, RefCell, RefMut};
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;

use super::limits::{Admitted, NetSettings, NetStats, count};
use super::output::{Output, Pushed, Spare};
use crate::core::CoreId;
use crate::core::event::{Event, Waiters};
use crate::core::socket::{SLICES_MAX, Socket};
use crate::protocol::CloseReason;

/// Bytes of one send, but for its first slice: what the kernel copies while others of the core wait.
const SEND_BYTES_MAX: usize = 256 << 10;

/// Names a connection for the life of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

impl ConnId {
    /// The `count`th connection of a core.
    pub(super) fn new(core: CoreId, count: u64) -> ConnId {
        ConnId(u64::from(core.0) << 48 | count)
    }

    /// The core that owns the connection.
    #[must_use]
    pub fn core(self) -> CoreId {
        CoreId((self.0 >> 48) as u16)
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.core(), self.0 & ((1 << 48) - 1))
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseCause {
    /// The peer said it was done, or closed.
    #[error("closed by the peer")]
    Peer,
    /// A request asked for it (QUIT), or the service did.
    #[error("closed on request")]
    Requested,
    /// The node stops.
    #[error("the node stops")]
    Stopping,
    /// What arrived is not our protocol, or over a limit.
    #[error("protocol error")]
    Protocol(#[from] CloseReason),
    /// The socket broke.
    #[error("socket error")]
    Socket(#[source] io::Error),
    /// Not authenticated in time.
    #[error("not authenticated in time")]
    HandshakeTimeout,
    /// A newer DCP connection has its name.
    #[error("another connection has taken its name")]
    Replaced,
    /// A bug of ours: what the peer asked for cannot go on.
    #[error("a stream of it has ended by a bug")]
    Broken,
    /// Nothing was heard of the peer for too long.
    #[error("the peer was silent for too long")]
    Silent,
    /// What was owed could not be sent in time after the end.
    #[error("the peer did not take the last bytes in time")]
    FlushTimeout,
    /// A bug of ours: a request was dropped without an answer.
    #[error("a request was left without an answer")]
    Unanswered,
    /// A bug of ours: a request made the service panic.
    #[error("executing a request panicked")]
    Panicked,
}

impl CloseCause {
    /// Whether the node is to blame.
    #[must_use]
    pub fn is_bug(&self) -> bool {
        matches!(self, CloseCause::Unanswered | CloseCause::Panicked)
    }
}

/// How far a connection's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Life {
    Open,
    Closing,
    Dead,
}

/// A TCP peer.
pub struct Connection {
    id: ConnId,
    peer: SocketAddr,
    local: SocketAddr,
    pub(super) socket: Socket,
    pub(super) settings: Rc<NetSettings>,
    pub(super) stats: Rc<NetStats>,
    admitted: Admitted,
    output: RefCell<Output>,
    life: Cell<Life>,
    cause: RefCell<Option<CloseCause>>,
    /// The peer will send no more.
    pub(super) input_ended: Cell<bool>,
    streams: Cell<u32>,
    /// No request may start before all earlier ones are answered.
    hold: Cell<bool>,
    /// The reader waits for room; it is told when there is some.
    pub(super) reader_waits: Cell<bool>,
    /// The reader executes requests and will send their answers itself.
    reader_sends: Cell<bool>,
    pub(super) read_event: Event,
    pub(super) write_event: Event,
    gone: Waiters,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({}, {})", self.id, self.peer)
    }
}

impl Connection {
    pub(super) fn new(
        id: ConnId,
        socket: Socket,
        settings: Rc<NetSettings>,
        stats: Rc<NetStats>,
        admitted: Admitted,
        spare: Spare,
    ) -> io::Result<Connection> {
        Ok(Connection {
            id,
            peer: socket.peer_address()?,
            local: socket.local_address()?,
            socket,
            settings,
            stats,
            admitted,
            output: RefCell::new(Output::new(spare)),
            life: Cell::new(Life::Open),
            cause: RefCell::new(None),
            input_ended: Cell::new(false),
            streams: Cell::new(0),
            hold: Cell::new(false),
            reader_waits: Cell::new(false),
            reader_sends: Cell::new(false),
            read_event: Event::new(),
            write_event: Event::new(),
            gone: Waiters::new(),
        })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our end.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether the limits of unauthenticated connections have been lifted.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.admitted.is_authenticated()
    }

    /// Lifts, or puts back, the limits of unauthenticated connections: frame size, number, time. The next frame of the
    /// same burst is already judged by the new limits.
    pub fn set_authenticated(&self, authenticated: bool) {
        self.admitted.set_authenticated(authenticated);
    }

    /// Lets answers overtake each other, or not.
    pub fn set_unordered(&self, unordered: bool) {
        self.output().set_unordered(unordered);
    }

    /// Requests taken and not completely answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.output.borrow().in_flight()
    }

    /// Bytes of answers that the kernel has not taken yet.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.output.borrow().unsent_bytes()
    }

    /// Whether nobody will see further answers.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.life.get() == Life::Dead
    }

    /// Resolves when nobody will see further answers.
    pub async fn gone(&self) {
        poll_fn(|cx| {
            if self.is_gone() {
                return Poll::Ready(());
            }
            self.gone.add(cx);
            Poll::Pending
        })
        .await;
    }

    /// Sends a frame that answers nothing (a server request). Lost if the connection is gone.
    pub fn send_unasked(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.output().write_unasked(encode);
        self.wake_writer();
    }

    /// Sends whole frames that answer nothing, without copying them. The result resolves when the kernel has taken them all; keep at
    /// most two unresolved.
    pub fn push_unasked(&self, bytes: Bytes) -> Pushed {
        let pushed = self.output().push_unasked(bytes);
        self.wake_writer();
        pushed
    }

    /// From now on the connection counts as gone as soon as the peer closes its side, as if an answer were being streamed.
    pub fn ends_with_input(&self) {
        self.stream_opened();
    }

    /// Whether requests are still executed: nothing that answers none should be sent otherwise.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.life.get() == Life::Open
    }

    /// Executes no further request, sends what is owed, closes.
    pub fn close_after_flush(&self) {
        self.close(CloseCause::Requested);
    }

    /// Gives the connection up at once; answers not yet sent are lost.
    pub fn abort(&self, cause: CloseCause) {
        if self.life.replace(Life::Dead) == Life::Dead {
            return;
        }
        self.cause.borrow_mut().get_or_insert(cause);
        self.output().kill();
        self.socket.abort();
        self.read_event.notify();
        self.write_event.notify();
        self.gone.wake_all();
    }

    pub(super) fn close(&self, cause: CloseCause) {
        if self.life.get() == Life::Open {
            self.life.set(Life::Closing);
            self.cause.borrow_mut().get_or_insert(cause);
            self.read_event.notify();
            self.write_event.notify();
        }
    }

    pub(super) fn life(&self) -> Life {
        self.life.get()
    }

    pub(super) fn take_cause(&self) -> CloseCause {
        self.cause.borrow_mut().take().unwrap_or(CloseCause::Peer)
    }

    pub(super) fn output(&self) -> RefMut<'_, Output> {
        self.output.borrow_mut()
    }

    pub(super) fn wake_writer(&self) {
        if !self.reader_sends.get() && self.output.borrow().is_ready() {
            self.write_event.notify();
        }
    }

    /// Begins to gather the answers of a burst, unless the writer has something to send already: that goes first.
    pub(super) fn gather(&self) {
        self.reader_sends.set(!self.output.borrow().is_ready());
    }

    /// Sends what has gathered, as much as the kernel takes at once; the rest is the writer's.
    pub(super) fn send_gathered(&self) {
        if !self.reader_sends.replace(false) || !self.output.borrow().is_ready() {
            return;
        }
        match self.with_slices(|slices| self.socket.write_now(slices)) {
            Ok(0) => {}
            Ok(bytes) => self.sent(bytes),
            Err(error) => self.abort(CloseCause::Socket(error)),
        }
        self.wake_writer();
    }

    /// Lends the next bytes to send, about [`SEND_BYTES_MAX`]: no slice if there are none.
    pub(super) fn with_slices<R>(&self, send: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        let output = self.output.borrow();
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let (mut used, mut bytes) = (0, 0);
        for (place, slice) in slices.iter_mut().zip(output.slices()) {
            if used > 0 && bytes + slice.len() > SEND_BYTES_MAX {
                break;
            }
            bytes += slice.len();
            *place = slice;
            used += 1;
        }
        send(&slices[..used])
    }

    /// Notes that the kernel took the next `bytes` bytes.
    pub(super) fn sent(&self, bytes: usize) {
        count(&self.stats.bytes_written, bytes);
        count(&self.stats.sends, 1);
        self.output().advance(bytes);
        self.made_room();
    }

    /// Notes that a request has been answered.
    pub(super) fn answered(&self) {
        self.wake_writer();
        self.made_room();
    }

    /// Tells the reader if it waits for what may just have become true.
    pub(super) fn made_room(&self) {
        let drained = {
            let output = self.output.borrow();
            if output.in_flight() == 0 {
                self.hold.set(false);
            }
            output.is_drained()
        };
        if self.reader_waits.get() && (!self.is_full() || drained) {
            self.reader_waits.set(false);
            self.read_event.notify();
        }
        if drained && self.life.get() == Life::Closing {
            self.read_event.notify();
        }
    }

    /// Whether no further request may be executed now. Once the reader waits, unsent bytes must fall to half.
    pub(super) fn is_full(&self) -> bool {
        let output = self.output.borrow();
        let unsent_bytes_max = self.settings.unsent_bytes_max >> u32::from(self.reader_waits.get());
        self.hold.get()
            || output.in_flight() >= self.settings.in_flight_max
            || output.unsent_bytes() > unsent_bytes_max
    }

    /// Lets no request start before all earlier ones are answered.
    pub(super) fn hold(&self) {
        self.hold.set(self.in_flight() > 0);
    }

    pub(super) fn stream_opened(&self) {
        self.streams.set(self.streams.get() + 1);
        if self.input_ended.get() {
            self.abort(CloseCause::Peer);
        }
    }

    pub(super) fn stream_closed(&self) {
        self.streams.set(self.streams.get() - 1);
    }

    /// The peer has closed its side. Whoever streams to it is told at once.
    pub(super) fn end_input(&self) {
        self.input_ended.set(true);
        if self.streams.get() > 0 {
            self.abort(CloseCause::Peer);
        }
    }
}
