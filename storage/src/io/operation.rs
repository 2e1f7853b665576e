//! One operation of the ring, from the call to its answer: what to do with each result the kernel gives.
//!
//! Pure: a completion goes in, [`Next`] comes out. Short transfers go on where they stopped, interruptions are
//! repeated, a durable write is a write and a sync in one chain of which either part may have to be repeated.
//!
//! Invariants
//! - The operation owns its buffer from the call to the answer.
//! - A durable write succeeds only after a sync that the kernel started after the last byte was written.
//!
//! Does not know: queues, slots, files' descriptors.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use tracing::Span;

use super::completion::Promise;
use super::sync_order::{SyncOrder, SyncOutcome, Ticket};
use super::{BLOCK_BYTES, DmaBuffer};
use crate::metrics::IoClass;

/// What an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperationKind {
    Read,
    Write,
    DurableWrite,
    Sync,
    Grow,
}

impl OperationKind {
    /// Its latency class, if it has one.
    pub(crate) fn class(self) -> Option<IoClass> {
        match self {
            OperationKind::Read => Some(IoClass::Read),
            OperationKind::Write => Some(IoClass::Write),
            OperationKind::DurableWrite => Some(IoClass::DurableWrite),
            OperationKind::Sync => Some(IoClass::Sync),
            OperationKind::Grow => None,
        }
    }

    /// Whether somebody waits for durability: it overtakes what is queued.
    pub(crate) fn is_urgent(self) -> bool {
        matches!(self, OperationKind::DurableWrite | OperationKind::Sync)
    }
}

/// Who waits for the operation.
pub(crate) enum Answer {
    /// Somebody who wants the buffer back, or filled.
    Buffer(Promise<io::Result<DmaBuffer>>),
    /// Somebody who wants to know.
    Unit(Promise<io::Result<()>>),
}

/// The syncs of a file and who waits for them.
pub(crate) type FileSyncs = SyncOrder<(Answer, Option<DmaBuffer>)>;

/// Which entry of an operation completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The only entry, or the write of a chain.
    First,
    /// The sync of a chain.
    LinkedSync,
}

/// What an operation needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The other entry of its chain has yet to complete.
    Wait,
    /// To be submitted again, for what is left of it.
    Again,
    /// To be answered.
    Done(Outcome),
}

/// How an operation ended: the errno of a failure says which part of it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it was done.
    Success,
    /// The transfer failed.
    Failed(i32),
    /// The file ended before the read did.
    EndOfFile,
    /// The kernel took nothing and gave no reason.
    NoProgress,
    /// The sync failed; final.
    SyncFailed(i32),
}

impl Outcome {
    /// The outcome as seen by the order of syncs.
    pub(crate) fn of_sync(self) -> SyncOutcome {
        match self {
            Outcome::Success => SyncOutcome::Synced,
            Outcome::SyncFailed(errno) => SyncOutcome::Failed(errno),
            Outcome::Failed(errno) => SyncOutcome::NotSynced(errno),
            Outcome::EndOfFile | Outcome::NoProgress => SyncOutcome::NotSynced(libc::EIO),
        }
    }

