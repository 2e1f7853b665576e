//! How scans end: cancelled, too old, disconnected, moved away, unreadable.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::zip;
use rand::RngExt;
use ringbase::protocol::Status;
use ringbase::protocol::range_scan::{RangeScanContinue, RangeScanCreate, ScanId, SnapshotRequirements};
use ringbase::range_scan::{ConnectionId, FrameSink, RangeScanConfig, RangeScans, ScanFrame, SendSize};
use ringbase_storage::io::sim::{Fault, Injection};
use ringbase_storage::shard::Home;
use ringbase_storage::types::{Seqno, VbId};

use super::rig::{AT, BUCKET, CLIENT, Rig, Seed, all_keys, keys, large_key, rng, statuses};

fn small_buffers() -> RangeScanConfig {
    RangeScanConfig { send_size: SendSize::Fixed(20), ..RangeScanConfig::default() }
}

/// T5.8
#[test]
fn cancelling_an_idle_scan_releases_its_snapshot_and_its_id() {
    let rig = Rig::new(1);
    rig.load(10, true);
    let id = rig.create(all_keys()).unwrap();
    rig.go_on(id, [2, 0, 0]);
    assert_eq!(rig.views(), 1);
    rig.scans.cancel(AT, id).unwrap();
    assert_eq!((rig.views(), rig.scans.len()), (0, 0));
    assert_eq!(rig.scans.cancel(AT, id).unwrap_err().status, Status::KEY_ENOENT);
    assert_eq!(statuses(&rig.go_on(id, [0; 3])), [Status::KEY_ENOENT]);
}

/// T5.8
#[test]
fn cancelling_at_any_moment_of_a_continue_gives_it_exactly_one_final_frame() {
    let (mut cancelled, mut completed, mut before_data) = (0, 0, 0);
    for seed in 0..300 {
        let _seed = Seed(seed);
        let rig = Rig::with(seed, small_buffers());
        rig.load(30, seed % 2 == 0);
        let id = rig.create(all_keys()).unwrap();
        let client = rig.client();
        let after = Duration::from_micros(rng(seed).random_range(0..3000));
        // The inbox panics if a frame follows the final one.
        let inbox = client.start(id, [0; 3]);
        let (frames, cancel) = rig.sim.block_on(zip(client.drain(&inbox), async {
            if seed % 10 != 0 {
                rig.store().sleep(after).await;
            }
            rig.scans.cancel(AT, id)
        }));
        let last = frames.last().unwrap().status;
        match cancel {
            Ok(()) => {
                assert_eq!(last, Status::RANGE_SCAN_CANCELLED);
                cancelled += 1;
                before_data += u32::from(frames.len() == 1);
            }
            Err(refusal) => {
                assert_eq!((refusal.status, last), (Status::KEY_ENOENT, Status::RANGE_SCAN_COMPLETE));
                completed += 1;
            }
        }
        rig.settle();
        assert_eq!((rig.views(), rig.scans.len(), rig.scans.buffer_bytes().held()), (0, 0, 0));
    }
    assert!(cancelled > 50 && completed > 50 && before_data > 5, "{cancelled} {completed} {before_data}");
}

/// A connection that does what it must not while it takes a frame.
struct Meddler {
    scans: RangeScans,
    id: ScanId,
    statuses: Rc<RefCell<Vec<Status>>>,
    cancel_at: usize,
    nested: Cell<bool>,
}

impl FrameSink for Meddler {
    fn send(&self, frame: ScanFrame) {
        self.statuses.borrow_mut().push(frame.status());
        self.scans.stats(BUCKET, None, &mut |_, _| {});
        if let Some(sent) = frame.into_sent() {
            self.scans.frame_sent(sent);
        }
        let nested: Rc<RefCell<Vec<Status>>> = Rc::default();
        if !self.nested.replace(true) {
            let request = RangeScanContinue { id: self.id, item_limit: 0, time_limit_ms: 0, byte_limit: 0 };
            let sink = Meddler {
                scans: self.scans.clone(),
                id: self.id,
                statuses: nested.clone(),
                cancel_at: usize::MAX,
                nested: Cell::new(true),
            };
            self.scans.continue_scan(AT, CLIENT, request, Rc::new(sink));
            assert_eq!(*nested.borrow(), [Status::EBUSY]);
        }
        if self.statuses.borrow().len() == self.cancel_at {
            let _ = self.scans.cancel(AT, self.id);
            self.scans.connection_gone(ConnectionId(99));
        }
    }
}

