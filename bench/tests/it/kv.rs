//! `ringbench kv` without the peer: a node, the echo, and the client that checks every answer.

use std::path::Path;

use serde_json::Value;

use super::{Outcome, node, ringbench, scratch};

fn kv(scratch: &Path, words: &[&str]) -> Outcome {
    let node = node();
    let (directory, out) = (scratch.join("scratch"), scratch.join("out"));
    let mut all = vec!["kv", "--quick", "--skip-memcached", "--json", "--cores", "1", "--rounds", "2"];
    all.extend(["--seconds", "0.05", "--documents", "2000", "--memory", "512MiB"]);
    all.extend(["--ringbase", node.to_str().unwrap(), "--dir", directory.to_str().unwrap()]);
    all.extend(["--out", out.to_str().unwrap()]);
    all.extend(words);
    ringbench(&all)
}

#[test]
fn a_node_answers_every_operation_of_every_cell_and_the_results_are_written() {
    let scratch = scratch();
    let words = ["--connections", "1,5", "--depths", "1,16", "--mixes", "get,set,mixed,noop"];
    let outcome = kv(scratch.path(), &words);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    let results: Value = serde_json::from_str(&outcome.out).unwrap();
    let runs = results["runs"].as_array().unwrap();
    // 2 × 2 × 3 cells of one server, 2 × 2 of two, 2 rounds.
    assert_eq!(runs.len(), (12 + 4 * 2) * 2);
    for run in runs {
        let number = |name: &str| run[name].as_u64().unwrap();
        assert!(number("operations") > 0 && number("p50_ns") > 0, "{run}");
        assert!(number("p50_ns") <= number("p999_ns") && number("p999_ns") <= number("max_ns"), "{run}");
        match run["cell"]["mix"].as_str().unwrap() {
            "get" => assert_eq!(number("gets"), number("operations"), "{run}"),
            "set" | "noop" => assert_eq!(number("gets"), 0, "{run}"),
            "mixed" => assert!(number("gets") <= number("operations"), "{run}"),
            mix => panic!("{mix} was not asked for"),
        }
    }
    assert_eq!(results["beside_echo"].as_array().unwrap().len(), 4);
    assert_eq!(results["beside_memcached"].as_array().unwrap().len(), 0);
    for name in ["raw.csv", "memory.csv", "summary.md", "throughput-1cores.svg", "server-cpu-1cores.svg"] {
        assert!(scratch.path().join("out").join(name).is_file(), "{name} is missing");
    }
    assert!(!scratch.path().join("scratch/kv").exists(), "the scratch directory is left behind");
}

#[test]
fn a_bucket_on_disk_is_measured_in_the_same_way() {
    let scratch = scratch();
    let words = ["--bucket-type", "persistent", "--connections", "2", "--depths", "16", "--mixes", "mixed"];
    let outcome = kv(scratch.path(), &words);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    let results: Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(results["bucket_type"], "persistent");
    assert_eq!(results["runs"].as_array().unwrap().len(), 2);
}

#[test]
fn without_a_peer_the_error_names_the_package() {
    let outcome = ringbench(&["kv", "--memcached", "/nowhere/memcached"]);
    assert_eq!(outcome.code, 2);
    assert!(outcome.err.contains("Debian package `memcached`"), "{}", outcome.err);
}
