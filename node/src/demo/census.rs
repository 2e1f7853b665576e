//! What a scan has seen, kept so that two scans can be compared record by record, and a scan with what was loaded.
//!
//! Invariants
//! - Two scans that agree have, in every vbucket, the same keys in the same order with the same flags, expiry, seqno, CAS,
//!   datatype and value.
//! - A scan that agrees with a source has each of its keys once, with a value that the source has for it, and no other key.
//!
//! Cost: a record costs its key and 24 bytes of memory; metadata and value are compared by a 128-bit hash.
//!
//! Does not know: how records are scanned or loaded.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

use ringbase_storage::types::VbId;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::client::source::{Source, SourceError, SourceForm, SourceItem, VALUE_BYTES_MAX};
use crate::protocol::scan_records::DocumentRecord;

/// The documents of one vbucket in the order of a scan.
#[derive(Debug, Default)]
struct VbucketCensus {
    keys: Vec<u8>,
    /// Where each key ends in `keys`, and the hash of the rest of its record.
    records: Vec<(usize, u128)>,
}

impl VbucketCensus {
    fn record(&self, index: usize) -> Option<(&[u8], u128)> {
        let (end, hash) = *self.records.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.records[before].0);
        Some((&self.keys[start..end], hash))
    }
}

/// The documents that one connection of a scan, or all of them, have seen.
#[derive(Debug, Default)]
pub(super) struct Census {
    vbuckets: BTreeMap<VbId, VbucketCensus>,
    /// Hashes of key and value of every document.
    contents: Vec<u128>,
}

fn content_hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(value);
    hash.digest128()
}

fn record_hash(document: &DocumentRecord<'_>) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&document.flags.to_le_bytes());
    hash.update(&document.expiry.to_le_bytes());
    hash.update(&document.seqno.0.to_le_bytes());
    hash.update(&document.cas.0.to_le_bytes());
    hash.update(&[document.datatype.0]);
    hash.update(document.value);
    hash.digest128()
}

