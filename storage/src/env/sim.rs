//! A simulated host: one seed decides the order of tasks, the clock and every random number.
//!
//! [`SimExecutor`] polls ready tasks in an order drawn from its seed, on the thread that calls it. Time is virtual:
//! it moves to the next timer or device completion when nothing is ready (and now and then a little before that, so that
//! completions arrive while tasks are still waiting for their turn). Dropping the executor drops every task
//! unfinished, as the death of the process would.
//!
//! Invariants
//! - The same seed and the same calls give the same [`SimExecutor::trace`]: no thread, no real clock, no hash order.
//! - Virtual monotonic time never goes back; the wall clock does when told to.
//! - A panic in a task reaches whoever drives the executor.
//!
//! Cost: some 100 ns a step.
//!
//! Does not know: disks; they schedule callbacks on its timeline.

use std::cell::{Cell, RefCell};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};

use super::tasks::{TaskId, Tasks};
use super::{Clock, Env, LocalFuture, Spawn};

/// Wall-clock time at which every simulation starts: 2026-01-01T00:00:00Z, in nanoseconds since the Unix epoch.
pub const WALL_START_NS: u64 = 1_767_225_600_000_000_000;

/// One in this many steps serves the timeline although tasks are ready …
const EARLY_EVENT_ODDS: u32 = 16;
/// … if the next event is at most this far away. A busy core serves a device late, it does not sleep through minutes.
const EARLY_EVENT_NS: u64 = 1_000_000;
/// One in this many calls of `should_yield` says yes.
const YIELD_ODDS: u32 = 8;

/// Mixes one number into a running trace.
pub(crate) fn mix(trace: u64, number: u64) -> u64 {
    (trace ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

#[derive(Default)]
struct TimerState {
    fired: bool,
    waker: Option<Waker>,
}

enum Action {
    /// A sleeping future; gone if the future was dropped.
    Timer(Weak<RefCell<TimerState>>),
    /// Something a simulated device does.
    Call(Box<dyn FnOnce()>),
}

struct Event {
    at_ns: u64,
    sequence: u64,
    action: Action,
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Event) -> Ordering {
        (self.at_ns, self.sequence).cmp(&(other.at_ns, other.sequence))
    }
}

/// What a step does next.
enum Pick {
    Task(TaskId),
    Event(Event),
    Nothing,
}

/// Time, tasks and randomness shared by an executor, its environments and its simulated disks.
pub(crate) struct Core {
    now_ns: Cell<u64>,
    wall_offset_ns: Cell<i64>,
    random: RefCell<Xoshiro256PlusPlus>,
    tasks: Tasks,
    events: RefCell<BinaryHeap<Reverse<Event>>>,
    next_sequence: Cell<u64>,
    halted: Cell<bool>,
    steps: Cell<u64>,
    trace: Cell<u64>,
}

impl Core {
    fn odds(&self, one_in: u32) -> bool {
        self.random.borrow_mut().random_range(0..one_in) == 0
    }

    fn spawn(&self, future: LocalFuture<'static, ()>) {
        if !self.halted.get() {
            self.tasks.spawn(future);
        }
    }

    /// Calls `action` after `delay_ns` of virtual time.
    pub(crate) fn schedule(&self, delay_ns: u64, action: Box<dyn FnOnce()>) {
        self.push_event(delay_ns, Action::Call(action));
    }

    /// The process dies: no task is polled and no time passes any more.
    pub(crate) fn halt(&self) {
        self.halted.set(true);
    }

    /// Whether the process has died.
    pub(crate) fn is_halted(&self) -> bool {
        self.halted.get()
    }

    /// Virtual nanoseconds since the start.
    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn push_event(&self, delay_ns: u64, action: Action) {
        let sequence = self.next_sequence.get();
        self.next_sequence.set(sequence + 1);
        let at_ns = self.now_ns.get().saturating_add(delay_ns);
        self.events.borrow_mut().push(Reverse(Event { at_ns, sequence, action }));
    }

    /// The next event that still matters, if it is due at or before `until_ns`.
    fn next_event(&self, until_ns: u64) -> Option<Event> {
        let mut events = self.events.borrow_mut();
        loop {
            let next = &events.peek()?.0;
            let is_dropped = matches!(&next.action, Action::Timer(state) if state.strong_count() == 0);
            if !is_dropped && next.at_ns > until_ns {
                return None;
            }
            let event = events.pop()?.0;
            if !is_dropped {
                return Some(event);
            }
        }
    }

    fn pick(&self) -> Pick {
        if self.halted.get() {
            return Pick::Nothing;
        }
        let ready_count = self.tasks.ready_count();
        if ready_count == 0 {
            return self.next_event(u64::MAX).map_or(Pick::Nothing, Pick::Event);
        }
        let soon = self.now_ns.get().saturating_add(EARLY_EVENT_NS);
        if self.odds(EARLY_EVENT_ODDS)
            && let Some(event) = self.next_event(soon)
        {
            return Pick::Event(event);
        }
        let chosen = self.random.borrow_mut().random_range(0..ready_count);
        self.tasks.take_at(chosen).map_or(Pick::Nothing, Pick::Task)
    }

    fn count_step(&self, what: u64) {
        self.steps.set(self.steps.get() + 1);
        self.trace.set(mix(self.trace.get(), what));
    }

    fn fire(&self, event: Event) {
        self.now_ns.set(self.now_ns.get().max(event.at_ns));
        self.count_step(mix(event.at_ns, event.sequence));
        match event.action {
            Action::Timer(state) => {
                if let Some(state) = state.upgrade() {
                    let waker = {
                        let mut state = state.borrow_mut();
                        state.fired = true;
                        state.waker.take()
                    };
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
            }
            Action::Call(call) => call(),
        }
    }

    fn poll_task(&self, id: TaskId) {
        self.count_step(id.number());
        self.tasks.poll(id);
    }

    /// Drops every task and every event.
    fn clear(&self) {
        self.halt();
        self.tasks.close();
        let events = std::mem::take(&mut *self.events.borrow_mut());
        drop(events);
    }
}

/// The environment that tasks see.
struct SimHost {
    core: Rc<Core>,
}

impl Clock for SimHost {
    fn wall_ns(&self) -> u64 {
        (WALL_START_NS + self.core.now_ns.get()).saturating_add_signed(self.core.wall_offset_ns.get())
    }

    fn monotonic_ns(&self) -> u64 {
        self.core.now_ns.get()
    }
}

impl Spawn for SimHost {
    fn spawn(&self, _name: &'static str, task: LocalFuture<'static, ()>) {
        self.core.spawn(task);
    }

    fn sleep(&self, duration: Duration) -> LocalFuture<'static, ()> {
        let state = Rc::new(RefCell::new(TimerState::default()));
        let delay_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.core.push_event(delay_ns, Action::Timer(Rc::downgrade(&state)));
        Box::pin(Sleep { state })
    }

    fn yield_now(&self) -> LocalFuture<'static, ()> {
        Box::pin(futures_lite::future::yield_now())
    }

    fn should_yield(&self) -> bool {
        self.core.odds(YIELD_ODDS)
    }
}

