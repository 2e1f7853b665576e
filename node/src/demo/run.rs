//! The story of the demonstration, from the first start of the node to its clean stop.
//!
//! Does not know: how each part is done.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringbase_storage::types::VbId;
use serde_json::{Value, json};

use super::census::Census;
use super::documents::default_documents;
use super::error::DemoError;
use super::histograms::{self, Timing};
use super::interrupt::Interrupt;
use super::node_process::{NodeOptions, NodeProcess};
use super::scratch::Scratch;
use super::show::{bytes, count, megabytes_per_second, with_progress};
use crate::client::source::VALUE_BYTES_MAX;
use crate::client::{
    ConnectOptions, Connection, ConnectionScan, LoadOptions, LoadProgress, LoadReport, PipelineOptions,
    ScanAllOptions, ScanPlan, ScanRecord, Source, SourceForm, load, scan_all,
};
use crate::protocol::range_scan::RangeScanCreate;

/// Connections that load and scan.
const CONNECTIONS: usize = 4;

/// How long the node may take to persist what was loaded.
const PERSIST_PATIENCE: Duration = Duration::from_secs(60);

/// What can be chosen.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct DemoArgs {
    /// Documents to load: dir:PATH, lines:FILE, jsonl:FILE#FIELD or generate:COUNT,KEYLEN,VALUELEN,SEED
    /// [default: the sources that cargo downloaded for this build].
    #[arg(long, value_name = "SOURCE")]
    pub from: Option<OsString>,
    /// Cores of the node [default: all that the process may run on].
    #[arg(long, value_name = "N")]
    pub cores: Option<u16>,
    /// Vbuckets of the bucket: a power of two from 1 to 1024 [default: 128].
    #[arg(long, value_name = "N")]
    pub vbuckets: Option<u16>,
    /// Directory below which the scratch directory is made [default: next to this binary].
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Leave the scratch directory, with the node's data and log.
    #[arg(long)]
    pub keep: bool,
    /// Print one JSON object at the end instead of the story.
    #[arg(long)]
    pub json: bool,
}

/// Tells the story, unless there is to be JSON.
macro_rules! say {
    ($story:expr, $($text:tt)*) => {
        if !$story.json {
            // Whoever closed standard output wants to hear no more.
            let _ = writeln!(std::io::stdout(), $($text)*);
        }
    };
}

/// What the parts of the story share.
struct Story {
    json: bool,
}

/// What one scan of everything has brought.
struct ScanResult {
    scan: ConnectionScan,
    census: Census,
}

