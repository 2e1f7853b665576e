//! The settings of a bucket, as the text that is stored with it.
//!
//! `key=value;key=value`; a backslash takes the next character as it is, spaces around a part do not count.
//!
//! | key | value | default |
//! |---|---|---|
//! | `max_item_size` | longest document value in bytes, 1 to 20 MiB | 20 MiB |
//! | `max_ttl` | longest life of a document in seconds, 0 for no limit | 0 |
//!
//! Does not know: where the text is stored, who changes it.

use std::fmt;

/// Longest document value that any bucket takes, in bytes.
pub const ITEM_BYTES_MAX: usize = 20 * 1024 * 1024;

/// Longest `max_ttl`, in seconds.
const TTL_SECONDS_MAX: u32 = i32::MAX as u32;

/// What a bucket's text cannot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A part is not `key=value`.
    #[error("bucket setting {part:?} is not key=value")]
    Malformed {
        /// The part.
        part: String,
    },
    /// There is no such setting.
    #[error("unknown bucket setting {key:?}, known are max_item_size, max_ttl")]
    Unknown {
        /// Its name.
        key: String,
    },
    /// The number is not one, or out of range.
    #[error("bucket setting {key} must be {min} to {max}, found {found:?}")]
    Range {
        /// Which setting.
        key: &'static str,
        /// Smallest value.
        min: u64,
        /// Greatest value.
        max: u64,
        /// What was there.
        found: String,
    },
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketSettings {
    /// Longest document value, in bytes.
    pub item_bytes_max: usize,
    /// Longest life of a document, in seconds; 0 for no limit.
    pub ttl_seconds_max: u32,
}

impl Default for BucketSettings {
    fn default() -> BucketSettings {
        BucketSettings { item_bytes_max: ITEM_BYTES_MAX, ttl_seconds_max: 0 }
    }
}

impl BucketSettings {
    /// Reads the text; what it leaves out has its default.
    ///
    /// # Errors
    /// The first part that means nothing.
    pub fn parse(text: &str) -> Result<BucketSettings, SettingsError> {
        let mut settings = BucketSettings::default();
        for part in split(text) {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            let (key, value) = part
                .split_once('=')
                .map(|(key, value)| (key.trim(), value.trim()))
                .ok_or_else(|| SettingsError::Malformed { part: part.to_owned() })?;
            match key {
                "max_item_size" => {
                    settings.item_bytes_max =
                        number("max_item_size", value, 1, ITEM_BYTES_MAX as u64)? as usize;
                }
                "max_ttl" => {
                    settings.ttl_seconds_max =
                        number("max_ttl", value, 0, u64::from(TTL_SECONDS_MAX))? as u32;
                }
                _ => return Err(SettingsError::Unknown { key: key.to_owned() }),
            }
        }
        Ok(settings)
    }
}

impl fmt::Display for BucketSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "max_item_size={};max_ttl={}", self.item_bytes_max, self.ttl_seconds_max)
    }
}

/// The parts between semicolons, backslashes resolved.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for character in text.chars() {
        match character {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            ';' if !escaped => parts.push(String::new()),
            _ => parts.last_mut().expect("there is always a part").push(character),
        }
        escaped = false;
    }
    parts
}

fn number(key: &'static str, text: &str, min: u64, max: u64) -> Result<u64, SettingsError> {
    let parsed = text.parse().ok().filter(|number| (min..=max).contains(number));
    parsed.ok_or_else(|| SettingsError::Range { key, min, max, found: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_their_text_and_an_empty_text_is_the_default() {
        assert_eq!(BucketSettings::parse(""), Ok(BucketSettings::default()));
        let settings = BucketSettings { item_bytes_max: 1000, ttl_seconds_max: 60 };
        assert_eq!(BucketSettings::parse(&settings.to_string()), Ok(settings));
        assert_eq!(BucketSettings::parse(" max_ttl = \\6\\0 ; max_item_size=1000; "), Ok(settings));
    }

    #[test]
    fn text_that_means_nothing_is_named() {
        let error = |text| BucketSettings::parse(text).unwrap_err().to_string();
        assert_eq!(error("max_ttl"), "bucket setting \"max_ttl\" is not key=value");
        assert!(error("colour=red").contains("unknown bucket setting \"colour\""));
        assert!(error("max_item_size=20971521").contains("1 to 20971520, found \"20971521\""));
        assert!(error("max_ttl=-1").contains("found \"-1\""));
        assert!(error("a\\;b").contains("a;b"));
    }
}
