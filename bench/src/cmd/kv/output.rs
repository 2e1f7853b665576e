//! The files and the tables of `ringbench kv`.
//!
//! Does not know: how it was measured.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::Results;
use super::cell::Cell;
use super::results::{Comparison, MemoryRow, Ratio, Row, Summary, compare, memory_csv, raw_csv, summarize};
use super::servers::ServerKind;
use crate::error::BenchError;
use crate::plot::{Line, Plot};
use crate::report::{put, put_hgrm, table};
use crate::traffic::Mix;

/// Nanoseconds of a microsecond.
const MICROSECOND: f64 = 1e3;

/// Writes the files into `out` and the tables or JSON to standard output.
pub(super) fn write(results: &Results, json: bool, out: &Path) -> Result<(), BenchError> {
    let summaries = summarize(&results.rows);
    let text = summary(results, &summaries);
    put(&out.join("raw.csv"), raw_csv(&results.rows).as_bytes())?;
    put(&out.join("memory.csv"), memory_csv(&results.memory).as_bytes())?;
    put(&out.join("summary.md"), text.as_bytes())?;
    for ((cell, server), latency) in &results.latencies {
        let file = format!("latency-{}-{}-us.hgrm", cell.name(), server.name());
        put_hgrm(&out.join(file), latency, MICROSECOND)?;
    }
    plots(&summaries, out)?;
    if json {
        println!("{}", as_json(results, &summaries));
    } else {
        print!("{text}");
    }
    eprintln!("raw.csv, memory.csv, summary.md, histograms and plots are in {}", out.display());
    Ok(())
}

/// `summary.md`.
pub(super) fn summary(results: &Results, summaries: &[Summary]) -> String {
    let mut text = format!("{}; {}.\n\n", results.machine.ran(), results.machine.load());
    let peer = results.memcached.as_deref().unwrap_or("left out");
    let documents = results.documents;
    writeln!(
        text,
        "{documents} documents with keys of 20 bytes; a bucket of the type {:?} with {} vbuckets; {peer}. Medians of {} rounds of \
         {:.2} s each, in which the servers took turns in every cell. Ratios are ringbase / memcached of the same round: \
         median, and lowest–highest. A latency counts from the moment at which the answer that freed a place in the pipeline had \
         been read.\n",
        results.bucket_type, results.vbuckets, results.rounds, results.seconds,
    )
    .expect("a string takes everything");
    for placement in &results.placements {
        writeln!(text, "{placement}").expect("a string takes everything");
    }
    text.push('\n');
    let comparisons = compare(&results.rows, ServerKind::Memcached);
    for (title, body) in [
        (
            "Throughput (thousand operations a second) and CPU (microseconds an operation)",
            cost_table(summaries, &comparisons),
        ),
        ("Latency in microseconds", latency_table(summaries, &comparisons)),
        ("The floor: NOOP, 24 bytes both ways", floor_table(results, summaries)),
        ("Resident memory", memory_table(&results.memory)),
    ] {
        if let Some(body) = body {
            writeln!(text, "{title}:\n\n{body}").expect("a string takes everything");
        }
    }
    text.push_str(&checked(&results.rows));
    text
}

/// What was checked.
fn checked(rows: &[Row]) -> String {
    let sum = |value: fn(&Row) -> u64| rows.iter().map(value).sum::<u64>();
    let mut text = format!(
        "Checked: {} answers in {} runs, each for opcode, tag and status; {} values for length and beginning, {} of them to the last byte. \
         Misses: 0, or the run would have failed. Answers that said \"not now\" and were asked again:",
        sum(|row| row.operations),
        rows.len(),
        sum(|row| row.gets),
        sum(|row| row.whole_values),
    );
    for server in [ServerKind::Ringbase, ServerKind::Memcached] {
        let refused: u64 = rows.iter().filter(|row| row.server == server).map(|row| row.refused).sum();
        write!(text, " {} {refused}", server.name()).expect("a string takes everything");
    }
    text.push_str(".\n");
    text
}

fn cores_text(cores: u16) -> String {
    format!("{cores} core{}", if cores == 1 { "" } else { "s" })
}

