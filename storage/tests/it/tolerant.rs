//! A client of devices that fail: errors are answers to it, wrong answers are not. And what must hold when the devices are well again.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::io::sim::{Fault, Injection};
use ringbase_storage::scan::{Content, DocumentEncoder, KeyRange, KeyScan, Limits, SeqnoScan, Stop};
use ringbase_storage::shard::Shard;
use ringbase_storage::types::{Kind, Seqno, VbId};
use ringbase_storage::vbstore::{Found, NewVersion, ReadView, VbStore};

use crate::world::{BUCKET, Model, VBUCKETS, VbModel, Written, check_view};

/// What a client met; answers that are errors are no violation.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Met {
    pub(crate) read_errors: u64,
    pub(crate) write_errors: u64,
    pub(crate) not_persisted: u64,
    pub(crate) failed_shards: u64,
    pub(crate) refused_starts: u64,
    pub(crate) ended_scans: u64,
    pub(crate) whole_scans: u64,
}

/// Looks a key up; the answer is the model's or an error.
pub(crate) async fn get(store: &Rc<VbStore>, model: &Model, key: &[u8], met: &mut Met) -> Option<Found> {
    let found = store.get(key).await.map_err(|_| met.read_errors += 1).ok()?;
    let known = model.borrow();
    let known = known[store.id().0 as usize].newest(key);
    let shown = match &found {
        Found::Version(item) => Some((item.seqno().0, (!item.is_deleted()).then(|| item.value()))),
        Found::Absent => None,
    };
    assert_eq!(shown, known, "vb {}: wrong answer for {key:?}", store.id());
    Some(found)
}

/// Writes one version of a key, or deletes it.
pub(crate) async fn write(
    store: &Rc<VbStore>,
    model: &Model,
    key: &[u8],
    value: Option<&[u8]>,
    met: &mut Met,
) {
    let Some(found) = get(store, model, key, met).await else { return };
    let kind = if value.is_some() { Kind::Mutation } else { Kind::Deletion };
    let new = NewVersion { key, value: value.unwrap_or_default(), flags: 5, expiry: 0, datatype: 0, kind };
    let Ok(item) = store.write(&found, new) else {
        met.write_errors += 1;
        return;
    };
    let vb = &mut model.borrow_mut()[store.id().0 as usize];
    vb.writes.push(Written { key: key.to_vec(), value: value.map(<[u8]>::to_vec), cas: item.cas() });
    assert_eq!(item.seqno().0, vb.writes.len() as u64);
}

/// Waits for all that was written; only a failed shard, or a vbucket that goes, leaves a waiter without its seqno.
pub(crate) async fn wait_persisted(shard: &Shard, store: &VbStore, met: &mut Met) {
    if !store.wait_persisted(store.high_seqno()).await {
        met.not_persisted += 1;
        assert!(shard.failure().is_some() || store.has_ended(), "a shard that goes on forgot a waiter");
    }
}

/// Seqno, key and value of a version, no value if it is a deletion.
type Shown = (u64, Vec<u8>, Option<Vec<u8>>);

/// Scans of one view in both orders, held open while the store goes on. What comes before an error is a beginning of the snapshot, without an
/// error it is all of it.
pub(crate) struct Held {
    keys: Option<(KeyScan, String)>,
    seqnos: Option<(SeqnoScan, VecDeque<Shown>)>,
}

fn line(seqno: u64, key: &[u8], value: &[u8]) -> String {
    format!("{seqno} {} {value:?}\n", key.escape_ascii())
}

impl Held {
    /// Scans of what `view` must show.
    pub(crate) fn new(view: &ReadView, known: &VbModel) -> Held {
        let expected = known.at(view.end());
        let encoder: DocumentEncoder = Rc::new(|out, meta, key, value| {
            out.extend_from_slice(line(meta.seqno.0, key, value).as_bytes());
        });
        let documents = expected
            .iter()
            .filter_map(|(key, (seqno, value))| Some(line(*seqno, &key[1..], value.as_ref()?)))
            .collect();
        let mut by_seqno: Vec<Shown> =
            expected.into_iter().map(|(key, (seqno, value))| (seqno, key, value)).collect();
        by_seqno.sort();
        let range = KeyRange::collection(0);
        let keys = KeyScan::new(view.clone(), range, Content::Documents(encoder), None);
        let seqnos = SeqnoScan::new(view.clone(), Seqno(1));
        Held { keys: Some((keys, documents)), seqnos: Some((seqnos, by_seqno.into())) }
    }

