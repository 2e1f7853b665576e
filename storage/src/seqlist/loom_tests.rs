//! The list under loom: each operation of a reader beside each operation of the owner, in every interleaving with at most two preemptions.
//!
//! The model asserts that nothing is touched after it was freed and nothing is read that was not published; here it is asserted that a reader which
//! comes to its end has shown exactly its moment, and that everything is freed in the end.

use std::collections::BTreeMap;

use loom::thread;

use super::*;
use crate::checking::{assert_caught, explore};
use crate::item::test_item;
use crate::registry::Registry;
use crate::types::Kind;

fn item(key: u8, seqno: u64) -> Item {
    test_item(&[key], seqno, Kind::Mutation, b"")
}

/// A list whose writer asks a registry, as a vbucket does.
#[derive(Default)]
struct World {
    list: SeqList,
    registry: Registry,
    newest: BTreeMap<u8, u64>,
    stale: BTreeMap<u64, u64>,
    /// A handle on each version, to see at the end that it is the only one.
    all: Vec<Item>,
}

impl World {
    fn filled(keys: &[u8]) -> World {
        let mut world = World::default();
        keys.iter().for_each(|key| world.write(*key));
        world
    }

    fn write(&mut self, key: u8) {
        let seqno = self.list.last().next().0;
        let item = item(key, seqno);
        self.all.push(item.clone());
        self.list.append(item);
        if let Some(old) = self.newest.insert(key, seqno) {
            let keep = self.registry.needs(Seqno(old), Seqno(seqno));
            assert!(self.list.replace(Seqno(old), Seqno(seqno), keep).is_some());
            if keep {
                self.stale.insert(old, seqno);
            }
        }
    }

    /// Takes a version out that nothing replaces, unless a reader needs it.
    fn purge(&mut self, seqno: u64) {
        if !self.registry.needs(Seqno(seqno), Seqno(u64::MAX)) {
            assert!(self.list.take(Seqno(seqno)).is_some());
            self.newest.retain(|_, newest| *newest != seqno);
        }
    }

    /// Takes out what was kept and no reader needs any more.
    fn settle(&mut self) {
        let (list, registry) = (&mut self.list, &self.registry);
        self.stale.retain(|born, superseded| {
            let keep = registry.needs(Seqno(*born), Seqno(*superseded));
            assert!(keep || list.take(Seqno(*born)).is_some_and(|taken| taken.was_stale));
            keep
        });
    }

