//! The files and the tables of `ringbench backfill`.
//!
//! Does not know: how it was measured.

use std::fmt::Write as _;
use std::path::Path;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::beside::Beside;
use super::parked::{ALLOWED_BYTES, Parked};
use super::rows::{Row, SPENT, Summary, summarize};
use super::{Results, Window};
use crate::error::BenchError;
use crate::latency::Compared;
use crate::plot::{Line, Plot};
use crate::report::{put, put_hgrm, quantiles, table};

/// Nanoseconds of a microsecond.
const MICROSECOND: f64 = 1e3;

const MEBIBYTE: f64 = (1 << 20) as f64;

/// Writes the files into `out` and the tables or JSON to standard output.
pub(super) fn write(results: &Results, as_json: bool, out: &Path) -> Result<(), BenchError> {
    let summaries = summarize(&results.rows);
    let text = summary(results, &summaries);
    put(&out.join("raw.csv"), raw_csv(&results.rows).as_bytes())?;
    put(&out.join("summary.md"), text.as_bytes())?;
    for (name, histogram) in histograms(results) {
        put_hgrm(&out.join(format!("{name}-us.hgrm")), histogram, MICROSECOND)?;
    }
    plots(results, &summaries, out)?;
    if as_json {
        println!("{}", json(results, &summaries));
    } else {
        print!("{text}");
    }
    eprintln!("raw.csv, summary.md, histograms and plots are in {}", out.display());
    Ok(())
}

fn raw_csv(rows: &[Row]) -> String {
    let mut csv = String::from(
        "round,kind,value_bytes,vbuckets,connections,window,seconds,first_seconds,megabytes_per_second,items,markers,bytes,\
         server_cpu_seconds,client_cpu_seconds,resident_bytes",
    );
    for name in SPENT {
        write!(csv, ",{name}_seconds").expect("a string takes everything");
    }
    csv.push('\n');
    for row in rows {
        let Row { round, kind, cell, seconds, first_seconds, items, markers, bytes, .. } = row;
        let Row { server_cpu_seconds, client_cpu_seconds, resident_bytes, .. } = row;
        write!(
            csv,
            "{round},{},{},{},{},{},{seconds:.6},{first_seconds:.6},{:.1},{items},{markers},{bytes},\
             {server_cpu_seconds:.6},{client_cpu_seconds:.6},{resident_bytes}",
            kind.name(),
            cell.set.value_bytes,
            cell.set.vbuckets,
            cell.connections,
            cell.window,
            row.megabytes_per_second(),
        )
        .expect("a string takes everything");
        for seconds in row.spent_seconds {
            write!(csv, ",{seconds:.6}").expect("a string takes everything");
        }
        csv.push('\n');
    }
    csv
}

/// Every histogram with the name of its file; values are microseconds there. Reasons that never happened have none.
fn histograms(results: &Results) -> Vec<(String, &Histogram<u64>)> {
    let mut named = Vec::new();
    for (kind, times) in &results.spent {
        for (name, histogram) in SPENT.iter().zip(times).filter(|(_, histogram)| !histogram.is_empty()) {
            named.push((format!("{}-{name}", kind.name()), histogram));
        }
    }
    for Beside { kind, compared: Compared { idle, busy, .. }, .. } in &results.beside {
        let kind = kind.name();
        for (name, histogram) in [
            ("noop-idle", &idle.noop),
            ("noop-busy", &busy.noop),
            ("get-idle", &idle.get),
            ("get-busy", &busy.get),
        ] {
            named.push((format!("latency-{kind}-{name}"), histogram));
        }
    }
    named
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| format!("{:.0} %", share * 100.0))
}

