//! What a stream makes of collections: which filter it begins with, which documents it carries, and the events between them.
//!
//! Invariants
//! - A document of a collection that the bucket does not have any more is not sent, wherever the stream is: the event that dropped the collection
//!   follows.
//! - Every event is shown to the filter in seqno order, sent or not.
//!
//! Cost: for a document of the default collection two compares, for others a look-up in the manifest.
//!
//! Does not know: how streams read, what follows from a filter that is empty.

use ringbase_storage::collections::{Subject, id_of};
use ringbase_storage::scan::SeqnoRecord;
use ringbase_storage::types::Seqno;
use ringbase_storage::vbstore::VbStore;

use super::filter::CollectionFilter;
use super::stream::Stream;
use crate::protocol::dcp::{FilterSelection, SystemEvent};
use crate::protocol::{CollectionId, Manifest, Refusal, Status};

/// Whether a stream may ask for `selection` in a bucket with this manifest.
///
/// # Errors
/// UNKNOWN_COLLECTION, UNKNOWN_SCOPE.
pub fn check_known(selection: &FilterSelection, manifest: &Manifest) -> Result<(), Refusal> {
    match selection {
        FilterSelection::All => Ok(()),
        FilterSelection::Collections(ids) if ids.iter().all(|id| manifest.has(*id)) => Ok(()),
        FilterSelection::Collections(_) => {
            Err(Refusal::new(Status::UNKNOWN_COLLECTION, "Unknown collection"))
        }
        FilterSelection::Scope(scope) if manifest.scope(*scope).is_some() => Ok(()),
        FilterSelection::Scope(_) => Err(Refusal::new(Status::UNKNOWN_SCOPE, "Unknown scope")),
    }
}

/// As [`check_known`], where the vbucket is: it must have been told of what is asked for, too.
///
/// # Errors
/// UNKNOWN_COLLECTION, UNKNOWN_SCOPE.
pub(super) fn check_told(
    selection: &FilterSelection,
    manifest: &Manifest,
    store: &VbStore,
) -> Result<(), Refusal> {
    check_known(selection, manifest)?;
    match selection {
        FilterSelection::Collections(ids)
            if !ids.iter().all(|id| store.is_open(Subject::Collection(id.0))) =>
        {
            Err(Refusal::new(Status::UNKNOWN_COLLECTION, "The vbucket does not know the collection yet"))
        }
        FilterSelection::Scope(scope) if !store.is_open(Subject::Scope(scope.0)) => {
            Err(Refusal::new(Status::UNKNOWN_SCOPE, "The vbucket does not know the scope yet"))
        }
        _ => Ok(()),
    }
}

/// The filter that a stream begins with; `None` asks for the default collection alone.
pub(super) fn filter_of(selection: Option<&FilterSelection>, manifest: &Manifest) -> CollectionFilter {
    let Some(selection) = selection else { return CollectionFilter::DefaultOnly };
    let collections: Vec<CollectionId> = match selection {
        FilterSelection::Scope(scope) => manifest.collections_of(*scope).map(|one| one.id).collect(),
        FilterSelection::All | FilterSelection::Collections(_) => Vec::new(),
    };
    CollectionFilter::new(selection, &collections)
}

impl Stream {
    /// Whether a document with this stored key is sent.
    pub(super) fn carries(&self, key: &[u8]) -> bool {
        let is_known = |id| self.bucket.has_collection(CollectionId(id));
        self.filter.borrow().carries_key(key) && id_of(key).is_some_and(|(id, _)| is_known(id))
    }

    /// The event in a record, if the stream carries it.
    pub(super) fn take_event<'r>(&self, record: &SeqnoRecord<'r>) -> Option<SystemEvent<'r>> {
        let (seqno, vb) = (record.meta.seqno, self.spec.envelope.vbucket.0);
        match SystemEvent::decode_stored(seqno, record.value) {
            Ok(event) => self.filter.borrow_mut().take_event(&event.kind).then_some(event),
            Err(refusal) => {
                tracing::error!(vb, seqno = seqno.0, %refusal, "an event of a collection means nothing");
                None
            }
        }
    }

    /// Whether all that the stream could carry was dropped.
    pub(super) fn has_nothing_left(&self) -> bool {
        self.filter.borrow().is_empty()
    }

    /// The end that is announced for a snapshot up to `end`. A client without Collections cannot be told that seqnos at its end are not for it.
    pub(super) fn shown_end(&self, end: Seqno) -> Seqno {
        if self.spec.selection.is_some() {
            return end;
        }
        let default = self.store.collection(CollectionId::DEFAULT.0);
        default.map_or(end, |collection| end.min(collection.high_seqno))
    }
}
