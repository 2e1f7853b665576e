//! A DCP client: opens streams, hands their messages over one by one, answers noops, gives back what it has processed.
//!
//! Invariants
//! - A message that was handed over counts as processed and is acknowledged, at once or gathered, unless [`DcpOptions::acknowledges`]
//!   is off.
//! - Messages that arrive while an answer is awaited are kept in order, up to [`KEPT_BYTES_MAX`].
//!
//! Ways to receive: [`DcpClient::next_within`] hands over decoded messages one by one, [`DcpClient::messages_within`] all that are there, and both
//! end a wait in time; [`DcpClient::frames`] hands over all frames that are there and decodes nothing but their heads.
//!
//! Cost: a message is borrowed from the receive buffer; only kept ones are copied. A wait that ends in time is four system calls, one of
//! `frames` is the read.
//! Does not know: what becomes of the messages, snapshots, rollbacks.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use ringbase_storage::types::{FailoverEntry, VbId};

use super::connection::{Connection, Tag, describe, refusal, refused, unexpected, whole_frame};
use super::error::ClientError;
use crate::protocol::dcp::stream_request::decode_failover_log;
use crate::protocol::dcp::{
    Control, DcpMessage, Envelope, OpenFlags, StreamFilter, StreamReply, StreamRequest,
};
use crate::protocol::{
    Datatype, Decoded, Feature, Frame, FrameLimits, Magic, Opcode, Refusal, Request, Response, Status,
    decode_frame,
};

/// Bytes of messages that are kept while an answer is awaited, at most.
pub const KEPT_BYTES_MAX: usize = 256 << 20;

/// How a connection is opened.
#[derive(Debug, Clone)]
pub struct DcpOptions {
    /// Its name, 1 to 200 bytes; an older connection of the same name is closed by the node.
    pub name: String,
    /// Its flags; the node must produce.
    pub flags: OpenFlags,
    /// The window of flow control in bytes, 0 for none.
    pub window_bytes: u32,
    /// Whether processed bytes are given back.
    pub acknowledges: bool,
    /// The share of the window at which they are, above 0 and at most 1.
    pub acknowledge_share: f64,
    /// How often the node asks whether the client is there; never without.
    pub noop_interval: Option<Duration>,
}

impl DcpOptions {
    /// A producer connection of this name with a window of 1 MiB and noops every 20 seconds.
    #[must_use]
    pub fn named(name: impl Into<String>) -> DcpOptions {
        DcpOptions {
            name: name.into(),
            flags: OpenFlags::PRODUCER,
            window_bytes: 1 << 20,
            acknowledges: true,
            acknowledge_share: 0.2,
            noop_interval: Some(Duration::from_secs(20)),
        }
    }
}

/// A connection that receives streams.
#[derive(Debug)]
pub struct DcpClient {
    connection: Connection,
    kept: VecDeque<Vec<u8>>,
    kept_bytes: usize,
    /// Unacknowledged bytes at which they are given back; `None` if they never are.
    acknowledge_at: Option<u32>,
    unacknowledged: u32,
    message_bytes: u64,
    noops: u64,
    /// Streams that were asked for with `ask` and not answered yet.
    asked: u32,
}

impl DcpClient {
    /// Turns a connection into a DCP connection.
    ///
    /// # Errors
    /// `Refused` if the node does not take an option; the connection is given up then.
    pub fn open(connection: Connection, options: &DcpOptions) -> Result<DcpClient, ClientError> {
        let window_bytes = options.window_bytes;
        let share_bytes = (f64::from(window_bytes) * options.acknowledge_share) as u32;
        let gives_back = options.acknowledges && window_bytes > 0;
        let mut client = DcpClient {
            connection,
            kept: VecDeque::new(),
            kept_bytes: 0,
            acknowledge_at: gives_back.then_some(share_bytes.clamp(1, window_bytes.max(1))),
            unacknowledged: 0,
            message_bytes: 0,
            noops: 0,
            asked: 0,
        };
        let mut extras = [0; 8];
        extras[4..].copy_from_slice(&options.flags.bits().to_be_bytes());
        client.call(Request::new(Opcode::DCP_OPEN).extras(&extras).key(options.name.as_bytes()), |_| ())?;
        if let Some(interval) = options.noop_interval {
            client.control(&Control::EnableNoop(true))?;
            client.control(&Control::SetNoopInterval(interval))?;
        }
        if window_bytes > 0 {
            client.control(&Control::ConnectionBufferSize(window_bytes))?;
        }
        Ok(client)
    }

