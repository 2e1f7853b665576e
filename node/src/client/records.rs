//! The records of a range scan as a stream: walked where they arrive, without waiting for a whole response.
//!
//! `RecordWalk` is told how many bytes the value of a response has and is then given its bytes piece by
//! piece; records that are complete go to the caller, a torn one waits for more.
//!
//! Invariants
//! - Every record is checked: canonical length, inside its response, key of 1 to 250 bytes, keys strictly
//!   ascending over all responses of one scan.
//! - A record that cannot be completed within its response is reported before more bytes are awaited.
//!
//! Cost: no allocation; a key is touched twice, for its length and for the comparison with the one before.
//!
//! Does not know: sockets, frames, which scan this is.

use std::io;

use ringbase_storage::types::{Cas, Seqno};

use crate::protocol::Datatype;
use crate::protocol::key::LOGICAL_KEY_BYTES_MAX;
use crate::protocol::leb128::{self, Leb128Error};
use crate::protocol::scan_records::{DOCUMENT_FIXED_BYTES, DocumentRecord, RecordKind};

/// What is wrong with a record. Offsets count from the beginning of the response's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A length is not canonical LEB128.
    #[error("bad length at byte {offset} of the response")]
    Length {
        /// Where the record begins.
        offset: usize,
        /// What is wrong with it.
        #[source]
        source: Leb128Error,
    },
    /// A record runs past the end of its response.
    #[error("the record at byte {offset} of the response runs past its end at {value_bytes}")]
    Truncated {
        /// Where the record begins.
        offset: usize,
        /// Bytes of the value.
        value_bytes: usize,
    },
    /// A key is empty or longer than a key can be.
    #[error("key of {key_bytes} bytes at byte {offset} of the response")]
    KeyLength {
        /// Where the record begins.
        offset: usize,
        /// Its claimed length.
        key_bytes: usize,
    },
    /// A key is not greater than the one before it.
    #[error("key {key:?} came after {previous:?}")]
    Order {
        /// The key, as text.
        key: String,
        /// The one before it, as text.
        previous: String,
    },
    /// A response with keys came in a scan of documents, or the other way round.
    #[error("the scan asked for {expected:?} and the response has another kind")]
    Kind {
        /// What the scan asked for.
        expected: RecordKind,
    },
}

/// One record of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanRecord<'a> {
    /// A key of a key-only scan.
    Key(&'a [u8]),
    /// A document.
    Document(DocumentRecord<'a>),
}

impl<'a> ScanRecord<'a> {
    /// The key.
    #[must_use]
    #[inline]
    pub fn key(&self) -> &'a [u8] {
        match self {
            ScanRecord::Key(key) => key,
            ScanRecord::Document(document) => document.key,
        }
    }
}

/// What went by so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RecordCounts {
    /// Records.
    pub records: u64,
    /// Bytes of keys.
    pub key_bytes: u64,
    /// Bytes of values; 0 for a key-only scan.
    pub value_bytes: u64,
}

/// Why a walk stopped.
#[derive(Debug)]
pub(super) enum WalkError {
    /// The bytes are no records.
    Record(RecordError),
    /// The caller cannot take more.
    Output(io::Error),
}

impl From<RecordError> for WalkError {
    fn from(error: RecordError) -> WalkError {
        WalkError::Record(error)
    }
}

/// How far a walk came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Walked {
    /// Bytes of the piece that are done with.
    pub(super) consumed: usize,
    /// Bytes from there on that the next record needs, 0 at the end of the value.
    pub(super) needed: usize,
}

/// A length-prefixed string in a piece of a value.
enum Found {
    /// All of it is there.
    Here { start: usize, end: usize },
    /// It takes this many bytes of the value to have it, or to know how many it takes.
    Needs(usize),
}

/// Walks the records of one scan, response by response.
#[derive(Debug)]
pub(super) struct RecordWalk {
    kind: RecordKind,
    value_bytes: usize,
    value_left: usize,
    last_key: [u8; LOGICAL_KEY_BYTES_MAX],
    last_key_len: usize,
    pub(super) counts: RecordCounts,
}

impl RecordWalk {
    pub(super) fn new(kind: RecordKind) -> RecordWalk {
        RecordWalk {
            kind,
            value_bytes: 0,
            value_left: 0,
            last_key: [0; LOGICAL_KEY_BYTES_MAX],
            last_key_len: 0,
            counts: RecordCounts::default(),
        }
    }

