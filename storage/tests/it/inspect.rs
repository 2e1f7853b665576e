//! `inspect` on whole, damaged and truncated stores: it says what is there, names what is damaged, and survives anything.

use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::inspect::{
    InspectOptions, ShardReport, VbReport, WalVerdict, inspect_dir, inspect_shard,
};
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::types::{Seqno, VbId};

use crate::damage::{SECTOR, build, read_all};
use crate::world::{BUCKET, Model, VBUCKETS};

const EVERYTHING: InspectOptions = InspectOptions {
    quick: false,
    manifest: true,
    wal: true,
    fences: true,
    keys: true,
    documents: true,
    vbucket: None,
    limit: 100_000,
    value_bytes: 16,
};

fn inspect(disk: &SimDisk, options: &InspectOptions) -> ShardReport {
    inspect_shard(&disk.image("wal"), &disk.image("data"), options)
}

/// Everything that the report lists is what the model wrote, and nothing is missing.
fn compare(report: &ShardReport, model: &Model) {
    assert_eq!(report.vbuckets.len(), usize::from(VBUCKETS));
    for (vb, known) in report.vbuckets.iter().zip(model.borrow().iter()) {
        let mut written: Vec<(u64, String, u64)> = Vec::new();
        for document in vb.segments.iter().flat_map(|segment| &segment.documents) {
            written.push((document.meta.seqno.0, document.key.0.clone(), document.value_len));
        }
        let log = report.wal.as_ref().unwrap().list.iter().flat_map(|batch| &batch.records);
        for record in log.filter(|record| record.vb == vb.vb && record.meta.seqno > vb.counts.flushed_seqno) {
            written.push((record.meta.seqno.0, record.key.0.clone(), record.value_len));
        }
        // A memtable keeps the newest version of a key: what it had replaced is in no segment.
        for (seqno, key, value_len) in &written {
            let write = &known.writes[*seqno as usize - 1];
            assert_eq!(*key, write.key.escape_ascii().to_string(), "vb {} seqno {seqno}", vb.vb);
            assert_eq!(*value_len, write.value.as_ref().map_or(0, Vec::len) as u64, "vb {} {seqno}", vb.vb);
        }
        let newest = known.at(Seqno(known.writes.len() as u64));
        for (key, (seqno, _)) in newest {
            assert!(written.iter().any(|(found, ..)| *found == seqno), "vb {} {key:?} is missing", vb.vb);
        }
        assert_eq!(vb.failover_log[0].uuid.0, known.uuids[0]);
        check_runs(vb);
    }
}

fn check_runs(vb: &VbReport) {
    for run in &vb.runs {
        assert_eq!((run.parts, run.omitted), (run.parts_verified, 0));
        assert_eq!(run.keys.len() as u64, run.desc.records);
        assert_eq!(run.fences.len() as u64, run.parts);
        for key in &run.keys {
            let meta = key.meta.expect("metadata verifies");
            assert_eq!((meta.item.seqno, meta.item.kind.is_deleted()), (key.seqno, key.deleted));
        }
    }
    for segment in &vb.segments {
        assert_eq!(
            (segment.blocks, segment.documents.len() as u64),
            (segment.blocks_verified, segment.desc.records)
        );
    }
    assert!(vb.marks.iter().all(|marks| marks.verified && marks.marks.len() as u64 == marks.desc.marks));
}

#[test]
fn a_whole_store_is_shown_as_it_was_written_and_nothing_is_called_damaged() {
    for (seed, close) in [(11, true), (11, false), (12, false), (13, true)] {
        let (disk, model) = build(seed, close);
        let report = inspect(&disk, &EVERYTHING);
        assert!(report.damage.list.is_empty(), "seed {seed}: {:?}", report.damage.list);
        let (manifest, wal) = (report.manifest.as_ref().unwrap(), report.wal.as_ref().unwrap());
        assert_eq!((manifest.closed, manifest.incomplete, manifest.searched), (close, false, false));
        assert_eq!(wal.verdict, WalVerdict::Whole, "seed {seed}");
        assert_eq!(close, wal.vbuckets.iter().all(|vb| vb.unflushed == 0), "seed {seed}");
        assert_eq!(report.buckets[0].name, "default");
        assert!(report.vbuckets.iter().all(|vb| !vb.runs.is_empty() && !vb.marks.is_empty()));
        compare(&report, &model);
    }
}

