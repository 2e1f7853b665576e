//! One version of a document in memory: a counted handle of eight bytes on one allocation.
//!
//! Head, key and value lie in one piece. What is usually absent takes no room: flags that are zero or those an SDK sets for JSON, an expiry of
//! none, a revid of one. Any thread may hold a handle and read; nothing in an item ever changes but its count.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 4 | count of handles |
//! | 4 | 4 | bits 0-28 value length, 29 has expiry, 30-31 flags: 0 zero, 1 SDK JSON, 2 stored |
//! | 8 | 8 | CAS |
//! | 16 | 8 | bits 0-47 seqno, 48-55 key length, 56-58 datatype, 59-61 kind, 62-63 revid: 0 one, 1 two bytes, 2 eight bytes |
//! | 24 | 0 or 4 | flags |
//! | | 0 or 4 | expiry |
//! | | 0, 2 or 8 | revid |
//! | | … | key with its collection prefix, value |
//!
//! Invariants
//! - A handle keeps the allocation alive. A lock-free structure owns one count for each place that it stores an item in, and gives it up through
//!   [`crate::epoch`], so that a pinned reader may take a count of its own.
//!
//! Cost: one piece of memory a version; 24 bytes beside key and value in the usual case, and what rounding adds (`slab`).
//! Does not know: which version is newest, who holds handles.

#![allow(unsafe_code)]

mod pool;

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;

use crate::atomic::{AtomicU32, Ordering, fence};
use crate::slab;
use crate::types::{Cas, ItemMeta, KEY_BYTES_MAX, Kind, SEQNO_MAX, Seqno};

/// Longest value that an item holds, in bytes.
pub const VALUE_BYTES_MAX: usize = (1 << 29) - 1;

/// Largest datatype: its bits are JSON, Snappy, xattr.
pub const DATATYPE_MAX: u8 = 7;

/// Items up to this size have a layout of their class, so that those that are rounded alike can use each other's memory.
const SMALL_BYTES_MAX: usize = 512;

/// The flags that SDKs set for JSON documents ("common flags", format JSON).
const FLAGS_JSON: u32 = 0x0200_0000;

const COUNT_MAX: u32 = u32::MAX / 2;

#[repr(C)]
struct Head {
    count: AtomicU32,
    shape: u32,
    cas: u64,
    place: u64,
    #[cfg(any(loom, shuttle))]
    is_freed: std::sync::atomic::AtomicBool,
    /// Stands for all that is written once: loom sees a reader that does not come after the writer.
    #[cfg(loom)]
    contents: loom::cell::UnsafeCell<()>,
}

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Head>() == 24);

/// How the optional fields of a head are stored.
#[derive(Debug, Clone, Copy)]
struct Shape {
    value_len: usize,
    key_len: usize,
    /// 0 zero, 1 [`FLAGS_JSON`], 2 stored.
    flags: u32,
    has_expiry: bool,
    /// 0 one, 1 two bytes, 2 eight bytes.
    revid: u64,
}

impl Shape {
    fn of(meta: &ItemMeta, key_len: usize, value_len: usize) -> Shape {
        let flags = match meta.flags {
            0 => 0,
            FLAGS_JSON => 1,
            _ => 2,
        };
        let revid = match meta.revid {
            1 => 0,
            revid if revid <= u64::from(u16::MAX) => 1,
            _ => 2,
        };
        Shape { value_len, key_len, flags, has_expiry: meta.expiry != 0, revid }
    }

    fn flags_bytes(self) -> usize {
        if self.flags == 2 { 4 } else { 0 }
    }

    fn expiry_bytes(self) -> usize {
        if self.has_expiry { 4 } else { 0 }
    }

    fn revid_bytes(self) -> usize {
        [0, 2, 8, 8][self.revid as usize]
    }

    fn key_at(self) -> usize {
        self.flags_bytes() + self.expiry_bytes() + self.revid_bytes()
    }

