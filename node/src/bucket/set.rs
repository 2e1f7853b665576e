//! The buckets that a node has at one moment, the same for all its cores.
//!
//! Invariants
//! - Numbers and names are unique. `changes` rises with each new set, so that the newer of two is known.
//!
//! Cost: copied at each change; read otherwise.
//!
//! Does not know: where it is kept, what is in a bucket.

use std::collections::BTreeMap;

use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::types::BucketId;

/// Buckets that were emptied and are remembered by their former numbers; older ones are forgotten.
const SUCCESSORS_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BucketSet {
    /// The buckets.
    pub buckets: Vec<BucketDesc>,
    /// One that is being emptied: it is there, but takes no requests.
    pub emptying: Option<BucketId>,
    /// Changes since the start of the node.
    pub changes: u64,
    successors: BTreeMap<BucketId, BucketId>,
}

impl BucketSet {
    /// A set at the start of the node.
    #[must_use]
    pub fn new(buckets: Vec<BucketDesc>) -> BucketSet {
        BucketSet { buckets, ..BucketSet::default() }
    }

    /// The bucket with this number.
    #[must_use]
    pub fn get(&self, id: BucketId) -> Option<&BucketDesc> {
        self.buckets.iter().find(|bucket| bucket.id == id)
    }

    /// The bucket with this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&BucketDesc> {
        self.buckets.iter().find(|bucket| bucket.name == name)
    }

    /// The number that a bucket has now which had the number `id` when it was selected; `None` if it is gone.
    #[must_use]
    pub fn current(&self, id: BucketId) -> Option<BucketId> {
        let id = self.successors.get(&id).copied().unwrap_or(id);
        self.get(id).map(|bucket| bucket.id)
    }

    /// With one bucket more, or another description of one.
    #[must_use]
    pub fn with(&self, bucket: BucketDesc) -> BucketSet {
        let mut set = self.next();
        match set.buckets.iter_mut().find(|known| known.id == bucket.id) {
            Some(known) => *known = bucket,
            None => set.buckets.push(bucket),
        }
        set
    }

    /// With one bucket less.
    #[must_use]
    pub fn without(&self, id: BucketId) -> BucketSet {
        let mut set = self.next();
        set.buckets.retain(|bucket| bucket.id != id);
        set.successors.retain(|_, current| *current != id);
        set
    }

    /// While a bucket is being emptied.
    #[must_use]
    pub fn emptying(&self, id: BucketId) -> BucketSet {
        BucketSet { emptying: Some(id), ..self.next() }
    }

    /// With `new` in the place of the bucket `old`.
    #[must_use]
    pub fn replaced(&self, old: BucketId, new: BucketDesc) -> BucketSet {
        let mut set = self.next();
        set.emptying = None;
        for current in set.successors.values_mut().filter(|current| **current == old) {
            *current = new.id;
        }
        set.successors.insert(old, new.id);
        while set.successors.len() > SUCCESSORS_MAX {
            set.successors.pop_first();
        }
        for bucket in set.buckets.iter_mut().filter(|bucket| bucket.id == old) {
            *bucket = new.clone();
        }
        set
    }

    fn next(&self) -> BucketSet {
        BucketSet { changes: self.changes + 1, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(id: u32, name: &str) -> BucketDesc {
        BucketDesc { id: BucketId(id), uuid: 1, name: name.to_owned(), config: String::new() }
    }

    #[test]
    fn a_bucket_is_found_by_every_number_it_had_until_it_is_deleted() {
        let set = BucketSet::new(vec![bucket(1, "a"), bucket(2, "b")]);
        let set = set.emptying(BucketId(1));
        assert_eq!(set.emptying, Some(BucketId(1)));
        let set = set.replaced(BucketId(1), bucket(3, "a")).replaced(BucketId(3), bucket(4, "a"));
        assert_eq!((set.emptying, set.changes), (None, 3));
        for id in [1, 3, 4] {
            assert_eq!(set.current(BucketId(id)), Some(BucketId(4)));
        }
        assert_eq!(set.named("a").map(|bucket| bucket.id), Some(BucketId(4)));
        let set = set.without(BucketId(4));
        for id in [1, 3, 4, 9] {
            assert_eq!(set.current(BucketId(id)), None);
        }
        assert_eq!(set.current(BucketId(2)), Some(BucketId(2)));
    }

    #[test]
    fn another_description_takes_the_place_of_the_first() {
        let set = BucketSet::new(vec![bucket(1, "a")]).with(bucket(1, "z")).with(bucket(2, "b"));
        assert_eq!(set.buckets, [bucket(1, "z"), bucket(2, "b")]);
    }
}
