//! The command line of `ringctl bucket`.
//!
//! Does not know: nodes, which settings a node takes.

use clap::{Args, Subcommand, ValueEnum};
use ringbase::config::ByteSize;

#[derive(Debug, Args)]
#[command(after_help = "\
Buckets are data sets of their own: documents, memory quota, settings. All of these need the role
admin, but for the list. A change is done when the command returns, on all cores and on disk.

Examples:
  ringctl bucket create sessions --quota 256MiB --max-ttl 3600
  ringctl bucket list
  ringctl bucket set sessions max_size=536870912     settings: max_size max_item_size max_ttl
                                                     exp_pager_enabled exp_pager_stime
                                                     getl_default_timeout getl_max_timeout
  ringctl set k v --bucket sessions                  every command takes --bucket
  ringctl bucket flush sessions                      delete all its documents, keep the bucket
  ringctl bucket delete sessions")]
pub(crate) struct BucketArgs {
    #[command(subcommand)]
    pub(crate) action: BucketAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BucketAction {
    /// Create a bucket
    Create {
        /// Its name: 1 to 100 letters, digits and . _ % -
        name: String,
        #[command(flatten)]
        settings: BucketSettingsArgs,
    },
    /// List the buckets with type, quota, documents and memory
    List,
    /// Change settings of a bucket while it is in use
    Set {
        /// Its name
        name: String,
        /// What to change
        #[arg(value_name = "SETTING=VALUE", required = true, value_parser = setting)]
        settings: Vec<(String, String)>,
    },
    /// Delete all documents of a bucket
    Flush {
        /// Its name
        name: String,
    },
    /// Delete a bucket with all its documents
    Delete {
        /// Its name
        name: String,
    },
}

/// Where documents live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Persistent,
    Ephemeral,
}

/// What a bucket that lives in memory does when it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    AutoDelete,
    FailNewData,
}

/// Which of two versions that were made in two places stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Resolution {
    Seqno,
    Lww,
    Custom,
}

#[derive(Debug, Args)]
pub(crate) struct BucketSettingsArgs {
    /// In memory and on disk, or in memory only
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Kind>,
    /// Which of two versions that were made in two places stays: the one with more changes or the later one [default: seqno]
    #[arg(long, value_name = "WAY")]
    conflict_resolution: Option<Resolution>,
    /// Most memory for its documents, at least 1MiB [default: all that the node has for documents]
    #[arg(long, value_name = "SIZE")]
    quota: Option<ByteSize>,
    /// Longest life of a document, in seconds, 0 for no limit
    #[arg(long, value_name = "SECONDS")]
    max_ttl: Option<u32>,
    /// Longest value of a document [default: 20MiB]
    #[arg(long, value_name = "SIZE")]
    max_item_size: Option<ByteSize>,
    /// Seconds between two looks for expired documents [default: 600]
    #[arg(long, value_name = "SECONDS")]
    pager_interval: Option<u32>,
    /// What a bucket in memory does when it is full [default: auto-delete]
    #[arg(long, value_name = "POLICY")]
    full_policy: Option<Policy>,
    /// Seconds that a deletion is remembered, -1 for ever [default: 60 in memory, 259200 on disk]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    purge_age: Option<i32>,
    /// Seconds between two purges of deletions [default: 60 in memory, 3600 on disk]
    #[arg(long, value_name = "SECONDS")]
    purge_interval: Option<u32>,
}

impl BucketSettingsArgs {
    /// What was given, as the node reads it.
    pub(crate) fn text(&self) -> String {
        let kind = self.kind.map(|kind| match kind {
            Kind::Persistent => "persistent",
            Kind::Ephemeral => "ephemeral",
        });
        let resolution = self.conflict_resolution.map(|way| match way {
            Resolution::Seqno => "seqno",
            Resolution::Lww => "lww",
            Resolution::Custom => "custom",
        });
        let policy = self.full_policy.map(|policy| match policy {
            Policy::AutoDelete => "auto_delete",
            Policy::FailNewData => "fail_new_data",
        });
        let (purge_age, purge_interval) = match self.kind {
            Some(Kind::Ephemeral) => ("ephemeral_metadata_purge_age", "ephemeral_metadata_purge_interval"),
            _ => ("persistent_metadata_purge_age", "persistent_metadata_purge_interval"),
        };
        let bytes = |size: Option<ByteSize>| size.map(|size| size.0.to_string());
        let settings = [
            ("bucket_type", kind.map(str::to_owned)),
            ("conflict_resolution_type", resolution.map(str::to_owned)),
            ("max_size", bytes(self.quota)),
            ("max_ttl", self.max_ttl.map(|seconds| seconds.to_string())),
            ("max_item_size", bytes(self.max_item_size)),
            ("exp_pager_stime", self.pager_interval.map(|seconds| seconds.to_string())),
            ("ephemeral_full_policy", policy.map(str::to_owned)),
            (purge_age, self.purge_age.map(|seconds| seconds.to_string())),
            (purge_interval, self.purge_interval.map(|seconds| seconds.to_string())),
        ];
        let given = settings.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)));
        given.collect::<Vec<_>>().join(";")
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write SETTING=VALUE, such as max_ttl=3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: BucketSettingsArgs,
    }

    #[test]
    fn only_what_was_given_is_said_and_in_the_words_of_the_node() {
        let text = |words: &[&str]| Line::parse_from([&["x"], words].concat()).settings.text();
        assert_eq!(text(&[]), "");
        assert_eq!(
            text(&["--quota", "2MiB", "--type", "persistent"]),
            "bucket_type=persistent;max_size=2097152"
        );
        assert_eq!(text(&["--purge-age", "9"]), "persistent_metadata_purge_age=9");
        assert_eq!(text(&["--conflict-resolution", "lww"]), "conflict_resolution_type=lww");
        let ephemeral = ["--type", "ephemeral", "--full-policy", "fail-new-data", "--purge-age", "-1"];
        assert_eq!(
            text(&ephemeral),
            "bucket_type=ephemeral;ephemeral_full_policy=fail_new_data;ephemeral_metadata_purge_age=-1"
        );
    }
}
