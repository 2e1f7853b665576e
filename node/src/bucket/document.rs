//! One document's next version: the rules of CAS, expiry, locks, counters and concatenation.
//!
//! A [`Document`] is a key whose newest version is known. Its methods decide and write in one step, so nothing can come
//! between.
//!
//! | request | absent | another CAS | locked | locked, the lock's CAS |
//! |---|---|---|---|---|
//! | set, no CAS | stored | – | `Locked` | – |
//! | set with a CAS | `Absent` | `Exists` | `Locked` | stored, unlocked |
//! | add | stored | `Exists` if there is one | `Exists` | – |
//! | replace, remove | `Absent` | `Exists` | `Locked` | stored or removed, unlocked |
//! | append, prepend | `NotStored` | `Exists` | `Locked` | stored, unlocked |
//! | count | created, or `Absent` | – | `Locked` | – |
//! | touch | `Absent` | – | `Locked` | – |
//! | lock | `Absent` | – | `Locked` | – |
//! | unlock | `Absent` | `NotLocked` | `Locked` | unlocked |
//!
//! Invariants
//! - A tombstone and an expired document are absent. A change that fails because a document has expired makes the
//!   tombstone that it is due; a read does not write.
//! - Concatenating, counting and touching keep flags; concatenating and counting keep the expiry.
//! - A new version ends the lock of its document, whoever wrote it. The CAS that a locked document had is no longer good for a change; after the
//!   lock it is again, if nothing was written, and the lock's is not.
//! - A change of the body keeps the xattrs of a document that is there. A tombstone has the system's xattrs, nothing else: no body, no flags, and its
//!   expiry is the time of its removal. A document that takes its place has none of them.
//! - The body and the user's xattrs are what the bucket's limit is about; the system's have their own.
//!
//! Cost: a change allocates its new version, and a second time if it keeps xattrs; a read allocates nothing. For locks: see [`super::locks`].
//!
//! Does not know: opcodes, statuses, where the newest version was found.
//! Source: KV data operations, the CAS table, expiry, counters.

use std::borrow::Cow;
use std::io::Write;

use ringbase_storage::item::Item;
use ringbase_storage::mutant::{Mutant, is_on};
use ringbase_storage::types::{Cas, Kind};
use ringbase_storage::vbstore::{Found, NewVersion, VbStore, WriteError};

use super::context::BucketContext;
use super::expiry;
use super::locks::{LockName, TooManyLocks};
use super::tally::count;
use crate::protocol::Datatype;
use crate::protocol::xattr::{PairBytes, SYSTEM_XATTR_BYTES_MAX, Section, split_stored};

/// What a locked document shows for its CAS; no version has it.
pub const LOCKED_CAS: Cas = Cas(u64::MAX);

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// There is no document.
    #[error("there is no document")]
    Absent,
    /// There is one, or one with another CAS.
    #[error("there is a document, or it has another CAS")]
    Exists,
    /// There is nothing to append to.
    #[error("there is no document to append to")]
    NotStored,
    /// It is locked, and the change does not come from who has locked it.
    #[error("the document is locked")]
    Locked,
    /// There is no lock to end.
    #[error("the document is not locked")]
    NotLocked,
    /// The CAS of a version that was made elsewhere is not one that a version has.
    #[error("no version has CAS {cas}")]
    CasInvalid {
        /// It.
        cas: Cas,
    },
    /// It cannot be locked now.
    #[error("the document cannot be locked")]
    CannotLock(#[from] TooManyLocks),
    /// The value is not a number.
    #[error("the value is not a decimal number of 64 bits")]
    NotACounter,
    /// The value would be longer than the bucket allows.
    #[error("a value of {bytes} bytes is longer than the {max} that the bucket takes")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// The engine did not take it.
    #[error("the engine does not take the change")]
    Write(#[from] WriteError),
}

/// Under which condition a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreMode {
    /// Always.
    Set,
    /// Only if there is no document.
    Add,
    /// Only if there is one.
    Replace,
}

/// Where a value is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Behind the value.
    Append,
    /// Before the value.
    Prepend,
}

/// Which way a counter goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Up; wraps around at 2^64.
    Up,
    /// Down; stops at 0.
    Down,
}

/// The xattrs and the body of a version.
#[must_use]
#[inline]
pub fn parts_of(item: &Item) -> (Section<'_>, &[u8]) {
    split_stored(Datatype(item.datatype()), item.value())
}

