//! DCP: where a client must go back to, what a stream carries, how it is read, when a connection must wait.
//!
//! Bottom up, first what is pure: time, history and bytes come in as arguments, decisions come out. [`settings`] is what a connection
//! was told by DCP_OPEN and DCP_CONTROL; [`request`], [`rollback`] and [`failover`] answer a stream request;
//! [`filter`], [`stream_state`] and [`time`] belong to one stream; [`flow_control`] and [`noop`] to one connection.
//!
//! On top of them the two ends of a stream: [`streams`] and `stream` read a vbucket on its core into pieces ([`piece`]), with what
//! [`collections`] and their events let through, by seqno or by key (`oso`), when they have a slot ([`slots`]); [`producer`] is the
//! connection, which decides on its own core which bytes leave next.
//!
//! Seeing: [`time`] accounts for every moment of a stream, `progress` says how far its backfill is, [`flow`] leaves its marks in a trace,
//! [`traced`] adds those of a dump up.
//!
//! Invariants
//! - No client keeps what the server's history cannot have ([`rollback::decide`]).
//! - A stream's state changes only along [`stream_state::StreamState::may_become`].
//!
//! Cost: nothing here allocates per message.
//!
//! Does not know: sockets, mailboxes, which core hosts what, the wire form (`protocol::dcp`).

pub mod failover;
pub mod filter;
pub mod flow_control;
pub mod noop;
pub mod rollback;
pub mod settings;
pub mod stream_state;

pub mod request;

pub mod time;
pub mod traced;

mod fair;
pub mod slots;

pub mod metrics;
mod turns;

pub mod piece;

pub mod collections;
pub mod failures;
pub mod flow;
mod oso;
mod progress;
mod snapshot;
mod stream;
pub mod streams;

mod stats;

pub mod producer;

pub use stats::StreamFacts;
