//! A scan in key order over one collection of a view: keys as they lie in the key columns, or documents.
//!
//! Documents are read a window at a time: the keys of the window are gathered, their blocks read in order of place with many reads under way,
//! then the documents leave in key order. What is resident needs no read.
//!
//! Invariants
//! - The buffer is tested after each record: it exceeds the bound by at most one record (T5.4).
//! - Each call delivers at least one record unless the end or an error is reached (T5.2).
//! - The end is the end of what the view shows: a scan of memory that was let go of meanwhile ends with an error.
//!
//! Does not know: who asks, the wire's document record (an encoder is an argument).

use std::collections::BTreeSet;
use std::rc::Rc;

use super::SeqnoRecord;
use super::merge::{CopyBounds, Merge, Stretch};
use super::window::{Candidate, Window, place_of};
use crate::cache::Block;
use crate::collections::{Subject, event_key};
use crate::format::key_block::{KeyPart, put_leb128};
use crate::item::Item;
use crate::reader::ReadError;
use crate::run::key_part;
use crate::types::ItemMeta;
use crate::vbstore::ReadView;

/// Documents gathered for one window.
pub(super) const WINDOW_RECORDS: usize = 256;

/// Keys that are copied before the clock is looked at.
const COPY_RECORDS: usize = 256;

/// Keys of one source in a row from which on they are taken as a stretch.
pub(super) const ONE_SIDED: usize = 32;

/// Bytes of blocks read for one window; one block may exceed it.
const WINDOW_BYTES: usize = 4 << 20;

/// Which keys: of one collection, from a start to an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// LEB128 form of the collection id.
    pub prefix: Vec<u8>,
    /// First key, without prefix.
    pub start: Vec<u8>,
    /// Whether the start itself is left out.
    pub start_exclusive: bool,
    /// Last key, without prefix; `None` for no end.
    pub end: Option<Vec<u8>>,
    /// Whether the end itself is left out.
    pub end_exclusive: bool,
}

impl KeyRange {
    /// All keys of a collection.
    #[must_use]
    pub fn collection(id: u32) -> KeyRange {
        let mut prefix = Vec::new();
        put_leb128(&mut prefix, id);
        KeyRange { prefix, start: Vec::new(), start_exclusive: false, end: None, end_exclusive: false }
    }

    /// The one key under which the newest event about `subject` is stored.
    #[must_use]
    pub fn event(subject: Subject) -> KeyRange {
        let key = event_key(subject);
        let (prefix, rest) = key.split_at(1);
        let (start, end) = (rest.to_vec(), Some(rest.to_vec()));
        KeyRange { prefix: prefix.to_vec(), start, start_exclusive: false, end, end_exclusive: false }
    }

    pub(super) fn first_key(&self) -> Vec<u8> {
        [&self.prefix[..], &self.start].concat()
    }

    /// How many keys of a part, from its beginning, are not behind the end.
    pub(super) fn end_in(&self, part: &KeyPart, bytes: &[u8]) -> usize {
        let Some(end) = &self.end else { return part.records as usize };
        let index = part.lower_bound(bytes, 0, end);
        let is_end = index < part.records as usize && part.key(bytes, index) == end;
        index + usize::from(is_end && !self.end_exclusive)
    }

    /// Whether a key (with prefix) that is not below the start lies in the range.
    pub(super) fn contains_from_start(&self, key: &[u8]) -> bool {
        let Some(logical) = key.strip_prefix(&self.prefix[..]) else { return false };
        match &self.end {
            None => true,
            Some(end) if self.end_exclusive => logical < &end[..],
            Some(end) => logical <= &end[..],
        }
    }
}

/// Appends one document record: metadata, key without prefix, value.
pub type DocumentEncoder = Rc<dyn Fn(&mut Vec<u8>, &ItemMeta, &[u8], &[u8])>;

/// Decides whether a key (without prefix) is wanted; asked once for each live key, in order.
pub type Select = Box<dyn FnMut(&[u8]) -> bool>;

/// What a scan delivers.
#[derive(Clone)]
pub enum Content {
    /// Per key its length as LEB128 and its bytes without prefix.
    Keys,
    /// What the encoder appends.
    Documents(DocumentEncoder),
}

