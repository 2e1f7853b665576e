//! Range scan requests: what to scan (CREATE's JSON), how far to go on (CONTINUE), which to end (CANCEL).
//!
//! Invariants
//! - A decoded [`RangeScanCreate`] has bounds of at most 250 bytes, at least one sample if it samples, and a
//!   collection id that may hold documents.
//! - `decode(encode(request)) == request`.
//!
//! Cost: memory of the JSON's strings, bounded by the request's own size; unknown members are skipped
//! without being built.
//!
//! Does not know: snapshots, vbuckets, which collections exist. Records are in `scan_records`.
//! Source: KV binary protocol, range scan create, continue and cancel.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Bound;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringbase_storage::types::{Seqno, VbUuid};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error_context::Refusal;
use super::hello::{Feature, Features};
use super::key::{CollectionId, LOGICAL_KEY_BYTES_MAX};
use super::status::Status;

/// Longest name of a scan, in bytes.
pub const NAME_BYTES_MAX: usize = 50;

/// Base64 of the longest bound, in bytes.
const BOUND_TEXT_BYTES_MAX: usize = LOGICAL_KEY_BYTES_MAX.div_ceil(3) * 4;

/// What part of a collection a scan covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Every key.
    All,
    /// The keys between two bounds, compared bytewise, without collection prefix.
    Range {
        /// Where it begins; an empty included key is the beginning. A decoded one is never unbounded.
        start: Bound<Vec<u8>>,
        /// Where it ends. A decoded one is never unbounded.
        end: Bound<Vec<u8>>,
    },
    /// A random sample.
    Sampling {
        /// How many keys are wanted, at least 1.
        samples: u64,
        /// Seed of the choice; the same seed over the same snapshot chooses the same keys.
        seed: u32,
    },
}

/// What the snapshot of a scan must contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotRequirements {
    /// The vbucket's current branch.
    pub uuid: VbUuid,
    /// Everything up to here.
    pub seqno: Seqno,
    /// Whether a document of the collection must have exactly this seqno.
    pub seqno_exists: bool,
    /// How long to wait until `seqno` is persisted, in milliseconds; `None` fails at once.
    pub timeout_ms: Option<u64>,
}

/// The body of RANGE_SCAN_CREATE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeScanCreate {
    /// Where to scan.
    pub collection: CollectionId,
    /// Keys only, or whole documents.
    pub key_only: bool,
    /// Whether documents keep their xattrs.
    pub include_xattrs: bool,
    /// Which keys.
    pub selection: Selection,
    /// What must be in the snapshot.
    pub snapshot: Option<SnapshotRequirements>,
    /// A name for statistics and logs, at most 50 bytes.
    pub name: Option<String>,
}

impl Default for RangeScanCreate {
    /// A document scan of the whole default collection.
    fn default() -> RangeScanCreate {
        RangeScanCreate {
            collection: CollectionId::DEFAULT,
            key_only: false,
            include_xattrs: false,
            selection: Selection::All,
            snapshot: None,
            name: None,
        }
    }
}

