//! The filter of a run: says for certain that a key is not in it, for all but about 1 % of such keys.
//!
//! A split-block Bloom filter with blocks of 32 bytes and about 10 bits a key. Its bytes are part of the disk format: keys are hashed with
//! XXH3-64, seed 0.
//!
//! Cost: one cache line a question.
//! Does not know: runs, blocks.
//! Source: F. Putze et al., "Cache-, hash- and space-efficient Bloom filters", 2007; the Parquet format's split block filter.

/// Bits a key.
const BITS_PER_KEY: usize = 10;

const LANES: usize = 8;
const BLOCK: usize = LANES * 4;

/// One odd multiplier a lane.
const SALTS: [u32; LANES] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// The hash of a key as filters take it.
#[must_use]
pub fn filter_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// See the module.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Filter {
    words: Box<[[u32; LANES]]>,
}

impl Filter {
    /// The filter of these keys.
    #[must_use]
    pub fn build(hashes: &[u64]) -> Filter {
        let blocks = (hashes.len() * BITS_PER_KEY).div_ceil(BLOCK * 8).max(1);
        let mut filter = Filter { words: vec![[0; LANES]; blocks].into_boxed_slice() };
        for &hash in hashes {
            let block = filter.block(hash);
            for (word, salt) in filter.words[block].iter_mut().zip(SALTS) {
                *word |= bit(hash, salt);
            }
        }
        filter
    }

    /// The filter whose bytes these are; a length that is no filter's gives one that excludes nothing.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Filter {
        if !bytes.len().is_multiple_of(BLOCK) {
            return Filter::default();
        }
        let words = bytes.chunks_exact(BLOCK).map(|block| {
            let mut lanes = [0; LANES];
            for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(4)) {
                *lane = super::super::format::bytes::u32_at(bytes, 0);
            }
            lanes
        });
        Filter { words: words.collect() }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.words.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Whether a key with this hash may be among those it was built from.
    #[inline]
    #[must_use]
    pub fn may_contain(&self, hash: u64) -> bool {
        if self.words.is_empty() {
            return true;
        }
        let words = &self.words[self.block(hash)];
        words.iter().zip(SALTS).all(|(word, salt)| word & bit(hash, salt) != 0)
    }

    /// Resident bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.words.len() * BLOCK
    }

    #[inline]
    fn block(&self, hash: u64) -> usize {
        ((u128::from(hash >> 32) * self.words.len() as u128) >> 32) as usize
    }
}

#[inline]
fn bit(hash: u64, salt: u32) -> u32 {
    1 << ((hash as u32).wrapping_mul(salt) >> 27)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_missed_and_few_others_pass() {
        let hashes: Vec<u64> = (0..20_000u32).map(|n| filter_hash(&n.to_le_bytes())).collect();
        let filter = Filter::decode(&Filter::build(&hashes).encode());
        assert!(hashes.iter().all(|&hash| filter.may_contain(hash)));
        let passed =
            (20_000..40_000u32).filter(|n| filter.may_contain(filter_hash(&n.to_le_bytes()))).count();
        assert!(passed < 600, "{passed} of 20,000 strangers pass");
    }

    #[test]
    fn bytes_that_are_no_filter_exclude_nothing() {
        assert!(Filter::decode(&[0; 31]).may_contain(5));
    }
}
