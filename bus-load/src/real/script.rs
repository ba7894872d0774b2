//! Peers in Python, on three different libraries.

use super::{Peer, PeerPlan};
use crate::peers;
use anyhow::Context;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

const COMMON: &str = include_str!("scripts/common.py");
const LIBDBUS: &str = include_str!("scripts/libdbus.py");
const GDBUS: &str = include_str!("scripts/gdbus.py");
const SDBUS: &str = include_str!("scripts/sdbus.py");

/// The implementations that this machine has a script's library for, each with its interpreter. What is missing
/// goes through `missing`, e.g. [`peers::find_python`].
pub fn implementations(
    mut find: impl FnMut(&[&str]) -> anyhow::Result<Option<PathBuf>>,
) -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    let mut found = Vec::new();
    for (implementation, modules) in [
        ("libdbus", &["dbus", "gi"][..]),
        ("GDBus", &["gi"][..]),
        ("sd-bus", &["ctypes"][..]),
    ] {
        if implementation == "sd-bus" && !has_libsystemd() {
            continue;
        }
        found.extend(find(modules)?.map(|python| (implementation, python)));
    }
    Ok(found)
}

fn has_libsystemd() -> bool {
    peers::locate_python(&["ctypes"]).is_some_and(|python| {
        let load = "import ctypes; ctypes.CDLL('libsystemd.so.0').sd_bus_new";
        let mut command = Command::new(python);
        command
            .args(["-c", load])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// A child process that speaks in lines.
pub struct Script {
    plan: PeerPlan,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Script {
    /// Starts the script of the plan's implementation.
    pub fn start(python: &Path, address: &str, plan: PeerPlan) -> anyhow::Result<Script> {
        let backend = match plan.implementation.as_str() {
            "libdbus" => LIBDBUS,
            "GDBus" => GDBUS,
            "sd-bus" => SDBUS,
            other => anyhow::bail!("there is no script for {other}"),
        };
        let mut child = Command::new(python)
            .args(["-c", &format!("{COMMON}\n{backend}")])
            .args(plan.arguments(address))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let stdin = child.stdin.take();
        let lines = lines_of(child.stdout.take().context("no stdout")?);
        Ok(Script {
            plan,
            child,
            stdin,
            lines,
        })
    }
}

/// The lines of a child's output, as they come.
pub(super) fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

impl Peer for Script {
    fn who(&self) -> (String, String) {
        (self.plan.id.clone(), self.plan.implementation.clone())
    }

    fn process(&self) -> Option<u32> {
        Some(self.child.id())
    }

    fn command(&mut self, command: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        writeln!(stdin, "{command}").context("it is gone")
    }

    fn line(&mut self, timeout: Duration) -> anyhow::Result<Option<String>> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("it ended with {}", self.child.wait()?),
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // At the end of its input it leaves by itself; a hanging one is ended.
        self.stdin = None;
        let left = crate::clock::Deadline::after(Duration::from_secs(5));
        while !left.passed() {
            match self.lines.recv_timeout(left.left()) {
                Ok(_) => {}
                Err(_) => break,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
