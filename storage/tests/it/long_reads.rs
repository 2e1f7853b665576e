//! Blocks that are neighbours on the device are read together, and fail alone.

use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::or;
use ringbase_storage::env::Env;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::io::BLOCK_BYTES;
use ringbase_storage::io::sim::{Fault, Injection, SimDisk};
use ringbase_storage::reader::{LONG_READ_BYTES_MAX, ReadError};
use ringbase_storage::scan::SeqnoScan;
use ringbase_storage::shard::{Shard, ShardOptions};
use ringbase_storage::types::{Seqno, VbId};
use ringbase_storage::vbstore::VbStore;

use crate::changes::write;
use crate::world::{BUCKET, OPTIONS, default_bucket, format_shard_with, open_shard_with};

const DOCUMENTS: u64 = 40;

/// Room for all of them, so that they are flushed together.
const LARGE: ShardOptions = ShardOptions {
    resident_bytes_max: 4 << 20,
    memtable_bytes_max: 4 << 20,
    flush_bytes: 4 << 20,
    ..OPTIONS
};

async fn open(env: &Env, disk: &SimDisk) -> Shard {
    open_shard_with(env, disk, 16 << 20, LARGE).await.unwrap().0
}

/// A vbucket of [`DOCUMENTS`] flushed documents of one block each, nothing of which is in memory.
fn flushed(run: impl AsyncFnOnce(&SimDisk, &Rc<VbStore>)) {
    let (sim, disk) = (SimExecutor::new(3), SimDisk::new(3));
    disk.attach(&sim);
    let env = sim.env();
    sim.block_on(async {
        format_shard_with(&env, &disk, 1 << 20).await.unwrap();
        let shard = open(&env, &disk).await;
        shard.create_bucket(default_bucket()).await.unwrap();
        let store = shard.vbucket(BUCKET, VbId(1)).unwrap();
        for number in 0..DOCUMENTS {
            write(&store, format!("\0key{number:02}").as_bytes(), &[number as u8 + 1; 15_000]).await.unwrap();
        }
        shard.flush().await.unwrap();
        shard.close().await.unwrap();
        drop(store);
        shard.detach();
        let shard = open(&env, &disk).await;
        let store = shard.vbucket(BUCKET, VbId(1)).unwrap();
        run(&disk, &store).await;
        drop(store);
        shard.detach();
    });
}

/// Seqnos shown, and how the scan ended.
async fn scan(store: &VbStore) -> (Vec<u64>, Result<bool, ReadError>) {
    let mut scan = SeqnoScan::new(store.open_view().await.unwrap(), Seqno(1));
    let mut shown = Vec::new();
    let ended = scan.run(|record| {
        shown.push(record.meta.seqno.0);
        true
    });
    let ended = ended.await;
    (shown, ended)
}

#[test]
fn neighbours_are_read_together() {
    flushed(async |disk, store| {
        let before = disk.stats();
        let (shown, ended) = scan(store).await;
        assert!(!ended.unwrap() && shown.into_iter().eq(1..=DOCUMENTS));
        let (reads, bytes) = (disk.stats().reads - before.reads, disk.stats().bytes_read - before.bytes_read);
        assert_eq!(bytes, DOCUMENTS * 4 * BLOCK_BYTES as u64, "every block once");
        assert!(
            reads <= 1 + 2 * bytes.div_ceil(LONG_READ_BYTES_MAX as u64),
            "{reads} reads of {bytes} bytes"
        );
    });
}

/// T3.16: what lies in front of the bad block comes, in order, though it was read together with it.
#[test]
fn a_bad_block_fails_alone_though_it_was_read_with_its_neighbours() {
    flushed(async |disk, store| {
        let image = disk.image("data");
        for bad in [1_u8, 5, 6, 30, 40] {
            let document = image.windows(64).position(|bytes| bytes == [bad; 64]).unwrap() as u64;
            let sector = document..document + 1;
            disk.inject(Injection::next(Fault::ReadError).on("data").at(sector).sticky());
            let (shown, ended) = scan(store).await;
            disk.clear_faults();
            assert!(matches!(ended, Err(ReadError::Io { .. })), "{bad}: {ended:?}");
            assert!(shown.iter().copied().eq(1..u64::from(bad)), "{bad}: {shown:?}");
        }
    });
}

/// T3.15: a caller without room for more learns that the next block cannot be read; one that loses patience misses nothing.
#[test]
fn a_bad_block_that_comes_next_is_told_without_room_and_no_other_is() {
    flushed(async |disk, store| {
        let image = disk.image("data");
        let document = image.windows(64).position(|bytes| bytes == [9; 64]).unwrap() as u64;
        disk.inject(Injection::next(Fault::ReadError).on("data").at(document..document + 1).sticky());
        let mut scan = SeqnoScan::new(store.open_view().await.unwrap(), Seqno(1));
        let mut shown = Vec::new();
        for last in 1..=8 {
            let more = scan.run(|record| {
                shown.push(record.meta.seqno.0);
                false
            });
            assert!(more.await.unwrap());
            let mut told = 0;
            // One that loses patience while a block is read again alone is not told, but finds out when it goes on.
            let patience = [Duration::ZERO, Duration::from_micros(1), Duration::from_millis(50)];
            for patience in patience.into_iter().skip(if last == 8 { 2 } else { 0 }) {
                let failure = or(async { Some(scan.failure_ahead().await) }, async {
                    store.sleep(patience).await;
                    None
                });
                let failure = failure.await;
                if let Some(failure) = failure {
                    assert!(matches!(failure, ReadError::Io { .. }), "{failure}");
                    assert_eq!(scan.unreadable(), Some((Seqno(9), Seqno(9))));
                    told += 1;
                }
            }
            assert_eq!(told > 0, last == 8, "{told} failures behind {last}");
        }
        assert!(shown.into_iter().eq(1..=8));
        disk.clear_faults();
        let mut shown = Vec::new();
        let more = scan.run(|record| {
            shown.push(record.meta.seqno.0);
            true
        });
        assert!(!more.await.unwrap() && shown.into_iter().eq(9..=DOCUMENTS));
    });
}
