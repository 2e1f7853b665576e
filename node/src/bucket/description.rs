//! What is stored with a bucket, as text: its settings, and behind the first line break its collections.
//!
//! Invariants
//! - The text of a bucket whose manifest was never set is that of its settings.
//!
//! Does not know: where it is stored, what settings and collections mean.

use std::fmt;

use super::collections::BucketCollections;
use super::settings::{BucketSettings, SettingsError};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketConfig {
    /// Its settings.
    pub settings: BucketSettings,
    /// Its collections.
    pub collections: BucketCollections,
}

impl BucketConfig {
    /// Reads the text.
    ///
    /// # Errors
    /// The first part that means nothing.
    pub fn parse(text: &str) -> Result<BucketConfig, SettingsError> {
        let (settings, collections) = text.split_once('\n').unwrap_or((text, ""));
        let settings = BucketSettings::parse(settings)?;
        Ok(BucketConfig { settings, collections: BucketCollections::parse(collections)? })
    }
}

impl fmt::Display for BucketConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let collections = self.collections.to_text();
        let line_break = if collections.is_empty() { "" } else { "\n" };
        write!(f, "{}{line_break}{collections}", self.settings)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::Manifest;

    #[test]
    fn settings_and_collections_survive_their_text_and_old_texts_have_no_collections() {
        let mut config = BucketConfig::parse("max_ttl=60").unwrap();
        assert_eq!(config.collections, BucketCollections::default());
        assert_eq!(config.to_string(), config.settings.to_string());
        let manifest = Manifest::parse(br#"{"uid":"3","scopes":[{"name":"_default","uid":"0"}]}"#).unwrap();
        config.collections = config.collections.successor(&Arc::new(manifest)).unwrap().unwrap();
        assert_eq!(BucketConfig::parse(&config.to_string()), Ok(config));
        let error = BucketConfig::parse("max_ttl=60\n{}").unwrap_err().to_string();
        assert!(error.contains("collections"), "{error}");
    }
}
