//! The 24-byte header of every frame: magic bytes and the fixed fields, both ways.
//!
//! Used by `frame` (which adds the body) and by every encoder. Classic frames carry a 16-bit key
//! length; flexible ("alt") frames split that field into a framing-extras length and an 8-bit key length.
//!
//! Invariants
//! - A decoded [`Header`] has a legal magic and its parts fit into `body_len`.
//! - `decode(encode(header)) == header` for every header that `encode` takes.
//!
//! Cost: no allocation, one pass over 24 bytes.
//!
//! Does not know: size limits, which opcodes exist, what a body means.
//! Source: KV binary protocol, frame layout with framing extras.

use ringbase_storage::types::{Cas, VbId};

use super::{Datatype, Opcode, Status};

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 24;

/// The first byte of a frame: direction and header shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Magic {
    /// Request of a client (or of a DCP peer), classic header.
    ClientRequest = 0x80,
    /// Request of a client, with framing extras.
    AltClientRequest = 0x08,
    /// Response to a client, classic header.
    ClientResponse = 0x81,
    /// Response to a client, with framing extras.
    AltClientResponse = 0x18,
    /// Request that the server starts, after Duplex was negotiated.
    ServerRequest = 0x82,
    /// A client's response to a server's request.
    ServerResponse = 0x83,
}

impl Magic {
    /// The magic with this number, if it is one.
    #[must_use]
    #[inline]
    pub fn from_u8(number: u8) -> Option<Magic> {
        Some(match number {
            0x80 => Magic::ClientRequest,
            0x08 => Magic::AltClientRequest,
            0x81 => Magic::ClientResponse,
            0x18 => Magic::AltClientResponse,
            0x82 => Magic::ServerRequest,
            0x83 => Magic::ServerResponse,
            _ => return None,
        })
    }

    /// Whether the header has a framing-extras length and an 8-bit key length.
    #[must_use]
    #[inline]
    pub fn is_alt(self) -> bool {
        matches!(self, Magic::AltClientRequest | Magic::AltClientResponse)
    }

    /// Whether bytes 6 and 7 are a vbucket id rather than a status.
    #[must_use]
    #[inline]
    pub fn is_request(self) -> bool {
        matches!(self, Magic::ClientRequest | Magic::AltClientRequest | Magic::ServerRequest)
    }
}

/// Why 24 bytes are not a header. Both end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The first byte is no magic.
    #[error("first byte {found:#04x} is not a magic of this protocol")]
    BadMagic {
        /// The byte.
        found: u8,
    },
    /// Framing extras, extras and key are longer than the whole body.
    #[error("framing, extras and key take {parts_bytes} bytes, the body has {body_bytes}")]
    BodyTooShort {
        /// Sum of the three part lengths, in bytes.
        parts_bytes: usize,
        /// Body length of the header, in bytes.
        body_bytes: usize,
    },
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Direction and shape.
    pub magic: Magic,
    /// What is asked, or what was.
    pub opcode: Opcode,
    /// Bytes of framing extras; 0 in a classic frame.
    pub framing_len: u8,
    /// Bytes of key; at most 255 in an alt frame.
    pub key_len: u16,
    /// Bytes of extras.
    pub extras_len: u8,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// Bytes 6 and 7: vbucket id of a request, status of a response.
    pub specific: u16,
    /// Bytes of the whole body, framing extras included.
    pub body_len: u32,
    /// The client's tag, echoed unchanged.
    pub opaque: u32,
    /// Version of the document; 0 for none.
    pub cas: Cas,
}

impl Header {
    /// Decodes the fixed header of one frame; reads nothing past it.
    ///
    /// 24 bytes, integers big-endian:
    ///
    /// | offset | bytes | field                                                                 |
    /// |-------:|------:|-----------------------------------------------------------------------|
    /// |      0 |     1 | magic                                                                 |
    /// |      1 |     1 | opcode                                                                |
    /// |      2 |     2 | key length; in an alt frame one byte framing length, one key length   |
    /// |      4 |     1 | extras length                                                         |
    /// |      5 |     1 | datatype bits                                                         |
    /// |      6 |     2 | vbucket id of a request, status of a response                         |
    /// |      8 |     4 | body length = framing extras + extras + key + value, in bytes         |
    /// |     12 |     4 | opaque                                                                |
    /// |     16 |     8 | CAS                                                                   |
    ///
    /// # Errors
    /// Either error means that this is not our protocol; close the connection.
    #[inline]
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, HeaderError> {
        let [m, op, k1, k0, ext, dt, s1, s0, b3, b2, b1, b0, o3, o2, o1, o0, cas @ ..] = *bytes;
        let magic = Magic::from_u8(m).ok_or(HeaderError::BadMagic { found: m })?;
        let (framing_len, key_len) =
            if magic.is_alt() { (k1, u16::from(k0)) } else { (0, u16::from_be_bytes([k1, k0])) };
        let header = Header {
            magic,
            opcode: Opcode(op),
            framing_len,
            key_len,
            extras_len: ext,
            datatype: Datatype(dt),
            specific: u16::from_be_bytes([s1, s0]),
            body_len: u32::from_be_bytes([b3, b2, b1, b0]),
            opaque: u32::from_be_bytes([o3, o2, o1, o0]),
            cas: Cas(u64::from_be_bytes(cas)),
        };
        let (parts_bytes, body_bytes) = (header.parts_bytes(), header.body_len as usize);
        if parts_bytes > body_bytes {
            return Err(HeaderError::BodyTooShort { parts_bytes, body_bytes });
        }
        Ok(header)
    }

