//! A simulated disk: named files over memory, with seeded delays, faults and crashes.
//!
//! A [`SimDisk`] outlives the [`SimExecutor`] that drives its completions: attach it, open devices, run, crash, drop
//! the executor, make the next one, attach again. Devices opened before a crash never complete anything any more.
//!
//! Invariants
//! - A completed write is visible and *not* durable; a completed sync makes durable what had completed on that file
//!   before it was started. Operations complete in a random order.
//! - A read that runs beside a write of the same sectors sees each sector old or new.
//! - A write to a place beyond the end of the file is refused; only `grow` makes a file longer.
//! - The same seeds, faults and calls give the same [`SimDisk::trace`].
//!
//! Cost: about 1 µs and three copies of the bytes a write.
//!
//! Does not know: what the bytes mean, real files.
//!
//! [`SimExecutor`]: crate::env::sim::SimExecutor

mod fault;
mod image;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::completion::{Promise, promise};
use super::{BLOCK_BYTES, Device, DmaBuffer};
use crate::env::LocalFuture;
use crate::env::sim::{Core, SimExecutor, mix};

pub use fault::{Fault, FaultRates, Injection, OperationKind};
pub use image::{Crash, CrashReport, SECTOR_BYTES};

use fault::FaultPlan;
use image::{Change, Image, blend_in_flight};

/// What the disk has been asked to do so far, over all files and crashes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SimDiskStats {
    /// Reads started.
    pub reads: u64,
    /// Writes started, those of durable writes included.
    pub writes: u64,
    /// Syncs started, those of durable writes included.
    pub syncs: u64,
    /// Growths started.
    pub grows: u64,
    /// Bytes of writes started.
    pub bytes_written: u64,
    /// Bytes of reads started.
    pub bytes_read: u64,
    /// Faults that struck.
    pub faults: u64,
}

/// An operation between its start and its completion.
enum InFlight {
    Read {
        offset: usize,
        len: usize,
        done: Promise<io::Result<DmaBuffer>>,
    },
    Write {
        offset: usize,
        buffer: DmaBuffer,
        durable: bool,
        done: Promise<io::Result<DmaBuffer>>,
    },
    /// `buffer` is present when the sync ends a durable write.
    Sync {
        covered: u64,
        done: SyncDone,
    },
    Grow {
        len: usize,
        done: Promise<io::Result<()>>,
    },
}

enum SyncDone {
    Sync(Promise<io::Result<()>>),
    DurableWrite(DmaBuffer, Promise<io::Result<DmaBuffer>>),
}

impl SyncDone {
    fn fulfil(self, result: io::Result<()>) {
        match self {
            SyncDone::Sync(done) => done.fulfil(result),
            SyncDone::DurableWrite(buffer, done) => done.fulfil(result.map(|()| buffer)),
        }
    }
}

impl InFlight {
    fn kind(&self) -> OperationKind {
        match self {
            InFlight::Read { .. } => OperationKind::Read,
            InFlight::Write { .. } => OperationKind::Write,
            InFlight::Sync { .. } => OperationKind::Sync,
            InFlight::Grow { .. } => OperationKind::Grow,
        }
    }

    /// Offset and length in bytes; 0 and 0 for a sync.
    fn range(&self) -> (usize, usize) {
        match self {
            InFlight::Read { offset, len, .. } => (*offset, *len),
            InFlight::Write { offset, buffer, .. } => (*offset, buffer.len()),
            InFlight::Sync { .. } => (0, 0),
            InFlight::Grow { len, .. } => (*len, 0),
        }
    }

    /// What the medium may see of it if the process dies now.
    fn into_change(self) -> Option<Change> {
        match self {
            InFlight::Write { offset, buffer, .. } => Some(Change::Write { offset, bytes: buffer.to_vec() }),
            InFlight::Grow { len, .. } => Some(Change::Grow { len }),
            InFlight::Read { .. } | InFlight::Sync { .. } => None,
        }
    }
}

#[derive(Default)]
struct SimFile {
    image: Image,
    in_flight: BTreeMap<u64, InFlight>,
    /// A sync of this file has failed since it was last opened after a crash.
    sync_failed: bool,
}

