//! States of vbuckets over TCP: what each admits on every core, what ends when one changes, and what a kill leaves.

use std::time::{Duration, Instant};

use ringbase::client::{
    Bucket, ClientError, Connection, ContinueLimits, DcpClient, DcpOptions, Scan, ScanState, StoreMode,
};
use ringbase::protocol::dcp::signal::VbucketState::{self, Active, Dead, Pending, Replica};
use ringbase::protocol::dcp::{DcpMessage, StreamEndStatus, StreamFlags, StreamReply, StreamRequest};
use ringbase::protocol::extras::StoreExtras;
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase::protocol::{Feature, Features, Opcode, Request, Status};
use ringbase_storage::types::{Cas, Seqno, VbId};

use super::rig::{
    Node, PATIENCE, Place, Raw, Setup, eventually, for_each_core_count, for_each_kind, key_in, stat,
};

const VBUCKETS: u16 = 16;
const PLAIN: StoreExtras = StoreExtras { flags: 0, expiry: 0 };

/// One vbucket of each core, so that with two cores every connection has one elsewhere.
const SOME: [VbId; 2] = [VbId(2), VbId(3)];

fn status<T>(result: Result<T, ClientError>) -> Status {
    result.err().map_or(Status::SUCCESS, |error| error.status().unwrap_or_else(|| panic!("{error}")))
}

fn store(connection: &mut Connection, key: &str, value: &[u8]) -> Status {
    status(Bucket::new(connection).unwrap().store(StoreMode::Set, key.as_bytes(), value, PLAIN, Cas(0)))
}

fn read(connection: &mut Connection, key: &str) -> Result<Option<Vec<u8>>, Status> {
    match Bucket::new(connection).unwrap().get(key.as_bytes()) {
        Ok(document) => Ok(Some(document.value)),
        Err(error) => match error.status().unwrap() {
            Status::KEY_ENOENT => Ok(None),
            status => Err(status),
        },
    }
}

/// `count` documents in a vbucket.
fn fill(connection: &mut Connection, vb: VbId, count: usize, value: &[u8]) -> Vec<String> {
    let keys: Vec<String> = (0..count).map(|n| key_in(vb, VBUCKETS, &format!("{n}-"))).collect();
    for key in &keys {
        assert_eq!(store(connection, key, value), Status::SUCCESS);
    }
    keys
}

/// Connections enough that every core has accepted one.
fn connections(node: &Node, bucket: &str) -> Vec<Connection> {
    (0..6).map(|_| node.connect_to(bucket)).collect()
}

/// Whoever reads after a change was acknowledged sees it, on whatever core; direct reads of other cores' vbuckets, too.
#[test]
fn every_core_obeys_a_state_as_soon_as_it_is_acknowledged() {
    for_each_kind(|node, bucket| {
        let mut all = connections(node, bucket);
        let mut admin = node.connect_to(bucket);
        for vb in SOME {
            let keys = fill(&mut admin, vb, 20, b"value");
            for (state, expected) in [
                (Replica, Err(Status::NOT_MY_VBUCKET)),
                (Active, Ok(Some(b"value".to_vec()))),
                (Dead, Err(Status::NOT_MY_VBUCKET)),
                (Active, Ok(Some(b"value".to_vec()))),
            ] {
                admin.set_vbucket(vb, state, "").unwrap();
                for connection in &mut all {
                    assert_eq!(connection.vbucket_state(vb).unwrap(), state);
                    for key in &keys {
                        assert_eq!(read(connection, key), expected, "{state:?} of {vb}");
                    }
                    if expected.is_err() {
                        assert_eq!(store(connection, &keys[0], b"other"), Status::NOT_MY_VBUCKET);
                    }
                }
            }
        }
    });
}

