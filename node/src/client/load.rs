//! Loading: every document of a source into a bucket, over several pipelined connections.
//!
//! Invariants
//! - Every document was acknowledged, or skipped with its name and reason, or the load failed.
//! - The first failure stops all connections.
//! - The names of skipped documents that are kept are bounded; their number is always exact.
//!
//! Cost: one thread and one pipeline window per connection; a lock per batch of the source.
//!
//! Does not know: how progress is shown.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringbase_storage::types::VbId;

use super::connection::{ConnectOptions, Connection};
use super::error::ClientError;
use super::pipeline::{Completion, Pipeline, PipelineOptions};
use super::source::{SkipReason, Source, SourceError, SourceItem};
use crate::protocol::extras::{MutationToken, StoreExtras};
use crate::protocol::{Opcode, Request, Status, vbucket_of};

/// Names of skipped documents that are kept.
pub const SKIPPED_NAMES_MAX: usize = 1000;

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where to.
    pub connect: ConnectOptions,
    /// How many connections, each with a thread; at least 1.
    pub connections: usize,
    /// How much each of them has outstanding.
    pub pipeline: PipelineOptions,
}

/// What has happened so far; another thread may watch it.
#[derive(Debug, Default)]
pub struct LoadProgress {
    /// Documents that were acknowledged.
    pub documents: AtomicU64,
    /// Bytes of their keys and values.
    pub bytes: AtomicU64,
    /// Parts of the source that were handed to connections, in its [`super::source::Unit`].
    pub units: AtomicU64,
    /// Requests that were sent again.
    pub retries: AtomicU64,
    /// Documents that were skipped.
    pub skipped: AtomicU64,
}

/// A document that was not loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its path, its file and line, or its key.
    pub name: String,
    /// Why not.
    pub reason: SkipReason,
}

/// What a load has done.
#[derive(Debug, Default, Clone)]
pub struct LoadReport {
    /// Documents that were acknowledged.
    pub documents: u64,
    /// Bytes of their keys.
    pub key_bytes: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// Documents that were skipped.
    pub skipped_count: u64,
    /// The first of them.
    pub skipped: Vec<Skipped>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// The last mutation of every vbucket that got a document, for [`Connection::wait_persisted`].
    pub tokens: Vec<(VbId, MutationToken)>,
}

impl LoadReport {
    fn skip(&mut self, progress: &LoadProgress, name: String, reason: SkipReason) {
        self.skipped_count += 1;
        progress.skipped.fetch_add(1, Ordering::Relaxed);
        if self.skipped.len() < SKIPPED_NAMES_MAX {
            self.skipped.push(Skipped { name, reason });
        }
    }
}

/// Why a load ended early.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The source cannot be read on.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The node or the connection to it.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What the threads of one load share.
struct Shared<'a> {
    source: Mutex<Source>,
    options: &'a LoadOptions,
    progress: &'a LoadProgress,
    vbucket_count: u16,
    stop: AtomicBool,
}

