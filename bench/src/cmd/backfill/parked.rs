//! What streams cost in memory while they stand still, because their clients read nothing and give nothing back.
//!
//! Resident memory without the block cache is compared with that of the same node at rest, after it has streamed everything once.
//!
//! Invariants
//! - All streams exist at the moment of the measurement, which the node confirms; none was refused.
//!
//! Does not know: throughput.

use std::time::Duration;

use ringbase::client::{Connection, DcpClient, DcpOptions};
use ringbase::protocol::dcp::StreamRequest;
use serde::Serialize;

use super::Source;
use super::drain::{DrainPlan, drain};
use super::rows::Kind;
use crate::error::BenchError;
use crate::node::{Control, NodeProcess};

/// What standing streams may hold above an idle node.
pub(super) const ALLOWED_BYTES: i64 = 64 << 20;

/// Time in which sockets fill up and memory comes to rest.
const SETTLE: Duration = Duration::from_secs(2);

/// The window of each connection: less than a stream has.
const WINDOW_BYTES: u32 = 64 << 10;

/// Connections at least.
const CONNECTIONS: usize = 8;

/// What was found.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Parked {
    /// Where the streams read.
    pub(super) kind: Kind,
    pub(super) streams: usize,
    pub(super) connections: usize,
    /// Resident bytes without the block cache: at rest, with the streams, and when they are gone.
    pub(super) idle_bytes: i64,
    pub(super) parked_bytes: i64,
    pub(super) after_bytes: i64,
}

impl Parked {
    /// What the streams hold.
    pub(super) fn above_idle_bytes(&self) -> i64 {
        self.parked_bytes - self.idle_bytes
    }
}

fn memory(node: &NodeProcess, control: &mut Control) -> Result<i64, BenchError> {
    std::thread::sleep(SETTLE);
    Ok(node.resident_bytes()? as i64 - control.cache()?.bytes as i64)
}

/// # Errors
/// The node or the client, or a stream does not stand.
pub(super) fn measure(kind: Kind, source: &Source<'_>, count: u32) -> Result<Parked, BenchError> {
    let Source { node, connect, streams, .. } = source;
    let count = count as usize;
    eprintln!("{count} streams that stand still, {}", kind.name());
    let mut control = Control::open(connect)?;
    let plan = DrainPlan { connect: connect.clone(), streams, connections: CONNECTIONS, buffer_bytes: 0 };
    drain(&plan)?;
    let idle_bytes = memory(node, &mut control)?;
    let connections = CONNECTIONS.max(count.div_ceil(streams.len().max(1)));
    let mut clients = Vec::new();
    for number in 0..connections {
        let options = DcpOptions {
            window_bytes: WINDOW_BYTES,
            acknowledges: false,
            noop_interval: None,
            ..DcpOptions::named(format!("ringbench:parked:{number}"))
        };
        let mut client = DcpClient::open(Connection::open(connect)?, &options)?;
        let share = count / connections + usize::from(number < count % connections);
        for at in 0..share {
            // Connections begin at different vbuckets, so that every vbucket has some.
            let (vbucket, high) = streams[(number * share + at) % streams.len()];
            client.ask(vbucket, &StreamRequest { end: high, ..StreamRequest::FROM_NOTHING })?;
        }
        clients.push(client);
    }
    let parked_bytes = memory(node, &mut control)?;
    let found = standing(&mut control)?;
    if found != count {
        return Err(BenchError::Unsound(format!("{found} of {count} streams stand still")));
    }
    drop(clients);
    let after_bytes = memory(node, &mut control)?;
    Ok(Parked { kind, streams: count, connections, idle_bytes, parked_bytes, after_bytes })
}

/// Streams that the node has, of this measurement.
fn standing(control: &mut Control) -> Result<usize, BenchError> {
    let stats = control.stats("dcp")?;
    let is_one = |name: &&String| name.contains("ringbench:parked:") && name.ends_with("_last_read_seqno");
    Ok(stats.keys().filter(is_one).count())
}
