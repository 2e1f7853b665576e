//! Single vbuckets of a bucket: what each is to its clients, and how one goes and comes again while the shard runs.
//!
//! Each of these is one change of the manifest, so a crash leaves the vbucket as it was before or as it is after. A vbucket that lives in memory
//! only is in no manifest: a restart makes it anew, active.
//!
//! Invariants
//! - A state is durable with the branches that come of it.
//! - A vbucket that comes again takes nothing for its own that was written to the one before, in the log neither.
//! - No flush of a vbucket is under way while it goes.
//!
//! Does not know: what the states mean, which changes are allowed, what the topology says.

use std::rc::Rc;

use super::{Home, Shard, ShardCore};
use crate::format::manifest_record::{Record, VbState};
use crate::manifest::ManifestError;
use crate::types::{BucketId, VbId};
use crate::vbstore::VbStore;

/// What a vbucket is to its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VbRole {
    /// The protocol's state, 1 to 4.
    pub state: u8,
    /// Which nodes have copies, as text that the node understands; empty if it was never told.
    pub topology: String,
}

impl Shard {
    /// Makes `role` that of a vbucket; with a new branch from its high seqno on if `branches`. Durable when it returns, then the vbucket has the
    /// branch. The caller sees to it that nothing is written meanwhile to one that branches.
    ///
    /// # Errors
    /// The manifest's; the shard has failed then.
    pub async fn set_vbucket_role(
        &self,
        store: &VbStore,
        role: VbRole,
        branches: bool,
    ) -> Result<(), ManifestError> {
        let mut log = store.failover_log();
        if branches {
            self.core.add_branch(&mut log, store.high_seqno());
        }
        if !store.is_ephemeral() {
            let VbRole { state, topology } = role.clone();
            let (bucket, vb, log) = (store.bucket(), store.id(), log.clone());
            self.core.change_manifest(vec![Record::Role { bucket, vb, state, topology, log }]).await?;
        }
        store.set_failover_log(log);
        store.set_role(role);
        Ok(())
    }

    /// Makes a vbucket that is not there, empty and with a fresh branch; durable when it returns.
    ///
    /// # Errors
    /// The manifest's; the shard has failed then.
    pub async fn create_vbucket(
        &self,
        bucket: BucketId,
        vb: VbId,
        home: Home,
        role: VbRole,
    ) -> Result<Rc<VbStore>, ManifestError> {
        let VbRole { state, topology } = role;
        let described = VbState { state, topology, ..self.core.new_vbucket(bucket, vb) };
        if home == Home::Disk {
            let records = vec![Record::Vbucket(Box::new(described.clone())), described.role()];
            self.core.change_manifest(records).await?;
        }
        self.core.add_vbuckets(home, std::slice::from_ref(&described));
        Ok(self.vbucket(bucket, vb).expect("it was made just now"))
    }

    /// Makes the vbuckets of the bucket that is to take the place of `bucket` what those of `bucket` are now: they may have changed since it was
    /// made. Nobody uses it yet.
    ///
    /// # Errors
    /// The manifest's; the shard has failed then.
    pub async fn pass_roles_on(&self, bucket: BucketId) -> Result<(), ManifestError> {
        let described = self.core.manifest.state().buckets.get(&bucket).cloned();
        let Some(next) = described.and_then(|described| self.core.other_of(&described)) else {
            return Ok(());
        };
        for vb in self.core.vbucket_ids() {
            match (self.vbucket(bucket, vb), self.vbucket(next, vb)) {
                (Some(old), Some(new)) if old.role() != new.role() => {
                    self.set_vbucket_role(&new, old.role(), false).await?;
                }
                (Some(old), None) => {
                    let home = if old.is_ephemeral() { Home::Memory } else { Home::Disk };
                    self.create_vbucket(next, vb, home, old.role()).await?;
                }
                (None, Some(_)) => {
                    self.delete_vbucket(next, vb).await?;
                }
                (Some(_) | None, _) => {}
            }
        }
        Ok(())
    }

    /// Deletes a vbucket: its memory and, when the last view has ended, its blocks. Durable when it returns; false if it was not there. Writes that
    /// come late are refused.
    ///
    /// # Errors
    /// The manifest's; the shard has failed then.
    pub async fn delete_vbucket(&self, bucket: BucketId, vb: VbId) -> Result<bool, ManifestError> {
        match self.vbucket(bucket, vb) {
            Some(store) => self.core.end_vbucket(&store).await,
            None => Ok(false),
        }
    }
}

impl ShardCore {
    async fn end_vbucket(self: &Rc<Self>, store: &Rc<VbStore>) -> Result<bool, ManifestError> {
        let (bucket, vb) = (store.bucket(), store.id());
        // Records that wait for a commit would come behind the place where those of the next one begin.
        let flushing = loop {
            let is_durable = store.wait_persisted(store.high_seqno()).await;
            let flushing = self.flushing.lock().await;
            if store.has_ended() {
                return Ok(false);
            }
            if !is_durable {
                return Err(self.cannot_delete());
            }
            if store.persisted_seqno() == store.high_seqno() {
                break flushing;
            }
        };
        store.refuse_writes();
        if !store.is_ephemeral() {
            let tail = self.tail_without(|key| key == (bucket, vb));
            let log_from = self.wal.durable();
            let gone = Record::VbucketGone { bucket, vb, log_from };
            self.change_manifest(vec![gone, Record::WalTail { position: tail }]).await?;
            self.wal.set_tail(tail);
        }
        self.vbuckets.borrow_mut().remove(&(bucket, vb));
        drop(flushing);
        store.end();
        self.idle_event.notify_all();
        Ok(true)
    }

    /// Nobody knows which records of the vbucket the log holds.
    fn cannot_delete(&self) -> ManifestError {
        let reason = self.failure().unwrap_or_else(|| "stopped".into());
        ManifestError::Io {
            what: "delete a vbucket from",
            device: self.space.device().name().to_owned(),
            offset: 0,
            source: std::io::Error::other(reason.to_string()),
        }
    }
}
