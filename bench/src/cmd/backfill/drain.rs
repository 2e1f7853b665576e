//! Receives streams over several connections: counts, and checks no more than order and number.
//!
//! Invariants
//! - Every stream brings seqnos that rise, the last of which is its high seqno, and ends well; or the drain fails.
//! - The clock starts when all connections are open and ends with the last stream.
//!
//! Cost: a thread for each connection; of a message the head and the seqno are looked at.
//! Does not know: who sends.

use std::time::{Duration, Instant};

use ringbase::client::{ConnectOptions, Connection, DcpClient, DcpOptions};
use ringbase::protocol::dcp::{DcpMessage, MarkerFlags, StreamRequest};
use ringbase::protocol::{Frame, Opcode};
use ringbase_storage::types::{Seqno, VbId};

use crate::error::BenchError;
use crate::process::own_cpu_seconds;

/// What to receive, and how.
#[derive(Debug, Clone)]
pub(super) struct DrainPlan<'a> {
    pub(super) connect: ConnectOptions,
    /// Every vbucket with its high seqno.
    pub(super) streams: &'a [(VbId, Seqno)],
    pub(super) connections: usize,
    /// The window of flow control, 0 for none.
    pub(super) buffer_bytes: u32,
}

/// What came over all connections.
#[derive(Debug, Default)]
pub(super) struct Drained {
    /// Until the last stream had ended.
    pub(super) elapsed: Duration,
    /// Until every connection had a document.
    pub(super) first: Duration,
    pub(super) items: u64,
    /// Of these, documents of snapshots of the disk.
    pub(super) disk_items: u64,
    pub(super) markers: u64,
    /// Bytes of messages on the wire.
    pub(super) bytes: u64,
    pub(super) client_cpu_seconds: f64,
    /// They stay open, so that the node can be asked about them.
    pub(super) clients: Vec<DcpClient>,
}

/// Where a stream is.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    last: u64,
    high: u64,
    is_open: bool,
    is_disk: bool,
}

/// What one connection has received.
#[derive(Debug, Default)]
struct Receiver {
    /// By vbucket.
    places: Vec<Place>,
    open: usize,
    items: u64,
    disk_items: u64,
    markers: u64,
    first: Option<Instant>,
    /// The first thing that was wrong.
    wrong: Option<String>,
}

impl Receiver {
    fn new(streams: &[(VbId, Seqno)]) -> Receiver {
        let count = streams.iter().map(|(vbucket, _)| usize::from(vbucket.0) + 1).max().unwrap_or_default();
        let mut places = vec![Place::default(); count];
        for (vbucket, high) in streams {
            places[usize::from(vbucket.0)] = Place { high: high.0, is_open: true, ..Place::default() };
        }
        Receiver { places, open: streams.len(), ..Receiver::default() }
    }

    fn take(&mut self, frame: &Frame<'_>) {
        let vbucket = frame.vbucket();
        let Some(place) = self.places.get_mut(usize::from(vbucket.0)).filter(|place| place.is_open) else {
            return self.complain(frame, "no stream of this vbucket is open");
        };
        match frame.opcode() {
            Opcode::DCP_MUTATION => {
                let seqno = frame.extras.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
                let rises = seqno > place.last && seqno <= place.high;
                place.last = seqno;
                self.items += 1;
                self.disk_items += u64::from(place.is_disk);
                if !rises {
                    self.complain(frame, "its seqno is not above the last, or above the end");
                }
            }
            Opcode::DCP_SNAPSHOT_MARKER => {
                self.markers += 1;
                match DcpMessage::decode(frame) {
                    Ok((_, DcpMessage::SnapshotMarker(marker))) => {
                        place.is_disk = marker.flags.contains(MarkerFlags::DISK);
                    }
                    Ok(_) | Err(_) => self.complain(frame, "it cannot be read"),
                }
            }
            Opcode::DCP_STREAM_END => {
                place.is_open = false;
                self.open -= 1;
                if place.last != place.high || frame.extras != [0; 4] {
                    self.complain(frame, "it comes too early, or says that something went wrong");
                }
            }
            _ => self.complain(frame, "nobody asked for it"),
        }
    }

    #[cold]
    fn complain(&mut self, frame: &Frame<'_>, what: &str) {
        let (opcode, vbucket) = (frame.opcode(), frame.vbucket());
        self.wrong.get_or_insert_with(|| format!("{opcode} of vbucket {vbucket}: {what}"));
    }
}

