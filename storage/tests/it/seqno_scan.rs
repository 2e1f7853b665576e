//! Scans in seqno order against the model: keys overwritten across many flushes, views at many moments, steps between which everything moves.
//!
//! `RINGBASE_SEEDS=5000 cargo test --release -p ringbase-storage --test it seqno_scan` runs any number of seeds.

use std::rc::Rc;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::scan::SeqnoScan;
use ringbase_storage::shard::Shard;
use ringbase_storage::types::{Seqno, VbId};
use ringbase_storage::vbstore::{ReadView, VbStore, WriteError};

use crate::world::{BUCKET, Model, each_seed, new_world, open_shard, put, rng};

const VB: VbId = VbId(1);

/// What the seeds ran into.
#[derive(Debug, Default)]
struct Coverage {
    scans: u64,
    resumed: u64,
    moved: u64,
    dead: u64,
    segments: u64,
    merges: u64,
    from_memory: u64,
    from_disk: u64,
    /// Scans that read from memory and from disk.
    crossing: u64,
    /// Scans under which the window moved past their position.
    overtaken: u64,
}

type Version = (u64, Vec<u8>, Option<Vec<u8>>);

/// A scan under way and what it has shown.
struct Running {
    view: ReadView,
    scan: SeqnoScan,
    from: u64,
    shown: Vec<Version>,
}

impl Running {
    fn new(view: ReadView, from: u64) -> Running {
        Running { scan: SeqnoScan::new(view.clone(), Seqno(from)), view, from, shown: Vec::new() }
    }

    /// A scan that reads the window in memory, too.
    async fn open(store: &VbStore, from: u64) -> Running {
        let scan = SeqnoScan::open(store, Seqno(from)).await.unwrap();
        Running { view: scan.view().clone(), scan, from, shown: Vec::new() }
    }

    /// Shows at most `step` versions; true at the end.
    async fn run(&mut self, step: usize) -> bool {
        let (mut left, shown) = (step, &mut self.shown);
        let more = self.scan.run(|record| {
            let value = (!record.meta.kind.is_deleted()).then(|| record.value.to_vec());
            shown.push((record.meta.seqno.0, record.key.to_vec(), value));
            left -= 1;
            left > 0
        });
        let more = more.await.expect("no read fault is injected");
        if let Some((last, _, _)) = shown.last() {
            assert!(self.scan.position() > Seqno(*last));
        }
        !more
    }

    fn finish(&self, model: &Model, coverage: &mut Coverage) {
        self.check(model);
        let counts = self.scan.counts();
        coverage.scans += 1;
        coverage.from_memory += counts.from_memory;
        coverage.from_disk += counts.from_disk;
        coverage.crossing += u64::from(counts.from_memory > 0 && counts.from_disk > 0);
    }

    fn check(&self, model: &Model) {
        let expected = model.borrow()[VB.0 as usize].at(self.view.end());
        let mut expected: Vec<Version> =
            expected.into_iter().map(|(key, (seqno, value))| (seqno, key, value)).collect();
        expected.retain(|(seqno, _, _)| *seqno >= self.from);
        expected.sort();
        assert_eq!(self.shown, expected, "{:?} from {}", self.view, self.from);
    }
}

/// Overwrites and deletes; flushes now and then.
async fn write_some(shard: &Shard, store: &Rc<VbStore>, model: &Model, random: &mut Xoshiro256PlusPlus) {
    for _ in 0..random.random_range(0..60) {
        // Few keys, so that most writes kill a record of an older flush.
        let key = format!("\0key{:02}", random.random_range(0..30)).into_bytes();
        let value = vec![random.random(); random.random_range(0..400)];
        let value = random.random_bool(0.85).then_some(&value[..]);
        match put(store, model, &key, value).await {
            Ok(_) => {}
            Err(WriteError::Busy { .. }) => store.sleep(std::time::Duration::from_millis(2)).await,
            Err(error) => panic!("{error}"),
        }
    }
    if random.random_bool(0.6) {
        shard.flush().await.unwrap();
    }
}

