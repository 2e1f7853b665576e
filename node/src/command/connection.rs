//! Commands about the connection itself: HELLO, SELECT_BUCKET, NOOP, VERSION, QUIT and their like.
//!
//! Does not know: documents, authentication (`sasl`), the cluster map (`cluster`).

use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::protocol::hello::Agent;
use crate::protocol::{Feature, Features, Opcode, Status, error_map as map};

/// Name that SELECT_BUCKET takes for none.
const NO_BUCKET: &[u8] = b"@no bucket@";

/// Replaces everything that an earlier HELLO turned on; its own response is framed by what it grants.
pub(super) fn hello(
    session: &mut Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Outcome {
    let env = &session.shared.env;
    let granted = match Features::negotiate(request.frame.value, Features::OFFERED) {
        Ok(granted) => granted,
        Err(refusal) => {
            responder.refuse(env, refusal, out);
            return Outcome::Done;
        }
    };
    if !request.frame.key.is_empty() {
        session.agent = Agent::decode(request.frame.key);
    }
    session.features = granted;
    if granted.has(Feature::SelectBucket) {
        session.leave_given_bucket();
    }
    let responder = Responder::new(&request.frame, granted, request.received_ns);
    responder.success(&session.shared.env).value(&granted.encode()).encode(out);
    Outcome::Done
}

pub(super) fn select_bucket(
    session: &mut Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Outcome {
    let shared = session.shared.clone();
    let name = request.frame.key;
    if name == NO_BUCKET {
        session.select(None);
    } else {
        let catalog = shared.catalog();
        let Some(bucket) = catalog.bucket_named(name) else {
            return responder.fail(&shared.env, Status::KEY_ENOENT, out);
        };
        session.select(Some(bucket.id));
    }
    responder.success(&shared.env).encode(out);
    Outcome::Done
}

pub(super) fn error_map(
    session: &Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Outcome {
    let env = &session.shared.env;
    let format = request.frame.value.try_into().map(u16::from_be_bytes).unwrap_or_default();
    match map::encode(format) {
        Ok(json) => responder.json(env, json, out),
        Err(refusal) => responder.refuse(env, refusal, out),
    }
    Outcome::Done
}

pub(super) fn noop(session: &Session, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    responder.success(&session.shared.env).encode(out);
    Outcome::Done
}

pub(super) fn version(session: &Session, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    let shared = &session.shared;
    responder.success(&shared.env).value(shared.catalog().version().as_bytes()).encode(out);
    Outcome::Done
}

/// Accepted and without effect: what is logged is decided at start.
pub(super) fn verbosity(session: &Session, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    let env = &session.shared.env;
    if !session.identity().is_some_and(|identity| identity.role.may_administer()) {
        return responder.fail(env, Status::EACCESS, out);
    }
    responder.success(env).encode(out);
    Outcome::Done
}

pub(super) fn list_buckets(session: &Session, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    let shared = &session.shared;
    let catalog = shared.catalog();
    let names: Vec<&str> = catalog.buckets().iter().map(|bucket| bucket.name.as_str()).collect();
    responder.success(&shared.env).value(names.join(" ").as_bytes()).encode(out);
    Outcome::Done
}

/// What is said before the connection is closed.
pub(super) fn quit(session: &Session, responder: &Responder, out: &mut Vec<u8>) {
    if responder.opcode() == Opcode::QUIT {
        responder.success(&session.shared.env).encode(out);
    }
}
