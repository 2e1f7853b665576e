//! What is kept for readers, and for how long.

use super::*;
use crate::item::test_item;
use crate::seqlist::{BatchLimits, Progress};
use crate::types::Kind;

fn item(key: u64, seqno: u64, kind: Kind) -> Item {
    test_item(&key.to_be_bytes(), seqno, kind, b"value")
}

/// Versions of keys 0.., each written once.
fn filled(keys: u64) -> Versions {
    let mut versions = Versions::default();
    for key in 0..keys {
        versions.take(&item(key, key + 1, Kind::Mutation), Seqno(0));
    }
    versions
}

fn settle(versions: &mut Versions) {
    while versions.settle().1 {}
}

/// T4.15: with one reader that stands still and others that come and go under updates of every key, no more is kept than the readers can see.
#[test]
fn stale_memory_is_bounded_by_what_live_readers_see() {
    const KEYS: u64 = 300;
    let mut versions = filled(KEYS);
    let mut newest: Vec<u64> = (1..=KEYS).collect();
    let mut seqno = KEYS;
    let frozen = versions.open(Seqno(1), Seqno(0));
    let mut moving: Option<RangeReader> = None;
    let mut out = Vec::new();
    for write in 0..50_000u64 {
        let key = write * 7919 % KEYS;
        seqno += 1;
        versions.take(&item(key, seqno, Kind::Mutation), Seqno(newest[key as usize]));
        newest[key as usize] = seqno;
        if write % 97 == 0 {
            let reader = moving.get_or_insert_with(|| versions.open(Seqno(1), Seqno(0)));
            let limits = BatchLimits { items: 20, ..BatchLimits::default() };
            if reader.next_batch(limits, &mut out) == Progress::End {
                // A new one starts before the old one ends.
                moving = Some(versions.open(Seqno(1), Seqno(0)));
            }
            out.clear();
        }
        versions.settle();
        let visible = 2 * KEYS + SLICE as u64;
        assert!(versions.stats().stale <= visible, "{:?} after {write} writes", versions.stats());
    }
    drop((frozen, moving));
    settle(&mut versions);
    let stats = versions.stats();
    assert_eq!((stats.stale, stats.stale_value_bytes, stats.stale_meta_bytes, stats.readers), (0, 0, 0, 0));
    assert_eq!(stats.versions, KEYS);
}

/// T4.16: readers far apart do not make stale what lies between them, and a version that was replaced outside of any reader's sight is gone (T4.5).
#[test]
fn a_version_between_distant_readers_is_not_kept() {
    let mut versions = filled(10_000);
    let near = versions.open(Seqno(1), Seqno(0));
    let mut far = versions.open(Seqno(1), Seqno(0));
    far.skip_to(Seqno(9_990));
    drop(near);
    let mut near = Versions::open(&mut versions, Seqno(1), Seqno(0));
    near.skip_to(Seqno(9_995));
    let replaced = versions.take(&item(4_999, 10_001, Kind::Mutation), Seqno(5_000)).unwrap();
    assert!(!replaced.kept && versions.stats().stale == 0);
    let replaced = versions.take(&item(9_998, 10_002, Kind::Mutation), Seqno(9_999)).unwrap();
    assert!(replaced.kept && versions.stats().stale == 1);
}

/// T4.7: as a reader advances, what lies behind it is given up, and updates behind it keep nothing.
#[test]
fn what_a_reader_has_passed_is_given_up() {
    let mut versions = filled(100);
    let mut reader = versions.open(Seqno(1), Seqno(0));
    for key in 0..50 {
        versions.take(&item(key, 101 + key, Kind::Mutation), Seqno(key + 1));
    }
    assert_eq!(versions.stats().stale, 50);
    let mut out = Vec::new();
    reader.next_batch(BatchLimits { items: 30, ..BatchLimits::default() }, &mut out);
    settle(&mut versions);
    assert_eq!((out.len(), versions.stats().stale), (30, 20));
    assert!(!versions.take(&item(0, 151, Kind::Mutation), Seqno(101)).unwrap().kept);
    while reader.next_batch(BatchLimits::default(), &mut out) == Progress::More {}
    settle(&mut versions);
    let seqnos: Vec<u64> = out.iter().map(|item| item.seqno().0).collect();
    assert_eq!(seqnos, (1..=100).collect::<Vec<_>>(), "also what was replaced meanwhile");
    assert_eq!(versions.stats().stale, 0, "the end releases the range, though the reader lives");
    assert!(reader.position() > reader.end());
}

