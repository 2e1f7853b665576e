//! The command line of `ringctl vbucket`.
//!
//! Does not know: nodes, which changes make sense.

use clap::{Args, Subcommand};
use ringbase::protocol::dcp::signal::VbucketState;

#[derive(Debug, Args)]
#[command(after_help = "\
A vbucket is a part of a bucket that one node serves (active) and others copy (replica). To change one
needs the role admin. A change is done when the command returns, on all cores and on disk.

Examples:
  ringctl vbucket list                        the state of each
  ringctl vbucket get 17
  ringctl vbucket set 17 replica              streams and scans that need it active end
  ringctl vbucket set 17 active               it begins a new branch of its history
  ringctl vbucket set 17 active --topology '[[\"here\",\"there\"]]'
  ringctl vbucket delete 17                   it is gone with its documents; `set` makes it anew, empty")]
pub(crate) struct VbucketArgs {
    #[command(subcommand)]
    pub(crate) action: VbucketAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VbucketAction {
    /// Print the state of every vbucket that is there
    List,
    /// Print the state of one vbucket
    Get {
        /// Its number
        vbucket: u16,
    },
    /// Change the state of a vbucket; one that is not there is made
    Set {
        /// Its number
        vbucket: u16,
        /// active, replica, pending or dead
        #[arg(value_parser = state)]
        state: VbucketState,
        /// Which nodes have copies: one or two chains of names, JSON; only with active
        #[arg(long, value_name = "JSON", default_value = "")]
        topology: String,
    },
    /// Delete a vbucket with all its documents
    Delete {
        /// Its number
        vbucket: u16,
    },
}

fn state(text: &str) -> Result<VbucketState, String> {
    VbucketState::of_name(text).ok_or_else(|| "a state is active, replica, pending or dead".to_owned())
}