struct Disk {
    random: Xoshiro256PlusPlus,
    /// Absent until an executor is attached.
    timeline: Option<Weak<Core>>,
    /// Raised by every crash: devices of an older one are dead.
    incarnation: u64,
    files: BTreeMap<String, SimFile>,
    faults: FaultPlan,
    latency_us: (u64, u64),
    capacity_bytes: Option<u64>,
    operations: u64,
    kill_at: Option<u64>,
    killed: bool,
    stats: SimDiskStats,
    trace: u64,
}

impl Disk {
    fn note(&mut self, number: u64) {
        self.trace = mix(self.trace, number);
    }

    fn len_all_files(&self) -> u64 {
        self.files.values().map(|file| file.image.view().len() as u64).sum()
    }

    fn count(&mut self, operation: &InFlight) {
        let len = operation.range().1 as u64;
        match operation.kind() {
            OperationKind::Read => {
                self.stats.reads += 1;
                self.stats.bytes_read += len;
            }
            OperationKind::Write => {
                self.stats.writes += 1;
                self.stats.bytes_written += len;
            }
            OperationKind::Sync => self.stats.syncs += 1,
            OperationKind::Grow => self.stats.grows += 1,
        }
    }
}

/// A disk that survives the processes that use it. Cheap to clone; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    disk: Rc<RefCell<Disk>>,
}

impl SimDisk {
    /// An empty disk whose delays, orders and fault draws follow from `seed`. [`SimDisk::attach`] comes next.
    #[must_use]
    pub fn new(seed: u64) -> SimDisk {
        SimDisk {
            disk: Rc::new(RefCell::new(Disk {
                random: Xoshiro256PlusPlus::seed_from_u64(seed),
                timeline: None,
                incarnation: 0,
                files: BTreeMap::new(),
                faults: FaultPlan::default(),
                latency_us: (10, 200),
                capacity_bytes: None,
                operations: 0,
                kill_at: None,
                killed: false,
                stats: SimDiskStats::default(),
                trace: 0,
            })),
        }
    }

    /// Completions come on this executor's timeline from now on.
    pub fn attach(&self, executor: &SimExecutor) {
        self.disk.borrow_mut().timeline = Some(Rc::downgrade(executor.core()));
    }

    /// Opens a file, empty and of length 0 if there was none.
    #[must_use]
    pub fn open(&self, name: &str) -> Rc<dyn Device> {
        let mut disk = self.disk.borrow_mut();
        let len = disk.files.entry(name.to_owned()).or_default().image.view().len();
        Rc::new(SimDevice {
            name: name.to_owned(),
            disk: Rc::clone(&self.disk),
            incarnation: disk.incarnation,
            len_bytes: Rc::new(Cell::new(len as u64)),
        })
    }

    /// Whether there is such a file.
    #[must_use]
    pub fn exists(&self, name: &str) -> bool {
        self.disk.borrow().files.contains_key(name)
    }

