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
use super::check::{self, NOTE, approval};
use super::exec;
use super::helper::{Helper, HelperEnd, describe, socketpair};
use crate::handoff::form::{Form, Reads};
use crate::handoff::image::ImageError;
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
///
/// ```text
///  in this build's own form ──> the binary reads it, or not ──────────────────> verdict
///            │                                                                    ^
///            └── it reads an older form, or has another store: in that form ──────┘
/// ```
pub(crate) struct Trial {
    path: PathBuf,
    form: Form,
    attempt: Attempt,
    record: KeeperV1,
    /// The snapshot it is tried on.
    image: RawFd,
    /// The keeper's record it is tried on.
    saved: RawFd,
}

/// A binary that can take over.
pub(crate) struct Passed {
    pub(crate) binary: Binary,
    /// The form of the state that it reads.
    pub(crate) form: Form,
}

/// One run of the binary.
struct Attempt {
    helper: Helper,
    /// What the child prints; `None` once it has closed it.
    output: Option<File>,
    said: Vec<u8>,
    /// Where the child reports what became of the binary; `None` once it has executed it.
    reports: Option<OwnedFd>,
    binary: Option<Binary>,
    /// Why the binary is not executed at all.
    refusal: Option<String>,
    /// The line by which the binary says that all is well.
    expected: String,
}

impl Trial {
    /// Starts `path` with `--check-upgrade`. `image` is this trial's from now on, also where it fails.
    pub(crate) fn start(path: &Path, record: &KeeperV1, own_binary: RawFd, image: RawFd) -> Result<Self> {
        let mut record = record.handed_to(path, own_binary);
        record.image = image;
        let saved = record.save().inspect_err(|_| close(image))?;
        let attempt = Attempt::start(path, &record, saved).inspect_err(|_| {
            close(saved);
            close(image);
        })?;
        Ok(Self {
            path: path.to_owned(),
            form: Form::OWN,
            attempt,
            record,
            image,
            saved,
        })
    }

    /// What this process has open for it.
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        let files = self.attempt.output.iter().map(AsRawFd::as_raw_fd);
        let sockets = self.attempt.reports.iter().map(AsRawFd::as_raw_fd);
        let binary = self.attempt.binary.iter().map(Binary::fd);
        let memory = [self.image, self.saved];
        files.chain(sockets).chain(binary).chain(memory).collect()
    }

    /// Readable when there is something to do. `may_open`: this process may open descriptors now.
    pub(crate) fn sources(&self, may_open: bool) -> Vec<RawFd> {
        let output = self.attempt.output.iter().map(AsRawFd::as_raw_fd);
        let reports = self.attempt.reports.iter();
        let reports = reports.filter(|_| may_open).map(AsRawFd::as_raw_fd);
        output.chain(reports).collect()
    }

    /// When to look at it at the latest.
    pub(crate) fn due(&self) -> Option<Nanos> {
        self.attempt.helper.due()
    }

    /// Takes note of the end of a process, if it is the child.
    pub(crate) fn note_end(&mut self, ended: Pid, status: WaitStatus) -> bool {
        self.attempt.helper.note_end(ended, status)
    }

    /// Goes on: the binary, or why it cannot take over, once that is known.
    pub(crate) fn follow(&mut self, may_open: bool) -> Option<std::result::Result<Passed, String>> {
        loop {
            let verdict = self.attempt.follow(&self.path, may_open)?;
            let reason = match verdict {
                Ok(binary) => {
                    let form = self.form;
                    return Some(Ok(Passed { binary, form }));
                }
                Err(reason) => reason,
            };
            let Some(form) = self.older_form(&reason) else {
                return Some(Err(reason));
            };
            if !may_open {
                return None;
            }
            tracing::info!("{} is tried again, with a state of {form}", self.path.display());
            match Attempt::in_form(&self.path, &self.record, form) {
                Ok(attempt) => (self.form, self.attempt) = (form, attempt),
                Err(error) => return Some(Err(format!("cannot try {}: {error}", self.path.display()))),
            }
        }
    }

    /// The form that the binary reads, where all that is wrong is that it does not read this build's own.
    fn older_form(&self, reason: &str) -> Option<Form> {
        let is_first = self.form == Form::OWN;
        let form = match Reads::found_in(&String::from_utf8_lossy(&self.attempt.said)) {
            Some(reads) => Form::for_reader(&reads),
            // From before they said that.
            None if reason.contains(ImageError::TOO_NEW) => Form::for_silent_reader(),
            None => None,
        };
        form.filter(|form| is_first && *form != Form::OWN)
    }
}

