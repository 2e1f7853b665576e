//! The files and the table of `ringbench scan`.
//!
//! Does not know: how it was measured.

use std::fmt::Write as _;
use std::path::Path;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{Results, ScanArgs};
use crate::error::BenchError;
use crate::plot::{Line, Plot};
use crate::report::{Kind, Summary, put, put_hgrm, quantiles, raw_csv, summarize, summary_table, table};
use crate::workload::BufferSize;

/// Nanoseconds of a microsecond.
const MICROSECOND: f64 = 1e3;

/// Writes the files into `out` and the table or JSON to standard output.
pub(super) fn write(results: &Results, args: &ScanArgs, out: &Path) -> Result<(), BenchError> {
    let summaries = summarize(&results.rows);
    let text = summary(results, &summaries);
    put(&out.join("raw.csv"), raw_csv(&results.rows).as_bytes())?;
    put(&out.join("summary.md"), text.as_bytes())?;
    for (name, histogram) in histograms(results) {
        put_hgrm(&out.join(format!("{name}.hgrm")), histogram, MICROSECOND)?;
    }
    plots(results, args, &summaries, out)?;
    if args.results.json {
        println!("{}", as_json(results, &summaries));
    } else {
        print!("{text}");
    }
    eprintln!("raw.csv, summary.md, histograms and plots are in {}", out.display());
    Ok(())
}

/// Every histogram with the name of its file; values are microseconds there.
fn histograms(results: &Results) -> Vec<(String, &Histogram<u64>)> {
    let mut named = Vec::new();
    for times in &results.times {
        named.push((format!("buffer-fill-{}-us", times.buffer), &times.fill));
        named.push((format!("buffer-full-to-sent-{}-us", times.buffer), &times.sent));
    }
    let latencies = &results.latencies;
    for (name, histogram) in [
        ("noop-idle", &latencies.idle.noop),
        ("noop-scanning", &latencies.busy.noop),
        ("get-idle", &latencies.idle.get),
        ("get-scanning", &latencies.busy.get),
    ] {
        named.push((format!("latency-{name}-us"), histogram));
    }
    named
}

fn summary(results: &Results, summaries: &[Summary]) -> String {
    let machine = &results.machine;
    let keys = &results.key_generator;
    let mut text = format!(
        "{}, {}; {}.\n\n\
         {} keys of {} bytes ({:.0} MB) in {} runs",
        machine.ran(),
        machine.file_system,
        machine.load(),
        keys.count(),
        keys.key_bytes(),
        keys.count() as f64 * keys.key_bytes() as f64 / 1e6,
        results.key_runs
    );
    if let Some(documents) = &results.document_generator {
        write!(text, "; {} documents with {} bytes", documents.count(), documents.value_bytes())
            .expect("a string takes everything");
    }
    write!(
        text,
        ". Medians of {} rounds, in each of which every size had its turn; MB are 10⁶ bytes of records on the wire. The ceiling of \
         warm scans is a plain blocking writer of ready frames with the same client and the same number of connections, \
         that of cold scans the sequential reads of the device.\n\n{}\n",
        results.rounds,
        summary_table(summaries)
    )
    .expect("a string takes everything");
    write!(text, "Buffers of warm key-only scans, microseconds:\n\n{}\n", times_table(results))
        .expect("a string takes everything");
    write!(
        text,
        "Small requests, one each millisecond from the moment it was due, microseconds; {} key-only scans ended meanwhile:\n\n{}",
        results.latencies.runs,
        latency_table(results)
    )
    .expect("a string takes everything");
    text
}

fn micros(histogram: &Histogram<u64>, quantile: f64) -> String {
    format!("{:.1}", histogram.value_at_quantile(quantile) as f64 / MICROSECOND)
}

