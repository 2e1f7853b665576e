//! Results: rows as measured, their summaries, and how servers compare.
//!
//! Invariants
//! - A ratio compares runs of the same round of the same cell; the median of these ratios is shown, with the lowest and the highest.
//!
//! Does not know: how it was measured, files, tables.

use std::fmt::Write as _;

use serde::Serialize;

use super::cell::Cell;
use super::servers::ServerKind;
use crate::report::median;
use crate::traffic::{KEY_BYTES, Measured};

/// One run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    /// Which repetition, from 1.
    pub(super) round: u32,
    /// What was asked.
    pub(super) cell: Cell,
    /// Who was asked.
    pub(super) server: ServerKind,
    /// How long was counted.
    pub(super) seconds: f64,
    /// Successes.
    pub(super) operations: u64,
    /// Of these, GETs, each with a value of the right length and beginning.
    pub(super) gets: u64,
    /// Of these, values that were compared to the last byte.
    pub(super) whole_values: u64,
    /// Answers that said "not now".
    pub(super) refused: u64,
    /// CPU seconds of the server.
    pub(super) server_cpu_seconds: f64,
    /// CPU seconds of the client.
    pub(super) client_cpu_seconds: f64,
    /// Median latency.
    pub(super) p50_ns: u64,
    /// The latency that 1 % exceed.
    pub(super) p99_ns: u64,
    /// The latency that 0.1 % exceed.
    pub(super) p999_ns: u64,
    /// The greatest latency.
    pub(super) max_ns: u64,
}

impl Row {
    /// What a run has found.
    pub(super) fn new(round: u32, cell: Cell, server: ServerKind, measured: &Measured) -> Row {
        let Measured { tally, elapsed, server_cpu_seconds, client_cpu_seconds } = measured;
        Row {
            round,
            cell,
            server,
            seconds: elapsed.as_secs_f64(),
            operations: tally.operations,
            gets: tally.gets,
            whole_values: tally.whole_values,
            refused: tally.refused,
            server_cpu_seconds: *server_cpu_seconds,
            client_cpu_seconds: *client_cpu_seconds,
            p50_ns: tally.latency.value_at_quantile(0.5),
            p99_ns: tally.latency.value_at_quantile(0.99),
            p999_ns: tally.latency.value_at_quantile(0.999),
            max_ns: tally.latency.max(),
        }
    }

    /// Operations a second.
    pub(super) fn throughput(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// Microseconds of the server's CPU for an operation.
    pub(super) fn server_cpu_us(&self) -> f64 {
        self.server_cpu_seconds * 1e6 / self.operations as f64
    }

    /// Microseconds of the client's CPU for an operation.
    pub(super) fn client_cpu_us(&self) -> f64 {
        self.client_cpu_seconds * 1e6 / self.operations as f64
    }
}

/// Memory of one server before, in the middle of, and after its load.
///
/// What a document takes is reckoned from the second half: a process may have free memory at its start, which the first documents fill
/// without a trace. Tables that double have the same share in both halves together as in the second one alone.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct MemoryRow {
    /// Cores of the server.
    pub(super) cores: u16,
    /// Bytes of every value.
    pub(super) value_bytes: usize,
    /// Who.
    pub(super) server: ServerKind,
    /// Documents.
    pub(super) documents: u64,
    /// Resident bytes before the first.
    pub(super) before_bytes: u64,
    /// Resident bytes with one half of the documents.
    pub(super) half_bytes: u64,
    /// Resident bytes after the last.
    pub(super) after_bytes: u64,
}

impl MemoryRow {
    /// Documents of the first half.
    pub(super) fn half(documents: u64) -> u64 {
        documents / 2
    }

    /// Resident bytes that came with each document of the second half.
    pub(super) fn item_bytes(&self) -> f64 {
        let documents = self.documents - MemoryRow::half(self.documents);
        (self.after_bytes as f64 - self.half_bytes as f64) / documents as f64
    }

    /// All resident bytes for each document.
    pub(super) fn whole_bytes(&self) -> f64 {
        self.after_bytes as f64 / self.documents as f64
    }

    /// The same without key and value.
    pub(super) fn overhead_bytes(&self) -> f64 {
        self.item_bytes() - (KEY_BYTES + self.value_bytes) as f64
    }
}

