//! How results are written: plain text or JSON, keys and values that may be any bytes.
//!
//! In JSON, numbers above 2^53 (CAS, uuids) are texts: many readers of JSON would round them.
//!
//! Does not know: what the results mean.

use std::io::{self, BufWriter, StdoutLock, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringbase::protocol::Datatype;
use ringbase::protocol::xattr::{Pair, Section};
use serde_json::{Map, Value};

use crate::failure::Failure;

/// Standard output, buffered.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

/// Writes to standard output and flushes it.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = stdout();
    write(&mut out).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Writes one JSON value on a line of its own.
pub(crate) fn print_json(value: &Value) -> Result<(), Failure> {
    print(|out| writeln!(out, "{value}"))
}

/// Adds bytes to a JSON object: as text under `name` if they are UTF-8, else as base64 under `name_base64`.
pub(crate) fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// Adds a document's value: xattrs as an object of their own, JSON as JSON, else as [`put_bytes`] does.
pub(crate) fn put_value(object: &mut Map<String, Value>, datatype: Datatype, value: &[u8]) {
    let (datatype, value) = match Section::split(value) {
        Ok((section, body)) if datatype.without(Datatype::JSON) == Datatype::XATTR => {
            object.insert("xattrs".to_owned(), xattrs(section).into());
            (datatype.without(Datatype::XATTR), body)
        }
        _ => (datatype, value),
    };
    let is_plain = datatype.without(Datatype::JSON) == Datatype::RAW;
    if datatype.contains(Datatype::JSON)
        && is_plain
        && let Ok(json) = serde_json::from_slice(value)
    {
        object.insert("value".to_owned(), json);
    } else if is_plain {
        put_bytes(object, "value", value);
    } else {
        object.insert("value_base64".to_owned(), STANDARD.encode(value).into());
    }
}

/// What a section says; a value that is not JSON as text.
fn xattrs(section: Section<'_>) -> Map<String, Value> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pair = |pair: Pair<'_>| {
        (text(pair.key), serde_json::from_slice(pair.value).unwrap_or_else(|_| text(pair.value).into()))
    };
    section.pairs().filter_map(Result::ok).map(pair).collect()
}

/// The names of datatype bits.
pub(crate) fn datatype_names(datatype: Datatype) -> Vec<&'static str> {
    let named = [(Datatype::JSON, "json"), (Datatype::SNAPPY, "snappy"), (Datatype::XATTR, "xattr")];
    named.into_iter().filter(|(bit, _)| datatype.contains(*bit)).map(|(_, name)| name).collect()
}

/// Rows of a table: the first column to the left, the others to the right.
pub(crate) fn write_table(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            if column == 0 {
                line.push_str(&format!("{cell:<width$}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A number of bytes for people.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut scaled = bytes as f64;
    let mut unit = "B";
    for next in units {
        if scaled < 1000.0 {
            break;
        }
        scaled /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{scaled:.1} {unit}") }
}

/// Million bytes a second.
pub(crate) fn megabytes_per_second(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 / seconds / 1e6 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringbase::protocol::xattr::build_section;

    fn object(build: impl FnOnce(&mut Map<String, Value>)) -> String {
        let mut map = Map::new();
        build(&mut map);
        Value::Object(map).to_string()
    }

    #[test]
    fn text_stays_text_and_other_bytes_become_base64() {
        assert_eq!(object(|map| put_bytes(map, "key", "ü\n".as_bytes())), r#"{"key":"ü\n"}"#);
        assert_eq!(object(|map| put_bytes(map, "key", b"\xff")), r#"{"key_base64":"/w=="}"#);
    }

    #[test]
    fn a_json_document_is_shown_as_json_unless_it_is_compressed() {
        let value = br#"{"a":[1]}"#;
        assert_eq!(object(|map| put_value(map, Datatype::JSON, value)), r#"{"value":{"a":[1]}}"#);
        assert_eq!(object(|map| put_value(map, Datatype::RAW, value)), r#"{"value":"{\"a\":[1]}"}"#);
        let both = Datatype(Datatype::JSON.0 | Datatype::SNAPPY.0);
        assert!(object(|map| put_value(map, both, value)).starts_with(r#"{"value_base64":"#));
        assert_eq!(datatype_names(both), ["json", "snappy"]);
        let rich = [&build_section([("a", "{\"b\":1}"), ("_c", "x")])[..], value].concat();
        let shown = object(|map| put_value(map, Datatype::JSON | Datatype::XATTR, &rich));
        assert_eq!(shown, r#"{"value":{"a":[1]},"xattrs":{"_c":"x","a":{"b":1}}}"#);
    }

    #[test]
    fn tables_are_aligned() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let mut out = Vec::new();
        write_table(&mut out, &[row(["name", "n"]), row(["x", "100"])]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "name    n\nx     100\n");
    }

    #[test]
    fn bytes_are_scaled_for_people() {
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(420_000_000), "420.0 MB");
    }
}