/// A vbucket that was deleted and comes again shows nothing of the one before to any core.
#[test]
fn no_core_sees_anything_of_a_vbucket_that_was_deleted_when_it_comes_again() {
    for_each_kind(|node, bucket| {
        let mut all = connections(node, bucket);
        let mut admin = node.connect_to(bucket);
        for vb in SOME {
            for round in 0..3u8 {
                let keys = fill(&mut admin, vb, 30, &[round; 100]);
                for connection in &mut all {
                    assert_eq!(read(connection, &keys[0]), Ok(Some(vec![round; 100])));
                }
                admin.delete_vbucket(vb).unwrap();
                assert_eq!(status(admin.delete_vbucket(vb)), Status::NOT_MY_VBUCKET);
                for connection in &mut all {
                    assert_eq!(status(connection.vbucket_state(vb)), Status::NOT_MY_VBUCKET);
                    assert_eq!(read(connection, &keys[0]), Err(Status::NOT_MY_VBUCKET));
                }
                admin.set_vbucket(vb, Active, "").unwrap();
                for connection in &mut all {
                    for key in &keys {
                        assert_eq!(read(connection, key), Ok(None), "round {round}");
                    }
                }
                assert_eq!(store(&mut admin, &keys[1], b"new"), Status::SUCCESS);
                for connection in &mut all {
                    assert_eq!(read(connection, &keys[1]), Ok(Some(b"new".to_vec())));
                }
            }
        }
    });
}

/// NOT_MY_VBUCKET brings the cluster map, as for a vbucket that no node has, and closes no connection.
#[test]
fn a_refusal_for_a_state_brings_the_cluster_map() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut admin = node.connect();
        for vb in SOME {
            admin.set_vbucket(vb, Replica, "").unwrap();
            let mut raw = node.raw();
            let features = Features::of(&[Feature::Json, Feature::Xerror]).encode();
            raw.ask(Request::new(Opcode::HELLO).value(&features));
            let body = RangeScanCreate::default().encode();
            let json = ringbase::protocol::Datatype::JSON;
            for request in [
                Request::new(Opcode::GET).key(b"k"),
                Request::new(Opcode::SET).key(b"k").extras(&[0; 8]),
                Request::new(Opcode::RANGE_SCAN_CREATE).datatype(json).value(&body),
            ] {
                let answer = raw.ask(request.vbucket(vb));
                assert_eq!(answer.status, Status::NOT_MY_VBUCKET, "{request:?}");
                let map: serde_json::Value = serde_json::from_slice(&answer.value).unwrap();
                assert!(map["vBucketServerMap"].is_object(), "{map}");
            }
        }
    });
}

/// What waits for a pending vbucket is answered when it becomes active, in order, also on a core that is not its own.
#[test]
fn requests_for_a_pending_vbucket_wait_on_every_core_until_it_is_active() {
    for_each_kind(|node, bucket| {
        let mut admin = node.connect_to(bucket);
        for vb in SOME {
            let key = key_in(vb, VBUCKETS, "pending-");
            admin.set_vbucket(vb, Pending, "").unwrap();
            let mut waiting: Vec<Raw> = (0..4).map(|_| node.raw()).collect();
            for raw in &mut waiting {
                raw.ask(Request::new(Opcode::SELECT_BUCKET).key(bucket.as_bytes()));
                let request = Request::new(Opcode::SET).vbucket(vb).extras(&[0; 8]).key(key.as_bytes());
                raw.send(request.value(b"1"));
                raw.send(Request::new(Opcode::APPEND).vbucket(vb).key(key.as_bytes()).value(b"2"));
                raw.send(Request::new(Opcode::GET).vbucket(vb).key(key.as_bytes()));
            }
            // It is known to be pending, and says how far it is.
            assert_eq!(admin.vbucket_state(vb).unwrap(), Pending);
            let told =
                stat(&mut admin, &format!("vbucket-details {}", vb.0), &format!("vb_{}:high_seqno", vb.0));
            assert_eq!(told.as_deref(), Some("0"), "nothing was written");
            admin.set_vbucket(vb, Active, "").unwrap();
            for raw in &mut waiting {
                let answers = [raw.answer(), raw.answer(), raw.answer()];
                assert!(answers.iter().all(|answer| answer.status == Status::SUCCESS), "{answers:?}");
                assert!(answers[2].value.starts_with(b"1"), "{answers:?}");
            }
        }
    });
}

/// A client with streams of single vbuckets; what they ended with.
struct Streams {
    client: DcpClient,
    mutations: usize,
}

