//! Results of scans: rows as measured, their summary, and both as text.
//!
//! Invariants
//! - A share of a ceiling compares runs of the same round; the median of these ratios is shown.
//!
//! Does not know: how it was measured, plots.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::BenchError;
use crate::recorder::write_hgrm;

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Keys, every block in the block cache.
    KeysWarm,
    /// Keys, nothing in the block cache, node just started.
    KeysCold,
    /// Documents after a scan of the same documents.
    DocumentsWarm,
    /// Documents, nothing in the block cache, node just started.
    DocumentsCold,
    /// The same client with a plain writer of ready frames instead of the node.
    PlainWriter,
    /// A reader that looks at nothing, with the same writer.
    Loopback,
    /// Sequential reads through the storage ring.
    Device,
}

impl Kind {
    /// As in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::KeysWarm => "keys warm",
            Kind::KeysCold => "keys cold",
            Kind::DocumentsWarm => "documents warm",
            Kind::DocumentsCold => "documents cold",
            Kind::PlainWriter => "ceiling: plain writer",
            Kind::Loopback => "ceiling: loopback",
            Kind::Device => "ceiling: device",
        }
    }

    /// What it is compared with.
    fn ceiling(self) -> Option<Kind> {
        match self {
            Kind::KeysWarm | Kind::DocumentsWarm => Some(Kind::PlainWriter),
            Kind::KeysCold | Kind::DocumentsCold => Some(Kind::Device),
            Kind::PlainWriter | Kind::Loopback | Kind::Device => None,
        }
    }
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// Which repetition, from 1.
    pub(crate) round: u32,
    /// What it is about.
    pub(crate) kind: Kind,
    /// Buffer size as asked for; empty if it does not matter.
    pub(crate) buffer: String,
    /// The same in bytes, 0 if it does not matter.
    pub(crate) buffer_bytes: u32,
    /// Connections.
    pub(crate) connections: usize,
    /// From the first request to the last record.
    pub(crate) seconds: f64,
    /// Records.
    pub(crate) records: u64,
    /// Bytes of records on the wire.
    pub(crate) record_bytes: u64,
    /// Frames.
    pub(crate) frames: u64,
    /// CPU seconds of the node, or of the writers.
    pub(crate) server_cpu_seconds: f64,
    /// CPU seconds of the client.
    pub(crate) client_cpu_seconds: f64,
    /// Resident bytes of the node afterwards.
    pub(crate) resident_bytes: u64,
    /// Blocks found in the cache during the run.
    pub(crate) cache_hits: u64,
    /// Blocks not found.
    pub(crate) cache_misses: u64,
    /// Blocks found before the run, since the node was started.
    pub(crate) cache_hits_before: u64,
}

impl Row {
    /// Megabytes (10⁶) of records a second.
    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.record_bytes as f64 / 1e6 / self.seconds
    }
}

/// `raw.csv`.
pub(crate) fn raw_csv(rows: &[Row]) -> String {
    let mut csv = String::from(
        "round,kind,buffer,buffer_bytes,connections,seconds,megabytes_per_second,records,record_bytes,frames,\
         server_cpu_seconds,client_cpu_seconds,resident_bytes,cache_hits,cache_misses,cache_hits_before\n",
    );
    for row in rows {
        let Row { round, kind, buffer, buffer_bytes, connections, seconds, records, record_bytes, .. } = row;
        let rate = row.megabytes_per_second();
        let Row { frames, server_cpu_seconds, client_cpu_seconds, resident_bytes, .. } = row;
        let Row { cache_hits, cache_misses, cache_hits_before, .. } = row;
        writeln!(
            csv,
            "{round},{},{buffer},{buffer_bytes},{connections},{seconds:.6},{rate:.1},{records},{record_bytes},{frames},\
             {server_cpu_seconds:.6},{client_cpu_seconds:.6},{resident_bytes},{cache_hits},{cache_misses},\
             {cache_hits_before}",
            kind.name()
        )
        .expect("a string takes everything");
    }
    csv
}

