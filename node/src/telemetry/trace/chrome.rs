//! A dump: what the rings held, as Chrome's trace-event JSON, which Perfetto and `chrome://tracing` load.
//!
//! | recorded                                            | shown                                                                  |
//! |-----------------------------------------------------|------------------------------------------------------------------------|
//! | a span entered once, by one thread, and closed      | `B` and `E` on that thread's track                                     |
//! | any other span: held across awaits, or never entered| `b` and `e` with the span's id, and `B`, `E` each time it was entered  |
//! | an event                                            | `i`                                                                    |
//! | spans and events with the same value of `flow`      | `s`, `t`, `f` from the first to the last                               |
//! | values that came after a span was made              | arguments of its end                                                   |
//!
//! Invariants
//! - On each track `B` and `E` are nested and of equal number for spans that were left. What was overwritten is not invented: an end whose
//!   beginning is gone is left out and counted, but for `b`, as every event of a span says when it began.
//! - Integers above 2^53 are texts: readers of JSON would round them.
//! - `otherData` says for each thread how many events were dropped.
//!
//! Cost: proportional to the events; made by a thread of its own, beside the cores.
//!
//! Does not know: rings, the wire.
//! Source: "Trace Event Format", Google, 2016.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use serde_json::{Map, json};
use tracing::Metadata;

use super::event::{Event, Kind, Value};
use super::ring::RingCopy;

/// The process in a dump.
const PROCESS: u32 = 1;

/// Largest integer that every reader of JSON keeps.
const EXACT_MAX: u64 = 1 << 53;

/// What a thread has recorded.
pub(super) struct TrackCopy {
    pub(super) name: String,
    pub(super) copy: RingCopy,
}

/// A recording, copied.
pub(super) struct Snapshot {
    pub(super) config: String,
    pub(super) origin_epoch_ns: u64,
    pub(super) taken_ns: u64,
    /// Events without a ring, spans without a slot.
    pub(super) lost: u64,
    pub(super) tracks: Vec<TrackCopy>,
    pub(super) callsites: HashMap<u64, &'static Metadata<'static>>,
}

/// One step: an event, or the one that follows in it.
#[derive(Clone, Copy)]
struct Step<'a> {
    kind: Kind,
    at_ns: u64,
    event: &'a Event,
}

fn steps(events: &[Event]) -> impl Iterator<Item = Step<'_>> {
    events.iter().flat_map(|event| {
        let following = match event.head.kind {
            Kind::New => Kind::Enter,
            _ => Kind::Close,
        };
        let first = Step { kind: event.head.kind, at_ns: event.head.at_ns, event };
        let then = event.then_ns.map(|at_ns| Step { kind: following, at_ns, event });
        std::iter::once(first).chain(then)
    })
}

/// What all events of a span say together.
#[derive(Default)]
struct Facts<'a> {
    new: Option<&'a Event>,
    begun: Option<(usize, u64)>,
    /// Values of the beginning that did not fit its event, and later ones.
    more: Vec<&'a Event>,
    enters: Vec<(usize, u64)>,
    exits: Vec<usize>,
    is_closed: bool,
    begin_ns: u64,
    flow: u64,
}

impl Facts<'_> {
    /// Whether it is one piece on one track.
    fn is_slice(&self) -> bool {
        let one_track = self.enters.first().map(|(track, _)| track) == self.exits.first();
        self.new.is_some() && self.enters.len() == 1 && self.exits.len() == 1 && self.is_closed && one_track
    }
}

struct Writer<'a> {
    snapshot: &'a Snapshot,
    spans: HashMap<u64, Facts<'a>>,
    out: String,
    begins_overwritten: u64,
    open: BTreeMap<u64, &'a Event>,
}

/// Writes a snapshot as JSON.
pub(super) fn to_json(snapshot: &Snapshot) -> String {
    let mut writer = Writer {
        snapshot,
        spans: HashMap::new(),
        out: String::from("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n"),
        begins_overwritten: 0,
        open: BTreeMap::new(),
    };
    writer.gather();
    let named =
        json!({"ph": "M", "pid": PROCESS, "tid": 0, "name": "process_name", "args": {"name": "ringbase"}});
    let _ = write!(writer.out, "{named}");
    for (track, copy) in snapshot.tracks.iter().enumerate() {
        let named = json!({"ph": "M", "pid": PROCESS, "tid": tid(track), "name": "thread_name",
            "args": {"name": copy.name}});
        let _ = write!(writer.out, ",\n{named}");
        writer.track(track, &copy.copy.events);
    }
    writer.flows();
    writer.finish()
}

fn tid(track: usize) -> usize {
    track + 1
}

