//! Requests, as clients encode them.
//!
//! A server reads requests as a `frame::Frame` and checks them with `validate`; this is the other direction.
//!
//! Invariants
//! - What `encode` accepts is a frame that `decode_frame` gives back field by field.
//! - A request without framing extras is a classic frame, with them a flexible one.
//!
//! Cost: appends to the caller's buffer, nothing else is allocated unless there are framing extras.
//!
//! Does not know: which arguments an opcode takes; sockets.

use bytes::BufMut;
use ringbase_storage::types::{Cas, VbId};

use super::framing::{FRAMING_BYTES_MAX, RequestFraming};
use super::key::CollectionId;
use super::leb128::Leb128;
use super::{Datatype, Header, Magic, Opcode};

/// Why a request has no wire form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The key is too long for the header.
    #[error("key of {key_bytes} bytes, at most {key_bytes_max} fit into this frame")]
    KeyTooLong {
        /// Key with its prefix, in bytes.
        key_bytes: usize,
        /// What the header can say, in bytes.
        key_bytes_max: usize,
    },
    /// The extras are too long for the header.
    #[error("extras of {extras_bytes} bytes, at most 255 fit")]
    ExtrasTooLong {
        /// Their size in bytes.
        extras_bytes: usize,
    },
    /// The framing extras are too long for the header.
    #[error("framing extras of {framing_bytes} bytes, at most 255 fit")]
    FramingTooLong {
        /// Their size in bytes.
        framing_bytes: usize,
    },
    /// The body is longer than 32 bits can say.
    #[error("body of {body_bytes} bytes, at most {max} fit", max = u32::MAX)]
    BodyTooLong {
        /// Its size in bytes.
        body_bytes: usize,
    },
}

/// One request, to be encoded.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    opcode: Opcode,
    vbucket: VbId,
    opaque: u32,
    cas: Cas,
    datatype: Datatype,
    framing: RequestFraming<'a>,
    extras: &'a [u8],
    collection: Option<CollectionId>,
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Request<'a> {
    /// A request with nothing but its opcode.
    #[must_use]
    pub fn new(opcode: Opcode) -> Request<'a> {
        Request {
            opcode,
            vbucket: VbId(0),
            opaque: 0,
            cas: Cas(0),
            datatype: Datatype::RAW,
            framing: RequestFraming::default(),
            extras: &[],
            collection: None,
            key: &[],
            value: &[],
        }
    }

    /// The vbucket it is for.
    #[must_use]
    pub fn vbucket(self, vbucket: VbId) -> Self {
        Request { vbucket, ..self }
    }

    /// The tag that its responses echo.
    #[must_use]
    pub fn opaque(self, opaque: u32) -> Self {
        Request { opaque, ..self }
    }

    /// The version the document must have.
    #[must_use]
    pub fn cas(self, cas: Cas) -> Self {
        Request { cas, ..self }
    }

    /// How the value is encoded.
    #[must_use]
    pub fn datatype(self, datatype: Datatype) -> Self {
        Request { datatype, ..self }
    }

    /// Framing extras; if there are any the frame is a flexible one.
    #[must_use]
    pub fn framing(self, framing: RequestFraming<'a>) -> Self {
        Request { framing, ..self }
    }

    /// Fixed-size arguments.
    #[must_use]
    pub fn extras(self, extras: &'a [u8]) -> Self {
        Request { extras, ..self }
    }

    /// The key, sent as it is.
    #[must_use]
    pub fn key(self, key: &'a [u8]) -> Self {
        Request { key, ..self }
    }

    /// The collection whose LEB128 id goes before the key; for connections with Collections on.
    #[must_use]
    pub fn collection(self, collection: CollectionId) -> Self {
        Request { collection: Some(collection), ..self }
    }

    /// The rest of the body.
    #[must_use]
    pub fn value(self, value: &'a [u8]) -> Self {
        Request { value, ..self }
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// A part is longer than its length field can say; nothing was appended.
    pub fn encode(&self, out: &mut impl BufMut) -> Result<(), EncodeError> {
        let framing = if self.framing.is_empty() { Vec::new() } else { self.framing.encode() };
        let prefix = self.collection.map(|collection| Leb128::encode(collection.0));
        let prefix = prefix.as_ref().map_or(&[][..], Leb128::as_bytes);

        let framing_bytes = framing.len();
        let framing_len =
            u8::try_from(framing_bytes).map_err(|_| EncodeError::FramingTooLong { framing_bytes })?;
        let extras_bytes = self.extras.len();
        let extras_len =
            u8::try_from(extras_bytes).map_err(|_| EncodeError::ExtrasTooLong { extras_bytes })?;
        let key_bytes = prefix.len() + self.key.len();
        let key_bytes_max = usize::from(if framing_len == 0 { u16::MAX } else { u16::from(u8::MAX) });
        if key_bytes > key_bytes_max {
            return Err(EncodeError::KeyTooLong { key_bytes, key_bytes_max });
        }
        let body_bytes = framing_bytes + extras_bytes + key_bytes + self.value.len();
        let body_len = u32::try_from(body_bytes).map_err(|_| EncodeError::BodyTooLong { body_bytes })?;

        let header = Header {
            magic: if framing_len == 0 { Magic::ClientRequest } else { Magic::AltClientRequest },
            opcode: self.opcode,
            framing_len,
            key_len: key_bytes as u16,
            extras_len,
            datatype: self.datatype,
            specific: self.vbucket.0,
            body_len,
            opaque: self.opaque,
            cas: self.cas,
        };
        out.put_slice(&header.encode());
        out.put_slice(&framing);
        out.put_slice(self.extras);
        out.put_slice(prefix);
        out.put_slice(self.key);
        out.put_slice(self.value);
        Ok(())
    }
}