/// T5.10
#[test]
fn a_sink_may_call_back_while_it_takes_a_frame() {
    for cancel_at in 1..12 {
        let rig = Rig::with(2, small_buffers());
        rig.load(30, true);
        let id = rig.create(all_keys()).unwrap();
        let statuses: Rc<RefCell<Vec<Status>>> = Rc::default();
        let sink = Meddler {
            scans: rig.scans.clone(),
            id,
            statuses: statuses.clone(),
            cancel_at,
            nested: Cell::new(false),
        };
        let request = RangeScanContinue { id, item_limit: 0, time_limit_ms: 0, byte_limit: 0 };
        rig.scans.continue_scan(AT, CLIENT, request, Rc::new(sink));
        rig.settle();
        let statuses = statuses.borrow();
        let (last, before) = statuses.split_last().unwrap();
        assert!(before.iter().all(|status| *status == Status::SUCCESS));
        // 30 keys of 7 bytes: ten full buffers and an empty end.
        let expected =
            if cancel_at <= 10 { Status::RANGE_SCAN_CANCELLED } else { Status::RANGE_SCAN_COMPLETE };
        assert_eq!((*last, statuses.len()), (expected, cancel_at.min(10) + 1));
        assert_eq!(rig.views(), 0);
    }
}

/// T5.11
#[test]
fn a_vbucket_that_leaves_or_changes_its_branch_ends_a_running_scan_without_data() {
    for (seed, leaves) in [(3, true), (4, false)] {
        let rig = Rig::with(seed, small_buffers());
        rig.load(30, true);
        let id = rig.create(all_keys()).unwrap();
        let inbox = rig.client().start(id, [0; 3]);
        let (first, sent) = rig.sim.block_on(inbox.next());
        assert_eq!(first.status, Status::SUCCESS);
        match leaves {
            true => rig.vbuckets.inactive.set(true),
            false => rig.vbuckets.shown.set(VbId(1)),
        }
        sent.into_iter().for_each(|sent| rig.scans.frame_sent(sent));
        let frames = rig.sim.block_on(rig.client().drain(&inbox));
        let last = frames.last().unwrap();
        assert_eq!((last.status, last.records.len()), (Status::NOT_MY_VBUCKET, 0));
        rig.settle();
        assert_eq!((rig.views(), rig.scans.len()), (0, 0));
        rig.vbuckets.inactive.set(false);
        rig.vbuckets.shown.set(AT.vb);
        assert_eq!(statuses(&rig.go_on(id, [0; 3])), [Status::KEY_ENOENT]);
    }
}

/// T5.11
#[test]
fn a_continue_of_an_idle_scan_whose_vbucket_has_left_is_refused_and_ends_it() {
    for leaves in [true, false] {
        let rig = Rig::new(5);
        rig.load(30, true);
        let id = rig.create(all_keys()).unwrap();
        match leaves {
            true => rig.vbuckets.inactive.set(true),
            false => rig.vbuckets.shown.set(VbId(1)),
        }
        rig.scans.vbucket_changed(AT);
        assert_eq!(rig.views(), 1, "an idle scan stays until somebody asks for it");
        assert_eq!(statuses(&rig.go_on(id, [0; 3])), [Status::NOT_MY_VBUCKET]);
        assert_eq!((rig.views(), rig.scans.len()), (0, 0));
    }
}

/// T5.11
#[test]
fn a_scan_that_waits_for_its_client_hears_at_once_that_the_vbucket_has_left() {
    let rig = Rig::with(6, small_buffers());
    rig.load(30, true);
    let id = rig.create(all_keys()).unwrap();
    let inbox = rig.client().start(id, [0; 3]);
    rig.settle();
    assert_eq!(inbox.waiting(), 2);
    rig.scans.vbucket_changed(AT);
    assert_eq!(inbox.waiting(), 2, "nothing has changed");
    rig.vbuckets.inactive.set(true);
    rig.scans.vbucket_changed(AT);
    assert_eq!(inbox.waiting(), 3);
    let frames = rig.sim.block_on(rig.client().drain(&inbox));
    assert_eq!(statuses(&frames), [Status::SUCCESS, Status::SUCCESS, Status::NOT_MY_VBUCKET]);
}

