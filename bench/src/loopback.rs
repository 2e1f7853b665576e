//! Ceilings of a scan: the same frames from a plain blocking writer, read by the same client, or by one that looks at nothing. The ceilings of
//! other commands use the writers, too.
//!
//! Invariants
//! - The frames are byte for byte what a node sends for a key-only scan with this buffer size; only tags and keys differ.
//! - Writers are pinned to the CPUs that the node's cores are pinned to, readers are free, as in a scan.
//!
//! Cost: one copy of the frames for each connection, made before the clock starts.
//!
//! Does not know: nodes, statistics.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ringbase::client::{ConnectOptions, RecordCounts, ScanAllOptions, ScanPlan, ScanRecord, scan_all};
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase::protocol::scan_records::RecordKind;
use ringbase::protocol::{Decoded, FrameLimits, Opcode, Response, Status, decode_frame};
use ringbase_storage::types::VbId;

use crate::cpus;
use crate::error::BenchError;
use crate::process::{own_cpu_seconds, thread_cpu_seconds};

/// Room for one read, as large as the client's.
const READ_BYTES: usize = 256 << 10;

/// Where the tag of a frame is.
const OPAQUE: std::ops::Range<usize> = 12..16;

/// The responses to one continue without limits.
#[derive(Debug, Clone)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    /// Where each frame ends.
    ends: Vec<usize>,
}

impl Frames {
    /// Cuts records, whose ends are `record_ends`, into frames that are sent at `send_bytes` bytes of records.
    pub(crate) fn new(records: &[u8], record_ends: &[usize], send_bytes: usize) -> Frames {
        let mut frames =
            Frames { bytes: Vec::with_capacity(records.len() + records.len() / 64), ends: Vec::new() };
        let mut start = 0;
        for end in record_ends.iter().copied() {
            if end == records.len() {
                frames.push(&records[start..end], Status::RANGE_SCAN_COMPLETE);
            } else if end - start >= send_bytes {
                frames.push(&records[start..end], Status::SUCCESS);
                start = end;
            }
        }
        frames
    }

    /// Frames that are ready, in pieces that are sent with one write each.
    pub(crate) fn of(bytes: Vec<u8>, ends: Vec<usize>) -> Frames {
        Frames { bytes, ends }
    }

    fn push(&mut self, records: &[u8], status: Status) {
        let extras = RecordKind::Keys.encode();
        Response::new(Opcode::RANGE_SCAN_CONTINUE, 0, status)
            .extras(&extras)
            .value(records)
            .encode(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    fn send(&mut self, stream: &mut TcpStream, opaque: u32) -> io::Result<()> {
        let mut start = 0;
        for end in self.ends.iter().copied() {
            let frame = &mut self.bytes[start..end];
            frame[OPAQUE].copy_from_slice(&opaque.to_be_bytes());
            stream.write_all(frame)?;
            start = end;
        }
        Ok(())
    }
}

/// What a ceiling was measured as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ceiling {
    /// From the first request to the last byte.
    pub(crate) elapsed: Duration,
    /// Records, their bytes on the wire without heads.
    pub(crate) records: RecordCounts,
    /// Bytes of records on the wire.
    pub(crate) record_bytes: u64,
    /// CPU seconds of the writers.
    pub(crate) writer_cpu_seconds: f64,
    /// CPU seconds of the readers.
    pub(crate) reader_cpu_seconds: f64,
}

/// A plain writer for every connection; gives back the CPU seconds of all when the connections are closed.
///
/// # Errors
/// Those of the system and of `talk`.
pub(crate) fn serve(
    listener: &TcpListener,
    connections: usize,
    cpus: &[usize],
    talk: impl Fn(&mut TcpStream) -> io::Result<()> + Sync,
) -> io::Result<f64> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for index in 0..connections {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let (talk, cpu) = (&talk, cpus[index % cpus.len()]);
            threads.push(scope.spawn(move || {
                cpus::bind(&[cpu])?;
                let before = thread_cpu_seconds();
                talk(&mut stream)?;
                Ok::<f64, io::Error>(thread_cpu_seconds() - before)
            }));
        }
        let ended = threads.into_iter().map(|thread| thread.join().expect("a writer does not panic"));
        ended.sum()
    })
}

