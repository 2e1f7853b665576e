//! A simulated machine with one shard, its range scans, and clients of them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use ringbase::protocol::range_scan::{RangeScanContinue, RangeScanCreate, ScanId, Selection};
use ringbase::protocol::scan_records::{DocumentRecords, KeyRecords, RecordKind};
use ringbase::protocol::{
    CollectionId, Decoded, FrameLimits, Opcode, Refusal, ResponseFraming, Status, decode_frame,
};
use ringbase::range_scan::{
    ActiveVbuckets, ConnectionId, FrameSink, RangeScanConfig, RangeScans, ScanFrame, SentFrame, VbAddress,
};
use ringbase_storage::cache::BlockCache;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::env::{Clock, Env};
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::shard::{
    FormatOptions, Home, ReclaimOptions, ScrubOptions, Shard, ShardOptions, format,
};
use ringbase_storage::sync::Event;
use ringbase_storage::types::{BucketId, Kind, Seqno, ShardId, VbId};
use ringbase_storage::vbstore::{NewVersion, VbStore, WriteError};

pub(crate) const BUCKET: BucketId = BucketId(1);
/// The vbucket that is scanned.
pub(crate) const AT: VbAddress = VbAddress { bucket: BUCKET, vb: VbId(0) };
pub(crate) const CLIENT: ConnectionId = ConnectionId(1);

const OPTIONS: ShardOptions = ShardOptions {
    resident_bytes_max: 16 << 10,
    memtable_bytes_max: 4 << 20,
    grow_bytes: 1 << 20,
    flush_bytes: 32 << 10,
    window_versions_max: 8192,
    scrub: ScrubOptions::WHEN_ASKED,
    reclaim: ReclaimOptions::UNPACED,
};

/// A clock that panics when told to: a bug in the middle of a read.
pub(crate) struct FragileClock {
    clock: Rc<dyn Clock>,
    pub(crate) broken: Cell<bool>,
}

impl Clock for FragileClock {
    fn wall_ns(&self) -> u64 {
        self.clock.wall_ns()
    }

    fn monotonic_ns(&self) -> u64 {
        assert!(!self.broken.get(), "the clock is broken");
        self.clock.monotonic_ns()
    }
}

/// The vbuckets of the shard; 0 may be made inactive or shown with the branch of another.
pub(crate) struct Vbuckets {
    shard: Shard,
    pub(crate) inactive: Cell<bool>,
    pub(crate) shown: Cell<VbId>,
}

impl ActiveVbuckets for Vbuckets {
    fn active(&self, at: VbAddress) -> Option<Rc<VbStore>> {
        if self.inactive.get() {
            return None;
        }
        let vb = if at == AT { self.shown.get() } else { at.vb };
        self.shard.vbucket(at.bucket, vb)
    }

    fn has_collection(&self, _bucket: BucketId, collection: CollectionId) -> bool {
        collection == CollectionId::DEFAULT
    }
}

/// Key to (seqno, value) without deletions, of what a vbucket held at a seqno.
pub(crate) type Contents = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// One write: key without prefix, value or deletion.
pub(crate) type Write = (Vec<u8>, Option<Vec<u8>>);

/// A record: key, and of a document scan its seqno and value.
pub(crate) type Record = (Vec<u8>, Option<(u64, Vec<u8>)>);

pub(crate) struct Rig {
    pub(crate) sim: SimExecutor,
    pub(crate) disk: SimDisk,
    pub(crate) shard: Shard,
    pub(crate) clock: Rc<FragileClock>,
    pub(crate) vbuckets: Rc<Vbuckets>,
    pub(crate) scans: RangeScans,
    /// Every write to vbucket 0 in order.
    pub(crate) writes: Rc<RefCell<Vec<Write>>>,
}

pub(crate) fn rng(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// Prints the seed if the test fails in this scope.
pub(crate) struct Seed(pub(crate) u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}", self.0);
        }
    }
}

impl Rig {
    pub(crate) fn new(seed: u64) -> Rig {
        Rig::with(seed, RangeScanConfig::default())
    }

