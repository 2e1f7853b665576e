//! `ringctl why` and `ringctl top` against a node that runs in this process, and clients that are slow.

use std::process::Command;
use std::time::{Duration, Instant};

use ringbase::client::{ConnectOptions, Connection, DcpClient, DcpOptions};
use ringbase::protocol::dcp::{DcpMessage, StreamReply, StreamRequest};
use ringbase_storage::types::VbId;
use serde_json::Value;

use super::{node, ringctl, unused_address};

const SOURCE: &str = "generate:2000,20,20000,7";

/// A node with the documents of [`SOURCE`].
fn loaded() -> String {
    let address = node();
    assert_eq!(ringctl(&["load", SOURCE, "--host", &address]).code, 0);
    address
}

fn client(address: &str, name: &str, acknowledges: bool) -> DcpClient {
    let connection = Connection::open(&ConnectOptions::to(address)).unwrap();
    let options = DcpOptions { window_bytes: 50_000, acknowledges, ..DcpOptions::named(name) };
    DcpClient::open(connection, &options).unwrap()
}

fn stream(client: &mut DcpClient, vb: u16) {
    let reply = client.stream(VbId(vb), &StreamRequest::FROM_NOTHING, None).unwrap();
    assert!(matches!(reply, StreamReply::Accepted(_)), "{reply:?}");
}

/// Receives what comes until nothing does.
fn receive_all(client: &mut DcpClient) -> usize {
    let mut received = 0;
    while let Some(is_document) = client
        .next_within(Duration::from_millis(500), |_, message| matches!(message, DcpMessage::Mutation(_)))
        .unwrap()
    {
        received += usize::from(is_document);
    }
    client.acknowledge().unwrap();
    received
}

fn json(words: &[&str]) -> Value {
    let outcome = ringctl(&[words, &["--json"]].concat());
    assert_eq!((outcome.code, outcome.err.as_str()), (0, ""), "{words:?}");
    serde_json::from_str(&outcome.out).unwrap()
}

#[test]
fn a_closed_window_and_an_idle_stream_are_explained_as_such() {
    let address = loaded();
    let (mut slow, mut fast) = (client(&address, "group:slow", false), client(&address, "group:fast", true));
    let began = Instant::now();
    stream(&mut slow, 3);
    stream(&mut fast, 3);
    stream(&mut fast, 4);
    assert!(receive_all(&mut fast) > 100);
    // Long against what came before.
    std::thread::sleep(began.elapsed() * 2);
    let why = |words: &[&str]| json(&[&["why", "--host", &address], words].concat())["streams"].clone();

    let slow_one = why(&["group:slow:3"]);
    let slow_one = &slow_one[0];
    assert_eq!(
        (slow_one["limiter"].as_str(), slow_one["vbucket"].as_u64()),
        (Some("window"), Some(3)),
        "{slow_one}"
    );
    assert!(slow_one["accounted_percent"].as_f64().unwrap() >= 95.0, "{slow_one}");
    assert!(slow_one["spent"]["window"]["percent"].as_f64().unwrap() > 50.0, "{slow_one}");
    let fast_one = &why(&["group:fast:4", "--seconds", "0.3"])[0];
    assert_eq!(
        (fast_one["limiter"].as_str(), fast_one["state"].as_str()),
        (Some("up_to_date"), Some("in-memory"))
    );
    assert!(fast_one["spent"]["up_to_date"]["percent"].as_f64().unwrap() > 95.0, "{fast_one}");
    let seconds = fast_one["wall_seconds"].as_f64().unwrap();
    assert!((0.3..10.0).contains(&seconds), "the last seconds only: {seconds}");
    assert_eq!(why(&["3"]).as_array().unwrap().len(), 2);
    assert_eq!(why(&["group:fast"]).as_array().unwrap().len(), 2);

    let text = ringctl(&["why", "group:slow:3", "--host", &address]);
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    assert!(
        text.out.starts_with("group:slow:3  backfilling  uid ")
            || text.out.starts_with("group:slow:3  in-memory  uid ")
    );
    assert!(
        text.out.contains("\nwaits for the client's window ")
            && text.out.contains("its buffer (50000 bytes, "),
        "{}",
        text.out
    );
    let list = ringctl(&["why", "--host", &address]);
    let lines: Vec<&str> = list.out.lines().collect();
    assert!(lines[0].starts_with("STREAM ") && lines[1].starts_with("group:slow:3 "), "{}", list.out);
    assert!(lines.last().unwrap().starts_with("group:slow:3 waits for the client's window "), "{}", list.out);

    let missing = ringctl(&["why", "17", "--host", &address]);
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert_eq!(missing.err, "error: no stream 17: the bucket has 3 others; `ringctl why` lists them\n");
}

