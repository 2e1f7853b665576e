//! `ringctl load`: documents from files, or generated ones, into a bucket.
//!
//! Does not know: how documents are read and sent (`ringbase::client::{source, load}`).

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar};
use ringbase::client::load::SKIPPED_NAMES_MAX;
use ringbase::client::source::{SourceError, Unit};
use ringbase::client::{Connection, LoadOptions, LoadProgress, LoadReport, PipelineOptions, Source, load};
use serde_json::json;

use super::connect_options;
use crate::args::{GlobalArgs, LoadArgs};
use crate::failure::Failure;
use crate::output::{human_bytes, megabytes_per_second, print, print_json};
use crate::progress::{self, show_while};

/// Skipped documents that are named on standard error.
const NAMES_SHOWN: usize = 20;

/// How long `--wait-persisted` waits.
const PERSIST_PATIENCE: Duration = Duration::from_secs(600);

pub(crate) fn run(global: &GlobalArgs, args: &LoadArgs) -> Result<(), Failure> {
    let unreadable = |error: SourceError| Failure::other("nothing was loaded", error);
    let connect = connect_options(global)?;
    let source = Source::open(&args.source, args.max_document_bytes).map_err(unreadable)?;
    let bar = progress_bar(&source).map_err(unreadable)?;
    let options = LoadOptions {
        connect: connect.clone(),
        connections: usize::from(args.connections),
        pipeline: PipelineOptions {
            window: args.window as usize,
            patience: Duration::from_secs_f64(args.patience),
            ..PipelineOptions::default()
        },
    };
    let progress = LoadProgress::default();
    let report = show_while(&bar, |bar| show(bar, &progress), || load(source, &options, &progress))?;

    let persisting = Instant::now();
    if args.wait_persisted {
        if report.documents > 0 && report.tokens.is_empty() {
            return Err(Failure::other(
                "cannot wait until it is persisted",
                "the node sends no mutation tokens",
            ));
        }
        Connection::open(&connect)?.wait_persisted(&report.tokens, PERSIST_PATIENCE)?;
    }
    let persisted = args.wait_persisted.then(|| persisting.elapsed());
    if global.json {
        return print_json(&report_json(&report, persisted));
    }
    name_skipped(&report);
    print_text(&report, persisted)
}

fn progress_bar(source: &Source) -> Result<ProgressBar, SourceError> {
    if !progress::is_seen() {
        return Ok(ProgressBar::hidden());
    }
    let (total, unit) = source.total()?;
    let position = match unit {
        Unit::Bytes => "{bytes}/{total_bytes}",
        Unit::Files => "{human_pos}/{human_len} files",
        Unit::Documents => "{human_pos}/{human_len}",
    };
    Ok(progress::bar(total, &format!("{{bar:30}} {position}  {{msg}}  {{eta}} left")))
}

fn show(bar: &ProgressBar, progress: &LoadProgress) {
    let seconds = bar.elapsed().as_secs_f64();
    let bytes = progress.bytes.load(Ordering::Relaxed);
    let rate = progress.documents.load(Ordering::Relaxed) as f64 / seconds.max(0.001);
    let megabytes = megabytes_per_second(bytes, seconds);
    bar.set_message(format!("{} documents/s  {megabytes:.1} MB/s", HumanCount(rate as u64)));
    bar.set_position(progress.units.load(Ordering::Relaxed));
}

fn name_skipped(report: &LoadReport) {
    for skipped in report.skipped.iter().take(NAMES_SHOWN) {
        eprintln!("skipped {}: {}", skipped.name, skipped.reason);
    }
    let unnamed = report.skipped_count.saturating_sub(NAMES_SHOWN as u64);
    if unnamed > 0 {
        eprintln!("skipped {} more; --json names the first {SKIPPED_NAMES_MAX}", HumanCount(unnamed));
    }
}

fn report_json(report: &LoadReport, persisted: Option<Duration>) -> serde_json::Value {
    let seconds = report.elapsed.as_secs_f64();
    let bytes = report.key_bytes + report.value_bytes;
    let skipped: Vec<_> = report
        .skipped
        .iter()
        .map(|skipped| json!({ "name": skipped.name, "reason": skipped.reason.to_string() }))
        .collect();
    json!({
        "documents": report.documents,
        "key_bytes": report.key_bytes,
        "value_bytes": report.value_bytes,
        "seconds": seconds,
        "documents_per_second": report.documents as f64 / seconds.max(1e-9),
        "megabytes_per_second": megabytes_per_second(bytes, seconds),
        "retries": report.retries,
        "skipped_count": report.skipped_count,
        "skipped": skipped,
        "persist_seconds": persisted.map(|time| time.as_secs_f64()),
    })
}

fn print_text(report: &LoadReport, persisted: Option<Duration>) -> Result<(), Failure> {
    let seconds = report.elapsed.as_secs_f64();
    let bytes = report.key_bytes + report.value_bytes;
    let rate = (report.documents as f64 / seconds.max(1e-9)) as u64;
    let megabytes = megabytes_per_second(bytes, seconds);
    print(|out| {
        writeln!(
            out,
            "loaded {} documents, {} ({} keys, {} values) in {seconds:.2} s",
            HumanCount(report.documents),
            human_bytes(bytes),
            human_bytes(report.key_bytes),
            human_bytes(report.value_bytes),
        )?;
        writeln!(out, "{} documents/s, {megabytes:.1} MB/s, {} retries", HumanCount(rate), report.retries)?;
        if report.skipped_count > 0 {
            writeln!(out, "skipped {}", HumanCount(report.skipped_count))?;
        }
        match persisted {
            Some(time) => writeln!(out, "persisted {:.2} s later", time.as_secs_f64()),
            None => Ok(()),
        }
    })
}
