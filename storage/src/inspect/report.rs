//! What an inspection found, in a form that serialises.
//!
//! Does not know: how it was found, how it is printed (`text`).

use serde::Serialize;

use crate::format::batch::BatchHeader;
use crate::format::index::{DeathMark, SeqlogFence};
use crate::format::key_block::Meta;
use crate::format::manifest_record::{MarksDesc, PurgeDesc, Record, RunDesc, SegmentDesc, VbCounts};
use crate::format::superblock::Superblock;
use crate::types::{BucketId, FailoverEntry, ItemMeta, Seqno, VbId};

/// Damaged places named for one shard; the rest is counted.
pub const DAMAGE_MAX: usize = 10_000;

/// Everything found under one path.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was inspected.
    pub path: String,
    /// Its shards, by number.
    pub shards: Vec<ShardReport>,
}

impl Report {
    /// Whether anything is damaged. A torn tail is not: the next start cuts it.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.shards.iter().any(|shard| !shard.damage.list.is_empty())
    }
}

/// One shard.
#[derive(Debug, Default, Clone, Serialize)]
pub struct ShardReport {
    /// Its directory.
    pub path: String,
    /// Length of the log's file in bytes; absent if it cannot be opened.
    pub wal_bytes: Option<u64>,
    /// Length of the data file in bytes; absent if it cannot be opened.
    pub data_bytes: Option<u64>,
    /// The superblock slots.
    pub slots: Vec<SlotReport>,
    /// The root that a start would take.
    pub superblock: Option<Superblock>,
    /// The manifest.
    pub manifest: Option<ManifestReport>,
    /// The log.
    pub wal: Option<WalReport>,
    /// The buckets.
    pub buckets: Vec<BucketReport>,
    /// The vbuckets, those that were asked for.
    pub vbuckets: Vec<VbReport>,
    /// Every damaged place.
    pub damage: DamageList,
}

/// Damaged places, bounded.
#[derive(Debug, Default, Clone, Serialize)]
pub struct DamageList {
    /// The first [`DAMAGE_MAX`].
    pub list: Vec<Damage>,
    /// How many more there are.
    pub omitted: u64,
}

impl DamageList {
    pub(super) fn add(&mut self, damage: Damage) {
        if self.list.len() < DAMAGE_MAX {
            self.list.push(damage);
        } else {
            self.omitted += 1;
        }
    }
}

/// One damaged place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// `wal` or `data`.
    pub file: &'static str,
    /// Where, in bytes.
    pub offset: u64,
    /// What should be there.
    pub what: String,
    /// What is wrong.
    pub error: String,
}

/// One superblock slot.
#[derive(Debug, Clone, Serialize)]
pub struct SlotReport {
    /// Its block.
    pub block: u64,
    /// What it says, if it verifies.
    pub superblock: Option<Superblock>,
    /// What is wrong with it, if something is.
    pub error: Option<String>,
}

/// The manifest.
#[derive(Debug, Default, Clone, Serialize)]
pub struct ManifestReport {
    /// First block of its area.
    pub start: u64,
    /// Blocks of its area.
    pub blocks: u64,
    /// Its generation.
    pub generation: u64,
    /// No superblock names it: it was found by searching the file.
    pub searched: bool,
    /// Batches that verify.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// The first block of the area behind the last batch.
    pub head: u64,
    /// What stands behind the last batch, if an unfinished change does.
    pub torn: Option<String>,
    /// Damage cost changes: the state shown is not the whole one.
    pub incomplete: bool,
    /// Next object id.
    pub next_object: u64,
    /// Replay begins here.
    pub wal_tail: u64,
    /// Generation of the log at its last opening.
    pub wal_generation: u64,
    /// Whether the shard was closed cleanly.
    pub closed: bool,
    /// The batches, if asked for.
    pub list: Vec<ManifestBatch>,
    /// Batches left out of the list.
    pub omitted: u64,
}

