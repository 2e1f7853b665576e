//! Purging on disk, over TCP: COMPACT_DB and the purger let old tombstones go, what is there stays, and who may have missed a deletion is sent back.

use std::time::Duration;

use ringbase::client::{Connection, DcpOptions};
use ringbase::protocol::compact::CompactRequest;
use ringbase::protocol::dcp::{StreamFlags, StreamReply, StreamRequest};
use ringbase::protocol::{Opcode, Request, Status};
use ringbase_storage::types::{Seqno, VbId};

use super::consumer::{Consumer, Documents, delete};
use super::rig::{Node, Place, Setup, eventually, for_each_core_count, store_when_taken};

/// A number that all vbuckets together have.
fn sum(connection: &mut Connection, name: &str) -> u64 {
    let stats = connection.stat_texts("vbucket-details", b"").unwrap();
    let of =
        |(key, value): &(String, String)| key.ends_with(&format!(":{name}")).then(|| value.parse().unwrap());
    stats.iter().filter_map(of).collect::<Vec<u64>>().iter().sum()
}

fn fill(node: &Node) -> Documents {
    let (mut writer, mut model) = (node.connect(), Documents::new());
    for number in 0..300_u32 {
        let (key, value) = (format!("key-{number}"), vec![number as u8; 500]);
        store_when_taken(&mut writer, &key, &value);
        model.insert(key.into_bytes(), value);
    }
    model
}

fn delete_some(node: &Node, model: &mut Documents) {
    let mut writer = node.connect();
    for number in (0..300_u32).step_by(3) {
        let key = format!("key-{number}");
        delete(&mut writer, &key);
        model.remove(key.as_bytes());
    }
}

/// Stops the node and starts it again, so that all is flushed.
fn restarted(node: Node, place: &Place, setup: &Setup) -> Node {
    assert!(node.stop().success());
    Node::start(&place.data(), setup)
}

/// Tombstones that are old enough go when that is asked for, over a restart too; documents stay; a consumer that had not seen the deletions begins anew, one
/// that had seen them all goes on.
#[test]
fn compact_db_purges_tombstones_and_sends_back_who_may_have_missed_them() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut model = fill(&node);
        let mut behind = Consumer::open(&node, "default", &DcpOptions::named("behind"));
        behind.stream_all(StreamFlags::TO_LATEST);
        behind.until_ended();
        let copies = behind.copies.clone();
        delete_some(&node, &mut model);
        let mut seen = Consumer::open(&node, "default", &DcpOptions::named("seen"));
        seen.stream_all(StreamFlags::TO_LATEST);
        seen.until_ended();
        let node = restarted(node, &place, &setup);
        let mut connection = node.connect();
        let all = CompactRequest { drop_deletes: true, ..CompactRequest::default() };
        for vb in 0..setup.vbuckets {
            connection.compact(VbId(vb), CompactRequest::default()).unwrap();
        }
        assert_eq!(sum(&mut connection, "purge_seqno"), 0, "none is old enough");
        for vb in 0..setup.vbuckets {
            connection.compact(VbId(vb), all).unwrap();
        }
        assert!(sum(&mut connection, "purge_seqno") > 0);
        let node = restarted(node, &place, &setup);
        assert!(sum(&mut node.connect(), "purge_seqno") > 0, "it is durable");
        let mut anew = Consumer::open(&node, "default", &DcpOptions::named("anew"));
        anew.stream_all(StreamFlags::TO_LATEST);
        anew.until_ended();
        assert_eq!(anew.documents(), model);
        let mut client = Consumer::open(&node, "default", &DcpOptions::named("behind")).client;
        let mut sent_back = 0;
        for (vb, copy) in &copies {
            let reply =
                client.stream(*vb, &copy.request(StreamFlags::NONE, StreamRequest::NO_END), None).unwrap();
            sent_back += usize::from(matches!(reply, StreamReply::Rollback(Seqno(0))));
        }
        assert!(sent_back > 0 && sent_back <= copies.len());
        let mut client = Consumer::open(&node, "default", &DcpOptions::named("seen")).client;
        for (vb, copy) in &seen.copies {
            let reply =
                client.stream(*vb, &copy.request(StreamFlags::NONE, StreamRequest::NO_END), None).unwrap();
            assert!(matches!(reply, StreamReply::Accepted(_)), "{vb}: {reply:?}");
        }
    });
}

/// The purger does it by itself; what is not COMPACT_DB's form is refused.
#[test]
fn the_purger_comes_by_itself_and_a_wrong_request_is_refused() {
    let place = Place::new();
    let setup = Setup::cores(1);
    let node = Node::start(&place.data(), &setup);
    let mut model = fill(&node);
    delete_some(&node, &mut model);
    let node = restarted(node, &place, &setup);
    let mut connection = node.connect();
    connection.set_param("persistent_metadata_purge_age", "0").unwrap();
    connection.set_param("persistent_metadata_purge_interval", "1").unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    eventually("tombstones are purged", || sum(&mut connection, "purge_seqno") > 0);
    let mut wrong = CompactRequest::default().encode();
    wrong[17] = 1;
    let asked = connection.call(Request::new(Opcode::COMPACT_DB).extras(&wrong), |_| ());
    assert_eq!(asked.unwrap_err().status(), Some(Status::EINVAL));
    let missing = connection.compact(VbId(1000), CompactRequest::default());
    assert_eq!(missing.unwrap_err().status(), Some(Status::NOT_MY_VBUCKET));
    connection.create_bucket("memory", "bucket_type=ephemeral").unwrap();
    let in_memory = node.connect_to("memory").compact(VbId(0), CompactRequest::default());
    assert_eq!(in_memory.unwrap_err().status(), Some(Status::NOT_SUPPORTED));
}
