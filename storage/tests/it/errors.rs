//! Devices that fail and devices that lie: no panic, no wrong answer, and what was acknowledged is there after the next start.
//!
//! `RINGBASE_EXHAUSTIVE=1 cargo test --release -p ringbase-storage --test it errors:: -- --nocapture` fails every single operation;
//! `RINGBASE_SEEDS=10000` there tries that many seeds of lost and misdirected writes.

use std::cell::Cell;
use std::rc::Rc;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::cache::BlockCache;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::{Crash, Fault, Injection, SimDisk};
use ringbase_storage::shard::Shard;
use ringbase_storage::types::{Seqno, VbId};

use crate::crash::reported;
use crate::tolerant::{ALL_THERE, Met, check, error_loop, get, scan, stride, wait_persisted, write};
use crate::world::{BUCKET, Model, OPTIONS, VBUCKETS, VbModel, each_seed, new_world, open_shard, rng, seeds};

/// Operations of the scenario.
const OPERATIONS: u32 = 400;

/// One client, whose operations may all fail.
async fn run(shard: &Shard, model: &Model, random: &mut Xoshiro256PlusPlus, operations: u32, met: &mut Met) {
    let stores = shard.vbuckets();
    for _ in 0..operations {
        let store = &stores[random.random_range(0..stores.len())];
        let key = format!("\0key{:02}", random.random_range(0..30));
        match random.random_range(0..100) {
            0..60 => {
                let len = [20, 400, 4000][random.random_range(0..3)];
                let value = vec![random.random::<u8>(); random.random_range(0..len)];
                let value = random.random_bool(0.85).then_some(&value[..]);
                write(store, model, key.as_bytes(), value, met).await;
            }
            60..75 => {
                get(store, model, key.as_bytes(), met).await;
            }
            75..85 => {
                wait_persisted(shard, store, met).await;
            }
            85..93 => {
                if let Ok(view) = store.open_view().await {
                    let known = model.borrow()[store.id().0 as usize].clone();
                    scan(&view, &known, met).await;
                }
            }
            93..97 => {
                let _ = shard.flush().await;
            }
            _ => store.sleep(std::time::Duration::from_millis(3)).await,
        }
    }
    met.failed_shards += u64::from(shard.failure().is_some());
}

/// A scenario in which `injection` strikes a running shard; false if it did not strike.
fn fail_running(seed: u64, injection: &Injection, met: &mut Met) -> bool {
    let (sim, disk, shard, model) = new_world(seed);
    let mut random = rng(seed);
    disk.inject(injection.clone());
    let known = sim.block_on(async {
        run(&shard, &model, &mut random, OPERATIONS, met).await;
        let _ = shard.close().await;
        reported(&shard)
    });
    let struck = disk.stats().faults > 0;
    drop(sim);
    shard.detach();
    drop(shard);
    disk.crash(seed);
    let sim = SimExecutor::new(seed);
    disk.attach(&sim);
    let env = sim.env();
    sim.block_on(async {
        let (shard, _) =
            open_shard(&env, &disk).await.expect("a failed operation leaves a store that starts");
        check(&shard, &model, &ALL_THERE, &known, &mut random).await;
        shard.detach();
    });
    struck
}

/// The store that the next function starts from: the end of a scenario that a crash cut off.
struct Stopped {
    images: [Vec<u8>; 2],
    model: Vec<VbModel>,
    known: Vec<Seqno>,
}

fn stopped(seed: u64) -> Stopped {
    let (sim, disk, shard, model) = new_world(seed);
    let mut random = rng(seed);
    let known = sim.block_on(async {
        run(&shard, &model, &mut random, OPERATIONS, &mut Met::default()).await;
        reported(&shard)
    });
    drop(sim);
    shard.detach();
    disk.crash(seed);
    let images = ["wal", "data"].map(|name| disk.image(name));
    let model = model.borrow().clone();
    Stopped { images, model, known }
}