/// One change of the manifest.
#[derive(Debug, Clone, Serialize)]
pub struct ManifestBatch {
    /// Where, in bytes of the data file.
    pub offset: u64,
    /// Its header.
    pub header: BatchHeader,
    /// Its records.
    pub records: Vec<Record>,
}

/// What the end of the log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum WalVerdict {
    /// The chain ends where nothing was written, or a batch of an earlier lap stands.
    Whole,
    /// Something unfinished, or the middle of a batch of an earlier lap, stands behind the chain; it was never durable there, and the
    /// next start cuts it.
    Torn {
        /// What it is.
        error: String,
    },
    /// Bytes that were durable do not verify: the next start refuses the shard.
    Damaged {
        /// The first position that should verify.
        position: u64,
        /// The highest position that a batch names durable.
        durable: u64,
        /// What is wrong.
        error: String,
    },
}

/// The log.
#[derive(Debug, Clone, Serialize)]
pub struct WalReport {
    /// Blocks of the file.
    pub blocks: u64,
    /// Blocks of a segment.
    pub segment_blocks: u64,
    /// Where replay begins, in blocks since format.
    pub tail: u64,
    /// The first position behind the last batch that verifies.
    pub head: u64,
    /// Batches from the tail on.
    pub batches: u64,
    /// Records that begin in them.
    pub records: u64,
    /// Highest generation of a batch in the file.
    pub generation: u64,
    /// Highest position that a batch in the file names durable.
    pub durable: u64,
    /// Highest generation of a manifest that a batch in the file names durable.
    pub manifest_generation: u64,
    /// Batches before the tail that still verify: not needed any more.
    pub batches_before_tail: u64,
    /// Batches that verify behind a torn end: cut with it.
    pub batches_behind_end: u64,
    /// What the end is.
    pub verdict: WalVerdict,
    /// Per vbucket, what the log holds from the tail on.
    pub vbuckets: Vec<WalVbReport>,
    /// The batches from the tail on, if asked for.
    pub list: Vec<WalBatch>,
    /// Batches and records left out of the list.
    pub omitted: u64,
}

/// What the log holds for a vbucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalVbReport {
    /// Whose.
    pub bucket: BucketId,
    /// Which.
    pub vb: VbId,
    /// Records.
    pub records: u64,
    /// Seqno of the first.
    pub first: Seqno,
    /// Seqno of the last.
    pub last: Seqno,
    /// Records that are not in seqlog and runs yet.
    pub unflushed: u64,
}

/// One batch of the log.
#[derive(Debug, Clone, Serialize)]
pub struct WalBatch {
    /// Where, in bytes of the file.
    pub offset: u64,
    /// Its header.
    pub header: BatchHeader,
    /// The records that end in it.
    pub records: Vec<WalRecordReport>,
}

/// One record of the log.
#[derive(Debug, Clone, Serialize)]
pub struct WalRecordReport {
    /// Whose.
    pub bucket: BucketId,
    /// Which vbucket.
    pub vb: VbId,
    /// All but key and value.
    pub meta: ItemMeta,
    /// Seqno of the key's version before, 0 if none.
    pub former: Seqno,
    /// The key with its collection prefix.
    pub key: Text,
    /// The value's length in bytes.
    pub value_len: u64,
    /// The beginning of the value, if documents were asked for.
    pub value: Option<Text>,
}

/// A bucket.
#[derive(Debug, Clone, Serialize)]
pub struct BucketReport {
    /// Number.
    pub id: BucketId,
    /// Uuid in hexadecimal.
    pub uuid: String,
    /// Name.
    pub name: String,
    /// Settings.
    pub config: String,
}

