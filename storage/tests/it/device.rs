//! One suite for every device: what the engine relies on holds for the ring and for the simulation alike.

use std::cell::Cell;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;

use ringbase_storage::env::Env;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::blocking::BlockingHost;
use ringbase_storage::io::device::{OpenOptions, RingDevice, prefill};
use ringbase_storage::io::ring::RingConfig;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::io::{BLOCK_BYTES, Device, DmaBuffer};

/// A place for the files of one test on a real filesystem; `/tmp` may be memory.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("device-")
        .tempdir_in(PathBuf::from(env!("CARGO_TARGET_TMPDIR")))
        .expect("the target directory is writable")
}

/// What a device needs around it.
enum Rig {
    Ring { host: BlockingHost, directory: tempfile::TempDir },
    Sim { sim: SimExecutor, disk: SimDisk },
}

impl Rig {
    fn ring(config: &RingConfig) -> Rig {
        Rig::Ring { host: BlockingHost::new(config).expect("this kernel has io_uring"), directory: scratch() }
    }

    fn sim() -> Rig {
        let (sim, disk) = (SimExecutor::new(1), SimDisk::new(1));
        disk.attach(&sim);
        Rig::Sim { sim, disk }
    }

    fn env(&self) -> Env {
        match self {
            Rig::Ring { host, .. } => host.env(),
            Rig::Sim { sim, .. } => sim.env(),
        }
    }

    fn open(&self, name: &str, len_bytes: u64) -> Rc<dyn Device> {
        match self {
            Rig::Ring { host, directory } => {
                let options =
                    OpenOptions { create: true, len_bytes_min: len_bytes, ..OpenOptions::default() };
                Rc::new(RingDevice::open(host.ring(), &directory.path().join(name), &options).unwrap())
            }
            Rig::Sim { sim, disk } => {
                let device = disk.open(name);
                sim.block_on(device.grow(len_bytes)).unwrap();
                device
            }
        }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        match self {
            Rig::Ring { host, .. } => host.block_on(future),
            Rig::Sim { sim, .. } => sim.block_on(future),
        }
    }
}

/// Bytes that tell their block and their round.
fn pattern(device: &dyn Device, block: u64, round: u8, len: usize) -> DmaBuffer {
    let mut buffer = device.buffer(len);
    for (index, word) in buffer.chunks_mut(8).enumerate() {
        let number = block.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (index as u64) << 8 ^ u64::from(round);
        word.copy_from_slice(&number.to_le_bytes());
    }
    buffer
}

fn round_trip(rig: &Rig) {
    let device = rig.open("file", 16 << 20);
    rig.run(async {
        for (block, len) in [(0, 4096), (1, 12_288), (64, 65_536), (512, 1 << 20), (1024, 3 << 20)] {
            let written = device.write(block * 4096, pattern(&*device, block, 1, len)).await.unwrap();
            assert_eq!(*written, *pattern(&*device, block, 1, len), "the writer gets its bytes back");
            let read = device.read(block * 4096, len).await.unwrap();
            assert_eq!(*read, *written, "{len} bytes at block {block}");
        }
        device.sync().await.unwrap();
    });
}

fn blocks_written_at_depth_by_many_tasks_are_all_found(rig: &Rig) {
    const TASKS: u64 = 200;
    const BLOCKS: u64 = 10;
    let device = rig.open("file", TASKS * BLOCKS * 4096);
    let left = Rc::new(Cell::new(TASKS));
    for task in 0..TASKS {
        let (device, left, env) = (Rc::clone(&device), Rc::clone(&left), rig.env());
        rig.env().spawn("writer", async move {
            for turn in 0..BLOCKS {
                let block = turn * TASKS + task;
                device.write(block * 4096, pattern(&*device, block, 2, 4096)).await.unwrap();
                env.relax().await;
                let read = device.read(block * 4096, 4096).await.unwrap();
                assert_eq!(*read, *pattern(&*device, block, 2, 4096), "block {block}");
            }
            left.set(left.get() - 1);
        });
    }
    let env = rig.env();
    rig.run(async {
        while left.get() > 0 {
            env.spawn.sleep(std::time::Duration::from_millis(1)).await;
        }
        for block in 0..TASKS * BLOCKS {
            let read = device.read(block * 4096, 4096).await.unwrap();
            assert_eq!(*read, *pattern(&*device, block, 2, 4096), "block {block}");
        }
    });
}

/// More operations at once than any queue has places for.
fn operations_beyond_the_depth_wait_and_complete(rig: &Rig) {
    let device = rig.open("file", 1000 * 4096);
    rig.run(async {
        let writes: Vec<_> =
            (0..1000).map(|block| device.write(block * 4096, pattern(&*device, block, 3, 4096))).collect();
        let syncs: Vec<_> = (0..40).map(|_| device.sync()).collect();
        for write in writes {
            write.await.unwrap();
        }
        for sync in syncs {
            sync.await.unwrap();
        }
        let reads: Vec<_> = (0..1000).map(|block| device.read(block * 4096, 4096)).collect();
        for (block, read) in reads.into_iter().enumerate() {
            assert_eq!(*read.await.unwrap(), *pattern(&*device, block as u64, 3, 4096));
        }
    });
}

