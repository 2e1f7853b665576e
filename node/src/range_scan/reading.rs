//! Continuing a scan: the task that fills buffers, one after the other, as long as there is credit.
//!
//! Invariants
//! - The task changes no state; it reports (T5.9).
//! - A buffer is taken only with credit: one being filled and those under way are at most [`BUFFERS_MAX`](super::BUFFERS_MAX).
//! - The limits are made once for a continue and go on over its buffers (T5.6).
//! - When the scan ends, the task lets go of buffer and snapshot as soon as it runs.
//!
//! Cost: one task a continue; a turn, a buffer and a report each buffer.
//! Does not know: sockets, other scans.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt;
use futures_lite::future::or;
use ringbase_storage::env::LocalFuture;
use ringbase_storage::scan::{KeyScan, Limits, Stop};
use tracing::Instrument;

use super::buffer::HEAD_ROOM;
use super::frame::{FrameSink, ScanFrame};
use super::registry::{RangeScans, Report, ScanCore, UNKNOWN, Verdict};
use super::scan::{ConnectionId, Progress, SPANS, Scan, VbAddress, Waiting};
use super::state::ScanState;
use crate::protocol::key::LOGICAL_KEY_BYTES_MAX;
use crate::protocol::range_scan::RangeScanContinue;
use crate::protocol::scan_records::{RecordKind, key_record_bytes};
use crate::protocol::{Refusal, Status};

/// A scan that waits longer than this for credit lets go of everything but its position.
const PARK_AFTER: Duration = Duration::from_millis(50);

impl RangeScans {
    /// Continues a scan: frames go to `sink`, the last one is final. Refusals (NOT_MY_VBUCKET, KEY_ENOENT, EBUSY, EINTERNAL) are final frames, too.
    pub fn continue_scan(
        &self,
        at: VbAddress,
        connection: ConnectionId,
        request: RangeScanContinue,
        sink: Rc<dyn FrameSink>,
    ) {
        let core = &self.core;
        let (scan, reader) = match core.start(at, &request) {
            Ok(started) => started,
            Err(refusal) => {
                let head = core.pool.head_only();
                return sink.send(ScanFrame::without_records(refusal.status, RecordKind::Keys, head));
            }
        };
        let started_ns = core.now();
        let limit = |limit: u32| (limit > 0).then_some(u64::from(limit));
        let deadline_ns = limit(request.time_limit_ms).map(|ms| started_ns + ms * 1_000_000);
        let limits = Limits {
            buffer_bytes: 0,
            items: limit(request.item_limit),
            bytes: limit(request.byte_limit),
            deadline_ns,
        };
        scan.lend(connection);
        let span = tracing::debug_span!(
            target: SPANS,
            "range_scan_continue",
            vb = at.vb.0,
            scan = %scan.id,
            records = tracing::field::Empty,
            bytes = tracing::field::Empty,
            result = tracing::field::Empty
        );
        *scan.waiting.borrow_mut() = Some(Waiting { sink, connection, started_ns, span: span.clone() });
        scan.continues.set(scan.continues.get() + 1);
        scan.progress.set(Some(Progress { request, deadline_ns, from: scan.counts.get() }));
        let core = core.clone();
        core.env.clone().spawn("range scan continue", run(core, scan, reader, limits).instrument(span));
    }
}

impl ScanCore {
    /// Makes an Idle scan Continuing and hands its reader out.
    fn start(&self, at: VbAddress, request: &RangeScanContinue) -> Result<(Rc<Scan>, KeyScan), Refusal> {
        let scan = self.find(at, request.id);
        let is_active = self.vbuckets.active(at).is_some();
        if let Some(scan) = &scan
            && let Some(status) = self.obstacle(scan)
        {
            // Its snapshot is of a branch that is no longer served, or its collection was dropped: it can never go on.
            self.end(scan, ScanState::Cancelled, Some(status));
            return Err(Refusal::new(status, ""));
        }
        if !is_active {
            return Err(Refusal::new(Status::NOT_MY_VBUCKET, ""));
        }
        let scan = scan.ok_or(UNKNOWN)?;
        if scan.is_continuing() {
            return Err(Refusal::new(Status::EBUSY, "The range scan is being continued"));
        }
        let internal = Refusal::new(Status::EINTERNAL, "The range scan is in no state to continue");
        self.change(&scan, ScanState::Continuing).map_err(|_| internal)?;
        let reader = scan.reader.borrow_mut().take();
        match reader {
            Some(reader) => Ok((scan, reader)),
            None => {
                debug_assert!(false, "an idle scan has its reader");
                self.end(&scan, ScanState::Cancelled, None);
                Err(internal)
            }
        }
    }

    /// Room for a buffer of this continue: what the size of a buffer and the limits allow, and one record.
    fn room(&self, scan: &Scan, limits: &Limits) -> usize {
        let key_bytes = key_record_bytes(LOGICAL_KEY_BYTES_MAX) as u64;
        let mut bytes = self.settings.send_size.get().bytes() as u64;
        if let Some(left) = limits.bytes {
            bytes = bytes.min(left);
        }
        if let (RecordKind::Keys, Some(items)) = (scan.described.kind, limits.items) {
            bytes = bytes.min(items.saturating_mul(key_bytes));
        }
        (bytes + key_bytes) as usize
    }
}

