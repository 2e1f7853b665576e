//! Ringbase, the server: a library, and a `main.rs` that only glues. Modules are listed bottom up.
//!
//! Does not know: how a shard lays out its bytes (`ringbase_storage`), who measures it (`ringbench`, `ringctl`).

pub mod protocol;

pub mod auth;
pub mod config;
pub mod core;
