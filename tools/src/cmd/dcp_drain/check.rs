//! What a stream promises, checked message by message.
//!
//! In a snapshot in key order seqnos may come in any order; its keys are compared, and what follows lies behind its greatest seqno.
//!
//! Invariants
//! - Memory is bounded: a [`KeyBudget`] limits the hashes of keys that are remembered, [`Violations`] the texts.
//! - A broken promise is found once: what follows is compared with what came, not with what should have come.
//!
//! Cost: one hash and one set entry for each document of the snapshot that is being received.
//! Does not know: connections, what documents should be there.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use ringbase::protocol::dcp::{DcpMessage, MarkerFlags, OsoSnapshot, SnapshotMarker, StreamEndStatus};
use ringbase_storage::types::{Seqno, VbId};
use xxhash_rust::xxh3::xxh3_64;

/// Violations that are kept in words.
const VIOLATIONS_KEPT: usize = 1000;

/// A hasher for numbers that are hashes already.
#[derive(Debug, Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// Builds [`AsIs`].
pub(super) type BuildAsIs = BuildHasherDefault<AsIs>;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) vbucket: VbId,
    pub(super) seqno: Seqno,
    pub(super) found: String,
    pub(super) expected: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { vbucket, seqno, found, expected } = self;
        write!(f, "vbucket {vbucket} seqno {seqno}: found {found}, expected {expected}")
    }
}

/// The first of them in words, all in number.
#[derive(Debug, Default)]
pub(super) struct Violations {
    pub(super) kept: Vec<Violation>,
    pub(super) count: u64,
}

impl Violations {
    pub(super) fn add(
        &mut self,
        (vbucket, seqno): (VbId, Seqno),
        found: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.count += 1;
        if self.kept.len() < VIOLATIONS_KEPT {
            self.kept.push(Violation { vbucket, seqno, found: found.into(), expected: expected.into() });
        }
    }

    /// Adds those of another connection.
    pub(super) fn append(&mut self, other: Violations) {
        self.count += other.count;
        let room = VIOLATIONS_KEPT - self.kept.len();
        self.kept.extend(other.kept.into_iter().take(room));
    }
}

/// How many hashes of keys the streams of a connection may still remember.
#[derive(Debug)]
pub(super) struct KeyBudget {
    left: usize,
    /// Snapshots that ran out of it, whose keys were not all compared.
    pub(super) snapshots_unchecked: u64,
}

impl KeyBudget {
    pub(super) fn new(keys: usize) -> KeyBudget {
        KeyBudget { left: keys, snapshots_unchecked: 0 }
    }
}

/// What is known of one stream.
#[derive(Debug)]
pub(super) struct StreamCheck {
    vbucket: VbId,
    last: Seqno,
    snapshot: Option<(Seqno, Seqno)>,
    allows_oso: bool,
    /// The greatest seqno of the snapshot in key order that is being received.
    oso: Option<Seqno>,
    keys: HashSet<u64, BuildAsIs>,
    compares_keys: bool,
    end: Option<StreamEndStatus>,
}

impl StreamCheck {
    /// A stream that begins after seqno `start`, and may begin with a snapshot in key order.
    pub(super) fn new(vbucket: VbId, start: Seqno, allows_oso: bool) -> StreamCheck {
        let (last, snapshot, oso, keys) = (start, None, None, HashSet::default());
        StreamCheck { vbucket, last, snapshot, allows_oso, oso, keys, compares_keys: false, end: None }
    }

    /// How it ended, if it has.
    pub(super) fn end(&self) -> Option<StreamEndStatus> {
        self.end
    }

    /// Checks the next message.
    pub(super) fn take(&mut self, message: &DcpMessage<'_>, budget: &mut KeyBudget, found: &mut Violations) {
        if let Some(status) = self.end {
            let text = format!("a message after the end with status {}", status.name());
            return found.add((self.vbucket, self.last), text, "no message");
        }
        match message {
            DcpMessage::SnapshotMarker(marker) => self.begin_snapshot(marker, budget, found),
            DcpMessage::Mutation(mutation) => {
                self.advance(mutation.by_seqno, found);
                self.compare_key(mutation.key, budget, found);
            }
            DcpMessage::Deletion(deletion) => {
                self.advance(deletion.by_seqno, found);
                self.compare_key(deletion.key, budget, found);
            }
            DcpMessage::SystemEvent(event) => self.advance(event.by_seqno, found),
            DcpMessage::SeqnoAdvanced(seqno) => self.advance(*seqno, found),
            DcpMessage::OsoSnapshot(edge) if self.allows_oso => self.oso_edge(*edge, budget, found),
            DcpMessage::StreamEnd(status) => {
                self.forget_keys(budget);
                if self.oso.is_some() && *status == StreamEndStatus::Ok {
                    let text = "the end of the stream in a snapshot in key order";
                    found.add((self.vbucket, self.last), text, "the end of the snapshot before it");
                }
                self.end = Some(*status);
                if *status != StreamEndStatus::Ok {
                    let text = format!("the end of the stream with status {}", status.name());
                    found.add((self.vbucket, self.last), text, "status Ok");
                }
            }
            DcpMessage::Prepare(_)
            | DcpMessage::Outcome(_)
            | DcpMessage::OsoSnapshot(_)
            | DcpMessage::SetVbucketState(_)
            | DcpMessage::Noop => {
                found.add(
                    (self.vbucket, self.last),
                    format!("{message:?}"),
                    "only messages that were asked for",
                );
            }
        }
    }

