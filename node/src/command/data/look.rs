//! Reading a document that another core owns, without asking that core.
//!
//! Its newest version is in a table that every core may look at. What the look finds there answers a read as the owner would, unless something has to be
//! written or decided: a document that is over, that is locked, or that is not in memory is the owner's.
//!
//! Invariants
//! - Whoever looks has no unanswered request to the vbucket: a connection reads what it has written. That is for the caller to see to.
//!
//! Cost: one pin, no message, nothing allocated but what `out` needs to grow.
//! Does not know: which core owns the vbucket.

use ringbase_storage::epoch::pin;

use super::answer::encode_document;
use super::operation::Operation;
use crate::bucket::tally::count;
use crate::bucket::{Engine, expiry};
use crate::command::request::Request;
use crate::command::respond::Responder;
use crate::command::session::SessionView;
use crate::protocol::key::KeyBuffer;

/// Answers a read of a vbucket on another core, if a look may; false: the owner must be asked.
#[inline]
pub fn look(engine: &Engine, view: &SessionView, request: &Request<'_>, out: &mut Vec<u8>) -> bool {
    let operation = match Operation::of(request.opcode()) {
        Some(operation @ (Operation::Get | Operation::GetWithKey)) => operation,
        _ => return false,
    };
    let Some(bucket) = view.bucket.and_then(|id| engine.bucket(id)) else { return false };
    let Some(table) = bucket.shared(request.vbucket()).and_then(|vbucket| vbucket.table()) else {
        return false;
    };
    let Some(key) = request.key else { return false };
    let mut buffer: KeyBuffer = [0; _];
    let key = key.with_prefix(&mut buffer);
    let pin = pin();
    let Some(item) = table.get(key, &pin) else { return false };
    if item.is_deleted() || expiry::is_expired(item.expiry(), bucket.context.now()) {
        return false;
    }
    let tally = &bucket.context.tally;
    count(&tally.cmd_get);
    count(&tally.get_hits);
    count(&tally.vb_active_ops_get);
    let responder = Responder::of_view(&request.frame, view, request.received_ns);
    encode_document(&responder, engine.env(), operation, request.frame.key, &item, out);
    true
}
