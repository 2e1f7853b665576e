//! Clients that others wrote, against a real node: the Python `couchbase` SDK, `memccapable`, and the DCP client `dcp-rs`.
//!
//! The tests of the first two are the scripts in `sdk/`. A machine without one of the clients skips its test and says so;
//! with `REQUIRE_CLIENTS=1`, as in `.ci/run`, a skip is a failure. The SDK is looked for in the Python interpreter named
//! by `RINGBASE_SDK_PYTHON`, else in `python3`.

#![allow(clippy::unwrap_used, reason = "all of this crate is tests, helpers too")]

#[path = "clients/dcp.rs"]
mod dcp;

use std::env;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a script exits with when its client is not installed.
const EXIT_SKIPPED: i32 = 77;

/// What became of a script.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Skipped,
    Failed(String),
}

/// Judges a script's end; `None` stands for an interpreter that could not be started.
fn verdict(code: Option<Option<i32>>, clients_required: bool) -> Verdict {
    match code {
        Some(Some(0)) => Verdict::Passed,
        None | Some(Some(EXIT_SKIPPED)) if !clients_required => Verdict::Skipped,
        None => Verdict::Failed("there is no Python interpreter".to_owned()),
        Some(Some(EXIT_SKIPPED)) => Verdict::Failed("the client is not installed".to_owned()),
        Some(code) => Verdict::Failed(format!("exit code {code:?}")),
    }
}

fn run_script(script: &str, cores: u16) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(script);
    let python = env::var_os("RINGBASE_SDK_PYTHON").unwrap_or_else(|| "python3".into());
    let done = Command::new(python)
        .arg("-B")
        .arg(path)
        .args(["--node", env!("CARGO_BIN_EXE_ringbase"), "--cores", &cores.to_string()])
        .stdin(Stdio::null())
        .output();
    let required = env::var("REQUIRE_CLIENTS").is_ok_and(|value| value == "1");
    let report = done.as_ref().map_or_else(ToString::to_string, printed);
    match verdict(done.ok().map(|output| output.status.code()), required) {
        Verdict::Passed => println!("{report}"),
        // Written past the capture of the test harness: a skip that nobody sees looks like a pass.
        Verdict::Skipped => {
            let reason = report.lines().last().unwrap_or_default().trim_start_matches("skipped: ");
            writeln!(std::io::stderr(), "SKIPPED {script} with {cores} core(s): {reason}")
                .expect("stderr is open");
        }
        Verdict::Failed(why) => panic!("{script} with {cores} core(s): {why}\n{report}"),
    }
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_python_sdk_works_with_a_node_of_one_core() {
    run_script("run.py", 1);
}

#[test]
fn the_python_sdk_works_with_a_node_of_two_cores() {
    run_script("run.py", 2);
}

#[test]
fn memccapable_passes_on_one_core() {
    run_script("memccapable.py", 1);
}

#[test]
fn memccapable_passes_on_two_cores() {
    run_script("memccapable.py", 2);
}

/// A missing client is a skip for a newcomer and a failure where clients are required; a failing one never passes.
#[test]
fn a_missing_client_fails_only_where_clients_are_required() {
    assert_eq!(verdict(Some(Some(EXIT_SKIPPED)), false), Verdict::Skipped);
    assert_eq!(verdict(None, false), Verdict::Skipped);
    for (code, required) in [
        (Some(Some(EXIT_SKIPPED)), true),
        (None, true),
        (Some(Some(1)), false),
        (Some(Some(1)), true),
        (Some(None), false),
    ] {
        assert!(matches!(verdict(code, required), Verdict::Failed(_)), "{code:?} {required}");
    }
    assert_eq!(verdict(Some(Some(0)), true), Verdict::Passed);
}
