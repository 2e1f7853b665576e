//! `dcp-vbtakeover`: how far the stream of a vbucket is, for whoever wants to move the vbucket to the other end of it.
//!
//! Each core says what it knows under names of [`StatPart`]; [`answer`] makes the protocol's fields of the whole.
//!
//! | status | means | estimate |
//! |---|---|---|
//! | `connection_does_not_exist`, `stream_does_not_exist` | nothing is on its way | everything: documents and tombstones |
//! | `calculating-item-count` | its backfill waits for a slot or a view | what lies between it and the newest seqno, at most everything |
//! | `backfilling`, `in-memory` | it reads the past, the present | the same |
//!
//! Does not know: connections, streams, vbuckets.
//! Source: `protocol/dcp.md` §13.

use super::{StatPart, StatValue};

/// Connections of the name that is asked for.
const CONNECTIONS: &str = "connections";

/// A connection of the name that is asked for is here.
pub fn add_connection(part: &mut StatPart) {
    part.sum(CONNECTIONS, 1);
}

/// The stream of the vbucket: what it does, and how many items it has before it.
pub(super) fn add_stream(part: &mut StatPart, is_backfilling: bool, has_view: bool, items_remaining: u64) {
    let status = match (is_backfilling, has_view) {
        (false, _) => "in-memory",
        (true, true) => "backfilling",
        (true, false) => "calculating-item-count",
    };
    part.text("status", status);
    part.sum(if is_backfilling { "backfillRemaining" } else { "chk_items" }, items_remaining);
}

/// The vbucket.
pub(super) fn add_vbucket(part: &mut StatPart, items: u64, tombstones: u64) {
    part.sum("vb_items", items);
    part.sum("on_disk_deletes", tombstones);
}

/// The protocol's fields, of the connection with this name.
pub(super) fn answer(name: &str, whole: &StatPart) -> StatPart {
    let number = |name: &str| match whole.get(name) {
        Some(StatValue::Sum(number)) => *number,
        _ => 0,
    };
    let everything = number("vb_items") + number("on_disk_deletes");
    let (status, estimate) = match whole.get("status") {
        Some(StatValue::Text(status)) => {
            (status.as_str(), everything.min(number("backfillRemaining") + number("chk_items")))
        }
        _ if number(CONNECTIONS) > 0 => ("stream_does_not_exist", everything),
        _ => ("connection_does_not_exist", everything),
    };
    let mut part = StatPart::default();
    part.text("name", name);
    part.text("status", status);
    part.sum("estimate", estimate);
    for name in ["backfillRemaining", "chk_items", "vb_items", "on_disk_deletes"] {
        part.sum(name, number(name));
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(part: &StatPart) -> (String, u64) {
        let part = answer("x", part);
        match (part.get("status"), part.get("estimate")) {
            (Some(StatValue::Text(status)), Some(StatValue::Sum(estimate))) => (status.clone(), *estimate),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_estimate_is_what_is_left_and_never_more_than_there_is() {
        let mut part = StatPart::default();
        add_vbucket(&mut part, 100, 20);
        assert_eq!(shown(&part), ("connection_does_not_exist".to_owned(), 120));
        add_connection(&mut part);
        assert_eq!(shown(&part), ("stream_does_not_exist".to_owned(), 120));
        let with = |is_backfilling, has_view, remaining| {
            let mut part = part.clone();
            add_stream(&mut part, is_backfilling, has_view, remaining);
            shown(&part)
        };
        assert_eq!(with(true, false, 500), ("calculating-item-count".to_owned(), 120));
        assert_eq!(with(true, true, 50), ("backfilling".to_owned(), 50));
        assert_eq!(with(false, false, 3), ("in-memory".to_owned(), 3));
    }
}
