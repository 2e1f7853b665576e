//! What survives: a stop, a kill, a full disk, damage to a file.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use ringbase::client::{
    Bucket, ClientError, ContinueLimits, Scan, ScanPlan, ScanRecord, StoreMode, scan_vbucket,
};
use ringbase::protocol::extras::StoreExtras;
use ringbase::protocol::range_scan::{RangeScanCreate, SnapshotRequirements};
use ringbase::protocol::{Request, Status, vbucket_of};
use ringbase_storage::types::{Cas, Seqno, VbId};

use super::rig::{Node, Place, Setup, for_each_core_count, frame, get, set};
use super::scans::fill;

const PLAIN: StoreExtras = StoreExtras { flags: 0, expiry: 0 };

/// SIGTERM in the middle of a burst: everything that was acknowledged is there after the restart, and the stop was clean.
#[test]
fn everything_acknowledged_before_sigterm_is_there_after_a_restart() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut raw = node.raw();
        let mut writing = raw.stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            for number in 0..20_000_u32 {
                let key = format!("key-{number}");
                let bytes = frame(set(key.as_bytes(), &number.to_be_bytes(), 16).opaque(number));
                if std::io::Write::write_all(&mut writing, &bytes).is_err() {
                    return;
                }
            }
        });
        let mut acknowledged = 0;
        while let Some(answer) = raw.next_answer() {
            assert_eq!((answer.status, answer.opaque), (Status::SUCCESS, acknowledged));
            acknowledged += 1;
            if acknowledged == 3_000 {
                node.terminate();
            }
        }
        writer.join().unwrap();
        assert!(node.stop().success());
        let node = Node::start(&place.data(), &setup);
        assert_eq!(node.ready["clean"], true);
        println!("{acknowledged} were acknowledged");
        assert!(acknowledged >= 3_000);
        let mut raw = node.raw();
        for number in 0..acknowledged {
            let key = format!("key-{number}");
            let answer = raw.ask(get(key.as_bytes(), 16));
            assert_eq!(answer.value, number.to_be_bytes(), "{key}");
        }
    });
}

/// A token from before a kill meets the new branch: OBSERVE_SEQNO shows it, a scan that requires the old one is refused.
#[test]
fn a_mutation_token_from_before_a_kill_meets_the_new_branch() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut connection = node.connect();
        let mut tokens = Vec::new();
        for number in 0..200 {
            let key = format!("key-{number}").into_bytes();
            let mut bucket = Bucket::new(&mut connection).unwrap();
            let stored = bucket.store(StoreMode::Set, &key, b"v", PLAIN, Cas(0)).unwrap();
            tokens.push((vbucket_of(&key, 16), stored.token.unwrap()));
        }
        connection.wait_persisted(&tokens, super::rig::PATIENCE).unwrap();
        node.kill();
        let node = Node::start(&place.data(), &setup);
        assert_eq!(node.ready["clean"], false);
        let mut connection = node.connect();
        for (vbucket, token) in &tokens {
            let observed = connection.observe(*vbucket, token.uuid).unwrap();
            assert_ne!(observed.uuid, token.uuid, "{vbucket} has a new branch");
            let (older, until) = observed.older_branch.expect("the old branch is named");
            assert_eq!(older, token.uuid);
            assert!(until >= token.seqno, "{vbucket}: {until:?} was persisted, {token:?}");
            assert_eq!((observed.persisted_seqno, observed.high_seqno), (until, until));
            let mut create = |uuid| {
                let snapshot =
                    SnapshotRequirements { uuid, seqno: token.seqno, seqno_exists: true, timeout_ms: None };
                let create = RangeScanCreate { snapshot: Some(snapshot), ..RangeScanCreate::default() };
                Scan::create(&mut connection, *vbucket, &create)
            };
            assert_eq!(create(token.uuid).unwrap_err().status(), Some(Status::VB_UUID_NOT_EQUAL));
            assert!(create(observed.uuid).unwrap().is_some(), "with the new branch it is as it was");
            let never = ringbase_storage::types::VbUuid(token.uuid.0 ^ 1);
            assert_eq!(connection.observe(*vbucket, never).unwrap_err().status(), Some(Status::KEY_ENOENT));
        }
        // CAS goes on above everything from before.
        let mut bucket = Bucket::new(&mut connection).unwrap();
        let before = bucket.get(b"key-7").unwrap().cas;
        assert!(bucket.store(StoreMode::Set, b"key-7", b"w", PLAIN, Cas(0)).unwrap().cas > before);
    });
}

/// A clean stop starts no new branch.
#[test]
fn after_a_clean_stop_the_branch_goes_on() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut connection = node.connect();
        let stored = Bucket::new(&mut connection).unwrap().store(StoreMode::Set, b"key", b"v", PLAIN, Cas(0));
        let token = stored.unwrap().token.unwrap();
        drop(connection);
        assert!(node.stop().success());
        let node = Node::start(&place.data(), &setup);
        let observed = node.connect().observe(vbucket_of(b"key", 16), token.uuid).unwrap();
        assert_eq!((observed.uuid, observed.persisted_seqno), (token.uuid, Seqno(1)));
        assert_eq!(observed.older_branch, None);
    });
}

