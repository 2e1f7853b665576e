//! What an engine under test has to do.
//!
//! Does not know: which engines there are, what is measured.

use std::path::PathBuf;
use std::time::Instant;

use hdrhistogram::Histogram;

use super::data::{Batch, Data};
use crate::error::BenchError;

/// What an engine says went wrong.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What an engine may use.
#[derive(Debug, Clone)]
pub(super) struct Tuning {
    /// A directory of its own.
    pub(super) path: PathBuf,
    /// Bytes of memory for what it has read.
    pub(super) cache_bytes: usize,
    /// Bytes of memory for what is not in its files yet, its log apart.
    pub(super) write_buffer_bytes: usize,
}

/// What an engine is opened for; one that can be told may tune itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Batches of writes.
    Write,
    /// Long scans.
    Scan,
    /// Single documents at random.
    Read,
}

/// How a batch relates to what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Novelty {
    /// No key is there yet, and the engine need not look.
    New,
    /// Every key is there and loses its old version.
    Overwrite,
}

/// What is shown of a scan: seqno, key and value; what the scan does not bring is empty or 0.
pub(super) type Visit<'a> = &'a mut dyn FnMut(u64, &[u8], &[u8]);

/// An engine under test. Between [`Engine::open`] and [`Engine::close`] it may be used.
pub(super) trait Engine {
    /// Its name in tables.
    fn name(&self) -> &'static str;

    /// Opens what is in its directory, or begins there.
    fn open(&mut self, purpose: Purpose) -> Result<(), BenchError>;

    /// Lets go of everything in memory; all that was written is in its files.
    fn close(&mut self) -> Result<(), BenchError>;

    /// Stores a batch; durable when it returns.
    fn write(&mut self, batch: &Batch, novelty: Novelty) -> Result<(), BenchError>;

    /// Waits until all is where scans and reads are to find it, and what the engine does by itself is done.
    fn settle(&mut self) -> Result<(), BenchError>;

    /// All keys in their order.
    fn scan_keys(&mut self, visit: Visit<'_>) -> Result<(), BenchError>;

    /// Keys below `end` with their documents, in the order of the keys.
    fn scan_documents(&mut self, end: &[u8], visit: Visit<'_>) -> Result<(), BenchError>;

    /// Documents up to seqno `last` in the order of their newest versions.
    fn scan_seqnos(&mut self, last: u64, visit: Visit<'_>) -> Result<(), BenchError>;

    /// Reads documents by their keys, `depth` at a time, and compares each; how long each took.
    fn read(&mut self, reads: &Reads<'_>, depth: usize) -> Result<Histogram<u64>, BenchError>;
}

/// Which documents are read.
#[derive(Debug)]
pub(super) struct Reads<'a> {
    pub(super) data: &'a Data,
    /// How many.
    pub(super) count: u64,
    /// The first, of the endless row of all reads.
    pub(super) first: u64,
}

impl Reads<'_> {
    /// The document of the `n`-th read; its key is written over `key`.
    pub(super) fn wanted(&self, n: u64, key: &mut Vec<u8>) -> u64 {
        let index = self.data.wanted(self.first + n);
        self.data.key(index, key);
        index
    }

    /// Checks an answer and records the time it took.
    pub(super) fn check(
        &self,
        index: u64,
        value: Option<&[u8]>,
        started: Instant,
        latency: &mut Histogram<u64>,
    ) -> Result<(), Failure> {
        latency.saturating_record(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
        match value {
            Some(value) if self.data.is_first_value(index, value) => Ok(()),
            Some(_) => Err(format!("document {index} has another value than it was given").into()),
            None => Err(format!("document {index} is not there").into()),
        }
    }
}
