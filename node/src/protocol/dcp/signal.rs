//! The small messages: how a stream ends, states of a vbucket, seqnos without a document, out-of-order snapshots,
//! and what a client tells its producer.
//!
//! Cost: no allocation; 24 to 35 bytes are appended.
//!
//! Does not know: when any of them is due.

use bytes::BufMut;
use ringbase_storage::types::{Seqno, VbId};

use super::super::error_context::Refusal;
use super::super::extras::{ILLEGAL_LENGTH, decode_u32};
use super::super::{Frame, Opcode, Status};
use super::envelope::{Envelope, Shape, StreamId, only_extras};

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum StreamEndStatus {
    /// Everything up to its end was sent, or the takeover is done.
    Ok = 0,
    /// The client closed it.
    Closed = 1,
    /// The vbucket is no longer active or replica.
    StateChanged = 2,
    /// The connection ends; never on the wire.
    Disconnected = 3,
    /// The client takes too long.
    TooSlow = 4,
    /// The past could not be read; the snapshot is incomplete.
    BackfillFail = 5,
    /// The client has to roll back: it asks again and is told where to.
    Rollback = 6,
    /// Every collection it carried was dropped.
    FilterEmpty = 7,
    /// The user may no longer read a collection it carried.
    LostPrivileges = 8,
}

impl StreamEndStatus {
    /// The status with this number.
    #[must_use]
    pub fn from_u32(number: u32) -> Option<StreamEndStatus> {
        Some(match number {
            0 => StreamEndStatus::Ok,
            1 => StreamEndStatus::Closed,
            2 => StreamEndStatus::StateChanged,
            3 => StreamEndStatus::Disconnected,
            4 => StreamEndStatus::TooSlow,
            5 => StreamEndStatus::BackfillFail,
            6 => StreamEndStatus::Rollback,
            7 => StreamEndStatus::FilterEmpty,
            8 => StreamEndStatus::LostPrivileges,
            _ => return None,
        })
    }

    /// What a connection without Collections is told: it knows neither filters nor their privileges.
    #[must_use]
    pub fn without_collections(self) -> StreamEndStatus {
        match self {
            StreamEndStatus::FilterEmpty | StreamEndStatus::LostPrivileges => StreamEndStatus::Ok,
            status => status,
        }
    }

    /// Its name in logs and statistics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            StreamEndStatus::Ok => "Ok",
            StreamEndStatus::Closed => "Closed",
            StreamEndStatus::StateChanged => "StateChanged",
            StreamEndStatus::Disconnected => "Disconnected",
            StreamEndStatus::TooSlow => "TooSlow",
            StreamEndStatus::BackfillFail => "BackfillFail",
            StreamEndStatus::Rollback => "Rollback",
            StreamEndStatus::FilterEmpty => "FilterEmpty",
            StreamEndStatus::LostPrivileges => "LostPrivileges",
        }
    }
}

/// What a node does with a vbucket, as DCP_SET_VBUCKET_STATE and GET_ALL_VB_SEQNOS number it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum VbucketState {
    /// It serves clients.
    Active = 1,
    /// It follows an active one.
    Replica = 2,
    /// It is about to become active.
    Pending = 3,
    /// It is about to go.
    Dead = 4,
}

impl VbucketState {
    /// The state with this number.
    #[must_use]
    pub fn from_u32(number: u32) -> Option<VbucketState> {
        Some(match number {
            1 => VbucketState::Active,
            2 => VbucketState::Replica,
            3 => VbucketState::Pending,
            4 => VbucketState::Dead,
            _ => return None,
        })
    }

    /// Its name in statistics and options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            VbucketState::Active => "active",
            VbucketState::Replica => "replica",
            VbucketState::Pending => "pending",
            VbucketState::Dead => "dead",
        }
    }

    /// The state with this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<VbucketState> {
        VbucketState::ALL.into_iter().find(|state| state.name() == name)
    }

    /// All there are.
    pub const ALL: [VbucketState; 4] =
        [VbucketState::Active, VbucketState::Replica, VbucketState::Pending, VbucketState::Dead];
}

