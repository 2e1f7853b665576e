//! Atomics for lock-free code: the standard library's, or those of a model checker.
//!
//! `RUSTFLAGS="--cfg loom"` and `--cfg shuttle` put a checker's in their place: loom tries every interleaving of a small test, shuttle random
//! ones of a larger one.
//!
//! Does not know: who shares what.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, fence};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, fence};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, fence};

pub(crate) use std::sync::atomic::Ordering;
