//! DCP over TCP: streams of buckets on disk and in memory, what they promise, and what refuses them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ringbase::client::{Bucket, ClientError, ConnectOptions, Connection, DcpClient, DcpOptions};
use ringbase::protocol::dcp::{
    Control, DcpMessage, MarkerFlags, OpenFlags, StreamEndStatus, StreamFlags, StreamReply, StreamRequest,
};
use ringbase::protocol::{Feature, Opcode, Request, Status, vbucket_of};
use ringbase_storage::types::{Seqno, VbId, VbUuid};

use super::consumer::{Consumer, Documents, VBUCKETS, delete};
use super::rig::{
    Node, PATIENCE, Place, Setup, eventually, for_each_core_count, for_each_kind, patch, store_when_taken,
};

/// Sets, overwrites and deletes; returns what is left.
fn fill(connection: &mut Connection, count: u32, model: &mut Documents) {
    for number in 0..count {
        let (key, value) = (format!("key-{number:05}"), vec![number as u8; 100]);
        store_when_taken(connection, &key, &value);
        model.insert(key.into_bytes(), value);
    }
    for number in (0..count).step_by(3) {
        let key = format!("key-{number:05}");
        if number % 2 == 0 {
            store_when_taken(connection, &key, b"again");
            model.insert(key.into_bytes(), b"again".to_vec());
        } else {
            delete(connection, &key);
            model.remove(key.as_bytes());
        }
    }
}

/// The copy of a finished stream equals the bucket; a stream goes on where another stopped, in the middle of a snapshot too.
#[test]
fn streams_to_the_latest_have_every_key_once_and_resume_where_they_stopped() {
    for_each_kind(|node, bucket| {
        let mut writer = node.connect_to(bucket);
        let mut model = Documents::new();
        fill(&mut writer, 1_500, &mut model);
        let mut consumer = Consumer::open(node, bucket, &DcpOptions::named("whole"));
        consumer.stream_all(StreamFlags::TO_LATEST);
        consumer.until_ended();
        assert!(consumer.documents() == model);
        assert!(consumer.copies.values().all(|copy| copy.end == Some(StreamEndStatus::Ok)));
        assert!(consumer.copies.values().all(|copy| copy.seqno == copy.snapshot.1), "the whole snapshot");
        let received = consumer.messages;

        // Another one stops at half, on the way to it the node writes on.
        let mut resumed = Consumer::open(node, bucket, &DcpOptions::named("resumed"));
        let halves: BTreeMap<VbId, Seqno> =
            consumer.copies.iter().map(|(vb, copy)| (*vb, Seqno(copy.seqno.0 / 2))).collect();
        for (vb, half) in &halves {
            let reply = resumed.stream(*vb, StreamFlags::NONE, *half);
            assert!(matches!(reply, StreamReply::Accepted(_)), "{reply:?}");
        }
        resumed.until_ended();
        assert!(resumed.copies.iter().all(|(vb, copy)| copy.seqno <= halves[vb]));
        assert!(resumed.copies.values().any(|copy| copy.seqno < copy.snapshot.1), "in the middle of one");
        store_when_taken(&mut writer, "late", b"value");
        model.insert(b"late".to_vec(), b"value".to_vec());
        resumed.stream_all(StreamFlags::TO_LATEST);
        resumed.until_ended();
        assert!(resumed.documents() == model);
        assert!(received >= model.len() as u64);

        // Nothing is new: the stream ends at once.
        resumed.stream_all(StreamFlags::TO_LATEST);
        resumed.until_ended();
    });
}

