//! Read views: a consistent snapshot of a vbucket that lives while writes, flushes and merges go on.
//!
//! Opening freezes the memtable and waits until everything in it is durable, one group commit away; nothing is flushed for it.
//!
//! Invariants
//! - A view sees each key at its newest version at or below its end, and nothing else.
//! - Its contents never change; where they lie may: a flushed memtable is swapped for what it became, and the epoch rises.
//!
//! Does not know: order of reading, who reads.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::ephemeral::KeyReading;
use super::{FROZEN_MAX, MemoryView, SeqnoReading, VbStore};
use crate::collections::Collections;
use crate::memtable::Memtable;
use crate::reader::ReadError;
use crate::run::Run;
use crate::seqlog::{Segment, segment_of};
use crate::types::{Seqno, VbUuid};

/// The part of a vbucket that is on disk, at one moment. Immutable.
#[derive(Debug, Default, Clone)]
pub struct Version {
    /// Runs, oldest first.
    pub runs: Vec<Rc<Run>>,
    /// Segments, in seqno order.
    pub segments: Vec<Rc<Segment>>,
    /// Everything up to here is in them.
    pub flushed: Seqno,
}

/// Why a view could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// The shard, or a flush that must come first, has failed.
    #[error("the snapshot cannot become durable: {reason}")]
    Failed {
        /// Why.
        reason: Rc<str>,
    },
}

pub(super) struct ViewCell {
    reader: Option<KeyReading>,
    pub(super) end: Seqno,
    pub(super) parts: RefCell<Parts>,
    pub(super) epoch: Cell<u64>,
    uuid: VbUuid,
    items: u64,
    purge_seqno: Seqno,
    pub(super) purges: u64,
    collections: Rc<Collections>,
    opened_ns: u64,
    store: Rc<VbStore>,
}

/// Where the contents of a view lie now.
#[derive(Debug, Default, Clone)]
pub struct Parts {
    /// Frozen memtables, oldest first.
    pub frozen: Vec<Rc<Memtable>>,
    /// What is on disk.
    pub version: Rc<Version>,
    /// The contents of a vbucket that lives in memory only.
    pub memory: Option<MemoryView>,
}

/// See the module. Cloning shares it; it ends with its last clone.
#[derive(Clone)]
pub struct ReadView {
    cell: Rc<ViewCell>,
}

impl std::fmt::Debug for ReadView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadView({} up to {})", self.cell.store.vb, self.cell.end)
    }
}

impl VbStore {
    /// Opens a view of everything written so far. Where it must wait for a flush, a failed one ends the wait.
    ///
    /// # Errors
    /// `Failed`.
    pub async fn open_view(&self) -> Result<ReadView, ViewError> {
        self.wait_for_flushes().await?;
        if self.is_ephemeral {
            let store = self.weak.upgrade().expect("the store is borrowed");
            let (reading, memory) = store.open_memory().await;
            self.is_there()?;
            let end = reading.end();
            return Ok(self.ephemeral_view(Some(reading), memory, end));
        }
        self.until_durable(self.freeze_view()?).await
    }

    /// Opens a view, and at the same moment a reader of what is in memory, both to be read in seqno order from `start` on.
    ///
    /// # Errors
    /// `Failed`.
    pub async fn open_view_from(&self, start: Seqno) -> Result<(ReadView, SeqnoReading), ViewError> {
        self.wait_for_flushes().await?;
        let reading = self.open_seqnos(start);
        let end = reading.end();
        if self.is_ephemeral {
            let store = self.weak.upgrade().expect("the store is borrowed");
            return Ok((self.ephemeral_view(None, MemoryView::new(store, end), end), reading));
        }
        let view = self.freeze_view()?;
        assert_eq!(view.end(), end, "opened in one step");
        Ok((self.until_durable(view).await?, reading))
    }

    /// Waits until a memtable may be frozen.
    async fn wait_for_flushes(&self) -> Result<(), ViewError> {
        let crowded = || {
            let state = self.state.borrow();
            !state.active.is_empty() && state.frozen.len() >= FROZEN_MAX
        };
        if crowded() {
            let failures = || self.core.metrics().flush_failures.get();
            let before = failures();
            self.core.want_flush();
            let is_over = || self.core.has_failed() || self.has_ended() || failures() != before;
            self.flushed_event.until(|| !crowded() || is_over()).await;
        }
        self.is_there()
    }

    fn is_there(&self) -> Result<(), ViewError> {
        match self.has_ended() {
            true => Err(ViewError::Failed { reason: "the bucket is deleted".into() }),
            false => Ok(()),
        }
    }

    fn freeze_view(&self) -> Result<ReadView, ViewError> {
        let state = &mut *self.state.borrow_mut();
        if state.frozen.len() < FROZEN_MAX {
            state.freeze();
        }
        if !state.active.is_empty() {
            let unflushed = || "a flush that must come first has failed".into();
            let reason = self.core.failure().unwrap_or_else(unflushed);
            return Err(ViewError::Failed { reason });
        }
        let frozen = state.frozen.iter().cloned().collect();
        let parts = Parts { frozen, version: state.version.clone(), memory: None };
        Ok(self.view_of(state, None, state.high, parts))
    }

