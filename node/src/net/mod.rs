//! TCP connections of the node: accept, read bursts, execute, answer in order, bounded in every direction.
//!
//! Each core has a listener and owns the connections it accepts; nothing here crosses cores. A connection is two tasks, a
//! [`reader`](self) that executes frames through the [`Service`] and answers a burst with one send, and a writer that sends
//! what is owed later. Answers may be given at once or later, in any order, through [`Ticket`]s; they leave in request order. A
//! peer that does not read stops being served and holds bounded memory; a peer that goes is noticed while it is being
//! served.
//!
//! Does not know: what an opcode means, buckets, storage.

mod accept;
mod connection;
mod limits;
pub mod mgmt;
mod output;
mod reader;
mod small;
#[cfg(test)]
mod tests;
mod ticket;
mod writer;

use std::rc::Rc;

use crate::protocol::Frame;

pub use accept::Net;
pub use connection::{CloseCause, ConnId, Connection};
pub use limits::{Admission, Admitted, NetSettings, NetStats};
pub use output::{Disconnected, Pushed};
pub use small::SmallBuffers;
pub use ticket::{ReplyStream, Ticket};

/// How a request relates to others of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It may start while earlier requests are not answered yet. Answers keep the order all the same.
    Free,
    /// It starts when all earlier requests are answered.
    After,
    /// As `After`, and no later request starts before it is answered.
    Alone,
}

/// What a node does with its connections. One per core; every call happens on that core.
pub trait Service: 'static {
    /// What the service knows of a connection.
    type Session: 'static;

    /// A peer has connected. It counts as unauthenticated until the service says otherwise.
    fn connected(&self, connection: &Rc<Connection>) -> Rc<Self::Session>;

    /// How the request in `frame` relates to the others. Called right before `execute`, perhaps more than once.
    fn order(&self, session: &Rc<Self::Session>, frame: &Frame<'_>) -> Order;

    /// A burst has been read: calls for its frames follow. Clocks are read here and at the end, rather than for each request.
    fn burst_begins(&self) {}

    /// The frames of the burst have been executed; the answers finished by now are about to leave.
    fn burst_ends(&self) {}

    /// Executes the request in `frame`, which has not been validated. The ticket must be answered, now or later. A panic
    /// ends the connection.
    fn execute(&self, session: &Rc<Self::Session>, ticket: Ticket, frame: &Frame<'_>);

    /// Takes a response of the peer (DCP, or the answer to a NOOP).
    fn response(&self, session: &Rc<Self::Session>, frame: &Frame<'_>);

    /// The peer is gone: called once, as soon as it is known. Answers may still be given; nobody sees them.
    fn disconnected(&self, session: &Rc<Self::Session>, connection: &Rc<Connection>);
}
