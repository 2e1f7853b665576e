//! Peers: other embedded engines, each as a store of two ordered tables.
//!
//! A peer says how it opens, writes a batch, reads and walks a table; how documents are laid out in the two tables, and what a scan or a read does with
//! them, is here and the same for all of them.
//!
//! | layout | table by key | table by seqno |
//! |---|---|---|
//! | bodies by seqno | key -> seqno | seqno -> key and value |
//! | bodies by key | key -> seqno and value | seqno -> key |
//!
//! A scan whose bodies lie in the other table fetches them a window at a time with many threads (`lanes`), in the order in which they lie there, as the
//! store of this project does it with reads in flight.
//!
//! Invariants
//! - An overwrite takes the old seqno out of the table by seqno, in the batch that puts the new one in.
//!
//! Does not know: what is measured.

#[cfg(feature = "peers")]
pub(super) mod fjall;
mod lanes;
#[cfg(feature = "peers")]
pub(super) mod lmdb;
#[cfg(feature = "peers")]
pub(super) mod redb;
#[cfg(feature = "peer-rocksdb")]
pub(super) mod rocksdb;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;

use self::lanes::{Lanes, with_lanes};
use super::Layout;
use super::api::{Engine, Failure, Novelty, Purpose, Reads, Tuning, Visit};
use super::data::Batch;
use crate::error::BenchError;
use crate::recorder::histogram;

/// Records of a window whose bodies are fetched together.
const WINDOW_RECORDS: usize = 256;

/// Bytes of a seqno, big-endian, so that its order is that of the bytes.
const SEQNO_BYTES: usize = 8;

/// One of the two tables of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    ByKey,
    BySeqno,
}

/// One change of a batch.
#[derive(Debug)]
enum Change {
    /// In a table by seqno the key is above all that are there.
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
}

/// What a walk through a table shows; false ends it.
type Show<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> bool;

