//! The servers under test, each a child process on the CPUs it is given, on loopback.
//!
//! Invariants
//! - A child never outlives its [`Server`].
//! - All threads of a server run on the CPUs it was given and nowhere else.
//!
//! Does not know: what is measured.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use crate::cpus;
use crate::error::BenchError;
use crate::node::{NodeOptions, NodeProcess};
use crate::process;
use crate::traffic::Target;

/// The bucket of the node.
const BUCKET: &str = "kv";

/// Longest time until memcached or the echo tells where it listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ServerKind {
    /// A node.
    Ringbase,
    /// The peer.
    Memcached,
    /// Bare frames on the node's runtime.
    Echo,
}

impl ServerKind {
    /// As in the tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            ServerKind::Ringbase => "ringbase",
            ServerKind::Memcached => "memcached",
            ServerKind::Echo => "echo",
        }
    }
}

/// Where the node's documents live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BucketType {
    /// In memory only, as memcached's.
    Ephemeral,
    /// In memory and on disk.
    Persistent,
}

impl BucketType {
    /// The settings of the bucket: a document that finds no room is refused, never another one thrown out.
    fn settings(self) -> &'static str {
        match self {
            BucketType::Ephemeral => "bucket_type=ephemeral;ephemeral_full_policy=fail_new_data",
            BucketType::Persistent => "bucket_type=persistent",
        }
    }
}

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    kind: ServerKind,
    process: Process,
    target: Target,
}

#[derive(Debug)]
enum Process {
    Node(NodeProcess),
    Other(OtherProcess),
}

impl Server {
    /// A node with one bucket for the documents.
    ///
    /// # Errors
    /// It does not start, or refuses the bucket.
    pub(super) fn ringbase(
        options: &NodeOptions,
        bucket_type: BucketType,
        cpus: &[usize],
    ) -> Result<Server, BenchError> {
        let node = cpus::on(cpus, || NodeProcess::start(options))??;
        node.connect()?.create_bucket(BUCKET, bucket_type.settings())?;
        let target = Target {
            name: ServerKind::Ringbase.name(),
            address: node.address(),
            bucket: Some(BUCKET),
            vbuckets: options.vbuckets,
        };
        Ok(Server { kind: ServerKind::Ringbase, process: Process::Node(node), target })
    }

    /// memcached with as many worker threads as CPUs; `scratch` is for its files.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn memcached(
        program: &Path,
        memory_bytes: u64,
        connections_max: usize,
        scratch: &Path,
        cpus: &[usize],
    ) -> Result<Server, BenchError> {
        let port_file = scratch.join("memcached.port");
        if let Err(error) = fs::remove_file(&port_file)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(BenchError::file("remove the old", &port_file)(error));
        }
        let log = scratch.join("memcached.log");
        let log_file = File::create(&log).map_err(BenchError::file("write", &log))?;
        let mut command = Command::new(program);
        command
            .args(["-l", "127.0.0.1", "-p", "-1", "-U", "0", "-B", "binary"])
            .args(["-t", &cpus.len().to_string()])
            .args(["-m", &(memory_bytes >> 20).to_string()])
            .args(["-c", &(connections_max + 64).to_string()])
            .env("MEMCACHED_PORT_FILENAME", &port_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file);
        if rustix::process::geteuid().is_root() {
            // It refuses to run as root unless told to.
            command.args(["-u", "root"]);
        }
        let mut process = OtherProcess::start(&mut command, program, cpus)?;
        let deadline = Instant::now() + PATIENCE;
        let address = loop {
            // The file appears under its name when it is whole.
            if let Some(address) = fs::read_to_string(&port_file).ok().and_then(|text| listening(&text)) {
                break address;
            }
            let ended = process.child.try_wait().map_err(BenchError::system("wait for memcached"))?;
            if ended.is_some() || Instant::now() >= deadline {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let text = format!("memcached does not tell its port; it said: {}", said.trim_end());
                return Err(BenchError::Unsound(text));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let target = Target { name: ServerKind::Memcached.name(), address, bucket: None, vbuckets: 1 };
        Ok(Server { kind: ServerKind::Memcached, process: Process::Other(process), target })
    }

    /// The bare echo: this program again.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn echo(cpus: &[usize]) -> Result<Server, BenchError> {
        let program = std::env::current_exe().map_err(BenchError::system("find this program"))?;
        let mut command = Command::new(&program);
        command
            .args(["echo", "--cores", &cpus.len().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = OtherProcess::start(&mut command, &program, cpus)?;
        let mut line = String::new();
        if let Some(stdout) = process.child.stdout.take() {
            let read = BufReader::new(stdout).read_line(&mut line);
            read.map_err(BenchError::system("read what the echo says"))?;
        }
        let address = line
            .trim_end()
            .parse()
            .map_err(|_| BenchError::Unsound(format!("the echo does not tell its address, but {line:?}")))?;
        let target = Target { name: ServerKind::Echo.name(), address, bucket: None, vbuckets: 1 };
        Ok(Server { kind: ServerKind::Echo, process: Process::Other(process), target })
    }

    /// Which it is.
    pub(super) fn kind(&self) -> ServerKind {
        self.kind
    }

    /// Where it is.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    fn pid(&self) -> u32 {
        match &self.process {
            Process::Node(node) => node.pid(),
            Process::Other(other) => other.child.id(),
        }
    }

    /// CPU seconds so far.
    ///
    /// # Errors
    /// It is gone.
    pub(super) fn cpu_seconds(&self) -> Result<f64, BenchError> {
        process::cpu_seconds(self.pid()).map_err(BenchError::system("read the CPU time of a server"))
    }

    /// Resident bytes now.
    ///
    /// # Errors
    /// It is gone.
    pub(super) fn resident_bytes(&self) -> Result<u64, BenchError> {
        process::resident_bytes(self.pid()).map_err(BenchError::system("read the memory of a server"))
    }

    /// Waits until a persistent bucket has its documents on disk; nothing for others.
    ///
    /// # Errors
    /// The node is gone, or it takes too long.
    pub(super) fn wait_persisted(&self, bucket_type: BucketType) -> Result<(), BenchError> {
        match &self.process {
            Process::Node(node) if bucket_type == BucketType::Persistent => {
                node.connect_to(BUCKET)?.wait_persisted()
            }
            _ => Ok(()),
        }
    }

    /// Ends it; a node cleanly.
    ///
    /// # Errors
    /// A node that does not stop cleanly.
    pub(super) fn stop(self) -> Result<(), BenchError> {
        match self.process {
            Process::Node(node) => node.stop(),
            Process::Other(_) => Ok(()),
        }
    }
}

