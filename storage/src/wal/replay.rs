//! Reading the log back after a start: the chain of batches from the tail on, and where it ends.
//!
//! The chain ends at the first batch that does not verify or does not follow. Whether that is a torn tail or damage is decided by
//! every valid header in the file: if one knew a later position durable, or stands where it does not belong, it is damage.
//!
//! Does not know: what is done with a record.

use std::rc::Rc;

use super::{BATCH_BYTES_MAX, WalError, WalShape};
use crate::format::FormatError;
use crate::format::batch::{BatchHeader, Log, NO_RECORD, peek_batch, verify_batch};
use crate::format::wal_record::{WalRecord, decode_wal_record, peek_wal_record_len};
use crate::io::{BLOCK_BYTES, Device, DmaBuffer};
use crate::mutant::{Mutant, is_on};

/// Bytes read at once.
const WINDOW_BYTES: usize = 2 << 20;

/// What to replay.
pub struct Replay<'a> {
    /// The log.
    pub device: &'a Rc<dyn Device>,
    /// Whose it must be.
    pub shard_uuid: u64,
    /// Its shape.
    pub shape: WalShape,
    /// Where to begin.
    pub tail: u64,
    /// The log was closed cleanly at the tail's end: the rest of the file need not be searched for durable claims.
    pub clean: bool,
}

/// What replay found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ReplayStats {
    /// The first position behind the chain.
    pub head: u64,
    /// Batches in the chain.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Highest generation in the chain.
    pub generation: u64,
    /// Highest generation of a durable manifest that any batch names.
    pub manifest_generation: u64,
    /// Whether something unreadable or unfinished stood behind the chain and is left out.
    pub torn: bool,
}

/// A window onto the log that follows the reader.
struct Window<'a> {
    replay: &'a Replay<'a>,
    start: u64,
    bytes: Option<DmaBuffer>,
}

impl Window<'_> {
    /// The bytes at `position`, at least `len` of them, all inside the position's segment.
    async fn at(&mut self, position: u64, len: usize) -> Result<&[u8], WalError> {
        let have = |window: &Self| {
            let bytes = window.bytes.as_ref()?;
            let skip = usize::try_from(position.checked_sub(window.start)?).ok()?.checked_mul(BLOCK_BYTES)?;
            (skip + len <= bytes.len()).then_some(skip)
        };
        if have(self).is_none() {
            let shape = &self.replay.shape;
            let most = shape.to_segment_end(position) as usize * BLOCK_BYTES;
            let offset = shape.offset(position);
            let read = self.replay.device.read(offset, most.min(WINDOW_BYTES)).await;
            self.bytes = Some(read.map_err(|source| WalError::Io {
                what: "read",
                device: self.replay.device.name().to_owned(),
                offset,
                source,
            })?);
            self.start = position;
        }
        let skip = have(self).expect("a batch is shorter than the window and ends in its segment");
        Ok(&self.bytes.as_ref().expect("read above")[skip..])
    }
}