/// A member that may be left out but not be null.
pub(super) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A member that may be left out and is an object if it is there; derived readers would take an array too.
pub(super) fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    struct Object<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_map(Object(PhantomData)).map(Some)
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct CreateJson {
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    collection: Option<String>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    key_only: Option<bool>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    include_xattrs: Option<bool>,
    #[serde(deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    range: Option<RangeJson>,
    #[serde(deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    sampling: Option<SamplingJson>,
    #[serde(deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    snapshot_requirements: Option<SnapshotJson>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct RangeJson {
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    excl_start: Option<String>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    end: Option<String>,
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    excl_end: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct SamplingJson {
    samples: u64,
    #[serde(default)]
    seed: u64,
}

#[derive(Serialize, Deserialize)]
struct SnapshotJson {
    vb_uuid: String,
    seqno: u64,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    seqno_exists: Option<bool>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
}

impl RangeScanCreate {
    /// Decodes the value of a request on a connection with `features`.
    ///
    /// # Errors
    /// EINVAL for everything malformed, NOT_SUPPORTED for xattrs on a connection without them.
    pub fn decode(value: &[u8], features: Features) -> Result<RangeScanCreate, Refusal> {
        if value.trim_ascii_start().first() != Some(&b'{') {
            return Err(Refusal::einval("The request must be a JSON object"));
        }
        let json: CreateJson = serde_json::from_slice(value).map_err(|error| {
            if error.is_data() {
                Refusal::einval("A member of the request has a wrong type, is missing or is repeated")
            } else {
                Refusal::einval("The request is not valid JSON")
            }
        })?;
        let key_only = json.key_only.unwrap_or(false);
        let include_xattrs = json.include_xattrs.unwrap_or(false);
        if include_xattrs && key_only {
            return Err(Refusal::einval("include_xattrs needs documents, not key_only"));
        }
        let selection = match (json.range, json.sampling) {
            (Some(_), Some(_)) => return Err(Refusal::einval("range and sampling exclude each other")),
            (Some(range), None) => decode_range(&range)?,
            (None, Some(SamplingJson { samples: 0, .. })) => {
                return Err(Refusal::einval("samples must be at least 1"));
            }
            (None, Some(SamplingJson { samples, seed })) => {
                Selection::Sampling { samples, seed: seed as u32 }
            }
            (None, None) => Selection::All,
        };
        if json.name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX) {
            return Err(Refusal::einval("name exceeds 50 bytes"));
        }
        let create = RangeScanCreate {
            collection: decode_collection(json.collection.as_deref().unwrap_or("0"))?,
            key_only,
            include_xattrs,
            selection,
            snapshot: json.snapshot_requirements.map(decode_snapshot).transpose()?,
            name: json.name,
        };
        if include_xattrs && !features.has(Feature::Xattr) {
            return Err(Refusal::new(Status::NOT_SUPPORTED, "include_xattrs needs the XATTR feature"));
        }
        Ok(create)
    }

    /// The value of a request. Members that say the default are left out, except `key_only`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut json = CreateJson {
            collection: (self.collection != CollectionId::DEFAULT)
                .then(|| format!("{:x}", self.collection.0)),
            key_only: Some(self.key_only),
            include_xattrs: self.include_xattrs.then_some(true),
            name: self.name.clone(),
            ..CreateJson::default()
        };
        match &self.selection {
            Selection::All => {}
            Selection::Range { start, end } => {
                let (start, excl_start) = encode_bound(start, &[]);
                let (end, excl_end) = encode_bound(end, GREATEST_KEY);
                json.range = Some(RangeJson { start, excl_start, end, excl_end });
            }
            Selection::Sampling { samples, seed } => {
                json.sampling = Some(SamplingJson { samples: *samples, seed: u64::from(*seed) });
            }
        }
        json.snapshot_requirements = self.snapshot.map(|requirements| SnapshotJson {
            vb_uuid: requirements.uuid.0.to_string(),
            seqno: requirements.seqno.0,
            seqno_exists: requirements.seqno_exists.then_some(true),
            timeout_ms: requirements.timeout_ms,
        });
        serde_json::to_vec(&json).expect("strings and numbers always have a JSON form")
    }
}

fn decode_collection(text: &str) -> Result<CollectionId, Refusal> {
    let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = is_hex.then(|| u32::from_str_radix(text, 16).ok()).flatten();
    let collection = CollectionId(id.ok_or(Refusal::einval("collection is not a hex number of 32 bits"))?);
    if !collection.is_usable() {
        return Err(Refusal::einval("Collection id is reserved"));
    }
    Ok(collection)
}

fn decode_range(range: &RangeJson) -> Result<Selection, Refusal> {
    let bound = |inclusive: &Option<String>, exclusive: &Option<String>, one_of| match (inclusive, exclusive)
    {
        (Some(text), None) => Ok(Bound::Included(decode_bound(text)?)),
        (None, Some(text)) => Ok(Bound::Excluded(decode_bound(text)?)),
        (Some(_), Some(_)) | (None, None) => Err(Refusal::einval(one_of)),
    };
    Ok(Selection::Range {
        start: bound(&range.start, &range.excl_start, "range needs one of start and excl_start")?,
        end: bound(&range.end, &range.excl_end, "range needs one of end and excl_end")?,
    })
}

fn decode_bound(text: &str) -> Result<Vec<u8>, Refusal> {
    if text.len() > BOUND_TEXT_BYTES_MAX {
        return Err(Refusal::einval("A bound of the range exceeds 250 bytes"));
    }
    let bytes = STANDARD.decode(text).map_err(|_| Refusal::einval("A bound of the range is not base64"))?;
    if bytes.len() > LOGICAL_KEY_BYTES_MAX {
        return Err(Refusal::einval("A bound of the range exceeds 250 bytes"));
    }
    Ok(bytes)
}

