//! Vbuckets that live in memory only, against the model: many scans half-way at once while everything is overwritten, deleted and purged.
//!
//! `RINGBASE_SEEDS=5000 cargo test --release -p ringbase-storage --test it ephemeral` runs any number of seeds.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::{or, poll_once, zip};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::reader::ReadError;
use ringbase_storage::scan::{Content, KeyRange, KeyScan, Limits, Select, Stop};
use ringbase_storage::shard::{Home, Shard};
use ringbase_storage::types::{BucketId, Seqno, VbId};
use ringbase_storage::vbstore::{ReadView, VbStore};

use crate::world::{
    Model, VBUCKETS, VbModel, document, documents_of, each_seed, new_world, open_shard, put, rng, seeds,
};

pub(crate) const MEMORY: BucketId = BucketId(7);
pub(crate) const VB: VbId = VbId(1);
const KEYS: u32 = 60;
const SEEDS: u64 = 60;

type Moment = BTreeMap<Vec<u8>, (u64, Option<Vec<u8>>)>;

type Documents = Vec<(Vec<u8>, u64, Vec<u8>)>;

pub(crate) fn memory_bucket() -> BucketDesc {
    BucketDesc { id: MEMORY, uuid: 7, name: "memory".into(), config: String::new() }
}

pub(crate) fn empty_model() -> Model {
    Model::new((0..VBUCKETS).map(|_| VbModel::default()).collect::<Vec<_>>().into())
}

/// What a view must show in key order.
fn expected(model: &Model, view: &ReadView) -> Documents {
    let at = model.borrow()[VB.0 as usize].at(view.end());
    at.into_iter().filter_map(|(key, (seqno, value))| Some((key[1..].to_vec(), seqno, value?))).collect()
}

/// A scan under way and what it has shown.
struct Running {
    view: ReadView,
    scan: KeyScan,
    expected: Documents,
    shown: Documents,
}

impl Running {
    async fn open(store: &Rc<VbStore>, model: &Model) -> Running {
        let view = store.open_view().await.unwrap();
        let scan =
            KeyScan::new(view.clone(), KeyRange::collection(0), Content::Documents(Rc::new(document)), None);
        Running { expected: expected(model, &view), view, scan, shown: Vec::new() }
    }

    /// Shows at most `items` documents; true at the end.
    async fn step(&mut self, items: u64) -> bool {
        let mut out = Vec::new();
        let mut limits = Limits { buffer_bytes: 1 << 20, items: Some(items), bytes: None, deadline_ns: None };
        let stop = self.scan.fill(&mut out, &mut limits).await.unwrap();
        self.shown.extend(documents_of(&out));
        assert_eq!(self.shown, self.expected[..self.shown.len()], "{:?}", self.view);
        if stop == Stop::End {
            assert_eq!(self.shown.len(), self.expected.len(), "{:?}", self.view);
        }
        stop == Stop::End
    }

    /// Versions that only readers like this one can still see: replaced after its end, not passed. `now` is what is newest.
    fn can_see(&self, now: &Moment) -> usize {
        let ahead = &self.expected[self.shown.len()..];
        ahead.iter().filter(|(key, seqno, _)| now[&[&[0], &key[..]].concat()].0 != *seqno).count()
    }
}

async fn write_some(store: &Rc<VbStore>, model: &Model, random: &mut Xoshiro256PlusPlus) {
    for _ in 0..random.random_range(0..80) {
        let key = format!("\0key{:03}", random.random_range(0..KEYS)).into_bytes();
        let value = vec![random.random(); random.random_range(0..100)];
        put(store, model, &key, random.random_bool(0.8).then_some(&value[..])).await.unwrap();
    }
}

/// Purges tombstones to the end of a round.
pub(crate) fn purge(store: &VbStore) {
    while store.purge_tombstones(1) {}
}

