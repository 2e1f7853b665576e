//! What is recorded and how much of it is kept, as the text of `trace.config`.
//!
//! `buffer-mode:ring|fixed;buffer-size:<bytes>;enabled-categories:a,b*;disabled-categories:c`. What is not named keeps its default. A category
//! is the target of a `tracing` call; `*` stands for any text.
//!
//! Invariants
//! - A text that was accepted is printed in a form that is accepted and means the same.
//! - Nothing here makes the node write a file: `save-on-stop` is refused.
//!
//! Does not know: rings, call sites.
//! Source: KV protocol, IOCTL properties.

use std::fmt;
use std::str::FromStr;

use super::event::EVENT_BYTES;

/// Bytes of a thread's ring unless said otherwise.
pub const BUFFER_BYTES_DEFAULT: usize = 1 << 20;

/// Largest ring of a thread.
pub const BUFFER_BYTES_MAX: usize = 64 << 20;

/// Longest configuration, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// What happens when a ring is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BufferMode {
    /// The oldest events are overwritten.
    #[default]
    Ring,
    /// The newest events are dropped.
    Fixed,
}

impl BufferMode {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            BufferMode::Ring => "ring",
            BufferMode::Fixed => "fixed",
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceConfig {
    /// What happens when a ring is full.
    pub mode: BufferMode,
    /// Bytes of each thread's ring.
    pub buffer_bytes: usize,
    /// Categories that are recorded.
    pub enabled: Vec<String>,
    /// Categories that are not, though they are among the former.
    pub disabled: Vec<String>,
}

impl Default for TraceConfig {
    fn default() -> TraceConfig {
        TraceConfig {
            mode: BufferMode::Ring,
            buffer_bytes: BUFFER_BYTES_DEFAULT,
            enabled: vec!["*".to_owned()],
            disabled: Vec::new(),
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceConfigError {
    /// Too much text.
    #[error("a trace configuration has at most {TEXT_BYTES_MAX} bytes")]
    Long,
    /// A part that is no `name:value`.
    #[error("`{0}` is not name:value")]
    Form(String),
    /// An unknown part.
    #[error("`{0}` is not buffer-mode, buffer-size, enabled-categories or disabled-categories")]
    Name(String),
    /// A mode that there is not.
    #[error("buffer-mode `{0}` is not ring or fixed")]
    Mode(String),
    /// A size that cannot be.
    #[error("buffer-size `{0}` is not a number of bytes from {min} to {BUFFER_BYTES_MAX}", min = 2 * EVENT_BYTES)]
    Size(String),
    /// Files are written by the one who dumps.
    #[error("save-on-stop is not supported; dump the trace after the stop")]
    SaveOnStop,
}

impl TraceConfig {
    /// Whether calls with this target are recorded.
    #[must_use]
    pub fn records(&self, target: &str) -> bool {
        let any = |globs: &[String]| globs.iter().any(|glob| matches(glob.as_bytes(), target.as_bytes()));
        any(&self.enabled) && !any(&self.disabled)
    }
}

/// Whether `text` is one that `glob` stands for. Without recursion: after a mismatch only the last star can take more.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut at_glob, mut at_text) = (0, 0);
    let mut star = None;
    while at_text < text.len() {
        match glob.get(at_glob) {
            Some(b'*') => {
                star = Some((at_glob + 1, at_text));
                at_glob += 1;
            }
            Some(byte) if *byte == text[at_text] => {
                at_glob += 1;
                at_text += 1;
            }
            _ => {
                let Some((after_star, taken)) = star else { return false };
                star = Some((after_star, taken + 1));
                (at_glob, at_text) = (after_star, taken + 1);
            }
        }
    }
    glob[at_glob..].iter().all(|byte| *byte == b'*')
}

impl FromStr for TraceConfig {
    type Err = TraceConfigError;

    fn from_str(text: &str) -> Result<TraceConfig, TraceConfigError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TraceConfigError::Long);
        }
        let mut config = TraceConfig::default();
        let list = |value: &str| -> Vec<String> {
            value.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
        };
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) =
                part.split_once(':').ok_or_else(|| TraceConfigError::Form(part.to_owned()))?;
            let value = value.trim();
            match name.trim() {
                "buffer-mode" => {
                    let mode =
                        [BufferMode::Ring, BufferMode::Fixed].into_iter().find(|mode| mode.name() == value);
                    config.mode = mode.ok_or_else(|| TraceConfigError::Mode(value.to_owned()))?;
                }
                "buffer-size" => {
                    let bytes = value
                        .parse()
                        .ok()
                        .filter(|bytes| (2 * EVENT_BYTES..=BUFFER_BYTES_MAX).contains(bytes));
                    config.buffer_bytes = bytes.ok_or_else(|| TraceConfigError::Size(value.to_owned()))?;
                }
                "enabled-categories" => config.enabled = list(value),
                "disabled-categories" => config.disabled = list(value),
                "save-on-stop" => return Err(TraceConfigError::SaveOnStop),
                other => return Err(TraceConfigError::Name(other.to_owned())),
            }
        }
        Ok(config)
    }
}

impl fmt::Display for TraceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "buffer-mode:{};buffer-size:{};enabled-categories:{};disabled-categories:{}",
            self.mode.name(),
            self.buffer_bytes,
            self.enabled.join(","),
            self.disabled.join(",")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_printed_in_the_form_in_which_it_is_read() {
        let text = "buffer-mode:fixed;buffer-size:4096;enabled-categories:a,b*;disabled-categories:c";
        let config: TraceConfig = text.parse().unwrap();
        assert_eq!(config.to_string(), text);
        assert_eq!("".parse::<TraceConfig>().unwrap(), TraceConfig::default());
        let scans: TraceConfig = "enabled-categories:ringbase::range_scan".parse().unwrap();
        assert!(scans.records("ringbase::range_scan") && !scans.records("ringbase::range_scan::reading"));
    }

    #[test]
    fn what_cannot_be_is_refused_in_words() {
        for (text, says) in [
            ("buffer-mode:square", "ring or fixed"),
            ("buffer-size:0", "number of bytes"),
            ("buffer-size:99999999999999999999", "number of bytes"),
            ("buffer", "name:value"),
            ("colour:red", "colour"),
            ("save-on-stop:/etc/passwd", "not supported"),
            (&"x".repeat(5000), "at most"),
        ] {
            let error = text.parse::<TraceConfig>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_star_stands_for_any_text_and_disabled_wins() {
        for (glob, text, expected) in [
            ("*", "", true),
            ("a*", "abc", true),
            ("a*", "ba", false),
            ("*scan", "ringbase::range_scan", true),
            ("r*::*_s*n", "ringbase::range_scan", true),
            ("r*x", "ringbase", false),
            ("a", "a", true),
            ("a**", "a", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(glob.as_bytes(), text.as_bytes()), expected, "{glob} {text}");
        }
        let config: TraceConfig = "enabled-categories:a*;disabled-categories:ab*".parse().unwrap();
        assert!(config.records("ac") && !config.records("abc") && !config.records("b"));
    }
}
