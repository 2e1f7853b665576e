//! One executor per core: a thread pinned to a CPU, with its own io_uring rings, tasks and timers.
//!
//! Invariants
//! - A core runs on exactly one CPU of the process's affinity mask; no two cores share one.
//! - What cannot start is reported as a [`StartError`] with a sentence for the operator, never as a panic.
//!
//! Cost: three rings and one helper thread a core. An idle core sleeps in the kernel.
//!
//! Does not know: what runs on a core.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use glommio::{ExecutorJoinHandle, GlommioError, Latency, LocalExecutorBuilder, Placement, Shares};

use super::host::panic_text;
use super::pulse;

/// Least `RLIMIT_MEMLOCK` with which an executor starts, in bytes.
pub const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// Preempt timer until a core's own task queue is up. Long, because the [pulse](super::pulse) does not beat yet.
const START_PREEMPT: Duration = Duration::from_secs(1);

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
    /// How long a ready task may keep sockets and timers waiting.
    pub preempt: Duration,
    /// How long an idle core spins before it sleeps; zero when clients run on the same CPUs.
    pub spin_before_park: Duration,
    /// Bytes that glommio registers with its rings. Ours owns the I/O buffers, so this is its minimum.
    pub io_memory_bytes: usize,
}

impl Default for CoreSettings {
    fn default() -> CoreSettings {
        CoreSettings {
            preempt: Duration::from_micros(200),
            spin_before_park: Duration::ZERO,
            io_memory_bytes: 64 << 10,
        }
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
    handle: ExecutorJoinHandle<T>,
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
    let preempt = settings.preempt;
    let handle = LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("core{core}"))
        .io_memory(settings.io_memory_bytes)
        .preempt_timer(START_PREEMPT)
        .spin_before_park(settings.spin_before_park)
        .spawn(move || async move {
            // The pulse beats before there is a preempt timer that could lose a wake-up.
            let mut pulse = pin!(pulse::beat());
            poll_fn(|cx| {
                let _ = pulse.as_mut().poll(cx);
                Poll::Ready(())
            })
            .await;
            let executor = glommio::executor();
            let queue = executor.create_task_queue(Shares::default(), Latency::Matters(preempt), "core");
            let task = async move { body().await };
            let mut task = glommio::spawn_local_into(task, queue).expect("the queue was just made");
            poll_fn(|cx| {
                let _ = pulse.as_mut().poll(cx);
                Pin::new(&mut task).poll(cx)
            })
            .await
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
        self.handle.join().map_err(|error| start_error(self.core, self.cpu, error))
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
