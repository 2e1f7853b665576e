//! Inspecting what the manifest names: runs, seqlog segments and death marks, block by block.
//!
//! Beside checksums and identities it checks what the engine relies on: keys and seqnos rise, a key's metadata belongs to it, counts
//! add up, no block has two owners.
//!
//! Invariants
//! - At most one structure is held at a time, and at most `limit` entries of it are listed.
//!
//! Does not know: root and manifest (`root`), the log (`log`).

use std::collections::BTreeMap;

use super::report::{
    Damage, DamageList, DocumentReport, FenceReport, KeyReport, MarksReport, RunReport, SegmentReport, Text,
    VbReport,
};
use super::source::{Blocks, Trouble};
use super::{InspectOptions, damage_at};
use crate::format::block::{BLOCK_HEADER_BYTES, BlockIdentity, BlockType, open_block};
use crate::format::index::{KeyFence, SeqlogFence, decode_marks, decode_run_index, decode_seqlog_index};
use crate::format::key_block::{KeyPart, meta_at, put_leb128};
use crate::format::manifest_record::{Extent, MarksDesc, RunDesc, SegmentDesc, VbState};
use crate::format::seqlog_block::SeqlogBlock;
use crate::io::BLOCK_BYTES;
use crate::types::{BucketId, KEY_BYTES_MAX, Seqno, VbId};

/// See the module.
pub(super) struct Objects<'a> {
    blocks: &'a Blocks<'a>,
    options: &'a InspectOptions,
    shard_uuid: u64,
    /// First block to end and owner of every range seen so far.
    owned: BTreeMap<u64, (u64, String)>,
    damage: &'a mut DamageList,
    identity: BlockIdentity,
}

