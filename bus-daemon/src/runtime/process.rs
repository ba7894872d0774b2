//! Making a worker: a process of its own that shares the keeper's table of file descriptors.

#![allow(unsafe_code, reason = "clone, and signal dispositions")]

use std::io::{Error, Result};

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::Pid;

use crate::os::process::exit;

/// Runs `body` in a new process that shares the descriptor table, so that its death closes nothing; it returns the exit
/// code. It leaves by `_exit`: no destructor may close what the keeper owns. Where the system refuses, `is_tried_again` is asked.
pub(crate) fn spawn(
    mut is_tried_again: impl FnMut(&Error) -> bool,
    body: impl FnOnce() -> i32,
) -> Result<Pid> {
    let keeper = nix::unistd::getpid();
    loop {
        // SAFETY: like fork: no new stack, so the child goes on here with a copy of this single-threaded process.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0) };
        match pid {
            -1 => {
                let error = Error::last_os_error();
                if !is_tried_again(&error) {
                    return Err(error);
                }
            }
            0 => {
                prepare(keeper);
                exit(body())
            }
            pid => return Ok(Pid::from_raw(i32::try_from(pid).map_err(Error::other)?)),
        }
    }
}

fn prepare(keeper: Pid) {
    // The worker dies with its keeper. Set after privileges were dropped, since that clears it.
    // SAFETY: plain system call.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if nix::unistd::getppid() != keeper {
        exit(1);
    }
    // Recovery does not wait for a core to be written, unless that is asked for.
    if std::env::var_os("BUS_CORE_DUMPS").is_none() {
        // SAFETY: plain system call.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    }
    // Ctrl-C and the service manager's signals reach every process; they are the keeper's to answer.
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2] {
        // SAFETY: ignoring a signal runs no code.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // Unwinding would run destructors that close the keeper's descriptors.
    std::panic::set_hook(Box::new(|info| {
        // Not by the standard hook, which would wait for a terminal that nobody reads.
        crate::os::log::say(&format!("the worker {info}"));
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            crate::os::log::say(&trace.to_string());
        }
        std::process::abort();
    }));
}
