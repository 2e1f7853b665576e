//! The settings of a bucket, as the text that is stored with it.
//!
//! `key=value;key=value`; a backslash takes the next character as it is, spaces around a part do not count.
//!
//! | key | value | default | at run time |
//! |---|---|---|---|
//! | `bucket_type` | `persistent` or `ephemeral` | `persistent` | no |
//! | `max_size` | memory quota in bytes, at least 1 MiB; 0 for all that the node has for documents | 0 | yes |
//! | `max_item_size` | longest document value in bytes, 1 to 20 MiB | 20 MiB | yes |
//! | `conflict_resolution_type` | which of two versions made in two places stays: `seqno`, `lww` or `custom` | `seqno` | no |
//! | `max_ttl` | longest life of a document in seconds, 0 for no limit; for new writes | 0 | yes |
//! | `exp_pager_enabled` | whether expired documents are looked for: `true` or `false` | `true` | yes |
//! | `exp_pager_stime` | seconds between two looks, at least 1 | 600 | yes |
//! | `ephemeral_full_policy` | `auto_delete` or `fail_new_data` | `auto_delete` | yes |
//! | `ephemeral_metadata_purge_age` | seconds that a tombstone stays, -1 for ever | 60 | yes |
//! | `ephemeral_metadata_purge_interval` | seconds between two purges, at least 1 | 60 | yes |
//! | `persistent_metadata_purge_age` | seconds that a tombstone stays on disk, -1 for ever | 259200 | yes |
//! | `persistent_metadata_purge_interval` | seconds between two purges of what is on disk, at least 1 | 3600 | yes |
//! | `getl_default_timeout` | seconds that a document stays locked whose lock names no time or one beyond the longest, 1 to 3600 | 15 | yes |
//! | `getl_max_timeout` | longest time that a document may be locked, in seconds, 1 to 3600 | 30 | yes |
//! | `dcp_oso_backfill` | whether streams that allow it get their past in key order: `auto`, `enabled` or `disabled`; `auto` where that reads less | `auto` | yes |
//! | `dcp_oso_max_collections_per_backfill` | most collections of such a stream, 1 to 1000 | 1 | yes |
//!
//! Names and defaults are the reference's, but for `max_size`, whose default there is 100 MiB, and `persistent_metadata_purge_interval`: there somebody else
//! has each vbucket compacted (COMPACT_DB).
//!
//! Does not know: where the text is stored, who changes it.

use std::fmt;

use ringbase_storage::shard::Home;

use super::conflict::ConflictResolution;
use crate::protocol::manifest::ManifestError;

/// Longest document value that any bucket takes, in bytes.
pub const ITEM_BYTES_MAX: usize = 20 * 1024 * 1024;

/// Longest time that any setting takes, in seconds.
const TTL_SECONDS_MAX: i64 = i32::MAX as i64;

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
    #[error("unknown bucket setting {key:?}, known are {}", KEYS.join(", "))]
    Unknown {
        /// Its name.
        key: String,
    },
    /// The collections that are stored beside the settings cannot be read.
    #[error("the collections of the bucket cannot be read")]
    Collections(#[from] ManifestError),
    /// The value is none of the words it may be.
    #[error("bucket setting {key} must be {words}, found {found:?}")]
    Word {
        /// Which setting.
        key: &'static str,
        /// Them all.
        words: String,
        /// What was there.
        found: String,
    },
    /// It is decided when the bucket is created.
    #[error("bucket setting {key} cannot be changed; create another bucket")]
    Fixed {
        /// Which setting.
        key: &'static str,
    },
    /// The number is not one, or out of range.
    #[error("bucket setting {key} must be {min} to {max}, found {found:?}")]
    Range {
        /// Which setting.
        key: &'static str,
        /// Smallest value.
        min: i64,
        /// Greatest value.
        max: i64,
        /// What was there.
        found: String,
    },
}

/// Every setting.
pub const KEYS: [&str; 16] = [
    "bucket_type",
    "conflict_resolution_type",
    "max_size",
    "max_item_size",
    "max_ttl",
    "exp_pager_enabled",
    "exp_pager_stime",
    "ephemeral_full_policy",
    "ephemeral_metadata_purge_age",
    "ephemeral_metadata_purge_interval",
    "persistent_metadata_purge_age",
    "persistent_metadata_purge_interval",
    "getl_default_timeout",
    "getl_max_timeout",
    "dcp_oso_backfill",
    "dcp_oso_max_collections_per_backfill",
];

/// What is decided when the bucket is created.
const FIXED: [&str; 2] = ["bucket_type", "conflict_resolution_type"];

