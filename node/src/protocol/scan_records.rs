//! Records of a range scan: keys, or documents with their metadata, one after another in a response's value.
//!
//! Invariants
//! - A record is never split over two responses.
//! - Keys have no collection prefix.
//!
//! Cost: encoding copies key and value once into the caller's buffer; decoding borrows.
//!
//! Does not know: scans, limits, order.
//! Source: KV binary protocol, range scan continue; T5.15 of the scan specification.

use bytes::BufMut;
use ringbase_storage::types::{Cas, Seqno};

use super::Datatype;
use super::error_context::Refusal;
use super::leb128::{self, Leb128};

/// Bytes of a document record before its key.
pub const DOCUMENT_FIXED_BYTES: usize = 25;

/// What the records of a response are: its extras.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Keys.
    Keys,
    /// Documents.
    Documents,
}

impl RecordKind {
    /// Decodes the extras of a response.
    #[must_use]
    pub fn decode(extras: &[u8]) -> Option<RecordKind> {
        match extras {
            [0, 0, 0, 0] => Some(RecordKind::Keys),
            [0, 0, 0, 1] => Some(RecordKind::Documents),
            _ => None,
        }
    }

    /// Encodes the extras of a response.
    #[must_use]
    #[inline]
    pub fn encode(self) -> [u8; 4] {
        match self {
            RecordKind::Keys => [0, 0, 0, 0],
            RecordKind::Documents => [0, 0, 0, 1],
        }
    }
}

/// One document of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentRecord<'a> {
    /// The client's opaque 32 bits.
    pub flags: u32,
    /// Absolute, in epoch seconds; 0 for none.
    pub expiry: u32,
    /// Position in the vbucket.
    pub seqno: Seqno,
    /// Version.
    pub cas: Cas,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// The logical key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

/// Bytes that a length-prefixed string takes.
#[inline]
fn string_bytes(len: usize) -> usize {
    leb128::encoded_len(len as u32) + len
}

/// Bytes of the record of a key.
#[must_use]
#[inline]
pub fn key_record_bytes(key_bytes: usize) -> usize {
    string_bytes(key_bytes)
}

/// Appends the record of `key`.
#[inline]
pub fn encode_key(key: &[u8], out: &mut impl BufMut) {
    put_string(key, out);
}

#[inline]
fn put_string(bytes: &[u8], out: &mut impl BufMut) {
    if bytes.len() < 0x80 {
        out.put_u8(bytes.len() as u8);
    } else {
        let len = u32::try_from(bytes.len()).expect("keys and values are shorter than 4 GiB");
        out.put_slice(Leb128::encode(len).as_bytes());
    }
    out.put_slice(bytes);
}

impl DocumentRecord<'_> {
    /// Bytes of this record.
    #[must_use]
    #[inline]
    pub fn record_bytes(&self) -> usize {
        DOCUMENT_FIXED_BYTES + string_bytes(self.key.len()) + string_bytes(self.value.len())
    }

    /// Appends the record.
    ///
    /// # Panics
    /// If key or value is 4 GiB or longer; documents are limited far below.
    #[inline]
    pub fn encode(&self, out: &mut impl BufMut) {
        let mut fixed = [0; DOCUMENT_FIXED_BYTES];
        fixed[..4].copy_from_slice(&self.flags.to_be_bytes());
        fixed[4..8].copy_from_slice(&self.expiry.to_be_bytes());
        fixed[8..16].copy_from_slice(&self.seqno.0.to_be_bytes());
        fixed[16..24].copy_from_slice(&self.cas.0.to_be_bytes());
        fixed[24] = self.datatype.0;
        out.put_slice(&fixed);
        put_string(self.key, out);
        put_string(self.value, out);
    }
}

/// Records do not fill a value exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A length is not canonical LEB128.
    #[error("bad length in the record at byte {offset}: {source}")]
    Length {
        /// Where the record begins, in bytes.
        offset: usize,
        /// What is wrong with it.
        source: leb128::Leb128Error,
    },
    /// A record runs past the end.
    #[error("the record at byte {offset} runs past the end of {value_bytes} bytes")]
    Truncated {
        /// Where the record begins, in bytes.
        offset: usize,
        /// Bytes of the whole value.
        value_bytes: usize,
    },
}

/// What both iterators share: where they are in a value.
#[derive(Debug, Clone)]
struct Cursor<'a> {
    rest: &'a [u8],
    value_bytes: usize,
}

impl<'a> Cursor<'a> {
    fn new(value: &'a [u8]) -> Cursor<'a> {
        Cursor { rest: value, value_bytes: value.len() }
    }

    fn offset(&self) -> usize {
        self.value_bytes - self.rest.len()
    }

    fn take_string(&mut self, offset: usize) -> Result<&'a [u8], RecordError> {
        let (len, rest) =
            leb128::decode(self.rest).map_err(|source| RecordError::Length { offset, source })?;
        let truncated = RecordError::Truncated { offset, value_bytes: self.value_bytes };
        let (string, rest) = rest.split_at_checked(len as usize).ok_or(truncated)?;
        self.rest = rest;
        Ok(string)
    }

