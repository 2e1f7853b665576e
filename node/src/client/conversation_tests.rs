//! The client against a scripted node.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringbase_storage::types::{Cas, Seqno, VbId, VbUuid};

use super::fake_server::{Asked, Peer, VBUCKETS, serve};
use super::source::VALUE_BYTES_MAX;
use super::*;
use crate::auth::users::os_random;
use crate::auth::{MECHANISM_LIST, Role, SaslOutcome, SaslServer, User, Users};
use crate::protocol::dcp::{DcpMessage, Envelope, StreamEndStatus, StreamRequest};
use crate::protocol::extras::{ArithmeticExtras, MutationToken, ObservedSeqno, StoreExtras};
use crate::protocol::range_scan::{RangeScanContinue, RangeScanCreate, SnapshotRequirements};
use crate::protocol::scan_records::{RecordKind, encode_key};
use crate::protocol::{ErrorContext, Feature, Features, Opcode, Request, Response, Status, vbucket_of};

const TOKEN: MutationToken = MutationToken { uuid: VbUuid(0xabc), seqno: Seqno(9) };

/// A small but working store.
fn store(mut peer: Peer, documents: &Mutex<BTreeMap<Vec<u8>, Vec<u8>>>) {
    while let Some(asked) = peer.next_after_bootstrap() {
        let frame = asked.frame();
        let mut documents = documents.lock().unwrap();
        let known = documents.get(frame.key).cloned();
        let token = TOKEN.encode();
        assert_eq!(frame.vbucket(), vbucket_of(frame.key, VBUCKETS), "vbucket of the key");
        match (frame.opcode(), known) {
            (Opcode::SET, _) => {
                assert_eq!(frame.extras.len(), 8);
                documents.insert(frame.key.to_vec(), frame.value.to_vec());
                peer.send(&asked.answer(Status::SUCCESS).cas(Cas(77)).extras(&token));
            }
            (Opcode::GET, Some(value)) => {
                let answer = asked.answer(Status::SUCCESS).cas(Cas(77));
                peer.send(&answer.extras(&[0, 0, 0, 5]).value(&value));
            }
            (Opcode::DELETE, Some(_)) => {
                documents.remove(frame.key);
                peer.send(&asked.answer(Status::SUCCESS).cas(Cas(78)).extras(&token));
            }
            (Opcode::TOUCH, Some(_)) => peer.send(&asked.answer(Status::SUCCESS).cas(Cas(79))),
            (Opcode::INCREMENT, _) => peer.send(&asked.answer(Status::SUCCESS).value(&43_u64.to_be_bytes())),
            (_, None) => {
                let body = ErrorContext::text("no such document").encode();
                peer.send(&asked.answer(Status::KEY_ENOENT).value(&body));
            }
            (opcode, Some(_)) => panic!("{opcode}"),
        }
    }
}

#[test]
fn single_operations_give_what_the_node_answers() {
    let documents = Arc::new(Mutex::new(BTreeMap::new()));
    let (options, _server) = serve(1, move |peer| store(peer, &documents));
    let mut connection = Connection::open(&options).unwrap();
    assert!(connection.features().has(Feature::Xerror) && connection.features().has(Feature::Json));
    let mut bucket = Bucket::new(&mut connection).unwrap();
    let extras = StoreExtras { flags: 5, expiry: 0 };
    let stored = bucket.store(StoreMode::Set, b"hello", b"world", extras, Cas(0)).unwrap();
    assert_eq!(stored, Mutated { cas: Cas(77), token: Some(TOKEN) });
    let document = bucket.get(b"hello").unwrap();
    assert_eq!((document.flags, document.cas, &document.value[..]), (5, Cas(77), &b"world"[..]));
    assert_eq!(bucket.touch(b"hello", 10).unwrap(), Cas(79));
    let extras = ArithmeticExtras { delta: 1, initial: 43, expiry: 0 };
    assert_eq!(bucket.count(b"counter", false, extras).unwrap(), 43);
    assert_eq!(bucket.delete(b"hello", Cas(0)).unwrap().cas, Cas(78));
    let missing = bucket.get(b"hello").unwrap_err();
    assert_eq!(missing.status(), Some(Status::KEY_ENOENT));
    assert!(missing.to_string().ends_with("no such document"), "{missing}");
}

#[test]
fn nobody_listening_is_a_refused_connection_and_a_name_without_port_no_address() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Connection::open(&ConnectOptions::to(unused.to_string())).unwrap_err();
    assert!(matches!(&error, ClientError::Connect { source, .. }
        if source.kind() == io::ErrorKind::ConnectionRefused));
    assert_eq!(error.hint(), Some("is a node running? try `ringbase serve`"));
    let error = Connection::open(&ConnectOptions::to("127.0.0.1")).unwrap_err();
    assert!(matches!(error, ClientError::Resolve { .. }), "{error}");
}

