//! What the threads of a process record with: the state that they share, and what each has for itself.
//!
//! Invariants
//! - A thread writes only its own ring. It takes a lock when it meets a call site or a recording for the first time, never for a span.
//! - A span that began in a recording is recorded to its end, even if the recording is stopped meanwhile; not in the next recording.
//! - Between [`Shared::begin`] and the end no two recordings share a ring.
//!
//! Cost: the first event of a thread in a recording allocates its ring; later ones allocate nothing.
//!
//! Does not know: the log, the wire, the form of a dump.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tracing::Metadata;

use super::config::TraceConfig;
use super::event::{Args, ArgsWriter, Head, Kind};
use super::ring::{Ring, Writer};
use super::span::{LiveSpan, SpanTable};

/// Bytes of all rings together, at most; threads for which nothing is left record nothing.
const RINGS_BYTES_MAX: usize = 256 << 20;

/// Threads that have a ring, at most.
const RINGS_MAX: usize = 1024;

/// Call sites that a thread remembers.
const CACHE_ENTRIES: usize = 64;

/// The flow that something belongs to: its own, or that of the span it is in.
fn flow_in(shared: &Shared, args: &ArgsWriter, context: u64) -> u64 {
    match args.flow() {
        0 => shared.spans.get(context).map_or(0, |span| span.flow.load(Relaxed)),
        flow => flow,
    }
}

/// What the log wants of a call site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LogInterest {
    #[default]
    Never,
    Sometimes,
    Always,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Decision {
    pub(super) is_recorded: bool,
    pub(super) log: LogInterest,
}

/// A call site.
#[derive(Clone, Copy)]
struct Callsite {
    metadata: &'static Metadata<'static>,
    log: LogInterest,
}

/// The ring of a thread.
#[derive(Clone)]
pub(super) struct Track {
    pub(super) name: String,
    pub(super) ring: Arc<Ring>,
}

/// The recording that runs, or ran last.
#[derive(Default)]
pub(super) struct Recording {
    pub(super) config: TraceConfig,
    pub(super) tracks: Vec<Track>,
}

/// What all threads share.
pub(super) struct Shared {
    origin: Instant,
    /// The wall clock at the origin, nanoseconds since 1970.
    pub(super) origin_epoch_ns: u64,
    /// Number of the recording that runs, 0 if none does.
    running: AtomicU32,
    /// Number of the last recording.
    session: AtomicU32,
    /// Rises when a decision may have changed.
    epoch: AtomicU32,
    /// Events without a ring, spans without a slot.
    lost: AtomicU64,
    pub(super) spans: SpanTable,
    recording: Mutex<Recording>,
    callsites: Mutex<HashMap<u64, Callsite>>,
}

/// Names a call site in events. The address is compared, never followed.
pub(super) fn callsite_key(metadata: &'static Metadata<'static>) -> u64 {
    std::ptr::from_ref(metadata).addr() as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new() -> Arc<Shared> {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Arc::new(Shared {
            origin: Instant::now(),
            origin_epoch_ns: u64::try_from(epoch.as_nanos()).unwrap_or_default(),
            running: AtomicU32::new(0),
            session: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            lost: AtomicU64::new(0),
            spans: SpanTable::default(),
            recording: Mutex::default(),
            callsites: Mutex::default(),
        })
    }

    /// Now, in nanoseconds since the origin; never 0.
    #[inline]
    pub(super) fn now_ns(&self) -> u64 {
        (self.origin.elapsed().as_nanos() as u64).max(1)
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.load(Relaxed) != 0
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    pub(super) fn recording(&self) -> MutexGuard<'_, Recording> {
        lock(&self.recording)
    }

    /// A recording begins, without anything of the one before.
    pub(super) fn begin(&self, config: TraceConfig) {
        let mut recording = self.recording();
        *recording = Recording { config, tracks: Vec::new() };
        let session = self.session.load(Relaxed).wrapping_add(1).max(1);
        self.lost.store(0, Relaxed);
        self.session.store(session, Release);
        self.running.store(session, Release);
        self.epoch.fetch_add(1, Release);
    }

    /// No span begins any more.
    pub(super) fn end(&self) {
        let _recording = self.recording();
        self.running.store(0, Release);
        self.epoch.fetch_add(1, Release);
    }

    /// Takes note of a call site; says what becomes of its calls.
    pub(super) fn register(&self, metadata: &'static Metadata<'static>, log: LogInterest) -> Decision {
        lock(&self.callsites).insert(callsite_key(metadata), Callsite { metadata, log });
        self.epoch.fetch_add(1, Release);
        Decision { is_recorded: self.records(metadata.target()), log }
    }

    /// Whether calls with this target are recorded now.
    pub(super) fn records(&self, target: &str) -> bool {
        self.is_running() && self.recording().config.records(target)
    }

    /// All call sites, by the key of events.
    pub(super) fn callsites(&self) -> HashMap<u64, &'static Metadata<'static>> {
        lock(&self.callsites).iter().map(|(key, callsite)| (*key, callsite.metadata)).collect()
    }

    /// The call site with this key.
    pub(super) fn callsite(&self, key: u64) -> Option<&'static Metadata<'static>> {
        lock(&self.callsites).get(&key).map(|callsite| callsite.metadata)
    }

    #[cold]
    fn decide(&self, key: u64) -> Decision {
        let callsite = lock(&self.callsites).get(&key).copied();
        callsite.map_or_else(Decision::default, |callsite| Decision {
            is_recorded: self.records(callsite.metadata.target()),
            log: callsite.log,
        })
    }

    /// The calling thread's ring of this recording; `None` if there is no room for one.
    #[cold]
    fn ring(&self, session: u32) -> Option<Writer> {
        let mut recording = self.recording();
        if session != self.session.load(Relaxed) {
            return None;
        }
        let bytes = recording.config.buffer_bytes;
        let in_use: usize = recording.tracks.iter().map(|track| track.ring.bytes()).sum();
        if recording.tracks.len() >= RINGS_MAX || in_use + bytes > RINGS_BYTES_MAX {
            return None;
        }
        let (ring, writer) = Ring::new(bytes, recording.config.mode);
        let name = std::thread::current().name().unwrap_or("unnamed").to_owned();
        recording.tracks.push(Track { name, ring });
        Some(writer)
    }
}

