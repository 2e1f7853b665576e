//! The table against a model, its bounds by count, and readers on other threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::item::test_item;
use crate::slab::taken_bytes;
use crate::types::Kind;

fn item_with(key: &[u8], seqno: u64, value: &[u8]) -> Item {
    test_item(key, seqno, Kind::Mutation, value)
}

fn item(key: &str, seqno: u64) -> Item {
    item_with(key.as_bytes(), seqno, b"value")
}

fn chains(table: &HashTable) -> impl Iterator<Item = Chain<'_>> {
    (0..table.buckets()).map(|index| table.chain(index))
}

/// What the table has to account for, counted anew.
fn bytes_counted(table: &HashTable) -> usize {
    let mut bytes = 0;
    table.visit_slots(HashTable::TOP, usize::MAX, |item| bytes += item.resident_bytes());
    bytes += chains(table).map(|chain| chain.groups_behind() * OVERFLOW_BYTES).sum::<usize>();
    // Levels have 1, 1, 2, 4, 8, ... buckets.
    let (mut left, mut level) = (table.buckets(), 1);
    while left > 0 {
        let segment = level.min(directory::SEGMENT_BUCKETS_MAX);
        bytes += taken_bytes(level / segment * 8);
        bytes += left.min(level).div_ceil(segment) * taken_bytes(segment * 64);
        left -= left.min(level);
        level = (table.buckets() - left).next_power_of_two();
    }
    bytes
}

/// A chain is dense, and no group behind a bucket is empty.
fn check(table: &HashTable) {
    let mut len = 0;
    for chain in chains(table) {
        len += chain.len();
        assert_eq!(
            chain.groups_behind(),
            chain.len().saturating_sub(BUCKET_SLOTS).div_ceil(bucket::OVERFLOW_SLOTS)
        );
    }
    assert_eq!(len, table.len());
}

#[derive(Debug, Clone)]
enum Operation {
    Insert(u16),
    Evict(u16),
    EvictOld(u16),
    Drain(usize),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        60 => (0u16..600).prop_map(Operation::Insert),
        40 => (0u16..600).prop_map(Operation::Evict),
        5 => (0u16..600).prop_map(Operation::EvictOld),
        1 => (1usize..8).prop_map(Operation::Drain),
    ];
    prop::collection::vec(operation, 0..1500)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_table_is_a_map_and_accounts_exactly(operations in operations()) {
        let (mut table, mut model) = (HashTable::default(), HashMap::<u16, u64>::new());
        for (seqno, operation) in (1..).zip(operations) {
            match operation {
                Operation::Insert(key) => {
                    let old = table.insert(item(&key.to_string(), seqno)).map(|old| old.seqno().0);
                    prop_assert_eq!(old, model.insert(key, seqno));
                }
                Operation::Evict(key) => {
                    let newest = model.remove(&key).unwrap_or(0);
                    let old = table.evict(key.to_string().as_bytes(), Seqno(newest));
                    prop_assert_eq!(old.map_or(0, |old| old.seqno().0), newest);
                }
                Operation::EvictOld(key) => {
                    let other = model.get(&key).map_or(1, |newest| newest - 1);
                    prop_assert!(table.evict(key.to_string().as_bytes(), Seqno(other)).is_none());
                }
                Operation::Drain(buckets) => {
                    table.drain_slice(buckets);
                    model.retain(|key, _| table.get(key.to_string().as_bytes()).is_some());
                }
            }
            prop_assert_eq!(table.len(), model.len());
        }
        check(&table);
        prop_assert_eq!(table.bytes(), bytes_counted(&table));
        for key in 0..600u16 {
            let found = table.get(key.to_string().as_bytes()).map(|item| item.seqno().0);
            prop_assert_eq!(found, model.get(&key).copied());
        }
        let (mut seen, mut from) = (Vec::new(), Some(HashTable::TOP));
        while let Some(at) = from {
            from = table.visit_slots(at, 20, |item| seen.push(item.seqno().0));
        }
        let mut all: Vec<u64> = model.into_values().collect();
        all.sort_unstable();
        seen.sort_unstable();
        prop_assert_eq!(seen, all);
    }
}

#[test]
fn an_empty_table_has_allocated_nothing() {
    let mut table = HashTable::default();
    assert!(table.shared.is_none() && table.bytes() == 0 && table.is_empty());
    assert!(table.get(b"a").is_none() && table.evict(b"a", Seqno(1)).is_none());
    assert_eq!(table.visit_slots(HashTable::TOP, 10, |_| panic!("nothing is there")), None);
    assert!(table.drain_slice(1));
    assert!(table.shared.is_none());
    let reader = table.reader();
    assert!(reader.get(b"a", &pin()).is_none());
    assert_eq!(table.bytes(), 0);
}

