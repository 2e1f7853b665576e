//! The files and the tables of `ringbench seqlist`.
//!
//! Does not know: how it was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::{Results, VALUE, Write};
use crate::error::BenchError;
use crate::plot::{Line, Plot};
use crate::report::{median, put, put_hgrm, quantiles, table};

/// Bytes of every key: a number.
const KEY_BYTES: usize = 8;

/// Writes the files into `out` and the tables or JSON to standard output.
pub(super) fn write(results: &Results, as_json: bool, out: &Path) -> Result<(), BenchError> {
    let text = summary(results);
    put(&out.join("raw.csv"), raw_csv(results).as_bytes())?;
    put(&out.join("summary.md"), text.as_bytes())?;
    put_hgrm(&out.join("open-ns.hgrm"), &results.long.open, 1.0)?;
    plot(results, &out.join("stale.svg"))?;
    if as_json {
        println!("{}", json(results));
    } else {
        print!("{text}");
    }
    eprintln!("raw.csv, summary.md, open-ns.hgrm and stale.svg are in {}", out.display());
    Ok(())
}

/// A row for each run of the writer, and one for each sample of the stale memory.
fn raw_csv(results: &Results) -> String {
    let mut csv =
        String::from("what,round,readers,moving,updates,seconds,ended,stale,stale_bytes,frozen_bytes\n");
    for write in &results.writes {
        let Write { round, readers, moving, updates, seconds, ended, stale } = write;
        writeln!(csv, "writer,{round},{readers},{moving},{updates},{seconds:.6},{ended},{stale},,")
            .expect("a string takes everything");
    }
    for sample in &results.stale {
        let super::Stale { updates, versions, bytes, frozen_bytes } = sample;
        writeln!(csv, "stale,,{},,{updates},,,{versions},{bytes},{frozen_bytes}", super::PERMANENT_READERS)
            .expect("a string takes everything");
    }
    csv
}

fn plot(results: &Results, path: &Path) -> Result<(), BenchError> {
    // Every tenth sample has a name.
    let positions: Vec<String> = results
        .stale
        .iter()
        .enumerate()
        .map(|(at, sample)| match at % 10 {
            9 => format!("{:.0}", sample.updates as f64 / results.keys as f64),
            _ => String::new(),
        })
        .collect();
    let line = |name: &str, bytes: fn(&super::Stale) -> u64| Line {
        name: name.to_owned(),
        points: results.stale.iter().map(|sample| bytes(sample) as f64 / 1e6).enumerate().collect(),
    };
    let lines = [
        line("stale versions", |sample| sample.bytes),
        line("what the standing reader can see of them", |sample| sample.frozen_bytes),
    ];
    let plot = Plot {
        title: "Stale memory with 8 permanent readers, one of which stands still",
        axis: "updates of each key, mean",
        unit: "MB",
        logarithmic: false,
        positions: &positions,
        lines: &lines,
    };
    plot.draw(path)
}

/// Runs of the same readers: their rates, in the order of the readers.
fn groups(writes: &[Write]) -> BTreeMap<(usize, bool), Vec<f64>> {
    let mut groups: BTreeMap<(usize, bool), Vec<f64>> = BTreeMap::new();
    for write in writes {
        groups.entry((write.readers, write.moving)).or_default().push(write.updates_per_second());
    }
    groups
}

/// Medians of the ratios to the run without readers of the same round.
fn shares(writes: &[Write]) -> BTreeMap<(usize, bool), f64> {
    let mut ratios: BTreeMap<(usize, bool), Vec<f64>> = BTreeMap::new();
    for write in writes {
        let alone = writes.iter().find(|other| other.readers == 0 && other.round == write.round);
        if let Some(alone) = alone {
            let ratio = write.updates_per_second() / alone.updates_per_second();
            ratios.entry((write.readers, write.moving)).or_default().push(ratio);
        }
    }
    ratios.into_iter().filter_map(|(variant, ratios)| Some((variant, median(ratios)?))).collect()
}

fn writes_table(writes: &[Write]) -> String {
    let shares = shares(writes);
    let rows: Vec<[String; 6]> = groups(writes)
        .iter()
        .map(|(variant, rates)| {
            let (readers, moving) = *variant;
            let what = match (readers, moving) {
                (0, _) => "none".to_owned(),
                (_, true) => format!("{readers} reading on another thread"),
                (_, false) => format!("{readers} standing still"),
            };
            let stale = writes.iter().filter(|write| (write.readers, write.moving) == *variant);
            [
                what,
                format!("{:.0}", median(rates.iter().copied()).unwrap_or_default()),
                format!("{:.0}", rates.iter().copied().fold(f64::INFINITY, f64::min)),
                format!("{:.0}", rates.iter().copied().fold(0.0, f64::max)),
                shares.get(variant).map_or_else(String::new, |share| format!("{:.0} %", share * 100.0)),
                stale.map(|write| write.stale).max().unwrap_or_default().to_string(),
            ]
        })
        .collect();
    table(["readers", "updates/s", "lowest", "highest", "of none", "stale at the end, most"], &rows)
}

