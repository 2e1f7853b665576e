//! The statistics of collections and scopes: what they are called, what is in them, how often they were used.
//!
//! Names begin with `0x<scope>:0x<collection>:` or `0x<scope>:`, ids in hex. The memory of a single collection is not accounted for, so there is no
//! `collections_mem_used`.
//!
//! Invariants
//! - What was dropped is not shown, though its documents may still be stored.
//!
//! Cost: a look at every vbucket's list of collections.
//!
//! Does not know: other cores.

use ringbase_storage::types::{BucketId, VbId};
use ringbase_storage::vbstore::VbStore;

use super::{StatGroup, StatPart, StatQuery};
use crate::bucket::Engine;
use crate::command::collections::resolve;
use crate::protocol::dcp::ScopeId;
use crate::protocol::extras::CollectionPath;
use crate::protocol::manifest::CollectionEntry;
use crate::protocol::{CollectionId, Manifest, Refusal, Status};

/// Which collections a query is about.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum CollectionQuery {
    /// All.
    #[default]
    All,
    /// One.
    Collection(CollectionId),
    /// Those of a scope.
    Scope(ScopeId),
}

impl CollectionQuery {
    /// Reads the argument of a group.
    ///
    /// # Errors
    /// EINVAL for what is neither path nor id; UNKNOWN_COLLECTION, UNKNOWN_SCOPE.
    pub(super) fn decode(
        group: StatGroup,
        argument: Option<&str>,
        manifest: &Manifest,
    ) -> Result<CollectionQuery, Refusal> {
        let Some(argument) = argument else { return Ok(CollectionQuery::All) };
        let unknown = |status| Refusal::new(status, "");
        let id = || {
            let hex = argument.strip_prefix("0x").unwrap_or(argument);
            u32::from_str_radix(hex, 16).map_err(|_| Refusal::einval("The argument must be an id in hex"))
        };
        match group {
            StatGroup::Collections => {
                let id = resolve(manifest, &CollectionPath::decode(argument.as_bytes())?).map_err(unknown)?;
                Ok(CollectionQuery::Collection(id))
            }
            StatGroup::CollectionsById => match manifest.collection(CollectionId(id()?)) {
                Some(collection) => Ok(CollectionQuery::Collection(collection.id)),
                None => Err(unknown(Status::UNKNOWN_COLLECTION)),
            },
            StatGroup::Scopes => match manifest.scope_named(argument) {
                Some(scope) => Ok(CollectionQuery::Scope(scope.id)),
                None => Err(unknown(Status::UNKNOWN_SCOPE)),
            },
            _ => match manifest.scope(ScopeId(id()?)) {
                Some(scope) => Ok(CollectionQuery::Scope(scope.id)),
                None => Err(unknown(Status::UNKNOWN_SCOPE)),
            },
        }
    }

    fn covers(self, collection: &CollectionEntry) -> bool {
        match self {
            CollectionQuery::All => true,
            CollectionQuery::Collection(id) => collection.id == id,
            CollectionQuery::Scope(id) => collection.scope == id,
        }
    }
}

fn is_about_scopes(query: &StatQuery) -> bool {
    matches!(query.group, StatGroup::Scopes | StatGroup::ScopesById)
}

/// What the manifest says.
pub(super) fn describe(manifest: &Manifest, query: &StatQuery, part: &mut StatPart) {
    part.text("manifest_uid", format!("{:x}", manifest.uid()));
    for scope in manifest.scopes() {
        let is_covered = match query.collections {
            CollectionQuery::Scope(id) => scope.id == id,
            CollectionQuery::All | CollectionQuery::Collection(_) => true,
        };
        if is_about_scopes(query) && is_covered {
            let prefix = format!("{:#x}:", scope.id.0);
            part.text(format!("{prefix}name"), &scope.name);
            part.text(format!("{prefix}collections"), manifest.collections_of(scope.id).count());
        }
        for collection in manifest.collections_of(scope.id).filter(|one| query.collections.covers(one)) {
            let prefix = format!("{:#x}:{:#x}:", scope.id.0, collection.id.0);
            part.text(format!("{prefix}name"), &collection.name);
            if !is_about_scopes(query) {
                part.text(format!("{prefix}scope_name"), &scope.name);
                if let Some(seconds) = collection.max_ttl {
                    part.text(format!("{prefix}maxTTL"), seconds);
                }
            }
        }
    }
}