#[test]
fn top_prints_one_frame_without_a_terminal_and_ends() {
    let address = loaded();
    let mut slow = client(&address, "one:slow", false);
    (0..16).for_each(|vb| stream(&mut slow, vb));
    let text = ringctl(&["top", "--interval", "0.3", "--host", &address]);
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    assert!(text.out.starts_with("streams 16 of 1 connections  "), "{}", text.out);
    assert!(text.out.contains("\nSTREAM ") && text.out.contains("\none:slow:3 "), "{}", text.out);
    assert!(text.out.contains(" window 100 %\n") && !text.out.contains('\x1b'), "{}", text.out);

    let frame = json(&["top", "--once", "--interval", "0.2", "--host", &address]);
    assert!((0.2..20.0).contains(&frame["seconds"].as_f64().unwrap()));
    let streams = frame["streams"].as_array().unwrap();
    assert_eq!((streams.len(), streams[0]["limiter"].as_str()), (16, Some("window")));
    assert!(frame["range_scans"].is_array() && frame["latencies"].is_array());
    let nobody = ringctl(&["top", "--once", "--host", &unused_address()]);
    assert_eq!((nobody.code, nobody.out.as_str()), (1, ""));
}

/// T1.13: from a dump alone the tool says where the time of a stream went. The trace belongs to the process, and the nodes of other tests number their
/// streams as this one does, so it has a process of its own.
#[test]
fn a_dump_of_the_trace_explains_a_stream_that_is_gone() {
    let alone = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "why_and_top::explained_alone", "--ignored"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by a_dump_of_the_trace_explains_a_stream_that_is_gone in a process of its own"]
fn explained_alone() {
    ringbase::telemetry::start_log("off").unwrap();
    let address = loaded();
    let run = |words: &[&str]| {
        let outcome = ringctl(&[words, &["--host", &address]].concat());
        assert_eq!((outcome.code, outcome.err.as_str()), (0, ""), "{words:?}");
    };
    run(&["trace", "start", "--categories", "*", "--buffer-size", "16MiB"]);
    let mut slow = client(&address, "traced:slow", true);
    stream(&mut slow, 3);
    std::thread::sleep(Duration::from_secs(1));
    assert!(receive_all(&mut slow) > 50);
    drop(slow);
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = file.path().to_str().unwrap();
    run(&["trace", "stop"]);
    run(&["trace", "dump", "--out", path]);
    // No node is needed any more.
    let found = json(&["why", "--trace", path, "traced:slow:3"]);
    let found = &found["streams"][0];
    assert!(found["accounted_percent"].as_f64().unwrap() >= 95.0, "{found}");
    assert!(found["spent"]["window"]["seconds"].as_f64().unwrap() > 0.5, "{found}");
    let uid = found["uid"].as_u64().unwrap();
    let text = ringctl(&["why", "--trace", path, &uid.to_string()]).out;
    assert!(
        text.contains(&format!("  uid {uid}  ")) && text.contains(" acknowledged by the client\n"),
        "{text}"
    );
    assert!(ringctl(&["why", "--trace", path]).out.starts_with("STREAM "));
    let missing = ringctl(&["why", "--trace", path, "nobody"]);
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    let broken = ringctl(&["why", "--trace", env!("CARGO_MANIFEST_PATH")]);
    assert!(broken.code == 1 && broken.err.contains("is not a dump of the trace"), "{}", broken.err);
}
