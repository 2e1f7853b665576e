//! Every sequence of up to three operations, and the power fails at every operation of the disk within the last of them: what was acknowledged
//! is there, a gap-free beginning of the rest, and nothing else. Failures within the earlier ones belong to shorter sequences.
//!
//! `RINGBASE_EXHAUSTIVE=1 cargo test --release -p ringbase-storage --test it short_sequences:: -- --nocapture` leaves in turn nothing, everything,
//! any writes and any sectors of what was not synced, with and without waits between the operations; the short form one of these at each point.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::OnceLock;

use ringbase_storage::env::Env;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::{Crash, SimDisk};
use ringbase_storage::mutant::Mutant;
use ringbase_storage::shard::{Home, Shard};
use ringbase_storage::types::{Seqno, VbId};

use crate::tolerant::{Presence, reported_by_id, stride};
use crate::world::{
    BUCKET, Model, VBUCKETS, VbModel, caught_at, check_recovered, check_view, new_world, open_shard, put, rng,
};

/// The vbucket that the operations are about; the others stand by.
const VB: VbId = VbId(0);

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A new key.
    Write,
    /// A key that is in the data file, with older versions, and in the log.
    Overwrite,
    /// Another one.
    Delete,
    Flush,
    Compact,
    /// The vbucket goes; a write makes it again.
    Drop,
    /// A clean stop and the next start.
    Reopen,
}

const STEPS: [Step; 7] =
    [Step::Write, Step::Overwrite, Step::Delete, Step::Flush, Step::Compact, Step::Drop, Step::Reopen];

/// What becomes of what was not synced.
const CRASHES: [Crash; 4] = [
    Crash::LoseAll,
    Crash::KeepSectors { keep_percent: 50, garbage: true },
    Crash::KeepWrites { keep_percent: 50 },
    Crash::KeepAll,
];

/// The store that every sequence starts from.
struct Base {
    images: [Vec<u8>; 2],
    model: Vec<VbModel>,
}

/// Two flushed generations of a few keys, and some that only the log has.
fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let (sim, disk, shard, model) = new_world(77);
        sim.block_on(async {
            for round in 0..3u8 {
                for vb in 0..2 {
                    let store = shard.vbucket(BUCKET, VbId(vb)).unwrap();
                    for key in ["a", "b", "c", "d"].into_iter().skip(usize::from(round)) {
                        let key = format!("\0{key}");
                        let seqno = put(&store, &model, key.as_bytes(), Some(&[round; 1500])).await.unwrap();
                        assert!(store.wait_persisted(seqno).await);
                    }
                }
                if round < 2 {
                    shard.flush().await.unwrap();
                }
            }
        });
        drop(sim);
        shard.detach();
        disk.crash_with(Crash::LoseAll, 1);
        let images = ["wal", "data"].map(|name| disk.image(name));
        let model = model.borrow().clone();
        Base { images, model }
    })
}

/// A machine that may die at any operation of its disk.
struct Machine {
    env: Env,
    disk: SimDisk,
    /// Absent between a stop and the next start.
    shard: RefCell<Option<Shard>>,
    model: Model,
    presence: RefCell<[Presence; VBUCKETS as usize]>,
    /// What was reported at the last stop.
    known: RefCell<Vec<Seqno>>,
}

impl Machine {
    fn shard(&self) -> Shard {
        self.shard.borrow().clone().expect("it runs")
    }

    async fn start(&self) {
        let (shard, _) = open_shard(&self.env, &self.disk).await.expect("nothing fails");
        for store in shard.vbuckets() {
            let uuids = store.failover_log().iter().map(|entry| entry.uuid.0).collect();
            self.model.borrow_mut()[store.id().0 as usize].uuids = uuids;
        }
        *self.shard.borrow_mut() = Some(shard);
    }

    async fn take(&self, step: Step, n: usize, waits: bool) {
        let shard = self.shard();
        match step {
            Step::Write => self.put(format!("\0new{n}").as_bytes(), Some(&[n as u8; 5000]), waits).await,
            Step::Overwrite => self.put(b"\0a", Some(&[n as u8; 700]), waits).await,
            Step::Delete => self.put(b"\0b", None, waits).await,
            Step::Flush => shard.flush().await.expect("nothing fails"),
            Step::Compact => shard.compact().await,
            Step::Drop => {
                self.presence.borrow_mut()[0] = Presence::PerhapsGone;
                shard.delete_vbucket(BUCKET, VB).await.expect("nothing fails");
                self.presence.borrow_mut()[0] = Presence::Gone;
                self.model.borrow_mut()[0] = VbModel::default();
            }
            Step::Reopen => {
                shard.close().await.expect("nothing fails");
                *self.known.borrow_mut() = reported_by_id(&shard);
                *self.shard.borrow_mut() = None;
                shard.detach();
                self.start().await;
            }
        }
    }

    async fn put(&self, key: &[u8], value: Option<&[u8]>, waits: bool) {
        let shard = self.shard();
        let store = match shard.vbucket(BUCKET, VB) {
            Some(store) => store,
            None => {
                self.presence.borrow_mut()[0] = Presence::PerhapsNew;
                let role = shard.vbuckets()[0].role();
                let made = shard.create_vbucket(BUCKET, VB, Home::Disk, role).await;
                self.presence.borrow_mut()[0] = Presence::There;
                let store = made.expect("nothing fails");
                self.model.borrow_mut()[0].uuids = vec![store.uuid().0];
                store
            }
        };
        let seqno = put(&store, &self.model, key, value).await.expect("there is room");
        assert!(!waits || store.wait_persisted(seqno).await);
    }

