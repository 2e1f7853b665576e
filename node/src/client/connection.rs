//! One blocking connection to a node: connect, negotiate, authenticate, select a bucket, ask one thing at
//! a time.
//!
//! `pipeline` and `scan` use the same connection for many things at a time.
//!
//! Invariants
//! - Between calls nothing is outstanding: every answer of a request was read, or the connection is marked
//!   broken and refuses further use.
//! - Every wait is bounded by [`ConnectOptions::timeout`].
//!
//! Cost: a request is one write and usually one read. Buffers are reused.
//!
//! Does not know: server internals, command lines.

use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::error::ClientError;
use super::receive::ReceiveBuffer;
use super::sasl;
use crate::protocol::hello::Agent;
use crate::protocol::{
    Decoded, ErrorContext, Feature, Features, Frame, FrameLimits, Header, Magic, Opcode, Request, Status,
    decode_frame,
};

/// Where the data port of a node is, unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:11210";

/// The bucket that is selected after authentication, unless told otherwise.
pub const DEFAULT_BUCKET: &str = "default";

/// Memory that one request may leave in the send buffer for the next, in bytes.
const SEND_BYTES_KEPT: usize = 256 * 1024;

/// Name and password.
#[derive(Clone)]
pub struct Credentials {
    /// Who.
    pub user: String,
    /// The secret; sent in clear only to a node that knows no SCRAM.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// How to reach a node and what to ask of the connection.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// `HOST:PORT` of the data port.
    pub address: String,
    /// Who connects; without, the node decides what a stranger may do.
    pub credentials: Option<Credentials>,
    /// The bucket to select. Without: [`DEFAULT_BUCKET`] after authentication, else the node's choice.
    pub bucket: Option<String>,
    /// What HELLO asks for.
    pub features: Features,
    /// Name of the client in the node's statistics.
    pub agent: String,
    /// Longest wait for a connection, and for the next byte of an answer.
    pub timeout: Duration,
}

impl ConnectOptions {
    /// The features that this client makes use of; SELECT_BUCKET comes with a bucket.
    pub const FEATURES: Features =
        Features::of(&[Feature::TcpNoDelay, Feature::MutationSeqno, Feature::Xerror, Feature::Json]);

    /// A connection to `address` (`HOST:PORT`) with all else as usual.
    #[must_use]
    pub fn to(address: impl Into<String>) -> ConnectOptions {
        ConnectOptions {
            address: address.into(),
            credentials: None,
            bucket: None,
            features: ConnectOptions::FEATURES,
            agent: concat!("ringbase/", env!("CARGO_PKG_VERSION")).to_owned(),
            timeout: Duration::from_secs(30),
        }
    }
}

/// What an answer repeats of its request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tag {
    opcode: Opcode,
    opaque: u32,
}

impl Tag {
    /// What was asked.
    pub(super) fn opcode(self) -> Opcode {
        self.opcode
    }

    /// Whether a frame with this header answers the request.
    pub(super) fn is_answered_by(self, header: &Header) -> bool {
        matches!(header.magic, Magic::ClientResponse | Magic::AltClientResponse)
            && header.opcode == self.opcode
            && header.opaque == self.opaque
    }
}

/// A connection to a node's data port.
#[derive(Debug)]
pub struct Connection {
    pub(super) stream: TcpStream,
    pub(super) receive: ReceiveBuffer,
    pub(super) address: String,
    pub(super) timeout: Duration,
    send: Vec<u8>,
    features: Features,
    next_opaque: u32,
    broken: bool,
}

impl Connection {
    /// Connects, says HELLO, authenticates if there are credentials, selects a bucket if there is one to
    /// select.
    ///
    /// # Errors
    /// Every way in which one of these steps can fail has a variant of its own.
    pub fn open(options: &ConnectOptions) -> Result<Connection, ClientError> {
        let bucket = match (&options.bucket, &options.credentials) {
            (Some(bucket), _) => Some(bucket.as_str()),
            (None, Some(_)) => Some(DEFAULT_BUCKET),
            (None, None) => None,
        };
        let features = match bucket {
            Some(_) => options.features.with(Feature::SelectBucket),
            // A node leaves those in the bucket of its choice who do not speak of selecting one.
            None => options.features.without(Feature::SelectBucket),
        };
        let mut connection = Connection::connect(options)?;
        connection.hello(&options.agent, features)?;
        if let Some(credentials) = &options.credentials {
            sasl::authenticate(&mut connection, credentials)?;
        }
        if let Some(bucket) = bucket {
            connection.select_bucket(bucket)?;
        }
        Ok(connection)
    }

