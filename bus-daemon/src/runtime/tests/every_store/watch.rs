//! In the worker: stops at every store into the journal's memory, and after every system call that moves bytes or
//! descriptors, until the test has had its look.
//!
//! The memory is write-protected. A store faults; the handler of the fault lifts the protection for the one instruction
//! (the trap flag), and the trap behind it protects again, reports and waits. The kernel's writes do not fault, so the
//! calls that move something are caught on their way in (seccomp), made by the handler, and reported as well. Single steps
//! by a tracer would show the same, much more slowly: nearly all instructions store elsewhere.

#![allow(unsafe_code, reason = "signal handlers, and memory protection")]

use std::arch::global_asm;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use crate::journal::Remains;

const PAGE: usize = 4096;
/// Extents that may be mapped at a time.
const EXTENTS: usize = 16;
const TRAP_FLAG: i64 = 0x100;

/// Calls that are caught, and `fcntl` where it makes a descriptor.
const CAUGHT: [libc::c_long; 12] = [
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_shutdown,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_sendto,
    libc::SYS_memfd_create,
    libc::SYS_pwrite64,
];

/// What the worker tells; it waits for one byte of answer each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Report {
    /// One of [`what`].
    pub(super) what: u64,
    /// The address of a store, the number of a call, the kind of an event.
    pub(super) first: u64,
    /// The first argument of a call, an event's peer.
    pub(super) second: u64,
    /// A call's result, bytes that came with an event.
    pub(super) third: i64,
    /// Where a call's bytes went, descriptors that came with an event.
    pub(super) fourth: u64,
    /// Bytes of state.
    pub(super) fifth: u64,
}

pub(super) mod what {
    pub(in super::super) const STORED: u64 = 1;
    pub(in super::super) const CALLED: u64 = 2;
    pub(in super::super) const HANDLED: u64 = 3;
    pub(in super::super) const DONE: u64 = 4;
    /// It is about to end by its own fault.
    pub(in super::super) const DYING: u64 = 5;
    /// Its process has ended; the test's own word.
    pub(in super::super) const ENDED: u64 = 6;
}

static IS_ON: AtomicBool = AtomicBool::new(false);
static TO_TEST: AtomicI32 = AtomicI32::new(-1);
static FROM_TEST: AtomicI32 = AtomicI32::new(-1);
static STORE_FD: AtomicI32 = AtomicI32::new(-1);
/// Address and length of what is protected: log, checkpoints, manifest, the outbox, and whatever extents are mapped.
static RANGES: [(AtomicUsize, AtomicUsize); 4 + EXTENTS] =
    [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; 4 + EXTENTS];
/// The store that is being let through: its address, and the pages opened for it.
static STORE: AtomicUsize = AtomicUsize::new(0);
static OPENED: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));

global_asm!(
    "every_store_call:",
    "mov rax, rdi",
    "mov rcx, rsi",
    "mov rdi, [rcx]",
    "mov rsi, [rcx + 8]",
    "mov rdx, [rcx + 16]",
    "mov r10, [rcx + 24]",
    "mov r8, [rcx + 32]",
    "mov r9, [rcx + 40]",
    "syscall",
    "every_store_called:",
    "ret",
);

unsafe extern "C" {
    fn every_store_call(number: libc::c_long, arguments: *const [u64; 6]) -> i64;
    /// The address that a call made there returns to: such calls are not caught.
    static every_store_called: u8;
}

/// A system call that is not caught and leaves `errno` alone.
fn call(number: libc::c_long, arguments: [u64; 6]) -> i64 {
    // SAFETY: each caller gives a call's arguments as the system wants them.
    unsafe { every_store_call(number, &raw const arguments) }
}

fn protect(address: usize, len: usize, writable: bool) {
    let access = if writable {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_READ
    };
    call(
        libc::SYS_mprotect,
        [address as u64, len as u64, access as u64, 0, 0, 0],
    );
}

fn protect_all(writable: bool) {
    for (address, len) in &RANGES {
        let address = address.load(Ordering::Relaxed);
        if address != 0 {
            protect(address, len.load(Ordering::Relaxed), writable);
        }
    }
}

impl Report {
    /// One that says no more than what happened.
    pub(super) fn plain(what: u64) -> Self {
        Self {
            what,
            first: 0,
            second: 0,
            third: 0,
            fourth: 0,
            fifth: 0,
        }
    }
}

/// Tells something, and waits for the answer.
pub(super) fn report(report: Report) -> u8 {
    let bytes = size_of::<Report>() as u64;
    let pipe = TO_TEST.load(Ordering::Relaxed) as u64;
    call(libc::SYS_write, [pipe, &raw const report as u64, bytes, 0, 0, 0]);
    let mut answer = 0_u8;
    let pipe = FROM_TEST.load(Ordering::Relaxed) as u64;
    while call(libc::SYS_read, [pipe, &raw mut answer as u64, 1, 0, 0, 0]) != 1 {}
    answer
}

