//! The ceiling of a cold scan: sequential reads through the storage ring, past the page cache.
//!
//! Does not know: nodes, scans.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ringbase_storage::io::Device;
use ringbase_storage::io::blocking::BlockingHost;
use ringbase_storage::io::device::{OpenOptions, RingDevice};
use ringbase_storage::io::probe::{Pattern, ProbePlan, ProbeResult, probe};
use ringbase_storage::io::ring::RingConfig;
use ringbase_storage::metrics::IoClass;

use crate::error::BenchError;

/// Bytes of one write while the file is made.
const WRITE_BYTES: usize = 1 << 20;

/// A file of the probes' own, written once so that reads come from the device.
pub(crate) struct ProbeFile {
    host: BlockingHost,
    device: Rc<dyn Device>,
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> std::io::Error {
    std::io::Error::other(error)
}

impl ProbeFile {
    /// Makes a file of `len_bytes`, a multiple of a mebibyte, filled with bytes that do not compress.
    ///
    /// # Errors
    /// The ring or the file.
    pub(crate) fn make(path: &Path, len_bytes: u64, depth_max: u32) -> Result<ProbeFile, BenchError> {
        let config = RingConfig { depth_max, ..RingConfig::default() };
        let host =
            BlockingHost::new(&config).map_err(other).map_err(BenchError::system("make a storage ring"))?;
        let options = OpenOptions { create: true, create_new: true, len_bytes_min: len_bytes };
        let device = RingDevice::open(host.ring(), path, &options)
            .map_err(other)
            .map_err(BenchError::file("make", path))?;
        let device: Rc<dyn Device> = Rc::new(device);
        let mut buffer = device.buffer(WRITE_BYTES);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let write = async {
            for offset in (0..len_bytes).step_by(WRITE_BYTES) {
                for chunk in buffer.chunks_exact_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    chunk.copy_from_slice(&state.to_ne_bytes());
                }
                buffer = device.write(offset, buffer).await?;
            }
            device.sync().await
        };
        host.block_on(write).map_err(BenchError::file("write", path))?;
        Ok(ProbeFile { host, device })
    }

    /// Runs one probe over the file.
    ///
    /// # Errors
    /// The plan does not fit, or an operation fails.
    pub(crate) fn run(&self, plan: &ProbePlan) -> Result<ProbeResult, BenchError> {
        self.host
            .block_on(probe(&self.host.env(), &self.device, plan))
            .map_err(BenchError::system("probe the device"))
    }

    /// What the kernel made of the ring.
    pub(crate) fn facts(&self) -> ringbase_storage::io::ring::RingFacts {
        self.host.ring().facts().clone()
    }
}

/// Sequential reads of 256 KiB, sixteen at a time: what a scan with deep read-ahead could have.
pub(crate) fn sequential_read(duration: Duration) -> ProbePlan {
    ProbePlan {
        class: IoClass::Read,
        pattern: Pattern::Sequential,
        operation_bytes: 256 << 10,
        depth: 16,
        duration,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_file_gives_back_a_rate_that_is_none_of_memory_alone() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = ProbeFile::make(&directory.path().join("probe"), 4 << 20, 16).unwrap();
        let result = file.run(&sequential_read(Duration::from_millis(50))).unwrap();
        assert!(result.operations >= 16 && result.megabytes_per_second() > 0.0);
        assert_eq!(result.latency_ns.len(), result.operations);
        assert!(file.run(&ProbePlan { operation_bytes: 100, ..result.plan }).is_err());
    }
}
