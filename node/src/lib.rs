//! Ringbase, the server.

pub mod core;
