//! Purging a vbucket on disk: tombstones of a certain age, and what dropped collections have left.
//!
//! All runs become one without them, in one change of the manifest with the new purge seqno; from then on their records in the seqlog are garbage like
//! dead ones. They have no death marks: what is purged is told by rule (a tombstone at or below the purge seqno, a key of an erased collection), and the
//! manifest says how much of it each segment has until the segment is rewritten.
//!
//! Tombstones go in seqno order: the purge seqno stops before the first one that is too young, whatever comes behind it. So none at or below it is left,
//! and a consumer that knows the purge seqno knows what it may have missed. A delete time in the future, as only a version that was made elsewhere may
//! have, holds nothing up.
//!
//! Invariants
//! - The purge seqno rises in the step that drops the tombstones. The newest version of the vbucket stays.
//! - A view that was opened before sees what it saw: it keeps the runs it has, and segments are not swapped under it.
//! - No death mark is of a purged record, so that how much is live in a segment stays exact. A version that replaced a tombstone before that was purged is
//!   flushed without a mark that counts ([`crate::seqlog::Segment::mark_purged`]); what a flush has marked while the runs were merged is taken off.
//! - A collection is erased when the event that dropped it is flushed: nothing of it is on its way to disk then.
//!
//! Cost: a look at every key for the tombstones' age, then a merge of all runs; nothing of it if there is nothing to purge.
//! Does not know: how old is old, when to look.

use std::collections::BTreeMap;

use super::merging::Merged;
use super::{State, VbStore, Version};
use crate::collections::id_of;
use crate::format::index::DeathMark;
use crate::format::key_block::{Meta, put_leb128};
use crate::format::manifest_record::{PurgeDesc, PurgedPart};
use crate::format::seqlog_block::record_bytes;
use crate::hashtable::HashTable;
use crate::memtable::Memtable;
use crate::mutant::{Mutant, is_on};
use crate::run::{Cursor, MergeError, Newest, ReadAhead, unreadable};
use crate::seqlog::{Amount, segment_of};
use crate::types::{ItemMeta, Kind, Seqno};

/// How far ahead of now a delete time may lie and still be one.
const AHEAD_SECONDS_MAX: u32 = 3600;

/// Versions that one slice of letting go looks at.
const SLOTS_MAX: usize = 256;

/// Keys that are looked at between two looks at the pace, and their bytes, about.
const LOOK_KEYS: u32 = 64;
const LOOK_BYTES: u64 = LOOK_KEYS as u64 * 64;

/// Which tombstones may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgeLimits {
    /// Those with a delete time before this, epoch seconds.
    pub before: u32,
    /// Of them: those up to this seqno.
    pub up_to: Seqno,
}

impl PurgeLimits {
    /// Those with a delete time before `before`, epoch seconds.
    #[must_use]
    pub fn before(before: u32) -> PurgeLimits {
        PurgeLimits { before, up_to: Seqno(u64::MAX) }
    }

    /// What either lets go.
    pub(super) fn or(self, other: PurgeLimits) -> PurgeLimits {
        PurgeLimits { before: self.before.max(other.before), up_to: self.up_to.max(other.up_to) }
    }
}

/// What a purge takes away.
#[derive(Debug, Default)]
pub(crate) struct Purging {
    /// What was asked for.
    pub(super) limits: Option<PurgeLimits>,
    /// Greatest tombstone that goes; 0 for none.
    seqno: Seqno,
    tombstones: u64,
    items: u64,
    pub(super) collections: Vec<u32>,
    /// By id of segment.
    segments: BTreeMap<u64, Amount>,
}

/// Tombstones that flushes have marked dead while a purge looked at runs that have them.
#[derive(Debug, Default)]
pub(super) struct Overtaken {
    /// The purge has seen what was flushed up to here.
    flushed: Seqno,
    tombstones: Vec<DeathMark>,
}