/// The next request of a client: opcode, tag and vbucket; `None` when the client has closed. `received` keeps what came behind it.
///
/// # Errors
/// Those of the system; `InvalidData` for bytes that are no frames.
pub(crate) fn next_request(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
) -> io::Result<Option<(Opcode, u32, VbId)>> {
    let mut room = [0; 4096];
    loop {
        match decode_frame(received, FrameLimits::AUTHENTICATED) {
            Ok(Decoded::Frame(frame)) => {
                let request = (frame.opcode(), frame.opaque(), frame.vbucket());
                let frame_bytes = frame.frame_bytes();
                received.drain(..frame_bytes);
                return Ok(Some(request));
            }
            Ok(Decoded::Incomplete { .. }) => {}
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
        match stream.read(&mut room) {
            Ok(0) => return Ok(None),
            Ok(count) => received.extend_from_slice(&room[..count]),
            // The client closes with unread bytes only after an error of its own, which it reports.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Answers requests like a node whose every vbucket has the keys of `frames`.
fn answer(stream: &mut TcpStream, frames: &mut Frames) -> io::Result<()> {
    let (mut received, mut answers) = (Vec::new(), Vec::new());
    while let Some((opcode, opaque, _)) = next_request(stream, &mut received)? {
        if opcode == Opcode::RANGE_SCAN_CONTINUE {
            frames.send(stream, opaque)?;
            continue;
        }
        let id = [7; 16];
        let value = if opcode == Opcode::RANGE_SCAN_CREATE { &id[..] } else { &[] };
        answers.clear();
        Response::new(opcode, opaque, Status::SUCCESS).value(value).encode(&mut answers);
        stream.write_all(&answers)?;
    }
    Ok(())
}

/// A listener on loopback.
///
/// # Errors
/// The system.
pub(crate) fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The client of a real scan, which checks and counts every record, against plain writers.
///
/// # Errors
/// The system or the client.
pub(crate) fn plain_node(
    frames: &Frames,
    vbuckets: u16,
    connections: usize,
    cpus: &[usize],
) -> Result<Ceiling, BenchError> {
    let (listener, address) = listen().map_err(BenchError::system("listen on loopback"))?;
    let options = ScanAllOptions {
        connect: ConnectOptions::to(address.to_string()),
        connections,
        vbuckets: Some((0..vbuckets).map(VbId).collect()),
        plan: ScanPlan::new(RangeScanCreate { key_only: true, ..RangeScanCreate::default() }),
    };
    std::thread::scope(|scope| {
        let writers =
            scope.spawn(|| serve(&listener, connections, cpus, |stream| answer(stream, &mut frames.clone())));
        let cpu_before = own_cpu_seconds();
        let scanned = scan_all(&options, |_| |_: VbId, _: ScanRecord<'_>| Ok(()))?;
        let cpu = own_cpu_seconds() - cpu_before;
        let served = writers.join().expect("the acceptor does not panic");
        let writer_cpu_seconds = served.map_err(BenchError::system("send on loopback"))?;
        Ok(Ceiling {
            elapsed: scanned.total.elapsed,
            records: scanned.total.counts.records,
            record_bytes: scanned.total.counts.record_bytes,
            writer_cpu_seconds,
            reader_cpu_seconds: (cpu - writer_cpu_seconds).max(0.0),
        })
    })
}

/// Readers that look at nothing against plain writers: what loopback itself takes.
///
/// # Errors
/// The system.
pub(crate) fn stream(
    frames: &Frames,
    vbuckets: u16,
    connections: usize,
    cpus: &[usize],
) -> Result<Ceiling, BenchError> {
    let (listener, address) = listen().map_err(BenchError::system("listen on loopback"))?;
    let share = |index: usize| {
        let (vbuckets, connections) = (usize::from(vbuckets), connections.max(1));
        vbuckets / connections + usize::from(index < vbuckets % connections)
    };
    let run = || -> io::Result<Ceiling> {
        std::thread::scope(|scope| {
            let writers = scope.spawn(|| {
                serve(&listener, connections, cpus, |stream| {
                    let mut frames = frames.clone();
                    let mut times = [0; 4];
                    stream.read_exact(&mut times)?;
                    (0..u32::from_be_bytes(times)).try_for_each(|_| frames.send(stream, 0))
                })
            });
            let mut sockets = Vec::new();
            for _ in 0..connections {
                sockets.push(TcpStream::connect(address)?);
            }
            let started = Instant::now();
            let readers: Vec<_> = sockets
                .into_iter()
                .enumerate()
                .map(|(index, mut socket)| {
                    let times = share(index);
                    scope.spawn(move || -> io::Result<f64> {
                        let before = thread_cpu_seconds();
                        let mut room = vec![0; READ_BYTES];
                        socket.write_all(&(times as u32).to_be_bytes())?;
                        let mut left = times * frames.bytes.len();
                        while left > 0 {
                            match socket.read(&mut room)? {
                                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                                count => left -= count,
                            }
                        }
                        Ok(thread_cpu_seconds() - before)
                    })
                })
                .collect();
            let mut reader_cpu_seconds = 0.0;
            for reader in readers {
                reader_cpu_seconds += reader.join().expect("a reader does not panic")?;
            }
            let elapsed = started.elapsed();
            let writer_cpu_seconds = writers.join().expect("the acceptor does not panic")?;
            Ok(Ceiling {
                elapsed,
                records: RecordCounts::default(),
                record_bytes: u64::from(vbuckets) * frames.bytes.len() as u64,
                writer_cpu_seconds,
                reader_cpu_seconds,
            })
        })
    };
    run().map_err(BenchError::system("send on loopback"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::key_records;
    use ringbase::client::Generator;

    fn frames(send_bytes: usize) -> (Frames, usize) {
        let generator = Generator::new(8_000, 100, 0, 3).unwrap();
        let (records, ends) = key_records(&generator, 8);
        (Frames::new(&records, &ends, send_bytes), records.len())
    }

    #[test]
    fn frames_are_cut_where_a_node_would_send_and_hold_every_record() {
        for send_bytes in [1, 1000, 8192, 1 << 20] {
            let (frames, record_bytes) = frames(send_bytes);
            let (mut rest, mut total, mut last) = (&frames.bytes[..], 0, None);
            for _ in &frames.ends {
                let Ok(Decoded::Frame(frame)) = decode_frame(rest, FrameLimits::AUTHENTICATED) else {
                    panic!("no frame")
                };
                assert!(frame.value.len() < send_bytes + 101, "{send_bytes}");
                total += frame.value.len();
                last = Some(frame.status());
                rest = &rest[frame.frame_bytes()..];
            }
            assert_eq!((total, last, rest.len()), (record_bytes, Some(Status::RANGE_SCAN_COMPLETE), 0));
        }
    }

    #[test]
    fn the_real_client_takes_a_plain_writer_for_a_node_and_counts_every_key() {
        let (frames, record_bytes) = frames(8192);
        let cpus = cpus::allowed().unwrap();
        for connections in [1, 3] {
            let ceiling = plain_node(&frames, 5, connections, &cpus).unwrap();
            assert_eq!(ceiling.records.records, 5_000);
            assert_eq!(ceiling.record_bytes, 5 * record_bytes as u64);
        }
    }

    #[test]
    fn a_plain_stream_brings_every_byte() {
        let (frames, _) = frames(8192);
        let ceiling = stream(&frames, 5, 2, &cpus::allowed().unwrap()).unwrap();
        assert_eq!(ceiling.record_bytes, 5 * frames.bytes.len() as u64);
    }
}
