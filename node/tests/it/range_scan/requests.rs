//! Creating, continuing, cancelling: who gets which answer.

use std::ops::Bound;
use std::time::Duration;

use ringbase::protocol::range_scan::{RangeScanCreate, ScanId, Selection, SnapshotRequirements};
use ringbase::protocol::{CollectionId, Status};
use ringbase::range_scan::{ConnectionId, RangeScanConfig, SendSize, VbAddress};
use ringbase_storage::types::{Seqno, VbId, VbUuid};

use super::rig::{AT, BUCKET, CLIENT, Rig, all_keys, key_range, keys, statuses};

const SEND_SIZE: &str = "range_scan_read_buffer_send_size";

/// T5.1
#[test]
fn a_created_scan_holds_its_snapshot_and_an_empty_range_is_not_found() {
    let rig = Rig::new(1);
    assert_eq!(rig.create(all_keys()), Err(Status::KEY_ENOENT), "an empty vbucket");
    rig.load(10, true);
    let empty = key_range(Bound::Excluded(b"key003"), Bound::Excluded(b"key004"));
    assert_eq!(rig.create(empty), Err(Status::KEY_ENOENT));
    assert_eq!((rig.views(), rig.scans.len()), (0, 0));
    let sampled = RangeScanCreate { selection: Selection::Sampling { samples: 3, seed: 1 }, ..all_keys() };
    assert!(rig.create(sampled.clone()).is_ok());
    let id = rig.create(all_keys()).unwrap();
    assert_eq!(rig.views(), 2);
    // What is written now is not in the snapshot.
    let writer = rig.writer();
    rig.sim.block_on(async {
        for n in 0..10 {
            writer.put(format!("key{n:03}").as_bytes(), None).await;
        }
        writer.put(b"later", Some(b"x")).await;
        writer.settle(true).await;
    });
    let frames = rig.go_on(id, [0; 3]);
    assert_eq!(statuses(&frames), [Status::RANGE_SCAN_COMPLETE]);
    assert_eq!(keys(&frames).len(), 10);
    rig.sim.block_on(async { writer.put(b"later", None).await });
    assert_eq!(rig.create(sampled), Err(Status::KEY_ENOENT), "a sample of nothing");
}

/// T5.1
#[test]
fn ids_are_uuids_of_version_4_and_differ() {
    let rig = Rig::new(2);
    rig.load(1, false);
    let ids: Vec<ScanId> = (0..50).map(|_| rig.create(all_keys()).unwrap()).collect();
    for id in &ids {
        assert_eq!(id.0[6] >> 4, 4);
        assert_eq!(id.0[8] >> 6, 2);
    }
    let mut unique = ids.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), 50);
}

/// T5.2
#[test]
fn every_continue_returns_at_least_one_record_unless_the_end_is_reached() {
    let rig = Rig::new(3);
    rig.load(5, true);
    for limits in [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]] {
        let id = rig.create(all_keys()).unwrap();
        let mut found = Vec::new();
        loop {
            if limits[1] > 0 {
                // The time is over before the first key is read.
                rig.disk.set_latency(Duration::from_millis(5), Duration::from_millis(5));
            }
            let frames = rig.go_on(id, limits);
            let got = keys(&frames);
            found.extend(got.clone());
            if frames.last().unwrap().status == Status::RANGE_SCAN_COMPLETE {
                break;
            }
            assert_eq!(statuses(&frames), [Status::RANGE_SCAN_MORE]);
            assert!(!got.is_empty());
        }
        assert_eq!(found.len(), 5, "limits {limits:?}");
    }
}

/// T5.3
#[test]
fn while_a_continue_waits_for_a_stalled_disk_others_are_answered_at_once() {
    let rig = Rig::new(4);
    rig.load_large(900);
    let id = rig.create(RangeScanCreate::default()).unwrap();
    let in_memory = rig.create(key_range(Bound::Included(b"key000"), Bound::Excluded(b"key002"))).unwrap();
    rig.disk.set_latency(Duration::from_secs(1), Duration::from_secs(1));
    let started = rig.sim.now_ns();
    let stalled = rig.client().start(id, [0; 3]);
    rig.sim.run_for(Duration::from_millis(500));
    assert_eq!(stalled.waiting(), 0);
    // The first keys lie in the block that the creation read.
    assert_eq!(keys(&rig.go_on(in_memory, [0; 3])).len(), 2);
    let refused = rig.go_on(id, [0; 3]);
    assert_eq!(statuses(&refused), [Status::EBUSY]);
    assert!(rig.sim.now_ns() - started < 510_000_000, "others waited for the disk");
    let frames = rig.sim.block_on(rig.client().drain(&stalled));
    assert_eq!(keys(&frames).len(), 900);
    assert!(rig.sim.now_ns() - started >= 1_000_000_000);
}

