//! What a DCP client sends behind its DCP_OPEN, whatever it is, taken as a node takes it: controls, stream requests with filters, acknowledgements,
//! answers to noops, closes. Shared by a test and the fuzz target.
//!
//! The parts are those of the node, over a vbucket on a simulated disk. What must hold for any input: what leaves are whole messages of streams that
//! were accepted, none leaves while the window is closed, and nothing is left when the connection is gone.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringbase::bucket::states::VbucketStates;
use ringbase::bucket::{BucketContext, BucketSettings};
use ringbase::dcp::collections::check_known;
use ringbase::dcp::noop::NoopAction;
use ringbase::dcp::piece::{
    Content, Origin, PieceSink, SentPiece, StreamAnswer, StreamNumber, StreamPiece, StreamSpec,
};
use ringbase::dcp::producer::{Producer, StreamKey};
use ringbase::dcp::request::check;
use ringbase::dcp::streams::Streams;
use ringbase::protocol::dcp::signal::{decode_buffer_ack, decode_close_stream};
use ringbase::protocol::dcp::stream_request::decode_add_stream;
use ringbase::protocol::dcp::{
    BackfillOrder, Control, DcpMessage, Envelope, FilterSelection, OpenFlags, StreamFilter, StreamFlags,
    StreamRequest,
};
use ringbase::protocol::hello::Feature;
use ringbase::protocol::{
    ConnectionState, Decoded, Features, Frame, FrameLimits, Opcode, Refusal, Status, decode_frame, validate,
};
use ringbase::range_scan::ConnectionId;
use ringbase_storage::cache::BlockCache;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::shard::{
    FormatOptions, Home, ReclaimOptions, ScrubOptions, Shard, ShardOptions, format,
};
use ringbase_storage::types::{BucketId, Kind, ShardId, VbId};
use ringbase_storage::vbstore::{NewVersion, VbStore};

const BUCKET: BucketId = BucketId(1);
const CLIENT: ConnectionId = ConnectionId(1);
/// Of one input.
const FRAMES_MAX: usize = 64;
const GROW_BYTES: u64 = 256 << 10;

/// A vbucket with documents and deletions, some of them on disk only.
struct World {
    sim: SimExecutor,
    _shard: Shard,
    store: Rc<VbStore>,
    bucket: Rc<BucketContext>,
}

thread_local! {
    static WORLD: World = World::new();
}

impl World {
    fn new() -> World {
        let (sim, disk) = (SimExecutor::new(1), SimDisk::new(1));
        disk.attach(&sim);
        let shard = sim.block_on(async {
            let geometry = Geometry {
                shard: ShardId(0),
                shard_count: 1,
                vbucket_count: 1,
                wal_segments: 4,
                wal_segment_bytes: 256 << 10,
            };
            let options = FormatOptions { geometry, grow_bytes: GROW_BYTES };
            format(&sim.env(), &disk.open("wal"), &disk.open("data"), options).await.unwrap();
            let options = ShardOptions {
                resident_bytes_max: 4 << 10,
                memtable_bytes_max: 1 << 20,
                grow_bytes: GROW_BYTES,
                flush_bytes: 16 << 10,
                window_versions_max: 60,
                scrub: ScrubOptions::WHEN_ASKED,
                reclaim: ReclaimOptions::UNPACED,
            };
            let (wal, data) = (disk.open("wal"), disk.open("data"));
            let (shard, _) =
                Shard::open(sim.env(), wal, data, BlockCache::new(64 << 10), options).await.unwrap();
            let desc = BucketDesc { id: BUCKET, uuid: 7, name: "default".into(), config: String::new() };
            shard.create_bucket_in(desc, Home::Disk).await.unwrap();
            let store = shard.vbucket(BUCKET, VbId(0)).unwrap();
            for number in 0..120_u8 {
                let key = [0, b'k', number % 100];
                let found = store.get(&key).await.unwrap();
                let kind = if number % 7 == 3 { Kind::Deletion } else { Kind::Mutation };
                let value = if kind == Kind::Deletion { &[][..] } else { &[number; 200] };
                store
                    .write(&found, NewVersion { key: &key, value, flags: 0, expiry: 0, datatype: 0, kind })
                    .unwrap();
                if number == 100 {
                    assert!(store.wait_persisted(store.high_seqno()).await);
                    shard.flush().await.unwrap();
                }
            }
            assert!(store.wait_persisted(store.high_seqno()).await);
            shard
        });
        let store = shard.vbucket(BUCKET, VbId(0)).unwrap();
        let states = Arc::new(VbucketStates::new(1));
        let bucket = BucketContext::new(sim.env(), BucketSettings::default(), states);
        World { sim, _shard: shard, store, bucket }
    }
}

