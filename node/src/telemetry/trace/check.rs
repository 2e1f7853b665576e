//! Replays a dump and says what is not balanced in it.
//!
//! Invariants
//! - Tracks are replayed in the order of their times; events of the same time in the order of the file, as viewers do.
//!
//! Cost: parses the whole dump; for tests and tools.
//!
//! Does not know: how a dump is made; it sees what a viewer sees.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::{Map, Value};

/// An event of a dump.
#[derive(Debug, Clone, Deserialize)]
pub struct TraceEvent {
    /// What it is: `B`, `E`, `b`, `e`, `i`, `s`, `t`, `f`, `M`.
    #[serde(rename = "ph")]
    pub phase: String,
    /// Number of the track.
    pub tid: u64,
    /// When, in microseconds.
    #[serde(default, rename = "ts")]
    pub at_us: f64,
    /// Name of the span or event.
    #[serde(default)]
    pub name: String,
    /// Its category.
    #[serde(default, rename = "cat")]
    pub category: String,
    /// What brings `b` and `e`, or a flow, together.
    #[serde(default)]
    pub id: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Map<String, Value>,
}

impl TraceEvent {
    /// An argument that is a number; large ones are texts in a dump.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        let value = self.args.get(name)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    }
}

/// A thread of a dump.
#[derive(Debug, Clone, Deserialize)]
pub struct TraceThread {
    /// Number of its track.
    pub tid: u64,
    /// Its name.
    pub name: String,
    /// Events in the dump, as recorded.
    pub events: u64,
    /// Events that are not.
    pub dropped: u64,
}

/// What a dump says of itself.
#[derive(Debug, Clone, Deserialize)]
pub struct TraceFacts {
    /// The threads.
    pub threads: Vec<TraceThread>,
    /// Ends without a beginning that were left out.
    pub begins_overwritten: u64,
    /// Spans that were not closed.
    pub open_spans: u64,
}

/// A parsed dump.
#[derive(Debug, Clone, Deserialize)]
pub struct TraceFile {
    /// The events.
    #[serde(rename = "traceEvents")]
    pub events: Vec<TraceEvent>,
    /// What it says of itself.
    #[serde(rename = "otherData")]
    pub facts: TraceFacts,
}

/// What is wrong with a span of a dump.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Imbalance {
    /// It has no end.
    #[error("track {tid}: `{name}` has no end")]
    Unclosed {
        /// Its track.
        tid: u64,
        /// Its name.
        name: String,
    },
    /// It has no beginning, or another span began later and has not ended.
    #[error("track {tid}: the end of `{name}` has no beginning")]
    Unopened {
        /// Its track.
        tid: u64,
        /// Its name.
        name: String,
    },
}

impl TraceFile {
    /// Parses a dump.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(json: &[u8]) -> Result<TraceFile, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// Events that were dropped, all threads.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.facts.threads.iter().map(|thread| thread.dropped).sum()
    }

    /// What is not balanced.
    #[must_use]
    pub fn imbalances(&self) -> Vec<Imbalance> {
        let mut found = Vec::new();
        let mut tracks: BTreeMap<u64, Vec<&TraceEvent>> = BTreeMap::new();
        let mut intervals: HashMap<(&str, &str, &str), Vec<&TraceEvent>> = HashMap::new();
        for event in &self.events {
            match &event.phase[..] {
                "B" | "E" => tracks.entry(event.tid).or_default().push(event),
                "b" | "e" => {
                    intervals.entry((&event.category, &event.name, &event.id)).or_default().push(event);
                }
                _ => {}
            }
        }
        for events in tracks.values_mut() {
            events.sort_by(|one, other| one.at_us.total_cmp(&other.at_us));
            replay(events, &mut found);
        }
        for events in intervals.values_mut() {
            // An end on another track may stand before its beginning in the file, at the same time.
            events.sort_by(|one, other| {
                one.at_us.total_cmp(&other.at_us).then_with(|| one.phase.cmp(&other.phase))
            });
            replay(events, &mut found);
        }
        found
    }
}

fn replay(events: &[&TraceEvent], found: &mut Vec<Imbalance>) {
    let mut open: Vec<&TraceEvent> = Vec::new();
    for event in events {
        if event.phase.eq_ignore_ascii_case("b") {
            open.push(event);
        } else if open.last().is_some_and(|begun| begun.name == event.name) {
            open.pop();
        } else {
            found.push(Imbalance::Unopened { tid: event.tid, name: event.name.clone() });
        }
    }
    let unclosed =
        open.into_iter().map(|event| Imbalance::Unclosed { tid: event.tid, name: event.name.clone() });
    found.extend(unclosed);
}
