//! The collections manifest: which scopes and collections a bucket has, as JSON, both ways.
//!
//! ```json
//! {"uid":"3","scopes":[{"name":"_default","uid":"0","collections":[{"name":"_default","uid":"0"}]},
//!   {"name":"shop","uid":"8","collections":[{"name":"orders","uid":"8","maxTTL":3600}]}]}
//! ```
//!
//! Invariants
//! - Scope ids and names are unique, collection ids too, collection names within their scope. Scopes and collections ascend by id.
//! - The default scope is there and has id 0; a scope or collection named `_default` has id 0, and the other way round. Ids 1 to 7 are in no manifest.
//! - At most [`SCOPES_MAX`] scopes and [`COLLECTIONS_MAX`] collections, in at most [`MANIFEST_BYTES_MAX`] bytes of JSON.
//!
//! Cost: parsing is linear; a look-up by id is a binary search, one by name walks the scopes.
//!
//! Does not know: which manifest may follow which, documents.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::dcp::ScopeId;
use super::extras::DEFAULT_NAME;
use super::key::CollectionId;

/// Longest manifest, in bytes of JSON.
pub const MANIFEST_BYTES_MAX: usize = 512 << 10;

/// Most scopes of a bucket.
pub const SCOPES_MAX: usize = 1200;

/// Most collections of a bucket.
pub const COLLECTIONS_MAX: usize = 1200;

/// Longest name of a scope or collection, in bytes.
pub const NAME_BYTES_MAX: usize = 251;

/// Longest `maxTTL`, in seconds.
pub const MAX_TTL_MAX: u32 = i32::MAX as u32;

/// A collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionEntry {
    /// Its id.
    pub id: CollectionId,
    /// The scope it is in.
    pub scope: ScopeId,
    /// Its name.
    pub name: String,
    /// Longest life of its documents in seconds, 0 for no limit; `None`: the bucket's.
    pub max_ttl: Option<u32>,
    /// What else the manager wrote and wants to read again.
    pub extra: CollectionExtra,
}

/// Members of a collection that say nothing to this node.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CollectionExtra {
    /// Whether all versions are to be kept.
    pub history: Option<bool>,
    /// Whether its use is metered.
    pub metered: Option<bool>,
    /// The manifest that last flushed it.
    pub flush_uid: Option<u64>,
}

/// A scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeEntry {
    /// Its id.
    pub id: ScopeId,
    /// Its name.
    pub name: String,
}

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    uid: u64,
    scopes: Vec<ScopeEntry>,
    collections: Vec<CollectionEntry>,
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scopes, collections) = (self.scopes.len(), self.collections.len());
        write!(f, "Manifest(uid {:x}, {scopes} scopes, {collections} collections)", self.uid)
    }
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It is too long.
    #[error("a manifest has at most {MANIFEST_BYTES_MAX} bytes, found {bytes}")]
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// It is not JSON, or a member has a wrong type.
    #[error("the manifest is not the JSON it should be: {reason}")]
    Json {
        /// What the parser says.
        reason: String,
    },
    /// A uid is no number.
    #[error("{what} has the uid {found:?}, expected a hex number of {bits} bits without 0x")]
    Uid {
        /// Whose.
        what: &'static str,
        /// What was found.
        found: String,
        /// How large it may be.
        bits: u32,
    },
    /// An id that nobody may have.
    #[error("{what} {name:?} has the id {id:#x}; 1 to 7 are reserved")]
    Reserved {
        /// A scope or a collection.
        what: &'static str,
        /// Its name.
        name: String,
        /// The id.
        id: u32,
    },
    /// A name that nobody may have.
    #[error(
        "{what} {id:#x} is called {name:?}; a name has 1 to 251 of the characters A-Z a-z 0-9 _ - % and, not first, $"
    )]
    Name {
        /// A scope or a collection.
        what: &'static str,
        /// Its id.
        id: u32,
        /// The name.
        name: String,
    },
    /// The default has another id, or another has the default's.
    #[error("{what} {name:?} has the id {id:#x}; _default has the id 0, and nothing else has it")]
    Default {
        /// A scope or a collection.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its id.
        id: u32,
    },
    /// The default collection is not in the default scope.
    #[error("the default collection is in scope {scope:?}, it belongs into _default")]
    DefaultElsewhere {
        /// Which scope.
        scope: String,
    },
    /// A collection of the users in a scope of the system.
    #[error(
        "collection {name:?} is in scope {scope:?}, whose name begins with _ like those of its collections must"
    )]
    System {
        /// Which scope.
        scope: String,
        /// Which collection.
        name: String,
    },
    /// There is no default scope.
    #[error("the scope _default is missing; it cannot be dropped")]
    NoDefaultScope,
    /// Something is there twice.
    #[error("{what} {found} is there twice")]
    Twice {
        /// Scope or collection, id or name.
        what: &'static str,
        /// Which.
        found: String,
    },
    /// There are too many.
    #[error("a bucket has at most {max} {what}")]
    TooMany {
        /// Scopes or collections.
        what: &'static str,
        /// How many may be.
        max: usize,
    },
    /// A maxTTL that is too long.
    #[error("collection {name:?} has the maxTTL {found}, the longest is {MAX_TTL_MAX} seconds")]
    MaxTtl {
        /// The collection.
        name: String,
        /// What was found.
        found: u64,
    },
    /// The manifest before any other has the defaults and nothing else.
    #[error("a manifest with uid 0 has only the default scope and the default collection")]
    Epoch,
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct ManifestJson {
    uid: String,
    scopes: Vec<ScopeJson>,
}

