//! The wire: bytes to and from typed messages, both directions, for the server and for its clients.
//!
//! Bottom up: [`header`], [`frame`] (a header and its body in a receive buffer), [`framing`] (the flexible
//! framing extras), [`key`], then the typed bodies, and on top [`validate`], the table of what each opcode
//! may carry. [`request`] and [`response`] encode.
//!
//! Invariants
//! - Pure: no clock, no socket, no storage. Decoders borrow from the buffer they read.
//! - Bytes from a peer never panic and never decide how much is allocated.
//!
//! Cost: decoding and encoding a GET or SET allocates nothing beyond the caller's output buffer.
//!
//! Does not know: sockets, connections, documents, users.

pub mod datatype;
pub mod header;
pub mod opcode;
pub mod status;

pub use datatype::Datatype;
pub use header::{HEADER_BYTES, Header, HeaderError, Magic};
pub use opcode::{Opcode, OpcodeKind, ServerOpcode};
pub use status::{Remap, Status};
