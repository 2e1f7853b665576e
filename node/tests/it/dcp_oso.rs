//! Backfills in key order against a model, over a simulated disk: whatever is written, flushed and dropped, a client that was allowed to get seqnos in
//! any order ends with what its collections hold, has each key once in such a snapshot, and begins again if it saw only a part of one.
//!
//! `RINGBASE_SEEDS=2000 cargo test --release -p ringbase --test it dcp_oso` runs any number of seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase::bucket::states::VbucketStates;
use ringbase::bucket::{BucketContext, BucketSettings};
use ringbase::dcp::piece::{Content, SentPiece, StreamAnswer, StreamNumber, StreamSpec};
use ringbase::dcp::settings::MarkerForm;
use ringbase::dcp::streams::{PIECES_MAX, Streams};
use ringbase::protocol::dcp::{
    DcpMessage, DocumentForm, Envelope, FilterSelection, OpenFlags, OsoSnapshot, OutOfOrderSnapshots,
    Priority, ScopeId, StreamEndStatus, StreamFlags, StreamRequest, SystemEventKind,
};
use ringbase::protocol::{
    CollectionId, Decoded, Feature, Features, FrameLimits, Status, decode_frame, leb128,
};
use ringbase::range_scan::ConnectionId;
use ringbase_storage::collections::{CREATED, DROPPED, Subject, event_key};
use ringbase_storage::io::sim::{Fault, Injection};
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::types::{Kind, Seqno, VbUuid};
use ringbase_storage::vbstore::{NewVersion, WriteError};
use tracing_subscriber::layer::SubscriberExt;

use crate::dcp_streams::Pieces;
use crate::range_scan::rig::{AT, BUCKET, Rig, Seed, rng};
use crate::recorded::{Recorded, panic_text, run_alone};

const TO_LATEST: StreamFlags = StreamFlags::TO_LATEST;
const BACKFILL_FAIL: Option<StreamEndStatus> = Some(StreamEndStatus::BackfillFail);
const WITH_ADVANCE: OutOfOrderSnapshots = OutOfOrderSnapshots::OnWithSeqnoAdvanced;

/// The ids of collections that are made, in order.
const FIRST: u32 = 8;

/// Collection and key.
type Keys = BTreeSet<(u32, Vec<u8>)>;

type Documents = BTreeMap<(u32, Vec<u8>), (u64, Vec<u8>)>;

/// A vbucket with collections, and every write of it: write `n` has seqno `n + 1`. An event has no key.
struct World {
    rig: Rig,
    streams: Streams,
    bucket: Rc<BucketContext>,
    history: Vec<(u32, Vec<u8>, Option<Vec<u8>>)>,
    opened: u64,
}

impl World {
    fn new(seed: u64, settings: &str) -> World {
        let rig = Rig::new(seed);
        let settings = BucketSettings::parse(settings).unwrap();
        let bucket = BucketContext::new(rig.sim.env(), settings, Arc::new(VbucketStates::new(16)));
        let streams = Streams::new(rig.sim.env(), 64 << 20);
        World { rig, streams, bucket, history: Vec::new(), opened: 0 }
    }