#[derive(Default)]
struct Arrived(RefCell<VecDeque<StreamPiece>>);

impl PieceSink for Arrived {
    fn send(&self, piece: StreamPiece) {
        self.0.borrow_mut().push_back(piece);
    }
}

struct Connection<'w> {
    world: &'w World,
    features: Features,
    producer: Producer,
    streams: Streams,
    arrived: Rc<Arrived>,
    opened: u64,
}

/// Takes `bytes`: how the connection was opened in the first, frames in the rest. Returns how many frames were taken and not refused.
pub(crate) fn exercise(bytes: &[u8]) -> usize {
    let Some((how, frames)) = bytes.split_first() else { return 0 };
    WORLD.with(|world| {
        let features = if how & 1 == 0 { Features::NONE } else { Features::of(Feature::ALL) };
        let mut flags = OpenFlags::PRODUCER;
        for (bit, flag) in [
            (2, OpenFlags::INCLUDE_XATTRS),
            (4, OpenFlags::INCLUDE_DELETE_TIMES),
            (8, OpenFlags::INCLUDE_DELETED_USER_XATTRS),
            (16, OpenFlags::SKIP_DELETES_IN_INITIAL_BACKFILL),
        ] {
            flags = if how & bit == 0 { flags } else { flags | flag };
        }
        let now = Duration::from_nanos(world.sim.now_ns());
        let mut connection = Connection {
            world,
            features,
            producer: Producer::new(b"fuzz", Origin::default(), flags, BUCKET, now),
            streams: Streams::new(world.sim.env(), 1 << 20),
            arrived: Rc::default(),
            opened: 0,
        };
        let taken = connection.take_all(frames);
        connection.streams.connection_gone(CLIENT);
        world.sim.run_for(Duration::from_millis(1));
        connection.arrived.0.take();
        assert_eq!((connection.streams.buffer_bytes(), world.store.stats().views), (0, 0));
        taken
    })
}

