//! Small requests beside backfills: their latency on an idle node and while eight backfills run.
//!
//! The clients of the backfills run with the lowest priority: where they share CPUs with the node, it is the node that is to be measured, and not
//! how long the system lets a small request's client wait behind them.
//!
//! Does not know: windows, other numbers of backfills.

use std::time::Duration;

use super::Source;
use super::drain::{DrainPlan, drain};
use super::rows::Kind;
use crate::cpus;
use crate::error::BenchError;
use crate::latency::{Compared, compare};

/// Backfills that run at a time, each over a connection of its own.
const BACKFILLS: usize = 8;

/// The window of each backfill.
const WINDOW_BYTES: u32 = 16 << 20;

/// What was found.
#[derive(Debug)]
pub(super) struct Beside {
    /// Where the backfills read.
    pub(super) kind: Kind,
    /// Nothing else runs, and backfills do.
    pub(super) compared: Compared,
    /// Backfills that ended meanwhile.
    pub(super) backfills: u64,
}

/// # Errors
/// The node or the client.
pub(super) fn measure(kind: Kind, source: &Source<'_>, is_quick: bool) -> Result<Beside, BenchError> {
    eprintln!("small requests beside backfills, {}", kind.name());
    let streams = &source.streams[..BACKFILLS.min(source.streams.len())];
    let plan = DrainPlan {
        connect: source.connect.clone(),
        streams,
        connections: BACKFILLS,
        buffer_bytes: WINDOW_BYTES,
    };
    let drain_once = || {
        std::thread::scope(|scope| {
            let draining = scope.spawn(|| {
                // Threads made by this one are as patient.
                cpus::yield_to_others()?;
                drain(&plan).map(drop)
            });
            draining.join().expect("the draining thread does not panic")
        })
    };
    let duration = Duration::from_secs(if is_quick { 1 } else { 5 });
    let compared = compare(&source.connect, source.generator, duration, drain_once)?;
    let backfills = compared.runs * streams.len() as u64;
    Ok(Beside { kind, compared, backfills })
}
