//! The network side over real loopback sockets, with one and two cores.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::core::doorbell::Doorbell;
use crate::core::executor::{cpus_allowed, start};
use crate::core::socket::bind_all;
use crate::core::{CoreId, CoreSettings, CoreThread, host};
use crate::protocol::frame::Decoded;
use crate::protocol::{FrameLimits, Opcode, Request, Response, Status, decode_frame};

/// Get with the key in the answer.
const GETK: Opcode = Opcode(0x0c);

/// What the test service has seen.
#[derive(Default)]
struct Seen {
    connected: AtomicUsize,
    disconnected: AtomicUsize,
    executed: AtomicUsize,
    pushed: AtomicUsize,
    unsent_bytes_max: AtomicUsize,
}

/// NOOP: answered at once. GETK: at once with 1,000 bytes. GET: after as many ms as the key says. SET: with the length of the value. APPEND: alone, after
/// 20 ms. QUIT: and close. RANGE_SCAN_CONTINUE: as many frames of as many bytes as the value says ("frames bytes").
/// VERSION: panics. STAT: is forgotten. HELLO: authenticates.
struct TestService {
    seen: Arc<Seen>,
    authenticated: bool,
}

impl Service for TestService {
    type Session = ();

    fn connected(&self, connection: &Rc<Connection>) -> Rc<()> {
        self.seen.connected.fetch_add(1, Ordering::SeqCst);
        connection.set_authenticated(self.authenticated);
        Rc::new(())
    }

    fn order(&self, _session: &Rc<()>, frame: &Frame<'_>) -> Order {
        if frame.opcode() == Opcode::APPEND { Order::Alone } else { Order::Free }
    }

    fn execute(&self, _session: &Rc<()>, ticket: Ticket, frame: &Frame<'_>) {
        self.seen.executed.fetch_add(1, Ordering::SeqCst);
        let unsent = ticket.connection().unsent_bytes();
        self.seen.unsent_bytes_max.fetch_max(unsent, Ordering::SeqCst);
        let (opcode, opaque) = (frame.opcode(), frame.opaque());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let answer = move |value: &[u8], out: &mut Vec<u8>| {
            Response::new(opcode, opaque, Status::SUCCESS).value(value).encode(out);
        };
        match opcode {
            Opcode::NOOP => ticket.reply(|out| answer(b"", out)),
            GETK => ticket.reply(|out| answer(&[3; 1000], out)),
            Opcode::HELLO => {
                ticket.connection().set_authenticated(true);
                ticket.reply(|out| answer(b"", out));
            }
            Opcode::SET => {
                let len = frame.value.len().to_string();
                ticket.reply(|out| answer(len.as_bytes(), out));
            }
            Opcode::GET | Opcode::APPEND => {
                let ms = text(frame.key).parse().unwrap();
                host::spawn("late answer", async move {
                    host::sleep(Duration::from_millis(ms)).await;
                    ticket.reply(|out| answer(b"late", out));
                });
            }
            Opcode::QUIT => ticket.reply_and_close(|out| answer(b"", out)),
            Opcode::RANGE_SCAN_CONTINUE => {
                let plan = text(frame.value);
                let (frames, bytes) = plan.split_once(' ').unwrap();
                let (frames, bytes): (usize, usize) = (frames.parse().unwrap(), bytes.parse().unwrap());
                let seen = Arc::clone(&self.seen);
                let stream = ticket.stream();
                host::spawn("stream", async move {
                    let mut before: Option<Pushed> = None;
                    for _ in 0..frames {
                        let mut out = Vec::new();
                        answer(&vec![5; bytes], &mut out);
                        let pushed = stream.push(Bytes::from(out));
                        seen.pushed.fetch_add(1, Ordering::SeqCst);
                        if let Some(before) = before.replace(pushed)
                            && before.await.is_err()
                        {
                            return;
                        }
                    }
                    stream.finish(|out| answer(b"end", out));
                });
            }
            Opcode::VERSION => panic!("on purpose"),
            _ => drop(ticket),
        }
    }

