//! Data sets and buffer sizes: what the options say, checked.
//!
//! Does not know: nodes, sockets.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use ringbase::client::Generator;
use ringbase::config::ByteSize;
use ringbase::protocol::scan_records::encode_key;

use crate::error::BenchError;
use crate::node::NodeOptions;

/// File system type of a file system in memory.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Where a node runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// Scratch directory, on a disk; made if it is missing [default: target/ringbench, or ringbench-scratch without a target directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The node's program [default: `ringbase` beside this program].
    #[arg(long, value_name = "PATH")]
    pub(crate) ringbase: Option<PathBuf>,
    /// Keep the scratch directory.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Where a node runs and what it runs with.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Vbuckets of the node.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) vbuckets: u16,
    /// Cores of the node.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) cores: u16,
    /// Memory of the node.
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    pub(crate) memory: String,
}

/// Where results go.
#[derive(Debug, Clone, Args)]
pub(crate) struct ResultArgs {
    /// Where raw.csv, summary.md, histograms and plots go [default: COMMAND-results beside the scratch directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print the results as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl ResultArgs {
    /// The directory for the results of this command.
    pub(crate) fn directory(&self, scratch: &Scratch, command: &str) -> PathBuf {
        self.out.clone().unwrap_or_else(|| scratch.path().with_file_name(format!("{command}-results")))
    }
}

/// The keys to scan.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyArgs {
    /// Bytes of every key, 1 to 250.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub(crate) key_bytes: usize,
    /// Keys in all, in megabytes (10⁶ bytes) [default: 420; 40 with --quick].
    #[arg(long, value_name = "MB")]
    pub(crate) key_mb: Option<u64>,
    /// Bytes of every value.
    #[arg(long, value_name = "BYTES", default_value_t = 8)]
    pub(crate) value_bytes: usize,
    /// What the keys are made from; the same seed gives the same keys.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
}

impl KeyArgs {
    /// The documents to load, in random order of their keys.
    ///
    /// # Errors
    /// There are no such documents.
    pub(crate) fn generator(&self, quick: bool) -> Result<Generator, BenchError> {
        let megabytes = self.key_mb.unwrap_or(if quick { 40 } else { 420 });
        let count = megabytes.saturating_mul(1_000_000) / self.key_bytes.max(1) as u64;
        if count == 0 {
            return Err(BenchError::Misuse("no keys to load; give a greater --key-mb".into()));
        }
        Generator::new(count, self.key_bytes, self.value_bytes, self.seed).map_err(BenchError::Misuse)
    }
}

/// A scratch directory; it goes with its owner unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Makes `args.dir`/`name` anew.
    ///
    /// # Errors
    /// It cannot be made, or lies in memory.
    pub(crate) fn make(args: &PlaceArgs, name: &str) -> Result<Scratch, BenchError> {
        let base = args.dir.clone().unwrap_or_else(|| {
            let target = Path::new("target");
            if target.is_dir() { target.join("ringbench") } else { PathBuf::from("ringbench-scratch") }
        });
        let path = base.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(BenchError::file("remove the old", &path))?;
        }
        fs::create_dir_all(&path).map_err(BenchError::file("make", &path))?;
        let path = fs::canonicalize(&path).map_err(BenchError::file("find", &path))?;
        if file_system_type(&path)? == TMPFS_MAGIC {
            let text = format!("{} lies in memory (tmpfs); give a --dir on a disk", path.display());
            return Err(BenchError::Misuse(text));
        }
        Ok(Scratch { path, keep: args.keep })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A node on a directory of this name in it.
    ///
    /// # Errors
    /// There is no program.
    pub(crate) fn node(&self, args: &NodeArgs, name: &str) -> Result<NodeOptions, BenchError> {
        let program = match &args.place.ringbase {
            Some(program) => program.clone(),
            None => {
                let own = std::env::current_exe().map_err(BenchError::system("find this program"))?;
                own.with_file_name("ringbase")
            }
        };
        if !program.is_file() {
            let text = format!(
                "there is no node at {}; build it with `cargo build --release` or name one with --ringbase",
                program.display()
            );
            return Err(BenchError::Misuse(text));
        }
        Ok(NodeOptions {
            program,
            data: self.path.join(name),
            vbuckets: args.vbuckets,
            cores: args.cores,
            memory: args.memory.clone(),
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed is removed by the next run.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// What kind of file system holds `path`.
///
/// # Errors
/// It cannot be asked.
pub(crate) fn file_system_type(path: &Path) -> Result<i64, BenchError> {
    let facts = rustix::fs::statfs(path).map_err(std::io::Error::from);
    Ok(facts.map_err(BenchError::file("ask for the file system of", path))?.f_type as i64)
}

/// When a node sends a buffer: what the sweep goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BufferSize {
    /// The node's choice.
    Auto,
    /// At so many bytes.
    Bytes(u32),
}

/// What `auto` is at present; only plots and ceilings, which need a number, use it.
const AUTO_BYTES: u32 = ringbase::range_scan::AUTO_SEND_BYTES as u32;

impl BufferSize {
    /// In bytes.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            BufferSize::Auto => AUTO_BYTES,
            BufferSize::Bytes(bytes) => bytes,
        }
    }

    /// The value of the node's setting.
    pub(crate) fn setting(self) -> String {
        match self {
            BufferSize::Auto => "auto".to_owned(),
            BufferSize::Bytes(bytes) => bytes.to_string(),
        }
    }
}

