//! Connection commands and the checks before execution.
//!
//! Does not know: documents beyond a Get and a Set.

use serde_json::Value;

use super::rig::{Answered, PLAIN, Rig, RigOptions, VBUCKETS, get, set};
use super::{Next, Request as Validated, StatPart};
use crate::auth::{MECHANISM_LIST, Mechanism, SaslClient};
use crate::protocol::extras::{CollectionFound, ConfigVersion};
use crate::protocol::{
    CollectionId, Datatype, Decoded, ErrorContext, Feature, FrameLimits, Magic, Opcode, OpcodeKind, Request,
    RequestFraming, Status, decode_frame,
};
use ringbase_storage::types::{Cas, VbId};

/// A node that wants a user.
fn closed_rig() -> Rig {
    Rig::with(RigOptions { open: false, ..RigOptions::default() })
}

fn json(answered: Answered) -> Value {
    serde_json::from_slice(&answered.one().value).unwrap()
}

/// G14: nothing but the five opcodes before authentication, and 16 KiB of frame.
#[test]
fn before_authentication_five_opcodes_are_executed_and_every_other_is_refused() {
    let mut rig = closed_rig();
    for number in 0..=u8::MAX {
        let opcode = Opcode(number);
        let expected = match opcode {
            Opcode::HELLO | Opcode::SASL_LIST_MECHS => Status::SUCCESS,
            Opcode::GET_ERROR_MAP | Opcode::SASL_AUTH | Opcode::SASL_STEP => Status::EINVAL,
            _ => Status::EACCESS,
        };
        assert_eq!(rig.status(Request::new(opcode)), expected, "{opcode:?}");
        assert!(!rig.session.is_authenticated());
    }
    assert_eq!(rig.session.frame_limits(), FrameLimits::UNAUTHENTICATED);
    assert_eq!(rig.login("admin", "password"), Status::SUCCESS);
    assert_eq!(rig.session.frame_limits(), FrameLimits::AUTHENTICATED);
}

/// Protocol: unknown and unavailable opcodes are answered and never end the connection.
#[test]
fn every_opcode_is_answered_and_only_quit_closes() {
    for xerror in [false, true] {
        for number in 0..=u8::MAX {
            let opcode = Opcode(number);
            // Executed by others: streams, range scans, parameters, changes of buckets.
            if matches!(number, 0x50..=0x54 | 0x5c..=0x5e | 0xda..=0xdc | 0x82 | 0x85 | 0x86) {
                continue;
            }
            let mut rig = Rig::new();
            if xerror {
                rig.hello(&[Feature::Xerror]);
            }
            for (extras, key, value) in [
                (&[0; 0][..], &b""[..], &b""[..]),
                (&[0; 0], b"key", b""),
                (&[0; 0], b"key", b"value"),
                (&[0; 4], b"key", b"value"),
                (&[0; 8], b"key", b"value"),
                (&[0; 20], b"key", b""),
            ] {
                let answered = rig.ask(Request::new(opcode).extras(extras).key(key).value(value));
                let quits = matches!(opcode, Opcode::QUIT | Opcode::QUIT_Q) && (extras, key) == (&[], b"");
                assert_eq!(answered.is_closed(), quits, "{opcode:?}");
                let status = match answered {
                    Answered::Frames(frames) => frames.last().map(|frame| frame.status),
                    Answered::Closed(_) => None,
                };
                match opcode.kind() {
                    OpcodeKind::Undefined => assert_eq!(status, Some(Status::UNKNOWN_COMMAND)),
                    OpcodeKind::Removed => assert_eq!(status, Some(Status::NOT_SUPPORTED)),
                    OpcodeKind::Defined => assert_ne!(status, Some(Status::UNKNOWN_COMMAND), "{opcode:?}"),
                }
            }
        }
    }
}

#[test]
fn defined_commands_that_this_node_does_not_execute_are_not_supported() {
    let mut rig = Rig::new();
    for (opcode, extras, key, value, cas) in [
        (Opcode::SUBDOC_GET, &[0, 1, 0][..], &b"k"[..], &b"p"[..], 0),
        (Opcode::RETURN_META, &[0; 12], b"k", b"", 0),
        (Opcode::FLUSH, &[], b"", b"", 0),
    ] {
        let request = Request::new(opcode).extras(extras).key(key).value(value).cas(Cas(cas));
        assert_eq!(rig.status(request), Status::NOT_SUPPORTED, "{opcode}");
    }
}

