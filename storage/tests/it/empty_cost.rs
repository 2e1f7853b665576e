//! What an empty vbucket costs, measured on real files with 1,024 of them in one shard.

use std::alloc::System;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

use cap::Cap;
use ringbase_storage::cache::BlockCache;
use ringbase_storage::env::Env;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::Device;
use ringbase_storage::io::blocking::BlockingHost;
use ringbase_storage::io::device::{OpenOptions, RingDevice};
use ringbase_storage::io::ring::RingConfig;
use ringbase_storage::shard::{FormatOptions, ReclaimOptions, ScrubOptions, Shard, ShardOptions, format};
use ringbase_storage::types::ShardId;

use crate::device::scratch;
use crate::world::default_bucket;

/// Counts what the whole test binary has allocated.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const VBUCKETS: u16 = 1024;
const UNCLEAN_STARTS: usize = 5;
const MEMORY_BYTES_MAX: usize = 4 << 10;
const DISK_BYTES_MAX: u64 = 8 << 10;

/// Bytes of a data file that has no vbucket yet.
const DATA_BYTES_MIN: u64 = 1 << 20;

const OPTIONS: ShardOptions = ShardOptions {
    resident_bytes_max: 1 << 20,
    memtable_bytes_max: 1 << 20,
    grow_bytes: 256 << 10,
    flush_bytes: 1 << 20,
    window_versions_max: 8192,
    scrub: ScrubOptions::WHEN_ASKED,
    reclaim: ReclaimOptions::UNPACED,
};

async fn open(env: Env, wal: &Rc<dyn Device>, data: &Rc<dyn Device>) -> Shard {
    Shard::open(env, wal.clone(), data.clone(), BlockCache::new(0), OPTIONS).await.unwrap().0
}

/// Other tests of the binary allocate too: this one runs in a process of its own, see below.
#[test]
#[ignore = "run by an_empty_vbucket_costs_at_most_4_kib_of_memory_and_8_kib_of_disk in a process of its own"]
fn measured_alone() {
    let (host, directory) = (BlockingHost::new(&RingConfig::default()).unwrap(), scratch());
    let path = |name: &str| directory.path().join(name);
    let device = |name: &str| -> Rc<dyn Device> {
        let options = OpenOptions { create: true, ..OpenOptions::default() };
        Rc::new(RingDevice::open(host.ring(), &path(name), &options).unwrap())
    };
    let (wal, data) = (device("wal"), device("data"));
    let geometry = Geometry {
        shard: ShardId(0),
        shard_count: 1,
        vbucket_count: VBUCKETS,
        wal_segments: 4,
        wal_segment_bytes: 64 << 10,
    };
    let options = FormatOptions { geometry, grow_bytes: OPTIONS.grow_bytes };
    host.block_on(format(&host.env(), &wal, &data, options)).unwrap();
    let disk = || {
        let data = std::fs::metadata(path("data")).unwrap();
        let allocated = data.blocks() * 512;
        (data.len().saturating_sub(DATA_BYTES_MIN), allocated.saturating_sub(DATA_BYTES_MIN))
    };
    let report = |when: &str, shard: &Shard, memory: usize| {
        let (length, allocated) = disk();
        let space = shard.stats().space;
        let used = space.file_bytes - space.free_bytes;
        let each = [memory as u64, length, allocated, used].map(|bytes| bytes / u64::from(VBUCKETS));
        println!(
            "{when}: an empty vbucket of {VBUCKETS} takes {} bytes of memory; {} of file length, {} of allocated disk, {} \
             of used blocks",
            each[0], each[1], each[2], each[3]
        );
        assert!(memory / usize::from(VBUCKETS) <= MEMORY_BYTES_MAX, "{when}: {memory} bytes of memory");
        assert!(length.max(allocated).max(used) / u64::from(VBUCKETS) <= DISK_BYTES_MAX, "{when}");
        assert!(used > 0);
    };

    let shard = host.block_on(open(host.env(), &wal, &data));
    let without = ALLOCATOR.allocated();
    host.block_on(shard.create_bucket(default_bucket())).unwrap();
    assert_eq!(shard.vbuckets().len(), usize::from(VBUCKETS));
    report("created", &shard, ALLOCATOR.allocated() - without);
    host.block_on(shard.close()).unwrap();
    shard.detach();
    drop(shard);

    // Unclean starts add a branch each to the failover logs.
    for _ in 0..UNCLEAN_STARTS {
        let shard = host.block_on(open(host.env(), &wal, &data));
        shard.detach();
    }
    let before = ALLOCATOR.allocated();
    let shard = host.block_on(open(host.env(), &wal, &data));
    assert!(shard.vbuckets().iter().all(|store| store.failover_log().len() > UNCLEAN_STARTS));
    report("recovered after unclean stops", &shard, ALLOCATOR.allocated() - before);
    shard.detach();
}

#[test]
fn an_empty_vbucket_costs_at_most_4_kib_of_memory_and_8_kib_of_disk() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "empty_cost::measured_alone", "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed") && text.matches("bytes of memory").count() == 2, "{text}");
}
