//! Hosts the storage ring of a core: submits once a scheduling round, drains when the ring's eventfd says so.
//!
//! Two tasks. One is woken when the first operation of a round is queued; it runs after the tasks that were ready before
//! it, so one system call hands over what all of them queued, and what has completed meanwhile is answered first. The
//! other waits for the eventfd and answers completions.
//!
//! Cost: a submission and a completion event a round; nothing while the ring is idle.
//!
//! Does not know: devices, what is read or written.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ringbase_storage::io::ring::{Ring, RingConfig, RingError};
use tracing::error;

use super::doorbell::DoorbellWaiter;
use super::event::Event;
use super::host;

/// Pause before a submission that the kernel had no memory for is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// A ring of the calling core, served by tasks of it.
pub struct HostedRing {
    ring: Rc<Ring>,
    state: Rc<State>,
}

/// What the tasks share.
#[derive(Default)]
struct State {
    /// Something is queued.
    queued: Event,
    stopped: Cell<bool>,
    failure: RefCell<Option<Rc<str>>>,
}

impl State {
    fn fail(&self, error: &io::Error) {
        error!(%error, "the storage ring is broken; this core reads and writes nothing any more");
        self.failure.borrow_mut().get_or_insert_with(|| error.to_string().into());
    }
}

impl HostedRing {
    /// Sets up a ring on the calling core and starts its tasks.
    ///
    /// # Errors
    /// There is no ring for this process, or no descriptor left.
    pub fn start(config: &RingConfig) -> Result<HostedRing, RingError> {
        let ring = Ring::new(config)?;
        let waiter = DoorbellWaiter::on(ring.event_fd())
            .map_err(|source| RingError::Resources { entries: ring.facts().entries, source })?;
        let state = Rc::new(State::default());
        let on_queued = Rc::clone(&state);
        ring.set_on_queued(move || on_queued.queued.notify());
        host::spawn("ring submit", submit_all(Rc::clone(&ring), Rc::clone(&state)));
        host::spawn("ring drain", drain_all(Rc::clone(&ring), waiter, Rc::clone(&state)));
        Ok(HostedRing { ring, state })
    }

    /// The ring, for devices.
    #[must_use]
    pub fn ring(&self) -> &Rc<Ring> {
        &self.ring
    }

    /// Why the ring no longer works, if so: its operations will never end.
    #[must_use]
    pub fn failure(&self) -> Option<Rc<str>> {
        self.state.failure.borrow().clone()
    }

    /// Ends the tasks, and the ring with its last device. Everything started must have ended.
    pub fn stop(self) {
        self.state.stopped.set(true);
        self.state.queued.notify();
        // The eventfd counts; a write to it wakes its reader, and fails only if it is full, when the reader wakes anyway.
        let _ = rustix::io::write(self.ring.event_fd(), &1u64.to_ne_bytes());
    }
}

/// Hands over what a round has queued.
async fn submit_all(ring: Rc<Ring>, state: Rc<State>) {
    loop {
        state.queued.wait().await;
        if state.stopped.get() {
            return;
        }
        // Answers first: they free places, and their tasks run before the next submission.
        if let Err(error) = ring.drain().and_then(|_| ring.submit()) {
            return state.fail(&error);
        }
        if ring.needs_submit() {
            host::sleep(RETRY).await;
            state.queued.notify();
        }
    }
}