/// A vbucket.
#[derive(Debug, Clone, Serialize)]
pub struct VbReport {
    /// Whose.
    pub bucket: BucketId,
    /// Which.
    pub vb: VbId,
    /// The protocol's state: 1 active, 2 replica, 3 pending, 4 dead.
    pub state: u8,
    /// Branches, newest first.
    pub failover_log: Vec<FailoverEntry>,
    /// Counts as of the last flush.
    pub counts: VbCounts,
    /// What was purged of it.
    pub purged: PurgeDesc,
    /// Bytes in the data file.
    pub disk_bytes: u64,
    /// Runs, oldest first.
    pub runs: Vec<RunReport>,
    /// Segments in seqno order.
    pub segments: Vec<SegmentReport>,
    /// Mark blocks in the order of their flushes.
    pub marks: Vec<MarksReport>,
}

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// What the manifest says.
    pub desc: RunDesc,
    /// Key parts that its index names.
    pub parts: u64,
    /// Bytes of its filter.
    pub filter_bytes: u64,
    /// Key parts whose keys and metadata verify.
    pub parts_verified: u64,
    /// Its fences, if asked for.
    pub fences: Vec<FenceReport>,
    /// Its keys, if asked for.
    pub keys: Vec<KeyReport>,
    /// Fences and keys left out of the lists.
    pub omitted: u64,
}

/// A fence of a run.
#[derive(Debug, Clone, Serialize)]
pub struct FenceReport {
    /// First key of the part.
    pub first_key: Text,
    /// First block of the key part.
    pub place: u64,
    /// Blocks of the key part.
    pub key_blocks: u16,
    /// Blocks of the metadata part.
    pub meta_blocks: u16,
    /// Keys in it.
    pub records: u32,
}

/// A key of a run.
#[derive(Debug, Clone, Serialize)]
pub struct KeyReport {
    /// The collection.
    pub collection: u32,
    /// The key without collection prefix.
    pub key: Text,
    /// Its metadata; absent if that part is damaged.
    pub meta: Option<Meta>,
    /// Its seqno.
    pub seqno: Seqno,
    /// Whether the version is a deletion.
    pub deleted: bool,
}

/// A seqlog segment.
#[derive(Debug, Clone, Serialize)]
pub struct SegmentReport {
    /// What the manifest says.
    pub desc: SegmentDesc,
    /// Blocks that its index names.
    pub blocks: u64,
    /// Blocks that verify, down to every record.
    pub blocks_verified: u64,
    /// Its fences, if asked for.
    pub fences: Vec<SeqlogFence>,
    /// Its documents, if asked for.
    pub documents: Vec<DocumentReport>,
    /// Fences and documents left out of the lists.
    pub omitted: u64,
}

/// A document of a seqlog segment.
#[derive(Debug, Clone, Serialize)]
pub struct DocumentReport {
    /// All but key and value.
    pub meta: ItemMeta,
    /// The key with its collection prefix.
    pub key: Text,
    /// The value's length in bytes.
    pub value_len: u64,
    /// The beginning of the value.
    pub value: Text,
}

/// A block of death marks.
#[derive(Debug, Clone, Serialize)]
pub struct MarksReport {
    /// What the manifest says.
    pub desc: MarksDesc,
    /// Whether the block verifies.
    pub verified: bool,
    /// Its marks, if documents were asked for.
    pub marks: Vec<DeathMark>,
    /// Marks left out of the list.
    pub omitted: u64,
}

/// Bytes for people: as they are if they are printable text, else with `\x` escapes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Text(pub String);

impl Text {
    /// At most `bytes_max` of the bytes.
    #[must_use]
    pub fn of(bytes: &[u8], bytes_max: usize) -> Text {
        let shown = &bytes[..bytes.len().min(bytes_max)];
        let plain = std::str::from_utf8(shown).ok();
        let plain = plain.filter(|text| !text.contains(|c: char| c.is_control() || c == '\\'));
        Text(plain.map_or_else(|| shown.escape_ascii().to_string(), str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_plain_where_it_can_be_and_never_ambiguous() {
        assert_eq!(Text::of("Grüße 1".as_bytes(), 100).0, "Grüße 1");
        assert_eq!(Text::of(b"\0key\xff", 100).0, "\\x00key\\xff");
        assert_eq!(Text::of(b"\\x00", 100).0, "\\\\x00");
        assert_eq!(Text::of(b"abcdef", 3).0, "abc");
    }
}
