//! A cursor over a run in key order, with read-ahead.
//!
//! The cursor stands on a key or at the end. Moving within a part is synchronous; [`Cursor::load`] is awaited when the part changes.
//!
//! Invariants
//! - At most [`ReadAhead::parts`] reads are under way. Parts are delivered in order.
//!
//! Does not know: other cursors, bounds, views.

use std::collections::VecDeque;
use std::rc::Rc;

use super::{Run, key_part};
use crate::cache::{Admission, Block};
use crate::format::key_block::{Meta, meta_at, put_leb128};
use crate::reader::{BlockAt, ReadError, Reading, damaged, finish, start};
use crate::types::Seqno;

/// How far a cursor reads ahead, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadAhead {
    /// Key parts under way beyond the current one.
    pub parts: usize,
    /// Whether metadata parts are wanted too.
    pub metas: bool,
}

type PartReading = (usize, (BlockAt, Reading), Option<(BlockAt, Reading)>);

/// See the module.
pub struct Cursor {
    run: Rc<Run>,
    ahead: ReadAhead,
    reading: VecDeque<PartReading>,
    next_part: usize,
    current: Option<Rc<Block>>,
    metas: Option<Rc<Block>>,
    prefix: Vec<u8>,
    index: usize,
}

impl Cursor {
    /// A cursor that will stand on the first key at or above `key` (with prefix). Call [`Self::load`] first.
    #[must_use]
    pub fn new(run: Rc<Run>, key: &[u8], ahead: ReadAhead) -> Cursor {
        let next_part = run.part_of(key).unwrap_or(0);
        Cursor {
            run,
            ahead,
            reading: VecDeque::new(),
            next_part,
            current: None,
            metas: None,
            prefix: Vec::new(),
            index: 0,
        }
    }

    fn start_reads(&mut self) {
        while self.reading.len() <= self.ahead.parts && self.next_part < self.run.parts() {
            let keys = self.run.key_part_at(self.next_part);
            let metas = self.ahead.metas.then(|| self.run.meta_part_at(self.next_part));
            let space = self.run.space();
            let keys = (keys, start(space, &keys));
            let metas = metas.map(|metas| (metas, start(space, &metas)));
            self.reading.push_back((self.next_part, keys, metas));
            self.next_part += 1;
        }
    }

    /// Loads the next part if the cursor has left its part; false at the end.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub async fn load(&mut self) -> Result<bool, ReadError> {
        if self.has_key() {
            return Ok(true);
        }
        self.current = None;
        self.start_reads();
        let Some((_, (keys_at, keys), metas)) = self.reading.pop_front() else { return Ok(false) };
        let space = self.run.space();
        let block = finish(space, &keys_at, keys, Admission::FreeRoom).await?;
        self.metas = match metas {
            Some((at, reading)) => Some(finish(space, &at, reading, Admission::FreeRoom).await?),
            None => None,
        };
        self.prefix.clear();
        put_leb128(&mut self.prefix, key_part(&block).collection);
        self.current = Some(block);
        self.index = 0;
        self.start_reads();
        Ok(true)
    }

    /// Whether the cursor stands on a key; false before the first [`Self::load`] and when the part is used up.
    #[inline]
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.current.as_ref().is_some_and(|block| self.index < key_part(block).records as usize)
    }

    /// The current part, and the index in it. The cursor must stand on a key.
    ///
    /// # Panics
    /// If it does not.
    #[inline]
    #[must_use]
    pub fn part(&self) -> (&Rc<Block>, usize) {
        (self.current.as_ref().expect("the cursor stands on a key"), self.index)
    }

    /// Collection prefix of the current part's keys.
    #[inline]
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The current key without prefix.
    ///
    /// # Panics
    /// If the cursor does not stand on one.
    #[inline]
    #[must_use]
    pub fn key(&self) -> &[u8] {
        let (block, index) = self.part();
        key_part(block).key(&block.bytes, index)
    }

    /// Seqno of the current version, and whether it is a deletion.
    ///
    /// # Panics
    /// If the cursor does not stand on a key.
    #[inline]
    #[must_use]
    pub fn seqno(&self) -> (Seqno, bool) {
        let (block, index) = self.part();
        key_part(block).seqno(&block.bytes, index)
    }

    /// Metadata of the current version; the cursor was made to read it.
    ///
    /// # Errors
    /// `Damaged`.
    ///
    /// # Panics
    /// If it was not.
    pub fn meta(&self) -> Result<Meta, ReadError> {
        let metas = self.metas.as_ref().expect("the cursor reads metadata");
        meta_at(&metas.bytes, self.index)
            .map_err(|source| damaged(self.run.space(), self.run.fence(0).place, source))
    }

    /// Moves `count` keys on within the part.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        self.index += count;
    }

    /// Moves to the first key at or above `key` (with prefix) within the current part; false if the part is used up.
    pub fn seek_in_part(&mut self, key: &[u8]) -> bool {
        let Some(block) = &self.current else { return false };
        let part = key_part(block);
        self.index = match key.strip_prefix(&self.prefix[..]) {
            Some(logical) => part.lower_bound(&block.bytes, self.index, logical),
            None if self.prefix[..] < *key => part.records as usize,
            None => self.index,
        };
        self.index < part.records as usize
    }
}
