//! Arrays on the heap that readers on other cores reach through one thin pointer.
//!
//! Invariants
//! - Under a model checker an array remembers that it was freed and is leaked, so that each later look at it fails the test.
//!
//! Cost: none beside the memory.
//! Does not know: what lies in it, who holds the pointer.

#![allow(unsafe_code)]

use std::ops::Deref;

use crate::epoch::Pin;
use crate::slab::{self, Array};

/// One element of such an array.
#[derive(Debug)]
pub(super) struct Piece<T> {
    #[cfg(any(loom, shuttle))]
    is_freed: std::sync::atomic::AtomicBool,
    value: T,
}

/// A look at an element.
#[derive(Debug)]
pub(super) struct Ref<'g, T>(&'g Piece<T>);

impl<T> Clone for Ref<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ref<'_, T> {}

impl<'g, T> Ref<'g, T> {
    /// The element, for as long as the look lasts.
    #[inline]
    pub(super) fn get(self) -> &'g T {
        #[cfg(any(loom, shuttle))]
        assert!(!self.0.is_freed.load(std::sync::atomic::Ordering::SeqCst), "touched after it was freed");
        &self.0.value
    }
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.get()
    }
}

/// The bytes that an array of `len` really takes.
pub(super) const fn array_bytes<T>(len: usize) -> usize {
    slab::taken_bytes(len * size_of::<T>())
}

/// An array of `len` elements; it is there until [`retire`].
pub(super) fn alloc<T>(len: usize, make: impl Fn() -> T) -> *mut Piece<T> {
    let piece = || Piece {
        #[cfg(any(loom, shuttle))]
        is_freed: std::sync::atomic::AtomicBool::new(false),
        value: make(),
    };
    assert!(len > 0, "an array has elements");
    Array::collect((0..len).map(|_| piece())).into_raw()
}

/// Element `index` of the array at `first`.
///
/// # Safety
/// `first` comes from [`alloc`] with a length above `index`; until `'g` ends it is not freed: it is retired after the pin behind `'g` began at the
/// earliest, or the caller owns it.
#[inline]
pub(super) unsafe fn at<'g, T>(first: *mut Piece<T>, index: usize) -> Ref<'g, T> {
    // SAFETY: the caller guarantees that the index is within the array.
    let piece = unsafe { first.add(index) };
    // SAFETY: the caller guarantees that the array is alive until 'g ends; nobody has a mutable reference to shared elements.
    Ref(unsafe { &*piece })
}

/// Frees the array at `first` when every pin that is live now is gone.
///
/// # Safety
/// `first` comes from [`alloc`] with `len`, no reader that pins from now on can find it, and it is retired once only.
pub(super) unsafe fn retire<T: Send + Sync + 'static>(first: *mut Piece<T>, len: usize, pin: &Pin) {
    pin.retire(Unlinked { first, len }, array_bytes::<T>(len));
}

/// An array that nobody finds any more; dropping it frees it.
struct Unlinked<T: Send + Sync + 'static> {
    first: *mut Piece<T>,
    len: usize,
}

// SAFETY: it is the only owner of the array, whose elements may be sent.
unsafe impl<T: Send + Sync + 'static> Send for Unlinked<T> {}

impl<T: Send + Sync + 'static> Drop for Unlinked<T> {
    fn drop(&mut self) {
        // SAFETY: the array was made with this length, and this is its only owner.
        let array = unsafe { Array::from_raw(self.first, self.len) };
        #[cfg(any(loom, shuttle))]
        for piece in std::mem::ManuallyDrop::new(array).iter() {
            let was_freed = piece.is_freed.swap(true, std::sync::atomic::Ordering::SeqCst);
            assert!(!was_freed, "freed twice");
        }
        #[cfg(not(any(loom, shuttle)))]
        drop(array);
    }
}
