//! Xattrs and versions made elsewhere by the tables of the protocol, in buckets on disk and in memory.
//!
//! Does not know: how sections are taken apart.

use ringbase_storage::types::{Cas, Kind, VbId};
use ringbase_storage::vbstore::{Found, Lookup};

use crate::command::rig::{Answer, PLAIN, Rig, RigOptions, VB, get, set};
use crate::protocol::extras::{ArithmeticExtras, MutationToken};
use crate::protocol::with_meta::{MetaOptions, WithMetaExtras};
use crate::protocol::xattr::{SYSTEM_XATTR_BYTES_MAX, build_section};
use crate::protocol::{Datatype, Feature, Opcode, Request, Status};

const KEY: &[u8] = b"key";
const BOTH: [(&str, &str); 2] = [("author", "\"x\""), ("_sync", "{\"rev\":1}")];
const SYSTEM: [(&str, &str); 1] = [("_sync", "{\"rev\":1}")];
const JX: Datatype = Datatype(5);

/// A bucket on disk, one whose documents are on disk alone once they are flushed, and one in memory.
fn rigs(more: &'static [&'static str; 3]) -> impl Iterator<Item = Rig> {
    let places = [(more[0], 64 << 20), (more[1], 1), (more[2], 64 << 20)];
    places.into_iter().map(|(settings, resident_bytes_max)| {
        let mut rig = Rig::with(RigOptions { settings, resident_bytes_max, ..RigOptions::default() });
        rig.hello(&[Feature::MutationSeqno, Feature::Xattr, Feature::Xerror, Feature::Json]);
        rig
    })
}

const PLACES: [&str; 3] = ["", "", "bucket_type=ephemeral"];

fn with_meta(revid: u64, cas: u64) -> WithMetaExtras {
    WithMetaExtras { revid, cas: Cas(cas), ..WithMetaExtras::default() }
}

fn value(pairs: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    [&build_section(pairs.iter().copied())[..], body].concat()
}

/// A command with metadata.
fn bring(rig: &mut Rig, opcode: Opcode, extras: WithMetaExtras, value: &[u8], datatype: Datatype) -> Answer {
    bring_at(rig, opcode, extras, value, datatype, Cas(0))
}

fn bring_at(
    rig: &mut Rig,
    opcode: Opcode,
    extras: WithMetaExtras,
    value: &[u8],
    datatype: Datatype,
    cas: Cas,
) -> Answer {
    let mut bytes = Vec::new();
    extras.encode(&mut bytes);
    rig.flush();
    rig.ask(Request::new(opcode).key(KEY).extras(&bytes).value(value).datatype(datatype).cas(cas)).one()
}

fn set_xattrs(rig: &mut Rig, revid: u64, cas: u64, pairs: &[(&str, &str)], body: &[u8]) {
    let answer = bring(rig, Opcode::SET_WITH_META, with_meta(revid, cas), &value(pairs, body), JX);
    assert_eq!((answer.status, answer.cas), (Status::SUCCESS, Cas(cas)));
}

/// Kind, datatype and value of what is stored.
fn stored(rig: &mut Rig) -> (Kind, Datatype, Vec<u8>) {
    // The document is in memory after somebody has asked for it.
    let key = [&[0], KEY].concat();
    let store = rig.store("default", VB);
    let found = match store.lookup(&key) {
        Lookup::Known(found) => found,
        Lookup::OnDisk => rig.sim.block_on(store.ask(&key, |_, found| found)).unwrap(),
    };
    let Found::Version(item) = found else { panic!("nothing is stored") };
    (item.kind(), Datatype(item.datatype()), item.value().to_vec())
}

