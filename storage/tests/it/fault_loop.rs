//! The n-th read, write or sync fails, once or from then on, for each n of one scenario in which a shard does all that it can do: no panic, no
//! wrong answer, nothing acknowledged that is not durable, and a store that starts when the devices are well again.
//!
//! `RINGBASE_EXHAUSTIVE=1 cargo test --release -p ringbase-storage --test it fault_loop:: -- --nocapture` fails every single operation;
//! `RINGBASE_FIRST_SEED=1` there takes another scenario.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::env::Env;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::{Fault, Injection, SimDisk};
use ringbase_storage::mutant::Mutant;
use ringbase_storage::shard::{Home, Shard};
use ringbase_storage::types::{Seqno, VbId};
use ringbase_storage::vbstore::VbStore;

use crate::tolerant::{
    Held, Met, Presence, check, error_loop, get, reported_by_id, stride, wait_persisted, write,
};
use crate::world::{BUCKET, Model, VBUCKETS, VbModel, caught_at, each_seed, new_world, open_shard, rng};

/// Operations of the scenario.
const OPERATIONS: u32 = 500;

/// Scans held open at most.
const HELD_MAX: usize = 4;

/// The vbucket that goes and comes again.
const FLEETING: VbId = VbId(3);

/// What is failed: whatever the scenario does to either file.
const FAULTS: [(Fault, Option<&str>); 6] = [
    (Fault::ReadError, Some("data")),
    (Fault::ReadError, Some("wal")),
    (Fault::WriteError, Some("data")),
    (Fault::WriteError, Some("wal")),
    (Fault::SyncError, Some("data")),
    (Fault::SyncError, Some("wal")),
];

/// The scenario could not go on: the store does not open, or did not close.
#[derive(Debug, PartialEq, Eq)]
struct Stopped;

/// A shard and its client.
struct Life {
    env: Env,
    disk: SimDisk,
    shard: Shard,
    model: Model,
    presence: [Presence; VBUCKETS as usize],
    held: Vec<Held>,
    /// What was reported persisted when the shard's failure was first seen, and last.
    known: Vec<Seqno>,
    met: Met,
    reclaims: u64,
    /// Whether it ended with a clean stop; else it just dies.
    closes: bool,
}

impl Life {
    async fn run(&mut self, random: &mut Xoshiro256PlusPlus) -> Result<(), Stopped> {
        for n in 0..OPERATIONS {
            match n {
                150 => self.delete_vbucket().await,
                210 => self.create_vbucket().await,
                270 => self.scrub().await,
                330 => self.reopen().await?,
                _ => self.operate(random).await,
            }
            self.note_reported();
        }
        while let Some(mut held) = self.held.pop() {
            self.read_to_the_end(&mut held).await;
        }
        for store in self.shard.vbuckets() {
            wait_persisted(&self.shard, &store, &mut self.met).await;
        }
        self.note_reported();
        self.closes = random.random_bool(0.5);
        if self.closes { self.close().await } else { Ok(()) }
    }

    /// Takes down what is reported persisted.
    fn note_reported(&mut self) {
        let reported = reported_by_id(&self.shard);
        let is_lower = self.known.iter().zip(&reported).any(|(known, reported)| reported < known);
        assert!(!is_lower, "what is persisted went back from {:?} to {reported:?}", self.known);
        self.known = reported;
    }

    async fn operate(&mut self, random: &mut Xoshiro256PlusPlus) {
        let stores = self.shard.vbuckets();
        let store = &stores[random.random_range(0..stores.len())];
        let key = format!("\0key{:02}", random.random_range(0..30));
        match random.random_range(0..100) {
            0..58 => {
                let len = [20, 400, 4000][random.random_range(0..3)];
                let value = vec![random.random::<u8>(); random.random_range(0..len)];
                let value = random.random_bool(0.85).then_some(&value[..]);
                write(store, &self.model, key.as_bytes(), value, &mut self.met).await;
            }
            58..70 => drop(get(store, &self.model, key.as_bytes(), &mut self.met).await),
            70..78 => wait_persisted(&self.shard, store, &mut self.met).await,
            78..82 => self.hold(store).await,
            82..92 => {
                let records = random.random_range(1..8);
                for held in &mut self.held {
                    held.advance(records, &mut self.met).await;
                }
                self.held.retain(|held| !held.has_ended());
            }
            92..96 => drop(self.shard.flush().await),
            96..98 => self.shard.compact().await,
            _ => store.sleep(Duration::from_millis(3)).await,
        }
    }

