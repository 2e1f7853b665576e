//! The reader task of a connection: reads what is there, executes every whole frame in it, watches for the end.
//!
//! Bytes are read into one buffer of the core and executed right there, as slices; the answers that are finished then are
//! sent at once, and only what the kernel does not take is left to the writer task. Only what cannot be executed yet is
//! kept with the connection: the beginning of a frame, or requests that must wait. An idle connection holds no buffer.
//!
//! A connection that owes too much (requests in flight, unsent bytes, a request that must run alone) is not executed
//! further, but is still read until [`READ_AHEAD_BYTES`] are waiting, so that the end of input is seen at once; beyond that
//! the socket is asked for it every [`PEER_CHECK`].
//!
//! Invariants
//! - Requests are executed in the order in which they arrived.
//! - A frame that is larger than allowed is refused by its header; room for a body grows with the bytes that arrived, not
//!   with the length that was claimed.
//! - It sends only if nothing was waiting to be sent before the burst: bytes leave in order, and the writer never finds that
//!   what it waits for has gone.
//! - A panic in the service ends this connection only.
//!
//! Cost: two system calls a burst, to read it and to send its answers; a copy of what must wait.
//!
//! Does not know: opcodes, except that some frames are no requests.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tracing::error;

use super::connection::{CloseCause, Connection, Life};
use super::limits::count;
use super::ticket::Ticket;
use super::{Order, Service};
use crate::core::host;
use crate::protocol::{CloseReason, Decoded, Frame, HEADER_BYTES, Incoming, Response, admit, decode_frame};

/// Size of a core's read buffer.
const SCRATCH_BYTES: usize = 64 << 10;

/// Bytes kept unexecuted of a connection that must wait, beyond one frame.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// Kept bytes up to this number are copied into the core's buffer, to be read on and executed there.
const KEPT_BYTES_SMALL: usize = 16 << 10;

/// A read that brought this much found the core's buffer too small, or nearly so.
const FULL_READ_BYTES_MIN: usize = SCRATCH_BYTES - KEPT_BYTES_SMALL;

/// Smallest and largest read into a connection's own buffer, in bytes.
const GROWTH_BYTES_MIN: usize = 4 << 10;
const GROWTH_BYTES_MAX: usize = 256 << 10;

/// How often the socket of a connection that is not read is asked whether its peer is still there.
const PEER_CHECK: Duration = Duration::from_millis(100);

/// Frames executed between two looks at whether the core wants to do something else.
const EXECUTE_ITEMS_MAX: usize = 32;

/// A core's read buffer, shared by its connections: each uses it only within one call.
#[derive(Clone, Default)]
pub(super) struct Scratch(Rc<RefCell<Vec<u8>>>);

impl Scratch {
    /// Lends the buffer to `use_it`.
    fn with<R>(&self, use_it: impl FnOnce(&mut [u8]) -> R) -> R {
        // Taken out, so that a call that somehow ends up here again gets a buffer of its own.
        let mut buffer = std::mem::take(&mut *self.0.borrow_mut());
        buffer.resize(SCRATCH_BYTES, 0);
        let result = use_it(&mut buffer);
        *self.0.borrow_mut() = buffer;
        result
    }
}

/// Why execution stopped before the end of the bytes.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The next frame is not whole; this many bytes are needed.
    Incomplete(usize),
    /// The connection owes too much.
    Full,
    /// Others want to run.
    Yield,
    /// No further request is to be executed.
    Closing,
}

/// What ended a wait.
enum Woken {
    Read(io::Result<usize>),
    Event,
    Timer,
}

pub(super) struct Reader<S: Service> {
    connection: Rc<Connection>,
    service: Rc<S>,
    session: Rc<S::Session>,
    scratch: Scratch,
    /// Bytes read and not executed.
    kept: Vec<u8>,
}

impl<S: Service> Reader<S> {
    pub(super) fn new(
        connection: Rc<Connection>,
        service: Rc<S>,
        session: Rc<S::Session>,
        scratch: Scratch,
    ) -> Reader<S> {
        Reader { connection, service, session, scratch, kept: Vec::new() }
    }

