//! The reactor of a core: what its tasks wait for outside of it, and its sleep.
//!
//! Sockets, eventfds and the [`Bell`] of the mailboxes are watched by one epoll set, timers are kept in order beside it. One task of the
//! core, [`run`], looks at them: whenever all tasks have come to rest it waits in the kernel for the next event or timer, and while they do
//! not it looks every [`LOOK_EVERY`] without waiting. So a request costs three system calls when a core has nothing else to do: the wait,
//! the read, the answer.
//!
//! glommio's own reactor is left out of this. A round of it costs four entries into its rings, and its preempt timer, which may fire
//! before its scheduler has looked at any task, can put a core to sleep with tasks ready. Its rounds are made as rare as its timer can be set.
//!
//! Invariants
//! - It waits only if since its last turn no task has run, and none stands in line: then none is ready, since tasks of a core are woken by
//!   tasks of the same core or by the reactor.
//! - Long work goes on one part at a time, after everything else that was ready.
//! - A watched descriptor reports edges: it is ready from an event on until its user has met the end of what there was.
//! - A bell that is rung is heard before the core waits, or it ends the wait.
//!
//! Cost: one wait a burst, however many sockets it serves; two reads of the clock beside it. Registering and letting go of a descriptor is
//! a system call each.
//!
//! Does not know: what is behind a descriptor, what tasks do.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use super::line::Line;

/// While tasks are ready the kernel is asked this often; a task that runs longer than that without a break delays it.
const LOOK_EVERY: Duration = Duration::from_micros(25);

/// A task that has had the core since the last look for this long should let others run.
const TURN_MAX: Duration = Duration::from_micros(200);

/// Long work that has had the core since the last look for this long should give way.
const PART_MAX: Duration = Duration::from_micros(50);

/// Events taken in one look.
const EVENTS_MAX: usize = 256;

/// Stands for moments that the clock cannot tell.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The key of the bell in the epoll set; others are indices of watched descriptors.
const BELL_KEY: u64 = u64::MAX;

thread_local! {
    static REACTOR: RefCell<Option<Rc<Reactor>>> = const { RefCell::new(None) };
}

/// See the module.
pub(super) struct Reactor {
    epoll: OwnedFd,
    watched: RefCell<Watched>,
    timers: RefCell<BTreeMap<(Instant, u64), Rc<Signal>>>,
    next_timer: Cell<u64>,
    bell: OnceCell<Hearing>,
    /// Polls of tasks so far.
    polls: Cell<u64>,
    last_look: Cell<Instant>,
    stopped: Cell<bool>,
    spin: Duration,
    /// Those with long work.
    line: Line,
}

/// What is watched, by key.
#[derive(Default)]
struct Watched {
    sides: Vec<Option<Rc<Sides>>>,
    free: Vec<usize>,
}

/// The bell and who hears it.
struct Hearing {
    bell: Arc<Bell>,
    heard: Box<dyn Fn()>,
}

/// Both directions of a descriptor.
#[derive(Default)]
struct Sides {
    read: Signal,
    write: Signal,
    /// Nothing follows what can be read now.
    ended: Cell<bool>,
}

/// Something that one task waits for: a direction of a descriptor, a timer.
#[derive(Default)]
struct Signal {
    ready: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Signal {
    fn set(&self) {
        self.ready.set(true);
        let waiter = self.waiter.borrow_mut().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Ready from the time it is set on, until cleared. The latest caller is the one waiter.
    fn poll_ready(&self, cx: &Context<'_>) -> Poll<()> {
        if self.ready.get() {
            return Poll::Ready(());
        }
        match &mut *self.waiter.borrow_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// A descriptor that the reactor of this core watches; both end together.
pub(super) struct Watch {
    fd: OwnedFd,
    key: usize,
    sides: Rc<Sides>,
    reactor: Rc<Reactor>,
}

impl Watch {
    /// Watches a non-blocking descriptor on the calling core.
    ///
    /// # Errors
    /// The kernel has no memory, or no watch left for this user.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Watch> {
        let reactor = current();
        let sides = Rc::<Sides>::default();
        let key = reactor.watched.borrow_mut().add(&sides);
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if let Err(error) = epoll::add(&reactor.epoll, &fd, EventData::new_u64(key as u64), events) {
            reactor.watched.borrow_mut().remove(key);
            return Err(error.into());
        }
        Ok(Watch { fd, key, sides, reactor })
    }

    /// The descriptor, for non-blocking calls.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Calls `attempt` when there may be something to read, until it does not say that it would block.
    pub(super) fn poll_read<T>(
        &self,
        cx: &Context<'_>,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            if self.sides.read.poll_ready(cx).is_pending() {
                return Poll::Pending;
            }
            match attempt(self.fd()) {
                Err(Errno::AGAIN) => self.sides.read.ready.set(false),
                Err(Errno::INTR) => {}
                result => return Poll::Ready(result.map_err(io::Error::from)),
            }
        }
    }

    /// The last read took all there was: the next one waits for an event.
    pub(super) fn read_all(&self) {
        // The end is no event of its own if it came together with the last bytes.
        self.sides.read.ready.set(self.sides.ended.get());
    }

    /// Waits until something may be written, after a write that would have blocked.
    pub(super) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        self.sides.write.poll_ready(cx)
    }

