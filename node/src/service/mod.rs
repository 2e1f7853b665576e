//! The service of a core: where requests, vbuckets and connections of different cores meet.
//!
//! A connection's core takes every frame. What needs a vbucket of this core is executed inline; what belongs to another core travels
//! there in
//! a mailbox, and its answer back. Only the connection's core writes to the socket: a range scan's buffers and a stream's pieces are
//! filled on the
//! vbucket's core and sent here.
//!
//! Invariants
//! - Every ticket is answered once: by the executing core's answer, or because the connection is gone.
//! - Requests of one connection to one vbucket arrive there in order: mailboxes keep order, and what waits for a full mailbox waits in
//!   order.
//!
//! Cost: a request for a local vbucket sends no message and allocates nothing; a remote one is copied twice.
//! Does not know: opcodes' rules (`command`), scans' contents (`range_scan`), sockets (`net`).

mod buckets;
mod burst;
mod dcp;
mod gather;
mod message;
mod outbox;
mod param;
mod remote;
mod scans;
mod seqnos;
mod stats;
mod trace;
mod vbuckets;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use ringbase_storage::env::Env;
use ringbase_storage::io::ring::Ring;
use ringbase_storage::types::{BucketId, VbId};

use crate::bucket::{Engine, Lifecycle};
use crate::command::{
    self, Catalog, Next, Outcome, Reply, Request, Responder, SessionView, StatJob, VbSeqnosJob, execute,
    look, must_run_alone, unknown_collection,
};
use crate::core::CoreId;
use crate::core::mailbox::{MailboxEnds, Mailboxes, mailboxes};
use crate::dcp::streams::Streams;
use crate::net::{self, ConnId, Connection, Order, SmallBuffers, Ticket};
use crate::protocol::{Frame, Opcode, Refusal, Status};
use crate::range_scan::{ConnectionId, RangeScanConfig, RangeScans};
use crate::telemetry::CoreTimings;
use burst::Burst;
use message::{Message, Token};
use outbox::Outbox;

/// Bytes under way from one core to another, at most; what exceeds it waits on the sending core.
const MAILBOX_WINDOW_BYTES: usize = 8 << 20;

/// The unconnected mailboxes of one core.
pub struct CoreMail(MailboxEnds<Message>);

/// The mailboxes of a node, one for each core.
///
/// # Errors
/// Out of file descriptors or memory.
pub fn core_mail(cores: usize) -> io::Result<Vec<CoreMail>> {
    Ok(mailboxes(cores, MAILBOX_WINDOW_BYTES)?.into_iter().map(CoreMail).collect())
}

/// What a core serves.
pub struct CoreParts {
    /// Which core.
    pub core: CoreId,
    /// Clock, tasks, randomness.
    pub env: Env,
    /// Its shards.
    pub engine: Engine,
    /// Its storage ring.
    pub ring: Rc<Ring>,
    /// The core that hosts each shard.
    pub hosts: Vec<CoreId>,
    /// The node.
    pub catalog: Arc<Catalog>,
    /// Range scans.
    pub scans: RangeScanConfig,
    /// Bytes that the buffers of its streams may hold.
    pub stream_bytes_max: usize,
    /// Whether a connection's core reads documents of other cores by a look at their tables.
    pub direct_reads: bool,
}

/// A request that waits for its answer from another core.
enum Waiting {
    Answer { ticket: Ticket, opcode: Opcode, received_ns: u64, under_way: Option<UnderWayElsewhere> },
    Scan(Rc<scans::Delivery>),
    Stream(dcp::Asking),
    Stat(gather::Gathering<StatJob>),
    Seqnos(gather::Gathering<VbSeqnosJob>),
    Bucket(buckets::Changing),
    Step(Rc<buckets::Round>),
}

/// A request of a connection that another core has; while there is one, nothing is read past it.
struct UnderWayElsewhere(Rc<Cell<u32>>);

impl UnderWayElsewhere {
    fn begin(count: &Rc<Cell<u32>>) -> UnderWayElsewhere {
        count.set(count.get() + 1);
        UnderWayElsewhere(count.clone())
    }
}

