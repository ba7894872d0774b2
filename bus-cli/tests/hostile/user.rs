//! Threads of other users, each on a processor of its own.

#![allow(
    unsafe_code,
    reason = "one thread alone changes its user: the C library would change all"
)]

use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, geteuid};
use std::thread::JoinHandle;

/// Two who attack, and one who does not.
pub const MALLORY: u32 = 12_001;
pub const TRUDY: u32 = 12_002;
pub const ALICE: u32 = 12_003;

/// Whether this process may act for several users. If not, a test says so and is left out.
pub fn may_be_others() -> bool {
    let may = geteuid().is_root();
    if !may {
        assert!(
            std::env::var("BUS_TEST_PEERS").as_deref() != Ok("require"),
            "only root can act for several users"
        );
        eprintln!("skipped: only root can act for several users");
    }
    may
}

/// Which processor of those that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpu {
    /// The one for the bus and the innocent.
    First,
    /// The one for attackers: the same where there is only one.
    Last,
}

/// Pins this thread, and whatever it starts from now on.
pub fn pin(cpu: Cpu) {
    let all = sched_getaffinity(Pid::from_raw(std::process::id() as i32)).unwrap();
    let mut usable = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu) == Ok(true));
    let number = match cpu {
        Cpu::First => usable.next(),
        Cpu::Last => usable.next_back(),
    };
    let mut one = CpuSet::new();
    one.set(number.unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

/// A thread that is this user's, as the bus sees it. Threads that it starts are, too.
pub fn as_user<T: Send + 'static>(
    uid: u32,
    cpu: Cpu,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    std::thread::spawn(move || {
        pin(cpu);
        become_user(uid);
        work()
    })
}

fn become_user(uid: u32) {
    let calls = [libc::SYS_setresgid, libc::SYS_setresuid];
    for call in calls {
        // SAFETY: changes the credentials of this thread, by numbers.
        let result = unsafe { libc::syscall(call, uid, uid, uid) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}
