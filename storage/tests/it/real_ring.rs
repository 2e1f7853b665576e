//! The engine on the kernel's ring and real O_DIRECT files: what holds in the simulation holds here.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use ringbase_storage::cache::BlockCache;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::inspect::{InspectOptions, inspect_dir};
use ringbase_storage::io::Device;
use ringbase_storage::io::blocking::BlockingHost;
use ringbase_storage::io::device::{OpenOptions, RingDevice};
use ringbase_storage::io::ring::RingConfig;
use ringbase_storage::shard::{FormatOptions, RecoveryReport, Shard, format};
use ringbase_storage::types::{Seqno, ShardId};

use crate::crash::{client, reported};
use crate::device::scratch;
use crate::world::{Model, OPTIONS, VBUCKETS, VbModel, check_recovered, check_view, default_bucket, rng};

/// A machine with real files: some shards on one ring.
struct Machine {
    host: BlockingHost,
    shards: Vec<Shard>,
}

fn open_file(host: &BlockingHost, path: &Path) -> Rc<dyn Device> {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let options = OpenOptions { create: true, ..OpenOptions::default() };
    let device = RingDevice::open(host.ring(), path, &options).unwrap();
    assert!(device.is_direct().unwrap(), "fcntl says that {} is not O_DIRECT", path.display());
    assert!(device.facts().registered);
    Rc::new(device)
}

fn files(host: &BlockingHost, directory: &Path, shard: u16) -> (Rc<dyn Device>, Rc<dyn Device>) {
    let directory = directory.join(format!("shard-{shard}"));
    (open_file(host, &directory.join("wal")), open_file(host, &directory.join("data")))
}

/// Formats `count` shards with one bucket.
fn format_all(directory: &Path, count: u16) {
    let host = BlockingHost::new(&RingConfig::default()).unwrap();
    for shard in 0..count {
        let (wal, data) = files(&host, directory, shard);
        let geometry = Geometry {
            shard: ShardId(shard),
            shard_count: count,
            vbucket_count: VBUCKETS,
            wal_segments: 4,
            wal_segment_bytes: 64 << 10,
        };
        let options = FormatOptions { geometry, grow_bytes: OPTIONS.grow_bytes };
        host.block_on(async {
            format(&host.env(), &wal, &data, options).await.unwrap();
            let cache = BlockCache::new(0);
            let (shard, _) = Shard::open(host.env(), wal, data, cache, OPTIONS).await.unwrap();
            shard.create_bucket(default_bucket()).await.unwrap();
            shard.close().await.unwrap();
            shard.detach();
        });
    }
}

/// A process starts: a new ring, all shards recovered.
fn start(directory: &Path, count: u16) -> (Machine, Vec<RecoveryReport>) {
    let host = BlockingHost::new(&RingConfig::default()).unwrap();
    let cache = BlockCache::new(128 << 10);
    let opened: Vec<(Shard, RecoveryReport)> = (0..count)
        .map(|shard| {
            let (wal, data) = files(&host, directory, shard);
            let open = Shard::open(host.env(), wal, data, cache.clone(), OPTIONS);
            host.block_on(open).unwrap()
        })
        .collect();
    let (shards, reports) = opened.into_iter().unzip();
    (Machine { host, shards }, reports)
}

impl Machine {
    /// A random client on every shard at once, until all are done.
    fn run_clients(&self, model: &Model, seed: u64, operations: u32) {
        let done: Vec<Rc<Cell<bool>>> = self.shards.iter().map(|_| Rc::default()).collect();
        for (n, (shard, done)) in self.shards.iter().zip(&done).enumerate() {
            let run = client(shard.clone(), model.clone(), seed + n as u64, done.clone(), operations);
            self.host.env().spawn("client", run);
        }
        self.host.block_on(async {
            while done.iter().any(|done| !done.get()) {
                self.host.env().spawn.sleep(std::time::Duration::from_millis(1)).await;
            }
        });
    }

    /// Compares everything that is readable with the model.
    fn check(&self, model: &Model, seed: u64) {
        let mut random = rng(seed);
        for store in self.shards.iter().flat_map(Shard::vbuckets) {
            let known = model.borrow()[store.id().0 as usize].clone();
            self.host.block_on(async {
                let view = store.open_view().await.unwrap();
                check_view(&view, &known, &mut random).await;
            });
        }
    }

