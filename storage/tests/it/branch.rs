//! Branches and clocks over a crash: a token of a lost write is never taken for a write of the new branch, and CAS never goes back.

use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::{Crash, SimDisk};
use ringbase_storage::shard::Shard;
use ringbase_storage::types::{FailoverEntry, Seqno, VbId, VbUuid};

use crate::world::{BUCKET, Model, new_world, open_shard, put};

const VB: VbId = VbId(2);

/// What a client gets with a write.
#[derive(Debug, Clone, Copy)]
struct Token {
    uuid: VbUuid,
    seqno: Seqno,
}

/// Whether the history that this log describes holds the write of the token: its branch is in the log, and did not end before the write.
fn covers(log: &[FailoverEntry], token: Token) -> bool {
    match log.iter().position(|entry| entry.uuid == token.uuid) {
        None => false,
        Some(0) => true,
        Some(index) => token.seqno <= log[index - 1].seqno,
    }
}

async fn write(shard: &Shard, model: &Model, key: &str) -> Token {
    let store = shard.vbucket(BUCKET, VB).unwrap();
    let seqno = put(&store, model, key.as_bytes(), Some(key.as_bytes())).await.unwrap();
    Token { uuid: store.uuid(), seqno }
}

/// The power fails; what was not synced is gone. The next start, with the wall clock `wall_offset_ns` off.
fn crash(
    sim: SimExecutor,
    shard: Shard,
    disk: &SimDisk,
    model: &Model,
    wall_offset_ns: i64,
) -> (SimExecutor, Shard) {
    drop(sim);
    shard.detach();
    drop(shard);
    disk.crash_with(Crash::LoseAll, 1);
    let sim = SimExecutor::new(99);
    sim.set_wall_offset(wall_offset_ns);
    disk.attach(&sim);
    let env = sim.env();
    let shard = sim.block_on(open_shard(&env, disk)).unwrap().0;
    let high = shard.vbucket(BUCKET, VB).unwrap().high_seqno();
    model.borrow_mut()[usize::from(VB.0)].writes.truncate(high.0 as usize);
    (sim, shard)
}

/// The seqno alone says nothing after a crash: the lost write's seqno comes again, for another write. The branch tells.
#[test]
fn a_token_of_a_lost_write_is_not_covered_by_the_new_branch() {
    let (sim, disk, shard, model) = new_world(5);
    let (kept, lost) = sim.block_on(async {
        let mut kept = Vec::new();
        for n in 0..5 {
            kept.push(write(&shard, &model, &format!("\0kept{n}")).await);
        }
        let store = shard.vbucket(BUCKET, VB).unwrap();
        assert!(store.wait_persisted(kept[4].seqno).await);
        let mut lost = Vec::new();
        for n in 0..3 {
            lost.push(write(&shard, &model, &format!("\0lost{n}")).await);
        }
        assert!(covers(&store.failover_log(), lost[2]), "before the crash it is the current branch");
        assert_eq!(store.persisted_seqno(), kept[4].seqno);
        (kept, lost)
    });
    let (sim, shard) = crash(sim, shard, &disk, &model, 0);
    let store = shard.vbucket(BUCKET, VB).unwrap();
    let first_log = store.failover_log();
    assert_eq!(store.high_seqno(), Seqno(5));
    assert_eq!((first_log.len(), first_log[0].seqno), (2, Seqno(5)));
    assert!(kept.iter().all(|token| covers(&first_log, *token)), "{first_log:?}");
    assert!(lost.iter().all(|token| !covers(&first_log, *token)), "{first_log:?}");
    let second = sim.block_on(async {
        let mut second = Vec::new();
        for n in 0..10 {
            second.push(write(&shard, &model, &format!("\0second{n}")).await);
        }
        assert!(store.wait_persisted(Seqno(15)).await);
        second
    });
    assert!(store.persisted_seqno() > lost[2].seqno, "by seqno alone the lost writes would seem persisted");
    let log = store.failover_log();
    assert!(
        lost.iter().all(|token| !covers(&log, *token)) && second.iter().all(|token| covers(&log, *token))
    );
    assert_ne!(second[0].uuid, lost[0].uuid);
    drop(store);
    // Another crash, after a flush: the first branch keeps its end, the second gets one.
    sim.block_on(shard.flush()).unwrap();
    let unsynced = sim.block_on(write(&shard, &model, "\0unsynced"));
    let (sim, shard) = crash(sim, shard, &disk, &model, 0);
    let store = shard.vbucket(BUCKET, VB).unwrap();
    let log = store.failover_log();
    assert_eq!(log.iter().map(|entry| entry.seqno.0).collect::<Vec<_>>(), [15, 5, 0]);
    assert_eq!(log[1..], first_log);
    assert!(kept.iter().chain(&second).all(|token| covers(&log, *token)), "{log:?}");
    assert!(lost.iter().chain([&unsynced]).all(|token| !covers(&log, *token)), "{log:?}");
    // A clean stop keeps the branch.
    drop(store);
    sim.block_on(shard.close()).unwrap();
    let (_sim, shard) = crash(sim, shard, &disk, &model, 0);
    assert_eq!(shard.vbucket(BUCKET, VB).unwrap().failover_log(), log);
    shard.detach();
}

/// CAS rises over a restart also when the wall clock has gone back a day, wherever the greatest CAS stands: in the log, in a flushed
/// document, in a tombstone.
#[test]
fn cas_never_goes_back_when_the_wall_clock_does() {
    for (flush, delete, clean) in [
        (false, false, false),
        (false, true, false),
        (true, false, false),
        (true, true, false),
        (true, true, true),
    ] {
        let (sim, disk, shard, model) = new_world(6);
        sim.block_on(async {
            let token = write(&shard, &model, "\0key").await;
            let store = shard.vbucket(BUCKET, VB).unwrap();
            let mut last = token.seqno;
            if delete {
                last = put(&store, &model, b"\0key", None).await.unwrap();
            }
            assert!(store.wait_persisted(last).await);
            if flush {
                shard.flush().await.unwrap();
            }
            if clean {
                shard.close().await.unwrap();
            }
        });
        let before = model.borrow()[usize::from(VB.0)].writes.last().unwrap().cas;
        let day_ns = 86_400_000_000_000;
        let (sim, shard) = crash(sim, shard, &disk, &model, -day_ns);
        assert!(sim.env().clock.wall_ns() < before.0, "the clock has gone back");
        let mut last = before;
        for n in 0..3 {
            sim.block_on(write(&shard, &model, &format!("\0after{n}")));
            let cas = model.borrow()[usize::from(VB.0)].writes.last().unwrap().cas;
            assert!(cas > last, "flush {flush}, delete {delete}, clean {clean}: {cas} after {last}");
            last = cas;
        }
        shard.detach();
    }
}
