//! SET_VBUCKET and DEL_VBUCKET: what they ask for, and how what became of it is answered. GET_VBUCKET is a data command.
//!
//! Does not know: how a vbucket is changed (`bucket::vbuckets`), streams and scans.

use ringbase_storage::env::Env;

use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::SessionView;
use crate::bucket::{VbucketChange, VbucketError};
use crate::protocol::vbucket::SetVbucket;
use crate::protocol::{Opcode, Refusal, Status};
use crate::range_scan::VbAddress;

/// A change of a vbucket that a client asks for, on the core of the vbucket.
#[derive(Debug)]
pub struct VbucketJob {
    /// Which vbucket.
    pub at: VbAddress,
    /// The change.
    pub change: VbucketChange,
}

impl VbucketJob {
    /// Reads a request. DEL_VBUCKET's value may ask not to be answered before the vbucket is gone: it never is.
    ///
    /// # Errors
    /// What to answer instead.
    pub fn decode(view: &SessionView, request: &Request<'_>) -> Result<VbucketJob, Refusal> {
        let bucket = view.bucket.ok_or(Refusal::new(Status::NO_BUCKET, ""))?;
        let change = if request.opcode() == Opcode::SET_VBUCKET {
            let SetVbucket { state, topology } =
                SetVbucket::decode(request.frame.extras, request.frame.value)?;
            VbucketChange::Set { state, topology }
        } else {
            VbucketChange::Delete
        };
        Ok(VbucketJob { at: VbAddress { bucket, vb: request.vbucket() }, change })
    }

    /// Appends the answer to a change that ended with `result`.
    pub fn answer(
        responder: &Responder,
        env: &Env,
        result: &Result<(), VbucketError>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let status = match result {
            Ok(()) => {
                responder.success(env).encode(out);
                return Outcome::Done;
            }
            Err(VbucketError::Absent) => Status::NOT_MY_VBUCKET,
            Err(VbucketError::Withdrawn) => Status::ETMPFAIL,
            Err(VbucketError::Failed(_)) => Status::EINTERNAL,
        };
        responder.fail(env, status, out)
    }
}
