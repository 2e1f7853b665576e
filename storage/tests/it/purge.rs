//! Purging on disk against a model: tombstones of an age and dropped collections go while writes, flushes, merges and compaction go on, views are held open
//! over it, and the machine dies at any step.
//!
//! `RINGBASE_SEEDS=5000 RINGBASE_FIRST_SEED=0 cargo test --release -p ringbase-storage --test it purge::` runs any number of seeds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::collections::{CREATED, DROPPED, Subject, event_key};
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::mutant::Mutant;
use ringbase_storage::scan::KeyRange;
use ringbase_storage::shard::Shard;
use ringbase_storage::types::{Kind, Seqno, VbId};
use ringbase_storage::vbstore::{Found, NewVersion, PurgeLimits, ReadView, VbStore, WriteError};

use crate::crash::reported;
use crate::world::{
    self, BUCKET, VBUCKETS, each_seed, new_world, open_shard, rng, scan_seqnos, scan_versions,
};

/// Collections that come and go, one after the other; 0 is always there.
const COLLECTIONS: std::ops::Range<u8> = 8..14;

/// The first delete time, and the seconds of a day.
const FIRST_DAY: u32 = 1_000_000;
const DAY: u32 = 100;

/// One version: write `n` of a vbucket has seqno `n + 1`.
#[derive(Debug, Clone)]
struct Written {
    key: Vec<u8>,
    kind: Kind,
    value: Vec<u8>,
    time: u32,
}

/// What a vbucket was told.
#[derive(Debug, Clone)]
struct VbModel {
    writes: Vec<Written>,
    /// Delete times below this may be purged.
    before: u32,
    day: u32,
    /// The collection that is there, or the next one.
    collection: u8,
}

impl VbModel {
    fn new() -> VbModel {
        VbModel { writes: Vec::new(), before: 0, day: FIRST_DAY, collection: COLLECTIONS.start }
    }

    /// The newest version of each key as of `end`, with its seqno.
    fn at(&self, end: Seqno) -> BTreeMap<Vec<u8>, (u64, &Written)> {
        let writes = self.writes.iter().take(end.0 as usize).enumerate();
        writes.map(|(n, write)| (write.key.clone(), (n as u64 + 1, write))).collect()
    }

    /// Collections that were dropped at or before `end`.
    fn dropped(&self, end: Seqno) -> Vec<u8> {
        let newest = self.at(end);
        let is_dropped = |id: &u8| {
            let event = newest.get(&event_key(Subject::Collection(u32::from(*id))));
            event.is_some_and(|(_, event)| event.value == b"dropped")
        };
        COLLECTIONS.filter(is_dropped).collect()
    }

    fn is_open(&self) -> bool {
        let created = self.at(Seqno(u64::MAX)).contains_key(&event_key(self.subject()));
        created && !self.dropped(Seqno(u64::MAX)).contains(&self.collection)
    }

    fn subject(&self) -> Subject {
        Subject::Collection(u32::from(self.collection))
    }
}

type Model = Rc<RefCell<Vec<VbModel>>>;

/// A version as a scan shows it: seqno, key, value.
type Shown = (u64, Vec<u8>, Option<Vec<u8>>);

async fn write(store: &Rc<VbStore>, model: &Model, key: &[u8], kind: Kind, value: &[u8]) {
    let found = store.get(key).await.expect("no read fault is injected");
    let vb = store.id().0 as usize;
    let time = model.borrow()[vb].day;
    let flags = if value == b"dropped" { DROPPED } else { CREATED };
    let expiry = if kind.is_deleted() { time } else { 0 };
    match store.write(&found, NewVersion { key, value, flags, expiry, datatype: 0, kind }) {
        Ok(item) => {
            let writes = &mut model.borrow_mut()[vb].writes;
            writes.push(Written { key: key.to_vec(), kind, value: value.to_vec(), time });
            assert_eq!(item.seqno().0, writes.len() as u64);
        }
        Err(WriteError::Busy { .. }) => store.sleep(std::time::Duration::from_millis(2)).await,
        Err(error) => panic!("{error}"),
    }
}

