//! A bus that listens where its file says, and nowhere else.

use super::process::{strike, worker_pid};
use super::speaker::addresses;
use super::{upgrade, wait_until};
use bus_load::clock::Deadline;
use bus_wire::Address;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const OPEN: &str = "<policy context='default'><allow send_destination='*' eavesdrop='true'/>\
                    <allow eavesdrop='true'/><allow own='*'/></policy>";
pub const ANYBODY: &str = "<auth>ANONYMOUS</auth><auth>EXTERNAL</auth><allow_anonymous/>";

/// A bus that listens where its file says. D/ stands there for its directory, which is its `HOME` and `TMPDIR`.
pub struct Listening {
    child: Child,
    pub directory: tempfile::TempDir,
    pub addresses: Vec<Address>,
}

/// The command that starts a bus with this in its file.
pub fn command(directory: &Path, configuration: &str) -> Command {
    let file = directory.join("bus.conf");
    let text = format!("<busconfig>{configuration}{OPEN}</busconfig>");
    let text = text.replace("D/", &format!("{}/", directory.display()));
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(super::binary());
    command
        .args(["daemon", "--nofork", "--print-address", "--config-file"])
        .arg(file)
        .envs([("TMPDIR", directory), ("HOME", directory)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

impl Listening {
    pub fn start(configuration: &str) -> Listening {
        let directory = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut child = command(directory.path(), configuration)
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
        assert!(!line.is_empty(), "the daemon did not start: {log}");
        let addresses = addresses(line.trim());
        Listening {
            child,
            directory,
            addresses,
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Kills the worker, and waits until another serves.
    pub fn kill_worker(&self) {
        let mut caller = self.caller();
        let before = worker_pid(&mut caller);
        assert!(strike(before, Signal::SIGKILL));
        wait_until("another worker serves", || {
            worker_pid(&mut self.caller()) != before
        });
    }

    pub fn caller(&self) -> bus_load::Caller {
        let unix = self.addresses.iter().find(|one| one.transport() == "unix");
        bus_load::Caller::connect(&unix.unwrap().to_string()).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn upgrade(&self) {
        upgrade(&mut self.caller(), "").unwrap();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Deadline::after(Duration::from_secs(5));
        while matches!(self.child.try_wait(), Ok(None)) && !deadline.passed() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