/// Prepares this process, which is to be a worker over the memory of `remains`.
pub(super) fn install(remains: &Remains, outbox: (usize, usize), to_test: RawFd, from_test: RawFd) {
    TO_TEST.store(to_test, Ordering::Relaxed);
    FROM_TEST.store(from_test, Ordering::Relaxed);
    STORE_FD.store(remains.store(), Ordering::Relaxed);
    for (range, (address, len)) in RANGES.iter().zip(remains.mappings().into_iter().chain([outbox])) {
        range.0.store(address, Ordering::Relaxed);
        range.1.store(len, Ordering::Relaxed);
    }
    let handlers: [(i32, Handler); 3] = [
        (libc::SIGSEGV, on_fault),
        (libc::SIGTRAP, on_step),
        (libc::SIGSYS, on_call),
    ];
    for (signal, handler) in handlers {
        // SAFETY: the struct is complete; the handlers use atomics and raw calls only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
    catch_calls();
}

/// From here on, or no longer, every store is told of.
pub(super) fn set_on(on: bool) {
    IS_ON.store(on, Ordering::Relaxed);
    protect_all(!on);
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::ucontext_t);

/// A store to protected memory.
extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: given by the system.
    let address = unsafe { (*info).si_addr() } as usize;
    let is_ours = RANGES.iter().any(|(start, len)| {
        let start = start.load(Ordering::Relaxed);
        (start..start + len.load(Ordering::Relaxed)).contains(&address)
    });
    if !is_ours || !IS_ON.load(Ordering::Relaxed) {
        // A true fault: it happens again, and ends the process.
        // SAFETY: back to the default.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let start = address & !(PAGE - 1);
    let range = if address % PAGE > PAGE - 64 {
        2 * PAGE
    } else {
        PAGE
    };
    protect(start, range, true);
    STORE.store(address, Ordering::Relaxed);
    OPENED.0.store(start, Ordering::Relaxed);
    OPENED.1.store(range, Ordering::Relaxed);
    // SAFETY: given by the system; the flags are restored from there.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_EFL as usize] |= TRAP_FLAG };
}

/// The instruction that stores is done.
extern "C" fn on_step(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: given by the system; the flags are restored from there.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_EFL as usize] &= !TRAP_FLAG };
    protect(
        OPENED.0.load(Ordering::Relaxed),
        OPENED.1.load(Ordering::Relaxed),
        false,
    );
    report(Report {
        first: STORE.load(Ordering::Relaxed) as u64,
        ..Report::plain(what::STORED)
    });
}

/// A call that moves something.
extern "C" fn on_call(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: given by the system.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let number = registers[libc::REG_RAX as usize];
    let arguments = [
        libc::REG_RDI,
        libc::REG_RSI,
        libc::REG_RDX,
        libc::REG_R10,
        libc::REG_R8,
        libc::REG_R9,
    ]
    .map(|register| registers[register as usize] as u64);
    let is_on = IS_ON.load(Ordering::Relaxed);
    let moves_bytes = number == libc::SYS_recvmmsg || number == libc::SYS_sendmmsg;
    if is_on && moves_bytes {
        protect_all(true);
    }
    let result = call(number, arguments);
    registers[libc::REG_RAX as usize] = result;
    if is_on && moves_bytes {
        protect_all(false);
    }
    let is_mapping = number == libc::SYS_mmap || number == libc::SYS_munmap;
    if is_mapping {
        note_mapping(number, arguments, result, is_on);
    }
    if is_on && !is_mapping {
        let place = if number == libc::SYS_recvmmsg && result > 0 {
            // SAFETY: the slot's message, with one iov.
            unsafe { (*(*(arguments[1] as *const libc::mmsghdr)).msg_hdr.msg_iov).iov_base as u64 }
        } else {
            0
        };
        let received = if place == 0 {
            0
        } else {
            // SAFETY: as above.
            u64::from(unsafe { (*(arguments[1] as *const libc::mmsghdr)).msg_len })
        };
        report(Report {
            what: what::CALLED,
            first: number as u64,
            second: arguments[0],
            third: result,
            fourth: place,
            fifth: received,
        });
    }
}

/// Extents come and go.
fn note_mapping(number: i64, arguments: [u64; 6], result: i64, is_on: bool) {
    let find = |address: usize| {
        RANGES[4..]
            .iter()
            .find(|(start, _)| start.load(Ordering::Relaxed) == address)
    };
    if number == libc::SYS_munmap {
        if let Some((start, _)) = find(arguments[0] as usize).filter(|_| arguments[0] != 0) {
            start.store(0, Ordering::Relaxed);
        }
    } else if result > 0
        && arguments[4] as i32 == STORE_FD.load(Ordering::Relaxed)
        && let Some((start, len)) = find(0)
    {
        start.store(result as usize, Ordering::Relaxed);
        len.store(arguments[1] as usize, Ordering::Relaxed);
        if is_on {
            protect(result as usize, arguments[1] as usize, false);
        }
    }
}

/// Sends the calls to [`on_call`], except those that [`call`] makes.
fn catch_calls() {
    let load = |offset: u32| filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal = |to: u32, yes: u8, no: u8| filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, to);
    let give = |what: u32| filter(libc::BPF_RET | libc::BPF_K, 0, 0, what);
    let returns_to = &raw const every_store_called as u64;
    // Offsets in seccomp_data: the number of the call, at 8 the instruction pointer, at 24 the second argument.
    let mut program = vec![load(0)];
    for (index, number) in CAUGHT.iter().enumerate() {
        program.push(equal(*number as u32, (CAUGHT.len() + 3 - index) as u8, 0));
    }
    program.extend([
        equal(libc::SYS_fcntl as u32, 0, 2),
        load(24),
        equal(libc::F_DUPFD as u32, 1, 0),
        give(libc::SECCOMP_RET_ALLOW),
        load(8),
        equal(returns_to as u32, 0, 3),
        load(12),
        equal((returns_to >> 32) as u32, 0, 1),
        give(libc::SECCOMP_RET_ALLOW),
        give(libc::SECCOMP_RET_TRAP),
    ]);
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: a whole program; it holds for this process alone.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(result, 0, "seccomp: {}", std::io::Error::last_os_error());
}

fn filter(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}
