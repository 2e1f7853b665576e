//! How a connection begins: bursts, authentication, what a stranger may do, statistics.

use ringbase::auth::user::ITERATIONS_DEFAULT;
use ringbase::auth::users::os_random;
use ringbase::auth::{Role, User, Users};
use ringbase::client::{ClientError, Connection};
use ringbase::protocol::hello::{Agent, Feature};
use ringbase::protocol::{Features, Opcode, Request, Status};

use super::rig::{Node, Place, Setup, for_each_core_count, frame, get, set, stat};

/// A users file with one user.
fn users_file(place: &Place, name: &str, password: &str) -> String {
    let mut users = Users::empty(&mut os_random);
    let user = User::new(Role::Admin, password.as_bytes(), ITERATIONS_DEFAULT, &mut os_random).unwrap();
    users.add(name, user).unwrap();
    let path = place.path().join("users.json");
    users.save(&path).unwrap();
    path.to_str().unwrap().to_owned()
}

/// SDKs send HELLO, GET_ERROR_MAP, SASL, SELECT_BUCKET and GET_CLUSTER_CONFIG without waiting for answers.
#[test]
fn a_bootstrap_burst_in_one_write_is_answered_in_order() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let agent = Agent { name: "test".to_owned(), connection_id: None }.encode();
        let features = Features::of(&[Feature::Xerror, Feature::SelectBucket, Feature::Json]).encode();
        let requests = [
            Request::new(Opcode::HELLO).key(&agent).value(&features),
            Request::new(Opcode::GET_ERROR_MAP).value(&[0, 2]),
            Request::new(Opcode::SASL_LIST_MECHS),
            Request::new(Opcode::SASL_AUTH).key(b"PLAIN").value(b"\0Administrator\0password"),
            Request::new(Opcode::SELECT_BUCKET).key(b"default"),
            Request::new(Opcode::GET_CLUSTER_CONFIG),
            Request::new(Opcode::GET).key(b"nothing"),
        ];
        let burst: Vec<u8> =
            (10..).zip(requests).flat_map(|(opaque, request)| frame(request.opaque(opaque))).collect();
        for piece_bytes in [burst.len(), 7, 1] {
            let mut raw = node.raw();
            for piece in burst.chunks(piece_bytes) {
                raw.send_bytes(piece);
            }
            let answers: Vec<_> = requests.iter().map(|_| raw.answer()).collect();
            let opaques: Vec<u32> = answers.iter().map(|answer| answer.opaque).collect();
            assert_eq!(opaques, (10..17).collect::<Vec<u32>>(), "pieces of {piece_bytes}");
            let (last, first) = answers.split_last().unwrap();
            assert!(first.iter().all(|answer| answer.status == Status::SUCCESS), "{first:?}");
            // The last is a GET of another vbucket than the key's, or of a key that is not there.
            assert!(matches!(last.status, Status::KEY_ENOENT | Status::NOT_MY_VBUCKET), "{last:?}");
            let map: serde_json::Value = serde_json::from_slice(&first[5].value).unwrap();
            assert_eq!(map["vBucketServerMap"]["vBucketMap"].as_array().unwrap().len(), 16);
        }
    });
}

#[test]
fn without_a_users_file_a_plain_client_is_in_the_default_bucket_at_once() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        assert_eq!(node.ready["open"], true);
        let mut raw = node.raw();
        assert_eq!(raw.ask(set(b"k", b"v", 16)).status, Status::SUCCESS);
        assert_eq!(raw.ask(get(b"k", 16)).value, b"v");
    });
}

