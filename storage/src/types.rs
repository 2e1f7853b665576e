//! The words every part of the engine shares: ids, seqnos, CAS, items.
//!
//! Invariants
//! - Ids are newtypes; they are never added, only compared, except a [`Seqno`] which has a successor.
//! - A key is 1..=[`KEY_BYTES_MAX`] bytes *including* its LEB128 collection prefix.
//!
//! Does not know: bytes on disk, files, wire layouts.

use std::fmt;

/// Longest key in bytes, collection prefix included (5 bytes of LEB128 and 250 of key; the wire allows less).
pub const KEY_BYTES_MAX: usize = 255;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A vbucket: one hash partition of a bucket's keys, 0..=1023 at most.
    VbId(u16)
}
id! {
    /// A bucket, numbered when it is created; never reused within a data directory.
    BucketId(u32)
}
id! {
    /// A shard: one write-ahead log and one data file.
    ShardId(u16)
}
id! {
    /// Position of a mutation in its vbucket, from 1; 0 means none.
    Seqno(u64)
}
id! {
    /// Opaque version of a document, a hybrid logical clock; 0 in a request means no check.
    Cas(u64)
}
id! {
    /// A branch of a vbucket's history.
    VbUuid(u64)
}

/// The highest seqno that a version may have.
pub const SEQNO_MAX: Seqno = Seqno((1 << 48) - 1);

impl Seqno {
    /// The seqno after this one.
    #[must_use]
    pub fn next(self) -> Seqno {
        Seqno(self.0 + 1)
    }
}

/// What a record in the log says about its key. The numbers are part of the disk format, version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[repr(u8)]
pub enum Kind {
    /// The key has this value.
    Mutation = 1,
    /// A client removed the key.
    Deletion = 2,
    /// The key's expiry passed.
    Expiration = 3,
    /// A collection or scope came or went; see [`crate::collections`].
    SystemEvent = 4,
    /// A pending durable write; reserved, not written yet.
    Prepare = 5,
    /// The commit of a durable write; reserved, not written yet.
    Commit = 6,
    /// The abort of a durable write; reserved, not written yet.
    Abort = 7,
}

impl Kind {
    /// The kind with this number on disk, if there is one.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Kind> {
        Some(match number {
            1 => Kind::Mutation,
            2 => Kind::Deletion,
            3 => Kind::Expiration,
            4 => Kind::SystemEvent,
            5 => Kind::Prepare,
            6 => Kind::Commit,
            7 => Kind::Abort,
            _ => return None,
        })
    }

    /// Whether the key is absent after this record.
    #[must_use]
    pub fn is_deleted(self) -> bool {
        matches!(self, Kind::Deletion | Kind::Expiration)
    }
}

/// Everything about a version of a document but its key and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ItemMeta {
    /// Position in the vbucket.
    pub seqno: Seqno,
    /// Version for optimistic concurrency.
    pub cas: Cas,
    /// Number of changes to this key, counted across deletes; for conflict resolution.
    pub revid: u64,
    /// The client's opaque 32 bits.
    pub flags: u32,
    /// Absolute expiry in epoch seconds, 0 for none; of a tombstone: its delete time.
    pub expiry: u32,
    /// Datatype bits of the value: 1 JSON, 2 Snappy, 4 xattr.
    pub datatype: u8,
    /// What the version says.
    pub kind: Kind,
}

/// The version of a key that a newer one replaces.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Former {
    /// Its seqno; 0 if the key had none.
    pub seqno: Seqno,
    /// Whether the key had a value then.
    pub live: bool,
    /// Bytes of its record in the seqlog; 0 if nobody knows, as of one that the log speaks of.
    pub bytes: u32,
}

/// One entry of a failover log: the branch `uuid` began at `seqno`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct FailoverEntry {
    /// The branch.
    pub uuid: VbUuid,
    /// The high seqno when it began.
    pub seqno: Seqno,
}

/// What is known of one collection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Collection {
    /// Its id.
    pub id: u32,
    /// The event that created it; 0 for the default collection, which needs none.
    pub created: Seqno,
    /// The event that dropped it; 0 while it is there.
    pub dropped: Seqno,
    /// Live documents; of one that was dropped: those that it had, in memory those that are not erased yet.
    pub items: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Its newest version or event.
    pub high_seqno: Seqno,
}

impl Collection {
    /// Whether it is there.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.dropped == Seqno(0)
    }
}

/// What is known of one scope.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Scope {
    /// Its id.
    pub id: u32,
    /// The event that created it; 0 for the default scope, which needs none.
    pub created: Seqno,
    /// The event that dropped it; 0 while it is there.
    pub dropped: Seqno,
}
