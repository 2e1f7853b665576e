//! SET_PARAM: a parameter that changes while the node runs, of the node or of the selected bucket.
//!
//! A bucket's parameters are its settings (`bucket::settings`). `bucket_flush` with the name of a bucket as its value deletes all documents of that
//! bucket; the protocol's FLUSH is not supported, as it names no bucket.
//!
//! Does not know: which parameters there are, how the change reaches the other cores.

use super::bucket::BucketJob;
use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::auth::Role;
use crate::bucket::{BucketChange, BucketSettings};
use crate::protocol::{Refusal, Status};

/// Name of the parameter that empties the bucket which its value names.
const EMPTY_BUCKET: &str = "bucket_flush";

/// Whose parameter it is.
#[derive(Debug)]
pub(super) enum Asked {
    /// The node's.
    Node(ParamChange),
    /// A bucket's.
    Bucket(BucketJob),
}

/// A change that a client asks for.
#[derive(Debug, Clone)]
pub struct ParamChange {
    /// Name of the parameter.
    pub name: String,
    /// Its new value, as text.
    pub value: String,
    /// Answers the request.
    pub responder: Responder,
}

/// Parses a request; what is wrong with it is answered here. The kind of parameter in the extras tells nothing that the name does not.
pub(super) fn begin(
    session: &mut Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Result<Asked, Outcome> {
    let env = session.shared.env.clone();
    if session.view().role != Some(Role::Admin) {
        return Err(responder.fail(&env, Status::EACCESS, out));
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned);
    match (text(request.frame.key), text(request.frame.value)) {
        (Ok(name), Ok(value)) if name == EMPTY_BUCKET => {
            let change = BucketChange::Empty { name: value };
            Ok(Asked::Bucket(BucketJob { change, responder: *responder }))
        }
        (Ok(key), Ok(value)) if BucketSettings::knows(&key) => {
            let Some(bucket) = session.bucket() else {
                return Err(responder.fail(&env, Status::NO_BUCKET, out));
            };
            let change = BucketChange::Set { bucket, key, value };
            Ok(Asked::Bucket(BucketJob { change, responder: *responder }))
        }
        (Ok(name), Ok(value)) => Ok(Asked::Node(ParamChange { name, value, responder: *responder })),
        _ => {
            responder.refuse(&env, Refusal::einval("Name and value must be text"), out);
            Err(Outcome::Done)
        }
    }
}