/// Data operations §1, §7: what changes the body keeps the xattrs, and no reader sees them.
#[test]
fn every_change_of_the_body_keeps_the_xattrs_and_no_read_shows_them() {
    for mut rig in rigs(&PLACES) {
        set_xattrs(&mut rig, 1, 1 << 60, &BOTH, b"{}");
        assert_eq!(stored(&mut rig), (Kind::Mutation, JX, value(&BOTH, b"{}")));
        let expiry = 1000u32.to_be_bytes();
        let count = ArithmeticExtras { delta: 2, initial: 0, expiry: 0 }.encode();
        let steps: [(Request<'_>, &[u8], u8); 8] = [
            (set(KEY, b"abc"), b"abc", 0),
            (Request::new(Opcode::REPLACE).key(KEY).extras(&PLAIN).value(b"7"), b"7", 1),
            (Request::new(Opcode::APPEND).key(KEY).value(b"1"), b"71", 1),
            (Request::new(Opcode::PREPEND).key(KEY).value(b"3"), b"371", 1),
            (Request::new(Opcode::INCREMENT).key(KEY).extras(&count), b"373", 1),
            (Request::new(Opcode::DECREMENT).key(KEY).extras(&count), b"371", 1),
            (Request::new(Opcode::TOUCH).key(KEY).extras(&expiry), b"371", 1),
            (set(KEY, b""), b"", 0),
        ];
        for (request, body, json) in steps {
            rig.flush();
            let done = rig.ask(request).one();
            assert_eq!(done.status, Status::SUCCESS, "{request:?}");
            assert_eq!(stored(&mut rig), (Kind::Mutation, Datatype(4 | json), value(&BOTH, body)));
            rig.flush();
            for opcode in [Opcode::GET, Opcode::GET_K, Opcode::GAT, Opcode::GET_LOCKED] {
                let extras = if opcode == Opcode::GAT { &expiry[..] } else { &[] };
                let read = rig.ask(Request::new(opcode).key(KEY).extras(extras)).one();
                assert_eq!(
                    (read.status, &read.value[..], read.datatype),
                    (Status::SUCCESS, body, Datatype(json))
                );
                if opcode == Opcode::GET_LOCKED {
                    rig.ask(Request::new(Opcode::UNLOCK_KEY).key(KEY).cas(read.cas));
                }
            }
            let meta = rig.ask(Request::new(Opcode::GET_META).key(KEY).extras(&[2])).one();
            assert_eq!(meta.extras[20], 4 | json, "what is stored");
        }
    }
}

/// Data operations §1: a removal keeps the system's xattrs, and a new document has none of the old.
#[test]
fn a_tombstone_keeps_the_systems_xattrs_and_a_new_document_none() {
    for mut rig in rigs(&PLACES) {
        for expires in [false, true] {
            set_xattrs(&mut rig, 100, 1 << 61, &BOTH, b"{}");
            let kind = if expires {
                rig.ask(Request::new(Opcode::TOUCH).key(KEY).extras(&5u32.to_be_bytes()));
                rig.flush();
                rig.sleep(7);
                assert_eq!(rig.status(Request::new(Opcode::DELETE).key(KEY)), Status::KEY_ENOENT);
                Kind::Expiration
            } else {
                rig.flush();
                assert_eq!(rig.status(Request::new(Opcode::DELETE).key(KEY)), Status::SUCCESS);
                Kind::Deletion
            };
            rig.flush();
            assert_eq!(stored(&mut rig), (kind, Datatype::XATTR, value(&SYSTEM, b"")));
            assert_eq!(rig.status(get(KEY)), Status::KEY_ENOENT);
            rig.flush();
            assert_eq!(rig.status(set(KEY, b"1")), Status::SUCCESS);
            assert_eq!(stored(&mut rig), (Kind::Mutation, Datatype::JSON, b"1".to_vec()));
            let body = [("author", "1")];
            set_xattrs(&mut rig, 200, 1 << 62, &body, b"");
            rig.flush();
            assert_eq!(rig.status(Request::new(Opcode::DELETE).key(KEY)), Status::SUCCESS);
            assert_eq!(
                stored(&mut rig),
                (Kind::Deletion, Datatype::RAW, Vec::new()),
                "it has no system xattrs"
            );
            rig.empty("default");
        }
    }
}

/// Data operations §9: what the version brings is kept, its seqno is of here, and later CAS are above its.
#[test]
fn a_version_keeps_what_it_brings_and_what_is_written_later_is_later() {
    for mut rig in rigs(&PLACES) {
        let future = (1 << 62) + 12345;
        let extras = WithMetaExtras { flags: 0xfeed, expiry: 4_000_000_000, ..with_meta(77, future) };
        let answer = bring(&mut rig, Opcode::SET_WITH_META, extras, b"[1]", Datatype::RAW);
        assert_eq!((answer.status, answer.cas), (Status::SUCCESS, Cas(future)));
        assert_eq!(MutationToken::decode(&answer.extras).unwrap().seqno.0, 1);
        let meta = |rig: &mut Rig| rig.ask(Request::new(Opcode::GET_META).key(KEY).extras(&[2])).one();
        let expected = |deleted: u32, flags: u32, expiry: u32, revid: u64, datatype: u8| {
            let words = [deleted, flags, expiry].map(u32::to_be_bytes).concat();
            [&words[..], &revid.to_be_bytes(), &[datatype]].concat()
        };
        let found = meta(&mut rig);
        assert_eq!((found.cas, found.extras), (Cas(future), expected(0, 0xfeed, 4_000_000_000, 77, 1)));
        let other = rig.ask(set(b"other", b"v")).one();
        assert!(other.cas > Cas(future), "the clock of the vbucket has gone on");
        let changed = rig.ask(set(KEY, b"v")).one();
        assert!(changed.cas > other.cas);
        assert_eq!(meta(&mut rig).extras, expected(0, 0, 0, 78, 0));
        let deletion =
            WithMetaExtras { flags: 9, expiry: 1_600_000_000, ..with_meta(90, future + (1 << 20)) };
        let answer = bring(&mut rig, Opcode::DEL_WITH_META, deletion, &value(&SYSTEM, b""), Datatype::XATTR);
        assert_eq!((answer.status, answer.cas), (Status::SUCCESS, deletion.cas));
        assert_eq!(meta(&mut rig).extras, expected(1, 0, 1_600_000_000, 90, 4), "a tombstone has no flags");
        assert_eq!(stored(&mut rig), (Kind::Deletion, Datatype::XATTR, value(&SYSTEM, b"")));
    }
}

/// The greatest CAS that a version may have is no way to stop a vbucket, nor is the greatest revision.
#[test]
fn after_the_greatest_cas_and_revision_documents_can_still_be_written() {
    for mut rig in rigs(&PLACES) {
        let extras = with_meta(u64::MAX, u64::MAX - 1);
        assert_eq!(
            bring(&mut rig, Opcode::SET_WITH_META, extras, b"v", Datatype::RAW).status,
            Status::SUCCESS
        );
        for _ in 0..2 {
            let changed = rig.ask(set(KEY, b"w")).one();
            assert_eq!((changed.status, changed.cas), (Status::SUCCESS, Cas(u64::MAX - 1)));
        }
        assert_eq!(rig.ask(Request::new(Opcode::GET_META).key(KEY)).one().extras[12..20], [0xff; 8]);
    }
}

/// Data operations §9, conflict resolution: the tables are tested beside the rule; here is what is compared with what.
#[test]
fn the_better_version_stays_whichever_comes_first_and_whatever_it_is() {
    const BY_TIME: [&str; 3] = [
        "conflict_resolution_type=lww",
        "conflict_resolution_type=custom",
        "bucket_type=ephemeral;conflict_resolution_type=lww",
    ];
    for (places, by_time) in [(&PLACES, false), (&BY_TIME, true)] {
        for mut rig in rigs(places) {
            let options = by_time.then_some(MetaOptions::FORCE_ACCEPT);
            let of = |revid, cas| WithMetaExtras { options, ..with_meta(revid, cas) };
            let steps = [
                (Opcode::SET_WITH_META, of(5, 50), Status::SUCCESS),
                (Opcode::SET_WITH_META, of(5, 50), Status::KEY_EEXISTS),
                (Opcode::DEL_WITH_META, of(5, 50), Status::KEY_EEXISTS),
                (Opcode::SET_WITH_META, of(4, 49), Status::KEY_EEXISTS),
                (
                    Opcode::SET_WITH_META,
                    of(6, 49),
                    if by_time { Status::KEY_EEXISTS } else { Status::SUCCESS },
                ),
                (
                    Opcode::SET_WITH_META,
                    of(5, 51),
                    if by_time { Status::SUCCESS } else { Status::KEY_EEXISTS },
                ),
                (Opcode::SET_WITH_META, of(6, 51), Status::SUCCESS),
                (Opcode::DEL_WITH_META, of(7, 52), Status::SUCCESS),
                (Opcode::SET_WITH_META, of(6, 51), Status::KEY_EEXISTS),
                (Opcode::ADD_WITH_META, of(6, 51), Status::KEY_EEXISTS),
                (Opcode::DEL_WITH_META, of(8, 53), Status::SUCCESS),
                (Opcode::ADD_WITH_META, of(9, 54), Status::SUCCESS),
                (Opcode::ADD_WITH_META, of(10, 55), Status::KEY_EEXISTS),
                (
                    Opcode::SET_WITH_META,
                    WithMetaExtras { expiry: 4_000_000_000, ..of(9, 54) },
                    Status::SUCCESS,
                ),
                (
                    Opcode::SET_WITH_META,
                    WithMetaExtras { expiry: 4_000_000_000, flags: 1, ..of(9, 54) },
                    Status::SUCCESS,
                ),
            ];
            for (index, (opcode, extras, expected)) in steps.into_iter().enumerate() {
                let answer = bring(&mut rig, opcode, extras, b"", Datatype::RAW);
                assert_eq!(answer.status, expected, "step {index}, by time {by_time}");
                if expected == Status::SUCCESS {
                    assert_eq!(answer.cas, extras.cas, "step {index}");
                }
            }
            let rich = WithMetaExtras { expiry: 4_000_000_000, flags: 1, ..of(9, 54) };
            for expected in [Status::SUCCESS, Status::KEY_EEXISTS] {
                let answer =
                    bring(&mut rig, Opcode::SET_WITH_META, rich, &value(&SYSTEM, b""), Datatype::XATTR);
                assert_eq!(answer.status, expected, "xattrs beat none, and no others");
            }
        }
    }
}

#[test]
fn options_that_the_bucket_does_not_take_are_refused() {
    let statuses = |settings: &'static str| {
        let mut rig = Rig::with(RigOptions { settings, ..RigOptions::default() });
        let options = [None, Some(0), Some(1), Some(2), Some(4), Some(8), Some(0x0c), Some(0x0a), Some(0x20)];
        options.map(|bits: Option<u32>| {
            rig.ask(Request::new(Opcode::DELETE).key(KEY));
            let mut extras = Vec::new();
            with_meta(1 << 40, 1 << 60).encode(&mut extras);
            extras.extend_from_slice(&bits.map_or(Vec::new(), |bits| bits.to_be_bytes().to_vec()));
            rig.ask(Request::new(Opcode::SET_WITH_META).key(KEY).extras(&extras)).one().status
                == Status::EINVAL
        })
    };
    let (yes, no) = (true, false);
    assert_eq!(statuses(""), [no, no, no, yes, yes, no, no, yes, yes]);
    for by_time in ["conflict_resolution_type=lww", "conflict_resolution_type=custom"] {
        assert_eq!(statuses(by_time), [yes, yes, yes, no, yes, yes, no, no, yes]);
    }
}

