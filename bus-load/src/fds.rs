//! Descriptors whose content is a number, and how many are open.

#![allow(
    unsafe_code,
    reason = "descriptors that came in a control message are taken into ownership here"
)]

use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

/// A memory file that holds `number`.
pub fn numbered(number: u64) -> io::Result<OwnedFd> {
    let file = File::from(memfd_create(c"bus-load", MFdFlags::MFD_CLOEXEC)?);
    file.write_all_at(&number.to_le_bytes(), 0)?;
    Ok(file.into())
}

/// The number that [`numbered`] put in.
pub fn number_of(fd: OwnedFd) -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::from(fd).read_exact_at(&mut bytes, 0)?;
    Ok(u64::from_le_bytes(bytes))
}

/// How many descriptors process `pid` has open.
pub fn open_count(pid: u32) -> io::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Takes ownership of a descriptor that the kernel has just put into this process's table.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the only callers pass numbers out of an SCM_RIGHTS control message of this process's own recvmsg,
    // each exactly once, and nothing else knows them.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