impl Drop for UnderWayElsewhere {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What the service knows of a connection.
pub struct Session {
    command: RefCell<command::Session>,
    connection: Rc<Connection>,
    /// Whether it has used range scans or streams: then every core must know when it goes.
    everywhere: Cell<bool>,
    /// Once it is a DCP connection.
    dcp: OnceCell<Rc<dcp::DcpConnection>>,
    /// Requests that other cores have and have not answered.
    elsewhere: Rc<Cell<u32>>,
}

/// See the module.
pub struct CoreService {
    core: CoreId,
    env: Env,
    engine: Rc<Engine>,
    ring: Rc<Ring>,
    hosts: Vec<CoreId>,
    shared: Rc<command::session::Shared>,
    scans: RangeScans,
    streams: Streams,
    producers: dcp::Producers,
    direct_reads: bool,
    /// On the core that decides which buckets exist.
    lifecycle: Option<Rc<Lifecycle>>,
    timings: Rc<CoreTimings>,
    burst: Burst,
    frames: SmallBuffers,
    outbox: OnceCell<Outbox>,
    waiting: RefCell<HashMap<Token, Waiting, ahash::RandomState>>,
    tokens: Cell<u64>,
    weak: std::rc::Weak<CoreService>,
}

impl CoreService {
    /// Appends a refusal; of an unknown collection or scope it says in which manifest of the bucket it was sought.
    fn refuse_in(
        &self,
        bucket: Option<BucketId>,
        responder: &Responder,
        refusal: Refusal,
        out: &mut Vec<u8>,
    ) {
        let is_unknown = matches!(refusal.status, Status::UNKNOWN_COLLECTION | Status::UNKNOWN_SCOPE);
        match bucket.filter(|_| is_unknown).and_then(|id| self.engine.bucket(id)) {
            Some(bucket) => {
                let uid = bucket.context.collections().manifest().uid();
                unknown_collection(&self.env, responder, refusal.status, uid, out);
            }
            None => responder.refuse(&self.env, refusal, out),
        }
    }

    /// Starts the service and connects it with the other cores', which must all do the same.
    ///
    /// # Errors
    /// The kernel has no memory for the mailboxes, or no watch left for this user.
    pub fn start(parts: CoreParts, mail: CoreMail) -> io::Result<Rc<CoreService>> {
        let CoreParts { core, env, engine, ring, hosts, catalog, scans, stream_bytes_max, direct_reads } =
            parts;
        let engine = Rc::new(engine);
        let timings = Rc::new(CoreTimings::default());
        let lifecycle = engine.authority().map(|authority| {
            Lifecycle::new(env.clone(), authority.clone(), catalog.set().clone(), engine.document_bytes())
        });
        let service = Rc::new_cyclic(|weak| CoreService {
            core,
            shared: command::session::Shared::new(Catalog::clone(&catalog), env.clone()),
            lifecycle,
            scans: RangeScans::new(env.clone(), engine.clone(), scans),
            streams: Streams::new(env.clone(), stream_bytes_max),
            producers: dcp::Producers::default(),
            direct_reads,
            env,
            engine,
            ring,
            hosts,
            timings: timings.clone(),
            burst: Burst::default(),
            frames: SmallBuffers::default(),
            outbox: OnceCell::new(),
            waiting: RefCell::default(),
            tokens: Cell::new(0),
            weak: weak.clone(),
        });
        let receiver = Rc::downgrade(&service);
        let handle = move |from, message| {
            if let Some(service) = receiver.upgrade() {
                service.handle(from, message);
            }
        };
        let waited = move |wait: std::time::Duration, count| {
            timings.record_mailbox_wait(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX), count as u64);
        };
        let connected: Mailboxes<Message> = mail.0.connect(handle, waited)?;
        let _ = service.outbox.set(Outbox::new(connected));
        Ok(service)
    }

    /// Ends every range scan and every stream: the node stops.
    pub fn cancel_scans(&self) {
        self.scans.cancel_all();
        self.streams.close_all();
    }

    fn connection_gone(&self, connection: ConnId) {
        self.scans.connection_gone(ConnectionId(connection.0));
        self.streams.connection_gone(ConnectionId(connection.0));
    }

    /// Ends the conversation with the other cores.
    pub fn close_mail(&self) {
        if let Some(outbox) = self.outbox.get() {
            outbox.close();
        }
    }