/// Runs the demonstration.
///
/// # Errors
/// What kept it from running, or the first thing that was not as it must be.
pub fn run(args: &DemoArgs) -> Result<(), DemoError> {
    let started = Instant::now();
    let story = Story { json: args.json };
    let (form, what) = match &args.from {
        Some(text) => (SourceForm::parse(text)?, text.to_string_lossy().into_owned()),
        None => default_documents()?,
    };
    let interrupt = Interrupt::listen().map_err(DemoError::io("listen to", "signals"))?;
    let scratch = Scratch::make(args.scratch.as_deref(), args.keep, &interrupt)?;
    let options = NodeOptions {
        scratch: scratch.path().to_owned(),
        cores: args.cores,
        vbuckets: args.vbuckets,
        interrupt: interrupt.clone(),
    };

    let node = NodeProcess::start(&options)?;
    let ready = node.ready.clone();
    say!(
        story,
        "node      process {} on {}: {} cores, {} shards, {} vbuckets, empty, ready in {} ms",
        node.id(),
        ready.listen,
        ready.cores,
        ready.shards,
        ready.vbuckets,
        node.start_time.as_millis()
    );
    say!(story, "data      {}", scratch.path().display());
    say!(story, "documents {what}");
    let connect = ConnectOptions::to(&ready.listen);
    let (loaded, persisted_in) = story.load(&form, &connect)?;
    let keys = story.scan(&connect, true, "keys", loaded.documents)?;
    let before = story.scan(&connect, false, "documents", loaded.documents)?;
    let in_both = before.census.compare_with(&form)?;
    in_both.map_err(|text| DemoError::Mismatch(format!("the scan differs from what was loaded: {text}")))?;
    if keys.scan.counts.records.records != before.census.documents() {
        return Err(DemoError::Mismatch(format!(
            "the key-only scan returned {} keys, the document scan {} documents",
            keys.scan.counts.records.records,
            before.census.documents()
        )));
    }
    say!(story, "          every document has the contents that were loaded");
    let timings_before = timings(&connect)?;

    say!(story, "kill -9   process {}; all of the above had been reported persisted", node.id());
    node.kill()?;
    let node = NodeProcess::start(&options)?;
    let recovered = node.ready.clone();
    if recovered.clean != Some(false) {
        return Err(DemoError::Mismatch("the node does not say that it was not stopped cleanly".to_owned()));
    }
    say!(
        story,
        "restart   process {}: {} log records replayed, serving {} ms after it was started",
        node.id(),
        count(recovered.recovered_records),
        node.start_time.as_millis(),
    );
    let connect = ConnectOptions::to(&recovered.listen);
    let after = story.scan(&connect, false, "documents", loaded.documents)?;
    let compared = before.census.compare(&after.census);
    let compared = compared.map_err(|text| DemoError::Mismatch(format!("after the kill -9 {text}")))?;
    say!(
        story,
        "          {} records compared one by one with the scan before the kill: key, value, flags, expiry, seqno, CAS, \
         datatype are equal",
        count(compared)
    );
    let timings_after = timings(&connect)?;
    say!(story, "histograms of the first node, in microseconds or in what the name ends with");
    say!(story, "{}", histograms::table(&timings_before));
    say!(story, "histograms of the restarted node");
    say!(story, "{}", histograms::table(&timings_after));
    let restarted_in = node.start_time;
    let stopped_in = node.stop()?;
    say!(story, "stop      SIGTERM, exit 0 after {} ms", stopped_in.as_millis());
    if args.keep {
        say!(story, "kept      {}", scratch.path().display());
    }
    say!(story, "done      {:.1} s, everything as it must be", started.elapsed().as_secs_f64());
    if args.json {
        let summary = json!({
            "documents_from": what,
            "cores": ready.cores,
            "shards": ready.shards,
            "vbuckets": ready.vbuckets,
            "loaded": {
                "documents": loaded.documents,
                "key_bytes": loaded.key_bytes,
                "value_bytes": loaded.value_bytes,
                "skipped": loaded.skipped_count,
                "seconds": loaded.elapsed.as_secs_f64(),
                "persisted_seconds_later": persisted_in.as_secs_f64(),
            },
            "key_scan": scan_json(&keys.scan),
            "document_scan": scan_json(&before.scan),
            "recovery": {
                "log_records": recovered.recovered_records,
                "opened_ms": recovered.started_in_ms,
                "ready_ms": restarted_in.as_millis() as u64,
            },
            "document_scan_after_kill": scan_json(&after.scan),
            "records_compared": compared,
            "stopped_ms": stopped_in.as_millis() as u64,
            "timings_before_kill": timings_before,
            "timings_after_kill": timings_after,
            "scratch": args.keep.then(|| scratch.path().display().to_string()),
            "seconds": started.elapsed().as_secs_f64(),
        });
        writeln!(std::io::stdout(), "{summary}").map_err(DemoError::io("write to", "standard output"))?;
    }
    Ok(())
}

fn timings(connect: &ConnectOptions) -> Result<Vec<Timing>, DemoError> {
    let mut connection = Connection::open(connect).map_err(DemoError::client("reading the histograms"))?;
    histograms::timings(&mut connection).map_err(DemoError::client("reading the histograms"))
}

fn scan_json(scan: &ConnectionScan) -> Value {
    json!({
        "records": scan.counts.records.records,
        "key_bytes": scan.counts.records.key_bytes,
        "value_bytes": scan.counts.records.value_bytes,
        "record_bytes": scan.counts.record_bytes,
        "frames": scan.counts.frames,
        "seconds": scan.elapsed.as_secs_f64(),
        "megabytes_per_second": megabytes_per_second(scan.counts.record_bytes, scan.elapsed),
    })
}

