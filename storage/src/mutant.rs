//! Deliberate faults, to prove that the checkers notice them.
//!
//! Each guarantee has at least one mutant: the sync left out, the check left out. A test turns one on for its thread and demands that the
//! checker finds a violation. Without the feature `sim` every question is the constant `false`.
//!
//! Does not know: who asks.

/// Which fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The persisted seqno rises before the sync (G1, G2).
    EarlyAck,
    /// A commit of the log that failed is taken for a durable one (G7).
    ForgetCommitErrors,
    /// A flush is committed without syncing the data file first (G1).
    NoDataSync,
    /// Checksum and identity of blocks are not looked at (G3, G5).
    NoBlockCheck,
    /// Damage in the log is always taken for a torn tail (G4).
    CutDamage,
    /// An unclean stop makes no new branch.
    NoNewBranch,
    /// A flush commits no death marks.
    NoDeathMarks,
    /// Views are moved to rewritten segments, whether they see the same there or not.
    ReclaimUnderViews,
    /// A version that replaced a tombstone which was purged since marks it dead.
    MarkPurged,
    /// Tombstones are purged however young they are.
    PurgeYoung,
    /// Rewritten segments are committed without syncing the data file first (G1).
    NoReclaimSync,
    /// Marks that arrive while a segment is rewritten do not come to the new one.
    LoseArrivingMarks,
    /// What readers may still look at is freed at once (G17).
    FreeWithoutGrace,
    /// A version is published without ordering what was written before it (G17).
    PublishRelaxed,
    /// A memory-only vbucket asks no reader before it lets an old version go (T4.6).
    ForgetReaders,
    /// A read that fails under a stream is taken for the end of what there is (DCP).
    ForgetReadErrors,
    /// A stream sends the documents of a snapshot without its marker (DCP).
    OmitMarkers,
    /// A snapshot in key order that could not be read ends as if it had been (T3.10, DCP).
    EndFailedOso,
    /// A scrub reads through the block cache (G6).
    ScrubCache,
    /// Records of a deleted bucket in the log are taken for damage.
    KeepGoneRecords,
    /// A deleted bucket keeps its blocks in the data file.
    KeepGoneBlocks,
    /// A bucket is created in the deciding shard before the others have it.
    AuthorityFirst,
    /// A version that was made elsewhere is stored whatever is there.
    IgnoreConflicts,
    /// A new body takes the place of the xattrs, too.
    ForgetXattrs,
}

#[cfg(any(test, feature = "sim"))]
mod switch {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether the fault is turned on for this thread.
    #[must_use]
    pub fn is_on(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }

    /// Turns a fault on for this thread until the guard is dropped.
    #[must_use]
    pub fn turn_on(mutant: Mutant) -> Guard {
        ACTIVE.set(Some(mutant));
        Guard(())
    }

    /// See [`turn_on`].
    #[derive(Debug)]
    pub struct Guard(());

    impl Drop for Guard {
        fn drop(&mut self) {
            ACTIVE.set(None);
        }
    }
}

#[cfg(any(test, feature = "sim"))]
pub use switch::{Guard, is_on, turn_on};

/// Never, in a build without the feature `sim`.
#[cfg(not(any(test, feature = "sim")))]
#[must_use]
#[inline(always)]
pub const fn is_on(_: Mutant) -> bool {
    false
}
