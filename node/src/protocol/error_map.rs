//! The error map: what every status means, as JSON for clients (GET_ERROR_MAP).
//!
//! Invariants
//! - The map has exactly the statuses of `status`; format 1 is format 2 without the attributes added there.
//! - A client never gets a format above the one it asked for.
//!
//! Cost: each format is rendered once per process.
//!
//! Does not know: connections, retries.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::Status;
use super::error_context::Refusal;

/// Content revision of format 2; format 1 counts four ahead of it.
const REVISION_V2: u32 = 9;
const REVISION_V1: u32 = REVISION_V2 + 4;

/// Highest format this build knows.
pub const FORMAT_MAX: u16 = 2;

static FORMAT_1: LazyLock<Vec<u8>> = LazyLock::new(|| render(1));
static FORMAT_2: LazyLock<Vec<u8>> = LazyLock::new(|| render(FORMAT_MAX));

/// The map for a client that understands formats up to `format`.
///
/// # Errors
/// KEY_ENOENT for format 0.
pub fn encode(format: u16) -> Result<&'static [u8], Refusal> {
    match format {
        0 => Err(Refusal::new(Status::KEY_ENOENT, "There is no error map of version 0")),
        1 => Ok(&FORMAT_1),
        _ => Ok(&FORMAT_2),
    }
}

#[derive(Serialize)]
struct Rendered {
    version: u16,
    revision: u32,
    errors: Errors,
}

struct Errors {
    format: u16,
}

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    desc: &'static str,
    attrs: Vec<&'static str>,
}

impl Serialize for Errors {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for status in Status::all() {
            let entry = Entry {
                name: status.map_name(),
                desc: status.description(),
                attrs: status.attributes(self.format).collect(),
            };
            map.serialize_entry(&format!("{:x}", status.0), &entry)?;
        }
        map.end()
    }
}

fn render(format: u16) -> Vec<u8> {
    let revision = if format == 1 { REVISION_V1 } else { REVISION_V2 };
    let rendered = Rendered { version: format, revision, errors: Errors { format } };
    serde_json::to_vec(&rendered).expect("strings and numbers always have a JSON form")
}

/// An error map, as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ErrorMap {
    /// Format, 1 or 2.
    pub version: u16,
    /// Revision of the content.
    pub revision: u32,
    /// By status in lower-case hex.
    pub errors: BTreeMap<String, ErrorMapEntry>,
}

/// What a map says about one status.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ErrorMapEntry {
    /// The status's name.
    pub name: String,
    /// One sentence for a person.
    pub desc: String,
    /// What a client may conclude.
    pub attrs: Vec<String>,
}

impl ErrorMap {
    /// Reads the JSON; `None` if it is not an error map.
    #[must_use]
    pub fn decode(json: &[u8]) -> Option<ErrorMap> {
        serde_json::from_slice(json).ok()
    }

    /// What it says about `status`.
    #[must_use]
    pub fn entry(&self, status: Status) -> Option<&ErrorMapEntry> {
        self.errors.get(&format!("{:x}", status.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_highest_format_it_understands_and_format_0_does_not_exist() {
        let version =
            |format| ErrorMap::decode(encode(format).unwrap()).map(|map| (map.version, map.revision));
        assert_eq!(version(1), Some((1, 13)));
        assert_eq!(version(2), Some((2, 9)));
        assert_eq!(version(u16::MAX), Some((2, 9)));
        assert_eq!(encode(0).unwrap_err().status, Status::KEY_ENOENT);
    }

    #[test]
    fn the_map_has_every_status_with_name_description_and_attributes() {
        let map = ErrorMap::decode(encode(2).unwrap()).unwrap();
        assert_eq!(map.errors.len(), Status::all().count());
        let tmpfail = map.entry(Status::ETMPFAIL).unwrap();
        assert_eq!(
            (tmpfail.name.as_str(), tmpfail.attrs.join(" ")),
            ("ETMPFAIL", "temp retry-now".to_owned())
        );
        assert_eq!(map.entry(Status::DCP_STREAM_NOT_FOUND).unwrap().name, "STREAM_NOT_FOUND");
        assert_eq!(map.errors["0"].name, "SUCCESS");
        let start = br#"{"version":2,"revision":9,"errors":{"0":{"name":"SUCCESS","desc":"Success","attrs":["success"]},"#;
        assert!(encode(2).unwrap().starts_with(start));
    }

    #[test]
    fn format_1_lacks_the_attributes_that_format_2_added() {
        for (format, expected) in [(1, false), (2, true)] {
            let json = String::from_utf8(encode(format).unwrap().to_vec()).unwrap();
            for attribute in ["rate-limit", "system-constraint", "no-retry"] {
                assert_eq!(json.contains(attribute), expected, "{attribute} in format {format}");
            }
        }
    }
}
