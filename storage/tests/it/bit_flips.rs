//! One flipped bit anywhere on the medium, at three places of every sector: the store is opened, read by key, scanned in both orders, compacted,
//! written to, closed and opened again. No wrong byte is shown, nor written as if it were right, and an error names the place.
//!
//! `RINGBASE_EXHAUSTIVE=1 cargo test --release -p ringbase-storage --test it bit_flips:: -- --nocapture` flips three bits of every sector;
//! `RINGBASE_STORE_KIB=16384` there asks for a store of 16 MiB. The short form takes one sector of some, and each of those in turn that hold a
//! superblock or the manifest.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use rand::RngExt;
use ringbase_storage::causes::whole;
use ringbase_storage::env::Env;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::{Crash, SimDisk};
use ringbase_storage::mutant::Mutant;
use ringbase_storage::types::VbId;
use ringbase_storage::vbstore::WriteError;

use crate::damage::SECTOR;
use crate::tolerant::{Met, get, scan, stride, write};
use crate::world::{BUCKET, Model, VBUCKETS, VbModel, new_world, open_shard, put, rng, with_mutant};

/// Bits of a sector that are flipped: in its first and last bytes, and one in between that differs from sector to sector.
fn bits(sector: usize) -> [usize; 3] {
    [3, 32 + sector * 37 % (SECTOR * 8 - 64), SECTOR * 8 - 5]
}

/// The vbucket whose newest document is the last commit of the log.
const LAST: VbId = VbId(0);

/// A store that was closed after its last flush, or died with much in its log.
struct Base {
    images: [Vec<u8>; 2],
    model: Vec<VbModel>,
    keys: u32,
    is_closed: bool,
}

/// Documents up to about `kib` KiB, some overwritten and deleted, in several segments and runs, and in the log if it was not closed.
fn base(kib: u32, closes: bool) -> Base {
    let (sim, disk, shard, model) = new_world(91);
    let (mut random, keys) = (rng(91), kib / 4);
    sim.block_on(async {
        for round in 0..4 {
            for n in 0..keys {
                let store = shard.vbucket(BUCKET, VbId((n % u32::from(VBUCKETS)) as u16)).unwrap();
                let key = format!("\0key{:05}", random.random_range(0..keys));
                let value = vec![random.random::<u8>(); random.random_range(0..1500)];
                let value = random.random_bool(0.9).then_some(&value[..]);
                while let Err(WriteError::Busy { .. }) = put(&store, &model, key.as_bytes(), value).await {
                    store.sleep(std::time::Duration::from_millis(1)).await;
                }
            }
            if round < 3 || closes {
                shard.flush().await.unwrap();
            }
        }
        for store in shard.vbuckets() {
            assert!(store.wait_persisted(store.high_seqno()).await);
        }
        // Nothing is written behind the last commit that could name it: it is the one that may be taken for torn.
        let store = shard.vbucket(BUCKET, LAST).unwrap();
        let seqno = put(&store, &model, b"\0last", Some(b"commit")).await.unwrap();
        assert!(store.wait_persisted(seqno).await);
        if closes {
            shard.close().await.unwrap();
        }
    });
    drop(sim);
    shard.detach();
    disk.crash_with(Crash::LoseAll, 1);
    let model = model.borrow().clone();
    Base { images: ["wal", "data"].map(|name| disk.image(name)), model, keys, is_closed: closes }
}

/// What the flips led to.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    flips: u64,
    refused: u64,
    noticed: u64,
    harmless: u64,
}

