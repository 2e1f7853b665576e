//! A node in a test: shards on a simulated disk, a session in front of them, requests as frames.
//!
//! Does not know: sockets, other cores.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringbase_storage::cache::BlockCache;
use ringbase_storage::env::LocalFuture;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::shard::{
    FormatOptions, ReclaimOptions, RecoveryReport, ScrubOptions, Shard, ShardOptions, format,
};
use ringbase_storage::types::{BucketId, Cas, ShardId, VbId};
use ringbase_storage::vbstore::VbStore;

use super::session::Shared;
use super::{
    Catalog, CatalogOptions, ConnectionId, Next, Outcome, Reply, Responder, Session, StatSource, VbucketJob,
    execute, stat, vb_seqnos,
};
use crate::auth::{Role, User, Users};
use crate::bucket::{
    BucketChange, BucketSet, BucketSettings, ChangeError, Cores, Engine, EngineError, Lifecycle, Step,
};
use crate::protocol::cluster_map::NodePorts;
use crate::protocol::extras::ConfigVersion;
use crate::protocol::frame::FrameLimits;
use crate::protocol::{
    Datatype, Decoded, Feature, Features, Magic, Opcode, Request, ResponseFraming, Status, decode_frame,
};

pub(super) const VBUCKETS: u16 = 4;

/// What a rig is made of.
#[derive(Debug, Clone)]
pub(super) struct RigOptions {
    pub(super) seed: u64,
    /// Whether connections start in the bucket without authentication.
    pub(super) open: bool,
    pub(super) resident_bytes_max: usize,
    pub(super) settings: &'static str,
    /// Names and settings of buckets beside the default one.
    pub(super) more: &'static [(&'static str, &'static str)],
    pub(super) wal_segments: u32,
}

/// `admin`, `writer` and `reader`, whose password is `password`.
fn users() -> Users {
    let mut users = Users::empty(&mut |bytes| bytes.fill(7));
    for (name, role) in [("admin", Role::Admin), ("writer", Role::ReadWrite), ("reader", Role::ReadOnly)] {
        let user = User::new(role, b"password", 1, &mut |bytes| bytes.fill(9)).unwrap();
        users.add(name, user).unwrap();
    }
    users
}

impl Default for RigOptions {
    fn default() -> RigOptions {
        RigOptions {
            seed: 1,
            open: true,
            resident_bytes_max: 64 << 20,
            settings: "",
            more: &[],
            wal_segments: 16,
        }
    }
}

/// A response, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) magic: Magic,
    pub(super) opcode: Opcode,
    pub(super) opaque: u32,
    pub(super) status: Status,
    pub(super) cas: Cas,
    pub(super) datatype: Datatype,
    pub(super) framing: ResponseFraming,
    pub(super) extras: Vec<u8>,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answered {
    Frames(Vec<Answer>),
    Closed(Vec<Answer>),
}

impl Answered {
    /// The only response.
    pub(super) fn one(self) -> Answer {
        match self {
            Answered::Frames(frames) if frames.len() == 1 => frames.into_iter().next().unwrap(),
            other => panic!("one response expected, not {other:?}"),
        }
    }

    pub(super) fn is_silent(&self) -> bool {
        *self == Answered::Frames(Vec::new())
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Answered::Closed(_))
    }
}

enum Slot {
    Waiting,
    Bytes(Vec<u8>),
    Closed(Vec<u8>),
}

type Slots = Rc<RefCell<Vec<Slot>>>;

struct SlotReply {
    slots: Slots,
    index: usize,
}

impl SlotReply {
    fn put(self, slot: Slot) {
        let old = std::mem::replace(&mut self.slots.borrow_mut()[self.index], slot);
        assert!(matches!(old, Slot::Waiting), "a request is answered once");
    }
}

impl Reply for SlotReply {
    fn send(self: Box<Self>, frame: &[u8]) {
        self.put(Slot::Bytes(frame.to_vec()));
    }

    fn close(self: Box<Self>) {
        self.put(Slot::Closed(Vec::new()));
    }
}