    /// As [`Connection::open`], trying again until `patience` ends while the node may still be starting.
    ///
    /// # Errors
    /// Those of the last try.
    pub fn open_within(options: &ConnectOptions, patience: Duration) -> Result<Connection, ClientError> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(5);
        loop {
            let error = match Connection::open(options) {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !error.may_pass() || left.is_zero() {
                return Err(error);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    fn connect(options: &ConnectOptions) -> Result<Connection, ClientError> {
        let address = &options.address;
        let resolve = |source| ClientError::Resolve { address: address.clone(), source };
        let mut last = None;
        for socket_address in address.to_socket_addrs().map_err(resolve)? {
            match TcpStream::connect_timeout(&socket_address, options.timeout) {
                Ok(stream) => return Connection::over(stream, options),
                Err(error) => last = Some(error),
            }
        }
        let nowhere = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        Err(match last {
            Some(source) => ClientError::Connect { address: address.clone(), source },
            None => resolve(nowhere()),
        })
    }

    fn over(stream: TcpStream, options: &ConnectOptions) -> Result<Connection, ClientError> {
        let set_up = || {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(options.timeout))?;
            stream.set_write_timeout(Some(options.timeout))
        };
        set_up().map_err(|source| ClientError::Connect { address: options.address.clone(), source })?;
        Ok(Connection {
            stream,
            receive: ReceiveBuffer::new(),
            address: options.address.clone(),
            timeout: options.timeout,
            send: Vec::new(),
            features: Features::NONE,
            next_opaque: 1,
            broken: false,
        })
    }

    fn hello(&mut self, agent: &str, features: Features) -> Result<(), ClientError> {
        let agent = Agent { name: agent.to_owned(), connection_id: None }.encode();
        let wanted = features.encode();
        let request = Request::new(Opcode::HELLO).key(&agent).value(&wanted);
        let granted = self.call(request, |frame| Features::decode(frame.value))?;
        self.features = granted.map_err(|refusal| unexpected(Opcode::HELLO, refusal.context))?;
        Ok(())
    }

    /// Selects a bucket, or none with [`NO_BUCKET`](super::NO_BUCKET).
    ///
    /// # Errors
    /// `NoBucket` if there is none of that name.
    pub fn select_bucket(&mut self, bucket: &str) -> Result<(), ClientError> {
        let request = Request::new(Opcode::SELECT_BUCKET).key(bucket.as_bytes());
        let unknown = |status| matches!(status, Status::KEY_ENOENT | Status::EACCESS);
        match self.call(request, |_| ()) {
            Err(ClientError::Refused { status, .. }) if unknown(status) => {
                Err(ClientError::NoBucket { bucket: bucket.to_owned() })
            }
            other => other,
        }
    }

    /// What the node granted.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Where it leads, as it was given.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Changes the longest wait for the next byte of an answer.
    ///
    /// # Errors
    /// The system refuses the time, which must not be 0.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), ClientError> {
        self.stream
            .set_read_timeout(Some(timeout))
            .and_then(|()| self.stream.set_write_timeout(Some(timeout)))
            .map_err(|error| self.io_error(error, "setting its timeout"))?;
        self.timeout = timeout;
        Ok(())
    }

    /// Sends one request and gives its one successful answer to `read`.
    ///
    /// # Errors
    /// `Refused` for any status that is not of the success class; the connection stays usable then. After
    /// any other error it does not.
    pub fn call<T>(
        &mut self,
        request: Request<'_>,
        read: impl FnOnce(&Frame<'_>) -> T,
    ) -> Result<T, ClientError> {
        let tag = self.send(request)?;
        self.receive_answer(tag, |frame| {
            refused(frame)?;
            Ok(read(frame))
        })?
    }

    /// Sends one request without waiting; returns the tag of its answers.
    pub(super) fn send(&mut self, request: Request<'_>) -> Result<Tag, ClientError> {
        if self.broken {
            let source = io::Error::new(io::ErrorKind::NotConnected, "it failed before");
            return Err(self.io_error(source, "sending a request"));
        }
        let opaque = self.next_opaque;
        self.next_opaque = self.next_opaque.wrapping_add(1);
        self.send.clear();
        self.send.shrink_to(SEND_BYTES_KEPT);
        request.opaque(opaque).encode(&mut self.send)?;
        let opcode = Opcode(self.send[1]);
        let sent = self.stream.write_all(&self.send);
        sent.map_err(|error| self.io_error(error, &format!("sending {opcode}")))?;
        Ok(Tag { opcode, opaque })
    }

    /// Waits for the next answer to the request with this tag. Requests of the server are passed over.
    pub(super) fn receive_answer<T>(
        &mut self,
        tag: Tag,
        read: impl FnOnce(&Frame<'_>) -> T,
    ) -> Result<T, ClientError> {
        let opcode = tag.opcode;
        loop {
            let (frame_bytes, magic) = self.await_frame(opcode)?;
            if magic == Magic::ServerRequest {
                self.receive.consume(frame_bytes);
                continue;
            }
            let frame = whole_frame(self.receive.unparsed(), &self.address)?;
            if !tag.is_answered_by(&frame.header) {
                let found = describe(&frame.header);
                self.broken = true;
                return Err(unexpected(opcode, &found));
            }
            let result = read(&frame);
            self.receive.consume(frame_bytes);
            self.receive.shrink();
            return Ok(result);
        }
    }

    /// Reads until a whole frame is there; returns its size and its magic.
    pub(super) fn await_frame(&mut self, opcode: Opcode) -> Result<(usize, Magic), ClientError> {
        loop {
            let needed = match decode_frame(self.receive.unparsed(), FrameLimits::AUTHENTICATED) {
                Ok(Decoded::Frame(frame)) => return Ok((frame.frame_bytes(), frame.header.magic)),
                Ok(Decoded::Incomplete { frame_bytes }) => frame_bytes,
                Err(source) => {
                    self.broken = true;
                    return Err(ClientError::NotProtocol { address: self.address.clone(), source });
                }
            };
            self.fill(needed, || format!("waiting for the answer to {opcode}"))?;
        }
    }

    /// Reads once, with room for a piece of `piece_bytes`.
    pub(super) fn fill(
        &mut self,
        piece_bytes: usize,
        during: impl FnOnce() -> String,
    ) -> Result<(), ClientError> {
        match self.receive.fill(&mut self.stream, piece_bytes) {
            Ok(0) => {
                self.broken = true;
                Err(ClientError::Closed { address: self.address.clone(), during: during() })
            }
            Ok(_) => Ok(()),
            Err(error) => Err(self.io_error(error, &during())),
        }
    }

    /// Marks the connection as unusable: answers may still be under way.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
    }

    pub(super) fn io_error(&mut self, source: io::Error, during: &str) -> ClientError {
        self.broken = true;
        let (address, during) = (self.address.clone(), during.to_owned());
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Timeout { address, during, waited: self.timeout }
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                ClientError::Closed { address, during }
            }
            _ => ClientError::Io { address, during, source },
        }
    }
}