/// A stream without an end brings what is written while it is open, from memory.
#[test]
fn an_open_stream_follows_what_is_written() {
    for_each_kind(|node, bucket| {
        let mut writer = node.connect_to(bucket);
        let mut model = Documents::new();
        let mut consumer = Consumer::open(node, bucket, &DcpOptions::named("live"));
        consumer.stream_all(StreamFlags::NONE);
        fill(&mut writer, 300, &mut model);
        let deadline = Instant::now() + PATIENCE;
        while consumer.documents() != model {
            assert!(Instant::now() < deadline);
            consumer.step(Duration::from_millis(100)).unwrap();
        }
        assert!(!consumer.step(Duration::from_millis(50)).unwrap(), "nothing more");
        let memory = MarkerFlags::MEMORY.0;
        let markers = consumer.markers();
        assert_eq!(markers, BTreeSet::from([memory, memory | MarkerFlags::CHECKPOINT.0]));

        // A closed stream says nothing more; one with the control says that it ended.
        let vb = vbucket_of(b"after", VBUCKETS);
        consumer.client.close_stream(vb).unwrap();
        let refused = consumer.client.close_stream(vb).unwrap_err();
        assert_eq!(refused.status(), Some(Status::KEY_ENOENT));
        store_when_taken(&mut writer, "after", b"value");
        assert!(!consumer.step(Duration::from_millis(200)).unwrap());
        consumer.client.control(&Control::SendStreamEndOnClientCloseStream).unwrap();
        let other = VbId((vb.0 + 1) % VBUCKETS);
        consumer.client.close_stream(other).unwrap();
        consumer.until("its end", |copies| copies[&other].end == Some(StreamEndStatus::Closed));
        // It goes on where it was.
        assert!(matches!(
            consumer.stream(vb, StreamFlags::NONE, StreamRequest::NO_END),
            StreamReply::Accepted(_)
        ));
        consumer.until("the document", |copies| copies[&vb].documents.contains_key(&b"after"[..]));
    });
}

/// A client that gives nothing back gets its window and less than one message more; noops and answers go on.
#[test]
fn a_client_that_gives_nothing_back_gets_its_window_and_one_message_at_most() {
    const WINDOW: u32 = 20_000;
    const VALUE_BYTES: usize = 1_000;
    for_each_kind(|node, bucket| {
        let mut writer = node.connect_to(bucket);
        (0..400)
            .for_each(|number| store_when_taken(&mut writer, &format!("key-{number}"), &[7; VALUE_BYTES]));
        let options = DcpOptions {
            window_bytes: WINDOW,
            acknowledges: false,
            noop_interval: Some(Duration::from_millis(100)),
            ..DcpOptions::named("stalled")
        };
        let mut consumer = Consumer::open(node, bucket, &options);
        consumer.stream_all(StreamFlags::TO_LATEST);
        let mut total = 0;
        loop {
            while consumer.step(Duration::from_millis(300)).unwrap() {}
            let received = consumer.client.unacknowledged_bytes();
            total += u64::from(received);
            let is_over = consumer.copies.values().all(|copy| !copy.is_open);
            if is_over {
                break;
            }
            let noops = consumer.client.noops();
            assert!(received >= WINDOW && received < WINDOW + VALUE_BYTES as u32 + 100, "{received}");
            // Still there: noops come, requests are answered.
            assert!(!consumer.step(Duration::from_millis(300)).unwrap());
            assert!(consumer.client.noops() > noops);
            consumer.client.call(Request::new(Opcode::DCP_NOOP), |_| ()).unwrap();
            consumer.client.acknowledge().unwrap();
        }
        assert!(total > 400 * VALUE_BYTES as u64);
        assert_eq!(consumer.documents().len(), 400);
    });
}