const _: () = assert!(FRAMING_BYTES_MAX == u8::MAX as usize);

#[cfg(test)]
mod tests {
    use super::super::frame::{Decoded, FrameLimits, decode_frame};
    use super::super::framing::{Durability, DurabilityLevel};
    use super::*;

    #[test]
    fn an_encoded_request_decodes_to_its_parts() {
        let framing = RequestFraming {
            durability: Some(Durability { level: DurabilityLevel::Majority, timeout_ms: None }),
            ..Default::default()
        };
        for framing in [RequestFraming::default(), framing] {
            let mut out = Vec::new();
            Request::new(Opcode::SET)
                .vbucket(VbId(3))
                .opaque(77)
                .cas(Cas(5))
                .datatype(Datatype::JSON)
                .framing(framing)
                .extras(&[1; 8])
                .collection(CollectionId(555))
                .key(b"key")
                .value(b"{}")
                .encode(&mut out)
                .unwrap();
            let Ok(Decoded::Frame(frame)) = decode_frame(&out, FrameLimits::AUTHENTICATED) else { panic!() };
            assert_eq!(frame.frame_bytes(), out.len());
            assert_eq!(frame.header.magic.is_alt(), !framing.is_empty());
            assert_eq!(RequestFraming::decode(frame.framing, Opcode::SET), Ok(framing));
            assert_eq!((frame.vbucket(), frame.opaque(), frame.cas()), (VbId(3), 77, Cas(5)));
            assert_eq!(
                (frame.extras, frame.key, frame.value),
                (&[1; 8][..], &b"\xab\x04key"[..], &b"{}"[..])
            );
            assert_eq!(frame.datatype(), Datatype::JSON);
        }
    }

    #[test]
    fn parts_too_long_for_the_header_are_refused_and_nothing_is_appended() {
        let long = vec![0; 70_000];
        let barrier = RequestFraming { barrier: true, ..Default::default() };
        let user = RequestFraming { impersonate: Some(&long[..255]), ..Default::default() };
        let mut out = Vec::new();
        for (request, error) in [
            (
                Request::new(Opcode::GET).key(&long),
                EncodeError::KeyTooLong { key_bytes: 70_000, key_bytes_max: 65_535 },
            ),
            (
                Request::new(Opcode::GET).key(&long[..256]).framing(barrier),
                EncodeError::KeyTooLong { key_bytes: 256, key_bytes_max: 255 },
            ),
            (
                Request::new(Opcode::GET).extras(&long[..256]),
                EncodeError::ExtrasTooLong { extras_bytes: 256 },
            ),
            (Request::new(Opcode::GET).framing(user), EncodeError::FramingTooLong { framing_bytes: 257 }),
        ] {
            assert_eq!(request.encode(&mut out), Err(error));
            assert!(out.is_empty());
        }
    }
}
