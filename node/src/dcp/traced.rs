//! Where the time of streams went, from a dump of the trace alone (T1.13).
//!
//! The marks of [`super::flow`] are all that is needed: a stream's waits and polls follow each other from its beginning to its end, or to
//! the end of the recording; each lasts until the next begins. What is missing between them, because a ring was overwritten, is not
//! invented: the sums say how much of the wall time they explain.
//!
//! Cost: proportional to the dump.
//! Does not know: how a dump is made, who asks.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::time::Spent;
use crate::telemetry::trace::check::{TraceEvent, TraceFile};

/// What a dump tells about one stream.
#[derive(Debug, Clone, Default)]
pub struct TracedStream {
    /// Its number: the flow of all its marks.
    pub number: u64,
    /// Its vbucket.
    pub vb: u16,
    /// The name of its connection.
    pub connection: String,
    /// Nanoseconds from its first mark on its core to the last.
    pub wall_ns: u64,
    /// Nanoseconds by what they were spent on.
    pub spent_ns: [u64; Spent::ALL.len()],
    /// Reads of the device, and nanoseconds from each one's submission to its completion, added up: they overlap.
    pub reads: (u64, u64),
    /// Bytes in pieces that were handed to its connection, that the kernel took, that the client gave back.
    pub queued_bytes: u64,
    /// See above.
    pub written_bytes: u64,
    /// See above.
    pub acked_bytes: u64,
    /// Whether its wait goes on at the end of the dump.
    pub is_waiting: bool,
}

/// A wait or a poll of a stream.
struct Interval<'a> {
    what: Option<Spent>,
    begin_ns: u64,
    end_ns: u64,
    begin: &'a TraceEvent,
    end: Option<&'a TraceEvent>,
}

/// What is known of a stream on the way through a dump.
#[derive(Default)]
struct Found<'a> {
    stream: TracedStream,
    intervals: Vec<Interval<'a>>,
}

/// The streams of a dump by their numbers.
#[must_use]
pub fn streams(file: &TraceFile) -> Vec<TracedStream> {
    let mut found: BTreeMap<u64, Found<'_>> = BTreeMap::new();
    let ends = file.events.iter().filter(|event| event.phase == "e").map(|end| ((&*end.name, &*end.id), end));
    let ends: HashMap<(&str, &str), &TraceEvent> = ends.collect();
    let last_ns = file.events.iter().map(at_ns).max().unwrap_or_default();
    let begins = file.events.iter().filter(|event| event.phase == "b");
    let flows: HashMap<&str, u64> =
        begins.filter_map(|event| Some((&*event.id, event.number("flow")?))).collect();
    let mut polls: HashMap<u64, Vec<&TraceEvent>> = HashMap::new();
    for event in &file.events {
        match (&*event.phase, &*event.name) {
            ("b", "dcp_wait") => {
                let Some(flow) = event.number("flow") else { continue };
                let end = ends.get(&("dcp_wait", &*event.id)).copied();
                let what = event.args.get("what").and_then(Value::as_str).and_then(Spent::of_name);
                let (begin_ns, end_ns) = (at_ns(event), end.map_or(last_ns, at_ns));
                let found = found.entry(flow).or_default();
                found.stream.is_waiting |= end.is_none();
                found.intervals.push(Interval { what, begin_ns, end_ns, begin: event, end });
            }
            ("b", "device_read") => {
                let parent = event.args.get("parent").and_then(Value::as_str);
                let Some(flow) = parent.and_then(|parent| flows.get(parent)) else { continue };
                let end_ns = ends.get(&("device_read", &*event.id)).copied().map_or(last_ns, at_ns);
                let reads = &mut found.entry(*flow).or_default().stream.reads;
                *reads = (reads.0 + 1, reads.1 + end_ns.saturating_sub(at_ns(event)));
            }
            ("B", "dcp_poll") => polls.entry(event.tid).or_default().push(event),
            ("E", "dcp_poll") => {
                let Some(begin) = polls.entry(event.tid).or_default().pop() else { continue };
                let Some(flow) = begin.number("flow") else { continue };
                let (what, begin_ns, end_ns) = (Some(Spent::Running), at_ns(begin), at_ns(event));
                let intervals = &mut found.entry(flow).or_default().intervals;
                intervals.push(Interval { what, begin_ns, end_ns, begin, end: None });
            }
            ("i", "dcp_piece_queued") => count(&mut found, event, |stream| &mut stream.queued_bytes),
            ("i", "dcp_piece_written") => count(&mut found, event, |stream| &mut stream.written_bytes),
            ("i", "dcp_acked") => count(&mut found, event, |stream| &mut stream.acked_bytes),
            _ => {}
        }
    }
    let known = found.into_iter().filter(|(_, found)| !found.intervals.is_empty());
    known.map(|(number, found)| TracedStream { number, ..found.added_up() }).collect()
}

