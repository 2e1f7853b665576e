//! What a stream says about itself.
//!
//! Names are the reference's where the meaning is the same. The state of a stream's time is ours: `spent_<what>_ns`, which add up to
//! `wall_ns`, and `waits_for`, what it does or waits for at this moment; and how far a backfill is ([`super::progress`]).
//!
//! Does not know: who asked, in which form it is shown.

use std::sync::Arc;

use ringbase_storage::types::{BucketId, VbId};
use serde_json::Value;

use super::piece::{Origin, StreamNumber};
use super::stream::Stream;
use super::stream_state::StreamState;
use super::streams::{BACKFILLS_MAX, Streams};

/// One stream at one moment.
#[derive(Debug, Clone)]
pub struct StreamFacts {
    /// Its vbucket.
    pub vb: VbId,
    /// Its number, by which logs and traces name it (T1.14).
    pub number: StreamNumber,
    /// The name of its connection.
    pub connection: Arc<str>,
    /// Who its client is.
    pub origin: Arc<Origin>,
    /// Whether it reads the past.
    pub is_backfilling: bool,
    /// Whether it may have a view open; a backfill that may not waits.
    pub has_slot: bool,
    /// Whether its backfill has a view open, as far as it is known.
    pub has_view: bool,
    /// Seqnos until it has everything: documents and what of them is superseded.
    pub items_remaining: u64,
    /// Documents of backfills that it has made messages of.
    pub disk_items: u64,
    /// Documents from memory.
    pub memory_items: u64,
    /// Bytes of messages that were handed over and have not left.
    pub queued_bytes: usize,
    /// All of it by name.
    pub fields: Vec<(String, Value)>,
}

impl Streams {
    /// Backfills of a connection on this core that may have a view open.
    pub const BACKFILLS_MAX: usize = BACKFILLS_MAX;

    /// Shows the streams of a bucket on this core, of one vbucket or of all.
    pub fn each(&self, bucket: BucketId, vb: Option<VbId>, visit: &mut dyn FnMut(StreamFacts)) {
        let streams: Vec<_> = self.core.streams.borrow().values().cloned().collect();
        for stream in streams {
            let is_wanted = vb.is_none_or(|only| only == stream.spec.envelope.vbucket);
            if stream.bucket() == bucket && is_wanted {
                visit(stream.facts());
            }
        }
    }
}

impl Stream {
    fn facts(&self) -> StreamFacts {
        let (now_ns, counts, spec) = (self.now_ns(), self.counts.get(), &self.spec);
        let (queued_bytes, queued_items, pieces) = {
            let under_way = self.under_way.borrow();
            let items: u64 = under_way.iter().map(|piece| u64::from(piece.items)).sum();
            (under_way.iter().map(|piece| piece.bytes).sum::<usize>(), items, under_way.len())
        };
        let (position, high_seqno) = (self.position.get(), self.store.high_seqno());
        let items_remaining = self.end.get().min(high_seqno).0.saturating_sub(position.0);
        let (wall_ns, sums) = (self.time.wall_ns(now_ns), self.time.sums(now_ns));
        let (announced_start, announced_end) = self.announced.get();
        let (sent, sent_snapshot_end) = self.sent.get();
        let state = self.state.get();
        let mut fields: Vec<(String, Value)> = [
            ("uid", Value::from(spec.number.0)),
            ("flags", spec.request.flags.bits().into()),
            ("opaque", spec.envelope.opaque.into()),
            ("start_seqno", spec.request.start.0.into()),
            ("end_seqno", self.end.get().0.into()),
            ("vb_uuid", spec.request.uuid.0.into()),
            ("snap_start_seqno", announced_start.0.into()),
            ("snap_end_seqno", announced_end.0.into()),
            ("state", state.name().into()),
            ("last_read_seqno", position.0.into()),
            ("last_sent_seqno", sent.0.into()),
            ("last_sent_snap_end_seqno", sent_snapshot_end.0.into()),
            ("items_ready", (pieces > 0).into()),
            ("readyQ_items", queued_items.into()),
            ("ready_queue_memory", queued_bytes.into()),
            ("backfill_disk_items", counts.disk_items.into()),
            ("backfill_sent", counts.disk_items.into()),
            ("memory_phase", counts.memory_items.into()),
            ("bytes", counts.bytes.into()),
            ("items_remaining", items_remaining.into()),
            ("change_streams_enabled", false.into()),
            ("waits_for", self.time.current(now_ns).name().into()),
            ("wall_ns", wall_ns.into()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let progress = self.progress_fields((queued_items, queued_bytes as u64));
        fields.extend(progress.into_iter().map(|(name, value)| (name.to_owned(), value)));
        fields.extend(sums.map(|(what, ns)| (format!("spent_{}_ns", what.name()), ns.into())));
        StreamFacts {
            vb: spec.envelope.vbucket,
            number: spec.number,
            connection: spec.name.clone(),
            origin: spec.origin.clone(),
            has_view: self.has_view.get(),
            is_backfilling: state == StreamState::Backfilling,
            has_slot: self.has_slot.get(),
            items_remaining,
            disk_items: counts.disk_items,
            memory_items: counts.memory_items,
            queued_bytes,
            fields,
        }
    }
}
