//! What keeps a node from starting is a sentence and an exit code, never a panic.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Node, scratch};

#[test]
fn a_taken_directory_and_a_taken_port_are_refused_by_name() {
    let scratch = scratch();
    let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
    let node = Node::start(&first, &["--cores", "1", "--vbuckets", "16"]);
    let (code, text) = Node::refused(&first, &[]);
    assert!(code == 1 && text.contains("in use by a running node"), "{code}: {text}");
    let (code, text) = Node::refused(&second, &["--mgmt-listen", &node.address]);
    assert!(code == 1 && text.contains(&node.address), "{code}: {text}");
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_wrong_command_line_exits_with_2_and_says_what_to_do() {
    let scratch = scratch();
    let data = scratch.path().join("data");
    for (flags, part) in [
        (&["--listen", "0.0.0.0:0"][..], "ringctl user add"),
        (&["--vbuckets", "100"], "power of two"),
        (&["--cores", "0"], "at least 1"),
        (&["--cores", "60000"], "CPUs"),
        (&["--memory", "1k"], "64MiB"),
        (&["--config", "/nowhere/ringbase.toml"], "configuration file"),
        (&["--log", "ringbase=loudly"], "loudly"),
    ] {
        let (code, text) = Node::refused(&data, flags);
        assert!((1..=2).contains(&code) && text.contains(part), "{flags:?}: {code}: {text}");
    }
}

#[test]
fn a_directory_that_cannot_do_direct_io_or_belongs_to_somebody_else_is_refused() {
    let foreign = scratch();
    std::fs::write(foreign.path().join("thesis.tex"), "x").unwrap();
    let (code, text) = Node::refused(foreign.path(), &[]);
    assert!(code == 1 && text.contains("thesis.tex"), "{code}: {text}");
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        eprintln!("skipped: there is no /dev/shm here");
        return;
    }
    let scratch = tempfile::tempdir_in(memory).unwrap();
    let (code, text) = Node::refused(&scratch.path().join("data"), &[]);
    assert!(code == 1 && text.contains("direct I/O"), "{code}: {text}");
}

fn patch(data: &Path, offset: u64, change: impl Fn(&mut [u8])) {
    let file = OpenOptions::new().read(true).write(true).open(data.join("shard-000/data")).unwrap();
    let mut block = vec![0; 4096];
    file.read_exact_at(&mut block, offset).unwrap();
    change(&mut block);
    file.write_all_at(&block, offset).unwrap();
}

/// One damaged superblock slot is repaired from the other; two, or an unknown format version, are refused by name.
#[test]
fn a_damaged_superblock_is_repaired_from_the_other_slot_or_refused() {
    let scratch = scratch();
    let start = || Node::start(scratch.path(), &["--cores", "1", "--vbuckets", "16"]);
    assert_eq!(start().stop(), 0);
    let flip = |block: &mut [u8]| block[100] ^= 1;
    patch(scratch.path(), 0, flip);
    assert_eq!(start().stop(), 0, "repaired from the second slot");
    patch(scratch.path(), 16 * 4096, flip);
    assert_eq!(start().stop(), 0, "and the first was repaired");
    for slot in [0, 16 * 4096] {
        patch(scratch.path(), slot, flip);
    }
    let (code, text) = Node::refused(scratch.path(), &[]);
    assert!(code == 1 && text.contains("superblock"), "{code}: {text}");
    for slot in [0, 16 * 4096] {
        patch(scratch.path(), slot, |block| {
            flip(block);
            block[12] = 9;
            let crc = ringbase_storage::format::crc32c(&block[12..]);
            block[8..12].copy_from_slice(&crc.to_le_bytes());
        });
    }
    let (code, text) = Node::refused(scratch.path(), &[]);
    assert!(code == 1 && text.contains("format version 9"), "{code}: {text}");
}

#[test]
fn a_directory_keeps_its_vbuckets_and_shards() {
    let scratch = scratch();
    assert_eq!(Node::start(scratch.path(), &["--cores", "1", "--vbuckets", "16"]).stop(), 0);
    let (code, text) = Node::refused(scratch.path(), &["--vbuckets", "32"]);
    assert!(code == 1 && text.contains("formatted with 16 vbuckets"), "{code}: {text}");
    let (code, text) = Node::refused(scratch.path(), &["--shards", "4"]);
    assert!(code == 1 && text.contains("formatted with 1 shards"), "{code}: {text}");
}
