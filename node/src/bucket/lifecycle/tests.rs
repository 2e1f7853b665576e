//! Changes of buckets over two shards on two engines, in a simulation: with a crash after any step.

use std::cell::Cell;

use ringbase_storage::cache::BlockCache;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::sim::SimDisk;
use ringbase_storage::mutant::{Guard, turn_on};
use ringbase_storage::shard::{FormatOptions, ShardOptions, format};
use ringbase_storage::types::{Kind, Seqno, ShardId, VbId};
use ringbase_storage::vbstore::{Found, NewVersion, WriteError};

use super::*;
use crate::bucket::{Engine, EngineError};

const VBUCKETS: u16 = 4;
const DOCUMENT_BYTES: u64 = 64 << 20;

/// Two cores, each with a shard.
struct Two(Vec<Rc<Engine>>);

impl Cores for Two {
    fn all(&self, step: Step) -> LocalFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            for engine in &self.0 {
                let failed = |error: EngineError| ChangeError::Failed { reason: error.to_string() };
                match &step {
                    Step::Prepare(bucket) => engine.prepare(bucket).await.map_err(failed)?,
                    Step::Withdraw { bucket, .. } => engine.withdraw(*bucket).await,
                    Step::Publish(set) => {
                        engine.publish(set).map_err(failed)?;
                        engine.bring_events_into_line().await;
                    }
                    Step::Remove(bucket) => engine.remove(*bucket).await.map_err(failed)?,
                }
            }
            Ok(())
        })
    }
}

struct World {
    sim: SimExecutor,
    disk: SimDisk,
    cores: Rc<Two>,
    lifecycle: Rc<Lifecycle>,
}

fn named_bucket(id: u32, name: &str) -> BucketDesc {
    BucketDesc { id: BucketId(id), uuid: 5, name: name.to_owned(), config: String::new() }
}

fn files(shard: u16) -> (String, String) {
    (format!("wal-{shard}"), format!("data-{shard}"))
}

impl World {
    fn new(seed: u64) -> World {
        let (sim, disk) = (SimExecutor::new(seed), SimDisk::new(seed));
        disk.attach(&sim);
        for shard in 0..2 {
            let geometry = Geometry {
                shard: ShardId(shard),
                shard_count: 2,
                vbucket_count: VBUCKETS,
                wal_segments: 4,
                wal_segment_bytes: 64 << 10,
            };
            let options = FormatOptions { geometry, grow_bytes: 256 << 10 };
            let (wal, data) = files(shard);
            sim.block_on(format(&sim.env(), &disk.open(&wal), &disk.open(&data), options)).unwrap();
        }
        World::open(sim, disk, true).unwrap()
    }

    fn open(sim: SimExecutor, disk: SimDisk, is_new: bool) -> Result<World, EngineError> {
        let mut shards = Vec::new();
        for number in 0..2 {
            let (wal, data) = files(number);
            let (wal, data) = (disk.open(&wal), disk.open(&data));
            let options = ShardOptions { grow_bytes: 256 << 10, ..ShardOptions::default() };
            let opened = Shard::open(sim.env(), wal, data, BlockCache::new(1 << 20), options);
            let (shard, _) = sim.block_on(opened).expect("recovery");
            if is_new {
                sim.block_on(shard.create_bucket(named_bucket(1, "first"))).unwrap();
            }
            shards.push(shard);
        }
        let set = Arc::new(BucketSet::new(shards[0].buckets()));
        let lifecycle = Lifecycle::new(sim.env(), shards[0].clone(), set.clone(), DOCUMENT_BYTES);
        let mut engines = Vec::new();
        for shard in shards {
            let engine = Engine::new(sim.env(), vec![shard], DOCUMENT_BYTES)?;
            sim.block_on(engine.reconcile(&set))?;
            engine.publish(&set)?;
            engines.push(Rc::new(engine));
        }
        Ok(World { sim, disk, cores: Rc::new(Two(engines)), lifecycle })
    }

    fn change(&self, change: &BucketChange) -> Result<(), ChangeError> {
        self.sim.block_on(self.lifecycle.change(&*self.cores, change))
    }

    /// Power is lost, and the node starts again.
    fn crash(self, seed: u64) -> Result<World, EngineError> {
        let World { sim, disk, cores, lifecycle } = self;
        drop(sim);
        detach(&cores);
        drop((cores, lifecycle));
        disk.crash(seed);
        let sim = SimExecutor::new(seed);
        disk.attach(&sim);
        World::open(sim, disk, false)
    }

