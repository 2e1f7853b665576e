//! Buffers of records, of range scans and of DCP streams: filled by the vbucket's core, sent by the connection's core, brought back for
//! the next fill.
//!
//! A buffer leaves room in front of its records, so that the connection writes the response's head there and sends both as one piece.
//!
//! Invariants
//! - Every buffer counts in its core's [`BufferBytes`] from the moment it is made until it is dropped or set aside, on whatever core
//!   that happens.
//! - What is set aside for reuse is at most [`SPARE_BYTES_MAX`] a core.
//!
//! Cost: two uncontended atomic operations a buffer; none a record.
//!
//! Does not know: scans, connections, what records are.

use std::cell::RefCell;
use std::collections::TryReserveError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::protocol::framing::RESPONSE_FRAMING_BYTES_MAX;
use crate::protocol::{HEADER_BYTES, Response};

/// Bytes in front of the records: header, framing extras and the four bytes of extras.
pub const HEAD_ROOM: usize = HEADER_BYTES + RESPONSE_FRAMING_BYTES_MAX + 4;

/// Most bytes that a core sets aside for reuse.
pub const SPARE_BYTES_MAX: usize = 4 << 20;

/// Bytes of the scan buffers of one core, those on their way through other cores included.
#[derive(Debug, Default)]
pub struct BufferBytes {
    held: AtomicUsize,
    peak: AtomicUsize,
}