/// `raw.csv`.
pub(super) fn raw_csv(rows: &[Row]) -> String {
    let mut csv = String::from(
        "round,server,cores,value_bytes,connections,depth,mix,keys,seconds,operations,operations_per_second,gets,whole_values,\
         refused,server_cpu_seconds,client_cpu_seconds,p50_ns,p99_ns,p999_ns,max_ns\n",
    );
    for row in rows {
        let Cell { cores, value_bytes, connections, depth, mix, keys } = row.cell;
        let Row { round, seconds, operations, gets, whole_values, refused, .. } = row;
        let Row { server_cpu_seconds, client_cpu_seconds, p50_ns, p99_ns, p999_ns, max_ns, .. } = row;
        writeln!(
            csv,
            "{round},{},{cores},{value_bytes},{connections},{depth},{},{},{seconds:.6},{operations},{:.1},{gets},{whole_values},\
             {refused},{server_cpu_seconds:.6},{client_cpu_seconds:.6},{p50_ns},{p99_ns},{p999_ns},{max_ns}",
            row.server.name(),
            mix.name(),
            keys.name(),
            row.throughput(),
        )
        .expect("a string takes everything");
    }
    csv
}

/// `memory.csv`.
pub(super) fn memory_csv(rows: &[MemoryRow]) -> String {
    let mut csv = String::from(
        "server,cores,value_bytes,documents,before_bytes,half_bytes,after_bytes,item_bytes,overhead_bytes,whole_bytes\n",
    );
    for row in rows {
        let MemoryRow { cores, value_bytes, documents, before_bytes, half_bytes, after_bytes, .. } = row;
        writeln!(
            csv,
            "{},{cores},{value_bytes},{documents},{before_bytes},{half_bytes},{after_bytes},{:.1},{:.1},{:.1}",
            row.server.name(),
            row.item_bytes(),
            row.overhead_bytes(),
            row.whole_bytes()
        )
        .expect("a string takes everything");
    }
    csv
}

/// The runs of one server in one cell: medians.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Summary {
    /// What was asked.
    pub(super) cell: Cell,
    /// Who was asked.
    pub(super) server: ServerKind,
    /// How many runs.
    pub(super) runs: usize,
    /// Operations a second.
    pub(super) throughput: f64,
    /// Of the slowest run.
    pub(super) lowest: f64,
    /// Of the fastest run.
    pub(super) highest: f64,
    /// Microseconds of the server's CPU for an operation.
    pub(super) server_cpu_us: f64,
    /// Microseconds of the client's CPU for an operation.
    pub(super) client_cpu_us: f64,
    /// Microseconds.
    pub(super) p50_us: f64,
    /// Microseconds.
    pub(super) p99_us: f64,
    /// Microseconds.
    pub(super) p999_us: f64,
}

/// One summary for each cell and server, in the order in which they were measured.
pub(super) fn summarize(rows: &[Row]) -> Vec<Summary> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        let same = |group: &&mut Vec<&Row>| (group[0].cell, group[0].server) == (row.cell, row.server);
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups.iter().map(|group| summary(group)).collect()
}

fn summary(group: &[&Row]) -> Summary {
    let middle = |value: fn(&Row) -> f64| median(group.iter().map(|row| value(row))).unwrap_or_default();
    let rates = || group.iter().map(|row| row.throughput());
    Summary {
        cell: group[0].cell,
        server: group[0].server,
        runs: group.len(),
        throughput: middle(Row::throughput),
        lowest: rates().fold(f64::INFINITY, f64::min),
        highest: rates().fold(0.0, f64::max),
        server_cpu_us: middle(Row::server_cpu_us),
        client_cpu_us: middle(Row::client_cpu_us),
        p50_us: middle(|row| row.p50_ns as f64 / 1e3),
        p99_us: middle(|row| row.p99_ns as f64 / 1e3),
        p999_us: middle(|row| row.p999_ns as f64 / 1e3),
    }
}

/// A ratio over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Ratio {
    /// The median of the rounds.
    pub(super) median: f64,
    /// Of the round with the lowest.
    pub(super) lowest: f64,
    /// Of the round with the highest.
    pub(super) highest: f64,
}

/// The node beside another server in one cell.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Comparison {
    /// What was asked.
    pub(super) cell: Cell,
    /// The other server.
    pub(super) other: ServerKind,
    /// Operations a second: above 1 the node is faster.
    pub(super) throughput: Ratio,
    /// Server CPU for an operation: below 1 the node needs less.
    pub(super) server_cpu: Ratio,
    /// Median latency: below 1 the node is quicker.
    pub(super) p50: Ratio,
    /// Latency that 1 % exceed.
    pub(super) p99: Ratio,
}

