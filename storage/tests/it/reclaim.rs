//! Reclamation against the model: views held open over rewritten segments, flushes under way, crashes at any step, blocks that cannot be read, a full
//! disk; and the space check: what is used at the end is what live records need, and no block is lost.
//!
//! `RINGBASE_SEEDS=5000 RINGBASE_FIRST_SEED=0 cargo test --release -p ringbase-storage --test it reclaim::` runs any number of seeds.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::compaction::{SEGMENT_BYTES_MIN, SEGMENTS_MAX};
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::{Fault, Injection, SimDisk};
use ringbase_storage::mutant::Mutant;
use ringbase_storage::scan::SeqnoScan;
use ringbase_storage::seqlog::Segment;
use ringbase_storage::shard::{ReclaimOptions, Shard, ShardOptions};
use ringbase_storage::types::{Seqno, VbId};
use ringbase_storage::vbstore::{ReadView, VbStore, WriteError};

use crate::crash::reported;
use crate::world::{
    self, BUCKET, Model, OPTIONS, VBUCKETS, VbModel, check_recovered, check_view, default_bucket, each_seed,
    format_shard_with, new_world, open_shard, open_shard_with, put, rng, with_mutant,
};

/// Bytes of a record beside key and value: its place, its head, the frame's header.
const RECORD_HEAD_BYTES: u64 = 4 + 8 + 24;

/// A shard that reclaims nothing.
const NEVER: ShardOptions =
    ShardOptions { reclaim: ReclaimOptions { dead_share_max: 2.0, bytes_per_second: 0 }, ..OPTIONS };

/// What the seeds ran into.
#[derive(Debug, Default)]
struct Coverage {
    lives: u64,
    flushes: u64,
    reclaims: u64,
    views: u64,
    moved_views: u64,
    pinned_bytes: u64,
}

/// What a scan of all that is flushed shows: records, and their bytes in the seqlog.
async fn shown(shard: &Shard, vb: usize) -> (u64, u64) {
    let view = shard.vbuckets()[vb].open_view().await.unwrap();
    let (mut records, mut bytes) = (0, 0);
    let mut scan = SeqnoScan::new(view, Seqno(1));
    let more = scan.run(|record| {
        let extras = if record.meta.kind.is_deleted() { 21 } else { 31 };
        records += 1;
        bytes += RECORD_HEAD_BYTES + extras + (record.key.len() + record.value.len()) as u64;
        true
    });
    assert!(!more.await.unwrap());
    (records, bytes)
}

/// The live records of each vbucket are those that a reader would see, and so are their bytes unless some died in an earlier life: lengths are not in the
/// log.
async fn check_live_bytes(shard: &Shard, are_exact: bool) {
    shard.flush().await.unwrap();
    for (vb, store) in shard.vbuckets().iter().enumerate() {
        let (stats, (records, bytes)) = (store.stats(), shown(shard, vb).await);
        assert_eq!(stats.live_records, records, "vb {vb}");
        if are_exact {
            assert_eq!(stats.live_bytes, bytes, "vb {vb}");
        }
        assert!(stats.live_bytes + stats.dead_bytes <= stats.seqlog_bytes, "{stats:?}");
    }
}

/// Every block is free or has one owner that the manifest names: nobody reads, and nothing is written.
fn check_owners(shard: &Shard) {
    let stats = shard.stats();
    let used = stats.space.file_bytes - stats.space.free_bytes;
    assert_eq!(used, stats.named_bytes, "blocks are lost, or named and free");
}

/// When nobody reads, and reclamation has nothing to do: dead records take 10 % of the seqlog at most; a segment has a block that is not full and an index
/// beside what its records need, which is a tenth more than their bytes; segments are within their bound; marks take twice what they need and 8 blocks.
async fn check_space(shard: &Shard) {
    shard.flush().await.unwrap();
    shard.compact().await;
    for store in shard.vbuckets() {
        // Let the last tidying end, which holds a reader of the window.
        store.sleep(Duration::from_millis(20)).await;
    }
    check_owners(shard);
    let (mut seqlog, mut bound) = (0, 0);
    for store in shard.vbuckets() {
        let stats = store.stats();
        assert!(stats.segments <= SEGMENTS_MAX as u64 + stats.live_bytes / SEGMENT_BYTES_MIN, "{stats:?}");
        seqlog += stats.seqlog_bytes;
        bound += stats.live_bytes * 11 / 8 + stats.segments * (5 << 12);
    }
    assert!(seqlog <= bound, "{seqlog} bytes of segments, {bound} are allowed");
}

