//! Inspecting root and manifest: both superblock slots, every batch, and the state that they give.
//!
//! Without a readable superblock the manifest is searched for in the whole file. Behind a damaged batch the next one that verifies
//! goes on, and the state is called incomplete.
//!
//! Does not know: what the state's objects hold (`objects`), the log (`log`).

use super::report::{DamageList, ManifestBatch, ManifestReport, ShardReport, SlotReport};
use super::source::{Blocks, Trouble};
use super::{InspectOptions, damage_at};
use crate::format::FormatError;
use crate::format::batch::{BatchHeader, Log, peek_batch, verify_batch};
use crate::format::bytes::u64_at;
use crate::format::manifest_record::Record;
use crate::format::superblock::{FIRST_DATA_BLOCK, SUPERBLOCK_SLOTS, Superblock};
use crate::io::BLOCK_BYTES;
use crate::manifest::{ManifestState, area_blocks};

/// Where a manifest is expected.
struct Area {
    start: u64,
    blocks: u64,
    generation: u64,
    shard_uuid: u64,
    searched: bool,
}

/// What the manifest gives to the rest of the inspection.
#[derive(Default)]
pub(super) struct Root {
    pub(super) shard_uuid: Option<u64>,
    pub(super) state: ManifestState,
}

/// Decodes superblock slots and manifest into `report`.
pub(super) fn inspect_root(
    blocks: &mut Blocks<'_>,
    options: &InspectOptions,
    report: &mut ShardReport,
) -> Root {
    for slot in SUPERBLOCK_SLOTS {
        let decoded = blocks.read(slot, 1).and_then(|block| Ok(Superblock::decode(&block, slot)?));
        let (superblock, error) = match decoded {
            Ok(superblock) => (Some(superblock), None),
            Err(error) => {
                report.damage.add(damage_at("data", slot, "superblock slot".into(), &error));
                (None, Some(error.to_string()))
            }
        };
        report.slots.push(SlotReport { block: slot, superblock, error });
    }
    let newest = report.slots.iter().filter_map(|slot| slot.superblock);
    report.superblock = newest.reduce(|best, next| if next.sequence > best.sequence { next } else { best });
    let area = match &report.superblock {
        Some(superblock) => Some(Area {
            start: superblock.manifest_start,
            blocks: u64::from(superblock.manifest_blocks),
            generation: superblock.manifest_generation,
            shard_uuid: superblock.shard_uuid,
            searched: false,
        }),
        None => search(blocks),
    };
    let Some(area) = area else { return Root::default() };
    let mut state = ManifestState::default();
    report.manifest = Some(walk(blocks, &area, options, &mut state, &mut report.damage));
    Root { shard_uuid: Some(area.shard_uuid), state }
}

/// The newest checkpoint that stands anywhere in the file.
fn search(blocks: &mut Blocks<'_>) -> Option<Area> {
    let mut newest: Option<Area> = None;
    for place in FIRST_DATA_BLOCK..blocks.count() {
        let Ok(block) = blocks.peek(place) else { continue };
        let uuid = u64_at(block, 16);
        let Ok(Some(header)) = peek_batch(Log::Manifest, uuid, block, usize::MAX) else { continue };
        let better = newest.as_ref().is_none_or(|newest| header.generation > newest.generation);
        if header.position != 0 || !better || read_batch(blocks, place, &header).is_err() {
            continue;
        }
        newest = Some(Area {
            start: place,
            blocks: area_blocks(header.blocks()).min(blocks.count() - place),
            generation: header.generation,
            shard_uuid: uuid,
            searched: true,
        });
    }
    newest
}

/// The checksum and payload of a batch.
fn read_batch(blocks: &Blocks<'_>, place: u64, header: &BatchHeader) -> Result<(u32, Vec<u8>), Trouble> {
    let bytes = blocks.read(place, header.blocks())?;
    let (crc, payload) = verify_batch(Log::Manifest, header, &bytes)?;
    Ok((crc, payload.to_vec()))
}

/// A batch that verifies and belongs to this manifest at this place; its checksum and payload.
fn batch_at(
    blocks: &mut Blocks<'_>,
    area: &Area,
    head: u64,
) -> Result<Option<(BatchHeader, u32, Vec<u8>)>, Trouble> {
    let room = (area.blocks - head).saturating_mul(BLOCK_BYTES as u64);
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let place = area.start.saturating_add(head);
    let Some(header) = peek_batch(Log::Manifest, area.shard_uuid, blocks.peek(place)?, room)? else {
        return Ok(None);
    };
    let fields = [("generation", area.generation, header.generation), ("position", head, header.position)];
    for (field, expected, found) in fields {
        if expected != found {
            let what = "manifest batch";
            return Err(FormatError::Identity { what, field, expected, found }.into());
        }
    }
    let (crc, payload) = read_batch(blocks, place, &header)?;
    Ok(Some((header, crc, payload)))
}

