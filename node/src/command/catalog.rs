//! What every core knows of its node: buckets by name, the cluster maps, the users.
//!
//! Nothing in it changes; a core takes another one when the buckets of the node change.
//!
//! Invariants
//! - The maps are rendered for the ports given, one for each bucket and a global one. Their version rises with each change of the buckets.
//!
//! Cost: about 5 bytes a vbucket and bucket; look-ups by name walk the buckets, which are few.
//!
//! Does not know: shards, connections, documents.

use std::sync::Arc;

use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::shard::Home;
use ringbase_storage::types::BucketId;

use crate::auth::Users;
use crate::bucket::{BucketConfig, BucketSet};
use crate::protocol::Manifest;
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
    /// Its collections.
    pub manifest: Arc<Manifest>,
}

/// What a catalog is made of, beside the buckets.
#[derive(Debug, Clone)]
pub struct CatalogOptions {
    /// Vbuckets of every bucket.
    pub vbucket_count: u16,
    /// Where the node listens.
    pub ports: NodePorts,
    /// Version of the first cluster maps.
    pub map_version: ConfigVersion,
    /// Who may come in.
    pub users: Users,
    /// Name of the bucket in which every connection starts as an administrator, without authentication; as an administrator
    /// also if there is no such bucket. Only for a node that listens on loopback.
    pub open_bucket: Option<String>,
    /// What VERSION answers.
    pub version: String,
    /// When the node started, wall clock in epoch seconds.
    pub started_at: u32,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Catalog {
    set: Arc<BucketSet>,
    buckets: Vec<CatalogBucket>,
    global_map: Vec<u8>,
    options: Arc<CatalogOptions>,
}

impl Catalog {
    /// The catalog of a node with these buckets.
    #[must_use]
    pub fn new(set: Arc<BucketSet>, options: CatalogOptions) -> Catalog {
        Catalog::render(set, Arc::new(options))
    }

    /// The catalog of the same node when it has these buckets.
    #[must_use]
    pub fn with(&self, set: Arc<BucketSet>) -> Catalog {
        Catalog::render(set, self.options.clone())
    }

    fn render(set: Arc<BucketSet>, options: Arc<CatalogOptions>) -> Catalog {
        let mut catalog = Catalog { set: set.clone(), buckets: Vec::new(), global_map: Vec::new(), options };
        let (version, ports) = (catalog.map_version(), catalog.options.ports);
        let vbucket_count = catalog.vbucket_count();
        let described = |bucket: &BucketDesc| {
            // A bucket whose description cannot be read is not published; its sessions see one without collections of its own.
            let config = BucketConfig::parse(&bucket.config).ok();
            let is_ephemeral = config.as_ref().is_some_and(|config| config.settings.home() == Home::Memory);
            let manifest = config.map(|config| config.collections.manifest().clone());
            let manifest = manifest.unwrap_or_else(|| Arc::new(Manifest::epoch()));
            let (name, uuid) = (&bucket.name[..], bucket.uuid);
            let manifest_uid = manifest.uid();
            let description = BucketDescription { name, uuid, vbucket_count, is_ephemeral, manifest_uid };
            let map = encode_bucket(version, ports, &description);
            CatalogBucket { id: bucket.id, name: bucket.name.clone(), uuid: bucket.uuid, map, manifest }
        };
        catalog.buckets = set.buckets.iter().map(described).collect();
        catalog.global_map = encode_global(version, ports);
        catalog
    }

    /// The buckets as their lifecycle describes them.
    #[must_use]
    pub fn set(&self) -> &Arc<BucketSet> {
        &self.set
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
        let first = self.options.map_version;
        ConfigVersion { rev: first.rev.saturating_add_unsigned(self.set.changes), ..first }
    }

    /// Whether connections need no authentication.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.options.open_bucket.is_some()
    }

    /// The bucket in which connections start without authentication, if it exists.
    #[must_use]
    pub fn open_bucket(&self) -> Option<BucketId> {
        let name = self.options.open_bucket.as_ref()?;
        self.bucket_named(name.as_bytes()).map(|bucket| bucket.id)
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
