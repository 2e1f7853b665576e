//! Streams of many vbuckets over several connections, received and checked.
//!
//! Invariants
//! - Every vbucket is asked for once, on one connection; the first failure stops all connections.
//! - What was counted before a failure is kept.
//! - The clock starts when all connections are open.
//!
//! Cost: one thread for each connection.
//! Does not know: command lines, how the result is shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringbase::client::{ClientError, ConnectOptions, Connection, DcpClient, DcpOptions};
use ringbase::protocol::dcp::{
    Control, DcpMessage, Envelope, OsoSnapshot, OutOfOrderSnapshots, StreamFilter, StreamId, StreamReply,
    StreamRequest,
};
use ringbase::protocol::{DocumentKey, Status};
use ringbase_storage::types::{Seqno, VbId};

use super::check::{KeyBudget, StreamCheck, Violations};
use super::expected::Expected;

/// Hashes of keys that are remembered at a time, by all connections.
const KEYS_REMEMBERED: usize = 8 << 20;

/// How long one wait for a message is; so often it is looked whether to stop.
const TICK: Duration = Duration::from_millis(100);

/// Messages after which others are told of the progress.
const PROGRESS_MESSAGES: u64 = 1024;

/// What to ask for.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) connect: ConnectOptions,
    /// Of every connection; the number of the connection is added to the name.
    pub(super) dcp: DcpOptions,
    pub(super) stream_id: Option<StreamId>,
    /// What every stream is asked with; its start is a seqno of the newest history.
    pub(super) request: StreamRequest,
    pub(super) filter: Option<StreamFilter>,
    pub(super) needs_collections: bool,
    /// The past may come in key order.
    pub(super) allows_oso: bool,
    /// Ask and then read nothing.
    pub(super) hangs: bool,
    /// The streams end by themselves.
    pub(super) ends: bool,
    /// How long to go on when the connections are open; all streams are asked for however long that takes.
    pub(super) lasts: Option<Duration>,
}

/// What has happened so far; another thread may watch it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) items: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) ended: AtomicU64,
}

/// Whether to stop before the streams have ended.
#[derive(Debug)]
pub(super) struct Stop {
    interrupted: Arc<AtomicBool>,
    failed: AtomicBool,
}

impl Stop {
    /// Stops when that flag is set, or one of the connections has failed.
    pub(super) fn when(interrupted: Arc<AtomicBool>) -> Stop {
        Stop { interrupted, failed: AtomicBool::new(false) }
    }

    fn is_due(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }
}

/// Why a drain ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum DrainError {
    /// No connection came about, or it was refused to be one of DCP.
    #[error(transparent)]
    Open(#[from] ClientError),
    /// Collections were needed and not granted.
    #[error("the node does not grant Collections, which --collection and --stream-id need; leave them out")]
    NoCollections,
    /// A connection broke.
    #[error(
        "connection {name:?} was lost with {ended} of {streams} streams ended; look whether the node runs and whether \
         another client has the same --name, then begin again"
    )]
    Lost {
        name: String,
        ended: usize,
        streams: usize,
        #[source]
        source: ClientError,
    },
    /// Nothing came, although streams should end.
    #[error(
        "connection {name:?} got no message for {} s with {ended} of {streams} streams ended; wait longer with \
         --timeout, or look at `ringctl stats dcp`", .waited.as_secs_f64()
    )]
    Silent { name: String, ended: usize, streams: usize, waited: Duration },
    /// There is no such place in the vbucket's history.
    #[error("vbucket {vbucket} has no seqno {start} in its history; begin with --from {seqno} or below")]
    Rollback { vbucket: VbId, start: Seqno, seqno: Seqno },
    /// No stream.
    #[error("the stream of vbucket {vbucket} was refused with {status} ({}); {hint}", .status.description())]
    Refused { vbucket: VbId, status: Status, hint: &'static str },
}

/// What was received.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) streams: u64,
    pub(super) mutations: u64,
    pub(super) deletions: u64,
    pub(super) system_events: u64,
    pub(super) snapshots: u64,
    /// Those of them in key order.
    pub(super) oso_snapshots: u64,
    pub(super) message_bytes: u64,
    pub(super) key_bytes: u64,
    pub(super) value_bytes: u64,
    pub(super) snapshots_unchecked: u64,
}

