//! What each data opcode does to its document.
//!
//! Invariants
//! - What can be refused without the document is refused before it is looked up.
//!
//! Does not know: how the answer is framed, where the document was found.

use ringbase_storage::collections::Subject;
use ringbase_storage::types::{Cas, Kind};
use ringbase_storage::vbstore::{Found, VbStore, WriteError};

use super::answer::{Answer, Detail};
use crate::auth::Role;
use crate::bucket::document::{Body, Direction, Document, End, Step, StoreMode};
use crate::bucket::foreign::{ForeignVersion, Terms};
use crate::bucket::tally::count;
use crate::bucket::{Access, BucketContext, Failure, Verdict, expiry};
use crate::command::request::Request;
use crate::protocol::extras::{ArithmeticExtras, StoreExtras, decode_u32};
use crate::protocol::with_meta::{MetaOptions, WithMetaExtras};
use crate::protocol::{CollectionId, Opcode, Refusal, Status};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::command) enum Operation {
    /// Give the value.
    Get,
    /// Give the value with its key.
    GetWithKey,
    /// Give the metadata, also of a tombstone.
    GetMeta,
    /// Set the expiry and give the value.
    GetAndTouch,
    /// Lock for a while and give the value.
    GetAndLock,
    /// End a lock.
    Unlock,
    /// Set the expiry.
    Touch,
    /// Store a value.
    Store(StoreMode),
    /// Add to a value.
    Concatenate(End),
    /// Move a counter.
    Count(Direction),
    /// Remove.
    Remove,
    /// Store a version that was made elsewhere; the flag: only if there is no document.
    Bring {
        /// See there.
        only_new: bool,
    },
    /// Store a deletion that was made elsewhere.
    BringDeletion,
    /// Say how far the vbucket is durable.
    ObserveSeqno,
    /// Wait until a seqno is durable.
    AwaitSeqno,
    /// Give the branches of the vbucket's history.
    FailoverLog,
    /// Give the value of a copy.
    GetCopy,
    /// Say what the vbucket is.
    State,
    /// Compact its shard, and let old tombstones go.
    Compact,
}

impl Operation {
    /// What `opcode` does, if it is a data command that this node executes.
    #[must_use]
    #[inline]
    pub(in crate::command) const fn of(opcode: Opcode) -> Option<Operation> {
        Some(match opcode {
            Opcode::GET | Opcode::GET_Q => Operation::Get,
            Opcode::GET_REPLICA => Operation::GetCopy,
            Opcode::GET_VBUCKET => Operation::State,
            Opcode::GET_K | Opcode::GET_KQ => Operation::GetWithKey,
            Opcode::SET | Opcode::SET_Q => Operation::Store(StoreMode::Set),
            Opcode::ADD | Opcode::ADD_Q => Operation::Store(StoreMode::Add),
            Opcode::REPLACE | Opcode::REPLACE_Q => Operation::Store(StoreMode::Replace),
            Opcode::DELETE | Opcode::DELETE_Q => Operation::Remove,
            Opcode::INCREMENT | Opcode::INCREMENT_Q => Operation::Count(Direction::Up),
            Opcode::DECREMENT | Opcode::DECREMENT_Q => Operation::Count(Direction::Down),
            Opcode::APPEND | Opcode::APPEND_Q => Operation::Concatenate(End::Append),
            Opcode::PREPEND | Opcode::PREPEND_Q => Operation::Concatenate(End::Prepend),
            Opcode::TOUCH => Operation::Touch,
            Opcode::GAT | Opcode::GAT_Q => Operation::GetAndTouch,
            Opcode::GET_LOCKED => Operation::GetAndLock,
            Opcode::UNLOCK_KEY => Operation::Unlock,
            Opcode::GET_META | Opcode::GETQ_META => Operation::GetMeta,
            Opcode::SET_WITH_META | Opcode::SETQ_WITH_META => Operation::Bring { only_new: false },
            Opcode::ADD_WITH_META | Opcode::ADDQ_WITH_META => Operation::Bring { only_new: true },
            Opcode::DEL_WITH_META | Opcode::DELQ_WITH_META => Operation::BringDeletion,
            Opcode::OBSERVE_SEQNO => Operation::ObserveSeqno,
            Opcode::SEQNO_PERSISTENCE => Operation::AwaitSeqno,
            Opcode::COMPACT_DB => Operation::Compact,
            Opcode::GET_FAILOVER_LOG | Opcode::DCP_GET_FAILOVER_LOG => Operation::FailoverLog,
            _ => return None,
        })
    }

