//! The blocking client: what tools, benchmarks and the demo talk to a node with.
//!
//! Bottom up: [`error`], the receive buffer, [`connection`] (one thing at a time), [`operations`], [`buckets`], [`vbuckets`], [`pipeline`] (many
//! things at a time), [`records`] and [`scan`] (range scans), [`scan_queue`] (one
//! after the other without a pause), [`mod@scan_all`] (all vbuckets over several connections), [`dcp`] (streams), [`source`] and
//! [`mod@load`] (documents from files into a node).
//!
//! Invariants
//! - Of this crate only `protocol` and `auth::client` are used: what works with this client works over the wire.
//! - Blocking `std::net` on ordinary threads; no executor.
//! - What a node sends is never trusted: every length is bounded, every wait ends.
//!
//! Does not know: server internals, command lines.

pub mod error;

mod receive;

pub mod connection;
mod sasl;

pub mod buckets;
pub mod operations;
pub mod pipeline;
mod trace;
pub mod vbuckets;

pub mod records;
pub mod scan;
pub mod scan_queue;

pub mod scan_all;

mod collections;
pub mod dcp;

pub mod generate;
mod lines;
pub mod source;

pub mod load;

pub use buckets::NO_BUCKET;
pub use connection::{ConnectOptions, Connection, Credentials, DEFAULT_ADDRESS, DEFAULT_BUCKET};
pub use dcp::{DcpClient, DcpOptions};
pub use error::ClientError;
pub use generate::Generator;
pub use load::{LoadError, LoadOptions, LoadProgress, LoadReport, load};
pub use operations::{Brought, Bucket, Document, DocumentMeta, Mutated, StoreMode};
pub use pipeline::{Completion, Pipeline, PipelineOptions};
pub use records::{RecordCounts, ScanRecord};
pub use scan::{ContinueLimits, Scan, ScanCounts, ScanState};
pub use scan_all::{ConnectionScan, ScanAllOptions, ScanReport, scan_all};
pub use scan_queue::{ScanPlan, scan_vbucket, scan_vbuckets};
pub use source::{Source, SourceForm};

#[cfg(test)]
mod fake_server;

#[cfg(test)]
mod conversation_tests;