#[test]
fn a_peer_of_another_protocol_is_recognised() {
    let (options, _server) = serve(1, |mut peer: Peer| {
        peer.next();
        peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let error = Connection::open(&options).unwrap_err();
    assert!(matches!(error, ClientError::NotProtocol { .. }), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn silence_ends_after_the_timeout() {
    let (mut options, _server) = serve(1, |mut peer: Peer| {
        peer.next();
        std::thread::sleep(Duration::from_millis(500));
    });
    options.timeout = Duration::from_millis(50);
    let error = Connection::open(&options).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}

#[test]
fn an_unknown_bucket_and_a_closed_door_are_different_errors() {
    for (status, expect_no_bucket) in
        [(Status::KEY_ENOENT, true), (Status::EACCESS, true), (Status::EBUSY, false)]
    {
        let (mut options, _server) = serve(1, move |mut peer: Peer| {
            let hello = peer.next().unwrap();
            peer.send(&hello.answer(Status::SUCCESS));
            let select = peer.next().unwrap();
            assert_eq!(select.frame().key, b"beer");
            peer.send(&select.answer(status));
        });
        options.bucket = Some("beer".to_owned());
        let error = Connection::open(&options).unwrap_err();
        assert_eq!(matches!(error, ClientError::NoBucket { .. }), expect_no_bucket, "{error}");
    }
}

/// A node of older design: no SCRAM.
fn plain_only(mut peer: Peer) {
    while let Some(asked) = peer.next() {
        let frame = asked.frame();
        match frame.opcode() {
            Opcode::SASL_LIST_MECHS => peer.send(&asked.answer(Status::SUCCESS).value(b"GSSAPI PLAIN")),
            Opcode::SASL_AUTH => {
                assert_eq!(frame.key, b"PLAIN");
                let right = frame.value == b"\0anna\0secret";
                peer.send(&asked.answer(if right { Status::SUCCESS } else { Status::AUTH_ERROR }));
            }
            _ => peer.send(&asked.answer(Status::SUCCESS)),
        }
    }
}

#[test]
fn plain_is_the_fallback_and_a_wrong_password_names_the_user_only() {
    for (password, expected) in [("secret", true), ("Secret", false)] {
        let (mut options, _server) = serve(1, plain_only);
        options.credentials = Some(Credentials { user: "anna".to_owned(), password: password.to_owned() });
        match Connection::open(&options) {
            Ok(_) => assert!(expected),
            Err(error) => {
                assert!(!expected && matches!(error, ClientError::Authentication { .. }), "{error}");
                assert!(error.to_string().contains("anna") && !error.to_string().contains(password));
            }
        }
        assert!(!format!("{options:?}").contains(password), "debug output keeps the secret");
    }
}

/// A node with a users file, in which only `anna` with `secret` is.
fn scram(mut peer: Peer, forge: bool) {
    let mut users = Users::empty(&mut os_random);
    users.add("anna", User::new(Role::ReadOnly, b"secret", 10, &mut os_random).unwrap()).unwrap();
    let mut exchange = SaslServer::new();
    while let Some(asked) = peer.next() {
        let frame = asked.frame();
        let outcome = match frame.opcode() {
            Opcode::SASL_LIST_MECHS => {
                peer.send(&asked.answer(Status::SUCCESS).value(MECHANISM_LIST.as_bytes()));
                continue;
            }
            Opcode::SASL_AUTH => {
                assert_eq!(frame.key, b"SCRAM-SHA512", "the strongest is taken");
                exchange.start(frame.key, frame.value, &users, rand::random())
            }
            Opcode::SASL_STEP => exchange.step(frame.key, frame.value),
            _ => {
                peer.send(&asked.answer(Status::SUCCESS));
                continue;
            }
        };
        let value = match &outcome {
            SaslOutcome::Continue(_) if frame.value.windows(6).any(|part| part == b"secret") => {
                panic!("the password was sent")
            }
            SaslOutcome::Continue(value) => value.clone(),
            SaslOutcome::Authenticated(..) if forge => b"v=AAAA".to_vec(),
            SaslOutcome::Authenticated(_, value) => value.clone(),
            SaslOutcome::Failed(_) => Vec::new(),
        };
        peer.send(&asked.answer(outcome.status()).value(&value));
    }
}

#[test]
fn scram_lets_the_right_password_in_and_the_password_stays_here() {
    let attempt = |user: &str, password: &str, forge| {
        let (mut options, _server) = serve(1, move |peer| scram(peer, forge));
        options.credentials = Some(Credentials { user: user.to_owned(), password: password.to_owned() });
        Connection::open(&options).map(|_| ())
    };
    attempt("anna", "secret", false).unwrap();
    for (user, password) in [("anna", "wrong"), ("otto", "secret")] {
        let error = attempt(user, password, false).unwrap_err();
        assert!(matches!(error, ClientError::Authentication { .. }), "{error}");
    }
    let error = attempt("anna", "secret", true).unwrap_err();
    assert!(matches!(error, ClientError::ServerNotTrusted { .. }), "a forged signature: {error}");
}

/// Answers everything that has come in, last one first, and refuses each SET the first time.
fn contrary(mut peer: Peer) {
    let mut refused = BTreeSet::new();
    while let Some(first) = peer.next_after_bootstrap() {
        let mut asked: Vec<Asked> = vec![first];
        asked.extend(std::iter::from_fn(|| peer.next_received()));
        let mut bytes = Vec::new();
        for request in asked.iter().rev() {
            let frame = request.frame();
            let first = frame.opcode() == Opcode::SET && refused.insert(frame.key.to_vec());
            let status = match (first, frame.key.len() % 2) {
                (true, 0) => Status::ETMPFAIL,
                (true, _) => Status::EBUSY,
                (false, _) => Status::SUCCESS,
            };
            request.answer(status).cas(Cas(1)).encode(&mut bytes);
        }
        peer.send_in_pieces(&bytes, 1000);
    }
}

#[test]
fn out_of_order_answers_are_matched_and_refused_requests_sent_again_until_all_are_done() {
    let (options, _server) = serve(1, contrary);
    let mut connection = Connection::open(&options).unwrap();
    let settings = PipelineOptions { window: 16, window_bytes: 1 << 20, ..PipelineOptions::default() };
    let mut pipeline = Pipeline::new(&mut connection, settings).unwrap();
    let mut completed = vec![0; 100];
    let mut done = |completion: Completion<'_>| -> Result<(), ClientError> {
        completion.check()?;
        let key = format!("key{}", completion.token);
        assert_eq!(completion.request_frame().key, key.as_bytes(), "the answer of another request");
        assert_eq!(completion.retries, 1);
        completed[completion.token as usize] += 1;
        Ok(())
    };
    for token in 0..100 {
        let key = format!("key{token}");
        let request = Request::new(Opcode::SET).extras(&[0; 8]).key(key.as_bytes()).value(b"v");
        pipeline.submit(request, token, &mut done).unwrap();
        assert!(pipeline.outstanding() <= 16);
    }
    pipeline.drain(&mut done).unwrap();
    assert_eq!(pipeline.retries(), 100);
    drop(pipeline);
    assert!(completed.iter().all(|count| *count == 1), "{completed:?}");
    connection.ping().expect("the connection is usable again");
}

#[test]
fn patience_with_a_busy_node_ends_with_a_number_of_tries() {
    let (options, _server) = serve(1, |mut peer: Peer| {
        while let Some(asked) = peer.next_after_bootstrap() {
            peer.send(&asked.answer(Status::ETMPFAIL));
        }
    });
    let mut connection = Connection::open(&options).unwrap();
    let settings = PipelineOptions { patience: Duration::from_millis(60), ..PipelineOptions::default() };
    let mut pipeline = Pipeline::new(&mut connection, settings).unwrap();
    let mut done = |completion: Completion<'_>| completion.check();
    pipeline.submit(Request::new(Opcode::NOOP), 0, &mut done).unwrap();
    let error = pipeline.drain(&mut done).unwrap_err();
    assert!(matches!(error, ClientError::RetriesExhausted { retries: 2.., .. }), "{error}");
}

#[test]
fn a_request_larger_than_the_window_goes_alone_and_comes_back() {
    let (options, _server) = serve(1, |mut peer: Peer| {
        while let Some(asked) = peer.next_after_bootstrap() {
            peer.send(&asked.answer(Status::SUCCESS).value(asked.frame().value));
        }
    });
    let mut connection = Connection::open(&options).unwrap();
    let settings = PipelineOptions { window: 8, window_bytes: 1000, ..PipelineOptions::default() };
    let mut pipeline = Pipeline::new(&mut connection, settings).unwrap();
    let value = vec![7; 3 << 20];
    let mut sizes = Vec::new();
    let mut done = |completion: Completion<'_>| -> Result<(), ClientError> {
        sizes.push(completion.answer.value.len());
        Ok(())
    };
    for size in [10, value.len(), 20, value.len()] {
        pipeline.submit(Request::new(Opcode::SET).value(&value[..size]), 0, &mut done).unwrap();
    }
    pipeline.drain(&mut done).unwrap();
    assert_eq!(sizes, [10, value.len(), 20, value.len()]);
}

#[test]
fn a_node_that_dies_under_a_pipeline_is_reported() {
    let (options, _server) = serve(1, |mut peer: Peer| {
        for _ in 0..5 {
            let asked = peer.next_after_bootstrap().unwrap();
            peer.send(&asked.answer(Status::SUCCESS));
        }
    });
    let mut connection = Connection::open(&options).unwrap();
    let mut pipeline = Pipeline::new(&mut connection, PipelineOptions::default()).unwrap();
    let mut done = |completion: Completion<'_>| completion.check();
    let mut result = Ok(());
    for token in 0..100 {
        result = result.and_then(|()| pipeline.submit(Request::new(Opcode::NOOP), token, &mut done));
    }
    let error = result.and_then(|()| pipeline.drain(&mut done)).unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. }), "{error}");
}

