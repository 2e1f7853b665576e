//! Creating, emptying, changing and deleting a bucket on all shards of a node, one at a time.
//!
//! Shard 0 is the authority: a bucket exists iff shard 0's manifest has it. Each change of existence is one change of that manifest, and everything
//! else is arranged around it so that a crash leaves the bucket wholly there or wholly gone: what other shards have and shard 0 does not is
//! deleted at the next start ([`Engine::reconcile`](super::Engine::reconcile)).
//!
//! | change | steps |
//! |---|---|
//! | create | all other shards make it; **shard 0 makes it**; every core publishes it |
//! | delete | every core withdraws it and waits for its requests; **shard 0 deletes it**; the others delete it |
//! | empty | the others make its successor; every core withdraws it; **shard 0 replaces it**; publish; the others delete the old one |
//! | set | **shard 0 changes its description**; every core publishes it |
//! | manifest | as set; then every core brings the events of its vbuckets into line |
//!
//! To empty a bucket is to replace it by one with the same name, uuid and settings and another number: every vbucket has a new history branch
//! and seqnos from 1, and nothing of the old one can be taken for the new one's, in the log neither.
//!
//! Invariants
//! - One change at a time. A step begins when all cores have done the one before.
//! - No request is answered from a bucket before it is durable in shard 0, and none after it is withdrawn.
//!
//! Does not know: how a step reaches the cores, connections, statuses.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use ringbase_storage::env::{Env, LocalFuture};
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::manifest::ManifestError;
use ringbase_storage::mutant::{Mutant, is_on};
use ringbase_storage::shard::Shard;
use ringbase_storage::sync::Lock;
use ringbase_storage::types::BucketId;

use super::collections::SuccessorError;
use super::description::BucketConfig;
use super::set::BucketSet;
use super::settings::{BucketSettings, SettingsError};
use crate::protocol::Manifest;

/// Most buckets of a node.
pub const BUCKETS_MAX: usize = 100;

/// Longest name of a bucket, in bytes.
pub const NAME_BYTES_MAX: usize = 100;

/// Module name of the buckets that this node has.
const MODULE: &str = "ep.so";

/// What is to become of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BucketChange {
    /// Create one.
    Create {
        /// Its name.
        name: String,
        /// Which kind, in the words of the protocol.
        module: String,
        /// Its settings.
        config: String,
    },
    /// Delete one.
    Delete {
        /// Its name.
        name: String,
    },
    /// Delete all documents of one.
    Empty {
        /// Its name.
        name: String,
    },
    /// Change a setting.
    Set {
        /// Which bucket.
        bucket: BucketId,
        /// Which setting.
        key: String,
        /// Its new value.
        value: String,
    },
    /// Give it other collections.
    Manifest {
        /// Which bucket.
        bucket: BucketId,
        /// Its new manifest.
        manifest: Arc<Manifest>,
    },
}

/// Why a bucket was not changed. Nothing has changed but for `Failed`, where the next start decides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// There is one of that name.
    #[error("there is a bucket {name:?} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is none of that name.
    #[error("there is no bucket {name:?}")]
    Absent {
        /// The name, or the number.
        name: String,
    },
    /// The name cannot be one.
    #[error("a bucket's name has 1 to 100 of the characters A-Z a-z 0-9 . _ % -, found {name:?}")]
    Name {
        /// The name.
        name: String,
    },
    /// A kind of bucket that nobody has.
    #[error("unknown bucket module {module:?}, known is ep.so")]
    Module {
        /// Its name.
        module: String,
    },
    /// A kind of bucket that this build does not have.
    #[error("{what} is not supported by this build; use bucket_type=persistent")]
    Unsupported {
        /// Which.
        what: &'static str,
    },
    /// The settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The manifest may not follow the one that the bucket has.
    #[error(transparent)]
    Manifest(#[from] SuccessorError),
    /// More memory than there is.
    #[error("max_size={asked} is more than the {most} bytes that this node has for documents")]
    Quota {
        /// Bytes asked for.
        asked: u64,
        /// Bytes there are.
        most: u64,
    },
    /// As many buckets as can be.
    #[error("the node has {BUCKETS_MAX} buckets, which is the most; delete one first")]
    TooMany,
    /// A shard failed meanwhile.
    #[error("the change could not be finished: {reason}")]
    Failed {
        /// What it said.
        reason: String,
    },
}

