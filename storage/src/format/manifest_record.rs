//! The records of the manifest: which blocks make a vbucket, and everything about it that is not a document.
//!
//! A batch of the manifest is a sequence of records: a tag byte, then the fields. One batch is one atomic change. The first batch of
//! a manifest area is a checkpoint: [`Record::Checkpoint`], then the whole state.
//!
//! Does not know: when a change is made, where the manifest lies.

pub use self::purge_desc::{PurgeDesc, PurgedPart};
use super::bytes::{Reader, WriteLe};
use super::{FormatError, LOG_GENERATIONS_MAX};
use crate::types::{BucketId, Cas, Collection, FailoverEntry, Scope, Seqno, VbId, VbUuid};

mod purge_desc;

const WHAT: &str = "manifest record";

/// A contiguous range of device blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Extent {
    /// First device block.
    pub start: u64,
    /// Device blocks.
    pub blocks: u32,
}

/// A block that an index points to.
pub type BlockRef = Extent;

/// One immutable sorted run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RunDesc {
    /// Object id, unique in the shard.
    pub id: u64,
    /// Versions inside.
    pub records: u64,
    /// How many of them are deletions.
    pub tombstones: u64,
    /// Bytes of the key columns.
    pub key_bytes: u64,
    /// Highest seqno inside.
    pub last: Seqno,
    /// Its index block.
    pub index: BlockRef,
    /// Its key and metadata parts.
    pub extents: Vec<Extent>,
}

/// What one flush appended to a seqlog, or what was made of such.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SegmentDesc {
    /// Object id, unique in the shard.
    pub id: u64,
    /// Seqno of the first record.
    pub first: Seqno,
    /// Seqno of the last record.
    pub last: Seqno,
    /// Records inside.
    pub records: u64,
    /// Its index block.
    pub index: BlockRef,
    /// Its seqlog blocks.
    pub extents: Vec<Extent>,
}

/// A block of death marks.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MarksDesc {
    /// Object id: that of the segment whose flush found them; one of its own if marks were written again.
    pub id: u64,
    /// Marks inside.
    pub marks: u64,
    /// The block.
    pub block: BlockRef,
}

/// The counts and highest numbers of a vbucket as of its last flush.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct VbCounts {
    /// Everything up to here is in seqlog and runs.
    pub flushed_seqno: Seqno,
    /// Greatest purged tombstone.
    pub purge_seqno: Seqno,
    /// Greatest CAS.
    pub max_cas: Cas,
    /// Live documents.
    pub items: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Start of the last complete snapshot.
    pub snapshot_start: Seqno,
    /// End of the last complete snapshot.
    pub snapshot_end: Seqno,
    /// Highest prepared durable write; 0 until they exist.
    pub high_prepared: Seqno,
    /// Highest completed durable write; 0 until they exist.
    pub high_completed: Seqno,
    /// Highest seqno visible to readers.
    pub max_visible: Seqno,
}

/// The whole state of a vbucket on disk.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct VbState {
    /// Whose.
    pub bucket: BucketId,
    /// Which.
    pub vb: VbId,
    /// The protocol's state: 1 active, 2 replica, 3 pending, 4 dead.
    pub state: u8,
    /// Which nodes have copies of it, as text that the node understands; empty if it was never told. [`Record::Role`] carries it.
    pub topology: String,
    /// Branches, newest first.
    pub failover_log: Vec<FailoverEntry>,
    /// Counts as of the last flush.
    pub counts: VbCounts,
    /// Runs, oldest first.
    pub runs: Vec<RunDesc>,
    /// Segments in seqno order.
    pub segments: Vec<SegmentDesc>,
    /// Marks, in the order of their flushes.
    pub marks: Vec<MarksDesc>,
    /// Its collections as of the last flush, in a record of their own ([`Record::Collections`]); none before the first flush.
    pub collections: CollectionsDesc,
    /// What was purged of it, in a record of its own ([`Record::Purge`]).
    pub purged: PurgeDesc,
}

