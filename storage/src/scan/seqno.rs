//! A scan in seqno order over a view: each key once, at its newest version not after the view's end; deletions included.
//!
//! On disk dead records are passed over by their marks. What is newer in the view's frozen memtables makes a record on disk dead too; they
//! are asked only as long as they are not flushed. From where the vbucket's window in memory begins, the scan reads that; the window
//! may move while it
//! does, and the scan goes back to disk and memory again, as often as need be.
//!
//! Invariants
//! - Seqnos rise strictly from call to call; no record is delivered twice and none is missed, also when a flush moves the contents or
//!   the window moves.
//!
//! Does not know: streams, framing, credit.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;

use crate::cache::Admission;
use crate::format::index::SeqlogFence;
use crate::format::seqlog_block::SeqlogRecord;
use crate::io::BLOCK_BYTES;
use crate::item::Item;
use crate::reader::{BlockAt, LONG_READ_BYTES_MAX, ReadError, Reading, damaged, finish, start_together};
use crate::seqlist::{BatchLimits, Progress};
use crate::seqlog::{Segment, seqlog_block};
use crate::types::{ItemMeta, Seqno};
use crate::vbstore::{Parts, ReadView, SeqnoReading, VbStore, ViewError};

/// Bytes of seqlog blocks read ahead, at most; the last block may exceed it. A scan begins with one long read, also after it was parked, and doubles
/// what it reads ahead each time it comes to read more: one that is often interrupted wastes little.
const AHEAD_BYTES_MAX: usize = 512 << 10;

/// A document as the scan shows it.
#[derive(Debug, Clone, Copy)]
pub struct SeqnoRecord<'a> {
    /// All but key and value.
    pub meta: ItemMeta,
    /// Key with its collection prefix.
    pub key: &'a [u8],
    /// Value.
    pub value: &'a [u8],
    /// The stored wire frame, if it comes from disk.
    pub frame: Option<&'a [u8]>,
}

impl<'a> From<&'a Item> for SeqnoRecord<'a> {
    fn from(item: &'a Item) -> SeqnoRecord<'a> {
        SeqnoRecord { meta: item.meta(), key: item.key(), value: item.value(), frame: None }
    }
}

impl<'a> From<SeqlogRecord<'a>> for SeqnoRecord<'a> {
    fn from(record: SeqlogRecord<'a>) -> SeqnoRecord<'a> {
        let SeqlogRecord { meta, key, value, frame } = record;
        SeqnoRecord { meta, key, value, frame: Some(frame) }
    }
}

struct Ahead {
    segment: Rc<Segment>,
    fence: SeqlogFence,
    at: BlockAt,
    reading: Reading,
}

/// See the module.
pub struct SeqnoScan {
    view: ReadView,
    next: Seqno,
    parts: Parts,
    epoch: u64,
    /// Next block to read: segment and fence.
    cursor: (usize, usize),
    /// Whether the cursor stands where `next` is.
    is_sought: bool,
    ahead: VecDeque<Ahead>,
    /// How much is read ahead next time.
    ahead_bytes_max: usize,
    /// What is in memory, for a scan that was opened together with its view.
    window: Option<SeqnoReading>,
    /// Versions taken from the window and not shown yet.
    batch: VecDeque<Item>,
    /// First and last seqno of the block that is being read.
    block: Option<(Seqno, Seqno)>,
    counts: SeqnoScanCounts,
}

/// Where the records of a scan came from.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SeqnoScanCounts {
    /// From the window in memory.
    pub from_memory: u64,
    /// From disk, or from memtables on their way there.
    pub from_disk: u64,
}

/// How a stretch in the window ended.
enum Window {
    /// At the view's end.
    End,
    /// The caller said stop.
    Stop,
    /// What comes next is not in the window: on disk.
    Elsewhere,
}

impl SeqnoScan {
    /// Opens a view of a vbucket, memory-only or on disk, and a scan of it from `from` on.
    ///
    /// # Errors
    /// `Failed`.
    pub async fn open(store: &VbStore, from: Seqno) -> Result<SeqnoScan, ViewError> {
        let (view, window) = store.open_view_from(from).await?;
        Ok(SeqnoScan::make(view, from, Some(window)))
    }

    /// A scan from `from` on over a view of a vbucket on disk that is open already.
    ///
    /// # Panics
    /// If the view is of a vbucket that lives in memory only: [`SeqnoScan::open`] reads that.
    #[must_use]
    pub fn new(view: ReadView, from: Seqno) -> SeqnoScan {
        assert!(!view.store().is_ephemeral(), "a view in key order keeps nothing in seqno order");
        SeqnoScan::make(view, from, None)
    }