    /// The names of all files, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.disk.borrow().files.keys().cloned().collect()
    }

    /// The bytes of a file as a read would see them; empty if there is none.
    #[must_use]
    pub fn image(&self, name: &str) -> Vec<u8> {
        self.disk.borrow().files.get(name).map(|file| file.image.view().to_vec()).unwrap_or_default()
    }

    /// Replaces or creates a file, durably: for tests that damage one.
    ///
    /// # Panics
    /// If operations on it are in flight, or `bytes` is not whole blocks.
    pub fn set_image(&self, name: &str, bytes: Vec<u8>) {
        assert!(
            bytes.len().is_multiple_of(BLOCK_BYTES),
            "image of {} bytes is not whole blocks",
            bytes.len()
        );
        let mut disk = self.disk.borrow_mut();
        let file = disk.files.entry(name.to_owned()).or_default();
        assert!(file.in_flight.is_empty(), "operations on {name} are in flight");
        file.image = Image::holding(bytes);
    }

    /// The power fails, [`Crash::Random`]. See [`SimDisk::crash_with`].
    pub fn crash(&self, seed: u64) -> CrashReport {
        self.crash_with(Crash::Random, seed)
    }

    /// The power fails: operations in flight vanish, unsynced writes survive as `crash` says, drawn from `seed`.
    /// Rates and injections are cleared; open devices are dead. Drop the executor, then attach a new one.
    pub fn crash_with(&self, crash: Crash, seed: u64) -> CrashReport {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut total = CrashReport { crash, kept_bytes: 0, lost_bytes: 0 };
        // Promises are dropped after the borrow ends: a waiter may hold a device.
        let vanished = {
            let disk = &mut *self.disk.borrow_mut();
            disk.note(mix(seed, disk.operations));
            let mut vanished = Vec::new();
            for file in disk.files.values_mut() {
                let (changes, rest) = take_in_flight(file);
                vanished.extend(rest);
                let report = file.image.crash(total.crash, changes, &mut random);
                total.crash = report.crash;
                total.kept_bytes += report.kept_bytes;
                total.lost_bytes += report.lost_bytes;
                file.sync_failed = false;
            }
            end_incarnation(disk);
            vanished
        };
        drop(vanished);
        total
    }

    /// The process dies and the machine lives: each sector in flight arrives or not, completed writes stay visible
    /// and unsynced. Rates and injections are cleared; open devices are dead.
    pub fn kill_process(&self, seed: u64) {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let vanished = {
            let disk = &mut *self.disk.borrow_mut();
            disk.note(mix(seed, disk.operations));
            let mut vanished = Vec::new();
            for file in disk.files.values_mut() {
                let (changes, rest) = take_in_flight(file);
                vanished.extend(rest);
                file.image.kill_process(changes, &mut random);
                file.sync_failed = false;
            }
            end_incarnation(disk);
            vanished
        };
        drop(vanished);
    }

    /// The attached executor halts as the `count`th operation from now is started, counted from 1; that operation
    /// is then in flight, none after it is. A durable write counts as two: its write, then its sync.
    ///
    /// # Panics
    /// If `count` is 0.
    pub fn kill_after(&self, count: u64) {
        assert!(count > 0, "operations are counted from 1");
        let mut disk = self.disk.borrow_mut();
        disk.kill_at = Some(disk.operations + count);
    }

    /// Whether [`SimDisk::kill_after`] has struck since the last crash.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.disk.borrow().killed
    }

    /// Operations started so far, over all files and crashes.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.disk.borrow().operations
    }

    /// Counters by kind.
    #[must_use]
    pub fn stats(&self) -> SimDiskStats {
        self.disk.borrow().stats
    }

    /// A number that depends on every operation, its time and its result so far.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.disk.borrow().trace
    }

    /// Sets the rates of random faults, until the next crash.
    pub fn set_fault_rates(&self, rates: FaultRates) {
        self.disk.borrow_mut().faults.rates = rates;
    }

    /// Adds one exact fault, until it has struck or the next crash.
    pub fn inject(&self, injection: Injection) {
        self.disk.borrow_mut().faults.injections.push(injection);
    }

    /// Takes back all rates and injections.
    pub fn clear_faults(&self) {
        self.disk.borrow_mut().faults = FaultPlan::default();
    }

    /// Each operation takes a random time between these. The default is 10 to 200 µs.
    ///
    /// # Panics
    /// If `min` is greater than `max`.
    pub fn set_latency(&self, min: Duration, max: Duration) {
        assert!(min <= max, "latency from {min:?} to {max:?}");
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 2_000);
        self.disk.borrow_mut().latency_us = (micros(min), micros(max));
    }

    /// All files together may grow to this many bytes; beyond it `grow` fails with ENOSPC. `None`: no limit.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.disk.borrow_mut().capacity_bytes = capacity_bytes;
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let disk = self.disk.borrow();
        write!(f, "SimDisk({} operations, trace {:016x})", disk.operations, disk.trace)
    }
}

fn take_in_flight(file: &mut SimFile) -> (Vec<Change>, Vec<InFlight>) {
    let (mut changes, mut rest) = (Vec::new(), Vec::new());
    for operation in std::mem::take(&mut file.in_flight).into_values() {
        match operation {
            InFlight::Write { .. } | InFlight::Grow { .. } => changes.extend(operation.into_change()),
            InFlight::Read { .. } | InFlight::Sync { .. } => rest.push(operation),
        }
    }
    (changes, rest)
}

fn end_incarnation(disk: &mut Disk) {
    disk.incarnation += 1;
    disk.timeline = None;
    disk.faults = FaultPlan::default();
    disk.kill_at = None;
    disk.killed = false;
}

