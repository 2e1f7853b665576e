//! Clients that behave badly: the node's memory stays bounded and everything they held comes back.

use std::time::Duration;

use ringbase::protocol::range_scan::{RangeScanCreate, ScanId};
use ringbase::protocol::{Datatype, Features, Opcode, Request, Status, hello::Feature};
use ringbase_storage::types::VbId;

use super::rig::{Node, Place, Raw, Setup, eventually, for_each_core_count, frame, get, set, stat};
use super::scans::fill;

/// Few, so that each holds far more than sockets buffer.
const VBUCKETS: u16 = 4;

const DOCUMENTS: u32 = 1_600;
const VALUE_BYTES: usize = 40_000;

fn number(node: &Node, group: &str, name: &str) -> u64 {
    stat(&mut node.connect(), group, name).unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

/// Begins a scan of each of these vbuckets, a connection each, and reads nothing of it.
fn begin_scans(node: &Node, vbuckets: impl Iterator<Item = u16>) -> Vec<Raw> {
    vbuckets
        .map(|vbucket| {
            let mut raw = node.narrow();
            let features = Features::of(&[Feature::Json, Feature::Xerror]).encode();
            assert_eq!(raw.ask(Request::new(Opcode::HELLO).value(&features)).status, Status::SUCCESS);
            let body = RangeScanCreate::default().encode();
            let create = Request::new(Opcode::RANGE_SCAN_CREATE).vbucket(VbId(vbucket));
            let created = raw.ask(create.datatype(Datatype::JSON).value(&body));
            let mut extras = [0; 28];
            extras[..16].copy_from_slice(&ScanId::decode(&created.value).unwrap().0);
            raw.send(Request::new(Opcode::RANGE_SCAN_CONTINUE).vbucket(VbId(vbucket)).extras(&extras));
            raw
        })
        .collect()
}

/// Scans of clients that do not read stop with bounded buffers; when the clients go the scans are cancelled, their views and
/// buffers come back, and new scans find the node as it was.
#[test]
fn clients_that_leave_in_the_middle_of_a_scan_give_everything_back() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &Setup { vbuckets: VBUCKETS, ..setup });
        fill(&node, DOCUMENTS, VALUE_BYTES);
        assert_eq!((number(&node, "range-scans", "num_running"), number(&node, "", "views")), (0, 0));
        for round in 0..3 {
            let scans = begin_scans(&node, 0..VBUCKETS);
            eventually("every scan runs", || {
                number(&node, "range-scans", "num_running") == u64::from(VBUCKETS)
            });
            assert_eq!(number(&node, "", "views"), u64::from(VBUCKETS));
            if round == 1 {
                // A reset instead of an orderly end: unread bytes are still in the socket.
                std::thread::sleep(Duration::from_millis(100));
            }
            drop(scans);
            eventually("the scans are cancelled", || number(&node, "range-scans", "num_running") == 0);
            eventually("the views are closed", || number(&node, "", "views") == 0);
        }
        let mut raw = node.raw();
        assert_eq!(raw.ask(get(b"document-000000", VBUCKETS)).status, Status::SUCCESS);
        assert!(node.stop().success());
    });
}

/// 64 MB of documents are under way to clients that read nothing; the node holds a few buffers of them.
#[test]
fn scans_that_nobody_reads_hold_a_bounded_part_of_the_documents() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &Setup { vbuckets: VBUCKETS, ..setup });
        fill(&node, DOCUMENTS, VALUE_BYTES);
        // One scan to the end first: caches and buffers have their usual size then.
        for mut raw in begin_scans(&node, 0..VBUCKETS) {
            while raw.answer().status == Status::SUCCESS {}
        }
        let idle = node.resident_bytes();
        let scans = begin_scans(&node, 0..VBUCKETS);
        std::thread::sleep(Duration::from_secs(1));
        let grown = node.resident_bytes().saturating_sub(idle);
        println!("resident memory: idle {} MiB, grown by {} KiB", idle >> 20, grown >> 10);
        assert!(grown < 16 << 20, "{grown} bytes more for {VBUCKETS} scans that stand still");
        drop(scans);
    });
}

/// Answers to requests that are sent and never read stay in the client's socket and in one bounded queue.
#[test]
fn a_client_that_sends_and_never_reads_is_not_read_any_further() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let mut node = Node::start(&place.data(), &setup);
        let mut other = node.raw();
        let value = vec![b'v'; 100_000];
        assert_eq!(other.ask(set(b"large", &value, 16)).status, Status::SUCCESS);
        let idle = node.resident_bytes();
        let mut deaf = node.raw();
        deaf.stream.set_nonblocking(true).unwrap();
        let burst: Vec<u8> = (0..100).flat_map(|_| frame(get(b"large", 16))).collect();
        // Up to 20,000 requests for 2 GB of answers: the node stops taking them long before.
        let (mut taken, mut blocked) = (0, 0);
        while taken < 20_000 * 29 && blocked < 50 {
            match std::io::Write::write(&mut deaf.stream, &burst) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    blocked += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("{error}"),
            }
        }
        let grown = node.resident_bytes().saturating_sub(idle);
        println!("{taken} bytes of requests taken, resident memory grown by {} KiB", grown >> 10);
        assert!(grown < 64 << 20, "{grown} bytes more");
        // Somebody else is served meanwhile.
        assert_eq!(other.ask(get(b"large", 16)).status, Status::SUCCESS);
        assert!(node.is_alive());
    });
}

#[test]
fn hundreds_of_connections_that_come_and_go_leave_no_descriptor_behind() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let idle = node.descriptors();
        for _ in 0..5 {
            let raws: Vec<Raw> = (0..100).map(|_| node.raw()).collect();
            for mut raw in raws {
                raw.send(set(b"k", b"v", 16));
            }
        }
        eventually("all descriptors are closed", || node.descriptors() <= idle);
    });
}
