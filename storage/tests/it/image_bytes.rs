//! A small real store whose bytes are forged under valid checksums: a start may refuse it or read what it says, but never panics.
//!
//! An input is a list of patches: which checksummed piece (2 bytes), where in it (2 bytes), and up to 16 bytes to put there. Every checksum, and
//! what names it in a chain, is made right afterwards, so that mutations reach what lies behind the door.

use std::rc::Rc;

use ringbase_storage::env::Env;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::format::batch::{Log, peek_batch, verify_batch};
use ringbase_storage::format::block::peek_block;
use ringbase_storage::format::crc32c;
use ringbase_storage::format::superblock::Superblock;
use ringbase_storage::inspect::{InspectOptions, Report, inspect_shard};
use ringbase_storage::io::sim::{Crash, SimDisk};
use ringbase_storage::scan::{Content, DocumentEncoder, KeyRange, KeyScan, Limits, SeqnoScan, Stop};
use ringbase_storage::types::{Kind, Seqno, VbId};
use ringbase_storage::vbstore::{NewVersion, ReadView};

use crate::world::{BUCKET, VBUCKETS, new_world, open_shard, put};

const BLOCK: usize = 4096;

/// Patches that are taken from one input.
const PATCHES_MAX: usize = 16;

/// Bytes of a patch.
pub(crate) const PATCH_BYTES: usize = 20;

/// The files of a store with flushed documents, merged runs, marks, and records in the log only.
pub(crate) fn base() -> &'static [Vec<u8>; 2] {
    static BASE: std::sync::OnceLock<[Vec<u8>; 2]> = std::sync::OnceLock::new();
    BASE.get_or_init(|| {
        let (sim, disk, shard, model) = new_world(21);
        sim.block_on(async {
            for round in 0..4u8 {
                for vb in 0..VBUCKETS {
                    let store = shard.vbucket(BUCKET, VbId(vb)).expect("it exists");
                    for n in 0..6 {
                        let key = format!("\0key{}", (n + round) % 9);
                        let value = [round; 40];
                        let value = (n != 3).then_some(&value[..]);
                        let seqno = put(&store, &model, key.as_bytes(), value).await.expect("there is room");
                        assert!(store.wait_persisted(seqno).await);
                    }
                }
                if round < 3 {
                    shard.flush().await.expect("nothing fails");
                }
            }
        });
        drop(sim);
        shard.detach();
        disk.crash_with(Crash::LoseAll, 1);
        ["wal", "data"].map(|name| disk.image(name))
    })
}

/// A checksummed piece of the store.
struct Structure {
    /// Index of the file: log, data.
    file: usize,
    start: usize,
    len: usize,
    superblock: bool,
    /// The batch whose checksum it names.
    previous: Option<usize>,
}

/// Every checksummed piece of the base, batches in the order of their chains.
fn structures() -> &'static [Structure] {
    static STRUCTURES: std::sync::OnceLock<Vec<Structure>> = std::sync::OnceLock::new();
    STRUCTURES.get_or_init(|| {
        let (mut batches, mut rest) = (Vec::new(), Vec::new());
        for (file, image) in base().iter().enumerate() {
            let mut block = 0;
            while block < image.len() / BLOCK {
                let (start, bytes) = (block * BLOCK, &image[block * BLOCK..]);
                let structure = |len, superblock| Structure { file, start, len, superblock, previous: None };
                let uuid = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
                let log = [Log::Wal, Log::Manifest].into_iter().find_map(|log| {
                    let header = peek_batch(log, uuid, bytes, bytes.len()).ok()??;
                    Some((header, verify_batch(log, &header, bytes).ok()?.0))
                });
                block += 1;
                if let Some((header, crc)) = log {
                    batches.push((file, header, crc, structure(header.blocks() as usize * BLOCK, false)));
                    block += header.blocks() as usize - 1;
                } else if Superblock::decode(bytes, block as u64 - 1).is_ok() {
                    rest.push(structure(BLOCK, true));
                } else if let Ok((_, header)) = peek_block(bytes) {
                    let len = (header.blocks as usize * BLOCK).clamp(BLOCK, bytes.len());
                    if crc32c(&bytes[4..len]).to_le_bytes() == bytes[..4] {
                        rest.push(structure(len, false));
                        block += len / BLOCK - 1;
                    }
                }
            }
        }
        batches.sort_by_key(|(file, header, ..)| (*file, header.generation, header.position));
        let mut all: Vec<Structure> = Vec::new();
        let mut before: Option<(usize, u32)> = None;
        for (file, header, crc, structure) in batches {
            let previous = before.filter(|(other, crc)| (*other, *crc) == (file, header.previous_crc));
            let previous = previous.map(|_| all.len() - 1);
            all.push(Structure { previous, ..structure });
            before = Some((file, crc));
        }
        all.extend(rest);
        all
    })
}

