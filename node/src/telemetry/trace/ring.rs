//! The ring of one thread: its events, written by it alone, read by anyone at any time.
//!
//! Every slot is a sequence lock: the writer makes the sequence odd, stores the words, makes it even. A reader that finds another sequence
//! afterwards than before drops what it read; it never makes the writer wait.
//!
//! Invariants
//! - Only the [`Writer`] stores, and there is one for each ring.
//! - A read returns the newest events of the time when it began, oldest first, and counts every event that is no longer there.
//!
//! Cost: a write is one store for each word in use; a read copies the ring.
//!
//! Does not know: what events mean.
//! Source: H.-J. Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use super::config::BufferMode;
use super::event::{Args, EVENT_BYTES, EVENT_WORDS, Event, HEAD_WORDS, Head, describe};

/// Place of the time of a following step.
const THEN_WORD: usize = 7;

#[repr(align(64))]
struct Slot([AtomicU64; EVENT_WORDS]);

/// See the module.
pub(super) struct Ring {
    slots: Box<[Slot]>,
    mode: BufferMode,
    /// Events written.
    written: AtomicU64,
    /// Events that found a fixed buffer full.
    refused: AtomicU64,
}

/// What a ring held.
#[derive(Debug, Clone, Default)]
pub(super) struct RingCopy {
    /// Oldest first.
    pub(super) events: Vec<Event>,
    /// Events that were overwritten, or found the buffer full.
    pub(super) dropped: u64,
}

impl Ring {
    /// A ring of about so many bytes, and its only writer.
    pub(super) fn new(bytes: usize, mode: BufferMode) -> (Arc<Ring>, Writer) {
        let count = (bytes / EVENT_BYTES).max(2);
        let slots = (0..count).map(|_| Slot(std::array::from_fn(|_| AtomicU64::new(0)))).collect();
        let ring = Arc::new(Ring { slots, mode, written: AtomicU64::new(0), refused: AtomicU64::new(0) });
        let writer = Writer { ring: ring.clone(), next: 0, slot: 0, last: 0 };
        (ring, writer)
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * EVENT_BYTES
    }

    /// Events written so far, those that were overwritten since included.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Events that are lost at this moment.
    pub(super) fn dropped(&self) -> u64 {
        self.refused.load(Relaxed) + self.written().saturating_sub(self.slots.len() as u64)
    }

    /// Copies what is there.
    pub(super) fn read(&self) -> RingCopy {
        let written = self.written.load(Acquire);
        let first = written.saturating_sub(self.slots.len() as u64);
        let events: Vec<Event> = (first..written).filter_map(|position| self.read_slot(position)).collect();
        let dropped = written - events.len() as u64 + self.refused.load(Relaxed);
        RingCopy { events, dropped }
    }

    /// The event at `position`, if it is still there.
    fn read_slot(&self, position: u64) -> Option<Event> {
        let Slot(slot) = &self.slots[(position % self.slots.len() as u64) as usize];
        let expected = even(position);
        if slot[0].load(Acquire) != expected {
            return None;
        }
        let words: [u64; EVENT_WORDS] = std::array::from_fn(|index| slot[index].load(Relaxed));
        fence(Acquire);
        if slot[0].load(Relaxed) != expected {
            return None;
        }
        Event::of_words(&words)
    }
}

/// The sequence of a slot that holds the event at `position`.
fn even(position: u64) -> u64 {
    2 * position + 2
}

/// The one who writes a ring.
pub(super) struct Writer {
    ring: Arc<Ring>,
    next: u64,
    /// Slot of the next event; counting it is cheaper than dividing.
    slot: usize,
    /// Slot of the last event.
    last: usize,
}