    fn tail_len(self) -> usize {
        self.key_at() + self.key_len + self.value_len
    }

    fn layout(self) -> Layout {
        layout_of(size_of::<Head>() + self.tail_len())
    }
}

/// The layout of an item of `len` bytes.
fn layout_of(len: usize) -> Layout {
    let bytes = if len <= SMALL_BYTES_MAX { slab::piece_bytes(len) } else { len };
    Layout::from_size_align(bytes, align_of::<Head>()).expect("lengths are bounded")
}

/// One version of a document. See the module.
pub struct Item(NonNull<Head>);

// SAFETY: what a handle points to is never changed after it was made, except the count, which is atomic.
unsafe impl Send for Item {}
// SAFETY: as above.
unsafe impl Sync for Item {}

impl Item {
    /// A version of `key`, which has its collection prefix.
    ///
    /// # Panics
    /// If key, value or seqno are beyond what an item holds: [`KEY_BYTES_MAX`], [`VALUE_BYTES_MAX`], [`SEQNO_MAX`], [`DATATYPE_MAX`].
    #[must_use]
    pub fn new(meta: ItemMeta, key: &[u8], value: &[u8]) -> Item {
        assert!(key.len() <= KEY_BYTES_MAX, "key of {} bytes", key.len());
        assert!(value.len() <= VALUE_BYTES_MAX, "value of {} bytes", value.len());
        assert!(meta.seqno <= SEQNO_MAX, "seqno {}", meta.seqno);
        assert!(meta.datatype <= DATATYPE_MAX, "datatype {:#x}", meta.datatype);
        let shape = Shape::of(&meta, key.len(), value.len());
        let layout = shape.layout();
        // SAFETY: it is the layout of an item.
        let start = unsafe { pool::take(layout) };
        let Some(head) = NonNull::new(start.cast::<Head>()) else { handle_alloc_error(layout) };
        let has_expiry = u32::from(shape.has_expiry);
        let place = meta.seqno.0
            | (key.len() as u64) << 48
            | u64::from(meta.datatype) << 56
            | (meta.kind as u64) << 59
            | shape.revid << 62;
        let filled = Head {
            count: AtomicU32::new(1),
            shape: value.len() as u32 | has_expiry << 29 | shape.flags << 30,
            cas: meta.cas.0,
            place,
            #[cfg(any(loom, shuttle))]
            is_freed: std::sync::atomic::AtomicBool::new(false),
            #[cfg(loom)]
            contents: loom::cell::UnsafeCell::new(()),
        };
        #[cfg(loom)]
        filled.contents.with_mut(|_| ());
        // SAFETY: the allocation is ours, aligned for a head, and has room for one.
        unsafe { head.write(filled) };
        let flags = meta.flags.to_ne_bytes();
        let expiry = meta.expiry.to_ne_bytes();
        let revid = meta.revid.to_le_bytes();
        let pieces: [&[u8]; 5] = [
            &flags[..shape.flags_bytes()],
            &expiry[..shape.expiry_bytes()],
            &revid[..shape.revid_bytes()],
            key,
            value,
        ];
        let mut at = size_of::<Head>();
        for piece in pieces {
            // SAFETY: the pieces' lengths sum up to the tail's, which the layout has room for behind the head.
            let target = unsafe { start.add(at) };
            // SAFETY: as above; the allocation is new, so it overlaps with nothing.
            unsafe { target.copy_from_nonoverlapping(piece.as_ptr(), piece.len()) };
            at += piece.len();
        }
        Item(head)
    }

    #[inline]
    fn head(&self) -> &Head {
        // SAFETY: a handle keeps the allocation alive, and the head was written when it was made.
        let head = unsafe { self.0.as_ref() };
        #[cfg(any(loom, shuttle))]
        assert!(!head.is_freed.load(Ordering::SeqCst), "touched after it was freed");
        #[cfg(loom)]
        head.contents.with(|_| ());
        head
    }