impl<'a> Writer<'a> {
    /// Brings together what belongs to each span, from all threads.
    fn gather(&mut self) {
        for (track, copy) in self.snapshot.tracks.iter().enumerate() {
            for Step { kind, at_ns, event } in steps(&copy.copy.events) {
                if event.head.span == 0 {
                    continue;
                }
                let facts = self.spans.entry(event.head.span).or_default();
                facts.begin_ns =
                    if event.head.kind == Kind::New { event.head.at_ns } else { event.head.context };
                facts.flow = if event.head.flow == 0 { facts.flow } else { event.head.flow };
                match kind {
                    Kind::New => (facts.new, facts.begun) = (Some(event), Some((track, at_ns))),
                    Kind::Enter => facts.enters.push((track, at_ns)),
                    Kind::Exit => facts.exits.push(track),
                    Kind::Close => facts.is_closed = true,
                    Kind::More => facts.more.push(event),
                    Kind::Instant => {}
                }
            }
        }
    }

    fn callsite(&self, event: &Event) -> Option<&'static Metadata<'static>> {
        self.snapshot.callsites.get(&event.head.callsite).copied()
    }

    fn track(&mut self, track: usize, events: &'a [Event]) {
        let mut stack: Vec<&'a Event> = Vec::new();
        let mut instant: Vec<&'a Event> = Vec::new();
        for step in steps(events) {
            let event = step.event;
            if event.head.span == 0 {
                if step.kind == Kind::Instant {
                    self.instant(track, &std::mem::take(&mut instant));
                    instant.push(event);
                } else if !instant.is_empty() {
                    instant.push(event);
                }
                continue;
            }
            self.instant(track, &std::mem::take(&mut instant));
            match step.kind {
                Kind::New => self.open_interval(track, event),
                Kind::Enter => {
                    self.begin_slice(track, step);
                    stack.push(event);
                }
                Kind::Exit => self.end_slice(track, step, &mut stack),
                Kind::Close => self.close_interval(track, step),
                Kind::More | Kind::Instant => {}
            }
        }
        self.instant(track, &instant);
        // What is entered now, in spans that are still open.
        for event in stack {
            self.open.insert(event.head.span, event);
        }
    }

    /// The arguments that a span had from the beginning, in one event or several of the same time; or those that came later.
    fn args(&self, event: &Event, at_end: bool) -> Map<String, serde_json::Value> {
        let mut args = Map::new();
        let Some(facts) = self.spans.get(&event.head.span) else { return args };
        let begun_ns = facts.new.map(|event| event.head.at_ns);
        let first = facts.new.into_iter().filter(|_| !at_end);
        let more = facts.more.iter().copied();
        for event in first.chain(more.filter(|more| (begun_ns != Some(more.head.at_ns)) == at_end)) {
            self.add_args(event, &mut args);
        }
        if !at_end && facts.new.is_none() {
            args.insert("begin_overwritten".to_owned(), true.into());
        }
        args
    }

    fn add_args(&self, event: &Event, args: &mut Map<String, serde_json::Value>) {
        let Some(metadata) = self.callsite(event) else { return };
        for (index, value) in event.args() {
            let name = metadata.fields().iter().nth(index).map_or("?", |field| field.name());
            args.insert(name.to_owned(), shown(value));
        }
        if event.args_lost > 0 {
            args.insert("args_lost".to_owned(), event.args_lost.into());
        }
    }

    fn open_interval(&mut self, track: usize, event: &'a Event) {
        if self.spans.get(&event.head.span).is_some_and(Facts::is_slice) {
            return;
        }
        let mut args = self.args(event, false);
        if event.head.context != 0 {
            args.insert("parent".to_owned(), format!("{:#x}", event.head.context).into());
        }
        self.emit("b", track, event.head.at_ns, event, Some(args));
        if self.spans.get(&event.head.span).is_some_and(|facts| !facts.is_closed) {
            self.open.insert(event.head.span, event);
        }
    }

    fn close_interval(&mut self, track: usize, step: Step<'a>) {
        let Some(facts) = self.spans.get(&step.event.head.span) else { return };
        if facts.is_slice() {
            return;
        }
        if facts.new.is_none() {
            let begin_ns = facts.begin_ns;
            self.begins_overwritten += 1;
            let args = self.args(step.event, false);
            self.emit("b", track, begin_ns, step.event, Some(args));
        }
        let args = self.args(step.event, true);
        self.emit("e", track, step.at_ns, step.event, Some(args));
    }

    fn begin_slice(&mut self, track: usize, step: Step<'a>) {
        let is_slice = self.spans.get(&step.event.head.span).is_some_and(Facts::is_slice);
        let args = is_slice.then(|| self.args(step.event, false));
        self.emit("B", track, step.at_ns, step.event, args);
    }

