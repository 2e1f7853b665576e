//! Files of lines, read in batches of whole lines, and the member of a JSON object that is a key.
//!
//! Invariants
//! - A batch consists of whole lines; every line is in exactly one batch, and has its number from 1.
//! - A line above the limit is passed over and reported, not collected.
//!
//! Cost: one copy of the file; memory of one batch, or one longest line if that is larger.
//!
//! Does not know: documents, limits of keys.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// Bytes read for one batch; a batch is longer only if a line is.
const BATCH_BYTES: usize = 256 * 1024;

/// Whole lines of a file.
#[derive(Debug)]
pub(super) struct LineBatch {
    bytes: Vec<u8>,
    first_number: u64,
    /// Bytes of the file that this batch covers.
    pub(super) source_bytes: u64,
    /// Number of a line right after the others that was too long.
    pub(super) too_long: Option<u64>,
    /// The limit.
    pub(super) line_bytes_max: usize,
}

impl LineBatch {
    /// The lines with their numbers, without line ends.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let body = self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes);
        let lines = (!self.bytes.is_empty()).then(|| body.split(|byte| *byte == b'\n'));
        let lines = lines.into_iter().flatten();
        (self.first_number..).zip(lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)))
    }
}

/// Reads a file in batches of lines.
#[derive(Debug)]
pub(super) struct LineReader<R> {
    source: R,
    /// The beginning of a line whose end was not read yet.
    carry: Vec<u8>,
    next_number: u64,
    line_bytes_max: usize,
    ended: bool,
}

impl<R: Read> LineReader<R> {
    pub(super) fn new(source: R, line_bytes_max: usize) -> LineReader<R> {
        LineReader { source, carry: Vec::new(), next_number: 1, line_bytes_max, ended: false }
    }

    pub(super) fn get_ref(&self) -> &R {
        &self.source
    }

    /// The next lines; `None` at the end.
    pub(super) fn next_batch(&mut self) -> io::Result<Option<LineBatch>> {
        let mut bytes = std::mem::take(&mut self.carry);
        let mut source_bytes = 0;
        let mut too_long = None;
        while !self.ended {
            let scanned = bytes.len();
            let read = self.read_some(&mut bytes)?;
            source_bytes += read as u64;
            if read == 0 {
                break;
            }
            if let Some(end) = bytes[scanned..].iter().rposition(|byte| *byte == b'\n') {
                self.carry = bytes.split_off(scanned + end + 1);
                break;
            }
            if bytes.len() > self.line_bytes_max {
                // `bytes` is one line without end: whole lines were handed out before.
                bytes.clear();
                source_bytes += self.pass_over_line()?;
                too_long = Some(self.next_number);
                break;
            }
        }
        if bytes.is_empty() && too_long.is_none() {
            return Ok(None);
        }
        let first_number = self.next_number;
        let ends = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.next_number += ends + u64::from(too_long.is_some());
        let line_bytes_max = self.line_bytes_max;
        Ok(Some(LineBatch { bytes, first_number, source_bytes, too_long, line_bytes_max }))
    }

    /// Appends up to a batch of bytes; 0 at the end of the file.
    fn read_some(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let read = self.source.by_ref().take(BATCH_BYTES as u64).read_to_end(bytes)?;
        self.ended = read == 0;
        Ok(read)
    }

    /// Reads up to the next line end and keeps what follows it.
    fn pass_over_line(&mut self) -> io::Result<u64> {
        let mut passed = 0;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = self.read_some(&mut bytes)?;
            passed += read as u64;
            if read == 0 {
                return Ok(passed);
            }
            if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                self.carry = bytes.split_off(end + 1);
                return Ok(passed);
            }
        }
    }
}

/// The member `field` of the JSON object `json` as key bytes: a text as it is, a number as it is written by
/// this program. `None` if it is neither, or `json` is no valid object.
pub(super) fn field_of<'a>(json: &'a [u8], field: &str) -> Option<Cow<'a, [u8]>> {
    struct FieldVisitor<'f>(&'f str);

    impl<'de> Visitor<'de> for FieldVisitor<'_> {
        type Value = Option<serde_json::Value>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                if name == self.0 {
                    found = Some(map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = deserializer.deserialize_map(FieldVisitor(field)).ok()?;
    deserializer.end().ok()?;
    match value? {
        serde_json::Value::String(text) => Some(text.into_bytes().into()),
        serde_json::Value::Number(number) => Some(number.to_string().into_bytes().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], line_bytes_max: usize) -> Vec<(u64, Vec<u8>)> {
        let mut reader = LineReader::new(input, line_bytes_max);
        let mut all = Vec::new();
        let mut source_bytes = 0;
        while let Some(batch) = reader.next_batch().unwrap() {
            source_bytes += batch.source_bytes;
            all.extend(batch.iter().map(|(number, line)| (number, line.to_vec())));
            all.extend(batch.too_long.map(|number| (number, b"TOO LONG".to_vec())));
        }
        assert_eq!(source_bytes, input.len() as u64);
        all
    }

    #[test]
    fn every_line_comes_once_with_its_number() {
        let expected = vec![(1, b"a".to_vec()), (2, Vec::new()), (3, b"b c".to_vec())];
        assert_eq!(lines(b"a\n\nb c\n", 100), expected);
        assert_eq!(lines(b"a\r\n\r\nb c", 100), expected, "no last line end, and carriage returns");
        assert_eq!(lines(b"", 100), []);
        assert_eq!(lines(b"\n", 100), [(1, Vec::new())]);
    }

    #[test]
    fn lines_that_span_batches_stay_whole() {
        let long = vec![b'x'; BATCH_BYTES - 5];
        let input = [&long[..], b"\n", &long, b"\nlast"].concat();
        let all = lines(&input, 2 * BATCH_BYTES);
        assert_eq!(all.len(), 3);
        assert!(all[0].1 == long && all[1].1 == long && all[2] == (3, b"last".to_vec()));
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_its_neighbours_are_not() {
        let monster = vec![b'x'; 3 * BATCH_BYTES];
        let input = [b"first\n", &monster[..], b"\nlast\n"].concat();
        let all = lines(&input, BATCH_BYTES);
        let expected = [(1, b"first".to_vec()), (2, b"TOO LONG".to_vec()), (3, b"last".to_vec())];
        assert_eq!(all, expected);
        assert_eq!(lines(&monster, BATCH_BYTES), [(1, b"TOO LONG".to_vec())], "the last line of a file");
    }

    #[test]
    fn the_key_is_the_member_asked_for_whatever_surrounds_it() {
        let field = |json: &str| {
            field_of(json.as_bytes(), "id").map(|key| String::from_utf8(key.into_owned()).unwrap())
        };
        assert_eq!(field(r#"{"x":{"id":1},"id":"user \"7\"","y":[]}"#).as_deref(), Some("user \"7\""));
        assert_eq!(field(r#"{"id":42}"#).as_deref(), Some("42"));
        assert_eq!(field(r#"{"\u0069d":"escaped"}"#).as_deref(), Some("escaped"));
        for bad in [r#"{"id":null}"#, r#"{"id":[1]}"#, r#"{"x":1}"#, r#"["id"]"#, r#"{"id":"a"} x"#, "{", ""]
        {
            assert_eq!(field(bad), None, "{bad}");
        }
    }
}