impl Found<'_> {
    fn added_up(mut self) -> TracedStream {
        self.intervals.sort_by_key(|interval| interval.begin_ns);
        let mut stream = self.stream;
        let mut next = self.intervals.iter().skip(1).map(|interval| interval.begin_ns);
        for interval in &self.intervals {
            let end_ns = next.next().map_or(interval.end_ns, |next| next.min(interval.end_ns));
            let whole = end_ns.saturating_sub(interval.begin_ns);
            let said = |name| interval.end.and_then(|end| end.number(name)).unwrap_or_default();
            let window = said("window_ns").min(whole);
            let socket = said("socket_ns").min(whole - window);
            stream.spent_ns[Spent::Window as usize] += window;
            stream.spent_ns[Spent::Socket as usize] += socket;
            if let Some(what) = interval.what {
                stream.spent_ns[what as usize] += whole - window - socket;
            }
        }
        if let (Some(first), Some(last)) = (self.intervals.first(), self.intervals.last()) {
            let begin = first.begin;
            stream.vb = begin.number("vb").and_then(|vb| u16::try_from(vb).ok()).unwrap_or_default();
            stream.connection = begin.args.get("conn").and_then(Value::as_str).unwrap_or("?").to_owned();
            stream.wall_ns = last.end_ns.saturating_sub(first.begin_ns);
        }
        stream
    }
}

fn count(found: &mut BTreeMap<u64, Found<'_>>, event: &TraceEvent, field: fn(&mut TracedStream) -> &mut u64) {
    if let Some(flow) = event.number("flow") {
        *field(&mut found.entry(flow).or_default().stream) += event.number("bytes").unwrap_or_default();
    }
}

fn at_ns(event: &TraceEvent) -> u64 {
    (event.at_us * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dump(events: Value) -> TraceFile {
        let facts = json!({"threads": [], "begins_overwritten": 0, "open_spans": 1});
        TraceFile::parse(json!({"traceEvents": events, "otherData": facts}).to_string().as_bytes()).unwrap()
    }

    /// A stream that was polled twice, read once and waits; beside it one of which only a piece is known.
    #[test]
    fn waits_polls_reads_and_bytes_are_added_up_by_stream() {
        let flow = (1_u64 << 60).to_string();
        let args = |more: Value| {
            let mut args = json!({"flow": flow, "vb": 3, "conn": "a:b"});
            args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            args
        };
        let file = dump(json!([
            {"ph": "b", "tid": 1, "ts": 10.0, "name": "dcp_wait", "id": "0x1", "args": args(json!({"what": "slot"}))},
            {"ph": "e", "tid": 1, "ts": 21.0, "name": "dcp_wait", "id": "0x1", "args": {}},
            {"ph": "B", "tid": 1, "ts": 20.0, "name": "dcp_poll", "args": args(json!({}))},
            {"ph": "b", "tid": 1, "ts": 21.0, "name": "run", "id": "0x2", "args": args(json!({}))},
            {"ph": "b", "tid": 1, "ts": 22.0, "name": "device_read", "id": "0x3", "args": {"parent": "0x2"}},
            {"ph": "E", "tid": 1, "ts": 25.5, "name": "dcp_poll"},
            {"ph": "b", "tid": 1, "ts": 25.0, "name": "dcp_wait", "id": "0x4", "args": args(json!({"what": "credit"}))},
            {"ph": "e", "tid": 2, "ts": 40.0, "name": "device_read", "id": "0x3", "args": {}},
            {"ph": "e", "tid": 1, "ts": 65.0, "name": "dcp_wait", "id": "0x4",
                "args": {"window_ns": 20_000, "socket_ns": 15_000}},
            {"ph": "i", "tid": 2, "ts": 66.0, "name": "dcp_piece_queued", "args": {"flow": flow, "bytes": 70}},
            {"ph": "i", "tid": 2, "ts": 67.0, "name": "dcp_piece_written", "args": {"flow": flow, "bytes": 60}},
            {"ph": "i", "tid": 2, "ts": 68.0, "name": "dcp_acked", "args": {"flow": flow, "bytes": 50}},
            {"ph": "i", "tid": 2, "ts": 69.0, "name": "dcp_acked", "args": {"flow": 9, "bytes": 50}},
            {"ph": "b", "tid": 1, "ts": 65.0, "name": "dcp_wait", "id": "0x5", "args": args(json!({"what": "up_to_date"}))},
        ]));
        let streams = streams(&file);
        assert_eq!(streams.len(), 1);
        let stream = &streams[0];
        assert_eq!((stream.number, stream.vb, stream.connection.as_str()), (1 << 60, 3, "a:b"));
        let spent = |what: Spent| stream.spent_ns[what as usize];
        assert_eq!((spent(Spent::Slot), spent(Spent::Running)), (10_000, 5_000));
        assert_eq!(
            (spent(Spent::Window), spent(Spent::Socket), spent(Spent::Credit)),
            (20_000, 15_000, 5_000)
        );
        assert_eq!((spent(Spent::UpToDate), stream.is_waiting), (4_000, true));
        assert_eq!(stream.spent_ns.iter().sum::<u64>(), stream.wall_ns);
        assert_eq!(stream.reads, (1, 18_000));
        assert_eq!((stream.queued_bytes, stream.written_bytes, stream.acked_bytes), (70, 60, 50));
    }
}
