//! A validated request, borrowed from its frame; and the copy of one that travels or waits.
//!
//! A request for another core, or one that waits for the disk, is copied as its frame and read again there: that costs
//! less than keeping an owned form of every part.
//!
//! Invariants
//! - A [`Request`] has passed `protocol::validate` with the features of its connection.
//!
//! Cost: borrowing costs nothing; a copy is the frame's bytes.
//!
//! Does not know: what the request does, who sent it.

use ringbase_storage::types::VbId;

use super::session::SessionView;
use crate::protocol::frame::FrameLimits;
use crate::protocol::{
    ConnectionState, Decoded, DocumentKey, Frame, Opcode, Refusal, RequestFraming, Validated, decode_frame,
    validate,
};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The frame.
    pub frame: Frame<'a>,
    /// Its decoded framing extras.
    pub framing: RequestFraming<'a>,
    /// The document's key, for opcodes that have one.
    pub key: Option<DocumentKey<'a>>,
    /// When its header was there, on the host's monotonic clock, in nanoseconds.
    pub received_ns: u64,
}

impl<'a> Request<'a> {
    /// Checks a frame.
    ///
    /// # Errors
    /// What to answer instead of executing it.
    #[inline]
    pub fn validate(
        frame: Frame<'a>,
        connection: &ConnectionState,
        received_ns: u64,
    ) -> Result<Request<'a>, Refusal> {
        let Validated { framing, key } = validate(&frame, connection)?;
        Ok(Request { frame, framing, key, received_ns })
    }

    /// Reads a copy made by [`Request::copy`] of a request that was valid for the connection of `view`. `None` if the
    /// bytes are no such copy.
    #[must_use]
    pub fn reread(bytes: &'a [u8], view: &SessionView, received_ns: u64) -> Option<Request<'a>> {
        let limits = FrameLimits { frame_bytes_max: bytes.len() };
        let Ok(Decoded::Frame(frame)) = decode_frame(bytes, limits) else { return None };
        Request::validate(frame, &view.connection_state(), received_ns).ok()
    }

    /// Appends the frame's bytes to `out`, for [`Request::reread`].
    pub fn copy(&self, out: &mut Vec<u8>) {
        let frame = &self.frame;
        out.reserve(frame.frame_bytes());
        out.extend_from_slice(&frame.header.encode());
        for part in [frame.framing, frame.extras, frame.key, frame.value] {
            out.extend_from_slice(part);
        }
    }

    /// What is asked.
    #[must_use]
    #[inline]
    pub fn opcode(&self) -> Opcode {
        self.frame.opcode()
    }

    /// The vbucket it is for.
    #[must_use]
    #[inline]
    pub fn vbucket(&self) -> VbId {
        self.frame.vbucket()
    }
}
