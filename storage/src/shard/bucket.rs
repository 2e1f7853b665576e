//! The buckets of a shard: made, changed, emptied and deleted while it runs.
//!
//! Each of these is one change of the manifest, so a crash leaves the bucket in this shard as it was before or as it is after.
//!
//! Invariants
//! - No flush of a vbucket is under way while its bucket goes.
//! - The blocks of a bucket that is gone are free when the last view of it has ended.
//!
//! Does not know: the other shards, which must follow; settings.

use std::rc::Rc;

use super::{BucketMemoryStats, Shard, ShardCore};
use crate::format::manifest_record::{BucketDesc, CollectionsDesc, PurgeDesc, Record, VbCounts, VbState};
use crate::manifest::ManifestError;
use crate::types::{BucketId, FailoverEntry, Seqno, VbId};
use crate::vbstore::{VbStore, Version};

/// Where the documents of a bucket live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// On disk, and in memory as far as there is room.
    Disk,
    /// In memory only: the manifest knows the bucket's name and settings, and nothing of its contents. A restart empties it.
    Memory,
}

impl Shard {
    /// A number that no bucket of this shard ever had.
    #[must_use]
    pub fn next_bucket_id(&self) -> BucketId {
        BucketId(self.core.manifest.state().bucket_max.0 + 1)
    }

    /// Creates a bucket with the vbuckets of this shard, each with a fresh branch; durable when it returns. They are active, or what they are in a
    /// bucket of the same name and uuid whose place it is to take.
    ///
    /// # Errors
    /// The manifest's; the shard has failed then.
    pub async fn create_bucket(&self, bucket: BucketDesc) -> Result<(), ManifestError> {
        self.create_bucket_in(bucket, Home::Disk).await
    }

    /// Creates a bucket that lives there.
    ///
    /// # Errors
    /// The manifest's; the shard has failed then.
    pub async fn create_bucket_in(&self, bucket: BucketDesc, home: Home) -> Result<(), ManifestError> {
        let states = self.core.new_vbuckets(bucket.id, self.core.other_of(&bucket));
        self.core.change_manifest(creation(bucket, home, &states)).await?;
        self.core.add_vbuckets(home, &states);
        Ok(())
    }

    /// Makes the vbuckets of a bucket that lives in memory only, empty and with a fresh branch each, unless they are there: after the shard was
    /// opened, which cannot know of them.
    pub fn open_memory_bucket(&self, bucket: BucketId) {
        let is_open = self.core.vbuckets.borrow().keys().any(|(of, _)| *of == bucket);
        if !is_open {
            self.core.add_vbuckets(Home::Memory, &self.core.new_vbuckets(bucket, None));
        }
    }

    /// Changes what is said of a bucket; its vbuckets stay.
    ///
    /// # Errors
    /// The manifest's; the shard has failed then.
    pub async fn update_bucket(&self, bucket: BucketDesc) -> Result<(), ManifestError> {
        self.core.change_manifest(vec![Record::Bucket(bucket)]).await
    }

    /// Deletes a bucket: its vbuckets, its memory and, when the last view has ended, its blocks. Writes that come late are refused. A bucket
    /// that is not there is deleted already.
    ///
    /// # Errors
    /// The manifest's; the shard has failed then.
    pub async fn delete_bucket(&self, bucket: BucketId) -> Result<(), ManifestError> {
        self.core.end_bucket(bucket, None).await
    }

    /// Deletes the bucket `old` and creates `new` in one change.
    ///
    /// # Errors
    /// The manifest's; the shard has failed then.
    pub async fn replace_bucket(
        &self,
        old: BucketId,
        new: BucketDesc,
        home: Home,
    ) -> Result<(), ManifestError> {
        self.core.end_bucket(old, Some((new, home))).await
    }

    /// Bounds the memory of a bucket in this shard to `bytes`. Above it writes are refused until a flush is through, and what is flushed leaves
    /// memory.
    pub fn set_bucket_quota(&self, bucket: BucketId, bytes: usize) {
        let memory = self.core.buckets.borrow().get(&bucket).cloned();
        if let Some(memory) = memory {
            let is_ephemeral = {
                let vbuckets = self.core.vbuckets.borrow();
                let mut ours = vbuckets.iter().filter(|((of, _), _)| *of == bucket);
                ours.next().is_some_and(|(_, store)| store.is_ephemeral())
            };
            if is_ephemeral {
                memory.set_memory_quota(bytes);
            } else {
                memory.set_quota(bytes);
            }
            self.core.want_flush();
        }
    }

    /// Lets flushed versions of a bucket go from memory until it is within its quota.
    pub async fn trim_bucket(&self, bucket: BucketId) {
        let stores: Vec<Rc<VbStore>> = {
            let vbuckets = self.core.vbuckets.borrow();
            vbuckets.iter().filter(|((of, _), _)| *of == bucket).map(|(_, store)| store.clone()).collect()
        };
        for store in stores {
            store.evict_until_room().await;
        }
    }

    /// What a bucket takes in memory here.
    #[must_use]
    pub fn bucket_memory(&self, bucket: BucketId) -> BucketMemoryStats {
        self.core.buckets.borrow().get(&bucket).map(|memory| memory.stats()).unwrap_or_default()
    }
}

