//! The storage ring: one io_uring per core, and the only home of `io_uring::`.
//!
//! Operations are queued by the devices and wait there until the host, at the end of its scheduling round, calls
//! [`Ring::submit`]: one system call for all of them. When [`Ring::event_fd`] becomes readable, or at any time
//! before, the host calls [`Ring::drain`], which answers what has completed, and then `submit` again for what had to wait
//! or be repeated. The ring awaits nothing and starts no thread.
//!
//! Invariants
//! - A buffer whose operation the kernel may still touch is owned by the slot table; dropping a future, or the device,
//!   does not free it. `Drop` reaps every completion first.
//! - At most `depth_max` operations are in flight, syncs and durable writes apart ([`URGENT_DEPTH`] more): they overtake the
//!   queue. The queue itself is bounded by its callers.
//! - Files and buffers are registered if the kernel lets us; [`RingFacts`] says what it did.
//!
//! Cost: one system call a round each way; one allocation an operation. Idle, it costs nothing.
//!
//! Does not know: what the bytes mean, who its host is.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::EventfdFlags;

use super::buffer::{Arena, LEASE_BYTES_MAX};
use super::operation::{Answer, FileSyncs, Next, Operation, OperationKind, Outcome, Part};
use super::{BLOCK_BYTES, DmaBuffer};
use crate::metrics::DeviceMetrics;

pub use super::ring_config::{RingConfig, RingError, RingFacts, RingStats};

/// Syncs and durable writes that may be in flight beyond the depth of everything else.
pub const URGENT_DEPTH: u32 = 16;
/// The longest transfer of one entry, in bytes; longer ones go on where it stopped.
const TRANSFER_BYTES_MAX: usize = 1 << 30;
/// How often a system call that a signal interrupts is repeated at once.
const ENTER_TRIES: u32 = 4;
/// Below this an arena is not worth registering, in bytes.
const ARENA_BYTES_MIN: usize = LEASE_BYTES_MAX;

/// A file the ring reads and writes. The ring and the operations in flight share it with its device.
pub(crate) struct RingFile {
    fd: OwnedFd,
    /// Its place in the table of registered files.
    fixed: Option<u32>,
    /// Where that place is given back; see [`Ring::submit`].
    retired: Rc<RefCell<Vec<u32>>>,
    syncs: RefCell<FileSyncs>,
    /// Growths started and not ended.
    growing: Cell<u32>,
    /// What may be read and written, in bytes.
    pub(crate) len_bytes: Cell<u64>,
}

impl RingFile {
    /// The file itself.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A growth has ended. A failed one may have left a part behind, which would fill the disk for nothing.
    fn end_growth(&self, len_bytes: Option<u64>) {
        self.growing.set(self.growing.get() - 1);
        match len_bytes {
            Some(len_bytes) => self.len_bytes.set(self.len_bytes.get().max(len_bytes)),
            None if self.growing.get() == 0 => {
                if let Err(error) = rustix::fs::ftruncate(&self.fd, self.len_bytes.get()) {
                    tracing::warn!(%error, len_bytes = self.len_bytes.get(), "cannot cut back a file that did not grow");
                }
            }
            None => {}
        }
    }

    /// Whether the kernel has it registered.
    pub(crate) fn is_registered(&self) -> bool {
        self.fixed.is_some()
    }
}

impl Drop for RingFile {
    fn drop(&mut self) {
        self.retired.borrow_mut().extend(self.fixed);
    }
}

pub(crate) type RingOperation = Operation<RingFile>;

/// An operation that has ended and whose waiter is to be told.
type Ended = (Answer, Option<DmaBuffer>, io::Result<()>);

struct Inner {
    uring: IoUring,
    slots: Vec<Option<RingOperation>>,
    free_slots: Vec<u32>,
    urgent: VecDeque<RingOperation>,
    queue: VecDeque<RingOperation>,
    handed: Handed,
    free_files: Vec<u32>,
    completions: Vec<(u64, i32)>,
    arena: Rc<Arena>,
    /// Whether the kernel has the arena registered, as buffer 0.
    arena_registered: bool,
    stats: RingStats,
    metrics: DeviceMetrics,
}