impl Story {
    /// Loads everything and waits until it is persisted; returns how long that took after the last answer.
    fn load(&self, form: &SourceForm, connect: &ConnectOptions) -> Result<(LoadReport, Duration), DemoError> {
        let source = Source::open(form, VALUE_BYTES_MAX)?;
        let (total, _) = source.total()?;
        let options = LoadOptions {
            connect: connect.clone(),
            connections: CONNECTIONS,
            pipeline: PipelineOptions::default(),
        };
        let progress = LoadProgress::default();
        let report = with_progress(
            "loading",
            total,
            || progress.units.load(Ordering::Relaxed),
            || load(source, &options, &progress),
        )?;
        let waiting = Instant::now();
        let mut connection = Connection::open(connect).map_err(DemoError::client("connecting"))?;
        connection
            .wait_persisted(&report.tokens, PERSIST_PATIENCE)
            .map_err(DemoError::client("waiting until everything is persisted"))?;
        let persisted_in = waiting.elapsed();
        let loaded = report.key_bytes + report.value_bytes;
        say!(
            self,
            "load      {} documents, {} ({} keys, {} values) in {:.2} s: {} documents/s, {:.0} MB/s",
            count(report.documents),
            bytes(loaded),
            bytes(report.key_bytes),
            bytes(report.value_bytes),
            report.elapsed.as_secs_f64(),
            count((report.documents as f64 / report.elapsed.as_secs_f64().max(1e-9)) as u64),
            megabytes_per_second(loaded, report.elapsed),
        );
        if report.skipped_count > 0 {
            say!(
                self,
                "          {} skipped, the first: {}",
                count(report.skipped_count),
                first_skipped(&report)
            );
        }
        say!(
            self,
            "persisted {} vbuckets report their last seqno persisted, {:.0} ms after the last answer",
            report.tokens.len(),
            persisted_in.as_secs_f64() * 1e3
        );
        Ok((report, persisted_in))
    }

    /// Scans everything in all vbuckets.
    fn scan(
        &self,
        connect: &ConnectOptions,
        key_only: bool,
        what: &'static str,
        expected: u64,
    ) -> Result<ScanResult, DemoError> {
        let create = RangeScanCreate { key_only, ..RangeScanCreate::default() };
        let options = ScanAllOptions {
            connect: connect.clone(),
            connections: CONNECTIONS,
            vbuckets: None,
            plan: ScanPlan::new(create),
        };
        let seen = AtomicU64::new(0);
        let parts: [Mutex<Census>; CONNECTIONS] = Default::default();
        let make_sink = |connection: usize| {
            let (part, seen) = (&parts[connection], &seen);
            move |vbucket: VbId, record: ScanRecord<'_>| {
                seen.fetch_add(1, Ordering::Relaxed);
                if let ScanRecord::Document(document) = record {
                    part.lock().unwrap_or_else(PoisonError::into_inner).note(vbucket, &document);
                }
                Ok(())
            }
        };
        let report = with_progress(
            "scanning",
            Some(expected),
            || seen.load(Ordering::Relaxed),
            || scan_all(&options, make_sink).map(|report| report.total),
        );
        let during = if key_only { "the key-only scan" } else { "the document scan" };
        let scan = report.map_err(DemoError::client(during))?;
        let parts = parts.map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner));
        let records = scan.counts.records;
        say!(
            self,
            "scan      {} {what}, {} of keys, {} of values in {:.0} ms: {:.0} MB/s, {} frames, {CONNECTIONS} connections",
            count(records.records),
            bytes(records.key_bytes),
            bytes(records.value_bytes),
            scan.elapsed.as_secs_f64() * 1e3,
            megabytes_per_second(scan.counts.record_bytes, scan.elapsed),
            count(scan.counts.frames),
        );
        Ok(ScanResult { scan, census: Census::of_all(parts) })
    }
}

fn first_skipped(report: &LoadReport) -> String {
    report.skipped.first().map_or(String::new(), |skipped| format!("{}: {}", skipped.name, skipped.reason))
}
