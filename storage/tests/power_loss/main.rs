//! Power loss on the real path: a store on ext4 on a loop device on a disk whose writes are durable only when it was told so. At random moments an
//! image is made of it with any subset of the writes that no sync had covered, whole or torn; the image is mounted, and a store started on it.
//!
//! Needs root, `/dev/fuse` and `/dev/loop-control`; without them the tests say so and pass.
//!
//!     RINGBASE_IMAGES=10000 cargo test --release -p ringbase-storage --test power_loss -- --nocapture survives
//!     RINGBASE_POINTS=1000 cargo test --release -p ringbase-storage --test power_loss -- --nocapture wrong flips
#![allow(clippy::unwrap_used)]

mod daemon;
mod machine;
mod medium;
#[path = "../it/tolerant.rs"]
#[allow(dead_code, reason = "the other tests of the store use all of it")]
mod tolerant;
#[path = "../it/world.rs"]
#[allow(dead_code, reason = "the other tests of the store use all of it")]
mod world;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::mutant::Mutant;
use ringbase_storage::types::Seqno;

use crate::daemon::{Attached, Daemon, Mounted};
use crate::machine::{Machine, model_of};
use crate::medium::{Capture, Disk, Fault, Medium, Operation};
use crate::tolerant::{ALL_THERE, Met, check, write};
use crate::world::{Model, VBUCKETS, VbModel, rng, with_mutant};

/// Bytes of a disk.
const DISK_BYTES: usize = 24 << 20;

/// Operations of a client in the life of a store.
const OPERATIONS: u32 = 200;

/// Writes and syncs between two images at most.
const CAPTURE_EVERY: u64 = 8;

/// The machine, and a disk with a store on it that was closed.
struct Rig {
    daemon: Daemon,
    filled: Medium,
    known: Vec<VbModel>,
    /// One at a time: the machine that runs this is busy enough with one.
    _alone: MutexGuard<'static, ()>,
}