fn times_table(results: &Results) -> String {
    let rows: Vec<[String; 6]> = results
        .times
        .iter()
        .map(|times| {
            [
                times.buffer.to_string(),
                times.fill.len().to_string(),
                micros(&times.fill, 0.5),
                micros(&times.fill, 0.99),
                micros(&times.sent, 0.5),
                micros(&times.sent, 0.99),
            ]
        })
        .collect();
    table(["buffer", "buffers", "fill p50", "fill p99", "full→sent p50", "full→sent p99"], &rows)
}

fn latency_table(results: &Results) -> String {
    let latencies = &results.latencies;
    let rows = [
        ("NOOP, idle", &latencies.idle.noop),
        ("NOOP, scanning", &latencies.busy.noop),
        ("GET, idle", &latencies.idle.get),
        ("GET, scanning", &latencies.busy.get),
    ]
    .map(|(name, histogram)| {
        let max = format!("{:.1}", histogram.max() as f64 / MICROSECOND);
        [name.to_owned(), histogram.len().to_string(), micros(histogram, 0.5), micros(histogram, 0.99), max]
    });
    table(["request", "requests", "p50", "p99", "max"], &rows)
}

fn plots(results: &Results, args: &ScanArgs, summaries: &[Summary], out: &Path) -> Result<(), BenchError> {
    let positions: Vec<String> = args.buffers.iter().map(BufferSize::to_string).collect();
    let mut lines: Vec<Line> = Vec::new();
    for summary in summaries.iter().filter(|summary| summary.kind != Kind::Device) {
        let name = format!("{}, {} conn.", summary.kind.name(), summary.connections);
        let Some(at) = positions.iter().position(|buffer| *buffer == summary.buffer) else { continue };
        let point = (at, summary.megabytes_per_second);
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name, points: vec![point] }),
        }
    }
    let throughput = Plot {
        title: "Range scan throughput against buffer size",
        axis: "buffer size",
        unit: "MB/s of records",
        logarithmic: false,
        positions: &positions,
        lines: &lines,
    };
    throughput.draw(&out.join("throughput.svg"))?;

    let line = |name: &str, value: &dyn Fn(&super::BufferTimes) -> f64| Line {
        name: name.to_owned(),
        points: results
            .times
            .iter()
            .filter_map(|times| {
                let at = args.buffers.iter().position(|buffer| *buffer == times.buffer)?;
                // A logarithmic axis has no zero.
                Some((at, (value(times) / MICROSECOND).max(0.1)))
            })
            .collect(),
    };
    let at = |histogram: &Histogram<u64>, quantile: f64| histogram.value_at_quantile(quantile) as f64;
    let lines = [
        line("cycle: fill + full→sent, mean", &|times| times.fill.mean() + times.sent.mean()),
        line("fill p50", &|times| at(&times.fill, 0.5)),
        line("fill p99", &|times| at(&times.fill, 0.99)),
        line("full→sent p50", &|times| at(&times.sent, 0.5)),
        line("full→sent p99", &|times| at(&times.sent, 0.99)),
    ];
    let cycle = Plot {
        title: "Buffer cycle of warm key-only scans against buffer size",
        axis: "buffer size",
        unit: "microseconds",
        logarithmic: true,
        positions: &positions,
        lines: &lines,
    };
    cycle.draw(&out.join("buffer-cycle.svg"))
}

fn as_json(results: &Results, summaries: &[Summary]) -> Value {
    let times: Vec<Value> = results
        .times
        .iter()
        .map(|times| {
            json!({
                "buffer": times.buffer.to_string(),
                "fill": quantiles(&times.fill),
                "full_to_sent": quantiles(&times.sent),
            })
        })
        .collect();
    json!({
        "machine": results.machine,
        "rounds": results.rounds,
        "keys": results.key_generator.count(),
        "key_bytes": results.key_generator.key_bytes(),
        "key_runs": results.key_runs,
        "summary": summaries,
        "buffers": times,
        "latency": {
            "noop_idle": quantiles(&results.latencies.idle.noop),
            "noop_scanning": quantiles(&results.latencies.busy.noop),
            "get_idle": quantiles(&results.latencies.idle.get),
            "get_scanning": quantiles(&results.latencies.busy.get),
        },
    })
}
