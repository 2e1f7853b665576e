//! The files of an engine: how much they take, and that the page cache forgets them.
//!
//! Does not know: whose they are.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

/// Bytes of the blocks that a file system counts in.
const COUNTED_BYTES: u64 = 512;

/// All files below `directory`.
fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Bytes that the files below `directory` take on disk.
pub(super) fn disk_bytes(directory: &Path) -> io::Result<u64> {
    let sizes = below(directory)?.into_iter().map(|path| Ok(fs::metadata(path)?.blocks() * COUNTED_BYTES));
    sizes.sum()
}

/// Makes the page cache forget the files below `directory`, which nobody has open.
pub(super) fn forget(directory: &Path) -> io::Result<()> {
    for path in below(directory)? {
        let file = File::open(path)?;
        // Only what is on disk is forgotten.
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_all_folders_are_counted_and_still_there_when_they_were_forgotten() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        fs::create_dir(directory.path().join("inner")).unwrap();
        for name in ["one", "inner/two"] {
            fs::write(directory.path().join(name), vec![1; 8192]).unwrap();
        }
        forget(directory.path()).unwrap();
        let bytes = disk_bytes(directory.path()).unwrap();
        assert!((2 * 8192..1 << 20).contains(&bytes), "{bytes}");
        assert_eq!(fs::read(directory.path().join("inner/two")).unwrap(), vec![1; 8192]);
    }
}
