//! The files and tables of `ringbench churn`.
//!
//! Does not know: how it was measured.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::look::Look;
use super::{Found, Results};
use crate::error::BenchError;
use crate::plot::{Line, Plot};
use crate::report::{put, put_hgrm, quantiles, table};

/// Positions of a plot for as many writes as there are documents.
const STEPS: u64 = 10;

/// Writes raw.csv, summary.md, histograms and plots into `out`.
pub(super) fn write(results: &Results, out: &Path) -> Result<(), BenchError> {
    fs::create_dir_all(out).map_err(BenchError::file("make", out))?;
    put(&out.join("raw.csv"), raw_csv(results).as_bytes())?;
    put(&out.join("summary.md"), summary(results).as_bytes())?;
    for found in &results.found {
        put_hgrm(&out.join(format!("set-{}-us.hgrm", name(found))), &found.latency, 1000.0)?;
    }
    plot(results, "Space", "bytes in use for a byte of documents", &out.join("space.svg"), space)?;
    plot(results, "Throughput", "thousand writes a second", &out.join("throughput.svg"), throughput)
}

/// To standard output, for people or machines.
pub(super) fn show(results: &Results, as_json: bool, out: &Path) {
    if as_json {
        println!("{}", as_value(results));
    } else {
        print!("{}", summary(results));
    }
    eprintln!("raw.csv, summary.md, histograms and plots are in {}", out.display());
}

fn name(found: &Found) -> String {
    let held = if found.released.is_some() { "-held" } else { "" };
    format!("{}{held}", found.keys.name())
}

fn raw_csv(results: &Results) -> String {
    let mut csv = String::from(
        "keys,held,moment,seconds,stored,data_bytes,used_bytes,written_bytes,key_runs,segments,resident_bytes\n",
    );
    for found in &results.found {
        let mut row = |moment: &str, look: &Look| {
            let Look { seconds, stored, data_bytes, used_bytes, written_bytes, .. } = look;
            let Look { key_runs, segments, resident_bytes, .. } = look;
            writeln!(
                csv,
                "{},{},{moment},{seconds:.3},{stored},{data_bytes},{used_bytes},{written_bytes},{key_runs},{segments},{resident_bytes}",
                found.keys.name(),
                found.held.name()
            )
            .expect("a string takes everything");
        };
        found.looks.iter().for_each(|look| row("writing", look));
        row("at rest", &found.rest);
        found.released.iter().for_each(|look| row("released", look));
    }
    csv
}

const COLUMNS: [&str; 15] = [
    "overwrites",
    "held scans",
    "writes/s",
    "MB/s",
    "server us/write",
    "client us/write",
    "p50 us",
    "p99 us",
    "longest ms",
    "refused",
    "file",
    "space most",
    "space at rest",
    "space released",
    "write amplification",
];

fn row(found: &Found) -> [String; 15] {
    let micros = |quantile: f64| format!("{:.0}", found.latency.value_at_quantile(quantile) as f64 / 1e3);
    let of_write = |seconds: f64| format!("{:.1}", seconds * 1e6 / found.writes as f64);
    let space = |look: &Look| format!("{:.2}", found.space(look));
    [
        found.keys.name().to_owned(),
        found.held.name().to_owned(),
        format!("{:.0}", found.writes as f64 / found.seconds),
        format!("{:.1}", found.written_bytes as f64 / 1e6 / found.seconds),
        of_write(found.server_cpu_seconds),
        of_write(found.client_cpu_seconds),
        micros(0.5),
        micros(0.99),
        format!("{:.1}", found.latency.max() as f64 / 1e6),
        found.refused.to_string(),
        format!("{:.2}", found.rest.data_bytes as f64 / found.live_bytes as f64),
        format!("{:.2}", found.space_most()),
        space(&found.rest),
        found.released.as_ref().map_or_else(String::new, space),
        format!("{:.2}", found.write_amplification()),
    ]
}

fn summary(results: &Results) -> String {
    let Results { machine, documents, value_bytes, cores, found } = results;
    let rows: Vec<_> = found.iter().map(row).collect();
    let most = |of: fn(&Look) -> u64| found.iter().flat_map(|found| &found.looks).map(of).max().unwrap_or(0);
    format!(
        "{}, {}; {}.\n\n{documents} documents with values of {value_bytes} bytes, a node of {cores} cores. File is the length of \
         the data files for a byte of keys and values, space what of it is in use; write amplification what the node writes for one that is overwritten, its log included, until it is \
         at rest. The longest write is from the moment its place in the pipeline was free.\n\n{}\nAt most {} key runs and {} segments, {} MiB \
         resident.\n",
        machine.ran(),
        machine.file_system,
        machine.load(),
        table(COLUMNS, &rows),
        most(|look| look.key_runs),
        most(|look| look.segments),
        most(|look| look.resident_bytes) >> 20
    )
}

