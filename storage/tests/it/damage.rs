//! Damage on the medium: a flipped bit in any sector is an error where it matters, or changes nothing; it is never served.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::RngExt;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::format::batch::{Log, peek_batch};
use ringbase_storage::io::sim::{Fault, Injection, SimDisk};
use ringbase_storage::mutant::Mutant;
use ringbase_storage::types::{Seqno, VbId};
use ringbase_storage::vbstore::{Found, WriteError};

use crate::world::{BUCKET, Model, VBUCKETS, format_shard, new_world, open_shard, put, rng, with_mutant};

pub(crate) const SECTOR: usize = 512;

/// A small store with flushed documents, overwritten and deleted ones, and others only in the log.
pub(crate) fn build(seed: u64, close: bool) -> (SimDisk, Model) {
    let (sim, disk, shard, model) = new_world(seed);
    let mut random = rng(seed);
    sim.block_on(async {
        for round in 0..3 {
            for vb in 0..VBUCKETS {
                let store = shard.vbucket(BUCKET, VbId(vb)).unwrap();
                for _ in 0..12 {
                    let key = format!("\0key{:02}", random.random_range(0..20));
                    let value = vec![random.random::<u8>(); random.random_range(0..900)];
                    let value = random.random_bool(0.9).then_some(&value[..]);
                    match put(&store, &model, key.as_bytes(), value).await {
                        Ok(seqno) => assert!(store.wait_persisted(seqno).await),
                        Err(WriteError::Busy { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            if round < 2 {
                shard.flush().await.unwrap();
            }
        }
        if close {
            shard.close().await.unwrap();
        }
    });
    drop(sim);
    shard.detach();
    disk.crash_with(ringbase_storage::io::sim::Crash::LoseAll, seed);
    (disk, model)
}

/// What reading everything back gives: an error somewhere is fine, another answer than the model's is not.
pub(crate) async fn read_all(
    disk: &SimDisk,
    env: &ringbase_storage::env::Env,
    model: &Model,
) -> Result<(), String> {
    let (shard, _) = open_shard(env, disk).await.map_err(|error| error.to_string())?;
    // No damaged block is rewritten as if it were whole.
    shard.compact().await;
    let mut failure = None;
    for vb in 0..VBUCKETS {
        let store = shard.vbucket(BUCKET, VbId(vb)).unwrap();
        let known = model.borrow()[vb as usize].clone();
        assert_eq!(store.high_seqno(), Seqno(known.writes.len() as u64), "vb {vb} lost durable writes");
        for (key, (seqno, value)) in known.at(store.high_seqno()) {
            match store.get(&key).await {
                Ok(Found::Version(item)) => {
                    let found = (!item.is_deleted()).then(|| item.value().to_vec());
                    assert_eq!((item.seqno().0, found), (seqno, value), "wrong answer for {key:?}");
                }
                Ok(Found::Absent) => panic!("{key:?} is gone"),
                Err(error) => failure = Some(error.to_string()),
            }
        }
    }
    shard.detach();
    failure.map_or(Ok(()), Err)
}

/// Flips one bit in every sector of both files, one at a time; returns how many were noticed.
fn flip_every_sector(disk: &SimDisk, model: &Model, skip_wal: bool) -> usize {
    let mut noticed = 0;
    for name in ["data", "wal"].into_iter().take(if skip_wal { 1 } else { 2 }) {
        let image = disk.image(name);
        let other = if name == "data" { "wal" } else { "data" };
        let other_image = disk.image(other);
        for sector in 0..image.len() / SECTOR {
            if image[sector * SECTOR..][..SECTOR].iter().all(|&byte| byte == 0) && sector % 64 != 0 {
                continue;
            }
            let mut bad = image.clone();
            let bit = (sector * 37) % (SECTOR * 8);
            bad[sector * SECTOR + bit / 8] ^= 1 << (bit % 8);
            disk.set_image(name, bad);
            disk.set_image(other, other_image.clone());
            let sim = SimExecutor::new(sector as u64);
            disk.attach(&sim);
            let env = sim.env();
            noticed += usize::from(sim.block_on(read_all(disk, &env, model)).is_err());
        }
        disk.set_image(name, image);
        disk.set_image(other, other_image);
    }
    noticed
}

/// G3, G4: a cleanly closed store answers right or not at all, whichever sector has a flipped bit.
#[test]
fn a_flipped_bit_in_any_sector_is_noticed_or_changes_nothing() {
    let (disk, model) = build(11, true);
    let noticed = flip_every_sector(&disk, &model, false);
    assert!(noticed > 50, "only {noticed} flips were noticed");
}

/// G3: the checker notices a build that does not look at checksums.
#[test]
fn not_looking_at_block_checksums_is_caught() {
    let (disk, model) = build(11, true);
    let caught = with_mutant(Mutant::NoBlockCheck, || {
        catch_unwind(AssertUnwindSafe(|| flip_every_sector(&disk, &model, true))).is_err()
    });
    assert!(caught);
}

/// Flips a bit in a batch of the log that a later batch knew durable; `Err` names what opening said.
fn open_with_damaged_log(seed: u64) -> Result<(), String> {
    let (disk, model) = build(seed, false);
    let mut image = disk.image("wal");
    let uuid =
        ringbase_storage::format::superblock::Superblock::decode(&disk.image("data")[..4096], 0).unwrap();
    // Each write was committed by itself, so all batches but the last are known durable.
    let mut batches: Vec<(u64, usize)> = (0..image.len() / 4096)
        .filter_map(|block| {
            let peeked = peek_batch(Log::Wal, uuid.shard_uuid, &image[block * 4096..][..4096], 1 << 20);
            Some((peeked.ok()??.position, block))
        })
        .collect();
    batches.sort_unstable();
    let target = batches[batches.len() - 5].1;
    image[target * 4096 + 70] ^= 1;
    disk.set_image("wal", image);
    let sim = SimExecutor::new(seed);
    disk.attach(&sim);
    let env = sim.env();
    sim.block_on(read_all(&disk, &env, &model))
}

/// G4: damage before the durable position is reported, and nothing is cut.
#[test]
fn a_damaged_log_is_reported_and_never_cut() {
    let error = open_with_damaged_log(5).unwrap_err();
    assert!(error.contains("write-ahead log"), "{error}");
}

/// G4: the checker notices a build that takes all damage for a torn tail.
#[test]
fn cutting_damage_is_caught() {
    let caught = with_mutant(Mutant::CutDamage, || catch_unwind(|| open_with_damaged_log(5)).is_err());
    assert!(caught);
}

/// G7: a failed sync is final. Nothing is reported persisted after it, writes are refused, reads go on.
#[test]
fn a_failed_sync_of_the_log_stops_writes_for_good_and_reads_go_on() {
    let (sim, disk, shard, model) = new_world(3);
    sim.block_on(async {
        let store = shard.vbucket(BUCKET, VbId(0)).unwrap();
        let first = put(&store, &model, b"\0a", Some(b"1")).await.unwrap();
        assert!(store.wait_persisted(first).await);
        disk.inject(Injection::next(Fault::SyncError).on("wal"));
        let second = put(&store, &model, b"\0b", Some(b"2")).await.unwrap();
        assert!(!store.wait_persisted(second).await, "nothing is acknowledged after a failed sync");
        assert_eq!(store.persisted_seqno(), first);
        let refused = put(&store, &model, b"\0c", Some(b"3")).await.unwrap_err();
        assert!(matches!(refused, WriteError::Failed { .. }), "{refused}");
        assert!(store.get(b"\0a").await.unwrap().live().is_some());
        assert!(store.open_view().await.is_err(), "a snapshot of what is not durable is refused");
    });
}

/// G7: so is a failed sync of the data file, and the reason names the file.
#[test]
fn a_failed_sync_of_the_data_file_fails_the_shard_and_says_where() {
    let (sim, disk, shard, model) = new_world(3);
    sim.block_on(async {
        let store = shard.vbucket(BUCKET, VbId(0)).unwrap();
        put(&store, &model, b"\0a", Some(b"1")).await.unwrap();
        disk.inject(Injection::next(Fault::SyncError).on("data"));
        let reason = shard.flush().await.unwrap_err();
        assert!(reason.contains("cannot sync data: "), "{reason}");
        assert!(store.get(b"\0a").await.unwrap().live().is_some());
    });
}

/// G8: with a full data file writes are refused for now, what was acknowledged stays, and all goes on when there is room.
#[test]
fn a_full_disk_refuses_writes_for_now_and_loses_nothing() {
    let (sim, disk, shard, model) = new_world(4);
    sim.block_on(async {
        disk.set_capacity(Some(2 << 20));
        let store = shard.vbucket(BUCKET, VbId(1)).unwrap();
        let mut refused = 0;
        for n in 0..4000u32 {
            let key = format!("\0key{n}");
            match put(&store, &model, key.as_bytes(), Some(&[n as u8; 2000])).await {
                Ok(_) => {}
                Err(WriteError::Busy { .. }) => {
                    refused += 1;
                    store.sleep(std::time::Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
            if refused > 100 {
                break;
            }
        }
        assert!(refused > 100, "the disk never filled");
        assert!(shard.failure().is_none());
        disk.set_capacity(None);
        let mut tries = 0;
        let seqno = loop {
            match put(&store, &model, b"\0after", Some(b"room")).await {
                Ok(seqno) => break seqno,
                Err(WriteError::Busy { .. }) if tries < 100 => tries += 1,
                Err(error) => panic!("{error} after {tries} tries"),
            }
            store.sleep(std::time::Duration::from_secs(1)).await;
        };
        assert!(store.wait_persisted(seqno).await);
        let view = store.open_view().await.unwrap();
        let known = model.borrow()[1].clone();
        crate::world::check_view(&view, &known, &mut rng(1)).await;
    });
}

/// A store of an unknown format version, or with both superblocks gone, is refused by name.
#[test]
fn a_store_without_a_readable_superblock_is_refused() {
    let (disk, _) = build(7, true);
    let mut image = disk.image("data");
    for slot in [0, 16] {
        image[slot * 4096 + 100] ^= 0xff;
    }
    disk.set_image("data", image);
    let sim = SimExecutor::new(1);
    disk.attach(&sim);
    let env = sim.env();
    let error = sim.block_on(open_shard(&env, &disk)).unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("superblock") && text.contains("slot 1"), "{text}");
    sim.block_on(format_shard(&env, &disk)).unwrap();
}