    /// The least role that may do it.
    #[must_use]
    pub(in crate::command) const fn role(self) -> Role {
        match self {
            Operation::Get
            | Operation::GetWithKey
            | Operation::GetMeta
            | Operation::ObserveSeqno
            | Operation::AwaitSeqno
            | Operation::FailoverLog
            | Operation::GetCopy
            | Operation::State => Role::ReadOnly,
            Operation::GetAndTouch
            | Operation::GetAndLock
            | Operation::Unlock
            | Operation::Touch
            | Operation::Store(_)
            | Operation::Concatenate(_)
            | Operation::Count(_)
            | Operation::Remove
            | Operation::Bring { .. }
            | Operation::BringDeletion => Role::ReadWrite,
            Operation::Compact => Role::Admin,
        }
    }

    /// What it wants of its vbucket.
    #[must_use]
    #[inline]
    pub(in crate::command) const fn access(self) -> Access {
        match self {
            Operation::ObserveSeqno => Access::Progress,
            Operation::AwaitSeqno | Operation::FailoverLog | Operation::State | Operation::Compact => {
                Access::History
            }
            Operation::GetCopy => Access::Copies,
            Operation::Get
            | Operation::GetWithKey
            | Operation::GetMeta
            | Operation::GetAndTouch
            | Operation::GetAndLock
            | Operation::Unlock
            | Operation::Touch
            | Operation::Store(_)
            | Operation::Concatenate(_)
            | Operation::Count(_)
            | Operation::Remove
            | Operation::Bring { .. }
            | Operation::BringDeletion => Access::Documents,
        }
    }
}

/// An operation with its arguments, ready for the document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prepared<'a> {
    operation: Operation,
    collection: CollectionId,
    action: Action<'a>,
    cas: Cas,
    now: u32,
}

#[derive(Debug, Clone, Copy)]
enum Action<'a> {
    Read,
    ReadMeta { with_datatype: bool },
    Touch { expiry: u32 },
    Lock { seconds: u32 },
    Unlock,
    Store { mode: StoreMode, body: Body<'a>, keep_expiry: bool },
    Concatenate { end: End, added: &'a [u8] },
    Count(Step),
    Remove,
    Bring(ForeignVersion<'a>, Terms),
}

/// Decodes the arguments of a request and checks what needs no document.
///
/// # Errors
/// The status to answer.
#[inline]
pub(super) fn prepare<'a>(
    operation: Operation,
    request: &Request<'a>,
    bucket: &BucketContext,
) -> Result<Prepared<'a>, Status> {
    let now = bucket.now();
    let (extras, value) = (request.frame.extras, request.frame.value);
    let status = |refusal: Refusal| refusal.status;
    let collection = request.key.map(|key| key.collection).unwrap_or_default();
    let ttl_seconds_max = bucket.ttl_seconds_max(collection).ok_or(Status::UNKNOWN_COLLECTION)?;
    let absolute = |given| expiry::absolute(given, now, ttl_seconds_max).map_err(|_| Status::EXPIRY_OVERFLOW);
    let action = match operation {
        Operation::Get | Operation::GetWithKey | Operation::GetCopy => Action::Read,
        Operation::GetMeta => Action::ReadMeta { with_datatype: extras.first() == Some(&2) },
        Operation::Touch | Operation::GetAndTouch => {
            let expiry = absolute(decode_u32(extras).map_err(status)?)?;
            Action::Touch { expiry }
        }
        Operation::GetAndLock => {
            let asked = if extras.is_empty() { 0 } else { decode_u32(extras).map_err(status)? };
            Action::Lock { seconds: bucket.settings().lock_seconds(asked) }
        }
        Operation::Unlock => Action::Unlock,
        Operation::Store(mode) => {
            let StoreExtras { flags, expiry } = StoreExtras::decode(extras).map_err(status)?;
            if value.len() > bucket.settings().item_bytes_max {
                return Err(Status::E2BIG);
            }
            let body = Body { value, flags, expiry: absolute(expiry)? };
            Action::Store { mode, body, keep_expiry: request.framing.preserve_ttl }
        }
        Operation::Concatenate(end) => {
            if value.len() > bucket.settings().item_bytes_max {
                return Err(Status::E2BIG);
            }
            Action::Concatenate { end, added: value }
        }
        Operation::Count(direction) => {
            let ArithmeticExtras { delta, initial, expiry } =
                ArithmeticExtras::decode(extras).map_err(status)?;
            let create = match expiry {
                ArithmeticExtras::DO_NOT_CREATE => None,
                given => Some((initial, absolute(given)?)),
            };
            Action::Count(Step { direction, delta, create })
        }
        Operation::Remove => Action::Remove,
        Operation::Bring { .. } | Operation::BringDeletion => {
            let (mut version, terms) = decode_foreign(operation, request, bucket)?;
            if version.kind == Kind::Mutation {
                version.expiry = expiry::capped(version.expiry, now, ttl_seconds_max);
            }
            Action::Bring(version, terms)
        }
        Operation::ObserveSeqno
        | Operation::AwaitSeqno
        | Operation::FailoverLog
        | Operation::State
        | Operation::Compact => {
            return Err(Status::EINVAL);
        }
    };
    Ok(Prepared { operation, collection, action, cas: request.frame.cas(), now })
}