#[test]
fn a_cas_of_here_and_a_version_that_needs_not_be_better() {
    for mut rig in rigs(&PLACES) {
        assert_eq!(rig.status(set(KEY, b"v")), Status::SUCCESS);
        let skip = Some(MetaOptions::SKIP_CONFLICT_RESOLUTION);
        let older = WithMetaExtras { options: skip, ..with_meta(0, 5) };
        let answer = bring(&mut rig, Opcode::SET_WITH_META, older, b"old", Datatype::RAW);
        assert_eq!((answer.status, answer.cas), (Status::SUCCESS, Cas(5)));
        let fresh = Some(MetaOptions::SKIP_CONFLICT_RESOLUTION | MetaOptions::REGENERATE_CAS);
        let extras = WithMetaExtras { options: fresh, ..with_meta(3, 7) };
        let answer = bring(&mut rig, Opcode::SET_WITH_META, extras, b"new", Datatype::RAW);
        assert_eq!(answer.status, Status::SUCCESS);
        assert!(answer.cas > Cas(1 << 50), "{:?}", answer.cas);
        let expired = Some(MetaOptions::IS_EXPIRATION);
        let extras = WithMetaExtras { options: expired, ..with_meta(4, 8) };
        assert_eq!(
            bring(&mut rig, Opcode::DEL_WITH_META, extras, b"", Datatype::RAW).status,
            Status::SUCCESS
        );
        assert_eq!(stored(&mut rig).0, Kind::Expiration);
        let meta = rig.ask(Request::new(Opcode::GET_META).key(KEY)).one();
        assert_eq!(meta.extras[8..12], rig.now().to_be_bytes(), "a deletion without a time is one of now");
    }
}

