//! ringctl: the command-line companion of a Ringbase node.
//!
//! Reads the command line, runs one command, turns its outcome into an exit code: 0 done, 1 failed, 2 misused.
//! Results go to standard output, everything else to standard error.
//!
//! Does not know: the protocol (`ringbase::client`), what the commands do.

mod args;
mod cmd;
mod dcp_stats;
mod failure;
mod output;
mod progress;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match cmd::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