impl Overtaken {
    /// What is in `table` is flushed.
    pub(super) fn note(&mut self, table: &Memtable) {
        self.tombstones.extend(table.replaced_tombstones(self.flushed));
    }
}

/// What goes.
pub(super) struct Rule<'a> {
    /// Tombstones at or below this seqno.
    pub(super) limit: Seqno,
    /// All of these collections.
    pub(super) collections: &'a [u32],
}

impl Rule<'_> {
    /// Whether a version is taken along; what is not is counted.
    fn keeps(&self, key: &[u8], meta: &Meta, version: &Version, purging: &mut Purging) -> bool {
        let Meta { item, value_len } = meta;
        if !self.takes(key, item) {
            return true;
        }
        purging.tombstones += u64::from(item.kind.is_deleted());
        purging.items += u64::from(!item.kind.is_deleted());
        if self.takes_tombstone(item.kind, item.seqno) {
            purging.seqno = purging.seqno.max(item.seqno);
        }
        if let Some(segment) = segment_of(&version.segments, item.seqno) {
            let bytes = record_bytes(item.kind, key.len(), *value_len as usize);
            purging.segments.entry(segment.desc().id).or_default().add(bytes as u32);
        }
        false
    }

    /// Whether a version goes.
    pub(super) fn takes(&self, key: &[u8], meta: &ItemMeta) -> bool {
        self.takes_tombstone(meta.kind, meta.seqno) || self.takes_collection(key, meta.kind)
    }

    fn takes_collection(&self, key: &[u8], kind: Kind) -> bool {
        kind != Kind::SystemEvent
            && !self.collections.is_empty()
            && id_of(key).is_some_and(|(id, _)| self.collections.contains(&id))
    }

    fn takes_tombstone(&self, kind: Kind, seqno: Seqno) -> bool {
        kind.is_deleted() && seqno <= self.limit
    }
}

impl State {
    /// The greatest purged tombstone.
    pub(super) fn purge_seqno(&self) -> Seqno {
        self.counts.purge_seqno.max(self.purged.seqno)
    }

    /// Tombstones that are there.
    pub(super) fn tombstones(&self) -> u64 {
        self.counts.tombstones.saturating_sub(self.purged.tombstones)
    }

    /// Keys that are there, those of dropped collections too, events apart.
    pub(super) fn keys(&self) -> u64 {
        (self.counts.items + self.tombstones()).saturating_sub(self.purged.items)
    }

    /// Tombstones may go.
    pub(super) fn want_purge(&mut self, limits: Option<PurgeLimits>) {
        self.purge_limits = match (self.purge_limits, limits) {
            (Some(before), Some(limits)) => Some(before.or(limits)),
            (before, limits) => before.or(limits),
        };
    }

    /// Dropped collections of which something may be left on disk, and nothing on its way there.
    fn erasable(&self) -> Vec<u32> {
        let is_flushed = |dropped: Seqno| dropped != Seqno(0) && dropped <= self.version.flushed;
        let dropped = self.collections.collections().iter().filter(|one| is_flushed(one.dropped));
        let ids = dropped.map(|one| one.id);
        ids.filter(|id| self.purged.collections.binary_search(id).is_err()).collect()
    }