/// The step that a following one may be added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last {
    kind: Kind,
    span: u64,
    at_ns: u64,
}

#[derive(Clone, Copy, Default)]
struct Cached {
    key: u64,
    epoch: u32,
    decision: Decision,
}

/// What one thread records with.
pub(super) struct Thread {
    shared: Arc<Shared>,
    /// The recording of `writer`.
    session: u32,
    writer: Option<Writer>,
    last: Option<Last>,
    /// Spans that are entered, innermost last.
    entered: Vec<u64>,
    /// Slots for spans.
    free: Vec<u32>,
    cache: [Cached; CACHE_ENTRIES],
}

thread_local! {
    static THREAD: RefCell<Option<Thread>> = const { RefCell::new(None) };
}

/// Gives the thread's state to `body`. `None` while the thread ends, and inside of `body`.
#[inline]
pub(super) fn with_thread<T>(shared: &Arc<Shared>, body: impl FnOnce(&mut Thread) -> T) -> Option<T> {
    let done = THREAD.try_with(|state| {
        let mut state = state.try_borrow_mut().ok()?;
        match &mut *state {
            Some(thread) if Arc::ptr_eq(&thread.shared, shared) => Some(body(thread)),
            other => Some(body(other.insert(Thread::new(shared.clone())))),
        }
    });
    done.ok().flatten()
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.spans.leave(self.free.drain(..));
    }
}

impl Thread {
    fn new(shared: Arc<Shared>) -> Thread {
        Thread {
            shared,
            session: 0,
            writer: None,
            last: None,
            entered: Vec::new(),
            free: Vec::new(),
            cache: [Cached::default(); CACHE_ENTRIES],
        }
    }

    /// What becomes of a call of this site.
    #[inline]
    pub(super) fn decide(&mut self, metadata: &'static Metadata<'static>) -> Decision {
        let key = callsite_key(metadata);
        let epoch = self.shared.epoch.load(Acquire);
        let entry = &mut self.cache[(key as usize >> 5) % CACHE_ENTRIES];
        if entry.key != key || entry.epoch != epoch {
            *entry = Cached { key, epoch, decision: self.shared.decide(key) };
        }
        entry.decision
    }

    /// The innermost span that is entered.
    #[inline]
    pub(super) fn current(&self) -> Option<u64> {
        self.entered.last().copied()
    }

    /// A span is made. `args` if it is recorded; `parent` if it says so. `None` if there are too many.
    #[inline]
    pub(super) fn begin(
        &mut self,
        shared: &Shared,
        metadata: &'static Metadata<'static>,
        args: Option<&ArgsWriter>,
        parent: Option<u64>,
        log_id: u64,
    ) -> Option<u64> {
        let Some((id, span)) = shared.spans.take(&mut self.free) else {
            shared.lost.fetch_add(1, Relaxed);
            return None;
        };
        let callsite = callsite_key(metadata);
        span.log_id.store(log_id, Relaxed);
        span.callsite.store(callsite, Relaxed);
        let session = shared.running.load(Acquire);
        let Some(args) = args.filter(|_| session != 0) else {
            span.session.store(0, Relaxed);
            return Some(id);
        };
        let at_ns = shared.now_ns();
        span.session.store(session, Relaxed);
        span.begin_ns.store(at_ns, Relaxed);
        let context = parent.or_else(|| self.current()).unwrap_or(0);
        let flow = flow_in(shared, args, context);
        span.flow.store(flow, Relaxed);
        span.enters.store(0, Relaxed);
        let head = Head { kind: Kind::New, at_ns, span: id, callsite, context, flow };
        self.write_args(session, head, args);
        Some(id)
    }

