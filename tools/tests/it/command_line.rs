//! Exit codes, help, and what is said when there is no node.

use super::{ringctl, ringctl_with_input, unused_address};

const COMMANDS: &[&str] = &[
    "ping",
    "get",
    "set",
    "delete",
    "touch",
    "incr",
    "stats",
    "timings",
    "trace",
    "why",
    "top",
    "bucket",
    "vbucket",
    "user",
    "load",
    "range-scan",
    "dcp-drain",
];

#[test]
fn help_succeeds_on_standard_output_and_shows_examples_for_every_command() {
    let general = ringctl(&["--help"]);
    assert_eq!((general.code, general.err.as_str()), (0, ""));
    for command in COMMANDS {
        assert!(general.out.contains(&format!("  {command} ")), "{command} is listed");
        let help = ringctl(&[command, "--help"]);
        assert_eq!(help.code, 0, "{command}");
        assert!(help.out.contains("--host"), "{command} takes the general flags");
    }
    for command in [
        "get",
        "set",
        "incr",
        "stats",
        "timings",
        "trace",
        "why",
        "top",
        "bucket",
        "vbucket",
        "user",
        "load",
        "range-scan",
        "dcp-drain",
    ] {
        let help = ringctl(&[command, "--help"]).out;
        assert!(help.contains("Example") && help.contains(&format!("ringctl {command} ")), "{command}");
    }
}

#[test]
fn a_wrong_command_line_exits_with_2_and_says_so_on_standard_error() {
    for words in [
        &["frobnicate"][..],
        &["get"],
        &["get", "k", "--no-such-flag"],
        &["load", "/tmp"],
        &["load", "generate:5,1"],
        &["range-scan", "--start", "a", "--excl-start", "b"],
        &["range-scan", "--snapshot-uuid", "1", "--snapshot-seqno", "2"],
        &["dcp-drain", "--seconds", "2"],
        &["dcp-drain", "--ack-ratio", "1.5"],
        &["ping", "--user", "anna"],
        &["ping", "--password", "secret"],
        &["get", ""],
        &["set", &"k".repeat(251), "v"],
        &["user", "add", "--users", "/nonexistent/users.json", "anna"],
    ] {
        let outcome = ringctl(words);
        assert_eq!(outcome.code, 2, "{words:?}: {}", outcome.err);
        assert!(outcome.err.contains("error: ") && outcome.err.contains("--help"), "{}", outcome.err);
        assert_eq!(outcome.out, "", "{words:?}");
    }
    let outcome = ringctl_with_input(&["ping", "--user", "anna", "--password-stdin"], "\n");
    assert_eq!(outcome.code, 2, "{}", outcome.err);
}

#[test]
fn without_a_node_every_command_exits_with_1_and_one_sentence_that_helps() {
    let address = unused_address();
    for words in [
        &["ping"][..],
        &["get", "k"],
        &["set", "k", "v"],
        &["delete", "k"],
        &["touch", "k", "1"],
        &["incr", "k"],
        &["stats"],
        &["timings"],
        &["bucket", "list"],
        &["bucket", "create", "b"],
        &["vbucket", "get", "1"],
        &["load", "generate:10,10,10,1"],
        &["range-scan", "--key-only"],
        &["dcp-drain"],
    ] {
        let outcome = ringctl(&[words, &["--host", &address]].concat());
        assert_eq!(outcome.code, 1, "{words:?}");
        let sentence = format!("error: cannot connect to {address}: Connection refused");
        assert!(outcome.err.starts_with(&sentence), "{}", outcome.err);
        assert!(
            outcome.err.trim_end().ends_with("is a node running? try `ringbase serve`"),
            "{}",
            outcome.err
        );
        assert_eq!((outcome.err.lines().count(), outcome.out.as_str()), (1, ""));
    }
}

#[test]
fn waiting_for_a_node_ends() {
    let started = std::time::Instant::now();
    let outcome = ringctl(&["ping", "--wait", "0.3", "--host", &unused_address()]);
    assert_eq!(outcome.code, 1, "{}", outcome.err);
    assert!((300..3000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[test]
fn a_source_that_cannot_be_read_is_named() {
    for (source, says) in [
        ("dir:/no/such/place", "cannot read /no/such/place"),
        ("lines:/no/such/file", "cannot read /no/such/file"),
        ("jsonl:/#id", "cannot read /"),
    ] {
        let outcome = ringctl(&["load", source]);
        assert_eq!(outcome.code, 1, "{source}");
        assert!(outcome.err.contains(says), "{}", outcome.err);
    }
}
