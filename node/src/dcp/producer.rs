//! A producer connection: its settings, its streams, and which bytes of them may leave next.
//!
//! The pieces of its streams queue here, one queue a stream. [`Producer::next_bytes`] takes from each stream with something to send in
//! turn, as much of its first
//! piece as the client's window allows, cut between messages.
//!
//! Invariants
//! - A stream's messages leave in order; what leaves counts in the window at once.
//! - A stream is there until the last of its bytes has left, or it is closed. A closed one may be asked for again at once; the end that
//!   its client wants to see waits beside the streams, and goes first.
//! - At most [`ENDS_MAX`] such ends wait, and one for each stream that is there: then no stream is begun.
//!
//! Cost: a piece within the window is not looked into; one at its edge is walked message by message.
//! Does not know: sockets, tasks, other cores.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringbase_storage::types::{BucketId, VbId};
use serde_json::Value;

use super::flow::Unacked;
use super::flow_control::{Acked, Window};
use super::noop::{IDLE_TIMEOUT, NoopTimer};
use super::piece::{Origin, StreamNumber};
use super::settings::ProducerSettings;
use super::time::ClosedTime;
use crate::protocol::dcp::signal::encode_stream_end;
use crate::protocol::dcp::{Control, Envelope, OpenFlags, StreamEndStatus, StreamId};
use crate::protocol::{Features, HEADER_BYTES, Refusal, Status};

/// Ends of closed streams that wait for the client's window, before which no stream is begun.
pub const ENDS_MAX: usize = 1024;

/// Names a stream on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    /// Its vbucket.
    pub vb: VbId,
    /// Its id, on connections with stream ids.
    pub id: Option<StreamId>,
}

/// A stream as its connection knows it.
#[derive(Debug)]
struct Outgoing {
    number: StreamNumber,
    opaque: u32,
    /// Bytes and the documents in them.
    queue: VecDeque<(Bytes, u32)>,
    /// No piece follows those in the queue.
    is_ended: bool,
    /// Whether it is among those with something to send.
    is_ready: bool,
}

/// What a connection has sent and has to send.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ProducerTotals {
    /// Bytes of streams that left.
    pub sent_bytes: u64,
    /// Documents in pieces that left to their end.
    pub sent_items: u64,
    /// Bytes that the client gave back.
    pub acked_bytes: u64,
    /// Bytes that wait to be sent.
    pub queued_bytes: usize,
    /// Streams that are there.
    pub streams: usize,
    /// How often the window was closed.
    pub closings: u64,
    /// How often it was opened again.
    pub openings: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Producer {
    name: Vec<u8>,
    bucket: BucketId,
    opened: Duration,
    settings: ProducerSettings,
    window: Window,
    /// Is the client still there?
    pub noops: NoopTimer,
    streams: BTreeMap<StreamKey, Outgoing>,
    keys: HashMap<StreamNumber, StreamKey, ahash::RandomState>,
    ready: VecDeque<StreamKey>,
    /// Ends of streams that were closed.
    ends: VecDeque<Bytes>,
    sent_bytes: u64,
    sent_items: u64,
    acked_bytes: u64,
    closed: Arc<ClosedTime>,
    /// While the window is open.
    socket: Arc<ClosedTime>,
    /// Whether the kernel has not taken all that it was given.
    is_socket_full: bool,
    origin: Arc<Origin>,
    unacked: Unacked,
    /// How often the window was closed and opened.
    closings: u64,
    openings: u64,
}

