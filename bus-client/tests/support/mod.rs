//! A bus of the reference implementation, and a service that counts.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus_client::{BoxFuture, Builder, Connection, Incoming, Interface, Reply};

pub const COUNTER: &str = "com.example.Counter";

/// A dbus-daemon in a directory of its own, which can be killed and started again at the same address.
pub struct Bus {
    child: Child,
    pub directory: tempfile::TempDir,
}

impl Bus {
    /// `None`, and a line about it, where there is no dbus-daemon.
    pub fn start() -> Option<Bus> {
        let directory = tempfile::tempdir().unwrap();
        match spawn(directory.path()) {
            Some(child) => Some(Bus { child, directory }),
            None => {
                assert!(
                    std::env::var("BUS_TEST_PEERS").as_deref() != Ok("require"),
                    "dbus-daemon not found"
                );
                eprintln!("skipped: dbus-daemon not found");
                None
            }
        }
    }

    pub fn address(&self) -> String {
        format!("unix:path={}", self.directory.path().join("bus").display())
    }

    pub fn builder(&self) -> Builder {
        Connection::address(&self.address())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.child = spawn(self.directory.path()).unwrap();
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(directory: &Path) -> Option<Child> {
    let mut child = Command::new("dbus-daemon")
        .args(["--session", "--nofork", "--nopidfile", "--print-address"])
        .arg(format!("--address=unix:path={}", directory.join("bus").display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut address = String::new();
    BufReader::new(child.stdout.take()?)
        .read_line(&mut address)
        .ok()?;
    assert!(
        address.contains("guid="),
        "dbus-daemon has not started: {address:?}"
    );
    Some(child)
}

/// Counts how often each numbered call ran.
#[derive(Default)]
pub struct Counter {
    pub runs: Mutex<HashMap<u64, u32>>,
    pub total: AtomicU64,
}

impl Interface for Counter {
    fn name(&self) -> &str {
        COUNTER
    }

    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply> {
        let reply = match (call.member(), call.decode::<u64>()) {
            (Some("Run"), Ok(id)) => {
                *self.runs.lock().unwrap().entry(id).or_default() += 1;
                self.total.fetch_add(1, Ordering::Relaxed);
                Reply::new(&id)
            }
            _ => Reply::unknown_method(call.message()),
        };
        Box::pin(std::future::ready(reply))
    }
}

impl Counter {
    pub fn runs(&self, id: u64) -> u32 {
        self.runs.lock().unwrap().get(&id).copied().unwrap_or_default()
    }
}

/// CPU time of this process so far.
pub fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time =
        |value: nix::sys::time::TimeVal| Duration::new(value.tv_sec() as u64, value.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

/// How often a thread of this process with that name has given up the processor by itself: has waited, and was woken.
pub fn wake_ups(thread: &str) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        if field("Name:") == Some(thread) {
            let count = field("voluntary_ctxt_switches:").and_then(|count| count.parse().ok());
            sum += count.unwrap_or(0);
        }
    }
    sum
}
