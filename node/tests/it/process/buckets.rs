//! Several buckets over TCP, with one core and with two: created, selected, emptied, deleted, also with kill -9 in between.

use std::io::Write;
use std::time::Duration;

use super::{Answer, Ask, GET, NOOP, Node, Raw, SET, for_each_core_count, scratch};

const CREATE: u8 = 0x85;
const DELETE: u8 = 0x86;
const LIST: u8 = 0x87;
const SELECT: u8 = 0x89;
const SET_PARAM: u8 = 0x82;
const SEQNO_PERSISTENCE: u8 = 0xb7;
const OBSERVE_SEQNO: u8 = 0x91;

const VBUCKETS: u16 = 16;

fn create(raw: &mut Raw, name: &[u8], settings: &[u8]) -> Answer {
    let value = [b"ep.so\0", settings].concat();
    raw.ask(Ask { opcode: CREATE, key: name, value: &value, ..Ask::default() })
}

fn delete(raw: &mut Raw, name: &[u8]) -> Answer {
    raw.ask(Ask { opcode: DELETE, key: name, ..Ask::default() })
}

fn select(raw: &mut Raw, name: &[u8]) -> u16 {
    raw.ask(Ask { opcode: SELECT, key: name, ..Ask::default() }).status
}

fn set_param(raw: &mut Raw, name: &[u8], value: &[u8]) -> Answer {
    raw.ask(Ask { opcode: SET_PARAM, extras: &[0, 0, 0, 1], key: name, value, ..Ask::default() })
}

fn list(raw: &mut Raw) -> String {
    let answer = raw.ask(Ask { opcode: LIST, ..Ask::default() });
    String::from_utf8(answer.value).unwrap()
}

