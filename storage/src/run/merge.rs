//! Merging runs into one: each key at its newest version.
//!
//! Deletions are kept: what a stream of the past must still tell. Views keep the merged runs as long as they need them.
//!
//! Cost: every key and its metadata is read and written once.
//! Does not know: when to merge.

use std::io;
use std::rc::Rc;

use super::{Cursor, ReadAhead, Run, RunWriter};
use crate::env::Env;
use crate::extent::{Purpose, Space};
use crate::format::block::BlockIdentity;
use crate::io::BLOCK_BYTES;
use crate::reader::ReadError;

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
}

/// Merges `runs`, oldest first, into run `id`; it is written but not durable, and no manifest names it.
///
/// # Errors
/// `Read`, `Write`.
pub async fn merge_runs(
    env: &Env,
    space: &Rc<Space>,
    identity: BlockIdentity,
    id: u64,
    runs: &[Rc<Run>],
) -> Result<Rc<Run>, MergeError> {
    let blocks: u32 = runs.iter().flat_map(|run| &run.desc().extents).map(|extent| extent.blocks).sum();
    let mut writer =
        RunWriter::new(space.clone(), Purpose::Upkeep, identity, id, blocks as usize * BLOCK_BYTES);
    let ahead = ReadAhead { parts: 2, metas: true };
    let cursors: Vec<Cursor> = runs.iter().map(|run| Cursor::new(run.clone(), &[], ahead)).collect();
    if let Err(error) = merge_into(env, cursors, &mut writer).await {
        writer.abort().await;
        return Err(error);
    }
    Ok(writer.finish().await?)
}

async fn merge_into(env: &Env, mut cursors: Vec<Cursor>, writer: &mut RunWriter) -> Result<(), MergeError> {
    let mut key = Vec::new();
    loop {
        let mut newest: Option<usize> = None;
        for index in 0..cursors.len() {
            // Of equal keys the later, the newer run's, is taken.
            let lowest = cursors[index].load().await?
                && newest.is_none_or(|newest| full_key(&cursors[index]) <= full_key(&cursors[newest]));
            if lowest {
                newest = Some(index);
            }
        }
        let Some(newest) = newest else { break };
        let (prefix, logical) = full_key(&cursors[newest]);
        key.clear();
        key.extend_from_slice(prefix);
        key.extend_from_slice(logical);
        let prefix_len = prefix.len();
        let meta = cursors[newest].meta()?;
        writer.push(&key, &meta).await?;
        for cursor in &mut cursors {
            if cursor.has_key() && full_key(cursor) == key.split_at(prefix_len) {
                cursor.advance(1);
            }
        }
        env.relax().await;
    }
    Ok(())
}

/// Prefix and logical key; comparing the pair compares the whole key, as prefixes are prefix-free.
fn full_key(cursor: &Cursor) -> (&[u8], &[u8]) {
    (cursor.prefix(), cursor.key())
}
