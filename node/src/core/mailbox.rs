//! Mailboxes: messages between cores, in batches, bounded in bytes.
//!
//! For each ordered pair of cores there is one channel of batches. [`Mailboxes::try_send`] only queues on the calling
//! core; a shipping task sends what has gathered once per scheduling round and rings the other core's bell. The
//! receiving core calls one handler per message, in order.
//!
//! Back-pressure is a window in bytes per pair. The receiver hands used bytes back with its own batches in the other
//! direction, so cores share nothing they both write. Above the window `try_send` returns the message, and
//! [`Mailboxes::room`] waits.
//!
//! Invariants
//! - Messages of one pair arrive in the order in which they were sent, each exactly once.
//! - Bytes sent and not yet handled stay below the window plus one message. A message counts for at least
//!   [`MESSAGE_BYTES_MIN`], so entries are bounded too.
//! - A handler that panics loses its message, not the mailbox.
//!
//! Cost: a push into a vector a message; a channel operation, an allocation and perhaps one wake-up of the other core
//! a batch. A message to a sleeping core takes some 10–50 µs; one that works looks after each round of its tasks.
//!
//! Does not know: what a message means.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::task::Poll;
use std::time::{Duration, Instant};
use std::{fmt, io};

use tracing::error;

use super::event::{Event, Waiters};
use super::executor::CoreId;
use super::host;
use super::reactor::{self, Bell};

/// What a message counts for at least, in bytes: bounds the entries of a mailbox.
pub const MESSAGE_BYTES_MIN: usize = 64;

/// Messages handled between two looks at whether the core wants to do something else.
const HANDLE_ITEMS_MAX: usize = 64;

/// Something that cores send each other.
pub trait Message: Send + 'static {
    /// Bytes that this message keeps in memory until it is handled.
    fn bytes(&self) -> usize;
}

/// Why a message was not taken. It comes back.
pub enum Refused<M> {
    /// The window to that core is used up; await [`Mailboxes::room`].
    Full(M),
    /// That core has ended.
    Closed(M),
}

impl<M> fmt::Debug for Refused<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refused::Full(_) => "Full",
            Refused::Closed(_) => "Closed",
        })
    }
}

/// The unconnected ends of one core; goes to that core's thread.
pub struct MailboxEnds<M: Message> {
    core: CoreId,
    window_bytes: usize,
    /// Rung by the other cores.
    bell: Arc<Bell>,
    /// By core; none for the core itself.
    ends: Vec<Option<Ends<M>>>,
}

/// To another core and from it.
type Ends<M> = (Sender<M>, mpsc::Receiver<Batch<M>>);

/// Sends batches to another core. When it is dropped, that core learns it.
struct Sender<M: Message> {
    /// Taken when it is dropped.
    channel: Option<mpsc::Sender<Batch<M>>>,
    bell: Arc<Bell>,
}

impl<M: Message> Sender<M> {
    /// False if the other core has ended.
    fn send(&self, batch: Batch<M>) -> bool {
        let sent = self.channel.as_ref().is_some_and(|channel| channel.send(batch).is_ok());
        self.bell.ring();
        sent
    }
}

impl<M: Message> Drop for Sender<M> {
    fn drop(&mut self) {
        self.channel = None;
        self.bell.ring();
    }
}

/// What travels: messages, and bytes of the other direction that have been handled.
struct Batch<M> {
    messages: Vec<M>,
    first_sent: Instant,
    returned_bytes: usize,
}

/// Makes the mailboxes between `cores` cores: one set of ends for each.
///
/// # Errors
/// Out of file descriptors or memory.
///
/// # Panics
/// If `cores` is above 65,535 or the window is zero.
pub fn mailboxes<M: Message>(cores: usize, window_bytes: usize) -> io::Result<Vec<MailboxEnds<M>>> {
    assert!(window_bytes > 0, "a mailbox needs a window");
    let ids = u16::try_from(cores).expect("core count fits its id");
    let mut all = Vec::with_capacity(cores);
    for core in (0..ids).map(CoreId) {
        let bell = Arc::new(Bell::new()?);
        all.push(MailboxEnds { core, window_bytes, bell, ends: (0..cores).map(|_| None).collect() });
    }
    let channel = |to: &MailboxEnds<M>| {
        let (sender, receiver) = mpsc::channel();
        (Sender { channel: Some(sender), bell: Arc::clone(&to.bell) }, receiver)
    };
    for one in 0..cores {
        for other in one + 1..cores {
            let (there, arrive) = channel(&all[other]);
            let (back, arrive_back) = channel(&all[one]);
            all[one].ends[other] = Some((there, arrive_back));
            all[other].ends[one] = Some((back, arrive));
        }
    }
    Ok(all)
}

