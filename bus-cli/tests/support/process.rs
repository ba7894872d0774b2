//! What the system shows of the daemon's processes, and what it does with them.

use super::{Bus, restart_property, wait_until};
use bus_load::Caller;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::Command;

/// The pid of the worker as the bus itself names it.
pub fn worker_pid(caller: &mut Caller) -> u32 {
    let reply = restart_property(caller, "WorkerPID");
    reply.body().read_variant(|value| value.read_u32()).unwrap()
}

/// How many units of work were left out because they had killed the worker, as `LastRestart` says.
pub fn quarantined(caller: &mut Caller) -> u32 {
    let reply = restart_property(caller, "LastRestart");
    let mut body = reply.body();
    body.read_variant(|value| {
        value.read_struct(|fields| {
            fields.read_str()?;
            fields.read_u64()?;
            fields.read_u32()?;
            fields.read_u32()?;
            fields.read_u32()
        })
    })
    .unwrap()
}

/// The copies of what was left out, in the directory that the daemon takes for its user's runtime directory.
pub fn quarantine_files(bus: &Bus) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(bus.directory.path()).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("bus-quarantine-"))
        .collect()
}

/// Sends a signal; false if there is no such process.
pub fn strike(process: u32, signal: Signal) -> bool {
    kill(Pid::from_raw(process as i32), signal).is_ok()
}

/// Stops a process, and returns when it does nothing any more.
pub fn stop(process: u32) {
    assert!(strike(process, Signal::SIGSTOP));
    wait_until("the process is stopped", || state(process) == Some('T'));
}

/// Lets a stopped process go on.
pub fn resume(process: u32) {
    assert!(strike(process, Signal::SIGCONT));
}

/// The state of a process, as one letter.
pub fn state(process: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Pins this thread, and whatever it starts from now on, to one CPU.
pub fn pin_to_one_cpu() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true));
    let mut one = CpuSet::new();
    one.set(first.unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

/// Lets the daemon's processes open no descriptor of this number or above.
pub fn limit_descriptors(bus: &Bus, limit: usize) {
    for process in [Some(bus.pid()), bus.worker()].into_iter().flatten() {
        // The soft limit alone.
        let arguments = [format!("--pid={process}"), format!("--nofile={limit}:")];
        super::run(Command::new("prlimit").args(arguments));
    }
}

/// How much the daemon's processes have worked: times that any of their threads woke up, and ticks of CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    pub wake_ups: u64,
    pub cpu_ticks: u64,
}

impl Work {
    /// So far, of keeper and worker.
    pub fn of(bus: &Bus) -> Work {
        let mut work = Work {
            wake_ups: 0,
            cpu_ticks: 0,
        };
        for process in [Some(bus.pid()), bus.worker()].into_iter().flatten() {
            for task in std::fs::read_dir(format!("/proc/{process}/task")).unwrap() {
                let path = task.unwrap().path();
                let status = std::fs::read_to_string(path.join("status")).unwrap();
                let switches = status
                    .lines()
                    .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                work.wake_ups += switches.unwrap().trim().parse::<u64>().unwrap();
                let stat = std::fs::read_to_string(path.join("stat")).unwrap();
                let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
                work.cpu_ticks += fields
                    .skip(11)
                    .take(2)
                    .map(|ticks| ticks.parse::<u64>().unwrap())
                    .sum::<u64>();
            }
        }
        work
    }

    /// From then to now.
    pub fn since(self, then: Work) -> Work {
        Work {
            wake_ups: self.wake_ups - then.wake_ups,
            cpu_ticks: self.cpu_ticks - then.cpu_ticks,
        }
    }
}