/// When a call returns. Items, bytes and deadline go on over calls; the caller makes new ones for each request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The buffer is full at this length.
    pub buffer_bytes: usize,
    /// Records still allowed.
    pub items: Option<u64>,
    /// Bytes of records still allowed; reaching it stops.
    pub bytes: Option<u64>,
    /// Monotonic nanoseconds.
    pub deadline_ns: Option<u64>,
}

/// Why a call returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The buffer is full; more may follow.
    BufferFull,
    /// A limit was reached; more may follow.
    Limit,
    /// There is nothing more.
    End,
}

/// What a scan has delivered so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ScanCounts {
    /// Records delivered.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Documents taken from memory.
    pub from_memory: u64,
    /// Documents read from blocks.
    pub from_disk: u64,
}

/// See the module.
pub struct KeyScan {
    view: ReadView,
    range: KeyRange,
    content: Content,
    select: Option<Select>,
    merge: Option<Merge>,
    epoch: u64,
    /// A stretch that is not used up, at `from`.
    stretch: Option<(Rc<Block>, usize, usize)>,
    /// Many keys in a row came from one source: a stretch is cheaper than a copy key by key.
    one_sided: bool,
    window: Window,
    window_bytes: usize,
    with_deletions: bool,
    ended: bool,
    /// It looks at a view that another scan reads from the beginning.
    is_probe: bool,
    counts: ScanCounts,
}

impl KeyScan {
    /// A scan of `range` in `view`.
    ///
    /// # Panics
    /// If the view is of a vbucket that lives in memory only and was opened to be read in seqno order.
    #[must_use]
    pub fn new(view: ReadView, range: KeyRange, content: Content, select: Option<Select>) -> KeyScan {
        assert!(view.is_in_key_order(), "a view in seqno order keeps nothing in key order");
        KeyScan {
            epoch: view.epoch(),
            view,
            range,
            content,
            select,
            merge: None,
            stretch: None,
            one_sided: false,
            window: Window::default(),
            window_bytes: WINDOW_BYTES,
            with_deletions: false,
            ended: false,
            is_probe: false,
            counts: ScanCounts::default(),
        }
    }

    /// A scan of the newest versions of the keys of `range`, deletions among them, for [`KeyScan::run`]; at most about `window_bytes` of blocks are
    /// read at once.
    pub(super) fn of_versions(view: ReadView, range: KeyRange, window_bytes: usize) -> KeyScan {
        // What `fill` would write.
        let scan = KeyScan::new(view, range, Content::Keys, None);
        KeyScan { window_bytes, with_deletions: true, ..scan }
    }

    /// The view it reads.
    #[must_use]
    pub fn view(&self) -> &ReadView {
        &self.view
    }

    /// What it has delivered.
    #[must_use]
    pub fn counts(&self) -> ScanCounts {
        self.counts
    }

    /// Lets go of everything but the position and the view. Keys that were selected but not delivered stay, for nobody is asked twice.
    pub fn park(&mut self) {
        if self.select.is_some() {
            self.window.forget_documents();
        } else {
            if let Some(first) = self.window.first() {
                self.range.start = first.key[self.range.prefix.len()..].to_vec();
                self.range.start_exclusive = false;
                self.ended = false;
            }
            self.window = Window::default();
        }
        self.merge = None;
        self.stretch = None;
    }

    /// Whether the range holds a live key.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `Gone`.
    pub async fn has_any(view: &ReadView, range: &KeyRange) -> Result<bool, ReadError> {
        let mut probe = KeyScan::new(view.clone(), range.clone(), Content::Keys, None);
        probe.is_probe = true;
        let mut limits = Limits { buffer_bytes: 0, items: Some(1), bytes: None, deadline_ns: None };
        let mut out = Vec::new();
        probe.fill(&mut out, &mut limits).await?;
        Ok(probe.counts.records > 0)
    }