fn label(cell: &Cell) -> String {
    let Cell { cores, value_bytes, connections, depth, mix, keys } = cell;
    let cores = cores_text(*cores);
    match mix {
        Mix::Noop => format!("{cores}, {connections} × {depth}"),
        _ => format!("{cores}, {value_bytes} B, {connections} × {depth}, {} {}", mix.name(), keys.name()),
    }
}

fn of(summaries: &[Summary], cell: Cell, server: ServerKind) -> Option<&Summary> {
    summaries.iter().find(|summary| summary.cell == cell && summary.server == server)
}

/// The cells in which documents were asked for, with their comparison if there is one.
fn compared<'a>(
    summaries: &'a [Summary],
    comparisons: &'a [Comparison],
) -> impl Iterator<Item = (&'a Summary, Option<&'a Summary>, Option<&'a Comparison>)> {
    let ours = |summary: &&Summary| summary.server == ServerKind::Ringbase && summary.cell.mix != Mix::Noop;
    summaries.iter().filter(ours).map(|ours| {
        let comparison = comparisons.iter().find(|comparison| comparison.cell == ours.cell);
        (ours, of(summaries, ours.cell, ServerKind::Memcached), comparison)
    })
}

fn maybe<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(String::new, show)
}

fn spread(ratio: Ratio) -> String {
    format!("{:.2}–{:.2}", ratio.lowest, ratio.highest)
}

fn thousands(rate: f64) -> String {
    format!("{:.1}", rate / 1e3)
}