    fn response(&self, _session: &Rc<()>, _frame: &Frame<'_>) {}

    fn disconnected(&self, _session: &Rc<()>, _connection: &Rc<Connection>) {
        self.seen.disconnected.fetch_add(1, Ordering::SeqCst);
    }
}

/// A node that only has a network side.
struct TestNode {
    address: SocketAddr,
    seen: Arc<Seen>,
    admission: Arc<Admission>,
    stops: Vec<Arc<Doorbell>>,
    cores: Vec<CoreThread<()>>,
}

impl TestNode {
    fn start(cores: usize, settings: &NetSettings, authenticated: bool) -> TestNode {
        let bound = bind_all("127.0.0.1:0".parse().unwrap(), cores).unwrap();
        let address = bound[0].address();
        let seen = Arc::new(Seen::default());
        let admission = Admission::new(10, 5);
        let cpus = cpus_allowed().unwrap();
        let mut stops = Vec::new();
        let cores = bound
            .into_iter()
            .enumerate()
            .map(|(index, bound)| {
                let stop = Arc::new(Doorbell::new().unwrap());
                stops.push(Arc::clone(&stop));
                let (seen, admission, settings) =
                    (Arc::clone(&seen), Arc::clone(&admission), settings.clone());
                let core = CoreId(index as u16);
                let cpu = cpus[index % cpus.len()];
                let body = move || async move {
                    let service = Rc::new(TestService { seen, authenticated });
                    let net = Net::start(core, bound, service, settings, admission).unwrap();
                    stop.waiter().unwrap().wait().await;
                    net.stop_accepting().await;
                    net.close_all(Duration::from_secs(20)).await;
                };
                start(core, cpu, &CoreSettings::default(), body).unwrap()
            })
            .collect();
        TestNode { address, seen, admission, stops, cores }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn stop(self) {
        for stop in &self.stops {
            stop.ring();
        }
        for core in self.cores {
            core.join().unwrap();
        }
        assert_eq!(self.admission.connections(), 0);
        let seen = &self.seen;
        assert_eq!(seen.connected.load(Ordering::SeqCst), seen.disconnected.load(Ordering::SeqCst));
    }

    /// Waits until `count` connections have been reported gone; returns how long that took.
    fn wait_disconnected(&self, count: usize) -> Duration {
        let started = Instant::now();
        while self.seen.disconnected.load(Ordering::SeqCst) < count {
            assert!(started.elapsed() < Duration::from_secs(60), "the disconnect was never noticed");
            std::thread::sleep(Duration::from_millis(1));
        }
        started.elapsed()
    }
}

fn request(opcode: Opcode, opaque: u32, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Request::new(opcode).opaque(opaque).key(key).value(value).encode(&mut bytes).unwrap();
    bytes
}

/// Reads frames until the stream ends or `count` have come; returns (opaque, value length) of each.
fn read_frames(stream: &mut TcpStream, count: usize) -> Vec<(u32, usize)> {
    let (mut buffer, mut frames) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 256 << 10];
    let mut used = 0;
    while frames.len() < count {
        while let Ok(Decoded::Frame(frame)) = decode_frame(&buffer[used..], FrameLimits::AUTHENTICATED) {
            frames.push((frame.opaque(), frame.value.len()));
            used += frame.frame_bytes();
        }
        buffer.drain(..used);
        used = 0;
        if frames.len() >= count {
            break;
        }
        match stream.read(&mut chunk).unwrap() {
            0 => break,
            read => buffer.extend_from_slice(&chunk[..read]),
        }
    }
    frames
}

/// Waits until a counter has moved and then not for half a second.
fn when_stable(counter: &AtomicUsize) -> usize {
    let mut before = 0;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        match counter.load(Ordering::SeqCst) {
            now if now > 0 && now == before => return now,
            now => before = now,
        }
    }
}

