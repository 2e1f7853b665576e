//! `ringbench scan`: the founding measurement, range scans against the buffer size.
//!
//! In every round every buffer size has its turn: the node is restarted, scanned cold, scanned warm, stopped, and the ceilings for this size are measured.
//!
//! Invariants
//! - A cold scan begins with no look-up in the block cache since the start of the node; reads go past the page cache.
//! - Every scan of a data set finds every record, in key order, or the measurement fails.
//!
//! Does not know: how results are shown (`output`).

mod latencies;
mod output;

use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use ringbase::client::Generator;

use super::{fill, restart, scan};
use crate::cpus;
use crate::disk::{ProbeFile, sequential_read};
use crate::error::BenchError;
use crate::latency::Compared;
use crate::loopback::{self, Ceiling, Frames};
use crate::machine::Machine;
use crate::node::{CacheCounts, Control, NodeOptions, NodeProcess, number};
use crate::recorder;
use crate::report::{Kind, Row};
use crate::workload::{BufferSize, KeyArgs, NodeArgs, ResultArgs, Scratch, key_records};

/// Bytes of the file whose sequential reads are the ceiling of cold scans.
const PROBE_BYTES: u64 = 512 << 20;

/// Options of `ringbench scan`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    keys: KeyArgs,
    /// Documents of the second data set, scanned with their values; 0 leaves it out [default: 100000; 10000 with --quick].
    #[arg(long, value_name = "N")]
    documents: Option<u64>,
    /// Bytes of every value of the second data set.
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    document_bytes: usize,
    /// Buffer sizes.
    #[arg(
        long,
        value_name = "SIZES",
        value_delimiter = ',',
        default_value = "8KiB,16KiB,32KiB,64KiB,128KiB,256KiB,512KiB,1MiB,auto"
    )]
    buffers: Vec<BufferSize>,
    /// Numbers of connections; cold scans use the first.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "2,1")]
    connections: Vec<usize>,
    /// Rounds [default: 5; 2 with --quick].
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// A small data set and two rounds: shows that all works, its figures mean little.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    results: ResultArgs,
}

/// Times of the buffers of warm key-only scans, as the node has measured them, in nanoseconds.
#[derive(Debug, Clone)]
struct BufferTimes {
    buffer: BufferSize,
    /// From taking a buffer to its being full.
    fill: Histogram<u64>,
    /// From then until it is back after being sent.
    sent: Histogram<u64>,
}

/// Everything that was measured.
#[derive(Debug)]
struct Results {
    machine: Machine,
    key_generator: Generator,
    document_generator: Option<Generator>,
    /// Sorted runs that a scan merges, of all vbuckets.
    key_runs: u64,
    rounds: u32,
    rows: Vec<Row>,
    times: Vec<BufferTimes>,
    latencies: Compared,
}

/// A data set on the disk.
struct DataSet {
    options: NodeOptions,
    generator: Generator,
    key_only: bool,
}