impl<M: Message> MailboxEnds<M> {
    /// Starts the tasks that ship and receive on the calling core. `handler` is called on this core with the sender and
    /// the message; `waited` with how long a batch had been under way when it was picked up, measured from its first
    /// message, and how many it held.
    ///
    /// # Errors
    /// The kernel has no memory, or no watch left for this user.
    pub fn connect(
        self,
        handler: impl Fn(CoreId, M) + 'static,
        waited: impl Fn(Duration, usize) + 'static,
    ) -> io::Result<Mailboxes<M>> {
        let receive = Rc::new(Receive { handler, waited });
        let peers: Rc<[_]> = (0..)
            .map(CoreId)
            .take(self.ends.len())
            .map(|core| Rc::new(Peer::new(core, self.window_bytes)))
            .collect();
        let all = Rc::clone(&peers);
        reactor::current().hear(self.bell, move || all.iter().for_each(|peer| peer.arrived.notify()))?;
        for (ends, peer) in self.ends.into_iter().zip(&*peers) {
            match ends {
                Some((sender, receiver)) => {
                    host::spawn("mailbox ship", ship(Rc::clone(peer), sender));
                    let receiving = receive_all(Rc::clone(peer), receiver, Rc::clone(&receive));
                    host::spawn("mailbox receive", receiving);
                }
                None => host::spawn("mailbox local", loop_back(Rc::clone(peer), Rc::clone(&receive))),
            }
        }
        Ok(Mailboxes { core: self.core, peers })
    }
}

/// The connected mailboxes of one core: sends to any core, also to itself. Cheap to clone.
pub struct Mailboxes<M: Message> {
    core: CoreId,
    peers: Rc<[Rc<Peer<M>>]>,
}

impl<M: Message> Clone for Mailboxes<M> {
    fn clone(&self) -> Mailboxes<M> {
        Mailboxes { core: self.core, peers: Rc::clone(&self.peers) }
    }
}

impl<M: Message> Mailboxes<M> {
    /// The core whose mailboxes these are.
    #[must_use]
    pub fn core(&self) -> CoreId {
        self.core
    }

    /// How many cores there are.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.peers.len()
    }

    /// Queues `message` for `to`; it leaves with the others of this scheduling round. A message to the own core is
    /// handled by a task of this core, later.
    ///
    /// # Errors
    /// `Full`: wait for [`Mailboxes::room`]. `Closed`: that core has ended. Both give the message back.
    ///
    /// # Panics
    /// If there is no such core.
    pub fn try_send(&self, to: CoreId, message: M) -> Result<(), Refused<M>> {
        let peer = &self.peers[to.index()];
        if peer.closed.get() {
            return Err(Refused::Closed(message));
        }
        if !peer.has_room() {
            return Err(Refused::Full(message));
        }
        peer.outstanding_bytes.set(peer.outstanding_bytes.get() + cost(&message));
        let mut outbox = peer.outbox.borrow_mut();
        if outbox.is_empty() {
            peer.first_sent.set(Instant::now());
        }
        outbox.push(message);
        drop(outbox);
        peer.ship.notify();
        Ok(())
    }

    /// Sends `message` to `to`, waiting for room if there is none.
    ///
    /// # Errors
    /// That core has ended; the message comes back.
    pub async fn send(&self, to: CoreId, mut message: M) -> Result<(), M> {
        loop {
            match self.try_send(to, message) {
                Ok(()) => return Ok(()),
                Err(Refused::Closed(back)) => return Err(back),
                Err(Refused::Full(back)) => message = back,
            }
            self.room(to).await;
        }
    }

    /// Waits until [`Mailboxes::try_send`] to that core would not say `Full`.
    pub async fn room(&self, to: CoreId) {
        let peer = &self.peers[to.index()];
        poll_fn(|cx| {
            if peer.has_room() || peer.closed.get() {
                return Poll::Ready(());
            }
            peer.room.add(cx);
            Poll::Pending
        })
        .await;
    }

    /// Bytes under way to `to`: sent here and not known to be handled there.
    #[must_use]
    pub fn outstanding_bytes(&self, to: CoreId) -> usize {
        self.peers[to.index()].outstanding_bytes.get()
    }

    /// Ships what is queued, then ends the mailboxes of this core. Later sends are refused as `Closed`; the other
    /// cores see this core as ended when they have received everything.
    pub fn close(&self) {
        for peer in self.peers.iter() {
            peer.close();
        }
    }
}