fn micros(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// A table, unless it would have no rows.
fn table_of<const N: usize>(columns: [&str; N], rows: &[[String; N]]) -> Option<String> {
    (!rows.is_empty()).then(|| table(columns, rows))
}

fn cost_table(summaries: &[Summary], comparisons: &[Comparison]) -> Option<String> {
    let columns = [
        "connections × depth",
        "ringbase",
        "memcached",
        "ratio",
        "lowest–highest",
        "server CPU ringbase",
        "memcached",
        "ratio",
        "client CPU ringbase",
        "memcached",
    ];
    let rows: Vec<[String; 10]> = compared(summaries, comparisons)
        .map(|(ours, theirs, comparison)| {
            [
                label(&ours.cell),
                thousands(ours.throughput),
                maybe(theirs, |theirs| thousands(theirs.throughput)),
                maybe(comparison, |found| format!("{:.2}", found.throughput.median)),
                maybe(comparison, |found| spread(found.throughput)),
                micros(ours.server_cpu_us),
                maybe(theirs, |theirs| micros(theirs.server_cpu_us)),
                maybe(comparison, |found| format!("{:.2}", found.server_cpu.median)),
                micros(ours.client_cpu_us),
                maybe(theirs, |theirs| micros(theirs.client_cpu_us)),
            ]
        })
        .collect();
    table_of(columns, &rows)
}

fn latency_table(summaries: &[Summary], comparisons: &[Comparison]) -> Option<String> {
    let columns = [
        "connections × depth",
        "ringbase p50",
        "p99",
        "p99.9",
        "memcached p50",
        "p99",
        "p99.9",
        "ratio p50",
        "ratio p99",
        "lowest–highest",
    ];
    let rows: Vec<[String; 10]> = compared(summaries, comparisons)
        .map(|(ours, theirs, comparison)| {
            [
                label(&ours.cell),
                micros(ours.p50_us),
                micros(ours.p99_us),
                micros(ours.p999_us),
                maybe(theirs, |theirs| micros(theirs.p50_us)),
                maybe(theirs, |theirs| micros(theirs.p99_us)),
                maybe(theirs, |theirs| micros(theirs.p999_us)),
                maybe(comparison, |found| format!("{:.2}", found.p50.median)),
                maybe(comparison, |found| format!("{:.2}", found.p99.median)),
                maybe(comparison, |found| spread(found.p99)),
            ]
        })
        .collect();
    table_of(columns, &rows)
}

fn floor_table(results: &Results, summaries: &[Summary]) -> Option<String> {
    let floors = compare(&results.rows, ServerKind::Echo);
    let columns = [
        "connections × depth",
        "echo",
        "ringbase",
        "memcached",
        "server CPU echo",
        "ringbase",
        "memcached",
        "CPU ringbase / echo",
        "lowest–highest",
    ];
    let rows: Vec<[String; 9]> = floors
        .iter()
        .map(|floor| {
            let found = |server| of(summaries, floor.cell, server);
            let rate = |server| maybe(found(server), |found| thousands(found.throughput));
            let cpu = |server| maybe(found(server), |found| micros(found.server_cpu_us));
            [
                label(&floor.cell),
                rate(ServerKind::Echo),
                rate(ServerKind::Ringbase),
                rate(ServerKind::Memcached),
                cpu(ServerKind::Echo),
                cpu(ServerKind::Ringbase),
                cpu(ServerKind::Memcached),
                format!("{:.2}", floor.server_cpu.median),
                spread(floor.server_cpu),
            ]
        })
        .collect();
    table_of(columns, &rows)
}

fn memory_table(memory: &[MemoryRow]) -> Option<String> {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let rows: Vec<[String; 7]> = memory
        .iter()
        .map(|row| {
            let MemoryRow { cores, value_bytes, server, .. } = row;
            [
                format!("{}, {}, {value_bytes} B", server.name(), cores_text(*cores)),
                mib(row.before_bytes),
                mib(row.half_bytes),
                mib(row.after_bytes),
                format!("{:.1}", row.item_bytes()),
                format!("{:.1}", row.overhead_bytes()),
                format!("{:.1}", row.whole_bytes()),
            ]
        })
        .collect();
    let columns = [
        "server",
        "before MiB",
        "half MiB",
        "loaded MiB",
        "bytes a document of the second half",
        "of these beyond key and value",
        "all bytes / documents",
    ];
    table_of(columns, &rows)
}

/// For each number of cores throughput and server CPU of the usual documents, against connections × depth.
fn plots(summaries: &[Summary], out: &Path) -> Result<(), BenchError> {
    let Some(usual) = summaries.iter().find(|summary| summary.cell.mix != Mix::Noop) else { return Ok(()) };
    let usual = usual.cell;
    let is_usual = |cell: &Cell| {
        cell.mix != Mix::Noop && cell.value_bytes == usual.value_bytes && cell.keys == usual.keys
    };
    let mut cores: Vec<u16> = summaries.iter().map(|summary| summary.cell.cores).collect();
    cores.dedup();
    for cores in cores {
        let shown: Vec<&Summary> = summaries
            .iter()
            .filter(|summary| summary.cell.cores == cores && is_usual(&summary.cell))
            .collect();
        let place = |cell: &Cell| format!("{}×{}", cell.connections, cell.depth);
        let mut positions: Vec<String> = shown.iter().map(|summary| place(&summary.cell)).collect();
        positions.dedup();
        let lines = |value: fn(&Summary) -> f64| {
            let mut lines: Vec<Line> = Vec::new();
            for summary in &shown {
                let name = format!("{} {}", summary.server.name(), summary.cell.mix.name());
                let at = positions.iter().position(|position| *position == place(&summary.cell));
                let Some(at) = at else { continue };
                match lines.iter_mut().find(|line| line.name == name) {
                    Some(line) => line.points.push((at, value(summary))),
                    None => lines.push(Line { name, points: vec![(at, value(summary))] }),
                }
            }
            lines
        };
        let what = format!("{} B, {}, {} a server", usual.value_bytes, usual.keys.name(), cores_text(cores));
        for (file, title, unit, lines) in [
            ("throughput", "Point operations", "operations a second", lines(|summary| summary.throughput)),
            ("server-cpu", "Server CPU", "microseconds an operation", lines(|summary| summary.server_cpu_us)),
        ] {
            let plot = Plot {
                title: &format!("{title}: {what}"),
                axis: "connections × requests under way on each",
                unit,
                logarithmic: true,
                positions: &positions,
                lines: &lines,
            };
            plot.draw(&out.join(format!("{file}-{cores}cores.svg")))?;
        }
    }
    Ok(())
}

fn as_json(results: &Results, summaries: &[Summary]) -> Value {
    json!({
        "machine": results.machine,
        "memcached": results.memcached,
        "bucket_type": results.bucket_type,
        "vbuckets": results.vbuckets,
        "documents": results.documents,
        "rounds": results.rounds,
        "seconds": results.seconds,
        "placements": results.placements,
        "summary": summaries,
        "beside_memcached": compare(&results.rows, ServerKind::Memcached),
        "beside_echo": compare(&results.rows, ServerKind::Echo),
        "memory": results.memory.iter().map(|row| json!({
            "row": row,
            "whole_bytes": row.whole_bytes(),
            "item_bytes": row.item_bytes(),
            "overhead_bytes": row.overhead_bytes(),
        })).collect::<Vec<_>>(),
        "runs": results.rows,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::super::results::tests::{cell, row};
    use super::super::servers::BucketType;
    use super::*;
    use crate::recorder;

    fn results(memcached: bool) -> Results {
        let mut rows = Vec::new();
        for round in 1..=3 {
            for depth in [1, 16] {
                for mix in [Mix::Get, Mix::Set, Mix::Noop] {
                    let cell = cell(depth, mix);
                    rows.push(row(round, cell, ServerKind::Ringbase, 150_000));
                    if memcached {
                        rows.push(row(round, cell, ServerKind::Memcached, 100_000));
                    }
                    if mix == Mix::Noop {
                        rows.push(row(round, cell, ServerKind::Echo, 300_000));
                    }
                }
            }
        }
        let memory = MemoryRow {
            cores: 1,
            value_bytes: 100,
            server: ServerKind::Ringbase,
            documents: 1000,
            before_bytes: 1 << 20,
            half_bytes: 1 << 20,
            after_bytes: (1 << 20) + 90_000,
        };
        let mut latency = recorder::histogram();
        latency.saturating_record(1000);
        Results {
            machine: crate::machine::Machine::look(Path::new(".")),
            memcached: memcached.then(|| "memcached 1.6".to_owned()),
            bucket_type: BucketType::Ephemeral,
            vbuckets: 128,
            documents: 1000,
            rounds: 3,
            seconds: 2.0,
            placements: vec!["1 server core: CPU 0; client: CPU 1".to_owned()],
            rows,
            memory: vec![memory],
            latencies: BTreeMap::from([((cell(16, Mix::Get), ServerKind::Ringbase), latency)]),
        }
    }

    #[test]
    fn the_summary_shows_ratios_floor_memory_and_what_was_checked() {
        let results = results(true);
        let text = summary(&results, &summarize(&results.rows));
        let line = |start: &str| {
            let found = text.lines().find(|line| line.contains(start));
            found.unwrap_or_else(|| panic!("no line with {start} in\n{text}")).to_owned()
        };
        let get = line("1 core, 100 B, 50 × 16, GET zipfian");
        assert!(get.contains("75.0") && get.contains("50.0") && get.contains("1.50"), "{get}");
        assert!(line("ringbase, 1 core, 100 B").contains("180.0 |"), "{text}");
        assert!(line("| 1 core, 50 × 16 ").contains("2.00–2.00"), "{text}");
        assert!(text.contains("Checked: ") && text.contains("client: CPU 1"));
    }

    #[test]
    fn files_and_plots_are_written_also_without_a_peer() {
        for memcached in [true, false] {
            let out = tempfile::tempdir().unwrap();
            write(&results(memcached), false, out.path()).unwrap();
            let mut names: Vec<String> = fs::read_dir(out.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            let expected = [
                "latency-1cores-100B-50x16-get-zipfian-ringbase-us.hgrm",
                "memory.csv",
                "raw.csv",
                "server-cpu-1cores.svg",
                "summary.md",
                "throughput-1cores.svg",
            ];
            assert_eq!(names, expected);
            let svg = fs::read_to_string(out.path().join("throughput-1cores.svg")).unwrap();
            assert_eq!(svg.contains("memcached GET"), memcached);
            assert!(svg.contains("ringbase SET") && svg.contains("50×16") && !svg.contains("NOOP"));
        }
    }

    #[test]
    fn json_carries_summaries_comparisons_and_runs() {
        let results = results(true);
        let json = as_json(&results, &summarize(&results.rows));
        assert_eq!(json["beside_memcached"][0]["throughput"]["median"], 1.5);
        assert_eq!(json["beside_echo"][0]["other"], "echo");
        assert_eq!(json["runs"].as_array().unwrap().len(), results.rows.len());
        assert_eq!(json["memory"][0]["item_bytes"], 180.0);
    }
}
