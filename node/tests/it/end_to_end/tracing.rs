//! The trace of a node, over the wire: started, looked at while it runs, stopped, dumped.

use std::collections::BTreeSet;

use ringbase::auth::user::ITERATIONS_DEFAULT;
use ringbase::auth::users::os_random;
use ringbase::auth::{Role, User, Users};
use ringbase::client::{ClientError, Connection, ScanPlan, scan_vbucket};
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase::protocol::{Opcode, Request, Status};
use ringbase::telemetry::trace::check::TraceFile;
use ringbase_storage::types::VbId;

use super::rig::{Node, Place, Setup, eventually, for_each_core_count};
use super::scans::fill;

pub(super) fn dump(connection: &mut Connection) -> TraceFile {
    let mut json = Vec::new();
    let bytes = connection.trace_dump(|chunk| {
        json.extend_from_slice(chunk);
        Ok(())
    });
    assert_eq!(bytes.unwrap(), json.len() as u64);
    TraceFile::parse(&json).unwrap()
}

/// A dump when the scans that were answered have also been put away.
fn quiet_dump(connection: &mut Connection) -> TraceFile {
    let mut file = dump(connection);
    eventually("no span is open", || {
        file = dump(connection);
        file.facts.open_spans == 0
    });
    file
}

fn scan_all(connection: &mut Connection, vbuckets: u16) {
    let plan = ScanPlan::new(RangeScanCreate { key_only: true, ..RangeScanCreate::default() });
    for vbucket in 0..vbuckets {
        scan_vbucket(connection, &plan, VbId(vbucket), &mut |_| Ok(())).unwrap();
    }
}

/// T1.7, T1.11, T1.12, T1.14: the spans of range scans, from every core, with vbucket and scan id, balanced, while it runs and afterwards.
#[test]
fn a_trace_of_range_scans_has_their_spans_from_every_core_and_is_balanced() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        fill(&node, 600, 10);
        let mut connection = node.connect();
        assert_eq!(connection.ioctl_get("trace.status").unwrap(), b"disabled");
        scan_all(&mut connection, setup.vbuckets);
        connection.ioctl_set("trace.config", "enabled-categories:ringbase::range_scan").unwrap();
        connection.ioctl_set("trace.start", "").unwrap();
        assert_eq!(connection.ioctl_get("trace.status").unwrap(), b"enabled");
        scan_all(&mut connection, setup.vbuckets);
        let running = quiet_dump(&mut connection);
        connection.ioctl_set("trace.stop", "").unwrap();
        scan_all(&mut connection, setup.vbuckets);
        let stopped = quiet_dump(&mut connection);

        for file in [running, stopped] {
            assert_eq!(file.imbalances(), Vec::new());
            assert_eq!((file.dropped(), file.facts.open_spans), (0, 0));
            for name in ["range_scan_create", "range_scan_continue", "range_scan_fill"] {
                let begins: Vec<_> =
                    file.events.iter().filter(|event| event.name == name && event.phase == "b").collect();
                let vbs: BTreeSet<u64> =
                    begins.iter().map(|event| event.args["vb"].as_u64().unwrap()).collect();
                assert_eq!(vbs, (0..u64::from(setup.vbuckets)).collect(), "{name}");
                let ends: Vec<_> =
                    file.events.iter().filter(|event| event.name == name && event.phase == "e").collect();
                assert_eq!(ends.len(), begins.len(), "{name}");
                assert!(ends.iter().all(|event| event.args.contains_key("result")), "{name}");
                let with_id = if name == "range_scan_create" { ends } else { begins };
                let ids: BTreeSet<String> =
                    with_id.iter().map(|event| event.args["scan"].as_str().unwrap().to_owned()).collect();
                assert_eq!(ids.len(), usize::from(setup.vbuckets), "{name}: a scan for each vbucket");
                assert!(ids.iter().all(|id| id.len() == 36), "{ids:?}");
            }
            let threads: BTreeSet<u64> =
                file.events.iter().filter(|event| event.phase == "B").map(|event| event.tid).collect();
            assert_eq!(threads.len(), usize::from(setup.cores), "{:?}", file.facts.threads);
            assert!(
                file.events
                    .iter()
                    .all(|event| event.phase == "M" || event.category == "ringbase::range_scan")
            );
        }
        assert_eq!(connection.ioctl_get("trace.dump.list").unwrap(), b"", "a fetched dump is forgotten");
    });
}

#[test]
fn only_an_administrator_may_trace_and_unknown_properties_are_refused() {
    let place = Place::new();
    let node = Node::start(&place.data(), &Setup::cores(1));
    let mut connection = node.connect();
    let refused = |result: Result<(), ClientError>| result.unwrap_err().status().unwrap();
    assert_eq!(refused(connection.ioctl_get("trace.colour").map(|_| ())), Status::EINVAL);
    assert_eq!(refused(connection.ioctl_set("trace.config", "buffer-size:0")), Status::EINVAL);
    assert_eq!(refused(connection.ioctl_set("trace.start", "now")), Status::EINVAL);
    let mut raw = node.raw();
    let answer = raw.ask(Request::new(Opcode::IOCTL_SET).key(b"trace.config").value(b"save-on-stop:x"));
    assert_eq!(answer.status, Status::EINVAL);

    let users = place.path().join("users.json");
    let mut file = Users::empty(&mut os_random);
    let user = User::new(Role::ReadWrite, b"secret", ITERATIONS_DEFAULT, &mut os_random).unwrap();
    file.add("anna", user).unwrap();
    file.save(&users).unwrap();
    drop(node);
    let setup = Setup::cores(1).with(&["--users", users.to_str().unwrap()]);
    let node = Node::start(&place.data(), &setup);
    let mut connection = Connection::open(&node.connect_as("anna", "secret")).unwrap();
    assert_eq!(refused(connection.ioctl_get("trace.status").map(|_| ())), Status::EACCESS);
    assert_eq!(refused(connection.ioctl_set("trace.start", "")), Status::EACCESS);
}