/// T4.13, T5.11: the bucket goes under a running scan, and nobody has told the scans. One of a bucket in memory that could not go on says what one of
/// a bucket on disk says, which could; that is no read failure.
#[test]
fn a_scan_whose_bucket_goes_under_it_never_looks_complete() {
    for home in [Home::Disk, Home::Memory] {
        let rig = Rig::with_home(17, small_buffers(), home);
        rig.load(600, home == Home::Disk);
        let id = rig.create(all_keys()).unwrap();
        let inbox = rig.client().start(id, [0; 3]);
        let (first, sent) = rig.sim.block_on(inbox.next());
        assert_eq!(first.status, Status::SUCCESS);
        let store = rig.store();
        rig.sim.block_on(rig.shard.delete_bucket(BUCKET)).unwrap();
        sent.into_iter().for_each(|sent| rig.scans.frame_sent(sent));
        let frames = rig.sim.block_on(rig.client().drain(&inbox));
        let last = frames.last().unwrap();
        assert_eq!((last.status, last.records.len()), (Status::NOT_MY_VBUCKET, 0), "{home:?}");
        rig.settle();
        assert_eq!((store.stats().views, rig.scans.len(), rig.scans.buffer_bytes().held()), (0, 0, 0));
        assert_eq!(rig.scans.metrics().read_failures.get(), 0);
    }
}

/// T5.12
#[test]
fn a_read_error_ends_the_scan_without_the_buffered_data_and_the_node_lives_on() {
    let mut after_data = 0;
    for seed in 0..40 {
        let _seed = Seed(seed);
        let rig = Rig::with(seed, RangeScanConfig { send_size: SendSize::Fixed(2000), ..small_buffers() });
        rig.load_large(900);
        let key_only = seed % 2 == 0;
        let id = rig.create(RangeScanCreate { key_only, ..RangeScanCreate::default() }).unwrap();
        let fault = if seed % 3 == 0 { Fault::BitFlip } else { Fault::ReadError };
        rig.disk.inject(Injection::nth(fault, 1 + seed % 4).on("data").sticky());
        let frames = rig.go_on(id, [0; 3]);
        let last = frames.last().unwrap();
        assert_eq!((last.status, last.records.len()), (Status::EINTERNAL, 0));
        let found = keys(&frames);
        let expected: Vec<Vec<u8>> = (0..found.len()).map(large_key).collect();
        assert_eq!(found, expected, "what was sent before is right");
        after_data += u32::from(!found.is_empty());
        rig.settle();
        assert_eq!((rig.views(), rig.scans.len(), rig.scans.buffer_bytes().held()), (0, 0, 0));
        assert_eq!(rig.scans.metrics().read_failures.get(), 1);
        assert_eq!(statuses(&rig.go_on(id, [0; 3])), [Status::KEY_ENOENT]);
        rig.disk.clear_faults();
        let id = rig.create(all_keys()).unwrap();
        assert_eq!(keys(&rig.go_on(id, [0; 3])).len(), 900);
    }
    assert!(after_data > 0, "no seed failed after its first frame");
}

/// T5.12
#[test]
fn a_read_error_under_the_probe_of_a_create_is_an_internal_error() {
    let rig = Rig::new(7);
    rig.load_large(900);
    rig.disk.inject(Injection::next(Fault::ReadError).on("data").sticky());
    // The last key's part is not in the cache.
    assert_eq!(rig.create(RangeScanCreate { key_only: true, ..all_keys() }), Err(Status::EINTERNAL));
    assert_eq!((rig.views(), rig.scans.len()), (0, 0));
}

