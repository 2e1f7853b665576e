//! A file or block device for direct I/O through a ring.
//!
//! [`RingDevice::open`] verifies that the kernel really does direct I/O (by `fcntl` and, where the kernel tells, by the
//! alignment it asks for), so that "durable" and "cached" mean what the engine thinks they mean.
//!
//! Invariants
//! - Every transfer is whole blocks, inside the length of the device.
//! - A created file and its directory entry are durable when `open` returns.
//!
//! Cost: opening blocks the thread for some milliseconds; it belongs to start-up.
//!
//! Does not know: what the bytes mean, who may use the directory.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};

use super::completion::promise;
use super::operation::{Answer, OperationKind};
use super::ring::{Ring, RingFile, RingOperation};
use super::{BLOCK_BYTES, Device, DmaBuffer};
use crate::env::LocalFuture;

/// How to open a device.
#[derive(Debug, Default, Clone)]
pub struct OpenOptions {
    /// Create the file if it is missing. A block device is never created.
    pub create: bool,
    /// Fail if the file exists; implies `create`.
    pub create_new: bool,
    /// Preallocate at least this many bytes, a multiple of [`BLOCK_BYTES`]; durable when `open` returns.
    pub len_bytes_min: u64,
}

/// What the kernel says about an open device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct DeviceFacts {
    /// `O_DIRECT` is among the flags of the descriptor.
    pub direct: bool,
    /// A block device, whose length is fixed.
    pub block_device: bool,
    /// Alignment that direct I/O needs in memory, in bytes; `None`: the kernel does not tell.
    pub memory_align: Option<u32>,
    /// Alignment that direct I/O needs in the file, in bytes; `None`: the kernel does not tell.
    pub offset_align: Option<u32>,
    /// Whether the ring has the file registered.
    pub registered: bool,
}

/// Why a device could not be opened. Each variant names the path and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The file cannot be opened or created.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The filesystem refuses `O_DIRECT`, or accepts it and keeps everything in memory, as tmpfs does.
    #[error(
        "the filesystem of {} does not do direct I/O (O_DIRECT) to a device: put the data directory on ext4, XFS or a \
         block device, not on tmpfs",
        path.display()
    )]
    NotDirect {
        /// The file.
        path: PathBuf,
    },
    /// Direct I/O needs coarser alignment than a block of ours.
    #[error(
        "direct I/O on {} needs {memory_align}-byte memory and {offset_align}-byte offsets, more than {BLOCK_BYTES}: \
         use a device with sectors of at most {BLOCK_BYTES} bytes",
        path.display()
    )]
    Alignment {
        /// The file.
        path: PathBuf,
        /// What it needs in memory, in bytes.
        memory_align: u32,
        /// What it needs in the file, in bytes.
        offset_align: u32,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is neither a regular file nor a block device", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// There is no room for the wanted length.
    #[error("cannot make {} {len_bytes} bytes long", path.display())]
    Allocate {
        /// The file.
        path: PathBuf,
        /// The wanted length.
        len_bytes: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The new file could not be made durable.
    #[error("cannot sync {}", path.display())]
    Sync {
        /// The file or its directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A [`Device`] whose operations go through a [`Ring`].
pub struct RingDevice {
    name: String,
    ring: Rc<Ring>,
    file: Rc<RingFile>,
    facts: DeviceFacts,
}

impl RingDevice {
    /// Opens a file or block device for direct I/O, for the ring of this core. Blocks the thread.
    ///
    /// # Errors
    /// See [`DeviceError`]. A file that was created and refused is removed; one that could not be made long enough stays.
    pub fn open(ring: &Rc<Ring>, path: &Path, options: &OpenOptions) -> Result<RingDevice, DeviceError> {
        let (fd, created) = open_direct(path, options)?;
        let facts = verify(&fd, path).inspect_err(|_| {
            if created {
                // What was created a moment ago, and refused, is still empty.
                let _ = rustix::fs::unlink(path);
            }
        })?;
        let mut len_bytes = len_of(&fd, path, facts.block_device)?;
        let grown = options.len_bytes_min > len_bytes;
        if grown {
            let allocate = |source| DeviceError::Allocate {
                path: path.to_owned(),
                len_bytes: options.len_bytes_min,
                source,
            };
            if facts.block_device {
                return Err(allocate(io::ErrorKind::StorageFull.into()));
            }
            assert_blocks(options.len_bytes_min, 0);
            rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, options.len_bytes_min)
                .map_err(|errno| allocate(errno.into()))?;
            len_bytes = options.len_bytes_min;
        }
        if created || grown {
            rustix::fs::fsync(&fd)
                .map_err(|errno| DeviceError::Sync { path: path.to_owned(), source: errno.into() })?;
        }
        if created {
            sync_directory_of(path)?;
        }
        let file = ring.add_file(fd, len_bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64);
        let facts = DeviceFacts { registered: file.is_registered(), ..facts };
        Ok(RingDevice { name: path.display().to_string(), ring: Rc::clone(ring), file, facts })
    }

    /// What the kernel says about it.
    #[must_use]
    pub fn facts(&self) -> DeviceFacts {
        self.facts
    }

    /// Asks the kernel, now, whether the descriptor does direct I/O.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn is_direct(&self) -> io::Result<bool> {
        Ok(rustix::fs::fcntl_getfl(self.file.fd())?.contains(OFlags::DIRECT))
    }

    fn operation(
        &self,
        kind: OperationKind,
        offset: u64,
        len: usize,
        buffer: Option<DmaBuffer>,
        answer: Answer,
    ) {
        self.ring.start(RingOperation::new(kind, Rc::clone(&self.file), offset, len, buffer, answer));
    }

    fn start_write(
        &self,
        kind: OperationKind,
        offset: u64,
        buffer: DmaBuffer,
    ) -> LocalFuture<'static, io::Result<DmaBuffer>> {
        let len = buffer.len();
        assert_blocks(offset, len);
        if offset.saturating_add(len as u64) > self.len_bytes() {
            let message = format!("write of {len} bytes at {offset} beyond the end of {}", self.name);
            return Box::pin(std::future::ready(Err(io::Error::new(io::ErrorKind::InvalidInput, message))));
        }
        let (done, completion) = promise();
        self.operation(kind, offset, len, Some(buffer), Answer::Buffer(done));
        Box::pin(completion)
    }
}