async fn write(store: &Rc<VbStore>, model: &Model, random: &mut Xoshiro256PlusPlus, keys: u32) {
    let key = format!("\0key{:03}", random.random_range(0..keys)).into_bytes();
    let len = [20, 300, 3000][random.random_range(0..3)];
    let value = vec![random.random(); random.random_range(0..len)];
    let value = random.random_bool(0.85).then_some(&value[..]);
    match put(store, model, &key, value).await {
        Ok(_) => {}
        Err(WriteError::Busy { .. }) => store.sleep(Duration::from_millis(2)).await,
        Err(error) => panic!("{error}"),
    }
}

/// A view that is held open, and a scan in it that has come somewhere.
struct Held {
    vb: VbId,
    view: ReadView,
    epoch: u64,
    scan: SeqnoScan,
    shown: Vec<(u64, Vec<u8>)>,
}

impl Held {
    async fn open(store: &Rc<VbStore>) -> Held {
        let view = store.open_view().await.unwrap();
        let scan = SeqnoScan::new(view.clone(), Seqno(1));
        Held { vb: store.id(), epoch: view.epoch(), view, scan, shown: Vec::new() }
    }

    /// Moves the scan on; at its end it has shown what the model says.
    async fn go_on(&mut self, known: &VbModel, steps: usize) {
        let (mut left, shown) = (steps, &mut self.shown);
        let more = self.scan.run(|record| {
            shown.push((record.meta.seqno.0, record.key.to_vec()));
            left -= 1;
            left > 0
        });
        if !more.await.expect("no read fault is injected") {
            let versions = known.at(self.view.end());
            let mut all: Vec<_> = versions.into_iter().map(|(key, (seqno, _))| (seqno, key)).collect();
            all.sort();
            assert_eq!(self.shown, all, "{:?} in pieces", self.view);
            self.scan = SeqnoScan::new(self.view.clone(), Seqno(1));
            self.shown.clear();
        }
    }
}

/// Overwrites, flushes, compacts; holds views open over all of it, and looks at them now and then.
async fn live(shard: Shard, model: Model, seed: u64, coverage: Rc<Cell<(u64, u64, u64)>>, rounds: u32) {
    let mut random = rng(seed);
    let stores = shard.vbuckets();
    let mut held: Vec<Held> = Vec::new();
    for _ in 0..rounds {
        let store = &stores[random.random_range(0..stores.len())];
        for _ in 0..random.random_range(0..40) {
            write(store, &model, &mut random, 40).await;
        }
        match random.random_range(0..10) {
            0..5 => shard.flush().await.unwrap(),
            5 => shard.compact().await,
            6 => store.sleep(Duration::from_millis(1)).await,
            _ => {}
        }
        if held.len() < 6 && random.random_bool(0.4) {
            held.push(Held::open(store).await);
        }
        if !held.is_empty() {
            let index = random.random_range(0..held.len());
            let one = &mut held[index];
            let known = model.borrow()[one.vb.0 as usize].clone();
            one.go_on(&known, [1, 5, 1000][random.random_range(0..3)]).await;
            if random.random_bool(0.5) {
                check_view(&one.view, &known, &mut random).await;
            }
            if random.random_bool(0.25) {
                let (views, moved, pinned) = coverage.get();
                let stats = shard.stats();
                let used = stats.space.file_bytes - stats.space.free_bytes;
                let moved = moved + u64::from(one.view.epoch() != one.epoch);
                coverage.set((views + 1, moved, pinned + used - stats.named_bytes));
                held.swap_remove(index);
            }
        }
    }
}

fn note(shard: &Shard, coverage: &mut Coverage) {
    coverage.lives += 1;
    coverage.flushes += shard.metrics().flush_ns.histogram().len();
    coverage.reclaims += shard.metrics().reclaims.get();
}