/// One open file of a simulated disk.
struct SimDevice {
    name: String,
    disk: Rc<RefCell<Disk>>,
    incarnation: u64,
    /// Shared with growths in flight; raised when one completes.
    len_bytes: Rc<Cell<u64>>,
}

impl SimDevice {
    /// A handle that an operation in flight can keep.
    fn share(&self) -> SimDevice {
        SimDevice {
            name: self.name.clone(),
            disk: Rc::clone(&self.disk),
            incarnation: self.incarnation,
            len_bytes: Rc::clone(&self.len_bytes),
        }
    }

    fn start(&self, operation: InFlight) {
        let disk = &mut *self.disk.borrow_mut();
        if disk.incarnation != self.incarnation || disk.killed {
            return;
        }
        let timeline = disk.timeline.as_ref().expect("an executor is attached to the simulated disk");
        // Gone or halted: the process has died, and this is what its destructors still try.
        let Some(timeline) = timeline.upgrade().filter(|timeline| !timeline.is_halted()) else { return };
        disk.operations += 1;
        let id = disk.operations;
        disk.count(&operation);
        let (offset, len) = operation.range();
        disk.note(mix(timeline.now_ns(), (offset as u64) << 3 | operation.kind() as u64));
        let fault = disk.faults.draw(
            operation.kind(),
            &self.name,
            offset as u64..(offset + len) as u64,
            &mut disk.random,
        );
        let (min_us, max_us) = disk.latency_us;
        let mut delay_ns = disk.random.random_range(min_us * 1_000..=max_us * 1_000);
        if let Some(fault) = fault {
            disk.stats.faults += 1;
            if let Fault::Delay(duration) = fault {
                delay_ns = delay_ns.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
            }
        }
        let file = disk.files.get_mut(&self.name).expect("open files exist");
        file.in_flight.insert(id, operation);
        if disk.kill_at == Some(id) {
            disk.killed = true;
            timeline.halt();
        }
        let device = self.share();
        timeline.schedule(delay_ns, Box::new(move || device.complete(id, fault)));
    }

    fn complete(&self, id: u64, fault: Option<Fault>) {
        let mut guard = self.disk.borrow_mut();
        let disk = &mut *guard;
        if disk.incarnation != self.incarnation {
            return;
        }
        let now_ns = disk.timeline.as_ref().and_then(Weak::upgrade).map_or(0, |timeline| timeline.now_ns());
        disk.note(mix(now_ns, id));
        let available = disk.capacity_bytes.map(|capacity| capacity.saturating_sub(disk.len_all_files()));
        let file = disk.files.get_mut(&self.name).expect("open files exist");
        let random = &mut disk.random;
        match file.in_flight.remove(&id).expect("an operation completes once") {
            InFlight::Read { offset, len, done } => {
                let result = read(file, offset, len, fault, random);
                drop(guard);
                done.fulfil(result);
            }
            InFlight::Write { offset, buffer, durable, done } => {
                let result = write(file, offset, &buffer, fault, random);
                drop(guard);
                match result {
                    Ok(()) if durable => self.start_sync(SyncDone::DurableWrite(buffer, done)),
                    Ok(()) => done.fulfil(Ok(buffer)),
                    Err(error) => done.fulfil(Err(error)),
                }
            }
            InFlight::Sync { covered, done } => {
                if fault == Some(Fault::SyncError) {
                    file.sync_failed = true;
                }
                let result = if file.sync_failed {
                    Err(os_error(libc::EIO))
                } else {
                    file.image.persist(covered);
                    Ok(())
                };
                drop(guard);
                done.fulfil(result);
            }
            InFlight::Grow { len, done } => {
                let more = len.saturating_sub(file.image.view().len()) as u64;
                let full = available.is_some_and(|available| more > available);
                let result = if fault == Some(Fault::NoSpace) || full {
                    Err(os_error(libc::ENOSPC))
                } else {
                    file.image.grow(len);
                    self.len_bytes.set(file.image.view().len() as u64);
                    Ok(())
                };
                drop(guard);
                done.fulfil(result);
            }
        }
    }

    fn start_sync(&self, done: SyncDone) {
        let covered = {
            let disk = self.disk.borrow();
            disk.files.get(&self.name).expect("open files exist").image.change_count()
        };
        self.start(InFlight::Sync { covered, done });
    }

