//! What a node says at one moment about streams, range scans and latencies.
//!
//! Does not know: what it was a moment ago.

use std::collections::BTreeMap;
use std::time::Instant;

use ringbase::client::{ClientError, Connection};

use crate::cmd::timings::Histogram;
use crate::dcp_stats::DcpStats;

/// A range scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scan {
    pub(super) vbucket: u16,
    pub(super) id: String,
    fields: BTreeMap<String, String>,
}

impl Scan {
    pub(super) fn text(&self, field: &str) -> &str {
        self.fields.get(field).map_or("", String::as_str)
    }

    pub(super) fn number(&self, field: &str) -> u64 {
        self.text(field).parse().unwrap_or_default()
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) dcp: DcpStats,
    pub(super) scans: Vec<Scan>,
    pub(super) histograms: BTreeMap<String, Histogram>,
    /// Backfills that read and that wait for their slot.
    pub(super) backfills: (u64, u64),
    /// Those that failed and are remembered.
    pub(super) failed_backfills: usize,
}

impl Sample {
    /// Asks the node.
    pub(super) fn ask(connection: &mut Connection) -> Result<Sample, ClientError> {
        let dcp = DcpStats::ask(connection)?;
        let mut group = |name| connection.stat_texts(name, b"");
        let (scans, backfills, timings) = (group("range-scans")?, group("backfills")?, group("timings")?);
        Ok(Sample::of(Instant::now(), dcp, scans, &backfills, timings))
    }

    pub(super) fn of(
        at: Instant,
        dcp: DcpStats,
        scans: Vec<(String, String)>,
        backfills: &[(String, String)],
        timings: Vec<(String, String)>,
    ) -> Sample {
        let mut by_id: BTreeMap<(u16, String), Scan> = BTreeMap::new();
        for (name, value) in scans {
            let mut parts = name.splitn(3, ':');
            let (vb, id, field) = (parts.next(), parts.next(), parts.next());
            let vb = vb.and_then(|vb| vb.strip_prefix("vb_")?.parse().ok());
            if let (Some(vbucket), Some(id), Some(field)) = (vb, id, field) {
                let scan = by_id.entry((vbucket, id.to_owned())).or_default();
                (scan.vbucket, scan.id) = (vbucket, id.to_owned());
                scan.fields.insert(field.to_owned(), value);
            }
        }
        let number = |wanted: &str| {
            let found = backfills.iter().find(|(name, _)| name == wanted);
            found.and_then(|(_, value)| value.parse().ok()).unwrap_or_default()
        };
        let is_failure =
            |name: &&(String, String)| name.0.contains(":backfill_failed_") && name.0.ends_with("_cause");
        let histograms =
            timings.into_iter().filter_map(|(name, text)| Some((name, serde_json::from_str(&text).ok()?)));
        Sample {
            at,
            dcp,
            scans: by_id.into_values().collect(),
            histograms: histograms.collect(),
            backfills: (number("backfill_num_active"), number("backfill_num_pending")),
            failed_backfills: backfills.iter().filter(is_failure).count(),
        }
    }
}
