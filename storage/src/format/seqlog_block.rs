//! A seqlog block: documents in seqno order, each laid out as the wire frame that a DCP stream sends.
//!
//! Record:
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 4 | record length in bytes, little-endian |
//! | 4 | 1 | kind |
//! | 5 | 3 | zero |
//! | 8 | 24 | frame header, big-endian: magic 0x80, opcode 0x57 or 0x58, lengths, datatype, vbucket, opaque 0, CAS |
//! | 32 | 31 | mutation extras: seqno, revid, flags, expiry, lock time 0, metadata length 0, NRU 0 |
//! |    | 21 | or deletion extras: seqno, revid, delete time, 0 |
//! | … | … | key with collection prefix, value |
//!
//! So a backfill sends the stored bytes from offset 8 on with a patched opaque. Behind the records stands an array of
//! 32-bit places, one per record, for a search by seqno.
//!
//! Invariants
//! - Seqnos rise strictly, within a block and from block to block.
//! - A record is never split. One that is longer than a usual block has a block of its own.
//!
//! Does not know: fences, which records are dead.
//! Source: the frame layouts are those of the Couchbase KV protocol, DCP_MUTATION and DCP_DELETION (version 2).

use super::FormatError;
use super::block::{
    BLOCK_HEADER_BYTES, BlockHeader, BlockIdentity, BlockType, blocks_for, open_block, seal_block,
};
use super::bytes::{WriteLe, u32_at};
use crate::item::{DATATYPE_MAX, Item};
use crate::types::{Cas, ItemMeta, KEY_BYTES_MAX, Kind, SEQNO_MAX, Seqno, VbId};

/// A block is closed when its records reach this many bytes.
pub const SEQLOG_BLOCK_BYTES: usize = 16 << 10;

/// Bytes before the frame in a record.
pub const RECORD_PREFIX_BYTES: usize = 8;

const FRAME_HEADER_BYTES: usize = 24;
const MUTATION_EXTRAS_BYTES: usize = 31;
const DELETION_EXTRAS_BYTES: usize = 21;
const OPCODE_MUTATION: u8 = 0x57;
const OPCODE_DELETION: u8 = 0x58;
const WHAT: &str = "seqlog record";

/// Bytes of the record of `item`, its place included.
#[must_use]
pub fn seqlog_record_len(item: &Item) -> usize {
    record_bytes(item.kind(), item.key().len(), item.value().len())
}

/// Bytes of a record of this kind with a key (with prefix) and value of these lengths, its place included.
#[must_use]
pub fn record_bytes(kind: Kind, key_len: usize, value_len: usize) -> usize {
    let extras = if kind.is_deleted() { DELETION_EXTRAS_BYTES } else { MUTATION_EXTRAS_BYTES };
    RECORD_PREFIX_BYTES + FRAME_HEADER_BYTES + extras + key_len + value_len + 4
}

/// Collects records until a block is full.
#[derive(Debug, Default)]
pub struct SeqlogBlockBuilder {
    records: Vec<u8>,
    places: Vec<u32>,
    first: Seqno,
    last: Seqno,
}

impl SeqlogBlockBuilder {
    /// Whether nothing was added since the last block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether a record of this length may still be added.
    #[must_use]
    pub fn fits(&self, record_len: usize) -> bool {
        self.is_empty()
            || BLOCK_HEADER_BYTES + self.records.len() + self.places.len() * 4 + record_len
                <= SEQLOG_BLOCK_BYTES
    }

    /// Records added since the last block, and their first and last seqno.
    #[must_use]
    pub fn content(&self) -> (u32, Seqno, Seqno) {
        (self.places.len() as u32, self.first, self.last)
    }