/// Longest time that a lock setting takes, in seconds.
const LOCK_SECONDS_MAX: i64 = 3600;

/// Most collections of a stream that may get its past in key order.
const OSO_COLLECTIONS_MAX: i64 = 1000;

/// Smallest quota, in bytes.
const QUOTA_BYTES_MIN: i64 = 1 << 20;

/// Where a bucket's documents live.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum BucketType {
    /// In memory and on disk.
    #[default]
    Persistent,
    /// In memory only.
    Ephemeral,
}

impl fmt::Display for BucketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BucketType::Persistent => "persistent",
            BucketType::Ephemeral => "ephemeral",
        })
    }
}

/// What a full bucket that lives in memory only does.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum FullPolicy {
    /// It deletes documents.
    #[default]
    AutoDelete,
    /// It refuses new ones.
    FailNewData,
}

impl fmt::Display for FullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FullPolicy::AutoDelete => "auto_delete",
            FullPolicy::FailNewData => "fail_new_data",
        })
    }
}

/// Whether streams that allow it get their past in key order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum OsoBackfill {
    /// Where that reads less.
    #[default]
    Auto,
    /// Always.
    Enabled,
    /// Never.
    Disabled,
}

impl fmt::Display for OsoBackfill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OsoBackfill::Auto => "auto",
            OsoBackfill::Enabled => "enabled",
            OsoBackfill::Disabled => "disabled",
        })
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketSettings {
    /// Where its documents live.
    pub bucket_type: BucketType,
    /// Which of two versions that were made in two places stays.
    pub conflict_resolution: ConflictResolution,
    /// Memory quota in bytes; 0 for all that the node has for documents.
    pub quota_bytes: u64,
    /// Longest document value, in bytes.
    pub item_bytes_max: usize,
    /// Longest life of a document, in seconds; 0 for no limit.
    pub ttl_seconds_max: u32,
    /// Whether expired documents are looked for.
    pub pager_enabled: bool,
    /// Seconds between two looks.
    pub pager_seconds: u32,
    /// What a full bucket that lives in memory only does.
    pub full_policy: FullPolicy,
    /// Seconds that a tombstone stays in a bucket that lives in memory only; `None` for ever.
    pub purge_age_seconds: Option<u32>,
    /// Seconds between two purges of such a bucket.
    pub purge_interval_seconds: u32,
    /// Seconds that a tombstone stays on disk; `None` for ever.
    pub disk_purge_age_seconds: Option<u32>,
    /// Seconds between two purges of what is on disk.
    pub disk_purge_interval_seconds: u32,
    /// Seconds of a lock that names no time, or one that is too long.
    pub lock_seconds_default: u32,
    /// Longest lock, in seconds.
    pub lock_seconds_max: u32,
    /// Whether streams that allow it get their past in key order.
    pub oso_backfill: OsoBackfill,
    /// Most collections of such a stream.
    pub oso_collections_max: usize,
}

impl Default for BucketSettings {
    fn default() -> BucketSettings {
        BucketSettings {
            bucket_type: BucketType::default(),
            conflict_resolution: ConflictResolution::default(),
            quota_bytes: 0,
            item_bytes_max: ITEM_BYTES_MAX,
            ttl_seconds_max: 0,
            pager_enabled: true,
            pager_seconds: 600,
            full_policy: FullPolicy::default(),
            purge_age_seconds: Some(60),
            purge_interval_seconds: 60,
            disk_purge_age_seconds: Some(3 * 24 * 60 * 60),
            disk_purge_interval_seconds: 3600,
            lock_seconds_default: 15,
            lock_seconds_max: 30,
            oso_backfill: OsoBackfill::default(),
            oso_collections_max: 1,
        }
    }
}

impl BucketSettings {
    /// Where its documents live.
    #[must_use]
    pub fn home(&self) -> Home {
        match self.bucket_type {
            BucketType::Persistent => Home::Disk,
            BucketType::Ephemeral => Home::Memory,
        }
    }