/// Recovers and compares with the model.
fn recover(
    disk: &SimDisk,
    model: &Model,
    known: &[Seqno],
    random: &mut Xoshiro256PlusPlus,
) -> (SimExecutor, Shard) {
    let sim = SimExecutor::new(random.random());
    disk.attach(&sim);
    let env = sim.env();
    let shard = sim.block_on(async {
        let (shard, report) = open_shard(&env, disk).await.expect("recovery after a crash");
        for vb in 0..VBUCKETS {
            let store = shard.vbucket(BUCKET, VbId(vb)).unwrap();
            let mut known_vb = model.borrow()[vb as usize].clone();
            check_recovered(&store, &mut known_vb, known[vb as usize], report.clean).await;
            let view = store.open_view().await.unwrap();
            check_view(&view, &known_vb, random).await;
            model.borrow_mut()[vb as usize] = known_vb;
        }
        shard
    });
    (sim, shard)
}

fn run_seed(seed: u64, coverage: &mut Coverage) {
    let mut random = rng(seed ^ 0x9ec1);
    let (mut sim, disk, mut shard, model) = new_world(seed);
    let views = Rc::new(Cell::new((0, 0, 0)));
    for _ in 0..random.random_range(0..3) {
        sim.spawn(live(shard.clone(), model.clone(), random.random(), views.clone(), 60));
        sim.run_steps(random.random_range(1..40_000));
        let known = reported(&shard);
        note(&shard, coverage);
        drop(sim);
        shard.detach();
        drop(shard);
        disk.crash(random.random());
        (sim, shard) = recover(&disk, &model, &known, &mut random);
    }
    sim.block_on(async {
        live(shard.clone(), model.clone(), random.random(), views.clone(), 60).await;
        check_space(&shard).await;
        check_live_bytes(&shard, false).await;
        shard.close().await.unwrap();
    });
    note(&shard, coverage);
    let (views, moved, pinned) = views.get();
    coverage.views += views;
    coverage.moved_views += moved;
    coverage.pinned_bytes += pinned;
    let known = reported(&shard);
    drop(sim);
    shard.detach();
    disk.crash(random.random());
    let (sim, shard) = recover(&disk, &model, &known, &mut random);
    sim.block_on(async {
        check_space(&shard).await;
        check_live_bytes(&shard, false).await;
        shard.close().await.unwrap();
    });
    shard.detach();
}

/// Views, whenever they were opened, show what they showed, in both orders; a crash at any moment loses nothing; at the end nothing takes room that nobody
/// needs.
#[test]
fn nothing_is_lost_and_no_space_is_kept_when_segments_are_rewritten_under_views_and_crashes() {
    let mut coverage = Coverage::default();
    let seeds = each_seed(24, |seed| {
        run_seed(seed, &mut coverage);
        1
    });
    println!("{coverage:?}");
    if seeds >= 20 {
        let Coverage { flushes, reclaims, views, moved_views, pinned_bytes, lives } = coverage;
        assert!(lives > seeds && flushes > lives && reclaims > 10 * seeds, "{reclaims} in {lives} lives");
        assert!(
            views > 10 * seeds && moved_views > seeds && pinned_bytes > 0,
            "{moved_views} of {views} views"
        );
    }
}

fn caught_at(mutant: Mutant, seeds: u64) -> Option<u64> {
    world::caught_at(mutant, seeds, |seed| run_seed(seed, &mut Coverage::default()))
}

/// The checker notices a view that is moved to a segment without the records that it sees.
#[test]
fn reclamation_that_ignores_the_end_of_a_view_is_caught() {
    assert!(caught_at(Mutant::ReclaimUnderViews, 50).is_some());
}

/// The checker notices that a mark is lost that a flush finds while its segment is rewritten.
#[test]
fn marks_lost_while_a_segment_is_rewritten_are_caught() {
    assert!(caught_at(Mutant::LoseArrivingMarks, 50).is_some());
}

