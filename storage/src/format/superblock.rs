//! The superblock: the fixed-place root of a data file, in two slots; the newest valid one wins.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 8 | magic `RINGBASE` |
//! | 8 | 4 | CRC32C of everything after it |
//! | 12 | 4 | format version |
//! | 16 | 8 | slot's place in blocks, part of its identity |
//! | 24 | 8 | sequence: rises with every write of the superblock |
//! | 32 | 8 | shard uuid |
//! | 40 | 2 | shard id |
//! | 42 | 2 | shards of the data directory |
//! | 44 | 2 | vbuckets of a bucket |
//! | 46 | 2 | zero |
//! | 48 | 4 | log segments |
//! | 52 | 4 | bytes of a log segment |
//! | 56 | 8 | format time, epoch seconds |
//! | 64 | 8 | first block of the manifest area |
//! | 72 | 4 | blocks of the manifest area |
//! | 76 | 4 | zero |
//! | 80 | 8 | generation of the manifest area |
//!
//! Both slots are written, one after the other with a sync between, whenever the manifest moves; so at rest both say the
//! same and one damaged slot loses nothing.
//!
//! Does not know: what the manifest holds.

use super::bytes::{Reader, WriteLe, u32_at};
use super::{FORMAT_VERSION, FormatError, crc32c};
use crate::io::BLOCK_BYTES;
use crate::types::ShardId;

/// Places of the two slots, in blocks.
pub const SUPERBLOCK_SLOTS: [u64; 2] = [0, 16];

/// First block that the allocator may give away.
pub const FIRST_DATA_BLOCK: u64 = 17;

const MAGIC: u64 = u64::from_le_bytes(*b"RINGBASE");
const WHAT: &str = "superblock";

/// The shape of a shard, fixed when it was formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Geometry {
    /// Which shard this is.
    pub shard: ShardId,
    /// How many shards the data directory has.
    pub shard_count: u16,
    /// How many vbuckets a bucket has.
    pub vbucket_count: u16,
    /// Segments of the write-ahead log.
    pub wal_segments: u32,
    /// Bytes of a segment, a multiple of the block.
    pub wal_segment_bytes: u32,
}

/// The root of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Superblock {
    /// Rises with every write.
    pub sequence: u64,
    /// Random, made at format; part of the identity of every block.
    pub shard_uuid: u64,
    /// Shape.
    pub geometry: Geometry,
    /// When the shard was formatted, epoch seconds.
    pub formatted_at: u64,
    /// First block of the manifest area.
    pub manifest_start: u64,
    /// Blocks of the manifest area.
    pub manifest_blocks: u32,
    /// Generation of the manifest area.
    pub manifest_generation: u64,
}

