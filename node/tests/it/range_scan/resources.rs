//! What a scan holds: buffers, turns, nothing while idle.

use std::time::Duration;

use ringbase::protocol::Status;
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase::range_scan::{HEAD_ROOM, RangeScanConfig, SendSize};

use super::rig::{CLIENT, Rig, all_keys, keys, statuses};

const KEY_RECORD_MAX: usize = 252;

fn config(bytes: usize) -> RangeScanConfig {
    RangeScanConfig { send_size: SendSize::Fixed(bytes), ..RangeScanConfig::default() }
}

/// T5.20
#[test]
fn a_client_that_never_reads_holds_two_buffers_and_no_more() {
    for key_only in [true, false] {
        let rig = Rig::with(1, config(500));
        rig.load(400, true);
        let id = rig.create(RangeScanCreate { key_only, ..RangeScanCreate::default() }).unwrap();
        let inbox = rig.client().start(id, [0; 3]);
        rig.sim.run_for(Duration::from_secs(10));
        assert_eq!(inbox.waiting(), 2);
        let bound = 2 * (HEAD_ROOM + 500 + KEY_RECORD_MAX);
        assert!(rig.scans.buffer_bytes().peak() <= bound, "{}", rig.scans.buffer_bytes().peak());
        // One is sent: one more is filled.
        let (_, sent) = rig.sim.block_on(inbox.next());
        rig.settle();
        assert_eq!(inbox.waiting(), 1, "the buffer counts until it comes back");
        rig.scans.frame_sent(sent.unwrap());
        rig.settle();
        assert_eq!(inbox.waiting(), 2);
        let frames = rig.sim.block_on(rig.client().drain(&inbox));
        assert_eq!(frames.last().unwrap().status, Status::RANGE_SCAN_COMPLETE);
        assert!(rig.scans.buffer_bytes().peak() <= bound);
        assert_eq!(inbox.most_unsent.get(), 2);
    }
}

/// T5.20
#[test]
fn a_record_larger_than_the_buffer_adds_itself_and_nothing_else() {
    let rig = Rig::with(2, config(1000));
    let writer = rig.writer();
    rig.sim.block_on(async {
        for n in 0..8u8 {
            writer.put(&[b'a' + n], Some(&vec![n; 30_000])).await;
        }
        writer.settle(true).await;
    });
    let id = rig.create(RangeScanCreate::default()).unwrap();
    let frames = rig.go_on(id, [0; 3]);
    assert_eq!(keys(&frames).len(), 8);
    assert_eq!(frames.len(), 9);
    let bound = 2 * (HEAD_ROOM + 1000 + 30_000 + 100);
    assert!(rig.scans.buffer_bytes().peak() <= bound, "{}", rig.scans.buffer_bytes().peak());
}

/// T5.20
#[test]
fn an_idle_scan_holds_no_buffer() {
    let rig = Rig::with(3, config(500));
    rig.load(400, true);
    let ids: Vec<_> = (0..16).map(|_| rig.create(all_keys()).unwrap()).collect();
    for id in &ids {
        assert_eq!(rig.go_on(*id, [200, 0, 0]).last().unwrap().status, Status::RANGE_SCAN_MORE);
    }
    assert_eq!(rig.scans.buffer_bytes().held(), 0);
    for id in ids {
        assert_eq!(keys(&rig.go_on(id, [0; 3])).len(), 200);
    }
}

/// T5.20
#[test]
fn buffers_that_come_back_are_filled_again() {
    let rig = Rig::with(4, config(100));
    rig.load(500, true);
    let id = rig.create(all_keys()).unwrap();
    let frames = rig.go_on(id, [0; 3]);
    let metrics = rig.scans.metrics();
    assert!(metrics.buffers_allocated.get() <= 2, "{}", metrics.buffers_allocated.get());
    assert!(metrics.buffers_reused.get() as usize >= frames.len() - 2);
    let with_records = frames.iter().filter(|frame| !frame.records.is_empty()).count();
    assert_eq!(metrics.full_to_sent_ns.histogram().len() as usize, with_records);
    assert_eq!(metrics.buffer_records.histogram().len() as usize, frames.len());
}

#[test]
fn the_size_of_a_buffer_changes_in_the_middle_of_a_continue() {
    let rig = Rig::with(5, config(70));
    rig.load(300, true);
    let id = rig.create(all_keys()).unwrap();
    let inbox = rig.client().start(id, [0; 3]);
    let (first, sent) = rig.sim.block_on(inbox.next());
    assert_eq!(first.records.len(), 10);
    rig.scans.set_param("range_scan_read_buffer_send_size", "700").unwrap();
    rig.scans.frame_sent(sent.unwrap());
    let frames = rig.sim.block_on(rig.client().drain(&inbox));
    assert_eq!(frames.iter().map(|frame| frame.records.len()).max(), Some(100));
    rig.scans.set_param("range_scan_read_buffer_send_size", "auto").unwrap();
    let id = rig.create(all_keys()).unwrap();
    assert_eq!(rig.go_on(id, [0; 3]).len(), 1);
}

#[test]
fn scans_beyond_the_number_of_readers_wait_for_their_turn_and_all_finish() {
    let rig = Rig::with(6, RangeScanConfig { readers_max: 1, ..config(100) });
    rig.load(200, true);
    let ids: Vec<_> = (0..6).map(|_| rig.create(all_keys()).unwrap()).collect();
    let inboxes: Vec<_> = ids.iter().map(|id| rig.client().start(*id, [0; 3])).collect();
    rig.sim.run_steps(8);
    let stat = |name| rig.stat(name).unwrap().parse::<u32>().unwrap();
    assert!(stat("tasks_size") <= 1 && stat("ready_queue_size") <= 6);
    rig.settle();
    assert!(inboxes.iter().all(|inbox| inbox.waiting() == 2), "a slow client holds no turn");
    for inbox in inboxes {
        assert_eq!(keys(&rig.sim.block_on(rig.client().drain(&inbox))).len(), 200);
    }
    assert_eq!((stat("tasks_size"), stat("ready_queue_size")), (0, 0));
    let id = rig.create(all_keys()).unwrap();
    let inbox = rig.client().start(id, [0; 3]);
    rig.scans.connection_gone(CLIENT);
    inbox.clear();
    rig.settle();
    assert_eq!(stat("tasks_size"), 0);
    assert_eq!(statuses(&rig.go_on(id, [0; 3])), [Status::KEY_ENOENT]);
}
