//! What is special about a vbucket that lives in memory only: its versions have nowhere else to go, so views read them where they are.
//!
//! A view of it is a reader: the high seqno at its opening, and the key or the seqno that its scan has reached.
//!
//! Invariants
//! - The purge seqno rises in the step that drops a tombstone nobody replaced, and in no other (T4.10). The newest version of the vbucket stays.
//!   What a dropped collection leaves goes without it: the event that dropped it stays, and says it all.
//! - A view of a vbucket that has ended says so; it never shows less than its moment (T4.13).
//!
//! Cost: opening a view in key order builds the key index if there is none, in slices.
//! Does not know: settings, quotas, who reads.

use std::cell::Ref;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use super::{State, VbStore};
use crate::collections::id_of;
use crate::item::Item;
use crate::reader::ReadError;
use crate::registry::KeyReader;
use crate::types::{Kind, Seqno};
use crate::versions::{SLICE, VersionsStats};

/// A view's place in key order. What was kept for it goes when it is dropped.
pub(super) struct KeyReading {
    reader: Option<Rc<KeyReader>>,
    store: Weak<VbStore>,
}

impl KeyReading {
    /// Everything up to here is seen.
    pub(super) fn end(&self) -> Seqno {
        self.reader.as_ref().map_or(Seqno(0), |reader| reader.end())
    }
}

impl Drop for KeyReading {
    fn drop(&mut self) {
        self.reader = None;
        if let Some(store) = self.store.upgrade() {
            let core = store.core.clone();
            core.env().spawn("reclaim", async move { store.reclaim_keys().await });
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
    pub(super) fn new(store: Rc<VbStore>, end: Seqno) -> MemoryView {
        MemoryView { store, end }
    }

    /// Appends the visible versions of the next keys at or above (or, if `exclusive`, above) `from` to `out`, tombstones included, and returns the
    /// last key it looked at; `None` at the end. A call looks at no more than `keys` keys, of which few may be visible.
    ///
    /// # Errors
    /// `Gone`.
    pub fn next_keys(
        &self,
        from: &[u8],
        exclusive: bool,
        keys: usize,
        out: &mut VecDeque<Item>,
    ) -> Result<Option<Vec<u8>>, ReadError> {
        let state = self.state()?;
        Ok(state.versions.next_keys(self.end, from, exclusive, keys, out))
    }

    /// Whether it shows a live document with exactly this seqno, which nobody has passed.
    pub(super) fn contains(&self, seqno: Seqno) -> Result<bool, ReadError> {
        let state = self.state()?;
        Ok(state.versions.at_or_kept(seqno).is_some_and(|item| {
            let shown = state.versions.visible(item.key(), state.table.get(item.key()).as_deref(), self.end);
            shown.is_some_and(|shown| shown.seqno() == seqno && !shown.is_deleted())
        }))
    }

    /// The visible version of `key`.
    ///
    /// # Errors
    /// `Gone`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Item>, ReadError> {
        let state = self.state()?;
        Ok(state.versions.visible(key, state.table.get(key).as_deref(), self.end))
    }

    /// What is in memory, unless that was let go of.
    fn state(&self) -> Result<Ref<'_, State>, ReadError> {
        if self.store.has_ended() {
            return Err(ReadError::Gone);
        }
        Ok(self.store.state.borrow())
    }
}