async fn write_any(store: &Rc<VbStore>, model: &Model, random: &mut Xoshiro256PlusPlus) {
    let known = model.borrow()[store.id().0 as usize].clone();
    let subject = event_key(known.subject());
    let collection = match random.random_range(0..400) {
        0 if !known.is_open() => return write(store, model, &subject, Kind::SystemEvent, b"created").await,
        0 => {
            write(store, model, &subject, Kind::SystemEvent, b"dropped").await;
            let known = &mut model.borrow_mut()[store.id().0 as usize];
            if !known.is_open() && known.collection + 1 < COLLECTIONS.end {
                known.collection += 1;
            }
            return;
        }
        1..100 if known.is_open() => known.collection,
        _ => 0,
    };
    let key = [&[collection][..], format!("key{:03}", random.random_range(0..60)).as_bytes()].concat();
    let value = vec![random.random(); random.random_range(0..400)];
    match random.random_bool(0.6) {
        true => write(store, model, &key, Kind::Mutation, &value).await,
        false => write(store, model, &key, Kind::Deletion, &[]).await,
    }
}

/// What is left of `versions` when the purged tombstones are taken out, and collections that were dropped before the view was opened.
fn seen(versions: impl IntoIterator<Item = Shown>, view: &ReadView, dropped: &[u8]) -> Vec<Shown> {
    let purged = view.purge_seqno().0;
    let is_there =
        |(seqno, key, value): &Shown| !dropped.contains(&key[0]) && (value.is_some() || *seqno > purged);
    versions.into_iter().filter(is_there).collect()
}

fn assert_same(found: &[Shown], expected: &[Shown], view: &ReadView) {
    let missing: Vec<_> =
        expected.iter().filter(|one| !found.contains(one)).map(|one| (one.0, &one.1)).collect();
    let more: Vec<_> =
        found.iter().filter(|one| !expected.contains(one)).map(|one| (one.0, &one.1)).collect();
    assert!(
        found == expected,
        "{view:?}, purged to {}: missing {missing:?}, too many {more:?}",
        view.purge_seqno()
    );
}

/// A view shows what it must, in both orders; and no tombstone is purged that is too young.
async fn check(view: &ReadView, known: &VbModel, step: usize) {
    let dropped = known.dropped(view.end());
    let newest = known.at(view.end());
    let purged = view.purge_seqno().0;
    let young = |(seqno, write): &&(u64, &Written)| {
        let is_young = write.kind.is_deleted() && write.time >= known.before;
        *seqno <= purged && is_young && !dropped.contains(&write.key[0])
    };
    assert_eq!(newest.values().find(young).map(|(seqno, _)| seqno), None, "purged before its time");
    let versions = newest
        .into_iter()
        .map(|(key, (seqno, write))| (seqno, key, (!write.kind.is_deleted()).then(|| write.value.clone())));
    let mut expected = seen(versions, view, &dropped);
    let ranges = COLLECTIONS.chain([0]).filter(|id| !dropped.contains(id));
    let ranges = ranges.map(|id| KeyRange::collection(u32::from(id)));
    let by_key =
        scan_versions(view, ranges, step).await.into_iter().map(|(key, seqno, value)| (seqno, key, value));
    let mut by_key = seen(by_key, view, &dropped);
    by_key.sort();
    expected.sort();
    // A range of keys ends with the event of its collection, that of the default one is not there.
    let is_document = |(_, key, _): &Shown| key[0] != 1;
    let documents: Vec<Shown> = expected.iter().filter(|shown| is_document(shown)).cloned().collect();
    by_key.retain(is_document);
    assert_same(&by_key, &documents, view);
    let by_seqno = scan_seqnos(view, step).await;
    let purged_shown = by_seqno.iter().find(|(seqno, _, value)| value.is_none() && *seqno <= purged);
    assert_eq!(purged_shown, None, "{view:?} shows a purged tombstone");
    assert_same(&seen(by_seqno, view, &dropped), &expected, view);
}