impl Producer {
    /// A connection that was opened at `now` for `bucket`.
    #[must_use]
    pub fn new(name: &[u8], origin: Origin, flags: OpenFlags, bucket: BucketId, now: Duration) -> Producer {
        Producer {
            name: name.to_vec(),
            bucket,
            opened: now,
            settings: ProducerSettings::new(flags, name),
            window: Window::off(),
            noops: NoopTimer::new(IDLE_TIMEOUT, now),
            streams: BTreeMap::new(),
            keys: HashMap::default(),
            ready: VecDeque::new(),
            ends: VecDeque::new(),
            sent_bytes: 0,
            sent_items: 0,
            acked_bytes: 0,
            closed: Arc::default(),
            socket: Arc::default(),
            is_socket_full: false,
            origin: Arc::new(origin),
            unacked: Unacked::default(),
            closings: 0,
            openings: 0,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The bucket that it streams.
    #[must_use]
    pub fn bucket(&self) -> BucketId {
        self.bucket
    }

    /// When it was opened.
    #[must_use]
    pub fn opened(&self) -> Duration {
        self.opened
    }

    /// What it was told.
    #[must_use]
    pub fn settings(&self) -> &ProducerSettings {
        &self.settings
    }

    /// Its window.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// How long its window has been closed.
    #[must_use]
    pub fn closed(&self) -> &Arc<ClosedTime> {
        &self.closed
    }

    /// How long its socket was full while the window was open.
    #[must_use]
    pub fn socket(&self) -> &Arc<ClosedTime> {
        &self.socket
    }

    /// Who the client is.
    #[must_use]
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Whether the kernel has not taken all that it was given. [`Producer::window_changed`] follows.
    pub fn socket_is(&mut self, is_full: bool) {
        self.is_socket_full = is_full;
    }

    /// Looks at the window after what may have closed or opened it.
    pub fn window_changed(&mut self, now: Duration) {
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let is_full = self.window.is_full();
        self.socket.is_now(self.is_socket_full && !is_full, now_ns);
        if self.closed.is_now(is_full, now_ns) {
            *(if is_full { &mut self.closings } else { &mut self.openings }) += 1;
        }
    }

    /// What it has sent and has to send.
    #[must_use]
    pub fn totals(&self) -> ProducerTotals {
        let queues = || self.streams.values().flat_map(|stream| &stream.queue);
        ProducerTotals {
            sent_bytes: self.sent_bytes,
            sent_items: self.sent_items,
            acked_bytes: self.acked_bytes,
            queued_bytes: queues().map(|(bytes, _)| bytes.len()).sum(),
            streams: self.streams.len(),
            closings: self.closings,
            openings: self.openings,
        }
    }

    /// What it is and does, by the names of statistics.
    #[must_use]
    pub fn fields(&self, now: Duration) -> Vec<(&'static str, Value)> {
        let (settings, totals) = (&self.settings, self.totals());
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let is_paused = self.window.is_full() || self.ready.is_empty();
        let mut fields: Vec<(&'static str, Value)> = vec![
            ("type", "producer".into()),
            ("user", self.origin.user.as_str().into()),
            ("connected_port", self.origin.port.into()),
            ("created", self.opened.as_secs().into()),
            ("supports_ack", self.window.is_on().into()),
            ("paused", is_paused.into()),
            ("paused_count", totals.closings.into()),
            ("unpaused_count", totals.openings.into()),
            ("paused_current_duration_ns", self.closed.current_ns(now_ns).into()),
            ("paused_previous_BufferLogFull_count", totals.openings.into()),
            (
                "paused_previous_BufferLogFull_duration_ns",
                (self.closed.total_ns(now_ns) - self.closed.current_ns(now_ns)).into(),
            ),
            ("socket_full_duration_ns", self.socket.total_ns(now_ns).into()),
            ("priority", settings.priority.name().into()),
            ("items_sent", totals.sent_items.into()),
            ("total_bytes_sent", totals.sent_bytes.into()),
            ("queued_bytes", totals.queued_bytes.into()),
            ("noop_enabled", settings.noop.into()),
            ("noop_tx_interval", settings.noop_interval.as_secs_f64().into()),
            ("force_value_compression", settings.compresses_values.into()),
            ("cursor_dropping", settings.cursor_dropping.into()),
            ("send_stream_end_on_client_close_stream", settings.stream_end_on_close.into()),
            ("enable_expiry_opcode", settings.expiry_opcode.into()),
            ("enable_stream_id", settings.stream_ids.into()),
            ("synchronous_writes", settings.sync_writes.into()),
            ("synchronous_replication", settings.is_sync_replication().into()),
            ("change_streams_enabled", settings.change_streams.into()),
            ("out_of_order_snapshots", settings.out_of_order.name().into()),
            ("flow_control", if self.window.is_on() { "enabled" } else { "disabled" }.into()),
            ("num_streams", totals.streams.into()),
        ];
        if is_paused {
            let reason = if self.window.is_full() { "BufferLogFull" } else { "ReadyListEmpty" };
            fields.push(("paused_current_reason", reason.into()));
        }
        if self.window.is_on() {
            fields.push(("max_buffer_bytes", self.window.size_bytes().into()));
            fields.push(("unacked_bytes", self.window.outstanding_bytes().into()));
            fields.push(("total_acked_bytes", totals.acked_bytes.into()));
        }
        fields
    }

    /// Takes a control.
    ///
    /// # Errors
    /// As [`ProducerSettings::apply`].
    pub fn control(
        &mut self,
        control: &Control<'_>,
        features: Features,
        now: Duration,
    ) -> Result<(), Refusal> {
        self.settings.apply(control, features, false)?;
        match control {
            Control::ConnectionBufferSize(bytes) => self.window.resize(*bytes),
            Control::EnableNoop(on) => self.noops.enable(*on, now),
            Control::SetNoopInterval(interval) => self.noops.set_interval(*interval),
            _ => {}
        }
        Ok(())
    }

    /// The client has given bytes back.
    pub fn acked(&mut self, bytes: u32) -> Acked {
        self.acked_bytes += u64::from(bytes);
        self.unacked.acked(bytes);
        self.window.acked(bytes)
    }

    /// Whether so many ends of closed streams wait that no stream is begun.
    #[must_use]
    pub fn has_too_many_ends(&self) -> bool {
        self.ends.len() >= ENDS_MAX
    }

    /// Whether there is such a stream.
    #[must_use]
    pub fn has_stream(&self, key: StreamKey) -> bool {
        self.streams.contains_key(&key)
    }

    /// Takes note of a stream that was asked for; until it begins nothing is sent of it.
    pub fn add_stream(&mut self, key: StreamKey, number: StreamNumber, opaque: u32) {
        let (queue, is_ended, is_ready) = (VecDeque::new(), false, false);
        self.streams.insert(key, Outgoing { number, opaque, queue, is_ended, is_ready });
        self.keys.insert(number, key);
    }

    /// Forgets a stream that does not begin.
    pub fn remove_stream(&mut self, number: StreamNumber) {
        if let Some(key) = self.keys.remove(&number) {
            self.streams.remove(&key);
            self.ready.retain(|ready| *ready != key);
        }
    }

    /// The client closes a stream: returns its number. What was not sent is dropped; an end is sent if the client has asked for one.
    ///
    /// # Errors
    /// KEY_ENOENT if there is no stream of the vbucket, DCP_STREAM_ID_INVALID if none with this id.
    pub fn close_stream(&mut self, key: StreamKey) -> Result<StreamNumber, Refusal> {
        let Some(stream) = self.streams.get(&key) else {
            let is_there = self.streams.keys().any(|other| other.vb == key.vb);
            return Err(match is_there && key.id.is_some() {
                true => Refusal::new(Status::DCP_STREAM_ID_INVALID, "No stream with this id"),
                false => Refusal::new(Status::KEY_ENOENT, "No stream of this vbucket"),
            });
        };
        let (number, opaque) = (stream.number, stream.opaque);
        self.remove_stream(number);
        if self.settings.stream_end_on_close {
            let envelope = Envelope { vbucket: key.vb, opaque, stream_id: key.id };
            let mut message = Vec::new();
            encode_stream_end(StreamEndStatus::Closed, envelope, &mut message);
            self.ends.push_back(message.into());
        }
        Ok(number)
    }

    /// Takes a piece of a stream; false if there is no such stream any more. If it `discards`, what waits is dropped, and it is the
    /// next to be sent.
    pub fn queue(
        &mut self,
        number: StreamNumber,
        bytes: Bytes,
        items: u32,
        is_last: bool,
        discards: bool,
    ) -> bool {
        let Some(key) = self.keys.get(&number).copied() else { return false };
        let Some(stream) = self.streams.get_mut(&key).filter(|stream| !stream.is_ended) else { return false };
        if discards {
            stream.queue.clear();
            if stream.is_ready {
                self.ready.retain(|ready| *ready != key);
            }
            self.ready.push_front(key);
        } else if !stream.is_ready {
            self.ready.push_back(key);
        }
        stream.is_ready = true;
        stream.is_ended |= is_last;
        stream.queue.push_back((bytes, items));
        true
    }

    /// Whether something may be sent now.
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        (!self.ready.is_empty() || !self.ends.is_empty()) && !self.window.is_full()
    }

    /// The next bytes to send, whole messages; they count as sent.
    pub fn next_bytes(&mut self) -> Option<Bytes> {
        if self.window.is_full() {
            return None;
        }
        if let Some(end) = self.ends.pop_front() {
            self.window.sent(end.len());
            self.sent_bytes += end.len() as u64;
            return Some(end);
        }
        let key = self.ready.pop_front()?;
        let stream = self.streams.get_mut(&key)?;
        let (first, items) = stream.queue.front_mut()?;
        let len = match self.window.room_bytes() {
            Some(room) => messages_within(first, room),
            None => first.len(),
        };
        let bytes = first.split_to(len);
        self.window.sent(len);
        if self.window.is_on() {
            self.unacked.sent(stream.number, len);
        }
        self.sent_bytes += len as u64;
        if first.is_empty() {
            self.sent_items += u64::from(*items);
            stream.queue.pop_front();
        }
        if !stream.queue.is_empty() {
            self.ready.push_back(key);
        } else {
            stream.is_ready = false;
            if stream.is_ended {
                let number = stream.number;
                self.remove_stream(number);
            }
        }
        Some(bytes)
    }
}

/// Bytes of the messages at the front of `bytes` that may leave while `room` bytes are left: the one that uses them up is the last.
fn messages_within(bytes: &[u8], room: u64) -> usize {
    if bytes.len() as u64 <= room {
        return bytes.len();
    }
    let mut end = 0;
    while (end as u64) < room && end < bytes.len() {
        let body =
            bytes.get(end + 8..end + 12).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
        // Pieces are made of whole messages; what is none leaves in one.
        let Some(body) = body else { return bytes.len() };
        end = end.saturating_add(HEADER_BYTES).saturating_add(body as usize);
    }
    end.min(bytes.len())
}

#[cfg(test)]
mod tests {
    use ringbase_storage::types::Seqno;