/// One io_uring and what is in flight in it. Shared by the devices of a core; stays on its thread.
pub struct Ring {
    inner: RefCell<Inner>,
    arena: Rc<Arena>,
    event_fd: OwnedFd,
    retired_files: Rc<RefCell<Vec<u32>>>,
    on_queued: RefCell<Option<Rc<dyn Fn()>>>,
    ended: RefCell<Vec<Ended>>,
    facts: RingFacts,
}

/// Builds an entry for a file, registered or not.
macro_rules! entry {
    ($file:expr, $fd:ident => $entry:expr) => {
        match $file.fixed {
            Some(index) => {
                let $fd = types::Fixed(index);
                $entry
            }
            None => {
                let $fd = types::Fd($file.fd.as_raw_fd());
                $entry
            }
        }
    };
}

impl Ring {
    /// Sets up a ring for the calling thread, which must be the one to use it.
    ///
    /// # Errors
    /// `Forbidden`, `Resources`: the message says what to change. Missing registrations are no errors, see
    /// [`Ring::facts`].
    pub fn new(config: &RingConfig) -> Result<Rc<Ring>, RingError> {
        let entries = config.entries.max(2 * URGENT_DEPTH).next_power_of_two();
        let setup_error = |source| RingError::of_setup(entries, source);
        let (uring, coop_taskrun) = build(entries).map_err(setup_error)?;
        // A blocking eventfd: a host's read of it waits inside that host's own ring.
        let event_fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| setup_error(io::Error::from(errno)))?;
        uring.submitter().register_eventfd(event_fd.as_raw_fd()).map_err(setup_error)?;

        let depth_max = config.depth_max.clamp(1, entries - 2 * URGENT_DEPTH + 1);
        let mut facts = RingFacts {
            entries: uring.params().sq_entries(),
            completion_entries: uring.params().cq_entries(),
            depth_max,
            single_issuer: uring.params().is_setup_single_issuer(),
            coop_taskrun,
            registered_files: 0,
            registered_buffer_bytes: 0,
            arena_bytes: 0,
            unregistered_because: None,
        };
        register_files(&uring, config, &mut facts);
        let arena = register_arena(&uring, config, &mut facts);

