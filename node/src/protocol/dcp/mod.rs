//! DCP on the wire: a vbucket's mutations as a stream of messages, both ways.
//!
//! A client opens ([`open`]), sets up ([`control`]), asks for streams ([`stream_request`], [`stream_filter`]) and for
//! seqnos ([`vb_seqnos`]). A producer then sends markers ([`snapshot`]), documents ([`document`], straight from storage
//! with [`stored`]), events of collections ([`system_event`]) and signals ([`signal`]), each in its [`envelope`].
//! [`message`] is all that a producer sends as one type, for those who receive it.
//!
//! Invariants
//! - Encoders append to the caller's buffer; per message nothing else is allocated.
//! - What encodes decodes to the same message; malformed bytes are refused with the status that the protocol names.
//!
//! Does not know: connections, streams and their state (`crate::dcp`), storage's blocks, sockets.
//! Source: Couchbase KV protocol, DCP commands; the reference implementation where its texts differ.

pub mod control;
pub mod document;
pub mod envelope;
pub mod open;
pub mod signal;
pub mod snapshot;
pub mod stream_filter;
pub mod stream_request;
pub mod system_event;
pub mod vb_seqnos;

pub mod message;
pub mod stored;

pub use control::{BackfillOrder, Control, OutOfOrderSnapshots, Priority};
pub use document::{Deletion, DeletionForm, Mutation, Outcome, Prepare};
pub use envelope::{Envelope, StreamId};
pub use message::{DcpMessage, flow_control_bytes};
pub use open::{DcpOpen, OpenFlags};
pub use signal::{OsoSnapshot, StreamEndStatus, VbucketState};
pub use snapshot::{MarkerFlags, MarkerVersion, SnapshotMarker};
pub use stored::{DocumentForm, StoredError, ValueForm, append_document, append_stored};
pub use stream_filter::{FilterSelection, ScopeId, StreamFilter};
pub use stream_request::{StreamFlags, StreamReply, StreamRequest};
pub use system_event::{SystemEvent, SystemEventKind};
pub use vb_seqnos::VbSeqnosRequest;

#[cfg(test)]
mod testing {
    use super::super::{Decoded, Frame, FrameLimits, decode_frame};

    /// The one frame that `bytes` are.
    pub(super) fn frame(bytes: &[u8]) -> Frame<'_> {
        match decode_frame(bytes, FrameLimits::AUTHENTICATED) {
            Ok(Decoded::Frame(frame)) if frame.frame_bytes() == bytes.len() => frame,
            other => panic!("{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
