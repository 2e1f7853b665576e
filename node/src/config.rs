//! From flags and a file to a validated configuration: every limit, with its unit and range.
//!
//! Flags win over the file. Unknown keys in the file are refused. Everything is checked before the first file is opened.
//!
//! Does not know: running objects.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::range_scan::{SendSize, SettingError};

/// A number of bytes, written as `512MiB`, `64k`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits]
            .parse()
            .map_err(|_| format!("`{text}` is no size; write 4096, 64KiB, 512MiB or 2GiB"))?;
        let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            unit => return Err(format!("`{unit}` is no unit; use B, KiB, MiB, GiB or TiB")),
        };
        number
            .checked_mul(1 << shift)
            .map(ByteSize)
            .ok_or_else(|| format!("`{text}` is more bytes than fit 64 bits"))
    }
}

impl std::fmt::Display for ByteSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let unit =
            units.into_iter().find(|(shift, _)| self.0 >> shift > 0 && self.0.trailing_zeros() >= *shift);
        match unit {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(ByteSize(number)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// The size of a range scan's buffer, with or without a unit.
fn parse_send_size(text: &str) -> Result<SendSize, String> {
    if text == "auto" {
        return Ok(SendSize::Auto);
    }
    let size: ByteSize = text.parse()?;
    size.0.to_string().parse().map_err(|error: SettingError| error.to_string())
}

fn deserialize_send_size<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SendSize>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    let text = match Either::deserialize(deserializer)? {
        Either::Number(number) => number.to_string(),
        Either::Text(text) => text,
    };
    parse_send_size(&text).map(Some).map_err(serde::de::Error::custom)
}

/// The settings of `ringbase serve`, as flags and as keys of the file. What is not given has a default.
#[derive(Debug, Default, Clone, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeArgs {
    /// Directory of the data; made and formatted if it is empty.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of the key-value protocol. Port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address of the management port, which answers every HTTP request with 404 (SDKs wait 75 s on a dead one).
    #[arg(long, value_name = "ADDR:PORT")]
    pub mgmt_listen: Option<SocketAddr>,
    /// Cores to use, one pinned thread each [default: all that the process may run on].
    #[arg(long, value_name = "N")]
    pub cores: Option<u16>,
    /// Shards of a new data directory, each with a log and a data file [default: as many as cores].
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,
    /// Vbuckets of a new data directory: a power of two from 1 to 1024 [default: 128].
    #[arg(long, value_name = "N")]
    pub vbuckets: Option<u16>,
    /// Memory for documents, block cache and unflushed writes, of all cores [default: 1GiB].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Name of the bucket that a new data directory gets [default: default].
    #[arg(long, value_name = "NAME")]
    pub bucket: Option<String>,
    /// Users file, made with `ringctl user add`. Without one the node listens on loopback only and asks nobody.
    #[arg(long, value_name = "FILE")]
    pub users: Option<PathBuf>,
    /// TOML file with these same keys (`mgmt_listen = "…"`); flags win.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Bytes of a log segment of a new data directory [default: 32MiB].
    #[arg(long, value_name = "SIZE")]
    pub wal_segment_bytes: Option<ByteSize>,
    /// Segments of each log of a new data directory [default: 8].
    #[arg(long, value_name = "N")]
    pub wal_segments: Option<u32>,
    /// Days between two scrubs, in which everything on disk is read and verified; 0 for only when asked [default: 7].
    #[arg(long, value_name = "DAYS")]
    pub scrub_days: Option<u32>,
    /// Bytes that a scrub of a shard reads in a second, 0 for no limit [default: 8MiB].
    #[arg(long, value_name = "SIZE")]
    pub scrub_rate: Option<ByteSize>,
    /// When a range scan sends its buffer: `auto`, or a size from 0 to 256MiB; 8192 is what the reference does.
    #[arg(long, value_name = "SIZE", value_parser = parse_send_size)]
    #[serde(default, deserialize_with = "deserialize_send_size")]
    pub range_scan_read_buffer_send_size: Option<SendSize>,
    /// Seconds after its creation when a range scan is cancelled [default: 180].
    #[arg(long, value_name = "SECONDS")]
    pub range_scan_max_lifetime: Option<u64>,
    /// Most connections at a time [default: 10000].
    #[arg(long, value_name = "N")]
    pub max_connections: Option<u32>,
    /// Seconds that a client has for authenticating [default: 30].
    #[arg(long, value_name = "SECONDS")]
    pub handshake_seconds: Option<u64>,
    /// Microseconds that an idle core spins before it sleeps; 0 when clients run on the same cores [default: 0].
    #[arg(long, value_name = "MICROSECONDS")]
    pub spin_us: Option<u64>,
    /// Whether the core of a connection answers reads of documents that another core owns by looking at that core's table, instead of asking it
    /// [default: true].
    #[arg(long, value_name = "BOOL")]
    pub direct_reads: Option<bool>,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter like `ringbase=debug,info` [default: info].
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {text}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// What the parser said, with the place.
        text: String,
    },
    /// A value is out of its range, or two do not go together.
    #[error("{key}: {text}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What is wrong and what to do.
        text: String,
    },
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of the data.
    pub data: PathBuf,
    /// Address of the protocol.
    pub listen: SocketAddr,
    /// Address of the management port.
    pub mgmt_listen: SocketAddr,
    /// Cores to use; `None` for all.
    pub cores: Option<u16>,
    /// Shards at format; `None` for as many as cores.
    pub shards: Option<u16>,
    /// Vbuckets at format.
    pub vbuckets: u16,
    /// Whether vbuckets or shards were asked for by the user: a formatted directory must then agree.
    pub vbuckets_given: bool,
    /// Memory of the node, bytes.
    pub memory_bytes: u64,
    /// First bucket.
    pub bucket: String,
    /// Users file.
    pub users: Option<PathBuf>,
    /// Bytes of a log segment at format.
    pub wal_segment_bytes: u32,
    /// Log segments at format.
    pub wal_segments: u32,
    /// Time between two scrubs; zero for none.
    pub scrub_period: Duration,
    /// Bytes that a scrub of a shard reads in a second, 0 for no limit.
    pub scrub_rate: u64,
    /// Range scans' buffer.
    pub send_size: SendSize,
    /// Range scans' lifetime.
    pub scan_lifetime: Duration,
    /// Most connections.
    pub max_connections: u32,
    /// Time for authenticating.
    pub handshake: Duration,
    /// Spinning of an idle core.
    pub spin: Duration,
    /// Reads of other cores' documents without asking them.
    pub direct_reads: bool,
    /// Log filter.
    pub log: String,
}

