//! Decodes the files of a stopped store, whole or broken, for people and programs; never writes.
//!
//! `ringctl inspect` uses it. It reads what a start would read, and more: it goes on behind damage, checks every block that the manifest
//! names, and names each damaged place by file and byte. Of a running store it sees a moving picture and may call damaged what is only being
//! written.
//!
//! Invariants
//! - No bytes make it panic; none make it allocate more than a structure that lies inside the file, nor more than
//!   [`READ_BYTES_MAX`] at once. Lists are bounded by [`InspectOptions::limit`].
//! - A torn tail, which the next start cuts, is not damage.
//!
//! Cost: reads every block once, the log twice; with [`InspectOptions::quick`] only indexes.
//! Does not know: live state, the cluster, how the node lays out anything but `shard-<n>/{wal,data}`.

mod log;
mod objects;
mod report;
mod root;
mod source;
mod text;

use std::io;
use std::path::{Path, PathBuf};

pub use report::{
    BucketReport, DAMAGE_MAX, Damage, DamageList, DocumentReport, FenceReport, KeyReport, ManifestBatch,
    ManifestReport, MarksReport, Report, RunReport, SegmentReport, ShardReport, SlotReport, Text, VbReport,
    WalBatch, WalRecordReport, WalReport, WalVbReport, WalVerdict,
};
pub use source::{READ_BYTES_MAX, Source};

use crate::io::BLOCK_BYTES;
use crate::types::VbId;
use crate::wal::WalShape;
use log::{LogAt, inspect_log};
use objects::Objects;
use root::inspect_root;
use source::{Blocks, FileSource, Trouble};

/// How deep to look and what to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectOptions {
    /// Read only indexes, not the blocks that they point to.
    pub quick: bool,
    /// List the changes of the manifest.
    pub manifest: bool,
    /// List the batches and records of the log.
    pub wal: bool,
    /// List fences.
    pub fences: bool,
    /// List the keys of runs with their metadata.
    pub keys: bool,
    /// List documents with the beginning of their values, and death marks.
    pub documents: bool,
    /// Only this vbucket; root, manifest and log are read all the same.
    pub vbucket: Option<VbId>,
    /// Entries of any one list: of the manifest, of the log, of one batch, run, segment or mark block.
    pub limit: usize,
    /// Bytes of a value that are shown.
    pub value_bytes: usize,
}

impl Default for InspectOptions {
    fn default() -> InspectOptions {
        InspectOptions {
            quick: false,
            manifest: false,
            wal: false,
            fences: false,
            keys: false,
            documents: false,
            vbucket: None,
            limit: 1000,
            value_bytes: 64,
        }
    }
}

impl InspectOptions {
    fn wants(&self, vb: VbId) -> bool {
        self.vbucket.is_none_or(|wanted| wanted == vb)
    }
}

/// Why there is nothing to inspect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The path cannot be listed.
    #[error("cannot read the directory {}", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is no store.
    #[error("{} holds neither directories `shard-<n>` nor the files `wal` and `data`", path.display())]
    NoStore {
        /// The path.
        path: PathBuf,
    },
}

/// Inspects a data directory (`shard-<n>` inside) or one shard's directory (`wal` and `data` inside).
///
/// # Errors
/// There is no such directory, or no store in it. Everything else, a missing file too, is part of the report.
pub fn inspect_dir(path: &Path, options: &InspectOptions) -> Result<Report, InspectError> {
    let unreadable = |source| InspectError::Directory { path: path.to_owned(), source };
    let mut shards: Vec<(u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("shard-")).map(str::parse::<u64>);
        if let Some(Ok(number)) = number {
            shards.push((number, entry.path()));
        }
    }
    shards.sort();
    if ["wal", "data"].iter().any(|file| path.join(file).exists()) {
        shards.push((0, path.to_owned()));
    }
    if shards.is_empty() {
        return Err(InspectError::NoStore { path: path.to_owned() });
    }
    let shards = shards.iter().map(|(_, shard)| inspect_shard_dir(shard, options)).collect();
    Ok(Report { path: path.display().to_string(), shards })
}

