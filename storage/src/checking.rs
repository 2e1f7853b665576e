//! What tests under a model checker share: running a model, counting what it explored, and proving that it notices deliberate faults.
//!
//! A fault is turned on in a child process, because what a failing model leaves behind cannot be cleaned up: a thread that stands in the middle
//! of an operation is unwound, and its destructors meet a model that is no more.
//!
//! Does not know: what is checked.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::epoch::{free_buried, live_nodes};
use crate::mutant::{Guard, Mutant, turn_on};

/// Names the fault that a child process turns on.
const MUTANT: &str = "RINGBASE_MUTANT";

/// The faults that these checkers must notice.
const MUTANTS: [Mutant; 3] = [Mutant::FreeWithoutGrace, Mutant::PublishRelaxed, Mutant::ForgetReaders];

fn mutant_asked_for() -> Option<Guard> {
    let name = std::env::var(MUTANT).ok()?;
    let mutant = MUTANTS.into_iter().find(|mutant| format!("{mutant:?}") == name);
    Some(turn_on(mutant.expect("the name of a fault")))
}

/// One execution: nothing is left of it.
fn execute(body: &(impl Fn() + ?Sized)) {
    // The execution before may have ended in the middle, when the checker cut it short.
    free_buried();
    let nodes = live_nodes();
    body();
    assert_eq!(live_nodes(), nodes, "nodes are left");
}

/// Every interleaving of `body` with at most two preemptions (`LOOM_MAX_PREEMPTIONS` for another number).
#[cfg(loom)]
pub(crate) fn explore(body: impl Fn() + Send + Sync + 'static) {
    let _mutant = mutant_asked_for();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.max_branches = 20_000;
    let executions = std::sync::Arc::new(AtomicU64::new(0));
    let (count, began) = (executions.clone(), Instant::now());
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        execute(&body);
    });
    report(executions.load(Ordering::Relaxed), "interleavings", began);
}

/// `RINGBASE_SCHEDULES` random schedules of `body`, or `usual`: half of them uniform, half with few preemptions at random places.
#[cfg(shuttle)]
pub(crate) fn explore(usual: usize, body: impl Fn() + Send + Sync + 'static) {
    let _mutant = mutant_asked_for();
    let asked_for = std::env::var("RINGBASE_SCHEDULES").ok();
    let schedules = asked_for.map_or(usual, |number| number.parse().expect("RINGBASE_SCHEDULES is a number"));
    let executions = std::sync::Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let body = std::sync::Arc::new(body);
    let model = || {
        let (count, body) = (executions.clone(), body.clone());
        move || {
            count.fetch_add(1, Ordering::Relaxed);
            execute(&*body);
        }
    };
    shuttle::check_random(model(), schedules.div_ceil(2));
    shuttle::check_pct(model(), (schedules / 2).max(1), 3);
    report(executions.load(Ordering::Relaxed), "schedules", began);
}

fn report(count: u64, what: &str, began: Instant) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a model");
    println!("{name}: {count} {what} in {:.1} s", began.elapsed().as_secs_f64());
}

/// Runs the test `name` of this binary with a fault turned on, and demands that it fails and says one of `complaints`.
pub(crate) fn assert_caught(mutant: Mutant, name: &str, complaints: &[&str]) {
    let this = std::env::current_exe().expect("a test has a file");
    let output = Command::new(this)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(MUTANT, format!("{mutant:?}"))
        .output()
        .expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("running 1 test"), "there is no test {name}:\n{text}");
    assert!(!output.status.success(), "{name} does not notice {mutant:?}");
    let found = complaints.iter().find(|complaint| text.contains(**complaint));
    let complaint =
        found.unwrap_or_else(|| panic!("{name} fails with {mutant:?}, but not as expected:\n{text}"));
    println!("{mutant:?} is caught by {name}: {complaint}");
}
