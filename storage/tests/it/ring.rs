//! The storage ring and its devices against the real kernel.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringbase_storage::io::Device;
use ringbase_storage::io::blocking::BlockingHost;
use ringbase_storage::io::device::{DeviceError, OpenOptions, RingDevice};
use ringbase_storage::io::ring::{Ring, RingConfig};
use ringbase_storage::metrics::{IoClass, SizeClass};

use crate::device::scratch;

fn host() -> BlockingHost {
    BlockingHost::new(&RingConfig::default()).expect("this kernel has io_uring")
}

fn create(len_bytes_min: u64) -> OpenOptions {
    OpenOptions { create: true, len_bytes_min, ..OpenOptions::default() }
}

#[test]
fn device_is_opened_for_direct_io_and_says_so() {
    let (host, directory) = (host(), scratch());
    let device = RingDevice::open(host.ring(), &directory.path().join("data"), &create(1 << 20)).unwrap();
    assert!(device.is_direct().unwrap());
    let facts = device.facts();
    assert!(facts.direct && !facts.block_device && facts.registered, "{facts:?}");
    for align in [facts.memory_align, facts.offset_align].into_iter().flatten() {
        assert!(align > 0 && align <= 4096, "{facts:?}");
    }
    assert_eq!(device.len_bytes(), 1 << 20);
}

#[test]
fn ring_registers_files_and_buffers_and_counts_what_it_does() {
    let (host, directory) = (host(), scratch());
    let facts = host.ring().facts().clone();
    assert_eq!((facts.entries, facts.completion_entries, facts.depth_max), (256, 512, 64));
    assert_eq!(facts.registered_files, 64);
    assert!(facts.registered_buffer_bytes > 0, "{facts:?}");

    let device = RingDevice::open(host.ring(), &directory.path().join("data"), &create(1 << 20)).unwrap();
    host.block_on(async {
        let writes: Vec<_> = (0..32).map(|block| device.write(block * 4096, device.buffer(4096))).collect();
        for write in writes {
            write.await.unwrap();
        }
        device.write_durable(0, device.buffer(16_384)).await.unwrap();
        device.read(0, 65_536).await.unwrap();
        device.sync().await.unwrap();
    });
    let stats = host.ring().stats();
    assert_eq!((stats.operations, stats.answered, stats.queued, stats.in_flight), (35, 35, 0, 0));
    assert_eq!((stats.entries, stats.completions), (36, 36), "a durable write is two entries");
    assert!(stats.enters < 16, "32 writes of one round share a system call: {stats:?}");
    assert_eq!((stats.bytes_written, stats.bytes_read), (32 * 4096 + 16_384, 65_536));
    assert_eq!((stats.in_flight_max, stats.queued_max, stats.arena_misses), (32, 32, 0));
    host.ring().with_metrics(|metrics| {
        for (class, size, histogram) in metrics.iter() {
            let expected = match (class, size) {
                (IoClass::Write, SizeClass::UpTo4K) => 32,
                (IoClass::DurableWrite, SizeClass::UpTo16K)
                | (IoClass::Read, SizeClass::UpTo64K)
                | (IoClass::Sync, SizeClass::UpTo4K) => 1,
                _ => 0,
            };
            assert_eq!(histogram.len(), expected, "{} {}", class.name(), size.name());
        }
    });
    assert!(!host.ring().has_pending());
}