/// The frame that is known to be complete.
pub(super) fn whole_frame<'a>(bytes: &'a [u8], address: &str) -> Result<Frame<'a>, ClientError> {
    match decode_frame(bytes, FrameLimits::AUTHENTICATED) {
        Ok(Decoded::Frame(frame)) => Ok(frame),
        Ok(Decoded::Incomplete { .. }) => unreachable!("await_frame found this frame complete"),
        Err(source) => Err(ClientError::NotProtocol { address: address.to_owned(), source }),
    }
}

/// An answer in words, for errors.
pub(super) fn describe(header: &Header) -> String {
    format!("{:?} to {} with tag {:#x}", header.magic, header.opcode, header.opaque)
}

pub(super) fn unexpected(opcode: Opcode, found: &str) -> ClientError {
    ClientError::UnexpectedAnswer { opcode, found: found.to_owned() }
}

/// `Refused`, unless the answer is of the success class.
pub(super) fn refused(frame: &Frame<'_>) -> Result<(), ClientError> {
    let status = frame.status();
    if status.is_success_class() { Ok(()) } else { Err(refusal(frame.opcode(), status, frame.value)) }
}

/// The error for a failed answer with this body.
pub(super) fn refusal(opcode: Opcode, status: Status, body: &[u8]) -> ClientError {
    // NOT_MY_VBUCKET carries a cluster map, not an explanation.
    let body = if status == Status::NOT_MY_VBUCKET { &[][..] } else { body };
    let context = ErrorContext::decode(body);
    let context = match (context.context, context.reference) {
        (Some(text), Some(reference)) => format!("{text} (ref {reference})"),
        (Some(text), None) => text,
        (None, Some(reference)) => format!("(ref {reference})"),
        (None, None) => String::new(),
    };
    ClientError::Refused { opcode, status, context }
}
