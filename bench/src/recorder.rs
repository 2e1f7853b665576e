//! Histograms: made, read from a node's statistics, written as `.hgrm`.
//!
//! Invariants
//! - A sample beyond the range counts as the greatest value there is, never gets lost.
//!
//! Does not know: what was measured.

use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::Deserialize;

/// Greatest value that is told apart: a minute in nanoseconds.
const VALUE_MAX: u64 = 60_000_000_000;

/// Rows of a percentile table for each halving of the distance to 100 %.
const STEPS: u32 = 5;

/// An empty histogram of nanoseconds, three digits precise.
///
/// # Panics
/// Never: the bounds are constants that fit.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, VALUE_MAX, 3).expect("constant bounds are valid")
}

/// A histogram in a node's statistics.
#[derive(Deserialize)]
struct StatHistogram {
    /// Upper bound, samples, cumulative percentile.
    data: Vec<(u64, u64, f64)>,
}

/// Reads a histogram of a node's statistics; each sample counts as the upper bound of its row.
pub(crate) fn from_stat_json(json: &str) -> Option<Histogram<u64>> {
    let stat: StatHistogram = serde_json::from_str(json).ok()?;
    let mut samples = histogram();
    for (upper, count, _) in stat.data {
        samples.saturating_record_n(upper, count);
    }
    Some(samples)
}

/// Writes the percentile table that plotting tools for HDR histograms read; values are divided by `divisor`.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write_hgrm(samples: &Histogram<u64>, divisor: f64, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut total = 0;
    for step in samples.iter_quantiles(STEPS) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / divisor;
        let quantile = step.quantile_iterated_to();
        write!(out, "{value:>12.3} {quantile:>14.12} {total:>10}")?;
        if quantile < 1.0 {
            writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(out)?;
        }
    }
    let (mean, deviation) = (samples.mean() / divisor, samples.stdev() / divisor);
    writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
    let max = samples.max() as f64 / divisor;
    writeln!(out, "#[Max     = {max:>12.3}, Total count    = {:>12}]", samples.len())?;
    writeln!(
        out,
        "#[Buckets = {:>12}, SubBuckets     = {:>12}]",
        samples.buckets(),
        2 * 10_u32.pow(u32::from(samples.sigfig()))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_of_a_node_comes_back_with_its_samples_in_their_rows() {
        let json = r#"{"total":4,"bucketsLow":1,"data":[[10,3,75.0],[2000,1,100.0]],"overflowed":0}"#;
        let samples = from_stat_json(json).unwrap();
        assert_eq!(samples.len(), 4);
        assert_eq!(samples.value_at_quantile(0.5), 10);
        assert!((2000..2010).contains(&samples.max()));
        assert!(from_stat_json("12").is_none());
    }

    #[test]
    fn the_percentile_table_rises_to_the_maximum_and_counts_every_sample() {
        let mut samples = histogram();
        (1..=1000).for_each(|value| samples.saturating_record(value * 1000));
        let mut text = Vec::new();
        write_hgrm(&samples, 1000.0, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let rows: Vec<Vec<f64>> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .skip(2)
            .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
            .collect();
        assert!(rows.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][2] <= pair[1][2]));
        let last = rows.last().unwrap();
        assert!((last[0] - 1000.0).abs() < 2.0 && last[1] == 1.0 && last[2] == 1000.0, "{last:?}");
        assert!(text.contains("Total count    =         1000"), "{text}");
    }

    #[test]
    fn a_sample_beyond_the_range_is_kept_as_the_greatest() {
        let mut samples = histogram();
        samples.saturating_record(u64::MAX);
        assert_eq!(samples.len(), 1);
        assert!(samples.max() >= VALUE_MAX);
    }
}
