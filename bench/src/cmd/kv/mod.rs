//! `ringbench kv`: point operations of a node beside memcached, with one client program, in one run.
//!
//! For each number of cores and size of values all servers are started and loaded with the same documents; then in every cell of the matrix
//! they take turns, round by round. NOOP has a third server, the bare echo, which shows what runtime and sockets alone cost.
//!
//! Invariants
//! - Every document is in every server before the first measurement; a GET that misses or brings another value fails the run.
//! - Servers run on the first CPUs, the client on the others; if there are no others they share, which the summary says.
//!
//! Does not know: how results are shown (`output`).

mod cell;
mod output;
mod results;
mod servers;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use ringbase::config::ByteSize;

use super::or_default;
use crate::cpus;
use crate::error::BenchError;
use crate::machine::Machine;
use crate::recorder;
use crate::traffic::{self, Documents, KEY_BYTES, KeyChoice, Mix, Operations, Run};
use crate::workload::{NodeArgs, PlaceArgs, ResultArgs, Scratch};
use cell::{Axes, Cell, Group};
use results::{MemoryRow, Row};
use servers::{BucketType, Memcached, Server, ServerKind};

/// Connections and requests under way on each while loading.
const LOAD_CONNECTIONS: usize = 4;
const LOAD_DEPTH: usize = 64;

/// Memory of a document beyond key and value that is reckoned with when memory is checked beforehand.
const RECKONED_BYTES: u64 = 200;

/// Bytes of a value at most: what every server takes without being told.
const VALUE_BYTES_MAX: usize = 1 << 19;

/// Options of `ringbench kv`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KvArgs {
    /// Documents in each server [default: 1000000; 100000 with --quick].
    #[arg(long, value_name = "N")]
    documents: Option<u64>,
    /// Bytes of every value; the first is the usual one [default: 100,1024; 100 with --quick].
    #[arg(long, value_name = "BYTES", value_delimiter = ',')]
    values: Vec<usize>,
    /// Connections.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,50")]
    connections: Vec<usize>,
    /// Requests under way on each connection, at most 256 [default: 1,16,64; 1,16 with --quick].
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    depths: Vec<usize>,
    /// Operations: `mixed` is nine GETs to one SET, `noop` the floor.
    #[arg(long, value_name = "MIXES", value_delimiter = ',', default_value = "get,set,mixed,noop")]
    mixes: Vec<Mix>,
    /// Which documents are asked for; the first is the usual one [default: zipfian,uniform; zipfian with --quick].
    #[arg(long, value_name = "CHOICES", value_delimiter = ',')]
    keys: Vec<KeyChoice>,
    /// Cores of each server [default: 1,2 as far as there are CPUs].
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    cores: Vec<u16>,
    /// All combinations; otherwise unusual values and unusual choices of documents are not combined.
    #[arg(long)]
    full: bool,
    /// Rounds, in each of which every server has its turn.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds that are measured of each run, after a warm-up of a fifth of it [default: 0.75; 0.1 with --quick].
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Where the node's documents live.
    #[arg(long, value_enum, value_name = "TYPE", default_value = "ephemeral")]
    bucket_type: BucketType,
    /// Vbuckets of the node.
    #[arg(long, value_name = "N", default_value_t = 128)]
    vbuckets: u16,
    /// Memory of each server; the node uses two fifths of it for documents.
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    memory: String,
    /// What keys, values and draws are made from.
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// The peer's program (Debian package `memcached`).
    #[arg(long, value_name = "PATH", default_value = "memcached")]
    memcached: PathBuf,
    /// Measure without the peer.
    #[arg(long)]
    skip_memcached: bool,
    #[command(flatten)]
    place: PlaceArgs,
    /// Few documents, few cells, short runs: shows that all works, its figures mean little.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    results: ResultArgs,
}

/// Everything that was measured.
#[derive(Debug)]
struct Results {
    machine: Machine,
    /// What the peer says it is; `None` if it was left out.
    memcached: Option<String>,
    bucket_type: BucketType,
    vbuckets: u16,
    documents: u64,
    rounds: u32,
    /// Measured seconds of a run.
    seconds: f64,
    /// Who ran where, in a sentence for each number of cores.
    placements: Vec<String>,
    rows: Vec<Row>,
    memory: Vec<MemoryRow>,
    /// Of the cells with the usual documents; all rounds together.
    latencies: BTreeMap<(Cell, ServerKind), Histogram<u64>>,
}

