//! GET_ALL_VB_SEQNOS: how far every vbucket of a bucket is, asked on one core, known on all.
//!
//! Every document is in the default collection: the answer is the same with and without Collections.
//!
//! Invariants
//! - Vbuckets ascend, each is named once.
//!
//! Cost: ten bytes a vbucket, one message a core.
//!
//! Does not know: how the question reaches the other cores.

use ringbase_storage::env::Env;
use ringbase_storage::types::{BucketId, Seqno, VbId};

use super::collections;
use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::bucket::Engine;
use crate::protocol::dcp::vb_seqnos::{VbSeqnosRequest, encode_vb_seqno};
use crate::protocol::{CollectionId, Feature, Status};

/// How far the vbuckets of one core are; `None` if the bucket is not there.
pub type VbSeqnos = Option<Vec<(VbId, Seqno)>>;

/// A request, while the cores are asked.
#[derive(Debug, Clone, Copy)]
pub struct VbSeqnosJob {
    /// The bucket that is asked about.
    pub bucket: BucketId,
    /// What is asked.
    pub asked: VbSeqnosRequest,
    responder: Responder,
}

impl VbSeqnosJob {
    /// Appends the answer; `parts` come from the cores.
    pub fn answer(&self, env: &Env, parts: impl IntoIterator<Item = VbSeqnos>, out: &mut Vec<u8>) {
        let parts: VbSeqnos = parts.into_iter().collect::<Option<Vec<_>>>().map(|parts| parts.concat());
        // A bucket that was selected a moment ago and is not there now is being deleted or emptied: the next try tells.
        let Some(mut seqnos) = parts else {
            self.responder.fail(env, Status::ETMPFAIL, out);
            return;
        };
        seqnos.sort_unstable_by_key(|(vb, _)| *vb);
        let mut value = Vec::new();
        seqnos.iter().for_each(|(vb, seqno)| encode_vb_seqno(*vb, *seqno, &mut value));
        self.responder.success(env).value(&value).encode(out);
    }
}

/// What the shards of a core say of the vbuckets whose state is asked for.
#[must_use]
pub fn vb_seqnos(engine: &Engine, bucket: BucketId, asked: &VbSeqnosRequest) -> VbSeqnos {
    let bucket = engine.bucket(bucket)?;
    let is_wanted = |vb| bucket.state(vb).is_some_and(|state| asked.wants(state));
    let stores = bucket.vbuckets().into_iter().filter(|store| is_wanted(store.id()));
    Some(stores.map(|store| (store.id(), store.high_seqno())).collect())
}

/// Parses a request; what needs no vbucket is answered here.
pub(super) fn begin(
    session: &Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Result<VbSeqnosJob, Outcome> {
    let (env, view) = (&session.shared.env, session.view());
    if view.role.is_none() {
        return Err(responder.fail(env, Status::EACCESS, out));
    }
    let Some(bucket) = view.bucket else { return Err(responder.fail(env, Status::NO_BUCKET, out)) };
    let has_collections = responder.has(Feature::Collections);
    let asked = VbSeqnosRequest::decode(request.frame.extras, has_collections).map_err(|refusal| {
        responder.refuse(env, refusal, out);
        Outcome::Done
    })?;
    if asked.collection.is_some_and(|collection| collection != CollectionId::DEFAULT) {
        return Err(collections::unknown(env, responder, Status::UNKNOWN_COLLECTION, out));
    }
    if session.is_emptying() {
        return Err(responder.fail(env, Status::ETMPFAIL, out));
    }
    Ok(VbSeqnosJob { bucket, asked, responder: *responder })
}
