//! Range scans on the core that owns the vbucket: created, read, bounded, ended. The connection's core only sends.
//!
//! A scan holds a snapshot of one vbucket and a position in key order. A continue reads from there into buffers of a bounded size; each is
//! handed to a [`FrameSink`], sent by the connection's core, and brought back with [`RangeScans::frame_sent`]. At most two buffers of a scan
//! are filled or under way, so a slow client stops the reading and nothing else.
//!
//! Bottom up: [`ScanState`] (the state machine), [`ScanBuffer`], [`ScanFrame`], then the registry with every change of state,
//! and on top creating, reading and statistics.
//!
//! Invariants
//! - Everything runs on one core; only frames cross to others.
//! - A create gets one answer, a continue exactly one final frame.
//! - Memory of a scan: two buffers and one record while it continues, its position while it is Idle.
//!
//! Does not know: DCP, sockets, privileges.
//! Source: `spec/scan-and-backfill.md` part 5; KV binary protocol, range scan.

mod state;

mod buffer;
mod document;
mod metrics;
mod sampling;
mod settings;
mod turns;

mod frame;

mod scan;

mod registry;

mod create;
mod reading;
mod stats;

pub(crate) use buffer::BufferPool;
pub use buffer::{BufferBytes, HEAD_ROOM, SPARE_BYTES_MAX, ScanBuffer};
pub use frame::{FrameSink, ScanFrame, SentFrame};
pub use metrics::ScanMetrics;
pub use registry::{ActiveVbuckets, RangeScans};
pub use scan::{BUFFERS_MAX, ConnectionId, VbAddress};
pub use settings::{
    AUTO_READERS_MAX, AUTO_SEND_BYTES, RangeScanConfig, SEND_BYTES_MAX, SendSize, SettingError, scans_max,
};
pub use state::{IllegalTransition, ScanState};
pub use stats::Visit;
