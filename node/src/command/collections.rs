//! Collections: the manifest of the selected bucket, read and set, and names looked up in it.
//!
//! A connection follows the manifest of its bucket with each request. What is not in it is unknown, and the answer says in which manifest it was
//! sought. The owner of a vbucket looks again before it executes a request.
//!
//! Does not know: documents, which manifest may follow which (`bucket::collections`).

use std::sync::Arc;

use ringbase_storage::env::Env;

use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::bucket::{BucketChange, BucketContext};
use crate::protocol::extras::{CollectionFound, CollectionPath, DEFAULT_NAME};
use crate::protocol::{CollectionId, ErrorContext, Manifest, Refusal, Status};

/// The failure of a look-up in the manifest with this uid.
#[cold]
pub(crate) fn unknown(
    env: &Env,
    responder: &Responder,
    status: Status,
    manifest_uid: u64,
    out: &mut Vec<u8>,
) -> Outcome {
    let context = ErrorContext { manifest_uid: Some(manifest_uid), ..ErrorContext::default() };
    responder.fail_with(env, status, &context, out)
}

/// Answers a request that failed in a bucket; of an unknown collection it says in which manifest it was sought.
#[cold]
pub(super) fn fail_in(
    bucket: &BucketContext,
    responder: &Responder,
    status: Status,
    out: &mut Vec<u8>,
) -> Outcome {
    match status {
        Status::UNKNOWN_COLLECTION | Status::UNKNOWN_SCOPE => {
            unknown(&bucket.env, responder, status, bucket.collections().manifest().uid(), out)
        }
        _ => responder.fail(&bucket.env, status, out),
    }
}

/// The id of a collection, by names.
pub(super) fn resolve(manifest: &Manifest, path: &CollectionPath<'_>) -> Result<CollectionId, Status> {
    let scope = manifest.scope_named(path.scope).ok_or(Status::UNKNOWN_SCOPE)?;
    let collection = manifest.collection_named(scope.id, path.collection);
    collection.map(|collection| collection.id).ok_or(Status::UNKNOWN_COLLECTION)
}

pub(super) fn get_manifest(session: &Session, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    let env = &session.shared.env;
    if session.bucket().is_none() {
        return responder.fail(env, Status::NO_BUCKET, out);
    }
    responder.json(env, session.manifest().to_json().as_bytes(), out);
    Outcome::Done
}

pub(super) fn get_id(
    session: &Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Outcome {
    let env = &session.shared.env;
    if session.bucket().is_none() {
        return responder.fail(env, Status::NO_BUCKET, out);
    }
    let path = match CollectionPath::decode(path_of(request)) {
        Ok(path) => path,
        Err(refusal) => {
            responder.refuse(env, refusal, out);
            return Outcome::Done;
        }
    };
    match resolve(session.manifest(), &path) {
        Ok(id) => found(session, responder, id.0, out),
        Err(status) => unknown(env, responder, status, session.manifest().uid(), out),
    }
}

pub(super) fn get_scope_id(
    session: &Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Outcome {
    let env = &session.shared.env;
    if session.bucket().is_none() {
        return responder.fail(env, Status::NO_BUCKET, out);
    }
    let Ok(path) = std::str::from_utf8(path_of(request)) else {
        responder.refuse(env, Refusal::einval("The path is not UTF-8"), out);
        return Outcome::Done;
    };
    let name = match path.split('.').next() {
        None | Some("") => DEFAULT_NAME,
        Some(name) => name,
    };
    match session.manifest().scope_named(name) {
        Some(scope) => found(session, responder, scope.id.0, out),
        None => unknown(env, responder, Status::UNKNOWN_SCOPE, session.manifest().uid(), out),
    }
}

/// Parses a new manifest; what is wrong with it is answered here.
pub(super) fn set_manifest(
    session: &Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Result<BucketChange, Outcome> {
    let env = &session.shared.env;
    let Some(bucket) = session.bucket() else { return Err(responder.fail(env, Status::NO_BUCKET, out)) };
    match Manifest::parse(request.frame.value) {
        Ok(manifest) => Ok(BucketChange::Manifest { bucket, manifest: Arc::new(manifest) }),
        Err(error) => {
            Err(responder.fail_with(env, Status::EINVAL, &ErrorContext::text(&error.to_string()), out))
        }
    }
}

/// The path is in the key or in the value; validation has refused both at once.
fn path_of<'a>(request: &Request<'a>) -> &'a [u8] {
    if request.frame.key.is_empty() { request.frame.value } else { request.frame.key }
}

fn found(session: &Session, responder: &Responder, id: u32, out: &mut Vec<u8>) -> Outcome {
    let found = CollectionFound { manifest_uid: session.manifest().uid(), id: CollectionId(id) };
    responder.success(&session.shared.env).extras(&found.encode()).encode(out);
    Outcome::Done
}