    /// Opens scans of a vbucket, and reads the oldest to their end if there are many.
    async fn hold(&mut self, store: &VbStore) {
        if self.held.len() == HELD_MAX {
            let mut oldest = self.held.remove(0);
            self.read_to_the_end(&mut oldest).await;
        }
        let known = self.model.borrow()[store.id().0 as usize].clone();
        if let Ok(view) = store.open_view().await {
            self.held.push(Held::new(&view, &known));
        }
    }

    async fn read_to_the_end(&mut self, held: &mut Held) {
        while !held.has_ended() {
            held.advance(1000, &mut self.met).await;
        }
    }

    async fn delete_vbucket(&mut self) {
        let index = FLEETING.0 as usize;
        self.presence[index] = Presence::PerhapsGone;
        if matches!(self.shard.delete_vbucket(BUCKET, FLEETING).await, Ok(true)) {
            self.presence[index] = Presence::Gone;
            self.known[index] = Seqno(0);
            self.model.borrow_mut()[index] = VbModel::default();
        }
    }

    async fn create_vbucket(&mut self) {
        let index = FLEETING.0 as usize;
        if self.presence[index] != Presence::Gone {
            return;
        }
        self.presence[index] = Presence::PerhapsNew;
        let role = self.shard.vbuckets()[0].role();
        if self.shard.create_vbucket(BUCKET, FLEETING, Home::Disk, role).await.is_ok() {
            self.presence[index] = Presence::There;
        }
    }

    /// Lets everything be verified; only a fault may be found.
    async fn scrub(&mut self) {
        let passes = self.shard.scrub_status().passes;
        self.shard.start_scrub();
        let is_over = || {
            let status = self.shard.scrub_status();
            status.passes > passes || (self.shard.failure().is_some() && !status.is_running)
        };
        while !is_over() {
            self.env.spawn.sleep(Duration::from_millis(1)).await;
        }
        let is_well = self.disk.stats().faults == 0;
        assert!(!is_well || self.shard.scrub_status().damaged == 0, "{:?}", self.shard.scrub_status());
    }

    async fn close(&mut self) -> Result<(), Stopped> {
        self.reclaims += self.shard.metrics().reclaims.get();
        let closed = self.shard.close().await;
        self.note_reported();
        closed.map_err(|_| Stopped)
    }

    /// A clean stop and the next start, on devices as they are.
    async fn reopen(&mut self) -> Result<(), Stopped> {
        self.held.clear();
        self.close().await?;
        self.shard.detach();
        match open_shard(&self.env, &self.disk).await {
            Ok((shard, report)) => {
                assert!(report.clean, "a clean stop is recognised");
                self.shard = shard;
                Ok(())
            }
            Err(_) => {
                self.met.refused_starts += 1;
                Err(Stopped)
            }
        }
    }
}

/// What the runs of a loop met, together.
#[derive(Debug, Default)]
struct Total {
    met: Met,
    reclaims: u64,
    stopped: u64,
}