impl Streams {
    fn open(node: &Node, bucket: &str, name: &str) -> Streams {
        let options = DcpOptions::named(name);
        Streams { client: DcpClient::open(node.connect_to(bucket), &options).unwrap(), mutations: 0 }
    }

    fn ask(&mut self, vb: VbId, flags: StreamFlags) -> Status {
        let request = StreamRequest { flags, ..StreamRequest::FROM_NOTHING };
        match self.client.stream(vb, &request, None).unwrap() {
            StreamReply::Accepted(_) => Status::SUCCESS,
            StreamReply::Rollback(_) => Status::ROLLBACK,
            StreamReply::Refused(status) => status,
        }
    }

    fn until_mutations(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.mutations < count {
            assert!(Instant::now() < deadline, "{} of {count} documents", self.mutations);
            assert_eq!(self.step(), None, "the stream goes on");
        }
    }

    fn until_end(&mut self) -> StreamEndStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the stream does not end");
            if let Some(end) = self.step() {
                return end;
            }
        }
    }

    fn step(&mut self) -> Option<StreamEndStatus> {
        let mutations = &mut self.mutations;
        let taken = self.client.next_within(Duration::from_millis(50), |_, message| match message {
            DcpMessage::Mutation(_) => {
                *mutations += 1;
                None
            }
            DcpMessage::StreamEnd(status) => Some(*status),
            _ => None,
        });
        taken.unwrap().flatten()
    }
}

/// DCP §4, checks 1 and 2: which states begin a stream.
#[test]
fn streams_begin_at_active_vbuckets_and_at_copies_unless_only_active_ones_are_wanted() {
    for_each_kind(|node, bucket| {
        let mut admin = node.connect_to(bucket);
        for vb in SOME {
            for (state, expected) in [
                (Some(Active), [Status::SUCCESS, Status::SUCCESS]),
                (Some(Replica), [Status::SUCCESS, Status::NOT_MY_VBUCKET]),
                (Some(Pending), [Status::NOT_MY_VBUCKET; 2]),
                (Some(Dead), [Status::NOT_MY_VBUCKET; 2]),
                (None, [Status::NOT_MY_VBUCKET; 2]),
            ] {
                match state {
                    Some(state) => admin.set_vbucket(vb, state, "").unwrap(),
                    None => admin.delete_vbucket(vb).unwrap(),
                }
                for (flags, expected) in
                    [StreamFlags::NONE, StreamFlags::ACTIVE_VB_ONLY].into_iter().zip(expected)
                {
                    let mut streams = Streams::open(node, bucket, "begins");
                    assert_eq!(streams.ask(vb, flags), expected, "{flags:?} of {state:?}");
                }
            }
        }
    });
}

/// DCP §6, StreamEnd 2: a stream ends when its vbucket is no longer what the stream demanded; others go on.
#[test]
fn streams_end_with_state_changed_when_the_state_does_not_admit_them_any_more() {
    for_each_kind(|node, bucket| {
        let mut admin = node.connect_to(bucket);
        for vb in SOME {
            admin.set_vbucket(vb, Active, "").unwrap();
            let keys = fill(&mut admin, vb, 10, b"value");
            let mut any = Streams::open(node, bucket, "any");
            let mut active = Streams::open(node, bucket, "active");
            let mut other = Streams::open(node, bucket, "other");
            assert_eq!(any.ask(vb, StreamFlags::NONE), Status::SUCCESS);
            assert_eq!(active.ask(vb, StreamFlags::ACTIVE_VB_ONLY), Status::SUCCESS);
            assert_eq!(other.ask(VbId(vb.0 + 2), StreamFlags::NONE), Status::SUCCESS);
            any.until_mutations(10);
            active.until_mutations(10);
            admin.set_vbucket(vb, Replica, "").unwrap();
            assert_eq!(active.until_end(), StreamEndStatus::StateChanged);
            // The other stream lives on, over the branch that comes with the way back.
            admin.set_vbucket(vb, Active, "").unwrap();
            assert_eq!(store(&mut admin, &keys[0], b"again"), Status::SUCCESS);
            any.until_mutations(11);
            admin.set_vbucket(vb, Dead, "").unwrap();
            assert_eq!(any.until_end(), StreamEndStatus::StateChanged);
            // A vbucket that is deleted takes its streams with it.
            admin.set_vbucket(vb, Replica, "").unwrap();
            let mut copy = Streams::open(node, bucket, "copy");
            assert_eq!(copy.ask(vb, StreamFlags::NONE), Status::SUCCESS);
            copy.until_mutations(10);
            admin.delete_vbucket(vb).unwrap();
            assert_eq!(copy.until_end(), StreamEndStatus::StateChanged);
            // Nothing of all this has touched another vbucket's stream.
            let seen = other.mutations;
            fill(&mut admin, VbId(vb.0 + 2), 3, b"value");
            other.until_mutations(seen + 3);
        }
    });
}

