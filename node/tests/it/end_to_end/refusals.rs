//! When a node does not start: an exit code and a sentence that says what to do.

use std::fs;
use std::path::Path;

use ringbase::protocol::Status;
use ringbase_storage::format::crc32c;
use ringbase_storage::format::superblock::SUPERBLOCK_SLOTS;
use ringbase_storage::io::BLOCK_BYTES;

use super::rig::{Node, Place, Setup, get, patch, set};

/// The node does not start; the exit code, and all of these words are in what it says.
fn refused(data: &Path, setup: &Setup, code: i32, words: &[&str]) {
    let Err(refusal) = Node::try_start(data, setup).map(Node::kill) else {
        panic!("the node started; expected a refusal with {words:?}");
    };
    assert_eq!(refusal.code, Some(code), "{}", refusal.text);
    for word in words {
        assert!(refusal.text.contains(word), "no `{word}` in: {}", refusal.text);
    }
    assert!(!refusal.text.contains("panicked"), "{}", refusal.text);
}

#[test]
fn a_port_that_is_taken_is_refused_by_name_and_the_directory_stays_unformatted() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for cores in [1, 2] {
        refused(&place.data(), &Setup::cores(cores).with(&["--listen", &address]), 1, &[&address]);
    }
    drop(taken);
    drop(Node::start(&place.data(), &Setup::cores(1).with(&["--listen", &address])));
}

#[test]
fn a_second_node_on_the_same_port_is_refused() {
    let (place, other) = (Place::new(), Place::new());
    let node = Node::start(&place.data(), &Setup::cores(1));
    refused(&other.data(), &Setup::cores(1).with(&["--listen", &node.address]), 1, &[&node.address]);
}

#[test]
fn a_directory_that_a_running_node_holds_is_refused() {
    let place = Place::new();
    let mut node = Node::start(&place.data(), &Setup::cores(1));
    refused(&place.data(), &Setup::cores(1), 1, &["is in use by a running node"]);
    assert!(node.is_alive());
}

#[test]
fn a_directory_with_somebody_elses_files_is_refused_and_left_alone() {
    let place = Place::new();
    fs::create_dir(place.data()).unwrap();
    fs::write(place.data().join("thesis.tex"), "x").unwrap();
    refused(&place.data(), &Setup::cores(1), 1, &["thesis.tex", "choose an empty directory"]);
    assert_eq!(fs::read_to_string(place.data().join("thesis.tex")).unwrap(), "x");
}

#[test]
fn tmpfs_is_refused_because_it_keeps_nothing() {
    let Ok(scratch) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: /dev/shm cannot be written");
        return;
    };
    refused(&scratch.path().join("data"), &Setup::cores(1), 1, &["O_DIRECT", "tmpfs"]);
}

#[test]
fn a_directory_that_cannot_be_made_is_refused() {
    refused(Path::new("/proc/nowhere/data"), &Setup::cores(1), 1, &["/proc/nowhere/data"]);
}

#[test]
fn an_address_that_strangers_reach_needs_a_users_file() {
    let place = Place::new();
    let open = Setup::cores(1).with(&["--listen", "0.0.0.0:0"]);
    refused(&place.data(), &open, 2, &["0.0.0.0:0", "ringctl user add"]);
    assert!(!place.data().exists(), "nothing is made before the configuration is checked");
}

#[test]
fn wrong_values_are_misuse_and_say_which() {
    let place = Place::new();
    for (flags, word) in [
        (&["--memory", "1MiB"][..], "memory"),
        (&["--wal-segment-bytes", "5000"], "wal_segment_bytes"),
        (&["--bucket", "no such name"], "bucket"),
        (&["--shards", "0"], "shards"),
        (&["--users", "/does/not/exist"], "users"),
    ] {
        let refusal = Node::try_start(&place.data(), &Setup::cores(1).with(flags)).map(Node::kill);
        let refusal = refusal.expect_err(word);
        assert!(matches!(refusal.code, Some(1 | 2)), "{refusal:?}");
        assert!(refusal.text.contains(word), "{}", refusal.text);
    }
    let vbuckets = Setup { vbuckets: 100, ..Setup::cores(1) };
    refused(&place.data(), &vbuckets, 2, &["vbuckets", "power of two"]);
}

