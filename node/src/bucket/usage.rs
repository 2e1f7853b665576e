//! The collections of a bucket on one core: which there are now, and how often each was used here.
//!
//! Invariants
//! - The counters of a collection stay when another manifest takes the place of the one before.
//!
//! Cost: the default collection is found with a compare, others by binary search.
//!
//! Does not know: other cores, who adds the counters up.

use std::cell::Cell;
use std::sync::Arc;

use crate::protocol::manifest::CollectionEntry;
use crate::protocol::{CollectionId, Manifest};

/// How often a collection was used.
#[derive(Debug, Default, Clone)]
pub struct Usage {
    /// Documents read.
    pub gets: Cell<u64>,
    /// Documents written.
    pub stores: Cell<u64>,
    /// Documents removed.
    pub deletes: Cell<u64>,
}

impl Usage {
    /// Sets every counter to 0.
    pub fn reset(&self) {
        [&self.gets, &self.stores, &self.deletes].into_iter().for_each(|counter| counter.set(0));
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct CoreCollections {
    manifest: Arc<Manifest>,
    usage: Vec<Usage>,
}

impl Default for CoreCollections {
    fn default() -> CoreCollections {
        CoreCollections { manifest: Arc::new(Manifest::epoch()), usage: vec![Usage::default()] }
    }
}

impl CoreCollections {
    /// Those of another manifest.
    #[must_use]
    pub fn with(&self, manifest: Arc<Manifest>) -> CoreCollections {
        let of = |collection: &CollectionEntry| {
            self.get(collection.id).map_or_else(Usage::default, |(_, usage)| usage.clone())
        };
        let usage = manifest.collections().iter().map(of).collect();
        CoreCollections { manifest, usage }
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The collection with this id, and its counters.
    #[must_use]
    #[inline]
    pub fn get(&self, id: CollectionId) -> Option<(&CollectionEntry, &Usage)> {
        let index = self.manifest.index_of(id)?;
        Some((self.manifest.collections().get(index)?, self.usage.get(index)?))
    }

    /// Every collection with its counters.
    pub fn iter(&self) -> impl Iterator<Item = (&CollectionEntry, &Usage)> {
        self.manifest.collections().iter().zip(&self.usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::tally::count;

    #[test]
    fn counters_stay_with_their_collection_when_the_manifest_changes() {
        let parse = |uid: &str, collections: &str| {
            let json = format!(
                r#"{{"uid":"{uid}","scopes":[{{"name":"_default","uid":"0","collections":[{collections}]}}]}}"#
            );
            Arc::new(Manifest::parse(json.as_bytes()).unwrap())
        };
        let first = CoreCollections::default();
        count(&first.get(CollectionId::DEFAULT).unwrap().1.gets);
        let both = r#"{"name":"_default","uid":"0"},{"name":"a","uid":"9"}"#;
        let second = first.with(parse("1", both));
        count(&second.get(CollectionId(9)).unwrap().1.stores);
        assert_eq!(second.get(CollectionId::DEFAULT).unwrap().1.gets.get(), 1);
        let third = second.with(parse("2", r#"{"name":"b","uid":"8"},{"name":"a","uid":"9"}"#));
        assert!(third.get(CollectionId::DEFAULT).is_none());
        let stores: Vec<(u32, u64)> =
            third.iter().map(|(one, usage)| (one.id.0, usage.stores.get())).collect();
        assert_eq!(stores, [(8, 0), (9, 1)]);
    }
}
