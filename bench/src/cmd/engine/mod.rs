//! `ringbench engine`: the store without the network beside other embedded engines, same data, same durability, in one run.
//!
//! Every engine is loaded once. Then, as many times as asked for, each of them in turn is scanned and read from cold, beside what the device gives in the
//! same round. In the end each is overwritten in part and scanned again. Engines keep bodies by seqno and an index from keys to seqnos, as the store here
//! does and a node that streams by seqno must; peers may be measured with bodies by key as well.
//!
//! Invariants
//! - All engines write, scan and read the same documents in the same order, and what they bring is compared with what was written.
//! - Ratios compare rows of one round.
//!
//! Does not know: how an engine does it (`ringbase`, `peers`), how results are shown (`output`).

mod api;
mod data;
mod files;
mod measure;
mod output;
#[cfg(any(feature = "peers", feature = "peer-rocksdb"))]
mod peers;
mod ringbase;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use ringbase_storage::format::seqlog_block::SEQLOG_BLOCK_BYTES;
use ringbase_storage::io::probe::{Pattern, ProbePlan};
use ringbase_storage::metrics::IoClass;
use serde::Serialize;

use self::api::{Engine, Tuning};
use self::data::Data;
use self::measure::{DEPTHS, Expected, Extent, Measurement, Phase, Row};
use super::or_default;
use crate::disk::{ProbeFile, sequential_read};
use crate::error::BenchError;
use crate::machine::Machine;
use crate::workload::{PlaceArgs, ResultArgs, Scratch};

/// Bytes of memory that an engine may fill with what is not in its files yet.
const WRITE_BUFFER_BYTES: usize = 64 << 20;

/// Least memory of an engine for what it has read.
const CACHE_BYTES_MIN: usize = 1 << 20;

/// Longest file of the ceilings.
const PROBE_BYTES_MAX: u64 = 1 << 30;

/// Depth that the ring of the ceilings allows.
const PROBE_DEPTH_MAX: u32 = 64;

/// Bytes of the random reads of the ceilings: a block of the device, and one of the store's blocks of documents.
const PROBE_READ_BYTES: usize = 4096;
const PROBE_BLOCK_BYTES: usize = SEQLOG_BLOCK_BYTES;

/// Options of `ringbench engine`.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArgs {
    /// Documents [default: 1000000; 5000 with --quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    documents: Option<u64>,
    /// Bytes of every value.
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    value_bytes: usize,
    /// Bytes of every key, 1 to 250.
    #[arg(long, value_name = "BYTES", default_value_t = 20)]
    key_bytes: usize,
    /// What documents and draws are made from; the same seed gives the same.
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Memory of an engine for what it has read, as a share of the data: 0.1 is a tenth.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    cache_share: f64,
    /// Engines [default: ringbase and all peers that are built in].
    #[arg(long, value_name = "ENGINES", value_delimiter = ',')]
    engines: Vec<EngineName>,
    /// How peers keep documents [default: bodies-by-seqno].
    #[arg(long, value_name = "LAYOUTS", value_delimiter = ',')]
    layouts: Vec<Layout>,
    /// Documents of a batch, which is durable before the next one begins.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    batch: u64,
    /// Random reads at depths 8 and 32, an eighth at depth 1 [default: a twentieth of the documents].
    #[arg(long, value_name = "N")]
    reads: Option<u64>,
    /// Share of the documents that the scan by key brings: with bodies elsewhere every one of them is a read.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    range_share: f64,
    /// Overwrites at the end, as a share of the documents; 0 leaves them out.
    #[arg(long, value_name = "SHARE", default_value_t = 0.25, value_parser = share)]
    overwrite_share: f64,
    /// How often everything is scanned and read.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Scratch directory, on the disk to measure; made if it is missing [default: as for `scan`].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the scratch directory.
    #[arg(long)]
    keep: bool,
    /// Few documents, one round: shows that all works, its figures mean little.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    results: ResultArgs,
}

/// A share of a whole.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("{text} is no share; they go from 0 to 1")),
    }
}

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EngineName {
    /// The store of this project.
    Ringbase,
    /// RocksDB; feature `peer-rocksdb`.
    Rocksdb,
    /// LMDB; feature `peers`.
    Lmdb,
    /// fjall; feature `peers`.
    Fjall,
    /// redb; feature `peers`.
    Redb,
}

