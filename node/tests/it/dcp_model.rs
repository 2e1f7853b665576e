//! Consumers against a model: whatever is written, flushed, purged and lost in a crash, each ends with what its bucket has, and at the end of every
//! snapshot has exactly what the bucket had then. A bucket on disk and one in memory get the same history.
//!
//! `RINGBASE_SEEDS=5000 cargo test --release -p ringbase --test it dcp_model` runs any number of seeds, `RINGBASE_FIRST_SEED` says from which on.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase::bucket::states::VbucketStates;
use ringbase::bucket::{BucketContext, BucketSettings};
use ringbase::dcp::piece::{Content, SentPiece, StreamAnswer, StreamNumber, StreamSpec};
use ringbase::dcp::settings::MarkerForm;
use ringbase::dcp::streams::Streams;
use ringbase::protocol::dcp::{
    DcpMessage, DocumentForm, Envelope, OpenFlags, OutOfOrderSnapshots, Priority, StreamEndStatus,
    StreamFlags, StreamRequest,
};
use ringbase::protocol::{Decoded, Features, FrameLimits, decode_frame};
use ringbase::range_scan::ConnectionId;
use ringbase_storage::cache::BlockCache;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::shard::{
    FormatOptions, Home, ReclaimOptions, ScrubOptions, Shard, ShardOptions, format,
};
use ringbase_storage::types::{BucketId, Kind, Seqno, ShardId, VbId, VbUuid};
use ringbase_storage::vbstore::{NewVersion, VbStore, WriteError};

use crate::dcp_streams::Pieces;
use crate::range_scan::rig::{Seed, rng};
use crate::recorded::panic_text;

/// On disk, and in memory only.
const BUCKETS: [BucketId; 2] = [BucketId(1), BucketId(2)];
const VB: VbId = VbId(0);
const KEYS: u32 = 60;
const CONSUMERS: usize = 6;
/// What is wrong with a document that comes before the marker of its snapshot.
const MARKER_MISSING: &str = "a marker goes before";
/// Of the bucket in memory: more than it needs.
const MEMORY_BYTES: usize = 16 << 20;
/// Unless another number is asked for. They run into everything that [`Coverage`] counts.
const SEEDS: u64 = 20;

const OPTIONS: ShardOptions = ShardOptions {
    resident_bytes_max: 256 << 10,
    memtable_bytes_max: 1 << 20,
    grow_bytes: 256 << 10,
    flush_bytes: 16 << 10,
    window_versions_max: 60,
    scrub: ScrubOptions::WHEN_ASKED,
    reclaim: ReclaimOptions::UNPACED,
};

/// What the seeds ran into.
#[derive(Debug, Default, Clone, Copy)]
struct Coverage {
    snapshots: u64,
    disk_snapshots: u64,
    resumed: u64,
    rolled_back: u64,
    ended_by_purge: u64,
    crashes: u64,
    lost_writes: u64,
    purges: u64,
}

impl Coverage {
    /// How often the rarest happened.
    fn rarest(self) -> u64 {
        let Coverage { snapshots, disk_snapshots, resumed, rolled_back, .. } = self;
        let Coverage { ended_by_purge, crashes, lost_writes, purges, .. } = self;
        let counts =
            [snapshots, disk_snapshots, resumed, rolled_back, ended_by_purge, crashes, lost_writes, purges];
        counts.into_iter().min().unwrap_or_default()
    }
}

type Documents = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// Every write of a vbucket in order: key, and value or removal. Write `n` has seqno `n + 1`.
type History = Vec<(Vec<u8>, Option<Vec<u8>>)>;

fn contents(history: &History, end: Seqno) -> Documents {
    let mut found = Documents::new();
    for (index, (key, value)) in history.iter().take(end.0 as usize).enumerate() {
        match value {
            Some(value) => found.insert(key.clone(), (index as u64 + 1, value.clone())),
            None => found.remove(key),
        };
    }
    found
}