/// The collections and scopes that a vbucket ever had, each ascending by id. Empty: it has the default ones, uncounted.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CollectionsDesc {
    /// Collections, those that were dropped too.
    pub collections: Vec<Collection>,
    /// Scopes, those that were dropped too.
    pub scopes: Vec<Scope>,
}

/// A bucket as a shard knows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BucketDesc {
    /// Number, never reused.
    pub id: BucketId,
    /// Random uuid.
    pub uuid: u128,
    /// Name, 1..=100 bytes.
    pub name: String,
    /// Settings as text, understood by the node.
    pub config: String,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum Record {
    /// The state that follows in this batch replaces everything before.
    Checkpoint {
        /// Next object id.
        next_object: u64,
    },
    /// The node opened the shard; the log's new batches carry this generation.
    Opened {
        /// Generation of the log.
        wal_generation: u64,
    },
    /// The node closed the shard cleanly: nothing stands behind the log's tail.
    Closed,
    /// Replay begins here.
    WalTail {
        /// Position in blocks since format.
        position: u64,
    },
    /// A bucket exists.
    Bucket(BucketDesc),
    /// No bucket has this number any more, nor will one have it again; its vbuckets are gone with all that they own.
    BucketGone {
        /// Which.
        bucket: BucketId,
    },
    /// A vbucket has exactly this state.
    Vbucket(Box<VbState>),
    /// The failover log of a vbucket.
    Failover {
        /// Whose.
        bucket: BucketId,
        /// Which.
        vb: VbId,
        /// Branches, newest first.
        log: Vec<FailoverEntry>,
    },
    /// A flush: its segment, run and marks, and the counts with them.
    Flush {
        /// Whose.
        bucket: BucketId,
        /// Which.
        vb: VbId,
        /// Counts after it.
        counts: VbCounts,
        /// What it appended to the seqlog.
        segment: SegmentDesc,
        /// The run it added.
        run: RunDesc,
        /// The marks it found.
        marks: Option<MarksDesc>,
    },
    /// Runs became one.
    Merge {
        /// Whose.
        bucket: BucketId,
        /// Which.
        vb: VbId,
        /// Ids of the runs that went, a stretch of neighbours.
        removed: Vec<u64>,
        /// What stands in their place.
        run: RunDesc,
    },
    /// Neighbouring segments became one, or nothing, without the records that were dead; or marks were written again.
    Reclaim {
        /// Whose.
        bucket: BucketId,
        /// Which.
        vb: VbId,
        /// Ids of the segments that went, neighbours in their order.
        removed: Vec<u64>,
        /// What stands in their place; none if nothing in them was live.
        segment: Option<SegmentDesc>,
        /// Ids of the marks that went.
        marks_removed: Vec<u64>,
        /// What stands in their place.
        marks: Vec<MarksDesc>,
    },
    /// The collections of a vbucket; follows the flush that they are as of.
    Collections {
        /// Whose.
        bucket: BucketId,
        /// Which.
        vb: VbId,
        /// The collections.
        desc: CollectionsDesc,
    },
    /// What is purged of a vbucket; follows the merge that did it.
    Purge {
        /// Whose.
        bucket: BucketId,
        /// Which.
        vb: VbId,
        /// All that was ever.
        purged: PurgeDesc,
    },
    /// What a vbucket is to its clients, with the branches that come of it.
    Role {
        /// Whose.
        bucket: BucketId,
        /// Which.
        vb: VbId,
        /// The protocol's state.
        state: u8,
        /// Which nodes have copies.
        topology: String,
        /// Branches, newest first.
        log: Vec<FailoverEntry>,
    },
    /// The bucket has no such vbucket any more, with all that it owned. One may come again with this number.
    VbucketGone {
        /// Whose.
        bucket: BucketId,
        /// Which.
        vb: VbId,
        /// Records of it that lie before this position of the log are of the one that is gone.
        log_from: u64,
    },
}

