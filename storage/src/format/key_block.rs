//! The two parts in which a run keeps a stretch of keys: a key part and, right behind it, a metadata part.
//!
//! Payload of a key part, for n keys of one collection:
//!
//! | bytes | field |
//! |------:|-------|
//! | … | key column: per key its length as LEB128, then the key *without* collection prefix |
//! | 8 n | seqno column: bit 63 set if the version is a deletion |
//! | 2 n | place of each key in the key column |
//!
//! The key column is what a key-only range scan sends, byte for byte. The header's `payload_len` is the key
//! column alone; `extra` holds the collection id and, in its upper half, the number of deletions.
//!
//! Payload of a metadata part: 40 bytes a key, see [`Meta`].
//!
//! Invariants
//! - Keys rise strictly, within a part and from part to part. A part is at most [`KEY_PART_BYTES_MAX`] long.
//!
//! Does not know: fences, filters, other parts.

use super::block::{
    BLOCK_HEADER_BYTES, BlockHeader, BlockIdentity, BlockType, blocks_for, open_block, seal_block,
};
use super::bytes::{Reader, WriteLe, u16_at, u32_at, u64_at};
use super::{FormatError, whole_blocks};
use crate::io::BLOCK_BYTES;
use crate::item::Item;
use crate::types::{ItemMeta, Kind, Seqno};

/// Longest key part in bytes, header included: a place in it fits 16 bits.
pub const KEY_PART_BYTES_MAX: usize = 32 << 10;

/// Bytes of a metadata entry.
pub const META_BYTES: usize = 40;

const DELETED: u64 = 1 << 63;
const PER_KEY_BYTES: usize = 10;

/// The metadata of one key.
///
/// | offset | bytes | field |
/// |-------:|------:|-------|
/// | 0 | 8 | CAS |
/// | 8 | 8 | revid |
/// | 16 | 4 | flags |
/// | 20 | 4 | expiry or delete time |
/// | 24 | 4 | value length |
/// | 28 | 1 | datatype |
/// | 29 | 1 | kind |
/// | 30 | 2 | zero |
/// | 32 | 8 | seqno |
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Meta {
    /// All but the value's length.
    pub item: ItemMeta,
    /// Value bytes.
    pub value_len: u32,
}

/// Collects keys until a part is full.
#[derive(Debug, Default)]
pub struct KeyBlockBuilder {
    collection: u32,
    prefix_len: usize,
    keys: Vec<u8>,
    seqnos: Vec<u64>,
    places: Vec<u16>,
    metas: Vec<u8>,
    tombstones: u32,
}