    /// Appends records to `out` until it is full, a limit or the end is reached.
    ///
    /// # Errors
    /// `Io`, `Damaged`; `Gone`, if the view is of memory that was let go of: the scan is over; what `out` holds is valid but must not be taken for
    /// complete.
    pub async fn fill(&mut self, out: &mut Vec<u8>, limits: &mut Limits) -> Result<Stop, ReadError> {
        let result = match self.content.clone() {
            Content::Keys => self.fill_keys(out, limits).await,
            Content::Documents(encode) => self.fill_documents(out, limits, &encode).await,
        };
        if !self.is_probe {
            self.view.passed(&self.next_key());
        }
        if !matches!(result, Ok(Stop::BufferFull)) {
            self.park();
        }
        result
    }

    /// The merge over where the view's contents lie now.
    fn merge(&mut self) -> &mut Merge {
        if self.merge.is_none() || self.epoch != self.view.epoch() {
            let (parts, epoch) = self.view.parts();
            self.epoch = epoch;
            let env = self.view.store().core().env().clone();
            self.merge = Some(Merge::new(env, self.range.clone(), &parts));
        }
        self.merge.as_mut().expect("made above")
    }

    /// No key below this one (with prefix) is delivered any more.
    fn next_key(&self) -> Vec<u8> {
        if let Some(first) = self.window.first() {
            return first.key.clone();
        }
        let mut key = self.range.first_key();
        if self.range.start_exclusive {
            key.push(0);
        }
        key
    }

    /// Everything up to this key has left the merge.
    fn passed(&mut self, key: &[u8]) {
        self.range.start.clear();
        self.range.start.extend_from_slice(key);
        self.range.start_exclusive = true;
    }

    fn now(&self) -> u64 {
        self.view.store().core().env().clock.monotonic_ns()
    }

    /// Whether records or bytes are used up.
    fn is_full(out: &[u8], limits: &Limits) -> Option<Stop> {
        if limits.items == Some(0) || limits.bytes == Some(0) {
            return Some(Stop::Limit);
        }
        (out.len() >= limits.buffer_bytes).then_some(Stop::BufferFull)
    }

    /// Whether to stop, the time included; never before a record was delivered, of which there were `before` when the call began.
    fn stop_since(&self, before: u64, out: &[u8], limits: &Limits) -> Option<Stop> {
        if self.counts.records == before {
            return None;
        }
        match KeyScan::is_full(out, limits) {
            Some(Stop::Limit) => Some(Stop::Limit),
            _ if limits.deadline_ns.is_some_and(|deadline| self.now() >= deadline) => Some(Stop::Limit),
            full => full,
        }
    }

    fn count(&mut self, limits: &mut Limits, records: usize, bytes: usize) {
        self.counts.records += records as u64;
        self.counts.bytes += bytes as u64;
        limits.items = limits.items.map(|items| items.saturating_sub(records as u64));
        limits.bytes = limits.bytes.map(|left| left.saturating_sub(bytes as u64));
    }

    async fn fill_keys(&mut self, out: &mut Vec<u8>, limits: &mut Limits) -> Result<Stop, ReadError> {
        let mut rounds = 0u32;
        let before = self.counts.records;
        loop {
            if self.copy_keys(out, limits) {
                if let Some(stop) = self.stop_since(before, out, limits) {
                    return Ok(stop);
                }
                self.relax(0).await;
                continue;
            }
            let (block, from, to) = match self.stretch.take() {
                Some(stretch) => stretch,
                None => match self.next_stretch().await? {
                    None => {
                        self.ended = true;
                        return Ok(Stop::End);
                    }
                    Some(Stretch::Item(item)) => {
                        self.take_item_key(&item, out, limits);
                        rounds += 1;
                        if let Some(stop) = self.stop_since(before, out, limits) {
                            return Ok(stop);
                        }
                        self.relax(rounds).await;
                        continue;
                    }
                    Some(Stretch::Part { block, from, to }) => (block, from, to),
                },
            };
            self.one_sided = to - from >= ONE_SIDED;
            let taken = self.take_keys(&block, from, to, out, limits);
            self.passed(key_part(&block).key(&block.bytes, taken - 1));
            if taken < to {
                self.stretch = Some((block, taken, to));
            }
            rounds += 1;
            if let Some(stop) = self.stop_since(before, out, limits) {
                return Ok(stop);
            }
            self.relax(rounds).await;
        }
    }

