//! What the kernel lets this process do.
//!
//! Does not know: directories.

use ringbase_storage::io::ring::{Ring, RingConfig, RingFacts};
use rustix::process::{Resource, getrlimit};

use super::{CheckArgs, Finding};
use crate::core::executor::{MEMLOCK_BYTES_MIN, cpus_allowed, start};
use crate::core::{CoreId, CoreSettings};

/// Oldest kernel that is supported: rings with a single issuer and without forced interrupts, as they behave since.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Locked memory of a core beside its storage ring: what its executor registers, and the rings themselves, in bytes.
const CORE_MEMLOCK_BYTES: u64 = 512 << 10;

/// Descriptors of a node beside its connections.
const FILES_BESIDE_CONNECTIONS: u64 = 512;

pub(super) fn findings(args: &CheckArgs) -> Vec<Finding> {
    let cpus = cpus_allowed();
    let cores = match (&cpus, args.cores) {
        (_, Some(cores)) => u64::from(cores),
        (Ok(cpus), None) => cpus.len() as u64,
        (Err(_), None) => 1,
    };
    let ring = try_ring();
    let mut findings = vec![kernel(), io_uring(&ring)];
    if let Ok(facts) = &ring {
        findings.push(registration(facts));
    }
    findings.push(locked_memory(cores));
    if ring.is_ok() && memlock_bytes().is_none_or(|bytes| bytes >= MEMLOCK_BYTES_MIN) {
        findings.push(executor(cpus.as_deref().unwrap_or(&[])));
    }
    findings.push(cpus_finding(&cpus, args.cores));
    findings.push(open_files(args.max_connections));
    findings
}

/// Whether an executor can be started at all: asked before the first one is, because a refusal inside the executor
/// is a panic or an exit.
///
/// # Errors
/// A sentence for the operator: what prevents it and what to change.
pub fn preflight() -> Result<(), String> {
    let ring = try_ring();
    let in_the_way = [io_uring(&ring), locked_memory(1)]
        .into_iter()
        .find(|finding| finding.verdict == super::Verdict::Prevents);
    match in_the_way {
        Some(finding) => Err(format!("{}: {}: {}", finding.subject, finding.found, finding.advice)),
        None => Ok(()),
    }
}

/// Sets up a ring in a thread of its own and tells what became of it.
fn try_ring() -> Result<RingFacts, String> {
    let attempt = || {
        let ring = Ring::new(&RingConfig::default()).map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| format!(" ({source})"));
            format!("{error}{}", source.unwrap_or_default())
        })?;
        Ok(ring.facts().clone())
    };
    std::thread::spawn(attempt).join().unwrap_or_else(|_| Err("setting up a ring panicked".into()))
}

fn kernel() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let (major, minor) = KERNEL_MIN;
    match version(&release) {
        Some(found) if found < KERNEL_MIN => {
            Finding::prevents("kernel", release, format!("use Linux {major}.{minor} or later"))
        }
        Some(_) => Finding::good("kernel", release),
        None => {
            Finding::degraded("kernel", release, format!("make sure that it is at least {major}.{minor}"))
        }
    }
}

/// The first two numbers of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn io_uring(ring: &Result<RingFacts, String>) -> Finding {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let sysctl = sysctl.as_deref().map(str::trim);
    match ring {
        Ok(facts) => Finding::good(
            "io_uring",
            format!(
                "works: {} entries, single issuer {}, cooperative {}",
                facts.entries, facts.single_issuer, facts.coop_taskrun
            ),
        ),
        Err(error) => {
            let advice = match sysctl {
                Some("2") => "it is disabled for everybody: sysctl kernel.io_uring_disabled=0".into(),
                Some("1") => {
                    "it is disabled for this user: sysctl kernel.io_uring_disabled=0, or run in the group of kernel.io_uring_group"
                        .into()
                }
                _ if is_filtered() => {
                    "a seccomp filter is active: allow io_uring_setup, io_uring_enter and io_uring_register in the \
                     container's profile"
                        .into()
                }
                other => format!("kernel.io_uring_disabled is {}", other.unwrap_or("absent")),
            };
            Finding::prevents("io_uring", error.clone(), advice)
        }
    }
}

/// Whether a seccomp filter restricts this process.
fn is_filtered() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

fn registration(facts: &RingFacts) -> Finding {
    let found = format!(
        "{} files, {} KiB of {} KiB of buffers",
        facts.registered_files,
        facts.registered_buffer_bytes >> 10,
        facts.arena_bytes >> 10
    );
    match &facts.unregistered_because {
        None => Finding::good("registration", found),
        Some(why) => Finding::degraded(
            "registration",
            format!("{found} ({why})"),
            "the node runs, at some more CPU a request; raise RLIMIT_MEMLOCK (LimitMEMLOCK= in a systemd unit, `ulimit -l`)",
        ),
    }
}

