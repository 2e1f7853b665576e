//! Ringbase, the server: a key-value storage node for bare-metal Linux.
//!
//! One pinned thread per core runs everything of that core: connections ([`net`]), commands, range scans, and the shards of the
//! storage engine. Cores talk by message ([`core::mailbox`]). [`server`] starts and stops it all.
//!
//! Bottom up: [`protocol`] (bytes to messages, pure), [`telemetry`], [`auth`], [`config`], [`directory`], [`core`] (the
//! runtime, only home of the executor), [`net`], [`dcp`] (the decisions of streams), [`range_scan`], [`bucket`],
//! [`command`], [`service`] (where they meet), [`server`]; beside them [`client`], which knows only the protocol,
//! and [`demo`], which uses nothing but the client and a node in another process.
//!
//! Does not know: how a shard lays out its bytes (`ringbase_storage`), who measures the node (`ringbench`, `ringctl`).

pub mod protocol;
pub mod telemetry;

pub mod auth;
pub mod check;
pub mod config;
pub mod core;
pub mod directory;

pub mod net;

pub mod dcp;
pub mod range_scan;

pub mod bucket;
pub mod command;
pub mod service;

pub mod server;

pub mod client;

pub mod demo;