/// Data operations §1 and §9: the CAS of the request is checked as any, and so is a lock.
#[test]
fn the_request_must_fit_cas_and_lock() {
    for mut rig in rigs(&PLACES) {
        let bring_at = |rig: &mut Rig, opcode, revid, cas: u64, at| {
            bring_at(rig, opcode, with_meta(revid, cas), b"", Datatype::RAW, at).status
        };
        let (set_meta, del_meta) = (Opcode::SET_WITH_META, Opcode::DEL_WITH_META);
        assert_eq!(bring_at(&mut rig, set_meta, 1, 10, Cas(9)), Status::KEY_ENOENT);
        assert_eq!(bring_at(&mut rig, set_meta, 1, 10, Cas(0)), Status::SUCCESS);
        assert_eq!(bring_at(&mut rig, set_meta, 2, 20, Cas(9)), Status::KEY_EEXISTS);
        assert_eq!(bring_at(&mut rig, set_meta, 2, 20, Cas(10)), Status::SUCCESS);
        for cas in [0, u64::MAX] {
            assert_eq!(bring_at(&mut rig, set_meta, 9, cas, Cas(0)), Status::CAS_VALUE_INVALID);
            assert_eq!(bring_at(&mut rig, del_meta, 9, cas, Cas(0)), Status::CAS_VALUE_INVALID);
        }
        rig.flush();
        let lock = rig.ask(Request::new(Opcode::GET_LOCKED).key(KEY)).one();
        for at in [Cas(0), Cas(20)] {
            assert_eq!(bring_at(&mut rig, set_meta, 3, 30, at), Status::LOCKED);
            assert_eq!(bring_at(&mut rig, del_meta, 3, 30, at), Status::LOCKED);
        }
        assert_eq!(bring_at(&mut rig, set_meta, 3, 30, lock.cas), Status::SUCCESS, "and unlocked");
        assert_eq!(bring_at(&mut rig, del_meta, 4, 40, Cas(0)), Status::SUCCESS);
        assert_eq!(bring_at(&mut rig, del_meta, 5, 50, Cas(40)), Status::KEY_ENOENT, "a tombstone is absent");
        rig.hello(&[]);
        assert_eq!(bring_at(&mut rig, set_meta, 9, 0, Cas(0)), Status::KEY_EEXISTS, "in the older words");
    }
}