/// The options, checked and complete.
#[derive(Debug)]
struct Settings {
    documents: u64,
    axes: Axes,
    seconds: Duration,
    memory_bytes: u64,
}

impl KvArgs {
    fn settings(&self, cpu_count: usize) -> Result<Settings, BenchError> {
        let misuse = |text: String| Err(BenchError::Misuse(text));
        let quick = self.quick;
        let cores_max = u16::try_from(cpu_count).unwrap_or(u16::MAX);
        let axes = Axes {
            cores: or_default(&self.cores, if cores_max < 2 { &[1] } else { &[1, 2] }),
            value_bytes: or_default(&self.values, if quick { &[100] } else { &[100, 1024] }),
            connections: self.connections.clone(),
            depths: or_default(&self.depths, if quick { &[1, 16] } else { &[1, 16, 64] }),
            mixes: self.mixes.clone(),
            keys: or_default(
                &self.keys,
                if quick { &[KeyChoice::Zipfian] } else { &[KeyChoice::Zipfian, KeyChoice::Uniform] },
            ),
        };
        if let Some(cores) = axes.cores.iter().find(|cores| **cores == 0 || **cores > cores_max) {
            return misuse(format!("--cores {cores}: servers have 1 to {cores_max} cores here"));
        }
        if let Some(bytes) = axes.value_bytes.iter().find(|bytes| !(1..=VALUE_BYTES_MAX).contains(*bytes)) {
            return misuse(format!("--values {bytes}: values have 1 to {VALUE_BYTES_MAX} bytes"));
        }
        if let Some(count) = axes.connections.iter().find(|count| !(1..=4096).contains(*count)) {
            return misuse(format!("--connections {count}: 1 to 4096"));
        }
        if let Some(depth) = axes.depths.iter().find(|depth| !(1..=256).contains(*depth)) {
            return misuse(format!("--depths {depth}: 1 to 256 requests are under way"));
        }
        let seconds = self.seconds.unwrap_or(if quick { 0.1 } else { 0.75 });
        let Some(duration) = Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|duration| *duration >= Duration::from_millis(10))
        else {
            return misuse(format!("--seconds {seconds}: at least 0.01"));
        };
        let ByteSize(memory_bytes) = self.memory.parse().map_err(BenchError::Misuse)?;
        let documents = self.documents.unwrap_or(if quick { 100_000 } else { 1_000_000 });
        let largest = axes.value_bytes.iter().max().copied().unwrap_or_default();
        let needed = documents.saturating_mul((KEY_BYTES + largest) as u64 + RECKONED_BYTES);
        if needed > memory_bytes / 5 * 2 {
            return misuse(format!(
                "{documents} documents with values of {largest} bytes need about {} MiB, more than two fifths of --memory {}",
                needed >> 20,
                self.memory
            ));
        }
        Ok(Settings { documents, axes, seconds: duration, memory_bytes })
    }

    fn node_args(&self, cores: u16) -> NodeArgs {
        NodeArgs { place: self.place.clone(), vbuckets: self.vbuckets, cores, memory: self.memory.clone() }
    }
}

pub(crate) fn run(args: &KvArgs) -> Result<(), BenchError> {
    let cpus = cpus::allowed()?;
    let settings = args.settings(cpus.len())?;
    let memcached = match args.skip_memcached {
        true => None,
        false => Some(Memcached::find(&args.memcached)?),
    };
    let scratch = Scratch::make(&args.place, "kv")?;
    let out = args.results.directory(&scratch, "kv");
    std::fs::create_dir_all(&out).map_err(BenchError::file("make", &out))?;
    let groups = settings.axes.groups(args.full);
    let mut bench = Bench {
        args,
        results: Results {
            machine: Machine::look(scratch.path()),
            memcached: memcached.as_ref().map(|memcached| memcached.version.clone()),
            bucket_type: args.bucket_type,
            vbuckets: args.vbuckets,
            documents: settings.documents,
            rounds: args.rounds,
            seconds: settings.seconds.as_secs_f64(),
            placements: Vec::new(),
            rows: Vec::new(),
            memory: Vec::new(),
            latencies: BTreeMap::new(),
        },
        settings,
        memcached,
        scratch,
        cpus,
    };
    bench.announce(&groups);
    for group in &groups {
        bench.group(group)?;
    }
    let Bench { mut results, .. } = bench;
    results.machine.finish();
    output::write(&results, args.results.json, &out)
}