impl Attempt {
    /// With the keeper's record in `saved`, and the image that it names.
    fn start(path: &Path, record: &KeeperV1, saved: RawFd) -> Result<Self> {
        let expected = approval(&memfd::read(record.image)?);
        Self::fork(path, record, &[saved, record.image], expected, |_| Ok(saved))
    }

    /// With that image in another form. The child makes it: that takes as long as there is state.
    fn in_form(path: &Path, record: &KeeperV1, form: Form) -> Result<Self> {
        let mut other = record.clone();
        let kept = [record.image];
        Self::fork(path, record, &kept, String::new(), move |reporter| {
            let image = memfd::read(other.image).map_err(|error| error.to_string())?;
            let converted = check::in_form(&image, form)?;
            let expected = approval(&converted);
            let system = |error: std::io::Error| error.to_string();
            report(reporter, &Report::Expect(expected)).map_err(system)?;
            other.image = memfd::write(c"bus-state", &converted).map_err(system)?;
            other.save().map_err(system)
        })
    }

    /// `prepare` gives, in the child, the memfd with the keeper's record.
    fn fork(
        path: &Path,
        record: &KeeperV1,
        kept: &[RawFd],
        expected: String,
        prepare: impl FnOnce(&OwnedFd) -> std::result::Result<RawFd, String>,
    ) -> Result<Self> {
        let (output, input) = std::io::pipe()?;
        let (reports, reporter) = socketpair()?;
        let mut open = vec![input.as_raw_fd(), reporter.as_raw_fd()];
        open.extend_from_slice(kept);
        let helper = Helper::fork(PATIENCE, &open, || {
            for fd in kept {
                set_close_on_exec(*fd, false);
            }
            let about_path = |error: std::io::Error| format!("{}: {error}", path.display());
            let failed = redirect(input.as_raw_fd())
                .map_err(about_path)
                .and_then(|()| Binary::open(path).map_err(|error| error.to_string()))
                .and_then(|binary| {
                    let saved = prepare(&reporter)
                        .map_err(|why| format!("{} cannot be tried: {why}", path.display()))?;
                    report(&reporter, &Report::Opened(&binary)).map_err(about_path)?;
                    let arguments = exec::arguments(record, &[format!("--check-upgrade={saved}")]);
                    Err::<(), String>(binary.execute(&arguments).to_string())
                });
            let _ = failed.map_err(|reason| report(&reporter, &Report::Refused(reason)));
            1
        })?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            helper,
            output: Some(File::from(OwnedFd::from(output))),
            said: Vec::new(),
            reports: Some(reports),
            binary: None,
            refusal: None,
            expected,
        })
    }

    /// Goes on: the binary, or why it cannot take over, once that is known.
    fn follow(&mut self, path: &Path, may_open: bool) -> Option<std::result::Result<Binary, String>> {
        self.helper.check_time();
        self.listen();
        if may_open {
            self.take_reports(path);
        }
        let end = self.helper.end()?;
        // A child that could not be killed may never close its end.
        if self.reports.is_some() && end != HelperEnd::Late {
            return None;
        }
        Some(self.verdict(path, end))
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
    fn take_reports(&mut self, path: &Path) {
        while let Some(reports) = &self.reports {
            match receive(reports) {
                Ok(Some(Heard::Opened(Some(fd)))) => match Binary::received(path, fd) {
                    Ok(binary) => self.binary = Some(binary),
                    Err(error) => self.refusal = Some(error.to_string()),
                },
                Ok(Some(Heard::Opened(None))) => {
                    self.refusal = Some(format!(
                        "{} was opened, and its descriptor did not arrive (no room in the table of open files?)",
                        path.display()
                    ));
                }
                Ok(Some(Heard::Refused(reason))) => self.refusal = Some(printable(&reason)),
                Ok(Some(Heard::Expect(line))) => self.expected = line,
                Ok(None) => self.reports = None,
                Err(Errno::EAGAIN) => return,
                Err(errno) => {
                    self.refusal = Some(format!("{}: {errno}", path.display()));
                    self.reports = None;
                }
            }
        }
    }

    fn verdict(&mut self, path: &Path, end: HelperEnd) -> std::result::Result<Binary, String> {
        let said = String::from_utf8_lossy(&self.said);
        let path = path.display();
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
        for note in said.lines().filter_map(|line| line.strip_prefix(NOTE)) {
            tracing::warn!("{path}: {}", shortened(&printable(note)));
        }
        self.binary
            .take()
            .ok_or_else(|| format!("{path} was tried, and its descriptor did not arrive"))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.helper.abandon();
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.attempt.helper.abandon();
        close(self.image);
        close(self.saved);
    }
}