/// The files of a data directory and those of one shard are found; text and JSON say the same and the limits hold.
#[test]
fn a_data_directory_is_shown_as_text_and_as_json_within_the_limits() {
    let (disk, _) = build(11, false);
    let directory = tempfile::tempdir().unwrap();
    for shard in ["shard-0", "shard-10", "shard-2"] {
        std::fs::create_dir(directory.path().join(shard)).unwrap();
        for file in ["wal", "data"] {
            std::fs::write(directory.path().join(shard).join(file), disk.image(file)).unwrap();
        }
    }
    let before: Vec<_> = ["wal", "data"].map(|file| directory.path().join("shard-0").join(file)).to_vec();
    let options = InspectOptions { limit: 3, vbucket: Some(VbId(2)), ..EVERYTHING };
    let report = inspect_dir(directory.path(), &options).unwrap();
    assert!(!report.is_damaged());
    let paths: Vec<bool> = report
        .shards
        .iter()
        .zip(["shard-0", "shard-2", "shard-10"])
        .map(|(shard, name)| shard.path.ends_with(name))
        .collect();
    assert_eq!(paths, [true; 3]);
    let json = serde_json::to_value(&report).unwrap();
    let shard = &json["shards"][0];
    assert_eq!(shard["vbuckets"].as_array().unwrap().len(), 1);
    assert_eq!(shard["vbuckets"][0]["vb"], 2);
    assert_eq!(shard["vbuckets"][0]["bucket"], BUCKET.0);
    assert_eq!(shard["wal"]["verdict"]["is"], "whole");
    assert_eq!(shard["wal"]["list"].as_array().unwrap().len(), 3);
    assert!(shard["wal"]["omitted"].as_u64().unwrap() > 0);
    let run = &shard["vbuckets"][0]["runs"][0];
    assert_eq!(run["keys"].as_array().unwrap().len(), 3);
    assert!(run["omitted"].as_u64().unwrap() > 0);
    let mut text = Vec::new();
    report.write_text(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    for part in ["3 shards", "vb 2: state 1", "failover log:", "`key", "whole", "damaged places: 0", "more"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(!text.contains("vb 3: state"));
    let one = inspect_dir(&directory.path().join("shard-2"), &InspectOptions::default()).unwrap();
    assert_eq!(one.shards.len(), 1);
    for (path, file) in before.iter().zip(["wal", "data"]) {
        assert_eq!(std::fs::read(path).unwrap(), disk.image(file), "inspect never writes");
    }
}

/// One flipped bit in each sector in turn: no panic, and whatever a start or a read notices, inspect names, with a place in the right file.
#[test]
fn a_flipped_bit_in_any_sector_is_survived_and_named_if_it_matters() {
    let (disk, model) = build(11, true);
    let (mut noticed, mut named) = (0, 0);
    for name in ["data", "wal"] {
        let images = [disk.image("wal"), disk.image("data")];
        let image = disk.image(name);
        for sector in 0..image.len() / SECTOR {
            if image[sector * SECTOR..][..SECTOR].iter().all(|&byte| byte == 0) && sector % 64 != 0 {
                continue;
            }
            let mut bad = image.clone();
            let bit = (sector * 37) % (SECTOR * 8);
            bad[sector * SECTOR + bit / 8] ^= 1 << (bit % 8);
            disk.set_image(name, bad);
            let report = inspect(&disk, &EVERYTHING);
            let mut text = Vec::new();
            let whole = ringbase_storage::inspect::Report { path: "store".into(), shards: vec![report] };
            whole.write_text(&mut text).unwrap();
            let damage = &whole.shards[0].damage.list;
            named += usize::from(whole.is_damaged());
            if sector % 5 == 0 {
                let sim = SimExecutor::new(sector as u64);
                disk.attach(&sim);
                let env = sim.env();
                if let Err(error) = sim.block_on(read_all(&disk, &env, &model)) {
                    noticed += 1;
                    let there = damage.iter().any(|damage| damage.file == name);
                    assert!(there, "sector {sector} of {name}: {error}, inspect says {damage:?}");
                }
            }
            disk.set_image("wal", images[0].clone());
            disk.set_image("data", images[1].clone());
        }
    }
    assert!(noticed > 20 && named > 100, "{noticed} noticed, {named} named");
}

/// Behind a damaged place inspect goes on: the other vbuckets, and what is behind the damage in the log, are shown as ever.
#[test]
fn what_is_not_damaged_is_still_shown() {
    let (disk, _) = build(5, false);
    let whole = inspect(&disk, &EVERYTHING);
    let wal = whole.wal.as_ref().unwrap();
    let target = &wal.list[wal.list.len() / 2];
    let mut image = disk.image("wal");
    image[target.offset as usize + 70] ^= 1;
    disk.set_image("wal", image);
    let report = inspect(&disk, &EVERYTHING);
    let damaged = report.wal.as_ref().unwrap();
    assert!(
        matches!(damaged.verdict, WalVerdict::Damaged { position, .. } if position == target.header.position)
    );
    assert_eq!(damaged.head, wal.head);
    assert_eq!(damaged.batches + 1, wal.batches);
    assert!(report.damage.list.iter().any(|damage| damage.file == "wal" && damage.offset == target.offset));

    let run = &whole.vbuckets[1].runs[0];
    let place = run.fences[0].place as usize * 4096;
    let mut image = disk.image("data");
    image[place + 200] ^= 1;
    disk.set_image("data", image);
    let report = inspect(&disk, &EVERYTHING);
    assert_eq!(report.vbuckets[1].runs[0].parts_verified + 1, run.parts);
    assert_eq!(report.vbuckets[0].runs[0].keys.len(), whole.vbuckets[0].runs[0].keys.len());
    assert!(report.damage.list.iter().any(|damage| damage.file == "data" && damage.offset == place as u64));
}

/// Without a superblock the newest manifest is found by searching, and everything is still shown.
#[test]
fn a_store_without_superblocks_is_still_shown() {
    let (disk, model) = build(7, false);
    let mut image = disk.image("data");
    for slot in [0, 16] {
        image[slot * 4096..][..4096].fill(0xee);
    }
    disk.set_image("data", image);
    let report = inspect(&disk, &EVERYTHING);
    assert!(report.manifest.as_ref().unwrap().searched);
    assert_eq!(report.damage.list.len(), 2, "{:?}", report.damage.list);
    compare(&report, &model);
}

/// Files cut anywhere, also in the middle of a block, and files swapped for each other.
#[test]
fn truncated_and_swapped_files_are_survived() {
    let (disk, _) = build(7, true);
    let (wal, data) = (disk.image("wal"), disk.image("data"));
    let whole = inspect(&disk, &EVERYTHING);
    let indexes = whole.vbuckets.iter().flat_map(|vb| vb.runs.iter().map(|run| run.desc.index));
    let end = indexes.map(|index| (index.start as usize + index.blocks as usize) * 4096).max().unwrap();
    for len in (0..data.len()).step_by(4096 - 512).chain([data.len() - 1]) {
        let report = inspect_shard(&wal, &data[..len].to_vec(), &EVERYTHING);
        assert!(len >= end || !report.damage.list.is_empty(), "data cut at {len}");
    }
    for len in (0..wal.len()).step_by(4096 - 512).chain([wal.len() - 1]) {
        let report = inspect_shard(&wal[..len].to_vec(), &data, &EVERYTHING);
        assert!(!report.damage.list.is_empty(), "log cut at {len}");
    }
    assert!(!inspect_shard(&data, &wal, &EVERYTHING).damage.list.is_empty());
}

/// A torn tail is told from damage, as the next start tells it.
#[test]
fn a_torn_tail_is_shown_and_is_not_damage() {
    let (disk, _) = build(5, false);
    let whole = inspect(&disk, &EVERYTHING);
    let last = whole.wal.as_ref().unwrap().list.last().unwrap().clone();
    let mut image = disk.image("wal");
    image[last.offset as usize + 80] ^= 1;
    disk.set_image("wal", image);
    let report = inspect(&disk, &EVERYTHING);
    let wal = report.wal.as_ref().unwrap();
    assert!(
        matches!(&wal.verdict, WalVerdict::Torn { error } if error.contains("checksum")),
        "{:?}",
        wal.verdict
    );
    assert_eq!(wal.head, last.header.position);
    assert!(report.damage.list.is_empty(), "{:?}", report.damage.list);
}