/// Replays the records behind `tail`, in order, with the position of the batch in which each begins.
///
/// # Errors
/// `Io`; `Damaged`: durable bytes do not verify; `Record`, or what `visit` returns.
pub async fn replay(
    what: Replay<'_>,
    mut visit: impl FnMut(u64, WalRecord<'_>) -> Result<(), FormatError>,
) -> Result<ReplayStats, WalError> {
    let device = || what.device.name().to_owned();
    let mut stats = ReplayStats { head: what.tail, ..ReplayStats::default() };
    let mut window = Window { replay: &what, start: 0, bytes: None };
    // The beginning of a record whose end has not been read, and where it began.
    let mut carry: Vec<u8> = Vec::new();
    let mut carry_position = 0;
    let mut previous_crc = None;
    let end = loop {
        let position = stats.head;
        if position - what.tail >= what.shape.blocks {
            break None;
        }
        let len_max = (what.shape.to_segment_end(position) as usize * BLOCK_BYTES).min(BATCH_BYTES_MAX);
        let first = window.at(position, BLOCK_BYTES).await?;
        let header = match peek_batch(Log::Wal, what.shard_uuid, first, len_max) {
            Ok(Some(header)) => header,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        if let Err(error) = follows(&header, position, stats.generation, previous_crc) {
            break Some(error);
        }
        let batch = window.at(position, header.blocks() as usize * BLOCK_BYTES).await?;
        let (crc, payload) = match verify_batch(Log::Wal, &header, batch) {
            Ok(verified) => verified,
            Err(error) => break Some(error),
        };
        if header.generation != stats.generation {
            // The node was started anew here; what it had left unfinished was cut.
            carry.clear();
        }
        let record = |source| WalError::Record { device: device(), position, source };
        take_records(&header, payload, &mut carry, &mut carry_position, |at, bytes| {
            stats.records += 1;
            visit(at, decode_wal_record(bytes)?)
        })
        .map_err(record)?;
        stats.head += header.blocks();
        stats.batches += 1;
        stats.generation = header.generation;
        stats.manifest_generation = stats.manifest_generation.max(header.manifest_generation);
        previous_crc = Some(crc);
    };
    stats.torn = end.is_some() || !carry.is_empty();
    if !what.clean {
        let claim = highest_claim(&what, &mut window).await?;
        stats.manifest_generation = stats.manifest_generation.max(claim.manifest_generation);
        stats.generation = stats.generation.max(claim.generation);
        if claim.durable > stats.head && !is_on(Mutant::CutDamage) {
            let source = end.unwrap_or(FormatError::Invalid {
                what: "write-ahead log",
                field: "position",
                found: stats.head,
                rule: "a batch stands here",
            });
            return Err(WalError::Damaged {
                device: device(),
                offset: what.shape.offset(stats.head),
                position: stats.head,
                durable: claim.durable,
                source,
            });
        }
    }
    Ok(stats)
}

/// Whether a batch may stand at `position` behind one of this generation and checksum.
pub(crate) fn follows(
    header: &BatchHeader,
    position: u64,
    generation: u64,
    previous_crc: Option<u32>,
) -> Result<(), FormatError> {
    let mismatch = |field, expected, found| FormatError::Identity {
        what: "write-ahead log batch",
        field,
        expected,
        found,
    };
    if header.position != position {
        return Err(mismatch("position", position, header.position));
    }
    let Some(previous_crc) = previous_crc else { return Ok(()) };
    if header.generation < generation {
        return Err(mismatch("generation", generation, header.generation));
    }
    let expected = if header.generation == generation { previous_crc } else { 0 };
    if header.previous_crc != expected {
        return Err(mismatch("previous checksum", expected.into(), header.previous_crc.into()));
    }
    Ok(())
}

/// Hands the records that end in a batch to `visit`, with the position at which each begins; `carry` holds the beginning of one that
/// goes on in the next batch.
pub(crate) fn take_records(
    header: &BatchHeader,
    payload: &[u8],
    carry: &mut Vec<u8>,
    carry_position: &mut u64,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let first = if header.first_record == NO_RECORD { payload.len() } else { header.first_record as usize };
    let (continued, mut rest) = payload.split_at(first.min(payload.len()));
    if carry.is_empty() {
        // At the tail the first bytes may end a record that is not needed any more.
    } else {
        carry.extend_from_slice(continued);
        let len = peek_wal_record_len(carry)?.unwrap_or(usize::MAX);
        if carry.len() == len {
            visit(*carry_position, carry)?;
            carry.clear();
        } else if carry.len() > len || !rest.is_empty() {
            return Err(FormatError::Invalid {
                what: "write-ahead log batch",
                field: "first record",
                found: first as u64,
                rule: "right behind the record before it",
            });
        }
    }
    while !rest.is_empty() {
        match peek_wal_record_len(rest)? {
            Some(len) if len <= rest.len() => {
                visit(header.position, &rest[..len])?;
                rest = &rest[len..];
            }
            _ => {
                carry.extend_from_slice(rest);
                *carry_position = header.position;
                rest = &[];
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Claim {
    durable: u64,
    generation: u64,
    manifest_generation: u64,
}

/// The highest numbers that any valid batch in the file names, also one that stands where it does not belong.
async fn highest_claim(what: &Replay<'_>, window: &mut Window<'_>) -> Result<Claim, WalError> {
    let mut claim = Claim::default();
    let mut position = 0;
    while position < what.shape.blocks {
        let len_max = (what.shape.to_segment_end(position) as usize * BLOCK_BYTES).min(BATCH_BYTES_MAX);
        let first = window.at(position, BLOCK_BYTES).await?;
        let header = peek_batch(Log::Wal, what.shard_uuid, first, len_max).ok().flatten();
        let Some(header) = header else {
            position += 1;
            continue;
        };
        let batch = window.at(position, header.blocks() as usize * BLOCK_BYTES).await?;
        if verify_batch(Log::Wal, &header, batch).is_err() {
            position += 1;
            continue;
        }
        if header.position % what.shape.blocks != position {
            // No crash puts a batch where it does not belong: a write went astray, and what it should have written was acknowledged.
            claim.durable = claim.durable.max(header.position + header.blocks());
            position += 1;
            continue;
        }
        claim.durable = claim.durable.max(header.durable);
        claim.generation = claim.generation.max(header.generation);
        claim.manifest_generation = claim.manifest_generation.max(header.manifest_generation);
        position += header.blocks();
    }
    Ok(claim)
}