    pub(crate) fn with(seed: u64, config: RangeScanConfig) -> Rig {
        Rig::with_home(seed, config, Home::Disk)
    }

    /// With a bucket that lives there.
    pub(crate) fn with_home(seed: u64, config: RangeScanConfig, home: Home) -> Rig {
        let (sim, disk) = (SimExecutor::new(seed), SimDisk::new(seed));
        disk.attach(&sim);
        let host = sim.env();
        let clock = Rc::new(FragileClock { clock: host.clock.clone(), broken: Cell::new(false) });
        let random = host.clone();
        let env = Env::new(clock.clone(), host.spawn.clone(), move || random.random_u64());
        let shard = sim.block_on(async {
            let geometry = Geometry {
                shard: ShardId(0),
                shard_count: 1,
                vbucket_count: 2,
                wal_segments: 4,
                wal_segment_bytes: 256 << 10,
            };
            let options = FormatOptions { geometry, grow_bytes: OPTIONS.grow_bytes };
            format(&env, &disk.open("wal"), &disk.open("data"), options).await.unwrap();
            let cache = BlockCache::new(64 << 10);
            let (wal, data) = (disk.open("wal"), disk.open("data"));
            let resident_bytes_max = if home == Home::Disk { OPTIONS.resident_bytes_max } else { 1 << 20 };
            let options = ShardOptions { resident_bytes_max, ..OPTIONS };
            let (shard, _) = Shard::open(env, wal, data, cache, options).await.unwrap();
            let bucket = BucketDesc { id: BUCKET, uuid: 7, name: "default".into(), config: String::new() };
            shard.create_bucket_in(bucket, home).await.unwrap();
            shard
        });
        let vbuckets =
            Rc::new(Vbuckets { shard: shard.clone(), inactive: Cell::new(false), shown: Cell::new(AT.vb) });
        let scans = RangeScans::new(sim.env(), vbuckets.clone(), config);
        Rig { sim, disk, shard, clock, vbuckets, scans, writes: Rc::default() }
    }

    pub(crate) fn store(&self) -> Rc<VbStore> {
        self.shard.vbucket(BUCKET, AT.vb).unwrap()
    }

    pub(crate) fn writer(&self) -> Writer {
        Writer { store: self.store(), shard: self.shard.clone(), writes: self.writes.clone() }
    }

    /// Writes `count` keys `key000` … with values that name them, and flushes them to the disk if `flushed`.
    pub(crate) fn load(&self, count: usize, flushed: bool) {
        let writer = self.writer();
        self.sim.block_on(async {
            for n in 0..count {
                let key = format!("key{n:03}");
                writer.put(key.as_bytes(), Some(format!("value of {key}").as_bytes())).await;
            }
            writer.settle(flushed).await;
        });
    }

    /// Writes `count` long keys with long values to the disk: more than cache and memory keep.
    pub(crate) fn load_large(&self, count: usize) {
        let writer = self.writer();
        self.sim.block_on(async {
            for n in 0..count {
                writer.put(&large_key(n), Some(&[n as u8; 300])).await;
            }
            writer.settle(true).await;
        });
    }

    pub(crate) fn client(&self) -> Client {
        self.client_of(CLIENT)
    }

    pub(crate) fn client_of(&self, connection: ConnectionId) -> Client {
        Client { connection, scans: self.scans.clone(), env: self.sim.env() }
    }

    /// Creates a scan, or says why not.
    pub(crate) fn create(&self, request: RangeScanCreate) -> Result<ScanId, Status> {
        self.sim.block_on(self.client().create(request)).map_err(|refusal| refusal.status)
    }

    /// Continues to the final frame.
    pub(crate) fn go_on(&self, id: ScanId, limits: [u32; 3]) -> Vec<Received> {
        self.sim.block_on(self.client().go_on(id, limits))
    }

    pub(crate) fn views(&self) -> u64 {
        self.store().stats().views
    }

    /// Lets everything run that is ready or falls due soon.
    pub(crate) fn settle(&self) {
        self.sim.run_for(Duration::from_millis(100));
    }