/// A start in which `injection` strikes, a little work, and a start without faults.
fn fail_starting(stopped: &Stopped, injection: &Injection, met: &mut Met) -> bool {
    let disk = SimDisk::new(1);
    for (name, image) in ["wal", "data"].iter().zip(&stopped.images) {
        disk.set_image(name, image.clone());
    }
    let model: Model = Rc::new(std::cell::RefCell::new(stopped.model.clone()));
    let mut known = stopped.known.clone();
    let mut random = rng(2);
    let sim = SimExecutor::new(1);
    disk.attach(&sim);
    let env = sim.env();
    disk.inject(injection.clone());
    sim.block_on(async {
        match open_shard(&env, &disk).await {
            Err(_) => met.refused_starts += 1,
            Ok((shard, _)) => {
                for store in shard.vbuckets() {
                    let vb = &mut model.borrow_mut()[store.id().0 as usize];
                    assert!(store.high_seqno() >= known[store.id().0 as usize]);
                    vb.writes.truncate(store.high_seqno().0 as usize);
                }
                run(&shard, &model, &mut random, 30, met).await;
                known = reported(&shard);
                shard.detach();
            }
        }
    });
    let struck = disk.stats().faults > 0;
    drop(sim);
    disk.crash(3);
    let sim = SimExecutor::new(2);
    disk.attach(&sim);
    let env = sim.env();
    sim.block_on(async {
        let (shard, _) = open_shard(&env, &disk).await.expect("a failed start leaves a store that starts");
        check(&shard, &model, &ALL_THERE, &known, &mut random).await;
        shard.detach();
    });
    struck
}

/// Each kind of operation, on any file.
const FAULTS: [(Fault, Option<&str>); 3] =
    [(Fault::ReadError, None), (Fault::WriteError, None), (Fault::SyncError, None)];

/// G7: the n-th read, write or sync fails, once or for good, for each n of a scenario with flushes, merges, views and scans. No panic, no
/// wrong answer, and what was acknowledged is there after the next start.
#[test]
fn any_failed_operation_gives_no_wrong_answer_and_loses_nothing_acknowledged() {
    let mut met = Met::default();
    let runs = error_loop(&FAULTS, stride(23), stride(23), |injection| fail_running(31, injection, &mut met));
    println!("{runs} runs of {OPERATIONS} operations: {met:?}");
    let Met { read_errors, write_errors, not_persisted, failed_shards, .. } = met;
    assert!(
        [read_errors, write_errors, not_persisted, failed_shards].iter().all(|&count| count > 0),
        "{met:?}"
    );
}

/// G7: the same while a shard recovers.
#[test]
fn any_failed_operation_of_a_start_leaves_a_store_that_starts() {
    let mut met = Met::default();
    let stopped = stopped(33);
    let runs =
        error_loop(&FAULTS, stride(5), stride(5), |injection| fail_starting(&stopped, injection, &mut met));
    println!("{runs} starts: {met:?}");
    assert!(met.refused_starts > 0 && met.failed_shards > 0, "{met:?}");
}

/// What a shard reports persisted when its failure is first seen, and in the end.
fn reported_around_a_failure(seed: u64, injection: &Injection) -> Option<(Vec<Seqno>, Vec<Seqno>)> {
    let (sim, disk, shard, model) = new_world(seed);
    disk.inject(injection.clone());
    let done = Rc::new(Cell::new(false));
    for client in 0..2 {
        let (shard, model, done) = (shard.clone(), model.clone(), done.clone());
        sim.spawn(async move {
            run(&shard, &model, &mut rng(seed * 2 + client), OPERATIONS / 4, &mut Met::default()).await;
            done.set(true);
        });
    }
    let mut first = None;
    while !done.get() && sim.step() {
        if first.is_none() && shard.failure().is_some() {
            first = Some(reported(&shard));
        }
    }
    sim.block_on(shard.close()).err()?;
    let last = reported(&shard);
    drop(sim);
    shard.detach();
    Some((first?, last))
}

/// G7: a sync that failed may have taken what others wrote to the same device. So nothing is reported persisted after it, whichever file it was of:
/// neither a commit nor a flush that was under way.
#[test]
fn nothing_is_reported_persisted_after_a_failure() {
    let mut failures = 0;
    for seed in seeds(40) {
        for file in ["wal", "data"] {
            let injection = Injection::nth(Fault::SyncError, 1 + seed % 13).on(file);
            if let Some((first, last)) = reported_around_a_failure(seed, &injection) {
                failures += 1;
                assert_eq!(first, last, "seed {seed}, {file}");
            }
        }
    }
    assert!(failures > 20, "{failures} failures");
}

/// A shard whose manifest change failed keeps blocks from being used again, but its devices no longer than itself.
#[test]
fn a_shard_that_failed_lets_go_of_its_devices() {
    let mut failures = 0;
    for (fault, nth) in [Fault::SyncError, Fault::WriteError]
        .into_iter()
        .flat_map(|fault| (1..25).map(move |nth| (fault, nth)))
    {
        let (sim, disk, shard, model) = new_world(nth);
        sim.block_on(shard.close()).unwrap();
        shard.detach();
        drop(shard);
        let (env, data) = (sim.env(), disk.open("data"));
        disk.inject(Injection::nth(fault, 3 * nth).on("data"));
        let shard = sim.block_on(async {
            let (wal, cache) = (disk.open("wal"), BlockCache::new(0));
            let (shard, _) = Shard::open(env, wal, data.clone(), cache, OPTIONS).await.ok()?;
            run(&shard, &model, &mut rng(nth), OPERATIONS / 4, &mut Met::default()).await;
            Some(shard)
        });
        failures += u64::from(shard.as_ref().is_some_and(|shard| shard.failure().is_some()));
        shard.iter().for_each(Shard::detach);
        drop(shard);
        drop(sim);
        assert_eq!(Rc::strong_count(&data), 1, "{fault:?} {nth}");
    }
    assert!(failures > 2, "{failures} failures");
}

