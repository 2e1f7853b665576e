//! Small requests beside a scan: their latency on an idle node and while scans run on the same cores (T5.3).
//!
//! Does not know: buffer sizes other than the node's own choice.

use std::time::{Duration, Instant};

use ringbase::client::Generator;

use super::super::{scan, some_keys};
use super::ScanArgs;
use crate::error::BenchError;
use crate::latency::{self, Latencies};
use crate::node::NodeProcess;

/// Connections of the small requests: enough that every core has some.
const CONNECTIONS: usize = 8;

/// Different documents that are asked for.
const KEYS: u64 = 1000;

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct LatencyResults {
    /// Nothing else runs.
    pub(super) idle: Latencies,
    /// Warm key-only scans run, one after the other, over so many connections.
    pub(super) scanning: Latencies,
    /// Scans that ended meanwhile.
    pub(super) scans: u32,
}

pub(super) fn measure(
    node: &NodeProcess,
    args: &ScanArgs,
    generator: &Generator,
) -> Result<LatencyResults, BenchError> {
    let duration = Duration::from_secs(if args.quick { 1 } else { 5 });
    let connect = node.connect_options();
    let keys = some_keys(generator, KEYS);
    let scan_once = || scan(node, args.node.vbuckets, true, args.connections[0], generator.count());
    // Fills the block cache, and with the GETs of the idle measurement everything is warm.
    scan_once()?;

    let rest = || {
        std::thread::sleep(duration);
        Ok(())
    };
    latency::beside(&connect, CONNECTIONS, &keys, rest)?;
    let idle = latency::beside(&connect, CONNECTIONS, &keys, rest)?;
    let mut scans = 0;
    let scanning = latency::beside(&connect, CONNECTIONS, &keys, || {
        let started = Instant::now();
        while started.elapsed() < duration {
            scan_once()?;
            scans += 1;
        }
        Ok(())
    })?;
    Ok(LatencyResults { idle, scanning, scans })
}