struct Sleep {
    state: Rc<RefCell<TimerState>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.fired {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// A seeded, single-threaded executor on virtual time. Dropping it drops its tasks: the process died.
pub struct SimExecutor {
    core: Rc<Core>,
}

impl SimExecutor {
    /// An executor whose every choice follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> SimExecutor {
        SimExecutor {
            core: Rc::new(Core {
                now_ns: Cell::new(0),
                wall_offset_ns: Cell::new(0),
                random: RefCell::new(Xoshiro256PlusPlus::seed_from_u64(seed)),
                tasks: Tasks::new(None),
                events: RefCell::default(),
                next_sequence: Cell::new(0),
                halted: Cell::new(false),
                steps: Cell::new(0),
                trace: Cell::new(0),
            }),
        }
    }

    /// The environment to hand to the code under test.
    #[must_use]
    pub fn env(&self) -> Env {
        let host = Rc::new(SimHost { core: Rc::clone(&self.core) });
        let core = Rc::clone(&self.core);
        Env::new(Rc::<SimHost>::clone(&host), host, move || core.random.borrow_mut().next_u64())
    }

    /// The timeline that simulated devices schedule on.
    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.core.spawn(Box::pin(task));
    }

    /// Does one thing: polls one ready task, or moves time to the next event. `false`: nothing is left to do, or the
    /// process was killed.
    pub fn step(&self) -> bool {
        match self.core.pick() {
            Pick::Task(id) => self.core.poll_task(id),
            Pick::Event(event) => self.core.fire(event),
            Pick::Nothing => return false,
        }
        true
    }

