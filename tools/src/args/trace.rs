//! The command line of `ringctl trace`.
//!
//! Does not know: nodes, which categories there are.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ringbase::config::ByteSize;
use ringbase::telemetry::trace::{BUFFER_BYTES_MAX, BufferMode, TraceConfig};

#[derive(Debug, Args)]
#[command(after_help = "\
A trace is a list of what happened when, on which core, for how long. Every core keeps its newest
events in a ring of fixed size, so a recording may run for hours: start it, wait until the node has
been slow, stop it, and look at the last seconds. Events have categories; --categories and --exclude
choose some, with * for any text. All of these need the role admin.

The file is Chrome trace-event JSON: open it in https://ui.perfetto.dev or chrome://tracing. It says
in otherData how many events each core has dropped, and integers above 2^53 are texts in it.

Examples:
  ringctl trace start --categories 'ringbase::range_scan*'
  ringctl range-scan --key-only                           what is to be seen
  ringctl trace status                                    how much each core has recorded
  ringctl trace stop
  ringctl trace dump --out scan.json                      also while it runs
  ringctl trace start --mode fixed --buffer-size 16MiB    the beginning instead of the end")]
pub(crate) struct TraceArgs {
    #[command(subcommand)]
    pub(crate) action: TraceAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TraceAction {
    /// Start a recording; one that runs is ended and forgotten
    Start(TraceStartArgs),
    /// Stop the recording; what it holds stays until the next start
    Stop,
    /// Say whether a recording runs, and how much each core has recorded and dropped
    Status,
    /// Write what has been recorded as JSON
    Dump {
        /// The file [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// What happens when a ring is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The newest events are kept.
    Ring,
    /// The oldest events are kept.
    Fixed,
}

#[derive(Debug, Args)]
pub(crate) struct TraceStartArgs {
    /// Categories to record, separated by commas; * stands for any text
    #[arg(long, value_name = "GLOBS", default_value = "*", value_parser = globs)]
    categories: String,
    /// Categories of these not to record
    #[arg(long, value_name = "GLOBS", default_value = "", value_parser = globs)]
    exclude: String,
    /// What happens when a ring is full: the newest or the oldest events are kept
    #[arg(long, value_name = "MODE", default_value = "ring")]
    mode: Mode,
    /// Memory of each core's ring
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = buffer_size)]
    buffer_size: usize,
}

impl TraceStartArgs {
    pub(crate) fn config(&self) -> TraceConfig {
        let list = |text: &str| text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect();
        TraceConfig {
            mode: match self.mode {
                Mode::Ring => BufferMode::Ring,
                Mode::Fixed => BufferMode::Fixed,
            },
            buffer_bytes: self.buffer_size,
            enabled: list(&self.categories),
            disabled: list(&self.exclude),
        }
    }
}

fn globs(text: &str) -> Result<String, String> {
    match text.contains(';') {
        true => Err("a category has no semicolon; separate several by commas".to_owned()),
        false => Ok(text.to_owned()),
    }
}

fn buffer_size(text: &str) -> Result<usize, String> {
    let size: ByteSize = text.parse()?;
    let bytes = usize::try_from(size.0).ok().filter(|bytes| (4096..=BUFFER_BYTES_MAX).contains(bytes));
    bytes.ok_or_else(|| format!("a ring has 4KiB to {}", ByteSize(BUFFER_BYTES_MAX as u64)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        start: TraceStartArgs,
    }

    #[test]
    fn flags_become_the_configuration_that_the_node_reads() {
        let text = |words: &[&str]| Line::parse_from([&["x"], words].concat()).start.config().to_string();
        assert_eq!(text(&[]).parse::<TraceConfig>().unwrap(), TraceConfig::default());
        assert_eq!(
            text(&["--categories", "a*,b", "--exclude", "ab", "--mode", "fixed", "--buffer-size", "64KiB"]),
            "buffer-mode:fixed;buffer-size:65536;enabled-categories:a*,b;disabled-categories:ab"
        );
        for wrong in
            [["--buffer-size", "1"], ["--buffer-size", "1TiB"], ["--categories", "a;b"], ["--mode", "x"]]
        {
            assert!(Line::try_parse_from([&["x"], &wrong[..]].concat()).is_err(), "{wrong:?}");
        }
    }
}
