//! The machine around a store: a daemon that serves disks as files, loop devices that make them block devices, and file systems on those.
//!
//! Invariants
//! - A file system is gone before its loop device, and that before the daemon: whoever waits for a daemon that is no more waits for ever.
//! - The daemon keeps everything in memory and waits for nothing, so what lies on top of it cannot block it.
//!
//! Does not know: what is stored.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

use crate::medium::Disk;

/// How long the kernel may remember what a file is like: it stays so.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// How often an unmounting is tried, and how long after the one before.
const UNMOUNT_TRIES: u32 = 500;
const UNMOUNT_AGAIN: Duration = Duration::from_millis(10);

/// A disk that the daemon and the tests share.
#[derive(Clone)]
pub(crate) struct SharedDisk(Arc<Mutex<Disk>>);

impl SharedDisk {
    /// Nothing that can wait for the disk may be called while this is held.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file system that the kernel asks: disk `n` is the file `n.img` with inode `n + 2`. A disk is never another one's successor: what a file
/// system that could not be unmounted still writes must not come to the next.
#[derive(Clone, Default)]
struct Files(Arc<Mutex<Vec<Option<SharedDisk>>>>);

impl Files {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<SharedDisk>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self, inode: INodeNo) -> Option<SharedDisk> {
        let index = usize::try_from(inode.0.checked_sub(2)?).ok()?;
        self.lock().get(index).cloned().flatten()
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match self.disk(inode) {
            Some(disk) => (FileType::RegularFile, 0o600, disk.lock().len() as u64),
            None if inode == INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            None => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.strip_suffix(".img")?.parse::<u32>().ok());
        match number.and_then(|number| self.attributes(INodeNo(u64::from(number) + 2))) {
            Some(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk(inode).map(|disk| disk.lock().read(offset as usize, size as usize)) {
            Some(Ok(bytes)) => reply.data(&bytes),
            _ => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk(inode).map(|disk| disk.lock().write(offset as usize, data)) {
            Some(Ok(())) => reply.written(data.len() as u32),
            _ => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.disk(inode).map(|disk| disk.lock().sync()) {
            Some(Ok(())) => reply.ok(),
            _ => reply.error(Errno::EIO),
        }
    }
}

/// The daemon, and a directory to mount disks in.
pub(crate) struct Daemon {
    /// Ends when it is unmounted.
    _session: BackgroundSession,
    directory: tempfile::TempDir,
    files: Files,
}

impl Daemon {
    /// Serves no disk yet. Says what is missing if that cannot be done here.
    pub(crate) fn start() -> Result<Daemon, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("it needs root".into());
        }
        for device in ["/dev/fuse", "/dev/loop-control"] {
            if !Path::new(device).exists() {
                return Err(format!("there is no {device}"));
            }
        }
        for (program, argument) in [("mkfs.ext4", "-V"), ("losetup", "-V"), ("mount", "-V"), ("umount", "-V")]
        {
            run(program, &[argument])?;
        }
        let directory = tempfile::Builder::new().prefix("power-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let directory = directory.map_err(|error| format!("no directory: {error}"))?;
        for name in ["files", "mounted"] {
            std::fs::create_dir(directory.path().join(name)).map_err(|error| error.to_string())?;
        }
        let files = Files::default();
        let mut config = Config::default();
        config.mount_options.push(MountOption::FSName("ringbase-power-loss".into()));
        let session = fuser::spawn_mount(files.clone(), directory.path().join("files"), &config);
        let session = session.map_err(|error| format!("FUSE cannot be mounted: {error}"))?;
        Ok(Daemon { _session: session, directory, files })
    }

    /// Makes a disk a block device.
    pub(crate) fn attach(&self, disk: Disk) -> Result<Attached, String> {
        let disk = SharedDisk(Arc::new(Mutex::new(disk)));
        let number = {
            let mut disks = self.files.lock();
            disks.push(Some(disk.clone()));
            disks.len() - 1
        };
        let file = self.directory.path().join("files").join(format!("{number}.img"));
        let file = file.to_str().expect("a path of ours");
        let path = run("losetup", &["--find", "--show", "--direct-io=on", file])?;
        let device = Attached { disk, path: path.trim().to_owned(), number, files: self.files.clone() };
        let direct = run("losetup", &["--noheadings", "--output", "DIO", &device.path])?;
        if direct.trim() != "1" {
            return Err(format!("{} goes through the page cache", device.path));
        }
        Ok(device)
    }

    /// Mounts the file system on a disk.
    pub(crate) fn mount<'a>(&self, device: &'a Attached) -> Result<Mounted<'a>, String> {
        let path = self.directory.path().join("mounted").join(device.number.to_string());
        std::fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        run("mount", &["-t", "ext4", "-o", "noatime", &device.path, path.to_str().expect("a path of ours")])?;
        Ok(Mounted { path, _device: device })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The session unmounts it, too, but not while somebody uses it.
        let path = self.directory.path().join("files");
        if let Err(error) = run("umount", &["--lazy", path.to_str().expect("a path of ours")]) {
            eprintln!("the daemon's files are still mounted: {error}");
        }
    }
}

/// A disk as a block device; let go of when it is dropped.
pub(crate) struct Attached {
    /// The disk.
    pub(crate) disk: SharedDisk,
    path: String,
    number: usize,
    files: Files,
}

impl Attached {
    /// Makes an empty file system.
    pub(crate) fn make_file_system(&self) -> Result<(), String> {
        let features = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-J", "size=4", "-E", features, &self.path]).map(drop)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        match run("losetup", &["--detach", &self.path]) {
            Ok(_) => self.files.lock()[self.number] = None,
            Err(error) => eprintln!("a loop device is left: {error}"),
        }
    }
}

/// A mounted file system; unmounted when it is dropped.
pub(crate) struct Mounted<'a> {
    path: PathBuf,
    /// It must outlive the file system.
    _device: &'a Attached,
}

impl Mounted<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let path = self.path.to_str().expect("a path of ours");
        // The kernel lets go of a ring's files a little after the ring is closed.
        for _ in 0..UNMOUNT_TRIES {
            match run("umount", &[path]) {
                Ok(_) => return,
                Err(_) => std::thread::sleep(UNMOUNT_AGAIN),
            }
        }
        eprintln!("{path} cannot be unmounted, only detached");
        if let Err(error) = run("umount", &["--lazy", path]) {
            eprintln!("{path} is still mounted: {error}");
        }
    }
}

/// What a program writes; its complaint if it fails.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program} cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
