//! Pin, retire, free: when memory that readers on other cores may still look at is used again.
//!
//! A single writer unlinks something and retires it; a reader pins before it follows a pointer, and unpins when it has copied what it wants or has
//! taken a count on it. What is retired is dropped when every pin that was live then is gone. That is all there is to it: who is allowed to see
//! what is decided elsewhere ([`crate::registry`]), a pin protects only the moment between finding a pointer and using it.
//!
//! Invariants
//! - A pin lives for one batch and never across an await: it delays freeing on all cores.
//! - What waits to be freed on a thread is bounded by [`RETIRED_BYTES_MAX`] before it is handed over.
//!
//! Under `cfg(loom)` and `cfg(shuttle)` a checked model stands in for crossbeam-epoch: a list of pins. It frees as early as is allowed, and what
//! is touched when it was freed fails the test.
//!
//! Cost: a pin is one fence; retiring is a push; both are amortised over a batch.
//! Does not know: what is freed, who reads.
//! Source: K. Fraser, "Practical lock-freedom", UCAM-CL-TR-579, 2004; the crate crossbeam-epoch.

#![allow(unsafe_code)]

#[cfg(any(loom, shuttle))]
mod model;
#[cfg(not(any(loom, shuttle)))]
mod real;

#[cfg(any(loom, shuttle))]
pub(crate) use model::bury;
#[cfg(any(loom, shuttle))]
pub use model::{Pin, collect, pin};
#[cfg(all(test, any(loom, shuttle)))]
pub(crate) use model::{free_buried, live_nodes};
#[cfg(all(test, not(any(loom, shuttle))))]
pub(crate) use real::retired_bytes;
#[cfg(not(any(loom, shuttle)))]
pub use real::{Pin, collect, pin};

/// Retired bytes that a thread gathers before it hands them over to be freed.
pub const RETIRED_BYTES_MAX: usize = 256 << 10;

/// Something on the heap that readers reach through a pointer.
///
/// Under a model checker it remembers whether it was freed.
#[derive(Debug)]
pub(crate) struct Node<T> {
    #[cfg(any(loom, shuttle))]
    is_freed: std::sync::atomic::AtomicBool,
    /// Stands for the value: loom sees a reader that does not come after the writer.
    #[cfg(loom)]
    contents: loom::cell::UnsafeCell<()>,
    value: std::mem::ManuallyDrop<T>,
}

impl<T: Send + Sync + 'static> Node<T> {
    /// Puts `value` on the heap; it is there until [`Node::retire`] or [`Node::free`].
    pub(crate) fn alloc(value: T) -> *mut Node<T> {
        #[cfg(any(loom, shuttle))]
        model::count_nodes(1);
        Box::into_raw(Box::new(Node {
            #[cfg(any(loom, shuttle))]
            is_freed: std::sync::atomic::AtomicBool::new(false),
            #[cfg(loom)]
            contents: loom::cell::UnsafeCell::new(()),
            value: std::mem::ManuallyDrop::new(value),
        }))
    }

    /// What is at `node`, for as long as the pin (or whatever else `'g` stands for) protects it.
    ///
    /// # Safety
    /// `node` comes from [`Node::alloc`]; until `'g` ends it is not freed: either it is retired after the pin behind `'g` began at the earliest, or the
    /// caller owns it.
    pub(crate) unsafe fn get<'g>(node: *mut Node<T>) -> &'g T {
        // SAFETY: the caller guarantees that the node is alive until 'g ends.
        let node = unsafe { &*node };
        #[cfg(any(loom, shuttle))]
        assert!(!node.is_freed.load(std::sync::atomic::Ordering::SeqCst), "touched after it was freed");
        #[cfg(loom)]
        node.contents.with(|_| ());
        &node.value
    }

    /// Frees `node`, whose value holds about `bytes` elsewhere, when every pin that is live now is gone.
    ///
    /// # Safety
    /// `node` comes from [`Node::alloc`], no reader that pins from now on can find it, and it is retired or freed once only.
    pub(crate) unsafe fn retire(node: *mut Node<T>, bytes: usize, pin: &Pin) {
        let unlinked = Unlinked(node);
        pin.retire(unlinked, size_of::<Node<T>>() + bytes);
    }

    /// Frees `node` now.
    ///
    /// # Safety
    /// As [`Node::retire`]; and nobody looks at it any more.
    pub(crate) unsafe fn free(node: *mut Node<T>) {
        drop(Unlinked(node));
    }
}

/// A node that nobody finds any more; dropping it frees it.
struct Unlinked<T: Send + Sync + 'static>(*mut Node<T>);

// SAFETY: it is the only owner of the node, whose value may be sent.
unsafe impl<T: Send + Sync + 'static> Send for Unlinked<T> {}

impl<T: Send + Sync + 'static> Drop for Unlinked<T> {
    fn drop(&mut self) {
        #[cfg(not(any(loom, shuttle)))]
        {
            // SAFETY: the node comes from `Box::into_raw`, and this is its only owner.
            let node = unsafe { Box::from_raw(self.0) };
            drop(std::mem::ManuallyDrop::into_inner(node.value));
        }
        #[cfg(any(loom, shuttle))]
        {
            // SAFETY: this is the node's only owner. Its memory stays for a while, so that a late reader finds the mark.
            let node = unsafe { &mut *self.0 };
            let was_freed = node.is_freed.swap(true, std::sync::atomic::Ordering::SeqCst);
            assert!(!was_freed, "freed twice");
            #[cfg(loom)]
            node.contents.with_mut(|_| ());
            // SAFETY: freed once, as was just checked.
            unsafe { std::mem::ManuallyDrop::drop(&mut node.value) };
            model::count_nodes(-1);
            bury(self.0.cast(), std::alloc::Layout::new::<Node<T>>());
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_is_retired_stays_until_a_pin_on_another_thread_is_gone_and_is_freed_then() {
        let freed = Arc::new(AtomicUsize::new(0));
        let (pinned, is_pinned) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            let _pin = pin();
            pinned.send(()).unwrap();
            may_go_on.recv().unwrap();
        });
        is_pinned.recv().unwrap();
        pin().retire(Counted(freed.clone()), RETIRED_BYTES_MAX);
        for _ in 0..100 {
            collect();
        }
        assert_eq!(freed.load(Ordering::SeqCst), 0);
        go_on.send(()).unwrap();
        reader.join().unwrap();
        // Other tests of this process pin, too, for a moment each.
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_secs(60) {
            collect();
            if freed.load(Ordering::SeqCst) == 1 {
                return;
            }
            std::thread::yield_now();
        }
        panic!("never freed");
    }
}
