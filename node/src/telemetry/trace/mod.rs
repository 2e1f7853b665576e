//! Tracing: what happened when, on which thread, for how long.
//!
//! Instrumented sites are plain `tracing` spans and events; the target of a call is its category. While a recording runs, the calls of its
//! categories are kept in a ring of each thread; a dump is JSON for Perfetto.
//!
//! Bottom up: `event`, `config`, `ring` (one thread's events), `span` (who is alive), `recorder` (what threads record with), `chrome` (dumps),
//! [`check`] (replays them), `control` (start, stop, dump), `layer` (the subscriber, in front of the log).
//!
//! A site's conventions: `flow = id` links what belongs together, on any thread, and what is inside it; values that are known later are fields declared as
//! `tracing::field::Empty`; a span that is held across awaits goes with its future (`Instrument`), others are entered.
//!
//! Does not know: which spans there are, the wire.

pub mod check;

mod chrome;
mod config;
mod control;
mod event;
mod layer;
mod recorder;
mod ring;
mod span;

#[cfg(test)]
mod tests;

pub use config::{BUFFER_BYTES_DEFAULT, BUFFER_BYTES_MAX, BufferMode, TraceConfig, TraceConfigError};
pub use control::{DUMPS_MAX, DumpError, DumpState, TraceControl, TraceDump, TraceStatus, TrackStatus};
pub use event::EVENT_BYTES;
pub use layer::TraceSubscriber;
pub use span::SPANS_MAX;
