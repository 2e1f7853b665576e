//! CREATE_BUCKET, DELETE_BUCKET and COLLECTIONS_SET_MANIFEST: what they ask for, and how what became of it is answered.
//!
//! Does not know: how a bucket is made (`bucket::lifecycle`), other cores.

use ringbase_storage::env::Env;

use super::collections;
use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::auth::Role;
use crate::bucket::{BucketChange, ChangeError};
use crate::protocol::{ErrorContext, Opcode, Refusal, Status};

/// A change of a bucket that a client asks for.
#[derive(Debug)]
pub struct BucketJob {
    /// The change.
    pub change: BucketChange,
    /// Answers the request.
    pub responder: Responder,
}

impl BucketJob {
    /// Appends the answer to a change that ended with `result`.
    pub fn answer(responder: &Responder, env: &Env, result: &Result<(), ChangeError>, out: &mut Vec<u8>) {
        match result {
            Ok(()) => responder.success(env).encode(out),
            Err(error) => {
                let context = ErrorContext::text(&error.to_string());
                // None of these is a status that an old client could not be told, or would lose its connection for.
                responder.fail_with(env, status_of(error), &context, out);
            }
        }
    }
}

fn status_of(error: &ChangeError) -> Status {
    match error {
        ChangeError::Exists { .. } => Status::KEY_EEXISTS,
        ChangeError::Absent { .. } => Status::KEY_ENOENT,
        ChangeError::Name { .. }
        | ChangeError::Module { .. }
        | ChangeError::Settings(_)
        | ChangeError::Quota { .. } => Status::EINVAL,
        ChangeError::Manifest(_) => Status::CANNOT_APPLY_COLLECTIONS_MANIFEST,
        ChangeError::Unsupported { .. } => Status::NOT_SUPPORTED,
        ChangeError::TooMany => Status::E2BIG,
        ChangeError::Failed { .. } => Status::EINTERNAL,
    }
}

/// Parses a request; what is wrong with it is answered here.
pub(super) fn begin(
    session: &Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Result<BucketJob, Outcome> {
    let env = &session.shared.env;
    if session.view().role != Some(Role::Admin) {
        return Err(responder.fail(env, Status::EACCESS, out));
    }
    if request.opcode() == Opcode::COLLECTIONS_SET_MANIFEST {
        let change = collections::set_manifest(session, request, responder, out)?;
        return Ok(BucketJob { change, responder: *responder });
    }
    let refuse = |context, out: &mut Vec<u8>| {
        responder.refuse(env, Refusal::einval(context), out);
        Outcome::Done
    };
    let Ok(name) = std::str::from_utf8(request.frame.key).map(str::to_owned) else {
        return Err(refuse("The name is not text", out));
    };
    let Ok(value) = std::str::from_utf8(request.frame.value) else {
        return Err(refuse("The value is not text", out));
    };
    let change = if request.opcode() == Opcode::CREATE_BUCKET {
        let Some((module, config)) = value.split_once('\0') else {
            return Err(refuse("The value is not a module, a zero byte, and settings", out));
        };
        BucketChange::Create { name, module: module.to_owned(), config: config.to_owned() }
    } else {
        if !value.is_empty()
            && serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(value).is_err()
        {
            return Err(refuse("The value is not a JSON object", out));
        }
        BucketChange::Delete { name }
    };
    Ok(BucketJob { change, responder: *responder })
}
