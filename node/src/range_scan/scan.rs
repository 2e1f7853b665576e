//! One range scan: what it covers, where it stands, who waits for it.
//!
//! Invariants
//! - The reader is here while the scan is Idle and with the reading task while it is Continuing.
//! - There is somebody to answer exactly while it is Continuing.
//!
//! Does not know: other scans, when its state changes (`registry` decides).

use std::cell::{Cell, RefCell};
use std::ops::Bound;
use std::rc::Rc;

use ringbase_storage::scan::{KeyScan, ScanCounts};
use ringbase_storage::sync::Event;
use ringbase_storage::types::{BucketId, VbId, VbUuid};

use super::frame::FrameSink;
use super::state::{ScanState, StateCell};
use crate::protocol::CollectionId;
use crate::protocol::range_scan::{RangeScanContinue, ScanId, Selection};
use crate::protocol::scan_records::RecordKind;

/// Category of the spans of range scans.
pub(super) const SPANS: &str = "ringbase::range_scan";

/// Buffers of one scan under way to its connection or being filled, at most.
pub const BUFFERS_MAX: u32 = 2;

/// A vbucket of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VbAddress {
    /// The bucket.
    pub bucket: BucketId,
    /// The vbucket in it.
    pub vb: VbId,
}

/// A connection, numbered by the node; never reused while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Place for one scan; gives it back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Rc<Cell<usize>>);

impl Slot {
    /// A place, if fewer than `max` are taken.
    pub(super) fn take(taken: &Rc<Cell<usize>>, max: usize) -> Option<Slot> {
        if taken.get() >= max {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Slot(taken.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What a client asked for at creation, as statistics show it.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) selection: Selection,
    pub(super) kind: RecordKind,
    pub(super) include_xattrs: bool,
    pub(super) name: Option<String>,
    /// Chance of each key in a sample.
    pub(super) chance: Option<f64>,
}

/// A continue that waits for its final frame.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) sink: Rc<dyn FrameSink>,
    pub(super) connection: ConnectionId,
    pub(super) started_ns: u64,
    pub(super) span: tracing::Span,
}

/// The limits of the latest continue and what it has used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) request: RangeScanContinue,
    pub(super) deadline_ns: Option<u64>,
    /// The scan's counts when the continue began.
    pub(super) from: ScanCounts,
}

/// See the module.
pub(super) struct Scan {
    pub(super) id: ScanId,
    pub(super) at: VbAddress,
    /// The branch that its snapshot belongs to.
    pub(super) uuid: VbUuid,
    pub(super) collection: CollectionId,
    pub(super) described: Described,
    /// Monotonic.
    pub(super) created_ns: u64,
    pub(super) state: StateCell,
    /// Where to read on; `None` while the reading task has it.
    pub(super) reader: RefCell<Option<KeyScan>>,
    pub(super) waiting: RefCell<Option<Waiting>>,
    /// Buffers of [`Self::generation`] that were sent and have not come back.
    pub(super) in_flight: Cell<u32>,
    /// Rises when another connection takes over, whose memory is not that of the one before.
    pub(super) generation: Cell<u32>,
    /// The connection of the latest continue.
    pub(super) connection: Cell<Option<ConnectionId>>,
    pub(super) continues: Cell<u64>,
    pub(super) counts: Cell<ScanCounts>,
    pub(super) progress: Cell<Option<Progress>>,
    /// Whether the latest stop was for a full buffer.
    pub(super) exceeded_buffer: Cell<bool>,
    /// Whether the reading task waits for its turn or for credit.
    pub(super) queued: Cell<bool>,
    /// Credit came back, or the state changed.
    pub(super) changed: Event,
    pub(super) _slot: Slot,
}

impl Scan {
    /// Tells the span of a continue what it delivered and how it ended.
    pub(super) fn explain(&self, ended: &Waiting, result: &dyn std::fmt::Display) {
        let (counts, from) =
            (self.counts.get(), self.progress.get().map_or_else(ScanCounts::default, |p| p.from));
        ended.span.record("records", counts.records - from.records);
        ended.span.record("bytes", counts.bytes - from.bytes);
        ended.span.record("result", tracing::field::display(result));
    }

    pub(super) fn is_continuing(&self) -> bool {
        self.state.get() == ScanState::Continuing
    }

    /// Whether one more buffer may be filled.
    pub(super) fn has_credit(&self) -> bool {
        self.in_flight.get() < BUFFERS_MAX
    }

    /// Lends the scan to a connection: what another one has not sent yet is no longer counted.
    pub(super) fn lend(&self, connection: ConnectionId) {
        if self.connection.replace(Some(connection)) != Some(connection) {
            self.forget_frames();
        }
    }

    /// The frames under way will not come back, or no longer count.
    pub(super) fn forget_frames(&self) {
        self.generation.set(self.generation.get().wrapping_add(1));
        self.in_flight.set(0);
    }

    /// Start and end of the range for statistics.
    pub(super) fn bounds(&self) -> (String, String) {
        let text = |bound: &Bound<Vec<u8>>, unbounded: &str| match bound {
            Bound::Included(key) => key.escape_ascii().to_string(),
            Bound::Excluded(key) => format!("{} (exclusive)", key.escape_ascii()),
            Bound::Unbounded => unbounded.to_owned(),
        };
        match &self.described.selection {
            Selection::Range { start, end } => (text(start, ""), text(end, "\\xff")),
            Selection::All | Selection::Sampling { .. } => (String::new(), "\\xff".to_owned()),
        }
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scan({} of vbucket {}, {:?})", self.id, self.at.vb, self.state.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T5.14
    #[test]
    fn a_slot_is_free_again_when_its_owner_dies_and_not_before() {
        let taken = Rc::new(Cell::new(0));
        let first = Slot::take(&taken, 2).unwrap();
        let second = Slot::take(&taken, 2);
        assert!(second.is_some() && Slot::take(&taken, 2).is_none());
        drop(first);
        assert!(Slot::take(&taken, 2).is_some());
        drop(second);
        assert_eq!(taken.get(), 0);
    }
}
