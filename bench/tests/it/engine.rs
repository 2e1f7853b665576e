//! `ringbench engine` on few documents.

use serde_json::Value;

use super::{ringbench, scratch};

/// Engines that are built into this ringbench.
fn engines() -> Vec<&'static str> {
    let mut engines = vec!["ringbase"];
    if cfg!(feature = "peer-rocksdb") {
        engines.push("rocksdb");
    }
    if cfg!(feature = "peers") {
        engines.extend(["lmdb", "fjall", "redb"]);
    }
    engines
}

/// Each phase fails if it does not bring exactly what was written, so a run that ends well has read all of it.
#[test]
fn every_engine_that_is_built_in_writes_scans_reads_and_overwrites_the_same_documents() {
    let scratch = scratch();
    let (directory, out) = (scratch.path().join("scratch"), scratch.path().join("out"));
    let mut words = vec!["engine", "--quick", "--json", "--documents", "2000", "--value-bytes", "300"];
    words.extend(["--batch", "128", "--overwrite-share", "0.5", "--range-share", "0.2", "--reads", "400"]);
    words.extend(["--layouts", "bodies-by-seqno,bodies-by-key"]);
    words.extend(["--dir", directory.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let outcome = ringbench(&words);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    let results: Value = serde_json::from_str(&outcome.out).unwrap();
    let rows = results["rows"].as_array().unwrap();
    let of = |engine: &str, layout: &str, phase: &str| -> &Value {
        let is_it =
            |row: &&Value| row["engine"] == engine && row["layout"] == layout && row["phase"] == phase;
        rows.iter().find(is_it).unwrap_or_else(|| panic!("no row of {engine}, {layout}, {phase}"))
    };
    for engine in engines() {
        let layouts: &[&str] =
            if engine == "ringbase" { &["bodies_by_seqno"] } else { &["bodies_by_seqno", "bodies_by_key"] };
        for layout in layouts {
            let by_seqno = if *layout == "bodies_by_key" { 400 } else { 2000 };
            let expected = [
                ("load", 2000),
                ("load_settled", 2000),
                ("keys_cold", 2000),
                ("keys_warm", 2000),
                ("seqnos_cold", by_seqno),
                ("documents_cold", 400),
                ("reads1", 50),
                ("reads8", 400),
                ("reads32", 400),
                ("churn", 1000),
                ("churn_settled", 1000),
                ("seqnos_churned", 2000),
            ];
            for (phase, records) in expected {
                let row = of(engine, layout, phase);
                assert_eq!(row["records"].as_u64(), Some(records), "{engine}, {layout}: {row}");
            }
            let settled = of(engine, layout, "load_settled");
            assert!(settled["disk_bytes"].as_u64().unwrap() >= 2000 * 320, "{settled}");
            assert_eq!(of(engine, layout, "reads8")["latency"]["count"].as_u64(), Some(400));
        }
    }
    assert_eq!(rows.len(), 12 * (2 * engines().len() - 1), "one layout of ringbase, two of each peer");
    for name in ["raw.csv", "summary.md", "scans.svg", "reads.svg", "ringbase-reads-depth-8-us.hgrm"] {
        assert!(out.join(name).is_file(), "{name} is missing");
    }
    assert!(!directory.join("engine").exists(), "the scratch directory is left behind");
}

#[test]
fn an_engine_that_was_not_built_in_is_misuse_that_names_the_feature() {
    if cfg!(all(feature = "peers", feature = "peer-rocksdb")) {
        return;
    }
    let (engine, feature) =
        if cfg!(feature = "peers") { ("rocksdb", "peer-rocksdb") } else { ("lmdb", "peers") };
    let scratch = scratch();
    let outcome =
        ringbench(&["engine", "--quick", "--engines", engine, "--dir", scratch.path().to_str().unwrap()]);
    assert_eq!(outcome.code, 2, "{}", outcome.err);
    assert!(outcome.err.contains(&format!("--features {feature}")), "{}", outcome.err);
}
