//! A heap: the regions that one thread takes pieces from.
//!
//! Does not know: what a piece is for.

#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::class::CLASSES;
use super::region::{Books, Region, SlabRef};

/// Free slabs of regions in use that keep their memory: one MiB.
pub(super) const FREE_SLABS_MAX: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Heap(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// By class: slabs with a free piece.
    partial: [Vec<SlabRef>; CLASSES],
    /// Regions with a free slab.
    regions: Vec<NonNull<Region>>,
    /// Regions without a piece that is out.
    unused: usize,
    /// Free slabs of the other regions that have their memory.
    free_slabs: usize,
    /// The thread has ended: nothing is taken any more.
    is_left: bool,
    #[cfg(test)]
    mapped: usize,
}

// SAFETY: regions are reached under the heap's lock only, and belong to no thread.
unsafe impl Send for Inner {}

/// The heap of a thread, which says when the thread ends.
struct OfThread(Arc<Heap>);

impl Drop for OfThread {
    fn drop(&mut self) {
        drop(self.0.leave());
    }
}

thread_local! {
    static HEAP: OfThread = OfThread(Heap::new());
}

/// For threads that are ending and have no heap any more.
static LATE: OnceLock<Arc<Heap>> = OnceLock::new();

/// A piece of `class`; `None` if the system has no memory.
pub(super) fn take(class: usize) -> Option<NonNull<u8>> {
    HEAP.try_with(|heap| heap.0.take(class)).unwrap_or_else(|_| LATE.get_or_init(Heap::new).take(class))
}

/// Gives a piece back to the heap that it came from.
///
/// # Safety
/// It comes from [`take`] for `class`, is given back once, and nobody uses it any more.
pub(super) unsafe fn give(piece: *mut u8, class: usize) {
    // SAFETY: the piece is out, so its region is mapped and keeps its heap.
    let heap = unsafe { Region::heap(Region::of(piece)) };
    // SAFETY: as the caller guarantees. What is returned may keep the heap, so it is dropped when the lock is released.
    let last = unsafe { heap.lock().give(piece, class) };
    drop(last);
}

