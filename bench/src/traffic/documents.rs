//! The documents, and which of them is asked for next.
//!
//! A document is made from its index whenever it is needed: a key of the generator, and a value that begins with a stamp of the index and
//! goes on with a piece of one long random text.
//!
//! Invariants
//! - The same index gives the same document, so every GET can be checked whatever SETs run beside it.
//! - Values are letters: no server takes them for numbers or JSON.
//!
//! Cost: about 30 ns a key; a value is one copy.
//!
//! Does not know: frames, sockets.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ringbase::client::Generator;

use super::choice::{KeyChoice, Mix};
use crate::error::BenchError;

/// Bytes of every key.
pub(crate) const KEY_BYTES: usize = 20;

/// Bytes of the stamp at the beginning of a value; a shorter value has its beginning.
const STAMP_BYTES: usize = 8;

/// Places of the text where a value may begin.
const TEXT_STARTS: u64 = 4096;

/// Exponent of the zipfian choice.
const SKEW: f64 = 0.99;

/// See the module.
#[derive(Debug)]
pub(crate) struct Documents {
    keys: Generator,
    value_bytes: usize,
    seed: u64,
    text: Vec<u8>,
}

impl Documents {
    /// `count` documents with values of `value_bytes` bytes.
    ///
    /// # Errors
    /// There are no such documents.
    pub(crate) fn new(count: u64, value_bytes: usize, seed: u64) -> Result<Documents, BenchError> {
        if count == 0 {
            return Err(BenchError::Misuse("no documents to ask for; give greater --documents".into()));
        }
        let keys = Generator::new(count, KEY_BYTES, 0, seed).map_err(BenchError::Misuse)?;
        let text_bytes = value_bytes + TEXT_STARTS as usize;
        let mut random = SmallRng::seed_from_u64(seed);
        let text = (0..text_bytes).map(|_| random.random_range(b'a'..=b'z')).collect();
        Ok(Documents { keys, value_bytes, seed, text })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.keys.count()
    }

    /// Bytes of every value.
    pub(crate) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Writes the key of document `index` over `key`; `empty` is for the generator.
    pub(crate) fn key(&self, index: u64, key: &mut Vec<u8>, empty: &mut Vec<u8>) {
        self.keys.document(index, key, empty);
    }

    /// Writes the value of document `index` over `value`.
    pub(crate) fn value(&self, index: u64, value: &mut Vec<u8>) {
        let (stamp, rest) = self.parts(index);
        value.clear();
        value.extend_from_slice(&stamp[..self.value_bytes.min(STAMP_BYTES)]);
        value.extend_from_slice(rest);
    }

    /// Whether `value` has the length and the beginning of the value of document `index`, and, if `whole`, all the rest of it.
    pub(crate) fn is_value(&self, index: u64, value: &[u8], whole: bool) -> bool {
        let (stamp, rest) = self.parts(index);
        let stamp = &stamp[..self.value_bytes.min(STAMP_BYTES)];
        value.len() == self.value_bytes
            && value.starts_with(stamp)
            && (!whole || value.get(stamp.len()..) == Some(rest))
    }

    fn parts(&self, index: u64) -> ([u8; STAMP_BYTES], &[u8]) {
        let hash = mixed(index ^ self.seed);
        let letters = (hash & 0x0f0f_0f0f_0f0f_0f0f) + 0x6161_6161_6161_6161;
        let start = (hash >> 32) % TEXT_STARTS;
        let rest = self.value_bytes.saturating_sub(STAMP_BYTES);
        (letters.to_le_bytes(), &self.text[start as usize..start as usize + rest])
    }
}

/// A good mixing of 64 bits: two multiplications, each between two shifts.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let number = (number ^ (number >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    number ^ (number >> 32)
}

/// Draws ranks below a count, rank n (from 0) with a weight of 1 / (n + 1)^[`SKEW`].
///
/// Cost: the weights are summed once, in the time of so many powers; a draw is one power.
///
/// Source: J. Gray et al., "Quickly Generating Billion-Record Synthetic Databases", SIGMOD 1994.
#[derive(Debug, Clone)]
pub(crate) struct Zipfian {
    count: f64,
    /// Sum of all weights.
    sum: f64,
    /// Sum of the first two.
    first_two: f64,
    alpha: f64,
    eta: f64,
}