impl EngineName {
    /// The feature of this package that builds it in, unless it is always there.
    fn feature(self) -> Option<&'static str> {
        match self {
            EngineName::Ringbase => None,
            EngineName::Rocksdb => Some("peer-rocksdb"),
            EngineName::Lmdb | EngineName::Fjall | EngineName::Redb => Some("peers"),
        }
    }

    fn is_built_in(self) -> bool {
        match self.feature() {
            None => true,
            Some("peers") => cfg!(feature = "peers"),
            Some(_) => cfg!(feature = "peer-rocksdb"),
        }
    }

    /// The engine in a directory of its own.
    fn make(self, tuning: Tuning, layout: Layout) -> Result<Box<dyn Engine>, BenchError> {
        if self == EngineName::Ringbase {
            return Ok(Box::new(ringbase::Ringbase::new(tuning)));
        }
        let feature = self.feature().unwrap_or_default();
        self.peer(tuning, layout).ok_or_else(|| {
            let name = self.name();
            BenchError::Misuse(format!("{name} is not built in; build ringbench with --features {feature}"))
        })
    }

    #[cfg(any(feature = "peers", feature = "peer-rocksdb"))]
    fn peer(self, tuning: Tuning, layout: Layout) -> Option<Box<dyn Engine>> {
        peers::named(&self.name(), tuning, layout)
    }

    #[cfg(not(any(feature = "peers", feature = "peer-rocksdb")))]
    fn peer(self, _tuning: Tuning, _layout: Layout) -> Option<Box<dyn Engine>> {
        None
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Where a peer keeps documents. The store of this project has one layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Layout {
    /// By seqno, beside an index from keys to seqnos: as the store here.
    BodiesBySeqno,
    /// By key, beside an index from seqnos to keys.
    BodiesByKey,
}

/// An engine under test and what was found.
struct Subject {
    name: EngineName,
    layout: Layout,
    path: PathBuf,
    engine: Box<dyn Engine>,
    extent: Extent,
    expected: Expected,
}

/// A ceiling of one round.
#[derive(Debug, Clone, Copy, Serialize)]
struct Ceiling {
    round: u32,
    /// Sequential, else at random.
    is_sequential: bool,
    /// Bytes of one read.
    bytes: usize,
    depth: u32,
    /// Megabytes a second if sequential, else reads a second.
    rate: f64,
}

/// A row and how its engine kept documents.
#[derive(Debug, Clone, Serialize)]
struct Found {
    layout: Layout,
    #[serde(flatten)]
    row: Row,
}

/// Everything that was measured.
#[derive(Debug)]
struct Results {
    machine: Machine,
    documents: u64,
    key_bytes: usize,
    value_bytes: usize,
    cache_bytes: usize,
    extent: Extent,
    rounds: u32,
    ceilings: Vec<Ceiling>,
    found: Vec<Found>,
    /// Features that would add peers.
    missing: Vec<&'static str>,
}

impl Results {
    /// Bytes of all keys and values.
    fn data_bytes(&self) -> u64 {
        self.documents * (self.key_bytes + self.value_bytes) as u64
    }
}

pub(crate) fn run(args: &EngineArgs) -> Result<(), BenchError> {
    let documents = args.documents.unwrap_or(if args.quick { 5000 } else { 1_000_000 });
    let data = Data::new(documents, args.key_bytes, args.value_bytes, args.seed)?;
    let place = PlaceArgs { dir: args.dir.clone(), ringbase: None, keep: args.keep };
    let scratch = Scratch::make(&place, "engine")?;
    let out = args.results.directory(&scratch, "engine");
    let mut machine = Machine::look(scratch.path());
    let cache_bytes = ((data.bytes() as f64 * args.cache_share) as usize).max(CACHE_BYTES_MIN);
    let extent = extent(args, &data);
    let mut subjects = subjects(args, &data, scratch.path(), cache_bytes, extent)?;
    let rounds = if args.quick { 1 } else { args.rounds };
    let (mut found, mut ceilings) = (Vec::new(), Vec::new());
    let bar = progress(&subjects, rounds, extent);

    for subject in &mut subjects {
        subject.measure(&data, &bar, &mut found, |measurement| measurement.load())?;
    }
    let probes = ProbeFile::make(&scratch.path().join("probe"), probe_bytes(&data), PROBE_DEPTH_MAX)?;
    let duration = Duration::from_millis(if args.quick { 50 } else { 1000 });
    for round in 1..=rounds {
        ceilings.extend(look_up_to(&probes, round, duration)?);
        for subject in &mut subjects {
            subject.measure(&data, &bar, &mut found, |measurement| measurement.read(round))?;
        }
    }
    drop(probes);
    if extent.overwrites > 0 {
        for subject in &mut subjects {
            subject.measure(&data, &bar, &mut found, |measurement| measurement.churn())?;
        }
    }
    bar.finish_and_clear();
    machine.finish();
    let missing = ["peers", "peer-rocksdb"].into_iter().filter(|feature| !is_feature_on(feature)).collect();
    let (key_bytes, value_bytes) = (data.key_bytes(), data.value_bytes());
    let results = Results {
        machine,
        documents,
        key_bytes,
        value_bytes,
        cache_bytes,
        extent,
        rounds,
        ceilings,
        found,
        missing,
    };
    output::write(&results, &out)?;
    output::show(&results, args.results.json, &out);
    Ok(())
}

fn is_feature_on(feature: &str) -> bool {
    EngineName::value_variants().iter().any(|name| name.feature() == Some(feature) && name.is_built_in())
}

fn extent(args: &EngineArgs, data: &Data) -> Extent {
    let of_all = |share: f64| (data.count() as f64 * share) as u64;
    Extent {
        batch: args.batch.min(data.count()),
        reads: args.reads.unwrap_or(of_all(0.05)).max(1),
        range: of_all(args.range_share).max(1),
        seqnos: data.count(),
        overwrites: of_all(args.overwrite_share),
    }
}

fn subjects(
    args: &EngineArgs,
    data: &Data,
    scratch: &Path,
    cache_bytes: usize,
    extent: Extent,
) -> Result<Vec<Subject>, BenchError> {
    let built_in: Vec<EngineName> =
        EngineName::value_variants().iter().copied().filter(|name| name.is_built_in()).collect();
    let mut subjects = Vec::new();
    for layout in or_default(&args.layouts, &[Layout::BodiesBySeqno]) {
        for name in or_default(&args.engines, &built_in) {
            let is_own = name == EngineName::Ringbase;
            let layout = if is_own { Layout::BodiesBySeqno } else { layout };
            if subjects.iter().any(|known: &Subject| known.name == name && known.layout == layout) {
                continue;
            }
            let path = scratch.join(format!("{}-{}", name.name(), layout as u8));
            fs::create_dir_all(&path).map_err(BenchError::file("make", &path))?;
            let tuning = Tuning { path: path.clone(), cache_bytes, write_buffer_bytes: WRITE_BUFFER_BYTES };
            let engine = name.make(tuning, layout)?;
            let seqnos = if layout == Layout::BodiesByKey { extent.range } else { extent.seqnos };
            let extent = Extent { seqnos, ..extent };
            let expected = Expected::of(data, &extent);
            subjects.push(Subject { name, layout, path, engine, extent, expected });
        }
    }
    Ok(subjects)
}

impl Subject {
    /// Does one part of the measurement.
    fn measure(
        &mut self,
        data: &Data,
        bar: &ProgressBar,
        found: &mut Vec<Found>,
        part: impl FnOnce(&mut Measurement<'_>) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        let layout = self.layout;
        let mut report = |row: Row| {
            bar.inc(1);
            found.push(Found { layout, row });
        };
        let begin =
            |engine: &'static str, phase: Phase| bar.set_message(format!("{engine}: {}", phase.name()));
        part(&mut Measurement {
            engine: &mut *self.engine,
            path: &self.path,
            data,
            extent: self.extent,
            expected: &self.expected,
            report: &mut report,
            begin: &begin,
        })
    }
}

/// A bar with a step for every row that will come.
fn progress(subjects: &[Subject], rounds: u32, extent: Extent) -> ProgressBar {
    let written = if extent.overwrites > 0 { 5 } else { 2 };
    let read = 4 + DEPTHS.len() as u64;
    let bar = ProgressBar::new(subjects.len() as u64 * (written + u64::from(rounds) * read));
    if let Ok(style) = ProgressStyle::with_template("{msg:32} {wide_bar} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn probe_bytes(data: &Data) -> u64 {
    data.bytes().clamp(1 << 20, PROBE_BYTES_MAX) >> 20 << 20
}

/// What the device gives: one long read, and single blocks at the depths of the random reads.
fn look_up_to(probes: &ProbeFile, round: u32, duration: Duration) -> Result<Vec<Ceiling>, BenchError> {
    let long = sequential_read(duration);
    let random = |operation_bytes: usize, depth: usize| ProbePlan {
        class: IoClass::Read,
        pattern: Pattern::Random,
        operation_bytes,
        depth: depth as u32,
        duration,
    };
    let mut plans = vec![long, random(PROBE_BLOCK_BYTES, DEPTHS[2])];
    plans.extend(DEPTHS.map(|depth| random(PROBE_READ_BYTES, depth)));
    let look = |plan: ProbePlan| {
        let result = probes.run(&plan)?;
        let is_sequential = plan.pattern == Pattern::Sequential;
        let rate = if is_sequential { result.megabytes_per_second() } else { result.operations_per_second() };
        Ok(Ceiling { round, is_sequential, bytes: plan.operation_bytes, depth: plan.depth, rate })
    };
    plans.into_iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_goes_from_nothing_to_all() {
        assert_eq!(share("0.25"), Ok(0.25));
        assert_eq!(share("1"), Ok(1.0));
        for text in ["1.1", "-0.1", "NaN", "ten"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_engine_that_is_not_built_in_names_its_feature() {
        let tuning = Tuning { path: PathBuf::new(), cache_bytes: 1, write_buffer_bytes: 1 };
        for name in EngineName::value_variants() {
            let made = name.make(tuning.clone(), Layout::BodiesBySeqno);
            match name.feature().filter(|_| !name.is_built_in()) {
                None => assert!(made.is_ok()),
                Some(feature) => assert!(made.err().unwrap().to_string().contains(feature)),
            }
        }
    }
}