#[test]
fn a_history_that_the_node_does_not_have_is_rolled_back() {
    for_each_kind(|node, bucket| {
        let mut writer = node.connect_to(bucket);
        let vb = vbucket_of(b"key", VBUCKETS);
        (0..10_u8).for_each(|number| store_when_taken(&mut writer, "key", &[number]));
        let mut consumer = Consumer::open(node, bucket, &DcpOptions::named("rolled"));
        consumer.stream(vb, StreamFlags::TO_LATEST, StreamRequest::NO_END);
        consumer.until_ended();
        let whole = consumer.copies[&vb].clone();
        assert_eq!(whole.documents[&b"key"[..]].1, Some(vec![9]));
        let mut ask = |change: &dyn Fn(&mut StreamRequest)| {
            let mut request = whole.request(StreamFlags::NONE, StreamRequest::NO_END);
            change(&mut request);
            consumer.client.stream(vb, &request, None).unwrap()
        };
        assert_eq!(ask(&|request| request.uuid = VbUuid(1)), StreamReply::Rollback(Seqno(0)));
        let ahead = Seqno(whole.seqno.0 + 5);
        let all_ahead = |request: &mut StreamRequest| {
            (request.start, request.snap_start, request.snap_end) = (ahead, ahead, ahead);
        };
        assert_eq!(ask(&all_ahead), StreamReply::Rollback(whole.seqno));
        let erange = StreamReply::Refused(Status::ERANGE);
        assert_eq!(ask(&|request| request.end = Seqno(request.start.0 - 1)), erange);
        assert_eq!(ask(&|request| request.snap_start = ahead), erange);
        let strict = |request: &mut StreamRequest| {
            *request = StreamRequest {
                flags: StreamFlags::STRICT_VB_UUID,
                uuid: VbUuid(1),
                ..StreamRequest::FROM_NOTHING
            };
        };
        assert_eq!(ask(&strict), StreamReply::Rollback(Seqno(0)));
        let take_over = |request: &mut StreamRequest| request.flags = StreamFlags::TAKE_OVER;
        assert_eq!(ask(&take_over), StreamReply::Refused(Status::NOT_SUPPORTED));
        assert!(matches!(ask(&|_| ()), StreamReply::Accepted(_)));
        assert_eq!(ask(&|_| ()), StreamReply::Refused(Status::KEY_EEXISTS));
        let absent = consumer.client.stream(VbId(VBUCKETS), &StreamRequest::FROM_NOTHING, None).unwrap();
        assert_eq!(absent, StreamReply::Refused(Status::NOT_MY_VBUCKET));
    });
}