/// One view of a peer for one thread.
trait View {
    /// Shows the value of `key`; false if there is none.
    fn get(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure>;

    /// Shows a table from its beginning.
    fn walk(&self, table: Table, show: Show<'_>) -> Result<(), Failure>;
}

/// An embedded engine with two ordered tables.
trait Peer: Sync + Sized {
    /// Its name in tables of results.
    const NAME: &'static str;

    /// What a thread reads through.
    type View<'a>: View
    where
        Self: 'a;

    /// Opens what is in its directory, or begins there.
    fn open(tuning: &Tuning, purpose: Purpose) -> Result<Self, Failure>;

    /// Applies a batch, all or nothing; durable when it returns.
    fn apply(&self, changes: Vec<Change>) -> Result<(), Failure>;

    /// A view of what is there now.
    fn view(&self) -> Result<Self::View<'_>, Failure>;

    /// Waits until what is in memory only is in the files, and what the engine does by itself is done.
    fn settle(&self) -> Result<(), Failure>;
}

/// A peer with its documents in one of the layouts.
struct Laid<P> {
    tuning: Tuning,
    layout: Layout,
    peer: Option<P>,
    last_seqno: u64,
}

impl<P: Peer> Laid<P> {
    fn new(tuning: Tuning, layout: Layout) -> Laid<P> {
        Laid { tuning, layout, peer: None, last_seqno: 0 }
    }

    fn peer(&self) -> Result<&P, Failure> {
        self.peer.as_ref().ok_or_else(|| "it is not open".into())
    }

    /// Changes that store a batch, `old` the values of its keys in the table by key.
    fn changes(&self, batch: &Batch, old: &[Option<Vec<u8>>]) -> Result<Vec<Change>, Failure> {
        let documents = batch.documents();
        let mut changes = Vec::with_capacity(3 * documents.len());
        for old in old {
            let old = old.as_ref().and_then(|value| value.get(..SEQNO_BYTES));
            changes
                .push(Change::Delete(Table::BySeqno, old.ok_or("a key to overwrite is not there")?.to_vec()));
        }
        for ((key, value), seqno) in documents.iter().zip(self.last_seqno + 1..) {
            let seqno = seqno.to_be_bytes();
            let (by_key, by_seqno) = match self.layout {
                Layout::BodiesBySeqno => (seqno.to_vec(), body(key, value)),
                Layout::BodiesByKey => ([&seqno, &value[..]].concat(), key.clone()),
            };
            changes.push(Change::Put(Table::ByKey, key.clone(), by_key));
            changes.push(Change::Put(Table::BySeqno, seqno.to_vec(), by_seqno));
        }
        Ok(changes)
    }

    fn write_batch(&mut self, batch: &Batch, novelty: Novelty) -> Result<(), Failure> {
        let peer = self.peer()?;
        let old = match novelty {
            Novelty::New => Vec::new(),
            Novelty::Overwrite => with_lanes(peer, |lanes| {
                lanes.fetch(Table::ByKey, batch.documents().iter().map(|(key, _)| key.clone()).collect())
            })?,
        };
        peer.apply(self.changes(batch, &old)?)?;
        self.last_seqno += batch.documents().len() as u64;
        Ok(())
    }

    fn documents(&self, end: &[u8], visit: Visit<'_>) -> Result<(), Failure> {
        let peer = self.peer()?;
        let view = peer.view()?;
        match self.layout {
            Layout::BodiesByKey => view.walk(Table::ByKey, &mut |key, value| {
                let is_wanted = key < end;
                if is_wanted {
                    visit(0, key, value.get(SEQNO_BYTES..).unwrap_or_default());
                }
                is_wanted
            }),
            Layout::BodiesBySeqno => with_lanes(peer, |lanes| {
                let mut window = Window::new(lanes, Table::BySeqno);
                window.walk(&view, Table::ByKey, |key, _| key < end, &mut |key, _, body| {
                    let (_, value) = parts(body)?;
                    visit(0, key, value);
                    Ok(())
                })
            }),
        }
    }

    fn seqnos(&self, last: u64, visit: Visit<'_>) -> Result<(), Failure> {
        let peer = self.peer()?;
        let view = peer.view()?;
        let mut failure = None;
        match self.layout {
            Layout::BodiesBySeqno => view.walk(Table::BySeqno, &mut |key, value| {
                let (Some(seqno), Ok((key, value))) = (number(key), parts(value)) else {
                    failure = Some("a record is none".into());
                    return false;
                };
                let is_wanted = seqno <= last;
                if is_wanted {
                    visit(seqno, key, value);
                }
                is_wanted
            })?,
            Layout::BodiesByKey => with_lanes(peer, |lanes| {
                let mut window = Window::new(lanes, Table::ByKey);
                let is_wanted = |key: &[u8], _: &[u8]| number(key).is_some_and(|seqno| seqno <= last);
                window.walk(&view, Table::BySeqno, is_wanted, &mut |seqno, key, value| {
                    visit(number(seqno).unwrap_or(0), key, value.get(SEQNO_BYTES..).unwrap_or_default());
                    Ok(())
                })
            })?,
        }
        failure.map_or(Ok(()), Err)
    }

    /// The reads of one thread, of those that all of them share.
    fn read_some(&self, reads: &Reads<'_>, next: &AtomicU64) -> Result<Histogram<u64>, Failure> {
        let view = self.peer()?.view()?;
        let (mut latency, mut key) = (histogram(), Vec::new());
        let (mut seqno, mut value) = (Vec::new(), Vec::new());
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= reads.count {
                return Ok(latency);
            }
            let index = reads.wanted(n, &mut key);
            let started = Instant::now();
            let mut is_there = view.get(Table::ByKey, &key, &mut |found| replace(&mut seqno, found))?;
            if self.layout == Layout::BodiesByKey {
                let found = is_there.then(|| seqno.get(SEQNO_BYTES..)).flatten();
                reads.check(index, found, started, &mut latency)?;
                continue;
            }
            is_there &= view.get(Table::BySeqno, &seqno, &mut |found| replace(&mut value, found))?;
            let found = if is_there { Some(parts(&value)?.1) } else { None };
            reads.check(index, found, started, &mut latency)?;
        }
    }
}

fn replace(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
}

/// Key and value as one value: the key's length in two bytes, the key, the value.
fn body(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&(key.len() as u16).to_be_bytes(), key, value].concat()
}

/// Key and value of a body.
fn parts(body: &[u8]) -> Result<(&[u8], &[u8]), Failure> {
    let cut = || Failure::from("a document is cut off");
    let (len, rest) = body.split_first_chunk().ok_or_else(cut)?;
    rest.split_at_checked(u16::from_be_bytes(*len).into()).ok_or_else(cut)
}

fn number(seqno: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(seqno.try_into().ok()?))
}

/// Records of one table, whose values are keys in the other.
struct Window<'a> {
    lanes: &'a Lanes,
    /// Where the bodies are.
    table: Table,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a window shows: key and value of the outer table, and the value of the inner one.
type ShowThree<'a> = &'a mut dyn FnMut(&[u8], &[u8], &[u8]) -> Result<(), Failure>;

