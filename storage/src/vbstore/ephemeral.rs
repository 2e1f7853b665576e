//! What a memory-only vbucket has in place of log, runs and seqlog: its versions in seqno order, and in key order while somebody scans.
//!
//! A view of it is a reader: the high seqno at its opening, and the key that its scan has reached. A write asks the readers whether one of them
//! can still see the version that it replaces, and if so sets it aside; when the readers have passed the key or ended, it goes. Nothing else
//! is kept, nothing is copied, and no write waits or fails because of a reader.
//!
//! Invariants
//! - A version set aside is visible to some live reader that has not passed its key: born <= end < superseded, key >= position (T4.15, T4.16).
//! - The newest versions are in seqno order and, while the key index stands, in key order.
//! - The purge seqno rises in the step that drops a tombstone nobody replaced, and in no other.
//!
//! Cost: a write O(log n) and one test a reader; opening a view builds the key index if there is none, in slices.
//! Does not know: settings, quotas, who reads.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::rc::{Rc, Weak};

use super::VbStore;
use crate::item::Item;
use crate::keyindex::KeyIndex;
use crate::mutant::{Mutant, is_on};
use crate::types::Seqno;

/// Versions that one slice of building, purging or reclaiming looks at.
const SLICE: usize = 256;

/// A view's place in the vbucket.
pub(super) struct KeyReader {
    end: Seqno,
    /// Keys below it are passed.
    position: RefCell<Vec<u8>>,
    store: Weak<VbStore>,
}

impl KeyReader {
    /// Whether it can still see a version of `key` that lived from `born` until `superseded`.
    fn sees(&self, key: &[u8], born: Seqno, superseded: Seqno) -> bool {
        born <= self.end && self.end < superseded && key >= &self.position.borrow()[..]
    }
}

impl Drop for KeyReader {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            let core = store.core.clone();
            core.env().spawn("reclaim", async move { store.reclaim().await });
        }
    }
}

/// A version that a newer one replaced.
#[derive(Debug)]
struct Older {
    item: Item,
    superseded: Seqno,
}

/// How far the key index is.
#[derive(Debug, Default)]
enum Index {
    /// There is none.
    #[default]
    Absent,
    /// Everything below this seqno is in it, and everything written since it was begun.
    Building(Seqno, KeyIndex),
    /// It is complete.
    Complete(KeyIndex),
}

/// Numbers for statistics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct EphemeralStats {
    /// Versions in seqno order, those set aside included.
    pub versions: u64,
    /// Versions set aside for readers.
    pub stale: u64,
    /// Bytes of their values.
    pub stale_value_bytes: u64,
    /// Bytes of all else of them.
    pub stale_meta_bytes: u64,
    /// Tombstones purged since the start.
    pub purged: u64,
    /// Live readers.
    pub readers: u64,
    /// Bytes of the key index beside the versions; 0 if there is none.
    pub index_bytes: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Ephemeral {
    by_seqno: BTreeMap<Seqno, Item>,
    index: Index,
    index_used_ns: u64,
    readers: Vec<Weak<KeyReader>>,
    older: BTreeMap<Box<[u8]>, Vec<Older>>,
    stats: EphemeralStats,
    /// Where the next slice of a purge begins.
    purge_from: Seqno,
}

impl Ephemeral {
    /// Takes in a version, and the one that it replaces. Returns the bytes by which what is set aside has grown.
    pub(super) fn take(&mut self, item: &Item, old: Option<Item>) -> usize {
        self.by_seqno.insert(item.seqno(), item.clone());
        if let Index::Building(_, index) | Index::Complete(index) = &mut self.index {
            index.put(item.clone());
        }
        let Some(old) = old else { return 0 };
        self.by_seqno.remove(&old.seqno());
        self.set_aside(old, item.seqno())
    }

