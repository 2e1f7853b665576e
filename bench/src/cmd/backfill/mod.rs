//! `ringbench backfill`: everything in a node as DCP streams, from memory and from disk, against the client's window and the number of
//! connections.
//!
//! For each size of value and number of vbuckets a bucket in memory is loaded and drained (resident). Then the node is filled on disk, and
//! started anew for every drain from the device (cold), which another one from the block cache follows (warm). In every round every combination
//! has its turn, and the ceilings of the round are measured with the same client.
//!
//! Invariants
//! - A resident drain brings no document of a snapshot of the disk, cold and warm ones nothing else; or the measurement fails.
//! - A cold drain begins with no look-up in the block cache since the start of the node; reads go past the page cache.
//! - Every drain brings every document once, in seqno order, or the measurement fails.
//!
//! Does not know: how results are shown (`output`).

mod beside;
mod ceiling;
mod drain;
mod output;
mod parked;
mod rows;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use ringbase::client::{ConnectOptions, Generator};
use ringbase::config::ByteSize;
use ringbase_storage::types::{Seqno, VbId};

use super::{fill, load_into, or_default, restart};
use crate::cpus;
use crate::disk::{ProbeFile, sequential_read};
use crate::error::BenchError;
use crate::loopback;
use crate::machine::Machine;
use crate::node::{Control, NodeOptions, NodeProcess, number};
use crate::recorder;
use crate::workload::{NodeArgs, PlaceArgs, ResultArgs, Scratch};
use beside::Beside;
use ceiling::StreamFrames;
use drain::{DrainPlan, Drained, drain};
use parked::Parked;
use rows::{Cell, DataSet, Kind, Row, SPENT};

/// Bytes of the file whose sequential reads are the ceiling of cold drains.
const PROBE_BYTES: u64 = 512 << 20;

/// Largest value of a document.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// The bucket of resident drains.
const MEMORY_BUCKET: &str = "memory";
const MEMORY_BUCKET_SETTINGS: &str = "bucket_type=ephemeral;ephemeral_full_policy=fail_new_data";

/// The window of flow control that a client opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Window(u32);

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("none"),
            bytes => ByteSize(u64::from(bytes)).fmt(f),
        }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Window, String> {
        if text == "none" {
            return Ok(Window(0));
        }
        let ByteSize(bytes) = text.parse()?;
        match u32::try_from(bytes) {
            Ok(bytes) if bytes >= 1024 => Ok(Window(bytes)),
            _ => Err(format!("{text} is no window; they have 1KiB to 4GiB, or write `none`")),
        }
    }
}

/// Options of `ringbench backfill`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BackfillArgs {
    /// Megabytes (10⁶ bytes) of keys and values in the node [default: 400; 40 with --quick].
    #[arg(long, value_name = "MB")]
    megabytes: Option<u64>,
    /// Bytes of every key, 1 to 250.
    #[arg(long, value_name = "BYTES", default_value_t = 20)]
    key_bytes: usize,
    /// Bytes of every value; the first is the usual one [default: 1024,100,10240; 1024,100 with --quick].
    #[arg(long, value_name = "BYTES", value_delimiter = ',')]
    values: Vec<usize>,
    /// Vbuckets of the node; the first is the usual number [default: 16,1024; 16 with --quick].
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    vbuckets: Vec<u16>,
    /// Connections of the client; the first is the usual number.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,8")]
    connections: Vec<usize>,
    /// Windows of flow control, or `none`; the first is the usual one [default: 16MiB,64KiB,256KiB,1MiB,4MiB,none; 16MiB,64KiB with --quick].
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    windows: Vec<Window>,
    /// All combinations; otherwise unusual values of two options are not combined.
    #[arg(long)]
    full: bool,
    /// Rounds [default: 5; 2 with --quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Streams that stand still while the memory of the node is measured; 0 leaves it out [default: 1000; 16 with --quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    parked: Option<u32>,
    /// Cores of the node.
    #[arg(long, value_name = "N", default_value_t = 2)]
    cores: u16,
    /// Memory of the node; it uses two fifths of it for documents.
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    memory: String,
    /// What keys and values are made from.
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    place: PlaceArgs,
    /// Few documents, few combinations: shows that all works, its figures mean little.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    results: ResultArgs,
}