    /// Whether both have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.keys.is_none() && self.seqnos.is_none()
    }

    /// Reads a few more records of each.
    pub(crate) async fn advance(&mut self, records: usize, met: &mut Met) {
        self.advance_keys(records, met).await;
        self.advance_seqnos(records, met).await;
    }

    async fn advance_keys(&mut self, records: usize, met: &mut Met) {
        let Some((mut scan, rest)) = self.keys.take() else { return };
        let mut out = Vec::new();
        let items = u64::try_from(records).ok();
        let mut limits = Limits { buffer_bytes: 1 << 20, items, bytes: None, deadline_ns: None };
        let stop = scan.fill(&mut out, &mut limits).await;
        let out = String::from_utf8(out).expect("lines were written");
        let Some(rest) = rest.strip_prefix(&out) else {
            panic!("{:?} in key order: {out} is no beginning of {rest}", scan.view());
        };
        match stop {
            Err(_) => {
                met.read_errors += 1;
                met.ended_scans += 1;
            }
            Ok(Stop::End) => {
                assert_eq!(rest, "", "{:?} in key order ends early without an error", scan.view());
                met.whole_scans += 1;
            }
            Ok(_) => self.keys = Some((scan, rest.to_owned())),
        }
    }

    async fn advance_seqnos(&mut self, records: usize, met: &mut Met) {
        let Some((mut scan, mut rest)) = self.seqnos.take() else { return };
        let mut left = records;
        let more = scan
            .run(|record| {
                let (seqno, key, value) = rest.pop_front().expect("no more than the model has");
                let shown = (!record.meta.kind.is_deleted()).then_some(record.value);
                assert_eq!((record.meta.seqno.0, record.key, shown), (seqno, &key[..], value.as_deref()));
                left -= 1;
                left > 0
            })
            .await;
        match more {
            Err(_) => {
                met.read_errors += 1;
                met.ended_scans += 1;
            }
            Ok(false) => {
                assert!(rest.is_empty(), "{:?} in seqno order ends early without an error", scan.view());
                met.whole_scans += 1;
            }
            Ok(true) => self.seqnos = Some((scan, rest)),
        }
    }
}

/// Scans a view in both orders, to the end or to an error.
pub(crate) async fn scan(view: &ReadView, known: &VbModel, met: &mut Met) {
    let mut held = Held::new(view, known);
    while !held.has_ended() {
        held.advance(1000, met).await;
    }
}

/// What may be there of a vbucket that is deleted and made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It must be there.
    There,
    /// Its deletion was begun, and nobody was told that it is over.
    PerhapsGone,
    /// Nothing may be there.
    Gone,
    /// As before, or an empty one: making it was begun, and nobody was told that it is over.
    PerhapsNew,
}

/// What each vbucket reports durable; 0 of one that is not there.
pub(crate) fn reported_by_id(shard: &Shard) -> Vec<Seqno> {
    let reported = |vb| shard.vbucket(BUCKET, VbId(vb)).map(|store| store.persisted_seqno());
    (0..VBUCKETS).map(|vb| reported(vb).unwrap_or_default()).collect()
}

/// Which vbuckets may be there, where none is ever deleted.
pub(crate) const ALL_THERE: [Presence; VBUCKETS as usize] = [Presence::There; VBUCKETS as usize];

/// After a start on devices without faults everything acknowledged is there, and a gap-free beginning of the rest; what is not there is struck from
/// the model.
pub(crate) async fn check(
    shard: &Shard,
    model: &Model,
    presence: &[Presence],
    known: &[Seqno],
    random: &mut Xoshiro256PlusPlus,
) {
    for (vb, presence) in (0..VBUCKETS).zip(presence) {
        let Some(store) = shard.vbucket(BUCKET, VbId(vb)) else {
            assert_ne!(*presence, Presence::There, "vb {vb} is gone");
            model.borrow_mut()[vb as usize] = VbModel::default();
            continue;
        };
        assert_ne!(*presence, Presence::Gone, "vb {vb} has come back");
        if *presence == Presence::PerhapsNew {
            assert_eq!(store.high_seqno(), Seqno(0), "vb {vb}: a new one is empty");
        }
        check_vbucket(&store, model, known[vb as usize], random).await;
    }
}

async fn check_vbucket(store: &Rc<VbStore>, model: &Model, reported: Seqno, random: &mut Xoshiro256PlusPlus) {
    let (vb, high) = (store.id(), store.high_seqno());
    assert!(high >= reported, "vb {vb}: {reported} was reported persisted, only {high} was recovered");
    let known = {
        let known = &mut model.borrow_mut()[vb.0 as usize];
        assert!(high.0 <= known.writes.len() as u64, "vb {vb}: seqno {high} was never written");
        known.writes.truncate(high.0 as usize);
        known.clone()
    };
    let view = store.open_view().await.expect("the devices are well again");
    check_view(&view, &known, random).await;
}

/// Fails the n-th operation that each of `faults` matches, once and from then on, for `n` of 1, `first` more and then in strides, until a run
/// completes untouched; returns how many runs there were.
pub(crate) fn error_loop(
    faults: &[(Fault, Option<&str>)],
    first: u64,
    stride: u64,
    mut fails: impl FnMut(&Injection) -> bool,
) -> u64 {
    let mut runs = 0;
    for (fault, file) in faults {
        for sticky in [false, true] {
            let (mut nth, mut step) = (1, first);
            loop {
                let injection = Injection::nth(*fault, nth);
                let injection = file.map_or(injection.clone(), |file| injection.on(file));
                let injection = if sticky { injection.sticky() } else { injection };
                runs += 1;
                let strikes = catch_unwind(AssertUnwindSafe(|| fails(&injection))).unwrap_or_else(|panic| {
                    eprintln!("failed with {injection:?}");
                    resume_unwind(panic)
                });
                if !strikes {
                    break;
                }
                nth += step;
                step = stride;
            }
            assert!(nth > 1, "{fault:?} never struck {file:?}");
        }
    }
    runs
}

/// Every single one in the long form, which `RINGBASE_EXHAUSTIVE` asks for; else one of `sparse`.
pub(crate) fn stride(sparse: u64) -> u64 {
    if std::env::var_os("RINGBASE_EXHAUSTIVE").is_some() { 1 } else { sparse }
}
