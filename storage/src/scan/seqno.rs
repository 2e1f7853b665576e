//! A scan in seqno order over a view: each key once, at its newest version not after the view's end; deletions included.
//!
//! On disk dead records are passed over by their marks. What is newer in the view's frozen memtables makes a record on disk dead too; they
//! are asked only as long as they are not flushed.
//!
//! Invariants
//! - Seqnos rise strictly from call to call; no record is delivered twice, also when a flush moves the contents.
//!
//! Does not know: streams, framing, credit.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::cache::Admission;
use crate::format::index::SeqlogFence;
use crate::item::Item;
use crate::reader::{BlockAt, ReadError, Reading, damaged, finish, start};
use crate::seqlog::{Segment, seqlog_block};
use crate::types::{ItemMeta, Seqno};
use crate::vbstore::{Parts, ReadView};

/// Seqlog blocks read ahead.
const BLOCKS_AHEAD: usize = 16;

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

struct Ahead {
    segment: Rc<Segment>,
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
    ahead: VecDeque<Ahead>,
}

impl SeqnoScan {
    /// A scan from `from` on.
    #[must_use]
    pub fn new(view: ReadView, from: Seqno) -> SeqnoScan {
        let (parts, epoch) = view.parts();
        let mut scan = SeqnoScan { view, next: from, parts, epoch, cursor: (0, 0), ahead: VecDeque::new() };
        scan.seek();
        scan
    }

    /// The first seqno that a later call may deliver.
    #[must_use]
    pub fn position(&self) -> Seqno {
        self.next
    }

    fn seek(&mut self) {
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

    fn read_ahead(&mut self) {
        while self.ahead.len() < BLOCKS_AHEAD {
            let Some((segment, fence)) = self.next_fence() else { return };
            let at = segment.block_at(&fence);
            let reading = start(self.view.store().core().space(), &at);
            self.ahead.push_back(Ahead { segment, at, reading });
        }
    }

    /// Shows records to `visit` until it says stop (after the one it was shown) or the end; false at the end.
    ///
    /// # Errors
    /// `Io`, `Damaged`: nothing behind the last record shown is known.
    pub async fn run(&mut self, mut visit: impl FnMut(SeqnoRecord<'_>) -> bool) -> Result<bool, ReadError> {
        loop {
            self.follow_view();
            self.read_ahead();
            let Some(Ahead { segment, at, reading }) = self.ahead.pop_front() else {
                return Ok(self.run_tables(&mut visit));
            };
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
                let newer = || self.parts.frozen.iter().any(|table| table.get(record.key).is_some());
                if segment.is_dead(seqno, self.view.end()) || newer() {
                    continue;
                }
                let shown = SeqnoRecord {
                    meta: record.meta,
                    key: record.key,
                    value: record.value,
                    frame: Some(record.frame),
                };
                if !visit(shown) {
                    let reading = Reading::Hit(block.clone());
                    self.ahead.push_front(Ahead { segment: segment.clone(), at, reading });
                    return Ok(true);
                }
            }
            self.view.store().core().env().relax().await;
        }
    }

    fn run_tables(&mut self, visit: &mut impl FnMut(SeqnoRecord<'_>) -> bool) -> bool {
        for (index, table) in self.parts.frozen.iter().enumerate() {
            for item in table.range_by_seqno(self.next) {
                self.next = item.seqno().next();
                let newer = &self.parts.frozen[index + 1..];
                if newer.iter().any(|table| table.get(item.key()).is_some()) {
                    continue;
                }
                if !visit(SeqnoRecord::from(item)) {
                    return true;
                }
            }
        }
        false
    }
}
