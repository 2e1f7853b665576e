//! Ringbase, the server.

pub mod protocol;

pub mod auth;
pub mod config;
pub mod core;

pub mod range_scan;