fn on_one_and_two_cores(test: impl Fn(usize)) {
    for cores in [1, 2] {
        test(cores);
    }
}

#[test]
fn pipelined_requests_split_anywhere_are_all_answered_in_order() {
    const COUNT: u32 = 10_000;
    on_one_and_two_cores(|cores| {
        let node = TestNode::start(cores, &NetSettings::default(), true);
        for seed in 0..4 {
            let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
            let stream = node.connect();
            let mut sending = stream.try_clone().unwrap();
            let sender = std::thread::spawn(move || {
                let bytes: Vec<u8> =
                    (0..COUNT).flat_map(|opaque| request(Opcode::NOOP, opaque, b"", b"")).collect();
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let len_max = 1usize << random.random_range(1..16);
                    let len = random.random_range(1..=len_max).min(rest.len());
                    sending.write_all(&rest[..len]).unwrap();
                    rest = &rest[len..];
                }
            });
            let mut stream = stream;
            let frames = read_frames(&mut stream, COUNT as usize);
            assert!(frames.into_iter().eq((0..COUNT).map(|opaque| (opaque, 0))), "seed {seed}");
            sender.join().unwrap();
        }
        node.stop();
    });
}

#[test]
fn answers_that_are_ready_out_of_order_leave_in_request_order() {
    on_one_and_two_cores(|cores| {
        let node = TestNode::start(cores, &NetSettings::default(), true);
        let mut stream = node.connect();
        let mut bytes = Vec::new();
        for opaque in 0..50u32 {
            let ms = (50 - opaque).to_string();
            bytes.extend(request(Opcode::GET, opaque, ms.as_bytes(), b""));
            bytes.extend(request(Opcode::NOOP, 1000 + opaque, b"", b""));
        }
        stream.write_all(&bytes).unwrap();
        let mut frames = read_frames(&mut stream, 1);
        assert_eq!(node.seen.executed.load(Ordering::SeqCst), 100, "they waited for each other");
        let left = 100 - frames.len();
        frames.extend(read_frames(&mut stream, left));
        let expected = (0..50).flat_map(|opaque| [(opaque, 4), (1000 + opaque, 0)]);
        assert!(frames.into_iter().eq(expected));
        node.stop();
    });
}

/// Each of the first three takes 30 ms; together they take three times that.
#[test]
fn request_that_must_run_alone_waits_and_makes_others_wait() {
    let node = TestNode::start(1, &NetSettings::default(), true);
    let mut stream = node.connect();
    let requests = [
        request(Opcode::GET, 1, b"30", b""),
        request(Opcode::APPEND, 2, b"30", b""),
        request(Opcode::APPEND, 3, b"30", b""),
        request(Opcode::NOOP, 4, b"", b""),
    ];
    let started = Instant::now();
    stream.write_all(&requests.concat()).unwrap();
    let frames = read_frames(&mut stream, 4);
    assert_eq!(frames, [(1, 4), (2, 4), (3, 4), (4, 0)]);
    assert!(started.elapsed() >= Duration::from_millis(90), "they ran at the same time");
    node.stop();
}

#[test]
fn peer_that_never_reads_is_not_served_further_and_goes_on_when_it_reads() {
    const COUNT: u32 = 20_000;
    let settings = NetSettings { unsent_bytes_max: 64 << 10, ..NetSettings::default() };
    let node = TestNode::start(1, &settings, true);
    let stream = node.connect();
    let mut sending = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for opaque in 0..COUNT {
            sending.write_all(&request(GETK, opaque, b"", b"")).unwrap();
            sending.write_all(&request(Opcode::NOOP, opaque, b"", b"")).unwrap();
        }
    });
    let executed = when_stable(&node.seen.executed);
    assert!(executed < 2 * COUNT as usize, "the kernel took all answers");
    let held = node.seen.unsent_bytes_max.load(Ordering::SeqCst);
    assert!(held <= settings.unsent_bytes_max + 1024 + 24, "{held} bytes held");
    let mut stream = stream;
    let frames = read_frames(&mut stream, 2 * COUNT as usize);
    assert!(frames.into_iter().eq((0..COUNT).flat_map(|opaque| [(opaque, 1000), (opaque, 0)])));
    sender.join().unwrap();
    node.stop();
}

