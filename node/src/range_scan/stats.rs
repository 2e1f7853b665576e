//! `STAT range-scans`: the scans of a core and what limits them.
//!
//! Keys of a scan begin with `vb_<number>:<id>:`; those of the core have no prefix. The node adds up cores.
//!
//! Does not know: who asked, the wire.

use ringbase_storage::types::{BucketId, VbId};

use super::registry::RangeScans;
use super::scan::Scan;
use crate::protocol::scan_records::RecordKind;

/// Takes one statistic: its name and value.
pub type Visit<'a> = &'a mut dyn FnMut(&str, String);

impl RangeScans {
    /// The statistics of a bucket's scans, of one vbucket or of all on this core. The numbers without prefix are the core's.
    pub fn stats(&self, bucket: BucketId, vb: Option<VbId>, visit: Visit<'_>) {
        let core = &self.core;
        visit("num_running", self.len().to_string());
        visit("max_running", core.settings.scans_max.to_string());
        visit("concurrent_task_limit", core.settings.readers_max().to_string());
        visit("tasks_size", core.turns.taken().to_string());
        visit("ready_queue_size", core.turns.waiting().to_string());
        visit("max_duration", core.settings.max_lifetime.get().as_secs().to_string());
        visit("current_time", core.now().to_string());
        for scan in core.of_bucket(bucket, vb) {
            self.scan_stats(&scan, visit);
        }
    }

    fn scan_stats(&self, scan: &Scan, visit: Visit<'_>) {
        let prefix = format!("vb_{}:{}:", scan.at.vb, scan.id);
        let mut put = |name: &str, value: String| visit(&format!("{prefix}{name}"), value);
        let yes = |yes: bool| if yes { "true" } else { "false" }.to_owned();
        let counts = scan.counts.get();
        let (start, end) = scan.bounds();
        put("create_time", scan.created_ns.to_string());
        put("vbuuid", scan.uuid.to_string());
        put("start", start);
        put("end", end);
        put("key_value", if scan.described.kind == RecordKind::Keys { "key" } else { "value" }.to_owned());
        put("include_xattrs", if scan.described.include_xattrs { "yes" } else { "no" }.to_owned());
        put("queued", yes(scan.queued.get()));
        put("total_keys", counts.records.to_string());
        put("total_items_from_memory", counts.from_memory.to_string());
        put("total_items_from_disk", counts.from_disk.to_string());
        put("continues", scan.continues.get().to_string());
        put("crs_snappy", yes(false));
        if let Some(progress) = scan.progress.get() {
            let request = progress.request;
            let items = counts.records - progress.from.records;
            let bytes = counts.bytes - progress.from.bytes;
            let reached = |used: u64, limit: u32| limit > 0 && used >= u64::from(limit);
            put("crs_item_count", items.to_string());
            put("crs_byte_count", bytes.to_string());
            put("crs_item_limit", yes(reached(items, request.item_limit)));
            put("crs_byte_limit", yes(reached(bytes, request.byte_limit)));
            put("crs_time_limit", request.time_limit_ms.to_string());
            let deadline = progress.deadline_ns.is_some_and(|deadline| self.core.now() >= deadline);
            put("crs_deadline", yes(deadline));
            put("item_limit", request.item_limit.to_string());
            put("time_limit", request.time_limit_ms.to_string());
            put("byte_limit", request.byte_limit.to_string());
        }
        put("crs_exceeded_buffer", yes(scan.exceeded_buffer.get()));
        put("crs_throttled", yes(false));
        put("state", scan.state.get().name().to_owned());
        let waiting = scan.waiting.borrow().as_ref().map(|waiting| waiting.connection.0);
        put("cookie", waiting.map_or_else(|| "none".to_owned(), |connection| connection.to_string()));
        if let Some(chance) = scan.described.chance {
            put("dist_p", chance.to_string());
        }
        if let Some(name) = &scan.described.name {
            put("name", name.clone());
        }
        put("send_threshold", self.core.settings.send_size.get().bytes().to_string());
    }
}