    /// The last write would have blocked: the next one waits for an event.
    pub(super) fn write_blocked(&self) {
        self.sides.write.ready.set(false);
    }

    /// Ready once for all events since the last time it was.
    pub(super) fn poll_event(&self, cx: &Context<'_>) -> Poll<()> {
        let polled = self.sides.read.poll_ready(cx);
        self.sides.read.ready.set(false);
        polled
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It can only fail if the descriptor is not watched, and then there is nothing to end.
        let _ = epoll::delete(&self.reactor.epoll, &self.fd);
        self.reactor.watched.borrow_mut().remove(self.key);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl Watched {
    fn add(&mut self, sides: &Rc<Sides>) -> usize {
        let key = self.free.pop().unwrap_or_else(|| {
            self.sides.push(None);
            self.sides.len() - 1
        });
        self.sides[key] = Some(Rc::clone(sides));
        key
    }

    fn get(&self, key: u64) -> Option<Rc<Sides>> {
        self.sides.get(usize::try_from(key).ok()?)?.clone()
    }

    fn remove(&mut self, key: usize) {
        self.sides[key] = None;
        self.free.push(key);
    }
}

/// Resolves at a moment; see [`sleep`].
pub(super) struct Sleep {
    at: (Instant, u64),
    alarm: Rc<Signal>,
    reactor: Rc<Reactor>,
}

/// Resolves after `duration`, on the calling core.
pub(super) fn sleep(duration: Duration) -> Sleep {
    let reactor = current();
    let number = reactor.next_timer.get();
    reactor.next_timer.set(number + 1);
    let now = Instant::now();
    let at = (now.checked_add(duration).unwrap_or(now + FAR), number);
    let alarm = Rc::<Signal>::default();
    reactor.timers.borrow_mut().insert(at, Rc::clone(&alarm));
    Sleep { at, alarm, reactor }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.poll_ready(cx)
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if !self.alarm.ready.get() {
            self.reactor.timers.borrow_mut().remove(&self.at);
        }
    }
}

/// Tells a core from any thread that something was left for it.
///
/// Ringing a core that is awake costs a store; only one that sleeps is woken with a system call.
#[derive(Debug)]
pub(super) struct Bell {
    rung: AtomicBool,
    asleep: AtomicBool,
    event: OwnedFd,
}

impl Bell {
    /// A bell that has not been rung.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub(super) fn new() -> io::Result<Bell> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { rung: AtomicBool::new(false), asleep: AtomicBool::new(false), event })
    }

    /// What was done before is seen by the core when it hears the bell.
    pub(super) fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        // Either this sees that the core is about to wait, or the core sees `rung` before it does.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // It fails only if it was rung 2^64 times without being heard.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Whether it was rung since the last call.
    fn take(&self) -> bool {
        self.is_rung() && self.rung.swap(false, Ordering::Acquire)
    }

    /// From now on a ring wakes the core, until [`Bell::wake_up`]. Whether it may wait: not if it was rung before.
    fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.is_rung()
    }

    fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

