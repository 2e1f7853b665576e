//! What it costs to read collections of a view in key order, and what in seqno order, before either is done.
//!
//! A scan by seqno reads every block of the vbucket's documents that is older than what is in memory, and leaves out what nobody asked
//! for. A scan by key reads the collections' key parts, and for each window of keys the blocks that hold one of their documents.
//! If `n` documents lie anywhere in `b` blocks, `b · (1 − (1 − 1/b)ⁿ)` blocks are read for them.
//!
//! Invariants
//! - Nothing is read: fences and counts are resident.
//!
//! Cost: a look at every fence of the vbucket.
//! Does not know: what a read costs, who decides.
//!
//! Source: A. F. Cárdenas, "Analysis and performance of inverted data base structures", CACM 18(5), 1975.

use super::KeyRange;
use super::key::WINDOW_RECORDS;
use super::version::WINDOW_BYTES;
use crate::io::BLOCK_BYTES;
use crate::types::Collection;
use crate::vbstore::{Parts, ReadView};

/// See the module. In device blocks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ScanEstimate {
    /// Of documents, for a scan in seqno order from the beginning.
    pub seqno_blocks: u64,
    /// Of keys, for a scan in key order.
    pub key_blocks: u64,
    /// Of documents, for a scan in key order. Deletions are not counted, and what is in memory by chance is.
    pub document_blocks: u64,
}

impl ScanEstimate {
    /// For reading these collections of a view; those that it does not know cost nothing.
    #[must_use]
    pub fn of(view: &ReadView, collections: &[u32]) -> ScanEstimate {
        let (parts, _) = view.parts();
        let resident_from = view.store().resident_from();
        let on_disk = || {
            let fences = parts.version.segments.iter().flat_map(|segment| segment.fences());
            fences.take_while(move |fence| fence.first < resident_from)
        };
        let mut estimate = ScanEstimate {
            seqno_blocks: on_disk().map(|fence| u64::from(fence.blocks)).sum(),
            ..ScanEstimate::default()
        };
        for collection in collections.iter().filter_map(|id| view.collections().get(*id)) {
            estimate.key_blocks += key_blocks(&parts, collection);
            let (fences, blocks) = on_disk()
                .skip_while(|fence| fence.last < collection.created)
                .take_while(|fence| fence.first <= collection.high_seqno)
                .fold((0, 0), |(fences, blocks), fence| (fences + 1, blocks + u64::from(fence.blocks)));
            estimate.document_blocks += document_blocks(fences, blocks, collection.items);
        }
        estimate
    }
}

/// Key parts hold the keys of one collection each.
fn key_blocks(parts: &Parts, collection: &Collection) -> u64 {
    let prefix = KeyRange::collection(collection.id).prefix;
    let mut blocks = 0;
    for run in &parts.version.runs {
        let fences = (run.part_of(&prefix).unwrap_or(0)..run.parts()).map(|part| run.fence(part));
        let of_collection = fences
            .skip_while(|fence| *fence.first_key < prefix[..])
            .take_while(|fence| fence.first_key.starts_with(&prefix));
        blocks += of_collection.map(|fence| u64::from(fence.key_blocks)).sum::<u64>();
    }
    blocks
}

/// Device blocks read for `documents` that lie anywhere in `fences` blocks of the seqlog, which are `blocks` device blocks.
fn document_blocks(fences: u64, blocks: u64, documents: u64) -> u64 {
    if fences == 0 || documents == 0 {
        return 0;
    }
    let (found_in, documents) = (fences as f64, documents as f64);
    let block_bytes = blocks as f64 / found_in * BLOCK_BYTES as f64;
    // How many documents a window has: it ends with its last key, or with its last byte of blocks.
    let blocks_max = (WINDOW_BYTES as f64 / block_bytes).max(1.0);
    let miss = 1.0 - 1.0 / found_in;
    let until_full =
        if blocks_max < found_in { (1.0 - blocks_max / found_in).ln() / miss.ln() } else { f64::MAX };
    let window = until_full.clamp(1.0, WINDOW_RECORDS as f64).min(documents);
    let reads = documents / window * found_in * (1.0 - miss.powf(window));
    (reads * blocks as f64 / found_in).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_that_share_blocks_are_read_together_and_strangers_one_by_one() {
        // One document, in any of 1 000 blocks of 16 KiB.
        assert_eq!(document_blocks(1_000, 4_000, 1), 4);
        // As many as there are, in one block.
        assert_eq!(document_blocks(1, 4, 1_000), 4 * 4, "four windows");
        // Few in many blocks: nearly one each.
        let few = document_blocks(100_000, 400_000, 100);
        assert!((398..=400).contains(&few), "{few}");
        // Many in few blocks: each block once a window.
        assert_eq!(document_blocks(10, 40, 2_560).abs_diff(400), 0);
        assert_eq!(document_blocks(0, 0, 5), 0);
        assert_eq!(document_blocks(5, 20, 0), 0);
    }

    #[test]
    fn a_window_that_is_full_of_blocks_has_fewer_documents() {
        // 64 blocks of 16 KiB fill a window; 256 documents in 200 blocks need more than one.
        let one_window = 200.0 * (1.0 - (1.0f64 - 1.0 / 200.0).powf(256.0)) * 4.0;
        assert!(document_blocks(200, 800, 256) > one_window as u64);
    }
}
