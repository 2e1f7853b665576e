//! `ringbench scan-memory`: what scans cost in memory while they stand still half-way.
//!
//! Twice: with clients that have stopped reading in the middle of an unlimited continue, and with scans between two continues. Resident
//! memory without the block cache is compared with that of the same node at rest, after a scan has filled the cache: what the cache needs
//! beyond the blocks it counts (allocation, its table) is there in both. The node before its first scan is shown, too.
//!
//! Invariants
//! - All scans exist at the moment of the measurement, which the node confirms; afterwards they go on to their end and find every key.
//!
//! Does not know: throughput.

use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use ringbase::client::{Connection, ContinueLimits, Scan, ScanState};
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase_storage::types::VbId;
use serde_json::json;

use super::{fill, restart, scan};
use crate::error::BenchError;
use crate::node::{Control, NodeProcess};
use crate::report::table;
use crate::workload::{KeyArgs, NodeArgs, Scratch};

/// What standing scans may hold above an idle node.
const ALLOWED_BYTES: i64 = 16 << 20;

/// Time in which sockets fill up and memory comes to rest.
const SETTLE: Duration = Duration::from_secs(2);

/// Options of `ringbench scan-memory`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ScanMemoryArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    keys: KeyArgs,
    /// A small data set.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Memory of a node at one moment.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Memory {
    resident_bytes: u64,
    block_cache_bytes: u64,
    scans: u64,
}

impl Memory {
    fn look(node: &NodeProcess, control: &mut Control) -> Result<Memory, BenchError> {
        let scans = control.stats("range-scans")?;
        Ok(Memory {
            block_cache_bytes: control.cache()?.bytes,
            scans: scans.keys().filter(|name| name.ends_with(":state")).count() as u64,
            resident_bytes: node.resident_bytes()?,
        })
    }

    fn without_cache(self) -> i64 {
        self.resident_bytes as i64 - self.block_cache_bytes as i64
    }
}

/// The moments of one kind of standing still.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Found {
    what: &'static str,
    /// Before the first scan.
    started: Memory,
    /// At rest, the block cache filled.
    idle: Memory,
    /// Every scan in its middle.
    halfway: Memory,
    /// All scans ended.
    after: Memory,
}

impl Found {
    /// What the scans hold.
    fn above_idle_bytes(&self) -> i64 {
        self.halfway.without_cache() - self.idle.without_cache()
    }
}

/// A gate that is closed until it is opened, for good.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while !*open {
            open = self.changed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

pub(crate) fn run(args: &ScanMemoryArgs) -> Result<(), BenchError> {
    let scratch = Scratch::make(&args.node.place, "scan-memory")?;
    let (options, generator) = (scratch.node(&args.node, "keys")?, args.keys.generator(args.quick)?);
    fill(&options, &generator, "keys")?;
    let half = generator.count() / u64::from(args.node.vbuckets) / 2;
    let mut found = Vec::new();
    for (name, limits) in [
        ("clients that do not read", ContinueLimits::default()),
        ("between two continues", ContinueLimits { items: half as u32, ..ContinueLimits::default() }),
    ] {
        let node = restart(&options)?;
        eprintln!("{} scans, {name} (node ready in {} ms)", args.node.vbuckets, node.started_in_ms());
        let mut control = node.connect()?;
        std::thread::sleep(SETTLE);
        let started = Memory::look(&node, &mut control)?;
        scan(&node, args.node.vbuckets, true, 2, generator.count())?;
        std::thread::sleep(SETTLE);
        let idle = Memory::look(&node, &mut control)?;
        let (halfway, keys) = stand_still(&node, &mut control, args.node.vbuckets, half, limits)?;
        let after = Memory::look(&node, &mut control)?;
        drop(control);
        node.stop()?;
        if keys != generator.count() || halfway.scans != u64::from(args.node.vbuckets) {
            let text = format!("{} scans stood still, and found {keys} keys in the end", halfway.scans);
            return Err(BenchError::Unsound(text));
        }
        found.push(Found { what: name, started, idle, halfway, after });
    }
    show(args, &found);
    let worst = found.iter().map(Found::above_idle_bytes);
    match worst.max() {
        Some(bytes) if bytes > ALLOWED_BYTES => Err(BenchError::Unsound(format!(
            "scans that stand still hold {:.1} MiB besides the block cache, more than 16 MiB",
            bytes as f64 / f64::from(1 << 20)
        ))),
        _ => Ok(()),
    }
}

