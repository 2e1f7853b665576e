//! Backfills in key order, "out of sequence order" (OSO) in the protocol: which streams get their past this way, and what reads it.
//!
//! A stream of few collections of a large vbucket needs few of its documents. By seqno all of them are read and most left out. By key the
//! collections' keys are read, and then only the blocks that hold their documents, many at once. The client must have allowed it, for it gets seqnos
//! in any order and has nothing to resume from before the snapshot's end.
//!
//! The choice is the bucket's `dcp_oso_backfill`; `auto` compares what is read ([`ScanEstimate`]), in device blocks:
//!
//! `keys + 2 · documents by key < documents by seqno`
//!
//! The reference compares items: under 0.5 % of the vbucket's for documents under 256 bytes, under 4 % for larger ones. Of documents that lie
//! anywhere in blocks of 16 KiB, this formula has its limit where one in twice as many as a block holds is wanted: about 1 % at 256 bytes, 3 % at
//! 1 KiB; documents that are known to lie in few blocks, because of when their collection began and ended, count for those blocks at most.
//!
//! Measured on a simulated disk (`storage/tests/it/collections.rs`), 6 000 documents of 500 bytes in 901 blocks: 28 scattered ones take 114 blocks by
//! key, where the formula has 161; 300 written in a row 98, where it has 1 284, for it does not know that; 5 672 take 17 183, where it has 28 940.
//!
//! Invariants
//! - The view is the one that a backfill by seqno would have read; only the order is another. What follows begins behind its end.
//! - Only the first backfill of a stream from seqno 0, of nothing but collections that its view knows as open.
//!
//! Cost: the choice looks at the fences of the vbucket, once a stream.
//! Does not know: messages, pieces, turns.

use ringbase_storage::collections::Subject;
use ringbase_storage::reader::ReadError;
use ringbase_storage::scan::{KeyRange, ScanEstimate, SeqnoRecord, SeqnoScan, VersionScan};
use ringbase_storage::types::Seqno;
use ringbase_storage::vbstore::ReadView;

use super::filter::CollectionFilter;
use super::snapshot::Order;
use super::stream::Stream;
use crate::bucket::OsoBackfill;
use crate::protocol::dcp::{OutOfOrderSnapshots, StreamFlags};

/// How many blocks in a row one block anywhere is worth. Those in a row are read several at once, which is cheaper, and the estimate leaves out
/// deletions.
const ANYWHERE_WEIGHT: u64 = 2;

/// The kind of a scan in spans, as long as no other is chosen.
pub(super) const BY_SEQNO: &str = "by seqno";

/// What a backfill reads.
pub(super) enum BackfillScan {
    /// The vbucket, in the order of seqnos.
    BySeqno(SeqnoScan),
    /// Some collections, in the order of keys: so many key ranges.
    ByKey(VersionScan, usize),
}

impl BackfillScan {
    pub(super) fn order(&self) -> Order {
        match self {
            BackfillScan::BySeqno(_) => Order::Seqno,
            BackfillScan::ByKey(..) => Order::Key,
        }
    }

