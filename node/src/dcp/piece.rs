//! What crosses between the core that reads a stream and the core that sends it.
//!
//! Invariants
//! - A piece holds whole messages. The last one of a stream ends with its end.
//!
//! Does not know: sockets, mailboxes, who reads.

use std::sync::Arc;

use ringbase_storage::types::{BucketId, FailoverEntry, Seqno, VbId};

use super::rollback::Claim;
use super::settings::MarkerForm;
use super::time::ClosedTime;
use crate::bucket::Access;
use crate::protocol::Refusal;
use crate::protocol::dcp::{
    DocumentForm, Envelope, FilterSelection, OutOfOrderSnapshots, Priority, StreamFlags, StreamRequest,
};
use crate::range_scan::{ConnectionId, ScanBuffer};

/// Names a stream for the life of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamNumber(pub u64);

/// By what a connection can be asked for besides its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Its user.
    pub user: String,
    /// The port of the node that it is connected to.
    pub port: u16,
}

/// A stream that a connection asks for; what the connection's core could check has been.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    /// Its number.
    pub number: StreamNumber,
    /// Whose it is.
    pub connection: ConnectionId,
    /// The name of the connection, as it is shown.
    pub name: Arc<str>,
    /// Who the client is.
    pub origin: Arc<Origin>,
    /// How long the client's window has been closed.
    pub window: Arc<ClosedTime>,
    /// How long its socket was full while the window was open.
    pub socket: Arc<ClosedTime>,
    /// The bucket.
    pub bucket: BucketId,
    /// The address of its messages, its vbucket with them.
    pub envelope: Envelope,
    /// What the client has and wants.
    pub request: StreamRequest,
    /// What of the vbucket is carried; `None` on a connection without Collections.
    pub selection: Option<FilterSelection>,
    /// The purge seqno that the client was told.
    pub purge_seqno: Option<Seqno>,
    /// How documents are sent.
    pub form: DocumentForm,
    /// How markers are sent.
    pub markers: MarkerForm,
    /// Whether tombstones are left out of the first backfill from 0.
    pub skips_deletes: bool,
    /// Whether its past may come in key order.
    pub out_of_order: OutOfOrderSnapshots,
    /// How urgent the work of its connection is.
    pub priority: Priority,
    /// Whether its backfills wait for those of the connection's streams that were asked for before, on this core.
    pub is_sequential: bool,
}

impl StreamSpec {
    /// What the client says it has.
    #[must_use]
    pub fn claim(&self) -> Claim {
        Claim::of(&self.request, self.purge_seqno, None)
    }

    /// What it wants of its vbucket, as long as it lasts.
    #[must_use]
    pub fn access(&self) -> Access {
        access_of(&self.request)
    }
}

/// What a stream wants of its vbucket.
#[must_use]
pub fn access_of(request: &StreamRequest) -> Access {
    match request.flags.contains(StreamFlags::ACTIVE_VB_ONLY) {
        true => Access::ActiveStream,
        false => Access::Stream,
    }
}

/// What the vbucket says to a stream request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamAnswer {
    /// It begins; the branches of the vbucket.
    Accepted(Vec<FailoverEntry>),
    /// The client must go back to this seqno first.
    RollBack(Seqno),
    /// There is none.
    Refused(Refusal),
}

/// Some messages of a stream.
#[derive(Debug)]
pub struct StreamPiece {
    /// Whose.
    pub number: StreamNumber,
    /// The vbucket of the stream.
    pub vb: VbId,
    /// The messages.
    pub content: Content,
    /// Documents in it.
    pub items: u32,
    /// Whether the stream ends with it.
    pub is_last: bool,
    /// Whether what was handed over before and is not sent is dropped.
    pub discards: bool,
    /// Whether its connection is to be closed, without a word: a bug of ours has ended the stream.
    pub disconnects: bool,
}

/// The bytes of a piece.
#[derive(Debug)]
pub enum Content {
    /// A buffer that comes home when it was sent.
    Buffer(ScanBuffer),
    /// A few bytes that do not.
    Small(Vec<u8>),
}

impl Content {
    /// The messages.
    #[must_use]
    pub fn messages(&self) -> &[u8] {
        match self {
            Content::Buffer(buffer) => buffer.records(),
            Content::Small(bytes) => bytes,
        }
    }
}

/// A buffer on its way home.
#[derive(Debug)]
pub struct SentPiece {
    /// The stream that filled it.
    pub number: StreamNumber,
    /// Its vbucket.
    pub vb: VbId,
    /// The buffer.
    pub buffer: ScanBuffer,
}

/// Where the pieces of a stream go. Called on the vbucket's core, in order, with no borrow held; must not block.
pub trait PieceSink {
    /// Takes a piece.
    fn send(&self, piece: StreamPiece);
}