/// The inclusive and the exclusive member of one bound; an unbounded one is written as `unbounded`.
fn encode_bound(bound: &Bound<Vec<u8>>, unbounded: &[u8]) -> (Option<String>, Option<String>) {
    match bound {
        Bound::Included(key) => (Some(STANDARD.encode(key)), None),
        Bound::Excluded(key) => (None, Some(STANDARD.encode(key))),
        Bound::Unbounded => (Some(STANDARD.encode(unbounded)), None),
    }
}

/// No key is greater.
const GREATEST_KEY: &[u8] = &[0xff; LOGICAL_KEY_BYTES_MAX];

fn decode_snapshot(json: SnapshotJson) -> Result<SnapshotRequirements, Refusal> {
    let is_decimal = !json.vb_uuid.is_empty() && json.vb_uuid.bytes().all(|byte| byte.is_ascii_digit());
    let uuid = is_decimal.then(|| json.vb_uuid.parse().ok()).flatten();
    Ok(SnapshotRequirements {
        uuid: VbUuid(uuid.ok_or(Refusal::einval("vb_uuid is not a decimal number of 64 bits"))?),
        seqno: Seqno(json.seqno),
        seqno_exists: json.seqno_exists.unwrap_or(false),
        timeout_ms: json.timeout_ms,
    })
}

/// The 16 bytes that name a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScanId(pub [u8; 16]);

impl ScanId {
    /// Decodes the value of a CREATE response or the extras of a CANCEL.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<ScanId> {
        bytes.try_into().ok().map(ScanId)
    }
}

impl fmt::Display for ScanId {
    /// 8-4-4-4-12 hex digits, in the order of the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A text is not a scan id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a scan id of 32 hex digits")]
pub struct ParseScanIdError;

impl FromStr for ScanId {
    type Err = ParseScanIdError;

    fn from_str(text: &str) -> Result<ScanId, ParseScanIdError> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        let digits: &[u8; 32] = digits.as_slice().try_into().map_err(|_| ParseScanIdError)?;
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.as_chunks::<2>().0) {
            let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
            *byte = (high.ok_or(ParseScanIdError)? << 4 | low.ok_or(ParseScanIdError)?) as u8;
        }
        Ok(ScanId(id))
    }
}

/// Extras of RANGE_SCAN_CONTINUE; a limit of 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeScanContinue {
    /// The scan.
    pub id: ScanId,
    /// Most records of this continue.
    pub item_limit: u32,
    /// Longest time of this continue, in milliseconds.
    pub time_limit_ms: u32,
    /// Most bytes of records of this continue.
    pub byte_limit: u32,
}

impl RangeScanContinue {
    /// Decodes 28 bytes.
    ///
    /// # Errors
    /// EINVAL for another length.
    pub fn decode(extras: &[u8]) -> Result<RangeScanContinue, Refusal> {
        let bytes: &[u8; 28] =
            extras.try_into().map_err(|_| Refusal::einval("Request has an illegal extras length"))?;
        let (id, limits) = bytes.split_first_chunk::<16>().expect("28 bytes begin with 16");
        let limit = |index: usize| u32::from_be_bytes(limits.as_chunks::<4>().0[index]);
        Ok(RangeScanContinue {
            id: ScanId(*id),
            item_limit: limit(0),
            time_limit_ms: limit(1),
            byte_limit: limit(2),
        })
    }

    /// Encodes 28 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..16].copy_from_slice(&self.id.0);
        bytes[16..20].copy_from_slice(&self.item_limit.to_be_bytes());
        bytes[20..24].copy_from_slice(&self.time_limit_ms.to_be_bytes());
        bytes[24..].copy_from_slice(&self.byte_limit.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(json: &str) -> Result<RangeScanCreate, (Status, &'static str)> {
        RangeScanCreate::decode(json.as_bytes(), Features::NONE).map_err(|r| (r.status, r.context))
    }

    fn context(json: &str) -> &'static str {
        let (status, context) = decode(json).expect_err(json);
        assert_eq!(status, Status::EINVAL, "{json}");
        context
    }

