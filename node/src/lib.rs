//! Ringbase, the server.

pub mod protocol;

pub mod auth;
pub mod core;

pub mod client;
