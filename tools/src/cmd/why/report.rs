//! How `ringctl why` shows what it found.
//!
//! Does not know: where it comes from.

use std::io::{self, Write};

use ringbase::dcp::time::Spent;
use serde_json::{Map, Value, json};

use super::shares;
use crate::dcp_stats::Account;
use crate::output::write_table;

/// Characters of a bar of 100 %.
const BAR_WIDTH: f64 = 40.0;

/// Where the time of one stream went.
#[derive(Debug)]
pub(super) struct Explained {
    /// Its name, for people.
    pub(super) stream: String,
    pub(super) connection: String,
    pub(super) vbucket: u16,
    pub(super) uid: u64,
    pub(super) state: String,
    pub(super) account: Account,
    pub(super) verdict: String,
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn percent(share: f64) -> f64 {
    (share * 1000.0).round() / 10.0
}

/// Each stream with a bar for everything that took time, and its verdict.
pub(super) fn write_details(out: &mut dyn Write, streams: &[Explained]) -> io::Result<()> {
    for (index, stream) in streams.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        let Explained { stream: name, uid, state, account, verdict, .. } = stream;
        writeln!(out, "{name}  {state}  uid {uid}  {:.3} s", seconds(account.wall_ns))?;
        for (what, share) in shares(account) {
            let bar = "#".repeat((share * BAR_WIDTH).round() as usize);
            let line = format!(
                "  {:<10}  {:>5.1} %  {:>10.3} s  {bar}",
                what.name(),
                share * 100.0,
                seconds(account.of(what))
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out, "{verdict}")?;
    }
    Ok(())
}

/// A line for each stream.
pub(super) fn write_list(out: &mut dyn Write, streams: &[Explained]) -> io::Result<()> {
    if streams.is_empty() {
        return writeln!(out, "there are no streams");
    }
    let mut rows = vec![["STREAM", "STATE", "SECONDS", "BUSY", "MOST OF IT"].map(str::to_owned).to_vec()];
    for stream in streams {
        let account = &stream.account;
        let busy = account.busy_ns() as f64 / account.wall_ns.max(1) as f64;
        let limiter = account.largest().map_or_else(
            || "-".to_owned(),
            |what| format!("{} {:.0} %", what.name(), account.share(what) * 100.0),
        );
        rows.push(vec![
            stream.stream.clone(),
            stream.state.clone(),
            format!("{:.3}", seconds(account.wall_ns)),
            format!("{:.0} %", busy * 100.0),
            limiter,
        ]);
    }
    write_table(out, &rows)?;
    writeln!(out)?;
    let slowest = &streams[0];
    writeln!(out, "{} {}", slowest.stream, slowest.verdict)
}

pub(super) fn to_json(streams: &[Explained]) -> Value {
    let streams: Vec<Value> = streams.iter().map(of_one).collect();
    json!({ "streams": streams })
}

fn of_one(stream: &Explained) -> Value {
    let account = &stream.account;
    let spent: Map<String, Value> = Spent::ALL
        .into_iter()
        .map(|what| {
            let share =
                json!({ "seconds": seconds(account.of(what)), "percent": percent(account.share(what)) });
            (what.name().to_owned(), share)
        })
        .collect();
    json!({
        "stream": stream.stream,
        "connection": stream.connection,
        "vbucket": stream.vbucket,
        "uid": stream.uid,
        "state": stream.state,
        "wall_seconds": seconds(account.wall_ns),
        "accounted_percent": percent(account.accounted()),
        "spent": spent,
        "limiter": account.largest().map(Spent::name),
        "verdict": stream.verdict,
    })
}