/// Fills buffers until the registry says stop.
async fn run(core: Rc<ScanCore>, scan: Rc<Scan>, mut reader: KeyScan, mut limits: Limits) {
    let mut parking = Parking::default();
    loop {
        if !parking.wait_for_credit(&core, &scan, &mut reader).await {
            return;
        }
        let turn = core.turns.take(|| core.settings.readers_max(), || scan.is_continuing()).await;
        scan.queued.set(false);
        let Some(turn) = turn else { return };
        let report = match core.fill(&scan, &mut reader, &mut limits).await {
            Some(report) => report,
            None => return,
        };
        drop(turn);
        let report = match report {
            Filled::Report(report @ Report::Full(_)) => report,
            Filled::Limit(buffer) => {
                core.report(&scan, Report::More(buffer, Box::new(reader)));
                return;
            }
            Filled::Report(last) => {
                // The snapshot is released before the answer goes out.
                drop(reader);
                core.report(&scan, last);
                return;
            }
        };
        if core.report(&scan, report) == Verdict::Stop {
            return;
        }
    }
}

/// What came of filling one buffer.
enum Filled {
    /// A limit: the reader goes back with the buffer.
    Limit(super::buffer::ScanBuffer),
    /// Anything else.
    Report(Report),
}

impl ScanCore {
    /// Fills one buffer; `None` if the scan ended meanwhile.
    async fn fill(&self, scan: &Scan, reader: &mut KeyScan, limits: &mut Limits) -> Option<Filled> {
        let Ok((mut buffer, is_reused)) = self.pool.take(self.room(scan, limits)) else {
            return Some(Filled::Report(Report::NoMemory));
        };
        match is_reused {
            true => self.metrics.buffers_reused.add(1),
            false => self.metrics.buffers_allocated.add(1),
        }
        let span = tracing::debug_span!(
            target: SPANS,
            "range_scan_fill",
            vb = scan.at.vb.0,
            scan = %scan.id,
            state = ?scan.state.get(),
            records = tracing::field::Empty,
            bytes = tracing::field::Empty,
            result = tracing::field::Empty
        );
        let started_ns = self.now();
        let before = reader.counts();
        limits.buffer_bytes = HEAD_ROOM + self.settings.send_size.get().bytes();
        let ended = async {
            scan.changed.until(|| !scan.is_continuing()).await;
            None
        };
        let filling = AssertUnwindSafe(reader.fill(buffer.vec(), limits)).catch_unwind();
        let outcome = or(ended, async { Some(filling.await) }).instrument(span.clone()).await;
        buffer.recount();
        let counts = reader.counts();
        scan.counts.set(counts);
        span.record("records", counts.records - before.records);
        span.record("bytes", counts.bytes - before.bytes);
        let result = match &outcome {
            None => "cancelled",
            Some(Err(_)) => "panic",
            Some(Ok(Err(_))) => "failed",
            Some(Ok(Ok(Stop::BufferFull))) => "buffer full",
            Some(Ok(Ok(Stop::Limit))) => "limit",
            Some(Ok(Ok(Stop::End))) => "end",
        };
        span.record("result", result);
        let stop = match outcome? {
            Err(_panic) => return Some(Filled::Report(Report::Panicked)),
            Ok(Err(error)) => return Some(Filled::Report(Report::Failed(error))),
            Ok(Ok(stop)) => stop,
        };
        self.metrics.fill_ns.record(self.now() - started_ns);
        self.metrics.buffer_bytes.record(counts.bytes - before.bytes);
        self.metrics.buffer_records.record(counts.records - before.records);
        scan.exceeded_buffer.set(stop == Stop::BufferFull);
        Some(match stop {
            Stop::BufferFull => Filled::Report(Report::Full(buffer)),
            Stop::Limit => Filled::Limit(buffer),
            Stop::End => Filled::Report(Report::Complete(buffer)),
        })
    }
}

/// Waiting for credit. One timer serves many short waits.
#[derive(Default)]
struct Parking {
    timer: Option<LocalFuture<'static, ()>>,
}

impl Parking {
    /// Waits until one more buffer may be filled; false if the scan ended. A long wait parks the reader (DESIGN "Parking").
    async fn wait_for_credit(&mut self, core: &ScanCore, scan: &Scan, reader: &mut KeyScan) -> bool {
        let is_over = || !scan.is_continuing() || scan.has_credit();
        scan.queued.set(true);
        let since_ns = core.now();
        while !is_over() {
            let timer = self.timer.get_or_insert_with(|| core.env.spawn.sleep(PARK_AFTER));
            let changed = async {
                scan.changed.until(is_over).await;
                false
            };
            let timed_out = or(changed, async {
                timer.await;
                true
            });
            if timed_out.await {
                self.timer = None;
                if core.now() - since_ns >= PARK_AFTER.as_nanos() as u64 {
                    reader.park();
                    scan.changed.until(is_over).await;
                }
            }
        }
        scan.is_continuing()
    }
}
