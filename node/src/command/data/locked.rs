//! Locked documents by the tables of the protocol, in buckets on disk and in memory.
//!
//! Does not know: the table of locks.

use ringbase_storage::types::{Cas, VbId};

use crate::bucket::document::LOCKED_CAS;
use crate::bucket::locks::LOCKS_MAX;
use crate::command::StatQuery;
use crate::command::rig::{Answer, PLAIN, Rig, RigOptions, VB, get, set};
use crate::command::stat::{self, StatGroup, StatValue};
use crate::command::stat::{CollectionQuery, DcpQuery};
use crate::protocol::extras::{ArithmeticExtras, StoreExtras};
use crate::protocol::framing::{Durability, DurabilityLevel};
use crate::protocol::{Feature, Opcode, Request, RequestFraming, Status};

const KEY: &[u8] = b"key";
const WRONG: Cas = Cas(77);

/// A bucket on disk, one whose documents are on disk alone once they are flushed, and one in memory.
const PLACES: [(&str, usize); 3] = [("", 64 << 20), ("", 1), ("bucket_type=ephemeral", 64 << 20)];

fn rigs() -> impl Iterator<Item = Rig> {
    PLACES.into_iter().map(|(settings, resident_bytes_max)| {
        Rig::with(RigOptions { settings, resident_bytes_max, ..RigOptions::default() })
    })
}

fn lock(key: &[u8]) -> Request<'_> {
    Request::new(Opcode::GET_LOCKED).key(key)
}

fn unlock(key: &[u8], cas: Cas) -> Request<'_> {
    Request::new(Opcode::UNLOCK_KEY).key(key).cas(cas)
}

fn high_seqno(rig: &Rig) -> u64 {
    rig.store("default", VB).high_seqno().0
}

fn stat(rig: &Rig, name: &str) -> u64 {
    let bucket = rig.engine.buckets().first().map(|bucket| bucket.id);
    let (collections, dcp) = (CollectionQuery::default(), DcpQuery::default());
    let query = StatQuery { group: StatGroup::General, collections, vbucket: None, bucket, dcp };
    match stat::collect(&query, &[&rig.engine]).get(name) {
        Some(StatValue::Sum(number) | StatValue::Max(number)) => *number,
        other => panic!("{name}: {other:?}"),
    }
}

/// A document with value `1`, flags 7, on disk if the bucket is, and the CAS of its lock.
fn locked_rig(mut rig: Rig, xerror: bool) -> (Rig, Answer, Cas) {
    if xerror {
        rig.hello(&[Feature::Xerror]);
    }
    let extras = StoreExtras { flags: 7, expiry: 0 }.encode();
    let stored = rig.ask(set(KEY, b"1").extras(&extras)).one();
    rig.flush();
    let locked = rig.ask(lock(KEY)).one();
    assert_eq!(
        (locked.status, &locked.value[..], &locked.extras[..]),
        (Status::SUCCESS, &b"1"[..], &[0, 0, 0, 7][..])
    );
    (rig, stored, locked.cas)
}

