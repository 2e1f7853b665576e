//! A segment of the sequence list: slots in seqno order, found by their seqno.
//!
//! Dense, a slot stands for each seqno from the first on. When half of its versions are gone a segment is packed: what is left, each beside its
//! distance from the first seqno.
//!
//! Invariants
//! - Seqnos rise from slot to slot. Nothing but the words of the slots changes after a segment was made.
//!
//! Cost: 8 bytes a slot dense, 12 packed. A look-up is an addition, or O(log n) packed.
//! Does not know: which segments there are, who reads.

use crate::atomic::{AtomicUsize, Ordering};
use crate::epoch::Node;
use crate::prefetch::foresee;
use crate::slab::Array;
use crate::types::Seqno;

/// See the module.
pub(super) struct Segment {
    first: Seqno,
    /// Packed: the distance of each slot's seqno from the first.
    distances: Option<Array<u32>>,
    slots: Array<AtomicUsize>,
}

impl Segment {
    /// An empty segment for the `slots` seqnos from `first` on.
    pub(super) fn dense(first: Seqno, slots: usize) -> Segment {
        Segment { first, distances: None, slots: Array::collect((0..slots).map(|_| AtomicUsize::new(0))) }
    }

    /// A segment of these words, in the order of their seqnos, which lie within 32 bits of each other.
    pub(super) fn packed(words: &[(Seqno, usize)]) -> Segment {
        let first = words.first().map_or(Seqno(0), |(seqno, _)| *seqno);
        Segment {
            first,
            distances: Some(Array::collect(words.iter().map(|(seqno, _)| (seqno.0 - first.0) as u32))),
            slots: Array::collect(words.iter().map(|(_, word)| AtomicUsize::new(*word))),
        }
    }

    pub(super) fn first(&self) -> Seqno {
        self.first
    }

    /// The highest seqno that it has a slot for.
    pub(super) fn last(&self) -> Seqno {
        self.seqno(self.slots.len().saturating_sub(1))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_packed(&self) -> bool {
        self.distances.is_some()
    }

    /// The seqno of a slot.
    pub(super) fn seqno(&self, index: usize) -> Seqno {
        let distance = match &self.distances {
            Some(distances) => u64::from(distances[index]),
            None => index as u64,
        };
        Seqno(self.first.0 + distance)
    }

    /// The slot of exactly this seqno.
    pub(super) fn index_of(&self, seqno: Seqno) -> Option<usize> {
        let distance = seqno.0.checked_sub(self.first.0)?;
        match &self.distances {
            Some(distances) => search(distances, u32::try_from(distance).ok()?),
            None => usize::try_from(distance).ok().filter(|index| *index < self.slots.len()),
        }
    }

    /// The first slot at or above `seqno`; the number of slots if there is none.
    pub(super) fn lower_bound(&self, seqno: Seqno) -> usize {
        let distance = seqno.0.saturating_sub(self.first.0);
        match &self.distances {
            Some(distances) => distances.partition_point(|at| u64::from(*at) < distance),
            None => usize::try_from(distance).unwrap_or(usize::MAX).min(self.slots.len()),
        }
    }

    pub(super) fn load(&self, index: usize) -> usize {
        self.slots[index].load(Ordering::Acquire)
    }

    /// Asks the CPU to bring a slot in, which is stored to soon.
    #[inline]
    pub(super) fn foresee(&self, index: usize) {
        foresee(&self.slots[index]);
    }

    pub(super) fn store(&self, index: usize, word: usize, ordering: Ordering) {
        self.slots[index].store(word, ordering);
    }

    /// Resident bytes of a segment with `slots` slots, allocator rounding left out.
    pub(super) fn bytes(&self) -> usize {
        let slot = if self.is_packed() { 12 } else { 8 };
        size_of::<Node<Segment>>() + self.slots.len() * slot
    }
}

/// Where `wanted` is among rising `distances`. Versions die all over a segment, so what is left of it lies about where its share of the last
/// distance says: the search begins there and widens until it encloses `wanted`.
fn search(distances: &[u32], wanted: u32) -> Option<usize> {
    let last = *distances.last()?;
    if wanted >= last {
        return (wanted == last).then_some(distances.len() - 1);
    }
    let guess = (u64::from(wanted) * distances.len() as u64 / u64::from(last)) as usize;
    let mut step = 1;
    // What is wanted lies in low..high.
    let (mut low, mut high) = (guess.min(distances.len() - 1), distances.len());
    if distances[low] <= wanted {
        while low + step < high {
            if distances[low + step] > wanted {
                high = low + step;
                break;
            }
            low += step;
            step *= 2;
        }
    } else {
        loop {
            high = low;
            low = low.saturating_sub(step);
            step *= 2;
            if low == 0 || distances[low] <= wanted {
                break;
            }
        }
    }
    distances[low..high].binary_search(&wanted).ok().map(|index| low + index)
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_distance_is_found_where_it_is_and_no_other(
            distances in prop::collection::btree_set(0..3_000u32, 0..400),
            stretch in 1..1_000_000u32,
        ) {
            let distances: Vec<u32> = distances.into_iter().map(|distance| distance * stretch).collect();
            for wanted in 0..3_000u32 {
                for wanted in [wanted * stretch, wanted.wrapping_mul(stretch).wrapping_add(1)] {
                    prop_assert_eq!(search(&distances, wanted), distances.binary_search(&wanted).ok());
                }
            }
        }
    }
}
