//! A node's half of the conversation for the tests of this client: a listener, a thread, and a script.
//!
//! The script gets every request after the bootstrap and answers what it likes, as bytes.
//!
//! Does not know: what a real node would answer.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ConnectOptions;
use crate::protocol::cluster_map::{BucketDescription, NodePorts, encode_bucket};
use crate::protocol::extras::ConfigVersion;
use crate::protocol::{Decoded, Features, Frame, FrameLimits, Magic, Opcode, Response, Status, decode_frame};

/// How many vbuckets the fake bucket has.
pub(super) const VBUCKETS: u16 = 4;

/// One accepted connection.
pub(super) struct Peer {
    stream: TcpStream,
    received: Vec<u8>,
}

/// A request, owned.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) bytes: Vec<u8>,
}

impl Asked {
    pub(super) fn frame(&self) -> Frame<'_> {
        match decode_frame(&self.bytes, FrameLimits::AUTHENTICATED) {
            Ok(Decoded::Frame(frame)) => frame,
            other => panic!("{other:?}"),
        }
    }

    /// The beginning of an answer to this request.
    pub(super) fn answer(&self, status: Status) -> Response<'_> {
        Response::new(self.frame().opcode(), self.frame().opaque(), status)
    }
}

impl Peer {
    /// The next request if it has been received already.
    pub(super) fn next_received(&mut self) -> Option<Asked> {
        let Ok(Decoded::Frame(frame)) = decode_frame(&self.received, FrameLimits::AUTHENTICATED) else {
            return None;
        };
        // A DCP client also answers.
        assert!(matches!(frame.header.magic, Magic::ClientRequest | Magic::ClientResponse));
        let rest = self.received.split_off(frame.frame_bytes());
        Some(Asked { bytes: std::mem::replace(&mut self.received, rest) })
    }

    /// The next request; `None` when the client hangs up.
    pub(super) fn next(&mut self) -> Option<Asked> {
        loop {
            if let Some(asked) = self.next_received() {
                return Some(asked);
            }
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes) {
                Ok(count) if count > 0 => self.received.extend_from_slice(&bytes[..count]),
                _ => return None,
            }
        }
    }

    /// Sends an answer.
    pub(super) fn send(&mut self, response: &Response<'_>) {
        let mut bytes = Vec::new();
        response.encode(&mut bytes);
        self.send_bytes(&bytes);
    }

    /// Sends bytes; a client that is gone is no error.
    pub(super) fn send_bytes(&mut self, bytes: &[u8]) {
        let _gone = self.stream.write_all(bytes);
    }

    /// Sends bytes in pieces so small that a reader sees them one by one.
    pub(super) fn send_in_pieces(&mut self, bytes: &[u8], piece: usize) {
        for part in bytes.chunks(piece) {
            self.send_bytes(part);
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    /// The next request after HELLO, SELECT_BUCKET and GET_CLUSTER_CONFIG, which are answered well.
    pub(super) fn next_after_bootstrap(&mut self) -> Option<Asked> {
        loop {
            let asked = self.next()?;
            match asked.frame().opcode() {
                Opcode::HELLO => {
                    let granted = Features::negotiate(asked.frame().value, Features::OFFERED).unwrap();
                    self.send(&asked.answer(Status::SUCCESS).value(&granted.encode()));
                }
                Opcode::SELECT_BUCKET => self.send(&asked.answer(Status::SUCCESS)),
                Opcode::GET_CLUSTER_CONFIG => {
                    let version = ConfigVersion { epoch: 1, rev: 1 };
                    let bucket = BucketDescription {
                        name: "default",
                        uuid: 1,
                        vbucket_count: VBUCKETS,
                        is_ephemeral: false,
                        manifest_uid: 0,
                    };
                    let map = encode_bucket(version, NodePorts { kv: 1, mgmt: None }, &bucket);
                    self.send(&asked.answer(Status::SUCCESS).value(&map));
                }
                _ => return Some(asked),
            }
        }
    }
}

/// The threads of a fake node; dropping it waits for their end, so that what they assert counts.
pub(super) struct Server(Option<JoinHandle<()>>);

impl Drop for Server {
    fn drop(&mut self) {
        let thread = self.0.take().filter(|_| !std::thread::panicking());
        if let Some(thread) = thread {
            thread.join().expect("the script of the node has not failed");
        }
    }
}

/// Listens on a free port and runs `script` on a thread of its own for each of `connections` connections. What
/// this returns must be dropped after the connections: declare it before them.
pub(super) fn serve(
    connections: usize,
    script: impl Fn(Peer) + Clone + Send + 'static,
) -> (ConnectOptions, Server) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = ConnectOptions::to(listener.local_addr().unwrap().to_string());
    options.timeout = Duration::from_secs(5);
    let thread = std::thread::spawn(move || {
        let scripts: Vec<JoinHandle<()>> = (0..connections)
            .map(|_| {
                let (stream, _) = listener.accept().unwrap();
                stream.set_nodelay(true).unwrap();
                let script = script.clone();
                std::thread::spawn(move || script(Peer { stream, received: Vec::new() }))
            })
            .collect();
        scripts.into_iter().for_each(|script| script.join().unwrap());
    });
    (options, Server(Some(thread)))
}
