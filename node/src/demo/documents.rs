//! What the demonstration loads unless told otherwise: the sources that cargo downloaded for this build, or the files here.
//!
//! Invariants
//! - At most [`FILES_MAX`] files of together at most [`BYTES_MAX`] bytes, whatever the directories hold.
//!
//! Does not know: how documents are loaded (`client::source`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::DemoError;
use crate::client::SourceForm;

/// Most files.
const FILES_MAX: usize = 50_000;

/// Most bytes of files.
const BYTES_MAX: u64 = 200_000_000;

/// The packages that this build was made from.
const LOCK_FILE: &str = include_str!("../../../Cargo.lock");

/// Directories that hold no documents.
const NOT_DOCUMENTS: [&str; 2] = [".git", "target"];

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
}

/// The default documents, and a sentence that says which they are.
pub(super) fn default_documents() -> Result<(SourceForm, String), DemoError> {
    if let Some((root, folders)) = cargo_sources() {
        let picked = pick(&root, folders.into_iter().collect());
        if !picked.paths.is_empty() {
            let text = format!("the sources that cargo downloaded for this build, {}", root.display());
            return Ok(picked.form(root, text));
        }
    }
    let here = std::env::current_dir().map_err(DemoError::io("find", "the current directory"))?;
    let root = repository_of(&here).unwrap_or(&here).to_owned();
    let picked = pick(&root, vec![PathBuf::new()]);
    if picked.paths.is_empty() {
        return Err(DemoError::NoDocuments(root));
    }
    let text =
        format!("the files of {}, as cargo's downloaded sources are not on this machine", root.display());
    Ok(picked.form(root, text))
}

fn repository_of(path: &Path) -> Option<&Path> {
    path.ancestors().find(|folder| folder.join(".git").exists())
}

/// Cargo's folder of unpacked packages, and those in it that this build uses.
fn cargo_sources() -> Option<(PathBuf, BTreeSet<PathBuf>)> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cargo"))
    })?;
    let registry = home.join("registry").join("src");
    let packages = locked_packages();
    let mut indexes: Vec<PathBuf> = folders(&registry);
    indexes.sort();
    let found = indexes.into_iter().map(|index| {
        let used = packages.iter().map(PathBuf::from).filter(|folder| index.join(folder).is_dir());
        let used: BTreeSet<PathBuf> = used.collect();
        (index, used)
    });
    found.max_by_key(|(_, used)| used.len()).filter(|(_, used)| !used.is_empty())
}

/// The folder names of the packages in the lock file.
fn locked_packages() -> Vec<String> {
    let lock: Result<Lock, _> = toml::from_str(LOCK_FILE);
    let packages = lock.map(|lock| lock.package).unwrap_or_default();
    packages.into_iter().map(|Package { name, version }| format!("{name}-{version}")).collect()
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Files that were picked, relative to their root.
struct Picked {
    paths: Vec<PathBuf>,
    bytes: u64,
    /// Whether there were more than the limits allow.
    more: bool,
}

impl Picked {
    fn form(self, root: PathBuf, text: String) -> (SourceForm, String) {
        let text = if self.more { format!("{text} (not all of them)") } else { text };
        (SourceForm::Files { root, paths: self.paths }, text)
    }

    fn take(&mut self, path: PathBuf, bytes: u64) {
        if self.paths.len() == FILES_MAX || self.bytes + bytes > BYTES_MAX {
            self.more = true;
            return;
        }
        self.bytes += bytes;
        self.paths.push(path);
    }
}

/// The regular files in these folders below `root`, in order of their names, as far as the limits go.
fn pick(root: &Path, mut folders: Vec<PathBuf>) -> Picked {
    folders.reverse();
    let mut picked = Picked { paths: Vec::new(), bytes: 0, more: false };
    while let Some(folder) = folders.pop() {
        if picked.paths.len() == FILES_MAX {
            picked.more = true;
            break;
        }
        let entries = std::fs::read_dir(root.join(&folder)).into_iter().flatten().flatten();
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        let mut below = Vec::new();
        for entry in entries {
            let path = folder.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => {
                    if !NOT_DOCUMENTS.iter().any(|name| entry.file_name() == *name) {
                        below.push(path);
                    }
                }
                Ok(kind) if kind.is_file() => {
                    if let Ok(metadata) = entry.metadata() {
                        picked.take(path, metadata.len());
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
        folders.extend(below.into_iter().rev());
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_of_this_build_names_its_packages() {
        let packages = locked_packages();
        assert!(packages.iter().any(|name| name.starts_with("glommio-")), "{packages:?}");
    }

    #[test]
    fn files_are_picked_in_order_without_build_results_and_history() {
        let scratch = tempfile::tempdir().unwrap();
        for (name, text) in
            [("b/x", "12"), ("a", "1"), (".git/HEAD", "no"), ("target/y", "no"), ("c/d/z", "")]
        {
            let path = scratch.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let picked = pick(scratch.path(), vec![PathBuf::new()]);
        assert_eq!(picked.paths, ["a", "b/x", "c/d/z"].map(PathBuf::from));
        assert_eq!((picked.bytes, picked.more), (3, false));
    }

    #[test]
    fn what_is_beyond_the_limits_is_left_out_and_said() {
        let mut picked = Picked { paths: Vec::new(), bytes: 0, more: false };
        picked.take("large".into(), BYTES_MAX);
        assert!(!picked.more);
        picked.take("one more".into(), 1);
        let (form, text) = picked.form("root".into(), "these".to_owned());
        assert_eq!(form, SourceForm::Files { root: "root".into(), paths: vec!["large".into()] });
        assert_eq!(text, "these (not all of them)");
    }
}
