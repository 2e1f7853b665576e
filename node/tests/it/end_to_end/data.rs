//! Documents: the commands on every core, order and read-your-write under deep pipelines.

use std::io::Write;

use ringbase::client::{Bucket, StoreMode};
use ringbase::protocol::extras::{ArithmeticExtras, StoreExtras};
use ringbase::protocol::{Opcode, Request, Status, vbucket_of};
use ringbase_storage::types::{Cas, Seqno, VbId};

use super::rig::{Node, Place, Setup, for_each_core_count, frame, get, key_in, set};

#[test]
fn documents_are_stored_changed_and_deleted_in_every_vbucket() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut connection = node.connect();
        let mut bucket = Bucket::new(&mut connection).unwrap();
        for vbucket in (0..16).map(VbId) {
            let key = key_in(vbucket, 16, "doc-");
            let key = key.as_bytes();
            let extras = StoreExtras { flags: 0xcafe, expiry: 0 };
            let any = Cas(0);
            let refused = |result: Result<_, ringbase::client::ClientError>| match result {
                Ok(_) => None,
                Err(error) => error.status(),
            };
            assert_eq!(
                refused(bucket.store(StoreMode::Replace, key, b"0", extras, any)),
                Some(Status::KEY_ENOENT)
            );
            let added = bucket.store(StoreMode::Add, key, b"1", extras, any).unwrap();
            assert_eq!(added.token.unwrap().seqno, Seqno(1), "{vbucket}");
            assert_eq!(
                refused(bucket.store(StoreMode::Add, key, b"2", extras, any)),
                Some(Status::KEY_EEXISTS)
            );
            let stale = bucket.store(StoreMode::Set, key, b"3", extras, Cas(added.cas.0 + 1));
            assert_eq!(refused(stale), Some(Status::KEY_EEXISTS));
            let set = bucket.store(StoreMode::Set, key, b"41", extras, added.cas).unwrap();
            assert!(set.cas > added.cas);
            let found = bucket.get(key).unwrap();
            assert_eq!((found.value.as_slice(), found.flags, found.cas), (&b"41"[..], 0xcafe, set.cas));
            let delta = ArithmeticExtras { delta: 1, initial: 0, expiry: 0 };
            assert_eq!(bucket.count(key, false, delta).unwrap(), 42);
            assert!(bucket.delete(key, set.cas).is_err(), "the counter has another version by now");
            let deleted = bucket.delete(key, any).unwrap();
            assert_eq!(deleted.token.unwrap().seqno, Seqno(4));
            assert_eq!(bucket.get(key).unwrap_err().status(), Some(Status::KEY_ENOENT));
        }
    });
}

#[test]
fn a_vbucket_that_is_not_here_is_refused_with_the_map() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let answer = node.raw().ask(Request::new(Opcode::GET).vbucket(VbId(16)).key(b"k"));
        assert_eq!(answer.status, Status::NOT_MY_VBUCKET);
        let map: serde_json::Value = serde_json::from_slice(&answer.value).unwrap();
        assert_eq!(map["name"], "default");
    });
}

/// Requests for both cores alternate on one connection, answers come in the order of the requests, and a GET sees the SET that
/// stands before it.
#[test]
fn ten_thousand_pipelined_requests_keep_their_order_and_read_their_own_writes() {
    const REQUESTS: u32 = 10_000;
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut raw = node.raw();
        let key = |number: u32| format!("key-{}", number % 97);
        let mut bytes = Vec::new();
        for number in 0..REQUESTS {
            let key = key(number / 2);
            let value = format!("value of request {number}");
            let request = if number % 2 == 0 {
                set(key.as_bytes(), value.as_bytes(), 16)
            } else {
                get(key.as_bytes(), 16)
            };
            bytes.extend(frame(request.opaque(number)));
        }
        let mut writing = raw.stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || writing.write_all(&bytes).unwrap());
        for number in 0..REQUESTS {
            let answer = raw.answer();
            assert_eq!((answer.opaque, answer.status), (number, Status::SUCCESS), "{answer:?}");
            if number % 2 == 1 {
                let expected = format!("value of request {}", number - 1);
                assert_eq!(String::from_utf8(answer.value).unwrap(), expected);
            }
        }
        writer.join().unwrap();
        let vbuckets: std::collections::BTreeSet<VbId> =
            (0..97).map(|number| vbucket_of(key(number).as_bytes(), 16)).collect();
        assert_eq!(vbuckets.len(), 16, "all vbuckets took part");
    });
}

#[test]
fn quiet_requests_answer_only_what_went_wrong() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut raw = node.raw();
        let mut burst = Vec::new();
        for number in 0..50_u32 {
            let key = format!("q{number}");
            let vbucket = vbucket_of(key.as_bytes(), 16);
            let quiet = Request::new(Opcode::SET_Q).vbucket(vbucket).extras(&[0; 8]).key(key.as_bytes());
            burst.extend(frame(quiet.opaque(number).value(b"v")));
            burst.extend(frame(Request::new(Opcode::GET_Q).vbucket(vbucket).key(b"missing").opaque(number)));
        }
        let again = Request::new(Opcode::ADD_Q).vbucket(vbucket_of(b"q7", 16)).extras(&[0; 8]).key(b"q7");
        burst.extend(frame(again.opaque(1000)));
        burst.extend(frame(Request::new(Opcode::NOOP).opaque(1001)));
        raw.send_bytes(&burst);
        let first = raw.answer();
        assert_eq!((first.opaque, first.status), (1000, Status::KEY_EEXISTS));
        assert_eq!(raw.answer().opaque, 1001);
    });
}

/// 16 and 1,024 vbuckets, and one.
#[test]
fn a_directory_can_be_formatted_with_other_numbers_of_vbuckets() {
    for vbuckets in [1, 1024] {
        let place = Place::new();
        let setup = Setup { vbuckets, ..Setup::cores(1) };
        let node = Node::start(&place.data(), &setup);
        assert_eq!(node.ready["vbuckets"], vbuckets);
        let mut raw = node.raw();
        for vbucket in (0..vbuckets).step_by(37).map(VbId) {
            let key = key_in(vbucket, vbuckets, "k");
            assert_eq!(raw.ask(set(key.as_bytes(), b"v", vbuckets)).status, Status::SUCCESS);
            assert_eq!(raw.ask(get(key.as_bytes(), vbuckets)).value, b"v");
        }
        drop(raw);
        assert!(node.stop().success());
    }
}
