//! Behaviour of the storage engine, one module per subject.
#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod device;
mod inspect;
mod ring;
mod world;
