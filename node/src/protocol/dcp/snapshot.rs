//! DCP_SNAPSHOT_MARKER: the seqno range that the messages after it belong to, in its three versions.
//!
//! Cost: no allocation; 44, 61 or 77 bytes are appended.
//!
//! Does not know: which version a connection takes, whether the range is consistent.

use bytes::BufMut;
use ringbase_storage::types::Seqno;

use super::super::error_context::Refusal;
use super::super::extras::{take_u32, take_u64, whole};
use super::super::{Frame, Opcode};
use super::envelope::{Envelope, Shape, no_key, no_value};

/// The flags of a marker; unknown bits are kept.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct MarkerFlags(pub u32);

impl MarkerFlags {
    /// From memory.
    pub const MEMORY: MarkerFlags = MarkerFlags(0x01);
    /// From disk.
    pub const DISK: MarkerFlags = MarkerFlags(0x02);
    /// A checkpoint begins.
    pub const CHECKPOINT: MarkerFlags = MarkerFlags(0x04);
    /// The client must answer when it has the whole snapshot.
    pub const ACK: MarkerFlags = MarkerFlags(0x08);
    /// Every version is there, not only the last.
    pub const HISTORY: MarkerFlags = MarkerFlags(0x10);
    /// A key may occur more than once.
    pub const MAY_CONTAIN_DUPLICATE_KEYS: MarkerFlags = MarkerFlags(0x20);
    /// What a backfill says.
    pub const BACKFILL: MarkerFlags = MarkerFlags(0x06);

    /// Whether every flag of `other` is set.
    #[must_use]
    pub fn contains(self, other: MarkerFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for MarkerFlags {
    type Output = MarkerFlags;

    fn bitor(self, other: MarkerFlags) -> MarkerFlags {
        MarkerFlags(self.0 | other.0)
    }
}

/// What a version adds to range and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkerVersion {
    /// Nothing.
    V1,
    /// For replicas.
    V2_0 {
        /// Greatest seqno that a client without sync writes sees.
        max_visible: Seqno,
        /// Greatest prepare that was completed; 0 unless from disk.
        high_completed: Seqno,
    },
    /// For clients that asked for it.
    V2_2 {
        /// Greatest seqno that a client without sync writes sees.
        max_visible: Seqno,
        /// Greatest prepare that was completed; 0 unless from disk.
        high_completed: Seqno,
        /// Greatest purged tombstone; 0 unless from disk.
        purge: Seqno,
        /// Greatest prepare; 0 unless from disk.
        high_prepared: Seqno,
    },
}

/// One marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotMarker {
    /// First seqno of the snapshot.
    pub start: Seqno,
    /// Last seqno of the snapshot.
    pub end: Seqno,
    /// Where it comes from.
    pub flags: MarkerFlags,
    /// What else is told.
    pub version: MarkerVersion,
}

const V2_0: u8 = 0;
const V2_2: u8 = 2;

impl SnapshotMarker {
    pub(super) fn decode(frame: &Frame<'_>) -> Result<SnapshotMarker, Refusal> {
        no_key(frame)?;
        let (mut rest, version) = match *frame.extras {
            [version @ (V2_0 | V2_2)] => (frame.value, Some(version)),
            [_] => return Err(Refusal::einval("Unknown version of a snapshot marker")),
            _ => {
                no_value(frame)?;
                (frame.extras, None)
            }
        };
        let mut decode = || {
            let start = Seqno(take_u64(&mut rest)?);
            let end = Seqno(take_u64(&mut rest)?);
            let flags = MarkerFlags(take_u32(&mut rest)?);
            let mut seqno = || take_u64(&mut rest).map(Seqno);
            let version = match version {
                None => MarkerVersion::V1,
                Some(V2_0) => MarkerVersion::V2_0 { max_visible: seqno()?, high_completed: seqno()? },
                Some(_) => MarkerVersion::V2_2 {
                    max_visible: seqno()?,
                    high_completed: seqno()?,
                    purge: seqno()?,
                    high_prepared: seqno()?,
                },
            };
            whole(SnapshotMarker { start, end, flags, version }, rest)
        };
        decode().ok_or(Refusal::einval("A snapshot marker has an illegal length"))
    }

    /// Appends the message to `out`.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let (version, value_bytes) = match self.version {
            MarkerVersion::V1 => (None, 0),
            MarkerVersion::V2_0 { .. } => (Some(V2_0), 36),
            MarkerVersion::V2_2 { .. } => (Some(V2_2), 52),
        };
        let extras_bytes = if version.is_some() { 1 } else { 20 };
        let shape = Shape { value_bytes, ..Shape::of_extras(Opcode::DCP_SNAPSHOT_MARKER, extras_bytes) };
        envelope.put(shape, out);
        if let Some(version) = version {
            out.put_u8(version);
        }
        out.put_u64(self.start.0);
        out.put_u64(self.end.0);
        out.put_u32(self.flags.0);
        match self.version {
            MarkerVersion::V1 => {}
            MarkerVersion::V2_0 { max_visible, high_completed } => {
                out.put_u64(max_visible.0);
                out.put_u64(high_completed.0);
            }
            MarkerVersion::V2_2 { max_visible, high_completed, purge, high_prepared } => {
                for seqno in [max_visible, high_completed, purge, high_prepared] {
                    out.put_u64(seqno.0);
                }
            }
        }
    }
}
