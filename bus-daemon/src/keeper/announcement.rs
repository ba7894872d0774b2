//! Telling the world that the bus serves: the address, the process id, the pid file, the parent in the foreground. All of
//! it comes only once the first worker serves.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::ForkResult;

use super::error::{KeeperError, PidFileError};
use super::helper::{Helper, socketpair};
use crate::os::clock::Nanos;

/// How long at most a process that may write the pid file waits for the bus to serve.
const PATIENCE: Nanos = Nanos(600_000_000_000);

/// What is still to be said.
pub(crate) struct Announcement {
    addresses: String,
    /// Where the addresses are wanted.
    address_to: Option<RawFd>,
    /// Where the process id is wanted.
    pid_to: Option<RawFd>,
    pid_file: Option<PidFile>,
    /// The parent in the foreground waits at the other end.
    foreground: Option<OwnedFd>,
}

/// How the pid file is written.
enum PidFile {
    /// By this process.
    Here(PathBuf),
    /// By a child that kept the right to, since this process has become another user.
    ByHelper(PathBuf, OwnedFd),
}

impl Announcement {
    /// Of these addresses, joined with `;`.
    pub(crate) fn new(addresses: String, address_to: Option<RawFd>, pid_to: Option<RawFd>) -> Self {
        Self {
            addresses,
            address_to,
            pid_to,
            pid_file: None,
            foreground: None,
        }
    }

    /// The pid file is to be written, too. `may_lose_rights`: this process is about to become another user.
    pub(crate) fn with_pid_file(mut self, path: &Path, may_lose_rights: bool) -> Result<Self, KeeperError> {
        self.pid_file = Some(if may_lose_rights {
            let end = start_helper(path)
                .map_err(|error| KeeperError::system("cannot start a process for the pid file", error))?;
            PidFile::ByHelper(path.to_owned(), end)
        } else {
            PidFile::Here(path.to_owned())
        });
        Ok(self)
    }

    /// The parent in the foreground is to be told, too.
    pub(crate) fn with_foreground(mut self, foreground: Option<OwnedFd>) -> Self {
        self.foreground = foreground;
        self
    }

    /// What is open for it: a worker's sweep keeps it.
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        let helper = match &self.pid_file {
            Some(PidFile::ByHelper(_, end)) => Some(end.as_raw_fd()),
            Some(PidFile::Here(_)) | None => None,
        };
        let foreground = self.foreground.as_ref().map(AsRawFd::as_raw_fd);
        let told = self.address_to.into_iter().chain(self.pid_to);
        told.chain(helper).chain(foreground).collect()
    }

    /// The bus serves: says so.
    pub(crate) fn make(self) -> Result<(), KeeperError> {
        if let Some(file) = self.pid_file {
            file.write().map_err(|PidFileError { path, error }| {
                KeeperError::system(format!("cannot write the pid file {}", path.display()), error)
            })?;
        }
        if let Some(fd) = self.address_to {
            tell(fd, &self.addresses)?;
        }
        if let Some(fd) = self.pid_to {
            tell(fd, &std::process::id().to_string())?;
        }
        let given = self.address_to.into_iter().chain(self.pid_to);
        for fd in given.filter(|fd| *fd > 2) {
            // Whoever reads there reads to the end. The same descriptor may have been given for both.
            crate::os::descriptor::close(fd);
        }
        if let Some(foreground) = self.foreground {
            leave_terminal();
            let _ = File::from(foreground).write_all(b"ready");
        }
        Ok(())
    }
}

impl PidFile {
    fn write(self) -> Result<(), PidFileError> {
        let (path, written) = match self {
            Self::Here(path) => {
                let written = write_pid(&path, std::process::id());
                (path, written)
            }
            Self::ByHelper(path, end) => {
                let mut end = File::from(end);
                let mut answer = String::new();
                let asked = end
                    .write_all(b"serves")
                    .and_then(|()| end.read_to_string(&mut answer));
                let written = asked.and_then(|_| match answer.as_str() {
                    "written" => Ok(()),
                    other => Err(std::io::Error::other(other.to_owned())),
                });
                (path, written)
            }
        };
        written.map_err(|error| PidFileError { path, error })
    }
}

fn write_pid(path: &Path, pid: u32) -> std::io::Result<()> {
    std::fs::write(path, format!("{pid}\n"))
}

/// A child that keeps the rights of this process until it is told that the bus serves.
fn start_helper(path: &Path) -> std::io::Result<OwnedFd> {
    let (end, other) = socketpair()?;
    let pid = std::process::id();
    Helper::fork(PATIENCE, &[other.as_raw_fd()], || {
        let mut other = ManuallyDrop::new(File::from(other));
        let mut told = [0; 16];
        let Ok(6) = other.read(&mut told) else { return 1 };
        let answer = write_pid(path, pid).map_or_else(|error| error.to_string(), |()| "written".into());
        i32::from(other.write_all(answer.as_bytes()).is_err())
    })?;
    Ok(end)
}

fn tell(fd: RawFd, line: &str) -> Result<(), KeeperError> {
    #[expect(unsafe_code, reason = "a descriptor given by number")]
    // SAFETY: ManuallyDrop keeps it open here; it is closed once both lines are written.
    let mut file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    // In one write: some launchers read only once.
    file.write_all(format!("{line}\n").as_bytes())
        .map_err(|error| KeeperError::system(format!("cannot write to descriptor {fd}"), error))
}

/// Which of two processes this is, after leaving the foreground.
pub(crate) enum Side {
    /// The one in the foreground: the daemon serves.
    Foreground,
    /// The daemon, with the end at which the foreground waits.
    Daemon(OwnedFd),
}

/// Leaves the foreground; the parent returns only when the child serves or has failed.
#[expect(unsafe_code, reason = "fork of a single-threaded process")]
pub(crate) fn leave_foreground(keep_umask: bool) -> Result<Side, KeeperError> {
    let (reader, writer) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| KeeperError::system("pipe", errno))?;
    // SAFETY: the process has one thread.
    match unsafe { nix::unistd::fork() }.map_err(|errno| KeeperError::system("fork", errno))? {
        ForkResult::Parent { .. } => {
            drop(writer);
            let mut answer = Vec::new();
            let read = File::from(reader).read_to_end(&mut answer);
            if read.is_ok() && answer == b"ready" {
                Ok(Side::Foreground)
            } else {
                Err(KeeperError::NotReady)
            }
        }
        ForkResult::Child => {
            drop(reader);
            let _ = nix::unistd::setsid();
            if !keep_umask {
                nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
            }
            // The working directory stays: a reload finds a configuration file named relative to it.
            Ok(Side::Daemon(writer))
        }
    }
}

/// The standard descriptors lead nowhere from here on. The worker has the same.
fn leave_terminal() {
    if let Ok(null) = nix::fcntl::open("/dev/null", OFlag::O_RDWR, nix::sys::stat::Mode::empty()) {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
        if null.as_raw_fd() <= 2 {
            let _ = null.into_raw_fd();
        }
        crate::os::log::follow();
    }
}
