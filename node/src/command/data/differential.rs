//! The same random history against a bucket on disk, a bucket in memory and a model: every answer, every newest version, and every scan.
//!
//! T4.1 (a scan shows its moment), T4.6 (what a reader can still see is kept) and T4.8 (each version once, in seqno order, at its newest), for both
//! homes of documents. Scans in key order and in seqno order are opened at random moments, stay open while the history goes on, and are read in
//! pieces of random size. Both buckets are on one shard and one clock and see a command at the same nanosecond: seqnos and CAS are the same, too.
//!
//! `RINGBASE_SEEDS=100000 RINGBASE_FIRST_SEED=0 cargo test --release -p ringbase --lib differential` runs any number of seeds, and with
//! `RINGBASE_HISTORIES=long` each is twice as long, over fewer keys, and rarely begins anew.
//!
//! Does not know: how a store keeps anything.

mod history;
mod scans;

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::types::{Cas, Seqno, VbId};
use ringbase_storage::vbstore::{Found, Lookup};

use self::history::{Change, Expected, Told, Vbucket, Verb, Version, section_of};
use self::scans::{COMPARED, Pair, Read};
use crate::bucket::document::LOCKED_CAS;
use crate::command::rig::{Answer, Rig, RigOptions};
use crate::command::session::{ConnectionId, Session};
use crate::protocol::extras::{ArithmeticExtras, MutationToken, StoreExtras};
use crate::protocol::{Datatype, Feature, Opcode, Request, RequestFraming, Status};

const VBUCKETS: usize = 2;

/// How much happens in a history.
#[derive(Debug, Clone, Copy)]
struct Length {
    actions: u32,
    /// Keys of a vbucket.
    keys: usize,
    /// How likely an action that could empty the bucket does.
    empties: f64,
    /// How many histories, if nothing else is asked for.
    seeds: u64,
    /// Whether the bucket on disk is flushed.
    flushes: bool,
}

const SHORT: Length = Length { actions: 150, keys: 12, empties: 1.0, seeds: 200, flushes: true };
const LONG: Length = Length { actions: 300, keys: 8, empties: 0.3, seeds: 250, flushes: true };

impl Length {
    fn asked_for() -> Length {
        match std::env::var("RINGBASE_HISTORIES").as_deref() {
            Err(_) | Ok("short") => SHORT,
            Ok("long") => LONG,
            Ok(other) => panic!("histories are short or long, not {other}"),
        }
    }
}

/// Most pairs of scans that are open at once.
const OPEN_MAX: usize = 6;

/// The names of the two buckets.
const BUCKETS: [&str; 2] = ["default", "memory"];

/// How often the seeds hit what they must hit.
#[derive(Debug, Default)]
struct Coverage {
    commands: u64,
    writes: u64,
    deletions: u64,
    expirations: u64,
    brought: u64,
    outdone: u64,
    locks: u64,
    locks_refused: u64,
    locks_over: u64,
    unlocks: u64,
    cas_mismatches: u64,
    from_disk: u64,
    key_scans: u64,
    seqno_scans: u64,
    seqnos_asked_for: u64,
    interrupted_scans: u64,
    scans_of_gone_buckets: u64,
    flushes: u64,
    bucket_flushes: u64,
    purged: u64,
}

struct Driver<'c> {
    rig: Rig,
    /// The connection to the bucket in memory; the rig has the other.
    other: Session,
    random: Xoshiro256PlusPlus,
    length: Length,
    vbuckets: [Vbucket; VBUCKETS],
    open: Vec<Pair>,
    coverage: &'c mut Coverage,
}

