//! The client program: threads that keep every connection's pipeline full, the same for every server.
//!
//! Each thread waits with epoll for its connections. When one has answers, the thread reads them with one call, checks them, and asks for
//! as many new things with one send.
//!
//! A closed loop: the next request is meant to go at the moment at which the answer that frees its place in the pipeline has been read.
//! Its latency counts from there until its own answer has been read, so it includes the time in which the client checks, encodes and sends
//! a burst.
//!
//! Invariants
//! - Nothing is counted before the warm-up has ended, and nothing after the end; every request that went out is answered and checked all
//!   the same.
//! - A server that brings no success for [`SILENCE_MAX`] is an error.
//!
//! Does not know: which server it talks to, cells, results.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::channel::{Channel, Encoder, Target, room_bytes};
use super::documents::{Documents, Operation, Operations};
use crate::cpus;
use crate::error::BenchError;
use crate::process::own_cpu_seconds;
use crate::recorder;

/// Longest time without any success of a thread.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// Pause after a burst in which the server said "not now".
const REFUSED_PAUSE: Duration = Duration::from_micros(500);

/// Phases of a run, in their order: nothing counts yet; everything counts; everything counts and there is something; nothing more is asked.
const WARM_UP: u8 = 0;
const MEASURE: u8 = 1;
const MEASURED: u8 = 2;
const STOP: u8 = 3;

/// Whom to ask, for what, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    /// The server.
    pub(crate) target: &'a Target,
    /// The documents.
    pub(crate) documents: &'a Documents,
    /// What to do.
    pub(crate) operations: &'a Operations,
    /// Connections in all.
    pub(crate) connections: usize,
    /// Requests under way on each.
    pub(crate) depth: usize,
    /// The CPUs of the client: a thread for each, but not more than connections.
    pub(crate) cpus: &'a [usize],
    /// What the draws are made from.
    pub(crate) seed: u64,
}

/// What was counted.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// Successes.
    pub(crate) operations: u64,
    /// Of these, GETs, whose values had the right length and beginning.
    pub(crate) gets: u64,
    /// Of these, values that were compared to the last byte.
    pub(crate) whole_values: u64,
    /// Answers that said "not now"; asked again.
    pub(crate) refused: u64,
    /// Latencies of the successes, nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Tally {
    fn new() -> Tally {
        Tally { operations: 0, gets: 0, whole_values: 0, refused: 0, latency: recorder::histogram() }
    }

    fn add(&mut self, other: &Tally) {
        self.operations += other.operations;
        self.gets += other.gets;
        self.whole_values += other.whole_values;
        self.refused += other.refused;
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
    }
}

/// A measured run.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// What was counted.
    pub(crate) tally: Tally,
    /// How long was counted.
    pub(crate) elapsed: Duration,
    /// CPU seconds of the server meanwhile.
    pub(crate) server_cpu_seconds: f64,
    /// CPU seconds of this process meanwhile.
    pub(crate) client_cpu_seconds: f64,
}

/// Runs until the operations end, and counts all.
///
/// # Errors
/// The server is gone, silent or wrong.
pub(crate) fn finish(run: &Run<'_>) -> Result<Tally, BenchError> {
    let phase = AtomicU8::new(MEASURE);
    Ok(drive(run, &phase, || Ok(()))?.1)
}

/// Runs for a warm-up, then counts for `duration`, or longer if nothing has ended by then. `server_cpu` gives the CPU seconds of the server
/// so far.
///
/// # Errors
/// The server is gone, silent or wrong, or nothing was done.
pub(crate) fn measure(
    run: &Run<'_>,
    warm_up: Duration,
    duration: Duration,
    server_cpu: impl Fn() -> Result<f64, BenchError>,
) -> Result<Measured, BenchError> {
    let phase = AtomicU8::new(WARM_UP);
    let ((elapsed, server_cpu_seconds, client_cpu_seconds), tally) = drive(run, &phase, || {
        std::thread::sleep(warm_up);
        let (server_before, client_before) = (server_cpu()?, own_cpu_seconds());
        let started = Instant::now();
        // A thread may have failed meanwhile and stopped all: then it stays stopped.
        let _ = phase.compare_exchange(WARM_UP, MEASURE, Ordering::Relaxed, Ordering::Relaxed);
        std::thread::sleep(duration);
        // Threads that had no CPU in a short time get more of it, so that what is counted was measured at all.
        while phase.load(Ordering::Relaxed) == MEASURE && started.elapsed() < SILENCE_MAX {
            std::thread::sleep(duration);
        }
        phase.store(STOP, Ordering::Relaxed);
        let elapsed = started.elapsed();
        Ok((elapsed, server_cpu()? - server_before, own_cpu_seconds() - client_before))
    })?;
    if tally.operations == 0 {
        return Err(run.target.unsound("no operation ended in the measured time"));
    }
    Ok(Measured { tally, elapsed, server_cpu_seconds, client_cpu_seconds })
}