    /// Sends one control.
    ///
    /// # Errors
    /// `Refused`: EINVAL, NOT_SUPPORTED.
    pub fn control(&mut self, control: &Control<'_>) -> Result<(), ClientError> {
        let (key, value) = control.text();
        let request = Request::new(Opcode::DCP_CONTROL).key(key.as_bytes()).value(value.as_bytes());
        self.call(request, |_| ())
    }

    /// Asks for a stream; `filter` only if the connection has Collections. A refusal is an answer, too.
    ///
    /// # Errors
    /// `UnexpectedAnswer` if the answer's body does not fit its status.
    pub fn stream(
        &mut self,
        vbucket: VbId,
        stream: &StreamRequest,
        filter: Option<&StreamFilter>,
    ) -> Result<StreamReply, ClientError> {
        let tag = self.send_stream_request(vbucket, stream, filter)?;
        let reply = self.answer(tag, Opcode::DCP_STREAM_REQ, |frame| Ok(StreamReply::decode(frame)))?;
        reply.ok_or_else(|| unexpected(Opcode::DCP_STREAM_REQ, "a value of another form"))
    }

    fn send_stream_request(
        &mut self,
        vbucket: VbId,
        stream: &StreamRequest,
        filter: Option<&StreamFilter>,
    ) -> Result<Tag, ClientError> {
        let (extras, value) = (stream.extras(), filter.map_or(Vec::new(), StreamFilter::encode));
        let datatype = if value.is_empty() { Datatype::RAW } else { Datatype::JSON };
        let request = Request::new(Opcode::DCP_STREAM_REQ).vbucket(vbucket).extras(&extras).value(&value);
        self.connection.send(request.datatype(datatype))
    }

    /// Asks for a stream without waiting for the answer, so that many streams begin in one round trip; [`DcpClient::frames`] takes the answer.
    ///
    /// # Errors
    /// The connection failed.
    pub fn ask(&mut self, vbucket: VbId, stream: &StreamRequest) -> Result<(), ClientError> {
        self.send_stream_request(vbucket, stream, None)?;
        self.asked += 1;
        Ok(())
    }