    /// Encodes the header.
    ///
    /// # Panics
    /// If an alt header has a key of more than 255 bytes or a classic one has framing extras: the
    /// encoders above choose the magic by these lengths.
    #[must_use]
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let lengths = if self.magic.is_alt() {
            let key_len = u8::try_from(self.key_len).expect("an alt frame has a key of at most 255 bytes");
            [self.framing_len, key_len]
        } else {
            assert!(self.framing_len == 0, "a classic frame has no framing extras");
            self.key_len.to_be_bytes()
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.magic as u8;
        bytes[1] = self.opcode.0;
        bytes[2..4].copy_from_slice(&lengths);
        bytes[4] = self.extras_len;
        bytes[5] = self.datatype.0;
        bytes[6..8].copy_from_slice(&self.specific.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.body_len.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.opaque.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.cas.0.to_be_bytes());
        bytes
    }

    /// Bytes of framing extras, extras and key together.
    #[must_use]
    #[inline]
    pub fn parts_bytes(&self) -> usize {
        usize::from(self.framing_len) + usize::from(self.extras_len) + usize::from(self.key_len)
    }

    /// Bytes of the value.
    #[must_use]
    #[inline]
    pub fn value_bytes(&self) -> usize {
        (self.body_len as usize).saturating_sub(self.parts_bytes())
    }

    /// Bytes of the whole frame on the wire.
    #[must_use]
    #[inline]
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.body_len as usize
    }

    /// The vbucket a request is for.
    #[must_use]
    #[inline]
    pub fn vbucket(&self) -> VbId {
        VbId(self.specific)
    }

    /// The status a response carries.
    #[must_use]
    #[inline]
    pub fn status(&self) -> Status {
        Status(self.specific)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(magic: Magic) -> Header {
        Header {
            magic,
            opcode: Opcode::SET,
            framing_len: if magic.is_alt() { 3 } else { 0 },
            key_len: if magic.is_alt() { 250 } else { 0x1234 },
            extras_len: 8,
            datatype: Datatype::JSON,
            specific: 0x0203,
            body_len: 0x0001_0000,
            opaque: 0xdead_beef,
            cas: Cas(0x0102_0304_0506_0708),
        }
    }

    #[test]
    fn every_magic_survives_a_round_trip() {
        for number in 0..=u8::MAX {
            let Some(magic) = Magic::from_u8(number) else { continue };
            assert_eq!(magic as u8, number);
            let header = header(magic);
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn the_six_magics_are_the_only_ones() {
        let legal: Vec<u8> = (0..=u8::MAX).filter(|n| Magic::from_u8(*n).is_some()).collect();
        assert_eq!(legal, [0x08, 0x18, 0x80, 0x81, 0x82, 0x83]);
        let mut bytes = header(Magic::ClientRequest).encode();
        bytes[0] = 0x84;
        assert_eq!(Header::decode(&bytes), Err(HeaderError::BadMagic { found: 0x84 }));
    }

    #[test]
    fn parts_longer_than_the_body_are_refused_also_when_only_the_framing_is_too_long() {
        let mut header = header(Magic::AltClientRequest);
        header.body_len = 3 + 8 + 250;
        assert!(Header::decode(&header.encode()).is_ok());
        header.body_len -= 1;
        assert_eq!(
            Header::decode(&header.encode()),
            Err(HeaderError::BodyTooShort { parts_bytes: 261, body_bytes: 260 })
        );
    }

    #[test]
    fn the_opaque_is_echoed_byte_for_byte() {
        let mut bytes = header(Magic::ClientRequest).encode();
        bytes[12..16].copy_from_slice(&[1, 2, 3, 4]);
        let decoded = Header::decode(&bytes).unwrap();
        assert_eq!(&decoded.encode()[12..16], &[1, 2, 3, 4]);
    }
}