/// What this core knows of another one.
struct Peer<M> {
    core: CoreId,
    window_bytes: usize,
    outbox: RefCell<Vec<M>>,
    first_sent: Cell<Instant>,
    /// Sent by us, not yet returned by them.
    outstanding_bytes: Cell<usize>,
    /// Handled by us, not yet returned to them.
    owed_bytes: Cell<usize>,
    /// No more sends. What is in the outbox still leaves.
    closed: Cell<bool>,
    ship: Event,
    /// Something may have come from there.
    arrived: Event,
    room: Waiters,
}

impl<M: Message> Peer<M> {
    fn new(core: CoreId, window_bytes: usize) -> Peer<M> {
        Peer {
            core,
            window_bytes,
            outbox: RefCell::new(Vec::new()),
            first_sent: Cell::new(Instant::now()),
            outstanding_bytes: Cell::new(0),
            owed_bytes: Cell::new(0),
            closed: Cell::new(false),
            ship: Event::new(),
            arrived: Event::new(),
            room: Waiters::new(),
        }
    }

    fn has_room(&self) -> bool {
        self.outstanding_bytes.get() < self.window_bytes
    }

    fn close(&self) {
        self.closed.set(true);
        self.ship.notify();
        self.room.wake_all();
    }

    /// Notes that bytes of ours have been handled there.
    fn returned(&self, bytes: usize) {
        if bytes > 0 {
            let had_room = self.has_room();
            self.outstanding_bytes.set(self.outstanding_bytes.get().saturating_sub(bytes));
            if !had_room && self.has_room() {
                self.room.wake_all();
            }
        }
    }

    /// Notes that bytes of theirs have been handled here. They go back with the next batch, or with one of their own
    /// when a quarter of the window has gathered: less can never keep a sender waiting.
    fn owe(&self, bytes: usize) {
        self.owed_bytes.set(self.owed_bytes.get() + bytes);
        if self.owes_much() {
            self.ship.notify();
        }
    }

    fn owes_much(&self) -> bool {
        self.owed_bytes.get() * 4 >= self.window_bytes
    }

    /// The next batch to ship, if it is worth one.
    fn take_batch(&self) -> Option<Batch<M>> {
        let mut outbox = self.outbox.borrow_mut();
        if outbox.is_empty() && !self.owes_much() {
            return None;
        }
        let hint = outbox.len().min(HANDLE_ITEMS_MAX);
        let messages = std::mem::replace(&mut *outbox, Vec::with_capacity(hint));
        Some(Batch { messages, first_sent: self.first_sent.get(), returned_bytes: self.owed_bytes.take() })
    }
}

/// What the receiving side of a core does with messages and waiting times.
struct Receive<H, W> {
    handler: H,
    waited: W,
}

/// Handles the messages of one batch in order; `done` gets the bytes of each.
async fn handle<M, H, W>(from: CoreId, batch: Batch<M>, receive: &Receive<H, W>, done: impl Fn(usize))
where
    M: Message,
    H: Fn(CoreId, M),
    W: Fn(Duration, usize),
{
    if !batch.messages.is_empty() {
        (receive.waited)(batch.first_sent.elapsed(), batch.messages.len());
    }
    for (index, message) in batch.messages.into_iter().enumerate() {
        let bytes = cost(&message);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (receive.handler)(from, message))) {
            error!(%from, panic = host::panic_text(&*panic), "message handler panicked");
        }
        done(bytes);
        if index % HANDLE_ITEMS_MAX == HANDLE_ITEMS_MAX - 1 {
            host::relax().await;
        }
    }
}