/// The runs of one kind, buffer size and number of connections.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    /// What they are about.
    pub(crate) kind: Kind,
    /// Buffer size.
    pub(crate) buffer: String,
    /// In bytes.
    pub(crate) buffer_bytes: u32,
    /// Connections.
    pub(crate) connections: usize,
    /// How many.
    pub(crate) runs: usize,
    /// Median seconds.
    pub(crate) seconds: f64,
    /// Median megabytes a second.
    pub(crate) megabytes_per_second: f64,
    /// Slowest run.
    pub(crate) lowest: f64,
    /// Fastest run.
    pub(crate) highest: f64,
    /// Median of the ratios to the ceiling of the same round, if there is one.
    pub(crate) share_of_ceiling: Option<f64>,
    /// Median CPU seconds of the node.
    pub(crate) server_cpu_seconds: f64,
    /// Median CPU seconds of the client.
    pub(crate) client_cpu_seconds: f64,
    /// Lowest share of cache look-ups that found their block, if there were any.
    pub(crate) hit_rate: Option<f64>,
    /// Most resident bytes of the node.
    pub(crate) resident_bytes: u64,
}

/// Writes a file of results.
///
/// # Errors
/// It cannot be written.
pub(crate) fn put(path: &Path, bytes: &[u8]) -> Result<(), BenchError> {
    fs::write(path, bytes).map_err(BenchError::file("write", path))
}

/// Writes the percentile table of a histogram; values are divided by `divisor`.
///
/// # Errors
/// It cannot be written.
pub(crate) fn put_hgrm(path: &Path, samples: &Histogram<u64>, divisor: f64) -> Result<(), BenchError> {
    let mut hgrm = Vec::new();
    write_hgrm(samples, divisor, &mut hgrm).map_err(BenchError::file("write", path))?;
    put(path, &hgrm)
}

/// Number and quantiles of nanoseconds, as JSON.
pub(crate) fn quantiles(samples: &Histogram<u64>) -> Value {
    json!({
        "count": samples.len(),
        "p50_ns": samples.value_at_quantile(0.5),
        "p99_ns": samples.value_at_quantile(0.99),
        "max_ns": samples.max(),
    })
}

/// The middle one; of an even number, the mean of the two in the middle.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(f64::midpoint(values[last / 2], values[values.len() / 2]))
}

/// One summary for each kind, number of connections and buffer size, in the order of the sizes.
pub(crate) fn summarize(rows: &[Row]) -> Vec<Summary> {
    let mut groups: BTreeMap<(Kind, usize, usize), Vec<&Row>> = BTreeMap::new();
    let mut buffers: Vec<&str> = Vec::new();
    for row in rows {
        if !buffers.contains(&row.buffer.as_str()) {
            buffers.push(&row.buffer);
        }
        let order = buffers.iter().position(|buffer| *buffer == row.buffer).unwrap_or_default();
        groups.entry((row.kind, row.connections, order)).or_default().push(row);
    }
    groups.into_values().map(|group| summary(rows, &group)).collect()
}

fn summary(rows: &[Row], group: &[&Row]) -> Summary {
    let first = group[0];
    let middle = |value: fn(&Row) -> f64| median(group.iter().map(|row| value(row))).unwrap_or_default();
    let rates = || group.iter().map(|row| row.megabytes_per_second());
    let shares = group.iter().filter_map(|row| {
        let kind = row.kind.ceiling()?;
        let same = |other: &&Row| {
            let buffer = kind == Kind::Device
                || (other.buffer_bytes == row.buffer_bytes && other.connections == row.connections);
            other.kind == kind && other.round == row.round && buffer
        };
        let ceilings = rows.iter().filter(same).map(Row::megabytes_per_second);
        Some(row.megabytes_per_second() / median(ceilings)?)
    });
    let hit_rates = group.iter().filter_map(|row| {
        let lookups = row.cache_hits + row.cache_misses;
        (lookups > 0).then(|| row.cache_hits as f64 / lookups as f64)
    });
    Summary {
        kind: first.kind,
        buffer: first.buffer.clone(),
        buffer_bytes: first.buffer_bytes,
        connections: first.connections,
        runs: group.len(),
        seconds: middle(|row| row.seconds),
        megabytes_per_second: middle(Row::megabytes_per_second),
        lowest: rates().fold(f64::INFINITY, f64::min),
        highest: rates().fold(0.0, f64::max),
        share_of_ceiling: median(shares),
        server_cpu_seconds: middle(|row| row.server_cpu_seconds),
        client_cpu_seconds: middle(|row| row.client_cpu_seconds),
        hit_rate: hit_rates.reduce(f64::min),
        resident_bytes: group.iter().map(|row| row.resident_bytes).max().unwrap_or_default(),
    }
}

/// Columns of the table, for people and for Markdown.
const COLUMNS: [&str; 11] = [
    "what",
    "conns",
    "buffer",
    "seconds",
    "MB/s",
    "lowest–highest",
    "of ceiling",
    "server CPU s",
    "client CPU s",
    "cache hits",
    "RSS MiB",
];

