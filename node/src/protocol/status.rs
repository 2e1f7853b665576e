//! Statuses: how a request ended, and what a client is told about each code.
//!
//! A newtype over the number, so that a client keeps a code it does not know. The rows are in
//! `status::table`; here are the questions asked of them.
//!
//! Does not know: which command failed and why; the JSON of the error map (`error_map`).

use std::fmt;

use super::Opcode;

#[path = "status_table.rs"]
mod table;

/// Bytes 6 and 7 of a response.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(pub u16);

/// What becomes of a status on a connection that did not negotiate XERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remap {
    /// It is sent as it is.
    Keep,
    /// This one is sent instead.
    To(Status),
    /// An old client would not understand any answer: close the connection.
    Disconnect,
}

/// The rule behind [`Remap`], before opcode and connection are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WithoutXerror {
    Sent,
    Becomes(Status),
    /// KEY_EEXISTS for mutations, ETMPFAIL for GetLocked, UnlockKey and sub-document commands.
    Locked,
    /// Sent if Collections is on, else EINVAL.
    NeedsCollections,
    Disconnect,
}

/// All that is known about one code.
struct StatusRow {
    status: Status,
    name: &'static str,
    map_name: &'static str,
    description: &'static str,
    attributes: u32,
    without_xerror: WithoutXerror,
}

/// Attributes of the error map, one bit each.
mod attributes {
    pub(super) const SUCCESS: u32 = 1 << 0;
    pub(super) const ITEM_ONLY: u32 = 1 << 1;
    pub(super) const INVALID_INPUT: u32 = 1 << 2;
    pub(super) const FETCH_CONFIG: u32 = 1 << 3;
    pub(super) const CONN_STATE_INVALIDATED: u32 = 1 << 4;
    pub(super) const AUTH: u32 = 1 << 5;
    pub(super) const SPECIAL_HANDLING: u32 = 1 << 6;
    pub(super) const SUPPORT: u32 = 1 << 7;
    pub(super) const TEMP: u32 = 1 << 8;
    pub(super) const INTERNAL: u32 = 1 << 9;
    pub(super) const RETRY_NOW: u32 = 1 << 10;
    pub(super) const RETRY_LATER: u32 = 1 << 11;
    pub(super) const SUBDOC: u32 = 1 << 12;
    pub(super) const DCP: u32 = 1 << 13;
    pub(super) const ITEM_DELETED: u32 = 1 << 14;
    pub(super) const ITEM_LOCKED: u32 = 1 << 15;
    pub(super) const RATE_LIMIT: u32 = 1 << 16;
    pub(super) const SYSTEM_CONSTRAINT: u32 = 1 << 17;
    pub(super) const NO_RETRY: u32 = 1 << 18;

    /// Name on the wire, by bit number. The last three exist from format version 2 on.
    pub(super) const NAMES: [&str; 19] = [
        "success",
        "item-only",
        "invalid-input",
        "fetch-config",
        "conn-state-invalidated",
        "auth",
        "special-handling",
        "support",
        "temp",
        "internal",
        "retry-now",
        "retry-later",
        "subdoc",
        "dcp",
        "item-deleted",
        "item-locked",
        "rate-limit",
        "system-constraint",
        "no-retry",
    ];
    pub(super) const V2_ONLY: u32 = RATE_LIMIT | SYSTEM_CONSTRAINT | NO_RETRY;
}

impl Status {
    /// Every status a server may send, ascending.
    pub fn all() -> impl Iterator<Item = Status> {
        table::ROWS.iter().map(|row| row.status)
    }

