//! The connections of one core: accepting, serving, ending them.
//!
//! Each connection is one task that reads and a second one that writes. When a connection ends, what is owed is sent
//! (for a bounded time), our side is closed, and what the peer still sends is discarded for a moment: closing a socket
//! with unread bytes would destroy the last answers on their way.
//!
//! Cost: two tasks a connection; a few hundred bytes while it is idle.
//!
//! Does not know: frames.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::Service;
use super::connection::{CloseCause, ConnId, Connection, Life};
use super::limits::{Admission, NetSettings, NetStats, count};
use super::output::Spare;
use super::reader::{Reader, Scratch};
use super::writer::write_all;
use crate::core::event::{Event, Waiters};
use crate::core::socket::{BoundSocket, Listener, Socket};
use crate::core::{CoreId, host};

/// How long bytes of a peer are discarded after our side has closed.
const LINGER: Duration = Duration::from_secs(1);

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// The network side of one core.
pub struct Net<S: Service> {
    core: CoreId,
    service: Rc<S>,
    settings: Rc<NetSettings>,
    admission: Arc<Admission>,
    stats: Rc<NetStats>,
    scratch: Scratch,
    spare: Spare,
    connections: RefCell<HashMap<ConnId, Rc<Connection>>>,
    count: Cell<u64>,
    stop: Event,
    accepting: Cell<bool>,
    changed: Waiters,
}

impl<S: Service> Net<S> {
    /// Starts to accept on the calling core.
    pub fn start(
        core: CoreId,
        bound: BoundSocket,
        service: Rc<S>,
        settings: NetSettings,
        admission: Arc<Admission>,
    ) -> io::Result<Rc<Net<S>>> {
        let listener = bound.into_listener()?;
        let net = Rc::new(Net {
            core,
            service,
            settings: Rc::new(settings),
            admission,
            stats: Rc::default(),
            scratch: Scratch::default(),
            spare: Spare::default(),
            connections: RefCell::default(),
            count: Cell::new(0),
            stop: Event::new(),
            accepting: Cell::new(true),
            changed: Waiters::new(),
        });
        host::spawn("accept", accept_all(Rc::clone(&net), listener));
        Ok(net)
    }

    /// Counters of this core.
    #[must_use]
    pub fn stats(&self) -> &Rc<NetStats> {
        &self.stats
    }

    /// The connections of this core now.
    #[must_use]
    pub fn connections(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().values().cloned().collect()
    }

    /// Stops accepting and waits until the listener is closed.
    pub async fn stop_accepting(&self) {
        self.stop.notify();
        self.wait_until(|net| !net.accepting.get()).await;
    }

    /// Ends all connections: no further request is executed, what is owed is sent. Those that have not ended after
    /// `grace` are broken. Resolves when none is left.
    pub async fn close_all(&self, grace: Duration) {
        for connection in self.connections() {
            connection.close(CloseCause::Stopping);
        }
        let ended = self.wait_until(|net| net.connections.borrow().is_empty());
        let mut ended = pin!(ended);
        let mut deadline = pin!(host::sleep(grace));
        let in_time = poll_fn(|cx| {
            if ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            deadline.as_mut().poll(cx).map(|()| false)
        })
        .await;
        if !in_time {
            let left = self.connections();
            warn!(core = %self.core, connections = left.len(), "connections broken that did not end in time");
            for connection in left {
                connection.abort(CloseCause::Stopping);
            }
            ended.await;
        }
    }

    async fn wait_until(&self, condition: impl Fn(&Net<S>) -> bool) {
        poll_fn(|cx| {
            if condition(self) {
                return Poll::Ready(());
            }
            self.changed.add(cx);
            Poll::Pending
        })
        .await;
    }

    /// Takes one accepted socket in, if the limits allow.
    fn admit(self: &Rc<Self>, socket: Socket) -> io::Result<()> {
        let Some(admitted) = self.admission.admit() else {
            count(&self.stats.rejected, 1);
            debug!(core = %self.core, "connection refused: too many");
            return Ok(());
        };
        self.count.set(self.count.get() + 1);
        let id = ConnId::new(self.core, self.count.get());
        let (settings, stats) = (Rc::clone(&self.settings), Rc::clone(&self.stats));
        let connection = Rc::new(Connection::new(id, socket, settings, stats, admitted, self.spare.clone())?);
        count(&self.stats.accepted, 1);
        count(&self.stats.connections, 1);
        self.connections.borrow_mut().insert(id, Rc::clone(&connection));
        host::spawn("writer", write_all(Rc::clone(&connection)));
        let (net, serving) = (Rc::clone(self), Rc::clone(&connection));
        host::spawn("connection", async move {
            let guard = Entry { net: &net, connection: &serving };
            serve(&net, &serving).await;
            drop(guard);
        });
        Ok(())
    }
}

