//! Every interleaving, with two preemptions, of one writer's operation and one or two readers, on tables of four slots.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;

use loom::thread;

use super::checked::{item, keys, look, table_of};
use super::*;
use crate::mutant::turn_on;

const PREEMPTIONS_MAX: usize = 2;

fn explore(test: impl Fn() + Sync + Send + 'static) {
    static SCHEDULES: AtomicUsize = AtomicUsize::new(0);
    let before = SCHEDULES.load(std::sync::atomic::Ordering::Relaxed);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(move || {
        SCHEDULES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        test();
    });
    println!("{} schedules", SCHEDULES.load(std::sync::atomic::Ordering::Relaxed) - before);
}

/// Readers on `readers` threads while this one writes; the table is dropped last.
fn race(
    readers: usize,
    mut table: HashTable,
    write: impl FnOnce(&mut HashTable),
    read: impl Fn(&TableReader) + Copy + Send + 'static,
) {
    let threads: Vec<_> = (0..readers)
        .map(|_| {
            let reader = table.reader();
            thread::spawn(move || read(&reader))
        })
        .collect();
    write(&mut table);
    for thread in threads {
        thread.join().expect("readers do not panic");
    }
}

/// Keys live as long as the process: a test's closures are sent to threads.
fn lasting<const N: usize>(bits: [u64; N]) -> [&'static [u8]; N] {
    keys(bits).map(|key| &*key.leak())
}

#[test]
fn loom_get_races_with_the_first_insert() {
    let [a, _] = lasting([0, 1]);
    explore(move || {
        race(
            1,
            HashTable::default(),
            |table| drop(table.insert(item(a, 1))),
            move |reader| {
                let first = look(reader, a);
                assert!(first.is_none() || look(reader, a) == Some(1));
            },
        );
    });
}

#[test]
fn loom_get_races_with_insert_of_a_new_key() {
    let [a, b] = lasting([0, 1]);
    explore(move || {
        race(
            1,
            table_of(&[a]),
            |table| drop(table.insert(item(b, 2))),
            move |reader| {
                let first = look(reader, b);
                assert_eq!(look(reader, a), Some(1));
                assert!(first.is_none() || look(reader, b) == Some(2));
            },
        );
    });
}

#[test]
fn loom_get_races_with_replace() {
    let [a, b] = lasting([0, 1]);
    explore(move || {
        race(
            1,
            table_of(&[b, a]),
            |table| assert!(table.insert(item(a, 3)).is_some()),
            move |reader| {
                let first = look(reader, a).expect("it is always there");
                let second = look(reader, a).expect("it is always there");
                assert!((2..=3).contains(&first) && second >= first);
            },
        );
    });
}

#[test]
fn loom_get_races_with_evict() {
    let [a, b] = lasting([0, 0]);
    explore(move || {
        race(
            1,
            table_of(&[a, b]),
            |table| assert!(table.evict(a, Seqno(1)).is_some()),
            move |reader| {
                assert_eq!(look(reader, b), Some(2), "moves into the hole");
                assert!(matches!(look(reader, a), None | Some(1)));
            },
        );
    });
}

#[test]
fn loom_get_races_with_evict_of_the_last_one_and_insert() {
    let [a, _] = lasting([0, 1]);
    explore(move || {
        race(
            1,
            table_of(&[a]),
            |table| {
                assert!(table.evict(a, Seqno(1)).is_some());
                assert_eq!(table.bytes(), 0);
                table.insert(item(a, 2));
            },
            move |reader| {
                let (first, second) = (look(reader, a), look(reader, a));
                assert!(first != Some(2) || second == Some(2));
            },
        );
    });
}

/// The first slot becomes a hole that the second word moves into.
#[test]
fn loom_get_races_with_split() {
    let [moves, stays, comes] = lasting([1, 0, 2]);
    explore(move || {
        race(
            1,
            table_of(&[moves, stays]),
            |table| {
                table.insert(item(comes, 3));
                assert_eq!(table.buckets(), 2);
            },
            move |reader| {
                assert_eq!(look(reader, moves), Some(1));
                assert_eq!(look(reader, stays), Some(2));
            },
        );
    });
}

