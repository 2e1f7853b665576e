//! Behaviour of the storage engine, one module per subject.
#![allow(clippy::unwrap_used)]

mod device;
mod ring;
