//! The keeper's side of a trial: the new binary, as a child, tries whether it can take over.
//!
//! The child opens the binary, since that may take as long as the file system takes, checks it, sends the descriptor to
//! the keeper and executes it. So what is tried is what is executed later.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::binary::Binary;
use super::check::approval;
use super::exec;
use super::helper::{Helper, HelperEnd, describe, socketpair};
use crate::handoff::keeper::KeeperV1;
use crate::os::clock::Nanos;
use crate::os::descriptor::{borrow, close, set_close_on_exec};
use crate::os::memfd;

/// How long the new binary may take.
const PATIENCE: Nanos = Nanos(20_000_000_000);
/// How much of what it prints is read.
const MOST_OUTPUT: usize = 16 * 1024;
/// Characters of a line of it that are told.
const MOST_LINE: usize = 500;
/// Bytes of the longest report of the child about the binary.
const MOST_REPORT: usize = 8 * 1024;

/// A trial under way. Dropped, it leaves nothing behind.
pub(crate) struct Trial {
    helper: Helper,
    path: PathBuf,
    /// What the child prints; `None` once it has closed it.
    output: Option<File>,
    said: Vec<u8>,
    /// Where the child reports what became of the binary; `None` once it has executed it.
    reports: Option<OwnedFd>,
    binary: Option<Binary>,
    /// Why the binary is not executed at all.
    refusal: Option<String>,
    expected: String,
    /// The snapshot it is tried on.
    image: RawFd,
    /// The keeper's record it is tried on.
    saved: RawFd,
}

impl Trial {
    /// Starts `path` with `--check-upgrade`. `image` is this trial's from now on, also where it fails.
    pub(crate) fn start(path: &Path, record: &KeeperV1, own_binary: RawFd, image: RawFd) -> Result<Self> {
        let mut record = record.handed_to(path, own_binary);
        record.image = image;
        let saved = record.save().inspect_err(|_| close(image))?;
        Self::start_on(path, &record, saved, image).inspect_err(|_| {
            close(saved);
            close(image);
        })
    }

    fn start_on(path: &Path, record: &KeeperV1, saved: RawFd, image: RawFd) -> Result<Self> {
        let expected = approval(&memfd::read(image)?);
        let (output, input) = std::io::pipe()?;
        let (reports, reporter) = socketpair()?;
        let kept = [input.as_raw_fd(), reporter.as_raw_fd(), saved, image];
        let helper = Helper::fork(PATIENCE, &kept, || {
            set_close_on_exec(saved, false);
            set_close_on_exec(image, false);
            let arguments = exec::arguments(record, &[format!("--check-upgrade={saved}")]);
            let failed = redirect(input.as_raw_fd())
                .map_err(|error| format!("{}: {error}", path.display()))
                .and_then(|()| Binary::open(path).map_err(|error| error.to_string()))
                .and_then(|binary| {
                    report(&reporter, "", Some(&binary))
                        .map_err(|error| format!("{}: {error}", path.display()))?;
                    Err::<(), String>(binary.execute(&arguments).to_string())
                });
            let _ = failed.map_err(|reason| report(&reporter, &reason, None));
            1
        })?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            helper,
            path: path.to_owned(),
            output: Some(File::from(OwnedFd::from(output))),
            said: Vec::new(),
            reports: Some(reports),
            binary: None,
            refusal: None,
            expected,
            image,
            saved,
        })
    }

    /// What this process has open for it.
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        let files = self.output.iter().map(AsRawFd::as_raw_fd);
        let sockets = self.reports.iter().map(AsRawFd::as_raw_fd);
        let binary = self.binary.iter().map(Binary::fd);
        let memory = [self.image, self.saved];
        files.chain(sockets).chain(binary).chain(memory).collect()
    }

    /// Readable when there is something to do. `may_open`: this process may open descriptors now.
    pub(crate) fn sources(&self, may_open: bool) -> Vec<RawFd> {
        let output = self.output.iter().map(AsRawFd::as_raw_fd);
        let reports = self.reports.iter().filter(|_| may_open).map(AsRawFd::as_raw_fd);
        output.chain(reports).collect()
    }

    /// When to look at it at the latest.
    pub(crate) fn due(&self) -> Option<Nanos> {
        self.helper.due()
    }

    /// Takes note of the end of a process, if it is the child.
    pub(crate) fn note_end(&mut self, ended: Pid, status: WaitStatus) -> bool {
        self.helper.note_end(ended, status)
    }

    /// Goes on: the binary, or why it cannot take over, once that is known.
    pub(crate) fn follow(&mut self, may_open: bool) -> Option<std::result::Result<Binary, String>> {
        self.helper.check_time();
        self.listen();
        if may_open {
            self.take_reports();
        }
        let end = self.helper.end()?;
        // A child that could not be killed may never close its end.
        if self.reports.is_some() && end != HelperEnd::Late {
            return None;
        }
        Some(self.verdict(end))
    }

    /// Takes in what the child has said.
    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(output) = &mut self.output {
            match output.read(&mut buffer) {
                Ok(len) if len > 0 => {
                    let room = MOST_OUTPUT.saturating_sub(self.said.len());
                    self.said.extend_from_slice(&buffer[..len.min(room)]);
                    if room == 0 {
                        // It prints for ever: no bus daemon.
                        self.helper.kill();
                        self.output = None;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => self.output = None,
            }
        }
    }

    /// Takes in what became of the binary, to the end: that it is executed.
    fn take_reports(&mut self) {
        while let Some(reports) = &self.reports {
            match receive(reports) {
                Ok(Some((_, Some(fd)))) => match Binary::received(&self.path, fd) {
                    Ok(binary) => self.binary = Some(binary),
                    Err(error) => self.refusal = Some(error.to_string()),
                },
                Ok(Some((reason, None))) => self.refusal = Some(self.refused(&reason)),
                Ok(None) => self.reports = None,
                Err(Errno::EAGAIN) => return,
                Err(errno) => {
                    self.refusal = Some(format!("{}: {errno}", self.path.display()));
                    self.reports = None;
                }
            }
        }
    }

    /// Why the child says that it does not execute the binary. It says nothing where it sent the descriptor instead, and
    /// that did not arrive.
    fn refused(&self, reason: &str) -> String {
        match printable(reason) {
            reason if reason.is_empty() => {
                format!(
                    "{} was opened, and its descriptor did not arrive (no room in the table of open files?)",
                    self.path.display()
                )
            }
            reason => reason,
        }
    }

    fn verdict(&mut self, end: HelperEnd) -> std::result::Result<Binary, String> {
        let said = String::from_utf8_lossy(&self.said);
        let path = self.path.display();
        if let Some(reason) = &self.refusal {
            return Err(reason.clone());
        }
        let HelperEnd::Ended(status) = end else {
            return Err(format!(
                "{path} did not check the state within {} s",
                PATIENCE.0 / 1_000_000_000
            ));
        };
        let is_success = matches!(status, WaitStatus::Exited(_, 0));
        if !is_success {
            let why = last_words(&said);
            let why = if why.is_empty() { "it said nothing" } else { &why };
            return Err(format!(
                "{path} refused the state (it {}): {why}",
                describe(status)
            ));
        }
        if !said.lines().any(|line| line == self.expected) {
            return Err(format!(
                "{path} is not a bus daemon that can take over: it did not confirm the state"
            ));
        }
        self.binary
            .take()
            .ok_or_else(|| format!("{path} was tried, and its descriptor did not arrive"))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.helper.abandon();
        close(self.image);
        close(self.saved);
    }
}

