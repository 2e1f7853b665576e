//! `ringbench memory`: what an item takes in a node's memory beside its key and value.
//!
//! Loads items into a bucket that lives in memory only, and compares the resident memory of the process before and after, and the node's own
//! account of it. Then the bucket is emptied, loaded again and deleted: what of the memory goes back to the system.
//!
//! Another allocator is measured by putting it in front: `LD_PRELOAD=libjemalloc.so.2 ringbench memory`.
//!
//! Does not know: throughput.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Args;
use ringbase::client::{
    ConnectOptions, Connection, Generator, LoadOptions, LoadProgress, PipelineOptions, Source, SourceForm,
    load,
};
use serde_json::json;

use super::{VALUE_BYTES_MAX, restart, show_progress};
use crate::error::BenchError;
use crate::node::{Control, NodeProcess, number};
use crate::report::table;
use crate::workload::{NodeArgs, Scratch};

const BUCKET: &str = "memory";

/// Time in which memory comes to rest after a change, at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time between two looks at the memory; at rest they are alike.
const PAUSE: Duration = Duration::from_millis(500);

/// Pauses without a change after which memory is at rest.
const STILL: u32 = 4;

/// Time in which memory goes back to the system, at most.
const LET_GO: Duration = Duration::from_secs(20);

/// Connections that load.
const LOAD_CONNECTIONS: usize = 2;

/// Options of `ringbench memory`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MemoryArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Items to load [default: 10000000; 200000 with --quick].
    #[arg(long, value_name = "N")]
    items: Option<u64>,
    /// Bytes of every key.
    #[arg(long, value_name = "BYTES", default_value_t = 20)]
    key_bytes: usize,
    /// Bytes of the values; each in turn, with a node of its own.
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_values_t = [8, 88])]
    value_bytes: Vec<usize>,
    /// A small data set.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was found with one length of values.
#[derive(Debug, Clone, serde::Serialize)]
struct Found {
    items: u64,
    key_bytes: usize,
    value_bytes: usize,
    /// Resident bytes of the process with an empty bucket.
    empty_bytes: u64,
    /// The same with all items.
    loaded_bytes: u64,
    /// What the node books for them.
    accounted_bytes: u64,
    /// Of that, its sequence lists.
    list_bytes: u64,
    /// After the bucket was emptied.
    emptied_bytes: u64,
    /// After it was filled again and deleted.
    deleted_bytes: u64,
    /// Seconds until memory was at rest after emptying.
    emptying_seconds: f64,
}

impl Found {
    /// Bytes an item beside key and value, given what all of them take.
    fn overhead(&self, bytes: u64) -> f64 {
        bytes as f64 / self.items.max(1) as f64 - (self.key_bytes + self.value_bytes) as f64
    }

    fn resident_overhead(&self) -> f64 {
        self.overhead(self.loaded_bytes.saturating_sub(self.empty_bytes))
    }
}

pub(crate) fn run(args: &MemoryArgs) -> Result<(), BenchError> {
    let items = args.items.unwrap_or(if args.quick { 200_000 } else { 10_000_000 });
    let mut found = Vec::new();
    for &value_bytes in &args.value_bytes {
        let generator = Generator::new(items, args.key_bytes, value_bytes, 42).map_err(BenchError::Misuse)?;
        found.push(measure(args, &generator, value_bytes)?);
    }
    show(args, &found);
    Ok(())
}

fn measure(args: &MemoryArgs, generator: &Generator, value_bytes: usize) -> Result<Found, BenchError> {
    let scratch = Scratch::make(&args.node.place, "memory")?;
    let mut options = scratch.node(&args.node, "memory")?;
    options.memory = format!("{}MiB", memory_mib(generator.count(), args.key_bytes + value_bytes));
    // A node that has just formatted its files has memory to spare that it needed for that.
    let node = NodeProcess::start(&options)?;
    Connection::open(&node.connect_options())?.create_bucket(BUCKET, "bucket_type=ephemeral")?;
    node.stop()?;
    let node = restart(&options)?;
    let connect = ConnectOptions { bucket: Some(BUCKET.into()), ..node.connect_options() };
    let mut admin = Connection::open(&node.connect_options())?;
    let empty_bytes = at_rest(&node)?;
    fill(&connect, generator)?;
    let loaded_bytes = at_rest(&node)?;
    let stats = Control::open(&connect)?.stats("")?;
    if number(&stats, "curr_items")? != generator.count() {
        return Err(BenchError::Unsound(format!("{} items are there", number(&stats, "curr_items")?)));
    }
    let list_bytes = number(&stats, "seqlist_memory")?;
    let accounted_bytes = number(&stats, "mem_used")? + list_bytes;
    let started = Instant::now();
    admin.empty_bucket(BUCKET)?;
    let emptied_bytes = let_go(&node, loaded_bytes)?;
    let emptying_seconds = started.elapsed().as_secs_f64();
    fill(&connect, generator)?;
    admin.delete_bucket(BUCKET)?;
    let deleted_bytes = let_go(&node, loaded_bytes)?;
    drop(admin);
    node.stop()?;
    Ok(Found {
        items: generator.count(),
        key_bytes: args.key_bytes,
        value_bytes,
        empty_bytes,
        loaded_bytes,
        accounted_bytes,
        list_bytes,
        emptied_bytes,
        deleted_bytes,
        emptying_seconds,
    })
}