/// Sends batches to `peer` until it is closed and its outbox empty, or the other core has ended.
async fn ship<M: Message>(peer: Rc<Peer<M>>, sender: Sender<M>) {
    loop {
        peer.ship.wait().await;
        while let Some(batch) = peer.take_batch() {
            if !sender.send(batch) {
                peer.close();
                return;
            }
        }
        if peer.closed.get() {
            return;
        }
    }
}

/// Receives batches of `peer` until the other core closes.
async fn receive_all<M, H, W>(
    peer: Rc<Peer<M>>,
    receiver: mpsc::Receiver<Batch<M>>,
    receive: Rc<Receive<H, W>>,
) where
    M: Message,
    H: Fn(CoreId, M),
    W: Fn(Duration, usize),
{
    loop {
        match receiver.try_recv() {
            Ok(batch) => {
                peer.returned(batch.returned_bytes);
                handle(peer.core, batch, &receive, |bytes| peer.owe(bytes)).await;
            }
            Err(TryRecvError::Empty) => peer.arrived.wait().await,
            Err(TryRecvError::Disconnected) => return peer.close(),
        }
    }
}

/// Handles the messages that a core sends to itself.
async fn loop_back<M, H, W>(peer: Rc<Peer<M>>, receive: Rc<Receive<H, W>>)
where
    M: Message,
    H: Fn(CoreId, M),
    W: Fn(Duration, usize),
{
    loop {
        peer.ship.wait().await;
        while let Some(batch) = peer.take_batch() {
            handle(peer.core, batch, &receive, |bytes| peer.returned(bytes)).await;
        }
        if peer.closed.get() {
            return;
        }
    }
}