#[test]
fn commands_out_of_place_are_refused_and_a_name_belongs_to_the_newest_connection() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut plain = node.connect();
        let status = |result: Result<(), ClientError>| match result {
            Ok(()) => Status::SUCCESS,
            Err(error) => error.status().unwrap_or_else(|| panic!("{error}")),
        };
        let stream = StreamRequest::FROM_NOTHING.extras();
        let before = [
            Request::new(Opcode::DCP_STREAM_REQ).extras(&stream),
            Request::new(Opcode::DCP_CONTROL).key(b"enable_noop").value(b"true"),
            Request::new(Opcode::DCP_CLOSE_STREAM),
            Request::new(Opcode::DCP_ADD_STREAM).extras(&[0; 4]),
        ];
        for request in before {
            assert_eq!(status(plain.call(request, |_| ())), Status::EINVAL);
        }
        let consumer = Request::new(Opcode::DCP_OPEN).extras(&[0; 8]).key(b"name");
        assert_eq!(status(plain.call(consumer, |_| ())), Status::NOT_SUPPORTED);

        let mut first = DcpClient::open(plain, &DcpOptions::named("name")).unwrap();
        let open = Request::new(Opcode::DCP_OPEN).extras(&[0, 0, 0, 0, 0, 0, 0, 1]).key(b"name");
        for (request, expected) in [
            (open, Status::EINVAL),
            (Request::new(Opcode::SELECT_BUCKET).key(b"default"), Status::NOT_SUPPORTED),
            (Request::new(Opcode::DCP_ADD_STREAM).extras(&[0; 4]), Status::NOT_SUPPORTED),
            (Request::new(Opcode::DCP_CONTROL).key(b"nonsense").value(b"true"), Status::EINVAL),
        ] {
            assert_eq!(status(first.call(request, |_| ())), expected);
        }
        // Several of another name go on, on whatever core they are; of this name only the newest.
        let others: Vec<DcpClient> = (0..4)
            .map(|n| DcpClient::open(node.connect(), &DcpOptions::named(format!("other-{n}"))).unwrap())
            .collect();
        let mut second = DcpClient::open(node.connect(), &DcpOptions::named("name")).unwrap();
        let noop = || Request::new(Opcode::DCP_NOOP);
        eventually("the older one is closed", || first.call(noop(), |_| ()).is_err());
        second.call(noop(), |_| ()).unwrap();
        for mut other in others {
            other.call(noop(), |_| ()).unwrap();
        }

        // With Collections noops are mandatory, keys have their prefix, and only the default collection is known.
        let features = ConnectOptions::FEATURES.with(Feature::Collections);
        let connection = Connection::open(&ConnectOptions { features, ..node.connect_options() }).unwrap();
        store_when_taken(&mut node.connect(), "key", b"value");
        let vb = vbucket_of(b"key", VBUCKETS);
        let quiet = DcpOptions { noop_interval: None, ..DcpOptions::named("collections") };
        let mut client = DcpClient::open(connection, &quiet).unwrap();
        let to_latest = StreamRequest { flags: StreamFlags::TO_LATEST, ..StreamRequest::FROM_NOTHING };
        let ask = |client: &mut DcpClient, filter: &str| {
            let mut status = None;
            let request = Request::new(Opcode::DCP_STREAM_REQ).vbucket(vb).value(filter.as_bytes());
            let asked = client.call(request.extras(&to_latest.extras()), |_| ());
            status.replace(asked.map_or_else(|error| error.status().unwrap(), |()| Status::SUCCESS));
            status.unwrap()
        };
        assert_eq!(ask(&mut client, ""), Status::NOT_SUPPORTED);
        client.control(&Control::EnableNoop(true)).unwrap();
        assert_eq!(ask(&mut client, "{}"), Status::EINVAL);
        assert_eq!(ask(&mut client, r#"{"collections":["8"]}"#), Status::UNKNOWN_COLLECTION);
        assert_eq!(ask(&mut client, r#"{"scope":"8"}"#), Status::UNKNOWN_SCOPE);
        assert_eq!(ask(&mut client, r#"{"collections":["0"]}"#), Status::SUCCESS);
        let mut keys = Vec::new();
        loop {
            let is_over = client.next_within(PATIENCE, |_, message| match message {
                DcpMessage::Mutation(mutation) => {
                    keys.push(mutation.key.to_vec());
                    false
                }
                DcpMessage::StreamEnd(_) => true,
                _ => false,
            });
            if is_over.unwrap().expect("a message") {
                break;
            }
        }
        assert_eq!(keys, [b"\0key"]);
    });
}

/// After a restart everything comes from disk, in one snapshot each; then memory goes on.
#[test]
fn a_backfill_from_disk_is_one_snapshot_and_memory_goes_on_behind_it() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut model = Documents::new();
        fill(&mut node.connect(), 2_000, &mut model);
        assert!(node.stop().success());
        let node = Node::start(&place.data(), &setup);
        let mut consumer = Consumer::open(&node, "default", &DcpOptions::named("disk"));
        consumer.stream_all(StreamFlags::NONE);
        let expected = model.clone();
        let deadline = Instant::now() + PATIENCE;
        while consumer.documents() != expected {
            assert!(Instant::now() < deadline);
            consumer.step(Duration::from_millis(100)).unwrap();
        }
        assert_eq!(consumer.markers(), BTreeSet::from([MarkerFlags::BACKFILL.0]));
        assert!(consumer.copies.values().all(|copy| copy.markers.len() == 1));
        let mut writer = node.connect();
        store_when_taken(&mut writer, "later", b"value");
        let vb = vbucket_of(b"later", VBUCKETS);
        consumer.until("a live document", |copies| copies[&vb].documents.contains_key(&b"later"[..]));
        assert_eq!(consumer.copies[&vb].markers.last(), Some(&MarkerFlags::MEMORY.0));
    });
}

