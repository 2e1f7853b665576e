//! Which keys a sample takes: each one by itself, with the same chance.
//!
//! Invariants
//! - The same seed over the same snapshot takes the same keys: one decision a key, in key order, each from two outputs of MT19937.
//!
//! Does not know: keys; only how many were asked about.
//! Source: M. Matsumoto, T. Nishimura, "Mersenne Twister", 1998.

use rand_mt::Mt;
use ringbase_storage::scan::Select;

/// The chance of each key; `None` if all are taken.
#[must_use]
pub(super) fn chance(samples: u64, items: u64) -> Option<f64> {
    (samples < items).then(|| samples as f64 / items as f64)
}

/// Takes a key with this chance.
#[must_use]
pub(super) fn select(chance: f64, seed: u32) -> Select {
    let mut generator = Mt::new(seed);
    Box::new(move |_key| {
        let low = f64::from(generator.next_u32());
        let high = f64::from(generator.next_u32());
        // 64 random bits as a number from 0 to 1.
        (low + high * 4_294_967_296.0) / 18_446_744_073_709_551_616.0 < chance
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T5.19
    #[test]
    fn all_keys_are_taken_if_as_many_are_wanted_and_about_the_share_otherwise() {
        assert_eq!(chance(10, 10), None);
        assert_eq!(chance(u64::MAX, 10), None);
        assert_eq!(chance(1, 4), Some(0.25));
        for seed in [0, 1, 42, u32::MAX] {
            let mut taken = select(0.1, seed);
            let count = (0..100_000u32).filter(|n| taken(&n.to_be_bytes())).count();
            assert!((9_500..10_500).contains(&count), "seed {seed}: {count}");
        }
    }

    /// T5.19
    #[test]
    fn the_same_seed_decides_the_same_and_another_differently() {
        let draw = |seed| {
            let mut taken = select(0.5, seed);
            (0..200).map(|_| taken(b"\xff")).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
