//! TCP of one core: sockets bound for all cores at once, a listener per core, byte streams.
//!
//! All cores listen on one port (SO_REUSEPORT) and the kernel spreads connections over them. Because that option
//! would let a second node share the port silently, [`bind_all`] first binds without it.
//!
//! A [`Socket`] may be read by one task and written by another of the same core at the same time: each direction has
//! its own readiness and its own waker. Nothing is borrowed across an await.
//!
//! Cost: a read is tried when the reactor has seen that there is something, a write at once; none of them costs a second system call.
//!
//! Does not know: frames, connections, limits.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener as PlainListener};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrAny, SocketFlags,
    SocketType, ipproto, sockopt,
};

use super::reactor::Watch;

/// Connections that the kernel completes before a core accepts them.
const BACKLOG: i32 = 1024;

/// Slices handed to one send.
pub const SLICES_MAX: usize = 64;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another process, or another node, listens there.
    #[error("port in use: something else listens on {address}")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The kernel refused.
    #[error("cannot listen on {address}")]
    Io {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A listening socket without a core. Connections queue in the kernel until a core accepts them.
#[derive(Debug)]
pub struct BoundSocket {
    fd: OwnedFd,
    address: SocketAddr,
}

/// Binds one socket for each of `cores` cores to `address`; port 0 picks a free one, the same for all.
///
/// The sockets listen at once: a socket that is only bound does not keep another node from binding too.
///
/// # Errors
/// `InUse` if anybody else listens on the address, also another node; `Io` for the rest.
pub fn bind_all(address: SocketAddr, cores: usize) -> Result<Vec<BoundSocket>, BindError> {
    let refused = |source: io::Error| {
        if source.kind() == io::ErrorKind::AddrInUse {
            BindError::InUse { address }
        } else {
            BindError::Io { address, source }
        }
    };
    // Exclusive first: it fails where a shared bind would silently join another node.
    let exclusive = PlainListener::bind(address).map_err(refused)?;
    let address = exclusive.local_addr().map_err(refused)?;
    drop(exclusive);
    (0..cores)
        .map(|_| bind_shared(address).map(|fd| BoundSocket { fd, address }))
        .collect::<io::Result<_>>()
        .map_err(refused)
}

fn bind_shared(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = rustix::net::socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(ipproto::TCP),
    )?;
    // Without it, connections of a node that was just killed would keep the port for a minute.
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_socket_reuseport(&fd, true)?;
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

impl BoundSocket {
    /// The address, with the port that was picked.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Hands the socket to the calling core, which will accept from it.
    ///
    /// # Errors
    /// The kernel has no memory, or no watch left for this user.
    pub fn into_listener(self) -> io::Result<Listener> {
        Ok(Listener { watch: Watch::new(self.fd)? })
    }
}

/// Accepts connections on one core.
#[derive(Debug)]
pub struct Listener {
    watch: Watch,
}

impl Listener {
    /// The next connection, with TCP_NODELAY set.
    ///
    /// # Errors
    /// The kernel is out of descriptors or memory, or the peer was gone already: try again later.
    pub async fn accept(&self) -> io::Result<Socket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |fd: BorrowedFd<'_>| rustix::net::accept_with(fd, flags);
        let fd = poll_fn(|cx| self.watch.poll_read(cx, accept)).await?;
        sockopt::set_tcp_nodelay(&fd, true)?;
        Ok(Socket { watch: Watch::new(fd)? })
    }
}

/// A TCP connection of one core.
#[derive(Debug)]
pub struct Socket {
    watch: Watch,
}