    fn set_aside(&mut self, item: Item, superseded: Seqno) -> usize {
        let (key, born) = (item.key(), item.seqno());
        self.readers.retain(|reader| reader.strong_count() > 0);
        let is_seen = |reader: &Weak<KeyReader>| {
            reader.upgrade().is_some_and(|reader| reader.sees(key, born, superseded))
        };
        // A tombstone shows nothing, and neither does its absence.
        let is_deleted = item.is_deleted();
        if is_deleted || is_on(Mutant::ForgetReaders) || !self.readers.iter().any(is_seen) {
            return 0;
        }
        let bytes = item.resident_bytes();
        self.stats.stale += 1;
        self.stats.stale_value_bytes += item.value().len() as u64;
        self.stats.stale_meta_bytes += (bytes - item.value().len()) as u64;
        self.older.entry(key.into()).or_default().push(Older { item, superseded });
        bytes
    }

    /// Drops what was set aside under keys from `from` (or, with `exclusive`, behind it) on, at most a slice of keys and none at or above `to`, unless a reader
    /// sees it. Returns the bytes given back and, if the slice ended early, the last key it looked at.
    fn reclaim(&mut self, from: &[u8], exclusive: bool, to: Option<&[u8]>) -> (usize, Option<Vec<u8>>) {
        self.readers.retain(|reader| reader.strong_count() > 0);
        let readers: Vec<Rc<KeyReader>> = self.readers.iter().filter_map(Weak::upgrade).collect();
        let start = if exclusive { Bound::Excluded(from) } else { Bound::Included(from) };
        let end = to.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut emptied, mut freed, mut looked, mut last) = (Vec::new(), 0, 0, None);
        for (key, versions) in self.older.range_mut::<[u8], _>((start, end)) {
            versions.retain(|Older { item, superseded }| {
                let seen = readers.iter().any(|reader| reader.sees(key, item.seqno(), *superseded));
                if !seen {
                    let bytes = item.resident_bytes();
                    self.stats.stale -= 1;
                    self.stats.stale_value_bytes -= item.value().len() as u64;
                    self.stats.stale_meta_bytes -= (bytes - item.value().len()) as u64;
                    freed += bytes;
                }
                seen
            });
            if versions.is_empty() {
                emptied.push(key.clone());
            }
            looked += 1;
            if looked == SLICE {
                last = Some(key.to_vec());
                break;
            }
        }
        for key in emptied {
            self.older.remove(&key);
        }
        (freed, last)
    }

    /// The version of a key that is visible at `end`, given its newest one.
    fn visible<'a>(&'a self, key: &[u8], newest: Option<&'a Item>, end: Seqno) -> Option<&'a Item> {
        newest.filter(|item| item.seqno() <= end).or_else(|| {
            let mut versions = self.older.get(key)?.iter();
            let found = versions.find(|older| older.item.seqno() <= end && end < older.superseded);
            found.map(|older| &older.item)
        })
    }

    /// Goes on building the key index; true when it is complete.
    fn build(&mut self) -> bool {
        let (next, mut index) = match std::mem::take(&mut self.index) {
            Index::Absent => (Seqno(0), KeyIndex::default()),
            Index::Building(next, index) => (next, index),
            Index::Complete(index) => {
                self.index = Index::Complete(index);
                return true;
            }
        };
        let mut last = None;
        for (seqno, item) in self.by_seqno.range(next..).take(SLICE) {
            index.put_if_absent(item.clone());
            last = Some(*seqno);
        }
        self.index = match last {
            Some(last) => Index::Building(last.next(), index),
            None => Index::Complete(index),
        };
        last.is_none()
    }

    /// The newest version with exactly this seqno.
    pub(super) fn at(&self, seqno: Seqno) -> Option<&Item> {
        self.by_seqno.get(&seqno)
    }

    /// The newest versions from `from` on.
    pub(super) fn newest_from(&self, from: Seqno) -> impl Iterator<Item = &Item> {
        self.by_seqno.range(from..).map(|(_, item)| item)
    }

    pub(super) fn stats(&self) -> EphemeralStats {
        let index_bytes = match &self.index {
            Index::Absent => 0,
            Index::Building(_, index) | Index::Complete(index) => index.bytes(),
        };
        EphemeralStats {
            versions: self.by_seqno.len() as u64 + self.stats.stale,
            readers: self.readers.iter().filter(|reader| reader.strong_count() > 0).count() as u64,
            index_bytes: index_bytes as u64,
            ..self.stats
        }
    }
}

