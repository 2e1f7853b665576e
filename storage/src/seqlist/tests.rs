//! The list against a model: every reader sees its moment, nothing more is kept than is asked for, and all memory comes back.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::item::test_item;
use crate::registry::Registry;
use crate::types::Kind;

fn item(key: u64, seqno: u64) -> Item {
    test_item(&key.to_be_bytes(), seqno, Kind::Mutation, b"value")
}

fn seqnos(items: &[Item]) -> Vec<u64> {
    items.iter().map(|item| item.seqno().0).collect()
}

/// Reads to the end in batches of `items`.
fn rest(reader: &mut RangeReader, items: usize) -> Vec<u64> {
    let mut out = Vec::new();
    while reader.next_batch(BatchLimits { items, ..BatchLimits::default() }, &mut out) == Progress::More {}
    seqnos(&out)
}

/// A list whose writer asks a registry, as a vbucket does.
#[derive(Default)]
struct World {
    list: SeqList,
    registry: Registry,
    newest: BTreeMap<u64, u64>,
}

impl World {
    fn write(&mut self, key: u64) {
        self.write_at(key, self.list.last().next().0);
    }

    fn write_at(&mut self, key: u64, seqno: u64) {
        self.list.append(item(key, seqno));
        if let Some(old) = self.newest.insert(key, seqno) {
            let keep = self.registry.needs(Seqno(old), Seqno(seqno));
            assert!(self.list.replace(Seqno(old), Seqno(seqno), keep).is_some());
        }
    }

    fn open(&mut self, start: u64) -> RangeReader {
        let reader = self.registry.open(Seqno(start), self.list.last());
        self.list.open(reader, Seqno(0))
    }

