//! Data commands by the tables of the protocol, on a simulated disk.
//!
//! Does not know: connection commands.

use std::time::Duration;

use ringbase_storage::types::{Cas, Kind, Seqno, VbId, VbUuid};
use ringbase_storage::vbstore::Found;

use crate::command::rig::{Answer, PLAIN, Rig, RigOptions, VB, get, set};
use crate::protocol::extras::{ArithmeticExtras, MutationToken, ObservedSeqno, StoreExtras};
use crate::protocol::framing::{Durability, DurabilityLevel};
use crate::protocol::{Datatype, Feature, Magic, Opcode, Request, RequestFraming, Status};

const KEY: &[u8] = b"key";

fn store(opcode: Opcode, cas: Cas) -> Request<'static> {
    Request::new(opcode).key(KEY).value(b"new").extras(&PLAIN).cas(cas)
}

fn with_expiry(flags: u32, expiry: u32) -> [u8; 8] {
    StoreExtras { flags, expiry }.encode()
}

fn step(delta: u64, initial: u64, expiry: u32) -> [u8; 20] {
    ArithmeticExtras { delta, initial, expiry }.encode()
}

fn value(rig: &mut Rig) -> Option<Vec<u8>> {
    let answer = rig.ask(get(KEY)).one();
    (answer.status == Status::SUCCESS).then_some(answer.value)
}

