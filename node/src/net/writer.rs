//! The writer task of a connection: everything that is ready leaves with one send.
//!
//! It sends what the reader does not send itself: answers that other tasks finish, and what the kernel did not take at
//! once. It runs after the tasks that were ready before it, so answers that are finished meanwhile go out together.
//!
//! Cost: one system call a wake-up, unless the kernel takes less than there is.
//!
//! Does not know: whose answers these are.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::core::host;

use super::connection::{CloseCause, Connection, Life};

/// Writes until the connection is dead.
pub(super) async fn write_all(connection: Rc<Connection>) {
    while connection.life() != Life::Dead {
        if !connection.output().is_ready() {
            connection.write_event.wait().await;
            continue;
        }
        match poll_fn(|cx| poll_send(&connection, cx)).await {
            Ok(bytes) => {
                connection.sent(bytes);
                if connection.output().is_ready() {
                    host::give_way().await;
                }
            }
            Err(error) => connection.abort(CloseCause::Socket(error)),
        }
    }
}

/// Sends what is ready, as much as the kernel takes.
fn poll_send(connection: &Connection, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    connection.with_slices(|slices| {
        if slices.is_empty() {
            // The connection died while this waited.
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        connection.socket.poll_write(cx, slices)
    })
}
