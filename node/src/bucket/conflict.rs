//! Which of two versions of a document stays, where the same document is changed in more than one place.
//!
//! | way | what is compared; the larger wins |
//! |---|---|
//! | `seqno` | revision, then CAS |
//! | `lww`, `custom` | CAS, then revision |
//!
//! Of a document then the expiry, then the flags; of a deletion nothing more. Of two that are equal in all that, one with xattrs beats one without,
//! else the one that is there stays.
//!
//! Invariants
//! - No two documents beat each other, nor do two deletions.
//!
//! Does not know: where versions come from, what a client asks for.
//! Source: KV data operations, conflict resolution.

use std::fmt;

use ringbase_storage::mutant::{Mutant, is_on};
use ringbase_storage::types::{Cas, ItemMeta};

use crate::protocol::Datatype;

/// How a bucket decides.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum ConflictResolution {
    /// By the number of changes.
    #[default]
    Seqno,
    /// By time: the last write wins.
    Lww,
    /// By rules outside of the node; here as by time.
    Custom,
}

impl ConflictResolution {
    /// Whether the time of a version decides.
    #[must_use]
    pub fn is_by_time(self) -> bool {
        match self {
            ConflictResolution::Seqno => false,
            ConflictResolution::Lww | ConflictResolution::Custom => true,
        }
    }
}

impl fmt::Display for ConflictResolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConflictResolution::Seqno => "seqno",
            ConflictResolution::Lww => "lww",
            ConflictResolution::Custom => "custom",
        })
    }
}

/// What of a version is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// Number of changes to the key.
    pub revid: u64,
    /// Its CAS.
    pub cas: Cas,
    /// Its expiry.
    pub expiry: u32,
    /// Its flags.
    pub flags: u32,
    /// Whether it has xattrs.
    pub has_xattrs: bool,
    /// Whether it is a deletion.
    pub is_deletion: bool,
}

impl Rank {
    /// That of a version that is there.
    #[must_use]
    pub fn of(meta: &ItemMeta) -> Rank {
        Rank {
            revid: meta.revid,
            cas: meta.cas,
            // What a tombstone has there is its time.
            expiry: if meta.kind.is_deleted() { 0 } else { meta.expiry },
            flags: meta.flags,
            has_xattrs: Datatype(meta.datatype).contains(Datatype::XATTR),
            is_deletion: meta.kind.is_deleted(),
        }
    }

    /// Whether this version replaces `stored`.
    #[must_use]
    pub fn beats(&self, stored: &Rank, way: ConflictResolution) -> bool {
        if is_on(Mutant::IgnoreConflicts) {
            return true;
        }
        let numbers = |rank: &Rank| match way.is_by_time() {
            false => (rank.revid, rank.cas.0),
            true => (rank.cas.0, rank.revid),
        };
        let rest = |rank: &Rank| if self.is_deletion { (0, 0) } else { (rank.expiry, rank.flags) };
        let (new, old) = ((numbers(self), rest(self)), (numbers(stored), rest(stored)));
        new > old || new == old && self.has_xattrs && !stored.has_xattrs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Rank =
        Rank { revid: 5, cas: Cas(50), expiry: 500, flags: 5000, has_xattrs: false, is_deletion: false };
    const WAYS: [ConflictResolution; 3] =
        [ConflictResolution::Seqno, ConflictResolution::Lww, ConflictResolution::Custom];

    #[test]
    fn the_first_number_that_differs_decides_and_its_order_depends_on_the_way() {
        let newer = Rank { revid: 6, cas: Cas(49), ..PLAIN };
        let later = Rank { revid: 4, cas: Cas(51), ..PLAIN };
        assert!(
            newer.beats(&PLAIN, ConflictResolution::Seqno) && !later.beats(&PLAIN, ConflictResolution::Seqno)
        );
        for way in [ConflictResolution::Lww, ConflictResolution::Custom] {
            assert!(later.beats(&PLAIN, way) && !newer.beats(&PLAIN, way));
        }
        for way in WAYS {
            let longer = Rank { expiry: 501, flags: 0, ..PLAIN };
            let flagged = Rank { flags: 5001, ..PLAIN };
            assert!(longer.beats(&PLAIN, way) && flagged.beats(&PLAIN, way) && longer.beats(&flagged, way));
            assert!(!Rank { expiry: 499, flags: u32::MAX, ..PLAIN }.beats(&PLAIN, way));
            assert!(!PLAIN.beats(&PLAIN, way), "what is there stays");
        }
    }

    #[test]
    fn a_deletion_is_compared_by_its_two_numbers_only() {
        for way in WAYS {
            let deletion = Rank { is_deletion: true, expiry: 0, flags: 0, ..PLAIN };
            assert!(!deletion.beats(&PLAIN, way));
            assert!(!Rank { expiry: u32::MAX, flags: 9999, ..deletion }.beats(&PLAIN, way));
            assert!(Rank { cas: Cas(51), ..deletion }.beats(&PLAIN, way));
            assert!(PLAIN.beats(&Rank { expiry: 0, ..deletion }, way), "a document has an expiry");
        }
    }

    #[test]
    fn xattrs_decide_where_nothing_else_does() {
        for way in WAYS {
            let rich = Rank { has_xattrs: true, ..PLAIN };
            assert!(rich.beats(&PLAIN, way) && !PLAIN.beats(&rich, way) && !rich.beats(&rich, way));
            assert!(!Rank { flags: 4999, ..rich }.beats(&PLAIN, way));
        }
    }
}