    /// Counts what goes as gone, and lets go of the window's head as far as it has any of it. Returns the bytes of memory that are free then.
    pub(super) fn purge(&mut self, purging: &mut Purging) -> usize {
        let before = self.purged.seqno;
        let mut overtaken = self.overtaken.take().unwrap_or_default().tombstones;
        overtaken.retain(|mark| mark.dead > before && mark.dead <= purging.seqno);
        for mark in &overtaken {
            let segment = segment_of(&self.version.segments, mark.dead);
            if let Some(amount) = segment.and_then(|segment| purging.segments.get_mut(&segment.desc().id)) {
                amount.take_off(mark.bytes);
            }
        }
        let memtables = self.frozen.iter().map(|table| &**table).chain([&self.active]);
        // What replaced these has counted them already.
        let replaced = memtables.flat_map(|table| table.replaced_tombstones(purging.seqno));
        let replaced = replaced.filter(|mark| mark.dead > before).count();
        purging.tombstones -= (overtaken.len() + replaced) as u64;
        let purged = &mut self.purged;
        purged.seqno = purged.seqno.max(purging.seqno);
        purged.tombstones += purging.tombstones;
        purged.items += purging.items;
        purged.collections.extend(&purging.collections);
        purged.collections.sort_unstable();
        for (segment, Amount { records, bytes }) in std::mem::take(&mut purging.segments) {
            match purged.segments.iter_mut().find(|part| part.segment == segment) {
                Some(part) => (part.records, part.bytes) = (part.records + records, part.bytes + bytes),
                None => purged.segments.push(PurgedPart { segment, records, bytes }),
            }
        }
        let mut freed = 0;
        loop {
            let (bytes, more) = self.trim(purging.seqno.next());
            freed += bytes;
            if !more {
                return freed;
            }
        }
    }

    /// What is purged is garbage from now on; views that are open keep what they have.
    pub(super) fn publish_purge(&mut self) {
        self.purges += 1;
        self.version.set_purged(&self.purged);
    }
}

impl Version {
    /// Tells the segments how much of each was purged.
    pub(crate) fn set_purged(&self, purged: &PurgeDesc) {
        for part in &purged.segments {
            let segment = self.segments.iter().find(|segment| segment.desc().id == part.segment);
            if let Some(segment) = segment {
                segment.set_purged(Amount { records: part.records, bytes: part.bytes });
            }
        }
    }
}

impl VbStore {
    /// Tombstones on disk may go within these limits; they do when the compaction task comes to it.
    pub fn want_purge(&self, limits: PurgeLimits) {
        if !self.is_ephemeral {
            self.state.borrow_mut().want_purge(Some(limits));
            self.core.want_compaction();
        }
    }

    /// Compacts the shard until nothing is worth it any more, purges included; false if the shard has failed.
    pub async fn compact(&self) -> bool {
        self.core.compact().await;
        !self.core.has_failed()
    }

    /// Whether there may be something to purge.
    pub(crate) fn wants_purge(&self) -> bool {
        let state = self.state.borrow();
        let are_readable = !state.version.runs.iter().any(|run| run.is_unreadable());
        let has_old =
            state.purge_limits.is_some() && state.version.runs.iter().any(|run| run.desc().tombstones > 0);
        are_readable && (has_old || !state.erasable().is_empty())
    }

    /// Merges all runs into one without what is to be purged; `None` if there is nothing.
    ///
    /// # Errors
    /// `Read`: the run that cannot be read is marked. `Write`, `Stopped`.
    pub(crate) async fn merge_purging(
        &self,
        pace: &impl AsyncFn(u64) -> bool,
    ) -> Result<Option<Merged>, MergeError> {
        let (version, limits, collections, purged) = {
            let state = &mut *self.state.borrow_mut();
            let flushed = state.version.flushed;
            state.overtaken = Some(Overtaken { flushed, tombstones: Vec::new() });
            (state.version.clone(), state.purge_limits.take(), state.erasable(), state.purge_seqno())
        };
        let limit = match limits {
            Some(limits) => self.purge_limit(&version, limits, &collections, purged, pace).await?,
            None => None,
        };
        let are_there = self.have_records(&version, &collections).await?;
        let rule = Rule { limit: limit.unwrap_or_default(), collections: &collections };
        let mut purging = Purging { limits, collections: collections.clone(), ..Purging::default() };
        if limit.is_none() && !are_there {
            // Nothing was ever in them, or nothing is on disk.
            let is_new = !collections.is_empty();
            return Ok(is_new.then(|| Merged::new(Vec::new(), None, Some(purging))));
        }
        let keeps = |key: &[u8], meta: &Meta| rule.keeps(key, meta, &version, &mut purging);
        let run = self.merge_keeping(&version.runs, keeps, pace).await?;
        Ok(Some(Merged::new(version.runs.clone(), Some(run), Some(purging))))
    }

