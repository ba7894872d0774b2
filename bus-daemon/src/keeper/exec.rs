//! Replacing the process image. The pid stays, and so does every descriptor that is not close-on-exec: the listeners,
//! the epoll set and all links are open in the new image under the same numbers.

use std::ffi::OsString;
use std::os::fd::RawFd;

use nix::errno::Errno;

use super::binary::{self, Binary, BinaryError};
use crate::handoff::keeper::KeeperV1;
use crate::os::descriptor::borrow;

/// Goes on as the binary that passed its trial. Returns only on failure.
pub(crate) fn approved(record: &KeeperV1, binary: &Binary, saved: RawFd) -> BinaryError {
    binary.execute(&arguments(record, &[format!("--restore={saved}")]))
}

/// Goes on as the binary that wrote the state, wherever its path leads by now. Returns only on failure.
pub(crate) fn previous(record: &KeeperV1, binary: RawFd, saved: RawFd, reason: &str) -> Errno {
    let arguments = arguments(
        record,
        &[format!("--restore={saved}"), format!("--rolled-back={reason}")],
    );
    binary::execute(borrow(binary), &arguments, None)
}

/// The command line of a process image that takes over.
pub(crate) fn arguments(record: &KeeperV1, hidden: &[String]) -> Vec<OsString> {
    // Both binaries of the project understand the subcommand; only one of them needs it.
    let mut arguments = vec![record.executable().into_os_string(), OsString::from("daemon")];
    arguments.extend(record.arguments());
    arguments.extend(hidden.iter().map(OsString::from));
    arguments
}
