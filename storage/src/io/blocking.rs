//! A host for the ring without an executor of somebody else's: one thread, tasks, timers, and a wait in the kernel.
//!
//! Used by tests, by tools that read stopped stores, and by the micro benchmarks; the node has its own host.
//!
//! Invariants
//! - A scheduling round polls each task that was ready at its start once, then submits and drains the ring once.
//! - The thread sleeps only when nothing is ready; a completion, a timer or a wake-up from another thread ends that.
//!
//! Cost: two system calls for a sleep, one for a round with I/O.
//!
//! Does not know: files, what tasks do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use super::ring::{Ring, RingConfig, RingError};
use crate::env::tasks::Tasks;
use crate::env::{Clock, Env, LocalFuture, Spawn};

/// A task that has run this long in one round should yield.
const SLICE: Duration = Duration::from_micros(200);
/// How long to wait before asking a kernel that is short of memory again.
const SUBMIT_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// Key of a timer: when it is due, in monotonic nanoseconds, and a number that tells equal ones apart.
type TimerKey = (u64, u64);

struct Host {
    tasks: Tasks,
    timers: Rc<RefCell<BTreeMap<TimerKey, Option<Waker>>>>,
    next_timer: Cell<u64>,
    clock: RealClock,
    round_started_ns: Cell<u64>,
}

/// The clocks of the machine; monotonic time counts from when it was made.
#[derive(Clone, Copy)]
struct RealClock {
    started: Instant,
}

impl Clock for RealClock {
    fn wall_ns(&self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
    }

    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Host {
    /// Wakes what is due; returns how long it is until the next timer is.
    fn fire_timers(&self) -> Option<Duration> {
        let now_ns = self.clock.monotonic_ns();
        loop {
            let waker = {
                let mut timers = self.timers.borrow_mut();
                let (&(due_ns, _), _) = timers.first_key_value()?;
                if due_ns > now_ns {
                    return Some(Duration::from_nanos(due_ns - now_ns));
                }
                timers.pop_first().and_then(|(_, waker)| waker)
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// What tasks see. It does not keep the host, which keeps the tasks.
struct HostTasks {
    host: Weak<Host>,
}

impl Spawn for HostTasks {
    fn spawn(&self, _name: &'static str, task: LocalFuture<'static, ()>) {
        if let Some(host) = self.host.upgrade() {
            host.tasks.spawn(task);
        }
    }

    fn sleep(&self, duration: Duration) -> LocalFuture<'static, ()> {
        let Some(host) = self.host.upgrade() else { return Box::pin(std::future::pending()) };
        let number = host.next_timer.get();
        host.next_timer.set(number + 1);
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let key = (host.clock.monotonic_ns().saturating_add(duration_ns), number);
        host.timers.borrow_mut().insert(key, None);
        Box::pin(Sleep { timers: Rc::clone(&host.timers), key })
    }

    fn yield_now(&self) -> LocalFuture<'static, ()> {
        Box::pin(futures_lite::future::yield_now())
    }

    fn should_yield(&self) -> bool {
        self.host.upgrade().is_some_and(|host| {
            let slice_ns = host.clock.monotonic_ns().saturating_sub(host.round_started_ns.get());
            slice_ns > SLICE.as_nanos() as u64
        })
    }
}

/// A timer; its entry is removed when it fires or when the future is dropped.
struct Sleep {
    timers: Rc<RefCell<BTreeMap<TimerKey, Option<Waker>>>>,
    key: TimerKey,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.timers.borrow_mut().get_mut(&self.key) {
            Some(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let removed = self.timers.borrow_mut().remove(&self.key);
        drop(removed);
    }
}

/// One thread with a ring, tasks and timers.
pub struct BlockingHost {
    host: Rc<Host>,
    ring: Rc<Ring>,
    /// Written by wake-ups from other threads.
    wake_fd: Arc<OwnedFd>,
}

impl BlockingHost {
    /// A host for the calling thread, with a ring of its own.
    ///
    /// # Errors
    /// As [`Ring::new`].
    pub fn new(config: &RingConfig) -> Result<BlockingHost, RingError> {
        let ring = Ring::new(config)?;
        let wake_fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| RingError::Resources { entries: config.entries, source: errno.into() })?;
        let wake_fd = Arc::new(wake_fd);
        let wake = Arc::clone(&wake_fd);
        // A full eventfd is readable, which is all that is wanted.
        let on_foreign_wake = move || {
            let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
        };
        let host = Rc::new(Host {
            tasks: Tasks::new(Some(Box::new(on_foreign_wake))),
            timers: Rc::default(),
            next_timer: Cell::new(0),
            clock: RealClock { started: Instant::now() },
            round_started_ns: Cell::new(0),
        });
        Ok(BlockingHost { host, ring, wake_fd })
    }

    /// The ring of this host.
    #[must_use]
    pub fn ring(&self) -> &Rc<Ring> {
        &self.ring
    }

    /// The environment to hand to what runs here.
    #[must_use]
    pub fn env(&self) -> Env {
        let tasks = HostTasks { host: Rc::downgrade(&self.host) };
        Env::new(Rc::new(self.host.clock), Rc::new(tasks), rand::random::<u64>)
    }

    /// Runs `future`, and every task spawned so far or by it, until `future` resolves. Tasks that are left go on in the
    /// next call.
    ///
    /// # Panics
    /// If the kernel says that the ring is broken.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let main_waker = self.host.tasks.host_waker();
        let waker = Waker::from(Arc::clone(&main_waker));
        waker.wake_by_ref();
        loop {
            self.host.round_started_ns.set(self.host.clock.monotonic_ns());
            for _ in 0..self.host.tasks.ready_count() {
                let Some(id) = self.host.tasks.take_first() else { break };
                if id == main_waker.id() {
                    main_waker.taken();
                    if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return value;
                    }
                } else {
                    self.host.tasks.poll(id);
                }
            }
            self.drain();
            let taken = self.ring.submit().expect("the storage ring takes entries");
            if taken > 0 {
                self.drain();
            }
            let until_timer = self.host.fire_timers();
            let more_fits = taken > 0 && self.ring.needs_submit();
            if self.host.tasks.ready_count() == 0 && !more_fits {
                self.sleep(until_timer);
            }
        }
    }

    fn drain(&self) {
        self.ring.drain().expect("the storage ring gives completions");
    }

    /// Sleeps until a completion, a wake-up from another thread, or `until_timer` has passed.
    fn sleep(&self, until_timer: Option<Duration>) {
        let timeout = if self.ring.needs_submit() {
            Some(until_timer.map_or(SUBMIT_AGAIN_AFTER, |until| until.min(SUBMIT_AGAIN_AFTER)))
        } else {
            until_timer
        };
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let event_fd = self.ring.event_fd();
        let mut fds = [
            PollFd::new(&event_fd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.wake_fd.as_fd(), PollFlags::IN),
        ];
        // An interrupted poll is a round too early, which does no harm.
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            return;
        }
        let [completed, woken] = fds.map(|fd| fd.revents().contains(PollFlags::IN));
        let mut count = [0; 8];
        if completed {
            let _ = rustix::io::read(event_fd, &mut count);
        }
        if woken {
            let _ = rustix::io::read(&*self.wake_fd, &mut count);
        }
    }
}

impl Drop for BlockingHost {
    fn drop(&mut self) {
        self.host.tasks.close();
    }
}

impl std::fmt::Debug for BlockingHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockingHost({:?})", self.ring)
    }
}