/// A whole new body.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    /// The bytes, without xattrs.
    pub value: &'a [u8],
    /// The client's 32 bits.
    pub flags: u32,
    /// Absolute, in epoch seconds, 0 for none.
    pub expiry: u32,
}

/// A change of a counter.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Which way.
    pub direction: Direction,
    /// How far.
    pub delta: u64,
    /// What a new counter begins with, and its absolute expiry; `None`: it is not created.
    pub create: Option<(u64, u32)>,
}

/// A key with its newest version. See the module.
pub struct Document<'a> {
    /// Its vbucket.
    pub store: &'a VbStore,
    /// Its bucket's settings and counters.
    pub bucket: &'a BucketContext,
    /// The key with its collection prefix.
    pub key: &'a [u8],
    /// Its newest version.
    pub found: &'a Found,
    /// The time in epoch seconds.
    pub now: u32,
}

impl<'a> Document<'a> {
    /// The version, if it has a value and is not over.
    #[must_use]
    #[inline]
    pub fn live(&self) -> Option<&'a Item> {
        self.found.live().filter(|item| !expiry::is_expired(item.expiry(), self.now))
    }

    /// The CAS of its lock, if it is locked.
    #[must_use]
    #[inline]
    pub fn lock_cas(&self) -> Option<Cas> {
        let locks = &self.bucket.locks;
        if locks.is_empty() { None } else { locks.find(self.lock_name(), self.bucket.monotonic_ns()) }
    }

    /// The CAS that readers are told who did not lock it: that of `item`, all ones while it is locked.
    #[must_use]
    #[inline]
    pub fn shown_cas(&self, item: &Item) -> Cas {
        if self.lock_cas().is_some() { LOCKED_CAS } else { item.cas() }
    }

    /// Locks the document for so many seconds; returns it and the CAS of the lock. Nothing is written.
    ///
    /// # Errors
    /// `Absent`, `Locked`, `CannotLock`.
    pub fn lock(&self, seconds: u32) -> Result<(&'a Item, Cas), Failure> {
        let item = self.live().ok_or(Failure::Absent)?;
        let locked = self.check_unlocked().and_then(|()| {
            let (cas, now_ns) = (self.store.draw_cas(), self.bucket.monotonic_ns());
            let end_ns = now_ns.saturating_add(u64::from(seconds) * 1_000_000_000);
            self.bucket.locks.add(self.lock_name(), cas, now_ns, end_ns)?;
            Ok((item, cas))
        });
        let tally = &self.bucket.tally;
        count(if locked.is_ok() { &tally.cmd_lock } else { &tally.lock_errors });
        locked
    }

    /// Ends the lock that has this CAS; returns the document. Nothing is written.
    ///
    /// # Errors
    /// `Absent`, `NotLocked`, `Locked`.
    pub fn unlock(&self, cas: Cas) -> Result<&'a Item, Failure> {
        let item = self.live().ok_or(Failure::Absent)?;
        if self.lock_cas().ok_or(Failure::NotLocked)? != cas {
            return Err(Failure::Locked);
        }
        self.bucket.locks.remove(self.lock_name());
        Ok(item)
    }

    /// Stores a value.
    ///
    /// With `keep_expiry` a document that is there keeps its expiry.
    ///
    /// # Errors
    /// `Absent`, `Exists`, `Locked`, `TooLong`, `Write`.
    pub fn store(
        &self,
        mode: StoreMode,
        cas: Cas,
        body: Body<'_>,
        keep_expiry: bool,
    ) -> Result<Item, Failure> {
        let live = match (mode, self.live()) {
            (StoreMode::Add, Some(_)) => return Err(Failure::Exists),
            (StoreMode::Set | StoreMode::Replace, Some(item)) => Some(self.check_cas(item, cas)?),
            (StoreMode::Set, None) if cas != Cas(0) => return Err(self.absent(cas)),
            (StoreMode::Replace, None) => return Err(self.absent(cas)),
            (StoreMode::Set | StoreMode::Add, None) => None,
        };
        let expiry = live.filter(|_| keep_expiry).map_or(body.expiry, |item| item.expiry());
        let datatype = Datatype::of_body(body.value);
        let stored = self.write(kept_xattrs(live), Body { expiry, ..body }, datatype)?;
        count(&self.bucket.tally.cmd_set);
        Ok(stored)
    }

    /// Adds `added` to the value.
    ///
    /// # Errors
    /// `NotStored`, `Exists`, `Locked`, `TooLong`, `Write`.
    pub fn concatenate(&self, end: End, cas: Cas, added: &[u8]) -> Result<Item, Failure> {
        let Some(item) = self.live() else {
            self.absent(cas);
            return Err(Failure::NotStored);
        };
        self.check_cas(item, cas)?;
        let (section, old) = parts_of(item);
        let (first, second) = match end {
            End::Append => (old, added),
            End::Prepend => (added, old),
        };
        self.check_length(section, first.len() + second.len())?;
        let value = [first, second].concat();
        let body = Body { value: &value, flags: item.flags(), expiry: item.expiry() };
        let stored = self.write(kept_xattrs(Some(item)), body, Datatype::of_body(&value))?;
        count(&self.bucket.tally.cmd_set);
        Ok(stored)
    }

    /// Moves a counter; returns the new version and its number.
    ///
    /// # Errors
    /// `Absent`, `Locked`, `NotACounter`, `Write`.
    pub fn count(&self, step: Step) -> Result<(Item, u64), Failure> {
        let tally = &self.bucket.tally;
        let (hits, misses) = match step.direction {
            Direction::Up => (&tally.incr_hits, &tally.incr_misses),
            Direction::Down => (&tally.decr_hits, &tally.decr_misses),
        };
        let Some(item) = self.live() else {
            count(misses);
            let Some((initial, expiry)) = step.create else { return Err(self.absent(Cas(0))) };
            return self.write_number(initial, Section::default(), 0, expiry);
        };
        self.check_unlocked()?;
        count(hits);
        let old = parse_counter(parts_of(item).1).ok_or(Failure::NotACounter)?;
        let number = match step.direction {
            Direction::Up => old.wrapping_add(step.delta),
            Direction::Down => old.saturating_sub(step.delta),
        };
        self.write_number(number, kept_xattrs(Some(item)), item.flags(), item.expiry())
    }

    /// Sets the expiry, absolute; nothing is written if it is that already.
    ///
    /// # Errors
    /// `Absent`, `Locked`, `Write`.
    pub fn touch(&self, expiry: u32) -> Result<Item, Failure> {
        let Some(item) = self.live() else { return Err(self.absent(Cas(0))) };
        self.check_unlocked()?;
        if item.expiry() == expiry {
            return Ok(item.clone());
        }
        let (section, value) = parts_of(item);
        let body = Body { value, flags: item.flags(), expiry };
        self.write(section, body, Datatype(item.datatype()).without(Datatype::XATTR))
    }

    /// Removes the document; returns its tombstone.
    ///
    /// # Errors
    /// `Absent`, `Exists`, `Locked`, `Write`.
    pub fn remove(&self, cas: Cas) -> Result<Item, Failure> {
        let Some(item) = self.live() else {
            count(&self.bucket.tally.delete_misses);
            return Err(self.absent(cas));
        };
        self.check_cas(item, cas)?;
        let tombstone = self.bury(Kind::Deletion)?;
        count(&self.bucket.tally.delete_hits);
        Ok(tombstone)
    }

    /// Makes the tombstone that an expired document is due; false if it is none.
    ///
    /// # Errors
    /// `Write`.
    pub fn expire(&self) -> Result<bool, Failure> {
        let is_due = self.found.live().is_some() && self.live().is_none();
        if is_due {
            self.bury(Kind::Expiration)?;
        }
        Ok(is_due)
    }

    pub(super) fn check_cas(&self, item: &'a Item, cas: Cas) -> Result<&'a Item, Failure> {
        let tally = &self.bucket.tally;
        let lock = self.lock_cas();
        if lock.is_some_and(|lock| lock != cas) {
            return Err(Failure::Locked);
        }
        if cas == Cas(0) {
            return Ok(item);
        }
        if lock.is_none() && item.cas() != cas {
            count(&tally.cas_badval);
            return Err(Failure::Exists);
        }
        count(&tally.cas_hits);
        Ok(item)
    }

    fn check_unlocked(&self) -> Result<(), Failure> {
        if self.lock_cas().is_some() { Err(Failure::Locked) } else { Ok(()) }
    }

    fn lock_name(&self) -> LockName<'a> {
        LockName { vb: self.store.id(), key: self.key }
    }

    /// Whether the bucket takes a value of these xattrs and a body of so many bytes.
    pub(super) fn check_length(&self, section: Section<'_>, body_bytes: usize) -> Result<(), Failure> {
        let PairBytes { system, user } = section.pair_bytes().unwrap_or_default();
        let too_long = |bytes, max| if bytes > max { Err(Failure::TooLong { bytes, max }) } else { Ok(()) };
        too_long(user + body_bytes, self.bucket.settings().item_bytes_max)?;
        too_long(system, SYSTEM_XATTR_BYTES_MAX)
    }

    /// The failure of a change to what is not there; an expired document gets its tombstone.
    #[cold]
    pub(super) fn absent(&self, cas: Cas) -> Failure {
        if cas != Cas(0) {
            count(&self.bucket.tally.cas_misses);
        }
        // If the engine has no room now, the next access or the scan for expired documents does it.
        if matches!(self.expire(), Ok(true)) {
            count(&self.bucket.tally.ep_expired_access);
        }
        Failure::Absent
    }

    fn bury(&self, kind: Kind) -> Result<Item, Failure> {
        let section = self.found.live().map_or(Section::default(), |item| parts_of(item).0);
        // What was validated when it came can be taken apart.
        let value = section.system_only().unwrap_or_default();
        let datatype = if value.is_empty() { Datatype::RAW } else { Datatype::XATTR };
        let (key, expiry, datatype) = (self.key, self.now, datatype.0);
        let tombstone = NewVersion { key, value: &value, flags: 0, expiry, datatype, kind };
        let item = self.put(tombstone)?;
        count(&self.bucket.tally.vb_active_ops_delete);
        Ok(item)
    }

    fn write_number(
        &self,
        number: u64,
        section: Section<'_>,
        flags: u32,
        expiry: u32,
    ) -> Result<(Item, u64), Failure> {
        let mut digits = [0; 20];
        let mut rest = &mut digits[..];
        write!(rest, "{number}").expect("a u64 has at most 20 digits");
        let unused = rest.len();
        let value = &digits[..20 - unused];
        let item = self.write(section, Body { value, flags, expiry }, Datatype::JSON)?;
        Ok((item, number))
    }

    /// `datatype` is that of the body.
    fn write(&self, section: Section<'_>, body: Body<'_>, datatype: Datatype) -> Result<Item, Failure> {
        self.check_length(section, body.value.len())?;
        let (value, datatype) = joined(section, body.value, datatype);
        let item = self.put(NewVersion {
            key: self.key,
            value: &value,
            flags: body.flags,
            expiry: body.expiry,
            datatype: datatype.0,
            kind: Kind::Mutation,
        })?;
        self.count_stored();
        Ok(item)
    }

    /// Counts a document that was written.
    pub(super) fn count_stored(&self) {
        let tally = &self.bucket.tally;
        count(if self.found.live().is_some() {
            &tally.vb_active_ops_update
        } else {
            &tally.vb_active_ops_create
        });
    }

    fn put(&self, new: NewVersion<'_>) -> Result<Item, Failure> {
        self.noted(self.store.write(self.found, new))
    }

    /// Counts what came of a write, and ends the lock of what was written.
    pub(super) fn noted(&self, written: Result<Item, WriteError>) -> Result<Item, Failure> {
        let tally = &self.bucket.tally;
        match &written {
            Ok(_) => {
                count(&tally.cmd_mutation);
                if !self.bucket.locks.is_empty() {
                    self.bucket.locks.remove(self.lock_name());
                }
            }
            Err(WriteError::Busy { .. } | WriteError::NoRoom) => count(&tally.ep_tmp_oom_errors),
            Err(_) => {}
        }
        Ok(written?)
    }
}

