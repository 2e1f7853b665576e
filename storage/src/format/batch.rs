//! A batch: the unit in which the write-ahead log and the manifest grow.
//!
//! A batch is a header and a payload, padded with zeroes to whole blocks. Batches form a chain: each names its
//! position, the position known durable when it was written, and the checksum of the batch before it.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 4 | CRC32C of everything after it, padding included |
//! | 4 | 1 | format version |
//! | 5 | 1 | log: 1 write-ahead log, 2 manifest |
//! | 6 | 2 | zero |
//! | 8 | 4 | payload length in bytes |
//! | 12 | 4 | offset in the payload of the first record that begins there; `0xffff_ffff` if none does |
//! | 16 | 8 | shard uuid |
//! | 24 | 8 | generation: of the log's opening, or of the manifest area |
//! | 32 | 8 | position in blocks, counted since format (log) or since the area's start (manifest) |
//! | 40 | 8 | durable position when written: every block below it had been synced |
//! | 48 | 4 | CRC of the batch before, 0 for the first |
//! | 52 | 4 | zero |
//! | 56 | 8 | manifest generation known durable (log), zero (manifest) |
//!
//! Invariants
//! - A valid batch at position p says that all below its durable position is no torn tail: damage there is
//!   corruption. Damage at or beyond the highest durable position of any valid header is a torn tail.
//!
//! Does not know: what the records in the payload mean.

use super::bytes::{u32_at, u64_at};
use super::{
    BLOCKS_MAX, FORMAT_VERSION, FormatError, LOG_GENERATIONS_MAX, NUMBERS_MAX, crc32c, whole_blocks,
};
use crate::io::BLOCK_BYTES;

/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: usize = 64;

/// `first_record` of a batch in which no record begins.
pub const NO_RECORD: u32 = u32::MAX;

/// Which log a batch belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Log {
    /// The write-ahead log.
    Wal = 1,
    /// The manifest.
    Manifest = 2,
}

impl Log {
    fn what(self) -> &'static str {
        match self {
            Log::Wal => "write-ahead log batch",
            Log::Manifest => "manifest batch",
        }
    }
}

/// The header of a batch, all but its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BatchHeader {
    /// Payload bytes.
    pub payload_len: u32,
    /// Offset of the first record that begins in the payload, or [`NO_RECORD`].
    pub first_record: u32,
    /// Whose batch.
    pub shard_uuid: u64,
    /// Which opening of the log, or which manifest area.
    pub generation: u64,
    /// Where it stands, in blocks.
    pub position: u64,
    /// All below this was durable when it was written.
    pub durable: u64,
    /// Checksum of the batch before.
    pub previous_crc: u32,
    /// Manifest generation known durable when it was written (log only).
    pub manifest_generation: u64,
}

impl BatchHeader {
    /// Blocks the batch takes, header and padding included.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        batch_blocks(self.payload_len as usize)
    }
}

/// Blocks a batch with this payload takes.
#[must_use]
pub fn batch_blocks(payload_len: usize) -> u64 {
    (whole_blocks(BATCH_HEADER_BYTES + payload_len) / BLOCK_BYTES) as u64
}

