//! Verified reads: a block of the data file, from the cache or the device, checked before anyone sees it.
//!
//! Invariants
//! - No unverified byte leaves this module (G3). A block that verifies but belongs elsewhere is an error (G5).
//!
//! Does not know: what is searched.

use std::io;
use std::rc::Rc;

use crate::cache::{Admission, Block, Shape};
use crate::extent::Space;
use crate::format::FormatError;
use crate::format::block::{BlockIdentity, BlockType, open_block};
use crate::format::key_block::KeyPart;
use crate::format::seqlog_block::SeqlogBlock;
use crate::io::{BLOCK_BYTES, DmaBuffer};

/// Why a block could not be read. Says which and where.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The device failed.
    #[error("cannot read {blocks} blocks at block {place} of {device}: {source}")]
    Io {
        /// Which file.
        device: String,
        /// Where.
        place: u64,
        /// How many.
        blocks: u32,
        /// What the device said.
        source: Rc<io::Error>,
    },
    /// The bucket is deleted, and what was in memory only with it.
    #[error("the bucket is deleted")]
    Gone,
    /// The bytes do not verify or belong elsewhere.
    #[error("block {place} of {device} is damaged: {source}")]
    Damaged {
        /// Which file.
        device: String,
        /// Where.
        place: u64,
        /// What is wrong.
        source: FormatError,
    },
}

impl ReadError {
    /// Whether the bytes were read but are wrong.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, ReadError::Damaged { .. })
    }
}

/// Which block to read, and what it must be.
#[derive(Debug, Clone, Copy)]
pub struct BlockAt {
    /// What it must be.
    pub identity: BlockIdentity,
    /// First device block.
    pub place: u64,
    /// Device blocks.
    pub blocks: u32,
}

/// A read that has been started.
pub enum Reading {
    /// The cache had it.
    Hit(Rc<Block>),
    /// The device is at it.
    Device(crate::env::LocalFuture<'static, io::Result<DmaBuffer>>),
}

/// Starts reading a block; [`finish`] waits for it.
pub fn start(space: &Space, at: &BlockAt) -> Reading {
    if let Some(block) = space.cache().get((space.file(), at.place), at.identity.object) {
        return Reading::Hit(block);
    }
    Reading::Device(space.device().read(at.place * BLOCK_BYTES as u64, at.blocks as usize * BLOCK_BYTES))
}

/// Waits for a block, verifies it, and offers it to the cache.
///
/// # Errors
/// `Io`, `Damaged`.
pub async fn finish(
    space: &Space,
    at: &BlockAt,
    reading: Reading,
    admission: Admission,
) -> Result<Rc<Block>, ReadError> {
    let device = match reading {
        Reading::Hit(block) => return Ok(block),
        Reading::Device(device) => device,
    };
    let bytes = device.await.map_err(|source| io_error(space, at, source))?;
    let damaged = |source| damaged(space, at.place, source);
    let shape = match at.identity.kind {
        BlockType::Keys => Shape::Keys(KeyPart::open(&at.identity, at.place, &bytes).map_err(damaged)?),
        BlockType::Seqlog => {
            Shape::Seqlog(SeqlogBlock::open(&at.identity, at.place, &bytes).map_err(damaged)?)
        }
        _ => {
            open_block(&at.identity, at.place, &bytes).map_err(damaged)?;
            Shape::Metas
        }
    };
    let block = Block { object: at.identity.object, bytes: bytes.into_owned(), shape };
    Ok(space.cache().insert((space.file(), at.place), block, admission))
}

/// Reads a block.
///
/// # Errors
/// `Io`, `Damaged`.
pub async fn read(space: &Space, at: &BlockAt, admission: Admission) -> Result<Rc<Block>, ReadError> {
    finish(space, at, start(space, at), admission).await
}

/// Reads a block that is not worth caching and returns its payload's place in the bytes.
///
/// # Errors
/// `Io`, `Damaged`.
pub async fn read_uncached(
    space: &Space,
    at: &BlockAt,
) -> Result<(DmaBuffer, std::ops::Range<usize>), ReadError> {
    let offset = at.place * BLOCK_BYTES as u64;
    let bytes = space.device().read(offset, at.blocks as usize * BLOCK_BYTES).await;
    let bytes = bytes.map_err(|source| io_error(space, at, source))?;
    let header =
        open_block(&at.identity, at.place, &bytes).map_err(|source| damaged(space, at.place, source))?;
    let start = crate::format::block::BLOCK_HEADER_BYTES;
    Ok((bytes, start..start + header.payload_len as usize))
}

fn io_error(space: &Space, at: &BlockAt, source: io::Error) -> ReadError {
    let device = space.device().name().to_owned();
    ReadError::Io { device, place: at.place, blocks: at.blocks, source: Rc::new(source) }
}

/// A damaged-block error of this space.
#[must_use]
pub fn damaged(space: &Space, place: u64, source: FormatError) -> ReadError {
    ReadError::Damaged { device: space.device().name().to_owned(), place, source }
}
