//! Where the time of a stream goes: every nanosecond between its beginning and its end is spent on exactly one [`Spent`].
//!
//! The stream's task is either polled, which is [`Spent::Running`], or waits for what it said last that it would wait for. So the sums add up
//! to the whole by construction, however a wait ends. Waiting for pieces that are under way is divided afterwards: what of it the client's
//! window was closed is the client's, what of the rest the socket was full is the network's, what is left is the connection's. A stream that
//! is up to date waits for its pieces too, as long as one is under way.
//!
//! Invariants
//! - The sums of a moment add up to the time since the beginning, until the end.
//!
//! Cost: two looks at the clock and two histogram records a poll of the task; a few atomic loads if it waits for its pieces.
//! Does not know: streams, tasks.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringbase_storage::shard::Recorder;

/// What a stream spends time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// Making messages.
    Running,
    /// Waiting for others of its core, which had no more time for it.
    Turn,
    /// Waiting until one more backfill of its connection may be open, or one more of its core may read.
    Slot,
    /// Waiting for a view of the vbucket to be opened.
    Open,
    /// Waiting for pieces that are under way, while the client's window is open and the socket takes bytes.
    Credit,
    /// The same while the client's window is closed.
    Window,
    /// The same while the window is open and the kernel has not taken what the connection gave it.
    Socket,
    /// Waiting until the streams of the core hold less memory.
    Memory,
    /// Waiting for the disk, with nothing read ahead.
    Device,
    /// Up to date: waiting for a write.
    UpToDate,
}

impl Spent {
    /// Everything that time is spent on.
    pub const ALL: [Spent; 10] = [
        Spent::Running,
        Spent::Turn,
        Spent::Slot,
        Spent::Open,
        Spent::Credit,
        Spent::Window,
        Spent::Socket,
        Spent::Memory,
        Spent::Device,
        Spent::UpToDate,
    ];

    /// The one with this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Spent> {
        Spent::ALL.into_iter().find(|what| what.name() == name)
    }

    /// Its name in statistics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Spent::Running => "running",
            Spent::Turn => "turn",
            Spent::Slot => "slot",
            Spent::Open => "open",
            Spent::Credit => "credit",
            Spent::Window => "window",
            Spent::Socket => "socket",
            Spent::Memory => "memory",
            Spent::Device => "device",
            Spent::UpToDate => "up_to_date",
        }
    }
}

/// How long runs and waits of the streams of a core took. A wait that was woken in vain is two.
#[derive(Debug, Default)]
pub struct SpentTimes([Recorder; Spent::ALL.len()]);

impl SpentTimes {
    /// Nanoseconds of each run or wait of this kind.
    #[must_use]
    pub fn of(&self, what: Spent) -> &Recorder {
        &self.0[what as usize]
    }
}

/// How long a client's window, or the way into its socket, has been closed. The connection's core writes it, cores of its streams read it.
#[derive(Debug, Default)]
pub struct ClosedTime {
    total_ns: AtomicU64,
    /// Since when it is closed; 0 while it is open.
    since_ns: AtomicU64,
}

impl ClosedTime {
    /// It is closed, or open, at this moment. True if that is new.
    pub fn is_now(&self, closed: bool, now_ns: u64) -> bool {
        let since_ns = self.since_ns.load(Ordering::Relaxed);
        if closed == (since_ns > 0) {
            return false;
        }
        if closed {
            self.since_ns.store(now_ns.max(1), Ordering::Relaxed);
        } else {
            self.since_ns.store(0, Ordering::Relaxed);
            self.total_ns.fetch_add(now_ns.saturating_sub(since_ns), Ordering::Relaxed);
        }
        true
    }

    /// Nanoseconds until now. A reader on another core may be late by one change.
    #[must_use]
    pub fn total_ns(&self, now_ns: u64) -> u64 {
        self.total_ns.load(Ordering::Relaxed) + self.current_ns(now_ns)
    }