    /// How long a document is locked if `asked` seconds are asked for, 0 for no wish.
    #[must_use]
    pub fn lock_seconds(&self, asked: u32) -> u32 {
        let longest = self.lock_seconds_max;
        if (1..=longest).contains(&asked) { asked } else { self.lock_seconds_default.min(longest) }
    }

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
            settings.set(key, value)?;
        }
        Ok(settings)
    }

    /// Whether there is a setting of this name.
    #[must_use]
    pub fn knows(key: &str) -> bool {
        KEYS.contains(&key)
    }

    /// These settings with one changed, as it may be while the bucket is in use.
    ///
    /// # Errors
    /// `Fixed`, and as [`BucketSettings::parse`].
    pub fn changed(mut self, key: &str, value: &str) -> Result<BucketSettings, SettingsError> {
        if let Some(key) = FIXED.into_iter().find(|fixed| *fixed == key) {
            return Err(SettingsError::Fixed { key });
        }
        self.set(key, value)?;
        Ok(self)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), SettingsError> {
        let seconds = |key, min| number(key, value, min, TTL_SECONDS_MAX);
        match key {
            "bucket_type" => {
                let types = [BucketType::Persistent, BucketType::Ephemeral];
                self.bucket_type = word("bucket_type", value, ["persistent", "ephemeral"], types)?;
            }
            "conflict_resolution_type" => {
                let ways = [ConflictResolution::Seqno, ConflictResolution::Lww, ConflictResolution::Custom];
                let words = ["seqno", "lww", "custom"];
                self.conflict_resolution = word("conflict_resolution_type", value, words, ways)?;
            }
            "max_size" if value == "0" => self.quota_bytes = 0,
            "max_size" => self.quota_bytes = number("max_size", value, QUOTA_BYTES_MIN, 1 << 50)? as u64,
            "max_item_size" => {
                self.item_bytes_max = number("max_item_size", value, 1, ITEM_BYTES_MAX as i64)? as usize;
            }
            "max_ttl" => self.ttl_seconds_max = seconds("max_ttl", 0)? as u32,
            "exp_pager_enabled" => {
                self.pager_enabled = word("exp_pager_enabled", value, ["true", "false"], [true, false])?;
            }
            "exp_pager_stime" => self.pager_seconds = seconds("exp_pager_stime", 1)? as u32,
            "ephemeral_full_policy" => {
                let policies = [FullPolicy::AutoDelete, FullPolicy::FailNewData];
                let words = ["auto_delete", "fail_new_data"];
                self.full_policy = word("ephemeral_full_policy", value, words, policies)?;
            }
            "ephemeral_metadata_purge_age" => {
                self.purge_age_seconds = u32::try_from(seconds("ephemeral_metadata_purge_age", -1)?).ok();
            }
            "ephemeral_metadata_purge_interval" => {
                self.purge_interval_seconds = seconds("ephemeral_metadata_purge_interval", 1)? as u32;
            }
            "persistent_metadata_purge_age" => {
                self.disk_purge_age_seconds =
                    u32::try_from(seconds("persistent_metadata_purge_age", -1)?).ok();
            }
            "persistent_metadata_purge_interval" => {
                self.disk_purge_interval_seconds = seconds("persistent_metadata_purge_interval", 1)? as u32;
            }
            "getl_default_timeout" => {
                self.lock_seconds_default =
                    number("getl_default_timeout", value, 1, LOCK_SECONDS_MAX)? as u32;
            }
            "getl_max_timeout" => {
                self.lock_seconds_max = number("getl_max_timeout", value, 1, LOCK_SECONDS_MAX)? as u32;
            }
            "dcp_oso_backfill" => {
                let ways = [OsoBackfill::Auto, OsoBackfill::Enabled, OsoBackfill::Disabled];
                self.oso_backfill = word("dcp_oso_backfill", value, ["auto", "enabled", "disabled"], ways)?;
            }
            "dcp_oso_max_collections_per_backfill" => {
                let key = "dcp_oso_max_collections_per_backfill";
                self.oso_collections_max = number(key, value, 1, OSO_COLLECTIONS_MAX)? as usize;
            }
            _ => return Err(SettingsError::Unknown { key: key.to_owned() }),
        }
        Ok(())
    }
}

impl fmt::Display for BucketSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bucket_type={};max_size={};", self.bucket_type, self.quota_bytes)?;
        write!(f, "conflict_resolution_type={};", self.conflict_resolution)?;
        write!(f, "max_item_size={};max_ttl={};", self.item_bytes_max, self.ttl_seconds_max)?;
        write!(f, "exp_pager_enabled={};exp_pager_stime={};", self.pager_enabled, self.pager_seconds)?;
        let age = self.purge_age_seconds.map_or(-1, i64::from);
        write!(f, "ephemeral_full_policy={};ephemeral_metadata_purge_age={age};", self.full_policy)?;
        write!(f, "ephemeral_metadata_purge_interval={};", self.purge_interval_seconds)?;
        let age = self.disk_purge_age_seconds.map_or(-1, i64::from);
        write!(f, "persistent_metadata_purge_age={age};")?;
        write!(f, "persistent_metadata_purge_interval={};", self.disk_purge_interval_seconds)?;
        write!(f, "getl_default_timeout={};", self.lock_seconds_default)?;
        write!(f, "getl_max_timeout={};dcp_oso_backfill={};", self.lock_seconds_max, self.oso_backfill)?;
        write!(f, "dcp_oso_max_collections_per_backfill={}", self.oso_collections_max)
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

