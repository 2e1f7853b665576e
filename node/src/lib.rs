//! Ringbase, the server.

pub mod protocol;
pub mod telemetry;

pub mod auth;
pub mod config;
pub mod core;
pub mod directory;