#[test]
fn loom_get_races_with_merge() {
    let [upper, lower, goes] = lasting([1, 0, 2]);
    explore(move || {
        race(
            1,
            table_of(&[upper, lower, goes]),
            |table| {
                assert!(table.evict(goes, Seqno(3)).is_some());
                assert_eq!(table.buckets(), 1);
            },
            move |reader| {
                assert_eq!(look(reader, upper), Some(1));
                assert_eq!(look(reader, lower), Some(2));
            },
        );
    });
}

/// The number of buckets is at the end what it was at first; a look-up that went on meanwhile still notices.
#[test]
fn loom_get_races_with_split_and_merge() {
    let [upper, lower, comes] = lasting([1, 0, 2]);
    explore(move || {
        race(
            1,
            table_of(&[lower, upper]),
            |table| {
                table.insert(item(comes, 3));
                assert!(table.evict(comes, Seqno(3)).is_some());
                assert_eq!(table.buckets(), 1);
            },
            move |reader| assert_eq!(look(reader, upper), Some(2)),
        );
    });
}

#[test]
fn loom_get_races_with_a_group_that_comes_and_goes() {
    let [a, b, c] = lasting([0, 0, 0]);
    explore(move || {
        race(
            1,
            table_of(&[a, b]),
            |table| {
                table.insert(item(c, 3));
                assert!(table.evict(a, Seqno(1)).is_some());
            },
            move |reader| {
                let first = look(reader, c);
                assert!(first.is_none() || look(reader, c) == first);
                assert_eq!(look(reader, b), Some(2));
            },
        );
    });
}

#[test]
fn loom_get_races_with_drop() {
    let [a, b, c] = lasting([0, 1, 0]);
    explore(move || {
        race(
            1,
            table_of(&[a, b, c]),
            |table| drop(std::mem::take(table)),
            move |reader| {
                let (first, second) = (look(reader, c), look(reader, c));
                assert!(matches!(first, None | Some(3)) && (first.is_some() || second.is_none()));
            },
        );
    });
}

#[test]
fn loom_get_races_with_a_slice_of_a_drain() {
    let [a, b, c] = lasting([0, 1, 0]);
    explore(move || {
        race(
            1,
            table_of(&[a, b, c]),
            |table| assert!(!table.drain_slice(1)),
            move |reader| {
                assert!(matches!(look(reader, b), None | Some(2)));
                assert_eq!(look(reader, a), Some(1), "not in the last bucket");
            },
        );
    });
}

#[test]
fn loom_two_readers_race_with_replace_and_evict() {
    let [a, b] = lasting([0, 0]);
    explore(move || {
        race(
            2,
            table_of(&[a, b]),
            |table| {
                assert!(table.insert(item(b, 3)).is_some());
                assert!(table.evict(a, Seqno(1)).is_some());
            },
            move |reader| assert!(matches!(look(reader, b), Some(2 | 3))),
        );
    });
}

#[test]
fn loom_two_readers_race_with_split() {
    let [moves, stays, comes] = lasting([1, 0, 2]);
    explore(move || {
        race(
            2,
            table_of(&[moves, stays]),
            |table| drop(table.insert(item(comes, 3))),
            move |reader| assert_eq!(look(reader, moves), Some(1)),
        );
    });
}

/// What a checker says about a replacement under a fault.
fn verdict(mutant: Mutant) -> String {
    let _on = turn_on(mutant);
    let [a, _] = lasting([0, 1]);
    let test = move || {
        race(
            1,
            table_of(&[a]),
            |table| drop(table.insert(item(a, 2))),
            move |reader| assert!(look(reader, a).is_some()),
        );
    };
    let panic = catch_unwind(AssertUnwindSafe(|| explore(test))).expect_err("the fault is found");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

#[test]
fn loom_finds_what_is_freed_without_a_grace_period() {
    let verdict = verdict(Mutant::FreeWithoutGrace);
    // Freeing counts as writing what an item holds: a reader that does not come before it is found that way, too.
    let is_found =
        ["touched after it was freed", "accesses to `UnsafeCell`"].iter().any(|text| verdict.contains(text));
    assert!(is_found, "{verdict}");
}

#[test]
fn loom_finds_what_is_published_without_release() {
    let verdict = verdict(Mutant::PublishRelaxed);
    assert!(verdict.contains("Causality violation"), "{verdict}");
}
