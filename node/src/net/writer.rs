//! The writer task of a connection: everything that is ready leaves with one send.
//!
//! It is woken when there is something to send and runs after the tasks that were ready before it, so the answers of a
//! burst, and those that other tasks finished meanwhile, go out together.
//!
//! Cost: one system call a wake-up, unless the kernel takes less than there is.
//!
//! Does not know: whose answers these are.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll};

use super::connection::{CloseCause, Connection, Life};
use super::limits::count;
use crate::core::socket::SLICES_MAX;

/// Writes until the connection is dead.
pub(super) async fn write_all(connection: Rc<Connection>) {
    while connection.life() != Life::Dead {
        if !connection.output().is_ready() {
            connection.write_event.wait().await;
            continue;
        }
        match poll_fn(|cx| poll_send(&connection, cx)).await {
            Ok(bytes) => {
                count(&connection.stats.bytes_written, bytes);
                count(&connection.stats.sends, 1);
                connection.output().advance(bytes);
                connection.made_room();
            }
            Err(error) => connection.abort(CloseCause::Socket(error)),
        }
    }
}

/// Sends what is ready, as much as the kernel takes.
fn poll_send(connection: &Connection, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let output = connection.output();
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let mut used = 0;
    for (place, slice) in slices.iter_mut().zip(output.slices()) {
        *place = slice;
        used += 1;
    }
    if used == 0 {
        // The connection died while this waited.
        return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
    }
    connection.socket.poll_write(cx, &slices[..used])
}
