//! Who is there: SASL mechanisms for both sides, and the users file.
//!
//! Bottom up: [`mechanism`] (names), [`scram`] (keys and messages of RFC 5802), [`user`] (one user's stored keys),
//! [`users`] (all of them, and their file), [`server`] and [`client`] (the two ends of an exchange).
//!
//! Invariants
//! - No password is stored and none can be read back: the file holds salted, iterated keys.
//! - An unknown user cannot be told from a known one with a wrong password, neither by the messages nor by
//!   the work done; keys are compared in constant time.
//! - Pure but for [`users`], which reads and replaces one file. Randomness comes in as an argument.
//!
//! Cost: an exchange of SCRAM costs the server a few hashes; PLAIN costs it one PBKDF2 run, that is
//! milliseconds of its core ([`user::ITERATIONS_DEFAULT`]).
//!
//! Does not know: connections, frames' headers, what a role may do to a bucket.
//! Source: RFC 5802, RFC 7677, RFC 4616.

pub mod mechanism;
pub mod scram;

pub mod user;
pub mod users;

pub mod client;
pub mod server;

pub use client::{SaslClient, SaslClientError};
pub use mechanism::{MECHANISM_LIST, Mechanism};
pub use server::{Identity, SaslOutcome, SaslServer};
pub use user::{Role, User};
pub use users::{Users, UsersError};
