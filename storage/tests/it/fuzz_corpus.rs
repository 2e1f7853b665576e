//! The fuzzers' kept inputs run in every test run; and the seeds among them are made here, from a small real store.
//!
//! `RINGBASE_WRITE_SEEDS=1 cargo test -p ringbase-storage --test it fuzz_corpus::` writes the seeds into `storage/fuzz/corpus`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ringbase_storage::format::batch::{Log, peek_batch, verify_batch};
use ringbase_storage::format::block::{BLOCK_HEADER_BYTES, BlockType, peek_block};

use crate::disk_bytes;
use crate::image_bytes::{PATCH_BYTES, base, image};

/// Seeds of one target, by name.
type Seeds = BTreeMap<String, Vec<u8>>;

/// Seeds that one kind of structure gives at most.
const SEEDS_EACH: usize = 3;

/// A fuzz target: its name, and what it does with bytes.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 7] = [
    ("superblock", disk_bytes::superblock),
    ("batch", disk_bytes::batch),
    ("manifest", disk_bytes::manifest),
    ("key_block", disk_bytes::key_block),
    ("seqlog_block", disk_bytes::seqlog_block),
    ("index", disk_bytes::index),
    ("image", image),
];

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Bytes without the zeroes at their end: the targets pad them again.
fn trimmed(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)].to_vec()
}

/// What a small real store gives each target to begin with.
fn seeds() -> BTreeMap<&'static str, Seeds> {
    let mut all: BTreeMap<&str, Seeds> = BTreeMap::new();
    let [wal, data] = base();
    let mut add = |target, kind: &str, bytes: Vec<u8>| {
        let seeds = all.entry(target).or_default();
        let count = seeds.keys().filter(|name| name.starts_with(kind)).count();
        if count < SEEDS_EACH && !bytes.is_empty() {
            seeds.insert(format!("{kind}-{count}"), bytes);
        }
    };
    for slot in [0, 16] {
        add("superblock", "slot", trimmed(&data[slot * 4096..][..4096]));
    }
    for (image, log) in [(wal, Log::Wal), (data, Log::Manifest)] {
        for start in (0..image.len()).step_by(4096) {
            let bytes = &image[start..];
            let uuid = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
            let Ok(Some(header)) = peek_batch(log, uuid, bytes, bytes.len()) else { continue };
            let Ok((_, payload)) = verify_batch(log, &header, bytes) else { continue };
            add("batch", &format!("{log:?}"), trimmed(&bytes[..header.blocks() as usize * 4096]));
            if log == Log::Manifest {
                add("manifest", "records", payload.to_vec());
            }
        }
    }
    for start in (0..data.len()).step_by(4096) {
        let bytes = &data[start..];
        let Ok((identity, header)) = peek_block(bytes) else { continue };
        let (len, payload_len) = (header.blocks as usize * 4096, header.payload_len as usize);
        let Some(block) = bytes.get(..len).filter(|block| BLOCK_HEADER_BYTES + payload_len <= block.len())
        else {
            continue;
        };
        let payload = block[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + payload_len].to_vec();
        let kind = format!("{:?}", identity.kind);
        match identity.kind {
            BlockType::Keys | BlockType::Metas => add("key_block", &kind, trimmed(block)),
            BlockType::Seqlog => add("seqlog_block", &kind, trimmed(block)),
            BlockType::SeqlogIndex | BlockType::Marks | BlockType::RunIndex => add("index", &kind, payload),
        }
    }
    for place in [0u16, 30, 60, 90, 120] {
        let mut patch = place.to_le_bytes().to_vec();
        patch.extend_from_slice(&(64 + place).to_le_bytes());
        patch.resize(PATCH_BYTES, 0xff);
        add("image", &format!("patch-{place}"), patch);
    }
    all
}

/// G13: no kept input panics, hangs or over-allocates.
#[test]
fn every_kept_input_is_survived() {
    for (target, exercise) in TARGETS {
        let mut count = 0;
        for entry in std::fs::read_dir(corpus(target)).unwrap() {
            exercise(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 1, "{target} has {count} kept inputs");
    }
}

/// Every seed is what its target takes for whole: a seed that is refused at the door leads nowhere.
#[test]
fn the_seeds_are_those_of_a_real_store() {
    let seeds = seeds();
    for (target, _) in TARGETS {
        assert!(seeds.get(target).is_some_and(|seeds| seeds.len() > 1), "{target} has too few seeds");
        for (name, bytes) in &seeds[target] {
            let path = corpus(target).join(name);
            if std::env::var_os("RINGBASE_WRITE_SEEDS").is_some() {
                std::fs::create_dir_all(corpus(target)).unwrap();
                std::fs::write(&path, bytes).unwrap();
            }
            assert!(path.exists(), "{} is missing: see the head of this file", path.display());
        }
    }
    assert!(seeds["batch"].keys().any(|name| name.starts_with("Wal")));
    assert!(seeds["index"].len() > 2 * SEEDS_EACH, "{:?}", seeds["index"].keys());
}
