//! Streams on the core of their vbucket, over a simulated disk: what they hold, what they say of themselves, how they end.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringbase::bucket::states::VbucketStates;
use ringbase::bucket::{BucketContext, BucketSettings};
use ringbase::dcp::piece::{
    Content, PieceSink, SentPiece, StreamAnswer, StreamNumber, StreamPiece, StreamSpec,
};
use ringbase::dcp::settings::MarkerForm;
use ringbase::dcp::streams::{PIECES_MAX, Streams};
use ringbase::dcp::time::{ClosedTime, Spent};
use ringbase::protocol::dcp::{
    DcpMessage, DocumentForm, Envelope, OpenFlags, OutOfOrderSnapshots, Priority, StreamEndStatus,
    StreamFlags, StreamRequest,
};
use ringbase::protocol::{Decoded, Features, FrameLimits, Status, decode_frame};
use ringbase::range_scan::ConnectionId;
use ringbase_storage::io::sim::Fault;
use ringbase_storage::types::{Seqno, VbId};

use crate::dcp_failures::spoil_one;
use crate::range_scan::rig::{AT, BUCKET, CLIENT, Rig};

/// Pieces that have arrived and were not given back.
#[derive(Default)]
pub(crate) struct Pieces {
    pub(crate) arrived: RefCell<VecDeque<StreamPiece>>,
    /// Buffers that were not given back, the most there ever were.
    most_held: Cell<usize>,
    /// The next piece is a bug of whoever takes it.
    pub(crate) is_broken: Cell<bool>,
}

impl PieceSink for Pieces {
    fn send(&self, piece: StreamPiece) {
        assert!(!self.is_broken.replace(false), "the sink is broken");
        self.arrived.borrow_mut().push_back(piece);
        let held = self.arrived.borrow().iter().filter(|piece| is_buffer(piece)).count();
        self.most_held.set(self.most_held.get().max(held));
    }
}

fn is_buffer(piece: &StreamPiece) -> bool {
    matches!(piece.content, Content::Buffer(_))
}

/// What a stream has sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) seqnos: Vec<Seqno>,
    /// First and last seqno of each snapshot that was announced.
    pub(crate) markers: Vec<(Seqno, Seqno)>,
    pub(crate) end: Option<StreamEndStatus>,
    /// Whether the end took the place of what was not sent.
    pub(crate) discarded: bool,
    /// Whether it ended with its connection.
    pub(crate) disconnected: bool,
}

pub(crate) struct Client {
    pub(crate) streams: Streams,
    pub(crate) pieces: Rc<Pieces>,
    pub(crate) window: Arc<ClosedTime>,
    pub(crate) socket: Arc<ClosedTime>,
    pub(crate) sent: BTreeMap<StreamNumber, Sent>,
    /// Whether the backfills of streams that are opened now are to be done one after the other.
    pub(crate) sequential: Cell<bool>,
    /// Of streams that are opened now.
    pub(crate) connection: Cell<ConnectionId>,
    pub(crate) priority: Cell<Priority>,
}

impl Client {
    pub(crate) fn of(rig: &Rig, bytes_max: usize) -> Client {
        let streams = Streams::new(rig.sim.env(), bytes_max);
        Client {
            streams,
            pieces: Rc::default(),
            window: Arc::default(),
            socket: Arc::default(),
            sent: BTreeMap::new(),
            sequential: Cell::default(),
            connection: Cell::new(CLIENT),
            priority: Cell::default(),
        }
    }

    pub(crate) fn open(&self, rig: &Rig, number: u64, flags: StreamFlags) -> StreamAnswer {
        self.open_from(rig, number, StreamRequest { flags, ..StreamRequest::FROM_NOTHING })
    }

