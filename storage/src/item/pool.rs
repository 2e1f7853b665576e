//! Memory of dropped versions that this thread uses for the next ones.
//!
//! A write that replaces a version drops one of about the size that it allocates, a little later. What is kept here spares both the way to the
//! heap.
//!
//! Invariants
//! - A piece is given out with the layout with which it came.
//! - At most [`PIECES_MAX`] pieces of a size, of at most [`BYTES_MAX`] bytes: one MiB on a thread, if it has kept all of all sizes.
//!
//! Cost: a push or a pop; the piece itself is not touched.
//! Does not know: what was in a piece.

use std::alloc::Layout;
use std::cell::RefCell;

use super::{Head, SMALL_BYTES_MAX as BYTES_MAX};
use crate::slab::{self, PIECE_ALIGN};

/// Pieces kept of a size.
const PIECES_MAX: usize = 64;

/// Sizes that are told apart.
const SIZES: usize = BYTES_MAX / PIECE_ALIGN + 1;

struct Pool([Vec<*mut u8>; SIZES]);

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool([const { Vec::new() }; SIZES])) };
}

/// Where pieces of this layout are kept. Items up to [`BYTES_MAX`] are rounded to [`PIECE_ALIGN`], so those in one place are equal.
fn place(layout: Layout) -> Option<usize> {
    let place = layout.size() / PIECE_ALIGN;
    // A sanitizer is to see each piece come and go.
    (layout.size() <= BYTES_MAX && !cfg!(fuzzing)).then_some(place)
}

fn layout_at(place: usize) -> Layout {
    Layout::from_size_align(place * PIECE_ALIGN, align_of::<Head>()).expect("sizes are small")
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
    kept.unwrap_or_else(|| unsafe { slab::take(layout) })
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
        // SAFETY: it was taken with this layout, here or before it was kept, and nobody uses it.
        unsafe { slab::give(piece, layout) };
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (place, pieces) in self.0.iter_mut().enumerate() {
            for piece in pieces.drain(..) {
                // SAFETY: pieces in this place have this layout, and nobody uses what is kept.
                unsafe { slab::give(piece, layout_at(place)) };
            }
        }
    }
}

#[cfg(all(test, not(any(fuzzing, loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_place_holds_one_layout() {
        for len in size_of::<Head>()..2 * BYTES_MAX {
            let layout = super::super::layout_of(len);
            assert!(layout.size() >= len);
            match place(layout) {
                Some(place) => assert_eq!(layout_at(place), layout, "{len}"),
                None => assert!(len > BYTES_MAX, "{len}"),
            }
        }
    }

    #[test]
    fn a_piece_that_was_given_is_taken_again_and_what_is_too_much_goes_back() {
        std::thread::spawn(|| {
            let layout = layout_at(9);
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
