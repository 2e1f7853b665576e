//! Ringbase, the server.

pub mod protocol;