    /// Ends the innermost slice of a span. Those above it, left in another order than they were entered, are begun again.
    fn end_slice(&mut self, track: usize, step: Step<'a>, stack: &mut Vec<&'a Event>) {
        let span = step.event.head.span;
        let Some(at) = stack.iter().rposition(|entered| entered.head.span == span) else {
            self.begins_overwritten += 1;
            return;
        };
        let above: Vec<&Event> = stack.drain(at..).skip(1).collect();
        for event in above.iter().rev() {
            self.emit("E", track, step.at_ns, event, None);
        }
        let is_slice = self.spans.get(&span).is_some_and(Facts::is_slice);
        let args = is_slice.then(|| self.args(step.event, true));
        self.emit("E", track, step.at_ns, step.event, args);
        for event in above {
            self.emit("B", track, step.at_ns, event, None);
            stack.push(event);
        }
    }

    fn instant(&mut self, track: usize, events: &[&'a Event]) {
        let Some(first) = events.first() else { return };
        let mut args = Map::new();
        for event in events {
            self.add_args(event, &mut args);
        }
        self.emit("i", track, first.head.at_ns, first, Some(args));
    }

    /// Arrows along each flow: from where its spans were first entered, or begun if they never were, and from its events.
    fn flows(&mut self) {
        let mut flows: BTreeMap<u64, Vec<(u64, usize)>> = BTreeMap::new();
        for facts in self.spans.values().filter(|facts| facts.flow != 0) {
            let first = facts.enters.iter().min_by_key(|(_, at_ns)| *at_ns).or(facts.begun.as_ref());
            flows.entry(facts.flow).or_default().extend(first.map(|(track, at_ns)| (*at_ns, *track)));
        }
        for (track, copy) in self.snapshot.tracks.iter().enumerate() {
            let instants = copy.copy.events.iter().filter(|event| event.head.kind == Kind::Instant);
            for event in instants.filter(|event| event.head.flow != 0) {
                flows.entry(event.head.flow).or_default().push((event.head.at_ns, track));
            }
        }
        for (flow, mut points) in flows.into_iter().filter(|(_, points)| points.len() > 1) {
            points.sort_unstable();
            let last = points.len() - 1;
            for (index, (at_ns, track)) in points.into_iter().enumerate() {
                let phase = if index == 0 { "s" } else { "t" };
                let phase = if index == last { "f" } else { phase };
                let _ = write!(
                    self.out,
                    ",\n{{\"ph\":\"{phase}\",\"bp\":\"e\",\"pid\":{PROCESS},\"tid\":{},\"ts\":{},\"cat\":\"flow\",\"name\":\"flow\",\"id\":\"{flow:#x}\"}}",
                    tid(track),
                    Micros(at_ns)
                );
            }
        }
    }

    fn emit(
        &mut self,
        phase: &str,
        track: usize,
        at_ns: u64,
        event: &Event,
        args: Option<Map<String, serde_json::Value>>,
    ) {
        let (name, target) = self.callsite(event).map_or(("?", "?"), |found| (found.name(), found.target()));
        let (name, target) = (json!(name), json!(target));
        let out = &mut self.out;
        let _ = write!(
            out,
            ",\n{{\"ph\":\"{phase}\",\"pid\":{PROCESS},\"tid\":{},\"ts\":{},\"cat\":{target},\"name\":{name}",
            tid(track),
            Micros(at_ns)
        );
        let _ = match phase {
            "b" | "e" => write!(out, ",\"id\":\"{:#x}\"", event.head.span),
            "i" => write!(out, ",\"s\":\"t\""),
            _ => Ok(()),
        };
        if let Some(args) = args.filter(|args| !args.is_empty()) {
            let _ = write!(out, ",\"args\":{}", serde_json::Value::Object(args));
        }
        out.push('}');
    }

    fn finish(mut self) -> String {
        let tracks = self.snapshot.tracks.iter().enumerate();
        let threads = tracks.map(|(track, TrackCopy { name, copy })| {
            json!({"tid": tid(track), "name": name, "events": copy.events.len(), "dropped": copy.dropped})
        });
        let threads: Vec<_> = threads.collect();
        let other = json!({
            "config": self.snapshot.config,
            "origin_epoch_ns": self.snapshot.origin_epoch_ns.to_string(),
            "taken_ns": self.snapshot.taken_ns.to_string(),
            "threads": threads,
            "lost_without_ring": self.snapshot.lost,
            "begins_overwritten": self.begins_overwritten,
            "open_spans": self.open.len(),
        });
        let _ = write!(self.out, "\n],\"otherData\":{other}}}");
        self.out
    }
}

/// Microseconds with three decimals: nanoseconds, exactly.
struct Micros(u64);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

fn shown(value: Value) -> serde_json::Value {
    match value {
        Value::U64(number) if number > EXACT_MAX => number.to_string().into(),
        Value::U64(number) => number.into(),
        Value::I64(number) if number.unsigned_abs() > EXACT_MAX => number.to_string().into(),
        Value::I64(number) => number.into(),
        Value::F64(number) => json!(number),
        Value::Bool(is) => is.into(),
        Value::Text { text, is_cut } => (if is_cut { text + "…" } else { text }).into(),
    }
}
