//! The end of a vbucket that is deleted, alone or with its bucket.
//!
//! Invariants
//! - What it has booked with its bucket's account is given back.
//! - Nothing is written to it any more; whoever waits for it learns that it is gone.
//! - Its runs and segments live as long as a view of it does; then their blocks are free.
//!
//! Does not know: why it goes.

use super::VbStore;
use crate::memtable::Memtable;
use crate::mutant::{Mutant, is_on};

/// Buckets of the hash table that one slice of forgetting empties.
const BUCKETS_A_SLICE: usize = 64;

impl VbStore {
    /// Nothing is written to it any more: it is about to be deleted.
    pub(crate) fn refuse_writes(&self) {
        self.ended.set(true);
        self.wake_waiters();
    }

    /// No manifest names it any more: lets go of everything that it has in memory and on disk.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        let state = &mut *self.state.borrow_mut();
        let version = std::mem::take(&mut state.version);
        if !is_on(Mutant::KeepGoneBlocks) {
            version.runs.iter().for_each(|run| run.set_named(false));
            version.segments.iter().for_each(|segment| segment.set_named(false));
            state.marks.iter().for_each(|marks| marks.set_named(false));
        }
        let memtable_bytes =
            state.active.bytes() + state.frozen.iter().map(|table| table.bytes()).sum::<usize>();
        let kept = state.versions.stats();
        let item_bytes = state.table.bytes() - state.table.overhead_bytes() + state.overhead_booked;
        let kept_bytes = kept.stale_value_bytes + kept.stale_meta_bytes;
        self.memory.add_memtable(-(memtable_bytes as i64));
        self.memory.add_resident(-(item_bytes as i64) - kept_bytes as i64);
        state.active = Memtable::default();
        state.frozen.clear();
        let mut table = std::mem::take(&mut state.table);
        state.marks.clear();
        state.arrivals = None;
        let mut versions = std::mem::take(&mut state.versions);
        state.overhead_booked = 0;
        let core = self.core.clone();
        core.begin_forgetting();
        core.env().clone().spawn("forget", async move {
            while !table.drain_slice(BUCKETS_A_SLICE) || versions.drain_slice() {
                // What was let go of is freed as it goes: otherwise it would lie in a queue until somebody else writes.
                crate::epoch::collect();
                core.env().relax().await;
            }
            crate::epoch::collect();
            core.end_forgetting();
        });
        self.wake_waiters();
    }

    /// Whether it, or its bucket, is deleted.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }
}
