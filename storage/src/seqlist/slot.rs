//! A slot of the sequence list: one word that readers on any core load.
//!
//! 0 is empty. Else it is the address of an item, which the slot owns a count of; or, with the lowest bit set, the address of a [`Stale`] node, which
//! owns it.
//!
//! Does not know: segments, who may see what.

use crate::epoch::{Node, Pin};
use crate::item::{Item, ItemRef};
use crate::types::Seqno;

const STALE: usize = 1;

/// A version that a newer one replaced, kept for a reader.
pub(super) struct Stale {
    item: Item,
    superseded: Seqno,
}

/// What a slot shows to a reader.
pub(super) struct Shown<'g> {
    pub(super) item: ItemRef<'g>,
    /// Seqno of the version that replaced it; none if it is the newest.
    pub(super) superseded: Option<Seqno>,
}

/// The word of a newest version.
pub(super) fn live(item: Item) -> usize {
    item.into_raw()
}

/// The word that keeps what `word`, a newest version's, holds, replaced by `superseded`.
///
/// # Safety
/// `word` comes from [`live`] and stands in no other slot that gives it up.
pub(super) unsafe fn stale(word: usize, superseded: Seqno) -> usize {
    // SAFETY: the caller hands the word's count over.
    let item = unsafe { Item::from_raw(word) };
    Node::alloc(Stale { item, superseded }) as usize | STALE
}

/// Whether the word holds a stale version.
pub(super) fn is_stale(word: usize) -> bool {
    word & STALE != 0
}

fn node(word: usize) -> *mut Node<Stale> {
    (word & !STALE) as *mut Node<Stale>
}

/// What `word` shows; `None` if it is empty.
///
/// # Safety
/// The word was loaded from a slot under the pin that `'g` stands for, or `'g` lies within the owner's hold on the slot.
pub(super) unsafe fn show<'g>(word: usize) -> Option<Shown<'g>> {
    if word == 0 {
        return None;
    }
    if !is_stale(word) {
        // SAFETY: the slot's count is given up through the epoch, which the caller has pinned, or is held by the caller.
        let item = unsafe { Item::borrow_raw(word) };
        return Some(Shown { item, superseded: None });
    }
    // SAFETY: the node is retired through the epoch, which the caller has pinned, or is held by the caller.
    let stale = unsafe { Node::get(node(word)) };
    Some(Shown { item: ItemRef::of(&stale.item), superseded: Some(stale.superseded) })
}

/// Gives up what `word` holds when every pin is gone, and returns it.
///
/// # Safety
/// The word was taken out of its slot, and stands in no other.
pub(super) unsafe fn give_up(word: usize, pin: &Pin) -> Item {
    if is_stale(word) {
        // SAFETY: the node is alive until it is retired, below.
        let item = unsafe { Node::get(node(word)) }.item.clone();
        // SAFETY: no slot names it any more, as the caller says.
        unsafe { Node::retire(node(word), item.resident_bytes(), pin) };
        return item;
    }
    // SAFETY: the caller hands the word's count over.
    let item = unsafe { Item::from_raw(word) };
    pin.retire(item.clone(), item.resident_bytes());
    item
}