    /// One statistic of the only scan.
    pub(crate) fn stat(&self, name: &str) -> Option<String> {
        let mut found = None;
        self.scans.stats(BUCKET, None, &mut |key, value| {
            if key == name || key.ends_with(&format!(":{name}")) {
                found = Some(value);
            }
        });
        found
    }
}

/// What vbucket 0 held when `end` was its high seqno.
pub(crate) fn contents(writes: &[Write], end: u64) -> Contents {
    let mut contents = Contents::new();
    for (n, (key, value)) in writes.iter().take(end as usize).enumerate() {
        match value {
            Some(value) => contents.insert(key.clone(), (n as u64 + 1, value.clone())),
            None => contents.remove(key),
        };
    }
    contents
}

/// Writes to vbucket 0 and remembers it.
#[derive(Clone)]
pub(crate) struct Writer {
    store: Rc<VbStore>,
    shard: Shard,
    writes: Rc<RefCell<Vec<Write>>>,
}

impl Writer {
    pub(crate) async fn put(&self, key: &[u8], value: Option<&[u8]>) -> Seqno {
        let stored = [&[0], key].concat();
        loop {
            let found = self.store.get(&stored).await.unwrap();
            let kind = if value.is_some() { Kind::Mutation } else { Kind::Deletion };
            let value = value.unwrap_or_default();
            let new = NewVersion { key: &stored, value, flags: 5, expiry: 0, datatype: 1, kind };
            match self.store.write(&found, new) {
                Ok(item) => {
                    let value = (kind == Kind::Mutation).then(|| value.to_vec());
                    self.writes.borrow_mut().push((key.to_vec(), value));
                    assert_eq!(item.seqno().0, self.writes.borrow().len() as u64);
                    return item.seqno();
                }
                Err(WriteError::Busy { .. }) => self.store.sleep(Duration::from_millis(1)).await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits until everything is durable, or flushed.
    pub(crate) async fn settle(&self, flushed: bool) {
        assert!(self.store.wait_persisted(self.store.high_seqno()).await);
        if flushed {
            self.shard.flush().await.unwrap();
        }
    }
}

/// A frame as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) status: Status,
    pub(crate) records: Vec<Record>,
}

impl Received {
    pub(crate) fn of(frame: &mut ScanFrame) -> Received {
        let kind = frame.kind();
        let Ok(Decoded::Frame(decoded)) =
            decode_frame(frame.encode(77, ResponseFraming::NONE), FrameLimits::AUTHENTICATED)
        else {
            panic!("not a whole frame")
        };
        assert_eq!((decoded.opcode(), decoded.opaque()), (Opcode::RANGE_SCAN_CONTINUE, 77));
        let has_extras = !decoded.extras.is_empty();
        assert!(!has_extras || RecordKind::decode(decoded.extras) == Some(kind));
        let records = match kind {
            RecordKind::Keys => {
                KeyRecords::new(decoded.value).map(|key| (key.unwrap().to_vec(), None)).collect()
            }
            RecordKind::Documents => DocumentRecords::new(decoded.value)
                .map(|document| {
                    let document = document.unwrap();
                    (document.key.to_vec(), Some((document.seqno.0, document.value.to_vec())))
                })
                .collect::<Vec<_>>(),
        };
        assert!(has_extras || records.is_empty(), "an error carries no records");
        Received { status: decoded.status(), records }
    }
}

/// Frames that a continue has sent and nobody has taken yet.
#[derive(Default)]
pub(crate) struct Inbox {
    frames: RefCell<VecDeque<ScanFrame>>,
    arrived: Event,
    finals: Cell<u32>,
    /// Frames with records that were not brought back, the most there ever were.
    pub(crate) most_unsent: Cell<usize>,
}

impl FrameSink for Inbox {
    fn send(&self, frame: ScanFrame) {
        assert_eq!(self.finals.get(), 0, "a frame after the final one");
        self.finals.set(u32::from(frame.is_final()));
        self.frames.borrow_mut().push_back(frame);
        let unsent = self.frames.borrow().iter().filter(|frame| !frame.records().is_empty()).count();
        self.most_unsent.set(self.most_unsent.get().max(unsent));
        self.arrived.notify_all();
    }
}

impl Inbox {
    /// The next frame, decoded, and what must be brought back.
    pub(crate) async fn next(&self) -> (Received, Option<SentFrame>) {
        self.arrived.until(|| !self.frames.borrow().is_empty()).await;
        let mut frame = self.frames.borrow_mut().pop_front().unwrap();
        (Received::of(&mut frame), frame.into_sent())
    }

    pub(crate) fn waiting(&self) -> usize {
        self.frames.borrow().len()
    }

    /// The connection is gone: what was not sent is dropped.
    pub(crate) fn clear(&self) {
        self.frames.borrow_mut().clear();
    }
}

/// A connection.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) connection: ConnectionId,
    scans: RangeScans,
    env: Env,
}

impl Client {
    pub(crate) async fn create(&self, request: RangeScanCreate) -> Result<ScanId, Refusal> {
        let answers: Rc<RefCell<Vec<Result<ScanId, Refusal>>>> = Rc::default();
        let answered = Rc::new(Event::default());
        let (list, event) = (answers.clone(), answered.clone());
        self.scans.create(AT, self.connection, request, move |reply| {
            list.borrow_mut().push(reply);
            event.notify_all();
        });
        answered.until(|| !answers.borrow().is_empty()).await;
        answers.take().pop().unwrap()
    }