    #[inline]
    fn row(self) -> Option<&'static StatusRow> {
        let index = table::ROWS.binary_search_by_key(&self, |row| row.status).ok()?;
        table::ROWS.get(index)
    }

    /// Name of the code, or `UNKNOWN`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().map_or("UNKNOWN", |row| row.name)
    }

    /// Name in the error map, which differs from [`Status::name`] for a few codes.
    #[must_use]
    pub fn map_name(self) -> &'static str {
        self.row().map_or("UNKNOWN", |row| row.map_name)
    }

    /// One sentence for a person.
    #[must_use]
    pub fn description(self) -> &'static str {
        self.row().map_or("A status this build does not know", |row| row.description)
    }

    /// Attributes in the error map of format `version` (1, or 2 and more).
    pub fn attributes(self, version: u16) -> impl Iterator<Item = &'static str> {
        let mut bits = self.row().map_or(0, |row| row.attributes);
        if version < 2 {
            bits &= !attributes::V2_ONLY;
        }
        attributes::NAMES
            .iter()
            .enumerate()
            .filter(move |(bit, _)| bits & (1 << bit) != 0)
            .map(|(_, name)| *name)
    }

    /// Whether a response with this status keeps its extras, key and value and carries no error JSON.
    #[must_use]
    #[inline]
    pub fn is_success_class(self) -> bool {
        matches!(self.0, 0x00 | 0x21 | 0x23 | 0xa6 | 0xa7 | 0xcc | 0xcd | 0xd3)
    }

    /// Whether a client does well to try the same request again.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        self.row().is_some_and(|row| row.attributes & (attributes::RETRY_NOW | attributes::RETRY_LATER) != 0)
    }

    /// What to send when the *execution* of `opcode` ended so and XERROR is off.
    ///
    /// Statuses of the frame and argument checks are sent as they are and do not come through here.
    #[must_use]
    pub fn without_xerror(self, opcode: Opcode, collections: bool) -> Remap {
        let Some(row) = self.row() else { return Remap::Disconnect };
        match row.without_xerror {
            WithoutXerror::Sent => Remap::Keep,
            WithoutXerror::Becomes(status) => Remap::To(status),
            WithoutXerror::Locked => {
                if matches!(opcode, Opcode::GET_LOCKED | Opcode::UNLOCK_KEY) || opcode.is_subdoc() {
                    Remap::To(Status::ETMPFAIL)
                } else {
                    Remap::To(Status::KEY_EEXISTS)
                }
            }
            WithoutXerror::NeedsCollections if collections => Remap::Keep,
            WithoutXerror::NeedsCollections => Remap::To(Status::EINVAL),
            WithoutXerror::Disconnect => Remap::Disconnect,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some(row) => f.write_str(row.name),
            None => write!(f, "status {:#06x}", self.0),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#04x} {})", self.0, self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_complete() {
        let codes: Vec<u16> = Status::all().map(|status| status.0).collect();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(codes.len(), 83);
        assert!(codes.iter().all(|code| *code < 0xff00));
        for status in Status::all() {
            assert!(status.attributes(2).count() > 0, "{status}");
            assert!(!status.description().is_empty());
        }
    }

    #[test]
    fn only_the_eight_success_statuses_keep_their_body() {
        let kept: Vec<u16> = Status::all().filter(|s| s.is_success_class()).map(|s| s.0).collect();
        assert_eq!(kept, [0x00, 0x21, 0x23, 0xa6, 0xa7, 0xcc, 0xcd, 0xd3]);
    }

    #[test]
    fn without_xerror_a_status_is_kept_remapped_or_ends_the_connection() {
        let remap = |status: Status, opcode| status.without_xerror(opcode, false);
        assert_eq!(remap(Status::KEY_ENOENT, Opcode::GET), Remap::Keep);
        assert_eq!(remap(Status::NO_BUCKET, Opcode::GET), Remap::Disconnect);
        assert_eq!(remap(Status::EACCESS, Opcode::GET), Remap::Disconnect);
        assert_eq!(remap(Status::LOCKED, Opcode::SET), Remap::To(Status::KEY_EEXISTS));
        assert_eq!(remap(Status::LOCKED, Opcode::GET_LOCKED), Remap::To(Status::ETMPFAIL));
        assert_eq!(remap(Status::LOCKED, Opcode::SUBDOC_DICT_ADD), Remap::To(Status::ETMPFAIL));
        assert_eq!(remap(Status::NOT_LOCKED, Opcode::UNLOCK_KEY), Remap::To(Status::ETMPFAIL));
        assert_eq!(remap(Status::UNKNOWN_COLLECTION, Opcode::GET), Remap::To(Status::EINVAL));
        assert_eq!(Status::UNKNOWN_COLLECTION.without_xerror(Opcode::GET, true), Remap::Keep);
        assert_eq!(remap(Status::RANGE_SCAN_MORE, Opcode::RANGE_SCAN_CONTINUE), Remap::Disconnect);
        assert_eq!(remap(Status::RATE_LIMITED_MAX_CONNECTIONS, Opcode::SASL_AUTH), Remap::To(Status::E2BIG));
        assert_eq!(remap(Status::EXPIRY_OVERFLOW, Opcode::SET), Remap::Disconnect);
    }

    #[test]
    fn version_one_of_the_attributes_lacks_those_that_version_two_added() {
        let names = |version| Status::EWOULDTHROTTLE.attributes(version).collect::<Vec<_>>();
        assert_eq!(names(2), ["temp", "retry-later", "rate-limit"]);
        assert_eq!(names(1), ["temp", "retry-later"]);
        assert!(Status::ETMPFAIL.is_retryable() && !Status::KEY_ENOENT.is_retryable());
    }

    #[test]
    fn an_unknown_number_has_no_name_but_is_shown() {
        assert_eq!(Status(0x0777).to_string(), "status 0x0777");
        assert_eq!(Status(0x0777).name(), "UNKNOWN");
        assert_eq!(Status::KEY_ENOENT.to_string(), "KEY_ENOENT");
    }
}
