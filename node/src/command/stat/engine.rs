//! The statistics of a core's shards, buckets and vbuckets.
//!
//! Names are the reference's where the meaning is the same, and our own where there is nothing of the kind. What this
//! node does not have (durable prepares, temporary items, ejection) is not shown as 0.
//!
//! Does not know: connections, the wire.

use ringbase_storage::vbstore::{VbStats, VbStore};

use super::{StatGroup, StatPart, StatQuery, StatSource, Unit, collections, takeover};
use crate::bucket::Engine;
use crate::protocol::dcp::signal::VbucketState;

impl StatSource for Engine {
    fn collect(&self, query: &StatQuery, part: &mut StatPart) {
        match query.group {
            StatGroup::General => general(self, query, part),
            StatGroup::Vbucket => each_vbucket(self, query, part, states),
            StatGroup::VbucketDetails => each_vbucket(self, query, part, details),
            StatGroup::VbucketSeqno => each_vbucket(self, query, part, seqnos),
            StatGroup::Failovers => each_vbucket(self, query, part, failovers),
            StatGroup::DcpVbTakeover => each_vbucket(self, query, part, takeover),
            StatGroup::Timings => timings(self, part),
            StatGroup::Scrub => scrubs(self, part),
            StatGroup::Collections
            | StatGroup::CollectionsById
            | StatGroup::Scopes
            | StatGroup::ScopesById => collections::numbers(self, query, part),
            StatGroup::CollectionsDetails | StatGroup::ScopesDetails => {
                collections::details(self, query, part)
            }
            StatGroup::Uuid
            | StatGroup::RangeScans
            | StatGroup::Dcp
            | StatGroup::DcpAgg
            | StatGroup::Backfills
            | StatGroup::Reset => {}
        }
    }

    fn reset(&self) {
        for bucket in self.buckets() {
            bucket.context.tally.reset();
            bucket.context.pager_runs.set(0);
            for (_, usage) in bucket.context.collections().iter() {
                usage.reset();
            }
        }
    }
}

/// `shard_<n>:` and a field; damage as JSON.
fn scrubs(engine: &Engine, part: &mut StatPart) {
    for shard in engine.shards() {
        let (number, status) = (shard.geometry().shard, shard.scrub_status());
        for (name, value) in [
            ("running", u64::from(status.is_running)),
            ("passes", status.passes),
            ("read_bytes", status.read_bytes),
            ("all_bytes", status.all_bytes),
            ("damaged", status.damaged),
        ] {
            part.text(format!("shard_{number}:{name}"), value);
        }
        for (index, damage) in status.damage.iter().enumerate() {
            let json = serde_json::to_string(damage).unwrap_or_default();
            part.text(format!("shard_{number}:damage_{index:03}"), json);
        }
    }
}

fn each_vbucket(
    engine: &Engine,
    query: &StatQuery,
    part: &mut StatPart,
    show: fn(&VbStore, VbucketState, &VbStats, &mut StatPart),
) {
    let Some(bucket) = query.bucket.and_then(|id| engine.bucket(id)) else { return };
    for store in bucket.vbuckets().iter().filter(|store| query.covers(store.id())) {
        let Some(state) = bucket.state(store.id()) else { continue };
        let is_over = state == VbucketState::Dead && query.group == StatGroup::VbucketSeqno;
        if is_over && query.vbucket.is_some() {
            continue;
        }
        show(store, state, &store.stats(), part);
    }
}

