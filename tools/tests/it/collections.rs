//! `ringctl collection` against a node that runs in this process.

use super::{Outcome, node, ringctl};

#[test]
fn collections_are_created_listed_and_dropped() {
    let address = node();
    let run = |words: &[&str]| -> Outcome { ringctl(&[words, &["--host", &address]].concat()) };
    let created = run(&["collection", "create", "shop.orders", "--max-ttl", "100"]);
    assert_eq!(created.out, "created collection shop.orders with id 0x8\n", "{}", created.err);
    assert_eq!(run(&["collection", "create", "carts", "--json"]).code, 0);
    let list = run(&["collection", "list"]).out;
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1][..5], ["_default", "_default", "0x0", "-", "0"], "{list}");
    assert_eq!(lines[2][..5], ["_default", "carts", "0x9", "-", "0"], "{list}");
    assert_eq!(lines[3][..5], ["shop", "orders", "0x8", "100", "0"], "{list}");
    assert_eq!(run(&["collection", "drop", ".carts"]).out, "dropped .carts\n");
    assert_eq!(run(&["collection", "drop", "shop"]).code, 0);
    let json: serde_json::Value = serde_json::from_str(&run(&["collection", "list", "--json"]).out).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1);
    for (words, says) in [
        (&["collection", "drop", "shop.orders"][..], "there is no \"shop.orders\""),
        (&["collection", "create", "_default._default"], "already"),
        (&["collection", "create", "$a"], "a name has 1 to 251"),
        (&["collection", "drop", "_default"], "the scope _default is missing"),
    ] {
        let refused = run(words);
        assert!(refused.code != 0 && refused.err.contains(says), "{words:?}: {}", refused.err);
    }
}
