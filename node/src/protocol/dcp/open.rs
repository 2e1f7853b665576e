//! DCP_OPEN: a connection turns into a DCP connection, with a name and flags.
//!
//! Invariants
//! - A decoded [`DcpOpen`] has a name of 1 to 200 bytes and a legal combination of flags.
//!
//! Cost: a consumer name is copied, nothing else.
//!
//! Does not know: privileges, which names are taken, whether the connection is one already.

use bytes::BufMut;
use serde::Deserialize;

use super::super::error_context::Refusal;
use super::super::extras::{ILLEGAL_LENGTH, take_u32, whole};
use super::super::hello::{Feature, Features};
use super::super::range_scan::present;
use super::super::request::EncodeError;
use super::super::validate::DCP_NAME_BYTES_MAX;
use super::super::{Datatype, Frame, Opcode, Request, Status};

/// The flags of DCP_OPEN.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct OpenFlags(u32);

impl OpenFlags {
    /// The server becomes a consumer; nothing else is on.
    pub const NONE: OpenFlags = OpenFlags(0);
    /// The server produces.
    pub const PRODUCER: OpenFlags = OpenFlags(0x1);
    /// Values keep their xattr section.
    pub const INCLUDE_XATTRS: OpenFlags = OpenFlags(0x4);
    /// No bodies; the datatype tells what is sent.
    pub const NO_VALUE: OpenFlags = OpenFlags(0x8);
    /// Deletions tell their time.
    pub const INCLUDE_DELETE_TIMES: OpenFlags = OpenFlags(0x20);
    /// No bodies; the datatype tells what is stored.
    pub const NO_VALUE_WITH_UNDERLYING_DATATYPE: OpenFlags = OpenFlags(0x40);
    /// Tombstones keep user xattrs.
    pub const INCLUDE_DELETED_USER_XATTRS: OpenFlags = OpenFlags(0x100);
    /// Tombstones are left out of the first backfill of a stream from 0.
    pub const SKIP_DELETES_IN_INITIAL_BACKFILL: OpenFlags = OpenFlags(0x200);

    const KNOWN: u32 = 0x36d;

    /// Decodes the flags of a request on a connection with `features`.
    ///
    /// # Errors
    /// EINVAL for flags that are unknown or retired, that exclude each other, or that lack what they need.
    pub fn decode(bits: u32, features: Features) -> Result<OpenFlags, Refusal> {
        let flags = OpenFlags(bits);
        if bits & !OpenFlags::KNOWN != 0 {
            return Err(Refusal::einval("Unknown flag of DCP_OPEN"));
        }
        if flags.contains(OpenFlags::NO_VALUE | OpenFlags::NO_VALUE_WITH_UNDERLYING_DATATYPE) {
            return Err(Refusal::einval("The two flags for no values exclude each other"));
        }
        if flags.contains(OpenFlags::INCLUDE_DELETED_USER_XATTRS)
            && !flags.contains(OpenFlags::INCLUDE_XATTRS)
        {
            return Err(Refusal::einval("User xattrs of tombstones need IncludeXattrs"));
        }
        if flags.contains(OpenFlags::SKIP_DELETES_IN_INITIAL_BACKFILL)
            && !(flags.contains(OpenFlags::PRODUCER) && features.has(Feature::Collections))
        {
            return Err(Refusal::einval("Only a producer with Collections leaves tombstones out"));
        }
        Ok(flags)
    }

    /// Whether every flag of `other` is set.
    #[must_use]
    pub fn contains(self, other: OpenFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The wire form.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether messages carry no document body.
    #[must_use]
    pub fn omits_values(self) -> bool {
        self.0 & (OpenFlags::NO_VALUE.0 | OpenFlags::NO_VALUE_WITH_UNDERLYING_DATATYPE.0) != 0
    }
}

impl std::ops::BitOr for OpenFlags {
    type Output = OpenFlags;

    fn bitor(self, other: OpenFlags) -> OpenFlags {
        OpenFlags(self.0 | other.0)
    }
}

/// One DCP_OPEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DcpOpen<'a> {
    /// What the connection is for.
    pub flags: OpenFlags,
    /// Its name, 1 to 200 bytes.
    pub name: &'a [u8],
    /// What the peer calls its own consumer; only where the server becomes a consumer.
    pub consumer_name: Option<String>,
}

#[derive(Deserialize)]
struct OpenJson {
    #[serde(default, deserialize_with = "present")]
    consumer_name: Option<String>,
}