/// The last lines of what a binary printed, in one; of long ones the beginning.
fn last_words(said: &str) -> String {
    let lines: Vec<String> = said
        .lines()
        .filter(|line| line.parse::<Reads>().is_err())
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
    let empty = match File::open("/dev/null") {
        Ok(null) => null.into(),
        // There need not be any devices.
        Err(_) => std::io::pipe().map(|(reader, _)| reader.into())?,
    };
    let empty: OwnedFd = empty;
    nix::unistd::dup2_stdin(&empty)?;
    nix::unistd::dup2_stdout(borrow(output))?;
    nix::unistd::dup2_stderr(borrow(output))?;
    Ok(())
}

/// What the child reports.
enum Report<'a> {
    /// The binary, opened: it is executed now.
    Opened(&'a Binary),
    /// Why it is not executed.
    Refused(String),
    /// The line that the binary prints if all is well.
    Expect(String),
}

/// A report, as it arrives.
#[derive(Debug)]
enum Heard {
    Opened(Option<OwnedFd>),
    Refused(String),
    Expect(String),
}

/// In the child: a message, which is never empty (that would be the end).
fn report(to: &OwnedFd, report: &Report<'_>) -> Result<()> {
    let (kind, text, binary) = match report {
        Report::Opened(binary) => (b'o', "", Some(*binary)),
        Report::Refused(reason) => (b'r', reason.as_str(), None),
        Report::Expect(line) => (b'e', line.as_str(), None),
    };
    let fds: Vec<RawFd> = binary.iter().map(|binary| binary.file().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let text = &text.as_bytes()[..text.len().min(MOST_REPORT - 1)];
    sendmsg::<()>(
        to.as_raw_fd(),
        &[IoSlice::new(&[kind]), IoSlice::new(text)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// A report of the child. `None` = there will be no more.
fn receive(from: &OwnedFd) -> std::result::Result<Option<Heard>, Errno> {
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
    let Some((kind, text)) = bytes[..len].split_first() else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(text).into_owned();
    Ok(Some(match kind {
        b'o' => Heard::Opened(fd),
        b'e' => Heard::Expect(text),
        _ => Heard::Refused(text),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_brings_the_descriptor_or_the_reason() {
        let (from, to) = socketpair().unwrap();
        let path = std::env::current_exe().unwrap();
        let binary = Binary::open(&path).unwrap();
        let reports = [
            Report::Opened(&binary),
            Report::Expect("ok".into()),
            Report::Refused("no".into()),
            Report::Refused("x".repeat(2 * MOST_REPORT)),
        ];
        for one in &reports {
            report(&to, one).unwrap();
        }
        let next = || receive(&from).unwrap().unwrap();
        let Heard::Opened(Some(fd)) = next() else {
            panic!("no descriptor")
        };
        Binary::received(&path, fd).unwrap().check_again().unwrap();
        assert!(matches!(next(), Heard::Expect(line) if line == "ok"));
        assert!(matches!(next(), Heard::Refused(reason) if reason == "no"));
        assert!(matches!(next(), Heard::Refused(reason) if reason.len() == MOST_REPORT - 1));
        assert_eq!(receive(&from).unwrap_err(), Errno::EAGAIN);
        drop(to);
        assert!(receive(&from).unwrap().is_none());
    }

    #[test]
    fn what_a_binary_prints_becomes_one_line_of_text_whatever_it_is() {
        assert_eq!(last_words("a\n\n b \nc\nd\ne\n"), "b; c; d; e");
        assert_eq!(last_words("\n \n\t\n"), "");
        assert_eq!(last_words(&format!("{}\nno", Reads::own())), "no");
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
