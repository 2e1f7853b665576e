//! Requests that cannot be answered at once: the disk must be read, or a commit waited for.
//!
//! Invariants
//! - Requests for the same key go on in the order in which they came; a reply is used exactly once.
//! - The requests that wait for the disk hold a bounded number of bytes; one more is refused for a moment.
//! - A durable write whose level is not reached in time, or never will be, is ambiguous: it may still become durable.
//!
//! Cost: a copy of the request and a few allocations for a read; a task and a timer for a commit.
//!
//! Does not know: how many requests may wait at once; the connection bounds that.

use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_lite::future;
use ringbase_storage::reader::ReadError;
use ringbase_storage::types::Seqno;
use ringbase_storage::vbstore::{Found, PurgeLimits, VbStore};

use super::answer::Answer;
use super::operation::{Operation, admit, perform, prepare};
use super::{Outcome, Reply};
use crate::bucket::context::{BucketContext, WaitingRoom};
use crate::command::collections::fail_in;
use crate::command::request::Request;
use crate::command::respond::Responder;
use crate::command::session::SessionView;
use crate::protocol::Status;
use crate::protocol::framing::DurabilityLevel;
use crate::protocol::key::KeyBuffer;

/// How long a durable write waits if its request does not say.
const DURABILITY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long SEQNO_PERSISTENCE waits.
const SEQNO_TIMEOUT: Duration = Duration::from_secs(30);

/// A request that waits for the disk.
struct Waiting {
    bytes: Vec<u8>,
    received_ns: u64,
    view: SessionView,
    bucket: Rc<BucketContext>,
    store: Weak<VbStore>,
    reply: Box<dyn Reply>,
    room: WaitingRoom,
}

/// Goes on with `request` when the disk has said what the key's newest version is. `false`: too much waits already.
#[must_use]
pub(super) fn for_disk(
    store: &Rc<VbStore>,
    bucket: &Rc<BucketContext>,
    view: &SessionView,
    request: &Request<'_>,
    key: &[u8],
    defer: &mut dyn FnMut() -> Box<dyn Reply>,
) -> bool {
    let Some(room) = bucket.waiting_room(request.frame.frame_bytes()) else { return false };
    let mut bytes = Vec::new();
    request.copy(&mut bytes);
    let waiting = Waiting {
        bytes,
        received_ns: request.received_ns,
        view: *view,
        bucket: bucket.clone(),
        store: Rc::downgrade(store),
        reply: defer(),
        room,
    };
    store.with_key(key, Box::new(move |store, found| waiting.go_on(store, found)));
    true
}

impl Waiting {
    fn go_on(self, store: &VbStore, found: Result<Found, ReadError>) {
        let Waiting { bytes, received_ns, view, bucket, store: shared, reply, room } = self;
        let request = Request::reread(&bytes, &view, received_ns).expect("it is a copy of a valid request");
        let operation = Operation::of(request.opcode()).expect("only a data command waits for a key");
        let responder = Responder::of_view(&request.frame, &view, received_ns);
        let env = &bucket.env;
        let mut frame = Vec::new();
        let outcome = match act(operation, &request, store, &bucket, found) {
            Ok(answer) => {
                if let Some(timeout) = commit_timeout(&request, store, &answer)
                    && let Some(shared) = shared.upgrade()
                {
                    return for_commit(&shared, &bucket, responder, answer, timeout, reply);
                }
                answer.encode(&responder, env, store, request.frame.key, &mut frame);
                Outcome::Done
            }
            Err(status) => fail_in(&bucket, &responder, status, &mut frame),
        };
        drop(room);
        finish(outcome, reply, &frame);
    }
}

fn act(
    operation: Operation,
    request: &Request<'_>,
    store: &VbStore,
    bucket: &BucketContext,
    found: Result<Found, ReadError>,
) -> Result<Answer, Status> {
    let found = found.map_err(|error| {
        tracing::error!(vbucket = store.id().0, %error, "a document could not be read");
        Status::EINTERNAL
    })?;
    admit(operation, request, store, bucket)?;
    let key = request.key.ok_or(Status::EINVAL)?;
    let mut buffer: KeyBuffer = [0; _];
    let prepared = prepare(operation, request, bucket)?;
    perform(&prepared, store, bucket, key.with_prefix(&mut buffer), &found)
}

