//! Single vbuckets: their roles, their end and their coming again, with a crash at any moment.

use std::cell::Cell;
use std::rc::Rc;

use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::inspect::{InspectOptions, inspect_shard};
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::shard::{Home, Shard, ShardStats, VbRole};
use ringbase_storage::types::{BucketId, Seqno, VbId};
use ringbase_storage::vbstore::{VbStore, WriteError};

use crate::changes::{crash_at_every_step, fill_vbucket, restart, vbucket_holds, write};
use crate::world::{BUCKET, VBUCKETS, new_world, scan_documents};

const VB: VbId = VbId(2);

/// The role of a vbucket, if it is there.
fn role_of(shard: &Shard, vb: VbId) -> Option<VbRole> {
    shard.vbucket(BUCKET, vb).map(|store| store.role())
}

fn role(state: u8, topology: &str) -> VbRole {
    VbRole { state, topology: topology.to_owned() }
}

#[test]
fn new_vbuckets_are_active_and_a_role_survives_a_crash_with_the_branch_that_came_of_it() {
    let (sim, disk, shard, _) = new_world(21);
    let branches = sim.block_on(async {
        for vb in 0..VBUCKETS {
            assert_eq!(role_of(&shard, VbId(vb)), Some(role(1, "")));
        }
        let store = shard.vbucket(BUCKET, VB).unwrap();
        fill_vbucket(&store, b"x").await;
        let before = store.failover_log();
        shard.set_vbucket_role(&store, role(2, ""), false).await.unwrap();
        assert_eq!(store.failover_log(), before, "only who becomes active branches");
        shard.set_vbucket_role(&store, role(1, "[[\"here\",null]]"), true).await.unwrap();
        let log = store.failover_log();
        assert_eq!((&log[1..], log[0].seqno), (&before[..], Seqno(10)));
        assert_ne!(log[0].uuid, before[0].uuid);
        log
    });
    let (sim, shard) = restart(sim, &disk, shard, 21).unwrap();
    assert_eq!(role_of(&shard, VB), Some(role(1, "[[\"here\",null]]")));
    let store = shard.vbucket(BUCKET, VB).unwrap();
    assert_eq!(store.failover_log()[1..], branches[..], "the crash made one more");
    // A checkpoint writes all of it anew.
    sim.block_on(async {
        let before = shard.stats().manifest_checkpoints;
        while shard.stats().manifest_checkpoints == before {
            shard.set_vbucket_role(&store, role(3, "kept"), false).await.unwrap();
        }
    });
    let (_sim, shard) = restart(sim, &disk, shard, 22).unwrap();
    assert_eq!(role_of(&shard, VB), Some(role(3, "kept")));
    assert_eq!(role_of(&shard, VbId(1)), Some(role(1, "")));
    shard.detach();
}

/// A vbucket that branches more often than its log keeps forgets the oldest branches.
#[test]
fn a_failover_log_keeps_the_newest_25_branches() {
    let (sim, _, shard, _) = new_world(22);
    sim.block_on(async {
        let store = shard.vbucket(BUCKET, VB).unwrap();
        let first = store.uuid();
        for _ in 0..30 {
            shard.set_vbucket_role(&store, role(1, ""), true).await.unwrap();
        }
        let log = store.failover_log();
        assert_eq!(log.len(), 25);
        assert!(log.iter().all(|branch| branch.uuid != first));
    });
    shard.detach();
}

fn used(stats: &ShardStats) -> u64 {
    stats.space.file_bytes - stats.space.free_bytes
}