/// The base with the patches of an input, every checksum right.
fn forge(bytes: &[u8]) -> [Vec<u8>; 2] {
    let mut images = base().clone();
    let structures = structures();
    for patch in bytes.chunks(PATCH_BYTES).take(PATCHES_MAX).filter(|patch| patch.len() > 4) {
        let structure = &structures[usize::from(u16::from_le_bytes([patch[0], patch[1]])) % structures.len()];
        let at = usize::from(u16::from_le_bytes([patch[2], patch[3]])) % structure.len;
        let target = &mut images[structure.file][structure.start + at..structure.start + structure.len];
        let len = target.len().min(patch.len() - 4);
        target[..len].copy_from_slice(&patch[4..4 + len]);
    }
    let mut crcs = Vec::with_capacity(structures.len());
    for structure in structures {
        let bytes = &mut images[structure.file][structure.start..structure.start + structure.len];
        if let Some(previous) = structure.previous {
            let crc: [u8; 4] = crcs[previous];
            bytes[48..52].copy_from_slice(&crc);
        }
        let from = if structure.superblock { 12 } else { 4 };
        let crc = crc32c(&bytes[from..]).to_le_bytes();
        bytes[from - 4..from].copy_from_slice(&crc);
        crcs.push(crc);
    }
    images
}

/// Reads everything that a view shows, in both orders, as far as it can be read.
async fn read(view: &ReadView) {
    let mut scan = KeyScan::new(view.clone(), KeyRange::collection(0), Content::Keys, None);
    let mut limits = Limits { buffer_bytes: 100, items: None, bytes: None, deadline_ns: None };
    while scan.fill(&mut Vec::new(), &mut limits).await.is_ok_and(|stop| stop != Stop::End) {}
    let encoder: DocumentEncoder = Rc::new(|out, _, key, value| {
        out.extend_from_slice(key);
        out.extend_from_slice(value);
    });
    let range = KeyRange { start: b"key2".to_vec(), ..KeyRange::collection(0) };
    let mut scan = KeyScan::new(view.clone(), range, Content::Documents(encoder), None);
    while scan.fill(&mut Vec::new(), &mut limits).await.is_ok_and(|stop| stop != Stop::End) {}
    let _ = SeqnoScan::new(view.clone(), Seqno(1)).run(|_| true).await;
}

/// Opens the store, reads it in every way, writes to it and closes it; any of it may be refused.
async fn use_store(env: &Env, disk: &SimDisk) {
    let Ok((shard, _)) = open_shard(env, disk).await else { return };
    for store in shard.vbuckets() {
        for n in 0..9 {
            let _ = store.get(format!("\0key{n}").as_bytes()).await;
        }
        if let Ok(view) = store.open_view().await {
            read(&view).await;
        }
        if let Ok(found) = store.get(b"\0key5").await {
            let (key, value, kind) = (&b"\0key5"[..], &b"new"[..], Kind::Mutation);
            let _ = store.write(&found, NewVersion { key, value, flags: 0, expiry: 0, datatype: 0, kind });
        }
    }
    let _ = shard.flush().await;
    for store in shard.vbuckets() {
        if let Ok(view) = store.open_view().await {
            read(&view).await;
        }
    }
    let _ = shard.close().await;
    shard.detach();
}

/// See the module.
pub(crate) fn image(bytes: &[u8]) {
    let images = forge(bytes);
    let everything = InspectOptions {
        manifest: true,
        wal: true,
        fences: true,
        keys: true,
        documents: true,
        limit: 50,
        ..InspectOptions::default()
    };
    let shard = inspect_shard(&images[0], &images[1], &everything);
    let report = Report { path: "forged".into(), shards: vec![shard] };
    report.write_text(&mut std::io::sink()).expect("a sink takes it");
    let (sim, disk) = (SimExecutor::new(1), SimDisk::new(1));
    disk.attach(&sim);
    let [wal, data] = images;
    disk.set_image("wal", wal);
    disk.set_image("data", data);
    let env = sim.env();
    sim.block_on(use_store(&env, &disk));
}

#[test]
fn an_input_without_patches_is_the_store_as_it_was_written() {
    assert_eq!(forge(&[]), *base());
    assert!(structures().len() > 80, "{} structures", structures().len());
    assert!(structures().iter().filter(|structure| structure.previous.is_some()).count() > 40);
    image(&[]);
}
