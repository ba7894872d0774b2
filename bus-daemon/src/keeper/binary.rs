//! The file that an upgrade executes: opened once, so that what is tried is what is executed.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::os::descriptor::set_close_on_exec;

/// In the environment of a script: the descriptor that its interpreter reads it from, to be closed by the daemon.
const SCRIPT: &str = "BUS_DAEMON_SCRIPT_FD";

/// A binary that may be executed, or not: whose fault that is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BinaryError {
    /// The system does not let this process open or look at it.
    #[error("cannot open {}: {error}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        error: Error,
    },
    /// The caller names something that cannot be executed.
    #[error("{} is {what} and not a regular file", path.display())]
    NotAFile {
        /// Its path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Somebody owns it who could make the bus execute anything.
    #[error("{} belongs to the user {owner}; it must belong to root or to the bus's own user {own}", path.display())]
    Owner {
        /// Its path.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// The bus's user.
        own: u32,
    },
    /// Others than its owner can write to it.
    #[error("{} can be written by {who} (mode {:04o}); the bus executes only what nobody but its owner can change", path.display(), mode & 0o7777)]
    Writable {
        /// Its path.
        path: PathBuf,
        /// Who can.
        who: &'static str,
        /// Its mode.
        mode: u32,
    },
    /// It is not what was tried.
    #[error("{} was changed after it had been tried", path.display())]
    Changed {
        /// Its path.
        path: PathBuf,
    },
    /// The system does not execute it.
    #[error("cannot execute {}: {errno}", path.display())]
    Execute {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        errno: Errno,
    },
}

/// What a file is at a moment. One that is written to has another time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// An open binary, its owner and mode checked.
#[derive(Debug)]
pub(crate) struct Binary {
    path: PathBuf,
    file: File,
    identity: Identity,
}

impl Binary {
    /// Opens `path`. It may take as long as the file system takes, so the keeper's own loop does not call this.
    pub(crate) fn open(path: &Path) -> Result<Self, BinaryError> {
        let mut options = File::options();
        // A fifo must not block.
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path).map_err(|error| BinaryError::Open {
            path: path.to_owned(),
            error,
        })?;
        Self::of(path, file)
    }

    /// What `fd` refers to, opened by another process.
    pub(crate) fn received(path: &Path, fd: OwnedFd) -> Result<Self, BinaryError> {
        Self::of(path, File::from(fd))
    }

    fn of(path: &Path, file: File) -> Result<Self, BinaryError> {
        let identity = check(path, &file)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            identity,
        })
    }

    /// The path it was opened at.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The file, as it is sent to another process.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is as it was when it was opened.
    pub(crate) fn check_again(&self) -> Result<(), BinaryError> {
        if check(&self.path, &self.file)? == self.identity {
            return Ok(());
        }
        Err(BinaryError::Changed {
            path: self.path.clone(),
        })
    }

    /// Replaces this process by it. Returns only on failure. `arguments` begin with the name.
    pub(crate) fn execute(&self, arguments: &[OsString]) -> BinaryError {
        // The interpreter of a script opens it by its descriptor.
        let is_script = is_script(&self.file);
        set_close_on_exec(self.fd(), !is_script);
        let errno = execute(&self.file, arguments, is_script.then(|| self.fd()));
        set_close_on_exec(self.fd(), true);
        BinaryError::Execute {
            path: self.path.clone(),
            errno,
        }
    }
}

/// Goes on as the binary that is open as `fd`. Returns only on failure. No path and no `/proc` is needed.
pub(crate) fn execute(binary: impl AsFd, arguments: &[OsString], script: Option<RawFd>) -> Errno {
    let text = |bytes: Vec<u8>| CString::new(bytes).unwrap_or_default();
    let arguments: Vec<CString> = arguments
        .iter()
        .map(|argument| text(argument.clone().into_vec()))
        .collect();
    let environment = std::env::vars_os()
        .filter(|(name, _)| name != SCRIPT)
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
        .chain(script.map(|fd| format!("{SCRIPT}={fd}").into_bytes()));
    let environment: Vec<CString> = environment.map(text).collect();
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    match nix::unistd::execveat(binary, c"", &arguments, &environment, flags) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// After an upgrade to a script, which executed this binary in turn: lets go of the descriptor of the script.
pub(crate) fn close_script() {
    let Some(fd) = std::env::var(SCRIPT).ok().and_then(|text| text.parse().ok()) else {
        return;
    };
    if fd > 2 {
        crate::os::descriptor::close(fd);
    }
}

/// Owner and mode of an open file, and what it is.
///
/// Its owner is root or the bus's own user. Nobody else can write to it; a group can where its number is that of the
/// owner: it is the owner's private group, the default of many distributions.
fn check(path: &Path, file: &File) -> Result<Identity, BinaryError> {
    let metadata = file.metadata().map_err(|error| BinaryError::Open {
        path: path.to_owned(),
        error,
    })?;
    if !metadata.is_file() {
        return Err(BinaryError::NotAFile {
            path: path.to_owned(),
            what: kind_of(metadata.file_type()),
        });
    }
    let own = nix::unistd::geteuid().as_raw();
    check_owner(path, metadata.uid(), metadata.gid(), metadata.mode(), own)?;
    Ok(Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

fn check_owner(path: &Path, owner: u32, group: u32, mode: u32, own: u32) -> Result<(), BinaryError> {
    if owner != 0 && owner != own {
        return Err(BinaryError::Owner {
            path: path.to_owned(),
            owner,
            own,
        });
    }
    let writable = |who| {
        Err(BinaryError::Writable {
            path: path.to_owned(),
            who,
            mode,
        })
    };
    if mode & 0o002 != 0 {
        return writable("everybody");
    }
    if mode & 0o020 != 0 && group != owner {
        return writable("a group");
    }
    Ok(())
}

fn kind_of(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a fifo"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

fn is_script(file: &File) -> bool {
    let mut begin = [0; 2];
    file.read_exact_at(&mut begin, 0).is_ok() && begin == *b"#!"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_and_root_may_be_able_to_change_it() {
        let check = |owner, group, mode| check_owner(Path::new("/b"), owner, group, mode, 1000).is_ok();
        assert!(check(0, 0, 0o755) && check(1000, 1000, 0o755) && check(0, 5, 0o755));
        // A group of the owner's own.
        assert!(check(1000, 1000, 0o775) && check(0, 0, 0o775));
        assert!(!check(1000, 100, 0o775) && !check(0, 1000, 0o775));
        assert!(!check(1001, 1001, 0o755));
        assert!(!check(0, 0, 0o757) && !check(1000, 1000, 0o702));
    }
}
