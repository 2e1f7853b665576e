//! `ringctl compact`: has old tombstones purged and garbage given back, now.
//!
//! Does not know: what is worth compacting.

use std::time::Duration;

use ringbase::client::Connection;
use ringbase::protocol::Status;
use ringbase::protocol::compact::CompactRequest;
use ringbase_storage::types::{Seqno, VbId};
use serde_json::json;

use super::connect_options;
use crate::args::{CompactArgs, GlobalArgs};
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::progress;

/// How long a shard may take.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn run(global: &GlobalArgs, args: &CompactArgs) -> Result<(), Failure> {
    let mut options = connect_options(global)?;
    options.timeout = TIMEOUT;
    let mut connection = Connection::open(&options)?;
    let vbuckets = match args.vbucket {
        Some(vbucket) => vbucket..vbucket + 1,
        None => 0..connection.vbucket_count()?,
    };
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let before = args.purge_older_than.map_or(0, |seconds| now.saturating_sub(seconds));
    let what = CompactRequest { before, up_to: Seqno(0), drop_deletes: args.drop_tombstones };
    let bar = progress::bar(Some(vbuckets.len() as u64), "{bar:30} {pos} of {len} vbuckets  {elapsed}");
    let mut compacted = 0;
    for vbucket in vbuckets.map(VbId) {
        match connection.compact(vbucket, what) {
            Ok(()) => compacted += 1,
            Err(error) if error.status() == Some(Status::NOT_MY_VBUCKET) && args.vbucket.is_none() => {}
            Err(error) => return Err(error.into()),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if global.json {
        return print_json(&json!({ "vbuckets": compacted }));
    }
    print(|out| writeln!(out, "{compacted} vbuckets compacted"))
}
