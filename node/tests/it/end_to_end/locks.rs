//! Locked documents, over TCP: two clients of one document, in a bucket on disk and in one in memory.

use std::time::{Duration, Instant};

use ringbase::client::{Bucket, ClientError, StoreMode};
use ringbase::protocol::extras::{ArithmeticExtras, StoreExtras};
use ringbase::protocol::{Opcode, Request, Status};
use ringbase_storage::types::{Cas, VbId};

use super::rig::{Node, Place, eventually, for_each_core_count, key_in, set};

const PLAIN: StoreExtras = StoreExtras { flags: 0, expiry: 0 };

fn refused<T>(result: Result<T, ClientError>) -> Option<Status> {
    result.err().map(|error| error.status().expect("the node answers"))
}

/// Whoever has the lock writes; nobody else does until it is unlocked.
#[test]
fn who_locks_a_document_writes_it_and_others_wait() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        node.connect().create_bucket("memory", "bucket_type=ephemeral").unwrap();
        for name in ["default", "memory"] {
            let (mut one, mut two) = (node.connect_to(name), node.connect_to(name));
            let (mut holder, mut other) = (Bucket::new(&mut one).unwrap(), Bucket::new(&mut two).unwrap());
            for vbucket in (0..16).map(VbId) {
                let key = key_in(vbucket, 16, "locked-");
                let key = key.as_bytes();
                let written = holder.store(StoreMode::Add, key, b"1", PLAIN, Cas(0)).unwrap();
                let locked = holder.get_and_lock(key, 30).unwrap();
                assert_eq!(locked.value, b"1");
                assert_eq!(other.get(key).unwrap().cas, Cas(u64::MAX), "others see that it is locked");
                let delta = ArithmeticExtras { delta: 1, initial: 0, expiry: 0 };
                for cas in [Cas(0), written.cas] {
                    let stored = other.store(StoreMode::Set, key, b"2", PLAIN, cas);
                    assert_eq!(refused(stored), Some(Status::LOCKED));
                    assert_eq!(refused(other.delete(key, cas)), Some(Status::LOCKED));
                }
                assert_eq!(refused(other.count(key, false, delta)), Some(Status::LOCKED));
                assert_eq!(refused(other.touch(key, 100)), Some(Status::LOCKED));
                assert_eq!(refused(other.get_and_lock(key, 1)), Some(Status::LOCKED));
                assert_eq!(refused(other.unlock(key, written.cas)), Some(Status::LOCKED));
                let replaced = holder.store(StoreMode::Replace, key, b"3", PLAIN, locked.cas).unwrap();
                assert_eq!(
                    replaced.token.unwrap().seqno,
                    written.token.unwrap().seqno.next(),
                    "locking wrote nothing"
                );
                assert_eq!(other.get(key).unwrap().cas, replaced.cas, "writing unlocks");
                assert_eq!(refused(holder.unlock(key, locked.cas)), Some(Status::NOT_LOCKED));
                let again = other.get_and_lock(key, 0).unwrap();
                assert_eq!((&again.value[..], again.cas > replaced.cas), (&b"3"[..], true));
                other.unlock(key, again.cas).unwrap();
                assert_eq!(holder.count(key, false, delta).unwrap(), 4);
            }
            assert_eq!(refused(holder.get_and_lock(b"never", 0)), Some(Status::KEY_ENOENT));
        }
    });
}

/// A lock that is never given back ends by the clock, one of a node that stops ends with it.
#[test]
fn a_lock_ends_with_its_time_and_with_the_node() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        node.connect().create_bucket("memory", "bucket_type=ephemeral").unwrap();
        for name in ["default", "memory"] {
            let mut connection = node.connect_to(name);
            let mut bucket = Bucket::new(&mut connection).unwrap();
            bucket.store(StoreMode::Set, b"k", b"1", PLAIN, Cas(0)).unwrap();
            let started = Instant::now();
            let locked = bucket.get_and_lock(b"k", 1).unwrap();
            eventually("the lock is over", || {
                bucket.store(StoreMode::Set, b"k", b"2", PLAIN, Cas(0)).is_ok()
            });
            assert!(started.elapsed() >= Duration::from_secs(1));
            assert_eq!(refused(bucket.unlock(b"k", locked.cas)), Some(Status::NOT_LOCKED));
        }
        let mut connection = node.connect_to("default");
        let mut bucket = Bucket::new(&mut connection).unwrap();
        let locked = bucket.get_and_lock(b"k", 30).unwrap();
        drop(connection);
        assert!(node.stop().success());
        let node = Node::start(&place.data(), &setup);
        let mut connection = node.connect_to("default");
        let mut bucket = Bucket::new(&mut connection).unwrap();
        assert_eq!(bucket.get(b"k").unwrap().value, b"2");
        assert_eq!(refused(bucket.unlock(b"k", locked.cas)), Some(Status::NOT_LOCKED));
        bucket.store(StoreMode::Set, b"k", b"3", PLAIN, Cas(0)).unwrap();
    });
}

/// A client that has not asked for XERROR gets the older statuses.
#[test]
fn old_clients_are_told_of_locks_in_the_words_they_know() {
    let place = Place::new();
    let node = Node::start(&place.data(), &super::rig::Setup::cores(1));
    let mut raw = node.raw();
    let key = key_in(VbId(3), 16, "old-");
    let request = |opcode| Request::new(opcode).vbucket(VbId(3)).key(key.as_bytes());
    assert_eq!(raw.ask(set(key.as_bytes(), b"1", 16)).status, Status::SUCCESS);
    assert_eq!(raw.ask(request(Opcode::UNLOCK_KEY).cas(Cas(1))).status, Status::ETMPFAIL);
    let locked = raw.ask(request(Opcode::GET_LOCKED));
    assert_eq!(
        (locked.status, &locked.value[..], &locked.extras[..]),
        (Status::SUCCESS, &b"1"[..], &[0; 4][..])
    );
    assert_eq!(raw.ask(set(key.as_bytes(), b"2", 16)).status, Status::KEY_EEXISTS);
    assert_eq!(raw.ask(request(Opcode::GET_LOCKED)).status, Status::ETMPFAIL);
    assert_eq!(raw.ask(request(Opcode::UNLOCK_KEY).cas(Cas(1))).status, Status::ETMPFAIL);
    assert_eq!(raw.ask(request(Opcode::UNLOCK_KEY).cas(locked.cas)).status, Status::SUCCESS);
    assert_eq!(raw.ask(set(key.as_bytes(), b"2", 16)).status, Status::SUCCESS);
}
