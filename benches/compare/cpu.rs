//! CPU time of a process tree, CPU affinity, and the one look at the clock.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// CPU time in nanoseconds that a process and all its descendants have used: every thread, user and kernel.
pub(crate) fn used(pid: Pid) -> Result<u64> {
    let mut sum = 0;
    for pid in tree(pid) {
        let clock = clock_getcpuclockid(pid).with_context(|| format!("the bus (pid {pid}) is gone"))?;
        sum += nanoseconds(clock)?;
    }
    Ok(sum)
}

/// Monotonic time in nanoseconds.
pub(crate) fn now() -> Result<u64> {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// Ties the calling thread, and what it starts from now on, to one CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on CPU {cpu}"))
}

fn tree(root: Pid) -> Vec<Pid> {
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let pid = found[at];
        at += 1;
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        found.extend(
            children
                .split_ascii_whitespace()
                .filter_map(|child| child.parse().ok())
                .map(Pid::from_raw),
        );
    }
    found
}

fn nanoseconds(clock: ClockId) -> Result<u64> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