/// Bytes of the list, and of all, by the accounts and by the system, for each version of the long list.
fn bytes_per_version(results: &Results) -> [f64; 3] {
    let long = &results.long;
    [long.list_bytes, long.accounted_bytes, long.resident_bytes]
        .map(|bytes| bytes as f64 / long.versions as f64)
}

fn summary(results: &Results) -> String {
    let long = &results.long;
    let micros =
        |quantile: f64, of: &hdrhistogram::Histogram<u64>| of.value_at_quantile(quantile) as f64 / 1e3;
    let [list, accounted, resident] = bytes_per_version(results);
    let last = results.stale.last();
    let most = results.stale.iter().map(|sample| sample.bytes).max().unwrap_or_default();
    let megabytes = |bytes: Option<u64>| bytes.unwrap_or_default() as f64 / 1e6;
    let (updates, kept) = results.distant;
    let rows = [
        ["open a reader, median µs".to_owned(), format!("{:.2}", micros(0.5, &long.open))],
        ["open a reader, p99 µs".to_owned(), format!("{:.2}", micros(0.99, &long.open))],
        ["open and first version, median µs".to_owned(), format!("{:.2}", micros(0.5, &long.first))],
        ["open and first version, p99 µs".to_owned(), format!("{:.2}", micros(0.99, &long.first))],
        ["bytes of list per version".to_owned(), format!("{list:.2}")],
        ["bytes of all per version, accounted".to_owned(), format!("{accounted:.1}")],
        ["bytes of all per version, resident".to_owned(), format!("{resident:.1}")],
        ["bytes of key and value".to_owned(), (KEY_BYTES + VALUE.len()).to_string()],
        ["stale MB at the end".to_owned(), format!("{:.2}", megabytes(last.map(|last| last.bytes)))],
        ["stale MB, most".to_owned(), format!("{:.2}", megabytes(Some(most)))],
        [
            "of it seen by the standing reader".to_owned(),
            format!("{:.2}", megabytes(last.map(|last| last.frozen_bytes))),
        ],
        [format!("stale after {updates} updates between distant readers"), kept.to_string()],
    ];
    format!(
        "{}; {}.\n\n\
         A list of {} versions, filled in {:.1} s, 20000 readers opened at random seqnos; {} keys updated with {} permanent readers.\n\n{}\n\
         Updates of one thread, medians; the share is the median of the ratios inside a round:\n\n{}",
        results.machine.ran(),
        results.machine.load(),
        long.versions,
        long.fill_seconds,
        results.keys,
        super::PERMANENT_READERS,
        table(["what", "found"], &rows),
        writes_table(&results.writes)
    )
}

fn json(results: &Results) -> Value {
    let (long, [list, accounted, resident]) = (&results.long, bytes_per_version(results));
    json!({
        "machine": results.machine,
        "long": {
            "versions": long.versions,
            "fill_seconds": long.fill_seconds,
            "open": quantiles(&long.open),
            "open_and_first": quantiles(&long.first),
            "list_bytes_per_version": list,
            "accounted_bytes_per_version": accounted,
            "resident_bytes_per_version": resident,
        },
        "stale": { "keys": results.keys, "readers": super::PERMANENT_READERS, "samples": results.stale },
        "distant": { "updates": results.distant.0, "stale": results.distant.1 },
        "writes": results.writes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(round: u32, readers: usize, moving: bool, seconds: f64) -> Write {
        Write { round, readers, moving, updates: 1_000, seconds, ended: 0, stale: 3 }
    }

    #[test]
    fn the_share_of_a_run_is_that_of_the_run_without_readers_in_its_round() {
        let writes =
            [run(1, 0, false, 1.0), run(1, 8, true, 2.0), run(2, 0, false, 10.0), run(2, 8, true, 20.0)];
        assert_eq!(shares(&writes)[&(8, true)], 0.5);
        assert_eq!(shares(&writes)[&(0, false)], 1.0);
        let text = writes_table(&writes);
        assert!(text.contains("8 reading on another thread") && text.contains("50 %"), "{text}");
    }
}
