//! A private bus.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A bus that runs, until this is dropped.
pub(crate) struct Bus {
    pub(crate) path: String,
    child: Child,
    /// Its socket, its configuration and what it said on stderr.
    home: tempfile::TempDir,
}

impl Bus {
    pub(crate) fn start(program: &Path) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let path = home.path().join("bus").display().to_string();
        let config = home.path().join("bus.conf");
        let limits: String = [
            ("max_completed_connections", 100_000),
            ("max_incomplete_connections", 10_000),
            ("max_connections_per_user", 100_000),
        ]
        .iter()
        .map(|(name, value)| format!("<limit name=\"{name}\">{value}</limit>"))
        .collect();
        std::fs::write(
            &config,
            format!(
                "<busconfig><type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>\
                 <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
                 <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>{limits}</busconfig>"
            ),
        )?;
        let mut child = Command::new(program)
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address=1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(home.path().join("stderr"))?)
            .spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let bus = Self { path, child, home };
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address)?;
        if !address.starts_with("unix:") {
            bail!(
                "it printed no address, but {address:?}, and said {:?}",
                bus.said()
            );
        }
        Ok(bus)
    }

    /// SIGKILLs the worker: the daemon's only child between errands.
    pub(crate) fn kill_worker(&self) -> Result<()> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let [worker] = children.split_whitespace().collect::<Vec<_>>()[..] else {
            bail!("the daemon should have one child, and has {children:?}");
        };
        let worker: i32 = worker.parse()?;
        kill(Pid::from_raw(worker), Signal::SIGKILL)?;
        Ok(())
    }

    /// What it said on stderr.
    fn said(&self) -> String {
        std::fs::read_to_string(self.home.path().join("stderr")).unwrap_or_default()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let said = self.said();
        // Its worker was killed on purpose.
        let said: String = said
            .lines()
            .filter(|line| !line.contains("was ended by SIGKILL"))
            .collect();
        if !said.is_empty() {
            eprint!("{said}");
        }
        // It may be gone already; there is nobody to tell.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
