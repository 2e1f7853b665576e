//! What a node says about its DCP connections and streams over TCP, and how it keeps them apart.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringbase::client::{Connection, DcpClient, DcpOptions};
use ringbase::protocol::dcp::{
    Control, DcpMessage, MarkerFlags, StreamEndStatus, StreamFlags, StreamReply, StreamRequest,
};
use ringbase::protocol::{Opcode, Request, Status};
use ringbase_storage::types::{Seqno, VbId};

use super::rig::{Node, PATIENCE, Place, eventually, for_each_core_count, for_each_kind, store_when_taken};

const VBUCKETS: u16 = 16;
const TO_LATEST: StreamRequest =
    StreamRequest { flags: StreamFlags::TO_LATEST, ..StreamRequest::FROM_NOTHING };

fn fill(node: &Node, bucket: &str, count: usize, value_bytes: usize) {
    let mut connection = node.connect_to(bucket);
    for number in 0..count {
        let key = format!("key-{number}");
        store_when_taken(&mut connection, &key, &vec![number as u8; value_bytes]);
    }
}

fn client(node: &Node, bucket: &str, options: &DcpOptions) -> DcpClient {
    DcpClient::open(node.connect_to(bucket), options).unwrap()
}

fn stream_all(client: &mut DcpClient, request: &StreamRequest) {
    for vb in (0..VBUCKETS).map(VbId) {
        let reply = client.stream(vb, request, None).unwrap();
        assert!(matches!(reply, StreamReply::Accepted(_)), "{vb}: {reply:?}");
    }
}

type Stats = BTreeMap<String, String>;

fn stats(connection: &mut Connection, group: &str) -> Stats {
    let mut found = Stats::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    connection.stats(group, |name, value| assert_eq!(found.insert(text(name), text(value)), None)).unwrap();
    found
}

fn number(stats: &Stats, name: &str) -> u64 {
    stats.get(name).unwrap_or_else(|| panic!("{name} in {stats:#?}")).parse().unwrap()
}

const SPENT: [&str; 10] =
    ["running", "turn", "slot", "open", "credit", "window", "socket", "memory", "device", "up_to_date"];

/// What the streams of a connection spent their time on, in parts of their wall time; each adds up to at least 95 % of it.
fn shares(stats: &Stats, name: &str) -> BTreeMap<&'static str, f64> {
    let mut shares = BTreeMap::new();
    for vb in 0..VBUCKETS {
        let prefix = format!("eq_dcpq:{name}:stream_{vb}_");
        let wall = number(stats, &format!("{prefix}wall_ns"));
        let spent = SPENT.map(|what| number(stats, &format!("{prefix}spent_{what}_ns")));
        let sum: u64 = spent.iter().sum();
        assert!(sum >= wall / 100 * 95 && sum <= wall, "{sum} of {wall} ns: {spent:?}");
        for (what, ns) in SPENT.into_iter().zip(spent) {
            *shares.entry(what).or_default() += ns as f64 / wall as f64 / f64::from(VBUCKETS);
        }
    }
    shares
}

