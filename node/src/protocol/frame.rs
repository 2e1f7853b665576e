//! A whole frame in a receive buffer, and the checks that can end a connection.
//!
//! [`decode_frame`] finds the next frame of a byte stream without copying it; [`admit`] is what a server
//! asks next: is this a request at all? Both follow the protocol's order of checks for bad input, rows
//! 1 to 6; rows 7 to 11 are in `validate`.
//!
//! Invariants
//! - The length that a peer claims is checked against the limit before it is used for anything.
//! - `framing`, `extras`, `key` and `value` of a [`Frame`] cover its body exactly.
//!
//! Cost: a header decode and four slices; no allocation, whatever the peer claims.
//!
//! Does not know: where the bytes come from, which opcodes this node executes.

use ringbase_storage::types::{Cas, VbId};

use super::framing::ResponseFraming;
use super::{Datatype, HEADER_BYTES, Header, HeaderError, Magic, Opcode, ServerOpcode, Status};

/// Largest frame before authentication, in bytes.
pub const UNAUTHENTICATED_FRAME_BYTES_MAX: usize = 16 * 1024;

/// Largest frame after authentication unless configured, in bytes.
pub const FRAME_BYTES_MAX: usize = 30 * 1024 * 1024;

/// How large a frame may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Header and body together, in bytes.
    pub frame_bytes_max: usize,
}

impl FrameLimits {
    /// The limit before authentication.
    pub const UNAUTHENTICATED: FrameLimits = FrameLimits { frame_bytes_max: UNAUTHENTICATED_FRAME_BYTES_MAX };
    /// The default limit after authentication; also right for a client.
    pub const AUTHENTICATED: FrameLimits = FrameLimits { frame_bytes_max: FRAME_BYTES_MAX };
}

impl Default for FrameLimits {
    fn default() -> FrameLimits {
        FrameLimits::AUTHENTICATED
    }
}

/// Why a connection has to be closed without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// These bytes are no frame header.
    #[error("not a frame header")]
    Header(#[from] HeaderError),
    /// The frame is larger than allowed in the connection's state.
    #[error("frame of {frame_bytes} bytes, {frame_bytes_max} allowed")]
    FrameTooLarge {
        /// Size of the frame, in bytes.
        frame_bytes: usize,
        /// The limit, in bytes.
        frame_bytes_max: usize,
    },
    /// A response that nobody waits for.
    #[error("unexpected response {magic:?} to {opcode}")]
    UnexpectedResponse {
        /// Its first byte.
        magic: Magic,
        /// What it claims to answer.
        opcode: Opcode,
    },
}

/// One frame, borrowed from the buffer it was received in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The fixed part.
    pub header: Header,
    /// Framing extras; empty in a classic frame.
    pub framing: &'a [u8],
    /// Fixed-size arguments or results.
    pub extras: &'a [u8],
    /// Document key or another name.
    pub key: &'a [u8],
    /// The rest of the body.
    pub value: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Bytes this frame takes in the stream; the next one begins there.
    #[must_use]
    #[inline]
    pub fn frame_bytes(&self) -> usize {
        self.header.frame_bytes()
    }

    /// What is asked, or what was.
    #[must_use]
    #[inline]
    pub fn opcode(&self) -> Opcode {
        self.header.opcode
    }

    /// The client's tag.
    #[must_use]
    #[inline]
    pub fn opaque(&self) -> u32 {
        self.header.opaque
    }

    /// The document version of the header.
    #[must_use]
    #[inline]
    pub fn cas(&self) -> Cas {
        self.header.cas
    }

    /// How the value is encoded.
    #[must_use]
    #[inline]
    pub fn datatype(&self) -> Datatype {
        self.header.datatype
    }

    /// The vbucket of a request.
    #[must_use]
    #[inline]
    pub fn vbucket(&self) -> VbId {
        self.header.vbucket()
    }

    /// The status of a response.
    #[must_use]
    #[inline]
    pub fn status(&self) -> Status {
        self.header.status()
    }

    /// The framing extras of a response; of a damaged section as much as can be read.
    #[must_use]
    pub fn response_framing(&self) -> ResponseFraming {
        ResponseFraming::decode(self.framing)
    }

    /// The extras as an array, if they have exactly `N` bytes.
    #[must_use]
    #[inline]
    pub fn extras_array<const N: usize>(&self) -> Option<&'a [u8; N]> {
        self.extras.try_into().ok()
    }
}