#[test]
fn an_answer_that_nobody_asked_for_ends_the_conversation() {
    let (options, _server) = serve(1, |mut peer: Peer| {
        while let Some(asked) = peer.next_after_bootstrap() {
            let frame = asked.frame();
            peer.send(&Response::new(frame.opcode(), frame.opaque() ^ 0x10000, Status::SUCCESS));
        }
    });
    let mut connection = Connection::open(&options).unwrap();
    let mut pipeline = Pipeline::new(&mut connection, PipelineOptions::default()).unwrap();
    let mut done = |completion: Completion<'_>| completion.check();
    pipeline.submit(Request::new(Opcode::NOOP), 0, &mut done).unwrap();
    let error = pipeline.drain(&mut done).unwrap_err();
    assert!(matches!(error, ClientError::UnexpectedAnswer { .. }), "{error}");
    drop(pipeline);
    assert!(connection.ping().is_err(), "a connection with unknown answers under way is not used again");
}

#[test]
fn a_load_acknowledges_every_document_once_and_tells_what_it_skipped() {
    let documents = Arc::new(Mutex::new(BTreeMap::new()));
    let kept = Arc::clone(&documents);
    let (options, _server) = serve(3, move |mut peer: Peer| {
        while let Some(asked) = peer.next_after_bootstrap() {
            let frame = asked.frame();
            let status = if frame.value.len() > 50 { Status::E2BIG } else { Status::SUCCESS };
            if status == Status::SUCCESS {
                let former = kept.lock().unwrap().insert(frame.key.to_vec(), frame.value.to_vec());
                assert_eq!(former, None, "sent twice");
            }
            peer.send(&asked.answer(status).cas(Cas(1)).extras(if status == Status::SUCCESS {
                &[1; 16]
            } else {
                &[]
            }));
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("d.jsonl");
    let mut text: String = (0..2000).map(|n| format!("{{\"id\":\"user{n}\"}}\n")).collect();
    text.push_str("{\"no id\":1}\n{\"id\":\"large\",\"pad\":\"0123456789012345678901234567890123456789\"}\n");
    std::fs::write(&file, text).unwrap();
    let form = SourceForm::JsonLines { file, field: "id".to_owned() };
    let source = Source::open(&form, VALUE_BYTES_MAX).unwrap();
    let options = LoadOptions {
        connect: options,
        connections: 3,
        pipeline: PipelineOptions { window: 10, ..Default::default() },
    };
    let progress = LoadProgress::default();
    let report = load(source, &options, &progress).unwrap();
    assert_eq!((report.documents, report.skipped_count), (2000, 2));
    assert_eq!(progress.documents.load(Ordering::Relaxed), 2000);
    let names: Vec<&str> = report.skipped.iter().map(|skipped| skipped.name.as_str()).collect();
    assert!(names.iter().any(|name| name.ends_with("d.jsonl:2001")) && names.contains(&"large"), "{names:?}");
    let documents = documents.lock().unwrap();
    assert_eq!(documents.len(), 2000);
    let bytes: usize = documents.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert_eq!(report.key_bytes + report.value_bytes, bytes as u64);
    assert_eq!(report.tokens.len(), usize::from(VBUCKETS));
}

#[test]
fn a_load_that_is_refused_for_good_stops_with_that_reason() {
    let (options, _server) = serve(2, |mut peer: Peer| {
        while let Some(asked) = peer.next_after_bootstrap() {
            peer.send(&asked.answer(Status::EACCESS));
        }
    });
    let form = SourceForm::Generate(Generator::new(1000, 20, 20, 1).unwrap());
    let source = Source::open(&form, VALUE_BYTES_MAX).unwrap();
    let options = LoadOptions { connect: options, connections: 2, pipeline: PipelineOptions::default() };
    let error = load(source, &options, &LoadProgress::default()).unwrap_err();
    assert!(matches!(&error, LoadError::Client(client) if client.status() == Some(Status::EACCESS)));
}

#[test]
fn waiting_for_persistence_asks_until_the_node_has_come_that_far() {
    let (options, _server) = serve(1, |mut peer: Peer| {
        let mut persisted = 6;
        while let Some(asked) = peer.next_after_bootstrap() {
            assert_eq!(asked.frame().value, TOKEN.uuid.0.to_be_bytes());
            let observed = ObservedSeqno {
                vbucket: asked.frame().vbucket(),
                uuid: TOKEN.uuid,
                persisted_seqno: Seqno(persisted),
                high_seqno: Seqno(20),
                older_branch: None,
            };
            persisted += 1;
            peer.send(&asked.answer(Status::SUCCESS).value(&observed.encode()));
        }
    });
    let mut connection = Connection::open(&options).unwrap();
    connection.wait_persisted(&[(VbId(1), TOKEN)], Duration::from_secs(5)).unwrap();
    let observed = connection.observe(VbId(1), TOKEN.uuid).unwrap();
    assert_eq!(observed.persisted_seqno, Seqno(10), "four questions had been asked: 6, 7, 8, 9");
    let later = MutationToken { seqno: Seqno(1000), ..TOKEN };
    let error = connection.wait_persisted(&[(VbId(1), later)], Duration::from_millis(10)).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}

/// A node that scans: vbucket n has the keys `n-0000` to `n-0999`, in frames of at most `frame_keys` keys.
fn scanner(mut peer: Peer, frame_keys: usize, piece: usize) {
    let mut positions: BTreeMap<[u8; 16], (u16, usize)> = BTreeMap::new();
    while let Some(asked) = peer.next_after_bootstrap() {
        let frame = asked.frame();
        let vbucket = frame.vbucket().0;
        match frame.opcode() {
            Opcode::RANGE_SCAN_CREATE => {
                let create = RangeScanCreate::decode(frame.value, Features::NONE).unwrap();
                assert!(create.key_only);
                let id = [vbucket as u8 + 1; 16];
                if vbucket == VBUCKETS - 1 {
                    peer.send(&asked.answer(Status::KEY_ENOENT));
                } else {
                    positions.insert(id, (vbucket, 0));
                    peer.send(&asked.answer(Status::SUCCESS).value(&id));
                }
            }
            Opcode::RANGE_SCAN_CONTINUE => {
                let request = RangeScanContinue::decode(frame.extras).unwrap();
                let Some((owner, position)) = positions.get_mut(&request.id.0) else {
                    peer.send(&asked.answer(Status::KEY_ENOENT));
                    continue;
                };
                assert_eq!(*owner, vbucket);
                let limit = if request.item_limit == 0 { 1000 } else { request.item_limit as usize };
                let end = (*position + limit).min(1000);
                let mut bytes = Vec::new();
                while *position < end {
                    let frame_end = (*position + frame_keys).min(end);
                    let mut value = Vec::new();
                    for n in *position..frame_end {
                        encode_key(format!("{vbucket}-{n:04}").as_bytes(), &mut value);
                    }
                    *position = frame_end;
                    let status = match (frame_end == end, end == 1000) {
                        (false, _) => Status::SUCCESS,
                        (true, false) => Status::RANGE_SCAN_MORE,
                        (true, true) => Status::RANGE_SCAN_COMPLETE,
                    };
                    asked.answer(status).extras(&RecordKind::Keys.encode()).value(&value).encode(&mut bytes);
                }
                if *position == 1000 {
                    positions.remove(&request.id.0);
                }
                peer.send_in_pieces(&bytes, piece);
            }
            Opcode::RANGE_SCAN_CANCEL => {
                let known = positions.remove(frame.extras).is_some();
                peer.send(&asked.answer(if known { Status::SUCCESS } else { Status::KEY_ENOENT }));
            }
            opcode => panic!("{opcode}"),
        }
    }
}

fn key_scan() -> RangeScanCreate {
    RangeScanCreate { key_only: true, ..RangeScanCreate::default() }
}

#[test]
fn scan_frames_split_at_odd_boundaries_give_every_key_once_and_exact_counts() {
    for (frame_keys, piece, items) in [(1000, 7919, 0), (33, 101, 0), (1, 997, 100), (7, 31, 250)] {
        let (options, _server) = serve(1, move |peer| scanner(peer, frame_keys, piece));
        let mut connection = Connection::open(&options).unwrap();
        let limits = ContinueLimits { items, ..ContinueLimits::default() };
        let mut keys = Vec::new();
        let plan = ScanPlan { limits, ..ScanPlan::new(key_scan()) };
        let counts = scan_vbucket(&mut connection, &plan, VbId(0), &mut |record| {
            keys.push(String::from_utf8(record.key().to_vec()).unwrap());
            Ok(())
        })
        .unwrap();
        let expected: Vec<String> = (0..1000).map(|n| format!("0-{n:04}")).collect();
        assert_eq!(keys, expected);
        let continues = if items == 0 { 1 } else { 1000 / u64::from(items) };
        let keys_per_continue = 1000 / continues as usize;
        let frames = continues * keys_per_continue.div_ceil(frame_keys) as u64;
        assert_eq!((counts.continues, counts.frames), (continues, frames));
        assert_eq!((counts.records.records, counts.records.key_bytes), (1000, 6000));
        assert_eq!((counts.record_bytes, counts.overhead_bytes), (7000, frames * 28));
    }
}

#[test]
fn all_vbuckets_are_scanned_once_over_several_connections_and_empty_ones_counted() {
    for (overlap, items) in [(true, 0), (false, 0), (true, 70), (false, 70)] {
        let limits = ContinueLimits { items, ..ContinueLimits::default() };
        scan_four_vbuckets(ScanPlan { overlap, limits, ..ScanPlan::new(key_scan()) });
    }
}

fn scan_four_vbuckets(plan: ScanPlan) {
    let (connect, _server) = serve(2, |peer| scanner(peer, 100, 100_000));
    let options = ScanAllOptions { connect, connections: 2, vbuckets: None, plan };
    let seen = Mutex::new(BTreeMap::new());
    let report = scan_all(&options, |_| {
        |vbucket: VbId, _: ScanRecord<'_>| {
            *seen.lock().unwrap().entry(vbucket).or_insert(0) += 1;
            Ok(())
        }
    })
    .unwrap();
    let counts = report.total.counts;
    assert_eq!((counts.scans, counts.empty, counts.records.records), (3, 1, 3000));
    assert_eq!(report.connections.len(), 2);
    drop(report);
    assert_eq!(seen.into_inner().unwrap(), (0..3).map(|n| (VbId(n), 1000)).collect());
}

#[test]
fn a_cancelled_scan_is_gone_and_its_connection_goes_on() {
    let (options, _server) = serve(1, |peer| scanner(peer, 10, 1000));
    let mut connection = Connection::open(&options).unwrap();
    let mut ignore = |_: ScanRecord<'_>| Ok(());
    let mut scan = Scan::create(&mut connection, VbId(1), &key_scan()).unwrap().unwrap();
    let limits = ContinueLimits { items: 5, ..ContinueLimits::default() };
    assert_eq!(scan.advance(&mut connection, limits, &mut ignore).unwrap(), ScanState::More);
    assert_eq!(scan.counts().records.records, 5);
    assert!(scan.cancel(&mut connection).unwrap());
    let mut scan = Scan::create(&mut connection, VbId(1), &key_scan()).unwrap().unwrap();
    scan.advance(&mut connection, ContinueLimits::default(), &mut ignore).unwrap();
    let error = scan.advance(&mut connection, limits, &mut ignore).unwrap_err();
    assert_eq!(error.status(), Some(Status::KEY_ENOENT), "it was complete");
    assert!(!scan.cancel(&mut connection).unwrap());
}

/// Answers a continue with these bytes after its opaque was put in, then hangs up.
fn one_answer(answer: impl Fn(&Asked) -> Vec<u8> + Clone + Send + 'static) -> ClientError {
    let (options, _server) = serve(1, move |mut peer: Peer| {
        let create = peer.next_after_bootstrap().unwrap();
        peer.send(&create.answer(Status::SUCCESS).value(&[1; 16]));
        let asked = peer.next().unwrap();
        let bytes = answer(&asked);
        peer.send_bytes(&bytes);
    });
    let mut connection = Connection::open(&options).unwrap();
    let plan = ScanPlan::new(key_scan());
    let error = scan_vbucket(&mut connection, &plan, VbId(2), &mut |_| Ok(())).unwrap_err();
    if error.status().is_none() {
        assert!(connection.ping().is_err(), "a broken conversation is not continued: {error}");
    }
    error
}

fn keys_answer(asked: &Asked, status: Status, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    asked.answer(status).extras(&RecordKind::Keys.encode()).value(value).encode(&mut bytes);
    bytes
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_scan_is_reported_with_the_vbucket() {
    let error = one_answer(|asked| {
        let mut bytes = keys_answer(asked, Status::SUCCESS, b"\x01a\x01b\x05ccccc");
        bytes.truncate(bytes.len() - 3);
        bytes
    });
    assert!(matches!(error, ClientError::Closed { .. }), "{error}");
    assert!(error.to_string().contains("while receiving the records of"), "{error}");
    let error = one_answer(|asked| keys_answer(asked, Status::SUCCESS, b"\x01a"));
    assert!(matches!(error, ClientError::Closed { .. }), "between two responses: {error}");
}

#[test]
fn damaged_or_foreign_scan_responses_are_errors_not_records() {
    let error = one_answer(|asked| keys_answer(asked, Status::SUCCESS, b"\x01b\x01a"));
    assert!(matches!(error, ClientError::Record { vbucket: VbId(2), .. }), "{error}");
    let error = one_answer(|asked| keys_answer(asked, Status::SUCCESS, b"\x7fa"));
    assert!(matches!(error, ClientError::Record { .. }), "{error}");
    let error = one_answer(|asked| keys_answer(asked, Status::AUTH_CONTINUE, b""));
    assert!(matches!(error, ClientError::UnexpectedAnswer { .. }), "{error}");
    let error = one_answer(|asked| {
        let mut bytes = keys_answer(asked, Status::SUCCESS, b"\x01a");
        bytes[15] ^= 1;
        bytes
    });
    assert!(matches!(error, ClientError::UnexpectedAnswer { .. }), "another opaque: {error}");
    let error = one_answer(|_| b"no frame at all, only text".to_vec());
    assert!(matches!(error, ClientError::NotProtocol { .. }), "{error}");
    let error = one_answer(|asked| {
        let mut bytes = Vec::new();
        asked.answer(Status::SUCCESS).extras(&RecordKind::Documents.encode()).value(b"x").encode(&mut bytes);
        bytes
    });
    assert!(matches!(error, ClientError::Record { .. }), "documents in a key scan: {error}");
}

#[test]
fn a_scan_that_the_node_ends_says_why() {
    let error = one_answer(|asked| {
        let mut bytes = keys_answer(asked, Status::SUCCESS, b"\x01a");
        let body = ErrorContext::text("lifetime is over").encode();
        asked.answer(Status::RANGE_SCAN_CANCELLED).value(&body).encode(&mut bytes);
        bytes
    });
    assert_eq!(error.status(), Some(Status::RANGE_SCAN_CANCELLED));
    assert!(error.to_string().ends_with("lifetime is over"), "{error}");
}

#[test]
fn a_create_is_tried_again_while_the_node_is_busy_unless_it_says_so_about_a_snapshot() {
    let script = |mut peer: Peer| {
        for status in [Status::EBUSY, Status::ETMPFAIL, Status::KEY_ENOENT] {
            let Some(asked) = peer.next_after_bootstrap() else { return };
            peer.send(&asked.answer(status));
        }
    };
    let (options, _server) = serve(1, script);
    let mut connection = Connection::open(&options).unwrap();
    let mut plan = ScanPlan::new(key_scan());
    let counts = scan_vbucket(&mut connection, &plan, VbId(0), &mut |_| Ok(())).unwrap();
    assert_eq!((counts.retries, counts.empty, counts.scans), (2, 1, 0));

    let (options, _server) = serve(1, script);
    let mut connection = Connection::open(&options).unwrap();
    let uuid = VbUuid(1);
    plan.create.snapshot =
        Some(SnapshotRequirements { uuid, seqno: Seqno(1), seqno_exists: false, timeout_ms: Some(100) });
    let error = scan_vbucket(&mut connection, &plan, VbId(0), &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.status(), Some(Status::EBUSY));
}

/// The node answers nothing about the first vbucket until the requests for the next ones are there.
#[test]
fn requests_for_the_next_vbuckets_are_sent_while_one_streams() {
    let (options, _server) = serve(1, |mut peer: Peer| {
        let mut waiting = Vec::new();
        let mut seen = Vec::new();
        while let Some(asked) = peer.next_after_bootstrap() {
            let vbucket = asked.frame().vbucket().0;
            if asked.frame().opcode() == Opcode::RANGE_SCAN_CREATE {
                seen.push(format!("create {vbucket}"));
                let created = asked.answer(Status::SUCCESS);
                let mut bytes = Vec::new();
                created.value(&[vbucket as u8; 16]).encode(&mut bytes);
                waiting.push(bytes);
            } else {
                seen.push(format!("continue {vbucket}"));
                waiting.push(keys_answer(&asked, Status::RANGE_SCAN_COMPLETE, b"\x01k"));
            }
            // The first two creates at once, everything else when the third create and second continue are here.
            if seen.len() <= 2 || seen.len() >= 5 {
                waiting.drain(..).for_each(|bytes| peer.send_bytes(&bytes));
            }
        }
        let expected = [
            "create 0",
            "create 1",
            "continue 0",
            "create 2",
            "continue 1",
            "create 3",
            "continue 2",
            "continue 3",
        ];
        assert_eq!(seen, expected);
    });
    let mut connection = Connection::open(&options).unwrap();
    let mut vbuckets = (0..4).map(VbId);
    let mut order = Vec::new();
    let counts =
        scan_vbuckets(&mut connection, &ScanPlan::new(key_scan()), || vbuckets.next(), &mut |vbucket, _| {
            order.push(vbucket.0);
            Ok(())
        });
    assert_eq!(counts.unwrap().records.records, 4);
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn output_that_fails_ends_the_scan() {
    let (options, _server) = serve(1, |peer| scanner(peer, 10, 1000));
    let mut connection = Connection::open(&options).unwrap();
    let broken = &mut |_: ScanRecord<'_>| Err(io::Error::from(io::ErrorKind::BrokenPipe));
    let error = scan_vbucket(&mut connection, &ScanPlan::new(key_scan()), VbId(0), broken);
    assert!(matches!(error, Err(ClientError::Output(_))));
}

#[test]
fn statistics_end_with_the_empty_pair_and_an_empty_key_alone_does_not_end_them() {
    let (options, _server) = serve(1, |mut peer: Peer| {
        while let Some(asked) = peer.next_after_bootstrap() {
            if asked.frame().key == b"nonsense" {
                peer.send(&asked.answer(Status::KEY_ENOENT));
                continue;
            }
            peer.send(&asked.answer(Status::SUCCESS).key(b"uptime").value(b"7"));
            peer.send(&asked.answer(Status::SUCCESS).value(b"{}"));
            peer.send(&asked.answer(Status::SUCCESS));
        }
    });
    let mut connection = Connection::open(&options).unwrap();
    let mut entries = Vec::new();
    connection.stats("", |key, value| entries.push((key.to_vec(), value.to_vec()))).unwrap();
    assert_eq!(entries, [(b"uptime".to_vec(), b"7".to_vec()), (Vec::new(), b"{}".to_vec())]);
    let error = connection.stats("nonsense", |_, _| panic!("no entry")).unwrap_err();
    assert_eq!(error.status(), Some(Status::KEY_ENOENT));
    connection.stats("", |_, _| ()).expect("the connection is usable after a refused group");
}

/// The answer, a noop and the messages come torn into small pieces; then a stream is refused.
#[test]
fn frames_of_streams_come_in_order_between_answers_and_noops_and_are_counted() {
    let (options, _server) = serve(1, |mut peer| {
        while let Some(asked) = peer.next_after_bootstrap() {
            let (opcode, opaque, vbucket) =
                (asked.frame().opcode(), asked.frame().opaque(), asked.frame().vbucket());
            if opcode != Opcode::DCP_STREAM_REQ {
                peer.send(&asked.answer(Status::SUCCESS));
                continue;
            }
            if vbucket == VbId(3) {
                peer.send(&asked.answer(Status::NOT_MY_VBUCKET));
                continue;
            }
            let mut bytes = Vec::new();
            asked.answer(Status::SUCCESS).value(&[7; 16]).encode(&mut bytes);
            let envelope = Envelope::new(vbucket, opaque);
            DcpMessage::SeqnoAdvanced(Seqno(5)).encode(envelope, &mut bytes);
            DcpMessage::Noop.encode(envelope, &mut bytes);
            DcpMessage::StreamEnd(StreamEndStatus::Ok).encode(envelope, &mut bytes);
            peer.send_in_pieces(&bytes, 50);
            assert_eq!(peer.next().unwrap().frame().opcode(), Opcode::DCP_NOOP);
        }
    });
    let options_of_dcp = DcpOptions { window_bytes: 0, noop_interval: None, ..DcpOptions::named("frames") };
    let mut client = DcpClient::open(Connection::open(&options).unwrap(), &options_of_dcp).unwrap();
    client.ask(VbId(1), &StreamRequest::FROM_NOTHING).unwrap();
    let mut came = Vec::new();
    while came.len() < 2 {
        client.frames(|frame| came.push((frame.opcode(), frame.vbucket()))).unwrap();
    }
    assert_eq!(came, [(Opcode::DCP_SEQNO_ADVANCED, VbId(1)), (Opcode::DCP_STREAM_END, VbId(1))]);
    assert_eq!((client.noops(), client.message_bytes()), (1, 32 + 28));
    client.ask(VbId(3), &StreamRequest::FROM_NOTHING).unwrap();
    let error = client.frames(|frame| panic!("{frame:?}")).unwrap_err();
    assert_eq!(error.status(), Some(Status::NOT_MY_VBUCKET));
}
