//! The JSON value of DCP_STREAM_REQ: which collections a stream carries, and its id.
//!
//! Invariants
//! - The collections of a decoded [`StreamFilter`] ascend, each once, and may hold documents.
//! - `decode(encode(filter)) == filter` for every filter that `decode` gave.
//!
//! Cost: four bytes for each collection named; a value above [`FILTER_BYTES_MAX`] is refused unread, unknown members
//! are skipped without being built.
//!
//! Does not know: which collections and scopes exist; whether stream ids are on.

use std::fmt;

use ringbase_storage::types::Seqno;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::super::error_context::Refusal;
use super::super::key::CollectionId;
use super::super::range_scan::{object, present};
use super::super::status::Status;
use super::envelope::StreamId;

/// Longest value of a stream request, in bytes: some thousand collections.
pub const FILTER_BYTES_MAX: usize = 64 << 10;

/// A scope of a bucket; 0 is the default one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(pub u32);

/// What of a bucket a stream carries.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum FilterSelection {
    /// Every collection, those of later too.
    #[default]
    All,
    /// These collections, ascending.
    Collections(Vec<CollectionId>),
    /// Every collection of this scope, those of later too.
    Scope(ScopeId),
}

/// How a cache transfer is to be done; read so that it can be refused by name.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CacheTransferOptions {
    /// Memory the client has, in bytes.
    pub free_memory: Option<u64>,
    /// Whether keys without a resident value are sent too.
    pub all_keys: Option<bool>,
}

/// The value of one stream request.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct StreamFilter {
    /// What to carry.
    pub selection: FilterSelection,
    /// The manifest the client last saw; ignored by servers.
    pub manifest_uid: Option<u64>,
    /// The stream's id as it was written; 0 is refused by [`StreamFilter::stream_id`].
    pub raw_stream_id: Option<u16>,
    /// The purge seqno of the marker before.
    pub purge_seqno: Option<Seqno>,
    /// What a cache transfer should be like.
    pub cache_transfer: Option<CacheTransferOptions>,
}

/// A number written as text in base `RADIX`.
struct Text<const RADIX: u32>(u64);

impl<'de, const RADIX: u32> Deserialize<'de> for Text<RADIX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits<const RADIX: u32>;

        impl<const RADIX: u32> Visitor<'_> for Digits<RADIX> {
            type Value = Text<RADIX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string with a number in base {RADIX}")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<RADIX>, E> {
                let is_plain = text.chars().all(|digit| digit.is_digit(RADIX));
                let number = is_plain.then(|| u64::from_str_radix(text, RADIX).ok()).flatten();
                number.map(Text).ok_or_else(|| E::custom("not a number of 64 bits"))
            }
        }

        deserializer.deserialize_str(Digits)
    }
}