/// A consumer that saw what the old active had, and a branch that began below it: it is told to roll back to where the branch began.
#[test]
fn who_becomes_active_begins_a_branch_that_consumers_of_the_old_one_resume_on() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut admin = node.connect();
        for vb in SOME {
            fill(&mut admin, vb, 10, b"value");
            let mut streams = Streams::open(&node, "default", "resumes");
            let old = streams.client.failover_log(vb).unwrap();
            admin.set_vbucket(vb, Replica, "").unwrap();
            admin.set_vbucket(vb, Active, "").unwrap();
            fill(&mut admin, vb, 5, b"other");
            let log = streams.client.failover_log(vb).unwrap();
            assert_eq!((&log[1..], log[0].seqno), (&old[..], Seqno(10)));
            let claim = |seqno: u64| StreamRequest {
                start: Seqno(seqno),
                snap_start: Seqno(seqno),
                snap_end: Seqno(seqno),
                uuid: old[0].uuid,
                ..StreamRequest::FROM_NOTHING
            };
            let reply = streams.client.stream(vb, &claim(12), None).unwrap();
            assert_eq!(reply, StreamReply::Rollback(Seqno(10)));
            let reply = streams.client.stream(vb, &claim(10), None).unwrap();
            assert!(matches!(reply, StreamReply::Accepted(_)), "{reply:?}");
        }
    });
}

/// Range scans: only of active vbuckets; a running one ends at the change, an idle one when it is continued.
#[test]
fn range_scans_end_with_the_state_of_their_vbucket() {
    for_each_kind(|node, bucket| {
        let mut admin = node.connect_to(bucket);
        let create = RangeScanCreate { key_only: true, ..RangeScanCreate::default() };
        for vb in SOME {
            fill(&mut admin, vb, 50, b"value");
            let few = ContinueLimits { items: 10, ..ContinueLimits::default() };
            for state in [Replica, Pending, Dead] {
                let mut scanner = node.connect_to(bucket);
                let mut scan = Scan::create(&mut scanner, vb, &create).unwrap().unwrap();
                let begun = scan.advance(&mut scanner, few, &mut |_| Ok(())).unwrap();
                assert_eq!(begun, ScanState::More);
                admin.set_vbucket(vb, state, "").unwrap();
                let refused = status(scan.advance(&mut scanner, few, &mut |_| Ok(())));
                assert_eq!(refused, Status::NOT_MY_VBUCKET, "{state:?}");
                let refused = status(Scan::create(&mut scanner, vb, &create));
                assert_eq!(refused, Status::NOT_MY_VBUCKET, "{state:?}");
                // On the way back it is another branch: a scan of the old one cannot go on.
                admin.set_vbucket(vb, Active, "").unwrap();
                let refused = status(scan.advance(&mut scanner, few, &mut |_| Ok(())));
                assert!([Status::NOT_MY_VBUCKET, Status::KEY_ENOENT].contains(&refused), "{refused}");
            }
            let mut scanner = node.connect_to(bucket);
            let mut scan = Scan::create(&mut scanner, vb, &create).unwrap().unwrap();
            admin.delete_vbucket(vb).unwrap();
            assert_eq!(status(scan.advance(&mut scanner, few, &mut |_| Ok(()))), Status::NOT_MY_VBUCKET);
            admin.set_vbucket(vb, Active, "").unwrap();
            assert_eq!(status(scan.advance(&mut scanner, few, &mut |_| Ok(()))), Status::KEY_ENOENT);
            assert!(Scan::create(&mut scanner, vb, &create).unwrap().is_none(), "it is empty");
            eventually("no scan is left", || {
                let scans = stat(&mut admin, &format!("range-scans {}", vb.0), "num_running");
                scans.is_none_or(|number| number == "0")
            });
        }
    });
}

