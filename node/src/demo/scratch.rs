//! Where the demonstration's node keeps its data: a directory on a filesystem that does direct I/O, removed at the end.
//!
//! Does not know: what is in it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ringbase_storage::io::device::{OpenOptions, RingDevice};
use ringbase_storage::io::ring::{Ring, RingConfig};

use super::error::DemoError;
use super::interrupt::Interrupt;

/// A directory of the demonstration; removed when dropped, unless it is to stay.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    keep: bool,
    interrupt: Interrupt,
}

impl Scratch {
    /// Makes a directory below `parent`; without one, below the first of the usual places that does direct I/O.
    pub(super) fn make(
        parent: Option<&Path>,
        keep: bool,
        interrupt: &Interrupt,
    ) -> Result<Scratch, DemoError> {
        let places = match parent {
            Some(parent) => vec![parent.to_owned()],
            None => usual_places(),
        };
        let mut refusals = Vec::new();
        for place in places {
            match try_place(&place) {
                Ok(path) => {
                    if !keep {
                        interrupt.set_scratch(Some(path.clone()));
                    }
                    return Ok(Scratch { path, keep, interrupt: interrupt.clone() });
                }
                Err(refusal) => refusals.push(format!("{}: {refusal}", place.display())),
            }
        }
        Err(DemoError::NoScratch(refusals.join("; ")))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
        self.interrupt.set_scratch(None);
    }
}

/// Next to this binary, which is where there was room for a build; below the current directory; where the system puts larger
/// temporary files.
fn usual_places() -> Vec<PathBuf> {
    let beside_binary = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    let below_here =
        std::env::current_dir().ok().map(|path| path.join("target")).filter(|path| path.is_dir());
    [beside_binary, below_here, Some(PathBuf::from("/var/tmp"))].into_iter().flatten().collect()
}

fn try_place(place: &Path) -> Result<PathBuf, String> {
    let made = tempfile::Builder::new().prefix("ringbase-demo-").tempdir_in(place);
    let made = made.map_err(|error| error.to_string())?;
    check_direct_io(made.path()).map_err(|error| error.to_string())?;
    Ok(made.keep())
}

/// Opens a file as the node will, and removes it.
fn check_direct_io(directory: &Path) -> Result<(), Box<dyn Error>> {
    let small = RingConfig { register: false, arena_bytes: 1 << 20, ..RingConfig::default() };
    let ring = Rc::new(Ring::new(&small)?);
    let path = directory.join("direct-io");
    let options = OpenOptions { create: true, create_new: true, len_bytes_min: 0 };
    RingDevice::open(&ring, &path, &options)?;
    std::fs::remove_file(&path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_without_direct_io_is_refused_and_left_as_it_was() {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let refusal = try_place(place.path()).unwrap_err();
        assert!(refusal.contains("O_DIRECT"), "{refusal}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