fn summary(results: &Results, summaries: &[Summary]) -> String {
    let machine = &results.machine;
    let mut text = format!(
        "{}, {}; {}.\n\n\
         Documents with keys of {} bytes. Medians of {} rounds, in each of which every combination had its turn; MB are 10⁶ bytes of messages. \
         The ceiling of a resident and of a warm drain is loopback with a reader that looks at nothing, that of a cold one the lower of loopback and device; \
         the plain writer is the same client against a blocking writer of ready frames without flow control.\n\n{}\n",
        machine.ran(),
        machine.file_system,
        machine.load(),
        results.key_bytes,
        results.rounds,
        throughput_table(summaries)
    );
    let mut add = |title: &str, table: String| {
        write!(text, "{title}\n\n{table}\n").expect("a string takes everything");
    };
    add("What the streams together spent their time on:", spent_table(summaries));
    if !results.parked.is_empty() {
        let title = format!(
            "Memory of the node without its block cache while streams stand still (wanted: at most {:.0} MiB above idle):",
            ALLOWED_BYTES as f64 / MEBIBYTE
        );
        add(&title, parked_table(&results.parked));
    }
    let title = "Small requests, one each millisecond from the moment it was due, beside eight backfills at a time, microseconds:";
    add(title, beside_table(&results.beside));
    text
}

fn throughput_table(summaries: &[Summary]) -> String {
    let rows: Vec<[String; 14]> = summaries
        .iter()
        .map(|summary| {
            let has_window = summary.kind.is_drain();
            let resident_mib = summary.resident_bytes as f64 / MEBIBYTE;
            [
                summary.kind.name().to_owned(),
                summary.value_bytes.to_string(),
                summary.vbuckets.to_string(),
                summary.connections.to_string(),
                if has_window { summary.window.clone() } else { String::new() },
                format!("{:.3}", summary.seconds),
                format!("{:.0}", summary.megabytes_per_second),
                format!("{:.0}–{:.0}", summary.lowest, summary.highest),
                format!("{:.2}", summary.items_per_second / 1e6),
                percent(summary.share_of_ceiling),
                percent(summary.share_of_plain_writer),
                format!("{:.0}", summary.server_cpu_ns),
                format!("{:.0}", summary.client_cpu_ns),
                if has_window { format!("{resident_mib:.0}") } else { String::new() },
            ]
        })
        .collect();
    let columns = [
        "what",
        "value B",
        "vbuckets",
        "conns",
        "window",
        "seconds",
        "MB/s",
        "lowest–highest",
        "M docs/s",
        "of ceiling",
        "of plain writer",
        "server ns/doc",
        "client ns/doc",
        "RSS MiB",
    ];
    table(columns, &rows)
}

fn spent_table(summaries: &[Summary]) -> String {
    let rows: Vec<[String; 15]> = summaries
        .iter()
        .filter(|summary| !summary.spent.is_empty())
        .map(|summary| {
            let mut row = std::array::from_fn(|_| String::new());
            row[0] = summary.kind.name().to_owned();
            row[1] = summary.value_bytes.to_string();
            row[2] = summary.vbuckets.to_string();
            row[3] = summary.connections.to_string();
            row[4] = summary.window.clone();
            for (cell, name) in row[5..].iter_mut().zip(SPENT) {
                *cell = percent(summary.spent.get(name).copied());
            }
            row
        })
        .collect();
    let mut columns =
        ["what", "value B", "vbuckets", "conns", "window", "", "", "", "", "", "", "", "", "", ""];
    columns[5..].copy_from_slice(&SPENT);
    table(columns, &rows)
}

fn parked_table(parked: &[Parked]) -> String {
    let mebibytes = |bytes: i64| format!("{:.1}", bytes as f64 / MEBIBYTE);
    let rows: Vec<[String; 7]> = parked
        .iter()
        .map(|found| {
            [
                found.kind.name().to_owned(),
                found.streams.to_string(),
                found.connections.to_string(),
                mebibytes(found.idle_bytes),
                mebibytes(found.parked_bytes),
                mebibytes(found.above_idle_bytes()),
                mebibytes(found.after_bytes),
            ]
        })
        .collect();
    table(["what", "streams", "conns", "idle MiB", "standing MiB", "above idle MiB", "afterwards MiB"], &rows)
}

