//! A model of [`crate::epoch`] for loom and shuttle: a list of live pins, and for all that is retired the pins that hold it.
//!
//! Invariants
//! - What is retired is dropped with the last pin that was live then, never later: a reader that forgot to pin finds it freed as soon as can be.
//! - What is freed is marked and buried: its memory is used again only when an execution of a test is over.
//!
//! Does not know: what is freed.

use std::alloc::{Layout, dealloc};
use std::cell::{Cell, RefCell};

#[cfg(loom)]
use loom::{lazy_static, sync::Mutex};
#[cfg(shuttle)]
use shuttle::{lazy_static, sync::Mutex};

type Garbage = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    pins: Vec<u64>,
    pins_ever: u64,
    retired: Vec<(Vec<u64>, Garbage)>,
}

lazy_static! {
    static ref STATE: Mutex<State> = Mutex::new(State::default());
}

// Not the checker's: it runs all threads of a model on one, and these are about the test, not in it.
thread_local! {
    static NODES: Cell<isize> = const { Cell::new(0) };
    static BURIED: RefCell<Vec<(*mut u8, Layout)>> = const { RefCell::new(Vec::new()) };
}

/// So many more nodes are alive.
pub(super) fn count_nodes(more: isize) {
    NODES.set(NODES.get() + more);
}

/// Nodes that are not freed.
#[cfg(test)]
pub(crate) fn live_nodes() -> isize {
    NODES.get()
}

/// Keeps memory whose contents are marked as freed, for readers that come too late to find the mark.
pub(crate) fn bury(memory: *mut u8, layout: Layout) {
    BURIED.with_borrow_mut(|buried| buried.push((memory, layout)));
}

/// Gives buried memory back: an execution is over, nobody comes any more.
#[cfg(test)]
pub(crate) fn free_buried() {
    for (memory, layout) in BURIED.take() {
        // SAFETY: whoever buried it owned it and allocated it with this layout; no thread of the execution is left.
        unsafe { dealloc(memory, layout) };
    }
}

/// While it lives, nothing that was reachable when it began is freed.
#[derive(Debug)]
pub struct Pin {
    id: u64,
    on_its_thread: std::marker::PhantomData<*const ()>,
}

/// Pins this thread.
#[must_use]
pub fn pin() -> Pin {
    let mut state = STATE.lock().expect("no thread panics with it");
    state.pins_ever += 1;
    let id = state.pins_ever;
    state.pins.push(id);
    Pin { id, on_its_thread: std::marker::PhantomData }
}

/// Nothing: all is freed as early as can be.
pub fn collect() {}

impl Pin {
    /// Drops `garbage` with the last pin that is live now.
    pub fn retire<T: Send + 'static>(&self, garbage: T, _: usize) {
        let mut state = STATE.lock().expect("no thread panics with it");
        let pins = state.pins.clone();
        state.retired.push((pins, Box::new(move || drop(garbage))));
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let freed: Vec<Garbage> = {
            let mut state = STATE.lock().expect("no thread panics with it");
            state.pins.retain(|pin| *pin != self.id);
            for (pins, _) in &mut state.retired {
                pins.retain(|pin| *pin != self.id);
            }
            let (free, held) =
                std::mem::take(&mut state.retired).into_iter().partition(|(pins, _)| pins.is_empty());
            state.retired = held;
            let free: Vec<(Vec<u64>, Garbage)> = free;
            free.into_iter().map(|(_, garbage)| garbage).collect()
        };
        for garbage in freed {
            garbage();
        }
    }
}
