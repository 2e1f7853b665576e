//! Range scans over the wire: what comes back, in what portions, and what is refused.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use ringbase::client::{
    Bucket, ClientError, Connection, ContinueLimits, Scan, ScanAllOptions, ScanPlan, ScanRecord, ScanState,
    StoreMode, scan_all, scan_vbucket,
};
use ringbase::protocol::extras::StoreExtras;
use ringbase::protocol::range_scan::{RangeScanCreate, ScanId, Selection, SnapshotRequirements};
use ringbase::protocol::{Opcode, Request, Status, vbucket_of};
use ringbase_storage::types::{Cas, Seqno, VbId, VbUuid};

use super::rig::{Node, Place, Raw, Setup, eventually, for_each_core_count};

const VBUCKETS: u16 = 16;

type Model = BTreeMap<VbId, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Stores documents through one connection and waits until they are persisted.
pub(super) fn fill(node: &Node, documents: u32, value_bytes: usize) -> Model {
    let vbuckets = u16::try_from(node.ready["vbuckets"].as_u64().unwrap()).unwrap();
    let connection = &mut node.connect();
    let mut model = Model::new();
    let mut tokens = BTreeMap::new();
    let mut bucket = Bucket::new(connection).unwrap();
    for number in 0..documents {
        let key = format!("document-{number:06}").into_bytes();
        let value = vec![b'a' + (number % 26) as u8; value_bytes];
        let extras = StoreExtras { flags: number, expiry: 0 };
        let stored = loop {
            match bucket.store(StoreMode::Set, &key, &value, extras, Cas(0)) {
                // The log is small here: it is full until the next flush has freed a part of it.
                Err(ClientError::Refused { status: Status::ETMPFAIL, .. }) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                stored => break stored.unwrap(),
            }
        };
        let vbucket = vbucket_of(&key, vbuckets);
        tokens.insert(vbucket, stored.token.unwrap());
        model.entry(vbucket).or_default().insert(key, value);
    }
    let tokens: Vec<_> = tokens.into_iter().collect();
    connection.wait_persisted(&tokens, super::rig::PATIENCE).unwrap();
    model
}

fn node_with_documents(setup: &Setup, documents: u32, value_bytes: usize) -> (Place, Node, Model) {
    let place = Place::new();
    let node = Node::start(&place.data(), setup);
    let model = fill(&node, documents, value_bytes);
    (place, node, model)
}

fn keys_only() -> RangeScanCreate {
    RangeScanCreate { key_only: true, ..RangeScanCreate::default() }
}

/// The keys that a scan of one vbucket returns.
fn keys(connection: &mut Connection, vbucket: VbId, create: RangeScanCreate) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    scan_vbucket(connection, &ScanPlan::new(create), vbucket, &mut |record| {
        keys.push(record.key().to_vec());
        Ok(())
    })
    .unwrap();
    keys
}

fn refusal<T>(result: Result<T, ringbase::client::ClientError>) -> Status {
    result.map(|_| ()).unwrap_err().status().unwrap()
}

/// T5.1, T5.15: every document once, in key order, with its metadata, from every vbucket over one connection.
#[test]
fn scans_return_every_document_of_every_vbucket_once_in_key_order() {
    for_each_core_count(|setup| {
        let (_place, node, model) = node_with_documents(&setup, 2_000, 300);
        for key_only in [true, false] {
            for connections in [1, 3] {
                let options = ScanAllOptions {
                    connect: node.connect_options(),
                    connections,
                    vbuckets: None,
                    plan: ScanPlan::new(RangeScanCreate { key_only, ..RangeScanCreate::default() }),
                };
                let seen: std::sync::Mutex<Model> = Default::default();
                let sink = |_| {
                    |vbucket: VbId, record: ScanRecord<'_>| {
                        let value = match record {
                            ScanRecord::Key(_) => Vec::new(),
                            ScanRecord::Document(document) => {
                                let number: u32 =
                                    std::str::from_utf8(&document.key[9..]).unwrap().parse().unwrap();
                                assert_eq!((document.flags, document.expiry), (number, 0));
                                assert!(document.seqno > Seqno(0) && document.cas > Cas(0));
                                document.value.to_vec()
                            }
                        };
                        let mut seen = seen.lock().unwrap();
                        let before = seen.entry(vbucket).or_default().insert(record.key().to_vec(), value);
                        assert_eq!(before, None, "a key came twice");
                        Ok(())
                    }
                };
                // The client itself checks the order of keys.
                let report = scan_all(&options, sink).unwrap();
                assert_eq!(report.total.counts.records.records, 2_000);
                let mut expected = model.clone();
                if key_only {
                    expected.values_mut().flat_map(BTreeMap::values_mut).for_each(Vec::clear);
                }
                drop(report);
                assert!(seen.into_inner().unwrap() == expected, "key_only {key_only}");
            }
        }
    });
}

