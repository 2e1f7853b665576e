//! Formatting a shard, and opening it after any kind of stop.
//!
//! Opening reads root and manifest, opens what the manifest names, replays the log, cuts a torn tail, and makes the new
//! branches and the log's new generation durable before anything is written. Doing it twice, or dying inside it, changes nothing that
//! was durable.
//!
//! Invariants
//! - Damage to anything that was durable is an error that names the place; it is never cut.
//! - Each vbucket recovers a gap-free prefix of its seqnos, up to at least what was reported persisted.
//! - Records of a bucket that is gone are passed over; its number never comes again.
//!
//! Does not know: why the node stopped.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use super::compactor::Compaction;
use super::memory::ShardMemory;
use super::scrub::Scrub;
use super::{ShardCore, ShardMetrics, ShardOptions};
use crate::cache::BlockCache;
use crate::env::Env;
use crate::extent::Space;
use crate::format::FormatError;
use crate::format::block::{BlockIdentity, BlockType};
use crate::format::manifest_record::{Record, VbState};
use crate::format::superblock::Geometry;
use crate::io::{BLOCK_BYTES, Device};
use crate::item::Item;
use crate::manifest::{Manifest, ManifestError, ManifestState, load, read_root};
use crate::mutant::{Mutant, is_on};
use crate::reader::ReadError;
use crate::run::Run;
use crate::seqlog::{Marks, Segment, segment_of};
use crate::sync::{Event, Lock};
use crate::types::{BucketId, Former, Seqno, VbId};
use crate::vbstore::{VbStore, Version};
use crate::wal::{Replay, Wal, WalError, WalShape, WalStart, replay};

/// Bytes of the data file at format.
const DATA_BYTES_MIN: u64 = 1 << 20;

/// What a new shard looks like.
#[derive(Debug, Clone, Copy)]
pub struct FormatOptions {
    /// Shape.
    pub geometry: Geometry,
    /// Bytes by which the data file grows.
    pub grow_bytes: u64,
}