/// A scan whose client does not read stands still; it ends at once when the vbucket is no longer active.
#[test]
fn a_running_scan_ends_with_not_my_vbucket_when_the_state_changes() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut admin = node.connect();
        for vb in SOME {
            let keys: Vec<String> = (0..400).map(|n| key_in(vb, VBUCKETS, &format!("{n}-"))).collect();
            for key in &keys {
                super::rig::store_when_taken(&mut admin, key, &[7; 20_000]);
            }
            let mut raw = node.narrow();
            let features = Features::of(&[Feature::Json, Feature::Xerror]).encode();
            raw.ask(Request::new(Opcode::HELLO).value(&features));
            let body = RangeScanCreate::default().encode();
            let json = ringbase::protocol::Datatype::JSON;
            let create = Request::new(Opcode::RANGE_SCAN_CREATE).vbucket(vb).datatype(json).value(&body);
            let created = raw.ask(create);
            assert_eq!(created.status, Status::SUCCESS);
            let extras = [created.value.as_slice(), &[0; 12]].concat();
            raw.send(Request::new(Opcode::RANGE_SCAN_CONTINUE).vbucket(vb).extras(&extras));
            assert_eq!(raw.answer().status, Status::SUCCESS, "it runs, and the rest does not fit the socket");
            admin.set_vbucket(vb, Dead, "").unwrap();
            let mut records = 1;
            let last = loop {
                let answer = raw.answer();
                if answer.status != Status::SUCCESS {
                    break answer.status;
                }
                records += 1;
            };
            assert_eq!(last, Status::NOT_MY_VBUCKET);
            assert!(records < keys.len(), "it did not go on to its end");
        }
    });
}

/// States survive kill -9, with the branches that came of them; what was deleted stays deleted.
#[test]
fn states_and_their_branches_survive_a_kill() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut admin = node.connect();
        let states = [(4, Replica), (5, Pending), (6, Dead), (7, Active)];
        for (vb, _) in states {
            fill(&mut admin, VbId(vb), 3, b"value");
        }
        for (vb, state) in states {
            admin.set_vbucket(VbId(vb), Dead, "").unwrap();
            admin.set_vbucket(VbId(vb), state, "").unwrap();
        }
        admin.set_vbucket(VbId(7), Active, "[[\"here\",\"there\"]]").unwrap();
        for vb in [8, 9] {
            fill(&mut admin, VbId(vb), 3, b"gone");
            admin.delete_vbucket(VbId(vb)).unwrap();
        }
        admin.set_vbucket(VbId(9), Active, "").unwrap();
        let log = |node: &Node, vb| {
            let mut client = Streams::open(node, "default", "log").client;
            client.failover_log(VbId(vb)).unwrap()
        };
        let before: Vec<_> = states.iter().map(|(vb, _)| log(&node, *vb)).collect();
        let nine = log(&node, 9);
        node.kill();
        let node = Node::start(&place.data(), &setup);
        let mut admin = node.connect();
        for ((vb, state), before) in states.into_iter().zip(before) {
            assert_eq!(admin.vbucket_state(VbId(vb)).unwrap(), state);
            assert_eq!(log(&node, vb)[1..], before, "the kill made one more");
        }
        let topology = stat(&mut admin, "vbucket-details 7", "vb_7:topology");
        assert_eq!(topology.as_deref(), Some("[[\"here\",\"there\"]]"));
        assert_eq!(status(admin.vbucket_state(VbId(8))), Status::NOT_MY_VBUCKET);
        assert_eq!(log(&node, 9)[1..], nine);
        let key = key_in(VbId(9), VBUCKETS, "0-");
        assert_eq!(read(&mut admin, &key), Ok(None), "it came again, empty");
        // What the copy has is there when it becomes active.
        admin.set_vbucket(VbId(4), Active, "").unwrap();
        assert_eq!(read(&mut admin, &key_in(VbId(4), VBUCKETS, "0-")), Ok(Some(b"value".to_vec())));
    });
}