    /// Takes many keys at once where only runs without deletions are merged; false if there are none to be had this way.
    fn copy_keys(&mut self, out: &mut Vec<u8>, limits: &mut Limits) -> bool {
        let Some(merge) = self.merge.as_mut() else { return false };
        let is_plain = self.stretch.is_none() && self.select.is_none() && !self.one_sided;
        if !is_plain || self.epoch != self.view.epoch() {
            return false;
        }
        let bound = |left: Option<u64>| {
            left.map_or(usize::MAX, |left| usize::try_from(left.max(1)).unwrap_or(usize::MAX))
        };
        let copied = merge.copy_records(
            out,
            &CopyBounds {
                records: bound(limits.items).min(COPY_RECORDS),
                // As everywhere, a call delivers a record before it looks at the buffer.
                out_bytes: limits.buffer_bytes.max(out.len() + 1),
                bytes: bound(limits.bytes),
            },
        );
        self.one_sided = copied.one_sided;
        let Some((block, index)) = copied.last else { return false };
        self.passed(key_part(&block).key(&block.bytes, index));
        self.counts.from_disk += copied.records as u64;
        self.count(limits, copied.records, copied.bytes);
        true
    }

    async fn relax(&mut self, rounds: u32) {
        if rounds.is_multiple_of(16) {
            self.view.store().core().env().relax().await;
        }
        if self.epoch != self.view.epoch() {
            // The contents moved: what was found so far is used up first, then the merge begins anew behind it.
            self.stretch = None;
            self.merge = None;
        }
    }

