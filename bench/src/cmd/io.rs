//! `ringbench io`: the storage ring alone.
//!
//! Does not know: nodes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ringbase_storage::io::probe::{Pattern, ProbePlan, ProbeResult};
use ringbase_storage::metrics::IoClass;
use serde_json::json;

use crate::disk::ProbeFile;
use crate::error::BenchError;
use crate::machine::Machine;
use crate::report::table;
use crate::workload::{PlaceArgs, Scratch};

/// Depth that the ring must allow for the deepest probe.
const DEPTH_MAX: u32 = 128;

/// Options of `ringbench io`.
#[derive(Debug, Clone, Args)]
pub(crate) struct IoArgs {
    /// Scratch directory, on the disk to measure; made if it is missing [default: as for `scan`].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Mebibytes of the file.
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    file_mib: u64,
    /// Seconds of each probe.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &IoArgs) -> Result<(), BenchError> {
    let duration = Duration::try_from_secs_f64(args.seconds)
        .map_err(|error| BenchError::Misuse(format!("--seconds {}: {error}", args.seconds)))?;
    let place = PlaceArgs { dir: args.dir.clone(), ringbase: None, keep: false };
    let scratch = Scratch::make(&place, "io")?;
    eprintln!("writing a file of {} MiB", args.file_mib);
    let file = ProbeFile::make(&scratch.path().join("probe"), args.file_mib << 20, DEPTH_MAX)?;
    let mut plans = ProbePlan::usual(duration);
    let after_random = plans.iter().filter(|plan| plan.pattern == Pattern::Random).count();
    let deepest = ProbePlan {
        class: IoClass::Read,
        pattern: Pattern::Random,
        operation_bytes: 4096,
        depth: DEPTH_MAX,
        duration,
    };
    plans.insert(after_random, deepest);
    let mut results = Vec::new();
    for plan in &plans {
        eprintln!("{} of {} bytes, {} in flight", what(plan), plan.operation_bytes, plan.depth);
        results.push(file.run(plan)?);
    }
    let mut machine = Machine::look(scratch.path());
    machine.finish();
    if args.json {
        let results: Vec<_> = results
            .iter()
            .map(|result| {
                json!({
                    "plan": result.plan,
                    "operations": result.operations,
                    "seconds": result.elapsed.as_secs_f64(),
                    "operations_per_second": result.operations_per_second(),
                    "megabytes_per_second": result.megabytes_per_second(),
                    "p50_ns": result.latency_ns.value_at_quantile(0.5),
                    "p99_ns": result.latency_ns.value_at_quantile(0.99),
                    "max_ns": result.latency_ns.max(),
                })
            })
            .collect();
        println!("{}", json!({ "machine": machine, "ring": file.facts(), "probes": results }));
        return Ok(());
    }
    let rows: Vec<[String; 8]> = results.iter().map(row).collect();
    let columns = ["what", "bytes", "in flight", "per second", "MB/s", "p50 µs", "p99 µs", "max µs"];
    print!("{}", table(columns, &rows));
    Ok(())
}

fn what(plan: &ProbePlan) -> String {
    let pattern = match plan.pattern {
        Pattern::Random => "random",
        Pattern::Sequential => "sequential",
    };
    format!("{pattern} {}", plan.class.name())
}

fn row(result: &ProbeResult) -> [String; 8] {
    let micros = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
    [
        what(&result.plan),
        result.plan.operation_bytes.to_string(),
        result.plan.depth.to_string(),
        format!("{:.0}", result.operations_per_second()),
        format!("{:.1}", result.megabytes_per_second()),
        micros(result.latency_ns.value_at_quantile(0.5)),
        micros(result.latency_ns.value_at_quantile(0.99)),
        micros(result.latency_ns.max()),
    ]
}
