//! The commands, and what they share: loading a node of their own.
//!
//! Does not know: each other.

pub(crate) mod backfill;
pub(crate) mod churn;
pub(crate) mod echo;
pub(crate) mod engine;
pub(crate) mod io;
pub(crate) mod kv;
pub(crate) mod memory;
pub(crate) mod scan;
pub(crate) mod scan_memory;
pub(crate) mod seqlist;
pub(crate) mod trace;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ringbase::client::{
    ConnectOptions, Generator, LoadOptions, LoadProgress, PipelineOptions, ScanAllOptions, ScanPlan,
    ScanRecord, ScanReport, Source, SourceForm, load, scan_all,
};
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase_storage::types::VbId;

use crate::error::BenchError;
use crate::node::{NodeOptions, NodeProcess};

/// Connections that load.
const LOAD_CONNECTIONS: usize = 2;

/// Largest value that is loaded, in bytes.
const VALUE_BYTES_MAX: usize = 20 << 20;

/// Starts a new node, loads all documents through TCP, waits until they are persisted, and stops it.
///
/// # Errors
/// The node, or a document that it did not take.
pub(crate) fn fill(options: &NodeOptions, generator: &Generator, what: &str) -> Result<(), BenchError> {
    let node = NodeProcess::start(options)?;
    load_into(&node.connect_options(), generator, what)?;
    node.connect()?.wait_persisted()?;
    node.stop()
}

/// Loads all documents into a node through TCP.
///
/// # Errors
/// The node, or a document that it did not take.
pub(crate) fn load_into(
    connect: &ConnectOptions,
    generator: &Generator,
    what: &str,
) -> Result<(), BenchError> {
    let source = Source::open(&SourceForm::Generate(generator.clone()), VALUE_BYTES_MAX)
        .map_err(ringbase::client::LoadError::from)?;
    let load_options = LoadOptions {
        connect: connect.clone(),
        connections: LOAD_CONNECTIONS,
        pipeline: PipelineOptions::default(),
    };
    let (progress, done) = (LoadProgress::default(), AtomicBool::new(false));
    let report = std::thread::scope(|scope| {
        scope.spawn(|| show_progress(generator.count(), what, &progress, &done));
        let report = load(source, &load_options, &progress);
        done.store(true, Ordering::Relaxed);
        report
    })?;
    if report.documents != generator.count() {
        let text = format!("{} of {} documents were loaded", report.documents, generator.count());
        return Err(BenchError::Unsound(text));
    }
    let seconds = report.elapsed.as_secs_f64();
    eprintln!(
        "{what}: {} documents with {:.1} MB of keys and {:.1} MB of values in {seconds:.1} s ({:.0} documents/s)",
        report.documents,
        report.key_bytes as f64 / 1e6,
        report.value_bytes as f64 / 1e6,
        report.documents as f64 / seconds
    );
    Ok(())
}

/// What was asked for, or what is usual.
fn or_default<T: Clone>(given: &[T], usual: &[T]) -> Vec<T> {
    if given.is_empty() { usual.to_vec() } else { given.to_vec() }
}

fn show_progress(count: u64, what: &str, progress: &LoadProgress, done: &AtomicBool) {
    let bar = ProgressBar::new(count).with_message(what.to_owned());
    if let Ok(style) =
        ProgressStyle::with_template("{msg}: {wide_bar} {human_pos}/{human_len} {per_sec} {eta}")
    {
        bar.set_style(style);
    }
    while !done.load(Ordering::Relaxed) {
        bar.set_position(progress.documents.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(100));
    }
    bar.finish_and_clear();
}

/// Restarts the node on what [`fill`] has left.
///
/// # Errors
/// The node, or it did not find the mark of a clean stop.
pub(crate) fn restart(options: &NodeOptions) -> Result<NodeProcess, BenchError> {
    let node = NodeProcess::start(options)?;
    if node.found_clean() == Some(true) {
        return Ok(node);
    }
    Err(BenchError::Unsound("the node was not stopped cleanly before".into()))
}

/// Scans all vbuckets over `connections` connections: one unlimited continue for each vbucket. Every record is parsed and counted.
///
/// # Errors
/// The node, or there are not `count` records.
pub(crate) fn scan(
    node: &NodeProcess,
    vbuckets: u16,
    key_only: bool,
    connections: usize,
    count: u64,
) -> Result<ScanReport<()>, BenchError> {
    let options = ScanAllOptions {
        connect: node.connect_options(),
        connections,
        vbuckets: Some((0..vbuckets).map(VbId).collect()),
        plan: ScanPlan::new(RangeScanCreate { key_only, ..RangeScanCreate::default() }),
    };
    let ScanReport { connections, total, .. } = scan_all(&options, |_| |_: VbId, _: ScanRecord<'_>| Ok(()))?;
    let found = total.counts.records.records;
    if found != count {
        return Err(BenchError::Unsound(format!("a scan found {found} records of {count}")));
    }
    Ok(ScanReport { connections, total, sinks: Vec::new() })
}
