//! A simulated machine with one shard, and the model that says what the shard must hold.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use ringbase_storage::cache::BlockCache;
use ringbase_storage::env::Env;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::scan::{Content, KeyRange, KeyScan, Limits, SeqnoScan, Stop, VersionScan};
use ringbase_storage::shard::{
    FormatOptions, OpenError, ReclaimOptions, RecoveryReport, ScrubOptions, Shard, ShardOptions, format,
};
use ringbase_storage::types::{BucketId, Cas, Kind, Seqno, ShardId, VbId};
use ringbase_storage::vbstore::{Found, NewVersion, ReadView, VbStore, WriteError};

pub(crate) const BUCKET: BucketId = BucketId(1);
pub(crate) const VBUCKETS: u16 = 4;
pub(crate) const WAL_BLOCKS: u64 = 4 * 16;

pub(crate) const OPTIONS: ShardOptions = ShardOptions {
    resident_bytes_max: 64 << 10,
    memtable_bytes_max: 1 << 20,
    grow_bytes: 256 << 10,
    flush_bytes: 32 << 10,
    window_versions_max: 40,
    scrub: ScrubOptions::WHEN_ASKED,
    reclaim: ReclaimOptions::UNPACED,
};

/// One write as the model remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) cas: Cas,
}

/// What one vbucket was told: write `n` has seqno `n + 1`.
#[derive(Debug, Default, Clone)]
pub(crate) struct VbModel {
    pub(crate) writes: Vec<Written>,
    pub(crate) uuids: Vec<u64>,
}

impl VbModel {
    /// Key to (seqno, value) as of `end`, deletions included.
    pub(crate) fn at(&self, end: Seqno) -> BTreeMap<Vec<u8>, (u64, Option<Vec<u8>>)> {
        let writes = self.writes.iter().take(end.0 as usize).enumerate();
        writes.map(|(n, write)| (write.key.clone(), (n as u64 + 1, write.value.clone()))).collect()
    }

    /// Seqno and value of the newest version of a key, a deletion included.
    pub(crate) fn newest(&self, key: &[u8]) -> Option<(u64, Option<&[u8]>)> {
        let n = self.writes.iter().rposition(|write| write.key == key)?;
        Some((n as u64 + 1, self.writes[n].value.as_deref()))
    }
}

pub(crate) type Model = Rc<RefCell<Vec<VbModel>>>;

pub(crate) fn rng(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// The seeds of a random test: `default` many from 0 on, or `RINGBASE_SEEDS` many from `RINGBASE_FIRST_SEED` on.
pub(crate) fn seeds(default: u64) -> Range<u64> {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number of seeds"))
    };
    let first = number("RINGBASE_FIRST_SEED", 0);
    first..first + number("RINGBASE_SEEDS", default)
}

/// Runs `run` with each of [`seeds`] and adds up what it returns. A failure names its seed.
pub(crate) fn each_seed(default: u64, mut run: impl FnMut(u64) -> u64) -> u64 {
    let outcomes = seeds(default).map(|seed| {
        catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(|panic| {
            eprintln!("failed at seed {seed}: RINGBASE_FIRST_SEED={seed} RINGBASE_SEEDS=1 repeats it");
            resume_unwind(panic)
        })
    });
    outcomes.sum()
}

/// Runs `look` with a fault turned on; what panics in it says nothing.
pub(crate) fn with_mutant<T>(mutant: Mutant, look: impl FnOnce() -> T) -> T {
    let _on = turn_on(mutant);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = look();
    std::panic::set_hook(hook);
    found
}

/// The first of `seeds` at which a checker notices, with the fault turned on.
pub(crate) fn caught_at(mutant: Mutant, seeds: u64, run: impl Fn(u64)) -> Option<u64> {
    with_mutant(mutant, || (0..seeds).find(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed))).is_err()))
}

pub(crate) async fn format_shard(env: &Env, disk: &SimDisk) -> Result<(), OpenError> {
    format_shard_with(env, disk, 64 << 10).await
}

pub(crate) async fn format_shard_with(
    env: &Env,
    disk: &SimDisk,
    wal_segment_bytes: u32,
) -> Result<(), OpenError> {
    let geometry = Geometry {
        shard: ShardId(0),
        shard_count: 1,
        vbucket_count: VBUCKETS,
        wal_segments: 4,
        wal_segment_bytes,
    };
    let options = FormatOptions { geometry, grow_bytes: OPTIONS.grow_bytes };
    format(env, &disk.open("wal"), &disk.open("data"), options).await
}

pub(crate) async fn open_shard(env: &Env, disk: &SimDisk) -> Result<(Shard, RecoveryReport), OpenError> {
    open_shard_with(env, disk, 128 << 10, OPTIONS).await
}