impl Device for RingDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn len_bytes(&self) -> u64 {
        self.file.len_bytes.get()
    }

    fn buffer(&self, len: usize) -> DmaBuffer {
        self.ring.buffer(len)
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'static, io::Result<DmaBuffer>> {
        assert_blocks(offset, len);
        if offset.saturating_add(len as u64) > self.len_bytes() {
            let message = format!("read of {len} bytes at {offset} beyond the end of {}", self.name);
            return Box::pin(std::future::ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))));
        }
        let (done, completion) = promise();
        self.operation(OperationKind::Read, offset, len, None, Answer::Buffer(done));
        Box::pin(completion)
    }

    fn write(&self, offset: u64, buffer: DmaBuffer) -> LocalFuture<'static, io::Result<DmaBuffer>> {
        self.start_write(OperationKind::Write, offset, buffer)
    }

    fn write_durable(&self, offset: u64, buffer: DmaBuffer) -> LocalFuture<'static, io::Result<DmaBuffer>> {
        self.start_write(OperationKind::DurableWrite, offset, buffer)
    }

    fn sync(&self) -> LocalFuture<'static, io::Result<()>> {
        let (done, completion) = promise();
        self.operation(OperationKind::Sync, 0, 0, None, Answer::Unit(done));
        Box::pin(completion)
    }

    fn grow(&self, len_bytes: u64) -> LocalFuture<'static, io::Result<()>> {
        assert_blocks(len_bytes, 0);
        if len_bytes <= self.len_bytes() {
            return Box::pin(std::future::ready(Ok(())));
        }
        if self.facts.block_device {
            return Box::pin(std::future::ready(Err(io::ErrorKind::StorageFull.into())));
        }
        let (done, completion) = promise();
        self.operation(OperationKind::Grow, len_bytes, 0, None, Answer::Unit(done));
        Box::pin(completion)
    }
}

impl std::fmt::Debug for RingDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RingDevice({}, {} bytes, {:?})", self.name, self.len_bytes(), self.facts)
    }
}

/// Bytes of one write of [`prefill`].
const PREFILL_BYTES: usize = 1 << 20;
/// Writes of [`prefill`] in flight.
const PREFILL_DEPTH: usize = 4;

/// Writes zeros over `len` bytes at `offset` and syncs, so that later writes there change no metadata.
///
/// # Errors
/// As [`Device::write`] and [`Device::sync`].
///
/// # Panics
/// If offset or length is not whole blocks.
pub async fn prefill(device: &dyn Device, offset: u64, len: u64) -> io::Result<()> {
    assert_blocks(offset, 0);
    assert_blocks(len, 0);
    let end = offset + len;
    let mut next = offset;
    let mut in_flight = std::collections::VecDeque::with_capacity(PREFILL_DEPTH);
    let mut spare = Vec::new();
    while next < end || !in_flight.is_empty() {
        while next < end && in_flight.len() < PREFILL_DEPTH {
            let piece = usize::try_from(end - next).unwrap_or(usize::MAX).min(PREFILL_BYTES);
            let mut buffer = spare.pop().unwrap_or_else(|| device.buffer(piece));
            buffer.truncate(piece);
            in_flight.push_back(device.write(next, buffer));
            next += piece as u64;
        }
        if let Some(write) = in_flight.pop_front() {
            spare.push(write.await?);
        }
    }
    device.sync().await
}

