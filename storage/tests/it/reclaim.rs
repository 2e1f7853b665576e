//! Space on disk against the model: what is counted live is what a reader would see.

use ringbase_storage::scan::SeqnoScan;
use ringbase_storage::shard::Shard;
use ringbase_storage::types::Seqno;

use rand::RngExt;

use crate::world::{Model, each_seed, new_world, open_shard, put, rng};

/// Bytes of a record beside key and value: its place, its head, the frame's header.
const RECORD_HEAD_BYTES: u64 = 4 + 8 + 24;

/// What a scan of all that is flushed shows: records, and their bytes in the seqlog.
async fn shown(shard: &Shard, vb: usize) -> (u64, u64) {
    let view = shard.vbuckets()[vb].open_view().await.unwrap();
    let (mut records, mut bytes) = (0, 0);
    let mut scan = SeqnoScan::new(view, Seqno(1));
    let more = scan.run(|record| {
        let extras = if record.meta.kind.is_deleted() { 21 } else { 31 };
        records += 1;
        bytes += RECORD_HEAD_BYTES + extras + (record.key.len() + record.value.len()) as u64;
        true
    });
    assert!(!more.await.unwrap());
    (records, bytes)
}

/// The live bytes of each vbucket are those of the records that a reader would see.
pub(crate) async fn check_live_bytes(shard: &Shard) {
    shard.flush().await.unwrap();
    for (vb, store) in shard.vbuckets().iter().enumerate() {
        let stats = store.stats();
        let (records, bytes) = shown(shard, vb).await;
        assert_eq!((stats.live_records, stats.live_bytes), (records, bytes), "vb {vb}");
        assert!(stats.live_bytes + stats.dead_bytes <= stats.seqlog_bytes, "{stats:?}");
    }
}

async fn overwrite(shard: &Shard, model: &Model, seed: u64, writes: u64) {
    let mut random = rng(seed);
    for _ in 0..writes {
        let stores = shard.vbuckets();
        let store = &stores[random.random_range(0..stores.len())];
        let key = format!("\0key{:02}", random.random_range(0..40)).into_bytes();
        let len = [20, 400, 9000][random.random_range(0..3)];
        let value = vec![random.random(); random.random_range(0..len)];
        let value = random.random_bool(0.85).then_some(&value[..]);
        if put(store, model, &key, value).await.is_err() {
            store.sleep(std::time::Duration::from_millis(2)).await;
        }
        if random.random_bool(0.02) {
            shard.flush().await.unwrap();
        }
    }
}

/// Live and dead bytes come from the death marks and need no data, before and after a restart.
#[test]
fn live_bytes_are_those_of_the_records_that_a_reader_sees() {
    each_seed(10, |seed| {
        let (sim, disk, shard, model) = new_world(seed);
        sim.block_on(async {
            overwrite(&shard, &model, seed, 600).await;
            check_live_bytes(&shard).await;
            let before: Vec<_> = shard.vbuckets().iter().map(|store| store.stats().dead_bytes).collect();
            assert!(before.iter().sum::<u64>() > 0);
            shard.close().await.unwrap();
            shard.detach();
            disk.clear_faults();
            let (shard, _) = open_shard(&sim.env(), &disk).await.unwrap();
            let after: Vec<_> = shard.vbuckets().iter().map(|store| store.stats().dead_bytes).collect();
            assert_eq!(before, after, "the marks on disk say what the marks in memory said");
            check_live_bytes(&shard).await;
            shard.detach();
        });
        1
    });
}
