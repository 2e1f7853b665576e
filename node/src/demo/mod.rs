//! `ringbase demo`: a node of its own, real documents, scans, a kill -9, the same scan again.
//!
//! The demonstration talks to the node over TCP as any client does; the node is another process, started from the same binary.
//! Bottom up: the scratch directory, `node_process`, the default documents, what was seen (`census`), `histograms`,
//! `show`; `run`(mod@run) is the story.
//!
//! Invariants
//! - A mismatch anywhere is an error with a sentence, never a line among others.
//! - Node and scratch directory are gone at the end, whatever happened, unless asked to stay.
//!
//! Does not know: the server's insides.

mod census;
mod documents;
mod error;
mod histograms;
mod interrupt;
mod node_process;
mod run;
mod scratch;
mod show;

pub use error::DemoError;
pub use run::{DemoArgs, run};
