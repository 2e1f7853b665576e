//! `ringbench seqlist`: the sequence list of one vbucket by itself, without disk and network.
//!
//! What readers that stand still cost in memory (T4.15, T4.16), what opening one costs in a long list (T4.17), and what readers cost the writer.
//!
//! Invariants
//! - Stale versions never exceed what live readers can still see and one slice of giving up, or the measurement fails.
//! - Readers beside the writer come to their ends in order, and are opened anew.
//!
//! Does not know: how results are shown (`output`).

mod output;
mod readers;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ringbase_storage::item::Item;
use ringbase_storage::seqlist::{BatchLimits, Progress, RangeReader};
use ringbase_storage::types::{Cas, ItemMeta, Kind, Seqno};
use ringbase_storage::versions::{SLICE, Versions};
use serde::Serialize;

use crate::error::BenchError;
use crate::machine::Machine;
use crate::{process, recorder};

/// Bytes of every value.
const VALUE: [u8; 32] = [b'v'; 32];

/// Readers that are always there; the first stands still.
const PERMANENT_READERS: usize = 8;

/// Samples of the stale memory in a run.
const SAMPLES: u64 = 60;

/// Median time in which a reader must be open (T4.17).
const OPEN_NS_MAX: u64 = 50_000;

/// Options of `ringbench seqlist`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SeqListArgs {
    /// Versions of the long list [default: 10000000; 1000000 with --quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1000..=1 << 32))]
    versions: Option<u64>,
    /// Keys that are updated while readers stand still [default: 100000; 10000 with --quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(10..=1 << 32))]
    keys: Option<u64>,
    /// Rounds of the writer's throughput [default: 5; 2 with --quick].
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Seed of all that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A short list and two rounds: shows that all works, its figures mean little.
    #[arg(long)]
    quick: bool,
    /// Where raw.csv, summary.md, histogram and plot go [default: seqlist-results in target/ringbench].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// Stale memory at one moment of a run.
#[derive(Debug, Clone, Copy, Serialize)]
struct Stale {
    /// Updates until then.
    updates: u64,
    /// Versions kept for readers.
    versions: u64,
    /// Their bytes.
    bytes: u64,
    /// Bytes of those that the reader that stands still can see.
    frozen_bytes: u64,
}

/// A long list, and readers opened in it.
#[derive(Debug)]
struct Long {
    versions: u64,
    fill_seconds: f64,
    /// Of the list beside the versions.
    list_bytes: u64,
    /// By the accounts, versions included.
    accounted_bytes: u64,
    /// By what the system says.
    resident_bytes: u64,
    /// Nanoseconds until a reader was open at a random seqno.
    open: Histogram<u64>,
    /// And until it had its first version.
    first: Histogram<u64>,
}

/// A run of the writer beside readers.
#[derive(Debug, Clone, Copy, Serialize)]
struct Write {
    round: u32,
    readers: usize,
    /// They read all the time on another thread; else they stand still.
    moving: bool,
    updates: u64,
    seconds: f64,
    /// Readers that came to their end meanwhile.
    ended: u64,
    /// Stale versions at the end.
    stale: u64,
}

impl Write {
    fn updates_per_second(&self) -> f64 {
        self.updates as f64 / self.seconds
    }
}

/// Everything that was measured.
#[derive(Debug)]
struct Results {
    machine: Machine,
    keys: u64,
    stale: Vec<Stale>,
    /// Updates between two distant readers, and the stale versions that they left.
    distant: (u64, u64),
    long: Long,
    writes: Vec<Write>,
}

