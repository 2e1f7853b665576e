//! Crash recovery on the simulated disk: random operations, a crash anywhere, recovery twice, everything compared with the model.
//!
//! `RINGBASE_SEEDS=100000 RINGBASE_FIRST_SEED=0 cargo test --release -p ringbase-storage --test it crash::` runs any number of seeds.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use rand::RngExt;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::mutant::Mutant;
use ringbase_storage::shard::Shard;
use ringbase_storage::types::{Seqno, VbId};
use ringbase_storage::vbstore::{VbStore, WriteError};

use crate::world::{
    self, BUCKET, Model, VBUCKETS, WAL_BLOCKS, check_recovered, check_view, each_seed, new_world, open_shard,
    put, rng, with_mutant,
};

/// What the seeds ran into: a checker that never sees a torn log or a merge proves little.
#[derive(Debug, Default, Clone, Copy)]
struct Coverage {
    lives: u64,
    flushes: u64,
    merges: u64,
    checkpoints: u64,
    torn_logs: u64,
    torn_manifests: u64,
    clean_stops: u64,
    interrupted_recoveries: u64,
    lost_writes: u64,
}

/// Laps of the log that every seed makes at least.
const LAPS: u64 = 3;

/// A client that does random things until it is killed.
pub(crate) async fn client(shard: Shard, model: Model, seed: u64, done: Rc<Cell<bool>>, operations: u32) {
    let mut random = rng(seed);
    let stores = shard.vbuckets();
    for _ in 0..operations {
        let store = stores[random.random_range(0..stores.len() as u16) as usize].clone();
        let vb = store.id();
        let mut key = vec![0u8];
        key.extend_from_slice(format!("key{:02}", random.random_range(0..40)).as_bytes());
        match random.random_range(0..100) {
            0..70 => {
                let len = [10, 300, 3000, 9000][random.random_range(0..4)];
                let value = vec![random.random::<u8>(); random.random_range(0..len)];
                match put(&store, &model, &key, Some(&value)).await {
                    Ok(_) => {}
                    Err(WriteError::Busy { .. }) => wait(&store).await,
                    Err(error) => panic!("write refused: {error}"),
                }
            }
            70..80 => match put(&store, &model, &key, None).await {
                Ok(_) | Err(WriteError::Busy { .. }) => {}
                Err(error) => panic!("delete refused: {error}"),
            },
            80..88 => {
                let seqno = store.high_seqno();
                assert!(store.wait_persisted(seqno).await);
            }
            88..96 => {
                let view = store.open_view().await.unwrap();
                if random.random_bool(0.5) {
                    wait(&store).await;
                }
                let known = model.borrow()[vb.0 as usize].clone();
                check_view(&view, &known, &mut random).await;
            }
            _ => shard.flush().await.unwrap(),
        }
    }
    done.set(true);
}

async fn wait(store: &VbStore) {
    store.sleep(Duration::from_millis(2)).await;
}

/// What each vbucket says is durable.
pub(crate) fn reported(shard: &Shard) -> Vec<Seqno> {
    shard.vbuckets().iter().map(|store| store.persisted_seqno()).collect()
}

/// Lives and deaths of one shard. Panics at the first violation.
fn run_seed(seed: u64, coverage: &mut Coverage) {
    let mut random = rng(seed ^ 0x5eed);
    let (mut sim, disk, mut shard, model) = new_world(seed);
    let mut lives = 0;
    loop {
        lives += 1;
        coverage.lives += 1;
        let done = Rc::new(Cell::new(false));
        let operations = random.random_range(50..400);
        sim.spawn(client(shard.clone(), model.clone(), random.random(), done.clone(), operations));
        if random.random_bool(0.3) {
            sim.set_wall_offset(-(random.random_range(0..10_000_000_000i64)));
        }
        let steps = random.random_range(1..20_000);
        for _ in 0..steps {
            if done.get() || !sim.step() {
                break;
            }
        }
        let clean = done.get() && random.random_bool(0.3);
        if clean {
            sim.block_on(shard.close()).unwrap();
        }
        let known = reported(&shard);
        coverage.clean_stops += u64::from(clean);
        coverage.flushes += shard.metrics().flush_ns.histogram().len();
        coverage.merges += shard.metrics().merges.get();
        coverage.checkpoints += shard.stats().manifest_checkpoints;
        let laps = shard.stats().wal_head_blocks / WAL_BLOCKS;
        // The process dies: its tasks go first, then what they shared; the disk keeps what it likes.
        drop(sim);
        shard.detach();
        drop(shard);
        disk.crash(random.random());
        (sim, shard) = recover(seed, &disk, &model, &known, clean, &mut random, coverage);
        if laps >= LAPS && lives >= 3 {
            break;
        }
    }
    shard.detach();
}