impl Superblock {
    /// The block to write at `slot` (in blocks).
    #[must_use]
    pub fn encode(&self, slot: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.put_u64(MAGIC);
        out.put_u32(0);
        out.put_u32(u32::from(FORMAT_VERSION));
        out.put_u64(slot);
        out.put_u64(self.sequence);
        out.put_u64(self.shard_uuid);
        out.put_u16(self.geometry.shard.0);
        out.put_u16(self.geometry.shard_count);
        out.put_u16(self.geometry.vbucket_count);
        out.put_u16(0);
        out.put_u32(self.geometry.wal_segments);
        out.put_u32(self.geometry.wal_segment_bytes);
        out.put_u64(self.formatted_at);
        out.put_u64(self.manifest_start);
        out.put_u32(self.manifest_blocks);
        out.put_u32(0);
        out.put_u64(self.manifest_generation);
        out.resize(BLOCK_BYTES, 0);
        let crc = crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes the block read at `slot`.
    ///
    /// # Errors
    /// `Magic`: not a superblock. `Version`: of another build, refused by name. `Checksum`, `Identity`, `Invalid`: damaged.
    pub fn decode(block: &[u8], slot: u64) -> Result<Superblock, FormatError> {
        let mut reader = Reader::new(WHAT, block);
        let magic = reader.u64("magic")?;
        if magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT, found: magic });
        }
        let found = reader.u32("checksum")?;
        let version = reader.u32("version")?;
        if block.len() < BLOCK_BYTES {
            return Err(FormatError::Short {
                what: WHAT,
                field: "block",
                have: block.len(),
                need: BLOCK_BYTES - block.len(),
            });
        }
        let expected = crc32c(&block[12..BLOCK_BYTES]);
        if version != u32::from(FORMAT_VERSION) && expected == found {
            return Err(FormatError::Version {
                what: WHAT,
                found: version,
                supported: u32::from(FORMAT_VERSION),
            });
        }
        if found != expected {
            return Err(FormatError::Checksum { what: WHAT, expected, found: u32_at(block, 8) });
        }
        let place = reader.u64("slot")?;
        if place != slot {
            return Err(FormatError::Identity { what: WHAT, field: "slot", expected: slot, found: place });
        }
        let sequence = reader.number("sequence")?;
        let shard_uuid = reader.u64("shard uuid")?;
        let shard = ShardId(reader.u16("shard")?);
        let shard_count = reader.u16("shard count")?;
        let vbucket_count = reader.u16("vbucket count")?;
        reader.u16("padding")?;
        let wal_segments = reader.u32("log segments")?;
        let wal_segment_bytes = reader.u32("log segment bytes")?;
        let formatted_at = reader.u64("format time")?;
        let manifest_start = reader.place("manifest start")?;
        let manifest_blocks = reader.u32("manifest blocks")?;
        reader.u32("padding")?;
        let manifest_generation = reader.number("manifest generation")?;
        let geometry = Geometry { shard, shard_count, vbucket_count, wal_segments, wal_segment_bytes };
        if shard_count == 0 || shard.0 >= shard_count {
            return Err(reader.invalid("shard", u64::from(shard.0), "below the shard count"));
        }
        if vbucket_count == 0 || vbucket_count > 1024 {
            return Err(reader.invalid("vbucket count", u64::from(vbucket_count), "1..=1024"));
        }
        if wal_segments < 2
            || wal_segment_bytes == 0
            || !(wal_segment_bytes as usize).is_multiple_of(BLOCK_BYTES)
        {
            return Err(reader.invalid(
                "log segments",
                u64::from(wal_segments),
                "at least 2, of whole blocks",
            ));
        }
        Ok(Superblock {
            sequence,
            shard_uuid,
            geometry,
            formatted_at,
            manifest_start,
            manifest_blocks,
            manifest_generation,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Superblock {
        let geometry = Geometry {
            shard: ShardId(1),
            shard_count: 2,
            vbucket_count: 128,
            wal_segments: 4,
            wal_segment_bytes: 65536,
        };
        Superblock {
            sequence: 7,
            shard_uuid: 99,
            geometry,
            formatted_at: 1_700_000_000,
            manifest_start: 17,
            manifest_blocks: 64,
            manifest_generation: 3,
        }
    }

    #[test]
    fn a_superblock_reads_back_and_no_flipped_bit_passes() {
        let block = example().encode(16);
        assert_eq!(Superblock::decode(&block, 16).unwrap(), example());
        for at in 0..block.len() {
            let mut bad = block.clone();
            bad[at] ^= 0x10;
            assert!(Superblock::decode(&bad, 16).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_superblock_in_the_wrong_slot_is_refused() {
        let block = example().encode(0);
        assert!(matches!(Superblock::decode(&block, 16), Err(FormatError::Identity { field: "slot", .. })));
    }

    #[test]
    fn an_unknown_format_version_is_refused_by_name() {
        let mut block = example().encode(0);
        block[12] = 2;
        let crc = crc32c(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            Superblock::decode(&block, 0),
            Err(FormatError::Version { what: WHAT, found: 2, supported: 1 })
        );
    }
}