    use super::*;
    use crate::protocol::dcp::signal::encode_seqno_advanced;

    fn key(vb: u16) -> StreamKey {
        StreamKey { vb: VbId(vb), id: None }
    }

    fn producer(window: u32) -> Producer {
        let mut producer =
            Producer::new(b"test", Origin::default(), OpenFlags::PRODUCER, BucketId(1), Duration::ZERO);
        let control = Control::ConnectionBufferSize(window);
        producer.control(&control, Features::NONE, Duration::ZERO).unwrap();
        for vb in [1, 2] {
            producer.add_stream(key(vb), StreamNumber(u64::from(vb)), 7);
        }
        producer
    }

    /// Messages of 32 bytes.
    fn messages(count: u64) -> Bytes {
        let mut out = Vec::new();
        (0..count).for_each(|n| encode_seqno_advanced(Seqno(n), Envelope::new(VbId(1), 7), &mut out));
        out.into()
    }

    fn taken(producer: &mut Producer) -> Vec<usize> {
        std::iter::from_fn(|| producer.next_bytes()).map(|bytes| bytes.len()).collect()
    }

    #[test]
    fn the_window_is_exceeded_by_less_than_one_message_and_opens_with_what_is_given_back() {
        let mut producer = producer(100);
        producer.queue(StreamNumber(1), messages(10), 10, false, false);
        assert_eq!(taken(&mut producer), [128]);
        assert!(!producer.has_bytes());
        assert_eq!(producer.acked(60), Acked::Taken);
        assert_eq!(taken(&mut producer), [32]);
        assert_eq!(producer.acked(100), Acked::Taken);
        assert_eq!(taken(&mut producer), [128]);
        producer.acked(128);
        assert_eq!(taken(&mut producer), [32], "the rest");
        let totals = producer.totals();
        assert_eq!((totals.sent_bytes, totals.acked_bytes, totals.sent_items), (320, 288, 10));
        assert_eq!(producer.window().outstanding_bytes(), 32);
    }

