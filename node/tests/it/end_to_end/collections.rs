//! Collections over TCP, with one core and with two, on disk and in memory: the manifest, documents, scans, statistics, and what a restart keeps.

use ringbase::client::{ClientError, ConnectOptions, Connection};
use ringbase::protocol::extras::StoreExtras;
use ringbase::protocol::leb128::Leb128;
use ringbase::protocol::range_scan::{RangeScanContinue, RangeScanCreate, ScanId};
use ringbase::protocol::{
    CollectionId, Datatype, ErrorContext, Feature, Opcode, Request, Status, vbucket_of,
};
use ringbase_storage::types::VbId;

use super::rig::{Node, Place, Raw, Setup, eventually, for_each_core_count, for_each_kind, stat};

pub(crate) const VBUCKETS: u16 = 16;

/// `{"uid": uid, scopes}` with the default scope, which has the default collection and `more`, and other scopes.
pub(crate) fn manifest(uid: u64, more: &str, scopes: &str) -> String {
    let default = r#"{"name":"_default","uid":"0"}"#;
    format!(
        r#"{{"uid":"{uid:x}","scopes":[{{"name":"_default","uid":"0","collections":[{default}{more}]}}{scopes}]}}"#
    )
}

pub(crate) const SHOP: &str =
    r#",{"name":"shop","uid":"8","collections":[{"name":"orders","uid":"9"},{"name":"carts","uid":"cafe"}]}"#;

/// The key of a document in a collection.
fn key(collection: u32, name: &str) -> Vec<u8> {
    [Leb128::encode(collection).as_bytes(), name.as_bytes()].concat()
}

/// A connection with these features beside the usual ones.
pub(crate) fn connect(node: &Node, bucket: &str, features: &[Feature]) -> Connection {
    let features = features.iter().fold(ConnectOptions::FEATURES, |all, feature| all.with(*feature));
    let options = ConnectOptions { bucket: Some(bucket.into()), features, ..node.connect_options() };
    Connection::open(&options).unwrap()
}

pub(crate) fn with_collections(node: &Node, bucket: &str) -> Connection {
    connect(node, bucket, &[Feature::Collections])
}

fn status<T>(result: Result<T, ClientError>) -> Status {
    result.err().map_or(Status::SUCCESS, |error| error.status().unwrap_or_else(|| panic!("{error}")))
}

/// Stores a document; waits while the node makes room.
pub(crate) fn set(connection: &mut Connection, collection: u32, name: &str, value: &[u8]) -> Status {
    let (key, extras) = (key(collection, name), StoreExtras { flags: 0, expiry: 0 }.encode());
    let vb = vbucket_of(name.as_bytes(), VBUCKETS);
    loop {
        let request = Request::new(Opcode::SET).vbucket(vb).extras(&extras).key(&key).value(value);
        match status(connection.call(request, |_| ())) {
            Status::ETMPFAIL => std::thread::yield_now(),
            other => return other,
        }
    }
}

pub(crate) fn get(connection: &mut Connection, collection: u32, name: &str) -> Result<Vec<u8>, Status> {
    let key = key(collection, name);
    let request = Request::new(Opcode::GET).vbucket(vbucket_of(name.as_bytes(), VBUCKETS)).key(&key);
    connection.call(request, |frame| frame.value.to_vec()).map_err(|error| status::<()>(Err(error)))
}

/// Without Collections.
fn get_plain(connection: &mut Connection, name: &str) -> Result<Vec<u8>, Status> {
    let request = Request::new(Opcode::GET);
    let request = request.vbucket(vbucket_of(name.as_bytes(), VBUCKETS)).key(name.as_bytes());
    connection.call(request, |frame| frame.value.to_vec()).map_err(|error| status::<()>(Err(error)))
}

/// A raw connection in a bucket, with Collections.
pub(crate) fn raw(node: &Node, bucket: &str) -> Raw {
    let mut raw = node.raw();
    let features = [Feature::SelectBucket, Feature::Json, Feature::Xerror, Feature::Collections];
    let features: Vec<u8> = features.iter().flat_map(|feature| (*feature as u16).to_be_bytes()).collect();
    assert_eq!(raw.ask(Request::new(Opcode::HELLO).value(&features)).status, Status::SUCCESS);
    assert_eq!(raw.ask(Request::new(Opcode::SELECT_BUCKET).key(bucket.as_bytes())).status, Status::SUCCESS);
    raw
}

