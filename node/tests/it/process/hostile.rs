//! Bad input over TCP: an answer or a closed connection, never a node that is gone.

use std::io::{Read, Write};

use super::{Ask, GET, NOOP, Node, SET, for_each_core_count, scratch};
use ringbase::auth::users::os_random;
use ringbase::auth::{Role, User, Users};

const EXTRAS: &[u8] = &[0; 8];

/// G13: what is no frame ends its connection; what is a bad request is answered and the connection goes on.
#[test]
fn malformed_frames_are_answered_or_close_their_connection_only() {
    for_each_core_count(|node| {
        let mut raw = node.raw();
        raw.0.write_all(&[0x42; 24]).unwrap();
        assert_eq!(raw.0.read(&mut [0; 1]).unwrap(), 0, "a bad magic closes");

        let mut raw = node.raw();
        let mut frame = Ask { opcode: GET, key: b"abc", ..Ask::default() }.bytes();
        frame[8..12].copy_from_slice(&2u32.to_be_bytes());
        raw.0.write_all(&frame).unwrap();
        assert_eq!(raw.0.read(&mut [0; 1]).unwrap(), 0, "a body shorter than its key closes");

        let mut raw = node.raw();
        let mut frame = Ask { opcode: SET, extras: EXTRAS, key: b"k", ..Ask::default() }.bytes();
        frame[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        raw.0.write_all(&frame).unwrap();
        assert_eq!(raw.0.read(&mut [0; 1]).unwrap(), 0, "a frame above 30 MiB closes before it is read");

        let mut raw = node.prepared();
        let long = [b'k'; 251];
        for key in [&b""[..], &long] {
            assert_eq!(
                raw.ask(Ask { opcode: GET, key, ..Ask::default() }).status,
                0x04,
                "{} bytes",
                key.len()
            );
        }
        assert_eq!(raw.ask(Ask { opcode: 0xee, ..Ask::default() }).status, 0x81, "an unknown opcode");
        assert_eq!(raw.ask(Ask { opcode: GET, vb: 16, key: b"k", ..Ask::default() }).status, 0x07);
        assert_eq!(raw.ask(Ask { opcode: NOOP, ..Ask::default() }).status, 0, "the connection goes on");
    });
}

#[test]
fn a_value_of_20_mib_is_stored_and_one_byte_more_is_too_big() {
    let scratch = scratch();
    let more = ["--cores", "1", "--vbuckets", "16", "--wal-segment-bytes", "32MiB", "--memory", "1GiB"];
    let node = Node::start(scratch.path(), &more);
    let mut raw = node.prepared();
    let mut value = vec![7; 20 << 20];
    let ask = Ask { opcode: SET, extras: EXTRAS, key: b"large", ..Ask::default() };
    assert_eq!(raw.ask(Ask { value: &value, ..ask }).status, 0);
    value.push(7);
    assert_eq!(raw.ask(Ask { value: &value, ..ask }).status, 0x03);
    let stored = raw.ask(Ask { opcode: GET, key: b"large", ..Ask::default() });
    assert_eq!(stored.value.len(), 20 << 20, "the connection goes on, the old value stays");
}

/// G11: a client that never reads its answers stops being served; the node's memory stays bounded and others are served.
#[test]
fn a_client_that_never_reads_costs_bounded_memory() {
    for_each_core_count(|node| {
        let mut good = node.prepared();
        let value = vec![1; 100_000];
        let ask = Ask { extras: EXTRAS, key: b"k", ..Ask::default() };
        assert_eq!(good.ask(Ask { opcode: SET, value: &value, ..ask }).status, 0);
        let before = node.resident_bytes();
        let stalled = node.prepared();
        stalled.0.set_write_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        let burst: Vec<u8> =
            (0..1000).flat_map(|_| Ask { opcode: GET, key: b"k", ..Ask::default() }.bytes()).collect();
        let mut writer = stalled.0.try_clone().unwrap();
        for _ in 0..20 {
            if writer.write_all(&burst).is_err() {
                break;
            }
        }
        for _ in 0..100 {
            assert_eq!(good.ask(Ask { opcode: GET, key: b"k", ..Ask::default() }).value.len(), 100_000);
        }
        let grown = node.resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "the stalled client costs {grown} bytes of 2 GB asked for");
        drop((stalled, writer));
    });
}

/// G14: with a users file nothing but the handshake is answered before authentication, and frames are short.
#[test]
fn a_node_with_users_lets_nobody_in_without_a_password() {
    let scratch = scratch();
    let path = scratch.path().join("users.json");
    let mut users = Users::empty(&mut os_random);
    users.add("anna", User::new(Role::Admin, b"secret", 4096, &mut os_random).unwrap()).unwrap();
    users.save(&path).unwrap();
    let data = scratch.path().join("data");
    let node = Node::start(&data, &["--users", path.to_str().unwrap(), "--vbuckets", "16"]);
    let mut raw = node.raw();
    assert_eq!(raw.hello(&[0x07, 0x0b]).status, 0);
    for opcode in [GET, SET, NOOP, 0x89, 0xb5, 0x10, 0xda, 0xee] {
        assert_eq!(raw.ask(Ask { opcode, key: b"k", ..Ask::default() }).status, 0x24, "opcode {opcode:#x}");
    }
    let login = |value| Ask { opcode: 0x21, key: b"PLAIN", value, ..Ask::default() };
    assert_eq!(raw.ask(login(b"\0anna\0wrong")).status, 0x20);
    assert_eq!(raw.ask(login(b"\0nobody\0secret")).status, 0x20);
    assert_eq!(raw.ask(login(b"\0Administrator\0password")).status, 0x20, "no development user here");
    assert_eq!(raw.ask(login(b"\0anna\0secret")).status, 0);
    assert_eq!(raw.ask(Ask { opcode: 0x89, key: b"default", ..Ask::default() }).status, 0);
    assert_eq!(raw.ask(Ask { opcode: GET, key: b"k", ..Ask::default() }).status, 0x01);

    let mut raw = node.raw();
    let long = vec![0; 17 << 10];
    raw.0.write_all(&Ask { opcode: 0x1f, value: &long, ..Ask::default() }.bytes()).ok();
    assert_eq!(raw.0.read(&mut [0; 1]).unwrap_or(0), 0, "above 16 KiB before authentication: closed");
}