/// T3.1 to T3.4: a damaged block ends its stream with BackfillFail and no other; the connection goes on.
#[test]
fn a_damaged_block_under_a_backfill_ends_that_stream_and_nothing_else() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut writer = node.connect();
        let mut counts: BTreeMap<VbId, usize> = BTreeMap::new();
        for number in 0..1_000_u32 {
            let key = format!("key-{number}");
            store_when_taken(&mut writer, &key, &vec![b'a' + (number % 26) as u8; 5_000]);
            *counts.entry(vbucket_of(key.as_bytes(), VBUCKETS)).or_default() += 1;
        }
        drop(writer);
        assert!(node.stop().success());
        let data = place.data().join("shard-000/data");
        let mut bytes = std::fs::read(&data).unwrap();
        let has_h =
            |block: &[u8]| block.windows(1_000).step_by(500).any(|run| run.iter().all(|byte| *byte == b'h'));
        let damaged = bytes.chunks_mut(4096).enumerate().filter(|(_, block)| has_h(block)).nth(3);
        let (index, block) = damaged.expect("a block with such a value");
        block[2_000] ^= 0x40;
        patch(&data, index as u64 * 4096, block);

        let mut node = Node::start(&place.data(), &setup);
        let mut consumer = Consumer::open(&node, "default", &DcpOptions::named("damaged"));
        consumer.stream_all(StreamFlags::TO_LATEST);
        consumer.until_ended();
        let failed: Vec<VbId> = consumer
            .copies
            .iter()
            .filter(|(_, copy)| copy.end == Some(StreamEndStatus::BackfillFail))
            .map(|(vb, _)| *vb)
            .collect();
        assert_eq!(failed.len(), 1, "{failed:?}");
        for (vb, copy) in &consumer.copies {
            if !failed.contains(vb) {
                assert_eq!((copy.end, copy.documents.len()), (Some(StreamEndStatus::Ok), counts[vb]), "{vb}");
            }
        }
        assert!(consumer.copies[&failed[0]].documents.len() < counts[&failed[0]]);
        // The connection goes on: the stream may be asked for again, and fails again.
        let reply = consumer.stream(failed[0], StreamFlags::NONE, StreamRequest::NO_END);
        assert!(matches!(reply, StreamReply::Accepted(_)), "{reply:?}");
        consumer.until_ended();
        assert_eq!(consumer.copies[&failed[0]].end, Some(StreamEndStatus::BackfillFail));
        // T3.19: why, and what is missing.
        let log = node.log();
        assert!(node.is_alive() && log.contains("stream cannot read its data"));
        assert!(log.contains("damaged_block") && log.contains("first_unreadable_seqno"));
        let mut told = BTreeMap::new();
        let group = format!("backfills {}", failed[0].0);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut tell = |name: &[u8], value: &[u8]| drop(told.insert(text(name), text(value)));
        node.connect().stats(&group, &mut tell).unwrap();
        let all = |field: &str| -> Vec<&String> {
            told.iter().filter(|(name, _)| name.ends_with(field)).map(|(_, value)| value).collect()
        };
        assert_eq!(all("_cause"), ["damaged_block", "damaged_block"], "{told:?}");
        let seqnos = |field| -> Vec<u64> { all(field).iter().map(|seqno| seqno.parse().unwrap()).collect() };
        let (first, last) = (seqnos("_first_unreadable_seqno"), seqnos("_last_unreadable_seqno"));
        assert!(first[0] >= 1 && first[0] <= last[0] && last[0] <= counts[&failed[0]] as u64, "{told:?}");
    });
}