/// The reader sends the answers of a burst until the kernel refuses; then the writer waits while further bursts are
/// executed and other tasks finish answers.
#[test]
fn answers_behind_a_send_that_the_kernel_took_in_part_keep_their_order() {
    const COUNT: u32 = 12_000;
    let settings =
        NetSettings { unsent_bytes_max: 64 << 20, in_flight_max: 1 << 20, ..NetSettings::default() };
    let node = TestNode::start(1, &settings, true);
    let mut stream = node.connect();
    let is_late = |opaque: u32| opaque % 100 == 7;
    for burst in 0..COUNT / 1000 {
        let bytes: Vec<u8> = (burst * 1000..(burst + 1) * 1000)
            .flat_map(|opaque| {
                let (opcode, key) = if is_late(opaque) { (Opcode::GET, &b"1"[..]) } else { (GETK, &b""[..]) };
                request(opcode, opaque, key, b"")
            })
            .collect();
        stream.write_all(&bytes).unwrap();
    }
    assert_eq!(when_stable(&node.seen.executed), COUNT as usize);
    let held = node.seen.unsent_bytes_max.load(Ordering::SeqCst);
    assert!(held > 1 << 20, "the kernel took nearly everything: {held} bytes were left");
    let frames = read_frames(&mut stream, COUNT as usize);
    let expected = (0..COUNT).map(|opaque| (opaque, if is_late(opaque) { 4 } else { 1000 }));
    assert!(frames.into_iter().eq(expected));
    node.stop();
}

#[test]
fn streams_keep_two_buffers_in_flight_to_a_peer_that_never_reads() {
    let node = TestNode::start(1, &NetSettings::default(), true);
    let mut stream = node.connect();
    stream.write_all(&request(Opcode::RANGE_SCAN_CONTINUE, 1, b"", b"100 1000000")).unwrap();
    let pushed = when_stable(&node.seen.pushed);
    assert!(pushed < 20, "{pushed} buffers of 1 MB were taken from the stream");
    let frames = read_frames(&mut stream, 101);
    assert_eq!(frames.len(), 101);
    assert_eq!(frames.iter().map(|(_, len)| len).sum::<usize>(), 100 * 1_000_000 + 3);
    node.stop();
}

#[test]
fn large_and_small_frames_of_a_burst_arrive_whole() {
    on_one_and_two_cores(|cores| {
        let node = TestNode::start(cores, &NetSettings::default(), true);
        let stream = node.connect();
        let lens = [0, 1, 4000, 65_536, 3, 1 << 20, 5, 20 << 20, 17, 300_000, 0];
        let mut sending = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            for (opaque, len) in (0..).zip(lens) {
                sending.write_all(&request(Opcode::SET, opaque, b"k", &vec![9; len])).unwrap();
            }
        });
        let mut stream = stream;
        let frames = read_frames(&mut stream, lens.len());
        let expected = (0..).zip(lens).map(|(opaque, len)| (opaque, len.to_string().len()));
        assert!(frames.into_iter().eq(expected));
        sender.join().unwrap();
        node.stop();
    });
}