async fn overwrite(shard: &Shard, model: &Model, seed: u64, writes: u64) {
    let mut random = rng(seed);
    for _ in 0..writes {
        let stores = shard.vbuckets();
        write(&stores[random.random_range(0..stores.len())], model, &mut random, 40).await;
        if random.random_bool(0.02) {
            shard.flush().await.unwrap();
        }
    }
}

/// Live and dead bytes come from the death marks and need no data, before and after a restart, and whatever was rewritten.
#[test]
fn live_bytes_are_those_of_the_records_that_a_reader_sees() {
    each_seed(10, |seed| {
        let (sim, disk, shard, model) = new_world(seed);
        sim.block_on(async {
            overwrite(&shard, &model, seed, 600).await;
            check_live_bytes(&shard, true).await;
            assert!(shard.metrics().reclaims.get() > 0);
            shard.close().await.unwrap();
            let before: Vec<_> = shard.vbuckets().iter().map(|store| store.stats().dead_bytes).collect();
            assert!(before.iter().sum::<u64>() > 0);
            shard.detach();
            let (shard, _) = open_shard_with(&sim.env(), &disk, 0, NEVER).await.unwrap();
            let after: Vec<_> = shard.vbuckets().iter().map(|store| store.stats().dead_bytes).collect();
            assert_eq!(before, after, "the marks on disk say what the marks in memory said");
            check_live_bytes(&shard, true).await;
            shard.detach();
        });
        1
    });
}

/// A shard with much that is dead and that was never reclaimed, closed.
fn garbage(seed: u64) -> (SimExecutor, SimDisk, Model) {
    let (sim, disk, shard, model) = new_world(seed);
    sim.block_on(async {
        shard.close().await.unwrap();
        shard.detach();
        let (shard, _) = open_shard_with(&sim.env(), &disk, 0, NEVER).await.unwrap();
        overwrite(&shard, &model, seed, 400).await;
        assert_eq!(shard.metrics().reclaims.get(), 0);
        shard.close().await.unwrap();
        shard.detach();
    });
    (sim, disk, model)
}

/// Dies after `steps` steps of a compaction of a store with `images`, and recovers. Returns whether the compaction was through before.
fn die_within_a_compaction(seed: u64, steps: u64, images: &[Vec<u8>; 2], known: &[VbModel]) -> bool {
    let mut random = rng(seed.wrapping_mul(1000) + steps);
    let (sim, disk) = (SimExecutor::new(seed), SimDisk::new(seed));
    disk.set_image("wal", images[0].clone());
    disk.set_image("data", images[1].clone());
    disk.attach(&sim);
    let model: Model = Rc::default();
    *model.borrow_mut() = known.to_vec();
    let env = sim.env();
    let shard = sim.block_on(async {
        let (shard, _) = open_shard_with(&env, &disk, 0, OPTIONS).await.unwrap();
        shard
    });
    let (compacting, done) = (shard.clone(), Rc::new(Cell::new(false)));
    let is_done = done.clone();
    sim.spawn(async move {
        compacting.compact().await;
        is_done.set(true);
    });
    sim.run_steps(steps);
    let known = reported(&shard);
    drop(sim);
    shard.detach();
    drop(shard);
    disk.crash(random.random());
    let (sim, shard) = recover(&disk, &model, &known, &mut random);
    sim.block_on(check_space(&shard));
    shard.detach();
    done.get()
}

/// The first death within a compaction that the checker notices: every fifth step of it. `None` if each recovers.
fn caught_within_a_compaction(seeds: u64) -> Option<u64> {
    (0..seeds).find_map(|seed| {
        let mut through = 0;
        let mut steps = (0..).map(|step| step * 5 + seed);
        let (sim, disk, model) = garbage(seed);
        drop(sim);
        let images = ["wal", "data"].map(|name| disk.image(name));
        let known = model.borrow().clone();
        loop {
            let step = steps.next()?;
            let died =
                catch_unwind(AssertUnwindSafe(|| die_within_a_compaction(seed, step, &images, &known)));
            match died {
                Err(_) => return Some(step),
                Ok(is_through) => through += u64::from(is_through),
            }
            if through > 5 {
                return None;
            }
        }
    })
}

