//! The manifest of a shard: which blocks make which vbucket, changed atomically.
//!
//! A manifest area is a contiguous range of the data file. It begins with a checkpoint, the whole state, and grows by batches, each one
//! atomic change. When it is full, a checkpoint goes to a fresh area, and both superblock slots are turned to it, one after the other.
//!
//! Invariants
//! - A change is applied to the state in memory only when it is durable.
//! - One change at a time. After a failed write the shard has failed, and no change is made any more: the manifest on disk may be either.
//! - The old area is given back only when both superblock slots name the new one.
//! - Room for the next area is kept while there is any, so that a full disk does not fail the shard.
//!
//! Does not know: what runs and segments contain.

mod state;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

pub use self::state::ManifestState;
use self::state::invalid;
use crate::extent::{Extents, Purpose, Space};
use crate::format::FormatError;
use crate::format::batch::{
    BATCH_HEADER_BYTES, BatchHeader, Log, batch_blocks, peek_batch, seal_batch, verify_batch,
};
use crate::format::manifest_record::{Extent, Record};
use crate::format::superblock::{FIRST_DATA_BLOCK, Geometry, SUPERBLOCK_SLOTS, Superblock};
use crate::io::{BLOCK_BYTES, Device};
use crate::sync::Lock;

/// Smallest manifest area, in blocks.
const AREA_BLOCKS_MIN: u64 = 16;

/// Why the manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
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
    /// Neither superblock slot can be taken.
    #[error("{device} has no readable superblock: slot 0: {first}; slot 1: {second}")]
    Superblock {
        /// Where.
        device: String,
        /// What is wrong with slot 0.
        first: Box<FormatError>,
        /// What is wrong with slot 1.
        second: Box<FormatError>,
    },
    /// A durable part of the manifest does not verify, or makes no sense.
    #[error("the manifest of {device} is damaged at offset {offset}")]
    Damaged {
        /// Where.
        device: String,
        /// Where, in bytes.
        offset: u64,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
}

impl ManifestError {
    /// The version of the format if that is the reason.
    #[must_use]
    pub fn version(&self) -> Option<u32> {
        let ManifestError::Superblock { first, second, .. } = self else { return None };
        [first, second].into_iter().find_map(|error| match **error {
            FormatError::Version { found, .. } => Some(found),
            _ => None,
        })
    }
}

/// Blocks of the area that a checkpoint of so many blocks begins.
pub(crate) fn area_blocks(checkpoint_blocks: u64) -> u64 {
    checkpoint_blocks.saturating_mul(2).max(AREA_BLOCKS_MIN)
}

fn encode(records: &[Record]) -> Vec<u8> {
    let mut payload = Vec::new();
    for record in records {
        record.encode(&mut payload);
    }
    payload
}

/// What reading the root found.
#[derive(Debug)]
pub struct Root {
    /// The newest valid superblock.
    pub superblock: Superblock,
    /// What is wrong with the other slot, if something is.
    pub damaged_slot: Option<(u64, FormatError)>,
    /// Whether the slots differ: the last change of the root was not finished.
    pub slots_differ: bool,
}

/// Reads both superblock slots and takes the newest valid one.
///
/// # Errors
/// `Io`; `Superblock` if neither can be taken.
pub async fn read_root(device: &Rc<dyn Device>) -> Result<Root, ManifestError> {
    let mut slots = Vec::new();
    for slot in SUPERBLOCK_SLOTS {
        let offset = slot * BLOCK_BYTES as u64;
        let block = match device.read(offset, BLOCK_BYTES).await {
            Ok(block) => block,
            Err(source) => return Err(io_error(device, "read", offset, source)),
        };
        slots.push(Superblock::decode(&block, slot));
    }
    let second = slots.pop().expect("two slots");
    let first = slots.pop().expect("two slots");
    Ok(match (first, second) {
        (Ok(first), Ok(second)) => {
            let superblock = if first.sequence >= second.sequence { first } else { second };
            Root { superblock, damaged_slot: None, slots_differ: first != second }
        }
        (Ok(superblock), Err(error)) => {
            Root { superblock, damaged_slot: Some((SUPERBLOCK_SLOTS[1], error)), slots_differ: true }
        }
        (Err(error), Ok(superblock)) => {
            Root { superblock, damaged_slot: Some((SUPERBLOCK_SLOTS[0], error)), slots_differ: true }
        }
        (Err(first), Err(second)) => {
            return Err(ManifestError::Superblock {
                device: device.name().to_owned(),
                first: Box::new(first),
                second: Box::new(second),
            });
        }
    })
}

