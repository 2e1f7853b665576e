//! Buckets: the named data sets of a node, and what a request may do to a document of one.
//!
//! Bottom up: [`expiry`] (when a document ends), [`conflict`] (which of two versions stays), [`settings`] (how a bucket behaves), [`collections`] (which manifest follows which),
//! [`description`] (both as a bucket's text), [`tally`] (what is counted), [`usage`] (the collections on a core, and their counters), [`set`]
//! (which buckets there are), [`states`] (what a vbucket is to clients), [`shared`] (what other cores may look at), [`locks`] (documents that are
//! locked for a while), [`parked`] (requests that wait for a vbucket), [`context`] (a bucket on a core), [`document`] (one key's next version by
//! memcached's rules), [`foreign`] (one that was made elsewhere), `events` (what a vbucket is told of collections), `pager` (expired documents that nobody asks for), `ephemeral` (purging and
//! room in memory), [`engine`] (the shards of one core and their buckets), [`lifecycle`] (buckets come and go on all shards), [`vbuckets`]
//! (vbuckets change their state, come and go).
//!
//! Invariants
//! - Every rule about CAS, expiry, locks and counters is in [`document`]; the wire and its statuses are not.
//! - A document whose expiry has passed is absent to everything here.
//!
//! Does not know: opcodes, statuses, connections, sockets.

pub mod collections;
pub mod conflict;
pub mod description;
pub mod expiry;
pub mod locks;
pub mod parked;
pub mod set;
pub mod settings;
pub mod shared;
pub mod states;
pub mod tally;
pub mod usage;

pub mod context;
pub mod document;
pub mod foreign;

mod ephemeral;
mod events;
mod pager;
mod purger;

pub mod engine;

pub mod lifecycle;
pub mod vbuckets;

pub use collections::{BucketCollections, SuccessorError};
pub use conflict::ConflictResolution;
pub use context::{BucketContext, LocalBucket};
pub use description::BucketConfig;
pub use document::{Document, Failure};
pub use engine::{Engine, EngineError, shard_of};
pub use lifecycle::{BucketChange, ChangeError, Cores, Lifecycle, Step};
pub use set::BucketSet;
pub use settings::{BucketSettings, BucketType, OsoBackfill};
pub use shared::SharedBuckets;
pub use states::{Access, Verdict, verdict};
pub use tally::Tally;
pub use usage::CoreCollections;
pub use vbuckets::{Topology, VbucketChange, VbucketError};
