//! What a vbucket knows of its collections: which are there, how many documents each has, how many bytes, how far it is.
//!
//! A key begins with the LEB128 form of its collection's id. That collections and scopes come and go is said by *events*: items of kind
//! [`Kind::SystemEvent`] in the order of the vbucket's seqnos, each under a key of its own ([`event_key`]) whose prefix is no collection's, with
//! [`CREATED`] or [`DROPPED`] as the last bit of its flags. So the newest event of a collection is stored like a document, found again by whoever
//! reads the vbucket from its beginning, and replayed with the log.
//!
//! Invariants
//! - The default collection (0) and the default scope (0) are there from the start; others from their event on.
//! - An entry that was dropped stays, with what was in it: its documents are hidden, and counted as such until they are erased.
//! - Documents of a collection that was never created are not counted: the table is bounded by the events.
//!
//! Cost: an addition a write for the default collection, a binary search for others.
//! Does not know: names, manifests, who may create; where the documents are.

use crate::format::key_block::{leb128, put_leb128};
use crate::format::manifest_record::CollectionsDesc;
use crate::types::{Collection, ItemMeta, Kind, Scope, Seqno};

/// First byte of the keys of events; no collection has this id.
pub const EVENT_PREFIX: u8 = 1;

/// Flags of an event after which its subject is there. Higher bits are the writer's.
pub const CREATED: u32 = 0;

/// Flags of an event after which its subject is gone. Higher bits are the writer's.
pub const DROPPED: u32 = 1;

const COLLECTION: u8 = b'c';
const SCOPE: u8 = b's';

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The collection with this id.
    Collection(u32),
    /// The scope with this id.
    Scope(u32),
}

/// The key under which the newest event about `subject` is stored.
#[must_use]
pub fn event_key(subject: Subject) -> Vec<u8> {
    let (kind, id) = match subject {
        Subject::Collection(id) => (COLLECTION, id),
        Subject::Scope(id) => (SCOPE, id),
    };
    let mut key = vec![EVENT_PREFIX, kind];
    put_leb128(&mut key, id);
    key
}

/// The subject of an event's key; `None` for any other key.
#[must_use]
pub fn subject_of(key: &[u8]) -> Option<Subject> {
    let [EVENT_PREFIX, kind, id @ ..] = key else { return None };
    match (kind, id_of(id)?) {
        (&COLLECTION, (id, [])) => Some(Subject::Collection(id)),
        (&SCOPE, (id, [])) => Some(Subject::Scope(id)),
        _ => None,
    }
}

/// The collection of a key, and the key without its prefix; `None` if the prefix is no number of 32 bits.
#[must_use]
#[inline]
pub fn id_of(key: &[u8]) -> Option<(u32, &[u8])> {
    let (id, len) = leb128(key)?;
    Some((id, &key[len..]))
}

/// The version that a new one replaces, as far as counting goes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replaced {
    /// Whether the key had a value.
    pub(crate) live: bool,
    /// Bytes of key and value; `None` if nobody knows any more.
    pub(crate) bytes: Option<u64>,
}

/// See the module. Both lists ascend by id and have the default at their head.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Collections {
    collections: Vec<Collection>,
    scopes: Vec<Scope>,
}

impl Default for Collections {
    fn default() -> Collections {
        Collections { collections: vec![Collection::default()], scopes: vec![Scope::default()] }
    }
}

impl Collections {
    /// The table that a manifest describes, of a vbucket with `items` live documents up to `high_seqno`. An empty description speaks of the default
    /// collection alone, whose bytes nobody knows.
    #[must_use]
    pub fn described(desc: &CollectionsDesc, items: u64, high_seqno: Seqno) -> Collections {
        let CollectionsDesc { mut collections, mut scopes } = desc.clone();
        if collections.first().is_none_or(|first| first.id != 0) {
            collections.insert(0, Collection { items, high_seqno, ..Collection::default() });
        }
        if scopes.first().is_none_or(|first| first.id != 0) {
            scopes.insert(0, Scope::default());
        }
        Collections { collections, scopes }
    }

    /// What a manifest says of it.
    #[must_use]
    pub fn describe(&self) -> CollectionsDesc {
        CollectionsDesc { collections: self.collections.clone(), scopes: self.scopes.clone() }
    }