/// The version that a request with metadata brings, and on which terms.
fn decode_foreign<'a>(
    operation: Operation,
    request: &Request<'a>,
    bucket: &BucketContext,
) -> Result<(ForeignVersion<'a>, Terms), Status> {
    let extras = WithMetaExtras::decode(request.frame.extras).map_err(|refusal| refusal.status)?;
    let options = extras.options();
    // Whoever writes to a bucket that goes by time says that it knows; elsewhere that makes no sense.
    let by_time = bucket.settings().conflict_resolution.is_by_time();
    let accepts = options.has(MetaOptions::FORCE_ACCEPT);
    if accepts && !by_time || by_time && !accepts && !options.has(MetaOptions::REGENERATE_CAS) {
        return Err(Status::EINVAL);
    }
    let kind = match operation {
        Operation::BringDeletion if options.has(MetaOptions::IS_EXPIRATION) => Kind::Expiration,
        Operation::BringDeletion => Kind::Deletion,
        _ => Kind::Mutation,
    };
    let version = ForeignVersion {
        value: extras.value_of(request.frame.value).ok_or(Status::EINVAL)?,
        datatype: request.frame.datatype(),
        flags: extras.flags,
        expiry: extras.expiry,
        revid: extras.revid,
        cas: extras.cas,
        kind,
    };
    let terms = Terms {
        only_new: operation == Operation::Bring { only_new: true },
        resolves: !options.skips_resolution(),
        fresh_cas: options.has(MetaOptions::REGENERATE_CAS),
        cas: request.frame.cas(),
    };
    Ok((version, terms))
}

/// Whether a request claims more bytes of metadata behind its value than it has: nothing else in it can be trusted then.
#[must_use]
pub(super) fn lacks_its_metadata(operation: Operation, request: &Request<'_>) -> bool {
    let claims = matches!(operation, Operation::Bring { .. } | Operation::BringDeletion);
    claims
        && WithMetaExtras::decode(request.frame.extras)
            .is_ok_and(|extras| extras.value_of(request.frame.value).is_none())
}

/// Whether a request may be carried out on its vbucket now, which may have changed since it came.
///
/// # Errors
/// The status to answer.
#[inline]
pub(super) fn admit(
    operation: Operation,
    request: &Request<'_>,
    store: &VbStore,
    bucket: &BucketContext,
) -> Result<(), Status> {
    match bucket.states.verdict(store.id(), operation.access()) {
        Verdict::Admitted if store.has_ended() => return Err(Status::NOT_MY_VBUCKET),
        Verdict::Admitted => {}
        Verdict::Later => return Err(Status::ETMPFAIL),
        Verdict::Refused => return Err(Status::NOT_MY_VBUCKET),
    }
    // This node has nobody who could hold a copy.
    if request.framing.durability.is_some() && bucket.needs_others(store.id()) {
        return Err(Status::DURABILITY_IMPOSSIBLE);
    }
    Ok(())
}