impl Writer {
    /// Appends an event; false if a fixed buffer is full.
    #[inline]
    pub(super) fn write(&mut self, head: &Head, args: Args<'_>, args_lost: u8) -> bool {
        let (ring, position) = (&*self.ring, self.next);
        if ring.mode == BufferMode::Fixed && position >= ring.slots.len() as u64 {
            ring.refused.fetch_add(1, Relaxed);
            return false;
        }
        let Slot(slot) = &ring.slots[self.slot];
        slot[0].store(even(position) - 1, Relaxed);
        fence(Release);
        slot[1].store(describe(head.kind, args.used, args_lost), Relaxed);
        slot[2].store(head.at_ns, Relaxed);
        slot[3].store(head.span, Relaxed);
        slot[4].store(head.callsite, Relaxed);
        slot[5].store(head.context, Relaxed);
        slot[6].store(head.flow, Relaxed);
        slot[THEN_WORD].store(0, Relaxed);
        for (word, value) in slot[HEAD_WORDS..].iter().zip(args.words()) {
            word.store(value, Relaxed);
        }
        slot[0].store(even(position), Release);
        self.next = position + 1;
        self.last = self.slot;
        self.slot = if self.slot + 1 == ring.slots.len() { 0 } else { self.slot + 1 };
        ring.written.store(self.next, Release);
        true
    }

    /// Adds to the event written last when its following step came. One word changes, so a reader sees it or does not.
    #[inline]
    pub(super) fn follow(&mut self, then_ns: u64) {
        let Slot(slot) = &self.ring.slots[self.last];
        slot[THEN_WORD].store(then_ns, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace::event::Kind;

    fn head(number: u64) -> Head {
        Head {
            kind: Kind::Instant,
            at_ns: number,
            span: number,
            callsite: number,
            context: number,
            flow: number,
        }
    }

    /// T1.12: what was overwritten is counted; the newest events are there, in order.
    #[test]
    fn a_full_ring_keeps_the_newest_events_and_counts_the_others() {
        let (ring, mut writer) = Ring::new(8 * EVENT_BYTES, BufferMode::Ring);
        for number in 0..20 {
            assert!(writer.write(&head(number), Args { bytes: &[7; 64], used: 12 }, 0));
        }
        let copy = ring.read();
        assert_eq!(
            copy.events.iter().map(|event| event.head.at_ns).collect::<Vec<_>>(),
            (12..20).collect::<Vec<_>>()
        );
        assert_eq!((copy.dropped, ring.dropped()), (12, 12));
    }

    #[test]
    fn a_fixed_buffer_keeps_the_oldest_events_and_counts_the_others() {
        let (ring, mut writer) = Ring::new(4 * EVENT_BYTES, BufferMode::Fixed);
        let taken = (0..10).filter(|number| writer.write(&head(*number), Args::NONE, 0)).count();
        let copy = ring.read();
        assert_eq!((taken, copy.events.len(), copy.dropped, copy.events[0].head.at_ns), (4, 4, 6, 0));
    }

    /// T1.11: reading while the thread records neither tears an event nor misses the newest.
    #[test]
    fn a_reader_beside_the_writer_sees_whole_events_in_order_up_to_the_newest() {
        let (ring, mut writer) = Ring::new(64 * EVENT_BYTES, BufferMode::Ring);
        let total = 200_000;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 1..=total {
                    writer.write(&head(number), Args::NONE, 0);
                    writer.follow(number);
                }
            });
            loop {
                let newest = ring.written();
                let copy = ring.read();
                let numbers: Vec<u64> = copy.events.iter().map(|event| event.head.at_ns).collect();
                for event in &copy.events {
                    let number = event.head.at_ns;
                    assert_eq!(event.head, head(number), "all words are of one event");
                    assert!(event.then_ns.is_none_or(|then| then == number));
                }
                assert!(numbers.is_sorted_by(|a, b| a < b));
                assert!(copy.events.len() as u64 + copy.dropped >= newest, "every event is there or counted");
                if newest == total {
                    assert_eq!(numbers.last(), Some(&total));
                    break;
                }
            }
        });
    }
}
