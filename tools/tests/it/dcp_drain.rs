//! `ringctl dcp-drain` against a node that runs in this process.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringbase::client::Generator;
use serde_json::Value;

use super::{Outcome, node, ringctl};

const SOURCE: &str = "generate:2000,20,100,7";
const DOCUMENTS: u64 = 2000;

struct Rig {
    address: String,
}

impl Rig {
    /// A node with the documents of [`SOURCE`].
    fn loaded() -> Rig {
        let rig = Rig { address: node() };
        assert_eq!(rig.run(&["load", SOURCE]).code, 0);
        rig
    }

    fn run(&self, words: &[&str]) -> Outcome {
        ringctl(&[words, &["--host", &self.address]].concat())
    }

    fn drain(&self, words: &[&str]) -> Outcome {
        self.run(&[&["dcp-drain"], words].concat())
    }

    /// The report of a drain with this exit code.
    fn report(&self, code: i32, words: &[&str]) -> Value {
        let outcome = self.drain(&[words, &["--json"]].concat());
        assert_eq!(outcome.code, code, "{words:?}: {} {}", outcome.err, outcome.out);
        serde_json::from_str(&outcome.out).unwrap()
    }
}

fn key(index: u64) -> String {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    Generator::new(DOCUMENTS, 20, 100, 7).unwrap().document(index, &mut key, &mut value);
    String::from_utf8(key).unwrap()
}

#[test]
fn a_loaded_bucket_is_drained_and_verified_over_one_connection_and_three() {
    let rig = Rig::loaded();
    for connections in ["1", "3"] {
        let report = rig.report(0, &["--connections", connections, "--verify", SOURCE]);
        let total = &report["total"];
        let number = |name: &str| total[name].as_u64().unwrap();
        assert_eq!((number("streams"), number("mutations"), number("deletions")), (16, DOCUMENTS, 0));
        assert_eq!((number("key_bytes"), number("value_bytes")), (DOCUMENTS * 20, DOCUMENTS * 100));
        let overhead = 55 * DOCUMENTS + 44 * number("snapshots") + 28 * 16;
        assert_eq!(number("overhead_bytes"), overhead, "as the protocol has it: {total}");
        assert_eq!(number("message_bytes"), overhead + DOCUMENTS * 120);
        assert_eq!(number("snapshots_with_keys_not_compared"), 0);
        assert_eq!(report["stream_ends"], serde_json::json!({ "Ok": 16 }));
        assert_eq!((report["violation_count"].as_u64(), report["open_streams"].as_u64()), (Some(0), Some(0)));
        assert_eq!(report["verified"]["documents"].as_u64(), Some(DOCUMENTS));
        let each = report["connections"].as_array().unwrap();
        assert_eq!(each.len().to_string(), connections);
        let items: u64 = each.iter().map(|one| one["items"].as_u64().unwrap()).sum();
        assert_eq!(items, DOCUMENTS);
        assert!(each.iter().all(|one| one["items"].as_u64() > Some(0)));
    }
    let text = rig.drain(&["--verify", SOURCE]);
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    assert!(
        text.out.starts_with("CONNECTION  STREAMS  ITEMS") && text.out.contains("\ntotal "),
        "{}",
        text.out
    );
    assert!(text.out.contains("40.0 kB of keys, 200.0 kB of values\nstream ends: 16 Ok\n"), "{}", text.out);
    assert!(text.out.ends_with("verified with a source of 2000 documents, 0 missing\n"), "{}", text.out);
}

#[test]
fn a_wrong_a_strange_and_a_missing_document_are_found() {
    let rig = Rig::loaded();
    let (wrong, deleted) = (key(3), key(5));
    assert_eq!(rig.run(&["set", &wrong, "wrong"]).code, 0);
    assert_eq!(rig.run(&["set", "strange", "value"]).code, 0);
    assert_eq!(rig.run(&["delete", &deleted]).code, 0);
    let report = rig.report(1, &["--verify", SOURCE]);
    assert_eq!(report["violation_count"].as_u64(), Some(2), "{report}");
    let text = report["violations"].to_string();
    assert!(
        text.contains(&wrong) && text.contains("another value of 5 bytes") && text.contains("strange"),
        "{text}"
    );
    assert_eq!(report["verified"]["missing_count"].as_u64(), Some(1));
    assert_eq!(report["verified"]["missing"][0], format!("\"{deleted}\""));

    let shown = rig.drain(&["--verify", SOURCE]);
    assert_eq!(shown.code, 1);
    assert_eq!(
        shown.err.lines().filter(|line| line.starts_with("violation: vbucket ")).count(),
        2,
        "{}",
        shown.err
    );
    let says = "error: what came is not right: 2 violations, 1 documents are missing";
    assert!(shown.err.ends_with(&format!("{says}\n")), "{}", shown.err);

    // Without a source nothing is wrong, and deletions are counted.
    let report = rig.report(0, &[]);
    assert_eq!(report["total"]["deletions"].as_u64(), Some(1));
    assert_eq!(report["total"]["mutations"].as_u64(), Some(DOCUMENTS));
    assert!(report["verified"].is_null());
}

#[test]
fn documents_above_the_window_still_come() {
    let rig = Rig { address: node() };
    let source = "generate:6,10,60000,1";
    assert_eq!(rig.run(&["load", source]).code, 0);
    for (size, ratio) in [("1000", "1"), ("1000", "0.01"), ("64KiB", "0.5"), ("0", "0.5")] {
        let words = ["--buffer-size", size, "--ack-ratio", ratio, "--verify", source, "--timeout", "10"];
        let report = rig.report(0, &words);
        assert_eq!(report["total"]["mutations"].as_u64(), Some(6), "window {size}, share {ratio}");
    }
    let report = rig.report(0, &["--no-value"]);
    assert_eq!(
        (report["total"]["items"].as_u64(), report["total"]["value_bytes"].as_u64()),
        (Some(6), Some(0))
    );
}

