//! One executor per core: a thread pinned to a CPU, with its own tasks and its own `reactor`.
//!
//! Invariants
//! - A core runs on exactly one CPU of the process's affinity mask; no two cores share one.
//! - What cannot start is reported as a [`StartError`] with a sentence for the operator, never as a panic.
//!
//! Cost: three rings and one helper thread a core. An idle core sleeps in the kernel.
//!
//! Does not know: what runs on a core.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use glommio::{ExecutorJoinHandle, GlommioError, Latency, LocalExecutorBuilder, Placement, Shares};

use super::host::panic_text;
use super::reactor::{self, Reactor};

/// Least `RLIMIT_MEMLOCK` with which an executor starts, in bytes.
pub const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// Preempt timer of the executor: as rare as it can be, since all that happens is seen by the core's own reactor.
const PREEMPT: Duration = Duration::from_secs(24 * 3600);

/// One pinned thread of the node: executor, ring, sockets. Counts from 0 in the order of start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

impl CoreId {
    /// As an index into per-core arrays.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How an executor behaves.
#[derive(Clone, Debug)]
pub struct CoreSettings {
    /// How long an idle core spins before it sleeps; zero when clients run on the same CPUs.
    pub spin_before_park: Duration,
    /// Bytes that glommio registers with its rings. Ours owns the I/O buffers, so this is its minimum.
    pub io_memory_bytes: usize,
}

impl Default for CoreSettings {
    fn default() -> CoreSettings {
        CoreSettings { spin_before_park: Duration::ZERO, io_memory_bytes: 64 << 10 }
    }
}

/// Why a core did not start, or ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The limit on locked memory is below what an executor insists on.
    #[error(
        "core {core}: locked memory is limited to {found_bytes} bytes, an executor needs {MEMLOCK_BYTES_MIN}: raise \
         RLIMIT_MEMLOCK (LimitMEMLOCK= in a systemd unit, `ulimit -l`)"
    )]
    Memlock {
        /// Which core.
        core: CoreId,
        /// The limit.
        found_bytes: u64,
    },
    /// The kernel refused something else.
    #[error("core {core} on CPU {cpu} cannot start: {text}")]
    Executor {
        /// Which core.
        core: CoreId,
        /// Its CPU.
        cpu: usize,
        /// What glommio said.
        text: String,
    },
    /// A bug of ours.
    #[error("core {core} panicked: {text}")]
    Panicked {
        /// Which core.
        core: CoreId,
        /// The panic message.
        text: String,
    },
}

/// The CPUs that this process may run on, ascending.
///
/// # Errors
/// The kernel refused to tell.
pub fn cpus_allowed() -> std::io::Result<Vec<usize>> {
    let mask = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect())
}

/// A running core.
#[derive(Debug)]
pub struct CoreThread<T: Send + 'static> {
    core: CoreId,
    cpu: usize,
    /// With what kept its reactor from starting.
    handle: ExecutorJoinHandle<Result<T, String>>,
}

/// Starts `core` on `cpu`; `body` runs there and the core ends with it.
///
/// # Errors
/// No thread could be made. What the thread meets comes out of [`CoreThread::join`].
pub fn start<G, F, T>(
    core: CoreId,
    cpu: usize,
    settings: &CoreSettings,
    body: G,
) -> Result<CoreThread<T>, StartError>
where
    G: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let spin = settings.spin_before_park;
    let handle = LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("core{core}"))
        .io_memory(settings.io_memory_bytes)
        .preempt_timer(PREEMPT)
        .spawn(move || async move {
            let reactor = match Reactor::install(spin) {
                Ok(reactor) => reactor,
                Err(error) => return Err(error.to_string()),
            };
            // A queue of its own: it ends when it is empty, and the one who waits for the result is in another.
            let executor = glommio::executor();
            let queue = executor.create_task_queue(Shares::default(), Latency::NotImportant, "core");
            let watching = glommio::spawn_local_into(reactor::run(reactor.clone()), queue);
            let task = glommio::spawn_local_into(
                async move {
                    let result = reactor::counted(async move { body().await }).await;
                    reactor.stop();
                    result
                },
                queue,
            );
            let _watching = watching.expect("the queue was just made").detach();
            Ok(task.expect("the queue was just made").await)
        })
        .map_err(|error| start_error(core, cpu, error))?;
    Ok(CoreThread { core, cpu, handle })
}

impl<T: Send + 'static> CoreThread<T> {
    /// Waits until the core has ended.
    ///
    /// # Errors
    /// The executor did not start, or the core's body panicked.
    pub fn join(self) -> Result<T, StartError> {
        let (core, cpu) = (self.core, self.cpu);
        let ended = self.handle.join().map_err(|error| start_error(core, cpu, error))?;
        ended.map_err(|text| StartError::Executor { core, cpu, text })
    }
}

fn start_error(core: CoreId, cpu: usize, error: GlommioError<()>) -> StartError {
    match error {
        GlommioError::ReactorError(glommio::ReactorErrorKind::MemLockLimit(found_bytes, _)) => {
            StartError::Memlock { core, found_bytes }
        }
        GlommioError::BuilderError(glommio::BuilderErrorKind::ThreadPanic(panic)) => {
            StartError::Panicked { core, text: panic_text(&*panic).to_owned() }
        }
        // What the reactor meets arrives as an I/O error with this text in it.
        other if other.to_string().contains("MemLockLimit") => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            StartError::Memlock { core, found_bytes: limit.unwrap_or(u64::MAX) }
        }
        other => StartError::Executor { core, cpu, text: other.to_string() },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `body` on one core and gives back what it returned.
    pub(crate) fn on_one_core<G, F, T>(body: G) -> T
    where
        G: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let cpu = cpus_allowed().unwrap()[0];
        start(CoreId(0), cpu, &CoreSettings::default(), body).unwrap().join().unwrap()
    }

    #[test]
    fn core_runs_on_the_cpu_it_was_given() {
        for cpu in cpus_allowed().unwrap() {
            let core = start(CoreId(0), cpu, &CoreSettings::default(), || async { cpus_allowed().unwrap() });
            assert_eq!(core.unwrap().join().unwrap(), [cpu]);
        }
    }

    #[test]
    fn panic_of_a_core_comes_out_of_join_with_its_words() {
        let cpu = cpus_allowed().unwrap()[0];
        let core = start(CoreId(3), cpu, &CoreSettings::default(), || async { panic!("broken {}", 7) });
        let error = core.unwrap().join().unwrap_err();
        assert!(
            matches!(&error, StartError::Panicked { core: CoreId(3), text } if text == "broken 7"),
            "{error}"
        );
    }

    #[test]
    fn cpu_that_does_not_exist_is_an_error_that_names_it() {
        let error = start(CoreId(1), 4095, &CoreSettings::default(), || async {})
            .and_then(CoreThread::join)
            .unwrap_err();
        assert!(error.to_string().contains("4095"), "{error}");
    }
}
