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

use super::{KeyRange, KeyScan, SeqnoRecord};
use crate::reader::ReadError;
use crate::vbstore::ReadView;

/// Bytes of blocks that are read at once: many streams do it at the same time.
pub(super) const WINDOW_BYTES: usize = 1 << 20;

/// See the module.
pub struct VersionScan {
    view: ReadView,
    scan: Option<KeyScan>,
    ranges: VecDeque<KeyRange>,
    records: u64,
}

impl VersionScan {
    /// A scan of `ranges` in `view`.
    ///
    /// # Panics
    /// As [`KeyScan::new`].
    #[must_use]
    pub fn new(view: ReadView, ranges: impl IntoIterator<Item = KeyRange>) -> VersionScan {
        let mut scan = VersionScan { view, scan: None, ranges: ranges.into_iter().collect(), records: 0 };
        scan.begin_next();
        scan
    }

    /// The view that is scanned.
    #[must_use]
    pub fn view(&self) -> &ReadView {
        &self.view
    }

    /// How many versions it has shown so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    fn begin_next(&mut self) {
        let next = self.ranges.pop_front();
        self.scan = next.map(|range| KeyScan::of_versions(self.view.clone(), range, WINDOW_BYTES));
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
            let mut counted = |record: SeqnoRecord<'_>| {
                self.records += 1;
                visit(record)
            };
            if scan.run(&mut counted).await? {
                return Ok(true);
            }
            self.begin_next();
        }
        Ok(false)
    }
}
