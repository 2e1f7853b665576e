//! `ringbench churn` on few documents.

use serde_json::Value;

use super::{node, ringbench, scratch};

#[test]
fn a_data_set_is_overwritten_and_a_held_scan_still_brings_all_of_it() {
    let scratch = scratch();
    let (node, directory, out) = (node(), scratch.path().join("scratch"), scratch.path().join("out"));
    let mut words = vec!["churn", "--quick", "--json", "--documents", "2000", "--value-bytes", "200"];
    words.extend([
        "--times",
        "2",
        "--cores",
        "1",
        "--vbuckets",
        "4",
        "--memory",
        "512MiB",
        "--keys",
        "zipfian",
    ]);
    words.extend(["--ringbase", node.to_str().unwrap(), "--dir", directory.to_str().unwrap()]);
    words.extend(["--out", out.to_str().unwrap()]);
    let outcome = ringbench(&words);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    let results: Value = serde_json::from_str(&outcome.out).unwrap();
    let cells = results["cells"].as_array().unwrap();
    assert_eq!(cells.iter().map(|cell| cell["held"].as_str().unwrap()).collect::<Vec<_>>(), ["no", "yes"]);
    for cell in cells {
        assert_eq!((cell["keys"].as_str(), cell["writes"].as_u64()), (Some("zipfian"), Some(4000)));
        assert_eq!(cell["latency"]["count"].as_u64(), Some(4000));
        assert!(cell["write_amplification"].as_f64().unwrap() >= 1.0, "the log alone is that: {cell}");
        let looks = cell["looks"].as_array().unwrap();
        let stored = |look: &Value| look["stored"].as_u64().unwrap();
        assert!(stored(&looks[0]) < 6000 && stored(looks.last().unwrap()) == 6000, "{cell}");
    }
    let files = [
        "raw.csv",
        "summary.md",
        "space.svg",
        "throughput.svg",
        "set-zipfian-us.hgrm",
        "set-zipfian-held-us.hgrm",
    ];
    for name in files {
        assert!(out.join(name).is_file(), "{name} is missing");
    }
    assert!(!directory.join("churn").exists(), "the scratch directory is left behind");
}
