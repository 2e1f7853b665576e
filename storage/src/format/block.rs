//! The frame that every block of a data file has: a header with checksum and identity, then a payload.
//!
//! A block is one or more whole device blocks, contiguous on the device.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 4 | CRC32C of everything after it, padding included |
//! | 4 | 1 | format version |
//! | 5 | 1 | type |
//! | 6 | 2 | vbucket |
//! | 8 | 4 | bucket id |
//! | 12 | 4 | length in device blocks |
//! | 16 | 8 | shard uuid |
//! | 24 | 8 | place: first device block in the data file |
//! | 32 | 8 | object: the run or seqlog segment it belongs to |
//! | 40 | 8 | first: seqno of the first record (seqlog), number of the first entry (run) |
//! | 48 | 4 | records |
//! | 52 | 4 | payload bytes |
//! | 56 | 8 | by type: key part: collection id, and tombstones in the upper half |
//!
//! Does not know: what the payload means.

use super::bytes::{u16_at, u32_at, u64_at};
use super::{FORMAT_VERSION, FormatError, crc32c, whole_blocks};
use crate::io::BLOCK_BYTES;
use crate::mutant::{Mutant, is_on};
use crate::types::{BucketId, VbId};

/// Bytes of a block header.
pub const BLOCK_HEADER_BYTES: usize = 64;

/// What a block holds. The numbers are part of the disk format, version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[repr(u8)]
pub enum BlockType {
    /// Documents in seqno order.
    Seqlog = 1,
    /// Fences of a seqlog segment.
    SeqlogIndex = 2,
    /// Death marks.
    Marks = 3,
    /// Keys of a run, with seqnos.
    Keys = 4,
    /// Metadata of the same keys.
    Metas = 5,
    /// Fences and filter of a run.
    RunIndex = 6,
}

impl BlockType {
    /// The type with this number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<BlockType> {
        Some(match number {
            1 => BlockType::Seqlog,
            2 => BlockType::SeqlogIndex,
            3 => BlockType::Marks,
            4 => BlockType::Keys,
            5 => BlockType::Metas,
            6 => BlockType::RunIndex,
            _ => return None,
        })
    }

    fn what(self) -> &'static str {
        match self {
            BlockType::Seqlog => "seqlog block",
            BlockType::SeqlogIndex => "seqlog index block",
            BlockType::Marks => "death mark block",
            BlockType::Keys => "key block",
            BlockType::Metas => "metadata block",
            BlockType::RunIndex => "run index block",
        }
    }
}

/// Where a block belongs: what a reader knows before it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BlockIdentity {
    /// Which shard.
    pub shard_uuid: u64,
    /// Which bucket.
    pub bucket: BucketId,
    /// Which vbucket.
    pub vb: VbId,
    /// Which run or seqlog segment.
    pub object: u64,
    /// What it holds.
    pub kind: BlockType,
}

/// The rest of a block's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BlockHeader {
    /// First device block.
    pub place: u64,
    /// Device blocks.
    pub blocks: u32,
    /// First seqno or entry number.
    pub first: u64,
    /// Records inside.
    pub records: u32,
    /// Bytes of payload.
    pub payload_len: u32,
    /// By type.
    pub extra: u64,
}

/// Device blocks a block with this payload takes.
#[must_use]
pub fn blocks_for(payload_len: usize) -> u32 {
    (whole_blocks(BLOCK_HEADER_BYTES + payload_len) / BLOCK_BYTES) as u32
}