    /// Appends `item`, whose seqno is above all before.
    ///
    /// # Panics
    /// If the seqno does not rise.
    pub fn push(&mut self, vb: VbId, item: &Item) {
        let meta = &item.meta();
        assert!(meta.seqno > self.last || self.is_empty(), "seqno {} after {}", meta.seqno, self.last);
        if self.is_empty() {
            self.first = meta.seqno;
        }
        self.last = meta.seqno;
        self.places.push(self.records.len() as u32);
        let deleted = meta.kind.is_deleted();
        let (opcode, extras_len) = if deleted {
            (OPCODE_DELETION, DELETION_EXTRAS_BYTES)
        } else {
            (OPCODE_MUTATION, MUTATION_EXTRAS_BYTES)
        };
        let out = &mut self.records;
        out.put_u32((seqlog_record_len(item) - 4) as u32);
        out.put_u8(meta.kind as u8);
        out.put_bytes(&[0; 3]);
        out.put_u8(0x80);
        out.put_u8(opcode);
        out.extend_from_slice(&(item.key().len() as u16).to_be_bytes());
        out.put_u8(extras_len as u8);
        out.put_u8(meta.datatype);
        out.extend_from_slice(&vb.0.to_be_bytes());
        let body = extras_len + item.key().len() + item.value().len();
        out.extend_from_slice(&(body as u32).to_be_bytes());
        out.put_u32(0);
        out.extend_from_slice(&meta.cas.0.to_be_bytes());
        out.extend_from_slice(&meta.seqno.0.to_be_bytes());
        out.extend_from_slice(&meta.revid.to_be_bytes());
        if deleted {
            out.extend_from_slice(&meta.expiry.to_be_bytes());
            out.put_u8(0);
        } else {
            out.extend_from_slice(&meta.flags.to_be_bytes());
            out.extend_from_slice(&meta.expiry.to_be_bytes());
            out.put_bytes(&[0; 7]);
        }
        out.put_bytes(item.key());
        out.put_bytes(item.value());
    }

    /// Appends a record as it is stored elsewhere; its seqno is above all before.
    ///
    /// # Panics
    /// If the seqno does not rise.
    pub fn push_record(&mut self, record: &SeqlogRecord<'_>) {
        let seqno = record.meta.seqno;
        assert!(seqno > self.last || self.is_empty(), "seqno {seqno} after {}", self.last);
        if self.is_empty() {
            self.first = seqno;
        }
        self.last = seqno;
        self.places.push(self.records.len() as u32);
        let out = &mut self.records;
        out.put_u32((RECORD_PREFIX_BYTES + record.frame.len()) as u32);
        out.put_u8(record.meta.kind as u8);
        out.put_bytes(&[0; 3]);
        out.put_bytes(record.frame);
    }

    /// Device blocks the block takes.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        blocks_for(self.records.len() + self.places.len() * 4)
    }

    /// Writes the block into `out`, which begins at device block `place`, and starts anew.
    ///
    /// # Panics
    /// If `out` is not [`Self::blocks`] long.
    pub fn seal(&mut self, identity: &BlockIdentity, place: u64, out: &mut [u8]) {
        let header = BlockHeader {
            place,
            blocks: self.blocks(),
            first: self.first.0,
            records: self.places.len() as u32,
            payload_len: (self.records.len() + self.places.len() * 4) as u32,
            extra: self.records.len() as u64,
        };
        for at in self.places.drain(..) {
            self.records.put_u32(at);
        }
        out[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + self.records.len()].copy_from_slice(&self.records);
        seal_block(&BlockIdentity { kind: BlockType::Seqlog, ..*identity }, &header, out);
        self.records.clear();
    }
}

/// The shape of a verified seqlog block; the bytes stay where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeqlogBlock {
    /// Records inside.
    pub records: u32,
    /// Seqno of the first.
    pub first: Seqno,
    records_len: u32,
}

impl SeqlogBlock {
    /// Verifies a block read at `place`.
    ///
    /// # Errors
    /// As [`open_block`]; `Invalid` if the places do not fit.
    pub fn open(identity: &BlockIdentity, place: u64, block: &[u8]) -> Result<SeqlogBlock, FormatError> {
        let identity = BlockIdentity { kind: BlockType::Seqlog, ..*identity };
        let header = open_block(&identity, place, block)?;
        let places = u64::from(header.records) * 4;
        if header.records == 0 || header.extra.checked_add(places) != Some(u64::from(header.payload_len)) {
            return Err(FormatError::Invalid {
                what: "seqlog block",
                field: "records",
                found: u64::from(header.records),
                rule: "at least one, with a place for each",
            });
        }
        Ok(SeqlogBlock {
            records: header.records,
            first: Seqno(header.first),
            records_len: header.extra as u32,
        })
    }