    async fn next_stretch(&mut self) -> Result<Option<Stretch>, ReadError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            let mut merge = {
                self.merge();
                self.merge.take().expect("made above")
            };
            let next = merge.next().await?;
            if self.epoch == self.view.epoch() {
                self.merge = Some(merge);
                return Ok(next);
            }
        }
    }

    fn take_item_key(&mut self, item: &Item, out: &mut Vec<u8>, limits: &mut Limits) {
        let key = &item.key()[self.range.prefix.len()..];
        self.passed(key);
        if item.is_deleted() || !self.select.as_mut().is_none_or(|select| select(key)) {
            return;
        }
        let before = out.len();
        put_leb128(out, key.len() as u32);
        out.extend_from_slice(key);
        self.counts.from_memory += 1;
        self.count(limits, 1, out.len() - before);
    }

    /// Takes keys of a stretch until a limit; returns where it stopped.
    fn take_keys(
        &mut self,
        block: &Rc<Block>,
        from: usize,
        to: usize,
        out: &mut Vec<u8>,
        limits: &mut Limits,
    ) -> usize {
        let part = key_part(block);
        if part.tombstones == 0 && self.select.is_none() {
            let to = part_limit(part, &block.bytes, from, to, out.len(), limits);
            let records = part.records(&block.bytes, from, to);
            out.extend_from_slice(records);
            self.counts.from_disk += (to - from) as u64;
            self.count(limits, to - from, records.len());
            return to;
        }
        for index in from..to {
            if part.seqno(&block.bytes, index).1 {
                continue;
            }
            let key = part.key(&block.bytes, index);
            if !self.select.as_mut().is_none_or(|select| select(key)) {
                continue;
            }
            let record = part.records(&block.bytes, index, index + 1);
            out.extend_from_slice(record);
            self.counts.from_disk += 1;
            self.count(limits, 1, record.len());
            if KeyScan::is_full(out, limits).is_some() {
                return index + 1;
            }
        }
        to
    }

    async fn fill_documents(
        &mut self,
        out: &mut Vec<u8>,
        limits: &mut Limits,
        encode: &DocumentEncoder,
    ) -> Result<Stop, ReadError> {
        loop {
            self.window.read(&self.view).await?;
            while let Some(candidate) = self.window.pop() {
                let (records_before, before) = (self.counts.records, out.len());
                let record = self.window.record(&self.view, &candidate)?;
                encode(out, &record.meta, &record.key[self.range.prefix.len()..], record.value);
                self.count_source(&candidate);
                self.count(limits, 1, out.len() - before);
                if let Some(stop) = self.stop_since(records_before, out, limits) {
                    return Ok(stop);
                }
            }
            let room = limits.items.map_or(WINDOW_RECORDS, |items| WINDOW_RECORDS.min(items as usize));
            if !self.gather(room.max(1)).await? {
                return Ok(Stop::End);
            }
            self.view.store().core().env().relax().await;
        }
    }

    /// Shows documents to `visit` until it says stop (after the one it was shown) or the end; false at the end.
    pub(super) async fn run(
        &mut self,
        visit: &mut impl FnMut(SeqnoRecord<'_>) -> bool,
    ) -> Result<bool, ReadError> {
        loop {
            self.window.read(&self.view).await?;
            while let Some(candidate) = self.window.pop() {
                if !visit(self.window.record(&self.view, &candidate)?) {
                    return Ok(true);
                }
            }
            self.view.passed(&self.next_key());
            if !self.gather(WINDOW_RECORDS).await? {
                return Ok(false);
            }
            self.view.store().core().env().relax().await;
        }
    }

    fn count_source(&mut self, candidate: &Candidate) {
        match &candidate.item {
            Some(_) => self.counts.from_memory += 1,
            None => self.counts.from_disk += 1,
        }
    }

    /// Gathers the keys of the next window; false at the end.
    async fn gather(&mut self, records: usize) -> Result<bool, ReadError> {
        let mut places = BTreeSet::new();
        let mut bytes = 0;
        // What a flush moves meanwhile is not counted; it was in memory a moment ago.
        let (parts, _) = self.view.parts();
        self.window.begin();
        while self.window.len() < records && bytes < self.window_bytes {
            let stretch = match self.stretch.take() {
                Some((block, from, to)) => Some(Stretch::Part { block, from, to }),
                None => self.next_stretch().await?,
            };
            match stretch {
                None => {
                    self.ended = true;
                    break;
                }
                Some(Stretch::Item(item)) => {
                    let candidate =
                        Candidate { key: item.key().to_vec(), seqno: item.seqno(), item: Some(item.clone()) };
                    self.admit(candidate, item.is_deleted());
                }
                Some(Stretch::Part { block, from, to }) => {
                    let part = key_part(&block);
                    let (seqno, deleted) = part.seqno(&block.bytes, from);
                    let key = [&self.range.prefix[..], part.key(&block.bytes, from)].concat();
                    if from + 1 < to {
                        self.stretch = Some((block.clone(), from + 1, to));
                    }
                    let item = self.view.store().resident(&key, seqno);
                    let in_memory = item.is_some();
                    let admitted = self.admit(Candidate { key, seqno, item }, deleted);
                    if admitted
                        && !in_memory
                        && let Some((_, at)) = place_of(&parts, seqno)
                        && places.insert(at.place)
                    {
                        bytes += at.blocks as usize * crate::io::BLOCK_BYTES;
                    }
                }
            }
        }
        Ok(!self.window.is_empty())
    }

    fn admit(&mut self, candidate: Candidate, deleted: bool) -> bool {
        let key = &candidate.key[self.range.prefix.len()..];
        let shown = self.with_deletions || !deleted;
        let wanted = shown && self.select.as_mut().is_none_or(|select| select(key));
        self.range.start.clear();
        self.range.start.extend_from_slice(key);
        self.range.start_exclusive = true;
        if wanted {
            self.window.push(candidate);
        }
        wanted
    }
}

/// Where a stretch must stop so that the buffer and the limits are tested after each record.
fn part_limit(part: &KeyPart, bytes: &[u8], from: usize, to: usize, have: usize, limits: &Limits) -> usize {
    let to = limits.items.map_or(to, |items| to.min(from.saturating_add(items.max(1) as usize)));
    let room = limits.buffer_bytes.saturating_sub(have);
    let room = limits.bytes.map_or(room, |left| room.min(left as usize)).max(1);
    let start = part.place(bytes, from);
    if part.place(bytes, to) - start < room {
        return to;
    }
    let (mut low, mut high) = (from + 1, to);
    while low < high {
        let middle = low.midpoint(high);
        if part.place(bytes, middle) - start < room {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