/// Data operations §1, the columns of locked documents, with and without XERROR, loud and quiet.
#[test]
fn every_row_of_the_table_of_locked_documents_holds() {
    use Status as S;
    let count = ArithmeticExtras { delta: 1, initial: 0, expiry: 0 }.encode();
    let touch = 1000u32.to_be_bytes();
    let writes = [S::LOCKED, S::LOCKED, S::LOCKED, S::SUCCESS];
    let no_cas = |status| [status, S::EINVAL, S::EINVAL, S::EINVAL];
    // Opcode, extras, value; then the status for: no CAS, a wrong one, the one the document has, the lock's; then the value after the last.
    type Row<'r> = (Opcode, &'r [u8], &'r [u8], [Status; 4], Option<&'r [u8]>);
    let rows: [Row<'_>; 27] = [
        (Opcode::SET, &PLAIN, b"2", writes, Some(b"2")),
        (Opcode::SET_Q, &PLAIN, b"2", writes, Some(b"2")),
        (Opcode::ADD, &PLAIN, b"2", no_cas(S::KEY_EEXISTS), None),
        (Opcode::ADD_Q, &PLAIN, b"2", no_cas(S::KEY_EEXISTS), None),
        (Opcode::REPLACE, &PLAIN, b"2", writes, Some(b"2")),
        (Opcode::REPLACE_Q, &PLAIN, b"2", writes, Some(b"2")),
        (Opcode::DELETE, b"", b"", writes, None),
        (Opcode::DELETE_Q, b"", b"", writes, None),
        (Opcode::APPEND, b"", b"2", writes, Some(b"12")),
        (Opcode::APPEND_Q, b"", b"2", writes, Some(b"12")),
        (Opcode::PREPEND, b"", b"2", writes, Some(b"21")),
        (Opcode::PREPEND_Q, b"", b"2", writes, Some(b"21")),
        (Opcode::INCREMENT, &count, b"", no_cas(S::LOCKED), None),
        (Opcode::INCREMENT_Q, &count, b"", no_cas(S::LOCKED), None),
        (Opcode::DECREMENT, &count, b"", no_cas(S::LOCKED), None),
        (Opcode::DECREMENT_Q, &count, b"", no_cas(S::LOCKED), None),
        (Opcode::TOUCH, &touch, b"", no_cas(S::LOCKED), None),
        (Opcode::TOUCH, &PLAIN[..4], b"", no_cas(S::LOCKED), None),
        (Opcode::GAT, &touch, b"", no_cas(S::LOCKED), None),
        (Opcode::GAT_Q, &touch, b"", no_cas(S::LOCKED), None),
        (Opcode::GET, b"", b"", no_cas(S::SUCCESS), None),
        (Opcode::GET_Q, b"", b"", no_cas(S::SUCCESS), None),
        (Opcode::GET_K, b"", b"", no_cas(S::SUCCESS), None),
        (Opcode::GET_META, b"", b"", no_cas(S::SUCCESS), None),
        (Opcode::GET_LOCKED, b"", b"", no_cas(S::LOCKED), None),
        (Opcode::GET_LOCKED, &touch, b"", no_cas(S::LOCKED), None),
        (Opcode::UNLOCK_KEY, b"", b"", [S::EINVAL, S::LOCKED, S::LOCKED, S::SUCCESS], Some(b"1")),
    ];
    for xerror in [false, true] {
        for (opcode, extras, value, statuses, after) in rows {
            for (case, status) in statuses.into_iter().enumerate() {
                for rig in rigs() {
                    let (mut rig, stored, lock_cas) = locked_rig(rig, xerror);
                    let cas = [Cas(0), WRONG, stored.cas, lock_cas][case];
                    let what = format!("{opcode} case {case} xerror {xerror}");
                    let before = high_seqno(&rig);
                    let request = Request::new(opcode).key(KEY).extras(extras).value(value).cas(cas);
                    let answered = rig.ask(request);
                    let told = match status {
                        S::LOCKED if xerror => S::LOCKED,
                        S::LOCKED if matches!(opcode, Opcode::GET_LOCKED | Opcode::UNLOCK_KEY) => S::ETMPFAIL,
                        S::LOCKED => S::KEY_EEXISTS,
                        other => other,
                    };
                    if status == S::SUCCESS && opcode.is_quiet_on_success() {
                        assert!(answered.is_silent(), "{what}");
                    } else {
                        let answer = answered.one();
                        assert_eq!(answer.status, told, "{what}");
                        if status == S::SUCCESS && case == 0 {
                            assert_eq!(answer.cas, LOCKED_CAS, "{what}");
                        }
                        if opcode == Opcode::UNLOCK_KEY {
                            assert_eq!((answer.cas, answer.extras), (Cas(0), Vec::new()), "{what}");
                        }
                    }
                    if case == 3 && status == S::SUCCESS {
                        let found = rig.ask(get(KEY)).one();
                        let value = (found.status == S::SUCCESS).then_some(&found.value[..]);
                        assert_eq!(value, after, "{what}");
                        assert_ne!(found.cas, LOCKED_CAS, "{what}");
                        assert_eq!(
                            high_seqno(&rig) - before,
                            u64::from(opcode != Opcode::UNLOCK_KEY),
                            "{what}"
                        );
                        assert_eq!(rig.status(set(KEY, b"free")), S::SUCCESS, "{what}");
                    } else {
                        let found = rig.ask(get(KEY)).one();
                        assert_eq!((&found.value[..], found.cas), (&b"1"[..], LOCKED_CAS), "{what}");
                        assert_eq!(high_seqno(&rig), before, "{what}");
                        assert_eq!(rig.status(unlock(KEY, lock_cas)), S::SUCCESS, "{what}");
                    }
                }
            }
        }
    }
}