/// Memory of a deleted vbucket is free at once, its blocks as soon as the last view ends; its neighbours keep theirs.
fn delete_gives_everything_back(seed: u64) -> bool {
    let (sim, _, shard, _) = new_world(seed);
    let all_free = sim.block_on(async {
        let store = shard.vbucket(BUCKET, VB).unwrap();
        let other = shard.vbucket(BUCKET, VbId(1)).unwrap();
        fill_vbucket(&other, &[1; 500]).await;
        shard.flush().await.unwrap();
        let before = (shard.stats(), shard.bucket_memory(BUCKET));
        for round in 0..3 {
            fill_vbucket(&store, &[round; 900]).await;
            shard.flush().await.unwrap();
        }
        let old_view = store.open_view().await.unwrap();
        fill_vbucket(&store, &[7; 900]).await;
        // An old version that a reader in seqno order still needs.
        let reading = store.open_seqnos(Seqno(1));
        fill_vbucket(&store, &[8; 900]).await;
        assert!(shard.delete_vbucket(BUCKET, VB).await.unwrap());
        assert!(!shard.delete_vbucket(BUCKET, VB).await.unwrap(), "it is gone");
        assert!(shard.vbucket(BUCKET, VB).is_none() && role_of(&shard, VB).is_none());
        drop(reading);
        assert_eq!(shard.bucket_memory(BUCKET), before.1);
        let after = shard.stats();
        assert_eq!(
            (after.memtable_bytes, after.resident_bytes),
            (before.0.memtable_bytes, before.0.resident_bytes)
        );
        assert_eq!(write(&store, b"\0late", b"v").await, Err(WriteError::Gone));
        assert!(store.has_ended() && store.open_view().await.is_err());
        assert_eq!(scan_documents(&old_view, 4096).await.len(), 10, "a view outlives its vbucket");
        let held = used(&shard.stats());
        drop(old_view);
        // What is written and not named yet is named or given back.
        shard.compact().await;
        let left = shard.stats();
        assert!(vbucket_holds(&other, &[1; 500]).await);
        used(&left) < held && used(&left) == left.named_bytes
    });
    shard.detach();
    all_free
}

#[test]
fn a_deleted_vbucket_gives_back_its_blocks_and_its_memory() {
    assert!(delete_gives_everything_back(3));
    let _mutant = turn_on(Mutant::KeepGoneBlocks);
    assert!(!delete_gives_everything_back(3), "the check notices blocks that are kept");
}

/// The log still has records of the vbucket that was deleted when the next one with its number has begun: they are passed over.
fn reopen_after_coming_again(seed: u64, with_successor: bool) -> Result<(), String> {
    let (sim, disk, shard, _) = new_world(seed);
    let uuid = sim.block_on(async {
        // It holds the log's tail where the records of the deleted one lie behind it.
        fill_vbucket(&shard.vbucket(BUCKET, VbId(0)).unwrap(), b"kept").await;
        let old = shard.vbucket(BUCKET, VB).unwrap();
        fill_vbucket(&old, b"gone").await;
        fill_vbucket(&old, b"gone").await;
        // Not yet durable when the end begins.
        write(&old, b"\0last", b"gone").await.unwrap();
        shard.delete_vbucket(BUCKET, VB).await.unwrap();
        if with_successor {
            let new = shard.create_vbucket(BUCKET, VB, Home::Disk, role(2, "t")).await.unwrap();
            assert_ne!(new.uuid(), old.uuid());
            assert_eq!((new.high_seqno(), new.items()), (Seqno(0), 0));
            fill_vbucket(&new, b"new").await;
            new.uuid()
        } else {
            old.uuid()
        }
    });
    let options = InspectOptions { wal: true, limit: 1000, ..InspectOptions::default() };
    let report = inspect_shard(&disk.image("wal"), &disk.image("data"), &options);
    assert!(report.damage.list.is_empty(), "{:?}", report.damage.list);
    let (sim, shard) = restart(sim, &disk, shard, seed)?;
    let found = sim.block_on(async {
        assert!(vbucket_holds(&shard.vbucket(BUCKET, VbId(0)).unwrap(), b"kept").await);
        let Some(new) = shard.vbucket(BUCKET, VB) else { return false };
        assert_eq!((new.high_seqno(), new.items()), (Seqno(10), 10));
        assert!(vbucket_holds(&new, b"new").await);
        assert_eq!(new.failover_log()[1].uuid, uuid);
        assert_eq!(role_of(&shard, VB), Some(role(2, "t")));
        // Flushes move the tail past all of it.
        shard.flush().await.unwrap();
        fill_vbucket(&new, b"newer").await;
        true
    });
    assert_eq!(found, with_successor);
    let (sim, shard) = restart(sim, &disk, shard, seed + 5)?;
    if with_successor {
        assert!(sim.block_on(vbucket_holds(&shard.vbucket(BUCKET, VB).unwrap(), b"newer")));
    }
    shard.detach();
    Ok(())
}