    fn expected(&self, start: u64) -> Vec<u64> {
        let mut seqnos: Vec<u64> = self.newest.values().copied().filter(|seqno| *seqno >= start).collect();
        seqnos.sort_unstable();
        seqnos
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// T4.1, T4.6: whatever is written meanwhile, with gaps between the seqnos or without, each reader shows each key at the newest version of its moment.
    #[test]
    fn readers_show_their_moment(
        steps in prop::collection::vec((0u8..20, 0u64..40, 1u64..60), 1..1500),
        gaps: bool,
    ) {
        let mut world = World::default();
        let mut running: Vec<(RangeReader, Vec<u64>, Vec<u64>)> = Vec::new();
        for (what, key, number) in steps {
            match what {
                0 => {
                    let start = number % (world.list.last().0 + 2);
                    let expected = world.expected(start);
                    running.push((world.open(start), expected, Vec::new()));
                }
                1 if !running.is_empty() => {
                    let at = number as usize % running.len();
                    let (reader, expected, shown) = &mut running[at];
                    let mut out = Vec::new();
                    let limits = BatchLimits { items: number as usize, ..BatchLimits::default() };
                    let progress = reader.next_batch(limits, &mut out);
                    shown.extend(seqnos(&out));
                    prop_assert_eq!(&shown[..], &expected[..shown.len()]);
                    if progress == Progress::End {
                        prop_assert_eq!(shown.len(), expected.len());
                        running.swap_remove(at);
                    }
                }
                _ => {
                    let step = if gaps && what < 4 { number * 100 } else { 1 };
                    world.write_at(key, world.list.last().0 + step);
                }
            }
        }
        for (mut reader, expected, mut shown) in running {
            shown.extend(rest(&mut reader, 7));
            prop_assert_eq!(shown, expected);
        }
        let all = world.expected(0);
        prop_assert_eq!(rest(&mut world.open(0), 5), all);
    }
}

/// Cost: what is replaced leaves few slots behind, however the live versions are strewn.
#[test]
fn slots_stay_within_a_multiple_of_the_versions() {
    let mut world = World::default();
    for key in 0..5000 {
        world.write(key);
    }
    for round in 0..40u64 {
        for key in 0..2000 {
            world.write((key * 7 + round * 13) % (500 + round * 60));
        }
        let slots = world.list.bytes() / 8;
        assert!(slots < world.list.len() * 4 + 2 * SEGMENT_SLOTS_MAX, "{:?}: {slots} words", world.list);
        assert!(world.list.segments() < 2 * world.list.len().div_ceil(256) + 16, "{:?}", world.list);
    }
    assert_eq!(world.list.len(), 5000);
}

/// Skewed overwrites leave single versions strewn over a long history: neighbours are packed together.
#[test]
fn a_few_cold_keys_do_not_keep_a_segment_each() {
    let mut world = World::default();
    for cold in 0..300u64 {
        world.write(1000 + cold);
        for hot in 0..SEGMENT_SLOTS_MAX as u64 {
            world.write(hot % 3);
        }
    }
    assert_eq!(world.list.len(), 303);
    assert!(world.list.segments() <= 100, "{}", world.list.segments());
    let all = world.expected(0);
    assert_eq!(rest(&mut world.open(0), 100), all);
}

/// T4.6, T4.7: a version stays for the reader that needs it, in its slot, and nobody else sees it; the end releases it.
#[test]
fn a_replaced_version_is_shown_to_the_reader_of_its_time_alone() {
    let mut world = World::default();
    for key in 0..4 {
        world.write(key);
    }
    let mut early = world.open(1);
    world.write(0);
    let mut late = world.open(1);
    assert_eq!(world.list.len(), 5, "the former version of key 0 is kept");
    assert_eq!(rest(&mut early, 1), [1, 2, 3, 4]);
    assert_eq!(rest(&mut late, 1), [2, 3, 4, 5]);
    assert!(early.position() > early.end(), "at its end it has no range any more, though it lives");
    assert!(world.registry.union().is_none());
    world.write(1);
    assert_eq!(world.list.len(), 5, "nobody needs the former version of key 1");
}

/// Limits of nothing still let one version through a batch, or a caller that passes what is left of its budget would never come to the end.
#[test]
fn a_batch_takes_one_version_whatever_its_limits() {
    for limits in [BatchLimits { items: 0, ..BatchLimits::default() }, BatchLimits { items: 9, bytes: 0 }] {
        let mut world = World::default();
        for key in 0..20 {
            world.write(key);
        }
        let (mut reader, mut out) = (world.open(1), Vec::new());
        for shown in 1..=20 {
            assert_eq!(
                reader.next_batch(limits, &mut out),
                if shown < 20 { Progress::More } else { Progress::End }
            );
            assert_eq!(out.len(), shown);
        }
    }
}

/// What waits to be freed is counted in whole, so that it is handed over in time: slots and directories, not only their heads.
#[test]
fn what_is_retired_is_counted_with_its_slots() {
    let mut list = SeqList::default();
    for seqno in 1..=SEGMENT_SLOTS_MIN as u64 + 1 {
        list.append(item(seqno, seqno));
    }
    crate::epoch::collect();
    let mut item_bytes = 0;
    for seqno in 1..=SEGMENT_SLOTS_MIN as u64 / 2 {
        item_bytes += list.take(Seqno(seqno)).unwrap().item.resident_bytes();
    }
    let packed = SEGMENT_SLOTS_MIN * size_of::<usize>() + 2 * size_of::<Entry>();
    let retired = crate::epoch::retired_bytes();
    assert!(retired >= item_bytes + packed + size_of::<Segment>(), "{retired} bytes, {item_bytes} of items");
}

/// A window is trimmed at its head by whole segments; a reader that has not come as far is told, and shows nothing twice.
#[test]
fn a_reader_behind_the_window_is_told_so() {
    let mut world = World::default();
    for key in 0..200 {
        world.write(key);
    }
    let mut reader = world.open(1);
    let mut out = Vec::new();
    assert_eq!(
        reader.next_batch(BatchLimits { items: 10, ..BatchLimits::default() }, &mut out),
        Progress::More
    );
    let mut gone = 0;
    while world.list.trim(Seqno(120), |_| gone += 1) {}
    assert!(gone > 0 && gone < 120, "{gone}");
    assert_eq!(reader.next_batch(BatchLimits::default(), &mut out), Progress::Behind);
    assert_eq!(seqnos(&out), (1..=10).collect::<Vec<_>>());
    reader.skip_to(Seqno(120));
    assert_eq!(rest(&mut reader, 50), (120..=200).collect::<Vec<_>>());
    assert_eq!(world.list.len(), 200 - gone);
    assert!(!world.list.trim(Seqno(10), |_| panic!("the window's beginning never goes back")));
}

/// T4.13: deleting the vbucket while a reader lives is safe; all memory comes back.
#[test]
fn a_reader_that_outlives_the_list_finds_it_gone() {
    let mut world = World::default();
    let items: Vec<Item> = (1..=100).map(|seqno| item(seqno, seqno)).collect();
    for item in &items {
        world.list.append(item.clone());
    }
    let mut reader = world.open(1);
    let World { list, .. } = world;
    drop(list);
    let mut out = Vec::new();
    assert_eq!(reader.next_batch(BatchLimits::default(), &mut out), Progress::Gone);
    assert!(out.is_empty());
    let is_returned = || items.iter().all(|item| item.handles() == 1);
    // Other tests of this process pin, too, for a moment each.
    let started = std::time::Instant::now();
    while started.elapsed() < std::time::Duration::from_secs(60) {
        if is_returned() {
            return;
        }
        crate::epoch::collect();
        std::thread::yield_now();
    }
    panic!("memory is not returned");
}

/// T4.18 in short: one writer, readers on other threads that come and go. Each sees a moment: no key twice, and values as old as the moment.
#[test]
fn readers_on_other_threads_see_a_point_in_time() {
    const KEYS: u64 = 50;
    let mut world = World::default();
    for key in 0..KEYS {
        world.write(key);
    }
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for round in 0..60u64 {
            let (mut reader, expected) = (world.open(1), world.expected(1));
            readers.push(scope.spawn(move || {
                assert_eq!(rest(&mut reader, 1 + round as usize % 9), expected);
            }));
            for write in 0..400 {
                world.write((write * 31 + round) % KEYS);
            }
            if readers.len() == 6 {
                readers.drain(..).for_each(|reader| reader.join().unwrap());
            }
        }
    });
    assert!(world.registry.is_empty());
}