/// Everything that was measured.
#[derive(Debug)]
struct Results {
    machine: Machine,
    key_bytes: usize,
    rounds: u32,
    windows: Vec<Window>,
    usual: Cell,
    rows: Vec<Row>,
    /// Runs and waits of the streams of the usual combination, in the order of [`SPENT`].
    spent: BTreeMap<Kind, Vec<Histogram<u64>>>,
    parked: Vec<Parked>,
    beside: Vec<Beside>,
}

/// The options, checked and complete.
#[derive(Debug)]
struct Settings {
    rounds: u32,
    parked: u32,
    windows: Vec<Window>,
    sets: Vec<(DataSet, Generator)>,
    connections: Vec<usize>,
    full: bool,
}

impl BackfillArgs {
    fn settings(&self) -> Result<Settings, BenchError> {
        let misuse = |text: String| Err(BenchError::Misuse(text));
        let quick = self.quick;
        let values = or_default(&self.values, if quick { &[1024, 100] } else { &[1024, 100, 10_240] });
        let vbuckets = or_default(&self.vbuckets, if quick { &[16] } else { &[16, 1024] });
        let usual = ["16MiB", "64KiB", "256KiB", "1MiB", "4MiB", "none"]
            .map(|text| text.parse().unwrap_or(Window(0)));
        let windows = or_default(&self.windows, if quick { &usual[..2] } else { &usual });
        if let Some(bytes) = values.iter().find(|bytes| !(1..=VALUE_BYTES_MAX).contains(*bytes)) {
            return misuse(format!("--values {bytes}: values have 1 to {VALUE_BYTES_MAX} bytes"));
        }
        if let Some(count) = vbuckets.iter().find(|count| !(1..=1024).contains(*count)) {
            return misuse(format!("--vbuckets {count}: a node has 1 to 1024"));
        }
        if let Some(count) = self.connections.iter().find(|count| !(1..=1024).contains(*count)) {
            return misuse(format!("--connections {count}: 1 to 1024"));
        }
        if self.connections.is_empty() {
            return misuse("give at least one number of --connections".to_owned());
        }
        let megabytes = self.megabytes.unwrap_or(if self.quick { 40 } else { 400 });
        let mut sets = Vec::new();
        for (at, value_bytes) in values.iter().copied().enumerate() {
            for (other, vbuckets) in vbuckets.iter().copied().enumerate() {
                if !self.full && at > 0 && other > 0 {
                    continue;
                }
                let bytes = (self.key_bytes + value_bytes) as u64;
                let documents = (megabytes.saturating_mul(1_000_000) / bytes).max(u64::from(vbuckets));
                let generator = Generator::new(documents, self.key_bytes, value_bytes, self.seed);
                sets.push((DataSet { value_bytes, vbuckets }, generator.map_err(BenchError::Misuse)?));
            }
        }
        Ok(Settings {
            rounds: self.rounds.unwrap_or(if self.quick { 2 } else { 5 }),
            parked: self.parked.unwrap_or(if self.quick { 16 } else { 1000 }),
            windows,
            sets,
            connections: self.connections.clone(),
            full: self.full,
        })
    }

    fn node_args(&self, vbuckets: u16) -> NodeArgs {
        NodeArgs { place: self.place.clone(), vbuckets, cores: self.cores, memory: self.memory.clone() }
    }
}

impl Settings {
    fn cells(&self, set: DataSet) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (at, connections) in self.connections.iter().copied().enumerate() {
            for (other, window) in self.windows.iter().copied().enumerate() {
                if self.full || at == 0 || other == 0 {
                    cells.push(Cell { set, connections, window });
                }
            }
        }
        cells
    }
}

pub(crate) fn run(args: &BackfillArgs) -> Result<(), BenchError> {
    let settings = args.settings()?;
    let scratch = Scratch::make(&args.place, "backfill")?;
    let out = args.results.directory(&scratch, "backfill");
    std::fs::create_dir_all(&out).map_err(BenchError::file("make", &out))?;
    let probe_bytes = if args.quick { PROBE_BYTES / 8 } else { PROBE_BYTES };
    let mut bench = Bench {
        args,
        probe: ProbeFile::make(&scratch.path().join("probe"), probe_bytes, 16)?,
        cpus: cpus::allowed()?,
        results: Results {
            machine: Machine::look(scratch.path()),
            key_bytes: args.key_bytes,
            rounds: settings.rounds,
            windows: settings.windows.clone(),
            usual: settings.cells(settings.sets[0].0)[0],
            rows: Vec::new(),
            spent: BTreeMap::new(),
            parked: Vec::new(),
            beside: Vec::new(),
        },
        settings,
    };
    for (set, generator) in bench.settings.sets.clone() {
        let name = format!("{}-{}", set.value_bytes, set.vbuckets);
        let options = scratch.node(&args.node_args(set.vbuckets), &name)?;
        bench.data_set(set, &generator, &options)?;
        if !args.place.keep {
            std::fs::remove_dir_all(&options.data).map_err(BenchError::file("remove", &options.data))?;
        }
    }
    let Bench { mut results, .. } = bench;
    results.machine.finish();
    output::write(&results, args.results.json, &out)
}