/// What the lock's CAS is: drawn from the clock of the vbucket, but of no version.
#[test]
fn locking_writes_nothing_and_unlocking_leaves_the_document_as_it_was() {
    for rig in rigs() {
        let (mut rig, stored, lock_cas) = locked_rig(rig, true);
        assert!(lock_cas > stored.cas && lock_cas != LOCKED_CAS);
        assert_eq!(high_seqno(&rig), 1);
        assert_eq!(rig.status(unlock(KEY, lock_cas)), Status::SUCCESS);
        assert_eq!(rig.ask(get(KEY)).one().cas, stored.cas);
        assert_eq!(rig.status(set(KEY, b"2").cas(lock_cas)), Status::KEY_EEXISTS, "it was the lock's alone");
        let second = rig.ask(lock(KEY)).one().cas;
        assert!(second > lock_cas);
        let written = rig.ask(set(KEY, b"2").cas(second)).one();
        assert!(written.status == Status::SUCCESS && written.cas > second);
        assert_eq!((high_seqno(&rig), rig.ask(get(KEY)).one().cas), (2, written.cas));
        assert_eq!((stat(&rig, "cmd_lock"), stat(&rig, "lock_errors")), (2, 0));
    }
}

#[test]
fn what_is_not_there_cannot_be_locked_and_what_is_not_locked_not_unlocked() {
    for xerror in [true, false] {
        for mut rig in rigs() {
            if xerror {
                rig.hello(&[Feature::Xerror]);
            }
            let both = |rig: &mut Rig| [rig.status(lock(KEY)), rig.status(unlock(KEY, WRONG))];
            assert_eq!(both(&mut rig), [Status::KEY_ENOENT; 2], "never written");
            let stored = rig.ask(set(KEY, b"1")).one();
            let not_locked = if xerror { Status::NOT_LOCKED } else { Status::ETMPFAIL };
            assert_eq!(rig.status(unlock(KEY, WRONG)), not_locked);
            assert_eq!(rig.status(unlock(KEY, stored.cas)), not_locked);
            rig.ask(Request::new(Opcode::DELETE).key(KEY));
            assert_eq!(both(&mut rig), [Status::KEY_ENOENT; 2], "a tombstone");
            rig.ask(set(KEY, b"1").extras(&StoreExtras { flags: 0, expiry: 5 }.encode()));
            rig.sleep(6);
            assert_eq!(both(&mut rig), [Status::KEY_ENOENT; 2], "expired");
            assert_eq!(stat(&rig, "cmd_lock"), 0);
        }
    }
}

#[test]
fn a_lock_ends_when_its_time_is_up_fifteen_seconds_unless_up_to_thirty_are_asked_for() {
    for (asked, seconds) in
        [(None, 15), (Some(0), 15), (Some(1), 1), (Some(30), 30), (Some(31), 15), (Some(u32::MAX), 15)]
    {
        for mut rig in rigs() {
            rig.hello(&[Feature::Xerror]);
            let stored = rig.ask(set(KEY, b"1")).one();
            rig.flush();
            let extras = asked.map_or(Vec::new(), |seconds: u32| seconds.to_be_bytes().to_vec());
            let locked = rig.ask(lock(KEY).extras(&extras)).one();
            rig.sleep(seconds - 1);
            assert_eq!(rig.status(set(KEY, b"2")), Status::LOCKED, "{asked:?}");
            assert_eq!(rig.status(lock(KEY)), Status::LOCKED, "{asked:?}");
            rig.sleep(1);
            assert_eq!(rig.ask(get(KEY)).one().cas, stored.cas, "{asked:?}");
            assert_eq!(rig.status(unlock(KEY, locked.cas)), Status::NOT_LOCKED, "{asked:?}");
            assert_eq!(rig.status(set(KEY, b"2").cas(locked.cas)), Status::KEY_EEXISTS, "{asked:?}");
            assert_eq!(rig.status(set(KEY, b"2").cas(stored.cas)), Status::SUCCESS, "{asked:?}");
            assert_eq!((stat(&rig, "cmd_lock"), stat(&rig, "lock_errors")), (1, 1));
        }
    }
}

