//! A frame: what happened between two samples, and how it is shown.
//!
//! Invariants
//! - Rates are of the interval. What was not there before counts from its beginning; a counter that fell counts as 0.
//!
//! Does not know: where the samples come from, what the terminal can do.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

use ringbase::dcp::time::Spent;
use serde_json::{Value, json};

use super::sample::{Sample, Scan};
use super::screen::Size;
use crate::cmd::timings::Histogram;
use crate::dcp_stats::Stream;
use crate::output::{human_bytes, write_table};

/// The latencies that are shown, if the interval has any of them.
const LATENCIES: [&str; 8] = [
    "dcp_snapshot_to_first_item_ns",
    "dcp_device_ns",
    "dcp_window_ns",
    "dcp_socket_ns",
    "range_scan_fill_ns",
    "range_scan_continue_ns",
    "disk_commit",
    "device_read_",
];

/// Lines of a frame that are not streams' or scans'.
const OTHER_LINES: usize = 8;

/// A stream in the interval.
#[derive(Debug, Clone)]
struct StreamRow {
    name: String,
    uid: u64,
    state: String,
    items_per_second: f64,
    bytes_per_second: f64,
    percent: Option<f64>,
    seconds_left: Option<f64>,
    range: Option<(u64, u64, u64)>,
    limiter: Option<(Spent, f64)>,
}

/// A range scan in the interval.
#[derive(Debug, Clone)]
struct ScanRow {
    name: String,
    vbucket: u16,
    state: String,
    kind: String,
    keys: u64,
    keys_per_second: f64,
}

/// A latency in the interval, in its own unit.
#[derive(Debug, Clone)]
struct LatencyRow {
    name: String,
    count: u64,
    p50: u64,
    p99: u64,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    seconds: f64,
    connections: usize,
    streams: Vec<StreamRow>,
    scans: Vec<ScanRow>,
    latencies: Vec<LatencyRow>,
    backfills: (u64, u64),
    failed_backfills: usize,
}

impl Frame {
    pub(super) fn of(before: &Sample, now: &Sample) -> Frame {
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64().max(1e-6);
        let mut streams: Vec<StreamRow> = now
            .dcp
            .streams
            .iter()
            .map(|stream| stream_row(before.dcp.with_uid(stream.uid()), stream, seconds))
            .collect();
        streams.sort_by(|one, other| other.bytes_per_second.total_cmp(&one.bytes_per_second));
        let mut scans: Vec<ScanRow> = now
            .scans
            .iter()
            .map(|scan| scan_row(before.scans.iter().find(|old| old.id == scan.id), scan, seconds))
            .collect();
        scans.sort_by_key(|scan| Reverse(scan.keys_per_second as u64));
        Frame {
            seconds,
            connections: now.dcp.connection_count(),
            streams,
            scans,
            latencies: latencies(&before.histograms, &now.histograms),
            backfills: now.backfills,
            failed_backfills: now.failed_backfills,
        }
    }

