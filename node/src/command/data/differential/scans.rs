//! Scans of both buckets that were opened at the same moment, against what the model had at that moment.
//!
//! Does not know: commands.

use std::collections::BTreeSet;
use std::rc::Rc;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::reader::ReadError;
use ringbase_storage::scan::{Content, KeyRange, KeyScan, Limits, SeqnoScan, Stop};
use ringbase_storage::types::{Cas, ItemMeta, Kind, Seqno};
use ringbase_storage::vbstore::{ReadView, VbStore};

use super::history::{Vbucket, Version};

/// How the text of a failed comparison begins.
pub(super) const COMPARED: &str = "scan by ";

/// How far a pair has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    More,
    End,
    Gone,
}

enum Scan {
    Keys(KeyScan),
    Seqnos(SeqnoScan),
}

/// A scan of one bucket.
struct Running {
    scan: Scan,
    expected: Rc<Vec<(Seqno, Version)>>,
    /// How much of what is expected lies behind.
    passed: usize,
    /// Tombstones up to here may be missing: they were purged before it was opened.
    purged: Seqno,
    state: Read,
}

/// See the module.
pub(super) struct Pair {
    both: [Running; 2],
    /// The seqnos of the documents at its moment, if they may be asked for: before a scan in key order has passed some.
    live: Option<BTreeSet<Seqno>>,
    is_bucket_gone: bool,
}

/// A record in bytes: fixed fields, key, value.
fn encode(out: &mut Vec<u8>, meta: &ItemMeta, key: &[u8], value: &[u8]) {
    let (words, lengths) = ([meta.flags, meta.expiry, meta.datatype.into()], [key.len(), value.len()]);
    let numbers = [meta.seqno.0, meta.cas.0].into_iter().chain(words.map(u64::from));
    for number in numbers.chain(lengths.map(|length| length as u64)) {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// The documents that [`encode`] has appended.
fn decode(mut bytes: &[u8]) -> Vec<(Seqno, Version)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (fields, rest) = bytes.split_first_chunk::<56>().expect("a whole record");
        let number =
            |index: usize| u64::from_be_bytes(fields[8 * index..][..8].try_into().expect("eight bytes"));
        let (key, rest) = rest.split_at(number(5) as usize);
        let (value, rest) = rest.split_at(number(6) as usize);
        let (flags, expiry, has_xattrs) = (number(2) as u32, number(3) as u32, number(4) & 4 != 0);
        let (key, value) = (key.to_vec(), value.to_vec());
        let (kind, cas) = (Kind::Mutation, Cas(number(1)));
        let version = Version { key, value, flags, expiry, kind, cas, has_xattrs };
        all.push((Seqno(number(0)), version));
        bytes = rest;
    }
    all
}

/// Some or all keys of the default collection, and whether a key is among them.
fn random_range(random: &mut Xoshiro256PlusPlus) -> KeyRange {
    const ENDS: [&[u8]; 6] = [b"", b"a03", b"key", b"key04", b"m", b"z\xc3\xbf08"];
    let mut range = KeyRange::collection(0);
    if random.random_bool(0.5) {
        range.start = ENDS[random.random_range(0..ENDS.len())].to_vec();
        range.start_exclusive = random.random_bool(0.5);
    }
    if random.random_bool(0.5) {
        range.end = Some(ENDS[random.random_range(1..ENDS.len())].to_vec());
        range.end_exclusive = random.random_bool(0.5);
    }
    range
}

fn contains(range: &KeyRange, key: &[u8]) -> bool {
    let is_started = if range.start_exclusive { key > &range.start[..] } else { key >= &range.start[..] };
    let is_ended = range
        .end
        .as_ref()
        .is_some_and(|end| if range.end_exclusive { key >= &end[..] } else { key > &end[..] });
    is_started && !is_ended
}

impl Pair {
    /// Opens a scan of each store, which now holds what `model` holds.
    pub(super) fn open(
        sim: &SimExecutor,
        stores: &[Rc<VbStore>; 2],
        model: &Vbucket,
        random: &mut Xoshiro256PlusPlus,
    ) -> Pair {
        let mut live = None;
        let both = if random.random_bool(0.5) {
            let range = random_range(random);
            let documents = model.in_key_order();
            let count = documents.len() as u64;
            live = Some(documents.iter().map(|(seqno, _)| *seqno).collect());
            let wanted = documents.into_iter().filter(|(_, version)| contains(&range, &version.key));
            let expected = Rc::new(wanted.collect::<Vec<_>>());
            stores.each_ref().map(|store| {
                let view = sim.block_on(store.open_view()).expect("a view opens");
                assert_eq!((view.end(), view.items()), (model.high(), count), "{store:?}");
                let scan = KeyScan::new(view, range.clone(), Content::Documents(Rc::new(encode)), None);
                Running::new(Scan::Keys(scan), &expected, Seqno(0))
            })
        } else {
            let from =
                Seqno(if random.random_bool(0.5) { 0 } else { random.random_range(0..=model.high().0) });
            let expected = Rc::new(model.in_seqno_order(from));
            stores.each_ref().map(|store| {
                let scan = sim.block_on(SeqnoScan::open(store, from)).expect("a scan opens");
                assert_eq!(scan.view().end(), model.high(), "{store:?}");
                assert_eq!(scan.purge_seqno(), store.purge_seqno(), "{store:?}");
                let purged = scan.purge_seqno();
                Running::new(Scan::Seqnos(scan), &expected, purged)
            })
        };
        Pair { both, live, is_bucket_gone: false }
    }

