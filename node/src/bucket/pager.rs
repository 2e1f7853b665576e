//! The expiry pager: expired documents become tombstones although nobody asks for them.
//!
//! Every `exp_pager_stime` seconds each vbucket of a bucket is looked through, its resident versions and the metadata in its key runs; a document
//! that is found is looked up, and if its newest version has expired it gets the tombstone that an access would have given it.
//!
//! Invariants
//! - A slice is at most 256 records and [`SLICE_NS`]; then other tasks of the core have their turn.
//! - Only active vbuckets get tombstones from it; a copy gets them from the vbucket that it follows.
//! - What cannot be dealt with now (no room, a read that fails) is found again by a later run.
//!
//! Cost: a run that finds nothing walks the tables in memory; of the disk it reads only runs in which an expiry has passed. A document that is
//! found on disk only costs one read.
//!
//! Does not know: who set the expiry, requests.

use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_lite::future::or;
use ringbase_storage::reader::ReadError;
use ringbase_storage::vbstore::{ExpiryScan, Found, VbStore};

use super::context::{BucketContext, LocalBucket};
use super::document::Document;
use super::tally::count;

/// Nanoseconds after which a slice ends.
const SLICE_NS: u64 = 200_000;

/// How long a pager that is turned off sleeps, in nanoseconds, unless the settings change.
const DISABLED_NS: u64 = 3600 * 1_000_000_000;

/// Slices between two pauses.
const SLICES_PER_PAUSE: u32 = 16;

/// A pause, so that a long run does not keep the disk busy.
const PAUSE: Duration = Duration::from_millis(1);

/// Starts the pager of a bucket on this core; it ends with the bucket.
pub(super) fn start(bucket: &Rc<LocalBucket>) {
    let (context, weak) = (bucket.context.clone(), Rc::downgrade(bucket));
    bucket.context.env.spawn("expiry pager", run(context, weak));
}

async fn run(context: Rc<BucketContext>, bucket: Weak<LocalBucket>) {
    let clock = context.env.clock.clone();
    let mut last_ns = clock.monotonic_ns();
    loop {
        let settings = context.settings();
        let due_ns = last_ns.saturating_add(u64::from(settings.pager_seconds) * 1_000_000_000);
        let now_ns = clock.monotonic_ns();
        if now_ns < due_ns || !settings.pager_enabled {
            let left = if settings.pager_enabled { due_ns - now_ns } else { DISABLED_NS };
            or(context.env.spawn.sleep(Duration::from_nanos(left)), context.changed()).await;
        } else {
            last_ns = now_ns;
            let Some(bucket) = bucket.upgrade() else { return };
            let vbuckets: Vec<Rc<VbStore>> = bucket.vbuckets();
            drop(bucket);
            count(&context.pager_runs);
            for store in vbuckets {
                if context.states.is_active(store.id())
                    && let Err(error) = page(&context, &store).await
                {
                    tracing::error!(vb = store.id().0, %error, "expired documents cannot be looked for");
                }
            }
        }
        if context.is_withdrawn() || bucket.strong_count() == 0 {
            return;
        }
    }
}

/// Looks through one vbucket.
async fn page(context: &Rc<BucketContext>, store: &Rc<VbStore>) -> Result<(), ReadError> {
    let env = &context.env;
    let mut scan = ExpiryScan::new(store.clone(), context.now());
    let mut slices = 0;
    while let Some(keys) = scan.next().await? {
        let mut started_ns = env.clock.monotonic_ns();
        for key in keys {
            if context.is_withdrawn() || !context.states.is_active(store.id()) {
                return Ok(());
            }
            if !expire(context, store, key).await {
                scan.left_one();
            }
            if env.clock.monotonic_ns() - started_ns > SLICE_NS {
                env.spawn.yield_now().await;
                started_ns = env.clock.monotonic_ns();
            }
        }
        slices += 1;
        if slices % SLICES_PER_PAUSE == 0 {
            env.spawn.sleep(PAUSE).await;
        } else {
            env.spawn.yield_now().await;
        }
    }
    Ok(())
}

/// Turns a document into a tombstone if its newest version has expired; false if that must be tried again.
async fn expire(context: &Rc<BucketContext>, store: &VbStore, key: Box<[u8]>) -> bool {
    let (bucket, full_key) = (context.clone(), key.clone());
    let then = move |store: &VbStore, found: Result<Found, ReadError>| {
        let Ok(found) = found else { return false };
        if !bucket.states.is_active(store.id()) {
            return true;
        }
        let document = Document { store, bucket: &bucket, key: &full_key, found: &found, now: bucket.now() };
        match document.expire() {
            Ok(true) => {
                count(&bucket.tally.ep_expired_pager);
                true
            }
            Ok(false) => true,
            Err(_) => false,
        }
    };
    store.ask(&key, then).await
}