    fn write_version(&mut self, key: &[u8], value: &[u8], kind: Kind, flags: u32) {
        let store = self.rig.store();
        let seqno = self.rig.sim.block_on(async {
            loop {
                let found = store.get(key).await.unwrap();
                match store.write(&found, NewVersion { key, value, flags, expiry: 0, datatype: 0, kind }) {
                    Ok(item) => return item.seqno(),
                    Err(WriteError::Busy { .. }) => store.sleep(Duration::from_millis(1)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        assert_eq!(seqno.0, self.history.len() as u64 + 1);
    }

    fn write(&mut self, collection: u32, key: &str, value: Option<&[u8]>) {
        let stored = [leb128::Leb128::encode(collection).as_bytes(), key.as_bytes()].concat();
        let kind = if value.is_some() { Kind::Mutation } else { Kind::Deletion };
        self.write_version(&stored, value.unwrap_or_default(), kind, 0);
        self.history.push((collection, key.as_bytes().to_vec(), value.map(<[u8]>::to_vec)));
    }

    fn event(&mut self, collection: u32, kind: SystemEventKind<'_>, flags: u32) {
        let stored = kind.to_stored(self.bucket.collections().manifest().uid());
        self.write_version(&event_key(Subject::Collection(collection)), &stored, Kind::SystemEvent, flags);
        self.history.push((collection, Vec::new(), None));
    }

    fn create(&mut self) -> u32 {
        let name = format!("c{}", self.history.len());
        let collections = self.bucket.collections();
        let (manifest, id) = collections.manifest().with_collection("_default", &name, None).unwrap();
        self.bucket.set_manifest(&Arc::new(manifest));
        let (scope, max_ttl) = (ScopeId(0), None);
        let kind = SystemEventKind::CreateCollection { scope, collection: id, max_ttl, name: &name };
        self.event(id.0, kind, CREATED);
        id.0
    }

    fn drop_collection(&mut self, id: u32) {
        let collections = self.bucket.collections();
        let name = collections.manifest().collection(CollectionId(id)).unwrap().name.clone();
        let manifest = collections.manifest().without("_default", Some(&name)).unwrap();
        self.bucket.set_manifest(&Arc::new(manifest));
        let kind = SystemEventKind::DropCollection { scope: ScopeId(0), collection: CollectionId(id) };
        self.event(id, kind, DROPPED);
    }

    fn is_there(&self, id: u32) -> bool {
        self.bucket.has_collection(CollectionId(id))
    }

    fn flush(&self) {
        let store = self.rig.store();
        assert!(self.rig.sim.block_on(store.wait_persisted(store.high_seqno())));
        self.rig.sim.block_on(self.rig.shard.flush()).unwrap();
    }

    /// Two collections with documents scattered among many of the default collection, more than memory keeps.
    fn load(&mut self, count: u32) -> [u32; 2] {
        let ids = [self.create(), self.create()];
        for number in 0..count {
            // Neighbours by key are strangers by seqno.
            let key = format!("key-{:05}", number.wrapping_mul(7_919) % 100_003);
            let collection = if number % 200 == 3 { ids[(number / 200 % 2) as usize] } else { 0 };
            self.write(collection, &key, Some(&[number as u8; 300]));
        }
        self.flush();
        ids
    }

    /// What these collections held when `end` was the high seqno.
    fn contents(&self, collections: &[u32], end: u64) -> Documents {
        let mut found = Documents::new();
        for (index, (collection, key, value)) in self.history.iter().take(end as usize).enumerate() {
            if key.is_empty() || !collections.contains(collection) {
                continue;
            }
            match value {
                Some(value) => {
                    found.insert((*collection, key.clone()), (index as u64 + 1, value.clone()));
                }
                None => drop(found.remove(&(*collection, key.clone()))),
            }
        }
        found
    }

    fn oso_backfills(&self) -> u64 {
        self.streams.metrics().oso_backfills.get()
    }
}

/// One client with one stream of some collections.
struct Consumer {
    connection: ConnectionId,
    collections: Vec<u32>,
    allows: OutOfOrderSnapshots,
    pieces: Rc<Pieces>,
    uuid: VbUuid,
    seqno: u64,
    snapshot: (u64, u64),
    documents: Documents,
    /// Keys and greatest seqno of the OSO snapshot that is being received.
    oso: Option<(Keys, u64)>,
    /// Kinds of messages in the order in which they came: `(` OSO start, `)` end, `m` marker, `d` document, `x` deletion, `e` event, `a` advance.
    told: String,
    deletions: u64,
    stream: Option<StreamNumber>,
    end: Option<StreamEndStatus>,
    discarded: bool,
}

impl Consumer {
    fn new(connection: u64, collections: &[u32], allows: OutOfOrderSnapshots) -> Consumer {
        Consumer {
            connection: ConnectionId(connection),
            collections: collections.to_vec(),
            allows,
            pieces: Rc::default(),
            uuid: VbUuid(0),
            seqno: 0,
            snapshot: (0, 0),
            documents: Documents::new(),
            oso: None,
            told: String::new(),
            deletions: 0,
            stream: None,
            end: None,
            discarded: false,
        }
    }

    fn open(&mut self, world: &mut World, flags: StreamFlags) -> StreamAnswer {
        self.open_with(world, flags, |_| ())
    }

    fn open_with(
        &mut self,
        world: &mut World,
        flags: StreamFlags,
        change: impl Fn(&mut StreamSpec),
    ) -> StreamAnswer {
        world.opened += 1;
        let number = StreamNumber(world.opened);
        let (start, end, uuid) = (Seqno(self.seqno), StreamRequest::NO_END, self.uuid);
        let (snap_start, snap_end) = (Seqno(self.snapshot.0), Seqno(self.snapshot.1));
        let mut spec = StreamSpec {
            number,
            connection: self.connection,
            name: "consumer".into(),
            origin: Default::default(),
            window: Arc::default(),
            socket: Arc::default(),
            bucket: BUCKET,
            envelope: Envelope::new(AT.vb, 1),
            request: StreamRequest { flags, start, end, uuid, snap_start, snap_end },
            selection: Some(FilterSelection::Collections(
                self.collections.iter().map(|id| CollectionId(*id)).collect(),
            )),
            purge_seqno: None,
            form: DocumentForm::of(OpenFlags::PRODUCER, Features::of(&[Feature::Collections]), false),
            markers: MarkerForm::V1,
            out_of_order: self.allows,
            priority: Priority::Medium,
            is_sequential: false,
            skips_deletes: false,
        };
        change(&mut spec);
        let (store, sink) = (world.rig.store(), self.pieces.clone());
        let answer = world.streams.open(&store, &world.bucket, spec, sink);
        if let StreamAnswer::Accepted(log) = &answer {
            self.uuid = log[0].uuid;
            (self.stream, self.end) = (Some(number), None);
        }
        answer
    }

    /// The connection is gone. Who has seen only a part of an OSO snapshot has nothing.
    fn disconnect(&mut self, world: &World) {
        world.streams.connection_gone(self.connection);
        self.pieces.arrived.borrow_mut().clear();
        self.stream = None;
        if self.oso.take().is_some() {
            self.documents.clear();
        }
    }

    /// Takes one piece; false if there is none.
    fn take(&mut self, world: &World) -> bool {
        let Some(piece) = self.pieces.arrived.borrow_mut().pop_front() else { return false };
        self.discarded |= piece.discards;
        let mut bytes = piece.content.messages();
        while let Ok(Decoded::Frame(frame)) = decode_frame(bytes, FrameLimits::AUTHENTICATED) {
            let message = DcpMessage::decode(&frame).unwrap().1;
            self.message(world, &message);
            bytes = &bytes[frame.frame_bytes()..];
        }
        assert!(bytes.is_empty() && piece.is_last == self.end.is_some());
        if let Content::Buffer(buffer) = piece.content {
            world.streams.sent(SentPiece { number: piece.number, vb: AT.vb, buffer });
        }
        true
    }

    fn take_all(&mut self, world: &World) {
        loop {
            world.rig.settle();
            if !self.take(world) {
                return;
            }
        }
    }

    fn message(&mut self, world: &World, message: &DcpMessage<'_>) {
        assert_eq!(self.end, None, "{message:?} behind the end");
        self.told.push(match message {
            DcpMessage::OsoSnapshot(OsoSnapshot::Start) => '(',
            DcpMessage::OsoSnapshot(OsoSnapshot::End) => ')',
            DcpMessage::SnapshotMarker(_) => 'm',
            DcpMessage::Mutation(_) => 'd',
            DcpMessage::Deletion(_) => 'x',
            DcpMessage::SystemEvent(_) => 'e',
            DcpMessage::SeqnoAdvanced(_) => 'a',
            _ => '$',
        });
        match message {
            DcpMessage::OsoSnapshot(OsoSnapshot::Start) => {
                assert!(self.allows != OutOfOrderSnapshots::Off && self.seqno == 0 && self.oso.is_none());
                self.oso = Some((Keys::new(), 0));
            }
            DcpMessage::OsoSnapshot(OsoSnapshot::End) => {
                let (_, greatest) = self.oso.take().expect("one has begun");
                (self.seqno, self.snapshot) = (greatest, (greatest, greatest));
                self.check(world);
            }
            DcpMessage::SnapshotMarker(marker) => {
                assert!(self.oso.is_none(), "a marker in an OSO snapshot");
                assert!(marker.start.0 <= self.seqno + 1 || self.told.contains(')'), "{marker:?}");
                assert!(marker.end.0 > self.seqno, "{marker:?} behind {}", self.seqno);
                self.snapshot = (marker.start.0, marker.end.0);
            }
            DcpMessage::Mutation(mutation) => {
                self.version(world, mutation.by_seqno, mutation.key, Some(mutation.value));
            }
            DcpMessage::Deletion(deletion) => {
                self.deletions += 1;
                self.version(world, deletion.by_seqno, deletion.key, None);
            }
            DcpMessage::SystemEvent(event) => {
                if let SystemEventKind::DropCollection { collection, .. } = event.kind {
                    assert!(self.oso.is_none(), "a drop is not in a snapshot of what is there");
                    self.documents.retain(|(id, _), _| *id != collection.0);
                }
                self.advance(world, event.by_seqno.0);
            }
            DcpMessage::SeqnoAdvanced(seqno) => {
                assert!(self.oso.is_none() || self.allows == WITH_ADVANCE);
                self.advance(world, seqno.0);
            }
            DcpMessage::StreamEnd(status) => (self.end, self.stream) = (Some(*status), None),
            other => panic!("{other:?}"),
        }
    }

    fn version(&mut self, world: &World, seqno: Seqno, key: &[u8], value: Option<&[u8]>) {
        let (id, rest) = leb128::decode(key).unwrap();
        let key = (id, rest.to_vec());
        assert!(self.collections.contains(&id));
        if let Some((keys, _)) = &mut self.oso {
            assert!(keys.insert(key.clone()), "{key:?} again in an OSO snapshot");
        }
        match value {
            Some(value) => drop(self.documents.insert(key, (seqno.0, value.to_vec()))),
            None => drop(self.documents.remove(&key)),
        }
        self.advance(world, seqno.0);
    }

    fn advance(&mut self, world: &World, seqno: u64) {
        if let Some((_, greatest)) = &mut self.oso {
            *greatest = seqno.max(*greatest);
            return;
        }
        let (start, end) = self.snapshot;
        assert!(self.seqno < seqno, "{seqno} behind {}", self.seqno);
        if !(start..=end).contains(&seqno) {
            // Of a snapshot with nothing for this client only the end is told.
            assert!(self.told.ends_with('a'), "{seqno} in {start}..{end}");
            self.snapshot = (seqno, seqno);
        }
        self.seqno = seqno;
        if seqno == self.snapshot.1 {
            self.check(world);
        }
    }

    /// At the end of a snapshot it has what there was.
    fn check(&self, world: &World) {
        let there = |documents: Documents| -> Documents {
            documents.into_iter().filter(|((id, _), _)| world.is_there(*id)).collect()
        };
        let expected = there(world.contents(&self.collections, self.seqno));
        let found = there(self.documents.clone());
        assert!(found == expected, "at {}: {} documents of {}", self.seqno, found.len(), expected.len());
    }

    fn kinds(&self) -> String {
        let mut kinds: Vec<char> = self.told.chars().collect();
        kinds.dedup();
        kinds.into_iter().collect()
    }
}

fn accepted(answer: &StreamAnswer) {
    assert!(matches!(answer, StreamAnswer::Accepted(_)), "{answer:?}");
}

/// DCP §6: a client with Collections learns how far its stream is at least every 10,000 documents that it does not get, and can come back from there:
/// from disk and from memory.
#[test]
fn a_client_is_told_its_seqno_within_a_long_run_of_others_documents() {
    let mut world = World::new(11, "dcp_oso_backfill=disabled");
    let ids = [world.create(), world.create()];
    let write = |world: &mut World| {
        (0..21_000).for_each(|number| world.write(0, &format!("key-{}", number % 500), Some(b"value")))
    };
    write(&mut world);
    world.flush();
    let mut late = Consumer::new(1, &ids[..1], OutOfOrderSnapshots::Off);
    accepted(&late.open(&mut world, StreamFlags::NONE));
    late.take_all(&world);
    assert_eq!(late.told, "mea", "500 keys are short");
    let mut consumer = Consumer::new(2, &ids[..1], OutOfOrderSnapshots::Off);
    (0..21_000).for_each(|number| world.write(0, &format!("other-{number}"), Some(b"value")));
    accepted(&consumer.open(&mut world, StreamFlags::DISK_ONLY));
    world.rig.settle();
    let mut positions = Vec::new();
    while consumer.take(&world) {
        positions.push(consumer.seqno);
        world.rig.settle();
    }
    assert_eq!(consumer.told, "meaaa$");
    assert!(positions.is_sorted() && positions.len() >= 3, "each leaves at once: {positions:?}");
    late.take_all(&world);
    assert!(late.told.starts_with("mea") && late.told.ends_with("maaa"), "{}", late.told);
    assert_eq!(late.seqno, world.history.len() as u64);
    assert_eq!(consumer.seqno, late.seqno);
}

/// DCP §8: start, event, documents and deletions, the greatest seqno if it was asked for and none of the collection's has it, end; no marker. Then
/// memory, behind the snapshot.
#[test]
fn a_small_collection_comes_in_key_order_and_what_is_written_then_follows() {
    for allows in [OutOfOrderSnapshots::On, WITH_ADVANCE] {
        let mut world = World::new(1, "");
        let [id, _] = world.load(3_000);
        let gone = String::from_utf8(world.contents(&[id], u64::MAX).into_keys().next().unwrap().1).unwrap();
        world.write(id, &gone, None);
        world.write(0, "last", Some(b"of another collection"));
        world.flush();
        let high = world.history.len() as u64;
        let mut consumer = Consumer::new(1, &[id], allows);
        accepted(&consumer.open(&mut world, StreamFlags::NONE));
        consumer.take_all(&world);
        let advance = if allows == WITH_ADVANCE { "a" } else { "" };
        assert!(consumer.kinds().starts_with("(e") && consumer.kinds().ends_with(&format!("d{advance})")));
        assert!(consumer.told.contains('x') && !consumer.told.contains('m'), "{}", consumer.told);
        assert_eq!(consumer.seqno, if allows == WITH_ADVANCE { high } else { high - 1 });
        assert_eq!((consumer.documents.len(), world.oso_backfills()), (7, 1));
        assert_eq!((world.rig.views(), world.streams.buffer_bytes()), (0, 0));
        world.write(id, "new", Some(b"value"));
        world.write(0, "other", Some(b"value"));
        world.flush();
        consumer.take_all(&world);
        assert!(consumer.kinds().ends_with(")mda"), "{}", consumer.kinds());
        assert_eq!((consumer.seqno, consumer.documents.len()), (high + 2, 8));
        // Who resumes goes on by seqno.
        consumer.disconnect(&world);
        consumer.told.clear();
        world.write(id, "newer", Some(b"value"));
        accepted(&consumer.open(&mut world, TO_LATEST));
        consumer.take_all(&world);
        assert_eq!((consumer.end, &consumer.told[..]), (Some(StreamEndStatus::Ok), "md$"));
        assert_eq!(world.oso_backfills(), 1);
    }
}

/// By key is what the client allows, the setting allows, from nothing, to the end, of few collections, on disk; `auto` also wants it to be cheaper.
#[test]
fn backfills_are_in_key_order_where_everybody_allows_it_and_by_seqno_else() {
    let on = OutOfOrderSnapshots::On;
    let cases: [(&str, &str, OutOfOrderSnapshots, usize, bool); 9] = [
        ("small", "", on, 1, true),
        ("not asked for", "", OutOfOrderSnapshots::Off, 1, false),
        ("disabled", "dcp_oso_backfill=disabled", on, 1, false),
        ("two where one may be", "", on, 2, false),
        ("two where two may be", "dcp_oso_max_collections_per_backfill=2", on, 2, true),
        ("two, though it is enabled", "dcp_oso_backfill=enabled", on, 2, false),
        ("most of the vbucket", "", on, 0, false),
        ("most of the vbucket, but enabled", "dcp_oso_backfill=enabled", on, 0, true),
        ("enabled, not asked for", "dcp_oso_backfill=enabled", OutOfOrderSnapshots::Off, 1, false),
    ];
    for (name, settings, allows, count, expected) in cases {
        let mut world = World::new(2, settings);
        let ids = world.load(3_000);
        let collections = if count == 0 { vec![0] } else { ids[..count].to_vec() };
        let mut consumer = Consumer::new(1, &collections, allows);
        accepted(&consumer.open(&mut world, TO_LATEST));
        consumer.take_all(&world);
        assert_eq!(
            (consumer.told.contains('('), world.oso_backfills()),
            (expected, u64::from(expected)),
            "{name}"
        );
        assert_eq!(consumer.end, Some(StreamEndStatus::Ok), "{name}");
        consumer.seqno = world.history.len() as u64;
        consumer.check(&world);
        assert!(!consumer.documents.is_empty(), "{name}");
    }
    // To a seqno in the middle, or from one.
    let mut world = World::new(3, "dcp_oso_backfill=enabled");
    let [id, _] = world.load(3_000);
    let mut consumer = Consumer::new(1, &[id], on);
    accepted(&consumer.open_with(&mut world, StreamFlags::NONE, |spec| spec.request.end = Seqno(1_500)));
    consumer.take_all(&world);
    assert_eq!((consumer.end, consumer.told.contains('(')), (Some(StreamEndStatus::Ok), false));
    let mut consumer = Consumer::new(1, &[id], on);
    let uuid = world.rig.store().uuid();
    accepted(&consumer.open_with(&mut world, TO_LATEST, |spec| {
        let (start, snap_end) = (Seqno(1_000), Seqno(1_000));
        spec.request = StreamRequest { start, snap_start: start, snap_end, uuid, ..spec.request };
    }));
    assert_eq!(world.oso_backfills(), 0);
    // An empty collection costs nothing by key; deletions are left out if that was asked for.
    let mut world = World::new(4, "");
    let [id, _] = world.load(3_000);
    let empty = world.create();
    let keys: Vec<Vec<u8>> =
        world.contents(&[id], u64::MAX).into_keys().map(|(_, key)| key).take(5).collect();
    keys.iter().for_each(|key| world.write(id, std::str::from_utf8(key).unwrap(), None));
    world.flush();
    let mut consumer = Consumer::new(1, &[empty], WITH_ADVANCE);
    accepted(&consumer.open(&mut world, StreamFlags::DISK_ONLY));
    consumer.take_all(&world);
    assert_eq!(consumer.told, "(ea)$");
    for skips in [false, true] {
        let mut consumer = Consumer::new(1, &[id], WITH_ADVANCE);
        accepted(&consumer.open_with(&mut world, TO_LATEST, |spec| spec.skips_deletes = skips));
        consumer.take_all(&world);
        assert!(consumer.told.starts_with("(e"), "{}", consumer.told);
        assert_eq!(consumer.deletions, if skips { 0 } else { 5 });
    }
}

/// T2.9, T2.12, flow control and memory: a client that takes nothing holds two pieces and a view without anything read ahead; who waits for a slot or a
/// turn pins nothing; what is closed is gone.
#[test]
fn backfills_in_key_order_keep_the_bounds_of_all_backfills() {
    let mut world = World::new(5, "dcp_oso_backfill=enabled");
    world.load(1_200);
    let mut consumers: Vec<Consumer> = Vec::new();
    for _ in 0..70 {
        let mut consumer = Consumer::new(1, &[0], WITH_ADVANCE);
        accepted(&consumer.open(&mut world, TO_LATEST));
        consumers.push(consumer);
    }
    world.rig.settle();
    let held: usize = consumers.iter().map(|consumer| consumer.pieces.arrived.borrow().len()).sum();
    assert_eq!(held, PIECES_MAX);
    assert!(world.rig.views() <= PIECES_MAX as u64);
    assert!(world.streams.buffer_bytes() <= (PIECES_MAX + 1) * (80 << 10));
    // Half of them goes on while the other half is closed in the middle.
    for consumer in consumers.iter().skip(35) {
        world.streams.close(consumer.stream.unwrap());
    }
    for consumer in consumers.iter_mut().skip(35) {
        while consumer.take(&world) {}
        assert!(!consumer.told.contains(')'));
    }
    loop {
        world.rig.settle();
        let mut has_taken = false;
        consumers[..35].iter_mut().for_each(|consumer| has_taken |= consumer.take(&world));
        if !has_taken {
            break;
        }
    }
    for consumer in &consumers[..35] {
        assert_eq!((consumer.end, consumer.kinds().as_str()), (Some(StreamEndStatus::Ok), "(d)$"));
    }
    assert_eq!((world.rig.views(), world.streams.buffer_bytes()), (0, 0));
}

/// What a stream in key order gets under which every read of the data file fails from the `nth` on.
fn failed(nth: u64) -> (Consumer, World) {
    let mut world = World::new(6, "dcp_oso_backfill=enabled");
    world.load(2_000);
    let mut consumer = Consumer::new(1, &[0], WITH_ADVANCE);
    world.rig.disk.inject(Injection::nth(Fault::ReadError, nth).on("data").sticky());
    accepted(&consumer.open(&mut world, StreamFlags::NONE));
    consumer.take_all(&world);
    (consumer, world)
}

/// T3.10, T3.6, T3.2: no end of the OSO snapshot before the end of the stream; the client has nothing to resume from, and begins again.
#[test]
fn a_failed_read_in_key_order_ends_the_stream_without_an_end_of_the_snapshot() {
    for nth in [1, 20, 60] {
        let (mut consumer, mut world) = failed(nth);
        assert_eq!((consumer.end, consumer.discarded), (BACKFILL_FAIL, true), "read {nth}");
        assert!(!consumer.told.contains([')', 'm', 'a']), "read {nth}: {}", consumer.kinds());
        assert_eq!(world.streams.metrics().read_failures.get(), 1);
        let failures = world.streams.failures(BUCKET, Some(AT.vb));
        assert_eq!((failures.len(), failures[0].unreadable, failures[0].last_read), (1, None, Seqno(0)));
        assert_eq!((world.rig.views(), world.streams.buffer_bytes()), (0, 0));
        world.rig.disk.clear_faults();
        consumer.disconnect(&world);
        consumer.documents.clear();
        accepted(&consumer.open(&mut world, TO_LATEST));
        consumer.take_all(&world);
        assert_eq!((consumer.end, consumer.seqno), (Some(StreamEndStatus::Ok), world.history.len() as u64));
    }
}

/// T1.4: the opening of a backfill in key order is a span that names the kind, and how many key ranges there are: the events and the keys of each
/// collection.
#[test]
fn the_opening_of_a_backfill_in_key_order_says_so() {
    run_alone("dcp_oso::opening_alone");
}

#[test]
#[ignore = "run by the_opening_of_a_backfill_in_key_order_says_so in a process of its own"]
fn opening_alone() {
    let recorded = Recorded::default();
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorded.clone()));
    let mut world = World::new(9, "dcp_oso_backfill=enabled");
    world.load(2_000);
    let mut consumer = Consumer::new(1, &[0], WITH_ADVANCE);
    accepted(&consumer.open(&mut world, StreamFlags::NONE));
    consumer.take_all(&world);
    assert!(consumer.told.contains(')'));
    consumer.disconnect(&world);
    world.rig.settle();
    recorded.assert_all_closed();
    let opened = &recorded.of("dcp_scan_open")[0];
    let told = ["vb", "kind", "ranges", "result", "parent"].map(|name| opened.get(name).map(String::as_str));
    assert_eq!(told, ["0", "by key", "2", "opened", "dcp_backfill"].map(Some), "{opened:?}");
}

/// The mutant ends the snapshot that could not be read.
#[test]
fn an_end_of_a_snapshot_that_was_not_read_is_noticed() {
    let caught = std::panic::catch_unwind(|| {
        let _mutant = turn_on(Mutant::EndFailedOso);
        let (consumer, _) = failed(60);
        assert!(!consumer.told.contains(')'));
    });
    let panic = caught.expect_err("the mutant is noticed");
    let text = panic_text(&*panic);
    assert!(text.starts_with("at ") && text.contains(" documents of "), "{text}");
}

#[derive(Debug, Default)]
struct Coverage {
    oso: u64,
    streams: u64,
    cut_short: u64,
    dropped: u64,
    deletions: u64,
    followed: u64,
}

fn change(world: &mut World, random: &mut Xoshiro256PlusPlus, coverage: &mut Coverage) {
    let collections: Vec<u32> = (0..FIRST + 40).filter(|id| world.is_there(*id)).collect();
    match random.random_range(0..100) {
        0..70 => {
            for _ in 0..random.random_range(1..60) {
                let collection = match random.random_bool(0.6) {
                    true => 0,
                    false => collections[random.random_range(0..collections.len())],
                };
                let key = format!("key-{:03}", random.random_range(0..240));
                let value = vec![random.random(); random.random_range(0..2_500)];
                world.write(collection, &key, random.random_bool(0.8).then_some(&value[..]));
            }
        }
        70..85 => world.flush(),
        85..90 if collections.len() < 6 => _ = world.create(),
        90..93 if collections.len() > 3 => {
            coverage.dropped += 1;
            world.drop_collection(collections[random.random_range(1..collections.len())]);
        }
        _ => {}
    }
}

fn run_seed(seed: u64, coverage: &mut Coverage) {
    let _seed = Seed(seed);
    let mut random = rng(seed);
    let settings = ["", "dcp_oso_backfill=enabled;dcp_oso_max_collections_per_backfill=2"];
    let mut world = World::new(seed, settings[(seed % 2) as usize]);
    for _ in 0..3 {
        world.create();
    }
    let mut consumers: Vec<Consumer> = Vec::new();
    for index in 0..6 {
        let ids = [FIRST + index % 3, FIRST + (index + 1) % 3];
        let allows = if index % 2 == 0 { WITH_ADVANCE } else { OutOfOrderSnapshots::On };
        consumers.push(Consumer::new(u64::from(index), &ids[..1 + index as usize / 4], allows));
    }
    for round in 0..70 {
        change(&mut world, &mut random, coverage);
        for consumer in &mut consumers {
            let is_there = consumer.collections.iter().all(|id| world.is_there(*id));
            if consumer.stream.is_none() && is_there && round > 20 && random.random_bool(0.5) {
                let flags = if random.random_bool(0.3) { StreamFlags::DISK_ONLY } else { StreamFlags::NONE };
                let before = consumer.told.len();
                match consumer.open(&mut world, flags) {
                    StreamAnswer::Accepted(_) => coverage.streams += 1,
                    // Memory may be ahead of what is persisted.
                    StreamAnswer::Refused(refusal) => {
                        assert_eq!((refusal.status, flags), (Status::ERANGE, StreamFlags::DISK_ONLY));
                    }
                    StreamAnswer::RollBack(_) => panic!("nothing is lost"),
                }
                assert_eq!(consumer.told.len(), before);
            } else if consumer.stream.is_some() && random.random_bool(0.1) {
                coverage.cut_short += u64::from(consumer.oso.is_some());
                consumer.disconnect(&world);
            } else if random.random_bool(0.6) {
                for _ in 0..random.random_range(1..4) {
                    consumer.take(&world);
                }
            }
        }
        world.rig.sim.run_for(Duration::from_micros(random.random_range(0..3_000)));
    }
    for consumer in &mut consumers {
        consumer.take_all(&world);
        let is_there = consumer.collections.iter().all(|id| world.is_there(*id));
        if consumer.stream.is_none() && is_there {
            accepted(&consumer.open(&mut world, StreamFlags::NONE));
            consumer.take_all(&world);
        }
        if is_there {
            consumer.seqno = world.history.len() as u64;
            consumer.check(&world);
        }
        coverage.oso += consumer.told.matches('(').count() as u64;
        coverage.followed += u64::from(consumer.told.contains(")m"));
        coverage.deletions += consumer.deletions;
        consumer.disconnect(&world);
    }
    world.rig.settle();
    assert_eq!((world.rig.views(), world.streams.buffer_bytes()), (0, 0));
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number of seeds"))
}

/// T2.2, T2.14: see the module.
#[test]
fn consumers_in_key_order_end_with_what_their_collections_hold_whatever_happens_on_the_way() {
    let first = number("RINGBASE_FIRST_SEED", 0);
    let mut coverage = Coverage::default();
    let seeds = number("RINGBASE_SEEDS", 20);
    for seed in first..first + seeds {
        run_seed(seed, &mut coverage);
    }
    println!("{coverage:?}");
    if seeds >= 20 {
        let Coverage { oso, streams, cut_short, dropped, deletions, followed } = coverage;
        assert!([oso, streams, cut_short, dropped, deletions, followed].iter().all(|count| *count > 0));
    }
}