    fn make(view: ReadView, from: Seqno, window: Option<SeqnoReading>) -> SeqnoScan {
        let (parts, epoch) = view.parts();
        SeqnoScan {
            view,
            next: from.max(Seqno(1)),
            parts,
            epoch,
            cursor: (0, 0),
            is_sought: false,
            ahead: VecDeque::new(),
            ahead_bytes_max: LONG_READ_BYTES_MAX,
            window,
            batch: VecDeque::new(),
            block: None,
            counts: SeqnoScanCounts::default(),
        }
    }

    /// The view that is scanned.
    #[must_use]
    pub fn view(&self) -> &ReadView {
        &self.view
    }

    /// The greatest purged tombstone when it was opened: a consumer that starts at or below it may have missed deletions (T4.11).
    #[must_use]
    pub fn purge_seqno(&self) -> Seqno {
        self.view.purge_seqno()
    }

    /// Where the records came from so far.
    #[must_use]
    pub fn counts(&self) -> SeqnoScanCounts {
        self.counts
    }

    /// The first seqno that a later call may deliver.
    #[must_use]
    pub fn position(&self) -> Seqno {
        self.next
    }

    /// Of a scan that has failed to read a block: from its first seqno that was not shown to its last.
    #[must_use]
    pub fn unreadable(&self) -> Option<(Seqno, Seqno)> {
        self.block.map(|(first, last)| (first.max(self.next), last))
    }

    /// Lets go of what was read ahead on disk; the next call reads it again. Versions taken from memory stay, for their reader has
    /// passed them.
    pub fn park(&mut self) {
        self.ahead = VecDeque::new();
        self.ahead_bytes_max = LONG_READ_BYTES_MAX;
        self.is_sought = false;
    }

    /// Waits until the block that comes next is there, for a caller that has no room for what is in it. Resolves only if it cannot be read (T3.15);
    /// else what was read stays for [`SeqnoScan::run`]. Looks at nothing but what was read ahead. May be dropped at any time.
    pub async fn failure_ahead(&mut self) -> ReadError {
        // What comes next may be in memory, or behind the end.
        let (next, end, is_on_disk) = (self.next, self.view.end(), self.is_sought && self.batch.is_empty());
        while self.ahead.front().is_some_and(|ahead| ahead.fence.last < next) {
            self.ahead.pop_front();
        }
        let is_wanted = |ahead: &&mut Ahead| is_on_disk && ahead.fence.first <= end;
        if let Some(ahead) = self.ahead.front_mut().filter(is_wanted) {
            poll_fn(|context| ahead.reading.poll_answered(context)).await;
            let Ahead { segment, fence, at, reading } = self.ahead.pop_front().expect("it was polled");
            // If this is dropped in a second read of the block, the block has to be looked for again.
            self.is_sought = false;
            let space = self.view.store().core().space().clone();
            match finish(&space, &at, reading, Admission::FreeRoom).await {
                Ok(block) => {
                    let reading = Reading::Hit(block);
                    self.ahead.push_front(Ahead { segment, fence, at, reading });
                    self.is_sought = true;
                }
                Err(error) => {
                    self.block = Some((fence.first, fence.last));
                    return error;
                }
            }
        }
        std::future::pending().await
    }

    fn seek(&mut self) {
        self.is_sought = true;
        self.ahead.clear();
        let segments = &self.parts.version.segments;
        let segment = segments.partition_point(|segment| segment.desc().last < self.next);
        let fence = segments
            .get(segment)
            .map_or(0, |segment| segment.fences().partition_point(|fence| fence.last < self.next));
        self.cursor = (segment, fence);
    }

    fn follow_view(&mut self) {
        if self.epoch != self.view.epoch() {
            (self.parts, self.epoch) = self.view.parts();
            self.is_sought = false;
        }
        if !self.is_sought {
            self.seek();
        }
    }

    fn next_fence(&mut self) -> Option<(Rc<Segment>, SeqlogFence)> {
        loop {
            let segment = self.parts.version.segments.get(self.cursor.0)?;
            if let Some(fence) = segment.fences().get(self.cursor.1) {
                self.cursor.1 += 1;
                return Some((segment.clone(), *fence));
            }
            self.cursor = (self.cursor.0 + 1, 0);
        }
    }

    /// Starts reads when there is room for a long one, so that neighbours are read together.
    fn read_ahead(&mut self) {
        let bytes = |at: &BlockAt| at.blocks as usize * BLOCK_BYTES;
        let mut ahead_bytes: usize = self.ahead.iter().map(|ahead| bytes(&ahead.at)).sum();
        if ahead_bytes + LONG_READ_BYTES_MAX > self.ahead_bytes_max && !self.ahead.is_empty() {
            return;
        }
        let ahead_bytes_max = self.ahead_bytes_max;
        self.ahead_bytes_max = (2 * ahead_bytes_max).min(AHEAD_BYTES_MAX);
        let mut next = Vec::new();
        while ahead_bytes < ahead_bytes_max {
            let Some((segment, fence)) = self.next_fence() else { break };
            let at = segment.block_at(&fence);
            ahead_bytes += bytes(&at);
            next.push((segment, fence, at));
        }
        let space = self.view.store().core().space();
        let readings = start_together(space, next.iter().map(|(_, _, at)| at));
        let ahead = next.into_iter().zip(readings);
        self.ahead.extend(ahead.map(|((segment, fence, at), reading)| Ahead { segment, fence, at, reading }));
    }