impl<'a> Window<'a> {
    fn new(lanes: &'a Lanes, table: Table) -> Window<'a> {
        Window { lanes, table, records: Vec::with_capacity(WINDOW_RECORDS) }
    }

    /// Walks `outer` as long as records are wanted, and shows each with what its value is the key of.
    fn walk(
        &mut self,
        view: &impl View,
        outer: Table,
        is_wanted: impl Fn(&[u8], &[u8]) -> bool,
        show: ShowThree<'_>,
    ) -> Result<(), Failure> {
        let mut failure = None;
        view.walk(outer, &mut |key, value| {
            if !is_wanted(key, value) {
                return false;
            }
            self.records.push((key.to_vec(), value.to_vec()));
            if self.records.len() == WINDOW_RECORDS {
                failure = self.show(show).err();
            }
            failure.is_none()
        })?;
        failure.map_or_else(|| self.show(show), Err)
    }

    fn show(&mut self, show: ShowThree<'_>) -> Result<(), Failure> {
        let wanted = self.records.iter().map(|(_, inner)| inner.clone()).collect();
        let bodies = self.lanes.fetch(self.table, wanted)?;
        for ((key, value), body) in self.records.drain(..).zip(bodies) {
            show(&key, &value, &body.ok_or("a document that a table names is not there")?)?;
        }
        Ok(())
    }
}

impl<P: Peer> Engine for Laid<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn open(&mut self, purpose: Purpose) -> Result<(), BenchError> {
        self.peer = Some(P::open(&self.tuning, purpose).map_err(BenchError::engine(P::NAME, "open"))?);
        Ok(())
    }

    fn close(&mut self) -> Result<(), BenchError> {
        self.peer = None;
        Ok(())
    }

    fn write(&mut self, batch: &Batch, novelty: Novelty) -> Result<(), BenchError> {
        self.write_batch(batch, novelty).map_err(BenchError::engine(P::NAME, "write to"))
    }

    fn settle(&mut self) -> Result<(), BenchError> {
        self.peer().and_then(P::settle).map_err(BenchError::engine(P::NAME, "flush"))
    }

    fn scan_keys(&mut self, visit: Visit<'_>) -> Result<(), BenchError> {
        let mut show = |key: &[u8], _: &[u8]| {
            visit(0, key, &[]);
            true
        };
        let walked = self.peer().and_then(|peer| peer.view()?.walk(Table::ByKey, &mut show));
        walked.map_err(BenchError::engine(P::NAME, "scan the keys of"))
    }

    fn scan_documents(&mut self, end: &[u8], visit: Visit<'_>) -> Result<(), BenchError> {
        self.documents(end, visit).map_err(BenchError::engine(P::NAME, "scan the documents of"))
    }

    fn scan_seqnos(&mut self, last: u64, visit: Visit<'_>) -> Result<(), BenchError> {
        self.seqnos(last, visit).map_err(BenchError::engine(P::NAME, "scan by seqno"))
    }

    fn read(&mut self, reads: &Reads<'_>, depth: usize) -> Result<Histogram<u64>, BenchError> {
        let (next, this) = (AtomicU64::new(0), &*self);
        let read = || this.read_some(reads, &next);
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..depth).map(|_| scope.spawn(read)).collect();
            let mut all = histogram();
            for thread in threads {
                let latency = thread.join().map_err(|_| "a thread that read has panicked")??;
                all.add(&latency)?;
            }
            Ok(all)
        });
        all.map_err(BenchError::engine(P::NAME, "read"))
    }
}

/// The peer of this name, if there is one and it was built in.
pub(super) fn named(name: &str, tuning: Tuning, layout: Layout) -> Option<Box<dyn Engine>> {
    match name {
        #[cfg(feature = "peers")]
        fjall::NAME => Some(Box::new(Laid::<fjall::Fjall>::new(tuning, layout))),
        #[cfg(feature = "peers")]
        lmdb::NAME => Some(Box::new(Laid::<lmdb::Lmdb>::new(tuning, layout))),
        #[cfg(feature = "peers")]
        redb::NAME => Some(Box::new(Laid::<redb::Redb>::new(tuning, layout))),
        #[cfg(feature = "peer-rocksdb")]
        rocksdb::NAME => Some(Box::new(Laid::<rocksdb::RocksDb>::new(tuning, layout))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_value_come_out_of_a_body_and_a_cut_one_is_an_error() {
        let body = body(b"key", b"value");
        assert_eq!(parts(&body).unwrap(), (&b"key"[..], &b"value"[..]));
        assert!(parts(&body[..4]).is_err() && parts(&[]).is_err());
        assert_eq!(number(&7_u64.to_be_bytes()), Some(7));
        assert_eq!(number(b"short"), None);
    }
}
