//! Rows as measured, and their summary.
//!
//! Invariants
//! - A share of a ceiling compares runs of the same round, size of value, number of vbuckets and of connections; the median of these is shown.
//!
//! Does not know: how it was measured, tables.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Window;
use super::drain::Drained;
use crate::report::median;

/// What a stream spends its time on, as the node names it.
pub(super) const SPENT: [&str; 10] =
    ["running", "turn", "slot", "open", "device", "credit", "window", "socket", "memory", "up_to_date"];

/// What is in the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DataSet {
    pub(super) value_bytes: usize,
    pub(super) vbuckets: u16,
}

impl fmt::Display for DataSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B in {} vbuckets", self.value_bytes, self.vbuckets)
    }
}

/// How it is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) set: DataSet,
    pub(super) connections: usize,
    pub(super) window: Window,
}

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// From memory.
    Resident,
    /// From disk, nothing in the block cache, node just started.
    Cold,
    /// From disk, after a drain of the same documents.
    Warm,
    /// The same client with a plain writer of ready frames instead of the node.
    PlainWriter,
    /// A reader that looks at nothing, with the same writer.
    Loopback,
    /// Sequential reads through the storage ring.
    Device,
}

impl Kind {
    /// As in the tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Resident => "resident",
            Kind::Cold => "cold",
            Kind::Warm => "warm",
            Kind::PlainWriter => "ceiling: plain writer",
            Kind::Loopback => "ceiling: loopback",
            Kind::Device => "ceiling: device",
        }
    }

    /// Whether it is a node that is drained.
    pub(super) fn is_drain(self) -> bool {
        matches!(self, Kind::Resident | Kind::Cold | Kind::Warm)
    }

    /// What it cannot be faster than.
    fn ceilings(self) -> &'static [Kind] {
        match self {
            Kind::Resident | Kind::Warm => &[Kind::Loopback],
            Kind::Cold => &[Kind::Loopback, Kind::Device],
            Kind::PlainWriter | Kind::Loopback | Kind::Device => &[],
        }
    }
}

/// One run.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Which repetition, from 1.
    pub(super) round: u32,
    pub(super) kind: Kind,
    pub(super) cell: Cell,
    /// From the first request to the last stream's end.
    pub(super) seconds: f64,
    /// Until every connection had a document.
    pub(super) first_seconds: f64,
    pub(super) items: u64,
    pub(super) markers: u64,
    /// Bytes of messages on the wire, or of reads.
    pub(super) bytes: u64,
    /// CPU seconds of the node, or of the writers.
    pub(super) server_cpu_seconds: f64,
    pub(super) client_cpu_seconds: f64,
    /// Of the node afterwards.
    pub(super) resident_bytes: u64,
    /// What the streams together spent their time on.
    pub(super) spent_seconds: [f64; SPENT.len()],
}

impl Row {
    pub(super) fn new(round: u32, kind: Kind, cell: Cell) -> Row {
        Row {
            round,
            kind,
            cell,
            seconds: 0.0,
            first_seconds: 0.0,
            items: 0,
            markers: 0,
            bytes: 0,
            server_cpu_seconds: 0.0,
            client_cpu_seconds: 0.0,
            resident_bytes: 0,
            spent_seconds: [0.0; SPENT.len()],
        }
    }

    pub(super) fn of(round: u32, kind: Kind, cell: Cell, drained: &Drained) -> Row {
        Row {
            seconds: drained.elapsed.as_secs_f64(),
            first_seconds: drained.first.as_secs_f64(),
            items: drained.items,
            markers: drained.markers,
            bytes: drained.bytes,
            client_cpu_seconds: drained.client_cpu_seconds,
            ..Row::new(round, kind, cell)
        }
    }

    /// Megabytes (10⁶ bytes) a second.
    pub(super) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }
}

/// The runs of one kind and combination.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Summary {
    pub(super) kind: Kind,
    #[serde(skip)]
    pub(super) cell: Cell,
    pub(super) value_bytes: usize,
    pub(super) vbuckets: u16,
    pub(super) connections: usize,
    pub(super) window: String,
    pub(super) runs: usize,
    /// Medians.
    pub(super) seconds: f64,
    pub(super) first_seconds: f64,
    pub(super) megabytes_per_second: f64,
    pub(super) items_per_second: f64,
    /// Slowest and fastest run, megabytes a second.
    pub(super) lowest: f64,
    pub(super) highest: f64,
    /// Median of the ratios to the lowest ceiling of the same round.
    pub(super) share_of_ceiling: Option<f64>,
    /// Median of the ratios to the plain writer with the same client.
    pub(super) share_of_plain_writer: Option<f64>,
    /// Medians, in nanoseconds for each document.
    pub(super) server_cpu_ns: f64,
    pub(super) client_cpu_ns: f64,
    pub(super) resident_bytes: u64,
    /// Shares of the streams' time, by what it was spent on.
    pub(super) spent: BTreeMap<&'static str, f64>,
}

/// One summary for each kind and combination, data set by data set in the order of measurement.
pub(super) fn summarize(rows: &[Row]) -> Vec<Summary> {
    let mut groups: Vec<((Kind, Cell), Vec<&Row>)> = Vec::new();
    for row in rows {
        let key = (row.kind, row.cell);
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, group)) => group.push(row),
            None => groups.push((key, vec![row])),
        }
    }
    let mut sets: Vec<DataSet> = Vec::new();
    for row in rows {
        if !sets.contains(&row.cell.set) {
            sets.push(row.cell.set);
        }
    }
    let place = |set: DataSet| sets.iter().position(|other| *other == set);
    groups.sort_by_key(|((kind, cell), _)| (place(cell.set), *kind));
    groups.iter().map(|((kind, cell), group)| summary(rows, *kind, *cell, group)).collect()
}

