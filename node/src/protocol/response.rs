//! Responses, as the server encodes them; a client reads them as a `frame::Frame`.
//!
//! Invariants
//! - A failure carries neither extras nor key, only an error body or nothing.
//! - A response with framing extras is a flexible frame (magic 0x18), without them a classic one.
//!
//! Cost: appends to the caller's buffer; nothing is allocated. [`Response::encode_head`] leaves the value
//! to the caller, who may send it from where it lies.
//!
//! Does not know: sockets, who waits for the response, what is in the value.

use bytes::BufMut;
use ringbase_storage::types::Cas;

use super::framing::{RESPONSE_FRAMING_BYTES_MAX, ResponseFraming};
use super::{Datatype, HEADER_BYTES, Header, Magic, Opcode, Status};

/// One response, to be encoded.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    opcode: Opcode,
    opaque: u32,
    status: Status,
    cas: Cas,
    datatype: Datatype,
    framing: ResponseFraming,
    extras: &'a [u8],
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Response<'a> {
    /// A response without body to the request with this opcode and opaque.
    #[must_use]
    #[inline]
    pub fn new(opcode: Opcode, opaque: u32, status: Status) -> Response<'a> {
        Response {
            opcode,
            opaque,
            status,
            cas: Cas(0),
            datatype: Datatype::RAW,
            framing: ResponseFraming::NONE,
            extras: &[],
            key: &[],
            value: &[],
        }
    }

    /// The document's version.
    #[must_use]
    #[inline]
    pub fn cas(self, cas: Cas) -> Self {
        Response { cas, ..self }
    }

    /// How the value is encoded; only bits that the connection negotiated.
    #[must_use]
    #[inline]
    pub fn datatype(self, datatype: Datatype) -> Self {
        Response { datatype, ..self }
    }

    /// Framing extras: the server's duration if Tracing is on.
    #[must_use]
    #[inline]
    pub fn framing(self, framing: ResponseFraming) -> Self {
        Response { framing, ..self }
    }

    /// Fixed-size results.
    #[must_use]
    #[inline]
    pub fn extras(self, extras: &'a [u8]) -> Self {
        Response { extras, ..self }
    }

    /// The key.
    #[must_use]
    #[inline]
    pub fn key(self, key: &'a [u8]) -> Self {
        Response { key, ..self }
    }

    /// The rest of the body.
    #[must_use]
    #[inline]
    pub fn value(self, value: &'a [u8]) -> Self {
        Response { value, ..self }
    }

    /// Appends the frame to `out`, which grows as needed.
    ///
    /// # Panics
    /// As [`Response::encode_head`].
    #[inline]
    pub fn encode(&self, out: &mut impl BufMut) {
        self.encode_head(self.value.len(), out);
        out.put_slice(self.value);
    }

    /// Appends all but the value to `out`; the caller sends `value_bytes` bytes right after it.
    /// [`Response::head_bytes`] is how much is appended, so room can be left for it in front of a value.
    ///
    /// # Panics
    /// If extras or key do not fit into their length fields, the body not into 32 bits, or `out` is a slice
    /// that is too short: the server never makes such a response.
    #[inline]
    pub fn encode_head(&self, value_bytes: usize, out: &mut impl BufMut) {
        debug_assert!(
            self.status.is_success_class() || (self.extras.is_empty() && self.key.is_empty()),
            "a failure carries no extras and no key"
        );
        let mut section = [0; RESPONSE_FRAMING_BYTES_MAX];
        let framing_len = if self.is_flexible() { self.framing.encode(&mut section) } else { 0 };
        let parts_bytes = usize::from(framing_len) + self.extras.len() + self.key.len();
        let header = Header {
            magic: if framing_len == 0 { Magic::ClientResponse } else { Magic::AltClientResponse },
            opcode: self.opcode,
            framing_len,
            key_len: u16::try_from(self.key.len()).expect("a response's key fits into 16 bits"),
            extras_len: u8::try_from(self.extras.len()).expect("a response's extras fit into 8 bits"),
            datatype: self.datatype,
            specific: self.status.0,
            body_len: u32::try_from(parts_bytes + value_bytes).expect("a response's body fits into 32 bits"),
            opaque: self.opaque,
            cas: self.cas,
        };
        out.put_slice(&header.encode());
        out.put_slice(&section[..usize::from(framing_len)]);
        out.put_slice(self.extras);
        out.put_slice(self.key);
    }

    /// Bytes of the frame before its value.
    #[must_use]
    #[inline]
    pub fn head_bytes(&self) -> usize {
        let framing_len =
            if self.is_flexible() { self.framing.encode(&mut [0; RESPONSE_FRAMING_BYTES_MAX]) } else { 0 };
        HEADER_BYTES + usize::from(framing_len) + self.extras.len() + self.key.len()
    }

    /// A key of more than 255 bytes fits only into a classic frame, so such a response goes without framing.
    #[inline]
    fn is_flexible(&self) -> bool {
        self.framing != ResponseFraming::NONE && self.key.len() <= usize::from(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::super::duration::EncodedDuration;
    use super::super::frame::{Decoded, Frame, FrameLimits, decode_frame};
    use super::*;

    fn frame(bytes: &[u8]) -> Frame<'_> {
        match decode_frame(bytes, FrameLimits::AUTHENTICATED) {
            Ok(Decoded::Frame(frame)) => frame,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_encoded_response_decodes_to_its_parts_with_and_without_tracing() {
        for framing in [ResponseFraming::NONE, ResponseFraming::traced(EncodedDuration(79))] {
            let response = Response::new(Opcode::GET_K, 42, Status::SUCCESS)
                .cas(Cas(9))
                .datatype(Datatype::JSON)
                .framing(framing)
                .extras(&[0, 0, 0, 1])
                .key(b"k")
                .value(b"{}");
            let mut out = Vec::new();
            response.encode(&mut out);
            let frame = frame(&out);
            assert_eq!(frame.frame_bytes(), out.len());
            assert_eq!(frame.response_framing(), framing);
            assert_eq!(frame.header.magic.is_alt(), framing != ResponseFraming::NONE);
            assert_eq!((frame.opcode(), frame.opaque(), frame.cas()), (Opcode::GET_K, 42, Cas(9)));
            assert_eq!((frame.extras, frame.key, frame.value), (&[0, 0, 0, 1][..], &b"k"[..], &b"{}"[..]));
            assert_eq!(response.head_bytes(), out.len() - 2);
        }
    }

    #[test]
    fn a_head_can_be_written_into_room_left_before_its_value() {
        let response = Response::new(Opcode::RANGE_SCAN_CONTINUE, 1, Status::RANGE_SCAN_MORE)
            .framing(ResponseFraming::traced(EncodedDuration(1)))
            .extras(&[0; 4]);
        let mut buffer = vec![0; response.head_bytes()];
        buffer.extend_from_slice(b"\x01k");
        let (mut head, value) = buffer.split_at_mut(response.head_bytes());
        response.encode_head(value.len(), &mut head);
        assert_eq!(head.len(), 0);
        assert_eq!(frame(&buffer).value, b"\x01k");
    }

    #[test]
    fn a_key_too_long_for_a_flexible_frame_travels_in_a_classic_one() {
        let key = [b'k'; 256];
        let response = Response::new(Opcode::STAT, 1, Status::SUCCESS)
            .framing(ResponseFraming::traced(EncodedDuration(1)))
            .key(&key);
        let mut out = Vec::new();
        response.encode(&mut out);
        assert_eq!(frame(&out).key, key);
        assert_eq!(frame(&out).header.magic, Magic::ClientResponse);
        assert_eq!(response.head_bytes(), out.len());
    }
}