pub(crate) fn run(args: &ScanArgs) -> Result<(), BenchError> {
    if args.buffers.is_empty() || args.connections.is_empty() || args.connections.contains(&0) {
        return Err(BenchError::Misuse(
            "give at least one buffer size and numbers of connections above 0".into(),
        ));
    }
    let scratch = Scratch::make(&args.node.place, "scan")?;
    let out = args.results.directory(&scratch, "scan");
    std::fs::create_dir_all(&out).map_err(BenchError::file("make", &out))?;
    let machine = Machine::look(scratch.path());

    let keys = DataSet {
        options: scratch.node(&args.node, "keys")?,
        generator: args.keys.generator(args.quick)?,
        key_only: true,
    };
    fill(&keys.options, &keys.generator, "keys")?;
    let documents = match args.documents.unwrap_or(if args.quick { 10_000 } else { 100_000 }) {
        0 => None,
        count => {
            let KeyArgs { key_bytes, seed, .. } = args.keys;
            let generator = Generator::new(count, key_bytes, args.document_bytes, seed);
            let generator = generator.map_err(BenchError::Misuse)?;
            let options = scratch.node(&args.node, "documents")?;
            fill(&options, &generator, "documents")?;
            Some(DataSet { options, generator, key_only: false })
        }
    };

    let probe_bytes = if args.quick { PROBE_BYTES / 8 } else { PROBE_BYTES };
    let mut bench = Bench {
        args,
        rounds: args.rounds.unwrap_or(if args.quick { 2 } else { 5 }).max(1),
        probe: ProbeFile::make(&scratch.path().join("probe"), probe_bytes, 16)?,
        cpus: cpus::allowed()?,
        records: key_records(&keys.generator, args.node.vbuckets),
        rows: Vec::new(),
        times: Vec::new(),
    };
    for round in 1..=bench.rounds {
        bench.device(round)?;
        for buffer in args.buffers.iter().copied() {
            eprintln!("round {round} of {}, buffer {buffer}", bench.rounds);
            bench.data_set(round, buffer, &keys)?;
            bench.ceilings(round, buffer)?;
            if let Some(documents) = &documents {
                bench.data_set(round, buffer, documents)?;
            }
        }
    }
    eprintln!("latency of small requests");
    let node = restart(&keys.options)?;
    let key_runs = number(&node.connect()?.stats("")?, "key_runs")?;
    let latencies = latencies::measure(&node, args, &keys.generator)?;
    node.stop()?;

    let Bench { rounds, rows, times, .. } = bench;
    let mut results = Results {
        machine,
        key_generator: keys.generator,
        document_generator: documents.map(|documents| documents.generator),
        key_runs,
        rounds,
        rows,
        times,
        latencies,
    };
    results.machine.finish();
    output::write(&results, args, &out)
}

/// The measurement under way.
struct Bench<'a> {
    args: &'a ScanArgs,
    rounds: u32,
    probe: ProbeFile,
    cpus: Vec<usize>,
    /// Records of one vbucket, and where each ends.
    records: (Vec<u8>, Vec<usize>),
    rows: Vec<Row>,
    times: Vec<BufferTimes>,
}

/// One scan of everything.
#[derive(Debug, Clone, Copy)]
struct Pass {
    round: u32,
    kind: Kind,
    buffer: BufferSize,
    connections: usize,
}