/// T4.9: a tombstone that a reader can still see is not purged; when the reader has passed it, it is.
#[test]
fn a_tombstone_stays_for_the_reader_that_can_see_it() {
    let mut versions = filled(3);
    let tombstone = item(0, 4, Kind::Deletion);
    versions.take(&tombstone, Seqno(1));
    versions.take(&item(7, 5, Kind::Mutation), Seqno(0));
    let mut reader = versions.open(Seqno(1), Seqno(0));
    assert!(!versions.purge(&tombstone));
    let mut out = Vec::new();
    reader.next_batch(BatchLimits { items: 3, ..BatchLimits::default() }, &mut out);
    assert_eq!(out.last().map(Item::seqno), Some(Seqno(4)));
    assert!(versions.purge(&tombstone) && versions.len() == 3);
}

/// A version that readers of both orders need stays until the last of them has passed it, and is counted once.
#[test]
fn readers_of_both_orders_share_what_is_kept() {
    let mut versions = filled(10);
    while !versions.build_index() {}
    let by_seqno = versions.open(Seqno(1), Seqno(0));
    let by_key = versions.open_by_key(1);
    versions.take(&item(5, 11, Kind::Mutation), Seqno(6));
    assert_eq!((versions.stats().stale, versions.stats().versions), (1, 11));
    drop(by_seqno);
    settle(&mut versions);
    assert_eq!(versions.stats().stale, 1);
    let key = 5u64.to_be_bytes();
    assert_eq!(versions.visible(&key, None, by_key.end()).map(|item| item.seqno()), Some(Seqno(6)));
    versions.key_reader_passed(&by_key, &6u64.to_be_bytes());
    assert_eq!((versions.stats().stale, versions.stats().versions), (0, 10));
}

/// One slice of settling has an end, though readers on other cores move on while it looks; what it leaves is not lost (T4.5: a write does not wait for readers).
#[test]
fn settling_looks_at_a_slice_however_much_readers_have_passed() {
    const KEYS: u64 = 3 * SLICE as u64;
    let mut versions = filled(KEYS);
    let mut readers: Vec<RangeReader> = (0..4).map(|_| versions.open(Seqno(1), Seqno(0))).collect();
    for key in 0..KEYS {
        versions.take(&item(key, KEYS + 1 + key, Kind::Mutation), Seqno(key + 1));
    }
    for reader in &mut readers {
        reader.skip_to(Seqno(KEYS + 1));
    }
    let mut calls = 0;
    loop {
        let before = versions.stats().stale;
        let more = versions.settle().1;
        calls += 1;
        assert!(before - versions.stats().stale <= SLICE as u64);
        if !more {
            break;
        }
    }
    assert!(versions.stats().stale == 0 && calls >= 3, "{calls} calls left {:?}", versions.stats());
}

/// A reader that never stops moving on another core does not keep its owner from coming back.
#[test]
fn settling_ends_while_readers_move_on_other_threads() {
    let mut versions = filled(10);
    let stop = std::sync::atomic::AtomicBool::new(false);
    versions.take(&item(0, 1_000_000_000, Kind::Mutation), Seqno(1));
    let mut readers: Vec<RangeReader> = (0..2).map(|_| versions.open(Seqno(1), Seqno(0))).collect();
    std::thread::scope(|scope| {
        for reader in &mut readers {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    reader.skip_to(reader.position().next());
                }
            });
        }
        for _ in 0..10_000 {
            versions.settle();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(versions.stats().readers, 2);
}

/// A vbucket that goes lets go of a bounded piece a call, whatever was kept and indexed; then nothing is left, and nothing is booked.
#[test]
fn draining_lets_go_of_a_bounded_piece_a_call() {
    const KEYS: u64 = 4 * SLICE as u64;
    let all: Vec<Item> = (0..KEYS).map(|key| item(key, key + 1, Kind::Mutation)).collect();
    let mut versions = Versions::default();
    for item in &all {
        versions.take(item, Seqno(0));
    }
    while !versions.build_index() {}
    let (by_seqno, by_key) = (versions.open(Seqno(1), Seqno(0)), versions.open_by_key(1));
    for key in 0..KEYS {
        versions.take(&item(key, KEYS + 1 + key, Kind::Mutation), Seqno(key + 1));
    }
    let mut stale = versions.stats().stale;
    assert_eq!(stale, KEYS);
    let mut calls = 0;
    while versions.drain_slice() {
        let left = versions.stats().stale;
        assert!(stale - left <= SLICE as u64, "{} at once", stale - left);
        stale = left;
        calls += 1;
    }
    assert!(calls >= 4 && versions.is_empty());
    let stats = versions.stats();
    assert_eq!(
        (stats.stale, stats.stale_value_bytes, stats.stale_meta_bytes, stats.index_bytes),
        (0, 0, 0, 0)
    );
    drop((by_seqno, by_key, versions));
}
