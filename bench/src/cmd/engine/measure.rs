//! One engine through the phases, each with its clock, its counters and its check.
//!
//! Invariants
//! - A phase whose records are not exactly those that were written, in order, is an error and no result.
//! - Cold: the engine was just opened, and the page cache has forgotten its files.
//!
//! Does not know: which engine it is, how results are shown.

use std::path::Path;
use std::time::Instant;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::api::{Engine, Novelty, Purpose, Reads};
use super::data::{Batch, Data, Digest};
use super::files::{disk_bytes, forget};
use crate::error::BenchError;
use crate::process::{own_cpu_seconds, own_io, resident_bytes};

/// Depths of the random reads.
pub(super) const DEPTHS: [usize; 3] = [1, 8, 32];

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// All documents are written in batches, each durable before the next.
    Load,
    /// The same, until the engine does nothing any more.
    LoadSettled,
    /// All keys in order, cold.
    KeysCold,
    /// All keys in order, a second time.
    KeysWarm,
    /// All documents in seqno order, cold.
    SeqnosCold,
    /// Documents of a range in key order, cold.
    DocumentsCold,
    /// Random documents, one at a time, from cold.
    Reads1,
    /// Random documents, 8 at a time, from cold.
    Reads8,
    /// Random documents, 32 at a time, from cold.
    Reads32,
    /// Documents are overwritten in batches, each durable before the next.
    Churn,
    /// The same, until the engine does nothing any more.
    ChurnSettled,
    /// All documents in seqno order after that, cold.
    SeqnosChurned,
}

impl Phase {
    /// As in the tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Phase::Load => "load",
            Phase::LoadSettled => "load, settled",
            Phase::KeysCold => "keys cold",
            Phase::KeysWarm => "keys warm",
            Phase::SeqnosCold => "by seqno cold",
            Phase::DocumentsCold => "by key cold",
            Phase::Reads1 => "reads, depth 1",
            Phase::Reads8 => "reads, depth 8",
            Phase::Reads32 => "reads, depth 32",
            Phase::Churn => "overwrites",
            Phase::ChurnSettled => "overwrites, settled",
            Phase::SeqnosChurned => "by seqno then",
        }
    }

    fn of_depth(depth: usize) -> Phase {
        match depth {
            1 => Phase::Reads1,
            8 => Phase::Reads8,
            _ => Phase::Reads32,
        }
    }

    /// Whether its rate is bytes a second; else it is records.
    pub(super) fn is_in_bytes(self) -> bool {
        use Phase::{DocumentsCold, KeysCold, KeysWarm, SeqnosChurned, SeqnosCold};
        matches!(self, KeysCold | KeysWarm | SeqnosCold | DocumentsCold | SeqnosChurned)
    }

    /// How many times the rate of the best peer is wanted, if it is.
    pub(super) fn wanted(self) -> Option<f64> {
        match self {
            Phase::KeysCold | Phase::SeqnosCold | Phase::DocumentsCold => Some(2.0),
            Phase::Reads32 => Some(1.5),
            _ => None,
        }
    }
}

/// What a phase took.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    /// Which repetition, from 1.
    pub(super) round: u32,
    pub(super) engine: &'static str,
    pub(super) phase: Phase,
    pub(super) seconds: f64,
    pub(super) records: u64,
    /// Bytes of keys and values that were written or shown.
    pub(super) bytes: u64,
    pub(super) cpu_seconds: f64,
    /// Bytes that this process fetched from the device meanwhile.
    pub(super) read_bytes: u64,
    /// Bytes that it sent there.
    pub(super) written_bytes: u64,
    /// Bytes of the engine's files afterwards.
    pub(super) disk_bytes: u64,
    /// Resident bytes of this process afterwards.
    pub(super) resident_bytes: u64,
    /// Nanoseconds of each read.
    #[serde(skip)]
    pub(super) latency: Option<Histogram<u64>>,
}

impl Row {
    /// Megabytes (10⁶) a second, or records a second.
    pub(super) fn rate(&self) -> f64 {
        let amount = if self.phase.is_in_bytes() { self.bytes as f64 / 1e6 } else { self.records as f64 };
        amount / self.seconds
    }
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Documents of a batch.
    pub(super) batch: u64,
    /// Random reads at depths above 1; an eighth of them at depth 1.
    pub(super) reads: u64,
    /// Documents of the scan by key.
    pub(super) range: u64,
    /// Documents of the scan by seqno.
    pub(super) seqnos: u64,
    /// Overwrites.
    pub(super) overwrites: u64,
}

/// What scans must bring.
#[derive(Debug)]
pub(super) struct Expected {
    keys: Digest,
    seqnos: Digest,
    documents: Digest,
    churned: Digest,
    /// End of the range of the scan by key.
    end: Vec<u8>,
}