    async fn until_durable(&self, view: ReadView) -> Result<ReadView, ViewError> {
        if !self.wait_persisted(view.end()).await {
            let reason = self.core.failure().unwrap_or_else(|| "stopped".into());
            return Err(ViewError::Failed { reason });
        }
        Ok(view)
    }

    fn ephemeral_view(&self, reader: Option<KeyReading>, memory: MemoryView, end: Seqno) -> ReadView {
        let state = &mut *self.state.borrow_mut();
        self.view_of(state, reader, end, Parts { memory: Some(memory), ..Parts::default() })
    }

    fn view_of(
        &self,
        state: &mut super::State,
        reader: Option<KeyReading>,
        end: Seqno,
        parts: Parts,
    ) -> ReadView {
        let cell = Rc::new(ViewCell {
            reader,
            end,
            parts: RefCell::new(parts),
            epoch: Cell::new(0),
            uuid: state.failover_log.first().map_or(VbUuid(0), |entry| entry.uuid),
            collections: state.collections.clone(),
            items: state.counts.items.saturating_sub(state.collections.hidden_items()),
            purge_seqno: state.purge_seqno(),
            purges: state.purges,
            opened_ns: self.core.env().clock.monotonic_ns(),
            store: self.weak.upgrade().expect("the store is borrowed"),
        });
        state.views.retain(|view| view.strong_count() > 0);
        state.views.push(Rc::downgrade(&cell));
        ReadView { cell }
    }
}

impl super::State {
    /// Freezes the memtable if anything was written since the last time.
    pub(super) fn freeze(&mut self) {
        if !self.active.is_empty() {
            let counts = super::VbCounts { flushed_seqno: self.high, ..self.counts };
            let active = std::mem::take(&mut self.active);
            let reader = self.versions.open(active.first(), self.purge_seqno());
            self.frozen.push_back(active.freeze(counts, self.collections.clone(), reader));
        }
    }

    /// The lowest end of a live view.
    pub(super) fn lowest_view_end(&self) -> Option<Seqno> {
        self.views.iter().filter_map(|view| view.upgrade().map(|cell| cell.end)).min()
    }
}

impl ReadView {
    /// Everything up to here is seen.
    #[must_use]
    pub fn end(&self) -> Seqno {
        self.cell.end
    }

    /// The vbucket.
    #[must_use]
    pub fn store(&self) -> &Rc<VbStore> {
        &self.cell.store
    }

    /// The branch at the time it was opened.
    #[must_use]
    pub fn uuid(&self) -> VbUuid {
        self.cell.uuid
    }

    /// Live documents in it, those of dropped collections left out.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.cell.items
    }

    /// The greatest purged tombstone at the time it was opened; none at or below it is seen.
    #[must_use]
    pub fn purge_seqno(&self) -> Seqno {
        self.cell.purge_seqno
    }

    /// Its collections at the time it was opened.
    #[must_use]
    pub fn collections(&self) -> &Collections {
        &self.cell.collections
    }

    /// When it was opened, monotonic nanoseconds.
    #[must_use]
    pub fn opened_ns(&self) -> u64 {
        self.cell.opened_ns
    }

    /// Where its contents lie now, and the epoch of that answer.
    #[must_use]
    pub fn parts(&self) -> (Parts, u64) {
        (self.cell.parts.borrow().clone(), self.cell.epoch.get())
    }

    /// Rises when the contents are to be found elsewhere.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.cell.epoch.get()
    }

    /// No scan of this view goes back to a key (with prefix) before `key`: what only this view needs there is let go of.
    pub fn passed(&self, key: &[u8]) {
        if let Some(reader) = &self.cell.reader {
            self.cell.store.reader_passed(reader, key);
        }
    }

    /// Whether it may be read in key order.
    pub(crate) fn is_in_key_order(&self) -> bool {
        self.cell.reader.is_some() || !self.cell.store.is_ephemeral
    }

    /// Whether the view shows a live document with exactly this seqno.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `Gone`.
    pub async fn contains_seqno(&self, seqno: Seqno) -> Result<bool, ReadError> {
        let (parts, _) = self.parts();
        if let Some(memory) = &parts.memory {
            return memory.contains(seqno);
        }
        if self.cell.store.has_ended() && !parts.frozen.is_empty() {
            return Err(ReadError::Gone);
        }
        for (index, table) in parts.frozen.iter().enumerate() {
            if let Some(item) = table.at(seqno) {
                let newer = &parts.frozen[index + 1..];
                let superseded = newer.iter().any(|table| table.supersedes(seqno));
                return Ok(!superseded && !item.is_deleted());
            }
        }
        let Some(segment) = segment_of(&parts.version.segments, seqno) else { return Ok(false) };
        if segment.is_dead(seqno, self.cell.end) {
            return Ok(false);
        }
        let Some(item) = parts.version.document(&self.cell.store, seqno).await? else { return Ok(false) };
        let superseded = parts.frozen.iter().any(|table| table.supersedes(seqno));
        Ok(!superseded && !item.is_deleted())
    }
}
