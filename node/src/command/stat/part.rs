//! What one core says to a query, and how the parts of all cores become one.
//!
//! Invariants
//! - Names are unique; those about a vbucket come after the others, in the order of the vbuckets.
//!
//! Does not know: which names there are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;

use hdrhistogram::Histogram;
use ringbase_storage::types::VbId;

use super::histogram::{HistogramStat, Unit};

/// One statistic.
#[derive(Debug, Clone)]
pub enum StatValue {
    /// A number; the cores' numbers add up.
    Sum(u64),
    /// A number; the greatest of the cores' counts.
    Max(u64),
    /// A text that only one core says, or all say alike.
    Text(String),
    /// A histogram; the cores' samples add up.
    Histogram(Box<HistogramStat>),
}

/// Where a statistic stands in the answer, and how it is called there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    vb: Option<VbId>,
    rest: Cow<'static, str>,
}

/// Statistics by name.
#[derive(Debug, Clone, Default)]
pub struct StatPart {
    entries: BTreeMap<Name, StatValue>,
}

impl StatPart {
    /// Adds to a number that is added up over vbuckets, shards and cores.
    pub fn sum(&mut self, name: impl Into<Cow<'static, str>>, number: u64) {
        self.put(Name { vb: None, rest: name.into() }, StatValue::Sum(number));
    }

    /// Adds a number of which the greatest counts.
    pub fn max(&mut self, name: impl Into<Cow<'static, str>>, number: u64) {
        self.put(Name { vb: None, rest: name.into() }, StatValue::Max(number));
    }

    /// Adds a text.
    pub fn text(&mut self, name: impl Into<Cow<'static, str>>, text: impl Display) {
        self.put(Name { vb: None, rest: name.into() }, StatValue::Text(text.to_string()));
    }

    /// Adds a histogram.
    pub fn histogram(&mut self, name: impl Into<Cow<'static, str>>, histogram: &Histogram<u64>, unit: Unit) {
        let value = StatValue::Histogram(Box::new(HistogramStat::new(histogram.clone(), unit)));
        self.put(Name { vb: None, rest: name.into() }, value);
    }

    /// Adds `vb_<n>:<name>`, or `vb_<n>` if the name is empty.
    pub fn of_vbucket(&mut self, vb: VbId, name: impl Into<Cow<'static, str>>, value: impl Display) {
        self.put(Name { vb: Some(vb), rest: name.into() }, StatValue::Text(value.to_string()));
    }

    /// Takes in what another core says.
    pub fn absorb(&mut self, other: StatPart) {
        for (name, value) in other.entries {
            self.put(name, value);
        }
    }

    /// Whether anything is said about a vbucket.
    #[must_use]
    pub fn has_vbuckets(&self) -> bool {
        self.entries.keys().next_back().is_some_and(|name| name.vb.is_some())
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (String, &StatValue)> {
        self.entries.iter().map(|(name, value)| {
            let shown = match (name.vb, &*name.rest) {
                (None, rest) => rest.to_owned(),
                (Some(vb), "") => format!("vb_{vb}"),
                (Some(vb), rest) => format!("vb_{vb}:{rest}"),
            };
            (shown, value)
        })
    }

    /// The value with this name, as it is shown.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&StatValue> {
        self.iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    fn put(&mut self, name: Name, value: StatValue) {
        use std::collections::btree_map::Entry;
        match self.entries.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(value);
            }
            Entry::Occupied(mut entry) => match (entry.get_mut(), value) {
                (StatValue::Sum(sum), StatValue::Sum(number)) => *sum += number,
                (StatValue::Max(max), StatValue::Max(number)) => *max = (*max).max(number),
                (StatValue::Histogram(whole), StatValue::Histogram(part)) => whole.absorb(&part),
                (old, new) => *old = new,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(part: &StatPart) -> Vec<String> {
        part.iter()
            .map(|(name, value)| match value {
                StatValue::Sum(number) | StatValue::Max(number) => format!("{name}={number}"),
                StatValue::Text(text) => format!("{name}={text}"),
                StatValue::Histogram(histogram) => format!("{name}={}", histogram.to_json()),
            })
            .collect()
    }

    #[test]
    fn parts_of_several_cores_become_one_by_the_rule_of_each_value() {
        let core = |items: u64, slowest: u64, vb: u16| {
            let mut part = StatPart::default();
            part.sum("curr_items", items);
            part.sum("curr_items", 1);
            part.max("slowest", slowest);
            part.text("version", "1");
            part.of_vbucket(VbId(vb), "high_seqno", items);
            part.of_vbucket(VbId(vb), "", "active");
            part
        };
        let mut whole = core(10, 5, 10);
        whole.absorb(core(20, 3, 2));
        assert_eq!(
            shown(&whole),
            [
                "curr_items=32",
                "slowest=5",
                "version=1",
                "vb_2=active",
                "vb_2:high_seqno=20",
                "vb_10=active",
                "vb_10:high_seqno=10"
            ]
        );
    }

    #[test]
    fn histograms_of_several_cores_add_their_samples() {
        let core = |value| {
            let mut histogram = Histogram::<u64>::new_with_bounds(1, 1_000_000, 2).unwrap();
            histogram.record(value).unwrap();
            let mut part = StatPart::default();
            part.histogram("waits", &histogram, Unit::AsRecorded);
            part
        };
        let mut whole = core(10);
        whole.absorb(core(20));
        let Some(StatValue::Histogram(histogram)) = whole.get("waits") else { panic!() };
        assert!(histogram.to_json().starts_with("{\"total\":2,"));
    }
}
