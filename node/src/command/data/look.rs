//! Reading a document by a look at the newest versions, here or on another core, without the steps of a general operation.
//!
//! They are in a table that every core may look at. What the look finds there answers a read as the owner would, unless
//! something has to be written or decided: a document that is over, that is locked, or that is not in memory is the owner's.
//!
//! Invariants
//! - Whoever looks at a vbucket of another core has no unanswered request to it: a connection reads what it has written.
//!   That is for the caller to see to. On the owning core a look sees what the general way would see.
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

/// Answers a read, if a look may; false: [`execute`](super::execute) must, where the vbucket is.
#[inline]
pub fn look(engine: &Engine, view: &SessionView, request: &Request<'_>, out: &mut Vec<u8>) -> bool {
    let operation = match Operation::of(request.opcode()) {
        Some(operation @ (Operation::Get | Operation::GetWithKey)) => operation,
        _ => return false,
    };
    let Some(bucket) = view.bucket.and_then(|id| engine.bucket(id)) else { return false };
    let Some(table) = bucket.table(request.vbucket()) else { return false };
    let Some(key) = request.key else { return false };
    let collection = key.collection;
    if !bucket.context.has_collection(collection) {
        return false;
    }
    let mut buffer: KeyBuffer = [0; _];
    let key = key.with_prefix(&mut buffer);
    let pin = pin();
    let Some(item) = table.get(key, &pin) else { return false };
    // Few documents have an expiry: the clock is read for those only.
    if item.is_deleted() || item.expiry() != 0 && expiry::is_expired(item.expiry(), bucket.context.now()) {
        return false;
    }
    let tally = &bucket.context.tally;
    count(&tally.cmd_get);
    count(&tally.get_hits);
    count(&tally.vb_active_ops_get);
    bucket.context.count_use(collection, |usage| &usage.gets);
    let responder = Responder::of_view(&request.frame, view, request.received_ns);
    encode_document(&responder, engine.env(), operation, item.cas(), request.frame.key, &item, out);
    true
}
