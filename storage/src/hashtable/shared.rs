//! What the writer of a hash table and its readers share, and how a reader looks a key up.
//!
//! The state is one word: how many buckets are in use, and a version that rises with every move. Buckets are addressed by linear hashing: with `n`
//! of them, a key belongs into bucket `hash mod p`, where `p` is the power of two not below `n`, or, if that is not yet in use, into
//! `hash mod p / 2`.
//!
//! Invariants
//! - A move (an entry to the bucket that was split off or merged into, the last entry of a chain into a hole) is: copy, publish a new state, clear.
//! - A reader that finds nothing in the bucket that the state names reads the state again; if it is another one, it looks again.
//!
//! Why no key that is present throughout is missed: let a look-up read state `s`, walk, and read `s` again at its end. It acquired `s`, so it sees
//! all copies made before `s` was published, and at that moment the key stood in the bucket that `s` names. If it is not found there, a slot, link or
//! segment of that bucket was read cleared or overwritten because of a later move. That was stored with release after the later state was published,
//! and read with acquire, so the second read of the state cannot give `s`: versions do not come back within a look-up (there are 2^32). The
//! same holds for a slot read empty that ends the walk early: a chain is dense in every published state, as seen by who acquired it.
//!
//! Why a reader never goes back to an older version of a key: a replacement is one store into a slot. An old version is found only in a slot that
//! was not yet cleared for this reader, hence before it saw the state that was published before the clearing, and the replacement came after that.
//!
//! Cost: a look-up that finds repeats nothing; one that does not repeats for each move that the writer makes meanwhile.
//! Does not know: when to split or merge.
//! Source: W. Litwin, "Linear hashing: a new tool for file and table addressing", VLDB 1980.

#![allow(unsafe_code)]

use super::bucket::{Chain, Slot, publishing};
use super::directory::Directory;
use super::word::{address, has_tag, tag};
use crate::atomic::{AtomicU64, Ordering};
use crate::epoch::Pin;
use crate::item::{Item, ItemRef};

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    state: AtomicU64,
    hasher: ahash::RandomState,
    pub(super) directory: Directory,
}

/// Buckets in use and version of what is where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    #[inline]
    pub(super) fn buckets(self) -> usize {
        self.0 as u32 as usize
    }

    /// The state after a move, with `buckets` in use.
    fn after(self, buckets: usize) -> State {
        let version = (self.0 >> 32).wrapping_add(1);
        State(version << 32 | buckets as u64)
    }
}

/// The bucket of a key with this hash among `buckets`, which are not none.
#[inline]
pub(super) fn bucket_of(hash: u64, buckets: usize) -> usize {
    let mask = usize::MAX >> (buckets - 1).leading_zeros().min(usize::BITS - 1);
    let mask = if buckets == 1 { 0 } else { mask };
    let index = hash as usize & mask;
    if index < buckets { index } else { index & mask >> 1 }
}

/// The bucket that bucket `index` is split off from, and merged into.
pub(super) fn parent_of(index: usize) -> usize {
    index - (1 << index.ilog2())
}

/// Where keys go is decided by the table's seed alone.
pub(super) fn hasher(seed: u64) -> ahash::RandomState {
    ahash::RandomState::with_seeds(seed, !seed, seed.rotate_left(21), seed.rotate_left(42))
}

impl Shared {
    pub(super) fn new(seed: u64) -> Shared {
        Shared { state: AtomicU64::new(0), hasher: hasher(seed), directory: Directory::new() }
    }

    #[inline]
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    #[inline]
    pub(super) fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    /// Writer: from now on `buckets` are in use, and what was copied is to be looked for where it was copied to.
    pub(super) fn publish(&self, buckets: usize) {
        let before = State(self.state.load(Ordering::Relaxed));
        self.state.store(before.after(buckets).0, publishing());
    }

    /// The chain of bucket `index`, if it is there.
    ///
    /// # Safety
    /// Until `'g` ends nothing is freed that is in the table at any moment from now on: it is retired after the pin behind `'g` began at the earliest,
    /// or the caller is the writer and takes nothing out meanwhile.
    #[inline]
    pub(super) unsafe fn chain<'g>(&self, index: usize) -> Option<Chain<'g>> {
        // SAFETY: the caller guarantees that what it finds is not freed before 'g ends.
        let bucket = unsafe { self.directory.bucket(index) }?;
        // SAFETY: as above.
        Some(unsafe { Chain::new(bucket) })
    }

    /// Where `key` is among `buckets`.
    ///
    /// # Safety
    /// As [`Shared::chain`].
    #[inline]
    pub(super) unsafe fn find<'g>(&self, buckets: usize, hash: u64, key: &[u8]) -> Option<(Slot<'g>, usize)> {
        if buckets == 0 {
            return None;
        }
        // SAFETY: the caller's guarantee is ours.
        let chain = unsafe { self.chain(bucket_of(hash, buckets)) }?;
        let tag = tag(hash);
        chain.find(|word| {
            // SAFETY: the table owns a count on each item whose word is in it, and that is given up like what the caller speaks of.
            has_tag(word, tag) && unsafe { Item::borrow_raw(address(word)) }.key() == key
        })
    }

    /// The version of `key` that is there at some moment of the call.
    #[inline]
    pub(super) fn get<'g>(&self, key: &[u8], _pin: &'g Pin) -> Option<ItemRef<'g>> {
        let hash = self.hash(key);
        let mut state = self.state();
        loop {
            // SAFETY: the writer frees nothing that it takes out but through the epoch, and the pin lives until 'g ends.
            if let Some((_, word)) = unsafe { self.find(state.buckets(), hash, key) } {
                // SAFETY: the count of the table on this item is given up through the epoch, too.
                return Some(unsafe { Item::borrow_raw(address(word)) });
            }
            let now = self.state();
            if now == state {
                return None;
            }
            state = now;
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_new_bucket_takes_keys_from_its_parent_only() {
        for buckets in 1..200 {
            for hash in 0..1000 {
                let (before, after) = (bucket_of(hash, buckets), bucket_of(hash, buckets + 1));
                assert!(before < buckets);
                assert!(
                    after == before || after == buckets && before == parent_of(buckets),
                    "{buckets} {hash}"
                );
            }
        }
    }
}