fn cells(summary: &Summary) -> [String; 11] {
    let percent =
        |share: Option<f64>| share.map_or_else(String::new, |share| format!("{:.1} %", share * 100.0));
    [
        summary.kind.name().to_owned(),
        summary.connections.to_string(),
        summary.buffer.clone(),
        format!("{:.3}", summary.seconds),
        format!("{:.0}", summary.megabytes_per_second),
        format!("{:.0}–{:.0}", summary.lowest, summary.highest),
        percent(summary.share_of_ceiling),
        format!("{:.3}", summary.server_cpu_seconds),
        format!("{:.3}", summary.client_cpu_seconds),
        percent(summary.hit_rate),
        if summary.resident_bytes == 0 { String::new() } else { (summary.resident_bytes >> 20).to_string() },
    ]
}

/// A table with aligned columns; `columns` and every row have the same length.
pub(crate) fn table<const N: usize>(columns: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = columns.map(|column| column.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: [&str; N]| {
        text.push('|');
        for (index, (cell, width)) in cells.into_iter().zip(widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            // The first column reads from the left, numbers stand right.
            if index == 0 {
                write!(text, " {cell}{padding} |").expect("a string takes everything");
            } else {
                write!(text, " {padding}{cell} |").expect("a string takes everything");
            }
        }
        text.push('\n');
    };
    line(columns);
    let rules: [String; N] = std::array::from_fn(|index| {
        let dashes = "-".repeat(widths[index].saturating_sub(usize::from(index > 0)));
        if index == 0 { dashes } else { dashes + ":" }
    });
    line(std::array::from_fn(|index| rules[index].as_str()));
    for row in rows {
        line(std::array::from_fn(|index| row[index].as_str()));
    }
    text
}

/// The summaries as a table, which is also Markdown.
pub(crate) fn summary_table(summaries: &[Summary]) -> String {
    let rows: Vec<[String; 11]> = summaries.iter().map(cells).collect();
    table(COLUMNS, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(round: u32, kind: Kind, buffer: &str, seconds: f64) -> Row {
        Row {
            round,
            kind,
            buffer: buffer.to_owned(),
            buffer_bytes: 8192,
            connections: 2,
            seconds,
            records: 10,
            record_bytes: 100_000_000,
            frames: 5,
            server_cpu_seconds: 0.5,
            client_cpu_seconds: 0.25,
            resident_bytes: 1 << 20,
            cache_hits: 3,
            cache_misses: 1,
            cache_hits_before: 0,
        }
    }

    #[test]
    fn the_median_is_the_middle_one_whatever_the_order() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    /// RUNTIME.md §1: ratios inside one round are what to trust.
    #[test]
    fn the_share_of_a_ceiling_compares_runs_of_the_same_round() {
        let rows = [
            row(1, Kind::KeysWarm, "8KiB", 1.0),
            row(1, Kind::PlainWriter, "8KiB", 0.5),
            row(2, Kind::KeysWarm, "8KiB", 10.0),
            row(2, Kind::PlainWriter, "8KiB", 5.0),
        ];
        let summaries = summarize(&rows);
        assert_eq!(summaries.len(), 2);
        assert_eq!(summaries[0].share_of_ceiling, Some(0.5));
        assert_eq!(summaries[1].share_of_ceiling, None);
        assert_eq!((summaries[0].lowest, summaries[0].highest, summaries[0].runs), (10.0, 100.0, 2));
        assert_eq!(summaries[0].hit_rate, Some(0.75));
    }

    #[test]
    fn sizes_stay_in_the_order_in_which_they_were_measured() {
        let rows = ["8KiB", "64KiB", "1MiB", "auto"].map(|buffer| row(1, Kind::KeysCold, buffer, 1.0));
        let order: Vec<String> = summarize(&rows).into_iter().map(|summary| summary.buffer).collect();
        assert_eq!(order, ["8KiB", "64KiB", "1MiB", "auto"]);
    }

    #[test]
    fn every_line_of_the_csv_has_as_many_fields_as_its_head() {
        let csv = raw_csv(&[row(1, Kind::KeysCold, "auto", 1.0), row(1, Kind::Device, "", 2.0)]);
        let fields: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(fields, [16, 16, 16]);
    }

    #[test]
    fn a_table_is_aligned_and_is_markdown() {
        let text = table(["a", "number"], &[["long name".to_owned(), "1".to_owned()]]);
        assert_eq!(text, "| a         | number |\n| --------- | -----: |\n| long name |      1 |\n");
    }
}