impl Bench<'_> {
    fn device(&mut self, round: u32) -> Result<(), BenchError> {
        let duration = Duration::from_millis(if self.args.quick { 200 } else { 1000 });
        let result = self.probe.run(&sequential_read(duration))?;
        self.rows.push(Row {
            round,
            kind: Kind::Device,
            buffer: String::new(),
            buffer_bytes: 0,
            connections: 0,
            seconds: result.elapsed.as_secs_f64(),
            records: 0,
            record_bytes: result.operations * result.plan.operation_bytes as u64,
            frames: 0,
            server_cpu_seconds: 0.0,
            client_cpu_seconds: 0.0,
            resident_bytes: 0,
            cache_hits: 0,
            cache_misses: 0,
            cache_hits_before: 0,
        });
        Ok(())
    }

    /// Cold, then warm.
    fn data_set(&mut self, round: u32, buffer: BufferSize, data: &DataSet) -> Result<(), BenchError> {
        let node = restart(&data.options)?;
        let mut control = node.connect()?;
        control.set_send_size(&buffer.setting())?;
        let (cold, warm) = match data.key_only {
            true => (Kind::KeysCold, Kind::KeysWarm),
            false => (Kind::DocumentsCold, Kind::DocumentsWarm),
        };
        let before = control.cache()?;
        if before.hits > 0 || before.bytes > 0 {
            let text = format!("the block cache of a node that was just started is not empty: {before:?}");
            return Err(BenchError::Unsound(text));
        }
        let pass = Pass { round, kind: cold, buffer, connections: self.args.connections[0] };
        self.one(pass, data, &node, &mut control)?;
        for (index, connections) in self.args.connections.iter().copied().enumerate() {
            control.reset()?;
            self.one(Pass { round, kind: warm, buffer, connections }, data, &node, &mut control)?;
            if data.key_only && index == 0 {
                self.buffer_times(buffer, &mut control)?;
            }
        }
        drop(control);
        node.stop()
    }

    fn one(
        &mut self,
        pass: Pass,
        data: &DataSet,
        node: &NodeProcess,
        control: &mut Control,
    ) -> Result<(), BenchError> {
        let Pass { round, kind, buffer, connections } = pass;
        let cache_before = control.cache()?;
        let (server_before, client_before) = (node.cpu_seconds()?, crate::process::own_cpu_seconds());
        let report = scan(node, self.args.node.vbuckets, data.key_only, connections, data.generator.count())?;
        let client_after = crate::process::own_cpu_seconds();
        let server_after = node.cpu_seconds()?;
        let CacheCounts { hits, misses, .. } = control.cache()?.since(cache_before);
        let counts = &report.total.counts;
        self.rows.push(Row {
            round,
            kind,
            buffer: buffer.to_string(),
            buffer_bytes: buffer.bytes(),
            connections,
            seconds: report.total.elapsed.as_secs_f64(),
            records: counts.records.records,
            record_bytes: counts.record_bytes,
            frames: counts.frames,
            server_cpu_seconds: server_after - server_before,
            client_cpu_seconds: client_after - client_before,
            resident_bytes: node.resident_bytes()?,
            cache_hits: hits,
            cache_misses: misses,
            cache_hits_before: cache_before.hits,
        });
        Ok(())
    }

    fn buffer_times(&mut self, buffer: BufferSize, control: &mut Control) -> Result<(), BenchError> {
        let found = control.histograms(&["range_scan_fill_ns", "range_scan_full_to_sent_ns"])?;
        let index = match self.times.iter().position(|times| times.buffer == buffer) {
            Some(index) => index,
            None => {
                let (fill, sent) = (recorder::histogram(), recorder::histogram());
                self.times.push(BufferTimes { buffer, fill, sent });
                self.times.len() - 1
            }
        };
        let times = &mut self.times[index];
        for (sum, part) in [&mut times.fill, &mut times.sent].into_iter().zip(&found) {
            sum.add(part)
                .map_err(|error| BenchError::Unsound(format!("histograms do not add up: {error}")))?;
        }
        Ok(())
    }

    fn ceilings(&mut self, round: u32, buffer: BufferSize) -> Result<(), BenchError> {
        let frames = Frames::new(&self.records.0, &self.records.1, buffer.bytes() as usize);
        let vbuckets = self.args.node.vbuckets;
        for connections in self.args.connections.iter().copied() {
            let plain = loopback::plain_node(&frames, vbuckets, connections, &self.cpus)?;
            let stream = loopback::stream(&frames, vbuckets, connections, &self.cpus)?;
            for (kind, ceiling) in [(Kind::PlainWriter, plain), (Kind::Loopback, stream)] {
                self.rows.push(ceiling_row(round, kind, buffer, connections, &ceiling));
            }
        }
        Ok(())
    }
}

fn ceiling_row(round: u32, kind: Kind, buffer: BufferSize, connections: usize, ceiling: &Ceiling) -> Row {
    Row {
        round,
        kind,
        buffer: buffer.to_string(),
        buffer_bytes: buffer.bytes(),
        connections,
        seconds: ceiling.elapsed.as_secs_f64(),
        records: ceiling.records.records,
        record_bytes: ceiling.record_bytes,
        frames: 0,
        server_cpu_seconds: ceiling.writer_cpu_seconds,
        client_cpu_seconds: ceiling.reader_cpu_seconds,
        resident_bytes: 0,
        cache_hits: 0,
        cache_misses: 0,
        cache_hits_before: 0,
    }
}
