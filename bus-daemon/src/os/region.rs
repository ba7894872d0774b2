//! Shared memory: a memfd, mapped.

#![allow(unsafe_code, reason = "maps memory and hands out views of it")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A memfd and its mapping. Neither is undone when this value goes: the mapping ends with the process, the memfd
/// with the last process of the daemon that has it open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    start: NonNull<u8>,
    len: usize,
    fd: RawFd,
}

// SAFETY: the mapping lives as long as the process; who may write where is the business of the region's user.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// A new region of `len` bytes, all zero; pages come into being when they are first touched.
    pub(crate) fn create(name: &CStr, len: usize) -> io::Result<Self> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&fd, i64::try_from(len).map_err(io::Error::other)?)?;
        let region = Self::map(fd.as_raw_fd(), len)?;
        // Neither is undone from here on.
        let _ = fd.into_raw_fd();
        Ok(region)
    }

    /// Undoes the mapping, and closes the memfd: nobody has seen either.
    pub(crate) fn undo(self) {
        self.unmap();
        super::descriptor::close(self.fd);
    }

    /// Maps what another process of the daemon created.
    pub(crate) fn map(fd: RawFd, len: usize) -> io::Result<Self> {
        Self::map_at(fd, 0, len)
    }

    /// Maps `len` bytes at `offset` of a memfd, which grows if it must.
    pub(crate) fn map_range(fd: RawFd, offset: u64, len: usize) -> io::Result<Self> {
        let end = offset + len as u64;
        let file_offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        if Self::file_len(fd)? < end {
            // SAFETY: a plain system call on the daemon's own descriptor.
            let result =
                unsafe { libc::ftruncate(fd, libc::off_t::try_from(end).map_err(io::Error::other)?) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Self::map_at(fd, file_offset, len)
    }

    fn map_at(fd: RawFd, offset: libc::off_t, len: usize) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice disturbs no other memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, len, fd })
    }

    /// Undoes the mapping; nobody looks at it any more.
    pub(crate) fn unmap(self) {
        // SAFETY: the caller owns the last use of the mapping.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }

    /// Pages from one offset to another, both multiples of a page's size, are not this process's any more until it touches
    /// them: its end takes less time. They stay in the memfd.
    pub(crate) fn forget(&self, from: usize, to: usize) {
        let start = self.at(from, to - from);
        // SAFETY: in the mapping, which is shared: nothing is lost. Failure costs time only.
        unsafe { libc::madvise(start.cast(), to - from, libc::MADV_DONTNEED) };
    }

    /// Keeps the first `len` bytes in memory: the kernel writes counts there at moments when it cannot fault a page in.
    pub(crate) fn lock(&self, len: usize) -> io::Result<()> {
        // SAFETY: the range lies in the mapping.
        let result = unsafe { libc::mlock(self.start.as_ptr().cast(), len.min(self.len)) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Gives the pages of a range of the memfd back to the system; they read as zero afterwards.
    pub(crate) fn release_range(&self, offset: u64, len: usize) {
        Self::release(self.fd, offset, len as u64);
    }

    /// The same of a memfd.
    pub(crate) fn release(fd: RawFd, offset: u64, len: u64) {
        // SAFETY: a plain system call on the daemon's own descriptor. Failure only costs memory.
        unsafe {
            libc::fallocate(
                fd,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset as libc::off_t,
                len as libc::off_t,
            );
        }
    }

    /// Bytes of a memfd.
    pub(crate) fn file_len(fd: RawFd) -> io::Result<u64> {
        // SAFETY: a stat of zeroes is a value, and the kernel fills it in.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: room for a stat.
        if unsafe { libc::fstat(fd, &raw mut stat) } == 0 {
            Ok(stat.st_size.cast_unsigned())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// The address of `offset`; `len` bytes from there are in the mapping.
    pub(crate) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: asserted to be within the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Bytes of the mapping.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where an address lies in the mapping, if it does.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn offset_of(&self, address: usize) -> Option<usize> {
        address
            .checked_sub(self.start.as_ptr() as usize)
            .filter(|offset| *offset < self.len)
    }

    /// Its memfd.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }
}