#[test]
fn broken_sections_and_values_that_are_too_long_are_refused() {
    let mut rig =
        Rig::with(RigOptions { settings: "max_item_size=1000", wal_segments: 64, ..RigOptions::default() });
    rig.hello(&[Feature::Xattr, Feature::Xerror, Feature::Json]);
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let mut cas = 0;
    let mut status = |rig: &mut Rig, pairs: &[(&str, &str)], body: &[u8]| {
        cas += 1;
        let extras = with_meta(cas, cas);
        bring(rig, Opcode::SET_WITH_META, extras, &value(pairs, body), Datatype::XATTR).status
    };
    // A pair has 4 bytes of length and two of zero beside key and value.
    let user = text(600 - 7);
    assert_eq!(status(&mut rig, &[("u", &user)], &[b'b'; 400]), Status::SUCCESS);
    assert_eq!(status(&mut rig, &[("u", &user)], &[b'b'; 401]), Status::E2BIG);
    let system = text(2000);
    assert_eq!(status(&mut rig, &[("_s", &system)], &[b'b'; 1000]), Status::SUCCESS);
    assert_eq!(status(&mut rig, &[("_s", &system)], &[b'b'; 1001]), Status::E2BIG);
    assert_eq!(rig.status(set(KEY, &[b'c'; 1000])), Status::SUCCESS, "the system's xattrs do not count");
    assert_eq!(rig.status(set(KEY, &[b'c'; 1001])), Status::E2BIG);
    let most = text(SYSTEM_XATTR_BYTES_MAX + 1 - 8);
    assert_eq!(status(&mut rig, &[("_s", &most)], b""), Status::E2BIG);
    assert_eq!(status(&mut rig, &[("$v", "1")], b""), Status::XATTR_EINVAL);
    assert_eq!(status(&mut rig, &[("u", "x")], b""), Status::XATTR_EINVAL);
    rig.hello(&[Feature::Xerror]);
    assert_eq!(status(&mut rig, &[("u", "1")], b""), Status::EINVAL, "not negotiated");
}

/// The metadata behind a value is skipped; a request that does not have it ends the connection.
#[test]
fn metadata_behind_the_value_is_left_out_and_must_be_there() {
    for mut rig in rigs(&PLACES) {
        let extras = WithMetaExtras { meta_bytes: Some(3), ..with_meta(1, 1) };
        assert_eq!(
            bring(&mut rig, Opcode::SET_WITH_META, extras, b"7xyz", Datatype::RAW).status,
            Status::SUCCESS
        );
        assert_eq!(stored(&mut rig), (Kind::Mutation, Datatype::JSON, b"7".to_vec()));
        let mut bytes = Vec::new();
        WithMetaExtras { meta_bytes: Some(3), ..with_meta(2, 2) }.encode(&mut bytes);
        let short = Request::new(Opcode::SET_WITH_META).key(KEY).extras(&bytes).value(b"xy");
        assert!(rig.ask(short).is_closed());
    }
}