impl Heap {
    fn new() -> Arc<Heap> {
        Arc::new(Heap(Mutex::new(Inner {
            partial: [const { Vec::new() }; CLASSES],
            regions: Vec::new(),
            unused: 0,
            free_slabs: 0,
            is_left: false,
            #[cfg(test)]
            mapped: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Heap>, class: usize) -> Option<NonNull<u8>> {
        self.lock().take(class, self)
    }

    /// Lets go of regions that nothing is out of, now and later. What is returned keeps the heap until its lock is free.
    fn leave(&self) -> Vec<Arc<Heap>> {
        let mut inner = self.lock();
        inner.is_left = true;
        let is_unused = |region: &NonNull<Region>| books(*region).is_unused();
        let unused: Vec<NonNull<Region>> = inner.regions.iter().copied().filter(is_unused).collect();
        // SAFETY: no piece of them is out.
        unused.into_iter().map(|region| unsafe { inner.unmap(region) }).collect()
    }
}

impl Inner {
    fn take(&mut self, class: usize, heap: &Arc<Heap>) -> Option<NonNull<u8>> {
        let slab = match self.partial[class].last() {
            Some(slab) => *slab,
            None => self.begin_slab(class, heap)?,
        };
        // SAFETY: the lock is held, and the slab is among those that have a piece.
        let piece = unsafe { slab.take() };
        // SAFETY: as above.
        if unsafe { slab.is_full() } {
            self.partial[class].pop();
        }
        Some(piece)
    }

    #[cold]
    fn begin_slab(&mut self, class: usize, heap: &Arc<Heap>) -> Option<SlabRef> {
        let region = match self.regions.last() {
            Some(region) => *region,
            None => self.map(heap)?,
        };
        let books = books(region);
        if books.is_unused() {
            self.unused -= 1;
            self.free_slabs += books.present();
        }
        let (index, was_present) = books.take();
        self.free_slabs -= usize::from(was_present);
        if books.free == 0 {
            self.regions.pop();
        }
        let slab = SlabRef { region, index };
        // SAFETY: the lock is held, and the slab was free.
        unsafe { slab.begin(class) };
        self.partial[class].push(slab);
        Some(slab)
    }

    fn map(&mut self, heap: &Arc<Heap>) -> Option<NonNull<Region>> {
        let region = Region::map(heap)?;
        books(region).place = self.regions.len() as u32;
        self.regions.push(region);
        self.unused += 1;
        #[cfg(test)]
        {
            self.mapped += 1;
        }
        Some(region)
    }

    /// # Safety
    /// As [`give`], for a piece of this heap.
    unsafe fn give(&mut self, piece: *mut u8, class: usize) -> Option<Arc<Heap>> {
        let slab = SlabRef::of(piece);
        // SAFETY: the lock is held, and a piece of the slab is out.
        let was_full = unsafe { slab.is_full() };
        // SAFETY: as above.
        unsafe { slab.give(piece) };
        // SAFETY: as above; the region is still mapped.
        let head = unsafe { slab.head() };
        debug_assert_eq!(
            usize::from(head.class),
            class,
            "a piece comes back with the size with which it was taken"
        );
        if was_full {
            head.place = self.partial[class].len() as u32;
            self.partial[class].push(slab);
        }
        if head.used > 0 { None } else { self.end_slab(slab, class) }
    }

    #[cold]
    fn end_slab(&mut self, slab: SlabRef, class: usize) -> Option<Arc<Heap>> {
        // SAFETY: the lock is held and the region is mapped.
        let place = unsafe { slab.head() }.place as usize;
        self.partial[class].swap_remove(place);
        if let Some(moved) = self.partial[class].get(place) {
            // SAFETY: as above: regions of slabs with free pieces are mapped.
            unsafe { moved.head() }.place = place as u32;
        }
        let books = books(slab.region);
        if books.free == 0 {
            books.place = self.regions.len() as u32;
            self.regions.push(slab.region);
        }
        books.free |= 1 << slab.index;
        self.free_slabs += 1;
        if books.is_unused() {
            self.unused += 1;
            self.free_slabs -= books.present();
            if self.unused > 1 || self.is_left {
                // SAFETY: no piece of the region is out.
                return Some(unsafe { self.unmap(slab.region) });
            }
        } else if self.free_slabs > FREE_SLABS_MAX && slab.give_back() {
            self.free_slabs -= 1;
            books.absent |= 1 << slab.index;
        }
        None
    }

    /// # Safety
    /// No piece of the region is out.
    unsafe fn unmap(&mut self, region: NonNull<Region>) -> Arc<Heap> {
        let place = books(region).place;
        self.unused -= 1;
        self.regions.swap_remove(place as usize);
        if let Some(moved) = self.regions.get(place as usize) {
            books(*moved).place = place;
        }
        #[cfg(test)]
        {
            self.mapped -= 1;
        }
        // SAFETY: the caller guarantees that no piece is out; the heap has just forgotten it.
        unsafe { Region::unmap(region) }
    }
}

/// How the slabs of a region are used, for a heap that holds its lock and refers to each region once at a time.
fn books<'r>(region: NonNull<Region>) -> &'r mut Books {
    // SAFETY: heaps call this under their lock, for regions that are mapped.
    unsafe { Region::books(region) }
}

#[cfg(all(test, not(any(fuzzing, loom, shuttle, miri))))]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::class::{class_bytes, class_of};
    use super::super::region::SLABS;
    use super::*;

    /// A piece that is out, filled with a byte of its own.
    struct Out {
        piece: NonNull<u8>,
        class: usize,
        mark: u8,
    }

    // SAFETY: whoever has it is the only one to use the piece.
    unsafe impl Send for Out {}

    impl Out {
        fn new(heap: &Arc<Heap>, class: usize, mark: u8) -> Out {
            let piece = heap.take(class).expect("the system has memory");
            assert_eq!(piece.addr().get() % 8, 0);
            // SAFETY: the piece has this many bytes and is ours.
            unsafe { piece.write_bytes(mark, class_bytes(class)) };
            Out { piece, class, mark }
        }

        fn end(self) {
            // SAFETY: as above, and it was filled.
            let bytes = unsafe { std::slice::from_raw_parts(self.piece.as_ptr(), class_bytes(self.class)) };
            assert!(bytes.iter().all(|byte| *byte == self.mark), "somebody else has written into it");
            // SAFETY: it was taken, and nobody uses it any more.
            unsafe { give(self.piece.as_ptr(), self.class) };
        }
    }

    /// What the books say agrees with each other.
    fn check(heap: &Heap) {
        let inner = heap.lock();
        let (mut unused, mut free_slabs) = (0, 0);
        for (place, region) in inner.regions.iter().enumerate() {
            let books = books(*region);
            assert_eq!(books.place as usize, place);
            assert_ne!(books.free, 0);
            unused += usize::from(books.is_unused());
            free_slabs += if books.is_unused() { 0 } else { books.present() };
        }
        assert_eq!((inner.unused, inner.free_slabs), (unused, free_slabs));
        assert!(unused <= 1);
        for (class, slabs) in inner.partial.iter().enumerate() {
            for (place, slab) in slabs.iter().enumerate() {
                // SAFETY: the lock is held.
                assert!(!unsafe { slab.is_full() });
                // SAFETY: the lock is held.
                let head = unsafe { slab.head() };
                assert_eq!((usize::from(head.class), head.place as usize), (class, place));
                assert!(head.used > 0);
            }
        }
    }

    #[test]
    fn pieces_do_not_overlap_and_regions_that_are_free_go_back() {
        for seed in 0..10 {
            let mut random = SmallRng::seed_from_u64(seed);
            let heap = Heap::new();
            let mut out: Vec<Out> = Vec::new();
            for round in 0..40 {
                let (grows, largest) = (random.random_bool(0.6), random.random_range(1..=4096));
                for _ in 0..random.random_range(0..3000) {
                    if grows {
                        let class = class_of(random.random_range(1..=largest));
                        out.push(Out::new(&heap, class, random.random()));
                    } else if !out.is_empty() {
                        out.swap_remove(random.random_range(0..out.len())).end();
                    }
                }
                check(&heap);
                assert!(heap.lock().mapped > 0 || round == 0 || out.is_empty());
            }
            out.into_iter().for_each(Out::end);
            check(&heap);
            assert_eq!(heap.lock().mapped, 1, "seed {seed}: one is kept for what comes");
            drop(heap.leave());
            assert_eq!(heap.lock().mapped, 0);
            assert_eq!(Arc::strong_count(&heap), 1, "regions have given their counts back");
        }
    }

    #[test]
    fn free_slabs_of_a_region_in_use_give_their_memory_back_beyond_some() {
        let heap = Heap::new();
        let class = class_of(1024);
        let keep = Out::new(&heap, class_of(8), 1);
        let out: Vec<Out> = (0..64 * (SLABS - 1) / 2 * 3).map(|_| Out::new(&heap, class, 7)).collect();
        out.into_iter().for_each(Out::end);
        check(&heap);
        let absent: u32 = heap.lock().regions.iter().map(|region| books(*region).absent.count_ones()).sum();
        assert!(absent > 0 && heap.lock().free_slabs <= FREE_SLABS_MAX, "{absent}");
        let again: Vec<Out> = (0..64 * (SLABS - 1)).map(|_| Out::new(&heap, class, 9)).collect();
        check(&heap);
        again.into_iter().chain([keep]).for_each(Out::end);
        drop(heap.leave());
        assert_eq!(heap.lock().mapped, 0);
    }

    #[test]
    fn pieces_come_back_from_other_threads_and_after_their_thread_has_ended() {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                std::thread::spawn(move || {
                    let heap = HEAP.with(|heap| heap.0.clone());
                    let mut random = SmallRng::seed_from_u64(seed);
                    let out: Vec<Out> = (0..20_000)
                        .map(|_| Out::new(&heap, class_of(random.random_range(1..300)), random.random()))
                        .collect();
                    (heap, out)
                })
            })
            .collect();
        let (heaps, mut out): (Vec<_>, Vec<_>) =
            threads.into_iter().map(|thread| thread.join().unwrap()).unzip();
        let mut mixed: Vec<Vec<Out>> = (0..4).map(|_| Vec::new()).collect();
        while out.iter().any(|out| !out.is_empty()) {
            for (from, of_one) in out.iter_mut().enumerate() {
                for (to, piece) in of_one.drain(of_one.len().saturating_sub(8)..).enumerate() {
                    mixed[(from + to) % 4].push(piece);
                }
            }
        }
        std::thread::scope(|scope| {
            for out in mixed {
                scope.spawn(move || out.into_iter().for_each(Out::end));
            }
        });
        for heap in heaps {
            assert_eq!(heap.lock().mapped, 0);
            assert_eq!(Arc::strong_count(&heap), 1);
        }
    }
}
