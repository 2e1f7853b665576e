//! Bytes on disk, pure: what a superblock, a batch, a record and a block look like. Format version 1.
//!
//! Everything is little-endian except the parts of a seqlog record that are a wire frame, which are big-endian.
//! Every block carries a CRC32C over itself *and* over where it belongs (shard, place, generation, bucket,
//! vbucket), so that a misdirected or stale write fails verification as surely as a flipped bit.
//!
//! Invariants
//! - Decoding never panics, never allocates by a length it has not checked against the bytes at hand.
//! - Padding is zero and covered by the checksum.
//!
//! Does not know: devices, tasks, time.

pub mod batch;
pub mod block;
pub mod bytes;
pub mod index;
pub mod key_block;
pub mod manifest_record;
pub mod seqlog_block;
pub mod superblock;
pub mod wal_record;

/// The format this build writes, and the only one it reads.
pub const FORMAT_VERSION: u8 = 1;

/// Why bytes from a disk could not be taken. Says what was found where and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The checksum does not fit the bytes.
    #[error("{what} has checksum {found:#010x}, its bytes give {expected:#010x}")]
    Checksum {
        /// Which structure.
        what: &'static str,
        /// What its bytes give.
        expected: u32,
        /// What stands in its header.
        found: u32,
    },
    /// The bytes verify but belong elsewhere: a misdirected or a lost write.
    #[error("{what} says {field} {found}, expected {expected}")]
    Identity {
        /// Which structure.
        what: &'static str,
        /// Which part of its identity.
        field: &'static str,
        /// What the reader asked for.
        expected: u64,
        /// What the bytes say.
        found: u64,
    },
    /// The magic number is not ours.
    #[error("{what} does not begin with its magic number (found {found:#010x})")]
    Magic {
        /// Which structure.
        what: &'static str,
        /// The number found.
        found: u64,
    },
    /// Written by another version of this program.
    #[error("{what} has format version {found}, this build reads version {supported}")]
    Version {
        /// Which structure.
        what: &'static str,
        /// What the bytes say.
        found: u32,
        /// What this build reads.
        supported: u32,
    },
    /// A length or number inside does not fit.
    #[error("{what}: {field} is {found}, which does not fit ({rule})")]
    Invalid {
        /// Which structure.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// What was found.
        found: u64,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// The bytes end inside a structure.
    #[error("{what} ends after {have} bytes inside {field}, which needs {need} more")]
    Short {
        /// Which structure.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// Bytes there.
        have: usize,
        /// Bytes missing at least.
        need: usize,
    },
}

/// No place in a file and no position of a log reaches this many blocks: their bytes fit 63 bits.
pub const BLOCKS_MAX: u64 = 1 << 51;

/// No seqno and no counter reaches this: there is always a next one, and bit 63 is free for a flag.
pub const NUMBERS_MAX: u64 = 1 << 63;

/// No generation of a log reaches this: object ids begin with it.
pub const LOG_GENERATIONS_MAX: u64 = 1 << 31;

/// CRC32C (Castagnoli) of `bytes`.
///
/// Source: RFC 3720 appendix B.4; computed by the `crc-fast` crate.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// `len` rounded up to whole blocks, in bytes.
#[must_use]
pub fn whole_blocks(len: usize) -> usize {
    len.next_multiple_of(crate::io::BLOCK_BYTES)
}