const BLOCK: u64 = ringbase_storage::io::BLOCK_BYTES as u64;

fn value(key: &'static str, text: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, text: text.into() }
}

impl ServeArgs {
    /// These flags over the file they name.
    ///
    /// # Errors
    /// `Read`, `Parse`.
    pub fn with_file(self) -> Result<ServeArgs, ConfigError> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let file: ServeArgs = toml::from_str(&text)
            .map_err(|error| ConfigError::Parse { path: path.clone(), text: error.to_string() })?;
        Ok(ServeArgs {
            data: self.data.or(file.data),
            listen: self.listen.or(file.listen),
            mgmt_listen: self.mgmt_listen.or(file.mgmt_listen),
            cores: self.cores.or(file.cores),
            shards: self.shards.or(file.shards),
            vbuckets: self.vbuckets.or(file.vbuckets),
            memory: self.memory.or(file.memory),
            bucket: self.bucket.or(file.bucket),
            users: self.users.or(file.users),
            config: self.config,
            wal_segment_bytes: self.wal_segment_bytes.or(file.wal_segment_bytes),
            wal_segments: self.wal_segments.or(file.wal_segments),
            scrub_days: self.scrub_days.or(file.scrub_days),
            scrub_rate: self.scrub_rate.or(file.scrub_rate),
            range_scan_read_buffer_send_size: self
                .range_scan_read_buffer_send_size
                .or(file.range_scan_read_buffer_send_size),
            range_scan_max_lifetime: self.range_scan_max_lifetime.or(file.range_scan_max_lifetime),
            max_connections: self.max_connections.or(file.max_connections),
            handshake_seconds: self.handshake_seconds.or(file.handshake_seconds),
            spin_us: self.spin_us.or(file.spin_us),
            direct_reads: self.direct_reads.or(file.direct_reads),
            log: self.log.or(file.log),
        })
    }

    /// Reads the file and checks everything.
    ///
    /// # Errors
    /// `Read`, `Parse`, `Value`.
    pub fn validate(self) -> Result<Config, ConfigError> {
        let args = self.with_file()?;
        let data = args.data.ok_or_else(|| value("data", "say where the data lies: --data DIR"))?;
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let listen = args.listen.unwrap_or(SocketAddr::new(loopback, 11210));
        let mgmt_listen = args.mgmt_listen.unwrap_or(SocketAddr::new(listen.ip(), 0));
        if args.users.is_none() {
            for (key, address) in [("listen", listen), ("mgmt_listen", mgmt_listen)] {
                if !address.ip().is_loopback() {
                    let text = format!(
                        "{address} can be reached from other machines, but there is no users file, so everybody would be let in: \
                         make one with `ringctl user add --users FILE NAME` and pass --users FILE, or listen on 127.0.0.1"
                    );
                    return Err(value(key, text));
                }
            }
        }
        let vbuckets_given = args.vbuckets.is_some();
        let vbuckets = args.vbuckets.unwrap_or(128);
        if !(1..=1024).contains(&vbuckets) || !vbuckets.is_power_of_two() {
            return Err(value("vbuckets", format!("{vbuckets} is no power of two from 1 to 1024")));
        }
        for (key, number) in [("cores", args.cores), ("shards", args.shards)] {
            if number == Some(0) {
                return Err(value(key, "at least 1"));
            }
        }
        if let Some(shards) = args.shards.filter(|shards| *shards > vbuckets) {
            return Err(value("shards", format!("{shards} shards for {vbuckets} vbuckets: each needs one")));
        }
        let ByteSize(memory_bytes) = args.memory.unwrap_or(ByteSize(1 << 30));
        if memory_bytes < 64 << 20 {
            return Err(value("memory", format!("{} is below the least, 64MiB", ByteSize(memory_bytes))));
        }
        let bucket = args.bucket.unwrap_or_else(|| "default".into());
        if bucket.is_empty() || bucket.len() > 100 || !bucket.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(value("bucket", "a name has 1 to 100 printable ASCII characters, no space"));
        }
        let ByteSize(segment) = args.wal_segment_bytes.unwrap_or(ByteSize(32 << 20));
        if !(64 << 10..=1 << 30).contains(&segment) || !segment.is_multiple_of(BLOCK) {
            let text = format!("{} is not a multiple of 4KiB from 64KiB to 1GiB", ByteSize(segment));
            return Err(value("wal_segment_bytes", text));
        }
        let wal_segments = args.wal_segments.unwrap_or(8);
        if !(2..=1024).contains(&wal_segments) {
            return Err(value("wal_segments", format!("{wal_segments} is not from 2 to 1024")));
        }
        let lifetime = args.range_scan_max_lifetime.unwrap_or(180);
        if lifetime == 0 || lifetime > 86_400 {
            return Err(value("range_scan_max_lifetime", format!("{lifetime} s is not from 1 to 86400")));
        }
        let max_connections = args.max_connections.unwrap_or(10_000);
        if max_connections == 0 {
            return Err(value("max_connections", "at least 1"));
        }
        let spin_us = args.spin_us.unwrap_or(0);
        if spin_us > 1000 {
            return Err(value("spin_us", format!("{spin_us} is above 1000: the core would never sleep")));
        }
        Ok(Config {
            data,
            listen,
            mgmt_listen,
            cores: args.cores,
            shards: args.shards,
            vbuckets,
            vbuckets_given,
            memory_bytes,
            bucket,
            users: args.users,
            wal_segment_bytes: segment as u32,
            wal_segments,
            scrub_period: Duration::from_secs(u64::from(args.scrub_days.unwrap_or(7)) * 86_400),
            scrub_rate: args.scrub_rate.map_or(8 << 20, |rate| rate.0),
            send_size: args.range_scan_read_buffer_send_size.unwrap_or(SendSize::Auto),
            scan_lifetime: Duration::from_secs(lifetime),
            max_connections,
            handshake: Duration::from_secs(args.handshake_seconds.unwrap_or(30).max(1)),
            spin: Duration::from_micros(spin_us),
            direct_reads: args.direct_reads.unwrap_or(true),
            log: args.log.unwrap_or_else(|| "info".into()),
        })
    }
}