impl<'c> Driver<'c> {
    fn new(seed: u64, length: Length, coverage: &'c mut Coverage) -> Driver<'c> {
        let random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut rig = Rig::with(RigOptions {
            seed,
            settings: "exp_pager_enabled=false",
            more: &[(
                "memory",
                "bucket_type=ephemeral;exp_pager_enabled=false;ephemeral_metadata_purge_age=-1",
            )],
            ..RigOptions::default()
        });
        let mut other = Session::new(rig.session.shared.clone(), ConnectionId(2));
        let features = [Feature::MutationSeqno, Feature::Xattr, Feature::Xerror];
        rig.hello(&features);
        std::mem::swap(&mut rig.session, &mut other);
        rig.hello(&features);
        rig.select("memory");
        std::mem::swap(&mut rig.session, &mut other);
        Driver { rig, other, random, length, vbuckets: Default::default(), open: Vec::new(), coverage }
    }

    fn run(mut self) {
        for _ in 0..self.length.actions {
            match self.random.random_range(0..100) {
                0..60 => {
                    let (vb, key) = (
                        self.random.random_range(0..VBUCKETS),
                        self.random.random_range(0..self.length.keys),
                    );
                    let verb = Verb::random(&mut self.random);
                    self.execute(vb, key, verb);
                }
                60..66 => self.rig.sleep(self.random.random_range(1..12)),
                66..72 if self.length.flushes => self.flush(),
                72..80 if self.open.len() < OPEN_MAX => self.open_pair(),
                80..95 => self.read_some(),
                95..97 => self.purge(),
                97 if self.random.random_bool(self.length.empties) => self.empty(),
                _ => self.read_all_documents(),
            }
        }
        while !self.open.is_empty() {
            self.read_some();
        }
        self.read_all_documents();
        self.open_pair();
        while !self.open.is_empty() {
            self.read_some();
        }
    }

    fn name(key: usize) -> Vec<u8> {
        format!("{}{key:02}", ["a", "key", "z\u{ff}"][key % 3]).into_bytes()
    }

    /// Gives both buckets the same command at the same time, and compares what they say and have.
    fn execute(&mut self, vb: usize, key: usize, verb: Verb) {
        let name = Driver::name(key);
        let verb = self.comparable(vb, &name, verb);
        let now_ns = self.rig.sim.env().clock.monotonic_ns();
        let cas = self.vbuckets[vb].cas_of(&name, verb, now_ns);
        let (opcode, extras, value, keep) = wire_form(verb, &self.vbuckets[vb], &name);
        let framing = RequestFraming { preserve_ttl: keep, ..RequestFraming::default() };
        let request = Request::new(opcode).key(&name).vbucket(VbId(vb as u16));
        let datatype = if matches!(verb, Verb::Bring(bring) if bring.xattrs > 0) { 4 } else { 0 };
        let request = request.extras(&extras).value(&value).cas(cas).framing(framing);
        let request = request.datatype(Datatype(datatype));
        let on_disk = self.rig.ask(request).one();
        std::mem::swap(&mut self.rig.session, &mut self.other);
        let index = self.rig.send(request);
        assert!(!self.rig.is_waiting(index), "memory answers at once");
        let in_memory = self.rig.wait(index).one();
        std::mem::swap(&mut self.rig.session, &mut self.other);
        let (now, now_ns) = (self.rig.now(), self.rig.sim.env().clock.monotonic_ns());
        let expected = self.vbuckets[vb].apply(&name, verb, cas, now, now_ns);
        let what = format!("{verb:?} of {:?} in vbucket {vb}: {on_disk:?}", String::from_utf8_lossy(&name));
        self.count(&expected, verb, now_ns);
        let mut is_same = answer_parts(&on_disk) == answer_parts(&in_memory);
        if let (Told::Metadata, Some(newest)) = (&expected.told, self.vbuckets[vb].newest(&name)) {
            // A tombstone that is purged is not there any more, and the revision of its successor begins anew.
            let purged = self.rig.store("memory", VbId(vb as u16)).purge_seqno();
            let is_gone = newest.1.kind.is_deleted() && newest.0 <= purged;
            is_same = is_gone
                || (on_disk.status, &on_disk.extras[..12], on_disk.cas)
                    == (in_memory.status, &in_memory.extras[..12], in_memory.cas);
        }
        assert!(is_same, "{what}; in memory {in_memory:?}");
        self.compare(vb, &name, &expected, &on_disk, &what);
    }

    /// A bucket in memory forgets a tombstone after a while, and with it the revision: then only one of the two buckets could say which version is
    /// better.
    fn comparable(&self, vb: usize, name: &[u8], verb: Verb) -> Verb {
        let Verb::Bring(bring) = verb else { return verb };
        let key = [&[0], name].concat();
        let revid = match self.rig.store("memory", VbId(vb as u16)).lookup(&key) {
            Lookup::Known(Found::Version(item)) => Some(item.revid()),
            _ => None,
        };
        let vbucket = &self.vbuckets[vb];
        let known = vbucket.newest(name).map(|_| vbucket.revid(name));
        if revid == known { verb } else { Verb::Bring(bring.in_any_case()) }
    }

    fn count(&mut self, expected: &Expected, verb: Verb, now_ns: u64) {
        let coverage = &mut *self.coverage;
        let is_refused = expected.status == Status::KEY_EEXISTS && !expected.is_cas_mismatch;
        coverage.outdone += u64::from(is_refused && matches!(verb, Verb::Bring(_)));
        coverage.commands += 1;
        coverage.locks_refused += u64::from(expected.status == Status::LOCKED);
        coverage.cas_mismatches += u64::from(expected.is_cas_mismatch);
        coverage.locks += u64::from(expected.told == Told::Lock);
        coverage.unlocks += u64::from(expected.told == Told::Unlocked);
        match expected.change {
            Change::None => {}
            Change::Mutation => coverage.writes += 1,
            Change::Deletion => coverage.deletions += 1,
            Change::Expiration => coverage.expirations += 1,
            Change::Foreign => coverage.brought += 1,
        }
        let over = self.vbuckets.iter_mut().map(|vbucket| vbucket.forget_locks(now_ns)).sum::<u64>();
        coverage.locks_over += over;
    }

    /// Compares an answer, and what both stores have for the key, with what the model expects.
    fn compare(&mut self, vb: usize, name: &[u8], expected: &Expected, answer: &Answer, what: &str) {
        assert_eq!(answer.status, expected.status, "{what}");
        if expected.change != Change::None {
            self.compare_versions(vb, name, what);
        }
        let vbucket = &mut self.vbuckets[vb];
        let newest = vbucket.newest(name);
        match &expected.told {
            Told::Nothing => assert_eq!(answer.cas, Cas(0), "{what}"),
            Told::Unlocked => {
                assert_eq!((answer.cas, answer.value.len(), answer.extras.len()), (Cas(0), 0, 0), "{what}")
            }
            Told::Written => {
                let (seqno, version) = newest.expect("it was written");
                assert_eq!(answer.cas, version.cas, "{what}");
                assert_eq!(MutationToken::decode(&answer.extras).expect("a token").seqno, seqno, "{what}");
            }
            Told::Number(number) => {
                let (seqno, version) = newest.expect("it was written");
                assert_eq!(
                    (answer.cas, &answer.value[..]),
                    (version.cas, &number.to_be_bytes()[..]),
                    "{what}"
                );
                assert_eq!(MutationToken::decode(&answer.extras).expect("a token").seqno, seqno, "{what}");
            }
            Told::Touched => assert_eq!(answer.cas, newest.expect("it is there").1.cas, "{what}"),
            Told::Document { is_locked } => {
                let (_, version) = newest.expect("it is there");
                let cas = if *is_locked { LOCKED_CAS } else { version.cas };
                let told = (&answer.value[..], &answer.extras[..], answer.cas);
                assert_eq!(told, (version.body(), &version.flags.to_be_bytes()[..], cas), "{what}");
            }
            Told::Lock => {
                let (_, version) = newest.expect("it is there");
                let told = (&answer.value[..], &answer.extras[..]);
                assert_eq!(told, (version.body(), &version.flags.to_be_bytes()[..]), "{what}");
                vbucket.locked(name, answer.cas);
            }
            Told::Metadata => {
                let (_, version) = newest.expect("it is there");
                let words = [answer.extras[4..8].to_vec(), answer.extras[8..12].to_vec()].concat();
                let expected = [version.flags.to_be_bytes(), version.expiry.to_be_bytes()].concat();
                assert_eq!(words, expected, "{what}");
            }
        }
        for bucket in BUCKETS {
            let high = self.rig.store(bucket, VbId(vb as u16)).high_seqno();
            assert_eq!(high, self.vbuckets[vb].high(), "{bucket}: {what}");
        }
    }

    /// What was just written is the same in both buckets and in the model; the model takes its CAS from there.
    fn compare_versions(&mut self, vb: usize, name: &[u8], what: &str) {
        let key = [&[0], name].concat();
        let versions = BUCKETS.map(|bucket| {
            let found = self.rig.store(bucket, VbId(vb as u16)).lookup(&key);
            let Lookup::Known(Found::Version(item)) = found else { panic!("{bucket}: {what}") };
            (item.seqno(), Version::of(&item.meta(), name, item.value()), item.revid())
        });
        assert_eq!((versions[0].0, &versions[0].1), (versions[1].0, &versions[1].1), "{what}");
        let [(seqno, version, revid), _] = versions;
        assert_eq!(revid, self.vbuckets[vb].revid(name), "{what}");
        self.vbuckets[vb].written(seqno, version, what);
    }

    /// Every key has the same newest version everywhere, however it is read.
    fn read_all_documents(&mut self) {
        for vb in 0..VBUCKETS {
            for key in 0..self.length.keys {
                self.execute(vb, key, Verb::Get);
            }
        }
    }

    fn open_pair(&mut self) {
        let vb = self.random.random_range(0..VBUCKETS);
        let stores = BUCKETS.map(|bucket| self.rig.store(bucket, VbId(vb as u16)));
        let pair = Pair::open(&self.rig.sim, &stores, &self.vbuckets[vb], &mut self.random);
        self.open.push(pair);
    }

    /// Reads a piece of some of the open scans.
    fn read_some(&mut self) {
        let mut index = 0;
        while index < self.open.len() {
            let pair = &mut self.open[index];
            if self.random.random_bool(0.04) {
                self.coverage.interrupted_scans += 1;
                self.open.swap_remove(index);
                continue;
            }
            self.coverage.seqnos_asked_for += pair.ask_for_seqno(&self.rig.sim, &mut self.random);
            match pair.read(&self.rig.sim, &mut self.random) {
                Read::More => index += 1,
                Read::Gone => {
                    self.coverage.scans_of_gone_buckets += 1;
                    self.open.swap_remove(index);
                }
                Read::End => {
                    self.coverage.from_disk += pair.shown_from_disk();
                    if pair.is_by_key() {
                        self.coverage.key_scans += 1;
                    } else {
                        self.coverage.seqno_scans += 1;
                    }
                    self.open.swap_remove(index);
                }
            }
        }
    }

    /// Flushes the bucket on disk; then perhaps only the disk has its documents.
    fn flush(&mut self) {
        let shard = &self.rig.engine.shards()[0];
        let bucket = self.rig.store(BUCKETS[0], VbId(0)).bucket();
        let leaves_memory = self.random.random_bool(0.5);
        if leaves_memory {
            shard.set_bucket_quota(bucket, 0);
        }
        self.rig.flush();
        if leaves_memory {
            self.rig.sim.block_on(shard.trim_bucket(bucket));
            shard.set_bucket_quota(bucket, 64 << 20);
        }
        self.coverage.flushes += 1;
    }

    /// Drops old tombstones of the bucket in memory.
    fn purge(&mut self) {
        let before = self.rig.now() - self.random.random_range(0..5);
        for vb in 0..VBUCKETS {
            let store = self.rig.store("memory", VbId(vb as u16));
            let purged = store.versions_stats().purged;
            while store.purge_tombstones(before) {}
            self.coverage.purged += store.versions_stats().purged - purged;
        }
    }

    /// Deletes all documents of both buckets: a new history begins.
    fn empty(&mut self) {
        for bucket in BUCKETS {
            self.rig.empty(bucket);
        }
        self.vbuckets = Default::default();
        self.open.iter_mut().for_each(Pair::bucket_is_gone);
        self.coverage.bucket_flushes += 1;
    }
}

/// What both answers to a command must have in common.
fn answer_parts(answer: &Answer) -> (Status, Cas, &[u8], Option<Seqno>, &[u8]) {
    let token = MutationToken::decode(&answer.extras);
    let extras = if token.is_some() { &[] } else { &answer.extras[..] };
    (answer.status, answer.cas, extras, token.map(|token| token.seqno), &answer.value)
}

/// Opcode, extras, value, and whether the expiry is kept.
fn wire_form(verb: Verb, vbucket: &Vbucket, name: &[u8]) -> (Opcode, Vec<u8>, Vec<u8>, bool) {
    let (opcode, extras, value, keep): (_, _, &[u8], _) = match verb {
        Verb::Bring(bring) => {
            let mut extras = Vec::new();
            vbucket.extras_of(name, bring).encode(&mut extras);
            return (bring.opcode, extras, [&section_of(bring.xattrs)[..], bring.body].concat(), false);
        }
        Verb::Get => (Opcode::GET, Vec::new(), b"", false),
        Verb::GetMeta => (Opcode::GET_META, Vec::new(), b"", false),
        Verb::Lock { seconds } => (Opcode::GET_LOCKED, seconds.to_be_bytes().to_vec(), b"", false),
        Verb::Unlock { .. } => (Opcode::UNLOCK_KEY, Vec::new(), b"", false),
        Verb::Store { opcode, value, flags, expiry, keep, .. } => {
            (opcode, StoreExtras { flags, expiry }.encode().to_vec(), value, keep)
        }
        Verb::Delete { .. } => (Opcode::DELETE, Vec::new(), b"", false),
        Verb::Join { opcode, value, .. } => (opcode, Vec::new(), value, false),
        Verb::Count { opcode, delta, initial, expiry } => {
            (opcode, ArithmeticExtras { delta, initial, expiry }.encode().to_vec(), b"", false)
        }
        Verb::Touch { opcode, expiry } => (opcode, expiry.to_be_bytes().to_vec(), b"", false),
    };
    (opcode, extras, value.to_vec(), keep)
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number of seeds"))
    };
    let first = number("RINGBASE_FIRST_SEED", 0);
    first..first + number("RINGBASE_SEEDS", Length::asked_for().seeds)
}