/// `None`, and a line that says why, where it cannot run.
fn rig() -> Option<Rig> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let made = Daemon::start().and_then(|daemon| {
        let device = daemon.attach(Disk::holding(Medium::zeroed(DISK_BYTES), 0))?;
        device.make_file_system()?;
        Ok((daemon, device))
    });
    match made {
        Ok((daemon, device)) => {
            let known = fill(&daemon, &device);
            let filled = device.disk.lock().capture().settled();
            drop(device);
            Some(Rig { daemon, filled, known, _alone })
        }
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

/// Makes a store with documents, closed cleanly, on a file system that is unmounted then.
fn fill(daemon: &Daemon, device: &Attached) -> Vec<VbModel> {
    let model = model_of(&vec![VbModel::default(); usize::from(VBUCKETS)]);
    let mounted = daemon.mount(device).unwrap();
    Machine::format(mounted.path());
    let machine = Machine::start(mounted.path()).unwrap();
    machine.run_client(&model, &device.disk, &mut rng(1), OPERATIONS, &mut Met::default());
    machine.host.block_on(machine.shard.close()).unwrap();
    model.borrow().clone()
}

/// The number that a variable asks for, or the usual one.
fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

/// What the images were like.
#[derive(Debug, Default)]
struct Tally {
    images: Cell<u64>,
    /// Images of a moment when some writes were not durable.
    unsure: Cell<u64>,
    lives: Cell<u64>,
    /// Images that have more than had been reported.
    more: Cell<u64>,
}

fn add(count: &Cell<u64>, more: u64) {
    count.set(count.get() + more);
}

impl Rig {
    /// What every vbucket of the filled store reports when it starts.
    fn reported(&self) -> Vec<Seqno> {
        self.known.iter().map(|vb| Seqno(vb.writes.len() as u64)).collect()
    }

    /// The life of a store, captured at random moments of its disk.
    fn live(&self, seed: u64) -> (Vec<Capture>, Model) {
        let model = model_of(&self.known);
        let device = self.daemon.attach(Disk::holding(self.filled.clone(), seed)).unwrap();
        let mounted = self.daemon.mount(&device).unwrap();
        let machine = Machine::start(mounted.path()).unwrap();
        {
            let disk = &mut *device.disk.lock();
            disk.reported = self.reported();
            disk.capture_every(CAPTURE_EVERY);
        }
        machine.run_client(&model, &device.disk, &mut rng(seed), OPERATIONS, &mut Met::default());
        let captures = device.disk.lock().take_captures();
        (captures, model)
    }

    /// A power cut at the moment of a capture, and the next start; whether there is more than had been reported. An error if the file system itself
    /// was lost.
    fn cut(&self, capture: &Capture, model: &Model, random: &mut Xoshiro256PlusPlus) -> Result<bool, String> {
        let known = model_of(&model.borrow());
        let device = self.daemon.attach(Disk::holding(capture.cut(random), 0)).unwrap();
        let mounted = self.daemon.mount(&device)?;
        let machine = Machine::start(mounted.path()).expect("a store starts after a power cut");
        Ok(machine.host.block_on(async {
            check(&machine.shard, &known, &ALL_THERE, &capture.reported, random).await;
            let mut found = known.borrow().iter().map(|vb| Seqno(vb.writes.len() as u64)).collect::<Vec<_>>();
            let has_more = found.drain(..).zip(&capture.reported).any(|(found, reported)| found > *reported);
            for store in machine.shard.vbuckets() {
                write(&store, &known, b"\0after", Some(b"the cut"), &mut Met::default()).await;
                assert!(store.wait_persisted(store.high_seqno()).await);
            }
            has_more
        }))
    }

    /// So many images, of as many lives as that takes.
    fn cut_all(&self, images: u64, tally: &Tally) {
        for seed in 0.. {
            let (captures, model) = self.live(seed);
            add(&tally.lives, 1);
            let mut random = rng(seed);
            for (n, capture) in captures.iter().enumerate() {
                if tally.images.get() == images {
                    return;
                }
                add(&tally.images, 1);
                add(&tally.unsure, u64::from(capture.pending_count() > 0));
                let run = AssertUnwindSafe(|| self.cut(capture, &model, &mut random).expect("a file system"));
                let has_more = catch_unwind(run).unwrap_or_else(|panic| {
                    eprintln!("failed at image {n} of life {seed}");
                    std::panic::resume_unwind(panic)
                });
                add(&tally.more, u64::from(has_more));
            }
        }
    }

    /// A life in which the disk fails, a power cut, and a start when it is well again; gives how many reads, writes and syncs there were,
    /// how many of them failed, and whether the file system survived.
    fn fail(&self, seed: u64, fault: Option<Fault>, met: &mut Met) -> ([u64; 3], u64, bool) {
        let model = model_of(&self.known);
        let device = self.daemon.attach(Disk::holding(self.filled.clone(), seed)).unwrap();
        {
            let disk = &mut *device.disk.lock();
            disk.reported = self.reported();
            if let Some(fault) = fault {
                disk.inject(fault);
            }
        }
        let mounted = self.daemon.mount(&device);
        let machine =
            mounted.as_ref().map_err(String::clone).and_then(|mounted| Machine::start(mounted.path()));
        match &machine {
            Ok(machine) => {
                machine.run_client(&model, &device.disk, &mut rng(seed), OPERATIONS, met);
                met.failed_shards += u64::from(machine.shard.failure().is_some());
            }
            Err(_) => met.refused_starts += 1,
        }
        let (capture, counts, struck) = {
            let disk = &mut *device.disk.lock();
            disk.heal();
            let counts = [Operation::Read, Operation::Write, Operation::Sync].map(|kind| disk.count(kind));
            (disk.capture(), counts, disk.struck())
        };
        drop(machine);
        drop(mounted);
        let survives = self.cut(&capture, &model, &mut rng(seed)).is_ok();
        (counts, struck, survives)
    }
}

/// G1: everything that was reported persisted is there after a power cut, a gap-free beginning of the rest, and nothing else.
#[test]
fn what_was_reported_persisted_survives_a_power_cut() {
    let Some(rig) = rig() else { return };
    let (images, tally) = (number("RINGBASE_IMAGES", 200), Tally::default());
    rig.cut_all(images, &tally);
    println!("{tally:?}");
    assert!(tally.unsure.get() * 2 > images && tally.more.get() > 0, "{tally:?}");
}

/// G2: the negative control. A build that acknowledges before the sync is caught, or the rig proves nothing.
#[test]
fn acknowledging_before_the_sync_is_caught() {
    let Some(rig) = rig() else { return };
    let tally = Tally::default();
    let caught =
        with_mutant(Mutant::EarlyAck, || catch_unwind(AssertUnwindSafe(|| rig.cut_all(200, &tally))));
    let complaint = caught.err().and_then(|panic| panic.downcast::<String>().ok()).expect("it is caught");
    println!("{tally:?}: {complaint}");
    assert!(complaint.contains("was reported persisted, only"), "{complaint}");
}

/// G7: the n-th read, write or flush of the disk fails, once or from then on, while the file system is mounted and a store starts and works. A failed
/// flush loses about half of what was not durable, whoever wrote it, and some file systems with it.
#[test]
fn a_disk_that_fails_makes_no_answer_wrong_and_loses_nothing_acknowledged() {
    let Some(rig) = rig() else { return };
    let points = number("RINGBASE_POINTS", 18);
    let mut met = Met::default();
    let (counts, ..) = rig.fail(0, None, &mut met);
    let (mut random, mut struck, mut lost) = (rng(7), 0, 0);
    for point in 0..points {
        let operation = [Operation::Read, Operation::Write, Operation::Sync][point as usize % 3];
        let nth = random.random_range(1..=counts[operation as usize]);
        let fault = Fault { operation, nth, sticky: point / 3 % 2 == 1, flips: false };
        let run = AssertUnwindSafe(|| rig.fail(point, Some(fault), &mut met));
        let (_, here, survives) = catch_unwind(run).unwrap_or_else(|panic| {
            eprintln!("failed at point {point}: {fault:?}");
            std::panic::resume_unwind(panic)
        });
        struck += u64::from(here > 0);
        lost += u64::from(!survives);
    }
    println!("{points} points of {counts:?}, {struck} struck, {lost} file systems lost: {met:?}");
    assert!(
        struck * 2 > points && lost * 4 < points && met.failed_shards + met.refused_starts > 0,
        "{met:?}"
    );
}

/// G3: a bit that the disk flips in what it serves is an error or changes nothing; it never reaches a reader, nor what a compaction writes.
#[test]
fn a_bit_that_the_disk_flips_is_never_served() {
    let Some(rig) = rig() else { return };
    let points = number("RINGBASE_POINTS", 18);
    let (mut met, mut refused, mut random) = (Met::default(), 0, rng(9));
    let mut reads = 0;
    // The first point is without a fault, and counts the reads.
    for point in 0..=points {
        let device = rig.daemon.attach(Disk::holding(rig.filled.clone(), point)).unwrap();
        if point > 0 {
            let nth = random.random_range(1..=reads);
            let fault = Fault { operation: Operation::Read, nth, sticky: point % 4 == 0, flips: true };
            device.disk.lock().inject(fault);
        }
        for _ in 0..2 {
            let model = model_of(&rig.known);
            let mounted = rig.daemon.mount(&device);
            let path = mounted.as_ref().map(Mounted::path).map_err(String::clone);
            match path.and_then(Machine::start) {
                Ok(machine) => machine.read_all(&model, &mut met),
                Err(_) => refused += 1,
            }
            drop(mounted);
            let disk = &mut *device.disk.lock();
            disk.heal();
            if reads == 0 {
                reads = disk.count(Operation::Read);
            }
        }
    }
    println!("{points} flips in {reads} reads, {refused} starts refused: {met:?}");
    assert!(refused + met.read_errors > 0);
}
