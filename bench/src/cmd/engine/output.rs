//! The files and tables of `ringbench engine`.
//!
//! Does not know: how it was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::measure::{Phase, Row};
use super::{Ceiling, Found, Layout, PROBE_BLOCK_BYTES, PROBE_READ_BYTES, Results, ringbase};
use crate::error::BenchError;
use crate::plot::{Line, Plot};
use crate::report::{median, put, put_hgrm, quantiles, table};

/// Writes raw.csv, summary.md, histograms and plots into `out`.
pub(super) fn write(results: &Results, out: &Path) -> Result<(), BenchError> {
    fs::create_dir_all(out).map_err(BenchError::file("make", out))?;
    put(&out.join("raw.csv"), raw_csv(results).as_bytes())?;
    put(&out.join("summary.md"), summary(results).as_bytes())?;
    for found in results.found.iter().filter(|found| found.row.round == 1) {
        if let Some(latency) = &found.row.latency {
            let name = format!("{}-{}-us.hgrm", label(found), found.row.phase.name());
            put_hgrm(&out.join(name.replace(", ", "-").replace(' ', "-")), latency, 1000.0)?;
        }
    }
    use Phase::{DocumentsCold, KeysCold, KeysWarm, Reads1, Reads8, Reads32, SeqnosCold};
    let scans = [KeysCold, KeysWarm, SeqnosCold, DocumentsCold];
    plot(results, "Scans", "MB/s", &scans, &out.join("scans.svg"))?;
    plot(results, "Random reads from cold", "reads/s", &[Reads1, Reads8, Reads32], &out.join("reads.svg"))
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

/// The engine, and its layout if that is not the one of all.
fn label(found: &Found) -> String {
    match found.layout {
        Layout::BodiesBySeqno => found.row.engine.to_owned(),
        Layout::BodiesByKey => format!("{}, bodies by key", found.row.engine),
    }
}

fn raw_csv(results: &Results) -> String {
    let mut csv = String::from(
        "round,engine,layout,phase,seconds,records,bytes,rate,cpu_seconds,read_bytes,written_bytes,disk_bytes,resident_bytes,p50_ns,p99_ns\n",
    );
    for Found { layout, row } in &results.found {
        let layout = if *layout == Layout::BodiesByKey { "bodies by key" } else { "bodies by seqno" };
        let Row { round, engine, phase, seconds, records, bytes, cpu_seconds, .. } = row;
        let Row { read_bytes, written_bytes, disk_bytes, resident_bytes, .. } = row;
        let quantile = |quantile| {
            let latency = row.latency.as_ref();
            latency.map_or_else(String::new, |latency| latency.value_at_quantile(quantile).to_string())
        };
        writeln!(
            csv,
            "{round},{engine},{layout},{},{seconds:.6},{records},{bytes},{:.1},{cpu_seconds:.6},{read_bytes},{written_bytes},\
             {disk_bytes},{resident_bytes},{},{}",
            phase.name().replace(',', ""),
            row.rate(),
            quantile(0.5),
            quantile(0.99)
        )
        .expect("a string takes everything");
    }
    for Ceiling { round, is_sequential, bytes, depth, rate } in &results.ceilings {
        let what = if *is_sequential { "sequential" } else { "random" };
        writeln!(csv, "{round},device,,{what} reads of {bytes} depth {depth},,,,{rate:.1},,,,,,,")
            .expect("a string takes everything");
    }
    csv
}

/// The rows of one engine and phase.
struct Group<'a> {
    phase: Phase,
    label: String,
    rows: Vec<&'a Row>,
}

impl Group<'_> {
    fn middle(&self, value: impl Fn(&Row) -> f64) -> f64 {
        median(self.rows.iter().map(|row| value(row))).unwrap_or_default()
    }

    fn is_own(&self) -> bool {
        self.label == ringbase::NAME
    }
}

/// Phase by phase, engines in the order in which they were measured.
fn groups(results: &Results) -> Vec<Group<'_>> {
    let mut engines: Vec<String> = Vec::new();
    let mut groups: BTreeMap<(Phase, usize), Vec<&Row>> = BTreeMap::new();
    for found in &results.found {
        let label = label(found);
        let place = engines.iter().position(|known| *known == label).unwrap_or_else(|| {
            engines.push(label);
            engines.len() - 1
        });
        groups.entry((found.row.phase, place)).or_default().push(&found.row);
    }
    groups
        .into_iter()
        .map(|((phase, place), rows)| Group { phase, label: engines[place].clone(), rows })
        .collect()
}

