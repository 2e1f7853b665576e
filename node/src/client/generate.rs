//! Generated documents: any number of distinct keys of one length, the same for the same seed.
//!
//! Key n begins with the letters `a` to `p` of a permutation of n, four bits a letter and at most 64 bits, so
//! two keys never are the same and their order has nothing to do with n. Letters that follow are chosen by
//! that number and the seed, and so is the value.
//!
//! Invariants
//! - Every key has exactly the length asked for; all keys are distinct.
//!
//! Cost: a few nanoseconds for every eight bytes.
//!
//! Does not know: sources, nodes.

use crate::protocol::key::LOGICAL_KEY_BYTES_MAX;

/// Bytes of documents in one batch, about.
const BATCH_BYTES: u64 = 256 * 1024;

/// How to make documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generator {
    count: u64,
    key_bytes: usize,
    value_bytes: usize,
    seed: u64,
}

impl Generator {
    /// `count` documents with keys of `key_bytes` and values of `value_bytes` bytes.
    ///
    /// # Errors
    /// A sentence that says why there are no such documents.
    pub fn new(count: u64, key_bytes: usize, value_bytes: usize, seed: u64) -> Result<Generator, String> {
        if !(1..=LOGICAL_KEY_BYTES_MAX).contains(&key_bytes) {
            return Err(format!("keys have 1 to {LOGICAL_KEY_BYTES_MAX} bytes, not {key_bytes}"));
        }
        if value_bytes > u32::MAX as usize / 2 {
            return Err(format!("values of {value_bytes} bytes are more than any node takes"));
        }
        let generator = Generator { count, key_bytes, value_bytes, seed };
        let bits = generator.key_bits();
        if bits < 64 && count > 1 << bits {
            let most = 1_u64 << bits;
            return Err(format!("there are only {most} keys of {key_bytes} bytes, not {count}"));
        }
        Ok(generator)
    }

    /// Reads `COUNT,KEYLEN,VALUELEN,SEED`; digits may be grouped by `_`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Generator, String> {
        let numbers: Vec<u64> = text
            .split(',')
            .map(|part| part.trim().replace('_', "").parse().map_err(|_| format!("{part:?} is not a number")))
            .collect::<Result<_, String>>()?;
        let [count, key_bytes, value_bytes, seed] = numbers[..] else {
            return Err(format!("expected COUNT,KEYLEN,VALUELEN,SEED, found {} numbers", numbers.len()));
        };
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Generator::new(count, size(key_bytes), size(value_bytes), seed)
    }

    /// How many documents there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of every key.
    #[must_use]
    pub fn key_bytes(&self) -> usize {
        self.key_bytes
    }

    /// Bytes of every value.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    pub(super) fn batch_documents(&self) -> u64 {
        (BATCH_BYTES / (self.key_bytes + self.value_bytes) as u64).max(1)
    }

    /// Bits of the number that makes a key distinct.
    fn key_bits(&self) -> u32 {
        (4 * self.key_bytes).min(64) as u32
    }

    /// Writes document `index`, which is below the count, over `key` and `value`.
    pub fn document(&self, index: u64, key: &mut Vec<u8>, value: &mut Vec<u8>) {
        let bits = self.key_bits();
        let number = permute(index, bits, self.seed);
        key.clear();
        // The highest bits first, so that the order of the keys is that of the numbers.
        let mut letters = [0; 16];
        spread(number << (64 - bits), &mut letters);
        key.extend_from_slice(&letters[..(bits / 4) as usize]);
        let mut state = mix(number ^ self.seed.rotate_left(32));
        fill(key, self.key_bytes, &mut state);
        value.clear();
        fill(value, self.value_bytes, &mut state);
    }
}

/// A permutation of the numbers of `bits` bits: every step can be undone, so no two inputs meet.
fn permute(index: u64, bits: u32, seed: u64) -> u64 {
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let half = bits / 2;
    let mut number = index & mask;
    for round in 0..3_u64 {
        number = number.wrapping_add(mix(seed.wrapping_add(round))) & mask;
        number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) & mask;
        number ^= number >> half;
    }
    number
}

/// A good mixing of 64 bits (the finalizer of splitmix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sixteen letters for 64 bits, highest first.
fn spread(number: u64, letters: &mut [u8; 16]) {
    for (index, letter) in letters.iter_mut().enumerate() {
        *letter = b'a' + ((number >> (60 - 4 * index)) & 0xf) as u8;
    }
}

/// Extends `bytes` to `len` bytes with letters from the generator `state`.
fn fill(bytes: &mut Vec<u8>, len: usize, state: &mut u64) {
    while bytes.len() < len {
        // xorshift64
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let letters = ((*state & 0x0f0f_0f0f_0f0f_0f0f) + 0x6161_6161_6161_6161).to_le_bytes();
        let room = (len - bytes.len()).min(8);
        bytes.extend_from_slice(&letters[..room]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn keys(generator: &Generator) -> Vec<Vec<u8>> {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        (0..generator.count())
            .map(|index| {
                generator.document(index, &mut key, &mut value);
                assert_eq!((key.len(), value.len()), (generator.key_bytes(), generator.value_bytes()));
                key.clone()
            })
            .collect()
    }

    #[test]
    fn every_key_has_the_length_asked_for_and_occurs_once() {
        for (count, key_bytes) in [(16, 1), (256, 2), (4096, 3), (50_000, 4), (50_000, 16), (50_000, 100)] {
            for seed in [0, 1, u64::MAX] {
                let generator = Generator::new(count, key_bytes, 5, seed).unwrap();
                let distinct: BTreeSet<Vec<u8>> = keys(&generator).into_iter().collect();
                assert_eq!(distinct.len() as u64, count, "{count} keys of {key_bytes} bytes, seed {seed}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_documents_and_another_seed_others() {
        let documents = |seed| keys(&Generator::new(1000, 20, 0, seed).unwrap());
        assert_eq!(documents(7), documents(7));
        assert_ne!(documents(7), documents(8));
    }

    #[test]
    fn the_order_of_keys_is_not_the_order_of_their_numbers() {
        let keys = keys(&Generator::new(10_000, 20, 0, 1).unwrap());
        let ascending = keys.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((4000..6000).contains(&ascending), "{ascending}");
    }

    #[test]
    fn impossible_wishes_are_refused_in_words() {
        assert!(Generator::parse("17,1,0,0").unwrap_err().contains("only 16 keys of 1 bytes"));
        assert!(Generator::parse("1,0,0,0").unwrap_err().contains("1 to 250 bytes"));
        assert!(Generator::parse("1,251,0,0").is_err());
        assert!(Generator::parse("1,2,3").unwrap_err().contains("found 3 numbers"));
        assert!(Generator::parse("1,2,x,4").unwrap_err().contains("not a number"));
        assert!(Generator::parse("1,2,99999999999,4").is_err());
        let million = Generator::parse("1_000_000,100,0,42").unwrap();
        assert_eq!(million.count(), 1_000_000);
    }
}
