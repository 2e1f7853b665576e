//! Xattrs and versions made elsewhere over TCP: what brings them in, what readers, streams and range scans see of them, also after a kill.

use std::collections::BTreeMap;

use ringbase::client::{
    Brought, Bucket, ClientError, ConnectOptions, Connection, DcpClient, DcpOptions, ScanPlan, ScanRecord,
    StoreMode, scan_vbucket,
};
use ringbase::protocol::dcp::{
    DcpMessage, MarkerFlags, OpenFlags, StreamEndStatus, StreamFlags, StreamReply, StreamRequest,
};
use ringbase::protocol::extras::StoreExtras;
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase::protocol::with_meta::{MetaOptions, WithMetaExtras};
use ringbase::protocol::xattr::build_section;
use ringbase::protocol::{Datatype, Feature, Opcode, Request, Status};
use ringbase_storage::types::{Cas, Seqno, VbId, VbUuid};

use super::rig::{Node, PATIENCE, Place, Setup, for_each_kind, key_in};

const VBUCKETS: u16 = 16;
const BOTH: [(&str, &str); 2] = [("author", "\"x\""), ("_sync", "{\"rev\":1}")];
const SYSTEM: [(&str, &str); 1] = [("_sync", "{\"rev\":1}")];
const PLAIN: StoreExtras = StoreExtras { flags: 0, expiry: 0 };
const JX: Datatype = Datatype(5);

fn value(pairs: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    [&build_section(pairs.iter().copied())[..], body].concat()
}

/// A connection to a bucket that takes xattrs.
fn connect(node: &Node, bucket: &str) -> Connection {
    let features = ConnectOptions::FEATURES.with(Feature::Xattr).with(Feature::RangeScanIncludeXattr);
    let options = ConnectOptions { bucket: Some(bucket.into()), features, ..node.connect_options() };
    let connection = Connection::open(&options).unwrap();
    assert!(
        connection.features().has(Feature::Xattr)
            && connection.features().has(Feature::RangeScanIncludeXattr)
    );
    connection
}

fn extras(revid: u64, cas: u64) -> WithMetaExtras {
    WithMetaExtras { revid, cas: Cas(cas), ..WithMetaExtras::default() }
}

fn refused<T>(result: Result<T, ClientError>) -> Option<Status> {
    result.err().map(|error| error.status().expect("the node answers"))
}

/// What a vbucket's stream and scan are about: one document of each kind, and tombstones.
fn fill(connection: &mut Connection, vbucket: VbId) -> BTreeMap<&'static str, Vec<u8>> {
    let mut bucket = Bucket::new(connection).unwrap();
    let names = ["plain", "both", "kept", "removed", "brought", "user"];
    let keys: BTreeMap<_, _> =
        names.map(|name| (name, key_in(vbucket, VBUCKETS, name).into_bytes())).into_iter().collect();
    bucket.store(StoreMode::Set, &keys["plain"], b"[1]", PLAIN, Cas(0)).unwrap();
    let with_body = value(&BOTH, b"{\"a\":1}");
    for name in ["both", "kept", "removed"] {
        let brought = Brought { value: &with_body, datatype: JX, extras: extras(7, 1000) };
        let stored = bucket.store_with_meta(StoreMode::Add, &keys[name], &brought, Cas(0)).unwrap();
        assert_eq!(stored.cas, Cas(1000));
        assert!(stored.token.is_some());
    }
    bucket.store(StoreMode::Set, &keys["kept"], b"other", PLAIN, Cas(1000)).unwrap();
    bucket.delete(&keys["removed"], Cas(0)).unwrap();
    for (name, pairs) in [("brought", &BOTH[..]), ("user", &BOTH[..1])] {
        let section = value(pairs, b"");
        let brought = Brought { value: &section, datatype: Datatype::XATTR, extras: extras(9, 2000) };
        bucket.delete_with_meta(&keys[name], &brought, Cas(0)).unwrap();
    }
    keys
}