    /// Its name in spans.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            BackfillScan::BySeqno(_) => BY_SEQNO,
            BackfillScan::ByKey(..) => "by key",
        }
    }

    /// Key ranges of a scan by key.
    pub(super) fn ranges(&self) -> Option<usize> {
        match self {
            BackfillScan::BySeqno(_) => None,
            BackfillScan::ByKey(_, ranges) => Some(*ranges),
        }
    }

    pub(super) fn view(&self) -> &ReadView {
        match self {
            BackfillScan::BySeqno(scan) => scan.view(),
            BackfillScan::ByKey(scan, _) => scan.view(),
        }
    }

    /// As [`SeqnoScan::purge_seqno`]; a scan from nothing misses nothing.
    pub(super) fn purge_seqno(&self) -> Seqno {
        match self {
            BackfillScan::BySeqno(scan) => scan.purge_seqno(),
            BackfillScan::ByKey(..) => Seqno(0),
        }
    }

    /// First and last seqno of what a scan that has failed could not read, as far as that is known.
    pub(super) fn unreadable(&self) -> Option<(Seqno, Seqno)> {
        match self {
            BackfillScan::BySeqno(scan) => scan.unreadable(),
            BackfillScan::ByKey(..) => None,
        }
    }

    /// As [`SeqnoScan::failure_ahead`]; a scan by key reads nothing ahead.
    pub(super) async fn failure_ahead(&mut self) -> ReadError {
        match self {
            BackfillScan::BySeqno(scan) => scan.failure_ahead().await,
            BackfillScan::ByKey(..) => std::future::pending().await,
        }
    }

    /// Lets go of what was read ahead.
    pub(super) fn park(&mut self) {
        match self {
            BackfillScan::BySeqno(scan) => scan.park(),
            BackfillScan::ByKey(scan, _) => scan.park(),
        }
    }

    /// Shows records to `visit` until it says stop (after the one it was shown) or the end; false at the end.
    pub(super) async fn run(
        &mut self,
        visit: impl FnMut(SeqnoRecord<'_>) -> bool,
    ) -> Result<bool, ReadError> {
        match self {
            BackfillScan::BySeqno(scan) => scan.run(visit).await,
            BackfillScan::ByKey(scan, _) => scan.run(visit).await,
        }
    }
}

impl Stream {
    /// The scan of the same view in the order that suits the stream.
    pub(super) fn in_best_order(&self, scan: SeqnoScan) -> BackfillScan {
        let Some(collections) = self.in_key_order(scan.view()) else { return BackfillScan::BySeqno(scan) };
        let events = collections.iter().map(|id| KeyRange::event(Subject::Collection(*id)));
        let ranges = events.chain(collections.iter().map(|id| KeyRange::collection(*id)));
        self.core.metrics.oso_backfills.add(1);
        BackfillScan::ByKey(VersionScan::new(scan.view().clone(), ranges), 2 * collections.len())
    }

    /// The collections of a backfill that is better done in key order.
    fn in_key_order(&self, view: &ReadView) -> Option<Vec<u32>> {
        let settings = self.bucket.settings();
        let is_whole = self.end.get() >= view.end()
            || self.has_flag(StreamFlags::TO_LATEST)
            || self.has_flag(StreamFlags::DISK_ONLY);
        let is_allowed = self.spec.out_of_order != OutOfOrderSnapshots::Off
            && settings.oso_backfill != OsoBackfill::Disabled
            && self.position.get() == Seqno(0)
            && !self.store.is_ephemeral()
            && is_whole;
        if !is_allowed {
            return None;
        }
        let collections: Vec<u32> = match &*self.filter.borrow() {
            CollectionFilter::Collections(ids) => ids.iter().map(|id| id.0).collect(),
            _ => return None,
        };
        let is_open = |id: &u32| view.collections().is_open(Subject::Collection(*id));
        if collections.len() > settings.oso_collections_max || !collections.iter().all(is_open) {
            return None;
        }
        let is_better = settings.oso_backfill == OsoBackfill::Enabled
            || prefers_key_order(&ScanEstimate::of(view, &collections));
        is_better.then_some(collections)
    }
}

fn prefers_key_order(estimate: &ScanEstimate) -> bool {
    let by_key = estimate.document_blocks.saturating_mul(ANYWHERE_WEIGHT).saturating_add(estimate.key_blocks);
    by_key < estimate.seqno_blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_order_is_preferred_where_it_reads_less_than_half() {
        for (seqno_blocks, key_blocks, document_blocks, expected) in [
            (0, 0, 0, false),
            (1, 0, 0, true),
            (1_000, 10, 494, true),
            (1_000, 10, 495, false),
            (1_000, 1_000, 0, false),
            (u64::MAX, 0, u64::MAX, false),
        ] {
            let estimate = ScanEstimate { seqno_blocks, key_blocks, document_blocks };
            assert_eq!(prefers_key_order(&estimate), expected, "{estimate:?}");
        }
    }
}
