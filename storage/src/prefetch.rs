//! Hints to the CPU that memory will be used soon, so that it is fetched while other things are done.
//!
//! Invariants
//! - Nothing depends on a hint.
//!
//! Cost: an instruction; nothing where there is none.
//! Does not know: what the memory holds.
#![allow(unsafe_code)]

/// The first cache line of `value` will be used soon.
#[inline]
pub(crate) fn foresee<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees and faults on no address, and this one is valid.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(value).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
