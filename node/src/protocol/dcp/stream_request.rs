//! DCP_STREAM_REQ and its answer, and DCP_ADD_STREAM, which has the same flags.
//!
//! Invariants
//! - Decoded [`StreamFlags`] are known ones; cache transfer is refused.
//! - A decoded failover log has 1 to [`FAILOVER_ENTRIES_MAX`] entries.
//!
//! Cost: no allocation but the entries of a decoded failover log.
//!
//! Does not know: filters (`stream_filter`), the order of the checks, what a vbucket holds.

use bytes::BufMut;
use ringbase_storage::types::{FailoverEntry, Seqno, VbId, VbUuid};

use super::super::error_context::Refusal;
use super::super::extras::{ILLEGAL_LENGTH, decode_u32, take_u32, take_u64, whole};
use super::super::request::EncodeError;
use super::super::{Datatype, Frame, Opcode, Request, Status};
use super::stream_filter::StreamFilter;

/// Most entries of a failover log.
pub const FAILOVER_ENTRIES_MAX: usize = 25;

/// Bytes of one entry of a failover log.
const FAILOVER_ENTRY_BYTES: usize = 16;

/// The flags of a stream.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct StreamFlags(u32);

impl StreamFlags {
    /// No flag.
    pub const NONE: StreamFlags = StreamFlags(0);
    /// The vbucket moves to the client.
    pub const TAKE_OVER: StreamFlags = StreamFlags(0x01);
    /// The stream ends at the persisted seqno.
    pub const DISK_ONLY: StreamFlags = StreamFlags(0x02);
    /// The stream ends at the high seqno.
    pub const TO_LATEST: StreamFlags = StreamFlags(0x04);
    /// Only an active vbucket is streamed.
    pub const ACTIVE_VB_ONLY: StreamFlags = StreamFlags(0x10);
    /// The uuid is checked even at start 0.
    pub const STRICT_VB_UUID: StreamFlags = StreamFlags(0x20);
    /// The stream begins at the high seqno.
    pub const FROM_LATEST: StreamFlags = StreamFlags(0x40);
    /// Purged tombstones are no reason to roll back.
    pub const IGNORE_PURGED_TOMBSTONES: StreamFlags = StreamFlags(0x80);

    const KNOWN: u32 = 0xf7;
    const CACHE_TRANSFER: u32 = 0x100;

    /// Decodes the flags of a request.
    ///
    /// # Errors
    /// NOT_SUPPORTED for cache transfer, EINVAL for every other unknown flag and the retired NoValue.
    pub fn decode(bits: u32) -> Result<StreamFlags, Refusal> {
        if bits & !(StreamFlags::KNOWN | StreamFlags::CACHE_TRANSFER) != 0 {
            return Err(Refusal::einval("Unknown flag of a stream"));
        }
        if bits & StreamFlags::CACHE_TRANSFER != 0 {
            return Err(Refusal::new(Status::NOT_SUPPORTED, "Cache transfer is not supported"));
        }
        Ok(StreamFlags(bits))
    }

    /// Whether every flag of `other` is set.
    #[must_use]
    pub fn contains(self, other: StreamFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The wire form.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl std::ops::BitOr for StreamFlags {
    type Output = StreamFlags;

    fn bitor(self, other: StreamFlags) -> StreamFlags {
        StreamFlags(self.0 | other.0)
    }
}

/// The extras of DCP_STREAM_REQ: what the client has and wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRequest {
    /// How to stream.
    pub flags: StreamFlags,
    /// The last seqno the client has; what is sent is above.
    pub start: Seqno,
    /// The last seqno to send; [`StreamRequest::NO_END`] for a stream that does not end.
    pub end: Seqno,
    /// The branch of history the client's copy is on; 0 if it has none.
    pub uuid: VbUuid,
    /// First seqno of the snapshot that `start` is in.
    pub snap_start: Seqno,
    /// Last seqno of that snapshot.
    pub snap_end: Seqno,
}

impl StreamRequest {
    /// The end of a stream that does not end.
    pub const NO_END: Seqno = Seqno(u64::MAX);

    /// A stream of everything, now and later, for a client that has nothing.
    pub const FROM_NOTHING: StreamRequest = StreamRequest {
        flags: StreamFlags::NONE,
        start: Seqno(0),
        end: StreamRequest::NO_END,
        uuid: VbUuid(0),
        snap_start: Seqno(0),
        snap_end: Seqno(0),
    };