/// G1: a crash at any step of a compaction leaves the old segments or the new ones, never both or none.
#[test]
fn a_crash_at_any_step_of_a_compaction_leaves_old_or_new() {
    assert_eq!(caught_within_a_compaction(2), None);
}

/// G1: the checker notices a segment that is named before its blocks are durable.
#[test]
fn naming_a_rewritten_segment_before_its_sync_is_caught() {
    let caught = with_mutant(Mutant::NoReclaimSync, || caught_within_a_compaction(6));
    assert!(caught.is_some());
}

async fn has_segment(store: &Rc<VbStore>, id: u64) -> bool {
    let (parts, _) = store.open_view().await.unwrap().parts();
    parts.version.segments.iter().any(|segment| segment.desc().id == id)
}

/// G7: a block that cannot be read costs the rewriting of its segment, once; others are rewritten, and nothing is read again and again. When half of what
/// lived in the segment has died it is tried again.
#[test]
fn a_segment_that_cannot_be_read_stays_and_is_not_tried_again_and_again() {
    let (sim, disk, model) = garbage(3);
    sim.block_on(async {
        let (shard, _) = open_shard_with(&sim.env(), &disk, 0, NEVER).await.unwrap();
        // The segment that goes first, but for those that are wholly dead: its first block with something live.
        let mut worst: Option<(f64, VbId, Rc<Segment>)> = None;
        for store in shard.vbuckets() {
            for segment in &store.open_view().await.unwrap().parts().0.version.segments {
                let usage = segment.usage();
                let share = usage.live().bytes as f64 / usage.all.bytes as f64;
                if share > 0.0 && worst.as_ref().is_none_or(|(least, ..)| share < *least) {
                    worst = Some((share, store.id(), segment.clone()));
                }
            }
        }
        let (_, vb, bad) = worst.unwrap();
        let dead = bad.marks(Seqno(1 << 40));
        let live = |first: Seqno, last: Seqno, records: u32| {
            let dead = dead.iter().filter(|mark| first <= mark.dead && mark.dead <= last).count();
            (dead as u32) < records
        };
        let fence = *bad.fences().iter().find(|fence| live(fence.first, fence.last, fence.records)).unwrap();
        let id = bad.desc().id;
        drop(bad);
        shard.close().await.unwrap();
        shard.detach();

        let place = fence.place * 4096;
        disk.inject(Injection::next(Fault::ReadError).on("data").at(place..place + 4096).sticky());
        let eager = ReclaimOptions { dead_share_max: 0.01, ..ReclaimOptions::UNPACED };
        let options = ShardOptions { reclaim: eager, ..OPTIONS };
        let (shard, _) = open_shard_with(&sim.env(), &disk, 0, options).await.unwrap();
        shard.compact().await;
        let metrics = shard.metrics();
        assert_eq!(metrics.reclaim_failures.get(), 1, "given up once");
        assert!(metrics.reclaims.get() > 0, "others are rewritten");
        let store = shard.vbucket(BUCKET, vb).unwrap();
        assert!(has_segment(&store, id).await, "it stays as it was");
        let reads = disk.stats().reads;
        for _ in 0..5 {
            shard.compact().await;
        }
        assert_eq!((disk.stats().reads, metrics.reclaim_failures.get()), (reads, 1), "and is left alone");

        disk.clear_faults();
        let mut random = rng(4);
        for _ in 0..600 {
            write(&store, &model, &mut random, 40).await;
        }
        shard.flush().await.unwrap();
        shard.compact().await;
        assert!(!has_segment(&store, id).await, "it was tried again");
        let known = model.borrow()[vb.0 as usize].clone();
        check_view(&store.open_view().await.unwrap(), &known, &mut random).await;
        shard.detach();
    });
}