/// T5.12, and STYLE "panics do not cross".
#[test]
fn a_panic_while_reading_ends_that_scan_alone() {
    let rig = Rig::new(8);
    rig.load(100, true);
    let id = rig.create(all_keys()).unwrap();
    let other = rig.create(all_keys()).unwrap();
    // A scan with a time limit looks at the clock.
    rig.clock.broken.set(true);
    let frames = rig.go_on(id, [0, 1000, 0]);
    rig.clock.broken.set(false);
    assert_eq!(statuses(&frames), [Status::EINTERNAL]);
    rig.settle();
    assert_eq!((rig.views(), rig.scans.metrics().panics.get()), (1, 1));
    assert_eq!(keys(&rig.go_on(other, [0, 1000, 0])).len(), 100);
}

/// T5.13
#[test]
fn an_idle_scan_ends_180_seconds_after_its_creation_however_often_it_was_continued() {
    let rig = Rig::new(9);
    rig.load(100, true);
    let id = rig.create(all_keys()).unwrap();
    for _ in 0..8 {
        rig.sim.run_for(Duration::from_secs(20));
        assert_eq!(statuses(&rig.go_on(id, [1, 0, 0])), [Status::RANGE_SCAN_MORE]);
    }
    assert_eq!(rig.views(), 1);
    rig.sim.run_for(Duration::from_secs(21));
    assert_eq!((rig.views(), rig.scans.len(), rig.scans.metrics().expired.get()), (0, 0, 1));
    assert_eq!(statuses(&rig.go_on(id, [0; 3])), [Status::KEY_ENOENT]);
}

/// T5.13
#[test]
fn a_scan_that_waits_for_its_client_ends_with_one_cancelled_frame_when_it_is_too_old() {
    let rig = Rig::with(10, small_buffers());
    rig.load(100, true);
    let id = rig.create(all_keys()).unwrap();
    let inbox = rig.client().start(id, [0; 3]);
    rig.sim.run_for(Duration::from_secs(181));
    assert_eq!((rig.views(), rig.scans.len()), (0, 0));
    let frames = rig.sim.block_on(rig.client().drain(&inbox));
    assert_eq!(statuses(&frames), [Status::SUCCESS, Status::SUCCESS, Status::RANGE_SCAN_CANCELLED]);
}

/// T5.13
#[test]
fn a_scan_over_a_stalled_disk_ends_when_it_is_too_old() {
    let rig = Rig::new(11);
    rig.load_large(900);
    let id = rig.create(RangeScanCreate::default()).unwrap();
    rig.disk.set_latency(Duration::from_secs(1000), Duration::from_secs(1000));
    let inbox = rig.client().start(id, [0; 3]);
    rig.sim.run_for(Duration::from_secs(181));
    let frames = rig.sim.block_on(rig.client().drain(&inbox));
    assert_eq!(statuses(&frames), [Status::RANGE_SCAN_CANCELLED]);
    rig.settle();
    assert_eq!((rig.views(), rig.scans.len()), (0, 0));
}

/// T5.13
#[test]
fn a_shorter_lifetime_holds_for_scans_that_exist_and_a_longer_one_too() {
    let rig = Rig::new(12);
    rig.load(10, true);
    rig.create(all_keys()).unwrap();
    rig.scans.set_param("range_scan_max_lifetime", "300").unwrap();
    rig.sim.run_for(Duration::from_secs(200));
    assert_eq!(rig.scans.len(), 1);
    rig.scans.set_param("range_scan_max_lifetime", "210").unwrap();
    rig.sim.run_for(Duration::from_secs(5));
    assert_eq!(rig.scans.len(), 1);
    rig.sim.run_for(Duration::from_secs(6));
    assert_eq!((rig.scans.len(), rig.views()), (0, 0));
    // The task ended with the last scan and comes back with the next.
    rig.sim.run_until_idle();
    rig.create(all_keys()).unwrap();
    rig.sim.run_until_idle();
    assert_eq!(rig.scans.metrics().expired.get(), 2);
}