/// The measurement under way.
struct Bench<'a> {
    args: &'a KvArgs,
    settings: Settings,
    memcached: Option<Memcached>,
    scratch: Scratch,
    cpus: Vec<usize>,
    results: Results,
}

impl Bench<'_> {
    fn announce(&self, groups: &[Group]) {
        let servers =
            |cell: &Cell| 1 + usize::from(self.memcached.is_some()) + usize::from(cell.mix == Mix::Noop);
        let cells = || groups.iter().flat_map(|group| &group.cells);
        let runs = cells().map(servers).sum::<usize>() * self.args.rounds as usize;
        let seconds = runs as f64 * self.settings.seconds.as_secs_f64() * 1.2;
        eprintln!("{} cells, {runs} runs, about {seconds:.0} s and the loading", cells().count());
    }

    /// CPUs of a server with so many cores, and those of the client.
    fn places(&self, cores: u16) -> (&[usize], &[usize]) {
        let (servers, rest) = self.cpus.split_at(usize::from(cores));
        (servers, if rest.is_empty() { &self.cpus } else { rest })
    }

    fn group(&mut self, group: &Group) -> Result<(), BenchError> {
        let Group { cores, value_bytes, cells } = group;
        let documents = Documents::new(self.settings.documents, *value_bytes, self.args.seed)?;
        let (server_cpus, client_cpus) = self.places(*cores);
        let (server_cpus, client_cpus) = (server_cpus.to_vec(), client_cpus.to_vec());
        let shared =
            if client_cpus.len() == self.cpus.len() { ", which it shares with the servers" } else { "" };
        let placement = format!(
            "Servers with {cores} cores: CPUs {server_cpus:?}; client: CPUs {client_cpus:?}{shared}."
        );
        if !self.results.placements.contains(&placement) {
            self.results.placements.push(placement);
        }
        let servers = self.start(group, &server_cpus)?;
        for server in servers.iter().filter(|server| server.kind() != ServerKind::Echo) {
            self.load(group, server, &documents, &client_cpus)?;
        }
        for (index, cell) in cells.iter().enumerate() {
            eprintln!("{} ({} of {} with these servers)", cell.name(), index + 1, cells.len());
            for round in 1..=self.args.rounds {
                for server in &servers {
                    if server.kind() != ServerKind::Echo || cell.mix == Mix::Noop {
                        self.one(round, *cell, server, &documents, &client_cpus)?;
                    }
                }
            }
        }
        servers.into_iter().try_for_each(Server::stop)
    }

    fn start(&self, group: &Group, cpus: &[usize]) -> Result<Vec<Server>, BenchError> {
        let Group { cores, value_bytes, cells } = group;
        let name = format!("node-{cores}-{value_bytes}");
        let options = self.scratch.node(&self.args.node_args(*cores), &name)?;
        let mut servers = vec![Server::ringbase(&options, self.args.bucket_type, cpus)?];
        if let Some(Memcached { program, .. }) = &self.memcached {
            let connections_max = self.settings.axes.connections.iter().max().copied().unwrap_or_default();
            servers.push(Server::memcached(
                program,
                self.settings.memory_bytes,
                connections_max,
                self.scratch.path(),
                cpus,
            )?);
        }
        if cells.iter().any(|cell| cell.mix == Mix::Noop) {
            servers.push(Server::echo(cpus)?);
        }
        Ok(servers)
    }

    /// Puts all documents into a server, and looks at its memory before, in the middle and afterwards.
    fn load(
        &mut self,
        group: &Group,
        server: &Server,
        documents: &Documents,
        client_cpus: &[usize],
    ) -> Result<(), BenchError> {
        // What a server does by itself after its start and after its load has its time.
        let settle = || std::thread::sleep(Duration::from_millis(if self.args.quick { 200 } else { 1000 }));
        settle();
        let (before_bytes, half) = (server.resident_bytes()?, MemoryRow::half(documents.count()));
        let mut seconds = self.load_some(server, documents, 0..half, client_cpus)?;
        server.wait_persisted(self.args.bucket_type)?;
        settle();
        let half_bytes = server.resident_bytes()?;
        seconds += self.load_some(server, documents, half..documents.count(), client_cpus)?;
        server.wait_persisted(self.args.bucket_type)?;
        settle();
        let row = MemoryRow {
            cores: group.cores,
            value_bytes: group.value_bytes,
            server: server.kind(),
            documents: documents.count(),
            before_bytes,
            half_bytes,
            after_bytes: server.resident_bytes()?,
        };
        eprintln!(
            "{}: {} documents of {} bytes loaded in {seconds:.1} s, {:.0} resident bytes each",
            server.kind().name(),
            documents.count(),
            group.value_bytes,
            row.item_bytes()
        );
        self.results.memory.push(row);
        Ok(())
    }

    /// Puts the documents with these indices into a server; returns the seconds that it took.
    fn load_some(
        &self,
        server: &Server,
        documents: &Documents,
        indices: Range<u64>,
        client_cpus: &[usize],
    ) -> Result<f64, BenchError> {
        let (expected, started) = (indices.end - indices.start, Instant::now());
        let tally = traffic::finish(&Run {
            target: server.target(),
            documents,
            operations: &Operations::load(indices),
            connections: LOAD_CONNECTIONS,
            depth: LOAD_DEPTH,
            cpus: client_cpus,
            seed: self.args.seed,
        })?;
        if tally.operations != expected {
            let text = format!("{} of {expected} documents were loaded", tally.operations);
            return Err(server.target().unsound(text));
        }
        Ok(started.elapsed().as_secs_f64())
    }

    fn one(
        &mut self,
        round: u32,
        cell: Cell,
        server: &Server,
        documents: &Documents,
        client_cpus: &[usize],
    ) -> Result<(), BenchError> {
        let operations = Operations::random(documents, cell.mix, cell.keys);
        let run = Run {
            target: server.target(),
            documents,
            operations: &operations,
            connections: cell.connections,
            depth: cell.depth,
            cpus: client_cpus,
            // The same draws for every server of a round.
            seed: self.args.seed.wrapping_add(u64::from(round) << 32),
        };
        let seconds = self.settings.seconds;
        let measured = traffic::measure(&run, seconds / 5, seconds, || server.cpu_seconds())?;
        let axes = &self.settings.axes;
        if Some(&cell.value_bytes) == axes.value_bytes.first() && Some(&cell.keys) == axes.keys.first() {
            let sum = self.results.latencies.entry((cell, server.kind())).or_insert_with(recorder::histogram);
            sum.add(&measured.tally.latency)
                .map_err(|error| BenchError::Unsound(format!("histograms do not add up: {error}")))?;
        }
        self.results.rows.push(Row::new(round, cell, server.kind(), &measured));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: KvArgs,
    }

    fn args(words: &str) -> KvArgs {
        Line::parse_from(std::iter::once("kv").chain(words.split_whitespace())).args
    }

    #[test]
    fn defaults_are_the_documented_matrix_and_fit_a_quarter_of_an_hour() {
        let settings = args("").settings(2).unwrap();
        let cells: Vec<Cell> =
            settings.axes.groups(false).into_iter().flat_map(|group| group.cells).collect();
        assert_eq!((settings.documents, cells.len()), (1_000_000, 120));
        let servers = |cell: &Cell| if cell.mix == Mix::Noop { 3.0 } else { 2.0 };
        let runs = cells.iter().map(servers).sum::<f64>() * 3.0;
        assert!(runs * settings.seconds.as_secs_f64() * 1.2 < 13.0 * 60.0);

        let quick = args("--quick").settings(2).unwrap();
        let cells: Vec<Cell> = quick.axes.groups(false).into_iter().flat_map(|group| group.cells).collect();
        assert_eq!((quick.documents, cells.len()), (100_000, 32));
        assert_eq!(args("").settings(1).unwrap().axes.cores, [1]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_before_anything_starts() {
        for (words, part) in [
            ("--cores 3", "1 to 2 cores"),
            ("--cores 0", "1 to 2 cores"),
            ("--values 0", "--values 0"),
            ("--values 1048576", "--values 1048576"),
            ("--connections 0", "--connections 0"),
            ("--depths 257", "--depths 257"),
            ("--seconds 0", "at least 0.01"),
            ("--seconds nan", "at least 0.01"),
            ("--memory much", "no size"),
            ("--documents 10000000", "two fifths"),
        ] {
            let error = args(words).settings(2).unwrap_err();
            assert!(matches!(&error, BenchError::Misuse(text) if text.contains(part)), "{words}: {error}");
        }
    }
}