    /// Record `index`.
    ///
    /// # Errors
    /// `Short`, `Invalid`: the block verified but holds what this build cannot have written.
    pub fn record<'a>(&self, block: &'a [u8], index: usize) -> Result<SeqlogRecord<'a>, FormatError> {
        let payload = &block[BLOCK_HEADER_BYTES..];
        let records = &payload[..self.records_len as usize];
        let at = u32_at(payload, self.records_len as usize + index * 4) as usize;
        SeqlogRecord::decode(records.get(at..).unwrap_or_default())
    }

    /// The record with exactly this seqno, if the block has it.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn find<'a>(&self, block: &'a [u8], seqno: Seqno) -> Result<Option<SeqlogRecord<'a>>, FormatError> {
        let index = self.lower_bound(block, seqno)?;
        if index == self.records as usize {
            return Ok(None);
        }
        let record = self.record(block, index)?;
        Ok((record.meta.seqno == seqno).then_some(record))
    }

    /// The first record at or above `seqno`; `records` if there is none.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn lower_bound(&self, block: &[u8], seqno: Seqno) -> Result<usize, FormatError> {
        let (mut low, mut high) = (0, self.records as usize);
        while low < high {
            let middle = low.midpoint(high);
            if self.record(block, middle)?.meta.seqno < seqno {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

/// One document of a seqlog block, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeqlogRecord<'a> {
    /// All but key and value.
    pub meta: ItemMeta,
    /// Key with collection prefix.
    pub key: &'a [u8],
    /// Value.
    pub value: &'a [u8],
    /// The stored wire frame, opaque 0.
    pub frame: &'a [u8],
}

fn be_u64(bytes: &[u8], at: usize) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(array)
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    let mut array = [0; 4];
    array.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(array)
}