impl Config {
    /// A configuration with defaults, for the embedded node of the demo and the benchmarks.
    ///
    /// # Errors
    /// None that the defaults can give.
    pub fn embedded(data: &Path) -> Result<Config, ConfigError> {
        let listen = Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        ServeArgs { data: Some(data.to_owned()), listen, ..ServeArgs::default() }.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> ServeArgs {
        ServeArgs { data: Some("x".into()), ..ServeArgs::default() }
    }

    fn refused(args: ServeArgs) -> String {
        args.validate().unwrap_err().to_string()
    }

    #[test]
    fn sizes_are_read_and_shown_with_their_units() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64KiB", 65536), ("3m", 3 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes));
        }
        assert_eq!(ByteSize(512 << 20).to_string(), "512MiB");
        assert_eq!(ByteSize(1025).to_string(), "1025B");
        for text in ["", "x", "12q", "99999999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_send_size_is_auto_or_at_most_256_mib() {
        assert_eq!(parse_send_size("auto"), Ok(SendSize::Auto));
        assert_eq!(parse_send_size("8192"), Ok(SendSize::Fixed(8192)));
        assert_eq!(parse_send_size("256MiB"), Ok(SendSize::Fixed(256 << 20)));
        assert!(parse_send_size("257MiB").is_err());
        let file: ServeArgs = toml::from_str("range_scan_read_buffer_send_size = \"64KiB\"").unwrap();
        assert_eq!(file.range_scan_read_buffer_send_size, Some(SendSize::Fixed(64 << 10)));
    }