/// What a view of a memory-only vbucket shows. Cloning shares it.
#[derive(Clone)]
pub struct MemoryView {
    store: Rc<VbStore>,
    end: Seqno,
}

impl std::fmt::Debug for MemoryView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryView({:?} up to {})", self.store, self.end)
    }
}

impl MemoryView {
    /// Appends the visible versions of the next keys at or above (or, if `exclusive`, above) `from` to `out`, tombstones included, and returns the
    /// last key it looked at; `None` at the end. A call looks at no more than `keys` keys, of which few may be visible.
    pub fn next_keys(
        &self,
        from: &[u8],
        exclusive: bool,
        keys: usize,
        out: &mut VecDeque<Item>,
    ) -> Option<Vec<u8>> {
        let state = self.store.state.borrow();
        let ephemeral = state.ephemeral.as_ref()?;
        let Index::Complete(index) = &ephemeral.index else { return None };
        let start = if exclusive { Bound::Excluded(from) } else { Bound::Included(from) };
        let mut newest = index.range(from, exclusive).peekable();
        let mut older =
            ephemeral.older.range::<[u8], _>((start, Bound::Unbounded)).map(|(key, _)| key).peekable();
        let mut last: Option<&[u8]> = None;
        for _ in 0..keys {
            let key = match (newest.peek(), older.peek()) {
                (None, None) => return None,
                (Some(item), None) => item.key(),
                (None, Some(key)) => key,
                (Some(item), Some(key)) => item.key().min(key),
            };
            let item = newest.next_if(|item| item.key() == key);
            older.next_if(|older| &older[..] == key);
            out.extend(ephemeral.visible(key, item, self.end).cloned());
            last = Some(key);
        }
        last.map(<[u8]>::to_vec)
    }

    /// Everything up to here is seen.
    pub(super) fn end(&self) -> Seqno {
        self.end
    }

    /// Whether it shows a live document with exactly this seqno, which nobody has passed.
    pub(super) fn contains(&self, seqno: Seqno) -> bool {
        let state = self.store.state.borrow();
        let Some(ephemeral) = &state.ephemeral else { return false };
        let set_aside = || ephemeral.older.values().flatten().map(|older| &older.item);
        let item = ephemeral.at(seqno).or_else(|| set_aside().find(|item| item.seqno() == seqno));
        item.is_some_and(|item| {
            let newest = state.table.get(item.key());
            let shown = ephemeral.visible(item.key(), newest.as_deref(), self.end);
            shown.is_some_and(|shown| shown.seqno() == seqno && !shown.is_deleted())
        })
    }

    /// The visible version of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Item> {
        let state = self.store.state.borrow();
        let newest = state.table.get(key);
        state.ephemeral.as_ref()?.visible(key, newest.as_deref(), self.end).cloned()
    }
}

