//! Looks out for the socket of a bus that is gone, so that it need not be tried for over and over.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use bus_wire::AddressList;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::dial::unix_path;

/// Of the directories that the sockets of a connection's addresses are in. Where there is no instance to be had, the timer of the
/// session serves.
pub(super) struct Watch {
    inotify: Inotify,
    names: BTreeSet<OsString>,
}

impl Watch {
    pub(super) fn new(addresses: &AddressList) -> Option<Self> {
        let paths: Vec<_> = addresses.as_slice().iter().filter_map(unix_path).collect();
        if paths.is_empty() {
            return None;
        }
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE_SELF;
        let mut names = BTreeSet::new();
        for path in &paths {
            let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            let directory = if directory.as_os_str().is_empty() {
                Path::new(".")
            } else {
                directory
            };
            if inotify.add_watch(directory, flags).is_ok() {
                names.insert(name.to_owned());
            }
        }
        (!names.is_empty()).then_some(Self { inotify, names })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Whether a socket has appeared, or its directory is gone: either is a reason to try.
    pub(super) fn has_appeared(&mut self) -> bool {
        let mut appeared = false;
        while let Ok(events) = self.inotify.read_events() {
            appeared |= events.iter().any(|event| {
                event.mask.contains(AddWatchFlags::IN_DELETE_SELF)
                    || event.name.as_ref().is_some_and(|name| self.names.contains(name))
            });
        }
        appeared
    }
}
