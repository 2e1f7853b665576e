//! The write-ahead log of a shard: every mutation, in commit order, in a file of fixed size.
//!
//! The log is a byte stream of records, cut into batches; a record may continue in the next batch. A position counts
//! blocks since format; the file holds position `p` at block `p % blocks`, so segments are recycled in place. A batch never crosses
//! the end of a segment.
//!
//! Group commit: records gather in memory; one commit takes all of them, writes their batches and syncs once. Records that
//! arrive meanwhile wait for the next.
//!
//! Invariants
//! - Only one commit is under way. `tail <= durable <= head`; the file holds exactly `tail..head`, at most its size.
//! - Every batch says which position was durable when it was written; a block that holds synced bytes is not written again
//!   before the tail has passed it durably.
//! - After a failed write or sync nothing is acknowledged any more: the error is final.
//!
//! Does not know: documents, vbuckets' state.

mod replay;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

pub use replay::{Replay, ReplayStats, replay};
pub(crate) use replay::{follows, take_records};

use crate::format::FormatError;
use crate::format::batch::{BATCH_HEADER_BYTES, BatchHeader, Log, NO_RECORD, batch_blocks, seal_batch};
use crate::format::superblock::Geometry;
use crate::format::wal_record::encode_wal_record;
use crate::io::{BLOCK_BYTES, Device};
use crate::item::Item;
use crate::types::{BucketId, Former, VbId};

/// Longest batch in bytes, header included.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// Records gathered for the next commit may take this many bytes.
const PENDING_BYTES_MAX: usize = 64 << 20;

/// Why the log cannot be written or replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The device failed.
    #[error("cannot {what} {device} at offset {offset}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        device: String,
        /// Where, in bytes.
        offset: u64,
        /// What the device said.
        #[source]
        source: io::Error,
    },
    /// Bytes that were durable no longer verify.
    #[error(
        "{device} is damaged at offset {offset} (position {position}), where position {durable} is known durable"
    )]
    Damaged {
        /// Where.
        device: String,
        /// Where, in bytes.
        offset: u64,
        /// Where, in blocks since format.
        position: u64,
        /// The durable position that a later batch names.
        durable: u64,
        /// What is wrong with the bytes.
        #[source]
        source: FormatError,
    },
    /// A batch verifies but its records make no sense.
    #[error("{device} holds a record at position {position} that cannot be")]
    Record {
        /// Where.
        device: String,
        /// Where, in blocks since format.
        position: u64,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
}

/// The shape of the log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalShape {
    /// Blocks of the file.
    pub blocks: u64,
    /// Blocks of a segment.
    pub segment_blocks: u64,
}

impl WalShape {
    /// The shape that a geometry gives.
    #[must_use]
    pub fn of(geometry: &Geometry) -> WalShape {
        let segment_blocks = u64::from(geometry.wal_segment_bytes) / BLOCK_BYTES as u64;
        WalShape { blocks: segment_blocks * u64::from(geometry.wal_segments), segment_blocks }
    }

    /// Offset in the file of a position, in bytes.
    #[must_use]
    pub fn offset(&self, position: u64) -> u64 {
        position % self.blocks * BLOCK_BYTES as u64
    }

    /// Blocks from a position to the end of its segment, at least 1.
    #[must_use]
    pub fn to_segment_end(&self, position: u64) -> u64 {
        self.segment_blocks - position % self.segment_blocks
    }

    /// Blocks that `len` bytes of records take at most, however the segments fall.
    #[must_use]
    pub fn blocks_at_most(&self, len: usize) -> u64 {
        let payload = (BLOCK_BYTES - BATCH_HEADER_BYTES) as u64;
        let plain = (len as u64).div_ceil(payload);
        plain + 2 + plain / self.segment_blocks.min((BATCH_BYTES_MAX / BLOCK_BYTES) as u64)
    }

    /// Longest record in bytes that the log takes: a quarter of it.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        (self.blocks / 4) as usize * BLOCK_BYTES
    }
}