    pub(crate) fn open_from(&self, rig: &Rig, number: u64, request: StreamRequest) -> StreamAnswer {
        let spec = StreamSpec {
            number: StreamNumber(number),
            connection: self.connection.get(),
            name: "client:one".into(),
            origin: Default::default(),
            window: self.window.clone(),
            socket: self.socket.clone(),
            bucket: BUCKET,
            envelope: Envelope::new(AT.vb, number as u32),
            request,
            selection: None,
            purge_seqno: None,
            form: DocumentForm::of(OpenFlags::PRODUCER, Features::NONE, false),
            markers: MarkerForm::V1,
            out_of_order: OutOfOrderSnapshots::Off,
            priority: self.priority.get(),
            is_sequential: self.sequential.get(),
            skips_deletes: false,
        };
        let bucket =
            BucketContext::new(rig.sim.env(), BucketSettings::default(), Arc::new(VbucketStates::new(16)));
        self.streams.open(&rig.store(), &bucket, spec, self.pieces.clone())
    }

    /// Takes the oldest piece and gives its buffer back; false if there is none.
    pub(crate) fn take(&mut self) -> bool {
        self.take_of(|_| true)
    }

    /// Takes the oldest piece of such a stream and gives its buffer back; false if there is none.
    pub(crate) fn take_of(&mut self, wanted: impl Fn(StreamNumber) -> bool) -> bool {
        let piece = {
            let mut arrived = self.pieces.arrived.borrow_mut();
            let index = arrived.iter().position(|piece| wanted(piece.number));
            index.and_then(|index| arrived.remove(index))
        };
        let Some(piece) = piece else { return false };
        let sent = self.sent.entry(piece.number).or_default();
        assert_eq!((sent.end, sent.disconnected), (None, false), "a piece behind the end");
        let mut items = 0;
        let mut bytes = piece.content.messages();
        while let Ok(Decoded::Frame(frame)) = decode_frame(bytes, FrameLimits::AUTHENTICATED) {
            match DcpMessage::decode(&frame).unwrap().1 {
                DcpMessage::Mutation(mutation) => {
                    assert!(sent.seqnos.last().is_none_or(|last| *last < mutation.by_seqno));
                    sent.seqnos.push(mutation.by_seqno);
                    items += 1;
                }
                DcpMessage::StreamEnd(status) => sent.end = Some(status),
                DcpMessage::SnapshotMarker(marker) => sent.markers.push((marker.start, marker.end)),
                other => panic!("{other:?}"),
            }
            bytes = &bytes[frame.frame_bytes()..];
        }
        sent.discarded |= piece.discards;
        sent.disconnected |= piece.disconnects;
        let is_over = sent.end.is_some() || sent.disconnected;
        assert_eq!((piece.items, piece.is_last, piece.vb), (items, is_over, AT.vb));
        if let Content::Buffer(buffer) = piece.content {
            self.streams.sent(SentPiece { number: piece.number, vb: piece.vb, buffer });
        }
        true
    }

    pub(crate) fn take_all(&mut self, rig: &Rig) {
        loop {
            rig.settle();
            if !self.take() {
                return;
            }
            while self.take() {}
        }
    }
}

pub(crate) const TO_LATEST: StreamFlags = StreamFlags::TO_LATEST;

/// Streams that end keep the turns of what they handed over until it was sent: the bound holds exactly, and everybody's turn comes.
#[test]
fn pieces_of_a_connection_are_bounded_also_while_its_streams_end() {
    for close in [false, true] {
        let rig = Rig::new(7);
        rig.load_large(300);
        let mut client = Client::of(&rig, 64 << 20);
        let count = 3 * PIECES_MAX as u64;
        for number in 0..count {
            assert!(matches!(client.open(&rig, number, TO_LATEST), StreamAnswer::Accepted(_)));
        }
        rig.settle();
        let held = client.pieces.arrived.borrow().iter().filter(|piece| is_buffer(piece)).count();
        assert_eq!(held, PIECES_MAX, "as many as there may be");
        if close {
            (0..count).step_by(2).for_each(|number| client.streams.close(StreamNumber(number)));
            rig.settle();
        }
        client.take_all(&rig);
        assert_eq!(client.pieces.most_held.get(), PIECES_MAX);
        let ended = client.sent.values().filter(|sent| sent.end == Some(StreamEndStatus::Ok));
        assert!(ended.clone().all(|sent| sent.seqnos.len() == 300));
        assert!(ended.count() >= if close { count as usize / 2 } else { count as usize });
        assert_eq!((rig.views(), client.streams.buffer_bytes()), (0, 0));
    }
}

