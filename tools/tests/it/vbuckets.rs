//! `ringctl vbucket` against a node that runs in this process.

use super::{Outcome, node, ringctl};

#[test]
fn vbuckets_are_listed_shown_changed_and_deleted() {
    let address = node();
    let run = |words: &[&str]| -> Outcome { ringctl(&[words, &["--host", &address]].concat()) };
    let is = |words: &[&str], expected: &str| {
        let outcome = run(words);
        assert_eq!((outcome.code, outcome.out.as_str()), (0, expected), "{words:?}: {}", outcome.err);
    };
    is(&["vbucket", "get", "1"], "active\n");
    is(&["vbucket", "set", "1", "replica"], "vbucket 1 is replica\n");
    is(&["vbucket", "get", "1", "--json"], "{\"state\":\"replica\",\"vbucket\":1}\n");
    is(&["vbucket", "set", "2", "active", "--topology", "[[\"here\",null]]"], "vbucket 2 is active\n");
    is(&["vbucket", "delete", "3", "--json"], "{\"result\":\"deleted\",\"vbucket\":3}\n");
    let list = run(&["vbucket", "list"]).out;
    assert!(list.starts_with("0 active\n1 replica\n2 active\n4 active\n"), "{list}");
    let json: serde_json::Value = serde_json::from_str(&run(&["vbucket", "list", "--json"]).out).unwrap();
    assert_eq!((json["1"].as_str(), json["3"].as_str()), (Some("replica"), None));
    is(&["vbucket", "set", "3", "pending"], "vbucket 3 is pending\n");

    for (words, code) in [
        (&["vbucket", "get", "60000"][..], 1),
        (&["vbucket", "delete", "60000"], 1),
        (&["vbucket", "set", "1", "replica", "--topology", "[[\"here\"]]"], 1),
        (&["vbucket", "set", "1", "active", "--topology", "[[]]"], 1),
        (&["vbucket", "set", "1", "gone"], 2),
        (&["vbucket", "get", "x"], 2),
    ] {
        assert_eq!(run(words).code, code, "{words:?}");
    }
}
