//! `ringctl stats`: a group of statistics as lines or as one JSON object.
//!
//! Does not know: which groups there are, what their names mean.

use serde_json::{Map, Value};

use super::connect;
use crate::args::{GlobalArgs, StatsArgs};
use crate::failure::Failure;
use crate::output::{print, print_json};

pub(crate) fn run(global: &GlobalArgs, args: &StatsArgs) -> Result<(), Failure> {
    let entries = connect(global)?.stat_texts(&args.group.join(" "), b"")?;
    if !global.json {
        return print(|out| entries.iter().try_for_each(|(name, value)| writeln!(out, "{name}: {value}")));
    }
    print_json(&Value::Object(object(entries)))
}

/// One member for each name; a name that occurs several times has an array.
fn object(entries: Vec<(String, String)>) -> Map<String, Value> {
    let mut object = Map::new();
    for (name, value) in entries {
        let value = typed(value);
        match object.get_mut(&name) {
            None => {
                object.insert(name, value);
            }
            Some(Value::Array(several)) => several.push(value),
            Some(one) => *one = Value::Array(vec![one.take(), value]),
        }
    }
    object
}

/// The largest whole number that every reader of JSON keeps exactly.
const EXACT_MAX: u64 = 1 << 53;

/// Whole numbers, truth values and objects as such, all else as text: a version `7.6` is no number, and a
/// number that some reader would round stays text.
fn typed(text: String) -> Value {
    if let Ok(number) = text.parse::<i64>()
        && number.unsigned_abs() <= EXACT_MAX
    {
        return number.into();
    }
    match text.as_str() {
        "true" => true.into(),
        "false" => false.into(),
        json if json.starts_with('{') => serde_json::from_str(json).unwrap_or(Value::String(text)),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_have_the_type_they_look_like_and_versions_are_text() {
        let entries = [
            ("n", "18446744073709551615"),
            ("k", "9007199254740992"),
            ("m", "-1"),
            ("v", "7.6"),
            ("t", "true"),
            ("o", "{\"a\":1}"),
            ("broken", "{"),
            ("", "{}"),
            ("", "x"),
            ("", "y"),
        ];
        let entries = entries.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let expected = json!({
            "n": "18446744073709551615", "k": 1_u64 << 53, "m": -1, "v": "7.6", "t": true, "o": {"a": 1}, "broken": "{", "": [{}, "x", "y"],
        });
        assert_eq!(Value::Object(object(entries)), expected);
    }
}