#[test]
fn the_bucket_says_how_long_locks_last() {
    for settings in [
        "getl_default_timeout=2;getl_max_timeout=100",
        "bucket_type=ephemeral;getl_default_timeout=2;getl_max_timeout=100",
    ] {
        let mut rig = Rig::with(RigOptions { settings, ..RigOptions::default() });
        rig.ask(set(KEY, b"1"));
        rig.ask(lock(KEY));
        rig.sleep(2);
        assert_eq!(rig.ask(lock(KEY).extras(&100u32.to_be_bytes())).one().status, Status::SUCCESS);
        rig.sleep(99);
        assert_eq!(rig.ask(get(KEY)).one().cas, LOCKED_CAS);
        rig.sleep(1);
        assert_ne!(rig.ask(get(KEY)).one().cas, LOCKED_CAS);
    }
}

/// A document that expires while it is locked is absent, and its lock does not bind the one that comes after it.
#[test]
fn the_lock_of_an_expired_document_is_over() {
    for mut rig in rigs() {
        rig.hello(&[Feature::Xerror]);
        let short = StoreExtras { flags: 0, expiry: 5 }.encode();
        for (request, status) in [
            (set(KEY, b"2"), Status::SUCCESS),
            (Request::new(Opcode::ADD).key(KEY).value(b"2").extras(&PLAIN), Status::SUCCESS),
            (Request::new(Opcode::REPLACE).key(KEY).value(b"2").extras(&PLAIN), Status::KEY_ENOENT),
        ] {
            rig.ask(set(KEY, b"1").extras(&short));
            rig.flush();
            let locked = rig.ask(lock(KEY).extras(&30u32.to_be_bytes())).one();
            rig.sleep(6);
            assert_eq!(rig.status(unlock(KEY, locked.cas)), Status::KEY_ENOENT);
            assert_eq!(rig.status(request), status);
            assert_eq!(rig.engine.buckets()[0].context.locks.len(), 0, "a version or a tombstone ends it");
            rig.ask(set(KEY, b"3"));
            assert_eq!(rig.status(unlock(KEY, locked.cas)), Status::NOT_LOCKED);
        }
    }
}

#[test]
fn the_pager_takes_a_locked_document_that_has_expired() {
    for settings in ["exp_pager_stime=10", "bucket_type=ephemeral;exp_pager_stime=10"] {
        let mut rig = Rig::with(RigOptions { settings, ..RigOptions::default() });
        rig.ask(set(KEY, b"1").extras(&StoreExtras { flags: 0, expiry: 5 }.encode()));
        rig.ask(lock(KEY).extras(&30u32.to_be_bytes()));
        rig.sim.run_for(std::time::Duration::from_secs(12));
        assert_eq!(stat(&rig, "ep_expired_pager"), 1);
        assert_eq!(rig.engine.buckets()[0].context.locks.len(), 0);
    }
}

#[test]
fn a_key_is_locked_in_its_vbucket_and_bucket_alone() {
    const MORE: &[(&str, &str)] = &[("memory", "bucket_type=ephemeral"), ("disk", "")];
    let mut rig = Rig::with(RigOptions { more: MORE, ..RigOptions::default() });
    rig.hello(&[Feature::Xerror]);
    let buckets = ["default", "memory", "disk"];
    for bucket in buckets {
        rig.select(bucket);
        for vb in [0, 1].map(VbId) {
            rig.ask(set(KEY, b"1").vbucket(vb));
        }
    }
    for bucket in buckets {
        rig.select(bucket);
        assert_eq!(rig.status(lock(KEY)), Status::SUCCESS);
        assert_eq!(rig.status(lock(KEY)), Status::LOCKED);
        assert_eq!(rig.status(set(b"other", b"2")), Status::SUCCESS);
        assert_eq!(rig.status(set(KEY, b"2").vbucket(VbId(1))), Status::SUCCESS);
    }
}

