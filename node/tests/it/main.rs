//! Behaviour of the node, one module per subject.

#![allow(clippy::unwrap_used, reason = "all of this crate is tests, helpers too")]

mod dcp_backfills;
mod dcp_bytes;
mod dcp_client;
mod dcp_client_bytes;
mod dcp_failures;
mod dcp_model;
mod dcp_oso;
mod dcp_slots;
mod dcp_spans;
mod dcp_streams;
mod dcp_time;
mod dcp_vectors;
mod end_to_end;
mod kill_loop;
mod mutated_frames;
mod peer_bytes;
mod process;
mod range_scan;
mod recorded;
mod vectors;
