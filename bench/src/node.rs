//! The node under test: a child process on a scratch directory, started, asked and stopped.
//!
//! Invariants
//! - The child never outlives its [`NodeProcess`].
//! - [`NodeProcess::stop`] is a clean stop, or an error.
//!
//! Does not know: what is measured.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringbase::client::{ClientError, ConnectOptions, Connection};
use ringbase::protocol::{Opcode, Request};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::error::BenchError;
use crate::process;
use crate::recorder;

/// Longest time a node has for starting and for stopping; both may replay or flush gigabytes.
const PATIENCE: Duration = Duration::from_secs(600);

/// Lines of the log that an error shows.
const LOG_LINES: usize = 5;

/// Setting that decides when a buffer of a range scan is sent.
const SEND_SIZE: &str = "range_scan_read_buffer_send_size";

/// How to start a node.
#[derive(Debug, Clone)]
pub(crate) struct NodeOptions {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its data directory.
    pub(crate) data: PathBuf,
    /// Its vbuckets.
    pub(crate) vbuckets: u16,
    /// Its cores.
    pub(crate) cores: u16,
    /// Its memory, as on its command line.
    pub(crate) memory: String,
}

/// The parts of the ready line that matter here.
#[derive(Debug, Clone, Deserialize)]
struct Ready {
    listen: SocketAddr,
    clean: Option<bool>,
    started_in_ms: u64,
}

/// A running node.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    child: Child,
    log: PathBuf,
    ready: Ready,
}

impl NodeProcess {
    /// Starts a node and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, ends, or is not ready in time.
    pub(crate) fn start(options: &NodeOptions) -> Result<NodeProcess, BenchError> {
        let log = options.data.with_extension("log");
        let log_file =
            File::options().create(true).append(true).open(&log).map_err(BenchError::file("write", &log))?;
        let mut child = Command::new(&options.program)
            .arg("serve")
            .arg("--data")
            .arg(&options.data)
            .args(["--listen", "127.0.0.1:0", "--mgmt-listen", "127.0.0.1:0", "--json", "--log", "warn"])
            .args(["--vbuckets", &options.vbuckets.to_string()])
            .args(["--cores", &options.cores.to_string()])
            .args(["--memory", &options.memory])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()
            .map_err(BenchError::file("run", &options.program))?;
        let (sender, line) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // Later lines are read so that the node never waits for a reader.
                    let _ = sender.send(line);
                }
            });
        }
        let nothing = Ready { listen: SocketAddr::from(([0; 4], 0)), clean: None, started_in_ms: 0 };
        let mut node = NodeProcess { child, log, ready: nothing };
        let line = match line.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => return Err(node.failed("is not ready in time".into())),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = node.child.wait().map_err(BenchError::system("wait for the node"))?;
                return Err(node.failed(format!("ended before it was ready ({status})")));
            }
        };
        node.ready = serde_json::from_str(&line)
            .map_err(|error| node.failed(format!("printed a ready line that is none ({error}): {line}")))?;
        Ok(node)
    }

    /// Stops it cleanly: everything acknowledged is in its files then.
    ///
    /// # Errors
    /// It does not end in time, or reports a failure.
    pub(crate) fn stop(mut self) -> Result<(), BenchError> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .map_err(|errno| BenchError::System { what: "signal the node", source: errno.into() })?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().map_err(BenchError::system("wait for the node"))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failed(format!("stopped with {status}"))),
                None if Instant::now() >= deadline => {
                    return Err(self.failed("does not stop".into()));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn failed(&self, found: String) -> BenchError {
        BenchError::Node { found, log: self.log.clone(), log_end: last_lines(&self.log) }
    }

    /// Whether it found the mark of a clean stop; `None` for a new directory.
    pub(crate) fn found_clean(&self) -> Option<bool> {
        self.ready.clean
    }

    /// Milliseconds from its start until it was ready.
    pub(crate) fn started_in_ms(&self) -> u64 {
        self.ready.started_in_ms
    }

    /// How to connect to it.
    pub(crate) fn connect_options(&self) -> ConnectOptions {
        ConnectOptions {
            timeout: Duration::from_secs(120),
            agent: "ringbench".to_owned(),
            ..ConnectOptions::to(self.ready.listen.to_string())
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.ready.listen
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connection for questions.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn connect(&self) -> Result<Control, BenchError> {
        Control::open(&self.connect_options())
    }

    /// A connection for questions about a bucket.
    ///
    /// # Errors
    /// It does not answer, or there is no such bucket.
    pub(crate) fn connect_to(&self, bucket: &str) -> Result<Control, BenchError> {
        let options = ConnectOptions { bucket: Some(bucket.to_owned()), ..self.connect_options() };
        Ok(Control { connection: Connection::open(&options)? })
    }

    /// CPU seconds so far.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, BenchError> {
        process::cpu_seconds(self.child.id()).map_err(BenchError::system("read the CPU time of the node"))
    }

    /// Resident bytes now.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn resident_bytes(&self) -> Result<u64, BenchError> {
        process::resident_bytes(self.child.id()).map_err(BenchError::system("read the memory of the node"))
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // After a clean stop there is nothing left to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| format!("\n  {line}")).collect()
}

/// Counters of the block cache.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct CacheCounts {
    /// Blocks found.
    pub(crate) hits: u64,
    /// Blocks that were read.
    pub(crate) misses: u64,
    /// Bytes held now.
    pub(crate) bytes: u64,
}

