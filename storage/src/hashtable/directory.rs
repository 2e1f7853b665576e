//! Where buckets are: a directory that grows and shrinks at its end and never moves a bucket.
//!
//! Bucket 0 is level 0; each further level has as many buckets as all before it. A level is an array of segments, and a segment an array of at
//! most [`SEGMENT_BUCKETS_MAX`] buckets, so that no step allocates or clears more than that, and the unused end of a table is as small.
//!
//! Invariants
//! - The buckets in use are a prefix, and every segment with one of them is there. What is not there is null.
//!
//! Cost: two dependent loads before the bucket, the first of which are few and hot.
//! Does not know: how many buckets are in use, what is in them.

#![allow(unsafe_code)]

use std::ptr::null_mut;

use super::bucket::{Bucket, publishing};
use super::piece::{self, Piece, Ref, array_bytes};
use crate::atomic::{AtomicPtr, Ordering};
use crate::epoch::Pin;

/// Levels of the largest table.
const LEVELS: usize = if cfg!(any(loom, shuttle)) { 4 } else { 29 };

/// Most buckets of a table; a fuller one has longer chains.
pub(super) const BUCKETS_MAX: usize = 1 << (LEVELS - 1);

/// Most buckets of a segment.
pub(super) const SEGMENT_BUCKETS_MAX: usize = if cfg!(any(loom, shuttle)) { 2 } else { 128 };

type Segment = AtomicPtr<Piece<Bucket>>;

/// Where a bucket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    level: usize,
    segment: usize,
    bucket: usize,
}

impl Place {
    #[inline]
    fn of(index: usize) -> Place {
        let level = (usize::BITS - index.leading_zeros()) as usize;
        let within = index - (1 << level >> 1);
        Place { level, segment: within / SEGMENT_BUCKETS_MAX, bucket: within % SEGMENT_BUCKETS_MAX }
    }

    fn level_buckets(self) -> usize {
        1 << self.level.saturating_sub(1)
    }

    fn segment_buckets(self) -> usize {
        self.level_buckets().min(SEGMENT_BUCKETS_MAX)
    }

    fn level_segments(self) -> usize {
        self.level_buckets() / self.segment_buckets()
    }

    /// The bytes that the level (if the bucket is its first) and the segment (likewise) take.
    fn bytes(self) -> usize {
        let level = if self.segment == 0 { array_bytes::<Segment>(self.level_segments()) } else { 0 };
        if self.bucket == 0 { level + array_bytes::<Bucket>(self.segment_buckets()) } else { 0 }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Directory {
    levels: [AtomicPtr<Piece<Segment>>; LEVELS],
}

impl Directory {
    pub(super) fn new() -> Directory {
        Directory { levels: std::array::from_fn(|_| AtomicPtr::new(null_mut())) }
    }

    /// Bucket `index`, if it is there.
    ///
    /// # Safety
    /// Until `'g` ends, nothing of the directory is freed that is in it at any moment from now on: it is retired after the pin behind `'g` began at
    /// the earliest, or the caller is the writer and takes nothing out of it.
    #[inline]
    pub(super) unsafe fn bucket<'g>(&self, index: usize) -> Option<Ref<'g, Bucket>> {
        let place = Place::of(index);
        let level = self.levels[place.level].load(Ordering::Acquire);
        if level.is_null() {
            return None;
        }
        // SAFETY: the level was made with the segments that a place in it may name; it lives, as the caller guarantees.
        let segment = unsafe { piece::at(level, place.segment) };
        let segment = segment.load(Ordering::Acquire);
        if segment.is_null() {
            return None;
        }
        // SAFETY: as above, for the buckets of a segment.
        Some(unsafe { piece::at(segment, place.bucket) })
    }

    /// Writer: makes room for bucket `index`, the one behind the last. The bytes that took.
    pub(super) fn grow(&self, index: usize) -> usize {
        let place = Place::of(index);
        if place.bucket != 0 {
            return 0;
        }
        if place.segment == 0 {
            let level = piece::alloc(place.level_segments(), || AtomicPtr::new(null_mut()));
            self.levels[place.level].store(level, publishing());
        }
        let level = self.levels[place.level].load(Ordering::Relaxed);
        // SAFETY: the level is there: it was made just now or for the bucket before; only the writer takes it out, in `shrink`.
        let segment = unsafe { piece::at(level, place.segment) };
        segment.store(piece::alloc(place.segment_buckets(), Bucket::new), publishing());
        place.bytes()
    }

    /// Writer: lets go of the room of bucket `index`, the last one, which is empty and which no reader is sent to any more. The bytes that frees.
    pub(super) fn shrink(&self, index: usize, pin: &Pin) -> usize {
        let place = Place::of(index);
        if place.bucket != 0 {
            return 0;
        }
        let level = self.levels[place.level].load(Ordering::Relaxed);
        // SAFETY: the level is there as long as one of its buckets is, and was made with this segment.
        let segment = unsafe { piece::at(level, place.segment) };
        let buckets = segment.load(Ordering::Relaxed);
        segment.store(null_mut(), publishing());
        // SAFETY: made in `grow` with this length; the link that was just cut was the only way to it.
        unsafe { piece::retire(buckets, place.segment_buckets(), pin) };
        if place.segment == 0 {
            self.levels[place.level].store(null_mut(), publishing());
            // SAFETY: as above.
            unsafe { piece::retire(level, place.level_segments(), pin) };
        }
        place.bytes()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn each_level_has_as_many_buckets_as_all_before_it() {
        let mut place = Place { level: 0, segment: 0, bucket: 0 };
        for index in 0..10_000 {
            assert_eq!(Place::of(index), place, "bucket {index}");
            place.bucket += 1;
            if place.bucket == place.segment_buckets() {
                place.bucket = 0;
                place.segment += 1;
            }
            if place.segment == place.level_segments() {
                place = Place { level: place.level + 1, segment: 0, bucket: 0 };
            }
        }
        assert_eq!(Place::of(BUCKETS_MAX - 1).level, LEVELS - 1);
    }

    #[test]
    fn what_growing_takes_shrinking_frees() {
        let directory = Directory::new();
        let pin = crate::epoch::pin();
        let grown: Vec<usize> = (0..1000).map(|index| directory.grow(index)).collect();
        // SAFETY: this test is the writer.
        assert!(unsafe { directory.bucket(999) }.is_some());
        let shrunk: Vec<usize> = (0..1000).rev().map(|index| directory.shrink(index, &pin)).collect();
        assert!(grown.iter().eq(shrunk.iter().rev()));
        assert!(grown.iter().all(|bytes| *bytes <= 16 << 10), "one segment of 8 KiB, one array of pointers");
        // SAFETY: as above.
        assert!(unsafe { directory.bucket(0) }.is_none());
    }
}