pub(crate) async fn open_shard_with(
    env: &Env,
    disk: &SimDisk,
    cache_bytes: usize,
    options: ShardOptions,
) -> Result<(Shard, RecoveryReport), OpenError> {
    let cache = BlockCache::new(cache_bytes);
    Shard::open(env.clone(), disk.open("wal"), disk.open("data"), cache, options).await
}

pub(crate) fn default_bucket() -> BucketDesc {
    BucketDesc { id: BUCKET, uuid: 7, name: "default".into(), config: String::new() }
}

/// Formats and opens a shard with one bucket.
pub(crate) fn new_world(seed: u64) -> (SimExecutor, SimDisk, Shard, Model) {
    let (sim, disk) = (SimExecutor::new(seed), SimDisk::new(seed));
    disk.attach(&sim);
    let env = sim.env();
    let shard = sim.block_on(async {
        format_shard(&env, &disk).await.unwrap();
        let (shard, _) = open_shard(&env, &disk).await.unwrap();
        shard.create_bucket(default_bucket()).await.unwrap();
        shard
    });
    let model: Model = Rc::default();
    for vb in 0..VBUCKETS {
        let uuid = shard.vbucket(BUCKET, VbId(vb)).unwrap().uuid().0;
        model.borrow_mut().push(VbModel { writes: Vec::new(), uuids: vec![uuid] });
    }
    (sim, disk, shard, model)
}