/// The measurement under way.
struct Bench<'a> {
    args: &'a BackfillArgs,
    settings: Settings,
    probe: ProbeFile,
    cpus: Vec<usize>,
    results: Results,
}

impl Bench<'_> {
    fn data_set(
        &mut self,
        set: DataSet,
        generator: &Generator,
        options: &NodeOptions,
    ) -> Result<(), BenchError> {
        self.in_memory(set, generator, options)?;
        self.on_disk(set, generator, options)
    }

    fn in_memory(
        &mut self,
        set: DataSet,
        generator: &Generator,
        options: &NodeOptions,
    ) -> Result<(), BenchError> {
        let node = NodeProcess::start(options)?;
        node.connect()?.create_bucket(MEMORY_BUCKET, MEMORY_BUCKET_SETTINGS)?;
        let connect = ConnectOptions { bucket: Some(MEMORY_BUCKET.into()), ..node.connect_options() };
        load_into(&connect, generator, &format!("{set}, in memory"))?;
        let source = Source::look(&node, connect, set.vbuckets, generator)?;
        let frames = StreamFrames::new(generator, set.vbuckets);
        for round in 1..=self.settings.rounds {
            eprintln!("{set}, from memory, round {round} of {}", self.settings.rounds);
            self.device(round, set)?;
            for cell in self.settings.cells(set) {
                self.one(round, Kind::Resident, cell, &source)?;
            }
            for connections in self.settings.connections.clone() {
                self.ceilings(round, set, connections, &frames)?;
            }
        }
        self.others(Kind::Resident, set, &source)?;
        node.stop()
    }

    fn on_disk(
        &mut self,
        set: DataSet,
        generator: &Generator,
        options: &NodeOptions,
    ) -> Result<(), BenchError> {
        fill(options, generator, &format!("{set}, on disk"))?;
        for round in 1..=self.settings.rounds {
            eprintln!("{set}, from disk, round {round} of {}", self.settings.rounds);
            for cell in self.settings.cells(set) {
                let node = restart(options)?;
                let source = Source::look(&node, node.connect_options(), set.vbuckets, generator)?;
                self.one(round, Kind::Cold, cell, &source)?;
                self.one(round, Kind::Warm, cell, &source)?;
                node.stop()?;
            }
        }
        let node = restart(options)?;
        let source = Source::look(&node, node.connect_options(), set.vbuckets, generator)?;
        self.others(Kind::Warm, set, &source)?;
        node.stop()
    }

    /// Memory of standing streams, of the data set with the most vbuckets, and small requests beside backfills, of the usual one.
    fn others(&mut self, kind: Kind, set: DataSet, source: &Source<'_>) -> Result<(), BenchError> {
        let (usual, parked) = (self.results.usual.set, self.settings.parked);
        let most = self.settings.sets.iter().map(|(set, _)| set.vbuckets).max();
        if parked > 0 && most == Some(set.vbuckets) && set.value_bytes == usual.value_bytes {
            self.results.parked.push(parked::measure(kind, source, parked)?);
        }
        if set == usual {
            self.results.beside.push(beside::measure(kind, source, self.args.quick)?);
        }
        Ok(())
    }

    fn device(&mut self, round: u32, set: DataSet) -> Result<(), BenchError> {
        let duration = Duration::from_millis(if self.args.quick { 200 } else { 1000 });
        let result = self.probe.run(&sequential_read(duration))?;
        self.results.rows.push(Row {
            seconds: result.elapsed.as_secs_f64(),
            bytes: result.operations * result.plan.operation_bytes as u64,
            ..Row::new(round, Kind::Device, Cell { set, connections: 0, window: Window(0) })
        });
        Ok(())
    }

    fn one(&mut self, round: u32, kind: Kind, cell: Cell, source: &Source<'_>) -> Result<(), BenchError> {
        let (node, mut control) = (source.node, Control::open(&source.connect)?);
        let cache = control.cache()?;
        if kind == Kind::Cold && (cache.hits > 0 || cache.bytes > 0) {
            let text = format!("the block cache of a node that was just started is not empty: {cache:?}");
            return Err(BenchError::Unsound(text));
        }
        control.reset()?;
        let cpu_before = node.cpu_seconds()?;
        let plan = DrainPlan {
            connect: source.connect.clone(),
            streams: &source.streams,
            connections: cell.connections,
            buffer_bytes: cell.window.0,
        };
        let drained = drain(&plan)?;
        let server_cpu_seconds = node.cpu_seconds()? - cpu_before;
        check(kind, &drained, source.generator.count())?;
        let times = spent(&mut control)?;
        let row = Row {
            spent_seconds: std::array::from_fn(|at| times[at].mean() * times[at].len() as f64 / 1e9),
            server_cpu_seconds,
            resident_bytes: node.resident_bytes()?,
            ..Row::of(round, kind, cell, &drained)
        };
        self.results.rows.push(row);
        if cell == self.results.usual {
            let sums = self.results.spent.entry(kind);
            let sums = sums.or_insert_with(|| vec![recorder::histogram(); SPENT.len()]);
            for (sum, part) in sums.iter_mut().zip(&times) {
                sum.add(part)
                    .map_err(|error| BenchError::Unsound(format!("histograms do not add up: {error}")))?;
            }
        }
        Ok(())
    }

    fn ceilings(
        &mut self,
        round: u32,
        set: DataSet,
        connections: usize,
        frames: &StreamFrames,
    ) -> Result<(), BenchError> {
        let cell = Cell { set, connections, window: Window(0) };
        let (drained, writer_cpu_seconds) =
            ceiling::plain_node(frames, set.vbuckets, connections, &self.cpus)?;
        let plain = Row {
            server_cpu_seconds: writer_cpu_seconds,
            ..Row::of(round, Kind::PlainWriter, cell, &drained)
        };
        let found = loopback::stream(&frames.plain(), set.vbuckets, connections, &self.cpus)?;
        let loopback = Row {
            seconds: found.elapsed.as_secs_f64(),
            bytes: found.record_bytes,
            items: drained.items,
            server_cpu_seconds: found.writer_cpu_seconds,
            client_cpu_seconds: found.reader_cpu_seconds,
            ..Row::new(round, Kind::Loopback, cell)
        };
        self.results.rows.extend([plain, loopback]);
        Ok(())
    }
}

