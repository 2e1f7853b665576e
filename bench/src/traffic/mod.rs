//! A client that keeps the pipelines of its connections full with GETs and SETs, and checks every answer: what to ask for ([`choice`], [`documents`]), one
//! connection ([`channel`]), and threads with many ([`client`]).
//!
//! Does not know: which server it talks to, what is measured.

mod channel;
mod choice;
mod client;
mod documents;

pub(crate) use channel::Target;
pub(crate) use choice::{KeyChoice, Mix};
pub(crate) use client::{Measured, Run, finish, measure};
pub(crate) use documents::{Documents, KEY_BYTES, Operations};