#[test]
fn a_frame_that_is_no_request_closes_or_is_passed_over() {
    let mut rig = Rig::new();
    let mut bytes = Vec::new();
    Request::new(Opcode::GET).key(b"key").encode(&mut bytes).unwrap();
    for (magic, closed, status) in [
        (Magic::ServerResponse, false, None),
        (Magic::ClientResponse, true, None),
        (Magic::ServerRequest, false, Some(Status::UNKNOWN_COMMAND)),
    ] {
        bytes[0] = magic as u8;
        let index = rig.send_bytes(&bytes);
        let answered = rig.wait(index);
        assert_eq!(answered.is_closed(), closed, "{magic:?}");
        if let Some(status) = status {
            assert_eq!(answered.one().status, status);
        }
    }
}

/// Bootstrap §2.
#[test]
fn hello_replaces_all_that_an_earlier_one_granted_and_tracing_frames_its_own_answer() {
    let mut rig = Rig::new();
    let hello = |rig: &mut Rig, key: &'static [u8], value: &[u8]| {
        rig.ask(Request::new(Opcode::HELLO).key(key).value(value)).one()
    };
    let first = hello(&mut rig, b"{\"a\":\"sdk/1\",\"i\":\"c1\"}", &[0, 0x0f, 0, 0x0b, 0x7f, 0xff, 0, 0x04]);
    assert_eq!(first.value, [0, 0x04, 0, 0x0b, 0, 0x0f], "known ones, ascending");
    assert_eq!(first.magic, Magic::AltClientResponse);
    assert!(first.framing.server_duration.is_some());
    assert_eq!(rig.session.agent().name, "sdk/1");
    assert_eq!(rig.ask(Request::new(Opcode::NOOP)).one().magic, Magic::AltClientResponse);
    let odd = hello(&mut rig, b"", &[0, 4, 0]);
    assert_eq!(odd.status, Status::EINVAL);
    assert!(rig.session.features().has(Feature::Tracing), "a refused HELLO changes nothing");
    let off = hello(&mut rig, b"", &[]);
    assert_eq!((off.magic, off.value.len()), (Magic::ClientResponse, 0));
    assert!(!rig.session.features().has(Feature::Json));
    assert_eq!(rig.session.agent().name, "sdk/1", "the name stays without a new one");
}

/// Bootstrap §3.
#[test]
fn every_mechanism_authenticates_and_a_failure_leaves_the_connection_open_without_identity() {
    for mechanism in Mechanism::ALL {
        let mut rig = closed_rig();
        let listed = rig.ask(Request::new(Opcode::SASL_LIST_MECHS)).one();
        assert_eq!(listed.value, MECHANISM_LIST.as_bytes());
        for (password, expected) in [("wrong", Status::AUTH_ERROR), ("password", Status::SUCCESS)] {
            let mut client = SaslClient::new(mechanism, "admin", password, [3; 16]);
            let name = mechanism.name().as_bytes();
            let first = client.start();
            let mut answer = rig.ask(Request::new(Opcode::SASL_AUTH).key(name).value(&first)).one();
            if answer.status == Status::AUTH_CONTINUE {
                let last = client.step(&answer.value).unwrap();
                answer = rig.ask(Request::new(Opcode::SASL_STEP).key(name).value(&last)).one();
            }
            assert_eq!(answer.status, expected, "{mechanism}");
            assert_eq!(rig.session.is_authenticated(), expected == Status::SUCCESS);
            if expected == Status::SUCCESS {
                client.finish(&answer.value).unwrap();
            }
        }
        assert_eq!(rig.session.identity().unwrap().user, "admin");
        assert_eq!(rig.login("nobody", "x"), Status::AUTH_ERROR);
        assert!(!rig.session.is_authenticated(), "the old identity is dropped");
        assert_eq!(rig.status(Request::new(Opcode::NOOP)), Status::EACCESS);
    }
}

