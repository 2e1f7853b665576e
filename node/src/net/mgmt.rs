//! The management port: answers every HTTP request with 404, so that clients which look for one do not hang.
//!
//! Bounded: [`CONNECTIONS_MAX`] connections, a request head of [`HEAD_BYTES_MAX`], [`DEADLINE`] for everything.
//!
//! Does not know: HTTP beyond the end of a request head.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tracing::debug;

use crate::core::event::Event;
use crate::core::host;
use crate::core::socket::{BoundSocket, Socket};

/// Connections served at a time; more are closed at once.
pub const CONNECTIONS_MAX: usize = 16;

/// Longest request head, in bytes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// Time for a request to arrive and its answer to leave.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The one answer.
const NOT_FOUND: &[u8] =
    b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 10\r\nConnection: close\r\n\r\nnot found\n";

/// Answers on `bound` until `stop` is set. Runs on the calling core.
///
/// # Errors
/// The kernel has no memory, or no watch left for this user.
pub fn start(bound: BoundSocket, stop: Rc<Event>) -> io::Result<()> {
    let listener = bound.into_listener()?;
    host::spawn("management", async move {
        let open = Rc::new(Cell::new(0usize));
        loop {
            let accepted = {
                let mut accept = pin!(listener.accept());
                poll_fn(|cx| {
                    if stop.poll_wait(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    accept.as_mut().poll(cx).map(Some)
                })
                .await
            };
            match accepted {
                None => return,
                Some(Ok(socket)) if open.get() < CONNECTIONS_MAX => {
                    open.set(open.get() + 1);
                    let open = Rc::clone(&open);
                    host::spawn("management connection", async move {
                        if let Err(error) = within_deadline(answer(&socket)).await {
                            debug!(%error, "management request not answered");
                        }
                        open.set(open.get() - 1);
                    });
                }
                Some(Ok(_)) => {}
                Some(Err(_)) => host::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    Ok(())
}

async fn within_deadline(task: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let mut task = pin!(task);
    let mut deadline = pin!(host::sleep(DEADLINE));
    poll_fn(|cx| {
        if let Poll::Ready(result) = task.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

/// Reads one request head and answers it.
async fn answer(socket: &Socket) -> io::Result<()> {
    let mut head = vec![0; HEAD_BYTES_MAX];
    let mut len = 0;
    while !head[..len].windows(4).any(|end| end == b"\r\n\r\n") {
        if len == head.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "request head too long"));
        }
        let read = poll_fn(|cx| socket.poll_read(cx, &mut head[len..])).await?;
        if read == 0 {
            return Ok(());
        }
        len += read;
    }
    let mut left = NOT_FOUND;
    while !left.is_empty() {
        let sent = poll_fn(|cx| socket.poll_write(cx, &[IoSlice::new(left)])).await?;
        left = &left[sent..];
    }
    socket.shutdown_write();
    // The peer closes first, or the deadline ends the wait: unread bytes at a close would destroy the answer.
    while poll_fn(|cx| socket.poll_read(cx, &mut head)).await? > 0 {}
    Ok(())
}
