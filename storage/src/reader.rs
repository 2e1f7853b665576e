//! Verified reads: a block of the data file, from the cache or the device, checked before anyone sees it.
//!
//! Invariants
//! - No unverified byte leaves this module (G3). A block that verifies but belongs elsewhere is an error (G5).
//!
//! Does not know: what is searched.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::cache::{Admission, Block, BlockBytes, Shape};
use crate::env::LocalFuture;
use crate::extent::Space;
use crate::format::FormatError;
use crate::format::block::{BlockIdentity, BlockType, open_block};
use crate::format::key_block::KeyPart;
use crate::format::seqlog_block::SeqlogBlock;
use crate::io::{BLOCK_BYTES, DmaBuffer};

/// Bytes of a read of several blocks at most.
pub const LONG_READ_BYTES_MAX: usize = 128 << 10;

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

impl BlockAt {
    /// The device block behind it.
    fn end(&self) -> u64 {
        self.place + u64::from(self.blocks)
    }
}

/// A read that has been started.
pub enum Reading {
    /// The cache had it.
    Hit(Rc<Block>),
    /// The device is at it.
    Device(LocalFuture<'static, io::Result<DmaBuffer>>),
    /// The device has answered.
    Came(io::Result<DmaBuffer>),
    /// The device is at a longer read, of which this many bytes come before the block.
    Part(Rc<LongRead>, usize),
}

/// One read of several blocks, each of which waits for it.
pub struct LongRead(RefCell<LongState>);

enum LongState {
    UnderWay(LocalFuture<'static, io::Result<DmaBuffer>>),
    Done(Rc<DmaBuffer>),
    Failed,
}

impl Reading {
    /// Waits until the device has answered, whatever it says; [`finish`] need not wait for it then.
    pub fn poll_answered(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Reading::Hit(_) | Reading::Came(_) => {}
            Reading::Device(device) => *self = Reading::Came(ready!(device.as_mut().poll(context))),
            Reading::Part(long, _) => drop(ready!(long.poll_bytes(context))),
        }
        Poll::Ready(())
    }
}

impl LongRead {
    /// What was read; `None` if the read failed, for one block or another.
    fn poll_bytes(&self, context: &mut Context<'_>) -> Poll<Option<Rc<DmaBuffer>>> {
        let state = &mut *self.0.borrow_mut();
        if let LongState::UnderWay(read) = state {
            *state = match ready!(read.as_mut().poll(context)) {
                Ok(bytes) => LongState::Done(Rc::new(bytes)),
                Err(_) => LongState::Failed,
            };
        }
        Poll::Ready(match state {
            LongState::Done(bytes) => Some(bytes.clone()),
            LongState::UnderWay(_) | LongState::Failed => None,
        })
    }
}

/// Starts reading a block; [`finish`] waits for it.
pub fn start(space: &Space, at: &BlockAt) -> Reading {
    match space.cache().get((space.file(), at.place), at.identity.object) {
        Some(block) => Reading::Hit(block),
        None => Reading::Device(start_device(space, at.place, at.blocks)),
    }
}

/// Starts reading blocks, those that are neighbours on the device with one read of up to [`LONG_READ_BYTES_MAX`]. A reading for each, in order;
/// they are finished one after the other, by one task.
pub fn start_together<'a>(space: &Space, blocks: impl Iterator<Item = &'a BlockAt>) -> Vec<Reading> {
    let mut readings = Vec::new();
    let mut neighbours: Vec<BlockAt> = Vec::new();
    for at in blocks {
        let cached = space.cache().get((space.file(), at.place), at.identity.object);
        let is_next = neighbours.first().zip(neighbours.last()).is_some_and(|(first, last)| {
            last.end() == at.place && at.end() - first.place <= (LONG_READ_BYTES_MAX / BLOCK_BYTES) as u64
        });
        if cached.is_some() || !is_next {
            start_neighbours(space, &mut neighbours, &mut readings);
        }
        match cached {
            Some(block) => readings.push(Reading::Hit(block)),
            None => neighbours.push(*at),
        }
    }
    start_neighbours(space, &mut neighbours, &mut readings);
    readings
}

/// Starts one read of blocks that follow each other.
fn start_neighbours(space: &Space, neighbours: &mut Vec<BlockAt>, readings: &mut Vec<Reading>) {
    let (Some(first), Some(last)) = (neighbours.first(), neighbours.last()) else { return };
    let start = first.place;
    let read = start_device(space, start, (last.end() - start) as u32);
    if neighbours.len() == 1 {
        readings.push(Reading::Device(read));
    } else {
        let long = Rc::new(LongRead(RefCell::new(LongState::UnderWay(read))));
        let parts = neighbours.iter().map(|at| (at.place - start) as usize * BLOCK_BYTES);
        readings.extend(parts.map(|before| Reading::Part(long.clone(), before)));
    }
    neighbours.clear();
}

fn start_device(space: &Space, place: u64, blocks: u32) -> LocalFuture<'static, io::Result<DmaBuffer>> {
    space.device().read(place * BLOCK_BYTES as u64, blocks as usize * BLOCK_BYTES)
}

/// Waits for a block, verifies it, and offers it to the cache. A longer read that failed is repeated for this block alone, so that only the block
/// fails that cannot be read.
///
/// # Errors
/// `Io`, `Damaged`.
pub async fn finish(
    space: &Space,
    at: &BlockAt,
    reading: Reading,
    admission: Admission,
) -> Result<Rc<Block>, ReadError> {
    let came = match reading {
        Reading::Hit(block) => return Ok(block),
        Reading::Came(came) => came,
        Reading::Device(device) => device.await,
        Reading::Part(long, start) => match poll_fn(|context| long.poll_bytes(context)).await {
            Some(bytes) => {
                let end = start + at.blocks as usize * BLOCK_BYTES;
                return take(space, at, &bytes[start..end], admission);
            }
            None => start_device(space, at.place, at.blocks).await,
        },
    };
    let bytes = came.map_err(|source| io_error(space, at, source))?;
    take(space, at, &bytes, admission)
}

/// Verifies a block and offers it to the cache.
fn take(space: &Space, at: &BlockAt, bytes: &[u8], admission: Admission) -> Result<Rc<Block>, ReadError> {
    let damaged = |source| damaged(space, at.place, source);
    let shape = match at.identity.kind {
        BlockType::Keys => Shape::Keys(KeyPart::open(&at.identity, at.place, bytes).map_err(damaged)?),
        BlockType::Seqlog => {
            Shape::Seqlog(SeqlogBlock::open(&at.identity, at.place, bytes).map_err(damaged)?)
        }
        _ => {
            open_block(&at.identity, at.place, bytes).map_err(damaged)?;
            Shape::Metas
        }
    };
    let block = Block { object: at.identity.object, bytes: BlockBytes::copy_of(bytes), shape };
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
    let bytes = start_device(space, at.place, at.blocks).await;
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