/// Closing with unread bytes sends RST, closing without sends FIN: both while a stream is running, with the peer not
/// reading, and with further requests unread by the node.
#[test]
fn disconnect_is_noticed_promptly_while_streaming() {
    on_one_and_two_cores(|cores| {
        for extra_requests in [0, 100_000] {
            for reads_some in [false, true] {
                let node = TestNode::start(cores, &NetSettings::default(), true);
                let mut stream = node.connect();
                stream.write_all(&request(Opcode::RANGE_SCAN_CONTINUE, 1, b"", b"100000 100000")).unwrap();
                stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
                for opaque in 0..extra_requests {
                    if stream.write_all(&request(Opcode::NOOP, opaque, b"", b"")).is_err() {
                        break;
                    }
                }
                if reads_some {
                    read_frames(&mut stream, 10);
                }
                std::thread::sleep(Duration::from_millis(50));
                assert_eq!(node.seen.disconnected.load(Ordering::SeqCst), 0);
                drop(stream);
                let took = node.wait_disconnected(1);
                assert!(took < Duration::from_secs(10), "noticed after {took:?}");
                node.stop();
            }
        }
    });
}

#[test]
fn closing_one_side_while_streaming_counts_as_disconnect() {
    let node = TestNode::start(1, &NetSettings::default(), true);
    let mut stream = node.connect();
    stream.write_all(&request(Opcode::RANGE_SCAN_CONTINUE, 1, b"", b"100000 100000")).unwrap();
    read_frames(&mut stream, 2);
    stream.shutdown(Shutdown::Write).unwrap();
    let took = node.wait_disconnected(1);
    assert!(took < Duration::from_secs(10), "noticed after {took:?}");
    node.stop();
}

#[test]
fn half_closed_peer_gets_every_answer_then_the_end() {
    on_one_and_two_cores(|cores| {
        let node = TestNode::start(cores, &NetSettings::default(), true);
        let mut stream = node.connect();
        let mut bytes = Vec::new();
        for opaque in 0..5000 {
            bytes.extend(request(Opcode::NOOP, opaque, b"", b""));
        }
        bytes.extend(request(Opcode::GET, 5000, b"50", b""));
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let frames = read_frames(&mut stream, usize::MAX);
        assert_eq!(frames.len(), 5001);
        assert_eq!(frames.last(), Some(&(5000, 4)));
        node.stop();
    });
}

#[test]
fn quit_is_answered_and_nothing_after_it_is_executed() {
    let node = TestNode::start(1, &NetSettings::default(), true);
    let mut stream = node.connect();
    let requests = [
        request(Opcode::GET, 1, b"20", b""),
        request(Opcode::QUIT, 2, b"", b""),
        request(Opcode::NOOP, 3, b"", b""),
    ];
    stream.write_all(&requests.concat()).unwrap();
    assert_eq!(read_frames(&mut stream, usize::MAX), [(1, 4), (2, 0)]);
    assert_eq!(node.seen.executed.load(Ordering::SeqCst), 2);
    node.stop();
}

#[test]
fn panic_and_forgotten_answer_end_their_connection_only() {
    let node = TestNode::start(1, &NetSettings::default(), true);
    let mut other = node.connect();
    for opcode in [Opcode::VERSION, Opcode::STAT] {
        let mut stream = node.connect();
        stream.write_all(&request(opcode, 1, b"", b"")).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
        other.write_all(&request(Opcode::NOOP, 1, b"", b"")).unwrap();
        assert_eq!(read_frames(&mut other, 1), [(1, 0)]);
    }
    drop(other);
    node.stop();
}

#[test]
fn garbage_closes_the_connection_after_the_answers_owed() {
    let node = TestNode::start(1, &NetSettings::default(), true);
    let mut stream = node.connect();
    let requests = [request(Opcode::NOOP, 1, b"", b""), request(Opcode::GET, 2, b"10", b""), vec![b'G'; 100]];
    stream.write_all(&requests.concat()).unwrap();
    assert_eq!(read_frames(&mut stream, usize::MAX), [(1, 0), (2, 4)]);
    node.stop();
}