    /// Decodes 48 bytes: flags, four reserved, start, end, uuid, snapshot start and end.
    ///
    /// # Errors
    /// EINVAL for another length; as [`StreamFlags::decode`].
    pub fn decode(extras: &[u8]) -> Result<StreamRequest, Refusal> {
        let decode = |mut rest| {
            let bits = take_u32(&mut rest)?;
            take_u32(&mut rest)?;
            let [start, end, uuid, snap_start] =
                [take_u64(&mut rest)?, take_u64(&mut rest)?, take_u64(&mut rest)?, take_u64(&mut rest)?];
            let request = StreamRequest {
                flags: StreamFlags::NONE,
                start: Seqno(start),
                end: Seqno(end),
                uuid: VbUuid(uuid),
                snap_start: Seqno(snap_start),
                snap_end: Seqno(take_u64(&mut rest)?),
            };
            whole((bits, request), rest)
        };
        let (bits, request) = decode(extras).ok_or(ILLEGAL_LENGTH)?;
        Ok(StreamRequest { flags: StreamFlags::decode(bits)?, ..request })
    }

    /// Encodes 48 bytes.
    #[must_use]
    pub fn extras(&self) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes[..4].copy_from_slice(&self.flags.bits().to_be_bytes());
        let numbers = [self.start.0, self.end.0, self.uuid.0, self.snap_start.0, self.snap_end.0];
        for (place, number) in bytes[8..].as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *place = number.to_be_bytes();
        }
        bytes
    }

    /// Appends the request to `out`; `filter` only on connections with Collections.
    ///
    /// # Errors
    /// As [`Request::encode`].
    pub fn encode(
        &self,
        vbucket: VbId,
        opaque: u32,
        filter: Option<&StreamFilter>,
        out: &mut impl BufMut,
    ) -> Result<(), EncodeError> {
        let value = filter.map_or(Vec::new(), StreamFilter::encode);
        Request::new(Opcode::DCP_STREAM_REQ)
            .vbucket(vbucket)
            .opaque(opaque)
            .datatype(if value.is_empty() { Datatype::RAW } else { Datatype::JSON })
            .extras(&self.extras())
            .value(&value)
            .encode(out)
    }
}

/// The answer to DCP_STREAM_REQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamReply {
    /// The stream begins; the vbucket's failover log, newest first.
    Accepted(Vec<FailoverEntry>),
    /// The client must go back to this seqno first.
    Rollback(Seqno),
    /// There is no stream.
    Refused(Status),
}

impl StreamReply {
    /// Decodes a response; `None` if its body does not fit its status.
    #[must_use]
    pub fn decode(response: &Frame<'_>) -> Option<StreamReply> {
        Some(match response.status() {
            Status::SUCCESS => StreamReply::Accepted(decode_failover_log(response.value)?),
            Status::ROLLBACK => StreamReply::Rollback(decode_rollback(response.value)?),
            status => StreamReply::Refused(status),
        })
    }
}

/// Appends the value of a stream's or a GET_FAILOVER_LOG's success to `out`: `log`, newest first.
pub fn encode_failover_log(log: &[FailoverEntry], out: &mut Vec<u8>) {
    out.reserve(log.len() * FAILOVER_ENTRY_BYTES);
    for entry in log {
        out.put_u64(entry.uuid.0);
        out.put_u64(entry.seqno.0);
    }
}

/// Decodes a failover log; `None` if it is empty, torn or longer than [`FAILOVER_ENTRIES_MAX`].
#[must_use]
pub fn decode_failover_log(value: &[u8]) -> Option<Vec<FailoverEntry>> {
    let (numbers, torn) = value.as_chunks::<FAILOVER_ENTRY_BYTES>();
    if !torn.is_empty() || numbers.is_empty() || numbers.len() > FAILOVER_ENTRIES_MAX {
        return None;
    }
    let entry = |bytes: &[u8; FAILOVER_ENTRY_BYTES]| {
        let mut rest = &bytes[..];
        Some(FailoverEntry { uuid: VbUuid(take_u64(&mut rest)?), seqno: Seqno(take_u64(&mut rest)?) })
    };
    numbers.iter().map(entry).collect()
}