/// The change that creates a bucket.
fn creation(bucket: BucketDesc, home: Home, states: &[VbState]) -> Vec<Record> {
    let mut records = vec![Record::Bucket(bucket)];
    if home == Home::Disk {
        for state in states {
            records.push(Record::Vbucket(Box::new(state.clone())));
            if !state.topology.is_empty() {
                records.push(state.role());
            }
        }
    }
    records
}

impl ShardCore {
    /// The vbuckets of every bucket that are in this shard.
    pub(super) fn vbucket_ids(&self) -> impl Iterator<Item = VbId> + use<> {
        let geometry = self.geometry;
        let ours = move |vb: &u16| vb % geometry.shard_count == geometry.shard.0;
        (0..geometry.vbucket_count).filter(ours).map(VbId)
    }

    /// A bucket with the name and uuid of `bucket` and another number: one of them is to take the place of the other.
    pub(super) fn other_of(&self, bucket: &BucketDesc) -> Option<BucketId> {
        let state = self.manifest.state();
        let is_other = |other: &&BucketDesc| {
            other.id != bucket.id && other.uuid == bucket.uuid && other.name == bucket.name
        };
        state.buckets.values().find(is_other).map(|other| other.id)
    }

    /// Empty vbuckets for a new bucket, as those of the one whose place it takes.
    fn new_vbuckets(&self, bucket: BucketId, old: Option<BucketId>) -> Vec<VbState> {
        let Some(old) = old else {
            return self.vbucket_ids().map(|vb| self.new_vbucket(bucket, vb)).collect();
        };
        let vbuckets = self.vbuckets.borrow();
        let roles = self.vbucket_ids().filter_map(|vb| Some((vb, vbuckets.get(&(old, vb))?.role())));
        roles
            .map(|(vb, role)| VbState {
                state: role.state,
                topology: role.topology,
                ..self.new_vbucket(bucket, vb)
            })
            .collect()
    }

    /// An empty vbucket, active, with a fresh branch.
    pub(super) fn new_vbucket(&self, bucket: BucketId, vb: VbId) -> VbState {
        VbState {
            bucket,
            vb,
            state: 1,
            topology: String::new(),
            failover_log: vec![FailoverEntry { uuid: self.new_branch(), seqno: Seqno(0) }],
            counts: VbCounts::default(),
            runs: Vec::new(),
            segments: Vec::new(),
            marks: Vec::new(),
            collections: CollectionsDesc::default(),
            purged: PurgeDesc::default(),
        }
    }

    pub(super) fn add_vbuckets(self: &Rc<Self>, home: Home, states: &[VbState]) {
        let mut vbuckets = self.vbuckets.borrow_mut();
        for state in states {
            let store = match home {
                Home::Disk => VbStore::new(self.clone(), state, Version::default(), Vec::new()),
                Home::Memory => VbStore::new_ephemeral(self.clone(), state),
            };
            vbuckets.insert((state.bucket, state.vb), store);
        }
    }

    async fn end_bucket(
        self: &Rc<Self>,
        bucket: BucketId,
        successor: Option<(BucketDesc, Home)>,
    ) -> Result<(), ManifestError> {
        let flushing = self.flushing.lock().await;
        if successor.is_none() && !self.manifest.state().buckets.contains_key(&bucket) {
            return Ok(());
        }
        let states =
            successor.as_ref().map(|(new, _)| self.new_vbuckets(new.id, Some(bucket))).unwrap_or_default();
        let home = successor.as_ref().map_or(Home::Disk, |(_, home)| *home);
        let tail = self.tail_without(|(of, _)| of == bucket);
        let mut records = vec![Record::BucketGone { bucket }];
        records.extend(successor.into_iter().flat_map(|(new, home)| creation(new, home, &states)));
        records.push(Record::WalTail { position: tail });
        self.change_manifest(records).await?;
        self.wal.set_tail(tail);
        self.add_vbuckets(home, &states);
        let gone: Vec<Rc<VbStore>> = {
            let mut vbuckets = self.vbuckets.borrow_mut();
            let keys: Vec<_> = vbuckets.keys().filter(|(of, _)| *of == bucket).copied().collect();
            keys.iter().filter_map(|key| vbuckets.remove(key)).collect()
        };
        drop(flushing);
        if let Some(memory) = self.buckets.borrow_mut().remove(&bucket) {
            memory.end();
        }
        for store in gone {
            store.end();
            // Letting go of many documents takes time; other tasks have their turn between two vbuckets.
            self.env.relax().await;
        }
        self.idle_event.notify_all();
        Ok(())
    }

    /// The oldest log position that is still needed when these vbuckets are gone.
    pub(super) fn tail_without(&self, is_gone: impl Fn((BucketId, VbId)) -> bool) -> u64 {
        let vbuckets = self.vbuckets.borrow();
        let others = vbuckets.iter().filter(|(key, _)| !is_gone(**key));
        others.filter_map(|(_, store)| store.first_position()).min().unwrap_or_else(|| self.wal.head())
    }
}