#[test]
fn authentication_selects_no_bucket_and_select_bucket_does() {
    let mut rig = closed_rig();
    rig.login("writer", "password");
    rig.hello(&[Feature::Xerror]);
    assert_eq!(rig.status(get(b"key")), Status::NO_BUCKET);
    let select = |name: &'static [u8]| Request::new(Opcode::SELECT_BUCKET).key(name);
    assert_eq!(rig.status(select(b"other")), Status::KEY_ENOENT);
    assert_eq!(rig.status(select(b"")), Status::KEY_ENOENT);
    assert_eq!(rig.status(select(b"default")), Status::SUCCESS);
    assert_eq!(rig.status(set(b"key", b"v")), Status::SUCCESS);
    assert_eq!(rig.status(select(b"@no bucket@")), Status::SUCCESS);
    assert_eq!(rig.status(get(b"key")), Status::NO_BUCKET);
    rig.hello(&[]);
    assert!(rig.ask(get(b"key")).is_closed(), "a client without XERROR cannot be told");
}

#[test]
fn on_an_open_node_plain_clients_are_in_the_bucket_and_those_that_select_choose_themselves() {
    let mut rig = Rig::new();
    assert_eq!(rig.status(set(b"key", b"v")), Status::SUCCESS);
    let hello = Request::new(Opcode::HELLO).value(&[0, 0x08, 0, 0x07]);
    assert_eq!(rig.status(hello), Status::SUCCESS);
    assert_eq!(rig.status(get(b"key")), Status::NO_BUCKET);
    assert!(json(rig.ask(Request::new(Opcode::GET_CLUSTER_CONFIG))).get("name").is_none());
    rig.ask(Request::new(Opcode::SELECT_BUCKET).key(b"default"));
    rig.ask(Request::new(Opcode::HELLO).value(&[0, 0x08]));
    assert_eq!(rig.status(get(b"key")), Status::SUCCESS, "what was chosen stays");
}

#[test]
fn roles_decide_what_a_user_may_do() {
    for (user, writes, administers) in
        [("reader", false, false), ("writer", true, false), ("admin", true, true)]
    {
        let mut rig = closed_rig();
        rig.login(user, "password");
        rig.hello(&[Feature::Xerror, Feature::SelectBucket]);
        let status = |may: bool| if may { Status::SUCCESS } else { Status::EACCESS };
        assert_eq!(rig.status(set(b"key", b"v")), status(writes), "{user}");
        assert_eq!(rig.ask(get(b"none")).one().status, Status::KEY_ENOENT, "{user}");
        let verbosity = Request::new(Opcode::VERBOSITY).extras(&[0, 0, 0, 2]);
        assert_eq!(rig.status(verbosity), status(administers), "{user}");
        let other = RequestFraming { impersonate: Some(b"root"), ..RequestFraming::default() };
        assert_eq!(rig.status(get(b"key").framing(other)), Status::EACCESS, "{user}");
        rig.hello(&[Feature::SelectBucket]);
        assert_eq!(rig.ask(set(b"key", b"v")).is_closed(), !writes, "{user}");
    }
}

/// Bootstrap §5.
#[test]
fn the_cluster_map_is_sent_unless_the_client_has_it() {
    let mut rig = Rig::new();
    rig.hello(&[Feature::Json]);
    let answer = rig.ask(Request::new(Opcode::GET_CLUSTER_CONFIG)).one();
    assert_eq!(answer.datatype, Datatype::JSON);
    let map: Value = serde_json::from_slice(&answer.value).unwrap();
    assert_eq!((&map["name"], &map["rev"], &map["revEpoch"]), (&"default".into(), &5.into(), &1.into()));
    assert_eq!(map["vBucketServerMap"]["vBucketMap"].as_array().unwrap().len(), usize::from(VBUCKETS));
    for (epoch, rev, status, has_map) in [
        (1, 4, Status::SUCCESS, true),
        (-1, 9, Status::SUCCESS, true),
        (1, 5, Status::SUCCESS, false),
        (2, 1, Status::SUCCESS, false),
        (0, 5, Status::EINVAL, true),
        (1, 0, Status::EINVAL, true),
    ] {
        let known = ConfigVersion { epoch, rev }.encode();
        let answer = rig.ask(Request::new(Opcode::GET_CLUSTER_CONFIG).extras(&known)).one();
        assert_eq!((answer.status, !answer.value.is_empty()), (status, has_map), "{epoch}.{rev}");
    }
}