/// Does it to the document whose newest version is `found`.
///
/// # Errors
/// The status to answer.
#[inline]
pub(super) fn perform(
    prepared: &Prepared<'_>,
    store: &VbStore,
    bucket: &BucketContext,
    key: &[u8],
    found: &Found,
) -> Result<Answer, Status> {
    let Prepared { operation, collection, action, cas, now } = *prepared;
    // The event that creates the collection comes before its first document.
    let writes = operation.role() == Role::ReadWrite;
    if writes && collection != CollectionId::DEFAULT && !store.is_open(Subject::Collection(collection.0)) {
        return Err(Status::ETMPFAIL);
    }
    let document = Document { store, bucket, key, found, now };
    let tally = &bucket.tally;
    bucket.count_use(collection, |usage| match operation {
        Operation::Remove | Operation::BringDeletion => &usage.deletes,
        _ if writes => &usage.stores,
        _ => &usage.gets,
    });
    let done = match action {
        Action::Read => return read(&document, operation),
        Action::ReadMeta { with_datatype } => {
            count(&tally.ep_num_ops_get_meta);
            let Found::Version(item) = found else { return Err(Status::KEY_ENOENT) };
            let live = document.live();
            let detail = Detail::Meta { deleted: live.is_none(), with_datatype };
            let cas = live.map_or(item.cas(), |item| document.shown_cas(item));
            return Ok(Answer { operation, cas, item: item.clone(), detail });
        }
        Action::Lock { seconds } => {
            let (item, cas) = document.lock(seconds).map_err(status_of)?;
            count(&tally.vb_active_ops_get);
            return Ok(Answer { operation, cas, item: item.clone(), detail: Detail::None });
        }
        Action::Unlock => document.unlock(cas).cloned(),
        Action::Touch { expiry } => document.touch(expiry),
        Action::Store { mode, body, keep_expiry } => document.store(mode, cas, body, keep_expiry),
        Action::Concatenate { end, added } => document.concatenate(end, cas, added),
        Action::Count(step) => {
            let (item, number) = document.count(step).map_err(status_of)?;
            return Ok(Answer { operation, cas: item.cas(), item, detail: Detail::Number(number) });
        }
        Action::Remove => document.remove(cas),
        Action::Bring(version, terms) => document.bring(version, terms),
    };
    if operation == Operation::GetAndTouch {
        count(&tally.cmd_get);
        match done {
            Err(Failure::Absent) => count(&tally.get_misses),
            Ok(_) => count(&tally.get_hits),
            Err(_) => {}
        }
    }
    let item = done.map_err(status_of)?;
    Ok(Answer { operation, cas: item.cas(), item, detail: Detail::None })
}

#[inline]
fn read(document: &Document<'_>, operation: Operation) -> Result<Answer, Status> {
    let tally = &document.bucket.tally;
    count(&tally.cmd_get);
    let Some(item) = document.live() else {
        count(&tally.get_misses);
        return Err(Status::KEY_ENOENT);
    };
    count(&tally.get_hits);
    count(&tally.vb_active_ops_get);
    Ok(Answer { operation, cas: document.shown_cas(item), item: item.clone(), detail: Detail::None })
}

/// The status that tells a client about a failure.
fn status_of(failure: Failure) -> Status {
    match failure {
        Failure::Absent => Status::KEY_ENOENT,
        Failure::Exists => Status::KEY_EEXISTS,
        Failure::NotStored => Status::NOT_STORED,
        Failure::Locked => Status::LOCKED,
        Failure::NotLocked => Status::NOT_LOCKED,
        Failure::CasInvalid { .. } => Status::CAS_VALUE_INVALID,
        Failure::CannotLock(_) => Status::ETMPFAIL,
        Failure::NotACounter => Status::DELTA_BADVAL,
        Failure::TooLong { .. } | Failure::Write(WriteError::TooLong { .. }) => Status::E2BIG,
        Failure::Write(WriteError::Busy { .. } | WriteError::NoRoom | WriteError::Gone) => Status::ETMPFAIL,
        Failure::Write(error) => {
            tracing::error!(%error, "a change was not accepted");
            Status::EINTERNAL
        }
    }
}
