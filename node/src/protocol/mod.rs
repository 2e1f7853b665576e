//! The wire: bytes to and from typed messages, both directions, for the server and for its clients.
//!
//! Bottom up: [`header`], [`frame`] (a header and its body in a receive buffer), [`framing`] (the flexible
//! framing extras), [`key`], then the typed bodies, and on top [`mod@validate`], the table of what each opcode
//! may carry. [`request`] and [`response`] encode. [`dcp`] has the messages of streams.
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

pub mod error_context;

pub mod duration;
pub mod leb128;

pub mod framing;
pub mod key;

pub mod frame;
pub mod request;
pub mod response;

pub mod hello;

pub mod extras;
pub mod with_meta;
pub mod xattr;

pub mod cluster_map;
pub mod error_map;
pub mod range_scan;
pub mod scan_records;
pub mod stat;

pub mod validate;

pub mod compact;
pub mod dcp;
pub mod manifest;
pub mod vbucket;

pub use datatype::Datatype;
pub use error_context::{ErrorContext, Refusal};
pub use frame::{CloseReason, Decoded, Frame, FrameLimits, Incoming, admit, decode_frame};
pub use framing::{RequestFraming, ResponseFraming};
pub use header::{HEADER_BYTES, Header, HeaderError, Magic};
pub use hello::{Feature, Features};
pub use key::{CollectionId, DocumentKey, vbucket_of};
pub use manifest::Manifest;
pub use opcode::{Opcode, OpcodeKind, ServerOpcode};
pub use request::{EncodeError, Request};
pub use response::Response;
pub use status::{Remap, Status};
pub use validate::{ConnectionState, Validated, validate};