#[test]
fn a_vbucket_that_is_not_here_is_answered_with_the_map_once_if_the_client_wants_it_once() {
    for dedupe in [false, true] {
        let mut rig = Rig::new();
        let features: &[Feature] = if dedupe { &[Feature::DedupeNotMyVbucketClustermap] } else { &[] };
        rig.hello(features);
        let map_bytes = |rig: &mut Rig, request: Request<'_>| {
            let answer = rig.ask(request.vbucket(VbId(VBUCKETS))).one();
            assert_eq!(answer.status, Status::NOT_MY_VBUCKET);
            answer.value.len()
        };
        assert!(map_bytes(&mut rig, get(b"key")) > 100);
        assert_eq!(map_bytes(&mut rig, set(b"key", b"v")) > 100, !dedupe);
        assert_eq!(map_bytes(&mut rig, Request::new(Opcode::GET_Q).key(b"key")) > 100, !dedupe);
        rig.ask(Request::new(Opcode::SELECT_BUCKET).key(b"default"));
        assert!(map_bytes(&mut rig, get(b"key")) > 100, "selecting forgets what was sent");
    }
}

#[test]
fn the_small_commands_answer() {
    let mut rig = Rig::new();
    let mut value = |request| {
        let answer = rig.ask(request).one();
        assert_eq!(answer.status, Status::SUCCESS);
        String::from_utf8(answer.value).unwrap()
    };
    assert_eq!(value(Request::new(Opcode::NOOP)), "");
    assert_eq!(value(Request::new(Opcode::VERSION)), "0.1.0");
    assert_eq!(value(Request::new(Opcode::LIST_BUCKETS)), "default");
    assert_eq!(value(Request::new(Opcode::VERBOSITY).extras(&[0; 4])), "");
    assert!(value(Request::new(Opcode::GET_ERROR_MAP).value(&[0, 9])).starts_with("{\"version\":2,"));
    assert!(value(Request::new(Opcode::GET_ERROR_MAP).value(&[0, 1])).starts_with("{\"version\":1,"));
    assert_eq!(rig.status(Request::new(Opcode::GET_ERROR_MAP).value(&[0, 0])), Status::KEY_ENOENT);
    let Answered::Closed(frames) = rig.ask(Request::new(Opcode::QUIT)) else { panic!() };
    assert_eq!(frames[0].status, Status::SUCCESS);
    assert_eq!(rig.ask(Request::new(Opcode::QUIT_Q)), Answered::Closed(Vec::new()));
}

/// Data operations §10, the manifest that always exists.
#[test]
fn the_default_collection_is_found_and_no_other() {
    let mut rig = Rig::new();
    rig.hello(&[Feature::Collections, Feature::Json, Feature::Xerror]);
    let found = CollectionFound { manifest_uid: 0, id: CollectionId::DEFAULT }.encode();
    let mut look_up = |opcode, path: &'static [u8]| {
        let in_value = rig.ask(Request::new(opcode).value(path)).one();
        let in_key = rig.ask(Request::new(opcode).key(path)).one();
        assert_eq!((in_value.status, &in_value.extras), (in_key.status, &in_key.extras));
        if in_value.status == Status::SUCCESS {
            assert_eq!(in_value.extras, found);
        } else if in_value.status != Status::EINVAL {
            assert_eq!(ErrorContext::decode(&in_value.value).manifest_uid, Some(0));
            assert_eq!(in_value.datatype, Datatype::JSON);
        }
        in_value.status
    };
    for path in [&b"_default._default"[..], b".", b"_default.", b"._default"] {
        assert_eq!(look_up(Opcode::COLLECTIONS_GET_ID, path), Status::SUCCESS);
    }
    assert_eq!(look_up(Opcode::COLLECTIONS_GET_ID, b"shop.orders"), Status::UNKNOWN_SCOPE);
    assert_eq!(look_up(Opcode::COLLECTIONS_GET_ID, b".orders"), Status::UNKNOWN_COLLECTION);
    assert_eq!(look_up(Opcode::COLLECTIONS_GET_ID, b"a.b.c"), Status::EINVAL);
    assert_eq!(look_up(Opcode::COLLECTIONS_GET_ID, b"a"), Status::EINVAL);
    assert_eq!(look_up(Opcode::COLLECTIONS_GET_SCOPE_ID, b"_default"), Status::SUCCESS);
    assert_eq!(look_up(Opcode::COLLECTIONS_GET_SCOPE_ID, b"_default.anything"), Status::SUCCESS);
    assert_eq!(look_up(Opcode::COLLECTIONS_GET_SCOPE_ID, b"shop"), Status::UNKNOWN_SCOPE);
    let manifest = json(rig.ask(Request::new(Opcode::COLLECTIONS_GET_MANIFEST)));
    assert_eq!(manifest["uid"], "0");
    assert_eq!(manifest["scopes"][0]["collections"][0]["name"], "_default");
    let unknown = rig.ask(get(b"\x08key")).one();
    assert_eq!(unknown.status, Status::UNKNOWN_COLLECTION);
    assert_eq!(unknown.value, b"{\"manifest_uid\":\"0\"}");
    rig.hello(&[]);
    let path = Request::new(Opcode::COLLECTIONS_GET_ID).value(b".orders");
    assert_eq!(rig.status(path), Status::EINVAL, "a connection without collections");
}