/// Writes one version (or deletion) of a key; `false` if the shard was busy.
pub(crate) async fn put(
    store: &Rc<VbStore>,
    model: &Model,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<Seqno, WriteError> {
    let found = store.get(key).await.expect("no read fault is injected");
    let kind = if value.is_some() { Kind::Mutation } else { Kind::Deletion };
    let new = NewVersion { key, value: value.unwrap_or_default(), flags: 5, expiry: 0, datatype: 0, kind };
    let item = store.write(&found, new)?;
    let vb = &mut model.borrow_mut()[store.id().0 as usize];
    let written = Written { key: key.to_vec(), value: value.map(<[u8]>::to_vec), cas: item.cas() };
    vb.writes.push(written);
    assert_eq!(item.seqno().0, vb.writes.len() as u64, "seqnos rise by one a write");
    Ok(item.seqno())
}

pub(crate) fn document(
    out: &mut Vec<u8>,
    meta: &ringbase_storage::types::ItemMeta,
    key: &[u8],
    value: &[u8],
) {
    for part in [&meta.seqno.0.to_be_bytes()[..], &(key.len() as u32).to_be_bytes(), key] {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
    out.extend_from_slice(value);
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(len);
    *rest = tail;
    head
}

/// The documents that a scan has written.
pub(crate) fn documents_of(out: &[u8]) -> Vec<(Vec<u8>, u64, Vec<u8>)> {
    let (mut rest, mut all) = (out, Vec::new());
    while !rest.is_empty() {
        let seqno = u64::from_be_bytes(take(&mut rest, 8).try_into().unwrap());
        let len = u32::from_be_bytes(take(&mut rest, 4).try_into().unwrap()) as usize;
        let key = take(&mut rest, len).to_vec();
        let len = u32::from_be_bytes(take(&mut rest, 4).try_into().unwrap()) as usize;
        all.push((key, seqno, take(&mut rest, len).to_vec()));
    }
    all
}

/// Every document of a view in key order, read in pieces of `piece` bytes.
pub(crate) async fn scan_documents(view: &ReadView, piece: usize) -> Vec<(Vec<u8>, u64, Vec<u8>)> {
    let mut scan =
        KeyScan::new(view.clone(), KeyRange::collection(0), Content::Documents(Rc::new(document)), None);
    let mut all = Vec::new();
    loop {
        let mut out = Vec::new();
        let mut limits = Limits { buffer_bytes: piece, items: None, bytes: None, deadline_ns: None };
        let stop = scan.fill(&mut out, &mut limits).await.expect("no read fault is injected");
        all.extend(documents_of(&out));
        if stop == Stop::End {
            return all;
        }
    }
}

/// Every key of a view, read in pieces of `piece` bytes.
pub(crate) async fn scan_keys(view: &ReadView, piece: usize) -> Vec<Vec<u8>> {
    let mut scan = KeyScan::new(view.clone(), KeyRange::collection(0), Content::Keys, None);
    let mut all = Vec::new();
    loop {
        let mut out = Vec::new();
        let mut limits = Limits { buffer_bytes: piece, items: None, bytes: None, deadline_ns: None };
        let stop = scan.fill(&mut out, &mut limits).await.expect("no read fault is injected");
        let mut rest = &out[..];
        while !rest.is_empty() {
            let (len, taken) = ringbase_storage::format::key_block::leb128(rest).unwrap();
            take(&mut rest, taken);
            all.push(take(&mut rest, len as usize).to_vec());
        }
        if stop == Stop::End {
            return all;
        }
    }
}

/// Every version of a view in seqno order, `step` at a time.
pub(crate) async fn scan_seqnos(view: &ReadView, step: usize) -> Vec<(u64, Vec<u8>, Option<Vec<u8>>)> {
    let mut scan = SeqnoScan::new(view.clone(), Seqno(1));
    let mut all = Vec::new();
    loop {
        let mut left = step;
        let more = scan
            .run(|record| {
                let deleted = record.meta.kind.is_deleted();
                let value = (!deleted).then(|| record.value.to_vec());
                all.push((record.meta.seqno.0, record.key.to_vec(), value));
                left -= 1;
                left > 0
            })
            .await
            .expect("no read fault is injected");
        if !more {
            return all;
        }
    }
}

/// Every version of some key ranges of a view, `step` at a time, parked in between.
pub(crate) async fn scan_versions(
    view: &ReadView,
    ranges: impl IntoIterator<Item = KeyRange>,
    step: usize,
) -> Vec<(Vec<u8>, u64, Option<Vec<u8>>)> {
    let mut scan = VersionScan::new(view.clone(), ranges);
    let mut all = Vec::new();
    loop {
        let mut left = step;
        let more = scan
            .run(|record| {
                let value = (!record.meta.kind.is_deleted()).then(|| record.value.to_vec());
                all.push((record.key.to_vec(), record.meta.seqno.0, value));
                left -= 1;
                left > 0
            })
            .await
            .expect("no read fault is injected");
        if !more {
            assert_eq!(scan.records(), all.len() as u64);
            return all;
        }
        if all.len() % 3 == 0 {
            scan.park();
        }
    }
}

/// Compares everything a view shows, in both orders, with the model as of its end.
pub(crate) async fn check_view(view: &ReadView, model: &VbModel, random: &mut Xoshiro256PlusPlus) {
    let expected = model.at(view.end());
    let live: Vec<(Vec<u8>, u64, Vec<u8>)> = expected
        .iter()
        .filter_map(|(key, (seqno, value))| Some((key[1..].to_vec(), *seqno, value.clone()?)))
        .collect();
    let piece = [0, 100, 5000, 1 << 20][random.random_range(0..4)];
    assert_eq!(scan_documents(view, piece).await, live, "documents of {view:?} in key order");
    let keys: Vec<Vec<u8>> = live.iter().map(|(key, _, _)| key.clone()).collect();
    assert_eq!(scan_keys(view, piece).await, keys, "keys of {view:?}");
    assert_eq!(view.items(), live.len() as u64, "items of {view:?}");
    let step = [1, 7, usize::MAX][random.random_range(0..3)];
    let versions: Vec<(Vec<u8>, u64, Option<Vec<u8>>)> =
        expected.iter().map(|(key, (seqno, value))| (key.clone(), *seqno, value.clone())).collect();
    let shown = scan_versions(view, [KeyRange::collection(0)], step).await;
    assert_eq!(shown, versions, "versions of {view:?} in key order");
    let mut by_seqno: Vec<(u64, Vec<u8>, Option<Vec<u8>>)> =
        expected.into_iter().map(|(key, (seqno, value))| (seqno, key, value)).collect();
    by_seqno.sort();
    assert_eq!(scan_seqnos(view, step).await, by_seqno, "{view:?} in seqno order");
}

/// Compares a recovered vbucket with the model; what was not recovered is struck from the model.
pub(crate) async fn check_recovered(store: &Rc<VbStore>, model: &mut VbModel, reported: Seqno, clean: bool) {
    let (vb, high) = (store.id(), store.high_seqno());
    assert!(high >= reported, "vb {vb}: {reported} was reported persisted, only {high} was recovered");
    assert!(high.0 <= model.writes.len() as u64, "vb {vb}: seqno {high} was never written");
    assert_eq!(store.persisted_seqno(), high, "vb {vb}: what was recovered is durable");
    model.writes.truncate(high.0 as usize);
    let max_cas = model.writes.iter().map(|write| write.cas).max().unwrap_or_default();
    assert!(store.stats().max_cas >= max_cas, "vb {vb}: the clock would go back");
    let uuids: Vec<u64> = store.failover_log().iter().map(|entry| entry.uuid.0).collect();
    if clean {
        assert_eq!(uuids, model.uuids, "vb {vb}: a clean stop makes no branch");
    } else {
        assert!(!model.uuids.contains(&uuids[0]), "vb {vb}: an unclean stop makes a new branch");
        assert_eq!(store.failover_log()[0].seqno, high, "vb {vb}: the branch begins at the recovered seqno");
    }
    model.uuids = uuids;
    for (key, (seqno, value)) in model.at(high) {
        let Found::Version(item) = store.get(&key).await.expect("no read fault is injected") else {
            panic!("vb {vb}: key {key:?} with seqno {seqno} is gone");
        };
        assert_eq!(item.seqno().0, seqno, "vb {vb}: version of {key:?}");
        let found = (!item.is_deleted()).then(|| item.value().to_vec());
        assert_eq!(found, value, "vb {vb}: value of {key:?}");
    }
}
