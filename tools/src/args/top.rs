//! The command line of `ringctl top`.
//!
//! Does not know: nodes, terminals.

use clap::Args;

use super::seconds;

#[derive(Debug, Args)]
#[command(after_help = "\
Shows what a bucket's streams, backfills and range scans do right now, and the node's latencies, all of
the last interval: documents and bytes a second, how far a backfill is and when it will be through, and
what each stream spent most of the interval on (LIMITER; `ringctl why` explains it). Ctrl-C ends it.

Streams are sorted by what they send; those that do not fit the terminal are counted. Without a terminal
it prints one frame and ends, as with --once. --json prints an object for each interval, for ever; with
--once it prints one.

Examples:
  ringctl top                     a frame each second
  ringctl top --interval 0.2
  ringctl top --once > now.txt    one frame, of the next second
  ringctl top --json | jq -c '.streams[] | [.stream, .bytes_per_second, .limiter]'")]
pub(crate) struct TopArgs {
    /// Time between two frames, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub(crate) interval: f64,
    /// Print one frame and end
    #[arg(long)]
    pub(crate) once: bool,
}
