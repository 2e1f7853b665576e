//! The command line of `ringctl scrub`.
//!
//! Does not know: nodes.

use clap::{Args, Subcommand};
use ringbase::config::ByteSize;

#[derive(Debug, Args)]
#[command(after_help = "\
Every block that the node has on disk is read past its cache and verified, so that damage is found before
somebody needs it. Without an action a pass is begun and waited for; the exit code is 1 if something is
damaged. A node also does this by itself, see its --scrub-days and --scrub-rate. Needs the role admin.

Examples:
  ringctl scrub                    read everything at the node's rate, say what is damaged
  ringctl scrub --rate 200MiB      the same, faster; the rate stays until the node is restarted
  ringctl scrub status             how far the pass is, and what the newest one has found
  ringctl scrub stop")]
pub(crate) struct ScrubArgs {
    #[command(subcommand)]
    pub(crate) action: Option<ScrubAction>,
    /// Bytes that each shard may read in a second, 0 for no limit
    #[arg(long, value_name = "SIZE")]
    pub(crate) rate: Option<ByteSize>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ScrubAction {
    /// Begin a pass and do not wait for it
    Start,
    /// Say how far it is and what was found
    Status,
    /// End the pass that is under way
    Stop,
}