    #[test]
    fn streams_take_turns_and_a_stream_is_gone_with_its_last_byte() {
        let mut producer = producer(0);
        for _ in 0..2 {
            producer.queue(StreamNumber(1), messages(1), 0, false, false);
            producer.queue(StreamNumber(2), messages(2), 0, false, false);
        }
        producer.queue(StreamNumber(2), messages(3), 0, true, false);
        assert_eq!(taken(&mut producer), [32, 64, 32, 64, 96]);
        assert!(producer.has_stream(key(1)) && !producer.has_stream(key(2)));
        assert!(!producer.queue(StreamNumber(2), messages(1), 0, false, false), "it has ended");
    }

    /// T3.1, T3.2, T3.15: what was not sent is dropped, and the end is the first thing sent when the window opens.
    #[test]
    fn a_failed_stream_loses_what_waits_and_its_end_goes_before_what_others_have_to_say() {
        let mut producer = producer(32);
        producer.queue(StreamNumber(1), messages(1), 0, false, false);
        assert_eq!(taken(&mut producer), [32]);
        producer.queue(StreamNumber(2), messages(1), 0, false, false);
        producer.queue(StreamNumber(1), messages(50), 0, false, false);
        producer.queue(StreamNumber(1), messages(1), 0, true, true);
        assert_eq!((producer.totals().queued_bytes, taken(&mut producer)), (64, vec![]));
        producer.acked(32);
        assert_eq!(taken(&mut producer), [32]);
        assert!(!producer.has_stream(key(1)) && producer.has_stream(key(2)));
        producer.acked(32);
        assert_eq!(taken(&mut producer), [32]);
    }

