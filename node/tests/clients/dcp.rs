//! A DCP client that others wrote, the crate `dcp-rs`, against a real node of two cores.
//!
//! It asks for the stream of each of 1,024 vbuckets, from the beginning and without end, filtered by the default collection, and takes any answer
//! but success for its end. What it hands over is compared with what was written before it came and after.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dcp_rs::{Config, Dcp, DcpConfig, GroupConfig};
use ringbase::client::{Bucket, ConnectOptions, Connection, Mutated, StoreMode};
use ringbase::protocol::extras::StoreExtras;
use ringbase_storage::types::Cas;

/// What the client must ask for is fixed in it.
const VBUCKETS: &str = "1024";

/// Longest time for everything to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of the documents, as the client hands it over.
#[derive(Debug, Default)]
struct Received {
    /// Value by key; `None` for a deleted one.
    documents: BTreeMap<String, Option<String>>,
    /// Highest seqno by vbucket.
    seqnos: BTreeMap<u16, u64>,
    /// The first thing that was wrong.
    wrong: Option<String>,
}

/// The client's listener is a plain function.
static RECEIVED: Mutex<Option<Received>> = Mutex::new(None);

/// A running node; it ends with this.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        // Nothing is left to do if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(data: &std::path::Path) -> (Node, String) {
    let child = Command::new(env!("CARGO_BIN_EXE_ringbase"))
        .args(["serve", "--listen", "127.0.0.1:0", "--mgmt-listen", "127.0.0.1:0", "--json", "--log", "warn"])
        .args(["--vbuckets", VBUCKETS, "--cores", "2", "--memory", "1GiB"])
        .arg("--data")
        .arg(data)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut node = Node(child);
    let mut line = String::new();
    BufReader::new(node.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = ready["listen"].as_str().unwrap().to_owned();
    (node, address)
}

/// The part of the client's text between `name` and the next comma.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let (_, rest) = text.split_once(name).unwrap_or_default();
    rest.split([',', ' ']).find(|part| !part.is_empty()).unwrap_or_default()
}

fn take(received: &mut Received, key: &[u8], extras: &[u8], text: &str) {
    let vbucket: u16 = field(text, "v_bucket:").parse().unwrap();
    let seqno = u64::from_be_bytes(*extras.first_chunk().unwrap());
    let last = received.seqnos.insert(vbucket, seqno).unwrap_or_default();
    if seqno <= last {
        received.wrong.get_or_insert_with(|| format!("seqno {seqno} of vbucket {vbucket} after {last}"));
    }
    let value = match field(text, "command:") {
        // Mutation.
        "0087" => Some(field(text, "value:").to_owned()),
        // Deletion.
        "0088" => None,
        other => {
            received.wrong.get_or_insert_with(|| format!("command {other}: {text}"));
            return;
        }
    };
    // It registers what it does with the answer to HELLO after it has sent the request. If the answer is faster, it never learns that it has
    // collections, and leaves the collection in front of keys.
    let key = key.strip_prefix(&[0]).unwrap_or(key);
    received.documents.insert(String::from_utf8(key.to_vec()).unwrap(), value);
}

fn wait_for(expected: &BTreeMap<String, Option<String>>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        {
            let received = RECEIVED.lock().unwrap();
            let received = received.as_ref().unwrap();
            assert_eq!(received.wrong, None);
            if received.documents == *expected {
                return;
            }
            if Instant::now() >= deadline {
                let count = received.documents.len();
                let missing =
                    expected.iter().find(|(key, value)| received.documents.get(*key) != Some(value));
                panic!("{count} of {} documents came; not right is {missing:?}", expected.len());
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes numbered documents, and deletes every seventh again.
fn write(
    bucket: &mut Bucket<'_>,
    expected: &mut BTreeMap<String, Option<String>>,
    numbers: std::ops::Range<u32>,
) {
    for number in numbers {
        let (key, value) = (format!("document-{number:05}"), format!("value-{number}"));
        let stored =
            bucket.store(StoreMode::Set, key.as_bytes(), value.as_bytes(), StoreExtras::default(), Cas(0));
        let _: Mutated = stored.unwrap();
        expected.insert(key, Some(value));
    }
    let keys: Vec<String> = expected.keys().step_by(7).cloned().collect();
    for key in keys {
        if expected.insert(key.clone(), None).is_some_and(|value| value.is_some()) {
            bucket.delete(key.as_bytes(), Cas(0)).unwrap();
        }
    }
}

#[test]
fn dcp_rs_receives_what_was_there_and_what_is_written_while_it_listens() {
    let data = tempfile::tempdir().unwrap();
    let (_node, address) = start(data.path());
    let mut connection = Connection::open(&ConnectOptions::to(&address)).unwrap();
    let mut bucket = Bucket::new(&mut connection).unwrap();
    let mut expected = BTreeMap::new();
    write(&mut bucket, &mut expected, 0..3_000);

    *RECEIVED.lock().unwrap() = Some(Received::default());
    let config = Config {
        hosts: vec![address],
        username: "Administrator".to_owned(),
        password: "password".to_owned(),
        bucket: "default".to_owned(),
        scope_name: "_default".to_owned(),
        collection_names: vec!["_default".to_owned()],
        dcp: DcpConfig { group: GroupConfig { name: "dcp-rs".to_owned() } },
    };
    // It goes on until the node ends.
    std::thread::spawn(move || {
        let dcp = Dcp::new(config).unwrap();
        dcp.add_listener(|packet| {
            let mut received = RECEIVED.lock().unwrap();
            take(received.as_mut().unwrap(), &packet.key, &packet.extras, &packet.to_string());
            Ok(())
        });
        let ended = dcp.start();
        if let Some(received) = &mut *RECEIVED.lock().unwrap() {
            received.wrong.get_or_insert_with(|| format!("the client has ended: {ended:?}"));
        }
    });
    wait_for(&expected);
    write(&mut bucket, &mut expected, 3_000..5_000);
    wait_for(&expected);
    let received = RECEIVED.lock().unwrap();
    assert!(received.as_ref().unwrap().seqnos.len() > 100, "documents lie in many vbuckets");
}
