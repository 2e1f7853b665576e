//! `ringbench churn`: a data set is overwritten again and again, with and without scans that hold its beginning.
//!
//! A node on disk is filled once. In each cell, on a directory of its own, all documents are loaded and then as many writes as `--times` the documents go
//! to documents drawn uniformly or by popularity, while the node is looked at several times a second. Scans that are held are created before the
//! first overwrite and read after the last one.
//!
//! Invariants
//! - Every write is answered; one that is refused for want of room is asked again, and counted.
//! - A held scan brings every document once in the end, or the measurement fails.
//! - Amplification is counted from after the load: bytes that the node wrote through its ring, bytes of its data files that are in use.
//!
//! Does not know: how results are shown (`output`).

mod look;
mod output;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use ringbase::client::{Connection, ContinueLimits, Scan, ScanState};
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase_storage::types::VbId;

use super::or_default;
use crate::cpus;
use crate::error::BenchError;
use crate::machine::Machine;
use crate::node::NodeProcess;
use crate::traffic::{self, Documents, KEY_BYTES, KeyChoice, Operations, Run, Target};
use crate::workload::{NodeArgs, PlaceArgs, ResultArgs, Scratch};
use look::Look;

/// The bucket that a new node has.
const BUCKET: &str = "default";

/// Longest time in which the node may come to rest after the last write.
const REST: Duration = Duration::from_secs(60);

/// It is at rest when nothing was written for so long.
const STILL: Duration = Duration::from_secs(3);

/// Longer than any run: held scans are not to be cancelled for their age.
const SCAN_LIFETIME_SECONDS: &str = "86400";

/// Options of `ringbench churn`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChurnArgs {
    /// Documents [default: 500000; 20000 with --quick].
    #[arg(long, value_name = "N")]
    documents: Option<u64>,
    /// Bytes of every value.
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    value_bytes: usize,
    /// Writes, as a multiple of the documents [default: 10; 3 with --quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    times: Option<u64>,
    /// Which documents are overwritten [default: uniform,zipfian].
    #[arg(long, value_name = "CHOICES", value_delimiter = ',')]
    keys: Vec<KeyChoice>,
    /// Whether scans of all vbuckets are held meanwhile: no, yes, or one after the other [default: no,yes].
    #[arg(long, value_name = "CHOICES", value_delimiter = ',')]
    held: Vec<Held>,
    /// Connections.
    #[arg(long, value_name = "N", default_value_t = 4)]
    connections: usize,
    /// Requests under way on each.
    #[arg(long, value_name = "N", default_value_t = 16)]
    depth: usize,
    /// Vbuckets of the node.
    #[arg(long, value_name = "N", default_value_t = 16)]
    vbuckets: u16,
    /// Cores of the node.
    #[arg(long, value_name = "N", default_value_t = 2)]
    cores: u16,
    /// Memory of the node.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    memory: String,
    /// What keys, values and draws are made from.
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    place: PlaceArgs,
    /// Few documents, few writes: shows that all works, its figures mean little.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    results: ResultArgs,
}

/// Whether scans are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Held {
    /// None.
    No,
    /// One of every vbucket.
    Yes,
}

impl Held {
    fn name(self) -> &'static str {
        match self {
            Held::No => "none",
            Held::Yes => "one a vbucket",
        }
    }
}

/// What was found in one cell.
#[derive(Debug)]
struct Found {
    keys: KeyChoice,
    held: Held,
    writes: u64,
    /// Bytes of keys and values that are there at any time, and that were overwritten.
    live_bytes: u64,
    written_bytes: u64,
    seconds: f64,
    server_cpu_seconds: f64,
    client_cpu_seconds: f64,
    latency: Histogram<u64>,
    refused: u64,
    /// From the first overwrite to the last, and the node at rest.
    looks: Vec<Look>,
    rest: Look,
    /// After the held scans were read.
    released: Option<Look>,
}

impl Found {
    /// Bytes in use for a byte of documents.
    fn space(&self, look: &Look) -> f64 {
        look.used_bytes as f64 / self.live_bytes as f64
    }

    fn space_most(&self) -> f64 {
        self.looks.iter().chain([&self.rest]).map(|look| self.space(look)).fold(0.0, f64::max)
    }

    /// Bytes that the node wrote for a byte of overwrites, its log included.
    fn write_amplification(&self) -> f64 {
        let before = self.looks.first().map_or(0, |look| look.written_bytes);
        self.rest.written_bytes.saturating_sub(before) as f64 / self.written_bytes as f64
    }
}

/// Everything that was measured.
#[derive(Debug)]
struct Results {
    machine: Machine,
    documents: u64,
    value_bytes: usize,
    cores: u16,
    found: Vec<Found>,
}