/// The states of a vbucket that there are.
const STATES: std::ops::RangeInclusive<u8> = 1..=4;

fn put_extents(out: &mut Vec<u8>, extents: &[Extent]) {
    out.put_u32(extents.len() as u32);
    for extent in extents {
        put_extent(out, *extent);
    }
}

fn put_extent(out: &mut Vec<u8>, extent: Extent) {
    out.put_u64(extent.start);
    out.put_u32(extent.blocks);
}

fn extent(reader: &mut Reader<'_>) -> Result<Extent, FormatError> {
    let (start, blocks) = (reader.place("extent start")?, reader.u32("extent blocks")?);
    if blocks == 0 {
        return Err(reader.invalid("extent blocks", u64::from(blocks), "at least one"));
    }
    Ok(Extent { start, blocks })
}

fn extents(reader: &mut Reader<'_>) -> Result<Vec<Extent>, FormatError> {
    let count = reader.count(12, "extents")?;
    (0..count).map(|_| extent(reader)).collect()
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_bytes(text.as_bytes());
}

fn text(reader: &mut Reader<'_>, field: &'static str) -> Result<String, FormatError> {
    let len = reader.count(1, field)?;
    let bytes = reader.bytes(len, field)?;
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|error| reader.invalid(field, error.valid_up_to() as u64, "UTF-8"))
}

impl RunDesc {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.id);
        out.put_u64(self.records);
        out.put_u64(self.tombstones);
        out.put_u64(self.key_bytes);
        out.put_u64(self.last.0);
        put_extent(out, self.index);
        put_extents(out, &self.extents);
    }

    fn read(reader: &mut Reader<'_>) -> Result<RunDesc, FormatError> {
        Ok(RunDesc {
            id: reader.number("run id")?,
            records: reader.number("run records")?,
            tombstones: reader.number("run tombstones")?,
            key_bytes: reader.number("run key bytes")?,
            last: Seqno(reader.number("run last seqno")?),
            index: extent(reader)?,
            extents: extents(reader)?,
        })
    }
}

impl SegmentDesc {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.id);
        out.put_u64(self.first.0);
        out.put_u64(self.last.0);
        out.put_u64(self.records);
        put_extent(out, self.index);
        put_extents(out, &self.extents);
    }

    fn read(reader: &mut Reader<'_>) -> Result<SegmentDesc, FormatError> {
        Ok(SegmentDesc {
            id: reader.number("segment id")?,
            first: Seqno(reader.number("segment first seqno")?),
            last: Seqno(reader.number("segment last seqno")?),
            records: reader.number("segment records")?,
            index: extent(reader)?,
            extents: extents(reader)?,
        })
    }
}

impl MarksDesc {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.id);
        out.put_u64(self.marks);
        put_extent(out, self.block);
    }

    fn read(reader: &mut Reader<'_>) -> Result<MarksDesc, FormatError> {
        Ok(MarksDesc {
            id: reader.number("marks id")?,
            marks: reader.number("marks")?,
            block: extent(reader)?,
        })
    }
}

impl VbCounts {
    fn fields(&self) -> [u64; 10] {
        [
            self.flushed_seqno.0,
            self.purge_seqno.0,
            self.max_cas.0,
            self.items,
            self.tombstones,
            self.snapshot_start.0,
            self.snapshot_end.0,
            self.high_prepared.0,
            self.high_completed.0,
            self.max_visible.0,
        ]
    }

