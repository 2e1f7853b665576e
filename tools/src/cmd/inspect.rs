//! `ringctl inspect`: what the files of a stopped store say, whole or broken.
//!
//! Does not know: formats; a running node.

use ringbase_storage::inspect::{InspectOptions, inspect_dir};
use ringbase_storage::types::VbId;

use crate::args::{GlobalArgs, InspectArgs};
use crate::failure::Failure;
use crate::output::{print, print_json};

pub(crate) fn run(global: &GlobalArgs, args: &InspectArgs) -> Result<(), Failure> {
    let options = InspectOptions {
        quick: args.quick,
        manifest: args.manifest,
        wal: args.wal,
        fences: args.fences,
        keys: args.keys,
        documents: args.documents,
        vbucket: args.vbucket.map(VbId),
        limit: args.limit,
        ..InspectOptions::default()
    };
    let report = inspect_dir(&args.directory, &options)
        .map_err(|error| Failure::other("nothing to inspect", error))?;
    if global.json {
        let value = serde_json::to_value(&report)
            .map_err(|error| Failure::other("cannot show the report as JSON", error))?;
        print_json(&value)?;
    } else {
        print(|out| report.write_text(out))?;
    }
    if report.is_damaged() {
        return Err(Failure::other("the store is damaged", "the places are named above"));
    }
    Ok(())
}
