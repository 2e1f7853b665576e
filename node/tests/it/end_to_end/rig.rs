//! A real node in a process of its own, and two ways to talk to it: the client library, and raw frames.
//!
//! Invariants
//! - A node that was started is killed and waited for when its handle goes; its directory goes with the [`Place`].
//!
//! Does not know: what is tested.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ringbase::client::{Bucket, ClientError, ConnectOptions, Connection, Credentials, StoreMode};
use ringbase::protocol::extras::StoreExtras;
use ringbase::protocol::{Datatype, Decoded, FrameLimits, Opcode, Request, Status, decode_frame, vbucket_of};
use ringbase_storage::types::{Cas, VbId};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a node may take to serve, to stop, or to answer, on a crowded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How a node is started.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) cores: u16,
    pub(crate) vbuckets: u16,
    pub(crate) more: Vec<String>,
}

impl Setup {
    pub(crate) fn cores(cores: u16) -> Setup {
        Setup { cores, vbuckets: 16, more: Vec::new() }
    }

    pub(crate) fn with(mut self, flags: &[&str]) -> Setup {
        self.more.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }
}

/// Runs a test with one core, and with two, where every connection also talks to a core that is not its own.
pub(crate) fn for_each_core_count(test: impl Fn(Setup)) {
    let cpus = ringbase::core::executor::cpus_allowed().unwrap().len();
    for cores in [1, 2] {
        if usize::from(cores) > cpus {
            println!("skipped with {cores} cores: this process may run on {cpus} CPUs");
            continue;
        }
        println!("with {cores} cores");
        test(Setup::cores(cores));
    }
}

/// Runs a test with a bucket on disk and one in memory, each with one core and with two.
pub(crate) fn for_each_kind(test: impl Fn(&Node, &str)) {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        node.connect().create_bucket("memory", "bucket_type=ephemeral").unwrap();
        for bucket in ["default", "memory"] {
            println!("bucket {bucket}");
            test(&node, bucket);
        }
    });
}

/// A scratch directory on the disk of the build.
pub(crate) struct Place {
    scratch: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let scratch = tempfile::Builder::new().prefix("node-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        Place { scratch: scratch.unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }
}

/// How a node that did not start has ended.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
}

/// A running node.
pub(crate) struct Node {
    child: Child,
    pub(crate) address: String,
    pub(crate) ready: serde_json::Value,
    log: PathBuf,
}

impl Node {
    /// Starts a node on `data`, or says how it ended.
    pub(crate) fn try_start(data: &Path, setup: &Setup) -> Result<Node, Refusal> {
        let log = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (log_file, log) = log.keep().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringbase"));
        command.args(["serve", "--json"]).arg("--data").arg(data);
        command.arg("--cores").arg(setup.cores.to_string());
        // Small, so that formatting is quick and logs wrap; the setup may say otherwise.
        let usual = [
            ("--listen", "127.0.0.1:0"),
            ("--memory", "256MiB"),
            ("--wal-segment-bytes", "1MiB"),
            ("--wal-segments", "4"),
        ];
        for (flag, value) in usual {
            if !setup.more.iter().any(|given| given == flag) {
                command.args([flag, value]);
            }
        }
        command.arg("--vbuckets").arg(setup.vbuckets.to_string()).args(&setup.more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // The line or the end comes: a node that hangs is ended by the test runner's own limit.
        stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            let code = child.wait().unwrap().code();
            let text = std::fs::read_to_string(&log).unwrap();
            std::fs::remove_file(&log).unwrap();
            return Err(Refusal { code, text });
        }
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = ready["listen"].as_str().unwrap().to_owned();
        Ok(Node { child, address, ready, log })
    }

    pub(crate) fn start(data: &Path, setup: &Setup) -> Node {
        Node::try_start(data, setup).unwrap_or_else(|refusal| panic!("{refusal:?}"))
    }

