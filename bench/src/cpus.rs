//! CPUs: which this process may use, threads bound to some of them, and threads that give way.
//!
//! A child process inherits the CPUs of the thread that starts it, so a server is bound by being started on a bound thread.
//!
//! Does not know: who runs where.

use std::io;

use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

use crate::error::BenchError;

/// The CPUs that this process may run on, ascending.
///
/// # Errors
/// The system does not tell.
pub(crate) fn allowed() -> Result<Vec<usize>, BenchError> {
    let set = sched_getaffinity(None)
        .map_err(|errno| BenchError::System { what: "read the CPU mask", source: errno.into() })?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Binds the calling thread to `cpus`.
///
/// # Errors
/// The system refuses; it does for no CPU at all.
pub(crate) fn bind(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// Runs `body` on a thread of its own that is bound to `cpus`, and waits for it.
///
/// # Errors
/// The thread cannot be bound.
pub(crate) fn on<T: Send>(cpus: &[usize], body: impl FnOnce() -> T + Send) -> Result<T, BenchError> {
    let bound = std::thread::scope(|scope| {
        let thread = scope.spawn(|| bind(cpus).map(|()| body()));
        thread.join().expect("a bound thread does not panic")
    });
    bound.map_err(BenchError::system("bind a thread to its CPUs"))
}

/// Gives the calling thread, and those it will make, the lowest priority.
///
/// # Errors
/// The system refuses.
pub(crate) fn yield_to_others() -> Result<(), BenchError> {
    set_nice(19)
        .map_err(|errno| BenchError::System { what: "lower the priority of a thread", source: errno.into() })
}

/// Gives the calling thread the highest priority, so that it runs as soon as it is woken. Says whether the system lets it, which takes the
/// right to (root, or CAP_SYS_NICE).
pub(crate) fn precede_others() -> bool {
    set_nice(-20).is_ok()
}

fn set_nice(nice: i32) -> rustix::io::Result<()> {
    // Linux takes a thread's number here, and sets the priority of that thread alone.
    setpriority_process(Some(gettid()), nice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_thread_and_what_it_starts_run_on_its_cpus_only() {
        let first = allowed().unwrap()[0];
        let (thread, child) = on(&[first], || {
            let status = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            (allowed().unwrap(), String::from_utf8(status.stdout).unwrap())
        })
        .unwrap();
        assert_eq!(thread, [first]);
        assert!(child.contains(&format!("Cpus_allowed_list:\t{first}\n")), "{child}");
        assert!(on(&[], || ()).is_err());
    }
}