fn assert_blocks(offset: u64, len: usize) {
    assert!(
        offset.is_multiple_of(BLOCK_BYTES as u64) && len.is_multiple_of(BLOCK_BYTES),
        "{len} bytes at offset {offset} are not whole blocks"
    );
}

/// Opens the file; says whether it was created.
fn open_direct(path: &Path, options: &OpenOptions) -> Result<(OwnedFd, bool), DeviceError> {
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let error = |errno: rustix::io::Errno| match errno {
        rustix::io::Errno::INVAL => DeviceError::NotDirect { path: path.to_owned() },
        errno => DeviceError::Open { path: path.to_owned(), source: errno.into() },
    };
    if !options.create_new {
        match rustix::fs::open(path, flags, mode) {
            Ok(fd) => return Ok((fd, false)),
            Err(rustix::io::Errno::NOENT) if options.create => {}
            Err(errno) => return Err(error(errno)),
        }
    }
    match rustix::fs::open(path, flags | OFlags::CREATE | OFlags::EXCL, mode) {
        Ok(fd) => Ok((fd, true)),
        Err(errno) => {
            if errno == rustix::io::Errno::INVAL {
                // The kernel creates the file before it finds that it cannot open it; the name was ours alone.
                let _ = rustix::fs::unlink(path);
            }
            Err(error(errno))
        }
    }
}

/// `f_type` of filesystems that live in memory: tmpfs and ramfs (`linux/magic.h`). Newer kernels let both be opened with
/// `O_DIRECT`, but nothing written there outlives the machine.
const MEMORY_FILESYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58F6];

fn verify(fd: &OwnedFd, path: &Path) -> Result<DeviceFacts, DeviceError> {
    let open_error =
        |errno: rustix::io::Errno| DeviceError::Open { path: path.to_owned(), source: errno.into() };
    let status = rustix::fs::fstat(fd).map_err(open_error)?;
    let block_device = match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => false,
        FileType::BlockDevice => true,
        _ => return Err(DeviceError::Kind { path: path.to_owned() }),
    };
    let direct = rustix::fs::fcntl_getfl(fd).map_err(open_error)?.contains(OFlags::DIRECT);
    let filesystem = rustix::fs::fstatfs(fd).map_err(open_error)?.f_type;
    let in_memory =
        !block_device && MEMORY_FILESYSTEMS.iter().any(|&magic| i128::from(filesystem) == i128::from(magic));
    if !direct || in_memory {
        return Err(DeviceError::NotDirect { path: path.to_owned() });
    }
    let told = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|statx| statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    let (memory_align, offset_align) =
        told.map_or((None, None), |statx| (Some(statx.stx_dio_mem_align), Some(statx.stx_dio_offset_align)));
    if let (Some(memory_align), Some(offset_align)) = (memory_align, offset_align) {
        if memory_align == 0 || offset_align == 0 {
            return Err(DeviceError::NotDirect { path: path.to_owned() });
        }
        if memory_align as usize > BLOCK_BYTES || offset_align as usize > BLOCK_BYTES {
            return Err(DeviceError::Alignment { path: path.to_owned(), memory_align, offset_align });
        }
    }
    Ok(DeviceFacts { direct, block_device, memory_align, offset_align, registered: false })
}

fn len_of(fd: &OwnedFd, path: &Path, block_device: bool) -> Result<u64, DeviceError> {
    let error = |errno: rustix::io::Errno| DeviceError::Open { path: path.to_owned(), source: errno.into() };
    if block_device {
        return rustix::fs::seek(fd, SeekFrom::End(0)).map_err(error);
    }
    let status = rustix::fs::fstat(fd).map_err(error)?;
    Ok(u64::try_from(status.st_size).unwrap_or(0))
}

/// Makes the entries of the directory that holds `path` durable.
fn sync_directory_of(path: &Path) -> Result<(), DeviceError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    sync_directory(directory)
}

/// Makes the entries of a directory durable: call it after creating, renaming or removing something in it. Blocks the thread.
///
/// # Errors
/// `Open`, `Sync`: what the kernel said.
pub fn sync_directory(directory: &Path) -> Result<(), DeviceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(|errno| DeviceError::Open { path: directory.to_owned(), source: errno.into() })?;
    rustix::fs::fsync(&fd)
        .map_err(|errno| DeviceError::Sync { path: directory.to_owned(), source: errno.into() })
}

const _: () = assert!(PREFILL_BYTES.is_multiple_of(BLOCK_BYTES));
