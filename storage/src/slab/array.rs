//! An array in a slab.
//!
//! Does not know: what its elements are.

#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;

use super::{give, take};

/// A slice of fixed length that it owns, as `Box<[T]>` does, in memory of [`super::take`].
#[derive(Debug)]
pub(crate) struct Array<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its elements, as a box does.
unsafe impl<T: Send> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Array<T> {}

impl<T> Array<T> {
    /// The elements of an iterator that knows how many there are. What it has given is leaked if it panics.
    ///
    /// # Panics
    /// If it does not.
    pub(crate) fn collect(elements: impl ExactSizeIterator<Item = T>) -> Array<T> {
        let len = elements.len();
        let first = Self::room(len);
        let mut written = 0;
        for element in elements.take(len) {
            // SAFETY: the memory has room for `len` elements.
            let at = unsafe { first.add(written) };
            // SAFETY: as above; it is new memory.
            unsafe { at.write(element) };
            written += 1;
        }
        assert_eq!(written, len, "an iterator knows its length");
        Array { first, len }
    }

    /// A copy of `elements`.
    pub(crate) fn copy_of(elements: &[T]) -> Array<T>
    where
        T: Copy,
    {
        let len = elements.len();
        let first = Self::room(len);
        // SAFETY: new memory with room for `len` elements, if there are any, which may be copied bit by bit.
        unsafe { first.copy_from_nonoverlapping(NonNull::from(elements).cast(), len) };
        Array { first, len }
    }

    /// New memory for `len` elements; a place without memory for none.
    fn room(len: usize) -> NonNull<T> {
        const { assert!(size_of::<T>() > 0) };
        if len == 0 {
            return NonNull::dangling();
        }
        let layout = Self::layout(len);
        // SAFETY: the size is not zero.
        let first = unsafe { take(layout) }.cast::<T>();
        NonNull::new(first).unwrap_or_else(|| handle_alloc_error(layout))
    }

    /// The place of its elements, which stay until they come back by [`Array::from_raw`].
    pub(crate) fn into_raw(self) -> *mut T {
        ManuallyDrop::new(self).first.as_ptr()
    }

    /// The array whose elements are at `first`.
    ///
    /// # Safety
    /// `first` comes from [`Array::into_raw`] of an array with `len` elements, at least one, and comes back once.
    pub(crate) unsafe fn from_raw(first: *mut T, len: usize) -> Array<T> {
        let first = NonNull::new(first).expect("it comes from an array");
        Array { first, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<T>(len).expect("arrays are bounded")
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: so many elements were written; they live as long as the array.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        let elements = std::ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.len);
        // SAFETY: this is the only owner.
        unsafe { elements.drop_in_place() };
        // SAFETY: it was taken with this layout, and nobody uses it any more.
        unsafe { give(self.first.as_ptr().cast(), Self::layout(self.len)) };
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn an_array_holds_and_drops_its_elements() {
        let counted = Rc::new(());
        for len in [0, 1, 7, 1000, 10_000] {
            let array = Array::collect((0..len).map(|index| (index, counted.clone())));
            assert_eq!(array.len(), len);
            assert!(array.iter().map(|(index, _)| *index).eq(0..len));
            assert_eq!(Rc::strong_count(&counted), len + 1);
            drop(array);
            assert_eq!(Rc::strong_count(&counted), 1);
        }
    }

    #[test]
    fn a_copy_has_the_same_elements_in_memory_of_its_own() {
        for len in [0, 1, 4096, 16 << 10, 100_000] {
            let mut elements: Vec<u32> = (0..len).collect();
            let copy = Array::copy_of(&elements);
            elements.fill(7);
            assert!(copy.iter().copied().eq(0..len), "{len}");
        }
    }
}