impl Zipfian {
    /// Ranks below `count`, which is at least 1.
    pub(crate) fn new(count: u64) -> Zipfian {
        let weight = |rank: u64| (rank as f64).powf(-SKEW);
        let sum: f64 = (1..=count).map(weight).sum();
        let first_two = 1.0 + weight(2);
        let count = count as f64;
        let eta = (1.0 - (2.0 / count).powf(1.0 - SKEW)) / (1.0 - first_two / sum);
        Zipfian { count, sum, first_two, alpha: 1.0 / (1.0 - SKEW), eta }
    }

    /// The rank for a number from 0 to below 1, all of which are equally likely.
    pub(crate) fn rank(&self, uniform: f64) -> u64 {
        let weight = uniform * self.sum;
        if weight < 1.0 {
            return 0;
        }
        if weight < self.first_two {
            return 1;
        }
        let rank = self.count * (self.eta * (uniform - 1.0) + 1.0).powf(self.alpha);
        rank.min(self.count - 1.0) as u64
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// GET of a document.
    Get(u64),
    /// SET of a document.
    Set(u64),
    /// NOOP.
    Noop,
}

/// Where operations come from; shared by the threads of a client.
#[derive(Debug)]
pub(crate) enum Operations {
    /// SET of every document of a range, once.
    Load {
        /// The next one that nobody has taken.
        next: AtomicU64,
        /// Behind the last one.
        end: u64,
    },
    /// At random.
    Random {
        /// Which.
        mix: Mix,
        /// All.
        count: u64,
        /// Popularity, if it differs.
        zipfian: Option<Zipfian>,
        /// Operations that are left; `None` without end.
        left: Option<AtomicU64>,
    },
}

impl Operations {
    /// Loads the documents with these indices.
    pub(crate) fn load(indices: Range<u64>) -> Operations {
        Operations::Load { next: AtomicU64::new(indices.start), end: indices.end }
    }

    /// Draws from `mix` and `keys`.
    pub(crate) fn random(documents: &Documents, mix: Mix, keys: KeyChoice) -> Operations {
        let count = documents.count();
        let zipfian = (keys == KeyChoice::Zipfian && mix != Mix::Noop).then(|| Zipfian::new(count));
        Operations::Random { mix, count, zipfian, left: None }
    }

    /// SETs of so many documents, drawn from `keys`.
    pub(crate) fn overwrites(documents: &Documents, keys: KeyChoice, writes: u64) -> Operations {
        let zipfian = (keys == KeyChoice::Zipfian).then(|| Zipfian::new(documents.count()));
        let left = Some(AtomicU64::new(writes));
        Operations::Random { mix: Mix::Set, count: documents.count(), zipfian, left }
    }

