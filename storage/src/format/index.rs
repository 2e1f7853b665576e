//! Fences: what finds the block of a seqno in a seqlog segment, and the block of a key in a run; and death marks.
//!
//! Payload of a seqlog index: count, then per block: first seqno (8), last seqno (8), place (8), device blocks (4),
//! records (4); then the totals, which older builds did not write: bytes of the records (8), seqno up to which it is settled (8).
//! Payload of a mark block: count, then per mark: dead seqno (8), superseding seqno (8). Seqnos have 48 bits: above that of the dead one stand the
//! lower, above that of the superseding one the upper 16 bits of the dead record's length, 0 if nobody knew it.
//! Payload of a run index: count, then per key part: place (8), device blocks of the key part (2) and of the metadata
//! part (2), records (4), first key's length (2) and bytes, with prefix; then the filter's bytes to the end.
//!
//! Does not know: where these blocks lie.

use super::FormatError;
use super::bytes::{Reader, WriteLe};
use crate::types::{KEY_BYTES_MAX, SEQNO_MAX, Seqno};

/// Finds one block of a seqlog segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SeqlogFence {
    /// Seqno of the first record.
    pub first: Seqno,
    /// Seqno of the last record.
    pub last: Seqno,
    /// First device block.
    pub place: u64,
    /// Device blocks.
    pub blocks: u32,
    /// Records inside.
    pub records: u32,
}

/// Finds one key part of a run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KeyFence {
    /// First key, with prefix.
    pub first_key: Box<[u8]>,
    /// First device block of the key part; the metadata part follows it.
    pub place: u64,
    /// Device blocks of the key part.
    pub key_blocks: u16,
    /// Device blocks of the metadata part.
    pub meta_blocks: u16,
    /// Keys inside.
    pub records: u32,
}

/// What is known of a whole segment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SegmentTotals {
    /// Bytes of its records.
    pub record_bytes: u64,
    /// A mark whose superseding seqno is not above this one is of a record that the segment does not have any more.
    pub settled: Seqno,
}

/// The record `dead` was superseded by the record `by` of the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct DeathMark {
    /// The superseded record.
    pub dead: Seqno,
    /// What superseded it; of marks that were written again: a seqno not below that.
    pub by: Seqno,
    /// Bytes of the superseded record, 0 if nobody knew.
    pub bytes: u32,
}

/// The payload of a seqlog index.
#[must_use]
pub fn encode_seqlog_index(fences: &[SeqlogFence], totals: Option<SegmentTotals>) -> Vec<u8> {
    let mut out = Vec::with_capacity(20 + fences.len() * 32);
    out.put_u32(fences.len() as u32);
    for fence in fences {
        out.put_u64(fence.first.0);
        out.put_u64(fence.last.0);
        out.put_u64(fence.place);
        out.put_u32(fence.blocks);
        out.put_u32(fence.records);
    }
    if let Some(totals) = totals {
        out.put_u64(totals.record_bytes);
        out.put_u64(totals.settled.0);
    }
    out
}

/// Decodes the payload of a seqlog index. An older build wrote no totals.
///
/// # Errors
/// `Short`; `Invalid` if the fences do not rise, or if something stands behind the totals.
pub fn decode_seqlog_index(payload: &[u8]) -> Result<(Vec<SeqlogFence>, Option<SegmentTotals>), FormatError> {
    let mut reader = Reader::new("seqlog index", payload);
    let count = reader.count(32, "fences")?;
    let mut fences: Vec<SeqlogFence> = Vec::with_capacity(count);
    for _ in 0..count {
        let fence = SeqlogFence {
            first: Seqno(reader.number("first seqno")?),
            last: Seqno(reader.number("last seqno")?),
            place: reader.place("place")?,
            blocks: reader.u32("blocks")?,
            records: reader.u32("records")?,
        };
        let after = fences.last().map_or(Seqno(0), |before| before.last);
        if fence.first <= after || fence.last < fence.first || fence.blocks == 0 {
            return Err(reader.invalid("first seqno", fence.first.0, "above the last of the fence before"));
        }
        fences.push(fence);
    }
    if reader.remaining() == 0 {
        return Ok((fences, None));
    }
    let record_bytes = reader.number("record bytes")?;
    let settled = Seqno(reader.number("settled seqno")?);
    match reader.remaining() {
        0 => Ok((fences, Some(SegmentTotals { record_bytes, settled }))),
        rest => Err(reader.invalid("length", rest as u64, "nothing behind the totals")),
    }
}

/// Bits of a seqno in a mark.
const SEQNO_BITS: u32 = 48;

/// The payload of a mark block.
#[must_use]
pub fn encode_marks(marks: &[DeathMark]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + marks.len() * 16);
    out.put_u32(marks.len() as u32);
    for mark in marks {
        let (low, high) = (u64::from(mark.bytes & 0xffff), u64::from(mark.bytes >> 16));
        out.put_u64(mark.dead.0 | low << SEQNO_BITS);
        out.put_u64(mark.by.0 | high << SEQNO_BITS);
    }
    out
}