/// Data operations §1: the rows of the CAS table that need no lock, with and without XERROR, and each quiet form.
#[test]
fn every_row_of_the_cas_table_holds() {
    use Status as S;
    let wrong = Cas(77);
    // Opcode, its quiet form, then the status for: absent; absent with a CAS; there, no CAS; the right CAS; a wrong one.
    let rows: [(Opcode, Opcode, [Option<Status>; 5]); 6] = [
        (
            Opcode::SET,
            Opcode::SET_Q,
            [Some(S::SUCCESS), Some(S::KEY_ENOENT), Some(S::SUCCESS), Some(S::SUCCESS), Some(S::KEY_EEXISTS)],
        ),
        (
            Opcode::ADD,
            Opcode::ADD_Q,
            [Some(S::SUCCESS), Some(S::EINVAL), Some(S::KEY_EEXISTS), Some(S::EINVAL), Some(S::EINVAL)],
        ),
        (
            Opcode::REPLACE,
            Opcode::REPLACE_Q,
            [
                Some(S::KEY_ENOENT),
                Some(S::KEY_ENOENT),
                Some(S::SUCCESS),
                Some(S::SUCCESS),
                Some(S::KEY_EEXISTS),
            ],
        ),
        (
            Opcode::DELETE,
            Opcode::DELETE_Q,
            [
                Some(S::KEY_ENOENT),
                Some(S::KEY_ENOENT),
                Some(S::SUCCESS),
                Some(S::SUCCESS),
                Some(S::KEY_EEXISTS),
            ],
        ),
        (
            Opcode::APPEND,
            Opcode::APPEND_Q,
            [
                Some(S::NOT_STORED),
                Some(S::NOT_STORED),
                Some(S::SUCCESS),
                Some(S::SUCCESS),
                Some(S::KEY_EEXISTS),
            ],
        ),
        (
            Opcode::PREPEND,
            Opcode::PREPEND_Q,
            [
                Some(S::NOT_STORED),
                Some(S::NOT_STORED),
                Some(S::SUCCESS),
                Some(S::SUCCESS),
                Some(S::KEY_EEXISTS),
            ],
        ),
    ];
    for xerror in [false, true] {
        for after_delete in [false, true] {
            for (loud, quiet, expected) in rows {
                for (case, expected) in expected.into_iter().enumerate() {
                    for opcode in [loud, quiet] {
                        let mut rig = Rig::new();
                        if xerror {
                            rig.hello(&[Feature::Xerror]);
                        }
                        if after_delete {
                            rig.ask(set(KEY, b"gone"));
                            rig.ask(Request::new(Opcode::DELETE).key(KEY));
                        }
                        let there = if case >= 2 { rig.ask(set(KEY, b"old")).one().cas } else { Cas(0) };
                        let cas = [Cas(0), wrong, Cas(0), there, wrong][case];
                        let mut request = store(opcode, cas);
                        if matches!(loud, Opcode::APPEND | Opcode::PREPEND) {
                            request = request.extras(&[]);
                        }
                        if loud == Opcode::DELETE {
                            request = request.extras(&[]).value(&[]);
                        }
                        let answered = rig.ask(request);
                        let what =
                            format!("{opcode} case {case} xerror {xerror} after delete {after_delete}");
                        if opcode == quiet && expected == Some(S::SUCCESS) {
                            assert!(answered.is_silent(), "{what}");
                        } else {
                            assert_eq!(Some(answered.one().status), expected, "{what}");
                        }
                        let stored = expected == Some(S::SUCCESS);
                        let now: Option<&[u8]> = match (stored, loud) {
                            (true, Opcode::DELETE) => None,
                            (true, Opcode::APPEND) => Some(b"oldnew"),
                            (true, Opcode::PREPEND) => Some(b"newold"),
                            (true, _) => Some(b"new"),
                            (false, _) => (case >= 2).then_some(b"old"),
                        };
                        assert_eq!(value(&mut rig).as_deref(), now, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_mutation_answers_its_cas_and_a_read_the_documents() {
    let mut rig = Rig::new();
    let first = rig.ask(set(KEY, b"1")).one();
    assert_eq!(rig.ask(get(KEY)).one().cas, first.cas);
    let second = rig.ask(set(KEY, b"2").cas(first.cas)).one();
    assert!(second.cas > first.cas && first.cas > Cas(0));
    assert_eq!(first.extras, b"", "no token without MutationSeqno");
}

#[test]
fn a_removal_tells_its_cas_only_with_a_token() {
    let mut rig = Rig::new();
    rig.ask(set(KEY, b"1"));
    assert_eq!(rig.ask(Request::new(Opcode::DELETE).key(KEY)).one().cas, Cas(0));
    rig.hello(&[Feature::MutationSeqno]);
    let stored = rig.ask(set(KEY, b"1")).one();
    let removed = rig.ask(Request::new(Opcode::DELETE).key(KEY)).one();
    assert!(removed.cas > stored.cas);
    assert_eq!(MutationToken::decode(&removed.extras).unwrap().seqno, Seqno(4));
}

#[test]
fn tokens_are_on_every_mutation_but_touches() {
    let mut rig = Rig::new();
    rig.hello(&[Feature::MutationSeqno]);
    let uuid = rig.engine.buckets()[0].vbucket(VB).unwrap().uuid();
    let (count, expiry) = (step(1, 0, 0), 100u32.to_be_bytes());
    let mut seqno = 0;
    for (request, value) in [
        (Request::new(Opcode::ADD).extras(&PLAIN).value(b"1"), &b""[..]),
        (Request::new(Opcode::SET).extras(&PLAIN).value(b"1"), b""),
        (Request::new(Opcode::REPLACE).extras(&PLAIN).value(b"1"), b""),
        (Request::new(Opcode::INCREMENT).extras(&count), &2u64.to_be_bytes()),
        (Request::new(Opcode::DECREMENT).extras(&count), &1u64.to_be_bytes()),
        (Request::new(Opcode::APPEND).value(b"0"), b""),
        (Request::new(Opcode::PREPEND).value(b"2"), b""),
    ] {
        seqno += 1;
        let answer = rig.ask(request.key(KEY)).one();
        assert_eq!(answer.status, Status::SUCCESS);
        let token = MutationToken { uuid, seqno: Seqno(seqno) };
        assert_eq!(MutationToken::decode(&answer.extras), Some(token), "{}", answer.opcode);
        assert_eq!(answer.value, value, "{}", answer.opcode);
    }
    assert_eq!(rig.ask(Request::new(Opcode::TOUCH).key(KEY).extras(&expiry)).one().extras, b"");
    assert_eq!(rig.ask(Request::new(Opcode::GAT).key(KEY).extras(&PLAIN[..4])).one().extras, [0; 4]);
    assert_eq!(value(&mut rig).as_deref(), Some(&b"210"[..]));
}

/// Data operations §2.
#[test]
fn an_expired_document_is_absent_to_reads_and_becomes_a_tombstone_when_a_change_meets_it() {
    let gone = |opcode: Opcode, extras: &'static [u8], value: &'static [u8]| {
        Request::new(opcode).key(KEY).extras(extras).value(value)
    };
    for (request, expected, kind) in [
        (gone(Opcode::GET, b"", b""), Status::KEY_ENOENT, Kind::Mutation),
        (gone(Opcode::REPLACE, &PLAIN, b"x"), Status::KEY_ENOENT, Kind::Expiration),
        (gone(Opcode::DELETE, b"", b""), Status::KEY_ENOENT, Kind::Expiration),
        (gone(Opcode::APPEND, b"", b"x"), Status::NOT_STORED, Kind::Expiration),
        (gone(Opcode::TOUCH, &PLAIN[..4], b""), Status::KEY_ENOENT, Kind::Expiration),
        (gone(Opcode::GAT, &PLAIN[..4], b""), Status::KEY_ENOENT, Kind::Expiration),
        (gone(Opcode::ADD, &PLAIN, b"x"), Status::SUCCESS, Kind::Mutation),
        (gone(Opcode::SET, &PLAIN, b"x"), Status::SUCCESS, Kind::Mutation),
    ] {
        let mut rig = Rig::new();
        let extras = with_expiry(7, 10);
        rig.ask(set(KEY, b"short").extras(&extras));
        rig.sleep(10);
        assert!(value(&mut rig).is_some(), "it lives through the second of its expiry");
        rig.sleep(1);
        let what = format!("{:?}", request);
        assert_eq!(rig.status(request), expected, "{what}");
        let store = rig.engine.buckets()[0].vbucket(VB).unwrap().clone();
        let Found::Version(item) = rig.sim.block_on(store.get(b"\0key")).unwrap() else { panic!("{what}") };
        assert_eq!(item.kind(), kind, "{what}");
        if kind == Kind::Expiration {
            assert_eq!((item.value(), item.flags(), item.expiry()), (&b""[..], 0, rig.now()));
            assert_eq!((item.revid(), store.items()), (2, 0), "{what}");
        }
    }
}

#[test]
fn expiries_are_relative_up_to_thirty_days_and_absolute_beyond() {
    let mut rig = Rig::new();
    rig.hello(&[Feature::Xerror]);
    let now = rig.now();
    let stored_expiry = |rig: &mut Rig| {
        let meta = rig.ask(Request::new(Opcode::GET_META).key(KEY)).one();
        u32::from_be_bytes(meta.extras[8..12].try_into().unwrap())
    };
    for (given, stored) in
        [(0, 0), (60, now + 60), (2_592_000, now + 2_592_000), (now + 1_000_000, now + 1_000_000)]
    {
        let extras = with_expiry(0, given);
        assert_eq!(rig.status(set(KEY, b"v").extras(&extras)), Status::SUCCESS);
        assert_eq!(stored_expiry(&mut rig), stored, "{given}");
        assert!(value(&mut rig).is_some());
    }
    let past = with_expiry(0, 2_592_001);
    assert_eq!(rig.status(set(KEY, b"v").extras(&past)), Status::SUCCESS, "stored, and over at once");
    assert_eq!(value(&mut rig), None);
}

#[test]
fn an_expiry_beyond_32_bits_is_refused_and_ends_a_connection_without_xerror() {
    let mut rig = Rig::new();
    let until_end = i64::from(u32::MAX) - i64::from(rig.now()) - 100;
    rig.sim.set_wall_offset(until_end * 1_000_000_000);
    let (extras, touch) = (with_expiry(0, 1000), 1000u32.to_be_bytes());
    let requests = [set(KEY, b"v").extras(&extras), Request::new(Opcode::TOUCH).key(KEY).extras(&touch)];
    for request in requests {
        assert!(rig.ask(request).is_closed());
    }
    rig.hello(&[Feature::Xerror]);
    for request in requests {
        assert_eq!(rig.status(request), Status::EXPIRY_OVERFLOW);
    }
}

#[test]
fn touching_sets_or_removes_the_expiry_and_writes_only_if_it_changes() {
    let mut rig = Rig::new();
    let stored = rig.ask(set(KEY, b"{}").extras(&with_expiry(5, 0))).one();
    let absolute = (rig.now() + 100).to_be_bytes();
    let touched = rig.ask(Request::new(Opcode::TOUCH).key(KEY).extras(&absolute)).one();
    assert!(touched.cas > stored.cas && touched.value.is_empty());
    let again = rig.ask(Request::new(Opcode::GAT).key(KEY).extras(&absolute)).one();
    assert_eq!(
        (again.cas, again.value.as_slice(), again.extras.as_slice()),
        (touched.cas, &b"{}"[..], &[0, 0, 0, 5][..])
    );
    let forever = rig.ask(Request::new(Opcode::GAT_Q).key(KEY).extras(&PLAIN[..4])).one();
    assert!(forever.cas > touched.cas);
    rig.sleep(1000);
    assert!(value(&mut rig).is_some());
    assert!(rig.ask(Request::new(Opcode::GAT_Q).key(b"none").extras(&PLAIN[..4])).is_silent());
    assert_eq!(rig.engine.buckets()[0].vbucket(VB).unwrap().high_seqno(), Seqno(3));
}

#[test]
fn preserve_ttl_keeps_the_expiry_of_a_document_that_is_there() {
    let mut rig = Rig::new();
    let keep = RequestFraming { preserve_ttl: true, ..RequestFraming::default() };
    let (short, long) = (with_expiry(0, 10), with_expiry(0, 1000));
    rig.ask(set(KEY, b"new").extras(&short).framing(keep));
    rig.ask(set(KEY, b"kept").extras(&long).framing(keep));
    rig.sleep(11);
    assert_eq!(value(&mut rig), None, "the first one's expiry applied, the second's did not");
    rig.ask(set(KEY, b"forever"));
    rig.ask(Request::new(Opcode::REPLACE).key(KEY).value(b"still").extras(&short).framing(keep));
    rig.sleep(100);
    assert_eq!(value(&mut rig).as_deref(), Some(&b"still"[..]));
}

#[test]
fn adding_and_counting_keep_flags_and_expiry() {
    let mut rig = Rig::new();
    let (extras, count) = (with_expiry(9, 50), step(1, 0, 1000));
    for request in [
        Request::new(Opcode::APPEND).key(KEY).value(b"1"),
        Request::new(Opcode::PREPEND).key(KEY).value(b"1"),
        Request::new(Opcode::INCREMENT).key(KEY).extras(&count),
        Request::new(Opcode::DECREMENT).key(KEY).extras(&count),
    ] {
        rig.ask(set(KEY, b"1").extras(&extras));
        assert_eq!(rig.status(request), Status::SUCCESS);
        assert_eq!(rig.ask(get(KEY)).one().extras, 9u32.to_be_bytes());
        rig.sleep(51);
        assert_eq!(value(&mut rig), None);
    }
}

/// Data operations §4.
#[test]
fn counters_wrap_upwards_stop_downwards_and_are_created_on_demand() {
    let mut rig = Rig::new();
    let mut count = |opcode, delta, initial, expiry| {
        let answer = rig.ask(Request::new(opcode).key(KEY).extras(&step(delta, initial, expiry))).one();
        let number = answer.value.as_slice().try_into().map(u64::from_be_bytes);
        (answer.status, number.ok())
    };
    let no = ArithmeticExtras::DO_NOT_CREATE;
    assert_eq!(count(Opcode::INCREMENT, 5, 100, no), (Status::KEY_ENOENT, None));
    assert_eq!(count(Opcode::INCREMENT, 5, 100, 0), (Status::SUCCESS, Some(100)));
    assert_eq!(count(Opcode::INCREMENT, 5, 100, no), (Status::SUCCESS, Some(105)));
    assert_eq!(count(Opcode::DECREMENT, 106, 0, 0), (Status::SUCCESS, Some(0)));
    assert_eq!(count(Opcode::INCREMENT, u64::MAX, 0, 0), (Status::SUCCESS, Some(u64::MAX)));
    assert_eq!(count(Opcode::INCREMENT, 2, 0, 0), (Status::SUCCESS, Some(1)));
    assert_eq!(value(&mut rig).as_deref(), Some(&b"1"[..]));
    let mut badval = |value: &[u8]| {
        rig.ask(set(KEY, value));
        let extras = step(1, 0, 0);
        rig.status(Request::new(Opcode::DECREMENT).key(KEY).extras(&extras))
    };
    for bad in [&b""[..], b"abc", b"-1", b"1 ", b"18446744073709551616", b"000000000000000000001"] {
        assert_eq!(badval(bad), Status::DELTA_BADVAL, "{bad:?}");
    }
    assert_eq!(badval(b"007"), Status::SUCCESS);
    assert_eq!(value(&mut rig).as_deref(), Some(&b"6"[..]), "no padding");
    let quiet = step(1, 7, 20);
    assert!(rig.ask(Request::new(Opcode::INCREMENT_Q).key(b"other").extras(&quiet)).is_silent());
    let created = rig.ask(get(b"other")).one();
    assert_eq!((created.value.as_slice(), created.extras.as_slice()), (&b"7"[..], &[0; 4][..]));
    rig.sleep(21);
    assert_eq!(rig.status(get(b"other")), Status::KEY_ENOENT, "the expiry was that of the creation");
}

/// Data operations §6.
#[test]
fn the_server_finds_out_itself_what_is_json_and_shows_it_if_negotiated() {
    let mut rig = Rig::new();
    let datatype = |rig: &mut Rig, request: Request<'_>| {
        assert_eq!(rig.status(request), Status::SUCCESS);
        rig.ask(get(KEY)).one().datatype
    };
    assert_eq!(datatype(&mut rig, set(KEY, b"{}")), Datatype::RAW, "not negotiated");
    rig.hello(&[Feature::Json]);
    for (value, expected) in [
        (&b"{\"a\":1}"[..], Datatype::JSON),
        (b"1", Datatype::JSON),
        (b"\"x\"", Datatype::JSON),
        (b"true", Datatype::JSON),
        (b"", Datatype::RAW),
        (b"plain", Datatype::RAW),
    ] {
        assert_eq!(datatype(&mut rig, set(KEY, value)), expected, "{value:?}");
        assert_eq!(datatype(&mut rig, set(KEY, value).datatype(Datatype::JSON)), expected, "{value:?}");
    }
    datatype(&mut rig, set(KEY, b"[1"));
    assert_eq!(datatype(&mut rig, Request::new(Opcode::APPEND).key(KEY).value(b"]")), Datatype::JSON);
    assert_eq!(datatype(&mut rig, Request::new(Opcode::PREPEND).key(KEY).value(b"x")), Datatype::RAW);
    rig.ask(Request::new(Opcode::DELETE).key(KEY));
    let extras = step(1, 1, 0);
    assert_eq!(datatype(&mut rig, Request::new(Opcode::INCREMENT).key(KEY).extras(&extras)), Datatype::JSON);
}

#[test]
fn quiet_reads_are_silent_on_a_miss_and_keyed_reads_return_the_key_as_it_came() {
    let mut rig = Rig::new();
    for opcode in [Opcode::GET_Q, Opcode::GET_KQ, Opcode::GETQ_META] {
        assert!(rig.ask(Request::new(opcode).key(KEY)).is_silent(), "{opcode}");
    }
    let miss = rig.ask(Request::new(Opcode::GET_K).key(KEY)).one();
    assert_eq!((miss.status, miss.key.len(), miss.value.len()), (Status::KEY_ENOENT, 0, 0));
    rig.ask(set(KEY, b"v"));
    for opcode in [Opcode::GET_K, Opcode::GET_KQ] {
        let hit = rig.ask(Request::new(opcode).key(KEY)).one();
        assert_eq!((hit.key.as_slice(), hit.value.as_slice()), (KEY, &b"v"[..]));
    }
    rig.hello(&[Feature::Collections]);
    let hit = rig.ask(Request::new(Opcode::GET_K).key(b"\0key")).one();
    assert_eq!((hit.key.as_slice(), hit.value.as_slice()), (&b"\0key"[..], &b"v"[..]), "the same document");
}

#[test]
fn values_longer_than_the_bucket_takes_are_too_big() {
    let mut rig = Rig::with(RigOptions { settings: "max_item_size=10", ..RigOptions::default() });
    assert_eq!(rig.status(set(KEY, &[b'x'; 11])), Status::E2BIG);
    assert_eq!(value(&mut rig), None);
    assert_eq!(rig.status(set(KEY, &[b'x'; 10])), Status::SUCCESS);
    assert_eq!(rig.status(Request::new(Opcode::APPEND).key(KEY).value(b"y")), Status::E2BIG);
    assert_eq!(rig.status(Request::new(Opcode::PREPEND).key(KEY).value(&[b'y'; 11])), Status::E2BIG);
    assert_eq!(rig.status(Request::new(Opcode::APPEND).key(KEY)), Status::SUCCESS);
    let quiet = rig.ask(Request::new(Opcode::SET_Q).key(KEY).value(&[b'x'; 11]).extras(&PLAIN));
    assert_eq!(quiet.one().status, Status::E2BIG, "failures of quiet commands are told");
    let mut rig = Rig::new();
    assert_eq!(rig.status(set(KEY, &vec![0; (20 << 20) + 1])), Status::E2BIG);
    assert_eq!(rig.status(set(KEY, &vec![0; 1 << 20])), Status::E2BIG, "more than a small log takes");
}

#[test]
fn keys_of_0_and_251_bytes_are_refused_and_of_1_and_250_stored() {
    let mut rig = Rig::new();
    let longest = [b'k'; 251];
    assert_eq!(rig.status(set(b"", b"v")), Status::EINVAL);
    assert_eq!(rig.status(set(&longest, b"v")), Status::EINVAL);
    for key in [&longest[..1], &longest[..250]] {
        assert_eq!(rig.status(set(key, b"v")), Status::SUCCESS);
        assert_eq!(rig.status(get(key)), Status::SUCCESS);
    }
    rig.hello(&[Feature::Collections]);
    let prefixed = [&[0][..], &longest[..250]].concat();
    assert_eq!(rig.status(get(&prefixed)), Status::SUCCESS);
}

#[test]
fn metadata_is_given_also_of_tombstones_and_of_expired_documents() {
    let mut rig = Rig::new();
    let meta = |rig: &mut Rig, version: &[u8]| {
        rig.ask(Request::new(Opcode::GET_META).key(KEY).extras(version)).one()
    };
    assert_eq!(meta(&mut rig, &[]).status, Status::KEY_ENOENT);
    let stored = rig.ask(set(KEY, b"{}").extras(&with_expiry(0xdead_beef, 60))).one();
    let expected = |deleted: u32, flags: u32, expiry: u32, revision: u64| {
        let words = [deleted, flags, expiry].map(u32::to_be_bytes).concat();
        [&words[..], &revision.to_be_bytes()].concat()
    };
    let found = meta(&mut rig, &[]);
    assert_eq!((found.cas, found.extras), (stored.cas, expected(0, 0xdead_beef, rig.now() + 60, 1)));
    assert_eq!(meta(&mut rig, &[1]).extras.len(), 20);
    assert_eq!(meta(&mut rig, &[2]).extras.len(), 21);
    assert_eq!(meta(&mut rig, &[2]).extras[20], 1, "JSON");
    assert_eq!(meta(&mut rig, &[3]).status, Status::EINVAL);
    rig.sleep(61);
    assert_eq!(meta(&mut rig, &[]).extras[..4], [0, 0, 0, 1], "expired");
    rig.ask(set(KEY, b"v"));
    rig.ask(Request::new(Opcode::DELETE).key(KEY));
    let removed = meta(&mut rig, &[2]);
    let expected = expected(1, 0, rig.now(), 3);
    assert_eq!((removed.status, &removed.extras[..20]), (Status::SUCCESS, &expected[..]));
}

#[test]
fn observed_seqnos_tell_memory_from_disk_and_know_older_branches() {
    let mut rig = Rig::new();
    let observe = |rig: &mut Rig, uuid: u64| {
        let answer = rig.ask(Request::new(Opcode::OBSERVE_SEQNO).value(&uuid.to_be_bytes())).one();
        (answer.status, ObservedSeqno::decode(&answer.value))
    };
    rig.hello(&[Feature::MutationSeqno]);
    let token = MutationToken::decode(&rig.ask(set(KEY, b"1")).one().extras).unwrap();
    let observed = |persisted, high| ObservedSeqno {
        vbucket: VB,
        uuid: token.uuid,
        persisted_seqno: Seqno(persisted),
        high_seqno: Seqno(high),
        older_branch: None,
    };
    assert_eq!(observe(&mut rig, token.uuid.0), (Status::SUCCESS, Some(observed(0, 1))));
    rig.sim.run_for(std::time::Duration::from_secs(1));
    assert_eq!(observe(&mut rig, token.uuid.0), (Status::SUCCESS, Some(observed(1, 1))));
    assert_eq!(observe(&mut rig, 1), (Status::KEY_ENOENT, None));
    rig.ask(set(KEY, b"lost"));
    let mut rig = rig.restart(|_, disk, _| {
        disk.crash(3);
    });
    assert!(!rig.recovery.clean);
    let (status, after) = observe(&mut rig, token.uuid.0);
    let after = after.unwrap();
    assert_eq!((status, after.older_branch), (Status::SUCCESS, Some((token.uuid, Seqno(1)))));
    assert_ne!(after.uuid, token.uuid, "a crash begins a new branch");
    assert_eq!((after.high_seqno, after.persisted_seqno), (Seqno(1), Seqno(1)));
}

/// DCP §13: it answers with the commit, or after 30 seconds with ETMPFAIL; a bucket that goes does not wait for it.
#[test]
fn seqno_persistence_answers_when_the_seqno_is_durable_or_too_late() {
    let mut rig =
        Rig::with(RigOptions { more: &[("memory", "bucket_type=ephemeral")], ..RigOptions::default() });
    let seqno = |seqno: u64| seqno.to_be_bytes();
    let (none, one, two) = (seqno(0), seqno(1), seqno(2));
    let until = |seqno| Request::new(Opcode::SEQNO_PERSISTENCE).extras(seqno);
    assert_eq!(rig.status(until(&none)), Status::SUCCESS);
    rig.ask(set(KEY, b"v"));
    let first = rig.send(until(&one));
    assert!(rig.is_waiting(first));
    assert_eq!(rig.wait(first).one().status, Status::SUCCESS);
    assert_eq!(rig.store("default", VB).persisted_seqno(), Seqno(1));
    assert_eq!(rig.status(until(&one)), Status::SUCCESS);
    let began = rig.sim.now_ns();
    let late = rig.send(until(&two));
    assert_eq!(rig.wait(late).one().status, Status::ETMPFAIL);
    assert_eq!(rig.sim.now_ns() - began, 30_000_000_000);
    let (began, never) = (rig.sim.now_ns(), rig.send(until(&two)));
    rig.empty("default");
    assert_eq!(rig.wait(never).one().status, Status::ETMPFAIL);
    assert!(rig.sim.now_ns() - began < 30_000_000_000, "the bucket went first");
    rig.hello(&[Feature::SelectBucket]);
    rig.select("memory");
    assert_eq!(rig.status(until(&one)), Status::NOT_SUPPORTED);
}

fn durable(level: DurabilityLevel, timeout_ms: Option<u16>) -> RequestFraming<'static> {
    RequestFraming { durability: Some(Durability { level, timeout_ms }), ..RequestFraming::default() }
}

/// Data operations §11, a node without replicas.
#[test]
fn durable_writes_answer_in_memory_or_after_the_commit_as_their_level_says() {
    for level in [
        DurabilityLevel::Majority,
        DurabilityLevel::MajorityAndPersistOnMaster,
        DurabilityLevel::PersistToMajority,
    ] {
        let mut rig = Rig::new();
        rig.hello(&[Feature::MutationSeqno]);
        let index = rig.send(set(KEY, b"v").framing(durable(level, None)));
        assert_eq!(rig.is_waiting(index), level != DurabilityLevel::Majority, "{level:?}");
        let answer = rig.wait(index).one();
        let token = MutationToken::decode(&answer.extras).unwrap();
        let store = rig.engine.buckets()[0].vbucket(VB).unwrap().clone();
        assert_eq!((answer.status, token.seqno), (Status::SUCCESS, Seqno(1)));
        if level != DurabilityLevel::Majority {
            assert_eq!(store.persisted_seqno(), Seqno(1));
        }
        let removed = rig.ask(Request::new(Opcode::DELETE).key(KEY).framing(durable(level, None))).one();
        assert_eq!(removed.status, Status::SUCCESS);
        let extras = step(1, 5, 0);
        let counted = Request::new(Opcode::INCREMENT).key(KEY).extras(&extras).framing(durable(level, None));
        assert_eq!(rig.ask(counted).one().value, 5u64.to_be_bytes());
    }
}

#[test]
fn a_durable_write_that_is_not_durable_in_time_is_ambiguous() {
    for (xerror, closed) in [(true, false), (false, true)] {
        let mut rig = Rig::new();
        if xerror {
            rig.hello(&[Feature::Xerror]);
        }
        rig.disk.set_latency(Duration::from_millis(500), Duration::from_millis(600));
        let level = durable(DurabilityLevel::PersistToMajority, Some(50));
        let answered = rig.ask(set(KEY, b"v").framing(level));
        assert_eq!(answered.is_closed(), closed);
        if !closed {
            assert_eq!(answered.one().status, Status::SYNC_WRITE_AMBIGUOUS);
        }
        assert_eq!(value(&mut rig).as_deref(), Some(&b"v"[..]));
    }
}

/// A rig whose documents are on disk alone.
fn cold(documents: &[(&[u8], &[u8])]) -> Rig {
    let mut rig = Rig::with(RigOptions { resident_bytes_max: 1, ..RigOptions::default() });
    for (key, value) in documents {
        assert_eq!(rig.status(set(key, value)), Status::SUCCESS);
    }
    rig.flush();
    assert_eq!(rig.engine.buckets()[0].vbucket(VB).unwrap().stats().resident_items, 0);
    rig
}

#[test]
fn what_is_on_disk_alone_is_answered_later_with_the_same_answer() {
    let mut rig = cold(&[(KEY, b"{\"cold\":true}")]);
    rig.hello(&[Feature::Json, Feature::Tracing, Feature::Collections, Feature::MutationSeqno]);
    let cold_key = b"\0key";
    let index = rig.send(Request::new(Opcode::GET_K).key(cold_key));
    assert!(rig.is_waiting(index));
    let answer = rig.wait(index).one();
    assert_eq!((answer.status, answer.datatype), (Status::SUCCESS, Datatype::JSON));
    assert_eq!((answer.key.as_slice(), answer.value.as_slice()), (&cold_key[..], &b"{\"cold\":true}"[..]));
    assert_eq!(answer.magic, Magic::AltClientResponse);
    assert!(answer.framing.server_duration.unwrap().0 > 0, "the time of the read is in it");
    let index =
        rig.send(Request::new(Opcode::REPLACE).key(cold_key).extras(&PLAIN).value(b"2").cas(answer.cas));
    assert!(rig.is_waiting(index));
    let replaced = rig.wait(index).one();
    assert_eq!(replaced.status, Status::SUCCESS);
    assert_eq!(MutationToken::decode(&replaced.extras).unwrap().seqno, Seqno(2));
    let index = rig.send(Request::new(Opcode::GET).key(b"\0none"));
    assert!(!rig.is_waiting(index), "the filter knows that it is not there");
}

/// A pipelined change and read of one key must not overtake each other, also while the disk is asked.
#[test]
fn pipelined_requests_for_a_cold_key_keep_their_order() {
    let mut rig = cold(&[(KEY, b"1"), (b"other", b"x")]);
    let count = step(1, 0, 0);
    let up = Request::new(Opcode::INCREMENT).key(KEY).extras(&count);
    let quiet = Request::new(Opcode::SET_Q).key(KEY).extras(&PLAIN).value(b"40");
    let answers = rig.pipeline(&[
        up,
        get(KEY),
        up,
        get(KEY),
        quiet,
        get(b"other"),
        up,
        get(KEY),
        Request::new(Opcode::DELETE).key(KEY),
        get(KEY),
        Request::new(Opcode::GET_Q).key(KEY),
        set(KEY, b"end"),
        get(KEY),
    ]);
    let values: Vec<String> = answers
        .into_iter()
        .map(|answered| match answered.is_silent() {
            true => "silent".to_owned(),
            false => {
                let answer: Answer = answered.one();
                match answer.opcode {
                    Opcode::INCREMENT => u64::from_be_bytes(answer.value.try_into().unwrap()).to_string(),
                    _ if answer.status != Status::SUCCESS => answer.status.to_string(),
                    _ => String::from_utf8(answer.value).unwrap(),
                }
            }
        })
        .collect();
    assert_eq!(
        values,
        ["2", "2", "3", "3", "silent", "x", "41", "41", "", "KEY_ENOENT", "silent", "", "end"]
    );
}

#[test]
fn a_durable_write_to_a_cold_key_waits_for_disk_and_commit() {
    let mut rig = cold(&[(KEY, b"old")]);
    let level = durable(DurabilityLevel::PersistToMajority, None);
    let before = rig.engine.buckets()[0].vbucket(VB).unwrap().persisted_seqno();
    let answer = rig.ask(Request::new(Opcode::APPEND).key(KEY).value(b"er").framing(level)).one();
    assert_eq!(answer.status, Status::SUCCESS);
    assert_eq!(rig.engine.buckets()[0].vbucket(VB).unwrap().persisted_seqno(), before.next());
    assert_eq!(value(&mut rig).as_deref(), Some(&b"older"[..]));
}

#[test]
fn requests_that_wait_for_the_disk_hold_bounded_memory() {
    let mut rig = cold(&[(KEY, b"old")]);
    let large = vec![b'x'; 1 << 20];
    let sent: Vec<usize> = (0..64).map(|_| rig.send(set(KEY, &large))).collect();
    assert_eq!(
        sent.iter().filter(|index| rig.is_waiting(**index)).count(),
        63,
        "63 MiB and their headers fit"
    );
    assert_eq!(rig.wait(sent[63]).one().status, Status::ETMPFAIL);
    assert_eq!(rig.wait(sent[0]).one().status, Status::E2BIG, "they are too long for the log of this test");
    assert_eq!(value(&mut rig).as_deref(), Some(&b"old"[..]));
    let index = rig.send(set(KEY, &large));
    assert_ne!(rig.wait(index).one().status, Status::ETMPFAIL, "the room was given back");
}

#[test]
fn a_document_that_cannot_be_read_is_an_internal_error_and_others_go_on() {
    let mut rig = cold(&[(KEY, b"old"), (b"other", b"x")]);
    let mut image = rig.disk.image("data");
    // Every block behind the superblock and the manifest is damaged.
    for byte in image.iter_mut().skip(8 << 10) {
        *byte ^= 0x55;
    }
    rig.disk.set_image("data", image);
    assert_eq!(rig.status(get(KEY)), Status::EINTERNAL);
    assert_eq!(rig.status(set(KEY, b"new")), Status::EINTERNAL, "what it replaces must be known");
    assert_eq!(rig.status(set(b"fresh", b"1")), Status::SUCCESS);
    assert_eq!(rig.status(get(b"fresh")), Status::SUCCESS);
}

#[test]
fn a_full_log_is_a_temporary_failure() {
    let mut rig = Rig::with(RigOptions { wal_segments: 4, ..RigOptions::default() });
    let value = vec![b'x'; 20_000];
    let mut statuses = Vec::new();
    for number in 0..100u32 {
        statuses.push(rig.status(set(&number.to_be_bytes(), &value)));
    }
    let refused = statuses.iter().position(|status| *status != Status::SUCCESS).unwrap();
    assert_eq!(statuses[refused], Status::ETMPFAIL);
    rig.flush();
    assert_eq!(rig.status(set(KEY, &value)), Status::SUCCESS, "after a flush there is room again");
}

#[test]
fn vbuckets_and_their_keys_are_apart() {
    let mut rig = Rig::new();
    for vb in 0..4u16 {
        rig.ask(set(KEY, &vb.to_be_bytes()).vbucket(VbId(vb)));
    }
    for vb in 0..4u16 {
        assert_eq!(rig.ask(get(KEY).vbucket(VbId(vb))).one().value, vb.to_be_bytes());
    }
    let uuids: std::collections::BTreeSet<VbUuid> =
        rig.engine.buckets()[0].vbuckets().iter().map(|store| store.uuid()).collect();
    assert_eq!(uuids.len(), 4);
}