    #[test]
    fn an_open_address_without_a_users_file_is_refused_with_the_reason() {
        let open = ServeArgs { listen: Some("0.0.0.0:11210".parse().unwrap()), ..args() };
        assert!(refused(open.clone()).contains("users file"));
        assert!(ServeArgs { users: Some("u".into()), ..open }.validate().is_ok());
    }

    #[test]
    fn values_out_of_range_are_refused_by_key() {
        assert!(refused(ServeArgs::default()).starts_with("data:"));
        assert!(refused(ServeArgs { vbuckets: Some(100), ..args() }).starts_with("vbuckets:"));
        assert!(refused(ServeArgs { cores: Some(0), ..args() }).starts_with("cores:"));
        assert!(refused(ServeArgs { shards: Some(200), ..args() }).starts_with("shards:"));
        assert!(refused(ServeArgs { memory: Some(ByteSize(1)), ..args() }).starts_with("memory:"));
        assert!(refused(ServeArgs { bucket: Some(String::new()), ..args() }).starts_with("bucket:"));
        assert!(refused(ServeArgs { wal_segments: Some(1), ..args() }).starts_with("wal_segments:"));
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ringbase.toml");
        std::fs::write(&path, "data = \"d\"\nvbuckets = 16\nmemory = \"128MiB\"\n").unwrap();
        let with = |path: &Path| ServeArgs { config: Some(path.to_owned()), ..ServeArgs::default() };
        let config = ServeArgs { vbuckets: Some(64), ..with(&path) }.validate().unwrap();
        assert_eq!((config.vbuckets, config.memory_bytes), (64, 128 << 20));
        assert_eq!(config.data, PathBuf::from("d"));
        std::fs::write(&path, "colour = \"red\"\n").unwrap();
        assert!(refused(with(&path)).contains("colour"));
        assert!(refused(with(Path::new("/nowhere/x"))).contains("cannot read"));
    }
}