#[test]
fn unauthenticated_connection_is_limited_in_frame_size_until_it_authenticates() {
    let node = TestNode::start(1, &NetSettings::default(), false);
    let large = request(Opcode::SET, 2, b"k", &vec![1; 17 << 10]);
    let mut stream = node.connect();
    stream.write_all(&[request(Opcode::NOOP, 1, b"", b""), large.clone()].concat()).unwrap();
    assert_eq!(read_frames(&mut stream, usize::MAX), [(1, 0)]);
    let mut stream = node.connect();
    stream.write_all(&[request(Opcode::HELLO, 1, b"", b""), large].concat()).unwrap();
    assert_eq!(read_frames(&mut stream, 2), [(1, 0), (2, 5)]);
    drop(stream);
    node.stop();
}

#[test]
fn connection_that_does_not_authenticate_in_time_is_closed() {
    let settings = NetSettings { handshake_timeout: Duration::from_secs(3), ..NetSettings::default() };
    let node = TestNode::start(1, &settings, false);
    let (mut silent, mut good) = (node.connect(), node.connect());
    good.write_all(&request(Opcode::HELLO, 1, b"", b"")).unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    std::thread::sleep(Duration::from_millis(500));
    good.write_all(&request(Opcode::NOOP, 2, b"", b"")).unwrap();
    assert_eq!(read_frames(&mut good, 2), [(1, 0), (2, 0)]);
    drop(good);
    node.stop();
}

#[test]
fn connections_over_the_limit_are_closed_at_once_and_places_come_back() {
    let node = TestNode::start(2, &NetSettings::default(), true);
    let open: Vec<_> = (0..10)
        .map(|opaque| {
            let mut stream = node.connect();
            stream.write_all(&request(Opcode::NOOP, opaque, b"", b"")).unwrap();
            assert_eq!(read_frames(&mut stream, 1), [(opaque, 0)]);
            stream
        })
        .collect();
    let mut over = node.connect();
    let _ = over.write_all(&request(Opcode::NOOP, 1, b"", b""));
    let mut rest = Vec::new();
    let _ = over.read_to_end(&mut rest);
    assert!(rest.is_empty());
    drop(open);
    node.wait_disconnected(10);
    let started = Instant::now();
    while node.admission.connections() > 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "places did not come back");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut stream = node.connect();
    stream.write_all(&request(Opcode::NOOP, 7, b"", b"")).unwrap();
    assert_eq!(read_frames(&mut stream, 1), [(7, 0)]);
    drop(stream);
    node.stop();
}

#[test]
fn stopping_node_sends_what_it_owes_and_closes() {
    let node = TestNode::start(2, &NetSettings::default(), true);
    let mut stream = node.connect();
    stream.write_all(&request(Opcode::GET, 1, b"500", b"")).unwrap();
    while node.seen.executed.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let reader = std::thread::spawn(move || read_frames(&mut stream, usize::MAX));
    node.stop();
    assert_eq!(reader.join().unwrap(), [(1, 4)]);
}

#[test]
fn management_port_answers_every_request_with_not_found() {
    let bound = bind_all("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let address = bound.address();
    let stop = Arc::new(Doorbell::new().unwrap());
    let stopping = Arc::clone(&stop);
    let core = start(CoreId(0), cpus_allowed().unwrap()[0], &CoreSettings::default(), move || async move {
        let event = Rc::new(crate::core::event::Event::new());
        mgmt::start(bound, Rc::clone(&event)).unwrap();
        stopping.waiter().unwrap().wait().await;
        event.notify();
        host::sleep(Duration::from_millis(10)).await;
    })
    .unwrap();
    for head in ["GET /pools HTTP/1.1\r\nHost: x\r\n\r\n", "POST /x HTTP/1.0\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).unwrap();
        for byte in head.as_bytes().chunks(7) {
            stream.write_all(byte).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
    let mut stream = TcpStream::connect(address).unwrap();
    let _ = stream.write_all(&vec![b'x'; mgmt::HEAD_BYTES_MAX + 1]);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty());
    stop.ring();
    core.join().unwrap();
}
