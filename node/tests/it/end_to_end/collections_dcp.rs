//! Collections in streams, on the wire: events in their places, filters, ends, and what clients without Collections see.

use std::time::{Duration, Instant};

use ringbase::client::{Bucket, Connection, DcpClient, DcpOptions, StoreMode};
use ringbase::protocol::dcp::vb_seqnos::{VbSeqnosRequest, decode_vb_seqnos};
use ringbase::protocol::dcp::{
    Control, DcpMessage, FilterSelection, OsoSnapshot, OutOfOrderSnapshots, ScopeId, StreamEndStatus,
    StreamFilter, StreamFlags, StreamReply, StreamRequest, SystemEventKind,
};
use ringbase::protocol::extras::StoreExtras;
use ringbase::protocol::{CollectionId, ErrorContext, Feature, Opcode, Request, Status};
use ringbase_storage::types::{Cas, Seqno, VbId};

use super::collections::{SHOP, VBUCKETS, connect, get, manifest, raw, set, with_collections};
use super::rig::{Node, PATIENCE, Place, eventually, for_each_core_count, for_each_kind, key_in, stat};

/// The vbucket that the tests look at; not on the first core.
const VB: VbId = VbId(3);

const TO_LATEST: StreamFlags = StreamFlags::TO_LATEST;

/// What a stream said, in words: `m<collection>:<key>@<seqno>` and the like.
fn told(message: &DcpMessage<'_>) -> String {
    let named = |key: &[u8]| match ringbase::protocol::leb128::decode(key) {
        Ok((id, name)) => format!("{id:x}:{}", String::from_utf8_lossy(name)),
        Err(error) => panic!("{error}"),
    };
    match message {
        DcpMessage::SnapshotMarker(marker) => format!("marker {}..{}", marker.start, marker.end),
        DcpMessage::Mutation(mutation) => format!("set {} @{}", named(mutation.key), mutation.by_seqno),
        DcpMessage::Deletion(deletion) => format!("del {} @{}", named(deletion.key), deletion.by_seqno),
        DcpMessage::SystemEvent(event) => {
            let what = match event.kind {
                SystemEventKind::CreateScope { scope, name } => format!("create scope {:x} {name}", scope.0),
                SystemEventKind::DropScope { scope } => format!("drop scope {:x}", scope.0),
                SystemEventKind::CreateCollection { scope, collection, max_ttl, name } => {
                    let ttl = max_ttl.map_or(String::new(), |seconds| format!(" ttl {seconds}"));
                    format!("create {:x}.{:x} {name}{ttl}", scope.0, collection.0)
                }
                SystemEventKind::DropCollection { scope, collection } => {
                    format!("drop {:x}.{:x}", scope.0, collection.0)
                }
            };
            format!("{what} uid {:x} @{}", event.manifest_uid, event.by_seqno)
        }
        DcpMessage::SeqnoAdvanced(seqno) => format!("advanced {seqno}"),
        DcpMessage::StreamEnd(status) => format!("end {}", status.name()),
        DcpMessage::OsoSnapshot(edge) => format!("{edge:?}"),
        other => panic!("{other:?}"),
    }
}

fn producer(node: &Node, bucket: &str, name: &str, collections: bool) -> DcpClient {
    let features: &[Feature] = if collections { &[Feature::Collections] } else { &[] };
    DcpClient::open(connect(node, bucket, features), &DcpOptions::named(name)).unwrap()
}

fn filter(selection: FilterSelection) -> StreamFilter {
    StreamFilter { selection, ..StreamFilter::default() }
}

fn collections(ids: &[u32]) -> StreamFilter {
    filter(FilterSelection::Collections(ids.iter().map(|id| CollectionId(*id)).collect()))
}

fn open(client: &mut DcpClient, flags: StreamFlags, filter: Option<&StreamFilter>) -> StreamReply {
    client.stream(VB, &StreamRequest { flags, ..StreamRequest::FROM_NOTHING }, filter).unwrap()
}

/// Takes messages until one begins with `last`. Markers are left out; what lies outside of the snapshot that was announced is an error.
fn until(client: &mut DcpClient, last: &str) -> Vec<String> {
    let (deadline, mut all, mut announced) = (Instant::now() + PATIENCE, Vec::new(), Seqno(0));
    loop {
        assert!(Instant::now() < deadline, "no {last:?} after {all:?}");
        let next = client.next_within(Duration::from_millis(100), |_, message| {
            if let DcpMessage::SnapshotMarker(marker) = message {
                announced = marker.end;
                return None;
            }
            if let DcpMessage::OsoSnapshot(OsoSnapshot::Start) = message {
                announced = Seqno(u64::MAX);
            }
            let is_advance = matches!(message, DcpMessage::SeqnoAdvanced(_));
            assert!(is_advance || message.by_seqno().is_none_or(|seqno| seqno <= announced), "{message:?}");
            Some(told(message))
        });
        let Some(Some(next)) = next.unwrap() else { continue };
        let is_last = next.starts_with(last);
        all.push(next);
        if is_last {
            return all;
        }
    }
}