fn show(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

impl Census {
    /// Notes a document of a scan.
    pub(super) fn note(&mut self, vbucket: VbId, document: &DocumentRecord<'_>) {
        let seen = self.vbuckets.entry(vbucket).or_default();
        seen.keys.extend_from_slice(document.key);
        seen.records.push((seen.keys.len(), record_hash(document)));
        self.contents.push(content_hash(document.key, document.value));
    }

    /// All that several connections have seen; no vbucket may be in two of them.
    pub(super) fn of_all(parts: impl IntoIterator<Item = Census>) -> Census {
        let mut all = Census::default();
        for part in parts {
            all.vbuckets.extend(part.vbuckets);
            all.contents.extend(part.contents);
        }
        all
    }

    /// How many documents.
    pub(super) fn documents(&self) -> u64 {
        self.contents.len() as u64
    }

    /// Compares with a later scan; returns how many records were compared.
    ///
    /// # Errors
    /// The first difference, as a sentence.
    pub(super) fn compare(&self, later: &Census) -> Result<u64, String> {
        let vbuckets: BTreeSet<_> = self.vbuckets.keys().chain(later.vbuckets.keys()).collect();
        let nothing = VbucketCensus::default();
        let mut compared = 0;
        for vbucket in vbuckets {
            let before = self.vbuckets.get(vbucket).unwrap_or(&nothing);
            let after = later.vbuckets.get(vbucket).unwrap_or(&nothing);
            for index in 0..before.records.len().max(after.records.len()) {
                match (before.record(index), after.record(index)) {
                    (Some(before), Some(after)) if before == after => compared += 1,
                    (Some((key, _)), Some((after, _))) if key == after => {
                        return Err(format!("document `{}` of vbucket {vbucket} has changed", show(key)));
                    }
                    (Some((key, _)), after) if after.is_none_or(|(after, _)| key < after) => {
                        return Err(format!("document `{}` of vbucket {vbucket} is lost", show(key)));
                    }
                    (_, Some((key, _))) => {
                        return Err(format!(
                            "document `{}` of vbucket {vbucket} was not there before",
                            show(key)
                        ));
                    }
                    (_, None) => unreachable!("one of the two has a record here"),
                }
            }
        }
        Ok(compared)
    }

    /// Compares with what the source of the documents holds, read anew.
    ///
    /// # Errors
    /// The source cannot be read; inside, the first difference, as a sentence.
    pub(super) fn compare_with(&self, form: &SourceForm) -> Result<Result<(), String>, SourceError> {
        let mut source = Source::open(form, VALUE_BYTES_MAX)?;
        let scanned: HashSet<u128> = self.contents.iter().copied().collect();
        // Of every key: its name as long as the scan has returned none of its values.
        let mut keys: HashMap<u128, Option<String>> = HashMap::new();
        while let Some(batch) = source.claim()? {
            let _: ControlFlow<()> = batch.walk(|item| {
                if let SourceItem::Document { key, value } = item {
                    let missing = keys.entry(xxh3_128(key)).or_insert_with(|| Some(show(key)));
                    // A key that occurs twice may have either value.
                    if scanned.contains(&content_hash(key, value)) {
                        *missing = None;
                    }
                }
                ControlFlow::Continue(())
            });
        }
        let distinct = keys.len();
        Ok(match keys.into_values().flatten().next() {
            Some(key) => {
                Err(format!("document `{key}` was loaded, but the scan has not returned it as it is"))
            }
            None if distinct as u64 != self.documents() => {
                Err(format!("{distinct} documents were loaded, but the scan returned {}", self.documents()))
            }
            None => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use ringbase_storage::types::{Cas, Seqno};

    use super::*;
    use crate::protocol::Datatype;

    fn document<'a>(key: &'a str, seqno: u64, value: &'a [u8]) -> DocumentRecord<'a> {
        DocumentRecord {
            flags: 0,
            expiry: 0,
            seqno: Seqno(seqno),
            cas: Cas(7),
            datatype: Datatype::RAW,
            key: key.as_bytes(),
            value,
        }
    }

    fn census(documents: &[(u16, &str, u64, &[u8])]) -> Census {
        let mut census = Census::default();
        for (vbucket, key, seqno, value) in documents {
            census.note(VbId(*vbucket), &document(key, *seqno, value));
        }
        census
    }

    #[test]
    fn every_kind_of_difference_between_two_scans_is_named() {
        let before = census(&[(0, "a", 1, b"x"), (0, "c", 2, b"y"), (3, "d", 1, b"")]);
        let same = census(&[(3, "d", 1, b""), (0, "a", 1, b"x"), (0, "c", 2, b"y")]);
        assert_eq!(before.compare(&same), Ok(3));
        type Record<'a> = (u16, &'a str, u64, &'a [u8]);
        let cases: [(&[Record<'_>], &str); 5] = [
            (&[(0, "a", 1, b"x"), (3, "d", 1, b"")], "`c` of vbucket 0 is lost"),
            (&[(0, "c", 2, b"y"), (3, "d", 1, b"")], "`a` of vbucket 0 is lost"),
            (&[(0, "a", 1, b"z"), (0, "c", 2, b"y"), (3, "d", 1, b"")], "`a` of vbucket 0 has changed"),
            (&[(0, "a", 9, b"x"), (0, "c", 2, b"y"), (3, "d", 1, b"")], "`a` of vbucket 0 has changed"),
            (
                &[(0, "a", 1, b"x"), (0, "b", 3, b"x"), (0, "c", 2, b"y"), (3, "d", 1, b"")],
                "`b` of vbucket 0 was not there before",
            ),
        ];
        for (after, sentence) in cases {
            let found = before.compare(&census(after)).unwrap_err();
            assert!(found.contains(sentence), "{found}");
        }
    }

    #[test]
    fn a_scan_is_compared_with_the_contents_of_the_source() {
        let scratch = tempfile::tempdir().unwrap();
        for (name, text) in [("a", "1"), ("b", "22")] {
            std::fs::write(scratch.path().join(name), text).unwrap();
        }
        let form = SourceForm::Directory(scratch.path().to_owned());
        let compare = |documents: &[(u16, &str, u64, &[u8])]| census(documents).compare_with(&form).unwrap();
        assert_eq!(compare(&[(0, "a", 1, b"1"), (1, "b", 1, b"22")]), Ok(()));
        assert!(compare(&[(0, "a", 1, b"1")]).unwrap_err().contains("`b` was loaded"));
        assert!(compare(&[(0, "a", 1, b"1"), (1, "b", 1, b"2")]).unwrap_err().contains("`b` was loaded"));
        let more = compare(&[(0, "a", 1, b"1"), (1, "b", 1, b"22"), (1, "c", 2, b"")]).unwrap_err();
        assert!(more.contains("2 documents were loaded, but the scan returned 3"), "{more}");
    }
}