impl VbStore {
    /// Whether it lives in memory only.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        self.state.borrow().ephemeral.is_some()
    }

    /// Registers a reader at the high seqno, builds the key index if there is none, and returns what the view shows.
    pub(super) async fn open_memory(self: &Rc<Self>) -> (Rc<KeyReader>, MemoryView) {
        let (reader, end) = {
            let state = &mut *self.state.borrow_mut();
            let end = state.high;
            let reader = Rc::new(KeyReader { end, position: RefCell::default(), store: Rc::downgrade(self) });
            if let Some(ephemeral) = &mut state.ephemeral {
                ephemeral.readers.push(Rc::downgrade(&reader));
                ephemeral.index_used_ns = self.core.env().clock.monotonic_ns();
            }
            (reader, end)
        };
        loop {
            let is_complete =
                self.state.borrow_mut().ephemeral.as_mut().is_none_or(|ephemeral| ephemeral.build());
            if is_complete {
                break;
            }
            self.core.env().relax().await;
        }
        (reader, MemoryView { store: self.clone(), end })
    }

    /// No scan of the view with this reader goes back before `key`.
    pub(super) fn reader_passed(&self, reader: &KeyReader, key: &[u8]) {
        let before = std::mem::replace(&mut *reader.position.borrow_mut(), key.to_vec());
        let state = &mut *self.state.borrow_mut();
        let Some(ephemeral) = &mut state.ephemeral else { return };
        let (mut from, mut exclusive) = (before, false);
        loop {
            let (freed, last) = ephemeral.reclaim(&from, exclusive, Some(key));
            self.memory.add_resident(-(freed as i64));
            let Some(last) = last else { return };
            (from, exclusive) = (last, true);
        }
    }

    /// Drops whatever was set aside and no reader sees any more.
    async fn reclaim(&self) {
        let (mut from, mut exclusive) = (Vec::new(), false);
        loop {
            let (freed, last) = match &mut self.state.borrow_mut().ephemeral {
                Some(ephemeral) => ephemeral.reclaim(&from, exclusive, None),
                None => return,
            };
            self.memory.add_resident(-(freed as i64));
            let Some(last) = last else { return };
            (from, exclusive) = (last, true);
            self.core.env().relax().await;
        }
    }

    /// Drops the key index if no view has been opened since `before_ns` on the monotonic clock and none is open. Returns whether there is one left.
    pub fn drop_idle_index(&self, before_ns: u64) -> bool {
        let state = &mut *self.state.borrow_mut();
        let Some(ephemeral) = &mut state.ephemeral else { return false };
        ephemeral.readers.retain(|reader| reader.strong_count() > 0);
        if ephemeral.readers.is_empty() && ephemeral.index_used_ns < before_ns {
            ephemeral.index = Index::Absent;
        }
        !matches!(ephemeral.index, Index::Absent)
    }

    /// The next newest versions from `from` on, in seqno order, at most `count`: for whoever expires, deletes or counts the oldest first. Empty for
    /// a vbucket that is on disk.
    #[must_use]
    pub fn oldest(&self, from: Seqno, count: usize) -> Vec<Item> {
        let state = self.state.borrow();
        let ephemeral = state.ephemeral.as_ref();
        ephemeral
            .map(|ephemeral| ephemeral.newest_from(from).take(count).cloned().collect())
            .unwrap_or_default()
    }

    /// One slice of purging: drops tombstones made before `before` (epoch seconds), never the newest version of the vbucket. Raises the purge
    /// seqno with the last of them. Returns whether there is more to look at in this round.
    pub fn purge_tombstones(&self, before: u32) -> bool {
        let state = &mut *self.state.borrow_mut();
        let Some(ephemeral) = &mut state.ephemeral else { return false };
        let looked: Vec<Item> = ephemeral.newest_from(ephemeral.purge_from).take(SLICE).cloned().collect();
        let mut freed = 0;
        for item in &looked {
            let meta = &item.meta();
            ephemeral.purge_from = meta.seqno.next();
            if !meta.kind.is_deleted() || meta.expiry >= before || meta.seqno == state.high {
                continue;
            }
            ephemeral.by_seqno.remove(&meta.seqno);
            if let Index::Building(_, index) | Index::Complete(index) = &mut ephemeral.index {
                index.remove(item.key(), meta.seqno);
            }
            state.table.evict(item.key(), meta.seqno);
            freed += item.resident_bytes();
            ephemeral.stats.purged += 1;
            state.counts.tombstones -= 1;
            state.counts.purge_seqno = meta.seqno;
        }
        if looked.len() < SLICE {
            ephemeral.purge_from = Seqno(0);
        }
        self.memory.add_resident(-(freed as i64));
        looked.len() == SLICE
    }

    /// Bytes that the bucket takes in this shard, and its share of the quota.
    #[must_use]
    pub fn memory_share(&self) -> (u64, u64) {
        let (bytes, max) = self.memory.resident_share();
        (u64::try_from(bytes).unwrap_or(0), max as u64)
    }

    /// Numbers of a memory-only vbucket; `None` if it is on disk.
    #[must_use]
    pub fn ephemeral_stats(&self) -> Option<EphemeralStats> {
        self.state.borrow().ephemeral.as_deref().map(Ephemeral::stats)
    }
}