/// Without readers nothing is kept for one, and the window is within its budget (40 here) and the segments that make it up.
async fn rest(store: &VbStore) {
    let stale = || store.versions_stats().stale;
    for _ in 0..20 {
        store.sleep(std::time::Duration::from_millis(1)).await;
    }
    let memtables = store.stats().memtable_items;
    let versions = store.versions_stats().versions;
    assert_eq!(if memtables == 0 { stale() } else { 0 }, 0);
    assert!(versions <= memtables + 40 + 64, "{versions} versions in the window, {memtables} unflushed");
}

async fn live(shard: &Shard, model: &Model, random: &mut Xoshiro256PlusPlus, coverage: &mut Coverage) {
    let store = shard.vbucket(BUCKET, VB).unwrap();
    let mut running: Vec<Running> = Vec::new();
    for _ in 0..40 {
        write_some(shard, &store, model, random).await;
        if running.len() < 6 && random.random_bool(0.5) {
            let from = match random.random_range(0..3) {
                0 => 1,
                _ => random.random_range(0..store.high_seqno().0 + 2),
            };
            running.push(if random.random_bool(0.3) {
                Running::new(store.open_view().await.unwrap(), from)
            } else {
                Running::open(&store, from).await
            });
        }
        let mut index = 0;
        while index < running.len() {
            let step = [1, 2, 10, usize::MAX][random.random_range(0..4)];
            let epoch = running[index].view.epoch();
            coverage.resumed += 1;
            let resident_from = store.versions_stats().resident_from;
            if random.random_bool(0.7) && running[index].run(step).await {
                running.swap_remove(index).finish(model, coverage);
                continue;
            }
            if random.random_bool(0.3) {
                shard.flush().await.unwrap();
                coverage.moved += u64::from(running[index].view.epoch() != epoch);
            }
            let position = running[index].scan.position().0;
            let overtakes = store.versions_stats().resident_from > position;
            coverage.overtaken += u64::from(resident_from <= position && overtakes);
            index += 1;
        }
    }
    for mut running in running {
        running.run(usize::MAX).await;
        running.finish(model, coverage);
    }
    rest(&store).await;
    let (parts, _) = store.open_view().await.unwrap().parts();
    coverage.dead += parts.version.segments.iter().map(|segment| segment.dead_records()).sum::<u64>();
    coverage.segments += parts.version.segments.len() as u64;
    coverage.merges += shard.metrics().merges.get();
}

fn run_seed(seed: u64, coverage: &mut Coverage) {
    let mut random = rng(seed);
    let (sim, disk, shard, model) = new_world(seed);
    sim.block_on(live(&shard, &model, &mut random, coverage));
    // After a restart the marks come from the disk.
    sim.block_on(shard.close()).unwrap();
    shard.detach();
    let (shard, _) = sim.block_on(open_shard(&sim.env(), &disk)).unwrap();
    sim.block_on(async {
        let view = shard.vbucket(BUCKET, VB).unwrap().open_view().await.unwrap();
        let mut all = Running::new(view, 0);
        assert!(all.run(usize::MAX).await);
        all.check(&model);
    });
    sim.block_on(live(&shard, &model, &mut random, coverage));
}

/// T4.6 for views on disk: each key at most once, at its newest version not after the end, in order, also when a scan is resumed after a
/// flush, a merge or a restart. A scan that reads the window in memory sees no gap and nothing twice where it crosses from disk, while the window moves under it.
#[test]
fn seqno_scans_show_each_key_once_whatever_is_flushed_and_merged_under_them() {
    let mut coverage = Coverage::default();
    let seeds = each_seed(60, |seed| {
        run_seed(seed, &mut coverage);
        1
    });
    println!("{coverage:?}");
    let Coverage { scans, resumed, moved, dead, segments, merges, .. } = coverage;
    let Coverage { from_memory, from_disk, crossing, overtaken, .. } = coverage;
    let window = [from_memory, from_disk, crossing, overtaken];
    assert!(window.iter().all(|&count| count > 0), "the seeds miss something: {window:?}");
    assert!(scans > seeds && resumed > 2 * scans && moved > 0 && dead > 0 && segments > 0 && merges > 0);
}