#[test]
fn a_directory_keeps_the_number_of_vbuckets_it_was_formatted_with() {
    let place = Place::new();
    assert!(Node::start(&place.data(), &Setup::cores(1)).stop().success());
    let other = Setup { vbuckets: 32, ..Setup::cores(1) };
    refused(&place.data(), &other, 1, &["formatted with 16 vbuckets"]);
    drop(Node::start(&place.data(), &Setup::cores(1)));
}

/// A directory with one document, of a node that was stopped cleanly.
fn stopped_node() -> Place {
    let place = Place::new();
    let node = Node::start(&place.data(), &Setup::cores(1));
    assert_eq!(node.raw().ask(set(b"k", b"v", 16)).status, Status::SUCCESS);
    assert!(node.stop().success());
    place
}

fn slot_offset(slot: usize) -> u64 {
    SUPERBLOCK_SLOTS[slot] * BLOCK_BYTES as u64
}

#[test]
fn one_damaged_superblock_slot_is_repaired_with_a_warning() {
    for slot in [0, 1] {
        let place = stopped_node();
        let data = place.data().join("shard-000/data");
        patch(&data, slot_offset(slot) + 100, b"damage");
        let node = Node::start(&place.data(), &Setup::cores(1));
        assert_eq!(node.raw().ask(get(b"k", 16)).value, b"v");
        assert!(node.log().contains("superblock"), "{}", node.log());
        assert!(node.stop().success());
        let bytes = fs::read(&data).unwrap();
        let start = usize::try_from(slot_offset(slot)).unwrap();
        assert_ne!(&bytes[start + 100..start + 106], b"damage", "slot {slot} was repaired");
    }
}

#[test]
fn two_damaged_superblock_slots_are_refused_and_nothing_is_overwritten() {
    let place = stopped_node();
    let data = place.data().join("shard-000/data");
    patch(&data, slot_offset(0) + 100, b"damage");
    patch(&data, slot_offset(1) + 200, b"damage");
    let before = fs::read(&data).unwrap();
    refused(&place.data(), &Setup::cores(1), 1, &["superblock", "shard-000"]);
    assert!(fs::read(&data).unwrap() == before, "a refused node must not write");
}

#[test]
fn another_format_version_is_refused_by_its_number() {
    let place = stopped_node();
    let data = place.data().join("shard-000/data");
    let bytes = fs::read(&data).unwrap();
    for slot in [0, 1] {
        let start = usize::try_from(slot_offset(slot)).unwrap();
        let mut block = bytes[start..start + BLOCK_BYTES].to_vec();
        block[12..16].copy_from_slice(&77_u32.to_le_bytes());
        let crc = crc32c(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        patch(&data, slot_offset(slot), &block);
    }
    refused(&place.data(), &Setup::cores(1), 1, &["format version 77", "version 1"]);
}

#[test]
fn a_missing_shard_or_file_is_refused_by_name() {
    let place = Place::new();
    let setup = Setup::cores(1).with(&["--shards", "2"]);
    assert!(Node::start(&place.data(), &setup).stop().success());
    fs::rename(place.data().join("shard-001/wal"), place.path().join("wal")).unwrap();
    refused(&place.data(), &setup, 1, &["shard-001"]);
    fs::rename(place.path().join("wal"), place.data().join("shard-001/wal")).unwrap();
    fs::rename(place.data().join("shard-000"), place.path().join("shard-000")).unwrap();
    refused(&place.data(), &Setup::cores(1), 1, &["shard-000"]);
    fs::rename(place.path().join("shard-000"), place.data().join("shard-000")).unwrap();
    drop(Node::start(&place.data(), &setup));
}