#[derive(Deserialize)]
struct ScopeJson {
    name: String,
    uid: String,
    #[serde(default)]
    collections: Vec<CollectionJson>,
}

#[derive(Deserialize)]
struct CollectionJson {
    name: String,
    uid: String,
    #[serde(default, rename = "maxTTL", deserialize_with = "present")]
    max_ttl: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    history: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    metered: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    flush_uid: Option<String>,
}

/// A hex number without sign and prefix.
fn hex(what: &'static str, text: &str, bits: u32) -> Result<u64, ManifestError> {
    let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    let number = number.filter(|number| bits == 64 || *number < 1 << bits);
    number.ok_or_else(|| ManifestError::Uid { what, found: text.chars().take(32).collect(), bits })
}

/// An id that something with this name may have.
fn named_id(what: &'static str, name: &str, uid: &str) -> Result<u32, ManifestError> {
    let id = hex(what, uid, 32)? as u32;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-%$".contains(&byte);
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed);
    if !is_name || name.starts_with('$') {
        return Err(ManifestError::Name { what, id, name: name.chars().take(NAME_BYTES_MAX).collect() });
    }
    if matches!(id, 1..=7) {
        return Err(ManifestError::Reserved { what, name: name.to_owned(), id });
    }
    if (id == 0) != (name == DEFAULT_NAME) {
        return Err(ManifestError::Default { what, name: name.to_owned(), id });
    }
    Ok(id)
}

