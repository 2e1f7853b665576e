//! Many requests at a time over one connection: a bounded window, answers matched by tag.
//!
//! Used by `load`, and by benchmarks. Every request must have exactly one answer: no quiet opcodes, no STAT,
//! no scans.
//!
//! Invariants
//! - At most `window` requests and about `window_bytes` bytes are outstanding; one larger request goes alone.
//! - Reading never waits for writing nor the other way round, so two full socket buffers cannot lock up.
//! - A request that the node refuses for the moment is sent again, with growing pauses, until `patience`
//!   ends; its place in the window stays taken, so a busy node gets less to do.
//! - Every submitted request is completed exactly once, unless the connection fails.
//!
//! Cost: two copies of a request (its slot, for the retry, and the send buffer), no allocation once the
//! slots are warm.
//!
//! Does not know: what the requests are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::{Connection, describe, unexpected};
use super::error::{ClientError, is_temporary};
use crate::protocol::{
    CloseReason, Decoded, ErrorContext, Frame, FrameLimits, HEADER_BYTES, Magic, Request, Status,
    decode_frame,
};

/// Most requests that a window can hold.
pub const WINDOW_MAX: usize = 1 << 16;

/// Bytes that are collected before they are sent although the window has room.
const BURST_BYTES: usize = 64 * 1024;

/// Memory that a slot keeps for its next request, in bytes.
const SLOT_BYTES_KEPT: usize = 64 * 1024;

/// How much may be outstanding, and how long to insist.
#[derive(Debug, Clone, Copy)]
pub struct PipelineOptions {
    /// Most requests, 1 to [`WINDOW_MAX`].
    pub window: usize,
    /// Most bytes of requests; a single larger request is sent alone.
    pub window_bytes: usize,
    /// The first pause before a retry; each further one is twice as long, up to a quarter of a second.
    pub first_pause: Duration,
    /// How long after its first sending a request may be sent again.
    pub patience: Duration,
}

impl Default for PipelineOptions {
    fn default() -> PipelineOptions {
        PipelineOptions {
            window: 512,
            window_bytes: 4 * 1024 * 1024,
            first_pause: Duration::from_millis(1),
            patience: Duration::from_secs(60),
        }
    }
}

/// Longest pause before a retry.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// The end of one request.
#[derive(Debug)]
pub struct Completion<'a> {
    /// What the caller gave to [`Pipeline::submit`].
    pub token: u64,
    /// The last answer, successful or not.
    pub answer: Frame<'a>,
    /// The request's own frame.
    pub request: &'a [u8],
    /// When it was submitted.
    pub submitted: Instant,
    /// How often it was sent again.
    pub retries: u32,
}

impl Completion<'_> {
    /// The request, decoded.
    #[must_use]
    pub fn request_frame(&self) -> Frame<'_> {
        match decode_frame(self.request, FrameLimits { frame_bytes_max: usize::MAX }) {
            Ok(Decoded::Frame(frame)) => frame,
            Ok(Decoded::Incomplete { .. }) | Err(_) => {
                unreachable!("the request was encoded by this process")
            }
        }
    }

    /// The error that a failed answer is.
    ///
    /// # Errors
    /// `Refused`, or `RetriesExhausted` if the node was still asking for patience.
    pub fn check(&self) -> Result<(), ClientError> {
        let status = self.answer.status();
        if status.is_success_class() {
            return Ok(());
        }
        let opcode = self.answer.opcode();
        if is_temporary(status) {
            let (retries, waited) = (self.retries, self.submitted.elapsed());
            return Err(ClientError::RetriesExhausted { opcode, status, retries, waited });
        }
        Err(super::connection::refusal(opcode, status, self.answer.value))
    }
}

/// A place in the window.
#[derive(Debug)]
struct Slot {
    frame: Vec<u8>,
    token: u64,
    opaque: u32,
    submitted: Instant,
    retries: u32,
    pause: Duration,
    /// Whether an answer is due.
    waiting: bool,
}

/// A connection with many requests outstanding.
#[derive(Debug)]
pub struct Pipeline<'c> {
    connection: &'c mut Connection,
    options: PipelineOptions,
    slots: Vec<Slot>,
    free: Vec<u16>,
    bytes: usize,
    output: Vec<u8>,
    output_start: usize,
    /// Slots that wait for their next try, soonest first.
    resting: BinaryHeap<Reverse<(Instant, u16)>>,
    retries: u64,
    /// What the next answer needs to be complete, as far as that is known.
    answer_bytes: usize,
    last_progress: Instant,
}