fn scan(raw: &mut Raw, vb: VbId, collection: u32) -> Result<ScanId, (Status, Option<u64>)> {
    let create = RangeScanCreate {
        collection: CollectionId(collection),
        key_only: true,
        ..RangeScanCreate::default()
    };
    let value = create.encode();
    let request = Request::new(Opcode::RANGE_SCAN_CREATE).vbucket(vb).datatype(Datatype::JSON).value(&value);
    let answer = raw.ask(request);
    match answer.status {
        Status::SUCCESS => Ok(ScanId(answer.value.try_into().unwrap())),
        status => Err((status, ErrorContext::decode(&answer.value).manifest_uid)),
    }
}

/// The names of the keys of one continue, and its last status.
fn advance(raw: &mut Raw, vb: VbId, id: ScanId, items: u32) -> (Vec<String>, Status) {
    let request = RangeScanContinue { id, item_limit: items, time_limit_ms: 0, byte_limit: 0 };
    let extras = request.encode();
    raw.send(Request::new(Opcode::RANGE_SCAN_CONTINUE).vbucket(vb).extras(&extras));
    let mut keys = Vec::new();
    loop {
        let answer = raw.answer();
        let mut rest = &answer.value[..];
        while answer.extras.len() == 4 && !rest.is_empty() {
            let (len, behind) = ringbase::protocol::leb128::decode(rest).unwrap();
            let (key, behind) = behind.split_at(len as usize);
            keys.push(String::from_utf8(key.to_vec()).unwrap());
            rest = behind;
        }
        if answer.status != Status::SUCCESS {
            return (keys, answer.status);
        }
    }
}

#[test]
fn a_manifest_is_set_once_answers_names_and_may_only_be_followed_by_a_later_one() {
    for_each_kind(|node, bucket| {
        let mut connection = with_collections(node, bucket);
        assert_eq!(connection.manifest().unwrap().uid(), 0);
        let first = manifest(0x1f, "", SHOP);
        for _ in 0..2 {
            assert_eq!(
                status(connection.set_manifest(first.as_bytes())),
                Status::SUCCESS,
                "also a second time"
            );
        }
        let mut other = with_collections(node, bucket);
        assert_eq!(other.manifest().unwrap(), connection.manifest().unwrap());
        assert_eq!(connection.collection_id("shop.orders").unwrap(), CollectionId(9));
        assert_eq!(connection.collection_id(".").unwrap(), CollectionId(0));
        let map = connection.call(Request::new(Opcode::GET_CLUSTER_CONFIG), |frame| frame.value.to_vec());
        let map: serde_json::Value = serde_json::from_slice(&map.unwrap()).unwrap();
        assert_eq!(map["collectionsManifestUid"], "1f");

        let mut raw = raw(node, bucket);
        for (opcode, path, status) in [
            (Opcode::COLLECTIONS_GET_ID, "shop.none", Status::UNKNOWN_COLLECTION),
            (Opcode::COLLECTIONS_GET_ID, "none.orders", Status::UNKNOWN_SCOPE),
            (Opcode::COLLECTIONS_GET_SCOPE_ID, "none", Status::UNKNOWN_SCOPE),
        ] {
            let answer = raw.ask(Request::new(opcode).value(path.as_bytes()));
            let uid = ErrorContext::decode(&answer.value).manifest_uid;
            assert_eq!((answer.status, uid), (status, Some(0x1f)), "{path}");
        }
        for (json, status, says) in [
            (
                manifest(0x1e, "", SHOP),
                Status::CANNOT_APPLY_COLLECTIONS_MANIFEST,
                "0x1e, the bucket has 0x1f",
            ),
            (manifest(0x1f, "", ""), Status::CANNOT_APPLY_COLLECTIONS_MANIFEST, "says something else"),
            (
                manifest(0x20, "", &SHOP.replace("orders", "sales")),
                Status::CANNOT_APPLY_COLLECTIONS_MANIFEST,
                "is called \"orders\"",
            ),
            (manifest(0x20, "", &SHOP.replace("\"9\"", "\"7\"")), Status::EINVAL, "1 to 7 are reserved"),
            ("{}".to_owned(), Status::EINVAL, "not the JSON"),
        ] {
            let answer = raw.ask(Request::new(Opcode::COLLECTIONS_SET_MANIFEST).value(json.as_bytes()));
            assert_eq!(answer.status, status, "{json}");
            assert!(answer.context().contains(says), "{}", answer.context());
        }
        assert_eq!(status(connection.set_manifest(manifest(0x20, "", "").as_bytes())), Status::SUCCESS);
        let again = connection.set_manifest(manifest(0x21, "", SHOP).as_bytes()).unwrap_err().to_string();
        assert!(again.contains("ids are not used again"), "{again}");
    });
}