/// Memory of a node that keeps this many items in one bucket: two fifths of it are for versions in memory.
fn memory_mib(items: u64, item_bytes: usize) -> u64 {
    let versions = items * (item_bytes as u64 + 100);
    ((versions * 3) >> 20).max(4096)
}

fn fill(connect: &ConnectOptions, generator: &Generator) -> Result<(), BenchError> {
    let source = Source::open(&SourceForm::Generate(generator.clone()), VALUE_BYTES_MAX)
        .map_err(ringbase::client::LoadError::from)?;
    let options = LoadOptions {
        connect: connect.clone(),
        connections: LOAD_CONNECTIONS,
        pipeline: PipelineOptions::default(),
    };
    let (progress, done) = (LoadProgress::default(), AtomicBool::new(false));
    let report = std::thread::scope(|scope| {
        scope.spawn(|| show_progress(generator.count(), "items", &progress, &done));
        let report = load(source, &options, &progress);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        report
    })?;
    if report.documents == generator.count() {
        return Ok(());
    }
    let text = format!(
        "{} of {} items were loaded; give the node more --memory",
        report.documents,
        generator.count()
    );
    Err(BenchError::Unsound(text))
}

/// Resident bytes of the node once they have not changed for [`STILL`] pauses.
fn at_rest(node: &NodeProcess) -> Result<u64, BenchError> {
    let started = Instant::now();
    let mut last = node.resident_bytes()?;
    let mut still = 0;
    loop {
        std::thread::sleep(PAUSE);
        let now = node.resident_bytes()?;
        still = if now.abs_diff(last) < 1 << 20 { still + 1 } else { 0 };
        if still == STILL || started.elapsed() > PATIENCE {
            return Ok(now);
        }
        last = now;
    }
}

/// Resident bytes of the node when it has let go of most of `before`, or does not within some seconds.
fn let_go(node: &NodeProcess, before: u64) -> Result<u64, BenchError> {
    let started = Instant::now();
    while node.resident_bytes()? > before / 2 && started.elapsed() < LET_GO {
        std::thread::sleep(PAUSE);
    }
    at_rest(node)
}

fn show(args: &MemoryArgs, found: &[Found]) {
    if args.json {
        let list: Vec<_> = found
            .iter()
            .map(|found| {
                json!({
                    "found": found,
                    "resident_overhead_bytes": found.resident_overhead(),
                    "accounted_overhead_bytes": found.overhead(found.accounted_bytes),
                })
            })
            .collect();
        println!("{}", json!(list));
        return;
    }
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let rows: Vec<[String; 9]> = found
        .iter()
        .map(|found| {
            [
                found.items.to_string(),
                format!("{} + {}", found.key_bytes, found.value_bytes),
                format!("{:.1}", found.resident_overhead()),
                format!("{:.1}", found.overhead(found.accounted_bytes)),
                mib(found.empty_bytes),
                mib(found.loaded_bytes),
                mib(found.emptied_bytes),
                mib(found.deleted_bytes),
                format!("{:.1}", found.emptying_seconds),
            ]
        })
        .collect();
    let columns = [
        "items",
        "key + value B",
        "resident B an item more",
        "accounted B an item more",
        "RSS empty MiB",
        "loaded MiB",
        "emptied MiB",
        "deleted MiB",
        "emptying s",
    ];
    print!("{}", table(columns, &rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_what_is_left_beside_key_and_value() {
        let found = Found {
            items: 1000,
            key_bytes: 20,
            value_bytes: 88,
            empty_bytes: 5_000_000,
            loaded_bytes: 5_160_000,
            accounted_bytes: 158_000,
            list_bytes: 8_000,
            emptied_bytes: 0,
            deleted_bytes: 0,
            emptying_seconds: 0.0,
        };
        assert!((found.resident_overhead() - 52.0).abs() < 1e-9);
        assert!((found.overhead(found.accounted_bytes) - 50.0).abs() < 1e-9);
    }
}
