//! The command line of `ringctl compact`.
//!
//! Does not know: nodes.

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "\
A node compacts by itself, and purges tombstones (what remembers a deletion) that are older than
persistent_metadata_purge_age. This has it done now and waits for it. A DCP consumer that has not yet
seen a deletion that is purged must begin anew. Needs the role admin.

Examples:
  ringctl compact                                give back what is worth it
  ringctl compact --purge-older-than 86400       and purge tombstones of yesterday and before
  ringctl compact --drop-tombstones              and purge all of them
  ringctl compact --vbucket 7 --drop-tombstones  of one vbucket")]
pub(crate) struct CompactArgs {
    /// Purge tombstones that are older than so many seconds
    #[arg(long, value_name = "SECONDS", conflicts_with = "drop_tombstones")]
    pub(crate) purge_older_than: Option<u64>,
    /// Purge all tombstones
    #[arg(long)]
    pub(crate) drop_tombstones: bool,
    /// Only of this vbucket; its shard is compacted as a whole
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(..=1023))]
    pub(crate) vbucket: Option<u16>,
}
