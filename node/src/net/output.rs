//! What a connection has to say: replies in the order of their requests, whatever order they are ready in.
//!
//! Each request opens a place. The place at the head writes straight into the bytes to be sent; what a later one has to
//! say is parked with it until its turn comes. Small replies gather in one buffer, so that a burst of requests is
//! answered with one send; large ones stay the buffers they are and are never copied.
//!
//! Invariants
//! - Bytes leave in the order of the places, whole replies at a time; in unordered mode in the order of writing.
//! - `unsent_bytes` is what is held here: ready and parked.
//! - An acknowledged buffer is answered exactly once: handed to the kernel, or given up.
//!
//! Cost: a reply at the head costs its own encoding; parked ones a copy if small.
//!
//! Does not know: sockets, tasks, frames.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::small::{SMALL_BYTES, SmallBuffers};
use crate::core::socket::SLICES_MAX;

/// A gathering buffer that has reached this many bytes takes no further reply.
const GATHER_BYTES_MAX: usize = 256 << 10;

/// A gathering buffer up to this size is kept for the next burst of any connection of the core, in bytes.
const SPARE_BYTES_MAX: usize = 64 << 10;

/// The peer has gone, or the connection was given up: nothing more will be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection is gone")]
pub struct Disconnected;

/// Resolves when the kernel has taken the whole buffer, and gives it back; or when it never will.
#[derive(Debug)]
pub struct Pushed {
    fate: Rc<Fate>,
}

impl Future for Pushed {
    type Output = Result<Bytes, Disconnected>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.fate.result.borrow_mut().take() {
            return Poll::Ready(result);
        }
        *self.fate.waiter.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// What became of a pushed buffer.
#[derive(Debug, Default)]
struct Fate {
    result: RefCell<Option<Result<Bytes, Disconnected>>>,
    waiter: RefCell<Option<Waker>>,
}

impl Fate {
    fn decide(&self, result: Result<Bytes, Disconnected>) {
        *self.result.borrow_mut() = Some(result);
        if let Some(waiter) = self.waiter.borrow_mut().take() {
            waiter.wake();
        }
    }
}

/// Bytes that leave together.
#[derive(Debug)]
enum Piece {
    /// Small replies, one after the other.
    Gathered(Vec<u8>),
    /// One buffer whose owner waits for it.
    Pushed { bytes: Bytes, fate: Rc<Fate> },
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Gathered(bytes) => bytes,
            Piece::Pushed { bytes, .. } => bytes,
        }
    }

    fn give_up(self) {
        if let Piece::Pushed { fate, .. } = self {
            fate.decide(Err(Disconnected));
        }
    }
}

/// The place of one request.
#[derive(Debug, Default)]
struct Place {
    done: bool,
    /// The first bytes that wait for their turn; most replies have no more.
    parked: Vec<u8>,
    /// What follows them.
    more: Vec<Piece>,
}

/// The output of one connection.
#[derive(Debug, Default)]
pub(super) struct Output {
    ready: VecDeque<Piece>,
    /// Bytes of the first piece that have left.
    first_sent_bytes: usize,
    /// Number of the place at the front.
    head: u64,
    places: VecDeque<Place>,
    unsent_bytes: usize,
    unordered: bool,
    dead: bool,
    spare: Spare,
}

/// Empty buffers, shared by the outputs of a core.
#[derive(Debug, Default, Clone)]
pub(super) struct Spare(Rc<SpareBuffers>);

#[derive(Debug, Default)]
struct SpareBuffers {
    /// What one burst has grown, the next one uses.
    gathering: RefCell<Vec<u8>>,
    parked: SmallBuffers,
}

impl Spare {
    fn take(&self) -> Vec<u8> {
        self.0.gathering.take()
    }

    /// Keeps the larger of two gathering buffers, unless it is above [`SPARE_BYTES_MAX`].
    fn keep(&self, mut bytes: Vec<u8>) {
        let mut spare = self.0.gathering.borrow_mut();
        if (spare.capacity()..=SPARE_BYTES_MAX).contains(&bytes.capacity()) {
            bytes.clear();
            *spare = bytes;
        }
    }
}

impl Output {
    /// An output that has said nothing.
    pub(super) fn new(spare: Spare) -> Output {
        Output { spare, ..Output::default() }
    }

