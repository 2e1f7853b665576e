//! Which documents and events of a vbucket one stream carries.
//!
//! Invariants
//! - The collections of a filter ascend, each once.
//! - System events change a filter before it is asked about what comes after them: the caller shows it every event
//!   in seqno order, sent or not.
//!
//! Cost: everything passes untouched if nothing is filtered; else the collection prefix is decoded and looked up by
//! binary search.
//!
//! Does not know: manifests, privileges; that a filter which carries nothing more ends its stream.

use crate::protocol::CollectionId;
use crate::protocol::dcp::{FilterSelection, ScopeId, SystemEventKind};
use crate::protocol::leb128;

/// The filter of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CollectionFilter {
    /// Everything.
    Everything,
    /// The default collection and no events: a connection without Collections.
    DefaultOnly,
    /// These collections, those of them that are left.
    Collections(Vec<CollectionId>),
    /// The collections of a scope.
    Scope {
        /// The scope.
        scope: ScopeId,
        /// Its collections now.
        collections: Vec<CollectionId>,
        /// Whether it was dropped.
        dropped: bool,
    },
}

impl CollectionFilter {
    /// The filter of a stream on a connection with Collections. If it names a scope, `scope_collections` are those of
    /// the scope where the stream starts.
    #[must_use]
    pub fn new(selection: &FilterSelection, scope_collections: &[CollectionId]) -> CollectionFilter {
        let ascending = |collections: &[CollectionId]| {
            let mut collections = collections.to_vec();
            collections.sort_unstable();
            collections.dedup();
            collections
        };
        match selection {
            FilterSelection::All => CollectionFilter::Everything,
            FilterSelection::Collections(ids) => CollectionFilter::Collections(ascending(ids)),
            FilterSelection::Scope(scope) => CollectionFilter::Scope {
                scope: *scope,
                collections: ascending(scope_collections),
                dropped: false,
            },
        }
    }

    /// Whether only a part of the vbucket is carried.
    #[must_use]
    pub fn is_subset(&self) -> bool {
        *self != CollectionFilter::Everything
    }

    /// Whether documents of `collection` are carried.
    #[must_use]
    #[inline]
    pub fn carries(&self, collection: CollectionId) -> bool {
        match self {
            CollectionFilter::Everything => true,
            CollectionFilter::DefaultOnly => collection == CollectionId::DEFAULT,
            CollectionFilter::Collections(collections) | CollectionFilter::Scope { collections, .. } => {
                collections.binary_search(&collection).is_ok()
            }
        }
    }

    /// Whether the document with this stored key, collection prefix included, is carried. A key without a legal
    /// prefix belongs to no collection.
    #[must_use]
    #[inline]
    pub fn carries_key(&self, key: &[u8]) -> bool {
        match self {
            CollectionFilter::Everything => true,
            CollectionFilter::DefaultOnly => key.first() == Some(&0),
            CollectionFilter::Collections(_) | CollectionFilter::Scope { .. } => {
                leb128::decode(key).is_ok_and(|(id, _)| self.carries(CollectionId(id)))
            }
        }
    }

    /// Shows the filter the next system event; returns whether the stream carries it. What it carries afterwards is
    /// what is left.
    pub fn take_event(&mut self, event: &SystemEventKind<'_>) -> bool {
        match self {
            CollectionFilter::Everything => true,
            CollectionFilter::DefaultOnly => false,
            CollectionFilter::Collections(collections) => match *event {
                SystemEventKind::CreateCollection { collection, .. } => {
                    collections.binary_search(&collection).is_ok()
                }
                SystemEventKind::DropCollection { collection, .. } => remove(collections, collection),
                SystemEventKind::CreateScope { .. } | SystemEventKind::DropScope { .. } => false,
            },
            CollectionFilter::Scope { scope, collections, dropped } => match *event {
                SystemEventKind::CreateCollection { scope: of, collection, .. } => {
                    if of == *scope
                        && let Err(place) = collections.binary_search(&collection)
                    {
                        collections.insert(place, collection);
                    }
                    of == *scope
                }
                SystemEventKind::DropCollection { scope: of, collection } => {
                    remove(collections, collection) || of == *scope
                }
                SystemEventKind::CreateScope { scope: of, .. } => of == *scope,
                SystemEventKind::DropScope { scope: of } => {
                    *dropped |= of == *scope;
                    of == *scope
                }
            },
        }
    }