    /// The frame as text, in a terminal of this size or without an end.
    pub(super) fn write(&self, out: &mut dyn Write, size: Option<Size>) -> io::Result<()> {
        let room = size.map_or(usize::MAX, |size| {
            let sections = self.latencies.len() + OTHER_LINES;
            (size.lines.saturating_sub(sections) / if self.scans.is_empty() { 1 } else { 2 }).max(1)
        });
        let rate = |of: fn(&StreamRow) -> f64| self.streams.iter().map(of).sum::<f64>();
        writeln!(
            out,
            "streams {} of {} connections  {} items/s  {}/s  backfills {} reading {} waiting {} failed",
            self.streams.len(),
            self.connections,
            rate(|stream| stream.items_per_second).round(),
            human_bytes(rate(|stream| stream.bytes_per_second) as u64),
            self.backfills.0,
            self.backfills.1,
            self.failed_backfills
        )?;
        let mut rows = vec![
            ["STREAM", "STATE", "ITEMS/S", "BYTES/S", "SEQNO", "OF", "DONE", "LEFT", "LIMITER"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(self.streams.iter().take(room).map(StreamRow::cells));
        section(out, &rows, self.streams.len(), room)?;
        let mut rows =
            vec![["RANGE SCAN", "VB", "STATE", "OF", "KEYS", "KEYS/S"].map(str::to_owned).to_vec()];
        rows.extend(self.scans.iter().take(room).map(ScanRow::cells));
        section(out, &rows, self.scans.len(), room)?;
        let mut rows = vec![["LATENCY", "COUNT", "P50", "P99"].map(str::to_owned).to_vec()];
        rows.extend(self.latencies.iter().map(LatencyRow::cells));
        section(out, &rows, self.latencies.len(), usize::MAX)
    }

    pub(super) fn to_json(&self) -> Value {
        let streams: Vec<Value> = self.streams.iter().map(StreamRow::to_json).collect();
        let scans: Vec<Value> = self.scans.iter().map(ScanRow::to_json).collect();
        let latencies: Vec<Value> = self.latencies.iter().map(LatencyRow::to_json).collect();
        json!({
            "seconds": self.seconds,
            "connections": self.connections,
            "streams": streams,
            "range_scans": scans,
            "latencies": latencies,
            "backfills": {
                "reading": self.backfills.0, "waiting": self.backfills.1, "failed": self.failed_backfills,
            },
        })
    }
}

/// A table, if it has rows; says how many are not shown.
fn section(out: &mut dyn Write, rows: &[Vec<String>], count: usize, room: usize) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    writeln!(out)?;
    write_table(out, rows)?;
    if count > room {
        writeln!(out, "and {} more", count - room)?;
    }
    Ok(())
}

fn stream_row(before: Option<&Stream>, now: &Stream, seconds: f64) -> StreamRow {
    let rate = |of: &dyn Fn(&Stream) -> u64| of(now).saturating_sub(before.map_or(0, of)) as f64 / seconds;
    let account = now.account().since(&before.map(Stream::account).unwrap_or_default());
    let range = now.number("backfill_start_seqno").zip(now.number("backfill_end_seqno"));
    StreamRow {
        name: now.name(),
        uid: now.uid(),
        state: now.state().to_owned(),
        items_per_second: rate(&Stream::items),
        bytes_per_second: rate(&|stream| stream.number("bytes").unwrap_or_default()),
        percent: now.float("backfill_percent"),
        seconds_left: now.float("backfill_seconds_left"),
        range: range.zip(now.number("backfill_seqno")).map(|((start, end), seqno)| (start, end, seqno)),
        limiter: account.largest().map(|what| (what, account.share(what) * 100.0)),
    }
}

fn scan_row(before: Option<&Scan>, now: &Scan, seconds: f64) -> ScanRow {
    let keys = now.number("total_keys");
    let keys_before = before.map_or(0, |scan| scan.number("total_keys"));
    let name = if now.text("name").is_empty() { now.id.as_str() } else { now.text("name") };
    ScanRow {
        name: name.to_owned(),
        vbucket: now.vbucket,
        state: now.text("state").to_owned(),
        kind: if now.text("key_value") == "key" { "keys" } else { "documents" }.to_owned(),
        keys,
        keys_per_second: keys.saturating_sub(keys_before) as f64 / seconds,
    }
}

fn latencies(before: &BTreeMap<String, Histogram>, now: &BTreeMap<String, Histogram>) -> Vec<LatencyRow> {
    let is_shown = |name: &str| {
        LATENCIES.iter().any(|shown| name == *shown || shown.ends_with('_') && name.starts_with(shown))
    };
    let of_interval = now.iter().filter(|(name, _)| is_shown(name)).filter_map(|(name, histogram)| {
        let histogram = match before.get(name) {
            Some(before) => histogram.since(before),
            None => histogram.clone(),
        };
        let (p50, p99) = (histogram.percentile(50.0)?, histogram.percentile(99.0)?);
        Some(LatencyRow { name: name.clone(), count: histogram.count(), p50, p99 })
    });
    of_interval.collect()
}

/// Seconds for people: 95 s, 12 min, 3.5 h.
fn human_seconds(seconds: f64) -> String {
    match seconds {
        ..0.0 => "0 s".to_owned(),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

impl StreamRow {
    fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            self.name.clone(),
            self.state.clone(),
            format!("{:.0}", self.items_per_second),
            human_bytes(self.bytes_per_second as u64),
            or_dash(self.range.map(|(_, _, seqno)| seqno.to_string())),
            or_dash(self.range.map(|(start, end, _)| format!("{start}-{end}"))),
            or_dash(self.percent.map(|percent| format!("{percent:.1} %"))),
            or_dash(self.seconds_left.map(human_seconds)),
            or_dash(self.limiter.map(|(what, percent)| format!("{} {percent:.0} %", what.name()))),
        ]
    }

    fn to_json(&self) -> Value {
        json!({
            "stream": self.name,
            "uid": self.uid,
            "state": self.state,
            "items_per_second": self.items_per_second,
            "bytes_per_second": self.bytes_per_second,
            "backfill_percent": self.percent,
            "backfill_seconds_left": self.seconds_left,
            "backfill_start_seqno": self.range.map(|(start, _, _)| start),
            "backfill_end_seqno": self.range.map(|(_, end, _)| end),
            "backfill_seqno": self.range.map(|(_, _, seqno)| seqno),
            "limiter": self.limiter.map(|(what, _)| what.name()),
            "limiter_percent": self.limiter.map(|(_, percent)| percent),
        })
    }
}

impl ScanRow {
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.vbucket.to_string(),
            self.state.clone(),
            self.kind.clone(),
            self.keys.to_string(),
            format!("{:.0}", self.keys_per_second),
        ]
    }

    fn to_json(&self) -> Value {
        json!({
            "scan": self.name,
            "vbucket": self.vbucket,
            "state": self.state,
            "of": self.kind,
            "keys": self.keys,
            "keys_per_second": self.keys_per_second,
        })
    }
}