fn general(engine: &Engine, query: &StatQuery, part: &mut StatPart) {
    part.sum("threads", 1);
    for shard in engine.shards() {
        let (stats, metrics) = (shard.stats(), shard.metrics());
        let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
        part.sum("shards", 1);
        part.sum("shards_failed", u64::from(shard.failure().is_some()));
        part.sum("memtable_bytes", bytes(stats.memtable_bytes));
        part.sum("resident_bytes", bytes(stats.resident_bytes));
        part.sum("wal_pending_bytes", stats.wal_pending_bytes);
        part.max("wal_fullness_percent", (stats.wal_fullness * 100.0) as u64);
        part.sum("ep_commit_num", metrics.wal_commit_ns.histogram().len());
        part.sum("flushes", metrics.flush_ns.histogram().len());
        part.sum("ep_item_flush_failed", metrics.flush_failures.get());
        part.sum("run_merges", metrics.merges.get());
        part.sum("run_merge_written_bytes", metrics.merge_written_bytes.get());
        part.sum("purges", metrics.purges.get());
        part.sum("scrub_damaged", metrics.scrub_damaged.get());
        part.sum("manifest_changes", stats.manifest_changes);
        part.sum("data_file_bytes", stats.space.file_bytes);
        part.sum("data_free_bytes", stats.space.free_bytes);
        part.sum("data_named_bytes", stats.named_bytes);
        part.sum("reclaims", metrics.reclaims.get());
        part.sum("reclaim_failures", metrics.reclaim_failures.get());
        part.sum("reclaim_written_bytes", metrics.reclaim_written_bytes.get());
        part.sum("reclaim_replaced_bytes", metrics.reclaim_replaced_bytes.get());
    }
    // The cache belongs to the core, all its shards show the same one.
    if let Some(shard) = engine.shards().first() {
        let cache = shard.stats().cache;
        part.sum("block_cache_bytes", cache.bytes);
        part.sum("block_cache_hits", cache.hits);
        part.sum("block_cache_misses", cache.misses);
    }
    let Some(bucket) = query.bucket.and_then(|id| engine.bucket(id)) else { return };
    for (name, number) in bucket.context.tally.iter() {
        part.sum(name, number);
    }
    let settings = bucket.context.settings();
    part.text("ep_bucket_type", settings.bucket_type);
    part.text("ep_max_size", bucket.context.quota_bytes());
    part.text("ep_max_item_size", settings.item_bytes_max);
    part.text("ep_max_ttl", settings.ttl_seconds_max);
    part.text("ep_exp_pager_enabled", settings.pager_enabled);
    part.text("ep_exp_pager_stime", settings.pager_seconds);
    part.text("ep_getl_default_timeout", settings.lock_seconds_default);
    part.text("ep_getl_max_timeout", settings.lock_seconds_max);
    part.text("ep_dcp_oso_backfill", settings.oso_backfill);
    part.text("ep_dcp_oso_max_collections_per_backfill", settings.oso_collections_max);
    part.max("ep_num_expiry_pager_runs", bucket.context.pager_runs.get());
    for state in VbucketState::ALL {
        part.sum(format!("vb_{}_num", state.name()), 0);
        part.sum(format!("vb_{}_curr_items", state.name()), 0);
    }
    for store in bucket.vbuckets() {
        let stats = store.stats();
        let Some(state) = bucket.state(store.id()) else { continue };
        let is_active = state == VbucketState::Active;
        part.sum("ep_vb_total", 1);
        part.sum("curr_items_tot", stats.items);
        part.sum("curr_items", if is_active { stats.items } else { 0 });
        for (name, number) in [
            ("num", 1),
            ("curr_items", stats.items),
            ("ht_memory", stats.resident_bytes),
            ("queue_size", stats.memtable_items),
        ] {
            part.sum(format!("vb_{}_{name}", state.name()), number);
        }
        part.sum("tombstones", stats.tombstones);
        part.sum("resident_items", stats.resident_items);
        part.sum("mem_used", stats.resident_bytes + stats.index_bytes);
        part.sum("index_bytes", stats.index_bytes);
        part.sum("ep_queue_size", stats.memtable_items);
        let versions = store.versions_stats();
        part.sum("seqlist_memory", versions.list_bytes);
        part.sum("key_index_memory", versions.index_bytes);
        part.sum("seqlist_stale_count", versions.stale);
        part.sum("seqlist_stale_value_bytes", versions.stale_value_bytes);
        part.sum("seqlist_stale_metadata_bytes", versions.stale_meta_bytes);
        part.sum("ep_diskqueue_memory", stats.memtable_bytes);
        part.sum("ep_db_data_size", stats.disk_bytes);
        part.sum("seqlog_bytes", stats.seqlog_bytes);
        part.sum("seqlog_live_bytes", stats.live_bytes);
        part.sum("seqlog_dead_bytes", stats.dead_bytes);
        part.sum("seqlog_kept_bytes", stats.kept_bytes);
        part.sum("key_runs", stats.runs);
        part.sum("seqlog_segments", stats.segments);
        part.sum("views", stats.views);
    }
}

fn takeover(store: &VbStore, state: VbucketState, stats: &VbStats, part: &mut StatPart) {
    states(store, state, stats, part);
    takeover::add_vbucket(part, stats.items, stats.tombstones);
}

fn states(store: &VbStore, state: VbucketState, _: &VbStats, part: &mut StatPart) {
    part.of_vbucket(store.id(), "", state.name());
}

