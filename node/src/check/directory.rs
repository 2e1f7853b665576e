//! What the filesystem of the data directory allows.
//!
//! Does not know: what a node keeps there.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ringbase_storage::io::blocking::BlockingHost;
use ringbase_storage::io::device::{OpenOptions, RingDevice};
use ringbase_storage::io::ring::RingConfig;
use ringbase_storage::io::{BLOCK_BYTES, Device};

use super::Finding;

/// Below this a node cannot format its data directory, in bytes.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// Below this somebody should know, in bytes.
const FREE_BYTES_COMFORTABLE: u64 = 10 << 30;

/// Magic numbers of filesystems, and their names.
const FILESYSTEMS: [(u64, &str); 8] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlayfs"),
    (0x6969, "nfs"),
    (0x2FC1_2FC1, "zfs"),
    (0xF2F5_2010, "f2fs"),
];

pub(super) fn findings(data: &Path) -> Vec<Finding> {
    let Some(place) = existing(data) else {
        return vec![Finding::prevents(
            "data directory",
            format!("{} has no parent", data.display()),
            "check --data",
        )];
    };
    let mut findings = vec![filesystem(&place), free_space(&place), direct_io(&place)];
    if place != data {
        let found = format!("{} does not exist yet; looked at {}", data.display(), place.display());
        findings.insert(0, Finding::good("data directory", found));
    }
    findings
}

/// The directory, or the nearest one above that exists.
fn existing(data: &Path) -> Option<PathBuf> {
    let data = std::path::absolute(data).ok()?;
    data.ancestors().find(|path| path.is_dir()).map(Path::to_owned)
}

fn filesystem(place: &Path) -> Finding {
    let subject = "filesystem";
    let magic = match rustix::fs::statfs(place) {
        Ok(stat) => stat.f_type as u64,
        Err(error) => {
            return Finding::prevents(subject, error.to_string(), "check that the directory can be reached");
        }
    };
    match FILESYSTEMS.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name) {
        Some(name @ ("ext4" | "xfs")) => Finding::good(subject, name),
        Some("tmpfs") => Finding::prevents(subject, "tmpfs keeps nothing", "put --data on a disk"),
        Some(name @ "btrfs") => Finding::degraded(
            subject,
            name,
            "overwriting in place is slow under copy-on-write: use ext4 or xfs, or chattr +C",
        ),
        Some(name) => Finding::degraded(subject, name, "tested are ext4 and xfs"),
        None => Finding::degraded(subject, format!("unknown, type {magic:#x}"), "tested are ext4 and xfs"),
    }
}

fn free_space(place: &Path) -> Finding {
    let subject = "free space";
    let stat = match rustix::fs::statvfs(place) {
        Ok(stat) => stat,
        Err(error) => {
            return Finding::prevents(subject, error.to_string(), "check that the directory can be reached");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} MiB", free >> 20);
    if free < FREE_BYTES_MIN {
        let advice = format!(
            "free at least {} MiB; logs and first extents are allocated at once",
            FREE_BYTES_MIN >> 20
        );
        Finding::prevents(subject, found, advice)
    } else if free < FREE_BYTES_COMFORTABLE {
        Finding::degraded(subject, found, "little; writes are refused when it is used up")
    } else {
        Finding::good(subject, found)
    }
}

/// Writes, syncs and reads one block of a file with direct I/O, and removes the file.
fn direct_io(place: &Path) -> Finding {
    let subject = "direct I/O";
    let path = place.join(format!(".ringbase-check-{}", std::process::id()));
    // A ring belongs to one thread, and this one may have another.
    let trying = path.clone();
    let result = std::thread::spawn(move || try_direct_io(&trying))
        .join()
        .unwrap_or_else(|_| Err("trying it panicked".to_owned()));
    let _ = std::fs::remove_file(&path);
    match result {
        Ok(found) => Finding::good(subject, found),
        Err(error) => Finding::prevents(
            subject,
            format!("{}: {error}", place.display()),
            "choose a directory that this user may write, on a filesystem with O_DIRECT (ext4, xfs)",
        ),
    }
}

fn try_direct_io(path: &Path) -> Result<String, String> {
    let text = |error: &dyn std::error::Error| match error.source() {
        Some(source) => format!("{error} ({source})"),
        None => error.to_string(),
    };
    let host =
        BlockingHost::new(&RingConfig { arena_bytes: 0, ..RingConfig::default() }).map_err(|e| text(&e))?;
    let options =
        OpenOptions { create_new: true, len_bytes_min: BLOCK_BYTES as u64, ..OpenOptions::default() };
    let device = Rc::new(RingDevice::open(host.ring(), path, &options).map_err(|e| text(&e))?);
    let facts = device.facts();
    let result = host.block_on(async {
        let mut buffer = device.buffer(BLOCK_BYTES);
        buffer.fill(0xA5);
        device.write_durable(0, buffer).await?;
        device.read(0, BLOCK_BYTES).await
    });
    let read = result.map_err(|e| text(&e))?;
    if read.iter().any(|&byte| byte != 0xA5) {
        return Err("a block came back different from what was written".into());
    }
    Ok(match facts.offset_align {
        Some(align) => format!("works, alignment {align} bytes"),
        None => "works".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn directory_that_does_not_exist_yet_is_judged_by_its_parent() {
        let directory = tempfile::tempdir().unwrap();
        let findings = findings(&directory.path().join("a/b"));
        assert_eq!(findings[0].subject, "data directory");
        assert!(findings.iter().all(|finding| finding.verdict < Verdict::Prevents), "{findings:?}");
    }

    #[test]
    fn memory_filesystem_prevents_a_node() {
        if Path::new("/dev/shm").is_dir() {
            let finding = filesystem(Path::new("/dev/shm"));
            assert_eq!(finding.verdict, Verdict::Prevents, "{finding:?}");
        }
    }
}
