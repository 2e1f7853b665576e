//! The sequence list: one vbucket's resident versions in seqno order.
//!
//! The owning core appends, and takes out what a newer version replaces; readers walk it on any core without locks, under a pin that lives for one
//! batch. Nothing is moved or relinked: a version that a reader still needs stays in its slot, marked with the seqno that replaced it.
//!
//! For a vbucket on disk the list is a window: complete from `resident_from` to the high seqno, trimmed at its head.
//!
//! Invariants
//! - Seqnos rise strictly from head to tail. Gaps are legal: replaced versions leave them.
//! - From `resident_from` on the newest version of every key is in it. It only rises.
//! - A slot's count on its item is given up through the epoch, after the slot is empty.
//! - A segment but the last is packed when half of its versions are gone, and goes with its last one, so slots stay within twice the versions and
//!   one segment.
//!
//! Cost: append O(1) amortised, 8 bytes a version; replace and seek O(log n). Packing moves at most one segment's slots an operation.
//! Does not know: key order, disk, who reads ([`crate::registry`]).

#![allow(unsafe_code)]

mod directory;
mod reader;
mod segment;
mod slot;

use std::sync::Arc;

use crate::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use crate::epoch::{Node, Pin, pin};
use crate::item::Item;
use crate::mutant::{Mutant, is_on};
use crate::registry::Reader;
use crate::types::Seqno;
use directory::{Directory, Entry};
pub use reader::{BatchLimits, Progress, RangeReader, SLOTS_MAX};
use segment::Segment;

/// Slots of the first segment; each that follows has twice as many, up to [`SEGMENT_SLOTS_MAX`].
const SEGMENT_SLOTS_MIN: usize = if cfg!(any(loom, shuttle)) { 2 } else { 16 };

/// Most slots of a segment.
pub const SEGMENT_SLOTS_MAX: usize = if cfg!(any(loom, shuttle)) { 4 } else { 4096 };

/// Two packed neighbours become one if neither has more than this many times the versions of the other.
const MERGE_FACTOR: u32 = 4;

/// What readers on any core see.
#[derive(Debug)]
struct Shared {
    directory: AtomicPtr<Node<Directory>>,
    resident_from: AtomicU64,
    ended: AtomicBool,
    /// A reader has moved since the owner looked last.
    moved: AtomicBool,
}

impl Shared {
    fn resident_from(&self) -> Seqno {
        Seqno(self.resident_from.load(Ordering::Acquire))
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

struct Owned {
    first: Seqno,
    segment: *mut Node<Segment>,
    /// Versions in it, stale ones included.
    versions: u32,
}

impl Owned {
    fn segment(&self) -> &Segment {
        // SAFETY: the owner retires a segment only when it drops its entry.
        unsafe { Node::get(self.segment) }
    }
}

/// A version that was taken out of the list or marked in it.
#[derive(Debug)]
pub struct Taken {
    /// The version.
    pub item: Item,
    /// Whether it was stale.
    pub was_stale: bool,
}

/// See the module. It belongs to the vbucket's core.
pub struct SeqList {
    shared: Arc<Shared>,
    segments: Vec<Owned>,
    last: Seqno,
    versions: usize,
    bytes: usize,
}

impl std::fmt::Debug for SeqList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SeqList({} versions from {} to {})", self.versions, self.resident_from(), self.last)
    }
}

impl Default for SeqList {
    fn default() -> SeqList {
        SeqList::new(Seqno(0))
    }
}

impl SeqList {
    /// An empty list of a vbucket that has written up to `high`, which lies on disk.
    #[must_use]
    pub fn new(high: Seqno) -> SeqList {
        let shared = Shared {
            directory: AtomicPtr::new(std::ptr::null_mut()),
            resident_from: AtomicU64::new(high.next().0),
            ended: AtomicBool::new(false),
            moved: AtomicBool::new(false),
        };
        SeqList { shared: Arc::new(shared), segments: Vec::new(), last: high, versions: 0, bytes: 0 }
    }