impl Reactor {
    /// The reactor of the calling thread, which has none yet. It spins for `spin` before it waits.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub(super) fn install(spin: Duration) -> io::Result<Rc<Reactor>> {
        let reactor = Rc::new(Reactor {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            watched: RefCell::default(),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
            bell: OnceCell::new(),
            polls: Cell::new(0),
            last_look: Cell::new(Instant::now()),
            stopped: Cell::new(false),
            spin,
            line: Line::default(),
        });
        REACTOR.set(Some(Rc::clone(&reactor)));
        Ok(reactor)
    }

    /// Ends [`run`], and all tasks with it.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
    }

    /// Calls `heard` on this core after `bell` was rung, once for any number of times. A core hears one bell.
    ///
    /// # Errors
    /// The kernel has no memory, or no watch left for this user. It hears a bell already.
    pub(super) fn hear(&self, bell: Arc<Bell>, heard: impl Fn() + 'static) -> io::Result<()> {
        let events = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, &bell.event, EventData::new_u64(BELL_KEY), events)?;
        let hearing = Hearing { bell, heard: Box::new(heard) };
        self.bell.set(hearing).map_err(|_| io::ErrorKind::AlreadyExists.into())
    }

    /// Whether the running task should let others run.
    pub(super) fn wants_turn(&self) -> bool {
        self.last_look.get().elapsed() >= TURN_MAX
    }

    /// Whether long work should give way.
    pub(super) fn wants_way(&self) -> bool {
        self.last_look.get().elapsed() >= PART_MAX
    }

    /// Waits until all else that is ready has run, and those with long work that have waited for longer.
    pub(super) async fn give_way(&self) {
        self.line.stand().await;
    }

    /// Tells who hears the bell; false if it was not rung.
    fn answer_bell(&self) -> bool {
        let Some(hearing) = self.bell.get().filter(|hearing| hearing.bell.take()) else { return false };
        (hearing.heard)();
        true
    }

    /// Wakes those whose time has come; false if there are none.
    fn fire_timers(&self, now: Instant) -> bool {
        let due = || {
            let mut timers = self.timers.borrow_mut();
            let first = timers.first_entry().filter(|first| first.key().0 <= now)?;
            Some(first.remove())
        };
        let mut any = false;
        while let Some(alarm) = due() {
            any = true;
            alarm.set();
        }
        any
    }

    /// Takes what has happened.
    fn look(&self, events: &mut Vec<Event>) {
        self.take(Some(NOW), events);
        self.looked();
    }

    /// Takes what has happened, and waits for it if it has to.
    fn wait(&self, events: &mut Vec<Event>) {
        let started = Instant::now();
        if self.fire_timers(started) || self.spin(started, events) {
            return self.look(events);
        }
        let bell = self.bell.get().map(|hearing| &*hearing.bell);
        if bell.is_none_or(Bell::fall_asleep) {
            self.take(self.timeout(started), events);
        }
        bell.inspect(|bell| bell.wake_up());
        self.looked();
    }

    fn looked(&self) {
        let now = Instant::now();
        self.last_look.set(now);
        self.fire_timers(now);
    }

    /// Looks without waiting for as long as it is set to; true if something happened.
    fn spin(&self, started: Instant, events: &mut Vec<Event>) -> bool {
        if self.spin.is_zero() {
            return false;
        }
        while started.elapsed() < self.spin {
            let is_rung = || self.bell.get().is_some_and(|hearing| hearing.bell.is_rung());
            if self.take(Some(NOW), events) || is_rung() || self.fire_timers(Instant::now()) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// How long from `now` until the first timer; none if there is no timer.
    fn timeout(&self, now: Instant) -> Option<Timespec> {
        let timers = self.timers.borrow();
        let ((at, _), _) = timers.first_key_value()?;
        Some(Timespec::try_from(at.saturating_duration_since(now)).unwrap_or(NOW))
    }

    /// Takes events; false if there are none.
    fn take(&self, timeout: Option<Timespec>, events: &mut Vec<Event>) -> bool {
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) => {}
            // A completion of the storage ring is work for this thread, and interrupts it.
            Err(Errno::INTR) => return false,
            Err(error) => unreachable!("a core cannot wait for events: {error}"),
        }
        for event in &*events {
            let (key, flags) = (event.data.u64(), event.flags);
            // The bell needs no event: it is looked at in every turn.
            let Some(sides) = self.watched.borrow().get(key) else { continue };
            let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            if flags.intersects(ended) {
                sides.ended.set(true);
            }
            if flags.intersects(EventFlags::IN | ended) {
                sides.read.set();
            }
            if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
                sides.write.set();
            }
        }
        !events.is_empty()
    }
}