/// The address in the file in which memcached tells its ports.
fn listening(text: &str) -> Option<SocketAddr> {
    let port = text.lines().find_map(|line| line.strip_prefix("TCP INET: "))?;
    Some(SocketAddr::from(([127, 0, 0, 1], port.trim().parse().ok()?)))
}

/// A child that is ended by killing it.
#[derive(Debug)]
struct OtherProcess {
    child: Child,
}

impl OtherProcess {
    fn start(command: &mut Command, program: &Path, cpus: &[usize]) -> Result<OtherProcess, BenchError> {
        let child = cpus::on(cpus, || command.spawn())?.map_err(BenchError::file("run", program))?;
        Ok(OtherProcess { child })
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        // One that has ended by itself is only collected.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A memcached program.
#[derive(Debug, Clone)]
pub(super) struct Memcached {
    /// Where it is.
    pub(super) program: PathBuf,
    /// What it says it is.
    pub(super) version: String,
}

impl Memcached {
    /// Asks the program at `program`, which may be a name to be searched for.
    ///
    /// # Errors
    /// There is none; the sentence says how to get one.
    pub(super) fn find(program: &Path) -> Result<Memcached, BenchError> {
        match Command::new(program).arg("-V").stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {
                let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                Ok(Memcached { program: program.to_owned(), version })
            }
            Ok(output) => Err(missing(program, &output.status.to_string())),
            Err(error) => Err(missing(program, &error.to_string())),
        }
    }
}

fn missing(program: &Path, why: &str) -> BenchError {
    BenchError::Misuse(format!(
        "there is no memcached to compare with ({}: {why}); install the Debian package `memcached`, name the program with \
         --memcached, or leave it out with --skip-memcached",
        program.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_memcached_names_its_package_and_the_way_without() {
        for program in ["/nowhere/memcached", "/bin/false"] {
            let error = Memcached::find(Path::new(program)).unwrap_err();
            assert!(matches!(error, BenchError::Misuse(_)));
            let text = error.to_string();
            assert!(
                text.contains("Debian package `memcached`") && text.contains("--skip-memcached"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_port_is_read_from_the_line_of_its_protocol() {
        assert_eq!(listening("TCP INET: 42101\n"), Some("127.0.0.1:42101".parse().unwrap()));
        assert_eq!(listening("UDP INET: 1\nTCP INET: 7\n"), Some("127.0.0.1:7".parse().unwrap()));
        for text in ["", "TCP INET: ", "TCP INET: 70000\n", "TCP INET6: 7\n"] {
            assert_eq!(listening(text), None, "{text:?}");
        }
    }
}
