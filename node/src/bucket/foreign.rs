//! A version that was made elsewhere: whether it replaces what is here, and how it is stored.
//!
//! It brings its CAS, its revision, its expiry or the time of its deletion; its seqno is of here. Without conflict resolution it only has to fit the
//! CAS that the client names, and the lock.
//!
//! | | nothing is there | a tombstone | a document |
//! |---|---|---|---|
//! | set, remove | stored; `Absent` with a CAS | the better one stays; `Absent` with a CAS | the better one stays, then the rules of CAS and locks |
//! | add | as set | as set | `Exists` |
//!
//! Invariants
//! - The CAS of every version that is made here later is above that of each one stored so.
//! - Of a deletion only xattrs are stored: a body makes no sense, and is left out as the reference does.
//!
//! Cost: as a change that is made here.
//! Does not know: opcodes, statuses, the form of the request.
//! Source: KV data operations, meta operations.

use ringbase_storage::item::Item;
use ringbase_storage::types::{Cas, Kind};
use ringbase_storage::vbstore::{CAS_MAX, Foreign, Found, NewVersion};

use super::conflict::Rank;
use super::document::{Document, Failure, joined};
use super::tally::count;
use crate::protocol::Datatype;
use crate::protocol::xattr::{Section, split_stored};

/// A version that was made elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct ForeignVersion<'a> {
    /// Xattrs, if the datatype says so, and body.
    pub value: &'a [u8],
    /// Only XATTR counts: whether the body is JSON is seen here.
    pub datatype: Datatype,
    /// The client's 32 bits.
    pub flags: u32,
    /// Absolute expiry in epoch seconds, 0 for none; of a deletion its time, 0 for now.
    pub expiry: u32,
    /// Number of changes to its key.
    pub revid: u64,
    /// Its CAS.
    pub cas: Cas,
    /// Mutation, deletion or expiration.
    pub kind: Kind,
}

/// On which terms it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Whether a document that is there stays in any case.
    pub only_new: bool,
    /// Whether it must be better than what is there.
    pub resolves: bool,
    /// Whether it gets a CAS of here.
    pub fresh_cas: bool,
    /// What the CAS of the document must be, 0 for no check.
    pub cas: Cas,
}

impl Document<'_> {
    /// Stores a version that was made elsewhere.
    ///
    /// # Errors
    /// `CasInvalid`, `Exists` (also if the version here is the better one), `Absent`, `Locked`, `TooLong`, `Write`.
    pub fn bring(&self, version: ForeignVersion<'_>, terms: Terms) -> Result<Item, Failure> {
        if version.cas == Cas(0) || version.cas > CAS_MAX {
            return Err(Failure::CasInvalid { cas: version.cas });
        }
        let live = self.live();
        if terms.only_new && live.is_some() {
            return Err(Failure::Exists);
        }
        let (section, body) = split_stored(version.datatype, version.value);
        self.check_resolution(&version, section, terms)?;
        match live {
            Some(item) => {
                self.check_cas(item, terms.cas)?;
            }
            None if terms.cas != Cas(0) => return Err(self.absent(terms.cas)),
            None => {}
        }
        let is_deletion = version.kind.is_deleted();
        let (body, flags) = if is_deletion { (&[][..], 0) } else { (body, version.flags) };
        let expiry = if is_deletion && version.expiry == 0 { self.now } else { version.expiry };
        self.check_length(section, body.len())?;
        let (value, datatype) = joined(section, body, Datatype::of_body(body));
        let (key, datatype, kind) = (self.key, datatype.0, version.kind);
        let new = NewVersion { key, value: &value, flags, expiry, datatype, kind };
        let cas = (!terms.fresh_cas).then_some(version.cas);
        let foreign = Foreign { cas, revid: version.revid };
        let item = self.noted(self.store.write_foreign(self.found, new, foreign))?;
        let tally = &self.bucket.tally;
        if is_deletion {
            count(&tally.ep_num_ops_del_meta);
            count(&tally.vb_active_ops_delete);
        } else {
            count(&tally.ep_num_ops_set_meta);
            self.count_stored();
        }
        Ok(item)
    }

    /// Whether the version is better than what is here, a tombstone and an expired document included.
    fn check_resolution(
        &self,
        version: &ForeignVersion<'_>,
        section: Section<'_>,
        terms: Terms,
    ) -> Result<(), Failure> {
        let Found::Version(stored) = self.found else { return Ok(()) };
        let is_deletion = version.kind.is_deleted();
        let rank = Rank {
            revid: version.revid,
            cas: version.cas,
            expiry: version.expiry,
            flags: version.flags,
            has_xattrs: !section.is_empty(),
            is_deletion,
        };
        let way = self.bucket.settings().conflict_resolution;
        if !terms.resolves || rank.beats(&Rank::of(&stored.meta()), way) {
            return Ok(());
        }
        let tally = &self.bucket.tally;
        count(match is_deletion {
            true => &tally.ep_num_ops_del_meta_res_failed,
            false => &tally.ep_num_ops_set_meta_res_failed,
        });
        Err(Failure::Exists)
    }
}