pub(super) struct Rig {
    pub(super) sim: SimExecutor,
    pub(super) disk: SimDisk,
    pub(super) engine: Engine,
    pub(super) session: Session,
    pub(super) recovery: RecoveryReport,
    options: RigOptions,
    slots: Slots,
    next_opaque: u32,
}

impl Rig {
    pub(super) fn new() -> Rig {
        Rig::with(RigOptions::default())
    }

    pub(super) fn with(options: RigOptions) -> Rig {
        let sim = SimExecutor::new(options.seed);
        let disk = SimDisk::new(options.seed ^ 0x5eed);
        disk.attach(&sim);
        let (wal, data) = (disk.open("wal"), disk.open("data"));
        let geometry = Geometry {
            shard: ShardId(0),
            shard_count: 1,
            vbucket_count: VBUCKETS,
            wal_segments: options.wal_segments,
            wal_segment_bytes: 64 << 10,
        };
        let format_options = FormatOptions { geometry, grow_bytes: 1 << 20 };
        sim.block_on(format(&sim.env(), &wal, &data, format_options)).unwrap();
        Rig::open(options, sim, disk, true)
    }

    /// Stops as `stop` says, and starts again on what the disk has kept.
    pub(super) fn restart(self, stop: impl FnOnce(&SimExecutor, &SimDisk, &Engine)) -> Rig {
        let Rig { sim, disk, engine, options, .. } = self;
        stop(&sim, &disk, &engine);
        let now = Duration::from_nanos(sim.now_ns());
        for shard in engine.shards() {
            shard.detach();
        }
        drop((engine, sim));
        let sim = SimExecutor::new(options.seed.wrapping_add(1));
        sim.advance(now);
        disk.attach(&sim);
        Rig::open(options, sim, disk, false)
    }

    fn open(options: RigOptions, sim: SimExecutor, disk: SimDisk, is_new: bool) -> Rig {
        let shard_options = ShardOptions {
            resident_bytes_max: options.resident_bytes_max,
            memtable_bytes_max: 64 << 20,
            grow_bytes: 1 << 20,
            flush_bytes: 1 << 20,
            window_versions_max: 8192,
            scrub: ScrubOptions::WHEN_ASKED,
            reclaim: ReclaimOptions::UNPACED,
        };
        let (wal, data) = (disk.open("wal"), disk.open("data"));
        let opened = Shard::open(sim.env(), wal, data, BlockCache::new(1 << 20), shard_options);
        let (shard, recovery) = sim.block_on(opened).unwrap();
        if is_new {
            for (number, (name, config)) in
                (0..).zip([("default", options.settings)].iter().chain(options.more))
            {
                let bucket = BucketDesc {
                    id: BucketId(3 + number),
                    uuid: 0x1234 + u128::from(number),
                    name: (*name).to_owned(),
                    config: (*config).to_owned(),
                };
                let home = BucketSettings::parse(config).unwrap().home();
                sim.block_on(shard.create_bucket_in(bucket, home)).unwrap();
            }
        }
        let set = Arc::new(BucketSet::new(shard.buckets()));
        let catalog = Catalog::new(
            set.clone(),
            CatalogOptions {
                vbucket_count: VBUCKETS,
                ports: NodePorts { kv: 11210, mgmt: Some(8091) },
                map_version: ConfigVersion { epoch: 1, rev: 5 },
                users: users(),
                open_bucket: options.open.then(|| "default".to_owned()),
                version: "0.1.0".to_owned(),
                started_at: 1_767_225_600,
            },
        );
        let shared = Shared::new(catalog, sim.env());
        let engine = Engine::new(sim.env(), vec![shard], 128 << 20).unwrap();
        engine.publish(&set).unwrap();
        sim.block_on(engine.bring_events_into_line());
        let session = Session::new(shared, ConnectionId(1));
        let slots = Slots::default();
        Rig { sim, disk, engine, session, recovery, options, slots, next_opaque: 0 }
    }

    /// The wall clock in epoch seconds.
    pub(super) fn now(&self) -> u32 {
        crate::bucket::expiry::seconds(self.sim.env().clock.wall_ns())
    }

    pub(super) fn sleep(&self, seconds: u64) {
        self.sim.advance(Duration::from_secs(seconds));
    }