    /// The seqno up to which tombstones may go; `None` if none may.
    async fn purge_limit(
        &self,
        version: &Version,
        limits: PurgeLimits,
        collections: &[u32],
        purged: Seqno,
        pace: &impl AsyncFn(u64) -> bool,
    ) -> Result<Option<Seqno>, MergeError> {
        let now = u32::try_from(self.core.env().clock.wall_ns() / 1_000_000_000).unwrap_or(u32::MAX);
        let is_old = |time: u32| {
            time < limits.before || time > now.saturating_add(AHEAD_SECONDS_MAX) || is_on(Mutant::PurgeYoung)
        };
        let rule = Rule { limit: Seqno(0), collections };
        let (mut oldest, mut first_young) = (Seqno(u64::MAX), version.flushed);
        let (mut newest, mut keys) = (Newest::new(&version.runs), 0u32);
        loop {
            let next =
                newest.next().await.map_err(|(index, error)| unreadable(&version.runs[index], error))?;
            let Some((key, Meta { item, .. })) = next else { break };
            if item.kind.is_deleted() && !rule.takes_collection(key, item.kind) {
                match is_old(item.expiry) {
                    true => oldest = oldest.min(item.seqno),
                    false => first_young = first_young.min(item.seqno),
                }
            }
            keys += 1;
            if keys.is_multiple_of(LOOK_KEYS) && (!pace(LOOK_BYTES).await || self.has_ended()) {
                return Err(MergeError::Stopped);
            }
        }
        let limit = Seqno(first_young.0.saturating_sub(1)).min(limits.up_to);
        Ok((oldest <= limit && limit > purged).then_some(limit))
    }

    /// Whether a run has a record of one of these collections.
    async fn have_records(&self, version: &Version, collections: &[u32]) -> Result<bool, MergeError> {
        for id in collections {
            let mut prefix = Vec::new();
            put_leb128(&mut prefix, *id);
            for run in &version.runs {
                let ahead = ReadAhead { parts: 0, metas: false };
                let mut cursor = Cursor::new(run.clone(), &prefix, ahead);
                while cursor.load().await.map_err(|error| unreadable(run, error))? {
                    if cursor.seek_in_part(&prefix) {
                        if cursor.prefix() == prefix {
                            return Ok(true);
                        }
                        break;
                    }
                }
            }
        }
        Ok(false)
    }

    /// Lets go of what is in memory of erased collections: nobody asks for it by key. What is in the window stays until that moves on.
    pub(super) fn spawn_forgetting(&self, collections: Vec<u32>) {
        let Some(store) = self.weak.upgrade() else { return };
        let core = self.core.clone();
        core.env().spawn("forget erased", async move {
            let rule = Rule { limit: Seqno(0), collections: &collections };
            let mut slot = Some(HashTable::TOP);
            while let Some(from) = slot.filter(|_| !store.has_ended()) {
                slot = store.forget_some(from, &rule);
                store.core.env().relax().await;
            }
        });
    }

    fn forget_some(&self, from: usize, rule: &Rule<'_>) -> Option<usize> {
        let state = &mut *self.state.borrow_mut();
        let mut going = Vec::new();
        let next = state.table.visit_slots(from, SLOTS_MAX, |item| {
            if rule.takes_collection(item.key(), item.kind()) {
                going.push(item.clone());
            }
        });
        for item in going {
            let is_out = state.table.evict(item.key(), item.seqno()).is_some();
            if is_out && state.versions.at(item.seqno()).is_none() {
                self.memory.add_resident(-(item.resident_bytes() as i64));
            }
        }
        state.book_overhead(&self.memory);
        next
    }
}