impl<'a> SeqlogRecord<'a> {
    /// Bytes it takes in a block, its place included.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        RECORD_PREFIX_BYTES + self.frame.len() + 4
    }

    /// Decodes the record at the front of `bytes`.
    ///
    /// # Errors
    /// `Short`, `Invalid`.
    pub fn decode(bytes: &'a [u8]) -> Result<SeqlogRecord<'a>, FormatError> {
        let head = RECORD_PREFIX_BYTES + FRAME_HEADER_BYTES + DELETION_EXTRAS_BYTES;
        if bytes.len() < head {
            return Err(FormatError::Short { what: WHAT, field: "head", have: bytes.len(), need: head });
        }
        let invalid = |field, found, rule| FormatError::Invalid { what: WHAT, field, found, rule };
        let len = u32_at(bytes, 0) as usize;
        if len > bytes.len() {
            return Err(FormatError::Short { what: WHAT, field: "record", have: bytes.len(), need: len });
        }
        let kind = Kind::from_u8(bytes[4]).ok_or_else(|| invalid("kind", bytes[4].into(), "1..=7"))?;
        let extras = if kind.is_deleted() { DELETION_EXTRAS_BYTES } else { MUTATION_EXTRAS_BYTES };
        let frame = &bytes[RECORD_PREFIX_BYTES..len.max(RECORD_PREFIX_BYTES)];
        let key_len = usize::from(u16::from_be_bytes([bytes[10], bytes[11]]));
        let body = be_u32(bytes, 16) as usize;
        if key_len == 0
            || key_len > KEY_BYTES_MAX
            || usize::from(bytes[12]) != extras
            || body < extras + key_len
            || frame.len() != FRAME_HEADER_BYTES + body
        {
            return Err(invalid("lengths", body as u64, "key, extras and value fill the record"));
        }
        let after = RECORD_PREFIX_BYTES + FRAME_HEADER_BYTES;
        let (flags, expiry) = if kind.is_deleted() {
            (0, be_u32(bytes, after + 16))
        } else {
            (be_u32(bytes, after + 16), be_u32(bytes, after + 20))
        };
        let meta = ItemMeta {
            seqno: Seqno(be_u64(bytes, after)),
            cas: Cas(be_u64(bytes, 24)),
            revid: be_u64(bytes, after + 8),
            flags,
            expiry,
            datatype: bytes[13],
            kind,
        };
        if meta.datatype > DATATYPE_MAX || meta.seqno > SEQNO_MAX {
            return Err(invalid("seqno", meta.seqno.0, "below 2^48, with a datatype of 0..=7"));
        }
        let (key, value) = frame[FRAME_HEADER_BYTES + extras..].split_at(key_len);
        Ok(SeqlogRecord { meta, key, value, frame })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::BLOCK_BYTES;
    use crate::types::BucketId;

    fn identity() -> BlockIdentity {
        BlockIdentity { shard_uuid: 1, bucket: BucketId(1), vb: VbId(5), object: 8, kind: BlockType::Seqlog }
    }

    fn item(seqno: u64, kind: Kind, value: &[u8]) -> Item {
        let deleted = kind.is_deleted();
        let meta = ItemMeta {
            seqno: Seqno(seqno),
            cas: Cas(seqno << 16),
            revid: 2,
            flags: if deleted { 0 } else { 0x0200_0000 },
            expiry: 1_700_000_000,
            datatype: 1,
            kind,
        };
        Item::new(meta, format!("\0key{seqno}").as_bytes(), value)
    }

    #[test]
    fn records_read_back_and_are_found_by_seqno() {
        let mut builder = SeqlogBlockBuilder::default();
        let mut items = Vec::new();
        for n in 1.. {
            let kind = if n % 4 == 0 { Kind::Deletion } else { Kind::Mutation };
            let value = if n % 4 == 0 { vec![] } else { vec![n as u8; 50] };
            let item = item(n * 3, kind, &value);
            if !builder.fits(seqlog_record_len(&item)) {
                break;
            }
            builder.push(VbId(5), &item);
            items.push(item);
        }
        assert_eq!(builder.content().0 as usize, items.len());
        let mut out = vec![0; builder.blocks() as usize * BLOCK_BYTES];
        assert!(out.len() <= SEQLOG_BLOCK_BYTES);
        builder.seal(&identity(), 20, &mut out);
        let block = SeqlogBlock::open(&identity(), 20, &out).unwrap();
        for (index, item) in items.iter().enumerate() {
            let record = block.record(&out, index).unwrap();
            assert_eq!((record.meta, record.key, record.value), (item.meta(), item.key(), item.value()));
            assert_eq!(record.frame[0], 0x80);
            assert_eq!(record.stored_len(), seqlog_record_len(item));
            builder.push_record(&record);
            assert_eq!(block.find(&out, item.seqno()).unwrap().unwrap().key, item.key());
            assert_eq!(block.find(&out, Seqno(item.seqno().0 + 1)).unwrap(), None);
        }
        let mut copy = vec![0; builder.blocks() as usize * BLOCK_BYTES];
        builder.seal(&identity(), 20, &mut copy);
        assert_eq!(copy, out, "a record that is copied is the same");
    }

    #[test]
    fn a_large_document_has_a_block_of_its_own() {
        let mut builder = SeqlogBlockBuilder::default();
        let large = item(1, Kind::Mutation, &vec![9; 1 << 20]);
        assert!(builder.fits(seqlog_record_len(&large)));
        builder.push(VbId(5), &large);
        assert!(!builder.fits(100));
        let mut out = vec![0; builder.blocks() as usize * BLOCK_BYTES];
        builder.seal(&identity(), 20, &mut out);
        let block = SeqlogBlock::open(&identity(), 20, &out).unwrap();
        assert_eq!(block.record(&out, 0).unwrap().value.len(), 1 << 20);
    }

    #[test]
    fn no_mangled_record_is_taken_for_a_whole_one_or_panics() {
        let mut builder = SeqlogBlockBuilder::default();
        builder.push(VbId(5), &item(7, Kind::Mutation, b"value"));
        let whole = builder.records.clone();
        for len in 0..whole.len() {
            assert!(SeqlogRecord::decode(&whole[..len]).is_err(), "cut at {len}");
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x40;
            let _ = SeqlogRecord::decode(&bad);
        }
    }
}
