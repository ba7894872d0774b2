//! What a worker that dies of its own fault still says: the keeper need not wait until the kernel has written its core.

#![allow(unsafe_code, reason = "signal handlers on a stack of their own")]

use std::sync::OnceLock;

use crate::control::{Control, Inbox};

/// The signals by which a process dies of its own fault.
const FAULTS: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGSYS,
    libc::SIGTRAP,
];

/// Bytes of the handlers' stack.
const STACK: usize = 64 * 1024;

/// Whom to tell.
static KEEPER: OnceLock<(Inbox, Control)> = OnceLock::new();

/// From here on, a fault of this process is told to the keeper before the process ends by it.
pub(super) fn arrange(inbox: Inbox, control: Control) {
    if KEEPER.set((inbox, control)).is_err() {
        return;
    }
    // Of the process for the rest of its life: an overflow of the usual stack is a fault, too.
    let stack = Vec::leak(vec![0_u8; STACK]);
    let stack = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: STACK,
    };
    let handler: extern "C" fn(libc::c_int) = say;
    // SAFETY: the stack stays; the handler only uses atomics and system calls; all structs are complete.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND;
        libc::sigaltstack(&raw const stack, std::ptr::null_mut()) != 0
            || FAULTS
                .iter()
                .any(|signal| libc::sigaction(*signal, &raw const action, std::ptr::null_mut()) != 0)
    };
    if failed {
        tracing::warn!(
            "a death of the worker will be noticed late: {}",
            std::io::Error::last_os_error()
        );
    }
}

/// Runs no code of ours after this: the signal comes again as soon as the handler has returned, and ends the process.
extern "C" fn say(signal: libc::c_int) {
    if let Some((inbox, control)) = KEEPER.get() {
        // SAFETY: plain system call.
        inbox.note_fault(signal, unsafe { libc::getpid() });
        control.wake_keeper();
    }
    // SAFETY: plain system call; its disposition is the default again.
    unsafe { libc::raise(signal) };
}
