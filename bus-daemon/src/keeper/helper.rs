//! A child of the keeper that does what may take long, with a deadline.
//!
//! ```text
//! Running ──── its end is noted ────────────────> Ended
//!    │                                              ^
//!    └── deadline: killed ──> Killed ── its end, ───┘
//!                                       or a second
//! ```

use std::io::{Error, Result};
use std::os::fd::RawFd;

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::WaitStatus;
use nix::unistd::{ForkResult, Pid, getpid, getppid, setpgid};

use crate::os::clock::{self, Nanos};
use crate::os::{descriptor, process};

/// How long a child that was killed is waited for: one that the system holds in a call may never end.
const LAST_PATIENCE: Nanos = Nanos(1_000_000_000);

/// The child.
#[derive(Debug)]
pub(crate) struct Helper {
    pid: Pid,
    deadline: Nanos,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Running,
    Killed,
    Ended(HelperEnd),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HelperEnd {
    /// By itself, or killed by somebody else.
    Ended(WaitStatus),
    /// It took too long.
    Late,
}

impl Helper {
    /// Runs `body` in a child with a table of its own, in which only `kept` is open besides the standard descriptors.
    /// It returns the exit code, and is killed if it has not ended after `patience`.
    #[expect(unsafe_code, reason = "fork of a single-threaded process")]
    pub(crate) fn fork(patience: Nanos, kept: &[RawFd], body: impl FnOnce() -> i32) -> Result<Self> {
        let keeper = getpid();
        // SAFETY: the process has one thread.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => {
                prepare(keeper, kept);
                process::exit(body())
            }
            ForkResult::Parent { child } => {
                let _ = setpgid(child, child);
                Ok(Self {
                    pid: child,
                    deadline: clock::monotonic() + patience,
                    state: State::Running,
                })
            }
        }
    }

    /// When to call [`check_time`](Self::check_time), if ever.
    pub(crate) fn due(&self) -> Option<Nanos> {
        match self.state {
            State::Running => Some(self.deadline),
            State::Killed => Some(self.deadline + LAST_PATIENCE),
            State::Ended(_) => None,
        }
    }

    /// Ends a child that takes too long.
    pub(crate) fn check_time(&mut self) {
        let now = clock::monotonic();
        if matches!(self.state, State::Running) && now >= self.deadline {
            self.kill();
            self.state = State::Killed;
        } else if matches!(self.state, State::Killed) && now >= self.deadline + LAST_PATIENCE {
            self.state = State::Ended(HelperEnd::Late);
        }
    }

    /// Takes note of the end of a process, if it is this one.
    pub(crate) fn note_end(&mut self, ended: Pid, status: WaitStatus) -> bool {
        if ended != self.pid {
            return false;
        }
        self.state = match self.state {
            State::Running => State::Ended(HelperEnd::Ended(status)),
            State::Killed => State::Ended(HelperEnd::Late),
            ended @ State::Ended(_) => ended,
        };
        true
    }

    /// How it ended, if it has.
    pub(crate) fn end(&self) -> Option<HelperEnd> {
        match self.state {
            State::Ended(end) => Some(end),
            State::Running | State::Killed => None,
        }
    }

    /// Waits for its end for some milliseconds.
    pub(crate) fn wait_a_little(&mut self) {
        std::thread::sleep(std::time::Duration::from_millis(2));
        if let Some(status) = process::ended(Some(self.pid)) {
            self.note_end(self.pid, status);
        }
    }

    /// Ends it: nobody waits for what it does.
    pub(crate) fn abandon(&mut self) {
        if matches!(self.state, State::Ended(_)) {
            return;
        }
        self.kill();
        self.state = State::Ended(HelperEnd::Late);
        // Not for ever: the system may hold it in a call. It is reaped then when it ends.
        for _ in 0..50 {
            if process::is_over(self.pid) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// With whatever it has started.
    pub(crate) fn kill(&self) {
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

/// How a process ended, in words.
pub(crate) fn describe(status: WaitStatus) -> String {
    if let WaitStatus::Exited(_, code) = status {
        return format!("exited with code {code}");
    }
    if let WaitStatus::Signaled(_, signal, _) = status {
        return format!("was ended by {signal}");
    }
    format!("changed to {status:?}")
}

fn prepare(keeper: Pid, kept: &[RawFd]) {
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    // Links that the worker closes meanwhile must not stay open here.
    descriptor::close_all_but(kept);
    if process::die_with_parent().is_err() || getppid() != keeper || process::reset_signals().is_err() {
        process::exit(1);
    }
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// A pair of connected sockets that keep messages apart.
pub(crate) fn socketpair() -> Result<(std::os::fd::OwnedFd, std::os::fd::OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType};
    nix::sys::socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(Error::from)
}
