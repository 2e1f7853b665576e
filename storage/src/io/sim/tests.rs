//! Tests of the simulated disk.

use std::future::Future;

use super::*;

fn filled(device: &dyn Device, len: usize, value: u8) -> DmaBuffer {
    let mut buffer = device.buffer(len);
    buffer.fill(value);
    buffer
}

/// A disk with one file of `len` zero bytes, durable, and an executor for it.
fn disk_with_file(seed: u64, len: usize) -> (SimExecutor, SimDisk, Rc<dyn Device>) {
    let (sim, disk) = (SimExecutor::new(seed), SimDisk::new(seed));
    disk.attach(&sim);
    disk.set_image("file", vec![0; len]);
    let device = disk.open("file");
    (sim, disk, device)
}

#[test]
fn completed_write_can_be_lost_and_synced_write_never_is() {
    let mut lost = 0;
    for seed in 0..100 {
        let (sim, disk, device) = disk_with_file(seed, 8192);
        sim.block_on(async {
            device.write(0, filled(&*device, 4096, 1)).await.unwrap();
            device.sync().await.unwrap();
            device.write(4096, filled(&*device, 4096, 2)).await.unwrap();
        });
        disk.crash(seed);
        let image = disk.image("file");
        assert_eq!(image[..4096], [1; 4096], "seed {seed}");
        lost += usize::from(image[4096..] != [2; 4096]);
    }
    assert!((30..100).contains(&lost), "{lost} of 100 unsynced writes were damaged");
}

#[test]
fn durable_write_survives_every_crash_after_it_resolved() {
    for seed in 0..100 {
        let (sim, disk, device) = disk_with_file(seed, 4096);
        sim.block_on(device.write_durable(0, filled(&*device, 4096, 7))).unwrap();
        disk.crash(seed);
        assert_eq!(disk.image("file"), [7; 4096], "seed {seed}");
    }
}

#[test]
fn process_can_die_between_the_write_and_the_sync_of_a_durable_write() {
    let (sim, disk, device) = disk_with_file(5, 4096);
    disk.kill_after(2);
    assert!(sim.run_until(device.write_durable(0, filled(&*device, 4096, 7))).is_none());
    assert!(disk.is_killed() && sim.is_halted());
    assert_eq!(disk.image("file"), [7; 4096], "the write had completed");
    disk.crash_with(Crash::LoseAll, 1);
    assert_eq!(disk.image("file"), [0; 4096], "and was not durable");
}

#[test]
fn dropping_the_future_does_not_cancel_the_operation() {
    let (sim, disk, device) = disk_with_file(5, 4096);
    drop(device.write(0, filled(&*device, 4096, 7)));
    sim.run_until_idle();
    assert_eq!(disk.image("file"), [7; 4096]);
}

/// Writes, reads, syncs and crashes at random; returns both traces and what is left.
fn random_run(seed: u64) -> (u64, u64, Vec<u8>) {
    let (sim, disk, device) = disk_with_file(seed, 64 * 4096);
    disk.set_fault_rates(FaultRates {
        read_error: 0.02,
        write_error: 0.02,
        delay: 0.05,
        ..FaultRates::default()
    });
    for task in 0..4_u8 {
        let (env, device) = (sim.env(), Rc::clone(&device));
        sim.spawn(async move {
            for _ in 0..50 {
                let offset = env.random_u64() % 64 * 4096;
                match env.random_u64() % 4 {
                    0 => drop(device.read(offset, 4096).await),
                    1 => drop(device.sync().await),
                    _ => drop(device.write(offset, filled(&*device, 4096, task + 1)).await),
                }
            }
        });
    }
    sim.run_steps(300);
    disk.crash(seed);
    (sim.trace(), disk.trace(), disk.image("file"))
}

#[test]
fn same_seed_gives_the_same_trace_and_the_same_bytes() {
    for seed in 0..10 {
        assert_eq!(random_run(seed), random_run(seed), "seed {seed}");
    }
    assert_ne!(random_run(1).1, random_run(2).1);
}

#[test]
fn completions_arrive_out_of_order() {
    let (sim, _disk, device) = disk_with_file(5, 64 * 4096);
    let order = Rc::new(RefCell::new(Vec::new()));
    for block in 0..64 {
        let (read, order) = (device.read(block * 4096, 4096), Rc::clone(&order));
        sim.spawn(async move {
            read.await.unwrap();
            order.borrow_mut().push(block);
        });
    }
    sim.run_until_idle();
    assert_eq!(order.borrow().len(), 64);
    assert!(!order.borrow().is_sorted());
}

