//! The store of this project as an engine under test: one shard with one vbucket on a blocking host, one thread.
//!
//! Its share of memory is cut as a node cuts it: two fifths for documents, three for blocks. Many reads at once are many tasks of the one thread.
//!
//! Invariants
//! - A write that the store refuses for the moment is asked again.
//!
//! Does not know: what is measured.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringbase_storage::cache::BlockCache;
use ringbase_storage::causes::whole;
use ringbase_storage::format::manifest_record::BucketDesc;
use ringbase_storage::format::superblock::Geometry;
use ringbase_storage::io::Device;
use ringbase_storage::io::blocking::BlockingHost;
use ringbase_storage::io::device::{OpenOptions, RingDevice, sync_directory};
use ringbase_storage::io::ring::RingConfig;
use ringbase_storage::scan::{Content, DocumentEncoder, KeyRange, KeyScan, Limits, SeqnoScan, Stop};
use ringbase_storage::shard::{FormatOptions, Shard, ShardOptions, format};
use ringbase_storage::types::{BucketId, Kind, Seqno, ShardId, VbId};
use ringbase_storage::vbstore::{Found, Lookup, NewVersion, VbStore, WriteError};

use super::api::{Engine, Failure, Novelty, Purpose, Reads, Tuning, Visit};
use super::data::Batch;
use crate::error::BenchError;
use crate::recorder::histogram;

/// Its name.
pub(super) const NAME: &str = "ringbase";

const BUCKET: BucketId = BucketId(1);
const VBUCKET: VbId = VbId(0);

/// Shape of the log, as a node has it unless it is told otherwise.
const WAL_SEGMENTS: u32 = 8;
const WAL_SEGMENT_BYTES: u32 = 32 << 20;

/// Bytes of a scan's buffer.
const BUFFER_BYTES: usize = 512 << 10;

/// Writes of a batch whose old versions are looked up on disk at the same time.
const LOOKUPS_MAX: usize = 32;

/// Prefix of the default collection.
const PREFIX: u8 = 0;

/// Before a refused write is asked again.
const PAUSE: Duration = Duration::from_millis(1);

/// See the module.
pub(super) struct Ringbase {
    tuning: Tuning,
    opened: Option<Opened>,
}

struct Opened {
    host: BlockingHost,
    shard: Shard,
    store: Rc<VbStore>,
}

fn failed(what: &'static str) -> impl Fn(Failure) -> BenchError {
    BenchError::engine(NAME, what)
}

fn text(error: &dyn std::error::Error) -> Failure {
    whole(error).into()
}

impl Ringbase {
    pub(super) fn new(tuning: Tuning) -> Ringbase {
        Ringbase { tuning, opened: None }
    }

    fn opened(&self) -> Result<&Opened, Failure> {
        self.opened.as_ref().ok_or_else(|| "the store is not open".into())
    }

    fn start(&self) -> Result<Opened, Failure> {
        let host = BlockingHost::new(&RingConfig::default()).map_err(|error| text(&error))?;
        let path = &self.tuning.path;
        let is_fresh = !path.join("data").exists();
        let (wal, data) = (device(&host, &path.join("wal"))?, device(&host, &path.join("data"))?);
        let cache_bytes = self.tuning.cache_bytes;
        let options = ShardOptions {
            resident_bytes_max: cache_bytes / 5 * 2,
            memtable_bytes_max: self.tuning.write_buffer_bytes,
            ..ShardOptions::default()
        };
        let cache = BlockCache::new(cache_bytes - cache_bytes / 5 * 2);
        let shard = host.block_on(async {
            if is_fresh {
                let geometry = Geometry {
                    shard: ShardId(0),
                    shard_count: 1,
                    vbucket_count: 1,
                    wal_segments: WAL_SEGMENTS,
                    wal_segment_bytes: WAL_SEGMENT_BYTES,
                };
                let format_options = FormatOptions { geometry, grow_bytes: options.grow_bytes };
                format(&host.env(), &wal, &data, format_options).await.map_err(|error| text(&error))?;
                sync_directory(path).map_err(|error| text(&error))?;
            }
            let (shard, _) =
                Shard::open(host.env(), wal, data, cache, options).await.map_err(|error| text(&error))?;
            if is_fresh {
                let bucket = BucketDesc { id: BUCKET, uuid: 1, name: NAME.into(), config: String::new() };
                shard.create_bucket(bucket).await.map_err(|error| text(&error))?;
            }
            Ok::<_, Failure>(shard)
        })?;
        let store = shard.vbucket(BUCKET, VBUCKET).ok_or("the store has no vbucket 0")?;
        Ok(Opened { host, shard, store })
    }
}