    /// Gives every frame of a stream that has arrived to `take`, in order, and waits for one if there is none. Returns how many there were,
    /// which is 0 if only answers came.
    ///
    /// # Errors
    /// `Timeout` if nothing comes within the time of the connection; `Refused` if a stream that was asked for is; else as
    /// [`DcpClient::next_within`]. The connection is given up then.
    pub fn frames(&mut self, mut take: impl FnMut(&Frame<'_>)) -> Result<u64, ClientError> {
        let mut count = 0;
        while let Some(kept) = self.kept.pop_front() {
            self.kept_bytes -= kept.len();
            take(&whole_frame(&kept, self.connection.address())?);
            self.processed(kept.len())?;
            count += 1;
        }
        if count > 0 {
            return Ok(count);
        }
        self.connection.await_frame(Opcode::DCP_STREAM_REQ)?;
        let (mut stream_bytes, mut arrived_bytes, mut noop_bytes) = (0, 0, None);
        loop {
            let arrived = &self.connection.receive.unparsed()[arrived_bytes..];
            let frame = match decode_frame(arrived, FrameLimits::AUTHENTICATED) {
                Ok(Decoded::Frame(frame)) => frame,
                Ok(Decoded::Incomplete { .. }) => break,
                Err(source) => {
                    self.connection.give_up();
                    return Err(ClientError::NotProtocol {
                        address: self.connection.address.clone(),
                        source,
                    });
                }
            };
            let frame_bytes = frame.frame_bytes();
            match frame.header.magic {
                // It is answered when what came before it has been handed over.
                Magic::ClientRequest | Magic::AltClientRequest if frame.opcode() == Opcode::DCP_NOOP => {
                    noop_bytes = Some(frame_bytes);
                    break;
                }
                Magic::ClientRequest | Magic::AltClientRequest => {
                    take(&frame);
                    count += 1;
                    stream_bytes += frame_bytes;
                }
                Magic::ServerRequest => {}
                _ => {
                    let is_answer = frame.opcode() == Opcode::DCP_STREAM_REQ && self.asked > 0;
                    if !is_answer || frame.status() != Status::SUCCESS {
                        let error = refusal(frame.opcode(), frame.status(), frame.value);
                        self.connection.give_up();
                        return Err(error);
                    }
                    self.asked -= 1;
                }
            }
            arrived_bytes += frame_bytes;
        }
        self.connection.receive.consume(arrived_bytes);
        self.connection.receive.shrink();
        self.processed(stream_bytes)?;
        if let Some(noop_bytes) = noop_bytes {
            self.take_noop(noop_bytes)?;
        }
        Ok(count)
    }

    /// Counts messages that were handed over, and gives them back when it is time.
    fn processed(&mut self, bytes: usize) -> Result<(), ClientError> {
        self.message_bytes += bytes as u64;
        self.unacknowledged = self.unacknowledged.saturating_add(bytes as u32);
        if self.acknowledge_at.is_some_and(|share_bytes| self.unacknowledged >= share_bytes) {
            self.acknowledge()?;
        }
        Ok(())
    }

    /// Closes the stream of a vbucket on a connection without stream ids.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT if there is none.
    pub fn close_stream(&mut self, vbucket: VbId) -> Result<(), ClientError> {
        self.call(Request::new(Opcode::DCP_CLOSE_STREAM).vbucket(vbucket), |_| ())
    }

    /// The branches of a vbucket, newest first.
    ///
    /// # Errors
    /// `Refused`: NOT_MY_VBUCKET.
    pub fn failover_log(&mut self, vbucket: VbId) -> Result<Vec<FailoverEntry>, ClientError> {
        let opcode = Opcode::DCP_GET_FAILOVER_LOG;
        let log =
            self.call(Request::new(opcode).vbucket(vbucket), |frame| decode_failover_log(frame.value))?;
        log.ok_or_else(|| unexpected(opcode, "no failover log"))
    }

    /// Gives the next message of a stream to `take`, with its address; `None` if none arrives within `patience`.
    ///
    /// # Errors
    /// `Closed`, `Io`, `NotProtocol`; `UnexpectedAnswer` for what no producer sends.
    pub fn next_within<T>(
        &mut self,
        patience: Duration,
        take: impl FnOnce(Envelope, &DcpMessage<'_>) -> T,
    ) -> Result<Option<T>, ClientError> {
        let (taken, bytes) = if let Some(kept) = self.kept.pop_front() {
            self.kept_bytes -= kept.len();
            (decode(&whole_frame(&kept, self.connection.address())?, take)?, kept.len())
        } else {
            let Some(frame_bytes) = self.await_message(Instant::now() + patience)? else { return Ok(None) };
            let address = self.connection.address.clone();
            let taken = decode(&whole_frame(self.connection.receive.unparsed(), &address)?, take)?;
            self.connection.receive.consume(frame_bytes);
            self.connection.receive.shrink();
            (taken, frame_bytes)
        };
        self.processed(bytes)?;
        Ok(Some(taken))
    }

    /// Gives every message that has arrived to `take`, with its address, and waits at most `patience` for one if there is none. Returns how many
    /// there were.
    ///
    /// # Errors
    /// As [`DcpClient::frames`] and [`DcpClient::next_within`].
    pub fn messages_within(
        &mut self,
        patience: Duration,
        mut take: impl FnMut(Envelope, &DcpMessage<'_>),
    ) -> Result<u64, ClientError> {
        let has_some = !self.kept.is_empty() || self.has_frame();
        if !has_some && !self.has_bytes_until(Instant::now() + patience)? {
            return Ok(0);
        }
        let mut undecoded = None;
        let count = self.frames(|frame| {
            if undecoded.is_none() {
                undecoded = decode(frame, &mut take).err();
            }
        })?;
        undecoded.map_or(Ok(count), Err)
    }

    /// Gives everything back that was processed and not acknowledged.
    ///
    /// # Errors
    /// The connection failed.
    pub fn acknowledge(&mut self) -> Result<(), ClientError> {
        let bytes = std::mem::take(&mut self.unacknowledged).to_be_bytes();
        self.connection.send(Request::new(Opcode::DCP_BUFFER_ACKNOWLEDGEMENT).extras(&bytes)).map(drop)
    }

    /// Bytes of messages that were processed and not acknowledged.
    #[must_use]
    pub fn unacknowledged_bytes(&self) -> u32 {
        self.unacknowledged
    }

    /// Bytes of all messages that were handed over, as they came over the wire.
    #[must_use]
    pub fn message_bytes(&self) -> u64 {
        self.message_bytes
    }

    /// Whether there are messages that came while an answer was awaited.
    #[must_use]
    pub fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Noops that were answered.
    #[must_use]
    pub fn noops(&self) -> u64 {
        self.noops
    }

    /// Whether messages name their collection.
    #[must_use]
    pub fn has_collections(&self) -> bool {
        self.connection.features().has(Feature::Collections)
    }

    /// Sends any other request and waits for its answer.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn call<T>(
        &mut self,
        request: Request<'_>,
        read: impl FnOnce(&Frame<'_>) -> T,
    ) -> Result<T, ClientError> {
        let tag = self.connection.send(request)?;
        self.answer(tag, tag.opcode(), |frame| {
            refused(frame)?;
            Ok(read(frame))
        })
    }

    fn answer<T>(
        &mut self,
        tag: Tag,
        opcode: Opcode,
        read: impl FnOnce(&Frame<'_>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        loop {
            let (frame_bytes, magic) = self.connection.await_frame(opcode)?;
            match magic {
                Magic::ClientRequest | Magic::AltClientRequest => {
                    if !self.take_noop(frame_bytes)? {
                        self.keep(frame_bytes)?;
                    }
                }
                Magic::ServerRequest => self.connection.receive.consume(frame_bytes),
                _ => {
                    let address = self.connection.address.clone();
                    let frame = whole_frame(self.connection.receive.unparsed(), &address)?;
                    if !tag.is_answered_by(&frame.header) {
                        let found = describe(&frame.header);
                        self.connection.give_up();
                        return Err(unexpected(opcode, &found));
                    }
                    let result = read(&frame);
                    self.connection.receive.consume(frame_bytes);
                    return result;
                }
            }
        }
    }

    /// Waits until the front of the receive buffer is a message of a stream; returns its size.
    fn await_message(&mut self, deadline: Instant) -> Result<Option<usize>, ClientError> {
        loop {
            if !self.has_frame() && !self.has_bytes_until(deadline)? {
                return Ok(None);
            }
            let (frame_bytes, magic) = self.connection.await_frame(Opcode::DCP_STREAM_REQ)?;
            match magic {
                Magic::ClientRequest | Magic::AltClientRequest => {
                    if !self.take_noop(frame_bytes)? {
                        return Ok(Some(frame_bytes));
                    }
                }
                // An acknowledgement that was refused, or a message of another kind.
                _ => {
                    let address = self.connection.address.clone();
                    let frame = whole_frame(self.connection.receive.unparsed(), &address)?;
                    if frame.header.magic != Magic::ServerRequest {
                        let error = refusal(frame.opcode(), frame.status(), frame.value);
                        self.connection.give_up();
                        return Err(error);
                    }
                    self.connection.receive.consume(frame_bytes);
                }
            }
        }
    }

    fn has_frame(&self) -> bool {
        let decoded = decode_frame(self.connection.receive.unparsed(), FrameLimits::AUTHENTICATED);
        !matches!(decoded, Ok(Decoded::Incomplete { .. }))
    }

    fn has_bytes_until(&mut self, deadline: Instant) -> Result<bool, ClientError> {
        let patience = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let stream = &self.connection.stream;
        let peeked = stream.set_read_timeout(Some(patience)).and_then(|()| stream.peek(&mut [0]));
        let reset = stream.set_read_timeout(Some(self.connection.timeout));
        match (peeked, reset) {
            (Ok(_), Ok(())) => Ok(true),
            (Err(error), Ok(()))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Ok(false)
            }
            (Err(error), _) | (_, Err(error)) => {
                Err(self.connection.io_error(error, "waiting for a message"))
            }
        }
    }

    /// Answers the frame at the front of the receive buffer if it is a noop, and whether it was.
    fn take_noop(&mut self, frame_bytes: usize) -> Result<bool, ClientError> {
        let address = self.connection.address.clone();
        let frame = whole_frame(self.connection.receive.unparsed(), &address)?;
        if frame.opcode() != Opcode::DCP_NOOP {
            return Ok(false);
        }
        let mut answer = Vec::new();
        Response::new(Opcode::DCP_NOOP, frame.opaque(), Status::SUCCESS).encode(&mut answer);
        self.connection.receive.consume(frame_bytes);
        self.noops += 1;
        let sent = self.connection.stream.write_all(&answer);
        sent.map_err(|error| self.connection.io_error(error, "answering a noop"))?;
        Ok(true)
    }

    fn keep(&mut self, frame_bytes: usize) -> Result<(), ClientError> {
        if self.kept_bytes + frame_bytes > KEPT_BYTES_MAX {
            self.connection.give_up();
            return Err(unexpected(Opcode::DCP_STREAM_REQ, "too many messages before an answer"));
        }
        self.kept.push_back(self.connection.receive.unparsed()[..frame_bytes].to_vec());
        self.kept_bytes += frame_bytes;
        self.connection.receive.consume(frame_bytes);
        Ok(())
    }
}

fn decode<T>(frame: &Frame<'_>, take: impl FnOnce(Envelope, &DcpMessage<'_>) -> T) -> Result<T, ClientError> {
    let bad = |refusal: Refusal| unexpected(frame.opcode(), refusal.context);
    let (envelope, message) = DcpMessage::decode(frame).map_err(bad)?;
    Ok(take(envelope, &message))
}