    /// What was reported persisted before the power failed.
    fn reported(&self) -> Vec<Seqno> {
        self.shard.borrow().as_ref().map_or_else(|| self.known.borrow().clone(), reported_by_id)
    }
}

/// Runs a sequence; the power fails as the disk starts its `point`th operation within the last step, or after it if there are fewer, which
/// gives false.
fn run(steps: &[Step], waits: bool, point: u64, crash: Crash, crash_seed: u64) -> bool {
    let base = base();
    let (sim, disk) = (SimExecutor::new(5), SimDisk::new(5));
    for (name, image) in ["wal", "data"].iter().zip(&base.images) {
        disk.set_image(name, image.clone());
    }
    disk.attach(&sim);
    let machine = Rc::new(Machine {
        env: sim.env(),
        disk: disk.clone(),
        shard: RefCell::default(),
        model: Rc::new(RefCell::new(base.model.clone())),
        presence: RefCell::new([Presence::There; VBUCKETS as usize]),
        known: RefCell::default(),
    });
    let running = machine.clone();
    let ended = sim.run_until(async {
        running.start().await;
        for (n, step) in steps.iter().enumerate() {
            if n + 1 == steps.len() {
                running.disk.kill_after(point);
            }
            running.take(*step, n, waits).await;
        }
    });
    let is_killed = disk.is_killed();
    assert!(is_killed || ended.is_some(), "{steps:?} stands still");
    let known = machine.reported();
    drop(sim);
    if let Some(shard) = machine.shard.take() {
        shard.detach();
    }
    disk.crash_with(crash, crash_seed);
    recover(&disk, &machine.model, &machine.presence.borrow()[..], &known);
    is_killed
}

/// The next start, and a write that must become durable.
fn recover(disk: &SimDisk, model: &Model, presence: &[Presence], known: &[Seqno]) {
    let sim = SimExecutor::new(6);
    disk.attach(&sim);
    let env = sim.env();
    let mut random = rng(6);
    sim.block_on(async {
        let (shard, report) = open_shard(&env, disk).await.expect("recovery after a crash");
        for (vb, presence) in (0..VBUCKETS).zip(presence) {
            let Some(store) = shard.vbucket(BUCKET, VbId(vb)) else {
                assert_ne!(*presence, Presence::There, "vb {vb} is gone");
                continue;
            };
            assert_ne!(*presence, Presence::Gone, "vb {vb} has come back");
            let mut known_vb = model.borrow()[vb as usize].clone();
            let high = known_vb.writes.len() as u64;
            assert!(
                !report.clean || store.high_seqno().0 == high,
                "vb {vb}: a clean stop has lost something"
            );
            check_recovered(&store, &mut known_vb, known[vb as usize], report.clean).await;
            let view = store.open_view().await.unwrap();
            check_view(&view, &known_vb, &mut random).await;
            model.borrow_mut()[vb as usize] = known_vb;
            let seqno = put(&store, model, b"\0after", Some(b"the crash")).await.unwrap();
            assert!(store.wait_persisted(seqno).await);
        }
        shard.detach();
    });
}

/// All sequences of `len` steps.
fn sequences(len: usize) -> Vec<Vec<Step>> {
    (0..len).fold(vec![Vec::new()], |shorter, _| {
        shorter.iter().flat_map(|steps| STEPS.map(|step| [&steps[..], &[step]].concat())).collect()
    })
}

/// Every point of a sequence; says how many there were.
fn run_all(steps: &[Step], waits: bool, crashes: &[Crash], crash_seed: u64) -> u64 {
    let mut point = 0;
    loop {
        point += 1;
        let mut is_killed = false;
        for crash in crashes {
            let failing = AssertUnwindSafe(|| run(steps, waits, point, *crash, point + crash_seed));
            is_killed = catch_unwind(failing).unwrap_or_else(|panic| {
                eprintln!("failed at {steps:?}, waits {waits}, operation {point} of the last, {crash:?}");
                std::panic::resume_unwind(panic)
            });
        }
        if !is_killed {
            return point;
        }
    }
}

/// G1, G4: see the module.
#[test]
fn a_crash_anywhere_in_any_short_sequence_loses_nothing_acknowledged() {
    let is_long = stride(2) == 1;
    let (mut count, mut points, mut runs) = (0, 0, 0);
    for steps in (1..=3).flat_map(sequences) {
        let crashes = if is_long { &CRASHES[..] } else { &CRASHES[count % 4..][..1] };
        let forms = if is_long { &[true, false][..] } else { &[[true, false][count / 4 % 2]] };
        for waits in forms {
            let here = run_all(&steps, *waits, crashes, 0);
            points += here;
            runs += here * crashes.len() as u64;
        }
        count += 1;
    }
    println!("{count} sequences, {points} points, {runs} crashes");
    assert_eq!(count, 7 + 49 + 343);
}

/// G1: the sequences notice a flush that is committed before its blocks are durable, and a compaction, too.
#[test]
fn committing_before_the_sync_is_caught_by_a_short_sequence() {
    let sequences: [(Mutant, &[Step]); 2] = [
        (Mutant::NoDataSync, &[Step::Overwrite, Step::Flush]),
        (Mutant::NoReclaimSync, &[Step::Overwrite, Step::Flush, Step::Compact]),
    ];
    for (mutant, steps) in sequences {
        let caught = caught_at(mutant, 50, |seed| {
            run_all(steps, true, &CRASHES[1..3], seed);
        });
        assert!(caught.is_some(), "{mutant:?}");
    }
}