        let slot_count = depth_max + URGENT_DEPTH;
        Ok(Rc::new(Ring {
            inner: RefCell::new(Inner {
                uring,
                slots: (0..slot_count).map(|_| None).collect(),
                free_slots: (0..slot_count).rev().collect(),
                urgent: VecDeque::new(),
                queue: VecDeque::new(),
                handed: Handed::default(),
                free_files: (0..facts.registered_files).rev().collect(),
                completions: Vec::new(),
                arena: Rc::clone(&arena),
                arena_registered: facts.registered_buffer_bytes > 0,
                stats: RingStats::default(),
                metrics: DeviceMetrics::new(),
            }),
            arena,
            event_fd,
            retired_files: Rc::default(),
            on_queued: RefCell::new(None),
            ended: RefCell::default(),
            facts,
        }))
    }

    /// What the kernel granted.
    #[must_use]
    pub fn facts(&self) -> &RingFacts {
        &self.facts
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        let inner = self.inner.borrow();
        RingStats { queued: inner.queued_count(), in_flight: inner.in_flight_count(), ..inner.stats }
    }

    /// Looks at the latencies so far.
    pub fn with_metrics<R>(&self, look: impl FnOnce(&DeviceMetrics) -> R) -> R {
        look(&self.inner.borrow().metrics)
    }

    /// An eventfd that becomes readable when something has completed: read its 8 bytes, then [`Ring::drain`]. Blocking
    /// mode: wait for it with a poll or a ring's read, not with a plain read.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event_fd.as_fd()
    }

    /// Sets what is called when an operation is queued and none was: the host then sees to it that [`Ring::submit`]
    /// is called before it sleeps. It is called in the middle of a task, and must not use the ring.
    pub fn set_on_queued(&self, on_queued: impl Fn() + 'static) {
        *self.on_queued.borrow_mut() = Some(Rc::new(on_queued));
    }

    /// Whether any operation is queued or in flight.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        let inner = self.inner.borrow();
        inner.queued_count() + inner.in_flight_count() > 0
    }

    /// Whether [`Ring::submit`] would hand something to the kernel now. After a `submit` that means that the kernel
    /// was out of memory: try again in a while.
    #[must_use]
    pub fn needs_submit(&self) -> bool {
        let inner = self.inner.borrow();
        inner.handed.is_owed()
            || (!inner.urgent.is_empty() && inner.may_start(true))
            || (!inner.queue.is_empty() && inner.may_start(false))
    }

    /// Hands everything queued to the kernel, as far as the depth allows, in one system call; returns how many entries it
    /// took. Call it once a scheduling round, after [`Ring::drain`].
    ///
    /// # Errors
    /// Only what means that the ring is broken; interruptions and short memory are left for the next call.
    pub fn submit(&self) -> io::Result<u32> {
        self.recycle_files();
        let mut inner = self.inner.borrow_mut();
        inner.push_queued();
        inner.enter()
    }

    /// Answers what has completed; returns how many operations that was. Never waits.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub fn drain(&self) -> io::Result<u32> {
        let mut ended = std::mem::take(&mut *self.ended.borrow_mut());
        let result = self.inner.borrow_mut().reap(&mut ended);
        let count = ended.len();
        for (answer, buffer, result) in ended.drain(..) {
            match answer {
                Answer::Buffer(done) => done.fulfil(result.and_then(|()| buffer.ok_or_else(lost_buffer))),
                Answer::Unit(done) => done.fulfil(result),
            }
        }
        *self.ended.borrow_mut() = ended;
        result.map(|()| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Waits until something has completed, if anything is in flight. For hosts without an event loop.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub fn wait(&self) -> io::Result<()> {
        self.inner.borrow_mut().wait()
    }

    /// A buffer of `len` zero bytes, from the ring's memory if some is free.
    pub(crate) fn buffer(&self, len: usize) -> DmaBuffer {
        match self.arena.lease(len) {
            Some(mut buffer) => {
                buffer.fill(0);
                buffer
            }
            None => {
                self.inner.borrow_mut().stats.arena_misses += 1;
                DmaBuffer::zeroed(len)
            }
        }
    }

    /// Takes a file in, `len_bytes` of which may be read and written.
    pub(crate) fn add_file(&self, fd: OwnedFd, len_bytes: u64) -> Rc<RingFile> {
        self.recycle_files();
        let mut inner = self.inner.borrow_mut();
        let fixed = inner.free_files.pop().filter(|&index| {
            let registered = inner.uring.submitter().register_files_update(index, &[fd.as_raw_fd()]);
            matches!(registered, Ok(1))
        });
        Rc::new(RingFile {
            fd,
            fixed,
            retired: Rc::clone(&self.retired_files),
            syncs: RefCell::new(FileSyncs::new()),
            growing: Cell::new(0),
            len_bytes: Cell::new(len_bytes),
        })
    }

    /// Queues an operation. A sync of a file whose sync has failed is answered at once.
    pub(crate) fn start(&self, mut operation: RingOperation) {
        if operation.kind.is_urgent() {
            let mut syncs = operation.file.syncs.borrow_mut();
            if let Some(errno) = syncs.failed() {
                drop(syncs);
                let error = io::Error::from_raw_os_error(errno);
                match operation.answer {
                    Answer::Buffer(done) => done.fulfil(Err(error)),
                    Answer::Unit(done) => done.fulfil(Err(error)),
                }
                return;
            }
            operation.ticket = Some(syncs.begin());
        }
        if operation.kind == OperationKind::Grow {
            operation.file.growing.set(operation.file.growing.get() + 1);
        }
        let was_empty = {
            let mut inner = self.inner.borrow_mut();
            let was_empty = inner.queued_count() == 0;
            inner.stats.operations += 1;
            if operation.kind.is_urgent() {
                inner.urgent.push_back(operation);
            } else {
                inner.queue.push_back(operation);
            }
            inner.stats.queued_max = inner.stats.queued_max.max(inner.queued_count());
            was_empty
        };
        if was_empty {
            let on_queued = self.on_queued.borrow().clone();
            if let Some(on_queued) = on_queued {
                on_queued();
            }
        }
    }

    /// Gives the places of closed files back to the table.
    fn recycle_files(&self) {
        if self.retired_files.borrow().is_empty() {
            return;
        }
        let retired = std::mem::take(&mut *self.retired_files.borrow_mut());
        let mut inner = self.inner.borrow_mut();
        for index in retired {
            // A place that cannot be cleared keeps the closed file open in the kernel; it is never used again.
            if inner.uring.submitter().register_files_update(index, &[-1]).is_ok() {
                inner.free_files.push(index);
            }
        }
    }
}