impl<'a> DcpOpen<'a> {
    /// Decodes a request on a connection with `features`.
    ///
    /// # Errors
    /// NOT_SUPPORTED with unordered execution, EINVAL for everything malformed.
    pub fn decode(frame: &Frame<'a>, features: Features) -> Result<DcpOpen<'a>, Refusal> {
        let flags = |mut rest| {
            take_u32(&mut rest)?;
            whole(take_u32(&mut rest)?, rest)
        };
        let flags = OpenFlags::decode(flags(frame.extras).ok_or(ILLEGAL_LENGTH)?, features)?;
        if frame.key.is_empty() || frame.key.len() > DCP_NAME_BYTES_MAX {
            return Err(Refusal::einval("Connection name must have 1 to 200 bytes"));
        }
        let expected = if frame.value.is_empty() { Datatype::RAW } else { Datatype::JSON };
        if frame.datatype() != expected {
            return Err(Refusal::einval("The datatype must be JSON iff there is a value"));
        }
        let consumer_name = decode_consumer_name(frame.value)?;
        if consumer_name.is_some() && flags.contains(OpenFlags::PRODUCER) {
            return Err(Refusal::einval("consumer_name is for consumers"));
        }
        if features.has(Feature::UnorderedExecution) {
            return Err(Refusal::new(Status::NOT_SUPPORTED, "DCP needs ordered execution"));
        }
        Ok(DcpOpen { flags, name: frame.key, consumer_name })
    }

    /// Appends the request to `out`.
    ///
    /// # Errors
    /// As [`Request::encode`].
    pub fn encode(&self, opaque: u32, out: &mut impl BufMut) -> Result<(), EncodeError> {
        let mut extras = [0; 8];
        extras[4..].copy_from_slice(&self.flags.bits().to_be_bytes());
        let value = self.consumer_name.as_ref().map(|name| serde_json::json!({ "consumer_name": name }));
        let value = value.map_or(String::new(), |value| value.to_string());
        let datatype = if value.is_empty() { Datatype::RAW } else { Datatype::JSON };
        Request::new(Opcode::DCP_OPEN)
            .opaque(opaque)
            .datatype(datatype)
            .extras(&extras)
            .key(self.name)
            .value(value.as_bytes())
            .encode(out)
    }
}

fn decode_consumer_name(value: &[u8]) -> Result<Option<String>, Refusal> {
    if value.is_empty() {
        return Ok(None);
    }
    if value.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::einval("The value must be a JSON object"));
    }
    if value.len() > OPEN_VALUE_BYTES_MAX {
        return Err(Refusal::einval("The value of DCP_OPEN is too long"));
    }
    let json: OpenJson = serde_json::from_slice(value)
        .map_err(|_| Refusal::einval("The value is not a JSON object with a string consumer_name"))?;
    Ok(json.consumer_name)
}

/// Longest value of a DCP_OPEN, in bytes: a name and some room.
const OPEN_VALUE_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::super::testing::frame;
    use super::*;

    fn open(flags: u32, features: Features) -> Result<OpenFlags, Status> {
        OpenFlags::decode(flags, features).map_err(|refusal| refusal.status)
    }

    #[test]
    fn flags_that_are_retired_unknown_or_lack_their_partner_are_refused() {
        let collections = Features::of(&[Feature::Collections]);
        for bits in [0x0, 0x1, 0x5, 0x9, 0x21, 0x41, 0x25, 0x105] {
            assert_eq!(open(bits, Features::NONE).map(OpenFlags::bits), Ok(bits), "{bits:#x}");
        }
        for bits in [0x2, 0x3, 0x11, 0x81, 0x401, 0x8000_0001, 0x49, 0x101, 0x201, 0x200] {
            assert_eq!(open(bits, Features::NONE), Err(Status::EINVAL), "{bits:#x}");
        }
        assert!(open(0x201, collections).is_ok());
        assert_eq!(open(0x200, collections), Err(Status::EINVAL), "only a producer skips deletes");
        assert!(
            open(0x9, collections).unwrap().omits_values() && !open(0x1, collections).unwrap().omits_values()
        );
    }

    #[test]
    fn a_name_of_1_to_200_bytes_and_a_consumer_name_only_for_consumers() {
        let encode = |flags, name: &[u8], consumer_name: Option<&str>| {
            let mut out = Vec::new();
            let consumer_name = consumer_name.map(str::to_owned);
            DcpOpen { flags, name, consumer_name }.encode(7, &mut out).unwrap();
            out
        };
        let decode = |bytes: &[u8]| {
            DcpOpen::decode(&frame(bytes), Features::NONE)
                .map(|open| (open.name.len(), open.consumer_name))
                .map_err(|refusal| refusal.status)
        };
        assert_eq!(decode(&encode(OpenFlags::PRODUCER, &[b'n'; 200], None)), Ok((200, None)));
        assert_eq!(decode(&encode(OpenFlags::PRODUCER, &[b'n'; 201], None)), Err(Status::EINVAL));
        assert_eq!(decode(&encode(OpenFlags::PRODUCER, b"", None)), Err(Status::EINVAL));
        let named = encode(OpenFlags::NONE, b"n", Some("replica"));
        assert_eq!(decode(&named), Ok((1, Some("replica".to_owned()))));
        assert_eq!(decode(&encode(OpenFlags::PRODUCER, b"n", Some("replica"))), Err(Status::EINVAL));
        let unordered = Features::of(&[Feature::UnorderedExecution]);
        let refusal = DcpOpen::decode(&frame(&named), unordered).unwrap_err();
        assert_eq!(refusal.status, Status::NOT_SUPPORTED);
    }

    #[test]
    fn a_value_is_a_json_object_and_its_datatype_says_so() {
        let decode = |datatype, value: &[u8]| {
            let mut out = Vec::new();
            let request = Request::new(Opcode::DCP_OPEN).datatype(datatype).extras(&[0; 8]).key(b"n");
            request.value(value).encode(&mut out).unwrap();
            DcpOpen::decode(&frame(&out), Features::NONE).map(|open| open.consumer_name).ok()
        };
        assert_eq!(decode(Datatype::JSON, br#"{"consumer_name":"c"}"#), Some(Some("c".to_owned())));
        assert_eq!(decode(Datatype::RAW, br#"{"consumer_name":"c"}"#), None);
        assert_eq!(decode(Datatype::JSON, b""), None);
        for bad in
            [&b"[]"[..], b"7", b"{", br#"{"consumer_name":7}"#, br#"{"consumer_name":null}"#, b"[\"c\"]"]
        {
            assert_eq!(decode(Datatype::JSON, bad), None, "{bad:?}");
        }
        let long = format!(r#"{{"consumer_name":"{}"}}"#, "c".repeat(OPEN_VALUE_BYTES_MAX));
        assert_eq!(decode(Datatype::JSON, long.as_bytes()), None);
    }
}
