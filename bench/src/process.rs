//! What the system says about processes: CPU time and resident memory of the node, CPU time and device traffic of this one.
//!
//! Does not know: what the processes do.

use std::fs;
use std::io;

use rustix::time::{ClockId, clock_gettime};

/// CPU seconds of all threads of a process, kernel workers on its behalf included. Threads that have ended are missing, of which a node has none.
///
/// # Errors
/// The process is gone, or this kernel keeps no scheduler statistics.
pub(crate) fn cpu_seconds(pid: u32) -> io::Result<f64> {
    let mut total_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A worker thread may end between being listed and being read.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total_ns += run_ns(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a schedstat without numbers"))?;
    }
    Ok(total_ns as f64 / 1e9)
}

/// The first number of a schedstat: nanoseconds on a CPU.
fn run_ns(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// CPU seconds of this process, threads that have ended included.
pub(crate) fn own_cpu_seconds() -> f64 {
    seconds(ClockId::ProcessCPUTime)
}

/// CPU seconds of the calling thread.
pub(crate) fn thread_cpu_seconds() -> f64 {
    seconds(ClockId::ThreadCPUTime)
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Resident bytes of a process, exactly: the sum over its mappings.
///
/// # Errors
/// The process is gone, or it may not be looked at.
pub(crate) fn resident_bytes(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kibibytes(&text, "Rss:")
        .map(|kibibytes| kibibytes << 10)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "smaps_rollup without Rss"))
}

/// Bytes that this process has fetched from devices and has sent there, so far; what the page cache has is not fetched.
///
/// # Errors
/// This kernel does not count them.
pub(crate) fn own_io() -> io::Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/io")?;
    let number = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    number("read_bytes:").zip(number("write_bytes:")).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "an io file without read_bytes and write_bytes")
    })
}

/// The number after `name` at the beginning of a line.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_of_a_busy_process_rises_by_about_what_its_thread_used() {
        let (before, started) = (own_cpu_seconds(), thread_cpu_seconds());
        let listed = cpu_seconds(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while thread_cpu_seconds() - started < 0.05 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(own_cpu_seconds() - before >= 0.05);
        assert!(cpu_seconds(std::process::id()).unwrap() >= listed + 0.03);
    }

    #[test]
    fn resident_memory_rises_when_memory_is_touched() {
        let pid = std::process::id();
        let before = resident_bytes(pid).unwrap();
        // Far more than what tests beside this one may give back meanwhile.
        let touched = std::hint::black_box(vec![1_u8; 256 << 20]);
        assert!(resident_bytes(pid).unwrap() >= before + (128 << 20), "{}", touched.len());
    }

    #[test]
    fn what_is_written_through_to_a_device_is_counted() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let before = own_io().unwrap();
        fs::write(directory.path().join("file"), vec![1; 1 << 20]).unwrap();
        fs::File::open(directory.path().join("file")).unwrap().sync_all().unwrap();
        assert!(own_io().unwrap().1 >= before.1 + (1 << 20));
    }

    #[test]
    fn what_the_kernel_prints_is_read() {
        assert_eq!(run_ns("123 456 7\n"), Some(123));
        assert_eq!(run_ns(""), None);
        assert_eq!(kibibytes("0-1 [rollup]\nRss:       42 kB\nPss: 1 kB\n", "Rss:"), Some(42));
        assert_eq!(kibibytes("Pss: 1 kB\n", "Rss:"), None);
    }
}