/// T4.1, T4.6, T4.8: the same history gives the same reads, range scans and range reads at every point in time asked for, in memory, on disk and in a
/// model.
#[test]
fn a_bucket_in_memory_one_on_disk_and_a_model_show_the_same_at_every_point_in_time() {
    let mut coverage = Coverage::default();
    for seed in seeds() {
        if let Err(panic) =
            catch_unwind(AssertUnwindSafe(|| Driver::new(seed, Length::asked_for(), &mut coverage).run()))
        {
            eprintln!("difference at seed {seed}: RINGBASE_FIRST_SEED={seed} RINGBASE_SEEDS=1 repeats it");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{coverage:?}");
    if seeds().count() >= 100 {
        let Coverage { commands, writes, deletions, expirations, locks, locks_refused, locks_over, .. } =
            coverage;
        let Coverage { unlocks, cas_mismatches, from_disk, key_scans, seqno_scans, seqnos_asked_for, .. } =
            coverage;
        let Coverage { interrupted_scans, scans_of_gone_buckets, flushes, bucket_flushes, purged, .. } =
            coverage;
        let counts = [commands, writes, deletions, expirations, locks, locks_refused, locks_over, unlocks];
        let more = [cas_mismatches, from_disk, key_scans, seqno_scans, seqnos_asked_for];
        let Coverage { brought, outdone, .. } = coverage;
        let rest =
            [interrupted_scans, scans_of_gone_buckets, flushes, bucket_flushes, purged, brought, outdone];
        let all = [&counts[..], &more, &rest].concat();
        assert!(all.iter().all(|&count| count > 0), "the seeds miss something: {coverage:?}");
    }
}

/// The mutant asks no reader before it lets a version go. Without flushes, which would stop at that by themselves, only a comparison can notice.
#[test]
fn letting_go_of_what_a_scan_can_still_see_is_a_difference() {
    let caught = catch_unwind(|| {
        let _mutant = turn_on(Mutant::ForgetReaders);
        let mut coverage = Coverage::default();
        let length = Length { flushes: false, ..SHORT };
        (0..20).for_each(|seed| Driver::new(seed, length, &mut coverage).run());
    });
    let panic = caught.expect_err("the mutant is noticed");
    let text = panic.downcast_ref::<String>().expect("an assertion with a text");
    assert!(text.starts_with("assertion `left == right` failed: ") && text.contains(COMPARED), "{text}");
}

/// The mutants store a version whatever is there, and lose the xattrs with the old body.
#[test]
fn a_conflict_that_is_not_resolved_and_xattrs_that_are_lost_are_differences() {
    for mutant in [Mutant::IgnoreConflicts, Mutant::ForgetXattrs] {
        let caught = catch_unwind(|| {
            let _mutant = turn_on(mutant);
            let mut coverage = Coverage::default();
            (0..20).for_each(|seed| Driver::new(seed, SHORT, &mut coverage).run());
        });
        let panic = caught.expect_err("the mutant is noticed");
        let text = panic.downcast_ref::<String>().expect("an assertion with a text");
        assert!(text.starts_with("assertion `left == right` failed"), "{mutant:?}: {text}");
    }
}