fn details(store: &VbStore, state: VbucketState, stats: &VbStats, part: &mut StatPart) {
    let vb = store.id();
    part.of_vbucket(vb, "", state.name());
    let topology = store.role().topology;
    if !topology.is_empty() {
        part.of_vbucket(vb, "topology", topology);
    }
    part.of_vbucket(vb, "uuid", store.uuid());
    for (name, number) in [
        ("num_items", stats.items),
        ("num_tombstones", stats.tombstones),
        ("ht_num_items", stats.resident_items),
        ("ht_num_in_memory_items", stats.resident_items),
        ("ht_memory", stats.resident_bytes),
        ("index_memory", stats.index_bytes),
        ("queue_size", stats.memtable_items),
        ("queue_memory", stats.memtable_bytes),
        ("frozen_memtables", stats.frozen),
        ("high_seqno", stats.high_seqno.0),
        ("persistence_seqno", stats.persisted_seqno.0),
        ("flushed_seqno", stats.flushed_seqno.0),
        ("purge_seqno", stats.purge_seqno.0),
        ("max_visible_seqno", stats.high_seqno.0),
        ("max_cas", stats.max_cas.0),
        ("db_data_size", stats.disk_bytes),
        ("seqlog_bytes", stats.seqlog_bytes),
        ("seqlog_live_bytes", stats.live_bytes),
        ("seqlog_dead_bytes", stats.dead_bytes),
        ("seqlog_kept_bytes", stats.kept_bytes),
        ("key_runs", stats.runs),
        ("seqlog_segments", stats.segments),
        ("views", stats.views),
    ] {
        part.of_vbucket(vb, name, number);
    }
    let versions = store.versions_stats();
    for (name, number) in [
        ("seqlist_count", versions.versions),
        ("seqlist_high_seqno", stats.high_seqno.0),
        ("seqlist_purged_count", versions.purged),
        ("seqlist_range_read_begin", versions.range_read_begin),
        ("seqlist_range_read_end", versions.range_read_end),
        ("seqlist_range_read_count", versions.readers),
        ("seqlist_stale_count", versions.stale),
        ("seqlist_stale_value_bytes", versions.stale_value_bytes),
        ("seqlist_stale_metadata_bytes", versions.stale_meta_bytes),
        ("seqlist_resident_from", versions.resident_from),
        ("seqlist_memory", versions.list_bytes),
        ("key_index_memory", versions.index_bytes),
    ] {
        part.of_vbucket(vb, name, number);
    }
    if store.is_ephemeral() {
        part.of_vbucket(vb, "seqlist_deleted_count", stats.tombstones);
        part.of_vbucket(vb, "ht_tombstone_purged_count", versions.purged_tombstones);
    }
}

fn seqnos(store: &VbStore, _: VbucketState, stats: &VbStats, part: &mut StatPart) {
    let vb = store.id();
    part.of_vbucket(vb, "uuid", store.uuid());
    for (name, seqno) in [
        ("high_seqno", stats.high_seqno),
        ("abs_high_seqno", stats.high_seqno),
        ("last_persisted_seqno", stats.persisted_seqno),
        ("last_persisted_snap_start", stats.persisted_seqno),
        ("last_persisted_snap_end", stats.persisted_seqno),
        ("purge_seqno", stats.purge_seqno),
        ("max_visible_seqno", stats.high_seqno),
    ] {
        part.of_vbucket(vb, name, seqno);
    }
}

fn failovers(store: &VbStore, _: VbucketState, _: &VbStats, part: &mut StatPart) {
    let (vb, log) = (store.id(), store.failover_log());
    part.of_vbucket(vb, "num_entries", log.len());
    for (index, branch) in log.iter().enumerate() {
        part.of_vbucket(vb, format!("{index}:id"), branch.uuid);
        part.of_vbucket(vb, format!("{index}:seq"), branch.seqno);
    }
}

fn timings(engine: &Engine, part: &mut StatPart) {
    for shard in engine.shards() {
        let metrics = shard.metrics();
        let commits = metrics.wal_commit_ns.histogram();
        part.histogram("disk_commit", &commits, Unit::MicrosOfNanos);
        part.histogram("wal_commit_ns", &commits, Unit::AsRecorded);
        part.histogram("wal_commit_bytes", &metrics.wal_commit_bytes.histogram(), Unit::AsRecorded);
        part.histogram("flush_ns", &metrics.flush_ns.histogram(), Unit::AsRecorded);
        part.histogram("run_merge_ns", &metrics.merge_ns.histogram(), Unit::AsRecorded);
        part.histogram("reclaim_ns", &metrics.reclaim_ns.histogram(), Unit::AsRecorded);
        part.histogram("flush_bytes", &metrics.flush_bytes.histogram(), Unit::AsRecorded);
    }
}