/// Decodes the payload of a mark block.
///
/// # Errors
/// `Short`; `Invalid` if a record would be superseded by an older one.
pub fn decode_marks(payload: &[u8]) -> Result<Vec<DeathMark>, FormatError> {
    let mut reader = Reader::new("death marks", payload);
    let count = reader.count(16, "marks")?;
    let mut marks = Vec::with_capacity(count);
    for _ in 0..count {
        let (dead, by) = (reader.u64("dead")?, reader.u64("superseding")?);
        let bytes = (by >> SEQNO_BITS << 16 | dead >> SEQNO_BITS) as u32;
        let (dead, by) = (Seqno(dead & SEQNO_MAX.0), Seqno(by & SEQNO_MAX.0));
        let mark = DeathMark { dead, by, bytes };
        if mark.by <= mark.dead {
            return Err(reader.invalid("superseding seqno", mark.by.0, "above the dead one"));
        }
        marks.push(mark);
    }
    Ok(marks)
}

/// The payload of a run index.
#[must_use]
pub fn encode_run_index(fences: &[KeyFence], filter: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + fences.len() * 64 + filter.len());
    out.put_u32(fences.len() as u32);
    for fence in fences {
        out.put_u64(fence.place);
        out.put_u16(fence.key_blocks);
        out.put_u16(fence.meta_blocks);
        out.put_u32(fence.records);
        out.put_u16(fence.first_key.len() as u16);
        out.put_bytes(&fence.first_key);
    }
    out.put_bytes(filter);
    out
}

/// Decodes the payload of a run index: the fences, and the filter's bytes.
///
/// # Errors
/// `Short`; `Invalid` if the keys do not rise.
pub fn decode_run_index(payload: &[u8]) -> Result<(Vec<KeyFence>, &[u8]), FormatError> {
    let mut reader = Reader::new("run index", payload);
    let count = reader.count(19, "fences")?;
    let mut fences: Vec<KeyFence> = Vec::with_capacity(count);
    for _ in 0..count {
        let place = reader.place("place")?;
        let key_blocks = reader.u16("key blocks")?;
        let meta_blocks = reader.u16("metadata blocks")?;
        let records = reader.u32("records")?;
        let len = reader.u16("key length")? as usize;
        if len == 0 || len > KEY_BYTES_MAX {
            return Err(reader.invalid("key length", len as u64, "1..=255"));
        }
        let first_key: Box<[u8]> = reader.bytes(len, "first key")?.into();
        if fences.last().is_some_and(|before| before.first_key >= first_key) || key_blocks == 0 {
            return Err(reader.invalid("first key", place, "above the one before"));
        }
        fences.push(KeyFence { first_key, place, key_blocks, meta_blocks, records });
    }
    let filter = reader.bytes(reader.remaining(), "filter")?;
    Ok((fences, filter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_and_marks_read_back_and_no_cut_of_them_is_taken() {
        let fences: Vec<SeqlogFence> = (0..9)
            .map(|n| SeqlogFence {
                first: Seqno(n * 10 + 1),
                last: Seqno(n * 10 + 9),
                place: n,
                blocks: 1,
                records: 9,
            })
            .collect();
        let without = encode_seqlog_index(&fences, None);
        assert_eq!(decode_seqlog_index(&without).unwrap(), (fences.clone(), None));
        let totals = SegmentTotals { record_bytes: 700, settled: Seqno(99) };
        let bytes = encode_seqlog_index(&fences, Some(totals));
        assert_eq!(decode_seqlog_index(&bytes).unwrap(), (fences, Some(totals)));
        let cuts = (0..bytes.len()).filter(|len| *len != without.len());
        assert!(cuts.into_iter().all(|len| decode_seqlog_index(&bytes[..len]).is_err()));
        assert!(decode_seqlog_index(&[&bytes[..], &[0]].concat()).is_err());

        let marks = [0, 77, 0xffff, 0x1_0000, u32::MAX].map(|bytes| DeathMark {
            dead: Seqno(4),
            by: SEQNO_MAX,
            bytes,
        });
        let bytes = encode_marks(&marks);
        assert_eq!(decode_marks(&bytes).unwrap(), marks);
        assert!((0..bytes.len()).all(|len| decode_marks(&bytes[..len]).is_err()));

        let keys = [KeyFence {
            first_key: Box::from(*b"\0abc"),
            place: 9,
            key_blocks: 8,
            meta_blocks: 2,
            records: 5,
        }];
        let bytes = encode_run_index(&keys, b"filter");
        assert_eq!(decode_run_index(&bytes).unwrap(), (keys.to_vec(), &b"filter"[..]));
    }

    #[test]
    fn fences_that_do_not_rise_are_refused() {
        let fence = SeqlogFence { first: Seqno(5), last: Seqno(9), place: 1, blocks: 1, records: 1 };
        assert!(decode_seqlog_index(&encode_seqlog_index(&[fence, fence], None)).is_err());
        assert!(
            decode_marks(&encode_marks(&[DeathMark { dead: Seqno(4), by: Seqno(4), bytes: 9 }])).is_err()
        );
    }
}