fn set(raw: &mut Raw, vb: u16, key: &[u8], value: &[u8]) -> Answer {
    let ask = Ask { opcode: SET, vb, extras: &[0; 8], key, value, ..Ask::default() };
    loop {
        let answer = raw.ask(ask);
        if answer.status != 0x86 {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn get(raw: &mut Raw, vb: u16, key: &[u8]) -> Answer {
    raw.ask(Ask { opcode: GET, vb, key, ..Ask::default() })
}

fn has_all(raw: &mut Raw, value: &[u8]) -> bool {
    (0..VBUCKETS).all(|vb| {
        let answer = get(raw, vb, b"key");
        answer.status == 0 && answer.value == value
    })
}

fn fill(raw: &mut Raw, value: &[u8]) {
    for vb in 0..VBUCKETS {
        assert_eq!(set(raw, vb, b"key", value).status, 0);
    }
}

/// Waits until what [`fill`] has written would survive a crash.
fn wait_until_persisted(raw: &mut Raw) {
    for vb in 0..VBUCKETS {
        let extras = &1u64.to_be_bytes();
        assert_eq!(raw.ask(Ask { opcode: SEQNO_PERSISTENCE, vb, extras, ..Ask::default() }).status, 0);
    }
}

#[test]
fn buckets_hold_documents_of_their_own_and_survive_a_restart() {
    for cores in ["1", "2"] {
        let scratch = scratch();
        let start = || Node::start(scratch.path(), &["--cores", cores, "--vbuckets", "16"]);
        let node = start();
        let mut first = node.prepared();
        assert_eq!(create(&mut first, b"second", b"max_ttl=5000").status, 0);
        assert_eq!(list(&mut first), "default second");
        let mut second = node.prepared();
        assert_eq!(select(&mut second, b"second"), 0);
        fill(&mut first, b"one");
        fill(&mut second, b"two");
        assert!(has_all(&mut first, b"one") && has_all(&mut second, b"two"));
        let map = second.ask(Ask { opcode: 0xb5, ..Ask::default() });
        let map: serde_json::Value = serde_json::from_slice(&map.value).unwrap();
        assert_eq!(
            (map["name"].as_str(), map["vBucketServerMap"]["vBucketMap"][15][0].as_u64()),
            (Some("second"), Some(0))
        );
        assert_eq!(node.stop(), 0);
        let node = start();
        let mut raw = node.prepared();
        assert!(has_all(&mut raw, b"one"));
        assert_eq!(select(&mut raw, b"second"), 0);
        assert!(has_all(&mut raw, b"two"));
        assert_eq!(delete(&mut raw, b"second").status, 0);
        drop(node);
        let node = start();
        let mut raw = node.prepared();
        assert_eq!(list(&mut raw), "default");
        assert!(has_all(&mut raw, b"one"));
    }
}

#[test]
fn requests_behind_a_create_see_the_bucket() {
    for_each_core_count(|node| {
        let mut raw = node.raw();
        raw.hello(&[0x04, 0x07, 0x08]);
        let mut burst = Ask { opcode: CREATE, key: b"b", value: b"ep.so\0", ..Ask::default() }.bytes();
        burst.extend(Ask { opcode: SELECT, key: b"b", ..Ask::default() }.bytes());
        for vb in 0..VBUCKETS {
            burst.extend(
                Ask { opcode: SET, vb, extras: &[0; 8], key: b"k", value: b"v", ..Ask::default() }.bytes(),
            );
        }
        raw.0.write_all(&burst).unwrap();
        for n in 0..u32::from(VBUCKETS) + 2 {
            assert_eq!(raw.read().unwrap().status, 0, "answer {n}");
        }
    });
}

#[test]
fn connections_of_a_deleted_bucket_have_none_and_find_the_next_one_of_its_name_empty() {
    for_each_core_count(|node| {
        let mut admin = node.prepared();
        let mut others: Vec<Raw> = (0..4).map(|_| node.prepared()).collect();
        for round in 0..3 {
            assert_eq!(create(&mut admin, b"b", b"").status, 0);
            for raw in &mut others {
                assert_eq!(select(raw, b"b"), 0);
                assert_eq!(get(raw, 3, b"key").status, 0x01, "round {round}: empty");
            }
            fill(&mut others[0], b"x");
            assert_eq!(delete(&mut admin, b"b").status, 0);
            for raw in &mut others {
                for vb in 0..2 {
                    assert_eq!(get(raw, vb, b"key").status, 0x08, "round {round}: NO_BUCKET");
                }
                assert_eq!(raw.ask(Ask { opcode: NOOP, ..Ask::default() }).status, 0);
            }
            assert_eq!(select(&mut others[1], b"b"), 0x01);
        }
        assert_eq!(delete(&mut admin, b"b").status, 0x01);
        // A client without XERROR cannot be told: it is disconnected, as the protocol has it.
        let mut plain = node.raw();
        plain.hello(&[0x08]);
        plain.0.write_all(&Ask { opcode: GET, key: b"k", ..Ask::default() }.bytes()).unwrap();
        assert_eq!(plain.read(), None);
    });
}

#[test]
fn an_emptied_bucket_is_still_selected_and_every_vbucket_has_a_new_branch() {
    for_each_core_count(|node| {
        let mut admin = node.prepared();
        let mut raw = node.prepared();
        fill(&mut raw, b"old");
        let token = set(&mut raw, 1, b"key", b"old").extras;
        assert_eq!(set_param(&mut admin, b"bucket_flush", b"default").status, 0);
        for vb in 0..VBUCKETS {
            assert_eq!(get(&mut raw, vb, b"key").status, 0x01, "vb {vb}");
        }
        let observed = raw.ask(Ask { opcode: OBSERVE_SEQNO, vb: 1, value: &token[..8], ..Ask::default() });
        assert_eq!(observed.status, 0x01, "the old branch is not known any more");
        let fresh = set(&mut raw, 1, b"key", b"new");
        assert!(fresh.status == 0 && fresh.extras[..8] != token[..8]);
        assert_eq!(fresh.extras[8..], 1u64.to_be_bytes(), "seqnos begin anew");
        assert_eq!(node.stat("", "curr_items").unwrap(), "1");
        assert_eq!(set_param(&mut admin, b"bucket_flush", b"nobody").status, 0x01);
        assert_eq!(admin.ask(Ask { opcode: 0x08, ..Ask::default() }).status, 0x83, "FLUSH is not supported");
    });
}

/// A continue under way is cancelled; the next one finds no bucket.
#[test]
fn scans_end_with_their_bucket() {
    for_each_core_count(|node| {
        let mut admin = node.prepared();
        assert_eq!(create(&mut admin, b"b", b"").status, 0);
        let mut raw = node.prepared();
        assert_eq!(select(&mut raw, b"b"), 0);
        for vb in [0, 1] {
            for n in 0..2000 {
                assert_eq!(set(&mut raw, vb, format!("key{n}").as_bytes(), &[7; 4000]).status, 0);
            }
        }
        let mut ids = Vec::new();
        for vb in [0, 1] {
            let created = raw.ask(Ask { opcode: 0xda, vb, datatype: 1, value: b"{}", ..Ask::default() });
            assert_eq!(created.status, 0);
            ids.push(created.value);
        }
        // The client reads nothing: the first continue is under way when the bucket goes.
        let extras = [&ids[1][..], &[0; 12]].concat();
        raw.0.write_all(&Ask { opcode: 0xdb, vb: 1, extras: &extras, ..Ask::default() }.bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(delete(&mut admin, b"b").status, 0);
        let last = loop {
            let frame = raw.read().unwrap();
            if frame.status != 0 {
                break frame.status;
            }
        };
        assert_eq!(last, 0xa5, "RANGE_SCAN_CANCELLED");
        let extras = [&ids[0][..], &[0; 12]].concat();
        assert_eq!(raw.ask(Ask { opcode: 0xdb, extras: &extras, ..Ask::default() }).status, 0x08);
    });
}

#[test]
fn settings_change_while_the_bucket_is_in_use_and_stay() {
    for cores in ["1", "2"] {
        let scratch = scratch();
        let start = || Node::start(scratch.path(), &["--cores", cores, "--vbuckets", "16"]);
        let node = start();
        let mut raw = node.prepared();
        for vb in [0, 1] {
            assert_eq!(set(&mut raw, vb, b"k", &[1; 100]).status, 0);
        }
        assert_eq!(set_param(&mut raw, b"max_item_size", b"50").status, 0);
        assert_eq!(set_param(&mut raw, b"max_size", b"8388608").status, 0);
        for vb in [0, 1] {
            assert_eq!(set(&mut raw, vb, b"k", &[1; 100]).status, 0x03, "E2BIG");
        }
        for (name, value) in [
            (&b"max_size"[..], &b"12"[..]),
            (b"max_ttl", b"x"),
            (b"colour", b"red"),
            (b"max_size", b"999999999999"),
        ] {
            assert_eq!(set_param(&mut raw, name, value).status, 0x04);
        }
        assert_eq!(node.stat("", "ep_max_size").unwrap(), "8388608");
        node.kill();
        let node = start();
        assert_eq!(node.stat("", "ep_max_size").unwrap(), "8388608");
        assert_eq!(node.stat("", "ep_max_item_size").unwrap(), "50");
        assert_eq!(node.stat("", "ep_bucket_type").unwrap(), "persistent");
    }
}

/// More documents than the quota holds: writes are refused for a moment at most, memory stays within bounds, and all is there.
#[test]
fn a_bucket_larger_than_its_quota_takes_everything_in_time() {
    for_each_core_count(|node| {
        let mut raw = node.prepared();
        assert_eq!(create(&mut raw, b"small", b"max_size=2097152").status, 0);
        assert_eq!(select(&mut raw, b"small"), 0);
        for n in 0..4000u32 {
            let (vb, key) = ((n % u32::from(VBUCKETS)) as u16, format!("key{n}"));
            assert_eq!(set(&mut raw, vb, key.as_bytes(), &[n as u8; 2000]).status, 0);
        }
        for n in (0..4000u32).step_by(97) {
            let answer = get(&mut raw, (n % u32::from(VBUCKETS)) as u16, format!("key{n}").as_bytes());
            assert_eq!((answer.status, answer.value), (0, vec![n as u8; 2000]));
        }
        let mut client = node.client();
        client.select_bucket("small").unwrap();
        let mut used = 0u64;
        client
            .stats("", |name, value| {
                if name == b"mem_used" {
                    used = std::str::from_utf8(value).unwrap().parse().unwrap();
                }
            })
            .unwrap();
        assert!(used > 0 && used < 3 << 20, "{used} bytes of a quota of 2 MiB");
    });
}

/// Documents expire without being asked for, on every core; a shorter interval is in force at once.
#[test]
fn the_pager_runs_on_every_core_at_the_interval_that_was_set() {
    for_each_core_count(|node| {
        let mut raw = node.prepared();
        for vb in 0..VBUCKETS {
            let ask = Ask {
                opcode: SET,
                vb,
                extras: &[0, 0, 0, 0, 0, 0, 0, 1],
                key: b"short",
                value: b"v",
                ..Ask::default()
            };
            assert_eq!(raw.ask(ask).status, 0);
        }
        fill(&mut raw, b"stays");
        assert_eq!(set_param(&mut raw, b"exp_pager_stime", b"1").status, 0);
        let mut left = 1800;
        while node.stat("", "ep_expired_pager").unwrap() != VBUCKETS.to_string() {
            left -= 1;
            assert!(left > 0, "the pager did not come");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(node.stat("", "curr_items").unwrap(), VBUCKETS.to_string());
        assert_eq!(node.stat("", "ep_expired_access").unwrap(), "0");
        assert!(has_all(&mut raw, b"stays"));
    });
}

#[test]
fn what_a_create_asks_wrongly_is_refused() {
    for_each_core_count(|node| {
        let mut raw = node.prepared();
        assert_eq!(create(&mut raw, b"default", b"").status, 0x02);
        assert_eq!(create(&mut raw, b"a b", b"").status, 0x04);
        assert_eq!(create(&mut raw, b"b", b"colour=red").status, 0x04);
        let ask = |value| Ask { opcode: CREATE, key: b"b", value, ..Ask::default() };
        assert_eq!(raw.ask(ask(b"default_engine.so\0")).status, 0x04);
        let no_data = raw.ask(ask(b"nobucket.so\0"));
        assert_eq!(no_data.status, 0x83);
        assert!(String::from_utf8_lossy(&no_data.value).contains("a bucket without data"));
        assert_eq!(raw.ask(ask(b"ep.so")).status, 0x04);
        let body = Ask { opcode: DELETE, key: b"default", value: b"no json", ..Ask::default() };
        assert_eq!(raw.ask(body).status, 0x04);
        let force = Ask { opcode: DELETE, key: b"default", value: br#"{"force":true}"#, ..Ask::default() };
        assert_eq!(raw.ask(force).status, 0);
        assert_eq!(list(&mut raw), "");
        // The last bucket is gone; the node goes on, and takes another one.
        assert_eq!(create(&mut raw, b"default", b"").status, 0);
    });
}

/// kill -9 while buckets are created, emptied and deleted: each is wholly there or wholly gone, and nothing else is touched.
#[test]
fn kill_9_leaves_every_bucket_wholly_there_or_wholly_gone() {
    let kills: u64 =
        std::env::var("RINGBASE_KILLS").map_or(8, |text| text.parse().expect("a number of kills"));
    let scratch = scratch();
    let start = || Node::start(scratch.path(), &["--cores", "2", "--shards", "4", "--vbuckets", "16"]);
    let mut node = start();
    let mut raw = node.prepared();
    fill(&mut raw, b"kept");
    wait_until_persisted(&mut raw);
    let (mut there, mut gone) = (0, 0);
    for round in 0..kills {
        let mut raw = node.prepared();
        let worker = std::thread::spawn(move || {
            for n in 0u64.. {
                let name = format!("b{}", n % 3);
                let value = [&b"ep.so\0"[..], b"max_size=2097152"].concat();
                let asks = [
                    Ask { opcode: CREATE, key: name.as_bytes(), value: &value, ..Ask::default() },
                    Ask { opcode: SELECT, key: name.as_bytes(), ..Ask::default() },
                    Ask { opcode: SET, vb: 1, extras: &[0; 8], key: b"k", value: b"v", ..Ask::default() },
                    Ask {
                        opcode: SET_PARAM,
                        extras: &[0, 0, 0, 1],
                        key: b"bucket_flush",
                        value: name.as_bytes(),
                        ..Ask::default()
                    },
                    Ask { opcode: DELETE, key: name.as_bytes(), ..Ask::default() },
                ];
                let count = if n % 2 == 0 { asks.len() } else { asks.len() - 1 };
                for ask in &asks[..count] {
                    if raw.0.write_all(&ask.bytes()).is_err() || raw.read().is_none() {
                        return;
                    }
                }
            }
        });
        std::thread::sleep(Duration::from_millis(40 + round * 53 % 190));
        node.kill();
        worker.join().unwrap();
        node = start();
        let mut raw = node.prepared();
        assert!(has_all(&mut raw, b"kept"), "round {round}");
        let names = list(&mut raw);
        for n in 0..3 {
            let name = format!("b{n}");
            let is_listed = names.split(' ').any(|listed| listed == name);
            assert_eq!(select(&mut raw, name.as_bytes()), u16::from(!is_listed), "round {round}: {names}");
            if is_listed {
                there += 1;
                for vb in 0..VBUCKETS {
                    let status = get(&mut raw, vb, b"none").status;
                    assert_eq!(status, 0x01, "round {round}: vb {vb} of {name}");
                }
                fill(&mut raw, b"used");
            } else {
                gone += 1;
            }
        }
    }
    println!("{kills} kills: {there} times a bucket was there, {gone} times gone");
}