impl fmt::Display for BufferSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BufferSize::Auto => f.write_str("auto"),
            BufferSize::Bytes(bytes) => ByteSize(u64::from(*bytes)).fmt(f),
        }
    }
}

impl FromStr for BufferSize {
    type Err = String;

    fn from_str(text: &str) -> Result<BufferSize, String> {
        if text == "auto" {
            return Ok(BufferSize::Auto);
        }
        let ByteSize(bytes) = text.parse()?;
        match u32::try_from(bytes) {
            Ok(bytes) if (1..=256 << 20).contains(&bytes) => Ok(BufferSize::Bytes(bytes)),
            _ => Err(format!("{text} is no size of a buffer; they have 1 byte to 256MiB")),
        }
    }
}

/// The records of one vbucket's share of the keys, ascending: each piece is one record of a key-only scan.
pub(crate) fn key_records(generator: &Generator, vbuckets: u16) -> (Vec<u8>, Vec<usize>) {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let share = (generator.count() / u64::from(vbuckets.max(1))).max(1);
    let mut keys: Vec<Vec<u8>> = (0..share)
        .map(|index| {
            generator.document(index, &mut key, &mut value);
            key.clone()
        })
        .collect();
    keys.sort_unstable();
    let mut records = Vec::new();
    let ends = keys.iter().map(|key| {
        encode_key(key, &mut records);
        records.len()
    });
    let ends: Vec<usize> = ends.collect();
    (records, ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_sizes_are_read_and_shown_as_people_write_them() {
        for text in ["8KiB", "1MiB", "auto", "256KiB"] {
            assert_eq!(text.parse::<BufferSize>().unwrap().to_string(), text);
        }
        assert_eq!("8192".parse::<BufferSize>().unwrap(), BufferSize::Bytes(8192));
        assert_eq!("8KiB".parse::<BufferSize>().unwrap().setting(), "8192");
        assert_eq!(BufferSize::Auto.setting(), "auto");
        for text in ["0", "257MiB", "8 Kilos", ""] {
            assert!(text.parse::<BufferSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_data_set_has_420_megabytes_of_keys() {
        let args = KeyArgs { key_bytes: 100, key_mb: None, value_bytes: 8, seed: 1 };
        assert_eq!(args.generator(false).unwrap().count(), 4_200_000);
        assert_eq!(args.generator(true).unwrap().count(), 400_000);
        assert!(KeyArgs { key_mb: Some(0), ..args.clone() }.generator(false).is_err());
        assert!(KeyArgs { key_bytes: 251, ..args }.generator(false).is_err());
    }

    #[test]
    fn records_of_a_vbucket_are_its_share_of_the_keys_in_ascending_order() {
        let generator = Generator::new(1600, 100, 0, 3).unwrap();
        let (records, ends) = key_records(&generator, 16);
        assert_eq!((ends.len(), records.len()), (100, 100 * 101));
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let pieces: Vec<&[u8]> = starts.zip(&ends).map(|(start, end)| &records[start..*end]).collect();
        assert!(pieces.windows(2).all(|pair| pair[0][1..] < pair[1][1..] && pair[0][0] == 100));
    }

    #[test]
    fn a_scratch_directory_in_memory_is_refused() {
        let shared_memory = Path::new("/dev/shm");
        if !shared_memory.is_dir() || file_system_type(shared_memory).unwrap() != TMPFS_MAGIC {
            return;
        }
        let base = tempfile::tempdir_in(shared_memory).unwrap();
        let args = PlaceArgs { dir: Some(base.path().to_owned()), ringbase: None, keep: false };
        assert!(Scratch::make(&args, "x").unwrap_err().to_string().contains("tmpfs"));
    }
}