#[test]
fn filesystem_without_direct_io_is_refused_with_advice() {
    let shm = std::path::Path::new("/dev/shm");
    let magic = rustix::fs::statfs(shm).map(|statfs| statfs.f_type);
    if magic != Ok(0x0102_1994) {
        eprintln!("skipped: /dev/shm is not a tmpfs here");
        return;
    }
    let directory = tempfile::tempdir_in(shm).unwrap();
    let path = directory.path().join("data");
    let host = host();
    let error = RingDevice::open(host.ring(), &path, &create(4096)).unwrap_err();
    assert!(matches!(error, DeviceError::NotDirect { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains(path.to_str().unwrap()) && message.contains("ext4"), "{message}");
    assert!(!path.exists(), "the refused file is left behind");
}

/// Sets a loop device up and takes it away again.
struct Loop(String);

impl Loop {
    fn over(path: &std::path::Path) -> Option<Loop> {
        let output =
            std::process::Command::new("losetup").args(["--find", "--show"]).arg(path).output().ok()?;
        output.status.success().then(|| Loop(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays", self.0);
    }
}

#[test]
fn block_device_is_a_device_of_fixed_length() {
    let directory = scratch();
    let file = directory.path().join("image");
    std::fs::write(&file, vec![0; 8 << 20]).unwrap();
    let Some(block_device) = Loop::over(&file) else {
        eprintln!("skipped: cannot set up a loop device here");
        return;
    };
    let host = host();
    let device = RingDevice::open(host.ring(), block_device.0.as_ref(), &create(8 << 20)).unwrap();
    assert!(device.facts().block_device && device.is_direct().unwrap());
    assert_eq!(device.len_bytes(), 8 << 20);
    host.block_on(async {
        let mut buffer = device.buffer(4096);
        buffer.fill(6);
        device.write_durable((8 << 20) - 4096, buffer).await.unwrap();
        assert_eq!(*device.read((8 << 20) - 4096, 4096).await.unwrap(), [6; 4096]);
        assert_eq!(device.grow(16 << 20).await.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    });
    let error = RingDevice::open(host.ring(), block_device.0.as_ref(), &create(16 << 20)).unwrap_err();
    assert!(matches!(error, DeviceError::Allocate { .. }), "{error}");
    drop(device);
}

#[test]
fn directories_missing_files_and_existing_ones_are_refused_by_name() {
    let (host, directory) = (host(), scratch());
    let path = directory.path().join("data");
    let open = |path, options: &OpenOptions| RingDevice::open(host.ring(), path, options);
    let missing = open(&path, &OpenOptions::default()).unwrap_err();
    assert!(missing.to_string().contains(path.to_str().unwrap()), "{missing}");
    assert!(matches!(open(directory.path(), &create(0)), Err(DeviceError::Open { .. })));
    open(&path, &create(0)).unwrap();
    let create_new = OpenOptions { create_new: true, ..OpenOptions::default() };
    assert!(matches!(open(&path, &create_new), Err(DeviceError::Open { .. })));
    assert!(open(std::path::Path::new("/dev/null"), &OpenOptions::default()).is_err());
}

#[test]
fn length_that_does_not_fit_is_refused_and_leaves_the_device_usable() {
    let (host, directory) = (host(), scratch());
    let path = directory.path().join("data");
    let device = RingDevice::open(host.ring(), &path, &create(8192)).unwrap();
    // More than ext4 or XFS can hold in a file.
    assert!(host.block_on(device.grow(1 << 62)).is_err());
    assert_eq!(device.len_bytes(), 8192);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
    host.block_on(device.write_durable(4096, device.buffer(4096))).unwrap();
    let error = RingDevice::open(host.ring(), &path, &create(1 << 62)).unwrap_err();
    assert!(matches!(error, DeviceError::Allocate { .. }), "{error}");
}

/// T3.18: what the kernel did in part is gone on with, unseen by who waits, and counted.
#[test]
fn a_read_that_was_done_in_part_is_gone_on_with_and_counted() {
    let (host, directory) = (host(), scratch());
    let path = directory.path().join("data");
    let device = RingDevice::open(host.ring(), &path, &create(65_536)).unwrap();
    assert_eq!(host.block_on(device.read(0, 65_536)).unwrap().len(), 65_536);
    assert_eq!(host.ring().stats().retries, 0);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
    let error = host.block_on(device.read(0, 65_536)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "nothing behind the first two blocks");
    let stats = host.ring().stats();
    assert_eq!((stats.retries, stats.overflows), (1, 0), "{stats:?}");
}

#[test]
fn file_cut_behind_our_back_gives_end_of_file_and_no_garbage() {
    let (host, directory) = (host(), scratch());
    let path = directory.path().join("data");
    let device = RingDevice::open(host.ring(), &path, &create(65_536)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10_000).unwrap();
    let error = host.block_on(device.read(0, 65_536)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(host.block_on(device.read(0, 8192)).unwrap().len(), 8192);
}

/// Kernel and slot table keep a buffer alive whose future, device and ring handle are gone.
#[test]
fn ring_dropped_with_operations_in_flight_reaps_them_first() {
    let directory = scratch();
    let path = directory.path().join("data");
    for round in 0..20 {
        let ring = Ring::new(&RingConfig::default()).unwrap();
        let device = RingDevice::open(&ring, &path, &create(8 << 20)).unwrap();
        for block in 0..64 {
            let mut buffer = device.buffer(65_536);
            buffer.fill(round + 1);
            drop(device.write(block * 65_536, buffer));
        }
        ring.submit().unwrap();
        drop(device);
        drop(ring);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[..64 * 65_536].iter().all(|&byte| byte == round + 1), "round {round}");
    }
}

#[test]
fn closed_files_give_their_place_in_the_table_back() {
    let (directory, config) = (scratch(), RingConfig { files_max: 2, ..RingConfig::default() });
    let host = BlockingHost::new(&config).unwrap();
    let open =
        |name: &str| RingDevice::open(host.ring(), &directory.path().join(name), &create(4096)).unwrap();
    for _ in 0..5 {
        let (first, second, third) = (open("first"), open("second"), open("third"));
        assert!(first.facts().registered && second.facts().registered && !third.facts().registered);
        for device in [&first, &second, &third] {
            host.block_on(device.write_durable(0, device.buffer(4096))).unwrap();
        }
    }
}

#[test]
fn buffer_of_one_ring_can_be_written_through_another() {
    let (one, other, directory) = (host(), host(), scratch());
    let device_of_one = RingDevice::open(one.ring(), &directory.path().join("one"), &create(4096)).unwrap();
    let device_of_other =
        RingDevice::open(other.ring(), &directory.path().join("other"), &create(4096)).unwrap();
    let mut buffer = device_of_one.buffer(4096);
    buffer.fill(3);
    other.block_on(device_of_other.write(0, buffer)).unwrap();
    assert_eq!(*other.block_on(device_of_other.read(0, 4096)).unwrap(), [3; 4096]);
}

#[test]
fn host_is_told_once_when_the_queue_starts_to_fill() {
    let directory = scratch();
    let ring = Ring::new(&RingConfig::default()).unwrap();
    let told = Rc::new(Cell::new(0));
    let count = Rc::clone(&told);
    ring.set_on_queued(move || count.set(count.get() + 1));
    let device = RingDevice::open(&ring, &directory.path().join("data"), &create(1 << 20)).unwrap();
    let reads: Vec<_> = (0..3).map(|block| device.read(block * 4096, 4096)).collect();
    assert_eq!(told.get(), 1);
    assert!(ring.needs_submit() && ring.has_pending());
    assert_eq!(ring.submit().unwrap(), 3);
    assert!(!ring.needs_submit());
    drop(device.read(0, 4096));
    assert_eq!(told.get(), 2);
    drop(reads);
}

#[test]
fn event_fd_becomes_readable_when_something_has_completed() {
    let directory = scratch();
    let ring = Ring::new(&RingConfig::default()).unwrap();
    let device = RingDevice::open(&ring, &directory.path().join("data"), &create(1 << 20)).unwrap();
    let event_fd = ring.event_fd();
    let readable = |timeout_ms: i64| {
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: timeout_ms * 1_000_000 };
        let mut fds = [rustix::event::PollFd::new(&event_fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 1
    };
    assert!(!readable(0));
    let read = device.read(0, 4096);
    ring.submit().unwrap();
    assert!(readable(900), "no completion within 900 ms");
    assert_eq!(ring.drain().unwrap(), 1);
    drop(read);
}

#[test]
fn at_most_the_depth_is_in_flight_and_syncs_overtake_what_waits() {
    let (directory, config) = (scratch(), RingConfig { depth_max: 4, ..RingConfig::default() });
    let host = BlockingHost::new(&config).unwrap();
    let device = RingDevice::open(host.ring(), &directory.path().join("data"), &create(1 << 20)).unwrap();
    let reads: Vec<_> = (0..256).map(|block| device.read(block * 4096, 4096)).collect();
    assert_eq!(host.ring().submit().unwrap(), 4, "as many reads as the depth allows");
    let syncs: Vec<_> = (0..3).map(|_| device.sync()).collect();
    assert!(host.ring().needs_submit());
    assert_eq!(host.ring().submit().unwrap(), 3, "every sync, before the rest of the reads");
    let stats = host.ring().stats();
    assert_eq!((stats.in_flight, stats.queued, stats.queued_max), (7, 252, 256));
    host.block_on(async {
        for read in reads {
            read.await.unwrap();
        }
        for sync in syncs {
            sync.await.unwrap();
        }
    });
    assert_eq!(host.ring().stats().in_flight_max, 7);
}

#[test]
fn short_of_locked_memory_the_ring_runs_with_fewer_registered_buffers_and_says_so() {
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root is not held to RLIMIT_MEMLOCK");
        return;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    let bytes = limit.current.unwrap_or(u64::MAX).min(8 << 20);
    let limit = rustix::process::Rlimit { current: Some(bytes), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Memlock, limit).unwrap();
    let (config, directory) = (RingConfig { arena_bytes: 64 << 20, ..RingConfig::default() }, scratch());
    let host = BlockingHost::new(&config).unwrap();
    let facts = host.ring().facts().clone();
    eprintln!("{facts:?}");
    assert!(facts.registered_buffer_bytes < 8 << 20, "{facts:?}");
    assert!(facts.unregistered_because.is_some(), "{facts:?}");
    let device = RingDevice::open(host.ring(), &directory.path().join("data"), &create(1 << 20)).unwrap();
    host.block_on(device.write_durable(0, device.buffer(4096))).unwrap();
}

#[test]
fn buffers_beyond_the_rings_memory_come_from_the_heap_and_work() {
    let (config, directory) = (RingConfig { arena_bytes: 1 << 20, ..RingConfig::default() }, scratch());
    let host = BlockingHost::new(&config).unwrap();
    let device = RingDevice::open(host.ring(), &directory.path().join("data"), &create(4 << 20)).unwrap();
    let buffers: Vec<_> = (0..8).map(|_| device.buffer(262_144)).collect();
    host.block_on(async {
        let writes: Vec<_> =
            (0..).zip(buffers).map(|(index, buffer)| device.write(index * 262_144, buffer)).collect();
        for write in writes {
            write.await.unwrap();
        }
    });
    assert_eq!(host.ring().stats().arena_misses, 4);
}

#[test]
fn blocking_host_runs_tasks_timers_and_wake_ups_from_other_threads() {
    let host = host();
    let order = Rc::new(RefCell::new(Vec::new()));
    for delay_ms in [30, 10, 20] {
        let (env, order) = (host.env(), Rc::clone(&order));
        host.env().spawn("sleeper", async move {
            env.spawn.sleep(Duration::from_millis(delay_ms)).await;
            order.borrow_mut().push(delay_ms);
        });
    }
    let started = Instant::now();
    host.block_on(host.env().spawn.sleep(Duration::from_millis(60)));
    assert!(started.elapsed() >= Duration::from_millis(60));
    assert_eq!(*order.borrow(), [10, 20, 30]);

    let mut helper = None;
    let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    host.block_on(std::future::poll_fn(|context| {
        if flag.load(std::sync::atomic::Ordering::SeqCst) {
            return std::task::Poll::Ready(());
        }
        if helper.is_none() {
            let (waker, flag) = (context.waker().clone(), std::sync::Arc::clone(&flag));
            helper = Some(std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                flag.store(true, std::sync::atomic::Ordering::SeqCst);
                waker.wake();
            }));
        }
        std::task::Poll::Pending
    }));
    helper.unwrap().join().unwrap();
}

#[test]
fn host_dropped_with_tasks_waiting_for_the_disk_drops_them() {
    let directory = scratch();
    let witness = Rc::new(());
    let host = host();
    let device: Rc<dyn Device> =
        Rc::new(RingDevice::open(host.ring(), &directory.path().join("data"), &create(1 << 20)).unwrap());
    let (held, env, task_device) = (Rc::clone(&witness), host.env(), Rc::clone(&device));
    host.env().spawn("reader", async move {
        let _held = held;
        loop {
            task_device.read(0, 4096).await.unwrap();
            env.relax().await;
        }
    });
    host.block_on(host.env().spawn.sleep(Duration::from_millis(5)));
    assert_eq!(Rc::strong_count(&witness), 2);
    drop(device);
    drop(host);
    assert_eq!(Rc::strong_count(&witness), 1);
}