/// The documents of one vbucket; how it ended.
fn scan(node: &Node, vbucket: VbId) -> Result<u64, Status> {
    let mut connection = node.connect();
    let create = RangeScanCreate::default();
    let Some(mut scan) =
        Scan::create(&mut connection, vbucket, &create).map_err(|error| error.status().unwrap())?
    else {
        return Ok(0);
    };
    let mut ignore = |_: ScanRecord<'_>| Ok(());
    match scan.advance(&mut connection, ContinueLimits::default(), &mut ignore) {
        Ok(_) => Ok(scan.counts().records.records),
        Err(error) => Err(error.status().unwrap_or_else(|| panic!("{error}"))),
    }
}

/// Damaged blocks under a scan: that scan ends with EINTERNAL, nothing false is returned, and the node lives on.
#[test]
fn a_damaged_data_file_fails_the_scans_over_it_and_nothing_else() {
    const VALUE_BYTES: usize = 5_000;
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let model = fill(&node, 1_000, VALUE_BYTES);
        assert!(node.stop().success());
        // Every fourth block of the first shard that holds a value of `h`: documents 7, 33, …
        let data = place.data().join("shard-000/data");
        let mut bytes = fs::read(&data).unwrap();
        let mut damaged = 0;
        for (index, block) in bytes.chunks_mut(4096).enumerate() {
            if block.windows(1_000).step_by(500).any(|run| run.iter().all(|byte| *byte == b'h')) {
                block[2_000] ^= 0x40;
                damaged += 1;
                super::rig::patch(&data, index as u64 * 4096, block);
            }
        }
        assert!(damaged > 5, "{damaged} blocks with such a value");
        let mut node = Node::start(&place.data(), &setup);
        let (mut whole, mut failed) = (0, 0);
        for (vbucket, documents) in &model {
            match scan(&node, *vbucket) {
                Ok(records) => {
                    assert_eq!(records, documents.len() as u64, "{vbucket}");
                    whole += 1;
                }
                Err(status) => {
                    assert_eq!(status, Status::EINTERNAL, "{vbucket}");
                    failed += 1;
                }
            }
        }
        println!("{damaged} damaged blocks: {failed} scans failed, {whole} were whole");
        assert!(failed > 0);
        assert!(setup.cores == 1 || whole >= 8, "the other shard is not damaged");
        assert!(node.is_alive());
        let mut raw = node.raw();
        assert_eq!(raw.ask(set(b"after", b"v", 16)).status, Status::SUCCESS);
        assert_eq!(raw.ask(get(b"after", 16)).value, b"v");
        assert!(node.log().contains("checksum"), "the damage is logged: {}", node.log());
    });
}

/// A filesystem of its own that is small: writes are refused with a temporary failure when it is full, what was acknowledged can
/// still be read, and after a restart it is there.
#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    let place = Place::new();
    let (image, mount) = (place.path().join("image"), place.path().join("mount"));
    fs::create_dir(&mount).unwrap();
    fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let made = run("mkfs.ext4", &["-q".as_ref(), image.as_ref()])
        && run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), mount.as_ref()]);
    if !made {
        println!("skipped: this user cannot make and mount a small filesystem");
        return;
    }
    let unmount = Unmount(mount.clone());
    let data = mount.join("data");
    let setup = Setup::cores(1);
    let mut node = Node::start(&data, &setup);
    let mut connection = node.connect();
    let (mut stored, mut refused, mut tokens) = (0_u32, None, BTreeMap::new());
    let mut bucket = Bucket::new(&mut connection).unwrap();
    for number in 0..2_000_u32 {
        let (key, value) = (format!("key-{number}"), vec![number as u8; 100_000]);
        match bucket.store(StoreMode::Set, key.as_bytes(), &value, PLAIN, Cas(0)) {
            Ok(answer) => {
                tokens.insert(vbucket_of(key.as_bytes(), 16), answer.token.unwrap());
                stored += 1;
            }
            Err(ClientError::Refused { status, .. }) => {
                refused = Some(status);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let tokens: Vec<_> = tokens.into_iter().collect();
    connection.wait_persisted(&tokens, super::rig::PATIENCE).unwrap();
    let mut raw = node.raw();
    println!("{stored} documents of 100 kB stored, then {refused:?}");
    assert!(matches!(refused, Some(Status::ETMPFAIL | Status::ENOMEM)), "{refused:?}");
    assert!(node.is_alive());
    for number in (0..stored).step_by(10) {
        let key = format!("key-{number}");
        let answer = raw.ask(get(key.as_bytes(), 16));
        assert_eq!(answer.status, Status::SUCCESS, "{key}");
        assert_eq!(answer.value, vec![number as u8; 100_000]);
    }
    let noop = raw.ask(Request::new(ringbase::protocol::Opcode::NOOP));
    assert_eq!(noop.status, Status::SUCCESS);
    node.kill();
    let node = Node::start(&data, &setup);
    let mut connection = node.connect();
    let mut found = 0;
    for vbucket in (0..16).map(VbId) {
        let plan = ScanPlan::new(RangeScanCreate::default());
        scan_vbucket(&mut connection, &plan, vbucket, &mut |_| {
            found += 1;
            Ok(())
        })
        .unwrap();
    }
    println!("{found} of them after a kill");
    assert_eq!(found, stored);
    drop(node);
    drop(unmount);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