/// G7: a failed sync is never repeated as if it could succeed.
#[test]
fn failed_sync_is_final_until_the_file_is_opened_after_a_crash() {
    let (sim, disk, device) = disk_with_file(5, 4096);
    disk.inject(Injection::next(Fault::SyncError));
    sim.block_on(async {
        device.write(0, filled(&*device, 4096, 7)).await.unwrap();
        assert!(device.sync().await.is_err());
        assert!(device.sync().await.is_err());
        assert!(device.write_durable(0, filled(&*device, 4096, 8)).await.is_err());
    });
    disk.crash_with(Crash::LoseAll, 1);
    let sim = SimExecutor::new(6);
    disk.attach(&sim);
    sim.block_on(disk.open("file").sync()).unwrap();
    assert_eq!(disk.image("file"), [0; 4096]);
}

#[test]
fn read_faults_fail_flip_once_or_flip_for_good() {
    let (sim, disk, device) = disk_with_file(5, 4096);
    let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
    sim.block_on(async {
        disk.inject(Injection::next(Fault::ReadError));
        assert_eq!(device.read(0, 4096).await.unwrap_err().raw_os_error(), Some(libc::EIO));
        disk.inject(Injection::next(Fault::BitFlip));
        assert_eq!(ones(&device.read(0, 4096).await.unwrap()), 1);
        assert_eq!(ones(&device.read(0, 4096).await.unwrap()), 0);
        disk.inject(Injection::next(Fault::BitRot));
        assert_eq!(ones(&device.read(0, 4096).await.unwrap()), 1);
        assert_eq!(ones(&device.read(0, 4096).await.unwrap()), 1);
    });
    disk.crash_with(Crash::LoseAll, 1);
    assert_eq!(ones(&disk.image("file")), 1);
}

#[test]
fn write_faults_fail_vanish_or_land_elsewhere() {
    let (sim, disk, device) = disk_with_file(5, 64 * 4096);
    let write = |value| device.write(0, filled(&*device, 4096, value));
    sim.block_on(async {
        disk.inject(Injection::next(Fault::WriteError));
        assert_eq!(write(1).await.unwrap_err().raw_os_error(), Some(libc::EIO));
        disk.inject(Injection::next(Fault::LostWrite));
        write(2).await.unwrap();
        assert!(!disk.image("file").contains(&2));
        disk.inject(Injection::next(Fault::MisdirectedWrite));
        write(3).await.unwrap();
        let image = disk.image("file");
        assert!(!image[..4096].contains(&3) && image[4096..].contains(&3));
    });
    assert_eq!(disk.stats().faults, 3);
}

