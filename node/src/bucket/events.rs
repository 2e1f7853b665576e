//! What a vbucket is told of collections: its events are brought into line with the manifest.
//!
//! Which scopes and collections its events have made is known to the vbucket ([`VbStore::collections`]); what the manifest has besides gets an event
//! that creates it, what it has no more one that drops it. So it does not matter how many manifests a vbucket has missed, nor where a crash cut
//! the events of one.
//!
//! Invariants
//! - Collections are dropped before their scopes, scopes made before their collections.
//! - A vbucket takes documents of a collection only behind the event that creates it.
//!
//! Cost: for a vbucket that is in line, a compare of two short lists.
//!
//! Does not know: how events are sent, which core hosts which vbucket.

use std::rc::Rc;
use std::time::Duration;

use ringbase_storage::collections::{CREATED, DROPPED, Subject, event_key};
use ringbase_storage::types::Kind;
use ringbase_storage::vbstore::{Found, NewVersion, VbStore, WriteError};

use super::context::BucketContext;
use crate::protocol::dcp::{ScopeId, SystemEvent, SystemEventKind};
use crate::protocol::{CollectionId, Manifest};

/// How long to wait for room in log or memory before the next try.
const RETRY: Duration = Duration::from_millis(10);

/// The first event that `store` lacks, beside its subject.
fn missing<'m>(store: &VbStore, manifest: &'m Manifest) -> Option<(Subject, SystemEventKind<'m>)> {
    let known = store.collections();
    let gone = known.collections().iter().find(|one| one.is_open() && !manifest.has(CollectionId(one.id)));
    if let Some(gone) = gone {
        // Its scope is what the event that created it says.
        let (scope, collection) = (ScopeId(0), CollectionId(gone.id));
        return Some((Subject::Collection(gone.id), SystemEventKind::DropCollection { scope, collection }));
    }
    let is_open = |id| known.is_open(Subject::Scope(id));
    let gone = known.scopes().iter().find(|one| is_open(one.id) && manifest.scope(ScopeId(one.id)).is_none());
    if let Some(gone) = gone {
        return Some((Subject::Scope(gone.id), SystemEventKind::DropScope { scope: ScopeId(gone.id) }));
    }
    if let Some(new) = manifest.scopes().iter().find(|scope| !is_open(scope.id.0)) {
        let created = SystemEventKind::CreateScope { scope: new.id, name: &new.name };
        return Some((Subject::Scope(new.id.0), created));
    }
    let is_new = |id| !known.is_open(Subject::Collection(id));
    manifest.collections().iter().find(|collection| is_new(collection.id.0)).map(|new| {
        let (scope, collection, max_ttl, name) = (new.scope, new.id, new.max_ttl, &new.name[..]);
        let created = SystemEventKind::CreateCollection { scope, collection, max_ttl, name };
        (Subject::Collection(new.id.0), created)
    })
}

/// The scope that an event is about.
fn scope_of(found: &Found) -> Option<ScopeId> {
    let Found::Version(item) = found else { return None };
    match SystemEvent::decode_stored(item.seqno(), item.value()).ok()?.kind {
        SystemEventKind::CreateCollection { scope, .. }
        | SystemEventKind::DropCollection { scope, .. }
        | SystemEventKind::CreateScope { scope, .. }
        | SystemEventKind::DropScope { scope } => Some(scope),
    }
}

/// Writes what `store` lacks, waiting for room where there is none. Ends early if the bucket is withdrawn or its shard has failed; a later call
/// goes on from there.
pub(super) async fn bring_into_line(context: &Rc<BucketContext>, store: &Rc<VbStore>) {
    while !context.is_withdrawn() {
        let collections = context.collections();
        let manifest = collections.manifest();
        let Some((subject, kind)) = missing(store, manifest) else { return };
        let (uid, key) = (manifest.uid(), event_key(subject));
        let flags = match kind {
            SystemEventKind::CreateCollection { .. } | SystemEventKind::CreateScope { .. } => CREATED,
            SystemEventKind::DropCollection { .. } | SystemEventKind::DropScope { .. } => DROPPED,
        };
        let stored = kind.to_stored(uid);
        let is_drop = matches!(kind, SystemEventKind::DropCollection { .. });
        let (full_key, vb) = (key.clone(), store.id());
        let written = store.ask(&key, move |store, found| {
            let Ok(found) = found.inspect_err(|error| {
                tracing::error!(vb = vb.0, %error, "an event of a collection cannot be read");
            }) else {
                return None;
            };
            let value = match (is_drop, subject, scope_of(&found)) {
                (true, Subject::Collection(id), Some(scope)) => {
                    SystemEventKind::DropCollection { scope, collection: CollectionId(id) }.to_stored(uid)
                }
                _ => stored,
            };
            let (key, kind) = (&full_key[..], Kind::SystemEvent);
            let new = NewVersion { key, value: &value, flags, expiry: 0, datatype: 0, kind };
            Some(store.write(&found, new).map(|_| ()))
        });
        match written.await {
            Some(Ok(())) => context.env.relax().await,
            Some(Err(WriteError::Busy { .. } | WriteError::NoRoom)) => context.env.spawn.sleep(RETRY).await,
            Some(Err(error)) => {
                tracing::error!(vb = vb.0, %error, "an event of a collection cannot be written");
                return;
            }
            None => return,
        }
    }
}