/// What became of a lying write.
#[derive(Debug, Default, Clone, Copy)]
struct Lies {
    struck: u64,
    /// The start named the damage.
    refused: u64,
    /// A read named the damage.
    noticed: u64,
    /// Nothing that is needed was hit, or it was written again.
    harmless: u64,
    /// The last commit of the log was the one that was lost: nothing was written after it that could tell.
    last_commit: u64,
}

/// One write lies; afterwards everything that is shown is right, or an error says so.
fn lie(seed: u64, fault: Fault, lies: &mut Lies) {
    let (sim, disk, shard, model) = new_world(seed);
    let mut random = rng(seed ^ 0x11e5);
    let mut met = Met::default();
    let before = disk.stats().writes;
    let nth = random.random_range(1..250);
    disk.inject(Injection::nth(fault, nth));
    let (known, commits) = sim.block_on(async {
        let commits = || shard.metrics().wal_commit_ns.histogram().len();
        let mut struck_at = None;
        for _ in 0..random.random_range(50..400) {
            run(&shard, &model, &mut random, 1, &mut met).await;
            if disk.stats().faults > 0 && struck_at.is_none() {
                struck_at = Some(commits());
            }
        }
        if random.random_bool(0.3) {
            let _ = shard.close().await;
        }
        (reported(&shard), struck_at.map(|at| commits() - at))
    });
    assert!(disk.stats().writes > before);
    drop(sim);
    shard.detach();
    drop(shard);
    if disk.stats().faults == 0 {
        return;
    }
    lies.struck += 1;
    // Everything that was reported written stays: what is missing is missing because of the lie.
    disk.crash_with(Crash::KeepAll, seed);
    let sim = SimExecutor::new(seed);
    disk.attach(&sim);
    let env = sim.env();
    sim.block_on(async {
        let Ok((shard, _)) = open_shard(&env, &disk).await else {
            lies.refused += 1;
            return;
        };
        let errors = met.read_errors;
        let mut short = false;
        for vb in 0..VBUCKETS {
            let store = shard.vbucket(BUCKET, VbId(vb)).unwrap();
            let high = store.high_seqno();
            short |= high < known[vb as usize];
            assert!(high.0 <= model.borrow()[vb as usize].writes.len() as u64, "vb {vb}: {high} was never written");
            model.borrow_mut()[vb as usize].writes.truncate(high.0 as usize);
            for n in 0..30 {
                get(&store, &model, format!("\0key{n:02}").as_bytes(), &mut met).await;
            }
            if let Ok(view) = store.open_view().await {
                let known = model.borrow()[vb as usize].clone();
                scan(&view, &known, &mut met).await;
            }
        }
        if short {
            assert!(
                commits.is_none_or(|commits| commits <= 1),
                "seed {seed}: acknowledged writes are gone, and {commits:?} commits after the lie nobody noticed"
            );
            lies.last_commit += 1;
        } else if met.read_errors > errors {
            lies.noticed += 1;
        } else {
            lies.harmless += 1;
        }
        shard.detach();
    });
}

fn lie_all(fault: Fault) -> Lies {
    let mut lies = Lies::default();
    let seeds = each_seed(1000, |seed| {
        lie(seed, fault, &mut lies);
        1
    });
    println!("{fault:?}: {lies:?}");
    assert!(lies.struck > seeds / 2 && lies.refused > 0 && lies.noticed > 0, "{lies:?}");
    lies
}

/// G5: a write that the device acknowledged and dropped is noticed where it matters. The residual case is the last commit of the log, after
/// which nothing was written that could name it: then a gap-free prefix is recovered, and a new branch begins at its end.
#[test]
fn a_lost_write_is_noticed_or_was_the_last_commit() {
    let lies = lie_all(Fault::LostWrite);
    assert!(lies.last_commit * 20 < lies.struck, "{lies:?}");
}

/// G5: a write that went elsewhere is noticed, but for the last commit of the log, as above.
#[test]
fn a_misdirected_write_is_noticed_or_was_the_last_commit() {
    let lies = lie_all(Fault::MisdirectedWrite);
    assert!(lies.last_commit * 20 < lies.struck, "{lies:?}");
}