    /// Writes a document to every vbucket of a bucket, all durable.
    fn fill(&self, name: &str) {
        let id = self.lifecycle.set().named(name).expect("the bucket is there").id;
        self.sim.block_on(async {
            for engine in &self.cores.0 {
                for store in engine.bucket(id).unwrap().vbuckets() {
                    let new = NewVersion {
                        key: b"\0key",
                        value: name.as_bytes(),
                        flags: 0,
                        expiry: 0,
                        datatype: 0,
                        kind: Kind::Mutation,
                    };
                    let found = store.get(b"\0key").await.unwrap();
                    store.write(&found, new).unwrap();
                    assert!(store.wait_persisted(store.high_seqno()).await);
                }
            }
        });
    }

    /// How many vbuckets of a bucket there are, and how many have the document; `None` if there is no bucket of that name.
    fn census(&self, name: &str) -> Option<(usize, usize)> {
        let id = self.lifecycle.set().named(name)?.id;
        let (mut vbuckets, mut documents) = (0, 0);
        for (index, engine) in self.cores.0.iter().enumerate() {
            let described = engine.shards()[0].buckets();
            assert!(described.iter().any(|bucket| bucket.id == id), "shard {index} knows {name}");
            assert_eq!(described.len(), self.lifecycle.set().buckets.len(), "shard {index} knows no other");
            for vb in (0..VBUCKETS).filter(|vb| usize::from(vb % 2) == index) {
                let store = engine.vbucket(id, VbId(vb)).expect("a bucket has all its vbuckets");
                vbuckets += 1;
                let found = self.sim.block_on(store.get(b"\0key")).unwrap();
                documents += usize::from(matches!(found, Found::Version(_)));
            }
        }
        Some((vbuckets, documents))
    }
}

fn detach(cores: &Two) {
    cores.0.iter().flat_map(|engine| engine.shards()).for_each(Shard::detach);
}

impl Drop for Two {
    fn drop(&mut self) {
        detach(self);
    }
}

fn create(name: &str, config: &str) -> BucketChange {
    BucketChange::Create { name: name.into(), module: "ep.so".into(), config: config.into() }
}

/// A crash after `steps` steps of a change: whether the change was there after the restart, and whether it had been answered.
fn crash_within(change: &BucketChange, steps: u64, seed: u64) -> Result<(bool, bool), EngineError> {
    let world = World::new(seed);
    world.fill("first");
    if !matches!(change, BucketChange::Create { .. }) {
        world.change(&create("other", "")).unwrap();
        world.fill("other");
    }
    let answered = Rc::new(Cell::new(false));
    let (cores, lifecycle, done) = (world.cores.clone(), world.lifecycle.clone(), answered.clone());
    let asked = change.clone();
    world.sim.spawn(async move {
        lifecycle.change(&*cores, &asked).await.unwrap();
        done.set(true);
    });
    world.sim.run_steps(steps);
    let world = world.crash(seed * 10_000 + steps)?;
    let all = usize::from(VBUCKETS);
    assert_eq!(
        world.census("first"),
        Some((all, all)),
        "seed {seed} steps {steps}: the other bucket is untouched"
    );
    let other = world.census("other");
    let happened = match change {
        BucketChange::Create { .. } => other == Some((all, 0)),
        BucketChange::Delete { .. } => other.is_none(),
        _ => other == Some((all, 0)),
    };
    let before = match change {
        BucketChange::Create { .. } => None,
        _ => Some((all, all)),
    };
    assert!(happened || other == before, "seed {seed} steps {steps} {change:?}: {other:?} is neither nor");
    assert!(happened || !answered.get(), "seed {seed} steps {steps}: what was answered is durable");
    // The node goes on from there.
    if other.is_none() {
        world.change(&create("other", "")).unwrap();
    }
    world.fill("other");
    assert_eq!(world.census("other"), Some((all, all)));
    Ok((happened, answered.get()))
}

fn crash_everywhere(change: &BucketChange) -> Result<(), EngineError> {
    let (mut before, mut after) = (0, 0);
    for seed in 1..=4 {
        for steps in 0.. {
            let (happened, answered) = crash_within(change, steps, seed)?;
            if happened {
                after += 1
            } else {
                before += 1
            }
            if answered {
                break;
            }
        }
    }
    assert!(before > 0 && after > 0, "{change:?}: before {before}, after {after}");
    Ok(())
}

#[test]
fn a_crash_within_a_change_leaves_a_bucket_wholly_there_or_wholly_gone_on_all_shards() {
    let name = || "other".to_owned();
    for change in
        [create("other", ""), BucketChange::Delete { name: name() }, BucketChange::Empty { name: name() }]
    {
        crash_everywhere(&change).unwrap();
    }
}

#[test]
fn a_bucket_that_shard_0_makes_before_the_others_is_half_there_after_a_crash() {
    let _mutant: Guard = turn_on(Mutant::AuthorityFirst);
    assert!(matches!(crash_everywhere(&create("other", "")), Err(EngineError::MissingBucket { .. })));
}

