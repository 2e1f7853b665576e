//! Slots: which backfills of a core read at this moment. Handed out by weight of the connection's class, then by connection, then by stream
//! (`fair`).
//!
//! A slot is held while a piece is filled from disk and given back when others want it or its holder waits for its client or for memory. So a
//! slot is a right to read one piece, and shares of slots are shares of what is read.
//!
//! Invariants
//! - Nobody waits while a slot is free, and nobody holds one who waits for anything but the disk.
//! - A slot that is dropped, taken or not, is given to who is next.
//!
//! Does not know: what is read.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ringbase_storage::shard::{Counter, Recorder};

use super::fair::{FairQueue, Ticket};
use super::stream::Stream;
use super::time::Spent;
use crate::core::event::Event;
use crate::protocol::dcp::Priority;
use crate::range_scan::ConnectionId;

/// Backfills of a core that read at the same moment, at most.
pub const SLOTS_MAX: usize = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Slots {
    free: Cell<usize>,
    /// Each is set when a slot is given.
    line: RefCell<FairQueue<Rc<Event>>>,
}

/// The right to read; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Rc<Slots>);

/// Somebody in line.
struct InLine<'s> {
    slots: &'s Slots,
    given: Rc<Event>,
    ticket: Ticket,
}

/// How long slots were waited for, by class.
#[derive(Debug, Default)]
pub struct SlotMetrics {
    /// Nanoseconds from wanting a slot to having it, 0 for one that was free; in the order of [`Priority::ALL`].
    pub waits_ns: [Recorder; 3],
    /// Slots that had to be waited for.
    pub waited: [Counter; 3],
}

impl Slots {
    pub(super) fn new(count: usize) -> Rc<Slots> {
        Rc::new(Slots { free: Cell::new(count), line: RefCell::default() })
    }

    /// Whether somebody waits.
    pub(super) fn is_wanted(&self) -> bool {
        !self.line.borrow().is_empty()
    }

    /// A slot, if one is free.
    pub(super) fn try_take(self: &Rc<Slots>) -> Option<Slot> {
        // Who is in line was given what was free.
        let free = self.free.get().checked_sub(1)?;
        self.free.set(free);
        Some(Slot(self.clone()))
    }

    /// Waits for a slot.
    pub(super) async fn take(self: &Rc<Slots>, priority: Priority, connection: ConnectionId) -> Slot {
        if let Some(slot) = self.try_take() {
            return slot;
        }
        let given = Rc::new(Event::new());
        let ticket = self.line.borrow_mut().push(priority, connection, given.clone());
        let in_line = InLine { slots: self, given, ticket };
        in_line.given.wait().await;
        Slot(self.clone())
    }

    fn give_back(&self) {
        let next = self.line.borrow_mut().pop();
        match next {
            None => self.free.set(self.free.get() + 1),
            Some(given) => given.notify(),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if self.given.is_set() {
            self.slots.give_back();
        } else {
            self.slots.line.borrow_mut().remove(self.ticket);
        }
    }
}

/// Gives the slot of a backfill back, however it ends.
pub(super) struct GivesBack<'s>(pub(super) &'s Stream);

impl Drop for GivesBack<'_> {
    fn drop(&mut self) {
        drop(self.0.slot.take());
    }
}

impl Stream {
    /// Waits for a slot.
    pub(super) async fn take_slot(&self) {
        let (core, class, asked_ns) = (&self.core, self.spec.priority as usize, self.now_ns());
        let slot = match core.slots.try_take() {
            Some(slot) => slot,
            None => {
                self.time.waits_for(Spent::Slot);
                core.metrics.slots.waited[class].add(1);
                core.slots.take(self.spec.priority, self.connection()).await
            }
        };
        core.metrics.slots.waits_ns[class].record(self.now_ns().saturating_sub(asked_ns));
        self.slot.replace(Some(slot));
    }
}

impl SlotMetrics {
    /// The histograms by name.
    pub fn recorders(&self) -> impl Iterator<Item = (String, &Recorder)> {
        let name = |priority: Priority| format!("dcp_slot_wait_{}_ns", priority.name());
        Priority::ALL.into_iter().map(name).zip(&self.waits_ns)
    }

    /// The counters by name.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 3] {
        let [high, medium, low] = &self.waited;
        [
            ("dcp_slots_waited_high", high.get()),
            ("dcp_slots_waited_medium", medium.get()),
            ("dcp_slots_waited_low", low.get()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn a_slot_goes_to_the_next_in_line_and_one_who_gives_up_keeps_nobody_waiting() {
        let slots = Slots::new(1);
        let (one, two) = (ConnectionId(1), ConnectionId(2));
        let first = block_on(slots.take(Priority::Low, one));
        assert!(slots.try_take().is_none() && !slots.is_wanted());
        let mut low = pin!(slots.take(Priority::Low, one));
        let mut high = pin!(slots.take(Priority::High, two));
        assert!(block_on(poll_once(low.as_mut())).is_none());
        {
            let mut gives_up = pin!(slots.take(Priority::High, one));
            assert!(block_on(poll_once(gives_up.as_mut())).is_none());
            assert!(block_on(poll_once(high.as_mut())).is_none());
            drop(first);
            assert!(block_on(poll_once(high.as_mut())).is_none(), "it was given to who gives up");
        }
        let low = block_on(poll_once(low.as_mut())).expect("the other class has had none yet");
        assert!(slots.is_wanted() && block_on(poll_once(high.as_mut())).is_none());
        drop(low);
        let high = block_on(poll_once(high.as_mut())).expect("now it is");
        assert!(!slots.is_wanted());
        drop(high);
        assert_eq!(slots.free.get(), 1);
    }
}
