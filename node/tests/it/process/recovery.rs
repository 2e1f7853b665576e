//! kill -9 under load: nothing that was reported persisted is lost, nothing is invented, and clients notice the new branch.
//!
//! `RINGBASE_KILLS=100 cargo test --release -p ringbase --test it process::recovery` kills as often as it is told.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Ask, GET, Node, Raw, SET, scratch};

const VBUCKETS: u16 = 8;

/// What a writer knows of one vbucket.
#[derive(Debug, Default, Clone)]
struct Known {
    /// Key and value by seqno, as acknowledged.
    writes: BTreeMap<u64, (String, u64)>,
    uuid: u64,
    /// Reported persisted.
    persisted: u64,
}

fn be_u64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

/// Where write `n` goes.
fn vb_and_key(n: u64) -> (u16, String) {
    ((n % u64::from(VBUCKETS)) as u16, format!("key{}", n * 7919 % 300))
}

/// Writes until the node goes; every acknowledgement is noted, and now and then what is persisted.
fn load(mut raw: Raw, known: &Mutex<Vec<Known>>, stop: &AtomicBool, seed: u64) {
    let mut n = seed << 32;
    while !stop.load(Ordering::Relaxed) {
        let mut sent = Vec::new();
        let mut burst = Vec::new();
        for _ in 0..32 {
            n += 1;
            let (vb, key) = vb_and_key(n);
            let value = n.to_be_bytes();
            let ask = Ask {
                opcode: SET,
                vb,
                extras: &[0; 8],
                key: key.as_bytes(),
                value: &value,
                ..Ask::default()
            };
            burst.extend(ask.bytes());
            sent.push((vb, key, n));
        }
        if raw.0.write_all(&burst).is_err() {
            return;
        }
        for (vb, key, n) in sent {
            let Some(answer) = raw.read() else { return };
            if answer.status == 0x86 {
                continue;
            }
            assert_eq!(answer.status, 0);
            let known = &mut known.lock().unwrap()[usize::from(vb)];
            known.uuid = be_u64(&answer.extras[..8]);
            known.writes.insert(be_u64(&answer.extras[8..]), (key, n));
        }
        let vb = (n % u64::from(VBUCKETS)) as u16;
        let uuid = known.lock().unwrap()[usize::from(vb)].uuid.to_be_bytes();
        if raw.0.write_all(&Ask { opcode: 0x91, vb, value: &uuid, ..Ask::default() }.bytes()).is_err() {
            return;
        }
        let Some(answer) = raw.read() else { return };
        let known = &mut known.lock().unwrap()[usize::from(vb)];
        known.persisted = known.persisted.max(be_u64(&answer.value[11..19]));
    }
}

/// Compares a recovered vbucket with what was acknowledged, and strikes out what was lost.
fn check(raw: &mut Raw, vb: u16, known: &mut Known, round: u32) {
    let observed = raw.ask(Ask { opcode: 0x91, vb, value: &known.uuid.to_be_bytes(), ..Ask::default() });
    assert_eq!(observed.status, 0, "round {round}: the old branch is known");
    assert_eq!(observed.value[0], 1, "round {round}: vb {vb} has a new branch after the kill");
    let (new_uuid, high) = (be_u64(&observed.value[3..11]), be_u64(&observed.value[19..27]));
    let old_branch_end = be_u64(&observed.value[35..43]);
    assert!(new_uuid != known.uuid && old_branch_end <= high);
    assert!(high >= known.persisted, "round {round}: vb {vb} lost {} > {high}", known.persisted);
    known.writes.split_off(&(high + 1));
    let acknowledged = known.writes.last_key_value().map_or(0, |(seqno, _)| *seqno);
    let newest: BTreeMap<String, (u64, u64)> =
        known.writes.iter().map(|(seqno, (key, n))| (key.clone(), (*seqno, *n))).collect();
    for (key, (seqno, n)) in newest {
        let answer = raw.ask(Ask { opcode: GET, vb, key: key.as_bytes(), ..Ask::default() });
        assert_eq!(answer.status, 0, "round {round}: vb {vb} lost {key}");
        let found = be_u64(&answer.value);
        // What was sent last may have been recovered without its acknowledgement; it is what was sent for this key then.
        let unacknowledged = high > acknowledged && found > n && vb_and_key(found) == (vb, key.clone());
        assert!(found == n || unacknowledged, "round {round}: vb {vb} has {found} for {key}, not {n}");
        known.writes.insert(seqno, (key, found));
    }
    known.uuid = new_uuid;
    known.persisted = high;
}

/// G1, G2 with real files: what OBSERVE_SEQNO reported persisted survives kill -9 under load, again and again.
#[test]
fn what_was_reported_persisted_survives_kill_9_under_load() {
    let kills: u32 =
        std::env::var("RINGBASE_KILLS").map_or(5, |text| text.parse().expect("a number of kills"));
    let scratch = scratch();
    let known = Arc::new(Mutex::new(vec![Known::default(); usize::from(VBUCKETS)]));
    let vbuckets = VBUCKETS.to_string();
    let start = || Node::start(scratch.path(), &["--cores", "2", "--vbuckets", &vbuckets]);
    let mut node = start();
    for round in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = {
            let (raw, known, stop) = (node.prepared(), known.clone(), stop.clone());
            std::thread::spawn(move || load(raw, &known, &stop, u64::from(round) + 1))
        };
        std::thread::sleep(Duration::from_millis(50 + u64::from(round * 37 % 250)));
        node.kill();
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        node = start();
        assert_eq!(node.ready["clean"], false);
        let mut raw = node.prepared();
        let mut known = known.lock().unwrap();
        for vb in 0..VBUCKETS {
            let known = &mut known[usize::from(vb)];
            if known.uuid != 0 {
                check(&mut raw, vb, known, round);
            }
        }
    }
    let total: usize = known.lock().unwrap().iter().map(|known| known.writes.len()).sum();
    println!("{kills} kills, {total} writes remembered");
    assert!(total > 1000, "the load did something");
}

/// T5.17: a token from before a kill names a branch that is no longer current: a scan that requires it is refused, so the client notices.
#[test]
fn a_token_from_before_a_kill_meets_the_new_branch() {
    let scratch = scratch();
    let start = || Node::start(scratch.path(), &["--cores", "2", "--vbuckets", "16"]);
    let node = start();
    let mut raw = node.prepared();
    let stored =
        raw.ask(Ask { opcode: SET, vb: 3, extras: &[0; 8], key: b"k", value: b"v", ..Ask::default() });
    let (uuid, seqno) = (be_u64(&stored.extras[..8]), be_u64(&stored.extras[8..]));
    let create = |uuid: u64| {
        format!(r#"{{"snapshot_requirements":{{"vb_uuid":"{uuid}","seqno":{seqno},"timeout_ms":5000}}}}"#)
    };
    let scan = |raw: &mut Raw, body: &str| {
        raw.ask(Ask { opcode: 0xda, vb: 3, datatype: 1, value: body.as_bytes(), ..Ask::default() }).status
    };
    assert_eq!(scan(&mut raw, &create(uuid)), 0);
    node.kill();
    let node = start();
    let mut raw = node.prepared();
    assert_eq!(scan(&mut raw, &create(uuid)), 0xa8, "the vbucket's uuid is another one now");
    let observed = raw.ask(Ask { opcode: 0x91, vb: 3, value: &uuid.to_be_bytes(), ..Ask::default() });
    assert_eq!((observed.status, observed.value[0]), (0, 1));
    assert_eq!(scan(&mut raw, &create(be_u64(&observed.value[3..11]))), 0);
}
