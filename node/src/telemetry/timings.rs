//! The histograms that the node itself records on a core: requests by opcode, waits between cores.
//!
//! Recording allocates nothing, except the first time an opcode is seen.
//!
//! Does not know: how they are shown; what shards, rings and range scans record.

use std::cell::RefCell;

use hdrhistogram::Histogram;
use ringbase_storage::metrics::latency_histogram;

use crate::protocol::Opcode;

/// A histogram with its name, on its way to be shown. Values in nanoseconds unless the name says otherwise.
#[derive(Debug, Clone)]
pub struct NamedHistogram {
    /// Name as statistics show it.
    pub name: String,
    /// The values.
    pub histogram: Histogram<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct CoreTimings {
    by_opcode: RefCell<Vec<Option<Box<Histogram<u64>>>>>,
    mailbox_wait: RefCell<Histogram<u64>>,
}

impl Default for CoreTimings {
    fn default() -> CoreTimings {
        CoreTimings {
            by_opcode: RefCell::new((0..=u8::MAX).map(|_| None).collect()),
            mailbox_wait: RefCell::new(latency_histogram()),
        }
    }
}

impl CoreTimings {
    /// A request was answered `latency_ns` after it had been read.
    pub fn record_request(&self, opcode: Opcode, latency_ns: u64) {
        self.record_requests(opcode, latency_ns, 1);
    }

    /// `count` requests were answered `latency_ns` after they had been read.
    pub fn record_requests(&self, opcode: Opcode, latency_ns: u64, count: u64) {
        let mut by_opcode = self.by_opcode.borrow_mut();
        let histogram = by_opcode[usize::from(opcode.0)].get_or_insert_with(|| Box::new(latency_histogram()));
        histogram.saturating_record_n(latency_ns, count);
    }

    /// A batch of `count` messages waited this long.
    pub fn record_mailbox_wait(&self, wait_ns: u64, count: u64) {
        self.mailbox_wait.borrow_mut().saturating_record_n(wait_ns, count);
    }

    /// Everything recorded so far that is not empty.
    #[must_use]
    pub fn snapshot(&self) -> Vec<NamedHistogram> {
        let by_opcode = self.by_opcode.borrow();
        let requests = (0..=u8::MAX).zip(by_opcode.iter()).filter_map(|(opcode, histogram)| {
            let name = format!("request_{}", Opcode(opcode).name().to_ascii_lowercase());
            histogram.as_ref().map(|histogram| NamedHistogram { name, histogram: (**histogram).clone() })
        });
        let waits =
            NamedHistogram { name: "mailbox_wait".into(), histogram: self.mailbox_wait.borrow().clone() };
        requests.chain([waits]).filter(|named| !named.histogram.is_empty()).collect()
    }

    /// Begins anew.
    pub fn reset(&self) {
        self.by_opcode.borrow_mut().iter_mut().for_each(|histogram| *histogram = None);
        self.mailbox_wait.borrow_mut().reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_recorded_by_opcode_and_reset() {
        let timings = CoreTimings::default();
        timings.record_request(Opcode::GET, 1000);
        timings.record_request(Opcode::GET, 3000);
        timings.record_mailbox_wait(500, 3);
        let names: Vec<(String, u64)> =
            timings.snapshot().into_iter().map(|named| (named.name, named.histogram.len())).collect();
        assert_eq!(names, [("request_get".to_owned(), 2), ("mailbox_wait".to_owned(), 3)]);
        timings.reset();
        assert!(timings.snapshot().is_empty());
    }
}
