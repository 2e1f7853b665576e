//! Tickets: the right, and the duty, to answer one request.
//!
//! A [`Ticket`] may be answered inside [`Service::execute`](super::Service::execute) or kept for later; it holds the
//! connection. A [`ReplyStream`] answers with any number of large buffers, each acknowledged when the kernel has taken it.
//!
//! Invariants
//! - Every ticket is answered once. One that is dropped unanswered ends its connection: the client would wait forever.
//!
//! Cost: a ticket is a counted reference and a number; an answer at the head of the line allocates nothing.
//!
//! Does not know: what is answered.

use std::rc::Rc;

use bytes::Bytes;

use super::connection::{CloseCause, Connection};
use super::output::{Disconnected, Pushed};

/// The right to answer one request.
#[derive(Debug)]
pub struct Ticket {
    connection: Rc<Connection>,
    place: u64,
    open: bool,
}

impl Ticket {
    pub(super) fn new(connection: &Rc<Connection>) -> Ticket {
        let place = connection.output().open();
        Ticket { connection: Rc::clone(connection), place, open: true }
    }

    /// Whose request it is.
    #[must_use]
    pub fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    /// Answers with what `encode` appends: whole frames. The buffer may hold earlier replies; only append.
    pub fn reply(mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.connection.output().write(self.place, encode);
        self.finish();
    }

    /// Answers with nothing: a quiet request that has nothing to say.
    pub fn silent(mut self) {
        self.finish();
    }

    /// Answers as [`Ticket::reply`]; then the connection executes no further request and closes when all has been sent.
    pub fn reply_and_close(mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.connection.output().write(self.place, encode);
        self.connection.close_after_flush();
        self.finish();
    }

    /// Appends a part of the answer; more follows. For answers of many small frames, such as STAT.
    pub fn write(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.connection.output().write(self.place, encode);
        self.connection.wake_writer();
    }

    /// Answers with a stream of buffers. If the peer closes its side while a stream is open, the connection counts as
    /// gone at once.
    #[must_use]
    pub fn stream(self) -> ReplyStream {
        self.connection.stream_opened();
        ReplyStream { ticket: Some(self) }
    }

    fn finish(&mut self) {
        self.open = false;
        self.connection.output().finish(self.place);
        self.connection.answered();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            self.finish();
            if !std::thread::panicking() {
                self.connection.abort(CloseCause::Unanswered);
            }
        }
    }
}

/// An answer of many buffers. Dropping it unfinished ends the connection.
#[derive(Debug)]
pub struct ReplyStream {
    /// Taken only by `finish`.
    ticket: Option<Ticket>,
}

impl ReplyStream {
    fn ticket(&self) -> &Ticket {
        self.ticket.as_ref().expect("only finish takes the ticket, and it consumes the stream")
    }

    /// Whose request it is.
    #[must_use]
    pub fn connection(&self) -> &Rc<Connection> {
        self.ticket().connection()
    }

    /// Sends `bytes`, one or more whole frames, without copying them. The result resolves when the kernel has taken
    /// them all and gives the buffer back for reuse; keep at most two unresolved.
    pub fn push(&self, bytes: Bytes) -> Pushed {
        let ticket = self.ticket();
        let pushed = ticket.connection.output().push(ticket.place, bytes);
        ticket.connection.wake_writer();
        pushed
    }

    /// Sends `bytes` and waits until the kernel has taken them.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&self, bytes: Bytes) -> Result<Bytes, Disconnected> {
        self.push(bytes).await
    }

    /// Ends the answer with what `encode` appends.
    pub fn finish(mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        if let Some(ticket) = self.ticket.take() {
            ticket.connection.stream_closed();
            ticket.reply(encode);
        }
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            ticket.connection.stream_closed();
        }
    }
}