impl Connection<'_> {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.world.sim.now_ns())
    }

    fn take_all(&mut self, mut bytes: &[u8]) -> usize {
        let mut taken = 0;
        for _ in 0..FRAMES_MAX {
            let Ok(Decoded::Frame(frame)) = decode_frame(bytes, FrameLimits::AUTHENTICATED) else { break };
            bytes = &bytes[frame.frame_bytes()..];
            taken += usize::from(self.frame(&frame).is_ok());
            self.send();
        }
        taken
    }

    fn frame(&mut self, frame: &Frame<'_>) -> Result<(), Refusal> {
        let now = self.now();
        self.producer.noops.received(now);
        if !frame.header.magic.is_request() {
            if frame.opcode() == Opcode::DCP_NOOP {
                self.producer.noops.answered(frame.opaque());
            }
            return Ok(());
        }
        let state =
            ConnectionState { authenticated: true, features: self.features, config_only_bucket: false };
        if validate(frame, &state).is_err() {
            return Err(Refusal::einval("The frame is not valid"));
        }
        match frame.opcode() {
            Opcode::DCP_CONTROL => {
                let control = Control::decode(frame.key, frame.value)?;
                self.producer.control(&control, self.features, now)?;
                self.producer.window_changed(now);
            }
            Opcode::DCP_BUFFER_ACKNOWLEDGEMENT => {
                self.producer.acked(decode_buffer_ack(frame.extras)?);
                self.producer.window_changed(now);
            }
            Opcode::DCP_CLOSE_STREAM => {
                let id = decode_close_stream(frame, self.producer.settings().stream_ids)?;
                let number = self.producer.close_stream(StreamKey { vb: frame.vbucket(), id })?;
                self.streams.close(number);
            }
            Opcode::DCP_ADD_STREAM => drop(decode_add_stream(frame.extras)?),
            Opcode::DCP_STREAM_REQ => self.stream(frame)?,
            _ => {}
        }
        Ok(())
    }

    /// Makes the checks of a node, in its order, and opens the stream.
    fn stream(&mut self, frame: &Frame<'_>) -> Result<(), Refusal> {
        let settings = self.producer.settings();
        let request = StreamRequest::decode(frame.extras)?;
        if frame.vbucket() != VbId(0) || request.flags.contains(StreamFlags::TAKE_OVER) {
            return Err(Refusal::new(Status::NOT_MY_VBUCKET, ""));
        }
        settings.check_noop(self.features)?;
        if !request.flags.contains(StreamFlags::FROM_LATEST) {
            check(&request)?;
        }
        let has_filter = self.features.has(Feature::Collections);
        let filter = if has_filter { Some(StreamFilter::decode(frame.value)?) } else { None };
        if let Some(filter) = &filter {
            check_known(&filter.selection, self.world.bucket.collections().manifest())?;
        }
        let id = filter.clone().unwrap_or_default().stream_id(settings.stream_ids)?;
        if filter.as_ref().is_some_and(|filter| filter.selection != FilterSelection::All) {
            settings.check_filtered()?;
        }
        let key = StreamKey { vb: VbId(0), id };
        if self.producer.has_stream(key) || self.producer.has_too_many_ends() {
            return Err(Refusal::new(Status::KEY_EEXISTS, ""));
        }
        self.opened += 1;
        let number = StreamNumber(self.opened);
        let spec = StreamSpec {
            number,
            connection: CLIENT,
            name: "fuzz".into(),
            origin: self.producer.origin().clone(),
            window: self.producer.closed().clone(),
            socket: self.producer.socket().clone(),
            bucket: BUCKET,
            envelope: Envelope { vbucket: VbId(0), opaque: frame.opaque(), stream_id: id },
            request,
            purge_seqno: filter.as_ref().and_then(|filter| filter.purge_seqno),
            selection: filter.map(|filter| filter.selection),
            form: settings.document_form(self.features),
            markers: settings.marker_form(),
            out_of_order: settings.out_of_order,
            priority: settings.priority,
            is_sequential: settings.backfill_order == BackfillOrder::Sequential,
            skips_deletes: settings.flags.contains(OpenFlags::SKIP_DELETES_IN_INITIAL_BACKFILL),
        };
        self.producer.add_stream(key, number, frame.opaque());
        match self.streams.open(&self.world.store, &self.world.bucket, spec, self.arrived.clone()) {
            StreamAnswer::Accepted(log) => assert!(!log.is_empty()),
            StreamAnswer::RollBack(seqno) => {
                assert!(seqno <= request.start || request.flags.contains(StreamFlags::FROM_LATEST));
                self.producer.remove_stream(number);
            }
            StreamAnswer::Refused(refusal) => {
                self.producer.remove_stream(number);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Lets the streams run, and the client receive what may leave.
    fn send(&mut self) {
        self.world.sim.run_for(Duration::from_millis(1));
        for piece in self.arrived.0.take() {
            let StreamPiece { number, vb, content, items, is_last, discards, disconnects } = piece;
            assert!(!disconnects, "reading a stream panicked");
            let bytes = Bytes::copy_from_slice(content.messages());
            self.producer.queue(number, bytes, items, is_last, discards);
            if let Content::Buffer(buffer) = content {
                self.streams.sent(SentPiece { number, vb, buffer });
            }
        }
        let _: NoopAction = self.producer.noops.poll(self.now());
        while self.producer.has_bytes() {
            let bytes = self.producer.next_bytes().expect("there is something");
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let Ok(Decoded::Frame(frame)) = decode_frame(rest, FrameLimits::AUTHENTICATED) else {
                    panic!("no whole message: {rest:x?}")
                };
                DcpMessage::decode(&frame).expect("a message of a producer");
                rest = &rest[frame.frame_bytes()..];
            }
            self.producer.window_changed(self.now());
        }
        assert!(self.producer.next_bytes().is_none(), "the window is closed or there is nothing");
    }
}