fn as_value(results: &Results) -> Value {
    let cells: Vec<Value> = results
        .found
        .iter()
        .map(|found| {
            json!({
                "keys": found.keys,
                "held": found.held,
                "writes": found.writes,
                "seconds": found.seconds,
                "server_cpu_seconds": found.server_cpu_seconds,
                "client_cpu_seconds": found.client_cpu_seconds,
                "latency": quantiles(&found.latency),
                "refused": found.refused,
                "live_bytes": found.live_bytes,
                "file_bytes": found.rest.data_bytes,
                "space_most": found.space_most(),
                "space_at_rest": found.space(&found.rest),
                "space_released": found.released.as_ref().map(|look| found.space(look)),
                "write_amplification": found.write_amplification(),
                "looks": found.looks,
            })
        })
        .collect();
    json!({
        "machine": results.machine,
        "documents": results.documents,
        "value_bytes": results.value_bytes,
        "cores": results.cores,
        "cells": cells,
    })
}

type Points = Vec<(usize, f64)>;

/// How far the overwriting was, in positions of a plot.
fn position(found: &Found, look: &Look, documents: u64) -> usize {
    let before = found.looks.first().map_or(0, |first| first.stored);
    (look.stored.saturating_sub(before) * STEPS / documents.max(1)) as usize
}

fn space(found: &Found, documents: u64) -> Points {
    found.looks.iter().map(|look| (position(found, look, documents), found.space(look))).collect()
}

fn throughput(found: &Found, documents: u64) -> Points {
    let pairs = found.looks.windows(2).filter(|pair| pair[1].seconds > pair[0].seconds);
    let rate = |pair: &[Look]| {
        (pair[1].stored.saturating_sub(pair[0].stored)) as f64 / (pair[1].seconds - pair[0].seconds) / 1000.0
    };
    pairs.map(|pair| (position(found, &pair[1], documents), rate(pair))).collect()
}

fn plot(
    results: &Results,
    title: &str,
    unit: &str,
    path: &Path,
    points: fn(&Found, u64) -> Points,
) -> Result<(), BenchError> {
    let lines: Vec<Line> = results
        .found
        .iter()
        .map(|found| Line { name: name(found), points: points(found, results.documents) })
        .collect();
    let last = lines.iter().flat_map(|line| &line.points).map(|(at, _)| *at).max().unwrap_or(0);
    let positions: Vec<String> = (0..=last as u64)
        .map(|at| if at % STEPS == 0 { (at / STEPS).to_string() } else { String::new() })
        .collect();
    let axis = "overwrites of each document, mean";
    Plot { title, axis, unit, logarithmic: false, positions: &positions, lines: &lines }.draw(path)
}

#[cfg(test)]
mod tests {
    use super::super::Held;
    use super::*;
    use crate::recorder;
    use crate::traffic::KeyChoice;

    #[test]
    fn amplifications_are_ratios_to_documents_and_to_overwrites() {
        let look = |stored: u64, used_bytes: u64, written_bytes: u64| Look {
            seconds: stored as f64 / 1000.0,
            stored,
            data_bytes: 3_000_000,
            used_bytes,
            written_bytes,
            ..Look::default()
        };
        let found = Found {
            keys: KeyChoice::Uniform,
            held: Held::Yes,
            writes: 2000,
            live_bytes: 1_000_000,
            written_bytes: 2_000_000,
            seconds: 2.0,
            server_cpu_seconds: 0.1,
            client_cpu_seconds: 0.1,
            latency: recorder::histogram(),
            refused: 3,
            looks: vec![look(1000, 1_100_000, 5_000_000), look(3000, 2_500_000, 11_000_000)],
            rest: look(3000, 1_500_000, 13_000_000),
            released: Some(look(3000, 1_200_000, 13_000_000)),
        };
        assert_eq!((found.space_most(), found.write_amplification()), (2.5, 4.0));
        let cells = row(&found);
        assert_eq!(cells[2..4], ["1000".to_owned(), "1.0".to_owned()]);
        assert_eq!(cells[10..], ["3.00", "2.50", "1.50", "1.20", "4.00"].map(str::to_owned));
        assert_eq!(space(&found, 1000), [(0, 1.1), (20, 2.5)]);
        assert_eq!(throughput(&found, 1000), [(20, 1.0)]);
    }
}
