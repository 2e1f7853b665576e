//! STAT: a group with an argument asks for a stream of key and value pairs.
//!
//! Every pair is one response; the end is a response with neither key nor value. An empty key with a value
//! is not the end.
//!
//! Does not know: which groups there are.

use super::error_context::Refusal;
use super::{Frame, Status};

/// What a STAT request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatRequest<'a> {
    /// The group; empty for the general statistics.
    pub group: &'a str,
    /// What follows the group after a space.
    pub argument: Option<&'a str>,
}

impl<'a> StatRequest<'a> {
    /// Reads the key of a request.
    ///
    /// # Errors
    /// EINVAL if it is not UTF-8.
    pub fn decode(key: &'a [u8]) -> Result<StatRequest<'a>, Refusal> {
        let text = std::str::from_utf8(key).map_err(|_| Refusal::einval("The group is not UTF-8"))?.trim();
        Ok(match text.split_once(' ') {
            Some((group, argument)) => StatRequest { group, argument: Some(argument.trim_start()) },
            None => StatRequest { group: text, argument: None },
        })
    }
}

/// What one response says, to a client that reads the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatEntry<'a> {
    /// One statistic.
    Pair {
        /// Its name; may be empty.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// There are no more.
    End,
    /// The request failed; there are no more.
    Failed(Status),
}

impl<'a> StatEntry<'a> {
    /// Reads one response to a STAT request.
    #[must_use]
    pub fn of(frame: &Frame<'a>) -> StatEntry<'a> {
        if frame.status() != Status::SUCCESS {
            StatEntry::Failed(frame.status())
        } else if frame.key.is_empty() && frame.value.is_empty() {
            StatEntry::End
        } else {
            StatEntry::Pair { key: frame.key, value: frame.value }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Decoded, FrameLimits, Opcode, Response, decode_frame};
    use super::*;

    #[test]
    fn a_group_and_its_argument_are_told_apart() {
        let decode = |text: &'static str| {
            StatRequest::decode(text.as_bytes()).map(|request| (request.group, request.argument))
        };
        assert_eq!(decode(""), Ok(("", None)));
        assert_eq!(decode("timings"), Ok(("timings", None)));
        assert_eq!(decode("vbucket-seqno 5"), Ok(("vbucket-seqno", Some("5"))));
        assert_eq!(decode(" range-scans  7 "), Ok(("range-scans", Some("7"))));
        assert!(StatRequest::decode(b"\xff").is_err());
    }

    #[test]
    fn the_end_has_neither_key_nor_value() {
        let entry = |key: &[u8], value: &[u8], status, expected: StatEntry<'_>| {
            let mut out = Vec::new();
            Response::new(Opcode::STAT, 1, status).key(key).value(value).encode(&mut out);
            let Ok(Decoded::Frame(frame)) = decode_frame(&out, FrameLimits::AUTHENTICATED) else { panic!() };
            assert_eq!(StatEntry::of(&frame), expected);
        };
        entry(b"pid", b"7", Status::SUCCESS, StatEntry::Pair { key: b"pid", value: b"7" });
        entry(b"", b"{}", Status::SUCCESS, StatEntry::Pair { key: b"", value: b"{}" });
        entry(b"", b"", Status::SUCCESS, StatEntry::End);
        entry(b"", b"", Status::KEY_ENOENT, StatEntry::Failed(Status::KEY_ENOENT));
    }
}