/// Scans every vbucket up to its middle, looks at the memory, and scans the rest; returns the keys that were found.
fn stand_still(
    node: &NodeProcess,
    control: &mut Control,
    vbuckets: u16,
    half: u64,
    limits: ContinueLimits,
) -> Result<(Memory, u64), BenchError> {
    let gate = Arc::new(Gate::default());
    let (arrived, arrivals) = mpsc::channel();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..vbuckets)
            .map(|vbucket| {
                let (gate, arrived, connect) = (gate.clone(), arrived.clone(), node.connect_options());
                scope.spawn(move || -> Result<u64, BenchError> {
                    let mut connection = Connection::open(&connect)?;
                    let create = RangeScanCreate { key_only: true, ..RangeScanCreate::default() };
                    let Some(mut scan) = Scan::create(&mut connection, VbId(vbucket), &create)? else {
                        return Ok(0);
                    };
                    let mut keys = 0;
                    // A failed send means that the measurement was given up; the error is on its way.
                    let stop = || {
                        let _ = arrived.send(());
                        gate.pass();
                    };
                    let mut state = scan.advance(&mut connection, limits, &mut |_| {
                        keys += 1;
                        if keys == half && limits.items == 0 {
                            stop();
                        }
                        Ok(())
                    })?;
                    if limits.items > 0 {
                        stop();
                    }
                    while state == ScanState::More {
                        state = scan.advance(&mut connection, ContinueLimits::default(), &mut |_| {
                            keys += 1;
                            Ok(())
                        })?;
                    }
                    Ok(keys)
                })
            })
            .collect();
        drop(arrived);
        // Ends early when a thread has failed; its error follows.
        let standing = arrivals.iter().take(usize::from(vbuckets)).count();
        std::thread::sleep(SETTLE);
        let halfway = Memory::look(node, control);
        gate.open();
        let mut keys = 0;
        for thread in threads {
            keys += thread.join().expect("a scanning thread does not panic")?;
        }
        if standing < usize::from(vbuckets) {
            return Err(BenchError::Unsound(format!("only {standing} scans came to their middle")));
        }
        Ok((halfway?, keys))
    })
}

fn show(args: &ScanMemoryArgs, found: &[Found]) {
    if args.json {
        let list: Vec<_> = found
            .iter()
            .map(|found| json!({ "above_idle_bytes": found.above_idle_bytes(), "moments": found }))
            .collect();
        println!("{}", json!(list));
        return;
    }
    let mib = |bytes: i64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let row = |what: &str, moment: &str, memory: &Memory, idle: &Memory| {
        [
            format!("{what}, {moment}"),
            memory.scans.to_string(),
            mib(memory.resident_bytes as i64),
            mib(memory.block_cache_bytes as i64),
            mib(memory.without_cache()),
            mib(memory.without_cache() - idle.without_cache()),
        ]
    };
    let rows: Vec<[String; 6]> = found
        .iter()
        .flat_map(|Found { what, started, idle, halfway, after }| {
            [("before the first scan", started), ("idle", idle), ("half-way", halfway), ("after", after)]
                .map(|(moment, memory)| row(what, moment, memory, idle))
        })
        .collect();
    let columns = ["moment", "scans", "RSS MiB", "block cache MiB", "without cache MiB", "above idle MiB"];
    print!("{}", table(columns, &rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_holds_until_it_is_opened_and_never_again() {
        let gate = Arc::new(Gate::default());
        let (sender, receiver) = mpsc::channel();
        let (waiting, held) = (gate.clone(), sender.clone());
        let thread = std::thread::spawn(move || {
            waiting.pass();
            let _ = held.send(());
        });
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err());
        gate.open();
        receiver.recv().unwrap();
        gate.pass();
        thread.join().unwrap();
    }

    #[test]
    fn the_block_cache_is_not_counted_as_memory_of_scans() {
        let memory = Memory { resident_bytes: 500, block_cache_bytes: 450, scans: 0 };
        assert_eq!(memory.without_cache(), 50);
    }
}