/// How much is set aside. What ended readers held goes in a task of its own, which may take a while to come to at most `expected`.
pub(crate) async fn stale_at_rest(store: &VbStore, expected: u64) -> u64 {
    let stale = || store.versions_stats().stale;
    for _ in 0..20 {
        if stale() <= expected {
            break;
        }
        store.sleep(std::time::Duration::from_millis(1)).await;
    }
    stale()
}

async fn live(store: &Rc<VbStore>, model: &Model, random: &mut Xoshiro256PlusPlus) -> u64 {
    let (mut running, mut ended): (Vec<Running>, u64) = (Vec::new(), 0);
    for _ in 0..60 {
        write_some(store, model, random).await;
        if running.len() < 8 && random.random_bool(0.6) {
            running.push(Running::open(store, model).await);
        }
        if random.random_bool(0.2) {
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
        let now = model.borrow()[VB.0 as usize].at(Seqno(u64::MAX));
        let visible: usize = running.iter().map(|running| running.can_see(&now)).sum();
        let stale = stale_at_rest(store, visible as u64).await;
        assert!(stale <= visible as u64, "{stale} versions set aside, {visible} visible to live readers");
        assert!(running.is_empty() || stale * 8 >= visible as u64, "every version that is seen is set aside");
        for key in 0..KEYS {
            let key = format!("\0key{key:03}").into_bytes();
            let expected = now.get(&key).and_then(|found| found.1.as_deref());
            let found = store.get(&key).await.unwrap();
            assert_eq!(found.live().map(|item| item.value()), expected);
        }
    }
    drop(running);
    stale_at_rest(store, 0).await;
    let stats = store.versions_stats();
    assert_eq!((stats.stale, stats.stale_value_bytes, stats.stale_meta_bytes, stats.readers), (0, 0, 0, 0));
    ended
}

pub(crate) fn memory_vbucket(shard: &Shard) -> Rc<VbStore> {
    shard.vbucket(MEMORY, VB).unwrap()
}

fn run_seed(seed: u64) -> u64 {
    let mut random = rng(seed);
    let (sim, disk, shard, _) = new_world(seed);
    sim.block_on(async {
        shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
        let before = shard.stats().wal_head_blocks;
        let store = memory_vbucket(&shard);
        let ended = live(&store, &empty_model(), &mut random).await;
        assert!(!store.drop_idle_index(u64::MAX) && store.versions_stats().index_bytes == 0);
        assert_eq!(shard.stats().wal_head_blocks, before, "nothing of it is on disk");
        let uuid = store.uuid();
        shard.close().await.unwrap();
        drop(store);
        shard.detach();
        let (shard, _) = open_shard(&sim.env(), &disk).await.unwrap();
        shard.open_memory_bucket(MEMORY);
        let store = memory_vbucket(&shard);
        assert_eq!((store.items(), store.high_seqno()), (0, Seqno(0)), "a restart empties it");
        assert_ne!(store.uuid(), uuid, "and clients can tell");
        shard.close().await.unwrap();
        shard.detach();
        ended
    })
}

/// T4.1, T4.5, T4.6 in key order, T4.7, T4.9, T4.15, T4.16: any number of scans, each at its own moment and its own key, show exactly that moment;
/// what is set aside for them is what they can still see.
#[test]
fn scans_show_their_moment_while_everything_changes_and_only_what_they_see_is_kept() {
    let ended = each_seed(SEEDS, run_seed);
    println!("{ended} scans came to their end");
    assert!(ended > seeds(SEEDS).count() as u64);
}

/// The mutant asks no reader before it lets a version go.
#[test]
fn letting_go_without_asking_the_readers_is_noticed() {
    let caught = std::panic::catch_unwind(|| {
        let _mutant = turn_on(Mutant::ForgetReaders);
        (0..20).map(run_seed).sum::<u64>()
    });
    let panic = caught.expect_err("the mutant is noticed");
    assert_eq!(panic.downcast_ref(), Some(&"every version that is seen is set aside"));
}

const MANY: usize = 450;

/// Where a scan stands when its bucket goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Fresh,
    /// A limit ended the call before: it holds nothing but its position.
    Parked,
    /// A full buffer ended the call before: it may hold what comes next.
    Full,
    UnderWay,
}