    fn trim(&mut self, from: u64) {
        let stale = &mut self.stale;
        while self.list.trim(Seqno(from), |taken| {
            stale.remove(&taken.item.seqno().0);
        }) {}
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

    /// Lets go of everything, and demands that it is freed.
    fn end(self) {
        drop(self.list);
        for item in self.all {
            assert_eq!(item.handles(), 1, "{item:?} is not let go of");
        }
    }
}

/// What a reader has shown, and what it was told in the end.
struct Seen {
    seqnos: Vec<u64>,
    progress: Progress,
}

const ALL: BatchLimits = BatchLimits { items: 9, bytes: 99 };

fn seqnos(items: &[Item]) -> Vec<u64> {
    items.iter().map(|item| item.seqno().0).collect()
}

/// Batches to the end.
fn next_batch(mut reader: RangeReader) -> Seen {
    let mut out = Vec::new();
    loop {
        let progress = reader.next_batch(ALL, &mut out);
        assert!(progress != Progress::Behind || reader.resident_from() > reader.position());
        if progress != Progress::More {
            return Seen { seqnos: seqnos(&out), progress };
        }
    }
}

/// A look at all without moving, and the same again: unless it is told otherwise, it sees the same.
fn peek(reader: RangeReader) -> Seen {
    let start = reader.position();
    let look = || {
        let (mut out, mut next) = (Vec::new(), start);
        loop {
            let progress = reader.peek(&mut next, ALL, &mut out);
            if progress != Progress::More {
                return Seen { seqnos: seqnos(&out), progress };
            }
        }
    };
    let (first, second) = (look(), look());
    if second.progress == Progress::End {
        assert_eq!((first.progress, &first.seqnos), (Progress::End, &second.seqnos));
    }
    assert_eq!(reader.position(), start);
    if first.progress == Progress::End { first } else { second }
}

/// The first batch alone.
fn drop_early(mut reader: RangeReader) -> Seen {
    let mut out = Vec::new();
    let progress = reader.next_batch(BatchLimits { items: 1, ..ALL }, &mut out);
    Seen { seqnos: seqnos(&out), progress }
}

/// Another has shown the first; from there on to the end.
fn skip_to(mut reader: RangeReader) -> Seen {
    let first = reader.position();
    reader.skip_to(first.next());
    let mut seen = next_batch(reader);
    seen.seqnos.insert(0, first.0);
    seen
}

/// As a scan does that must choose between disk and memory.
fn resident_from(mut reader: RangeReader) -> Seen {
    let before = reader.resident_from();
    let mut out = Vec::new();
    let progress = reader.next_batch(BatchLimits { items: 1, ..ALL }, &mut out);
    assert!(reader.resident_from() >= before, "it only rises");
    assert!(
        progress != Progress::Behind || reader.resident_from() > reader.position(),
        "told without a reason"
    );
    let progress = if progress == Progress::More { reader.next_batch(ALL, &mut out) } else { progress };
    Seen { seqnos: seqnos(&out), progress }
}

/// `read` on a thread of its own beside `write`.
fn pair(keys: &'static [u8], start: u64, read: fn(RangeReader) -> Seen, write: fn(&mut World)) {
    explore(move || {
        let mut world = World::filled(keys);
        let expected = world.expected(start);
        let reader = world.open(start);
        let thread = thread::spawn(move || read(reader));
        write(&mut world);
        let Seen { seqnos, progress } = thread.join().unwrap();
        assert_eq!(seqnos, expected[..seqnos.len()], "then {progress:?}");
        assert!(progress != Progress::End || seqnos == expected, "only {seqnos:?} and the end");
        world.settle();
        assert!(world.stale.is_empty(), "kept for nobody: {:?}", world.stale);
        world.end();
    });
}

/// One test for each reader's operation beside each of the owner's.
macro_rules! pairs {
    ($($name:ident: $keys:expr, $start:expr, $read:expr, $write:expr;)*) => {
        $(#[test] fn $name() { pair($keys, $start, $read, $write); })*
    };
}

/// Into a slot that is there.
fn append(world: &mut World) {
    world.write(9);
}

/// Into a new segment: a new directory is published.
fn begin_segment(world: &mut World) {
    world.write(9);
}

/// The reader may need the former version, until it has passed it.
fn replace(world: &mut World) {
    world.write(1);
    world.settle();
}

/// A version that nothing replaces goes once the reader has passed it.
fn take(world: &mut World) {
    world.purge(1);
    world.purge(2);
}

/// What goes lies before the reader: its segment is packed.
fn pack(world: &mut World) {
    world.write(1);
}

/// Two packed segments become one.
fn merge(world: &mut World) {
    for key in [1, 3, 4, 5] {
        world.write(key);
    }
}

/// The window moves by a segment.
fn trim(world: &mut World) {
    world.trim(3);
}

/// The window moves, then what is below it is taken out one by one, as when versions must leave memory.
fn let_go(world: &mut World) {
    world.trim(4);
    assert!(world.list.take(Seqno(3)).is_some());
    world.newest.retain(|_, newest| *newest > 3);
}

fn drain(world: &mut World) {
    while world.list.drain_slice() {}
}

fn drop_list(world: &mut World) {
    drop(std::mem::take(&mut world.list));
    world.stale.clear();
}

pairs! {
    loom_next_batch_beside_append: &[1, 2, 3], 1, next_batch, append;
    loom_next_batch_beside_a_new_segment: &[1, 2], 1, next_batch, begin_segment;
    loom_next_batch_beside_replace: &[1, 2, 3], 1, next_batch, replace;
    loom_next_batch_beside_take: &[1, 2, 3], 1, next_batch, take;
    loom_next_batch_beside_pack: &[1, 2, 3], 2, next_batch, pack;
    loom_next_batch_beside_merge: &[1, 2, 3, 4, 5, 6, 7], 6, next_batch, merge;
    loom_next_batch_beside_trim: &[1, 2, 3], 1, next_batch, trim;
    loom_next_batch_beside_letting_go: &[1, 2, 3, 4], 2, next_batch, let_go;
    loom_next_batch_beside_drain: &[1, 2, 3], 1, next_batch, drain;
    loom_next_batch_beside_drop: &[1, 2, 3], 1, next_batch, drop_list;

    loom_peek_beside_append: &[1, 2, 3], 1, peek, append;
    loom_peek_beside_a_new_segment: &[1, 2], 1, peek, begin_segment;
    loom_peek_beside_replace: &[1, 2, 3], 1, peek, replace;
    loom_peek_beside_take: &[1, 2, 3], 1, peek, take;
    loom_peek_beside_pack: &[1, 2, 3], 2, peek, pack;
    loom_peek_beside_merge: &[1, 2, 3, 4, 5, 6, 7], 6, peek, merge;
    loom_peek_beside_trim: &[1, 2, 3], 1, peek, trim;
    loom_peek_beside_letting_go: &[1, 2, 3, 4], 2, peek, let_go;
    loom_peek_beside_drain: &[1, 2, 3], 1, peek, drain;
    loom_peek_beside_drop: &[1, 2, 3], 1, peek, drop_list;

    loom_skip_beside_append: &[1, 2, 3], 1, skip_to, append;
    loom_skip_beside_a_new_segment: &[1, 2], 1, skip_to, begin_segment;
    loom_skip_beside_replace: &[1, 2, 3], 1, skip_to, replace;
    loom_skip_beside_take: &[1, 2, 3], 1, skip_to, take;
    loom_skip_beside_pack: &[1, 2, 3], 2, skip_to, pack;
    loom_skip_beside_merge: &[1, 2, 3, 4, 5, 6, 7], 6, skip_to, merge;
    loom_skip_beside_trim: &[1, 2, 3], 1, skip_to, trim;
    loom_skip_beside_letting_go: &[1, 2, 3, 4], 2, skip_to, let_go;
    loom_skip_beside_drain: &[1, 2, 3], 1, skip_to, drain;
    loom_skip_beside_drop: &[1, 2, 3], 1, skip_to, drop_list;

    loom_reader_dropped_beside_append: &[1, 2, 3], 1, drop_early, append;
    loom_reader_dropped_beside_a_new_segment: &[1, 2], 1, drop_early, begin_segment;
    loom_reader_dropped_beside_replace: &[1, 2, 3], 1, drop_early, replace;
    loom_reader_dropped_beside_take: &[1, 2, 3], 1, drop_early, take;
    loom_reader_dropped_beside_pack: &[1, 2, 3], 2, drop_early, pack;
    loom_reader_dropped_beside_merge: &[1, 2, 3, 4, 5, 6, 7], 6, drop_early, merge;
    loom_reader_dropped_beside_trim: &[1, 2, 3], 1, drop_early, trim;
    loom_reader_dropped_beside_letting_go: &[1, 2, 3, 4], 2, drop_early, let_go;
    loom_reader_dropped_beside_drain: &[1, 2, 3], 1, drop_early, drain;
    loom_reader_dropped_beside_drop: &[1, 2, 3], 1, drop_early, drop_list;

    loom_resident_from_beside_append: &[1, 2, 3], 1, resident_from, append;
    loom_resident_from_beside_a_new_segment: &[1, 2], 1, resident_from, begin_segment;
    loom_resident_from_beside_replace: &[1, 2, 3], 1, resident_from, replace;
    loom_resident_from_beside_take: &[1, 2, 3], 1, resident_from, take;
    loom_resident_from_beside_pack: &[1, 2, 3], 2, resident_from, pack;
    loom_resident_from_beside_merge: &[1, 2, 3, 4, 5, 6, 7], 6, resident_from, merge;
    loom_resident_from_beside_trim: &[1, 2, 3], 1, resident_from, trim;
    loom_resident_from_beside_letting_go: &[1, 2, 3, 4], 2, resident_from, let_go;
    loom_resident_from_beside_drain: &[1, 2, 3], 1, resident_from, drain;
    loom_resident_from_beside_drop: &[1, 2, 3], 1, resident_from, drop_list;
}

/// Two readers of different moments on threads of their own beside a writer: each sees its own.
#[test]
fn loom_two_readers_beside_replace() {
    explore(|| {
        let mut world = World::filled(&[1, 2]);
        let (early_expected, early) = (world.expected(1), world.open(1));
        world.write(1);
        let (late_expected, late) = (world.expected(1), world.open(1));
        let early = thread::spawn(move || next_batch(early).seqnos);
        let late = thread::spawn(move || next_batch(late).seqnos);
        world.write(2);
        world.settle();
        assert_eq!(early.join().unwrap(), early_expected);
        assert_eq!(late.join().unwrap(), late_expected);
        world.settle();
        assert!(world.stale.is_empty());
        world.end();
    });
}

/// A reader that moves tells the owner: who asks after that sees how far it came.
#[test]
fn loom_a_move_is_not_missed() {
    explore(|| {
        let mut world = World::filled(&[1, 2]);
        let mut reader = world.open(1);
        let reading = thread::spawn(move || {
            reader.skip_to(Seqno(2));
            drop(reader);
        });
        let mut settled = false;
        for _ in 0..2 {
            settled |= world.list.take_moved() && world.registry.is_empty();
        }
        reading.join().unwrap();
        assert!(settled || world.list.take_moved() && world.registry.is_empty());
        world.end();
    });
}

/// Handles are made and given up on two threads: what is in it is freed once, after the last look at it.
#[test]
fn loom_handles_of_an_item_on_two_threads() {
    explore(|| {
        let first = item(1, 7);
        let second = first.clone();
        let other = thread::spawn(move || {
            let third = second.clone();
            drop(second);
            assert_eq!(third.seqno(), Seqno(7));
        });
        let fourth = first.clone();
        drop(first);
        assert_eq!(fourth.key(), [1]);
        drop(fourth);
        other.join().unwrap();
    });
}

/// The checker's own proof: what is published without order is seen as such.
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_sees_an_item_that_was_not_published() {
    explore(|| {
        let place = Arc::new(crate::atomic::AtomicUsize::new(0));
        let other = place.clone();
        let reading = thread::spawn(move || {
            let raw = other.load(Ordering::Acquire);
            if raw != 0 {
                // SAFETY: the count is taken over; the test is about the missing order.
                drop(unsafe { Item::from_raw(raw) });
            }
        });
        place.store(item(1, 1).into_raw(), Ordering::Relaxed);
        reading.join().unwrap();
    });
}

/// What readers may look at is freed at once: a reader finds the mark.
#[test]
fn loom_freeing_without_grace_is_caught() {
    let name = "seqlist::loom_tests::loom_next_batch_beside_a_new_segment";
    // Whoever comes too late finds the mark; who looks at the very moment is seen by the cells.
    assert_caught(Mutant::FreeWithoutGrace, name, &["touched after it was freed", "Causality violation"]);
}

/// A directory is published without order: a reader sees a segment that is not written yet.
#[test]
fn loom_publishing_without_order_is_caught() {
    let name = "seqlist::loom_tests::loom_next_batch_beside_a_new_segment";
    assert_caught(Mutant::PublishRelaxed, name, &["Causality violation"]);
}