/// Which ceilings are meant.
fn is_ceiling(ceiling: &Ceiling, is_sequential: bool, bytes: usize, depth: u32) -> bool {
    ceiling.is_sequential == is_sequential
        && (is_sequential || (ceiling.bytes, ceiling.depth) == (bytes, depth))
}

/// What a phase could have in this round, in its unit.
fn ceiling(results: &Results, row: &Row) -> Option<f64> {
    let (is_sequential, depth) = match row.phase {
        Phase::KeysCold | Phase::SeqnosCold => (true, 0),
        Phase::Reads1 => (false, 1),
        Phase::Reads8 => (false, 8),
        Phase::Reads32 => (false, 32),
        _ => return None,
    };
    let mut of_round = results.ceilings.iter().filter(|ceiling| ceiling.round == row.round);
    let found = of_round.find(|ceiling| is_ceiling(ceiling, is_sequential, PROBE_READ_BYTES, depth));
    found.map(|ceiling| ceiling.rate)
}

/// The store of this project against the best peer in one layout.
#[derive(Debug, Serialize)]
struct Comparison {
    phase: Phase,
    layout: Layout,
    own: f64,
    peer: String,
    best: f64,
    /// Median of the ratios of single rounds.
    ratio: f64,
    lowest: f64,
    highest: f64,
    wanted: Option<f64>,
}

fn comparisons(results: &Results) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for layout in [Layout::BodiesBySeqno, Layout::BodiesByKey] {
        let of_layout = |group: &&Group<'_>| {
            let is_by_key = group.label.ends_with("bodies by key");
            !group.is_own() && is_by_key == (layout == Layout::BodiesByKey)
        };
        let groups = groups(results);
        for own in groups.iter().filter(|group| group.is_own()) {
            let peers: Vec<&Group<'_>> =
                groups.iter().filter(|group| group.phase == own.phase).filter(of_layout).collect();
            let rate = |group: &Group<'_>| group.middle(Row::rate);
            let Some(best) = peers.iter().max_by(|a, b| rate(a).total_cmp(&rate(b))) else { continue };
            let best_of = |round: u32| {
                let rows = peers.iter().flat_map(|peer| &peer.rows).filter(|row| row.round == round);
                rows.map(|row| row.rate()).fold(0.0, f64::max)
            };
            let ratios: Vec<f64> = own.rows.iter().map(|row| row.rate() / best_of(row.round)).collect();
            comparisons.push(Comparison {
                phase: own.phase,
                layout,
                own: rate(own),
                peer: best.label.clone(),
                best: rate(best),
                ratio: median(ratios.iter().copied()).unwrap_or_default(),
                lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
                highest: ratios.iter().copied().fold(0.0, f64::max),
                wanted: own.phase.wanted().filter(|_| layout == Layout::BodiesBySeqno),
            });
        }
    }
    comparisons
}

fn unit(phase: Phase) -> &'static str {
    if phase.is_in_bytes() { "MB/s" } else { "/s" }
}

fn comparison_row(comparison: &Comparison) -> [String; 8] {
    let Comparison { phase, own, peer, best, ratio, lowest, highest, wanted, .. } = comparison;
    [
        phase.name().to_owned(),
        unit(*phase).to_owned(),
        format!("{own:.0}"),
        format!("{best:.0}"),
        peer.clone(),
        format!("{ratio:.2}"),
        format!("{lowest:.2}–{highest:.2}"),
        wanted.map_or_else(String::new, |wanted| {
            format!("{wanted:.1} {}", if *ratio >= wanted { "met" } else { "missed" })
        }),
    ]
}

const COLUMNS: [&str; 11] = [
    "what",
    "engine",
    "unit",
    "rate",
    "lowest–highest",
    "of device",
    "CPU us/record",
    "read/record B",
    "p50 us",
    "p99 us",
    "RSS MiB",
];