impl<'a> Objects<'a> {
    pub(super) fn new(
        blocks: &'a Blocks<'a>,
        options: &'a InspectOptions,
        shard_uuid: u64,
        damage: &'a mut DamageList,
    ) -> Objects<'a> {
        let (bucket, vb) = (BucketId(0), VbId(0));
        let identity = BlockIdentity { shard_uuid, bucket, vb, object: 0, kind: BlockType::Keys };
        Objects { blocks, options, shard_uuid, owned: BTreeMap::new(), damage, identity }
    }

    /// Notes who owns a range, and names the other owner if there is one.
    pub(super) fn own(&mut self, extent: Extent, owner: &str) {
        let end = extent.start.saturating_add(u64::from(extent.blocks));
        let clash =
            self.owned.range(..end).next_back().filter(|(_, (other_end, _))| *other_end > extent.start);
        if let Some((start, (_, other))) = clash {
            let error = format!("also owned by {other} from block {start} on");
            self.say(extent.start, owner.to_owned(), error);
        }
        if end > self.blocks.count() {
            let file_bytes = self.blocks.len_bytes();
            let outside = Trouble::Outside { place: extent.start, blocks: extent.blocks.into(), file_bytes };
            self.damage.add(damage_at("data", extent.start, owner.to_owned(), &outside));
        }
        self.owned.insert(extent.start, (end, owner.to_owned()));
    }

    fn say(&mut self, place: u64, what: String, error: String) {
        let offset = place.saturating_mul(BLOCK_BYTES as u64);
        self.damage.add(Damage { file: "data", offset, what, error });
    }

    /// Notes the ranges of a vbucket.
    pub(super) fn own_vbucket(&mut self, vb: &VbState) {
        let name = |what: &str, id: u64| format!("{what} {id:#x} of vbucket {}", vb.vb);
        for run in &vb.runs {
            run.extents.iter().chain([&run.index]).for_each(|extent| self.own(*extent, &name("run", run.id)));
        }
        for segment in &vb.segments {
            let extents = segment.extents.iter().chain([&segment.index]);
            extents.for_each(|extent| self.own(*extent, &name("segment", segment.id)));
        }
        for marks in &vb.marks {
            self.own(marks.block, &name("marks", marks.id));
        }
    }

    /// Reads a vbucket's objects.
    pub(super) fn vbucket(&mut self, vb: &VbState) -> VbReport {
        self.identity = BlockIdentity {
            shard_uuid: self.shard_uuid,
            bucket: vb.bucket,
            vb: vb.vb,
            object: 0,
            kind: BlockType::Keys,
        };
        let total = |extents: &[Extent], index: Extent| {
            extents.iter().map(|extent| u64::from(extent.blocks)).sum::<u64>() + u64::from(index.blocks)
        };
        let runs: u64 = vb.runs.iter().map(|run| total(&run.extents, run.index)).sum();
        let segments: u64 = vb.segments.iter().map(|one| total(&one.extents, one.index)).sum();
        let marks: u64 = vb.marks.iter().map(|marks| u64::from(marks.block.blocks)).sum();
        VbReport {
            bucket: vb.bucket,
            vb: vb.vb,
            state: vb.state,
            failover_log: vb.failover_log.clone(),
            counts: vb.counts,
            purged: vb.purged.clone(),
            disk_bytes: (runs + segments + marks).saturating_mul(BLOCK_BYTES as u64),
            runs: vb.runs.iter().map(|run| self.run(run)).collect(),
            segments: vb.segments.iter().map(|segment| self.segment(segment)).collect(),
            marks: vb.marks.iter().map(|marks| self.marks(marks, vb.counts.flushed_seqno)).collect(),
        }
    }

    fn open(&self, object: u64, kind: BlockType, place: u64, blocks: u64) -> Result<Vec<u8>, Trouble> {
        let bytes = self.blocks.read(place, blocks)?;
        open_block(&BlockIdentity { object, kind, ..self.identity }, place, &bytes)?;
        Ok(bytes)
    }

    /// The payload of an index or mark block.
    fn payload(&self, object: u64, kind: BlockType, at: Extent) -> Result<Vec<u8>, Trouble> {
        let mut bytes = self.open(object, kind, at.start, at.blocks.into())?;
        let len = crate::format::bytes::u32_at(&bytes, 52) as usize;
        bytes.truncate(BLOCK_HEADER_BYTES + len);
        Ok(bytes.split_off(BLOCK_HEADER_BYTES))
    }

    fn name(&self, what: &str, id: u64) -> String {
        format!("{what} of {id:#x} of vbucket {}", self.identity.vb)
    }

    fn run(&mut self, desc: &RunDesc) -> RunReport {
        let mut report = RunReport {
            desc: desc.clone(),
            parts: 0,
            filter_bytes: 0,
            parts_verified: 0,
            fences: Vec::new(),
            keys: Vec::new(),
            omitted: 0,
        };
        let index = self.payload(desc.id, BlockType::RunIndex, desc.index).and_then(|payload| {
            let (fences, filter) = decode_run_index(&payload)?;
            report.filter_bytes = filter.len() as u64;
            Ok(fences)
        });
        let fences = match index {
            Ok(fences) => fences,
            Err(error) => {
                let what = self.name("index of run", desc.id);
                self.damage.add(damage_at("data", desc.index.start, what, &error));
                return report;
            }
        };
        report.parts = fences.len() as u64;
        if self.options.fences {
            let shown = fences.iter().take(self.options.limit);
            report.fences = shown.map(fence_report).collect();
            report.omitted += fences.len().saturating_sub(self.options.limit) as u64;
        }
        if self.options.quick {
            return report;
        }
        let mut totals = RunTotals::default();
        for fence in &fences {
            match self.key_part(desc, fence, &mut totals, &mut report) {
                Ok(()) => report.parts_verified += 1,
                Err(error) => {
                    let what = self.name("key part of run", desc.id);
                    self.damage.add(damage_at("data", fence.place, what, &error));
                }
            }
        }
        let expected = RunTotals {
            records: desc.records,
            tombstones: desc.tombstones,
            key_bytes: desc.key_bytes,
            seqno: desc.last,
            key: totals.key.clone(),
        };
        if report.parts_verified == report.parts && totals != expected {
            let error = format!("holds {totals}, the manifest says {expected}");
            self.say(desc.index.start, self.name("run", desc.id), error);
        }
        report
    }

    fn key_part(
        &mut self,
        desc: &RunDesc,
        fence: &KeyFence,
        totals: &mut RunTotals,
        report: &mut RunReport,
    ) -> Result<(), Trouble> {
        let identity = BlockIdentity { object: desc.id, kind: BlockType::Keys, ..self.identity };
        let block = self.blocks.read(fence.place, fence.key_blocks.into())?;
        let part = KeyPart::open(&identity, fence.place, &block)?;
        let meta_place = fence.place.saturating_add(u64::from(fence.key_blocks));
        let metas = self.open(desc.id, BlockType::Metas, meta_place, fence.meta_blocks.into());
        let metas = metas.map_err(|error| {
            let what = self.name("metadata part of run", desc.id);
            self.damage.add(damage_at("data", meta_place, what, &error));
        });
        let mut wrong = Vec::new();
        if part.records != fence.records || part.first != totals.records {
            let (found, first) = (part.records, part.first);
            wrong
                .push(format!("holds {found} keys from number {first} on, its fence says {}", fence.records));
        }
        let mut prefix = Vec::new();
        put_leb128(&mut prefix, part.collection);
        for index in 0..part.records as usize {
            let logical = part.key(&block, index);
            let key = [&prefix, logical].concat();
            if index == 0 && *key != *fence.first_key {
                wrong.push("its first key is not the one of its fence".to_owned());
            }
            if totals.key.as_ref().is_some_and(|before| *before >= key) {
                wrong.push(format!("key {index} does not rise above the one before"));
            }
            let (seqno, deleted) = part.seqno(&block, index);
            totals.add(&key, seqno, deleted);
            totals.key = Some(key);
            let meta = match metas.as_ref().map(|metas| meta_at(metas, index)) {
                Ok(Ok(meta)) if meta.item.seqno == seqno && meta.item.kind.is_deleted() == deleted => {
                    Some(meta)
                }
                Ok(Ok(meta)) => {
                    wrong.push(format!("key {index} has seqno {seqno}, its metadata {}", meta.item.seqno));
                    Some(meta)
                }
                Ok(Err(error)) => {
                    wrong.push(error.to_string());
                    None
                }
                Err(()) => None,
            };
            if !self.options.keys {
                continue;
            }
            if report.keys.len() >= self.options.limit {
                report.omitted += 1;
                continue;
            }
            let (collection, key) = (part.collection, Text::of(logical, KEY_BYTES_MAX));
            report.keys.push(KeyReport { collection, key, meta, seqno, deleted });
        }
        for error in wrong.into_iter().take(WRONG_MAX) {
            self.say(fence.place, self.name("key part of run", desc.id), error);
        }
        Ok(())
    }

    fn segment(&mut self, desc: &SegmentDesc) -> SegmentReport {
        let mut report = SegmentReport {
            desc: desc.clone(),
            blocks: 0,
            blocks_verified: 0,
            fences: Vec::new(),
            documents: Vec::new(),
            omitted: 0,
        };
        let index = self.payload(desc.id, BlockType::SeqlogIndex, desc.index);
        let (fences, _) = match index.and_then(|payload| Ok(decode_seqlog_index(&payload)?)) {
            Ok(fences) => fences,
            Err(error) => {
                let what = self.name("index of segment", desc.id);
                self.damage.add(damage_at("data", desc.index.start, what, &error));
                return report;
            }
        };
        report.blocks = fences.len() as u64;
        let records: u64 = fences.iter().map(|fence| u64::from(fence.records)).sum();
        let ends = (fences.first().map(|fence| fence.first), fences.last().map(|fence| fence.last));
        if (records, ends) != (desc.records, (Some(desc.first), Some(desc.last))) {
            let error = format!("its fences hold {records} records, the manifest says {}", desc.records);
            self.say(desc.index.start, self.name("index of segment", desc.id), error);
        }
        if self.options.fences {
            report.fences = fences.iter().take(self.options.limit).copied().collect();
            report.omitted += fences.len().saturating_sub(self.options.limit) as u64;
        }
        if self.options.quick {
            return report;
        }
        for fence in &fences {
            match self.seqlog_block(desc, fence, &mut report) {
                Ok(()) => report.blocks_verified += 1,
                Err(error) => {
                    let what = self.name("block of segment", desc.id);
                    self.damage.add(damage_at("data", fence.place, what, &error));
                }
            }
        }
        report
    }

    fn seqlog_block(
        &mut self,
        desc: &SegmentDesc,
        fence: &SeqlogFence,
        report: &mut SegmentReport,
    ) -> Result<(), Trouble> {
        let identity = BlockIdentity { object: desc.id, kind: BlockType::Seqlog, ..self.identity };
        let bytes = self.blocks.read(fence.place, fence.blocks.into())?;
        let block = SeqlogBlock::open(&identity, fence.place, &bytes)?;
        let mut wrong = Vec::new();
        if block.records != fence.records || block.first != fence.first {
            wrong.push(format!("holds {} records, its fence says {}", block.records, fence.records));
        }
        let mut after = Seqno(fence.first.0.saturating_sub(1));
        for index in 0..block.records as usize {
            let record = block.record(&bytes, index)?;
            let seqno = record.meta.seqno;
            if seqno <= after || seqno > fence.last {
                wrong.push(format!("record {index} has seqno {seqno} behind {after}"));
            }
            if record.frame[6..8] != self.identity.vb.0.to_be_bytes() {
                wrong.push(format!("record {index} is of another vbucket"));
            }
            after = seqno;
            if !self.options.documents {
                continue;
            }
            if report.documents.len() >= self.options.limit {
                report.omitted += 1;
                continue;
            }
            report.documents.push(DocumentReport {
                meta: record.meta,
                key: Text::of(record.key, KEY_BYTES_MAX),
                value_len: record.value.len() as u64,
                value: Text::of(record.value, self.options.value_bytes),
            });
        }
        for error in wrong.into_iter().take(WRONG_MAX) {
            self.say(fence.place, self.name("block of segment", desc.id), error);
        }
        Ok(())
    }

    fn marks(&mut self, desc: &MarksDesc, flushed: Seqno) -> MarksReport {
        let mut report = MarksReport { desc: desc.clone(), verified: false, marks: Vec::new(), omitted: 0 };
        let marks = self.payload(desc.id, BlockType::Marks, desc.block);
        let marks = match marks.and_then(|payload| Ok(decode_marks(&payload)?)) {
            Ok(marks) => marks,
            Err(error) => {
                let what = self.name("marks", desc.id);
                self.damage.add(damage_at("data", desc.block.start, what, &error));
                return report;
            }
        };
        report.verified = true;
        // Records that are dead, and those that superseded them, may be gone; but nothing is marked that was not flushed.
        let strays = marks.iter().filter(|mark| mark.by > flushed).count();
        if strays > 0 || marks.len() as u64 != desc.marks {
            let (found, expected) = (marks.len(), desc.marks);
            let error = format!("holds {found} marks of {expected}, {strays} of them behind what is flushed");
            self.say(desc.block.start, self.name("marks", desc.id), error);
        }
        if self.options.documents {
            report.marks = marks.iter().take(self.options.limit).copied().collect();
            report.omitted = marks.len().saturating_sub(self.options.limit) as u64;
        }
        report
    }
}

/// Contradictions named for one block.
const WRONG_MAX: usize = 8;

#[derive(Debug, Default, PartialEq, Eq)]
struct RunTotals {
    records: u64,
    tombstones: u64,
    key_bytes: u64,
    seqno: Seqno,
    /// The last key so far.
    key: Option<Vec<u8>>,
}

impl RunTotals {
    fn add(&mut self, key: &[u8], seqno: Seqno, deleted: bool) {
        self.records += 1;
        self.tombstones += u64::from(deleted);
        self.key_bytes += key.len() as u64;
        self.seqno = self.seqno.max(seqno);
    }
}

impl std::fmt::Display for RunTotals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RunTotals { records, tombstones, key_bytes, seqno, .. } = self;
        write!(f, "{records} keys ({tombstones} deleted) of {key_bytes} bytes up to seqno {seqno}")
    }
}

fn fence_report(fence: &KeyFence) -> FenceReport {
    FenceReport {
        first_key: Text::of(&fence.first_key, KEY_BYTES_MAX),
        place: fence.place,
        key_blocks: fence.key_blocks,
        meta_blocks: fence.meta_blocks,
        records: fence.records,
    }
}
