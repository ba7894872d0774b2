//! Small files in memory that a descriptor hands from one process image to the next.

use std::ffi::CStr;
use std::io::{Error, Result, Write};
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A new memfd with these bytes; it is kept over exec.
pub(crate) fn write(name: &CStr, bytes: &[u8]) -> Result<RawFd> {
    let mut file = std::fs::File::from(memfd_create(name, MFdFlags::empty())?);
    file.write_all(bytes)?;
    Ok(file.into_raw_fd())
}

/// All bytes of a memfd, which stays open.
#[expect(unsafe_code, reason = "borrows a descriptor by number")]
pub(crate) fn read(fd: RawFd) -> Result<Vec<u8>> {
    // SAFETY: ManuallyDrop keeps the borrowed descriptor from being closed here.
    let file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
    let len = usize::try_from(file.metadata()?.len()).map_err(Error::other)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