/// DCP §4 row 12: with the memory of the streams in use no stream begins; one that is there goes on, and memory that comes home is used.
#[test]
fn a_stream_is_refused_for_want_of_memory_and_those_that_are_there_go_on() {
    let rig = Rig::new(8);
    rig.load_large(1_500);
    // Fewer pieces than the connection may have.
    let mut client = Client::of(&rig, 1 << 20);
    for number in 0..12 {
        assert!(matches!(client.open(&rig, number, TO_LATEST), StreamAnswer::Accepted(_)));
    }
    rig.settle();
    assert!(client.streams.buffer_bytes() <= (1 << 20) + (80 << 10));
    let StreamAnswer::Refused(refusal) = client.open(&rig, 100, TO_LATEST) else { panic!("accepted") };
    assert_eq!(refusal.status, Status::ENOMEM);
    let mut waits = Vec::new();
    client.streams.each(BUCKET, None, &mut |facts| {
        let fields: BTreeMap<String, serde_json::Value> = facts.fields.into_iter().collect();
        waits.push(fields["waits_for"].as_str().unwrap().to_owned());
    });
    assert!(waits.iter().any(|wait| wait == Spent::Memory.name()), "{waits:?}");
    client.take_all(&rig);
    assert!(client.sent.values().all(|sent| sent.seqnos.len() == 1_500));
    assert!(matches!(client.open(&rig, 101, TO_LATEST), StreamAnswer::Accepted(_)));
    client.take_all(&rig);
    assert_eq!(client.sent.len(), 13);
}

/// T1.14; every nanosecond of a stream is spent on something, whatever it waits for, and what it says of itself adds up.
#[test]
fn the_time_of_a_stream_adds_up_to_the_whole() {
    let rig = Rig::new(9);
    rig.load_large(2_000);
    rig.disk.set_latency(Duration::from_millis(1), Duration::from_millis(2));
    let mut client = Client::of(&rig, 64 << 20);
    client.open(&rig, 5, StreamFlags::NONE);
    let facts = |client: &Client| {
        let mut fields = BTreeMap::new();
        client.streams.each(BUCKET, Some(AT.vb), &mut |facts| fields.extend(facts.fields));
        client.streams.each(BUCKET, Some(VbId(1)), &mut |facts| panic!("{facts:?}"));
        fields
    };
    let number = |fields: &BTreeMap<String, serde_json::Value>, name: &str| fields[name].as_u64().unwrap();
    let check = |client: &Client| {
        let fields = facts(client);
        let spent = |what: Spent| number(&fields, &format!("spent_{}_ns", what.name()));
        assert_eq!(Spent::ALL.map(spent).iter().sum::<u64>(), number(&fields, "wall_ns"));
        fields
    };
    rig.sim.run_for(Duration::from_millis(20));
    let fields = check(&client);
    assert_eq!((fields["uid"].as_u64(), fields["state"].as_str()), (Some(5), Some("backfilling")));
    rig.settle();
    // Two pieces are under way, and the client takes none: first its network is slow, then its window is closed.
    let fields = check(&client);
    assert_eq!(fields["waits_for"], "credit");
    assert!(number(&fields, "items_remaining") > 0 && number(&fields, "ready_queue_memory") > 128 << 10);
    assert!(number(&fields, "last_sent_seqno") == 0 && number(&fields, "last_read_seqno") > 100);
    client.window.is_now(true, rig.sim.now_ns());
    rig.sim.run_for(Duration::from_secs(3));
    let fields = check(&client);
    assert_eq!(fields["waits_for"], "window");
    assert_eq!(number(&fields, "spent_window_ns"), 3_000_000_000);
    client.window.is_now(false, rig.sim.now_ns());
    client.take_all(&rig);
    rig.sim.run_for(Duration::from_secs(1));
    let fields = check(&client);
    assert_eq!(fields["waits_for"], "up_to_date");
    assert!(number(&fields, "spent_up_to_date_ns") >= 900_000_000);
    assert!(number(&fields, "spent_device_ns") >= 1_000_000, "{fields:?}");
    assert_eq!((number(&fields, "backfill_disk_items"), number(&fields, "items_remaining")), (2_000, 0));
    assert_eq!(client.sent[&StreamNumber(5)].seqnos.len(), 2_000);
}

