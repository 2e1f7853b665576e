//! Small requests beside a scan: their latency on an idle node and while scans run on the same cores (T5.3).
//!
//! Does not know: buffer sizes other than the node's own choice.

use std::time::Duration;

use ringbase::client::Generator;

use super::super::scan;
use super::ScanArgs;
use crate::error::BenchError;
use crate::latency::{Compared, compare};
use crate::node::NodeProcess;

/// Beside warm key-only scans, one after the other.
pub(super) fn measure(
    node: &NodeProcess,
    args: &ScanArgs,
    generator: &Generator,
) -> Result<Compared, BenchError> {
    let scan_once = || {
        scan(node, args.node.vbuckets, true, args.connections[0], generator.count())?;
        Ok(())
    };
    // Fills the block cache, and with the GETs of the idle measurement everything is warm.
    scan_once()?;
    let duration = Duration::from_secs(if args.quick { 1 } else { 5 });
    compare(&node.connect_options(), generator, duration, scan_once)
}