/// T5.3: bounds, included and excluded, and ranges without keys.
#[test]
fn bounds_select_exactly_the_keys_between_them() {
    for_each_core_count(|setup| {
        let (_place, node, model) = node_with_documents(&setup, 600, 10);
        let mut connection = node.connect();
        for (vbucket, documents) in &model {
            let all: Vec<&Vec<u8>> = documents.keys().collect();
            let (low, high) = (all[all.len() / 4].clone(), all[all.len() / 2].clone());
            let cases = [
                (Bound::Included(low.clone()), Bound::Included(high.clone())),
                (Bound::Excluded(low.clone()), Bound::Included(high.clone())),
                (Bound::Included(low.clone()), Bound::Excluded(high.clone())),
                (Bound::Excluded(low.clone()), Bound::Excluded(high.clone())),
                (Bound::Included(low.clone()), Bound::Included(low.clone())),
                (Bound::Included(Vec::new()), Bound::Included(b"document-000299".to_vec())),
                (Bound::Included(b"document-0003".to_vec()), Bound::Excluded(b"document-0004".to_vec())),
            ];
            for (start, end) in cases {
                let selection = Selection::Range { start: start.clone(), end: end.clone() };
                let found = keys(&mut connection, *vbucket, RangeScanCreate { selection, ..keys_only() });
                let expected: Vec<Vec<u8>> =
                    documents.range((start.clone(), end.clone())).map(|(key, _)| key.clone()).collect();
                assert_eq!(found, expected, "{vbucket} {start:?} {end:?}");
            }
            let selection = Selection::Range {
                start: Bound::Included(b"x".to_vec()),
                end: Bound::Included(b"y".to_vec()),
            };
            let empty =
                Scan::create(&mut connection, *vbucket, &RangeScanCreate { selection, ..keys_only() });
            assert!(empty.unwrap().is_none(), "KEY_ENOENT for a range without keys");
        }
    });
}

/// T5.12: the same seed gives the same sample; more samples than documents give all.
#[test]
fn a_sample_is_repeatable_about_as_large_as_asked_and_everything_if_more_is_asked() {
    for_each_core_count(|setup| {
        let (_place, node, model) = node_with_documents(&setup, 4_000, 1);
        let mut connection = node.connect();
        let (mut total, mut different) = (0, 0);
        for (vbucket, documents) in &model {
            let mut sample = |samples, seed| {
                let selection = Selection::Sampling { samples, seed };
                keys(&mut connection, *vbucket, RangeScanCreate { selection, ..keys_only() })
            };
            let first = sample(100, 7);
            assert_eq!(first, sample(100, 7), "{vbucket}");
            assert!(first.iter().all(|key| documents.contains_key(key)));
            total += first.len();
            different += usize::from(first != sample(100, 8));
            assert_eq!(sample(100_000, 7).len(), documents.len());
        }
        assert!((1_300..1_900).contains(&total), "{total} of about 1,600");
        assert!(different > 8, "another seed gives another sample");
    });
}

/// T5.6: a continue stops at its limits and the next one goes on behind it.
#[test]
fn limits_cut_a_scan_into_portions_that_make_the_whole() {
    for_each_core_count(|setup| {
        let (_place, node, model) = node_with_documents(&setup, 1_000, 100);
        let mut connection = node.connect();
        for (vbucket, documents) in &model {
            let expected: Vec<Vec<u8>> = documents.keys().cloned().collect();
            let limits = [
                ContinueLimits { items: 7, ..ContinueLimits::default() },
                ContinueLimits { bytes: 1_000, ..ContinueLimits::default() },
                ContinueLimits { items: 1, bytes: 1, time_ms: 60_000 },
            ];
            for limit in limits {
                let create = RangeScanCreate::default();
                let mut scan = Scan::create(&mut connection, *vbucket, &create).unwrap().unwrap();
                let mut found = Vec::new();
                loop {
                    let before = found.len();
                    let state = scan.advance(&mut connection, limit, &mut |record| {
                        found.push(record.key().to_vec());
                        Ok(())
                    });
                    let more = found.len() - before;
                    assert!(limit.items == 0 || more <= limit.items as usize, "{more} records");
                    assert!(limit.bytes != 1_000 || more <= 8, "{more} records of over 140 bytes");
                    match state.unwrap() {
                        ScanState::More => assert!(more > 0, "a continue returns at least one record"),
                        ScanState::Complete => break,
                    }
                }
                assert_eq!(found, expected, "{vbucket} {limit:?}");
            }
        }
    });
}