#[test]
fn refusals_name_the_vbucket_and_say_what_to_do() {
    let rig = Rig::loaded();
    for (words, says) in [
        (&["--vbucket", "99"][..], "the stream of vbucket 99 was refused with NOT_MY_VBUCKET"),
        (&["--vbucket", "99", "--from", "1"], "the stream of vbucket 99 was refused with NOT_MY_VBUCKET"),
        (
            &["--vbucket", "3", "--from", "1000000"],
            "vbucket 3 has no seqno 1000000 in its history; begin with --from ",
        ),
        (&["--collection", "8"], "refused with UNKNOWN_COLLECTION"),
        (&["--verify", "lines:/no/such/file"], "cannot read /no/such/file"),
        (&["--bucket", "none"], "no bucket \"none\""),
    ] {
        let refused = rig.drain(words);
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{words:?}: {}", refused.err);
        assert!(
            refused.err.starts_with("error: ") && refused.err.contains(says),
            "{words:?}: {}",
            refused.err
        );
    }
}

#[test]
fn parts_are_drained_by_vbucket_seqno_collection_and_stream_id() {
    let rig = Rig::loaded();
    let items = |words: &[&str]| rig.report(0, words)["total"]["items"].as_u64().unwrap();
    let (some, others) = (items(&["--vbucket", "3,8-15"]), items(&["--vbucket", "0-2,4-7"]));
    assert!(some > 0 && others > 0 && some + others == DOCUMENTS);
    let report = rig.report(0, &["--vbucket", "3,8-15", "--verify", SOURCE, "--connections", "20"]);
    assert_eq!(report["verified"]["documents"].as_u64(), Some(some));
    assert_eq!(report["connections"].as_array().unwrap().len(), 9, "no connection without a vbucket");
    let one = items(&["--vbucket", "3"]);
    assert_eq!(items(&["--vbucket", "3", "--from", "10"]), one - 10);
    assert_eq!(items(&["--collection", "0"]), DOCUMENTS);
    assert_eq!(items(&["--stream-id", "7", "--verify", SOURCE]), DOCUMENTS);
}

/// DCP §8: by key only if the client allows it; either way everything comes once.
#[test]
fn the_past_of_a_collection_comes_in_key_order_if_that_is_allowed() {
    let rig = Rig::loaded();
    let words = ["bucket", "set", "default", "dcp_oso_backfill=enabled"];
    let set = rig.run(&words);
    assert_eq!(set.code, 0, "{}", set.err);
    let count = |words: &[&str]| {
        let total = rig.report(0, &[&["--collection", "0", "--disk-only"], words].concat())["total"].clone();
        ["mutations", "snapshots", "oso_snapshots"].map(|name| total[name].as_u64().unwrap())
    };
    assert_eq!(count(&["--oso"]), [DOCUMENTS, 16, 16]);
    assert_eq!(count(&[]), [DOCUMENTS, 16, 0]);
    assert_eq!(count(&["--oso", "--connections", "3"]), [DOCUMENTS, 16, 16]);
}

#[test]
fn following_streams_bring_what_is_written_and_stuck_ones_bring_nothing() {
    let rig = Rig::loaded();
    let report = std::thread::scope(|scope| {
        let following = scope.spawn(|| rig.report(0, &["--follow", "--seconds", "3"]));
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(rig.run(&["set", "late", "value"]).code, 0);
        following.join().unwrap()
    });
    assert_eq!(report["total"]["mutations"].as_u64(), Some(DOCUMENTS + 1));
    assert_eq!(report["open_streams"].as_u64(), Some(16));
    let stuck = rig.report(0, &["--hang", "--seconds", "0.5"]);
    assert_eq!((stuck["total"]["items"].as_u64(), stuck["open_streams"].as_u64()), (Some(0), Some(16)));
    assert!(stuck["total"]["seconds"].as_f64() >= Some(0.5));
}

#[test]
fn ctrl_c_ends_a_following_drain_with_its_report() {
    const SIGINT_BIT: u64 = 1 << 1;
    let rig = Rig::loaded();
    let child = Command::new(env!("CARGO_BIN_EXE_ringctl"))
        .args(["dcp-drain", "--follow", "--json", "--host", &rig.address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let listens = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & SIGINT_BIT != 0
    };
    let started = Instant::now();
    while !listens() {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["violation_count"].as_u64(), Some(0));
}

/// A name belongs to the newest connection: the older one is told that it was lost.
#[test]
fn a_lost_connection_is_an_error_that_says_why_it_may_be_lost() {
    let rig = Rig::loaded();
    let lost = std::thread::scope(|scope| {
        let older = scope.spawn(|| rig.drain(&["--follow", "--seconds", "60", "--name", "same"]));
        let started = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        while !older.is_finished() && started.elapsed() < Duration::from_secs(50) {
            rig.drain(&["--vbucket", "0", "--name", "same"]);
        }
        older.join().unwrap()
    });
    assert_eq!(lost.code, 1, "{}", lost.err);
    assert!(lost.err.contains("connection \"same-0\" was lost with 0 of 16 streams ended"), "{}", lost.err);
    assert!(lost.out.contains("16 still open"), "what came before is told: {}", lost.out);
}
