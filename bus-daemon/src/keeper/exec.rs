//! Replacing the process image. The pid stays, and so does every descriptor that is not close-on-exec: the listeners,
//! the epoll set and all links are open in the new image under the same numbers.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use super::record::KeeperV1;

/// Goes on as the binary that passed the preflight. Returns only on failure.
pub(crate) fn approved(record: &KeeperV1, binary: &Path, saved: RawFd) -> Errno {
    let arguments = arguments(record, &[format!("--restore={saved}")]);
    exec(binary, &arguments)
}

/// Goes on as the binary that wrote the state, wherever its path leads by now. Returns only on failure.
pub(crate) fn previous(record: &KeeperV1, binary: RawFd, saved: RawFd, reason: &str) -> Errno {
    let arguments = arguments(
        record,
        &[format!("--restore={saved}"), format!("--rolled-back={reason}")],
    );
    let environment: Vec<CString> = std::env::vars_os()
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
        .map(|pair| text(&pair))
        .collect();
    #[expect(unsafe_code, reason = "a descriptor by number")]
    // SAFETY: the keeper holds it open for as long as it lives.
    let binary = unsafe { BorrowedFd::borrow_raw(binary) };
    // Needs no /proc.
    match nix::unistd::fexecve(binary, &texts(&arguments), &environment) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

fn text(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}

fn texts(arguments: &[OsString]) -> Vec<CString> {
    let texts = arguments.iter().map(|argument| text(argument.as_bytes()));
    texts.collect()
}

fn arguments(record: &KeeperV1, hidden: &[String]) -> Vec<OsString> {
    // Both binaries of the project understand the subcommand; only one of them needs it.
    let mut arguments = vec![record.executable().into_os_string(), OsString::from("daemon")];
    arguments.extend(record.arguments());
    arguments.extend(hidden.iter().map(OsString::from));
    arguments
}

fn exec(binary: &Path, arguments: &[OsString]) -> Errno {
    let result: Result<Infallible, Errno> =
        nix::unistd::execv(&text(binary.as_os_str().as_bytes()), &texts(arguments));
    match result {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}