/// T5.4 and T5.5
#[test]
fn at_threshold_0_every_record_has_a_frame_of_its_own_and_the_status_one_more() {
    for flushed in [false, true] {
        for key_only in [false, true] {
            let config = RangeScanConfig { send_size: SendSize::Fixed(0), ..RangeScanConfig::default() };
            let rig = Rig::with(5, config);
            rig.load(23, flushed);
            let id = rig.create(RangeScanCreate { key_only, ..RangeScanCreate::default() }).unwrap();
            let frames = rig.go_on(id, [0; 3]);
            assert_eq!(frames.len(), 24);
            for frame in &frames[..23] {
                assert_eq!((frame.status, frame.records.len()), (Status::SUCCESS, 1));
            }
            assert_eq!((frames[23].status, frames[23].records.len()), (Status::RANGE_SCAN_COMPLETE, 0));
            assert_eq!(rig.stat("continues"), None, "a completed scan is gone");
        }
    }
}

/// T5.4
#[test]
fn a_buffer_exceeds_the_threshold_by_at_most_one_record() {
    let rig = Rig::new(6);
    rig.load(400, true);
    for threshold in [1, 7, 8, 50, 1000] {
        rig.scans.set_param(SEND_SIZE, &threshold.to_string()).unwrap();
        let id = rig.create(all_keys()).unwrap();
        let frames = rig.go_on(id, [0; 3]);
        assert_eq!(keys(&frames).len(), 400);
        let (last, full) = frames.split_last().unwrap();
        assert!(last.records.len() * 7 < threshold + 7);
        for frame in full {
            // A record has 7 bytes.
            let bytes = frame.records.len() * 7;
            assert!((threshold..threshold + 7).contains(&bytes), "{bytes} bytes at {threshold}");
        }
    }
}

/// T5.6
#[test]
fn limits_span_buffers_so_an_item_limit_of_2_takes_half_as_many_continues_and_one() {
    for key_only in [false, true] {
        let config = RangeScanConfig { send_size: SendSize::Fixed(0), ..RangeScanConfig::default() };
        let rig = Rig::with(7, config);
        rig.load(40, true);
        let id = rig.create(RangeScanCreate { key_only, ..RangeScanCreate::default() }).unwrap();
        let mut found = Vec::new();
        for _ in 0..20 {
            let frames = rig.go_on(id, [2, 0, 0]);
            assert_eq!(statuses(&frames), [Status::SUCCESS, Status::RANGE_SCAN_MORE]);
            found.extend(keys(&frames));
        }
        let last = rig.go_on(id, [2, 0, 0]);
        assert_eq!(statuses(&last), [Status::RANGE_SCAN_COMPLETE]);
        assert_eq!((found.len(), keys(&last).len()), (40, 0));
    }
}

/// T5.6
#[test]
fn a_byte_limit_spans_buffers_and_is_exceeded_by_at_most_one_record() {
    let config = RangeScanConfig { send_size: SendSize::Fixed(10), ..RangeScanConfig::default() };
    let rig = Rig::with(8, config);
    rig.load(100, true);
    let id = rig.create(all_keys()).unwrap();
    let frames = rig.go_on(id, [0, 0, 50]);
    assert_eq!(frames.last().unwrap().status, Status::RANGE_SCAN_MORE);
    assert_eq!(keys(&frames).len(), 8, "7 records of 7 bytes are below 50");
    assert!(frames.len() > 3);
    assert_eq!(rig.stat("crs_byte_limit").as_deref(), Some("true"));
}

/// T5.6
#[test]
fn the_deadline_is_computed_once_for_all_buffers_of_a_continue() {
    let config = RangeScanConfig { send_size: SendSize::Fixed(0), ..RangeScanConfig::default() };
    let rig = Rig::with(9, config);
    rig.load(200, true);
    let id = rig.create(all_keys()).unwrap();
    let client = rig.client();
    let inbox = client.start(id, [0, 20, 0]);
    let count = rig.sim.block_on(async {
        let mut count = 0;
        loop {
            let (received, sent) = inbox.next().await;
            count += received.records.len();
            rig.store().sleep(Duration::from_millis(1)).await;
            sent.into_iter().for_each(|sent| rig.scans.frame_sent(sent));
            match received.status {
                Status::SUCCESS => {}
                status => break assert_eq!(status, Status::RANGE_SCAN_MORE),
            }
        }
        count
    });
    assert!((10..60).contains(&count), "{count} records of a millisecond each in 20 ms");
}

