//! The node's histograms as a table: percentiles of what it recorded about itself.
//!
//! A histogram comes as `{"total":…,"data":[[upper bound, count, percentile],…],…}`; a percentile shown is the upper bound
//! of its bucket.
//!
//! Does not know: which histograms there are.
//! Source: statistics of the KV protocol, "Histograms".

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::client::{ClientError, Connection};

/// The percentiles that are shown.
const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 100.0];

#[derive(Debug, Deserialize)]
struct Histogram {
    total: u64,
    data: Vec<(u64, u64, f64)>,
}

/// One line of the table.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Timing {
    pub(super) name: String,
    pub(super) count: u64,
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

impl Timing {
    fn of(name: &str, text: &str) -> Option<Timing> {
        let histogram: Histogram = serde_json::from_str(text).ok()?;
        let samples: u64 = histogram.data.iter().map(|(_, count, _)| count).sum();
        let percentile = |percentile: f64| {
            let rank = ((percentile / 100.0 * samples as f64).ceil() as u64).max(1);
            let mut seen = 0;
            histogram.data.iter().find_map(|(upper, count, _)| {
                seen += count;
                (seen >= rank).then_some(*upper)
            })
        };
        let [p50, p90, p99, max] = PERCENTILES.map(percentile);
        let (p50, p90, p99, max) = (p50?, p90?, p99?, max?);
        Some(Timing { name: name.to_owned(), count: histogram.total, p50, p90, p99, max })
    }
}

/// The histograms with samples, by name.
pub(super) fn timings(connection: &mut Connection) -> Result<Vec<Timing>, ClientError> {
    let stats = connection.stat_texts("timings", b"")?;
    let mut timings: Vec<Timing> = stats.iter().filter_map(|(name, value)| Timing::of(name, value)).collect();
    timings.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(timings)
}

/// The table.
pub(super) fn table(timings: &[Timing]) -> String {
    let width = timings.iter().map(|timing| timing.name.len()).max().unwrap_or(0).max(4);
    let mut text =
        format!("  {:width$} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "name", "count", "p50", "p90", "p99", "max");
    for Timing { name, count, p50, p90, p99, max } in timings {
        writeln!(text, "  {name:width$} {count:>9} {p50:>9} {p90:>9} {p99:>9} {max:>9}")
            .expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_upper_bounds_of_their_buckets_and_empty_histograms_are_left_out() {
        let timing =
            Timing::of("get", r#"{"total":1000,"data":[[100,150,15.0],[200,849,99.9],[900,1,100.0]]}"#);
        let expected = Timing { name: "get".to_owned(), count: 1000, p50: 200, p90: 200, p99: 200, max: 900 };
        assert_eq!(timing, Some(expected));
        assert_eq!(Timing::of("x", r#"{"total":0,"data":[]}"#), None);
        assert_eq!(Timing::of("x", "17"), None);
    }
}