fn number(key: &'static str, text: &str, min: i64, max: i64) -> Result<i64, SettingsError> {
    let parsed = text.parse().ok().filter(|number| (min..=max).contains(number));
    parsed.ok_or_else(|| SettingsError::Range { key, min, max, found: text.to_owned() })
}

fn word<T: Copy, const N: usize>(
    key: &'static str,
    text: &str,
    words: [&'static str; N],
    meanings: [T; N],
) -> Result<T, SettingsError> {
    let index = words.iter().position(|word| *word == text);
    index.map(|index| meanings[index]).ok_or_else(|| SettingsError::Word {
        key,
        words: words.join(" or "),
        found: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_their_text_and_an_empty_text_is_the_default() {
        assert_eq!(BucketSettings::parse(""), Ok(BucketSettings::default()));
        let settings =
            BucketSettings { item_bytes_max: 1000, ttl_seconds_max: 60, ..BucketSettings::default() };
        assert_eq!(BucketSettings::parse(&settings.to_string()), Ok(settings));
        assert_eq!(BucketSettings::parse(" max_ttl = \\6\\0 ; max_item_size=1000; "), Ok(settings));
        let other = BucketSettings {
            bucket_type: BucketType::Ephemeral,
            conflict_resolution: ConflictResolution::Lww,
            quota_bytes: 1 << 30,
            item_bytes_max: 1,
            ttl_seconds_max: 2,
            pager_enabled: false,
            pager_seconds: 3,
            full_policy: FullPolicy::FailNewData,
            purge_age_seconds: None,
            purge_interval_seconds: 4,
            disk_purge_age_seconds: None,
            disk_purge_interval_seconds: 8,
            lock_seconds_default: 5,
            lock_seconds_max: 6,
            oso_backfill: OsoBackfill::Disabled,
            oso_collections_max: 7,
        };
        assert_eq!(BucketSettings::parse(&other.to_string()), Ok(other));
        assert!(KEYS.iter().all(|key| other.to_string().contains(&format!("{key}="))));
    }

    #[test]
    fn text_that_means_nothing_is_named() {
        let error = |text| BucketSettings::parse(text).unwrap_err().to_string();
        assert_eq!(error("max_ttl"), "bucket setting \"max_ttl\" is not key=value");
        assert!(error("colour=red").contains("unknown bucket setting \"colour\""));
        assert!(error("max_item_size=20971521").contains("1 to 20971520, found \"20971521\""));
        assert!(error("max_ttl=-1").contains("found \"-1\""));
        assert!(error("max_size=1000").contains("1048576 to "));
        assert!(error("exp_pager_stime=0").contains("1 to "));
        assert!(error("getl_max_timeout=3601").contains("1 to 3600"));
        assert!(error("bucket_type=memcached").contains("persistent or ephemeral"));
        assert!(error("dcp_oso_backfill=on").contains("auto or enabled or disabled, found \"on\""));
        assert!(error("dcp_oso_max_collections_per_backfill=0").contains("1 to 1000"));
        assert!(error("conflict_resolution_type=lw").contains("seqno or lww or custom"));
        assert!(error("a\\;b").contains("a;b"));
    }

    #[test]
    fn a_lock_without_a_time_or_with_one_that_is_too_long_has_the_default() {
        let settings = BucketSettings::default();
        let asked = [0, 1, 15, 30, 31, u32::MAX];
        assert_eq!(asked.map(|asked| settings.lock_seconds(asked)), [15, 1, 15, 30, 15, 15]);
        let short = settings.changed("getl_max_timeout", "10").unwrap();
        assert_eq!(asked.map(|asked| short.lock_seconds(asked)), [10, 1, 10, 10, 10, 10]);
    }

    #[test]
    fn everything_but_the_two_types_can_be_changed() {
        let settings = BucketSettings::default();
        assert_eq!(settings.changed("max_size", "2097152").unwrap().quota_bytes, 2 << 20);
        assert_eq!(settings.changed("max_size", "0"), Ok(settings));
        for (key, value) in [("bucket_type", "ephemeral"), ("conflict_resolution_type", "lww")] {
            assert!(
                matches!(settings.changed(key, value), Err(SettingsError::Fixed { key: fixed }) if fixed == key)
            );
        }
        assert!(matches!(settings.changed("colour", "red"), Err(SettingsError::Unknown { .. })));
    }
}
