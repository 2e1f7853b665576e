//! What the engines are filled with, and how it is known again.
//!
//! Document n is made from its number whenever it is needed. It is the n-th that is written, so its seqno is n + 1 until it is overwritten. Overwrites
//! go through the documents with a stride that meets each of them once before any of them twice.
//!
//! Invariants
//! - A digest is the same whatever the order in which records are added; what is left out, added twice or changed shows.
//!
//! Cost: 100 ns a document of 1 KiB, about as much again for its digest.
//!
//! Does not know: engines.

use ringbase::client::Generator;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::error::BenchError;
use crate::traffic::Documents;

/// Seed that tells reads from other draws.
const READ_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Records, and a sum over what is in them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) records: u64,
    /// Bytes of keys, and of values if there are any.
    pub(super) bytes: u64,
    sum: u64,
}

impl Digest {
    /// Of records that somebody else has compared.
    pub(super) fn of_counts(records: u64, bytes: u64) -> Digest {
        Digest { records, bytes, sum: 0 }
    }

    /// Adds a key.
    pub(super) fn add_key(&mut self, key: &[u8]) {
        self.records += 1;
        self.bytes += key.len() as u64;
        self.sum = self.sum.wrapping_add(xxh3_64(key));
    }

    /// Adds a document.
    pub(super) fn add_document(&mut self, key: &[u8], value: &[u8]) {
        self.records += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.sum = self.sum.wrapping_add(xxh3_64_with_seed(value, xxh3_64(key)));
    }
}

/// Documents that are written at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    documents: Vec<(Vec<u8>, Vec<u8>)>,
    len: usize,
}

