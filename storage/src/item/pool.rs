//! Memory of dropped versions that this thread uses for the next ones.
//!
//! A write that replaces a version drops one of about the size that it allocates. The allocator of the C library keeps only seven pieces of a
//! size at hand; what goes beyond is merged with its neighbours and split again, and each of these steps waits for memory.
//!
//! Invariants
//! - A piece is given out with the layout with which it came.
//! - At most [`PIECES_MAX`] pieces of a size, of at most [`BYTES_MAX`] bytes: half a MiB on a thread, if it has kept all of all sizes.
//!
//! Cost: a push or a pop; the piece itself is not touched.
//! Does not know: what was in a piece.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::RefCell;

use super::{ALLOCATOR_ROUND_BYTES, Head};

/// Pieces kept of a size.
const PIECES_MAX: usize = 64;

/// Largest piece that is kept, in bytes.
const BYTES_MAX: usize = 512;

/// Sizes that are told apart.
const SIZES: usize = BYTES_MAX / ALLOCATOR_ROUND_BYTES + 1;

struct Pool([Vec<*mut u8>; SIZES]);

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool([const { Vec::new() }; SIZES])) };
}

/// Where pieces of this layout are kept. Layouts of items are what the allocator rounds to, so those in one place are equal.
fn place(layout: Layout) -> Option<usize> {
    let place = layout.size() / ALLOCATOR_ROUND_BYTES;
    // A sanitizer is to see each piece come and go.
    (place < SIZES && !cfg!(fuzzing)).then_some(place)
}

fn layout_of(place: usize) -> Layout {
    let bytes = super::allocated_bytes(place * ALLOCATOR_ROUND_BYTES) - super::ALLOCATOR_HEADER_BYTES;
    Layout::from_size_align(bytes, align_of::<Head>()).expect("sizes are small")
}

/// A piece of memory for an item; null if there is none.
///
/// # Safety
/// The layout is one of an item.
#[inline]
pub(super) unsafe fn take(layout: Layout) -> *mut u8 {
    let kept =
        place(layout).and_then(|place| POOL.try_with(|pool| pool.borrow_mut().0[place].pop()).ok().flatten());
    // SAFETY: the layout has the size of a head at least, which is not zero.
    kept.unwrap_or_else(|| unsafe { alloc(layout) })
}

/// Gives back what [`take`] gave for the same layout.
///
/// # Safety
/// Nobody uses the piece any more.
#[cfg(not(any(loom, shuttle)))]
#[inline]
pub(super) unsafe fn give(piece: *mut u8, layout: Layout) {
    let is_kept = place(layout).is_some_and(|place| {
        let keep = |pool: &RefCell<Pool>| {
            let pieces = &mut pool.borrow_mut().0[place];
            let has_room = pieces.len() < PIECES_MAX;
            if has_room {
                pieces.push(piece);
            }
            has_room
        };
        POOL.try_with(keep).unwrap_or(false)
    });
    if !is_kept {
        // SAFETY: it was allocated with this layout, here or before it was kept, and nobody uses it.
        unsafe { dealloc(piece, layout) };
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (place, pieces) in self.0.iter_mut().enumerate() {
            for piece in pieces.drain(..) {
                // SAFETY: pieces in this place have this layout, and nobody uses what is kept.
                unsafe { dealloc(piece, layout_of(place)) };
            }
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::super::{ALLOCATOR_HEADER_BYTES, allocated_bytes};
    use super::*;

    #[test]
    fn a_place_holds_one_layout() {
        for len in size_of::<Head>()..2 * BYTES_MAX {
            let bytes = allocated_bytes(len) - ALLOCATOR_HEADER_BYTES;
            let layout = Layout::from_size_align(bytes, align_of::<Head>()).unwrap();
            assert!(bytes >= len);
            match place(layout) {
                Some(place) => assert_eq!(layout_of(place), layout, "{len}"),
                None => assert!(len > BYTES_MAX, "{len}"),
            }
        }
    }

    #[test]
    fn a_piece_that_was_given_is_taken_again_and_what_is_too_much_goes_back() {
        std::thread::spawn(|| {
            let layout = layout_of(9);
            // SAFETY: it is a layout of items.
            let pieces: Vec<*mut u8> = (0..2 * PIECES_MAX).map(|_| unsafe { take(layout) }).collect();
            for piece in &pieces {
                // SAFETY: nobody has used it.
                unsafe { give(*piece, layout) };
            }
            let kept = POOL.with_borrow(|pool| pool.0[9].len());
            assert_eq!(kept, PIECES_MAX);
            // SAFETY: as above.
            let again = unsafe { take(layout) };
            assert_eq!(again, pieces[PIECES_MAX - 1]);
            // SAFETY: as above.
            unsafe { give(again, layout) };
        })
        .join()
        .unwrap();
    }
}
