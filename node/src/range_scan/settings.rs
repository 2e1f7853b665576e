//! What an administrator may set: lifetimes, limits, the size of a buffer.
//!
//! Does not know: scans.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Bytes of records at which a buffer is sent when the size is `auto`.
///
/// The best size within 16 MiB for sixteen scans that stand still. Source: perf/results/2026-11-20-range-scan-buffers-two-cores.
pub const AUTO_SEND_BYTES: usize = 512 << 10;

/// Greatest size that may be set.
pub const SEND_BYTES_MAX: usize = 256 << 20;

/// Scans that read at the same moment on a core when nothing else is set; others wait their turn.
pub const AUTO_READERS_MAX: usize = 32;

/// Longest lifetime that may be set, in seconds.
const LIFETIME_SECONDS_MAX: u64 = u32::MAX as u64;

/// Bytes of quota that one storage scan is worth: 1 % of the quota is divided by this.
const QUOTA_BYTES_PER_SCAN: u64 = 10 << 10;

/// When a buffer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendSize {
    /// The size found best, [`AUTO_SEND_BYTES`].
    Auto,
    /// At this many bytes of records; 0 sends each record by itself, 8192 is what the reference does.
    Fixed(usize),
}

impl SendSize {
    /// In bytes of records.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            SendSize::Auto => AUTO_SEND_BYTES,
            SendSize::Fixed(bytes) => bytes,
        }
    }
}

impl fmt::Display for SendSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendSize::Auto => f.write_str("auto"),
            SendSize::Fixed(bytes) => bytes.fmt(f),
        }
    }
}

impl FromStr for SendSize {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<SendSize, SettingError> {
        if text == "auto" {
            return Ok(SendSize::Auto);
        }
        let bytes = text.parse().ok().filter(|bytes| *bytes <= SEND_BYTES_MAX);
        bytes.map(SendSize::Fixed).ok_or(SettingError::Value {
            name: SEND_SIZE,
            expected: "auto, or a number of bytes from 0 to 268435456",
        })
    }
}

/// Why a setting was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Range scans have no such setting.
    #[error("range scans have no such setting")]
    Unknown,
    /// It does not take this value.
    #[error("{name} must be {expected}")]
    Value {
        /// Which.
        name: &'static str,
        /// What it takes.
        expected: &'static str,
    },
}

/// Settings at the start.
#[derive(Debug, Clone, Copy)]
pub struct RangeScanConfig {
    /// Most scans that may exist on this core, those being created included; see [`scans_max`].
    pub scans_max: usize,
    /// Age at which a scan is cancelled, counted from its creation.
    pub max_lifetime: Duration,
    /// When a buffer is sent.
    pub send_size: SendSize,
    /// Most scans that read at the same moment; 0 for [`AUTO_READERS_MAX`].
    pub readers_max: usize,
}

impl Default for RangeScanConfig {
    /// For a quota of 1 GiB.
    fn default() -> RangeScanConfig {
        RangeScanConfig {
            scans_max: scans_max(1 << 30),
            max_lifetime: Duration::from_secs(180),
            send_size: SendSize::Auto,
            readers_max: 0,
        }
    }
}

/// How many range scans a memory quota allows: 80 % of 1 % of it in pieces of 10 KiB, of which there are 2 to 4096; at least 1 (T5.14).
#[must_use]
pub fn scans_max(quota_bytes: u64) -> usize {
    let storage_scans = (quota_bytes / 100 / QUOTA_BYTES_PER_SCAN).clamp(2, 4096);
    (storage_scans as usize * 8 / 10).max(1)
}

const SEND_SIZE: &str = "range_scan_read_buffer_send_size";
const LIFETIME: &str = "range_scan_max_lifetime";
const READERS: &str = "range_scan_max_continue_tasks";

/// Settings in force.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) scans_max: usize,
    pub(super) max_lifetime: Cell<Duration>,
    pub(super) send_size: Cell<SendSize>,
    readers_max: Cell<usize>,
}

impl Settings {
    pub(super) fn new(config: RangeScanConfig) -> Settings {
        Settings {
            scans_max: config.scans_max,
            max_lifetime: Cell::new(config.max_lifetime),
            send_size: Cell::new(config.send_size),
            readers_max: Cell::new(config.readers_max),
        }
    }

    pub(super) fn readers_max(&self) -> usize {
        match self.readers_max.get() {
            0 => AUTO_READERS_MAX,
            max => max,
        }
    }

    /// Changes one setting by its name in the protocol.
    ///
    /// # Errors
    /// `Unknown`, `Value`; nothing has changed then.
    pub(super) fn set(&self, name: &str, value: &str) -> Result<(), SettingError> {
        match name {
            SEND_SIZE => self.send_size.set(value.parse()?),
            LIFETIME => {
                let expected = "a number of seconds from 1 to 4294967295";
                let seconds = value.parse().ok().filter(|n| (1..=LIFETIME_SECONDS_MAX).contains(n));
                let seconds = seconds.ok_or(SettingError::Value { name: LIFETIME, expected })?;
                self.max_lifetime.set(Duration::from_secs(seconds));
            }
            READERS => {
                let expected = "a number from 0 (automatic) to 4096";
                let max = value.parse().ok().filter(|max| *max <= 4096);
                self.readers_max.set(max.ok_or(SettingError::Value { name: READERS, expected })?);
            }
            _ => return Err(SettingError::Unknown),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T5.14
    #[test]
    fn the_number_of_scans_follows_the_quota_within_its_bounds() {
        assert_eq!(scans_max(0), 1);
        assert_eq!(scans_max(3 * 1024 * 1000), 2);
        assert_eq!(scans_max(1 << 30), 838);
        assert_eq!(scans_max(u64::MAX), 3276);
    }

    #[test]
    fn settings_take_what_the_protocol_allows_and_nothing_else() {
        let settings = Settings::new(RangeScanConfig::default());
        assert_eq!(settings.send_size.get().bytes(), AUTO_SEND_BYTES);
        for (name, value, good) in [
            (SEND_SIZE, "0", true),
            (SEND_SIZE, "268435456", true),
            (SEND_SIZE, "268435457", false),
            (SEND_SIZE, "-1", false),
            (SEND_SIZE, "Auto", false),
            (LIFETIME, "1", true),
            (LIFETIME, "0", false),
            (LIFETIME, "4294967296", false),
            (READERS, "0", true),
            (READERS, "4097", false),
        ] {
            assert_eq!(settings.set(name, value).is_ok(), good, "{name} {value}");
        }
        assert_eq!(settings.send_size.get(), SendSize::Fixed(SEND_BYTES_MAX));
        assert_eq!(settings.max_lifetime.get(), Duration::from_secs(1));
        assert_eq!(settings.set("range_scan_kv_store_scan_ratio", "0.5"), Err(SettingError::Unknown));
        settings.set(SEND_SIZE, "auto").unwrap();
        assert_eq!(settings.send_size.get(), SendSize::Auto);
    }
}