/// Bytes of the unsigned LEB128 form of `value`, appended to `out`.
///
/// Source: DWARF 4, section 7.6.
pub fn put_leb128(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Decodes unsigned LEB128 of at most 5 bytes; the value and how many bytes it took.
#[must_use]
pub fn leb128(bytes: &[u8]) -> Option<(u32, usize)> {
    let mut value = 0u32;
    for (index, &byte) in bytes.iter().enumerate().take(5) {
        value |= u32::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

impl KeyBlockBuilder {
    /// Whether nothing was added since the last part.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether `key` (with prefix) fits this part: same collection, enough room.
    #[must_use]
    pub fn fits(&self, key: &[u8]) -> bool {
        if self.is_empty() {
            return true;
        }
        let (collection, prefix_len) = leb128(key).unwrap_or((0, 0));
        let added = 2 + key.len() - prefix_len + PER_KEY_BYTES;
        collection == self.collection && self.key_part_len() + added <= KEY_PART_BYTES_MAX
    }

    fn key_part_len(&self) -> usize {
        BLOCK_HEADER_BYTES + self.keys.len() + self.places.len() * PER_KEY_BYTES
    }

    /// Adds a key (with its collection prefix), which is above all added before and [fits](Self::fits).
    ///
    /// # Panics
    /// If it does not fit or has no prefix.
    pub fn push(&mut self, key: &[u8], meta: &Meta) {
        assert!(self.fits(key), "key part is full");
        let (collection, prefix_len) = leb128(key).expect("a stored key has a collection prefix");
        self.collection = collection;
        self.prefix_len = prefix_len;
        self.places.push(self.keys.len() as u16);
        let logical = &key[prefix_len..];
        put_leb128(&mut self.keys, logical.len() as u32);
        self.keys.extend_from_slice(logical);
        let deleted = meta.item.kind.is_deleted();
        self.tombstones += u32::from(deleted);
        self.seqnos.push(meta.item.seqno.0 | if deleted { DELETED } else { 0 });
        self.metas.put_u64(meta.item.cas.0);
        self.metas.put_u64(meta.item.revid);
        self.metas.put_u32(meta.item.flags);
        self.metas.put_u32(meta.item.expiry);
        self.metas.put_u32(meta.value_len);
        self.metas.put_u8(meta.item.datatype);
        self.metas.put_u8(meta.item.kind as u8);
        self.metas.put_u16(0);
        self.metas.put_u64(meta.item.seqno.0);
    }

    /// Device blocks of the key part and of the metadata part.
    #[must_use]
    pub fn blocks(&self) -> (u32, u32) {
        let keys = (whole_blocks(self.key_part_len()) / BLOCK_BYTES) as u32;
        (keys, blocks_for(self.metas.len()))
    }

    /// Writes both parts into `out`, which begins at device block `place` and is exactly as long as
    /// [`Self::blocks`] says, and starts anew. `first` is the number of the first key in its run.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn seal(&mut self, identity: &BlockIdentity, place: u64, first: u64, out: &mut [u8]) {
        let (key_blocks, meta_blocks) = self.blocks();
        let (key_part, meta_part) = out.split_at_mut(key_blocks as usize * BLOCK_BYTES);
        let mut payload = std::mem::take(&mut self.keys);
        let payload_len = payload.len() as u32;
        for seqno in self.seqnos.drain(..) {
            payload.put_u64(seqno);
        }
        let records = self.places.len() as u32;
        for at in self.places.drain(..) {
            payload.put_u16(at);
        }
        key_part[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + payload.len()].copy_from_slice(&payload);
        let extra = u64::from(self.collection) | u64::from(self.tombstones) << 32;
        let header = BlockHeader { place, blocks: key_blocks, first, records, payload_len, extra };
        seal_block(&BlockIdentity { kind: BlockType::Keys, ..*identity }, &header, key_part);

        meta_part[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + self.metas.len()].copy_from_slice(&self.metas);
        let header = BlockHeader {
            place: place + u64::from(key_blocks),
            blocks: meta_blocks,
            first,
            records,
            payload_len: self.metas.len() as u32,
            extra: 0,
        };
        seal_block(&BlockIdentity { kind: BlockType::Metas, ..*identity }, &header, meta_part);
        payload.clear();
        self.keys = payload;
        self.metas.clear();
        self.tombstones = 0;
    }
}

/// The metadata of an item as a run keeps it.
#[must_use]
pub fn meta_of(item: &Item) -> Meta {
    Meta { item: item.meta(), value_len: item.value().len() as u32 }
}

/// The shape of a verified key part; the bytes stay where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyPart {
    /// Keys inside.
    pub records: u32,
    /// Collection of all of them.
    pub collection: u32,
    /// How many are deletions.
    pub tombstones: u32,
    /// Number of the first key in its run.
    pub first: u64,
    keys_len: u32,
}

impl KeyPart {
    /// Verifies a key part read at `place`, down to every place in its key column.
    ///
    /// # Errors
    /// As [`open_block`]; `Invalid` if the columns do not fit together.
    pub fn open(identity: &BlockIdentity, place: u64, block: &[u8]) -> Result<KeyPart, FormatError> {
        let identity = BlockIdentity { kind: BlockType::Keys, ..*identity };
        let header = open_block(&identity, place, block)?;
        let what = "key block";
        let columns = header.records as usize * PER_KEY_BYTES;
        let end = BLOCK_HEADER_BYTES + header.payload_len as usize;
        if header.records == 0 || end.saturating_add(columns) > block.len() {
            return Err(FormatError::Invalid {
                what,
                field: "records",
                found: u64::from(header.records),
                rule: "at least one, and all columns inside the block",
            });
        }
        let part = KeyPart {
            records: header.records,
            collection: header.extra as u32,
            tombstones: (header.extra >> 32) as u32,
            first: header.first,
            keys_len: header.payload_len,
        };
        let keys = part.column(block);
        let mut at = 0;
        for index in 0..part.records as usize {
            let claimed = part.place(block, index);
            let len = leb128(&keys[at.min(keys.len())..]).filter(|_| claimed == at);
            let Some((len, taken)) = len.filter(|(len, taken)| at + taken + *len as usize <= keys.len())
            else {
                return Err(FormatError::Invalid {
                    what,
                    field: "key place",
                    found: claimed as u64,
                    rule: "right behind the key before it",
                });
            };
            at += taken + len as usize;
        }
        if at != keys.len() {
            return Err(FormatError::Invalid {
                what,
                field: "key column",
                found: at as u64,
                rule: "ends with its last key",
            });
        }
        Ok(part)
    }

    /// The whole key column.
    #[inline]
    #[must_use]
    pub fn column<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        &block[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + self.keys_len as usize]
    }

    /// Place of key `index` in the column; `index == records` gives its end.
    #[inline]
    #[must_use]
    pub fn place(&self, block: &[u8], index: usize) -> usize {
        if index >= self.records as usize {
            return self.keys_len as usize;
        }
        let places = BLOCK_HEADER_BYTES + self.keys_len as usize + self.records as usize * 8;
        u16_at(block, places + index * 2) as usize
    }

    /// Key `index` without its collection prefix.
    #[inline]
    #[must_use]
    pub fn key<'a>(&self, block: &'a [u8], index: usize) -> &'a [u8] {
        let start = self.place(block, index);
        let end = self.place(block, index + 1);
        let record = &self.column(block)[start..end];
        &record[if record[0] < 0x80 { 1 } else { 2 }..]
    }

    /// The column bytes of keys `from..to`: what a key-only scan sends.
    #[inline]
    #[must_use]
    pub fn records<'a>(&self, block: &'a [u8], from: usize, to: usize) -> &'a [u8] {
        &self.column(block)[self.place(block, from)..self.place(block, to)]
    }

    /// Seqno of key `index`, and whether that version is a deletion.
    #[inline]
    #[must_use]
    pub fn seqno(&self, block: &[u8], index: usize) -> (Seqno, bool) {
        let at = BLOCK_HEADER_BYTES + self.keys_len as usize + index * 8;
        let raw = u64_at(block, at);
        (Seqno(raw & !DELETED), raw & DELETED != 0)
    }

    /// The first key at or above `key` (no prefix), from `from` on; `records` if there is none.
    #[must_use]
    pub fn lower_bound(&self, block: &[u8], from: usize, key: &[u8]) -> usize {
        let (mut low, mut high) = (from, self.records as usize);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(block, middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// Metadata entry `index` of a verified metadata part.
///
/// # Errors
/// `Short`, `Invalid`.
pub fn meta_at(part: &[u8], index: usize) -> Result<Meta, FormatError> {
    let start = BLOCK_HEADER_BYTES + index * META_BYTES;
    let payload_end = (BLOCK_HEADER_BYTES + u32_at(part, 52) as usize).min(part.len());
    let mut reader = Reader::new("metadata block", part.get(start..payload_end).unwrap_or_default());
    let (cas, revid) = (reader.u64("CAS")?, reader.u64("revid")?);
    let (flags, expiry) = (reader.u32("flags")?, reader.u32("expiry")?);
    let value_len = reader.u32("value length")?;
    let datatype = reader.u8("datatype")?;
    let kind = reader.u8("kind")?;
    let kind = Kind::from_u8(kind).ok_or_else(|| reader.invalid("kind", kind.into(), "1..=7"))?;
    reader.u16("padding")?;
    let seqno = Seqno(reader.u64("seqno")?);
    let item = ItemMeta { seqno, cas: crate::types::Cas(cas), revid, flags, expiry, datatype, kind };
    Ok(Meta { item, value_len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BucketId, Cas, VbId};

    fn identity() -> BlockIdentity {
        BlockIdentity { shard_uuid: 1, bucket: BucketId(1), vb: VbId(5), object: 8, kind: BlockType::Keys }
    }

    fn meta(seqno: u64, kind: Kind) -> Meta {
        let item = ItemMeta {
            seqno: Seqno(seqno),
            cas: Cas(seqno * 3),
            revid: 1,
            flags: 7,
            expiry: 0,
            datatype: 1,
            kind,
        };
        Meta { item, value_len: 10 }
    }

    #[test]
    fn keys_seqnos_and_metadata_read_back() {
        let mut builder = KeyBlockBuilder::default();
        let mut keys = Vec::new();
        for n in 0..10_000u64 {
            let key = format!("\0{}{n:06}", "k".repeat((n % 200) as usize % 3 * 70));
            keys.push(key);
        }
        keys.sort();
        let mut added = 0;
        while added < keys.len() && builder.fits(keys[added].as_bytes()) {
            let kind = if added % 5 == 0 { Kind::Deletion } else { Kind::Mutation };
            builder.push(keys[added].as_bytes(), &meta(added as u64 + 1, kind));
            added += 1;
        }
        assert!(added > 100);
        let (key_blocks, meta_blocks) = builder.blocks();
        assert!(key_blocks as usize * BLOCK_BYTES <= KEY_PART_BYTES_MAX);
        let mut out = vec![0; (key_blocks + meta_blocks) as usize * BLOCK_BYTES];
        builder.seal(&identity(), 100, 0, &mut out);
        assert!(builder.is_empty());
        let (block, metas) = out.split_at(key_blocks as usize * BLOCK_BYTES);
        let part = KeyPart::open(&identity(), 100, block).unwrap();
        assert_eq!((part.records as usize, part.collection), (added, 0));
        let metas_identity = BlockIdentity { kind: BlockType::Metas, ..identity() };
        open_block(&metas_identity, 100 + u64::from(key_blocks), metas).unwrap();
        for (index, key) in keys.iter().take(added).enumerate() {
            assert_eq!(part.key(block, index), &key.as_bytes()[1..]);
            assert_eq!(part.seqno(block, index), (Seqno(index as u64 + 1), index % 5 == 0));
            assert_eq!(meta_at(metas, index).unwrap().item.cas, Cas((index as u64 + 1) * 3));
            assert_eq!(part.lower_bound(block, 0, &key.as_bytes()[1..]), index);
        }
        assert!(meta_at(metas, added).is_err());
        assert_eq!(part.lower_bound(block, 0, b"zzz"), added);
    }

    #[test]
    fn a_key_of_another_collection_starts_another_part() {
        let mut builder = KeyBlockBuilder::default();
        builder.push(b"\x00a", &meta(1, Kind::Mutation));
        assert!(builder.fits(b"\x00b"));
        assert!(!builder.fits(b"\x08b"));
    }

    #[test]
    fn leb128_round_trips_and_refuses_what_has_no_end() {
        for value in [0, 1, 0x7f, 0x80, 0x7fff, 0x8000, 0xcafe_f00d, u32::MAX] {
            let mut out = Vec::new();
            put_leb128(&mut out, value);
            assert_eq!(leb128(&out), Some((value, out.len())));
        }
        assert_eq!(leb128(&[0x80; 6]), None);
        assert_eq!(leb128(&[]), None);
    }
}
