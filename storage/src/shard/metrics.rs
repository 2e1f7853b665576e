//! What a shard counts and times. Recording allocates nothing once a histogram has its range.
//!
//! Does not know: how it is shown, other shards.

use std::cell::{Cell, Ref, RefCell};

use hdrhistogram::Histogram;

/// A number that rises.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.set(self.0.get() + count);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// A histogram of one core, in the unit that its name says.
#[derive(Debug)]
pub struct Recorder(RefCell<Histogram<u64>>);

impl Default for Recorder {
    fn default() -> Recorder {
        // 1 to 10^12 (16 minutes in nanoseconds, a terabyte), two digits: 20 KiB, allocated once.
        let histogram = Histogram::new_with_bounds(1, 1_000_000_000_000, 2);
        Recorder(RefCell::new(histogram.expect("the bounds are a histogram's")))
    }
}

impl Recorder {
    /// Records one value.
    pub fn record(&self, value: u64) {
        self.0.borrow_mut().saturating_record(value);
    }

    /// Forgets all values.
    pub fn reset(&self) {
        self.0.borrow_mut().reset();
    }

    /// The histogram so far.
    #[must_use]
    pub fn histogram(&self) -> Ref<'_, Histogram<u64>> {
        self.0.borrow()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct ShardMetrics {
    /// Nanoseconds of a group commit, from taking the records to the end of its sync.
    pub wal_commit_ns: Recorder,
    /// Bytes of records in a group commit.
    pub wal_commit_bytes: Recorder,
    /// Nanoseconds of a flush of one or more vbuckets, from the first byte to its manifest change.
    pub flush_ns: Recorder,
    /// Bytes of memory that a flush freed.
    pub flush_bytes: Recorder,
    /// Merges of runs.
    pub merges: Counter,
    /// Bytes of blocks that they wrote.
    pub merge_written_bytes: Counter,
    /// Nanoseconds of a merge in the background, from the first read to its manifest change.
    pub merge_ns: Recorder,
    /// Merges that purged tombstones or erased collections.
    pub purges: Counter,
    /// Stretches of segments that were rewritten or dropped, and rewritten marks.
    pub reclaims: Counter,
    /// Bytes of blocks that reclamation wrote.
    pub reclaim_written_bytes: Counter,
    /// Bytes of blocks that it made go.
    pub reclaim_replaced_bytes: Counter,
    /// Nanoseconds of one rewriting, from the first read to its manifest change.
    pub reclaim_ns: Recorder,
    /// Rewritings that were given up.
    pub reclaim_failures: Counter,
    /// Flushes that were given up and will be tried again.
    pub flush_failures: Counter,
    /// Keys looked up on disk.
    pub disk_lookups: Counter,
    /// Places that scrubs have found damaged.
    pub scrub_damaged: Counter,
    /// Writes refused because the log or memory was full.
    pub writes_refused: Counter,
}
