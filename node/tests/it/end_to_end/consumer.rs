//! A DCP client with its copy of a bucket, which checks every message.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ringbase::client::{Bucket, ClientError, Connection, DcpClient, DcpOptions};
use ringbase::protocol::dcp::{DcpMessage, StreamEndStatus, StreamFlags, StreamReply, StreamRequest};
use ringbase_storage::types::{Cas, Seqno, VbId, VbUuid};

use super::rig::{Node, PATIENCE};

/// How many vbuckets a node of these tests has.
pub(super) const VBUCKETS: u16 = 16;

pub(super) type Documents = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) fn delete(connection: &mut Connection, key: &str) {
    Bucket::new(connection).unwrap().delete(key.as_bytes(), Cas(0)).unwrap();
}

/// What a consumer has of one vbucket.
#[derive(Debug, Default, Clone)]
pub(super) struct Copy {
    pub(super) uuid: VbUuid,
    pub(super) seqno: Seqno,
    /// Of the last message; a client that has none of a snapshot does not name it.
    pub(super) snapshot: (Seqno, Seqno),
    /// Of the last marker.
    pub(super) announced: (Seqno, Seqno),
    /// Keys of the snapshot that is being received.
    pub(super) seen: BTreeSet<Vec<u8>>,
    pub(super) documents: BTreeMap<Vec<u8>, (Seqno, Option<Vec<u8>>)>,
    pub(super) markers: Vec<u32>,
    pub(super) is_open: bool,
    pub(super) end: Option<StreamEndStatus>,
}

impl Copy {
    pub(super) fn request(&self, flags: StreamFlags, end: Seqno) -> StreamRequest {
        let (snap_start, snap_end) = self.snapshot;
        StreamRequest { flags, start: self.seqno, end, uuid: self.uuid, snap_start, snap_end }
    }

    fn take(&mut self, message: &DcpMessage<'_>) {
        assert!(self.is_open, "{message:?} outside of a stream");
        match message {
            DcpMessage::SnapshotMarker(marker) => {
                assert!(marker.start <= marker.end && self.seqno <= marker.end);
                assert!(marker.start <= self.seqno.next(), "{marker:?} behind {}", self.seqno);
                self.announced = (marker.start, marker.end);
                self.markers.push(marker.flags.0);
                self.seen.clear();
            }
            DcpMessage::Mutation(mutation) => {
                self.version(mutation.by_seqno, mutation.key, Some(mutation.value));
            }
            DcpMessage::Deletion(deletion) => self.version(deletion.by_seqno, deletion.key, None),
            DcpMessage::StreamEnd(status) => {
                self.is_open = false;
                self.end = Some(*status);
            }
            other => panic!("{other:?}"),
        }
    }

    fn version(&mut self, seqno: Seqno, key: &[u8], value: Option<&[u8]>) {
        let (start, end) = self.announced;
        assert!(seqno > self.seqno, "{seqno} after {}", self.seqno);
        assert!(start <= seqno && seqno <= end, "{seqno} outside of {start}..{end}");
        assert!(self.seen.insert(key.to_vec()), "a key twice in a snapshot");
        (self.seqno, self.snapshot) = (seqno, self.announced);
        self.documents.insert(key.to_vec(), (seqno, value.map(<[u8]>::to_vec)));
    }
}

/// A client with its copy of the bucket.
pub(super) struct Consumer {
    pub(super) client: DcpClient,
    pub(super) copies: BTreeMap<VbId, Copy>,
    pub(super) messages: u64,
}

impl Consumer {
    pub(super) fn open(node: &Node, bucket: &str, options: &DcpOptions) -> Consumer {
        let client = DcpClient::open(node.connect_to(bucket), options).unwrap();
        Consumer { client, copies: BTreeMap::new(), messages: 0 }
    }

    pub(super) fn stream(&mut self, vb: VbId, flags: StreamFlags, end: Seqno) -> StreamReply {
        let copy = self.copies.entry(vb).or_default();
        let reply = self.client.stream(vb, &copy.request(flags, end), None).unwrap();
        if let StreamReply::Accepted(log) = &reply {
            copy.uuid = log[0].uuid;
            copy.is_open = true;
            copy.end = None;
            copy.seen.clear();
        }
        reply
    }

    pub(super) fn stream_all(&mut self, flags: StreamFlags) {
        for vb in (0..VBUCKETS).map(VbId) {
            let reply = self.stream(vb, flags, StreamRequest::NO_END);
            assert!(matches!(reply, StreamReply::Accepted(_)), "{vb}: {reply:?}");
        }
    }

    /// Takes one message; false if none comes.
    pub(super) fn step(&mut self, patience: Duration) -> Result<bool, ClientError> {
        let copies = &mut self.copies;
        let taken = self.client.next_within(patience, |envelope, message| {
            copies.get_mut(&envelope.vbucket).expect("a stream that was asked for").take(message);
        })?;
        self.messages += u64::from(taken.is_some());
        Ok(taken.is_some())
    }

    pub(super) fn until(&mut self, what: &str, done: impl Fn(&BTreeMap<VbId, Copy>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.copies) {
            assert!(Instant::now() < deadline, "{what}: not in time");
            self.step(Duration::from_millis(100)).unwrap();
        }
    }

    pub(super) fn until_ended(&mut self) {
        self.until("all streams end", |copies| copies.values().all(|copy| !copy.is_open));
    }

    pub(super) fn documents(&self) -> Documents {
        let live = |(key, (_, value)): (&Vec<u8>, &(Seqno, Option<Vec<u8>>))| {
            value.clone().map(|value| (key.clone(), value))
        };
        self.copies.values().flat_map(|copy| copy.documents.iter().filter_map(live)).collect()
    }

    pub(super) fn markers(&self) -> BTreeSet<u32> {
        self.copies.values().flat_map(|copy| copy.markers.iter().copied()).collect()
    }
}
