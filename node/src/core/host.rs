//! A core as the storage engine sees it: clock, tasks, timers, randomness.
//!
//! Implements the traits of [`ringbase_storage::env`] with the executor of the calling thread. A task that panics
//! ends alone: the panic is logged with the task's name and the core goes on.
//!
//! Cost: a spawn allocates the task; `should_yield` reads the clock.
//!
//! Does not know: what the tasks do.

use std::cell::Cell;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_lite::FutureExt;
use rand::Rng;
use ringbase_storage::env::{Clock, Env, LocalFuture, Spawn};
use tracing::error;

use super::{memory, reactor};

/// The environment of the calling core. Must be called on an executor; usable only there.
#[must_use]
pub fn env() -> Env {
    let mut random = rand::rng();
    Env::new(Rc::new(CoreClock { start: *START.get_or_init(Instant::now) }), Rc::new(CoreSpawn), move || {
        random.next_u64()
    })
}

/// Starts a task on the calling core. It begins after the caller's next await, never inside this call: the caller may
/// hold borrows.
pub fn spawn(name: &'static str, task: impl Future<Output = ()> + 'static) {
    let guarded = reactor::counted(async move {
        if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
            error!(task = name, panic = panic_text(&*panic), "task panicked");
        }
    });
    let queue = glommio::executor().current_task_queue();
    match glommio::spawn_local_into(guarded, queue) {
        Ok(task) => drop(task.detach()),
        Err(error) => error!(task = name, %error, "task queue gone, task not started"),
    }
}

/// Resolves after `duration`.
pub async fn sleep(duration: Duration) {
    reactor::sleep(duration).await;
}

/// Lets the other ready tasks of this core run first.
pub async fn yield_now() {
    futures_lite::future::yield_now().await;
}

/// Whether others have waited for long while the running task had the core.
#[must_use]
pub fn should_yield() -> bool {
    reactor::with(|reactor| reactor.wants_turn())
}

/// Yields if others have waited for long: sockets and timers of this core get their turn.
pub async fn relax() {
    if should_yield() {
        yield_now().await;
    }
}

/// Gives way, if long work has had the core for a while: small requests come first. For tasks that go on for milliseconds.
pub async fn give_way() {
    let reactor = reactor::current();
    if reactor.wants_way() {
        reactor.give_way().await;
    }
}

/// What a panic said, for a log line.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// The machine's clocks.
///
/// Monotonic time counts from one moment for all cores, so that a request's age can be told on another one.
struct CoreClock {
    start: Instant,
}

/// The moment from which all cores count.
static START: OnceLock<Instant> = OnceLock::new();

thread_local! {
    /// What the wall clock of this core shows while it is held.
    static HELD_WALL_NS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Lets the wall clock of the calling core show one moment until the result is dropped: many short steps that follow each
/// other without an await need not each read it.
#[must_use]
pub fn hold_wall_clock() -> HeldWallClock {
    HELD_WALL_NS.set(Some(read_wall_ns()));
    HeldWallClock { _here: PhantomData }
}

/// The wall clock of this core stands still while this lives: a fraction of a millisecond, never across an await.
#[derive(Debug)]
pub struct HeldWallClock {
    _here: PhantomData<*const ()>,
}

impl Drop for HeldWallClock {
    fn drop(&mut self) {
        HELD_WALL_NS.set(None);
    }
}

fn read_wall_ns() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

impl Clock for CoreClock {
    fn wall_ns(&self) -> u64 {
        HELD_WALL_NS.get().unwrap_or_else(read_wall_ns)
    }

    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The executor of the calling thread.
struct CoreSpawn;

impl Spawn for CoreSpawn {
    fn spawn(&self, name: &'static str, task: LocalFuture<'static, ()>) {
        spawn(name, task);
    }

    fn sleep(&self, duration: Duration) -> LocalFuture<'static, ()> {
        Box::pin(sleep(duration))
    }

    fn yield_now(&self) -> LocalFuture<'static, ()> {
        let reactor = reactor::current();
        Box::pin(async move { reactor.give_way().await })
    }

    fn should_yield(&self) -> bool {
        reactor::with(|reactor| reactor.wants_way())
    }

    fn memory_let_go(&self) {
        memory::give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::super::executor::tests::on_one_core;
    use super::*;

    #[test]
    fn task_that_panics_ends_alone() {
        let done = on_one_core(|| async {
            let done = Rc::new(Cell::new(false));
            let env = env();
            env.spawn("panics", async { panic!("on purpose") });
            let flag = Rc::clone(&done);
            env.spawn("goes on", async move { flag.set(true) });
            env.spawn.sleep(Duration::from_millis(2)).await;
            done.get()
        });
        assert!(done);
    }

    #[test]
    fn held_wall_clock_stands_still_until_it_is_let_go_of() {
        on_one_core(|| async {
            let clock = env().clock;
            let held = hold_wall_clock();
            let (wall, monotonic) = (clock.wall_ns(), clock.monotonic_ns());
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(clock.wall_ns(), wall);
            assert!(clock.monotonic_ns() > monotonic);
            drop(held);
            assert_ne!(clock.wall_ns(), wall);
        });
    }

    #[test]
    fn spawned_task_does_not_run_inside_spawn() {
        on_one_core(|| async {
            let cell = Rc::new(RefCell::new(0));
            let borrowed = cell.borrow_mut();
            let other = Rc::clone(&cell);
            env().spawn("borrows", async move { *other.borrow_mut() += 1 });
            drop(borrowed);
            yield_now().await;
            assert_eq!(*cell.borrow(), 1);
        });
    }

    #[test]
    fn busy_task_is_asked_to_yield_and_timers_run_then() {
        on_one_core(|| async {
            let fired = Rc::new(Cell::new(false));
            let flag = Rc::clone(&fired);
            spawn("timer", async move {
                sleep(Duration::from_millis(5)).await;
                flag.set(true);
            });
            let started = Instant::now();
            while !fired.get() {
                assert!(started.elapsed() < Duration::from_secs(60), "the timer never fired");
                relax().await;
            }
        });
    }
}
