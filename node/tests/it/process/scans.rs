//! Range scans over TCP, with one core and with two.

use std::io::Write;
use std::time::{Duration, Instant};

use super::{Answer, Ask, Node, Raw, SET, for_each_core_count};

const MORE: u16 = 0xa6;
const COMPLETE: u16 = 0xa7;

fn fill(raw: &mut Raw, vb: u16, count: usize, value: &[u8]) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> =
        (0..count).map(|n| format!("key{:05}", n * 7919 % 100_000).into_bytes()).collect();
    for key in &keys {
        let ask = Ask { opcode: SET, vb, extras: &[0; 8], key, value, ..Ask::default() };
        // The log of these tests is small: a temporary failure while it is flushed is part of the bargain.
        while raw.ask(ask).status == 0x86 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    keys.sort();
    keys
}

fn create(raw: &mut Raw, vb: u16, body: &str) -> Answer {
    raw.ask(Ask { opcode: 0xda, vb, datatype: 1, value: body.as_bytes(), ..Ask::default() })
}

fn extras(id: &[u8], items: u32, bytes: u32) -> Vec<u8> {
    [id, &items.to_be_bytes(), &0u32.to_be_bytes(), &bytes.to_be_bytes()].concat()
}

/// One continue: the status of its last frame and the keys of all.
fn advance(raw: &mut Raw, vb: u16, id: &[u8], items: u32) -> (u16, Vec<Vec<u8>>) {
    let extras = extras(id, items, 0);
    raw.0.write_all(&Ask { opcode: 0xdb, vb, extras: &extras, ..Ask::default() }.bytes()).unwrap();
    let mut keys = Vec::new();
    loop {
        let frame = raw.read().unwrap();
        let mut rest = &frame.value[..];
        while !rest.is_empty() && frame.status != 0x84 {
            let len = usize::from(rest[0]);
            keys.push(rest[1..=len].to_vec());
            rest = &rest[len + 1..];
        }
        if frame.status != 0 {
            return (frame.status, keys);
        }
    }
}

const KEYS: &str = r#"{"key_only":true}"#;

/// T5.1, T5.2, T5.15: the keys of a vbucket in order, all at once and three at a time, wherever the vbucket lives.
#[test]
fn keys_come_in_order_with_and_without_limits() {
    for_each_core_count(|node| {
        let mut raw = node.prepared();
        for vb in [0, 1] {
            let keys = fill(&mut raw, vb, 500, b"v");
            let id = create(&mut raw, vb, KEYS).value;
            assert_eq!(id.len(), 16);
            assert_eq!(advance(&mut raw, vb, &id, 0), (COMPLETE, keys.clone()));
            assert_eq!(advance(&mut raw, vb, &id, 0).0, 0x01, "a scan that is complete is gone");
            let id = create(&mut raw, vb, KEYS).value;
            let mut all = Vec::new();
            loop {
                let (status, mut some) = advance(&mut raw, vb, &id, 3);
                all.append(&mut some);
                if status == COMPLETE {
                    break;
                }
                assert_eq!(status, MORE);
            }
            assert_eq!(all, keys);
        }
        assert_eq!(create(&mut raw, 5, KEYS).status, 0x01, "an empty vbucket");
    });
}

