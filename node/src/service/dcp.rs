//! DCP connections: their commands, and the way of a stream's pieces from the vbucket's core to the socket.
//!
//! A connection becomes a producer with DCP_OPEN. Two tasks are its own: one sends what its streams have and its client's
//! window allows, one asks from time to time whether the client is still there.
//!
//! Invariants
//! - The answer to a stream request is written before any message of the stream.
//! - At most two buffers of a connection are with the kernel or wait for it; all else waits in the producer.
//! - A piece's buffer goes home when the kernel has taken it, when it was dropped, or when the connection is gone.
//!
//! Cost: pieces are sent as they were filled; small ones are copied together. A task a connection, none a piece.
//! Does not know: how a vbucket is read, what is in a piece.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future::or;
use ringbase_storage::sync::Event;

use super::message::{Message, ProducerName, Token};
use super::{CoreService, Session, Waiting};
use crate::bucket::Verdict;
use crate::command::{self, Request, Responder, SessionView};
use crate::core::{CoreId, host};
use crate::dcp::collections::check_known;
use crate::dcp::flow;
use crate::dcp::flow_control::Acked;
use crate::dcp::noop::NoopAction;
use crate::dcp::piece::{
    Content, Origin, PieceSink, SentPiece, StreamAnswer, StreamNumber, StreamPiece, StreamSpec, access_of,
};
use crate::dcp::producer::{Producer, StreamKey};
use crate::dcp::request::check;
use crate::net::{CloseCause, ConnId, Connection, Pushed, Ticket};
use crate::protocol::dcp::signal::{decode_buffer_ack, decode_close_stream, encode_noop};
use crate::protocol::dcp::stream_request::{decode_add_stream, encode_failover_log, encode_rollback};
use crate::protocol::dcp::{
    BackfillOrder, Control, DcpOpen, Envelope, FilterSelection, OpenFlags, StreamFilter, StreamFlags,
    StreamRequest,
};
use crate::protocol::{Feature, Features, Frame, Opcode, Refusal, Status};
use crate::range_scan::ConnectionId;

/// Pieces below this size are copied together.
const COPY_BYTES: usize = 16 << 10;

/// Copied pieces leave when there are this many bytes.
const GATHER_BYTES: usize = 64 << 10;

/// Buffers of a connection that the kernel has not taken, at most.
const PUSHED_MAX: usize = 2;

/// A DCP connection of this core.
pub(super) struct DcpConnection {
    producer: RefCell<Producer>,
    /// Its name, as it is shown.
    name: Arc<str>,
    connection: Rc<Connection>,
    /// There may be something to send.
    changed: Event,
    noops_changed: Event,
    returned: Returned,
}

impl DcpConnection {
    /// Something arrived from the client.
    pub(super) fn heard(&self, now_ns: u64) {
        self.producer.borrow_mut().noops.received(Duration::from_nanos(now_ns));
    }
}

/// The DCP connections of a core.
#[derive(Default)]
pub(super) struct Producers {
    connections: RefCell<HashMap<ConnId, Rc<DcpConnection>, ahash::RandomState>>,
    /// Whose stream it is.
    streams: RefCell<HashMap<StreamNumber, Rc<DcpConnection>, ahash::RandomState>>,
    count: Cell<u64>,
}

impl Producers {
    /// Shows each connection with its name.
    pub(super) fn each(&self, mut visit: impl FnMut(&str, &Producer)) {
        let connections = self.connections.borrow();
        connections.values().for_each(|dcp| visit(&dcp.name, &dcp.producer.borrow()));
    }
}

/// A stream request that waits for the core of its vbucket.
pub(super) struct Asking {
    dcp: Rc<DcpConnection>,
    number: StreamNumber,
    responder: Responder,
    ticket: Ticket,
    received_ns: u64,
}

/// Where buffers land that nobody refers to any more, until they are sent home.
#[derive(Clone, Default)]
struct Returned(Arc<Mutex<Vec<SentPiece>>>);

impl Returned {
    fn take(&self) -> Vec<SentPiece> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A buffer lent to the network.
struct Lent {
    piece: Option<SentPiece>,
    returned: Returned,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.piece.as_ref().map_or(&[], |piece| piece.buffer.records())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.returned.0.lock().unwrap_or_else(PoisonError::into_inner).extend(self.piece.take());
    }
}