/// T5.7
#[test]
fn a_second_continue_is_busy_and_leaves_the_first_alone() {
    let rig = Rig::new(10);
    rig.load(30, true);
    let id = rig.create(all_keys()).unwrap();
    let first = rig.client().start(id, [0; 3]);
    let second = rig.client_of(ConnectionId(2)).start(id, [0; 3]);
    assert_eq!(statuses(&rig.sim.block_on(rig.client().drain(&second))), [Status::EBUSY]);
    let frames = rig.sim.block_on(rig.client().drain(&first));
    assert_eq!(statuses(&frames), [Status::RANGE_SCAN_COMPLETE]);
    assert_eq!(keys(&frames).len(), 30);
}

/// T5.7
#[test]
fn an_unknown_id_or_one_of_another_vbucket_is_not_found() {
    let rig = Rig::new(11);
    rig.load(3, false);
    let id = rig.create(all_keys()).unwrap();
    let other = VbAddress { vb: VbId(1), bucket: BUCKET };
    assert_eq!(rig.scans.cancel(other, id).unwrap_err().status, Status::KEY_ENOENT);
    let unknown = ScanId([9; 16]);
    assert_eq!(rig.scans.cancel(AT, unknown).unwrap_err().status, Status::KEY_ENOENT);
    assert_eq!(statuses(&rig.go_on(unknown, [0; 3])), [Status::KEY_ENOENT]);
    assert_eq!(statuses(&rig.go_on(id, [0; 3])), [Status::RANGE_SCAN_COMPLETE]);
    assert_eq!(statuses(&rig.go_on(id, [0; 3])), [Status::KEY_ENOENT], "a finished scan is gone");
}

/// T5.14
#[test]
fn too_many_scans_are_refused_before_any_io_and_a_slot_returns_with_its_scan() {
    let config = RangeScanConfig { scans_max: 2, ..RangeScanConfig::default() };
    let rig = Rig::with(12, config);
    rig.load(10, true);
    let first = rig.create(all_keys()).unwrap();
    let second = rig.create(all_keys()).unwrap();
    let operations = rig.disk.operations();
    let refused = std::cell::Cell::new(None);
    let refused = std::rc::Rc::new(refused);
    let slot = refused.clone();
    rig.scans.create(AT, CLIENT, all_keys(), move |reply| slot.set(Some(reply)));
    let reply = refused.take().expect("answered at once");
    assert_eq!(reply.unwrap_err().status, Status::EBUSY);
    assert_eq!(rig.disk.operations(), operations);
    rig.scans.cancel(AT, first).unwrap();
    assert!(rig.create(all_keys()).is_ok());
    assert_eq!(rig.create(all_keys()), Err(Status::EBUSY));
    // One that continues keeps its slot until its task has let go.
    let inbox = rig.client().start(second, [0; 3]);
    rig.scans.cancel(AT, second).unwrap();
    rig.sim.block_on(rig.client().drain(&inbox));
    rig.settle();
    assert_eq!(rig.scans.len(), 1);
    assert!(rig.create(all_keys()).is_ok());
    let empty = key_range(Bound::Included(b"x"), Bound::Included(b"y"));
    assert_eq!(rig.create(empty), Err(Status::EBUSY));
}

/// T5.17
#[test]
fn snapshot_requirements_are_met_or_refused_by_name() {
    let rig = Rig::new(13);
    rig.load(10, true);
    let uuid = rig.store().uuid();
    let required = SnapshotRequirements { uuid, seqno: Seqno(10), seqno_exists: true, timeout_ms: None };
    let create = |snapshot| rig.create(RangeScanCreate { snapshot: Some(snapshot), ..all_keys() });
    assert!(create(required).is_ok());
    let other = VbUuid(uuid.0 ^ 1);
    assert_eq!(create(SnapshotRequirements { uuid: other, ..required }), Err(Status::VB_UUID_NOT_EQUAL));
    assert_eq!(create(SnapshotRequirements { seqno: Seqno(11), ..required }), Err(Status::ETMPFAIL));
    let started = rig.sim.now_ns();
    let late = SnapshotRequirements { seqno: Seqno(11), timeout_ms: Some(700), ..required };
    assert_eq!(create(late), Err(Status::ETMPFAIL));
    assert!(rig.sim.now_ns() - started >= 700_000_000, "it waits as long as it was told");
    // It does not wait longer than a scan may live.
    let started = rig.sim.now_ns();
    assert_eq!(create(SnapshotRequirements { timeout_ms: Some(u64::MAX), ..late }), Err(Status::ETMPFAIL));
    assert!(rig.sim.now_ns() - started < 200_000_000_000);
    // A seqno that a newer version of its key took over, in memory and on disk, is not there.
    let writer = rig.writer();
    rig.sim.block_on(async {
        writer.put(b"key004", Some(b"new")).await;
        writer.put(b"key005", None).await;
        writer.settle(false).await;
    });
    for flushed in [false, true] {
        rig.sim.block_on(writer.settle(flushed));
        for (seqno, expected) in [(5, false), (6, false), (7, true), (11, true), (12, false), (0, false)] {
            let snapshot = SnapshotRequirements { seqno: Seqno(seqno), ..required };
            let created = create(snapshot);
            if expected {
                assert!(created.is_ok(), "seqno {seqno}");
            } else {
                assert_eq!(created, Err(Status::NOT_STORED), "seqno {seqno}");
            }
            assert!(create(SnapshotRequirements { seqno_exists: false, ..snapshot }).is_ok());
        }
    }
}