impl LatencyRow {
    fn cells(&self) -> Vec<String> {
        let shown = |value: u64| match self.name.ends_with("_ns") {
            true => format!("{:.1} us", value as f64 / 1e3),
            false => format!("{value} us"),
        };
        vec![self.name.clone(), self.count.to_string(), shown(self.p50), shown(self.p99)]
    }

    fn to_json(&self) -> Value {
        let unit = if self.name.ends_with("_ns") { "ns" } else { "us" };
        json!({ "name": self.name, "count": self.count, "unit": unit, "p50": self.p50, "p99": self.p99 })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::dcp_stats::tests::two_streams;

    fn sample(at: Instant, seconds: u64) -> Sample {
        let pair = |(name, value): (&str, String)| (name.to_owned(), value);
        let scans = [
            ("num_running", "1".to_owned()),
            ("vb_3:0a0b:state", "continuing".to_owned()),
            ("vb_3:0a0b:total_keys", (seconds * 100).to_string()),
            ("vb_3:0a0b:key_value", "key".to_owned()),
        ];
        let backfills = [
            ("backfill_num_active", "1".to_owned()),
            ("backfill_num_pending", "4".to_owned()),
            ("vb_9:backfill_failed_5_cause", "io".to_owned()),
        ];
        let device = format!(r#"{{"total":{0},"data":[[10,{0},50.0],[20,5,100.0]]}}"#, seconds * 10);
        let timings = [
            ("device_read_4k", device),
            ("dcp_window_ns", r#"{"total":3,"data":[[1000,3,100.0]]}"#.to_owned()),
            ("get", r#"{"total":3,"data":[[1000,3,100.0]]}"#.to_owned()),
        ];
        let backfills: Vec<_> = backfills.map(pair).to_vec();
        Sample::of(at, two_streams(seconds), scans.map(pair).to_vec(), &backfills, timings.map(pair).to_vec())
    }

    fn frame() -> Frame {
        let began = Instant::now();
        Frame::of(&sample(began, 10), &sample(began + Duration::from_secs(2), 12))
    }

    #[test]
    fn rates_limiters_and_percentiles_are_those_of_the_interval() {
        let json = frame().to_json();
        let stream = &json["streams"][0];
        assert_eq!(
            (stream["items_per_second"].as_f64(), stream["bytes_per_second"].as_f64()),
            (Some(10.0), Some(1000.0))
        );
        let backfilling =
            json["streams"].as_array().unwrap().iter().find(|one| one["stream"] == "a:b:3").unwrap();
        assert_eq!(
            (backfilling["limiter"].as_str(), backfilling["backfill_seqno"].as_u64()),
            (Some("window"), Some(240))
        );
        assert!((backfilling["limiter_percent"].as_f64().unwrap() - 90.0).abs() < 0.01);
        assert_eq!(json["range_scans"][0]["keys_per_second"], 100.0);
        assert_eq!(json["backfills"], json!({"reading": 1, "waiting": 4, "failed": 1}));
        // Of the interval: 20 reads of up to 10 us, none above; no wait for a window.
        assert_eq!(
            json["latencies"],
            json!([{"name": "device_read_4k", "count": 20, "unit": "us", "p50": 10, "p99": 10}])
        );
    }

    #[test]
    fn a_frame_is_a_table_for_each_kind_and_fits_its_terminal() {
        let mut out = Vec::new();
        frame().write(&mut out, None).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            lines[0],
            "streams 2 of 1 connections  20 items/s  2.0 kB/s  backfills 1 reading 4 waiting 1 failed"
        );
        let line = |begin: &str| {
            let found = lines
                .iter()
                .find(|line| line.starts_with(begin))
                .unwrap_or_else(|| panic!("{begin}: {text}"));
            found.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("STREAM"), "STREAM STATE ITEMS/S BYTES/S SEQNO OF DONE LEFT LIMITER");
        assert_eq!(line("a:b:3"), "a:b:3 backfilling 10 1.0 kB 240 1-1000 24.0 % 90 s window 90 %");
        assert_eq!(line("a:b:12"), "a:b:12 in-memory 10 1.0 kB - - - - up_to_date 99 %");
        assert_eq!(line("0a0b"), "0a0b 3 continuing keys 1200 100");
        assert_eq!(line("device_read_4k"), "device_read_4k 20 10 us 10 us");

        let mut out = Vec::new();
        frame().write(&mut out, Some(Size { columns: 80, lines: 10 })).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("\nand 1 more\n"));
        assert_eq!([95.4, 600.0, 9000.0].map(human_seconds), ["95 s", "10 min", "2.5 h"]);
    }
}