/// Every batch of the area that verifies by itself, in order of place.
fn batches_of(blocks: &mut Blocks<'_>, area: &Area) -> Vec<(BatchHeader, u32)> {
    let end = area.blocks.min(blocks.count().saturating_sub(area.start));
    let mut found = Vec::new();
    let mut at = 0;
    while at < end {
        at += match batch_at(blocks, area, at) {
            Ok(Some((header, crc, _))) => {
                found.push((header, crc));
                header.blocks()
            }
            Ok(None) | Err(_) => 1,
        };
    }
    found
}

fn walk(
    blocks: &mut Blocks<'_>,
    area: &Area,
    options: &InspectOptions,
    state: &mut ManifestState,
    damage: &mut DamageList,
) -> ManifestReport {
    let mut report = ManifestReport {
        start: area.start,
        blocks: area.blocks,
        generation: area.generation,
        searched: area.searched,
        ..ManifestReport::default()
    };
    if area.start.checked_add(area.blocks).is_none_or(|end| end > blocks.count()) {
        let (place, file_bytes) = (area.start, blocks.len_bytes());
        let outside = Trouble::Outside { place, blocks: area.blocks, file_bytes };
        damage.add(damage_at("data", area.start, "manifest area".into(), &outside));
    }
    let batches = batches_of(blocks, area);
    // The checkpoint was durable before a superblock named it; later batches say what was durable before them.
    let durable = batches.iter().map(|(header, _)| header.durable).max().unwrap_or(0).max(1);
    let mut previous_crc = 0;
    let mut batches = batches.into_iter().peekable();
    loop {
        let next = batches
            .next_if(|(header, _)| header.position == report.head && header.previous_crc == previous_crc);
        let next = match next {
            Some(next) => Some(next),
            None if durable > report.head => {
                report.incomplete = true;
                damage.add(damage_at(
                    "data",
                    area.start.saturating_add(report.head),
                    "manifest batch".into(),
                    &what_is_wrong(blocks, area, report.head),
                ));
                batches.next()
            }
            None => {
                let torn = report.head < area.blocks && !report.incomplete;
                let end = torn.then(|| batch_at(blocks, area, report.head).err()).flatten();
                report.torn = end.map(|error| error.to_string());
                None
            }
        };
        let Some((header, crc)) = next else { break };
        take_batch(blocks, area, &header, options, state, &mut report, damage);
        previous_crc = crc;
        report.head = header.position + header.blocks();
    }
    report.next_object = state.next_object;
    report.wal_tail = state.wal_tail;
    report.wal_generation = state.wal_generation;
    report.closed = state.closed;
    report
}

/// Why the chain does not go on at `head`.
fn what_is_wrong(blocks: &mut Blocks<'_>, area: &Area, head: u64) -> Trouble {
    let broken = |rule| {
        let (what, field) = ("manifest batch", "position");
        Trouble::Format(FormatError::Invalid { what, field, found: head, rule })
    };
    match batch_at(blocks, area, head) {
        Err(error) => error,
        Ok(None) => broken("a batch stands here"),
        Ok(Some(_)) => broken("follows the batch before it"),
    }
}

/// Applies the records of one batch, as far as they can be.
fn take_batch(
    blocks: &mut Blocks<'_>,
    area: &Area,
    header: &BatchHeader,
    options: &InspectOptions,
    state: &mut ManifestState,
    report: &mut ManifestReport,
    damage: &mut DamageList,
) {
    let place = area.start.saturating_add(header.position);
    report.batches += 1;
    let records = read_batch(blocks, place, header)
        .and_then(|(_, payload)| Ok(Record::decode_all(&payload)?))
        .unwrap_or_else(|error| {
            damage.add(damage_at("data", place, "manifest records".into(), &error));
            report.incomplete = true;
            Vec::new()
        });
    report.records += records.len() as u64;
    if options.manifest {
        if report.list.len() < options.limit {
            let offset = place.saturating_mul(BLOCK_BYTES as u64);
            report.list.push(ManifestBatch { offset, header: *header, records: records.clone() });
        } else {
            report.omitted += 1;
        }
    }
    for record in records {
        if let Err(error) = state.apply(record) {
            damage.add(damage_at("data", place, "manifest change".into(), &error));
            report.incomplete = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_any_manifest_gives_none() {
        let bytes = vec![0xab; 40 * BLOCK_BYTES];
        let mut report = ShardReport::default();
        let root = inspect_root(&mut Blocks::new(&bytes), &InspectOptions::default(), &mut report);
        assert!(root.shard_uuid.is_none() && report.manifest.is_none());
        assert_eq!((report.slots.len(), report.damage.list.len()), (2, 2));
    }
}