/// Clients that do not read hold bounded memory of the node, and when they go their streams go.
#[test]
fn clients_that_do_not_read_hold_bounded_memory() {
    let place = Place::new();
    let node = Node::start(&place.data(), &Setup::cores(1).with(&["--memory", "512MiB"]));
    let mut writer = node.connect();
    for number in 0..1_500_u32 {
        store_when_taken(&mut writer, &format!("key-{number}"), &vec![number as u8; 40_000]);
    }
    let before = node.resident_bytes();
    let clients: Vec<Consumer> = (0..8)
        .map(|number| {
            let options = DcpOptions { window_bytes: 0, ..DcpOptions::named(format!("stuck-{number}")) };
            let mut consumer = Consumer::open(&node, "default", &options);
            consumer.stream_all(StreamFlags::NONE);
            consumer
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let grown = node.resident_bytes().saturating_sub(before);
    println!("{grown} bytes for {} clients", clients.len());
    // A connection may have 32 pieces of 64 KiB and what a document exceeds one by.
    assert!(grown < 8 * 32 * 128 * 1024 + (24 << 20), "{grown}");
    drop(clients);
    store_when_taken(&mut writer, "after", b"value");
}

/// T4.8, T4.11, T4.13: twelve streams of each vbucket at once show the moment of their opening while documents are deleted and tombstones purged
/// beneath them. Who is behind what was purged begins anew. With the bucket all streams end.
#[test]
fn a_bucket_in_memory_has_any_number_of_streams_and_purges_beneath_them() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let settings = "ephemeral_metadata_purge_age=0;ephemeral_metadata_purge_interval=1";
        node.connect().create_bucket("memory", &format!("bucket_type=ephemeral;{settings}")).unwrap();
        let mut writer = node.connect_to("memory");
        let mut model = Documents::new();
        for number in 0..1_000_u32 {
            let (key, value) = (format!("key-{number}"), vec![number as u8; 2_000]);
            store_when_taken(&mut writer, &key, &value);
            model.insert(key.into_bytes(), value);
        }
        let mut behind = Consumer::open(&node, "memory", &DcpOptions::named("behind"));
        behind.stream_all(StreamFlags::TO_LATEST);
        behind.until_ended();
        let mut consumers: Vec<Consumer> = (0..12)
            .map(|number| {
                let options = DcpOptions::named(format!("consumer-{number}"));
                let mut consumer = Consumer::open(&node, "memory", &options);
                consumer.stream_all(StreamFlags::TO_LATEST);
                consumer
                    .until("each has begun", |copies| copies.values().all(|copy| !copy.markers.is_empty()));
                consumer
            })
            .collect();
        let moment = model.clone();
        for number in 0..1_000_u32 {
            let key = format!("key-{number}");
            if number % 3 == 0 {
                delete(&mut writer, &key);
                model.remove(key.as_bytes());
            } else {
                store_when_taken(&mut writer, &key, b"new");
                model.insert(key.into_bytes(), b"new".to_vec());
            }
        }
        let (vb, copy) = behind.copies.iter().next().map(|(vb, copy)| (*vb, copy.clone())).unwrap();
        eventually("who is behind the purge seqno is sent back", || {
            let request = copy.request(StreamFlags::NONE, StreamRequest::NO_END);
            match behind.client.stream(vb, &request, None).unwrap() {
                StreamReply::Rollback(seqno) => seqno == Seqno(0),
                StreamReply::Accepted(_) => {
                    // Purged in between, it has ended by itself.
                    match behind.client.close_stream(vb) {
                        Ok(()) => false,
                        Err(error) if error.status() == Some(Status::KEY_ENOENT) => false,
                        Err(error) => panic!("{error}"),
                    }
                }
                StreamReply::Refused(status) => panic!("{status:?}"),
            }
        });
        for consumer in &mut consumers {
            consumer.until_ended();
            assert!(consumer.copies.values().all(|copy| copy.end == Some(StreamEndStatus::Ok)));
            assert!(consumer.documents() == moment, "the moment of its opening");
        }
        let mut anew = Consumer::open(&node, "memory", &DcpOptions::named("behind"));
        anew.stream_all(StreamFlags::NONE);
        consumers.iter_mut().for_each(|consumer| {
            consumer.copies.clear();
            consumer.stream_all(StreamFlags::NONE);
        });
        let expected = model.clone();
        let deadline = Instant::now() + PATIENCE;
        while anew.documents() != expected {
            assert!(Instant::now() < deadline);
            anew.step(Duration::from_millis(100)).unwrap();
        }
        node.connect().delete_bucket("memory").unwrap();
        for consumer in consumers.iter_mut().chain([&mut anew]) {
            consumer.until_ended();
            assert!(consumer.copies.values().all(|copy| copy.end == Some(StreamEndStatus::StateChanged)));
        }
    });
}

#[test]
fn a_deleted_bucket_ends_its_streams() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut admin = node.connect();
        for settings in ["", "bucket_type=ephemeral"] {
            admin.create_bucket("short", settings).unwrap();
            store_when_taken(&mut node.connect_to("short"), "key", b"value");
            let mut consumer = Consumer::open(&node, "short", &DcpOptions::named("short"));
            consumer.stream_all(StreamFlags::NONE);
            admin.delete_bucket("short").unwrap();
            consumer.until_ended();
            assert!(consumer.copies.values().all(|copy| copy.end == Some(StreamEndStatus::StateChanged)));
        }
    });
}