/// What a core has of it.
pub(super) fn numbers(engine: &Engine, query: &StatQuery, part: &mut StatPart) {
    let Some(bucket) = query.bucket.and_then(|id: BucketId| engine.bucket(id)) else { return };
    let (collections, stores) = (bucket.context.collections(), bucket.vbuckets());
    for (collection, usage) in collections.iter().filter(|(one, _)| query.collections.covers(one)) {
        let prefix = match is_about_scopes(query) {
            true => format!("{:#x}:", collection.scope.0),
            false => format!("{:#x}:{:#x}:", collection.scope.0, collection.id.0),
        };
        let (mut items, mut bytes) = (0, 0);
        for known in stores.iter().filter_map(|store| store.collection(collection.id.0)) {
            (items, bytes) = (items + known.items, bytes + known.bytes);
        }
        for (name, number) in [
            ("items", items),
            ("data_size", bytes),
            ("ops_get", usage.gets.get()),
            ("ops_store", usage.stores.get()),
            ("ops_delete", usage.deletes.get()),
        ] {
            part.sum(format!("{prefix}{name}"), number);
        }
    }
}

/// What a vbucket knows of its collections, those that were dropped and are not erased too, or of the scopes that they are in.
pub(super) fn details(engine: &Engine, query: &StatQuery, part: &mut StatPart) {
    let Some(bucket) = query.bucket.and_then(|id: BucketId| engine.bucket(id)) else { return };
    let collections = bucket.context.collections();
    for store in bucket.vbuckets().into_iter().filter(|store| query.covers(store.id())) {
        part.of_vbucket(store.id(), "manifest:uid", format!("{:x}", collections.manifest().uid()));
        match query.group {
            StatGroup::ScopesDetails => each_scope(&store, collections.manifest(), part),
            _ => each_collection(&store, collections.manifest(), part),
        }
    }
}

fn each_scope(store: &VbStore, manifest: &Manifest, part: &mut StatPart) {
    let vb = store.id();
    part.of_vbucket(vb, "scopes", manifest.scopes().len());
    for scope in manifest.scopes() {
        part.of_vbucket(vb, format!("{:#x}:name:", scope.id.0), &scope.name);
        for collection in manifest.collections_of(scope.id) {
            let items = store.collection(collection.id.0).map_or(0, |known| known.items);
            part.of_vbucket(vb, format!("{:#x}:{:#x}:items", scope.id.0, collection.id.0), items);
        }
    }
}

fn each_collection(store: &VbStore, manifest: &Manifest, part: &mut StatPart) {
    let (vb, table): (VbId, _) = (store.id(), store.collections());
    let open = table.collections().iter().filter(|one| one.is_open()).count();
    part.of_vbucket(vb, "collections", open);
    for known in table.collections().iter().filter(|one| one.is_open() || one.items > 0) {
        let prefix = format!("{:#x}:", known.id);
        if let Some(collection) = manifest.collection(CollectionId(known.id)) {
            part.of_vbucket(vb, format!("{prefix}name"), &collection.name);
            part.of_vbucket(vb, format!("{prefix}scope"), format!("{:#x}", collection.scope.0));
        }
        if !known.is_open() {
            part.of_vbucket(vb, format!("{prefix}end"), known.dropped);
        }
        for (name, number) in [
            ("start_seqno", known.created.0),
            ("high_seqno", known.high_seqno.0),
            ("items", known.items),
            ("data_size", known.bytes),
        ] {
            part.of_vbucket(vb, format!("{prefix}{name}"), number);
        }
    }
}