/// T5.16: the snapshot is that of the create.
#[test]
fn writes_after_the_create_are_not_in_the_scan() {
    for_each_core_count(|setup| {
        let (_place, node, model) = node_with_documents(&setup, 500, 50);
        let (mut connection, mut writing) = (node.connect(), node.connect());
        let scans: Vec<(VbId, Scan)> = model
            .keys()
            .map(|vbucket| (*vbucket, Scan::create(&mut connection, *vbucket, &RangeScanCreate::default())))
            .map(|(vbucket, scan)| (vbucket, scan.unwrap().unwrap()))
            .collect();
        let mut bucket = Bucket::new(&mut writing).unwrap();
        let extras = StoreExtras { flags: 0, expiry: 0 };
        for number in 0..500 {
            let key = format!("document-{number:06}");
            match number % 3 {
                0 => drop(bucket.delete(key.as_bytes(), Cas(0)).unwrap()),
                1 => drop(bucket.store(StoreMode::Set, key.as_bytes(), b"new", extras, Cas(0)).unwrap()),
                _ => drop(
                    bucket.store(StoreMode::Set, format!("{key}x").as_bytes(), b"", extras, Cas(0)).unwrap(),
                ),
            }
        }
        for (vbucket, mut scan) in scans {
            let mut found = BTreeMap::new();
            let state = scan.advance(&mut connection, ContinueLimits::default(), &mut |record| {
                if let ScanRecord::Document(document) = record {
                    found.insert(document.key.to_vec(), document.value.to_vec());
                }
                Ok(())
            });
            assert_eq!(state.unwrap(), ScanState::Complete);
            assert!(found == model[&vbucket], "{vbucket}");
        }
    });
}

/// T5.9: a running scan ends with RANGE_SCAN_CANCELLED when another connection cancels it; a second continue meanwhile is EBUSY.
#[test]
fn another_connection_finds_a_running_scan_busy_and_may_cancel_it() {
    for_each_core_count(|setup| {
        // Far more than socket buffers hold, so that a scan nobody reads keeps running.
        let setup = Setup { vbuckets: 4, ..setup };
        let (_place, node, model) = node_with_documents(&setup, 1_600, 40_000);
        for vbucket in model.keys().copied() {
            let mut slow = node.narrow();
            let id = create(&mut slow, vbucket);
            slow.send(resume(vbucket, &extras(id)));
            let mut other = node.connect();
            let busy = continue_until(&mut node.raw(), vbucket, id, Status::EBUSY);
            assert!(busy, "the scan did not become busy");
            let cancelled = Request::new(Opcode::RANGE_SCAN_CANCEL).vbucket(vbucket).extras(&id.0);
            other.call(cancelled, |_| ()).unwrap();
            assert_eq!(refusal(other.call(cancelled, |_| ())), Status::KEY_ENOENT, "it is gone");
            let last = loop {
                let answer = slow.answer();
                if answer.status != Status::SUCCESS {
                    break answer;
                }
            };
            assert_eq!(last.status, Status::RANGE_SCAN_CANCELLED);
        }
    });
}

/// Asks for a continue until the answer has `status`; `false` if the scan ends first.
fn continue_until(raw: &mut Raw, vbucket: VbId, id: ScanId, status: Status) -> bool {
    let deadline = std::time::Instant::now() + super::rig::PATIENCE;
    while std::time::Instant::now() < deadline {
        let answer = raw.ask(resume(vbucket, &extras(id)));
        if answer.status == status {
            return true;
        }
        if answer.status != Status::SUCCESS {
            return false;
        }
    }
    false
}