impl Socket {
    /// Who is at the other end.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        inet(rustix::net::getpeername(self.watch.fd())?)
    }

    /// Our end.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        inet(Some(rustix::net::getsockname(self.watch.fd())?))
    }

    /// Reads what is there into `buffer`; 0 means that the peer will send no more. One task may wait at a time.
    pub fn poll_read(&self, cx: &Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let room = buffer.len();
        let receive = |fd: BorrowedFd<'_>| rustix::net::recv(fd, &mut *buffer, RecvFlags::DONTWAIT);
        self.watch.poll_read(cx, receive).map_ok(|(bytes, _)| {
            if bytes > 0 && bytes < room {
                self.watch.read_all();
            }
            bytes
        })
    }

    /// Sends as much of `slices`, in order, as the kernel takes at once, perhaps nothing. Only the first [`SLICES_MAX`]
    /// slices are looked at; at least one of them must hold bytes.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let slices = &slices[..slices.len().min(SLICES_MAX)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(self.watch.fd(), slices, &mut SendAncillaryBuffer::default(), flags)
        });
        match sent {
            Err(Errno::AGAIN) => {
                self.watch.write_blocked();
                Ok(0)
            }
            sent => Ok(sent?),
        }
    }

    /// As [`Socket::write_now`], but waits until the kernel takes something. One task may wait at a time.
    pub fn poll_write(&self, cx: &Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            match self.write_now(slices) {
                Ok(0) if self.watch.poll_writable(cx).is_pending() => return Poll::Pending,
                Ok(0) => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Whether the peer has closed its side or the connection is broken, also behind bytes that nobody has read yet.
    #[must_use]
    pub fn is_peer_gone(&self) -> bool {
        let fd = self.watch.fd();
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, Some(&now)) {
            Ok(_) => fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR),
            Err(_) => false,
        }
    }

    /// Takes and drops what has arrived, at most `bytes_max`. False if nothing more will come.
    #[must_use]
    pub fn discard(&self, bytes_max: usize) -> bool {
        let mut sink = [0u8; 4096];
        let mut taken = 0;
        while taken < bytes_max {
            match rustix::net::recv(self.watch.fd(), &mut sink, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((bytes, _)) => taken += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Tells the peer that no more bytes will come. What was sent before still arrives.
    pub fn shutdown_write(&self) {
        // Fails only if the connection is gone, and then there is nobody to tell.
        let _ = rustix::net::shutdown(self.watch.fd(), Shutdown::Write);
    }

    /// Breaks both directions; tasks that wait on the socket wake up.
    pub fn abort(&self) {
        // Fails only if the connection is gone already.
        let _ = rustix::net::shutdown(self.watch.fd(), Shutdown::Both);
    }
}

fn inet(address: Option<SocketAddrAny>) -> io::Result<SocketAddr> {
    let address = address.ok_or(io::ErrorKind::NotConnected)?;
    SocketAddr::try_from(address).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::TcpStream as PlainStream;
    use std::rc::Rc;
    use std::time::{Duration, Instant};

    use super::super::event::Event;
    use super::super::executor::tests::on_one_core;
    use super::super::host;
    use super::*;

    fn local() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn second_node_on_the_same_port_is_refused() {
        let first = bind_all(local(), 2).unwrap();
        let address = first[0].address();
        assert_eq!(first[1].address(), address);
        let error = bind_all(address, 2).unwrap_err();
        assert!(matches!(error, BindError::InUse { address: a } if a == address), "{error}");
    }

    #[test]
    fn address_of_another_machine_is_an_error_with_its_cause() {
        let error = bind_all("192.0.2.1:11210".parse().unwrap(), 1).unwrap_err();
        assert!(matches!(error, BindError::Io { .. }), "{error}");
    }

    /// A server that closes first leaves its side in TIME_WAIT: the port must be free for the next start all the same.
    #[test]
    fn port_is_free_again_right_after_a_node_with_open_connections_ended() {
        let mut bound = bind_all(local(), 1).unwrap();
        let address = bound[0].address();
        let bound = bound.remove(0);
        let client = std::thread::spawn(move || {
            let mut stream = PlainStream::connect(address).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
        });
        on_one_core(move || async move {
            let listener = bound.into_listener().unwrap();
            let socket = listener.accept().await.unwrap();
            socket.shutdown_write();
            host::sleep(Duration::from_millis(20)).await;
        });
        client.join().unwrap();
        bind_all(address, 1).unwrap();
    }

    #[test]
    fn reader_and_writer_tasks_use_one_socket_at_the_same_time() {
        const BYTES: usize = 8 << 20;
        let mut bound = bind_all(local(), 1).unwrap();
        let address = bound[0].address();
        let bound = bound.remove(0);
        let core = std::thread::spawn(move || {
            on_one_core(move || async move {
                let listener = bound.into_listener().unwrap();
                let socket = Rc::new(listener.accept().await.unwrap());
                let writing = Rc::clone(&socket);
                let written = Rc::new(Event::new());
                let all_written = Rc::clone(&written);
                host::spawn("writer", async move {
                    let chunk = vec![7u8; 256 << 10];
                    let mut sent = 0;
                    while sent < BYTES {
                        let (head, tail) = chunk[..chunk.len().min(BYTES - sent)].split_at(1);
                        let slices = [IoSlice::new(head), IoSlice::new(tail)];
                        sent += poll_fn(|cx| writing.poll_write(cx, &slices)).await.unwrap();
                    }
                    writing.shutdown_write();
                    all_written.notify();
                });
                let mut buffer = vec![0; 64 << 10];
                let mut read = 0;
                loop {
                    match poll_fn(|cx| socket.poll_read(cx, &mut buffer)).await.unwrap() {
                        0 => break,
                        bytes => read += bytes,
                    }
                }
                written.wait().await;
                read
            })
        });
        let mut client = PlainStream::connect(address).unwrap();
        let mut sending = client.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            sending.write_all(&vec![1; BYTES]).unwrap();
            sending.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        sender.join().unwrap();
        assert_eq!(received.len(), BYTES);
        assert_eq!(core.join().unwrap(), BYTES);
    }

    #[test]
    fn peer_that_closed_is_seen_behind_unread_bytes() {
        let mut bound = bind_all(local(), 1).unwrap();
        let address = bound[0].address();
        let bound = bound.remove(0);
        let (close, may_close) = std::sync::mpsc::channel();
        let client = std::thread::spawn(move || {
            let mut stream = PlainStream::connect(address).unwrap();
            stream.write_all(b"unread").unwrap();
            may_close.recv().unwrap();
        });
        on_one_core(move || async move {
            let listener = bound.into_listener().unwrap();
            let socket = listener.accept().await.unwrap();
            host::sleep(Duration::from_millis(20)).await;
            assert!(!socket.is_peer_gone());
            close.send(()).unwrap();
            let started = Instant::now();
            while !socket.is_peer_gone() {
                assert!(started.elapsed() < Duration::from_secs(60), "the close was never seen");
                host::sleep(Duration::from_millis(5)).await;
            }
            assert!(!socket.discard(usize::MAX));
        });
        client.join().unwrap();
    }
}
