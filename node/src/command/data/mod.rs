//! Data commands, on the core that owns the vbucket.
//!
//! [`execute`] answers at once if memory knows the key. Otherwise it copies the request and goes on when the disk has
//! answered; the vbucket keeps what waits for the same key in order of arrival. A durable write answers when its level
//! is reached. A request for a pending vbucket waits until that is something else.
//!
//! Invariants
//! - Every request has exactly one end: a frame appended, nothing (a quiet one), a close, or one call of its [`Reply`].
//! - A change and the decision that allows it are one step.
//!
//! Cost: a GET or a miss in memory allocates nothing but what `out` may need to grow; a write allocates the new version.
//!
//! Does not know: sessions, sockets, other cores; the rules of documents are in `bucket::document`.

mod answer;
mod look;
mod operation;
mod park;
mod wait;

#[cfg(test)]
mod differential;
#[cfg(test)]
mod locked;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod with_meta;

pub use look::look;
pub(super) use operation::Operation;
#[cfg(test)]
pub(super) use park::WAIT_MAX;

use std::rc::Rc;

use ringbase_storage::types::Seqno;
use ringbase_storage::vbstore::{Lookup, PurgeLimits, VbStore};

use super::collections::fail_in;
use super::request::Request;
use super::respond::Responder;
use super::session::SessionView;
use crate::bucket::tally::count;
use crate::bucket::{BucketContext, Engine};
use crate::protocol::Status;
use crate::protocol::compact::CompactRequest;
use crate::protocol::dcp::signal::decode_seqno;
use crate::protocol::dcp::stream_request::encode_failover_log;
use crate::protocol::extras::ObservedSeqno;
use crate::protocol::key::KeyBuffer;
use crate::protocol::vbucket::encode_vbucket_state;

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is dealt with; its answer, if any, has been appended.
    Done,
    /// Its [`Reply`] will be used later, exactly once.
    Deferred,
    /// Nothing can be answered; close the connection.
    Close,
}

/// Takes the answer of a deferred request to its connection.
pub trait Reply {
    /// The answer: one frame, or nothing if the request was a quiet one that has nothing to say.
    fn send(self: Box<Self>, frame: &[u8]);

    /// No answer can be given; close the connection.
    fn close(self: Box<Self>);
}

/// Executes a data command on a vbucket of this core. `defer` makes the way for a late answer; it is called at most once,
/// and only if the outcome is [`Outcome::Deferred`].
#[inline]
pub fn execute(
    engine: &Engine,
    view: &SessionView,
    request: &Request<'_>,
    out: &mut Vec<u8>,
    defer: &mut dyn FnMut() -> Box<dyn Reply>,
) -> Outcome {
    let responder = Responder::of_view(&request.frame, view, request.received_ns);
    let Some(operation) = Operation::of(request.opcode()) else {
        return responder.fail(engine.env(), Status::NOT_SUPPORTED, out);
    };
    // A bucket that was selected a moment ago and is not here now is being deleted or emptied: the next try tells.
    let Some(bucket) = view.bucket.and_then(|id| engine.bucket(id)) else {
        return responder.fail(engine.env(), Status::ETMPFAIL, out);
    };
    let env = engine.env();
    let Some(store) = &bucket.vbucket(request.vbucket()) else {
        return responder.fail(env, Status::NOT_MY_VBUCKET, out);
    };
    if let Err(status) = operation::admit(operation, request, store, &bucket.context) {
        let is_later = status == Status::ETMPFAIL;
        if is_later && park::until_changed(&bucket.context, view, request, defer) {
            return Outcome::Deferred;
        }
        return responder.fail(env, status, out);
    }
    if operation == Operation::ObserveSeqno {
        return observe_seqno(store, request, &responder, engine, out);
    }
    if operation == Operation::AwaitSeqno {
        return await_seqno(store, &bucket.context, request, responder, out, defer);
    }
    if operation == Operation::Compact {
        return compact(store, &bucket.context, request, responder, out, defer);
    }
    if operation == Operation::State {
        let Some(state) = bucket.state(store.id()) else {
            return responder.fail(env, Status::NOT_MY_VBUCKET, out);
        };
        responder.success(env).value(&encode_vbucket_state(state)).encode(out);
        return Outcome::Done;
    }
    if operation == Operation::FailoverLog {
        let mut value = Vec::new();
        encode_failover_log(&store.failover_log(), &mut value);
        responder.success(env).value(&value).encode(out);
        return Outcome::Done;
    }
    let Some(key) = request.key else {
        return responder.fail(env, Status::EINVAL, out);
    };
    let context = &bucket.context;
    if operation::lacks_its_metadata(operation, request) {
        return Outcome::Close;
    }
    let prepared = match operation::prepare(operation, request, context) {
        Ok(prepared) => prepared,
        Err(status) => return fail_in(context, &responder, status, out),
    };
    let mut buffer: KeyBuffer = [0; _];
    let key = key.with_prefix(&mut buffer);
    let found = match store.lookup(key) {
        Lookup::Known(found) => found,
        Lookup::OnDisk => {
            if !wait::for_disk(store, context, view, request, key, defer) {
                count(&context.tally.ep_tmp_oom_errors);
                return responder.fail(env, Status::ETMPFAIL, out);
            }
            count(&context.tally.ep_bg_fetched);
            return Outcome::Deferred;
        }
    };
    match operation::perform(&prepared, store, context, key, &found) {
        Ok(answer) => {
            if let Some(timeout) = wait::commit_timeout(request, store, &answer) {
                wait::for_commit(store, context, responder, answer, timeout, defer());
                return Outcome::Deferred;
            }
            answer.encode(&responder, env, store, request.frame.key, out);
            Outcome::Done
        }
        Err(status) => fail_in(context, &responder, status, out),
    }
}