fn hello(raw: &mut Raw) {
    use ringbase::protocol::hello::Feature;
    let features = ringbase::protocol::Features::of(&[Feature::Json, Feature::Xerror]).encode();
    assert_eq!(raw.ask(Request::new(Opcode::HELLO).value(&features)).status, Status::SUCCESS);
}

fn create(raw: &mut Raw, vbucket: VbId) -> ScanId {
    hello(raw);
    let body = RangeScanCreate::default().encode();
    let created = raw.ask(create_request(vbucket, &body));
    assert_eq!(created.status, Status::SUCCESS, "{}", created.context());
    ScanId::decode(&created.value).unwrap()
}

fn create_request(vbucket: VbId, body: &[u8]) -> Request<'_> {
    let json = ringbase::protocol::Datatype::JSON;
    Request::new(Opcode::RANGE_SCAN_CREATE).vbucket(vbucket).datatype(json).value(body)
}

fn extras(id: ScanId) -> [u8; 28] {
    let mut extras = [0; 28];
    extras[..16].copy_from_slice(&id.0);
    extras
}

fn resume(vbucket: VbId, extras: &[u8; 28]) -> Request<'_> {
    Request::new(Opcode::RANGE_SCAN_CONTINUE).vbucket(vbucket).extras(extras)
}

#[test]
fn an_idle_scan_may_be_continued_and_cancelled_by_any_connection_but_not_twice() {
    for_each_core_count(|setup| {
        let (_place, node, model) = node_with_documents(&setup, 200, 10);
        for (vbucket, documents) in &model {
            let id = create(&mut node.raw(), *vbucket);
            let mut other = node.raw();
            hello(&mut other);
            let wrong = VbId((vbucket.0 + 1) % VBUCKETS);
            assert_eq!(
                other.ask(resume(wrong, &extras(id))).status,
                Status::KEY_ENOENT,
                "of another vbucket"
            );
            let mut one = extras(id);
            one[16..20].copy_from_slice(&1_u32.to_be_bytes());
            let first = other.ask(resume(*vbucket, &one));
            assert_eq!(first.status, Status::RANGE_SCAN_MORE);
            assert!(documents.len() > 1 && !first.value.is_empty());
            let cancel = Request::new(Opcode::RANGE_SCAN_CANCEL).vbucket(*vbucket).extras(&id.0);
            assert_eq!(other.ask(cancel).status, Status::SUCCESS);
            assert_eq!(other.ask(cancel).status, Status::KEY_ENOENT);
            assert_eq!(other.ask(resume(*vbucket, &extras(id))).status, Status::KEY_ENOENT);
        }
        assert_eq!(node.raw().ask(resume(VbId(3), &[7; 28])).status, Status::KEY_ENOENT);
    });
}

