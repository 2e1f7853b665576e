//! The hash table of a vbucket: key to newest resident version, one writer, readers on any core.
//!
//! The owner of a [`HashTable`] reads and writes; each [`TableReader`] reads under a pin ([`crate::epoch`]), without locks. Every version that is not
//! flushed is here; flushed ones stay while the shard's memory allows.
//!
//! Invariants
//! - The table owns one count on each item in it and gives it up through the epoch.
//! - A key is in one slot, except within an operation of the writer that moves it.
//! - An insertion splits one bucket at most, an eviction merges one at most: no operation moves more entries than there are in one chain and the
//!   place that it goes to, or allocates more than one segment. An empty table has allocated nothing.
//!
//! Cost: O(1) look-up and insertion; 12 to 12.5 bytes an item beside the items when it has grown, 15 after evictions. A table that was ever filled
//! or read from elsewhere keeps about 300 bytes, which [`HashTable::bytes`] does not count.
//! Does not know: seqno order, disk, when to evict, who reads.

#![allow(unsafe_code)]

mod bucket;
mod directory;
mod piece;
mod shared;
mod word;

#[cfg(all(test, any(loom, shuttle)))]
mod checked;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use std::sync::Arc;

use crate::epoch::{Pin, pin};
use crate::item::{Item, ItemRef};
use crate::mutant::{Mutant, is_on};
use crate::types::Seqno;
use bucket::{BUCKET_SLOTS, Chain, OVERFLOW_BYTES};
use directory::BUCKETS_MAX;
use shared::{Shared, bucket_of, parent_of};
use word::{address, tag, word};

/// Items a bucket above which a table splits a bucket. Worst bytes an item in the table, and worst mean number of groups that a hit reads: at 6.5
/// 13.2 and 1.22, at 8 12.5 and 1.36; at 10 they would be 12.1 and 1.57.
const LOAD_MAX: Ratio = if cfg!(any(loom, shuttle)) { Ratio(2, 1) } else { Ratio(8, 1) };

/// Items a bucket below which it merges one.
const LOAD_MIN: Ratio = if cfg!(any(loom, shuttle)) { Ratio(5, 4) } else { Ratio(5, 1) };

#[derive(Debug, Clone, Copy)]
struct Ratio(usize, usize);

/// The owner's side. See the module.
#[derive(Debug, Default)]
pub struct HashTable {
    shared: Option<Arc<Shared>>,
    seed: u64,
    len: usize,
    item_bytes: usize,
    table_bytes: usize,
    #[cfg(test)]
    moved: usize,
}

/// The side of those who only read, on any thread.
#[derive(Debug, Clone)]
pub struct TableReader {
    shared: Arc<Shared>,
}

impl TableReader {
    /// The version of `key` that is resident at some moment of the call; never an older one than this thread, or one it heard from, has seen.
    #[must_use]
    #[inline]
    pub fn get<'g>(&self, key: &[u8], pin: &'g Pin) -> Option<ItemRef<'g>> {
        self.shared.get(key, pin)
    }
}

impl HashTable {
    /// Where [`HashTable::visit_slots`] begins.
    pub const TOP: usize = usize::MAX;

    /// An empty table. Where its keys go depends on `seed`, which a client must not know: else it could put all of them in one place.
    #[must_use]
    pub fn new(seed: u64) -> HashTable {
        let mut table = HashTable::default();
        table.seed = seed;
        table
    }

    /// A handle for readers. The first one of a table that was never filled allocates what they share.
    #[must_use]
    pub fn reader(&mut self) -> TableReader {
        TableReader { shared: self.share() }
    }

    fn share(&mut self) -> Arc<Shared> {
        self.shared.get_or_insert_with(|| Arc::new(Shared::new(self.seed))).clone()
    }