/// DESIGN 7, `stats` §7: who waits for what. A client that takes everything has streams that are up to date, one that takes nothing has streams that
/// wait for its window; every stream's time adds up.
#[test]
fn statistics_tell_what_each_stream_waits_for_and_the_times_add_up() {
    for_each_kind(|node, bucket| {
        fill(node, bucket, 1_000, 10_000);
        let slow_options =
            DcpOptions { window_bytes: 20_000, acknowledges: false, ..DcpOptions::named("group:slow") };
        let mut slow = client(node, bucket, &slow_options);
        stream_all(&mut slow, &StreamRequest::FROM_NOTHING);
        let mut fast = client(node, bucket, &DcpOptions::named("group:fast"));
        stream_all(&mut fast, &StreamRequest::FROM_NOTHING);
        let began = Instant::now();
        let mut received = 0;
        while received < 1_000 {
            assert!(began.elapsed() < PATIENCE);
            let is_document = |message: &DcpMessage<'_>| matches!(message, DcpMessage::Mutation(_));
            let taken = fast.next_within(PATIENCE, |_, message| is_document(message)).unwrap();
            received += u32::from(taken == Some(true));
        }
        fast.acknowledge().unwrap();
        // Long against what came before, so that the present decides.
        std::thread::sleep(began.elapsed() * 3 + Duration::from_millis(300));
        let mut admin = node.connect_to(bucket);
        let all = stats(&mut admin, "dcp");

        let shares_of = |name| shares(&all, name);
        let (fast_shares, slow_shares) = (shares_of("group:fast"), shares_of("group:slow"));
        println!("fast {fast_shares:?}\nslow {slow_shares:?}");
        assert!(fast_shares["up_to_date"] > 0.5);
        assert!(slow_shares["window"] + slow_shares["credit"] > 0.5 && slow_shares["window"] > 0.4);
        let of = |name: &str, field: &str| all[&format!("eq_dcpq:{name}:{field}")].clone();
        assert_eq!(of("group:slow", "paused_current_reason"), "BufferLogFull");
        assert_eq!(of("group:fast", "paused_current_reason"), "ReadyListEmpty");
        assert_eq!(
            (of("group:fast", "items_sent"), of("group:fast", "items_remaining")),
            ("1000".into(), "0".into())
        );
        assert_eq!(
            (of("group:slow", "max_buffer_bytes"), of("group:fast", "num_streams")),
            ("20000".into(), "16".into())
        );
        assert!(of("group:slow", "unacked_bytes").parse::<u64>().unwrap() >= 20_000);
        assert!(of("group:slow", "items_remaining").parse::<u64>().unwrap() > 0);
        assert!(of("group:slow", "stream_3_waits_for") != "up_to_date");
        assert_eq!(of("group:fast", "stream_3_waits_for"), "up_to_date");
        assert_eq!(
            of("group:fast", "stream_3_last_sent_seqno"),
            of("group:fast", "stream_3_last_read_seqno")
        );
        assert_eq!(of("group:fast", "stream_3_state"), "in-memory");
        assert_eq!((number(&all, "ep_dcp_count"), number(&all, "ep_dcp_producer_count")), (2, 2));

        let aggregated = stats(&mut admin, "dcpagg");
        assert_eq!(
            (aggregated["group:count"].as_str(), aggregated[":total:activestream_count"].as_str()),
            ("2", "32")
        );
        assert!(number(&aggregated, "group:items_sent") >= 1_000);
        let one_by_one = stats(&mut admin, "dcpagg ->");
        assert_eq!(
            (one_by_one["group:fast:count"].as_str(), one_by_one["group:slow:producer_count"].as_str()),
            ("1", "1")
        );

        let timings = stats(&mut admin, "timings");
        for what in SPENT.into_iter().filter(|what| !["slot", "memory"].contains(what)) {
            let histogram: serde_json::Value =
                serde_json::from_str(&timings[&format!("dcp_{what}_ns")]).unwrap();
            // Waits that are not over are not in it.
            let is_under_way = ["window", "socket", "open", "device", "up_to_date"].contains(&what);
            assert!(is_under_way || histogram["total"].as_u64().unwrap() > 0, "{what}");
        }
        let json = |value: &'static [u8]| {
            let mut names = Vec::new();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let mut put = |name: &[u8], value: &[u8]| names.push((text(name), text(value)));
            node.connect_to(bucket).stats_with(b"dcp", value, &mut put).unwrap();
            names
        };
        let objects = json(br#"{"stream_format":"json"}"#);
        let stream = objects.iter().find(|(name, _)| name == "eq_dcpq:group:fast:stream_3").unwrap();
        let stream: serde_json::Value = serde_json::from_str(&stream.1).unwrap();
        assert_eq!((stream["state"].as_str(), stream["start_seqno"].as_u64()), (Some("in-memory"), Some(0)));
        assert!(json(br#"{"stream_format":"skip"}"#).iter().all(|(name, _)| !name.contains("stream_3")));
        let port = node.address.rsplit_once(':').unwrap().1;
        for (filter, is_shown) in [
            (format!(r#"{{"port":{port},"user":"local"}}"#), true),
            (r#"{"port":1}"#.to_owned(), false),
            (r#"{"user":"anna"}"#.to_owned(), false),
        ] {
            let value: &'static [u8] = Vec::leak(format!(r#"{{"filter":{filter}}}"#).into_bytes());
            let has = |part: &str| json(value).iter().any(|(name, _)| name.contains(part));
            assert_eq!(
                (has("group:slow:type"), has("group:slow:stream_3_")),
                (is_shown, is_shown),
                "{filter}"
            );
        }
        let takeover = |name: &str| stats(&mut node.connect_to(bucket), &format!("dcp-vbtakeover 3 {name}"));
        let (done, undone, nobody) = (takeover("group:fast"), takeover("group:slow"), takeover("nobody"));
        assert_eq!((done["name"].as_str(), done["status"].as_str()), ("group:fast", "in-memory"));
        assert_eq!((number(&done, "estimate"), number(&done, "on_disk_deletes")), (0, 0));
        assert!(number(&undone, "estimate") <= number(&undone, "vb_items"));
        assert_eq!(nobody["status"], "connection_does_not_exist");
        assert_eq!(number(&nobody, "estimate"), number(&nobody, "vb_items"));
        for (arguments, status) in [("3", Status::EINVAL), ("99 x", Status::NOT_MY_VBUCKET)] {
            let key = format!("dcp-vbtakeover {arguments}");
            let refused = admin.call(Request::new(Opcode::STAT).key(key.as_bytes()), |_| ());
            assert_eq!(refused.unwrap_err().status(), Some(status), "{key}");
        }
        for value in [&b"x"[..], br#"{"stream_format":"xml"}"#, br#"{"filter":{"host":"x"}}"#] {
            let refused = admin.call(Request::new(Opcode::STAT).key(b"dcp").value(value), |_| ());
            assert_eq!(refused.unwrap_err().status(), Some(Status::EINVAL));
        }
        drop((slow, fast));
        eventually("they are gone", || !stats(&mut admin, "dcp").contains_key("ep_dcp_count"));
    });
}

/// A backfill is shown while it reads: from where, how far, for whom. What the ring had to do again for it is counted, no more (T3.18).
#[test]
fn backfills_are_shown_while_they_read() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        fill(&node, "default", 2_000, 10_000);
        assert!(node.stop().success());
        let node = Node::start(&place.data(), &setup);
        let options = DcpOptions { window_bytes: 20_000, acknowledges: false, ..DcpOptions::named("reads") };
        let mut slow = client(&node, "default", &options);
        stream_all(&mut slow, &TO_LATEST);
        let mut admin = node.connect();
        eventually("pieces are made", || number(&stats(&mut admin, "dcp"), "ep_dcp_backfill_disk") > 50);
        let backfills = stats(&mut admin, "backfills");
        assert_eq!(
            number(&backfills, "backfill_num_active") + number(&backfills, "backfill_num_pending"),
            16
        );
        let of_three = stats(&mut admin, "backfills 3");
        let fields: Stats = of_three
            .iter()
            .filter_map(|(name, value)| {
                let (_, field) = name.strip_prefix("vb_3:backfill_")?.split_once('_')?;
                Some((field.to_owned(), value.clone()))
            })
            .collect();
        assert_eq!((fields["connection"].as_str(), fields["state"].as_str()), ("reads", "backfilling"));
        assert!(number(&fields, "items_remaining") > 0);
        // Its range, how far it is, how fast: of one whose view is open.
        let progress: Vec<(&String, &String)> =
            backfills.iter().filter(|(name, _)| name.ends_with("_backfill_percent")).collect();
        assert!(progress.len() >= 8, "{backfills:#?}");
        for (name, percent) in progress {
            let of = |field: &str| number(&backfills, &name.replace("backfill_percent", field));
            assert!((0.0..=100.0).contains(&percent.parse::<f64>().unwrap()));
            assert!(of("backfill_start_seqno") == 1 && of("backfill_end_seqno") > 50);
            assert!(of("backfill_items_sent") <= of("backfill_items_read"));
            assert_eq!(of("backfill_seqno"), of("last_read_seqno"));
        }
        assert!(!of_three.keys().any(|name| name.starts_with("vb_4:")));
        let dcp = stats(&mut admin, "dcp");
        assert_eq!(number(&dcp, "eq_dcpq:reads:backfill_num_active"), 16);
        assert_eq!(number(&dcp, "ep_dcp_num_running_backfills"), 16);
        // One that may open its view may still be waiting for the disk, or for pieces: those that came first may hold two each, for good.
        eventually("views are opened", || number(&stats(&mut admin, ""), "dcp_backfills") >= 8);
        let general = stats(&mut admin, "");
        assert_eq!((number(&general, "ring_overflows"), number(&general, "ep_data_read_failed")), (0, 0));
        let done_again = number(&general, "ring_retries") + number(&general, "ring_enter_retries");
        assert!(done_again < number(&general, "ring_enters"), "{general:#?}");
        drop(slow);
        eventually("they end", || number(&stats(&mut admin, "backfills"), "backfill_num_active") == 0);
    });
}

/// A stream that was closed may be asked for again at once, though its end still waits for the window.
#[test]
fn a_closed_stream_may_be_asked_for_again_while_the_window_is_full() {
    for_each_kind(|node, bucket| {
        fill(node, bucket, 200, 1_000);
        let options = DcpOptions { window_bytes: 2_000, acknowledges: false, ..DcpOptions::named("again") };
        let mut client = client(node, bucket, &options);
        client.control(&Control::SendStreamEndOnClientCloseStream).unwrap();
        let vb = VbId(3);
        assert!(matches!(client.stream(vb, &TO_LATEST, None).unwrap(), StreamReply::Accepted(_)));
        while client.unacknowledged_bytes() < 2_000 {
            client.next_within(PATIENCE, |_, _| ()).unwrap().expect("a window full");
        }
        for _ in 0..3 {
            client.close_stream(vb).unwrap();
            let reply = client.stream(vb, &TO_LATEST, None).unwrap();
            assert!(matches!(reply, StreamReply::Accepted(_)), "{reply:?}");
        }
        let (mut ends, mut last) = (Vec::new(), Seqno(0));
        while ends.last() != Some(&StreamEndStatus::Ok) {
            client.acknowledge().unwrap();
            client
                .next_within(PATIENCE, |_, message| match message {
                    DcpMessage::StreamEnd(status) => {
                        ends.push(*status);
                        last = Seqno(0);
                    }
                    DcpMessage::Mutation(mutation) => {
                        assert!(mutation.by_seqno > last, "{} after {last}", mutation.by_seqno);
                        last = mutation.by_seqno;
                    }
                    _ => {}
                })
                .unwrap()
                .expect("a message");
        }
        let closed = StreamEndStatus::Closed;
        assert_eq!(ends, [closed, closed, closed, StreamEndStatus::Ok]);
    });
}

/// T2.7, T2.8: no history is kept, and a client that asks for it with `change_streams` is told NOT_SUPPORTED; what it may do then is what any client
/// may. So a backfill is one snapshot with one marker, without the history flags; there is no prologue that could be empty, and no second
/// marker that could register anything again. A vbucket without documents gets none.
#[test]
fn history_is_refused_and_a_backfill_has_one_marker() {
    for_each_kind(|node, bucket| {
        let mut connection = node.connect_to(bucket);
        // Two versions of each: with a history the client would see both.
        for number in 0..100 {
            for value in [b"first", b"other"] {
                store_when_taken(&mut connection, &format!("key-{number}"), value);
            }
        }
        let mut client = client(node, bucket, &DcpOptions::named("history"));
        for _ in 0..2 {
            let refused = client.control(&Control::ChangeStreams).unwrap_err();
            assert_eq!(refused.status(), Some(Status::NOT_SUPPORTED), "{refused}");
        }
        assert_eq!(stats(&mut connection, "dcp")["eq_dcpq:history:change_streams_enabled"], "false");
        stream_all(&mut client, &TO_LATEST);
        let (mut markers, mut documents, mut ended) = (BTreeMap::new(), 0, 0);
        let began = Instant::now();
        while ended < VBUCKETS {
            assert!(began.elapsed() < PATIENCE, "{markers:?}");
            client
                .next_within(PATIENCE, |envelope, message| match message {
                    DcpMessage::SnapshotMarker(marker) => {
                        let history = MarkerFlags::HISTORY.0 | MarkerFlags::MAY_CONTAIN_DUPLICATE_KEYS.0;
                        assert_eq!(marker.flags.0 & history, 0, "{marker:?}");
                        *markers.entry(envelope.vbucket).or_insert(0) += 1;
                    }
                    DcpMessage::Mutation(mutation) => {
                        assert_eq!(mutation.value, b"other");
                        documents += 1;
                    }
                    DcpMessage::StreamEnd(status) => {
                        assert_eq!(*status, StreamEndStatus::Ok);
                        ended += 1;
                    }
                    other => panic!("{other:?}"),
                })
                .unwrap();
        }
        assert_eq!(documents, 100);
        assert!(!markers.is_empty() && markers.values().all(|count| *count == 1), "{markers:?}");
    });
}