pub(crate) fn run(args: &SeqListArgs) -> Result<(), BenchError> {
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("target/ringbench/seqlist-results"));
    std::fs::create_dir_all(&out).map_err(BenchError::file("make", &out))?;
    let machine = Machine::look(&out);
    let keys = args.keys.unwrap_or(if args.quick { 10_000 } else { 100_000 });
    let versions = args.versions.unwrap_or(if args.quick { 1_000_000 } else { 10_000_000 });
    let rounds = args.rounds.unwrap_or(if args.quick { 2 } else { 5 }).max(1);

    // First, while the memory of this process is not yet fragmented.
    let long = long_list(versions, args.seed)?;
    let stale = stale_over_time(keys, args.seed)?;
    let distant = between_distant_readers(versions / 10)?;
    let writes = readers::measure(keys.min(20_000), rounds, args.seed);
    let mut results = Results { machine, keys, stale, distant, long, writes };
    results.machine.finish();
    output::write(&results, args.json, &out)?;
    let open_ns = results.long.open.value_at_quantile(0.5);
    if open_ns > OPEN_NS_MAX {
        return Err(BenchError::Unsound(format!(
            "opening a reader takes {open_ns} ns, more than {OPEN_NS_MAX}"
        )));
    }
    Ok(())
}

fn bar(count: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(count).with_message(what);
    if let Ok(style) =
        ProgressStyle::with_template("{msg}: {wide_bar} {human_pos}/{human_len} {per_sec} {eta}")
    {
        bar.set_style(style);
    }
    bar
}

/// A vbucket in memory whose keys are numbers, and their newest seqnos.
#[derive(Default)]
struct World {
    versions: Versions,
    newest: Vec<u64>,
    high: u64,
}

impl World {
    /// With `keys` keys, each written once.
    fn filled(keys: u64) -> World {
        let mut world = World { newest: vec![0; keys as usize], ..World::default() };
        for key in 0..keys {
            world.write(key);
        }
        world
    }

    fn write(&mut self, key: u64) {
        let former = std::mem::replace(&mut self.newest[key as usize], self.high + 1);
        self.put(key, former);
    }

    /// Writes a key whose newest version is `former`, 0 for none.
    fn put(&mut self, key: u64, former: u64) {
        self.high += 1;
        let meta = ItemMeta {
            seqno: Seqno(self.high),
            cas: Cas(self.high),
            revid: 1,
            flags: 0,
            expiry: 0,
            datatype: 0,
            kind: Kind::Mutation,
        };
        let item = Item::new(meta, &key.to_be_bytes(), &VALUE);
        self.versions.settle();
        self.versions.take(&item, Seqno(former));
    }

    fn open(&mut self, start: u64) -> RangeReader {
        self.versions.open(Seqno(start), Seqno(0))
    }
}

/// Fills a list of `count` keys and opens readers at random seqnos.
fn long_list(count: u64, seed: u64) -> Result<Long, BenchError> {
    let look = || process::resident_bytes(std::process::id()).map_err(BenchError::system("look at memory"));
    let before = look()?;
    let progress = bar(count, "a long list");
    let (began, mut world) = (Instant::now(), World::default());
    for key in 0..count {
        world.put(key, 0);
        if key % 4096 == 0 {
            progress.set_position(key);
        }
    }
    progress.finish_and_clear();
    let fill_seconds = began.elapsed().as_secs_f64();
    let resident_bytes = look()?.saturating_sub(before);
    let list_bytes = world.versions.stats().list_bytes;
    let one = world.versions.at(Seqno(1)).map_or(0, |item| item.resident_bytes() as u64);
    let (mut open, mut first) = (recorder::histogram(), recorder::histogram());
    let (mut random, mut taken) = (SmallRng::seed_from_u64(seed), Vec::new());
    for _ in 0..20_000 {
        let start = random.random_range(1..=count);
        let began = Instant::now();
        let mut reader = world.open(start);
        open.saturating_record(began.elapsed().as_nanos() as u64);
        reader.next_batch(BatchLimits { items: 1, ..BatchLimits::default() }, &mut taken);
        first.saturating_record(began.elapsed().as_nanos() as u64);
        if taken.drain(..).map(|item| item.seqno().0).ne([start]) {
            return Err(BenchError::Unsound(format!("a reader opened at {start} began elsewhere")));
        }
        drop(reader);
        world.versions.settle();
    }
    Ok(Long {
        versions: count,
        fill_seconds,
        list_bytes,
        accounted_bytes: list_bytes + one * count,
        resident_bytes,
        open,
        first,
    })
}

