//! Scans against a model while every key is overwritten, deleted, flushed and merged under them.
//!
//! `RINGBASE_SEEDS=1000 cargo test --release -p ringbase --test it range_scan::model` runs any number of seeds.

use std::cell::Cell;
use std::ops::{Bound, RangeBounds};
use std::rc::Rc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase::protocol::Status;
use ringbase::protocol::range_scan::{RangeScanCreate, Selection};
use ringbase::range_scan::{ConnectionId, HEAD_ROOM, RangeScanConfig};

use super::rig::{Client, Contents, Received, Rig, Seed, Writer, awkward_key, contents, rng};

/// What the seeds ran into.
#[derive(Debug, Default)]
struct Coverage {
    scans: u64,
    empty: u64,
    continues: u64,
    frames: u64,
    merges: u64,
    flushes: u64,
    from_disk: u64,
}

/// Overwrites, deletes and flushes until told to stop.
async fn write_on(
    writer: Writer,
    pool: Rc<Vec<Vec<u8>>>,
    mut random: Xoshiro256PlusPlus,
    stop: Rc<Cell<bool>>,
) {
    while !stop.get() {
        let key = &pool[random.random_range(0..pool.len())];
        match random.random_range(0..100) {
            0..20 => drop(writer.put(key, None).await),
            20..97 => {
                let len = [3, 40, 400][random.random_range(0..3)];
                writer.put(key, Some(&vec![random.random(); random.random_range(0..len)])).await;
            }
            _ => writer.settle(true).await,
        }
    }
    writer.settle(false).await;
}

fn bound(random: &mut Xoshiro256PlusPlus, pool: &[Vec<u8>]) -> Bound<Vec<u8>> {
    let key = match random.random_range(0..4) {
        0..2 => pool[random.random_range(0..pool.len())].clone(),
        2 => awkward_key(random),
        _ => [vec![], vec![0], vec![0xff], vec![0xff; 250]][random.random_range(0..4)].clone(),
    };
    if random.random() { Bound::Included(key) } else { Bound::Excluded(key) }
}

/// Reads a scan to its end with random limits.
async fn read(
    rig: &Rig,
    client: &Client,
    request: RangeScanCreate,
    random: &mut Xoshiro256PlusPlus,
    coverage: &mut Coverage,
) -> Result<Vec<Received>, Status> {
    let id = client.create(request).await.map_err(|refusal| refusal.status)?;
    let mut all = Vec::new();
    loop {
        let threshold = [0, 1, 100, 1000, 8192, 100_000][random.random_range(0..6)];
        rig.scans.set_param("range_scan_read_buffer_send_size", &threshold.to_string()).unwrap();
        let mut limit = |choices: [u32; 4]| choices[random.random_range(0..4)];
        let limits = [limit([0, 0, 1, 30]), limit([0, 0, 1, 3]), limit([0, 0, 1, 2000])];
        let frames = client.go_on(id, limits).await;
        coverage.continues += 1;
        coverage.frames += frames.len() as u64;
        let records: usize = frames.iter().map(|frame| frame.records.len()).sum();
        let last = frames.last().unwrap().status;
        all.extend(frames);
        match last {
            Status::RANGE_SCAN_MORE => assert!(records > 0, "limits {limits:?}"),
            status => {
                assert_eq!(status, Status::RANGE_SCAN_COMPLETE);
                return Ok(all);
            }
        }
    }
}

fn expected(contents: &Contents, selection: &Selection) -> Contents {
    let range = match selection {
        Selection::Range { start, end } => (start.clone(), end.clone()),
        _ => (Bound::Unbounded, Bound::Unbounded),
    };
    let in_range = contents.iter().filter(|(key, _)| range.contains(*key));
    in_range.map(|(key, version)| (key.clone(), version.clone())).collect()
}

