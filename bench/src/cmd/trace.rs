//! `ringbench trace`: what an instrumented site costs (T1.10).
//!
//! The site is a span with two numbers as arguments that is entered and left, or an event with them, in a loop, behind a subscriber like
//! that of a node: its log at `info`, the recorder before it. An empty loop is subtracted. Time is the thread's own CPU time, so that others who
//! use the machine disturb through its caches only.
//!
//! Does not know: nodes.

use std::hint::black_box;

use clap::Args;
use ringbase::telemetry::trace::{TraceControl, TraceSubscriber};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::error::BenchError;
use crate::report::table;

/// Category of the measured sites.
const CATEGORY: &str = "ringbench::trace";

/// Options of `ringbench trace`.
#[derive(Debug, Clone, Args)]
pub(crate) struct TraceArgs {
    /// Sites passed in each repeat.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    sites: u64,
    /// Repeats; the median is shown, with the least and the greatest.
    #[arg(long, value_name = "COUNT", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Nanoseconds a site, over the repeats.
struct Cost {
    name: String,
    limit: f64,
    median: f64,
    least: f64,
    greatest: f64,
}

fn empty(sites: u64) {
    for number in 0..sites {
        black_box(number);
    }
}

fn spans(sites: u64) {
    for number in 0..sites {
        tracing::trace_span!(target: CATEGORY, "site", vb = 7_u64, seqno = black_box(number)).in_scope(|| ());
    }
}

fn events(sites: u64) {
    for number in 0..sites {
        tracing::trace!(target: CATEGORY, vb = 7_u64, seqno = black_box(number), "site");
    }
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Nanoseconds of one site.
fn time(site: fn(u64), sites: u64) -> f64 {
    let started_ns = cpu_ns();
    site(sites);
    (cpu_ns() - started_ns) as f64 / sites as f64
}

fn measure(args: &TraceArgs, name: String, limit: f64, site: fn(u64)) -> Cost {
    time(site, args.sites.min(100_000));
    let once = || (time(site, args.sites) - time(empty, args.sites)).max(0.0);
    let mut found: Vec<f64> = (0..args.repeats).map(|_| once()).collect();
    found.sort_by(f64::total_cmp);
    let (least, greatest) = (found[0], found[found.len() - 1]);
    Cost { name, limit, median: found[found.len() / 2], least, greatest }
}

pub(crate) fn run(args: &TraceArgs) -> Result<(), BenchError> {
    let control = TraceControl::default();
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("info"))
        .with_writer(std::io::stderr)
        .finish();
    tracing::subscriber::set_global_default(TraceSubscriber::new(&control, log))
        .map_err(|error| BenchError::Unsound(error.to_string()))?;
    let sites: [(&str, fn(u64)); 2] = [("span", spans), ("event", events)];
    let mut costs = Vec::new();
    for (state, config, limit) in [
        ("off", None, 2.0),
        ("category off", Some("enabled-categories:other"), 2.0),
        ("recorded", Some("enabled-categories:ringbench::*"), 250.0),
    ] {
        if let Some(config) = config {
            let parsed = config.parse().map_err(|error| BenchError::Unsound(format!("{config}: {error}")))?;
            control.set_config(parsed);
            control.start();
        }
        for (name, site) in sites {
            costs.push(measure(args, format!("{name}, {state}"), limit, site));
        }
    }
    let status = control.status();
    let recorded: u64 = status.threads.iter().map(|thread| thread.events).sum();
    if recorded < args.sites || status.lost_without_ring > 0 {
        return Err(BenchError::Unsound(format!("{recorded} events were recorded: {status:?}")));
    }
    show(args, &costs);
    Ok(())
}

fn show(args: &TraceArgs, costs: &[Cost]) {
    if args.json {
        let sites: Vec<_> = costs
            .iter()
            .map(|cost| {
                json!({"site": cost.name, "median_ns": cost.median, "least_ns": cost.least,
                    "greatest_ns": cost.greatest, "limit_ns": cost.limit, "within": cost.median <= cost.limit})
            })
            .collect();
        println!("{}", json!({"sites_per_repeat": args.sites, "repeats": args.repeats, "sites": sites}));
        return;
    }
    let number = |nanos: f64| format!("{nanos:.2}");
    let rows: Vec<[String; 5]> = costs
        .iter()
        .map(|cost| {
            let numbers = [cost.median, cost.least, cost.greatest, cost.limit].map(number);
            let [median, least, greatest, limit] = numbers;
            [cost.name.clone(), median, least, greatest, limit]
        })
        .collect();
    print!("{}", table(["site", "median ns", "least", "greatest", "limit"], &rows));
}
