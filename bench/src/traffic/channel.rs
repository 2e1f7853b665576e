//! One pipelined connection of the client: frames out, answers in, every answer checked.
//!
//! Invariants
//! - Answers come in the order of the requests, and each repeats opcode and tag of its request; anything else is an error.
//! - A GET that misses, or brings another value, is an error. Every value is checked for length and beginning, every
//!   [`WHOLE_EVERY`]th to its last byte.
//!
//! Cost: one `send` for all that was asked since the last one, one `recv` a burst; buffers are reused.
//!
//! Does not know: which server it talks to, threads, phases.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ringbase::protocol::{
    Decoded, Frame, FrameLimits, Magic, Opcode, Request, Status, decode_frame, vbucket_of,
};

use super::documents::{Documents, Operation};
use crate::error::BenchError;

/// Every so many values one is compared to its last byte.
pub(crate) const WHOLE_EVERY: u64 = 64;

/// Flags and expiry of a SET: none.
const SET_EXTRAS: [u8; 8] = [0; 8];

/// Longest wait for the answer to the selection of a bucket.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a server is and what it has to be told.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// For errors.
    pub(crate) name: &'static str,
    /// Its address.
    pub(crate) address: SocketAddr,
    /// The bucket to select, if it has buckets.
    pub(crate) bucket: Option<&'static str>,
    /// Its vbuckets; 1 for a server that has none, which gets vbucket 0 every time.
    pub(crate) vbuckets: u16,
}

impl Target {
    /// What the server did is not what it should have done.
    pub(crate) fn unsound(&self, what: impl std::fmt::Display) -> BenchError {
        BenchError::Unsound(format!("{}: {what}", self.name))
    }
}

/// Makes the frames of requests.
#[derive(Debug)]
pub(crate) struct Encoder<'a> {
    documents: &'a Documents,
    vbuckets: u16,
    key: Vec<u8>,
    value: Vec<u8>,
    empty: Vec<u8>,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(documents: &'a Documents, vbuckets: u16) -> Encoder<'a> {
        Encoder { documents, vbuckets, key: Vec::new(), value: Vec::new(), empty: Vec::new() }
    }

    /// Appends the request for `operation` to `out`.
    fn encode(&mut self, operation: Operation, opaque: u32, out: &mut Vec<u8>) {
        let Encoder { documents, vbuckets, key, value, empty } = self;
        let request = match operation {
            Operation::Noop => Request::new(Opcode::NOOP),
            Operation::Get(index) => {
                documents.key(index, key, empty);
                Request::new(Opcode::GET).vbucket(vbucket_of(key, *vbuckets)).key(key)
            }
            Operation::Set(index) => {
                documents.key(index, key, empty);
                documents.value(index, value);
                let request = Request::new(Opcode::SET).vbucket(vbucket_of(key, *vbuckets));
                request.extras(&SET_EXTRAS).key(key).value(value)
            }
        };
        request.opaque(opaque).encode(out).expect("keys and values were checked to fit a frame");
    }
}

/// A request that waits for its answer.
#[derive(Debug, Clone, Copy)]
struct Asked {
    operation: Operation,
    opaque: u32,
    meant_at: Instant,
}

/// An answer that was checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// To what.
    pub(crate) operation: Operation,
    /// From the moment the request was meant to go until the answer had been read.
    pub(crate) latency: Duration,
    /// It says "not now": a temporary failure, the only one that may be.
    pub(crate) refused: bool,
    /// Its value was compared to the last byte.
    pub(crate) whole: bool,
}

/// A connection. Non-blocking once it is open.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: TcpStream,
    asked: VecDeque<Asked>,
    next_opaque: u32,
    out: Vec<u8>,
    sent: usize,
    blocked: bool,
    /// The beginning of an answer whose rest has not come yet.
    kept: Vec<u8>,
    values: u64,
}