/// Beginning or end of a snapshot in key order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum OsoSnapshot {
    /// Documents in any order of seqno follow.
    Start = 1,
    /// The client's copy is consistent at the greatest seqno it saw.
    End = 2,
}

/// Appends DCP_STREAM_END.
pub fn encode_stream_end(status: StreamEndStatus, envelope: Envelope, out: &mut Vec<u8>) {
    put_u32(Opcode::DCP_STREAM_END, status as u32, envelope, out);
}

/// Appends DCP_OSO_SNAPSHOT.
pub fn encode_oso_snapshot(edge: OsoSnapshot, envelope: Envelope, out: &mut Vec<u8>) {
    put_u32(Opcode::DCP_OSO_SNAPSHOT, edge as u32, envelope, out);
}

/// Appends DCP_SEQNO_ADVANCED.
pub fn encode_seqno_advanced(seqno: Seqno, envelope: Envelope, out: &mut Vec<u8>) {
    put_u64(Opcode::DCP_SEQNO_ADVANCED, seqno.0, envelope, out);
}

/// Appends DCP_SEQNO_ACKNOWLEDGED, which a replica sends.
pub fn encode_seqno_acked(prepared: Seqno, envelope: Envelope, out: &mut Vec<u8>) {
    put_u64(Opcode::DCP_SEQNO_ACKNOWLEDGED, prepared.0, envelope, out);
}

/// Appends DCP_SET_VBUCKET_STATE.
pub fn encode_set_vbucket_state(state: VbucketState, envelope: Envelope, out: &mut Vec<u8>) {
    envelope.put(Shape::of_extras(Opcode::DCP_SET_VBUCKET_STATE, 1), out);
    out.put_u8(state as u8);
}

/// Appends a producer's DCP_NOOP; the peer answers with the same opaque.
pub fn encode_noop(opaque: u32, out: &mut Vec<u8>) {
    Envelope::new(VbId(0), opaque).put(Shape::of_extras(Opcode::DCP_NOOP, 0), out);
}

/// Appends a client's DCP_BUFFER_ACKNOWLEDGEMENT, which has no answer.
pub fn encode_buffer_ack(bytes: u32, opaque: u32, out: &mut Vec<u8>) {
    put_u32(Opcode::DCP_BUFFER_ACKNOWLEDGEMENT, bytes, Envelope::new(VbId(0), opaque), out);
}

/// Appends a client's DCP_CLOSE_STREAM. Its opaque is the client's own, not that of the stream.
pub fn encode_close_stream(envelope: Envelope, out: &mut Vec<u8>) {
    envelope.put(Shape::of_extras(Opcode::DCP_CLOSE_STREAM, 0), out);
}

/// The bytes a DCP_BUFFER_ACKNOWLEDGEMENT gives back.
///
/// # Errors
/// EINVAL for another length.
pub fn decode_buffer_ack(extras: &[u8]) -> Result<u32, Refusal> {
    decode_u32(extras)
}

/// The seqno of DCP_SEQNO_ACKNOWLEDGED, DCP_SEQNO_ADVANCED or SEQNO_PERSISTENCE.
///
/// # Errors
/// EINVAL for another length.
pub fn decode_seqno(extras: &[u8]) -> Result<Seqno, Refusal> {
    extras.try_into().map(|bytes| Seqno(u64::from_be_bytes(bytes))).map_err(|_| ILLEGAL_LENGTH)
}

/// The stream that a DCP_CLOSE_STREAM names beside its vbucket, on a connection where stream ids are on if `enabled`.
///
/// # Errors
/// DCP_STREAM_ID_INVALID if there is an id without the control, none with it, or 0; what the framing section says.
pub fn decode_close_stream(frame: &Frame<'_>, enabled: bool) -> Result<Option<StreamId>, Refusal> {
    only_extras(frame)?;
    let framing = super::super::RequestFraming::decode(frame.framing, frame.opcode())?;
    let invalid = Refusal::new(Status::DCP_STREAM_ID_INVALID, "The stream id is missing, 0 or not enabled");
    match (framing.stream_id, enabled) {
        (None, false) => Ok(None),
        (Some(id), true) => StreamId::new(id).map(Some).ok_or(invalid),
        (None, true) | (Some(_), false) => Err(invalid),
    }
}

