//! The ceiling of a backfill: the same messages from a plain blocking writer, received by the same client, or by one that looks at nothing.
//!
//! Invariants
//! - The frames are those of a node for a vbucket's share of the documents; only addresses, keys and the number of snapshots differ.
//! - There is no flow control: a ceiling waits for nobody.
//!
//! Cost: one copy of a vbucket's frames for each connection, made before the clock starts; a stream costs one walk over the heads of its frames.
//! Does not know: nodes, statistics.

use std::io::{self, Write};
use std::net::TcpStream;
use std::ops::Range;

use ringbase::client::{ConnectOptions, Generator};
use ringbase::protocol::dcp::stream_request::encode_failover_log;
use ringbase::protocol::dcp::{
    DcpMessage, Envelope, MarkerFlags, MarkerVersion, Mutation, SnapshotMarker, StreamEndStatus,
};
use ringbase::protocol::{Datatype, Opcode, Response, Status};
use ringbase_storage::types::{Cas, FailoverEntry, Seqno, VbId, VbUuid};

use super::drain::{DrainPlan, Drained, drain};
use crate::error::BenchError;
use crate::loopback::{Frames, listen, next_request, serve};

/// Bytes of one write.
const WRITE_BYTES: usize = 256 << 10;

/// Where the vbucket of a frame is, and its tag.
const VBUCKET: Range<usize> = 6..8;
const OPAQUE: Range<usize> = 12..16;

/// The frames of one vbucket's stream.
#[derive(Debug, Clone)]
pub(super) struct StreamFrames {
    bytes: Vec<u8>,
    /// Where each frame begins.
    starts: Vec<usize>,
    items: u64,
}

impl StreamFrames {
    /// One vbucket's share of the documents.
    pub(super) fn new(generator: &Generator, vbuckets: u16) -> StreamFrames {
        let items = (generator.count() / u64::from(vbuckets.max(1))).max(1);
        let mut frames = StreamFrames { bytes: Vec::new(), starts: Vec::new(), items };
        frames.push(&DcpMessage::SnapshotMarker(SnapshotMarker {
            start: Seqno(0),
            end: Seqno(items),
            flags: MarkerFlags::MEMORY,
            version: MarkerVersion::V1,
        }));
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for index in 0..items {
            generator.document(index, &mut key, &mut value);
            frames.push(&DcpMessage::Mutation(Mutation {
                by_seqno: Seqno(index + 1),
                rev_seqno: 1,
                flags: 0,
                expiry: 0,
                lock_time: 0,
                nru: 0,
                cas: Cas(index + 1),
                datatype: Datatype::RAW,
                key: &key,
                value: &value,
            }));
        }
        frames.push(&DcpMessage::StreamEnd(StreamEndStatus::Ok));
        frames
    }

    fn push(&mut self, message: &DcpMessage<'_>) {
        self.starts.push(self.bytes.len());
        message.encode(Envelope::new(VbId(0), 0), &mut self.bytes);
    }

    /// Pieces of about [`WRITE_BYTES`], each given as the frames that begin in it.
    fn pieces(&self) -> Vec<Range<usize>> {
        let mut pieces = Vec::new();
        let (mut first, mut begin) = (0, 0);
        for (index, start) in self.starts.iter().copied().enumerate() {
            if start - begin >= WRITE_BYTES {
                pieces.push(first..index);
                (first, begin) = (index, start);
            }
        }
        pieces.push(first..self.starts.len());
        pieces
    }

    fn end_of(&self, piece: &Range<usize>) -> usize {
        self.starts.get(piece.end).copied().unwrap_or(self.bytes.len())
    }

    fn send(
        &mut self,
        pieces: &[Range<usize>],
        stream: &mut TcpStream,
        vbucket: VbId,
        opaque: u32,
    ) -> io::Result<()> {
        for piece in pieces {
            let end = self.end_of(piece);
            for start in &self.starts[piece.clone()] {
                let head = &mut self.bytes[*start..];
                head[VBUCKET].copy_from_slice(&vbucket.0.to_be_bytes());
                head[OPAQUE].copy_from_slice(&opaque.to_be_bytes());
            }
            stream.write_all(&self.bytes[self.starts[piece.start]..end])?;
        }
        Ok(())
    }