fn lost_buffer() -> io::Error {
    io::Error::other("the operation ended without a buffer")
}

/// Tries the flags we want, then none, for older kernels; says which it was.
fn build(entries: u32) -> io::Result<(IoUring, bool)> {
    let built = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(entries);
    match built {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::new(entries).map(|uring| (uring, false))
        }
        built => built.map(|uring| (uring, true)),
    }
}

fn register_files(uring: &IoUring, config: &RingConfig, facts: &mut RingFacts) {
    if !config.register {
        facts.unregistered_because = Some("not asked for".to_owned());
        return;
    }
    match uring.submitter().register_files_sparse(config.files_max) {
        Ok(()) => facts.registered_files = config.files_max,
        Err(error) => facts.unregistered_because = Some(format!("files: {error}")),
    }
}

fn register_arena(uring: &IoUring, config: &RingConfig, facts: &mut RingFacts) -> Rc<Arena> {
    let mut arena = Arena::new(config.arena_bytes);
    facts.arena_bytes = arena.len();
    if !config.register {
        return arena;
    }
    while arena.len() >= ARENA_BYTES_MIN {
        let memory = libc::iovec { iov_base: arena.as_ptr().cast(), iov_len: arena.len() };
        // SAFETY: the memory is the arena's, which `Ring` owns next to the io_uring; the kernel pins its pages by itself
        // and writes to them only for operations whose buffers, leases that keep the arena, the slot table owns.
        let registered = unsafe { uring.submitter().register_buffers(&[memory]) };
        match registered {
            Ok(()) => {
                facts.registered_buffer_bytes = arena.len();
                facts.arena_bytes = arena.len();
                return arena;
            }
            Err(error) => {
                facts.unregistered_because = Some(format!("{} bytes of buffers: {error}", arena.len()));
                arena = Arena::new(arena.len() / 2);
            }
        }
    }
    let arena = Arena::new(config.arena_bytes);
    facts.arena_bytes = arena.len();
    arena
}

impl Inner {
    fn queued_count(&self) -> u64 {
        (self.urgent.len() + self.queue.len()) as u64
    }

    fn in_flight_count(&self) -> u64 {
        (self.slots.len() - self.free_slots.len()) as u64
    }

    /// Whether one more operation may go to the kernel: slots of the urgent are kept free for them.
    fn may_start(&self, urgent: bool) -> bool {
        self.free_slots.len() > if urgent { 0 } else { URGENT_DEPTH as usize }
    }

