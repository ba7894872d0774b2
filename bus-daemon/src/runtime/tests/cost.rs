//! Instructions that a checkpoint and a recovery take, counted one by one: a child process is stepped through them.

#![allow(unsafe_code, reason = "fork, and stepping through a child")]

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::runtime::bench::JournaledBus;

/// The instructions of `work`, which is done in a child; without those of the kernel.
fn instructions(work: impl FnOnce()) -> u64 {
    // SAFETY: the child uses what is its own, and ends without returning.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            // SAFETY: plain system calls.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
            }
            work();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    let status = waitpid(child, None).unwrap();
    assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    let mut count = 0;
    loop {
        // SAFETY: the child is stopped, and is ours.
        let result = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child.as_raw(), 0, 0) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        let status = waitpid(child, None).unwrap();
        if matches!(status, WaitStatus::Exited(_, 0)) {
            return count;
        }
        assert!(
            matches!(status, WaitStatus::Stopped(..)),
            "the child has not done its work: {status:?}"
        );
        count += 1;
    }
}

/// A checkpoint of a bus with so many peers, of which so many have changed since the last.
fn checkpoint(peers: u32, changed: usize) -> u64 {
    let mut bus = JournaledBus::new(peers);
    // What is used for the first time is made room for.
    bus.change(changed);
    bus.checkpoint();
    bus.change(changed);
    instructions(|| bus.checkpoint())
}

/// A recovery from a checkpoint with so many peers, of which so many have sent something since.
fn recovery(peers: u32, changed: usize) -> u64 {
    let mut bus = JournaledBus::new(peers);
    bus.change(changed);
    instructions(|| assert_eq!(bus.recover(), peers as usize))
}

#[track_caller]
fn assert_between(what: &str, from: u64, to: u64, least: f64, most: f64) {
    let ratio = to as f64 / from as f64;
    assert!(
        (least..=most).contains(&ratio),
        "{what}: {from}, then {to}: {ratio:.2} times"
    );
}

/// What it writes, entry by entry, is counted with all other tests (`entries`).
#[test]
#[ignore = "a campaign: half a minute, for each instruction is a stop"]
fn a_checkpoint_takes_what_has_changed_and_not_what_is_there() {
    let (few, many) = (checkpoint(100, 2), checkpoint(800, 2));
    let (idle, more) = (checkpoint(800, 0), checkpoint(800, 8));
    eprintln!("2 of 100 peers: {few}; of 800, none: {idle}, 2: {many}, 8: {more} instructions");
    assert_between("2 changed of 100 and of 800", few, many, 0.8, 1.1);
    assert_between("2 and 8 changed of 800", many - idle, more - idle, 3.0, 4.5);
}

#[test]
#[ignore = "a campaign: minutes, for each instruction is a stop"]
fn a_recovery_takes_the_peers_and_the_events_since_each_once() {
    let (few, many) = (recovery(2, 0), recovery(16, 0));
    let (few_events, many_events) = (recovery(2, 2), recovery(16, 16));
    eprintln!("2 peers: {few}, changed {few_events}; 16: {many}, changed {many_events} instructions");
    assert_between("2 and 16 peers", few, many, 1.0, 8.2);
    assert_between(
        "2 and 16 that sent something",
        few_events - few,
        many_events - many,
        6.0,
        9.0,
    );
}
