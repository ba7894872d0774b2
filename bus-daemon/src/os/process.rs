//! What a process does to itself.

#![allow(unsafe_code, reason = "signal dispositions, and an exit without destructors")]

use std::io::Result;

/// For a child: no signal blocked or ignored.
pub(crate) fn reset_signals() -> Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    for kind in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR2,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
        Signal::SIGXCPU,
    ] {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { signal(kind, SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// For a child: it is killed when its parent ends. Called after a change of user, which undoes it.
pub(crate) fn die_with_parent() -> Result<()> {
    // SAFETY: plain system call.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Leaves at once, without destructors: they would close descriptors of a table that is shared.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}