/// Everything that is readable, compared with the model; says whether there was an error.
async fn use_store(
    env: &Env,
    disk: &SimDisk,
    base: &Base,
    model: &Model,
    writes: bool,
) -> Result<bool, String> {
    let (shard, _) = open_shard(env, disk).await.map_err(|error| whole(&error))?;
    let mut met = Met::default();
    for store in shard.vbuckets() {
        let known = {
            let known = &mut model.borrow_mut()[store.id().0 as usize];
            let (high, all) = (store.high_seqno().0, known.writes.len() as u64);
            let may_miss = u64::from(!base.is_closed && store.id() == LAST);
            assert!(
                (all - may_miss..=all).contains(&high),
                "vb {}: {high} of {all} durable writes",
                store.id()
            );
            known.writes.truncate(high as usize);
            known.clone()
        };
        for n in 0..base.keys {
            let key = format!("\0key{n:05}");
            if let Err(error) = store.get(key.as_bytes()).await {
                assert!(names_place(&error.to_string()), "{error}");
            }
            get(&store, model, key.as_bytes(), &mut met).await;
        }
        let view = store.open_view().await.map_err(|error| error.to_string())?;
        scan(&view, &known, &mut met).await;
    }
    shard.compact().await;
    if writes {
        for store in shard.vbuckets() {
            write(&store, model, b"\0key00000", Some(&[7; 900]), &mut met).await;
        }
        // Both may fail for what is damaged; what was written by them is read at the next start.
        let _ = shard.flush().await;
        shard.compact().await;
        for store in shard.vbuckets() {
            assert!(store.wait_persisted(store.high_seqno()).await || shard.failure().is_some());
        }
    }
    let _ = shard.close().await;
    shard.detach();
    Ok(met.read_errors > 0)
}

/// Whether an error says which file is damaged, and where.
fn names_place(error: &str) -> bool {
    let file = error.contains("data") || error.contains("wal");
    file && (error.contains("block ") || error.contains("offset ") || error.contains("slot "))
}

/// One flipped bit, and two starts.
fn flip(base: &Base, file: usize, sector: usize, bit: usize, seen: &mut Seen) {
    let (disk, sim) = (SimDisk::new(1), SimExecutor::new(1));
    for (index, (name, image)) in ["wal", "data"].iter().zip(&base.images).enumerate() {
        let mut image = image.clone();
        if index == file {
            image[sector * SECTOR + bit / 8] ^= 1 << (bit % 8);
        }
        disk.set_image(name, image);
    }
    disk.attach(&sim);
    let (env, model): (Env, Model) = (sim.env(), Rc::new(RefCell::new(base.model.clone())));
    seen.flips += 1;
    let outcome = sim.block_on(async {
        let first = use_store(&env, &disk, base, &model, true).await?;
        Ok::<_, String>(first | use_store(&env, &disk, base, &model, false).await?)
    });
    match outcome {
        Err(error) => {
            assert!(names_place(&error), "{error}");
            seen.refused += 1;
        }
        Ok(true) => seen.noticed += 1,
        Ok(false) => seen.harmless += 1,
    }
}

/// Every `stride`th sector that holds something; a sector of zeroes now and then.
fn flip_all(base: &Base, stride: usize) -> Seen {
    let (mut seen, mut turn) = (Seen::default(), 0);
    for (file, image) in base.images.iter().enumerate() {
        for (sector, bytes) in image.chunks(SECTOR).enumerate() {
            let is_blank = bytes.iter().all(|byte| *byte == 0);
            turn += if is_blank && stride > 1 { 0 } else { 1 };
            let is_blanks_turn = is_blank && sector % (16 * stride) == 0;
            if turn % stride != 0 && !is_blanks_turn || is_blank && stride > 1 && !is_blanks_turn {
                continue;
            }
            for bit in bits(sector) {
                let run = AssertUnwindSafe(|| flip(base, file, sector, bit, &mut seen));
                catch_unwind(run).unwrap_or_else(|panic| {
                    eprintln!("failed with bit {bit} of sector {sector} of file {file}");
                    std::panic::resume_unwind(panic)
                });
            }
        }
    }
    seen
}

fn store_kib() -> u32 {
    std::env::var("RINGBASE_STORE_KIB").map_or(256, |text| text.parse().expect("a number of KiB"))
}

/// G3, G4: see the module.
#[test]
fn no_flipped_bit_is_ever_served_or_written_again() {
    for closes in [true, false] {
        let base = base(store_kib(), closes);
        let seen = flip_all(&base, stride(12) as usize);
        let bytes: usize = base.images.iter().map(Vec::len).sum();
        println!("{} KiB, closed: {closes}: {seen:?}", bytes >> 10);
        let Seen { refused, noticed, harmless, .. } = seen;
        assert!(refused > 0 && noticed > 0 && harmless > 0, "{seen:?}");
    }
}

/// G3: a build that does not look at checksums is caught.
#[test]
fn not_looking_at_checksums_is_caught_by_a_flip() {
    let base = base(64, true);
    let caught =
        with_mutant(Mutant::NoBlockCheck, || catch_unwind(AssertUnwindSafe(|| flip_all(&base, 7))).is_err());
    assert!(caught);
}