#[test]
fn refusals_of_the_checks_say_why_and_executions_say_nothing() {
    let mut rig = Rig::new();
    let refused = rig.ask(get(&[b'k'; 251])).one();
    assert_eq!((refused.status, refused.datatype), (Status::EINVAL, Datatype::RAW));
    assert_eq!(refused.value, b"{\"error\":{\"context\":\"Key length exceeds 250\"}}");
    rig.hello(&[Feature::Json]);
    assert_eq!(rig.ask(get(&[b'k'; 251])).one().datatype, Datatype::JSON);
    let missed = rig.ask(get(b"key")).one();
    assert_eq!((missed.status, missed.value.len(), missed.cas), (Status::KEY_ENOENT, 0, Cas(0)));
}

#[test]
fn a_copied_request_reads_as_the_original() {
    let mut rig = Rig::new();
    rig.hello(&[Feature::Collections]);
    let mut bytes = Vec::new();
    let barrier = RequestFraming { barrier: true, ..RequestFraming::default() };
    let request = Request::new(Opcode::SET).key(b"\0key").extras(&PLAIN).value(b"v").cas(Cas(7));
    request.framing(barrier).opaque(3).encode(&mut bytes).unwrap();
    let Ok(Decoded::Frame(frame)) = decode_frame(&bytes, FrameLimits::AUTHENTICATED) else { panic!() };
    let Next::Vbucket(original) = rig.session.accept(frame, 5, &mut Vec::new()) else { panic!() };
    let mut copy = Vec::new();
    original.copy(&mut copy);
    assert_eq!(copy, bytes);
    let read = Validated::reread(&copy, &rig.session.view(), 5).unwrap();
    assert_eq!((read.frame, read.framing, read.key), (original.frame, original.framing, original.key));
    assert!(Validated::reread(&copy[..20], &rig.session.view(), 5).is_none());
}

/// The statistics of one group as names and values; checks that the stream ends.
fn statistics(rig: &mut Rig, group: &str) -> Vec<(String, String)> {
    let Answered::Frames(frames) = rig.ask(Request::new(Opcode::STAT).key(group.as_bytes())) else {
        panic!()
    };
    let (last, rest) = frames.split_last().unwrap();
    assert!(last.key.is_empty() && last.value.is_empty() && last.status == Status::SUCCESS);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    rest.iter().map(|frame| (text(&frame.key), text(&frame.value))).collect()
}

fn statistic(rig: &mut Rig, group: &str, name: &str) -> String {
    let all = statistics(rig, group);
    let found = all.iter().find(|(key, _)| key == name);
    found.unwrap_or_else(|| panic!("{name} is not in {all:?}")).1.clone()
}