/// Recovers, dying inside recovery first with some chance, and checks everything.
fn recover(
    seed: u64,
    disk: &SimDisk,
    model: &Model,
    known: &[Seqno],
    clean: bool,
    random: &mut rand::rngs::Xoshiro256PlusPlus,
    coverage: &mut Coverage,
) -> (SimExecutor, Shard) {
    let mut clean = clean;
    for _ in 0..random.random_range(0..3) {
        let sim = SimExecutor::new(random.random());
        disk.attach(&sim);
        let (env, opener) = (sim.env(), disk.clone());
        let opened: Rc<RefCell<Option<Shard>>> = Rc::default();
        let slot = opened.clone();
        sim.spawn(async move {
            let (shard, _) = open_shard(&env, &opener).await.expect("recovery after a crash");
            *slot.borrow_mut() = Some(shard);
        });
        sim.run_steps(random.random_range(0..60));
        drop(sim);
        // An opening that got as far as its manifest change makes the next start an unclean one.
        clean = false;
        coverage.interrupted_recoveries += u64::from(opened.borrow().is_none());
        if let Some(shard) = opened.borrow_mut().take() {
            shard.detach();
        }
        disk.crash(random.random());
    }
    let sim = SimExecutor::new(random.random());
    disk.attach(&sim);
    let env = sim.env();
    let shard = sim.block_on(async {
        let (shard, report) = open_shard(&env, disk).await.unwrap_or_else(|error| {
            panic!("seed {seed}: recovery failed: {error}: {:?}", std::error::Error::source(&error))
        });
        coverage.torn_logs += u64::from(report.log_torn);
        coverage.torn_manifests += u64::from(report.manifest_torn);
        assert!(report.clean || !clean, "seed {seed}: a clean stop is recognised");
        for vb in 0..VBUCKETS {
            let store = shard.vbucket(BUCKET, VbId(vb)).unwrap();
            let mut known_vb = model.borrow()[vb as usize].clone();
            let written = known_vb.writes.len();
            check_recovered(&store, &mut known_vb, known[vb as usize], report.clean).await;
            coverage.lost_writes += (written - known_vb.writes.len()) as u64;
            let view = store.open_view().await.unwrap();
            check_view(&view, &known_vb, random).await;
            model.borrow_mut()[vb as usize] = known_vb;
        }
        shard
    });
    (sim, shard)
}

/// G1, G2, G4: whatever is reported persisted survives a crash at any point, also inside flush, manifest change, checkpoint and
/// recovery; each vbucket recovers a gap-free prefix; nothing is invented. Each seed laps its log at least three times.
#[test]
fn what_was_reported_persisted_survives_a_crash_at_any_point() {
    let mut coverage = Coverage::default();
    let seeds = each_seed(2000, |seed| {
        run_seed(seed, &mut coverage);
        1
    });
    println!("{coverage:?}");
    if seeds >= 200 {
        let Coverage { flushes, merges, checkpoints, torn_logs, clean_stops, .. } = coverage;
        let rare = [flushes, merges, checkpoints, torn_logs, clean_stops];
        assert!(rare.iter().all(|&count| count > 0), "the seeds miss something: {coverage:?}");
        assert!(coverage.interrupted_recoveries > 0 && coverage.lost_writes > 0, "{coverage:?}");
    }
}

/// The first of `seeds` at which the checker notices, with the fault turned on.
fn caught_at(mutant: Mutant, seeds: u64) -> Option<u64> {
    world::caught_at(mutant, seeds, |seed| run_seed(seed, &mut Coverage::default()))
}

/// G2: the checker notices a build that acknowledges before the sync, within 200 images.
#[test]
fn acknowledging_before_the_sync_is_caught() {
    assert!(caught_at(Mutant::EarlyAck, 200).is_some());
}

/// Dies after `steps` steps of a flush, and recovers. Returns whether the flush was through before.
fn die_within_a_flush(seed: u64, steps: u64) -> bool {
    let mut random = rng(seed.wrapping_mul(1000) + steps);
    let (sim, disk, shard, model) = new_world(seed);
    sim.block_on(async {
        for n in 0..40 {
            let store = &shard.vbuckets()[n % 2];
            put(store, &model, format!("\0key{n}").as_bytes(), Some(&[7; 700])).await.unwrap();
            assert!(store.wait_persisted(store.high_seqno()).await);
        }
    });
    let (flushing, done) = (shard.clone(), Rc::new(Cell::new(false)));
    let is_done = done.clone();
    sim.spawn(async move {
        flushing.flush().await.unwrap();
        is_done.set(true);
    });
    sim.run_steps(steps);
    let known = reported(&shard);
    drop(sim);
    shard.detach();
    drop(shard);
    disk.crash(random.random());
    let (sim, shard) = recover(seed, &disk, &model, &known, false, &mut random, &mut Coverage::default());
    shard.detach();
    drop(sim);
    done.get()
}

/// The first death within a flush that the checker notices: every step of it, several times. `None` if each recovers.
fn caught_within_a_flush() -> Option<u64> {
    (0..6).find_map(|seed| {
        let mut through = 0;
        (0..2000)
            .find(|steps| {
                let died = catch_unwind(AssertUnwindSafe(|| die_within_a_flush(seed, *steps)));
                through += u64::from(*died.as_ref().unwrap_or(&false));
                died.is_err() || through > 10
            })
            .filter(|_| through <= 10)
    })
}

/// G1: a crash at any step of a flush loses nothing that was durable before it, and nothing of a flush that was committed.
#[test]
fn a_crash_at_any_step_of_a_flush_loses_nothing() {
    assert_eq!(caught_within_a_flush(), None);
}

/// G1: the checker notices a flush that is committed before its blocks are durable.
#[test]
fn committing_a_flush_before_its_sync_is_caught() {
    let caught = with_mutant(Mutant::NoDataSync, caught_within_a_flush);
    assert!(caught.is_some());
}

/// The checker notices an unclean stop that makes no new branch.
#[test]
fn keeping_the_branch_after_a_crash_is_caught() {
    assert!(caught_at(Mutant::NoNewBranch, 200).is_some());
}

/// The checker notices a flush without death marks: a key would be shown twice in seqno order.
#[test]
fn a_flush_without_death_marks_is_caught() {
    assert!(caught_at(Mutant::NoDeathMarks, 200).is_some());
}