#[test]
fn quiet_forms_tell_only_failures_and_other_vbuckets_are_refused() {
    for mut rig in rigs(&PLACES) {
        let mut bytes = Vec::new();
        with_meta(2, 2).encode(&mut bytes);
        for (opcode, is_silent) in [
            (Opcode::ADDQ_WITH_META, true),
            (Opcode::ADDQ_WITH_META, false),
            (Opcode::SETQ_WITH_META, false),
            (Opcode::DELQ_WITH_META, false),
        ] {
            let answer = rig.ask(Request::new(opcode).key(KEY).extras(&bytes));
            assert_eq!(answer.is_silent(), is_silent, "{opcode}");
            if !is_silent {
                assert_eq!(answer.one().status, Status::KEY_EEXISTS);
            }
        }
        for opcode in [Opcode::SET_WITH_META, Opcode::DEL_WITH_META] {
            let elsewhere = Request::new(opcode).key(KEY).extras(&bytes).vbucket(VbId(100));
            assert_eq!(rig.status(elsewhere), Status::NOT_MY_VBUCKET);
        }
    }
}

/// What is made elsewhere does not outlive what the bucket allows, and its expiry is a moment, never a duration.
#[test]
fn an_expiry_is_absolute_and_capped_by_the_greatest_ttl() {
    let expiry = |settings: &'static str, given: u32| {
        let mut rig = Rig::with(RigOptions { settings, ..RigOptions::default() });
        let extras = WithMetaExtras { expiry: given, ..with_meta(1, 1) };
        assert_eq!(
            bring(&mut rig, Opcode::SET_WITH_META, extras, b"v", Datatype::RAW).status,
            Status::SUCCESS
        );
        let meta = rig.ask(Request::new(Opcode::GET_META).key(KEY)).one();
        u32::from_be_bytes(meta.extras[8..12].try_into().unwrap()).wrapping_sub(rig.now())
    };
    let now = Rig::new().now();
    assert_eq!(expiry("", 0).wrapping_add(now), 0);
    assert_eq!(expiry("", 60).wrapping_add(now), 60, "a moment in 1970");
    assert_eq!(expiry("max_ttl=100", 0), 100);
    assert_eq!(expiry("max_ttl=100", now + 1000), 100);
    assert_eq!(expiry("max_ttl=100", now + 10), 10);
}

#[test]
fn what_was_brought_is_counted() {
    let mut rig = Rig::new();
    for (opcode, revid) in [
        (Opcode::SET_WITH_META, 2),
        (Opcode::SET_WITH_META, 1),
        (Opcode::DEL_WITH_META, 1),
        (Opcode::DEL_WITH_META, 1),
        (Opcode::DEL_WITH_META, 3),
    ] {
        bring(&mut rig, opcode, with_meta(revid, 1), b"", Datatype::RAW);
    }
    let tally = &rig.engine.buckets()[0].context.tally;
    assert_eq!((tally.ep_num_ops_set_meta.get(), tally.ep_num_ops_set_meta_res_failed.get()), (1, 1));
    assert_eq!((tally.ep_num_ops_del_meta.get(), tally.ep_num_ops_del_meta_res_failed.get()), (1, 2));
}

/// A crash and a restart: what is on disk is what was there.
#[test]
fn xattrs_and_what_versions_brought_survive_a_restart() {
    for (index, mut rig) in rigs(&[PLACES[0], PLACES[1], PLACES[0]]).enumerate() {
        let future = (1 << 62) + 12345;
        set_xattrs(&mut rig, 9, future, &BOTH, b"{}");
        if index == 2 {
            rig.ask(Request::new(Opcode::DELETE).key(KEY));
        } else if index == 1 {
            rig.flush();
        }
        let before = stored(&mut rig);
        let persisted = rig.store("default", VB);
        rig.sim.block_on(persisted.wait_persisted(persisted.high_seqno()));
        drop(persisted);
        let mut rig = rig.restart(|_, disk, _| {
            disk.crash(7);
        });
        rig.hello(&[Feature::Xattr, Feature::Xerror]);
        assert_eq!(stored(&mut rig), before);
        let meta = rig.ask(Request::new(Opcode::GET_META).key(KEY)).one();
        assert_eq!(meta.extras[12..20], (9 + u64::from(index == 2)).to_be_bytes());
        let next = rig.ask(set(b"other", b"v")).one();
        assert!(next.cas > Cas(future), "the clock goes on where it was");
    }
}