/// T5.22
#[test]
fn a_disconnect_at_any_moment_of_a_continue_releases_snapshot_and_buffers_at_once() {
    for seed in 0..100 {
        let _seed = Seed(seed);
        let rig = Rig::with(seed, small_buffers());
        rig.load(60, seed % 2 == 0);
        let idle = rig.create(all_keys()).unwrap();
        rig.go_on(idle, [1, 0, 0]);
        let id = rig.create(all_keys()).unwrap();
        let other = rig.create(all_keys()).unwrap();
        let inbox = rig.client().start(id, [0; 3]);
        let others = rig.client_of(ConnectionId(2)).start(other, [0; 3]);
        rig.sim.run_for(Duration::from_micros(rng(seed).random_range(0..1500)));
        rig.scans.connection_gone(CLIENT);
        inbox.clear();
        // Long enough for every task that is ready to run.
        rig.sim.run_for(Duration::from_millis(2));
        assert_eq!(inbox.waiting(), 0, "nobody is there to be answered");
        assert_eq!(statuses(&rig.go_on(id, [0; 3])), [Status::KEY_ENOENT]);
        assert_eq!(rig.views(), 2, "the idle scan and the one of another connection live on");
        let frames = rig.sim.block_on(rig.client().drain(&others));
        assert_eq!(keys(&frames).len(), 60);
        assert_eq!(keys(&rig.go_on(idle, [0; 3])).len(), 59);
        rig.settle();
        assert_eq!((rig.views(), rig.scans.len(), rig.scans.buffer_bytes().held()), (0, 0, 0));
    }
}

/// T5.22
#[test]
fn what_a_connection_took_with_it_does_not_keep_the_next_from_reading() {
    let rig = Rig::with(13, small_buffers());
    rig.load(60, true);
    let id = rig.create(all_keys()).unwrap();
    // The final frame is on its way when the connection goes: the scan is idle, its buffers do not come back.
    let inbox = rig.client().start(id, [5, 0, 0]);
    rig.settle();
    assert_eq!(inbox.waiting(), 2);
    rig.scans.connection_gone(CLIENT);
    inbox.clear();
    assert_eq!(keys(&rig.go_on(id, [0; 3])).len(), 55);
}

/// T5.22
#[test]
fn a_create_whose_connection_is_gone_makes_no_scan() {
    let rig = Rig::new(14);
    rig.load(10, false);
    let uuid = rig.store().uuid();
    let snapshot =
        SnapshotRequirements { uuid, seqno: Seqno(11), seqno_exists: false, timeout_ms: Some(100_000) };
    let client = rig.client();
    let create = client.create(RangeScanCreate { snapshot: Some(snapshot), ..all_keys() });
    let (created, ()) = rig.sim.block_on(zip(create, async {
        rig.store().sleep(Duration::from_millis(10)).await;
        assert_eq!(rig.scans.len(), 1);
        rig.scans.connection_gone(CLIENT);
    }));
    assert_eq!(created.unwrap_err().status, Status::ETMPFAIL);
    assert_eq!((rig.scans.len(), rig.views()), (0, 0));
    assert!(rig.sim.now_ns() < 1_000_000_000);
}

#[test]
fn a_stop_ends_creates_idle_scans_and_continues() {
    let rig = Rig::with(15, small_buffers());
    rig.load(60, true);
    rig.create(all_keys()).unwrap();
    let id = rig.create(all_keys()).unwrap();
    let inbox = rig.client().start(id, [0; 3]);
    let client = rig.client();
    let (created, ()) = rig.sim.block_on(zip(client.create(all_keys()), async {
        rig.scans.cancel_all();
    }));
    assert_eq!(created.unwrap_err().status, Status::ETMPFAIL);
    let frames = rig.sim.block_on(rig.client().drain(&inbox));
    assert_eq!(frames.last().unwrap().status, Status::RANGE_SCAN_CANCELLED);
    rig.settle();
    assert_eq!((rig.views(), rig.scans.len()), (0, 0));
    rig.sim.block_on(rig.shard.close()).unwrap();
    assert!(rig.disk.stats().reads > 0);
}

#[test]
fn deleting_a_vbucket_cancels_its_scans() {
    let rig = Rig::new(16);
    rig.load(3, true);
    rig.create(all_keys()).unwrap();
    rig.scans.vbucket_deleted(ringbase::range_scan::VbAddress { vb: VbId(1), bucket: BUCKET });
    assert_eq!(rig.scans.len(), 1);
    rig.scans.vbucket_deleted(AT);
    assert_eq!((rig.scans.len(), rig.views()), (0, 0));
}