    /// Begins the next response, whose value has `value_bytes` bytes.
    pub(super) fn begin(&mut self, kind: Option<RecordKind>, value_bytes: usize) -> Result<(), RecordError> {
        if kind != Some(self.kind) && value_bytes > 0 {
            return Err(RecordError::Kind { expected: self.kind });
        }
        self.value_bytes = value_bytes;
        self.value_left = value_bytes;
        Ok(())
    }

    /// Walks the bytes that are there of the current value; `bytes` may be longer than what is left of it.
    pub(super) fn walk(
        &mut self,
        bytes: &[u8],
        on_record: &mut impl FnMut(ScanRecord<'_>) -> io::Result<()>,
    ) -> Result<Walked, WalkError> {
        let piece = bytes.get(..self.value_left).unwrap_or(bytes);
        let last_key = self.last_key;
        let previous = &last_key[..self.last_key_len];
        let (walked, previous) = match self.kind {
            RecordKind::Keys => self.walk_keys(piece, previous, on_record)?,
            RecordKind::Documents => self.walk_documents(piece, previous, on_record)?,
        };
        self.last_key[..previous.len()].copy_from_slice(previous);
        self.last_key_len = previous.len();
        self.value_left -= walked.consumed;
        Ok(walked)
    }

    fn walk_keys<'a>(
        &mut self,
        piece: &'a [u8],
        mut previous: &'a [u8],
        on_record: &mut impl FnMut(ScanRecord<'_>) -> io::Result<()>,
    ) -> Result<(Walked, &'a [u8]), WalkError> {
        let mut counts = self.counts;
        let mut done = 0;
        let needed = loop {
            if done == self.value_left {
                break 0;
            }
            let (start, end) = match self.string_at(piece, done, done)? {
                Found::Here { start, end } => (start, end),
                Found::Needs(bytes) => break bytes - done,
            };
            let key = &piece[start..end];
            self.check_key(key, previous, done)?;
            on_record(ScanRecord::Key(key)).map_err(WalkError::Output)?;
            counts.records += 1;
            counts.key_bytes += key.len() as u64;
            previous = key;
            done = end;
        };
        self.counts = counts;
        Ok((Walked { consumed: done, needed }, previous))
    }

    fn walk_documents<'a>(
        &mut self,
        piece: &'a [u8],
        mut previous: &'a [u8],
        on_record: &mut impl FnMut(ScanRecord<'_>) -> io::Result<()>,
    ) -> Result<(Walked, &'a [u8]), WalkError> {
        let mut counts = self.counts;
        let mut done = 0;
        let needed = loop {
            if done == self.value_left {
                break 0;
            }
            let fixed_end = done + DOCUMENT_FIXED_BYTES;
            if fixed_end > self.value_left {
                return Err(self.truncated(done).into());
            }
            let Some(fixed) = piece[done..].first_chunk::<DOCUMENT_FIXED_BYTES>() else {
                break DOCUMENT_FIXED_BYTES;
            };
            let (key_start, key_end) = match self.string_at(piece, fixed_end, done)? {
                Found::Here { start, end } => (start, end),
                Found::Needs(bytes) => break bytes - done,
            };
            let (value_start, value_end) = match self.string_at(piece, key_end, done)? {
                Found::Here { start, end } => (start, end),
                Found::Needs(bytes) => break bytes - done,
            };
            let document = document(fixed, &piece[key_start..key_end], &piece[value_start..value_end]);
            self.check_key(document.key, previous, done)?;
            on_record(ScanRecord::Document(document)).map_err(WalkError::Output)?;
            counts.records += 1;
            counts.key_bytes += document.key.len() as u64;
            counts.value_bytes += document.value.len() as u64;
            previous = document.key;
            done = value_end;
        };
        self.counts = counts;
        Ok((Walked { consumed: done, needed }, previous))
    }

    /// The string whose length begins at `at`; `record` is where its record begins.
    #[inline]
    fn string_at(&self, piece: &[u8], at: usize, record: usize) -> Result<Found, RecordError> {
        let rest = &piece[at..];
        let (len, start) = match rest.first() {
            Some(&len) if len < 0x80 => (len as usize, at + 1),
            _ => match leb128::decode(rest) {
                Ok((len, after)) => (len as usize, piece.len() - after.len()),
                Err(Leb128Error::Truncated { .. }) if piece.len() < self.value_left => {
                    return Ok(Found::Needs(piece.len() + 1));
                }
                Err(Leb128Error::Truncated { .. }) => return Err(self.truncated(record)),
                Err(source) => return Err(RecordError::Length { offset: self.offset(record), source }),
            },
        };
        let end = start.saturating_add(len);
        if end > self.value_left {
            Err(self.truncated(record))
        } else if end > piece.len() {
            Ok(Found::Needs(end))
        } else {
            Ok(Found::Here { start, end })
        }
    }

    #[inline]
    fn check_key(&self, key: &[u8], previous: &[u8], record: usize) -> Result<(), RecordError> {
        if key.is_empty() || key.len() > LOGICAL_KEY_BYTES_MAX {
            return Err(RecordError::KeyLength { offset: self.offset(record), key_bytes: key.len() });
        }
        if key <= previous {
            let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
            return Err(RecordError::Order { key: text(key), previous: text(previous) });
        }
        Ok(())
    }

    /// Where in the whole value the byte at `done` of the current piece is.
    fn offset(&self, done: usize) -> usize {
        self.value_bytes - self.value_left + done
    }

    fn truncated(&self, record: usize) -> RecordError {
        RecordError::Truncated { offset: self.offset(record), value_bytes: self.value_bytes }
    }
}

fn document<'a>(fixed: &[u8; DOCUMENT_FIXED_BYTES], key: &'a [u8], value: &'a [u8]) -> DocumentRecord<'a> {
    let [f3, f2, f1, f0, e3, e2, e1, e0, s7, s6, s5, s4, s3, s2, s1, s0, cas @ .., datatype] = *fixed;
    DocumentRecord {
        flags: u32::from_be_bytes([f3, f2, f1, f0]),
        expiry: u32::from_be_bytes([e3, e2, e1, e0]),
        seqno: Seqno(u64::from_be_bytes([s7, s6, s5, s4, s3, s2, s1, s0])),
        cas: Cas(u64::from_be_bytes(cas)),
        datatype: Datatype(datatype),
        key,
        value,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::scan_records::encode_key;

    fn keys_value(keys: &[&[u8]]) -> Vec<u8> {
        let mut value = Vec::new();
        keys.iter().for_each(|key| encode_key(key, &mut value));
        value
    }

    /// Feeds `value` in pieces of at most `piece` bytes, the way a receive buffer would.
    fn collect(
        walk: &mut RecordWalk,
        kind: RecordKind,
        value: &[u8],
        piece: usize,
    ) -> Result<Vec<String>, RecordError> {
        walk.begin(Some(kind), value.len())?;
        let mut seen = Vec::new();
        let mut on_record = |record: ScanRecord<'_>| {
            seen.push(match record {
                ScanRecord::Key(key) => String::from_utf8_lossy(key).into_owned(),
                ScanRecord::Document(document) => format!("{document:?}"),
            });
            Ok(())
        };
        let (mut start, mut end) = (0, 0);
        while start < value.len() {
            end = (end + piece).min(value.len());
            match walk.walk(&value[start..end], &mut on_record) {
                Ok(walked) => {
                    assert!(walked.needed == 0 || start + walked.consumed + walked.needed <= value.len());
                    start += walked.consumed;
                }
                Err(WalkError::Record(error)) => return Err(error),
                Err(WalkError::Output(error)) => panic!("{error}"),
            }
        }
        Ok(seen)
    }

    fn keys(value: &[u8]) -> Result<Vec<String>, RecordError> {
        collect(&mut RecordWalk::new(RecordKind::Keys), RecordKind::Keys, value, value.len().max(1))
    }

    #[test]
    fn records_torn_at_any_byte_come_out_whole_and_once() {
        let long_key = [b'y'; 250];
        let value = keys_value(&[b"a", b"b", &[b'x'; 127], &[b'x'; 128], &long_key]);
        let whole = keys(&value).unwrap();
        assert_eq!(whole.len(), 5);
        for piece in 1..value.len() {
            let mut walk = RecordWalk::new(RecordKind::Keys);
            assert_eq!(collect(&mut walk, RecordKind::Keys, &value, piece).unwrap(), whole, "{piece}");
            assert_eq!(walk.counts, RecordCounts { records: 5, key_bytes: 507, value_bytes: 0 });
        }
    }

    #[test]
    fn documents_torn_at_any_byte_come_out_whole_and_once() {
        let mut value = Vec::new();
        let body = vec![7; 300];
        for (index, key) in [&b"k1"[..], b"k2"].into_iter().enumerate() {
            let record = DocumentRecord {
                flags: 1,
                expiry: 2,
                seqno: Seqno(3),
                cas: Cas(4),
                datatype: Datatype::JSON,
                key,
                value: &body[..300 * index],
            };
            record.encode(&mut value);
        }
        let mut walk = RecordWalk::new(RecordKind::Documents);
        let whole = collect(&mut walk, RecordKind::Documents, &value, value.len()).unwrap();
        assert!(whole[0].contains("flags: 1, expiry: 2, seqno: Seqno(3), cas: Cas(4)"), "{}", whole[0]);
        for piece in 1..value.len() {
            let mut walk = RecordWalk::new(RecordKind::Documents);
            assert_eq!(collect(&mut walk, RecordKind::Documents, &value, piece).unwrap(), whole, "{piece}");
            assert_eq!(walk.counts, RecordCounts { records: 2, key_bytes: 4, value_bytes: 300 });
        }
    }

    proptest! {
        /// Whatever a node sends: no panic, and where its bytes were torn changes neither records nor error.
        #[test]
        fn any_bytes_give_the_same_records_and_the_same_error_however_they_are_torn(
            value in proptest::collection::vec(prop_oneof![0_u8..6, any::<u8>()], 0..120),
            piece in 1_usize..120,
            documents: bool,
        ) {
            let kind = if documents { RecordKind::Documents } else { RecordKind::Keys };
            let whole = collect(&mut RecordWalk::new(kind), kind, &value, value.len().max(1));
            let torn = collect(&mut RecordWalk::new(kind), kind, &value, piece);
            prop_assert_eq!(whole, torn);
        }
    }

    #[test]
    fn damaged_records_are_reported_with_their_place() {
        assert_eq!(keys(b"\x01a\x05b"), Err(RecordError::Truncated { offset: 2, value_bytes: 4 }));
        assert_eq!(keys(b"\x01a\x80"), Err(RecordError::Truncated { offset: 2, value_bytes: 3 }));
        assert_eq!(keys(b"\x00"), Err(RecordError::KeyLength { offset: 0, key_bytes: 0 }));
        let long = keys_value(&[&[b'x'; 251]]);
        assert_eq!(keys(&long), Err(RecordError::KeyLength { offset: 0, key_bytes: 251 }));
        assert!(matches!(keys(b"\x81\x00a"), Err(RecordError::Length { offset: 0, .. })));
        assert!(matches!(keys(b"\xff\xff\xff\xff\xff\x01"), Err(RecordError::Length { offset: 0, .. })));
    }

    /// A claimed length beyond the response is an error at once, not a wait for bytes that never come.
    #[test]
    fn a_record_that_cannot_fit_is_refused_before_its_bytes_arrive() {
        let mut walk = RecordWalk::new(RecordKind::Keys);
        walk.begin(Some(RecordKind::Keys), 50).unwrap();
        let walked = walk.walk(b"\x64aaa", &mut |_| Ok(()));
        assert!(matches!(walked, Err(WalkError::Record(RecordError::Truncated { offset: 0, .. }))));
        let mut walk = RecordWalk::new(RecordKind::Documents);
        walk.begin(Some(RecordKind::Documents), 24).unwrap();
        assert!(walk.walk(b"\x00", &mut |_| Ok(())).is_err());
    }

    #[test]
    fn keys_out_of_order_are_noticed_within_and_across_responses() {
        let order = |key: &str, previous: &str| RecordError::Order {
            key: key.to_owned(),
            previous: previous.to_owned(),
        };
        assert_eq!(keys(&keys_value(&[b"b", b"a"])), Err(order("a", "b")));
        assert_eq!(keys(&keys_value(&[b"b", b"b"])), Err(order("b", "b")));
        let mut walk = RecordWalk::new(RecordKind::Keys);
        collect(&mut walk, RecordKind::Keys, &keys_value(&[b"a", b"m"]), 100).unwrap();
        let second = collect(&mut walk, RecordKind::Keys, &keys_value(&[b"c"]), 100);
        assert_eq!(second, Err(order("c", "m")));
    }

    #[test]
    fn a_response_of_the_other_kind_is_refused_unless_it_is_empty() {
        let mut walk = RecordWalk::new(RecordKind::Keys);
        assert!(walk.begin(Some(RecordKind::Documents), 5).is_err());
        assert!(walk.begin(None, 5).is_err());
        assert!(walk.begin(None, 0).is_ok());
    }
}