    /// The resident version of `key`.
    #[must_use]
    #[inline]
    pub fn get(&self, key: &[u8]) -> Option<ItemRef<'_>> {
        let shared = self.shared.as_deref()?;
        // SAFETY: only the writer takes things out, and it cannot while `self` is borrowed.
        let (_, word) = unsafe { shared.find(shared.state().buckets(), shared.hash(key), key) }?;
        // SAFETY: as above; the table owns a count on the item.
        Some(unsafe { Item::borrow_raw(address(word)) })
    }

    /// Makes `item` the newest version of its key and returns the one it replaces.
    pub fn insert(&mut self, item: Item) -> Option<Item> {
        let hash = match &self.shared {
            Some(shared) => shared.hash(item.key()),
            None => self.share().hash(item.key()),
        };
        let shared = self.shared.as_deref().expect("made above");
        let buckets = shared.state().buckets();
        self.item_bytes += item.resident_bytes();
        // SAFETY: nothing is taken out before the slot was used for the last time.
        if let Some((slot, before)) = unsafe { shared.find(buckets, hash, item.key()) } {
            slot.store(word(tag(hash), item.into_raw()));
            let old = give_up(before, &pin());
            self.item_bytes -= old.resident_bytes();
            return Some(old);
        }
        if buckets == 0 {
            self.table_bytes += shared.directory.grow(0);
            shared.publish(1);
        }
        let has_grown = self.chain(bucket_of(hash, buckets.max(1))).push(word(tag(hash), item.into_raw()));
        self.table_bytes += usize::from(has_grown) * OVERFLOW_BYTES;
        self.len += 1;
        if self.len * LOAD_MAX.1 > buckets.max(1) * LOAD_MAX.0 && buckets < BUCKETS_MAX {
            self.split();
        }
        None
    }

    /// Drops `key` from memory if its resident version has this seqno, and returns that version.
    pub fn evict(&mut self, key: &[u8], seqno: Seqno) -> Option<Item> {
        let shared = self.shared.as_deref()?;
        let (hash, buckets) = (shared.hash(key), shared.state().buckets());
        // SAFETY: nothing is taken out before the slot was used for the last time.
        let (slot, found) = unsafe { shared.find(buckets, hash, key) }?;
        // SAFETY: the table owns a count on it.
        if unsafe { Item::borrow_raw(address(found)) }.seqno() != seqno {
            return None;
        }
        let chain = self.chain(bucket_of(hash, buckets));
        let _moved = chain.remove(slot, || shared.publish(buckets));
        let pin = &pin();
        let old = give_up(found, pin);
        self.table_bytes -= chain.trim(pin) * OVERFLOW_BYTES;
        self.item_bytes -= old.resident_bytes();
        self.len -= 1;
        #[cfg(test)]
        {
            self.moved += _moved;
        }
        if self.len == 0 {
            self.drain_slice(usize::MAX);
        } else if buckets > 1 && self.len * LOAD_MIN.1 < buckets * LOAD_MIN.0 {
            self.merge(pin);
        }
        Some(old)
    }

    /// Shows the versions in buckets with `max` slots together (one bucket at least) below bucket `from`, [`HashTable::TOP`] at first, and says where
    /// to go on; `None` at the end. It goes down, because that is where evictions move things. A version that moves meanwhile may be missed or shown twice.
    pub fn visit_slots(&self, from: usize, max: usize, mut visit: impl FnMut(&Item)) -> Option<usize> {
        let from = from.min(self.buckets());
        let end = from.saturating_sub((max / BUCKET_SLOTS).max(1));
        for index in (end..from).rev() {
            self.chain(index).each(|word| {
                // SAFETY: the table owns a count on each item in it and cannot give one up while `self` is borrowed.
                visit(&*unsafe { Item::borrow_raw(address(word)) });
            });
        }
        (end > 0).then_some(end)
    }

    /// Drops all versions from up to `max` buckets, to empty a large table in slices. Whether it is empty.
    pub fn drain_slice(&mut self, max: usize) -> bool {
        let pin = &pin();
        for _ in 0..max {
            let Some(last) = self.buckets().checked_sub(1) else { return true };
            self.publish(last);
            let (mut len, mut bytes) = (0, 0);
            self.chain(last).take_each(|word| {
                len += 1;
                bytes += give_up(word, pin).resident_bytes();
            });
            self.len -= len;
            self.item_bytes -= bytes;
            self.let_go_of(last, pin);
        }
        self.buckets() == 0
    }

    /// Resident versions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is resident.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Resident bytes of the versions and of the buckets that hold them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.item_bytes + self.table_bytes
    }

    /// Resident bytes of the buckets, the versions apart.
    #[must_use]
    pub fn overhead_bytes(&self) -> usize {
        self.table_bytes
    }

    fn buckets(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.state().buckets())
    }

    fn publish(&self, buckets: usize) {
        self.shared.as_ref().expect("there are buckets").publish(buckets);
    }

    /// The chain of a bucket that is there. The writer may use it until it takes groups out of it.
    fn chain<'g>(&self, index: usize) -> Chain<'g> {
        let shared = self.shared.as_deref().expect("there are buckets");
        // SAFETY: nothing is taken out but by this module, which uses no chain afterwards that it got before.
        unsafe { shared.chain(index) }.expect("a bucket in use is there")
    }

    /// Adds a bucket and moves what belongs there out of its parent.
    fn split(&mut self) {
        let shared = self.shared.as_deref().expect("there are buckets");
        let index = shared.state().buckets();
        self.table_bytes += shared.directory.grow(index);
        let (source, target) = (self.chain(parent_of(index)), self.chain(index));
        let (mut copied, mut groups) = (0, 0);
        source.each(|word| {
            // SAFETY: the table owns a count on it.
            let item = unsafe { Item::borrow_raw(address(word)) };
            if bucket_of(shared.hash(item.key()), index + 1) == index {
                groups += usize::from(target.push(word));
                copied += 1;
            }
        });
        shared.publish(index + 1);
        let _moved = source.remove_all_in(target, || shared.publish(index + 1));
        self.table_bytes += groups * OVERFLOW_BYTES;
        self.table_bytes -= source.trim(&pin()) * OVERFLOW_BYTES;
        #[cfg(test)]
        {
            self.moved += copied + _moved;
        }
    }

    /// Takes the last bucket away, which is not the only one, and moves what is in it to its parent.
    fn merge(&mut self, pin: &Pin) {
        let last = self.buckets() - 1;
        let (source, target) = (self.chain(last), self.chain(parent_of(last)));
        let (mut copied, mut groups) = (0, 0);
        source.each(|word| {
            groups += usize::from(target.push(word));
            copied += 1;
        });
        self.publish(last);
        source.take_each(|_| ());
        self.table_bytes += groups * OVERFLOW_BYTES;
        self.let_go_of(last, pin);
        #[cfg(test)]
        {
            self.moved += copied;
        }
    }

    /// Frees what bucket `last` took, which was in use until now and is empty.
    fn let_go_of(&mut self, last: usize, pin: &Pin) {
        self.table_bytes -= self.chain(last).trim(pin) * OVERFLOW_BYTES;
        let shared = self.shared.as_deref().expect("there was a bucket");
        self.table_bytes -= shared.directory.shrink(last, pin);
    }
}

/// A handle of its own on an item whose word was taken out, after which the table's count on it goes when no reader can look at it any more.
fn give_up(word: usize, pin: &Pin) -> Item {
    // SAFETY: the word was made with `into_raw` when the item came in, and is in the table no longer.
    let owned = unsafe { Item::from_raw(address(word)) };
    let old = owned.clone();
    if !is_on(Mutant::FreeWithoutGrace) {
        let bytes = owned.resident_bytes();
        pin.retire(owned, bytes);
    }
    old
}

impl Drop for HashTable {
    fn drop(&mut self) {
        // A checker that found something unwinds: nothing is to be looked at any more.
        if cfg!(any(loom, shuttle)) && std::thread::panicking() {
            return;
        }
        self.drain_slice(usize::MAX);
    }
}