#[test]
fn every_version_is_visited_once_whatever_the_slice() {
    let mut table = HashTable::default();
    for n in 0..100 {
        table.insert(item(&format!("k{n}"), n));
    }
    for max in [1, 7, 50, 1000] {
        let (mut seen, mut from) = (Vec::new(), Some(HashTable::TOP));
        while let Some(at) = from {
            from = table.visit_slots(at, max, |item| seen.push(item.seqno().0));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }
}

#[test]
fn evicting_what_a_visit_shows_leaves_nothing() {
    let mut table = HashTable::default();
    for n in 0..5000 {
        table.insert(item(&format!("k{n}"), n));
    }
    let mut from = Some(HashTable::TOP);
    while let Some(at) = from {
        let mut going = Vec::new();
        from = table.visit_slots(at, 256, |item| going.push(item.clone()));
        for item in going {
            assert!(table.evict(item.key(), item.seqno()).is_some());
        }
    }
    assert_eq!((table.len(), table.bytes()), (0, 0));
}

#[test]
fn only_the_version_that_was_flushed_is_evicted() {
    let mut table = HashTable::default();
    assert!(table.insert(item("a", 1)).is_none());
    assert_eq!(table.insert(item("a", 2)).unwrap().seqno(), Seqno(1));
    assert!(table.evict(b"a", Seqno(1)).is_none());
    assert_eq!(table.get(b"a").unwrap().seqno(), Seqno(2));
    assert_eq!(table.evict(b"a", Seqno(2)).unwrap().seqno(), Seqno(2));
    assert!(table.get(b"a").is_none() && table.is_empty());
    assert_eq!(table.bytes(), 0);
}

/// Splits and merges are spread over the operations: the number of entries that one of them moves does not grow with the table.
#[test]
fn no_operation_moves_more_than_one_chain() {
    let count = 200_000;
    let mut table = HashTable::default();
    let (mut most, mut longest) = (0, 0);
    let mut step = |table: &mut HashTable, n: u64, is_insert: bool| {
        let key = format!("key {n}");
        let (before, bytes, buckets) = (table.moved, table.table_bytes, table.buckets());
        if is_insert {
            table.insert(item(&key, n));
        } else {
            assert!(table.evict(key.as_bytes(), Seqno(n)).is_some());
        }
        most = most.max(table.moved - before);
        assert!(table.buckets().abs_diff(buckets) <= 1);
        assert!(
            table.table_bytes.abs_diff(bytes) <= 32 << 10,
            "a segment, an array of pointers, a few groups"
        );
        if n.is_multiple_of(10_000) {
            longest = longest.max(chains(table).map(Chain::len).max().unwrap_or(0));
        }
    };
    for n in 0..count {
        step(&mut table, n, true);
    }
    let grown = table.buckets();
    for n in 0..count {
        step(&mut table, n, false);
    }
    assert!(grown > 10_000 && table.buckets() == 0 && table.bytes() == 0);
    println!("{count} in, {count} out: at most {most} moved at once, longest chain {longest}");
    assert!(most <= 64 && longest <= 64, "most {most}, longest {longest}");
}

#[test]
fn what_is_drained_in_slices_gives_its_memory_back() {
    let mut table = HashTable::default();
    let kept: Vec<Item> = (0..3000).map(|n| item(&format!("k{n}"), n)).collect();
    for item in &kept {
        table.insert(item.clone());
    }
    let reader = table.reader();
    assert!(reader.get(kept[5].key(), &pin()).is_some());
    let (mut slices, mut before) = (0, table.len());
    while !table.drain_slice(4) {
        assert!(before - table.len() <= 4 * 64);
        before = table.len();
        slices += 1;
    }
    assert!(slices > 50, "{slices}");
    assert_eq!((table.len(), table.bytes()), (0, 0));
    assert!(reader.get(kept[5].key(), &pin()).is_none());
    until_only_handle(&kept);
    table.insert(kept[0].clone());
    assert!(reader.get(kept[0].key(), &pin()).is_some());
    drop(table);
    assert!(reader.get(kept[0].key(), &pin()).is_none());
    until_only_handle(&kept[..1]);
}

/// Other tests of this process pin, too, for a moment each.
fn until_only_handle(items: &[Item]) {
    for _ in 0..1_000_000 {
        crate::epoch::collect();
        if items.iter().all(|item| item.handles() == 1) {
            return;
        }
        std::thread::yield_now();
    }
    panic!("the table never gave its counts up");
}

#[test]
fn what_is_replaced_or_evicted_comes_back_with_a_count_of_its_own() {
    let mut table = HashTable::default();
    let first = item("a", 1);
    table.insert(first.clone());
    let old = table.insert(item("a", 2)).unwrap();
    assert!(old.is_same(&first));
    let evicted = table.evict(b"a", Seqno(2)).unwrap();
    until_only_handle(&[evicted]);
    drop(first);
    until_only_handle(&[old]);
}

/// Bytes an item and groups a look-up, at the best and the worst size of a table with a million items.
#[test]
fn a_million_items_take_at_most_twelve_and_a_half_bytes_each_in_the_table() {
    let mut table = HashTable::default();
    let mut worst: f64 = 0.0;
    for n in 0..1_050_000u64 {
        table.insert(item_with(&n.to_be_bytes(), n, &[0; 60]));
        if n >= 500_000 && n.is_multiple_of(50_000) {
            let share = table.table_bytes as f64 / table.len() as f64;
            worst = worst.max(share);
            let (mut groups, mut behind) = (0, 0);
            for chain in chains(&table) {
                let len = chain.len();
                behind += chain.groups_behind();
                groups += (0..len)
                    .map(|at| 1 + at.saturating_sub(BUCKET_SLOTS - 1).div_ceil(bucket::OVERFLOW_SLOTS))
                    .sum::<usize>();
            }
            println!(
                "{n} items: {share:.2} bytes an item in the table, {:.1} in all; {:.3} groups a hit; {:.3} groups behind a bucket",
                table.bytes() as f64 / table.len() as f64,
                groups as f64 / table.len() as f64,
                behind as f64 / table.buckets() as f64,
            );
        }
    }
    assert!(worst <= 12.5, "{worst} bytes an item");
    while !table.drain_slice(1000) {}
}

/// Keys that are always there are always found, and no reader sees a key's versions go back, while the table grows, shrinks and is evicted from.
#[test]
fn readers_on_other_threads_never_miss_a_key_or_see_it_go_back() {
    const STEADY: u64 = 300;
    const ROUNDS: u64 = 12;
    let mut table = HashTable::default();
    let newest: Vec<AtomicU64> = (0..STEADY).map(|_| AtomicU64::new(0)).collect();
    let mut seqno = 0;
    let mut put = |table: &mut HashTable, key: &str| {
        seqno += 1;
        table.insert(item_with(key.as_bytes(), seqno, &seqno.to_be_bytes()));
        seqno
    };
    for n in 0..STEADY {
        newest[n as usize].store(put(&mut table, &format!("steady {n}")), Ordering::Release);
    }
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let looks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for offset in [0, STEADY / 2] {
            let reader = table.reader();
            let (is_over, newest, looks) = (&is_over, &newest, &looks);
            scope.spawn(move || {
                let keys: Vec<String> = (0..STEADY).map(|n| format!("steady {n}")).collect();
                let mut seen = vec![0; STEADY as usize];
                while !is_over.load(Ordering::Relaxed) {
                    for at in 0..STEADY {
                        let at = ((at + offset) % STEADY) as usize;
                        let acknowledged = newest[at].load(Ordering::Acquire);
                        let pin = pin();
                        let found = reader.get(keys[at].as_bytes(), &pin).expect("it is always there");
                        assert_eq!(found.value(), found.seqno().0.to_be_bytes());
                        assert!(found.seqno().0 >= seen[at].max(acknowledged), "went back");
                        seen[at] = found.seqno().0;
                    }
                    looks.fetch_add(STEADY, Ordering::Relaxed);
                }
            });
        }
        for round in 0..ROUNDS {
            let count = 200 * (1 + round % 4 * 10);
            let mut come = Vec::new();
            for n in 0..count {
                let key = format!("fleeting {round} {n}");
                come.push((put(&mut table, &key), key));
                let again = n * 7 % STEADY;
                newest[again as usize].store(put(&mut table, &format!("steady {again}")), Ordering::Release);
            }
            for (seqno, key) in come {
                assert!(table.evict(key.as_bytes(), Seqno(seqno)).is_some());
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    check(&table);
    println!("{} looks, {seqno} writes", looks.into_inner());
}