impl Manifest {
    /// The manifest of a bucket before one is set: the default scope with the default collection.
    #[must_use]
    pub fn epoch() -> Manifest {
        let name = DEFAULT_NAME.to_owned();
        Manifest {
            uid: 0,
            scopes: vec![ScopeEntry { id: ScopeId(0), name: name.clone() }],
            collections: vec![CollectionEntry {
                id: CollectionId::DEFAULT,
                scope: ScopeId(0),
                name,
                max_ttl: None,
                extra: CollectionExtra::default(),
            }],
        }
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    /// The first rule that it breaks, with what was found.
    pub fn parse(json: &[u8]) -> Result<Manifest, ManifestError> {
        if json.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { bytes: json.len() });
        }
        let json: ManifestJson = serde_json::from_slice(json)
            .map_err(|error| ManifestError::Json { reason: error.to_string() })?;
        let uid = hex("the manifest", &json.uid, 64)?;
        let (mut scopes, mut collections) = (Vec::new(), Vec::new());
        let (mut names, mut ids) = (HashSet::new(), HashSet::new());
        if json.scopes.len() > SCOPES_MAX {
            return Err(ManifestError::TooMany { what: "scopes", max: SCOPES_MAX });
        }
        for scope in &json.scopes {
            let id = ScopeId(named_id("scope", &scope.name, &scope.uid)?);
            if scopes.iter().any(|known: &ScopeEntry| known.id == id) {
                return Err(ManifestError::Twice { what: "scope id", found: format!("{:#x}", id.0) });
            }
            if !names.insert((None, &scope.name)) {
                return Err(ManifestError::Twice { what: "scope", found: scope.name.clone() });
            }
            scopes.push(ScopeEntry { id, name: scope.name.clone() });
            for collection in &scope.collections {
                let entry = read_collection(id, collection)?;
                if entry.id == CollectionId::DEFAULT && id != ScopeId(0) {
                    return Err(ManifestError::DefaultElsewhere { scope: scope.name.clone() });
                }
                let is_system = id != ScopeId(0) && scope.name.starts_with('_');
                if is_system && !entry.name.starts_with('_') {
                    return Err(ManifestError::System { scope: scope.name.clone(), name: entry.name });
                }
                if !ids.insert(entry.id) {
                    let found = format!("{:#x}", entry.id.0);
                    return Err(ManifestError::Twice { what: "collection id", found });
                }
                if !names.insert((Some(id), &collection.name)) {
                    let found = format!("{}.{}", scope.name, collection.name);
                    return Err(ManifestError::Twice { what: "collection", found });
                }
                collections.push(entry);
                if collections.len() > COLLECTIONS_MAX {
                    return Err(ManifestError::TooMany { what: "collections", max: COLLECTIONS_MAX });
                }
            }
        }
        if !scopes.iter().any(|scope| scope.id == ScopeId(0)) {
            return Err(ManifestError::NoDefaultScope);
        }
        scopes.sort_unstable_by_key(|scope| scope.id.0);
        collections.sort_unstable_by_key(|collection| collection.id);
        let manifest = Manifest { uid, scopes, collections };
        if uid == 0 && manifest != Manifest::epoch() {
            return Err(ManifestError::Epoch);
        }
        Ok(manifest)
    }

    /// The JSON form.
    #[must_use]
    pub fn to_json(&self) -> String {
        let scopes = self.scopes.iter().map(|scope| {
            let inside = self.collections_of(scope.id).map(write_collection).collect();
            let mut json = Map::new();
            json.insert("name".to_owned(), scope.name.clone().into());
            json.insert("uid".to_owned(), format!("{:x}", scope.id.0).into());
            json.insert("collections".to_owned(), Value::Array(inside));
            Value::Object(json)
        });
        let mut json = Map::new();
        json.insert("uid".to_owned(), format!("{:x}", self.uid).into());
        json.insert("scopes".to_owned(), scopes.collect());
        Value::Object(json).to_string()
    }

    /// The manifest with one collection more, and its scope if need be, under the next uid. Their ids follow from the uid, so that one that was
    /// dropped is not taken again where all changes are made like this. `None` if there is such a collection.
    #[must_use]
    pub fn with_collection(
        &self,
        scope: &str,
        name: &str,
        max_ttl: Option<u32>,
    ) -> Option<(Manifest, CollectionId)> {
        let mut next = Manifest { uid: self.uid + 1, ..self.clone() };
        let is_free = |id: &u32| self.scope(ScopeId(*id)).is_none() && !self.has(CollectionId(*id));
        let first = u32::try_from(next.uid.saturating_add(7)).ok()?;
        let id = (first..=u32::MAX).find(is_free)?;
        let scope = match self.scope_named(scope) {
            Some(known) if self.collection_named(known.id, name).is_some() => return None,
            Some(known) => known.id,
            None => {
                next.scopes.push(ScopeEntry { id: ScopeId(id), name: scope.to_owned() });
                ScopeId(id)
            }
        };
        let (name, extra) = (name.to_owned(), CollectionExtra::default());
        next.collections.push(CollectionEntry { id: CollectionId(id), scope, name, max_ttl, extra });
        next.collections.sort_unstable_by_key(|collection| collection.id);
        next.scopes.sort_unstable_by_key(|scope| scope.id.0);
        Some((next, CollectionId(id)))
    }

    /// The manifest without a collection, or without a whole scope, under the next uid. `None` if there is none of that name.
    #[must_use]
    pub fn without(&self, scope: &str, collection: Option<&str>) -> Option<Manifest> {
        let scope = self.scope_named(scope)?.id;
        let mut next = Manifest { uid: self.uid + 1, ..self.clone() };
        match collection {
            Some(name) => {
                let gone = self.collection_named(scope, name)?.id;
                next.collections.retain(|one| one.id != gone);
            }
            None => {
                next.collections.retain(|one| one.scope != scope);
                next.scopes.retain(|one| one.id != scope);
            }
        }
        Some(next)
    }

    /// Its number; a newer one has a greater.
    #[must_use]
    pub fn uid(&self) -> u64 {
        self.uid
    }

    /// The scopes, by id.
    #[must_use]
    pub fn scopes(&self) -> &[ScopeEntry] {
        &self.scopes
    }

    /// The collections of all scopes, by id.
    #[must_use]
    pub fn collections(&self) -> &[CollectionEntry] {
        &self.collections
    }

    /// The collections of a scope, by id.
    pub fn collections_of(&self, scope: ScopeId) -> impl Iterator<Item = &CollectionEntry> {
        self.collections.iter().filter(move |collection| collection.scope == scope)
    }

    /// The collection with this id.
    #[must_use]
    #[inline]
    pub fn collection(&self, id: CollectionId) -> Option<&CollectionEntry> {
        self.collections.get(self.index_of(id)?)
    }

    /// Where the collection with this id stands in [`Manifest::collections`].
    #[must_use]
    #[inline]
    pub fn index_of(&self, id: CollectionId) -> Option<usize> {
        if id == CollectionId::DEFAULT {
            return self.collections.first().is_some_and(|first| first.id == id).then_some(0);
        }
        self.collections.binary_search_by_key(&id, |collection| collection.id).ok()
    }

    /// Whether there is a collection with this id.
    #[must_use]
    #[inline]
    pub fn has(&self, id: CollectionId) -> bool {
        self.collection(id).is_some()
    }

    /// The scope with this id.
    #[must_use]
    pub fn scope(&self, id: ScopeId) -> Option<&ScopeEntry> {
        let index = self.scopes.binary_search_by_key(&id.0, |scope| scope.id.0).ok()?;
        self.scopes.get(index)
    }

    /// The scope with this name.
    #[must_use]
    pub fn scope_named(&self, name: &str) -> Option<&ScopeEntry> {
        self.scopes.iter().find(|scope| scope.name == name)
    }

    /// The collection with this name in a scope.
    #[must_use]
    pub fn collection_named(&self, scope: ScopeId, name: &str) -> Option<&CollectionEntry> {
        self.collections_of(scope).find(|collection| collection.name == name)
    }
}

