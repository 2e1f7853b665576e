//! The command line: every flag with its unit and meaning, examples in the help.
//!
//! Invariants
//! - What this accepts is complete and in range; rules between flags that clap cannot express are in the
//!   commands, as `Failure::Misuse`.
//!
//! Does not know: nodes.

mod bucket;
mod collection;
mod compact;
mod drain;
mod scrub;
mod top;
mod trace;
mod vbucket;
mod why;

use std::ffi::OsString;
use std::path::PathBuf;

pub(crate) use bucket::{BucketAction, BucketArgs};
use clap::builder::styling::{AnsiColor, Styles};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
pub(crate) use collection::{CollectionAction, CollectionArgs};
pub(crate) use compact::CompactArgs;
pub(crate) use drain::DcpDrainArgs;
use ringbase::auth::Role;
use ringbase::client::{DEFAULT_ADDRESS, SourceForm};
pub(crate) use scrub::{ScrubAction, ScrubArgs};
pub(crate) use top::TopArgs;
pub(crate) use trace::{TraceAction, TraceArgs, TraceStartArgs};
pub(crate) use vbucket::{VbucketAction, VbucketArgs};
pub(crate) use why::WhyArgs;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold());

/// Talks to a Ringbase node, loads documents into it, scans and streams it.
#[derive(Debug, Parser)]
#[command(name = "ringctl", version, styles = STYLES, max_term_width = 100, after_help = "\
Examples:
  ringctl ping --wait 10                             wait until a node answers
  ringctl set greeting '{\"hello\":\"world\"}'           write a document
  ringctl get greeting                               read it
  ringctl load dir:/usr/share/doc                    every file becomes a document
  ringctl range-scan --key-only                      count and time all keys
  ringctl range-scan --prefix user: --print-keys     list some
  ringctl dcp-drain                                  stream everything, time and check it
  ringctl timings                                    where the node spends its time
  ringctl why                                        what its streams wait for
  ringctl top                                        streams, backfills and scans, live
  ringctl trace start                                record what it does when