impl Expected {
    /// Makes all documents once for each.
    pub(super) fn of(data: &Data, extent: &Extent) -> Expected {
        let end = data.key_at(extent.range);
        Expected {
            keys: data.digest_of_keys(),
            seqnos: data.digest_of_documents(extent.seqnos, 0, |_| true),
            documents: data.digest_of_documents(data.count(), 0, |key| *key < end[..]),
            churned: data.digest_of_documents(data.count(), extent.overwrites, |_| true),
            end,
        }
    }
}

/// The records of a scan as they come.
#[derive(Debug, Default)]
struct Watch {
    digest: Digest,
    last_key: Vec<u8>,
    last_seqno: u64,
    is_out_of_order: bool,
}

impl Watch {
    fn key(&mut self, key: &[u8]) {
        self.is_out_of_order |= self.digest.records > 0 && *key <= self.last_key[..];
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
    }

    fn seqno(&mut self, seqno: u64) {
        self.is_out_of_order |= seqno <= self.last_seqno;
        self.last_seqno = seqno;
    }

    fn check(&self, engine: &str, phase: Phase, expected: &Digest) -> Result<(), BenchError> {
        let unsound = |text: String| Err(BenchError::Unsound(format!("{engine}, {}: {text}", phase.name())));
        if self.digest.records != expected.records {
            return unsound(format!("{} records of {}", self.digest.records, expected.records));
        }
        if self.is_out_of_order {
            return unsound("records are out of order".into());
        }
        if self.digest != *expected {
            return unsound("keys or values are not those that were written".into());
        }
        Ok(())
    }
}

/// Clock and counters at the beginning of a phase.
struct Meter {
    started: Instant,
    cpu_seconds: f64,
    io: (u64, u64),
}

impl Meter {
    fn start() -> Result<Meter, BenchError> {
        let io = own_io().map_err(BenchError::system("read the counters of this process"))?;
        Ok(Meter { cpu_seconds: own_cpu_seconds(), io, started: Instant::now() })
    }
}

/// See the module.
pub(super) struct Measurement<'a> {
    pub(super) engine: &'a mut dyn Engine,
    /// The engine's directory.
    pub(super) path: &'a Path,
    pub(super) data: &'a Data,
    pub(super) extent: Extent,
    pub(super) expected: &'a Expected,
    /// Where rows go, as soon as there is one.
    pub(super) report: &'a mut dyn FnMut(Row),
    /// Who wants to know what is done.
    pub(super) begin: &'a dyn Fn(&'static str, Phase),
}