/// The limit on locked memory in bytes, if there is one.
fn memlock_bytes() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

fn locked_memory(cores: u64) -> Finding {
    let needed = cores * (RingConfig::default().arena_bytes as u64 + CORE_MEMLOCK_BYTES);
    let advice = format!(
        "raise RLIMIT_MEMLOCK to {} KiB (LimitMEMLOCK= in a systemd unit, `ulimit -l`)",
        needed >> 10
    );
    match memlock_bytes() {
        None => Finding::good("locked memory", "no limit"),
        Some(bytes) if bytes < MEMLOCK_BYTES_MIN => Finding::prevents(
            "locked memory",
            format!("limit {} KiB, an executor needs {} KiB", bytes >> 10, MEMLOCK_BYTES_MIN >> 10),
            advice,
        ),
        Some(bytes) if bytes < needed && !rustix::process::geteuid().is_root() => Finding::degraded(
            "locked memory",
            format!("limit {} KiB, {cores} cores register up to {} KiB", bytes >> 10, needed >> 10),
            advice,
        ),
        Some(bytes) => Finding::good("locked memory", format!("limit {} KiB", bytes >> 10)),
    }
}

fn executor(cpus: &[usize]) -> Finding {
    let Some(&cpu) = cpus.first() else {
        return Finding::prevents(
            "executor",
            "no CPU to start it on",
            "look at the affinity mask (taskset -p)",
        );
    };
    let result = start(CoreId(0), cpu, &CoreSettings::default(), || async {}).and_then(|core| core.join());
    match result {
        Ok(()) => Finding::good("executor", format!("starts on CPU {cpu}")),
        Err(error) => Finding::prevents("executor", error.to_string(), "see above"),
    }
}

fn cpus_finding(cpus: &std::io::Result<Vec<usize>>, wanted: Option<u16>) -> Finding {
    let allowed = match cpus {
        Ok(cpus) => cpus,
        Err(error) => {
            return Finding::prevents("cpus", format!("unknown: {error}"), "allow sched_getaffinity");
        }
    };
    let found = format!("{} allowed: {}", allowed.len(), ranges(allowed));
    match wanted.map(usize::from) {
        Some(wanted) if wanted > allowed.len() => Finding::prevents(
            "cpus",
            format!("{found}; {wanted} wanted"),
            "each core needs a CPU of its own: lower --cores, or widen the affinity mask (taskset, cpuset)",
        ),
        _ => Finding::good("cpus", found),
    }
}

/// Numbers as `0-3,8`.
fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => parts.push((number, number)),
        }
    }
    let text = |(start, end): (usize, usize)| {
        if start == end { start.to_string() } else { format!("{start}-{end}") }
    };
    parts.into_iter().map(text).collect::<Vec<_>>().join(",")
}

fn open_files(max_connections: u32) -> Finding {
    let needed = u64::from(max_connections) + FILES_BESIDE_CONNECTIONS;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Finding::degraded(
            "open files",
            format!("limit {limit}, {max_connections} connections need {needed}"),
            "raise RLIMIT_NOFILE (LimitNOFILE= in a systemd unit, `ulimit -n`), or lower --max-connections",
        ),
        Some(limit) => Finding::good("open files", format!("limit {limit}")),
        None => Finding::good("open files", "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn kernel_releases_of_distributions_are_read() {
        assert_eq!(version("6.18.44-generic"), Some((6, 18)));
        assert_eq!(version("5.4.0"), Some((5, 4)));
        assert_eq!(version("6.1-rc3+"), Some((6, 1)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn cpu_lists_are_shown_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn more_cores_than_cpus_prevent_a_node() {
        let finding = cpus_finding(&Ok(vec![0, 1]), Some(3));
        assert_eq!(finding.verdict, Verdict::Prevents);
        assert!(finding.found.contains("0-1"), "{finding:?}");
        assert_eq!(cpus_finding(&Ok(vec![0, 1]), Some(2)).verdict, Verdict::Good);
    }

    #[test]
    fn refused_ring_prevents_a_node_and_says_what_the_kernel_said() {
        let finding = io_uring(&Err("Operation not permitted".into()));
        assert_eq!(finding.verdict, Verdict::Prevents);
        assert!(finding.found.contains("not permitted") && !finding.advice.is_empty(), "{finding:?}");
    }

    #[test]
    fn connections_beyond_the_descriptor_limit_are_told() {
        assert_eq!(
            open_files(u32::MAX).verdict == Verdict::Degraded,
            getrlimit(Resource::Nofile).current.is_some()
        );
        assert_eq!(open_files(1).verdict, Verdict::Good);
    }

    #[test]
    fn preflight_passes_where_executors_start() {
        assert_eq!(preflight(), Ok(()));
    }
}
