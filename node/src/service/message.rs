//! What cores tell each other. A token names what waits for an answer on the core that asked.
//!
//! Does not know: how a message is handled.

use std::time::Duration;

use ringbase_storage::types::BucketId;

use crate::bucket::{BucketChange, ChangeError, Step};
use crate::command::{AskedSeqnos, SessionView, StatPart, StatQuery, VbSeqnos};
use crate::core::mailbox;
use crate::dcp::piece::{SentPiece, StreamAnswer, StreamNumber, StreamPiece, StreamSpec};
use crate::net::ConnId;
use crate::range_scan::{ScanFrame, SentFrame};

/// Names a request that waits for another core, on the core that asked. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token(pub(super) u64);

/// What tells DCP connections of one name apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProducerName {
    pub(super) name: Vec<u8>,
    pub(super) bucket: BucketId,
    pub(super) opened: Duration,
    pub(super) connection: ConnId,
}

/// See the module.
pub(super) enum Message {
    /// Execute a request for a vbucket of the receiver.
    Request { token: Token, view: SessionView, received_ns: u64, frame: Vec<u8> },
    /// The whole answer to a request.
    Answer { token: Token, frame: Vec<u8> },
    /// A request has no answer: its connection must be closed.
    CloseConnection { token: Token },
    /// One frame of a range scan's answer.
    ScanFrame { token: Token, frame: ScanFrame },
    /// A frame's buffer has been taken by the kernel.
    ScanFrameSent { sent: SentFrame },
    /// A stream is asked for.
    Stream { token: Token, spec: Box<StreamSpec> },
    /// Whether it begins.
    StreamAnswer { token: Token, answer: StreamAnswer },
    /// Some messages of a stream.
    StreamPiece { piece: StreamPiece },
    /// A piece's buffer has been taken by the kernel.
    StreamPieceSent { sent: SentPiece },
    /// A stream was closed by its connection.
    StreamClosed { number: StreamNumber },
    /// A DCP connection was opened: older ones of its name go.
    ProducerOpened { producer: ProducerName },
    /// A connection that has used range scans or streams is gone.
    ConnectionGone { connection: ConnId },
    /// Statistics are wanted.
    Stat { token: Token, query: StatQuery },
    /// Statistics of one core.
    StatPart { token: Token, part: StatPart },
    /// Seqnos of a bucket's vbuckets are wanted.
    Seqnos { token: Token, bucket: BucketId, asked: AskedSeqnos },
    /// Those of one core.
    SeqnosTold { token: Token, part: VbSeqnos },
    /// A bucket is to be changed by the core that decides which buckets exist.
    Bucket { token: Token, change: BucketChange },
    /// What became of it.
    BucketDone { token: Token, result: Result<(), ChangeError> },
    /// A step of a change that every core takes.
    Step { token: Token, step: Step },
    /// A step has been taken.
    StepDone { token: Token, result: Result<(), ChangeError> },
    /// A parameter changes on every core.
    SetParam { name: String, value: String },
}

impl mailbox::Message for Message {
    fn bytes(&self) -> usize {
        match self {
            Message::Request { frame, .. } | Message::Answer { frame, .. } => frame.capacity() + 64,
            Message::ScanFrame { frame, .. } => frame.records().len() + 64,
            Message::StatPart { .. } | Message::Step { .. } => 4096,
            Message::SeqnosTold { part, .. } => part.as_ref().map_or(0, |part| 16 * part.len()) + 64,
            Message::StreamPiece { piece } => piece.content.messages().len() + 64,
            Message::Stream { .. } | Message::StreamAnswer { .. } => 1024,
            Message::ProducerOpened { producer } => producer.name.len() + 64,
            Message::SetParam { name, value } => name.len() + value.len() + 64,
            Message::CloseConnection { .. }
            | Message::ScanFrameSent { .. }
            | Message::StreamPieceSent { .. }
            | Message::StreamClosed { .. }
            | Message::ConnectionGone { .. }
            | Message::Bucket { .. }
            | Message::BucketDone { .. }
            | Message::StepDone { .. }
            | Message::Stat { .. }
            | Message::Seqnos { .. } => 64,
        }
    }
}