/// What every core does at once, with all its shards but the authority.
#[derive(Debug, Clone)]
pub enum Step {
    /// Make a bucket that nobody sees yet.
    Prepare(BucketDesc),
    /// Take no more requests for a bucket, end its scans, wait for the requests under way.
    Withdraw {
        /// Which.
        bucket: BucketId,
        /// What connections are to see.
        set: Arc<BucketSet>,
    },
    /// Serve these buckets, and tell their vbuckets which collections they have.
    Publish(Arc<BucketSet>),
    /// Delete a bucket that nobody sees any more.
    Remove(BucketId),
}

/// All cores of the node.
pub trait Cores {
    /// Lets every core, this one too, take a step; resolves when all have.
    fn all(&self, step: Step) -> LocalFuture<'_, Result<(), ChangeError>>;
}

/// See the module. Lives on the core that hosts shard 0.
pub struct Lifecycle {
    env: Env,
    authority: Shard,
    document_bytes: u64,
    set: RefCell<Arc<BucketSet>>,
    changing: Lock,
}

impl Lifecycle {
    /// Changes the buckets of the node whose shard 0 is `authority`; buckets may use `document_bytes` of memory.
    #[must_use]
    pub fn new(env: Env, authority: Shard, set: Arc<BucketSet>, document_bytes: u64) -> Rc<Lifecycle> {
        let set = RefCell::new(set);
        Rc::new(Lifecycle { env, authority, document_bytes, set, changing: Lock::default() })
    }

    /// The buckets as of the last change.
    #[must_use]
    pub fn set(&self) -> Arc<BucketSet> {
        self.set.borrow().clone()
    }