    #[inline]
    fn shape(&self) -> Shape {
        let head = self.head();
        Shape {
            value_len: (head.shape & VALUE_BYTES_MAX as u32) as usize,
            key_len: (head.place >> 48) as usize & 0xff,
            flags: head.shape >> 30,
            has_expiry: head.shape >> 29 & 1 != 0,
            revid: head.place >> 62,
        }
    }

    #[inline]
    fn tail(&self, shape: Shape) -> &[u8] {
        // SAFETY: the tail lies behind the head in the same allocation.
        let tail = unsafe { self.0.as_ptr().cast::<u8>().add(size_of::<Head>()) };
        // SAFETY: it has this length, was written in whole when the item was made, and lives as long as the handle.
        unsafe { std::slice::from_raw_parts(tail, shape.tail_len()) }
    }

    /// Position in the vbucket.
    #[must_use]
    #[inline]
    pub fn seqno(&self) -> Seqno {
        Seqno(self.head().place & SEQNO_MAX.0)
    }

    /// Version for optimistic concurrency.
    #[must_use]
    #[inline]
    pub fn cas(&self) -> Cas {
        Cas(self.head().cas)
    }

    /// What the version says.
    #[must_use]
    #[inline]
    pub fn kind(&self) -> Kind {
        Kind::from_u8((self.head().place >> 59) as u8 & 7).expect("made from a kind")
    }

    /// Whether the key is absent after this version.
    #[must_use]
    #[inline]
    pub fn is_deleted(&self) -> bool {
        self.kind().is_deleted()
    }

    /// Datatype bits of the value.
    #[must_use]
    #[inline]
    pub fn datatype(&self) -> u8 {
        (self.head().place >> 56) as u8 & DATATYPE_MAX
    }

    /// The client's opaque 32 bits.
    #[must_use]
    #[inline]
    pub fn flags(&self) -> u32 {
        let shape = self.shape();
        match shape.flags {
            0 => 0,
            1 => FLAGS_JSON,
            _ => u32::from_ne_bytes(std::array::from_fn(|index| self.tail(shape)[index])),
        }
    }

    /// Absolute expiry in epoch seconds, 0 for none; of a tombstone: its delete time.
    #[must_use]
    #[inline]
    pub fn expiry(&self) -> u32 {
        let shape = self.shape();
        if !shape.has_expiry {
            return 0;
        }
        let at = shape.flags_bytes();
        u32::from_ne_bytes(std::array::from_fn(|index| self.tail(shape)[at + index]))
    }