#[test]
fn a_bucket_that_is_emptied_has_no_locks() {
    const MORE: &[(&str, &str)] = &[("memory", "bucket_type=ephemeral")];
    let mut rig = Rig::with(RigOptions { more: MORE, ..RigOptions::default() });
    rig.hello(&[Feature::Xerror]);
    for bucket in ["default", "memory"] {
        rig.select(bucket);
        rig.ask(set(KEY, b"1"));
        let locked = rig.ask(lock(KEY)).one();
        rig.empty(bucket);
        assert_eq!(rig.status(unlock(KEY, locked.cas)), Status::KEY_ENOENT);
        assert_eq!(rig.status(set(KEY, b"2")), Status::SUCCESS);
        assert_eq!(rig.status(unlock(KEY, locked.cas)), Status::NOT_LOCKED);
    }
}

#[test]
fn a_restart_forgets_locks_and_keeps_the_documents() {
    let (rig, stored, lock_cas) = locked_rig(Rig::new(), true);
    let mut rig = rig.restart(|sim, _, engine| sim.block_on(engine.shards()[0].close()).unwrap());
    rig.hello(&[Feature::Xerror]);
    assert_eq!(rig.ask(get(KEY)).one().cas, stored.cas);
    assert_eq!(rig.status(unlock(KEY, lock_cas)), Status::NOT_LOCKED);
    assert!(rig.ask(set(KEY, b"2")).one().cas > lock_cas);
}

#[test]
fn the_holder_of_a_lock_may_write_durably() {
    for rig in rigs() {
        let (mut rig, _, lock_cas) = locked_rig(rig, true);
        let durability = Some(Durability { level: DurabilityLevel::PersistToMajority, timeout_ms: None });
        let framing = RequestFraming { durability, ..RequestFraming::default() };
        assert_eq!(rig.status(set(KEY, b"2").framing(framing)), Status::LOCKED);
        assert_eq!(rig.status(set(KEY, b"2").framing(framing).cas(lock_cas)), Status::SUCCESS);
        let found = rig.ask(get(KEY)).one();
        assert!(found.value == b"2" && found.cas != LOCKED_CAS);
    }
}

/// A lock and what comes behind it on the same connection keep their order, also while the disk is asked.
#[test]
fn pipelined_requests_behind_a_lock_see_it() {
    for mut rig in rigs() {
        rig.hello(&[Feature::Xerror]);
        rig.ask(set(KEY, b"1"));
        rig.flush();
        let answers = rig.pipeline(&[lock(KEY), get(KEY), set(KEY, b"2"), lock(KEY), get(KEY)]);
        let [locked, read, refused, again, last] =
            <[Answer; 5]>::try_from(answers.into_iter().map(|answered| answered.one()).collect::<Vec<_>>())
                .unwrap();
        assert_eq!((locked.status, read.cas), (Status::SUCCESS, LOCKED_CAS));
        assert_eq!(
            (refused.status, again.status, &last.value[..]),
            (Status::LOCKED, Status::LOCKED, &b"1"[..])
        );
        let answers = rig.pipeline(&[unlock(KEY, locked.cas), set(KEY, b"2"), get(KEY)]);
        let statuses: Vec<Status> = answers.into_iter().map(|answered| answered.one().status).collect();
        assert_eq!(statuses, [Status::SUCCESS; 3]);
    }
}

#[test]
fn more_locks_than_are_possible_are_a_temporary_failure() {
    for settings in ["", "bucket_type=ephemeral"] {
        let mut rig = Rig::with(RigOptions { settings, wal_segments: 64, ..RigOptions::default() });
        rig.hello(&[Feature::Xerror]);
        for number in 0..=LOCKS_MAX as u32 {
            let key = number.to_be_bytes();
            assert_eq!(rig.status(set(&key, b"v")), Status::SUCCESS);
            let expected = if number < LOCKS_MAX as u32 { Status::SUCCESS } else { Status::ETMPFAIL };
            assert_eq!(rig.status(lock(&key).extras(&30u32.to_be_bytes())), expected, "{number}");
        }
        let last = (LOCKS_MAX as u32).to_be_bytes();
        assert_eq!(rig.status(set(&last, b"w")), Status::SUCCESS, "it is not locked");
        assert_eq!((stat(&rig, "cmd_lock"), stat(&rig, "lock_errors")), (LOCKS_MAX as u64, 1));
        rig.sleep(30);
        assert_eq!(rig.status(lock(&last)), Status::SUCCESS, "those whose time is up made room");
        assert_eq!(rig.engine.buckets()[0].context.locks.len(), 1);
    }
}