fn grown_part_is_zero_and_growing_to_less_changes_nothing(rig: &Rig) {
    let device = rig.open("file", 8192);
    rig.run(async {
        device.grow(1 << 20).await.unwrap();
        assert_eq!(device.len_bytes(), 1 << 20);
        assert!(device.read(8192, (1 << 20) - 8192).await.unwrap().iter().all(|&byte| byte == 0));
        device.grow(4096).await.unwrap();
        assert_eq!(device.len_bytes(), 1 << 20);
        device.write((1 << 20) - 4096, pattern(&*device, 9, 1, 4096)).await.unwrap();
    });
}

fn durable_writes_at_depth_are_all_found(rig: &Rig) {
    let device = rig.open("file", 64 * 16_384);
    rig.run(async {
        let writes: Vec<_> = (0..64)
            .map(|index| device.write_durable(index * 16_384, pattern(&*device, index, 4, 16_384)))
            .collect();
        for write in writes {
            assert_eq!(write.await.unwrap().len(), 16_384);
        }
        for index in 0..64 {
            let read = device.read(index * 16_384, 16_384).await.unwrap();
            assert_eq!(*read, *pattern(&*device, index, 4, 16_384));
        }
    });
}

fn transfers_beyond_the_end_are_refused_and_harm_nothing(rig: &Rig) {
    let device = rig.open("file", 8192);
    rig.run(async {
        for (offset, len) in [(8192, 4096), (4096, 8192), (1 << 40, 4096), (u64::MAX - 4095, 4096)] {
            let error = device.read(offset, len).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "read of {len} at {offset}");
            let error = device.write(offset, device.buffer(len)).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "write of {len} at {offset}");
            assert!(device.write_durable(offset, device.buffer(len)).await.is_err());
        }
        device.write(4096, pattern(&*device, 1, 1, 4096)).await.unwrap();
        device.sync().await.unwrap();
    });
    assert_eq!(device.len_bytes(), 8192);
}

fn buffers_are_zero_even_after_others_used_the_memory(rig: &Rig) {
    let device = rig.open("file", 1 << 20);
    rig.run(async {
        for _ in 0..100 {
            let mut buffer = device.buffer(65_536);
            assert!(buffer.iter().all(|&byte| byte == 0));
            assert!(buffer.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
            buffer.fill(0xFF);
            drop(device.write(0, buffer).await.unwrap());
        }
    });
}

fn dropping_the_future_of_a_write_does_not_cancel_it(rig: &Rig) {
    let device = rig.open("file", 1 << 20);
    rig.run(async {
        for block in 0..100 {
            drop(device.write(block * 4096, pattern(&*device, block, 5, 4096)));
            drop(device.read(block * 4096, 4096));
        }
        rig.env().spawn.sleep(std::time::Duration::from_millis(500)).await;
        for block in 0..100 {
            let read = device.read(block * 4096, 4096).await.unwrap();
            assert_eq!(*read, *pattern(&*device, block, 5, 4096), "block {block}");
        }
    });
}

fn prefill_writes_zeros_over_its_range_and_nothing_else(rig: &Rig) {
    let len = 5 * (1 << 20) + 8192;
    let device = rig.open("file", len + 8192);
    rig.run(async {
        let mut old = device.buffer(len as usize + 8192);
        old.fill(7);
        device.write(0, old).await.unwrap();
        prefill(&*device, 4096, len).await.unwrap();
        let all = device.read(0, len as usize + 8192).await.unwrap();
        assert_eq!(all[..4096], [7; 4096]);
        assert!(all[4096..4096 + len as usize].iter().all(|&byte| byte == 0));
        assert_eq!(all[4096 + len as usize..], [7; 4096]);
    });
}

fn files_do_not_mix_and_are_found_again_by_name(rig: &Rig) {
    for (name, round) in [("one", 1), ("two", 2)] {
        let device = rig.open(name, 4096);
        assert!(device.name().ends_with(name));
        rig.run(device.write_durable(0, pattern(&*device, 0, round, 4096))).unwrap();
    }
    for (name, round) in [("two", 2), ("one", 1)] {
        let device = rig.open(name, 0);
        assert_eq!(device.len_bytes(), 4096);
        let read = rig.run(device.read(0, 4096)).unwrap();
        assert_eq!(*read, *pattern(&*device, 0, round, 4096));
    }
}

/// Runs each test on the ring, on a ring that nothing is registered with, and in the simulation.
macro_rules! on_every_device {
    ($($name:ident),* $(,)?) => {
        mod ring {
            $(#[test] fn $name() { super::$name(&super::Rig::ring(&super::RingConfig::default())); })*
        }
        mod unregistered_ring {
            $(#[test] fn $name() {
                let config = super::RingConfig { register: false, ..super::RingConfig::default() };
                super::$name(&super::Rig::ring(&config));
            })*
        }
        mod sim {
            $(#[test] fn $name() { super::$name(&super::Rig::sim()); })*
        }
    };
}

on_every_device!(
    round_trip,
    blocks_written_at_depth_by_many_tasks_are_all_found,
    operations_beyond_the_depth_wait_and_complete,
    grown_part_is_zero_and_growing_to_less_changes_nothing,
    durable_writes_at_depth_are_all_found,
    transfers_beyond_the_end_are_refused_and_harm_nothing,
    buffers_are_zero_even_after_others_used_the_memory,
    dropping_the_future_of_a_write_does_not_cancel_it,
    prefill_writes_zeros_over_its_range_and_nothing_else,
    files_do_not_mix_and_are_found_again_by_name,
);
