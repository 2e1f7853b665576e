//! Latency of small requests at a fixed rate, beside whatever else the node does.
//!
//! Invariants
//! - A latency counts from the moment its request was due, so a node that stands still is not spared the requests that would have come.
//!
//! Does not know: what else runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringbase::client::{ConnectOptions, Connection, Generator};
use ringbase::protocol::{Opcode, Request, vbucket_of};

use crate::cpus;
use crate::error::BenchError;
use crate::recorder;

/// Time between two requests.
const INTERVAL: Duration = Duration::from_millis(1);

/// Connections of the small requests: enough that every core has some.
const CONNECTIONS: usize = 8;

/// Different documents that are asked for.
const KEYS: u64 = 1000;

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
    fn new() -> Latencies {
        Latencies { noop: recorder::histogram(), get: recorder::histogram() }
    }
}

/// Latencies on an idle node, and while something else runs.
#[derive(Debug)]
pub(crate) struct Compared {
    /// Nothing else runs.
    pub(crate) idle: Latencies,
    /// The other thing runs, again and again.
    pub(crate) busy: Latencies,
    /// How often it ended.
    pub(crate) runs: u64,
}

/// Measures for `duration` while nothing else runs, once for warming up, and for about as long while `once` does.
///
/// # Errors
/// Those of `once`; or the node refuses or is gone.
pub(crate) fn compare(
    connect: &ConnectOptions,
    generator: &Generator,
    duration: Duration,
    mut once: impl FnMut() -> Result<(), BenchError>,
) -> Result<Compared, BenchError> {
    let keys = some_keys(generator);
    let rest = || {
        std::thread::sleep(duration);
        Ok(())
    };
    beside(connect, &keys, rest)?;
    let idle = beside(connect, &keys, rest)?;
    let mut runs = 0;
    let busy = beside(connect, &keys, || {
        let started = Instant::now();
        while started.elapsed() < duration {
            once()?;
            runs += 1;
        }
        Ok(())
    })?;
    Ok(Compared { idle, busy, runs })
}

fn some_keys(generator: &Generator) -> Vec<Vec<u8>> {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let keys = (0..KEYS.min(generator.count())).map(|index| {
        generator.document(index, &mut key, &mut value);
        key.clone()
    });
    keys.collect()
}

/// Measures as long as `during` runs.
fn beside(
    connect: &ConnectOptions,
    keys: &[Vec<u8>],
    during: impl FnOnce() -> Result<(), BenchError>,
) -> Result<Latencies, BenchError> {
    let (stop, mut latencies) = (AtomicBool::new(false), Latencies::new());
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| measure(connect, keys, &stop, &mut latencies));
        let done = during();
        stop.store(true, Ordering::Relaxed);
        measuring.join().expect("the measuring thread does not panic")?;
        done
    })?;
    Ok(latencies)
}

/// Sends a NOOP and a GET of one of `keys` in turn until `stop`, over [`CONNECTIONS`] connections in turn.
fn measure(
    connect: &ConnectOptions,
    keys: &[Vec<u8>],
    stop: &AtomicBool,
    latencies: &mut Latencies,
) -> Result<(), BenchError> {
    // Without the right to it the latencies contain what the system lets this thread wait for a CPU.
    cpus::precede_others();
    let mut opened = Vec::new();
    for _ in 0..CONNECTIONS {
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
        let connection = &mut opened[pair % CONNECTIONS];
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