/// What a consumer has.
#[derive(Debug, Default, Clone)]
struct Copy {
    uuid: VbUuid,
    seqno: Seqno,
    snapshot: (Seqno, Seqno),
    documents: Documents,
}

struct Consumer {
    bucket: usize,
    connection: ConnectionId,
    /// Chance to take something in a round.
    speed: f64,
    pieces: Rc<Pieces>,
    copy: Copy,
    announced: Option<(Seqno, Seqno)>,
    /// Copies it may go back to.
    saved: Vec<Copy>,
    stream: Option<StreamNumber>,
}

struct World {
    sim: SimExecutor,
    disk: SimDisk,
    shard: Shard,
    streams: Streams,
    histories: [History; 2],
    streams_opened: u64,
    crashes: u64,
}

async fn open_shard(sim: &SimExecutor, disk: &SimDisk) -> Shard {
    let (wal, data) = (disk.open("wal"), disk.open("data"));
    Shard::open(sim.env(), wal, data, BlockCache::new(64 << 10), OPTIONS).await.unwrap().0
}

impl World {
    fn new(seed: u64) -> World {
        let (sim, disk) = (SimExecutor::new(seed), SimDisk::new(seed));
        disk.attach(&sim);
        let shard = sim.block_on(async {
            let geometry = Geometry {
                shard: ShardId(0),
                shard_count: 1,
                vbucket_count: 1,
                wal_segments: 4,
                wal_segment_bytes: 256 << 10,
            };
            let options = FormatOptions { geometry, grow_bytes: OPTIONS.grow_bytes };
            format(&sim.env(), &disk.open("wal"), &disk.open("data"), options).await.unwrap();
            let shard = open_shard(&sim, &disk).await;
            for (id, home) in BUCKETS.into_iter().zip([Home::Disk, Home::Memory]) {
                let desc = BucketDesc {
                    id,
                    uuid: u128::from(id.0),
                    name: format!("b{}", id.0),
                    config: String::new(),
                };
                shard.create_bucket_in(desc, home).await.unwrap();
            }
            shard.set_bucket_quota(BUCKETS[1], MEMORY_BYTES);
            shard
        });
        let streams = Streams::new(sim.env(), 64 << 20);
        World { sim, disk, shard, streams, histories: Default::default(), streams_opened: 0, crashes: 0 }
    }

    fn store(&self, bucket: usize) -> Rc<VbStore> {
        self.shard.vbucket(BUCKETS[bucket], VB).unwrap()
    }