/// With nothing under way the counts are exact, and what is purged has no bytes that are called live.
async fn check_counts(shard: &Shard, model: &Model) {
    shard.flush().await.unwrap();
    shard.compact().await;
    for (vb, store) in shard.vbuckets().iter().enumerate() {
        let known = model.borrow()[vb].clone();
        let stats = store.stats();
        let dropped = known.dropped(stats.high_seqno);
        let newest = known.at(stats.high_seqno);
        let there =
            newest.values().filter(|(_, write)| !dropped.contains(&write.key[0]) && write.key[0] != 1);
        let (live, dead): (Vec<_>, Vec<_>) = there.partition(|(_, write)| !write.kind.is_deleted());
        let dead = dead.iter().filter(|(seqno, _)| *seqno > stats.purge_seqno.0).count();
        assert_eq!((stats.items, stats.tombstones), (live.len() as u64, dead as u64), "vb {vb}: {stats:?}");
        let view = store.open_view().await.unwrap();
        let shown = seen(scan_seqnos(&view, usize::MAX).await, &view, &dropped);
        assert_eq!(stats.live_records, shown.len() as u64, "vb {vb}: {stats:?}");
    }
}

struct Held {
    vb: usize,
    view: ReadView,
}

/// What the seeds ran into.
#[derive(Debug, Default, Clone, Copy)]
struct Coverage {
    purges: u64,
    purged: u64,
    merges: u64,
    erased: u64,
}

async fn live(shard: Shard, model: Model, seed: u64, rounds: u32) {
    let mut random = rng(seed);
    let stores = shard.vbuckets();
    let mut held: Vec<Held> = Vec::new();
    for _ in 0..rounds {
        let vb = random.random_range(0..stores.len());
        let store = &stores[vb];
        for _ in 0..random.random_range(0..30) {
            write_any(store, &model, &mut random).await;
        }
        match random.random_range(0..12) {
            0..5 => shard.flush().await.unwrap(),
            5 => shard.compact().await,
            6 => store.sleep(std::time::Duration::from_millis(1)).await,
            7 => model.borrow_mut()[vb].day += DAY,
            8 | 9 => {
                let before = {
                    let known = &mut model.borrow_mut()[vb];
                    known.before = known.before.max(known.day - DAY);
                    known.before
                };
                store.want_purge(PurgeLimits::before(before));
            }
            _ => {}
        }
        if held.len() < 4 && random.random_bool(0.3) {
            held.push(Held { vb, view: store.open_view().await.unwrap() });
        }
        if !held.is_empty() && random.random_bool(0.5) {
            let index = random.random_range(0..held.len());
            let known = model.borrow()[held[index].vb].clone();
            check(&held[index].view, &known, [1, 9, usize::MAX][random.random_range(0..3)]).await;
            if random.random_bool(0.3) {
                held.swap_remove(index);
            }
        }
    }
}

fn note(shard: &Shard, coverage: &mut Coverage) {
    coverage.purges += shard.metrics().purges.get();
    coverage.merges += shard.metrics().merges.get();
}