/// T3.1, T3.6, T3.17: a read that fails or brings other bytes ends the stream; it is counted once, whatever was read ahead.
#[test]
fn a_failed_backfill_is_counted_once_and_the_next_one_succeeds() {
    for fault in [Fault::ReadError, Fault::BitFlip] {
        let rig = Rig::new(11);
        rig.load_large(1_000);
        let mut client = Client::of(&rig, 64 << 20);
        spoil_one(&rig, fault);
        client.open(&rig, 1, TO_LATEST);
        client.take_all(&rig);
        rig.disk.clear_faults();
        let failed = client.streams.metrics().read_failures.get();
        assert_eq!((client.sent[&StreamNumber(1)].end, failed), (Some(StreamEndStatus::BackfillFail), 1));
        assert_eq!((rig.views(), client.streams.buffer_bytes()), (0, 0));
        client.open(&rig, 2, TO_LATEST);
        client.take_all(&rig);
        assert_eq!(client.sent[&StreamNumber(2)].end, Some(StreamEndStatus::Ok));
        assert_eq!(client.sent[&StreamNumber(2)].seqnos.len(), 1_000);
    }
}

/// T2.1: what fits a piece is there after the first run, marker and documents together, and the backfill is gone.
#[test]
fn a_small_backfill_is_done_in_its_first_run() {
    let rig = Rig::new(13);
    rig.load_large(20);
    let mut client = Client::of(&rig, 64 << 20);
    client.open(&rig, 1, StreamFlags::NONE);
    rig.settle();
    assert_eq!(client.pieces.arrived.borrow().len(), 1);
    client.streams.each(BUCKET, None, &mut |facts| assert!(!facts.is_backfilling && !facts.has_slot));
    assert_eq!(rig.views(), 0);
    client.take_all(&rig);
    assert_eq!(client.sent[&StreamNumber(1)].seqnos.len(), 20);
}

/// T2.9, T2.12, T2.15: what waits for a slot or a turn pins nothing; what was closed is gone with its view, whatever it waited for, and says
/// nothing more.
#[test]
fn waiting_backfills_pin_nothing_and_closed_ones_are_gone() {
    let rig = Rig::new(12);
    rig.load_large(2_000);
    let mut client = Client::of(&rig, 64 << 20);
    (0..200).for_each(|number| drop(client.open(&rig, number, StreamFlags::NONE)));
    rig.settle();
    let mut active = 0;
    client.streams.each(BUCKET, None, &mut |facts| active += usize::from(facts.has_slot));
    assert_eq!(active, Streams::BACKFILLS_MAX);
    let views = rig.views();
    assert!(views > 0 && views <= PIECES_MAX as u64, "{views}");
    (0..200).for_each(|number| client.streams.close(StreamNumber(number)));
    rig.settle();
    assert_eq!(rig.views(), 0);
    client.streams.each(BUCKET, None, &mut |facts| panic!("{facts:?}"));
    client.take_all(&rig);
    assert!(client.sent.values().all(|sent| sent.end.is_none()));
    assert_eq!(client.streams.buffer_bytes(), 0);
}
