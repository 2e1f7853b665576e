//! Documents over TCP, with one core and with two.

use std::io::Write;

use super::{Ask, GET, NOOP, Node, SET, for_each_core_count, scratch};

const EXTRAS: &[u8] = &[0; 8];

/// A burst of mixed requests for all vbuckets, sent at once: answers come in the order of the requests, and a read sees the write before it, on
/// whichever core the vbucket lives.
#[test]
fn a_pipelined_burst_is_answered_in_order_and_reads_its_own_writes() {
    for_each_core_count(|node| {
        let mut raw = node.prepared();
        let mut burst = Vec::new();
        let rounds = 2000u32;
        for n in 0..rounds {
            let (key, vb, value) = (format!("key{}", n % 97), (n % 16) as u16, n.to_be_bytes());
            let ask = Ask { vb, key: key.as_bytes(), ..Ask::default() };
            let set = Ask { opcode: SET, opaque: n * 3, extras: EXTRAS, value: &value, ..ask };
            burst.extend(set.bytes());
            burst.extend(Ask { opcode: GET, opaque: n * 3 + 1, ..ask }.bytes());
            burst.extend(Ask { opcode: NOOP, opaque: n * 3 + 2, ..Ask::default() }.bytes());
        }
        let mut writer = raw.0.try_clone().unwrap();
        let sender = std::thread::spawn(move || writer.write_all(&burst).unwrap());
        for n in 0..rounds {
            let (set, get, noop) = (raw.read().unwrap(), raw.read().unwrap(), raw.read().unwrap());
            assert_eq!((set.opaque, get.opaque, noop.opaque), (n * 3, n * 3 + 1, n * 3 + 2));
            assert_eq!((set.status, get.status, noop.status), (0, 0, 0), "request {n}");
            assert_eq!(get.value, n.to_be_bytes(), "request {n} reads its own write");
            assert_eq!(get.cas, set.cas);
        }
        sender.join().unwrap();
    });
}

/// An SDK sends its whole bootstrap without waiting: every step is answered, in order.
#[test]
fn a_bootstrap_in_one_write_is_answered_step_by_step() {
    for_each_core_count(|node| {
        let mut raw = node.raw();
        let features: Vec<u8> = [0x03u16, 0x04, 0x06, 0x07, 0x0b, 0x0f, 0x12, 0x1e]
            .iter()
            .flat_map(|f| f.to_be_bytes())
            .collect();
        let mut burst = Ask { opcode: 0x1f, value: &features, ..Ask::default() }.bytes();
        burst.extend(Ask { opcode: 0x20, ..Ask::default() }.bytes());
        let plain =
            Ask { opcode: 0x21, key: b"PLAIN", value: b"\0Administrator\0password", ..Ask::default() };
        burst.extend(plain.bytes());
        burst.extend(Ask { opcode: 0xfe, value: &[0, 2], ..Ask::default() }.bytes());
        burst.extend(Ask { opcode: 0x89, key: b"default", ..Ask::default() }.bytes());
        burst.extend(Ask { opcode: 0xb5, ..Ask::default() }.bytes());
        raw.0.write_all(&burst).unwrap();
        for opcode in [0x1f, 0x20, 0x21, 0xfe, 0x89, 0xb5] {
            let answer = raw.read().unwrap();
            assert_eq!((answer.opcode, answer.status), (opcode, 0));
            if opcode == 0xb5 {
                let map: serde_json::Value = serde_json::from_slice(&answer.value).unwrap();
                assert_eq!(map["vBucketServerMap"]["vBucketMap"].as_array().unwrap().len(), 16);
            }
        }
    });
}

#[test]
fn everything_acknowledged_is_there_after_sigterm() {
    let scratch = scratch();
    let node = Node::start(scratch.path(), &["--cores", "2", "--vbuckets", "16"]);
    let mut raw = node.prepared();
    for n in 0..500u16 {
        let key = format!("k{n}");
        let ask = Ask {
            opcode: SET,
            vb: n % 16,
            extras: EXTRAS,
            key: key.as_bytes(),
            value: b"v",
            ..Ask::default()
        };
        assert_eq!(raw.ask(ask).status, 0);
    }
    assert_eq!(node.stop(), 0);
    let node = Node::start(scratch.path(), &["--cores", "1"]);
    assert_eq!(node.ready["clean"], true);
    let mut raw = node.prepared();
    for n in 0..500u16 {
        let key = format!("k{n}");
        assert_eq!(
            raw.ask(Ask { opcode: GET, vb: n % 16, key: key.as_bytes(), ..Ask::default() }).value,
            b"v"
        );
    }
}

#[test]
fn every_group_of_statistics_answers_and_an_unknown_one_is_refused() {
    for_each_core_count(|node| {
        for group in
            ["", "vbucket-details", "vbucket-details 3", "vbucket-seqno", "range-scans", "timings", "uuid"]
        {
            let mut entries = 0;
            node.client().stats(group, |_, _| entries += 1).unwrap();
            assert!(entries > 0 || group == "uuid", "{group}");
        }
        assert!(node.client().stats("nonsense", |_, _| {}).is_err());
        assert_eq!(node.stat("vbucket-seqno", "vb_15:high_seqno").as_deref(), Some("0"));
        assert!(node.stat("", "ring_entries").unwrap().parse::<u64>().unwrap() > 0);
    });
}