fn group_row(results: &Results, group: &Group<'_>) -> [String; 11] {
    let rates = || group.rows.iter().map(|row| row.rate());
    let shares = group.rows.iter().filter_map(|row| Some(row.rate() / ceiling(results, row)?));
    let of_record = |value: fn(&Row) -> f64| group.middle(|row| value(row) / row.records.max(1) as f64);
    let micros = |quantile: f64| {
        let values = group.rows.iter().filter_map(|row| row.latency.as_ref());
        let values = values.map(|latency| latency.value_at_quantile(quantile) as f64 / 1e3);
        median(values).map_or_else(String::new, |value| format!("{value:.0}"))
    };
    [
        group.phase.name().to_owned(),
        group.label.clone(),
        unit(group.phase).to_owned(),
        format!("{:.0}", group.middle(Row::rate)),
        format!("{:.0}–{:.0}", rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max)),
        median(shares).map_or_else(String::new, |share| format!("{:.0} %", share * 100.0)),
        format!("{:.2}", of_record(|row| row.cpu_seconds * 1e6)),
        format!("{:.0}", of_record(|row| row.read_bytes as f64)),
        micros(0.5),
        micros(0.99),
        format!("{}", group.rows.iter().map(|row| row.resident_bytes).max().unwrap_or_default() >> 20),
    ]
}

/// What writing costs: bytes on disk for a byte of documents, bytes written for one.
fn space_row(results: &Results, group: &Group<'_>) -> [String; 5] {
    let live = results.data_bytes() as f64;
    [
        group.phase.name().to_owned(),
        group.label.clone(),
        format!("{:.1}", group.middle(|row| row.seconds)),
        format!("{:.2}", group.middle(|row| row.written_bytes as f64 / row.bytes.max(1) as f64)),
        format!("{:.2}", group.middle(|row| row.disk_bytes as f64 / live)),
    ]
}

fn ceilings_text(results: &Results) -> String {
    let middle = |is_sequential: bool, bytes: usize, depth: u32| {
        let of = results.ceilings.iter().filter(|ceiling| is_ceiling(ceiling, is_sequential, bytes, depth));
        median(of.map(|ceiling| ceiling.rate)).unwrap_or_default()
    };
    let [one, eight, deep] = [1, 8, 32].map(|depth| middle(false, PROBE_READ_BYTES, depth));
    format!(
        "The device gives {:.0} MB/s of long sequential reads; {one:.0}, {eight:.0} and {deep:.0} random reads of 4 KiB a second at depth 1, 8 and 32; {:.0} of {} KiB, \
         which the store's blocks of documents have, at depth 32.",
        middle(true, 0, 0),
        middle(false, PROBE_BLOCK_BYTES, 32),
        PROBE_BLOCK_BYTES >> 10
    )
}

fn summary(results: &Results) -> String {
    let Results { machine, documents, key_bytes, value_bytes, cache_bytes, extent, rounds, missing, .. } =
        results;
    let groups = groups(results);
    let compared: Vec<_> = comparisons(results).iter().map(comparison_row).collect();
    let all: Vec<_> = groups.iter().map(|group| group_row(results, group)).collect();
    let is_settled = |group: &&Group<'_>| matches!(group.phase, Phase::LoadSettled | Phase::ChurnSettled);
    let space: Vec<_> = groups.iter().filter(is_settled).map(|group| space_row(results, group)).collect();
    let mut text = format!(
        "{}, {}; {}.\n\n{documents} documents, keys of {key_bytes} and values of {value_bytes} bytes, {:.0} MB, written in batches of {}, each durable before the \
         next; {:.0} MB of memory for what was read. Rounds: {rounds}. Scans by key bring {} documents, a pass of reads {} (an eighth at depth 1), \
         overwrites {}. {}\n",
        machine.ran(),
        machine.file_system,
        machine.load(),
        results.data_bytes() as f64 / 1e6,
        extent.batch,
        *cache_bytes as f64 / 1e6,
        extent.range,
        extent.reads,
        extent.overwrites,
        ceilings_text(results)
    );
    if !missing.is_empty() {
        let features = missing.join(" and ");
        writeln!(text, "\nNot all peers are built in: features {features} add them.")
            .expect("a string takes everything");
    }
    if !compared.is_empty() {
        let columns = [
            "ringbase against the best peer",
            "unit",
            "ringbase",
            "peer",
            "which",
            "ratio",
            "spread",
            "wanted",
        ];
        write!(text, "\n{}", table(columns, &compared)).expect("a string takes everything");
    }
    let columns = ["what", "engine", "seconds", "written/byte", "on disk/byte"];
    write!(text, "\n{}\n{}", table(COLUMNS, &all), table(columns, &space))
        .expect("a string takes everything");
    text
}