/// Set with metadata, get strips, set keeps, delete keeps the system's, and the better version stays.
#[test]
fn versions_made_elsewhere_come_in_and_readers_see_bodies() {
    for_each_kind(|node, name| {
        let connection = &mut connect(node, name);
        for vbucket in [VbId(2), VbId(5)] {
            let keys = fill(connection, vbucket);
            let mut bucket = Bucket::new(connection).unwrap();
            let both = bucket.get(&keys["both"]).unwrap();
            assert_eq!(
                (&both.value[..], both.datatype, both.cas),
                (&b"{\"a\":1}"[..], Datatype::JSON, Cas(1000))
            );
            let kept = bucket.get(&keys["kept"]).unwrap();
            assert_eq!((&kept.value[..], kept.datatype), (&b"other"[..], Datatype::RAW));
            assert!(kept.cas > Cas(1 << 50), "a CAS of here");
            for (name, deleted, revid, datatype) in [
                ("plain", false, 1, 1),
                ("both", false, 7, 5),
                ("kept", false, 8, 4),
                ("removed", true, 8, 4),
                ("brought", true, 9, 4),
            ] {
                let meta = bucket.get_meta(&keys[name]).unwrap();
                assert_eq!(
                    (meta.is_deleted, meta.revid, meta.datatype.0),
                    (deleted, revid, datatype),
                    "{name}"
                );
            }
            let brought = |revid| Brought { value: b"", datatype: Datatype::RAW, extras: extras(revid, 1) };
            let key = &keys["both"];
            assert_eq!(
                refused(bucket.store_with_meta(StoreMode::Set, key, &brought(6), Cas(0))),
                Some(Status::KEY_EEXISTS)
            );
            assert_eq!(refused(bucket.delete_with_meta(key, &brought(6), Cas(0))), Some(Status::KEY_EEXISTS));
            assert_eq!(
                refused(bucket.store_with_meta(StoreMode::Add, key, &brought(8), Cas(0))),
                Some(Status::KEY_EEXISTS)
            );
            let broken = Brought { value: b"\0\0\0\x09", datatype: Datatype::XATTR, extras: extras(99, 1) };
            assert_eq!(
                refused(bucket.store_with_meta(StoreMode::Set, key, &broken, Cas(0))),
                Some(Status::XATTR_EINVAL)
            );
            let deleted = bucket.delete_with_meta(key, &brought(8), Cas(1000)).unwrap();
            assert_eq!((deleted.cas, refused(bucket.get(key))), (Cas(1), Some(Status::KEY_ENOENT)));
            // What was made elsewhere in the future moves the clock of its vbucket.
            let future = Brought { extras: extras(50, 1 << 62), ..brought(0) };
            bucket.store_with_meta(StoreMode::Set, key, &future, Cas(0)).unwrap();
            let next = bucket.store(StoreMode::Set, &keys["plain"], b"2", PLAIN, Cas(0)).unwrap();
            assert!(next.cas > Cas(1 << 62));
        }
    });
}

/// A bucket that goes by time wants to be told that the client knows; its way cannot be changed.
#[test]
fn a_bucket_that_resolves_by_time_says_so() {
    let place = Place::new();
    let node = Node::start(&place.data(), &Setup::cores(1));
    node.connect().create_bucket("times", "conflict_resolution_type=lww").unwrap();
    let connection = &mut connect(&node, "times");
    let mut bucket = Bucket::new(connection).unwrap();
    let brought = |options, cas| Brought {
        value: b"1",
        datatype: Datatype::RAW,
        extras: WithMetaExtras { options, ..extras(1, cas) },
    };
    let accept = Some(MetaOptions::FORCE_ACCEPT);
    let mut set =
        |options, cas| refused(bucket.store_with_meta(StoreMode::Set, b"k", &brought(options, cas), Cas(0)));
    assert_eq!(set(None, 50), Some(Status::EINVAL));
    assert_eq!(set(accept, 50), None);
    assert_eq!(set(accept, 49), Some(Status::KEY_EEXISTS));
    assert_eq!(set(accept, 51), None);
}

