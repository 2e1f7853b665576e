//! Facts about the machine that a result is worth nothing without.
//!
//! Does not know: results.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::workload::file_system_type;

/// What ran where.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// Name and release of the kernel.
    pub(crate) kernel: String,
    /// Model of the processor.
    pub(crate) cpu: String,
    /// Processors that are online.
    pub(crate) cpus: usize,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// Type of the file system of the scratch directory, as the kernel names it.
    pub(crate) file_system: String,
    /// Load average of the last minute when the run began: more than a little says that others ran.
    pub(crate) load_at_start: f64,
    /// The same when it ended.
    pub(crate) load_at_end: f64,
    /// Seconds since 1970 when the run began.
    pub(crate) started_at: u64,
    /// The command.
    pub(crate) command: String,
}

impl Machine {
    /// This machine, now.
    pub(crate) fn look(scratch: &Path) -> Machine {
        let uname = rustix::system::uname();
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = text("/proc/cpuinfo");
        let model = field(&cpuinfo, "model name").unwrap_or("unknown");
        let memory = text("/proc/meminfo");
        let memory_kib = field(&memory, "MemTotal").and_then(|value| value.split(' ').next()?.parse().ok());
        let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Machine {
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy().split('-').next().unwrap_or_default()
            ),
            cpu: model.to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory_kib.unwrap_or(0_u64) >> 10,
            file_system: file_system_name(file_system_type(scratch).unwrap_or_default()),
            load_at_start: load_average(),
            load_at_end: f64::NAN,
            started_at,
            command: command(),
        }
    }

    /// What ran where, for the beginning of a summary.
    pub(crate) fn ran(&self) -> String {
        let Machine { command, kernel, cpus, cpu, memory_mib, .. } = self;
        format!("`{command}` on {kernel}, {cpus} CPUs ({cpu}), {memory_mib} MiB")
    }

    /// Who else ran, as far as the load says.
    pub(crate) fn load(&self) -> String {
        format!("load average {:.1} at the start, {:.1} at the end", self.load_at_start, self.load_at_end)
    }

    /// Notes the load at the end.
    pub(crate) fn finish(&mut self) {
        self.load_at_end = load_average();
    }
}

/// The command with the program's name alone.
fn command() -> String {
    let mut words = std::env::args();
    words.next();
    std::iter::once("ringbench".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// The value behind `name` and a colon.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

fn file_system_name(magic: i64) -> String {
    match magic {
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        other => format!("{other:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_those_of_this_machine() {
        let machine = Machine::look(Path::new("."));
        assert!(machine.kernel.starts_with("Linux ") && machine.cpus > 0 && machine.memory_mib > 0);
        assert!(machine.load_at_start >= 0.0);
    }

    #[test]
    fn fields_of_proc_files_are_found_by_their_name() {
        assert_eq!(field("a : 1\nmodel name\t: Fast One\n", "model name"), Some("Fast One"));
        assert_eq!(field("a : 1\n", "model name"), None);
    }
}
