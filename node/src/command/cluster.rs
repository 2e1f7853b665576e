//! The cluster map: on request, and with the refusal of a vbucket that is not here.
//!
//! Invariants
//! - A connection that asked for it is not sent the same map twice with refusals.
//!
//! Does not know: how maps are made (`protocol::cluster_map`), which core owns what.

use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::protocol::extras::ConfigVersion;
use crate::protocol::{Datatype, Feature, Status};

pub(super) fn get_config(
    session: &mut Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Outcome {
    let shared = session.shared.clone();
    let known = match ConfigVersion::decode(request.frame.extras) {
        Ok(known) => known,
        Err(refusal) => {
            responder.refuse(&shared.env, refusal, out);
            return Outcome::Done;
        }
    };
    let catalog = shared.catalog();
    let current = catalog.map_version();
    if known.is_some_and(|known| known >= current) {
        responder.success(&shared.env).encode(out);
        return Outcome::Done;
    }
    responder.json(&shared.env, catalog.map(session.bucket()), out);
    session.map_sent = Some(current);
    Outcome::Done
}

/// NOT_MY_VBUCKET with the map, or without it if the client has it and does not want it again.
pub(super) fn not_my_vbucket(session: &mut Session, responder: &Responder, out: &mut Vec<u8>) -> Outcome {
    let shared = session.shared.clone();
    let catalog = shared.catalog();
    let response = responder.with_status(&shared.env, Status::NOT_MY_VBUCKET);
    if session.knows_map() && responder.has(Feature::DedupeNotMyVbucketClustermap) {
        response.encode(out);
        return Outcome::Done;
    }
    let datatype = responder.visible(Datatype::JSON);
    response.datatype(datatype).value(catalog.map(session.bucket())).encode(out);
    session.map_sent = Some(catalog.map_version());
    Outcome::Done
}
