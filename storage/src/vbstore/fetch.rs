//! Finding the newest version of a key that is not in memory, and running what waits for it in order.
//!
//! Invariants
//! - One read a key at a time. Whatever asks for the key meanwhile waits behind it, so operations on a key keep their order.
//!
//! Does not know: what is done with the answer.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Found, Lookup, VbStore, Version};
use crate::cache::Admission;
use crate::item::Item;
use crate::reader::{ReadError, read};
use crate::run::filter_hash;
use crate::seqlog::{segment_of, seqlog_block};
use crate::sync::Event;
use crate::types::Seqno;

/// What runs when a key's newest version is known.
pub type Continuation = Box<dyn FnOnce(&VbStore, Result<Found, ReadError>)>;

impl VbStore {
    /// Runs `then` with the newest version of `key` (with prefix): at once if memory knows it, else after a read, in
    /// order of arrival.
    pub fn with_key(&self, key: &[u8], then: Continuation) {
        let found = match self.lookup(key) {
            Lookup::Known(found) => found,
            Lookup::OnDisk => return self.fetch(key, then),
        };
        then(self, Ok(found));
    }

    /// Runs `then` as [`VbStore::with_key`] does, and waits for what it returns.
    pub async fn ask<T: 'static>(
        &self,
        key: &[u8],
        then: impl FnOnce(&VbStore, Result<Found, ReadError>) -> T + 'static,
    ) -> T {
        let answer: Rc<RefCell<Option<T>>> = Rc::default();
        let done = Rc::new(Event::default());
        let (slot, event) = (answer.clone(), done.clone());
        self.with_key(
            key,
            Box::new(move |store, found| {
                let answer = then(store, found);
                *slot.borrow_mut() = Some(answer);
                event.notify_all();
            }),
        );
        done.until(|| answer.borrow().is_some()).await;
        let answer = answer.borrow_mut().take();
        answer.expect("waited for")
    }

    fn fetch(&self, key: &[u8], then: Continuation) {
        let mut state = self.state.borrow_mut();
        if let Some(waiting) = state.fetching.get_mut(key) {
            waiting.push(then);
            return;
        }
        state.fetching.insert(key.into(), vec![then]);
        let version = state.version.clone();
        drop(state);
        self.core.metrics().disk_lookups.add(1);
        let (store, key) = (self.weak.clone(), Box::<[u8]>::from(key));
        self.core.env().spawn("fetch", async move {
            let Some(store) = store.upgrade() else { return };
            let found = version.find(&store, &key).await;
            store.finish_fetch(&key, found);
        });
    }

    fn finish_fetch(&self, key: &[u8], found: Result<Found, ReadError>) {
        let mut state = self.state.borrow_mut();
        let waiting = state.fetching.remove(key).unwrap_or_default();
        if let Ok(Found::Version(item)) = &found
            && self.memory.has_resident_room(item.resident_bytes())
        {
            self.memory.add_resident(item.resident_bytes() as i64);
            state.table.insert(item.clone());
        }
        drop(state);
        for then in waiting {
            // The one before may have written the key.
            let newest = self.state.borrow().table.get(key).map(|item| item.clone());
            then(self, newest.map_or_else(|| found.clone(), |item| Ok(Found::Version(item))));
        }
    }
}

impl Version {
    /// The newest version of `key` in the runs, with its document.
    pub(super) async fn find(&self, store: &VbStore, key: &[u8]) -> Result<Found, ReadError> {
        let hash = filter_hash(key);
        for run in self.runs.iter().rev().filter(|run| run.may_contain(hash)) {
            if let Some(found) = run.find(key).await? {
                let item = self.document(store, found.seqno).await?;
                return Ok(item.map_or(Found::Absent, Found::Version));
            }
        }
        Ok(Found::Absent)
    }

    /// The record with this seqno.
    pub(super) async fn document(&self, store: &VbStore, seqno: Seqno) -> Result<Option<Item>, ReadError> {
        let Some(segment) = segment_of(&self.segments, seqno) else { return Ok(None) };
        let Some(fence) = segment.fence_of(seqno) else { return Ok(None) };
        let (space, at) = (store.core.space(), segment.block_at(fence));
        let block = read(space, &at, Admission::Evict).await?;
        let record = seqlog_block(&block).find(&block.bytes, seqno);
        let record = record.map_err(|source| crate::reader::damaged(space, at.place, source))?;
        Ok(record.map(|record| Item::new(record.meta, record.key, record.value)))
    }
}