    #[test]
    fn an_sdk_request_is_understood() {
        let create = decode(r#"{"collection":"b","key_only":true,"range":{"end":"c2Nhbjo5","excl_start":"c2NhbjowMDA="},"x":[1]}"#).unwrap();
        assert_eq!(create.collection, CollectionId(0xb));
        assert!(create.key_only && !create.include_xattrs);
        let (start, end) = (Bound::Excluded(b"scan:000".to_vec()), Bound::Included(b"scan:9".to_vec()));
        assert_eq!(create.selection, Selection::Range { start, end });
        let create = decode(
            r#"{"snapshot_requirements":{"seqno":353,"timeout_ms":30000,"vb_uuid":"5391609518561870009"}}"#,
        )
        .unwrap();
        let snapshot = create.snapshot.unwrap();
        assert_eq!((snapshot.uuid, snapshot.seqno), (VbUuid(5_391_609_518_561_870_009), Seqno(353)));
        assert_eq!((snapshot.seqno_exists, snapshot.timeout_ms), (false, Some(30_000)));
    }

    #[test]
    fn neither_range_nor_sampling_is_the_whole_collection_and_an_empty_start_its_beginning() {
        assert_eq!(decode("{}"), Ok(RangeScanCreate::default()));
        let create = decode(r#"{"range":{"start":"","end":"/w=="}}"#).unwrap();
        let (start, end) = (Bound::Included(Vec::new()), Bound::Included(vec![0xff]));
        assert_eq!(create.selection, Selection::Range { start, end });
    }

    #[test]
    fn a_seed_of_64_bits_is_taken_and_its_low_half_used() {
        let create = decode(r#"{"sampling":{"samples":3,"seed":18446744073709551615}}"#).unwrap();
        assert_eq!(create.selection, Selection::Sampling { samples: 3, seed: u32::MAX });
        let create = decode(r#"{"sampling":{"samples":3}}"#).unwrap();
        assert_eq!(create.selection, Selection::Sampling { samples: 3, seed: 0 });
    }

    #[test]
    fn every_rule_about_the_json_is_checked() {
        for json in ["", "[]", "null", "1", "\"x\""] {
            assert_eq!(context(json), "The request must be a JSON object");
        }
        for json in ["{", "{\"a\":}", "{}x", "{\"key_only\":tru}"] {
            assert_eq!(context(json), "The request is not valid JSON", "{json}");
        }
        for json in [
            r#"{"key_only":1}"#,
            r#"{"key_only":null}"#,
            r#"{"range":"a"}"#,
            r#"{"range":null}"#,
            r#"{"range":["",""]}"#,
            r#"{"sampling":[5,3]}"#,
            r#"{"snapshot_requirements":["1",1]}"#,
            r#"{"range":{"start":1,"end":""}}"#,
            r#"{"sampling":{}}"#,
            r#"{"sampling":{"samples":-1}}"#,
            r#"{"sampling":{"samples":1.5}}"#,
            r#"{"sampling":{"samples":"1"}}"#,
            r#"{"sampling":{"samples":1,"seed":-1}}"#,
            r#"{"snapshot_requirements":{"seqno":1}}"#,
            r#"{"snapshot_requirements":{"vb_uuid":"1"}}"#,
            r#"{"snapshot_requirements":{"vb_uuid":1,"seqno":1}}"#,
            r#"{"snapshot_requirements":{"vb_uuid":"1","seqno":"1"}}"#,
            r#"{"collection":8}"#,
            r#"{"name":7}"#,
            r#"{"key_only":true,"key_only":true}"#,
        ] {
            let expected = "A member of the request has a wrong type, is missing or is repeated";
            assert_eq!(context(json), expected, "{json}");
        }
        let long = STANDARD.encode([7; 251]);
        for (json, expected) in [
            (
                r#"{"key_only":true,"include_xattrs":true}"#.to_owned(),
                "include_xattrs needs documents, not key_only",
            ),
            (
                r#"{"range":{"start":"","end":""},"sampling":{"samples":1}}"#.to_owned(),
                "range and sampling exclude each other",
            ),
            (r#"{"sampling":{"samples":0}}"#.to_owned(), "samples must be at least 1"),
            (r#"{"range":{"start":""}}"#.to_owned(), "range needs one of end and excl_end"),
            (r#"{"range":{"end":""}}"#.to_owned(), "range needs one of start and excl_start"),
            (
                r#"{"range":{"start":"","excl_start":"","end":""}}"#.to_owned(),
                "range needs one of start and excl_start",
            ),
            (
                r#"{"range":{"start":"","excl_end":"","end":""}}"#.to_owned(),
                "range needs one of end and excl_end",
            ),
            (r#"{"range":{"start":"?","end":""}}"#.to_owned(), "A bound of the range is not base64"),
            (
                format!(r#"{{"range":{{"start":"","end":"{long}"}}}}"#),
                "A bound of the range exceeds 250 bytes",
            ),
            (r#"{"collection":"0x8"}"#.to_owned(), "collection is not a hex number of 32 bits"),
            (r#"{"collection":""}"#.to_owned(), "collection is not a hex number of 32 bits"),
            (r#"{"collection":"+8"}"#.to_owned(), "collection is not a hex number of 32 bits"),
            (r#"{"collection":"100000000"}"#.to_owned(), "collection is not a hex number of 32 bits"),
            (r#"{"collection":"7"}"#.to_owned(), "Collection id is reserved"),
            (
                r#"{"snapshot_requirements":{"vb_uuid":"x","seqno":1}}"#.to_owned(),
                "vb_uuid is not a decimal number of 64 bits",
            ),
            (
                r#"{"snapshot_requirements":{"vb_uuid":"18446744073709551616","seqno":1}}"#.to_owned(),
                "vb_uuid is not a decimal number of 64 bits",
            ),
            (format!(r#"{{"name":"{}"}}"#, "n".repeat(51)), "name exceeds 50 bytes"),
        ] {
            assert_eq!(context(&json), expected, "{json}");
        }
        let edge = STANDARD.encode([7; 250]);
        assert!(decode(&format!(r#"{{"range":{{"start":"","end":"{edge}"}}}}"#)).is_ok());
        assert!(decode(&format!(r#"{{"name":"{}"}}"#, "n".repeat(50))).is_ok());
    }

    #[test]
    fn xattrs_need_the_feature() {
        let json = r#"{"include_xattrs":true}"#;
        assert_eq!(decode(json).unwrap_err().0, Status::NOT_SUPPORTED);
        let features = Features::of(&[Feature::Xattr]);
        assert!(RangeScanCreate::decode(json.as_bytes(), features).unwrap().include_xattrs);
    }

    #[test]
    fn requests_survive_a_round_trip() {
        let snapshot = SnapshotRequirements {
            uuid: VbUuid(u64::MAX),
            seqno: Seqno(9),
            seqno_exists: true,
            timeout_ms: Some(5),
        };
        let range = |start, end| Selection::Range { start, end };
        for create in [
            RangeScanCreate::default(),
            RangeScanCreate { snapshot: Some(snapshot), name: Some("n".to_owned()), ..Default::default() },
            RangeScanCreate {
                collection: CollectionId(0xcafe_f00d),
                key_only: true,
                selection: range(
                    Bound::Excluded(vec![0, 0xff]),
                    Bound::Included(vec![0xf4, 0x8f, 0xfb, 0xfb]),
                ),
                ..Default::default()
            },
            RangeScanCreate {
                selection: Selection::Sampling { samples: u64::MAX, seed: 7 },
                snapshot: Some(SnapshotRequirements { seqno_exists: false, timeout_ms: None, ..snapshot }),
                ..Default::default()
            },
        ] {
            assert_eq!(RangeScanCreate::decode(&create.encode(), Features::NONE), Ok(create));
        }
    }

    #[test]
    fn an_unbounded_end_is_written_as_the_least_or_the_greatest_key() {
        let selection = Selection::Range { start: Bound::Unbounded, end: Bound::Unbounded };
        let create = RangeScanCreate { selection, ..Default::default() };
        let decoded = RangeScanCreate::decode(&create.encode(), Features::NONE).unwrap();
        let (start, end) = (Bound::Included(Vec::new()), Bound::Included(vec![0xff; 250]));
        assert_eq!(decoded.selection, Selection::Range { start, end });
    }

    #[test]
    fn continues_and_ids_survive_a_round_trip() {
        let id: ScanId = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        assert_eq!(id.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(ScanId::decode(&id.0), Some(id));
        assert_eq!(ScanId::decode(&id.0[1..]), None);
        assert!("0011".parse::<ScanId>().is_err());
        assert!("0011223344556677-8899-aabbccddeefg".parse::<ScanId>().is_err());
        let request = RangeScanContinue { id, item_limit: 1000, time_limit_ms: 2000, byte_limit: 15_000 };
        assert_eq!(RangeScanContinue::decode(&request.encode()), Ok(request));
        assert!(RangeScanContinue::decode(&request.encode()[1..]).is_err());
    }
}