#[test]
fn an_emptied_bucket_keeps_name_uuid_and_settings_and_begins_anew() {
    let world = World::new(3);
    world.change(&create("other", "max_ttl=77")).unwrap();
    world.fill("other");
    let old = world.lifecycle.set().named("other").unwrap().clone();
    let store = world.cores.0[1].vbucket(old.id, VbId(1)).unwrap();
    world.change(&BucketChange::Empty { name: "other".into() }).unwrap();
    let set = world.lifecycle.set();
    let new = set.named("other").unwrap();
    assert_eq!((&new.name, new.uuid, &new.config), (&old.name, old.uuid, &old.config));
    assert_eq!(set.current(old.id), Some(new.id), "connections find it by its former number");
    let fresh = world.cores.0[1].vbucket(new.id, VbId(1)).unwrap();
    assert!(fresh.uuid() != store.uuid() && fresh.high_seqno() == Seqno(0));
    let late = NewVersion { key: b"\0k", value: b"", flags: 0, expiry: 0, datatype: 0, kind: Kind::Mutation };
    assert_eq!(store.write(&Found::Absent, late).unwrap_err(), WriteError::Gone);
}

#[test]
fn what_a_node_cannot_do_is_refused_in_words_and_changes_nothing() {
    let world = World::new(4);
    let refused = |change| world.change(&change).unwrap_err().to_string();
    assert!(refused(create("first", "")).contains("there is a bucket \"first\" already"));
    assert!(refused(create("", "")).contains("1 to 100"));
    assert!(refused(create(&"x".repeat(101), "")).contains("1 to 100"));
    assert!(refused(create("a b", "")).contains("a b"));
    assert!(refused(create("b", "colour=red")).contains("colour"));
    assert!(refused(create("b", "max_size=99999999999")).contains("67108864"));
    let module = BucketChange::Create { name: "b".into(), module: "x.so".into(), config: String::new() };
    assert!(refused(module).contains("x.so"));
    assert!(refused(BucketChange::Delete { name: "b".into() }).contains("no bucket \"b\""));
    assert!(refused(BucketChange::Empty { name: "b".into() }).contains("no bucket \"b\""));
    let set = |key: &str, value: &str| BucketChange::Set {
        bucket: BucketId(1),
        key: key.into(),
        value: value.into(),
    };
    assert!(refused(set("max_size", "7")).contains("max_size"));
    assert!(refused(set("bucket_type", "ephemeral")).contains("cannot be changed"));
    assert_eq!(world.lifecycle.set().buckets.len(), 1);
    for n in 1..BUCKETS_MAX {
        world.change(&create(&format!("b{n}"), "")).unwrap();
    }
    assert!(refused(create("one-more", "")).contains("100"));
}

/// Settings are durable when they are answered, in force on all cores, and known to all shards after the next start.
#[test]
fn a_changed_setting_is_in_force_at_once_and_after_a_crash() {
    let world = World::new(5);
    let set = |key: &str, value: &str| BucketChange::Set {
        bucket: BucketId(1),
        key: key.into(),
        value: value.into(),
    };
    world.change(&set("max_size", "4194304")).unwrap();
    world.change(&set("max_ttl", "60")).unwrap();
    let in_force = |world: &World| {
        for engine in &world.cores.0 {
            let context = &engine.bucket(BucketId(1)).unwrap().context;
            assert_eq!((context.quota_bytes(), context.settings().ttl_seconds_max), (4 << 20, 60));
        }
    };
    in_force(&world);
    let world = world.crash(9).unwrap();
    in_force(&world);
    let texts: Vec<String> =
        world.cores.0.iter().map(|engine| engine.shards()[0].buckets()[0].config.clone()).collect();
    assert_eq!(texts[0], texts[1], "the other shard has followed");
}

/// A bucket goes when its requests under way have been answered, not before.
#[test]
fn deleting_waits_for_requests_under_way() {
    let world = World::new(6);
    world.change(&create("other", "")).unwrap();
    let id = world.lifecycle.set().named("other").unwrap().id;
    let context = world.cores.0[1].bucket(id).unwrap().context.clone();
    let request = context.under_way();
    let (cores, lifecycle) = (world.cores.clone(), world.lifecycle.clone());
    let done = Rc::new(Cell::new(false));
    let flag = done.clone();
    world.sim.spawn(async move {
        lifecycle.change(&*cores, &BucketChange::Delete { name: "other".into() }).await.unwrap();
        flag.set(true);
    });
    world.sim.run_for(std::time::Duration::from_secs(5));
    assert!(!done.get() && context.is_withdrawn() && world.cores.0[1].bucket(id).is_none());
    assert!(world.cores.0[0].shards()[0].vbucket(id, VbId(0)).is_some(), "nothing is deleted yet");
    drop(request);
    world.sim.run_for(std::time::Duration::from_secs(5));
    assert!(done.get() && world.cores.0[0].shards()[0].vbucket(id, VbId(0)).is_none());
}
