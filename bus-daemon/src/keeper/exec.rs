//! Replacing the process image. The pid stays, and so does every descriptor that is not close-on-exec: the listeners,
//! the epoll set and all links are open in the new image under the same numbers.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;

use crate::handoff::keeper::KeeperV1;

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
    exec(Path::new(&format!("/proc/self/fd/{binary}")), &arguments)
}

fn arguments(record: &KeeperV1, hidden: &[String]) -> Vec<OsString> {
    // Both binaries of the project understand the subcommand; only one of them needs it.
    let mut arguments = vec![record.executable().into_os_string(), OsString::from("daemon")];
    arguments.extend(record.arguments());
    arguments.extend(hidden.iter().map(OsString::from));
    arguments
}

fn exec(binary: &Path, arguments: &[OsString]) -> Errno {
    let text = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
    let arguments: Vec<CString> = arguments
        .iter()
        .map(|argument| text(&argument.clone().into_vec()))
        .collect();
    let result: Result<Infallible, Errno> =
        nix::unistd::execv(&text(binary.as_os_str().as_bytes()), &arguments);
    match result {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}