    /// For writers that say nothing else: the pieces as they are.
    pub(super) fn plain(&self) -> Frames {
        let ends = self.pieces().iter().map(|piece| self.end_of(piece)).collect();
        Frames::of(self.bytes.clone(), ends)
    }

    /// Answers like a node whose every vbucket has these documents.
    fn answer(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        let pieces = self.pieces();
        let (mut received, mut answers, mut log) = (Vec::new(), Vec::new(), Vec::new());
        encode_failover_log(&[FailoverEntry { uuid: VbUuid(1), seqno: Seqno(0) }], &mut log);
        while let Some((opcode, opaque, vbucket)) = next_request(stream, &mut received)? {
            let value = if opcode == Opcode::DCP_STREAM_REQ { &log[..] } else { &[] };
            answers.clear();
            Response::new(opcode, opaque, Status::SUCCESS).value(value).encode(&mut answers);
            stream.write_all(&answers)?;
            if opcode == Opcode::DCP_STREAM_REQ {
                self.send(&pieces, stream, vbucket, opaque)?;
            }
        }
        Ok(())
    }
}

/// The client of a real backfill against plain writers; also the CPU seconds of the writers.
///
/// # Errors
/// The system or the client.
pub(super) fn plain_node(
    frames: &StreamFrames,
    vbuckets: u16,
    connections: usize,
    cpus: &[usize],
) -> Result<(Drained, f64), BenchError> {
    let (listener, address) = listen().map_err(BenchError::system("listen on loopback"))?;
    let streams: Vec<_> = (0..vbuckets).map(|vb| (VbId(vb), Seqno(frames.items))).collect();
    // Fewer streams than connections need no more connections than streams.
    let connections = connections.min(streams.len()).max(1);
    let connect = ConnectOptions::to(address.to_string());
    let plan = DrainPlan { connect, streams: &streams, connections, buffer_bytes: 0 };
    std::thread::scope(|scope| {
        let answer = |stream: &mut TcpStream| frames.clone().answer(stream);
        let listener = &listener;
        let writers = scope.spawn(move || serve(listener, connections, cpus, answer));
        let mut drained = drain(&plan)?;
        drained.clients.clear();
        let served = writers.join().expect("the acceptor does not panic");
        let writer_cpu_seconds = served.map_err(BenchError::system("send on loopback"))?;
        drained.client_cpu_seconds = (drained.client_cpu_seconds - writer_cpu_seconds).max(0.0);
        let expected = u64::from(vbuckets) * frames.items;
        if drained.items != expected {
            let text = format!("{} of {expected} items came from a plain writer", drained.items);
            return Err(BenchError::Unsound(text));
        }
        Ok((drained, writer_cpu_seconds))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cpus, loopback};

    #[test]
    fn the_real_client_takes_a_plain_writer_for_a_node_and_counts_every_document() {
        for (documents, value_bytes, vbuckets) in [(40_000, 100, 3), (5, 10, 16)] {
            let generator = Generator::new(documents, 20, value_bytes, 3).unwrap();
            let frames = StreamFrames::new(&generator, vbuckets);
            for connections in [1, 2, 40] {
                let (drained, _) =
                    plain_node(&frames, vbuckets, connections, &cpus::allowed().unwrap()).unwrap();
                assert_eq!(drained.items, frames.items * u64::from(vbuckets));
                assert_eq!(drained.markers, u64::from(vbuckets));
                assert_eq!(drained.bytes, frames.bytes.len() as u64 * u64::from(vbuckets));
            }
        }
    }

    #[test]
    fn a_reader_that_looks_at_nothing_gets_the_same_bytes_of_a_thousand_streams() {
        let frames = StreamFrames::new(&Generator::new(20_000, 20, 100, 3).unwrap(), 1000);
        let ceiling = loopback::stream(&frames.plain(), 1000, 1, &cpus::allowed().unwrap()).unwrap();
        assert_eq!(ceiling.record_bytes, frames.bytes.len() as u64 * 1000);
    }
}
