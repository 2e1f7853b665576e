//! The collections of a bucket: its manifest, which manifest may follow it, and which ids were used up.
//!
//! An id is never used again: the documents of a dropped collection may still be stored, hidden, and must not appear in another one. So the ids
//! that were dropped are kept beside the manifest, as ranges. A bucket in memory erases hidden documents; on disk they stay, hidden from reads, scans,
//! streams and counts, until a merge of the engine leaves them out, which it does not do yet.
//!
//! Invariants
//! - A manifest is followed by one with a greater uid in which nothing was renamed, moved or given an id that was dropped.
//! - At most [`RANGES_MAX`] ranges are kept; beyond that the lowest neighbours become one, and what lies between them counts as used.
//!
//! Cost: copied at each change; a bucket without manifest has no text.
//!
//! Does not know: where the text is kept, vbuckets, documents.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::protocol::manifest::{CollectionEntry, ManifestError};
use crate::protocol::{CollectionId, Manifest};

/// Most ranges of dropped ids.
pub const RANGES_MAX: usize = 4096;

/// Why a manifest may not follow the one that the bucket has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessorError {
    /// It is older.
    #[error("the manifest has the uid {found:#x}, the bucket has {current:#x} already")]
    Older {
        /// Its uid.
        found: u64,
        /// The bucket's.
        current: u64,
    },
    /// It has the same uid and says something else.
    #[error("the bucket's manifest with the uid {uid:#x} says something else")]
    Differs {
        /// The uid.
        uid: u64,
    },
    /// A name has changed.
    #[error("{what} {id:#x} is called {from:?} and cannot become {to:?}")]
    Renamed {
        /// Scope or collection.
        what: &'static str,
        /// Its id.
        id: u32,
        /// Its name.
        from: String,
        /// The other name.
        to: String,
    },
    /// A collection has moved.
    #[error("collection {id:#x} is in scope {from:#x} and cannot move to {to:#x}")]
    Moved {
        /// Its id.
        id: u32,
        /// Its scope.
        from: u32,
        /// The other scope.
        to: u32,
    },
    /// An id comes again.
    #[error("the id {id:#x} of {what} {name:?} was used before and dropped; ids are not used again")]
    Used {
        /// Scope or collection.
        what: &'static str,
        /// Its name.
        name: String,
        /// The id.
        id: u32,
    },
}

/// Ids that were dropped, as ascending ranges with both ends inside.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Dropped(Vec<(u32, u32)>);

impl Dropped {
    fn has(&self, id: u32) -> bool {
        let index = self.0.partition_point(|(_, last)| *last < id);
        self.0.get(index).is_some_and(|(first, _)| *first <= id)
    }