/// The last lines of what a binary printed, in one; of long ones the beginning.
fn last_words(said: &str) -> String {
    let lines: Vec<String> = said
        .lines()
        .map(|line| shortened(&printable(line)))
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(4)..].join("; ")
}

/// A line that may be part of an error's text and of the log: a binary may print anything, and a D-Bus string has no NUL
/// (specification, "Basic types").
fn printable(line: &str) -> String {
    line.trim().replace(
        char::is_control,
        char::REPLACEMENT_CHARACTER.encode_utf8(&mut [0; 4]),
    )
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(MOST_LINE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// In the child: standard input is empty, and what it prints goes to the keeper.
fn redirect(output: RawFd) -> Result<()> {
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(borrow(output))?;
    nix::unistd::dup2_stderr(borrow(output))?;
    Ok(())
}

/// In the child: the binary, opened, or why it is not executed.
fn report(to: &OwnedFd, reason: &str, binary: Option<&Binary>) -> Result<()> {
    let fds: Vec<RawFd> = binary.iter().map(|binary| binary.file().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    // Never empty: that would be the end.
    let text = format!("{reason}\n");
    let text = &text.as_bytes()[text.len().saturating_sub(MOST_REPORT)..];
    sendmsg::<()>(
        to.as_raw_fd(),
        &[IoSlice::new(text)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// A report of the child. `None` = there will be no more.
fn receive(from: &OwnedFd) -> std::result::Result<Option<(String, Option<OwnedFd>)>, Errno> {
    let mut bytes = [0; MOST_REPORT];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let len = message.bytes;
    let mut fd = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            #[expect(unsafe_code, reason = "takes descriptors that were just received")]
            // SAFETY: made by the call above, and nobody else's.
            let fds = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            fd = fds.reduce(|_, last| last).or(fd);
        }
    }
    let text = String::from_utf8_lossy(&bytes[..len]).trim_end().to_owned();
    Ok((len > 0).then_some((text, fd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_brings_the_descriptor_or_the_reason() {
        let (from, to) = socketpair().unwrap();
        let path = std::env::current_exe().unwrap();
        report(&to, "", Some(&Binary::open(&path).unwrap())).unwrap();
        report(&to, "no", None).unwrap();
        let (_, fd) = receive(&from).unwrap().unwrap();
        Binary::received(&path, fd.unwrap())
            .unwrap()
            .check_again()
            .unwrap();
        let (reason, fd) = receive(&from).unwrap().unwrap();
        assert_eq!((reason.as_str(), fd.is_none()), ("no", true));
        assert_eq!(receive(&from).unwrap_err(), Errno::EAGAIN);
        drop(to);
        assert!(receive(&from).unwrap().is_none());
    }

    #[test]
    fn what_a_binary_prints_becomes_one_line_of_text_whatever_it_is() {
        assert_eq!(last_words("a\n\n b \nc\nd\ne\n"), "b; c; d; e");
        assert_eq!(last_words("\n \n\t\n"), "");
        assert_eq!(
            last_words("nul\0, escape\x1b[31m"),
            "nul\u{fffd}, escape\u{fffd}[31m"
        );
        assert_eq!(
            last_words(&"\u{e4}".repeat(MOST_LINE)),
            "\u{e4}".repeat(MOST_LINE)
        );
        let long = last_words(&"\u{e4}".repeat(MOST_REPORT));
        assert_eq!(long, "\u{e4}".repeat(MOST_LINE) + "...");
    }
}