/// Recovers, and strikes from the model what was not durable.
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
        let (shard, _) = open_shard(&env, disk).await.expect("recovery after a crash");
        for vb in 0..VBUCKETS {
            let store = shard.vbucket(BUCKET, VbId(vb)).unwrap();
            let high = store.high_seqno();
            assert!(high >= known[vb as usize], "vb {vb}: less is recovered than was reported");
            let vb_model = {
                let vb_model = &mut model.borrow_mut()[vb as usize];
                vb_model.writes.truncate(high.0 as usize);
                let created = vb_model.at(high).keys().filter(|key| key[0] == 1).count() as u8;
                vb_model.collection = COLLECTIONS.start + created.saturating_sub(1);
                let is_over = vb_model.dropped(high).contains(&vb_model.collection);
                vb_model.collection += u8::from(is_over && vb_model.collection + 1 < COLLECTIONS.end);
                vb_model.clone()
            };
            let view = store.open_view().await.unwrap();
            check(&view, &vb_model, usize::MAX).await;
            let dropped = vb_model.dropped(high);
            for (key, (seqno, write)) in vb_model.at(high) {
                if dropped.contains(&key[0]) {
                    continue;
                }
                match store.get(&key).await.unwrap() {
                    Found::Version(item) => assert_eq!(item.seqno().0, seqno, "vb {vb}: {key:?}"),
                    Found::Absent => {
                        let is_purged = write.kind.is_deleted() && seqno <= store.purge_seqno().0;
                        assert!(is_purged, "vb {vb}: {key:?} with seqno {seqno} is gone");
                    }
                }
            }
        }
        shard
    });
    (sim, shard)
}

fn run_seed(seed: u64, coverage: &mut Coverage) {
    let mut random = rng(seed ^ 0x9a6e);
    let (mut sim, disk, mut shard, _) = new_world(seed);
    let model: Model = Rc::new(RefCell::new(vec![VbModel::new(); VBUCKETS as usize]));
    for _ in 0..random.random_range(1..4) {
        sim.spawn(live(shard.clone(), model.clone(), random.random(), 80));
        sim.run_steps(random.random_range(1..60_000));
        let known = reported(&shard);
        note(&shard, coverage);
        drop(sim);
        shard.detach();
        drop(shard);
        disk.crash(random.random());
        (sim, shard) = recover(&disk, &model, &known, &mut random);
    }
    sim.block_on(async {
        live(shard.clone(), model.clone(), random.random(), 80).await;
        check_counts(&shard, &model).await;
        shard.close().await.unwrap();
    });
    note(&shard, coverage);
    for (vb, store) in shard.vbuckets().iter().enumerate() {
        let dropped = model.borrow()[vb].dropped(store.high_seqno()).len();
        coverage.erased += dropped as u64;
        coverage.purged += store.purge_seqno().0;
    }
    let known = reported(&shard);
    drop(sim);
    shard.detach();
    let (sim, shard) = recover(&disk, &model, &known, &mut random);
    sim.block_on(async {
        check_counts(&shard, &model).await;
        shard.close().await.unwrap();
    });
    shard.detach();
}

/// Old tombstones and what dropped collections leave go from disk, and nothing else does, whoever reads and wherever the machine dies; counts and live bytes
/// stay exact.
#[test]
fn what_is_purged_is_old_or_dropped_and_views_show_what_they_showed() {
    let mut coverage = Coverage::default();
    let seeds = each_seed(24, |seed| {
        run_seed(seed, &mut coverage);
        1
    });
    println!("{coverage:?}");
    if seeds >= 20 {
        let Coverage { purges, purged, merges, erased } = coverage;
        assert!(
            purges > 5 * seeds && merges > purges && purged > 100 * seeds && erased > seeds,
            "{coverage:?}"
        );
    }
}

fn caught_at(mutant: Mutant, seeds: u64) -> Option<u64> {
    world::caught_at(mutant, seeds, |seed| run_seed(seed, &mut Coverage::default()))
}

/// The checker notices a tombstone that is purged before its time.
#[test]
fn purging_what_is_young_is_caught() {
    assert!(caught_at(Mutant::PurgeYoung, 20).is_some());
}

/// The checker notices a mark of a purged tombstone, which would make a live record count as dead.
#[test]
fn marks_of_purged_tombstones_are_caught() {
    assert!(caught_at(Mutant::MarkPurged, 40).is_some());
}

/// The checker notices views that are moved to segments without what was purged since they were opened.
#[test]
fn reclamation_of_what_views_still_see_is_caught() {
    assert!(caught_at(Mutant::ReclaimUnderViews, 40).is_some());
}
