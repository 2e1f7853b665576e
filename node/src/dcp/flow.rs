//! The marks that a stream leaves in a trace: from its request, over its waits, reads and pieces, to the client's acknowledgement.
//!
//! | mark | where | says |
//! |---|---|---|
//! | `dcp_stream_request`, `dcp_stream_opened` | connection's core, vbucket's core | asked for; accepted, its task is scheduled |
//! | `dcp_wait`, `dcp_poll` | vbucket's core | all time of the stream's task: what it waits for, when it runs |
//! | `dcp_backfill`, `dcp_scan_open`, `dcp_backfill_run` (`stream`), `device_read` inside | vbucket's core | slot to end, creation, runs, reads |
//! | `dcp_memory_snapshot`, `dcp_scan_open`, `dcp_memory_run` (`stream`) | vbucket's core | a snapshot of memory from begin to end, the reader in it, runs |
//! | `dcp_piece_queued`, `dcp_piece_written`, `dcp_acked` | connection's core | handed over, taken by the kernel, given back by the client |
//!
//! Invariants
//! - Every mark has the stream's number as its `flow` (T1.13), by which the log and the statistics name it too (T1.14). No number is 0.
//! - `dcp_wait` and `dcp_poll` of a stream take turns, each beginning before the other ends; they are the account of [`super::time`], one
//!   wait at a time.
//!
//! Cost: nothing is made while nobody records. Recording, two spans a poll of a stream's task, an event a piece.
//! Does not know: who records, how it is shown.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;

use ringbase_storage::types::VbId;
use tracing::{Level, Span};

use super::piece::{StreamNumber, StreamSpec};
use super::stream::Stream;
use super::time::Spent;

/// The target of the marks.
const MARKS: &str = "ringbase::dcp";

/// Pieces that are remembered until the client gives their bytes back, at most.
const UNACKED_MAX: usize = 4096;

/// A client asks for a stream.
pub fn requested(spec: &StreamSpec) {
    tracing::event!(
        name: "dcp_stream_request",
        target: MARKS,
        Level::DEBUG,
        flow = spec.number.0,
        vb = spec.envelope.vbucket.0,
        conn = &*spec.name,
        start = spec.request.start.0,
        end = spec.request.end.0
    );
}

/// The stream is accepted; its task will run.
pub(super) fn opened(spec: &StreamSpec) {
    tracing::event!(
        name: "dcp_stream_opened",
        target: MARKS,
        Level::DEBUG,
        flow = spec.number.0,
        vb = spec.envelope.vbucket.0,
        conn = &*spec.name,
        start = spec.request.start.0,
        end = spec.request.end.0,
        "stream opened"
    );
}

/// A piece waits to be sent.
pub fn queued(number: StreamNumber, vb: VbId, bytes: usize, items: u32, is_last: bool) {
    tracing::event!(
        name: "dcp_piece_queued",
        target: MARKS,
        Level::DEBUG,
        flow = number.0,
        vb = vb.0,
        bytes,
        items,
        is_last
    );
}

/// The kernel has taken a piece, or a copy of it is on its way there; its buffer goes home.
pub fn written(number: StreamNumber, vb: VbId, bytes: usize) {
    tracing::event!(name: "dcp_piece_written", target: MARKS, Level::DEBUG, flow = number.0, vb = vb.0, bytes);
}

/// Whose bytes a client gives back. Remembers what is sent while somebody records.
#[derive(Debug, Default)]
pub struct Unacked {
    /// Streams and bytes in the order of sending.
    sent: VecDeque<(StreamNumber, u64)>,
}

impl Unacked {
    /// Bytes of a stream leave in a window.
    pub fn sent(&mut self, number: StreamNumber, bytes: usize) {
        if !tracing::enabled!(target: MARKS, Level::DEBUG) {
            return self.sent.clear();
        }
        if self.sent.len() == UNACKED_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((number, bytes as u64));
    }

    /// The client gives bytes back, the oldest first.
    pub fn acked(&mut self, bytes: u32) {
        let mut rest = u64::from(bytes);
        while rest > 0
            && let Some((number, bytes)) = self.sent.front_mut()
        {
            let acked = rest.min(*bytes);
            tracing::event!(name: "dcp_acked", target: MARKS, Level::DEBUG, flow = number.0, bytes = acked);
            rest -= acked;
            *bytes -= acked;
            if *bytes == 0 {
                self.sent.pop_front();
            }
        }
    }
}

/// A wait of a stream's task.
struct Wait {
    span: Span,
    /// Nanoseconds at its beginning that window and socket had cost.
    before: (u64, u64),
}

impl Wait {
    fn begin(stream: &Stream) -> Wait {
        let span = tracing::debug_span!(
            target: MARKS,
            parent: None,
            "dcp_wait",
            flow = stream.spec.number.0,
            vb = stream.spec.envelope.vbucket.0,
            conn = &*stream.spec.name,
            what = stream.time.waits_for_now().name(),
            window_ns = tracing::field::Empty,
            socket_ns = tracing::field::Empty
        );
        let before = if span.is_disabled() { (0, 0) } else { lost(stream) };
        Wait { span, before }
    }

    /// What of it the client's window was closed, what of it its socket was full, is said at the end.
    fn end(&mut self, stream: &Stream) {
        if !self.span.is_disabled() {
            let (window_ns, socket_ns) = lost(stream);
            self.span.record("window_ns", window_ns - self.before.0);
            self.span.record("socket_ns", socket_ns - self.before.1);
            self.span = Span::none();
        }
    }
}

/// What window and socket have cost a stream so far.
fn lost(stream: &Stream) -> (u64, u64) {
    let sums = stream.time.sums(stream.now_ns());
    (sums[Spent::Window as usize].1, sums[Spent::Socket as usize].1)
}

/// Runs a stream's task, and accounts for every moment of it from now on.
pub(super) fn accounted(stream: Rc<Stream>, task: impl Future<Output = ()>) -> impl Future<Output = ()> {
    let mut wait = Wait::begin(&stream);
    async move {
        let mut task = pin!(task);
        poll_fn(|context| {
            let times = &stream.core.metrics.spent;
            stream.time.runs(stream.now_ns(), times);
            let polling = tracing::debug_span!(
                target: MARKS,
                parent: None,
                "dcp_poll",
                flow = stream.spec.number.0,
                vb = stream.spec.envelope.vbucket.0,
                conn = &*stream.spec.name
            );
            let polling = polling.entered();
            wait.end(&stream);
            let polled = task.as_mut().poll(context);
            let is_sending = !stream.under_way.borrow().is_empty();
            stream.time.pauses(stream.now_ns(), is_sending, times);
            if polled.is_pending() {
                wait = Wait::begin(&stream);
            }
            drop(polling);
            polled
        })
        .await;
    }
}