/// Pieces for a connection of the same core.
struct LocalSink(Weak<CoreService>);

impl PieceSink for LocalSink {
    fn send(&self, piece: StreamPiece) {
        if let Some(service) = self.0.upgrade() {
            service.take_piece(piece);
        }
    }
}

/// Pieces for a connection of another core.
struct RemoteSink {
    service: Weak<CoreService>,
    to: CoreId,
}

impl PieceSink for RemoteSink {
    fn send(&self, piece: StreamPiece) {
        if let Some(service) = self.service.upgrade() {
            service.send(self.to, Message::StreamPiece { piece });
        }
    }
}

const NOT_OPEN: Refusal = Refusal::einval("The connection is no DCP connection");
const NOT_MY_VBUCKET: Refusal = Refusal::new(Status::NOT_MY_VBUCKET, "");
const NO_CONSUMER: Refusal =
    Refusal::new(Status::NOT_SUPPORTED, "This node produces; it consumes from nobody");

impl CoreService {
    /// A DCP command of a connection of this core.
    pub(super) fn dcp(
        &self,
        session: &Rc<Session>,
        command: &mut command::Session,
        request: &Request<'_>,
        ticket: Ticket,
    ) {
        let view = command.view();
        let responder = Responder::of_view(&request.frame, &view, request.received_ns);
        let opcode = request.opcode();
        let done = match (opcode, session.dcp.get()) {
            (Opcode::DCP_OPEN, None) => {
                let user = command.identity().map(|identity| identity.user.clone()).unwrap_or_default();
                self.open_producer(session, user, &view, request).map(|()| command.begin_dcp())
            }
            (Opcode::DCP_OPEN, Some(_)) => Err(Refusal::einval("The connection is a DCP connection already")),
            (_, None) => Err(NOT_OPEN),
            (Opcode::DCP_STREAM_REQ, Some(dcp)) => match self.prepare_stream(dcp, &view, request) {
                Ok(spec) => return self.ask_for_stream(dcp, spec, responder, ticket),
                Err(Refusal { status: Status::NOT_MY_VBUCKET, .. }) => {
                    ticket.reply(|out| command.not_my_vbucket(request, out));
                    return self.answered(opcode, request.received_ns);
                }
                Err(refusal) => {
                    ticket.reply(|out| self.refuse_in(view.bucket, &responder, refusal, out));
                    return self.answered(opcode, request.received_ns);
                }
            },
            (Opcode::DCP_BUFFER_ACKNOWLEDGEMENT, Some(dcp)) => {
                match decode_buffer_ack(request.frame.extras) {
                    Ok(bytes) => {
                        self.acked(dcp, bytes);
                        ticket.silent();
                        return self.answered(opcode, request.received_ns);
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            (Opcode::DCP_CONTROL, Some(dcp)) => self.control(dcp, view.features, &request.frame),
            (Opcode::DCP_CLOSE_STREAM, Some(dcp)) => {
                return self.close_stream(dcp, &request.frame, &responder, ticket);
            }
            (Opcode::DCP_ADD_STREAM, Some(_)) => {
                decode_add_stream(request.frame.extras).and(Err(NO_CONSUMER))
            }
            // A noop of the client: it is told that somebody is here.
            (_, Some(_)) => Ok(()),
        };
        self.answer_dcp(&responder, done, ticket);
    }

    fn answer_dcp(&self, responder: &Responder, done: Result<(), Refusal>, ticket: Ticket) {
        ticket.reply(|out| match done {
            Ok(()) => responder.success(&self.env).encode(out),
            Err(refusal) => responder.refuse(&self.env, refusal, out),
        });
        self.answered(responder.opcode(), responder.received_ns());
    }

    pub(super) fn now(&self) -> Duration {
        Duration::from_nanos(self.env.clock.monotonic_ns())
    }

    fn open_producer(
        &self,
        session: &Rc<Session>,
        user: String,
        view: &SessionView,
        request: &Request<'_>,
    ) -> Result<(), Refusal> {
        let open = DcpOpen::decode(&request.frame, view.features)?;
        if !open.flags.contains(OpenFlags::PRODUCER) {
            return Err(NO_CONSUMER);
        }
        let bucket = view.bucket.ok_or(Refusal::new(Status::NO_BUCKET, ""))?;
        let connection = session.connection.clone();
        let opened = self.now();
        let name = ProducerName { name: open.name.to_vec(), bucket, opened, connection: connection.id() };
        self.replace_older(&name);
        for core in self.other_cores().collect::<Vec<_>>() {
            self.send(core, Message::ProducerOpened { producer: name.clone() });
        }
        let origin = Origin { user, port: connection.local().port() };
        let producer = Producer::new(open.name, origin, open.flags, bucket, opened);
        let dcp = Rc::new(DcpConnection {
            producer: RefCell::new(producer),
            name: open.name.escape_ascii().to_string().into(),
            connection: connection.clone(),
            changed: Event::default(),
            noops_changed: Event::default(),
            returned: Returned::default(),
        });
        self.producers.connections.borrow_mut().insert(connection.id(), dcp.clone());
        session.everywhere.set(true);
        let _ = session.dcp.set(dcp.clone());
        connection.ends_with_input();
        host::spawn("dcp sender", send_all(self.weak.clone(), dcp.clone()));
        host::spawn("dcp noops", ask_whether_there(self.weak.clone(), dcp));
        let name = open.name.escape_ascii();
        tracing::info!(conn = %connection.id(), %name, flags = open.flags.bits(), "DCP connection opened");
        Ok(())
    }

    /// A DCP connection was opened: those of its name that are older end.
    pub(super) fn replace_older(&self, newer: &ProducerName) {
        let connections: Vec<_> = self.producers.connections.borrow().values().cloned().collect();
        for dcp in connections {
            let (id, producer) = (dcp.connection.id(), dcp.producer.borrow());
            let is_older = (producer.opened(), id) < (newer.opened, newer.connection);
            if producer.name() == newer.name && producer.bucket() == newer.bucket && is_older {
                drop(producer);
                tracing::info!(conn = %id, by = %newer.connection, "DCP connection replaced");
                dcp.connection.abort(CloseCause::Replaced);
            }
        }
    }

    fn control(&self, dcp: &DcpConnection, features: Features, frame: &Frame<'_>) -> Result<(), Refusal> {
        let control = Control::decode(frame.key, frame.value)?;
        dcp.producer.borrow_mut().control(&control, features, self.now())?;
        dcp.window_changed(self.now());
        dcp.noops_changed.notify_all();
        dcp.changed.notify_all();
        Ok(())
    }

    fn acked(&self, dcp: &DcpConnection, bytes: u32) {
        if let Acked::Clamped { excess_bytes } = dcp.producer.borrow_mut().acked(bytes) {
            tracing::warn!(conn = %dcp.connection.id(), bytes, excess_bytes, "more bytes given back than sent");
        }
        dcp.window_changed(self.now());
        dcp.changed.notify_all();
    }

    fn close_stream(&self, dcp: &DcpConnection, frame: &Frame<'_>, responder: &Responder, ticket: Ticket) {
        let has_ids = dcp.producer.borrow().settings().stream_ids;
        let closed = decode_close_stream(frame, has_ids)
            .and_then(|id| dcp.producer.borrow_mut().close_stream(StreamKey { vb: frame.vbucket(), id }));
        if let Ok(number) = closed {
            self.producers.streams.borrow_mut().remove(&number);
            match self.host_of_vbucket(frame.vbucket()) {
                host if host == self.core => self.streams.close(number),
                host => self.send(host, Message::StreamClosed { number }),
            }
        }
        // The answer comes before the end of the stream, if there is one.
        self.answer_dcp(responder, closed.map(drop), ticket);
        self.bring_home(dcp);
        dcp.changed.notify_all();
    }

    /// Checks of a stream request that need no vbucket, in the protocol's order.
    fn prepare_stream(
        &self,
        dcp: &DcpConnection,
        view: &SessionView,
        request: &Request<'_>,
    ) -> Result<StreamSpec, Refusal> {
        let (frame, producer) = (&request.frame, dcp.producer.borrow());
        let (settings, features) = (producer.settings(), view.features);
        let asked = StreamRequest::decode(frame.extras)?;
        if self.verdict(view, request, access_of(&asked)) != Verdict::Admitted {
            return Err(NOT_MY_VBUCKET);
        }
        if asked.flags.contains(StreamFlags::TAKE_OVER) {
            return Err(Refusal::new(Status::NOT_SUPPORTED, "Takeover is not supported"));
        }
        settings.check_noop(features)?;
        if !asked.flags.contains(StreamFlags::FROM_LATEST) {
            check(&asked)?;
        }
        let filter = match features.has(Feature::Collections) {
            true => Some(StreamFilter::decode(frame.value)?),
            false if frame.value.is_empty() => None,
            false => return Err(Refusal::einval("A filter needs the Collections feature")),
        };
        if let Some(filter) = &filter {
            let bucket = self.engine.bucket(producer.bucket());
            let bucket = bucket.ok_or(Refusal::new(Status::ETMPFAIL, ""))?;
            check_known(&filter.selection, bucket.context.collections().manifest())?;
        }
        let id = filter.clone().unwrap_or_default().stream_id(settings.stream_ids)?;
        let is_filtered = filter.as_ref().is_some_and(|filter| filter.selection != FilterSelection::All);
        if is_filtered {
            settings.check_filtered()?;
        }
        let key = StreamKey { vb: frame.vbucket(), id };
        if producer.has_stream(key) {
            return Err(Refusal::new(Status::KEY_EEXISTS, "There is a stream of this vbucket"));
        }
        if producer.has_too_many_ends() {
            return Err(Refusal::new(Status::ETMPFAIL, "Ends of streams wait for the client's window"));
        }
        // From 1 on: 0 is no flow in a trace.
        let count = self.producers.count.get() + 1;
        self.producers.count.set(count);
        Ok(StreamSpec {
            number: StreamNumber(u64::from(self.core.0) << 48 | count),
            connection: ConnectionId(dcp.connection.id().0),
            name: dcp.name.clone(),
            origin: producer.origin().clone(),
            window: producer.closed().clone(),
            socket: producer.socket().clone(),
            bucket: producer.bucket(),
            envelope: Envelope { vbucket: key.vb, opaque: frame.opaque(), stream_id: id },
            request: asked,
            purge_seqno: filter.as_ref().and_then(|filter| filter.purge_seqno),
            selection: filter.map(|filter| filter.selection),
            form: settings.document_form(features),
            markers: settings.marker_form(),
            out_of_order: settings.out_of_order,
            priority: settings.priority,
            is_sequential: settings.backfill_order == BackfillOrder::Sequential,
            skips_deletes: settings.flags.contains(OpenFlags::SKIP_DELETES_IN_INITIAL_BACKFILL),
        })
    }

    fn ask_for_stream(
        &self,
        dcp: &Rc<DcpConnection>,
        spec: StreamSpec,
        responder: Responder,
        ticket: Ticket,
    ) {
        let Envelope { vbucket: vb, opaque, stream_id: id } = spec.envelope;
        let number = spec.number;
        flow::requested(&spec);
        dcp.producer.borrow_mut().add_stream(StreamKey { vb, id }, number, opaque);
        self.producers.streams.borrow_mut().insert(number, dcp.clone());
        let received_ns = responder.received_ns();
        let asking = Asking { dcp: dcp.clone(), number, responder, ticket, received_ns };
        let host = self.host_of_vbucket(vb);
        if host == self.core {
            let answer = self.open_stream(spec, Rc::new(LocalSink(self.weak.clone())));
            return self.answer_stream(asking, answer);
        }
        let token = self.wait_for(Waiting::Stream(asking));
        self.send(host, Message::Stream { token, spec: Box::new(spec) });
    }

    fn open_stream(&self, spec: StreamSpec, sink: Rc<dyn PieceSink>) -> StreamAnswer {
        // A bucket that was there a moment ago is being deleted or emptied: the next try tells.
        let Some(bucket) = self.engine.bucket(spec.bucket) else {
            return StreamAnswer::Refused(Refusal::new(Status::ETMPFAIL, ""));
        };
        let verdict = bucket.context.states.verdict(spec.envelope.vbucket, spec.access());
        match bucket.vbucket(spec.envelope.vbucket) {
            Some(store) if verdict == Verdict::Admitted => {
                self.streams.open(&store, &bucket.context, spec, sink)
            }
            _ => StreamAnswer::Refused(NOT_MY_VBUCKET),
        }
    }

    /// A stream request of a connection of another core, for a vbucket of this one.
    pub(super) fn open_stream_for(&self, to: CoreId, token: Token, spec: StreamSpec) {
        let sink = Rc::new(RemoteSink { service: self.weak.clone(), to });
        let answer = self.open_stream(spec, sink);
        self.send(to, Message::StreamAnswer { token, answer });
    }

    pub(super) fn stream_answered(&self, token: Token, answer: StreamAnswer) {
        if let Some(Waiting::Stream(asking)) = self.take_waiting(token) {
            self.answer_stream(asking, answer);
        }
    }

    fn answer_stream(&self, asking: Asking, answer: StreamAnswer) {
        let Asking { dcp, number, responder, ticket, received_ns } = asking;
        if !matches!(answer, StreamAnswer::Accepted(_)) {
            dcp.producer.borrow_mut().remove_stream(number);
            self.producers.streams.borrow_mut().remove(&number);
        }
        ticket.reply(|out| match answer {
            StreamAnswer::Accepted(log) => {
                let mut value = Vec::new();
                encode_failover_log(&log, &mut value);
                responder.success(&self.env).value(&value).encode(out);
            }
            StreamAnswer::RollBack(seqno) => {
                let value = encode_rollback(seqno);
                responder.with_status(&self.env, Status::ROLLBACK).value(&value).encode(out);
            }
            StreamAnswer::Refused(refusal) => {
                let bucket = dcp.producer.borrow().bucket();
                self.refuse_in(Some(bucket), &responder, refusal, out);
            }
        });
        self.answered(Opcode::DCP_STREAM_REQ, received_ns);
    }

    /// A piece of a stream of one of this core's connections.
    pub(super) fn take_piece(&self, piece: StreamPiece) {
        let StreamPiece { number, vb, content, items, is_last, discards, disconnects } = piece;
        let dcp = match is_last {
            true => self.producers.streams.borrow_mut().remove(&number),
            false => self.producers.streams.borrow().get(&number).cloned(),
        };
        let Some(dcp) = dcp else {
            // Of a stream that was closed, or of a connection that is gone.
            return match content {
                Content::Small(_) => {}
                Content::Buffer(buffer) => self.send_home(SentPiece { number, vb, buffer }),
            };
        };
        if disconnects {
            return dcp.connection.abort(CloseCause::Broken);
        }
        let bytes = match content {
            Content::Small(bytes) => bytes.into(),
            Content::Buffer(buffer) => dcp.lend(SentPiece { number, vb, buffer }),
        };
        flow::queued(number, vb, bytes.len(), items, is_last);
        let is_queued = dcp.producer.borrow_mut().queue(number, bytes, items, is_last, discards);
        if discards || !is_queued {
            self.bring_home(&dcp);
        }
        dcp.changed.notify_all();
    }

    fn send_home(&self, sent: SentPiece) {
        match self.host_of_vbucket(sent.vb) {
            host if host == self.core => self.streams.sent(sent),
            host => self.send(host, Message::StreamPieceSent { sent }),
        }
    }

    /// Sends home the buffers that nobody refers to any more.
    fn bring_home(&self, dcp: &DcpConnection) {
        for sent in dcp.returned.take() {
            flow::written(sent.number, sent.vb, sent.buffer.records().len());
            self.send_home(sent);
        }
    }

    /// A response of the client. It answers noops; to other messages it answers only if something is wrong with them.
    pub(super) fn dcp_response(&self, dcp: &DcpConnection, frame: &Frame<'_>) {
        dcp.heard(self.env.clock.monotonic_ns());
        let (status, conn) = (frame.status(), dcp.connection.id());
        if frame.opcode() == Opcode::DCP_NOOP {
            dcp.producer.borrow_mut().noops.answered(frame.opaque());
            return dcp.noops_changed.notify_all();
        }
        let is_tolerated = matches!(
            status,
            Status::SUCCESS | Status::KEY_ENOENT | Status::KEY_EEXISTS | Status::NOT_MY_VBUCKET
        );
        if !is_tolerated {
            tracing::warn!(%conn, opcode = frame.opcode().name(), %status, "the client cannot go on");
            dcp.connection.close_after_flush();
        }
    }

    /// A DCP connection is gone; other cores are told by the caller.
    pub(super) fn producer_gone(&self, dcp: &Rc<DcpConnection>) {
        self.producers.connections.borrow_mut().remove(&dcp.connection.id());
        self.producers.streams.borrow_mut().retain(|_, other| !Rc::ptr_eq(other, dcp));
        dcp.changed.notify_all();
    }
}

impl DcpConnection {
    fn lend(&self, piece: SentPiece) -> Bytes {
        Bytes::from_owner(Lent { piece: Some(piece), returned: self.returned.clone() })
    }

    fn window_changed(&self, now: Duration) {
        self.producer.borrow_mut().window_changed(now);
    }

    /// What leaves next: a large piece as it is, small ones copied together. `held` is a large one that came after small ones.
    fn take(&self, held: &mut Option<Bytes>) -> Option<Bytes> {
        if let Some(bytes) = held.take() {
            return Some(bytes);
        }
        let mut producer = self.producer.borrow_mut();
        let first = producer.next_bytes()?;
        if first.len() >= COPY_BYTES {
            return Some(first);
        }
        let mut gathered = Vec::from(first);
        while gathered.len() < GATHER_BYTES
            && let Some(next) = producer.next_bytes()
        {
            if next.len() >= COPY_BYTES {
                *held = Some(next);
                break;
            }
            gathered.extend_from_slice(&next);
        }
        Some(gathered.into())
    }
}

/// Sends what the streams of a connection have, until it closes.
async fn send_all(service: Weak<CoreService>, dcp: Rc<DcpConnection>) {
    let gone = dcp.connection.gone();
    or(gone, async {
        let mut held = None;
        let mut pushed: VecDeque<Pushed> = VecDeque::new();
        while dcp.connection.is_open() {
            let taken = if pushed.len() < PUSHED_MAX { dcp.take(&mut held) } else { None };
            dcp.producer.borrow_mut().socket_is(taken.is_none() && !pushed.is_empty());
            let Some(now) = service.upgrade().map(|service| service.now()) else { return };
            dcp.window_changed(now);
            let Some(bytes) = taken else {
                // What is full waits for the kernel, what has nothing for the streams or the client.
                let is_waiting = pushed.len() < PUSHED_MAX;
                let has_more = dcp.changed.until(|| is_waiting && dcp.producer.borrow().has_bytes());
                if let Some(first) = pushed.front_mut() {
                    let taken = or(async { Some(first.await) }, async {
                        has_more.await;
                        None
                    });
                    match taken.await {
                        Some(Ok(sent)) => {
                            drop(sent);
                            pushed.pop_front();
                        }
                        Some(Err(_gone)) => return,
                        None => {}
                    }
                } else {
                    has_more.await;
                }
                let Some(service) = service.upgrade() else { return };
                service.bring_home(&dcp);
                continue;
            };
            pushed.push_back(dcp.connection.push_unasked(bytes));
            let Some(service) = service.upgrade() else { return };
            service.bring_home(&dcp);
        }
    })
    .await;
}

/// Sends noops when they are due, and gives up a connection that nothing is heard of.
async fn ask_whether_there(service: Weak<CoreService>, dcp: Rc<DcpConnection>) {
    or(dcp.connection.gone(), async {
        loop {
            let Some(now) = service.upgrade().map(|service| service.now()) else { return };
            let changed = dcp.noops_changed.listen();
            let action = dcp.producer.borrow_mut().noops.poll(now);
            match action {
                NoopAction::Send { opaque } => dcp.connection.send_unasked(|out| encode_noop(opaque, out)),
                NoopAction::Disconnect => return dcp.connection.abort(CloseCause::Silent),
                NoopAction::Wait(None) => changed.await,
                NoopAction::Wait(Some(at)) => {
                    or(changed, host::sleep(at.saturating_sub(now).max(Duration::from_millis(1)))).await;
                }
            }
        }
    })
    .await;
}
