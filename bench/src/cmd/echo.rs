//! `ringbench echo`: the least that a server on this runtime does, as a child process of `ringbench kv`.
//!
//! Cores, sockets and settings are the node's; a connection is one task that answers every request with an empty success of the same opcode
//! and tag, all requests of a read with one send. Nothing is looked up.
//!
//! Invariants
//! - It ends when its standard input does, so it does not outlive who started it.
//!
//! Does not know: opcodes, documents.

use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;
use ringbase::core::socket::{Socket, bind_all};
use ringbase::core::{CoreId, CoreSettings, executor, host};
use ringbase::protocol::{Decoded, FrameLimits, Response, Status, decode_frame};

use crate::cpus;
use crate::error::BenchError;

/// Room for one read; more than the largest frame that is taken.
const ROOM_BYTES: usize = 64 << 10;

const _: () = assert!(ROOM_BYTES > FrameLimits::UNAUTHENTICATED.frame_bytes_max);

/// Options of `ringbench echo`.
#[derive(Debug, Clone, Args)]
pub(crate) struct EchoArgs {
    /// Cores.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cores: u16,
}

/// Answers on a free port, which it prints, until standard input ends.
pub(crate) fn run(args: &EchoArgs) -> Result<(), BenchError> {
    let cpus = cpus::allowed()?;
    let cores = usize::from(args.cores);
    if cores == 0 || cores > cpus.len() {
        return Err(BenchError::Misuse(format!("{cores} cores, but there are {} CPUs", cpus.len())));
    }
    let unstarted = |error: &dyn std::fmt::Display| BenchError::Unsound(format!("no echo: {error}"));
    let bound = bind_all(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), cores);
    let bound = bound.map_err(|error| unstarted(&error))?;
    let address = bound[0].address();
    let mut running = Vec::new();
    for ((core, cpu), socket) in (0..args.cores).zip(cpus).zip(bound) {
        let body = move || async move {
            let listener = match socket.into_listener() {
                Ok(listener) => listener,
                Err(error) => return eprintln!("core {core} cannot listen: {error}"),
            };
            loop {
                match listener.accept().await {
                    Ok(socket) => host::spawn("echo", echo(socket)),
                    Err(_) => host::yield_now().await,
                }
            }
        };
        let started = executor::start::<_, _, ()>(CoreId(core), cpu, &CoreSettings::default(), body);
        running.push(started.map_err(|error| unstarted(&error))?);
    }
    let said = writeln!(io::stdout(), "{address}").and_then(|()| io::stdout().flush());
    said.map_err(BenchError::system("print the address"))?;
    io::stdin()
        .read_to_end(&mut Vec::new())
        .map_err(BenchError::system("wait for the end of standard input"))?;
    // The end of the process ends the cores.
    Ok(())
}

/// A connection until it ends, breaks, or sends what is no frame.
async fn echo(socket: Socket) {
    let (mut room, mut len, mut out) = (vec![0; ROOM_BYTES], 0, Vec::new());
    loop {
        match poll_fn(|cx| socket.poll_read(cx, &mut room[len..])).await {
            Ok(read) if read > 0 => len += read,
            _ => return,
        }
        out.clear();
        let Some(consumed) = answer(&room[..len], &mut out) else { return };
        room.copy_within(consumed..len, 0);
        len -= consumed;
        let mut sent = 0;
        while sent < out.len() {
            let slices = [IoSlice::new(&out[sent..])];
            match poll_fn(|cx| socket.poll_write(cx, &slices)).await {
                Ok(bytes) => sent += bytes,
                Err(_) => return,
            }
        }
    }
}

/// Answers the whole frames at the beginning of `bytes` and returns how many bytes they were; `None` if there is something else.
fn answer(bytes: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let mut consumed = 0;
    loop {
        match decode_frame(&bytes[consumed..], FrameLimits::UNAUTHENTICATED) {
            Ok(Decoded::Frame(frame)) => {
                Response::new(frame.opcode(), frame.opaque(), Status::SUCCESS).encode(out);
                consumed += frame.frame_bytes();
            }
            Ok(Decoded::Incomplete { .. }) => return Some(consumed),
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ringbase::protocol::{Opcode, Request};

    use super::*;

    #[test]
    fn every_whole_request_is_answered_once_and_the_rest_waits() {
        let mut bytes = Vec::new();
        for opaque in 1..=3 {
            Request::new(Opcode::NOOP).opaque(opaque).encode(&mut bytes).unwrap();
        }
        let mut out = Vec::new();
        assert_eq!(answer(&bytes[..71], &mut out), Some(48));
        assert_eq!(out.len(), 48);
        let Ok(Decoded::Frame(first)) = decode_frame(&out, FrameLimits::UNAUTHENTICATED) else { panic!() };
        assert_eq!((first.opcode(), first.opaque(), first.status()), (Opcode::NOOP, 1, Status::SUCCESS));
        assert_eq!(answer(b"GET / HTTP/1.1 and some more bytes", &mut out), None);
    }
}