/// The hex form of a collection or scope id.
struct Id(u32);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(number) = Text::<16>::deserialize(deserializer)?;
        u32::try_from(number).map(Id).map_err(D::Error::custom)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FilterJson {
    #[serde(deserialize_with = "present")]
    collections: Option<Vec<Id>>,
    #[serde(deserialize_with = "present")]
    scope: Option<Id>,
    #[serde(deserialize_with = "present")]
    uid: Option<Text<16>>,
    #[serde(deserialize_with = "present")]
    sid: Option<u16>,
    #[serde(deserialize_with = "present")]
    purge_seqno: Option<Text<10>>,
    #[serde(deserialize_with = "object")]
    cts: Option<CacheTransferJson>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CacheTransferJson {
    #[serde(deserialize_with = "present")]
    free_memory: Option<u64>,
    #[serde(deserialize_with = "present")]
    all_keys: Option<bool>,
}

impl StreamFilter {
    /// Decodes the value of a request on a connection with Collections; an empty one asks for everything.
    ///
    /// # Errors
    /// EINVAL for bad JSON, bad types, reserved ids, `collections` beside `scope`, and an object without any
    /// known member.
    pub fn decode(value: &[u8]) -> Result<StreamFilter, Refusal> {
        if value.is_empty() {
            return Ok(StreamFilter::default());
        }
        if value.len() > FILTER_BYTES_MAX {
            return Err(Refusal::einval("The filter of the stream is too long"));
        }
        if value.trim_ascii_start().first() != Some(&b'{') {
            return Err(Refusal::einval("The filter of the stream must be a JSON object"));
        }
        let json: FilterJson = serde_json::from_slice(value).map_err(|error| {
            if error.is_data() {
                Refusal::einval("A member of the filter has a wrong type or is repeated")
            } else {
                Refusal::einval("The filter of the stream is not valid JSON")
            }
        })?;
        let selection = match (json.collections, json.scope) {
            (Some(_), Some(_)) => return Err(Refusal::einval("collections and scope exclude each other")),
            (Some(ids), None) => FilterSelection::Collections(decode_collections(ids)?),
            (None, Some(Id(scope))) => FilterSelection::Scope(ScopeId(scope)),
            (None, None) => FilterSelection::All,
        };
        let filter = StreamFilter {
            selection,
            manifest_uid: json.uid.map(|Text(uid)| uid),
            raw_stream_id: json.sid,
            purge_seqno: json.purge_seqno.map(|Text(seqno)| Seqno(seqno)),
            cache_transfer: json
                .cts
                .map(|json| CacheTransferOptions { free_memory: json.free_memory, all_keys: json.all_keys }),
        };
        if filter == StreamFilter::default() {
            return Err(Refusal::einval("The filter of the stream says nothing"));
        }
        Ok(filter)
    }

    /// The value of a request; empty if the filter says nothing.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut json = Map::new();
        match &self.selection {
            FilterSelection::All => {}
            FilterSelection::Collections(ids) => {
                let ids = ids.iter().map(|id| Value::from(format!("{:x}", id.0))).collect();
                json.insert("collections".to_owned(), Value::Array(ids));
            }
            FilterSelection::Scope(scope) => {
                json.insert("scope".to_owned(), format!("{:x}", scope.0).into());
            }
        }
        if let Some(uid) = self.manifest_uid {
            json.insert("uid".to_owned(), format!("{uid:x}").into());
        }
        if let Some(id) = self.raw_stream_id {
            json.insert("sid".to_owned(), id.into());
        }
        if let Some(seqno) = self.purge_seqno {
            json.insert("purge_seqno".to_owned(), seqno.0.to_string().into());
        }
        if let Some(options) = self.cache_transfer {
            let mut object = Map::new();
            if let Some(bytes) = options.free_memory {
                object.insert("free_memory".to_owned(), bytes.into());
            }
            if let Some(all) = options.all_keys {
                object.insert("all_keys".to_owned(), all.into());
            }
            json.insert("cts".to_owned(), Value::Object(object));
        }
        if json.is_empty() { Vec::new() } else { Value::Object(json).to_string().into_bytes() }
    }

    /// The stream's id, on a connection where stream ids are on if `enabled`.
    ///
    /// # Errors
    /// DCP_STREAM_ID_INVALID if there is one without the control, none with it, or 0.
    pub fn stream_id(&self, enabled: bool) -> Result<Option<StreamId>, Refusal> {
        let refusal = |context| Err(Refusal::new(Status::DCP_STREAM_ID_INVALID, context));
        match (self.raw_stream_id, enabled) {
            (None, false) => Ok(None),
            (None, true) => refusal("The stream needs an id"),
            (Some(_), false) => refusal("Stream ids are not enabled"),
            (Some(id), true) => match StreamId::new(id) {
                Some(id) => Ok(Some(id)),
                None => refusal("Stream id 0 is reserved"),
            },
        }
    }
}