Exit code: 0 done, 1 failed, 2 wrong command line.
Results go to standard output, all else to standard error.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Flags of every command")]
pub(crate) struct GlobalArgs {
    /// Data port of the node
    #[arg(long, global = true, value_name = "ADDR:PORT", default_value = DEFAULT_ADDRESS)]
    pub(crate) host: String,
    /// Authenticate as this user
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Its password; other users of the machine can see it, --password-stdin keeps it to itself
    #[arg(long, global = true, value_name = "WORD", conflicts_with = "password_stdin")]
    pub(crate) password: Option<String>,
    /// Read the password from the first line of standard input
    #[arg(long, global = true)]
    pub(crate) password_stdin: bool,
    /// Bucket to work on [default: "default" with --user, else the node's choice]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) bucket: Option<String>,
    /// Longest wait for an answer, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    pub(crate) timeout: f64,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask whether the node answers
    Ping(PingArgs),
    /// Read a document
    Get(GetArgs),
    /// Write a document
    Set(SetArgs),
    /// Delete a document
    Delete(DeleteArgs),
    /// Change the expiry of a document
    Touch(TouchArgs),
    /// Add to a counter and print its new value
    Incr(IncrArgs),
    /// Print statistics
    Stats(StatsArgs),
    /// Print the node's histograms with percentiles
    Timings(TimingsArgs),
    /// Say where the time of streams went
    Why(WhyArgs),
    /// Show streams, backfills and range scans live
    Top(TopArgs),
    /// Record what the node does when, and dump it for Perfetto
    Trace(TraceArgs),
    /// Create, list, change, empty and delete buckets
    Bucket(BucketArgs),
    /// Create, list and drop collections
    Collection(CollectionArgs),
    /// Show what the vbuckets of a bucket are, change and delete them
    Vbucket(VbucketArgs),
    /// Change a users file
    User(UserArgs),
    /// Load documents from files, or generated ones
    Load(LoadArgs),
    /// Scan keys or documents in key order
    RangeScan(RangeScanArgs),
    /// Drain streams of a bucket over DCP, time and check them
    DcpDrain(DcpDrainArgs),
    /// Decode the files of a stopped or broken store
    Inspect(InspectArgs),
    /// Read all that a node has on disk and say what is damaged
    Scrub(ScrubArgs),
    /// Have garbage given back and old deletions forgotten
    Compact(CompactArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringctl ping                   once, fail if nothing answers
  ringctl ping --wait 10         try for up to 10 seconds, for scripts that have just started a node")]
pub(crate) struct PingArgs {
    /// Try for up to this many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30", value_parser = seconds)]
    pub(crate) wait: Option<f64>,
}

#[derive(Debug, Args)]
#[command(after_help = "The value is written byte for byte; a line end is added on a terminal only.
--json adds CAS, flags and datatype.

Example: ringctl get greeting > greeting.json")]
pub(crate) struct GetArgs {
    /// The document's key
    pub(crate) key: OsString,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringctl set greeting '{\"hello\":\"world\"}'
  ringctl set picture --file cat.png
  date | ringctl set now --file - --expiry 60
  ringctl set greeting hi --cas 1765212345678901248      only if nobody changed it since")]
pub(crate) struct SetArgs {
    /// The document's key
    pub(crate) key: OsString,
    /// Its value
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(crate) value: Option<OsString>,
    /// Read the value from this file, `-` for standard input
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Only if there is no such document
    #[arg(long, conflicts_with_all = ["replace", "cas"])]
    pub(crate) add: bool,
    /// Only if there is such a document
    #[arg(long)]
    pub(crate) replace: bool,
    /// Seconds to live, 0 for ever; above 30 days an absolute time in epoch seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) expiry: u32,
    /// 32 bits that the node keeps for you
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) flags: u32,
    /// Only if the document has this version
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cas: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The document's key
    pub(crate) key: OsString,
    /// Only if the document has this version
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cas: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct TouchArgs {
    /// The document's key
    pub(crate) key: OsString,
    /// Seconds to live, 0 for ever; above 30 days an absolute time in epoch seconds
    pub(crate) expiry: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringctl incr visits                one more; a new counter starts with 1
  ringctl incr stock -5              five less, but never below 0
  ringctl incr visits --must-exist   fail instead of making a counter")]
pub(crate) struct IncrArgs {
    /// The counter's key
    pub(crate) key: OsString,
    /// What to add; negative to take away
    #[arg(default_value = "1", allow_negative_numbers = true, value_parser = delta)]
    pub(crate) delta: i128,
    /// Value of a counter that does not exist yet [default: DELTA, or 0 if that is negative]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) initial: Option<u64>,
    /// Expiry of a counter that does not exist yet
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32)
        .range(..i64::from(u32::MAX)))]
    pub(crate) expiry: u32,
    /// Do not make a counter
    #[arg(long, conflicts_with_all = ["initial", "expiry"])]
    pub(crate) must_exist: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringctl stats                      general
  ringctl stats vbucket-seqno 3      seqnos of vbucket 3
  ringctl stats range-scans          open scans
  ringctl stats --json | jq .curr_items")]
pub(crate) struct StatsArgs {
    /// The group, with its argument if it takes one
    pub(crate) group: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Times are microseconds unless the name says otherwise.
--json prints the histograms as the node sends them, with percentiles added.

Example: ringctl timings range_scan       only the names that contain it")]
pub(crate) struct TimingsArgs {
    /// Only histograms whose name contains this
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "The node reads the file when it starts (`ringbase serve --users FILE`).

Examples:
  ringctl user add --users users.json anna --role read-write --password-stdin < secret
  ringctl user list --users users.json
  ringctl user remove --users users.json anna")]
pub(crate) struct UserArgs {
    #[command(subcommand)]
    pub(crate) action: UserAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserAction {
    /// Add a user; the file is made if it does not exist
    Add {
        /// The users file
        #[arg(long, value_name = "FILE")]
        users: PathBuf,
        /// Name of the user
        name: String,
        /// What it may do: read-only, read-write, admin
        #[arg(long, default_value = "read-write")]
        role: Role,
    },
    /// List the users
    List {
        /// The users file
        #[arg(long, value_name = "FILE")]
        users: PathBuf,
    },
    /// Remove a user
    Remove {
        /// The users file
        #[arg(long, value_name = "FILE")]
        users: PathBuf,
        /// Name of the user
        name: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Sources:
  dir:PATH                  one document per file; key = path below PATH, value = contents
  lines:FILE                one key per line, empty values
  jsonl:FILE#FIELD          one JSON object per line; key = that member, value = the line
  generate:COUNT,KEYLEN,VALUELEN,SEED
                            that many documents with distinct keys of KEYLEN bytes;
                            the same SEED always gives the same documents

Values above --max-document-bytes and keys above 250 bytes are skipped, counted and named.
A busy node is asked again. Several connections send at a time: of two documents with the
same key either may stay.

Examples:
  ringctl load dir:src
  ringctl load lines:/usr/share/dict/words --connections 4
  ringctl load jsonl:users.jsonl#id
  ringctl load generate:4_200_000,100,8,1 --wait-persisted")]
pub(crate) struct LoadArgs {
    /// Where the documents come from, see below
    #[arg(value_parser = OsStringValueParser::new().try_map(|text| SourceForm::parse(&text)))]
    pub(crate) source: SourceForm,
    /// Connections, each with a thread of its own
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) connections: u16,
    /// Requests that each connection has outstanding at most
    #[arg(long, value_name = "COUNT", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) window: u32,
    /// Largest value that is sent, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = ringbase::client::source::VALUE_BYTES_MAX)]
    pub(crate) max_document_bytes: usize,
    /// How long to insist when the node is too busy for a document, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    pub(crate) patience: f64,
    /// Return only when the node has persisted everything
    #[arg(long)]
    pub(crate) wait_persisted: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Every vbucket is a scan of its own, in key order; with several connections their output is
mixed. Without a range all keys are scanned. --print-keys writes keys as they are, with
--json as JSON.

Examples:
  ringctl range-scan --key-only                           how many keys, how fast
  ringctl range-scan --key-only --connections 4 --json
  ringctl range-scan --prefix user: --print-keys
  ringctl range-scan --start a --excl-end b --print-documents
  ringctl range-scan --samples 10 --seed 7 --vbucket 3 --print-keys
  ringctl range-scan --key-only --items 1000              1000 keys for each continue"
)]
pub(crate) struct RangeScanArgs {
    /// Keys only, not documents
    #[arg(long)]
    pub(crate) key_only: bool,
    /// First key
    #[arg(long, value_name = "KEY", conflicts_with = "excl_start")]
    pub(crate) start: Option<OsString>,
    /// Begin after this key
    #[arg(long, value_name = "KEY")]
    pub(crate) excl_start: Option<OsString>,
    /// Last key
    #[arg(long, value_name = "KEY", conflicts_with = "excl_end")]
    pub(crate) end: Option<OsString>,
    /// End before this key
    #[arg(long, value_name = "KEY")]
    pub(crate) excl_end: Option<OsString>,
    /// All keys that begin so
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["start", "excl_start", "end", "excl_end"])]
    pub(crate) prefix: Option<OsString>,
    /// A random sample of about this many documents of every vbucket
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..),
        conflicts_with_all = ["start", "excl_start", "end", "excl_end", "prefix"])]
    pub(crate) samples: Option<u64>,
    /// The same seed chooses the same documents
    #[arg(long, value_name = "NUMBER", requires = "samples", default_value_t = 0)]
    pub(crate) seed: u32,
    /// Id of the collection, in hex
    #[arg(long, value_name = "HEX", default_value = "0", value_parser = collection)]
    pub(crate) collection: u32,
    /// Documents with their extended attributes
    #[arg(long, conflicts_with = "key_only")]
    pub(crate) include_xattrs: bool,
    /// Name of the scan in the node's statistics, at most 50 bytes
    #[arg(long, value_name = "NAME", value_parser = scan_name)]
    pub(crate) name: Option<String>,
    /// Only this vbucket, or these: 3 or 0-7; may be repeated [default: all]
    #[arg(long, value_name = "ID", value_parser = vbucket_range)]
    pub(crate) vbucket: Vec<VbucketRange>,
    /// The vbucket must have this uuid (needs one --vbucket)
    #[arg(long, value_name = "NUMBER", requires = "snapshot_seqno")]
    pub(crate) snapshot_uuid: Option<u64>,
    /// Everything up to this seqno must be in the snapshot
    #[arg(long, value_name = "SEQNO", requires = "snapshot_uuid")]
    pub(crate) snapshot_seqno: Option<u64>,
    /// A document must have exactly that seqno
    #[arg(long, requires = "snapshot_uuid")]
    pub(crate) snapshot_seqno_exists: bool,
    /// Wait up to so long for that seqno to be persisted, in milliseconds
    #[arg(long, value_name = "MS", requires = "snapshot_uuid")]
    pub(crate) snapshot_timeout_ms: Option<u64>,
    /// Connections, each with a thread of its own
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) connections: u16,
    /// Records for each continue, 0 for no limit
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) items: u32,
    /// Milliseconds for each continue, 0 for no limit
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(crate) time_ms: u32,
    /// Bytes for each continue, 0 for no limit
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) bytes: u32,
    /// Begin a vbucket only when the one before it is complete, instead of queueing its requests early
    #[arg(long)]
    pub(crate) one_at_a_time: bool,
    /// How long to insist when the node is too busy for another scan, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    pub(crate) patience: f64,
    /// Print every key on a line of its own; the summary goes to standard error
    #[arg(long)]
    pub(crate) print_keys: bool,
    /// Print every document as a line of JSON; the summary goes to standard error
    #[arg(long, conflicts_with_all = ["key_only", "print_keys"])]
    pub(crate) print_documents: bool,
}

