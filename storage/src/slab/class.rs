//! The sizes of pieces.
//!
//! Does not know: where pieces lie.

use super::region::SLAB_BYTES;

/// Largest piece that comes from a slab, in bytes.
pub(crate) const PIECE_BYTES_MAX: usize = SLAB_BYTES / 2;

/// Pieces begin at multiples of this many bytes.
pub(crate) const PIECE_ALIGN: usize = 8;

/// Pieces of a size that is a multiple of this begin at multiples of it.
pub(super) const LINE_BYTES: usize = 64;

/// Sizes up to 4 KiB: 64 up to 512 bytes, then 32 to each doubling.
const FINE: usize = 160;

/// Sizes there are. The largest are a slab's share of 15 down to 2.
pub(super) const CLASSES: usize = FINE + 14;

/// The number of the smallest size that has room for `bytes`, which are 1 to [`PIECE_BYTES_MAX`].
#[inline]
pub(super) const fn class_of(bytes: usize) -> usize {
    match bytes {
        0..=512 => bytes.div_ceil(8) - 1,
        513..=1024 => 64 + (bytes - 512).div_ceil(16) - 1,
        1025..=2048 => 96 + (bytes - 1024).div_ceil(32) - 1,
        2049..=4096 => 128 + (bytes - 2048).div_ceil(64) - 1,
        _ => FINE + 15 - SLAB_BYTES / bytes.next_multiple_of(LINE_BYTES),
    }
}

/// Bytes of the pieces of a class.
#[inline]
pub(super) const fn class_bytes(class: usize) -> usize {
    match class {
        0..64 => (class + 1) * 8,
        64..96 => 512 + (class - 63) * 16,
        96..128 => 1024 + (class - 95) * 32,
        128..FINE => 2048 + (class - 127) * 64,
        _ => SLAB_BYTES / (FINE + 15 - class) / LINE_BYTES * LINE_BYTES,
    }
}

/// The bytes that a piece for `bytes` takes, 1 to [`PIECE_BYTES_MAX`].
pub(crate) const fn piece_bytes(bytes: usize) -> usize {
    class_bytes(class_of(bytes))
}

/// Whether there is a size for `bytes` that loses little.
#[inline]
pub(super) const fn is_near_a_class(bytes: usize) -> bool {
    bytes > 0 && bytes <= PIECE_BYTES_MAX && (bytes <= 4096 || piece_bytes(bytes) - bytes <= bytes / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_the_smallest_class_that_holds_it() {
        for bytes in 1..=PIECE_BYTES_MAX {
            let class = class_of(bytes);
            assert!(class < CLASSES && class_bytes(class) >= bytes, "{bytes}");
            assert!(class == 0 || class_bytes(class - 1) < bytes, "{bytes}");
            assert!(bytes > 4096 || class_bytes(class) - bytes <= (bytes / 16).max(7), "{bytes}");
            assert_eq!(class_bytes(class) % PIECE_ALIGN, 0);
        }
        assert_eq!(class_bytes(CLASSES - 1), PIECE_BYTES_MAX);
    }
}