    /// Every collection that was ever created, by id.
    #[must_use]
    pub fn collections(&self) -> &[Collection] {
        &self.collections
    }

    /// Every scope that was ever created, by id.
    #[must_use]
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// What is known of a collection; also of one that was dropped.
    #[must_use]
    #[inline]
    pub fn get(&self, id: u32) -> Option<&Collection> {
        if id == 0 {
            return self.collections.first();
        }
        let index = self.collections.binary_search_by_key(&id, |collection| collection.id).ok()?;
        self.collections.get(index)
    }

    /// Whether the subject is there.
    #[must_use]
    #[inline]
    pub fn is_open(&self, subject: Subject) -> bool {
        match subject {
            Subject::Collection(id) => self.get(id).is_some_and(Collection::is_open),
            Subject::Scope(id) => {
                let index = self.scopes.binary_search_by_key(&id, |scope| scope.id);
                index.is_ok_and(|index| self.scopes[index].dropped == Seqno(0))
            }
        }
    }

    /// Documents of collections that were dropped and that are not erased yet.
    #[must_use]
    pub fn hidden_items(&self) -> u64 {
        self.collections.iter().filter(|one| !one.is_open()).map(|one| one.items).sum()
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut Collection> {
        if id == 0 {
            return self.collections.first_mut();
        }
        let index = self.collections.binary_search_by_key(&id, |collection| collection.id).ok()?;
        self.collections.get_mut(index)
    }

    /// Counts a new version of `key`, whose value has `value_bytes`.
    #[inline]
    pub(crate) fn take(&mut self, meta: &ItemMeta, key: &[u8], value_bytes: usize, replaced: Replaced) {
        if meta.kind == Kind::SystemEvent {
            if let Some(subject) = subject_of(key) {
                self.take_event(subject, meta.seqno, meta.flags & 1 == CREATED);
            }
            return;
        }
        let id = if key.first() == Some(&0) { Some(0) } else { id_of(key).map(|(id, _)| id) };
        let Some(collection) = id.and_then(|id| self.get_mut(id)) else { return };
        if replaced.live {
            let average = collection.bytes.checked_div(collection.items).unwrap_or_default();
            collection.bytes = collection.bytes.saturating_sub(replaced.bytes.unwrap_or(average));
            collection.items = collection.items.saturating_sub(1);
        }
        if !meta.kind.is_deleted() {
            collection.items += 1;
            collection.bytes += (key.len() + value_bytes) as u64;
        }
        collection.high_seqno = meta.seqno;
    }

    fn take_event(&mut self, subject: Subject, seqno: Seqno, is_created: bool) {
        let (created, dropped) = if is_created { (seqno, Seqno(0)) } else { (Seqno(0), seqno) };
        match subject {
            Subject::Collection(id) => {
                match self.collections.binary_search_by_key(&id, |collection| collection.id) {
                    Ok(index) => {
                        let collection = &mut self.collections[index];
                        collection.dropped = dropped;
                        collection.high_seqno = seqno;
                        if is_created {
                            collection.created = created;
                        }
                    }
                    Err(index) => {
                        let collection =
                            Collection { id, created, dropped, high_seqno: seqno, ..Collection::default() };
                        self.collections.insert(index, collection);
                    }
                }
            }
            Subject::Scope(id) => match self.scopes.binary_search_by_key(&id, |scope| scope.id) {
                Ok(index) => {
                    let scope = &mut self.scopes[index];
                    scope.dropped = dropped;
                    if is_created {
                        scope.created = created;
                    }
                }
                Err(index) => self.scopes.insert(index, Scope { id, created, dropped }),
            },
        }
    }

    /// A document of a dropped collection is erased.
    pub(crate) fn erased(&mut self, key: &[u8], value_bytes: usize) {
        let collection = id_of(key).and_then(|(id, _)| self.get_mut(id));
        if let Some(collection) = collection {
            collection.items = collection.items.saturating_sub(1);
            collection.bytes = collection.bytes.saturating_sub((key.len() + value_bytes) as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Cas;

    fn meta(seqno: u64, kind: Kind, flags: u32) -> ItemMeta {
        ItemMeta { seqno: Seqno(seqno), cas: Cas(1), revid: 1, flags, expiry: 0, datatype: 0, kind }
    }

    fn event(table: &mut Collections, seqno: u64, subject: Subject, flags: u32) {
        table.take(&meta(seqno, Kind::SystemEvent, flags), &event_key(subject), 9, Replaced::default());
    }

    #[test]
    fn a_key_of_an_event_names_its_subject_and_no_other_key_does() {
        for subject in [0, 8, 127, 128, u32::MAX]
            .into_iter()
            .flat_map(|id| [Subject::Collection(id), Subject::Scope(id)])
        {
            assert_eq!(subject_of(&event_key(subject)), Some(subject));
        }
        for key in [
            &b""[..],
            b"\x01",
            b"\x01c",
            b"\x01x\x08",
            b"\x01c\x08\x08",
            b"\x00c\x08",
            b"\x01c\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(subject_of(key), None, "{key:x?}");
        }
    }

    #[test]
    fn documents_are_counted_where_they_live_from_the_creation_of_their_collection_on() {
        let mut table = Collections::default();
        let none = Replaced::default();
        table.take(&meta(1, Kind::Mutation, 0), b"\0key", 10, none);
        table.take(&meta(2, Kind::Mutation, 0), b"\x08key", 10, none);
        assert_eq!(table.get(8), None, "not created, not counted");
        event(&mut table, 3, Subject::Scope(8), 2 | CREATED);
        event(&mut table, 4, Subject::Collection(8), 4 | CREATED);
        table.take(&meta(5, Kind::Mutation, 0), b"\x08key", 20, none);
        table.take(&meta(6, Kind::Mutation, 0), b"\x08other", 1, none);
        table.take(&meta(7, Kind::Mutation, 0), b"\x08key", 5, Replaced { live: true, bytes: Some(24) });
        let eight = *table.get(8).unwrap();
        assert_eq!((eight.items, eight.bytes, eight.high_seqno, eight.created), (2, 16, Seqno(7), Seqno(4)));
        table.take(&meta(8, Kind::Deletion, 0), b"\x08key", 0, Replaced { live: true, bytes: None });
        assert_eq!(table.get(8).map(|one| (one.items, one.bytes)), Some((1, 8)), "half of 16 bytes");
        assert_eq!(table.get(0).map(|one| (one.items, one.bytes)), Some((1, 14)));
        assert!(table.is_open(Subject::Scope(8)) && !table.is_open(Subject::Scope(9)));
    }

    #[test]
    fn what_is_dropped_is_hidden_until_it_is_erased() {
        let mut table = Collections::default();
        event(&mut table, 1, Subject::Collection(8), CREATED);
        for key in [b"\x08a", b"\x08b"] {
            table.take(&meta(2, Kind::Mutation, 0), key, 3, Replaced::default());
        }
        event(&mut table, 4, Subject::Collection(8), DROPPED);
        assert!(!table.is_open(Subject::Collection(8)));
        assert_eq!((table.hidden_items(), table.get(8).unwrap().dropped), (2, Seqno(4)));
        table.erased(b"\x08a", 3);
        assert_eq!((table.hidden_items(), table.get(8).unwrap().bytes), (1, 5));
        event(&mut table, 5, Subject::Collection(0), DROPPED);
        assert!(!table.is_open(Subject::Collection(0)));
    }

    #[test]
    fn a_table_is_the_same_after_it_was_described_and_an_empty_description_is_the_default_collection() {
        let mut table = Collections::default();
        event(&mut table, 1, Subject::Scope(9), CREATED);
        event(&mut table, 2, Subject::Collection(300), CREATED);
        event(&mut table, 3, Subject::Collection(8), CREATED);
        table.take(&meta(4, Kind::Mutation, 0), b"\x08a", 3, Replaced::default());
        event(&mut table, 5, Subject::Collection(0), DROPPED);
        assert_eq!(Collections::described(&table.describe(), 77, Seqno(99)), table);
        let unknown = Collections::described(&CollectionsDesc::default(), 77, Seqno(99));
        assert_eq!((unknown.get(0).unwrap().items, unknown.collections().len()), (77, 1));
        assert_eq!(unknown.get(0).unwrap().high_seqno, Seqno(99));
        assert_eq!(Collections::described(&CollectionsDesc::default(), 0, Seqno(0)), Collections::default());
    }
}
