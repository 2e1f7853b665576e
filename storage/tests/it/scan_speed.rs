//! How fast a key-only scan fills buffers when every block is cached, by CPU time. Reports, asserts nothing about time.
//!
//! `cargo test --release -p ringbase-storage --test it scan_speed -- --ignored --nocapture`

use rand::RngExt;
use ringbase_storage::cache::BlockCache;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::scan::{Content, KeyRange, KeyScan, Limits, Stop};
use ringbase_storage::shard::{FormatOptions, Shard, ShardOptions, format};
use ringbase_storage::types::{Kind, ShardId, VbId};
use ringbase_storage::vbstore::{NewVersion, ReadView};

use crate::world::{BUCKET, default_bucket, rng};

const KEYS: u32 = 400_000;
const BUFFER_BYTES: usize = 256 << 10;

/// A 100-byte key as applications make them: a long common part, a number in the middle.
fn key(n: u32) -> Vec<u8> {
    format!("\0application::collection::user::{n:010}::{:x<57}", "").into_bytes()
}

/// CPU seconds of this thread: the machine may be busy with something else.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Which keys lie in which runs.
struct Case<'a> {
    name: &'a str,
    keys: u32,
    runs: u32,
    is_in_run: &'a dyn Fn(u32, u32) -> bool,
}

/// The clock of CPU time is coarse, so this goes on for a while.
async fn megabytes_per_second(mut work: impl AsyncFnMut() -> usize) -> f64 {
    let (started, mut bytes) = (cpu_seconds(), 0);
    loop {
        bytes += work().await;
        let seconds = cpu_seconds() - started;
        if seconds > 0.4 {
            return bytes as f64 / seconds / 1e6;
        }
    }
}

fn load(sim: &SimExecutor, disk: &SimDisk, case: &Case<'_>) -> Shard {
    sim.block_on(async {
        let geometry = Geometry {
            shard: ShardId(0),
            shard_count: 1,
            vbucket_count: 1,
            wal_segments: 4,
            wal_segment_bytes: 64 << 20,
        };
        let options = ShardOptions { resident_bytes_max: 0, ..ShardOptions::default() };
        let format_options = FormatOptions { geometry, grow_bytes: options.grow_bytes };
        format(&sim.env(), &disk.open("wal"), &disk.open("data"), format_options).await.unwrap();
        let (wal, data) = (disk.open("wal"), disk.open("data"));
        let (shard, _) = Shard::open(sim.env(), wal, data, BlockCache::new(1 << 30), options).await.unwrap();
        shard.create_bucket(default_bucket()).await.unwrap();
        let store = shard.vbucket(BUCKET, VbId(0)).unwrap();
        for run in 0..case.runs {
            for n in (0..case.keys).filter(|n| (case.is_in_run)(*n, run)) {
                let key = key(n);
                let found = store.get(&key).await.unwrap();
                let kind = Kind::Mutation;
                let new = NewVersion { key: &key, value: b"v", flags: 0, expiry: 0, datatype: 0, kind };
                store.write(&found, new).unwrap();
                if n % 1024 == 0 {
                    store.wait_persisted(store.high_seqno()).await;
                }
            }
            shard.flush().await.unwrap();
        }
        assert_eq!(store.stats().runs, u64::from(case.runs));
        shard
    })
}

async fn fill_all(view: &ReadView, deadline_ns: Option<u64>, out: &mut Vec<u8>) -> usize {
    let mut scan = KeyScan::new(view.clone(), KeyRange::collection(0), Content::Keys, None);
    let mut bytes = 0;
    loop {
        out.clear();
        let mut limits = Limits { buffer_bytes: BUFFER_BYTES, items: None, bytes: None, deadline_ns };
        let stop = scan.fill(out, &mut limits).await.unwrap();
        bytes += out.len();
        if stop == Stop::End {
            return bytes;
        }
    }
}

#[test]
#[ignore = "a measurement, not a check"]
fn report_key_only_fill_speed() {
    let mut random = rng(1);
    let scattered: Vec<u32> = (0..KEYS).map(|_| random.random()).collect();
    let case = |name, runs, is_in_run| Case { name, keys: KEYS, runs, is_in_run };
    for case in [
        case("1 run", 1, &|_, _| true),
        case("4 runs, key by key", 4, &|n, run| n % 4 == run),
        case("8 runs, key by key", 8, &|n, run| n % 8 == run),
        case("8 runs, at random", 8, &|n, run| scattered[n as usize] % 8 == run),
        case("8 runs, 100 keys each in turn", 8, &|n, run| n / 100 % 8 == run),
        case("8 runs, one behind the other", 8, &|n, run| n / (KEYS / 8) == run),
        Case { keys: KEYS / 8, ..case("8 runs, the same keys", 8, &|_, _| true) },
    ] {
        let (sim, disk) = (SimExecutor::new(1), SimDisk::new(1));
        disk.attach(&sim);
        let shard = load(&sim, &disk, &case);
        let mut out = Vec::with_capacity(BUFFER_BYTES + 256);
        let speeds = [None, Some(u64::MAX)].map(|deadline_ns| {
            sim.block_on(async {
                let view = shard.vbucket(BUCKET, VbId(0)).unwrap().open_view().await.unwrap();
                assert_eq!(fill_all(&view, deadline_ns, &mut out).await, case.keys as usize * 101);
                megabytes_per_second(async || fill_all(&view, deadline_ns, &mut out).await).await
            })
        });
        println!("{}: {:.0} MB/s, with a deadline {:.0} MB/s", case.name, speeds[0], speeds[1]);
    }
    let source = vec![7u8; 40 << 20];
    let mut target = vec![0u8; BUFFER_BYTES];
    let copied = megabytes_per_second(async || {
        for chunk in source.chunks_exact(BUFFER_BYTES) {
            target.copy_from_slice(std::hint::black_box(chunk));
            std::hint::black_box(&mut target);
        }
        source.len()
    });
    println!("memcpy: {:.0} MB/s", futures_lite::future::block_on(copied));
}
