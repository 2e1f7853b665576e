//! Merging runs into one: each key at its newest version. Views keep the merged runs as long as they need them.
//!
//! Deletions are kept, what a stream of the past must still tell; a merge with the oldest run may leave versions out that nobody needs any more.
//!
//! Cost: every key and its metadata is read and written once.
//! Does not know: when to merge, who needs what.

use std::io;
use std::rc::Rc;

use super::{Cursor, ReadAhead, Run, RunWriter};
use crate::extent::{Purpose, Space};
use crate::format::block::BlockIdentity;
use crate::format::key_block::Meta;
use crate::reader::ReadError;

/// Bytes of a record beside its key, about.
const RECORD_BYTES: usize = 56;

/// How much is merged between two looks at the pace.
const PACE_BYTES: u64 = 8 << 10;

/// Why a merge did not happen. The runs are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A run cannot be read.
    #[error("cannot read a run that is merged")]
    Read(#[from] ReadError),
    /// The new run cannot be written.
    #[error("cannot write the merged run")]
    Write(#[from] io::Error),
    /// Whoever paces it says that it is not to go on.
    #[error("stopped")]
    Stopped,
}

/// The newest version of each key in `runs`, oldest first, in key order.
pub struct Newest {
    cursors: Vec<Cursor>,
    key: Vec<u8>,
    prefix_len: usize,
    at: Option<usize>,
}

impl Newest {
    /// Those of `runs`, from the first key on.
    #[must_use]
    pub fn new(runs: &[Rc<Run>]) -> Newest {
        let ahead = ReadAhead { parts: 2, metas: true };
        let cursors = runs.iter().map(|run| Cursor::new(run.clone(), &[], ahead)).collect();
        Newest { cursors, key: Vec::new(), prefix_len: 0, at: None }
    }

    /// The next key (with prefix), and what is known of its newest version; `None` at the end.
    ///
    /// # Errors
    /// `Io`, `Damaged`; with the index of the run.
    pub async fn next(&mut self) -> Result<Option<(&[u8], Meta)>, (usize, ReadError)> {
        if self.at.take().is_some() {
            let key = self.key.split_at(self.prefix_len);
            for cursor in &mut self.cursors {
                if cursor.has_key() && full_key(cursor) == key {
                    cursor.advance(1);
                }
            }
        }
        let mut newest: Option<usize> = None;
        for index in 0..self.cursors.len() {
            // Of equal keys the later, the newer run's, is taken.
            let lowest = self.cursors[index].load().await.map_err(|error| (index, error))?
                && newest
                    .is_none_or(|newest| full_key(&self.cursors[index]) <= full_key(&self.cursors[newest]));
            if lowest {
                newest = Some(index);
            }
        }
        let Some(newest) = newest else { return Ok(None) };
        let (prefix, logical) = full_key(&self.cursors[newest]);
        self.key.clear();
        self.key.extend_from_slice(prefix);
        self.key.extend_from_slice(logical);
        self.prefix_len = prefix.len();
        self.at = Some(newest);
        let meta = self.cursors[newest].meta().map_err(|error| (newest, error))?;
        Ok(Some((&self.key, meta)))
    }
}

/// Merges `runs`, oldest first, into run `id`; it is written but not durable, and no manifest names it. Only what `keeps` says yes to is taken along. `pace`
/// is told of bytes that were read and written; it says whether to go on.
///
/// # Errors
/// `Read`: the run that cannot be read is marked. `Write`, `Stopped`.
pub async fn merge_runs(
    space: &Rc<Space>,
    identity: BlockIdentity,
    id: u64,
    runs: &[Rc<Run>],
    keeps: impl FnMut(&[u8], &Meta) -> bool,
    pace: &impl AsyncFn(u64) -> bool,
) -> Result<Rc<Run>, MergeError> {
    let bytes: u64 = runs.iter().map(|run| run.device_bytes()).sum();
    let mut writer = RunWriter::new(space.clone(), Purpose::Upkeep, identity, id, bytes as usize);
    if let Err(error) = merge_into(runs, &mut writer, keeps, pace).await {
        writer.abort().await;
        return Err(error);
    }
    Ok(writer.finish().await?)
}

async fn merge_into(
    runs: &[Rc<Run>],
    writer: &mut RunWriter,
    mut keeps: impl FnMut(&[u8], &Meta) -> bool,
    pace: &impl AsyncFn(u64) -> bool,
) -> Result<(), MergeError> {
    let mut newest = Newest::new(runs);
    let mut bytes = 0;
    loop {
        let next = newest.next().await;
        let Some((key, meta)) = next.map_err(|(index, error)| unreadable(&runs[index], error))? else {
            break;
        };
        if keeps(key, &meta) {
            writer.push(key, &meta).await?;
        }
        bytes += 2 * (key.len() + RECORD_BYTES) as u64;
        if bytes >= PACE_BYTES && !pace(std::mem::take(&mut bytes)).await {
            return Err(MergeError::Stopped);
        }
    }
    Ok(())
}

/// Marks the run that cannot be read.
pub(crate) fn unreadable(run: &Run, error: ReadError) -> MergeError {
    run.set_unreadable();
    MergeError::Read(error)
}

/// Prefix and logical key; comparing the pair compares the whole key, as prefixes are prefix-free.
fn full_key(cursor: &Cursor) -> (&[u8], &[u8]) {
    (cursor.prefix(), cursor.key())
}
