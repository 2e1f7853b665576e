//! Versions under shuttle: one writer and readers on threads of their own, in random schedules of random operations, against a model.
//!
//! A reader is opened at a random moment from a random seqno on. Whatever is written, purged, trimmed or settled meanwhile, it shows its moment; what
//! it is told to read on disk it skips, as a scan does. In the end everything is freed.

use std::collections::BTreeMap;

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{self, JoinHandle};

use super::*;
use crate::checking::{assert_caught, explore};
use crate::item::test_item;
use crate::seqlist::{BatchLimits, Progress};
use crate::types::Kind;

const KEYS: u8 = 5;
const STEPS: usize = 24;
const READERS_MAX: usize = 3;

/// What else happens beside writes, purges and readers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// A memory-only vbucket.
    Memory,
    /// The window of a vbucket on disk: it is trimmed.
    Window,
    /// A memory-only vbucket that is deleted while readers live.
    Deleted,
}

struct World {
    versions: Versions,
    /// Of each key its newest version, and whether that is a tombstone.
    newest: BTreeMap<u8, (u64, bool)>,
    high: u64,
    /// A handle on each version, to see at the end that it is the only one.
    all: Vec<Item>,
}

impl World {
    fn write(&mut self) {
        self.high += 1;
        let (key, is_deleted) = (thread_rng().gen_range(0..KEYS), thread_rng().gen_range(0..4) == 0);
        let kind = if is_deleted { Kind::Deletion } else { Kind::Mutation };
        let item = test_item(&[key], self.high, kind, b"v");
        let former = self.newest.insert(key, (self.high, is_deleted));
        self.versions.take(&item, Seqno(former.map_or(0, |(seqno, _)| seqno)));
        self.all.push(item);
    }

    fn purge(&mut self) {
        let key = thread_rng().gen_range(0..KEYS);
        if let Some((seqno, true)) = self.newest.get(&key)
            && let Some(tombstone) = self.versions.at(Seqno(*seqno))
            && self.versions.purge(&tombstone)
        {
            self.newest.remove(&key);
        }
    }

    fn trim(&mut self) {
        let from = thread_rng().gen_range(0..=self.high);
        self.versions.trim(Seqno(from), drop);
    }

    fn expected(&self, start: u64) -> Vec<u64> {
        let seqnos = self.newest.values().map(|(seqno, _)| *seqno);
        let mut seqnos: Vec<u64> = seqnos.filter(|seqno| *seqno >= start).collect();
        seqnos.sort_unstable();
        seqnos
    }

    fn open(&mut self, scene: Scene) -> JoinHandle<()> {
        let start = thread_rng().gen_range(1..=self.high + 1);
        let (expected, reader) = (self.expected(start), self.versions.open(Seqno(start), Seqno(0)));
        thread::spawn(move || read(reader, expected, scene))
    }
}

/// Reads to the end, or until it has enough, and compares.
fn read(mut reader: RangeReader, mut expected: Vec<u64>, scene: Scene) {
    let (items, mut batches) = (thread_rng().gen_range(1..4), thread_rng().gen_range(1..20));
    let limits = BatchLimits { items, ..BatchLimits::default() };
    let mut shown = 0;
    while batches > 0 {
        batches -= 1;
        let mut out = Vec::new();
        let progress = reader.next_batch(limits, &mut out);
        for item in out {
            assert_eq!(expected.get(shown), Some(&item.seqno().0), "shown in place of what is expected");
            shown += 1;
        }
        match progress {
            Progress::More => {}
            Progress::End => {
                assert_eq!(shown, expected.len(), "the end comes too early: {expected:?}");
                return;
            }
            Progress::Behind => {
                assert!(scene == Scene::Window, "a window that nobody moves");
                let from = reader.resident_from();
                assert!(from > reader.position(), "told to read on disk what is in memory");
                reader.skip_to(from);
                expected.retain(|seqno| *seqno >= from.0);
                shown = 0;
            }
            Progress::Gone => {
                assert!(scene == Scene::Deleted, "nobody deleted it");
                return;
            }
        }
    }
}

fn play(scene: Scene) {
    let mut world =
        World { versions: Versions::default(), newest: BTreeMap::new(), high: 0, all: Vec::new() };
    world.write();
    let mut readers = vec![world.open(scene)];
    for _ in 0..STEPS {
        match thread_rng().gen_range(0..12) {
            0 | 1 if readers.len() < READERS_MAX => readers.push(world.open(scene)),
            2 if scene == Scene::Window => world.trim(),
            3 => world.purge(),
            4 => drop(world.versions.settle()),
            _ => world.write(),
        }
    }
    if scene == Scene::Deleted {
        while world.versions.drain_slice() {}
        assert!(world.versions.is_empty());
    }
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    while world.versions.settle().1 {}
    let stats = world.versions.stats();
    assert_eq!((stats.stale, stats.stale_value_bytes, stats.stale_meta_bytes, stats.readers), (0, 0, 0, 0));
    if scene == Scene::Memory {
        assert_eq!(stats.versions, world.newest.len() as u64);
    }
    drop(world.versions);
    for item in world.all {
        assert_eq!(item.handles(), 1, "{item:?} is not let go of");
    }
}

/// T4.1, T4.5, T4.6, T4.7, T4.9, T4.18.
#[test]
fn shuttle_readers_of_memory_show_their_moment() {
    explore(40_000, || play(Scene::Memory));
}

/// T4.18, and: whoever is not told to go to disk has missed nothing.
#[test]
fn shuttle_readers_of_a_window_show_their_moment_or_are_told() {
    explore(40_000, || play(Scene::Window));
}

/// T4.13.
#[test]
fn shuttle_readers_of_a_vbucket_that_is_deleted_show_their_moment_or_are_told() {
    explore(20_000, || play(Scene::Deleted));
}

/// Nobody is asked before an old version goes: a reader misses it.
#[test]
fn shuttle_forgetting_readers_is_caught() {
    let name = "versions::shuttle_tests::shuttle_readers_of_memory_show_their_moment";
    assert_caught(
        Mutant::ForgetReaders,
        name,
        &["shown in place of what is expected", "the end comes too early"],
    );
}

/// What readers may look at is freed at once: one finds the mark.
#[test]
fn shuttle_freeing_without_grace_is_caught() {
    let name = "versions::shuttle_tests::shuttle_readers_of_memory_show_their_moment";
    assert_caught(Mutant::FreeWithoutGrace, name, &["touched after it was freed"]);
}
