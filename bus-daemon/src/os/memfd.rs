//! Small files in memory that a descriptor hands from one process image to the next.

use std::ffi::CStr;
use std::io::{Error, Result, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A new memfd with these bytes; it is kept over exec.
pub(crate) fn write(name: &CStr, bytes: &[u8]) -> Result<RawFd> {
    let mut file = std::fs::File::from(memfd_create(name, MFdFlags::empty())?);
    file.write_all(bytes)?;
    Ok(file.into_raw_fd())
}

/// A memfd that is filled bit by bit. It is kept over exec.
pub(crate) struct Spilled {
    file: std::fs::File,
    /// Behind the last byte that was put there.
    end: u64,
}

impl Spilled {
    /// With nothing in it.
    pub(crate) fn create(name: &CStr) -> Result<Self> {
        Ok(Self::over(memfd_create(name, MFdFlags::empty())?))
    }

    /// What it holds is written over: its memory is there already, and new memory takes twice as long.
    pub(crate) fn over(spare: OwnedFd) -> Self {
        super::descriptor::set_close_on_exec(spare.as_raw_fd(), false);
        let file = std::fs::File::from(spare);
        Self { file, end: 0 }
    }

    /// Puts bytes there from this offset on.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        use std::os::unix::fs::FileExt;
        self.file.write_all_at(bytes, offset)?;
        self.end = self.end.max(offset + bytes.len() as u64);
        Ok(())
    }

    /// Nothing is there but what was put there. It stays open.
    pub(crate) fn finish(self) -> Result<RawFd> {
        self.file.set_len(self.end)?;
        Ok(self.file.into_raw_fd())
    }
}

/// The same memfd under another number, which is closed by exec and whenever it is let go of.
pub(crate) fn another(fd: RawFd) -> Result<OwnedFd> {
    super::descriptor::borrow(fd).try_clone_to_owned()
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

// SAFETY: nobody changes what is mapped, from whatever thread it is read.
#[expect(unsafe_code, reason = "a mapping is no thread's own")]
unsafe impl Send for Mapped {}

// SAFETY: as above.
#[expect(unsafe_code, reason = "a mapping is no thread's own")]
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Pages from one offset to another, both multiples of a page's size, leave this process's memory until they are looked at
    /// again.
    #[expect(unsafe_code, reason = "gives memory back")]
    pub(crate) fn forget(&self, from: usize, to: usize) {
        let (from, to) = (from.min(self.len), to.min(self.len));
        // SAFETY: in the mapping, which is private and was not written to: nothing is lost. Failure costs memory only.
        unsafe {
            libc::madvise(
                self.start.as_ptr().add(from).cast(),
                to - from,
                libc::MADV_DONTNEED,
            )
        };
    }
}

/// A mapping that counted slices may keep.
#[derive(Clone)]
pub(crate) struct SharedMapping(pub(crate) Arc<Mapped>);

impl AsRef<[u8]> for SharedMapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
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
