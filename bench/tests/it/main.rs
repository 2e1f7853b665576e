//! ringbench as the shell sees it, against a real node.

#![allow(clippy::unwrap_used, reason = "all of this crate is tests, helpers too")]

mod backfill;
mod churn;
mod engine;
mod kv;

use std::path::{Path, PathBuf};
use std::process::Command;

/// How a run of ringbench ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs ringbench with these words.
pub(crate) fn ringbench(words: &[&str]) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_ringbench")).args(words).output().expect("it was built");
    let utf8 = |bytes| String::from_utf8(bytes).expect("ringbench writes UTF-8");
    let code = output.status.code().expect("not killed by a signal");
    Outcome { code, out: utf8(output.stdout), err: utf8(output.stderr) }
}

/// The node's program. It belongs to another package, which a test of this one does not build; both are named, so that all is built with the
/// features that are there already.
pub(crate) fn node() -> PathBuf {
    let profile_directory =
        Path::new(env!("CARGO_BIN_EXE_ringbench")).parent().expect("a file has a directory");
    let profile = match profile_directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => panic!("{} has no name", profile_directory.display()),
    };
    let on = [("peers", cfg!(feature = "peers")), ("peer-rocksdb", cfg!(feature = "peer-rocksdb"))];
    let features: Vec<String> =
        on.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| format!("ringbase-bench/{name}")).collect();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--profile", profile, "-p", "ringbase", "-p", "ringbase-bench", "--bins"])
        .args(["--features", &features.join(",")])
        .arg("--target-dir")
        .arg(profile_directory.parent().expect("profiles have a directory"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs this test");
    assert!(built.success(), "the node could not be built");
    profile_directory.join("ringbase")
}

/// A directory on a disk; the usual place for temporary files may be in memory.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}