    fn start_write(
        &self,
        offset: u64,
        buffer: DmaBuffer,
        durable: bool,
    ) -> LocalFuture<'static, io::Result<DmaBuffer>> {
        assert_blocks(offset, buffer.len());
        if offset.saturating_add(buffer.len() as u64) > self.len_bytes.get() {
            let message =
                format!("write of {} bytes at {offset} beyond the end of {}", buffer.len(), self.name);
            return Box::pin(std::future::ready(Err(io::Error::new(io::ErrorKind::InvalidInput, message))));
        }
        let (done, completion) = promise();
        self.start(InFlight::Write { offset: to_index(offset), buffer, durable, done });
        Box::pin(completion)
    }
}

impl Device for SimDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes.get()
    }

    fn buffer(&self, len: usize) -> DmaBuffer {
        DmaBuffer::zeroed(len)
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'static, io::Result<DmaBuffer>> {
        assert_blocks(offset, len);
        if offset.saturating_add(len as u64) > self.len_bytes.get() {
            let message = format!("read of {len} bytes at {offset} beyond the end of {}", self.name);
            return Box::pin(std::future::ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))));
        }
        let (done, completion) = promise();
        self.start(InFlight::Read { offset: to_index(offset), len, done });
        Box::pin(completion)
    }

    fn write(&self, offset: u64, buffer: DmaBuffer) -> LocalFuture<'static, io::Result<DmaBuffer>> {
        self.start_write(offset, buffer, false)
    }

    fn write_durable(&self, offset: u64, buffer: DmaBuffer) -> LocalFuture<'static, io::Result<DmaBuffer>> {
        self.start_write(offset, buffer, true)
    }

    fn sync(&self) -> LocalFuture<'static, io::Result<()>> {
        let (done, completion) = promise();
        self.start_sync(SyncDone::Sync(done));
        Box::pin(completion)
    }

    fn grow(&self, len_bytes: u64) -> LocalFuture<'static, io::Result<()>> {
        assert_blocks(len_bytes, 0);
        let (done, completion) = promise();
        self.start(InFlight::Grow { len: to_index(len_bytes), done });
        Box::pin(completion)
    }
}

fn assert_blocks(offset: u64, len: usize) {
    assert!(
        offset.is_multiple_of(BLOCK_BYTES as u64) && len.is_multiple_of(BLOCK_BYTES),
        "{len} bytes at offset {offset} are not whole blocks"
    );
}

fn to_index(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files fit the address space")
}

fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn read(
    file: &mut SimFile,
    offset: usize,
    len: usize,
    fault: Option<Fault>,
    random: &mut Xoshiro256PlusPlus,
) -> io::Result<DmaBuffer> {
    match fault {
        Some(Fault::ReadError) => return Err(os_error(libc::EIO)),
        Some(Fault::ReadErrno(errno)) => return Err(os_error(errno)),
        Some(Fault::ShortRead) => return Err(io::ErrorKind::UnexpectedEof.into()),
        _ => {}
    }
    if len > 0 && fault == Some(Fault::BitRot) {
        file.image.flip_bit(offset + random.random_range(0..len), random.random_range(0..8));
    }
    let mut buffer = DmaBuffer::zeroed(len);
    buffer.copy_from_slice(&file.image.view()[offset..offset + len]);
    for operation in file.in_flight.values() {
        if let InFlight::Write { offset: write_offset, buffer: bytes, .. } = operation {
            blend_in_flight(&mut buffer, offset, *write_offset, bytes, random);
        }
    }
    if len > 0 && fault == Some(Fault::BitFlip) {
        buffer[random.random_range(0..len)] ^= 1 << random.random_range(0..8);
    }
    Ok(buffer)
}

fn write(
    file: &mut SimFile,
    offset: usize,
    bytes: &[u8],
    fault: Option<Fault>,
    random: &mut Xoshiro256PlusPlus,
) -> io::Result<()> {
    match fault {
        Some(Fault::WriteError) => {
            file.image.write_some_sectors(offset, bytes, random);
            return Err(os_error(libc::EIO));
        }
        Some(Fault::LostWrite) => {}
        Some(Fault::MisdirectedWrite) => {
            let block_count = (file.image.view().len() / BLOCK_BYTES).max(1);
            file.image.write(random.random_range(0..block_count) * BLOCK_BYTES, bytes);
        }
        Some(_) | None => file.image.write(offset, bytes),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
