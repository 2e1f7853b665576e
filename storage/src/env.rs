//! What the engine needs from its host: time, randomness, tasks. Real and simulated.
//!
//! A host (the node's executor, the blocking host, the simulator) builds one [`Env`] per core and
//! passes clones of it down. Nothing in the engine reads a clock, a random source or spawns in any other way,
//! so a seed decides everything in a simulation.
//!
//! Does not know: who uses it.

#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub(crate) mod tasks;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// A future that stays on its core.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Wall-clock and monotonic time of a host.
pub trait Clock {
    /// Nanoseconds since the Unix epoch; may go back.
    fn wall_ns(&self) -> u64;
    /// Nanoseconds since some fixed moment; never goes back.
    fn monotonic_ns(&self) -> u64;
}

/// Tasks and timers of a host.
pub trait Spawn {
    /// Starts a task on this core; it runs until it ends or the host stops.
    fn spawn(&self, name: &'static str, task: LocalFuture<'static, ()>);
    /// Resolves after `duration`.
    fn sleep(&self, duration: Duration) -> LocalFuture<'static, ()>;
    /// Lets other tasks of this core run if the host says they have waited long enough.
    fn yield_now(&self) -> LocalFuture<'static, ()>;
    /// Whether the running task should yield soon: cheap, called once per small batch.
    fn should_yield(&self) -> bool;
    /// Much memory was let go of, more than will be used again soon: a host may give it back to the system, not on this thread.
    fn memory_let_go(&self) {}
}

/// The host of one core, as the engine sees it. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    /// Time.
    pub clock: Rc<dyn Clock>,
    /// Tasks.
    pub spawn: Rc<dyn Spawn>,
    random: Rc<RefCell<dyn FnMut() -> u64>>,
}

impl Env {
    /// An environment from its parts; `random` gives 64 random bits a call.
    pub fn new(clock: Rc<dyn Clock>, spawn: Rc<dyn Spawn>, random: impl FnMut() -> u64 + 'static) -> Env {
        Env { clock, spawn, random: Rc::new(RefCell::new(random)) }
    }

    /// 64 random bits.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        (self.random.borrow_mut())()
    }

    /// Starts a task on this core.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.spawn.spawn(name, Box::pin(task));
    }

    /// Yields if the host asks for it; costs one call otherwise.
    pub async fn relax(&self) {
        if self.spawn.should_yield() {
            self.spawn.yield_now().await;
        }
    }
}
