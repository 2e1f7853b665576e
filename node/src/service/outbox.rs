//! Sending to other cores without waiting: what a full mailbox does not take waits here, in order.
//!
//! Invariants
//! - Order to each core is kept: while something waits for a core, everything later waits behind it.
//! - What waits is bounded by what asks: each connection has a bounded number of requests under way, each scan two buffers.
//!
//! Does not know: what the messages say.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::message::Message;
use crate::core::mailbox::{Mailboxes, Refused};
use crate::core::{CoreId, host};

struct Inner {
    mail: Mailboxes<Message>,
    /// By core.
    waiting: Vec<RefCell<VecDeque<Message>>>,
}

/// See the module.
pub(super) struct Outbox {
    inner: Rc<Inner>,
}

impl Outbox {
    pub(super) fn new(mail: Mailboxes<Message>) -> Outbox {
        let waiting = (0..mail.cores()).map(|_| RefCell::default()).collect();
        Outbox { inner: Rc::new(Inner { mail, waiting }) }
    }

    pub(super) fn cores(&self) -> usize {
        self.inner.mail.cores()
    }

    pub(super) fn close(&self) {
        self.inner.mail.close();
    }

    /// Sends now, or as soon as there is room. A core that has ended gets nothing; the node is stopping then.
    pub(super) fn send(&self, to: CoreId, message: Message) {
        let mut waiting = self.inner.waiting[to.index()].borrow_mut();
        if !waiting.is_empty() {
            waiting.push_back(message);
            return;
        }
        match self.inner.mail.try_send(to, message) {
            Ok(()) | Err(Refused::Closed(_)) => {}
            Err(Refused::Full(message)) => {
                waiting.push_back(message);
                host::spawn("outbox", drain(self.inner.clone(), to));
            }
        }
    }
}

async fn drain(inner: Rc<Inner>, to: CoreId) {
    loop {
        inner.mail.room(to).await;
        let mut waiting = inner.waiting[to.index()].borrow_mut();
        let Some(message) = waiting.pop_front() else { return };
        match inner.mail.try_send(to, message) {
            Ok(()) => {}
            Err(Refused::Full(message)) => waiting.push_front(message),
            Err(Refused::Closed(_)) => return waiting.clear(),
        }
        if waiting.is_empty() {
            return;
        }
    }
}