    /// Number of changes to the key, counted across deletes.
    #[must_use]
    #[inline]
    pub fn revid(&self) -> u64 {
        let shape = self.shape();
        let len = shape.revid_bytes();
        if len == 0 {
            return 1;
        }
        let at = shape.key_at() - len;
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&self.tail(shape)[at..at + len]);
        u64::from_le_bytes(bytes)
    }

    /// All but key and value.
    #[must_use]
    #[inline]
    pub fn meta(&self) -> ItemMeta {
        ItemMeta {
            seqno: self.seqno(),
            cas: self.cas(),
            revid: self.revid(),
            flags: self.flags(),
            expiry: self.expiry(),
            datatype: self.datatype(),
            kind: self.kind(),
        }
    }

    /// The key, collection prefix included.
    #[must_use]
    #[inline]
    pub fn key(&self) -> &[u8] {
        let shape = self.shape();
        &self.tail(shape)[shape.key_at()..][..shape.key_len]
    }

    /// The value; empty for a tombstone without one.
    #[must_use]
    #[inline]
    pub fn value(&self) -> &[u8] {
        let shape = self.shape();
        &self.tail(shape)[shape.key_at() + shape.key_len..]
    }

    /// Resident bytes of this version, what the allocator adds included.
    #[must_use]
    #[inline]
    pub fn resident_bytes(&self) -> usize {
        slab::taken_bytes(size_of::<Head>() + self.shape().tail_len())
    }

    /// Whether both are handles on the same allocation.
    #[must_use]
    #[inline]
    pub fn is_same(&self, other: &Item) -> bool {
        self.0 == other.0
    }

    /// Handles on it, if nobody else makes or drops one meanwhile.
    #[must_use]
    pub fn handles(&self) -> u32 {
        self.head().count.load(Ordering::Relaxed)
    }

    /// Turns the handle into an address, to be stored in an atomic: a multiple of 8, not 0, below 2^47. Its count is kept until [`Item::from_raw`].
    #[must_use]
    pub(crate) fn into_raw(self) -> usize {
        ManuallyDrop::new(self).0.as_ptr() as usize
    }

    /// The handle that became `raw`.
    ///
    /// # Safety
    /// `raw` comes from [`Item::into_raw`], once for each call.
    pub(crate) unsafe fn from_raw(raw: usize) -> Item {
        // SAFETY: the caller guarantees that `raw` was made from a handle, so it is not null.
        Item(unsafe { NonNull::new_unchecked(raw as *mut Head) })
    }

    /// A look at the item at `raw` without a count of its own.
    ///
    /// # Safety
    /// `raw` comes from [`Item::into_raw`], and until `'g` ends its count is not given up: a pin behind `'g` delays that, or the caller owns it.
    #[inline]
    pub(crate) unsafe fn borrow_raw<'g>(raw: usize) -> ItemRef<'g> {
        // SAFETY: the caller guarantees where it comes from; the handle made here is never dropped.
        let item = unsafe { Item::from_raw(raw) };
        ItemRef { item: ManuallyDrop::new(item), lives: PhantomData }
    }
}

/// A look at an item that somebody else keeps alive; [`Clone::clone`] on what it shows takes a count.
pub struct ItemRef<'g> {
    item: ManuallyDrop<Item>,
    lives: PhantomData<&'g Item>,
}

impl<'g> ItemRef<'g> {
    /// A look at `item`, whose handle lives.
    #[must_use]
    #[inline]
    pub fn of(item: &'g Item) -> ItemRef<'g> {
        ItemRef { item: ManuallyDrop::new(Item(item.0)), lives: PhantomData }
    }
}

impl Deref for ItemRef<'_> {
    type Target = Item;

    #[inline]
    fn deref(&self) -> &Item {
        &self.item
    }
}

impl fmt::Debug for ItemRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.item.fmt(f)
    }
}

impl Clone for Item {
    #[inline]
    fn clone(&self) -> Item {
        // Whoever clones has a handle, or a pin that protects one, so the count is not 0 and nothing needs to be ordered.
        let before = self.head().count.fetch_add(1, Ordering::Relaxed);
        if before > COUNT_MAX {
            std::process::abort();
        }
        Item(self.0)
    }
}

impl Drop for Item {
    #[inline]
    fn drop(&mut self) {
        // A checker that found something unwinds: what it found is to be told, not found again.
        if cfg!(any(loom, shuttle)) && std::thread::panicking() {
            return;
        }
        if self.head().count.fetch_sub(1, Ordering::Release) == 1 {
            // What other threads read through their handles happened before they gave them up.
            fence(Ordering::Acquire);
            self.free();
        }
    }
}

impl Item {
    #[cfg(not(any(loom, shuttle)))]
    #[inline(never)]
    fn free(&mut self) {
        let layout = self.shape().layout();
        // SAFETY: the last handle is gone, so nobody looks at it; the layout is the one it was allocated with.
        unsafe { pool::give(self.0.as_ptr().cast(), layout) };
    }