/// T5.17
#[test]
fn a_create_that_waits_goes_on_as_soon_as_the_seqno_is_persisted() {
    let rig = Rig::new(14);
    rig.load(10, false);
    let uuid = rig.store().uuid();
    let snapshot =
        SnapshotRequirements { uuid, seqno: Seqno(11), seqno_exists: true, timeout_ms: Some(60_000) };
    let writer = rig.writer();
    let started = rig.sim.now_ns();
    let client = rig.client();
    let created = client.create(RangeScanCreate { snapshot: Some(snapshot), ..all_keys() });
    let id = rig.sim.block_on(async {
        let write = async {
            rig.store().sleep(Duration::from_millis(300)).await;
            writer.put(b"awaited", Some(b"1")).await;
        };
        futures_lite::future::zip(created, write).await.0
    });
    assert!(rig.sim.now_ns() - started < 1_000_000_000);
    assert_eq!(keys(&rig.go_on(id.unwrap(), [0; 3])).len(), 11);
}

#[test]
fn collections_and_inactive_vbuckets_are_refused_at_once() {
    let rig = Rig::new(15);
    rig.load(1, false);
    let other = RangeScanCreate { collection: CollectionId(8), ..all_keys() };
    assert_eq!(rig.create(other), Err(Status::UNKNOWN_COLLECTION));
    rig.vbuckets.inactive.set(true);
    assert_eq!(rig.create(all_keys()), Err(Status::NOT_MY_VBUCKET));
    assert_eq!(statuses(&rig.go_on(ScanId([0; 16]), [0; 3])), [Status::NOT_MY_VBUCKET]);
    assert_eq!(rig.scans.cancel(AT, ScanId([0; 16])).unwrap_err().status, Status::NOT_MY_VBUCKET);
}

/// Part 5, "Statistics".
#[test]
fn statistics_show_a_scan_with_its_limits_and_progress() {
    let rig = Rig::new(16);
    rig.load(20, true);
    let name = Some("nightly".to_owned());
    let range = key_range(Bound::Excluded(b"key"), Bound::Included(b"key\xff"));
    let id = rig.create(RangeScanCreate { name, ..range }).unwrap();
    assert_eq!(rig.stat("state").as_deref(), Some("State::Idle"));
    rig.go_on(id, [3, 5000, 100_000]);
    for (key, value) in [
        ("num_running", "1"),
        ("max_running", "838"),
        ("max_duration", "180"),
        ("start", "key (exclusive)"),
        ("end", "key\\xff"),
        ("key_value", "key"),
        ("include_xattrs", "no"),
        ("total_keys", "3"),
        ("continues", "1"),
        ("crs_item_count", "3"),
        ("crs_item_limit", "true"),
        ("item_limit", "3"),
        ("time_limit", "5000"),
        ("byte_limit", "100000"),
        ("state", "State::Idle"),
        ("name", "nightly"),
        ("send_threshold", "524288"),
        ("vbuuid", &rig.store().uuid().to_string()),
    ] {
        assert_eq!(rig.stat(key).as_deref(), Some(value), "{key}");
    }
    let mut prefixed = 0;
    rig.scans.stats(BUCKET, Some(AT.vb), &mut |key, _| {
        prefixed += u32::from(key.starts_with(&format!("vb_0:{id}:")));
    });
    assert!(prefixed > 20);
    rig.scans.stats(BUCKET, Some(VbId(1)), &mut |key, _| assert!(!key.contains(':')));
    assert_eq!(rig.scans.metrics().continue_ns.histogram().len(), 1);
    assert_eq!(rig.scans.metrics().create_ns.histogram().len(), 1);
}