#[test]
fn general_statistics_count_what_was_done_until_they_are_reset() {
    let mut rig = Rig::new();
    rig.ask(set(b"a", b"1"));
    rig.ask(set(b"b", b"1").vbucket(VbId(1)));
    rig.ask(get(b"a"));
    rig.ask(get(b"none"));
    rig.ask(set(b"a", b"2").cas(Cas(1)));
    rig.sleep(5);
    for (name, value) in [
        ("curr_items", "2"),
        ("cmd_get", "2"),
        ("get_hits", "1"),
        ("get_misses", "1"),
        ("cmd_set", "2"),
        ("cas_badval", "1"),
        ("vb_active_num", "4"),
        ("threads", "1"),
        ("version", "0.1.0"),
        ("uptime", "5"),
        ("ep_max_item_size", "20971520"),
        ("uuid", "00000000000000000000000000001234"),
    ] {
        assert_eq!(statistic(&mut rig, "", name), value, "{name}");
    }
    assert_eq!(statistics(&mut rig, "reset"), []);
    assert_eq!(statistic(&mut rig, "", "cmd_get"), "0");
    assert_eq!(statistic(&mut rig, "", "curr_items"), "2");
}

#[test]
fn vbucket_statistics_are_those_of_all_or_of_one_vbucket() {
    let mut rig = Rig::new();
    rig.ask(set(b"a", b"1").vbucket(VbId(2)));
    let uuid = rig.engine.buckets()[0].vbucket(VbId(2)).unwrap().uuid().to_string();
    assert_eq!(statistic(&mut rig, "vbucket-seqno", "vb_2:high_seqno"), "1");
    assert_eq!(statistic(&mut rig, "vbucket-seqno", "vb_2:last_persisted_seqno"), "0");
    rig.sim.run_for(std::time::Duration::from_secs(1));
    assert_eq!(statistic(&mut rig, "vbucket-seqno 2", "vb_2:last_persisted_seqno"), "1");
    assert_eq!(statistic(&mut rig, "vbucket-seqno 2", "vb_2:uuid"), uuid);
    assert_eq!(statistics(&mut rig, "vbucket-seqno 2").len(), 8);
    assert_eq!(statistics(&mut rig, "vbucket-seqno").len(), 4 * 8);
    assert_eq!(statistic(&mut rig, "vbucket-details", "vb_3"), "active");
    assert_eq!(statistic(&mut rig, "vbucket-details 2", "vb_2:num_items"), "1");
    assert_eq!(statistic(&mut rig, "failovers 2", "vb_2:num_entries"), "1");
    assert_eq!(statistic(&mut rig, "failovers 2", "vb_2:0:id"), uuid);
    assert_eq!(statistic(&mut rig, "uuid", "uuid"), "00000000000000000000000000001234");
    assert_eq!(statistics(&mut rig, "range-scans"), [], "the rig has no range scans");
}

#[test]
fn statistics_that_do_not_exist_are_a_single_error() {
    let mut rig = Rig::new();
    let mut status = |group: &str| rig.status(Request::new(Opcode::STAT).key(group.as_bytes()));
    assert_eq!(status("nonsense"), Status::KEY_ENOENT);
    assert_eq!(status("vbucket-details x"), Status::EINVAL);
    assert_eq!(status("vbucket-details -1"), Status::EINVAL);
    assert_eq!(status("timings 1"), Status::EINVAL);
    assert_eq!(status("vbucket-details 4"), Status::NOT_MY_VBUCKET);
    rig.ask(Request::new(Opcode::SELECT_BUCKET).key(b"@no bucket@"));
    rig.hello(&[Feature::Xerror]);
    assert_eq!(rig.status(Request::new(Opcode::STAT).key(b"vbucket-seqno")), Status::NO_BUCKET);
    assert!(!statistics(&mut rig, "").iter().any(|(name, _)| name == "curr_items"));
}

#[test]
fn timings_are_json_and_one_line_a_bucket_for_cbstats() {
    let mut rig = Rig::new();
    rig.ask(set(b"a", b"1"));
    rig.sim.run_for(std::time::Duration::from_secs(1));
    let commits: Value = serde_json::from_str(&statistic(&mut rig, "timings", "wal_commit_ns")).unwrap();
    assert_eq!(commits["total"], 1);
    rig.ask(Request::new(Opcode::HELLO).key(b"cbstats 7"));
    let lines = statistics(&mut rig, "timings");
    assert!(lines.iter().any(|(name, _)| name == "wal_commit_ns_mean"));
    assert!(!lines.iter().any(|(_, value)| value.starts_with('{')));
}

#[test]
fn statistics_may_cross_cores() {
    fn is_send<T: Send>(_: &T) {}
    is_send(&StatPart::default());
    is_send(&Rig::new().session.view());
}
