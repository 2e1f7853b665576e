//! The purger of a bucket on disk: tombstones of a certain age may go.
//!
//! Every `persistent_metadata_purge_interval` seconds each vbucket of the bucket on this core, whatever its state, is told that tombstones older than
//! `persistent_metadata_purge_age` may go; the shard's compaction task purges it when it comes to it, at its pace.
//!
//! Invariants
//! - A consumer that was away for longer than the age may have missed deletions, and is told so: its stream begins anew.
//!
//! Does not know: how a vbucket is purged.

use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_lite::future::or;
use ringbase_storage::vbstore::PurgeLimits;

use super::context::{BucketContext, LocalBucket};

/// Starts the purger of a bucket on this core; it ends with the bucket.
pub(super) fn start(bucket: &Rc<LocalBucket>) {
    let (context, weak) = (bucket.context.clone(), Rc::downgrade(bucket));
    bucket.context.env.spawn("purger", run(context, weak));
}

async fn run(context: Rc<BucketContext>, bucket: Weak<LocalBucket>) {
    let clock = context.env.clock.clone();
    let mut last_ns = clock.monotonic_ns();
    loop {
        let settings = context.settings();
        let due_ns = last_ns.saturating_add(u64::from(settings.disk_purge_interval_seconds) * 1_000_000_000);
        let now_ns = clock.monotonic_ns();
        if now_ns < due_ns {
            or(context.env.spawn.sleep(Duration::from_nanos(due_ns - now_ns)), context.changed()).await;
        } else {
            last_ns = now_ns;
            let Some(bucket) = bucket.upgrade() else { return };
            if let Some(age) = settings.disk_purge_age_seconds {
                let limits = PurgeLimits::before(context.now().saturating_sub(age));
                bucket.vbuckets().iter().for_each(|store| store.want_purge(limits));
            }
        }
        if context.is_withdrawn() || bucket.strong_count() == 0 {
            return;
        }
    }
}
