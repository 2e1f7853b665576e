//! Scrubs: latent damage anywhere in what the data file holds is found and named within one pass, and nothing that is right is called damaged.
//!
//! `RINGBASE_SEEDS=1000 cargo test --release -p ringbase-storage --test it scrub` runs any number of seeds.

use std::time::Duration;

use rand::RngExt;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::inspect::{InspectOptions, inspect_shard};
use ringbase_storage::io::sim::{Fault, Injection, SimDisk};
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::shard::{ScrubOptions, ScrubPart, ScrubStatus, Shard, ShardOptions};
use ringbase_storage::types::VbId;
use ringbase_storage::vbstore::WriteError;

use crate::world::{
    BUCKET, Model, OPTIONS, VBUCKETS, check_view, each_seed, new_world, open_shard_with, put, rng,
};

const BLOCK: u64 = 4096;

/// Documents, overwritten and deleted ones among them, in several segments and runs.
fn fill(sim: &SimExecutor, shard: &Shard, model: &Model, seed: u64) {
    let mut random = rng(seed);
    sim.block_on(async {
        for _ in 0..4 {
            for vb in 0..VBUCKETS {
                let store = shard.vbucket(BUCKET, VbId(vb)).unwrap();
                for _ in 0..60 {
                    let key = format!("\0key{:03}", random.random_range(0..150));
                    let value = vec![random.random::<u8>(); random.random_range(0..1500)];
                    let value = random.random_bool(0.9).then_some(&value[..]);
                    while let Err(WriteError::Busy { .. }) = put(&store, model, key.as_bytes(), value).await {
                        store.sleep(Duration::from_millis(1)).await;
                    }
                }
                assert!(store.wait_persisted(store.high_seqno()).await);
            }
            shard.flush().await.unwrap();
        }
    });
}

fn scrub(sim: &SimExecutor, shard: &Shard) -> ScrubStatus {
    let passes = shard.scrub_status().passes;
    shard.start_scrub();
    while shard.scrub_status().passes == passes {
        assert!(sim.step(), "the scrub stands still");
    }
    shard.scrub_status()
}

/// Whether an offline look finds anything wrong.
fn is_damaged(disk: &SimDisk) -> bool {
    let (wal, data) = (disk.image("wal"), disk.image("data"));
    !inspect_shard(&wal, &data, &InspectOptions::default()).damage.list.is_empty()
}

/// Flips a bit of some block that is in use; returns where, and what was there before.
fn flip(disk: &SimDisk, random: &mut impl RngExt) -> (u64, Vec<u8>) {
    let before = disk.image("data");
    loop {
        let mut image = before.clone();
        let at = random.random_range(0..image.len());
        image[at] ^= 1 << random.random_range(0..8);
        disk.set_image("data", image);
        if is_damaged(disk) {
            return (at as u64, before);
        }
    }
}

/// Seeds with a flipped bit in a random used block each; returns how many scrubs found it at its place.
fn find_flips(seed: u64) -> u64 {
    let (sim, disk, shard, model) = new_world(seed);
    fill(&sim, &shard, &model, seed);
    sim.block_on(shard.close()).unwrap();
    shard.detach();
    // A block cache with room for everything.
    let env = sim.env();
    let (shard, _) = sim.block_on(open_shard_with(&env, &disk, 16 << 20, OPTIONS)).unwrap();
    let mut random = rng(seed ^ 0x5c2b);
    let clean = scrub(&sim, &shard);
    assert_eq!((clean.damaged, clean.is_running), (0, false), "{clean:?}");
    assert!(clean.read_bytes > 100_000 && clean.read_bytes == clean.all_bytes);
    // The block cache has it all as it was.
    sim.block_on(async {
        for vb in 0..VBUCKETS {
            let view = shard.vbucket(BUCKET, VbId(vb)).unwrap().open_view().await.unwrap();
            let known = model.borrow()[vb as usize].clone();
            check_view(&view, &known, &mut random).await;
        }
    });
    let (at, before) = flip(&disk, &mut random);
    let found = scrub(&sim, &shard);
    let place = |offset: u64, blocks: u64| (offset..offset + blocks * BLOCK).contains(&at);
    let is_named = match &found.damage[..] {
        [one] => match one.part {
            ScrubPart::Manifest => one.vb.is_none() && one.error.contains("data"),
            // No block is longer than this.
            _ => one.vb.is_some() && place(one.offset.unwrap(), 64),
        },
        _ => false,
    };
    if is_named && matches!(found.damage[0].part, ScrubPart::Documents | ScrubPart::DocumentIndex) {
        let (first, last) = found.damage[0].seqnos.unwrap();
        assert!(first <= last && first.0 >= 1, "{found:?}");
    }
    assert_eq!((found.damaged, found.passes), (found.damage.len() as u64, 2));
    assert_eq!(shard.metrics().scrub_damaged.get(), found.damaged);
    // What was repaired is not damaged any more.
    disk.set_image("data", before);
    assert_eq!(scrub(&sim, &shard).damaged, 0);
    sim.block_on(shard.close()).unwrap();
    shard.detach();
    u64::from(is_named)
}

