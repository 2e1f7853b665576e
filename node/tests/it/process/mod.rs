//! A real node process on a scratch directory, and a raw connection to it.

mod buckets;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ringbase::client::{ConnectOptions, Connection};
use tempfile::TempDir;

/// Status of a response, its extras and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) opcode: u8,
    pub(crate) status: u16,
    pub(crate) opaque: u32,
    pub(crate) cas: u64,
    pub(crate) extras: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

pub(crate) const GET: u8 = 0x00;
pub(crate) const SET: u8 = 0x01;
pub(crate) const NOOP: u8 = 0x0a;

/// A request as it goes to the wire.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ask<'a> {
    pub(crate) opcode: u8,
    pub(crate) vb: u16,
    pub(crate) datatype: u8,
    pub(crate) opaque: u32,
    pub(crate) extras: &'a [u8],
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl Ask<'_> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let body = self.extras.len() + self.key.len() + self.value.len();
        let mut out = vec![0x80, self.opcode];
        out.extend_from_slice(&(self.key.len() as u16).to_be_bytes());
        out.extend_from_slice(&[self.extras.len() as u8, self.datatype]);
        out.extend_from_slice(&self.vb.to_be_bytes());
        out.extend_from_slice(&(body as u32).to_be_bytes());
        out.extend_from_slice(&self.opaque.to_be_bytes());
        out.extend_from_slice(&[0; 8]);
        for part in [self.extras, self.key, self.value] {
            out.extend_from_slice(part);
        }
        out
    }
}

/// A connection that sends what it is told to.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) fn read(&mut self) -> Option<Answer> {
        let mut head = [0; 24];
        self.0.read_exact(&mut head).ok()?;
        let (framing, key_len) = match head[0] {
            0x18 => (usize::from(head[2]), usize::from(head[3])),
            _ => (0, usize::from(u16::from_be_bytes([head[2], head[3]]))),
        };
        let mut body = vec![0; u32::from_be_bytes(head[8..12].try_into().unwrap()) as usize];
        self.0.read_exact(&mut body).ok()?;
        let extras_end = framing + usize::from(head[4]);
        Some(Answer {
            opcode: head[1],
            status: u16::from_be_bytes([head[6], head[7]]),
            opaque: u32::from_be_bytes(head[12..16].try_into().unwrap()),
            cas: u64::from_be_bytes(head[16..24].try_into().unwrap()),
            extras: body[framing..extras_end].to_vec(),
            key: body[extras_end..extras_end + key_len].to_vec(),
            value: body[extras_end + key_len..].to_vec(),
        })
    }

    pub(crate) fn ask(&mut self, ask: Ask<'_>) -> Answer {
        self.0.write_all(&ask.bytes()).unwrap();
        self.read().expect("an answer")
    }

    /// HELLO with these features.
    pub(crate) fn hello(&mut self, features: &[u16]) -> Answer {
        let value: Vec<u8> = features.iter().flat_map(|feature| feature.to_be_bytes()).collect();
        self.ask(Ask { opcode: 0x1f, value: &value, ..Ask::default() })
    }

    /// XERROR, JSON, mutation tokens; the default bucket.
    pub(crate) fn prepare(&mut self) {
        assert_eq!(self.hello(&[0x04, 0x07, 0x0b]).status, 0);
        assert_eq!(self.ask(Ask { opcode: 0x89, key: b"default", ..Ask::default() }).status, 0);
    }
}

/// A running node. Killed when dropped.
pub(crate) struct Node {
    child: Child,
    pub(crate) address: String,
    /// Milliseconds and other facts of the ready line.
    pub(crate) ready: serde_json::Value,
}

/// A scratch directory on a real disk.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn command(data: &Path, more: &[&str]) -> Command {
    let usual = [
        ("--listen", "127.0.0.1:0"),
        ("--log", "warn"),
        ("--wal-segment-bytes", "1MiB"),
        ("--wal-segments", "4"),
        ("--memory", "256MiB"),
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbase"));
    command.args(["serve", "--json", "--data"]).arg(data).args(more).stdin(Stdio::null());
    for (flag, value) in usual.into_iter().filter(|(flag, _)| !more.contains(flag)) {
        command.args([flag, value]);
    }
    command
}

impl Node {
    pub(crate) fn start(data: &Path, more: &[&str]) -> Node {
        let mut child = command(data, more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            panic!("the node did not start: {text}");
        }
        // Nobody reads the log further; it must not fill the pipe.
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut BufReader::new(stderr), &mut std::io::sink()));
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = ready["listen"].as_str().unwrap().to_owned();
        Node { child, address, ready }
    }

    pub(crate) fn raw(&self) -> Raw {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        Raw(stream)
    }

    /// A raw connection that is ready for documents and scans.
    pub(crate) fn prepared(&self) -> Raw {
        let mut raw = self.raw();
        raw.prepare();
        raw
    }

    pub(crate) fn client(&self) -> Connection {
        Connection::open(&ConnectOptions::to(self.address.clone())).unwrap()
    }

    pub(crate) fn stat(&self, group: &str, name: &str) -> Option<String> {
        let mut found = None;
        let wanted = |key: &[u8], value: &[u8]| {
            if key == name.as_bytes() {
                found = Some(String::from_utf8_lossy(value).into_owned());
            }
        };
        self.client().stats(group, wanted).unwrap();
        found
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub(crate) fn stop(mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a test with one core, and with two, where the connection may be on the core that does not own the vbucket.
pub(crate) fn for_each_core_count(test: impl Fn(&Node)) {
    for cores in ["1", "2"] {
        let scratch = scratch();
        let node = Node::start(scratch.path(), &["--cores", cores, "--shards", cores, "--vbuckets", "16"]);
        assert_eq!(node.ready["cores"].to_string(), cores);
        test(&node);
        assert_eq!(node.stop(), 0, "a clean stop");
    }
}
