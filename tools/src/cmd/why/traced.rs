//! `ringctl why --trace`: where the time of streams went, from a dump.
//!
//! Does not know: how marks become an account (`ringbase::dcp::traced`).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ringbase::dcp::traced::{TracedStream, streams};
use ringbase::telemetry::trace::check::TraceFile;

use super::report::Explained;
use super::verdict_of;
use crate::dcp_stats::Account;
use crate::failure::Failure;
use crate::output::human_bytes;

/// Largest dump that is read, in bytes.
const DUMP_BYTES_MAX: u64 = 2 << 30;

pub(super) fn explain(path: &Path, stream: Option<&str>) -> Result<Vec<Explained>, Failure> {
    let failed = |error| Failure::other(format!("cannot read {}", path.display()), error);
    let mut json = Vec::new();
    let bytes =
        File::open(path).and_then(|file| file.take(DUMP_BYTES_MAX).read_to_end(&mut json)).map_err(failed)?;
    if bytes as u64 == DUMP_BYTES_MAX {
        let most = human_bytes(DUMP_BYTES_MAX);
        return Err(Failure::other(
            format!("cannot read {}", path.display()),
            format!("it has more than {most}"),
        ));
    }
    let file = TraceFile::parse(&json)
        .map_err(|error| Failure::other(format!("{} is not a dump of the trace", path.display()), error))?;
    let found = streams(&file);
    let count = found.len();
    let is_meant = |traced: &TracedStream| {
        let name = format!("{}:{}", traced.connection, traced.vb);
        stream.is_none_or(|wanted| {
            let number: Option<u64> = wanted.parse().ok();
            wanted == name
                || wanted == traced.connection
                || number.is_some_and(|number| number == traced.number || number == u64::from(traced.vb))
        })
    };
    let explained: Vec<Explained> = found.into_iter().filter(is_meant).map(of_one).collect();
    if explained.is_empty() {
        let hint = match count {
            0 => "it has no streams; was category ringbase::dcp recorded?".to_owned(),
            count => format!("it has {count} others; `ringctl why --trace` without a name lists them"),
        };
        return Err(Failure::other(format!("no such stream in {}", path.display()), hint));
    }
    Ok(explained)
}

fn of_one(traced: TracedStream) -> Explained {
    let account = Account::new(traced.wall_ns, |what| traced.spent_ns[what as usize]);
    let mut verdict = verdict_of(&account, None);
    let (reads, read_ns) = traced.reads;
    if reads > 0 {
        let mean_us = read_ns as f64 / reads as f64 / 1e3;
        verdict.push_str(&format!(
            "\n{reads} reads of the disk, {mean_us:.0} us each from submission to completion"
        ));
    }
    verdict.push_str(&format!(
        "\n{} handed to the connection, {} taken by the kernel, {} acknowledged by the client",
        human_bytes(traced.queued_bytes),
        human_bytes(traced.written_bytes),
        human_bytes(traced.acked_bytes)
    ));
    Explained {
        stream: format!("{}:{}", traced.connection, traced.vb),
        connection: traced.connection,
        vbucket: traced.vb,
        uid: traced.number,
        state: if traced.is_waiting { "not ended" } else { "ended" }.to_owned(),
        account,
        verdict,
    }
}