/// The node beside `other` in every cell that both have.
pub(super) fn compare(rows: &[Row], other: ServerKind) -> Vec<Comparison> {
    let mut cells: Vec<Cell> = Vec::new();
    for row in rows {
        if !cells.contains(&row.cell) {
            cells.push(row.cell);
        }
    }
    let comparisons = cells.into_iter().filter_map(|cell| {
        Some(Comparison {
            cell,
            other,
            throughput: ratio(rows, cell, other, Row::throughput)?,
            server_cpu: ratio(rows, cell, other, Row::server_cpu_us)?,
            p50: ratio(rows, cell, other, |row| row.p50_ns as f64)?,
            p99: ratio(rows, cell, other, |row| row.p99_ns as f64)?,
        })
    });
    comparisons.collect()
}

fn ratio(rows: &[Row], cell: Cell, other: ServerKind, value: fn(&Row) -> f64) -> Option<Ratio> {
    let of = |server: ServerKind| rows.iter().filter(move |row| row.cell == cell && row.server == server);
    let ratios: Vec<f64> = of(ServerKind::Ringbase)
        .filter_map(|row| {
            let beside = of(other).find(|beside| beside.round == row.round)?;
            Some(value(row) / value(beside))
        })
        .collect();
    Some(Ratio {
        median: median(ratios.iter().copied())?,
        lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
        highest: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::traffic::{KeyChoice, Mix};

    pub(in super::super) fn cell(depth: usize, mix: Mix) -> Cell {
        Cell { cores: 1, value_bytes: 100, connections: 50, depth, mix, keys: KeyChoice::Zipfian }
    }

    pub(in super::super) fn row(round: u32, cell: Cell, server: ServerKind, operations: u64) -> Row {
        Row {
            round,
            cell,
            server,
            seconds: 2.0,
            operations,
            gets: operations,
            whole_values: operations / 64,
            refused: 0,
            server_cpu_seconds: 1.0,
            client_cpu_seconds: 0.5,
            p50_ns: 10_000,
            p99_ns: 20_000,
            p999_ns: 30_000,
            max_ns: 40_000,
        }
    }

    /// RUNTIME.md §1: ratios inside one round are what to trust.
    #[test]
    fn servers_are_compared_within_a_round_and_the_spread_is_kept() {
        let cell = cell(16, Mix::Get);
        let rows = [
            row(1, cell, ServerKind::Ringbase, 100),
            row(1, cell, ServerKind::Memcached, 200),
            row(2, cell, ServerKind::Ringbase, 3000),
            row(2, cell, ServerKind::Memcached, 2000),
            row(3, cell, ServerKind::Ringbase, 30),
            row(3, cell, ServerKind::Memcached, 40),
        ];
        let comparisons = compare(&rows, ServerKind::Memcached);
        assert_eq!(comparisons.len(), 1);
        assert_eq!(comparisons[0].throughput, Ratio { median: 0.75, lowest: 0.5, highest: 1.5 });
        assert_eq!(comparisons[0].p99, Ratio { median: 1.0, lowest: 1.0, highest: 1.0 });
        assert!((comparisons[0].server_cpu.median - 40.0 / 30.0).abs() < 1e-9);
        assert!(compare(&rows, ServerKind::Echo).is_empty());
    }

    #[test]
    fn a_summary_has_the_medians_of_its_runs_and_cells_stay_in_order() {
        let (first, second) = (cell(16, Mix::Set), cell(1, Mix::Get));
        let rows = [
            row(1, first, ServerKind::Ringbase, 100),
            row(1, second, ServerKind::Ringbase, 7),
            row(2, first, ServerKind::Ringbase, 400),
            row(3, first, ServerKind::Ringbase, 200),
        ];
        let summaries = summarize(&rows);
        assert_eq!(summaries.iter().map(|summary| summary.cell).collect::<Vec<_>>(), [first, second]);
        let Summary { runs, throughput, lowest, highest, server_cpu_us, p99_us, .. } = summaries[0];
        assert_eq!((runs, throughput, lowest, highest), (3, 100.0, 50.0, 200.0));
        assert_eq!((server_cpu_us, p99_us), (5_000.0, 20.0));
    }

    #[test]
    fn every_line_of_a_csv_has_as_many_fields_as_its_head() {
        let memory = MemoryRow {
            cores: 1,
            value_bytes: 100,
            server: ServerKind::Memcached,
            documents: 1000,
            before_bytes: 5_000_000,
            half_bytes: 5_010_000,
            after_bytes: 5_105_000,
        };
        assert_eq!((memory.item_bytes(), memory.overhead_bytes()), (190.0, 70.0));
        assert_eq!(memory.whole_bytes(), 5105.0);
        let raw = raw_csv(&[row(1, cell(16, Mix::Mixed), ServerKind::Ringbase, 100)]);
        for csv in [raw, memory_csv(&[memory])] {
            let fields: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
            assert_eq!(fields.len(), 2, "{csv}");
            assert_eq!(fields[0], fields[1], "{csv}");
        }
    }
}
