//! Latency of small requests at a fixed rate, beside whatever else the node does.
//!
//! Invariants
//! - A latency counts from the moment its request was due, so a node that stands still is not spared the requests that would have come.
//!
//! Does not know: what else runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringbase::client::{ConnectOptions, Connection};
use ringbase::protocol::{Opcode, Request, vbucket_of};

use crate::cpus;
use crate::error::BenchError;
use crate::recorder;

/// Time between two requests.
const INTERVAL: Duration = Duration::from_millis(1);

/// Latencies in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    /// Of NOOP: connection and core, no storage.
    pub(crate) noop: Histogram<u64>,
    /// Of GET of a small document.
    pub(crate) get: Histogram<u64>,
}

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Latencies {
        Latencies { noop: recorder::histogram(), get: recorder::histogram() }
    }
}

/// Measures as long as `during` runs.
///
/// # Errors
/// Those of `during`; or the node refuses or is gone.
pub(crate) fn beside(
    connect: &ConnectOptions,
    connections: usize,
    keys: &[Vec<u8>],
    during: impl FnOnce() -> Result<(), BenchError>,
) -> Result<Latencies, BenchError> {
    let (stop, mut latencies) = (AtomicBool::new(false), Latencies::new());
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| measure(connect, connections, keys, &stop, &mut latencies));
        let done = during();
        stop.store(true, Ordering::Relaxed);
        measuring.join().expect("the measuring thread does not panic")?;
        done
    })?;
    Ok(latencies)
}

/// Sends a NOOP and a GET of one of `keys` in turn until `stop`, over `connections` connections in turn, so that every core gets some.
fn measure(
    connect: &ConnectOptions,
    connections: usize,
    keys: &[Vec<u8>],
    stop: &AtomicBool,
    latencies: &mut Latencies,
) -> Result<(), BenchError> {
    // Without the right to it the latencies contain what the system lets this thread wait for a CPU.
    cpus::precede_others();
    let mut opened = Vec::new();
    for _ in 0..connections.max(1) {
        opened.push(Connection::open(connect)?);
    }
    let vbuckets = opened[0].vbucket_count()?;
    let started = Instant::now();
    for turn in 0_u32.. {
        let due = started + INTERVAL * turn;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let pair = turn as usize / 2;
        let connection = &mut opened[pair % connections.max(1)];
        let histogram = if turn.is_multiple_of(2) {
            connection.ping()?;
            &mut latencies.noop
        } else {
            let key = &keys[pair % keys.len()];
            let get = Request::new(Opcode::GET).vbucket(vbucket_of(key, vbuckets)).key(key);
            connection.call(get, |_| ())?;
            &mut latencies.get
        };
        histogram.saturating_record(u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(())
}