fn io_error(device: &Rc<dyn Device>, what: &'static str, offset: u64, source: io::Error) -> ManifestError {
    ManifestError::Io { what, device: device.name().to_owned(), offset, source }
}

/// What reading the manifest found.
#[derive(Debug)]
pub struct Loaded {
    /// The state.
    pub state: ManifestState,
    /// First block of the area behind the last batch.
    head: u64,
    previous_crc: u32,
    /// Batches read.
    pub batches: u64,
    /// Whether an unfinished change stood at the end and is left out.
    pub torn: bool,
}

/// A verified batch: header, checksum, payload.
type Checked<'a> = (BatchHeader, u32, &'a [u8]);

/// Reads the manifest that `superblock` names.
///
/// # Errors
/// `Io`, `Damaged`.
pub async fn load(device: &Rc<dyn Device>, superblock: &Superblock) -> Result<Loaded, ManifestError> {
    let blocks = u64::from(superblock.manifest_blocks);
    let base = superblock.manifest_start * BLOCK_BYTES as u64;
    let damaged = |head: u64, source| ManifestError::Damaged {
        device: device.name().to_owned(),
        offset: base + head * BLOCK_BYTES as u64,
        source,
    };
    let area = device.read(base, blocks as usize * BLOCK_BYTES).await;
    let area = area.map_err(|source| io_error(device, "read", base, source))?;
    let mut loaded =
        Loaded { state: ManifestState::default(), head: 0, previous_crc: 0, batches: 0, torn: false };
    let check = |head: u64, previous_crc: u32| -> Result<Option<Checked<'_>>, FormatError> {
        let rest = &area[head as usize * BLOCK_BYTES..];
        if rest.is_empty() {
            return Ok(None);
        }
        let Some(header) = peek_batch(Log::Manifest, superblock.shard_uuid, rest, rest.len())? else {
            return Ok(None);
        };
        let fields = [
            ("generation", superblock.manifest_generation, header.generation),
            ("position", head, header.position),
            ("previous checksum", previous_crc.into(), header.previous_crc.into()),
        ];
        for (field, expected, found) in fields {
            if expected != found {
                return Err(FormatError::Identity { what: "manifest batch", field, expected, found });
            }
        }
        let (crc, payload) = verify_batch(Log::Manifest, &header, rest)?;
        Ok(Some((header, crc, payload)))
    };
    let end = loop {
        match check(loaded.head, loaded.previous_crc) {
            Ok(Some((header, crc, payload))) => {
                let records = Record::decode_all(payload).map_err(|source| damaged(loaded.head, source))?;
                for record in records {
                    loaded.state.apply(record).map_err(|source| damaged(loaded.head, source))?;
                }
                loaded.head += header.blocks();
                loaded.previous_crc = crc;
                loaded.batches += 1;
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    loaded.torn = end.is_some();
    // The checkpoint was durable before any superblock named it; later batches say what was durable before them.
    let claim = (loaded.head..blocks)
        .filter_map(|head| {
            let rest = &area[head as usize * BLOCK_BYTES..];
            let header = peek_batch(Log::Manifest, superblock.shard_uuid, rest, rest.len()).ok()??;
            let ours = header.generation == superblock.manifest_generation && header.position == head;
            (ours && verify_batch(Log::Manifest, &header, rest).is_ok()).then_some(header.durable)
        })
        .max()
        .unwrap_or(0)
        .max(1);
    if claim > loaded.head {
        let source = end.unwrap_or_else(|| invalid("position", loaded.head, "a batch stands here"));
        return Err(damaged(loaded.head, source));
    }
    Ok(loaded)
}

/// The manifest, open for changes.
#[derive(Debug)]
pub struct Manifest {
    space: Rc<Space>,
    state: RefCell<ManifestState>,
    superblock: Cell<Superblock>,
    area: RefCell<Option<Extents>>,
    /// Where the next checkpoint goes, if it fits there.
    spare: RefCell<Option<Extents>>,
    head: Cell<u64>,
    previous_crc: Cell<u32>,
    changing: Lock,
    /// A change has failed: nobody knows where the next one would have to go.
    has_failed: Cell<bool>,
    commits: Cell<u64>,
    checkpoints: Cell<u64>,
}

impl Manifest {
    /// Makes the first manifest of a shard: an empty state, and both superblock slots.
    ///
    /// # Errors
    /// `Io`.
    pub async fn format(
        space: Rc<Space>,
        shard_uuid: u64,
        geometry: Geometry,
        formatted_at: u64,
        state: ManifestState,
    ) -> Result<Manifest, ManifestError> {
        let superblock = Superblock {
            sequence: 0,
            shard_uuid,
            geometry,
            formatted_at,
            manifest_start: 0,
            manifest_blocks: 0,
            manifest_generation: 0,
        };
        let manifest = Manifest {
            space,
            state: RefCell::new(state),
            superblock: Cell::new(superblock),
            area: RefCell::default(),
            spare: RefCell::default(),
            head: Cell::new(0),
            previous_crc: Cell::new(0),
            changing: Lock::default(),
            has_failed: Cell::new(false),
            commits: Cell::new(0),
            checkpoints: Cell::new(0),
        };
        manifest.write_checkpoint().await?;
        Ok(manifest)
    }

    /// Opens a loaded manifest for changes: finishes an unfinished change of the root and cuts a torn tail. The space's
    /// claims for the area are made here.
    ///
    /// # Errors
    /// `Io`; `Damaged` if the area is not where free space may be.
    pub async fn open(space: Rc<Space>, root: &Root, loaded: Loaded) -> Result<Manifest, ManifestError> {
        let superblock = root.superblock;
        let area = Extent { start: superblock.manifest_start, blocks: superblock.manifest_blocks };
        if !space.claim(area) {
            return Err(ManifestError::Damaged {
                device: space.device().name().to_owned(),
                offset: area.start * BLOCK_BYTES as u64,
                source: invalid("area", area.start, "free space of the data file"),
            });
        }
        let manifest = Manifest {
            area: RefCell::new(Some(Extents::named(space.clone(), vec![area]))),
            spare: RefCell::default(),
            space,
            state: RefCell::new(loaded.state),
            superblock: Cell::new(superblock),
            head: Cell::new(loaded.head),
            previous_crc: Cell::new(loaded.previous_crc),
            changing: Lock::default(),
            has_failed: Cell::new(false),
            commits: Cell::new(0),
            checkpoints: Cell::new(0),
        };
        if loaded.torn && loaded.head < u64::from(area.blocks) {
            let device = manifest.space.device();
            let offset = (area.start + loaded.head) * BLOCK_BYTES as u64;
            let cut = device.write_durable(offset, device.buffer(BLOCK_BYTES)).await;
            cut.map_err(|source| io_error(device, "cut", offset, source))?;
        }
        if root.slots_differ {
            manifest.write_superblocks().await?;
        }
        Ok(manifest)
    }

    /// The state as of the last durable change.
    pub fn state(&self) -> std::cell::Ref<'_, ManifestState> {
        self.state.borrow()
    }

    /// The root.
    #[must_use]
    pub fn superblock(&self) -> Superblock {
        self.superblock.get()
    }

    /// Blocks of the data file that it names, its own area, the next one and those kept for superblocks included.
    #[must_use]
    pub fn named_blocks(&self) -> u64 {
        let named: u64 = self.state.borrow().extents().map(|extent| u64::from(extent.blocks)).sum();
        let spare = self.spare.borrow().as_ref().map_or(0, |spare| u64::from(spare.list()[0].blocks));
        named + u64::from(self.superblock.get().manifest_blocks) + spare + FIRST_DATA_BLOCK
    }

    /// Changes and checkpoints written since it was opened.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        (self.commits.get(), self.checkpoints.get())
    }

    /// A fresh object id.
    pub fn next_object(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.next_object += 1;
        state.next_object
    }

    /// Object ids are at or above `first` from now on: no id of an aborted flush of an earlier run comes again.
    pub fn start_objects_at(&self, first: u64) {
        let mut state = self.state.borrow_mut();
        state.next_object = state.next_object.max(first);
    }

    /// Makes one atomic change durable, then applies it.
    ///
    /// # Errors
    /// `Io`: the shard has failed, the manifest on disk may be either. Every later change fails, too: it would be written over what is durable.
    pub async fn commit(&self, records: Vec<Record>) -> Result<(), ManifestError> {
        let _changing = self.changing.lock().await;
        if self.has_failed.get() {
            let offset = self.superblock.get().manifest_start * BLOCK_BYTES as u64;
            let source = io::Error::other("an earlier change has failed");
            return Err(io_error(self.space.device(), "change the manifest of", offset, source));
        }
        let changed = self.change(records).await;
        self.has_failed.set(changed.is_err());
        changed
    }

    async fn change(&self, records: Vec<Record>) -> Result<(), ManifestError> {
        self.keep_spare().await;
        let payload = encode(&records);
        let blocks = batch_blocks(payload.len());
        if self.head.get() + blocks > u64::from(self.superblock.get().manifest_blocks) {
            self.apply(records)?;
            self.commits.set(self.commits.get() + 1);
            return self.write_checkpoint().await;
        }
        let superblock = self.superblock.get();
        self.write_batch(superblock.manifest_start, superblock.manifest_generation, &payload).await?;
        self.commits.set(self.commits.get() + 1);
        self.apply(records)
    }

    /// Keeps room for the next area, twice as long as this one or, where there is not so much, as long.
    async fn keep_spare(&self) {
        let area = self.superblock.get().manifest_blocks;
        for blocks in [area.saturating_mul(2), area] {
            if self.spare.borrow().is_none()
                && let Ok(spare) = self.space.allocate(blocks, Purpose::Manifest).await
            {
                self.spare.replace(Some(Extents::fresh(self.space.clone(), vec![spare])));
            }
        }
    }

    fn apply(&self, records: Vec<Record>) -> Result<(), ManifestError> {
        for record in records {
            self.state.borrow_mut().apply(record).map_err(|source| ManifestError::Damaged {
                device: self.space.device().name().to_owned(),
                offset: self.superblock.get().manifest_start * BLOCK_BYTES as u64,
                source,
            })?;
        }
        Ok(())
    }

    async fn write_batch(&self, start: u64, generation: u64, payload: &[u8]) -> Result<(), ManifestError> {
        let device = self.space.device();
        let head = self.head.get();
        let header = BatchHeader {
            payload_len: payload.len() as u32,
            first_record: 0,
            shard_uuid: self.superblock.get().shard_uuid,
            generation,
            position: head,
            durable: head,
            previous_crc: self.previous_crc.get(),
            manifest_generation: 0,
        };
        let mut buffer = device.buffer(header.blocks() as usize * BLOCK_BYTES);
        buffer[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + payload.len()].copy_from_slice(payload);
        let crc = seal_batch(Log::Manifest, &header, &mut buffer);
        let offset = (start + head) * BLOCK_BYTES as u64;
        let written = device.write_durable(offset, buffer).await;
        written.map_err(|source| io_error(device, "write", offset, source))?;
        self.previous_crc.set(crc);
        self.head.set(head + header.blocks());
        Ok(())
    }

    /// Writes the whole state to a fresh area and turns the root to it.
    async fn write_checkpoint(&self) -> Result<(), ManifestError> {
        let payload = encode(&self.state.borrow().checkpoint());
        let device = self.space.device();
        let blocks = area_blocks(batch_blocks(payload.len())) as u32;
        let spare = self.spare.take().filter(|spare| spare.list()[0].blocks >= blocks);
        let extents = match spare {
            Some(spare) => spare,
            None => {
                let area = self.space.allocate(blocks, Purpose::Manifest).await;
                let area =
                    area.map_err(|source| io_error(device, "allocate in", device.len_bytes(), source))?;
                Extents::fresh(self.space.clone(), vec![area])
            }
        };
        let extents = extents.shortened(blocks);
        let area = extents.list()[0];
        // The area may hold an older manifest's batches. Their generations differ, but zeroes leave no doubt.
        let base = area.start * BLOCK_BYTES as u64;
        let zeroes = device.write(base, device.buffer(area.blocks as usize * BLOCK_BYTES)).await;
        zeroes.map_err(|source| io_error(device, "clear", base, source))?;
        self.head.set(0);
        self.previous_crc.set(0);
        let generation = self.superblock.get().manifest_generation + 1;
        self.write_batch(area.start, generation, &payload).await?;
        let superblock = Superblock {
            manifest_start: area.start,
            manifest_blocks: area.blocks,
            manifest_generation: generation,
            ..self.superblock.get()
        };
        self.superblock.set(superblock);
        self.write_superblocks().await?;
        extents.set_named(true);
        let old = self.area.borrow_mut().replace(extents);
        if let Some(old) = old {
            old.set_named(false);
        }
        // Before anything else takes what has just become free.
        self.keep_spare().await;
        self.checkpoints.set(self.checkpoints.get() + 1);
        Ok(())
    }

    async fn write_superblocks(&self) -> Result<(), ManifestError> {
        let device = self.space.device();
        let superblock = Superblock { sequence: self.superblock.get().sequence + 1, ..self.superblock.get() };
        // Everything the new root reaches is durable before a slot names it.
        device.sync().await.map_err(|source| io_error(device, "sync", 0, source))?;
        for slot in SUPERBLOCK_SLOTS {
            let offset = slot * BLOCK_BYTES as u64;
            let mut buffer = device.buffer(BLOCK_BYTES);
            buffer.copy_from_slice(&superblock.encode(slot));
            let written = device.write_durable(offset, buffer).await;
            written.map_err(|source| io_error(device, "write superblock of", offset, source))?;
        }
        self.superblock.set(superblock);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::BlockCache;
    use crate::env::sim::SimExecutor;
    use crate::format::manifest_record::{BucketDesc, VbState};
    use crate::io::sim::{Crash, Fault, Injection, SimDisk};
    use crate::types::{BucketId, FailoverEntry, Seqno, ShardId, VbId, VbUuid};

    const GEOMETRY: Geometry = Geometry {
        shard: ShardId(0),
        shard_count: 1,
        vbucket_count: 16,
        wal_segments: 4,
        wal_segment_bytes: 65536,
    };

    fn vbucket(vb: u16) -> Record {
        Record::Vbucket(Box::new(VbState {
            bucket: BucketId(1),
            vb: VbId(vb),
            state: 1,
            topology: String::new(),
            failover_log: vec![FailoverEntry { uuid: VbUuid(u64::from(vb)), seqno: Seqno(0) }],
            counts: Default::default(),
            runs: vec![],
            segments: vec![],
            marks: vec![],
            collections: Default::default(),
            purged: Default::default(),
        }))
    }

    fn set_up(seed: u64) -> (SimExecutor, SimDisk, Rc<Space>) {
        let (sim, disk) = (SimExecutor::new(seed), SimDisk::new(seed));
        disk.attach(&sim);
        let device = disk.open("data");
        sim.block_on(device.grow(1 << 20)).unwrap();
        let space = Space::new(device, BlockCache::new(0), 1 << 20);
        (sim, disk, space)
    }

    async fn reopen(device: Rc<dyn Device>) -> Result<Manifest, ManifestError> {
        let root = read_root(&device).await?;
        let loaded = load(&device, &root.superblock).await?;
        let space = Space::new(device, BlockCache::new(0), 1 << 20);
        Manifest::open(space, &root, loaded).await
    }

    #[test]
    fn changes_survive_reopening_and_checkpoints_move_the_area() {
        let (sim, disk, space) = set_up(5);
        sim.block_on(async {
            let manifest = Manifest::format(space, 7, GEOMETRY, 0, ManifestState::default()).await.unwrap();
            for round in 0..100 {
                let vb = (round % 16) as u16;
                manifest.commit(vec![vbucket(vb), Record::WalTail { position: round }]).await.unwrap();
            }
            assert!(manifest.written().1 > 1, "the area was left at least once");
            let state = manifest.state().clone();
            drop(manifest);
            assert_eq!(*reopen(disk.open("data")).await.unwrap().state(), state);
        });
    }

    #[test]
    fn one_damaged_superblock_slot_loses_nothing_and_two_are_refused_by_name() {
        let (sim, disk, space) = set_up(6);
        sim.block_on(async {
            let manifest = Manifest::format(space, 7, GEOMETRY, 0, ManifestState::default()).await.unwrap();
            manifest.commit(vec![vbucket(3)]).await.unwrap();
            let state = manifest.state().clone();
            drop(manifest);
            for slot in SUPERBLOCK_SLOTS {
                let image = disk.image("data");
                let mut bad = image.clone();
                bad[slot as usize * BLOCK_BYTES + 200] ^= 1;
                disk.set_image("data", bad.clone());
                assert_eq!(*reopen(disk.open("data")).await.unwrap().state(), state);
                disk.set_image("data", image);
            }
            let mut bad = disk.image("data");
            bad[..BLOCK_BYTES].fill(0);
            bad[16 * BLOCK_BYTES + 20] ^= 4;
            disk.set_image("data", bad);
            let error = reopen(disk.open("data")).await.unwrap_err();
            assert!(matches!(error, ManifestError::Superblock { .. }), "{error}");
        });
    }

    /// G4: a torn last change is cut; damage before a later change is reported.
    #[test]
    fn a_torn_last_change_is_cut_and_damage_before_it_is_reported() {
        let (sim, disk, space) = set_up(8);
        sim.block_on(async {
            let manifest = Manifest::format(space, 7, GEOMETRY, 0, ManifestState::default()).await.unwrap();
            manifest.commit(vec![vbucket(1)]).await.unwrap();
            manifest.commit(vec![vbucket(2)]).await.unwrap();
            let start = manifest.superblock().manifest_start as usize * BLOCK_BYTES;
            drop(manifest);
            let image = disk.image("data");
            let mut torn = image.clone();
            torn[start + 2 * BLOCK_BYTES + 512..start + 3 * BLOCK_BYTES].fill(0);
            torn[start + 2 * BLOCK_BYTES + 30] ^= 1;
            disk.set_image("data", torn);
            let manifest = reopen(disk.open("data")).await.unwrap();
            assert_eq!(manifest.state().vbuckets.len(), 1);
            drop(manifest);
            for block in 0..2 {
                let mut bad = image.clone();
                bad[start + block * BLOCK_BYTES + 70] ^= 1;
                disk.set_image("data", bad);
                let error = reopen(disk.open("data")).await.unwrap_err();
                assert!(matches!(error, ManifestError::Damaged { .. }), "block {block}: {error}");
            }
        });
    }

    /// G7: a checkpoint that fails has begun a new area, and a change after it would be written over the beginning of the old one, which is still the
    /// one that counts.
    #[test]
    fn no_change_follows_one_that_failed() {
        for nth in 1..60 {
            let (sim, disk, space) = set_up(11);
            let (known, perhaps) = sim.block_on(async {
                let manifest =
                    Manifest::format(space, 7, GEOMETRY, 0, ManifestState::default()).await.unwrap();
                disk.inject(Injection::nth(Fault::WriteError, nth));
                let mut position = 0;
                while manifest.commit(vec![vbucket(1), Record::WalTail { position }]).await.is_ok() {
                    position += 1;
                }
                let error = manifest.commit(vec![vbucket(2)]).await.unwrap_err();
                assert!(error.to_string().contains("change the manifest of data"), "{error}");
                (position.saturating_sub(1), position)
            });
            drop(sim);
            disk.crash_with(Crash::KeepAll, nth);
            let sim = SimExecutor::new(nth);
            disk.attach(&sim);
            let manifest = sim.block_on(reopen(disk.open("data"))).unwrap();
            let tail = manifest.state().wal_tail;
            assert!((known..=perhaps).contains(&tail), "{tail} after write {nth} failed at {perhaps}");
            assert!(!manifest.state().vbuckets.contains_key(&(BucketId(1), VbId(2))));
        }
    }

    /// The number of a bucket that is gone survives a checkpoint: records of it in the log can never be taken for another one's.
    #[test]
    fn the_number_of_a_bucket_that_is_gone_is_never_free_again() {
        let bucket = |id| BucketDesc { id: BucketId(id), uuid: 1, name: "b".into(), config: String::new() };
        let mut state = ManifestState::default();
        for id in [1, 4] {
            state.apply(Record::Bucket(bucket(id))).unwrap();
        }
        state.apply(vbucket(3)).unwrap();
        state.apply(Record::BucketGone { bucket: BucketId(4) }).unwrap();
        state.apply(Record::BucketGone { bucket: BucketId(1) }).unwrap();
        assert_eq!((state.bucket_max, state.buckets.len(), state.vbuckets.len()), (BucketId(4), 0, 0));
        let mut copy = ManifestState::default();
        for record in state.checkpoint() {
            copy.apply(record).unwrap();
        }
        assert_eq!(copy, state);
    }

    /// The role of a vbucket is one change with the branches that come of it; a vbucket that is gone leaves where its records end, until the log's tail
    /// has passed them.
    #[test]
    fn roles_and_gone_vbuckets_survive_a_checkpoint() {
        let mut state = ManifestState::default();
        let log = vec![FailoverEntry { uuid: VbUuid(9), seqno: Seqno(5) }];
        let (bucket, topology) = (BucketId(1), "[[\"a\",\"b\"]]".to_owned());
        let role = Record::Role { bucket, vb: VbId(2), state: 1, topology, log: log.clone() };
        assert!(state.apply(role.clone()).is_err(), "of a vbucket that is not there");
        for vb in [1, 2, 3] {
            state.apply(vbucket(vb)).unwrap();
        }
        state.apply(role).unwrap();
        for vb in [1, 3] {
            state.apply(Record::VbucketGone { bucket, vb: VbId(vb), log_from: 70 }).unwrap();
        }
        state.apply(vbucket(3)).unwrap();
        assert_eq!(state.vbuckets.keys().map(|(_, vb)| vb.0).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(state.vbuckets[&(bucket, VbId(2))].failover_log, log);
        let mut copy = ManifestState::default();
        for record in state.checkpoint() {
            copy.apply(record).unwrap();
        }
        assert_eq!((&copy, copy.log_from.len()), (&state, 2));
        for (position, left) in [(69, 2), (70, 0)] {
            state.apply(Record::WalTail { position }).unwrap();
            assert_eq!(state.log_from.len(), left);
        }
        state.apply(Record::VbucketGone { bucket, vb: VbId(2), log_from: 80 }).unwrap();
        state.apply(Record::BucketGone { bucket }).unwrap();
        assert!(state.log_from.is_empty(), "its number never comes again");
    }

    /// A change that a power cut interrupts is there whole or not at all, whatever sectors of it reached the medium.
    #[test]
    fn a_change_cut_by_a_crash_is_whole_or_absent() {
        let (mut torn, mut absent, mut whole) = (0, 0, 0);
        for seed in 0..200 {
            let (sim, disk, space) = set_up(seed);
            let state = ManifestState::default();
            let manifest = sim.block_on(Manifest::format(space, 7, GEOMETRY, 0, state)).unwrap();
            let name = "x".repeat(3000);
            let bucket = BucketDesc { id: BucketId(3), uuid: 1, name: name.clone(), config: String::new() };
            sim.spawn(async move { manifest.commit(vec![Record::Bucket(bucket)]).await.unwrap() });
            sim.run_steps(seed % 7);
            drop(sim);
            disk.crash(seed);
            let sim = SimExecutor::new(seed);
            disk.attach(&sim);
            let device = disk.open("data");
            let root = sim.block_on(read_root(&device)).unwrap();
            let loaded = sim.block_on(load(&device, &root.superblock)).unwrap();
            match loaded.state.buckets.get(&BucketId(3)) {
                Some(bucket) => whole += i32::from(bucket.name == name),
                None if loaded.torn => torn += 1,
                None => absent += 1,
            }
        }
        assert_eq!(torn + absent + whole, 200);
        assert!(torn > 0 && absent > 0 && whole > 0, "torn {torn}, absent {absent}, whole {whole}");
    }
}