    /// Opens the place of the next request.
    pub(super) fn open(&mut self) -> u64 {
        self.places.push_back(Place::default());
        self.head + self.places.len() as u64 - 1
    }

    /// Requests whose answers are not complete, or wait for an earlier one's.
    pub(super) fn in_flight(&self) -> usize {
        self.places.len()
    }

    /// Bytes held here and not yet taken by the kernel.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Whether there is something to send now.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether every request has been answered and every byte has left.
    pub(super) fn is_drained(&self) -> bool {
        self.places.is_empty() && self.ready.is_empty()
    }

    /// Replies no longer keep the order of requests.
    pub(super) fn set_unordered(&mut self, unordered: bool) {
        self.unordered = unordered;
    }

    /// Whether a place writes straight into the bytes to be sent. `None`: nothing is sent any more.
    fn writes_through(&self, place: u64) -> Option<bool> {
        (!self.dead && place >= self.head).then_some(self.unordered || place == self.head)
    }

    /// Appends what `encode` writes to the reply of a place.
    pub(super) fn write(&mut self, place: u64, encode: impl FnOnce(&mut Vec<u8>)) {
        let added = match self.writes_through(place) {
            None => 0,
            Some(true) => self.gather(encode),
            Some(false) => self.park(place, encode),
        };
        self.unsent_bytes += added;
    }

    fn park(&mut self, place: u64, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let place = &mut self.places[(place - self.head) as usize];
        match place.more.last_mut() {
            None => {
                if place.parked.capacity() == 0 {
                    place.parked = self.spare.0.parked.take(0);
                }
                append(&mut place.parked, encode)
            }
            Some(Piece::Gathered(bytes)) => append(bytes, encode),
            Some(Piece::Pushed { .. }) => {
                let mut bytes = Vec::new();
                let added = append(&mut bytes, encode);
                place.more.push(Piece::Gathered(bytes));
                added
            }
        }
    }

    /// Sends what `encode` writes, between two replies.
    pub(super) fn write_unasked(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        if !self.dead {
            self.unsent_bytes += self.gather(encode);
        }
    }

    /// Sends a whole buffer between two replies; the result tells when it has left.
    pub(super) fn push_unasked(&mut self, bytes: Bytes) -> Pushed {
        let fate = Rc::new(Fate::default());
        let pushed = Pushed { fate: Rc::clone(&fate) };
        if self.dead || bytes.is_empty() {
            fate.decide(if self.dead { Err(Disconnected) } else { Ok(bytes) });
        } else {
            self.unsent_bytes += bytes.len();
            self.ready.push_back(Piece::Pushed { bytes, fate });
        }
        pushed
    }

    fn gather(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        if !matches!(self.ready.back(), Some(Piece::Gathered(bytes)) if bytes.len() < GATHER_BYTES_MAX) {
            self.ready.push_back(Piece::Gathered(self.spare.take()));
        }
        let added = match self.ready.back_mut() {
            Some(Piece::Gathered(bytes)) => append(bytes, encode),
            _ => 0,
        };
        if self.ready.back().is_some_and(|piece| piece.bytes().is_empty())
            && let Some(Piece::Gathered(bytes)) = self.ready.pop_back()
        {
            self.spare.keep(bytes);
        }
        added
    }

    /// Appends a whole buffer to the reply of a place; the result tells when it has left.
    pub(super) fn push(&mut self, place: u64, bytes: Bytes) -> Pushed {
        let fate = Rc::new(Fate::default());
        let pushed = Pushed { fate: Rc::clone(&fate) };
        let through = self.writes_through(place);
        if bytes.is_empty() || through.is_none() {
            fate.decide(if through.is_none() { Err(Disconnected) } else { Ok(bytes) });
            return pushed;
        }
        self.unsent_bytes += bytes.len();
        let piece = Piece::Pushed { bytes, fate };
        if through == Some(true) {
            self.ready.push_back(piece);
        } else {
            self.places[(place - self.head) as usize].more.push(piece);
        }
        pushed
    }