    fn send(&self, to: CoreId, message: Message) {
        if let Some(outbox) = self.outbox.get() {
            outbox.send(to, message);
        }
    }

    fn other_cores(&self) -> impl Iterator<Item = CoreId> + '_ {
        let cores = self.outbox.get().map_or(0, Outbox::cores);
        (0..cores as u16).map(CoreId).filter(|core| *core != self.core)
    }

    fn wait_for(&self, waiting: Waiting) -> Token {
        let token = self.next_token();
        self.wait_with(token, waiting);
        token
    }

    fn next_token(&self) -> Token {
        let token = Token(self.tokens.get());
        self.tokens.set(token.0 + 1);
        token
    }

    fn wait_with(&self, token: Token, waiting: Waiting) {
        self.waiting.borrow_mut().insert(token, waiting);
    }

    fn host_of(&self, request: &Request<'_>) -> CoreId {
        self.host_of_vbucket(request.vbucket())
    }

    fn host_of_vbucket(&self, vb: VbId) -> CoreId {
        let shard = crate::bucket::shard_of(vb, self.engine.shard_count());
        self.hosts[usize::from(shard.0)]
    }

    fn answered(&self, opcode: Opcode, received_ns: u64) {
        if self.burst.counts(opcode, received_ns) {
            return;
        }
        self.timings.record_request(opcode, self.env.clock.monotonic_ns().saturating_sub(received_ns));
    }

    fn execute_here(&self, view: &SessionView, request: &Request<'_>, ticket: Ticket) {
        let mut late: Option<Rc<Cell<Option<Ticket>>>> = None;
        let (opcode, received_ns) = (request.opcode(), request.received_ns);
        let mut outcome = Outcome::Done;
        let mut defer = || -> Box<dyn Reply> {
            let ticket = late.insert(Rc::default()).clone();
            Box::new(LocalReply { service: self.weak.clone(), ticket, opcode, received_ns })
        };
        ticket.write(|out| outcome = execute(&self.engine, view, request, out, &mut defer));
        match outcome {
            Outcome::Done => {
                ticket.silent();
                self.answered(opcode, received_ns);
            }
            Outcome::Deferred => {
                if let Some(late) = late {
                    late.set(Some(ticket));
                }
            }
            Outcome::Close => ticket.reply_and_close(|_| {}),
        }
    }

    /// Whether a read may be answered by a look at the newest versions: always here, and on another core if it has no
    /// request of the connection that must be answered first.
    fn may_look(&self, session: &Session, request: &Request<'_>) -> bool {
        self.host_of(request) == self.core || self.direct_reads && session.elsewhere.get() == 0
    }

    fn execute_there(&self, host: CoreId, view: SessionView, request: &Request<'_>, waiting: Waiting) {
        let token = self.wait_for(waiting);
        let mut frame = self.frames.take(request.frame.frame_bytes());
        request.copy(&mut frame);
        self.send(host, Message::Request { token, view, received_ns: request.received_ns, frame });
    }
}

/// The way back for an answer that comes late, on the connection's own core.
struct LocalReply {
    service: std::rc::Weak<CoreService>,
    ticket: Rc<Cell<Option<Ticket>>>,
    opcode: Opcode,
    received_ns: u64,
}

impl Reply for LocalReply {
    fn send(self: Box<Self>, frame: &[u8]) {
        if let Some(ticket) = self.ticket.take() {
            ticket.reply(|out| out.extend_from_slice(frame));
        }
        if let Some(service) = self.service.upgrade() {
            service.answered(self.opcode, self.received_ns);
        }
    }

    fn close(self: Box<Self>) {
        if let Some(ticket) = self.ticket.take() {
            ticket.reply_and_close(|_| {});
        }
    }
}

impl net::Service for CoreService {
    type Session = Session;

    fn connected(&self, connection: &Rc<Connection>) -> Rc<Session> {
        let id = command::session::ConnectionId(connection.id().0);
        let session = command::Session::new(self.shared.clone(), id);
        connection.set_authenticated(session.is_authenticated());
        Rc::new(Session {
            command: RefCell::new(session),
            connection: connection.clone(),
            everywhere: Cell::new(false),
            dcp: OnceCell::new(),
            elsewhere: Rc::default(),
        })
    }

