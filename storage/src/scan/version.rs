//! A scan of the newest versions of some key ranges, one range after the other, deletions among them: what a stream that does not need the
//! order of seqnos reads.
//!
//! Driven like [`SeqnoScan`](super::SeqnoScan): each call shows versions until its caller says stop or the end is reached.
//!
//! Invariants
//! - Each key of the ranges once, at the version its view shows; keys rise within a range.
//! - At most [`WINDOW_BYTES`] of blocks are read at once, and one block more.
//!
//! Cost: the key parts of the ranges, and for every window of keys each block that holds one of their documents.
//! Does not know: collections, streams, framing, credit.

use std::collections::VecDeque;

use super::{KeyRange, KeyScan, ScanCounts, SeqnoRecord};
use crate::reader::ReadError;
use crate::vbstore::ReadView;

/// Bytes of blocks that are read at once: many streams do it at the same time.
pub(super) const WINDOW_BYTES: usize = 1 << 20;

/// See the module.
pub struct VersionScan {
    view: ReadView,
    scan: Option<KeyScan>,
    ranges: VecDeque<KeyRange>,
    /// Of the ranges that are over.
    counts: ScanCounts,
}

impl VersionScan {
    /// A scan of `ranges` in `view`.
    ///
    /// # Panics
    /// As [`KeyScan::new`].
    #[must_use]
    pub fn new(view: ReadView, ranges: impl IntoIterator<Item = KeyRange>) -> VersionScan {
        let mut ranges: VecDeque<KeyRange> = ranges.into_iter().collect();
        let first = ranges.pop_front();
        let scan = first.map(|range| KeyScan::of_versions(view.clone(), range, WINDOW_BYTES));
        VersionScan { view, scan, ranges, counts: ScanCounts::default() }
    }

    /// The view that is scanned.
    #[must_use]
    pub fn view(&self) -> &ReadView {
        &self.view
    }

    /// What it has shown so far.
    #[must_use]
    pub fn counts(&self) -> ScanCounts {
        let now = self.scan.as_ref().map(KeyScan::counts).unwrap_or_default();
        ScanCounts {
            records: self.counts.records + now.records,
            bytes: self.counts.bytes + now.bytes,
            from_memory: self.counts.from_memory + now.from_memory,
            from_disk: self.counts.from_disk + now.from_disk,
        }
    }

    /// Lets go of everything but the position and the view.
    pub fn park(&mut self) {
        if let Some(scan) = &mut self.scan {
            scan.park();
        }
    }

    /// Shows versions to `visit` until it says stop (after the one it was shown) or the end; false at the end.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `Gone`: the scan is over.
    pub async fn run(&mut self, mut visit: impl FnMut(SeqnoRecord<'_>) -> bool) -> Result<bool, ReadError> {
        while let Some(scan) = &mut self.scan {
            if scan.run(&mut visit).await? {
                return Ok(true);
            }
            self.counts = self.counts();
            let next = self.ranges.pop_front();
            self.scan = next.map(|range| KeyScan::of_versions(self.view.clone(), range, WINDOW_BYTES));
        }
        Ok(false)
    }
}