    pub(crate) fn connect_options(&self) -> ConnectOptions {
        ConnectOptions { timeout: PATIENCE, ..ConnectOptions::to(&self.address) }
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.connect_options()).unwrap()
    }

    /// A connection that has selected this bucket.
    pub(crate) fn connect_to(&self, bucket: &str) -> Connection {
        Connection::open(&ConnectOptions { bucket: Some(bucket.into()), ..self.connect_options() }).unwrap()
    }

    pub(crate) fn connect_as(&self, user: &str, password: &str) -> ConnectOptions {
        let credentials = Some(Credentials { user: user.to_owned(), password: password.to_owned() });
        ConnectOptions { credentials, ..self.connect_options() }
    }

    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(&self.address)
    }

    /// A connection whose socket buffers little: a scan that nobody reads stands still soon.
    pub(crate) fn narrow(&self) -> Raw {
        Raw::connect_narrow(&self.address)
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Open file descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// kill -9, while others still talk to it; it is waited for when the handle goes.
    pub(crate) fn kill_in_place(&self) {
        self.signal(Signal::KILL);
    }

    /// SIGTERM, and how the process ends.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.terminate();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the node does not stop; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("log of the node:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

/// One response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) opcode: Opcode,
    pub(crate) status: Status,
    pub(crate) opaque: u32,
    pub(crate) cas: Cas,
    pub(crate) datatype: Datatype,
    pub(crate) extras: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

impl Answer {
    /// The explanation in the error JSON of a refusal.
    pub(crate) fn context(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.value).unwrap_or_default();
        json["error"]["context"].as_str().unwrap_or_default().to_owned()
    }
}

/// A connection that sends any bytes and says nothing by itself. It starts in the open node's default bucket.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    pub(crate) fn connect(address: &str) -> Raw {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw { stream, received: Vec::new() }
    }

    /// One that takes little from the node before somebody reads it.
    pub(crate) fn connect_narrow(address: &str) -> Raw {
        use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
        let address: std::net::SocketAddr = address.parse().unwrap();
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_recv_buffer_size(&socket, 32 * 1024).unwrap();
        connect(&socket, &address).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Raw { stream, received: Vec::new() }
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn send(&mut self, request: Request<'_>) {
        self.send_bytes(&frame(request));
    }

    pub(crate) fn ask(&mut self, request: Request<'_>) -> Answer {
        self.send(request);
        self.answer()
    }

    /// The next response.
    pub(crate) fn answer(&mut self) -> Answer {
        self.next_answer().expect("the node closed the connection although an answer was due")
    }

    /// The next response; `None` if the node closes the connection.
    pub(crate) fn next_answer(&mut self) -> Option<Answer> {
        loop {
            if let Decoded::Frame(frame) = decode_frame(&self.received, FrameLimits::AUTHENTICATED).unwrap() {
                let answer = Answer {
                    opcode: frame.opcode(),
                    status: frame.status(),
                    opaque: frame.opaque(),
                    cas: frame.cas(),
                    datatype: frame.datatype(),
                    extras: frame.extras.to_vec(),
                    key: frame.key.to_vec(),
                    value: frame.value.to_vec(),
                };
                let frame_bytes = frame.frame_bytes();
                self.received.drain(..frame_bytes);
                return Some(answer);
            }
            let mut piece = [0; 64 * 1024];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.received.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }
}

/// The bytes of a request.
pub(crate) fn frame(request: Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    bytes
}

/// Stores a document, and tries again while the node makes room.
pub(crate) fn store_when_taken(connection: &mut Connection, key: &str, value: &[u8]) {
    let plain = StoreExtras { flags: 0, expiry: 0 };
    let mut bucket = Bucket::new(connection).unwrap();
    eventually("the node takes a document", || {
        match bucket.store(StoreMode::Set, key.as_bytes(), value, plain, Cas(0)) {
            Err(ClientError::Refused { status: Status::ETMPFAIL, .. }) => false,
            stored => stored.map(|_| true).unwrap(),
        }
    });
}

/// A SET of a document in a bucket with so many vbuckets.
pub(crate) fn set<'a>(key: &'a [u8], value: &'a [u8], vbuckets: u16) -> Request<'a> {
    Request::new(Opcode::SET).vbucket(vbucket_of(key, vbuckets)).extras(&[0; 8]).key(key).value(value)
}

/// A GET of it.
pub(crate) fn get(key: &[u8], vbuckets: u16) -> Request<'_> {
    Request::new(Opcode::GET).vbucket(vbucket_of(key, vbuckets)).key(key)
}

/// A key of this vbucket: `prefix` and a number.
pub(crate) fn key_in(vbucket: VbId, vbuckets: u16, prefix: &str) -> String {
    let mut keys = (0..).map(|number| format!("{prefix}{number}"));
    keys.find(|key| vbucket_of(key.as_bytes(), vbuckets) == vbucket).unwrap()
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One statistic of a group.
pub(crate) fn stat(connection: &mut Connection, group: &str, name: &str) -> Option<String> {
    let mut found = None;
    connection
        .stats(group, |key, value| {
            if key == name.as_bytes() {
                found = Some(String::from_utf8_lossy(value).into_owned());
            }
        })
        .unwrap();
    found
}

/// Overwrites bytes of a file of a stopped node.
pub(crate) fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}
