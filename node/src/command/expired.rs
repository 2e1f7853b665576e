//! What the expiry pager does, and what it leaves alone.
//!
//! Does not know: the wire beyond single requests.

use std::time::Duration;

use ringbase_storage::types::Kind;
use ringbase_storage::vbstore::Found;

use super::rig::{Rig, RigOptions, VB, get};
use crate::command::stat::StatValue;
use crate::command::{StatQuery, stat};
use crate::protocol::{Opcode, Request, Status};

fn set_with_expiry(rig: &mut Rig, key: &[u8], expiry: u32) {
    let extras = [0u32.to_be_bytes(), expiry.to_be_bytes()].concat();
    assert_eq!(
        rig.status(Request::new(Opcode::SET).key(key).value(b"value").extras(&extras)),
        Status::SUCCESS
    );
}

fn stat(rig: &Rig, name: &str) -> u64 {
    let query = StatQuery {
        group: stat::StatGroup::General,
        collections: stat::CollectionQuery::default(),
        vbucket: None,
        bucket: rig.engine.buckets().first().map(|bucket| bucket.id),
        dcp: stat::DcpQuery::default(),
    };
    match stat::collect(&query, &[&rig.engine]).get(name) {
        Some(StatValue::Sum(number) | StatValue::Max(number)) => *number,
        other => panic!("{name}: {other:?}"),
    }
}

/// Documents in memory and documents that only the disk has expire without being asked for, once, and no others.
#[test]
fn the_pager_finds_what_has_expired_in_memory_and_on_disk() {
    let options = RigOptions { resident_bytes_max: 0, ..RigOptions::default() };
    let mut rig = Rig::with(options);
    for n in 0..300u32 {
        let key = format!("disk{n:03}");
        set_with_expiry(&mut rig, key.as_bytes(), if n % 3 == 0 { 10 } else { 0 });
    }
    set_with_expiry(&mut rig, b"later", 5000);
    set_with_expiry(&mut rig, b"touched", 10);
    rig.flush();
    assert_eq!(stat(&rig, "resident_items"), 0, "only the disk has them");
    let extras = 100_000u32.to_be_bytes();
    assert_eq!(rig.status(Request::new(Opcode::TOUCH).key(b"touched").extras(&extras)), Status::SUCCESS);
    for n in 0..30u32 {
        set_with_expiry(&mut rig, format!("memory{n:02}").as_bytes(), 10);
    }
    let before = rig.engine.buckets()[0].vbucket(VB).unwrap().stats();
    assert_eq!((before.items, before.tombstones), (332, 0));
    rig.sim.run_for(Duration::from_secs(599));
    assert_eq!((stat(&rig, "ep_num_expiry_pager_runs"), stat(&rig, "ep_expired_pager")), (0, 0));
    rig.sim.run_for(Duration::from_secs(10));
    assert_eq!((stat(&rig, "ep_num_expiry_pager_runs"), stat(&rig, "ep_expired_pager")), (1, 130));
    let after = rig.engine.buckets()[0].vbucket(VB).unwrap().stats();
    assert_eq!((after.items, after.tombstones), (202, 130));
    let store = rig.engine.buckets()[0].vbucket(VB).unwrap().clone();
    let Found::Version(tombstone) = rig.sim.block_on(store.get(b"\0memory07")).unwrap() else { panic!() };
    assert_eq!(tombstone.kind(), Kind::Expiration);
    // The next run finds nothing more, and reads nothing: what lies ahead is known.
    let reads = rig.engine.shards()[0].metrics().disk_lookups.get();
    rig.sim.run_for(Duration::from_secs(600));
    assert_eq!((stat(&rig, "ep_num_expiry_pager_runs"), stat(&rig, "ep_expired_pager")), (2, 130));
    assert_eq!(rig.engine.shards()[0].metrics().disk_lookups.get(), reads);
    rig.sim.run_for(Duration::from_secs(4200));
    assert_eq!(stat(&rig, "ep_expired_pager"), 131, "the one that expired later");
    assert_eq!(rig.status(get(b"touched")), Status::SUCCESS);
    assert_eq!(stat(&rig, "ep_expired_access"), 0);
}

/// After a start the runs' expiries are not known yet: the first run learns them.
#[test]
fn the_pager_finds_what_expired_while_the_node_was_stopped() {
    let mut rig = Rig::new();
    for n in 0..50 {
        set_with_expiry(&mut rig, format!("k{n}").as_bytes(), 10);
    }
    rig.flush();
    let rig = rig.restart(|sim, _, engine| sim.block_on(engine.shards()[0].close()).unwrap());
    rig.sim.run_for(Duration::from_secs(605));
    assert_eq!(stat(&rig, "ep_expired_pager"), 50);
    assert_eq!(rig.engine.buckets()[0].vbucket(VB).unwrap().items(), 0);
}

/// When the log is full a tombstone must wait; a later run finds the document again.
#[test]
fn what_had_no_room_is_found_again() {
    let options = RigOptions { settings: "exp_pager_stime=100", ..RigOptions::default() };
    let mut rig = Rig::with(options);
    for n in 0..20 {
        set_with_expiry(&mut rig, format!("k{n}").as_bytes(), 10);
    }
    rig.flush();
    let bucket = rig.engine.buckets()[0].clone();
    rig.engine.shards()[0].set_bucket_quota(bucket.id, 0);
    rig.sim.run_for(Duration::from_secs(105));
    assert_eq!((stat(&rig, "ep_num_expiry_pager_runs"), stat(&rig, "ep_expired_pager")), (1, 0));
    rig.engine.shards()[0].set_bucket_quota(bucket.id, 1 << 20);
    rig.sim.run_for(Duration::from_secs(100));
    assert_eq!(stat(&rig, "ep_expired_pager"), 20);
}

#[test]
fn a_pager_that_is_turned_off_does_nothing() {
    let options =
        RigOptions { settings: "exp_pager_enabled=false;exp_pager_stime=1", ..RigOptions::default() };
    let mut rig = Rig::with(options);
    set_with_expiry(&mut rig, b"k", 1);
    rig.sim.run_for(Duration::from_secs(10_000));
    assert_eq!(stat(&rig, "ep_num_expiry_pager_runs"), 0);
    assert_eq!(rig.engine.buckets()[0].vbucket(VB).unwrap().items(), 1);
}
