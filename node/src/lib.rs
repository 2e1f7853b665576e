//! Ringbase, the server.

pub mod protocol;

pub mod auth;

pub mod bucket;

pub mod command;