    /// Values of a span that came later.
    pub(super) fn more(&mut self, id: u64, span: &LiveSpan, args: &ArgsWriter) {
        if args.flow() != 0 {
            span.flow.store(args.flow(), Relaxed);
        }
        if let Some((session, head)) = self.step(id, span, Kind::More) {
            self.write_args(session, head, args);
        }
    }

    /// Something without a duration.
    #[inline]
    pub(super) fn instant(&mut self, metadata: &'static Metadata<'static>, args: &ArgsWriter) {
        let session = self.shared.running.load(Acquire);
        if session == 0 {
            return;
        }
        let context = self.current().unwrap_or(0);
        let at_ns = self.shared.now_ns();
        let callsite = callsite_key(metadata);
        let flow = flow_in(&self.shared, args, context);
        let head = Head { kind: Kind::Instant, at_ns, span: 0, callsite, context, flow };
        self.write_args(session, head, args);
    }

    #[inline]
    pub(super) fn enter(&mut self, id: u64, span: &LiveSpan) {
        self.entered.push(id);
        span.enters.fetch_add(1, Relaxed);
        match self.followed(id, span, Kind::New) {
            Some(_) => self.follow(self.shared.now_ns()),
            None => self.step_alone(id, span, Kind::Enter),
        }
    }

    #[inline]
    pub(super) fn exit(&mut self, id: u64, span: &LiveSpan) {
        if let Some(at) = self.entered.iter().rposition(|entered| *entered == id) {
            self.entered.remove(at);
        }
        self.step_alone(id, span, Kind::Exit);
    }

    /// Nobody holds the span any more.
    #[inline]
    pub(super) fn close(&mut self, shared: &Shared, id: u64, span: &LiveSpan) {
        match self.followed(id, span, Kind::Exit) {
            // A slice ends when it is left; when it was closed is not shown, and the clock is half of the cost.
            Some(last) if span.enters.load(Relaxed) == 1 => self.follow(last.at_ns),
            Some(_) => self.follow(self.shared.now_ns()),
            None => self.step_alone(id, span, Kind::Close),
        }
        shared.spans.free(id, &mut self.free);
    }

    /// The step just recorded, if it is `kind` of this span: the next one goes with it.
    #[inline]
    fn followed(&self, id: u64, span: &LiveSpan, kind: Kind) -> Option<Last> {
        let session = span.session.load(Relaxed);
        let is_current = session == self.session && session == self.shared.session.load(Acquire);
        self.last.filter(|last| is_current && last.kind == kind && last.span == id)
    }

    #[inline]
    fn follow(&mut self, then_ns: u64) {
        if let Some(writer) = &mut self.writer {
            writer.follow(then_ns);
        }
        self.last = None;
    }

    /// Records a step as an event of its own.
    #[inline]
    fn step_alone(&mut self, id: u64, span: &LiveSpan, kind: Kind) {
        if let Some((session, head)) = self.step(id, span, kind) {
            self.write(session, &head, Args::NONE, 0);
        }
    }

    /// The event of a later step of a span; `None` if its recording is over.
    #[inline]
    fn step(&self, id: u64, span: &LiveSpan, kind: Kind) -> Option<(u32, Head)> {
        let session = span.session.load(Relaxed);
        if session == 0 || session != self.shared.session.load(Acquire) {
            return None;
        }
        let head = Head {
            kind,
            at_ns: self.shared.now_ns(),
            span: id,
            callsite: span.callsite.load(Relaxed),
            context: span.begin_ns.load(Relaxed),
            flow: span.flow.load(Relaxed),
        };
        Some((session, head))
    }

    #[inline]
    fn write_args(&mut self, session: u32, head: Head, args: &ArgsWriter) {
        let mut lost = args.lost();
        let mut head = head;
        for (index, block) in args.blocks().enumerate() {
            if index > 0 {
                // As of a later step: it says when the span began, and has the time of the event that it continues.
                let begin_ns = if head.kind == Kind::New { head.at_ns } else { head.context };
                head = Head { kind: Kind::More, context: begin_ns, ..head };
            }
            self.write(session, &head, block, lost);
            lost = 0;
        }
    }

    #[inline]
    fn write(&mut self, session: u32, head: &Head, args: Args<'_>, args_lost: u8) {
        if self.session != session {
            self.writer = self.shared.ring(session);
            self.session = session;
        }
        let written = match &mut self.writer {
            Some(writer) => writer.write(head, args, args_lost),
            None => {
                self.shared.lost.fetch_add(1, Relaxed);
                false
            }
        };
        let is_followed = matches!(head.kind, Kind::New | Kind::Exit);
        self.last =
            (written && is_followed).then_some(Last { kind: head.kind, span: head.span, at_ns: head.at_ns });
    }
}