/// The xattrs that a new body leaves.
fn kept_xattrs(live: Option<&Item>) -> Section<'_> {
    match live {
        Some(item) if !is_on(Mutant::ForgetXattrs) => parts_of(item).0,
        _ => Section::default(),
    }
}

/// The value of a body of datatype `datatype` with these xattrs, and its datatype.
pub(super) fn joined<'v>(
    section: Section<'_>,
    body: &'v [u8],
    datatype: Datatype,
) -> (Cow<'v, [u8]>, Datatype) {
    if section.is_empty() {
        return (Cow::Borrowed(body), datatype);
    }
    (Cow::Owned([section.bytes(), body].concat()), datatype | Datatype::XATTR)
}

/// The number that a counter's value says: 1 to 20 ASCII digits within 64 bits.
fn parse_counter(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 20 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_one_to_twenty_digits_within_64_bits() {
        for (value, number) in [
            (&b"0"[..], Some(0)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"00000000000000000007", Some(7)),
            (b"18446744073709551616", None),
            (b"000000000000000000007", None),
            (b"", None),
            (b"+1", None),
            (b"-1", None),
            (b" 1", None),
            (b"1 ", None),
            (b"1.0", None),
            (b"\"1\"", None),
        ] {
            assert_eq!(parse_counter(value), number, "{value:?}");
        }
    }
}