/// Some vbuckets, first and last included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VbucketRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

fn vbucket_range(text: &str) -> Result<VbucketRange, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let id = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no vbucket id"));
    let range = VbucketRange { first: id(first)?, last: id(last)? };
    if range.first > range.last {
        return Err(format!("{first} is above {last}"));
    }
    Ok(range)
}

fn delta(text: &str) -> Result<i128, String> {
    let range = -i128::from(u64::MAX)..=i128::from(u64::MAX);
    let delta = text.parse().ok().filter(|delta| range.contains(delta));
    delta.ok_or_else(|| "not a number of 64 bits".to_owned())
}

fn collection(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u32::from_str_radix(digits, 16).map_err(|_| "a collection id is a hex number of 32 bits".to_owned())
}

fn scan_name(text: &str) -> Result<String, String> {
    if text.len() > 50 {
        return Err(format!("{} bytes, at most 50 are possible", text.len()));
    }
    Ok(text.to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.001..=1e6).contains(&seconds) {
        return Err("must be from 0.001 to 1,000,000 seconds".to_owned());
    }
    Ok(seconds)
}

#[derive(Debug, Args)]
#[command(
    after_help = "Reads the files as they are and never writes. Goes on behind damage and names each place; exits with 1 if
something that was durable is damaged.

