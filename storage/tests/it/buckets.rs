//! Several buckets in a shard: made, emptied and deleted while it runs, with a crash at any moment.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::shard::{Home, Shard};
use ringbase_storage::types::{BucketId, Seqno, VbId};
use ringbase_storage::vbstore::{ReadView, WriteError};

use crate::changes::{crash_at_every_step, fill_vbucket, restart, vbucket_holds, write};
use crate::world::{BUCKET, VBUCKETS, new_world, open_shard, scan_documents};

const OTHER: BucketId = BucketId(2);

fn described(id: BucketId) -> BucketDesc {
    BucketDesc { id, uuid: u128::from(id.0), name: format!("bucket{id}"), config: String::new() }
}

/// Ten documents in every vbucket of `bucket`, all durable.
async fn fill(shard: &Shard, bucket: BucketId, value: &[u8]) {
    for vb in 0..VBUCKETS {
        fill_vbucket(&shard.vbucket(bucket, VbId(vb)).unwrap(), value).await;
    }
}

async fn holds(shard: &Shard, bucket: BucketId, value: &[u8]) -> bool {
    for vb in 0..VBUCKETS {
        if !vbucket_holds(&shard.vbucket(bucket, VbId(vb)).unwrap(), value).await {
            return false;
        }
    }
    true
}

/// Blocks and memory of a deleted bucket are free, those that a view still reads as soon as it ends.
fn delete_gives_everything_back(seed: u64) -> bool {
    let (sim, _, shard, _) = new_world(seed);
    let all_free = sim.block_on(async {
        fill(&shard, BUCKET, &[1; 500]).await;
        shard.flush().await.unwrap();
        let before = shard.stats();
        shard.create_bucket(described(OTHER)).await.unwrap();
        for round in 0..3 {
            fill(&shard, OTHER, &[round; 900]).await;
            shard.flush().await.unwrap();
        }
        fill(&shard, OTHER, &[7; 900]).await;
        let view: ReadView = shard.vbucket(OTHER, VbId(1)).unwrap().open_view().await.unwrap();
        shard.delete_bucket(OTHER).await.unwrap();
        let after = shard.stats();
        assert_eq!(
            (after.memtable_bytes, after.resident_bytes),
            (before.memtable_bytes, before.resident_bytes)
        );
        assert_eq!(scan_documents(&view, 4096).await.len(), 10, "a view outlives its bucket");
        let used =
            |stats: &ringbase_storage::shard::ShardStats| stats.space.file_bytes - stats.space.free_bytes;
        let held = used(&shard.stats());
        drop(view);
        let left = used(&shard.stats());
        assert!(holds(&shard, BUCKET, &[1; 500]).await);
        // The manifest's own area may have moved to another place of another size.
        left < held && left <= used(&before) + (64 << 12)
    });
    shard.detach();
    all_free
}

#[test]
fn a_deleted_bucket_gives_back_its_blocks_and_its_memory() {
    assert!(delete_gives_everything_back(3));
    let _mutant = turn_on(Mutant::KeepGoneBlocks);
    assert!(!delete_gives_everything_back(3), "the check notices blocks that are kept");
}

/// The log still has records of a bucket that was deleted: they are passed over, also when the next bucket has its vbuckets again.
fn reopen_after_delete(seed: u64) -> Result<(), String> {
    let (sim, disk, shard, _) = new_world(seed);
    sim.block_on(async {
        // The first vbucket of the other bucket holds the log's tail where the records of the deleted one lie behind it.
        fill(&shard, BUCKET, b"kept").await;
        shard.create_bucket(described(OTHER)).await.unwrap();
        fill(&shard, OTHER, b"gone").await;
        shard.delete_bucket(OTHER).await.unwrap();
        assert_eq!(shard.next_bucket_id(), BucketId(3));
        shard.create_bucket(described(BucketId(3))).await.unwrap();
        fill(&shard, BucketId(3), b"new").await;
    });
    drop(sim);
    shard.detach();
    drop(shard);
    disk.crash(seed);
    let sim = SimExecutor::new(seed);
    disk.attach(&sim);
    let opened = sim.block_on(open_shard(&sim.env(), &disk));
    let (shard, _) = opened.map_err(|error| error.to_string())?;
    sim.block_on(async {
        assert!(shard.vbucket(OTHER, VbId(0)).is_none());
        assert!(holds(&shard, BUCKET, b"kept").await && holds(&shard, BucketId(3), b"new").await);
        assert_eq!(shard.next_bucket_id(), BucketId(4), "numbers are never used twice");
    });
    shard.detach();
    Ok(())
}

#[test]
fn records_of_a_deleted_bucket_in_the_log_are_passed_over() {
    assert_eq!(reopen_after_delete(11), Ok(()));
    let _mutant = turn_on(Mutant::KeepGoneRecords);
    assert!(reopen_after_delete(11).is_err(), "the log had such records");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Create,
    Delete,
    Replace,
}

