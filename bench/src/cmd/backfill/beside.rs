//! Small requests beside backfills: their latency on an idle node and while eight backfills run.
//!
//! The clients of the backfills run with the lowest priority: where they share CPUs with the node, it is the node that is to be measured, and not
//! how long the system lets a small request's client wait behind them.
//!
//! Does not know: windows, other numbers of backfills.

use std::time::{Duration, Instant};

use super::Source;
use super::drain::{DrainPlan, drain};
use super::rows::Kind;
use crate::cmd::some_keys;
use crate::cpus;
use crate::error::BenchError;
use crate::latency::{self, Latencies};

/// Backfills that run at a time, each over a connection of its own.
const BACKFILLS: usize = 8;

/// Connections of the small requests: enough that every core has some.
const CONNECTIONS: usize = 8;

/// Different documents that are asked for.
const KEYS: u64 = 1000;

/// The window of each backfill.
const WINDOW_BYTES: u32 = 16 << 20;

/// What was found.
#[derive(Debug)]
pub(super) struct Beside {
    /// Where the backfills read.
    pub(super) kind: Kind,
    /// Nothing else runs.
    pub(super) idle: Latencies,
    /// Backfills run.
    pub(super) busy: Latencies,
    /// Backfills that ended meanwhile.
    pub(super) backfills: u64,
}

/// # Errors
/// The node or the client.
pub(super) fn measure(kind: Kind, source: &Source<'_>, is_quick: bool) -> Result<Beside, BenchError> {
    let duration = Duration::from_secs(if is_quick { 1 } else { 5 });
    let connect = &source.connect;
    let keys = some_keys(source.generator, KEYS);
    let streams = &source.streams[..BACKFILLS.min(source.streams.len())];
    let rest = || {
        std::thread::sleep(duration);
        Ok(())
    };
    eprintln!("small requests beside backfills, {}", kind.name());
    // The documents that are asked for become resident.
    latency::beside(connect, CONNECTIONS, &keys, rest)?;
    let idle = latency::beside(connect, CONNECTIONS, &keys, rest)?;
    let mut backfills = 0;
    let mut drain_once = || -> Result<(), BenchError> {
        let plan = DrainPlan {
            connect: connect.clone(),
            streams,
            connections: BACKFILLS,
            buffer_bytes: WINDOW_BYTES,
        };
        drain(&plan)?;
        backfills += streams.len() as u64;
        Ok(())
    };
    let busy = latency::beside(connect, CONNECTIONS, &keys, || {
        std::thread::scope(|scope| {
            let draining = scope.spawn(|| {
                // Threads made by this one are as patient.
                cpus::yield_to_others()?;
                let started = Instant::now();
                while started.elapsed() < duration {
                    drain_once()?;
                }
                Ok(())
            });
            draining.join().expect("the draining thread does not panic")
        })
    })?;
    Ok(Beside { kind, idle, busy, backfills })
}