    /// Shows records to `visit` until it says stop (after the one it was shown) or the end; false at the end.
    ///
    /// # Errors
    /// `Io`, `Damaged`: nothing behind the last record shown is known.
    pub async fn run(&mut self, mut visit: impl FnMut(SeqnoRecord<'_>) -> bool) -> Result<bool, ReadError> {
        let purged = self.view.purge_seqno();
        loop {
            self.block = None;
            match self.run_window(&mut visit).await? {
                Window::End => return Ok(false),
                Window::Stop => return Ok(true),
                Window::Elsewhere => {}
            }
            self.follow_view();
            self.read_ahead();
            let Some(Ahead { segment, fence, at, reading }) = self.ahead.pop_front() else {
                return self.run_tables(&mut visit);
            };
            self.block = Some((fence.first, fence.last));
            let space = self.view.store().core().space().clone();
            let block = finish(&space, &at, reading, Admission::FreeRoom).await?;
            let shape = seqlog_block(&block);
            let damaged = |source| damaged(&space, at.place, source);
            let first = shape.lower_bound(&block.bytes, self.next).map_err(damaged)?;
            for index in first..shape.records as usize {
                let record = shape.record(&block.bytes, index).map_err(damaged)?;
                let seqno = record.meta.seqno;
                if seqno > self.view.end() {
                    return Ok(false);
                }
                self.next = seqno.next();
                let newer = || self.parts.frozen.iter().any(|table| table.supersedes(seqno));
                let is_purged = record.meta.kind.is_deleted() && seqno <= purged;
                if is_purged || segment.is_dead(seqno, self.view.end()) || newer() {
                    continue;
                }
                self.counts.from_disk += 1;
                if !visit(SeqnoRecord::from(record)) {
                    let reading = Reading::Hit(block.clone());
                    self.ahead.push_front(Ahead { segment: segment.clone(), fence, at, reading });
                    return Ok(true);
                }
            }
            self.view.store().core().env().relax().await;
        }
    }

    /// Reads on in the window, as long as it has what comes next.
    async fn run_window(
        &mut self,
        visit: &mut impl FnMut(SeqnoRecord<'_>) -> bool,
    ) -> Result<Window, ReadError> {
        let mut taken = Vec::new();
        loop {
            while let Some(item) = self.batch.pop_front() {
                self.next = item.seqno().next();
                self.counts.from_memory += 1;
                if !visit(SeqnoRecord::from(&item)) {
                    return Ok(Window::Stop);
                }
            }
            let Some(window) = &mut self.window else { return Ok(Window::Elsewhere) };
            window.skip_to(self.next);
            if window.resident_from() > self.next && self.next <= window.end() {
                return Ok(Window::Elsewhere);
            }
            let progress = window.next_batch(BatchLimits::default(), &mut taken);
            let position = window.position();
            self.batch.extend(taken.drain(..));
            match progress {
                Progress::More if self.batch.is_empty() => self.next = position,
                Progress::More => {}
                Progress::End if self.batch.is_empty() => return Ok(Window::End),
                Progress::End => {}
                Progress::Behind => return Ok(Window::Elsewhere),
                Progress::Gone => return Err(ReadError::Gone),
            }
            // What was read ahead on disk lies behind.
            self.is_sought = false;
            self.view.store().core().env().relax().await;
        }
    }

    fn run_tables(&mut self, visit: &mut impl FnMut(SeqnoRecord<'_>) -> bool) -> Result<bool, ReadError> {
        if self.view.store().has_ended() && !self.parts.frozen.is_empty() {
            return Err(ReadError::Gone);
        }
        let mut found = Vec::new();
        for (index, table) in self.parts.frozen.iter().enumerate() {
            let mut at = self.next;
            loop {
                let more = table.next_by_seqno(&mut at, &mut found);
                for item in found.drain(..) {
                    self.next = item.seqno().next();
                    let newer = &self.parts.frozen[index + 1..];
                    if newer.iter().any(|table| table.supersedes(item.seqno())) {
                        continue;
                    }
                    self.counts.from_disk += 1;
                    if !visit(SeqnoRecord::from(&item)) {
                        return Ok(true);
                    }
                }
                if !more {
                    break;
                }
            }
        }
        Ok(false)
    }
}