    fn add(&mut self, id: u32) {
        if self.has(id) {
            return;
        }
        let index = self.0.partition_point(|(_, last)| *last < id);
        self.0.insert(index, (id, id));
        let is_next = |pair: &[(u32, u32)]| pair[0].1.checked_add(1) == Some(pair[1].0);
        for first in [index, index.wrapping_sub(1)] {
            if self.0.get(first..first.saturating_add(2)).is_some_and(is_next) {
                self.0[first].1 = self.0[first + 1].1;
                self.0.remove(first + 1);
            }
        }
        if self.0.len() > RANGES_MAX {
            self.0[0].1 = self.0[1].1;
            self.0.remove(1);
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketCollections {
    manifest: Arc<Manifest>,
    collections: Dropped,
    scopes: Dropped,
}

impl Default for BucketCollections {
    fn default() -> BucketCollections {
        let (collections, scopes) = (Dropped::default(), Dropped::default());
        BucketCollections { manifest: Arc::new(Manifest::epoch()), collections, scopes }
    }
}

impl BucketCollections {
    /// Reads the text; an empty one is that of a bucket whose manifest was never set.
    ///
    /// # Errors
    /// The first thing that means nothing.
    pub fn parse(text: &str) -> Result<BucketCollections, ManifestError> {
        if text.is_empty() {
            return Ok(BucketCollections::default());
        }
        let mut lines = text.split('\n');
        let manifest = Arc::new(Manifest::parse(lines.next().unwrap_or_default().as_bytes())?);
        let mut dropped = || {
            let line = lines.next().unwrap_or_default();
            serde_json::from_str(line).map_err(|error| ManifestError::Json { reason: error.to_string() })
        };
        Ok(BucketCollections { manifest, collections: dropped()?, scopes: dropped()? })
    }

    /// The text: a line for the manifest, and one each for the collections and the scopes that were dropped.
    #[must_use]
    pub fn to_text(&self) -> String {
        if *self == BucketCollections::default() {
            return String::new();
        }
        let json = |ids: &Dropped| serde_json::to_string(ids).expect("numbers always have a JSON form");
        format!("{}\n{}\n{}", self.manifest.to_json(), json(&self.collections), json(&self.scopes))
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The collections with `next` for their manifest; `None` if that is the one they have.
    ///
    /// # Errors
    /// Why it may not follow.
    pub fn successor(&self, next: &Arc<Manifest>) -> Result<Option<BucketCollections>, SuccessorError> {
        let (found, current) = (next.uid(), self.manifest.uid());
        if found < current {
            return Err(SuccessorError::Older { found, current });
        }
        if found == current {
            let is_same = **next == *self.manifest;
            return if is_same { Ok(None) } else { Err(SuccessorError::Differs { uid: found }) };
        }
        for scope in next.scopes() {
            match self.manifest.scope(scope.id) {
                Some(known) if known.name != scope.name => {
                    let (id, from, to) = (scope.id.0, known.name.clone(), scope.name.clone());
                    return Err(SuccessorError::Renamed { what: "scope", id, from, to });
                }
                None if self.scopes.has(scope.id.0) => {
                    let (name, id) = (scope.name.clone(), scope.id.0);
                    return Err(SuccessorError::Used { what: "scope", name, id });
                }
                _ => {}
            }
        }
        for collection in next.collections() {
            self.check_collection(collection)?;
        }
        let mut following = BucketCollections {
            manifest: next.clone(),
            collections: self.collections.clone(),
            scopes: self.scopes.clone(),
        };
        for scope in self.manifest.scopes().iter().filter(|scope| next.scope(scope.id).is_none()) {
            following.scopes.add(scope.id.0);
        }
        for collection in self.manifest.collections().iter().filter(|collection| !next.has(collection.id)) {
            following.collections.add(collection.id.0);
        }
        Ok(Some(following))
    }

    fn check_collection(&self, next: &CollectionEntry) -> Result<(), SuccessorError> {
        let (what, CollectionId(id), name) = ("collection", next.id, &next.name);
        match self.manifest.collection(next.id) {
            Some(known) if known.scope != next.scope => {
                Err(SuccessorError::Moved { id, from: known.scope.0, to: next.scope.0 })
            }
            Some(known) if known.name != *name => {
                Err(SuccessorError::Renamed { what, id, from: known.name.clone(), to: name.clone() })
            }
            None if self.collections.has(id) => Err(SuccessorError::Used { what, name: name.clone(), id }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(uid: u64, scopes: &str, default: &str) -> Arc<Manifest> {
        let json = format!(
            r#"{{"uid":"{uid:x}","scopes":[{{"name":"_default","uid":"0","collections":[{default}]}}{scopes}]}}"#
        );
        Arc::new(Manifest::parse(json.as_bytes()).unwrap())
    }

    const DEFAULT: &str = r#"{"name":"_default","uid":"0"}"#;
    const SHOP: &str = r#",{"name":"shop","uid":"8","collections":[{"name":"orders","uid":"9"}]}"#;

    fn after(manifests: &[Arc<Manifest>]) -> BucketCollections {
        manifests
            .iter()
            .fold(BucketCollections::default(), |now, next| now.successor(next).unwrap().expect("it changes"))
    }

    #[test]
    fn a_manifest_follows_one_with_a_lower_uid_and_the_same_one_changes_nothing() {
        let (first, second) = (manifest(3, SHOP, DEFAULT), manifest(4, "", DEFAULT));
        let now = after(&[first.clone(), second.clone()]);
        assert_eq!(now.successor(&second), Ok(None));
        assert_eq!(now.successor(&first), Err(SuccessorError::Older { found: 3, current: 4 }));
        assert_eq!(now.successor(&manifest(4, "", "")), Err(SuccessorError::Differs { uid: 4 }));
        assert_eq!(BucketCollections::default().successor(&Arc::new(Manifest::epoch())), Ok(None));
    }

    #[test]
    fn nothing_is_renamed_or_moved_and_no_id_comes_again() {
        let now = after(&[manifest(3, SHOP, DEFAULT)]);
        let refused =
            |now: &BucketCollections, next: &Arc<Manifest>| now.successor(next).unwrap_err().to_string();
        let other_scope = SHOP.replace("shop", "other");
        assert!(refused(&now, &manifest(4, &other_scope, DEFAULT)).contains("scope 0x8 is called \"shop\""));
        let other_name = SHOP.replace("orders", "other");
        assert!(refused(&now, &manifest(4, &other_name, DEFAULT)).contains("cannot become \"other\""));
        let moved = format!(r#"{DEFAULT},{{"name":"orders","uid":"9"}}"#);
        assert!(refused(&now, &manifest(4, "", &moved)).contains("cannot move to 0x0"));
        let ttl = SHOP.replace(r#""9""#, r#""9","maxTTL":5"#);
        assert!(now.successor(&manifest(4, &ttl, DEFAULT)).is_ok());
        let gone = now.successor(&manifest(4, "", "")).unwrap().unwrap();
        assert!(refused(&gone, &manifest(5, SHOP, "")).contains("id 0x8 of scope \"shop\" was used"));
        let again = SHOP.replace(r#""8""#, r#""a""#);
        assert!(
            refused(&gone, &manifest(5, &again, "")).contains("id 0x9 of collection \"orders\" was used")
        );
        assert!(refused(&gone, &manifest(5, "", DEFAULT)).contains("id 0x0 of collection"));
        let fresh = again.replace(r#""9""#, r#""b""#);
        assert!(gone.successor(&manifest(5, &fresh, "")).is_ok());
    }

    #[test]
    fn the_text_reads_back_and_is_empty_before_a_manifest_is_set() {
        let now = after(&[manifest(3, SHOP, DEFAULT), manifest(4, "", "")]);
        assert_eq!(BucketCollections::parse(&now.to_text()), Ok(now.clone()));
        assert_eq!(now.to_text().lines().count(), 3);
        assert_eq!(BucketCollections::default().to_text(), "");
        assert_eq!(BucketCollections::parse(""), Ok(BucketCollections::default()));
        assert!(BucketCollections::parse("{}").is_err() && BucketCollections::parse("x").is_err());
    }

    #[test]
    fn dropped_ids_are_ranges_and_there_are_never_more_than_a_bound_of_them() {
        let mut dropped = Dropped::default();
        for id in [10, 12, 11, 0, u32::MAX, u32::MAX - 1, 10] {
            dropped.add(id);
        }
        assert_eq!(dropped.0, [(0, 0), (10, 12), (u32::MAX - 1, u32::MAX)]);
        assert!([0, 10, 11, 12, u32::MAX].iter().all(|id| dropped.has(*id)));
        assert!([1, 9, 13, u32::MAX - 2].iter().all(|id| !dropped.has(*id)));
        let mut many = Dropped::default();
        (0..=RANGES_MAX as u32).for_each(|id| many.add(2 * id));
        assert_eq!((many.0.len(), many.0[0]), (RANGES_MAX, (0, 2)));
        assert!(many.has(1), "what lies between merged ranges counts as used");
    }
}