#[test]
fn growth_is_zeroed_refused_beyond_the_capacity_and_durable_only_after_a_sync() {
    let (sim, disk, device) = disk_with_file(5, 4096);
    disk.set_capacity(Some(12_288));
    sim.block_on(async {
        device.grow(8192).await.unwrap();
        assert_eq!(device.len_bytes(), 8192);
        device.sync().await.unwrap();
        device.grow(12_288).await.unwrap();
        assert_eq!(*device.read(8192, 4096).await.unwrap(), [0; 4096]);
        assert_eq!(device.grow(16_384).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(device.len_bytes(), 12_288);
    });
    disk.crash_with(Crash::LoseAll, 1);
    assert_eq!(disk.open("file").len_bytes(), 8192);
}

#[test]
fn reads_and_writes_beyond_the_end_are_refused() {
    let (sim, _disk, device) = disk_with_file(5, 4096);
    sim.block_on(async {
        assert_eq!(device.read(4096, 4096).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let buffer = filled(&*device, 8192, 1);
        assert_eq!(device.write(0, buffer).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    });
}

#[test]
fn operations_of_a_dead_process_never_complete() {
    let (sim, disk, device) = disk_with_file(5, 4096);
    drop(device.write(0, filled(&*device, 4096, 7)));
    disk.crash_with(Crash::LoseAll, 1);
    let count = disk.operations();
    disk.attach(&sim);
    assert!(sim.run_until(device.write(0, filled(&*device, 4096, 7))).is_none());
    assert_eq!(disk.operations(), count);
    assert_eq!(disk.image("file"), [0; 4096]);
}

#[test]
fn destructors_of_a_dead_process_do_not_reach_the_disk() {
    struct WritesWhenDropped(Rc<dyn Device>);
    impl Drop for WritesWhenDropped {
        fn drop(&mut self) {
            drop(self.0.write(0, filled(&*self.0, 4096, 9)));
        }
    }
    let (sim, disk, device) = disk_with_file(5, 4096);
    let held = WritesWhenDropped(device);
    sim.spawn(async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    sim.run_until_idle();
    sim.halt();
    drop(sim);
    disk.crash_with(Crash::KeepAll, 1);
    assert!(disk.image("file").iter().all(|&byte| byte == 0));
}

/// Polls until the executor is idle; a read beside a write must see every sector old or new.
#[test]
fn read_beside_a_write_sees_whole_sectors() {
    let mut mixed = 0;
    for seed in 0..100 {
        let (sim, _disk, device) = disk_with_file(seed, 4096);
        let write = device.write(0, filled(&*device, 4096, 1));
        let read = sim.block_on(device.read(0, 4096)).unwrap();
        sim.block_on(write).unwrap();
        for sector in read.chunks(SECTOR_BYTES) {
            assert!(sector.iter().all(|&byte| byte == sector[0]));
        }
        mixed += usize::from(read[..] != [0; 4096] && read[..] != [1; 4096]);
    }
    assert!(mixed > 10, "only {mixed} of 100 reads saw a mixture");
}

#[test]
fn killed_process_leaves_completed_writes_visible_to_the_next_and_still_unsynced() {
    let (sim, disk, device) = disk_with_file(5, 8192);
    sim.block_on(device.write(0, filled(&*device, 4096, 7))).unwrap();
    drop(device.write(4096, filled(&*device, 4096, 8)));
    disk.kill_process(3);
    drop(sim);
    let sim = SimExecutor::new(6);
    disk.attach(&sim);
    let device = disk.open("file");
    assert_eq!(*sim.block_on(device.read(0, 4096)).unwrap(), [7; 4096]);
    disk.crash_with(Crash::LoseAll, 4);
    assert_eq!(disk.image("file"), [0; 8192]);
}

#[test]
fn every_operation_can_be_the_last() {
    fn scenario(device: &Rc<dyn Device>) -> impl Future<Output = ()> + use<> {
        let device = Rc::clone(device);
        async move {
            for block in 0..4 {
                device.write_durable(block * 4096, filled(&*device, 4096, 1)).await.unwrap();
                device.read(block * 4096, 4096).await.unwrap();
            }
        }
    }
    for last in 1..=12 {
        let (sim, disk, device) = disk_with_file(last, 16_384);
        disk.kill_after(last);
        assert!(sim.run_until(scenario(&device)).is_none(), "operation {last}");
        assert_eq!(disk.operations(), last);
    }
    let (sim, disk, device) = disk_with_file(1, 16_384);
    disk.kill_after(13);
    assert!(sim.run_until(scenario(&device)).is_some());
}

/// What the owner of a block knows of its versions.
#[derive(Default, Clone, Copy)]
struct Versions {
    issued: u8,
    completed: u8,
    durable: u8,
}

/// G1, G4 at the level of the disk: eight writers raise the version of their block, two tasks sync, the power fails anywhere.
/// Each sector then holds a version not older than the last one that a completed sync covered, and not newer than the last
/// one issued; and crashes do tear blocks, else this test would show nothing.
#[test]
fn after_a_crash_anywhere_each_sector_holds_a_version_between_synced_and_issued() {
    let (mut torn, mut lost) = (0, 0);
    for seed in 0..300 {
        let (sim, disk, device) = disk_with_file(seed, 8 * 4096);
        let versions = Rc::new(RefCell::new([Versions::default(); 8]));
        for block in 0..8 {
            let (env, device, versions) = (sim.env(), Rc::clone(&device), Rc::clone(&versions));
            sim.spawn(async move {
                for version in 1..=200 {
                    versions.borrow_mut()[block].issued = version;
                    let buffer = filled(&*device, 4096, version);
                    if env.random_u64().is_multiple_of(4) {
                        device.write_durable(block as u64 * 4096, buffer).await.unwrap();
                        versions.borrow_mut()[block].durable = version;
                    } else {
                        device.write(block as u64 * 4096, buffer).await.unwrap();
                    }
                    versions.borrow_mut()[block].completed = version;
                }
            });
        }
        for _ in 0..2 {
            let (device, versions) = (Rc::clone(&device), Rc::clone(&versions));
            sim.spawn(async move {
                loop {
                    let covered = *versions.borrow();
                    device.sync().await.unwrap();
                    for (now, covered) in versions.borrow_mut().iter_mut().zip(covered) {
                        now.durable = now.durable.max(covered.completed);
                    }
                }
            });
        }
        sim.run_steps(100 + seed * 7 % 1_500);
        drop(sim);
        let report = disk.crash(seed);
        lost += u32::from(report.lost_bytes > 0);
        let image = disk.image("file");
        for (block, versions) in versions.borrow().iter().enumerate() {
            let sectors: Vec<_> =
                image[block * 4096..][..4096].chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
            let allowed = versions.durable..=versions.issued;
            assert!(
                sectors.iter().all(|version| allowed.contains(version)),
                "seed {seed}, {report:?}: block {block} holds {sectors:?}, not {allowed:?}"
            );
            torn += u32::from(sectors.iter().any(|&version| version != sectors[0]));
        }
    }
    assert!(torn > 100 && lost > 100, "only {torn} blocks were torn, {lost} crashes lost anything");
}