#[test]
fn with_a_users_file_only_the_right_password_opens_the_bucket() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let users = users_file(&place, "anna", "secret");
        let node = Node::start(&place.data(), &setup.with(&["--users", &users]));
        assert_eq!(node.ready["open"], false);

        let mut connection = Connection::open(&node.connect_as("anna", "secret")).unwrap();
        assert_eq!(connection.vbucket_count().unwrap(), 16);
        for (user, password) in [("anna", "wrong"), ("nobody", "secret"), ("Administrator", "password")] {
            let refused = Connection::open(&node.connect_as(user, password)).unwrap_err();
            assert!(matches!(refused, ClientError::Authentication { .. }), "{user}: {refused:?}");
        }
        let mut raw = node.raw();
        let wrong = Request::new(Opcode::SASL_AUTH).key(b"PLAIN").value(b"\0anna\0wrong");
        assert_eq!(raw.ask(wrong).status, Status::AUTH_ERROR);
    });
}

/// Row 7 of the protocol's checks: EACCESS, even for opcodes that do not exist, and the connection stays.
#[test]
fn a_stranger_is_refused_everything_but_the_bootstrap_and_stays_connected() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let users = users_file(&place, "anna", "secret");
        let node = Node::start(&place.data(), &setup.with(&["--users", &users]));
        let mut raw = node.raw();
        let agent = Agent { name: "test".to_owned(), connection_id: None }.encode();
        let features = Features::of(&[Feature::Xerror]).encode();
        assert_eq!(raw.ask(Request::new(Opcode::HELLO).key(&agent).value(&features)).status, Status::SUCCESS);
        for request in [get(b"k", 16), set(b"k", b"v", 16), Request::new(Opcode(0xfd))] {
            assert_eq!(raw.ask(request).status, Status::EACCESS);
        }
        let stat = raw.ask(Request::new(Opcode::STAT));
        assert_eq!(stat.status, Status::EACCESS);
        let right = Request::new(Opcode::SASL_AUTH).key(b"PLAIN").value(b"\0anna\0secret");
        assert_eq!(raw.ask(right).status, Status::SUCCESS);
        assert_eq!(raw.ask(Request::new(Opcode::SELECT_BUCKET).key(b"default")).status, Status::SUCCESS);
        assert_eq!(raw.ask(set(b"k", b"v", 16)).status, Status::SUCCESS);
    });
}

/// Row 2 of the protocol's checks.
#[test]
fn a_stranger_who_announces_more_than_16_kib_is_cut_off_before_sending_it() {
    let place = Place::new();
    let users = users_file(&place, "anna", "secret");
    let node = Node::start(&place.data(), &Setup::cores(1).with(&["--users", &users]));
    let mut raw = node.raw();
    let huge = frame(Request::new(Opcode::SASL_AUTH).key(b"PLAIN").value(&vec![0; 16 * 1024]));
    raw.send_bytes(&huge[..24]);
    assert_eq!(raw.next_answer(), None);
    let mut raw = node.raw();
    let value = vec![b'x'; 16 * 1024 - 24 - 5];
    assert_eq!(raw.ask(Request::new(Opcode::SASL_AUTH).key(b"PLAIN").value(&value)).status, Status::EINVAL);
}

#[test]
fn every_group_of_statistics_answers_and_an_unknown_one_is_refused() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut connection = node.connect();
        for group in ["", "uuid", "vbucket-details", "vbucket-seqno", "failovers", "range-scans", "timings"] {
            let mut entries = 0;
            connection.stats(group, |_, _| entries += 1).unwrap();
            assert!(entries > 0, "{group}");
        }
        assert!(stat(&mut connection, "", "ring_enters").is_some());
        for vbucket in 0..16 {
            let name = format!("vb_{vbucket}:high_seqno");
            assert_eq!(stat(&mut connection, "vbucket-seqno", &name).as_deref(), Some("0"), "{name}");
        }
        let refused = connection.stats("no-such-group", |_, _| {}).unwrap_err();
        assert_eq!(refused.status(), Some(Status::KEY_ENOENT));
    });
}

#[test]
fn the_management_port_answers_http_with_404() {
    use std::io::{Read, Write};
    let place = Place::new();
    let node = Node::start(&place.data(), &Setup::cores(1));
    let mut stream = std::net::TcpStream::connect(node.ready["mgmt_listen"].as_str().unwrap()).unwrap();
    stream.write_all(b"GET /pools HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 404"), "{text}");
}