/// Why a shard could not be opened or formatted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A device failed.
    #[error("cannot prepare {device}")]
    Io {
        /// Which.
        device: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Root or manifest.
    #[error("the manifest cannot be used")]
    Manifest(#[source] Box<ManifestError>),
    /// The log.
    #[error("the write-ahead log cannot be used")]
    Wal(#[source] Box<WalError>),
    /// An index of a vbucket.
    #[error("vbucket {vb} cannot be opened")]
    Vbucket {
        /// Which.
        vb: VbId,
        /// Why.
        #[source]
        source: Box<ReadError>,
    },
    /// Two things own the same blocks, or something lies outside the file.
    #[error("{device}: blocks {start}+{blocks} of vbucket {vb} are owned twice or lie outside the file")]
    Overlap {
        /// Which file.
        device: String,
        /// Whose.
        vb: VbId,
        /// First block.
        start: u64,
        /// Blocks.
        blocks: u32,
    },
    /// The log's file is not as long as the geometry says.
    #[error("{device} is {found} bytes long, the superblock says {expected}")]
    WalLength {
        /// Which file.
        device: String,
        /// What the geometry says.
        expected: u64,
        /// What the device says.
        found: u64,
    },
    /// The manifest found is older than one the log knows durable: the newest root was lost.
    #[error("the manifest has generation {found}, but the log knows generation {expected} durable")]
    OldManifest {
        /// What the log names.
        expected: u64,
        /// What the root names.
        found: u64,
    },
}

impl From<ManifestError> for OpenError {
    fn from(error: ManifestError) -> OpenError {
        OpenError::Manifest(Box::new(error))
    }
}

impl From<WalError> for OpenError {
    fn from(error: WalError) -> OpenError {
        OpenError::Wal(Box::new(error))
    }
}

/// What opening found and did.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RecoveryReport {
    /// Whether the last stop was clean.
    pub clean: bool,
    /// Records replayed from the log.
    pub records: u64,
    /// Batches they were in.
    pub batches: u64,
    /// Whether an unfinished end of the log was cut.
    pub log_torn: bool,
    /// Whether an unfinished manifest change was cut.
    pub manifest_torn: bool,
    /// A superblock slot that was damaged and repaired from the other, in words.
    pub repaired: Option<String>,
    /// Nanoseconds it took.
    pub took_ns: u64,
}

/// Formats a shard: writes the log in full and the first manifest. Everything on the devices is lost.
///
/// # Errors
/// `Io`, `Manifest`.
pub async fn format(
    env: &Env,
    wal: &Rc<dyn Device>,
    data: &Rc<dyn Device>,
    options: FormatOptions,
) -> Result<(), OpenError> {
    let io = |device: &Rc<dyn Device>| {
        let device = device.name().to_owned();
        move |source| OpenError::Io { device, source }
    };
    let shape = WalShape::of(&options.geometry);
    let wal_bytes = shape.blocks * BLOCK_BYTES as u64;
    wal.grow(wal_bytes).await.map_err(io(wal))?;
    let piece = (1 << 20).min(wal_bytes);
    let mut offset = 0;
    while offset < wal_bytes {
        let len = piece.min(wal_bytes - offset);
        wal.write(offset, wal.buffer(len as usize)).await.map_err(io(wal))?;
        offset += len;
    }
    wal.sync().await.map_err(io(wal))?;
    data.grow(DATA_BYTES_MIN).await.map_err(io(data))?;
    let space = Space::new(data.clone(), BlockCache::new(0), options.grow_bytes);
    let formatted_at = env.clock.wall_ns() / 1_000_000_000;
    let state = ManifestState { next_object: 1, ..ManifestState::default() };
    let uuid = env.random_u64().max(1);
    Manifest::format(space, uuid, options.geometry, formatted_at, state).await?;
    Ok(())
}

pub(super) async fn open(
    env: Env,
    wal: Rc<dyn Device>,
    data: Rc<dyn Device>,
    cache: Rc<BlockCache>,
    options: ShardOptions,
) -> Result<(super::Shard, RecoveryReport), OpenError> {
    let started = env.clock.monotonic_ns();
    let mut report = RecoveryReport::default();
    let root = read_root(&data).await?;
    if let Some((slot, error)) = &root.damaged_slot {
        report.repaired = Some(format!("superblock slot at block {slot}: {error}"));
    }
    let superblock = root.superblock;
    let geometry = superblock.geometry;
    let shape = WalShape::of(&geometry);
    let expected = shape.blocks * BLOCK_BYTES as u64;
    if wal.len_bytes() < expected {
        let (device, found) = (wal.name().to_owned(), wal.len_bytes());
        return Err(OpenError::WalLength { device, expected, found });
    }
    let loaded = load(&data, &superblock).await?;
    report.manifest_torn = loaded.torn;
    report.clean = loaded.state.closed;
    let space = Space::new(data.clone(), cache, options.grow_bytes);
    let state = loaded.state.clone();
    for vb in state.vbuckets.values() {
        claim(&space, vb)?;
    }
    let manifest = Manifest::open(space.clone(), &root, loaded).await?;

    let mut records: Vec<(u64, OwnedRecord)> = Vec::new();
    let what = Replay {
        device: &wal,
        shard_uuid: superblock.shard_uuid,
        shape,
        tail: state.wal_tail,
        clean: state.closed,
    };
    let stats = replay(what, |position, record| {
        if state.is_gone(record.bucket, record.vb, position) && !is_on(Mutant::KeepGoneRecords) {
            return Ok(());
        }
        let flushed = state.vbuckets.get(&(record.bucket, record.vb)).map(|vb| vb.counts.flushed_seqno);
        let flushed = flushed.ok_or_else(|| invalid("vbucket", u64::from(record.vb.0), "in the manifest"))?;
        if record.meta.seqno > flushed {
            let former = Former { seqno: record.former, live: record.former_live, bytes: 0 };
            let item = Item::new(record.meta, record.key, record.value);
            records.push((position, OwnedRecord { bucket: record.bucket, vb: record.vb, item, former }));
        }
        Ok(())
    })
    .await?;
    (report.records, report.batches, report.log_torn) = (stats.records, stats.batches, stats.torn);
    if stats.manifest_generation > superblock.manifest_generation {
        return Err(OpenError::OldManifest {
            expected: stats.manifest_generation,
            found: superblock.manifest_generation,
        });
    }
    // Nothing behind the chain may ever be taken for its continuation; and what was read may not be durable yet.
    let io = |source| OpenError::Io { device: wal.name().to_owned(), source };
    wal.write_durable(shape.offset(stats.head), wal.buffer(BLOCK_BYTES)).await.map_err(io)?;

    let generation = stats.generation.max(state.wal_generation) + 1;
    let start = WalStart {
        tail: state.wal_tail,
        head: stats.head,
        generation,
        manifest_generation: superblock.manifest_generation,
    };
    let core = Rc::new(ShardCore {
        wal: Wal::open(wal.clone(), superblock.shard_uuid, shape, start),
        env,
        options,
        geometry,
        space,
        manifest,
        metrics: ShardMetrics::default(),
        failure: RefCell::default(),
        unsure: RefCell::default(),
        dirty: RefCell::default(),
        memory: Rc::new(ShardMemory::new(options.memtable_bytes_max, options.resident_bytes_max)),
        buckets: RefCell::default(),
        commit_event: Event::default(),
        flush_event: Event::default(),
        idle_event: Event::default(),
        compaction: Compaction::default(),
        flushing: Lock::default(),
        flush_wanted: Cell::new(false),
        closing: Cell::new(false),
        scrub: Scrub::new(options.scrub.bytes_per_second),
        forgetting: Cell::new(0),
        vbuckets: RefCell::default(),
    });
    let mut vbuckets = BTreeMap::new();
    for (key, described) in &state.vbuckets {
        let (version, marks) = open_version(&core, described)
            .await
            .map_err(|source| OpenError::Vbucket { vb: described.vb, source: Box::new(source) })?;
        vbuckets.insert(*key, VbStore::new(core.clone(), described, version, marks));
    }
    for (position, record) in records {
        let Some(store) = vbuckets.get(&(record.bucket, record.vb)) else { continue };
        let found = record.item.seqno().0;
        store.replay(record.item, record.former, position).map_err(|_| WalError::Record {
            device: wal.name().to_owned(),
            position,
            source: invalid("seqno", found, "right behind the one before it in its vbucket"),
        })?;
        core.env.relax().await;
    }
    let mut changes = vec![Record::Opened { wal_generation: generation }];
    if !report.clean && !is_on(Mutant::NoNewBranch) {
        for (key, store) in &vbuckets {
            let mut log = store.failover_log();
            core.add_branch(&mut log, store.high_seqno());
            store.set_failover_log(log.clone());
            changes.push(Record::Failover { bucket: key.0, vb: key.1, log });
        }
    }
    core.manifest.start_objects_at(generation << 32);
    core.change_manifest(changes).await?;
    *core.vbuckets.borrow_mut() = vbuckets;
    core.env.spawn("commit", core.clone().run_commits());
    core.env.spawn("flush", core.clone().run_flushes());
    core.env.spawn("scrub", core.clone().run_scrubs());
    core.env.spawn("compact", core.clone().run_compaction());
    core.want_compaction();
    if core.wal.fullness() > 0.5 {
        core.want_flush();
    }
    report.took_ns = core.env.clock.monotonic_ns() - started;
    Ok((super::Shard { core }, report))
}

struct OwnedRecord {
    bucket: BucketId,
    vb: VbId,
    item: Item,
    former: Former,
}

fn invalid(field: &'static str, found: u64, rule: &'static str) -> FormatError {
    FormatError::Invalid { what: "log record", field, found, rule }
}

fn claim(space: &Rc<Space>, vb: &VbState) -> Result<(), OpenError> {
    let runs = vb.runs.iter().flat_map(|run| run.extents.iter().chain([&run.index]));
    let segments = vb.segments.iter().flat_map(|segment| segment.extents.iter().chain([&segment.index]));
    for extent in runs.chain(segments).chain(vb.marks.iter().map(|marks| &marks.block)) {
        if !space.claim(*extent) {
            return Err(OpenError::Overlap {
                device: space.device().name().to_owned(),
                vb: vb.vb,
                start: extent.start,
                blocks: extent.blocks,
            });
        }
    }
    Ok(())
}

async fn open_version(core: &Rc<ShardCore>, described: &VbState) -> Result<(Version, Vec<Marks>), ReadError> {
    let identity = BlockIdentity {
        shard_uuid: core.shard_uuid(),
        bucket: described.bucket,
        vb: described.vb,
        object: 0,
        kind: BlockType::Seqlog,
    };
    let space = &core.space;
    let mut version = Version { flushed: described.counts.flushed_seqno, ..Version::default() };
    for desc in &described.runs {
        version.runs.push(Rc::new(Run::open(space.clone(), identity, desc.clone()).await?));
    }
    for desc in &described.segments {
        version.segments.push(Rc::new(Segment::open(space, identity, desc.clone()).await?));
    }
    let mut blocks = Vec::new();
    for desc in &described.marks {
        let (block, marks) = Marks::open(space, identity, desc).await?;
        blocks.push(block);
        for mark in marks {
            if let Some(segment) = segment_of(&version.segments, mark.dead) {
                segment.mark(mark, true);
            }
        }
    }
    version.set_purged(&described.purged);
    if version.flushed == Seqno(0) {
        debug_assert!(version.segments.is_empty(), "a vbucket that was never flushed has no segments");
    }
    Ok((version, blocks))
}
