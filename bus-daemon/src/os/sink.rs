//! A descriptor that lines are written to without ever waiting for whoever reads them.

#![allow(unsafe_code, reason = "system calls on a descriptor by number")]

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

/// The longest line, in bytes (PIPE_BUF): a pipe takes that much whole or not at all.
const LINE: usize = 4096;

/// Lines that could not be written are counted, and the next one that can be written is preceded by their number.
///
/// The descriptor's own open file description stays as it is: `O_NONBLOCK` would hold for every process that shares
/// it, the shell that started the daemon among them.
#[derive(Debug)]
pub(crate) struct Sink {
    fd: RawFd,
    way: Way,
    /// The end of a line of which the kernel has taken the beginning.
    rest: Vec<u8>,
    left_out: u64,
    /// Why the last one was left out.
    why: Errno,
}

/// How to write without waiting. It depends on what the descriptor is, and is settled once, but for [`Way::NoWait`].
#[derive(Debug)]
enum Way {
    /// A socket: the flag is the call's.
    Send,
    /// A terminal or a pipe: an open file description of our own, with `O_NONBLOCK`. Writing to a terminal can be
    /// made non-blocking in no other way (no flag of the call; poll does not tell how much room there is, and another
    /// process may take it).
    Own(OwnedFd),
    /// A pipe that cannot be opened again (no /proc, or another user's): the flag is the call's, since Linux 6.4.
    /// Where the kernel does not know it, `Polled`.
    NoWait,
    /// Anything else: at most this many bytes at a time, each after poll has reported room.
    ///
    /// - Files and devices such as /dev/null are always ready. A disk may take its time, as it may for page faults.
    /// - A pipe on an old kernel that is ready takes PIPE_BUF bytes at once.
    /// - A terminal that cannot be opened again (the daemon has become another user and was upgraded since): a byte.
    ///
    /// Should another process take the last room between the two calls, pipe and terminal wait.
    Polled(usize),
}

/// How much of some bytes the kernel has taken.
enum Taken {
    All,
    Part(usize),
    Nothing(Errno),
}

impl Sink {
    pub(crate) fn new(fd: RawFd) -> Self {
        Self {
            fd,
            way: Way::of(fd),
            rest: Vec::new(),
            left_out: 0,
            why: Errno::EAGAIN,
        }
    }

    /// A descriptor besides the one given, which it writes to instead.
    pub(crate) fn own_descriptor(&self) -> Option<RawFd> {
        match &self.way {
            Way::Own(own) => Some(own.as_raw_fd()),
            Way::Send | Way::NoWait | Way::Polled(_) => None,
        }
    }

    /// Writes a line, which ends with a newline, in one piece, or leaves it out.
    pub(crate) fn write(&mut self, line: &[u8]) {
        if self.catch_up() {
            self.put(&cut(line));
        } else {
            self.left_out += 1;
        }
    }

