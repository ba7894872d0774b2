//! Watching the directories that the configuration is made of: those of `<includedir>` and of service files. A change there is
//! a request to read everything again, as by SIGHUP; the main file is read again only when somebody asks for it, as by the
//! reference implementation.
//!
//! The directories are watched by the child that reads them, before it does: so no change is missed, and a file system that
//! hangs holds up nobody else. The instance of inotify is shared with it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::config::files::{Disk, Files};
use crate::os::clock::{self, Nanos};
use crate::os::descriptor::close;
use crate::os::inotify;

/// Packages change many files, one after the other: it is read again when nothing has changed for so long, ...
const QUIET: Nanos = Nanos(400_000_000);
/// ... or when a change is so old.
const LONGEST: Nanos = Nanos(5_000_000_000);

/// What is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The instance of inotify; `None` where the system gives none.
    instance: Option<RawFd>,
    watched: BTreeMap<i32, Place>,
    /// The first change that was not told of, and the last.
    changed: Option<(Nanos, Nanos)>,
}

/// Why a directory is watched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its files are read.
    is_read: bool,
    /// Entries that are missing, on the way to a directory that would be read.
    missing: Vec<Vec<u8>>,
}

/// A list of directories by the numbers of their watches.
pub(crate) type Watched = BTreeMap<i32, Place>;

impl Watch {
    /// Nothing is watched yet.
    pub(crate) fn new() -> Self {
        let instance = inotify::create().inspect_err(|error| {
            tracing::warn!("changes of the configuration are not watched for: inotify: {error}");
        });
        Self {
            instance: instance.ok(),
            watched: BTreeMap::new(),
            changed: None,
        }
    }

    /// Readable when something has changed.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.instance
    }

    /// Everything was read again. `is_all`: these are all directories, and no others are to be watched.
    pub(crate) fn note_read(&mut self, watched: Watched, is_all: bool) {
        if is_all && let Some(instance) = self.instance {
            let is_over = |watch: &&i32| !watched.contains_key(watch);
            self.watched
                .keys()
                .filter(is_over)
                .for_each(|watch| inotify::forget(instance, *watch));
            self.watched.clear();
        }
        self.watched.extend(watched);
    }

    /// Takes note of changes.
    pub(crate) fn look(&mut self) {
        let Some(instance) = self.instance else { return };
        let changes = inotify::changes(instance);
        if changes.iter().any(|change| self.matters(change)) {
            let now = clock::monotonic();
            let first = self.changed.map_or(now, |(first, _)| first);
            self.changed = Some((first, now));
        }
        for change in changes.iter().filter(|change| change.is_end) {
            self.watched.remove(&change.watch);
        }
    }

    fn matters(&self, change: &inotify::Change) -> bool {
        let is_file = change.name.ends_with(b".conf") || change.name.ends_with(b".service");
        match self.watched.get(&change.watch) {
            // Changes were lost, or a child that is reading now has begun to watch it: why is not known yet. Or it is not watched
            // any more.
            None => change.watch < 0 || !change.is_end,
            Some(place) => {
                change.name.is_empty() || (place.is_read && is_file) || place.missing.contains(&change.name)
            }
        }
    }

    /// When to read everything again, if something has changed.
    pub(crate) fn due(&self) -> Option<Nanos> {
        let (first, last) = self.changed?;
        Some((last + QUIET).min(first + LONGEST))
    }

    /// Whether it is time to read everything again. True only once for each change.
    pub(crate) fn take_due(&mut self) -> bool {
        let is_due = self.due().is_some_and(|due| due <= clock::monotonic());
        if is_due {
            self.changed = None;
        }
        is_due
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.instance.into_iter().for_each(close);
    }
}

/// The disk, of which the directories that are read are watched from before that on.
pub(crate) struct WatchedDisk {
    instance: Option<RawFd>,
    watched: Mutex<Watched>,
}

impl WatchedDisk {
    pub(crate) fn new(instance: Option<RawFd>) -> Self {
        Self {
            instance,
            watched: Mutex::default(),
        }
    }

    /// What was watched.
    pub(crate) fn into_watched(self) -> Watched {
        self.watched.into_inner().unwrap_or_default()
    }

