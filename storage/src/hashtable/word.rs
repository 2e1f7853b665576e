//! What a slot holds: the address of an item and sixteen bits of its key's hash, or nothing.
//!
//! Does not know: buckets, who owns the count.

/// A slot without an item.
pub(super) const EMPTY: usize = 0;

const ADDRESS_BITS: u32 = 48;

/// The bits of `hash` that a slot holds, at the place where it holds them. No bucket index is made of them.
#[inline]
pub(super) const fn tag(hash: u64) -> usize {
    (hash as usize) >> ADDRESS_BITS << ADDRESS_BITS
}

/// The word for an item at `address`.
#[inline]
pub(super) const fn word(tag: usize, address: usize) -> usize {
    debug_assert!(address != 0 && address >> ADDRESS_BITS == 0, "addresses of user space");
    tag | address
}

/// Whether `word` has this tag.
#[inline]
pub(super) const fn has_tag(word: usize, tag: usize) -> bool {
    (word ^ tag) >> ADDRESS_BITS == 0
}

/// The address in `word`.
#[inline]
pub(super) const fn address(word: usize) -> usize {
    word & ((1 << ADDRESS_BITS) - 1)
}

const _: () = assert!(size_of::<usize>() == 8);