    fn order(&self, _: &Rc<Session>, frame: &Frame<'_>) -> Order {
        match frame.opcode() {
            Opcode::RANGE_SCAN_CONTINUE
            | Opcode::CREATE_BUCKET
            | Opcode::DELETE_BUCKET
            | Opcode::SET_VBUCKET
            | Opcode::DEL_VBUCKET
            | Opcode::SET_PARAM => Order::Alone,
            opcode if must_run_alone(opcode) => Order::After,
            _ => Order::Free,
        }
    }

    fn burst_begins(&self) {
        self.burst.begin(&self.env);
    }

    fn burst_ends(&self) {
        self.burst.end(&self.env, &self.timings);
    }

    fn execute(&self, session: &Rc<Session>, ticket: Ticket, frame: &Frame<'_>) {
        let received_ns = self.burst.received_ns(&self.env);
        if let Some(dcp) = session.dcp.get() {
            dcp.heard(received_ns);
        }
        let mut command = session.command.borrow_mut();
        let (mut next, mut has_answered) = (Next::Done, false);
        ticket.write(|out| {
            next = command.accept(*frame, received_ns, out);
            // A look answers for active vbuckets only, so what it answers is not refused.
            if let Next::Vbucket(request) = &next
                && self.may_look(session, request)
            {
                has_answered = look(&self.engine, &command.view(), request, out);
            }
            if let Next::Vbucket(request) | Next::RangeScan(request) = &next
                && !has_answered
            {
                has_answered = self.is_refused(&mut command, request, out);
            }
        });
        match next {
            Next::Done => {
                session.connection.set_authenticated(command.is_authenticated());
                ticket.silent();
                self.answered(frame.opcode(), received_ns);
            }
            Next::Vbucket(_) | Next::RangeScan(_) if has_answered => {
                ticket.silent();
                self.answered(frame.opcode(), received_ns);
            }
            Next::Close(closing) => {
                tracing::debug!(conn = session.connection.id().0, %closing, "connection ends");
                ticket.reply_and_close(|_| {});
            }
            Next::Vbucket(request) => {
                let view = command.view();
                let host = self.host_of(&request);
                if host == self.core {
                    self.execute_here(&view, &request, ticket);
                } else {
                    let under_way = Some(UnderWayElsewhere::begin(&session.elsewhere));
                    let opcode = request.opcode();
                    let waiting = Waiting::Answer { ticket, opcode, received_ns, under_way };
                    self.execute_there(host, view, &request, waiting);
                }
            }
            Next::VbucketChange(request) => self.vbucket_change(command.view(), &request, ticket),
            Next::RangeScan(request) => {
                session.everywhere.set(true);
                self.range_scan(command.view(), &request, ticket);
            }
            Next::Dcp(request) => self.dcp(session, &mut command, &request, ticket),
            Next::Stat(job) => {
                drop(command);
                self.gather(job, ticket, self.env.clock.monotonic_ns());
            }
            Next::VbSeqnos(job) => {
                drop(command);
                self.gather(job, ticket, received_ns);
            }
            Next::SetParam(change) => {
                drop(command);
                self.set_param(change, ticket);
            }
            Next::Bucket(job) => {
                drop(command);
                self.change_bucket(job, ticket);
            }
            Next::TraceDump(job) => {
                drop(command);
                self.wait_for_dump(job, ticket);
            }
        }
    }

    fn response(&self, session: &Rc<Session>, frame: &Frame<'_>) {
        if let Some(dcp) = session.dcp.get() {
            return self.dcp_response(dcp, frame);
        }
        tracing::debug!(conn = session.connection.id().0, opcode = frame.opcode().name(), "response ignored");
    }

    fn disconnected(&self, session: &Rc<Session>, connection: &Rc<Connection>) {
        if let Some(dcp) = session.dcp.get() {
            self.producer_gone(dcp);
        }
        if session.everywhere.get() {
            let connection = connection.id();
            self.connection_gone(connection);
            for core in self.other_cores().collect::<Vec<_>>() {
                self.send(core, Message::ConnectionGone { connection });
            }
        }
    }
}
