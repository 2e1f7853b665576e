//! What `ringctl load` writes from a source, to compare a drained bucket with.
//!
//! Invariants
//! - Of every document a hash of its key and a hash and the size of its value are kept, of at most [`DOCUMENTS_MAX`].
//! - A key that the source has twice with different values may have either: its value is not compared.
//!
//! Cost: about 50 bytes for each document of the source.
//! Does not know: streams; how sources make documents (`ringbase::client::source`).

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use ringbase::client::source::{SourceError, SourceItem, VALUE_BYTES_MAX};
use ringbase::client::{Source, SourceForm};
use ringbase::protocol::vbucket_of;
use ringbase_storage::types::VbId;
use xxhash_rust::xxh3::xxh3_64;

use super::check::{BuildAsIs, shown};

/// Documents of a source that can be compared at a time.
const DOCUMENTS_MAX: usize = 16 << 20;

/// Missing documents that are named.
const MISSING_NAMED: usize = 20;

/// Why a source cannot be compared with.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExpectedError {
    /// It cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is too much of it.
    #[error(
        "the source has more than {DOCUMENTS_MAX} documents for these vbuckets; choose fewer with --vbucket"
    )]
    TooMany,
}

#[derive(Debug)]
struct Wanted {
    value_hash: u64,
    value_bytes: usize,
    is_ambiguous: bool,
    has_come: AtomicBool,
}

/// The documents of a source that belong to the vbuckets that are drained.
#[derive(Debug)]
pub(super) struct Expected {
    form: SourceForm,
    documents: HashMap<u64, Wanted, BuildAsIs>,
}

/// Documents that did not come.
#[derive(Debug, Default)]
pub(super) struct Missing {
    pub(super) count: u64,
    /// The first of them.
    pub(super) keys: Vec<String>,
}

impl Expected {
    /// Reads the source once; what cannot be loaded from it is not expected.
    pub(super) fn read(
        form: &SourceForm,
        vbuckets: &[VbId],
        vbucket_count: u16,
    ) -> Result<Expected, ExpectedError> {
        let mut is_drained = vec![false; usize::from(u16::MAX) + 1];
        vbuckets.iter().for_each(|vbucket| is_drained[usize::from(vbucket.0)] = true);
        let mut documents: HashMap<u64, Wanted, BuildAsIs> = HashMap::default();
        let read = for_each_document(form, |key, value| {
            if !is_drained[usize::from(vbucket_of(key, vbucket_count).0)] {
                return ControlFlow::Continue(());
            }
            let (value_hash, value_bytes) = (xxh3_64(value), value.len());
            let wanted =
                Wanted { value_hash, value_bytes, is_ambiguous: false, has_come: AtomicBool::new(false) };
            documents
                .entry(xxh3_64(key))
                .and_modify(|known| known.is_ambiguous |= known.value_hash != value_hash)
                .or_insert(wanted);
            if documents.len() > DOCUMENTS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        match read {
            ControlFlow::Continue(()) => Ok(Expected { form: form.clone(), documents }),
            ControlFlow::Break(()) => Err(ExpectedError::TooMany),
        }
    }

    /// How many documents there are.
    pub(super) fn count(&self) -> u64 {
        self.documents.len() as u64
    }

    /// Notes a document that came; what was found and expected if it is another.
    pub(super) fn compare(&self, key: &[u8], value: &[u8]) -> Option<(String, String)> {
        let Some(wanted) = self.documents.get(&xxh3_64(key)) else {
            let found = format!("document {} of {} bytes", shown(key), value.len());
            return Some((found, "only documents of the source".to_owned()));
        };
        wanted.has_come.store(true, Ordering::Relaxed);
        let is_right = value.len() == wanted.value_bytes && xxh3_64(value) == wanted.value_hash;
        if is_right || wanted.is_ambiguous {
            return None;
        }
        let found = format!("document {} with another value of {} bytes", shown(key), value.len());
        Some((found, format!("the value of {} bytes that the source has", wanted.value_bytes)))
    }

    /// Notes a deletion.
    pub(super) fn delete(&self, key: &[u8]) {
        if let Some(wanted) = self.documents.get(&xxh3_64(key)) {
            wanted.has_come.store(false, Ordering::Relaxed);
        }
    }

    /// The documents that did not come, or were deleted afterwards. The source is read again for their names.
    pub(super) fn missing(&self) -> Result<Missing, ExpectedError> {
        let is_missing = |wanted: &Wanted| !wanted.has_come.load(Ordering::Relaxed);
        let count = self.documents.values().filter(|wanted| is_missing(wanted)).count();
        let mut missing = Missing { count: count as u64, keys: Vec::new() };
        if count > 0 {
            let _enough = for_each_document(&self.form, |key, _| {
                if self.documents.get(&xxh3_64(key)).is_some_and(is_missing) {
                    missing.keys.push(shown(key));
                }
                let is_enough = missing.keys.len() >= count.min(MISSING_NAMED);
                if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(missing)
    }
}

fn for_each_document(
    form: &SourceForm,
    mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, SourceError> {
    let mut source = Source::open(form, VALUE_BYTES_MAX)?;
    while let Some(batch) = source.claim()? {
        let walked = batch.walk(|item| match item {
            SourceItem::Document { key, value } => visit(key, value),
            SourceItem::Skipped { .. } => ControlFlow::Continue(()),
        });
        if walked.is_break() {
            return Ok(walked);
        }
    }
    Ok(ControlFlow::Continue(()))
}

#[cfg(test)]
mod tests {
    use ringbase::client::Generator;

    use super::*;

    #[test]
    fn other_values_strange_documents_and_missing_ones_are_told_apart() {
        let generator = Generator::new(10, 8, 5, 3).unwrap();
        let vbuckets: Vec<VbId> = (0..16).map(VbId).collect();
        let form = SourceForm::Generate(generator.clone());
        let expected = Expected::read(&form, &vbuckets, 16).unwrap();
        assert_eq!(expected.count(), 10);
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for index in 0..9 {
            generator.document(index, &mut key, &mut value);
            assert_eq!(expected.compare(&key, &value), None);
        }
        let (found, _) = expected.compare(&key, b"wrong").unwrap();
        assert!(found.contains("another value of 5 bytes"), "{found}");
        let (found, _) = expected.compare(b"strange", b"").unwrap();
        assert!(found.contains("\"strange\" of 0 bytes"), "{found}");
        expected.delete(&key);
        expected.delete(b"strange");
        let missing = expected.missing().unwrap();
        assert_eq!((missing.count, missing.keys.len()), (2, 2));
        let deleted = shown(&key);
        generator.document(9, &mut key, &mut value);
        assert_eq!(missing.keys, [deleted, shown(&key)]);
    }

    #[test]
    fn only_documents_of_the_drained_vbuckets_are_expected() {
        let form = SourceForm::Generate(Generator::new(1000, 8, 0, 3).unwrap());
        let count = |vbuckets: &[VbId]| Expected::read(&form, vbuckets, 16).unwrap().count();
        let each: Vec<u64> = (0..16).map(|vbucket| count(&[VbId(vbucket)])).collect();
        assert_eq!(each.iter().sum::<u64>(), 1000);
        assert_eq!(count(&[VbId(1), VbId(2)]), each[1] + each[2]);
    }
}
