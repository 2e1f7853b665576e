//! What a device does by itself: operations a second, bytes a second and latencies at a given depth and pattern.
//!
//! `ringbench io` and the ceilings of other measurements call it; it goes through the same [`Device`] as the engine.
//!
//! Invariants
//! - Exactly `depth` operations are in flight from the start to the deadline; a latency ends when the task that waits
//!   for it runs, so it includes the host's scheduling.
//! - Writing probes overwrite the device.
//!
//! Cost: one task for each operation in flight; two readings of the clock an operation.
//!
//! Does not know: rings, how results are shown.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::completion::{Promise, promise};
use super::{BLOCK_BYTES, Device};
use crate::env::Env;
use crate::metrics::{IoClass, latency_histogram};

/// Where the operations of a probe go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// To random places, multiples of the operation's length.
    Random,
    /// One after the other, from the start again after the end.
    Sequential,
}

/// What a probe does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ProbePlan {
    /// Reads, writes, durable writes, or a write of one block and a sync after it.
    pub class: IoClass,
    /// Where.
    pub pattern: Pattern,
    /// Length of each operation in bytes, whole blocks.
    pub operation_bytes: usize,
    /// Operations in flight.
    pub depth: u32,
    /// No operation is started after this.
    pub duration: Duration,
}

impl ProbePlan {
    /// The plans of the usual table: random 4 KiB reads at depth 1, 8, 32 and 64, sequential 256 KiB reads at depth 1, 8 and
    /// 16, durable 4 KiB writes at depth 1.
    #[must_use]
    pub fn usual(duration: Duration) -> Vec<ProbePlan> {
        let random = [1, 8, 32, 64].map(|depth| (IoClass::Read, Pattern::Random, 4_096, depth));
        let sequential = [1, 8, 16].map(|depth| (IoClass::Read, Pattern::Sequential, 262_144, depth));
        let durable = [(IoClass::DurableWrite, Pattern::Sequential, 4_096, 1)];
        random
            .into_iter()
            .chain(sequential)
            .chain(durable)
            .map(|(class, pattern, operation_bytes, depth)| ProbePlan {
                class,
                pattern,
                operation_bytes,
                depth,
                duration,
            })
            .collect()
    }
}

/// What a probe found.
#[derive(Debug, Clone)]
pub struct ProbeResult {
    /// What was done.
    pub plan: ProbePlan,
    /// Operations that completed.
    pub operations: u64,
    /// From the first start to the last completion.
    pub elapsed: Duration,
    /// From call to completion of each operation, in nanoseconds.
    pub latency_ns: Histogram<u64>,
}

impl ProbeResult {
    /// Operations a second.
    #[must_use]
    pub fn operations_per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    /// Megabytes (10⁶ bytes) a second.
    #[must_use]
    pub fn megabytes_per_second(&self) -> f64 {
        self.operations_per_second() * self.plan.operation_bytes as f64 / 1e6
    }
}

/// State shared by the tasks of one probe.
struct Probe {
    plan: ProbePlan,
    /// Places that operations go to, in units of their length.
    places: u64,
    next_place: u64,
    deadline_ns: u64,
    operations: u64,
    latency_ns: Histogram<u64>,
    running: u32,
    failed: Option<io::Error>,
    done: Option<Promise<()>>,
}

impl Probe {
    /// Where the next operation goes, in bytes; `None` when the probe is over.
    fn next_offset(&mut self, env: &Env) -> Option<u64> {
        if self.failed.is_some() || env.clock.monotonic_ns() >= self.deadline_ns {
            return None;
        }
        let place = match self.plan.pattern {
            Pattern::Random => env.random_u64() % self.places,
            Pattern::Sequential => {
                self.next_place = (self.next_place + 1) % self.places;
                self.next_place
            }
        };
        Some(place * self.plan.operation_bytes as u64)
    }
}