impl Channel {
    /// Connects and selects the bucket, if there is one.
    ///
    /// # Errors
    /// The server is not there, or has no such bucket.
    pub(crate) fn open(target: &Target) -> Result<Channel, BenchError> {
        let connect = || -> io::Result<TcpStream> {
            let stream = TcpStream::connect(target.address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let mut stream = connect().map_err(BenchError::system("connect to a server"))?;
        if let Some(bucket) = target.bucket {
            select(&mut stream, target, bucket)?;
        }
        stream.set_nonblocking(true).map_err(BenchError::system("make a socket non-blocking"))?;
        Ok(Channel {
            stream,
            asked: VecDeque::new(),
            next_opaque: 0,
            out: Vec::new(),
            sent: 0,
            blocked: false,
            kept: Vec::new(),
            values: 0,
        })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Requests under way.
    pub(crate) fn under_way(&self) -> usize {
        self.asked.len()
    }

    /// Adds a request that was meant to go at `meant_at`; [`Channel::send`] sends it.
    pub(crate) fn ask(&mut self, operation: Operation, meant_at: Instant, encoder: &mut Encoder<'_>) {
        let opaque = self.next_opaque;
        self.next_opaque = opaque.wrapping_add(1);
        encoder.encode(operation, opaque, &mut self.out);
        self.asked.push_back(Asked { operation, opaque, meant_at });
    }

    /// Whether the kernel did not take all of the last send.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends what was asked, as much as the kernel takes.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        self.blocked = false;
        Ok(())
    }

    /// Reads once, into `room`, and gives every whole answer to `answered`. Returns the moment at which it had read; `None` if there was
    /// nothing.
    ///
    /// # Errors
    /// The connection is broken, or an answer is not what it should be.
    pub(crate) fn receive(
        &mut self,
        target: &Target,
        documents: &Documents,
        room: &mut [u8],
        mut answered: impl FnMut(Answer),
    ) -> Result<Option<Instant>, BenchError> {
        let len = self.kept.len();
        room[..len].copy_from_slice(&self.kept);
        let read = match self.stream.read(&mut room[len..]) {
            Ok(0) => return Err(target.unsound("it closed the connection")),
            Ok(read) => read,
            Err(error) if is_nothing(&error) => return Ok(None),
            Err(error) => return Err(BenchError::system("receive from a server")(error)),
        };
        let now = Instant::now();
        let mut rest = &room[..len + read];
        loop {
            match decode_frame(rest, FrameLimits::AUTHENTICATED) {
                Ok(Decoded::Frame(frame)) => {
                    rest = &rest[frame.frame_bytes()..];
                    let asked = self.asked.pop_front();
                    let asked = asked.ok_or_else(|| target.unsound("an answer that nobody asked for"))?;
                    let is_get = matches!(asked.operation, Operation::Get(_));
                    self.values += u64::from(is_get);
                    let whole = is_get && self.values.is_multiple_of(WHOLE_EVERY);
                    let refused = check(asked, &frame, documents, whole)
                        .map_err(|what| target.unsound(format_args!("{:?}: {what}", asked.operation)))?;
                    let latency = now.saturating_duration_since(asked.meant_at);
                    answered(Answer { operation: asked.operation, latency, refused, whole });
                }
                Ok(Decoded::Incomplete { frame_bytes }) if frame_bytes <= room_bytes(documents) => break,
                Ok(Decoded::Incomplete { frame_bytes }) => {
                    return Err(target.unsound(format_args!("an answer of {frame_bytes} bytes")));
                }
                Err(reason) => return Err(target.unsound(reason)),
            }
        }
        self.kept.clear();
        self.kept.extend_from_slice(rest);
        Ok(Some(now))
    }
}

/// Room that holds any answer there may be, and many of the usual ones.
pub(crate) fn room_bytes(documents: &Documents) -> usize {
    (64 << 10).max(2 * (documents.value_bytes() + 1024))
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Selects a bucket on a connection that still blocks.
fn select(stream: &mut TcpStream, target: &Target, bucket: &str) -> Result<(), BenchError> {
    let mut frame = Vec::new();
    let request = Request::new(Opcode::SELECT_BUCKET).key(bucket.as_bytes());
    request.encode(&mut frame).expect("the name of a bucket fits a frame");
    let mut talk = || -> io::Result<Option<Status>> {
        stream.write_all(&frame)?;
        let (mut received, mut room) = (Vec::new(), [0; 4096]);
        loop {
            match decode_frame(&received, FrameLimits::UNAUTHENTICATED) {
                Ok(Decoded::Frame(frame)) => return Ok(Some(frame.status())),
                Ok(Decoded::Incomplete { .. }) => {}
                Err(_) => return Ok(None),
            }
            match stream.read(&mut room)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => received.extend_from_slice(&room[..read]),
            }
        }
    };
    match talk().map_err(BenchError::system("select a bucket"))? {
        Some(status) if status.is_success_class() => Ok(()),
        Some(status) => Err(target.unsound(format_args!("bucket {bucket} cannot be selected: {status}"))),
        None => Err(target.unsound("it does not speak the protocol")),
    }
}

/// Whether `frame` is the answer to `asked`: `Ok(true)` if it is one that says "not now", an error that says why it is none.
fn check(asked: Asked, frame: &Frame<'_>, documents: &Documents, whole: bool) -> Result<bool, String> {
    let opcode = match asked.operation {
        Operation::Get(_) => Opcode::GET,
        Operation::Set(_) => Opcode::SET,
        Operation::Noop => Opcode::NOOP,
    };
    if frame.header.magic != Magic::ClientResponse
        || frame.opcode() != opcode
        || frame.opaque() != asked.opaque
    {
        return Err(format!(
            "answered by {:?} {} with tag {} instead of {}",
            frame.header.magic,
            frame.opcode(),
            frame.opaque(),
            asked.opaque
        ));
    }
    match (asked.operation, frame.status()) {
        (Operation::Get(index), Status::SUCCESS) => {
            if documents.is_value(index, frame.value, whole) {
                return Ok(false);
            }
            Err(format!("a value of {} bytes that is not the document's", frame.value.len()))
        }
        (_, Status::SUCCESS) => Ok(false),
        (_, Status::ETMPFAIL) => Ok(true),
        (_, status) => Err(format!("answered by {status}")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use ringbase::protocol::Response;

    use super::*;

    fn documents() -> Documents {
        Documents::new(100, 40, 1).unwrap()
    }

    fn frame_of(bytes: &[u8]) -> Frame<'_> {
        match decode_frame(bytes, FrameLimits::AUTHENTICATED) {
            Ok(Decoded::Frame(frame)) => frame,
            other => panic!("{other:?}"),
        }
    }

    fn answer(opcode: Opcode, opaque: u32, status: Status, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Response::new(opcode, opaque, status).value(value).encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_request_names_its_document_and_the_vbucket_of_its_key() {
        let documents = documents();
        let (mut key, mut value) = (Vec::new(), Vec::new());
        documents.key(5, &mut key, &mut Vec::new());
        documents.value(5, &mut value);
        for vbuckets in [1, 128] {
            let mut encoder = Encoder::new(&documents, vbuckets);
            let mut out = Vec::new();
            encoder.encode(Operation::Get(5), 7, &mut out);
            let get = frame_of(&out);
            assert_eq!(
                (get.opcode(), get.opaque(), get.key, get.value),
                (Opcode::GET, 7, &key[..], &b""[..])
            );
            assert_eq!(get.vbucket(), vbucket_of(&key, vbuckets));
            assert_eq!(out.len(), 24 + 20);

            out.clear();
            encoder.encode(Operation::Set(5), 8, &mut out);
            let set = frame_of(&out);
            assert_eq!(
                (set.opcode(), set.key, set.value, set.extras.len()),
                (Opcode::SET, &key[..], &value[..], 8)
            );

            out.clear();
            encoder.encode(Operation::Noop, 9, &mut out);
            assert_eq!((frame_of(&out).opcode(), out.len()), (Opcode::NOOP, 24));
        }
    }

    #[test]
    fn only_the_very_answer_passes() {
        let documents = documents();
        let mut value = Vec::new();
        documents.value(5, &mut value);
        let asked = |operation| Asked { operation, opaque: 7, meant_at: Instant::now() };
        let verdict =
            |operation, bytes: Vec<u8>| check(asked(operation), &frame_of(&bytes), &documents, true);
        let get = Operation::Get(5);
        assert_eq!(verdict(get, answer(Opcode::GET, 7, Status::SUCCESS, &value)), Ok(false));
        assert_eq!(verdict(get, answer(Opcode::GET, 7, Status::ETMPFAIL, b"")), Ok(true));
        assert_eq!(verdict(Operation::Set(5), answer(Opcode::SET, 7, Status::SUCCESS, b"")), Ok(false));
        for (bytes, what) in [
            (answer(Opcode::GET, 7, Status::KEY_ENOENT, b""), "answered by"),
            (answer(Opcode::GET, 7, Status::SUCCESS, &value[1..]), "39 bytes"),
            (answer(Opcode::GET, 8, Status::SUCCESS, &value), "tag 8 instead of 7"),
            (answer(Opcode::SET, 7, Status::SUCCESS, &value), "instead of"),
        ] {
            let error = verdict(get, bytes).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        documents.value(6, &mut value);
        assert!(verdict(get, answer(Opcode::GET, 7, Status::SUCCESS, &value)).is_err(), "another's value");
    }

    #[test]
    fn answers_that_come_in_pieces_are_put_together_and_surplus_ones_are_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let target = Target { name: "test", address, bucket: None, vbuckets: 1 };
        let mut channel = Channel::open(&target).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let documents = documents();
        let mut encoder = Encoder::new(&documents, 1);
        let meant_at = Instant::now();
        for index in [3, 4] {
            channel.ask(Operation::Get(index), meant_at, &mut encoder);
        }
        channel.send().unwrap();
        assert!(!channel.is_blocked());
        let mut requests = [0; 2 * 44];
        server.read_exact(&mut requests).unwrap();

        let mut answers = Vec::new();
        for (index, opaque) in [(3, 0), (4, 1)] {
            let mut value = Vec::new();
            documents.value(index, &mut value);
            answers.extend(answer(Opcode::GET, opaque, Status::SUCCESS, &value));
        }
        let mut room = vec![0; room_bytes(&documents)];
        let mut found = Vec::new();
        for piece in answers.chunks(10) {
            server.write_all(piece).unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            while channel
                .receive(&target, &documents, &mut room, |answer| found.push(answer.operation))
                .unwrap()
                .is_none()
            {
                assert!(Instant::now() < deadline, "nothing arrives");
            }
        }
        assert_eq!(found, [Operation::Get(3), Operation::Get(4)]);
        assert_eq!(channel.under_way(), 0);

        server.write_all(&answers).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let error = loop {
            match channel.receive(&target, &documents, &mut room, |_| ()) {
                Ok(_) => assert!(Instant::now() < deadline, "nothing arrives"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("test: an answer that nobody asked for"), "{error}");
    }
}
