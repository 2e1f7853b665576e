//! The commit task: one group commit after the other while there is something to commit.
//!
//! Invariants
//! - A vbucket's persisted seqno rises after the sync that made it durable, never before.
//!
//! Does not know: what the records say.

use std::rc::Rc;

use super::ShardCore;
use crate::mutant::{Mutant, is_on};
use crate::types::Seqno;
use crate::vbstore::VbStore;

impl ShardCore {
    pub(super) async fn run_commits(self: Rc<Self>) {
        loop {
            self.commit_event
                .until(|| self.wal.has_pending() || self.closing.get() || self.has_failed())
                .await;
            if self.has_failed() || !self.wal.has_pending() {
                break;
            }
            self.commit_once().await;
            if self.wal.fullness() > 0.5 {
                self.want_flush();
            }
        }
        self.idle_event.notify_all();
    }

    async fn commit_once(&self) {
        let started = self.env.clock.monotonic_ns();
        let dirty: Vec<(Rc<VbStore>, Seqno)> = self
            .dirty
            .take()
            .into_iter()
            .filter_map(|store| store.upgrade())
            .map(|store| {
                let seqno = store.take_dirty();
                (store, seqno)
            })
            .collect();
        let persisted = |dirty: &[(Rc<VbStore>, Seqno)]| {
            for (store, seqno) in dirty {
                store.set_persisted(*seqno);
            }
        };
        if is_on(Mutant::EarlyAck) {
            persisted(&dirty);
        }
        self.metrics.wal_commit_bytes.record(self.wal.pending_bytes() as u64);
        if let Err(error) = self.wal.commit().await
            && !is_on(Mutant::ForgetCommitErrors)
        {
            self.fail(&error);
            return;
        }
        // The sync of another file that failed meanwhile may have taken this commit with it.
        if self.has_failed() {
            return;
        }
        self.metrics.wal_commit_ns.record(self.env.clock.monotonic_ns() - started);
        persisted(&dirty);
        self.idle_event.notify_all();
    }
}