pub(crate) fn run(args: &ChurnArgs) -> Result<(), BenchError> {
    let documents = args.documents.unwrap_or(if args.quick { 20_000 } else { 500_000 });
    let documents = Documents::new(documents, args.value_bytes, args.seed)?;
    let place = Scratch::make(&args.place, "churn")?;
    let out = args.results.directory(&place, "churn");
    let mut machine = Machine::look(place.path());
    drop(place);
    let mut found = Vec::new();
    for keys in or_default(&args.keys, &[KeyChoice::Uniform, KeyChoice::Zipfian]) {
        for held in or_default(&args.held, &[Held::No, Held::Yes]) {
            eprintln!("{} overwrites, held scans: {}", keys.name(), held.name());
            found.push(measure(args, &documents, keys, held)?);
        }
    }
    machine.finish();
    let (count, value_bytes, cores) = (documents.count(), args.value_bytes, args.cores);
    let results = Results { machine, documents: count, value_bytes, cores, found };
    output::write(&results, &out)?;
    output::show(&results, args.results.json, &out);
    Ok(())
}

fn measure(
    args: &ChurnArgs,
    documents: &Documents,
    keys: KeyChoice,
    held: Held,
) -> Result<Found, BenchError> {
    let scratch = Scratch::make(&args.place, "churn")?;
    let node_args = NodeArgs {
        place: args.place.clone(),
        vbuckets: args.vbuckets,
        cores: args.cores,
        memory: args.memory.clone(),
    };
    let options = scratch.node(&node_args, "documents")?;
    let node = NodeProcess::start(&options)?;
    let target =
        Target { name: "ringbase", address: node.address(), bucket: Some(BUCKET), vbuckets: args.vbuckets };
    let client_cpus = cpus::allowed()?;
    let pass = |operations: &Operations| {
        traffic::finish(&Run {
            target: &target,
            documents,
            operations,
            connections: args.connections,
            depth: args.depth,
            cpus: &client_cpus,
            seed: args.seed,
        })
    };
    pass(&Operations::load(0..documents.count()))?;
    node.connect()?.wait_persisted()?;
    let mut holder = Connection::open(&node.connect_options())?;
    let mut scans = match held {
        Held::No => Vec::new(),
        Held::Yes => hold(&mut holder, args.vbuckets)?,
    };
    let writes = documents.count() * args.times.unwrap_or(if args.quick { 3 } else { 10 });
    let operations = Operations::overwrites(documents, keys, writes);
    let stop = AtomicBool::new(false);
    let (cpu_before, own_before) = (node.cpu_seconds()?, crate::process::own_cpu_seconds());
    let started = Instant::now();
    let (tally, looks) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| look::until(&node, &options.data, started, &stop));
        let tally = pass(&operations);
        stop.store(true, Ordering::Relaxed);
        let looks = looking.join().expect("the looking thread does not panic")?;
        Ok::<_, BenchError>((tally?, looks))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let client_cpu_seconds = crate::process::own_cpu_seconds() - own_before;
    let server_cpu_seconds = node.cpu_seconds()? - cpu_before;
    let rest = look::at_rest(&node, &options.data, started, STILL, REST)?;
    let released = match held {
        Held::No => None,
        Held::Yes => {
            release(&mut holder, &mut scans, documents.count())?;
            drop(scans);
            Some(look::at_rest(&node, &options.data, started, STILL, REST)?)
        }
    };
    drop(holder);
    node.stop()?;
    let document_bytes = (KEY_BYTES + args.value_bytes) as u64;
    Ok(Found {
        keys,
        held,
        writes,
        live_bytes: documents.count() * document_bytes,
        written_bytes: writes * document_bytes,
        seconds,
        server_cpu_seconds,
        client_cpu_seconds,
        latency: tally.latency,
        refused: tally.refused,
        looks,
        rest,
        released,
    })
}

/// A scan with documents of every vbucket that has some.
fn hold(connection: &mut Connection, vbuckets: u16) -> Result<Vec<Scan>, BenchError> {
    connection.set_param("range_scan_max_lifetime", SCAN_LIFETIME_SECONDS)?;
    let mut scans = Vec::new();
    for vbucket in 0..vbuckets {
        scans.extend(Scan::create(connection, VbId(vbucket), &RangeScanCreate::default())?);
    }
    Ok(scans)
}

/// Reads held scans to their end.
fn release(connection: &mut Connection, scans: &mut [Scan], expected: u64) -> Result<(), BenchError> {
    let mut records = 0;
    for scan in scans {
        let mut count = |_: ringbase::client::ScanRecord<'_>| {
            records += 1;
            Ok(())
        };
        while scan.advance(connection, ContinueLimits::default(), &mut count)? == ScanState::More {}
    }
    if records == expected {
        return Ok(());
    }
    Err(BenchError::Unsound(format!("scans that were held brought {records} documents of {expected}")))
}