/// Writes header and checksum into `block`, whose payload and zero padding are in place.
///
/// # Panics
/// If `block` is not `header.blocks` long.
pub fn seal_block(identity: &BlockIdentity, header: &BlockHeader, block: &mut [u8]) {
    assert_eq!(block.len(), header.blocks as usize * BLOCK_BYTES, "block length");
    assert!(BLOCK_HEADER_BYTES + header.payload_len as usize <= block.len(), "payload length");
    block[4] = FORMAT_VERSION;
    block[5] = identity.kind as u8;
    block[6..8].copy_from_slice(&identity.vb.0.to_le_bytes());
    block[8..12].copy_from_slice(&identity.bucket.0.to_le_bytes());
    block[12..16].copy_from_slice(&header.blocks.to_le_bytes());
    block[16..24].copy_from_slice(&identity.shard_uuid.to_le_bytes());
    block[24..32].copy_from_slice(&header.place.to_le_bytes());
    block[32..40].copy_from_slice(&identity.object.to_le_bytes());
    block[40..48].copy_from_slice(&header.first.to_le_bytes());
    block[48..52].copy_from_slice(&header.records.to_le_bytes());
    block[52..56].copy_from_slice(&header.payload_len.to_le_bytes());
    block[56..64].copy_from_slice(&header.extra.to_le_bytes());
    let crc = crc32c(&block[4..]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Verifies a block read at `place` against what the reader expected.
///
/// # Errors
/// `Checksum`: damaged. `Identity`: it verifies but belongs elsewhere. `Version`, `Invalid`.
pub fn open_block(identity: &BlockIdentity, place: u64, block: &[u8]) -> Result<BlockHeader, FormatError> {
    let what = identity.kind.what();
    if block.len() < BLOCK_BYTES {
        return Err(FormatError::Short { what, field: "block", have: block.len(), need: BLOCK_BYTES });
    }
    let found = u32_at(block, 0);
    let expected = crc32c(&block[4..]);
    if found != expected && !is_on(Mutant::NoBlockCheck) {
        return Err(FormatError::Checksum { what, expected, found });
    }
    let (kind, header) = peek_block(block)?;
    let checks = [
        ("type", identity.kind as u64, kind.kind as u64),
        ("shard uuid", identity.shard_uuid, kind.shard_uuid),
        ("place", place, header.place),
        ("object", identity.object, kind.object),
        ("bucket", u64::from(identity.bucket.0), u64::from(kind.bucket.0)),
        ("vbucket", u64::from(identity.vb.0), u64::from(kind.vb.0)),
        ("length", (block.len() / BLOCK_BYTES) as u64, u64::from(header.blocks)),
    ];
    for (field, expected, found) in checks {
        if expected != found && !is_on(Mutant::NoBlockCheck) {
            return Err(FormatError::Identity { what, field, expected, found });
        }
    }
    if BLOCK_HEADER_BYTES + header.payload_len as usize > block.len() {
        return Err(FormatError::Invalid {
            what,
            field: "payload length",
            found: u64::from(header.payload_len),
            rule: "longer than the block",
        });
    }
    Ok(header)
}

/// What a block says of itself, unverified: for `inspect` and after the checksum.
///
/// # Errors
/// `Version`, `Invalid`, `Short`.
pub fn peek_block(block: &[u8]) -> Result<(BlockIdentity, BlockHeader), FormatError> {
    let what = "block";
    if block.len() < BLOCK_HEADER_BYTES {
        return Err(FormatError::Short {
            what,
            field: "header",
            have: block.len(),
            need: BLOCK_HEADER_BYTES,
        });
    }
    if block[4] != FORMAT_VERSION {
        return Err(FormatError::Version {
            what,
            found: u32::from(block[4]),
            supported: u32::from(FORMAT_VERSION),
        });
    }
    let Some(kind) = BlockType::from_u8(block[5]) else {
        return Err(FormatError::Invalid { what, field: "type", found: u64::from(block[5]), rule: "1..=6" });
    };
    let identity = BlockIdentity {
        shard_uuid: u64_at(block, 16),
        bucket: BucketId(u32_at(block, 8)),
        vb: VbId(u16_at(block, 6)),
        object: u64_at(block, 32),
        kind,
    };
    let header = BlockHeader {
        place: u64_at(block, 24),
        blocks: u32_at(block, 12),
        first: u64_at(block, 40),
        records: u32_at(block, 48),
        payload_len: u32_at(block, 52),
        extra: u64_at(block, 56),
    };
    Ok((identity, header))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn identity() -> BlockIdentity {
        BlockIdentity { shard_uuid: 1, bucket: BucketId(1), vb: VbId(5), object: 8, kind: BlockType::Keys }
    }

    fn sealed() -> Vec<u8> {
        let header = BlockHeader { place: 40, blocks: 1, first: 0, records: 1, payload_len: 3, extra: 0 };
        let mut block = vec![0; BLOCK_BYTES];
        block[64..67].copy_from_slice(b"abc");
        seal_block(&identity(), &header, &mut block);
        block
    }

    /// G5: a block that verifies but was read from another place, or belongs to another object, is refused.
    #[test]
    fn a_misdirected_block_is_refused_by_what_it_says() {
        let block = sealed();
        assert!(open_block(&identity(), 40, &block).is_ok());
        assert!(matches!(
            open_block(&identity(), 41, &block),
            Err(FormatError::Identity { field: "place", .. })
        ));
        for other in [
            BlockIdentity { shard_uuid: 2, ..identity() },
            BlockIdentity { bucket: BucketId(2), ..identity() },
            BlockIdentity { vb: VbId(6), ..identity() },
            BlockIdentity { object: 9, ..identity() },
            BlockIdentity { kind: BlockType::Seqlog, ..identity() },
        ] {
            assert!(matches!(open_block(&other, 40, &block), Err(FormatError::Identity { .. })));
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let block = sealed();
        for at in 0..block.len() {
            let mut bad = block.clone();
            bad[at] ^= 1;
            assert!(open_block(&identity(), 40, &bad).is_err(), "byte {at}");
        }
    }
}
