//! A bucket of the hash table: one cache line of slots, and a chain of smaller groups behind it when it is over-full.
//!
//! Invariants
//! - A chain is dense: its words fill it from the front, the first empty slot is its end, and no group behind the bucket is empty for longer than
//!   an operation of the writer takes.
//! - A word is stored with release and read with acquire, so that whoever finds an item sees it whole.
//!
//! Cost: a look-up reads one cache line, seldom a second one.
//! Does not know: which keys belong here, what counts the words stand for.

#![allow(unsafe_code)]

use std::ops::ControlFlow;
use std::ptr::null_mut;

use super::piece::{self, Piece, Ref, array_bytes};
use super::word::EMPTY;
use crate::atomic::{AtomicPtr, AtomicUsize, Ordering};
use crate::epoch::Pin;
use crate::mutant::{Mutant, is_on};

/// Slots of a bucket.
pub(super) const BUCKET_SLOTS: usize = if cfg!(any(loom, shuttle)) { 2 } else { 7 };

/// Slots of a group behind it.
pub(super) const OVERFLOW_SLOTS: usize = if cfg!(any(loom, shuttle)) { 1 } else { 4 };

/// The bytes that one more group takes.
pub(super) const OVERFLOW_BYTES: usize = array_bytes::<Overflow>(1);

/// See the module.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Bucket {
    slots: [AtomicUsize; BUCKET_SLOTS],
    next: AtomicPtr<Piece<Overflow>>,
}

/// More slots of a bucket.
#[derive(Debug)]
pub(super) struct Overflow {
    slots: [AtomicUsize; OVERFLOW_SLOTS],
    next: AtomicPtr<Piece<Overflow>>,
}

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Bucket>() == 64 && OVERFLOW_BYTES == 40);

impl Bucket {
    pub(super) fn new() -> Bucket {
        Bucket { slots: std::array::from_fn(|_| AtomicUsize::new(EMPTY)), next: AtomicPtr::new(null_mut()) }
    }
}

/// With which ordering something is made visible to readers.
#[inline]
pub(super) fn publishing() -> Ordering {
    if is_on(Mutant::PublishRelaxed) { Ordering::Relaxed } else { Ordering::Release }
}

/// A place for a word in a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'g>(&'g AtomicUsize);