impl Counts {
    pub(super) fn items(&self) -> u64 {
        self.mutations + self.deletions
    }

    pub(super) fn overhead_bytes(&self) -> u64 {
        self.message_bytes.saturating_sub(self.key_bytes + self.value_bytes)
    }

    fn add(&mut self, other: &Counts) {
        self.streams += other.streams;
        self.mutations += other.mutations;
        self.deletions += other.deletions;
        self.system_events += other.system_events;
        self.snapshots += other.snapshots;
        self.oso_snapshots += other.oso_snapshots;
        self.message_bytes += other.message_bytes;
        self.key_bytes += other.key_bytes;
        self.value_bytes += other.value_bytes;
        self.snapshots_unchecked += other.snapshots_unchecked;
    }
}

/// What one connection has received.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct ConnectionDrain {
    pub(super) counts: Counts,
    /// From the common start to its last message.
    pub(super) elapsed: Duration,
}

/// What all connections have received.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) connections: Vec<ConnectionDrain>,
    /// All together; the time is that of the slowest.
    pub(super) total: ConnectionDrain,
    /// Streams that ended, by status.
    pub(super) ends: BTreeMap<&'static str, u64>,
    /// Streams that did not end.
    pub(super) open_streams: u64,
    pub(super) violations: Violations,
    pub(super) error: Option<DrainError>,
}

