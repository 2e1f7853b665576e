//! Bytes that no client should send: what is answered, what is closed, and that the node lives on.

use ringbase::protocol::frame::FRAME_BYTES_MAX;
use ringbase::protocol::{Opcode, Request, Status, vbucket_of};

use super::rig::{Node, Place, Raw, for_each_core_count, frame, get, set};

/// Something a client can send that ends its connection without an answer.
fn is_cut_off(node: &Node, bytes: &[u8]) -> bool {
    let mut raw = node.raw();
    raw.send_bytes(&frame(Request::new(Opcode::NOOP).opaque(1)));
    raw.send_bytes(bytes);
    assert_eq!(raw.answer().opaque, 1, "what stood before is answered");
    raw.next_answer().is_none()
}

fn still_serves(raw: &mut Raw) {
    assert_eq!(raw.ask(Request::new(Opcode::NOOP)).status, Status::SUCCESS);
}

/// Rows 1 and 2 of the protocol's checks.
#[test]
fn bad_magic_lengths_that_overflow_and_frames_above_30_mib_close_the_connection_and_no_other() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let mut node = Node::start(&place.data(), &setup);
        let mut other = node.raw();
        assert!(is_cut_off(&node, b"GET / HTTP/1.1\r\n\r\n"));
        let header = |change: fn(&mut Vec<u8>)| {
            let mut bytes = frame(set(b"key", b"value", 16));
            bytes.truncate(24);
            change(&mut bytes);
            bytes
        };
        // The key is longer than the body.
        assert!(is_cut_off(&node, &header(|bytes| bytes[2..4].copy_from_slice(&[0xff, 0xff]))));
        // Key and extras together are.
        assert!(is_cut_off(&node, &header(|bytes| bytes[8..12].copy_from_slice(&10_u32.to_be_bytes()))));
        // A body of 4 GiB.
        assert!(is_cut_off(&node, &header(|bytes| bytes[8..12].copy_from_slice(&[0xff; 4]))));
        // One byte above the limit, header included.
        assert!(is_cut_off(
            &node,
            &header(|bytes| {
                let body = u32::try_from(FRAME_BYTES_MAX - 24 + 1).unwrap();
                bytes[8..12].copy_from_slice(&body.to_be_bytes());
            })
        ));
        // A flexible frame whose framing extras run past the body.
        assert!(is_cut_off(&node, &header(|bytes| (bytes[0], bytes[2], bytes[3]) = (0x08, 0xff, 0xff))));
        // A response that nobody asked for.
        let mut response = frame(set(b"key", b"value", 16));
        response[0] = 0x81;
        assert!(is_cut_off(&node, &response));
        still_serves(&mut other);
        assert!(node.is_alive());
    });
}

#[test]
fn keys_of_0_and_251_bytes_are_invalid_and_the_connection_stays() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut raw = node.raw();
        for key in [&b""[..], &[b'x'; 251]] {
            assert_eq!(raw.ask(set(key, b"v", 16)).status, Status::EINVAL, "{} bytes", key.len());
            assert_eq!(raw.ask(get(key, 16)).status, Status::EINVAL, "{} bytes", key.len());
        }
        assert_eq!(raw.ask(set(&[b'x'; 250], b"v", 16)).status, Status::SUCCESS);
        assert_eq!(raw.ask(get(&[b'x'; 250], 16)).value, b"v");
    });
}

#[test]
fn a_value_of_20_mib_is_stored_one_byte_more_is_too_big_and_the_connection_stays() {
    const LIMIT: usize = 20 * 1024 * 1024;
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup.with(&["--wal-segment-bytes", "32MiB"]));
        let mut raw = node.raw();
        let mut value = vec![b'x'; LIMIT + 1];
        for key in [&b"large-a"[..], b"large-b", b"large-c"] {
            assert_eq!(raw.ask(set(key, &value, 16)).status, Status::E2BIG);
        }
        still_serves(&mut raw);
        value.truncate(LIMIT);
        assert_eq!(raw.ask(set(b"large-a", &value, 16)).status, Status::SUCCESS);
        assert!(raw.ask(get(b"large-a", 16)).value == value);
        let more =
            Request::new(Opcode::APPEND).vbucket(vbucket_of(b"large-a", 16)).key(b"large-a").value(b"y");
        assert_eq!(raw.ask(more).status, Status::E2BIG);
        still_serves(&mut raw);
    });
}

#[test]
fn requests_that_make_no_sense_are_refused_one_by_one() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut raw = node.raw();
        assert_eq!(raw.ask(Request::new(Opcode(0xee))).status, Status::UNKNOWN_COMMAND);
        let no_extras = Request::new(Opcode::SET).key(b"k").value(b"v");
        assert_eq!(raw.ask(no_extras).status, Status::EINVAL);
        let with_value = Request::new(Opcode::GET).key(b"k").value(b"v");
        assert_eq!(raw.ask(with_value).status, Status::EINVAL);
        let not_negotiated = set(b"k", b"{}", 16).datatype(ringbase::protocol::Datatype::JSON);
        assert_eq!(raw.ask(not_negotiated).status, Status::EINVAL);
        // A snappy value that nobody negotiated, an extras length that no command has.
        let strange = Request::new(Opcode::TOUCH).key(b"k").extras(&[0; 3]);
        assert_eq!(raw.ask(strange).status, Status::EINVAL);
        still_serves(&mut raw);
    });
}

/// Frames with one byte changed at a time; each connection ends by an answer or by being closed, never by a hang.
#[test]
fn any_single_byte_of_a_request_may_be_wrong_without_harm() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let mut node = Node::start(&place.data(), &setup);
        let good = frame(set(b"key", b"value", 16));
        for index in 0..24 {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[index] ^= 1 << bit;
                let mut raw = node.raw();
                raw.send_bytes(&bytes);
                // What a longer length waits for never comes.
                raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
                while raw.next_answer().is_some() {}
            }
        }
        still_serves(&mut node.raw());
        assert!(node.is_alive());
    });
}
