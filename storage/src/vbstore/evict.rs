//! Letting flushed versions go from memory when there is no room for them any more.
//!
//! Invariants
//! - A version that is not flushed stays.
//!
//! Cost: a slice looks at a bounded number of slots.
//! Does not know: why there is less room.

use super::VbStore;
use crate::hashtable::HashTable;

/// Slots of the table that one slice looks at.
const SLOTS_MAX: usize = 256;

impl VbStore {
    /// Drops flushed versions from memory until the bucket has room in this shard again, or none is left.
    pub(crate) async fn evict_until_room(&self) {
        let mut slot = Some(HashTable::TOP);
        while let Some(from) = slot.filter(|_| !self.memory.has_resident_room(0) && !self.has_ended()) {
            {
                let state = &mut *self.state.borrow_mut();
                let flushed = state.version.flushed;
                let mut going = Vec::new();
                slot = state.table.visit_slots(from, SLOTS_MAX, |item| {
                    if item.seqno() <= flushed {
                        going.push(item.clone());
                    }
                });
                for item in going {
                    let evicted = state.table.evict(item.key(), item.seqno());
                    self.memory.add_resident(-evicted.map_or(0, |item| item.resident_bytes() as i64));
                }
            }
            self.core.env().spawn.yield_now().await;
        }
    }
}