/// The value of a ROLLBACK answer.
#[must_use]
pub fn encode_rollback(seqno: Seqno) -> [u8; 8] {
    seqno.0.to_be_bytes()
}

/// Decodes the value of a ROLLBACK answer.
#[must_use]
pub fn decode_rollback(value: &[u8]) -> Option<Seqno> {
    value.try_into().ok().map(u64::from_be_bytes).map(Seqno)
}

/// Decodes the extras of DCP_ADD_STREAM.
///
/// # Errors
/// EINVAL for another length; as [`StreamFlags::decode`].
pub fn decode_add_stream(extras: &[u8]) -> Result<StreamFlags, Refusal> {
    StreamFlags::decode(decode_u32(extras)?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::frame;
    use super::*;

    #[test]
    fn a_request_reads_back_and_other_lengths_are_refused() {
        let request = StreamRequest {
            flags: StreamFlags::TO_LATEST | StreamFlags::STRICT_VB_UUID,
            start: Seqno(1),
            end: Seqno(2),
            uuid: VbUuid(3),
            snap_start: Seqno(4),
            snap_end: Seqno(5),
        };
        assert_eq!(StreamRequest::decode(&request.extras()), Ok(request));
        for len in (0..60).filter(|len| *len != 48) {
            assert_eq!(StreamRequest::decode(&vec![0; len]).unwrap_err().status, Status::EINVAL, "{len}");
        }
    }

    #[test]
    fn unknown_flags_are_einval_and_cache_transfer_is_not_supported() {
        let status =
            |bits| StreamFlags::decode(bits).map(StreamFlags::bits).map_err(|refusal| refusal.status);
        for bit in 0..32 {
            let bits = 1u32 << bit;
            match bits {
                0x08 => assert_eq!(status(bits), Err(Status::EINVAL), "the retired NoValue"),
                0x100 => assert_eq!(status(bits), Err(Status::NOT_SUPPORTED)),
                _ if bits < 0x100 => assert_eq!(status(bits), Ok(bits)),
                _ => assert_eq!(status(bits), Err(Status::EINVAL), "{bits:#x}"),
            }
        }
        assert_eq!(status(0x111), Err(Status::NOT_SUPPORTED), "with takeover and active only, too");
        assert_eq!(status(0x108), Err(Status::EINVAL));
        assert_eq!(decode_add_stream(&[0, 0, 0, 1]), Ok(StreamFlags::TAKE_OVER));
        assert!(decode_add_stream(&[0, 0, 0, 8]).is_err() && decode_add_stream(&[0; 5]).is_err());
    }

    #[test]
    fn a_failover_log_has_1_to_25_whole_entries() {
        let log: Vec<FailoverEntry> =
            (1..=26).map(|n| FailoverEntry { uuid: VbUuid(n), seqno: Seqno(100 - n) }).collect();
        for count in 0..=26 {
            let mut value = Vec::new();
            encode_failover_log(&log[..count], &mut value);
            let expected = (1..=25).contains(&count).then(|| log[..count].to_vec());
            assert_eq!(decode_failover_log(&value), expected, "{count}");
            value.push(0);
            assert_eq!(decode_failover_log(&value), None);
        }
        assert_eq!(decode_rollback(&encode_rollback(Seqno(7))), Some(Seqno(7)));
        assert_eq!(decode_rollback(&[0; 7]), None);
    }

    #[test]
    fn the_three_answers_are_told_apart() {
        let reply = |status, value: &[u8]| {
            let mut out = Vec::new();
            super::super::super::Response::new(Opcode::DCP_STREAM_REQ, 1, status)
                .value(value)
                .encode(&mut out);
            StreamReply::decode(&frame(&out))
        };
        assert_eq!(reply(Status::SUCCESS, &[]), None);
        let one = vec![FailoverEntry { uuid: VbUuid(0), seqno: Seqno(0) }];
        assert_eq!(reply(Status::SUCCESS, &[0; 16]), Some(StreamReply::Accepted(one)));
        assert_eq!(reply(Status::ROLLBACK, &[0; 8]), Some(StreamReply::Rollback(Seqno(0))));
        assert_eq!(reply(Status::ROLLBACK, &[]), None);
        assert_eq!(reply(Status::ERANGE, b"{}"), Some(StreamReply::Refused(Status::ERANGE)));
    }
}