/// The documents of a stream: whether it is a deletion, datatype, value.
type Seen = BTreeMap<Vec<u8>, (bool, u8, Vec<u8>)>;

/// Reads a vbucket once; also whether any of it came from disk.
fn stream(node: &Node, bucket: &str, vbucket: VbId, open: OpenFlags, disk_only: bool) -> (Seen, bool) {
    let name = format!("xattrs-{vbucket}-{:#x}", open.bits());
    let options = DcpOptions { flags: open, ..DcpOptions::named(name) };
    let mut client = DcpClient::open(connect(node, bucket), &options).unwrap();
    let flags = if disk_only { StreamFlags::DISK_ONLY } else { StreamFlags::TO_LATEST };
    let (none, end) = (Seqno(0), StreamRequest::NO_END);
    let request =
        StreamRequest { flags, start: none, end, uuid: VbUuid(0), snap_start: none, snap_end: none };
    let reply = client.stream(vbucket, &request, None).unwrap();
    assert!(matches!(reply, StreamReply::Accepted(_)), "{reply:?}");
    let (mut seen, mut from_disk, mut is_over) = (Seen::new(), false, false);
    while !is_over {
        let taken = client.next_within(PATIENCE, |_, message| match message {
            DcpMessage::SnapshotMarker(marker) => from_disk |= marker.flags.contains(MarkerFlags::DISK),
            DcpMessage::Mutation(mutation) => {
                seen.insert(mutation.key.to_vec(), (false, mutation.datatype.0, mutation.value.to_vec()));
            }
            DcpMessage::Deletion(deletion) => {
                seen.insert(deletion.key.to_vec(), (true, deletion.datatype.0, deletion.value.to_vec()));
            }
            DcpMessage::StreamEnd(status) => {
                assert_eq!(*status, StreamEndStatus::Ok);
                is_over = true;
            }
            other => panic!("{other:?}"),
        });
        assert!(taken.unwrap().is_some(), "no end");
    }
    (seen, from_disk)
}

/// What is seen with these flags of what [`fill`] has written.
fn expected(keys: &BTreeMap<&str, Vec<u8>>, open: OpenFlags) -> Seen {
    let xattrs = open.contains(OpenFlags::INCLUDE_XATTRS);
    let users = open.contains(OpenFlags::INCLUDE_DELETED_USER_XATTRS);
    let has_bodies = !open.omits_values();
    let tells = !open.contains(OpenFlags::NO_VALUE);
    let document = |pairs: &[(&str, &str)], body: &[u8], json: u8| {
        let body = if has_bodies { body } else { b"" };
        let json = if tells { json } else { 0 };
        match xattrs && !pairs.is_empty() {
            true => (false, json | 4, value(pairs, body)),
            false => (false, json, body.to_vec()),
        }
    };
    let tombstone = |pairs: &[(&str, &str)]| match xattrs && !pairs.is_empty() {
        true => (true, 4, value(pairs, b"")),
        false => (true, 0, Vec::new()),
    };
    let seen = [
        ("plain", document(&[], b"[1]", 1)),
        ("both", document(&BOTH, b"{\"a\":1}", 1)),
        ("kept", document(&BOTH, b"other", 0)),
        ("removed", tombstone(&SYSTEM)),
        ("brought", tombstone(if users { &BOTH } else { &SYSTEM })),
        ("user", tombstone(if users { &BOTH[..1] } else { &[] })),
    ];
    seen.into_iter().map(|(name, seen)| (keys[name].clone(), seen)).collect()
}

fn all_flags() -> impl Iterator<Item = OpenFlags> {
    let plain = OpenFlags::PRODUCER;
    let xattrs = plain | OpenFlags::INCLUDE_XATTRS;
    let users = xattrs | OpenFlags::INCLUDE_DELETED_USER_XATTRS;
    let values = [OpenFlags::NONE, OpenFlags::NO_VALUE, OpenFlags::NO_VALUE_WITH_UNDERLYING_DATATYPE];
    [plain, xattrs, users].into_iter().flat_map(move |open| values.map(|value| open | value))
}