#[test]
fn every_keyed_command_works_in_a_collection_and_says_so_where_there_is_none() {
    for_each_kind(|node, bucket| {
        let mut admin = with_collections(node, bucket);
        admin.set_manifest(manifest(1, "", SHOP).as_bytes()).unwrap();
        let mut raw = raw(node, bucket);
        let vb = vbucket_of(b"counter", VBUCKETS);
        let (plain, arithmetic) = ([0; 8], [&1u64.to_be_bytes()[..], &7u64.to_be_bytes(), &[0; 4]].concat());
        for (collection, expected) in [(0xcafe, None), (0x999, Some(Status::UNKNOWN_COLLECTION))] {
            let key = key(collection, "counter");
            for (opcode, extras, value) in [
                (Opcode::INCREMENT, &arithmetic[..], &b""[..]),
                (Opcode::DECREMENT, &arithmetic, b""),
                (Opcode::APPEND, &[], b"1"),
                (Opcode::PREPEND, &[], b"1"),
                (Opcode::REPLACE, &plain, b"5"),
                (Opcode::GET, &[], b""),
                (Opcode::GET_K, &[], b""),
                (Opcode::GET_META, &[], b""),
                (Opcode::TOUCH, &[0; 4], b""),
                (Opcode::GAT, &[0; 4], b""),
                (Opcode::GET_LOCKED, &[0, 0, 0, 1], b""),
                (Opcode::DELETE, &[], b""),
                (Opcode::ADD, &plain, b"new"),
                (Opcode::SET, &plain, b"new"),
            ] {
                let ask =
                    |cas| Request::new(opcode).vbucket(vb).key(&key).extras(extras).value(value).cas(cas);
                let mut answer = raw.ask(ask(Default::default()));
                if expected.is_none() && answer.status == Status::LOCKED {
                    eventually("the lock ends", || {
                        answer = raw.ask(ask(Default::default()));
                        answer.status != Status::LOCKED
                    });
                }
                let expected = expected.unwrap_or(Status::SUCCESS);
                assert_eq!(answer.status, expected, "{opcode} in {collection:x}");
                if expected == Status::UNKNOWN_COLLECTION {
                    assert_eq!(ErrorContext::decode(&answer.value).manifest_uid, Some(1));
                }
            }
        }
        // The same name is another document in each collection, and without Collections it is the default one's.
        let mut default = node.connect_to(bucket);
        for (collection, value) in [(0, "default"), (9, "orders"), (0xcafe, "carts")] {
            assert_eq!(set(&mut admin, collection, "same", value.as_bytes()), Status::SUCCESS);
        }
        for (collection, value) in [(0, "default"), (9, "orders"), (0xcafe, "carts")] {
            assert_eq!(get(&mut admin, collection, "same").unwrap(), value.as_bytes());
        }
        assert_eq!(get_plain(&mut default, "same").unwrap(), b"default");
    });
}