    /// The next record; after an error there is none.
    fn next<T>(
        &mut self,
        read: impl FnOnce(&mut Self, usize) -> Result<T, RecordError>,
    ) -> Option<Result<T, RecordError>> {
        if self.rest.is_empty() {
            return None;
        }
        let offset = self.offset();
        let record = read(self, offset);
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

/// The keys in a value.
#[derive(Debug, Clone)]
pub struct KeyRecords<'a>(Cursor<'a>);

impl<'a> KeyRecords<'a> {
    /// Reads the value of a response whose kind is [`RecordKind::Keys`].
    #[must_use]
    pub fn new(value: &'a [u8]) -> KeyRecords<'a> {
        KeyRecords(Cursor::new(value))
    }
}

impl<'a> Iterator for KeyRecords<'a> {
    type Item = Result<&'a [u8], RecordError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(|cursor, offset| cursor.take_string(offset))
    }
}

/// The documents in a value.
#[derive(Debug, Clone)]
pub struct DocumentRecords<'a>(Cursor<'a>);

impl<'a> DocumentRecords<'a> {
    /// Reads the value of a response whose kind is [`RecordKind::Documents`].
    #[must_use]
    pub fn new(value: &'a [u8]) -> DocumentRecords<'a> {
        DocumentRecords(Cursor::new(value))
    }
}

impl<'a> Iterator for DocumentRecords<'a> {
    type Item = Result<DocumentRecord<'a>, RecordError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(|cursor, offset| {
            let truncated = RecordError::Truncated { offset, value_bytes: cursor.value_bytes };
            let (fixed, rest) = cursor.rest.split_first_chunk::<DOCUMENT_FIXED_BYTES>().ok_or(truncated)?;
            let [f3, f2, f1, f0, e3, e2, e1, e0, numbers @ .., datatype] = *fixed;
            let number = |index: usize| u64::from_be_bytes(numbers.as_chunks::<8>().0[index]);
            cursor.rest = rest;
            Ok(DocumentRecord {
                flags: u32::from_be_bytes([f3, f2, f1, f0]),
                expiry: u32::from_be_bytes([e3, e2, e1, e0]),
                seqno: Seqno(number(0)),
                cas: Cas(number(1)),
                datatype: Datatype(datatype),
                key: cursor.take_string(offset)?,
                value: cursor.take_string(offset)?,
            })
        })
    }
}

impl From<RecordError> for Refusal {
    fn from(_: RecordError) -> Refusal {
        Refusal::einval("Malformed range scan records")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T5.15
    #[test]
    fn key_records_survive_a_round_trip_at_every_length() {
        let keys: Vec<Vec<u8>> = (0..=250).map(|len| vec![len as u8; len]).collect();
        let mut value = Vec::new();
        for key in &keys {
            let before = value.len();
            encode_key(key, &mut value);
            assert_eq!(value.len() - before, key_record_bytes(key.len()));
        }
        let decoded: Vec<&[u8]> = KeyRecords::new(&value).map(Result::unwrap).collect();
        assert_eq!(decoded, keys);
        assert_eq!(RecordKind::decode(&RecordKind::Keys.encode()), Some(RecordKind::Keys));
    }

    fn documents<'a>(value: &'a [u8]) -> Vec<DocumentRecord<'a>> {
        let document = |key, value| DocumentRecord {
            flags: 0x0200_0006,
            expiry: 7,
            seqno: Seqno(1 << 53 | 1),
            cas: Cas(u64::MAX - 1),
            datatype: Datatype::JSON,
            key,
            value,
        };
        [0, 1, 127, 128, 16_383, 16_384, 70_000].map(|len| document(&b"key"[..], &value[..len])).to_vec()
    }

    /// T5.15
    #[test]
    fn document_records_survive_a_round_trip_across_every_length_of_the_length() {
        let bytes = vec![b'v'; 70_000];
        let mut value = Vec::new();
        for document in documents(&bytes) {
            let before = value.len();
            document.encode(&mut value);
            assert_eq!(value.len() - before, document.record_bytes());
        }
        let decoded: Vec<_> = DocumentRecords::new(&value).map(Result::unwrap).collect();
        assert_eq!(decoded, documents(&bytes));
        assert_eq!(RecordKind::decode(&RecordKind::Documents.encode()), Some(RecordKind::Documents));
        assert_eq!(RecordKind::decode(&[0, 0, 0, 2]), None);
    }

    #[test]
    fn a_value_cut_anywhere_ends_in_one_error_and_keeps_the_whole_records() {
        let mut value = Vec::new();
        for document in documents(&[b'v'; 70_000]).iter().take(3) {
            document.encode(&mut value);
        }
        let ends = [29 + 1, 30 + 31, 61 + 157];
        assert_eq!(value.len(), ends[2]);
        for len in 0..value.len() {
            let records: Vec<_> = DocumentRecords::new(&value[..len]).collect();
            let whole = ends.iter().filter(|end| **end <= len).count();
            let torn = usize::from(len != 0 && !ends.contains(&len));
            assert_eq!(records.iter().filter(|record| record.is_ok()).count(), whole, "{len} bytes");
            assert_eq!(records.len(), whole + torn, "{len} bytes");
        }
    }

    #[test]
    fn a_claimed_length_beyond_the_value_is_an_error_not_an_allocation() {
        let error = KeyRecords::new(&[1, b'k', 0xff, 0xff, 0xff, 0xff, 0x0f, b'x']).nth(1).unwrap();
        assert_eq!(error, Err(RecordError::Truncated { offset: 2, value_bytes: 8 }));
        let mut padded = KeyRecords::new(&[0x80, 0x00]);
        assert!(matches!(padded.next(), Some(Err(RecordError::Length { offset: 0, .. }))));
        assert_eq!(padded.next(), None);
    }
}
