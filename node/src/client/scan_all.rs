//! Range scans of many vbuckets over several connections.
//!
//! Invariants
//! - Every vbucket is scanned exactly once; a connection claims the next one when it can begin it.
//! - The clock starts when all connections are open.
//!
//! Cost: one thread per connection.
//!
//! Does not know: what is done with the records.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringbase_storage::types::VbId;

use super::connection::{ConnectOptions, Connection};
use super::error::ClientError;
use super::records::ScanRecord;
use super::scan::ScanCounts;
use super::scan_queue::{ScanPlan, scan_vbuckets};

/// What to scan and how.
#[derive(Debug, Clone)]
pub struct ScanAllOptions {
    /// Where.
    pub connect: ConnectOptions,
    /// How many connections, each with a thread; at least 1.
    pub connections: usize,
    /// Which vbuckets; `None` for all that the bucket has.
    pub vbuckets: Option<Vec<VbId>>,
    /// What part of each, and how.
    pub plan: ScanPlan,
}

/// What one connection has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionScan {
    /// All its scans together.
    pub counts: ScanCounts,
    /// From the common start to the end of its last scan.
    pub elapsed: Duration,
}

/// What all connections have done.
#[derive(Debug)]
pub struct ScanReport<S> {
    /// One for each connection.
    pub connections: Vec<ConnectionScan>,
    /// All together; the time is that of the slowest.
    pub total: ConnectionScan,
    /// What `make_sink` made for each connection.
    pub sinks: Vec<S>,
}

/// Scans the vbuckets; every record goes to the sink of the connection that received it.
///
/// # Errors
/// The first error of any connection; the others stop after the vbuckets they have begun.
pub fn scan_all<S>(
    options: &ScanAllOptions,
    make_sink: impl Fn(usize) -> S,
) -> Result<ScanReport<S>, ClientError>
where
    S: FnMut(VbId, ScanRecord<'_>) -> io::Result<()> + Send,
{
    let mut connections = Vec::new();
    for _ in 0..options.connections.max(1) {
        connections.push(Connection::open(&options.connect)?);
    }
    let vbuckets = match &options.vbuckets {
        Some(vbuckets) => vbuckets.clone(),
        None => (0..connections[0].vbucket_count()?).map(VbId).collect(),
    };
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let started = Instant::now();

    type Outcome<S> = Result<(ConnectionScan, S), ClientError>;
    let outcomes: Vec<Outcome<S>> = std::thread::scope(|scope| {
        let (next, stop, vbuckets) = (&next, &stop, &vbuckets);
        let threads: Vec<_> = connections
            .iter_mut()
            .enumerate()
            .map(|(index, connection)| {
                let mut sink = make_sink(index);
                scope.spawn(move || {
                    let claim = || {
                        let going_on = !stop.load(Ordering::Relaxed);
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        vbuckets.get(index).copied().filter(|_| going_on)
                    };
                    match scan_vbuckets(connection, &options.plan, claim, &mut sink) {
                        Ok(counts) => Ok((ConnectionScan { counts, elapsed: started.elapsed() }, sink)),
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            Err(error)
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a scanning thread does not panic")).collect()
    });

    let mut report =
        ScanReport { connections: Vec::new(), total: ConnectionScan::default(), sinks: Vec::new() };
    for outcome in outcomes {
        let (scan, sink) = outcome?;
        report.total.counts.add(&scan.counts);
        report.total.elapsed = report.total.elapsed.max(scan.elapsed);
        report.connections.push(scan);
        report.sinks.push(sink);
    }
    Ok(report)
}