/// Where a log stands when it is opened for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalStart {
    /// Replay would begin here.
    pub tail: u64,
    /// The next batch goes here; all before is durable.
    pub head: u64,
    /// Generation of new batches, above every older one.
    pub generation: u64,
    /// Generation of the durable manifest.
    pub manifest_generation: u64,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Offsets at which records begin.
    starts: Vec<u32>,
}

/// The log, open for writing.
pub struct Wal {
    device: Rc<dyn Device>,
    shard_uuid: u64,
    shape: WalShape,
    generation: u64,
    manifest_generation: Cell<u64>,
    tail: Cell<u64>,
    durable: Cell<u64>,
    head: Cell<u64>,
    previous_crc: Cell<u32>,
    pending: RefCell<Pending>,
}

impl Wal {
    /// Opens the log for writing at `start`.
    #[must_use]
    pub fn open(device: Rc<dyn Device>, shard_uuid: u64, shape: WalShape, start: WalStart) -> Wal {
        Wal {
            device,
            shard_uuid,
            shape,
            generation: start.generation,
            manifest_generation: Cell::new(start.manifest_generation),
            tail: Cell::new(start.tail),
            durable: Cell::new(start.head),
            head: Cell::new(start.head),
            previous_crc: Cell::new(0),
            pending: RefCell::default(),
        }
    }

    /// Appends the record of `item`, which replaces `former`, to the next commit and returns a position at or below which it will begin.
    pub fn append(&self, bucket: BucketId, vb: VbId, item: &Item, former: Former) -> u64 {
        let pending = &mut *self.pending.borrow_mut();
        pending.starts.push(pending.bytes.len() as u32);
        encode_wal_record(&mut pending.bytes, bucket, vb, item, former);
        self.head.get()
    }

