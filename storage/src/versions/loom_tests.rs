//! Versions under loom: what is kept for a reader on another thread, and given up when it has moved, in every interleaving with at most two preemptions.

use loom::thread;

use super::*;
use crate::checking::{assert_caught, explore};
use crate::item::test_item;
use crate::seqlist::{BatchLimits, Progress};
use crate::types::Kind;

fn item(key: u8, seqno: u64, kind: Kind) -> Item {
    test_item(&[key], seqno, kind, b"v")
}

fn seqnos(mut reader: RangeReader) -> Vec<u64> {
    let mut out = Vec::new();
    while reader.next_batch(BatchLimits::default(), &mut out) == Progress::More {}
    out.iter().map(|item| item.seqno().0).collect()
}

/// T4.6, T4.7: a reader beside writes that replace what it sees, a purge, and the giving up of what it has passed.
#[test]
fn loom_a_reader_beside_replace_purge_and_settle() {
    explore(|| {
        let mut versions = Versions::default();
        let tombstone = item(2, 2, Kind::Deletion);
        versions.take(&item(1, 1, Kind::Mutation), Seqno(0));
        versions.take(&tombstone, Seqno(0));
        let reader = versions.open(Seqno(1), Seqno(0));
        let reading = thread::spawn(move || seqnos(reader));
        versions.take(&item(1, 3, Kind::Mutation), Seqno(1));
        versions.settle();
        let is_purged = versions.purge(&tombstone);
        assert_eq!(reading.join().unwrap(), [1, 2]);
        while versions.settle().1 {}
        let stats = versions.stats();
        assert_eq!((stats.stale, stats.stale_value_bytes, stats.stale_meta_bytes), (0, 0, 0));
        assert_eq!(stats.versions, if is_purged { 1 } else { 2 });
        drop(versions);
        assert_eq!(tombstone.handles(), 1);
    });
}

/// Nobody is asked before an old version goes: the reader misses it.
#[test]
fn loom_forgetting_readers_is_caught() {
    let name = "versions::loom_tests::loom_a_reader_beside_replace_purge_and_settle";
    assert_caught(Mutant::ForgetReaders, name, &["assertion `left == right` failed"]);
}
