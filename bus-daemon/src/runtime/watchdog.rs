//! A worker that hangs in one event ends itself: in input of a peer by its own fault, so that input which does it twice
//! is then left out.
//!
//! Anything else is given far more time, since it is never left out: a departure that takes long is better waited for.
//! Its cost is nobody's guilt, so the death is one by resources (`SIGXCPU`), which says nothing against a binary.
//! A timer on the CPU time of the process ticks: an idle worker is never woken, and one that waits is not blamed.

#![allow(unsafe_code, reason = "a signal handler and a timer")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::journal::UnitAtWork;

/// Seconds of CPU time that input of a peer may take.
const PATIENCE: u32 = 5;
/// Seconds of CPU time that any other event may take.
const LONG_PATIENCE: u32 = 120;

/// The event being applied.
static UNIT: OnceLock<UnitAtWork> = OnceLock::new();
/// The event seen at the last tick, plus 1.
static EVENT: AtomicU64 = AtomicU64::new(0);
/// Ticks for which it has been the same.
static TICKS: AtomicU32 = AtomicU32::new(0);

/// Begins to watch this process.
pub(super) fn start(unit: UnitAtWork) {
    if UNIT.set(unit).is_err() {
        return;
    }
    let handler: extern "C" fn(libc::c_int) = tick;
    // SAFETY: the handler only uses atomics and ends the process; both structs are complete.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        let second = libc::timeval {
            tv_sec: 1,
            tv_usec: 0,
        };
        let timer = libc::itimerval {
            it_interval: second,
            it_value: second,
        };
        libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()) != 0
            || libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) != 0
    };
    if failed {
        tracing::warn!("no watchdog: {}", std::io::Error::last_os_error());
    }
}

extern "C" fn tick(_signal: libc::c_int) {
    let event = UNIT.get().map_or(0, UnitAtWork::number);
    let is_input = UNIT.get().is_some_and(UnitAtWork::is_input);
    let patience = if is_input { PATIENCE } else { LONG_PATIENCE };
    let same = EVENT.swap(event, Ordering::Relaxed) == event && event != 0;
    let ticks = if same {
        TICKS.fetch_add(1, Ordering::Relaxed) + 1
    } else {
        TICKS.swap(0, Ordering::Relaxed)
    };
    if !same || ticks < patience {
        return;
    }
    if is_input {
        std::process::abort();
    }
    // SAFETY: plain system calls; the default disposition ends the process.
    unsafe {
        libc::signal(libc::SIGXCPU, libc::SIG_DFL);
        libc::raise(libc::SIGXCPU);
    }
}
