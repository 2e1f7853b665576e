//! GET_ALL_VB_SEQNOS: how far every vbucket of a bucket is, asked on one core, known on all.
//!
//! With Collections it is the whole vbucket's seqno, or that of a collection; without, that of the default collection.
//!
//! Invariants
//! - Vbuckets ascend, each is named once.
//!
//! Cost: ten bytes a vbucket, one message a core.
//!
//! Does not know: how the question reaches the other cores.

use ringbase_storage::env::Env;
use ringbase_storage::types::{BucketId, Seqno, VbId};
use ringbase_storage::vbstore::VbStore;

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

/// What is asked of each vbucket.
#[derive(Debug, Clone, Copy)]
pub struct AskedSeqnos {
    /// In which states it is asked about.
    pub states: VbSeqnosRequest,
    /// Of which collection; `None` for all of the vbucket.
    pub collection: Option<CollectionId>,
}

/// A request, while the cores are asked.
#[derive(Debug, Clone, Copy)]
pub struct VbSeqnosJob {
    /// The bucket that is asked about.
    pub bucket: BucketId,
    /// What is asked.
    pub asked: AskedSeqnos,
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

/// What the shards of a core say of the vbuckets whose state is asked for. A vbucket that has not been told of the collection yet is left out.
#[must_use]
pub fn vb_seqnos(engine: &Engine, bucket: BucketId, asked: AskedSeqnos) -> VbSeqnos {
    let bucket = engine.bucket(bucket)?;
    let is_wanted = |vb| bucket.state(vb).is_some_and(|state| asked.states.wants(state));
    let seqno = |store: &VbStore| match asked.collection {
        None => Some(store.high_seqno()),
        Some(id) => store.collection(id.0).map(|collection| collection.high_seqno),
    };
    let stores = bucket.vbuckets().into_iter().filter(|store| is_wanted(store.id()));
    Some(stores.filter_map(|store| Some((store.id(), seqno(&store)?))).collect())
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
    let states = VbSeqnosRequest::decode(request.frame.extras, has_collections).map_err(|refusal| {
        responder.refuse(env, refusal, out);
        Outcome::Done
    })?;
    let manifest = session.manifest();
    if states.collection.is_some_and(|collection| !manifest.has(collection)) {
        return Err(collections::unknown(env, responder, Status::UNKNOWN_COLLECTION, manifest.uid(), out));
    }
    let collection = if has_collections { states.collection } else { Some(CollectionId::DEFAULT) };
    if session.is_emptying() {
        return Err(responder.fail(env, Status::ETMPFAIL, out));
    }
    Ok(VbSeqnosJob { bucket, asked: AskedSeqnos { states, collection }, responder: *responder })
}
