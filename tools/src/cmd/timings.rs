//! `ringctl timings`: the node's histograms as a table of percentiles, or as JSON.
//!
//! A histogram comes as `{"total":…,"bucketsLow":…,"data":[[upper bound, count, percentile],…],…}`; only buckets
//! that are not empty are in it. A percentile shown here is the upper bound of its bucket.
//!
//! Does not know: which histograms there are.
//! Source: statistics of the KV protocol, "Histograms".

use serde::Deserialize;
use serde_json::{Map, Value};

use super::connect;
use crate::args::{GlobalArgs, TimingsArgs};
use crate::failure::Failure;
use crate::output::{print, print_json, write_table};

/// The percentiles that are shown, with their names in JSON.
const PERCENTILES: [(f64, &str); 5] =
    [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99.9"), (100.0, "max")];

/// What a histogram says.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Histogram {
    total: u64,
    data: Vec<(u64, u64, f64)>,
    #[serde(default)]
    overflowed: u64,
}

impl Histogram {
    /// The upper bound of the bucket in which this percentile of the samples is reached; `None` without
    /// samples.
    pub(super) fn percentile(&self, percentile: f64) -> Option<u64> {
        let samples: u64 = self.data.iter().map(|(_, count, _)| count).sum();
        let rank = ((percentile / 100.0 * samples as f64).ceil() as u64).max(1);
        let mut seen = 0;
        self.data.iter().find_map(|(upper, count, _)| {
            seen += count;
            (seen >= rank).then_some(*upper)
        })
    }

    /// Samples, those too large for it too.
    pub(super) fn count(&self) -> u64 {
        self.total + self.overflowed
    }

    /// The samples that came after `earlier`, a state of the same histogram. Its buckets may end elsewhere, so a sample may be counted in the
    /// bucket above its own.
    pub(super) fn since(&self, earlier: &Histogram) -> Histogram {
        let (mut seen, mut seen_before, mut counted) = (0, 0, 0);
        let mut before = earlier.data.iter().peekable();
        let mut data = Vec::new();
        for (upper, count, share) in &self.data {
            seen += count;
            while let Some((_, count, _)) = before.next_if(|(other, _, _)| other <= upper) {
                seen_before += count;
            }
            let new = u64::saturating_sub(seen, seen_before).saturating_sub(counted);
            if new > 0 {
                counted += new;
                data.push((*upper, new, *share));
            }
        }
        let overflowed = self.overflowed.saturating_sub(earlier.overflowed);
        Histogram { total: counted, data, overflowed }
    }
}

pub(crate) fn run(global: &GlobalArgs, args: &TimingsArgs) -> Result<(), Failure> {
    let mut entries = connect(global)?.stat_texts("timings", b"")?;
    entries.retain(|(name, _)| args.name.as_ref().is_none_or(|part| name.contains(part.as_str())));
    if global.json {
        let histograms = entries.iter().map(|(name, text)| (name.clone(), with_percentiles(text)));
        return print_json(&Value::Object(histograms.collect::<Map<String, Value>>()));
    }
    let mut rows = vec![vec!["NAME".to_owned(), "COUNT".to_owned()]];
    rows[0].extend(PERCENTILES.map(|(_, name)| name.to_uppercase()));
    rows.extend(entries.iter().map(|(name, text)| row(name, text)));
    print(|out| write_table(out, &rows))
}

/// A line of the table; what is no histogram is shown as it came.
fn row(name: &str, text: &str) -> Vec<String> {
    let Ok(histogram) = serde_json::from_str::<Histogram>(text) else {
        return vec![name.to_owned(), text.to_owned()];
    };
    let mut row = vec![name.to_owned(), histogram.count().to_string()];
    row.extend(PERCENTILES.map(|(percentile, _)| match histogram.percentile(percentile) {
        Some(_) if percentile == 100.0 && histogram.overflowed > 0 => "above".to_owned(),
        Some(value) => value.to_string(),
        None => "-".to_owned(),
    }));
    row
}

/// The histogram with a member for each percentile.
fn with_percentiles(text: &str) -> Value {
    let Ok(mut value) = serde_json::from_str::<Value>(text) else { return text.into() };
    if let (Ok(histogram), Some(object)) = (serde_json::from_str::<Histogram>(text), value.as_object_mut()) {
        let found =
            PERCENTILES.map(|(percentile, name)| (name.to_owned(), histogram.percentile(percentile).into()));
        object.insert("percentiles".to_owned(), Value::Object(found.into_iter().collect()));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the protocol's description.
    const HISTOGRAM: &str = r#"{"total":1000,"bucketsLow":0,"data":[[100,150,15.0],[200,850,100.0]],
        "overflowed":0,"overflowed_sum":0,"max_trackable":60000000}"#;

    #[test]
    fn percentiles_are_the_upper_bounds_of_their_buckets() {
        let histogram: Histogram = serde_json::from_str(HISTOGRAM).unwrap();
        let found = [1.0, 15.0, 15.1, 50.0, 100.0].map(|percentile| histogram.percentile(percentile));
        assert_eq!(found, [Some(100), Some(100), Some(200), Some(200), Some(200)]);
        assert_eq!(row("get", HISTOGRAM), ["get", "1000", "200", "200", "200", "200", "200"]);
        assert_eq!(with_percentiles(HISTOGRAM)["percentiles"]["p50"], 200);
    }

    #[test]
    fn the_difference_of_two_states_is_what_came_between_them() {
        let of = |data: &str| serde_json::from_str(&format!(r#"{{"total":0,"data":{data}}}"#)).unwrap();
        let (earlier, later): (Histogram, Histogram) = (
            of("[[150,30,60.0],[300,20,100.0]]"),
            of("[[100,10,9.0],[200,50,50.0],[300,40,100.0],[900,5,100.0]]"),
        );
        let new = later.since(&earlier);
        assert_eq!(
            new.data.iter().map(|(upper, count, _)| (*upper, *count)).collect::<Vec<_>>(),
            [(100, 10), (200, 20), (300, 20), (900, 5)]
        );
        assert_eq!(
            (new.count(), new.percentile(100.0), later.since(&later).percentile(50.0)),
            (55, Some(900), None)
        );
    }

    #[test]
    fn an_empty_histogram_and_one_that_is_none_are_shown_as_such() {
        let empty = r#"{"total":0,"data":[]}"#;
        assert_eq!(row("x", empty), ["x", "0", "-", "-", "-", "-", "-"]);
        assert_eq!(row("x", "17"), ["x", "17"]);
        assert_eq!(with_percentiles("text"), "text");
    }
}