    /// Marks it and buries it, so that a late reader finds the mark.
    #[cfg(any(loom, shuttle))]
    fn free(&mut self) {
        let layout = self.shape().layout();
        let was_freed = self.head().is_freed.swap(true, Ordering::SeqCst);
        assert!(!was_freed, "freed twice");
        #[cfg(loom)]
        {
            // SAFETY: as in `head`, which would find the mark.
            let head = unsafe { self.0.as_ref() };
            head.contents.with_mut(|_| ());
        }
        // SAFETY: nobody uses the count any more: a late reader finds the mark first.
        unsafe { std::ptr::drop_in_place(&raw mut (*self.0.as_ptr()).count) };
        crate::epoch::bury(self.0.as_ptr().cast(), layout);
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Item) -> bool {
        self.meta() == other.meta() && self.key() == other.key() && self.value() == other.value()
    }
}

impl Eq for Item {}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item")
            .field("meta", &self.meta())
            .field("key", &self.key().escape_ascii().to_string())
            .field("value_len", &self.value().len())
            .finish()
    }
}

/// A version for unit tests: its CAS is the number of its seqno, all else is as in a plain document.
#[cfg(test)]
pub(crate) fn test_item(key: &[u8], seqno: u64, kind: Kind, value: &[u8]) -> Item {
    let (seqno, cas) = (Seqno(seqno), Cas(seqno));
    Item::new(ItemMeta { seqno, cas, revid: 1, flags: 0, expiry: 0, datatype: 0, kind }, key, value)
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn metas()(
            seqno in 0..=SEQNO_MAX.0,
            cas: u64,
            revid in prop_oneof![Just(1u64), 0..=u64::from(u16::MAX), any::<u64>()],
            flags in prop_oneof![Just(0u32), Just(FLAGS_JSON), any::<u32>()],
            expiry in prop_oneof![Just(0u32), any::<u32>()],
            datatype in 0..=DATATYPE_MAX,
            kind in 1u8..=7,
        ) -> ItemMeta {
            let kind = Kind::from_u8(kind).expect("1..=7");
            ItemMeta { seqno: Seqno(seqno), cas: Cas(cas), revid, flags, expiry, datatype, kind }
        }
    }

    proptest! {
        #[test]
        fn an_item_says_what_it_was_made_from(
            meta in metas(),
            key in prop::collection::vec(any::<u8>(), 0..=KEY_BYTES_MAX),
            value in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let item = Item::new(meta, &key, &value);
            let other = item.clone();
            drop(item);
            prop_assert_eq!(other.meta(), meta);
            prop_assert_eq!(other.key(), &key[..]);
            prop_assert_eq!(other.value(), &value[..]);
            prop_assert!(other.resident_bytes() >= 24 + key.len() + value.len());
            prop_assert!(other.resident_bytes() <= 24 + 16 + 23 + 8 + key.len() + value.len());
        }
    }

    #[test]
    fn a_usual_document_takes_24_bytes_beside_key_and_value() {
        let meta = ItemMeta {
            seqno: Seqno(7),
            cas: Cas(1),
            revid: 1,
            flags: FLAGS_JSON,
            expiry: 0,
            datatype: 1,
            kind: Kind::Mutation,
        };
        let item = Item::new(meta, &[b'k'; 20], &[b'v'; 88]);
        assert_eq!(item.resident_bytes(), 24 + 20 + 88 + 4, "rounded to eight bytes");
        assert_eq!(item.handles(), 1);
        assert_eq!(item.clone().handles(), 2);
    }

    #[test]
    fn handles_are_given_up_on_any_thread() {
        let meta = ItemMeta {
            seqno: Seqno(1),
            cas: Cas(1),
            revid: 70_000,
            flags: 3,
            expiry: 9,
            datatype: 0,
            kind: Kind::Deletion,
        };
        let item = Item::new(meta, b"\0key", b"");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let item = item.clone();
                scope.spawn(move || {
                    for _ in 0..1000 {
                        assert_eq!(item.clone().meta(), meta);
                    }
                });
            }
        });
        assert_eq!(item.handles(), 1);
    }
}
