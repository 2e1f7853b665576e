//! Collections, of which there is one: the default collection of the default scope, manifest 0.
//!
//! Does not know: documents, other manifests.

use ringbase_storage::env::Env;

use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::protocol::extras::{CollectionFound, CollectionPath, DEFAULT_NAME};
use crate::protocol::{CollectionId, ErrorContext, Refusal, Status};

/// The manifest that exists before one is set.
const EPOCH_MANIFEST: &[u8] =
    br#"{"uid":"0","scopes":[{"name":"_default","uid":"0","collections":[{"name":"_default","uid":"0"}]}]}"#;

/// Its uid.
const EPOCH_UID: u64 = 0;

/// The failure of a look-up in the manifest.
#[cold]
pub(crate) fn unknown(env: &Env, responder: &Responder, status: Status, out: &mut Vec<u8>) -> Outcome {
    let context = ErrorContext { manifest_uid: Some(EPOCH_UID), ..ErrorContext::default() };
    responder.fail_with(env, status, &context, out)
}

pub(super) fn get_manifest(session: &Session, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    let env = &session.shared.env;
    if session.bucket().is_none() {
        return responder.fail(env, Status::NO_BUCKET, out);
    }
    responder.json(env, EPOCH_MANIFEST, out);
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
    if path.scope != DEFAULT_NAME {
        return unknown(env, responder, Status::UNKNOWN_SCOPE, out);
    }
    if path.collection != DEFAULT_NAME {
        return unknown(env, responder, Status::UNKNOWN_COLLECTION, out);
    }
    found(env, responder, out)
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
    match path.split('.').next().unwrap_or_default() {
        "" | DEFAULT_NAME => found(env, responder, out),
        _ => unknown(env, responder, Status::UNKNOWN_SCOPE, out),
    }
}

/// The path is in the key or in the value; validation has refused both at once.
fn path_of<'a>(request: &Request<'a>) -> &'a [u8] {
    if request.frame.key.is_empty() { request.frame.value } else { request.frame.key }
}

fn found(env: &Env, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    let found = CollectionFound { manifest_uid: EPOCH_UID, id: CollectionId::DEFAULT };
    responder.success(env).extras(&found.encode()).encode(out);
    Outcome::Done
}