    /// Compares what was recovered with the model and with what had been reported durable.
    fn check_recovered(&self, model: &Model, known: &[Vec<Seqno>], clean: bool) {
        for (shard, known) in self.shards.iter().zip(known) {
            for (store, known) in shard.vbuckets().iter().zip(known) {
                let mut vb = model.borrow()[store.id().0 as usize].clone();
                self.host.block_on(check_recovered(store, &mut vb, *known, clean));
                model.borrow_mut()[store.id().0 as usize] = vb;
            }
        }
    }

    fn reported(&self) -> Vec<Vec<Seqno>> {
        self.shards.iter().map(reported).collect()
    }

    /// The process stops: cleanly, or as it stands, with whatever is in flight.
    fn stop(self, clean: bool) -> Vec<Vec<Seqno>> {
        if clean {
            for shard in &self.shards {
                self.host.block_on(shard.close()).unwrap();
            }
        }
        let known = self.reported();
        let Machine { host, shards } = self;
        shards.iter().for_each(Shard::detach);
        drop(host);
        known
    }
}

fn new_model(machine: &Machine) -> Model {
    let model: Model = Rc::default();
    model.borrow_mut().resize(usize::from(VBUCKETS), VbModel::default());
    for store in machine.shards.iter().flat_map(Shard::vbuckets) {
        let uuids = store.failover_log().iter().map(|entry| entry.uuid.0).collect();
        model.borrow_mut()[store.id().0 as usize].uuids = uuids;
    }
    model
}

/// Lives and stops of `count` shards on one ring; everything is compared with the model after each start and before each stop.
fn live(seed: u64, count: u16) {
    let directory = scratch();
    format_all(directory.path(), count);
    let (mut machine, reports) = start(directory.path(), count);
    assert!(reports.iter().all(|report| report.clean));
    let model = new_model(&machine);
    for life in 0..3 {
        machine.run_clients(&model, seed * 100 + life * 10, 150);
        if life % 2 == 1 {
            for shard in &machine.shards {
                machine.host.block_on(shard.flush()).unwrap();
            }
        }
        machine.check(&model, seed + life);
        let stats = machine.host.ring().stats();
        let laps: u64 = machine.shards.iter().map(|shard| shard.stats().wal_head_blocks).sum();
        assert!(stats.bytes_written > 100_000 && stats.entries >= stats.operations, "{stats:?}");
        assert!(stats.enters > 0 && stats.completions > 0 && laps > 0, "{stats:?}");
        let clean = life == 1;
        let known = machine.stop(clean);
        let report = inspect_dir(directory.path(), &InspectOptions::default()).unwrap();
        assert!(!report.is_damaged(), "{:?}", report.shards.iter().map(|s| &s.damage).collect::<Vec<_>>());
        assert_eq!(report.shards.len(), usize::from(count));
        let reports;
        (machine, reports) = start(directory.path(), count);
        assert!(reports.iter().all(|report| report.clean == clean), "life {life}: {reports:?}");
        machine.check_recovered(&model, &known, clean);
        let before = machine.host.ring().stats().bytes_read;
        machine.check(&model, seed + life);
        assert!(machine.host.ring().stats().bytes_read > before, "a cold store is read from the device");
    }
    machine.stop(true);
}

/// G1: random operations, flushes, merges, views, scans in both orders, clean and unclean stops.
#[test]
fn the_engine_on_o_direct_files_holds_what_the_model_says() {
    for seed in 0..2 {
        live(seed, 1);
    }
}

#[test]
fn two_shards_on_one_ring_keep_apart() {
    live(10, 2);
}

/// A group commit is one write chained with one sync, however many documents it takes: the counters of the ring show it.
#[test]
fn a_group_commit_is_one_operation_on_the_ring() {
    let directory = scratch();
    format_all(directory.path(), 1);
    let (machine, _) = start(directory.path(), 1);
    let model = new_model(&machine);
    let store = machine.shards[0].vbuckets()[0].clone();
    let before = machine.host.ring().stats();
    machine.host.block_on(async {
        let mut last = Seqno(0);
        for n in 0..50 {
            let key = format!("\0key{n}");
            last = crate::world::put(&store, &model, key.as_bytes(), Some(&[7; 20])).await.unwrap();
        }
        assert!(store.wait_persisted(last).await);
    });
    let after = machine.host.ring().stats();
    assert!(after.operations - before.operations <= 3, "{before:?} {after:?}");
    let bytes = after.bytes_written - before.bytes_written;
    assert!((4096..=5 * 4096).contains(&bytes), "{bytes} bytes for 50 small documents");
    machine.stop(true);
}
