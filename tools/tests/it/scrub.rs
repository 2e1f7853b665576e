//! `ringctl scrub` against a node whose data file is damaged while it runs.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use super::{node_and_directory, ringctl};

/// G6: what is damaged is named, with its vbucket, and the exit code says so; the node goes on.
#[test]
fn damage_under_a_running_node_is_found_and_named() {
    let (address, directory) = node_and_directory();
    let run = |words: &[&str]| ringctl(&[words, &["--host", &address]].concat());
    assert_eq!(run(&["load", "generate:20000,20,500,7"]).code, 0);
    let whole = run(&["scrub", "--rate", "0"]);
    assert_eq!((whole.code, whole.err.as_str()), (0, ""), "{}", whole.out);
    assert!(whole.out.starts_with("SHARD  STATE") && whole.out.contains("idle"), "{}", whole.out);

    let data = File::options().write(true).open(directory.join("shard-000/data")).unwrap();
    // Blocks in the middle of what was flushed.
    for block in 1024..1032 {
        data.write_all_at(&[0xa5; 4096], block * 4096).unwrap();
    }
    let damaged = run(&["scrub"]);
    assert_eq!(damaged.code, 1, "{} {}", damaged.out, damaged.err);
    assert!(damaged.out.contains(" of vbucket ") && damaged.out.contains("block 10"), "{}", damaged.out);
    assert!(damaged.err.contains("places are damaged"), "{}", damaged.err);
    let status: Value = serde_json::from_str(&run(&["scrub", "status", "--json"]).out).unwrap();
    let shard = &status[0];
    assert_eq!((shard["passes"].as_u64(), shard["running"].as_bool()), (Some(2), Some(false)));
    let places = shard["damage"].as_array().unwrap();
    assert!(!places.is_empty() && places.len() as u64 == shard["damaged"].as_u64().unwrap());
    assert!(places.iter().all(|place| place["vb"].is_u64() && place["offset"].is_u64()), "{status}");

    assert_eq!(run(&["set", "key", "value"]).code, 0);
    assert_eq!(run(&["scrub", "start"]).out, "scrub started\n");
    assert_eq!(run(&["scrub", "stop"]).out, "scrub stopped\n");
}
