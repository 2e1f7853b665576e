//! ringctl as the shell sees it: arguments, exit codes, standard output and error.

#![allow(clippy::unwrap_used, reason = "all of this crate is tests, helpers too")]

mod buckets;
mod collections;
mod command_line;
mod dcp_drain;
mod scrub;
mod users;
mod vbuckets;
mod why_and_top;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use ringbase::config::{Config, ServeArgs};

/// How a run of ringctl ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs ringctl with these words and this standard input.
pub(crate) fn ringctl_with_input(words: &[&str], input: &str) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringctl"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ringctl was built");
    let _unread = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("its pipes can be read");
    Outcome {
        code: output.status.code().expect("not killed by a signal"),
        out: utf8(output.stdout),
        err: utf8(output.stderr),
    }
}

pub(crate) fn ringctl(words: &[&str]) -> Outcome {
    ringctl_with_input(words, "")
}

/// Starts a node of one core on a scratch directory; returns its address. It lives as long as the process.
pub(crate) fn node() -> String {
    node_and_directory().0
}

/// The same, and where its data lies.
pub(crate) fn node_and_directory() -> (String, PathBuf) {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().keep();
    let address = "127.0.0.1:0".parse().unwrap();
    let args = ServeArgs {
        data: Some(scratch.clone()),
        listen: Some(address),
        cores: Some(1),
        vbuckets: Some(16),
        wal_segments: Some(4),
        wal_segment_bytes: Some("1MiB".parse().unwrap()),
        ..ServeArgs::default()
    };
    let config: Config = args.validate().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        ringbase::server::serve(&config, |ready| sender.send(ready.listen.to_string()).unwrap())
    });
    (receiver.recv().expect("the node starts"), scratch)
}

/// An address on which nobody listens.
pub(crate) fn unused_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").to_string()
}

fn utf8(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("ringctl writes UTF-8")
}
