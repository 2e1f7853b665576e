//! What a stream says of one snapshot: its beginning, its documents and events, its end.
//!
//! In the order of seqnos a snapshot begins with a marker, before its first message, and its seqnos rise. In key order (`oso`) it lies between
//! two OSO messages, also if there is nothing in it, and seqnos come as the keys do.
//!
//! Invariants
//! - The position rises with each document in the order of seqnos; in key order it stays until the snapshot's end, for a client that has only a part
//!   of it has nothing to resume from.
//! - An OSO end follows only a snapshot that was read to its end (T3.10).
//! - In the order of seqnos a client with Collections is told its seqno after every [`SKIPPED_MAX`] documents that it does not get.
//!
//! Cost: one copy a message.
//! Does not know: where documents are read, when a piece is full.

use ringbase_storage::mutant::{Mutant, is_on};
use ringbase_storage::scan::SeqnoRecord;
use ringbase_storage::types::{Kind, Seqno};

use super::settings::MarkerForm;
use super::stream::{Filling, Stream};
use crate::protocol::dcp::signal::{encode_oso_snapshot, encode_seqno_advanced};
use crate::protocol::dcp::{
    MarkerFlags, MarkerVersion, OsoSnapshot, OutOfOrderSnapshots, SnapshotMarker, StoredError, StreamFlags,
    append_document, append_stored,
};

/// Documents left out in a row after which a client is told how far the stream is (`dcp_backfill_antilag_interval` of the reference).
const SKIPPED_MAX: u32 = 10_000;

/// In which order the documents of a snapshot come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Of their seqnos.
    Seqno,
    /// Of their keys, a collection after the other.
    Key,
}

/// A snapshot that is being sent.
pub(super) struct Snapshot {
    start: Seqno,
    end: Seqno,
    pub(super) flags: MarkerFlags,
    purge: Seqno,
    order: Order,
    is_first: bool,
    is_announced: bool,
    /// The greatest seqno in it that was sent.
    last: Seqno,
    /// Documents that were left out since.
    skipped: u32,
    /// When its view was opened, of a backfill that has sent nothing.
    pub(super) opened_ns: Option<u64>,
}

impl Stream {
    /// Begins a snapshot up to `end`. A stream to the latest ends with it.
    pub(super) fn snapshot(&self, end: Seqno, flags: MarkerFlags, purge: Seqno, order: Order) -> Snapshot {
        if self.has_flag(StreamFlags::TO_LATEST) || self.has_flag(StreamFlags::DISK_ONLY) {
            self.end.set(end);
        }
        let (position, is_first) = (self.position.get(), !self.has_marked.get());
        let start = if is_first { self.spec.request.snap_start } else { position.next() };
        let (is_announced, last, skipped, opened_ns) = (false, position, 0, None);
        Snapshot { start, end, flags, purge, order, is_first, is_announced, last, skipped, opened_ns }
    }

    /// Appends the message of a document, and what begins the snapshot before the first one.
    pub(super) fn append(
        &self,
        snapshot: &mut Snapshot,
        record: &SeqnoRecord<'_>,
        filling: &mut Filling,
    ) -> Result<(), StoredError> {
        let (meta, spec) = (&record.meta, &self.spec);
        let is_skipped = spec.skips_deletes
            && meta.kind.is_deleted()
            && spec.request.start == Seqno(0)
            && snapshot.flags.contains(MarkerFlags::DISK)
            && snapshot.is_first;
        let event = if meta.kind == Kind::SystemEvent { self.take_event(record) } else { None };
        if event.is_some() || meta.kind != Kind::SystemEvent && self.carries(record.key) && !is_skipped {
            let out = filling.buffer.vec();
            let before = out.len();
            if let Some(opened_ns) = snapshot.opened_ns.take() {
                self.core.metrics.first_item_ns.record(self.now_ns().saturating_sub(opened_ns));
            }
            if !snapshot.is_announced && !is_on(Mutant::OmitMarkers) {
                self.announce(snapshot, out);
            }
            let appended = match (&event, record.frame) {
                (Some(event), _) => {
                    event.encode(spec.envelope, out);
                    Ok(out.len() - before)
                }
                (None, Some(frame)) => append_stored(frame, meta.kind, &spec.form, spec.envelope, out),
                (None, None) => {
                    append_document(meta, record.key, record.value, &spec.form, spec.envelope, out)
                }
            };
            if let Err(error) = appended {
                out.truncate(before);
                return Err(error);
            }
            let mut counts = self.counts.get();
            counts.bytes += (out.len() - before) as u64;
            match snapshot.flags.contains(MarkerFlags::DISK) {
                true => counts.disk_items += 1,
                false => counts.memory_items += 1,
            }
            self.counts.set(counts);
            filling.items += 1;
            snapshot.last = snapshot.last.max(meta.seqno);
            snapshot.skipped = 0;
        } else {
            self.skip(snapshot, meta.seqno, filling);
        }
        if snapshot.order == Order::Seqno {
            self.position.set(meta.seqno);
        }
        Ok(())
    }

    /// Leaves a document out. Were nothing said for long, the client would have to come back from far behind.
    fn skip(&self, snapshot: &mut Snapshot, seqno: Seqno, filling: &mut Filling) {
        snapshot.skipped += 1;
        if snapshot.skipped < SKIPPED_MAX || snapshot.order == Order::Key || self.spec.selection.is_none() {
            return;
        }
        let out = filling.buffer.vec();
        if !snapshot.is_announced {
            self.announce(snapshot, out);
        }
        encode_seqno_advanced(seqno, self.spec.envelope, out);
        (snapshot.last, snapshot.skipped, filling.is_due) = (seqno, 0, true);
    }

    /// Says that the snapshot begins.
    pub(super) fn announce(&self, snapshot: &mut Snapshot, out: &mut Vec<u8>) {
        snapshot.is_announced = true;
        self.has_marked.set(true);
        let end = self.shown_end(snapshot.end);
        self.announced.set((snapshot.start, end));
        if snapshot.order == Order::Key {
            return encode_oso_snapshot(OsoSnapshot::Start, self.spec.envelope, out);
        }
        let (max_visible, high_completed, high_prepared) = (end, Seqno(0), Seqno(0));
        let version = match self.spec.markers {
            MarkerForm::V1 => MarkerVersion::V1,
            MarkerForm::V2_0 => MarkerVersion::V2_0 { max_visible, high_completed },
            MarkerForm::V2_2 => {
                MarkerVersion::V2_2 { max_visible, high_completed, purge: snapshot.purge, high_prepared }
            }
        };
        SnapshotMarker { start: snapshot.start, end, flags: snapshot.flags, version }
            .encode(self.spec.envelope, out);
    }

    /// The snapshot was read to its end. If its last seqnos are not carried, a client with Collections is told; in key order one that has asked for
    /// it.
    pub(super) fn complete(&self, snapshot: &mut Snapshot, filling: &mut Filling) {
        let (envelope, out) = (self.spec.envelope, filling.buffer.vec());
        let is_told = match snapshot.order {
            Order::Seqno => self.spec.selection.is_some(),
            Order::Key => self.spec.out_of_order == OutOfOrderSnapshots::OnWithSeqnoAdvanced,
        };
        if snapshot.last < snapshot.end && is_told {
            encode_seqno_advanced(snapshot.end, envelope, out);
        }
        if snapshot.order == Order::Key {
            encode_oso_snapshot(OsoSnapshot::End, envelope, out);
        }
        self.position.set(snapshot.end);
    }
}