impl Slot<'_> {
    /// Makes `word` visible to readers.
    #[inline]
    pub(super) fn store(self, word: usize) {
        self.0.store(word, publishing());
    }

    fn is(self, other: Slot<'_>) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

/// A bucket with what is behind it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain<'g>(Ref<'g, Bucket>);

impl<'g> Chain<'g> {
    /// The chain that begins with `first`.
    ///
    /// # Safety
    /// Until `'g` ends, no group that is in the chain at any moment from now on is freed: it is retired after the pin behind `'g` began at the
    /// earliest, or the caller is the writer and unlinks none while it walks.
    pub(super) unsafe fn new(first: Ref<'g, Bucket>) -> Chain<'g> {
        Chain(first)
    }

    fn overflow(first: *mut Piece<Overflow>) -> Option<Ref<'g, Overflow>> {
        // SAFETY: the pointer comes from a link of a chain, so it was made with room for one group; it lives until 'g ends, as promised to `new`.
        (!first.is_null()).then(|| unsafe { piece::at(first, 0) })
    }

    /// Shows slots and words from the front to the first empty slot, that one included, until `look` has an answer.
    #[inline]
    fn scan<B>(self, mut look: impl FnMut(Slot<'g>, usize) -> ControlFlow<B>) -> Option<B> {
        for index in 0..BUCKET_SLOTS {
            let slot = &self.0.get().slots[index];
            let word = slot.load(Ordering::Acquire);
            if let ControlFlow::Break(answer) = look(Slot(slot), word) {
                return Some(answer);
            }
            if word == EMPTY {
                return None;
            }
        }
        let mut next = Chain::overflow(self.0.get().next.load(Ordering::Acquire));
        while let Some(group) = next {
            for index in 0..OVERFLOW_SLOTS {
                let slot = &group.get().slots[index];
                let word = slot.load(Ordering::Acquire);
                if let ControlFlow::Break(answer) = look(Slot(slot), word) {
                    return Some(answer);
                }
                if word == EMPTY {
                    return None;
                }
            }
            next = Chain::overflow(group.get().next.load(Ordering::Acquire));
        }
        None
    }

    /// The first word that `is_wanted`, and where it is.
    #[inline]
    pub(super) fn find(self, mut is_wanted: impl FnMut(usize) -> bool) -> Option<(Slot<'g>, usize)> {
        self.scan(|slot, word| {
            if word != EMPTY && is_wanted(word) {
                ControlFlow::Break((slot, word))
            } else {
                ControlFlow::Continue(())
            }
        })
    }

    /// Shows every word.
    pub(super) fn each(self, mut visit: impl FnMut(usize)) {
        self.find(|word| {
            visit(word);
            false
        });
    }

    /// Words in it.
    pub(super) fn len(self) -> usize {
        let mut len = 0;
        self.each(|_| len += 1);
        len
    }

    /// Groups behind the bucket.
    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(super) fn groups_behind(self) -> usize {
        let (mut count, mut link) = (0, &self.0.get().next);
        while let Some(group) = Chain::overflow(link.load(Ordering::Relaxed)) {
            count += 1;
            link = &group.get().next;
        }
        count
    }

    fn contains(self, wanted: usize) -> bool {
        self.find(|word| word == wanted).is_some()
    }

    /// Place `index`, and the word there; the chain must be longer.
    fn nth(self, index: usize) -> (Slot<'g>, usize) {
        let mut left = index;
        let found = self.find(|_| {
            left = left.wrapping_sub(1);
            left == usize::MAX
        });
        found.expect("within the chain")
    }

    /// Writer: puts `word` behind the last one. Whether that took another group.
    pub(super) fn push(self, word: usize) -> bool {
        let empty =
            self.scan(
                |slot, found| {
                    if found == EMPTY { ControlFlow::Break(slot) } else { ControlFlow::Continue(()) }
                },
            );
        if let Some(slot) = empty {
            slot.store(word);
            return false;
        }
        let group = piece::alloc(1, || Overflow {
            slots: std::array::from_fn(|index| AtomicUsize::new(if index == 0 { word } else { EMPTY })),
            next: AtomicPtr::new(null_mut()),
        });
        self.last_link().store(group, publishing());
        true
    }

    fn last_link(self) -> &'g AtomicPtr<Piece<Overflow>> {
        let mut link = &self.0.get().next;
        while let Some(group) = Chain::overflow(link.load(Ordering::Relaxed)) {
            link = &group.get().next;
        }
        link
    }

    /// Writer: takes the word at `hole` out. If another one has to move there, `publish` is called between its copy and its end, and 1 returned.
    pub(super) fn remove(self, hole: Slot<'g>, publish: impl FnOnce()) -> usize {
        let (last, word) = self.nth(self.len() - 1);
        let is_last = last.is(hole);
        if !is_last {
            hole.store(word);
            publish();
        }
        last.store(EMPTY);
        usize::from(!is_last)
    }

    /// Writer: takes the words out that `other` has, too. As [`Chain::remove`] for what moves.
    pub(super) fn remove_all_in(self, other: Chain<'_>, publish: impl FnOnce()) -> usize {
        let len = self.len();
        let (mut end, mut at, mut moved) = (len, 0, 0);
        while at < end {
            let (hole, word) = self.nth(at);
            if other.contains(word) {
                end -= 1;
                let (_, last) = self.nth(end);
                if at == end || other.contains(last) {
                    continue;
                }
                hole.store(last);
                moved += 1;
            }
            at += 1;
        }
        if moved > 0 {
            publish();
        }
        for index in (end..len).rev() {
            self.nth(index).0.store(EMPTY);
        }
        moved
    }

    /// Writer: takes all words out, from the front, and shows each when it is out. No reader may be sent here any more.
    pub(super) fn take_each(self, mut taken: impl FnMut(usize)) {
        self.scan(|slot, word| {
            if word == EMPTY {
                return ControlFlow::<()>::Continue(());
            }
            slot.store(EMPTY);
            taken(word);
            ControlFlow::Continue(())
        });
    }

    /// Writer: lets go of the groups that are empty, and says how many.
    pub(super) fn trim(self, pin: &Pin) -> usize {
        let mut link = &self.0.get().next;
        let mut next = loop {
            let first = link.load(Ordering::Relaxed);
            let Some(group) = Chain::overflow(first) else { return 0 };
            if group.get().slots[0].load(Ordering::Relaxed) == EMPTY {
                break first;
            }
            link = &group.get().next;
        };
        link.store(null_mut(), publishing());
        let mut freed = 0;
        while let Some(group) = Chain::overflow(next) {
            let unlinked = next;
            next = group.get().next.load(Ordering::Relaxed);
            // SAFETY: it was made by `push` with one element; it hung behind the link that was just cut, which was the only way to it.
            unsafe { piece::retire(unlinked, 1, pin) };
            freed += 1;
        }
        freed
    }
}