    /// Writes what must come before the next line. False if that one cannot be written either.
    fn catch_up(&mut self) -> bool {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.put_rest(rest);
        }
        if self.rest.is_empty() && self.left_out > 0 {
            let notice = self.notice();
            let before = std::mem::replace(&mut self.left_out, 0);
            if !self.put(notice.as_bytes()) {
                self.left_out = before;
            }
        }
        self.rest.is_empty() && self.left_out == 0
    }

    fn notice(&self) -> String {
        let what = match self.left_out {
            1 => "1 log line was".to_owned(),
            count => format!("{count} log lines were"),
        };
        if self.why == Errno::EAGAIN {
            format!(" WARN {what} left out: nobody read them\n")
        } else {
            let why = self.why.desc();
            format!(" WARN {what} left out: they could not be written ({why})\n")
        }
    }

    /// False if it was left out.
    fn put(&mut self, line: &[u8]) -> bool {
        match self.take(line) {
            Taken::All => true,
            Taken::Part(len) => {
                self.rest = line[len..].to_vec();
                true
            }
            Taken::Nothing(errno) => {
                self.left_out += 1;
                self.why = errno;
                false
            }
        }
    }

    fn put_rest(&mut self, mut rest: Vec<u8>) {
        match self.take(&rest) {
            Taken::All => rest.clear(),
            Taken::Part(len) => drop(rest.drain(..len)),
            Taken::Nothing(errno) => self.why = errno,
        }
        self.rest = rest;
    }

    fn take(&mut self, bytes: &[u8]) -> Taken {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.once(&bytes[taken..]) {
                Ok(len) => taken += len,
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) if matches!(self.way, Way::NoWait) => {
                    self.way = Way::Polled(LINE);
                }
                Err(errno) if taken == 0 => return Taken::Nothing(errno),
                Err(_) => return Taken::Part(taken),
            }
        }
        Taken::All
    }

    /// One system call that does not wait.
    fn once(&self, bytes: &[u8]) -> nix::Result<usize> {
        let (start, len) = (bytes.as_ptr().cast(), bytes.len());
        let result = match &self.way {
            Way::Send => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: `bytes` is readable for its length; likewise below.
                unsafe { libc::send(self.fd, start, len, flags) }
            }
            // SAFETY: as above.
            Way::Own(own) => unsafe { libc::write(own.as_raw_fd(), start, len) },
            Way::NoWait => {
                let part = libc::iovec {
                    iov_base: start.cast_mut(),
                    iov_len: len,
                };
                // SAFETY: as above. An offset of -1 is where the file is.
                unsafe { libc::pwritev2(self.fd, &raw const part, 1, -1, libc::RWF_NOWAIT) }
            }
            Way::Polled(piece) if has_room(self.fd) => {
                // SAFETY: as above.
                unsafe { libc::write(self.fd, start, len.min(*piece)) }
            }
            Way::Polled(_) => return Err(Errno::EAGAIN),
        };
        match Errno::result(result)? {
            // Nothing was taken and no reason given.
            0 => Err(Errno::EAGAIN),
            len => Ok(len.cast_unsigned()),
        }
    }
}

impl Way {
    fn of(fd: RawFd) -> Self {
        let Ok(status) = fstat(borrow(&fd)) else {
            return Self::Polled(LINE);
        };
        let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
        // SAFETY: only asks.
        let is_terminal = kind == SFlag::S_IFCHR && unsafe { libc::isatty(fd) } == 1;
        if kind == SFlag::S_IFSOCK {
            Self::Send
        } else if is_terminal {
            open_again(fd, &status).map_or(Self::Polled(1), Self::Own)
        } else if kind == SFlag::S_IFIFO {
            open_again(fd, &status).map_or(Self::NoWait, Self::Own)
        } else {
            Self::Polled(LINE)
        }
    }
}

/// Another open file description of the same file, for writing without waiting.
fn open_again(fd: RawFd, status: &FileStat) -> Option<OwnedFd> {
    let by_number = format!("/proc/self/fd/{fd}");
    open_same(Path::new(&by_number), status).or_else(|| {
        // Without /proc a terminal is still found in /dev.
        let name = nix::unistd::ttyname(borrow(&fd)).ok()?;
        open_same(&name, status)
    })
}

fn open_same(path: &Path, status: &FileStat) -> Option<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let own = open(path, flags, Mode::empty()).ok()?;
    let found = fstat(&own).ok()?;
    let is_same = found.st_dev == status.st_dev
        && found.st_ino == status.st_ino
        && found.st_rdev == status.st_rdev
        && own.as_raw_fd() > libc::STDERR_FILENO;
    is_same.then_some(own)
}

fn has_room(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd, no waiting.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    // A pipe without readers is ready too, and the write fails.
    ready == 1 && poll.revents & (libc::POLLOUT | libc::POLLERR) != 0
}

/// The line, as far as it is not too long.
fn cut(line: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    const END: &[u8] = b"...\n";
    if line.len() <= LINE {
        return line.into();
    }
    let mut at = LINE - END.len();
    // Not in the middle of a character.
    while at > 0 && line[at] & 0xC0 == 0x80 {
        at -= 1;
    }
    [&line[..at], END].concat().into()
}

fn borrow(fd: &RawFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: only asked about; one that is not open is an error of the call.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) }
}

#[cfg(test)]
mod tests;