    /// Makes a change; durable, and seen by every core, when it returns.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change(&self, cores: &dyn Cores, change: &BucketChange) -> Result<(), ChangeError> {
        let _changing = self.changing.lock().await;
        match change {
            BucketChange::Create { name, module, config } => self.create(cores, name, module, config).await,
            BucketChange::Delete { name } => self.delete(cores, name).await,
            BucketChange::Empty { name } => self.empty(cores, name).await,
            BucketChange::Manifest { bucket, manifest } => self.set_manifest(cores, *bucket, manifest).await,
            BucketChange::Set { bucket, key, value } => self.change_setting(cores, *bucket, key, value).await,
        }
    }

    async fn create(
        &self,
        cores: &dyn Cores,
        name: &str,
        module: &str,
        config: &str,
    ) -> Result<(), ChangeError> {
        let set = self.set();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._%-".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
            return Err(ChangeError::Name { name: name.to_owned() });
        }
        if set.named(name).is_some() {
            return Err(ChangeError::Exists { name: name.to_owned() });
        }
        match module {
            MODULE => {}
            "nobucket.so" => return Err(ChangeError::Unsupported { what: "a bucket without data" }),
            _ => return Err(ChangeError::Module { module: module.to_owned() }),
        }
        let settings = self.checked(BucketSettings::parse(config)?)?;
        let home = settings.home();
        if set.buckets.len() >= BUCKETS_MAX {
            return Err(ChangeError::TooMany);
        }
        let uuid = u128::from(self.env.random_u64()) << 64 | u128::from(self.env.random_u64());
        let (id, name, config) = (self.authority.next_bucket_id(), name.to_owned(), settings.to_string());
        let bucket = BucketDesc { id, uuid, name, config };
        if is_on(Mutant::AuthorityFirst) {
            self.authority.create_bucket_in(bucket.clone(), home).await.map_err(|error| failed(&error))?;
            self.prepare(cores, &bucket).await?;
        } else {
            self.prepare(cores, &bucket).await?;
            self.authority.create_bucket_in(bucket.clone(), home).await.map_err(|error| failed(&error))?;
        }
        self.publish(cores, set.with(bucket)).await
    }

    async fn delete(&self, cores: &dyn Cores, name: &str) -> Result<(), ChangeError> {
        let set = self.set();
        let id = named(&set, name)?.id;
        self.withdraw(cores, id, set.without(id)).await?;
        self.authority.delete_bucket(id).await.map_err(|error| failed(&error))?;
        cores.all(Step::Remove(id)).await
    }

    async fn empty(&self, cores: &dyn Cores, name: &str) -> Result<(), ChangeError> {
        let set = self.set();
        let old = named(&set, name)?.clone();
        let new = BucketDesc { id: self.authority.next_bucket_id(), ..old.clone() };
        self.prepare(cores, &new).await?;
        self.withdraw(cores, old.id, set.emptying(old.id)).await?;
        let home = BucketConfig::parse(&new.config)?.settings.home();
        let replaced = self.authority.replace_bucket(old.id, new.clone(), home).await;
        replaced.map_err(|error| failed(&error))?;
        let emptied = self.set().replaced(old.id, new);
        self.publish(cores, emptied).await?;
        cores.all(Step::Remove(old.id)).await
    }

    async fn change_setting(
        &self,
        cores: &dyn Cores,
        bucket: BucketId,
        key: &str,
        value: &str,
    ) -> Result<(), ChangeError> {
        let set = self.set();
        let absent = || ChangeError::Absent { name: bucket.to_string() };
        let current = set.current(bucket).and_then(|id| set.get(id)).ok_or_else(absent)?;
        let config = BucketConfig::parse(&current.config)?;
        let settings = self.checked(config.settings.changed(key, value)?)?;
        self.describe(cores, &set, current, &BucketConfig { settings, ..config }).await
    }

    async fn set_manifest(
        &self,
        cores: &dyn Cores,
        bucket: BucketId,
        manifest: &Arc<Manifest>,
    ) -> Result<(), ChangeError> {
        let set = self.set();
        let absent = || ChangeError::Absent { name: bucket.to_string() };
        let current = set.current(bucket).and_then(|id| set.get(id)).ok_or_else(absent)?;
        let config = BucketConfig::parse(&current.config)?;
        match config.collections.successor(manifest)? {
            None => Ok(()),
            Some(collections) => {
                self.describe(cores, &set, current, &BucketConfig { collections, ..config }).await
            }
        }
    }

    /// Gives a bucket another description.
    async fn describe(
        &self,
        cores: &dyn Cores,
        set: &BucketSet,
        current: &BucketDesc,
        config: &BucketConfig,
    ) -> Result<(), ChangeError> {
        let changed = BucketDesc { config: config.to_string(), ..current.clone() };
        self.authority.update_bucket(changed.clone()).await.map_err(|error| failed(&error))?;
        self.publish(cores, set.with(changed)).await
    }

    fn checked(&self, settings: BucketSettings) -> Result<BucketSettings, ChangeError> {
        if settings.quota_bytes > self.document_bytes {
            return Err(ChangeError::Quota { asked: settings.quota_bytes, most: self.document_bytes });
        }
        Ok(settings)
    }

    /// All other shards make the bucket, or none has it afterwards.
    async fn prepare(&self, cores: &dyn Cores, bucket: &BucketDesc) -> Result<(), ChangeError> {
        let prepared = cores.all(Step::Prepare(bucket.clone())).await;
        if prepared.is_err() {
            // A shard that has failed cannot delete either; the next start does.
            let _ = cores.all(Step::Remove(bucket.id)).await;
        }
        prepared
    }

    async fn withdraw(&self, cores: &dyn Cores, bucket: BucketId, set: BucketSet) -> Result<(), ChangeError> {
        let set = Arc::new(set);
        *self.set.borrow_mut() = set.clone();
        cores.all(Step::Withdraw { bucket, set }).await
    }

    async fn publish(&self, cores: &dyn Cores, set: BucketSet) -> Result<(), ChangeError> {
        let set = Arc::new(set);
        *self.set.borrow_mut() = set.clone();
        cores.all(Step::Publish(set)).await
    }
}

fn named<'s>(set: &'s BucketSet, name: &str) -> Result<&'s BucketDesc, ChangeError> {
    set.named(name).ok_or_else(|| ChangeError::Absent { name: name.to_owned() })
}

/// A shard has failed; it says so in the log.
fn failed(error: &ManifestError) -> ChangeError {
    ChangeError::Failed { reason: error.to_string() }
}

#[cfg(test)]
mod tests;