impl BufferBytes {
    /// Now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The most there ever were.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(held, Ordering::Relaxed);
    }

    fn sub(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Records with room for a head in front of them. May be sent to another core and dropped there.
#[derive(Debug)]
pub struct ScanBuffer {
    /// [`HEAD_ROOM`] bytes, then records.
    bytes: Vec<u8>,
    counted: usize,
    account: Arc<BufferBytes>,
}

impl ScanBuffer {
    fn counted(bytes: Vec<u8>, account: &Arc<BufferBytes>) -> ScanBuffer {
        account.add(bytes.capacity());
        ScanBuffer { counted: bytes.capacity(), bytes, account: account.clone() }
    }

    /// The records.
    #[must_use]
    pub fn records(&self) -> &[u8] {
        &self.bytes[HEAD_ROOM..]
    }

    /// Writes the head of `response`, whose value the records are, in front of them and returns the whole frame.
    pub fn with_head(&mut self, response: &Response<'_>) -> &[u8] {
        let value_bytes = self.records().len();
        let start = HEAD_ROOM - response.head_bytes();
        response.encode_head(value_bytes, &mut &mut self.bytes[start..HEAD_ROOM]);
        &self.bytes[start..]
    }

    /// The frame whose head of `head_bytes` bytes [`ScanBuffer::with_head`] has written.
    #[must_use]
    pub fn frame(&self, head_bytes: usize) -> &[u8] {
        &self.bytes[HEAD_ROOM - head_bytes..]
    }

    /// Where records are appended.
    pub(crate) fn vec(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Counts what the buffer has grown by.
    pub(crate) fn recount(&mut self) {
        let capacity = self.bytes.capacity();
        if capacity > self.counted {
            self.account.add(capacity - self.counted);
        } else {
            self.account.sub(self.counted - capacity);
        }
        self.counted = capacity;
    }
}

impl Drop for ScanBuffer {
    fn drop(&mut self) {
        self.account.sub(self.counted);
    }
}

/// The buffers of one core.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    account: Arc<BufferBytes>,
    spare: RefCell<Spare>,
}

#[derive(Debug, Default)]
struct Spare {
    buffers: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl BufferPool {
    pub(crate) fn account(&self) -> &Arc<BufferBytes> {
        &self.account
    }

    /// An empty buffer with room for `record_bytes`; whether it was used before.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn take(&self, record_bytes: usize) -> Result<(ScanBuffer, bool), TryReserveError> {
        let capacity = HEAD_ROOM.saturating_add(record_bytes);
        let reused = self.spare.borrow_mut().take(capacity);
        let is_reused = reused.is_some();
        let mut bytes = reused.unwrap_or_default();
        bytes.try_reserve_exact(capacity)?;
        bytes.resize(HEAD_ROOM, 0);
        Ok((ScanBuffer::counted(bytes, &self.account), is_reused))
    }

    /// A buffer that will carry a head only.
    pub(super) fn head_only(&self) -> ScanBuffer {
        ScanBuffer::counted(vec![0; HEAD_ROOM], &self.account)
    }

    /// Sets a buffer aside.
    pub(crate) fn give(&self, mut buffer: ScanBuffer) {
        let mut bytes = std::mem::take(&mut buffer.bytes);
        drop(buffer);
        bytes.clear();
        self.spare.borrow_mut().give(bytes);
    }
}

impl Spare {
    /// Only a buffer of exactly this size: a larger one would break the bound on a scan's memory.
    fn take(&mut self, capacity: usize) -> Option<Vec<u8>> {
        let index = self.buffers.iter().rposition(|bytes| bytes.capacity() == capacity)?;
        let bytes = self.buffers.remove(index)?;
        self.bytes -= capacity;
        Some(bytes)
    }

    fn give(&mut self, bytes: Vec<u8>) {
        if bytes.capacity() > SPARE_BYTES_MAX {
            return;
        }
        self.bytes += bytes.capacity();
        self.buffers.push_back(bytes);
        while self.bytes > SPARE_BYTES_MAX {
            let Some(oldest) = self.buffers.pop_front() else { return };
            self.bytes -= oldest.capacity();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::duration::EncodedDuration;
    use crate::protocol::{Decoded, FrameLimits, Opcode, ResponseFraming, Status, decode_frame};

    #[test]
    fn a_head_is_written_right_in_front_of_the_records_with_and_without_tracing() {
        let pool = BufferPool::default();
        for framing in [ResponseFraming::NONE, ResponseFraming::traced(EncodedDuration(9))] {
            let (mut buffer, _) = pool.take(10).unwrap();
            buffer.vec().extend_from_slice(b"\x01k");
            let response = Response::new(Opcode::RANGE_SCAN_CONTINUE, 7, Status::RANGE_SCAN_MORE)
                .framing(framing)
                .extras(&[0; 4]);
            let Ok(Decoded::Frame(frame)) =
                decode_frame(buffer.with_head(&response), FrameLimits::AUTHENTICATED)
            else {
                panic!("not a frame")
            };
            assert_eq!((frame.value, frame.opaque()), (&b"\x01k"[..], 7));
            assert_eq!(frame.response_framing(), framing);
        }
    }

    /// T5.20
    #[test]
    fn every_buffer_is_counted_until_it_is_dropped_or_set_aside_also_on_another_thread() {
        let pool = BufferPool::default();
        let (first, reused) = pool.take(1000).unwrap();
        assert!(!reused);
        let (mut second, _) = pool.take(1000).unwrap();
        assert_eq!(pool.account().held(), 2 * (1000 + HEAD_ROOM));
        second.vec().extend_from_slice(&[1; 5000]);
        second.recount();
        assert!(pool.account().held() >= 6000 + HEAD_ROOM);
        std::thread::spawn(move || drop(second)).join().unwrap();
        assert_eq!(pool.account().held(), 1000 + HEAD_ROOM);
        pool.give(first);
        assert_eq!(pool.account().held(), 0);
        assert!(pool.take(1000).unwrap().1);
        assert!(pool.account().peak() >= 6000 + HEAD_ROOM);
    }

    #[test]
    fn what_is_set_aside_stays_within_its_bound_and_is_only_reused_for_its_size() {
        let pool = BufferPool::default();
        let size = 1_000_000;
        let many: Vec<ScanBuffer> = (0..10).map(|_| pool.take(size).unwrap().0).collect();
        many.into_iter().for_each(|buffer| pool.give(buffer));
        pool.give(pool.take(SPARE_BYTES_MAX).unwrap().0);
        assert!(pool.spare.borrow().bytes <= SPARE_BYTES_MAX);
        assert!(!pool.take(size - 1).unwrap().1);
        let taken: Vec<(ScanBuffer, bool)> = (0..10).map(|_| pool.take(size).unwrap()).collect();
        assert_eq!(taken.iter().filter(|(_, reused)| *reused).count(), SPARE_BYTES_MAX / (size + HEAD_ROOM));
    }

    #[test]
    fn a_size_that_no_memory_has_is_an_error() {
        assert!(BufferPool::default().take(usize::MAX - 1).is_err());
    }
}
