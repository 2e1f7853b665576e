//! A drain as a table for people and as JSON for machines.
//!
//! Does not know: connections, what is a violation.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::check::Violation;
use super::drain::{ConnectionDrain, Drained};
use super::expected::Missing;
use crate::output::{human_bytes, megabytes_per_second, write_table};

/// Violations that are printed on standard error.
const VIOLATIONS_SHOWN: usize = 20;

/// What a comparison with a source came to.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) documents: u64,
    pub(super) missing: Missing,
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// Everything as one object.
pub(super) fn to_json(drained: &Drained, verified: Option<&Verified>) -> Value {
    let connections: Vec<Value> = drained.connections.iter().map(connection_json).collect();
    let violation = |violation: &Violation| {
        json!({
            "vbucket": violation.vbucket.0,
            "seqno": violation.seqno.0,
            "found": violation.found,
            "expected": violation.expected,
        })
    };
    let violations: Vec<Value> = drained.violations.kept.iter().map(violation).collect();
    let verified = verified.map(|verified| {
        json!({
            "documents": verified.documents,
            "missing_count": verified.missing.count,
            "missing": verified.missing.keys,
        })
    });
    json!({
        "connections": connections,
        "total": connection_json(&drained.total),
        "stream_ends": drained.ends,
        "open_streams": drained.open_streams,
        "violation_count": drained.violations.count,
        "violations": violations,
        "verified": verified,
    })
}

fn connection_json(drain: &ConnectionDrain) -> Value {
    let (counts, seconds) = (&drain.counts, drain.elapsed.as_secs_f64());
    json!({
        "streams": counts.streams,
        "items": counts.items(),
        "mutations": counts.mutations,
        "deletions": counts.deletions,
        "system_events": counts.system_events,
        "snapshots": counts.snapshots,
        "oso_snapshots": counts.oso_snapshots,
        "snapshots_with_keys_not_compared": counts.snapshots_unchecked,
        "message_bytes": counts.message_bytes,
        "key_bytes": counts.key_bytes,
        "value_bytes": counts.value_bytes,
        "overhead_bytes": counts.overhead_bytes(),
        "seconds": seconds,
        "items_per_second": per_second(counts.items(), seconds),
        "megabytes_per_second": megabytes_per_second(counts.message_bytes, seconds),
    })
}

/// The table, with a line for each connection, and what the streams came to.
pub(super) fn write_report(
    out: &mut dyn Write,
    drained: &Drained,
    verified: Option<&Verified>,
) -> io::Result<()> {
    let heads = [
        "CONNECTION",
        "STREAMS",
        "ITEMS",
        "MUTATIONS",
        "DELETIONS",
        "SNAPSHOTS",
        "OSO",
        "MESSAGE BYTES",
        "OVERHEAD BYTES",
        "SECONDS",
        "ITEMS/S",
        "MB/S",
    ];
    let row = |name: String, drain: &ConnectionDrain| {
        let (counts, seconds) = (&drain.counts, drain.elapsed.as_secs_f64());
        let numbers = [
            counts.streams,
            counts.items(),
            counts.mutations,
            counts.deletions,
            counts.snapshots,
            counts.oso_snapshots,
            counts.message_bytes,
            counts.overhead_bytes(),
        ];
        let mut row = vec![name];
        row.extend(numbers.map(|number| number.to_string()));
        row.push(format!("{seconds:.3}"));
        row.push(format!("{:.0}", per_second(counts.items(), seconds)));
        row.push(format!("{:.1}", megabytes_per_second(counts.message_bytes, seconds)));
        row
    };
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for (number, drain) in drained.connections.iter().enumerate() {
        rows.push(row(number.to_string(), drain));
    }
    rows.push(row("total".to_owned(), &drained.total));
    write_table(out, &rows)?;

    let counts = &drained.total.counts;
    writeln!(
        out,
        "{} of keys, {} of values",
        human_bytes(counts.key_bytes),
        human_bytes(counts.value_bytes)
    )?;
    let mut ends: Vec<String> =
        drained.ends.iter().map(|(status, count)| format!("{count} {status}")).collect();
    if drained.open_streams > 0 {
        ends.push(format!("{} still open", drained.open_streams));
    }
    if !ends.is_empty() {
        writeln!(out, "stream ends: {}", ends.join(", "))?;
    }
    if counts.snapshots_unchecked > 0 {
        writeln!(out, "too large to compare all their keys: {} snapshots", counts.snapshots_unchecked)?;
    }
    if let Some(verified) = verified {
        let (documents, missing) = (verified.documents, verified.missing.count);
        writeln!(out, "verified with a source of {documents} documents, {missing} missing")?;
    }
    Ok(())
}

/// What is wrong, line by line, as much as a person reads.
pub(super) fn write_violations(
    out: &mut dyn Write,
    drained: &Drained,
    verified: Option<&Verified>,
) -> io::Result<()> {
    let violations = &drained.violations;
    for violation in violations.kept.iter().take(VIOLATIONS_SHOWN) {
        writeln!(out, "violation: {violation}")?;
    }
    let untold = violations.count.saturating_sub(VIOLATIONS_SHOWN as u64);
    if untold > 0 {
        writeln!(out, "{untold} more violations; --json has the first of them")?;
    }
    if let Some(missing) = verified.map(|verified| &verified.missing).filter(|missing| missing.count > 0) {
        writeln!(out, "missing: {} documents, such as {}", missing.count, missing.keys.join(", "))?;
    }
    Ok(())
}
