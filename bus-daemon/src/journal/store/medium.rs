//! What the store's bytes lie in: a memfd that nobody maps, or memory for tests.

#![allow(
    unsafe_code,
    reason = "borrows a descriptor by its number and asks for its size"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io::Result;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A file that grows as it is written.
pub(crate) trait Medium {
    /// Fills `bytes` from this offset on; an unexpected end of the file is an error.
    fn pread(&self, offset: u64, bytes: &mut [u8]) -> Result<()>;
    /// Writes all of `bytes` at this offset.
    fn pwrite(&self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Gives the memory of a range back; it reads as zero afterwards.
    fn punch(&self, offset: u64, len: u64) -> Result<()>;
    /// Bytes of the file.
    fn len(&self) -> Result<u64>;
    /// Bytes of memory that it takes.
    fn allocated(&self) -> Result<u64>;
}

/// A memfd. It is not closed when this value goes, but with the last process of the daemon that has it open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memfd(RawFd);

impl Memfd {
    /// A new one, empty.
    pub(crate) fn create(name: &CStr) -> Result<Self> {
        Ok(Self(memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into_raw_fd()))
    }

    /// One that another process of the daemon created.
    pub(crate) fn reopen(fd: RawFd) -> Self {
        Self(fd)
    }

    /// Its descriptor.
    pub(crate) fn fd(self) -> RawFd {
        self.0
    }

    fn file(self) -> ManuallyDrop<File> {
        // SAFETY: the descriptor stays open as long as the process, and is not closed here.
        ManuallyDrop::new(unsafe { File::from_raw_fd(self.0) })
    }
}

impl Medium for Memfd {
    fn pread(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file().read_exact_at(bytes, offset)
    }

    fn pwrite(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file().write_all_at(bytes, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        // SAFETY: a plain system call on the daemon's own descriptor.
        let result = unsafe {
            libc::fallocate(
                self.0,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset as libc::off_t,
                len as libc::off_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    }

    fn len(&self) -> Result<u64> {
        Ok(self.file().metadata()?.len())
    }

    fn allocated(&self) -> Result<u64> {
        Ok(self.file().metadata()?.blocks() * 512)
    }
}
