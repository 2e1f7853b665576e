//! The statistics of range scans and of the node's own histograms, in the form that STAT gathers.
//!
//! Does not know: how they are measured.

use super::{StatGroup, StatPart, StatQuery, StatSource, Unit};
use crate::range_scan::RangeScans;
use crate::telemetry::CoreTimings;

impl StatSource for RangeScans {
    fn collect(&self, query: &StatQuery, part: &mut StatPart) {
        match (query.group, query.bucket) {
            (StatGroup::RangeScans, Some(bucket)) => {
                self.stats(bucket, query.vbucket, &mut |name, value| match number_of_core(name, &value) {
                    Some(number) => part.sum(name.to_owned(), number),
                    None => part.text(name.to_owned(), value),
                });
            }
            (StatGroup::General, _) => {
                for (name, number) in self.metrics().counters() {
                    part.sum(name, number);
                }
            }
            (StatGroup::Timings, _) => {
                for (name, recorder) in self.metrics().recorders() {
                    part.histogram(name, &recorder.histogram(), Unit::AsRecorded);
                }
            }
            (
                StatGroup::RangeScans
                | StatGroup::Uuid
                | StatGroup::Vbucket
                | StatGroup::VbucketDetails
                | StatGroup::VbucketSeqno
                | StatGroup::Failovers
                | StatGroup::Collections
                | StatGroup::CollectionsById
                | StatGroup::CollectionsDetails
                | StatGroup::Scopes
                | StatGroup::ScopesById
                | StatGroup::ScopesDetails
                | StatGroup::Dcp
                | StatGroup::DcpAgg
                | StatGroup::DcpVbTakeover
                | StatGroup::Backfills
                | StatGroup::Scrub
                | StatGroup::Reset,
                _,
            ) => {}
        }
    }

    fn reset(&self) {
        for (_, recorder) in self.metrics().recorders() {
            recorder.reset();
        }
    }
}

/// The numbers that belong to a core add up; those of a scan, times and limits do not.
fn number_of_core(name: &str, value: &str) -> Option<u64> {
    let adds_up = ["num_running", "max_running", "concurrent_task_limit", "tasks_size", "ready_queue_size"];
    adds_up.contains(&name).then(|| value.parse().ok()).flatten()
}

impl StatSource for CoreTimings {
    fn collect(&self, query: &StatQuery, part: &mut StatPart) {
        if query.group == StatGroup::Timings {
            for named in self.snapshot() {
                part.histogram(named.name, &named.histogram, Unit::MicrosOfNanos);
            }
        }
    }

    fn reset(&self) {
        CoreTimings::reset(self);
    }
}