/// What a receive buffer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A whole frame; [`Frame::frame_bytes`] bytes are consumed.
    Frame(Frame<'a>),
    /// The beginning of one: at least `frame_bytes` bytes from here are needed. While the header itself is
    /// incomplete that is [`HEADER_BYTES`], afterwards the size of the frame, which is within the limit.
    Incomplete {
        /// Bytes needed from the beginning of the buffer.
        frame_bytes: usize,
    },
}

/// Finds the frame at the beginning of `bytes`.
///
/// The first byte is judged as soon as it is there, the lengths as soon as the header is complete, so a
/// stranger is turned away before any body arrives.
///
/// # Errors
/// Close the connection without an answer.
#[inline]
pub fn decode_frame(bytes: &[u8], limits: FrameLimits) -> Result<Decoded<'_>, CloseReason> {
    let Some((head, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        if let Some(&found) = bytes.first()
            && Magic::from_u8(found).is_none()
        {
            return Err(HeaderError::BadMagic { found }.into());
        }
        return Ok(Decoded::Incomplete { frame_bytes: HEADER_BYTES });
    };
    let header = Header::decode(head)?;
    let frame_bytes = header.frame_bytes();
    if frame_bytes > limits.frame_bytes_max {
        return Err(CloseReason::FrameTooLarge { frame_bytes, frame_bytes_max: limits.frame_bytes_max });
    }
    let Some(body) = body.get(..header.body_len as usize) else {
        return Ok(Decoded::Incomplete { frame_bytes });
    };
    let (framing, rest) = body.split_at(usize::from(header.framing_len));
    let (extras, rest) = rest.split_at(usize::from(header.extras_len));
    let (key, value) = rest.split_at(usize::from(header.key_len));
    Ok(Decoded::Frame(Frame { header, framing, extras, key, value }))
}

/// What a frame is to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// A request: validate and execute it.
    Request,
    /// A response that a DCP peer, or a client answering NOOP or GET_ERROR_MAP, may send.
    Response,
    /// A response to a server's request; nothing is done with it.
    Ignored,
    /// Something a client must not send: answer with this status.
    Refused(Status),
}