fn inspect_shard_dir(path: &Path, options: &InspectOptions) -> ShardReport {
    let [wal, data] = ["wal", "data"].map(|name| FileSource::open(&path.join(name)));
    let nothing: Vec<u8> = Vec::new();
    let mut report = {
        let source = |file| -> &dyn Source {
            let file: &io::Result<FileSource> = file;
            file.as_ref().map_or(&nothing, |file| file)
        };
        inspect_shard(source(&wal), source(&data), options)
    };
    report.path = path.display().to_string();
    report.wal_bytes = report.wal_bytes.filter(|_| wal.is_ok());
    report.data_bytes = report.data_bytes.filter(|_| data.is_ok());
    for (file, opened) in [("wal", wal), ("data", data)] {
        if let Err(error) = opened {
            report.damage.add(damage_at(file, 0, "file".into(), &Trouble::from(error)));
        }
    }
    report
}

/// Inspects one shard, wherever its bytes come from.
#[must_use]
pub fn inspect_shard(wal: &dyn Source, data: &dyn Source, options: &InspectOptions) -> ShardReport {
    let mut report = ShardReport {
        wal_bytes: Some(wal.len_bytes()),
        data_bytes: Some(data.len_bytes()),
        ..ShardReport::default()
    };
    let mut blocks = Blocks::new(data);
    let root = inspect_root(&mut blocks, options, &mut report);
    let mut wal_blocks = Blocks::new(wal);
    let shape = match &report.superblock {
        Some(superblock) => WalShape::of(&superblock.geometry),
        None => WalShape { blocks: wal_blocks.count().max(1), segment_blocks: wal_blocks.count().max(1) },
    };
    if wal_blocks.count() < shape.blocks {
        let error =
            format!("{} bytes long, should be {} blocks of {BLOCK_BYTES}", wal.len_bytes(), shape.blocks);
        report.damage.add(Damage { file: "wal", offset: wal.len_bytes(), what: "file".into(), error });
    }
    let log = LogAt { shape, state: &root.state, shard_uuid: root.shard_uuid };
    report.wal = Some(inspect_log(&mut wal_blocks, &log, options, &mut report.damage));
    if let (Some(wal), Some(superblock)) = (&report.wal, &report.superblock)
        && wal.manifest_generation > superblock.manifest_generation
    {
        let found = superblock.manifest_generation;
        let error =
            format!("names manifest generation {found}, the log knows {} durable", wal.manifest_generation);
        report.damage.add(Damage { file: "data", offset: 0, what: "superblock".into(), error });
    }
    report.buckets = root.state.buckets.values().map(bucket_report).collect();
    let mut objects = Objects::new(&blocks, options, root.shard_uuid.unwrap_or(0), &mut report.damage);
    for vb in root.state.vbuckets.values() {
        objects.own_vbucket(vb);
    }
    let wanted = root.state.vbuckets.values().filter(|vb| options.wants(vb.vb));
    report.vbuckets = wanted.map(|vb| objects.vbucket(vb)).collect();
    report
}

fn bucket_report(bucket: &crate::format::manifest_record::BucketDesc) -> BucketReport {
    BucketReport {
        id: bucket.id,
        uuid: format!("{:032x}", bucket.uuid),
        name: bucket.name.clone(),
        config: bucket.config.clone(),
    }
}

fn damage_at(file: &'static str, place: u64, what: String, error: &dyn std::error::Error) -> Damage {
    Damage { file, offset: place.saturating_mul(BLOCK_BYTES as u64), what, error: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_a_store_is_refused_and_a_missing_file_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let options = InspectOptions::default();
        let error = inspect_dir(directory.path(), &options).unwrap_err();
        assert!(error.to_string().contains("shard-<n>"), "{error}");
        assert!(inspect_dir(&directory.path().join("missing"), &options).is_err());
        std::fs::create_dir(directory.path().join("shard-1")).unwrap();
        let report = inspect_dir(directory.path(), &options).unwrap();
        let shard = &report.shards[0];
        assert_eq!((shard.wal_bytes, shard.data_bytes), (None, None));
        assert!(report.is_damaged());
        assert!(shard.damage.list.iter().any(|damage| damage.file == "wal" && damage.what == "file"));
    }

    #[test]
    fn files_of_noise_are_reported_and_never_taken_for_a_store() {
        for len in [0, 1, 4095, 4096, 100_000] {
            let noise: Vec<u8> =
                (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let report = inspect_shard(&noise, &noise, &InspectOptions::default());
            assert!(!report.damage.list.is_empty() && report.vbuckets.is_empty(), "{len} bytes");
        }
    }
}