    /// Whether nothing will ever be carried again: the stream ends with FilterEmpty. A scope without collections may
    /// get some until it is dropped itself.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            CollectionFilter::Everything | CollectionFilter::DefaultOnly => false,
            CollectionFilter::Collections(collections) => collections.is_empty(),
            CollectionFilter::Scope { dropped, .. } => *dropped,
        }
    }
}

fn remove(collections: &mut Vec<CollectionId>, collection: CollectionId) -> bool {
    match collections.binary_search(&collection) {
        Ok(place) => {
            collections.remove(place);
            true
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::leb128::Leb128;

    fn key(collection: u32) -> Vec<u8> {
        [Leb128::encode(collection).as_bytes(), b"key"].concat()
    }

    fn carried(filter: &CollectionFilter) -> Vec<u32> {
        let ids = [0, 8, 9, 127, 128, 555, u32::MAX];
        ids.into_iter().filter(|id| filter.carries_key(&key(*id))).collect()
    }

    fn created(scope: u32, collection: u32) -> SystemEventKind<'static> {
        let (scope, collection) = (ScopeId(scope), CollectionId(collection));
        SystemEventKind::CreateCollection { scope, collection, max_ttl: None, name: "c" }
    }

    fn dropped(scope: u32, collection: u32) -> SystemEventKind<'static> {
        SystemEventKind::DropCollection { scope: ScopeId(scope), collection: CollectionId(collection) }
    }

    #[test]
    fn everything_the_default_collection_or_a_set_passes() {
        let everything = CollectionFilter::new(&FilterSelection::All, &[]);
        assert_eq!(carried(&everything).len(), 7);
        assert!(!everything.is_subset() && everything.carries_key(b"\x80"));
        assert_eq!(carried(&CollectionFilter::DefaultOnly), [0]);
        assert!(CollectionFilter::DefaultOnly.is_subset());
        let ids = [555, 8, 128, 8].map(CollectionId).to_vec();
        let set = CollectionFilter::new(&FilterSelection::Collections(ids), &[]);
        assert_eq!(carried(&set), [8, 128, 555]);
        for bad in [&b""[..], b"\x80", b"\x88\x00key", b"\xff\xff\xff\xff\xff"] {
            assert!(!set.carries_key(bad) && !CollectionFilter::DefaultOnly.carries_key(bad), "{bad:x?}");
        }
    }

    #[test]
    fn a_set_ends_when_its_last_collection_is_dropped() {
        let ids = [8, 9].map(CollectionId).to_vec();
        let mut filter = CollectionFilter::new(&FilterSelection::Collections(ids), &[]);
        assert!(filter.take_event(&created(0, 8)) && !filter.take_event(&created(0, 10)));
        assert!(filter.take_event(&dropped(0, 8)) && !filter.is_empty());
        assert!(!filter.take_event(&dropped(0, 8)), "only once");
        assert!(!filter.take_event(&SystemEventKind::DropScope { scope: ScopeId(0) }));
        assert_eq!(carried(&filter), [9]);
        assert!(filter.take_event(&dropped(0, 9)) && filter.is_empty());
        assert!(carried(&filter).is_empty());
    }

    #[test]
    fn a_scope_gains_and_loses_collections_and_ends_with_itself() {
        let mut filter = CollectionFilter::new(&FilterSelection::Scope(ScopeId(7)), &[CollectionId(9)]);
        assert!(filter.take_event(&created(7, 128)) && filter.take_event(&created(7, 8)));
        assert!(!filter.take_event(&created(6, 555)));
        assert_eq!(carried(&filter), [8, 9, 128]);
        assert!(filter.take_event(&created(7, 8)), "seen again, still one");
        for id in [8, 9, 128] {
            assert!(filter.take_event(&dropped(7, id)) && !filter.is_empty());
        }
        assert!(carried(&filter).is_empty());
        assert!(filter.take_event(&SystemEventKind::CreateScope { scope: ScopeId(7), name: "s" }));
        assert!(!filter.take_event(&SystemEventKind::DropScope { scope: ScopeId(6) }) && !filter.is_empty());
        assert!(filter.take_event(&SystemEventKind::DropScope { scope: ScopeId(7) }) && filter.is_empty());
    }

    #[test]
    fn without_collections_no_event_is_carried_and_without_filter_every_one() {
        assert!(!CollectionFilter::DefaultOnly.clone().take_event(&dropped(0, 0)));
        assert!(CollectionFilter::Everything.clone().take_event(&dropped(0, 8)));
        assert!(!CollectionFilter::DefaultOnly.is_empty() && !CollectionFilter::Everything.is_empty());
    }
}