/// DCP, "Datatype/value": streams have xattrs as their connection asked for them.
#[test]
fn streams_have_the_xattrs_that_their_connection_asked_for() {
    for_each_kind(|node, name| {
        let keys = fill(&mut connect(node, name), VbId(3));
        for open in all_flags() {
            let (seen, _) = stream(node, name, VbId(3), open, false);
            assert_eq!(seen, expected(&keys, open), "{open:?}");
        }
    });
}

/// The documents of a vbucket with xattrs or without, as a range scan returns them.
fn scan(connection: &mut Connection, vbucket: VbId, include_xattrs: bool) -> Seen {
    let plan = ScanPlan::new(RangeScanCreate { include_xattrs, ..RangeScanCreate::default() });
    let mut seen = Seen::new();
    scan_vbucket(connection, &plan, vbucket, &mut |record| {
        let ScanRecord::Document(document) = record else { panic!("a key") };
        let datatype = document.datatype.0;
        seen.insert(document.key.to_vec(), (false, datatype, document.value.to_vec()));
        Ok(())
    })
    .unwrap();
    seen
}

fn documents_of(mut seen: Seen) -> Seen {
    seen.retain(|_, (is_deleted, ..)| !*is_deleted);
    seen
}

/// Range scans: bodies, or all that is stored for who asks for it and has the feature.
#[test]
fn range_scans_return_bodies_or_with_xattrs_what_is_stored() {
    for_each_kind(|node, name| {
        let connection = &mut connect(node, name);
        let keys = fill(connection, VbId(4));
        for include in [false, true] {
            let open = if include { OpenFlags::INCLUDE_XATTRS } else { OpenFlags::NONE };
            assert_eq!(scan(connection, VbId(4), include), documents_of(expected(&keys, open)), "{include}");
        }
        let mut raw = node.raw();
        raw.ask(Request::new(Opcode::HELLO).value(&[0, 7, 0, 11]));
        raw.ask(Request::new(Opcode::SELECT_BUCKET).key(name.as_bytes()));
        let json = br#"{"include_xattrs":true}"#;
        let create =
            Request::new(Opcode::RANGE_SCAN_CREATE).vbucket(VbId(4)).datatype(Datatype::JSON).value(json);
        assert_eq!(raw.ask(create).status, Status::NOT_SUPPORTED, "without the feature");
    });
}

/// After a kill the log says it all, after a stop the data file.
#[test]
fn xattrs_outlive_a_kill_and_a_stop() {
    let place = Place::new();
    let setup = Setup::cores(1);
    let node = Node::start(&place.data(), &setup);
    let mut connection = connect(&node, "default");
    let keys = fill(&mut connection, VbId(6));
    let mut bucket = Bucket::new(&mut connection).unwrap();
    let last = bucket.store(StoreMode::Set, &keys["plain"], b"[1]", PLAIN, Cas(0)).unwrap();
    connection.wait_persisted(&[(VbId(6), last.token.unwrap())], PATIENCE).unwrap();
    let check = |node: &Node| {
        for open in all_flags() {
            for disk_only in [false, true] {
                let (seen, from_disk) = stream(node, "default", VbId(6), open, disk_only);
                assert_eq!(seen, expected(&keys, open), "{open:?}");
                assert!(from_disk || !disk_only);
            }
        }
        let connection = &mut connect(node, "default");
        let open = OpenFlags::INCLUDE_XATTRS;
        assert_eq!(scan(connection, VbId(6), true), documents_of(expected(&keys, open)));
        let mut bucket = Bucket::new(connection).unwrap();
        assert_eq!(bucket.get_meta(&keys["both"]).unwrap().cas, Cas(1000));
        assert_eq!(bucket.get(&keys["kept"]).unwrap().value, b"other");
    };
    check(&node);
    node.kill();
    let node = Node::start(&place.data(), &setup);
    check(&node);
    assert!(node.stop().success());
    let node = Node::start(&place.data(), &setup);
    check(&node);
}
