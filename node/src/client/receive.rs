//! The receive buffer of a client connection: one reused allocation, parsed in place.
//!
//! Invariants
//! - `start <= end <= bytes.len()`; the unparsed bytes are contiguous.
//! - It grows only when one unparsed piece needs more room than there is, and never above what the caller,
//!   who knows the frame limit, asks for.
//!
//! Cost: one `read` for as many bytes as the socket has, up to the capacity; what is left of a torn piece is
//! moved to the front, so keep pieces small or the buffer large.
//!
//! Does not know: frames, records.

use std::io::{self, Read};

/// Room for one read, in bytes: large enough that system calls do not matter, small enough for the
/// second-level cache, so that bytes are parsed where the kernel has just put them.
pub(super) const RECEIVE_BYTES: usize = 256 * 1024;

/// Bytes that came and were not parsed yet.
#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl ReceiveBuffer {
    pub(super) fn new() -> ReceiveBuffer {
        ReceiveBuffer { bytes: vec![0; RECEIVE_BYTES], start: 0, end: 0 }
    }

    /// The unparsed bytes.
    #[inline]
    pub(super) fn unparsed(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Forgets the first `count` unparsed bytes.
    #[inline]
    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
        if self.start >= self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Makes room so that a piece of `piece_bytes` from the first unparsed byte on fits.
    fn make_room(&mut self, piece_bytes: usize) {
        let unparsed = self.end - self.start;
        let cheap = unparsed <= self.bytes.len() / 8;
        if self.start > 0 && (cheap || self.start + piece_bytes > self.bytes.len()) {
            self.bytes.copy_within(self.start..self.end, 0);
            self.start = 0;
            self.end = unparsed;
        }
        if piece_bytes > self.bytes.len() {
            self.bytes.resize(piece_bytes.next_power_of_two(), 0);
        }
    }

    /// Reads once from `source`, after which a piece of `piece_bytes` may still be incomplete. Returns the
    /// number of bytes that came; 0 is the end of the stream.
    pub(super) fn fill(&mut self, source: &mut impl Read, piece_bytes: usize) -> io::Result<usize> {
        self.make_room(piece_bytes.max(self.end - self.start + 1));
        loop {
            match source.read(&mut self.bytes[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives memory back that one large piece needed.
    pub(super) fn shrink(&mut self) {
        if self.start == self.end && self.bytes.len() > RECEIVE_BYTES {
            self.bytes.truncate(RECEIVE_BYTES);
            self.bytes.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the sizes of reads and pieces, the bytes come out in order and complete.
    #[test]
    fn bytes_come_out_as_they_went_in_for_any_piece_size() {
        let input: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
        for piece in [1, 7, 4096, 100_000, RECEIVE_BYTES, RECEIVE_BYTES + 1, 700_000] {
            let mut source = &input[..];
            let mut buffer = ReceiveBuffer::new();
            let mut output = Vec::new();
            loop {
                while buffer.unparsed().len() >= piece {
                    output.extend_from_slice(&buffer.unparsed()[..piece]);
                    buffer.consume(piece);
                }
                if buffer.fill(&mut source, piece).unwrap() == 0 {
                    break;
                }
            }
            output.extend_from_slice(buffer.unparsed());
            assert!(output == input, "piece {piece}");
        }
    }

    #[test]
    fn memory_of_one_large_piece_is_given_back() {
        let input = vec![1_u8; 3 * RECEIVE_BYTES];
        let mut source = &input[..];
        let mut buffer = ReceiveBuffer::new();
        while buffer.unparsed().len() < input.len() {
            buffer.fill(&mut source, input.len()).unwrap();
        }
        buffer.consume(input.len());
        buffer.shrink();
        assert_eq!(buffer.bytes.len(), RECEIVE_BYTES);
    }
}