/// Answers completions whenever the eventfd says that there are some.
async fn drain_all(ring: Rc<Ring>, waiter: DoorbellWaiter, state: Rc<State>) {
    loop {
        waiter.wait().await;
        let drained = ring.drain();
        if state.stopped.get() {
            return;
        }
        if let Err(error) = drained {
            return state.fail(&error);
        }
        if ring.needs_submit() {
            state.queued.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use ringbase_storage::io::Device;
    use ringbase_storage::io::device::{OpenOptions, RingDevice};
    use ringbase_storage::io::ring::RingStats;
    use tempfile::TempDir;

    use super::super::executor::tests::on_one_core;
    use super::*;

    const BLOCKS: u64 = 256;
    const BLOCK: usize = 4096;

    /// Operations that the ring has under way at a time, at most.
    const ROUND: usize = 64;

    fn device(ring: &Rc<Ring>) -> (TempDir, Rc<RingDevice>) {
        let directory = tempfile::tempdir().unwrap();
        let options =
            OpenOptions { create: true, len_bytes_min: BLOCKS * BLOCK as u64, ..Default::default() };
        let device = RingDevice::open(ring, &directory.path().join("file"), &options).unwrap();
        (directory, Rc::new(device))
    }

    async fn write(device: &RingDevice, block: u64) {
        let mut buffer = device.buffer(BLOCK);
        buffer.fill(block as u8);
        device.write(block * BLOCK as u64, buffer).await.unwrap();
    }

    async fn read(device: &RingDevice, block: u64) {
        let read = device.read(block * BLOCK as u64, BLOCK).await.unwrap();
        assert!(read.iter().all(|&byte| byte == block as u8));
    }

    /// Does `work` for each of these blocks, each in a task of its own, and waits for all.
    async fn for_each(blocks: Range<u64>, work: impl AsyncFn(u64) + 'static) {
        let left = Rc::new(Cell::new(blocks.end - blocks.start));
        let (done, work) = (Rc::new(Event::new()), Rc::new(work));
        for block in blocks {
            let (work, left, done) = (Rc::clone(&work), Rc::clone(&left), Rc::clone(&done));
            host::spawn("block", async move {
                work(block).await;
                left.set(left.get() - 1);
                if left.get() == 0 {
                    done.notify();
                }
            });
        }
        done.wait().await;
    }

    /// Writes every block from a task of its own, all at once, then reads them back the same way.
    async fn write_and_read(ring: &Rc<Ring>) {
        let (_directory, device) = device(ring);
        let used = Rc::clone(&device);
        let work = async move |block| {
            write(&used, block).await;
            read(&used, block).await;
        };
        for_each(0..BLOCKS, work).await;
        device.sync().await.unwrap();
    }

    /// The same in rounds that the ring takes whole, each after the one before: how much goes into one does not depend on the device.
    async fn write_and_read_in_rounds(ring: &Rc<Ring>) {
        let (_directory, device) = device(ring);
        for first in (0..BLOCKS).step_by(ROUND) {
            let round = first..first + ROUND as u64;
            let (written, read_back) = (Rc::clone(&device), Rc::clone(&device));
            for_each(round.clone(), async move |block| write(&written, block).await).await;
            for_each(round, async move |block| read(&read_back, block).await).await;
        }
        device.sync().await.unwrap();
    }

    #[test]
    fn operations_of_a_round_share_a_system_call() {
        let stats: RingStats = on_one_core(|| async {
            let hosted = HostedRing::start(&RingConfig::default()).unwrap();
            write_and_read_in_rounds(hosted.ring()).await;
            let stats = hosted.ring().stats();
            hosted.stop();
            stats
        });
        assert_eq!((stats.operations, stats.answered), (2 * BLOCKS + 1, 2 * BLOCKS + 1));
        assert!(stats.enters * 4 < stats.entries, "{stats:?}");
    }

    #[test]
    fn ring_without_registrations_works_the_same() {
        on_one_core(|| async {
            let hosted = HostedRing::start(&RingConfig { register: false, ..RingConfig::default() }).unwrap();
            assert_eq!(hosted.ring().facts().registered_buffer_bytes, 0);
            write_and_read(hosted.ring()).await;
            assert!(hosted.failure().is_none());
        });
    }

    #[test]
    fn stopped_ring_is_freed_with_its_last_user() {
        on_one_core(|| async {
            let hosted = HostedRing::start(&RingConfig::default()).unwrap();
            write_and_read(hosted.ring()).await;
            let ring = Rc::downgrade(hosted.ring());
            hosted.stop();
            while ring.strong_count() > 0 {
                host::sleep(Duration::from_millis(1)).await;
            }
        });
    }
}
