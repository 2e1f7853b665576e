//! Flow control: how many bytes a producer may have on their way to one client, and when a client gives them back.
//!
//! Invariants
//! - Outstanding bytes never go below 0, and above the window by one message at most if [`Window::is_full`] is asked
//!   before each.
//! - Noops and responses weigh nothing.
//!
//! Cost: a few words.
//!
//! Does not know: messages (`protocol::dcp::flow_control_bytes` weighs them), sockets, clocks.

use std::time::Duration;

/// The producer's side: one for each connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    size_bytes: u32,
    outstanding_bytes: u64,
}

/// What became of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acked {
    /// The bytes are no longer outstanding.
    Taken,
    /// The client gave back more than it had, by this many bytes; nothing is outstanding. Worth a warning.
    Clamped {
        /// Bytes too many.
        excess_bytes: u64,
    },
    /// Flow control is off.
    Ignored,
}

impl Window {
    /// No flow control, the state of a new connection.
    #[must_use]
    pub fn off() -> Window {
        Window::default()
    }

    /// Sets the window of `connection_buffer_size`; 0 turns flow control off and forgets what is outstanding.
    pub fn resize(&mut self, size_bytes: u32) {
        self.size_bytes = size_bytes;
        if size_bytes == 0 {
            self.outstanding_bytes = 0;
        }
    }

    /// Whether there is a window.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.size_bytes > 0
    }

    /// The window in bytes, 0 for none.
    #[must_use]
    pub fn size_bytes(&self) -> u32 {
        self.size_bytes
    }

    /// Bytes sent and not given back.
    #[must_use]
    pub fn outstanding_bytes(&self) -> u64 {
        self.outstanding_bytes
    }

    /// Whether no message of a stream may be sent now. Noops and responses may.
    #[must_use]
    #[inline]
    pub fn is_full(&self) -> bool {
        self.is_on() && self.outstanding_bytes >= u64::from(self.size_bytes)
    }

    /// Bytes until the window is full; `None` without flow control. The message that fills it may be longer.
    #[must_use]
    #[inline]
    pub fn room_bytes(&self) -> Option<u64> {
        self.is_on().then(|| u64::from(self.size_bytes).saturating_sub(self.outstanding_bytes))
    }

    /// Counts a message that weighs `bytes`.
    #[inline]
    pub fn sent(&mut self, bytes: usize) {
        if self.is_on() {
            self.outstanding_bytes = self.outstanding_bytes.saturating_add(bytes as u64);
        }
    }

    /// Takes a client's acknowledgement.
    pub fn acked(&mut self, bytes: u32) -> Acked {
        if !self.is_on() {
            return Acked::Ignored;
        }
        let bytes = u64::from(bytes);
        match self.outstanding_bytes.checked_sub(bytes) {
            Some(rest) => {
                self.outstanding_bytes = rest;
                Acked::Taken
            }
            None => {
                let excess_bytes = bytes - self.outstanding_bytes;
                self.outstanding_bytes = 0;
                Acked::Clamped { excess_bytes }
            }
        }
    }
}

/// How long a client keeps bytes to itself at most.
pub const ACK_AFTER: Duration = Duration::from_secs(5);

/// The client's side: when to acknowledge what it has processed. Times count from any fixed point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledger {
    due_bytes: u32,
    unacked_bytes: u32,
    last_ack: Duration,
}

impl Acknowledger {
    /// For a window of `window_bytes`, from `now` on: a fifth of it is due at once, less after [`ACK_AFTER`].
    #[must_use]
    pub fn new(window_bytes: u32, now: Duration) -> Acknowledger {
        Acknowledger { due_bytes: window_bytes / 5, unacked_bytes: 0, last_ack: now }
    }

    /// Counts a processed message of `bytes` bytes on the wire.
    pub fn processed(&mut self, bytes: u32) {
        self.unacked_bytes = self.unacked_bytes.saturating_add(bytes);
    }

    /// The bytes to acknowledge now, if any are due; they are then forgotten.
    pub fn take_due(&mut self, now: Duration) -> Option<u32> {
        let is_late = now.saturating_sub(self.last_ack) >= ACK_AFTER;
        if self.unacked_bytes == 0 || !(is_late || self.unacked_bytes >= self.due_bytes) {
            return None;
        }
        self.last_ack = now;
        Some(std::mem::take(&mut self.unacked_bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_a_window_nothing_is_counted_and_nothing_is_full() {
        let mut window = Window::off();
        window.sent(usize::MAX);
        assert_eq!((window.outstanding_bytes(), window.is_full(), window.room_bytes()), (0, false, None));
        assert_eq!(window.acked(7), Acked::Ignored);
    }

    #[test]
    fn a_full_window_stops_messages_until_bytes_are_given_back() {
        let mut window = Window::off();
        window.resize(100);
        window.sent(99);
        assert!(!window.is_full(), "one more message may go, however long");
        assert_eq!(window.room_bytes(), Some(1));
        window.sent(500);
        assert!(window.is_full());
        assert_eq!((window.outstanding_bytes(), window.room_bytes()), (599, Some(0)));
        assert_eq!(window.acked(499), Acked::Taken);
        assert!(window.is_full(), "exactly the window is full");
        assert_eq!(window.acked(1), Acked::Taken);
        assert!(!window.is_full());
    }

    #[test]
    fn more_than_outstanding_is_clamped_to_nothing() {
        let mut window = Window::off();
        window.resize(10);
        window.sent(4);
        assert_eq!(window.acked(5), Acked::Clamped { excess_bytes: 1 });
        assert_eq!(window.outstanding_bytes(), 0);
        window.sent(20);
        window.resize(0);
        window.resize(10);
        assert_eq!((window.outstanding_bytes(), window.is_full()), (0, false));
    }

    #[test]
    fn a_client_acknowledges_a_fifth_at_once_and_less_after_five_seconds() {
        let at = Duration::from_secs;
        let mut client = Acknowledger::new(1000, at(100));
        client.processed(199);
        assert_eq!(client.take_due(at(104)), None);
        client.processed(1);
        assert_eq!(client.take_due(at(104)), Some(200));
        assert_eq!(client.take_due(at(200)), None, "nothing to give back");
        client.processed(1);
        assert_eq!(client.take_due(at(205)), Some(1));
        client.processed(1);
        assert_eq!(client.take_due(at(206)), None);
        assert_eq!(client.take_due(at(210)), Some(1));
    }

    proptest! {
        /// A producer that asks before each message and a client that gives back what it got: the window is
        /// overshot by less than one message, and all messages arrive.
        #[test]
        fn the_window_is_overshot_by_one_message_at_most_and_never_sticks(
            size in 1_u32..5000,
            messages in proptest::collection::vec(1_usize..9000, 1..60),
        ) {
            let mut window = Window::off();
            window.resize(size);
            let mut client = Acknowledger::new(size, Duration::ZERO);
            let mut now = Duration::ZERO;
            for message in messages {
                while window.is_full() {
                    now += Duration::from_secs(1);
                    if let Some(bytes) = client.take_due(now) {
                        prop_assert_eq!(window.acked(bytes), Acked::Taken);
                    }
                    prop_assert!(now < Duration::from_secs(10_000), "it sticks");
                }
                window.sent(message);
                client.processed(message as u32);
                prop_assert!(window.outstanding_bytes() < u64::from(size) + message as u64);
            }
        }
    }
}