    pub(super) fn flush(&self) {
        for shard in self.engine.shards() {
            self.sim.block_on(shard.flush()).unwrap();
        }
    }

    /// Goes to another bucket.
    pub(super) fn select(&mut self, bucket: &str) {
        assert_eq!(self.status(Request::new(Opcode::SELECT_BUCKET).key(bucket.as_bytes())), Status::SUCCESS);
    }

    /// A vbucket of a bucket.
    pub(super) fn store(&self, bucket: &str, vb: VbId) -> Rc<VbStore> {
        let buckets = self.engine.buckets();
        buckets.iter().find(|local| local.name == bucket).unwrap().vbucket(vb).unwrap()
    }

    /// Deletes all documents of a bucket.
    pub(super) fn empty(&self, bucket: &str) {
        let (env, shared) = (self.sim.env(), &self.session.shared);
        let authority = self.engine.authority().unwrap().clone();
        let lifecycle =
            Lifecycle::new(env, authority, shared.catalog().set().clone(), self.engine.document_bytes());
        let change = BucketChange::Empty { name: bucket.to_owned() };
        self.sim.block_on(lifecycle.change(&OnlyCore(&self.engine), &change)).unwrap();
        shared.set_buckets(lifecycle.set());
    }

    /// Turns exactly these features on.
    pub(super) fn hello(&mut self, features: &[Feature]) {
        let value = Features::of(features).encode();
        let answer = self.ask(Request::new(Opcode::HELLO).value(&value)).one();
        assert_eq!((answer.status, answer.value), (Status::SUCCESS, value));
        if features.contains(&Feature::SelectBucket) {
            self.ask(Request::new(Opcode::SELECT_BUCKET).key(b"default"));
        }
    }

    /// Authenticates in the clear.
    pub(super) fn login(&mut self, user: &str, password: &str) -> Status {
        let challenge = format!("\0{user}\0{password}");
        self.status(Request::new(Opcode::SASL_AUTH).key(b"PLAIN").value(challenge.as_bytes()))
    }

    /// Sends a request and waits for its answer.
    pub(super) fn ask(&mut self, request: Request<'_>) -> Answered {
        let index = self.send(request);
        self.wait(index)
    }

    pub(super) fn status(&mut self, request: Request<'_>) -> Status {
        self.ask(request).one().status
    }