/// Runs one probe over the whole of `device`.
///
/// # Errors
/// `InvalidInput`: the plan does not fit the device. Otherwise the first error of an operation.
pub async fn probe(env: &Env, device: &Rc<dyn Device>, plan: &ProbePlan) -> io::Result<ProbeResult> {
    let whole = plan.operation_bytes > 0 && plan.operation_bytes.is_multiple_of(BLOCK_BYTES);
    let places = device.len_bytes().checked_div(plan.operation_bytes as u64).unwrap_or(0);
    if !whole || places == 0 || plan.depth == 0 {
        let message = format!("{plan:?} does not fit {} of {} bytes", device.name(), device.len_bytes());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let started_ns = env.clock.monotonic_ns();
    let (done, completion) = promise();
    let shared = Rc::new(RefCell::new(Probe {
        plan: *plan,
        places,
        next_place: 0,
        deadline_ns: started_ns.saturating_add(u64::try_from(plan.duration.as_nanos()).unwrap_or(u64::MAX)),
        operations: 0,
        latency_ns: latency_histogram(),
        running: plan.depth,
        failed: None,
        done: Some(done),
    }));
    for _ in 0..plan.depth {
        env.spawn("probe", keep_going(env.clone(), Rc::clone(device), Rc::clone(&shared)));
    }
    completion.await;
    let elapsed = Duration::from_nanos(env.clock.monotonic_ns().saturating_sub(started_ns));
    let mut probe = shared.borrow_mut();
    if let Some(error) = probe.failed.take() {
        return Err(error);
    }
    Ok(ProbeResult {
        plan: *plan,
        operations: probe.operations,
        elapsed,
        latency_ns: probe.latency_ns.clone(),
    })
}

/// One of the operations in flight, again and again.
async fn keep_going(env: Env, device: Rc<dyn Device>, shared: Rc<RefCell<Probe>>) {
    let plan = shared.borrow().plan;
    let mut buffer = Some(device.buffer(plan.operation_bytes));
    loop {
        let offset = shared.borrow_mut().next_offset(&env);
        let Some(offset) = offset else { break };
        let writable = buffer.take().unwrap_or_else(|| device.buffer(plan.operation_bytes));
        let started_ns = env.clock.monotonic_ns();
        let result = match plan.class {
            IoClass::Read => device.read(offset, plan.operation_bytes).await.map(drop),
            IoClass::Write => device.write(offset, writable).await.map(|back| buffer = Some(back)),
            IoClass::DurableWrite => {
                device.write_durable(offset, writable).await.map(|back| buffer = Some(back))
            }
            IoClass::Sync => match device.write(offset, writable).await {
                Ok(back) => {
                    buffer = Some(back);
                    device.sync().await
                }
                Err(error) => Err(error),
            },
        };
        let ended_ns = env.clock.monotonic_ns();
        let mut probe = shared.borrow_mut();
        match result {
            Ok(()) => {
                probe.operations += 1;
                probe.latency_ns.saturating_record(ended_ns.saturating_sub(started_ns));
            }
            Err(error) => {
                probe.failed.get_or_insert(error);
            }
        }
    }
    let done = {
        let mut probe = shared.borrow_mut();
        probe.running -= 1;
        if probe.running == 0 { probe.done.take() } else { None }
    };
    if let Some(done) = done {
        done.fulfil(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::sim::SimExecutor;
    use crate::io::sim::{Fault, Injection, SimDisk};

    fn run(plan: &ProbePlan, prepare: impl FnOnce(&SimDisk)) -> io::Result<ProbeResult> {
        let (sim, disk) = (SimExecutor::new(1), SimDisk::new(1));
        disk.attach(&sim);
        disk.set_image("file", vec![0; 1 << 20]);
        disk.set_latency(Duration::from_micros(100), Duration::from_micros(100));
        prepare(&disk);
        let device = disk.open("file");
        sim.block_on(probe(&sim.env(), &device, plan))
    }

    /// Every operation of this disk takes 100 µs, so the answer is known.
    #[test]
    fn probe_of_a_disk_with_known_latency_finds_it_at_every_depth_and_class() {
        for depth in [1, 8, 64] {
            for (class, latency_us) in [
                (IoClass::Read, 100),
                (IoClass::Write, 100),
                (IoClass::DurableWrite, 200),
                (IoClass::Sync, 200),
            ] {
                let duration = Duration::from_millis(100);
                let plan =
                    ProbePlan { class, pattern: Pattern::Random, operation_bytes: 4096, depth, duration };
                let result = run(&plan, |_| {}).unwrap();
                let expected = f64::from(depth) * 1e6 / f64::from(latency_us);
                let share = result.operations_per_second() / expected;
                assert!((0.9..1.1).contains(&share), "{plan:?} found {share} of what the disk does");
                assert_eq!(result.latency_ns.len(), result.operations);
                let median_us = result.latency_ns.value_at_quantile(0.5) / 1_000;
                assert!(
                    (latency_us as u64..latency_us as u64 * 11 / 10).contains(&median_us),
                    "{median_us} µs"
                );
            }
        }
    }

    #[test]
    fn error_under_a_probe_ends_it_and_is_reported() {
        let duration = Duration::from_secs(1);
        let plan = ProbePlan {
            class: IoClass::Read,
            pattern: Pattern::Sequential,
            operation_bytes: 65_536,
            depth: 4,
            duration,
        };
        let error = run(&plan, |disk| disk.inject(Injection::nth(Fault::ReadError, 20))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn plan_that_does_not_fit_the_device_is_refused() {
        let plan = ProbePlan::usual(Duration::from_millis(1))[0];
        for plan in [
            ProbePlan { operation_bytes: 0, ..plan },
            ProbePlan { operation_bytes: 100, ..plan },
            ProbePlan { operation_bytes: 2 << 20, ..plan },
            ProbePlan { depth: 0, ..plan },
        ] {
            assert_eq!(run(&plan, |_| {}).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{plan:?}");
        }
    }
}
