//! Random schedules of a writer with random operations and three readers. Each look-up must give a state that its key had at some moment of the call,
//! and none older than the same reader has seen. Half of the schedules pick any thread at each step, half stop one for long at a few places.
//!
//! `RINGBASE_SCHEDULES` says how many; a million are for a quiet hour.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::checked::{item, keys, look};
use super::*;
use crate::mutant::turn_on;

const SCHEDULES: usize = 100_000;
const READERS: usize = 3;
const WRITES: u64 = 6;
const LOOKS: usize = 4;
/// Places where a thread is stopped for long.
const PREEMPTIONS: usize = 3;

fn schedules() -> usize {
    std::env::var("RINGBASE_SCHEDULES").map_or(SCHEDULES, |text| text.parse().expect("a number"))
}

/// The states of one key in order: a seqno, or absent.
struct History {
    key: Vec<u8>,
    states: Mutex<Vec<Option<u64>>>,
    /// States whose operation is over.
    done: AtomicUsize,
}

impl History {
    fn change(&self, state: Option<u64>, operation: impl FnOnce()) {
        self.states.lock().unwrap().push(state);
        operation();
        self.done.fetch_add(1, SeqCst);
    }

    fn newest(&self) -> Option<u64> {
        *self.states.lock().unwrap().last().unwrap()
    }

    /// Looks the key up; `seen` is the state seen before, and then the one seen now.
    fn look(&self, reader: &TableReader, seen: &mut usize) {
        let from = self.done.load(SeqCst).max(*seen);
        let found = look(reader, &self.key);
        let states = self.states.lock().unwrap();
        let at = states[from..].iter().position(|state| *state == found);
        *seen = from + at.unwrap_or_else(|| panic!("found {found:?} in {states:?} from {from} on"));
    }
}

fn write(table: &mut HashTable, histories: &[History]) {
    for seqno in 1..=WRITES {
        let history = &histories[thread_rng().gen_range(0..histories.len())];
        match history.newest() {
            Some(newest) if thread_rng().gen_bool(0.6) => history.change(None, || {
                assert!(table.evict(&history.key, Seqno(newest)).is_some());
            }),
            newest => history.change(Some(seqno), || {
                let old = table.insert(item(&history.key, seqno));
                assert_eq!(old.map(|old| old.seqno().0), newest);
            }),
        }
    }
}

fn scenario() {
    let histories = keys([0, 1, 2, 3, 0]).map(|key| History {
        key,
        states: Mutex::new(vec![None]),
        done: AtomicUsize::new(0),
    });
    let (mut table, histories) = (HashTable::default(), Arc::new(histories));
    for (history, seqno) in histories[..3].iter().zip(1001..) {
        history.change(Some(seqno), || drop(table.insert(item(&history.key, seqno))));
    }
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let (reader, histories) = (table.reader(), histories.clone());
            thread::spawn(move || {
                let mut seen = [0; 5];
                for _ in 0..LOOKS {
                    let at = thread_rng().gen_range(0..histories.len());
                    histories[at].look(&reader, &mut seen[at]);
                }
            })
        })
        .collect();
    write(&mut table, &*histories);
    for history in histories.iter() {
        assert_eq!(table.get(&history.key).map(|item| item.seqno().0), history.newest());
    }
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn shuttle_every_look_gives_a_state_of_its_time() {
    shuttle::check_random(scenario, schedules().div_ceil(2));
    shuttle::check_pct(scenario, schedules().div_ceil(2), PREEMPTIONS);
}

#[test]
fn shuttle_finds_what_is_freed_without_a_grace_period() {
    let _on = turn_on(Mutant::FreeWithoutGrace);
    let found = catch_unwind(AssertUnwindSafe(|| shuttle::check_pct(scenario, 10_000, PREEMPTIONS)));
    assert!(found.is_err(), "the fault is found");
}
