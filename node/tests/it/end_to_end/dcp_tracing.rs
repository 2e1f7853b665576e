//! What a trace tells about DCP streams: one flow from the request to the acknowledgement, and all of their time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ringbase::client::{DcpClient, DcpOptions};
use ringbase::dcp::time::Spent;
use ringbase::dcp::traced::streams;
use ringbase::protocol::dcp::{DcpMessage, StreamReply, StreamRequest};
use ringbase_storage::types::VbId;

use super::rig::{Node, PATIENCE, Place, for_each_core_count, store_when_taken};
use super::tracing::dump;

const VBUCKETS: u16 = 4;
const DOCUMENTS: u32 = 400;

/// Receives until so many documents have come.
fn receive(client: &mut DcpClient, documents: u32) {
    let (began, mut received) = (Instant::now(), 0);
    while received < documents {
        assert!(began.elapsed() < PATIENCE, "{received} of {documents}");
        let is_document = |message: &DcpMessage<'_>| matches!(message, DcpMessage::Mutation(_));
        let taken = client.next_within(PATIENCE, |_, message| is_document(message)).unwrap();
        received += u32::from(taken == Some(true));
    }
}

/// T1.13: one flow links the request of a stream, its slot, its view, its reads, its pieces on their way to the socket, and the client's
/// acknowledgements; from the dump alone at least 95 % of its wall time is explained, and most of it by the client, which was slow.
#[test]
fn one_flow_goes_from_the_request_to_the_acknowledgement_and_explains_the_time() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let setup = super::rig::Setup { vbuckets: VBUCKETS, ..setup };
        let node = Node::start(&place.data(), &setup);
        let mut connection = node.connect();
        for number in 0..DOCUMENTS {
            store_when_taken(&mut connection, &format!("key-{number}"), &[number as u8; 10_000]);
        }
        // Memory does not have what was written before a start.
        drop(connection);
        assert!(node.stop().success());
        let node = Node::start(&place.data(), &setup);
        let mut admin = node.connect();
        admin.ioctl_set("trace.config", "buffer-size:16777216;enabled-categories:*").unwrap();
        admin.ioctl_set("trace.start", "").unwrap();
        let options = DcpOptions { window_bytes: 100_000, ..DcpOptions::named("flow:one") };
        let mut client = DcpClient::open(node.connect(), &options).unwrap();
        for vb in (0..VBUCKETS).map(VbId) {
            let reply = client.stream(vb, &StreamRequest::FROM_NOTHING, None).unwrap();
            assert!(matches!(reply, StreamReply::Accepted(_)), "{vb}: {reply:?}");
        }
        // Nothing is given back for a second.
        receive(&mut client, 4);
        std::thread::sleep(Duration::from_secs(1));
        receive(&mut client, DOCUMENTS - 4);
        client.acknowledge().unwrap();
        let mut uids = BTreeSet::new();
        admin
            .stats("dcp", |name, value| {
                if name.ends_with(b"_uid") {
                    uids.insert(std::str::from_utf8(value).unwrap().parse::<u64>().unwrap());
                }
            })
            .unwrap();
        admin.ioctl_set("trace.stop", "").unwrap();
        let file = dump(&mut admin);
        assert_eq!(file.dropped(), 0);
        assert_eq!(uids.len(), usize::from(VBUCKETS));

        // Every mark of every stream, in this order.
        let order = [
            "dcp_stream_request",
            "dcp_stream_opened",
            "dcp_wait",
            "dcp_poll",
            "dcp_backfill",
            "dcp_scan_open",
            "dcp_backfill_run",
            "dcp_piece_queued",
            "dcp_piece_written",
            "dcp_acked",
        ];
        for flow in &uids {
            let mut first: BTreeMap<&str, f64> = BTreeMap::new();
            for event in file.events.iter().filter(|event| event.number("flow") == Some(*flow)) {
                let at = first.entry(&event.name).or_insert(event.at_us);
                *at = at.min(event.at_us);
            }
            let times = order.map(|name| *first.get(name).unwrap_or_else(|| panic!("no {name}: {first:?}")));
            // A client may give back the first part of a piece before the kernel has the rest.
            let (queued, after) = (times[order.len() - 3], &times[order.len() - 2..]);
            assert!(times[..order.len() - 2].is_sorted(), "{first:?}");
            assert!(after.iter().all(|at| *at >= queued), "{first:?}");
            let id = format!("{flow:#x}");
            let arrows: String = file
                .events
                .iter()
                .filter(|event| event.category == "flow" && event.id == id)
                .map(|event| event.phase.as_str())
                .collect();
            assert!(
                arrows.starts_with('s') && arrows.ends_with('f') && arrows.len() > order.len(),
                "{arrows}"
            );
        }

        let traced = streams(&file);
        assert_eq!(traced.iter().map(|stream| stream.number).collect::<BTreeSet<u64>>(), uids);
        for stream in &traced {
            assert_eq!(stream.connection, "flow:one");
            let sum: u64 = stream.spent_ns.iter().sum();
            assert!(sum >= stream.wall_ns / 100 * 95 && sum <= stream.wall_ns, "{stream:?}");
            assert!(stream.wall_ns > 1_000_000_000, "{stream:?}");
            let window_ns = stream.spent_ns[Spent::Window as usize];
            assert!(window_ns > 500_000_000, "the client was slow: {stream:?}");
            assert!(stream.reads.0 > 0 && stream.reads.1 > 0, "{stream:?}");
            assert!(stream.queued_bytes > 500_000 && stream.written_bytes > 500_000, "{stream:?}");
            assert!(stream.acked_bytes > 500_000 && stream.acked_bytes <= stream.written_bytes, "{stream:?}");
        }
    });
}
