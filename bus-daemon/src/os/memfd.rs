//! Small files in memory that a descriptor hands from one process image to the next.

use std::ffi::CStr;
use std::io::{Error, Result, Write};
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A new memfd with these bytes; it is kept over exec.
pub(crate) fn write(name: &CStr, bytes: &[u8]) -> Result<RawFd> {
    let mut file = std::fs::File::from(memfd_create(name, MFdFlags::empty())?);
    file.write_all(bytes)?;
    Ok(file.into_raw_fd())
}

/// A new memfd that is filled bit by bit. It is kept over exec.
pub(crate) struct Spilled(std::fs::File);

impl Spilled {
    /// With nothing in it.
    pub(crate) fn create(name: &CStr) -> Result<Self> {
        Ok(Self(std::fs::File::from(memfd_create(name, MFdFlags::empty())?)))
    }

    /// Puts bytes there from this offset on.
    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        use std::os::unix::fs::FileExt;
        self.0.write_all_at(bytes, offset)
    }

    /// It stays open.
    pub(crate) fn into_raw_fd(self) -> RawFd {
        self.0.into_raw_fd()
    }
}

/// An empty memfd, which is closed by exec.
pub(crate) fn create(name: &CStr) -> Result<RawFd> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into_raw_fd())
}

/// Puts these bytes in the place of all that a memfd holds. It stays open.
#[expect(unsafe_code, reason = "a descriptor by number")]
pub(crate) fn replace(fd: RawFd, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    if fd < 0 {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    // SAFETY: ManuallyDrop keeps the borrowed descriptor from being closed here.
    let file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
    file.set_len(0)?;
    file.write_all_at(bytes, 0)
}

/// So many bytes of a memfd from an offset on. It stays open.
#[expect(unsafe_code, reason = "a descriptor by number")]
pub(crate) fn read_at(fd: RawFd, offset: u64, len: usize) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    if fd < 0 {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    // SAFETY: ManuallyDrop keeps the borrowed descriptor from being closed here.
    let file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// All bytes of a memfd, which stays open. Nobody writes to it any more, or shortens it.
#[expect(unsafe_code, reason = "maps a descriptor by number")]
pub(crate) fn read(fd: RawFd) -> Result<Mapped> {
    if fd < 0 {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    // SAFETY: ManuallyDrop keeps the borrowed descriptor from being closed here.
    let file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
    let len = usize::try_from(file.metadata()?.len()).map_err(Error::other)?;
    if len == 0 {
        return Ok(Mapped {
            start: NonNull::dangling(),
            len,
        });
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_POPULATE;
    // SAFETY: a fresh mapping at an address of the kernel's choice disturbs no other memory.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    let start = NonNull::new(start.cast()).ok_or_else(|| Error::other("mapped at address 0"))?;
    Ok(Mapped { start, len })
}

/// The bytes of a memfd, mapped: large ones are read without a copy.
#[derive(Debug)]
pub(crate) struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

impl std::ops::Deref for Mapped {
    type Target = [u8];

    #[expect(unsafe_code, reason = "views the mapping")]
    fn deref(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self` lives, and nobody changes it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapped {
    #[expect(unsafe_code, reason = "undoes the mapping")]
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: no view of it outlives `self`.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}