fn as_value(results: &Results) -> Value {
    let rows: Vec<Value> = results
        .found
        .iter()
        .map(|found| {
            let mut row = json!(found);
            row["rate"] = json!(found.row.rate());
            row["latency"] = found.row.latency.as_ref().map_or(Value::Null, quantiles);
            row
        })
        .collect();
    json!({
        "machine": results.machine,
        "documents": results.documents,
        "key_bytes": results.key_bytes,
        "value_bytes": results.value_bytes,
        "cache_bytes": results.cache_bytes,
        "ceilings": results.ceilings,
        "comparisons": comparisons(results),
        "rows": rows,
        "features_missing": results.missing,
    })
}

fn plot(results: &Results, title: &str, unit: &str, phases: &[Phase], path: &Path) -> Result<(), BenchError> {
    let mut lines: Vec<Line> = Vec::new();
    for group in groups(results) {
        let Some(at) = phases.iter().position(|phase| *phase == group.phase) else { continue };
        let point = (at, group.middle(Row::rate));
        match lines.iter_mut().find(|line| line.name == group.label) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: group.label.clone(), points: vec![point] }),
        }
    }
    let mut device = Line { name: "device".into(), points: Vec::new() };
    for (at, phase) in phases.iter().enumerate() {
        let rows = results.found.iter().map(|found| &found.row).filter(|row| row.phase == *phase);
        device.points.extend(median(rows.filter_map(|row| ceiling(results, row))).map(|rate| (at, rate)));
    }
    lines.push(device);
    let positions: Vec<String> = phases.iter().map(|phase| phase.name().to_owned()).collect();
    Plot { title, axis: "", unit, logarithmic: true, positions: &positions, lines: &lines }.draw(path)
}

#[cfg(test)]
mod tests {
    use super::super::Extent;
    use super::*;
    use crate::machine::Machine;

    fn found(round: u32, engine: &'static str, phase: Phase, seconds: f64) -> Found {
        let row = Row {
            round,
            engine,
            phase,
            seconds,
            records: 1000,
            bytes: 100_000_000,
            cpu_seconds: 0.5,
            read_bytes: 1,
            written_bytes: 300_000_000,
            disk_bytes: 150_000_000,
            resident_bytes: 1 << 20,
            latency: None,
        };
        Found { layout: Layout::BodiesBySeqno, row }
    }

    fn results(found: Vec<Found>) -> Results {
        let extent = Extent { batch: 10, reads: 10, range: 10, seqnos: 1000, overwrites: 0 };
        Results {
            machine: Machine::look(Path::new(".")),
            documents: 1_000_000,
            key_bytes: 20,
            value_bytes: 80,
            cache_bytes: 1 << 20,
            extent,
            rounds: 2,
            ceilings: vec![Ceiling {
                round: 1,
                is_sequential: true,
                bytes: 262_144,
                depth: 16,
                rate: 1000.0,
            }],
            found,
            missing: vec!["peers"],
        }
    }

    #[test]
    fn a_ratio_is_to_the_best_peer_of_the_same_round_and_says_whether_it_is_enough() {
        let results = results(vec![
            found(1, "ringbase", Phase::KeysCold, 1.0),
            found(1, "lmdb", Phase::KeysCold, 2.5),
            found(1, "redb", Phase::KeysCold, 10.0),
            found(2, "ringbase", Phase::KeysCold, 10.0),
            found(2, "lmdb", Phase::KeysCold, 25.0),
            found(1, "ringbase", Phase::Load, 1.0),
        ]);
        let compared = comparisons(&results);
        assert_eq!(compared.len(), 1, "nothing to compare a load with");
        assert_eq!((compared[0].ratio, &compared[0].peer[..]), (2.5, "lmdb"));
        let row = comparison_row(&compared[0]);
        assert_eq!(row[5..], ["2.50", "2.50–2.50", "2.0 met"].map(str::to_owned));
        let text = summary(&results);
        assert!(text.contains("features peers add them") && text.contains("10 %"), "{text}");
    }

    #[test]
    fn every_line_of_the_csv_has_as_many_fields_as_its_head() {
        let csv = raw_csv(&results(vec![found(1, "ringbase", Phase::LoadSettled, 1.0)]));
        let fields: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(fields, [15, 15, 15]);
    }

    #[test]
    fn space_and_writing_are_counted_for_a_byte_of_documents() {
        let results = results(vec![found(1, "ringbase", Phase::LoadSettled, 1.0)]);
        let row = space_row(&results, &groups(&results)[0]);
        assert_eq!(row[2..], ["1.0", "3.00", "1.50"].map(str::to_owned));
    }
}
