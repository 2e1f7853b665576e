//! What a node says and has at a moment: documents written, bytes on disk, runs, memory.
//!
//! Does not know: who writes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::BenchError;
use crate::node::{Control, NodeProcess, number};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// Bytes of the blocks that a file system counts in.
const COUNTED_BYTES: u64 = 512;

/// One look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Look {
    /// Seconds since the first overwrite.
    pub(super) seconds: f64,
    /// Documents that were stored since the node was started.
    pub(super) stored: u64,
    /// Bytes that the data files have on disk, logs apart.
    pub(super) data_bytes: u64,
    /// Of these: bytes that something is stored in, or that a scan still holds.
    pub(super) used_bytes: u64,
    /// Bytes that the node has written since it was started, its logs and manifests included.
    pub(super) written_bytes: u64,
    /// Key runs of all vbuckets.
    pub(super) key_runs: u64,
    /// Segments in the order of seqnos of all vbuckets.
    pub(super) segments: u64,
    /// Resident bytes of the node.
    pub(super) resident_bytes: u64,
}

impl Look {
    fn take(
        node: &NodeProcess,
        control: &mut Control,
        data: &Path,
        started: Instant,
    ) -> Result<Look, BenchError> {
        let stats = control.stats("")?;
        Ok(Look {
            seconds: started.elapsed().as_secs_f64(),
            stored: number(&stats, "cmd_set")?,
            data_bytes: data_bytes(data).map_err(BenchError::file("measure", data))?,
            used_bytes: number(&stats, "data_file_bytes")?.saturating_sub(number(&stats, "data_free_bytes")?),
            written_bytes: number(&stats, "ep_io_total_write_bytes")?,
            key_runs: number(&stats, "key_runs")?,
            segments: number(&stats, "seqlog_segments")?,
            resident_bytes: node.resident_bytes()?,
        })
    }
}

/// Bytes on disk of all files named `data` below `directory`.
fn data_bytes(directory: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            bytes += data_bytes(&entry.path())?;
        } else if entry.file_name() == "data" {
            bytes += entry.metadata()?.blocks() * COUNTED_BYTES;
        }
    }
    Ok(bytes)
}

/// Looks again and again until `stop`, and once more then.
///
/// # Errors
/// The node is gone.
pub(super) fn until(
    node: &NodeProcess,
    data: &Path,
    started: Instant,
    stop: &AtomicBool,
) -> Result<Vec<Look>, BenchError> {
    let mut control = node.connect()?;
    let mut looks = Vec::new();
    loop {
        let is_last = stop.load(Ordering::Relaxed);
        looks.push(Look::take(node, &mut control, data, started)?);
        if is_last {
            return Ok(looks);
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Waits until nothing was written for `still`, at most for `patience`; what there is then.
///
/// # Errors
/// The node is gone.
pub(super) fn at_rest(
    node: &NodeProcess,
    data: &Path,
    started: Instant,
    still: Duration,
    patience: Duration,
) -> Result<Look, BenchError> {
    let mut control = node.connect()?;
    let deadline = Instant::now() + patience;
    let mut look = Look::take(node, &mut control, data, started)?;
    let mut changed = Instant::now();
    while changed.elapsed() < still && Instant::now() < deadline {
        std::thread::sleep(INTERVAL);
        let next = Look::take(node, &mut control, data, started)?;
        if next.written_bytes != look.written_bytes {
            changed = Instant::now();
        }
        look = next;
    }
    Ok(look)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_files_of_all_shards_are_counted_and_no_logs() {
        let directory = tempfile::tempdir().unwrap();
        for shard in ["shard-0", "shard-1"] {
            fs::create_dir(directory.path().join(shard)).unwrap();
            fs::write(directory.path().join(shard).join("data"), vec![1; 8192]).unwrap();
            fs::write(directory.path().join(shard).join("wal"), vec![1; 1 << 20]).unwrap();
        }
        let bytes = data_bytes(directory.path()).unwrap();
        assert!((2 * 8192..1 << 20).contains(&bytes), "{bytes}");
    }
}
