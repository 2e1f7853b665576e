//! Where a client must go back to before its stream may start.
//!
//! A client says which branch of history its copy is on, the last seqno it has, and the snapshot that seqno is in.
//! In the middle of a snapshot its copy already lacks what the snapshot overwrote, so it depends on the whole of it.
//!
//! Invariants
//! - [`Decision::Proceed`] only if all that the client holds, the snapshot it is in the middle of included, is in the
//!   server's history.
//! - A rollback goes below what the client has, unless that is nothing.
//!
//! Cost: one pass over the failover log.
//!
//! Does not know: how a rollback is answered, which other checks come before.
//! Source: Couchbase KV protocol, DCP rollback, as the reference implementation computes it.

use ringbase_storage::types::{FailoverEntry, Seqno, VbUuid};

use super::failover::branch_end;
use crate::protocol::dcp::{StreamFlags, StreamRequest};

/// What a client says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The last seqno it has.
    pub start: Seqno,
    /// First seqno of the snapshot that `start` is in.
    pub snap_start: Seqno,
    /// Last seqno of that snapshot.
    pub snap_end: Seqno,
    /// The branch of its copy.
    pub uuid: VbUuid,
    /// Whether the uuid counts even at start 0.
    pub strict_uuid: bool,
    /// Whether purged tombstones are no reason to go back.
    pub ignores_purged: bool,
    /// The purge seqno of its last marker, if it got one and says so.
    pub purge_seqno: Option<Seqno>,
    /// Highest seqno of the collections the stream carries, if it does not carry all of them (a filter, or a
    /// connection without Collections, which gets the default collection only).
    pub subset_high_seqno: Option<Seqno>,
}

impl Claim {
    /// What `request` says; `purge_seqno` is from its filter.
    #[must_use]
    pub fn of(
        request: &StreamRequest,
        purge_seqno: Option<Seqno>,
        subset_high_seqno: Option<Seqno>,
    ) -> Claim {
        Claim {
            start: request.start,
            snap_start: request.snap_start,
            snap_end: request.snap_end,
            uuid: request.uuid,
            strict_uuid: request.flags.contains(StreamFlags::STRICT_VB_UUID),
            ignores_purged: request.flags.contains(StreamFlags::IGNORE_PURGED_TOMBSTONES),
            purge_seqno,
            subset_high_seqno,
        }
    }

    /// Whether the client may miss tombstones that are purged up to `purge_seqno`: then it must start anew.
    ///
    /// Asked twice: of a stream request, and of the snapshot that its backfill opens, because compaction may have
    /// moved on in between; there it ends the stream with status Rollback.
    #[must_use]
    pub fn misses_tombstones(&self, purge_seqno: Seqno) -> bool {
        if self.start == Seqno(0) || self.ignores_purged || self.start >= purge_seqno {
            return false;
        }
        let has_whole_subset =
            self.subset_high_seqno.is_some_and(|high| high <= self.start && high <= purge_seqno);
        !has_whole_subset && self.purge_seqno != Some(purge_seqno)
    }
}

/// What a vbucket knows of its past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History<'a> {
    /// Its branches, newest first.
    pub log: &'a [FailoverEntry],
    /// The greatest seqno it assigned.
    pub high_seqno: Seqno,
    /// The greatest tombstone it purged.
    pub purge_seqno: Seqno,
}

/// Whether a stream may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may, where the client said.
    Proceed,
    /// The client must first discard everything above this seqno; all of it at 0.
    RollBack(Seqno),
}