fn decode_collections(ids: Vec<Id>) -> Result<Vec<CollectionId>, Refusal> {
    let mut collections: Vec<CollectionId> = ids.into_iter().map(|Id(id)| CollectionId(id)).collect();
    if !collections.iter().all(|collection| collection.is_usable()) {
        return Err(Refusal::einval("Collection id is reserved"));
    }
    collections.sort_unstable();
    collections.dedup();
    Ok(collections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Result<StreamFilter, Status> {
        StreamFilter::decode(text.as_bytes()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn every_member_is_read_and_written_back() {
        for text in [
            r#"{"collections":["0","8","cafef00d"]}"#,
            r#"{"collections":[]}"#,
            r#"{"scope":"0"}"#,
            r#"{"scope":"8","uid":"1f","sid":65535,"purge_seqno":"18446744073709551615"}"#,
            r#"{"uid":"0"}"#,
            r#"{"sid":0}"#,
            r#"{"cts":{}}"#,
            r#"{"cts":{"free_memory":5,"all_keys":true},"sid":1}"#,
        ] {
            let filter = decode(text).unwrap();
            assert_eq!(StreamFilter::decode(&filter.encode()), Ok(filter), "{text}");
        }
        let filter = decode(r#"{"collections":["a","8","A"],"unknown":[{}]}"#).unwrap();
        assert_eq!(filter.selection, FilterSelection::Collections(vec![CollectionId(8), CollectionId(10)]));
        assert_eq!(decode(""), Ok(StreamFilter::default()));
        assert_eq!(StreamFilter::default().encode(), b"");
    }

    #[test]
    fn bad_json_bad_types_and_an_object_that_says_nothing_are_einval() {
        for text in [
            "{}",
            r#"{"unknown":1}"#,
            "[]",
            "7",
            "{",
            r#"{"collections":["8"],"scope":"0"}"#,
            r#"{"collections":"8"}"#,
            r#"{"collections":[8]}"#,
            r#"{"collections":null}"#,
            r#"{"collections":["0x8"]}"#,
            r#"{"collections":[""]}"#,
            r#"{"collections":["1"]}"#,
            r#"{"collections":["100000000"]}"#,
            r#"{"collections":["+8"]}"#,
            r#"{"scope":8}"#,
            r#"{"uid":1}"#,
            r#"{"sid":"1"}"#,
            r#"{"sid":65536}"#,
            r#"{"sid":-1}"#,
            r#"{"sid":1.5}"#,
            r#"{"purge_seqno":7}"#,
            r#"{"purge_seqno":"a"}"#,
            r#"{"purge_seqno":"18446744073709551616"}"#,
            r#"{"cts":true}"#,
            r#"{"cts":[]}"#,
            r#"{"cts":{"all_keys":1}}"#,
            r#"{"sid":1,"sid":2}"#,
        ] {
            assert_eq!(decode(text), Err(Status::EINVAL), "{text}");
        }
        let deep = |close| format!("{{\"sid\":1,\"x\":{}{}}}", "[".repeat(30_000), "]".repeat(close));
        assert!(decode(&deep(30_000)).is_ok(), "skipped without recursion");
        assert_eq!(decode(&deep(29_999)), Err(Status::EINVAL));
    }

    #[test]
    fn a_value_above_its_bound_is_refused_and_one_within_it_costs_four_bytes_an_id() {
        let many = |count| format!(r#"{{"collections":[{}"8"]}}"#, r#""8","#.repeat(count));
        assert!(many(20_000).len() > FILTER_BYTES_MAX);
        assert_eq!(decode(&many(20_000)), Err(Status::EINVAL));
        let filter = decode(&many(10_000)).unwrap();
        assert_eq!(filter.selection, FilterSelection::Collections(vec![CollectionId(8)]));
    }

    #[test]
    fn a_stream_id_is_there_exactly_when_stream_ids_are_on() {
        let status = |text: &str, enabled| {
            let id = decode(text).unwrap().stream_id(enabled);
            id.map(|id| id.map(StreamId::get)).map_err(|refusal| refusal.status)
        };
        assert_eq!(status(r#"{"sid":2}"#, true), Ok(Some(2)));
        assert_eq!(status("", false), Ok(None));
        for (text, enabled) in [(r#"{"sid":0}"#, true), ("", true), (r#"{"sid":2}"#, false)] {
            assert_eq!(status(text, enabled), Err(Status::DCP_STREAM_ID_INVALID), "{text}");
        }
    }
}
