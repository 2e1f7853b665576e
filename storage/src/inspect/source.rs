//! Where inspected bytes come from: a file read with plain system calls, or bytes at hand.
//!
//! Invariants
//! - Nothing is written. Nothing longer than the source, or than [`READ_BYTES_MAX`], is allocated.
//! - A place that cannot be read is an answer, not the end.
//!
//! Does not know: what the bytes mean.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::format::FormatError;
use crate::io::BLOCK_BYTES;

/// Longest structure that is read in one piece, in bytes.
pub const READ_BYTES_MAX: u64 = 256 << 20;

/// Bytes that a search through a file reads at once.
const WINDOW_BYTES: usize = 1 << 20;

/// Bytes that can be read at an offset.
pub trait Source {
    /// How many there are.
    fn len_bytes(&self) -> u64;

    /// Exactly `len` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end; otherwise what the kernel said.
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
}

impl Source for Vec<u8> {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = start.checked_add(len).and_then(|end| self.get(start..end));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// A file or block device, opened for reading through the page cache.
#[derive(Debug)]
pub(super) struct FileSource {
    file: File,
    len_bytes: u64,
}

impl FileSource {
    pub(super) fn open(path: &Path) -> io::Result<FileSource> {
        let mut file = File::open(path)?;
        // Of a block device the metadata gives no length.
        let len_bytes = file.seek(SeekFrom::End(0))?;
        Ok(FileSource { file, len_bytes })
    }
}

impl Source for FileSource {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

/// Why something could not be taken from a source.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{blocks} blocks at block {place} lie outside the file of {file_bytes} bytes")]
    Outside { place: u64, blocks: u64, file_bytes: u64 },
    #[error("{blocks} blocks are more than is read in one piece")]
    TooLong { blocks: u64 },
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// A source in whole blocks.
pub(super) struct Blocks<'a> {
    source: &'a dyn Source,
    window_start: u64,
    window: Vec<u8>,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Blocks<'a> {
        Blocks { source, window_start: 0, window: Vec::new() }
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.source.len_bytes()
    }

    /// Whole blocks in the source.
    pub(super) fn count(&self) -> u64 {
        self.len_bytes() / BLOCK_BYTES as u64
    }

    /// `blocks` blocks from block `place` on.
    pub(super) fn read(&self, place: u64, blocks: u64) -> Result<Vec<u8>, Trouble> {
        let end = place.checked_add(blocks).filter(|end| *end <= self.count());
        if end.is_none() {
            return Err(Trouble::Outside { place, blocks, file_bytes: self.len_bytes() });
        }
        if blocks * BLOCK_BYTES as u64 > READ_BYTES_MAX {
            return Err(Trouble::TooLong { blocks });
        }
        Ok(self.source.read(place * BLOCK_BYTES as u64, blocks as usize * BLOCK_BYTES)?)
    }

    /// One block, for a search from block to block: neighbours are read with it.
    pub(super) fn peek(&mut self, place: u64) -> Result<&[u8], Trouble> {
        let held = (self.window.len() / BLOCK_BYTES) as u64;
        if place < self.window_start || place - self.window_start >= held {
            let most = (WINDOW_BYTES / BLOCK_BYTES) as u64;
            let blocks = self.count().saturating_sub(place).min(most).max(1);
            self.window = match self.read(place, blocks) {
                Ok(window) => window,
                // One unreadable sector must not hide its neighbours.
                Err(_) => self.read(place, 1)?,
            };
            self.window_start = place;
        }
        let at = (place - self.window_start) as usize * BLOCK_BYTES;
        Ok(&self.window[at..at + BLOCK_BYTES])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_source_is_read_or_allocated() {
        let bytes = vec![7; 3 * BLOCK_BYTES + 100];
        let mut blocks = Blocks::new(&bytes);
        assert_eq!(blocks.count(), 3);
        assert_eq!(blocks.read(1, 2).unwrap().len(), 2 * BLOCK_BYTES);
        for (place, count) in [(0, 4), (3, 1), (u64::MAX, 1), (1, u64::MAX), (0, 1 << 40)] {
            assert!(blocks.read(place, count).is_err(), "{count} blocks at {place}");
        }
        assert_eq!(blocks.peek(2).unwrap()[0], 7);
        assert!(blocks.peek(3).is_err() && blocks.peek(u64::MAX).is_err());
        assert!(bytes.read(u64::MAX, 10).is_err());
    }
}