impl Batch {
    /// Key and value of each.
    pub(super) fn documents(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.documents[..self.len]
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Data {
    keys: Generator,
    values: Documents,
    /// Factor of the walk of the overwrites, without a common divisor with the count.
    stride: u64,
    seed: u64,
}

impl Data {
    /// `count` documents.
    ///
    /// # Errors
    /// There are no such documents.
    pub(super) fn new(
        count: u64,
        key_bytes: usize,
        value_bytes: usize,
        seed: u64,
    ) -> Result<Data, BenchError> {
        let values = Documents::new(count, value_bytes, seed)?;
        let keys = Generator::new(count, key_bytes, 0, seed).map_err(BenchError::Misuse)?;
        // The golden ratio's share of the count spreads neighbours in time over all places.
        let golden = (count as f64 * 0.618_033_988_75) as u64;
        let stride = (golden.max(1)..).find(|stride| common_divisor(*stride, count) == 1).unwrap_or(1);
        Ok(Data { keys, values, stride, seed })
    }

    pub(super) fn count(&self) -> u64 {
        self.keys.count()
    }

    pub(super) fn key_bytes(&self) -> usize {
        self.keys.key_bytes()
    }

    pub(super) fn value_bytes(&self) -> usize {
        self.values.value_bytes()
    }

    /// Bytes of a key and a value.
    pub(super) fn document_bytes(&self) -> u64 {
        (self.key_bytes() + self.value_bytes()) as u64
    }

    /// Bytes of all keys and values.
    pub(super) fn bytes(&self) -> u64 {
        self.count() * self.document_bytes()
    }

    /// Writes the key of document `index` over `key`.
    pub(super) fn key(&self, index: u64, key: &mut Vec<u8>) {
        // There are no bytes in the generator's values.
        self.keys.document(index, key, &mut Vec::new());
    }

    fn value(&self, index: u64, version: u64, value: &mut Vec<u8>) {
        self.values.value(index + version * self.count(), value);
    }

    /// Whether this is the first value of document `index`.
    pub(super) fn is_first_value(&self, index: u64, value: &[u8]) -> bool {
        self.values.is_value(index, value, true)
    }

    /// The document that the `n`-th read of a pass wants: the same for every engine.
    pub(super) fn wanted(&self, n: u64) -> u64 {
        let draw = xxh3_64_with_seed(&n.to_le_bytes(), self.seed ^ READ_STEP);
        ((u128::from(draw) * u128::from(self.count())) >> 64) as u64
    }

    /// The document that the `n`-th overwrite is for, and its version then.
    fn overwritten(&self, n: u64) -> (u64, u64) {
        let index = u128::from(n) * u128::from(self.stride) % u128::from(self.count());
        (index as u64, 1 + n / self.count())
    }

    /// Fills a batch with the documents of `from..to` as they are written first.
    pub(super) fn first_batch(&self, from: u64, to: u64, batch: &mut Batch) {
        self.fill(batch, (from..to).map(|index| (index, 0)));
    }

    /// Fills a batch with the overwrites of `from..to`; there are no more of them than documents.
    pub(super) fn overwrite_batch(&self, from: u64, to: u64, batch: &mut Batch) {
        self.fill(batch, (from..to).map(|n| self.overwritten(n)));
    }

    fn fill(&self, batch: &mut Batch, documents: impl Iterator<Item = (u64, u64)>) {
        batch.len = 0;
        for (index, version) in documents {
            if batch.len == batch.documents.len() {
                batch.documents.push(<(Vec<u8>, Vec<u8>)>::default());
            }
            let (key, value) = &mut batch.documents[batch.len];
            self.key(index, key);
            self.value(index, version, value);
            batch.len += 1;
        }
    }

    /// The digest of all keys.
    pub(super) fn digest_of_keys(&self) -> Digest {
        let (mut digest, mut key) = (Digest::default(), Vec::new());
        for index in 0..self.count() {
            self.key(index, &mut key);
            digest.add_key(&key);
        }
        digest
    }

    /// The digest of those documents with a number below `count`, after so many overwrites, that `is_wanted` by their keys.
    pub(super) fn digest_of_documents(
        &self,
        count: u64,
        overwrites: u64,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> Digest {
        let mut versions = vec![(overwrites / self.count()) as u32; self.count() as usize];
        for n in 0..overwrites % self.count() {
            versions[self.overwritten(n).0 as usize] += 1;
        }
        let (mut digest, mut key, mut value) = (Digest::default(), Vec::new(), Vec::new());
        for (index, version) in (0..count.min(self.count())).zip(versions) {
            self.key(index, &mut key);
            if is_wanted(&key) {
                self.value(index, u64::from(version), &mut value);
                digest.add_document(&key, &value);
            }
        }
        digest
    }

    /// The key below which there are so many keys.
    pub(super) fn key_at(&self, rank: u64) -> Vec<u8> {
        let mut key = Vec::new();
        let mut keys: Vec<Vec<u8>> = (0..self.count())
            .map(|index| {
                self.key(index, &mut key);
                key.clone()
            })
            .collect();
        let rank = rank.min(self.count() - 1) as usize;
        keys.select_nth_unstable(rank).1.clone()
    }
}

fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwrites_meet_every_document_once_before_any_of_them_twice() {
        for count in [1, 2, 10, 997, 1000] {
            let data = Data::new(count, 16, 8, 3).unwrap();
            let walk: Vec<(u64, u64)> = (0..2 * count).map(|n| data.overwritten(n)).collect();
            for (pass, version) in walk.chunks(count as usize).zip(1..) {
                let mut met: Vec<u64> = pass.iter().map(|(index, _)| *index).collect();
                met.sort_unstable();
                assert!(met.into_iter().eq(0..count), "{count} documents");
                assert!(pass.iter().all(|(_, found)| *found == version));
            }
        }
    }

    #[test]
    fn a_digest_knows_what_batches_wrote_in_any_order_and_sees_a_change() {
        let data = Data::new(100, 20, 50, 7).unwrap();
        let (mut documents, mut batch) = (std::collections::BTreeMap::new(), Batch::default());
        data.first_batch(0, 100, &mut batch);
        documents.extend(batch.documents().iter().cloned());
        data.overwrite_batch(0, 30, &mut batch);
        documents.extend(batch.documents().iter().cloned());
        let digest = |documents: &std::collections::BTreeMap<Vec<u8>, Vec<u8>>| {
            let mut digest = Digest::default();
            documents.iter().rev().for_each(|(key, value)| digest.add_document(key, value));
            digest
        };
        assert_eq!(digest(&documents), data.digest_of_documents(100, 30, |_| true));
        assert_ne!(digest(&documents), data.digest_of_documents(100, 29, |_| true));
        documents.values_mut().next().unwrap()[49] ^= 1;
        assert_ne!(digest(&documents), data.digest_of_documents(100, 30, |_| true));
    }

    #[test]
    fn below_a_key_of_some_rank_there_are_so_many_keys() {
        let data = Data::new(1000, 20, 10, 7).unwrap();
        let end = data.key_at(100);
        assert_eq!(data.digest_of_documents(1000, 0, |key| *key < end[..]).records, 100);
    }

    #[test]
    fn reads_go_everywhere() {
        let data = Data::new(10, 20, 10, 7).unwrap();
        let wanted: std::collections::BTreeSet<u64> = (0..1000).map(|n| data.wanted(n)).collect();
        assert!(wanted.into_iter().eq(0..10));
    }
}