#[test]
fn a_create_that_makes_no_sense_is_refused_with_a_reason_and_the_connection_stays() {
    for_each_core_count(|setup| {
        let (_place, node, _) = node_with_documents(&setup, 100, 10);
        let mut raw = node.raw();
        hello(&mut raw);
        let long = "A".repeat(336);
        let bodies = [
            "".to_owned(),
            "null".to_owned(),
            "[]".to_owned(),
            "{".to_owned(),
            r#"{"key_only": 1}"#.to_owned(),
            r#"{"range": {"start": "YQ=="}}"#.to_owned(),
            r#"{"range": {"start": "YQ==", "excl_start": "YQ==", "end": "Yg=="}}"#.to_owned(),
            r#"{"range": {"start": "?", "end": "Yg=="}}"#.to_owned(),
            format!(r#"{{"range": {{"start": "{long}", "end": "Yg=="}}}}"#),
            r#"{"range": {"start": "YQ==", "end": "Yg=="}, "sampling": {"samples": 1}}"#.to_owned(),
            r#"{"sampling": {"samples": 0}}"#.to_owned(),
            r#"{"collection": "zz"}"#.to_owned(),
            r#"{"snapshot_requirements": {"vb_uuid": "0x12", "seqno": 1}}"#.to_owned(),
            r#"{"key_only": true, "include_xattrs": true}"#.to_owned(),
            format!(r#"{{"name": "{}"}}"#, "n".repeat(51)),
            "[".repeat(10_000),
        ];
        for vbucket in [VbId(0), VbId(1)] {
            for body in &bodies {
                let answer = raw.ask(create_request(vbucket, body.as_bytes()));
                assert_eq!(answer.status, Status::EINVAL, "{body:.60}");
                if !body.is_empty() {
                    assert!(!answer.context().is_empty(), "{body:.60}");
                }
            }
            let unknown = raw.ask(create_request(vbucket, br#"{"collection": "9"}"#));
            assert_eq!(unknown.status, Status::UNKNOWN_COLLECTION);
            let raw_datatype = create_request(vbucket, b"{}").datatype(ringbase::protocol::Datatype::RAW);
            assert_eq!(raw.ask(raw_datatype).status, Status::EINVAL);
            let short = Request::new(Opcode::RANGE_SCAN_CONTINUE).vbucket(vbucket).extras(&[0; 27]);
            assert_eq!(raw.ask(short).status, Status::EINVAL);
        }
        assert_eq!(raw.ask(create_request(VbId(16), b"{}")).status, Status::NOT_MY_VBUCKET);
    });
}

/// T5.4: what a snapshot must contain, with and without waiting.
#[test]
fn snapshot_requirements_hold_or_are_refused_with_the_right_status() {
    for_each_core_count(|setup| {
        let (_place, node, model) = node_with_documents(&setup, 200, 10);
        let mut connection = node.connect();
        for vbucket in model.keys().copied() {
            let key = model[&vbucket].keys().next().unwrap().clone();
            let mut bucket = Bucket::new(&mut connection).unwrap();
            let extras = StoreExtras { flags: 0, expiry: 0 };
            let token = bucket.store(StoreMode::Set, &key, b"newest", extras, Cas(0)).unwrap().token.unwrap();
            let mut create = |uuid, seqno, seqno_exists, timeout_ms| {
                let snapshot = Some(SnapshotRequirements { uuid, seqno, seqno_exists, timeout_ms });
                let create = RangeScanCreate { snapshot, ..keys_only() };
                Scan::create(&mut connection, vbucket, &create).map(Option::unwrap)
            };
            create(token.uuid, token.seqno, true, Some(60_000)).unwrap();
            create(token.uuid, token.seqno, false, None).unwrap();
            // Seqno 1 of this vbucket was the first version of the key, or of another document that was not overwritten.
            let next = Seqno(token.seqno.0 + 1);
            assert_eq!(refusal(create(token.uuid, next, false, None)), Status::ETMPFAIL);
            assert_eq!(refusal(create(token.uuid, next, false, Some(50))), Status::ETMPFAIL);
            let other = VbUuid(token.uuid.0 ^ 1);
            assert_eq!(refusal(create(other, token.seqno, false, None)), Status::VB_UUID_NOT_EQUAL);
            // The first key in order was written first, as seqno 1, and has just been overwritten.
            assert_eq!(refusal(create(token.uuid, Seqno(1), true, None)), Status::NOT_STORED);
        }
    });
}

/// The kind of parameter: configuration.
const CONFIG: [u8; 4] = 6_u32.to_be_bytes();

/// The buffer's size changes while the node runs, and 8192 cuts frames as the reference does.
#[test]
fn the_send_size_changes_at_run_time() {
    for_each_core_count(|setup| {
        let (_place, node, model) = node_with_documents(&setup, 20_000, 10);
        let vbucket = *model.keys().next().unwrap();
        let mut raw = node.raw();
        hello(&mut raw);
        let mut frames_at = |size: &str| {
            let change = Request::new(Opcode::SET_PARAM).extras(&CONFIG);
            let change = change.key(b"range_scan_read_buffer_send_size").value(size.as_bytes());
            assert_eq!(raw.ask(change).status, Status::SUCCESS);
            let id = create(&mut raw, vbucket);
            raw.send(resume(vbucket, &extras(id)));
            let mut frames = 1;
            while raw.answer().status == Status::SUCCESS {
                frames += 1;
            }
            frames
        };
        // The other core hears of the change by message: ask until it has.
        eventually("frames of 8 KiB", || (8..20).contains(&frames_at("8192")));
        eventually("one frame", || frames_at("auto") == 1);
        let unknown = Request::new(Opcode::SET_PARAM).extras(&CONFIG).key(b"nonsense").value(b"1");
        assert_eq!(raw.ask(unknown).status, Status::EINVAL);
    });
}