/// Megabytes a second of the run of `kind` in the same round with the same data set, and as many connections where there are any.
fn rate_of(rows: &[Row], row: &Row, kind: Kind) -> Option<f64> {
    let same = |other: &&Row| {
        let connections = kind == Kind::Device || other.cell.connections == row.cell.connections;
        other.kind == kind && other.round == row.round && other.cell.set == row.cell.set && connections
    };
    rows.iter().find(same).map(Row::megabytes_per_second)
}

fn summary(rows: &[Row], kind: Kind, cell: Cell, group: &[&Row]) -> Summary {
    let middle = |value: &dyn Fn(&Row) -> f64| median(group.iter().map(|row| value(row))).unwrap_or_default();
    let rates = || group.iter().map(|row| row.megabytes_per_second());
    let ceiling_shares = group.iter().filter_map(|row| {
        let ceilings = kind.ceilings().iter().filter_map(|kind| rate_of(rows, row, *kind));
        ceilings.reduce(f64::min).map(|ceiling| row.megabytes_per_second() / ceiling)
    });
    let plain_shares = group.iter().filter_map(|row| {
        let plain = rate_of(rows, row, Kind::PlainWriter).filter(|_| kind.is_drain())?;
        Some(row.megabytes_per_second() / plain)
    });
    let spent_sum: f64 = group.iter().flat_map(|row| row.spent_seconds).sum();
    let spent = SPENT.iter().enumerate().filter_map(|(at, name)| {
        let part: f64 = group.iter().map(|row| row.spent_seconds[at]).sum();
        (part > 0.0).then(|| (*name, part / spent_sum))
    });
    let per_item = |seconds: f64, row: &Row| seconds * 1e9 / row.items.max(1) as f64;
    Summary {
        kind,
        cell,
        value_bytes: cell.set.value_bytes,
        vbuckets: cell.set.vbuckets,
        connections: cell.connections,
        window: cell.window.to_string(),
        runs: group.len(),
        seconds: middle(&|row| row.seconds),
        first_seconds: middle(&|row| row.first_seconds),
        megabytes_per_second: middle(&Row::megabytes_per_second),
        items_per_second: middle(&|row| row.items as f64 / row.seconds),
        lowest: rates().fold(f64::INFINITY, f64::min),
        highest: rates().fold(0.0, f64::max),
        share_of_ceiling: median(ceiling_shares),
        share_of_plain_writer: median(plain_shares),
        server_cpu_ns: middle(&|row| per_item(row.server_cpu_seconds, row)),
        client_cpu_ns: middle(&|row| per_item(row.client_cpu_seconds, row)),
        resident_bytes: group.iter().map(|row| row.resident_bytes).max().unwrap_or_default(),
        spent: spent.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(round: u32, kind: Kind, connections: usize, seconds: f64) -> Row {
        let set = DataSet { value_bytes: 100, vbuckets: 16 };
        Row {
            seconds,
            items: 1_000_000,
            bytes: 100_000_000,
            server_cpu_seconds: 0.5,
            spent_seconds: [3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
            ..Row::new(round, kind, Cell { set, connections, window: Window(0) })
        }
    }

    /// RUNTIME.md §1: ratios inside one round are what to trust.
    #[test]
    fn a_share_is_that_of_the_lowest_ceiling_of_the_same_round_and_connections() {
        let rows = [
            row(1, Kind::Device, 0, 0.25),
            row(1, Kind::Loopback, 1, 0.1),
            row(1, Kind::PlainWriter, 1, 0.4),
            row(1, Kind::Loopback, 8, 0.4),
            row(1, Kind::Cold, 1, 0.5),
            row(1, Kind::Cold, 8, 0.5),
            row(1, Kind::Resident, 1, 0.5),
        ];
        let summaries = summarize(&rows);
        let share = |kind: Kind, connections: usize| {
            let found = summaries.iter().find(|found| found.kind == kind && found.connections == connections);
            found.unwrap().share_of_ceiling
        };
        assert_eq!(share(Kind::Cold, 1), Some(0.5));
        assert_eq!(share(Kind::Cold, 8), Some(0.8));
        assert_eq!(share(Kind::Resident, 1), Some(0.2));
        assert_eq!(share(Kind::Device, 0), None);
        let cold = summaries.iter().find(|found| found.kind == Kind::Cold).unwrap();
        assert_eq!(cold.share_of_plain_writer, Some(0.8));
    }

    #[test]
    fn medians_cpu_of_a_document_and_shares_of_time_come_from_all_rounds() {
        let rows =
            [row(1, Kind::Resident, 1, 0.1), row(2, Kind::Resident, 1, 0.5), row(3, Kind::Resident, 1, 0.2)];
        let [summary] = &summarize(&rows)[..] else { panic!("one group") };
        assert_eq!((summary.runs, summary.seconds, summary.server_cpu_ns), (3, 0.2, 500.0));
        assert_eq!((summary.lowest.round(), summary.highest.round()), (200.0, 1000.0));
        assert_eq!(summary.items_per_second.round(), 5_000_000.0);
        assert_eq!(summary.spent, BTreeMap::from([("running", 0.75), ("window", 0.25)]));
    }
}
