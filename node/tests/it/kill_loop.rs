//! kill -9 in a loop, under pipelined load, with a checker that knows what was reported persisted.
//!
//! Five kills by default; `RINGBASE_KILLS=100 cargo test --release -p ringbase --test it kill_loop` for more.
//!
//! The load writes ever new values; the checker keeps every mutation that was sent, and which of them the node has
//! acknowledged with which seqno. A watcher asks OBSERVE_SEQNO all the time. After each kill the node is started again on what is
//! there and every vbucket is scanned.
//!
//! Invariants checked
//! - Nothing reported persisted is lost: every vbucket recovers at least up to the persisted seqno that was last reported.
//! - Nothing is invented: what a scan returns was sent for that key, under exactly the seqno that was acknowledged for it, if one was.
//! - No gap: every acknowledged mutation up to the recovered high seqno is there, or a later one of its key is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt, SeedableRng};
use ringbase::client::{
    ClientError, Completion, Connection, Pipeline, PipelineOptions, ScanPlan, ScanRecord, scan_vbucket,
};
use ringbase::protocol::extras::MutationToken;
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase::protocol::{Opcode, Request, Status, vbucket_of};
use ringbase_storage::types::{Seqno, VbId, VbUuid};

use crate::end_to_end::rig::{Node, Place, for_each_core_count};

const VBUCKETS: u16 = 16;

/// Keys, few enough that most are overwritten many times between two kills.
const KEYS: u64 = 2_000;

/// Connections that write.
const WRITERS: u64 = 3;

/// One mutation of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mutation {
    /// The number that its value carries; `None` for a deletion.
    value: Option<u64>,
    /// What the node acknowledged; 0 if it changed nothing.
    seqno: Option<Seqno>,
}

/// What is known of one key: the state after the last kill, then everything sent since.
#[derive(Debug, Default, Clone)]
struct History {
    mutations: Vec<Mutation>,
}

#[derive(Default)]
struct Checker {
    keys: Mutex<BTreeMap<u64, History>>,
    /// The greatest seqno reported persisted, by vbucket, in this life.
    persisted: Mutex<BTreeMap<VbId, Seqno>>,
}

fn key_name(key: u64) -> Vec<u8> {
    format!("key-{key:05}").into_bytes()
}

/// A value that carries a number and whose length follows from it.
fn value_of(number: u64) -> Vec<u8> {
    let mut value = number.to_be_bytes().to_vec();
    value.resize(8 + (number % 900) as usize, number as u8);
    value
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes until the connection breaks.
fn write(node: &Node, checker: &Checker, writer: u64, life: u32, seed: u64) -> u64 {
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed ^ writer);
    let Ok(mut connection) = Connection::open(&node.connect_options()) else { return 0 };
    let options = PipelineOptions { window: 256, ..PipelineOptions::default() };
    let Ok(mut pipeline) = Pipeline::new(&mut connection, options) else { return 0 };
    let mut acknowledged = 0;
    let mut number = (u64::from(life) << 40) | (writer << 36);
    loop {
        let key = random.random_range(0..KEYS / WRITERS) * WRITERS + writer;
        let name = key_name(key);
        let deletes = random.next_u32() % 10 == 0;
        number += 1;
        let index = {
            let mut keys = lock(&checker.keys);
            let history = keys.entry(key).or_default();
            history.mutations.push(Mutation { value: (!deletes).then_some(number), seqno: None });
            history.mutations.len() - 1
        };
        // The token names key and mutation.
        let token = key << 32 | index as u64;
        let value = value_of(number);
        let request = Request::new(if deletes { Opcode::DELETE } else { Opcode::SET })
            .vbucket(vbucket_of(&name, VBUCKETS))
            .key(&name);
        let request = if deletes { request } else { request.extras(&[0; 8]).value(&value) };
        let done = &mut |completion: Completion<'_>| {
            let (key, index) = (completion.token >> 32, (completion.token & 0xffff_ffff) as usize);
            let mut keys = lock(&checker.keys);
            let mutation = &mut keys.get_mut(&key).unwrap().mutations[index];
            match completion.answer.status() {
                Status::SUCCESS => {
                    let token = MutationToken::decode(completion.answer.extras).unwrap();
                    mutation.seqno = Some(token.seqno);
                    acknowledged += 1;
                }
                // A deletion of nothing changed nothing.
                Status::KEY_ENOENT => mutation.seqno = Some(Seqno(0)),
                status => panic!("{status}"),
            }
            Ok::<(), ClientError>(())
        };
        if pipeline.submit(request, token, done).is_err() {
            return acknowledged;
        }
    }
}

/// Asks for persisted seqnos until the node is gone.
fn watch(node: &Node, checker: &Checker, uuids: &BTreeMap<VbId, VbUuid>, stop: &AtomicBool) {
    let Ok(mut connection) = Connection::open(&node.connect_options()) else { return };
    while !stop.load(Ordering::Relaxed) {
        for (vbucket, uuid) in uuids {
            let Ok(observed) = connection.observe(*vbucket, *uuid) else { return };
            lock(&checker.persisted).insert(*vbucket, observed.persisted_seqno);
        }
    }
}

/// The current branch of every vbucket.
fn branches(node: &Node) -> BTreeMap<VbId, VbUuid> {
    let mut uuids = BTreeMap::new();
    let mut connection = node.connect();
    connection
        .stats("vbucket-seqno", |name, value| {
            let (name, value) = (std::str::from_utf8(name).unwrap(), std::str::from_utf8(value).unwrap());
            if let Some(vbucket) = name.strip_prefix("vb_").and_then(|rest| rest.strip_suffix(":uuid")) {
                uuids.insert(VbId(vbucket.parse().unwrap()), VbUuid(value.parse().unwrap()));
            }
        })
        .unwrap();
    assert_eq!(uuids.len(), usize::from(VBUCKETS));
    uuids
}