    /// Reads and executes until no further request will be: the connection is then closing or dead.
    pub(super) async fn run(&mut self) {
        let connection = Rc::clone(&self.connection);
        let mut handshake = pin!(host::sleep(connection.settings.handshake_timeout));
        let mut needed = HEADER_BYTES;
        while connection.life() == Life::Open {
            if !self.kept.is_empty() {
                match self.execute_kept() {
                    Ok(Stop::Incomplete(bytes)) => needed = bytes,
                    Ok(Stop::Full) => {
                        self.wait_for_room(handshake.as_mut()).await;
                        continue;
                    }
                    Ok(Stop::Yield) => {
                        host::relax().await;
                        continue;
                    }
                    Ok(Stop::Closing) => return,
                    Err(reason) => return connection.close(reason.into()),
                }
            }
            if connection.input_ended.get() {
                return connection.close(CloseCause::Peer);
            }
            match self.read(needed, handshake.as_mut()).await {
                Woken::Read(Ok(0)) => connection.end_input(),
                // There is more where a full buffer came from: the others first.
                Woken::Read(Ok(bytes)) if bytes >= FULL_READ_BYTES_MIN => host::yield_now().await,
                Woken::Read(Ok(_)) | Woken::Event => {}
                Woken::Read(Err(error)) => connection.abort(CloseCause::Socket(error)),
                Woken::Timer => connection.abort(CloseCause::HandshakeTimeout),
            }
            // What the kernel did not take of this burst's answers leaves before the next one is read.
            if connection.output().is_ready() {
                host::yield_now().await;
            }
        }
    }

