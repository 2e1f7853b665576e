//! The failover log as rules: the branches of a vbucket's history, newest first.
//!
//! Invariants
//! - A log has at most [`FAILOVER_ENTRIES_MAX`] entries, whose seqnos do not rise towards the older ones; only
//!   [`roll_back`] may leave none.
//!
//! Cost: a log has at most 25 entries; all is linear in them.
//!
//! Does not know: where the log is kept, when a branch begins.

use ringbase_storage::types::{FailoverEntry, Seqno, VbUuid};

use crate::protocol::dcp::stream_request::FAILOVER_ENTRIES_MAX;

/// A branch's uuid made of 64 random bits: 48 of them, not 0.
#[must_use]
pub fn branch_uuid(random: u64) -> VbUuid {
    VbUuid((random & 0xffff_ffff_ffff).max(1))
}

/// Begins a branch at `high_seqno`: older entries above it go, one at exactly it stays, the oldest is dropped if there
/// are too many.
pub fn begin_branch(log: &mut Vec<FailoverEntry>, uuid: VbUuid, high_seqno: Seqno) {
    log.retain(|entry| entry.seqno <= high_seqno);
    log.insert(0, FailoverEntry { uuid, seqno: high_seqno });
    log.truncate(FAILOVER_ENTRIES_MAX);
}

/// Goes back to `rollback_seqno`: entries above it go. If none is left the vbucket needs a new branch.
pub fn roll_back(log: &mut Vec<FailoverEntry>, rollback_seqno: Seqno) {
    log.retain(|entry| entry.seqno <= rollback_seqno);
}

/// The last seqno of the branch `uuid` that a vbucket with this log and `high_seqno` still has; `None` if it does not
/// know the branch. If a uuid is there twice, which 48 random bits do not let happen, the older one counts.
#[must_use]
pub fn branch_end(log: &[FailoverEntry], uuid: VbUuid, high_seqno: Seqno) -> Option<Seqno> {
    let index = log.iter().rposition(|entry| entry.uuid == uuid)?;
    Some(match index.checked_sub(1) {
        None => high_seqno,
        Some(newer) => log[newer].seqno,
    })
}

/// The newest branch that began at or below `seqno`: with it a client asks again after a rollback to `seqno`; `None`
/// at 0, where it uses no uuid.
#[must_use]
pub fn branch_at(log: &[FailoverEntry], seqno: Seqno) -> Option<VbUuid> {
    if seqno == Seqno(0) {
        return None;
    }
    log.iter().find(|entry| entry.seqno <= seqno).map(|entry| entry.uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(entries: &[(u64, u64)]) -> Vec<FailoverEntry> {
        let entry = |(uuid, seqno)| FailoverEntry { uuid: VbUuid(uuid), seqno: Seqno(seqno) };
        entries.iter().copied().map(entry).collect()
    }

    #[test]
    fn a_branch_removes_what_began_above_it_and_keeps_its_equal() {
        let mut entries = log(&[(3, 80), (2, 50), (1, 0)]);
        begin_branch(&mut entries, VbUuid(4), Seqno(80));
        assert_eq!(entries, log(&[(4, 80), (3, 80), (2, 50), (1, 0)]));
        begin_branch(&mut entries, VbUuid(5), Seqno(49));
        assert_eq!(entries, log(&[(5, 49), (1, 0)]));
        roll_back(&mut entries, Seqno(10));
        assert_eq!(entries, log(&[(1, 0)]));
    }

    #[test]
    fn a_log_keeps_the_newest_25_branches() {
        let mut entries = log(&[(1, 0)]);
        for n in 2..=40 {
            begin_branch(&mut entries, VbUuid(n), Seqno(n));
        }
        assert_eq!(entries.len(), 25);
        assert_eq!((entries[0].uuid, entries[24].uuid), (VbUuid(40), VbUuid(16)));
    }

    #[test]
    fn a_branch_ends_where_the_next_one_began() {
        let entries = log(&[(3, 80), (2, 50), (1, 0)]);
        let end = |uuid| branch_end(&entries, VbUuid(uuid), Seqno(100));
        assert_eq!(
            [end(3), end(2), end(1), end(9)],
            [Some(100), Some(80), Some(50), None].map(|n| n.map(Seqno))
        );
        let twice = log(&[(1, 80), (2, 50), (1, 0)]);
        assert_eq!(branch_end(&twice, VbUuid(1), Seqno(100)), Some(Seqno(50)));
    }

    #[test]
    fn after_a_rollback_a_client_names_a_branch_that_began_at_or_below() {
        let entries = log(&[(3, 80), (2, 50), (1, 0)]);
        let at = |seqno| branch_at(&entries, Seqno(seqno)).map(|uuid| uuid.0);
        assert_eq!([at(0), at(49), at(50), at(80), at(99)], [None, Some(1), Some(2), Some(3), Some(3)]);
        assert_eq!(branch_at(&log(&[(3, 80)]), Seqno(10)), None);
    }

    #[test]
    fn a_uuid_is_48_bits_and_not_zero() {
        assert_eq!(branch_uuid(u64::MAX), VbUuid(0xffff_ffff_ffff));
        assert_eq!(branch_uuid(1 << 48), VbUuid(1));
    }
}