    /// The same write in both buckets.
    fn write(&mut self, key: &[u8], value: Option<&[u8]>, kind: Kind) {
        for bucket in 0..BUCKETS.len() {
            let store = self.store(bucket);
            let seqno = self.sim.block_on(async {
                loop {
                    let found = store.get(key).await.unwrap();
                    let value = value.unwrap_or_default();
                    let new = NewVersion { key, value, flags: 5, expiry: 0, datatype: 0, kind };
                    match store.write(&found, new) {
                        Ok(item) => return item.seqno(),
                        Err(WriteError::Busy { .. }) => store.sleep(Duration::from_millis(1)).await,
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            self.histories[bucket].push((key[1..].to_vec(), value.map(<[u8]>::to_vec)));
            assert_eq!(seqno.0, self.histories[bucket].len() as u64);
        }
    }

    /// The power fails: what was not synced is lost, and all of what is in memory only.
    fn crash(&mut self, seed: u64, coverage: &mut Coverage) {
        let persisted = self.store(0).persisted_seqno();
        self.disk.crash(seed);
        self.sim = SimExecutor::new(seed);
        self.disk.attach(&self.sim);
        self.shard = self.sim.block_on(open_shard(&self.sim, &self.disk));
        self.shard.open_memory_bucket(BUCKETS[1]);
        self.shard.set_bucket_quota(BUCKETS[1], MEMORY_BYTES);
        self.streams = Streams::new(self.sim.env(), 64 << 20);
        let high_seqno = self.store(0).high_seqno();
        assert!(persisted <= high_seqno && high_seqno.0 <= self.histories[0].len() as u64);
        assert_eq!(self.store(1).high_seqno(), Seqno(0));
        coverage.crashes += 1;
        coverage.lost_writes += self.histories[0].len() as u64 - high_seqno.0;
        self.histories[0].truncate(high_seqno.0 as usize);
        self.histories[1].clear();
        self.crashes += 1;
    }
}

impl Consumer {
    fn new(index: usize) -> Consumer {
        Consumer {
            bucket: index % BUCKETS.len(),
            connection: ConnectionId(index as u64),
            speed: [0.9, 0.4, 0.1][index / BUCKETS.len()],
            pieces: Rc::default(),
            copy: Copy::default(),
            announced: None,
            saved: Vec::new(),
            stream: None,
        }
    }

    /// Asks for a stream, going back as often as it is told to.
    fn connect(&mut self, world: &mut World, is_bounded: bool, coverage: &mut Coverage) {
        let store = world.store(self.bucket);
        loop {
            world.streams_opened += 1;
            let number = StreamNumber(world.streams_opened);
            let Copy { uuid, seqno: start, snapshot: (snap_start, snap_end), .. } = self.copy;
            let is_bounded = is_bounded && start <= store.high_seqno();
            let flags = if is_bounded { StreamFlags::TO_LATEST } else { StreamFlags::NONE };
            let end = StreamRequest::NO_END;
            let spec = StreamSpec {
                number,
                connection: self.connection,
                name: "consumer".into(),
                origin: Default::default(),
                window: Default::default(),
                socket: Default::default(),
                bucket: BUCKETS[self.bucket],
                envelope: Envelope::new(VB, 1),
                request: StreamRequest { flags, start, end, uuid, snap_start, snap_end },
                selection: None,
                purge_seqno: None,
                form: DocumentForm::of(OpenFlags::PRODUCER, Features::NONE, false),
                markers: MarkerForm::V1,
                out_of_order: OutOfOrderSnapshots::Off,
                priority: Priority::Medium,
                is_sequential: false,
                skips_deletes: false,
            };
            let bucket = BucketContext::new(
                world.sim.env(),
                BucketSettings::default(),
                Arc::new(VbucketStates::new(16)),
            );
            match world.streams.open(&store, &bucket, spec, self.pieces.clone()) {
                StreamAnswer::Accepted(log) => {
                    coverage.resumed += u64::from(start > Seqno(0));
                    self.copy.uuid = log[0].uuid;
                    (self.stream, self.announced) = (Some(number), None);
                    return;
                }
                StreamAnswer::RollBack(seqno) => {
                    coverage.rolled_back += 1;
                    assert!(seqno < start, "a rollback from {start} to {seqno}");
                    self.saved.retain(|copy| copy.seqno <= seqno);
                    self.copy = self.saved.pop().unwrap_or_default();
                }
                StreamAnswer::Refused(refusal) => panic!("{refusal:?}"),
            }
        }
    }

    /// Closes the stream, or is gone with its connection. Goes on from where it is, or from an older copy.
    fn disconnect(&mut self, world: &World, random: &mut Xoshiro256PlusPlus) {
        if let Some(number) = self.stream.take() {
            if random.random() {
                world.streams.connection_gone(self.connection);
                self.pieces.arrived.borrow_mut().clear();
            } else {
                world.streams.close(number);
                for piece in self.pieces.arrived.take() {
                    give_back(&world.streams, piece.number, piece.content);
                }
            }
        }
        if !self.saved.is_empty() && random.random_bool(0.3) {
            self.saved.truncate(random.random_range(1..=self.saved.len()));
            self.copy = self.saved.pop().unwrap_or_default();
        }
    }

    /// Takes one piece; false if there is none.
    fn take(&mut self, world: &World, coverage: &mut Coverage) -> bool {
        let Some(piece) = self.pieces.arrived.borrow_mut().pop_front() else { return false };
        let mut bytes = piece.content.messages();
        while let Ok(Decoded::Frame(frame)) = decode_frame(bytes, FrameLimits::AUTHENTICATED) {
            match DcpMessage::decode(&frame).unwrap().1 {
                DcpMessage::SnapshotMarker(marker) => {
                    assert!(
                        marker.start <= self.copy.seqno.next() && self.copy.seqno < marker.end,
                        "{marker:?}"
                    );
                    self.announced = Some((marker.start, marker.end));
                    coverage.snapshots += 1;
                    coverage.disk_snapshots += u64::from(marker.flags.0 & 2 != 0);
                }
                DcpMessage::Mutation(mutation) => {
                    self.version(world, mutation.by_seqno, mutation.key, Some(mutation.value));
                }
                DcpMessage::Deletion(deletion) => {
                    self.version(world, deletion.by_seqno, deletion.key, None);
                }
                DcpMessage::StreamEnd(status) => {
                    assert!(matches!(status, StreamEndStatus::Ok | StreamEndStatus::Rollback), "{status:?}");
                    coverage.ended_by_purge += u64::from(status == StreamEndStatus::Rollback);
                    self.stream = None;
                }
                other => panic!("{other:?}"),
            }
            bytes = &bytes[frame.frame_bytes()..];
        }
        give_back(&world.streams, piece.number, piece.content);
        true
    }

    fn version(&mut self, world: &World, seqno: Seqno, key: &[u8], value: Option<&[u8]>) {
        let (start, end) = self.announced.expect(MARKER_MISSING);
        assert!(self.copy.seqno < seqno, "{seqno} behind {}", self.copy.seqno);
        assert!(start <= seqno && seqno <= end, "{seqno} outside of {start}..{end}");
        (self.copy.seqno, self.copy.snapshot) = (seqno, (start, end));
        match value {
            Some(value) => self.copy.documents.insert(key.to_vec(), (seqno.0, value.to_vec())),
            None => self.copy.documents.remove(key),
        };
        if seqno == end {
            let expected = contents(&world.histories[self.bucket], end);
            assert!(self.copy.documents == expected, "bucket {}, snapshot {start}..{end}", self.bucket);
        }
    }
}

fn give_back(streams: &Streams, number: StreamNumber, content: Content) {
    if let Content::Buffer(buffer) = content {
        streams.sent(SentPiece { number, vb: VB, buffer });
    }
}

fn change(
    world: &mut World,
    random: &mut Xoshiro256PlusPlus,
    crashes: bool,
    coverage: &mut Coverage,
) -> bool {
    match random.random_range(0..100) {
        0..60 => {
            for _ in 0..random.random_range(1..50) {
                let key = format!("\0key-{:03}", random.random_range(0..KEYS)).into_bytes();
                let value = vec![random.random(); random.random_range(0..600)];
                match random.random_range(0..10) {
                    0..7 => world.write(&key, Some(&value), Kind::Mutation),
                    7..9 => world.write(&key, None, Kind::Deletion),
                    _ => world.write(&key, None, Kind::Expiration),
                }
            }
        }
        60..70 => world.sim.block_on(world.shard.flush()).unwrap(),
        70..76 => {
            let store = world.store(0);
            assert!(world.sim.block_on(store.wait_persisted(store.high_seqno())));
        }
        76..84 => {
            let store = world.store(1);
            let before = store.purge_seqno();
            while store.purge_tombstones(u32::MAX) {}
            coverage.purges += u64::from(store.purge_seqno() > before);
        }
        84..87 if crashes => {
            // What is under way to the disk is lost with the power.
            world.disk.set_latency(Duration::from_millis(50), Duration::from_millis(50));
            for number in 0..random.random_range(0..20) {
                world.write(format!("\0key-{number:03}").as_bytes(), Some(b"late"), Kind::Mutation);
            }
            world.crash(random.random(), coverage);
            world.disk.set_latency(Duration::from_micros(10), Duration::from_micros(200));
            return true;
        }
        _ => {}
    }
    false
}

fn run_seed(seed: u64, coverage: &mut Coverage) {
    let _seed = Seed(seed);
    let mut random = rng(seed);
    let mut world = World::new(seed);
    let mut consumers: Vec<Consumer> = (0..CONSUMERS).map(Consumer::new).collect();
    for _ in 0..80 {
        if change(&mut world, &mut random, seed % 2 == 1, coverage) {
            for consumer in &mut consumers {
                consumer.stream = None;
                consumer.pieces.arrived.borrow_mut().clear();
            }
        }
        for consumer in &mut consumers {
            if consumer.stream.is_none() {
                if random.random_bool(0.6) {
                    consumer.connect(&mut world, random.random_bool(0.3), coverage);
                }
            } else if random.random_bool(0.08) {
                consumer.disconnect(&world, &mut random);
            } else if random.random_bool(consumer.speed) {
                let pieces = random.random_range(1..5);
                for _ in 0..pieces {
                    consumer.take(&world, coverage);
                }
            }
            if random.random_bool(0.1) {
                consumer.saved.push(consumer.copy.clone());
            }
        }
        world.sim.run_for(Duration::from_micros(random.random_range(0..4_000)));
    }
    for consumer in &mut consumers {
        let high_seqno = world.store(consumer.bucket).high_seqno();
        for round in 0.. {
            assert!(round < 10_000, "bucket {} at {} of {high_seqno}", consumer.bucket, consumer.copy.seqno);
            while consumer.take(&world, coverage) {}
            // A rollback may be asked for even of one that has everything.
            if consumer.stream.is_none() {
                consumer.connect(&mut world, false, coverage);
            } else if consumer.copy.seqno == high_seqno {
                break;
            }
            world.sim.run_for(Duration::from_millis(1));
        }
        assert!(consumer.copy.documents == contents(&world.histories[consumer.bucket], high_seqno));
        world.streams.connection_gone(consumer.connection);
        consumer.pieces.arrived.borrow_mut().clear();
    }
    if world.crashes == 0 {
        assert!(consumers.windows(2).all(|pair| pair[0].copy.documents == pair[1].copy.documents));
    }
    world.sim.run_for(Duration::from_millis(200));
    assert_eq!(world.streams.buffer_bytes(), 0);
    assert!((0..BUCKETS.len()).all(|bucket| world.store(bucket).stats().views == 0));
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number of seeds"))
}

/// T2.2, T2.14, T3.3, T3.9, T4.1, T4.8, T4.11: see the module.
#[test]
fn every_consumer_ends_with_what_its_bucket_has_whatever_happens_on_the_way() {
    let first = number("RINGBASE_FIRST_SEED", 0);
    let mut coverage = Coverage::default();
    let count = number("RINGBASE_SEEDS", SEEDS);
    for seed in first..first + count {
        run_seed(seed, &mut coverage);
    }
    println!("{coverage:?}");
    // Fewer seeds, as when one is repeated, need not run into everything.
    assert!(count < SEEDS || coverage.rarest() > 0, "{coverage:?}");
}

/// The mutant sends documents without the marker of their snapshot.
#[test]
fn a_marker_that_is_left_out_is_noticed() {
    let caught = std::panic::catch_unwind(|| {
        let _mutant = turn_on(Mutant::OmitMarkers);
        run_seed(0, &mut Coverage::default());
    });
    let panic = caught.expect_err("the mutant is noticed");
    assert_eq!(panic_text(&*panic), MARKER_MISSING);
}