    /// The next operation; `None` when there are no more.
    pub(crate) fn next(&self, random: &mut SmallRng) -> Option<Operation> {
        match self {
            Operations::Load { next, end } => {
                let index = next.fetch_add(1, Ordering::Relaxed);
                (index < *end).then_some(Operation::Set(index))
            }
            Operations::Random { mix: Mix::Noop, .. } => Some(Operation::Noop),
            Operations::Random { mix, count, zipfian, left } => {
                if let Some(left) = left {
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                        .ok()?;
                }
                // The generator shuffles: neighbours in popularity are no neighbours in key order, nor in one vbucket.
                let index = match zipfian {
                    Some(zipfian) => zipfian.rank(random.random()),
                    None => random.random_range(0..*count),
                };
                let is_set = match mix.set_percent() {
                    0 => false,
                    100 => true,
                    percent => random.random_range(0..100) < percent,
                };
                Some(if is_set { Operation::Set(index) } else { Operation::Get(index) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn popularity_falls_as_the_law_says() {
        const COUNT: u64 = 10_000;
        const DRAWS: u64 = 1_000_000;
        let (zipfian, mut random) = (Zipfian::new(COUNT), SmallRng::seed_from_u64(5));
        let mut found = vec![0_u64; COUNT as usize];
        for _ in 0..DRAWS {
            found[zipfian.rank(random.random()) as usize] += 1;
        }
        let sum: f64 = (1..=COUNT).map(|rank| (rank as f64).powf(-SKEW)).sum();
        let expected = |ranks: std::ops::Range<u64>| -> f64 {
            ranks.map(|rank| ((rank + 1) as f64).powf(-SKEW) / sum).sum::<f64>() * DRAWS as f64
        };
        let total = |ranks: std::ops::Range<u64>| -> f64 {
            found[ranks.start as usize..ranks.end as usize].iter().sum::<u64>() as f64
        };
        // The first two are exact, the rest is the approximation of the source.
        for (ranks, allowed) in
            [(0..1, 0.02), (1..2, 0.02), (0..10, 0.1), (0..100, 0.05), (100..1000, 0.1), (5000..10_000, 0.1)]
        {
            let ratio = total(ranks.clone()) / expected(ranks.clone());
            assert!((ratio - 1.0).abs() < allowed, "ranks {ranks:?}: {ratio}");
        }
    }

    #[test]
    fn every_rank_is_below_the_count_also_at_the_ends() {
        for count in [1, 2, 3, 1000] {
            let zipfian = Zipfian::new(count);
            for uniform in [0.0, 0.3, 0.5, 0.999_999, 1.0 - f64::EPSILON / 2.0] {
                assert!(zipfian.rank(uniform) < count, "{uniform} of {count}");
            }
        }
        assert_eq!(Zipfian::new(1000).rank(0.0), 0);
    }

    #[test]
    fn a_value_is_known_by_its_beginning_and_wholly() {
        for value_bytes in [1, 7, 8, 9, 100, 1024] {
            let documents = Documents::new(1000, value_bytes, 7).unwrap();
            let mut value = Vec::new();
            documents.value(17, &mut value);
            assert_eq!(value.len(), value_bytes);
            assert!(value.iter().all(u8::is_ascii_lowercase));
            assert!(documents.is_value(17, &value, true));
            assert!(!documents.is_value(17, &value[1..], false), "a byte is missing");
            let mut changed = value.clone();
            changed[value_bytes - 1] ^= 1;
            assert!(!documents.is_value(17, &changed, true));
        }
        let documents = Documents::new(1000, 100, 7).unwrap();
        let mut value = Vec::new();
        documents.value(17, &mut value);
        assert!((0..1000).filter(|index| documents.is_value(*index, &value, false)).eq([17]));
    }

    #[test]
    fn a_load_takes_every_document_once_and_ends() {
        let (load, mut random) = (Operations::load(20..100), SmallRng::seed_from_u64(1));
        let taken: Vec<Operation> = std::iter::from_fn(|| load.next(&mut random)).collect();
        assert!(taken.into_iter().eq((20..100).map(Operation::Set)));
        assert_eq!(load.next(&mut random), None);
    }

    #[test]
    fn a_mix_has_its_share_of_sets_and_reaches_every_document() {
        let documents = Documents::new(50, 10, 1).unwrap();
        for (mix, sets) in [(Mix::Get, 0..=0), (Mix::Set, 10_000..=10_000), (Mix::Mixed, 850..=1150)] {
            for keys in [KeyChoice::Uniform, KeyChoice::Zipfian] {
                let operations = Operations::random(&documents, mix, keys);
                let mut random = SmallRng::seed_from_u64(3);
                let (mut found, mut reached) = (0, BTreeSet::new());
                for _ in 0..10_000 {
                    match operations.next(&mut random).unwrap() {
                        Operation::Set(index) => {
                            found += 1;
                            reached.insert(index);
                        }
                        Operation::Get(index) => drop(reached.insert(index)),
                        Operation::Noop => panic!("no NOOP was asked for"),
                    }
                }
                assert!(sets.contains(&found), "{mix:?} {keys:?}: {found} SETs");
                assert!(reached.into_iter().eq(0..50), "{mix:?} {keys:?}");
            }
        }
    }

    #[test]
    fn no_documents_are_refused() {
        assert!(Documents::new(0, 10, 1).unwrap_err().to_string().contains("--documents"));
    }
}
