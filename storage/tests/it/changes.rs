//! What the tests of buckets and of single vbuckets share: documents to be found again, and a crash at every step of a change.

use std::fmt::Debug;
use std::time::Duration;

use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::shard::Shard;
use ringbase_storage::types::{Kind, Seqno};
use ringbase_storage::vbstore::{Found, NewVersion, VbStore, WriteError};

use crate::world::open_shard;

pub(crate) async fn write(store: &VbStore, key: &[u8], value: &[u8]) -> Result<Seqno, WriteError> {
    let found = store.get(key).await.unwrap();
    let new = NewVersion { key, value, flags: 0, expiry: 0, datatype: 0, kind: Kind::Mutation };
    store.write(&found, new).map(|item| item.seqno())
}

/// Ten documents in a vbucket, all durable.
pub(crate) async fn fill_vbucket(store: &VbStore, value: &[u8]) {
    for n in 0..10u8 {
        while write(store, &[0, b'k', n], value).await.is_err() {
            store.sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(store.wait_persisted(store.high_seqno()).await);
}

/// Whether a vbucket has them.
pub(crate) async fn vbucket_holds(store: &VbStore, value: &[u8]) -> bool {
    for n in 0..10u8 {
        match store.get(&[0, b'k', n]).await.unwrap() {
            Found::Version(item) if item.value() == value => {}
            _ => return false,
        }
    }
    true
}

/// The process dies; what the disk has kept is opened again.
pub(crate) fn restart(
    sim: SimExecutor,
    disk: &SimDisk,
    shard: Shard,
    seed: u64,
) -> Result<(SimExecutor, Shard), String> {
    drop(sim);
    shard.detach();
    drop(shard);
    disk.crash(seed);
    let sim = SimExecutor::new(seed + 1);
    disk.attach(&sim);
    let opened = sim.block_on(open_shard(&sim.env(), disk));
    let (shard, _) = opened.map_err(|error| error.to_string())?;
    Ok((sim, shard))
}

/// Crashes at every step of each change, with eight seeds; `crash_within` says whether the change was there afterwards, and whether it had been done
/// before.
pub(crate) fn crash_at_every_step<C: Copy + Debug>(
    changes: [C; 3],
    crash_within: impl Fn(C, u64, u64) -> (bool, bool),
) {
    for change in changes {
        let (mut before, mut after) = (0, 0);
        for seed in 1..=8 {
            for steps in 0.. {
                let (happened, done) = crash_within(change, steps, seed);
                if happened {
                    after += 1
                } else {
                    before += 1
                }
                if done {
                    break;
                }
            }
        }
        assert!(before > 0 && after > 0, "{change:?}: before {before}, after {after}");
    }
}