/// A node with documents in a bucket.
struct Source<'a> {
    node: &'a NodeProcess,
    connect: ConnectOptions,
    /// Every vbucket that has documents, with its high seqno.
    streams: Vec<(VbId, Seqno)>,
    generator: &'a Generator,
}

impl<'a> Source<'a> {
    fn look(
        node: &'a NodeProcess,
        connect: ConnectOptions,
        vbuckets: u16,
        generator: &'a Generator,
    ) -> Result<Source<'a>, BenchError> {
        let stats = Control::open(&connect)?.stats("vbucket-seqno")?;
        let mut streams = Vec::new();
        for vb in 0..vbuckets {
            let high = number(&stats, &format!("vb_{vb}:high_seqno"))?;
            if high > 0 {
                streams.push((VbId(vb), Seqno(high)));
            }
        }
        Ok(Source { node, connect, streams, generator })
    }
}

fn check(kind: Kind, drained: &Drained, count: u64) -> Result<(), BenchError> {
    let from_disk = if kind == Kind::Resident { 0 } else { count };
    if drained.items == count && drained.disk_items == from_disk {
        return Ok(());
    }
    Err(BenchError::Unsound(format!(
        "{} of {count} documents came, {} of them from disk; {from_disk} were to be",
        drained.items, drained.disk_items
    )))
}

/// Runs and waits of streams since the last reset, in the order of [`SPENT`].
fn spent(control: &mut Control) -> Result<Vec<Histogram<u64>>, BenchError> {
    let names = SPENT.map(|name| format!("dcp_{name}_ns"));
    control.histograms(&names.each_ref().map(String::as_str))
}