Examples:
  ringctl inspect ./data                       a summary of every shard, all blocks verified
  ringctl inspect ./data/shard-000 --quick     one shard, indexes only
  ringctl inspect ./data --vbucket 7 --keys    the keys of one vbucket, with their metadata"
)]
pub(crate) struct InspectArgs {
    /// Data directory of a node, or the folder of one shard
    #[arg(value_name = "DIR")]
    pub(crate) directory: std::path::PathBuf,
    /// Read indexes only, not the blocks they point to
    #[arg(long)]
    pub(crate) quick: bool,
    /// List the changes of the manifest
    #[arg(long)]
    pub(crate) manifest: bool,
    /// List the batches and records of the log
    #[arg(long)]
    pub(crate) wal: bool,
    /// List the fences of runs and segments
    #[arg(long)]
    pub(crate) fences: bool,
    /// List the keys of runs with their metadata
    #[arg(long)]
    pub(crate) keys: bool,
    /// List documents with the beginning of their values, and death marks
    #[arg(long)]
    pub(crate) documents: bool,
    /// Only this vbucket
    #[arg(long, value_name = "NUMBER")]
    pub(crate) vbucket: Option<u16>,
    /// Entries of any one list
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    pub(crate) limit: usize,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn refused(line: &str) -> String {
        let words = std::iter::once("ringctl").chain(line.split_whitespace());
        let error = Cli::try_parse_from(words).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    fn accepted(line: &str) -> Cli {
        let words = std::iter::once("ringctl").chain(line.split_whitespace());
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn wrong_command_lines_are_refused_in_words() {
        for (line, says) in [
            ("frobnicate", "unrecognized subcommand"),
            ("get", "<KEY>"),
            ("set k", "<VALUE>"),
            ("load", "<SOURCE>"),
            ("load /tmp", "dir:PATH"),
            ("load generate:17,1,1,1", "only 16 keys"),
            ("load dir:x --connections 0", "0 is not in 1..=256"),
            ("ping --wait soon", "not a number of seconds"),
            ("range-scan --start a --excl-start b", "cannot be used with"),
            ("range-scan --prefix a --end b", "cannot be used with"),
            ("range-scan --samples 3 --prefix a", "cannot be used with"),
            ("range-scan --samples 0", "0 is not in 1.."),
            ("range-scan --seed 3", "--samples"),
            ("range-scan --snapshot-seqno 3", "--snapshot-uuid"),
            ("range-scan --vbucket 7-3", "7 is above 3"),
            ("range-scan --collection xyz", "hex"),
            ("range-scan --key-only --print-documents", "cannot be used with"),
            ("user add --users f", "<NAME>"),
            ("user add --users f n --role king", "unknown role"),
            ("bucket create", "<NAME>"),
            ("bucket create b --type disk", "persistent"),
            ("bucket create b --quota much", "no size"),
            ("bucket set b", "<SETTING=VALUE>"),
            ("bucket set b max_ttl", "SETTING=VALUE"),
            ("--password a --password-stdin ping", "cannot be used with"),
        ] {
            let text = refused(line);
            assert!(text.contains(says), "{line}: {text}");
        }
    }

    #[test]
    fn global_flags_go_before_and_after_the_command() {
        for line in ["--host h:1 --user u --json ping", "ping --host h:1 --user u --json"] {
            let cli = accepted(line);
            assert_eq!((cli.global.host.as_str(), cli.global.user.as_deref()), ("h:1", Some("u")));
            assert!(cli.global.json);
        }
    }

    #[test]
    fn counters_go_up_and_down() {
        let delta = |line| match accepted(line).command {
            Command::Incr(args) => args.delta,
            other => panic!("{other:?}"),
        };
        assert_eq!(delta("incr k"), 1);
        assert_eq!(delta("incr k -5"), -5);
        assert_eq!(delta("incr k 18446744073709551615"), i128::from(u64::MAX));
        refused("incr k 18446744073709551616");
    }
}