/// Opens the connections, starts the threads, calls `during`, and waits for them.
fn drive<T>(
    run: &Run<'_>,
    phase: &AtomicU8,
    during: impl FnOnce() -> Result<T, BenchError>,
) -> Result<(T, Tally), BenchError> {
    let threads = run.cpus.len().clamp(1, run.connections.max(1));
    let mut shares: Vec<Vec<Channel>> = (0..threads).map(|_| Vec::new()).collect();
    for index in 0..run.connections {
        shares[index % threads].push(Channel::open(run.target)?);
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .zip(0_u64..)
            .map(|(channels, index)| {
                scope.spawn(move || {
                    let worked = Worker::new(run, channels, phase, index).and_then(Worker::work);
                    if worked.is_err() {
                        phase.store(STOP, Ordering::Relaxed);
                    }
                    worked
                })
            })
            .collect();
        let happened = during();
        if happened.is_err() {
            phase.store(STOP, Ordering::Relaxed);
        }
        let mut tally = Tally::new();
        for worker in workers {
            tally.add(&worker.join().expect("a client thread does not panic")?);
        }
        Ok((happened?, tally))
    })
}

/// One thread with its connections.
struct Worker<'a> {
    run: &'a Run<'a>,
    phase: &'a AtomicU8,
    channels: Vec<Channel>,
    encoder: Encoder<'a>,
    random: SmallRng,
    /// What was refused and is asked again.
    again: Vec<Operation>,
    tally: Tally,
    last_success: Instant,
}

