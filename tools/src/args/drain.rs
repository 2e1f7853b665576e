//! The command line of `ringctl dcp-drain`.
//!
//! Does not know: nodes, streams.

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use ringbase::client::SourceForm;
use ringbase::config::ByteSize;

use super::{VbucketRange, collection, seconds, vbucket_range};

/// Longest name that still has room for the number of its connection.
const NAME_BYTES_MAX: usize = 190;

#[derive(Debug, Args)]
#[command(after_help = "\
Asks for a stream of every vbucket, from the beginning to what is newest when it is asked, receives
them and says how fast. Every message is checked: seqnos rise within a stream, each lies within its
snapshot, no snapshot has a key twice, a stream ends with status Ok. What is wrong is printed with
vbucket and seqno, and the exit code is 1.

Keys are compared by hashes of 64 bits, of 8 million keys at a time; snapshots beyond that are counted
and their keys not compared.

Examples:
  ringctl dcp-drain                                      how fast is a backfill
  ringctl dcp-drain --connections 4 --json
  ringctl load generate:1_000_000,20,100,1 --wait-persisted
  ringctl dcp-drain --verify generate:1_000_000,20,100,1   is everything there, and as it was loaded
  ringctl dcp-drain --vbucket 3,8-15 --from 1000         what came after seqno 1000
  ringctl dcp-drain --follow --seconds 60                and what is written in the next minute
  ringctl dcp-drain --hang --buffer-size 1MiB            a consumer that is stuck, until Ctrl-C")]
pub(crate) struct DcpDrainArgs {
    /// Connections, each with a thread of its own; vbuckets are divided among them
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) connections: u16,
    /// Window of flow control: what the node may send before bytes are given back; 0 for no flow control
    #[arg(long, value_name = "SIZE", default_value = "10MiB", value_parser = buffer_bytes)]
    pub(crate) buffer_size: u32,
    /// Share of the window at which bytes are given back, above 0 and at most 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    pub(crate) ack_ratio: f64,
    /// Only these vbuckets: 3, 0-7 or 3,8-15; may be repeated [default: all]
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = vbucket_range)]
    pub(crate) vbucket: Vec<VbucketRange>,
    /// Only these collections, ids in hex separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = collection)]
    pub(crate) collection: Vec<u32>,
    /// Give all streams this id, 1 to 65535
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) stream_id: Option<u16>,
    /// Allow the past of the collections in key order, "out of sequence order": the node decides
    #[arg(long, requires = "collection", conflicts_with = "from")]
    pub(crate) oso: bool,
    /// Read everything from disk, also what memory has
    #[arg(long, conflicts_with = "follow")]
    pub(crate) disk_only: bool,
    /// Begin after this seqno
    #[arg(long, value_name = "SEQNO", default_value_t = 0)]
    pub(crate) from: u64,
    /// Name of the connections, followed by their number; one of the same name is closed by the node
    /// [default: ringctl-drain-PID]
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) name: Option<String>,
    /// Keys without values
    #[arg(long)]
    pub(crate) no_value: bool,
    /// Values with their extended attributes
    #[arg(long, conflicts_with = "no_value")]
    pub(crate) xattrs: bool,
    /// Go on with what is written, until Ctrl-C or --seconds
    #[arg(long)]
    pub(crate) follow: bool,
    /// Ask for the streams and then read nothing, until Ctrl-C or --seconds
    #[arg(long, conflicts_with_all = ["follow", "verify"])]
    pub(crate) hang: bool,
    /// How long to --follow or --hang
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) seconds: Option<f64>,
    /// Compare with what `ringctl load` writes from this source: nothing else, nothing missing
    #[arg(long, value_name = "SOURCE", value_parser = OsStringValueParser::new().try_map(|text| SourceForm::parse(&text)),
        conflicts_with_all = ["no_value", "xattrs", "collection", "from"])]
    pub(crate) verify: Option<SourceForm>,
}

fn buffer_bytes(text: &str) -> Result<u32, String> {
    let ByteSize(bytes) = text.parse()?;
    u32::try_from(bytes).map_err(|_| "a window has less than 4GiB".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err("must be above 0 and at most 1".to_owned()) }
}

fn name(text: &str) -> Result<String, String> {
    if (1..=NAME_BYTES_MAX).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(format!("{} bytes, 1 to {NAME_BYTES_MAX} are possible", text.len()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        drain: DcpDrainArgs,
    }

    fn parse(words: &[&str]) -> Result<DcpDrainArgs, String> {
        let line = Line::try_parse_from([&["x"], words].concat());
        line.map(|line| line.drain).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_and_ranges_are_read_and_nonsense_is_refused_in_words() {
        let args = parse(&["--vbucket", "3,8-15", "--vbucket", "1", "--collection", "0,a"]).unwrap();
        let ranges: Vec<(u16, u16)> = args.vbucket.iter().map(|range| (range.first, range.last)).collect();
        assert_eq!(ranges, [(3, 3), (8, 15), (1, 1)]);
        assert_eq!((args.collection, args.buffer_size), (vec![0, 10], 10 << 20));
        for (words, says) in [
            (&["--ack-ratio", "0"][..], "above 0"),
            (&["--ack-ratio", "NaN"], "above 0"),
            (&["--buffer-size", "4GiB"], "less than 4GiB"),
            (&["--name", ""], "1 to 190"),
            (&["--stream-id", "0"], "1..=65535"),
            (&["--hang", "--follow"], "cannot be used with"),
            (&["--verify", "generate:1,2,3,4", "--from", "5"], "cannot be used with"),
            (&["--verify", "/tmp"], "dir:PATH"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(says), "{words:?}: {error}");
        }
    }
}