/// Overwrites uniformly, some 160 MB a second; returns how often it was told to wait.
async fn churn(shard: &Shard, model: &Model, keys: u32, writes: u32, value_bytes: usize) -> u64 {
    let (mut random, mut refused) = (rng(8), 0);
    let stores = shard.vbuckets();
    for n in 0..writes {
        let store = &stores[n as usize % stores.len()];
        let key = format!("\0key{:05}", random.random_range(0..keys)).into_bytes();
        let value = vec![random.random(); value_bytes];
        let mut tries = 0;
        if n % 16 == 0 {
            store.sleep(Duration::from_micros(100)).await;
        }
        while let Err(error) = put(store, model, &key, Some(&value)).await {
            assert!(matches!(error, WriteError::Busy { .. }), "{error}");
            (refused, tries) = (refused + 1, tries + 1);
            assert!(tries < 10_000, "write {n} waits for ever: {:?}", shard.stats());
            store.sleep(Duration::from_millis(1)).await;
        }
    }
    refused
}

/// G8: a disk that is full of what is dead is compacted with the reserve, and writes go on; nothing is lost.
#[test]
fn a_full_disk_is_compacted_and_writes_go_on() {
    let (sim, disk, shard, model) = new_world(5);
    let wal_bytes = disk.image("wal").len() as u64;
    sim.block_on(async {
        // Live: 4 x 150 documents of 1,000 bytes. Room for about twice that, and for the reserve.
        disk.set_capacity(Some(wal_bytes + (2 << 20)));
        churn(&shard, &model, 150, 6000, 1000).await;
        assert!(shard.stats().space.file_bytes <= 2 << 20);
        assert!(shard.metrics().reclaims.get() > 10);
        let mut random = rng(6);
        for store in shard.vbuckets() {
            let known = model.borrow()[store.id().0 as usize].clone();
            check_view(&store.open_view().await.unwrap(), &known, &mut random).await;
        }
        check_space(&shard).await;
        shard.close().await.unwrap();
        shard.detach();
    });
}

/// Uniform overwrites of 1 KiB values, ten times the data: whenever reclamation has nothing to do, blocks in use are within 1.5 times the live records'
/// bytes, key runs, indexes and the manifest of this small store included; and the device is written at most five times what the client wrote, the log
/// included.
#[test]
fn uniform_overwrites_take_little_space_and_few_writes() {
    let (sim, disk) = (SimExecutor::new(1), SimDisk::new(1));
    disk.attach(&sim);
    sim.block_on(async {
        format_shard_with(&sim.env(), &disk, 512 << 10).await.unwrap();
        let options = ShardOptions {
            resident_bytes_max: 8 << 20,
            memtable_bytes_max: 8 << 20,
            grow_bytes: 1 << 20,
            flush_bytes: 256 << 10,
            window_versions_max: 100,
            ..OPTIONS
        };
        let (shard, _) = open_shard_with(&sim.env(), &disk, 1 << 20, options).await.unwrap();
        shard.create_bucket(default_bucket()).await.unwrap();
        let model: Model = Rc::default();
        model.borrow_mut().resize_with(VBUCKETS.into(), VbModel::default);
        const KEYS: u32 = 2000;
        churn(&shard, &model, KEYS, 4 * u32::from(VBUCKETS) * KEYS, 1024).await;
        let (before, mut most, mut seqlog_most) = (disk.stats().bytes_written, 0.0f64, 0.0f64);
        for _ in 0..20 {
            churn(&shard, &model, KEYS, u32::from(VBUCKETS) * KEYS / 2, 1024).await;
            shard.compact().await;
            let stats = shard.stats().space;
            let live: u64 = shard.vbuckets().iter().map(|store| store.stats().live_bytes).sum();
            most = most.max((stats.file_bytes - stats.free_bytes) as f64 / live as f64);
            let seqlog: u64 = shard.vbuckets().iter().map(|store| store.stats().seqlog_bytes).sum();
            seqlog_most = seqlog_most.max(seqlog as f64 / live as f64);
        }
        let user = 10 * u64::from(VBUCKETS) * u64::from(KEYS) * 1024;
        let amplification = (disk.stats().bytes_written - before) as f64 / user as f64;
        println!("space {most:.2}, of the seqlog {seqlog_most:.2}, writes {amplification:.2}");
        assert!(
            amplification <= 5.0 && most <= 1.5 && seqlog_most <= 1.3,
            "space {most:.2}, writes {amplification:.2}"
        );
        shard.detach();
    });
}
