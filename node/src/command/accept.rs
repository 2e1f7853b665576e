//! The first look at every frame: is it a request, is it well formed, may this connection ask it, and where is it executed?
//!
//! The checks come in the protocol's order; the first failure answers. Commands that need no vbucket are executed here.
//!
//! Invariants
//! - A request that is handed out has a bucket, a known collection, a user who may make it, and a vbucket below the
//!   bucket's count.
//! - An opcode that this node does not execute is answered; it never ends the connection.
//!
//! Cost: a GET passes with compares and one table look-up; nothing is allocated.
//!
//! Does not know: sockets, which core owns a vbucket, what data commands do.

use super::bucket::BucketJob;
use super::data::{Operation, Outcome};
use super::ioctl::TraceDumpJob;
use super::param::{Asked, ParamChange};
use super::request::Request;
use super::respond::Responder;
use super::seqnos::VbSeqnosJob;
use super::session::Session;
use super::stat::StatJob;
use super::{bucket, cluster, collections, connection, ioctl, param, sasl, seqnos, stat};
use crate::auth::Role;
use crate::bucket::Access;
use crate::protocol::{CloseReason, Frame, Incoming, Opcode, Refusal, Status, admit};

/// What becomes of a frame.
#[derive(Debug)]
pub enum Next<'a> {
    /// It is dealt with; whatever is to be sent has been appended.
    Done,
    /// Send what has been appended, then close the connection.
    Close(Closing),
    /// A data command: [`super::execute`] on the core that owns its vbucket.
    Vbucket(Request<'a>),
    /// A vbucket is to be changed, by the core that owns it.
    VbucketChange(Request<'a>),
    /// A range scan command, for the core that owns its vbucket.
    RangeScan(Request<'a>),
    /// A DCP command.
    Dcp(Request<'a>),
    /// Statistics: gather from every core, then [`StatJob::answer`].
    Stat(StatJob),
    /// How far all vbuckets are: ask every core, then [`VbSeqnosJob::answer`].
    VbSeqnos(VbSeqnosJob),
    /// A parameter changes on every core.
    SetParam(ParamChange),
    /// A bucket comes, goes or changes.
    Bucket(BucketJob),
    /// A dump of the trace is being made: [`TraceDumpJob::answer`] when it is done.
    TraceDump(TraceDumpJob),
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Closing {
    /// The client said so.
    #[error("the client quits")]
    Quit,
    /// It does not speak this protocol, or not now.
    #[error("protocol violated")]
    Protocol(#[from] CloseReason),
    /// The answer is a status that a client without XERROR would not understand.
    #[error("the client cannot be told its status")]
    Untellable,
}

/// Where an opcode is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    /// On the connection's core.
    Connection,
    /// On the core of its vbucket, if the user's role is at least this.
    Vbucket(Role),
    /// There too, by an administrator: the vbucket itself changes.
    VbucketChange,
    /// There too, by the range scans.
    RangeScan,
    /// On the connection's core, which asks that of the vbucket for a stream.
    Dcp,
    /// On all cores.
    Stat,
    /// On all cores.
    VbSeqnos,
    /// On all cores, by an administrator.
    SetParam,
    /// On all shards, by an administrator.
    Bucket,
    /// On the connection's core, by an administrator; a dump by a thread of its own.
    Ioctl,
    /// Nowhere on this node.
    Nowhere,
}

const fn home_of(opcode: Opcode) -> Home {
    if let Some(operation) = Operation::of(opcode) {
        return Home::Vbucket(operation.role());
    }
    match opcode {
        Opcode::RANGE_SCAN_CREATE | Opcode::RANGE_SCAN_CONTINUE | Opcode::RANGE_SCAN_CANCEL => {
            Home::RangeScan
        }
        Opcode::SET_VBUCKET | Opcode::DEL_VBUCKET => Home::VbucketChange,
        Opcode::DCP_OPEN
        | Opcode::DCP_CONTROL
        | Opcode::DCP_STREAM_REQ
        | Opcode::DCP_ADD_STREAM
        | Opcode::DCP_CLOSE_STREAM
        | Opcode::DCP_BUFFER_ACKNOWLEDGEMENT
        | Opcode::DCP_NOOP => Home::Dcp,
        Opcode::STAT => Home::Stat,
        Opcode::GET_ALL_VB_SEQNOS => Home::VbSeqnos,
        Opcode::SET_PARAM => Home::SetParam,
        Opcode::CREATE_BUCKET | Opcode::DELETE_BUCKET | Opcode::COLLECTIONS_SET_MANIFEST => Home::Bucket,
        Opcode::IOCTL_GET | Opcode::IOCTL_SET => Home::Ioctl,
        Opcode::HELLO
        | Opcode::SASL_LIST_MECHS
        | Opcode::SASL_AUTH
        | Opcode::SASL_STEP
        | Opcode::SELECT_BUCKET
        | Opcode::GET_CLUSTER_CONFIG
        | Opcode::GET_ERROR_MAP
        | Opcode::NOOP
        | Opcode::VERSION
        | Opcode::QUIT
        | Opcode::QUIT_Q
        | Opcode::VERBOSITY
        | Opcode::LIST_BUCKETS
        | Opcode::COLLECTIONS_GET_MANIFEST
        | Opcode::COLLECTIONS_GET_ID
        | Opcode::COLLECTIONS_GET_SCOPE_ID => Home::Connection,
        _ => Home::Nowhere,
    }
}

/// Whether a request with `opcode` must not start before all earlier ones of its connection are answered, because it
/// sees more than one key: those on one key are kept in order by the vbucket.
#[must_use]
pub fn must_run_alone(opcode: Opcode) -> bool {
    match home_of(opcode) {
        Home::Vbucket(_) => matches!(opcode, Opcode::OBSERVE_SEQNO),
        Home::RangeScan => opcode == Opcode::RANGE_SCAN_CREATE,
        // The answer to a stream request comes before the stream's messages, which no request waits for.
        Home::Dcp => matches!(opcode, Opcode::DCP_STREAM_REQ | Opcode::DCP_CLOSE_STREAM),
        Home::VbucketChange | Home::Stat | Home::VbSeqnos | Home::SetParam | Home::Bucket => true,
        Home::Connection | Home::Ioctl | Home::Nowhere => false,
    }
}

/// What a request with `opcode` wants of its vbucket, if the state of that decides whether it is admitted.
#[must_use]
#[inline]
pub fn access_of(opcode: Opcode) -> Option<Access> {
    match Operation::of(opcode) {
        Some(operation) => Some(operation.access()),
        None if home_of(opcode) == Home::RangeScan => Some(Access::RangeScan),
        None => None,
    }
}

/// Whether a DCP connection no longer takes it.
fn is_before_dcp(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::SASL_LIST_MECHS | Opcode::SASL_AUTH | Opcode::SASL_STEP | Opcode::SELECT_BUCKET)
}

impl Session {
    /// Takes a frame that was received at `received_ns` of the host's monotonic clock; appends to `out` what is
    /// answered at once.
    #[inline]
    pub fn accept<'a>(&mut self, frame: Frame<'a>, received_ns: u64, out: &mut Vec<u8>) -> Next<'a> {
        self.follow_buckets();
        match admit(&frame.header, self.is_authenticated()) {
            Ok(Incoming::Request) => {}
            Ok(Incoming::Response | Incoming::Ignored) => return Next::Done,
            Ok(Incoming::Refused(status)) => {
                let responder = Responder::new(&frame, self.features, received_ns);
                responder.refuse(&self.shared.env, Refusal::new(status, ""), out);
                return Next::Done;
            }
            Err(reason) => return Next::Close(Closing::Protocol(reason)),
        }
        let responder = Responder::new(&frame, self.features, received_ns);
        let request = match Request::validate(frame, &self.view().connection_state(), received_ns) {
            Ok(request) => request,
            Err(refusal) => {
                responder.refuse(&self.shared.env, refusal, out);
                return Next::Done;
            }
        };
        let home = home_of(request.opcode());
        let allowed = match home {
            Home::Vbucket(_) if request.opcode() == Opcode::DCP_GET_FAILOVER_LOG && !self.is_dcp() => {
                Err(responder.fail(&self.shared.env, Status::EINVAL, out))
            }
            Home::Vbucket(role) => self.check_document(&request, &responder, role, out),
            Home::VbucketChange => self.check_document(&request, &responder, Role::Admin, out),
            Home::RangeScan => self.check_document(&request, &responder, Role::ReadOnly, out),
            Home::Dcp => self.check_dcp(&request, &responder, out),
            Home::Connection
            | Home::Stat
            | Home::VbSeqnos
            | Home::SetParam
            | Home::Bucket
            | Home::Ioctl
            | Home::Nowhere => Ok(()),
        };
        let handled = match (allowed, home) {
            (Ok(()), Home::Vbucket(_)) => return Next::Vbucket(request),
            (Ok(()), Home::VbucketChange) => return Next::VbucketChange(request),
            (Ok(()), Home::RangeScan) => return Next::RangeScan(request),
            (Ok(()), Home::Dcp) => return Next::Dcp(request),
            (Err(outcome), _) => outcome,
            (Ok(()), Home::Stat) => match stat::begin(self, &request, &responder, out) {
                Ok(job) => return Next::Stat(job),
                Err(outcome) => outcome,
            },
            (Ok(()), Home::VbSeqnos) => match seqnos::begin(self, &request, &responder, out) {
                Ok(job) => return Next::VbSeqnos(job),
                Err(outcome) => outcome,
            },
            (Ok(()), Home::SetParam) => match param::begin(self, &request, &responder, out) {
                Ok(Asked::Node(change)) => return Next::SetParam(change),
                Ok(Asked::Bucket(job)) => return Next::Bucket(job),
                Err(outcome) => outcome,
            },
            (Ok(()), Home::Bucket) => match bucket::begin(self, &request, &responder, out) {
                Ok(job) => return Next::Bucket(job),
                Err(outcome) => outcome,
            },
            (Ok(()), Home::Ioctl) => match ioctl::begin(self, &request, &responder, out) {
                Ok(job) => return Next::TraceDump(job),
                Err(outcome) => outcome,
            },
            (Ok(()), Home::Connection) => {
                if matches!(request.opcode(), Opcode::QUIT | Opcode::QUIT_Q) {
                    connection::quit(self, &responder, out);
                    return Next::Close(Closing::Quit);
                }
                if self.is_dcp() && is_before_dcp(request.opcode()) {
                    let context = "A DCP connection keeps its user and its bucket";
                    responder.refuse(&self.shared.env, Refusal::new(Status::NOT_SUPPORTED, context), out);
                    Outcome::Done
                } else {
                    self.run(&request, &responder, out)
                }
            }
            (Ok(()), Home::Nowhere) => {
                let context = "The command is known, but this node does not execute it";
                responder.refuse(&self.shared.env, Refusal::new(Status::NOT_SUPPORTED, context), out);
                Outcome::Done
            }
        };
        match handled {
            Outcome::Done | Outcome::Deferred => Next::Done,
            Outcome::Close => Next::Close(Closing::Untellable),
        }
    }

    /// What must hold of a DCP command, beside its form. Only a stream request is about a vbucket; the others may name any.
    fn check_dcp(
        &mut self,
        request: &Request<'_>,
        responder: &Responder,
        out: &mut Vec<u8>,
    ) -> Result<(), Outcome> {
        let view = self.view();
        match request.opcode() {
            Opcode::DCP_STREAM_REQ => self.check_document(request, responder, Role::ReadOnly, out),
            _ if view.role.is_none() => Err(responder.fail(&self.shared.env, Status::EACCESS, out)),
            Opcode::DCP_OPEN if view.bucket.is_none() => {
                Err(responder.fail(&self.shared.env, Status::NO_BUCKET, out))
            }
            _ => Ok(()),
        }
    }

    /// What must hold of a request for a vbucket, beside its form.
    #[inline]
    fn check_document(
        &mut self,
        request: &Request<'_>,
        responder: &Responder,
        role: Role,
        out: &mut Vec<u8>,
    ) -> Result<(), Outcome> {
        let view = self.view();
        let may = view.role.is_some_and(|has| has >= role);
        // Nobody here holds the privilege to act for others.
        let acts_for_other =
            request.framing.impersonate.is_some() || request.framing.impersonate_token.is_some();
        let env = &self.shared.env;
        if !may || acts_for_other {
            return Err(responder.fail(env, Status::EACCESS, out));
        }
        if view.bucket.is_none() {
            return Err(responder.fail(env, Status::NO_BUCKET, out));
        }
        if self.is_emptying() {
            return Err(responder.fail(env, Status::ETMPFAIL, out));
        }
        if request.key.is_some_and(|key| !self.manifest().has(key.collection)) {
            let uid = self.manifest().uid();
            return Err(collections::unknown(env, responder, Status::UNKNOWN_COLLECTION, uid, out));
        }
        if request.vbucket().0 >= self.shared.vbucket_count() {
            return Err(cluster::not_my_vbucket(self, responder, out));
        }
        Ok(())
    }

    /// Refuses a request whose vbucket is not here, or is not what the request needs, with the cluster map.
    pub fn not_my_vbucket(&mut self, request: &Request<'_>, out: &mut Vec<u8>) {
        let responder = Responder::new(&request.frame, self.features, request.received_ns);
        let _ = cluster::not_my_vbucket(self, &responder, out);
    }

    /// Executes a command of the connection itself.
    fn run(&mut self, request: &Request<'_>, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
        match request.opcode() {
            Opcode::HELLO => connection::hello(self, request, responder, out),
            Opcode::SASL_LIST_MECHS => sasl::list(self, responder, out),
            Opcode::SASL_AUTH => sasl::start(self, request, responder, out),
            Opcode::SASL_STEP => sasl::step(self, request, responder, out),
            Opcode::SELECT_BUCKET => connection::select_bucket(self, request, responder, out),
            Opcode::GET_CLUSTER_CONFIG => cluster::get_config(self, request, responder, out),
            Opcode::GET_ERROR_MAP => connection::error_map(self, request, responder, out),
            Opcode::NOOP => connection::noop(self, responder, out),
            Opcode::VERSION => connection::version(self, responder, out),
            Opcode::VERBOSITY => connection::verbosity(self, responder, out),
            Opcode::LIST_BUCKETS => connection::list_buckets(self, responder, out),
            Opcode::COLLECTIONS_GET_MANIFEST => collections::get_manifest(self, responder, out),
            Opcode::COLLECTIONS_GET_ID => collections::get_id(self, request, responder, out),
            Opcode::COLLECTIONS_GET_SCOPE_ID => collections::get_scope_id(self, request, responder, out),
            _ => unreachable!("home_of names only these for a connection"),
        }
    }
}