    fn watch(&self, directory: &Path) {
        let Some(instance) = self.instance else { return };
        let mut missing = None;
        for directory in directory.ancestors() {
            let events = if missing.is_none() {
                inotify::CONTENTS
            } else {
                inotify::ARRIVALS
            };
            match inotify::watch(instance, directory, events) {
                Ok(watch) => return self.note(watch, missing),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    use std::os::unix::ffi::OsStrExt;
                    missing = directory.file_name().map(|name| name.as_bytes().to_vec());
                }
                // Nobody can read it either, or the system watches no more.
                Err(error) => return tracing::debug!("{}: {error}", directory.display()),
            }
        }
    }

    fn note(&self, watch: i32, missing: Option<Vec<u8>>) {
        let Ok(mut watched) = self.watched.lock() else {
            return;
        };
        let place = watched.entry(watch).or_default();
        match missing {
            None => place.is_read = true,
            Some(name) if !place.missing.contains(&name) => place.missing.push(name),
            Some(_) => {}
        }
    }
}

impl Files for WatchedDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Disk.read(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.watch(path);
        Disk.list(path)
    }

    fn create_private_dir(&self, path: &Path) -> io::Result<()> {
        Disk.create_private_dir(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        home: tempfile::TempDir,
        watch: Watch,
    }

    impl Rig {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            Self {
                home,
                watch: Watch::new(),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.home.path().join(name)
        }

        /// Reads this directory, as a child does it.
        fn read(&mut self, name: &str, is_all: bool) {
            let disk = WatchedDisk::new(self.watch.fd());
            let _ = disk.list(&self.path(name));
            self.watch.note_read(disk.into_watched(), is_all);
        }

        fn has_changed(&mut self) -> bool {
            self.watch.look();
            let has_changed = self.watch.due().is_some();
            self.watch.changed = None;
            has_changed
        }
    }

    #[test]
    fn files_that_come_change_and_go_are_seen_and_others_are_not() {
        let mut rig = Rig::new();
        std::fs::create_dir(rig.path("d")).unwrap();
        rig.read("d", true);
        std::fs::write(rig.path("d/a.conf.dpkg-new"), "x").unwrap();
        assert!(!rig.has_changed());
        std::fs::rename(rig.path("d/a.conf.dpkg-new"), rig.path("d/a.conf")).unwrap();
        assert!(rig.has_changed());
        std::fs::write(rig.path("d/a.conf"), "y").unwrap();
        assert!(rig.has_changed());
        std::fs::remove_file(rig.path("d/a.conf")).unwrap();
        assert!(rig.has_changed());
        std::fs::write(rig.path("d/b.service"), "").unwrap();
        assert!(rig.has_changed());
        assert!(!rig.has_changed());
    }

    /// What the child that reads has begun to watch is known when it has ended.
    #[test]
    fn what_comes_while_a_child_reads_is_seen() {
        let mut rig = Rig::new();
        let disk = WatchedDisk::new(rig.watch.fd());
        let _ = disk.list(&rig.path("conf.d"));
        std::fs::create_dir(rig.path("conf.d")).unwrap();
        assert!(rig.has_changed());
        rig.watch.note_read(disk.into_watched(), true);
        // What is not watched any more ends, which is no change.
        rig.watch.note_read(Watched::new(), true);
        assert!(!rig.has_changed());
    }

    #[test]
    fn a_directory_that_comes_or_goes_is_seen() {
        let mut rig = Rig::new();
        rig.read("a/b", true);
        std::fs::create_dir(rig.path("other")).unwrap();
        assert!(!rig.has_changed());
        std::fs::create_dir(rig.path("a")).unwrap();
        assert!(rig.has_changed());
        rig.read("a/b", true);
        std::fs::create_dir(rig.path("a/b")).unwrap();
        assert!(rig.has_changed());
        rig.read("a/b", true);
        std::fs::create_dir(rig.path("a/c")).unwrap();
        assert!(!rig.has_changed());
        std::fs::remove_dir(rig.path("a/b")).unwrap();
        assert!(rig.has_changed());
    }

    #[test]
    fn what_is_not_read_any_more_is_not_watched_unless_the_reading_failed() {
        let mut rig = Rig::new();
        std::fs::create_dir(rig.path("a")).unwrap();
        std::fs::create_dir(rig.path("b")).unwrap();
        rig.read("a", true);
        rig.read("b", false);
        std::fs::write(rig.path("a/x.conf"), "").unwrap();
        assert!(rig.has_changed());
        rig.read("b", true);
        std::fs::write(rig.path("a/y.conf"), "").unwrap();
        assert!(!rig.has_changed());
        std::fs::write(rig.path("b/y.conf"), "").unwrap();
        assert!(rig.has_changed());
    }
}
