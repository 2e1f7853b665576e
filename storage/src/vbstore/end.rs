//! The end of a vbucket whose bucket is deleted.
//!
//! Invariants
//! - Nothing is written to it any more; whoever waits for it learns that it is gone.
//! - Its runs and segments live as long as a view of it does; then their blocks are free.
//!
//! Does not know: why the bucket goes.

use super::VbStore;
use crate::hashtable::HashTable;
use crate::memtable::Memtable;
use crate::mutant::{Mutant, is_on};

impl VbStore {
    /// No manifest names it any more: lets go of everything that it has in memory and on disk.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        let state = &mut *self.state.borrow_mut();
        let version = std::mem::take(&mut state.version);
        if !is_on(Mutant::KeepGoneBlocks) {
            version.runs.iter().for_each(|run| run.set_named(false));
            version.segments.iter().for_each(|segment| segment.set_named(false));
        }
        state.active = Memtable::default();
        state.frozen.clear();
        state.table = HashTable::default();
        state.marks_bytes = 0;
        let mut gone = std::mem::take(&mut state.versions);
        let core = self.core.clone();
        core.env().clone().spawn("forget", async move {
            while gone.drain_slice() {
                core.env().relax().await;
            }
        });
        self.wake_waiters();
    }

    /// Whether its bucket is deleted.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }
}