    fn oso_edge(&mut self, edge: OsoSnapshot, budget: &mut KeyBudget, found: &mut Violations) {
        let place = (self.vbucket, self.last);
        match (edge, self.oso.take()) {
            (OsoSnapshot::Start, None) if self.snapshot.is_none() => {
                (self.oso, self.compares_keys) = (Some(self.last), true);
            }
            (OsoSnapshot::End, Some(greatest)) => {
                self.forget_keys(budget);
                (self.snapshot, self.last) = (Some((self.last, greatest)), greatest);
            }
            (edge, oso) => {
                self.oso = oso;
                let text = format!("{edge:?} of a snapshot in key order");
                found.add(place, text, "one start, before all snapshots, and one end behind it");
            }
        }
    }

    fn begin_snapshot(&mut self, marker: &SnapshotMarker, budget: &mut KeyBudget, found: &mut Violations) {
        let text = || format!("a snapshot from {} to {}", marker.start, marker.end);
        let place = (self.vbucket, self.last);
        if self.oso.take().is_some() {
            found.add(place, text(), "the end of the snapshot in key order before it");
        } else if marker.start > marker.end {
            found.add(place, text(), "a start that is not above the end");
        } else if marker.end < self.last {
            found.add(place, text(), format!("an end of at least {}", self.last));
        } else if self.snapshot.is_some() && marker.start <= self.last {
            found.add(place, text(), format!("a start above {}", self.last));
        }
        self.forget_keys(budget);
        self.snapshot = Some((marker.start, marker.end));
        self.compares_keys = !marker.flags.contains(MarkerFlags::MAY_CONTAIN_DUPLICATE_KEYS);
    }

    fn advance(&mut self, seqno: Seqno, found: &mut Violations) {
        let place = (self.vbucket, seqno);
        if let Some(greatest) = &mut self.oso {
            *greatest = seqno.max(*greatest);
            return;
        }
        if seqno <= self.last {
            found.add(place, format!("seqno {seqno}"), format!("one above {}", self.last));
        }
        match self.snapshot {
            None => {
                found.add(place, format!("seqno {seqno} without a snapshot"), "a snapshot marker before it")
            }
            Some((start, end)) if seqno < start || seqno > end => {
                found.add(
                    place,
                    format!("seqno {seqno}"),
                    format!("one of the snapshot from {start} to {end}"),
                );
            }
            Some(_) => {}
        }
        self.last = self.last.max(seqno);
    }

    fn compare_key(&mut self, key: &[u8], budget: &mut KeyBudget, found: &mut Violations) {
        if !self.compares_keys {
            return;
        }
        if !self.keys.insert(xxh3_64(key)) {
            let text = format!("key {} again", shown(key));
            found.add((self.vbucket, self.last), text, "each key once in a snapshot");
        } else if budget.left > 0 {
            budget.left -= 1;
        } else {
            self.keys.remove(&xxh3_64(key));
            self.forget_keys(budget);
            self.compares_keys = false;
            budget.snapshots_unchecked += 1;
        }
    }

    fn forget_keys(&mut self, budget: &mut KeyBudget) {
        budget.left += self.keys.len();
        self.keys = HashSet::default();
    }
}

/// A key in a message for people.
pub(super) fn shown(key: &[u8]) -> String {
    format!("\"{}\"", key.escape_ascii())
}

#[cfg(test)]
mod tests {
    use ringbase::protocol::Datatype;
    use ringbase::protocol::dcp::{MarkerVersion, Mutation};
    use ringbase_storage::types::Cas;

    use super::*;