#[test]
fn values_are_left_out_for_clients_that_want_none() {
    for_each_kind(|node, bucket| {
        store_when_taken(&mut node.connect_to(bucket), "key", b"value");
        let flags = OpenFlags::PRODUCER | OpenFlags::NO_VALUE;
        let options = DcpOptions { flags, ..DcpOptions::named("keys") };
        let mut consumer = Consumer::open(node, bucket, &options);
        consumer.stream_all(StreamFlags::TO_LATEST);
        consumer.until_ended();
        assert_eq!(consumer.documents(), Documents::from([(b"key".to_vec(), Vec::new())]));
    });
}

/// Three consumers of different speed, one that often disconnects and resumes, while everything changes. Whatever they saw on
/// the way, in the end each has what the bucket has.
#[test]
fn consumers_of_any_speed_end_up_with_what_the_bucket_has() {
    for_each_kind(|node, bucket| {
        let seed = 0xdc9_0001;
        println!("seed {seed:#x}");
        let is_done = std::sync::atomic::AtomicBool::new(false);
        let model = std::thread::scope(|scope| {
            let is_done = &is_done;
            let writing = scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed);
                let mut writer = node.connect_to(bucket);
                let mut model = Documents::new();
                for round in 0..6_000_u32 {
                    let key = format!("key-{}", random.random_range(0..700));
                    if random.random_bool(0.25) && model.remove(key.as_bytes()).is_some() {
                        delete(&mut writer, &key);
                    } else {
                        let value = vec![round as u8; random.random_range(0..2_000)];
                        store_when_taken(&mut writer, &key, &value);
                        model.insert(key.into_bytes(), value);
                    }
                }
                is_done.store(true, std::sync::atomic::Ordering::SeqCst);
                model
            });
            let consumers: Vec<_> = [(0, 0), (300, 0), (0, 400)]
                .into_iter()
                .enumerate()
                .map(|(number, (pause_us, reopen_after))| {
                    scope.spawn(move || follow(node, bucket, number, pause_us, reopen_after, is_done))
                })
                .collect();
            let model = writing.join().unwrap();
            for consumer in consumers {
                let (copy, reopened) = consumer.join().unwrap();
                println!("{} documents after {reopened} reconnections", copy.len());
                assert!(copy == model);
            }
            model
        });
        let mut reader = node.connect_to(bucket);
        let mut documents = Bucket::new(&mut reader).unwrap();
        for number in 0..700 {
            let key = format!("key-{number}");
            let found = documents.get(key.as_bytes()).ok().map(|document| document.value);
            assert_eq!(found.as_ref(), model.get(key.as_bytes()), "{key}");
        }
    });
}

/// Streams until the writer is done, then to the latest. Pauses after each message, reconnects after so many.
fn follow(
    node: &Node,
    bucket: &str,
    number: usize,
    pause_us: u64,
    reopen_after: u64,
    is_done: &std::sync::atomic::AtomicBool,
) -> (Documents, u32) {
    let options = |count: u32| DcpOptions {
        window_bytes: 50_000,
        ..DcpOptions::named(format!("follower-{number}-{count}"))
    };
    let mut reopened = 0;
    let mut consumer = Consumer::open(node, bucket, &options(0));
    consumer.stream_all(StreamFlags::NONE);
    while !is_done.load(std::sync::atomic::Ordering::SeqCst) {
        consumer.step(Duration::from_millis(20)).unwrap();
        std::thread::sleep(Duration::from_micros(pause_us));
        if reopen_after > 0 && consumer.messages >= reopen_after {
            reopened += 1;
            let copies = std::mem::take(&mut consumer.copies);
            consumer = Consumer { copies, ..Consumer::open(node, bucket, &options(reopened)) };
            consumer.stream_all(StreamFlags::NONE);
        }
    }
    let copies = std::mem::take(&mut consumer.copies);
    consumer = Consumer { copies, ..Consumer::open(node, bucket, &options(reopened + 1)) };
    consumer.stream_all(StreamFlags::TO_LATEST);
    consumer.until_ended();
    (consumer.documents(), reopened)
}
