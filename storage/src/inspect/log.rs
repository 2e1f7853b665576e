//! Inspecting the log: the chain of batches from the tail on, its records, and what its end is.
//!
//! First every batch in the file that verifies by itself is found; from them comes the highest position known durable. Then
//! the chain is walked as replay walks it, but goes on behind damage at the next batch that verifies.
//!
//! Does not know: what a start would do with the records.

use std::collections::BTreeMap;

use super::report::{
    Damage, DamageList, Text, WalBatch, WalRecordReport, WalReport, WalVbReport, WalVerdict,
};
use super::source::{Blocks, Trouble};
use super::{InspectOptions, damage_at};
use crate::format::FormatError;
use crate::format::batch::{BatchHeader, Log, peek_batch, verify_batch};
use crate::format::bytes::u64_at;
use crate::format::wal_record::{WalRecord, decode_wal_record};
use crate::io::BLOCK_BYTES;
use crate::manifest::ManifestState;
use crate::types::{BucketId, KEY_BYTES_MAX, Seqno, VbId};
use crate::wal::{BATCH_BYTES_MAX, WalShape, follows, take_records};

/// A batch in the file that verifies by itself.
#[derive(Clone, Copy)]
struct Entry {
    header: BatchHeader,
    crc: u32,
}

/// Where the log should be, and what is known of it.
pub(super) struct LogAt<'a> {
    pub(super) shape: WalShape,
    pub(super) state: &'a ManifestState,
    /// Absent if no root was found: then the first batch that verifies tells.
    pub(super) shard_uuid: Option<u64>,
}

/// Decodes the log.
pub(super) fn inspect_log(
    blocks: &mut Blocks<'_>,
    at: &LogAt<'_>,
    options: &InspectOptions,
    damage: &mut DamageList,
) -> WalReport {
    let entries = entries_of(blocks, at);
    let tail =
        if at.shard_uuid.is_some() { at.state.wal_tail } else { entries.keys().next().copied().unwrap_or(0) };
    let highest =
        |field: fn(&BatchHeader) -> u64| entries.values().map(|e| field(&e.header)).max().unwrap_or(0);
    let mut walk = Walk {
        at,
        options,
        damage,
        carry: Vec::new(),
        carry_position: 0,
        vbuckets: BTreeMap::new(),
        report: WalReport {
            blocks: at.shape.blocks,
            segment_blocks: at.shape.segment_blocks,
            tail,
            head: tail,
            batches: 0,
            records: 0,
            generation: highest(|header| header.generation),
            durable: highest(|header| header.durable),
            manifest_generation: highest(|header| header.manifest_generation),
            batches_before_tail: entries.range(..tail).count() as u64,
            batches_behind_end: 0,
            verdict: WalVerdict::Whole,
            vbuckets: Vec::new(),
            list: Vec::new(),
            omitted: 0,
        },
    };
    walk.chain(blocks, &entries);
    let mut report = walk.report;
    report.vbuckets = walk.vbuckets.into_values().collect();
    report
}

/// Every batch that verifies by itself and stands where it says, by position.
fn entries_of(blocks: &mut Blocks<'_>, at: &LogAt<'_>) -> BTreeMap<u64, Entry> {
    let shape = &at.shape;
    let mut uuid = at.shard_uuid;
    let mut entries = BTreeMap::new();
    let mut place = 0;
    while place < shape.blocks.min(blocks.count()) {
        let taken = entry_at(blocks, shape, uuid, place);
        place += taken.map_or(1, |(entry, _)| entry.header.blocks());
        if let Some((entry, found)) = taken {
            uuid = Some(found);
            entries.insert(entry.header.position, entry);
        }
    }
    entries
}

