//! Range reads of memory-only vbuckets, in seqno order: many at once, each at its own moment, while everything is overwritten, deleted and purged.
//!
//! `RINGBASE_SEEDS=5000 cargo test --release -p ringbase-storage --test it range_reads` runs any number of seeds.

use std::rc::Rc;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::reader::ReadError;
use ringbase_storage::scan::SeqnoScan;
use ringbase_storage::shard::Home;
use ringbase_storage::types::Seqno;
use ringbase_storage::vbstore::VbStore;

use crate::ephemeral::{MEMORY, VB, empty_model, memory_bucket, memory_vbucket, purge, stale_at_rest};
use crate::world::{Model, each_seed, new_world, put, rng, seeds};

const KEYS: u32 = 60;
const SEEDS: u64 = 60;

type Version = (u64, Vec<u8>, Option<Vec<u8>>);

/// A range read under way, what it must show and what it has shown.
struct Running {
    scan: SeqnoScan,
    expected: Vec<Version>,
    shown: Vec<Version>,
}

impl Running {
    async fn open(store: &VbStore, model: &Model, from: u64) -> Running {
        let scan = SeqnoScan::open(store, Seqno(from)).await.unwrap();
        assert_eq!(scan.view().end(), store.high_seqno(), "T4.8: it ends at the high seqno");
        let now = model.borrow()[VB.0 as usize].at(scan.view().end());
        let mut expected: Vec<Version> =
            now.into_iter().map(|(key, (seqno, value))| (seqno, key, value)).collect();
        expected.retain(|(seqno, _, value)| *seqno >= from && (value.is_some() || store_has(store, *seqno)));
        expected.sort();
        Running { scan, expected, shown: Vec::new() }
    }

    async fn step(&mut self, items: usize) -> bool {
        let (shown, mut left) = (&mut self.shown, items);
        let more = self.scan.run(|record| {
            let value = (!record.meta.kind.is_deleted()).then(|| record.value.to_vec());
            shown.push((record.meta.seqno.0, record.key.to_vec(), value));
            left -= 1;
            left > 0
        });
        let more = more.await.unwrap();
        assert_eq!(self.shown, self.expected[..self.shown.len()], "{:?}", self.scan.view());
        if !more {
            assert_eq!(self.shown.len(), self.expected.len(), "{:?}", self.scan.view());
        }
        !more
    }

    /// Versions that it has ahead of it and that are not the newest any more, or purged but for it.
    fn can_see(&self, store: &VbStore) -> usize {
        let position = self.scan.position().0;
        let ahead = self.expected.iter().filter(|(seqno, _, _)| *seqno >= position);
        // What is read ahead in its batch is a copy of its own.
        ahead.filter(|(seqno, _, _)| !store_has(store, *seqno)).count()
    }
}

/// Whether this is still the newest version of its key.
fn store_has(store: &VbStore, seqno: u64) -> bool {
    store.oldest(Seqno(seqno)).0.first().is_some_and(|item| item.seqno().0 == seqno)
}

async fn write_some(store: &Rc<VbStore>, model: &Model, random: &mut Xoshiro256PlusPlus) {
    for _ in 0..random.random_range(0..80) {
        let key = format!("\0key{:03}", random.random_range(0..KEYS)).into_bytes();
        let value = vec![random.random(); random.random_range(0..100)];
        put(store, model, &key, random.random_bool(0.7).then_some(&value[..])).await.unwrap();
    }
}

async fn live(store: &Rc<VbStore>, model: &Model, random: &mut Xoshiro256PlusPlus) -> u64 {
    let (mut running, mut ended): (Vec<Running>, u64) = (Vec::new(), 0);
    for _ in 0..60 {
        write_some(store, model, random).await;
        if running.len() < 8 && random.random_bool(0.6) {
            let from = if random.random() { 1 } else { random.random_range(0..store.high_seqno().0 + 2) };
            running.push(Running::open(store, model, from).await);
        }
        if random.random_bool(0.3) {
            purge(store);
        }
        let mut index = 0;
        while index < running.len() {
            if random.random_bool(0.05) {
                drop(running.swap_remove(index));
            } else if random.random_bool(0.5)
                && running[index].step([1, 3, 20, 1000][random.random_range(0..4)]).await
            {
                running.swap_remove(index);
                ended += 1;
            } else {
                index += 1;
            }
        }
        let visible: usize = running.iter().map(|running| running.can_see(store)).sum();
        let stale = stale_at_rest(store, visible as u64).await;
        assert!(stale <= visible as u64, "T4.15: {stale} versions kept, {visible} visible to live readers");
    }
    drop(running);
    stale_at_rest(store, 0).await;
    let stats = store.versions_stats();
    assert_eq!((stats.stale, stats.stale_value_bytes, stats.stale_meta_bytes, stats.readers), (0, 0, 0, 0));
    assert_eq!((stats.range_read_begin, stats.range_read_end), (0, 0));
    assert_eq!(stats.versions, store.items() + store.stats().tombstones);
    ended
}