fn device(host: &BlockingHost, path: &Path) -> Result<Rc<dyn Device>, Failure> {
    let options = OpenOptions { create: true, ..OpenOptions::default() };
    let device = RingDevice::open(host.ring(), path, &options).map_err(|error| text(&error))?;
    Ok(Rc::new(device))
}

fn with_prefix(key: &[u8]) -> Vec<u8> {
    let mut prefixed = Vec::with_capacity(1 + key.len());
    prefixed.push(PREFIX);
    prefixed.extend_from_slice(key);
    prefixed
}

fn new_version<'a>(key: &'a [u8], value: &'a [u8]) -> NewVersion<'a> {
    NewVersion { key, value, flags: 0, expiry: 0, datatype: 0, kind: Kind::Mutation }
}

/// Stores a document whose old version memory knows; false if it is on disk.
async fn write_known(opened: &Opened, key: &[u8], value: &[u8]) -> Result<bool, Failure> {
    loop {
        let Lookup::Known(found) = opened.store.lookup(key) else { return Ok(false) };
        match opened.store.write(&found, new_version(key, value)) {
            Ok(_) => return Ok(true),
            Err(WriteError::Busy { .. }) => opened.store.sleep(PAUSE).await,
            Err(error) => return Err(text(&error)),
        }
    }
}

/// Stores a document whose old version has to be read.
async fn write_unknown(store: &VbStore, key: Vec<u8>, value: Vec<u8>) -> Result<(), Failure> {
    let (key, value): (Rc<[u8]>, Rc<[u8]>) = (key.into(), value.into());
    loop {
        let (own_key, own_value) = (key.clone(), value.clone());
        let write = move |store: &VbStore, found: Result<Found, _>| match found {
            Ok(found) => Ok(store.write(&found, new_version(&own_key, &own_value)).map(drop)),
            Err(error) => Err(text(&error)),
        };
        match store.ask(&key, write).await? {
            Ok(()) => return Ok(()),
            Err(WriteError::Busy { .. }) => store.sleep(PAUSE).await,
            Err(error) => return Err(text(&error)),
        }
    }
}