fn put_u32(opcode: Opcode, number: u32, envelope: Envelope, out: &mut Vec<u8>) {
    envelope.put(Shape::of_extras(opcode, 4), out);
    out.put_u32(number);
}

fn put_u64(opcode: Opcode, number: u64, envelope: Envelope, out: &mut Vec<u8>) {
    envelope.put(Shape::of_extras(opcode, 8), out);
    out.put_u64(number);
}

pub(super) fn decode_stream_end(frame: &Frame<'_>) -> Result<StreamEndStatus, Refusal> {
    only_extras(frame)?;
    StreamEndStatus::from_u32(decode_u32(frame.extras)?).ok_or(Refusal::einval("Unknown end of a stream"))
}

pub(super) fn decode_oso_snapshot(frame: &Frame<'_>) -> Result<OsoSnapshot, Refusal> {
    only_extras(frame)?;
    match decode_u32(frame.extras)? {
        1 => Ok(OsoSnapshot::Start),
        2 => Ok(OsoSnapshot::End),
        _ => Err(Refusal::einval("An out-of-order snapshot starts or ends, 1 or 2")),
    }
}

pub(super) fn decode_set_vbucket_state(frame: &Frame<'_>) -> Result<VbucketState, Refusal> {
    only_extras(frame)?;
    let [number] = *frame.extras_array::<1>().ok_or(ILLEGAL_LENGTH)?;
    VbucketState::from_u32(u32::from(number)).ok_or(Refusal::einval("Unknown vbucket state"))
}

pub(super) fn decode_only_seqno(frame: &Frame<'_>) -> Result<Seqno, Refusal> {
    only_extras(frame)?;
    decode_seqno(frame.extras)
}

#[cfg(test)]
mod tests {
    use super::super::testing::frame;
    use super::*;

    #[test]
    fn filters_are_news_only_to_connections_with_collections() {
        for number in 0..=9 {
            let status = StreamEndStatus::from_u32(number);
            assert_eq!(status.map(|status| status as u32), (number <= 8).then_some(number));
            let Some(status) = status else { continue };
            let expected = if number >= 7 { StreamEndStatus::Ok } else { status };
            assert_eq!(status.without_collections(), expected, "{}", status.name());
        }
    }

    #[test]
    fn a_stream_is_closed_by_id_exactly_when_stream_ids_are_on() {
        let plain = Envelope::new(VbId(5), 9);
        let with_id = plain.with_stream_id(StreamId::new(2).unwrap());
        let status = |envelope: Envelope, enabled| {
            let mut out = Vec::new();
            encode_close_stream(envelope, &mut out);
            let id = decode_close_stream(&frame(&out), enabled);
            id.map(|id| id.map(StreamId::get)).map_err(|refusal| refusal.status)
        };
        assert_eq!(status(plain, false), Ok(None));
        assert_eq!(status(with_id, true), Ok(Some(2)));
        assert_eq!(status(plain, true), Err(Status::DCP_STREAM_ID_INVALID));
        assert_eq!(status(with_id, false), Err(Status::DCP_STREAM_ID_INVALID));
    }

    #[test]
    fn what_a_client_tells_its_producer_reads_back() {
        let mut out = Vec::new();
        encode_buffer_ack(4096, 5, &mut out);
        assert_eq!(decode_buffer_ack(frame(&out).extras), Ok(4096));
        assert!(decode_buffer_ack(&[0; 3]).is_err());
        out.clear();
        encode_seqno_acked(Seqno(4), Envelope::new(VbId(528), 1), &mut out);
        assert_eq!(decode_seqno(frame(&out).extras), Ok(Seqno(4)));
        assert!(decode_seqno(&[0; 9]).is_err());
    }
}
