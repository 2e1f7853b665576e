//! Datatype bits: how a value is encoded.
//!
//! Byte 5 of a header and a field of every document. Bits are negotiated per connection by HELLO;
//! the order of decoding is Snappy, then the xattr section, then JSON describes what remains.
//!
//! Does not know: compression itself, the layout of the xattr section.

use std::fmt;
use std::ops::{BitAnd, BitOr};

/// A set of datatype bits; unknown bits are kept so that they can be refused.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Datatype(pub u8);

impl Datatype {
    /// No bit: plain bytes.
    pub const RAW: Datatype = Datatype(0);
    /// The body is JSON.
    pub const JSON: Datatype = Datatype(1);
    /// The whole value is Snappy compressed.
    pub const SNAPPY: Datatype = Datatype(2);
    /// The value begins with an xattr section.
    pub const XATTR: Datatype = Datatype(4);

    /// Whether only the three known bits occur.
    #[must_use]
    #[inline]
    pub fn is_valid(self) -> bool {
        self.0 <= 7
    }

    /// Whether every bit of `other` is set.
    #[must_use]
    #[inline]
    pub fn contains(self, other: Datatype) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set without the bits of `other`.
    #[must_use]
    #[inline]
    pub fn without(self, other: Datatype) -> Datatype {
        Datatype(self.0 & !other.0)
    }

    /// JSON or RAW, by looking at an uncompressed body.
    ///
    /// Any JSON value counts, a bare number too; an empty body does not, nor one that is not UTF-8.
    ///
    /// Cost: one pass, no recursion; a byte of memory per open bracket. Most binary bodies are decided by
    /// their first byte.
    #[must_use]
    pub fn of_body(body: &[u8]) -> Datatype {
        let can_begin =
            |byte: &u8| matches!(byte, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n');
        if !body.trim_ascii_start().first().is_some_and(can_begin) {
            return Datatype::RAW;
        }
        let Ok(text) = std::str::from_utf8(body) else { return Datatype::RAW };
        match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Ok(_) => Datatype::JSON,
            Err(_) => Datatype::RAW,
        }
    }
}

impl BitOr for Datatype {
    type Output = Datatype;

    fn bitor(self, other: Datatype) -> Datatype {
        Datatype(self.0 | other.0)
    }
}

impl BitAnd for Datatype {
    type Output = Datatype;

    fn bitand(self, other: Datatype) -> Datatype {
        Datatype(self.0 & other.0)
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Datatype::RAW {
            return f.write_str("raw");
        }
        let mut separator = "";
        for (bit, name) in
            [(Datatype::JSON, "json"), (Datatype::SNAPPY, "snappy"), (Datatype::XATTR, "xattr")]
        {
            if self.contains(bit) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        if !self.is_valid() {
            write!(f, "{separator}{:#04x}", self.0 & !7)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_shown_by_its_names() {
        assert_eq!(Datatype::RAW.to_string(), "raw");
        assert_eq!((Datatype::JSON | Datatype::XATTR).to_string(), "json,xattr");
        assert_eq!(Datatype(0x09).to_string(), "json,0x08");
    }

    #[test]
    fn any_json_value_is_json_and_an_empty_body_is_not() {
        for json in [&b"1"[..], b"\"x\"", b"true", b"null", b" {\"a\": [1, 2]} ", b"[]", b"-1.5e3"] {
            assert_eq!(Datatype::of_body(json), Datatype::JSON, "{json:?}");
        }
        for raw in [&b""[..], b"abc", b"{", b"{\"a\":1}x", b"01", b"\xff\xfe", b"\"\xff\"", b" "] {
            assert_eq!(Datatype::of_body(raw), Datatype::RAW, "{raw:?}");
        }
    }

    #[test]
    fn deep_nesting_does_not_exhaust_the_stack() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert_eq!(Datatype::of_body(&nested(1_000_000)), Datatype::JSON);
        assert_eq!(Datatype::of_body(&nested(1_000_000)[..1_999_999]), Datatype::RAW);
    }
}
