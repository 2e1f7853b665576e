//! `ringctl vbucket`: what the vbuckets of a bucket are, and changing that.
//!
//! Does not know: which changes make sense; the node says what it does not take.

use ringbase::client::Connection;
use ringbase_storage::types::VbId;
use serde_json::{Map, Value, json};

use super::connect;
use crate::args::{GlobalArgs, VbucketAction, VbucketArgs};
use crate::failure::Failure;
use crate::output::{print, print_json};

pub(crate) fn run(global: &GlobalArgs, args: &VbucketArgs) -> Result<(), Failure> {
    let mut connection = connect(global)?;
    match &args.action {
        VbucketAction::List => list(global, &mut connection),
        VbucketAction::Get { vbucket } => {
            let state = connection.vbucket_state(VbId(*vbucket))?.name();
            if global.json {
                return print_json(&json!({ "vbucket": vbucket, "state": state }));
            }
            print(|out| writeln!(out, "{state}"))
        }
        VbucketAction::Set { vbucket, state, topology } => {
            connection.set_vbucket(VbId(*vbucket), *state, topology)?;
            tell(global, *vbucket, state.name())
        }
        VbucketAction::Delete { vbucket } => {
            connection.delete_vbucket(VbId(*vbucket))?;
            tell(global, *vbucket, "deleted")
        }
    }
}

fn tell(global: &GlobalArgs, vbucket: u16, is: &str) -> Result<(), Failure> {
    if global.json {
        return print_json(&json!({ "vbucket": vbucket, "result": is }));
    }
    print(|out| writeln!(out, "vbucket {vbucket} is {is}"))
}

fn list(global: &GlobalArgs, connection: &mut Connection) -> Result<(), Failure> {
    let stats = connection.stat_texts("vbucket", b"")?;
    let states = stats.iter().map(|(name, state)| (name.trim_start_matches("vb_"), state));
    if global.json {
        let object: Map<String, Value> =
            states.map(|(vbucket, state)| (vbucket.to_owned(), state.as_str().into())).collect();
        return print_json(&object.into());
    }
    print(|out| states.clone().try_for_each(|(vbucket, state)| writeln!(out, "{vbucket} {state}")))
}
