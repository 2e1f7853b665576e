//! Housekeeping of a bucket that lives in memory only: old tombstones go, what dropped collections left goes, key indexes that nobody uses go,
//! and when memory is short and the bucket
//! says so, its oldest documents go.
//!
//! Every second the bucket's vbuckets on this core are looked at. Tombstones older than `ephemeral_metadata_purge_age` are purged every
//! `ephemeral_metadata_purge_interval` seconds. With the policy `auto_delete` documents are removed, those written longest ago first, as soon as memory reaches
//! the high mark, until it is at the low mark; they leave tombstones, so that streams tell of it.
//!
//! Invariants
//! - A slice is at most 256 versions; then other tasks of the core have their turn.
//!
//! Does not know: requests, readers.

use std::rc::{Rc, Weak};
use std::time::Duration;

use ringbase_storage::types::{Cas, Kind, Seqno};
use ringbase_storage::vbstore::{Found, VbStore};

use super::context::{BucketContext, LocalBucket};
use super::document::Document;
use super::settings::FullPolicy;
use super::tally::count;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// How long a key index is kept that no scan uses.
const INDEX_IDLE: Duration = Duration::from_secs(60);

/// Whether so many bytes of a share are at the high mark, 85 %.
fn is_high((bytes, share): (u64, u64)) -> bool {
    bytes >= share / 100 * 85
}

/// Whether so many bytes of a share are at the low mark, 75 %, or below.
fn is_low((bytes, share): (u64, u64)) -> bool {
    bytes <= share / 100 * 75
}

/// Starts the housekeeping of a bucket on this core; it ends with the bucket.
pub(super) fn start(bucket: &Rc<LocalBucket>) {
    let (context, weak) = (bucket.context.clone(), Rc::downgrade(bucket));
    bucket.context.env.spawn("ephemeral housekeeping", run(context, weak));
}

async fn run(context: Rc<BucketContext>, bucket: Weak<LocalBucket>) {
    let clock = context.env.clock.clone();
    let mut purged_ns = clock.monotonic_ns();
    loop {
        context.env.spawn.sleep(LOOK).await;
        if context.is_withdrawn() {
            return;
        }
        let Some(bucket) = bucket.upgrade() else { return };
        let vbuckets: Vec<Rc<VbStore>> = bucket.vbuckets();
        drop(bucket);
        let (settings, now_ns) = (context.settings(), clock.monotonic_ns());
        let interval_ns = u64::from(settings.purge_interval_seconds) * 1_000_000_000;
        let is_due = now_ns - purged_ns >= interval_ns;
        if is_due {
            purged_ns = now_ns;
        }
        for store in &vbuckets {
            if let (true, Some(age)) = (is_due, settings.purge_age_seconds) {
                purge(&context, store, context.now().saturating_sub(age)).await;
            }
            erase(&context, store).await;
            store.drop_idle_index(now_ns.saturating_sub(INDEX_IDLE.as_nanos() as u64));
        }
        if settings.full_policy == FullPolicy::AutoDelete {
            make_room(&context, &vbuckets).await;
        }
    }
}

/// Drops the tombstones of a vbucket that were made before `before`.
async fn purge(context: &BucketContext, store: &VbStore, before: u32) {
    while store.purge_tombstones(before) {
        context.env.spawn.yield_now().await;
    }
}

/// Erases what is left of dropped collections. What a reader still sees is left for the next look.
async fn erase(context: &BucketContext, store: &VbStore) {
    if store.hidden_items() == 0 {
        return;
    }
    let mut from = Seqno(0);
    while let Some(next) = store.erase_dropped(from) {
        from = next;
        context.env.spawn.yield_now().await;
    }
}

/// Removes the oldest documents if memory is short, a slice of each vbucket in turn.
async fn make_room(context: &Rc<BucketContext>, vbuckets: &[Rc<VbStore>]) {
    let Some(any) = vbuckets.first() else { return };
    if !is_high(any.memory_share()) {
        return;
    }
    let mut positions = vec![Seqno(0); vbuckets.len()];
    let mut is_over = vec![false; vbuckets.len()];
    while is_over.iter().any(|over| !over) {
        for (index, store) in vbuckets.iter().enumerate() {
            if is_low(store.memory_share()) || context.is_withdrawn() {
                return;
            }
            if is_over[index] || !context.states.is_active(store.id()) {
                is_over[index] = true;
                continue;
            }
            let (oldest, next) = store.oldest(positions[index]);
            is_over[index] = next.is_none();
            positions[index] = next.unwrap_or_default();
            for item in oldest {
                let (key, found) = (item.key(), Found::Version(item.clone()));
                let document = Document { store, bucket: context, key, found: &found, now: context.now() };
                let is_document = item.kind() != Kind::SystemEvent;
                if is_document && document.live().is_some() && document.remove(Cas(0)).is_ok() {
                    count(&context.tally.auto_delete_count);
                }
            }
            context.env.spawn.yield_now().await;
        }
    }
}
