//! `ringbase check`: what this kernel, process, CPU layout and data directory allow, and what to change.
//!
//! Nothing is guessed that can be tried: rings and an executor are really started, and a file in the data directory is
//! really written with direct I/O, read back and removed.
//!
//! Does not know: running nodes, configuration beyond its own flags.

mod directory;
mod process;

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

pub use process::preflight;

/// Flags of `ringbase check`.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct CheckArgs {
    /// Data directory to be used; need not exist yet. Without it nothing is said about storage.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Cores the node is to run on [default: all that this process may use].
    #[arg(long, value_name = "N")]
    pub cores: Option<u16>,
    /// Connections the node is to serve.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub max_connections: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How a finding bears on running a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// The node runs, slower or with less.
    Degraded,
    /// The node cannot run.
    Prevents,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it bears on running a node.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to change; empty if nothing.
    pub advice: String,
}

impl Finding {
    fn good(subject: &'static str, found: impl Into<String>) -> Finding {
        Finding { subject, verdict: Verdict::Good, found: found.into(), advice: String::new() }
    }

    fn degraded(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { subject, verdict: Verdict::Degraded, found: found.into(), advice: advice.into() }
    }

    fn prevents(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { subject, verdict: Verdict::Prevents, found: found.into(), advice: advice.into() }
    }
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst verdict.
    pub verdict: Verdict,
    /// One entry a subject.
    pub findings: Vec<Finding>,
}

impl Report {
    fn new(findings: Vec<Finding>) -> Report {
        let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Good);
        Report { verdict, findings }
    }

    /// Exit code of the command: 0 a node can run, 1 something prevents it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        u8::from(self.verdict == Verdict::Prevents)
    }

    /// The report as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a report holds only strings and words")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let mark = match finding.verdict {
                Verdict::Good => "ok  ",
                Verdict::Degraded => "warn",
                Verdict::Prevents => "FAIL",
            };
            writeln!(f, "{mark}  {:<16} {}", finding.subject, finding.found)?;
            if !finding.advice.is_empty() {
                writeln!(f, "{:22} -> {}", "", finding.advice)?;
            }
        }
        f.write_str(match self.verdict {
            Verdict::Good => "a node runs well here\n",
            Verdict::Degraded => "a node runs here, with less than it could have\n",
            Verdict::Prevents => "a node cannot run here\n",
        })
    }
}

/// Looks at everything. Takes well under a second.
#[must_use]
pub fn check(args: &CheckArgs) -> Report {
    let mut findings = process::findings(args);
    if let Some(data) = &args.data {
        findings.extend(directory::findings(data));
    }
    Report::new(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_that_runs_these_tests_is_found_fit_to_run_a_node() {
        let directory = tempfile::tempdir().unwrap();
        let args = CheckArgs { data: Some(directory.path().to_owned()), ..CheckArgs::default() };
        let report = check(&args);
        assert_eq!(report.exit_code(), 0, "{report}");
        for subject in ["kernel", "io_uring", "executor", "locked memory", "cpus", "direct I/O", "free space"]
        {
            assert!(report.findings.iter().any(|finding| finding.subject == subject), "{subject}: {report}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "it left something behind");
    }

    #[test]
    fn one_thing_that_prevents_makes_the_exit_code_1_and_is_told_with_its_advice() {
        let report = Report::new(vec![
            Finding::good("a", "fine"),
            Finding::prevents("b", "broken", "mend it"),
            Finding::degraded("c", "slow", "speed up"),
        ]);
        assert_eq!(report.exit_code(), 1);
        let text = report.to_string();
        assert!(text.contains("FAIL  b") && text.contains("-> mend it"), "{text}");
        assert_eq!(report.to_json()["verdict"], "prevents");
        assert_eq!(report.to_json()["findings"][1]["advice"], "mend it");
    }

    #[test]
    fn directory_that_cannot_be_written_prevents_a_node() {
        let args = CheckArgs { data: Some("/proc/ringbase".into()), ..CheckArgs::default() };
        let report = check(&args);
        assert_eq!(report.exit_code(), 1, "{report}");
    }
}