/// T5.7, T5.8 and the bad input of scans.
#[test]
fn bad_scan_requests_are_refused_by_status() {
    for_each_core_count(|node| {
        let mut raw = node.prepared();
        fill(&mut raw, 2, 10, b"v");
        let both = r#"{"range":{"start":"YQ==","excl_start":"YQ==","end":"Yg=="}}"#;
        for body in
            ["", "{", "[]", both, r#"{"range":{"start":"!","end":"Yg=="}}"#, r#"{"sampling":{"samples":0}}"#]
        {
            assert_eq!(create(&mut raw, 2, body).status, 0x04, "{body}");
        }
        assert_eq!(create(&mut raw, 2, r#"{"collection":"9"}"#).status, 0x88);
        let unknown = [9; 16];
        assert_eq!(advance(&mut raw, 2, &unknown, 0).0, 0x01);
        assert_eq!(raw.ask(Ask { opcode: 0xdc, vb: 2, extras: &unknown, ..Ask::default() }).status, 0x01);
        let id = create(&mut raw, 2, KEYS).value;
        assert_eq!(raw.ask(Ask { opcode: 0xdc, vb: 2, extras: &id, ..Ask::default() }).status, 0);
        assert_eq!(advance(&mut raw, 2, &id, 0).0, 0x01, "a cancelled scan is gone");
    });
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn running(node: &Node) -> String {
    node.stat("range-scans", "num_running").unwrap()
}

/// T5.22: a connection that goes while its scan is being sent takes the scan with it, at once; an idle scan stays.
#[test]
fn a_disconnect_in_the_middle_cancels_the_running_scan_and_frees_its_snapshot() {
    for_each_core_count(|node| {
        let mut raw = node.prepared();
        fill(&mut raw, 4, 3000, &[7; 4000]);
        let idle = create(&mut raw, 4, KEYS).value;
        let mut goner = node.prepared();
        let id = create(&mut goner, 4, "{}").value;
        assert_eq!(running(node), "2");
        let extras = extras(&id, 0, 0);
        goner.0.write_all(&Ask { opcode: 0xdb, vb: 4, extras: &extras, ..Ask::default() }.bytes()).unwrap();
        goner.read().unwrap();
        drop(goner);
        wait_until("the end of the scan", || running(node) == "1");
        assert_eq!(advance(&mut raw, 4, &idle, 0).0, COMPLETE, "the idle one goes on");
        wait_until("the end of all scans", || running(node) == "0");
    });
}

/// T5.8: a cancel from another connection ends a continue that a slow client has not taken, with exactly one final frame.
#[test]
fn a_cancel_from_another_connection_ends_a_running_continue_once() {
    for_each_core_count(|node| {
        let mut raw = node.prepared();
        fill(&mut raw, 6, 6000, &[7; 4000]);
        let mut slow = node.prepared();
        let id = create(&mut slow, 6, "{}").value;
        let all = extras(&id, 0, 0);
        slow.0.write_all(&Ask { opcode: 0xdb, vb: 6, extras: &all, ..Ask::default() }.bytes()).unwrap();
        let busy = raw.ask(Ask { opcode: 0xdb, vb: 6, extras: &all, ..Ask::default() });
        assert_eq!(busy.status, 0x85, "a second continue");
        assert_eq!(raw.ask(Ask { opcode: 0xdc, vb: 6, extras: &id, ..Ask::default() }).status, 0);
        let mut last = 0;
        while last == 0 {
            last = slow.read().unwrap().status;
        }
        assert_eq!(last, 0xa5);
        assert_eq!(
            slow.ask(Ask { opcode: 0x0a, opaque: 77, ..Ask::default() }).opaque,
            77,
            "nothing follows it"
        );
    });
}

/// The buffer's size changes while the node runs, and 8192 cuts frames as the reference does.
#[test]
fn the_send_size_changes_at_run_time() {
    for_each_core_count(|node| {
        let mut raw = node.prepared();
        fill(&mut raw, 1, 3000, b"v");
        let mut frames_at = |size: &str| {
            let set = Ask { opcode: 0x82, extras: &6u32.to_be_bytes(), ..Ask::default() };
            let name = b"range_scan_read_buffer_send_size";
            assert_eq!(raw.ask(Ask { key: name, value: size.as_bytes(), ..set }).status, 0);
            let id = create(&mut raw, 1, KEYS).value;
            raw.0
                .write_all(&Ask { opcode: 0xdb, vb: 1, extras: &extras(&id, 0, 0), ..Ask::default() }.bytes())
                .unwrap();
            let mut frames = Vec::new();
            loop {
                let frame = raw.read().unwrap();
                frames.push(frame.value.len());
                if frame.status != 0 {
                    return frames;
                }
            }
        };
        // The other core hears of the change by message: wait until it has.
        wait_until("small frames", || frames_at("8192").len() == 4);
        wait_until("one frame", || frames_at("auto").len() == 1);
        let bad = Ask {
            opcode: 0x82,
            extras: &6u32.to_be_bytes(),
            key: b"nonsense",
            value: b"1",
            ..Ask::default()
        };
        assert_eq!(raw.ask(bad).status, 0x04);
    });
}