fn read_collection(scope: ScopeId, json: &CollectionJson) -> Result<CollectionEntry, ManifestError> {
    let id = CollectionId(named_id("collection", &json.name, &json.uid)?);
    let max_ttl = match json.max_ttl {
        Some(found) if found > u64::from(MAX_TTL_MAX) => {
            return Err(ManifestError::MaxTtl { name: json.name.clone(), found });
        }
        given => given.map(|seconds| seconds as u32),
    };
    let flush_uid = json.flush_uid.as_deref().map(|uid| hex("a flushed collection", uid, 64)).transpose()?;
    let extra = CollectionExtra { history: json.history, metered: json.metered, flush_uid };
    Ok(CollectionEntry { id, scope, name: json.name.clone(), max_ttl, extra })
}

fn write_collection(collection: &CollectionEntry) -> Value {
    let mut json = Map::new();
    json.insert("name".to_owned(), collection.name.clone().into());
    json.insert("uid".to_owned(), format!("{:x}", collection.id.0).into());
    let CollectionExtra { history, metered, flush_uid } = collection.extra;
    let members = [
        ("maxTTL", collection.max_ttl.map(Value::from)),
        ("history", history.map(Value::from)),
        ("metered", metered.map(Value::from)),
        ("flush_uid", flush_uid.map(|uid| format!("{uid:x}").into())),
    ];
    json.extend(members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    Value::Object(json)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHOP: &str = r#"{"uid":"1f","scopes":[
        {"name":"shop","uid":"8","collections":[{"name":"orders","uid":"a","maxTTL":3600,"history":true},
          {"name":"_default2","uid":"9","metered":false,"flush_uid":"2"}]},
        {"name":"_default","uid":"0","collections":[{"name":"_default","uid":"0"},{"name":"orders","uid":"cafef00d"}]},
        {"name":"empty","uid":"9","collections":[]}]}"#;

    fn error(json: &str) -> String {
        Manifest::parse(json.as_bytes()).unwrap_err().to_string()
    }

    /// A manifest with uid 2, whose default scope has these collections besides, and these scopes.
    fn with(collections: &str, scopes: &str) -> String {
        let default = r#"{"name":"_default","uid":"0"}"#;
        format!(
            r#"{{"uid":"2","scopes":[{{"name":"_default","uid":"0","collections":[{default}{collections}]}}{scopes}]}}"#
        )
    }

    #[test]
    fn a_manifest_reads_back_and_answers_by_id_and_by_name() {
        let manifest = Manifest::parse(SHOP.as_bytes()).unwrap();
        assert_eq!(Manifest::parse(manifest.to_json().as_bytes()), Ok(manifest.clone()));
        assert_eq!(manifest.uid(), 0x1f);
        assert_eq!(
            manifest.collections().iter().map(|one| one.id.0).collect::<Vec<_>>(),
            [0, 9, 10, 0xcafe_f00d]
        );
        let orders = manifest.collection(CollectionId(10)).unwrap();
        assert_eq!((orders.scope, &orders.name[..], orders.max_ttl), (ScopeId(8), "orders", Some(3600)));
        assert_eq!(manifest.scope_named("shop").map(|scope| scope.id), Some(ScopeId(8)));
        let named = |scope, name| manifest.collection_named(ScopeId(scope), name).map(|one| one.id.0);
        assert_eq!(
            (named(8, "orders"), named(0, "orders"), named(9, "orders")),
            (Some(10), Some(0xcafe_f00d), None)
        );
        assert!(manifest.has(CollectionId::DEFAULT) && !manifest.has(CollectionId(8)));
        let dropped = Manifest::parse(br#"{"uid":"3","scopes":[{"name":"_default","uid":"0"}]}"#).unwrap();
        assert!(!dropped.has(CollectionId::DEFAULT));
    }

    #[test]
    fn a_collection_is_added_with_a_new_id_and_taken_away_with_or_without_its_scope() {
        let (first, a) = Manifest::epoch().with_collection("s", "a", Some(5)).unwrap();
        let (second, b) = first.with_collection("s", "b", None).unwrap();
        assert_eq!((first.uid(), a, second.uid(), b), (1, CollectionId(8), 2, CollectionId(9)));
        assert_eq!(second.scope_named("s").map(|scope| scope.id), Some(ScopeId(8)));
        assert_eq!(Manifest::parse(second.to_json().as_bytes()), Ok(second.clone()));
        assert_eq!(second.with_collection("s", "b", None), None);
        let third = second.without("s", Some("b")).unwrap();
        let (fourth, again) = third.with_collection("s", "b", None).unwrap();
        assert_eq!((third.has(b), again), (false, CollectionId(11)), "an id is not taken again");
        let fifth = fourth.without("s", None).unwrap();
        assert_eq!((fifth.scopes().len(), fifth.collections().len()), (1, 1));
        assert!(fifth.without("s", None).is_none() && fifth.without("_default", Some("a")).is_none());
    }

    #[test]
    fn the_first_manifest_is_the_one_that_clients_know() {
        let json = r#"{"uid":"0","scopes":[{"name":"_default","uid":"0","collections":[{"name":"_default","uid":"0"}]}]}"#;
        let read: Value = serde_json::from_str(&Manifest::epoch().to_json()).unwrap();
        assert_eq!(read, serde_json::from_str::<Value>(json).unwrap());
        assert_eq!(Manifest::parse(json.as_bytes()), Ok(Manifest::epoch()));
    }

    #[test]
    fn every_broken_rule_is_told_with_what_was_found() {
        let collection = |name: &str, uid: &str| with(&format!(r#",{{"name":"{name}","uid":"{uid}"}}"#), "");
        let scope = |name: &str, uid: &str, inside: &str| {
            with("", &format!(r#",{{"name":"{name}","uid":"{uid}","collections":[{inside}]}}"#))
        };
        for (json, says) in [
            ("{".to_owned(), "not the JSON"),
            (r#"{"uid":1,"scopes":[]}"#.to_owned(), "invalid type"),
            (r#"{"uid":"0x1","scopes":[]}"#.to_owned(), "the uid \"0x1\", expected a hex number of 64 bits"),
            (r#"{"uid":"1","scopes":[]}"#.to_owned(), "the scope _default is missing"),
            (
                r#"{"uid":"0","scopes":[{"name":"_default","uid":"0"}]}"#.to_owned(),
                "uid 0 has only the default",
            ),
            (collection("a", "100000000"), "\"100000000\", expected a hex number of 32 bits"),
            (collection("a", "+8"), "\"+8\""),
            (collection("a", "7"), "collection \"a\" has the id 0x7; 1 to 7 are reserved"),
            (scope("a", "1", ""), "scope \"a\" has the id 0x1"),
            (collection("$a", "8"), "called \"$a\""),
            (collection("", "8"), "called \"\""),
            (collection("a b", "8"), "called \"a b\""),
            (collection(&"n".repeat(252), "8"), "1 to 251"),
            (collection("b", "0"), "collection \"b\" has the id 0x0"),
            (collection("_default", "9"), "collection \"_default\" has the id 0x9"),
            (scope("s", "8", r#"{"name":"_default","uid":"0"}"#), "the default collection is in scope \"s\""),
            (scope("_sys", "8", r#"{"name":"a","uid":"8"}"#), "collection \"a\" is in scope \"_sys\""),
            (scope("_default", "0", ""), "scope id 0x0 is there twice"),
            (
                scope("s", "8", r#"{"name":"a","uid":"8"},{"name":"b","uid":"8"}"#),
                "collection id 0x8 is there twice",
            ),
            (
                scope("s", "8", r#"{"name":"a","uid":"8"},{"name":"a","uid":"9"}"#),
                "collection s.a is there twice",
            ),
            (with("", r#",{"name":"s","uid":"8"},{"name":"s","uid":"9"}"#), "scope s is there twice"),
            (with(r#",{"name":"a","uid":"8","maxTTL":2147483648}"#, ""), "maxTTL 2147483648"),
            (with(r#",{"name":"a","uid":"8","maxTTL":-1}"#, ""), "invalid value"),
            (with(r#",{"name":"a","uid":"8","maxTTL":null}"#, ""), "invalid type"),
        ] {
            let found = error(&json);
            assert!(found.contains(says), "{json}: {found}");
        }
        let long = format!("{}{SHOP}", " ".repeat(MANIFEST_BYTES_MAX));
        assert!(error(&long).contains("at most 524288 bytes"));
        let many = |count: usize, each: fn(usize) -> String| (8..8 + count).map(each).collect::<String>();
        let collections = many(1200, |id| format!(r#",{{"name":"c{id}","uid":"{id:x}"}}"#));
        assert!(error(&with(&collections, "")).contains("at most 1200 collections"));
        let scopes = many(1200, |id| format!(r#",{{"name":"c{id}","uid":"{id:x}"}}"#));
        assert!(error(&with("", &scopes)).contains("at most 1200 scopes"));
        let full = many(1199, |id| format!(r#",{{"name":"c{id}","uid":"{id:x}"}}"#));
        assert_eq!(Manifest::parse(with(&full, "").as_bytes()).unwrap().collections().len(), 1200);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..400usize, byte: u8) {
            let _ = Manifest::parse(&bytes);
            let mut bent = SHOP.as_bytes().to_vec();
            let index = at % bent.len();
            bent[index] = byte;
            if let Ok(manifest) = Manifest::parse(&bent) {
                prop_assert_eq!(Manifest::parse(manifest.to_json().as_bytes()), Ok(manifest));
            }
        }
    }
}
