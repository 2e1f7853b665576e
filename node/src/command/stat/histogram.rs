//! Histograms as statistics: one JSON object, or one line a bucket for old tools.
//!
//! `{"total":N,"bucketsLow":L,"data":[[upper bound, count, cumulative percentile],...],"overflowed":0,"overflowed_sum":0,
//! "max_trackable":M}`. The rows follow the percentiles in five steps for each halving of the distance to 100 %.
//!
//! Does not know: what was measured.
//! Source: KV statistics, histograms.

use std::fmt::Write;

use hdrhistogram::Histogram;

/// Steps a halving of the distance to 100 %.
const STEPS: u32 = 5;

/// What the numbers of a histogram become when they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// They stay; the name says their unit.
    AsRecorded,
    /// Recorded in nanoseconds, shown in microseconds.
    MicrosOfNanos,
}

impl Unit {
    fn divisor(self) -> u64 {
        match self {
            Unit::AsRecorded => 1,
            Unit::MicrosOfNanos => 1_000,
        }
    }
}

/// A histogram with the unit it is shown in.
#[derive(Debug, Clone)]
pub struct HistogramStat {
    samples: Histogram<u64>,
    unit: Unit,
}

/// A row: the bounds of a bucket, its samples, and the share of all samples up to its end.
struct Row {
    low: u64,
    high: u64,
    count: u64,
    percentile: f64,
}

impl HistogramStat {
    /// A histogram to be shown.
    #[must_use]
    pub fn new(samples: Histogram<u64>, unit: Unit) -> HistogramStat {
        HistogramStat { samples, unit }
    }

    /// Adds the samples of another core, which are in the same unit.
    pub fn absorb(&mut self, other: &HistogramStat) {
        self.samples += &other.samples;
    }

    /// How many samples there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.samples.len()
    }

    fn lowest(&self) -> u64 {
        if self.samples.is_empty() { 0 } else { self.samples.min() / self.unit.divisor() }
    }

    fn rows(&self) -> Vec<Row> {
        let divisor = self.unit.divisor();
        let mut rows: Vec<Row> = Vec::new();
        let mut low = self.lowest();
        for step in self.samples.iter_quantiles(STEPS) {
            let count = step.count_since_last_iteration();
            if count == 0 {
                continue;
            }
            let high = step.value_iterated_to() / divisor;
            let percentile = step.quantile() * 100.0;
            match rows.last_mut() {
                // Two buckets became one by the division.
                Some(last) if last.high == high => {
                    last.count += count;
                    last.percentile = percentile;
                }
                _ => rows.push(Row { low, high, count, percentile }),
            }
            low = high;
        }
        rows
    }

    /// The JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = format!("{{\"total\":{},\"bucketsLow\":{},\"data\":[", self.total(), self.lowest());
        for (index, row) in self.rows().iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let percentile = (row.percentile * 10_000.0).round() / 10_000.0;
            write!(json, "{comma}[{},{},{percentile:?}]", row.high, row.count)
                .expect("a string takes everything");
        }
        let max = self.samples.high() / self.unit.divisor();
        write!(json, "],\"overflowed\":0,\"overflowed_sum\":0,\"max_trackable\":{max}}}")
            .expect("a string takes everything");
        json
    }

    /// The lines of old tools: mean, then one for each bucket, then what did not fit.
    pub fn each_classic(&self, name: &str, put: &mut dyn FnMut(&str, &str)) {
        if self.samples.is_empty() {
            return;
        }
        let mean = self.samples.mean() / self.unit.divisor() as f64;
        put(&format!("{name}_mean"), &format!("{mean:.0}"));
        for row in self.rows() {
            put(&format!("{name}_{},{}", row.low, row.high), &row.count.to_string());
        }
        put(&format!("{name}_overflowed"), "0");
        put(&format!("{name}_maxTrackable"), &(self.samples.high() / self.unit.divisor()).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 2).unwrap();
        values.into_iter().for_each(|value| histogram.record(value).unwrap());
        histogram
    }

    #[test]
    fn an_empty_histogram_has_no_rows() {
        let json = HistogramStat::new(histogram([]), Unit::AsRecorded).to_json();
        assert_eq!(
            json,
            "{\"total\":0,\"bucketsLow\":0,\"data\":[],\"overflowed\":0,\"overflowed_sum\":0,\
             \"max_trackable\":60000000000}"
        );
    }

    #[test]
    fn the_rows_hold_every_sample_once_and_end_at_one_hundred_percent() {
        let stat = HistogramStat::new(histogram(1..=10_000), Unit::AsRecorded);
        let json: serde_json::Value = serde_json::from_str(&stat.to_json()).unwrap();
        let rows = json["data"].as_array().unwrap();
        assert_eq!(rows.iter().map(|row| row[1].as_u64().unwrap()).sum::<u64>(), 10_000);
        assert_eq!(rows.last().unwrap()[2], 100.0);
        assert!(rows.windows(2).all(|pair| {
            pair[0][0].as_u64() < pair[1][0].as_u64() && pair[0][2].as_f64() < pair[1][2].as_f64()
        }));
        assert!(rows.len() > 10);
    }

    #[test]
    fn nanoseconds_are_shown_as_microseconds_without_losing_samples() {
        let stat = HistogramStat::new(histogram([100, 200, 999, 1_000, 5_000_000]), Unit::MicrosOfNanos);
        let json: serde_json::Value = serde_json::from_str(&stat.to_json()).unwrap();
        assert_eq!(json["data"][0][0], 0);
        let counts: u64 = json["data"].as_array().unwrap().iter().map(|row| row[1].as_u64().unwrap()).sum();
        assert_eq!((counts, json["bucketsLow"].as_u64()), (5, Some(0)));
        assert_eq!(json["max_trackable"], 60_000_000);
    }

    #[test]
    fn old_tools_get_a_line_for_each_bucket() {
        let stat = HistogramStat::new(histogram([10, 10, 20]), Unit::AsRecorded);
        let mut lines = Vec::new();
        stat.each_classic("wait", &mut |name, value| lines.push(format!("{name}: {value}")));
        assert_eq!(
            lines,
            [
                "wait_mean: 13",
                "wait_10,10: 2",
                "wait_10,20: 1",
                "wait_overflowed: 0",
                "wait_maxTrackable: 60000000000"
            ]
        );
    }
}