    /// Waits for bytes; executes them in place if they are few, and keeps the rest.
    async fn read(&mut self, needed: usize, mut handshake: Pin<&mut impl Future<Output = ()>>) -> Woken {
        let connection = Rc::clone(&self.connection);
        poll_fn(|cx| {
            let read = if self.kept.len() < KEPT_BYTES_SMALL && needed <= SCRATCH_BYTES {
                self.poll_read_in_place(cx)
            } else {
                self.poll_read_more(cx, needed)
            };
            if let Poll::Ready(result) = read {
                return Poll::Ready(Woken::Read(result));
            }
            if connection.read_event.poll_wait(cx).is_ready() {
                return Poll::Ready(Woken::Event);
            }
            if !connection.is_authenticated() && handshake.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Woken::Timer);
            }
            Poll::Pending
        })
        .await
    }

    /// Reads behind what was kept, in the core's buffer, and executes it there.
    fn poll_read_in_place(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let scratch = self.scratch.clone();
        scratch.with(|buffer| {
            let len = self.kept.len();
            buffer[..len].copy_from_slice(&self.kept);
            let result = self.connection.socket.poll_read(cx, &mut buffer[len..]);
            if let Poll::Ready(Ok(read)) = result
                && read > 0
            {
                self.count_read(read);
                let bytes = &buffer[..len + read];
                match self.execute(bytes) {
                    Ok((consumed, _)) if consumed == bytes.len() => self.kept = Vec::new(),
                    Ok((consumed, _)) => {
                        self.kept.clear();
                        self.kept.extend_from_slice(&bytes[consumed..]);
                    }
                    Err(reason) => self.connection.close(reason.into()),
                }
            }
            result
        })
    }

    fn count_read(&self, bytes: usize) {
        count(&self.connection.stats.bytes_read, bytes);
        count(&self.connection.stats.reads, 1);
    }

    /// Executes what was kept.
    fn execute_kept(&mut self) -> Result<Stop, CloseReason> {
        let mut kept = std::mem::take(&mut self.kept);
        let (consumed, stop) = self.execute(&kept)?;
        if consumed == kept.len() {
            // Most bursts are small: what a large one needed is not kept for an idle connection.
            kept = Vec::new();
        } else {
            kept.drain(..consumed);
        }
        self.kept = kept;
        Ok(stop)
    }

    /// Reads behind what was kept, towards `needed` bytes, and keeps it.
    fn poll_read_more(&mut self, cx: &mut Context<'_>, needed: usize) -> Poll<io::Result<usize>> {
        let len = self.kept.len();
        // Room grows with what has arrived: a claim of 30 MiB costs nothing before the bytes are there.
        let growth = needed.saturating_sub(len).clamp(GROWTH_BYTES_MIN, GROWTH_BYTES_MAX);
        self.kept.resize(len + growth, 0);
        let result = self.connection.socket.poll_read(cx, &mut self.kept[len..]);
        let read = if let Poll::Ready(Ok(bytes)) = result { bytes } else { 0 };
        self.kept.truncate(len + read);
        if read > 0 {
            self.count_read(read);
        }
        result
    }

    /// Waits until a request may be executed again, or the connection ends.
    async fn wait_for_room(&mut self, mut handshake: Pin<&mut impl Future<Output = ()>>) {
        let connection = Rc::clone(&self.connection);
        count(&connection.stats.pauses, 1);
        connection.reader_waits.set(true);
        while connection.life() == Life::Open && connection.is_full() {
            let may_read = self.kept.len() < READ_AHEAD_BYTES && !connection.input_ended.get();
            let mut check = (!may_read).then(|| Box::pin(host::sleep(PEER_CHECK)));
            let woken = poll_fn(|cx| {
                if connection.read_event.poll_wait(cx).is_ready() {
                    return Poll::Ready(Woken::Event);
                }
                if may_read && let Poll::Ready(result) = self.poll_read_more(cx, 0) {
                    return Poll::Ready(Woken::Read(result));
                }
                if check.as_mut().is_some_and(|check| check.as_mut().poll(cx).is_ready()) {
                    return Poll::Ready(Woken::Event);
                }
                if !connection.is_authenticated() && handshake.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Woken::Timer);
                }
                Poll::Pending
            })
            .await;
            match woken {
                Woken::Read(Ok(0)) => connection.end_input(),
                Woken::Read(Err(error)) => connection.abort(CloseCause::Socket(error)),
                Woken::Timer => connection.abort(CloseCause::HandshakeTimeout),
                Woken::Event
                    if !may_read && !connection.input_ended.get() && connection.socket.is_peer_gone() =>
                {
                    connection.end_input();
                }
                Woken::Read(Ok(_)) | Woken::Event => {}
            }
            connection.reader_waits.set(true);
        }
        connection.reader_waits.set(false);
    }

    /// Executes the whole frames at the beginning of `bytes` and sends their answers; returns how many bytes that was and
    /// why it stopped.
    fn execute(&self, bytes: &[u8]) -> Result<(usize, Stop), CloseReason> {
        self.connection.gather();
        self.service.burst_begins();
        let result = self.execute_frames(bytes);
        self.service.burst_ends();
        self.connection.send_gathered();
        result
    }

    fn execute_frames(&self, bytes: &[u8]) -> Result<(usize, Stop), CloseReason> {
        let connection = &self.connection;
        let mut consumed = 0;
        for executed in 0.. {
            if connection.life() != Life::Open {
                return Ok((consumed, Stop::Closing));
            }
            let authenticated = connection.is_authenticated();
            let limits = connection.settings.frame_limits(authenticated);
            let frame = match decode_frame(&bytes[consumed..], limits)? {
                Decoded::Frame(frame) => frame,
                Decoded::Incomplete { frame_bytes } => return Ok((consumed, Stop::Incomplete(frame_bytes))),
            };
            if connection.is_full() {
                return Ok((consumed, Stop::Full));
            }
            if executed % EXECUTE_ITEMS_MAX == EXECUTE_ITEMS_MAX - 1 && host::should_yield() {
                return Ok((consumed, Stop::Yield));
            }
            match admit(&frame.header, authenticated)? {
                Incoming::Request => {
                    let order = self.service.order(&self.session, &frame);
                    if order != Order::Free && connection.in_flight() > 0 {
                        connection.hold();
                        return Ok((consumed, Stop::Full));
                    }
                    self.guarded(|| {
                        let ticket = Ticket::new(connection);
                        self.service.execute(&self.session, ticket, &frame);
                    });
                    if order == Order::Alone {
                        connection.hold();
                    }
                }
                Incoming::Response => self.guarded(|| self.service.response(&self.session, &frame)),
                Incoming::Ignored => {}
                Incoming::Refused(status) => refuse(Ticket::new(connection), &frame, status),
            }
            count(&connection.stats.frames, 1);
            consumed += frame.frame_bytes();
        }
        unreachable!("the loop ends with the bytes")
    }

    /// Runs a call of the service; a panic ends the connection.
    fn guarded(&self, call: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
            error!(conn = %self.connection.id(), panic = host::panic_text(&*panic), "executing a request panicked");
            self.connection.abort(CloseCause::Panicked);
        }
    }
}

/// Answers a frame that is no request a client may send.
fn refuse(ticket: Ticket, frame: &Frame<'_>, status: crate::protocol::Status) {
    ticket.reply(|out| Response::new(frame.opcode(), frame.opaque(), status).encode(out));
}