    /// Whether something waits for a commit.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.borrow().bytes.is_empty()
    }

    /// Bytes that wait for a commit.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending.borrow().bytes.len()
    }

    /// All before this position is durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable.get()
    }

    /// The position where the next batch begins.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.head.get()
    }

    /// The oldest position that replay needs.
    #[must_use]
    pub fn tail(&self) -> u64 {
        self.tail.get()
    }

    /// How full the log is with what waits for a commit, 0.0 to 1.0 and above.
    #[must_use]
    pub fn fullness(&self) -> f64 {
        let waiting = self.shape.blocks_at_most(self.pending_bytes());
        (self.head.get() - self.tail.get() + waiting) as f64 / self.shape.blocks as f64
    }

    /// Whether a record of `item` may be appended: the log stays below 90 % and what waits for a commit is bounded.
    #[must_use]
    pub fn has_room(&self, item_bytes: usize) -> bool {
        let waiting = self.pending_bytes() + item_bytes;
        let used = self.head.get() - self.tail.get() + self.shape.blocks_at_most(waiting);
        waiting <= PENDING_BYTES_MAX && used * 10 <= self.shape.blocks * 9
    }

    /// Longest record in bytes that this log takes.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        self.shape.record_bytes_max()
    }

    /// Nothing before `position` is needed any more, durably.
    pub fn set_tail(&self, position: u64) {
        assert!(
            position >= self.tail.get() && position <= self.head.get(),
            "log tail {position} outside {}..={}",
            self.tail.get(),
            self.head.get()
        );
        self.tail.set(position);
    }

    /// The manifest of this generation is durable.
    pub fn set_manifest_generation(&self, generation: u64) {
        self.manifest_generation.set(generation);
    }

    /// Writes and syncs all that was appended before the call. The caller makes sure that one commit runs at a time.
    ///
    /// # Errors
    /// `Io`: final; what was appended is not durable and must not be acknowledged.
    pub async fn commit(&self) -> Result<(), WalError> {
        let Pending { bytes, starts } = self.pending.take();
        if bytes.is_empty() {
            return Ok(());
        }
        let mut writes = self.cut(&bytes, &starts);
        drop(bytes);
        let head = self.head.get();
        let last = writes.pop();
        let mut under_way = Vec::new();
        for (offset, buffer) in writes {
            under_way.push((offset, self.device.write(offset, buffer)));
        }
        for (offset, write) in under_way {
            write.await.map_err(|source| self.io("write", offset, source))?;
        }
        if let Some((offset, buffer)) = last {
            let written = self.device.write_durable(offset, buffer).await;
            written.map_err(|source| self.io("write and sync", offset, source))?;
        }
        self.durable.set(head);
        Ok(())
    }

    /// Cuts records into sealed batches, moves the head behind them and returns what to write where.
    fn cut(&self, bytes: &[u8], starts: &[u32]) -> Vec<(u64, crate::io::DmaBuffer)> {
        let mut writes = Vec::new();
        let mut at = 0;
        let mut starts = starts.iter().map(|&start| start as usize).peekable();
        while at < bytes.len() {
            let position = self.head.get();
            let room = (self.shape.to_segment_end(position) as usize * BLOCK_BYTES).min(BATCH_BYTES_MAX);
            let payload = (bytes.len() - at).min(room - BATCH_HEADER_BYTES);
            while starts.peek().is_some_and(|&start| start < at) {
                starts.next();
            }
            let first_record = match starts.peek() {
                Some(&start) if start < at + payload => (start - at) as u32,
                _ => NO_RECORD,
            };
            let header = BatchHeader {
                payload_len: payload as u32,
                first_record,
                shard_uuid: self.shard_uuid,
                generation: self.generation,
                position,
                durable: self.durable.get(),
                previous_crc: self.previous_crc.get(),
                manifest_generation: self.manifest_generation.get(),
            };
            let blocks = batch_blocks(payload);
            let mut buffer = self.device.buffer(blocks as usize * BLOCK_BYTES);
            buffer[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + payload]
                .copy_from_slice(&bytes[at..at + payload]);
            self.previous_crc.set(seal_batch(Log::Wal, &header, &mut buffer));
            writes.push((self.shape.offset(position), buffer));
            self.head.set(position + blocks);
            at += payload;
        }
        let used = self.head.get() - self.tail.get();
        assert!(used <= self.shape.blocks, "log of {} blocks holds {used}", self.shape.blocks);
        writes
    }

    fn io(&self, what: &'static str, offset: u64, source: io::Error) -> WalError {
        WalError::Io { what, device: self.device.name().to_owned(), offset, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::sim::SimExecutor;
    use crate::format::wal_record::wal_record_len;
    use crate::io::sim::SimDisk;
    use crate::item::test_item;
    use crate::types::Kind;

    const SHAPE: WalShape = WalShape { blocks: 64, segment_blocks: 16 };

    fn item(seqno: u64, len: usize) -> Item {
        test_item(format!("\0key{seqno}").as_bytes(), seqno, Kind::Mutation, &vec![seqno as u8; len])
    }

    fn start(at: u64) -> WalStart {
        WalStart { tail: at, head: at, generation: 1, manifest_generation: 1 }
    }

    async fn replayed(device: &Rc<dyn Device>, tail: u64) -> Result<(Vec<u64>, ReplayStats), WalError> {
        let mut seqnos = Vec::new();
        let stats =
            replay(Replay { device, shard_uuid: 5, shape: SHAPE, tail, clean: false }, |_, record| {
                assert!(record.value.iter().all(|&byte| byte == record.meta.seqno.0 as u8));
                seqnos.push(record.meta.seqno.0);
                Ok(())
            })
            .await?;
        Ok((seqnos, stats))
    }

    fn device(sim: &SimExecutor, disk: &SimDisk) -> Rc<dyn Device> {
        let device = disk.open("wal");
        sim.block_on(device.grow(SHAPE.blocks * BLOCK_BYTES as u64)).unwrap();
        device
    }

    /// The log wraps, records cross batches and segments, and replay gives back exactly what follows the tail.
    #[test]
    fn what_was_committed_is_replayed_across_laps_and_segments() {
        let (sim, disk) = (SimExecutor::new(3), SimDisk::new(3));
        disk.attach(&sim);
        let device = device(&sim, &disk);
        sim.block_on(async {
            let wal = Wal::open(device.clone(), 5, SHAPE, start(0));
            let mut seqno = 0;
            for round in 0..40u64 {
                let before = wal.head();
                let first = seqno + 1;
                for n in 0..4 {
                    seqno += 1;
                    wal.append(
                        BucketId(1),
                        VbId(0),
                        &item(seqno, (seqno as usize * 977 + n * 4000) % 16_000),
                        Former::default(),
                    );
                }
                wal.commit().await.unwrap();
                let (seqnos, stats) = replayed(&device, before).await.unwrap();
                assert_eq!(seqnos, (first..=seqno).collect::<Vec<_>>(), "round {round}");
                assert_eq!(stats.head, wal.head());
                wal.set_tail(wal.head());
            }
            assert!(wal.head() > 3 * SHAPE.blocks);
        });
    }

    /// A power cut can leave the last batch half written. Replay keeps every whole record before it and drops the
    /// torn one; it never invents a record.
    #[test]
    fn torn_last_record_is_dropped_and_earlier_records_survive() {
        for cut in [0usize, 1, 63, 64, 511, 4095, 4096, 8191] {
            let (sim, disk) = (SimExecutor::new(9), SimDisk::new(9));
            disk.attach(&sim);
            let device = device(&sim, &disk);
            sim.block_on(async {
                let wal = Wal::open(device.clone(), 5, SHAPE, start(0));
                wal.append(BucketId(1), VbId(0), &item(1, 10), Former::default());
                wal.commit().await.unwrap();
                wal.append(BucketId(1), VbId(0), &item(2, 9000), Former::default());
                wal.commit().await.unwrap();
            });
            let mut image = disk.image("wal");
            image[BLOCK_BYTES + cut..4 * BLOCK_BYTES].fill(0);
            disk.set_image("wal", image);
            let (seqnos, stats) = sim.block_on(replayed(&device, 0)).unwrap();
            assert_eq!((seqnos, stats.head), (vec![1], 1), "cut {cut}");
        }
    }

    /// G1, G4: damage below a position that a later batch knew durable is corruption, not a torn tail.
    #[test]
    fn damage_before_the_durable_position_is_reported_and_never_cut() {
        let (sim, disk) = (SimExecutor::new(1), SimDisk::new(1));
        disk.attach(&sim);
        let device = device(&sim, &disk);
        sim.block_on(async {
            let wal = Wal::open(device.clone(), 5, SHAPE, start(0));
            for seqno in 1..=3 {
                wal.append(BucketId(1), VbId(0), &item(seqno, 10), Former::default());
                wal.commit().await.unwrap();
            }
        });
        let mut image = disk.image("wal");
        image[100] ^= 1;
        disk.set_image("wal", image);
        let error = sim.block_on(replayed(&device, 0)).unwrap_err();
        assert!(matches!(error, WalError::Damaged { position: 0, durable: 2, .. }), "{error}");
    }

    #[test]
    fn a_log_that_is_nearly_full_has_no_room_and_refuses_no_commit() {
        let (sim, disk) = (SimExecutor::new(1), SimDisk::new(1));
        disk.attach(&sim);
        let device = device(&sim, &disk);
        sim.block_on(async {
            let wal = Wal::open(device, 5, SHAPE, start(7));
            let mut seqno = 0;
            loop {
                let item = item(seqno + 1, 5000);
                if !wal.has_room(wal_record_len(&item)) {
                    break;
                }
                seqno += 1;
                wal.append(BucketId(1), VbId(0), &item, Former::default());
                wal.commit().await.unwrap();
            }
            assert!(wal.fullness() > 0.8 && wal.fullness() <= 0.95, "{}", wal.fullness());
            wal.set_tail(wal.head());
            assert!(wal.has_room(5000));
        });
    }
}