    /// Runs until `future` resolves. `None`: nothing is left that could wake it, or the process was killed.
    pub fn run_until<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let main_waker = self.core.tasks.host_waker();
        let waker = Waker::from(Arc::clone(&main_waker));
        waker.wake_by_ref();
        loop {
            match self.core.pick() {
                Pick::Task(id) if id == main_waker.id() => {
                    main_waker.taken();
                    self.core.count_step(u64::MAX);
                    if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Some(value);
                    }
                }
                Pick::Task(id) => self.core.poll_task(id),
                Pick::Event(event) => self.core.fire(event),
                Pick::Nothing => return None,
            }
        }
    }

    /// Runs until `future` resolves.
    ///
    /// # Panics
    /// If nothing is left that could wake it (a deadlock), or the process was killed.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.run_until(future)
            .expect("the future never resolved: deadlock, or the simulated process was killed")
    }

    /// Takes at most `steps` steps; returns how many there were to take.
    pub fn run_steps(&self, steps: u64) -> u64 {
        (0..steps).take_while(|_| self.step()).count() as u64
    }

    /// Runs until no task is ready and no event is left. Never returns while some task sleeps in a loop.
    pub fn run_until_idle(&self) {
        while self.step() {}
    }

    /// Runs until `duration` of virtual time has passed, or the process was killed.
    pub fn run_for(&self, duration: Duration) {
        let sleep = SimHost { core: Rc::clone(&self.core) }.sleep(duration);
        self.run_until(sleep);
    }

    /// Virtual nanoseconds since the executor was made.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.core.now_ns.get()
    }

    /// Lets virtual time pass at once, without serving what falls due in between.
    pub fn advance(&self, duration: Duration) {
        let by_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.core.now_ns.set(self.core.now_ns.get().saturating_add(by_ns));
    }

    /// Shifts the wall clock by `offset_ns` against its undisturbed course; negative puts it back.
    pub fn set_wall_offset(&self, offset_ns: i64) {
        self.core.wall_offset_ns.set(offset_ns);
    }

    /// The process dies here: no further step is taken.
    pub fn halt(&self) {
        self.core.halt();
    }

    /// Whether the simulated process was killed.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.core.halted.get()
    }

    /// Steps taken so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.core.steps.get()
    }

    /// A number that depends on every step taken so far and their order.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.core.trace.get()
    }
}

impl Drop for SimExecutor {
    fn drop(&mut self) {
        self.core.clear();
    }
}

impl std::fmt::Debug for SimExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimExecutor(at {} ns, {} steps, trace {:016x})", self.now_ns(), self.steps(), self.trace())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten tasks that take random turns; returns the order in which they noted themselves, and the trace.
    fn order(seed: u64) -> (Vec<u32>, u64) {
        let sim = SimExecutor::new(seed);
        let noted = Rc::new(RefCell::new(Vec::new()));
        for task in 0..10 {
            let env = sim.env();
            let noted = Rc::clone(&noted);
            sim.spawn(async move {
                for _ in 0..5 {
                    noted.borrow_mut().push(task);
                    env.relax().await;
                    env.spawn.sleep(Duration::from_micros(env.random_u64() % 50)).await;
                }
            });
        }
        sim.run_until_idle();
        let order = noted.borrow().clone();
        (order, sim.trace())
    }

    #[test]
    fn same_seed_gives_the_same_order_and_another_seed_another() {
        assert_eq!(order(1), order(1));
        assert_ne!(order(1).0, order(2).0);
        assert_eq!(order(1).0.len(), 50);
    }

    #[test]
    fn sleep_takes_virtual_time_and_no_real_time() {
        let sim = SimExecutor::new(3);
        let env = sim.env();
        let started = std::time::Instant::now();
        sim.block_on(env.spawn.sleep(Duration::from_secs(86_400)));
        assert_eq!(sim.now_ns(), 86_400_000_000_000);
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn dropped_sleep_does_not_move_time() {
        let sim = SimExecutor::new(3);
        drop(sim.env().spawn.sleep(Duration::from_secs(5)));
        sim.run_until_idle();
        assert_eq!(sim.now_ns(), 0);
    }

    #[test]
    fn wall_clock_goes_back_and_monotonic_clock_does_not() {
        let sim = SimExecutor::new(3);
        let env = sim.env();
        sim.run_for(Duration::from_secs(10));
        let (wall, monotonic) = (env.clock.wall_ns(), env.clock.monotonic_ns());
        sim.set_wall_offset(-5_000_000_000);
        assert_eq!(env.clock.wall_ns(), wall - 5_000_000_000);
        assert_eq!(env.clock.monotonic_ns(), monotonic);
    }

    #[test]
    fn run_until_reports_a_deadlock_as_none() {
        let sim = SimExecutor::new(3);
        assert_eq!(sim.run_until(std::future::pending::<()>()), None);
    }

    #[test]
    fn dropping_the_executor_drops_its_tasks_even_if_they_hold_their_environment() {
        let sim = SimExecutor::new(3);
        let witness = Rc::new(());
        let (env, held) = (sim.env(), Rc::clone(&witness));
        sim.spawn(async move {
            let _held = held;
            loop {
                env.spawn.sleep(Duration::from_secs(1)).await;
            }
        });
        sim.run_steps(10);
        assert_eq!(Rc::strong_count(&witness), 2);
        drop(sim);
        assert_eq!(Rc::strong_count(&witness), 1);
    }

    #[test]
    #[should_panic(expected = "in a task")]
    fn panic_in_a_task_reaches_the_driver() {
        let sim = SimExecutor::new(3);
        sim.spawn(async { panic!("in a task") });
        sim.run_until_idle();
    }

    #[test]
    fn halted_executor_takes_no_step() {
        let sim = SimExecutor::new(3);
        sim.spawn(async {});
        sim.halt();
        assert!(!sim.step());
        assert_eq!(sim.run_until(async { 1 }), None);
    }
}
