//! The binary, end to end: a real node in a process of its own, real sockets, real files.

pub(crate) mod rig;

mod bootstrap;
mod collections;
mod collections_dcp;
mod consumer;
mod data;
mod dcp;
mod dcp_state;
mod dcp_tracing;
mod durability;
mod ephemeral;
mod locks;
mod malformed;
mod purging;
mod refusals;
mod resources;
mod scans;
mod seqnos;
mod tracing;
mod vbuckets;
mod xattrs;
