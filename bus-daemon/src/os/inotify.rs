//! inotify(7), of which the instance may be shared with a child.

#![allow(unsafe_code, reason = "system calls, and structs that the kernel has written")]

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The contents of a directory have changed, or it is gone.
pub(crate) const CONTENTS: u32 =
    libc::IN_CLOSE_WRITE | libc::IN_DELETE | libc::IN_MOVED_TO | libc::IN_MOVED_FROM | ENDS;
/// Something has come into a directory, or it is gone.
pub(crate) const ARRIVALS: u32 = libc::IN_CREATE | libc::IN_MOVED_TO | ENDS;
const ENDS: u32 = libc::IN_DELETE_SELF | libc::IN_MOVE_SELF;

/// Something has happened in a directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The number of the watch; -1 where changes were lost.
    pub(crate) watch: i32,
    /// To which entry; empty where it is the directory itself that is gone.
    pub(crate) name: Vec<u8>,
    /// The watch is no more.
    pub(crate) is_end: bool,
}

/// A new instance, close-on-exec, which never waits.
pub(crate) fn create() -> Result<RawFd> {
    // SAFETY: makes a new descriptor, or fails.
    let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
    if fd < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(fd)
    }
}

/// Watches a directory for `events`, besides those that it is watched for already. The number of the watch.
pub(crate) fn watch(instance: RawFd, directory: &Path, events: u32) -> Result<i32> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let mask = events | libc::IN_ONLYDIR | libc::IN_MASK_ADD;
    // SAFETY: a path that ends with a nul byte.
    let watch = unsafe { libc::inotify_add_watch(instance, path.as_ptr(), mask) };
    if watch < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(watch)
    }
}

/// Ends a watch.
pub(crate) fn forget(instance: RawFd, watch: i32) {
    // SAFETY: a number only.
    let _ = unsafe { libc::inotify_rm_watch(instance, watch) };
}

/// What has happened since the last time, up to a bound.
pub(crate) fn changes(instance: RawFd) -> Vec<Change> {
    const HEADER: usize = size_of::<libc::inotify_event>();
    let mut buffer = vec![0_u8; 16 * 1024];
    // SAFETY: writable for its length.
    let len = unsafe { libc::read(instance, buffer.as_mut_ptr().cast(), buffer.len()) };
    let mut rest = &buffer[..usize::try_from(len).unwrap_or(0)];
    let mut changes = Vec::new();
    while rest.len() >= HEADER {
        // SAFETY: plain integers, of which all bytes are there.
        let event: libc::inotify_event =
            unsafe { rest.as_ptr().cast::<libc::inotify_event>().read_unaligned() };
        let end = (HEADER + event.len as usize).min(rest.len());
        let name = rest[HEADER..end]
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        changes.push(Change {
            watch: event.wd,
            name: name.to_vec(),
            is_end: event.mask & libc::IN_IGNORED != 0,
        });
        rest = &rest[end..];
    }
    changes
}
