//! COMPACT_DB: which tombstones of a vbucket may go.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | tombstones with a delete time before this, epoch seconds |
//! | 8 | 8 | of them: those up to this seqno, 0 for all |
//! | 16 | 1 | not 0: all of them, whatever their delete time |
//! | 17 | 1 | zero |
//! | 18 | 2 | file id, ignored |
//! | 20 | 4 | zero |
//!
//! Source: kv_engine `docs/BinaryProtocol.md`, "Compact DB".
//!
//! Does not know: what compacting does.

use ringbase_storage::types::Seqno;

use super::error_context::Refusal;
use super::extras::{ILLEGAL_LENGTH, take_u64};

/// Bytes of the extras.
pub const COMPACT_EXTRAS_BYTES: usize = 24;

/// The extras of COMPACT_DB.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CompactRequest {
    /// Tombstones with a delete time before this may go, epoch seconds.
    pub before: u64,
    /// Of them: those up to this seqno; 0 for all.
    pub up_to: Seqno,
    /// All of them, whatever their delete time.
    pub drop_deletes: bool,
}

impl CompactRequest {
    /// Decodes the extras.
    ///
    /// # Errors
    /// EINVAL: another length, padding that is not zero.
    pub fn decode(mut extras: &[u8]) -> Result<CompactRequest, Refusal> {
        let (Some(before), Some(up_to)) = (take_u64(&mut extras), take_u64(&mut extras)) else {
            return Err(ILLEGAL_LENGTH);
        };
        let Ok([drop_deletes, pad, _, _, pads @ ..]) = <[u8; 8]>::try_from(extras) else {
            return Err(ILLEGAL_LENGTH);
        };
        if pad != 0 || pads != [0; 4] {
            return Err(Refusal::einval("Padding bytes must be zero"));
        }
        Ok(CompactRequest { before, up_to: Seqno(up_to), drop_deletes: drop_deletes != 0 })
    }

    /// The extras of a request.
    #[must_use]
    pub fn encode(&self) -> [u8; COMPACT_EXTRAS_BYTES] {
        let mut extras = [0; COMPACT_EXTRAS_BYTES];
        extras[..8].copy_from_slice(&self.before.to_be_bytes());
        extras[8..16].copy_from_slice(&self.up_to.0.to_be_bytes());
        extras[16] = u8::from(self.drop_deletes);
        extras
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_and_padding_is_looked_at() {
        let request = CompactRequest { before: 1 << 40, up_to: Seqno(7), drop_deletes: true };
        let extras = request.encode();
        assert_eq!(CompactRequest::decode(&extras), Ok(request));
        for (at, is_pad) in [(17, true), (18, false), (19, false), (20, true), (23, true)] {
            let mut padded = extras;
            padded[at] = 1;
            assert_eq!(CompactRequest::decode(&padded).is_err(), is_pad, "byte {at}");
        }
        assert!(CompactRequest::decode(&extras[..23]).is_err());
    }
}
