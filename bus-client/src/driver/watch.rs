//! Looks out for the socket of a bus that is gone, so that it need not be tried for over and over.
//!
//! A user has few instances of inotify (128 by default), so all connections of a process share one, and a thread that reads it:
//! both are there only while a connection of the process waits for its bus.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bus_wire::AddressList;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::dial::unix_path;
use crate::shared::{Request, Shared};

/// Of the directories that the sockets of a connection's addresses are in. Where there is no instance to be had, the timer of the
/// session serves.
pub(super) struct Watch {
    id: u64,
}

/// The instance of this process, while there is a [`Watch`].
static LOOKOUT: Mutex<Option<Lookout>> = Mutex::new(None);

fn lookout() -> MutexGuard<'static, Option<Lookout>> {
    LOOKOUT.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Lookout {
    inotify: Arc<Inotify>,
    /// A forked child has the descriptor, and not the thread.
    process: u32,
    next: u64,
    watches: BTreeMap<u64, Watched>,
}

/// What one connection waits for.
struct Watched {
    shared: Weak<Shared>,
    /// None of a directory that is gone.
    sockets: Vec<(WatchDescriptor, OsString)>,
}

impl Watch {
    pub(super) fn new(addresses: &AddressList, shared: &Arc<Shared>) -> Option<Self> {
        let paths: Vec<_> = addresses.as_slice().iter().filter_map(unix_path).collect();
        if paths.is_empty() {
            return None;
        }
        let mut lookout = lookout();
        if lookout
            .as_ref()
            .is_none_or(|known| known.process != std::process::id())
        {
            *lookout = Lookout::begin();
        }
        let known = lookout.as_mut()?;
        let sockets: Vec<_> = paths.iter().filter_map(|path| known.look(path)).collect();
        known.next += 1;
        let id = known.next;
        let is_seen = !sockets.is_empty();
        let shared = Arc::downgrade(shared);
        known.watches.insert(id, Watched { shared, sockets });
        drop(lookout);
        let watch = Self { id };
        is_seen.then_some(watch)
    }

    /// Whether it sees nothing any more: its directories are gone.
    pub(super) fn is_blind(&self) -> bool {
        let lookout = lookout();
        let watched = lookout.as_ref().and_then(|known| known.watches.get(&self.id));
        watched.is_none_or(|watched| watched.sockets.is_empty())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut lookout = lookout();
        let Some(known) = lookout
            .as_mut()
            .filter(|known| known.process == std::process::id())
        else {
            return;
        };
        let Some(watched) = known.watches.remove(&self.id) else {
            return;
        };
        for (directory, _) in watched.sockets {
            if !known.is_watched(directory) {
                // Where the directory is gone, so is this.
                let _ = known.inotify.rm_watch(directory);
            }
        }
        if known.watches.is_empty() {
            // The thread is told by the end of the last watch; it must not be left waiting where there was none.
            known.wake();
            *lookout = None;
        }
    }
}

impl Lookout {
    fn begin() -> Option<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC).ok()?);
        let read = inotify.clone();
        std::thread::Builder::new()
            .name("bus-lookout".to_owned())
            .spawn(move || watch(&read))
            .ok()?;
        Some(Self {
            inotify,
            process: std::process::id(),
            next: 0,
            watches: BTreeMap::new(),
        })
    }

    /// The watch on a socket's directory, and the socket's name in it.
    fn look(&self, path: &Path) -> Option<(WatchDescriptor, OsString)> {
        let name = path.file_name()?.to_owned();
        let directory = path.parent()?;
        let directory = if directory.as_os_str().is_empty() {
            Path::new(".")
        } else {
            directory
        };
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE_SELF;
        let directory = self.inotify.add_watch(directory, flags).ok()?;
        Some((directory, name))
    }

    fn is_watched(&self, directory: WatchDescriptor) -> bool {
        let mut sockets = self.watches.values().flat_map(|watched| &watched.sockets);
        sockets.any(|(known, _)| *known == directory)
    }

    /// Makes the thread look whether it is still needed.
    fn wake(&self) {
        if let Ok(directory) = self.inotify.add_watch("/", AddWatchFlags::IN_DELETE_SELF) {
            let _ = self.inotify.rm_watch(directory);
        }
    }

    /// The connections whose socket has appeared, or whose socket's directory is gone: either is a reason to try.
    fn concerned(&mut self, event: &InotifyEvent) -> Vec<Weak<Shared>> {
        let is_lost = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
        let is_gone = event.mask.contains(AddWatchFlags::IN_DELETE_SELF);
        let mut concerned = Vec::new();
        for watched in self.watches.values_mut() {
            let is_it = |(directory, name): &(WatchDescriptor, OsString)| {
                *directory == event.wd && (is_gone || event.name.as_deref() == Some(OsStr::new(name)))
            };
            if is_lost || watched.sockets.iter().any(is_it) {
                concerned.push(watched.shared.clone());
            }
            if is_gone {
                watched.sockets.retain(|(directory, _)| *directory != event.wd);
            }
        }
        concerned
    }
}

/// Reads until the instance is nobody's but this thread's.
fn watch(inotify: &Arc<Inotify>) {
    loop {
        let events = match inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EINTR) => continue,
            Err(error) => return tracing::error!(%error, "inotify"),
        };
        let mut lookout = lookout();
        let known = lookout.as_mut();
        let Some(known) = known.filter(|known| Arc::ptr_eq(&known.inotify, inotify)) else {
            return;
        };
        let concerned: Vec<_> = events.iter().flat_map(|event| known.concerned(event)).collect();
        drop(lookout);
        for shared in concerned.iter().filter_map(Weak::upgrade) {
            // Whoever has ended meanwhile needs no socket.
            let _ = shared.push(Request::SocketAppeared);
        }
    }
}