/// Decides whether a client that has `claim` may stream from a vbucket with `history`.
///
/// The caller has checked `snap_start <= start <= snap_end`.
#[must_use]
pub fn decide(claim: &Claim, history: &History<'_>) -> Decision {
    let Claim { start, mut snap_start, mut snap_end, uuid, .. } = *claim;
    if start == Seqno(0) && !(claim.strict_uuid && uuid != VbUuid(0)) {
        return Decision::Proceed;
    }
    if claim.misses_tombstones(history.purge_seqno) {
        return Decision::RollBack(Seqno(0));
    }
    let Some(upper) = branch_end(history.log, uuid, history.high_seqno) else {
        return Decision::RollBack(Seqno(0));
    };
    if start == snap_start {
        snap_end = start; // nothing of the snapshot is held
    }
    if snap_end <= upper {
        return Decision::Proceed;
    }
    if start == snap_end {
        snap_start = start; // all of the snapshot is held
    }
    Decision::RollBack(if upper < snap_start { upper } else { snap_start })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::failover::begin_branch;
    use super::*;

    const A: u64 = 0xaaaa;
    const B: u64 = 0xbbbb;

    fn log(entries: &[(u64, u64)]) -> Vec<FailoverEntry> {
        let entry = |(uuid, seqno)| FailoverEntry { uuid: VbUuid(uuid), seqno: Seqno(seqno) };
        entries.iter().copied().map(entry).collect()
    }

    fn claim(start: u64, snap_start: u64, snap_end: u64, uuid: u64) -> Claim {
        Claim {
            start: Seqno(start),
            snap_start: Seqno(snap_start),
            snap_end: Seqno(snap_end),
            uuid: VbUuid(uuid),
            strict_uuid: false,
            ignores_purged: false,
            purge_seqno: None,
            subset_high_seqno: None,
        }
    }

    fn decide_at(log: &[FailoverEntry], purge: u64, claim: &Claim) -> Option<u64> {
        let history = History { log, high_seqno: Seqno(100), purge_seqno: Seqno(purge) };
        match decide(claim, &history) {
            Decision::Proceed => None,
            Decision::RollBack(seqno) => Some(seqno.0),
        }
    }

    #[test]
    fn the_eight_worked_cases_are_decided_as_written() {
        let one = log(&[(A, 0)]);
        let two = log(&[(B, 80), (A, 0)]);
        let lost = log(&[(B, 80)]);
        for (log, purge, (start, snap_start, snap_end), expected) in [
            (&one, 0, (50, 50, 50), None),
            (&one, 0, (120, 120, 120), Some(100)),
            (&one, 60, (50, 50, 50), Some(0)),
            (&two, 0, (90, 90, 90), Some(80)),
            (&two, 0, (70, 60, 90), Some(60)),
            (&two, 0, (60, 60, 90), None),
            (&two, 0, (90, 60, 90), Some(80)),
            (&lost, 0, (10, 10, 10), Some(0)),
        ] {
            let decided = decide_at(log, purge, &claim(start, snap_start, snap_end, A));
            assert_eq!(decided, expected, "{log:?} purge {purge}: {start} in {snap_start}..{snap_end}");
        }
    }

    #[test]
    fn at_start_0_the_uuid_counts_only_if_it_is_strict_and_not_0() {
        let known = log(&[(A, 0)]);
        let at = |uuid, strict_uuid| decide_at(&known, 60, &Claim { strict_uuid, ..claim(0, 0, 0, uuid) });
        assert_eq!([at(B, false), at(B, true), at(0, true), at(A, true)], [None, Some(0), None, None]);
    }

    #[test]
    fn stream_request_below_purge_seqno_rolls_back_to_zero_unless_an_exception_holds() {
        let known = log(&[(A, 0)]);
        let below = claim(50, 50, 50, A);
        assert_eq!(decide_at(&known, 51, &below), Some(0));
        assert_eq!(decide_at(&known, 50, &below), None, "exactly there nothing is missed");
        let with = |claim: Claim| decide_at(&known, 60, &claim);
        assert_eq!(with(Claim { ignores_purged: true, ..below }), None);
        assert_eq!(with(Claim { purge_seqno: Some(Seqno(60)), ..below }), None);
        assert_eq!(with(Claim { purge_seqno: Some(Seqno(59)), ..below }), Some(0));
        assert_eq!(with(Claim { subset_high_seqno: Some(Seqno(50)), ..below }), None);
        assert_eq!(with(Claim { subset_high_seqno: Some(Seqno(51)), ..below }), Some(0));
        // The start decides, not the beginning of its snapshot.
        assert_eq!(with(claim(60, 40, 60, A)), None);
    }

    #[test]
    fn a_claim_is_read_from_a_request() {
        let flags = StreamFlags::STRICT_VB_UUID | StreamFlags::IGNORE_PURGED_TOMBSTONES;
        let request = StreamRequest { flags, start: Seqno(7), ..StreamRequest::FROM_NOTHING };
        let read = Claim::of(&request, Some(Seqno(1)), Some(Seqno(2)));
        assert!(read.strict_uuid && read.ignores_purged);
        assert_eq!(read.start, Seqno(7));
        assert_eq!((read.purge_seqno, read.subset_high_seqno), (Some(Seqno(1)), Some(Seqno(2))));
    }

    /// A vbucket that is written to and fails over, and remembers every history it ever had. Each write is a number
    /// of its own, so two histories agree exactly as far as their writes are the same.
    struct World {
        writes: Vec<u64>,
        next_write: u64,
        log: Vec<FailoverEntry>,
        /// The history of each branch when it ended, by uuid - 1; the current one is the last.
        branches: Vec<Vec<u64>>,
    }

    impl World {
        fn new() -> World {
            World { writes: Vec::new(), next_write: 1, log: log(&[(1, 0)]), branches: vec![Vec::new()] }
        }

        fn write(&mut self, count: usize) {
            self.writes.extend(self.next_write..self.next_write + count as u64);
            self.next_write += count as u64;
            *self.branches.last_mut().unwrap() = self.writes.clone();
        }

        /// The newest writes are lost, up to `lost`, and a branch begins.
        fn fail_over(&mut self, lost: usize) {
            self.writes.truncate(self.writes.len().saturating_sub(lost));
            self.branches.push(self.writes.clone());
            let uuid = VbUuid(self.branches.len() as u64);
            begin_branch(&mut self.log, uuid, Seqno(self.writes.len() as u64));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Whatever happened to the vbucket and wherever a client stopped: it may go on only if every write that its
        /// copy rests on is in the server's history, a known branch goes on if so, and after a rollback what is left
        /// of the copy is a beginning of that history.
        #[test]
        fn a_client_never_keeps_what_the_servers_history_cannot_have(
            events in proptest::collection::vec((0_usize..20, 0_usize..30, any::<bool>()), 1..40),
            branch in any::<prop::sample::Index>(),
            cuts in any::<[prop::sample::Index; 3]>(),
            strict_uuid: bool,
        ) {
            let mut world = World::new();
            for (count, lost, fails) in events {
                world.write(count);
                if fails {
                    world.fail_over(lost);
                }
            }
            let branch = branch.index(world.branches.len());
            let theirs = &world.branches[branch];
            let mut seqnos = cuts.map(|cut| cut.index(theirs.len() + 1));
            seqnos.sort_unstable();
            let [snap_start, start, snap_end] = seqnos;
            let mut claim = claim(start as u64, snap_start as u64, snap_end as u64, branch as u64 + 1);
            claim.strict_uuid = strict_uuid;

            let rests_on = if start == snap_start { start } else { snap_end };
            let agrees = |count: usize| {
                world.writes.len() >= count && world.writes[..count] == theirs[..count]
            };
            let is_known = world.log.iter().any(|entry| entry.uuid == claim.uuid);
            let high_seqno = Seqno(world.writes.len() as u64);
            let history = History { log: &world.log, high_seqno, purge_seqno: Seqno(0) };
            match decide(&claim, &history) {
                Decision::Proceed => prop_assert!(agrees(rests_on), "kept {rests_on} writes"),
                Decision::RollBack(seqno) => {
                    let seqno = seqno.0 as usize;
                    prop_assert!(!(is_known && agrees(rests_on)), "a needless rollback");
                    prop_assert!(seqno < start || seqno == 0);
                    prop_assert!(agrees(seqno), "{seqno} writes are left");
                }
            }
        }
    }
}
