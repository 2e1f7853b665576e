//! `ringctl bucket` against a node that runs in this process.

use super::{Outcome, node, ringctl};

#[test]
fn buckets_are_created_listed_changed_emptied_and_deleted() {
    let address = node();
    let run = |words: &[&str]| -> Outcome { ringctl(&[words, &["--host", &address]].concat()) };
    let created = run(&["bucket", "create", "b2", "--quota", "2MiB", "--max-ttl", "100"]);
    assert_eq!((created.code, created.out.as_str()), (0, "created bucket b2\n"), "{}", created.err);
    assert_eq!(run(&["set", "k", "v", "--bucket", "b2"]).code, 0);
    assert_eq!(run(&["get", "k"]).code, 1, "the other bucket has no such document");
    let list = run(&["bucket", "list"]).out;
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "TYPE", "QUOTA", "ITEMS", "MEMORY"]);
    assert_eq!((lines[1][0], lines[2][0], lines[2][1]), ("default", "b2", "persistent"), "{list}");

    assert_eq!(run(&["bucket", "set", "b2", "max_size=4194304", "exp_pager_stime=5"]).code, 0);
    let json: serde_json::Value = serde_json::from_str(&run(&["bucket", "list", "--json"]).out).unwrap();
    assert_eq!((json[1]["quota_bytes"].as_u64(), json[1]["items"].as_u64()), (Some(4 << 20), Some(1)));
    assert!(json[1]["memory_bytes"].as_u64() > Some(0));

    assert_eq!(run(&["bucket", "flush", "b2"]).out, "emptied bucket b2\n");
    assert_eq!(run(&["get", "k", "--bucket", "b2"]).code, 1);
    assert_eq!(
        run(&["bucket", "delete", "b2", "--json"]).out,
        "{\"bucket\":\"b2\",\"result\":\"deleted\"}\n"
    );

    for (words, says) in [
        (&["bucket", "create", "default"][..], "there is a bucket \"default\" already"),
        (&["bucket", "create", "a b"], "1 to 100 of the characters"),
        (&["bucket", "create", "e", "--quota", "1KiB"], "max_size must be 1048576 to"),
        (&["bucket", "create", "e", "--quota", "1TiB"], "that this node has for documents"),
        (&["bucket", "delete", "b2"], "there is no bucket \"b2\""),
        (&["bucket", "flush", "b2"], "there is no bucket \"b2\""),
        (&["bucket", "set", "b2", "max_ttl=1"], "no bucket \"b2\""),
        (&["bucket", "set", "default", "max_ttl=x"], "max_ttl must be 0 to"),
        (&["bucket", "set", "default", "bucket_type=ephemeral"], "cannot be changed"),
        (&["get", "k", "--bucket", "b2"], "no bucket \"b2\""),
    ] {
        let refused = run(words);
        assert_eq!(refused.code, 1, "{words:?}");
        assert!(
            refused.err.starts_with("error: ") && refused.err.contains(says),
            "{words:?}: {}",
            refused.err
        );
    }
}