/// Writes header and checksum into `batch`, whose payload (and zero padding) is in place already.
/// Returns the checksum.
///
/// # Panics
/// If `batch` is not exactly the whole blocks of such a batch.
pub fn seal_batch(log: Log, header: &BatchHeader, batch: &mut [u8]) -> u32 {
    assert_eq!(batch.len() as u64, header.blocks() * BLOCK_BYTES as u64, "batch length");
    batch[4] = FORMAT_VERSION;
    batch[5] = log as u8;
    batch[6..8].fill(0);
    batch[8..12].copy_from_slice(&header.payload_len.to_le_bytes());
    batch[12..16].copy_from_slice(&header.first_record.to_le_bytes());
    batch[16..24].copy_from_slice(&header.shard_uuid.to_le_bytes());
    batch[24..32].copy_from_slice(&header.generation.to_le_bytes());
    batch[32..40].copy_from_slice(&header.position.to_le_bytes());
    batch[40..48].copy_from_slice(&header.durable.to_le_bytes());
    batch[48..52].copy_from_slice(&header.previous_crc.to_le_bytes());
    batch[52..56].fill(0);
    batch[56..64].copy_from_slice(&header.manifest_generation.to_le_bytes());
    let crc = crc32c(&batch[4..]);
    batch[..4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// What the first block of a batch claims, before its checksum can be known good.
///
/// `block` is at least one block. `Ok(None)` if it is all zero: never written.
///
/// # Errors
/// `Version`, `Identity`, `Invalid`: no batch of this log, or one that claims more than `len_max` bytes.
pub fn peek_batch(
    log: Log,
    shard_uuid: u64,
    block: &[u8],
    len_max: usize,
) -> Result<Option<BatchHeader>, FormatError> {
    let what = log.what();
    if block.len() < BATCH_HEADER_BYTES {
        return Err(FormatError::Short {
            what,
            field: "header",
            have: block.len(),
            need: BATCH_HEADER_BYTES,
        });
    }
    if block[..BATCH_HEADER_BYTES].iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    if block[4] != FORMAT_VERSION {
        return Err(FormatError::Version {
            what,
            found: u32::from(block[4]),
            supported: u32::from(FORMAT_VERSION),
        });
    }
    if block[5] != log as u8 {
        return Err(FormatError::Identity {
            what,
            field: "log",
            expected: log as u64,
            found: u64::from(block[5]),
        });
    }
    let header = BatchHeader {
        payload_len: u32_at(block, 8),
        first_record: u32_at(block, 12),
        shard_uuid: u64_at(block, 16),
        generation: u64_at(block, 24),
        position: u64_at(block, 32),
        durable: u64_at(block, 40),
        previous_crc: u32_at(block, 48),
        manifest_generation: u64_at(block, 56),
    };
    if header.shard_uuid != shard_uuid {
        return Err(FormatError::Identity {
            what,
            field: "shard uuid",
            expected: shard_uuid,
            found: header.shard_uuid,
        });
    }
    if header.payload_len as usize > len_max.saturating_sub(BATCH_HEADER_BYTES) {
        return Err(FormatError::Invalid {
            what,
            field: "payload length",
            found: u64::from(header.payload_len),
            rule: "longer than the log has room for",
        });
    }
    let generations = match log {
        Log::Wal => LOG_GENERATIONS_MAX,
        Log::Manifest => NUMBERS_MAX,
    };
    let numbers = [
        ("generation", header.generation, generations),
        ("position", header.position, BLOCKS_MAX),
        ("durable position", header.durable, BLOCKS_MAX),
        ("manifest generation", header.manifest_generation, NUMBERS_MAX),
    ];
    for (field, found, end) in numbers {
        if found >= end {
            return Err(FormatError::Invalid {
                what,
                field,
                found,
                rule: "above all that this build writes",
            });
        }
    }
    if header.first_record != NO_RECORD && header.first_record >= header.payload_len.max(1) {
        return Err(FormatError::Invalid {
            what,
            field: "first record",
            found: u64::from(header.first_record),
            rule: "beyond the payload",
        });
    }
    Ok(Some(header))
}

/// Verifies the checksum of a whole batch and returns it with the payload.
///
/// # Errors
/// `Checksum`; `Short` if `batch` does not hold what `header` claims.
pub fn verify_batch<'a>(
    log: Log,
    header: &BatchHeader,
    batch: &'a [u8],
) -> Result<(u32, &'a [u8]), FormatError> {
    let what = log.what();
    let len = (header.blocks() as usize).saturating_mul(BLOCK_BYTES);
    if batch.len() < len {
        return Err(FormatError::Short {
            what,
            field: "payload",
            have: batch.len(),
            need: len - batch.len(),
        });
    }
    let found = u32_at(batch, 0);
    let expected = crc32c(&batch[4..len]);
    if found != expected {
        return Err(FormatError::Checksum { what, expected, found });
    }
    Ok((found, &batch[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + header.payload_len as usize]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(payload: &[u8]) -> (BatchHeader, Vec<u8>) {
        let header = BatchHeader {
            payload_len: payload.len() as u32,
            first_record: 0,
            shard_uuid: 77,
            generation: 3,
            position: 12,
            durable: 11,
            previous_crc: 5,
            manifest_generation: 2,
        };
        let mut batch = vec![0; header.blocks() as usize * BLOCK_BYTES];
        batch[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + payload.len()].copy_from_slice(payload);
        seal_batch(Log::Wal, &header, &mut batch);
        (header, batch)
    }

    #[test]
    fn a_sealed_batch_reads_back_as_it_was() {
        let (header, batch) = sealed(&[7; 5000]);
        assert_eq!(batch.len(), 2 * BLOCK_BYTES);
        let peeked = peek_batch(Log::Wal, 77, &batch[..BLOCK_BYTES], 1 << 20).unwrap().unwrap();
        assert_eq!(peeked, header);
        assert_eq!(verify_batch(Log::Wal, &peeked, &batch).unwrap().1, &[7; 5000]);
    }

    /// G3: no flipped bit of a batch goes unnoticed, padding included.
    #[test]
    fn every_flipped_bit_is_noticed() {
        let (_, batch) = sealed(b"hello");
        for at in (0..batch.len()).step_by(7).chain(0..64) {
            let mut bad = batch.clone();
            bad[at] ^= 1 << (at % 8);
            let taken = peek_batch(Log::Wal, 77, &bad, 1 << 20)
                .ok()
                .flatten()
                .is_some_and(|header| verify_batch(Log::Wal, &header, &bad).is_ok());
            assert!(!taken, "byte {at}");
        }
    }

    #[test]
    fn a_batch_of_another_shard_or_log_is_refused_by_name() {
        let (_, batch) = sealed(b"hello");
        assert!(matches!(
            peek_batch(Log::Wal, 78, &batch, 1 << 20),
            Err(FormatError::Identity { field: "shard uuid", .. })
        ));
        assert!(matches!(
            peek_batch(Log::Manifest, 77, &batch, 1 << 20),
            Err(FormatError::Identity { field: "log", .. })
        ));
    }
}