/// Runs `count` tasks that `make` makes, and waits for all of them; the first failure, if there is one.
async fn together<F>(opened: &Opened, count: usize, make: impl Fn() -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>> + 'static,
{
    let running = Rc::new(Cell::new(count));
    let failure: Rc<RefCell<Option<Failure>>> = Rc::default();
    let ended = Rc::new(ringbase_storage::sync::Event::default());
    let env = opened.host.env();
    for _ in 0..count {
        let (task, running, failure, ended) = (make(), running.clone(), failure.clone(), ended.clone());
        env.spawn("lane", async move {
            if let Err(error) = task.await {
                failure.borrow_mut().get_or_insert(error);
            }
            running.set(running.get() - 1);
            ended.notify_all();
        });
    }
    ended.until(|| running.get() == 0).await;
    let failure = failure.borrow_mut().take();
    failure.map_or(Ok(()), Err)
}

async fn write_batch(opened: &Opened, batch: &Batch) -> Result<(), Failure> {
    let unknown = Rc::new(RefCell::new(VecDeque::new()));
    for (key, value) in batch.documents() {
        let key = with_prefix(key);
        if !write_known(opened, &key, value).await? {
            unknown.borrow_mut().push_back((key, value.clone()));
        }
    }
    if !unknown.borrow().is_empty() {
        let make = || {
            let (unknown, store) = (unknown.clone(), opened.store.clone());
            async move {
                loop {
                    let next = unknown.borrow_mut().pop_front();
                    let Some((key, value)) = next else { return Ok(()) };
                    write_unknown(&store, key, value).await?;
                }
            }
        };
        together(opened, LOOKUPS_MAX, make).await?;
    }
    let last = opened.store.high_seqno();
    if opened.store.wait_persisted(last).await {
        return Ok(());
    }
    let failure = opened.shard.failure();
    Err(failure.map_or_else(|| "the store has stopped".into(), |reason| reason.to_string().into()))
}

/// Reads a range in key order; every buffer is shown to `visit` as a whole.
async fn scan(
    opened: &Opened,
    range: KeyRange,
    content: Content,
    mut visit: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let view = opened.store.open_view().await.map_err(|error| text(&error))?;
    let mut scan = KeyScan::new(view, range, content, None);
    let mut limits = Limits { buffer_bytes: BUFFER_BYTES, items: None, bytes: None, deadline_ns: None };
    let mut buffer = Vec::with_capacity(2 * BUFFER_BYTES);
    loop {
        buffer.clear();
        let stop = scan.fill(&mut buffer, &mut limits).await.map_err(|error| text(&error))?;
        visit(&buffer)?;
        if stop == Stop::End {
            return Ok(());
        }
    }
}

/// Shows the keys of a buffer: each its length, which has one byte or more, and its bytes.
fn show_keys(mut buffer: &[u8], visit: Visit<'_>) -> Result<(), Failure> {
    while !buffer.is_empty() {
        let (mut len, mut shift) = (0, 0);
        loop {
            let (byte, rest) = buffer.split_first().ok_or("a key's length is cut off")?;
            buffer = rest;
            len |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 || shift > 28 {
                break;
            }
        }
        let (key, rest) = buffer.split_at_checked(len).ok_or("a key is cut off")?;
        visit(0, key, &[]);
        buffer = rest;
    }
    Ok(())
}

/// Shows the documents of a buffer that the encoder of [`Engine::scan_documents`] wrote: length and bytes of the key, length and bytes of the value.
fn show_documents(mut buffer: &[u8], visit: Visit<'_>) -> Result<(), Failure> {
    let part = |buffer| -> Option<(&[u8], &[u8])> {
        let (len, rest) = <[u8]>::split_first_chunk::<4>(buffer)?;
        rest.split_at_checked(u32::from_le_bytes(*len) as usize)
    };
    while !buffer.is_empty() {
        let (key, rest) = part(buffer).ok_or("a key is cut off")?;
        let (value, rest) = part(rest).ok_or("a value is cut off")?;
        visit(0, key, value);
        buffer = rest;
    }
    Ok(())
}

impl Engine for Ringbase {
    fn name(&self) -> &'static str {
        NAME
    }

    fn open(&mut self, _purpose: Purpose) -> Result<(), BenchError> {
        self.opened = Some(self.start().map_err(failed("open"))?);
        Ok(())
    }

    fn close(&mut self) -> Result<(), BenchError> {
        let Some(Opened { host, shard, store }) = self.opened.take() else { return Ok(()) };
        let closed = host.block_on(shard.close()).map_err(|reason| Failure::from(reason.to_string()));
        drop(store);
        shard.detach();
        drop(host);
        closed.map_err(failed("close"))
    }

    fn write(&mut self, batch: &Batch, _novelty: Novelty) -> Result<(), BenchError> {
        let opened = self.opened().map_err(failed("write to"))?;
        opened.host.block_on(write_batch(opened, batch)).map_err(failed("write to"))
    }

    fn settle(&mut self) -> Result<(), BenchError> {
        let opened = self.opened().map_err(failed("flush"))?;
        let flushed = opened.host.block_on(async {
            opened.shard.flush().await?;
            opened.shard.compact().await;
            Ok(())
        });
        flushed.map_err(|reason: Rc<str>| failed("flush")(reason.to_string().into()))
    }

    fn scan_keys(&mut self, visit: Visit<'_>) -> Result<(), BenchError> {
        let opened = self.opened().map_err(failed("scan the keys of"))?;
        let range = KeyRange::collection(u32::from(PREFIX));
        let show = |buffer: &[u8]| show_keys(buffer, visit);
        opened.host.block_on(scan(opened, range, Content::Keys, show)).map_err(failed("scan the keys of"))
    }

    fn scan_documents(&mut self, end: &[u8], visit: Visit<'_>) -> Result<(), BenchError> {
        let opened = self.opened().map_err(failed("scan the documents of"))?;
        let range = KeyRange {
            end: Some(end.to_vec()),
            end_exclusive: true,
            ..KeyRange::collection(u32::from(PREFIX))
        };
        let encoder: DocumentEncoder = Rc::new(|out, _, key, value| {
            for part in [key, value] {
                out.extend_from_slice(&(part.len() as u32).to_le_bytes());
                out.extend_from_slice(part);
            }
        });
        let show = |buffer: &[u8]| show_documents(buffer, visit);
        let content = Content::Documents(encoder);
        opened.host.block_on(scan(opened, range, content, show)).map_err(failed("scan the documents of"))
    }

    fn scan_seqnos(&mut self, last: u64, visit: Visit<'_>) -> Result<(), BenchError> {
        let opened = self.opened().map_err(failed("scan by seqno"))?;
        let scanned = opened.host.block_on(async {
            let mut scan = SeqnoScan::open(&opened.store, Seqno(1)).await.map_err(|error| text(&error))?;
            let mut is_over = false;
            let mut show = |record: ringbase_storage::scan::SeqnoRecord<'_>| {
                is_over = record.meta.seqno.0 > last;
                if !is_over {
                    visit(record.meta.seqno.0, record.key.get(1..).unwrap_or_default(), record.value);
                }
                !is_over
            };
            scan.run(&mut show).await.map_err(|error| text(&error))
        });
        scanned.map(drop).map_err(failed("scan by seqno"))
    }

    fn read(&mut self, reads: &Reads<'_>, depth: usize) -> Result<Histogram<u64>, BenchError> {
        let opened = self.opened().map_err(failed("read"))?;
        opened.host.block_on(read_all(opened, reads, depth)).map_err(failed("read"))
    }
}

