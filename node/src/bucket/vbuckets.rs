//! Vbuckets change their state, come and go, one at a time in a bucket on a core.
//!
//! | change | steps |
//! |---|---|
//! | set | **durable, with a new branch if it becomes active**; it gets the events of collections that it lacks then; every core sees it |
//! | make | **durable, empty, with a fresh branch**, and events likewise; then every core sees it |
//! | delete | every core sees it dead; **gone, durably**; then every core sees it gone |
//!
//! Invariants
//! - A change is durable, and seen by every core, when its caller is answered. A vbucket that lives in memory only is active after a restart.
//! - Nobody writes to a vbucket while it branches: it is not active then.
//! - What waits for a vbucket goes on as soon as its state has changed, before anything that comes later.
//!
//! Does not know: streams and scans, which its caller ends; the wire.

use std::rc::Rc;

use ringbase_storage::manifest::ManifestError;
use ringbase_storage::shard::{Shard, VbRole};
use ringbase_storage::types::VbId;
use ringbase_storage::vbstore::VbStore;

use super::context::LocalBucket;
use super::engine::{Engine, shard_of};
use super::events;
use crate::protocol::dcp::signal::VbucketState;
pub use crate::protocol::vbucket::Topology;
use crate::range_scan::VbAddress;

/// What is to become of a vbucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VbucketChange {
    /// It gets this state; it is made if it is not there.
    Set {
        /// The state.
        state: VbucketState,
        /// Which nodes have copies; what was said before stays if nothing is said and the vbucket stays active.
        topology: Option<Topology>,
    },
    /// It is deleted with all its documents.
    Delete,
}

/// Why a vbucket was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VbucketError {
    /// It is not there.
    #[error("there is no such vbucket")]
    Absent,
    /// Its bucket is being deleted or emptied.
    #[error("the bucket is being deleted or emptied")]
    Withdrawn,
    /// The shard cannot say so durably.
    #[error("the shard has failed")]
    Failed(#[source] ManifestError),
}

impl LocalBucket {
    /// Shows a vbucket of this core to all cores, in its state.
    pub(super) fn offer(&self, store: &VbStore) {
        let (vb, role) = (store.id(), store.role());
        self.shared.offer(vb, store.table_reader());
        self.tell_topology(vb, &role);
        // A state that no build knows is none in which anything is admitted.
        let state = VbucketState::from_u32(u32::from(role.state)).unwrap_or(VbucketState::Dead);
        self.context.states.set(vb, Some(state));
    }

    fn tell_topology(&self, vb: VbId, role: &VbRole) {
        let is_alone = Topology::from_text(&role.topology).is_some_and(|topology| topology.is_alone());
        self.context.set_needs_others(vb, !is_alone);
    }
}

impl Engine {
    /// Changes a vbucket of this core; `seen` is called whenever all cores see another state, in the same step.
    ///
    /// # Errors
    /// See [`VbucketError`].
    pub async fn change_vbucket(
        &self,
        at: VbAddress,
        change: VbucketChange,
        seen: &dyn Fn(Option<VbucketState>),
    ) -> Result<(), VbucketError> {
        let bucket = self.bucket(at.bucket).ok_or(VbucketError::Withdrawn)?;
        let _under_way = bucket.context.under_way();
        let _changing = bucket.changing.lock().await;
        if bucket.context.is_withdrawn() {
            return Err(VbucketError::Withdrawn);
        }
        let id = shard_of(at.vb, self.shard_count());
        let shard = self.shards().iter().find(|shard| shard.geometry().shard == id);
        let shard = shard.filter(|_| at.vb.0 < self.vbucket_count()).ok_or(VbucketError::Absent)?;
        let store = bucket.vbucket(at.vb);
        match (change, store) {
            (VbucketChange::Set { state, topology }, store) => {
                self.set_vbucket(shard, &bucket, at.vb, store, state, topology).await?;
                seen(Some(state));
                self.unpark(&bucket, at.vb, state);
                Ok(())
            }
            (VbucketChange::Delete, None) => Err(VbucketError::Absent),
            (VbucketChange::Delete, Some(_)) => {
                bucket.context.states.set(at.vb, Some(VbucketState::Dead));
                bucket.context.locks.forget(at.vb);
                seen(Some(VbucketState::Dead));
                self.unpark(&bucket, at.vb, VbucketState::Dead);
                shard.delete_vbucket(at.bucket, at.vb).await.map_err(VbucketError::Failed)?;
                if let Some(slot) = bucket.stores.borrow_mut().get_mut(usize::from(at.vb.0)) {
                    *slot = None;
                }
                bucket.context.set_needs_others(at.vb, false);
                bucket.context.states.set(at.vb, None);
                seen(None);
                Ok(())
            }
        }
    }

    async fn set_vbucket(
        &self,
        shard: &Shard,
        bucket: &LocalBucket,
        vb: VbId,
        store: Option<Rc<VbStore>>,
        state: VbucketState,
        topology: Option<Topology>,
    ) -> Result<(), VbucketError> {
        let before = bucket.state(vb);
        let is_active = state == VbucketState::Active;
        let kept = match &store {
            Some(store) if is_active && before == Some(state) => store.role().topology,
            _ => String::new(),
        };
        let role = VbRole { state: state as u8, topology: topology.map_or(kept, |said| said.to_text()) };
        let Some(store) = store else {
            let home = bucket.context.settings().home();
            let made = shard.create_vbucket(bucket.id, vb, home, role).await.map_err(VbucketError::Failed)?;
            if let Some(slot) = bucket.stores.borrow_mut().get_mut(usize::from(vb.0)) {
                *slot = Some(made.clone());
            }
            if is_active {
                events::bring_into_line(&bucket.context, &made).await;
            }
            bucket.offer(&made);
            return Ok(());
        };
        if before != Some(state) || store.role() != role {
            let branches = is_active && before != Some(state);
            let set = shard.set_vbucket_role(&store, role.clone(), branches).await;
            set.map_err(VbucketError::Failed)?;
        }
        if is_active {
            events::bring_into_line(&bucket.context, &store).await;
        } else {
            bucket.context.locks.forget(vb);
        }
        bucket.tell_topology(vb, &role);
        bucket.context.states.set(vb, Some(state));
        Ok(())
    }

    /// Lets what has waited for a vbucket go on, unless it must wait on.
    fn unpark(&self, bucket: &LocalBucket, vb: VbId, state: VbucketState) {
        if state != VbucketState::Pending {
            bucket.context.parked.take(Some(vb)).into_iter().for_each(|resume| resume(Some(self)));
        }
    }
}
