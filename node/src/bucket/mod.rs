//! Buckets: the named data sets of a node, and what a request may do to a document of one.
//!
//! Bottom up: [`expiry`] (when a document ends), [`settings`] (what a bucket's text says), [`tally`] (what is counted),
//! [`document`] (one key's next version by memcached's rules), [`engine`] (the shards of one core and their buckets).
//!
//! Invariants
//! - Every rule about CAS, expiry and counters is in [`document`]; the wire and its statuses are not.
//! - A document whose expiry has passed is absent to everything here.
//!
//! Does not know: opcodes, statuses, connections, sockets.

pub mod expiry;
pub mod settings;
pub mod tally;

pub mod document;
pub mod engine;

pub use document::{Document, Failure};
pub use engine::{Engine, EngineError, LocalBucket, shard_of};
pub use settings::BucketSettings;
pub use tally::Tally;
