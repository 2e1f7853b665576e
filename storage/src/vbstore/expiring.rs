//! Looking for documents whose expiry has passed, in memory and on disk, a slice at a time.
//!
//! First the resident versions, then the key runs, whose metadata says when a document expires; no document is read. What is found is a hint: a
//! newer version may lie elsewhere, so the caller asks for the newest one before it acts.
//!
//! Each run remembers the earliest expiry that still lies ahead in it. A run written by this process knows it from the start; one that was
//! opened learns it the first time. So a run without expiries, or whose expiries lie ahead, is passed over.
//!
//! Cost: a slice is at most [`SLICE_RECORDS`] records; a run is read at most once for every expiry that passes between two looks.
//! Does not know: what the caller does with an expired document, the clock.

use std::rc::Rc;

use super::VbStore;
use crate::hashtable::HashTable;
use crate::reader::ReadError;
use crate::run::{Cursor, ReadAhead, Run};

/// Records that one slice looks at.
pub const SLICE_RECORDS: usize = 256;

enum Stage {
    Memory { slot: usize },
    Runs { runs: Vec<Rc<Run>>, current: Option<Looking> },
}

/// A run that is being looked through.
struct Looking {
    run: Rc<Run>,
    cursor: Cursor,
    next_expiry: u32,
    is_through: bool,
}

/// See the module.
pub struct ExpiryScan {
    store: Rc<VbStore>,
    before: u32,
    stage: Stage,
    incomplete: bool,
}

impl std::fmt::Debug for ExpiryScan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExpiryScan({:?}, before {})", self.store, self.before)
    }
}

impl ExpiryScan {
    /// A scan for documents whose expiry is below `before`, in epoch seconds.
    #[must_use]
    pub fn new(store: Rc<VbStore>, before: u32) -> ExpiryScan {
        ExpiryScan { store, before, stage: Stage::Memory { slot: HashTable::TOP }, incomplete: false }
    }

    /// A key that was found could not be dealt with: what it was found in is looked at again next time.
    pub fn left_one(&mut self) {
        self.incomplete = true;
    }

    /// The keys (with prefix) found in the next slice, often none; `None` at the end.
    ///
    /// # Errors
    /// `Io`, `Damaged`: a run cannot be read; the scan is over.
    pub async fn next(&mut self) -> Result<Option<Vec<Box<[u8]>>>, ReadError> {
        if self.store.has_ended() {
            return Ok(None);
        }
        let before = self.before;
        match &mut self.stage {
            Stage::Memory { slot } => {
                let mut found = Vec::new();
                let state = self.store.state.borrow();
                let next = state.table.visit_slots(*slot, SLICE_RECORDS, |item| {
                    let meta = &item.meta();
                    if !meta.kind.is_deleted() && meta.expiry != 0 && meta.expiry < before {
                        found.push(item.key().into());
                    }
                });
                let runs = next.is_none().then(|| state.version.runs.clone());
                drop(state);
                match (next, runs) {
                    (Some(next), _) => *slot = next,
                    (None, runs) => {
                        self.stage = Stage::Runs { runs: runs.unwrap_or_default(), current: None };
                    }
                }
                Ok(Some(found))
            }
            Stage::Runs { runs, current } => {
                if let Some(done) = current.take_if(|looking| looking.is_through)
                    && !self.incomplete
                {
                    done.run.set_next_expiry(done.next_expiry);
                }
                if current.is_none() {
                    let due = |run: &Rc<Run>| run.next_expiry().is_none_or(|expiry| expiry < before);
                    let Some(run) = std::iter::from_fn(|| runs.pop()).find(due) else { return Ok(None) };
                    let ahead = ReadAhead { parts: 1, metas: true };
                    let cursor = Cursor::new(run.clone(), &[], ahead);
                    *current = Some(Looking { run, cursor, next_expiry: u32::MAX, is_through: false });
                }
                let Some(looking) = current else { return Ok(None) };
                looking.slice(before).await.map(Some)
            }
        }
    }
}

impl Looking {
    async fn slice(&mut self, before: u32) -> Result<Vec<Box<[u8]>>, ReadError> {
        let mut found = Vec::new();
        for _ in 0..SLICE_RECORDS {
            if !self.cursor.load().await? {
                self.is_through = true;
                break;
            }
            let (_, is_deleted) = self.cursor.seqno();
            if !is_deleted {
                let expiry = self.cursor.meta()?.item.expiry;
                if expiry != 0 && expiry < before {
                    found.push([self.cursor.prefix(), self.cursor.key()].concat().into());
                } else if expiry != 0 {
                    self.next_expiry = self.next_expiry.min(expiry);
                }
            }
            self.cursor.advance(1);
        }
        Ok(found)
    }
}
