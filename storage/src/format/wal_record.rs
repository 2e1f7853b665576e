//! One mutation as the write-ahead log carries it.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 4 | length of the whole record in bytes |
//! | 4 | 4 | bucket id |
//! | 8 | 2 | vbucket |
//! | 10 | 1 | kind |
//! | 11 | 1 | datatype |
//! | 12 | 8 | seqno |
//! | 20 | 8 | CAS |
//! | 28 | 8 | revid |
//! | 36 | 8 | seqno of the key's former version, 0 if none |
//! | 44 | 4 | flags |
//! | 48 | 4 | expiry, or delete time |
//! | 52 | 2 | key length |
//! | 54 | 1 | bit 0: the former version was live |
//! | 55 | 1 | zero |
//! | 56 | … | key with its LEB128 collection prefix, value |
//!
//! Does not know: batches, files, checksums (the batch has one).

use super::FormatError;
use super::bytes::{Reader, WriteLe};
use crate::item::{DATATYPE_MAX, Item};
use crate::types::{BucketId, Cas, Former, ItemMeta, KEY_BYTES_MAX, Kind, SEQNO_MAX, Seqno, VbId};

/// Bytes of a record beside key and value.
pub const WAL_RECORD_BYTES: usize = 56;

/// A mutation read from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalRecord<'a> {
    /// Whose.
    pub bucket: BucketId,
    /// Where.
    pub vb: VbId,
    /// All but key and value.
    pub meta: ItemMeta,
    /// Seqno of the key's version before, 0 if none.
    pub former: Seqno,
    /// Whether that version was live.
    pub former_live: bool,
    /// Key with its collection prefix.
    pub key: &'a [u8],
    /// Value.
    pub value: &'a [u8],
}

/// Bytes this item takes in the log.
#[must_use]
pub fn wal_record_len(item: &Item) -> usize {
    WAL_RECORD_BYTES + item.key().len() + item.value().len()
}

/// Appends the record of `item`, which replaces `former`.
pub fn encode_wal_record(out: &mut Vec<u8>, bucket: BucketId, vb: VbId, item: &Item, former: Former) {
    let meta = item.meta();
    out.put_u32(wal_record_len(item) as u32);
    out.put_u32(bucket.0);
    out.put_u16(vb.0);
    out.put_u8(meta.kind as u8);
    out.put_u8(meta.datatype);
    out.put_u64(meta.seqno.0);
    out.put_u64(meta.cas.0);
    out.put_u64(meta.revid);
    out.put_u64(former.seqno.0);
    out.put_u32(meta.flags);
    out.put_u32(meta.expiry);
    out.put_u16(item.key().len() as u16);
    out.put_u8(u8::from(former.live));
    out.put_u8(0);
    out.put_bytes(item.key());
    out.put_bytes(item.value());
}

/// The length of the record that begins at the front of `bytes`, if its length field is there.
///
/// # Errors
/// `Invalid` if no record can have this length.
pub fn peek_wal_record_len(bytes: &[u8]) -> Result<Option<usize>, FormatError> {
    let mut reader = Reader::new("log record", bytes);
    if bytes.len() < 4 {
        return Ok(None);
    }
    let len = reader.u32("length")? as usize;
    if len <= WAL_RECORD_BYTES {
        return Err(reader.invalid("length", len as u64, "shorter than any record"));
    }
    Ok(Some(len))
}

/// Decodes the record that fills `bytes` exactly.
///
/// # Errors
/// `Short`, `Invalid`: the log verified but holds what this build cannot have written.
pub fn decode_wal_record(bytes: &[u8]) -> Result<WalRecord<'_>, FormatError> {
    let mut reader = Reader::new("log record", bytes);
    let len = reader.u32("length")? as usize;
    if len != bytes.len() {
        return Err(reader.invalid("length", len as u64, "not the bytes at hand"));
    }
    let bucket = BucketId(reader.u32("bucket")?);
    let vb = VbId(reader.u16("vbucket")?);
    let kind = reader.u8("kind")?;
    let kind = Kind::from_u8(kind).ok_or_else(|| reader.invalid("kind", kind.into(), "1..=7"))?;
    let datatype = reader.u8("datatype")?;
    if datatype > DATATYPE_MAX {
        return Err(reader.invalid("datatype", datatype.into(), "0..=7"));
    }
    let seqno = Seqno(reader.u64("seqno")?);
    let cas = Cas(reader.u64("cas")?);
    let revid = reader.u64("revid")?;
    let former = Seqno(reader.u64("former seqno")?);
    let flags = reader.u32("flags")?;
    let expiry = reader.u32("expiry")?;
    let key_len = reader.u16("key length")? as usize;
    let former_live = reader.u8("former")? & 1 != 0;
    reader.u8("padding")?;
    if key_len == 0 || key_len > KEY_BYTES_MAX {
        return Err(reader.invalid("key length", key_len as u64, "1..=255"));
    }
    if seqno > SEQNO_MAX {
        return Err(reader.invalid("seqno", seqno.0, "below 2^48"));
    }
    if seqno.0 == 0 || former >= seqno {
        return Err(reader.invalid("former seqno", former.0, "below the seqno, which is not 0"));
    }
    let key = reader.bytes(key_len, "key")?;
    let value = reader.bytes(reader.remaining(), "value")?;
    let meta = ItemMeta { seqno, cas, revid, flags, expiry, datatype, kind };
    Ok(WalRecord { bucket, vb, meta, former, former_live, key, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_and_no_cut_of_it_is_taken() {
        let meta = ItemMeta {
            seqno: Seqno(9),
            cas: Cas(1 << 60),
            revid: 3,
            flags: 0xdead_beef,
            expiry: 5,
            datatype: 1,
            kind: Kind::Expiration,
        };
        let item = Item::new(meta, b"\x00key", b"value");
        let former = Former { seqno: Seqno(4), live: true, bytes: 0 };
        let mut bytes = Vec::new();
        encode_wal_record(&mut bytes, BucketId(2), VbId(1023), &item, former);
        assert_eq!(bytes.len(), wal_record_len(&item));
        let record = decode_wal_record(&bytes).unwrap();
        assert_eq!((record.bucket, record.vb, record.meta), (BucketId(2), VbId(1023), meta));
        assert_eq!((record.former, record.former_live), (Seqno(4), true));
        assert_eq!((record.key, record.value), (&b"\x00key"[..], &b"value"[..]));
        for len in 0..bytes.len() {
            assert!(decode_wal_record(&bytes[..len]).is_err(), "cut at {len}");
        }
    }
}