/// Sorts one frame that a server received: rows 3 to 6 of the checks.
///
/// # Errors
/// Close the connection without an answer.
#[inline]
pub fn admit(header: &Header, authenticated: bool) -> Result<Incoming, CloseReason> {
    let unexpected = CloseReason::UnexpectedResponse { magic: header.magic, opcode: header.opcode };
    match header.magic {
        Magic::ClientRequest | Magic::AltClientRequest => Ok(Incoming::Request),
        Magic::ClientResponse | Magic::AltClientResponse => {
            let opcode = header.opcode;
            let has_handler = opcode.is_dcp() || matches!(opcode, Opcode::NOOP | Opcode::GET_ERROR_MAP);
            if authenticated && has_handler { Ok(Incoming::Response) } else { Err(unexpected) }
        }
        Magic::ServerResponse if authenticated => Ok(Incoming::Ignored),
        Magic::ServerResponse => Err(unexpected),
        Magic::ServerRequest => Ok(Incoming::Refused(match ServerOpcode::from_u8(header.opcode.0) {
            Some(_) => Status::NOT_SUPPORTED,
            None => Status::UNKNOWN_COMMAND,
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An alt SET with one byte of framing extras, 8 of extras, the key `k` and the value `v`.
    const SET: &[u8] = &[
        0x08, 0x01, 1, 1, 8, 0, 0, 7, 0, 0, 0, 11, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 9, 0x50, 0, 0, 0, 1, 0,
        0, 0, 2, b'k', b'v',
    ];

    fn frame(bytes: &[u8]) -> Frame<'_> {
        match decode_frame(bytes, FrameLimits::AUTHENTICATED) {
            Ok(Decoded::Frame(frame)) => frame,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_frame_is_cut_into_framing_extras_key_and_value() {
        let frame = frame(SET);
        assert_eq!(frame.framing, [0x50]);
        assert_eq!(frame.extras, [0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!((frame.key, frame.value), (&b"k"[..], &b"v"[..]));
        assert_eq!((frame.vbucket(), frame.cas(), frame.opaque()), (VbId(7), Cas(9), 0x0102_0304));
        assert_eq!(frame.frame_bytes(), SET.len());
        assert_eq!(frame.extras_array::<8>(), Some(&[0, 0, 0, 1, 0, 0, 0, 2]));
        assert_eq!(frame.extras_array::<4>(), None);
    }

    #[test]
    fn bytes_after_the_frame_are_left_alone() {
        let two = [SET, SET].concat();
        let first = frame(&two);
        assert_eq!(first, frame(SET));
        assert_eq!(frame(&two[first.frame_bytes()..]), first);
    }

    #[test]
    fn every_incomplete_prefix_says_how_many_bytes_are_needed() {
        for length in 0..SET.len() {
            let needed = if length < HEADER_BYTES { HEADER_BYTES } else { SET.len() };
            assert_eq!(
                decode_frame(&SET[..length], FrameLimits::AUTHENTICATED),
                Ok(Decoded::Incomplete { frame_bytes: needed }),
                "prefix of {length} bytes"
            );
        }
    }

    #[test]
    fn a_foreign_first_byte_ends_the_connection_before_the_header_is_complete() {
        let refused = decode_frame(b"GET / HTTP/1.1", FrameLimits::AUTHENTICATED);
        assert_eq!(refused, Err(CloseReason::Header(HeaderError::BadMagic { found: b'G' })));
    }

    #[test]
    fn a_claimed_length_above_the_limit_ends_the_connection_before_the_body_arrives() {
        let mut header = [0; HEADER_BYTES];
        header[0] = 0x80;
        let mut check = |body_bytes: u32, limits: FrameLimits| {
            header[8..12].copy_from_slice(&body_bytes.to_be_bytes());
            decode_frame(&header, limits).map(|decoded| matches!(decoded, Decoded::Incomplete { .. }))
        };
        let unauthenticated = (UNAUTHENTICATED_FRAME_BYTES_MAX - HEADER_BYTES) as u32;
        assert_eq!(check(unauthenticated, FrameLimits::UNAUTHENTICATED), Ok(true));
        assert!(check(unauthenticated + 1, FrameLimits::UNAUTHENTICATED).is_err());
        let authenticated = (FRAME_BYTES_MAX - HEADER_BYTES) as u32;
        assert_eq!(check(authenticated, FrameLimits::AUTHENTICATED), Ok(true));
        assert!(check(authenticated + 1, FrameLimits::AUTHENTICATED).is_err());
        assert!(check(u32::MAX, FrameLimits::AUTHENTICATED).is_err());
    }

    #[test]
    fn only_expected_responses_keep_the_connection() {
        let mut header = frame(SET).header;
        let mut check = |magic, opcode, authenticated| {
            header.magic = magic;
            header.opcode = opcode;
            admit(&header, authenticated).ok()
        };
        for magic in [Magic::ClientResponse, Magic::AltClientResponse] {
            assert_eq!(check(magic, Opcode::NOOP, true), Some(Incoming::Response));
            assert_eq!(check(magic, Opcode::DCP_NOOP, true), Some(Incoming::Response));
            assert_eq!(check(magic, Opcode::GET_ERROR_MAP, true), Some(Incoming::Response));
            assert_eq!(check(magic, Opcode::GET, true), None);
            assert_eq!(check(magic, Opcode::NOOP, false), None);
        }
        for opcode in [Opcode(1), Opcode(3), Opcode(0x77)] {
            assert_eq!(check(Magic::ServerResponse, opcode, true), Some(Incoming::Ignored));
            assert_eq!(check(Magic::ServerResponse, opcode, false), None);
        }
    }

    #[test]
    fn a_server_request_from_a_client_is_answered_not_executed() {
        let mut header = frame(SET).header;
        header.magic = Magic::ServerRequest;
        header.framing_len = 0;
        for (opcode, status) in
            [(1, Status::NOT_SUPPORTED), (4, Status::NOT_SUPPORTED), (5, Status::UNKNOWN_COMMAND)]
        {
            header.opcode = Opcode(opcode);
            assert_eq!(admit(&header, true), Ok(Incoming::Refused(status)));
        }
    }
}