/// A scan of [`MANY`] documents whose bucket is deleted or emptied. Returns how many it has shown, and how it ended.
async fn scan_of_a_bucket_that_goes(
    shard: &Shard,
    standing: Standing,
    random: &mut Xoshiro256PlusPlus,
) -> (usize, Result<Stop, ReadError>) {
    shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
    let (store, model) = (memory_vbucket(shard), empty_model());
    for n in 0..MANY {
        put(&store, &model, format!("\0{n:04}").as_bytes(), Some(b"1")).await.unwrap();
    }
    let go = async {
        let successor = BucketDesc { id: BucketId(8), ..memory_bucket() };
        match store.uuid().0 % 2 {
            0 => shard.delete_bucket(MEMORY).await.unwrap(),
            _ => shard.replace_bucket(MEMORY, successor, Home::Memory).await.unwrap(),
        }
    };
    let content = if random.random() { Content::Keys } else { Content::Documents(Rc::new(document)) };
    // A scan that asks which keys are wanted keeps those of its window when it is parked.
    let select: Option<Select> = random.random_bool(0.5).then(|| Box::new(|_: &[u8]| true) as Select);
    let view = store.open_view().await.unwrap();
    let mut scan = KeyScan::new(view.clone(), KeyRange::collection(0), content, select);
    let items = (standing == Standing::Parked).then(|| random.random_range(1..300));
    let buffer_bytes = if standing == Standing::Full { random.random_range(1..2000) } else { 1 << 20 };
    let mut limits = Limits { buffer_bytes, items, bytes: None, deadline_ns: None };
    let mut out = Vec::new();
    let everything = Limits { buffer_bytes: 1 << 20, items: None, bytes: None, deadline_ns: None };
    let ended = match standing {
        Standing::UnderWay => {
            let begins_after = std::time::Duration::from_micros(random.random_range(0..800));
            let scanning = async {
                store.sleep(begins_after).await;
                scan.fill(&mut out, &mut limits).await
            };
            zip(scanning, go).await.0
        }
        Standing::Fresh => {
            go.await;
            scan.fill(&mut out, &mut { everything }).await
        }
        Standing::Parked | Standing::Full => {
            let stop = scan.fill(&mut out, &mut limits).await.unwrap();
            let expected = if standing == Standing::Full { Stop::BufferFull } else { Stop::Limit };
            assert_eq!(stop, expected);
            go.await;
            scan.fill(&mut out, &mut { everything }).await
        }
    };
    if ended.is_err() {
        let anew = KeyScan::has_any(&view, &KeyRange::collection(0)).await;
        assert!(matches!(anew, Err(ReadError::Gone)), "{anew:?}");
        let is_there = view.contains_seqno(Seqno(1)).await;
        assert!(matches!(is_there, Err(ReadError::Gone)), "{is_there:?}");
    }
    assert!(store.open_view().await.is_err());
    (scan.counts().records as usize, ended)
}