    /// The outcome as the caller is told.
    pub(crate) fn into_result(self) -> io::Result<()> {
        match self {
            Outcome::Success => Ok(()),
            Outcome::Failed(errno) | Outcome::SyncFailed(errno) => Err(io::Error::from_raw_os_error(errno)),
            Outcome::EndOfFile => Err(io::ErrorKind::UnexpectedEof.into()),
            Outcome::NoProgress => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// One operation. `F` is the file it is for.
pub(crate) struct Operation<F> {
    pub(crate) kind: OperationKind,
    pub(crate) file: Rc<F>,
    /// Where it starts, in bytes; the wanted length of a growth.
    pub(crate) offset: u64,
    /// How much it transfers, in bytes.
    pub(crate) len: usize,
    /// How much of that has been transferred.
    pub(crate) done_bytes: usize,
    /// Absent in a read that was not submitted yet, in syncs and growths.
    pub(crate) buffer: Option<DmaBuffer>,
    pub(crate) answer: Answer,
    /// Its place among the syncs of its file.
    pub(crate) ticket: Option<Ticket>,
    /// When it was first submitted.
    pub(crate) submitted_at: Option<Instant>,
    /// From when it was asked for to when it was answered; inside the span of who asked.
    _span: Span,
    chain: Chain,
}

/// State of a durable write.
#[derive(Debug, Default, Clone, Copy)]
struct Chain {
    write_result: Option<i32>,
    sync_result: Option<i32>,
    /// The write is done; only the sync has to be repeated.
    sync_only: bool,
    /// The two entries were taken by the kernel apart, so the sync may have overtaken the write.
    broken: bool,
}

fn span_of(kind: OperationKind, offset: u64, len: usize) -> Span {
    match kind {
        OperationKind::Read => tracing::debug_span!("device_read", offset, bytes = len),
        OperationKind::Write => tracing::debug_span!("device_write", offset, bytes = len),
        OperationKind::DurableWrite => tracing::debug_span!("device_durable_write", offset, bytes = len),
        OperationKind::Sync => tracing::debug_span!("device_sync"),
        OperationKind::Grow => tracing::debug_span!("device_grow", bytes = offset),
    }
}

fn is_transient(errno: i32) -> bool {
    errno == libc::EINTR || errno == libc::EAGAIN
}

impl<F> Operation<F> {
    pub(crate) fn new(
        kind: OperationKind,
        file: Rc<F>,
        offset: u64,
        len: usize,
        buffer: Option<DmaBuffer>,
        answer: Answer,
    ) -> Operation<F> {
        Operation {
            kind,
            file,
            offset,
            len,
            done_bytes: 0,
            buffer,
            answer,
            ticket: None,
            submitted_at: None,
            _span: span_of(kind, offset, len),
            chain: Chain::default(),
        }
    }

    /// Whether it goes to the kernel as a chain of two entries.
    pub(crate) fn is_chain(&self) -> bool {
        self.kind == OperationKind::DurableWrite && !self.chain.sync_only
    }

    /// Whether it goes to the kernel as one sync.
    pub(crate) fn is_sync(&self) -> bool {
        self.kind == OperationKind::Sync || self.chain.sync_only
    }

    /// The kernel took the write of the chain and not yet its sync.
    pub(crate) fn break_chain(&mut self) {
        self.chain.broken = true;
    }

    /// Takes in one result of the kernel.
    pub(crate) fn complete(&mut self, part: Part, result: i32) -> Next {
        if self.is_chain() {
            match part {
                Part::First => self.chain.write_result = Some(result),
                Part::LinkedSync => self.chain.sync_result = Some(result),
            }
            return match (self.chain.write_result, self.chain.sync_result) {
                (Some(write_result), Some(sync_result)) => self.complete_chain(write_result, sync_result),
                _ => Next::Wait,
            };
        }
        if self.is_sync() {
            return complete_sync(result);
        }
        self.complete_transfer(result)
    }

    fn complete_chain(&mut self, write_result: i32, sync_result: i32) -> Next {
        let broken = self.chain.broken;
        self.chain = Chain::default();
        match self.complete_transfer(write_result) {
            Next::Done(Outcome::Success) if sync_result < 0 && sync_result != -libc::ECANCELED => {
                self.chain.sync_only = true;
                complete_sync(sync_result)
            }
            Next::Done(Outcome::Success) if broken || sync_result < 0 => {
                self.chain.sync_only = true;
                Next::Again
            }
            // A sync that failed beside a failing write is final all the same.
            Next::Done(Outcome::Failed(_)) | Next::Again
                if sync_result < 0 && sync_result != -libc::ECANCELED && !is_transient(-sync_result) =>
            {
                Next::Done(Outcome::SyncFailed(-sync_result))
            }
            next => next,
        }
    }

    fn complete_transfer(&mut self, result: i32) -> Next {
        if result < 0 {
            return if is_transient(-result) { Next::Again } else { Next::Done(Outcome::Failed(-result)) };
        }
        if self.kind == OperationKind::Grow {
            return Next::Done(Outcome::Success);
        }
        // Direct I/O goes on at a block boundary only.
        let transferred = usize::try_from(result).unwrap_or(0);
        let rest = self.len - self.done_bytes;
        if transferred >= rest {
            self.done_bytes = self.len;
            return Next::Done(Outcome::Success);
        }
        let whole = transferred / BLOCK_BYTES * BLOCK_BYTES;
        if whole == 0 {
            let end = if self.kind == OperationKind::Read { Outcome::EndOfFile } else { Outcome::NoProgress };
            return Next::Done(end);
        }
        self.done_bytes += whole;
        Next::Again
    }
}

fn complete_sync(result: i32) -> Next {
    if result >= 0 {
        Next::Done(Outcome::Success)
    } else if is_transient(-result) {
        Next::Again
    } else {
        Next::Done(Outcome::SyncFailed(-result))
    }
}

#[cfg(test)]
mod tests {
    use super::super::completion::promise;
    use super::*;

    fn operation(kind: OperationKind, len: usize) -> Operation<()> {
        let buffer = Some(DmaBuffer::zeroed(len));
        Operation::new(kind, Rc::new(()), 0, len, buffer, Answer::Buffer(promise().0))
    }

    fn chain(write_result: i32, sync_result: i32) -> (Operation<()>, Next) {
        let mut operation = operation(OperationKind::DurableWrite, 8192);
        assert_eq!(operation.complete(Part::First, write_result), Next::Wait);
        let next = operation.complete(Part::LinkedSync, sync_result);
        (operation, next)
    }

    /// T3.18
    #[test]
    fn short_read_goes_on_at_the_next_block_and_ends_at_the_end_of_the_file() {
        let mut read = operation(OperationKind::Read, 16_384);
        assert_eq!(read.complete(Part::First, 8192 + 512), Next::Again);
        assert_eq!(read.done_bytes, 8192);
        assert_eq!(read.complete(Part::First, -libc::EINTR), Next::Again);
        assert_eq!(read.complete(Part::First, 512), Next::Done(Outcome::EndOfFile));
        assert_eq!(read.complete(Part::First, 8192), Next::Done(Outcome::Success));
    }

    /// T3.18: what is transient is done again, what is not is told.
    #[test]
    fn write_error_and_empty_write_are_reported() {
        let mut write = operation(OperationKind::Write, 4096);
        assert_eq!(write.complete(Part::First, -libc::EAGAIN), Next::Again);
        assert_eq!(write.complete(Part::First, -libc::EIO), Next::Done(Outcome::Failed(libc::EIO)));
        assert_eq!(write.complete(Part::First, 0), Next::Done(Outcome::NoProgress));
    }

    #[test]
    fn durable_write_succeeds_only_with_a_whole_write_and_a_sync_after_it() {
        assert_eq!(chain(8192, 0).1, Next::Done(Outcome::Success));
        assert_eq!(chain(-libc::EIO, -libc::ECANCELED).1, Next::Done(Outcome::Failed(libc::EIO)));
        assert_eq!(chain(8192, -libc::EIO).1, Next::Done(Outcome::SyncFailed(libc::EIO)));
    }

    #[test]
    fn short_durable_write_repeats_the_rest_as_a_chain() {
        let (mut operation, next) = chain(4096, -libc::ECANCELED);
        assert_eq!((next, operation.done_bytes), (Next::Again, 4096));
        assert!(operation.is_chain());
        assert_eq!(operation.complete(Part::LinkedSync, 0), Next::Wait);
        assert_eq!(operation.complete(Part::First, 4096), Next::Done(Outcome::Success));
    }

    #[test]
    fn chain_taken_apart_or_cancelled_after_its_write_repeats_the_sync() {
        let mut taken_apart = operation(OperationKind::DurableWrite, 8192);
        taken_apart.break_chain();
        taken_apart.complete(Part::LinkedSync, 0);
        assert_eq!(taken_apart.complete(Part::First, 8192), Next::Again);
        assert!(taken_apart.is_sync());
        assert_eq!(taken_apart.complete(Part::First, 0), Next::Done(Outcome::Success));
        let (cancelled, next) = chain(8192, -libc::ECANCELED);
        assert!(cancelled.is_sync() && next == Next::Again);
        let (interrupted, next) = chain(8192, -libc::EINTR);
        assert!(interrupted.is_sync() && next == Next::Again);
    }

    #[test]
    fn sync_that_failed_beside_a_failing_write_is_final() {
        assert_eq!(chain(-libc::ENOSPC, -libc::EIO).1, Next::Done(Outcome::SyncFailed(libc::EIO)));
        assert_eq!(chain(4096, -libc::EIO).1, Next::Done(Outcome::SyncFailed(libc::EIO)));
    }
}
