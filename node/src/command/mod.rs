//! Commands: what a request does, one file a family. Only here do errors become statuses.
//!
//! A connection's core gives each frame to [`Session::accept`], which answers everything that needs no vbucket and says
//! where the rest belongs. A data command runs on the core that owns its vbucket ([`execute`]): at once if memory knows
//! the key, else when the disk has answered. Statistics are gathered from every core ([`stat`]).
//!
//! Bottom up: [`catalog`] (what all cores know of the node), [`request`], [`respond`], [`session`], the families
//! `connection`, `sasl`, `cluster`, `collections`, `data`, `seqnos`, [`stat`], `bucket`, `vbucket`, `param`, `ioctl`, and `accept` above them.
//!
//! Invariants
//! - A frame is appended to the output whole or not at all.
//! - What a request may see of its connection on another core is a [`SessionView`], a copy.
//! - No borrow of a session or an engine lives across an await.
//!
//! Does not know: sockets, mailboxes, which core hosts what, range scans' contents.

pub mod catalog;
pub mod request;
pub mod respond;
pub mod session;

mod accept;
mod bucket;
mod cluster;
mod collections;
mod connection;
mod data;
mod ioctl;
mod param;
mod sasl;
mod seqnos;
pub mod stat;
mod vbucket;

#[cfg(test)]
mod expired;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vbucket_tests;

pub use accept::{Closing, Next, access_of, must_run_alone};
pub use bucket::BucketJob;
pub use catalog::{Catalog, CatalogBucket, CatalogOptions};
pub(crate) use collections::unknown as unknown_collection;
pub use data::{Outcome, Reply, execute, look};
pub use ioctl::{CHUNK_BYTES, TraceDumpJob};
pub use param::ParamChange;
pub use request::Request;
pub use respond::Responder;
pub use seqnos::{AskedSeqnos, VbSeqnos, VbSeqnosJob, vb_seqnos};
pub use session::{ConnectionId, Session, SessionView};
pub use stat::{StatJob, StatPart, StatQuery, StatSource};
pub use vbucket::VbucketJob;
