//! Turns: how much of something may be held at a time, handed out in order of asking.
//!
//! Invariants
//! - Who asked first gets first; nobody else is woken.
//! - A turn that is dropped, taken or not, is given to the next in line.
//!
//! Does not know: what is held.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::core::event::Event;

/// See the module.
#[derive(Debug)]
pub(super) struct Turns {
    count: isize,
    /// Below 0 while a turn weighs more than there was room for.
    free: Cell<isize>,
    /// Each is set when a turn is given.
    line: RefCell<VecDeque<Rc<Event>>>,
}

/// A turn; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Rc<Turns>,
    weight: isize,
}

/// Somebody in line.
struct InLine {
    turns: Rc<Turns>,
    given: Rc<Event>,
}

impl Turns {
    pub(super) fn new(count: usize) -> Rc<Turns> {
        let count = count as isize;
        Rc::new(Turns { count, free: Cell::new(count), line: RefCell::default() })
    }

    /// Turns that are taken, each as often as it weighs.
    pub(super) fn taken(&self) -> usize {
        usize::try_from(self.count - self.free.get()).unwrap_or_default()
    }

    /// Whether a turn would be given at once.
    pub(super) fn is_free(&self) -> bool {
        self.free.get() > 0 && self.line.borrow().is_empty()
    }

    /// Waits for a turn.
    pub(super) async fn take(self: &Rc<Turns>) -> Turn {
        if self.is_free() {
            self.free.set(self.free.get() - 1);
            return Turn { turns: self.clone(), weight: 1 };
        }
        let given = Rc::new(Event::new());
        self.line.borrow_mut().push_back(given.clone());
        let in_line = InLine { turns: self.clone(), given };
        in_line.given.wait().await;
        Turn { turns: self.clone(), weight: 1 }
    }

    fn give_back(&self, weight: isize) {
        self.free.set(self.free.get() + weight);
        while self.free.get() > 0 {
            let Some(next) = self.line.borrow_mut().pop_front() else { return };
            self.free.set(self.free.get() - 1);
            next.notify();
        }
    }
}

impl Turn {
    /// What is held turned out to weigh this much; others wait longer then.
    pub(super) fn weigh(&mut self, weight: usize) {
        let weight = weight.max(1) as isize;
        self.turns.free.set(self.turns.free.get() - (weight - self.weight));
        self.weight = weight;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.give_back(self.weight);
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if self.given.is_set() {
            self.turns.give_back(1);
        } else {
            self.turns.line.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.given));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn turns_are_given_in_order_and_one_who_gives_up_keeps_nobody_waiting() {
        let turns = Turns::new(1);
        let first = block_on(turns.take());
        let mut third = pin!(turns.take());
        {
            let mut second = pin!(turns.take());
            assert!(block_on(poll_once(second.as_mut())).is_none());
            assert!(block_on(poll_once(third.as_mut())).is_none());
            drop(first);
            assert!(block_on(poll_once(third.as_mut())).is_none(), "the second is given it");
        }
        let third = block_on(poll_once(third.as_mut())).expect("the second gave it up");
        assert_eq!((turns.free.get(), turns.taken(), turns.is_free()), (0, 1, false));
        drop(third);
        assert_eq!(turns.free.get(), 1);
    }

    #[test]
    fn a_heavy_turn_counts_for_what_it_weighs() {
        let turns = Turns::new(2);
        let mut heavy = block_on(turns.take());
        heavy.weigh(5);
        let mut next = pin!(turns.take());
        assert!(block_on(poll_once(next.as_mut())).is_none());
        drop(heavy);
        assert!(block_on(poll_once(next.as_mut())).is_some());
        assert_eq!(turns.free.get(), 2);
    }
}