/// Loads all of `source`.
///
/// # Errors
/// The first thing that went wrong; documents that were acknowledged before stay.
pub fn load(source: Source, options: &LoadOptions, progress: &LoadProgress) -> Result<LoadReport, LoadError> {
    let mut connections = Vec::new();
    for _ in 0..options.connections.max(1) {
        connections.push(Connection::open(&options.connect)?);
    }
    let vbucket_count = connections[0].vbucket_count()?;
    let stop = AtomicBool::new(false);
    let shared = Shared { source: Mutex::new(source), options, progress, vbucket_count, stop };
    let started = Instant::now();
    let results: Vec<Result<Part, LoadError>> = std::thread::scope(|scope| {
        let shared = &shared;
        let threads: Vec<_> = connections
            .iter_mut()
            .map(|connection| {
                scope.spawn(move || {
                    let result = load_part(shared, connection);
                    if result.is_err() {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a loading thread does not panic")).collect()
    });
    let elapsed = started.elapsed();

    let mut report = LoadReport { elapsed, ..LoadReport::default() };
    let mut tokens = vec![None; usize::from(vbucket_count)];
    for part in results {
        let part = part?;
        report.documents += part.report.documents;
        report.key_bytes += part.report.key_bytes;
        report.value_bytes += part.report.value_bytes;
        report.retries += part.report.retries;
        report.skipped_count += part.report.skipped_count;
        let room = SKIPPED_NAMES_MAX - report.skipped.len();
        report.skipped.extend(part.report.skipped.into_iter().take(room));
        part.tokens.iter().zip(&mut tokens).for_each(|(token, last)| keep_later(last, *token));
    }
    report.tokens =
        (0..).map(VbId).zip(tokens).filter_map(|(vbucket, token)| Some((vbucket, token?))).collect();
    Ok(report)
}

/// What one connection has done.
struct Part {
    report: LoadReport,
    tokens: Vec<Option<MutationToken>>,
}

fn keep_later(last: &mut Option<MutationToken>, token: Option<MutationToken>) {
    if let Some(token) = token
        && last.is_none_or(|last| last.seqno < token.seqno)
    {
        *last = Some(token);
    }
}

fn load_part(shared: &Shared<'_>, connection: &mut Connection) -> Result<Part, LoadError> {
    let progress = shared.progress;
    let mut pipeline = Pipeline::new(connection, shared.options.pipeline)?;
    let mut part =
        Part { report: LoadReport::default(), tokens: vec![None; usize::from(shared.vbucket_count)] };
    let extras = StoreExtras { flags: 0, expiry: 0 }.encode();
    while !shared.stop.load(Ordering::Relaxed) {
        let batch = shared.source.lock().unwrap_or_else(PoisonError::into_inner).claim()?;
        let Some(batch) = batch else { break };
        let units = batch.units();
        let walked = batch.walk(|item| match item {
            SourceItem::Document { key, value } => {
                let request = Request::new(Opcode::SET)
                    .vbucket(vbucket_of(key, shared.vbucket_count))
                    .extras(&extras)
                    .key(key)
                    .value(value);
                let done = &mut |completion: Completion<'_>| part.complete(progress, &completion);
                match pipeline.submit(request, 0, done) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => ControlFlow::Break(error),
                }
            }
            SourceItem::Skipped { name, reason } => {
                part.report.skip(progress, name, reason);
                ControlFlow::Continue(())
            }
        });
        if let ControlFlow::Break(error) = walked {
            return Err(error);
        }
        progress.units.fetch_add(units, Ordering::Relaxed);
    }
    pipeline.drain(&mut |completion: Completion<'_>| part.complete(progress, &completion))?;
    Ok(part)
}

impl Part {
    fn complete(&mut self, progress: &LoadProgress, completion: &Completion<'_>) -> Result<(), LoadError> {
        let request = completion.request_frame();
        self.report.retries += u64::from(completion.retries);
        progress.retries.fetch_add(u64::from(completion.retries), Ordering::Relaxed);
        if completion.answer.status() == Status::E2BIG {
            let name = String::from_utf8_lossy(request.key).into_owned();
            let text = Status::E2BIG.description().to_owned();
            self.report.skip(progress, name, SkipReason::Refused(text));
            return Ok(());
        }
        completion.check()?;
        if let Some(last) = self.tokens.get_mut(usize::from(request.vbucket().0)) {
            keep_later(last, MutationToken::decode(completion.answer.extras));
        }
        let (key_bytes, value_bytes) = (request.key.len() as u64, request.value.len() as u64);
        self.report.documents += 1;
        self.report.key_bytes += key_bytes;
        self.report.value_bytes += value_bytes;
        progress.documents.fetch_add(1, Ordering::Relaxed);
        progress.bytes.fetch_add(key_bytes + value_bytes, Ordering::Relaxed);
        Ok(())
    }
}