    /// Nanoseconds since it was closed, 0 if it is open.
    #[must_use]
    pub fn current_ns(&self, now_ns: u64) -> u64 {
        match self.since_ns.load(Ordering::Relaxed) {
            0 => 0,
            since_ns => now_ns.saturating_sub(since_ns),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct StreamTime {
    began_ns: u64,
    ended_ns: Cell<Option<u64>>,
    current: Cell<Spent>,
    since_ns: Cell<u64>,
    /// What the next wait is for.
    next: Cell<Spent>,
    sums: [Cell<u64>; Spent::ALL.len()],
    window: Arc<ClosedTime>,
    /// Closed only while the window is open: no moment counts twice.
    socket: Arc<ClosedTime>,
    /// How long window and socket had been closed when the current wait began.
    closed_before_ns: Cell<(u64, u64)>,
}

impl StreamTime {
    /// The time of a stream that begins now and waits to be run; `window` and `socket` are those of its connection, never closed both.
    #[must_use]
    pub fn new(now_ns: u64, window: Arc<ClosedTime>, socket: Arc<ClosedTime>) -> StreamTime {
        StreamTime {
            began_ns: now_ns,
            ended_ns: Cell::new(None),
            current: Cell::new(Spent::Turn),
            since_ns: Cell::new(now_ns),
            next: Cell::new(Spent::Turn),
            sums: Default::default(),
            closed_before_ns: Cell::default(),
            window,
            socket,
        }
    }

    /// What the task waits for from now on, if it has to.
    pub fn waits_for(&self, what: Spent) {
        self.next.set(what);
    }

    /// The task is polled.
    pub fn runs(&self, now_ns: u64, times: &SpentTimes) {
        self.turn_to(Spent::Running, now_ns, times);
    }

    /// The task waits; `is_sending` if pieces of it are under way.
    pub fn pauses(&self, now_ns: u64, is_sending: bool, times: &SpentTimes) {
        let what = match self.next.get() {
            Spent::UpToDate if is_sending => Spent::Credit,
            what => what,
        };
        self.turn_to(what, now_ns, times);
    }

    /// The stream has ended; nothing counts any more.
    pub fn ends(&self, now_ns: u64, times: &SpentTimes) {
        self.turn_to(Spent::Running, now_ns, times);
        if self.ended_ns.get().is_none() {
            self.ended_ns.set(Some(now_ns));
        }
    }

    /// What it does, or waits for; what window and socket hold up is still the connection's.
    #[must_use]
    pub fn waits_for_now(&self) -> Spent {
        self.current.get()
    }

    /// What it does, or waits for, at this moment.
    #[must_use]
    pub fn current(&self, now_ns: u64) -> Spent {
        match self.current.get() {
            Spent::Credit if self.window.current_ns(now_ns) > 0 => Spent::Window,
            Spent::Credit if self.socket.current_ns(now_ns) > 0 => Spent::Socket,
            current => current,
        }
    }

    /// Nanoseconds spent on each, the current wait included.
    #[must_use]
    pub fn sums(&self, now_ns: u64) -> [(Spent, u64); Spent::ALL.len()] {
        let mut sums = Spent::ALL.map(|what| (what, self.sums[what as usize].get()));
        if self.ended_ns.get().is_none() {
            for (what, ns) in self.since(now_ns) {
                sums[what as usize].1 += ns;
            }
        }
        sums
    }

    /// Nanoseconds from the beginning to the end, or until now.
    #[must_use]
    pub fn wall_ns(&self, now_ns: u64) -> u64 {
        self.ended_ns.get().unwrap_or(now_ns).saturating_sub(self.began_ns)
    }

    /// What the time since the last change was spent on.
    fn since(&self, now_ns: u64) -> [(Spent, u64); 3] {
        let elapsed_ns = now_ns.saturating_sub(self.since_ns.get());
        let current = self.current.get();
        let (window_ns, socket_ns) = match current {
            Spent::Credit => {
                let (window, socket) = self.closed_ns(now_ns);
                let (window_before, socket_before) = self.closed_before_ns.get();
                let window_ns = window.saturating_sub(window_before).min(elapsed_ns);
                (window_ns, socket.saturating_sub(socket_before).min(elapsed_ns - window_ns))
            }
            _ => (0, 0),
        };
        [
            (current, elapsed_ns - window_ns - socket_ns),
            (Spent::Window, window_ns),
            (Spent::Socket, socket_ns),
        ]
    }

    fn closed_ns(&self, now_ns: u64) -> (u64, u64) {
        (self.window.total_ns(now_ns), self.socket.total_ns(now_ns))
    }

    fn turn_to(&self, what: Spent, now_ns: u64, times: &SpentTimes) {
        if self.ended_ns.get().is_some() {
            return;
        }
        for (spent, ns) in self.since(now_ns) {
            if ns > 0 {
                let sum = &self.sums[spent as usize];
                sum.set(sum.get() + ns);
                times.of(spent).record(ns);
            }
        }
        self.since_ns.set(now_ns.max(self.since_ns.get()));
        self.current.set(what);
        if what == Spent::Credit {
            self.closed_before_ns.set(self.closed_ns(now_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(time: &StreamTime, now_ns: u64) -> Vec<(Spent, u64)> {
        let sums = time.sums(now_ns);
        assert_eq!(sums.iter().map(|(_, ns)| ns).sum::<u64>(), time.wall_ns(now_ns), "at {now_ns}");
        sums.into_iter().filter(|(_, ns)| *ns > 0).collect()
    }

    #[test]
    fn every_nanosecond_is_spent_on_one_thing_also_in_the_middle_of_a_wait() {
        let times = SpentTimes::default();
        let time = StreamTime::new(100, Arc::default(), Arc::default());
        assert_eq!(of(&time, 110), [(Spent::Turn, 10)]);
        time.runs(110, &times);
        time.waits_for(Spent::Device);
        time.pauses(115, false, &times);
        assert_eq!(of(&time, 175), [(Spent::Running, 5), (Spent::Turn, 10), (Spent::Device, 60)]);
        time.runs(175, &times);
        time.pauses(176, true, &times);
        assert_eq!(time.current(180), Spent::Device, "as it said last");
        time.ends(186, &times);
        let whole = [(Spent::Running, 6), (Spent::Turn, 10), (Spent::Device, 70)];
        assert_eq!(of(&time, 1_000), whole);
        time.runs(2_000, &times);
        assert_eq!((of(&time, 3_000), time.wall_ns(3_000)), (whole.to_vec(), 86));
        assert_eq!(times.of(Spent::Device).histogram().len(), 2);
    }

    #[test]
    fn waiting_for_pieces_is_the_clients_while_its_window_is_closed() {
        let (times, window) = (SpentTimes::default(), Arc::new(ClosedTime::default()));
        let time = StreamTime::new(0, window.clone(), Arc::default());
        assert!(window.is_now(true, 3) && !window.is_now(true, 4));
        time.runs(0, &times);
        time.waits_for(Spent::Credit);
        time.pauses(10, true, &times);
        assert_eq!(time.current(20), Spent::Window);
        assert_eq!(of(&time, 30), [(Spent::Running, 10), (Spent::Window, 20)]);
        window.is_now(false, 40);
        assert_eq!(time.current(50), Spent::Credit);
        window.is_now(true, 60);
        window.is_now(false, 65);
        let spent = [(Spent::Running, 10), (Spent::Credit, 25), (Spent::Window, 35)];
        assert_eq!(of(&time, 70), spent);
        time.runs(70, &times);
        assert_eq!(of(&time, 70), spent);
        // A window that is closed while the stream does other things is not its concern.
        window.is_now(true, 80);
        assert_eq!(of(&time, 100)[0], (Spent::Running, 40));
        assert_eq!(window.total_ns(100), 37 + 5 + 20);
    }
    #[test]
    fn what_neither_window_nor_socket_holds_up_is_the_connections() {
        let (times, window, socket) =
            (SpentTimes::default(), Arc::<ClosedTime>::default(), Arc::<ClosedTime>::default());
        let time = StreamTime::new(0, window.clone(), socket.clone());
        time.runs(0, &times);
        time.waits_for(Spent::UpToDate);
        time.pauses(0, true, &times);
        assert_eq!(time.current(1), Spent::Credit, "a piece is under way");
        socket.is_now(true, 10);
        assert_eq!(time.current(15), Spent::Socket);
        socket.is_now(false, 30);
        window.is_now(true, 30);
        assert_eq!(time.current(35), Spent::Window);
        window.is_now(false, 60);
        assert_eq!(of(&time, 65), [(Spent::Credit, 15), (Spent::Window, 30), (Spent::Socket, 20)]);
        // The last piece is home: now there is nothing to do.
        time.runs(65, &times);
        time.pauses(65, false, &times);
        assert_eq!((time.current(70), of(&time, 70)[3]), (Spent::UpToDate, (Spent::UpToDate, 5)));
    }
}