/// G6: whatever used block rots, the next pass finds it, once, and names its place.
#[test]
fn a_bit_that_rots_is_found_by_the_next_pass_and_named() {
    let seeds = 12;
    let found = each_seed(seeds, find_flips);
    let run = crate::world::seeds(seeds);
    assert_eq!(found, run.end - run.start);
}

/// G6: a scrub that looks at the block cache finds nothing, and the test notices.
#[test]
fn a_scrub_of_the_cache_instead_of_the_device_is_caught() {
    let _on = turn_on(Mutant::ScrubCache);
    assert!((0..6).map(find_flips).sum::<u64>() < 6);
}

/// G7: a read that fails once is read again; one that fails again is damage, of its vbucket only.
#[test]
fn a_read_that_fails_once_is_no_damage_and_one_that_fails_for_good_is() {
    let (sim, disk, shard, model) = new_world(3);
    fill(&sim, &shard, &model, 3);
    for fault in [Fault::ReadError, Fault::BitFlip, Fault::ShortRead] {
        // The first reads are those of the manifest.
        disk.inject(Injection::nth(fault, 7).on("data"));
        assert_eq!(scrub(&sim, &shard).damaged, 0, "{fault:?}");
        disk.clear_faults();
    }
    let at = {
        let store = shard.vbucket(BUCKET, VbId(2)).unwrap();
        let before = store.stats();
        assert!(before.segments >= 3);
        // The middle of the file belongs to somebody.
        disk.image("data").len() as u64 / 2 / BLOCK * BLOCK
    };
    let found = (0..64).find_map(|block| {
        let start = at + block * BLOCK;
        disk.inject(Injection::next(Fault::ReadError).on("data").at(start..start + 1).sticky());
        let found = scrub(&sim, &shard);
        disk.clear_faults();
        (found.damaged > 0).then_some(found)
    });
    let found = found.expect("some block there is in use");
    assert_eq!(found.damage.len(), 1, "{found:?}");
    assert!(found.damage[0].error.contains("cannot read"), "{found:?}");
}

/// A pass takes the time that its rate allows, ends when it is told to and with the shard, and begins again by itself.
#[test]
fn a_pass_keeps_to_its_rate_ends_when_it_must_and_comes_by_itself() {
    const PERIOD: u64 = 500;
    let (sim, disk, shard, model) = new_world(5);
    fill(&sim, &shard, &model, 5);
    sim.block_on(shard.close()).unwrap();
    shard.detach();
    let options =
        ShardOptions { scrub: ScrubOptions { period_seconds: PERIOD, bytes_per_second: 50_000 }, ..OPTIONS };
    let env = sim.env();
    let (shard, _) = sim.block_on(open_shard_with(&env, &disk, 0, options)).unwrap();
    sim.run_for(Duration::from_secs(PERIOD - 1));
    assert!(!shard.scrub_status().is_running && shard.scrub_status().passes == 0);
    sim.run_for(Duration::from_secs(2));
    let begun = shard.scrub_status();
    assert!(begun.is_running && begun.read_bytes <= 2 * 50_000 && begun.all_bytes > 200_000, "{begun:?}");
    let seconds = begun.all_bytes / 50_000;
    sim.run_for(Duration::from_secs(seconds / 2));
    let half = shard.scrub_status();
    assert!(half.is_running && (seconds / 2 - 1..=seconds / 2 + 3).contains(&(half.read_bytes / 50_000)));
    shard.stop_scrub();
    sim.run_for(Duration::from_secs(1));
    let stopped = shard.scrub_status();
    assert!(!stopped.is_running && stopped.passes == 0);
    // The next one is as fast as it can be, and the one after that comes by itself.
    shard.set_scrub_rate(0);
    assert_eq!(scrub(&sim, &shard).passes, 1);
    sim.run_for(Duration::from_secs(PERIOD + 1));
    assert_eq!(shard.scrub_status().passes, 2);
    shard.set_scrub_rate(1000);
    shard.start_scrub();
    sim.run_for(Duration::from_secs(3));
    assert!(shard.scrub_status().is_running);
    sim.block_on(shard.close()).unwrap();
    sim.run_for(Duration::from_secs(1));
    assert!(!shard.scrub_status().is_running);
    shard.detach();
}