/// Key -> (number in the value, seqno) of everything that is there, with the recovered high seqno of every vbucket.
type Found = (BTreeMap<u64, (u64, Seqno)>, BTreeMap<VbId, Seqno>);

fn scan_everything(node: &Node) -> Found {
    let (mut documents, mut high) = (BTreeMap::new(), BTreeMap::new());
    let mut connection = node.connect();
    for (vbucket, uuid) in branches(node) {
        let observed = connection.observe(vbucket, uuid).unwrap();
        high.insert(vbucket, observed.high_seqno);
        assert_eq!(
            observed.persisted_seqno, observed.high_seqno,
            "{vbucket}: all that was recovered is durable"
        );
        let plan = ScanPlan::new(RangeScanCreate::default());
        scan_vbucket(&mut connection, &plan, vbucket, &mut |record| {
            let ScanRecord::Document(document) = record else { panic!("a key in a scan of documents") };
            let key: u64 = std::str::from_utf8(&document.key[4..]).unwrap().parse().unwrap();
            let number = u64::from_be_bytes(document.value[..8].try_into().unwrap());
            assert!(document.value == value_of(number), "{vbucket}: the value of {key} is torn");
            assert!(document.seqno <= observed.high_seqno);
            documents.insert(key, (number, document.seqno));
            Ok(())
        })
        .unwrap();
    }
    (documents, high)
}

/// Compares what was found after a kill with what was sent before it, and forgets all but the state found.
fn check(checker: &Checker, found: &Found) {
    let (documents, high) = found;
    let persisted = std::mem::take(&mut *lock(&checker.persisted));
    let mut keys = lock(&checker.keys);
    for (vbucket, seqno) in &persisted {
        let recovered = high[vbucket];
        assert!(recovered >= *seqno, "{vbucket}: {seqno} was reported persisted, {recovered} recovered");
    }
    for (key, history) in keys.iter_mut() {
        let high = high[&vbucket_of(&key_name(*key), VBUCKETS)];
        let mutations = &history.mutations;
        // The newest that was acknowledged and lies within what was recovered: it, or something newer, must be there.
        let within =
            |mutation: &&Mutation| mutation.seqno.is_some_and(|seqno| seqno > Seqno(0) && seqno <= high);
        let must = mutations.iter().filter(within).max_by_key(|mutation| mutation.seqno);
        let there = documents.get(key).copied();
        match there {
            Some((number, seqno)) => {
                let sent = mutations.iter().find(|mutation| mutation.value == Some(number));
                let sent = sent.unwrap_or_else(|| panic!("key {key}: value {number:#x} was never sent"));
                assert!(
                    sent.seqno.is_none_or(|acknowledged| acknowledged == seqno),
                    "key {key}: found under {seqno}, acknowledged {sent:?}"
                );
                assert!(
                    must.is_none_or(|must| must.seqno <= Some(seqno)),
                    "key {key} went back to {seqno} from {must:?}"
                );
            }
            None => {
                // A deletion without an answer may have come after it.
                let deleted = |mutation: &Mutation| mutation.value.is_none() && mutation.seqno.is_none();
                assert!(
                    must.is_none_or(|must| must.value.is_none() || mutations.iter().any(deleted)),
                    "key {key} is lost: {must:?}, recovered up to {high}"
                );
            }
        }
        history.mutations = there
            .map(|(number, seqno)| Mutation { value: Some(number), seqno: Some(seqno) })
            .into_iter()
            .collect();
    }
    for key in documents.keys() {
        assert!(keys.contains_key(key), "key {key} was never written");
    }
}

/// G1, G2, G4 over the wire.
#[test]
fn nothing_reported_persisted_is_lost_and_nothing_is_invented_by_kills_under_load() {
    let kills: u32 = std::env::var("RINGBASE_KILLS").map_or(5, |kills| kills.parse().unwrap());
    let seed: u64 =
        std::env::var("RINGBASE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("RINGBASE_SEED={seed}");
    for_each_core_count(|setup| {
        let place = Place::new();
        let checker = Checker::default();
        let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
        let (mut acknowledged, mut recovered, mut slowest) = (0, 0, Duration::ZERO);
        let mut node = Node::start(&place.data(), &setup);
        for life in 0..kills {
            let uuids = branches(&node);
            let time = Duration::from_millis(random.random_range(20..400));
            let stop = AtomicBool::new(false);
            let life_seed = random.next_u64();
            acknowledged += std::thread::scope(|scope| {
                let (node, checker, stop, uuids) = (&node, &checker, &stop, &uuids);
                let writers: Vec<_> = (0..WRITERS)
                    .map(|writer| scope.spawn(move || write(node, checker, writer, life, life_seed)))
                    .collect();
                scope.spawn(move || watch(node, checker, uuids, stop));
                std::thread::sleep(time);
                node.kill_in_place();
                stop.store(true, Ordering::Relaxed);
                writers.into_iter().map(|writer| writer.join().unwrap()).sum::<u64>()
            });
            drop(node);
            let started = Instant::now();
            node = Node::start(&place.data(), &setup);
            slowest = slowest.max(started.elapsed());
            assert_eq!(node.ready["clean"], false, "life {life}");
            recovered += node.ready["recovered_records"].as_u64().unwrap();
            let found = scan_everything(&node);
            check(&checker, &found);
        }
        println!(
            "{} cores, {kills} kills: {acknowledged} mutations acknowledged, {recovered} records replayed, slowest start {} ms",
            setup.cores,
            slowest.as_millis()
        );
        assert!(acknowledged > u64::from(kills) * 10, "{acknowledged} mutations are no load");
    });
}
