//! Responses to a continue on their way to the connection's core, and the buffers on their way back.
//!
//! Invariants
//! - A continue is answered by any number of frames with status SUCCESS and exactly one final frame.
//! - A frame that failed has no records.
//!
//! Does not know: sockets, opaques, who sends.

use super::buffer::ScanBuffer;
use crate::protocol::range_scan::ScanId;
use crate::protocol::scan_records::RecordKind;
use crate::protocol::{Opcode, Response, ResponseFraming, Status};

/// Where the frames of one continue go. It is called on the vbucket's core, in order, with no borrow held; dropped after the final frame.
pub trait FrameSink {
    /// Takes a frame. It must not block: a continue has at most two frames with records under way, and one without.
    fn send(&self, frame: ScanFrame);
}

/// Which frame a buffer was sent in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) scan: ScanId,
    /// Which of the scan's connections it went to.
    pub(super) generation: u32,
    /// When it was full, in monotonic nanoseconds of the vbucket's core.
    pub(super) full_ns: u64,
}

/// One response to a continue. May be sent to another core and dropped there.
#[derive(Debug)]
pub struct ScanFrame {
    status: Status,
    kind: RecordKind,
    buffer: ScanBuffer,
    ticket: Option<Ticket>,
    /// Bytes of the head, once it was written.
    head_bytes: usize,
}

/// A buffer on its way back to the vbucket's core: see [`RangeScans::frame_sent`](super::RangeScans::frame_sent).
#[derive(Debug)]
pub struct SentFrame {
    pub(super) buffer: ScanBuffer,
    pub(super) ticket: Ticket,
}

impl ScanFrame {
    pub(super) fn with_records(
        status: Status,
        kind: RecordKind,
        buffer: ScanBuffer,
        ticket: Ticket,
    ) -> ScanFrame {
        ScanFrame { status, kind, buffer, ticket: Some(ticket), head_bytes: 0 }
    }

    pub(super) fn without_records(status: Status, kind: RecordKind, head: ScanBuffer) -> ScanFrame {
        ScanFrame { status, kind, buffer: head, ticket: None, head_bytes: 0 }
    }

    /// What the response says.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether it is the last of its continue.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.status != Status::SUCCESS
    }

    /// What the records are; means nothing in a frame that failed.
    #[must_use]
    pub fn kind(&self) -> RecordKind {
        self.kind
    }

    /// Its records.
    #[must_use]
    pub fn records(&self) -> &[u8] {
        self.buffer.records()
    }

    /// The whole response in one piece, as it goes to the wire. A failure has an empty body.
    pub fn encode(&mut self, opaque: u32, framing: ResponseFraming) -> &[u8] {
        let extras = self.kind.encode();
        let has_extras =
            matches!(self.status, Status::SUCCESS | Status::RANGE_SCAN_MORE | Status::RANGE_SCAN_COMPLETE);
        let response = Response::new(Opcode::RANGE_SCAN_CONTINUE, opaque, self.status)
            .framing(framing)
            .extras(if has_extras { &extras } else { &[] });
        self.head_bytes = response.head_bytes();
        self.buffer.with_head(&response)
    }

    /// The frame as [`ScanFrame::encode`] has left it.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        self.buffer.frame(self.head_bytes)
    }

    /// What must be brought back once the frame was sent; `None` if nothing has to.
    #[must_use]
    pub fn into_sent(self) -> Option<SentFrame> {
        let ticket = self.ticket?;
        Some(SentFrame { buffer: self.buffer, ticket })
    }
}

impl SentFrame {
    /// The scan it belongs to.
    #[must_use]
    pub fn scan(&self) -> ScanId {
        self.ticket.scan
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::BufferPool;
    use super::*;
    use crate::protocol::{Decoded, FrameLimits, decode_frame};

    /// T5.15, and protocol "CONTINUE": extras on success, more and complete; nothing on an error.
    #[test]
    fn a_failed_frame_is_a_bare_header_and_the_others_carry_the_kind() {
        let pool = BufferPool::default();
        for (status, extras) in [
            (Status::SUCCESS, &[0, 0, 0, 1][..]),
            (Status::RANGE_SCAN_MORE, &[0, 0, 0, 1]),
            (Status::RANGE_SCAN_COMPLETE, &[0, 0, 0, 1]),
            (Status::RANGE_SCAN_CANCELLED, &[]),
            (Status::KEY_ENOENT, &[]),
            (Status::EINTERNAL, &[]),
        ] {
            let mut frame = ScanFrame::without_records(status, RecordKind::Documents, pool.head_only());
            assert_eq!(frame.is_final(), status != Status::SUCCESS);
            let Ok(Decoded::Frame(decoded)) =
                decode_frame(frame.encode(3, ResponseFraming::NONE), FrameLimits::AUTHENTICATED)
            else {
                panic!("{status} is not a frame")
            };
            assert_eq!((decoded.status(), decoded.extras, decoded.opaque()), (status, extras, 3));
            assert!(decoded.value.is_empty() && frame.into_sent().is_none());
        }
    }

    #[test]
    fn frames_may_cross_cores() {
        fn is_send<T: Send>() {}
        is_send::<ScanFrame>();
        is_send::<SentFrame>();
    }
}
