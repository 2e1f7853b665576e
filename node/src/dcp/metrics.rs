//! What the streams of a core count and time.
//!
//! Cost: 20 ns a record; nothing is allocated after the start.
//! Does not know: how it is shown, other cores.

use ringbase_storage::shard::{Counter, Recorder};

use super::slots::SlotMetrics;
use super::time::{Spent, SpentTimes};

/// See the module.
#[derive(Debug, Default)]
pub struct StreamMetrics {
    /// What the streams spend their time on.
    pub spent: SpentTimes,
    /// How long backfills waited until they might read.
    pub slots: SlotMetrics,
    /// Nanoseconds from a backfill's view being opened to its first message being made (T2.10).
    pub first_item_ns: Recorder,
    /// Bytes of messages in a piece.
    pub piece_bytes: Recorder,
    /// Streams that began.
    pub streams: Counter,
    /// Views that were opened for a backfill.
    pub backfills: Counter,
    /// Those of them that are read in key order.
    pub oso_backfills: Counter,
    /// Backfills that ended because data could not be read (T3.6).
    pub read_failures: Counter,
    /// Stream requests that were refused for want of memory.
    pub refused_for_memory: Counter,
}

impl StreamMetrics {
    /// The histograms by name.
    #[must_use]
    pub fn recorders(&self) -> Vec<(String, &Recorder)> {
        let spent = Spent::ALL.map(|what| (format!("dcp_{}_ns", what.name()), self.spent.of(what)));
        let others = [
            ("dcp_snapshot_to_first_item_ns".to_owned(), &self.first_item_ns),
            ("dcp_piece_bytes".to_owned(), &self.piece_bytes),
        ];
        spent.into_iter().chain(others).chain(self.slots.recorders()).collect()
    }

    /// The counters by name.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = [
            ("dcp_streams", self.streams.get()),
            ("dcp_backfills", self.backfills.get()),
            ("dcp_oso_backfills", self.oso_backfills.get()),
            ("ep_data_read_failed", self.read_failures.get()),
            ("dcp_refused_for_memory", self.refused_for_memory.get()),
        ];
        counters.into_iter().chain(self.slots.counters()).collect()
    }
}
