//! What every message of a stream has around it: the fields of its header, and the 24 to 27 bytes that carry them.
//!
//! Invariants
//! - With a stream id the frame is a flexible one (magic 0x08) with the framing section `22 hi lo`, without one it
//!   is a classic one.
//!
//! Cost: one reservation of the whole frame in the caller's buffer; nothing else is allocated.
//!
//! Does not know: the messages themselves.

use std::num::NonZeroU16;

use ringbase_storage::types::{Cas, VbId};

use super::super::error_context::Refusal;
use super::super::framing::RequestFraming;
use super::super::{Datatype, Frame, HEADER_BYTES, Header, Magic, Opcode};

/// Bytes of the framing section that carries a stream id.
pub const STREAM_ID_SECTION_BYTES: usize = 3;

/// Control byte of the stream id: frame info 2, two bytes long.
const STREAM_ID_CONTROL: u8 = 0x22;

/// Names one of several streams of a vbucket on a connection; the client chooses it.
pub type StreamId = NonZeroU16;

/// The address of a stream message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The stream's vbucket.
    pub vbucket: VbId,
    /// The opaque of the stream request that created the stream.
    pub opaque: u32,
    /// The stream's id, on connections that enabled them.
    pub stream_id: Option<StreamId>,
}

impl Envelope {
    /// The address of a message on a connection without stream ids.
    #[must_use]
    pub fn new(vbucket: VbId, opaque: u32) -> Envelope {
        Envelope { vbucket, opaque, stream_id: None }
    }

    /// The address of a message of a stream with this id.
    #[must_use]
    pub fn with_stream_id(self, stream_id: StreamId) -> Envelope {
        Envelope { stream_id: Some(stream_id), ..self }
    }

    /// Reads the address of `frame`.
    ///
    /// # Errors
    /// EINVAL if it is no request or its stream id is 0; what [`RequestFraming::decode`] says of its section.
    pub fn of(frame: &Frame<'_>) -> Result<Envelope, Refusal> {
        if !matches!(frame.header.magic, Magic::ClientRequest | Magic::AltClientRequest) {
            return Err(Refusal::einval("A DCP message is a request"));
        }
        let framing = RequestFraming::decode(frame.framing, frame.opcode())?;
        let stream_id = match framing.stream_id.map(StreamId::new) {
            Some(None) => return Err(Refusal::einval("Stream id 0 is reserved")),
            Some(Some(id)) => Some(id),
            None => None,
        };
        Ok(Envelope { vbucket: frame.vbucket(), opaque: frame.opaque(), stream_id })
    }

    /// Bytes of a frame before its extras.
    #[must_use]
    #[inline]
    pub fn head_bytes(&self) -> usize {
        HEADER_BYTES + if self.stream_id.is_some() { STREAM_ID_SECTION_BYTES } else { 0 }
    }

    /// Appends all of a frame that stands before its extras, and reserves room for the rest.
    ///
    /// # Panics
    /// If the parts do not fit into their length fields: extras 255 bytes, key 65535 (255 with a stream id), body
    /// 32 bits. A producer has no such message.
    #[inline]
    pub(super) fn put(&self, shape: Shape, out: &mut Vec<u8>) {
        let framing_bytes = self.head_bytes() - HEADER_BYTES;
        let body_bytes = framing_bytes + shape.extras_bytes + shape.key_bytes + shape.value_bytes;
        let header = Header {
            magic: if framing_bytes == 0 { Magic::ClientRequest } else { Magic::AltClientRequest },
            opcode: shape.opcode,
            framing_len: framing_bytes as u8,
            key_len: u16::try_from(shape.key_bytes).expect("a message's key fits into 16 bits"),
            extras_len: u8::try_from(shape.extras_bytes).expect("a message's extras fit into 8 bits"),
            datatype: shape.datatype,
            specific: self.vbucket.0,
            body_len: u32::try_from(body_bytes).expect("a message's body fits into 32 bits"),
            opaque: self.opaque,
            cas: shape.cas,
        };
        out.reserve(HEADER_BYTES + body_bytes);
        out.extend_from_slice(&header.encode());
        if let Some(id) = self.stream_id {
            let [high, low] = id.get().to_be_bytes();
            out.extend_from_slice(&[STREAM_ID_CONTROL, high, low]);
        }
    }
}

/// What the header says of a message beside its address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) opcode: Opcode,
    pub(super) datatype: Datatype,
    pub(super) cas: Cas,
    pub(super) extras_bytes: usize,
    pub(super) key_bytes: usize,
    pub(super) value_bytes: usize,
}

impl Shape {
    /// A message of nothing but extras.
    pub(super) fn of_extras(opcode: Opcode, extras_bytes: usize) -> Shape {
        Shape { opcode, datatype: Datatype::RAW, cas: Cas(0), extras_bytes, key_bytes: 0, value_bytes: 0 }
    }
}

/// Refuses parts that a message of this kind does not have.
pub(super) fn only_extras(frame: &Frame<'_>) -> Result<(), Refusal> {
    no_key(frame)?;
    no_value(frame)
}

pub(super) fn no_key(frame: &Frame<'_>) -> Result<(), Refusal> {
    if frame.key.is_empty() { Ok(()) } else { Err(Refusal::einval("Request must not include key")) }
}

pub(super) fn no_value(frame: &Frame<'_>) -> Result<(), Refusal> {
    if frame.value.is_empty() { Ok(()) } else { Err(Refusal::einval("Request must not include value")) }
}

pub(super) fn need_key<'a>(frame: &Frame<'a>) -> Result<&'a [u8], Refusal> {
    if frame.key.is_empty() { Err(Refusal::einval("Request must include key")) } else { Ok(frame.key) }
}
