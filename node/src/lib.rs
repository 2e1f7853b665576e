//! Ringbase, the server.

pub mod protocol;

pub mod client;
