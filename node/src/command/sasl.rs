//! Authentication: SASL_LIST_MECHS, SASL_AUTH, SASL_STEP.
//!
//! Invariants
//! - SASL_AUTH drops the old identity whatever comes of it; a failure leaves the connection open and without one.
//!
//! Cost: a SCRAM exchange is a few hashes; PLAIN runs PBKDF2 on this core, a few milliseconds.
//!
//! Does not know: the mechanisms (`auth`), what a role may do.

use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::auth::{MECHANISM_LIST, SaslOutcome};
use crate::protocol::Status;

pub(super) fn list(session: &Session, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    responder.success(&session.shared.env).value(MECHANISM_LIST.as_bytes()).encode(out);
    Outcome::Done
}

pub(super) fn start(
    session: &mut Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Outcome {
    session.set_identity(None);
    let shared = session.shared.clone();
    let nonce = u128::from(shared.env.random_u64()) << 64 | u128::from(shared.env.random_u64());
    let (mechanism, challenge) = (request.frame.key, request.frame.value);
    let catalog = shared.catalog();
    let outcome = session.sasl.start(mechanism, challenge, catalog.users(), nonce.to_be_bytes());
    settle(session, outcome, responder, out)
}

pub(super) fn step(
    session: &mut Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Outcome {
    let outcome = session.sasl.step(request.frame.key, request.frame.value);
    settle(session, outcome, responder, out)
}

fn settle(session: &mut Session, outcome: SaslOutcome, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    let env = &session.shared.env;
    match outcome {
        SaslOutcome::Continue(reply) => {
            responder.with_status(env, Status::AUTH_CONTINUE).value(&reply).encode(out);
        }
        SaslOutcome::Authenticated(identity, reply) => {
            responder.success(env).value(&reply).encode(out);
            session.set_identity(Some(identity));
        }
        SaslOutcome::Failed(refusal) => {
            tracing::info!(
                connection = session.id().0,
                status = %refusal.status,
                "authentication failed: {}",
                refusal.context
            );
            responder.refuse(env, refusal, out);
        }
    }
    Outcome::Done
}