/// Answers when the seqno is durable, in whatever order the writes before it were sent. What lives in memory only never is.
fn await_seqno(
    store: &Rc<VbStore>,
    context: &Rc<BucketContext>,
    request: &Request<'_>,
    responder: Responder,
    out: &mut Vec<u8>,
    defer: &mut dyn FnMut() -> Box<dyn Reply>,
) -> Outcome {
    let env = &context.env;
    let seqno = match decode_seqno(request.frame.extras) {
        Ok(seqno) => seqno,
        Err(refusal) => return responder.fail(env, refusal.status, out),
    };
    if store.is_ephemeral() {
        return responder.fail(env, Status::NOT_SUPPORTED, out);
    }
    if store.persisted_seqno() < seqno {
        wait::for_seqno(store, context, responder, seqno, defer());
        return Outcome::Deferred;
    }
    responder.success(env).encode(out);
    Outcome::Done
}

/// Answers when the vbucket's shard is compacted, and what may go of the vbucket has gone. What lives in memory only has nothing to compact.
fn compact(
    store: &Rc<VbStore>,
    context: &Rc<BucketContext>,
    request: &Request<'_>,
    responder: Responder,
    out: &mut Vec<u8>,
    defer: &mut dyn FnMut() -> Box<dyn Reply>,
) -> Outcome {
    let asked = match CompactRequest::decode(request.frame.extras) {
        Ok(asked) => asked,
        Err(refusal) => return responder.fail(&context.env, refusal.status, out),
    };
    if store.is_ephemeral() {
        return responder.fail(&context.env, Status::NOT_SUPPORTED, out);
    }
    let before = if asked.drop_deletes { u32::MAX } else { u32::try_from(asked.before).unwrap_or(u32::MAX) };
    let up_to = if asked.up_to == Seqno(0) { Seqno(u64::MAX) } else { asked.up_to };
    wait::for_compaction(store, context, responder, PurgeLimits { before, up_to }, defer());
    Outcome::Deferred
}

/// What is known of the branch that the client names: how far it is durable, or where another one left it.
fn observe_seqno(
    store: &VbStore,
    request: &Request<'_>,
    responder: &Responder,
    engine: &Engine,
    out: &mut Vec<u8>,
) -> Outcome {
    let env = engine.env();
    let Ok(asked) = request.frame.value.try_into().map(u64::from_be_bytes) else {
        return responder.fail(env, Status::EINVAL, out);
    };
    let log = store.failover_log();
    let Some(index) = log.iter().position(|branch| branch.uuid.0 == asked) else {
        return responder.fail(env, Status::KEY_ENOENT, out);
    };
    let observed = ObservedSeqno {
        vbucket: store.id(),
        uuid: store.uuid(),
        persisted_seqno: store.persisted_seqno(),
        high_seqno: store.high_seqno(),
        // The log is newest first: the branch before it in the log began where it ended.
        older_branch: index.checked_sub(1).map(|newer| (log[index].uuid, log[newer].seqno)),
    };
    responder.success(env).value(&observed.encode()).encode(out);
    Outcome::Done
}