    /// Moves queued operations into the submission queue, as far as slots and entries go.
    fn push_queued(&mut self) {
        if self.queued_count() == 0 {
            return;
        }
        let now = Instant::now();
        loop {
            // Two entries: room for a chain.
            let room = {
                let submission = self.uring.submission();
                submission.capacity() - submission.len() >= 2
            };
            let operation = if !room {
                None
            } else if self.may_start(true) && !self.urgent.is_empty() {
                self.urgent.pop_front()
            } else if self.may_start(false) {
                self.queue.pop_front()
            } else {
                None
            };
            let Some(mut operation) = operation else { break };
            operation.submitted_at.get_or_insert(now);
            if operation.kind == OperationKind::Read && operation.buffer.is_none() {
                operation.buffer = Some(self.arena.lease(operation.len).unwrap_or_else(|| {
                    self.stats.arena_misses += 1;
                    DmaBuffer::zeroed(operation.len)
                }));
            }
            let slot = self.free_slots.pop().expect("`may_start` saw a free slot");
            self.push(slot, operation);
        }
        self.stats.in_flight_max = self.stats.in_flight_max.max(self.in_flight_count());
    }

    /// Puts an operation into its slot and its entries into the submission queue, which has room for two.
    fn push(&mut self, slot: u32, mut operation: RingOperation) {
        let registered_arena = self.arena_registered.then_some(&self.arena);
        let first = first_entry(&mut operation, registered_arena).user_data(user_data(slot, Part::First));
        if operation.is_chain() {
            let sync = entry!(operation.file, fd => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build())
            .user_data(user_data(slot, Part::LinkedSync));
            self.slots[slot as usize] = Some(operation);
            self.push_entry(&first.flags(Flags::IO_LINK));
            self.handed.chain_pushed(slot);
            self.push_entry(&sync);
        } else {
            self.slots[slot as usize] = Some(operation);
            self.push_entry(&first);
        }
    }

    fn push_entry(&mut self, entry: &squeue::Entry) {
        let mut submission = self.uring.submission();
        // SAFETY: the kernel uses the buffer and the file until the completion tagged with the slot is reaped. Until then
        // `slots[slot]` owns both: dropping the caller's future does not free them, moving the `DmaBuffer` does not move
        // its bytes, and `Drop` reaps every completion before the slots go.
        let pushed = unsafe { submission.push(entry) };
        pushed.expect("room was looked for");
        drop(submission);
        self.handed.pushed += 1;
    }