    /// Appends the newest version of a key.
    ///
    /// # Panics
    /// If its seqno is not above all before.
    pub fn append(&mut self, item: Item) {
        let seqno = item.seqno();
        assert!(seqno > self.last, "seqno {seqno} does not rise above {}", self.last);
        let ordering = if is_on(Mutant::PublishRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        let fits = self.segments.last().and_then(|tail| Some((tail, tail.open_slot(seqno)?)));
        if let Some((tail, index)) = fits {
            tail.segment().store(index, slot::live(item), ordering);
        } else {
            self.begin_segment(seqno);
            let tail = self.segments.last().expect("just begun");
            tail.segment().store(0, slot::live(item), ordering);
        }
        self.segments.last_mut().expect("there is one").versions += 1;
        self.last = seqno;
        self.versions += 1;
    }

    fn begin_segment(&mut self, first: Seqno) {
        let pin = pin();
        let slots = self.segments.last().map_or(SEGMENT_SLOTS_MIN, |tail| {
            (tail.segment().len() * 2).clamp(SEGMENT_SLOTS_MIN, SEGMENT_SLOTS_MAX)
        });
        let sealed = self.segments.len().checked_sub(1);
        self.push_segment(self.segments.len(), Segment::dense(first, slots), 0);
        match sealed {
            Some(sealed) if self.needs_packing(sealed) => self.pack(sealed, &pin),
            _ => self.publish(&pin),
        }
    }

    fn push_segment(&mut self, at: usize, segment: Segment, versions: u32) {
        self.bytes += segment.bytes();
        let first = segment.first();
        self.segments.insert(at, Owned { first, segment: Node::alloc(segment), versions });
    }

    /// Puts a directory of the segments as they are now in place of the one before.
    fn publish(&mut self, pin: &Pin) {
        let entries = self.segments.iter().map(|owned| Entry { first: owned.first, segment: owned.segment });
        let directory = Node::alloc(Directory::new(entries));
        let ordering = if is_on(Mutant::PublishRelaxed) { Ordering::Relaxed } else { Ordering::AcqRel };
        let before = self.shared.directory.swap(directory, ordering);
        self.retire_directory(before, pin);
    }

    fn retire_directory(&self, directory: *mut Node<Directory>, pin: &Pin) {
        if directory.is_null() {
            return;
        }
        if is_on(Mutant::FreeWithoutGrace) {
            // SAFETY: it is not: readers may look at it. The checkers must notice.
            unsafe { Node::free(directory) };
            return;
        }
        // SAFETY: it is alive until it is retired, below.
        let bytes = unsafe { Node::get(directory) }.bytes();
        // SAFETY: another has taken its place, so no reader finds it any more; each was in place once.
        unsafe { Node::retire(directory, bytes, pin) };
    }

    /// The segment and slot that a seqno has, if there is one.
    fn find(&self, seqno: Seqno) -> Option<(usize, usize)> {
        let at = self.segments.partition_point(|owned| owned.first <= seqno).checked_sub(1)?;
        Some((at, self.segments[at].segment().index_of(seqno)?))
    }

    /// The version with this seqno, the newest of its key, is about to be replaced: what that touches is brought in meanwhile.
    #[inline]
    pub fn foresee(&self, seqno: Seqno) {
        if let Some((at, index)) = self.find(seqno) {
            self.segments[at].segment().foresee(index);
        }
    }

    /// The newest version that has exactly this seqno.
    #[must_use]
    pub fn get(&self, seqno: Seqno) -> Option<Item> {
        let (at, index) = self.find(seqno)?;
        let word = self.segments[at].segment().load(index);
        // SAFETY: only the owner empties slots.
        let shown = unsafe { slot::show(word) }?;
        shown.superseded.is_none().then(|| shown.item.clone())
    }

    /// The version with the seqno `born` is replaced by `superseded`, which was appended. It stays for a reader if `keep`, else it is taken out.
    /// Returns the version, if it was here.
    pub fn replace(&mut self, born: Seqno, superseded: Seqno, keep: bool) -> Option<Item> {
        if !keep {
            return self.take(born).map(|taken| taken.item);
        }
        let (at, index) = self.find(born)?;
        let segment = self.segments[at].segment();
        let word = segment.load(index);
        if word == 0 || slot::is_stale(word) {
            return None;
        }
        // SAFETY: the word is a newest version's, and the slot gets the new word instead.
        let stale = unsafe { slot::stale(word, superseded) };
        segment.store(index, stale, Ordering::Release);
        // SAFETY: the slot holds it.
        unsafe { slot::show(stale) }.map(|shown| shown.item.clone())
    }

    /// Takes the version with this seqno out.
    pub fn take(&mut self, seqno: Seqno) -> Option<Taken> {
        let (at, index) = self.find(seqno)?;
        let segment = self.segments[at].segment();
        let word = segment.load(index);
        if word == 0 {
            return None;
        }
        segment.store(index, 0, Ordering::Release);
        let pin = pin();
        let was_stale = slot::is_stale(word);
        // SAFETY: the slot was just emptied, and packing leaves a word in one place.
        let item = unsafe { slot::give_up(word, &pin) };
        self.versions -= 1;
        self.segments[at].versions -= 1;
        if self.needs_packing(at) {
            self.pack(at, &pin);
        }
        Some(Taken { item, was_stale })
    }

    fn needs_packing(&self, at: usize) -> bool {
        let owned = &self.segments[at];
        at + 1 < self.segments.len() && owned.versions as usize * 2 <= owned.segment().len()
    }

    /// Packs a segment, together with a packed neighbour if their sizes go together, or drops it if it is empty.
    fn pack(&mut self, at: usize, pin: &Pin) {
        let versions = self.segments[at].versions;
        let goes_with = |other: &Owned| {
            let (few, many) = (versions.min(other.versions), versions.max(other.versions));
            other.segment().is_packed()
                && few > 0
                && many <= few * MERGE_FACTOR
                && (few + many) as usize <= SEGMENT_SLOTS_MAX / 2
        };
        let is_near = |first: Seqno, last: Seqno| last.0 - first.0 <= u64::from(u32::MAX);
        let (mut from, mut to) = (at, at + 1);
        if let Some(before) = at.checked_sub(1).map(|before| &self.segments[before])
            && goes_with(before)
            && is_near(before.first, self.segments[at].segment().last())
        {
            from = at - 1;
        } else if at + 2 < self.segments.len()
            && goes_with(&self.segments[at + 1])
            && is_near(self.segments[at].first, self.segments[at + 1].segment().last())
        {
            to = at + 2;
        }
        let mut words = Vec::new();
        for owned in &self.segments[from..to] {
            let segment = owned.segment();
            let slots = (0..segment.len()).map(|index| (segment.seqno(index), segment.load(index)));
            words.extend(slots.filter(|(_, word)| *word != 0));
        }
        let packed: Vec<Owned> = self.segments.drain(from..to).collect();
        if !words.is_empty() {
            self.push_segment(from, Segment::packed(&words), words.len() as u32);
        }
        self.publish(pin);
        // The words are in the new segment now: the counts go with them, the old segment owns none any more.
        for owned in packed {
            self.retire_segment(&owned, pin);
        }
    }

    fn retire_segment(&mut self, owned: &Owned, pin: &Pin) {
        let bytes = owned.segment().bytes();
        self.bytes -= bytes;
        // SAFETY: the directory in place does not name it, and its entry is gone.
        unsafe { Node::retire(owned.segment, bytes, pin) };
    }

    /// Lets go of the head: the list is complete from `from` on. At most one segment goes an operation; returns whether there is more to go. Each
    /// version that goes is shown to `gone`. A reader that has not come as far goes on on disk.
    pub fn trim(&mut self, from: Seqno, mut gone: impl FnMut(Taken)) -> bool {
        if from > self.resident_from() {
            self.shared.resident_from.store(from.0, Ordering::Release);
        }
        let from = self.resident_from();
        let Some(head) = self.segments.first() else { return false };
        if head.segment().last() >= from
            || self.segments.len() == 1 && head.open_slot(self.last.next()).is_some()
        {
            return false;
        }
        let pin = pin();
        let owned = self.segments.remove(0);
        self.publish(&pin);
        self.empty(&owned, &pin, &mut gone);
        self.retire_segment(&owned, &pin);
        self.segments.first().is_some_and(|head| head.segment().last() < from)
    }

    /// Gives up all words of a segment that no directory names any more.
    fn empty(&mut self, owned: &Owned, pin: &Pin, gone: &mut impl FnMut(Taken)) {
        let segment = owned.segment();
        for index in 0..segment.len() {
            let word = segment.load(index);
            if word != 0 {
                // The slot keeps its word for readers that are pinned. SAFETY of what follows: no other segment has it.
                let was_stale = slot::is_stale(word);
                // SAFETY: the segment's directory entry is gone, and packing leaves a word in one place.
                let item = unsafe { slot::give_up(word, pin) };
                gone(Taken { item, was_stale });
            }
        }
        self.versions -= owned.versions as usize;
    }

    /// Ends the list: readers find that it is gone. It is emptied a segment an operation; returns whether there is more.
    pub fn drain_slice(&mut self) -> bool {
        self.shared.ended.store(true, Ordering::Release);
        let Some(owned) = self.segments.pop() else { return false };
        let pin = pin();
        self.publish(&pin);
        self.empty(&owned, &pin, &mut drop);
        self.retire_segment(&owned, &pin);
        !self.segments.is_empty()
    }

    /// A reader of [start, end], registered as `reader`; `purge_seqno` is the vbucket's now.
    #[must_use]
    pub fn open(&self, reader: Arc<Reader>, purge_seqno: Seqno) -> RangeReader {
        RangeReader::new(self.shared.clone(), reader, purge_seqno)
    }

    /// Whether a reader has moved since this was asked last.
    pub fn take_moved(&self) -> bool {
        self.shared.moved.load(Ordering::Relaxed) && self.shared.moved.swap(false, Ordering::Acquire)
    }

    /// Shows the newest versions from `from` on, in seqno order, at most `slots` slots, and returns the seqno to go on from; `None` at the end.
    pub fn visit(&self, from: Seqno, slots: usize, mut visit: impl FnMut(&Item)) -> Option<Seqno> {
        let at = self.segments.partition_point(|owned| owned.first <= from).saturating_sub(1);
        let mut left = slots;
        for owned in &self.segments[at.min(self.segments.len())..] {
            let segment = owned.segment();
            for index in segment.lower_bound(from)..segment.len() {
                let seqno = segment.seqno(index);
                if seqno > self.last {
                    return None;
                }
                if left == 0 {
                    return Some(seqno);
                }
                left -= 1;
                // SAFETY: only the owner empties slots, and it does not while it looks.
                if let Some(shown) = unsafe { slot::show(segment.load(index)) }
                    && shown.superseded.is_none()
                {
                    visit(&shown.item);
                }
            }
        }
        None
    }

    /// The list is complete from here on.
    #[must_use]
    pub fn resident_from(&self) -> Seqno {
        self.shared.resident_from()
    }

    /// The last seqno that the first segment has room for; `None` if there is no segment, or only one that is appended to.
    #[must_use]
    pub fn head_last(&self) -> Option<Seqno> {
        let head = self.segments.first()?;
        let last = head.segment().last();
        (self.segments.len() > 1 || last <= self.last).then_some(last)
    }

    /// The highest seqno ever appended.
    #[must_use]
    pub fn last(&self) -> Seqno {
        self.last
    }

    /// Versions in it, stale ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.versions
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.versions == 0
    }

    /// Segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Resident bytes of segments and directory, the versions apart.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes + self.segments.len() * (size_of::<Entry>() + size_of::<Owned>())
    }
}

impl Owned {
    /// The slot for a seqno behind all others, if the segment is dense and has one.
    fn open_slot(&self, seqno: Seqno) -> Option<usize> {
        let segment = self.segment();
        if segment.is_packed() { None } else { segment.index_of(seqno) }
    }
}

impl Drop for SeqList {
    fn drop(&mut self) {
        while self.drain_slice() {}
        let directory = self.shared.directory.swap(std::ptr::null_mut(), Ordering::AcqRel);
        self.retire_directory(directory, &pin());
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
