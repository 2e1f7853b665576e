//! What was purged of a vbucket, as the manifest says it.
//!
//! Does not know: why it was purged.

use super::{list, put_list};
use crate::format::FormatError;
use crate::format::bytes::{Reader, WriteLe};
use crate::types::Seqno;

/// Old tombstones, and documents of dropped collections, that are in no run any more. Segments have them until they are rewritten: whoever comes now is not
/// shown the tombstones, and hides what is of dropped collections himself.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PurgeDesc {
    /// Greatest purged tombstone: no tombstone at or below it is left.
    pub seqno: Seqno,
    /// Tombstones that were purged ever; [`super::VbCounts`] counts them still.
    pub tombstones: u64,
    /// Documents of dropped collections that were purged ever; they are counted still, as hidden.
    pub items: u64,
    /// Collections of which nothing is left, ascending.
    pub collections: Vec<u32>,
    /// What segments still have of it.
    pub segments: Vec<PurgedPart>,
}

/// Purged records that a segment still has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct PurgedPart {
    /// Id of the segment.
    pub segment: u64,
    /// How many.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PurgeDesc {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.seqno.0);
        out.put_u64(self.tombstones);
        out.put_u64(self.items);
        put_list(out, &self.collections, |id, out| out.put_u32(*id));
        put_list(out, &self.segments, |part, out| {
            for number in [part.segment, part.records, part.bytes] {
                out.put_u64(number);
            }
        });
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<PurgeDesc, FormatError> {
        let seqno = Seqno(reader.number("purge seqno")?);
        let tombstones = reader.number("purged tombstones")?;
        let items = reader.number("erased documents")?;
        let collections = list(reader, 4, |reader| reader.u32("erased collection"))?;
        if !collections.is_sorted_by(|a, b| a < b) {
            return Err(reader.invalid("erased collections", collections.len() as u64, "ascending ids"));
        }
        let segments = list(reader, 24, |reader| {
            Ok(PurgedPart {
                segment: reader.number("segment with purged records")?,
                records: reader.number("purged records")?,
                bytes: reader.number("bytes of purged records")?,
            })
        })?;
        Ok(PurgeDesc { seqno, tombstones, items, collections, segments })
    }
}
