//! `ringctl trace`: recording what the node does when, and dumping it for Perfetto.
//!
//! Does not know: what is in a dump.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use ringbase::client::{Connection, NO_BUCKET};
use serde_json::{Value, json};

use super::connect_options;
use crate::args::{GlobalArgs, TraceAction, TraceArgs, TraceStartArgs};
use crate::failure::Failure;
use crate::output::{human_bytes, print, print_json, stdout, write_table};

pub(crate) fn run(global: &GlobalArgs, args: &TraceArgs) -> Result<(), Failure> {
    let mut options = connect_options(global)?;
    // The node is traced, not a bucket.
    options.bucket = Some(NO_BUCKET.to_owned());
    let mut connection = Connection::open(&options)?;
    match &args.action {
        TraceAction::Start(start) => begin(global, &mut connection, start),
        TraceAction::Stop => {
            connection.ioctl_set("trace.stop", "")?;
            tell(global, "stopped", "the recording is stopped; `ringctl trace dump --out FILE` writes it")
        }
        TraceAction::Status => status(global, &mut connection),
        TraceAction::Dump { out: Some(path) } => dump_to(global, &mut connection, path),
        TraceAction::Dump { out: None } => {
            let mut out = stdout();
            connection.trace_dump(|chunk| out.write_all(chunk))?;
            writeln!(out).and_then(|()| out.flush()).map_err(Failure::Output)
        }
    }
}

fn tell(global: &GlobalArgs, result: &str, sentence: &str) -> Result<(), Failure> {
    if global.json {
        return print_json(&json!({ "result": result }));
    }
    print(|out| writeln!(out, "{sentence}"))
}

fn begin(global: &GlobalArgs, connection: &mut Connection, args: &TraceStartArgs) -> Result<(), Failure> {
    connection.ioctl_set("trace.config", &args.config().to_string())?;
    connection.ioctl_set("trace.start", "")?;
    tell(
        global,
        "started",
        "recording; `ringctl trace stop` ends it, `ringctl trace dump` may come before or after",
    )
}

fn status(global: &GlobalArgs, connection: &mut Connection) -> Result<(), Failure> {
    let text = connection.ioctl_get("trace.status?format=json")?;
    let status: Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::other("the node tells no status of its trace", error))?;
    if global.json {
        return print_json(&status);
    }
    let number = |value: &Value, name: &str| value[name].as_u64().unwrap_or_default();
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or("?").to_owned();
    let mut rows = vec![["THREAD", "BUFFER", "EVENTS", "DROPPED"].map(str::to_owned).to_vec()];
    for thread in status["threads"].as_array().into_iter().flatten() {
        rows.push(vec![
            text(thread, "name"),
            human_bytes(number(thread, "buffer_bytes")),
            number(thread, "events").to_string(),
            number(thread, "dropped").to_string(),
        ]);
    }
    let state = if status["enabled"].as_bool() == Some(true) { "enabled" } else { "disabled" };
    print(|out| {
        writeln!(out, "{state}  {}", text(&status, "config"))?;
        if rows.len() > 1 { write_table(out, &rows) } else { writeln!(out, "nothing is recorded") }
    })
}

fn dump_to(global: &GlobalArgs, connection: &mut Connection, path: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::other(format!("cannot write {}", path.display()), error);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    let bytes = connection.trace_dump(|chunk| file.write_all(chunk))?;
    file.flush().map_err(failed)?;
    if global.json {
        return print_json(&json!({ "result": "dumped", "bytes": bytes, "file": path.to_string_lossy() }));
    }
    print(|out| {
        writeln!(out, "{} in {}; open it in https://ui.perfetto.dev", human_bytes(bytes), path.display())
    })
}