/// The scenario with a fault; false if it did not strike.
fn fail(seed: u64, injection: &Injection, is_final: bool, total: &mut Total) -> bool {
    let (sim, disk, shard, model) = new_world(seed);
    let mut random = rng(seed);
    disk.inject(injection.clone());
    let mut life = Life {
        env: sim.env(),
        disk: disk.clone(),
        shard,
        model: model.clone(),
        presence: [Presence::There; VBUCKETS as usize],
        held: Vec::new(),
        known: vec![Seqno(0); VBUCKETS as usize],
        met: total.met,
        reclaims: 0,
        closes: false,
    };
    let ended = sim.block_on(life.run(&mut random));
    let struck = disk.stats().faults > 0;
    assert!(struck || ended.is_ok(), "nothing failed, and the scenario did not end");
    let failure = life.shard.failure();
    if struck && is_final {
        assert!(ended.is_err() || !life.closes, "a fault that is final was passed over");
    }
    if let Some(reason) = &failure {
        let names_file = ["wal", "data"].iter().any(|file| reason.contains(file));
        assert!(struck && names_file, "the shard failed and does not say where: {reason}");
    }
    total.met = life.met;
    total.met.failed_shards += u64::from(failure.is_some());
    total.reclaims += life.reclaims;
    total.stopped += u64::from(ended.is_err());
    let Life { shard, presence, known, .. } = life;
    drop(sim);
    shard.detach();
    drop(shard);
    disk.crash(random.random());
    recover(seed, &disk, &model, &presence, &known, &mut random);
    struck
}

/// The devices are well again: two starts, with some work and a clean stop between them.
fn recover(
    seed: u64,
    disk: &SimDisk,
    model: &Model,
    presence: &[Presence],
    known: &[Seqno],
    random: &mut Xoshiro256PlusPlus,
) {
    let sim = SimExecutor::new(seed);
    disk.attach(&sim);
    let env = sim.env();
    sim.block_on(async {
        let (shard, _) = open_shard(&env, disk).await.expect("a failed operation leaves a store that starts");
        check(&shard, model, presence, known, random).await;
        let mut met = Met::default();
        for store in shard.vbuckets() {
            write(&store, model, b"\0after", Some(b"well again"), &mut met).await;
        }
        shard.close().await.expect("the devices are well again");
        let known = reported_by_id(&shard);
        let there = |vb| match shard.vbucket(BUCKET, VbId(vb)) {
            Some(_) => Presence::There,
            None => Presence::Gone,
        };
        let presence: Vec<Presence> = (0..VBUCKETS).map(there).collect();
        shard.detach();
        let (shard, report) = open_shard(&env, disk).await.expect("a clean stop leaves a store that starts");
        assert!(report.clean);
        check(&shard, model, &presence, &known, random).await;
        shard.detach();
    });
}

/// Whether a shard never goes on after this: what fails is the log, or a sync.
fn is_final(fault: Fault, file: Option<&str>) -> bool {
    fault == Fault::SyncError || (fault == Fault::WriteError && file == Some("wal"))
}

fn fail_all(seed: u64, stride: u64, total: &mut Total) -> u64 {
    let first = rng(seed).random_range(1..=stride);
    let runs = FAULTS.iter().map(|(fault, file)| {
        let is_final = is_final(*fault, *file);
        error_loop(&[(*fault, *file)], first, stride, |injection| fail(seed, injection, is_final, total))
    });
    runs.sum()
}

/// G7: see the module.
#[test]
fn whatever_fails_no_answer_is_wrong_and_nothing_acknowledged_is_lost() {
    let mut total = Total::default();
    let runs = each_seed(1, |seed| fail_all(seed, stride(11), &mut total));
    println!("{runs} runs of {OPERATIONS} operations: {total:?}");
    let Met { read_errors, write_errors, not_persisted, failed_shards, ended_scans, whole_scans, .. } =
        total.met;
    let met = [read_errors, write_errors, not_persisted, failed_shards, ended_scans, whole_scans];
    assert!(met.iter().all(|&count| count > 0) && total.reclaims > 0 && total.stopped > 0, "{total:?}");
}

/// G7: the loop notices a build that takes a failed commit for a durable one.
#[test]
fn passing_over_a_failed_commit_is_caught() {
    let run = |step| {
        let injection = Injection::nth(Fault::SyncError, 1 + 10 * (step / 4)).on("wal");
        fail(step % 4, &injection, false, &mut Total::default());
    };
    assert!(caught_at(Mutant::ForgetCommitErrors, 100, run).is_some());
}
