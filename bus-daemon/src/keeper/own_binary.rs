//! The file that this process executes. /proc knows it best; where there is none (containers, early boot) the kernel's
//! word to the new process image does.

use std::ffi::{CStr, OsStr};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open as open_file};
use nix::sys::stat::Mode;

const PROC: &str = "/proc/self/exe";

/// Opens it, to be executed again (O_PATH).
pub(crate) fn open() -> Result<RawFd> {
    let by_proc = open_file(PROC, OFlag::O_PATH, Mode::empty());
    let file = match by_proc {
        Ok(file) => file,
        Err(_) => open_file(&path()?, OFlag::O_PATH, Mode::empty())?,
    };
    Ok(file.into_raw_fd())
}

/// Where it is, absolute. To be asked before the working directory changes.
pub(crate) fn path() -> Result<PathBuf> {
    match std::fs::read_link(PROC) {
        Ok(path) => Ok(path),
        // An image that was executed by descriptor is told no path, but its first argument is one.
        Err(_) => started_from()
            .and_then(|path| path.canonicalize())
            .or_else(|_| first_argument()?.canonicalize()),
    }
}

/// `argv[0]`, where it is a path.
fn first_argument() -> Result<PathBuf> {
    let argument = std::env::args_os().next().map(PathBuf::from);
    argument
        .filter(|path| path.components().count() > 1)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "without /proc: give a path to start it by"))
}

/// The path that was given to execve(2).
#[expect(unsafe_code, reason = "a string that the kernel left on the stack")]
fn started_from() -> Result<PathBuf> {
    // SAFETY: only asks.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) };
    let Some(text) = std::ptr::NonNull::new(address as *mut libc::c_char) else {
        return Err(Error::new(
            ErrorKind::NotFound,
            "neither /proc nor AT_EXECFN tells",
        ));
    };
    // SAFETY: a string on the stack of the process image, which stays as long as the image does.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    Ok(Path::new(OsStr::from_bytes(text.to_bytes())).to_owned())
}

#[cfg(test)]
#[test]
fn the_kernel_says_the_same_as_proc() {
    let by_proc = std::fs::read_link(PROC).unwrap();
    assert_eq!(started_from().unwrap().canonicalize().unwrap(), by_proc);
    assert_eq!(path().unwrap(), by_proc);
}
