//! The keeper's side of a preflight: the new binary, as a child, tries whether it can take over.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Error, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::check::approval;
use crate::os::clock::{self, Nanos};
use crate::os::{descriptor, process};

/// How long the new binary may take.
const PATIENCE: Nanos = Nanos(20_000_000_000);
/// How much of what it prints is read.
const MOST_OUTPUT: usize = 16 * 1024;

/// Which file a path named: the binary that is started later must be the one that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileIdentity {
    pub(crate) fn of(path: &Path) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// A preflight under way.
pub(crate) struct Preflight {
    child: Child,
    output: Option<File>,
    said: Vec<u8>,
    deadline: Nanos,
    timed_out: bool,
    expected: String,
    /// The binary that is being tried.
    pub(crate) binary: PathBuf,
    /// What the path named when it was.
    pub(crate) identity: FileIdentity,
    /// The snapshot it is tried on.
    pub(crate) image: RawFd,
    /// The keeper's record it is tried on.
    pub(crate) record: RawFd,
}

impl Preflight {
    /// Starts `binary` with `--check-upgrade=RECORD`.
    #[expect(unsafe_code, reason = "the child sets close-on-exec between fork and exec")]
    pub(crate) fn start(
        binary: &Path,
        arguments: &[OsString],
        record: RawFd,
        image: RawFd,
    ) -> Result<Self, String> {
        let refuse = |error: Error| format!("cannot run {}: {error}", binary.display());
        let identity = FileIdentity::of(binary).map_err(refuse)?;
        let expected = approval(&crate::os::memfd::read(image).map_err(refuse)?);
        let (output, input) = std::io::pipe().map_err(refuse)?;
        let mut command = Command::new(binary);
        command
            .arg("daemon")
            .args(arguments)
            .arg(format!("--check-upgrade={record}"))
            .stdin(Stdio::null())
            .stdout(Stdio::from(OwnedFd::from(input.try_clone().map_err(refuse)?)))
            .stderr(Stdio::from(OwnedFd::from(input)));
        use std::os::unix::process::CommandExt;
        // SAFETY: only system calls between fork and exec; the child's table is its own.
        unsafe {
            command.pre_exec(move || {
                descriptor::close_on_exec_from(3)?;
                process::reset_signals()?;
                for fd in [record, image] {
                    // SAFETY: open in this process.
                    let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(refuse)?;
        drop(command);
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| refuse(errno.into()))?;
        Ok(Self {
            child,
            output: Some(File::from(OwnedFd::from(output))),
            said: Vec::new(),
            deadline: clock::monotonic() + PATIENCE,
            timed_out: false,
            expected,
            binary: binary.to_owned(),
            identity,
            image,
            record,
        })
    }

    /// Readable when the child has said something; `None` once it has closed its output.
    pub(crate) fn output_fd(&self) -> Option<RawFd> {
        self.output.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The child.
    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    /// When to call [`check_time`](Self::check_time).
    pub(crate) fn deadline(&self) -> Nanos {
        self.deadline
    }

    /// Ends a child that takes too long.
    pub(crate) fn check_time(&mut self) {
        if clock::monotonic() >= self.deadline && !self.timed_out {
            self.timed_out = true;
            let _ = self.child.kill();
        }
    }

    /// Ends the child: nobody waits for its verdict.
    pub(crate) fn abandon(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Takes in what the child has said.
    pub(crate) fn listen(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(output) = &mut self.output {
            match output.read(&mut buffer) {
                Ok(len) if len > 0 => {
                    let room = MOST_OUTPUT.saturating_sub(self.said.len());
                    self.said.extend_from_slice(&buffer[..len.min(room)]);
                    if room == 0 {
                        // It prints for ever: no bus daemon.
                        let _ = self.child.kill();
                        self.output = None;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => self.output = None,
            }
        }
    }

    /// The verdict, if the child has exited.
    pub(crate) fn verdict(&mut self) -> Option<Result<(), String>> {
        let status = match self.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            Err(error) => return Some(Err(format!("lost sight of {}: {error}", self.binary.display()))),
        };
        self.listen();
        let said = String::from_utf8_lossy(&self.said);
        let binary = self.binary.display();
        if self.timed_out {
            return Some(Err(format!(
                "{binary} did not check the state within {} s",
                PATIENCE.0 / 1_000_000_000
            )));
        }
        if status.success() && said.lines().any(|line| line == self.expected) {
            return Some(Ok(()));
        }
        if status.success() {
            return Some(Err(format!(
                "{binary} is not a bus daemon that can take over: it did not confirm the state"
            )));
        }
        let why: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let why = why[why.len().saturating_sub(4)..].join("; ");
        let why = if why.is_empty() {
            "it said nothing".into()
        } else {
            why
        };
        Some(Err(format!("{binary} refused the state ({status}): {why}")))
    }
}
