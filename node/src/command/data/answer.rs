//! The successful answers of data commands.
//!
//! Invariants
//! - A mutation carries its token iff the connection asked for tokens; touching never does.
//! - A lock's CAS is told to whoever locked the document; other readers are told that it is locked.
//! - A removal tells the tombstone's CAS only together with a token: clients without tokens expect 0 there.
//! - A value is a body, whatever xattrs lie in front of it.
//!
//! Does not know: failures, when the answer is due.

use ringbase_storage::env::Env;
use ringbase_storage::item::Item;
use ringbase_storage::types::Cas;
use ringbase_storage::vbstore::VbStore;

use super::operation::Operation;
use crate::bucket::document::parts_of;
use crate::command::respond::Responder;
use crate::protocol::extras::MutationToken;
use crate::protocol::{Datatype, Feature};

/// What an operation leaves for its answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// What was done.
    pub(super) operation: Operation,
    /// The CAS to tell: the version's, a lock's, or that the document is locked.
    pub(super) cas: Cas,
    /// The version read or written.
    pub(super) item: Item,
    /// What else there is to say.
    pub(super) detail: Detail,
}

/// What a version does not say by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    None,
    /// The counter.
    Number(u64),
    /// For metadata: whether the document is gone (removed or expired), and whether the client asked for the datatype.
    Meta {
        deleted: bool,
        with_datatype: bool,
    },
}

/// Appends the answer of a read.
#[inline]
pub(super) fn encode_document(
    responder: &Responder,
    env: &Env,
    operation: Operation,
    cas: Cas,
    key: &[u8],
    item: &Item,
    out: &mut Vec<u8>,
) {
    let key = if operation == Operation::GetWithKey { key } else { &[] };
    let (flags, datatype) = (item.flags().to_be_bytes(), responder.visible(Datatype(item.datatype())));
    let response = responder.success(env).cas(cas).datatype(datatype);
    response.extras(&flags).key(key).value(parts_of(item).1).encode(out);
}

impl Answer {
    /// Appends the frame, or nothing for a quiet opcode. `key` is the key as it was received.
    #[inline]
    pub(super) fn encode(
        &self,
        responder: &Responder,
        env: &Env,
        store: &VbStore,
        key: &[u8],
        out: &mut Vec<u8>,
    ) {
        if responder.opcode().is_quiet_on_success() {
            return;
        }
        let meta = &self.item.meta();
        let response = responder.success(env);
        match self.operation {
            Operation::Get
            | Operation::GetWithKey
            | Operation::GetCopy
            | Operation::GetAndTouch
            | Operation::GetAndLock => {
                encode_document(responder, env, self.operation, self.cas, key, &self.item, out);
            }
            Operation::GetMeta => {
                let (extras, len) = self.meta_extras();
                response.cas(self.cas).extras(&extras[..len]).encode(out);
            }
            Operation::Unlock => response.encode(out),
            Operation::Touch => response.cas(self.cas).encode(out),
            Operation::Store(_)
            | Operation::Concatenate(_)
            | Operation::Count(_)
            | Operation::Remove
            | Operation::Bring { .. }
            | Operation::BringDeletion => {
                let number = match self.detail {
                    Detail::Number(number) => &number.to_be_bytes()[..],
                    Detail::None | Detail::Meta { .. } => &[],
                };
                if responder.has(Feature::MutationSeqno) {
                    let token = MutationToken { uuid: store.uuid(), seqno: meta.seqno };
                    response.cas(self.cas).extras(&token.encode()).value(number).encode(out);
                } else if self.operation == Operation::Remove {
                    response.encode(out);
                } else {
                    response.cas(self.cas).value(number).encode(out);
                }
            }
            Operation::ObserveSeqno
            | Operation::AwaitSeqno
            | Operation::FailoverLog
            | Operation::State
            | Operation::Compact => {
                unreachable!("it has no document")
            }
        }
    }

    /// Deleted, flags, expiry, revision, and the datatype if it was asked for.
    fn meta_extras(&self) -> ([u8; 21], usize) {
        let (deleted, with_datatype) = match self.detail {
            Detail::Meta { deleted, with_datatype } => (deleted, with_datatype),
            Detail::None | Detail::Number(_) => (false, false),
        };
        let meta = &self.item.meta();
        let mut extras = [0; 21];
        extras[..4].copy_from_slice(&u32::from(deleted).to_be_bytes());
        extras[4..8].copy_from_slice(&meta.flags.to_be_bytes());
        extras[8..12].copy_from_slice(&meta.expiry.to_be_bytes());
        extras[12..20].copy_from_slice(&meta.revid.to_be_bytes());
        extras[20] = meta.datatype;
        (extras, if with_datatype { 21 } else { 20 })
    }
}