/// A connection in the list of its core; leaves it when dropped, also by a panic.
struct Entry<'a, S: Service> {
    net: &'a Rc<Net<S>>,
    connection: &'a Rc<Connection>,
}

impl<S: Service> Drop for Entry<'_, S> {
    fn drop(&mut self) {
        // Whatever happened: the writer ends and waiting owners of answers learn it.
        self.connection.abort(CloseCause::Panicked);
        self.net.connections.borrow_mut().remove(&self.connection.id());
        let stats = &self.net.stats;
        stats.connections.set(stats.connections.get() - 1);
        self.net.changed.wake_all();
    }
}

async fn accept_all<S: Service>(net: Rc<Net<S>>, listener: Listener) {
    loop {
        let accepted = {
            let mut accept = pin!(listener.accept());
            poll_fn(|cx| {
                if net.stop.poll_wait(cx).is_ready() {
                    return Poll::Ready(None);
                }
                accept.as_mut().poll(cx).map(Some)
            })
            .await
        };
        match accepted {
            None => break,
            Some(Ok(socket)) => {
                if let Err(error) = net.admit(socket) {
                    debug!(core = %net.core, %error, "connection gone before it was served");
                }
                // A flood of connections does not keep the others waiting.
                host::relax().await;
            }
            Some(Err(error)) => {
                warn!(core = %net.core, %error, "cannot accept a connection");
                host::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    net.accepting.set(false);
    net.changed.wake_all();
}

/// A connection from its first byte to its end.
async fn serve<S: Service>(net: &Rc<Net<S>>, connection: &Rc<Connection>) {
    let service = Rc::clone(&net.service);
    let Ok(session) = catch_unwind(AssertUnwindSafe(|| service.connected(connection))) else {
        connection.abort(CloseCause::Panicked);
        return;
    };
    debug!(conn = %connection.id(), peer = %connection.peer(), "connected");
    Reader::new(Rc::clone(connection), Rc::clone(&service), Rc::clone(&session), net.scratch.clone())
        .run()
        .await;
    drain(connection).await;
    let disconnected = || service.disconnected(&session, connection);
    if catch_unwind(AssertUnwindSafe(disconnected)).is_err() {
        error!(conn = %connection.id(), "ending a connection panicked");
    }
    if connection.life() == Life::Closing {
        linger(connection).await;
    }
    connection.abort(CloseCause::Peer);
    let cause = connection.take_cause();
    if cause.is_bug() {
        error!(conn = %connection.id(), peer = %connection.peer(), %cause, "connection ended by a bug");
    } else if matches!(
        cause,
        CloseCause::Protocol(_) | CloseCause::HandshakeTimeout | CloseCause::FlushTimeout
    ) {
        let source = std::error::Error::source(&cause).map(ToString::to_string);
        info!(conn = %connection.id(), peer = %connection.peer(), %cause, source, "connection ended");
    } else {
        debug!(conn = %connection.id(), %cause, "connection ended");
    }
}

/// Waits until everything that is owed has been sent, the connection died, or time is up.
async fn drain(connection: &Rc<Connection>) {
    let mut deadline = pin!(host::sleep(connection.settings.flush_timeout));
    while connection.life() == Life::Closing && !connection.output().is_drained() {
        let in_time = poll_fn(|cx| {
            if connection.read_event.poll_wait(cx).is_ready() {
                return Poll::Ready(true);
            }
            deadline.as_mut().poll(cx).map(|()| false)
        })
        .await;
        if !in_time {
            connection.abort(CloseCause::FlushTimeout);
        }
    }
}

/// Closes our side and discards what still comes, until the peer closes too or the time is up.
async fn linger(connection: &Rc<Connection>) {
    connection.socket.shutdown_write();
    let started = Instant::now();
    let mut sink = vec![0; 4 << 10];
    while !connection.input_ended.get() && started.elapsed() < LINGER && connection.life() == Life::Closing {
        let mut deadline = pin!(host::sleep(LINGER));
        let read = poll_fn(|cx| {
            if let Poll::Ready(read) = connection.socket.poll_read(cx, &mut sink) {
                return Poll::Ready(read.unwrap_or(0));
            }
            deadline.as_mut().poll(cx).map(|()| 0)
        })
        .await;
        if read == 0 {
            break;
        }
        host::relax().await;
    }
}
