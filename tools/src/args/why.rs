//! The command line of `ringctl why`.
//!
//! Does not know: nodes, what a stream spends time on.

use std::path::PathBuf;

use clap::Args;

use super::seconds;

#[derive(Debug, Args)]
#[command(after_help = "\
Every nanosecond since a stream was asked for is spent on one thing: running, waiting for its turn on
the core, for a slot among the backfills of its connection, for a view to be opened, for the disk, for
memory, for the connection (credit), for the client's window, for the socket; or it is up to date. The
largest share says what would make the stream faster.

STREAM is as `ringctl stats dcp` shows it: a vbucket, a connection, or connection:vbucket. Without it
the streams that waited most are listed.

With --trace the same is worked out from a dump of `ringctl trace dump`, stream by stream: also of
streams that are long gone. STREAM is then the number of the stream (uid), or its vbucket.

Examples:
  ringctl why                          the slowest streams, and what each waits for
  ringctl why 17                       the streams of vbucket 17
  ringctl why replication:a->b:17      one stream
  ringctl why 17 --seconds 5           where its next five seconds go
  ringctl why --trace dump.json        where the time of every traced stream went")]
pub(crate) struct WhyArgs {
    /// Vbucket, connection, or connection:vbucket [default: the slowest]
    #[arg(value_name = "STREAM")]
    pub(crate) stream: Option<String>,
    /// Look at the next seconds instead of all time since the stream was asked for
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "trace")]
    pub(crate) seconds: Option<f64>,
    /// Look at a dump of the trace instead of a node
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Streams that are listed without STREAM, at most
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    pub(crate) limit: usize,
}