    /// Completes the reply of a place. Later places whose turn has come become ready.
    pub(super) fn finish(&mut self, place: u64) {
        if self.dead || place < self.head {
            return;
        }
        let index = (place - self.head) as usize;
        self.places[index].done = true;
        while self.places.front().is_some_and(|front| front.done) {
            self.places.pop_front();
            self.head += 1;
            let Some(front) = self.places.front_mut() else { return };
            let (parked, more) = (std::mem::take(&mut front.parked), std::mem::take(&mut front.more));
            self.unpark(parked);
            self.ready.extend(more.into_iter().filter(|piece| !piece.bytes().is_empty()));
        }
    }

    /// Makes parked bytes ready: small ones with what gathers already, large ones as they are.
    fn unpark(&mut self, parked: Vec<u8>) {
        if parked.len() > SMALL_BYTES {
            self.ready.push_back(Piece::Gathered(parked));
            return;
        }
        if !parked.is_empty() {
            self.gather(|out| out.extend_from_slice(&parked));
        }
        self.spare.0.parked.give(parked);
    }

    /// The next bytes to send, at most [`SLICES_MAX`] pieces.
    pub(super) fn slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.ready.iter().take(SLICES_MAX).enumerate().map(|(index, piece)| {
            let sent = if index == 0 { self.first_sent_bytes } else { 0 };
            IoSlice::new(&piece.bytes()[sent..])
        })
    }

    /// Notes that the kernel took the next `bytes` bytes.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.unsent_bytes -= bytes;
        self.first_sent_bytes += bytes;
        while let Some(first) = self.ready.front() {
            let len = first.bytes().len();
            if self.first_sent_bytes < len {
                break;
            }
            self.first_sent_bytes -= len;
            match self.ready.pop_front() {
                Some(Piece::Gathered(bytes)) => self.spare.keep(bytes),
                Some(Piece::Pushed { bytes, fate }) => fate.decide(Ok(bytes)),
                None => {}
            }
        }
        if self.ready.is_empty() && self.places.is_empty() {
            // An idle connection keeps nothing.
            self.places.shrink_to(8);
            self.ready.shrink_to(8);
        }
    }

    /// Gives everything up: waiting owners learn it, later writes go nowhere.
    pub(super) fn kill(&mut self) {
        self.dead = true;
        for piece in std::mem::take(&mut self.ready) {
            piece.give_up();
        }
        for piece in std::mem::take(&mut self.places).into_iter().flat_map(|place| place.more) {
            piece.give_up();
        }
        self.unsent_bytes = 0;
        self.first_sent_bytes = 0;
    }
}

