//! What every core knows of its node: buckets by name, the cluster maps, the users.
//!
//! Made once at start and shared; nothing in it changes while the node runs.
//!
//! Invariants
//! - The maps are rendered for the ports and the version given, one for each bucket and a global one.
//!
//! Cost: about 5 bytes a vbucket and bucket; look-ups by name walk the buckets, which are few.
//!
//! Does not know: shards, connections, documents.

use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::types::BucketId;

use crate::auth::Users;
use crate::protocol::cluster_map::{BucketDescription, NodePorts, encode_bucket, encode_global};
use crate::protocol::extras::ConfigVersion;

/// A bucket as connections see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogBucket {
    /// Its number.
    pub id: BucketId,
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: u128,
    /// The cluster map of connections that have selected it, JSON.
    pub map: Vec<u8>,
}

/// What a catalog is made of, beside the buckets.
#[derive(Debug, Clone)]
pub struct CatalogOptions {
    /// Vbuckets of every bucket.
    pub vbucket_count: u16,
    /// Where the node listens.
    pub ports: NodePorts,
    /// Version of the cluster maps; must rise when they change.
    pub map_version: ConfigVersion,
    /// Who may come in.
    pub users: Users,
    /// Name of the bucket in which every connection starts as an administrator, without authentication. Only for a
    /// node that listens on loopback.
    pub open_bucket: Option<String>,
    /// What VERSION answers.
    pub version: String,
    /// When the node started, wall clock in epoch seconds.
    pub started_at: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Catalog {
    buckets: Vec<CatalogBucket>,
    open_bucket: Option<BucketId>,
    global_map: Vec<u8>,
    options: CatalogOptions,
}

/// The bucket that every connection should start in does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no bucket {name:?} for connections to start in")]
pub struct NoSuchBucket {
    /// The name.
    pub name: String,
}

impl Catalog {
    /// The catalog of a node with these buckets.
    ///
    /// # Errors
    /// The open bucket is none of them.
    pub fn new(buckets: &[BucketDesc], options: CatalogOptions) -> Result<Catalog, NoSuchBucket> {
        let (version, ports, vbucket_count) = (options.map_version, options.ports, options.vbucket_count);
        let described = |bucket: &BucketDesc| {
            let description = BucketDescription { name: &bucket.name, uuid: bucket.uuid, vbucket_count };
            let map = encode_bucket(version, ports, &description);
            CatalogBucket { id: bucket.id, name: bucket.name.clone(), uuid: bucket.uuid, map }
        };
        let mut catalog = Catalog {
            buckets: buckets.iter().map(described).collect(),
            open_bucket: None,
            global_map: encode_global(version, ports),
            options,
        };
        if let Some(name) = &catalog.options.open_bucket {
            let bucket = catalog.bucket_named(name.as_bytes());
            let found = bucket.ok_or_else(|| NoSuchBucket { name: name.clone() })?;
            catalog.open_bucket = Some(found.id);
        }
        Ok(catalog)
    }

    /// The buckets.
    #[must_use]
    pub fn buckets(&self) -> &[CatalogBucket] {
        &self.buckets
    }

    /// The bucket with this number.
    #[must_use]
    pub fn bucket(&self, id: BucketId) -> Option<&CatalogBucket> {
        self.buckets.iter().find(|bucket| bucket.id == id)
    }

    /// The bucket with this name.
    #[must_use]
    pub fn bucket_named(&self, name: &[u8]) -> Option<&CatalogBucket> {
        self.buckets.iter().find(|bucket| bucket.name.as_bytes() == name)
    }

    /// The cluster map of a connection that has selected `bucket`, or none.
    #[must_use]
    pub fn map(&self, bucket: Option<BucketId>) -> &[u8] {
        bucket.and_then(|id| self.bucket(id)).map_or(&self.global_map, |bucket| &bucket.map)
    }

    /// Version of all cluster maps.
    #[must_use]
    pub fn map_version(&self) -> ConfigVersion {
        self.options.map_version
    }

    /// The bucket in which connections start without authentication.
    #[must_use]
    pub fn open_bucket(&self) -> Option<BucketId> {
        self.open_bucket
    }

    /// The users.
    #[must_use]
    pub fn users(&self) -> &Users {
        &self.options.users
    }

    /// Vbuckets of every bucket.
    #[must_use]
    pub fn vbucket_count(&self) -> u16 {
        self.options.vbucket_count
    }

    /// What VERSION answers.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.options.version
    }

    /// When the node started, wall clock in epoch seconds.
    #[must_use]
    pub fn started_at(&self) -> u32 {
        self.options.started_at
    }
}
