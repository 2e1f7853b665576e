//! Storing the next version of a key.
//!
//! Does not know: whether the client may; the node has decided that.

use std::rc::Rc;

use super::{Found, VbStore};
use crate::collections::Replaced;
use crate::format::seqlog_block::seqlog_record_len;
use crate::format::wal_record::WAL_RECORD_BYTES;
use crate::item::{Item, VALUE_BYTES_MAX};
use crate::mutant::{Mutant, is_on};
use crate::shard::BucketMemory;
use crate::types::{Cas, Former, ItemMeta, Kind, Seqno};

/// A version to be stored.
#[derive(Debug, Clone, Copy)]
pub struct NewVersion<'a> {
    /// Key with its collection prefix.
    pub key: &'a [u8],
    /// Value.
    pub value: &'a [u8],
    /// The client's 32 bits.
    pub flags: u32,
    /// Absolute expiry or delete time, epoch seconds.
    pub expiry: u32,
    /// Datatype bits.
    pub datatype: u8,
    /// What it says.
    pub kind: Kind,
}

/// What a version brings along that was made elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    /// Its CAS; `None`: it gets one of here.
    pub cas: Option<Cas>,
    /// Number of changes to its key.
    pub revid: u64,
}

/// The greatest CAS that a version has; the one above stands for a document that is locked.
pub const CAS_MAX: Cas = Cas(u64::MAX - 1);

/// Why a version was not stored. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The log is nearly full, or too much waits for a commit; try again after the next flush.
    #[error("the write-ahead log of shard {shard} is full; try again")]
    Busy {
        /// Which shard.
        shard: u16,
    },
    /// The version cannot fit the log at all.
    #[error("a version of {bytes} bytes is above what the write-ahead log takes, {max} bytes")]
    TooLong {
        /// Its bytes in the log.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// The bucket is deleted.
    #[error("the bucket is deleted")]
    Gone,
    /// The memory of the bucket is used up; only deletions are taken.
    #[error("the memory of the bucket is used up")]
    NoRoom,
    /// The shard has failed; nothing is acknowledged any more.
    #[error("shard {shard} has failed: {reason}")]
    Failed {
        /// Which shard.
        shard: u16,
        /// Why.
        reason: Rc<str>,
    },
}

/// The next value of a hybrid logical clock: wall time with the low 16 bits as a counter, never going back. Behind a version that was made elsewhere
/// with the greatest CAS it stands still.
///
/// Source: S. Kulkarni et al., "Logical physical clocks", 2014.
#[must_use]
pub(crate) fn next_cas(wall_ns: u64, last: Cas) -> Cas {
    Cas((wall_ns & !0xffff).max(last.0.saturating_add(1))).min(CAS_MAX)
}

impl VbStore {
    /// Stores the next version of a key whose newest version is `found`, as [`VbStore::with_key`] just said. It is in memory and
    /// visible at once, durable after a group commit.
    ///
    /// # Errors
    /// `Busy`, `NoRoom`: temporary. `TooLong`, `Gone`, `Failed`.
    pub fn write(&self, found: &Found, new: NewVersion<'_>) -> Result<Item, WriteError> {
        self.write_as(found, new, None)
    }

    /// As [`VbStore::write`], a version that was made elsewhere. Every CAS that is made here later is above its.
    ///
    /// # Errors
    /// As [`VbStore::write`].
    ///
    /// # Panics
    /// If the CAS is 0 or above [`CAS_MAX`].
    pub fn write_foreign(
        &self,
        found: &Found,
        new: NewVersion<'_>,
        foreign: Foreign,
    ) -> Result<Item, WriteError> {
        assert!(foreign.cas.is_none_or(|cas| cas != Cas(0) && cas <= CAS_MAX), "{foreign:?}");
        self.write_as(found, new, Some(foreign))
    }