impl<'a> Worker<'a> {
    fn new(
        run: &'a Run<'a>,
        channels: Vec<Channel>,
        phase: &'a AtomicU8,
        index: u64,
    ) -> Result<Worker<'a>, BenchError> {
        cpus::bind(run.cpus).map_err(BenchError::system("bind a thread to its CPUs"))?;
        Ok(Worker {
            run,
            phase,
            channels,
            encoder: Encoder::new(run.documents, run.target.vbuckets),
            random: SmallRng::seed_from_u64(run.seed.wrapping_add(index)),
            again: Vec::new(),
            tally: Tally::new(),
            last_success: Instant::now(),
        })
    }

    fn work(mut self) -> Result<Tally, BenchError> {
        let waits = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(unwaited)?;
        let mut room = vec![0; room_bytes(self.run.documents)];
        for (index, channel) in self.channels.iter().enumerate() {
            let token = epoll::EventData::new_u64(index as u64);
            epoll::add(&waits, channel.stream(), token, epoll::EventFlags::IN).map_err(unwaited)?;
        }
        for index in 0..self.channels.len() {
            self.fill(index, Instant::now());
            self.send(index, &waits)?;
        }
        let mut events = Vec::with_capacity(self.channels.len().max(1));
        let patience = Timespec { tv_sec: SILENCE_MAX.as_secs() as i64, tv_nsec: 0 };
        while self.channels.iter().any(|channel| channel.under_way() > 0) {
            events.clear();
            match epoll::wait(&waits, spare_capacity(&mut events), Some(&patience)) {
                Ok(0) => return Err(self.silent()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(unwaited(errno)),
            }
            let mut refused = false;
            for event in &events {
                let index = event.data.u64() as usize;
                if let Some(now) = self.receive(index, &mut room, &mut refused)? {
                    self.fill(index, now);
                }
                self.send(index, &waits)?;
            }
            if refused {
                if self.last_success.elapsed() > SILENCE_MAX {
                    return Err(self.silent());
                }
                std::thread::sleep(REFUSED_PAUSE);
            }
        }
        Ok(self.tally)
    }

    fn silent(&self) -> BenchError {
        let seconds = SILENCE_MAX.as_secs();
        self.run.target.unsound(format_args!("no request had success for {seconds} s"))
    }

    /// Takes the answers that have come.
    fn receive(
        &mut self,
        index: usize,
        room: &mut [u8],
        refused: &mut bool,
    ) -> Result<Option<Instant>, BenchError> {
        let Worker { run, phase, channels, again, tally, .. } = self;
        let counts = matches!(phase.load(Ordering::Relaxed), MEASURE | MEASURED);
        let (mut successes, mut not_now) = (0, false);
        let read = channels[index].receive(run.target, run.documents, room, |answer| {
            if answer.refused {
                again.push(answer.operation);
                not_now = true;
                tally.refused += u64::from(counts);
                return;
            }
            successes += 1;
            if counts {
                tally.gets += u64::from(matches!(answer.operation, Operation::Get(_)));
                tally.whole_values += u64::from(answer.whole);
                let nanoseconds = u64::try_from(answer.latency.as_nanos()).unwrap_or(u64::MAX);
                tally.latency.saturating_record(nanoseconds);
            }
        })?;
        *refused |= not_now;
        if let (Some(now), true) = (read, successes > 0) {
            self.last_success = now;
            if counts {
                self.tally.operations += successes;
                if self.phase.load(Ordering::Relaxed) == MEASURE {
                    // Another thread may have been quicker, or the end.
                    let _ =
                        self.phase.compare_exchange(MEASURE, MEASURED, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
        }
        Ok(read)
    }

    /// Asks until the pipeline is full again, unless the run ends.
    fn fill(&mut self, index: usize, now: Instant) {
        if self.phase.load(Ordering::Relaxed) == STOP {
            return;
        }
        let Worker { run, channels, encoder, random, again, .. } = self;
        let channel = &mut channels[index];
        while channel.under_way() < run.depth {
            let Some(operation) = again.pop().or_else(|| run.operations.next(random)) else { return };
            channel.ask(operation, now, encoder);
        }
    }

    /// Sends what was asked; if some is left, the thread also waits for the socket to take more.
    fn send(&mut self, index: usize, waits: &OwnedFd) -> Result<(), BenchError> {
        let channel = &mut self.channels[index];
        let was_blocked = channel.is_blocked();
        channel.send().map_err(BenchError::system("send to a server"))?;
        if channel.is_blocked() == was_blocked {
            return Ok(());
        }
        let out = if was_blocked { epoll::EventFlags::empty() } else { epoll::EventFlags::OUT };
        let token = epoll::EventData::new_u64(index as u64);
        epoll::modify(waits, channel.stream(), token, epoll::EventFlags::IN | out).map_err(unwaited)
    }
}

/// For `map_err`: the system refused to tell which sockets are ready.
fn unwaited(errno: rustix::io::Errno) -> BenchError {
    BenchError::System { what: "wait for a server with epoll", source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use ringbase::protocol::{Decoded, FrameLimits, Opcode, Response, Status, decode_frame};

    use super::super::choice::{KeyChoice, Mix};
    use super::*;

    /// A server that stores what it is given, on a thread for each connection; `fate` decides the status of each request by its number on
    /// its connection, `None` hangs up.
    fn server(fate: fn(u64) -> Option<Status>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                // A client that fails closes with answers unread.
                std::thread::spawn(move || drop(talk(stream, fate)));
            }
        });
        address
    }

    fn talk(mut stream: TcpStream, fate: fn(u64) -> Option<Status>) -> std::io::Result<()> {
        let mut stored: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        let (mut received, mut room, mut number) = (Vec::new(), vec![0; 64 << 10], 0);
        loop {
            let read = stream.read(&mut room)?;
            if read == 0 {
                return Ok(());
            }
            received.extend_from_slice(&room[..read]);
            let (mut consumed, mut out) = (0, Vec::new());
            while let Ok(Decoded::Frame(frame)) =
                decode_frame(&received[consumed..], FrameLimits::AUTHENTICATED)
            {
                let Some(status) = fate(number) else { return Ok(()) };
                number += 1;
                let mut value = Vec::new();
                if frame.opcode() == Opcode::SET && status == Status::SUCCESS {
                    stored.insert(frame.key.to_vec(), frame.value.to_vec());
                } else if frame.opcode() == Opcode::GET && status == Status::SUCCESS {
                    value = stored.get(frame.key).cloned().unwrap_or_default();
                }
                Response::new(frame.opcode(), frame.opaque(), status).value(&value).encode(&mut out);
                consumed += frame.frame_bytes();
            }
            received.drain(..consumed);
            stream.write_all(&out)?;
        }
    }

    fn target(fate: fn(u64) -> Option<Status>) -> Target {
        Target { name: "test", address: server(fate), bucket: None, vbuckets: 1 }
    }

    fn run<'a>(
        target: &'a Target,
        documents: &'a Documents,
        operations: &'a Operations,
        cpus: &'a [usize],
    ) -> Run<'a> {
        Run { target, documents, operations, connections: 1, depth: 16, cpus, seed: 1 }
    }

    /// Sixteen such values are more than the kernel takes at once: the client has to read answers while it still has something to send.
    #[test]
    fn documents_that_do_not_fit_the_socket_are_all_stored() {
        let target = target(|_| Some(Status::SUCCESS));
        let (documents, cpus) = (Documents::new(64, 500_000, 1).unwrap(), cpus::allowed().unwrap());
        let load = Operations::load(0..64);
        let tally = finish(&run(&target, &documents, &load, &cpus)).unwrap();
        assert_eq!((tally.operations, tally.refused, tally.latency.len()), (64, 0, 64));
    }

    #[test]
    fn what_is_refused_for_now_is_counted_and_asked_again() {
        let fate =
            |number: u64| Some(if number.is_multiple_of(3) { Status::ETMPFAIL } else { Status::SUCCESS });
        let target = target(fate);
        let (documents, cpus) = (Documents::new(100, 40, 1).unwrap(), cpus::allowed().unwrap());
        let load = Operations::load(0..100);
        let run = Run { connections: 3, ..run(&target, &documents, &load, &cpus) };
        let tally = finish(&run).unwrap();
        assert_eq!(tally.operations, 100);
        assert!((34..=60).contains(&tally.refused), "{}", tally.refused);
    }

    #[test]
    fn a_miss_and_a_server_that_hangs_up_fail_the_run() {
        let (documents, cpus) = (Documents::new(100, 40, 1).unwrap(), cpus::allowed().unwrap());
        let gets = Operations::random(&documents, Mix::Get, KeyChoice::Uniform);
        let times = (Duration::from_millis(1), Duration::from_millis(20));
        // Nothing was stored, so the first value is empty; the second one is asked for noops until it hangs up.
        let empty = target(|_| Some(Status::SUCCESS));
        let error =
            measure(&run(&empty, &documents, &gets, &cpus), times.0, times.1, || Ok(0.0)).unwrap_err();
        assert!(error.to_string().contains("not the document's"), "{error}");

        let noops = Operations::random(&documents, Mix::Noop, KeyChoice::Uniform);
        let short = target(|number| (number < 100).then_some(Status::SUCCESS));
        let run = run(&short, &documents, &noops, &cpus);
        let error = measure(&run, times.0, Duration::from_millis(200), || Ok(0.0)).unwrap_err();
        assert!(matches!(&error, BenchError::Unsound(_) | BenchError::System { .. }), "{error}");
    }

    #[test]
    fn a_measurement_counts_what_ended_in_its_time_and_no_more() {
        let target = target(|_| Some(Status::SUCCESS));
        let (documents, cpus) = (Documents::new(100, 40, 1).unwrap(), cpus::allowed().unwrap());
        let noops = Operations::random(&documents, Mix::Noop, KeyChoice::Uniform);
        let run = Run { connections: 5, ..run(&target, &documents, &noops, &cpus) };
        let duration = Duration::from_millis(100);
        let measured = measure(&run, Duration::from_millis(20), duration, || Ok(0.0)).unwrap();
        assert!(measured.elapsed >= duration);
        assert!(measured.tally.operations > 0 && measured.tally.gets == 0);
        assert_eq!(measured.tally.latency.len(), measured.tally.operations);
    }
}
