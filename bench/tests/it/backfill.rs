//! `ringbench backfill` with few documents: a node, its streams from memory, disk and cache, and the ceilings beside them.

use serde_json::Value;

use super::{node, ringbench, scratch};

#[test]
fn streams_from_memory_disk_and_cache_bring_everything_and_stand_beside_their_ceilings() {
    let (scratch, node) = (scratch(), node());
    let (directory, out) = (scratch.path().join("scratch"), scratch.path().join("out"));
    let mut words =
        vec!["backfill", "--quick", "--json", "--megabytes", "2", "--rounds", "1", "--parked", "8"];
    words.extend([
        "--values",
        "100,1024",
        "--vbuckets",
        "4",
        "--connections",
        "1,2",
        "--windows",
        "64KiB,none",
    ]);
    words.extend(["--cores", "1", "--memory", "512MiB", "--ringbase", node.to_str().unwrap()]);
    words.extend(["--dir", directory.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let outcome = ringbench(&words);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    let results: Value = serde_json::from_str(&outcome.out).unwrap();
    let summary = results["summary"].as_array().unwrap();
    let of = |kind: &str| summary.iter().filter(|row| row["kind"] == kind).count();
    // Two sizes; of connections and windows, those in which not both are unusual.
    assert_eq!([of("resident"), of("cold"), of("warm")], [2 * 3; 3]);
    assert_eq!([of("plain_writer"), of("loopback"), of("device")], [2 * 2, 2 * 2, 2]);
    for row in summary {
        let number = |name: &str| row[name].as_f64().unwrap();
        assert!(number("megabytes_per_second") > 0.0 && number("lowest") <= number("highest"), "{row}");
        let is_drain = ["resident", "cold", "warm"].contains(&row["kind"].as_str().unwrap());
        assert_eq!(row["share_of_ceiling"].is_null(), !is_drain, "{row}");
        let spent: f64 =
            row["spent"].as_object().unwrap().values().map(|share| share.as_f64().unwrap()).sum();
        assert!(!is_drain || (spent - 1.0).abs() < 1e-6, "{row}");
    }
    assert_eq!(
        (results["parked"].as_array().unwrap().len(), results["beside"].as_array().unwrap().len()),
        (2, 2)
    );
    for name in ["raw.csv", "summary.md", "throughput.svg", "resident-running-us.hgrm", "cold-device-us.hgrm"]
    {
        assert!(out.join(name).is_file(), "{name} is missing");
    }
    assert!(!directory.join("backfill").exists(), "the scratch directory is left behind");
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_starts() {
    for (words, part) in [
        (["--values", "0"], "--values 0"),
        (["--vbuckets", "1025"], "--vbuckets 1025"),
        (["--connections", "0"], "--connections 0"),
        (["--windows", "12"], "12 is no window"),
    ] {
        let outcome = ringbench(&["backfill", words[0], words[1]]);
        assert_eq!(outcome.code, 2, "{words:?}");
        assert!(outcome.err.contains(part), "{words:?}: {}", outcome.err);
    }
}
