//! The demonstration's node: another process of this binary, its ready line, and the two ways in which it ends.
//!
//! Invariants
//! - A process that was started is always waited for; dropping it kills it.
//!
//! Does not know: what is asked of the node.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::error::DemoError;
use super::interrupt::Interrupt;

/// How long a node may take until it serves.
const READY_PATIENCE: Duration = Duration::from_secs(90);

/// How long a node may take to stop by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of the log that are shown if the node fails.
const LOG_TAIL_BYTES: u64 = 2048;

/// How a node is started.
#[derive(Debug, Clone)]
pub(super) struct NodeOptions {
    pub(super) scratch: PathBuf,
    pub(super) cores: Option<u16>,
    pub(super) vbuckets: Option<u16>,
    pub(super) interrupt: Interrupt,
}

/// What the node's ready line says, as far as the demonstration shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ReadyFacts {
    pub(super) listen: String,
    pub(super) cores: usize,
    pub(super) shards: u16,
    pub(super) vbuckets: u16,
    pub(super) clean: Option<bool>,
    pub(super) recovered_records: u64,
    pub(super) started_in_ms: u64,
}

/// A running node.
#[derive(Debug)]
pub(super) struct NodeProcess {
    child: Child,
    log: PathBuf,
    interrupt: Interrupt,
    pub(super) ready: ReadyFacts,
    /// From before the process was made until its ready line was read.
    pub(super) start_time: Duration,
}

impl NodeProcess {
    /// Starts a node and waits until it serves.
    pub(super) fn start(options: &NodeOptions) -> Result<NodeProcess, DemoError> {
        let started = Instant::now();
        let binary = std::env::current_exe().map_err(DemoError::io("find", "this binary"))?;
        let log = options.scratch.join("node.log");
        let log_file = OpenOptions::new().create(true).append(true).open(&log);
        let log_file = log_file.map_err(DemoError::io("open", &log))?;
        let mut command = Command::new(&binary);
        command.arg("serve").arg("--json").arg("--data").arg(options.scratch.join("data"));
        command.args(["--listen", "127.0.0.1:0", "--mgmt-listen", "127.0.0.1:0"]);
        for (flag, number) in [("--cores", options.cores), ("--vbuckets", options.vbuckets)] {
            if let Some(number) = number {
                command.arg(flag).arg(number.to_string());
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
        let mut child = command.spawn().map_err(DemoError::io("run", &binary))?;
        options.interrupt.set_node(pid_of(&child));
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let ready = ReadyFacts {
            listen: String::new(),
            cores: 0,
            shards: 0,
            vbuckets: 0,
            clean: None,
            recovered_records: 0,
            started_in_ms: 0,
        };
        let interrupt = options.interrupt.clone();
        let mut node = NodeProcess { child, log, interrupt, ready, start_time: Duration::ZERO };
        let what = match lines.recv_timeout(READY_PATIENCE) {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(ready) => {
                    node.ready = ready;
                    node.start_time = started.elapsed();
                    return Ok(node);
                }
                Err(error) => format!("printed a ready line that cannot be read ({error}): {line}"),
            },
            Err(mpsc::RecvTimeoutError::Timeout) => {
                format!("did not serve within {} s", READY_PATIENCE.as_secs())
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => "ended before it served".to_owned(),
        };
        Err(node.failure(what))
    }

    /// An error with the end of the node's log.
    fn failure(&self, what: String) -> DemoError {
        DemoError::Node { what, log: tail(&self.log).unwrap_or_default() }
    }

    /// Process id, for people.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self) -> Result<ExitStatus, DemoError> {
        self.child.wait().map_err(DemoError::io("wait for", "the node"))
    }

    /// kill -9.
    pub(super) fn kill(mut self) -> Result<(), DemoError> {
        self.interrupt.set_node(None);
        self.child.kill().map_err(DemoError::io("kill", "the node"))?;
        self.wait().map(|_| ())
    }

    /// SIGTERM, and the exit that must follow; returns how long that took.
    pub(super) fn stop(mut self) -> Result<Duration, DemoError> {
        let started = Instant::now();
        if let Some(pid) = pid_of(&self.child) {
            kill_process(pid, Signal::TERM)
                .map_err(|error| DemoError::io("stop", "the node")(error.into()))?;
        }
        loop {
            let ended = self.child.try_wait().map_err(DemoError::io("wait for", "the node"))?;
            match ended {
                Some(status) if status.success() => {
                    self.interrupt.set_node(None);
                    return Ok(started.elapsed());
                }
                Some(status) => return Err(self.failure(format!("did not stop cleanly ({status})"))),
                None if started.elapsed() > STOP_PATIENCE => {
                    let patience = STOP_PATIENCE.as_secs();
                    return Err(self.failure(format!("did not stop within {patience} s of SIGTERM")));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // After `kill` and `stop` there is nothing left to do, and both calls know it.
        self.interrupt.set_node(None);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}