/// Updates random keys while readers are always there: one stands still, the others read and, before they end, make way for new ones.
fn stale_over_time(keys: u64, seed: u64) -> Result<Vec<Stale>, BenchError> {
    let mut world = World::filled(keys);
    let mut random = SmallRng::seed_from_u64(seed);
    let frozen = world.open(1);
    let mut moving: Vec<RangeReader> = (1..PERMANENT_READERS).map(|_| world.open(1)).collect();
    let version_bytes = world.versions.at(Seqno(1)).map_or(0, |item| item.resident_bytes() as u64);
    let updates = keys * 20;
    let progress = bar(updates, "readers that stay");
    let (mut samples, mut seen_updated, mut taken) = (Vec::new(), 0, Vec::new());
    for update in 1..=updates {
        let key = random.random_range(0..keys);
        seen_updated += u64::from(world.newest[key as usize] <= frozen.end().0);
        world.write(key);
        if update % 16 == 0 {
            let at = random.random_range(0..moving.len());
            if moving[at].next_batch(BatchLimits::default(), &mut taken) == Progress::End {
                let next = world.open(1);
                moving[at] = next;
            }
            taken.clear();
        }
        if update % (updates / SAMPLES).max(1) == 0 {
            progress.set_position(update);
            let stats = world.versions.stats();
            let others: u64 = moving.iter().map(|reader| visible(&world, reader)).sum();
            if stats.stale > seen_updated + others + SLICE as u64 {
                let text = format!("{} stale versions, readers see {seen_updated} and {others}", stats.stale);
                return Err(BenchError::Unsound(text));
            }
            samples.push(Stale {
                updates: update,
                versions: stats.stale,
                bytes: stats.stale_value_bytes + stats.stale_meta_bytes,
                frozen_bytes: seen_updated * version_bytes,
            });
        }
    }
    progress.finish_and_clear();
    Ok(samples)
}

/// Most stale versions that a reader can still see: one a key, and none behind it.
fn visible(world: &World, reader: &RangeReader) -> u64 {
    let left = (reader.end().0 + 1).saturating_sub(reader.position().0);
    left.min(world.newest.len() as u64)
}

/// Updates everything between two readers that are `distance` apart; returns the updates and the stale versions they left.
fn between_distant_readers(distance: u64) -> Result<(u64, u64), BenchError> {
    let mut world = World { newest: vec![0; distance as usize + 10], ..World::default() };
    for key in 0..10 {
        world.write(key);
    }
    let first = world.open(1);
    for key in 10..distance + 10 {
        world.write(key);
    }
    let second = world.open(distance);
    for key in 10..distance - 1 {
        world.write(key);
    }
    let left = (distance - 11, world.versions.stats().stale);
    drop((first, second));
    if left.1 > 0 {
        return Err(BenchError::Unsound(format!("{} versions between distant readers are kept", left.1)));
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T4.15.
    #[test]
    fn stale_memory_comes_to_rest_at_what_the_standing_reader_sees() {
        let samples = stale_over_time(500, 7).unwrap();
        let last = samples.last().unwrap();
        assert!(samples.len() as u64 >= SAMPLES && last.updates > 9_000);
        assert!(last.bytes >= last.frozen_bytes, "{last:?}");
        assert!(last.frozen_bytes > samples[0].frozen_bytes);
    }

    /// T4.16.
    #[test]
    fn nothing_is_kept_between_distant_readers() {
        assert_eq!(between_distant_readers(2_000).unwrap(), (1_989, 0));
    }

    #[test]
    fn a_long_list_is_accounted_for_and_readers_begin_where_they_should() {
        let long = long_list(5_000, 3).unwrap();
        assert_eq!((long.versions, long.open.len(), long.first.len()), (5_000, 20_000, 20_000));
        assert!(long.list_bytes >= 8 * 5_000 && long.accounted_bytes >= long.list_bytes + 64 * 5_000);
    }
}
