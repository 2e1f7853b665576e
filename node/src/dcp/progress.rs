//! How far a backfill is, how fast it is, and when it will be through.
//!
//! Progress is counted in seqnos, from where the backfill began to the end of its view: what is superseded or not carried is progress
//! too, so the end is reached at 100 %. The speed is that of the last [`WINDOW_NS`] to twice that, the current wait included: a
//! backfill that stands still soon says so.
//!
//! Invariants
//! - What is not known is absent: without a view there is no progress, without speed no estimate.
//!
//! Cost: a look at the clock and a copy a run, nothing a document.
//! Does not know: how it is read, who asks.

use ringbase_storage::scan::SeqnoScan;
use ringbase_storage::types::Seqno;
use serde_json::Value;

use super::stream::{Counts, Stream};

/// The speed is measured over at least this time, if the backfill is that old.
const WINDOW_NS: u64 = 5_000_000_000;

/// Where a backfill was at a moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at_ns: u64,
    position: u64,
    items: u64,
    bytes: u64,
}

/// See the module: a backfill whose view is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BackfillProgress {
    end: u64,
    /// At the seqno before its first.
    begun: Sample,
    /// The speed is measured from here.
    older: Sample,
    recent: Sample,
    /// Documents that it has looked at.
    read_items: u64,
}

impl BackfillProgress {
    fn new(begun: Sample, end: Seqno) -> BackfillProgress {
        BackfillProgress { end: end.0.max(begun.position), begun, older: begun, recent: begun, read_items: 0 }
    }

    /// It is here now.
    fn note(&mut self, now: Sample, read_items: u64) {
        self.read_items = read_items;
        if now.at_ns.saturating_sub(self.recent.at_ns) >= WINDOW_NS {
            (self.older, self.recent) = (self.recent, now);
        }
    }

    /// All of it by name; `unsent` are documents and bytes of it that wait for the client.
    fn fields(&self, now: Sample, unsent: (u64, u64)) -> Vec<(&'static str, Value)> {
        let (items, bytes) = (now.items - self.begun.items, now.bytes - self.begun.bytes);
        let before = self.begun.position;
        let done = now.position.clamp(before, self.end) - before;
        let total = self.end - before;
        let share = if total == 0 { 1.0 } else { done as f64 / total as f64 };
        let mut fields: Vec<(&'static str, Value)> = vec![
            ("backfill_start_seqno", (before + 1).into()),
            ("backfill_end_seqno", self.end.into()),
            ("backfill_seqno", now.position.into()),
            ("backfill_percent", rounded(share * 100.0, 10.0)),
            ("backfill_ns", now.at_ns.saturating_sub(self.begun.at_ns).into()),
            ("backfill_items_read", self.read_items.max(items).into()),
            ("backfill_bytes_read", bytes.into()),
            ("backfill_items_sent", items.saturating_sub(unsent.0).into()),
            ("backfill_bytes_sent", bytes.saturating_sub(unsent.1).into()),
        ];
        let seconds = now.at_ns.saturating_sub(self.older.at_ns) as f64 / 1e9;
        if seconds > 0.0 {
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
            let seqnos = rate(now.position, self.older.position);
            fields.push(("backfill_items_per_second", (rate(now.items, self.older.items) as u64).into()));
            fields.push(("backfill_bytes_per_second", (rate(now.bytes, self.older.bytes) as u64).into()));
            if seqnos > 0.0 {
                fields.push(("backfill_seconds_left", rounded((total - done) as f64 / seqnos, 1000.0)));
            }
        }
        fields
    }
}

/// A number with as many digits as are worth showing.
fn rounded(number: f64, steps: f64) -> Value {
    ((number * steps).round() / steps).into()
}

impl Stream {
    /// A run of a backfill begins; the first one is its beginning.
    pub(super) fn note_progress(&self, scan: &SeqnoScan) {
        let (now, counts) = (self.sample(), scan.counts());
        let mut progress = self.progress.get().unwrap_or_else(|| {
            let end = scan.view().end().min(self.end.get());
            BackfillProgress::new(now, end)
        });
        progress.note(now, counts.from_disk + counts.from_memory);
        self.progress.set(Some(progress));
    }

    /// How far its backfill is; nothing while it has none with a view.
    pub(super) fn progress_fields(&self, unsent: (u64, u64)) -> Vec<(&'static str, Value)> {
        self.progress.get().map(|progress| progress.fields(self.sample(), unsent)).unwrap_or_default()
    }

    fn sample(&self) -> Sample {
        let Counts { disk_items, memory_items, bytes } = self.counts.get();
        Sample {
            at_ns: self.now_ns(),
            position: self.position.get().0,
            items: disk_items + memory_items,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn at(seconds: u64, position: u64) -> Sample {
        Sample { at_ns: seconds * 1_000_000_000, position, items: position / 2, bytes: position * 50 }
    }

    fn fields(progress: &BackfillProgress, now: Sample) -> BTreeMap<&'static str, Value> {
        progress.fields(now, (3, 150)).into_iter().collect()
    }

    #[test]
    fn progress_speed_and_end_are_those_of_the_last_seconds() {
        let mut progress = BackfillProgress::new(at(10, 100), Seqno(1_100));
        let first = fields(&progress, at(10, 100));
        assert_eq!((&first["backfill_percent"], &first["backfill_start_seqno"]), (&0.0.into(), &101.into()));
        assert!(
            !first.contains_key("backfill_seconds_left") && !first.contains_key("backfill_items_per_second")
        );
        // Slow for ten seconds, then ten times as fast.
        progress.note(at(15, 150), 25);
        progress.note(at(20, 200), 50);
        let slow = fields(&progress, at(20, 200));
        assert_eq!(slow["backfill_percent"], 10.0);
        assert_eq!((&slow["backfill_items_read"], &slow["backfill_items_sent"]), (&50.into(), &47.into()));
        assert_eq!(
            (&slow["backfill_bytes_read"], &slow["backfill_bytes_sent"]),
            (&5_000.into(), &4_850.into())
        );
        assert_eq!(
            (&slow["backfill_items_per_second"], &slow["backfill_bytes_per_second"]),
            (&5.into(), &500.into())
        );
        assert_eq!(slow["backfill_seconds_left"], 90.0);
        progress.note(at(25, 700), 300);
        progress.note(at(28, 1_000), 450);
        let fast = fields(&progress, at(28, 1_000));
        assert_eq!((&fast["backfill_percent"], &fast["backfill_seconds_left"]), (&90.0.into(), &1.0.into()));
    }

    #[test]
    fn a_backfill_that_stands_still_has_no_estimate_and_one_of_nothing_is_done() {
        let mut progress = BackfillProgress::new(at(0, 0), Seqno(100));
        for seconds in [5, 10, 15] {
            progress.note(at(seconds, 50), 25);
        }
        let stalled = fields(&progress, at(20, 50));
        assert_eq!(
            (&stalled["backfill_percent"], &stalled["backfill_items_per_second"]),
            (&50.0.into(), &0.into())
        );
        assert!(!stalled.contains_key("backfill_seconds_left"));
        let nothing = BackfillProgress::new(at(0, 7), Seqno(7));
        assert_eq!(fields(&nothing, at(1, 7))["backfill_percent"], 100.0);
    }
}