fn entry_at(
    blocks: &mut Blocks<'_>,
    shape: &WalShape,
    uuid: Option<u64>,
    place: u64,
) -> Option<(Entry, u64)> {
    let room = usize::try_from(shape.to_segment_end(place)).ok()?.saturating_mul(BLOCK_BYTES);
    let block = blocks.peek(place).ok()?;
    let uuid = uuid.unwrap_or_else(|| u64_at(block, 16));
    let header = peek_batch(Log::Wal, uuid, block, room.min(BATCH_BYTES_MAX)).ok()??;
    if header.position % shape.blocks != place {
        return None;
    }
    let bytes = blocks.read(place, header.blocks()).ok()?;
    let (crc, _) = verify_batch(Log::Wal, &header, &bytes).ok()?;
    Some((Entry { header, crc }, uuid))
}

struct Walk<'a> {
    at: &'a LogAt<'a>,
    options: &'a InspectOptions,
    damage: &'a mut DamageList,
    carry: Vec<u8>,
    carry_position: u64,
    vbuckets: BTreeMap<(BucketId, VbId), WalVbReport>,
    report: WalReport,
}

impl Walk<'_> {
    fn chain(&mut self, blocks: &mut Blocks<'_>, entries: &BTreeMap<u64, Entry>) {
        let tail = self.report.tail;
        let lap_end = tail.saturating_add(self.at.shape.blocks);
        let mut generation = 0;
        let mut previous_crc = None;
        while self.report.head < lap_end {
            let position = self.report.head;
            let entry = entries.get(&position);
            let follows = entry.map(|entry| follows(&entry.header, position, generation, previous_crc));
            let (entry, gap) = match (entry, follows) {
                (Some(entry), Some(Ok(()))) => (entry, false),
                (_, follows) => {
                    let wrong = match follows {
                        Some(Err(error)) => Some(Trouble::from(error)),
                        _ => self.what_is_wrong(blocks, position),
                    };
                    if !self.end(position, wrong) {
                        self.report.batches_behind_end = entries.range(position..).count() as u64;
                        break;
                    }
                    let Some((_, next)) = entries.range(position..lap_end).next() else { break };
                    (next, true)
                }
            };
            if gap || entry.header.generation != generation {
                self.carry.clear();
            }
            self.take(blocks, entry);
            generation = entry.header.generation;
            previous_crc = Some(entry.crc);
            self.report.head = entry.header.position + entry.header.blocks();
        }
        if !self.carry.is_empty() && self.report.verdict == WalVerdict::Whole {
            let error = format!("the record that begins at position {} is not finished", self.carry_position);
            self.report.verdict = WalVerdict::Torn { error };
        }
    }

    /// What stands at a position that is no batch of the chain; nothing if it was never written.
    fn what_is_wrong(&self, blocks: &mut Blocks<'_>, position: u64) -> Option<Trouble> {
        let shape = &self.at.shape;
        let place = position % shape.blocks;
        let block = match blocks.peek(place) {
            Ok(block) => block,
            Err(error) => return Some(error),
        };
        let uuid = self.at.shard_uuid.unwrap_or_else(|| u64_at(block, 16));
        let room = shape.to_segment_end(place).saturating_mul(BLOCK_BYTES as u64).min(BATCH_BYTES_MAX as u64);
        let header = match peek_batch(Log::Wal, uuid, block, room as usize) {
            Ok(None) => return None,
            Ok(Some(header)) => header,
            Err(error) => return Some(error.into()),
        };
        if header.position < position {
            // What an earlier lap left there.
            return None;
        }
        if header.position != position {
            let (what, field) = ("write-ahead log batch", "position");
            let error = FormatError::Identity { what, field, expected: position, found: header.position };
            return Some(error.into());
        }
        let bytes = match blocks.read(place, header.blocks()) {
            Ok(bytes) => bytes,
            Err(error) => return Some(error),
        };
        verify_batch(Log::Wal, &header, &bytes).err().map(Trouble::from)
    }

    /// The chain breaks at `position`. Whether it was durable there and so goes on behind the damage.
    fn end(&mut self, position: u64, wrong: Option<Trouble>) -> bool {
        let text = wrong.map(|error| error.to_string());
        if self.report.durable <= position {
            if let (Some(error), WalVerdict::Whole) = (text, &self.report.verdict) {
                self.report.verdict = WalVerdict::Torn { error };
            }
            return false;
        }
        let error = text.unwrap_or_else(|| "nothing stands there".to_owned());
        self.damage.add(Damage {
            file: "wal",
            offset: self.at.shape.offset(position),
            what: format!("log batch at position {position}, known durable up to {}", self.report.durable),
            error: error.clone(),
        });
        if !matches!(self.report.verdict, WalVerdict::Damaged { .. }) {
            self.report.verdict = WalVerdict::Damaged { position, durable: self.report.durable, error };
        }
        true
    }

    fn take(&mut self, blocks: &Blocks<'_>, entry: &Entry) {
        let header = &entry.header;
        let shape = &self.at.shape;
        let place = header.position % shape.blocks;
        self.report.batches += 1;
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        let taken = blocks.read(place, header.blocks()).and_then(|bytes| {
            let (_, payload) = verify_batch(Log::Wal, header, &bytes)?;
            let (mut carry, mut carry_position) = (std::mem::take(&mut self.carry), self.carry_position);
            let taken = take_records(header, payload, &mut carry, &mut carry_position, |position, bytes| {
                match decode_wal_record(bytes) {
                    Ok(record) => self.note(position, &record, &mut records, &mut errors),
                    Err(error) => errors.push(error.to_string()),
                }
                Ok(())
            });
            (self.carry, self.carry_position) = (carry, carry_position);
            Ok(taken?)
        });
        if let Err(error) = taken {
            self.carry.clear();
            self.damage.add(damage_at("wal", place, "log batch".into(), &error));
        }
        for error in errors {
            let offset = shape.offset(header.position);
            self.damage.add(Damage { file: "wal", offset, what: "log record".into(), error });
        }
        if self.options.wal {
            if self.report.list.len() < self.options.limit {
                let offset = shape.offset(header.position);
                self.report.list.push(WalBatch { offset, header: *header, records });
            } else {
                self.report.omitted += 1;
            }
        }
    }

    fn note(
        &mut self,
        position: u64,
        record: &WalRecord<'_>,
        list: &mut Vec<WalRecordReport>,
        errors: &mut Vec<String>,
    ) {
        self.report.records += 1;
        if !self.options.wants(record.vb) {
            return;
        }
        if !self.at.state.is_gone(record.bucket, record.vb, position) {
            self.follow(record, errors);
        }
        if !self.options.wal {
            return;
        }
        if list.len() >= self.options.limit {
            self.report.omitted += 1;
            return;
        }
        list.push(WalRecordReport {
            bucket: record.bucket,
            vb: record.vb,
            meta: record.meta,
            former: record.former,
            key: Text::of(record.key, KEY_BYTES_MAX),
            value_len: record.value.len() as u64,
            value: self.options.documents.then(|| Text::of(record.value, self.options.value_bytes)),
        });
    }

    /// Whether a record stands right behind the one before it in its vbucket.
    fn follow(&mut self, record: &WalRecord<'_>, errors: &mut Vec<String>) {
        let key = (record.bucket, record.vb);
        let known = self.at.state.vbuckets.get(&key);
        if known.is_none() && self.at.shard_uuid.is_some() {
            errors.push(format!("bucket {} has no vbucket {} in the manifest", record.bucket, record.vb));
        }
        let flushed = known.map_or(Seqno(0), |vb| vb.counts.flushed_seqno);
        let seqno = record.meta.seqno;
        let vb = self.vbuckets.entry(key).or_insert(WalVbReport {
            bucket: record.bucket,
            vb: record.vb,
            records: 0,
            first: seqno,
            last: Seqno(0),
            unflushed: 0,
        });
        let after = if vb.records == 0 { flushed } else { vb.last };
        if seqno.0 > after.0.saturating_add(1) || vb.records > 0 && seqno <= after {
            errors.push(format!("seqno {seqno} of vbucket {} stands behind {after}", record.vb));
        }
        vb.records += 1;
        vb.last = seqno;
        vb.unflushed += u64::from(seqno > flushed);
    }
}
