//! Everything a producer sends, as one borrowed type; and what a message weighs in flow control.
//!
//! Used by clients, tools and tests; a producer encodes the parts directly.
//!
//! Invariants
//! - What encodes decodes to the same message.
//! - [`flow_control_bytes`] is what a producer adds to its outstanding bytes for the frame.
//!
//! Cost: decoding borrows from the frame, encoding appends to the caller's buffer.
//!
//! Does not know: streams, windows, who is connected.

use ringbase_storage::types::Seqno;

use super::super::error_context::Refusal;
use super::super::{Frame, Opcode, Status};
use super::document::{Deletion, Mutation, Outcome, Prepare};
use super::envelope::{Envelope, only_extras};
use super::signal::{
    OsoSnapshot, StreamEndStatus, VbucketState, decode_only_seqno, decode_oso_snapshot,
    decode_set_vbucket_state, decode_stream_end, encode_noop, encode_oso_snapshot, encode_seqno_advanced,
    encode_set_vbucket_state, encode_stream_end,
};
use super::snapshot::SnapshotMarker;
use super::system_event::SystemEvent;

/// One message of a producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DcpMessage<'a> {
    /// The stream is over.
    StreamEnd(StreamEndStatus),
    /// A snapshot begins.
    SnapshotMarker(SnapshotMarker),
    /// A version of a document.
    Mutation(Mutation<'a>),
    /// A document was deleted or expired.
    Deletion(Deletion<'a>),
    /// A durable write begins.
    Prepare(Prepare<'a>),
    /// A durable write was committed or aborted.
    Outcome(Outcome<'a>),
    /// Collections and scopes.
    SystemEvent(SystemEvent<'a>),
    /// Nothing up to here is left to send.
    SeqnoAdvanced(Seqno),
    /// Beginning or end of a snapshot in key order.
    OsoSnapshot(OsoSnapshot),
    /// The client's vbucket shall become this.
    SetVbucketState(VbucketState),
    /// Is the client still there?
    Noop,
}

impl<'a> DcpMessage<'a> {
    /// Decodes a frame that a producer sent.
    ///
    /// # Errors
    /// EINVAL for what is malformed, NOT_SUPPORTED for cache transfer and FlatBuffers events, UNKNOWN_COMMAND for
    /// every opcode that no producer sends.
    pub fn decode(frame: &Frame<'a>) -> Result<(Envelope, DcpMessage<'a>), Refusal> {
        let message = match frame.opcode() {
            Opcode::DCP_STREAM_END => DcpMessage::StreamEnd(decode_stream_end(frame)?),
            Opcode::DCP_SNAPSHOT_MARKER => DcpMessage::SnapshotMarker(SnapshotMarker::decode(frame)?),
            Opcode::DCP_MUTATION => DcpMessage::Mutation(Mutation::decode(frame)?),
            Opcode::DCP_DELETION | Opcode::DCP_EXPIRATION => DcpMessage::Deletion(Deletion::decode(frame)?),
            Opcode::DCP_PREPARE => DcpMessage::Prepare(Prepare::decode(frame)?),
            Opcode::DCP_COMMIT | Opcode::DCP_ABORT => DcpMessage::Outcome(Outcome::decode(frame)?),
            Opcode::DCP_SYSTEM_EVENT => DcpMessage::SystemEvent(SystemEvent::decode(frame)?),
            Opcode::DCP_SEQNO_ADVANCED => DcpMessage::SeqnoAdvanced(decode_only_seqno(frame)?),
            Opcode::DCP_OSO_SNAPSHOT => DcpMessage::OsoSnapshot(decode_oso_snapshot(frame)?),
            Opcode::DCP_SET_VBUCKET_STATE => DcpMessage::SetVbucketState(decode_set_vbucket_state(frame)?),
            Opcode::DCP_NOOP => {
                only_extras(frame)?;
                DcpMessage::Noop
            }
            Opcode::DCP_CACHE_TRANSFER | Opcode::DCP_CACHE_TRANSFER_END => {
                return Err(Refusal::new(Status::NOT_SUPPORTED, "Cache transfer is not supported"));
            }
            _ => return Err(Refusal::new(Status::UNKNOWN_COMMAND, "No message of a DCP producer")),
        };
        Ok((Envelope::of(frame)?, message))
    }

    /// Appends the message to `out`.
    ///
    /// # Panics
    /// As [`Mutation::encode`].
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        match self {
            DcpMessage::StreamEnd(status) => encode_stream_end(*status, envelope, out),
            DcpMessage::SnapshotMarker(marker) => marker.encode(envelope, out),
            DcpMessage::Mutation(mutation) => mutation.encode(envelope, out),
            DcpMessage::Deletion(deletion) => deletion.encode(envelope, out),
            DcpMessage::Prepare(prepare) => prepare.encode(envelope, out),
            DcpMessage::Outcome(outcome) => outcome.encode(envelope, out),
            DcpMessage::SystemEvent(event) => event.encode(envelope, out),
            DcpMessage::SeqnoAdvanced(seqno) => encode_seqno_advanced(*seqno, envelope, out),
            DcpMessage::OsoSnapshot(edge) => encode_oso_snapshot(*edge, envelope, out),
            DcpMessage::SetVbucketState(state) => encode_set_vbucket_state(*state, envelope, out),
            DcpMessage::Noop => encode_noop(envelope.opaque, out),
        }
    }

    /// The place in the vbucket that the message brings the client to; markers and signals have none.
    #[must_use]
    pub fn by_seqno(&self) -> Option<Seqno> {
        match self {
            DcpMessage::Mutation(mutation) => Some(mutation.by_seqno),
            DcpMessage::Deletion(deletion) => Some(deletion.by_seqno),
            DcpMessage::Prepare(prepare) => Some(prepare.by_seqno),
            DcpMessage::Outcome(outcome) => Some(outcome.seqno),
            DcpMessage::SystemEvent(event) => Some(event.by_seqno),
            DcpMessage::SeqnoAdvanced(seqno) => Some(*seqno),
            DcpMessage::StreamEnd(_)
            | DcpMessage::SnapshotMarker(_)
            | DcpMessage::OsoSnapshot(_)
            | DcpMessage::SetVbucketState(_)
            | DcpMessage::Noop => None,
        }
    }
}

/// What a frame of `frame_bytes` bytes with this opcode weighs in a producer's flow control: its length, except that
/// DCP_NOOP weighs nothing and DCP_PREPARE two bytes more. Clients acknowledge lengths.
#[must_use]
#[inline]
pub fn flow_control_bytes(opcode: Opcode, frame_bytes: usize) -> usize {
    match opcode {
        Opcode::DCP_NOOP => 0,
        Opcode::DCP_PREPARE => frame_bytes + 2,
        _ => frame_bytes,
    }
}