/// Receives the streams of `vbuckets` until they have ended, or it is time to stop.
pub(super) fn drain_all(
    plan: &Plan,
    vbuckets: &[VbId],
    connections: usize,
    expected: Option<&Expected>,
    (progress, stop): (&Progress, &Stop),
) -> Result<Drained, DrainError> {
    let count = connections.min(vbuckets.len()).max(1);
    let mut drains = Vec::new();
    for number in 0..count {
        let vbuckets = vbuckets.iter().skip(number).step_by(count).copied().collect();
        let receiver = Receiver {
            checks: BTreeMap::new(),
            budget: KeyBudget::new(KEYS_REMEMBERED / count),
            violations: Violations::default(),
            counts: Counts::default(),
            ended: 0,
            stream_id: plan.stream_id,
            has_collections: false,
            expected,
        };
        drains.push(Drain::open(plan, number, vbuckets, receiver)?);
    }
    let started = Instant::now();
    let deadline = plan.lasts.map(|time| started + time);
    let outcomes: Vec<(Drain<'_>, Duration, Result<(), DrainError>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = drains
            .into_iter()
            .map(|mut drain| {
                scope.spawn(move || {
                    let result = drain.run((progress, stop), deadline);
                    if result.is_err() {
                        stop.failed.store(true, Ordering::Relaxed);
                    }
                    (drain, started.elapsed(), result)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a draining thread does not panic")).collect()
    });

    let mut drained = Drained::default();
    for (drain, elapsed, result) in outcomes {
        let receiver = drain.receiver;
        let mut counts = receiver.counts;
        counts.streams = receiver.checks.len() as u64;
        counts.message_bytes = drain.client.message_bytes();
        counts.snapshots_unchecked = receiver.budget.snapshots_unchecked;
        drained.total.counts.add(&counts);
        drained.total.elapsed = drained.total.elapsed.max(elapsed);
        drained.connections.push(ConnectionDrain { counts, elapsed });
        for check in receiver.checks.values() {
            match check.end() {
                Some(status) => *drained.ends.entry(status.name()).or_default() += 1,
                None => drained.open_streams += 1,
            }
        }
        drained.violations.append(receiver.violations);
        if let Err(error) = result {
            drained.error.get_or_insert(error);
        }
    }
    Ok(drained)
}

/// One connection.
struct Drain<'a> {
    plan: &'a Plan,
    name: String,
    vbuckets: Vec<VbId>,
    client: DcpClient,
    receiver: Receiver<'a>,
}

impl<'a> Drain<'a> {
    fn open(
        plan: &'a Plan,
        number: usize,
        vbuckets: Vec<VbId>,
        mut receiver: Receiver<'a>,
    ) -> Result<Drain<'a>, DrainError> {
        let connection = Connection::open(&plan.connect)?;
        let name = format!("{}-{number}", plan.dcp.name);
        let mut client = DcpClient::open(connection, &DcpOptions { name: name.clone(), ..plan.dcp.clone() })?;
        receiver.has_collections = client.has_collections();
        if plan.needs_collections && !client.has_collections() {
            return Err(DrainError::NoCollections);
        }
        if plan.stream_id.is_some() {
            client.control(&Control::EnableStreamId)?;
        }
        if plan.allows_oso {
            let how = OutOfOrderSnapshots::OnWithSeqnoAdvanced;
            client.control(&Control::EnableOutOfOrderSnapshots(how))?;
        }
        Ok(Drain { plan, name, vbuckets, client, receiver })
    }

    fn run(
        &mut self,
        (progress, stop): (&Progress, &Stop),
        deadline: Option<Instant>,
    ) -> Result<(), DrainError> {
        let is_over = || stop.is_due() || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        for vbucket in self.vbuckets.clone() {
            if stop.is_due() {
                return Ok(());
            }
            self.ask(vbucket)?;
            while !self.plan.hangs && self.client.has_kept() {
                self.step()?;
            }
        }
        if self.plan.hangs {
            while !is_over() {
                std::thread::sleep(TICK);
            }
            return Ok(());
        }
        let mut told = Told::default();
        let mut last_message = Instant::now();
        let mut untold = 0;
        while self.receiver.ended < self.receiver.checks.len() {
            let messages = self.step()?;
            untold += messages;
            if messages > 0 && untold < PROGRESS_MESSAGES {
                continue;
            }
            untold = 0;
            told.tell(progress, self);
            if is_over() {
                break;
            }
            if messages > 0 {
                last_message = Instant::now();
            } else if self.plan.ends && last_message.elapsed() >= self.plan.connect.timeout {
                let (ended, streams) = (self.receiver.ended, self.receiver.checks.len());
                let waited = self.plan.connect.timeout;
                return Err(DrainError::Silent { name: self.name.clone(), ended, streams, waited });
            }
        }
        told.tell(progress, self);
        Ok(())
    }

    fn ask(&mut self, vbucket: VbId) -> Result<(), DrainError> {
        let mut request = self.plan.request;
        let start = request.start;
        if start > Seqno(0) {
            let log = match self.client.failover_log(vbucket) {
                Ok(log) => log,
                Err(ClientError::Refused { status, .. }) => return Err(refused(vbucket, status)),
                Err(error) => return Err(self.lost(error)),
            };
            let branch = log.iter().find(|entry| entry.seqno <= start).or(log.last());
            request.uuid = branch.map_or(request.uuid, |entry| entry.uuid);
        }
        match self.client.stream(vbucket, &request, self.plan.filter.as_ref()) {
            Ok(StreamReply::Accepted(_)) => {
                self.receiver.checks.insert(vbucket, StreamCheck::new(vbucket, start, self.plan.allows_oso));
                Ok(())
            }
            Ok(StreamReply::Rollback(seqno)) => Err(DrainError::Rollback { vbucket, start, seqno }),
            Ok(StreamReply::Refused(status)) => Err(refused(vbucket, status)),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Takes the messages that have arrived, 0 if none comes.
    fn step(&mut self) -> Result<u64, DrainError> {
        let receiver = &mut self.receiver;
        let taken = self.client.messages_within(TICK, |envelope, message| receiver.take(envelope, message));
        taken.map_err(|error| self.lost(error))
    }

    fn lost(&self, source: ClientError) -> DrainError {
        let (ended, streams) = (self.receiver.ended, self.vbuckets.len());
        DrainError::Lost { name: self.name.clone(), ended, streams, source }
    }
}

fn refused(vbucket: VbId, status: Status) -> DrainError {
    let hint = match status {
        Status::NOT_MY_VBUCKET => {
            "`ringctl stats vbucket-seqno` lists those that there are, --vbucket chooses some"
        }
        Status::UNKNOWN_COLLECTION => "choose other collections with --collection",
        Status::EACCESS => "authenticate with --user and --password-stdin as one who may read the bucket",
        Status::ENOMEM | Status::ETMPFAIL | Status::EBUSY => "the node is short of room, try again later",
        Status::NOT_SUPPORTED | Status::EINVAL => "leave options out that this node may not know",
        _ => "`ringctl stats dcp` says what other streams there are",
    };
    DrainError::Refused { vbucket, status, hint }
}

/// What of the progress others know of.
#[derive(Debug, Default)]
struct Told {
    items: u64,
    bytes: u64,
    ended: u64,
}

impl Told {
    fn tell(&mut self, progress: &Progress, drain: &Drain<'_>) {
        let now = Told {
            items: drain.receiver.counts.items(),
            bytes: drain.client.message_bytes(),
            ended: drain.receiver.ended as u64,
        };
        progress.items.fetch_add(now.items - self.items, Ordering::Relaxed);
        progress.bytes.fetch_add(now.bytes - self.bytes, Ordering::Relaxed);
        progress.ended.fetch_add(now.ended - self.ended, Ordering::Relaxed);
        *self = now;
    }
}

/// What becomes of the messages of one connection.
struct Receiver<'a> {
    checks: BTreeMap<VbId, StreamCheck>,
    budget: KeyBudget,
    violations: Violations,
    counts: Counts,
    ended: usize,
    stream_id: Option<StreamId>,
    has_collections: bool,
    expected: Option<&'a Expected>,
}

impl Receiver<'_> {
    fn take(&mut self, envelope: Envelope, message: &DcpMessage<'_>) {
        let Receiver { checks, budget, violations, counts, .. } = self;
        let seqno = message.by_seqno().unwrap_or_default();
        let place = (envelope.vbucket, seqno);
        let Some(check) = checks.get_mut(&envelope.vbucket) else {
            return violations.add(place, "a message of this vbucket", "none, it was not asked for");
        };
        if envelope.stream_id != self.stream_id {
            let named =
                |id: Option<StreamId>| id.map_or("no stream id".to_owned(), |id| format!("stream id {id}"));
            violations.add(place, named(envelope.stream_id), named(self.stream_id));
        }
        let was_open = check.end().is_none();
        check.take(message, budget, violations);
        self.ended += usize::from(was_open && check.end().is_some());
        match message {
            DcpMessage::SnapshotMarker(_) => counts.snapshots += 1,
            DcpMessage::OsoSnapshot(OsoSnapshot::Start) => {
                counts.snapshots += 1;
                counts.oso_snapshots += 1;
            }
            DcpMessage::SystemEvent(_) => counts.system_events += 1,
            DcpMessage::Mutation(mutation) => {
                counts.mutations += 1;
                counts.key_bytes += mutation.key.len() as u64;
                counts.value_bytes += mutation.value.len() as u64;
                if let Some(expected) = self.expected {
                    let key = logical(mutation.key, self.has_collections);
                    if let Some((found, wanted)) = expected.compare(key, mutation.value) {
                        violations.add(place, found, wanted);
                    }
                }
            }
            DcpMessage::Deletion(deletion) => {
                counts.deletions += 1;
                counts.key_bytes += deletion.key.len() as u64;
                counts.value_bytes += deletion.value.len() as u64;
                if let Some(expected) = self.expected {
                    expected.delete(logical(deletion.key, self.has_collections));
                }
            }
            DcpMessage::StreamEnd(_)
            | DcpMessage::Prepare(_)
            | DcpMessage::Outcome(_)
            | DcpMessage::SeqnoAdvanced(_)
            | DcpMessage::OsoSnapshot(OsoSnapshot::End)
            | DcpMessage::SetVbucketState(_)
            | DcpMessage::Noop => {}
        }
    }
}

/// The key without its prefix; one that has no valid prefix stays as it is.
fn logical(wire: &[u8], has_collections: bool) -> &[u8] {
    DocumentKey::decode(wire, has_collections).map_or(wire, |key| key.logical)
}