/// Asks for as many documents at a time as `depth` says; each answer that comes makes room for the next question.
async fn read_all(opened: &Opened, reads: &Reads<'_>, depth: usize) -> Result<Histogram<u64>, Failure> {
    type Answer = (u64, Instant, Result<Found, Failure>);
    let answers: Rc<RefCell<VecDeque<Answer>>> = Rc::default();
    let answered = Rc::new(ringbase_storage::sync::Event::default());
    let (mut latency, mut key) = (histogram(), Vec::new());
    let (mut next, mut under_way) = (0, 0);
    loop {
        while under_way < depth && next < reads.count {
            let index = reads.wanted(next, &mut key);
            let started = Instant::now();
            let (answers, answered) = (answers.clone(), answered.clone());
            let then = move |_: &VbStore, found: Result<Found, _>| {
                let found = found.map_err(|error| text(&error));
                answers.borrow_mut().push_back((index, started, found));
                answered.notify_all();
            };
            opened.store.with_key(&with_prefix(&key), Box::new(then));
            next += 1;
            under_way += 1;
        }
        if under_way == 0 {
            return Ok(latency);
        }
        answered.until(|| !answers.borrow().is_empty()).await;
        let came = std::mem::take(&mut *answers.borrow_mut());
        for (index, started, found) in came {
            under_way -= 1;
            reads.check(index, found?.live().map(|item| item.value()), started, &mut latency)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_documents_of_a_buffer_are_found_and_what_is_cut_off_is_said() {
        let mut found = Vec::new();
        let mut visit = |_: u64, key: &[u8], value: &[u8]| found.push((key.to_vec(), value.to_vec()));
        show_keys(b"\x01a\x02bc", &mut visit).unwrap();
        show_documents(b"\x01\0\0\0k\x02\0\0\0vw", &mut visit).unwrap();
        assert!(show_keys(b"\x03ab", &mut visit).is_err());
        assert!(show_keys(b"\x80", &mut visit).is_err());
        assert!(show_documents(b"\x01\0\0\0k\xff\0\0\0vw", &mut visit).is_err());
        let pair = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        assert_eq!(found, [pair("a", ""), pair("bc", ""), pair("k", "vw")]);
    }
}