impl CacheCounts {
    /// What happened since `before`; bytes are those of now.
    pub(crate) fn since(self, before: CacheCounts) -> CacheCounts {
        CacheCounts {
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
            bytes: self.bytes,
        }
    }
}

/// A connection for statistics and settings.
#[derive(Debug)]
pub(crate) struct Control {
    connection: Connection,
}

impl Control {
    /// A connection as `options` say.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn open(options: &ConnectOptions) -> Result<Control, BenchError> {
        Ok(Control { connection: Connection::open(options)? })
    }

    /// A group of statistics.
    ///
    /// # Errors
    /// The node refuses or is gone.
    pub(crate) fn stats(&mut self, group: &str) -> Result<BTreeMap<String, String>, ClientError> {
        Ok(self.connection.stat_texts(group, b"")?.into_iter().collect())
    }

    /// The counters of the block cache.
    ///
    /// # Errors
    /// The node refuses, is gone, or has no such counters.
    pub(crate) fn cache(&mut self) -> Result<CacheCounts, BenchError> {
        let stats = self.stats("")?;
        Ok(CacheCounts {
            hits: number(&stats, "block_cache_hits")?,
            misses: number(&stats, "block_cache_misses")?,
            bytes: number(&stats, "block_cache_bytes")?,
        })
    }

    /// A histogram of `timings`, empty if there is none of this name.
    ///
    /// # Errors
    /// The node refuses or is gone, or the statistic is no histogram.
    pub(crate) fn histograms(&mut self, names: &[&str]) -> Result<Vec<Histogram<u64>>, BenchError> {
        let stats = self.stats("timings")?;
        names
            .iter()
            .map(|name| match stats.get(*name) {
                None => Ok(recorder::histogram()),
                Some(json) => recorder::from_stat_json(json).ok_or_else(|| {
                    BenchError::Unsound(format!("the statistic {name} is no histogram: {json}"))
                }),
            })
            .collect()
    }

    /// Sets counters and histograms of the node to 0.
    ///
    /// # Errors
    /// The node refuses or is gone.
    pub(crate) fn reset(&mut self) -> Result<(), BenchError> {
        self.stats("reset")?;
        Ok(())
    }

    /// Sets when a buffer of a range scan is sent: bytes, or `auto`.
    ///
    /// # Errors
    /// The node refuses or is gone.
    pub(crate) fn set_send_size(&mut self, value: &str) -> Result<(), BenchError> {
        /// Kind of parameter: of the vbuckets.
        const KIND: [u8; 4] = 5_u32.to_be_bytes();
        let request =
            Request::new(Opcode::SET_PARAM).extras(&KIND).key(SEND_SIZE.as_bytes()).value(value.as_bytes());
        self.connection.call(request, |_| ())?;
        Ok(())
    }

    /// Creates a bucket; `settings` are `key=value;key=value`.
    ///
    /// # Errors
    /// The node refuses or is gone.
    pub(crate) fn create_bucket(&mut self, name: &str, settings: &str) -> Result<(), BenchError> {
        Ok(self.connection.create_bucket(name, settings)?)
    }

    /// Waits until every vbucket has persisted what it has acknowledged.
    ///
    /// # Errors
    /// The node refuses or is gone, or it takes too long.
    pub(crate) fn wait_persisted(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.stats("vbucket-seqno")?;
            let behind = behind(&stats)?;
            if behind.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let text = format!("{} vbuckets are not persisted, {} first", behind.len(), behind[0]);
                return Err(BenchError::Unsound(text));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Vbuckets whose persisted seqno is below their high seqno.
fn behind(stats: &BTreeMap<String, String>) -> Result<Vec<String>, BenchError> {
    let mut behind = Vec::new();
    let mut seen = 0;
    for (name, high) in stats {
        let Some(vbucket) = name.strip_suffix(":high_seqno") else { continue };
        seen += 1;
        if stats.get(&format!("{vbucket}:last_persisted_seqno")) != Some(high) {
            behind.push(vbucket.to_owned());
        }
    }
    if seen == 0 {
        return Err(BenchError::Unsound("the node shows no seqnos of vbuckets".into()));
    }
    Ok(behind)
}

/// A statistic that is a number.
///
/// # Errors
/// It is missing or no number.
pub(crate) fn number(stats: &BTreeMap<String, String>, name: &str) -> Result<u64, BenchError> {
    stats
        .get(name)
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| BenchError::Unsound(format!("the node has no statistic {name} that is a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_vbucket_counts_as_persisted_only_when_both_seqnos_agree() {
        let stats = stats(&[
            ("vb_0:high_seqno", "7"),
            ("vb_0:last_persisted_seqno", "7"),
            ("vb_1:high_seqno", "9"),
            ("vb_1:last_persisted_seqno", "8"),
            ("vb_1:abs_high_seqno", "9"),
        ]);
        assert_eq!(behind(&stats).unwrap(), ["vb_1"]);
    }

    #[test]
    fn a_node_without_seqnos_is_not_taken_for_a_persisted_one() {
        assert!(behind(&stats(&[("ready", "yes")])).is_err());
    }

    #[test]
    fn counters_of_a_run_are_those_of_the_run_alone() {
        let before = CacheCounts { hits: 100, misses: 100, bytes: 1 };
        let after = CacheCounts { hits: 190, misses: 110, bytes: 5 };
        assert_eq!(after.since(before), CacheCounts { hits: 90, misses: 10, bytes: 5 });
    }

    #[test]
    fn a_program_that_is_no_node_is_an_error_that_shows_its_log() {
        let scratch = tempfile::tempdir().unwrap();
        let options = NodeOptions {
            program: PathBuf::from("/bin/false"),
            data: scratch.path().join("data"),
            vbuckets: 16,
            cores: 1,
            memory: "1GiB".into(),
        };
        let error = NodeProcess::start(&options).unwrap_err().to_string();
        assert!(error.contains("ended before it was ready") && error.contains("data.log"), "{error}");
        let missing = NodeOptions { program: scratch.path().join("nothing"), ..options };
        assert!(NodeProcess::start(&missing).unwrap_err().to_string().contains("cannot run"));
    }
}