#[test]
fn a_dropped_collection_is_gone_at_once_for_reads_writes_scans_and_statistics() {
    for_each_kind(|node, bucket| {
        let mut connection = with_collections(node, bucket);
        connection.set_manifest(manifest(1, "", SHOP).as_bytes()).unwrap();
        let vb = vbucket_of(b"key0", VBUCKETS);
        let names: Vec<String> = (0..)
            .map(|n| format!("key{n}"))
            .filter(|name| vbucket_of(name.as_bytes(), VBUCKETS) == vb)
            .take(20)
            .collect();
        for name in &names {
            for collection in [0, 9, 0xcafe] {
                assert_eq!(set(&mut connection, collection, name, b"12345"), Status::SUCCESS);
            }
        }
        let mut sorted = names.clone();
        sorted.sort();
        let mut scans = raw(node, bucket);
        let whole = scan(&mut scans, vb, 0xcafe).unwrap();
        assert_eq!(advance(&mut scans, vb, whole, 0), (sorted.clone(), Status::RANGE_SCAN_COMPLETE));
        let half = scan(&mut scans, vb, 9).unwrap();
        assert_eq!(advance(&mut scans, vb, half, 5), (sorted[..5].to_vec(), Status::RANGE_SCAN_MORE));
        assert_eq!(scan(&mut scans, vb, 0x77), Err((Status::UNKNOWN_COLLECTION, Some(1))));

        let items = |connection: &mut Connection, name: &str| stat(connection, "collections", name);
        let bytes = names.iter().map(|name| name.len() + 1 + 5).sum::<usize>().to_string();
        assert_eq!(items(&mut connection, "0x8:0x9:items").as_deref(), Some("20"));
        assert_eq!(items(&mut connection, "0x8:0x9:data_size"), Some(bytes));
        assert_eq!(items(&mut connection, "0x8:0x9:ops_store").as_deref(), Some("20"));
        assert_eq!(items(&mut connection, "0x8:0x9:name").as_deref(), Some("orders"));
        assert_eq!(items(&mut connection, "manifest_uid").as_deref(), Some("1"));
        assert_eq!(
            stat(&mut connection, "collections shop.carts", "0x8:0xcafe:items").as_deref(),
            Some("20")
        );
        assert_eq!(stat(&mut connection, "collections shop.carts", "0x8:0x9:items"), None);
        assert_eq!(stat(&mut connection, "collections-byid 0x9", "0x8:0x9:items").as_deref(), Some("20"));
        assert_eq!(stat(&mut connection, "scopes", "0x8:items").as_deref(), Some("40"));
        assert_eq!(stat(&mut connection, "scopes shop", "0x8:collections").as_deref(), Some("2"));
        for (name, value) in [("scopes", "2"), ("0x8:name:", "shop"), ("0x8:0x9:items", "20")] {
            let found = stat(&mut connection, &format!("scopes-details {vb}"), &format!("vb_{vb}:{name}"));
            assert_eq!(found.as_deref(), Some(value), "{name}");
        }
        let unknown = connection.stats("collections shop.none", |_, _| ());
        assert_eq!(status(unknown), Status::UNKNOWN_COLLECTION);
        assert_eq!(stat(&mut connection, "", "curr_items").as_deref(), Some("60"));

        let without = SHOP.replace(r#"{"name":"orders","uid":"9"},"#, "");
        connection.set_manifest(manifest(2, "", &without).as_bytes()).unwrap();
        assert_eq!(get(&mut connection, 9, &names[0]), Err(Status::UNKNOWN_COLLECTION));
        assert_eq!(set(&mut connection, 9, &names[0], b"new"), Status::UNKNOWN_COLLECTION);
        assert_eq!(advance(&mut scans, vb, half, 5), (vec![], Status::UNKNOWN_COLLECTION));
        assert_eq!(advance(&mut scans, vb, half, 5), (vec![], Status::KEY_ENOENT), "it is gone");
        assert_eq!(scan(&mut scans, vb, 9), Err((Status::UNKNOWN_COLLECTION, Some(2))));
        assert_eq!(items(&mut connection, "0x8:0x9:items"), None);
        assert_eq!(stat(&mut connection, "", "curr_items").as_deref(), Some("40"));
        assert_eq!(get(&mut connection, 0xcafe, &names[0]).unwrap(), b"12345");
        if bucket == "memory" {
            let hidden = format!("vb_{vb}:0x9:items");
            eventually("its documents are erased", || {
                stat(&mut connection, "collections-details", &hidden).is_none()
            });
        }

        // The default collection can go, too: connections without Collections have nothing left.
        let mut plain = node.connect_to(bucket);
        assert!(get_plain(&mut plain, &names[0]).is_ok());
        let json = r#"{"uid":"3","scopes":[{"name":"_default","uid":"0","collections":[]}]}"#;
        connection.set_manifest(json.as_bytes()).unwrap();
        assert_ne!(get_plain(&mut plain, &names[0]), Ok(b"12345".to_vec()));
        assert_eq!(get(&mut connection, 0, &names[0]), Err(Status::UNKNOWN_COLLECTION));
        assert_eq!(stat(&mut connection, "", "curr_items").as_deref(), Some("0"));
    });
}

#[test]
fn collections_and_their_counts_survive_a_kill() {
    for_each_core_count(|setup: Setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut connection = with_collections(&node, "default");
        connection.create_bucket("memory", "bucket_type=ephemeral").unwrap();
        let mut memory = with_collections(&node, "memory");
        memory.set_manifest(manifest(7, "", SHOP).as_bytes()).unwrap();
        connection.set_manifest(manifest(1, r#",{"name":"a","uid":"a"}"#, SHOP).as_bytes()).unwrap();
        for number in 0..200 {
            for collection in [0, 9, 10] {
                let name = format!("key{number}");
                assert_eq!(set(&mut connection, collection, &name, name.as_bytes()), Status::SUCCESS);
            }
        }
        connection.set_manifest(manifest(2, "", SHOP).as_bytes()).unwrap();
        let before: Vec<Option<String>> = ["0x0:0x0:items", "0x8:0x9:items", "0x8:0x9:data_size"]
            .map(|name| stat(&mut connection, "collections", name))
            .to_vec();
        assert_eq!(before[..2], [Some("200".to_owned()), Some("200".to_owned())]);
        eventually("everything is durable", || {
            let mut behind = 0;
            for vb in 0..VBUCKETS {
                let of = |connection: &mut Connection, name: &str| {
                    stat(connection, "vbucket-seqno", &format!("vb_{vb}:{name}"))
                };
                let persisted = of(&mut connection, "last_persisted_seqno");
                behind += usize::from(of(&mut connection, "high_seqno") != persisted);
            }
            behind == 0
        });
        node.kill();

        let node = Node::start(&place.data(), &setup);
        let mut connection = with_collections(&node, "default");
        assert_eq!(connection.manifest().unwrap().uid(), 2);
        assert_eq!(connection.collection_id("shop.orders").unwrap(), CollectionId(9));
        for number in 0..200 {
            let name = format!("key{number}");
            assert_eq!(get(&mut connection, 9, &name).unwrap(), name.as_bytes());
            assert_eq!(get(&mut connection, 10, &name), Err(Status::UNKNOWN_COLLECTION));
        }
        for (name, before) in ["0x0:0x0:items", "0x8:0x9:items", "0x8:0x9:data_size"].iter().zip(&before) {
            assert_eq!(stat(&mut connection, "collections", name), *before, "{name}");
        }
        assert_eq!(stat(&mut connection, "", "curr_items").as_deref(), Some("400"));
        let used = connection.set_manifest(manifest(3, r#",{"name":"b","uid":"a"}"#, SHOP).as_bytes());
        assert_eq!(status(used), Status::CANNOT_APPLY_COLLECTIONS_MANIFEST, "dropped ids are remembered");
        let mut memory = with_collections(&node, "memory");
        assert_eq!(memory.manifest().unwrap().uid(), 7, "the manifest stays, the documents do not");
        assert_eq!(set(&mut memory, 9, "key", b"value"), Status::SUCCESS);
    });
}

#[test]
fn emptying_a_bucket_keeps_its_collections_and_a_max_ttl_is_that_of_its_collection() {
    for_each_kind(|node, bucket| {
        let mut connection = with_collections(node, bucket);
        let limited = r#",{"name":"brief","uid":"b","maxTTL":1}"#;
        connection.set_manifest(manifest(1, limited, SHOP).as_bytes()).unwrap();
        assert_eq!(set(&mut connection, 9, "key", b"value"), Status::SUCCESS);
        connection.empty_bucket(bucket).unwrap();
        let mut connection = with_collections(node, bucket);
        assert_eq!(connection.manifest().unwrap().uid(), 1);
        assert_eq!(get(&mut connection, 9, "key"), Err(Status::KEY_ENOENT));
        for collection in [9, 0xb] {
            assert_eq!(set(&mut connection, collection, "key", b"value"), Status::SUCCESS);
        }
        eventually("the brief one expires", || get(&mut connection, 0xb, "key") == Err(Status::KEY_ENOENT));
        assert!(get(&mut connection, 9, "key").is_ok());
    });
}

/// A manifest with as many collections as there may be goes through every place that keeps it.
#[test]
fn the_largest_manifest_is_set_and_survives_a_restart() {
    let place = Place::new();
    let setup = Setup { vbuckets: 4, ..Setup::cores(1) };
    let node = Node::start(&place.data(), &setup);
    let mut connection = with_collections(&node, "default");
    let name = "n".repeat(240);
    let more: String =
        (8..8 + 1199).map(|id| format!(r#",{{"name":"{name}{id}","uid":"{id:x}"}}"#)).collect();
    let json = manifest(1, &more, "");
    connection.set_manifest(json.as_bytes()).unwrap();
    let expected = connection.manifest().unwrap();
    assert_eq!(expected.collections().len(), 1200);
    node.kill();
    let node = Node::start(&place.data(), &setup);
    assert_eq!(with_collections(&node, "default").manifest().unwrap(), expected);
}