    #[test]
    fn a_closed_stream_is_gone_at_once_or_with_an_end_if_that_was_asked_for() {
        let mut producer = producer(0);
        producer.queue(StreamNumber(1), messages(5), 0, false, false);
        assert_eq!(producer.close_stream(key(1)), Ok(StreamNumber(1)));
        assert_eq!(taken(&mut producer), [0_usize; 0]);
        let refused = producer.close_stream(key(1)).map_err(|refusal| refusal.status);
        assert_eq!(refused, Err(Status::KEY_ENOENT));
        let control = Control::SendStreamEndOnClientCloseStream;
        producer.control(&control, Features::NONE, Duration::ZERO).unwrap();
        producer.queue(StreamNumber(2), messages(5), 0, false, false);
        assert_eq!(producer.close_stream(key(2)), Ok(StreamNumber(2)));
        assert!(!producer.has_stream(key(2)));
        assert_eq!(taken(&mut producer), [28]);
    }

    #[test]
    fn a_stream_may_be_asked_for_again_while_the_end_of_its_forerunner_waits_and_ends_are_bounded() {
        let mut producer = producer(32);
        let control = Control::SendStreamEndOnClientCloseStream;
        producer.control(&control, Features::NONE, Duration::ZERO).unwrap();
        producer.queue(StreamNumber(1), messages(5), 0, false, false);
        assert_eq!(taken(&mut producer), [32]);
        producer.close_stream(key(1)).unwrap();
        assert!(!producer.has_stream(key(1)), "though the window is full");
        producer.add_stream(key(1), StreamNumber(3), 9);
        assert!(producer.queue(StreamNumber(3), messages(1), 0, false, false));
        assert!(!producer.has_bytes());
        producer.acked(32);
        assert_eq!(taken(&mut producer), [28, 32], "the end of the first goes before the second");
        for number in 4.. {
            if producer.has_too_many_ends() {
                break;
            }
            producer.close_stream(key(1)).unwrap();
            producer.add_stream(key(1), StreamNumber(number), 9);
        }
        assert_eq!(producer.ends.len(), ENDS_MAX);
    }
}