/// No waiting.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The reactor of the calling core.
///
/// # Panics
/// If the calling thread is no core.
pub(super) fn current() -> Rc<Reactor> {
    with(Rc::clone)
}

/// Calls `f` with the reactor of the calling core.
///
/// # Panics
/// If the calling thread is no core.
pub(super) fn with<R>(f: impl FnOnce(&Rc<Reactor>) -> R) -> R {
    REACTOR.with_borrow(|reactor| f(reactor.as_ref().expect("called on a core")))
}

/// Looks and waits until the reactor is stopped. A task of the core's only task queue, not counted itself.
pub(super) async fn run(reactor: Rc<Reactor>) {
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let mut polls = reactor.polls.get();
    loop {
        futures_lite::future::yield_now().await;
        if reactor.stopped.get() {
            return;
        }
        let has_rung = reactor.answer_bell();
        let is_at_rest = reactor.polls.get() == polls && !has_rung;
        polls = reactor.polls.get();
        if is_at_rest && reactor.line.is_empty() {
            reactor.wait(&mut events);
            continue;
        }
        if reactor.last_look.get().elapsed() >= LOOK_EVERY {
            reactor.look(&mut events);
        }
        reactor.line.let_one_go();
    }
}

/// `task`, with its polls counted. It stands still when the reactor is stopped: the executor ends when no task is ready.
pub(super) async fn counted<T>(task: impl Future<Output = T>) -> T {
    let reactor = current();
    let mut task = std::pin::pin!(task);
    poll_fn(|cx| {
        if reactor.stopped.get() {
            return Poll::Pending;
        }
        reactor.polls.set(reactor.polls.get() + 1);
        task.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::AtomicU64;

    use super::super::executor::tests::on_one_core;
    use super::super::executor::{CoreId, CoreSettings, cpus_allowed, start};
    use super::super::host;
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    async fn read(watch: &Watch, room: usize) -> Vec<u8> {
        let mut buffer = vec![0; room];
        let read = poll_fn(|cx| watch.poll_read(cx, |fd| rustix::io::read(fd, &mut *buffer))).await.unwrap();
        if read > 0 && read < room {
            watch.read_all();
        }
        buffer.truncate(read);
        buffer
    }

    /// The last bytes and the end may be one event; bytes that come after a short read are another.
    #[test]
    fn a_reader_that_stops_at_a_short_read_misses_neither_bytes_nor_the_end() {
        let (ours, mut theirs) = pair();
        on_one_core(move || async move {
            let watch = Watch::new(ours.into()).unwrap();
            theirs.write_all(b"one").unwrap();
            assert_eq!(read(&watch, 2).await, b"on");
            assert_eq!(read(&watch, 2).await, b"e");
            let mut writer = theirs.try_clone().unwrap();
            host::spawn("writer", async move {
                host::sleep(Duration::from_millis(2)).await;
                writer.write_all(b"two").unwrap();
            });
            assert_eq!(read(&watch, 9).await, b"two");
            theirs.write_all(b"three").unwrap();
            drop(theirs);
            assert_eq!(read(&watch, 9).await, b"three");
            assert_eq!(read(&watch, 9).await, b"");
        });
    }

    #[test]
    fn timers_fire_in_order_not_early_and_a_dropped_one_never() {
        on_one_core(|| async {
            let order = Rc::new(RefCell::new(Vec::new()));
            let started = Instant::now();
            for ms in [9, 3, 6, 3] {
                let order = Rc::clone(&order);
                host::spawn("timer", async move {
                    host::sleep(Duration::from_millis(ms)).await;
                    order.borrow_mut().push((ms, started.elapsed()));
                });
            }
            let mut dropped = Box::pin(sleep(Duration::from_millis(1)));
            assert!(futures_lite::future::poll_once(dropped.as_mut()).await.is_none());
            drop(dropped);
            sleep(Duration::from_millis(20)).await;
            let order = order.borrow();
            assert_eq!(order.iter().map(|(ms, _)| *ms).collect::<Vec<_>>(), [3, 3, 6, 9]);
            assert!(order.iter().all(|(ms, elapsed)| *elapsed >= Duration::from_millis(*ms)), "{order:?}");
            assert!(current().timers.borrow().is_empty());
        });
    }

    #[test]
    fn a_timer_in_the_past_fires_and_one_that_nobody_could_wait_for_does_not() {
        on_one_core(|| async {
            sleep(Duration::ZERO).await;
            let far = sleep(Duration::MAX);
            sleep(Duration::from_millis(1)).await;
            assert!(!far.alarm.ready.get());
        });
    }

    /// Tasks that never come to rest do not keep the reactor from looking.
    #[test]
    fn sockets_and_timers_have_their_turn_beside_tasks_that_are_always_ready() {
        let (ours, mut theirs) = pair();
        on_one_core(move || async move {
            for _ in 0..3 {
                host::spawn("busy", async {
                    loop {
                        host::yield_now().await;
                    }
                });
            }
            let watch = Watch::new(ours.into()).unwrap();
            for round in 0..20 {
                sleep(Duration::from_millis(1)).await;
                theirs.write_all(&[round]).unwrap();
                assert_eq!(read(&watch, 9).await, [round]);
            }
        });
    }

    /// A thread rings at every moment of a core that sleeps, wakes and hears: each ring is heard before the next.
    #[test]
    fn no_ring_is_lost_whatever_the_core_is_doing() {
        const ROUNDS: u64 = 30_000;
        let bell = Arc::new(Bell::new().unwrap());
        let heard = Arc::new(AtomicU64::new(0));
        let (ringing, counting) = (Arc::clone(&bell), Arc::clone(&heard));
        let cpus = cpus_allowed().unwrap();
        let core = start(CoreId(0), cpus[0], &CoreSettings::default(), move || async move {
            let done = Rc::new(super::super::event::Event::new());
            let told = Rc::clone(&done);
            let count = move || {
                if counting.fetch_add(1, Ordering::SeqCst) + 1 == ROUNDS {
                    told.notify();
                }
            };
            current().hear(bell, count).unwrap();
            done.wait().await;
        });
        let core = core.unwrap();
        for round in 0..ROUNDS {
            ringing.ring();
            let started = Instant::now();
            while heard.load(Ordering::SeqCst) <= round {
                assert!(started.elapsed() < Duration::from_secs(60), "ring {round} was not heard");
                // Some rings find the core awake, some about to sleep, some asleep.
                (0..round % 64).for_each(|_| std::hint::spin_loop());
            }
            if round % 100 == 0 {
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        core.join().unwrap();
    }

    /// Four cores on one CPU: threads lose it all the time, also at the wrong moment.
    #[test]
    fn sleeping_core_wakes_up_although_its_thread_loses_the_cpu() {
        let cpu = cpus_allowed().unwrap()[0];
        let cores: Vec<_> = (0..4)
            .map(|core| {
                let body = || async {
                    for _ in 0..200 {
                        host::sleep(Duration::from_millis(2)).await;
                    }
                };
                start(CoreId(core), cpu, &CoreSettings::default(), body).unwrap()
            })
            .collect();
        for core in cores {
            core.join().unwrap();
        }
    }

    #[test]
    fn a_core_that_spins_sees_events_timers_and_rings() {
        let (ours, mut theirs) = pair();
        let settings =
            CoreSettings { spin_before_park: Duration::from_micros(500), ..CoreSettings::default() };
        let cpu = cpus_allowed().unwrap()[0];
        let body = move || async move {
            let watch = Watch::new(ours.into()).unwrap();
            let bell = Arc::new(Bell::new().unwrap());
            let done = Rc::new(super::super::event::Event::new());
            let told = Rc::clone(&done);
            current().hear(Arc::clone(&bell), move || told.notify()).unwrap();
            theirs.write_all(b"x").unwrap();
            assert_eq!(read(&watch, 9).await, b"x");
            let ringing = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(100));
                bell.ring();
            });
            done.wait().await;
            ringing.join().unwrap();
            sleep(Duration::from_micros(100)).await;
        };
        start(CoreId(0), cpu, &settings, body).unwrap().join().unwrap();
    }
}