    fn put(&self, out: &mut Vec<u8>) {
        for field in self.fields() {
            out.put_u64(field);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<VbCounts, FormatError> {
        let (flushed_seqno, purge_seqno) = (reader.number("flushed seqno")?, reader.number("purge seqno")?);
        let max_cas = Cas(reader.u64("greatest CAS")?);
        let mut next = || reader.number("counts");
        Ok(VbCounts {
            flushed_seqno: Seqno(flushed_seqno),
            purge_seqno: Seqno(purge_seqno),
            max_cas,
            items: next()?,
            tombstones: next()?,
            snapshot_start: Seqno(next()?),
            snapshot_end: Seqno(next()?),
            high_prepared: Seqno(next()?),
            high_completed: Seqno(next()?),
            max_visible: Seqno(next()?),
        })
    }
}

fn put_log(out: &mut Vec<u8>, log: &[FailoverEntry]) {
    out.put_u32(log.len() as u32);
    for entry in log {
        out.put_u64(entry.uuid.0);
        out.put_u64(entry.seqno.0);
    }
}

fn failover_log(reader: &mut Reader<'_>) -> Result<Vec<FailoverEntry>, FormatError> {
    let count = reader.count(16, "failover log")?;
    let mut log = Vec::with_capacity(count);
    for _ in 0..count {
        log.push(FailoverEntry {
            uuid: VbUuid(reader.u64("branch")?),
            seqno: Seqno(reader.number("branch seqno")?),
        });
    }
    if log.is_empty() {
        return Err(reader.invalid("failover log", 0, "at least one branch"));
    }
    Ok(log)
}

fn put_list<T>(out: &mut Vec<u8>, list: &[T], put: impl Fn(&T, &mut Vec<u8>)) {
    out.put_u32(list.len() as u32);
    for entry in list {
        put(entry, out);
    }
}

fn list<T>(
    reader: &mut Reader<'_>,
    each: usize,
    read: impl Fn(&mut Reader<'_>) -> Result<T, FormatError>,
) -> Result<Vec<T>, FormatError> {
    let count = reader.count(each, "list")?;
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        list.push(read(reader)?);
    }
    Ok(list)
}

fn state(reader: &mut Reader<'_>) -> Result<u8, FormatError> {
    let state = reader.u8("state")?;
    match STATES.contains(&state) {
        true => Ok(state),
        false => Err(reader.invalid("state", u64::from(state), "1..=4")),
    }
}

impl VbState {
    /// The record that says what it is to its clients.
    #[must_use]
    pub fn role(&self) -> Record {
        Record::Role {
            bucket: self.bucket,
            vb: self.vb,
            state: self.state,
            topology: self.topology.clone(),
            log: self.failover_log.clone(),
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.bucket.0);
        out.put_u16(self.vb.0);
        out.put_u8(self.state);
        put_log(out, &self.failover_log);
        self.counts.put(out);
        put_list(out, &self.runs, RunDesc::put);
        put_list(out, &self.segments, SegmentDesc::put);
        put_list(out, &self.marks, MarksDesc::put);
    }

    fn read(reader: &mut Reader<'_>) -> Result<VbState, FormatError> {
        Ok(VbState {
            bucket: BucketId(reader.u32("bucket")?),
            vb: VbId(reader.u16("vbucket")?),
            state: state(reader)?,
            topology: String::new(),
            failover_log: failover_log(reader)?,
            counts: VbCounts::read(reader)?,
            runs: list(reader, 56, RunDesc::read)?,
            segments: list(reader, 48, SegmentDesc::read)?,
            marks: list(reader, 28, MarksDesc::read)?,
            collections: CollectionsDesc::default(),
            purged: PurgeDesc::default(),
        })
    }
}

/// Bytes of a collection's entry.
const COLLECTION_BYTES: usize = 44;

/// Bytes of a scope's entry.
const SCOPE_BYTES: usize = 20;

impl CollectionsDesc {
    fn put(&self, out: &mut Vec<u8>) {
        put_list(out, &self.collections, |collection, out| {
            out.put_u32(collection.id);
            for number in [collection.created.0, collection.dropped.0, collection.items, collection.bytes] {
                out.put_u64(number);
            }
            out.put_u64(collection.high_seqno.0);
        });
        put_list(out, &self.scopes, |scope, out| {
            out.put_u32(scope.id);
            out.put_u64(scope.created.0);
            out.put_u64(scope.dropped.0);
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<CollectionsDesc, FormatError> {
        let collections = list(reader, COLLECTION_BYTES, |reader| {
            Ok(Collection {
                id: reader.u32("collection")?,
                created: Seqno(reader.number("creation of a collection")?),
                dropped: Seqno(reader.number("drop of a collection")?),
                items: reader.number("items of a collection")?,
                bytes: reader.number("bytes of a collection")?,
                high_seqno: Seqno(reader.number("high seqno of a collection")?),
            })
        })?;
        let scopes = list(reader, SCOPE_BYTES, |reader| {
            Ok(Scope {
                id: reader.u32("scope")?,
                created: Seqno(reader.number("creation of a scope")?),
                dropped: Seqno(reader.number("drop of a scope")?),
            })
        })?;
        let ascend = collections.windows(2).all(|pair| pair[0].id < pair[1].id)
            && scopes.windows(2).all(|pair| pair[0].id < pair[1].id);
        if !ascend {
            return Err(reader.invalid("collections", collections.len() as u64, "ascending ids"));
        }
        Ok(CollectionsDesc { collections, scopes })
    }
}

impl Record {
    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Checkpoint { next_object } => {
                out.put_u8(1);
                out.put_u64(*next_object);
            }
            Record::Opened { wal_generation } => {
                out.put_u8(2);
                out.put_u64(*wal_generation);
            }
            Record::Closed => out.put_u8(3),
            Record::WalTail { position } => {
                out.put_u8(4);
                out.put_u64(*position);
            }
            Record::Bucket(bucket) => {
                out.put_u8(5);
                out.put_u32(bucket.id.0);
                out.put_bytes(&bucket.uuid.to_le_bytes());
                put_text(out, &bucket.name);
                put_text(out, &bucket.config);
            }
            Record::Vbucket(state) => {
                out.put_u8(6);
                state.put(out);
            }
            Record::Failover { bucket, vb, log } => {
                out.put_u8(7);
                out.put_u32(bucket.0);
                out.put_u16(vb.0);
                put_log(out, log);
            }
            Record::Flush { bucket, vb, counts, segment, run, marks } => {
                out.put_u8(8);
                out.put_u32(bucket.0);
                out.put_u16(vb.0);
                counts.put(out);
                segment.put(out);
                run.put(out);
                out.put_u8(u8::from(marks.is_some()));
                if let Some(marks) = marks {
                    marks.put(out);
                }
            }
            Record::Merge { bucket, vb, removed, run } => {
                out.put_u8(9);
                out.put_u32(bucket.0);
                out.put_u16(vb.0);
                put_list(out, removed, |id, out| out.put_u64(*id));
                run.put(out);
            }
            Record::BucketGone { bucket } => {
                out.put_u8(10);
                out.put_u32(bucket.0);
            }
            Record::Collections { bucket, vb, desc } => {
                out.put_u8(11);
                out.put_u32(bucket.0);
                out.put_u16(vb.0);
                desc.put(out);
            }
            Record::Role { bucket, vb, state, topology, log } => {
                out.put_u8(12);
                out.put_u32(bucket.0);
                out.put_u16(vb.0);
                out.put_u8(*state);
                put_text(out, topology);
                put_log(out, log);
            }
            Record::VbucketGone { bucket, vb, log_from } => {
                out.put_u8(13);
                out.put_u32(bucket.0);
                out.put_u16(vb.0);
                out.put_u64(*log_from);
            }
            Record::Reclaim { bucket, vb, removed, segment, marks_removed, marks } => {
                out.put_u8(14);
                out.put_u32(bucket.0);
                out.put_u16(vb.0);
                put_list(out, removed, |id, out| out.put_u64(*id));
                out.put_u8(u8::from(segment.is_some()));
                if let Some(segment) = segment {
                    segment.put(out);
                }
                put_list(out, marks_removed, |id, out| out.put_u64(*id));
                put_list(out, marks, MarksDesc::put);
            }
            Record::Purge { bucket, vb, purged } => {
                out.put_u8(15);
                out.put_u32(bucket.0);
                out.put_u16(vb.0);
                purged.put(out);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Record, FormatError> {
        let tag = reader.u8("tag")?;
        Ok(match tag {
            1 => Record::Checkpoint { next_object: reader.number("next object")? },
            2 => Record::Opened { wal_generation: reader.below(LOG_GENERATIONS_MAX, "log generation")? },
            3 => Record::Closed,
            4 => Record::WalTail { position: reader.place("position")? },
            5 => {
                let id = BucketId(reader.u32("bucket")?);
                let mut uuid = [0; 16];
                uuid.copy_from_slice(reader.bytes(16, "bucket uuid")?);
                let name = text(reader, "bucket name")?;
                let config = text(reader, "bucket config")?;
                Record::Bucket(BucketDesc { id, uuid: u128::from_le_bytes(uuid), name, config })
            }
            6 => Record::Vbucket(Box::new(VbState::read(reader)?)),
            7 => Record::Failover {
                bucket: BucketId(reader.u32("bucket")?),
                vb: VbId(reader.u16("vbucket")?),
                log: failover_log(reader)?,
            },
            8 => Record::Flush {
                bucket: BucketId(reader.u32("bucket")?),
                vb: VbId(reader.u16("vbucket")?),
                counts: VbCounts::read(reader)?,
                segment: SegmentDesc::read(reader)?,
                run: RunDesc::read(reader)?,
                marks: match reader.u8("marks")? {
                    0 => None,
                    _ => Some(MarksDesc::read(reader)?),
                },
            },
            9 => Record::Merge {
                bucket: BucketId(reader.u32("bucket")?),
                vb: VbId(reader.u16("vbucket")?),
                removed: list(reader, 8, |reader| reader.u64("run id"))?,
                run: RunDesc::read(reader)?,
            },
            10 => Record::BucketGone { bucket: BucketId(reader.u32("bucket")?) },
            11 => Record::Collections {
                bucket: BucketId(reader.u32("bucket")?),
                vb: VbId(reader.u16("vbucket")?),
                desc: CollectionsDesc::read(reader)?,
            },
            12 => Record::Role {
                bucket: BucketId(reader.u32("bucket")?),
                vb: VbId(reader.u16("vbucket")?),
                state: state(reader)?,
                topology: text(reader, "topology")?,
                log: failover_log(reader)?,
            },
            13 => Record::VbucketGone {
                bucket: BucketId(reader.u32("bucket")?),
                vb: VbId(reader.u16("vbucket")?),
                log_from: reader.place("log position")?,
            },
            14 => Record::Reclaim {
                bucket: BucketId(reader.u32("bucket")?),
                vb: VbId(reader.u16("vbucket")?),
                removed: list(reader, 8, |reader| reader.u64("segment id"))?,
                segment: match reader.u8("segment")? {
                    0 => None,
                    _ => Some(SegmentDesc::read(reader)?),
                },
                marks_removed: list(reader, 8, |reader| reader.u64("marks id"))?,
                marks: list(reader, 28, MarksDesc::read)?,
            },
            15 => Record::Purge {
                bucket: BucketId(reader.u32("bucket")?),
                vb: VbId(reader.u16("vbucket")?),
                purged: PurgeDesc::read(reader)?,
            },
            _ => return Err(reader.invalid("tag", u64::from(tag), "1..=15")),
        })
    }

    /// Decodes the records of one batch.
    ///
    /// # Errors
    /// `Short`, `Invalid`.
    pub fn decode_all(payload: &[u8]) -> Result<Vec<Record>, FormatError> {
        let mut reader = Reader::new(WHAT, payload);
        let mut records = Vec::new();
        while reader.remaining() > 0 {
            records.push(Record::read(&mut reader)?);
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests;