    fn write_as(
        &self,
        found: &Found,
        new: NewVersion<'_>,
        foreign: Option<Foreign>,
    ) -> Result<Item, WriteError> {
        let wal = self.core.wal();
        let record_bytes = WAL_RECORD_BYTES + new.key.len() + new.value.len();
        let shard = self.core.shard().0;
        if let Some(reason) = self.core.failure() {
            return Err(WriteError::Failed { shard, reason });
        }
        if self.ended.get() {
            return Err(WriteError::Gone);
        }
        if new.value.len() > VALUE_BYTES_MAX {
            return Err(WriteError::TooLong { bytes: record_bytes, max: VALUE_BYTES_MAX });
        }
        if self.is_ephemeral {
            // The deletion of a document makes room in the end, and so does an event that drops a collection.
            let is_smaller = found.live().is_some_and(|old| old.value().len() >= new.value.len());
            let makes_room = new.kind.is_deleted() && is_smaller || new.kind == Kind::SystemEvent;
            if !makes_room && !self.memory.has_resident_room(record_bytes) {
                return Err(WriteError::NoRoom);
            }
        } else {
            let max = wal.record_bytes_max();
            if record_bytes > max {
                return Err(WriteError::TooLong { bytes: record_bytes, max });
            }
            if !wal.has_room(record_bytes) || !self.memory.has_memtable_room() {
                self.core.want_flush();
                return Err(WriteError::Busy { shard });
            }
        }
        let state = &mut *self.state.borrow_mut();
        let is_there = |item: &Item| !item.is_deleted() || item.seqno() > state.purged.seqno;
        let former = match found {
            // A purged tombstone may have been read before it was, or stay in memory.
            Found::Version(item) if is_there(item) || is_on(Mutant::MarkPurged) => Former {
                seqno: item.seqno(),
                live: !item.is_deleted(),
                bytes: seqlog_record_len(item) as u32,
            },
            _ => Former::default(),
        };
        let replaced = found.live().map(|item| (item.key().len() + item.value().len()) as u64);
        // What is replaced lies anywhere in memory: it is on its way while the new version is made.
        state.versions.foresee(former.seqno);
        let revid = match (foreign, found) {
            (Some(foreign), _) => foreign.revid,
            (None, Found::Version(item)) => item.revid().saturating_add(1),
            (None, Found::Absent) => 1,
        };
        let cas = foreign.and_then(|foreign| foreign.cas);
        let meta = ItemMeta {
            seqno: state.high.next(),
            cas: cas.unwrap_or_else(|| next_cas(self.core.env().clock.wall_ns(), state.counts.max_cas)),
            revid,
            flags: new.flags,
            expiry: new.expiry,
            datatype: new.datatype,
            kind: new.kind,
        };
        let item = Item::new(meta, new.key, new.value);
        if self.is_ephemeral {
            state.take(&self.memory, &item, former, replaced);
            self.set_persisted(state.high);
            self.written_event.notify_all();
            return Ok(item);
        }
        let position = wal.append(self.bucket, self.vb, &item, former);
        state.take_unflushed(&self.memory, &item, former, replaced, position);
        if !self.dirty.replace(true) {
            self.core.add_dirty(self.weak.clone());
        }
        self.core.wake_commit();
        self.written_event.notify_all();
        Ok(item)
    }

    /// A CAS that no version has and that is below that of every version made here later. Nothing of it is written.
    #[must_use]
    pub fn draw_cas(&self) -> Cas {
        let counts = &mut self.state.borrow_mut().counts;
        counts.max_cas = next_cas(self.core.env().clock.wall_ns(), counts.max_cas);
        counts.max_cas
    }

    /// Takes a record of the log in at recovery; one that is flushed already is left out.
    pub(crate) fn replay(&self, item: Item, former: Former, position: u64) -> Result<(), Seqno> {
        let state = &mut *self.state.borrow_mut();
        if item.seqno() <= state.counts.flushed_seqno {
            return Ok(());
        }
        if item.seqno() != state.high.next() {
            return Err(state.high.next());
        }
        // A version that was flushed is not read for its length.
        let known = state.table.get(item.key()).filter(|old| old.seqno() == former.seqno);
        let replaced = known.as_ref().map(|old| (old.key().len() + old.value().len()) as u64);
        let bytes = known.map_or(0, |old| seqlog_record_len(&old) as u32);
        let former = Former { bytes, ..former };
        state.take_unflushed(&self.memory, &item, former, replaced, position);
        self.persisted.set(state.high);
        Ok(())
    }