    fn marker(start: u64, end: u64) -> DcpMessage<'static> {
        DcpMessage::SnapshotMarker(SnapshotMarker {
            start: Seqno(start),
            end: Seqno(end),
            flags: MarkerFlags::MEMORY,
            version: MarkerVersion::V1,
        })
    }

    fn mutation(seqno: u64, key: &'static str) -> DcpMessage<'static> {
        DcpMessage::Mutation(Mutation {
            by_seqno: Seqno(seqno),
            rev_seqno: 1,
            flags: 0,
            expiry: 0,
            lock_time: 0,
            nru: 0,
            cas: Cas(1),
            datatype: Datatype::RAW,
            key: key.as_bytes(),
            value: b"",
        })
    }

    fn ended(status: StreamEndStatus) -> DcpMessage<'static> {
        DcpMessage::StreamEnd(status)
    }

    const START: DcpMessage<'static> = DcpMessage::OsoSnapshot(OsoSnapshot::Start);
    const END: DcpMessage<'static> = DcpMessage::OsoSnapshot(OsoSnapshot::End);

    fn violations(keys: usize, messages: &[DcpMessage<'_>]) -> (Vec<String>, u64) {
        let allows_oso = messages.first() == Some(&START);
        let mut check = StreamCheck::new(VbId(7), Seqno(0), allows_oso);
        let (mut budget, mut found) = (KeyBudget::new(keys), Violations::default());
        messages.iter().for_each(|message| check.take(message, &mut budget, &mut found));
        (found.kept.iter().map(Violation::to_string).collect(), budget.snapshots_unchecked)
    }

    #[test]
    fn a_stream_that_keeps_its_promises_has_no_violation() {
        let messages = [
            marker(0, 5),
            mutation(2, "a"),
            mutation(5, "b"),
            marker(6, 9),
            mutation(7, "a"),
            DcpMessage::SeqnoAdvanced(Seqno(9)),
            ended(StreamEndStatus::Ok),
        ];
        assert_eq!(violations(100, &messages), (Vec::new(), 0));
        let in_key_order = [
            START,
            mutation(9, "a"),
            mutation(2, "b"),
            DcpMessage::SeqnoAdvanced(Seqno(12)),
            END,
            marker(13, 15),
            mutation(15, "a"),
            ended(StreamEndStatus::Ok),
        ];
        assert_eq!(violations(100, &in_key_order), (Vec::new(), 0));
    }

    #[test]
    fn every_broken_promise_is_named_with_what_was_expected() {
        let ok = ended(StreamEndStatus::Ok);
        for (messages, says) in [
            (vec![mutation(1, "a")], "a snapshot marker before it"),
            (vec![marker(0, 5), mutation(2, "a"), mutation(2, "b")], "one above 2"),
            (vec![marker(0, 5), mutation(6, "a")], "one of the snapshot from 0 to 5"),
            (vec![marker(3, 5), mutation(2, "a")], "one of the snapshot from 3 to 5"),
            (vec![marker(0, 5), mutation(2, "a"), mutation(3, "a")], "key \"a\" again"),
            (vec![marker(5, 4)], "a start that is not above the end"),
            (vec![marker(0, 5), mutation(5, "a"), marker(3, 7)], "a start above 5"),
            (vec![marker(0, 5), mutation(5, "a"), marker(1, 4)], "an end of at least 5"),
            (vec![ended(StreamEndStatus::BackfillFail)], "status BackfillFail, expected status Ok"),
            (vec![ok, marker(0, 1)], "a message after the end with status Ok"),
            (vec![DcpMessage::Noop], "only messages that were asked for"),
            (vec![END], "only messages that were asked for"),
            (vec![START, mutation(2, "a"), mutation(1, "a")], "key \"a\" again"),
            (vec![START, START], "one start, before all snapshots"),
            (vec![START, END, END], "one start, before all snapshots"),
            (vec![START, mutation(2, "a"), marker(0, 2)], "the end of the snapshot in key order before it"),
            (vec![START, ended(StreamEndStatus::Ok)], "the end of the snapshot before it"),
            (vec![START, mutation(7, "a"), END, marker(0, 9)], "a start above 7"),
        ] {
            let (found, _) = violations(100, &messages);
            assert_eq!(found.len(), 1, "{messages:?}: {found:?}");
            assert!(found[0].contains(says), "{found:?}");
        }
    }

    #[test]
    fn a_snapshot_above_the_budget_is_counted_and_the_next_is_checked_again() {
        let messages = [
            marker(0, 9),
            mutation(1, "a"),
            mutation(2, "b"),
            mutation(3, "c"),
            mutation(4, "a"),
            marker(10, 19),
            mutation(10, "a"),
            mutation(11, "a"),
        ];
        let (found, unchecked) = violations(2, &messages);
        assert_eq!(unchecked, 1);
        assert_eq!(
            found,
            ["vbucket 7 seqno 11: found key \"a\" again, expected each key once in a snapshot"]
        );
    }
}