fn finish(outcome: Outcome, reply: Box<dyn Reply>, frame: &[u8]) {
    match outcome {
        Outcome::Done | Outcome::Deferred => reply.send(frame),
        Outcome::Close => reply.close(),
    }
}

/// Answers that it is done, or that the client may try again.
fn done_or_later(is_done: bool, bucket: &BucketContext, responder: &Responder, reply: Box<dyn Reply>) {
    let mut frame = Vec::new();
    let outcome = if is_done {
        responder.success(&bucket.env).encode(&mut frame);
        Outcome::Done
    } else {
        responder.fail(&bucket.env, Status::ETMPFAIL, &mut frame)
    };
    finish(outcome, reply, &frame);
}

/// How long the answer has to wait for a commit; `None` if it is due now. There are no replicas, so the first level is
/// reached in memory and the others on this disk.
pub(super) fn commit_timeout(request: &Request<'_>, store: &VbStore, answer: &Answer) -> Option<Duration> {
    let durability = request.framing.durability?;
    match durability.level {
        DurabilityLevel::Majority => None,
        DurabilityLevel::MajorityAndPersistOnMaster | DurabilityLevel::PersistToMajority => {
            let timeout = durability.timeout_ms.map(|ms| Duration::from_millis(u64::from(ms)));
            (store.persisted_seqno() < answer.item.seqno()).then_some(timeout.unwrap_or(DURABILITY_TIMEOUT))
        }
    }
}

/// Answers when the version is durable.
pub(super) fn for_commit(
    store: &Rc<VbStore>,
    bucket: &Rc<BucketContext>,
    responder: Responder,
    answer: Answer,
    timeout: Duration,
    reply: Box<dyn Reply>,
) {
    let (store, host, under_way) = (store.clone(), bucket.env.clone(), bucket.under_way());
    bucket.env.spawn("durable write", async move {
        let persisted = store.wait_persisted(answer.item.seqno());
        let in_time = future::or(persisted, async {
            host.spawn.sleep(timeout).await;
            false
        });
        let mut frame = Vec::new();
        let outcome = if in_time.await {
            answer.encode(&responder, &host, &store, &[], &mut frame);
            Outcome::Done
        } else {
            responder.fail(&host, Status::SYNC_WRITE_AMBIGUOUS, &mut frame)
        };
        finish(outcome, reply, &frame);
        drop(under_way);
    });
}

/// Answers when the shard is compacted; if it fails, the client may try again elsewhere.
pub(super) fn for_compaction(
    store: &Rc<VbStore>,
    bucket: &Rc<BucketContext>,
    responder: Responder,
    limits: PurgeLimits,
    reply: Box<dyn Reply>,
) {
    let (store, bucket, under_way) = (store.clone(), bucket.clone(), bucket.under_way());
    bucket.env.clone().spawn("compaction", async move {
        store.want_purge(limits);
        let is_done = store.compact().await;
        done_or_later(is_done, &bucket, &responder, reply);
        drop(under_way);
    });
}

/// Answers when `seqno` is durable; if that takes too long, or never will be, the client may try again.
pub(super) fn for_seqno(
    store: &Rc<VbStore>,
    bucket: &Rc<BucketContext>,
    responder: Responder,
    seqno: Seqno,
    reply: Box<dyn Reply>,
) {
    let (store, bucket, under_way) = (store.clone(), bucket.clone(), bucket.under_way());
    bucket.env.clone().spawn("seqno persistence", async move {
        // Whoever deletes the bucket does not wait for a seqno that may never come.
        let withdrawn = async {
            while !bucket.is_withdrawn() {
                bucket.changed().await;
            }
            false
        };
        let too_late = future::or(withdrawn, async {
            bucket.env.spawn.sleep(SEQNO_TIMEOUT).await;
            false
        });
        let in_time = future::or(store.wait_persisted(seqno), too_late).await;
        done_or_later(in_time, &bucket, &responder, reply);
        drop(under_way);
    });
}