impl<'c> Pipeline<'c> {
    /// Takes the connection over until it is dropped.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn new(
        connection: &'c mut Connection,
        options: PipelineOptions,
    ) -> Result<Pipeline<'c>, ClientError> {
        let made = connection.stream.set_nonblocking(true);
        made.map_err(|error| connection.io_error(error, "making it non-blocking"))?;
        let options = PipelineOptions { window: options.window.clamp(1, WINDOW_MAX), ..options };
        Ok(Pipeline {
            connection,
            options,
            slots: Vec::new(),
            free: Vec::new(),
            bytes: 0,
            output: Vec::new(),
            output_start: 0,
            resting: BinaryHeap::new(),
            retries: 0,
            answer_bytes: HEADER_BYTES,
            last_progress: Instant::now(),
        })
    }

    /// How many requests are outstanding.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How often requests were sent again so far.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// Adds a request, first waiting for room in the window. `token` comes back with its completion; other
    /// requests may complete meanwhile.
    ///
    /// # Errors
    /// Those of the connection, and whatever `done` returns; the pipeline cannot be used any more then.
    pub fn submit<E: From<ClientError>>(
        &mut self,
        request: Request<'_>,
        token: u64,
        done: &mut impl FnMut(Completion<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.outstanding() >= self.options.window {
            self.turn(true, done)?;
        }
        let index = self.take_slot();
        let slot = &mut self.slots[usize::from(index)];
        // The low half finds the slot, the high half tells its requests apart.
        slot.opaque = (slot.opaque.wrapping_add(1 << 16) & 0xffff_0000) | u32::from(index);
        slot.frame.clear();
        if let Err(error) = request.opaque(slot.opaque).encode(&mut slot.frame) {
            self.free.push(index);
            return Err(ClientError::from(error).into());
        }
        (slot.token, slot.retries, slot.pause) = (token, 0, self.options.first_pause);
        let frame_bytes = slot.frame.len();
        while self.bytes > 0 && self.bytes + frame_bytes > self.options.window_bytes {
            self.turn(true, done)?;
        }
        self.bytes += frame_bytes;
        self.slots[usize::from(index)].submitted = Instant::now();
        self.enqueue(index);
        if self.output.len() - self.output_start >= BURST_BYTES {
            self.turn(false, done)?;
        }
        Ok(())
    }

    /// Waits until nothing is outstanding.
    ///
    /// # Errors
    /// As [`Pipeline::submit`].
    pub fn drain<E: From<ClientError>>(
        &mut self,
        done: &mut impl FnMut(Completion<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.outstanding() > 0 {
            self.poll(done)?;
        }
        Ok(())
    }

    /// Does what can be done now, or waits until something can, without adding a request.
    ///
    /// # Errors
    /// As [`Pipeline::submit`].
    pub fn poll<E: From<ClientError>>(
        &mut self,
        done: &mut impl FnMut(Completion<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.outstanding() == 0 {
            return Ok(());
        }
        self.turn(true, done)
    }

    fn take_slot(&mut self) -> u16 {
        if let Some(index) = self.free.pop() {
            return index;
        }
        let index = u16::try_from(self.slots.len()).expect("the window has at most 65,536 slots");
        self.slots.push(Slot {
            frame: Vec::new(),
            token: 0,
            opaque: 0,
            submitted: Instant::now(),
            retries: 0,
            pause: Duration::ZERO,
            waiting: false,
        });
        index
    }

    fn enqueue(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.waiting = true;
        self.output.extend_from_slice(&slot.frame);
    }

    /// Writes and reads what the socket takes and has; with `wait` at least one thing happens.
    fn turn<E: From<ClientError>>(
        &mut self,
        wait: bool,
        done: &mut impl FnMut(Completion<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let woken = self.wake_resting();
        let written = self.write()?;
        let completed = self.read(done)?;
        let progress = woken || written || completed;
        if progress {
            self.last_progress = Instant::now();
        } else if wait {
            self.wait()?;
        }
        Ok(())
    }

    /// Sends the requests again whose pause is over.
    fn wake_resting(&mut self) -> bool {
        if self.resting.is_empty() {
            return false;
        }
        let now = Instant::now();
        let mut woken = false;
        while let Some(Reverse((due, index))) = self.resting.peek().copied()
            && due <= now
        {
            self.resting.pop();
            self.enqueue(index);
            self.retries += 1;
            woken = true;
        }
        woken
    }

    fn write(&mut self) -> Result<bool, ClientError> {
        let mut any = false;
        while self.output_start < self.output.len() {
            match self.connection.stream.write(&self.output[self.output_start..]) {
                Ok(0) => {
                    let error = io::Error::from(io::ErrorKind::BrokenPipe);
                    return Err(self.connection.io_error(error, "sending requests"));
                }
                Ok(count) => {
                    self.output_start += count;
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(self.connection.io_error(error, "sending requests")),
            }
        }
        if self.output_start == self.output.len() {
            self.output.clear();
            self.output.shrink_to(4 * BURST_BYTES);
            self.output_start = 0;
        } else if self.output_start >= BURST_BYTES && self.output_start >= self.output.len() / 2 {
            self.output.drain(..self.output_start);
            self.output_start = 0;
        }
        Ok(any)
    }

    fn read<E: From<ClientError>>(
        &mut self,
        done: &mut impl FnMut(Completion<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        match self.connection.receive.fill(&mut self.connection.stream, self.answer_bytes) {
            Ok(0) => {
                let error = io::Error::from(io::ErrorKind::ConnectionReset);
                let during = format!("{} requests were outstanding", self.outstanding());
                return Err(self.connection.io_error(error, &during).into());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(self.connection.io_error(error, "receiving answers").into()),
        }
        self.answer_bytes = self.complete_received(done)?;
        Ok(true)
    }

    /// Completes every request whose answer is in the buffer; returns the bytes that the next answer needs.
    fn complete_received<E: From<ClientError>>(
        &mut self,
        done: &mut impl FnMut(Completion<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        loop {
            let bytes = self.connection.receive.unparsed();
            let frame = match decode_frame(bytes, FrameLimits::AUTHENTICATED) {
                Ok(Decoded::Frame(frame)) => frame,
                Ok(Decoded::Incomplete { frame_bytes }) => return Ok(frame_bytes),
                Err(reason) => return Err(self.not_protocol(reason).into()),
            };
            let frame_bytes = frame.frame_bytes();
            if frame.header.magic == Magic::ServerRequest {
                self.connection.receive.consume(frame_bytes);
                continue;
            }
            let index = usize::from(frame.opaque() as u16);
            let expected = self.slots.get(index).is_some_and(|slot| {
                slot.waiting && slot.opaque == frame.opaque() && slot.frame[1] == frame.opcode().0
            });
            if !expected || frame.header.magic.is_request() {
                let error = unexpected(frame.opcode(), &describe(&frame.header));
                self.connection.give_up();
                return Err(error.into());
            }
            let slot = &mut self.slots[index];
            slot.waiting = false;
            let status = frame.status();
            if is_temporary(status) && slot.submitted.elapsed() < self.options.patience {
                let pause = slot.pause.max(asked_pause(status, &frame));
                slot.pause = (slot.pause * 2).min(PAUSE_MAX);
                slot.retries += 1;
                self.resting.push(Reverse((Instant::now() + pause, index as u16)));
            } else {
                self.bytes -= slot.frame.len();
                self.free.push(index as u16);
                let (token, submitted, retries) = (slot.token, slot.submitted, slot.retries);
                done(Completion { token, answer: frame, request: &slot.frame, submitted, retries })?;
                if slot.frame.capacity() > SLOT_BYTES_KEPT {
                    slot.frame = Vec::new();
                }
            }
            self.connection.receive.consume(frame_bytes);
        }
    }

    /// Sleeps until the socket can go on, or a pause is over.
    fn wait(&mut self) -> Result<(), ClientError> {
        let now = Instant::now();
        let due = self.resting.peek().map(|Reverse((due, _))| due.saturating_duration_since(now));
        let silent = now - self.last_progress;
        if due.is_none() && silent >= self.connection.timeout {
            let error = io::Error::from(io::ErrorKind::TimedOut);
            let during = format!("{} requests were outstanding", self.outstanding());
            return Err(self.connection.io_error(error, &during));
        }
        let longest = due.unwrap_or(self.connection.timeout.saturating_sub(silent));
        let timeout = Timespec::try_from(longest.max(Duration::from_micros(50))).ok();
        let mut flags = PollFlags::IN;
        if self.output_start < self.output.len() {
            flags |= PollFlags::OUT;
        }
        match poll(&mut [PollFd::new(&self.connection.stream, flags)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(self.connection.io_error(error.into(), "waiting for answers")),
        }
    }

    fn not_protocol(&mut self, source: CloseReason) -> ClientError {
        self.connection.give_up();
        ClientError::NotProtocol { address: self.connection.address.clone(), source }
    }
}

impl Drop for Pipeline<'_> {
    fn drop(&mut self) {
        if self.outstanding() > 0 {
            self.connection.give_up();
        }
        if self.connection.stream.set_nonblocking(false).is_err() {
            self.connection.give_up();
        }
    }
}

/// The pause that the node itself asked for.
fn asked_pause(status: Status, frame: &Frame<'_>) -> Duration {
    if status != Status::EWOULDTHROTTLE {
        return Duration::ZERO;
    }
    let asked = ErrorContext::decode(frame.value).next_tick_us.unwrap_or(0);
    Duration::from_micros(asked).min(Duration::from_secs(5))
}
