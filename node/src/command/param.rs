//! SET_PARAM: a parameter that changes while the node runs.
//!
//! Does not know: which parameters there are, how the change reaches the other cores.

use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::auth::Role;
use crate::protocol::{Refusal, Status};

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
) -> Result<ParamChange, Outcome> {
    let env = session.shared.env.clone();
    if session.view().role != Some(Role::Admin) {
        return Err(responder.fail(&env, Status::EACCESS, out));
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned);
    match (text(request.frame.key), text(request.frame.value)) {
        (Ok(name), Ok(value)) => Ok(ParamChange { name, value, responder: *responder }),
        _ => {
            responder.refuse(&env, Refusal::einval("Name and value must be text"), out);
            Err(Outcome::Done)
        }
    }
}