fn cost<M: Message>(message: &M) -> usize {
    message.bytes().max(MESSAGE_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::super::executor::{CoreSettings, cpus_allowed, start};
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Number(u64, usize);

    impl Message for Number {
        fn bytes(&self) -> usize {
            self.1
        }
    }

    /// Runs one body on core 0 and one on core 1 (of the same CPU if there is only one) and gives back both results.
    fn on_two_cores<A, FA, TA, B, FB, TB>(window_bytes: usize, first: A, second: B) -> (TA, TB)
    where
        A: FnOnce(MailboxEnds<Number>) -> FA + Send + 'static,
        FA: Future<Output = TA> + 'static,
        TA: Send + 'static,
        B: FnOnce(MailboxEnds<Number>) -> FB + Send + 'static,
        FB: Future<Output = TB> + 'static,
        TB: Send + 'static,
    {
        let cpus = cpus_allowed().unwrap();
        let mut ends = mailboxes(2, window_bytes).unwrap().into_iter();
        let (ends_a, ends_b) = (ends.next().unwrap(), ends.next().unwrap());
        let settings = CoreSettings::default();
        let a = start(CoreId(0), cpus[0], &settings, move || first(ends_a)).unwrap();
        let b = start(CoreId(1), *cpus.last().unwrap(), &settings, move || second(ends_b)).unwrap();
        (a.join().unwrap(), b.join().unwrap())
    }

    #[test]
    fn messages_of_a_pair_arrive_in_order_and_none_is_lost() {
        const COUNT: u64 = 2_000_000;
        let ((), seconds) = on_two_cores(
            256 << 10,
            |ends| async move {
                let mailboxes = ends.connect(|_, _| {}, |_, _| {}).unwrap();
                for number in 0..COUNT {
                    mailboxes.send(CoreId(1), Number(number, 64)).await.unwrap();
                    if number % 64 == 0 {
                        host::yield_now().await;
                    }
                }
                mailboxes.close();
                host::sleep(Duration::from_millis(20)).await;
            },
            |ends| async move {
                let (next, in_order) = (Cell::new(0), Rc::new(Cell::new(true)));
                let done = Rc::new(Event::new());
                let (good, finished) = (Rc::clone(&in_order), Rc::clone(&done));
                let started = Instant::now();
                let _mailboxes = ends
                    .connect(
                        move |from, message| {
                            let expected = (CoreId(0), Number(next.get(), 64));
                            good.set(good.get() && (from, message) == expected);
                            next.set(next.get() + 1);
                            if next.get() == COUNT || !good.get() {
                                finished.notify();
                            }
                        },
                        |_, _| {},
                    )
                    .unwrap();
                done.wait().await;
                assert!(in_order.get());
                started.elapsed().as_secs_f64()
            },
        );
        println!("{:.2} M messages/s", COUNT as f64 / seconds / 1e6);
    }

    /// The receiver does not handle anything for as long as the sender tries; when it does, the sender goes on.
    #[test]
    fn stalled_receiver_bounds_the_sender_which_goes_on_later() {
        const WINDOW: usize = 64 << 10;
        const BYTES: usize = 1000;
        let (taken, ()) = on_two_cores(
            WINDOW,
            |ends| async move {
                let mailboxes = ends.connect(|_, _| {}, |_, _| {}).unwrap();
                let mut taken = 0;
                loop {
                    match mailboxes.try_send(CoreId(1), Number(taken, BYTES)) {
                        Ok(()) => taken += 1,
                        Err(Refused::Full(back)) => {
                            assert_eq!(back, Number(taken, BYTES));
                            break;
                        }
                        Err(Refused::Closed(_)) => panic!("closed"),
                    }
                    if taken == 3 {
                        // The receiver stalls in its handler from here on.
                        host::sleep(Duration::from_millis(20)).await;
                    }
                }
                assert!(mailboxes.outstanding_bytes(CoreId(1)) < WINDOW + BYTES);
                mailboxes.room(CoreId(1)).await;
                mailboxes.send(CoreId(1), Number(u64::MAX, BYTES)).await.unwrap();
                mailboxes.close();
                host::sleep(Duration::from_millis(20)).await;
                taken
            },
            |ends| async move {
                let done = Rc::new(Event::new());
                let finished = Rc::clone(&done);
                let _mailboxes = ends
                    .connect(
                        move |_, message| {
                            if message.0 == 0 {
                                std::thread::sleep(Duration::from_millis(200));
                            }
                            if message.0 == u64::MAX {
                                finished.notify();
                            }
                        },
                        |_, _| {},
                    )
                    .unwrap();
                done.wait().await;
            },
        );
        assert!(taken as usize <= WINDOW / BYTES + 1, "{taken} messages of {BYTES} bytes were taken");
    }

    #[test]
    fn sending_to_a_core_that_ended_gives_the_message_back() {
        on_two_cores(
            1024,
            |ends| async move {
                let mailboxes = ends.connect(|_, _| {}, |_, _| {}).unwrap();
                loop {
                    match mailboxes.send(CoreId(1), Number(1, 1000)).await {
                        Ok(()) => host::yield_now().await,
                        Err(back) => return assert_eq!(back, Number(1, 1000)),
                    }
                }
            },
            |ends| async move {
                let mailboxes = ends.connect(|_, _| {}, |_, _| {}).unwrap();
                mailboxes.close();
                host::sleep(Duration::from_millis(50)).await;
            },
        );
    }

    #[test]
    fn message_to_the_own_core_is_handled_later_by_a_task_of_its_own() {
        let ends = mailboxes(1, 1024).unwrap().remove(0);
        let order = super::super::executor::tests::on_one_core(move || async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            let seen = Rc::clone(&order);
            let mailboxes =
                ends.connect(move |_, message: Number| seen.borrow_mut().push(message.0), |_, _| {}).unwrap();
            for number in 0..100 {
                mailboxes.send(CoreId(0), Number(number, 500)).await.unwrap();
                assert!(!order.borrow().contains(&number), "handled inside send");
            }
            while order.borrow().len() < 100 {
                host::yield_now().await;
            }
            order.take()
        });
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn panicking_handler_loses_its_message_only() {
        let ends = mailboxes(1, 1024).unwrap().remove(0);
        let seen = super::super::executor::tests::on_one_core(move || async move {
            let last = Rc::new(Cell::new(0));
            let seen = Rc::clone(&last);
            let handler = move |_, message: Number| {
                assert_ne!(message.0, 1, "on purpose");
                seen.set(message.0);
            };
            let mailboxes = ends.connect(handler, |_, _| {}).unwrap();
            for number in 0..3 {
                mailboxes.send(CoreId(0), Number(number, 1)).await.unwrap();
            }
            host::sleep(Duration::from_millis(5)).await;
            last.get()
        });
        assert_eq!(seen, 2);
    }
}
