//! What the range scans of a core count and time.
//!
//! Cost: 20 ns a record; nothing is allocated after the start.
//! Does not know: how it is shown, other cores.

use ringbase_storage::shard::{Counter, Recorder};

/// See the module.
#[derive(Debug, Default)]
pub struct ScanMetrics {
    /// Nanoseconds from the request of a create to its answer, waiting for the snapshot included.
    pub create_ns: Recorder,
    /// Nanoseconds of filling one buffer.
    pub fill_ns: Recorder,
    /// Nanoseconds from a buffer being full to its way back after it was sent.
    pub full_to_sent_ns: Recorder,
    /// Bytes of records in a buffer.
    pub buffer_bytes: Recorder,
    /// Records in a buffer.
    pub buffer_records: Recorder,
    /// Nanoseconds from a continue to its final response.
    pub continue_ns: Recorder,
    /// Scans created.
    pub created: Counter,
    /// Creates that were refused or found nothing.
    pub refused: Counter,
    /// Scans that reached their end.
    pub completed: Counter,
    /// Scans cancelled by a client, with their connection, or by the node.
    pub cancelled: Counter,
    /// Scans that grew too old.
    pub expired: Counter,
    /// Scans that ended because data could not be read.
    pub read_failures: Counter,
    /// Scans that ended by a bug of ours.
    pub panics: Counter,
    /// Buffers that had to be allocated.
    pub buffers_allocated: Counter,
    /// Buffers used again.
    pub buffers_reused: Counter,
}

impl ScanMetrics {
    /// The histograms by name.
    #[must_use]
    pub fn recorders(&self) -> [(&'static str, &Recorder); 6] {
        [
            ("range_scan_create_ns", &self.create_ns),
            ("range_scan_fill_ns", &self.fill_ns),
            ("range_scan_full_to_sent_ns", &self.full_to_sent_ns),
            ("range_scan_buffer_bytes", &self.buffer_bytes),
            ("range_scan_buffer_records", &self.buffer_records),
            ("range_scan_continue_ns", &self.continue_ns),
        ]
    }

    /// The counters by name.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 9] {
        [
            ("range_scan_created", self.created.get()),
            ("range_scan_refused", self.refused.get()),
            ("range_scan_completed", self.completed.get()),
            ("range_scan_cancelled", self.cancelled.get()),
            ("range_scan_expired", self.expired.get()),
            ("range_scan_read_failures", self.read_failures.get()),
            ("range_scan_panics", self.panics.get()),
            ("range_scan_buffers_allocated", self.buffers_allocated.get()),
            ("range_scan_buffers_reused", self.buffers_reused.get()),
        ]
    }
}