    pub(super) fn is_by_key(&self) -> bool {
        matches!(self.both[0].scan, Scan::Keys(_))
    }

    /// From now on the scans may end before their end, and show nothing wrong.
    pub(super) fn bucket_is_gone(&mut self) {
        self.is_bucket_gone = true;
    }

    /// Documents that the scan of the bucket on disk took from there.
    pub(super) fn shown_from_disk(&self) -> u64 {
        match &self.both[0].scan {
            Scan::Keys(scan) => scan.counts().from_disk,
            Scan::Seqnos(scan) => scan.counts().from_disk,
        }
    }

    /// Asks both views for the document with a seqno, as it was at their moment; how often.
    pub(super) fn ask_for_seqno(&self, sim: &SimExecutor, random: &mut Xoshiro256PlusPlus) -> u64 {
        let Some(live) = &self.live else { return 0 };
        let seqno = Seqno(random.random_range(0..=self.both[0].view().end().0 + 1));
        for running in &self.both {
            match sim.block_on(running.view().contains_seqno(seqno)) {
                Err(ReadError::Gone) if self.is_bucket_gone => {}
                Err(error) => panic!("{error}"),
                Ok(shown) => assert_eq!(shown, live.contains(&seqno), "{seqno}: {}", running.what()),
            }
        }
        1
    }

    /// Reads on, each scan by a piece of its own, or not at all.
    pub(super) fn read(&mut self, sim: &SimExecutor, random: &mut Xoshiro256PlusPlus) -> Read {
        for running in &mut self.both {
            if running.state == Read::More && random.random_bool(0.6) {
                self.live = None;
                running.read(sim, [1, 2, 5, 1000][random.random_range(0..4)]);
                assert!(running.state != Read::Gone || self.is_bucket_gone, "the bucket is there");
            }
        }
        match [self.both[0].state, self.both[1].state] {
            [Read::More, _] | [_, Read::More] => Read::More,
            [Read::End, Read::End] => Read::End,
            [Read::Gone, _] | [_, Read::Gone] => Read::Gone,
        }
    }
}

impl Running {
    fn new(scan: Scan, expected: &Rc<Vec<(Seqno, Version)>>, purged: Seqno) -> Running {
        Running { scan, expected: expected.clone(), passed: 0, purged, state: Read::More }
    }

    /// Reads at most `items` records and compares them.
    fn read(&mut self, sim: &SimExecutor, items: usize) {
        let (shown, more) = match sim.block_on(self.piece(items)) {
            Ok(read) => read,
            Err(ReadError::Gone) => {
                self.state = Read::Gone;
                return;
            }
            Err(error) => panic!("{error}"),
        };
        for record in shown {
            while self.next_is_purged() && self.expected[self.passed] != record {
                self.passed += 1;
            }
            assert_eq!(self.expected.get(self.passed), Some(&record), "{}", self.what());
            self.passed += 1;
        }
        if !more {
            while self.next_is_purged() {
                self.passed += 1;
            }
            assert_eq!(self.expected.get(self.passed), None, "{}, and ends", self.what());
            self.state = Read::End;
        }
    }

    /// Whether what is expected next may be missing.
    fn next_is_purged(&self) -> bool {
        let next = self.expected.get(self.passed);
        next.is_some_and(|(seqno, version)| version.kind.is_deleted() && *seqno <= self.purged)
    }

    fn view(&self) -> &ReadView {
        match &self.scan {
            Scan::Keys(scan) => scan.view(),
            Scan::Seqnos(scan) => scan.view(),
        }
    }

    /// Which scan it is and how far it is, for a failure.
    fn what(&self) -> String {
        let order = if matches!(self.scan, Scan::Keys(_)) { "key" } else { "seqno" };
        let home = if self.view().store().is_ephemeral() { "in memory" } else { "on disk" };
        format!(
            "{COMPARED}{order}, {:?} {home}, after {} of {}",
            self.view(),
            self.passed,
            self.expected.len()
        )
    }

    /// The next records, and whether there may be more.
    async fn piece(&mut self, items: usize) -> Result<(Vec<(Seqno, Version)>, bool), ReadError> {
        match &mut self.scan {
            Scan::Keys(scan) => {
                let mut out = Vec::new();
                let items = Some(items as u64);
                let mut limits = Limits { buffer_bytes: 1 << 20, items, bytes: None, deadline_ns: None };
                let stop = scan.fill(&mut out, &mut limits).await?;
                Ok((decode(&out), stop != Stop::End))
            }
            Scan::Seqnos(scan) => {
                let mut shown = Vec::new();
                let more = scan
                    .run(|record| {
                        let version = Version::of(&record.meta, &record.key[1..], record.value);
                        shown.push((record.meta.seqno, version));
                        shown.len() < items
                    })
                    .await?;
                Ok((shown, more))
            }
        }
    }
}