/// Receives all streams.
///
/// # Errors
/// A connection, or what came is not right.
pub(super) fn drain(plan: &DrainPlan<'_>) -> Result<Drained, BenchError> {
    let count = plan.connections.min(plan.streams.len()).max(1);
    let mut opened = Vec::new();
    for number in 0..count {
        let options = DcpOptions {
            window_bytes: plan.buffer_bytes,
            noop_interval: None,
            ..DcpOptions::named(format!("ringbench:{number}"))
        };
        let client = DcpClient::open(Connection::open(&plan.connect)?, &options)?;
        let streams: Vec<_> = plan.streams.iter().skip(number).step_by(count).copied().collect();
        opened.push((client, streams));
    }
    let (cpu_before, started) = (own_cpu_seconds(), Instant::now());
    let parts: Vec<Result<_, BenchError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = opened
            .into_iter()
            .map(|(mut client, streams)| {
                scope.spawn(move || {
                    let receiver = receive(&mut client, &streams)?;
                    Ok((client, receiver))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a receiver does not panic")).collect()
    });
    let mut drained = Drained {
        elapsed: started.elapsed(),
        client_cpu_seconds: own_cpu_seconds() - cpu_before,
        ..Drained::default()
    };
    for part in parts {
        let (client, receiver) = part?;
        if let Some(first) = receiver.first {
            drained.first = drained.first.max(first - started);
        }
        drained.items += receiver.items;
        drained.disk_items += receiver.disk_items;
        drained.markers += receiver.markers;
        drained.bytes += client.message_bytes();
        drained.clients.push(client);
    }
    Ok(drained)
}

fn receive(client: &mut DcpClient, streams: &[(VbId, Seqno)]) -> Result<Receiver, BenchError> {
    let mut receiver = Receiver::new(streams);
    for (vbucket, high) in streams {
        client.ask(*vbucket, &StreamRequest { end: *high, ..StreamRequest::FROM_NOTHING })?;
    }
    while receiver.open > 0 {
        client.frames(|frame| receiver.take(frame))?;
        if receiver.first.is_none() && receiver.items > 0 {
            receiver.first = Some(Instant::now());
        }
        if let Some(wrong) = receiver.wrong.take() {
            return Err(BenchError::Unsound(wrong));
        }
    }
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringbase::protocol::dcp::{Envelope, Mutation, StreamEndStatus};
    use ringbase::protocol::{Datatype, Decoded, FrameLimits, decode_frame};
    use ringbase_storage::types::Cas;

    fn take(receiver: &mut Receiver, message: &DcpMessage<'_>) {
        let mut bytes = Vec::new();
        message.encode(Envelope::new(VbId(1), 9), &mut bytes);
        let Ok(Decoded::Frame(frame)) = decode_frame(&bytes, FrameLimits::AUTHENTICATED) else {
            panic!("no frame")
        };
        receiver.take(&frame);
    }

    fn mutation(seqno: u64) -> DcpMessage<'static> {
        DcpMessage::Mutation(Mutation {
            by_seqno: Seqno(seqno),
            rev_seqno: 1,
            flags: 0,
            expiry: 0,
            lock_time: 0,
            nru: 0,
            cas: Cas(1),
            datatype: Datatype::RAW,
            key: b"k",
            value: b"v",
        })
    }

    const END: DcpMessage<'static> = DcpMessage::StreamEnd(StreamEndStatus::Ok);

    #[test]
    fn a_stream_that_rises_to_its_end_is_right_and_counted() {
        let mut receiver = Receiver::new(&[(VbId(1), Seqno(5))]);
        for message in [mutation(2), mutation(5), END] {
            take(&mut receiver, &message);
        }
        assert_eq!((receiver.items, receiver.open, receiver.wrong), (2, 0, None));
    }

    #[test]
    fn a_stream_that_falls_back_ends_early_or_fails_is_not_right() {
        let failed = DcpMessage::StreamEnd(StreamEndStatus::StateChanged);
        for messages in [
            vec![mutation(3), mutation(3)],
            vec![mutation(6)],
            vec![mutation(4), END],
            vec![mutation(5), failed],
            vec![mutation(5), END, mutation(5)],
            vec![DcpMessage::SeqnoAdvanced(Seqno(5))],
        ] {
            let mut receiver = Receiver::new(&[(VbId(1), Seqno(5))]);
            for message in &messages {
                take(&mut receiver, message);
            }
            assert!(receiver.wrong.is_some(), "{messages:?}");
        }
    }
}