    /// Sends requests without waiting, then collects their answers.
    pub(super) fn pipeline(&mut self, requests: &[Request<'_>]) -> Vec<Answered> {
        let indexes: Vec<usize> = requests.iter().map(|request| self.send(*request)).collect();
        indexes.into_iter().map(|index| self.wait(index)).collect()
    }

    /// Whether the request with this index waits for something.
    pub(super) fn is_waiting(&self, index: usize) -> bool {
        matches!(self.slots.borrow()[index], Slot::Waiting)
    }

    /// Sends a request; returns its index.
    pub(super) fn send(&mut self, request: Request<'_>) -> usize {
        self.next_opaque += 1;
        let mut bytes = Vec::new();
        request.opaque(self.next_opaque).encode(&mut bytes).unwrap();
        self.send_bytes(&bytes)
    }

    pub(super) fn send_bytes(&mut self, bytes: &[u8]) -> usize {
        let index = self.slots.borrow().len();
        self.slots.borrow_mut().push(Slot::Waiting);
        let decoded = decode_frame(bytes, self.session.frame_limits());
        let Ok(Decoded::Frame(frame)) = decoded else { panic!("{decoded:?}") };
        let mut out = Vec::new();
        let received_ns = self.sim.env().clock.monotonic_ns();
        let mut outcome = Outcome::Done;
        match self.session.accept(frame, received_ns, &mut out) {
            Next::Done => {}
            Next::Close(_) => outcome = Outcome::Close,
            Next::Vbucket(request) => {
                let slots = &self.slots;
                let mut defer = || Box::new(SlotReply { slots: slots.clone(), index }) as Box<dyn Reply>;
                outcome = execute(&self.engine, &self.session.view(), &request, &mut out, &mut defer);
            }
            Next::VbucketChange(request) => {
                let view = self.session.view();
                let responder = Responder::of_view(&request.frame, &view, received_ns);
                match VbucketJob::decode(&view, &request) {
                    Ok(VbucketJob { at, change }) => {
                        let changed = self.engine.change_vbucket(at, change, &|_| {});
                        let result = self.sim.block_on(changed);
                        outcome = VbucketJob::answer(&responder, &self.sim.env(), &result, &mut out);
                    }
                    Err(refusal) => responder.refuse(&self.sim.env(), refusal, &mut out),
                }
            }
            Next::RangeScan(_) => panic!("no range scans here"),
            Next::Dcp(_) => panic!("no streams here"),
            Next::Bucket(_) => panic!("no change of buckets here"),
            Next::TraceDump(_) => panic!("no trace here"),
            Next::VbSeqnos(job) => {
                job.answer(&self.sim.env(), [vb_seqnos(&self.engine, job.bucket, job.asked)], &mut out);
            }
            Next::SetParam(change) => change.responder.success(&self.sim.env()).encode(&mut out),
            Next::Stat(job) => {
                let sources: [&dyn StatSource; 1] = [&self.engine];
                let part = stat::collect(&job.query, &sources);
                job.answer(&self.sim.env(), [part], &mut out);
            }
        }
        match outcome {
            Outcome::Done => self.slots.borrow_mut()[index] = Slot::Bytes(out),
            Outcome::Close => self.slots.borrow_mut()[index] = Slot::Closed(out),
            Outcome::Deferred => assert!(out.is_empty(), "a deferred request appends nothing"),
        }
        index
    }

    /// Waits for the answer to the request with this index.
    pub(super) fn wait(&mut self, index: usize) -> Answered {
        while self.is_waiting(index) {
            assert!(self.sim.step(), "nothing is left that could answer");
        }
        match &self.slots.borrow()[index] {
            Slot::Bytes(bytes) => Answered::Frames(frames(bytes)),
            Slot::Closed(bytes) => Answered::Closed(frames(bytes)),
            Slot::Waiting => unreachable!("waited for"),
        }
    }
}

/// The only core of a node.
struct OnlyCore<'e>(&'e Engine);

impl Cores for OnlyCore<'_> {
    fn all(&self, step: Step) -> LocalFuture<'_, Result<(), ChangeError>> {
        let failed = |error: EngineError| ChangeError::Failed { reason: error.to_string() };
        Box::pin(async move {
            match step {
                Step::Prepare(bucket) => self.0.prepare(&bucket).await.map_err(failed),
                Step::Withdraw { bucket, .. } => {
                    self.0.withdraw(bucket).await;
                    Ok(())
                }
                Step::Publish(set) => {
                    self.0.publish(&set).map_err(failed)?;
                    self.0.bring_events_into_line().await;
                    Ok(())
                }
                Step::Remove(bucket) => self.0.remove(bucket).await.map_err(failed),
            }
        })
    }
}

fn frames(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let decoded = decode_frame(bytes, FrameLimits { frame_bytes_max: bytes.len() });
        let Ok(Decoded::Frame(frame)) = decoded else { panic!("{decoded:?}") };
        answers.push(Answer {
            magic: frame.header.magic,
            opcode: frame.opcode(),
            opaque: frame.opaque(),
            status: frame.status(),
            cas: frame.cas(),
            datatype: frame.datatype(),
            framing: frame.response_framing(),
            extras: frame.extras.to_vec(),
            key: frame.key.to_vec(),
            value: frame.value.to_vec(),
        });
        bytes = &bytes[frame.frame_bytes()..];
    }
    answers
}

/// A Get.
pub(super) fn get(key: &[u8]) -> Request<'_> {
    Request::new(Opcode::GET).key(key)
}

/// Flags 0, no expiry.
pub(super) const PLAIN: [u8; 8] = [0; 8];

/// A Set without flags, expiry and CAS.
pub(super) fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    Request::new(Opcode::SET).key(key).value(value).extras(&PLAIN)
}

/// The vbucket that every test uses unless it says otherwise is 0.
pub(super) const VB: VbId = VbId(0);