/// T4.13: deleting or emptying the bucket while scans live is safe. Wherever one stands then, it shows everything or ends with an error, never as if a
/// part were all.
#[test]
fn a_scan_of_a_bucket_that_goes_says_so_wherever_it_stands() {
    let (mut cut_under_way, mut complete) = (0, 0);
    let mut run = |seed, standing| {
        let (sim, _disk, shard, _) = new_world(seed);
        let mut random = rng(seed);
        let (shown, ended) = sim.block_on(scan_of_a_bucket_that_goes(&shard, standing, &mut random));
        match ended {
            Ok(Stop::End) => {
                let may_have_all = matches!(standing, Standing::Full | Standing::UnderWay);
                assert!(shown == MANY && may_have_all, "{standing:?}: {shown}");
                complete += u64::from(standing == Standing::UnderWay);
            }
            Err(ReadError::Gone) => {
                assert!(shown < MANY, "{standing:?}");
                cut_under_way += u64::from(shown > 0 && standing == Standing::UnderWay);
            }
            other => panic!("{standing:?}: {other:?} after {shown}"),
        }
    };
    let standings = [Standing::Fresh, Standing::Parked, Standing::Full, Standing::UnderWay];
    let seeds = each_seed(200, |seed| {
        standings.into_iter().for_each(|standing| run(seed, standing));
        1
    });
    println!("under way: {cut_under_way} were cut off, {complete} came to their end");
    assert!(seeds < 200 || cut_under_way > 0 && complete > 0);
}

/// T4.10: the purge seqno is that of the newest tombstone that went without a successor; overwriting moves nothing.
#[test]
fn only_a_tombstone_that_nobody_replaced_moves_the_purge_seqno() {
    let (sim, _disk, shard, _) = new_world(1);
    sim.block_on(async {
        shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
        let (store, model) = (memory_vbucket(&shard), empty_model());
        put(&store, &model, b"\0a", Some(b"1")).await.unwrap();
        put(&store, &model, b"\0a", None).await.unwrap();
        put(&store, &model, b"\0a", Some(b"2")).await.unwrap();
        put(&store, &model, b"\0b", Some(b"1")).await.unwrap();
        purge(&store);
        assert_eq!(store.purge_seqno(), Seqno(0), "the tombstone of a was replaced");
        put(&store, &model, b"\0b", None).await.unwrap();
        purge(&store);
        assert_eq!(store.purge_seqno(), Seqno(0), "the newest version of the vbucket stays");
        put(&store, &model, b"\0c", Some(b"1")).await.unwrap();
        purge(&store);
        let stats = store.versions_stats();
        assert_eq!((store.purge_seqno(), stats.purged, stats.versions), (Seqno(5), 1, 2));
        assert_eq!(store.stats().tombstones, 0);
    });
}

/// A full bucket refuses what makes it fuller and nothing else.
#[test]
fn memory_is_bounded_and_deletions_are_always_taken() {
    let (sim, _disk, shard, _) = new_world(2);
    sim.block_on(async {
        shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
        shard.set_bucket_quota(MEMORY, 40_000);
        let (store, model) = (memory_vbucket(&shard), empty_model());
        let mut stored = 0;
        let refused = loop {
            let key = format!("\0key{stored}").into_bytes();
            match put(&store, &model, &key, Some(&[7; 100])).await {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, ringbase_storage::vbstore::WriteError::NoRoom);
        assert!((50..250).contains(&stored), "{stored}");
        for n in 0..stored {
            put(&store, &model, format!("\0key{n}").as_bytes(), None).await.unwrap();
        }
        purge(&store);
        put(&store, &model, b"\0again", Some(b"there is room")).await.unwrap();
    });
}

/// In memory a write is as durable as it will be: who waits for its seqno goes on with it.
#[test]
fn who_waits_for_a_seqno_goes_on_when_it_is_written() {
    let (sim, _disk, shard, _) = new_world(3);
    sim.block_on(async {
        shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
        let (store, model) = (memory_vbucket(&shard), empty_model());
        put(&store, &model, b"\0a", Some(b"1")).await.unwrap();
        let mut waiting = std::pin::pin!(store.wait_persisted(Seqno(2)));
        assert_eq!(poll_once(waiting.as_mut()).await, None);
        let env = sim.env();
        let writing = async {
            put(&store, &model, b"\0b", Some(b"2")).await.unwrap();
            env.spawn.sleep(Duration::from_secs(1)).await;
            panic!("nobody told it");
        };
        assert!(or(waiting, writing).await);
    });
}