/// A crash after `steps` steps of a change; whether the change was there afterwards, and whether it had been done before.
fn crash_within(change: Change, steps: u64, seed: u64) -> (bool, bool) {
    let (sim, disk, shard, _) = new_world(seed);
    let new = BucketId(3);
    sim.block_on(async {
        fill(&shard, BUCKET, b"one").await;
        if change != Change::Create {
            shard.create_bucket(described(OTHER)).await.unwrap();
            fill(&shard, OTHER, b"two").await;
            if seed.is_multiple_of(2) {
                shard.flush().await.unwrap();
                fill(&shard, OTHER, b"two").await;
            }
        }
    });
    let done = Rc::new(Cell::new(false));
    let (task_shard, task_done) = (shard.clone(), done.clone());
    sim.spawn(async move {
        match change {
            Change::Create => task_shard.create_bucket(described(OTHER)).await.unwrap(),
            Change::Delete => task_shard.delete_bucket(OTHER).await.unwrap(),
            Change::Replace => task_shard.replace_bucket(OTHER, described(new), Home::Disk).await.unwrap(),
        }
        task_done.set(true);
    });
    sim.run_steps(steps);
    let (sim, shard) = restart(sim, &disk, shard, seed * 1000 + steps).expect("recovery after a crash");
    let there = |bucket| {
        let count = (0..VBUCKETS).filter(|vb| shard.vbucket(bucket, VbId(*vb)).is_some()).count();
        assert!(
            count == 0 || count == usize::from(VBUCKETS),
            "{change:?} seed {seed}: {bucket} is half there"
        );
        let named = shard.buckets().iter().any(|described| described.id == bucket);
        assert_eq!(named, count > 0, "{change:?} seed {seed}");
        named
    };
    let (old, replaced) = (there(OTHER), there(new));
    sim.block_on(async {
        assert!(holds(&shard, BUCKET, b"one").await, "{change:?} seed {seed}: the other bucket is untouched");
        if old && change != Change::Create {
            assert!(holds(&shard, OTHER, b"two").await, "{change:?} seed {seed}: whole while it is there");
        }
        if replaced {
            let store = shard.vbucket(new, VbId(0)).unwrap();
            assert_eq!((store.high_seqno(), store.items()), (Seqno(0), 0), "empty and anew");
        }
        // What is there can be used.
        for bucket in shard.buckets() {
            fill(&shard, bucket.id, b"after").await;
        }
        shard.flush().await.unwrap();
    });
    let happened = match change {
        Change::Create => old,
        Change::Delete => !old,
        Change::Replace => {
            assert_ne!(old, replaced, "one or the other");
            replaced
        }
    };
    assert!(happened || !done.get(), "{change:?} seed {seed} steps {steps}: what was done is durable");
    shard.detach();
    (happened, done.get())
}

#[test]
fn a_crash_within_a_change_leaves_a_bucket_wholly_there_or_wholly_gone() {
    crash_at_every_step([Change::Create, Change::Delete, Change::Replace], crash_within);
}

/// A bucket that is emptied begins anew: other branches, seqnos from 1.
#[test]
fn a_replaced_bucket_has_other_branches_and_seqnos_from_one() {
    let (sim, _, shard, _) = new_world(5);
    sim.block_on(async {
        shard.create_bucket(described(OTHER)).await.unwrap();
        fill(&shard, OTHER, b"x").await;
        let old = shard.vbucket(OTHER, VbId(2)).unwrap();
        shard.replace_bucket(OTHER, described(BucketId(3)), Home::Disk).await.unwrap();
        let new = shard.vbucket(BucketId(3), VbId(2)).unwrap();
        assert_ne!(old.uuid(), new.uuid());
        assert_eq!(write(&new, b"\0k", b"v").await, Ok(Seqno(1)));
        assert_eq!(
            write(&old, b"\0k", b"v").await,
            Err(WriteError::Gone),
            "nothing is written to what is gone"
        );
        assert!(old.has_ended() && old.open_view().await.is_err());
        assert!(!old.wait_persisted(Seqno(1000)).await, "nobody waits for it for ever");
    });
    shard.detach();
}

/// The quota of one bucket is its own: full, it refuses for a moment, and the others go on.
#[test]
fn a_bucket_above_its_quota_refuses_for_a_moment_and_the_others_go_on() {
    let (sim, _, shard, _) = new_world(9);
    sim.block_on(async {
        shard.create_bucket(described(OTHER)).await.unwrap();
        shard.set_bucket_quota(OTHER, 16 << 10);
        let (small, large) =
            (shard.vbucket(OTHER, VbId(0)).unwrap(), shard.vbucket(BUCKET, VbId(0)).unwrap());
        let mut refused = 0;
        for n in 0..200u32 {
            let key = [&b"\0key"[..], &n.to_be_bytes()].concat();
            write(&large, &key, &[1; 100]).await.unwrap();
            while let Err(error) = write(&small, &key, &[1; 400]).await {
                assert!(matches!(error, WriteError::Busy { .. }), "{error}");
                refused += 1;
                small.sleep(Duration::from_millis(1)).await;
            }
            assert!(shard.bucket_memory(OTHER).memtable_bytes <= (8 << 10) + 1024);
        }
        assert!(refused > 0);
        shard.flush().await.unwrap();
        let memory = shard.bucket_memory(OTHER);
        assert!(memory.resident_bytes <= (16 << 10) + 1024, "{memory:?}");
        assert_eq!(small.items(), 200, "what left memory is on disk");
    });
    shard.detach();
}
