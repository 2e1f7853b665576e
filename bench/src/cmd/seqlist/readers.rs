//! The writer beside readers: standing still, or reading all the time on another thread.
//!
//! Invariants
//! - As many readers as asked for live in every moment of a run: the writer opens a new one for each that has come to its end.
//!
//! Does not know: how results are shown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ringbase_storage::seqlist::{BatchLimits, Progress, RangeReader};

use super::{World, Write, bar};

/// Numbers of readers.
const READERS: [usize; 4] = [0, 1, 8, 64];

/// Updates of each key in a run.
const UPDATES_A_KEY: u64 = 20;

/// Updates between two looks for readers that have come to their end.
const LOOK_EVERY: u64 = 64;

/// Every number of readers, standing and moving, in each round.
pub(super) fn measure(keys: u64, rounds: u32, seed: u64) -> Vec<Write> {
    let variants: Vec<(usize, bool)> = READERS
        .iter()
        .flat_map(|readers| [(*readers, false), (*readers, true)])
        .filter(|(readers, moving)| *readers > 0 || !moving)
        .collect();
    let progress = bar(u64::from(rounds) * variants.len() as u64, "the writer beside readers");
    let mut writes = Vec::new();
    for round in 1..=rounds {
        for (readers, moving) in &variants {
            writes.push(write(round, *readers, *moving, keys, seed + u64::from(round)));
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    writes
}

/// One run.
fn write(round: u32, readers: usize, moving: bool, keys: u64, seed: u64) -> Write {
    let mut world = World::filled(keys);
    let mut random = SmallRng::seed_from_u64(seed);
    // Their moments lie apart, so that each sees old versions of its own.
    let opened: Vec<RangeReader> = (0..readers)
        .map(|_| {
            (0..keys / readers as u64).for_each(|_| world.write(random.random_range(0..keys)));
            world.open(1)
        })
        .collect();
    let updates = keys * UPDATES_A_KEY;
    let (seconds, ended) = if moving {
        beside_moving(&mut world, opened, updates, &mut random)
    } else {
        let began = Instant::now();
        (0..updates).for_each(|_| world.write(random.random_range(0..keys)));
        let seconds = began.elapsed().as_secs_f64();
        drop(opened);
        (seconds, 0)
    };
    Write { round, readers, moving, updates, seconds, ended, stale: world.versions.stats().stale }
}

/// Writes while another thread reads; returns the seconds, and how many readers came to their end.
fn beside_moving(
    world: &mut World,
    opened: Vec<RangeReader>,
    updates: u64,
    random: &mut SmallRng,
) -> (f64, u64) {
    let (keys, stop) = (world.newest.len() as u64, AtomicBool::new(false));
    let (to_writer, ended) = sync_channel(opened.len());
    let (to_reader, fresh) = sync_channel(opened.len());
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || read(opened, &to_writer, &fresh, stop));
        let (began, mut count) = (Instant::now(), 0);
        for update in 0..updates {
            world.write(random.random_range(0..keys));
            if update % LOOK_EVERY == 0 {
                for () in ended.try_iter() {
                    count += 1;
                    // There is room: one comes for one that went. The reading thread ends after the writer.
                    let _ = to_reader.try_send(world.open(1));
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        (seconds, count)
    })
}

/// Reads a batch of each reader in turn until `stop`; gives notice of each that has come to its end.
fn read(
    mut readers: Vec<RangeReader>,
    ended: &SyncSender<()>,
    fresh: &Receiver<RangeReader>,
    stop: &AtomicBool,
) {
    let mut taken = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        readers.extend(fresh.try_iter());
        readers.retain_mut(|reader| {
            let progress = reader.next_batch(BatchLimits::default(), &mut taken);
            taken.clear();
            let goes_on = progress == Progress::More;
            if !goes_on {
                // There is room for as many as there are readers.
                let _ = ended.try_send(());
            }
            goes_on
        });
        if readers.is_empty() {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_readers_has_its_turn_in_each_round() {
        let writes = measure(200, 2, 1);
        assert_eq!(writes.len(), 2 * 7);
        assert!(writes.iter().all(|write| write.updates == 4_000 && write.seconds > 0.0));
        let parked: Vec<&Write> = writes.iter().filter(|write| !write.moving && write.readers == 8).collect();
        assert!(parked.iter().all(|write| write.ended == 0 && write.stale >= 190), "{parked:?}");
        let alone: Vec<&Write> = writes.iter().filter(|write| write.readers == 0).collect();
        assert!(alone.len() == 2 && alone.iter().all(|write| write.stale == 0), "{alone:?}");
    }
}