impl Measurement<'_> {
    fn row(&self, round: u32, phase: Phase, meter: &Meter, digest: Digest) -> Result<Row, BenchError> {
        let seconds = meter.started.elapsed().as_secs_f64();
        let cpu_seconds = own_cpu_seconds() - meter.cpu_seconds;
        let io = own_io().map_err(BenchError::system("read the counters of this process"))?;
        Ok(Row {
            round,
            engine: self.engine.name(),
            phase,
            seconds,
            records: digest.records,
            bytes: digest.bytes,
            cpu_seconds,
            read_bytes: io.0.saturating_sub(meter.io.0),
            written_bytes: io.1.saturating_sub(meter.io.1),
            disk_bytes: disk_bytes(self.path).map_err(BenchError::file("measure", self.path))?,
            resident_bytes: resident_bytes(std::process::id())
                .map_err(BenchError::system("read the memory of this process"))?,
            latency: None,
        })
    }

    fn open_cold(&mut self, purpose: Purpose) -> Result<(), BenchError> {
        self.engine.close()?;
        forget(self.path).map_err(BenchError::file("drop the cached pages of", self.path))?;
        self.engine.open(purpose)
    }

    /// Loads the documents.
    ///
    /// # Errors
    /// The engine's.
    pub(super) fn load(&mut self) -> Result<(), BenchError> {
        self.write(Phase::Load, Phase::LoadSettled, self.data.count(), Novelty::New)
    }

    /// Overwrites documents, then scans all of them.
    ///
    /// # Errors
    /// The engine's, or what it has afterwards is not what it should have.
    pub(super) fn churn(&mut self) -> Result<(), BenchError> {
        self.write(Phase::Churn, Phase::ChurnSettled, self.extent.overwrites, Novelty::Overwrite)?;
        self.scan_seqnos(1, Phase::SeqnosChurned, u64::MAX)
    }

    fn write(
        &mut self,
        phase: Phase,
        settled: Phase,
        count: u64,
        novelty: Novelty,
    ) -> Result<(), BenchError> {
        (self.begin)(self.engine.name(), phase);
        self.open_cold(Purpose::Write)?;
        let meter = Meter::start()?;
        let (mut batch, mut from) = (Batch::default(), 0);
        while from < count {
            let to = count.min(from + self.extent.batch);
            match novelty {
                Novelty::New => self.data.first_batch(from, to, &mut batch),
                Novelty::Overwrite => self.data.overwrite_batch(from, to, &mut batch),
            }
            self.engine.write(&batch, novelty)?;
            from = to;
        }
        let digest = Digest::of_counts(count, count * self.data.document_bytes());
        let row = self.row(1, phase, &meter, digest)?;
        (self.report)(row);
        (self.begin)(self.engine.name(), settled);
        self.engine.settle()?;
        let row = self.row(1, settled, &meter, digest)?;
        (self.report)(row);
        self.engine.close()
    }

    /// Scans and reads.
    ///
    /// # Errors
    /// The engine's, or it brought something else than was written.
    pub(super) fn read(&mut self, round: u32) -> Result<(), BenchError> {
        self.scan_keys(round)?;
        self.scan_seqnos(round, Phase::SeqnosCold, self.extent.seqnos)?;
        self.scan_documents(round)?;
        for depth in DEPTHS {
            self.read_at(round, depth)?;
        }
        self.engine.close()
    }

    fn scan_keys(&mut self, round: u32) -> Result<(), BenchError> {
        for phase in [Phase::KeysCold, Phase::KeysWarm] {
            (self.begin)(self.engine.name(), phase);
            if phase == Phase::KeysCold {
                self.open_cold(Purpose::Scan)?;
            }
            let (meter, mut watch) = (Meter::start()?, Watch::default());
            self.engine.scan_keys(&mut |_, key, _| {
                watch.key(key);
                watch.digest.add_key(key);
            })?;
            let row = self.row(round, phase, &meter, watch.digest)?;
            watch.check(self.engine.name(), phase, &self.expected.keys)?;
            (self.report)(row);
        }
        Ok(())
    }

    fn scan_seqnos(&mut self, round: u32, phase: Phase, last: u64) -> Result<(), BenchError> {
        (self.begin)(self.engine.name(), phase);
        self.open_cold(Purpose::Scan)?;
        let (meter, mut watch) = (Meter::start()?, Watch::default());
        self.engine.scan_seqnos(last, &mut |seqno, key, value| {
            watch.seqno(seqno);
            watch.digest.add_document(key, value);
        })?;
        let row = self.row(round, phase, &meter, watch.digest)?;
        let is_churned = phase == Phase::SeqnosChurned;
        let expected = if is_churned { &self.expected.churned } else { &self.expected.seqnos };
        watch.check(self.engine.name(), phase, expected)?;
        (self.report)(row);
        self.engine.close()
    }

    fn scan_documents(&mut self, round: u32) -> Result<(), BenchError> {
        let phase = Phase::DocumentsCold;
        (self.begin)(self.engine.name(), phase);
        self.open_cold(Purpose::Scan)?;
        let (meter, mut watch) = (Meter::start()?, Watch::default());
        self.engine.scan_documents(&self.expected.end, &mut |_, key, value| {
            watch.key(key);
            watch.digest.add_document(key, value);
        })?;
        let row = self.row(round, phase, &meter, watch.digest)?;
        watch.check(self.engine.name(), phase, &self.expected.documents)?;
        (self.report)(row);
        Ok(())
    }

    fn read_at(&mut self, round: u32, depth: usize) -> Result<(), BenchError> {
        let phase = Phase::of_depth(depth);
        (self.begin)(self.engine.name(), phase);
        self.open_cold(Purpose::Read)?;
        let count = if depth == 1 { self.extent.reads.div_ceil(8) } else { self.extent.reads };
        // Every pass has reads of its own, the same for all engines.
        let first = (u64::from(round) << 8 | depth as u64) << 32;
        let meter = Meter::start()?;
        let latency = self.engine.read(&Reads { data: self.data, count, first }, depth)?;
        let digest = Digest::of_counts(latency.len(), latency.len() * self.data.document_bytes());
        let mut row = self.row(round, phase, &meter, digest)?;
        if row.records != count {
            let name = self.engine.name();
            return Err(BenchError::Unsound(format!("{name} answered {} reads of {count}", row.records)));
        }
        row.latency = Some(latency);
        (self.report)(row);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_that_leaves_out_repeats_changes_or_disorders_is_unsound() {
        let data = Data::new(10, 20, 10, 1).unwrap();
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for index in 0..10 {
            let mut key = Vec::new();
            data.key(index, &mut key);
            keys.push(key);
        }
        keys.sort_unstable();
        let expected = data.digest_of_keys();
        let check = |keys: &[Vec<u8>]| {
            let mut watch = Watch::default();
            for key in keys {
                watch.key(key);
                watch.digest.add_key(key);
            }
            watch.check("x", Phase::KeysCold, &expected)
        };
        check(&keys).unwrap();
        let says = |keys: &[Vec<u8>], text: &str| {
            let error = check(keys).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        };
        says(&keys[1..], "9 records of 10");
        let mut changed = keys.clone();
        changed.swap(3, 4);
        says(&changed, "order");
        changed.clone_from(&keys);
        changed[9].push(b'x');
        says(&changed, "not those");
    }

    #[test]
    fn targets_are_those_of_cold_scans_and_deep_reads() {
        assert_eq!(Phase::KeysCold.wanted(), Some(2.0));
        assert_eq!(Phase::of_depth(32).wanted(), Some(1.5));
        assert_eq!(Phase::of_depth(1).wanted(), None);
    }
}