#[test]
fn records_of_a_deleted_vbucket_in_the_log_are_passed_over_also_when_one_comes_again() {
    for seed in [11, 12, 13] {
        for with_successor in [false, true] {
            assert_eq!(reopen_after_coming_again(seed, with_successor), Ok(()));
        }
    }
    let _mutant = turn_on(Mutant::KeepGoneRecords);
    for with_successor in [false, true] {
        assert!(reopen_after_coming_again(11, with_successor).is_err(), "the log had such records");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Role,
    Delete,
    ComeAgain,
}

/// A crash after `steps` steps of a change; whether the change was there afterwards, and whether it had been done before.
fn crash_within(change: Change, steps: u64, seed: u64) -> (bool, bool) {
    let (sim, disk, shard, _) = new_world(seed);
    let uuid = sim.block_on(async {
        for vb in 0..VBUCKETS {
            fill_vbucket(&shard.vbucket(BUCKET, VbId(vb)).unwrap(), b"one").await;
        }
        if seed.is_multiple_of(2) {
            shard.flush().await.unwrap();
            fill_vbucket(&shard.vbucket(BUCKET, VB).unwrap(), b"one").await;
        }
        let store = shard.vbucket(BUCKET, VB).unwrap();
        if change == Change::ComeAgain {
            shard.delete_vbucket(BUCKET, VB).await.unwrap();
        }
        if change == Change::Role {
            shard.set_vbucket_role(&store, role(2, ""), false).await.unwrap();
        }
        store.uuid()
    });
    let done = Rc::new(Cell::new(false));
    let (task_shard, task_done) = (shard.clone(), done.clone());
    sim.spawn(async move {
        let shard = task_shard;
        match change {
            Change::Role => {
                let store = shard.vbucket(BUCKET, VB).unwrap();
                shard.set_vbucket_role(&store, role(1, "t"), true).await.unwrap();
            }
            Change::Delete => assert!(shard.delete_vbucket(BUCKET, VB).await.unwrap()),
            Change::ComeAgain => {
                shard.create_vbucket(BUCKET, VB, Home::Disk, role(2, "t")).await.unwrap();
            }
        }
        task_done.set(true);
    });
    sim.run_steps(steps);
    let (sim, shard) = restart(sim, &disk, shard, seed * 1000 + steps).expect("recovery after a crash");
    let found = role_of(&shard, VB);
    let store = shard.vbucket(BUCKET, VB);
    assert_eq!(found.is_some(), store.is_some());
    let is_old = |store: &VbStore| store.failover_log().iter().any(|branch| branch.uuid == uuid);
    let happened = sim.block_on(async {
        for vb in (0..VBUCKETS).filter(|vb| *vb != VB.0) {
            let other = shard.vbucket(BUCKET, VbId(vb)).unwrap();
            assert!(vbucket_holds(&other, b"one").await, "{change:?} seed {seed}: the others are untouched");
            assert_eq!(role_of(&shard, VbId(vb)), Some(role(1, "")));
        }
        match (change, found, store) {
            (Change::Role, Some(found), Some(store)) => {
                assert!(vbucket_holds(&store, b"one").await && is_old(&store));
                let branches = store.failover_log().len();
                match found == role(1, "t") {
                    true => assert_eq!(branches, 3, "its own, the new role's, the crash's"),
                    false => assert_eq!((found.clone(), branches), (role(2, ""), 2)),
                }
                found.state == 1
            }
            (Change::Delete, None, _) => true,
            (Change::Delete, Some(found), Some(store)) => {
                assert!(vbucket_holds(&store, b"one").await && is_old(&store), "whole while it is there");
                assert_eq!(found, role(1, ""));
                false
            }
            (Change::ComeAgain, None, _) => false,
            (Change::ComeAgain, Some(found), Some(store)) => {
                assert_eq!((found, store.high_seqno(), store.items()), (role(2, "t"), Seqno(0), 0));
                assert!(!is_old(&store), "empty and anew");
                true
            }
            (change, found, store) => panic!("{change:?} seed {seed}: {found:?} {store:?}"),
        }
    });
    // What is there can be used.
    sim.block_on(async {
        for store in shard.vbuckets() {
            fill_vbucket(&store, b"after").await;
        }
        shard.flush().await.unwrap();
    });
    assert!(happened || !done.get(), "{change:?} seed {seed} steps {steps}: what was done is durable");
    shard.detach();
    (happened, done.get())
}

#[test]
fn a_crash_within_a_change_leaves_a_vbucket_as_it_was_or_as_it_is_to_be() {
    crash_at_every_step([Change::Role, Change::Delete, Change::ComeAgain], crash_within);
}

/// A bucket that is emptied keeps what its vbuckets are, also what changed after its successor was made; its neighbours are not asked.
#[test]
fn the_bucket_that_takes_the_place_of_another_has_vbuckets_in_the_same_roles() {
    for home in [Home::Disk, Home::Memory] {
        let (sim, _, shard, _) = new_world(23);
        let described =
            |id: u32| BucketDesc { id: BucketId(id), uuid: 5, name: "emptied".into(), config: String::new() };
        let roles = |id: u32| -> Vec<Option<VbRole>> {
            let store = |vb| shard.vbucket(BucketId(id), VbId(vb));
            (0..VBUCKETS).map(|vb| store(vb).map(|store| store.role())).collect()
        };
        sim.block_on(async {
            shard.create_bucket_in(described(2), home).await.unwrap();
            let store = |id, vb| shard.vbucket(BucketId(id), VbId(vb)).unwrap();
            shard.set_vbucket_role(&store(2, 0), role(4, ""), false).await.unwrap();
            shard.set_vbucket_role(&store(2, 1), role(1, "t"), false).await.unwrap();
            shard.delete_vbucket(BucketId(2), VbId(2)).await.unwrap();
            shard.create_bucket_in(described(3), home).await.unwrap();
            assert_eq!(roles(3), [Some(role(4, "")), Some(role(1, "t")), None, Some(role(1, ""))]);
            // What changes until requests are taken no more is passed on.
            shard.set_vbucket_role(&store(2, 0), role(1, ""), true).await.unwrap();
            shard.create_vbucket(BucketId(2), VbId(2), home, role(2, "")).await.unwrap();
            shard.delete_vbucket(BucketId(2), VbId(3)).await.unwrap();
            shard.pass_roles_on(BucketId(2)).await.unwrap();
            assert_eq!(roles(3), roles(2));
            shard.delete_bucket(BucketId(2)).await.unwrap();
            shard.replace_bucket(BucketId(3), described(4), home).await.unwrap();
            assert_eq!(roles(4), [Some(role(1, "")), Some(role(1, "t")), Some(role(2, "")), None]);
            assert_eq!(roles(BUCKET.0), vec![Some(role(1, "")); 4]);
        });
        shard.detach();
    }
}

/// One that lives in memory only goes and comes without the manifest.
#[test]
fn a_vbucket_in_memory_goes_with_all_that_it_took_and_comes_again_empty() {
    let (sim, _, shard, _) = new_world(9);
    let memory = BucketId(2);
    sim.block_on(async {
        let described = BucketDesc { id: memory, uuid: 2, name: "memory".into(), config: String::new() };
        shard.create_bucket_in(described, Home::Memory).await.unwrap();
        let before = (shard.bucket_memory(memory), shard.stats().manifest_changes);
        let store = shard.vbucket(memory, VB).unwrap();
        fill_vbucket(&store, &[1; 300]).await;
        // Both orders keep something of what is overwritten.
        let (view, reading) = (store.open_view().await.unwrap(), store.open_seqnos(Seqno(1)));
        fill_vbucket(&store, &[2; 300]).await;
        shard.set_vbucket_role(&store, role(1, ""), true).await.unwrap();
        assert_eq!(store.failover_log().len(), 2);
        assert!(shard.delete_vbucket(memory, VB).await.unwrap());
        assert_eq!((shard.bucket_memory(memory), shard.stats().manifest_changes), before);
        drop((view, reading));
        let again = shard.create_vbucket(memory, VB, Home::Memory, role(1, "")).await.unwrap();
        assert!(again.is_ephemeral() && again.uuid() != store.uuid());
        assert_eq!(write(&again, b"\0k", b"v").await, Ok(Seqno(1)));
    });
    shard.detach();
}