fn run_seed(seed: u64) -> u64 {
    let mut random = rng(seed);
    let (sim, _disk, shard, _) = new_world(seed);
    sim.block_on(async {
        shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
        live(&memory_vbucket(&shard), &empty_model(), &mut random).await
    })
}

/// T4.1, T4.5, T4.6, T4.7, T4.8, T4.12, T4.15: any number of range reads, each from its own seqno and at its own moment, show exactly that
/// moment, also the tombstones that are purged meanwhile; what is kept for them is what they can still see.
#[test]
fn range_reads_show_their_moment_while_everything_changes_and_only_what_they_see_is_kept() {
    let ended = each_seed(SEEDS, run_seed);
    println!("{ended} range reads came to their end");
    assert!(ended > seeds(SEEDS).count() as u64);
}

/// The mutant asks no reader before it lets a version go.
#[test]
fn a_range_read_notices_what_was_let_go_without_asking_it() {
    let caught = std::panic::catch_unwind(|| {
        let _mutant = turn_on(Mutant::ForgetReaders);
        (0..20).map(run_seed).sum::<u64>()
    });
    let panic = caught.expect_err("the mutant is noticed");
    let text = panic.downcast_ref::<String>().expect("an assertion with a text");
    assert!(text.starts_with("assertion `left == right` failed: ReadView"), "{text}");
}

/// T4.2: no range read is ever refused or made to wait, not even in the middle of a purge; the purge goes on beside it and passes over what it can see.
/// T4.11: the purge seqno that counts for it is the one of its opening.
#[test]
fn a_range_read_opens_in_the_middle_of_a_purge_and_the_purge_goes_on() {
    let (sim, _disk, shard, _) = new_world(3);
    sim.block_on(async {
        shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
        let (store, model) = (memory_vbucket(&shard), empty_model());
        for n in 0..700u32 {
            put(&store, &model, format!("\0{n:04}").as_bytes(), None).await.unwrap();
        }
        put(&store, &model, b"\0last", Some(b"1")).await.unwrap();
        assert!(store.purge_tombstones(u32::MAX), "a round has more than one slice");
        let purged = store.purge_seqno();
        assert!(purged > Seqno(0) && purged < Seqno(700));
        let mut reading = Running::open(&store, &model, 1).await;
        assert_eq!(reading.scan.purge_seqno(), purged);
        while store.purge_tombstones(u32::MAX) {}
        assert_eq!(store.purge_seqno(), purged, "it can see all that is left");
        assert!(!reading.step(100).await);
        while store.purge_tombstones(u32::MAX) {}
        let later = store.purge_seqno();
        assert!(later > purged && store.stats().tombstones > 0, "what it has passed went");
        assert_eq!(reading.scan.purge_seqno(), purged);
        assert_eq!(SeqnoScan::open(&store, Seqno(1)).await.unwrap().purge_seqno(), later);
        assert!(reading.step(5000).await);
        drop(reading);
        while store.purge_tombstones(u32::MAX) {}
        assert_eq!((store.purge_seqno(), store.stats().tombstones), (Seqno(700), 0));
    });
}

/// T4.13: deleting the vbucket while range reads live is safe; they end with an error, never as if they were complete.
#[test]
fn a_range_read_of_a_deleted_bucket_says_so() {
    let (sim, _disk, shard, _) = new_world(4);
    sim.block_on(async {
        shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
        let (store, model) = (memory_vbucket(&shard), empty_model());
        for n in 0..500u32 {
            put(&store, &model, format!("\0{n:04}").as_bytes(), Some(b"1")).await.unwrap();
        }
        let (mut begun, mut fresh) =
            (Running::open(&store, &model, 1).await, Running::open(&store, &model, 1).await);
        assert!(!begun.step(10).await);
        shard.delete_bucket(MEMORY).await.unwrap();
        // What they have not read yet is let go of by a task of its own.
        store.sleep(std::time::Duration::from_millis(1)).await;
        for running in [&mut begun, &mut fresh] {
            let mut shown = 0;
            let ended = running
                .scan
                .run(|_| {
                    shown += 1;
                    true
                })
                .await;
            assert!(matches!(ended, Err(ReadError::Gone)), "{ended:?} after {shown}");
            assert!(shown < 500);
        }
    });
}

/// T4.9: the newest version of the vbucket stays, be it a tombstone that is due.
#[test]
fn the_highest_seqno_stays_in_the_list() {
    let (sim, _disk, shard, _) = new_world(5);
    sim.block_on(async {
        shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
        let (store, model) = (memory_vbucket(&shard), empty_model());
        put(&store, &model, b"\0a", Some(b"1")).await.unwrap();
        put(&store, &model, b"\0a", None).await.unwrap();
        while store.purge_tombstones(u32::MAX) {}
        assert_eq!((store.versions_stats().versions, store.purge_seqno()), (1, Seqno(0)));
        let mut reading = Running::open(&store, &model, 1).await;
        assert!(reading.step(10).await);
        assert_eq!(reading.shown, [(2, b"\0a".to_vec(), None)]);
    });
}