/// All of a stream to the latest.
fn whole(client: &mut DcpClient, filter: Option<&StreamFilter>) -> Vec<String> {
    let reply = open(client, TO_LATEST, filter);
    assert!(matches!(reply, StreamReply::Accepted(_)), "{reply:?}");
    until(client, "end")
}

/// Two documents of the vbucket in each of these collections.
fn fill(connection: &mut Connection, ids: &[u32]) -> [String; 2] {
    let names = ["a", "b"].map(|prefix| key_in(VB, VBUCKETS, prefix));
    for name in &names {
        for id in ids {
            assert_eq!(set(connection, *id, name, b"value"), Status::SUCCESS);
        }
    }
    names
}

/// Events and documents come in the order in which they were made, to a stream that was there and to one that comes later, from memory and from
/// disk; what was dropped leaves its drop and nothing else.
#[test]
fn events_have_their_places_among_the_documents_and_dropped_documents_are_not_sent() {
    for_each_kind(|node, bucket| {
        let mut writer = with_collections(node, bucket);
        let mut early = producer(node, bucket, "early", true);
        assert!(matches!(open(&mut early, StreamFlags::NONE, None), StreamReply::Accepted(_)));
        let [a, b] = fill(&mut writer, &[0]);
        let more = r#",{"name":"brief","uid":"b","maxTTL":1000}"#;
        writer.set_manifest(manifest(0x1f, more, SHOP).as_bytes()).unwrap();
        fill(&mut writer, &[9, 0xcafe]);
        let expected = [
            format!("set 0:{a} @1"),
            format!("set 0:{b} @2"),
            "create scope 8 shop uid 1f @3".to_owned(),
            "create 8.9 orders uid 1f @4".to_owned(),
            "create 0.b brief ttl 1000 uid 1f @5".to_owned(),
            "create 8.cafe carts uid 1f @6".to_owned(),
            format!("set 9:{a} @7"),
            format!("set cafe:{a} @8"),
            format!("set 9:{b} @9"),
            format!("set cafe:{b} @10"),
        ];
        assert_eq!(until(&mut early, &expected[9]), expected);
        let mut late = producer(node, bucket, "late", true);
        assert_eq!(whole(&mut late, None)[..10], expected);

        let without = SHOP.replace(r#"{"name":"orders","uid":"9"},"#, "");
        writer.set_manifest(manifest(0x20, more, &without).as_bytes()).unwrap();
        assert_eq!(until(&mut early, "drop"), ["drop 8.9 uid 20 @11"]);
        let rest: Vec<&str> = [0, 1, 2, 4, 5, 7, 9].map(|index| &expected[index][..]).to_vec();
        let after = [&rest[..], &["drop 8.9 uid 20 @11", "end Ok"]].concat();
        assert_eq!(whole(&mut late, None), after);
        // A client without Collections sees the default collection, and is not promised a seqno that never comes.
        let mut plain = producer(node, bucket, "plain", false);
        assert!(matches!(open(&mut plain, TO_LATEST, None), StreamReply::Accepted(_)));
        let (mut seen, mut marker_end, mut has_ended) = (Vec::new(), Seqno(0), false);
        while !has_ended {
            plain
                .next_within(PATIENCE, |_, message| match message {
                    DcpMessage::SnapshotMarker(marker) => marker_end = marker.end,
                    DcpMessage::Mutation(mutation) => {
                        seen.push((String::from_utf8_lossy(mutation.key).into_owned(), mutation.by_seqno));
                    }
                    DcpMessage::StreamEnd(status) => {
                        assert_eq!(*status, StreamEndStatus::Ok);
                        has_ended = true;
                    }
                    other => panic!("{other:?}"),
                })
                .unwrap();
        }
        assert_eq!((seen, marker_end), (vec![(a, Seqno(1)), (b, Seqno(2))], Seqno(2)));

        writer.set_manifest(manifest(0x21, "", "").as_bytes()).unwrap();
        let dropped = until(&mut early, "drop scope");
        assert_eq!(dropped, ["drop 0.b uid 21 @12", "drop 8.cafe uid 21 @13", "drop scope 8 uid 21 @14"]);
    });
}

/// DCP §8: the past of a collection comes in key order to a client that allows it, where the bucket says so and keeps keys in order; to others by seqno.
#[test]
fn a_collection_comes_in_key_order_to_a_client_that_allows_it() {
    for_each_kind(|node, bucket| {
        let mut writer = with_collections(node, bucket);
        writer.set_manifest(manifest(1, "", SHOP).as_bytes()).unwrap();
        let [a, b] = fill(&mut writer, &[0, 9]);
        assert_eq!(set(&mut writer, 9, &a, b"newer"), Status::SUCCESS);
        assert_eq!(set(&mut writer, 0, &b, b"newer"), Status::SUCCESS);
        let until_durable =
            Request::new(Opcode::SEQNO_PERSISTENCE).vbucket(VB).extras(&[0, 0, 0, 0, 0, 0, 0, 9]);
        if bucket == "default" {
            writer.call(until_durable, |_| ()).unwrap();
        }
        let [first, second] = if a < b { [(&a, 8), (&b, 7)] } else { [(&b, 7), (&a, 8)] };
        let line = |(name, seqno): (&String, u64)| format!("set 9:{name} @{seqno}");
        let event = "create 8.9 orders uid 1 @2".to_owned();
        let advance = || "advanced 9".to_owned();
        let by_seqno = [event.clone(), line((&b, 7)), line((&a, 8)), advance(), "end Ok".to_owned()];
        let documents = [event, line(first), line(second), advance()];
        let by_key =
            [&["Start".to_owned()], &documents[..], &["End".to_owned(), "end Ok".to_owned()]].concat();
        let ask = |name: &str, allows: OutOfOrderSnapshots| {
            let mut client = producer(node, bucket, name, true);
            client.control(&Control::EnableOutOfOrderSnapshots(allows)).unwrap();
            let reply = open(&mut client, StreamFlags::DISK_ONLY, Some(&collections(&[9])));
            assert!(matches!(reply, StreamReply::Accepted(_)), "{reply:?}");
            until(&mut client, "end")
        };
        let (on, off) = (OutOfOrderSnapshots::OnWithSeqnoAdvanced, OutOfOrderSnapshots::Off);
        writer.set_param("dcp_oso_backfill", "enabled").unwrap();
        let expected = if bucket == "default" { &by_key[..] } else { &by_seqno[..] };
        assert_eq!(ask("allows", on), expected);
        assert_eq!(ask("does not", off), by_seqno);
        writer.set_param("dcp_oso_backfill", "disabled").unwrap();
        assert_eq!(ask("allows", on), by_seqno);
        assert_eq!(stat(&mut writer, "", "ep_dcp_oso_backfill").as_deref(), Some("disabled"));
        assert!(writer.set_param("dcp_oso_backfill", "sometimes").is_err());
    });
}

#[test]
fn a_filter_passes_its_collections_and_ends_with_the_last_of_them() {
    for_each_kind(|node, bucket| {
        let mut writer = with_collections(node, bucket);
        writer.set_manifest(manifest(1, "", SHOP).as_bytes()).unwrap();
        let [a, b] = fill(&mut writer, &[0, 9, 0xcafe]);
        let mut client = producer(node, bucket, "filtered", true);
        let orders =
            ["create 8.9 orders uid 1 @2".to_owned(), format!("set 9:{a} @5"), format!("set 9:{b} @8")];
        let expected = [&orders[..], &["advanced 9".to_owned(), "end Ok".to_owned()]].concat();
        assert_eq!(whole(&mut client, Some(&collections(&[9]))), expected);
        let default =
            [format!("set 0:{a} @4"), format!("set 0:{b} @7"), "advanced 9".into(), "end Ok".into()];
        assert_eq!(whole(&mut client, Some(&collections(&[0]))), default);
        let scope = filter(FilterSelection::Scope(ScopeId(8)));
        let shop = whole(&mut client, Some(&scope));
        assert_eq!(shop.iter().filter(|line| line.starts_with("create")).count(), 3, "{shop:?}");
        assert_eq!(shop.iter().filter(|line| line.starts_with("set")).count(), 4, "{shop:?}");

        // A stream of the scope gets what the scope gets; one of a collection ends with it.
        let mut of_scope = producer(node, bucket, "scope", true);
        assert!(matches!(open(&mut of_scope, StreamFlags::NONE, Some(&scope)), StreamReply::Accepted(_)));
        until(&mut of_scope, &format!("set cafe:{b}"));
        assert!(matches!(
            open(&mut client, StreamFlags::NONE, Some(&collections(&[9]))),
            StreamReply::Accepted(_)
        ));
        assert_eq!(until(&mut client, &orders[2]), orders);
        let shop = SHOP.replace(r#"{"name":"orders","uid":"9"}"#, r#"{"name":"new","uid":"a"}"#);
        writer.set_manifest(manifest(2, "", &shop).as_bytes()).unwrap();
        fill(&mut writer, &[0xa]);
        let ended = until(&mut client, "end");
        assert_eq!(
            ended[ended.len() - 2..],
            ["drop 8.9 uid 2 @10", "end FilterEmpty"].map(str::to_owned),
            "{ended:?}"
        );
        let told = until(&mut of_scope, &format!("set a:{b}"));
        let told: Vec<&String> = told.iter().filter(|line| !line.starts_with("advanced")).collect();
        let second = format!("set a:{b} @13");
        assert_eq!(
            told,
            ["drop 8.9 uid 2 @10", "create 8.a new uid 2 @11", &format!("set a:{a} @12"), &second]
        );
        writer.set_manifest(manifest(3, "", "").as_bytes()).unwrap();
        let ended = until(&mut of_scope, "end");
        assert_eq!(ended.last().unwrap(), "end FilterEmpty", "the scope is gone");
    });
}

#[test]
fn a_stream_of_what_is_not_there_is_refused_with_the_manifest() {
    for_each_kind(|node, bucket| {
        let mut admin = with_collections(node, bucket);
        admin.set_manifest(manifest(0x2a, "", SHOP).as_bytes()).unwrap();
        let mut raw = raw(node, bucket);
        let open = Request::new(Opcode::DCP_OPEN).key(b"refused").extras(&[0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(raw.ask(open).status, Status::SUCCESS);
        let noop = Request::new(Opcode::DCP_CONTROL).key(b"enable_noop").value(b"true");
        assert_eq!(raw.ask(noop).status, Status::SUCCESS);
        for (asked, expected) in [
            (collections(&[9, 0x77]), Status::UNKNOWN_COLLECTION),
            (filter(FilterSelection::Scope(ScopeId(9))), Status::UNKNOWN_SCOPE),
        ] {
            let (extras, value) = (StreamRequest::FROM_NOTHING.extras(), asked.encode());
            let request = Request::new(Opcode::DCP_STREAM_REQ).vbucket(VB).extras(&extras).value(&value);
            let answer = raw.ask(request);
            let uid = ErrorContext::decode(&answer.value).manifest_uid;
            assert_eq!((answer.status, uid), (expected, Some(0x2a)));
        }
    });
}

/// Events survive a kill and are backfilled; a vbucket's events are not made twice.
#[test]
fn events_are_there_once_after_a_kill() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut writer = with_collections(&node, "default");
        writer.set_manifest(manifest(1, "", SHOP).as_bytes()).unwrap();
        fill(&mut writer, &[0, 9]);
        writer
            .set_manifest(manifest(2, "", &SHOP.replace(r#",{"name":"carts","uid":"cafe"}"#, "")).as_bytes())
            .unwrap();
        let before = whole(&mut producer(&node, "default", "before", true), None);
        assert_eq!(
            before.iter().filter(|line| line.starts_with("drop 8.cafe uid 2")).count(),
            1,
            "{before:?}"
        );
        eventually("everything is durable", || {
            let of = |connection: &mut Connection, name: &str| {
                stat(connection, "vbucket-seqno", &format!("vb_{VB}:{name}"))
            };
            of(&mut writer, "high_seqno") == of(&mut writer, "last_persisted_seqno")
        });
        node.kill();
        let node = Node::start(&place.data(), &setup);
        assert_eq!(whole(&mut producer(&node, "default", "after", true), None), before);
    });
}

/// DCP §13: with an id the seqno of its collection, without Collections that of the default one, else the vbucket's.
#[test]
fn seqnos_are_those_of_what_is_asked_for() {
    for_each_kind(|node, bucket| {
        let mut writer = with_collections(node, bucket);
        writer.set_manifest(manifest(1, "", SHOP).as_bytes()).unwrap();
        fill(&mut writer, &[0, 9]);
        let mut plain = connect(node, bucket, &[]);
        let of = |connection: &mut Connection, collection: Option<u32>| -> Option<u64> {
            let asked = VbSeqnosRequest { state: None, collection: collection.map(CollectionId) };
            let extras = asked.extras();
            let request = Request::new(Opcode::GET_ALL_VB_SEQNOS).extras(&extras);
            let seqnos = connection.call(request, |frame| {
                decode_vb_seqnos(frame.value).unwrap().find(|(vb, _)| *vb == VB).map(|(_, seqno)| seqno.0)
            });
            seqnos.unwrap()
        };
        assert_eq!(of(&mut writer, None), Some(7));
        assert_eq!(of(&mut writer, Some(9)), Some(7));
        assert_eq!(of(&mut writer, Some(0)), Some(6));
        assert_eq!(of(&mut writer, Some(0xcafe)), Some(3), "the event that created it");
        assert_eq!(of(&mut plain, None), Some(6));
        let name = key_in(VB, VBUCKETS, "a");
        assert_eq!(get(&mut writer, 9, &name).unwrap(), b"value");
        let mut default = Bucket::new(&mut plain).unwrap();
        let flags = StoreExtras { flags: 0, expiry: 0 };
        default.store(StoreMode::Set, name.as_bytes(), b"again", flags, Cas(0)).unwrap();
        assert_eq!(of(&mut plain, None), Some(8));
    });
}