fn beside_table(beside: &[Beside]) -> String {
    let micros = |histogram: &Histogram<u64>, quantile: f64| {
        format!("{:.1}", histogram.value_at_quantile(quantile) as f64 / MICROSECOND)
    };
    let mut rows = Vec::new();
    for Beside { kind, compared: Compared { idle, busy, .. }, backfills } in beside {
        let while_busy = format!("{backfills} backfills, {}", kind.name());
        for (request, meanwhile, histogram) in [
            ("NOOP", "idle", &idle.noop),
            ("NOOP", &while_busy, &busy.noop),
            ("GET", "idle", &idle.get),
            ("GET", &while_busy, &busy.get),
        ] {
            rows.push([
                request.to_owned(),
                meanwhile.to_owned(),
                histogram.len().to_string(),
                micros(histogram, 0.5),
                micros(histogram, 0.99),
                micros(histogram, 1.0),
            ]);
        }
    }
    table(["request", "meanwhile", "requests", "p50", "p99", "max"], &rows)
}

fn plots(results: &Results, summaries: &[Summary], out: &Path) -> Result<(), BenchError> {
    let positions: Vec<String> = {
        let mut windows = results.windows.clone();
        // No window is more than any.
        windows.sort_by_key(|window| if window.0 == 0 { u32::MAX } else { window.0 });
        windows.iter().map(Window::to_string).collect()
    };
    let mut lines: Vec<Line> = Vec::new();
    let drains = summaries.iter().filter(|summary| summary.kind.is_drain());
    for summary in drains.filter(|summary| summary.connections == results.usual.connections) {
        let name = format!("{}, {}", summary.kind.name(), summary.cell.set);
        let Some(at) = positions.iter().position(|window| *window == summary.window) else { continue };
        let point = (at, summary.megabytes_per_second);
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name, points: vec![point] }),
        }
    }
    lines.iter_mut().for_each(|line| line.points.sort_by_key(|(at, _)| *at));
    let throughput = Plot {
        title: "DCP streams against the client's window",
        axis: "window",
        unit: "MB/s of messages",
        logarithmic: false,
        positions: &positions,
        lines: &lines,
    };
    throughput.draw(&out.join("throughput.svg"))
}

fn json(results: &Results, summaries: &[Summary]) -> Value {
    let beside: Vec<Value> = results
        .beside
        .iter()
        .map(|Beside { kind, compared: Compared { idle, busy, .. }, backfills }| {
            json!({
                "kind": kind,
                "backfills": backfills,
                "noop_idle": quantiles(&idle.noop),
                "noop_busy": quantiles(&busy.noop),
                "get_idle": quantiles(&idle.get),
                "get_busy": quantiles(&busy.get),
            })
        })
        .collect();
    json!({
        "machine": results.machine,
        "rounds": results.rounds,
        "key_bytes": results.key_bytes,
        "summary": summaries,
        "parked": results.parked,
        "beside": beside,
    })
}

#[cfg(test)]
mod tests {
    use super::super::rows::{Cell, DataSet, Kind};
    use super::*;

    fn rows() -> Vec<Row> {
        let set = DataSet { value_bytes: 100, vbuckets: 16 };
        let row = |kind, window| Row {
            seconds: 0.5,
            items: 1_000_000,
            bytes: 100_000_000,
            spent_seconds: [0.5; SPENT.len()],
            ..Row::new(1, kind, Cell { set, connections: 1, window: Window(window) })
        };
        vec![row(Kind::Resident, 1 << 20), row(Kind::Resident, 0), row(Kind::Loopback, 0)]
    }

    #[test]
    fn every_line_of_the_csv_has_as_many_fields_as_its_head() {
        let csv = raw_csv(&rows());
        let fields: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(fields, [15 + SPENT.len(); 4]);
    }

    #[test]
    fn tables_name_the_window_of_drains_and_none_of_ceilings() {
        let text = throughput_table(&summarize(&rows()));
        assert_eq!((text.matches("1MiB").count(), text.matches("none").count()), (1, 1), "{text}");
        assert!(text.contains("2.00") && text.contains("100 %"), "{text}");
    }
}
