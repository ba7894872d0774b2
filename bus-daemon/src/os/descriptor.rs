//! File descriptors by number: keeper and worker share one table, so a number means the same in both.

#![allow(unsafe_code, reason = "descriptors by number")]

use std::io::{Error, Result};
use std::os::fd::{BorrowedFd, RawFd};

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn close_on_exec_from(first: RawFd) -> Result<()> {
    // SAFETY: changes flags only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Error::last_os_error())
    }
}

/// Closes every descriptor from `first` to `last`, if there are any.
pub(crate) fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: the caller owns that range.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if result != 0 && last - first < 1024 {
            // A system without that call. What is not open is left alone.
            (first..=last).for_each(close);
        }
    }
}

/// Sets or clears the flag of one descriptor; one that is not open is left alone.
pub(crate) fn set_close_on_exec(fd: RawFd, close: bool) {
    // SAFETY: changes a flag only.
    unsafe { libc::fcntl(fd, libc::F_SETFD, if close { libc::FD_CLOEXEC } else { 0 }) };
}

/// Closes one descriptor. A number that is not open is left alone.
pub(crate) fn close(fd: RawFd) {
    // -1 stands for none.
    let _ = nix::unistd::close(fd);
}

/// Whether this number is open.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: only asks.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Makes `fd` another number of what `number` is, in place of what it was.
pub(crate) fn replace(number: RawFd, fd: RawFd) -> Result<()> {
    // SAFETY: the caller owns `fd`.
    if unsafe { libc::dup3(number, fd, libc::O_CLOEXEC) } == fd {
        Ok(())
    } else {
        Err(Error::last_os_error())
    }
}

/// Another number, which is closed on exec, for what this one is; `None` where there is none.
pub(crate) fn duplicate(fd: RawFd) -> Option<RawFd> {
    // SAFETY: makes a new descriptor, or fails.
    let number = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    (number >= 0).then_some(number)
}

/// How much of what was sent by a socket nobody has read, at least as much as there are bytes of it: the kernel counts what it
/// takes to keep it. A socket that cannot tell has nothing of that kind.
pub(crate) fn unread_output(socket: RawFd) -> u64 {
    let mut unread: libc::c_int = 0;
    // SAFETY: writes one number.
    let result = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut unread) };
    if result == 0 {
        u64::try_from(unread).unwrap_or(0)
    } else {
        0
    }
}

/// The descriptor for a call that wants it borrowed. It must be open for as long.
pub(crate) fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the caller's promise; numbers in use are never -1.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// How many descriptors this process may have open (`RLIMIT_NOFILE`).
pub(crate) fn most_open() -> u64 {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    // What the kernel lets a limit be, unless it is told otherwise.
    limit.map_or(1 << 20, |(soft, _)| soft)
}

/// How many descriptors there is room for in the table as it is: all open ones are below.
pub(crate) fn table_size() -> RawFd {
    let size = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let (_, rest) = status.split_once("FDSize:")?;
            rest.lines().next()?.trim().parse().ok()
        });
    // Without /proc: as large as it may be. Numbers are given out from below, so no more than that many links are far
    // from any use; some containers have a limit of 2^30, and each number costs a system call.
    const MOST: RawFd = 1 << 20;
    size.unwrap_or_else(|| {
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        limit.map_or(MOST, |(_, hard)| {
            hard.try_into().map_or(MOST, |hard: RawFd| hard.min(MOST))
        })
    })
}

/// Closes every descriptor from 3 on, except for these.
pub(crate) fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<RawFd> = kept.iter().copied().filter(|fd| *fd >= 3).collect();
    kept.sort_unstable();
    let mut from = 3;
    for fd in kept {
        close_range(from, fd - 1);
        from = fd + 1;
    }
    close_range(from, RawFd::MAX);
}
