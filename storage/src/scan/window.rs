//! A window of a scan in key order: some keys in a row, and where their documents are, in memory or in blocks of the seqlog.
//!
//! Neighbours by key are strangers by place, so their documents are read together: each block once, in order of place, all reads under way at
//! once.
//!
//! Invariants
//! - Who is popped was read before: a document comes from memory or from a block that is held.
//!
//! Cost: the blocks of its documents, held until the window is used up.
//! Does not know: limits, ranges, what is done with documents.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::SeqnoRecord;
use crate::cache::{Admission, Block};
use crate::format::FormatError;
use crate::format::block::peek_block;
use crate::item::Item;
use crate::reader::{BlockAt, ReadError, damaged, finish, start_together};
use crate::seqlog::{segment_of, seqlog_block};
use crate::types::Seqno;
use crate::vbstore::{Parts, ReadView};

/// A key of a window and its version.
pub(super) struct Candidate {
    /// With prefix.
    pub(super) key: Vec<u8>,
    pub(super) seqno: Seqno,
    /// Its document, if that is in memory.
    pub(super) item: Option<Item>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Window {
    candidates: VecDeque<Candidate>,
    /// Whether the blocks of its documents are held.
    is_read: bool,
    /// By the first seqno in them.
    blocks: BTreeMap<u64, Rc<Block>>,
}

impl Window {
    pub(super) fn len(&self) -> usize {
        self.candidates.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    pub(super) fn first(&self) -> Option<&Candidate> {
        self.candidates.front()
    }

    /// It is used up; another begins.
    pub(super) fn begin(&mut self) {
        self.is_read = false;
        self.blocks.clear();
    }

    pub(super) fn push(&mut self, candidate: Candidate) {
        self.candidates.push_back(candidate);
    }

    pub(super) fn pop(&mut self) -> Option<Candidate> {
        self.candidates.pop_front()
    }

    /// Lets go of documents and blocks; the keys stay.
    pub(super) fn forget_documents(&mut self) {
        for candidate in &mut self.candidates {
            candidate.item = None;
        }
        self.is_read = false;
        self.blocks = BTreeMap::new();
    }

    /// Reads the blocks of the documents that are not in memory: in order of place, all under way at once.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `Gone`.
    pub(super) async fn read(&mut self, view: &ReadView) -> Result<(), ReadError> {
        if self.is_read {
            return Ok(());
        }
        let mut places: BTreeMap<u64, (Seqno, BlockAt)> = BTreeMap::new();
        let (parts, _) = view.parts();
        for candidate in self.candidates.iter_mut().filter(|candidate| candidate.item.is_none()) {
            let Candidate { key, seqno, item } = candidate;
            let frozen = || parts.frozen.iter().filter_map(|table| table.get(key));
            *item = view.store().resident(key, *seqno);
            if item.is_none() {
                *item = frozen().find(|item| item.seqno() == *seqno).cloned();
            }
            if item.is_none()
                && let Some(memory) = &parts.memory
            {
                *item = memory.get(key)?;
            }
            if item.is_none()
                && let Some((first, at)) = place_of(&parts, *seqno)
            {
                places.insert(at.place, (first, at));
            }
        }
        let space = view.store().core().space().clone();
        let readings = start_together(&space, places.values().map(|(_, at)| at));
        for ((first, at), reading) in places.into_values().zip(readings) {
            let block = finish(&space, &at, reading, Admission::FreeRoom).await?;
            self.blocks.insert(first.0, block);
        }
        self.is_read = true;
        Ok(())
    }

    /// The document of a candidate that was popped.
    ///
    /// # Errors
    /// `Damaged`: no block holds it.
    #[inline]
    pub(super) fn record<'a>(
        &'a self,
        view: &ReadView,
        candidate: &'a Candidate,
    ) -> Result<SeqnoRecord<'a>, ReadError> {
        match &candidate.item {
            Some(item) => Ok(SeqnoRecord::from(item)),
            None => self.record_in_block(view, candidate),
        }
    }

    fn record_in_block(&self, view: &ReadView, candidate: &Candidate) -> Result<SeqnoRecord<'_>, ReadError> {
        let space = view.store().core().space();
        let missing = |place| {
            let source = FormatError::Invalid {
                what: "seqlog",
                field: "seqno",
                found: candidate.seqno.0,
                rule: "a run points to it, so a block holds it",
            };
            damaged(space, place, source)
        };
        let block = self.blocks.range(..=candidate.seqno.0).next_back();
        let Some((_, block)) = block else { return Err(missing(0)) };
        let record = seqlog_block(block).find(&block.bytes, candidate.seqno);
        let place = || peek_block(&block.bytes).map_or(0, |(_, header)| header.place);
        match record.map_err(|source| damaged(space, place(), source))? {
            Some(record) if *record.key == candidate.key[..] => Ok(SeqnoRecord::from(record)),
            _ => Err(missing(place())),
        }
    }
}

/// The block in which the document with this seqno lies: its first seqno and its place.
pub(super) fn place_of(parts: &Parts, seqno: Seqno) -> Option<(Seqno, BlockAt)> {
    let segment = segment_of(&parts.version.segments, seqno)?;
    let fence = segment.fence_of(seqno)?;
    Some((fence.first, segment.block_at(fence)))
}