    /// Hands the submission queue to the kernel.
    fn enter(&mut self) -> io::Result<u32> {
        if !self.handed.is_owed() {
            return Ok(0);
        }
        for _ in 0..ENTER_TRIES {
            self.stats.enters += 1;
            match self.uring.submit() {
                Ok(count) => {
                    self.note_taken(count as u64);
                    return Ok(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Err(error) => {
                    let interrupted = error.kind() == io::ErrorKind::Interrupted;
                    self.put_off(error)?;
                    if !interrupted {
                        break;
                    }
                }
            }
        }
        Ok(0)
    }

    fn note_taken(&mut self, count: u64) {
        self.stats.entries += count;
        if let Some(slot) = self.handed.taken(count)
            && let Some(operation) = &mut self.slots[slot as usize]
        {
            operation.break_chain();
        }
    }

    /// Whether an error of the system call will go away by itself.
    fn put_off(&mut self, error: io::Error) -> io::Result<()> {
        match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {
                self.stats.enter_retries += 1;
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        if self.free_slots.len() == self.slots.len() || !self.uring.completion().is_empty() {
            return Ok(());
        }
        self.stats.enters += 1;
        match self.uring.submit_and_wait(1) {
            Ok(count) => {
                self.note_taken(count as u64);
                Ok(())
            }
            Err(error) => self.put_off(error),
        }
    }

    /// Takes in all completions; operations that have ended go to `ended`.
    fn reap(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        let submission = self.uring.submission();
        let has_overflowed = submission.cq_overflow();
        let kernel_holds_some = submission.taskrun() || has_overflowed;
        drop(submission);
        self.stats.overflows += u64::from(has_overflowed);
        if kernel_holds_some {
            self.stats.enters += 1;
            match self.uring.submit() {
                Ok(count) => self.note_taken(count as u64),
                Err(error) => self.put_off(error)?,
            }
        }
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(self.uring.completion().map(|entry| (entry.user_data(), entry.result())));
        if !completions.is_empty() {
            let now = Instant::now();
            for (user_data, result) in completions.drain(..) {
                self.complete(user_data, result, now, ended);
            }
        }
        self.completions = completions;
        Ok(())
    }

    fn complete(&mut self, user_data: u64, result: i32, now: Instant, ended: &mut Vec<Ended>) {
        self.stats.completions += 1;
        let (slot, part) = slot_and_part(user_data);
        let operation =
            self.slots[slot as usize].as_mut().expect("a completion belongs to an operation in flight");
        let next = operation.complete(part, result);
        if next == Next::Wait {
            return;
        }
        let operation = self.slots[slot as usize].take().expect("it was there a moment ago");
        self.free_slots.push(slot);
        match next {
            Next::Wait => {}
            Next::Again => {
                self.stats.retries += 1;
                let queue = if operation.kind.is_urgent() { &mut self.urgent } else { &mut self.queue };
                queue.push_front(operation);
            }
            Next::Done(outcome) => self.end(operation, outcome, now, ended),
        }
    }

    fn end(&mut self, operation: RingOperation, outcome: Outcome, now: Instant, ended: &mut Vec<Ended>) {
        self.stats.answered += 1;
        if let (Some(class), Some(submitted_at)) = (operation.kind.class(), operation.submitted_at) {
            let latency = now.saturating_duration_since(submitted_at);
            self.metrics.record(class, operation.len, u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
        match operation.kind {
            OperationKind::Read => self.stats.bytes_read += operation.done_bytes as u64,
            OperationKind::Write | OperationKind::DurableWrite => {
                self.stats.bytes_written += operation.done_bytes as u64;
            }
            OperationKind::Grow => {
                operation.file.end_growth((outcome == Outcome::Success).then_some(operation.offset));
            }
            OperationKind::Sync => {}
        }
        let Operation { file, answer, buffer, ticket, .. } = operation;
        match ticket {
            Some(ticket) => {
                let mut answered = Vec::new();
                file.syncs.borrow_mut().end(ticket, outcome.of_sync(), (answer, buffer), &mut answered);
                ended.extend(answered.into_iter().map(|((answer, buffer), result)| {
                    (answer, buffer, result.map_err(io::Error::from_raw_os_error))
                }));
            }
            None => ended.push((answer, buffer, outcome.into_result())),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while self.free_slots.len() < self.slots.len() {
            let reaped = self.wait().and_then(|()| self.reap(&mut ended));
            if let Err(error) = reaped {
                // The kernel may still write to these buffers: they must never be reused.
                tracing::error!(%error, in_flight = self.in_flight_count(), "cannot reap the storage ring");
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("facts", &self.facts).field("stats", &self.stats()).finish()
    }
}

/// Which entries the kernel has taken, and whether it took a chain apart.
#[derive(Default)]
struct Handed {
    /// Entries pushed since the ring was made.
    pushed: u64,
    /// Of those, taken by the kernel.
    taken: u64,
    /// Chains whose sync was not taken: the number of that entry, and the slot.
    chains: Vec<(u64, u32)>,
}

impl Handed {
    /// Whether entries wait in the submission queue.
    fn is_owed(&self) -> bool {
        self.pushed > self.taken
    }

    /// The next entry is the sync of a chain whose write was the last.
    fn chain_pushed(&mut self, slot: u32) {
        self.chains.push((self.pushed, slot));
    }

    /// The kernel took `count` entries. If the last of them is the write of a chain, its sync comes in another system
    /// call, and the kernel no longer knows that they belong together: the slot of that chain.
    fn taken(&mut self, count: u64) -> Option<u32> {
        self.taken += count;
        let taken = self.taken;
        let broken = self.chains.iter().find(|(sync, _)| count > 0 && *sync == taken).map(|&(_, slot)| slot);
        self.chains.retain(|(sync, _)| *sync >= taken);
        broken
    }
}

/// The entry of an operation, or the first of its chain.
fn first_entry(operation: &mut RingOperation, registered_arena: Option<&Rc<Arena>>) -> squeue::Entry {
    let file = Rc::clone(&operation.file);
    if operation.is_sync() {
        return entry!(file, fd => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build());
    }
    if operation.kind == OperationKind::Grow {
        return entry!(file, fd => opcode::Fallocate::new(fd, operation.offset).build());
    }
    let done_bytes = operation.done_bytes;
    let offset = operation.offset + done_bytes as u64;
    let buffer = operation.buffer.as_mut().expect("transfers have a buffer");
    let registered = registered_arena.is_some_and(|arena| buffer.is_leased_from(arena));
    let rest = &mut buffer[done_bytes..];
    let len = u32::try_from(rest.len().min(TRANSFER_BYTES_MAX)).expect("a transfer is bounded");
    debug_assert!((len as usize).is_multiple_of(BLOCK_BYTES));
    let start = rest.as_mut_ptr();
    match (operation.kind == OperationKind::Read, registered) {
        (true, true) => {
            entry!(file, fd => opcode::ReadFixed::new(fd, start, len, 0).offset(offset).build())
        }
        (true, false) => entry!(file, fd => opcode::Read::new(fd, start, len).offset(offset).build()),
        (false, true) => {
            entry!(file, fd => opcode::WriteFixed::new(fd, start, len, 0).offset(offset).build())
        }
        (false, false) => entry!(file, fd => opcode::Write::new(fd, start, len).offset(offset).build()),
    }
}

fn user_data(slot: u32, part: Part) -> u64 {
    u64::from(slot) << 1 | u64::from(part == Part::LinkedSync)
}

fn slot_and_part(user_data: u64) -> (u32, Part) {
    let slot = u32::try_from(user_data >> 1).expect("we tagged it with a slot");
    (slot, if user_data & 1 == 0 { Part::First } else { Part::LinkedSync })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two chains and a read between them: entries 0 1, 2, 3 4.
    fn two_chains() -> Handed {
        let mut handed = Handed { pushed: 1, ..Handed::default() };
        handed.chain_pushed(10);
        handed.pushed += 3;
        handed.chain_pushed(11);
        handed.pushed += 1;
        handed
    }

    #[test]
    fn chain_is_broken_only_if_the_kernel_stops_between_its_entries() {
        for (count, broken) in [(0, None), (1, Some(10)), (2, None), (3, None), (4, Some(11)), (5, None)] {
            let mut handed = two_chains();
            assert_eq!(handed.taken(count), broken, "{count} entries taken");
            assert_eq!(handed.is_owed(), count < 5);
            assert_eq!(handed.taken(5 - count), None, "the rest after {count}");
            assert!(handed.chains.is_empty() && !handed.is_owed());
        }
    }

    /// T3.18: a system call that the kernel puts off is made again and counted, any other error is told.
    #[test]
    fn a_call_that_was_put_off_is_counted_and_one_that_failed_is_told() {
        let ring = Ring::new(&RingConfig::default()).expect("this kernel has io_uring");
        let put_off = |errno| ring.inner.borrow_mut().put_off(io::Error::from_raw_os_error(errno));
        for errno in [libc::EINTR, libc::EAGAIN, libc::EBUSY] {
            assert!(put_off(errno).is_ok(), "{errno}");
        }
        assert!(put_off(libc::EBADF).is_err());
        assert_eq!(ring.stats().enter_retries, 3);
    }

    #[test]
    fn slot_and_part_survive_the_trip_through_the_kernel() {
        for slot in [0, 1, 79, u32::MAX] {
            for part in [Part::First, Part::LinkedSync] {
                assert_eq!(slot_and_part(user_data(slot, part)), (slot, part));
            }
        }
    }
}