    /// Starts a continue with limits of items, milliseconds and bytes.
    pub(crate) fn start(&self, id: ScanId, [items, ms, bytes]: [u32; 3]) -> Rc<Inbox> {
        let inbox = Rc::new(Inbox::default());
        let request = RangeScanContinue { id, item_limit: items, time_limit_ms: ms, byte_limit: bytes };
        self.scans.continue_scan(AT, self.connection, request, inbox.clone());
        inbox
    }

    /// Continues to the final frame, sending each one after a random moment.
    pub(crate) async fn go_on(&self, id: ScanId, limits: [u32; 3]) -> Vec<Received> {
        let inbox = self.start(id, limits);
        self.drain(&inbox).await
    }

    pub(crate) async fn drain(&self, inbox: &Inbox) -> Vec<Received> {
        let mut all = Vec::new();
        loop {
            let (received, sent) = inbox.next().await;
            if self.env.random_u64().is_multiple_of(2) {
                self.env.spawn.sleep(Duration::from_micros(self.env.random_u64() % 300)).await;
            }
            if let Some(sent) = sent {
                self.scans.frame_sent(sent);
            }
            let is_final = received.status != Status::SUCCESS;
            all.push(received);
            if is_final {
                assert_eq!(inbox.waiting(), 0);
                return all;
            }
        }
    }
}

pub(crate) fn large_key(n: usize) -> Vec<u8> {
    format!("key{n:03}{:->200}", "").into_bytes()
}

/// Every key of all frames, in order.
pub(crate) fn keys(frames: &[Received]) -> Vec<Vec<u8>> {
    frames.iter().flat_map(|frame| &frame.records).map(|(key, _)| key.clone()).collect()
}

pub(crate) fn statuses(frames: &[Received]) -> Vec<Status> {
    frames.iter().map(|frame| frame.status).collect()
}

/// A key-only scan of everything.
pub(crate) fn all_keys() -> RangeScanCreate {
    RangeScanCreate { key_only: true, ..RangeScanCreate::default() }
}

pub(crate) fn key_range(start: Bound<&[u8]>, end: Bound<&[u8]>) -> RangeScanCreate {
    let selection = Selection::Range { start: start.map(<[u8]>::to_vec), end: end.map(<[u8]>::to_vec) };
    RangeScanCreate { selection, ..all_keys() }
}

/// A random key out of a small set that has everything awkward in it.
pub(crate) fn awkward_key(random: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    const ALPHABET: [u8; 7] = [0x00, 0x01, b'a', 0x7f, 0x80, 0xc3, 0xff];
    let len = [1, 1, 2, 2, 3, 130, 250][random.random_range(0..7)];
    let mut key = vec![b'm'; len];
    for at in [0, 1, len - 1] {
        if at < len {
            key[at] = ALPHABET[random.random_range(0..ALPHABET.len())];
        }
    }
    key
}