    /// The highest seqno, at the moment a commit takes what was appended.
    pub(crate) fn take_dirty(&self) -> Seqno {
        self.dirty.set(false);
        self.state.borrow().high
    }
}

impl super::State {
    fn take_unflushed(
        &mut self,
        memory: &BucketMemory,
        item: &Item,
        former: Former,
        replaced: Option<u64>,
        position: u64,
    ) {
        let before = self.active.bytes();
        self.active.insert(item.clone(), former, position);
        memory.add_memtable(self.active.bytes() as i64 - before as i64);
        self.take(memory, item, former, replaced);
    }

    /// `replaced` are the bytes of key and value that the version replaces, if they are known.
    fn take(&mut self, memory: &BucketMemory, item: &Item, former: Former, replaced: Option<u64>) {
        self.count(item, former, replaced);
        let (settled, _) = self.versions.settle();
        let replaced = self.versions.take(item, former.seqno);
        let old = self.table.insert(item.clone());
        let is_kept = replaced.as_ref().is_some_and(|replaced| replaced.kept);
        let old = old.or(replaced.map(|replaced| replaced.item));
        let freed = old.filter(|_| !is_kept).map_or(0, |old| old.resident_bytes());
        memory.add_resident(item.resident_bytes() as i64 - freed as i64 - settled as i64);
        self.book_overhead(memory);
    }

    /// Books what table, list and key index take beside the versions.
    pub(super) fn book_overhead(&mut self, memory: &BucketMemory) {
        let overhead = self.table.overhead_bytes() + self.versions.bytes();
        memory.add_resident(overhead as i64 - self.overhead_booked as i64);
        self.overhead_booked = overhead;
    }

    fn count(&mut self, item: &Item, former: Former, replaced: Option<u64>) {
        let meta = &item.meta();
        self.high = meta.seqno;
        let replaced = Replaced { live: former.live, bytes: replaced };
        Rc::make_mut(&mut self.collections).take(meta, item.key(), item.value().len(), replaced);
        let counts = &mut self.counts;
        counts.max_cas = counts.max_cas.max(meta.cas);
        counts.snapshot_start = meta.seqno;
        counts.snapshot_end = meta.seqno;
        counts.max_visible = meta.seqno;
        if meta.kind == Kind::SystemEvent {
            return;
        }
        let was_tombstone = former.seqno != Seqno(0) && !former.live;
        counts.items = counts.items + u64::from(!meta.kind.is_deleted()) - u64::from(former.live);
        counts.tombstones = counts.tombstones + u64::from(meta.kind.is_deleted()) - u64::from(was_tombstone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cas_rises_when_the_wall_clock_stands_still_or_goes_back() {
        let first = next_cas(1_700_000_000_000_000_000, Cas(0));
        assert_eq!(first.0 & 0xffff, 0);
        let second = next_cas(1_700_000_000_000_000_000, first);
        assert_eq!(second.0, first.0 + 1);
        assert!(next_cas(1_600_000_000_000_000_000, second) > second);
        assert!(next_cas(1_700_000_001_000_000_000, second).0 > second.0 + 0xffff);
    }

    #[test]
    fn behind_the_greatest_cas_the_clock_stands_still_and_never_says_locked() {
        assert_eq!(next_cas(1, Cas(CAS_MAX.0 - 1)), CAS_MAX);
        assert_eq!(next_cas(1, CAS_MAX), CAS_MAX);
        assert_eq!(next_cas(u64::MAX, CAS_MAX), CAS_MAX);
    }
}