/// Emptying a bucket takes its documents on all cores, not what its vbuckets are.
#[test]
fn an_emptied_bucket_keeps_the_states_of_its_vbuckets_on_every_core() {
    for_each_kind(|node, bucket| {
        let mut admin = node.connect_to(bucket);
        for vb in 0..4 {
            admin.set_vbucket(VbId(vb), Replica, "").unwrap();
        }
        admin.delete_vbucket(VbId(5)).unwrap();
        admin.delete_vbucket(VbId(6)).unwrap();
        admin.empty_bucket(bucket).unwrap();
        for vb in 0..4 {
            assert_eq!(admin.vbucket_state(VbId(vb)).unwrap(), Replica);
        }
        for vb in [5, 6] {
            assert_eq!(status(admin.vbucket_state(VbId(vb))), Status::NOT_MY_VBUCKET);
        }
        assert_eq!(admin.vbucket_state(VbId(7)).unwrap(), Active);
    });
}

/// Whatever is asked of a vbucket while its state goes to and fro, nobody is told of a write that is not there.
#[test]
fn writes_that_race_with_changes_of_state_are_there_or_refused() {
    for_each_kind(|node, bucket| {
        let vb = SOME[1];
        let mut admin = node.connect_to(bucket);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let acknowledged = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    let (stop, node) = (&stop, &node);
                    scope.spawn(move || {
                        let mut connection = node.connect_to(bucket);
                        let mut written = Vec::new();
                        for number in 0.. {
                            if stop.load(std::sync::atomic::Ordering::Relaxed) {
                                break;
                            }
                            let key = key_in(vb, VBUCKETS, &format!("{writer}-{number}-"));
                            match store(&mut connection, &key, b"value") {
                                Status::SUCCESS => written.push(key),
                                Status::NOT_MY_VBUCKET | Status::ETMPFAIL => {}
                                other => panic!("{other}"),
                            }
                        }
                        written
                    })
                })
                .collect();
            for _ in 0..10 {
                for state in [Replica, Active, Dead, Active, Pending, Active] {
                    admin.set_vbucket(vb, state, "").unwrap();
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Vec<String>>()
        });
        assert!(!acknowledged.is_empty());
        for key in &acknowledged {
            assert_eq!(read(&mut admin, key), Ok(Some(b"value".to_vec())), "{key}");
        }
        let log: Vec<VbucketState> = vec![admin.vbucket_state(vb).unwrap()];
        assert_eq!(log, [Active]);
        let items = stat(&mut admin, &format!("vbucket-details {}", vb.0), &format!("vb_{}:num_items", vb.0));
        assert_eq!(items, Some(acknowledged.len().to_string()), "no write was made and refused");
    });
}

/// The topology needs one core, the statistics all of them: every vbucket is counted in its state.
#[test]
fn statistics_count_vbuckets_of_all_cores_by_state() {
    for_each_core_count(|setup: Setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut admin = node.connect();
        for vb in 0..4 {
            admin.set_vbucket(VbId(vb), Replica, "").unwrap();
        }
        for vb in 4..6 {
            admin.set_vbucket(VbId(vb), Dead, "").unwrap();
        }
        admin.delete_vbucket(VbId(6)).unwrap();
        for (name, expected) in [
            ("vb_active_num", "9"),
            ("vb_replica_num", "4"),
            ("vb_pending_num", "0"),
            ("vb_dead_num", "2"),
            ("ep_vb_total", "15"),
        ] {
            assert_eq!(stat(&mut admin, "", name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(stat(&mut admin, "vbucket", "vb_1").as_deref(), Some("replica"));
        assert_eq!(stat(&mut admin, "vbucket", "vb_6"), None);
    });
}