impl VbStore {
    /// Whether it lives in memory only.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        self.is_ephemeral
    }

    /// Registers a reader in key order, builds the key index if there is none, and returns what the view shows.
    pub(super) async fn open_memory(self: &Rc<Self>) -> (KeyReading, MemoryView) {
        let now_ns = self.core.env().clock.monotonic_ns();
        let reader = self.state.borrow_mut().versions.open_by_key(now_ns);
        let end = reader.end();
        let reading = KeyReading { reader: Some(reader), store: Rc::downgrade(self) };
        while !self.state.borrow_mut().versions.build_index() {
            self.core.env().relax().await;
        }
        (reading, MemoryView::new(self.clone(), end))
    }

    /// No scan of the view with this reader goes back before `key`.
    pub(super) fn reader_passed(&self, reading: &KeyReading, key: &[u8]) {
        if let Some(reader) = &reading.reader {
            let freed = self.state.borrow_mut().versions.key_reader_passed(reader, key);
            self.memory.add_resident(-(freed as i64));
        }
    }

    /// Drops whatever was kept and no reader in key order needs any more.
    async fn reclaim_keys(&self) {
        let (mut from, mut exclusive) = (Vec::new(), false);
        loop {
            let (freed, last) = self.state.borrow_mut().versions.settle_keys(&from, exclusive, None);
            self.memory.add_resident(-(freed as i64));
            let Some(last) = last else { return };
            (from, exclusive) = (last, true);
            self.core.env().relax().await;
        }
    }

    /// Drops the key index if no view has been opened since `before_ns` on the monotonic clock and none is open. Returns whether there is one left.
    pub fn drop_idle_index(&self, before_ns: u64) -> bool {
        let state = &mut *self.state.borrow_mut();
        let is_left = state.versions.drop_idle_index(before_ns);
        state.book_overhead(&self.memory);
        is_left
    }

    /// Newest versions from `from` on, in seqno order, and the seqno to go on from (`None` at the end): for whoever expires, deletes or counts the
    /// oldest first. A call looks at a slice of the list, which may have few. Nothing for a vbucket that is on disk.
    #[must_use]
    pub fn oldest(&self, from: Seqno) -> (Vec<Item>, Option<Seqno>) {
        let mut found = Vec::new();
        if !self.is_ephemeral {
            return (found, None);
        }
        let next = self.state.borrow().versions.visit(from, SLICE, |item| found.push(item.clone()));
        (found, next)
    }

    /// One slice of purging: drops tombstones made before `before` (epoch seconds), never the newest version of the vbucket, and none that a reader in
    /// seqno order can still see. Raises the purge seqno with the last of them. Returns whether there is more to look at in this round.
    pub fn purge_tombstones(&self, before: u32) -> bool {
        if !self.is_ephemeral {
            return false;
        }
        let state = &mut *self.state.borrow_mut();
        let mut due = Vec::new();
        let high = state.high;
        let next = state.versions.visit(state.purge_from, SLICE, |item| {
            if item.is_deleted() && item.expiry() < before && item.seqno() != high {
                due.push(item.clone());
            }
        });
        state.purge_from = next.unwrap_or_default();
        let mut freed = 0;
        for tombstone in due {
            if !state.versions.purge(&tombstone) {
                continue;
            }
            let seqno = tombstone.seqno();
            state.table.evict(tombstone.key(), seqno);
            freed += tombstone.resident_bytes();
            state.counts.tombstones -= 1;
            state.counts.purge_seqno = state.counts.purge_seqno.max(seqno);
        }
        self.memory.add_resident(-(freed as i64));
        state.book_overhead(&self.memory);
        next.is_some()
    }

    /// One slice of erasing, from `from` on in seqno order: drops what is stored of collections that were dropped, except what a reader in seqno order can
    /// still see. Their drop is an event that stays, so nothing that a client must hear of is lost. Returns where the next slice begins; `None` at the
    /// end, and for a vbucket on disk, where only a merge could drop them.
    pub fn erase_dropped(&self, from: Seqno) -> Option<Seqno> {
        if !self.is_ephemeral {
            return None;
        }
        let state = &mut *self.state.borrow_mut();
        let mut due = Vec::new();
        let collections = state.collections.clone();
        let next = state.versions.visit(from, SLICE, |item| {
            let collection = id_of(item.key()).and_then(|(id, _)| collections.get(id));
            if item.kind() != Kind::SystemEvent && collection.is_some_and(|one| !one.is_open()) {
                due.push(item.clone());
            }
        });
        drop(collections);
        let mut freed = 0;
        for item in due {
            if !state.versions.purge(&item) {
                continue;
            }
            state.table.evict(item.key(), item.seqno());
            freed += item.resident_bytes();
            if item.is_deleted() {
                state.counts.tombstones -= 1;
            } else {
                state.counts.items -= 1;
                Rc::make_mut(&mut state.collections).erased(item.key(), item.value().len());
            }
        }
        self.memory.add_resident(-(freed as i64));
        state.book_overhead(&self.memory);
        next
    }

    /// Documents that are stored although their collection was dropped.
    #[must_use]
    pub fn hidden_items(&self) -> u64 {
        self.state.borrow().collections.hidden_items()
    }

    /// Bytes that the bucket takes in this shard, and its share of the quota.
    #[must_use]
    pub fn memory_share(&self) -> (u64, u64) {
        let (bytes, max) = self.memory.resident_share();
        (u64::try_from(bytes).unwrap_or(0), max as u64)
    }

    /// Numbers of the versions in memory.
    #[must_use]
    pub fn versions_stats(&self) -> VersionsStats {
        self.state.borrow().versions.stats()
    }
}