/// Appends to a buffer; returns by how much it grew.
fn append(bytes: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
    let before = bytes.len();
    encode(bytes);
    bytes.len().saturating_sub(before)
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Sends everything that is ready, in sends of at most `send_bytes_max` bytes.
    fn send_all(output: &mut Output, send_bytes_max: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while output.is_ready() {
            let all: Vec<u8> = output.slices().flat_map(|slice| slice.to_vec()).collect();
            assert!(!all.is_empty(), "ready without bytes");
            let taken = all.len().min(send_bytes_max);
            sent.extend_from_slice(&all[..taken]);
            output.advance(taken);
        }
        sent
    }

    fn fate(pushed: &mut Pushed) -> Option<Result<Bytes, Disconnected>> {
        match Pin::new(pushed).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    #[test]
    fn replies_leave_in_the_order_of_requests_whatever_order_they_are_given_in() {
        for seed in 0..200 {
            let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
            let mut output = Output::default();
            let places: Vec<u64> = (0..50).map(|_| output.open()).collect();
            let mut order = places.clone();
            order.shuffle(&mut random);
            let (mut sent, mut pushed) = (Vec::new(), Vec::new());
            for place in order {
                for part in 0..3u8 {
                    let bytes = vec![place as u8, part];
                    if random.random_bool(0.3) {
                        pushed.push(output.push(place, bytes.into()));
                    } else {
                        output.write(place, |out| out.extend_from_slice(&bytes));
                    }
                }
                output.finish(place);
                if random.random_bool(0.5) {
                    sent.extend(send_all(&mut output, random.random_range(1..7)));
                }
            }
            sent.extend(send_all(&mut output, usize::MAX));
            let expected: Vec<u8> =
                places.iter().flat_map(|&place| (0..3).flat_map(move |part| [place as u8, part])).collect();
            assert_eq!(sent, expected, "seed {seed}");
            assert!(output.is_drained());
            assert_eq!(output.unsent_bytes(), 0);
            assert!(pushed.iter_mut().all(|pushed| matches!(fate(pushed), Some(Ok(_)))), "seed {seed}");
        }
    }

    #[test]
    fn burst_of_small_replies_is_one_piece() {
        let mut output = Output::default();
        for _ in 0..1000 {
            let place = output.open();
            output.write(place, |out| out.extend_from_slice(&[1; 24]));
            output.finish(place);
        }
        assert_eq!(output.slices().count(), 1);
        assert_eq!(output.unsent_bytes(), 24_000);
    }

    #[test]
    fn drained_output_leaves_its_buffer_to_the_others_of_the_core_unless_it_is_large() {
        let spare = Spare::default();
        let mut outputs = [Output::new(spare.clone()), Output::new(spare.clone())];
        let mut addresses = Vec::new();
        for output in &mut outputs {
            let place = output.open();
            output.write(place, |out| out.extend_from_slice(&[1; 1000]));
            output.finish(place);
            addresses.push(output.slices().next().unwrap().as_ptr());
            output.advance(1000);
        }
        assert_eq!(addresses[0], addresses[1]);
        let kept = spare.0.gathering.borrow().capacity();
        let place = outputs[0].open();
        outputs[0].write(place, |out| out.resize(2 * SPARE_BYTES_MAX, 1));
        outputs[0].finish(place);
        outputs[0].advance(2 * SPARE_BYTES_MAX);
        assert!(kept >= 1000 && spare.0.gathering.borrow().capacity() <= SPARE_BYTES_MAX);
    }

    #[test]
    fn pushed_buffer_is_acknowledged_when_its_last_byte_left_and_comes_back_uncopied() {
        let mut output = Output::default();
        let place = output.open();
        let bytes = Bytes::from(vec![7; 1000]);
        let address = bytes.as_ptr();
        let mut pushed = output.push(place, bytes);
        output.advance(999);
        assert!(fate(&mut pushed).is_none());
        output.advance(1);
        assert_eq!(fate(&mut pushed).unwrap().unwrap().as_ptr(), address);
    }

    #[test]
    fn head_of_line_streams_while_later_replies_are_parked() {
        let mut output = Output::default();
        let (scan, get) = (output.open(), output.open());
        output.write(get, |out| out.push(b'g'));
        output.finish(get);
        assert!(!output.is_ready());
        output.write(scan, |out| out.push(b's'));
        assert_eq!(send_all(&mut output, 10), b"s");
        output.write(scan, |out| out.push(b't'));
        output.finish(scan);
        assert_eq!(send_all(&mut output, 10), b"tg");
    }

    #[test]
    fn unordered_replies_leave_in_the_order_they_are_given_in() {
        let mut output = Output::default();
        output.set_unordered(true);
        let (first, second) = (output.open(), output.open());
        output.write(second, |out| out.push(2));
        output.finish(second);
        assert_eq!(output.in_flight(), 2, "the place stays until its turn, but nothing is parked");
        assert_eq!(send_all(&mut output, 10), [2]);
        output.write(first, |out| out.push(1));
        output.finish(first);
        assert_eq!(send_all(&mut output, 10), [1]);
        assert!(output.is_drained());
    }

    #[test]
    fn empty_reply_leaves_nothing_to_send() {
        let mut output = Output::default();
        let (one, two) = (output.open(), output.open());
        output.write(two, |_| {});
        output.finish(two);
        output.write(one, |_| {});
        output.finish(one);
        assert!(output.is_drained());
    }

    #[test]
    fn killed_output_tells_every_owner_and_takes_nothing_more() {
        let mut output = Output::default();
        let (one, two) = (output.open(), output.open());
        let mut pushed =
            [output.push(one, Bytes::from_static(b"a")), output.push(two, Bytes::from_static(b"b"))];
        output.kill();
        assert!(pushed.iter_mut().all(|pushed| fate(pushed) == Some(Err(Disconnected))));
        assert_eq!(fate(&mut output.push(two, Bytes::from_static(b"c"))), Some(Err(Disconnected)));
        output.write(one, |out| out.push(1));
        output.finish(one);
        assert_eq!((output.unsent_bytes(), output.is_ready()), (0, false));
    }
}
