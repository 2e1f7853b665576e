//! The data directory: one node at a time, a shard a folder, formatted once.
//!
//! ```text
//! DIR/LOCK           held as long as a node runs; its text is the process id
//! DIR/FORMATTING     stands while the shards are being made; a directory with it is formatted anew
//! DIR/shard-000/wal  DIR/shard-000/data
//! ```
//!
//! Invariants
//! - Whoever holds a [`DataDirectory`] is the only node on it.
//! - A directory that was formatted completely never looks fresh again: shards are removed only under `FORMATTING`.
//!
//! Does not know: what the files contain.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Another node runs on it.
    #[error("{path} is in use by a running node (process {holder}); stop it, or choose another --data")]
    Locked {
        /// Which.
        path: PathBuf,
        /// The process id in the lock file.
        holder: String,
    },
    /// The file system refused.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something else lives there.
    #[error("{path} is not empty and holds no node's data (found `{found}`); choose an empty directory")]
    Foreign {
        /// Which.
        path: PathBuf,
        /// A name that does not belong there.
        found: String,
    },
    /// A shard's folder is missing.
    #[error("{path} has {found} shard folders, but shard-{missing:03} is missing; restore it")]
    MissingShard {
        /// Which.
        path: PathBuf,
        /// How many there are.
        found: usize,
        /// The first that is not there.
        missing: u16,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { what, path, source }
}

/// A data directory that this process holds.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    /// Dropping it releases the lock.
    _lock: File,
    shards: u16,
}

impl DataDirectory {
    /// Takes the directory; makes it if it is not there.
    ///
    /// # Errors
    /// See [`DirectoryError`].
    pub fn open(path: &Path) -> Result<DataDirectory, DirectoryError> {
        fs::create_dir_all(path).map_err(io_error("make", path))?;
        let lock_path = path.join("LOCK");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = Read::by_ref(&mut lock).take(32).read_to_string(&mut holder);
            return Err(DirectoryError::Locked { path: path.to_owned(), holder: holder.trim().to_owned() });
        }
        lock.set_len(0).map_err(io_error("write", &lock_path))?;
        writeln!(lock, "{}", std::process::id()).map_err(io_error("write", &lock_path))?;
        let mut directory = DataDirectory { path: path.to_owned(), _lock: lock, shards: 0 };
        directory.shards = directory.count_shards()?;
        Ok(directory)
    }

    fn count_shards(&self) -> Result<u16, DirectoryError> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io_error("list", &self.path))? {
            let entry = entry.map_err(io_error("list", &self.path))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match name.strip_prefix("shard-").and_then(|number| number.parse::<u16>().ok()) {
                Some(number) => numbers.push(number),
                None if ["LOCK", "FORMATTING", "lost+found"].contains(&&*name) => {}
                None => return Err(DirectoryError::Foreign { path: self.path.clone(), found: name }),
            }
        }
        numbers.sort_unstable();
        if self.formatting_path().exists() {
            for number in numbers.drain(..) {
                let shard = self.shard_path(number);
                fs::remove_dir_all(&shard).map_err(io_error("remove the half-made", &shard))?;
            }
        }
        match (0u16..).zip(&numbers).find(|(expected, found)| expected != *found) {
            Some((missing, _)) => {
                Err(DirectoryError::MissingShard { path: self.path.clone(), found: numbers.len(), missing })
            }
            None => Ok(numbers.len() as u16),
        }
    }

    /// How many shards it has; 0 if it must be formatted first.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn formatting_path(&self) -> PathBuf {
        self.path.join("FORMATTING")
    }

    /// The folder of a shard.
    #[must_use]
    pub fn shard_path(&self, shard: u16) -> PathBuf {
        self.path.join(format!("shard-{shard:03}"))
    }

    /// Begins formatting: makes the folders of `shards` shards.
    ///
    /// # Errors
    /// `Io`.
    pub fn begin_format(&mut self, shards: u16) -> Result<(), DirectoryError> {
        let mark = self.formatting_path();
        File::create(&mark).and_then(|file| file.sync_all()).map_err(io_error("make", &mark))?;
        self.sync()?;
        for shard in 0..shards {
            let path = self.shard_path(shard);
            fs::create_dir(&path).map_err(io_error("make", &path))?;
        }
        self.shards = shards;
        self.sync()
    }

    /// All shards are formatted and durable.
    ///
    /// # Errors
    /// `Io`.
    pub fn end_format(&self) -> Result<(), DirectoryError> {
        for shard in 0..self.shards {
            let path = self.shard_path(shard);
            File::open(&path).and_then(|folder| folder.sync_all()).map_err(io_error("sync", &path))?;
        }
        self.sync()?;
        let mark = self.formatting_path();
        fs::remove_file(&mark).map_err(io_error("remove", &mark))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), DirectoryError> {
        File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(io_error("sync", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_is_refused_with_the_first_ones_process_id() {
        let scratch = tempfile::tempdir().unwrap();
        let first = DataDirectory::open(scratch.path()).unwrap();
        let refused = DataDirectory::open(scratch.path()).unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        drop(first);
        DataDirectory::open(scratch.path()).unwrap();
    }

    #[test]
    fn a_directory_whose_formatting_was_cut_short_is_fresh_again() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = DataDirectory::open(scratch.path()).unwrap();
        directory.begin_format(3).unwrap();
        drop(directory);
        let mut directory = DataDirectory::open(scratch.path()).unwrap();
        assert_eq!(directory.shards(), 0);
        directory.begin_format(2).unwrap();
        directory.end_format().unwrap();
        drop(directory);
        assert_eq!(DataDirectory::open(scratch.path()).unwrap().shards(), 2);
    }

    #[test]
    fn a_directory_with_other_files_or_a_hole_is_refused_by_name() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("thesis.tex"), "x").unwrap();
        let refused = DataDirectory::open(scratch.path()).unwrap_err().to_string();
        assert!(refused.contains("thesis.tex"), "{refused}");
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("shard-001")).unwrap();
        let refused = DataDirectory::open(scratch.path()).unwrap_err().to_string();
        assert!(refused.contains("shard-000"), "{refused}");
    }
}