async fn scan_once(
    rig: &Rig,
    client: &Client,
    pool: &[Vec<u8>],
    random: &mut Xoshiro256PlusPlus,
    coverage: &mut Coverage,
) {
    let selection = match random.random_range(0..3) {
        0 => Selection::All,
        _ => Selection::Range { start: bound(random, pool), end: bound(random, pool) },
    };
    let key_only = random.random();
    let request = RangeScanCreate { selection: selection.clone(), key_only, ..RangeScanCreate::default() };
    let before = rig.store().high_seqno().0;
    let found = read(rig, client, request, random, coverage).await;
    let after = rig.store().high_seqno().0;
    coverage.scans += 1;
    let writes = rig.writes.borrow();
    // The snapshot is of some moment while it was created, no earlier than the request.
    let matches = (before..=after).any(|end| {
        let expected = expected(&contents(&writes, end), &selection);
        match &found {
            Err(status) => *status == Status::KEY_ENOENT && expected.is_empty(),
            Ok(frames) => {
                let records = frames.iter().flat_map(|frame| &frame.records);
                let count = records.clone().count();
                count == expected.len()
                    && records.zip(&expected).all(|((key, version), (expected_key, expected))| {
                        key == expected_key && version.as_ref().is_none_or(|version| version == expected)
                    })
            }
        }
    });
    coverage.empty += u64::from(found.is_err());
    assert!(matches, "{selection:?}, keys only: {key_only}, between {before} and {after}");
}

fn run_seed(seed: u64, coverage: &mut Coverage) {
    let _seed = Seed(seed);
    let rig = Rig::with(seed, RangeScanConfig::default());
    let mut random = rng(seed);
    let pool: Rc<Vec<Vec<u8>>> =
        Rc::new((0..random.random_range(1..400)).map(|_| awkward_key(&mut random)).collect());
    let writer = rig.writer();
    rig.sim.block_on(async {
        for _ in 0..random.random_range(1..6) {
            for _ in 0..random.random_range(0..120) {
                let key = &pool[random.random_range(0..pool.len())];
                writer.put(key, random.random_bool(0.8).then_some(&b"first"[..])).await;
            }
            writer.settle(true).await;
        }
    });
    let stop = Rc::new(Cell::new(false));
    rig.sim.spawn(write_on(writer, pool.clone(), rng(seed ^ 1), stop.clone()));
    let second = Rc::new(Cell::new(false));
    rig.sim.block_on(async {
        for _ in 0..4 {
            let client = rig.client_of(ConnectionId(random.random_range(1..3)));
            scan_once(&rig, &client, &pool, &mut random, coverage).await;
            rig.store().sleep(Duration::from_micros(random.random_range(0..2000))).await;
        }
        second.set(true);
    });
    stop.set(true);
    rig.settle();
    coverage.merges += rig.shard.metrics().merges.get();
    coverage.flushes += rig.shard.metrics().flush_ns.histogram().len();
    let reads = rig.disk.stats().reads;
    coverage.from_disk += reads;
    assert_eq!((rig.views(), rig.scans.len(), rig.scans.buffer_bytes().held()), (0, 0, 0));
    // T5.20: one scan at a time, and no document is above 500 bytes.
    let bound = 2 * (HEAD_ROOM + 100_000 + 700);
    assert!(rig.scans.buffer_bytes().peak() <= bound, "{}", rig.scans.buffer_bytes().peak());
}

/// T5.1, T5.2, T5.4, T5.6, T5.18, T5.20
#[test]
fn scans_show_exactly_one_moment_whatever_is_written_flushed_and_merged_under_them() {
    let seeds = std::env::var("RINGBASE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(150);
    let mut coverage = Coverage::default();
    for seed in 0..seeds {
        run_seed(seed, &mut coverage);
    }
    println!("{coverage:?}");
    assert!(coverage.empty > 0 && coverage.merges > 0 && coverage.from_disk > 0, "{coverage:?}");
    let found = coverage.scans - coverage.empty;
    assert!(coverage.continues > 2 * found && coverage.flushes > found, "{coverage:?}");
}
