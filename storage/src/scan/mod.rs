//! Scans: reading a view in key order or in seqno order, a bounded piece at a time.
//!
//! A scan is driven by its caller: each call reads until its buffer, a limit or the end is reached, and returns. Between calls a scan may
//! be parked: it then holds its position and the view, nothing else.
//!
//! Invariants
//! - Each key at most once, at the version its view shows. Never a deletion, in key order, but for a [`VersionScan`].
//! - Nothing is built at creation; memory is the read-ahead window and the caller's buffer.
//!
//! Does not know: DCP, credit, sockets, encodings of the wire beyond the key column.

mod estimate;
mod key;
mod merge;
mod seqno;
mod version;
mod window;

pub use estimate::ScanEstimate;
pub use key::{Content, DocumentEncoder, KeyRange, KeyScan, Limits, ScanCounts, Select, Stop};
pub use seqno::{SeqnoRecord, SeqnoScan, SeqnoScanCounts};
pub use version::VersionScan;
